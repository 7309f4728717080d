"""Which samples of the stream a run has consumed: small enough for a checkpoint, exact for a resume.

A sample's `uid` is `entry << 32 | row`: the entry of the shard plan that delivered it and its row there. Ranks take
rows in any order and hold some back to mix them, so "the first n" would be wrong: finished entries are kept as
intervals of entry numbers, the few unfinished ones as intervals of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ROW_BITS = 32
VERSION = 1
Taken = dict[int, tuple[int, set[int]]]
"""Entry → (rows that it delivers, rows taken)."""


@dataclass
class Position:
    """Consumed samples; every rank adds its own with `take`, a checkpoint merges all ranks' with `merge`."""

    complete: set[int] = field(default_factory=set)
    """Entries of which every delivered row was taken."""
    open: Taken = field(default_factory=dict)
    """The others, as known to all ranks."""
    local: Taken = field(default_factory=dict)
    """What this rank took since the last merge."""

    def take(self, uids: np.ndarray, entry_rows: np.ndarray) -> None:
        """Note a batch.

        Args:
            uids: int64 (B,).
            entry_rows: int (B,), how many rows the sample's entry delivers in all.
        """
        for uid, rows in zip(uids.tolist(), entry_rows.tolist(), strict=True):
            entry, row = uid >> ROW_BITS, uid & ((1 << ROW_BITS) - 1)
            assert entry not in self.complete and row not in self.open.get(entry, (0, ()))[1], "taken before"
            taken = self.local.setdefault(entry, (rows, set()))[1]
            assert row not in taken, "taken twice"
            taken.add(row)

    def merge(self, taken_by_ranks: Iterable[Taken]) -> None:
        """Add what every rank took (this one's `local` among them) and forget `local`."""
        for taken in taken_by_ranks:
            for entry, (rows, taken_rows) in taken.items():
                self.open.setdefault(entry, (rows, set()))[1].update(taken_rows)
        for entry in [entry for entry, (rows, taken_rows) in self.open.items() if len(taken_rows) == rows]:
            self.complete.add(entry)
            del self.open[entry]
        self.local = {}

    @property
    def samples_open(self) -> int:
        """Samples taken from unfinished entries."""
        return sum(len(taken) for _, taken in self.open.values())

    def to_json(self) -> dict[str, Any]:
        """Intervals [first, past last] of entries and, by unfinished entry, of rows."""
        return {
            "version": VERSION,
            "complete": _intervals(self.complete),
            "open": {str(entry): [rows, _intervals(taken)] for entry, (rows, taken) in sorted(self.open.items())},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Position:
        """The inverse of `to_json`; an empty mapping is the start."""
        assert document.get("version", VERSION) == VERSION, f"position of version {document['version']}"
        return cls(
            complete=_members(document.get("complete", [])),
            open={int(entry): (rows, _members(taken)) for entry, (rows, taken) in document.get("open", {}).items()},
        )


def _intervals(numbers: Iterable[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1][1] = number + 1
        else:
            found.append([number, number + 1])
    return found


def _members(intervals: Iterable[Iterable[int]]) -> set[int]:
    return {number for first, past in intervals for number in range(first, past)}

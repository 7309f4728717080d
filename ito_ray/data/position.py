"""Which samples of the stream a run has consumed: small enough for a checkpoint, exact for a resume.

A sample's `uid` is `entry << 32 | place`: the entry of the shard plan that delivered it and its place there
(samples.py). Ranks take samples in any order and hold some back to mix them, so "the first n" would be wrong: finished
entries are kept as intervals of entry numbers, the few unfinished ones as intervals of places.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ito_ray.errors import ConfigError

ROW_BITS = 32
ROW_PLACE_BITS = 24
ROW_PLACE_MASK = (1 << ROW_PLACE_BITS) - 1
"""A place is `slot << 24 | number of the row in that slot's piece`."""
VERSION = 2
Intervals = list[list[int]]
"""[first, past last] of each run of consecutive numbers, in order."""
Entries = dict[int, tuple[int, set[int]]]
"""Entry → (samples that it delivers, places taken)."""


@dataclass
class Taken:
    """What a rank took."""

    entries: Entries = field(default_factory=dict)
    seen: Counter[int] = field(default_factory=Counter)
    """Samples by the number of their source."""
    repeats: int = 0
    """Samples that had been taken, or whose whole entry had."""


@dataclass
class Position:
    """Consumed samples; every rank adds its own with `take`, a checkpoint merges all ranks' with `merge`."""

    complete: Intervals = field(default_factory=list)
    """Entries of which as many samples were taken as they deliver; intervals: a long run has millions of entries."""
    open: Entries = field(default_factory=dict)
    """The others, as known to all ranks."""
    seen: Counter[int] = field(default_factory=Counter)
    """Samples taken, by the number of their source, as known to all ranks."""
    repeats: int = 0
    """Samples taken although they, or their whole entry, had been: only where a store or node failed while an entry was
    on its way, and another version of it came."""
    local: Taken = field(default_factory=Taken)
    """What this rank took since the last merge."""

    def take(self, uids: np.ndarray, entry_rows: np.ndarray, sources: np.ndarray) -> None:
        """Note a batch.

        Args:
            uids: int64 (B,).
            entry_rows: int (B,), how many samples the sample's entry delivers in all.
            sources: int (B,), numbers of the samples' sources.
        """
        for uid, rows, source in zip(uids.tolist(), entry_rows.tolist(), sources.tolist(), strict=True):
            entry, place = uid >> ROW_BITS, uid & ((1 << ROW_BITS) - 1)
            _, taken = self.local.entries.get(entry, (0, set()))
            if within(self.complete, entry) or place in taken or place in self.open.get(entry, (0, ()))[1]:
                self.local.repeats += 1
                continue
            taken.add(place)
            self.local.entries[entry] = (rows, taken)
            self.local.seen[source] += 1

    def merge(self, taken_by_ranks: Iterable[Taken]) -> None:
        """Add what every rank took (this one's `local` among them) and forget `local`."""
        for taken in taken_by_ranks:
            self.seen += taken.seen
            self.repeats += taken.repeats
            for entry, (rows, places) in taken.entries.items():
                # The newest count holds: a shard may have become unreadable since the entry was read first. It may be
                # less than what was taken already.
                known = self.open.get(entry, (0, set()))[1]
                self.repeats += len(known & places)
                self.open[entry] = (rows, known | places)
        finished = [entry for entry, (rows, places) in self.open.items() if len(places) >= rows]
        self.complete = intervals(finished, self.complete)
        for entry in finished:
            del self.open[entry]
        self.local = Taken()

    @property
    def samples_open(self) -> int:
        """Samples taken from unfinished entries."""
        return sum(len(taken) for _, taken in self.open.values())

    def fractions(self, names: Sequence[str]) -> dict[str, float]:
        """Share of each source in the samples taken, as known to all ranks."""
        return {f"{name}/fraction": self.seen[source] / self.seen.total() for source, name in enumerate(names)}

    def to_json(self) -> dict[str, Any]:
        """Intervals [first, past last] of entries and, by unfinished entry, of places."""
        return {
            "version": VERSION,
            "complete": self.complete,
            "open": {str(entry): [rows, intervals(taken)] for entry, (rows, taken) in sorted(self.open.items())},
            "seen": {str(source): count for source, count in sorted(self.seen.items())},
            "repeats": self.repeats,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Position:
        """The inverse of `to_json`; an empty mapping is the start.

        Raises:
            ConfigError: written by another version of the format.
        """
        if document.get("version", VERSION) != VERSION:
            raise ConfigError(
                f"The checkpoint's position in the data is of format {document['version']}, but this version reads "
                f"{VERSION}: resume with the version that wrote it, or choose another --name."
            )
        return cls(
            complete=[list(run) for run in document.get("complete", [])],
            open={int(entry): (rows, set(members(taken))) for entry, (rows, taken) in document.get("open", {}).items()},
            seen=Counter({int(source): count for source, count in document.get("seen", {}).items()}),
            repeats=document.get("repeats", 0),
        )


def rows_known(places: Iterable[int]) -> dict[int, int]:
    """By slot, how many rows its piece had at least, so that there are these places."""
    known: dict[int, int] = {}
    for place in places:
        slot = place >> ROW_PLACE_BITS
        known[slot] = max(known.get(slot, 0), (place & ROW_PLACE_MASK) + 1)
    return known


def intervals(numbers: Iterable[int], known: Intervals | None = None) -> Intervals:
    """The numbers, and those of `known`, as intervals."""
    found: Intervals = []
    for first, past in sorted([*([number, number + 1] for number in set(numbers)), *(known or [])]):
        if found and found[-1][1] == first:
            found[-1][1] = past
        else:
            found.append([first, past])
    return found


def members(runs: Intervals) -> Iterator[int]:
    """The numbers in the intervals, in order."""
    return (number for first, past in runs for number in range(first, past))


def within(runs: Sequence[Sequence[int]], number: int) -> bool:
    """Whether `number` is in one of the sorted intervals."""
    place = bisect_right(runs, number, key=lambda run: run[0])
    return place > 0 and number < runs[place - 1][1]

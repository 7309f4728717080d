"""The account of rows: nothing is dropped in silence. No heavy imports, since every Ray process knows it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_EXAMPLES = 2
"""Keys remembered for each reason."""


@dataclass(frozen=True)
class Tally:
    """Account of rows: read = delivered + sum of dropped. `examples`: at most two "url#key: detail" a reason.

    `notes`: what is counted of delivered rows besides, as in `rows.Row`.
    """

    read: int = 0
    delivered: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.read == self.delivered + sum(self.dropped.values()), self

    def __add__(self, other: Tally) -> Tally:
        reasons = [*self.dropped, *(reason for reason in other.dropped if reason not in self.dropped)]
        return Tally(
            self.read + other.read,
            self.delivered + other.delivered,
            {reason: self.dropped.get(reason, 0) + other.dropped.get(reason, 0) for reason in reasons},
            {
                reason: [*self.examples.get(reason, []), *other.examples.get(reason, [])][:_EXAMPLES]
                for reason in reasons
            },
            {note: self.notes.get(note, 0) + other.notes.get(note, 0) for note in {**self.notes, **other.notes}},
        )

    def __sub__(self, part: Tally) -> Tally:
        """Without one that was added. Examples that both have go with it, so of a reason some may be missing."""
        left = _less(self.dropped, part.dropped)
        examples = {
            reason: [one for one in self.examples.get(reason, []) if one not in part.examples.get(reason, [])]
            for reason in left
        }
        notes = _less(self.notes, part.notes)
        return Tally(self.read - part.read, self.delivered - part.delivered, left, examples, notes)

    @staticmethod
    def good(notes: Sequence[str] = ()) -> Tally:
        """One row delivered."""
        return Tally(1, 1, notes=dict(Counter(notes)))

    @staticmethod
    def lost(reason: str, example: str) -> Tally:
        """One row dropped; `example` says which and why."""
        return Tally(1, 0, {reason: 1}, {reason: [example]})


def said(notes: Mapping[str, int]) -> str:
    """Notes as a person reads them: "3 caption_not_utf8, 12 key_to_last_dot"; empty if there are none."""
    return ", ".join(f"{count:,} {note}" for note, count in sorted(notes.items()))


def _less(whole: Mapping[str, int], part: Mapping[str, int]) -> dict[str, int]:
    left = {name: count - part.get(name, 0) for name, count in whole.items()}
    return {name: count for name, count in left.items() if count}


Tallies = dict[int, Tally]
"""By the number of the source."""


@dataclass(frozen=True, slots=True)
class Lost:
    """One dropped row."""

    source: int
    shard: str
    key: str
    reason: str
    detail: str
    place: int
    """In its entry (samples.py)."""


@dataclass(frozen=True)
class EntryReport:
    """What a data task read; the same however often an entry is read, as long as its shards can be."""

    tallies: Tallies
    lost: tuple[Lost, ...]


def added(one: Tallies, other: Tallies) -> Tallies:
    """Both accounts in one."""
    return {source: one.get(source, Tally()) + other.get(source, Tally()) for source in sorted({*one, *other})}


def without(whole: Tallies, part: Tallies) -> Tallies:
    """The account without a part of it."""
    return {source: tally - part.get(source, Tally()) for source, tally in whole.items()}


def to_json(tallies: Tallies) -> dict[str, Any]:
    """For a checkpoint; `from_json` turns it back."""
    return {str(source): dataclasses.asdict(tally) for source, tally in tallies.items()}


def from_json(document: Mapping[str, Any]) -> Tallies:
    """The inverse of `to_json`."""
    return {int(source): Tally(**tally) for source, tally in document.items()}


@dataclass(frozen=True)
class Account:
    """Of one source over the whole run: read = delivered + sum of dropped + pending."""

    read: int
    delivered: int
    """Samples that training steps took."""
    dropped: dict[str, int]
    """By reason."""
    pending: int
    """Made into samples ahead of training, and not taken before it ended."""
    fraction: float
    """Of all samples delivered."""
    notes: dict[str, int] = field(default_factory=dict)
    """What was counted of samples made, as in `rows.Row`."""

    def metrics(self) -> dict[str, float]:
        """The numbers by name."""
        dropped = {f"dropped/{reason}": float(count) for reason, count in self.dropped.items()}
        notes = {f"noted/{note}": float(count) for note, count in self.notes.items()}
        return {"read": self.read, "delivered": self.delivered, **dropped, **notes, "pending": self.pending}


def close(tallies: Tallies, seen: Mapping[int, int], names: Sequence[str]) -> dict[str, Account]:
    """The account of each source at the end of a run.

    Args:
        tallies: what data tasks read, made and dropped.
        seen: samples that the ranks took, by source.
        names: of the sources.
    """
    accounts = {}
    for source, name in enumerate(names):
        tally, taken = tallies.get(source, Tally()), seen.get(source, 0)
        pending, fraction = max(0, tally.delivered - taken), taken / max(1, sum(seen.values()))
        accounts[name] = Account(tally.read, taken, tally.dropped, pending, fraction, tally.notes)
    return accounts


def mismatch(accounts: Mapping[str, Account], *, ahead: int, repeats: int = 0) -> str:
    """A sentence if the accounts do not add up, else "". It is for the record: the model is what it is.

    Args:
        accounts: of `close`.
        ahead: samples of unfinished entries that no rank took, counted from the entries and not from `seen`.
        repeats: samples that ranks took once more.
    """
    wrong = []
    for name, one in accounts.items():
        made = one.read - sum(one.dropped.values())
        if one.delivered > made:
            wrong.append(f"{one.delivered:,} samples of {name} were taken, but {made:,} made")
    pending = sum(one.pending for one in accounts.values())
    if pending != ahead and not wrong:
        wrong.append(f"{pending:,} samples that were made were not taken, but the unfinished entries hold {ahead:,}")
    if repeats:
        wrong.append(f"{repeats:,} samples were taken once more")
    if not wrong:
        return ""
    return (
        f"The account of rows does not add up: {'; '.join(wrong)}. A store or node failed while samples were on their "
        "way, or this is a bug. The model is not touched by it."
    )

"""The account of rows: nothing is dropped in silence. No heavy imports, since every Ray process knows it."""

from __future__ import annotations

from dataclasses import dataclass, field

_EXAMPLES = 2
"""Keys remembered for each reason."""


@dataclass(frozen=True)
class Tally:
    """Account of rows: read = delivered + sum of dropped. `examples`: at most two "url#key: detail" a reason."""

    read: int = 0
    delivered: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

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
        )

    @staticmethod
    def lost(reason: str, example: str) -> Tally:
        """One row dropped; `example` says which and why."""
        return Tally(1, 0, {reason: 1}, {reason: [example]})

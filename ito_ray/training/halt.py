"""A checkpoint out of turn: ranks that do not wait for each other are told, and all leave it after the same step."""

from __future__ import annotations

from typing import Literal

Halt = Literal["", "checkpoint", "stop"]
"""Go on; leave a checkpoint and go on; leave a checkpoint and end."""


class Agreement:
    """Gives every rank the same word at the same step, whenever the order comes between their questions."""

    def __init__(self) -> None:
        self._halt: Halt = ""
        self._at: int | None = None
        self._newest = 0

    def order(self, how: Halt) -> bool:
        """From now on; whether ranks are taking steps at all."""
        self._halt, self._at = how, None
        return self._newest > 0

    def word(self, step: int) -> Halt:
        """For a rank that asks about `step`. An order takes effect at the first step that no rank has asked about."""
        if self._halt and self._at is None and step > self._newest:
            self._at = step
        self._newest = max(self._newest, step)
        return self._halt if step == self._at else ""

    def restarted(self) -> None:
        """The ranks begin anew, perhaps some steps back: who was told to stop must stop again."""
        self._halt = "stop" if self._halt == "stop" else ""
        self._at, self._newest = None, 0

"""A checkpoint out of turn: ranks that do not wait for each other are told, and all leave it after the same step."""

from __future__ import annotations

from typing import Literal

Halt = Literal["", "checkpoint", "stop"]
"""Go on; leave a checkpoint and go on; leave a checkpoint and end."""


class Agreement:
    """Gives every rank the same word at the same step, whenever orders come between their questions."""

    def __init__(self) -> None:
        self._wanted: Halt = ""
        self._stopping = False
        self._agreed: dict[int, Halt] = {}
        """What a rank was told at a step stands for the others, whatever is ordered meanwhile."""
        self._newest = 0

    def order(self, how: Halt) -> bool:
        """For the first step that no rank has asked about; whether ranks are taking steps at all."""
        self._stopping = self._stopping or how == "stop"
        self._wanted = "stop" if self._stopping else how  # a checkpoint for another reason does not undo it
        return self._newest > 0

    def word(self, step: int) -> Halt:
        """For a rank that asks about `step`."""
        if self._wanted and step > self._newest:
            self._agreed[step], self._wanted = self._wanted, ""
        self._newest = max(self._newest, step)
        return self._agreed.get(step, "")

    def restarted(self) -> None:
        """The ranks begin anew, perhaps some steps back: who was told to stop must stop again."""
        self._wanted = "stop" if self._stopping else ""
        self._agreed, self._newest = {}, 0

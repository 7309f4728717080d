"""What a person sees while a sweep runs: a live table on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ito_ray.runtime.console import PLAIN_LINE_EVERY_SECONDS
from tune.axes import Changes
from tune.book import Book, Phase, State, Trial
from tune.budget import Budget
from tune.judging import Objective

STATES: tuple[State, ...] = ("open", "finished", "stopped", "failed", "crashed")
ROWS = 8


class SweepTable:
    """Trials by state, the best so far, what is used and left."""

    def __init__(
        self,
        console: Console,
        book: Book,
        objective: Objective,
        budget: Budget,
        phase: Phase,
        ahead: Callable[[], int] = lambda: 0,
    ) -> None:
        """
        Args:
            ahead: training steps of all that is still to be run, where that is known; for the time left.
        """
        self._console, self._book, self._objective, self._budget = console, book, objective, budget
        self._phase, self._ahead = phase, ahead
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._printed = time.monotonic()

    def __enter__(self) -> SweepTable:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()
        self._console.print(f"    {self.line()}", highlight=False)

    def tick(self) -> None:
        """Draw what is known now."""
        if self._console.is_terminal:
            self._live.update(Padding(self._table(), (0, 0, 0, 4)), refresh=True)
        elif time.monotonic() - self._printed >= PLAIN_LINE_EVERY_SECONDS:
            self._printed = time.monotonic()
            self._console.print(f"    {self.line()}", highlight=False)

    def line(self) -> str:
        """Everything in one line."""
        counts = Counter(trial.state for trial in self._trials())
        states = ", ".join(f"{counts[state]} {_word(state)}" for state in STATES if counts[state]) or "no trial yet"
        best = max((self._score(trial) for trial in self._trials() if trial.curve), default=None)
        shown = f" · best {best:.4f}" if best is not None else ""
        turns = sum(len(trial.turns) for trial in self._trials())
        turned = f" · {turns} went on from another checkpoint" if turns else ""
        return f"{states}{shown}{turned} · {self._used()}"

    def _used(self) -> str:
        spent = self._book.spent
        left = self._budget.left(spent)
        money = f", {spent.money:.2f} in money" if spent.money else ""
        used = f"{spent.steps:,} steps, {spent.seconds / 60:.0f} min{money}" + (f" ({left})" if left else "")
        ahead = self._ahead() * spent.seconds / spent.steps if spent.steps else 0.0
        return used + (f" · about {timedelta(seconds=round(ahead))} left" if ahead else "")

    def _trials(self) -> list[Trial]:
        return [trial for trial in self._book.trials.values() if trial.job.phase == self._phase]

    def _score(self, trial: Trial) -> float:
        return self._objective.score(trial.curve[-1][1])

    def _table(self) -> Table:
        table = Table("trial", "state", "step", str(self._objective), "settings", box=None, pad_edge=False)
        running = [trial for trial in self._trials() if trial.state == "open"]
        others = sorted((one for one in self._trials() if one.curve and one.state != "open"), key=self._score)[::-1]
        for trial in [*running, *others][: ROWS + len(running)]:
            score = f"{self._score(trial):.4f}" if trial.curve else "–"
            words = (settings(trial.changes()) or "the recipe") + since(trial)
            table.add_row(
                trial.job.key, "waiting" if trial.due else _word(trial.state), f"{trial.steps:,}", score, Text(words)
            )
        table.caption = Text(self.line())
        table.caption_justify = "left"
        return table


def settings(changes: Changes) -> str:
    """A point in a few words."""
    return " ".join(f"{short_name(name)}={short(value)}" for name, value in changes.items())


def since(trial: Trial) -> str:
    """What follows the settings of a trial that changed in flight."""
    return f" (since step {trial.turns[-1].step:,})" if trial.turns else ""


def short_name(name: str) -> str:
    """The last part of a field's name, with its place in a tuple."""
    parts = name.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def _word(state: str) -> str:
    return "running" if state == "open" else state


def short(value: object) -> str:
    """A value in a few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)

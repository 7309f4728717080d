"""Population-based training: who goes on from whose checkpoint, and when a member makes room for the others.

At every evaluation a member is compared with those that have come to the same step. One of the lowest goes on from the
checkpoint that one of the highest had at that step, with settings near that one's (explore.py). All of it follows from
the book, and what was decided is in the book before anybody acts on it.

Source: Jaderberg et al. (https://arxiv.org/abs/1711.09846), truncation selection, asynchronous. Comparing at equal
steps is ours: the learning rate's schedule is a function of the step. So is the recipe's part: it is never changed, and
stays what the winner is compared with.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from ito_ray.config.schema import Config
from ito_ray.runtime.shelf import checkpoints, name_of, step_of
from tune.axes import Changes, Space
from tune.book import BASELINE, Book, Job, Schedule, Trial, Turn
from tune.budget import Budget
from tune.explore import explore
from tune.judging import Objective
from tune.plan import Plan
from tune.searchers import Searcher

Shelf = Callable[[str], Path]
"""Where the trial of a key holds the checkpoints that were evaluated."""


@dataclass
class Population(Plan):
    """All members from the start; with fewer places than members they take turns, those behind first."""

    book: Book
    searcher: Searcher
    """Draws the first settings."""
    budget: Budget
    points: int
    """Members, the recipe among them."""
    seed: int
    """Of all members: they share the order of the data, and checkpoints with it."""
    space: Space
    start: Config
    """With what the space fixes."""
    objective: Objective
    factor: int
    """One in so many copies one in so many, at least one."""
    shelf: Shelf
    _running: set[str] = field(default_factory=set)
    _exhausted: bool = False
    _released: float = 0

    def __post_init__(self) -> None:
        """Go on where the book stands."""
        for number, trials in self.book.points("search").items():
            self.searcher.tell(number, trials[0].job.changes, trials)

    @property
    def is_finished(self) -> bool:
        open_now = bool(self.book.open_trials("search"))
        return bool(self.budget.gone(self.book.spent)) or (self._all_are_known and not open_now)

    @property
    def _all_are_known(self) -> bool:
        return self._exhausted or len(self.book.points("search")) >= self.points

    @property
    def _waiting(self) -> list[Trial]:
        return [trial for trial in self.book.open_trials("search") if trial.job.key not in self._running]

    def next(self) -> Job | None:
        if self.is_finished:
            return None
        trial = self._newcomer() or min(self._waiting, key=lambda one: (one.steps, one.job.point), default=None)
        if trial is None:
            return None
        if trial.due:
            self.book.thought(trial.job.key, self.turn(trial, *trial.curve[-1]))
        self._running.add(trial.job.key)
        return trial.job

    def _newcomer(self) -> Trial | None:
        if self._all_are_known:
            return None
        number = len(self.book.points("search"))
        changes: Changes | None = {} if number == BASELINE else self.searcher.ask(number)
        if changes is None:
            self._exhausted = True
            return None
        return self.book.started(Job(number, self.seed, "search", changes))

    def ended(self, trial: Trial) -> None:
        self._running.discard(trial.job.key)

    def yields(self, trial: Trial, step: int) -> bool:
        return not self._all_are_known or any(one.steps < step for one in self._waiting)

    def turn(self, trial: Trial, step: int, values: Mapping[str, float]) -> Turn | None:
        key = trial.job.key
        if trial.job.point == BASELINE:
            return None
        scores = {key: self.objective.score(values)}
        for other in self._comparable():
            if other.job.key != key and (known := other.values(step)) is not None:
                scores[other.job.key] = self.objective.score(known)
        if len(scores) < 2:
            return None
        count = max(1, len(scores) // self.factor)
        ranked = sorted(scores, key=lambda one: (-scores[one], one))
        source = random.Random(f"{self.seed}/{key}/{step}")
        donors = [one for one in ranked[:count] if scores[one] > scores[key] and self._holds(one, step)]
        if key not in ranked[-count:] or not donors:
            return None
        donor = source.choice(donors)
        copied = self.book.trials[donor].changes(before=step)
        return Turn(step, donor, explore(self.space, self.start, copied, source))

    def _comparable(self) -> Iterable[Trial]:
        """One that failed is nobody's example."""
        trials = (trial for trials in self.book.points("search").values() for trial in trials)
        return (trial for trial in trials if trial.state not in ("failed", "crashed"))

    def _holds(self, key: str, step: int) -> bool:
        return (self.shelf(key) / name_of(step)).is_dir()

    def release(self) -> None:
        """Let the checkpoints go that nobody can take over any more: all members have been judged at a later step."""
        trials = [trial for trials in self.book.points("search").values() for trial in trials]
        floor = min((trial.steps for trial in trials if trial.state == "open"), default=inf)
        floor = floor if self._all_are_known else 0
        if floor > self._released:
            self._released = floor
            release(self.shelf, trials, floor)


def release(shelf: Shelf, trials: Iterable[Trial], floor: float) -> None:
    """Remove the checkpoints that these trials hold of steps below `floor`."""
    for trial in trials:
        for folder in checkpoints(shelf(trial.job.key)):
            if step_of(folder) < floor:
                shutil.rmtree(folder)


def lineage(book: Book, key: str, recipe: Changes, before: float = inf) -> Schedule:
    """The settings that made a trial's weights, also where they were another's: (step, settings from there on).

    Args:
        recipe: what the recipe's {} means as changes of the space's start.
        before: step of the checkpoint that is meant; without it the last one.
    """
    trial = book.trials[key]
    turns = [turn for turn in trial.turns if turn.step < before]
    if not turns:
        return ((0, recipe if trial.job.point == BASELINE else trial.job.changes),)
    last = turns[-1]
    return (*lineage(book, last.donor, recipe, last.step), (last.step, last.changes))

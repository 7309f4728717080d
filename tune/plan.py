"""Which trial comes next. No Ray here: the book and the searcher decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from tune.axes import Changes
from tune.book import BASELINE, Book, Job, Trial, Turn
from tune.budget import Budget
from tune.searchers import Searcher


class Plan(Protocol):
    """A part of the sweep."""

    def next(self) -> Job | None:
        """A trial to run now, new or to be gone on with; None: nothing now."""

    @property
    def is_finished(self) -> bool:
        """Nothing will come any more."""

    def ended(self, trial: Trial) -> None:
        """A trial that was given out has ended, or has yielded its place."""

    def turn(self, trial: Trial, step: int, values: Mapping[str, float]) -> Turn | None:
        """What changes in flight after an evaluation that the book does not have yet."""
        return None

    def yields(self, trial: Trial, step: int) -> bool:
        """Whether the trial, evaluated at `step`, makes room for others and goes on later."""
        return False


@dataclass
class Search(Plan):
    """First the recipe as it is, then what the searcher asks for, each with every seed."""

    book: Book
    searcher: Searcher
    budget: Budget
    points: int
    """How many, with the recipe's own."""
    seeds: Sequence[int]
    _queue: list[Job] = field(default_factory=list)
    _told: set[int] = field(default_factory=set)
    _exhausted: bool = False

    def __post_init__(self) -> None:
        """Go on where the book stands: the searcher lives through its points again, in their order.

        So it asks next what it would have asked without the kill, also where points overlapped.
        """
        known = self.book.points("search")
        for number, trials in sorted(known.items()):
            changes = trials[0].job.changes
            missing = [seed for seed in self.seeds if seed not in {trial.job.seed for trial in trials}]
            unfinished = [trial.job for trial in trials if trial.state == "open"]
            self._queue += unfinished + [Job(number, seed, "search", changes) for seed in missing]
        for number, trials in sorted(known.items(), key=lambda item: _began(item[1])):
            self._tell(before=_began(trials))
            if number != BASELINE:
                self.searcher.pending(number, trials[0].job.changes)
        self._tell()

    def _tell(self, before: float = inf) -> None:
        """Let the searcher know the points that ended before this line of the book, in their order."""
        ended = {
            max(trial.ended for trial in trials): trials
            for number, trials in self.book.points("search").items()
            if number not in self._told
            and len(trials) == len(self.seeds)
            and all(trial.state != "open" for trial in trials)
        }
        for line, trials in sorted(ended.items()):
            if line < before:
                job = trials[0].job
                self._told.add(job.point)
                self.searcher.tell(job.point, job.changes, trials)

    @property
    def is_finished(self) -> bool:
        spent = bool(self.budget.gone(self.book.spent))
        return spent or (not self._queue and (self._exhausted or self._given >= self.points))

    @property
    def _given(self) -> int:
        return len(self.book.points("search"))

    def next(self) -> Job | None:
        if self.is_finished:
            return None
        if not self._queue:
            self._queue += self._new_point()
        if not self._queue:
            return None
        job = self._queue.pop(0)
        if job.key not in self.book.trials:
            self.book.started(job)
        return job

    def _new_point(self) -> list[Job]:
        self._tell()
        number = self._given
        changes: Changes | None = {} if number == BASELINE else self.searcher.ask(number)
        if changes is None:
            self._exhausted = True
            return []
        return [Job(number, seed, "search", changes) for seed in self.seeds]

    def ended(self, trial: Trial) -> None:
        self._tell()


def _began(trials: Sequence[Trial]) -> int:
    return min(trial.began for trial in trials)


@dataclass
class Listed(Plan):
    """These jobs in their order, all to the end, whatever the budget: a confirmation, or the arms of a study."""

    book: Book
    jobs: Sequence[Job]
    _queue: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = self.book.trials
        self._queue = [job for job in self.jobs if job.key not in known or known[job.key].state == "open"]

    @property
    def is_finished(self) -> bool:
        return not self._queue

    def cost(self, steps: int) -> str:
        """What is left to be done, in words; "" when nothing is.

        Args:
            steps: of a whole trial.
        """
        if not self._queue:
            return ""
        done = sum(self.book.trials[job.key].steps for job in self._queue if job.key in self.book.trials)
        begun = f", {done:,} of them taken" if done else ""
        count = len(self._queue)
        return f"{count} trial{'s' if count > 1 else ''} of {steps:,} steps, {count * steps:,} in all{begun}"

    def next(self) -> Job | None:
        if not self._queue:
            return None
        job = self._queue.pop(0)
        if job.key not in self.book.trials:
            self.book.started(job)
        return job

    def ended(self, trial: Trial) -> None:
        """Nothing depends on it."""

    def turn(self, trial: Trial, step: int, values: Mapping[str, float]) -> Turn | None:
        changes = dict(trial.job.schedule).get(step)
        return None if changes is None else Turn(step, trial.job.key, changes)

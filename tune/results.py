"""The numbers of a study, from its book alone: by arm and seed, as means, and as differences seed by seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ito_ray.errors import DataError
from ito_ray.runtime.trial import STEP_CPU_SECONDS
from tune.arms import Comparison
from tune.book import BOOK, TEST, Book
from tune.judging import Difference, Estimate, Objective, paired_difference
from tune.studies import study


@dataclass(frozen=True)
class Run:
    """One trial that went to its end and was measured on the test sets."""

    arm: str
    seed: int
    curve: tuple[tuple[int, Mapping[str, float]], ...]
    """(step, values) on validation data."""
    test: Mapping[str, float]


@dataclass(frozen=True)
class Course:
    """A validation score over training, 0…1."""

    best: float
    at: float
    """Where the best was, as a share of the steps."""
    last: float

    @property
    def fall(self) -> float:
        """From the best to the end; 0 where the end is the best."""
        return self.best - self.last


@dataclass(frozen=True)
class Effort:
    """What an arm does in one run."""

    steps: int
    images: int
    """That go through the image tower."""
    captions: int
    """That go through the text tower."""


@dataclass(frozen=True)
class Results:
    """What a study found so far."""

    name: str
    settings: Mapping[str, Any]
    """As the session wrote them into the book."""
    runs: tuple[Run, ...]
    missing: tuple[str, ...]
    """Arm, seed and state of trials that have no test numbers."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Those with a run, in the study's order."""
        known = {run.arm for run in self.runs}
        return tuple(arm for arm in self.settings["arms"] if arm in known)

    @property
    def comparison(self) -> Comparison:
        """What its arms are, and what they are compared with."""
        return study(self.name, Path()).comparison

    @property
    def references(self) -> tuple[str, ...]:
        """Arms with a run that all others are compared with."""
        return tuple(arm for arm in self.comparison.references if arm in self.arms)

    def label(self, arm: str) -> str:
        """What people call it."""
        return self.comparison.labels[arm]

    @property
    def headline(self) -> tuple[str, ...]:
        """Metrics that the figures show."""
        return tuple(self.settings["headline"])

    @property
    def objective(self) -> Objective:
        """Of the validation curves."""
        return Objective(tuple(self.settings["objective"]))

    def of(self, arm: str) -> list[Run]:
        """The arm's runs."""
        return [run for run in self.runs if run.arm == arm]

    def tested(self, arm: str, metric: str) -> dict[int, float]:
        """Test values by seed; {} for a metric that the study's test does not give."""
        return {run.seed: run.test[metric] for run in self.of(arm) if metric in run.test}

    def estimate(self, arm: str, metric: str) -> Estimate | None:
        """The test metric over seeds."""
        values = tuple(self.tested(arm, metric).values())
        return Estimate(values) if values else None

    def difference(self, arm: str, reference: str, metric: str) -> Difference | None:
        """Test metric of `arm` less that of `reference`, over the seeds that both have."""
        one, other = self.tested(arm, metric), self.tested(reference, metric)
        return paired_difference(one, other) if one.keys() & other.keys() else None

    def courses(self, arm: str) -> list[Course]:
        """How the validation score went, one a seed."""
        found = []
        for run in self.of(arm):
            scores = [(self.objective.score(values), step) for step, values in run.curve]
            best, step = max(scores)
            found.append(Course(best, step / run.curve[-1][0], scores[-1][0]))
        return found

    def effort(self, arm: str) -> Effort:
        """From the arm's configuration."""
        fields = {**self.settings["config"], **self.settings["arms"][arm]}
        steps, batch = fields["train.steps"], fields["train.global_batch"]
        return Effort(steps, steps * batch * fields["data.views.count"], steps * batch * fields["data.captions"])

    def step_cpu(self, arm: str) -> float | None:
        """CPU-seconds of all ranks for a step, mean over the runs; None where it was not measured."""
        found = [run.curve[-1][1][STEP_CPU_SECONDS] for run in self.of(arm) if STEP_CPU_SECONDS in run.curve[-1][1]]
        return fmean(found) if found else None


def read_results(path: Path) -> Results:
    """The results in a study's folder, or in its book.

    Raises:
        DataError: no book, one of another kind of sweep, or no run that was measured.
    """
    book_path = path / BOOK if path.is_dir() else path
    if not book_path.is_file():
        raise DataError(f"{path} has no {BOOK}: give the folder of a study, <output>/<study>, or its book.")
    book = Book(book_path, read_only=True)
    if "study" not in book.settings:
        raise DataError(f"{book_path} is the book of a search: python -m tune.report makes its page.")
    names = [*book.settings["arms"]]
    runs, missing = [], []
    for key, trial in book.trials.items():
        arm, test = names[trial.job.point - 1], book.notes.get(note_name(key))
        if test is None:
            missing.append(f"{arm}, seed {trial.job.seed}: {trial.state}{trial.reason and ', ' + trial.reason}")
        else:
            runs.append(Run(arm, trial.job.seed, tuple(trial.curve), test))
    if not runs:
        raise DataError(f"{book_path}: no run was measured on the test sets yet, so there is nothing to report.")
    return Results(book.settings["study"], book.settings, tuple(runs), tuple(missing))


def note_name(key: str) -> str:
    """Name of the book's note with a trial's test numbers."""
    return f"{TEST}/{key}"

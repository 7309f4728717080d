"""When a trial is not worth more steps: Ray Tune's asynchronous successive halving, asked at every evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from tune.book import Trial
from tune.judging import Objective

SchedulerName = Literal["asha", "hyperband", "pbt", "none"]
HYPERBAND_BRACKETS = 3
SCORE, STEP = "score", "step"


@dataclass(frozen=True)
class Rungs:
    """Where trials are compared."""

    first: int
    """Steps before which no trial is stopped."""
    full: int
    """Steps of a trial that is never stopped."""
    factor: int
    """One in so many goes on from each rung."""


class Stopping:
    """The word on an evaluation. Rebuilt from the book when a sweep resumes."""

    def __init__(self, name: SchedulerName, rungs: Rungs, objective: Objective) -> None:
        self._objective = objective
        self._full = rungs.full
        self._known: dict[str, Any] = {}
        self._asha: ASHAScheduler | None = None
        if name in ("asha", "hyperband"):
            self._asha = ASHAScheduler(
                time_attr=STEP,
                metric=SCORE,
                mode="max",
                max_t=rungs.full,
                grace_period=rungs.first,
                reduction_factor=rungs.factor,
                brackets=HYPERBAND_BRACKETS if name == "hyperband" else 1,
            )

    def replay(self, trials: Iterable[Trial]) -> None:
        """Show it what earlier sessions saw."""
        for trial in trials:
            for step, values in trial.curve:
                self.verdict(trial.job.key, step, values)

    def verdict(self, key: str, step: int, values: Mapping[str, float]) -> str:
        """Why the trial stops here; "" lets it go on."""
        score = self._objective.score(values)
        if self._asha is None or step >= self._full:
            return ""
        # ASHA knows a trial by its id only, and asks nothing of the controller.
        if key not in self._known:
            self._known[key] = SimpleNamespace(trial_id=key)
            with _numbers_of(key):
                self._asha.on_trial_add(cast(Any, None), self._known[key])
        word = self._asha.on_trial_result(cast(Any, None), self._known[key], {STEP: step, SCORE: score})
        if word == TrialScheduler.CONTINUE:
            return ""
        return f"below the others after {step:,} steps ({score:.4f})"


@contextmanager
def _numbers_of(key: str) -> Iterator[None]:
    """ASHA draws a trial's bracket from NumPy's global numbers; after a resume it must be the same one."""
    before = np.random.get_state()
    np.random.seed(zlib.crc32(key.encode()))
    try:
        yield
    finally:
        np.random.set_state(before)

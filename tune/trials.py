"""From a point and a seed to the configuration of a trial."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.models.pixels import with_pixels
from ito_ray.runtime.desk import Order, Takeover
from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.runtime.shelf import name_of
from ito_ray.tracking.run import Store
from tune.axes import Changes, apply, value_of
from tune.book import BASELINE, Job, Trial

TRIALS, SHELF = "trials", "held"
UNJUDGED = {"best": "", "keep_best": 1, "patience": 0, "min_improvement": 0}
"""The sweep judges its trials itself, and takes their last weights."""


@dataclass(frozen=True)
class TrialMaker:
    """Everything that all trials of a sweep share."""

    recipe: str
    base: Config
    """The recipe as given, which the baseline runs."""
    start: Config
    """With what the space fixes."""
    folder: Path
    """The sweep's."""
    store: Store
    every: int
    """Steps between evaluations."""
    tokenizer: TokenizerFiles
    tags: dict[str, str]
    in_flight: tuple[str, ...] = ()
    """Fields that trials may change while they run; () where none does."""
    fixed: tuple[str, ...] = ()
    """Fields in which `start` differs from `base`."""

    def config(self, job: Job) -> Config:
        """What a trial runs first: the recipe but for what the point changes, for seed, place and bookkeeping."""
        point = self.base if job.point == BASELINE else self.point(job.changes)
        return self._laid(point, job, name=job.key, output=self.folder / TRIALS)

    def present(self, trial: Trial) -> Config:
        """What it runs since its last turn, in a run folder of its own."""
        if not trial.turns:
            return self.config(trial.job)
        turn = trial.turns[-1]
        name = f"{trial.job.key}-from-{turn.step}"
        return self._laid(self.point(turn.changes), trial.job, name=name, output=self.run_folder(trial.job))

    def _laid(self, point: Config, job: Job, *, name: str, output: Path) -> Config:
        train: dict[str, Any] = {"seed": job.seed, "keep_checkpoints": 1}
        if self.in_flight:
            train["checkpoint_every"] = self.every  # so that each checkpoint that was evaluated can be taken over
        changes: dict[str, Any] = {
            "name": name,
            "output": str(output),
            "train": train,
            "eval": {"every": self.every, "cpus": 0, "gpu": False, **UNJUDGED},
            "tracking": {"uri": self.store.uri},
        }
        return with_pixels(overlay(point, changes, source=job.key))

    def point(self, changes: Changes) -> Config:
        """The recipe at a point."""
        return apply(self.start, {name: _tuples(value) for name, value in changes.items()}, source="point")

    def order(self, trial: Trial) -> Order:
        """What the trial is told."""
        job = trial.job
        cfg = self.config(job)
        same_texts = cfg.model.text == self.base.model.text and cfg.data.train == self.base.data.train
        same_texts = same_texts and cfg.data.columns == self.base.data.columns
        tokenizer = self.tokenizer if same_texts else None
        order = Order(cfg, self.recipe, str(Path.cwd()), tokenizer, dict(self.tags))
        if not self.in_flight:
            return order
        takeover = None
        if trial.turns:
            turn = trial.turns[-1]
            checkpoint = str(self.shelf(turn.donor) / name_of(turn.step))
            takeover = Takeover(turn.step, checkpoint, self.present(trial), self._numbers(turn.changes))
        settings = self._numbers(self.recipe_changes if job.point == BASELINE else job.changes)
        return replace(order, settings=settings, shelf=str(self.shelf(job.key)), takeover=takeover)

    @property
    def recipe_changes(self) -> Changes:
        """The recipe, as changes of `start`."""
        return {name: value_of(self.base, name) for name in self.fixed}

    def _numbers(self, changes: Changes) -> dict[str, float]:
        """The numbers among what may change in flight."""
        point = self.point(changes)
        found = {}
        for name in self.in_flight:
            with suppress(IndexError):  # a weight of a recipe that names none
                found[name] = value_of(point, name)
        return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}

    def shelf(self, key: str) -> Path:
        """Where a trial holds the checkpoints that were evaluated."""
        return self.folder / TRIALS / key / SHELF

    def run_folder(self, job: Job) -> Path:
        """Where a trial's checkpoints are."""
        return self.folder / TRIALS / job.key


def _tuples(value: Any) -> Any:
    """JSON has lists where the configuration has tuples."""
    return tuple(value) if isinstance(value, list) else value


def evaluation_interval(cfg: Config, factor: int) -> int:
    """The recipe's, else such that a trial is compared twice before its end."""
    return cfg.eval.every or max(1, cfg.train.steps // factor**2)

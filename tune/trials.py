"""From a point and a seed to the configuration of a trial."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.runtime.desk import Order
from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.tracking.run import Store
from tune.axes import Changes, apply
from tune.book import BASELINE, Job

TRIALS = "trials"
UNJUDGED = {"best": "", "patience": 0, "min_improvement": 0}
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

    def config(self, job: Job) -> Config:
        """What a trial runs: it differs from the recipe in what the point changes, in seed, place and bookkeeping."""
        point = self.base if job.point == BASELINE else self.point(job.changes)
        changes: dict[str, Any] = {
            "name": job.key,
            "output": str(self.folder / TRIALS),
            "train": {"seed": job.seed, "keep_checkpoints": 1},
            "eval": {"every": self.every, "cpus": 0, "gpu": False, **UNJUDGED},
            "tracking": {"uri": self.store.uri},
        }
        return overlay(point, changes, source=job.key)

    def point(self, changes: Changes) -> Config:
        """The recipe at a point."""
        return apply(self.start, {name: _tuples(value) for name, value in changes.items()}, source="point")

    def order(self, job: Job) -> Order:
        """What the trial is told."""
        cfg = self.config(job)
        same_texts = cfg.model.text == self.base.model.text and cfg.data.train == self.base.data.train
        same_texts = same_texts and cfg.data.columns == self.base.data.columns
        return Order(cfg, self.recipe, str(Path.cwd()), self.tokenizer if same_texts else None, dict(self.tags))

    def run_folder(self, job: Job) -> Path:
        """Where a trial's checkpoints are."""
        return self.folder / TRIALS / job.key


def _tuples(value: Any) -> Any:
    """JSON has lists where the configuration has tuples."""
    return tuple(value) if isinstance(value, list) else value


def evaluation_interval(cfg: Config, factor: int) -> int:
    """The recipe's, else such that a trial is compared twice before its end."""
    return cfg.eval.every or max(1, cfg.train.steps // factor**2)

"""The section `eval`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from ito_ray.config.section import NonNegativeFloat, NonNegativeInt, PositiveInt, Section
from ito_ray.errors import ConfigError


class EvalConfig(Section):
    """What is measured on data that is never trained on."""

    every: NonNegativeInt = 0
    """Steps between evaluations during training; 0 = only after training."""
    max_samples: PositiveInt = 1000
    """Held-out pairs used during training; after training all are used."""
    captions: PositiveInt = 1
    """Captions of a held-out image that count, the first ones; each is right for its image."""
    zero_shot: tuple[str, ...] = ()
    """Shards for zero-shot classification."""
    classes: str = ""
    """Text file, one class name a line; a sample's class is `zero_shot_field` of its json."""
    templates: str = ""
    """Text file, one prompt a line with {} for the class name; empty = the bare name."""
    zero_shot_field: str = "name"
    """Field of a sample's json that holds its class name."""
    batch: PositiveInt = 256
    """Images or texts that are encoded at once."""
    cpus: NonNegativeFloat = 0.0
    """CPUs of an evaluator beside the training workers, which train on while it measures. 0, or where the cluster has
    no room for it: rank 0 measures and the others wait."""
    gpu: bool = False
    """One GPU for the evaluator too."""
    best: str = ""
    """Metric, e.g. heldout/r1_image_to_text: the checkpoint whose evaluation was best is kept in RUN/best, besides the
    newest ones. Every evaluation then has a checkpoint, and the last step an evaluation. Empty = newest ones only."""
    ship: Literal["best", "last"] = "best"
    """Which checkpoint is exported and registered where `best` is named."""
    keep_best: PositiveInt = 1
    """How many checkpoints stay in RUN/best, to be compared on other data: the best ones by `best`."""
    patience: NonNegativeInt = 0
    """Training ends after so many evaluations in a row in which `best` did not improve; 0 = never."""
    min_improvement: NonNegativeFloat = 0.0
    """How much better than the last improvement counts as one for `patience`: more than this."""

    @model_validator(mode="after")
    def _live_fits(self) -> EvalConfig:
        if self.best and not self.every:
            raise ConfigError(f"eval.best={self.best} is measured during training: set eval.every to some steps.")
        if self.patience and not self.best:
            raise ConfigError(
                f"eval.patience={self.patience} needs a metric to wait for: set eval.best, "
                "e.g. heldout/r1_image_to_text."
            )
        if self.keep_best > 1 and not self.best:
            raise ConfigError(
                f"eval.keep_best={self.keep_best} needs a metric to go by: set eval.best, "
                "e.g. heldout/r1_image_to_text."
            )
        if self.min_improvement and not self.patience:
            raise ConfigError(
                f"eval.min_improvement={self.min_improvement:g} says what eval.patience waits for: set eval.patience, "
                "or leave both at 0."
            )
        if self.gpu and not self.cpus:
            raise ConfigError("eval.gpu=true is for an evaluator of its own: set eval.cpus to 1 or more.")
        return self

"""What is trained, and with what: the one thing that the loop advances and a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.utils import ModelEmaV3
from torch import nn

from ito_ray.config.schema import Config
from ito_ray.methods.base import Method
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.training.optimizer import build_optimizer


@dataclass
class Learner:
    """Method, optimiser and moving average on one rank."""

    method: Method
    """Bare."""
    model: nn.Module
    """`method`, or DDP around it: what is called to train."""
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    """Moving average of the encoder (`train.ema`)."""

    @property
    def shipped(self) -> DualEncoder:
        """The encoder that is evaluated and exported."""
        encoder: DualEncoder = self.ema.module if self.ema is not None else self.method.encoder
        return encoder

    def averaged(self, done: int) -> None:
        """Let the average follow, `done` steps into the run."""
        if self.ema is not None:
            self.ema.update(self.method.encoder, step=done)


def build_learner(cfg: Config, method: Method) -> Learner:
    """A learner at step 0; `model` is the bare method until the caller wraps it.

    Raises:
        ConfigError: an option that these towers do not have.
    """
    if cfg.train.gradient_checkpointing:
        method.recompute_activations()
    ema = ModelEmaV3(method.encoder, decay=cfg.train.ema, use_warmup=True) if cfg.train.ema else None
    return Learner(method, method, build_optimizer(method, cfg.optim), ema)

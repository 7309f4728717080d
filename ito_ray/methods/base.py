"""The contract of a method: a module that owns the dual encoder and turns a batch into a loss.

Shapes: B samples of this rank, V views, C captions, T text tokens, H×W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from ito_ray.config.schema import Config
from ito_ray.models.dual_encoder import DualEncoder


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step, on the training device."""

    image_VBCHW: Tensor
    """float, normalised."""
    ids_CBT: Tensor
    """int64, padded to the longest caption of this batch."""
    length_CB: Tensor
    """int64, valid tokens of each caption."""


@dataclass(frozen=True)
class StepResult:
    """A differentiable loss and what to log of it."""

    loss: Tensor
    metrics: dict[str, Tensor]
    """Detached scalars by name, e.g. `loss/align`; this rank's share of the mean."""


class Method(nn.Module, ABC):
    """Everything trainable hangs below: `encoder` ships, the rest is discarded after training."""

    def __init__(self, encoder: DualEncoder, cfg: Config) -> None:
        super().__init__()
        self.encoder = encoder

    @abstractmethod
    def forward(self, batch: Batch) -> StepResult:
        """Loss of the global batch as seen from this rank: the mean over ranks is the loss."""

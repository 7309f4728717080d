"""The contract of a method: towers turn a batch into features, the objective turns features into a loss.

The two halves are apart so that a large batch can be embedded in small pieces and still be contrasted as a whole
(training/step.py).

Shapes: B samples of this rank, V views, C captions, K = V·C, T text tokens, H×W pixels, D shared width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ito_ray.config.schema import Config
from ito_ray.losses.gather import gather
from ito_ray.models.dual_encoder import MAX_LOGIT_SCALE, DualEncoder, unit
from ito_ray.models.image_tower import ImageFeatures
from ito_ray.models.text_tower import TextFeatures


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step, or a piece of it, on the training device."""

    image_VBCHW: Tensor
    """float, normalised."""
    ids_CBT: Tensor
    """int64, padded to the longest caption of this batch."""
    length_CB: Tensor
    """int64, valid tokens of each caption."""


@dataclass(frozen=True)
class Features:
    """All that an objective needs to know of a batch. L2-normalised, at least float32."""

    image_VBD: Tensor
    text_CBD: Tensor
    fused_KBD: Tensor | None
    """One for each view and caption, view by view; None without fusion."""
    caption_CB: Tensor
    """int64: equal captions have equal numbers."""

    def embedded(self) -> list[Tensor]:
        """The tensors that carry gradients."""
        return [tensor for tensor in (self.image_VBD, self.text_CBD, self.fused_KBD) if tensor is not None]

    def detached(self) -> Features:
        """The same numbers without their history."""
        fused_KBD = None if self.fused_KBD is None else self.fused_KBD.detach()
        return Features(self.image_VBD.detach(), self.text_CBD.detach(), fused_KBD, self.caption_CB)


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
        self.mask_duplicates = cfg.method.mask_duplicates
        self.progress = 0.0
        """Steps taken over all steps, 0 ≤ progress < 1: to be set before every step, for what changes over them."""

    def forward(self, batch: Batch) -> Features:
        """Embed every view in one pass and every caption in one pass."""
        image, text = self._towers(batch)
        return self._features(batch, image, text, fused_KBD=None)

    @abstractmethod
    def objective(self, features: Features) -> StepResult:
        """Loss of the global batch as seen from this rank: the mean over ranks is the loss."""

    def objective_parameters(self) -> list[nn.Parameter]:
        """What the objective itself learns, beside what the features carry."""
        return self.logit_scales()

    def logit_scales(self) -> list[nn.Parameter]:
        """All log s of the objective."""
        return [self.encoder.logit_scale]

    @torch.no_grad()
    def clamp_logit_scales(self) -> None:
        """Keep every s within [1, 100], as CLIP does; to be called after every optimiser step."""
        for logit_scale in self.logit_scales():
            logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def recompute_activations(self) -> None:
        """Trade time for memory: keep the inputs of blocks, compute what is inside again in the backward pass.

        Raises:
            ConfigError: a tower that cannot.
        """
        self.encoder.image.recompute_activations()
        self.encoder.text.recompute_activations()

    def _towers(self, batch: Batch) -> tuple[ImageFeatures, TextFeatures]:
        image: ImageFeatures = self.encoder.image(batch.image_VBCHW.flatten(0, 1))
        text: TextFeatures = self.encoder.text(batch.ids_CBT.flatten(0, 1), batch.length_CB.flatten())
        return image, text

    def _features(self, batch: Batch, image: ImageFeatures, text: TextFeatures, fused_KBD: Tensor | None) -> Features:
        image_VBD = unit(image.embedding_BD).unflatten(0, (len(batch.image_VBCHW), -1))
        text_CBD = unit(text.embedding_BD).unflatten(0, (len(batch.ids_CBT), -1))
        return Features(image_VBD, text_CBD, fused_KBD, caption_identity(batch.ids_CBT, batch.length_CB))

    def _captions_of_all(self, features: Features) -> Tensor | None:
        """int64 (C,G) where equal captions must not count as negatives, else None."""
        return gather(features.caption_CB, dim=1) if self.mask_duplicates else None


def caption_identity(ids_CBT: Tensor, length_CB: Tensor) -> Tensor:
    """A number for each caption, int64 (C,B): a polynomial of its tokens modulo 2⁶⁴, whatever the padding."""
    power_T = torch.full((ids_CBT.shape[-1],), 6364136223846793005, device=ids_CBT.device).cumprod(0)
    valid_CBT = torch.arange(ids_CBT.shape[-1], device=ids_CBT.device) < length_CB[..., None]
    return ((ids_CBT + 1) * power_T * valid_CBT).sum(-1)


def concatenate(parts: Sequence[Features]) -> Features:
    """The pieces of a batch as one."""
    fused = [part.fused_KBD for part in parts if part.fused_KBD is not None]
    return Features(
        torch.cat([part.image_VBD for part in parts], dim=1),
        torch.cat([part.text_CBD for part in parts], dim=1),
        torch.cat(fused, dim=1) if fused else None,
        torch.cat([part.caption_CB for part in parts], dim=1),
    )

"""CLIP: one view, one caption, symmetric InfoNCE (https://arxiv.org/abs/2103.00020)."""

from __future__ import annotations

import torch

from ito_ray.losses.contrastive import info_nce
from ito_ray.losses.gather import gather
from ito_ray.methods.base import Batch, Method, StepResult


class Clip(Method):
    """L = InfoNCE(image, text); the configuration holds V = C = 1."""

    def forward(self, batch: Batch) -> StepResult:
        image_BD = self.encoder.encode_image(batch.image_VBCHW[0])
        text_BD = self.encoder.encode_text(batch.ids_CBT[0], batch.length_CB[0])
        image_GD, text_GD = gather(torch.stack([image_BD, text_BD]), dim=1)
        loss = info_nce(image_BD, text_BD, image_GD, text_GD, self.encoder.logit_scale.exp())
        return StepResult(loss, {"loss/align": loss.detach()})

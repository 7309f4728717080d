"""CLIP: one view, one caption, symmetric InfoNCE (https://arxiv.org/abs/2103.00020)."""

from __future__ import annotations

import torch

from ito_ray.losses.contrastive import info_nce
from ito_ray.losses.gather import gather
from ito_ray.methods.base import Features, Method, StepResult


class Clip(Method):
    """L = InfoNCE(image, text); the configuration holds V = C = 1."""

    def objective(self, features: Features) -> StepResult:
        image_BD, text_BD = features.image_VBD[0], features.text_CBD[0]
        image_GD, text_GD = gather(torch.stack([image_BD, text_BD]), dim=1)
        caption_CG = self._captions_of_all(features)
        caption_G = None if caption_CG is None else caption_CG[0]
        loss = info_nce(image_BD, text_BD, image_GD, text_GD, self.encoder.logit_scale.exp(), caption_G)
        return StepResult(loss, {"loss/align": loss.detach()})

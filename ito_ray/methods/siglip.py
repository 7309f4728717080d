"""SigLIP: one view, one caption, pairwise sigmoid loss (https://arxiv.org/abs/2303.15343)."""

from __future__ import annotations

import math

import torch
from torch import nn

from ito_ray.config.schema import Config
from ito_ray.losses.gather import gather
from ito_ray.losses.sigmoid import sigmoid_loss
from ito_ray.methods.base import Features, Method, StepResult
from ito_ray.models.dual_encoder import DualEncoder


class SigLip(Method):
    """L = sigmoid loss with a learned bias; the configuration holds V = C = 1."""

    def __init__(self, encoder: DualEncoder, cfg: Config) -> None:
        super().__init__(encoder, cfg)
        # The paper starts at s = 10, b = −10, so that the many negatives cost nothing at first.
        encoder.logit_scale.data.fill_(math.log(10))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def objective(self, features: Features) -> StepResult:
        scale = self.encoder.logit_scale.exp()
        text_GD = gather(features.text_CBD[0])
        caption_CG = self._captions_of_all(features)
        caption_G = None if caption_CG is None else caption_CG[0]
        loss = sigmoid_loss(features.image_VBD[0], text_GD, scale, self.logit_bias, caption_G)
        return StepResult(loss, {"loss/align": loss.detach(), "logit_bias": self.logit_bias.detach()})

    def objective_parameters(self) -> list[nn.Parameter]:
        return [*self.logit_scales(), self.logit_bias]

"""SigLIP: one view, one caption, pairwise sigmoid loss (https://arxiv.org/abs/2303.15343)."""

from __future__ import annotations

import math

import torch
from torch import nn

from ito_ray.config.schema import Config
from ito_ray.losses.gather import gather
from ito_ray.losses.sigmoid import sigmoid_loss
from ito_ray.methods.base import Batch, Method, StepResult
from ito_ray.models.dual_encoder import DualEncoder


class SigLip(Method):
    """L = sigmoid loss with a learned bias; the configuration holds V = C = 1."""

    def __init__(self, encoder: DualEncoder, cfg: Config) -> None:
        super().__init__(encoder, cfg)
        # The paper starts at s = 10, b = −10, so that the many negatives cost nothing at first.
        encoder.logit_scale.data.fill_(math.log(10))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, batch: Batch) -> StepResult:
        image_BD = self.encoder.encode_image(batch.image_VBCHW[0])
        text_BD = self.encoder.encode_text(batch.ids_CBT[0], batch.length_CB[0])
        scale = self.encoder.logit_scale.exp()
        loss = sigmoid_loss(image_BD, gather(text_BD), scale, self.logit_bias)
        return StepResult(loss, {"loss/align": loss.detach(), "logit_bias": self.logit_bias.detach()})

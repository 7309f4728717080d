"""ITO: several views aligned with the captions, and a fusion that exists in training only.

L = L_align + λ·L_fusion                                       (https://arxiv.org/abs/2603.02767)
L_align = mean over (v,c) of w_vc · InfoNCE(I_v, T_c)
L_fusion = the K = V·C fused vectors of a sample find each other among all fused vectors

Shapes: B samples of this rank, G of all ranks, V views, C captions, K = V·C, N image tokens, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ito_ray.config.schema import Config
from ito_ray.losses.contrastive import info_nce
from ito_ray.losses.fusion import fusion_loss
from ito_ray.losses.gather import gather
from ito_ray.methods.base import Batch, Features, Method, StepResult
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.models.fusion import Fusion
from ito_ray.models.image_tower import ImageFeatures
from ito_ray.models.text_tower import TextFeatures

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "rising": lambda progress: progress,
    "falling": lambda progress: 1.0 - progress,
}
"""Share of λ by progress, 0 ≤ progress < 1. The paper's is constant; the others are ours."""


class Ito(Method):
    """ITO for any V ≥ 1, C ≥ 1; without λ there is no fusion module, and with V = C = 1 besides it is CLIP."""

    def __init__(self, encoder: DualEncoder, cfg: Config) -> None:
        super().__init__(encoder, cfg)
        self.fusion_weight = cfg.method.fusion_weight
        self.schedule = SCHEDULES[cfg.method.fusion_schedule]
        self.caption_drop = cfg.method.fusion.caption_drop
        views, captions = cfg.data.views.count, cfg.data.captions
        weights = torch.tensor(cfg.method.alignment_weights or [1.0] * (views * captions))
        self.alignment_weights_VC = weights.view(views, captions).tolist()
        self.fusion: Fusion | None = None
        self.fusion_logit_scale: nn.Parameter | None = None
        if self.fusion_weight > 0:
            self.fusion = Fusion(cfg.method.fusion, encoder.image, cfg.model.text.context, cfg.model.embed_dim)
            if cfg.method.fusion.temperature == "own":
                self.fusion_logit_scale = nn.Parameter(encoder.logit_scale.detach().clone())

    def forward(self, batch: Batch) -> Features:
        image, text = self._towers(batch)
        fused_KBD = self._fuse(self.fusion, image, text, batch) if self.fusion is not None else None
        return self._features(batch, image, text, fused_KBD)

    def objective(self, features: Features) -> StepResult:
        scale = self.encoder.logit_scale.exp()
        caption_CG = self._captions_of_all(features)
        align = self._align(features, scale, caption_CG)
        if features.fused_KBD is None:
            return StepResult(align, {"loss/align": align.detach()})
        caption_KG = None if caption_CG is None else caption_CG.repeat(len(features.image_VBD), 1)
        own = self.fusion_logit_scale
        fusion_scale = scale if own is None else own.exp()
        fusion = fusion_loss(features.fused_KBD, gather(features.fused_KBD, dim=1), fusion_scale, caption_KG)
        weight = self.fusion_weight * self.schedule(self.progress)
        metrics = {"loss/align": align.detach(), "loss/fusion": fusion.detach()}
        metrics |= {"fusion_weight": align.new_tensor(weight)}
        metrics |= {} if own is None else {"fusion_logit_scale": fusion_scale.detach()}
        return StepResult(align + weight * fusion, metrics)

    def logit_scales(self) -> list[nn.Parameter]:
        own = self.fusion_logit_scale
        return super().logit_scales() if own is None else [*super().logit_scales(), own]

    def recompute_activations(self) -> None:
        super().recompute_activations()
        if self.fusion is not None:
            self.fusion.recompute = True

    def _align(self, features: Features, scale: Tensor, caption_CG: Tensor | None) -> Tensor:
        image_VBD, text_CBD = features.image_VBD, features.text_CBD
        views, captions = len(image_VBD), len(text_CBD)
        all_GD = gather(torch.cat([image_VBD, text_CBD]), dim=1)  # one collective for both towers
        image_VGD, text_CGD = all_GD.split([views, captions])
        losses = []
        for v in range(views):
            for c in range(captions):
                caption_G = None if caption_CG is None else caption_CG[c]
                loss = info_nce(image_VBD[v], text_CBD[c], image_VGD[v], text_CGD[c], scale, caption_G, caption_CG)
                losses.append(self.alignment_weights_VC[v][c] * loss)
        return torch.stack(losses).mean()

    def _fuse(self, fusion: Fusion, image: ImageFeatures, text: TextFeatures, batch: Batch) -> Tensor:
        """Every view with every caption of its sample: (K,B,D), view by view."""
        views, captions = len(batch.image_VBCHW), len(batch.ids_CBT)
        image_VBND = fusion.image_sequence(self.encoder.image, image).unflatten(0, (views, -1))
        text_CBTD = fusion.text_sequence(self.encoder.text, text).unflatten(0, (captions, -1))
        valid_CBT = text.valid_BT.unflatten(0, (captions, -1))
        image_KBND = image_VBND.repeat_interleave(captions, dim=0)
        text_KBTD = text_CBTD.repeat(views, 1, 1, 1)
        valid_KBT = valid_CBT.repeat(views, 1, 1)
        if self.caption_drop and self.training:
            seen_KB1 = torch.rand(*valid_KBT.shape[:2], 1, device=valid_KBT.device) >= self.caption_drop
            valid_KBT = valid_KBT & seen_KB1
        fused_BD: Tensor = fusion(image_KBND.flatten(0, 1), text_KBTD.flatten(0, 1), valid_KBT.flatten(0, 1))
        return torch.unflatten(fused_BD, 0, (views * captions, -1))

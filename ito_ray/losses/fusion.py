"""ITO's fusion loss: the fused vectors of one sample find each other among all fused vectors.

Shapes: K = V·C fused vectors per sample, B samples of this rank, G = W·B of all ranks, D embedding width.
Source: ITO, https://arxiv.org/abs/2603.02767, the fusion loss L_fusion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ito_ray.losses.gather import positives
from ito_ray.losses.precision import full_precision


@full_precision
def fusion_loss(fused_KBD: Tensor, fused_KGD: Tensor, scale: Tensor) -> Tensor:
    """Mean over anchors (k, i) and their positives (j, i), j ≠ k, of −log softmax over all others.

    For K = 2 this is the paper's
    L = ½[ CE([s·S1 S2ᵀ, s·S1 S1ᵀ − ∞·diag], i) + CE([s·S2 S1ᵀ, s·S2 S2ᵀ − ∞·diag], i) ].

    Args:
        fused_KBD: L2-normalised fused vectors of this rank, K ≥ 2.
        fused_KGD: the same of all ranks.
        scale: s = exp(logit_scale), a scalar.

    Returns:
        Scalar, float32 (float64 of float64).
    """
    K, B, _ = fused_KBD.shape
    G = fused_KGD.shape[1]
    assert K >= 2, "the configuration refuses λ > 0 with one fused vector"
    logits_KBKG = scale * torch.einsum("kbd,jgd->kbjg", fused_KBD, fused_KGD)
    target_B = positives(B, fused_KBD.device)
    row_B = torch.arange(B, device=fused_KBD.device)
    same_KBK = logits_KBKG[:, row_B, :, target_B].permute(1, 0, 2)  # (k, i) against (j, i)

    self_KBKG = torch.zeros_like(logits_KBKG, dtype=torch.bool)
    for k in range(K):
        self_KBKG[k, row_B, k, target_B] = True
    others_KB = logits_KBKG.masked_fill(self_KBKG, -torch.inf).reshape(K, B, K * G).logsumexp(dim=2)

    log_probability_KBK = same_KBK - others_KB[..., None]
    positive_KK = ~torch.eye(K, dtype=torch.bool, device=fused_KBD.device)
    return -log_probability_KBK.permute(0, 2, 1)[positive_KK].mean()

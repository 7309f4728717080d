"""ITO's fusion loss: the fused vectors of one sample find each other among all fused vectors.

Shapes: K = V·C fused vectors per sample, B samples of this rank, G = W·B of all ranks, R rows of one block, J = K − 1
positives of an anchor, D embedding width.
Source: ITO, https://arxiv.org/abs/2603.02767, the fusion loss L_fusion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ito_ray.losses.gather import positives
from ito_ray.losses.precision import full_precision
from ito_ray.losses.rows import false_negatives, sum_over_rows


@full_precision
def fusion_loss(fused_KBD: Tensor, fused_KGD: Tensor, scale: Tensor, caption_KG: Tensor | None = None) -> Tensor:
    """Mean over anchors (k, i) and their positives (j, i), j ≠ k, of −log softmax over all others.

    For K = 2 this is the paper's
    L = ½[ CE([s·S1 S2ᵀ, s·S1 S1ᵀ − ∞·diag], i) + CE([s·S2 S1ᵀ, s·S2 S2ᵀ − ∞·diag], i) ].

    Args:
        fused_KBD: L2-normalised fused vectors of this rank, K ≥ 2.
        fused_KGD: the same of all ranks.
        scale: s = exp(logit_scale), a scalar.
        caption_KG: int64, which caption went into each; equal ones of other samples are no negatives.

    Returns:
        Scalar, float32 (float64 of float64).
    """
    K, B, _ = fused_KBD.shape
    G, device = fused_KGD.shape[1], fused_KBD.device
    assert K >= 2, "the configuration refuses λ > 0 with one fused vector"
    columns_CD = fused_KGD.flatten(0, 1)  # column k·G + i is vector k of sample i
    sample_C = torch.arange(G, device=device).repeat(K)
    itself_KB = torch.arange(K, device=device)[:, None] * G + positives(B, device)
    shift_J = torch.arange(1, K, device=device) * G
    siblings_KBJ = (itself_KB[..., None] + shift_J) % (K * G)  # the other vectors of the same sample

    def some_rows(rows_RD: Tensor, itself_R: Tensor, siblings_RJ: Tensor) -> Tensor:
        logits_RC = scale * rows_RD @ columns_CD.T
        same_RJ = logits_RC.gather(1, siblings_RJ)
        left_out_RC = torch.zeros_like(logits_RC, dtype=torch.bool).scatter_(1, itself_R[:, None], True)
        if caption_KG is not None:
            caption_C = caption_KG.flatten()
            left_out_RC |= false_negatives(caption_C[None, itself_R], sample_C[itself_R], caption_C[None], sample_C)
        others_R1 = logits_RC.masked_fill(left_out_RC, -torch.inf).logsumexp(dim=1, keepdim=True)
        return (others_R1 - same_RJ).sum()

    rows = (fused_KBD.flatten(0, 1), itself_KB.flatten(), siblings_KBJ.flatten(0, 1))
    return sum_over_rows(some_rows, K * G, *rows) / (K * B * (K - 1))

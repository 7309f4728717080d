"""Symmetric InfoNCE between image and text embeddings.

Shapes: B samples of this rank, G = W·B of all ranks, R rows of one block, D embedding width.
Source: CLIP, https://arxiv.org/abs/2103.00020, figure 3; in ITO it is L_align of one (view, caption).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ito_ray.losses.gather import positives
from ito_ray.losses.precision import full_precision
from ito_ray.losses.rows import false_negatives, sum_over_rows


@full_precision
def info_nce(
    image_BD: Tensor,
    text_BD: Tensor,
    image_GD: Tensor,
    text_GD: Tensor,
    scale: Tensor,
    caption_G: Tensor | None = None,
) -> Tensor:
    """½[ CE(s·I Tᵀ, diag) + CE(s·T Iᵀ, diag) ], the mean over this rank's rows.

    Args:
        image_BD, text_BD: L2-normalised embeddings of this rank.
        image_GD, text_GD: the same of all ranks, gathered; the very same tensors at one rank.
        scale: s = exp(logit_scale), a scalar.
        caption_G: int64, which caption each sample has; samples with equal ones are no negatives of each other.

    Returns:
        Scalar, float32 (float64 of float64).
    """
    image_to_text = _cross_entropy(image_BD, text_GD, scale, caption_G)
    text_to_image = _cross_entropy(text_BD, image_GD, scale, caption_G)
    return (image_to_text + text_to_image) / 2


def _cross_entropy(rows_BD: Tensor, columns_GD: Tensor, scale: Tensor, caption_G: Tensor | None) -> Tensor:
    sample_G = torch.arange(len(columns_GD), device=columns_GD.device)

    def some_rows(rows_RD: Tensor, target_R: Tensor) -> Tensor:
        logits_RG = scale * rows_RD @ columns_GD.T
        if caption_G is not None:
            same_RG = false_negatives(caption_G[target_R], target_R, caption_G, sample_G)
            logits_RG = logits_RG.masked_fill(same_RG, -torch.inf)
        return F.cross_entropy(logits_RG, target_R, reduction="sum")

    target_B = positives(len(rows_BD), rows_BD.device)
    return sum_over_rows(some_rows, len(columns_GD), rows_BD, target_B) / len(rows_BD)

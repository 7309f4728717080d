"""Symmetric InfoNCE between image and text embeddings.

Shapes: B samples of this rank, G = W·B of all ranks, C captions drawn of a sample, R rows of one block, D embedding
width.
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
    drawn_CG: Tensor | None = None,
) -> Tensor:
    """½[ CE(s·I Tᵀ, diag) + CE(s·T Iᵀ, diag) ], the mean over this rank's rows.

    Args:
        image_BD, text_BD: L2-normalised embeddings of this rank.
        image_GD, text_GD: the same of all ranks, gathered; the very same tensors at one rank.
        scale: s = exp(logit_scale), a scalar.
        caption_G: int64, which caption each text is; a text is no negative of another sample's image that has the
            very same caption.
        drawn_CG: int64, all captions drawn of each sample, `caption_G` among them; None = there is no other.

    Returns:
        Scalar, float32 (float64 of float64).
    """
    text_1G = None if caption_G is None else caption_G[None]
    image_CG = text_1G if drawn_CG is None else drawn_CG
    image_to_text = _cross_entropy(image_BD, text_GD, scale, image_CG, text_1G)
    text_to_image = _cross_entropy(text_BD, image_GD, scale, text_1G, image_CG)
    return (image_to_text + text_to_image) / 2


def _cross_entropy(
    rows_BD: Tensor, columns_GD: Tensor, scale: Tensor, of_rows_CG: Tensor | None, of_columns_CG: Tensor | None
) -> Tensor:
    sample_G = torch.arange(len(columns_GD), device=columns_GD.device)

    def some_rows(rows_RD: Tensor, target_R: Tensor) -> Tensor:
        logits_RG = scale * rows_RD @ columns_GD.T
        if of_rows_CG is not None and of_columns_CG is not None:
            same_RG = false_negatives(of_rows_CG[:, target_R], target_R, of_columns_CG, sample_G)
            logits_RG = logits_RG.masked_fill(same_RG, -torch.inf)
        return F.cross_entropy(logits_RG, target_R, reduction="sum")

    target_B = positives(len(rows_BD), rows_BD.device)
    return sum_over_rows(some_rows, len(columns_GD), rows_BD, target_B) / len(rows_BD)

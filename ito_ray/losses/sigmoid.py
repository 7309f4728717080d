"""The pairwise sigmoid loss.

Shapes: B samples of this rank, G = W·B of all ranks, R rows of one block, D embedding width.
Source: SigLIP, https://arxiv.org/abs/2303.15343, equation 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ito_ray.losses.gather import positives
from ito_ray.losses.precision import full_precision
from ito_ray.losses.rows import false_negatives, sum_over_rows


@full_precision
def sigmoid_loss(
    image_BD: Tensor, text_GD: Tensor, scale: Tensor, bias: Tensor, caption_G: Tensor | None = None
) -> Tensor:
    """−1/B Σ_i Σ_j log σ( z_ij (s·I_i·T_j + b) ), z = +1 on the diagonal and −1 elsewhere.

    The sum runs over this rank's images and everybody's texts, so the mean over ranks is the loss of the global batch.

    Args:
        image_BD: L2-normalised image embeddings of this rank.
        text_GD: L2-normalised text embeddings of all ranks.
        scale, bias: scalars s and b.
        caption_G: int64, which caption each sample has; pairs of different samples with equal ones are left out.

    Returns:
        Scalar, float32 (float64 of float64).
    """
    sample_G = torch.arange(len(text_GD), device=text_GD.device)

    def some_rows(image_RD: Tensor, target_R: Tensor) -> Tensor:
        logits_RG = scale * image_RD @ text_GD.T + bias
        sign_RG = torch.full_like(logits_RG, -1.0).scatter_(1, target_R[:, None], 1.0)
        terms_RG = F.logsigmoid(sign_RG * logits_RG)
        if caption_G is not None:
            same_RG = false_negatives(caption_G[None, target_R], target_R, caption_G[None], sample_G)
            terms_RG = terms_RG.masked_fill(same_RG, 0.0)
        return -terms_RG.sum()

    target_B = positives(len(image_BD), image_BD.device)
    return sum_over_rows(some_rows, len(text_GD), image_BD, target_B) / len(image_BD)

"""The pairwise sigmoid loss.

Shapes: B samples of this rank, G = W·B of all ranks, D embedding width.
Source: SigLIP, https://arxiv.org/abs/2303.15343, equation 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ito_ray.losses.gather import positives
from ito_ray.losses.precision import full_precision


@full_precision
def sigmoid_loss(image_BD: Tensor, text_GD: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """−1/B Σ_i Σ_j log σ( z_ij (s·I_i·T_j + b) ), z = +1 on the diagonal and −1 elsewhere.

    The sum runs over this rank's images and everybody's texts, so the mean over ranks is the loss of the global batch.

    Args:
        image_BD: L2-normalised image embeddings of this rank.
        text_GD: L2-normalised text embeddings of all ranks.
        scale, bias: scalars s and b.

    Returns:
        Scalar, float32 (float64 of float64).
    """
    logits_BG = scale * image_BD @ text_GD.T + bias
    sign_BG = -torch.ones_like(logits_BG)
    target_B = positives(len(image_BD), image_BD.device)
    sign_BG[torch.arange(len(image_BD), device=image_BD.device), target_B] = 1.0
    return -F.logsigmoid(sign_BG * logits_BG).sum() / len(image_BD)

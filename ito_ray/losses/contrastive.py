"""Symmetric InfoNCE between image and text embeddings.

Shapes: B samples of this rank, G = W·B of all ranks, D embedding width.
Source: CLIP, https://arxiv.org/abs/2103.00020, figure 3; in ITO it is L_align of one (view, caption).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ito_ray.losses.gather import positives
from ito_ray.losses.precision import full_precision


@full_precision
def info_nce(image_BD: Tensor, text_BD: Tensor, image_GD: Tensor, text_GD: Tensor, scale: Tensor) -> Tensor:
    """½[ CE(s·I Tᵀ, diag) + CE(s·T Iᵀ, diag) ], the mean over this rank's rows.

    Args:
        image_BD, text_BD: L2-normalised embeddings of this rank.
        image_GD, text_GD: the same of all ranks, gathered; the very same tensors at one rank.
        scale: s = exp(logit_scale), a scalar.

    Returns:
        Scalar, float32 (float64 of float64).
    """
    target_B = positives(len(image_BD), image_BD.device)
    image_to_text = F.cross_entropy(scale * image_BD @ text_GD.T, target_B)
    text_to_image = F.cross_entropy(scale * text_BD @ image_GD.T, target_B)
    return (image_to_text + text_to_image) / 2

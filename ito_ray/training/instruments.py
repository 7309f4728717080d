"""What a batch tells about the space while it is trained, at the steps that are logged anyway.

Shapes: n of the batch's samples, G samples of all ranks, V views, C captions, D shared width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ito_ray.evaluation.geometry import alignment, effective_rank, linear_separability, modality_gap, uniformity
from ito_ray.losses.gather import gather, rank, world_size
from ito_ray.methods.base import Features

MOST = 1024
"""Samples that are looked at: enough for two digits, and some milliseconds."""


@torch.no_grad()
def instruments(features: Features, scale: Tensor) -> dict[str, float]:
    """Geometry of the first view and first caption, on rank 0; every rank must call it, for it gathers.

    Args:
        features: of this rank.
        scale: s.

    Returns:
        `geometry/…` and `batch/duplicate_captions`, the share of samples with a caption that another sample has, too;
        empty on the other ranks.
    """
    share = MOST // world_size()
    both_2BD = torch.stack([features.image_VBD[0, :share], features.text_CBD[0, :share]])
    image_nD, text_nD = gather(both_2BD.contiguous(), dim=1)
    caption_CG = gather(features.caption_CB.contiguous(), dim=1)
    if rank() != 0:
        return {}
    return {
        "geometry/modality_gap": modality_gap(image_nD, text_nD),
        "geometry/linear_separability": linear_separability(image_nD, text_nD),
        "geometry/alignment": alignment(image_nD, text_nD),
        "geometry/uniformity_image": uniformity(image_nD),
        "geometry/uniformity_text": uniformity(text_nD),
        "geometry/effective_rank_image": effective_rank(image_nD),
        "geometry/effective_rank_text": effective_rank(text_nD),
        "geometry/logit_entropy": logit_entropy(image_nD, text_nD, scale),
        "batch/duplicate_captions": duplicate_share(caption_CG),
    }


def logit_entropy(image_nD: Tensor, text_nD: Tensor, scale: Tensor) -> float:
    """Mean entropy in nats of softmax(s·I Tᵀ) over the n texts: log n = no idea, 0 = sure, rightly or not."""
    probability_nn = (scale * image_nD @ text_nD.T).softmax(1)
    return float(torch.special.entr(probability_nn).sum(1).mean())


def duplicate_share(caption_CG: Tensor) -> float:
    """Share of samples with a caption that another one has, in whatever draw: each is a false negative of the other."""
    _, inverse_CG = torch.atleast_2d(caption_CG).unique(return_inverse=True)
    sample_CG = torch.arange(inverse_CG.shape[1], device=inverse_CG.device).expand_as(inverse_CG)
    pairs_2P = torch.stack([inverse_CG.flatten(), sample_CG.flatten()]).unique(dim=1)  # each caption once a sample
    samples_U = pairs_2P[0].bincount()
    return float((samples_U[inverse_CG] > 1).any(0).float().mean())

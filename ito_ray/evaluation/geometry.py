"""The shape of the shared space: what the paper's claims about modalities are measured with.

Shapes: N images or paired samples, M texts, D shared width. Embeddings are L2-normalised; results are Python floats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ito_ray.models.precision import at_least_float32

RIDGE = 1e-3
"""Weight of the ridge in `linear_separability`, as a share of the mean variance of a feature."""


def modality_gap(image_ND: Tensor, text_MD: Tensor) -> float:
    """Euclidean distance between the centroids of the two modalities (Liang et al., https://arxiv.org/abs/2203.02053).

    0 = the clouds share their centre; at most 2, for unit vectors.
    """
    return float((image_ND.double().mean(0) - text_MD.double().mean(0)).norm())


def linear_separability(image_ND: Tensor, text_MD: Tensor) -> float:
    """How often a linear rule tells an embedding's modality: fitted to the even rows, counted on the odd ones.

    0.5 = the modalities are mixed, 1 = a plane parts them. The rule is ridge regression on ±1, in closed form, so that
    it can be had during training; both modalities must have the same number of rows, at least 2.
    """
    rows_RD = at_least_float32(torch.stack([image_ND, text_MD], dim=1)).flatten(0, 1)  # image, text, image, text, …
    sign_R = torch.tensor([1.0, -1.0], device=rows_RD.device).repeat(len(image_ND)).to(rows_RD)
    even_R = (torch.arange(len(rows_RD), device=rows_RD.device) // 2) % 2 == 0
    mean_D = rows_RD[even_R].mean(0)
    known_RD, asked_RD = rows_RD[even_R] - mean_D, rows_RD[~even_R] - mean_D
    covariance_DD = known_RD.T @ known_RD / len(known_RD)
    ridge_DD = RIDGE * covariance_DD.diagonal().mean() * torch.eye(len(covariance_DD)).to(covariance_DD)
    rule_D = torch.linalg.solve(covariance_DD + ridge_DD, known_RD.T @ sign_R[even_R] / len(known_RD))
    return float(((asked_RD @ rule_D).sign() == sign_R[~even_R]).float().mean())


def alignment(image_ND: Tensor, text_ND: Tensor) -> float:
    """Mean squared distance of the pairs; 0 = every image lies on its text.

    Source: Wang and Isola, https://arxiv.org/abs/2005.10242, with α = 2.
    """
    return float((at_least_float32(image_ND) - at_least_float32(text_ND)).square().sum(1).mean())


def uniformity(embedding_ND: Tensor) -> float:
    """log of the mean of exp(−2‖x − y‖²) over distinct rows: 0 = all in one point, lower = spread out.

    Source: Wang and Isola, https://arxiv.org/abs/2005.10242, with t = 2. Needs two rows.
    """
    squared_P = torch.pdist(at_least_float32(embedding_ND)).square()
    return float((-2 * squared_P).exp().mean().log())


def effective_rank(embedding_ND: Tensor) -> float:
    """exp of the entropy of the centred cloud's normalised singular values: how many directions it really uses.

    1 = a line, D = round. Centred, because otherwise the modality gap is counted as a direction.
    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.
    """
    centred_ND = at_least_float32(embedding_ND) - at_least_float32(embedding_ND).mean(0)
    share_K = torch.linalg.svdvals(centred_ND)
    share_K = share_K / share_K.sum().clamp_min(torch.finfo(share_K.dtype).tiny)
    return float(torch.special.entr(share_K).sum().exp())

"""Every loss equals a naive reference written from its equation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ito_ray.losses.contrastive import info_nce
from ito_ray.losses.fusion import fusion_loss
from ito_ray.losses.gather import gather
from ito_ray.losses.sigmoid import sigmoid_loss

B, D = 6, 8


def _unit(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(values, dim=-1).requires_grad_()


def paper_fusion_loss(s1: Tensor, s2: Tensor, scale: Tensor) -> Tensor:
    """The paper's K = 2 equation, line by line."""
    i = torch.arange(len(s1))
    never = torch.eye(len(s1), dtype=s1.dtype) * 1e9
    first = F.cross_entropy(torch.cat([scale * s1 @ s2.T, scale * s1 @ s1.T - never], dim=1), i)
    second = F.cross_entropy(torch.cat([scale * s2 @ s1.T, scale * s2 @ s2.T - never], dim=1), i)
    return (first + second) / 2


def naive_fusion_loss(fused: Tensor, scale: Tensor) -> Tensor:
    """For any K, one anchor and one positive at a time."""
    K, pairs, _ = fused.shape
    terms = []
    for k in range(K):
        for i in range(pairs):
            others = [(j, m) for j in range(K) for m in range(pairs) if (j, m) != (k, i)]
            logits = torch.stack([scale * fused[k, i] @ fused[j, m] for j, m in others])
            logs = logits - torch.log(torch.exp(logits).sum())
            terms += [-logs[others.index((j, i))] for j in range(K) if j != k]
    return torch.stack(terms).mean()


def test_fusion_loss_of_two_is_the_papers() -> None:
    fused, scale = _unit(2, B, D), torch.tensor(14.0, dtype=torch.float64, requires_grad=True)
    ours = fusion_loss(fused, fused, scale)
    paper = paper_fusion_loss(fused[0], fused[1], scale)
    torch.testing.assert_close(ours, paper, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (fused, scale)), torch.autograd.grad(paper, (fused, scale)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("K", [2, 3, 4])
def test_fusion_loss_of_many_is_the_mean_over_positives(K: int) -> None:
    fused, scale = _unit(K, B, D), torch.tensor(5.0, dtype=torch.float64)
    torch.testing.assert_close(fusion_loss(fused, fused, scale), naive_fusion_loss(fused, scale))


def test_fusion_loss_of_random_vectors_is_the_log_of_the_candidates() -> None:
    fused = _unit(2, 4, D)
    nothing = fusion_loss(fused, fused, torch.tensor(0.0, dtype=torch.float64))
    assert nothing.item() == pytest.approx(math.log(2 * 4 - 1))


def test_info_nce_is_open_clips() -> None:
    from open_clip.loss import ClipLoss

    image, text, scale = _unit(B, D, seed=1), _unit(B, D, seed=2), torch.tensor(20.0, dtype=torch.float64)
    ours = info_nce(image, text, image, text, scale)
    torch.testing.assert_close(ours, ClipLoss()(image, text, scale), rtol=1e-9, atol=1e-10)


def test_sigmoid_loss_is_open_clips() -> None:
    from open_clip.loss import SigLipLoss

    image, text = _unit(B, D, seed=1), _unit(B, D, seed=2)
    scale, bias = torch.tensor(10.0, dtype=torch.float64), torch.tensor(-10.0, dtype=torch.float64)
    ours = sigmoid_loss(image, text, scale, bias)
    torch.testing.assert_close(ours, SigLipLoss()(image, text, scale, bias), rtol=1e-9, atol=1e-10)


def test_gather_at_one_rank_is_the_identity() -> None:
    features = torch.randn(3, 4)
    assert gather(features) is features

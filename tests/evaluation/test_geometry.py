"""Geometry against clouds whose answer is known, and against the definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ito_ray.evaluation.geometry import alignment, effective_rank, linear_separability, modality_gap, uniformity

N, D = 400, 16


def _cloud(seed: int, shift: float = 0.0) -> Tensor:
    values = torch.randn(N, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values[:, 0] += shift
    return F.normalize(values, dim=1)


def test_gap_of_two_points_is_their_distance() -> None:
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert modality_gap(east, north) == pytest.approx(math.sqrt(2))
    assert modality_gap(_cloud(0), _cloud(0)) == 0


def test_separability_is_half_for_mixed_and_one_for_parted_clouds() -> None:
    assert linear_separability(_cloud(0), _cloud(1)) == pytest.approx(0.5, abs=0.06)
    assert linear_separability(_cloud(0, shift=20), _cloud(1, shift=-20)) == 1


def test_separability_agrees_with_scikit_learn() -> None:
    from sklearn.linear_model import RidgeClassifier

    image, text = _cloud(0, shift=0.5), _cloud(1, shift=-0.5)
    known = torch.cat([image[::2], text[::2]]).numpy()
    asked = torch.cat([image[1::2], text[1::2]]).numpy()
    label = np.repeat([1, -1], N // 2)
    expected = RidgeClassifier(alpha=1e-6).fit(known, label).score(asked, label)
    assert linear_separability(image, text) == pytest.approx(expected, abs=0.005)
    assert 0.6 < expected < 0.95, "neither trivial nor hopeless"


def test_alignment_is_the_mean_squared_distance() -> None:
    image, text = _cloud(0), _cloud(1)
    naive = sum(float(((i - t) ** 2).sum()) for i, t in zip(image, text, strict=True)) / N
    assert alignment(image, text) == pytest.approx(naive)


def test_uniformity_is_the_definition() -> None:
    points = _cloud(0)[:20]
    terms = [math.exp(-2 * float(((x - y) ** 2).sum())) for i, x in enumerate(points) for y in points[:i]]
    assert uniformity(points) == pytest.approx(math.log(sum(terms) / len(terms)))
    assert uniformity(points[:1].expand(5, -1)) == 0


def test_effective_rank_counts_directions_around_the_centre() -> None:
    basis = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    away = torch.full((8, 1), 5.0, dtype=torch.float64)
    assert effective_rank(torch.cat([basis, away], dim=1)) == pytest.approx(4)

"""Instruments of a batch whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch

from ito_ray.evaluation.geometry import modality_gap
from ito_ray.methods.base import caption_identity
from ito_ray.training.instruments import duplicate_share, instruments, logit_entropy
from tests.tiny import random_batch, tiny_config, tiny_method


def test_entropy_is_log_n_without_a_scale_and_zero_with_a_large_one() -> None:
    both = torch.eye(8)
    assert logit_entropy(both, both, torch.tensor(0.0)) == pytest.approx(math.log(8))
    assert logit_entropy(both, both, torch.tensor(100.0)) == pytest.approx(0, abs=1e-6)


def test_duplicates_are_counted_with_their_twins() -> None:
    assert duplicate_share(torch.tensor([4, 9, 4, 4, 7])) == pytest.approx(0.6)
    two_draws = torch.tensor([[4, 9, 4, 4, 7], [1, 7, 2, 3, 5]])  # the 7 of sample 1 is sample 4's first
    assert duplicate_share(two_draws) == 1.0
    same_twice = torch.tensor([[4, 9], [4, 8]])
    assert duplicate_share(same_twice) == 0.0, "a caption that one sample drew twice is nobody else's"
    assert duplicate_share(torch.tensor([1, 2, 3])) == 0


def test_identity_of_a_caption_is_its_valid_tokens_in_order() -> None:
    ids = torch.tensor([[[5, 6, 0], [5, 6, 7], [6, 5, 7], [5, 6, 9]]])
    number = caption_identity(ids, torch.tensor([[2, 2, 2, 3]]))[0].tolist()
    assert number[0] == number[1], "padding does not count"
    assert len(set(number)) == 3, "order and length do"
    padded = torch.nn.functional.pad(ids, (0, 4), value=3)
    assert caption_identity(padded, torch.tensor([[2, 2, 2, 3]]))[0].tolist() == number


def test_instruments_look_at_the_first_view_and_caption() -> None:
    method = tiny_method(tiny_config())
    features = method(random_batch(8)).detached()
    found = instruments(features, torch.tensor(10.0))
    assert found["geometry/modality_gap"] == pytest.approx(modality_gap(features.image_VBD[0], features.text_CBD[0]))
    assert 0 < found["geometry/logit_entropy"] <= math.log(8)
    assert all(math.isfinite(value) for value in found.values())

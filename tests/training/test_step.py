"""Micro-batches with cached features give the undivided batch's loss and gradients, and replay their random numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ito_ray.config.schema import Config
from ito_ray.methods import Method
from ito_ray.training.step import backward
from tests.tiny import METHODS, pieces, random_batch, tiny_config, tiny_method

PAIRS = 8


def _gradients(cfg: Config, micro_batch: int) -> dict[str, Tensor]:
    method = tiny_method(cfg)
    batch = random_batch(PAIRS, cfg.data.views.count, cfg.data.captions)
    features, result = backward(method, method, pieces(batch, micro_batch), torch.manual_seed)
    found = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    embedded = {f"feature {i}": tensor for i, tensor in enumerate(features.embedded())}
    return {"loss": result.loss.detach(), **result.metrics, **embedded, **found}


@pytest.mark.parametrize("micro_batch", [1, 4])
@pytest.mark.parametrize("name", METHODS)
def test_cached_equals_undivided(name: str, micro_batch: int) -> None:
    cfg = tiny_config(**METHODS[name])
    whole, cached = _gradients(cfg, PAIRS), _gradients(cfg, micro_batch)
    assert set(whole) == set(cached)
    for what, value in whole.items():
        torch.testing.assert_close(cached[what], value, rtol=1e-9, atol=1e-10, msg=f"{what} differs")


class _Recorder:
    """What a module returned, call by call."""

    def __init__(self, module: nn.Module) -> None:
        self.seen: list[Tensor] = []
        module.register_forward_hook(lambda _, __, features: self.seen.append(features.image_VBD.detach().clone()))


def _run(changes: dict[str, Any]) -> tuple[Method, list[Tensor]]:
    method = tiny_method(tiny_config(**changes)).train()
    recorder = _Recorder(method)
    backward(method, method, pieces(random_batch(PAIRS), 4), torch.manual_seed)
    return method, recorder.seen


def test_both_passes_drop_the_same_units() -> None:
    vit = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "proj_drop_rate": 0.3}
    _, seen = _run({"model": {"image": {"kwargs": vit}}})
    first, second = seen[:2], seen[2:]
    assert len(second) == 2
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    method = tiny_method(tiny_config(model={"image": {"kwargs": vit}})).eval()
    assert not torch.equal(first[0], method(random_batch(PAIRS)).image_VBD[:, :4]), "dropout is on"


def test_running_statistics_advance_once_a_micro_batch() -> None:
    conv = {"name": "resnet10t", "size": 32, "kwargs": {"channels": [8, 8, 16, 16], "stem_width": 8}}
    method, _ = _run({"model": {"image": conv}})
    counts = [value.item() for name, value in method.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts and set(counts) == {2}

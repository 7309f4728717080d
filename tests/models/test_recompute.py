"""Recomputing the activation changes no bit, repeats no matrix product and keeps a hidden vector less."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ito_ray.models.recompute import LeanMlp, activate_and_project, make_lean

THIN: dict[str, Any] = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}


def _run(net: nn.Module, image_BCHW: Tensor, bf16: bool) -> tuple[dict[str, Tensor], int]:
    with FlopCounterMode(display=False) as counter:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = net(image_BCHW)
        output.float().square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
    return {"output": output.detach(), **gradients}, int(counter.get_total_flops())


@pytest.mark.parametrize("bf16", [False, True])
def test_a_lean_net_is_the_same_net(bf16: bool) -> None:
    torch.manual_seed(0)
    plain = timm.create_model("vit_base_patch16_clip_224", **THIN).train()
    lean = copy.deepcopy(plain)
    make_lean(lean)
    assert sum(isinstance(module, LeanMlp) for module in lean.modules()) == 2
    assert list(lean.state_dict()) == list(plain.state_dict())
    image_BCHW = torch.randn(3, 3, 32, 32)
    expected, flops = _run(plain, image_BCHW, bf16)
    found, lean_flops = _run(lean, image_BCHW, bf16)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert lean_flops == flops > 0


def test_dropout_and_norm_inside_an_mlp_are_left_alone() -> None:
    net = timm.create_model("vit_base_patch16_clip_224", proj_drop_rate=0.1, **THIN)
    make_lean(net)
    assert not any(isinstance(module, LeanMlp) for module in net.modules())


def test_only_the_hidden_vector_is_kept() -> None:
    linear, hidden = nn.Linear(8, 4), torch.randn(5, 8, requires_grad=True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        linear(nn.functional.gelu(hidden))
        plain = len(kept)
        activate_and_project(nn.GELU(), linear, hidden)
    assert plain >= 2
    others = [tensor for tensor in kept[plain:] if tensor.data_ptr() != hidden.data_ptr()]
    assert sum(tensor.numel() for tensor in others) == 0, "the activation's output was kept"

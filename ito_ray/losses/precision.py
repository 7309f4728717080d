"""Losses are computed in float32 even where the towers run in bfloat16: logits of s = 100 would lose a whole digit."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from ito_ray.models.precision import at_least_float32


def full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run a function of tensors outside autocast, with every floating-point argument in at least float32."""

    @wraps(loss)
    def run(*tensors: Tensor | None) -> Tensor:
        assert tensors[0] is not None
        with torch.autocast(tensors[0].device.type, enabled=False):
            return loss(*(_widened(tensor) for tensor in tensors))

    return run


def _widened(tensor: Tensor | None) -> Tensor | None:
    return at_least_float32(tensor) if tensor is not None and tensor.is_floating_point() else tensor

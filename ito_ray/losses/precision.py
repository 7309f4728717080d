"""Losses are computed in float32 even where the towers run in bfloat16: logits of s = 100 would lose a whole digit."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from ito_ray.models.precision import at_least_float32


def full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run a function of tensors outside autocast, with every argument in at least float32."""

    @wraps(loss)
    def run(*tensors: Tensor) -> Tensor:
        with torch.autocast(tensors[0].device.type, enabled=False):
            return loss(*(at_least_float32(tensor) for tensor in tensors))

    return run

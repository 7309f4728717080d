"""One gather for every loss: the features of all ranks, with exact gradients.

Each rank computes the loss of its own rows against everybody's columns. The backward pass of `gather` adds up what
all ranks want of this rank's features; DDP then averages over ranks, so the gradient of every parameter is that of
the loss over the whole global batch (proven in tests/losses/test_two_ranks.py).

Shapes: B samples of this rank, W ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """W; 1 where no process group is up."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This rank's number; 0 where no process group is up."""
    return dist.get_rank() if dist.is_initialized() else 0


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        shards = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(shards, local.contiguous())
        return torch.stack(shards)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        gradient = grad_outputs[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def gather(features: Tensor, *, dim: int = 0) -> Tensor:
    """Concatenate every rank's `features` along `dim`, rank 0 first; the identity at one rank.

    Several features travel in one collective when the caller stacks them: `gather(torch.stack([a, b]), dim=1)`.

    Args:
        features: any shape, equal on all ranks.
        dim: the batch dimension.

    Returns:
        The same shape with `dim` W times as long.
    """
    if world_size() == 1:
        return features
    shards: Tensor = _GatherWithGradient.apply(features)
    return torch.cat(shards.unbind(0), dim=dim)


def positives(count: int, device: torch.device) -> Tensor:
    """Where this rank's `count` samples stand among the gathered ones: int64 (count,)."""
    return torch.arange(count, device=device) + rank() * count

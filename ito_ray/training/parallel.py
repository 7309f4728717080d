"""How ranks share the work: whole copies (DDP, wrapped by the caller) or shards of everything (FSDP2).

Under FSDP2 every rank holds 1/W of weights, gradients and moments, and a block's weights are gathered when it runs.
The objective's own parameters (logit scale, bias) are used outside the towers, so they stay whole on every rank.

Source: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ito_ray.losses.gather import world_size
from ito_ray.methods.base import Method
from ito_ray.models.blocks import repeated_blocks

T = TypeVar("T")


def shard(method: Method, device: torch.device) -> None:
    """Shard a method over all ranks, in place; to be done before the optimiser is built.

    Args:
        method: on every rank the same.
        device: decides the kind of mesh.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    own = set(method.objective_parameters())
    for net in (method.encoder.image, method.encoder.text, getattr(method, "fusion", None)):
        for block in repeated_blocks(net)[1] if net is not None else []:
            fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh, ignored_params=own)


def average_own_gradients(model: nn.Module, own: list[nn.Parameter]) -> None:
    """What FSDP leaves alone is averaged here; DDP has done it already."""
    if not isinstance(model, FSDPModule):
        return
    for parameter in own:
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= world_size()


def of_all_ranks(value: T) -> list[T]:
    """Every rank's value, on every rank: a collective."""
    if world_size() == 1:
        return [value]
    gathered = [value] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows on every rank: a collective for a sharded tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(target: Tensor, values: Tensor) -> Tensor:
    """`values`, which every rank has whole, sharded as `target` is; no communication."""
    if not isinstance(target, DTensor):
        return values
    values = values.to(target.device)
    return distribute_tensor(values, target.device_mesh, target.placements, src_data_rank=None)

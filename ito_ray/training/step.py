"""Gradients of one step: the batch as a whole, or in micro-batches with the features cached (GradCache).

A contrastive loss needs the features of the whole batch, but the towers need not hold all of its activations at once:

1. embed every micro-batch without keeping activations;
2. the objective of all features gives the gradient with respect to each of them;
3. embed every micro-batch again, now with activations, and push its features' gradient through.

The gradients are those of the undivided batch (tests/training/test_step.py), for one more forward pass. Both passes
draw the same random numbers: torch is seeded by (seed, step, rank, micro-batch) before each.

Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup,
https://arxiv.org/abs/2101.06983; here for SigLIP and for the whole ITO objective, fusion included, as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ito_ray.methods.base import Batch, Features, Method, StepResult, concatenate
from ito_ray.training.parallel import average_own_gradients

MakeBatch = Callable[[], Batch]
"""Puts one micro-batch on the device; called once a pass, so that only one is there at a time."""


def backward(
    model: nn.Module,
    method: Method,
    micro_batches: Sequence[MakeBatch],
    seed: Callable[[int], object],
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[Features, StepResult]:
    """Add the gradients of one step to `method`'s parameters.

    Args:
        model: `method`, sharded or not, or DDP around it.
        micro_batches: this rank's pairs, in order.
        seed: makes torch's random numbers those of micro-batch i.
        precision: what the towers run under, e.g. autocast.

    Returns:
        The features of the undivided batch, detached; its loss and the loss's terms.
    """

    def embed(module: nn.Module, i: int) -> Features:
        seed(i)
        with precision():
            features: Features = module(micro_batches[i]())
        return features

    own = [parameter for parameter in method.objective_parameters() if parameter.requires_grad]
    if len(micro_batches) == 1:
        features = embed(model, 0)
        result = method.objective(features)
        result.loss.backward()
        average_own_gradients(model, own)
        return features.detached(), result

    with torch.no_grad(), _buffers_kept(method):
        pieces = [embed(method, i) for i in range(len(micro_batches))]
    whole = concatenate(pieces)
    leaves = [tensor.requires_grad_() for tensor in whole.embedded()]
    result = method.objective(whole)
    gradients = torch.autograd.grad(result.loss, [*leaves, *own])
    of_features, of_own = gradients[: len(leaves)], gradients[len(leaves) :]

    start = 0
    for i, piece in enumerate(pieces):
        stop, last = start + piece.caption_CB.shape[1], i == len(pieces) - 1
        with _reduced_over_ranks(model, last):
            features = embed(model, i)
            roots, wanted = features.embedded(), [gradient[:, start:stop] for gradient in of_features]
            if last:  # the objective's own parameters join the one backward pass that DDP reduces
                roots, wanted = [*roots, *own], [*wanted, *of_own]
            torch.autograd.backward(roots, wanted)
        start = stop
    average_own_gradients(model, own)
    return whole.detached(), result


def _reduced_over_ranks(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Under DDP gradients travel once a step, with the last micro-batch; FSDP keeps only its shard of each."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Running statistics advance with the second pass only."""
    before = [buffer.clone() for buffer in module.buffers()]
    yield
    for buffer, value in zip(module.buffers(), before, strict=True):
        buffer.copy_(value)

"""One rank with 2·B pairs equals two gloo ranks with B each: the loss and the gradient of every parameter."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from ito_ray.config.schema import Config
from ito_ray.methods import Batch
from ito_ray.training.step import backward
from tests.tiny import METHODS, pieces, random_batch, tiny_config, tiny_method

PAIRS = 8
MICRO_BATCHES = (PAIRS // 2, 2)
"""Of one rank: all its pairs at once, and in two pieces."""


def _gradients(cfg: Config, batch: Batch, *, distributed: bool, micro_batch: int = PAIRS) -> dict[str, Tensor]:
    method = tiny_method(cfg)
    model = DistributedDataParallel(method) if distributed else method
    _, result = backward(model, method, pieces(batch, micro_batch), torch.manual_seed)
    loss = result.loss
    if distributed:
        dist.all_reduce(loss := loss.detach().clone())
        loss = loss / dist.get_world_size()
    found = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {"loss": loss.detach().reshape(1)} | found


def _share(batch: Batch, rank: int) -> Batch:
    half = PAIRS // 2
    mine = slice(rank * half, (rank + 1) * half)
    length_CB = batch.length_CB[:, mine]
    ids_CBT = batch.ids_CBT[:, mine, : int(length_CB.max())]  # each rank pads to its own longest caption
    return dataclasses.replace(batch, image_VBCHW=batch.image_VBCHW[:, mine], ids_CBT=ids_CBT, length_CB=length_CB)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, changes in METHODS.items():
        cfg = tiny_config(**changes)
        batch = _share(random_batch(PAIRS, cfg.data.views.count, cfg.data.captions), rank)
        for micro_batch in MICRO_BATCHES:
            gradients = _gradients(cfg, batch, distributed=True, micro_batch=micro_batch)
            if rank == 0:
                save_file(gradients, f"{folder}/{name}-{micro_batch}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_ranks")
    spawn(_rank, args=(str(folder),), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", MICRO_BATCHES)
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_are_one(name: str, micro_batch: int, two_ranks: Path) -> None:
    cfg = tiny_config(**METHODS[name])
    alone = _gradients(cfg, random_batch(PAIRS, cfg.data.views.count, cfg.data.captions), distributed=False)
    together = load_file(two_ranks / f"{name}-{micro_batch}.safetensors")
    assert set(alone) == set(together)
    for parameter, gradient in alone.items():
        torch.testing.assert_close(
            together[parameter].reshape(gradient.shape),
            gradient,
            rtol=1e-9,
            atol=1e-10,
            msg=f"{parameter} differs",
        )

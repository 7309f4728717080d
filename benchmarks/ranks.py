"""Steps of one and of two gloo ranks on this machine, and its network: what benchmarks.scaling is checked against.

Two ranks of one thread each share nothing but memory bandwidth, so "alone" is taken with both running side by side
without talking. The network is measured with messages of sizes that a step does not have.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.network import FLOAT32, Network, Work, step
from benchmarks.variants import BACKBONES, Setting, make_batch
from ito_ray.config.schema import Config, OptimConfig
from ito_ray.data.tokens import clip_tokenizer
from ito_ray.methods import build_method
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.training.optimizer import build_optimizer
from ito_ray.training.step import backward

MESSAGE = 32 * 2**20
"""Bytes of the message whose all-reduce gives the network's rate."""
RANKS = 2


@dataclass(frozen=True)
class Measured:
    """Medians, in seconds."""

    alone: float
    """A step of b pairs on one rank, with another such rank at work beside it."""
    together: float
    """A step of 2·b pairs on two ranks."""
    message: float
    """All-reduce of `MESSAGE` bytes over two ranks."""
    latency: float
    """All-reduce of one number."""
    parameters: int

    def network(self) -> Network:
        """Two nodes of one rank: an all-reduce moves its size once in and once out of each."""
        return Network(8 * MESSAGE / (self.message - self.latency) / 1e9, 1.0, self.latency / 2 * 1e6, gpus_per_node=1)

    def predicted(self, pairs: int, width: int) -> float:
        """What the model makes of `alone` for two ranks. Nothing is hidden: gloo needs the cores that compute."""
        work = Work(self.alone / pairs, self.parameters, width, overlap=0.0, float32_tflops=float("inf"))
        return step(work, self.network(), RANKS, RANKS * pairs).seconds()


def measure(pairs: int, repeats: int) -> Measured:
    """Run the ranks and take medians.

    Args:
        pairs: b, of one rank.
        repeats: steps that count.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, args=(folder, pairs, repeats), nprocs=RANKS)
        found = json.loads(Path(folder, "rank-0.json").read_text())
    return Measured(**found)


def _rank(rank: int, folder: str, pairs: int, repeats: int) -> None:
    torch.set_num_threads(1)
    model_cfg = BACKBONES["vit_small"]
    torch.manual_seed(0)
    method = build_method(Config(model=model_cfg), DualEncoder(model_cfg, clip_tokenizer(model_cfg.text.context)))
    optimizer = build_optimizer(method, OptimConfig())
    batch, _ = make_batch(Setting("vit_small", pairs, bf16=False, device="cpu", threads=1, seed=rank), model_cfg)

    def one_step(model: nn.Module) -> None:
        optimizer.zero_grad()
        backward(model, method, [lambda: batch], torch.manual_seed)
        optimizer.step()

    alone = _median(lambda: one_step(method), repeats)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    model = DistributedDataParallel(method)
    measured = Measured(
        alone,
        together=_median(lambda: one_step(model), repeats),
        message=_median(lambda: dist.all_reduce(torch.zeros(MESSAGE // FLOAT32)), repeats),
        latency=_median(lambda: dist.all_reduce(torch.zeros(1)), 20 * repeats),
        parameters=sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad),
    )
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(asdict(measured)))
    dist.destroy_process_group()


def _median(run: Callable[[], object], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def summary(measured: Measured, pairs: int) -> dict[str, float]:
    """The JSON fields of the check."""
    predicted = measured.predicted(pairs, BACKBONES["vit_small"].embed_dim)
    return {
        **asdict(measured),
        "pairs": pairs,
        "gbit": measured.network().node_gbit,
        "predicted": predicted,
        "predicted_to_measured": predicted / measured.together,
    }

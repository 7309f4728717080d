"""The training loop: reads from top to bottom. Ray, MLflow and the data behind `batches` are the caller's affair.

Shapes: B samples of this rank, V views, C captions, T text tokens, H×W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ito_ray.config.schema import Config
from ito_ray.losses.gather import rank, world_size
from ito_ray.methods.base import Batch
from ito_ray.models.image_tower import pixels_to_input
from ito_ray.training.finite import FiniteGuard
from ito_ray.training.halt import Halt
from ito_ray.training.instruments import instruments
from ito_ray.training.learner import Learner
from ito_ray.training.optimizer import learning_rate, set_learning_rate
from ito_ray.training.parallel import whole
from ito_ray.training.step import backward

Arrays = Mapping[str, np.ndarray]
"""A host batch as the stream gives it: views uint8 (B,V,H,W,3), ids int32 (B,C,T), lengths int32 (B,C)."""


@dataclass
class Clock:
    """Seconds since the last report: in all, waiting for data, and of this process on all its CPUs."""

    started: float = field(default_factory=time.perf_counter)
    cpu_started: float = field(default_factory=time.process_time)
    waited: float = 0.0
    samples: int = 0

    def rates(self) -> dict[str, float]:
        """Samples a second, CPU-ms of all ranks for one, the share of time waiting for data; starts anew."""
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        cpu = world_size() * (time.process_time() - self.cpu_started)  # the other ranks do the same work
        rates = {
            "samples_per_second": self.samples / elapsed,
            "data_wait_share": self.waited / elapsed,
            "cpu_ms_per_sample": 1000 * cpu / max(self.samples, 1),
        }
        self.started, self.cpu_started, self.waited, self.samples = time.perf_counter(), time.process_time(), 0.0, 0
        return rates


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of its caller, all by step (steps taken so far)."""

    report: Callable[[int, dict[str, float]], None]
    """Every `train.log_every` steps, rank 0: metrics averaged over ranks."""
    evaluate: Callable[[int], bool]
    """Every `eval.every` steps, all ranks; False ends training there."""
    checkpoint: Callable[[int], None]
    """Every `train.checkpoint_every` steps, when told to, and where training ends; all ranks, once a step."""
    halt: Callable[[int], Halt] = lambda _: ""
    """Every step, all ranks, which are told the same: whether a checkpoint is wanted out of turn."""
    at_end: bool = False
    """Evaluate after the last step too."""
    with_checkpoint: bool = False
    """Leave a checkpoint at every evaluation."""
    checkpoint_first: bool = False
    """Where both are due, leave the checkpoint before evaluating: who hears of the evaluation finds the weights."""


def use_bf16(cfg: Config, device: torch.device) -> bool:
    """Whether to run the towers in bfloat16: as told, or where the processor multiplies it natively."""
    if cfg.train.precision != "auto":
        return cfg.train.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def to_batch(arrays: Arrays, device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]) -> Batch:
    """Host arrays → device batch: pixels stay uint8 on the way, captions lose their padding beyond the longest."""
    longest = int(arrays["lengths"].max())
    pixels_BVHWC = torch.from_numpy(np.ascontiguousarray(arrays["views"])).to(device, non_blocking=True)
    image_VBCHW = pixels_to_input(
        pixels_BVHWC.transpose(0, 1), torch.tensor(mean, device=device), torch.tensor(std, device=device)
    )
    ids_BCT = torch.from_numpy(arrays["ids"][:, :, :longest].astype(np.int64))
    length_BC = torch.from_numpy(arrays["lengths"].astype(np.int64))
    return Batch(image_VBCHW, ids_BCT.transpose(0, 1).to(device), length_BC.transpose(0, 1).contiguous().to(device))


def train(
    cfg: Config,
    learner: Learner,
    batches: Iterator[Arrays],
    device: torch.device,
    hooks: Hooks,
    first_step: int = 0,
) -> None:
    """Take steps `first_step` … `cfg.train.steps` − 1.

    Args:
        learner: advanced in place.
        batches: endless; equal batches on every rank.
        hooks: reporting, evaluation and checkpoints.

    Raises:
        ConfigError: the loss, one of its terms or the gradient is not finite.
        StopIteration: never in a correct stream; it is endless.
    """
    precision = partial(torch.autocast, device.type, torch.bfloat16, enabled=use_bf16(cfg, device))
    guard, clock = FiniteGuard(cfg), Clock()
    method, model, optimizer = learner.method, learner.model, learner.optimizer
    model.train()
    for step in range(first_step, cfg.train.steps):
        waiting = time.perf_counter()
        arrays = next(batches)
        clock.waited += time.perf_counter() - waiting

        set_learning_rate(optimizer, rate := learning_rate(step, cfg.train.steps, cfg.optim))
        method.progress = step / cfg.train.steps
        optimizer.zero_grad(set_to_none=True)
        micro_batches = [
            partial(to_batch, part, device, method.encoder.image.mean, method.encoder.image.std)
            for part in split(arrays, cfg.train.micro_batch_of(len(arrays["lengths"])))
        ]
        features, result = backward(model, method, micro_batches, partial(_seed, cfg.train.seed, step), precision)
        grad_norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if cfg.optim.grad_clip:
            nn.utils.clip_grads_with_norm_(model.parameters(), cfg.optim.grad_clip, grad_norm)
        optimizer.step()
        method.clamp_logit_scales()
        done, last = step + 1, step + 1 == cfg.train.steps
        learner.averaged(done)

        clock.samples += cfg.train.global_batch
        terms = {"loss/total": result.loss.detach(), **result.metrics, "grad_norm": whole(grad_norm)}
        guard.watch(step, terms)
        log_now = done % cfg.train.log_every == 0 or last or done == 1
        evaluate_now = evaluation_due(cfg, done, at_end=hooks.at_end)
        halt = hooks.halt(done)
        due = done % cfg.train.checkpoint_every == 0 or last or (evaluate_now and hooks.with_checkpoint)
        checkpoint_now = due or halt != ""
        if log_now or checkpoint_now or evaluate_now:
            guard.check()
        if log_now:
            scale = method.encoder.logit_scale.exp()
            metrics = _mean_over_ranks(terms) | instruments(features, scale)
            if rank() == 0:
                settings = {"logit_scale": scale.item(), "lr": rate, "workers": float(world_size())}
                hooks.report(done, metrics | settings | clock.rates())
        saved = checkpoint_now and hooks.checkpoint_first
        if saved:
            hooks.checkpoint(done)
        goes_on = (hooks.evaluate(done) if evaluate_now else True) and halt != "stop"
        # Last, since a checkpoint keeps what was reported up to it: a resumed run will not report it again.
        if (checkpoint_now or not goes_on) and not saved:
            hooks.checkpoint(done)
        if not goes_on:
            return
        if checkpoint_now or evaluate_now:
            clock.rates()  # neither checkpoints nor evaluations count as training time


def evaluation_due(cfg: Config, done: int, *, at_end: bool) -> bool:
    """Whether the weights are evaluated after `done` steps; after the last one if `at_end`."""
    if done == cfg.train.steps:
        return at_end
    return bool(cfg.eval.every) and done % cfg.eval.every == 0


def split(arrays: Arrays, micro_batch: int) -> list[Arrays]:
    """The host batch in pieces of `micro_batch` samples; whole for 0."""
    count = len(arrays["lengths"])
    size = micro_batch or count
    return [{name: array[start : start + size] for name, array in arrays.items()} for start in range(0, count, size)]


def _seed(seed: int, step: int, micro_batch: int) -> None:
    """Dropout of a micro-batch is drawn from what it is, so both of its passes and a resumed run draw the same."""
    state = np.random.SeedSequence((seed, step, rank(), micro_batch)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def _mean_over_ranks(terms: dict[str, Tensor]) -> dict[str, float]:
    """Every rank's share, averaged in one collective."""
    values = torch.stack([value.float() for value in terms.values()])
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return dict(zip(terms, values.tolist(), strict=True))

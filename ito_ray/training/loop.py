"""The training loop: reads from top to bottom. Ray, MLflow and the data behind `batches` are the caller's affair.

Shapes: B samples of this rank, V views, C captions, T text tokens, H×W pixels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from ito_ray.losses.gather import rank, world_size
from ito_ray.methods.base import Batch, Method, StepResult
from ito_ray.models.image_tower import pixels_to_input
from ito_ray.training.optimizer import learning_rate, set_learning_rate

Arrays = Mapping[str, np.ndarray]
"""A host batch as the stream gives it: views uint8 (B,V,H,W,3), ids int32 (B,C,T), lengths int32 (B,C)."""


@dataclass
class Clock:
    """Seconds since the last report, in all and waiting for data."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    samples: int = 0

    def rates(self) -> dict[str, float]:
        """Samples per second and the share of time waiting for data since the last call; starts anew."""
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        rates = {"samples_per_second": self.samples / elapsed, "data_wait_share": self.waited / elapsed}
        self.started, self.waited, self.samples = time.perf_counter(), 0.0, 0
        return rates


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of its caller, all by step (steps taken so far)."""

    report: Callable[[int, dict[str, float]], None]
    """Every `train.log_every` steps, rank 0: metrics averaged over ranks."""
    evaluate: Callable[[int], None]
    """Every `eval.every` steps, rank 0; the others wait in the next collective."""
    checkpoint: Callable[[int], None]
    """Every `train.checkpoint_every` steps and at the end, all ranks."""


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
    model: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Arrays],
    device: torch.device,
    hooks: Hooks,
    first_step: int = 0,
) -> None:
    """Take steps `first_step` … `cfg.train.steps` − 1.

    Args:
        model: `method`, or DDP around it.
        batches: endless; equal batches on every rank.
        hooks: reporting, evaluation and checkpoints.

    Raises:
        ConfigError: the loss is not finite.
        StopIteration: never in a correct stream; it is endless.
    """
    bf16 = use_bf16(cfg, device)
    clock = Clock()
    model.train()
    for step in range(first_step, cfg.train.steps):
        waiting = time.perf_counter()
        arrays = next(batches)
        clock.waited += time.perf_counter() - waiting
        batch = to_batch(arrays, device, cfg.model.image.mean, cfg.model.image.std)

        torch.manual_seed(_step_seed(cfg.train.seed, step))
        set_learning_rate(optimizer, rate := learning_rate(step, cfg.train.steps, cfg.optim))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            result: StepResult = model(batch)
        optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        if cfg.optim.grad_clip:
            nn.utils.clip_grad_norm_(model.parameters(), cfg.optim.grad_clip)
        optimizer.step()
        method.encoder.clamp_logit_scale()

        done = step + 1
        clock.samples += cfg.train.global_batch
        last = done == cfg.train.steps
        if done % cfg.train.log_every == 0 or last or done == 1:
            metrics = _mean_over_ranks(result)
            _require_finite(metrics["loss/total"], step, cfg)
            if rank() == 0:
                scale = method.encoder.logit_scale.exp().item()
                hooks.report(done, metrics | {"logit_scale": scale, "lr": rate} | clock.rates())
        if done % cfg.train.checkpoint_every == 0 or last:
            hooks.checkpoint(done)
        if rank() == 0 and cfg.eval.every and (done % cfg.eval.every == 0) and not last:
            hooks.evaluate(done)
        if done % cfg.train.checkpoint_every == 0 or (cfg.eval.every and done % cfg.eval.every == 0):
            clock.rates()  # neither checkpoints nor evaluations count as training time


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank())).generate_state(1, np.uint64)[0])


def _mean_over_ranks(result: StepResult) -> dict[str, float]:
    """Every rank's share of the loss, averaged in one collective."""
    names = ["loss/total", *result.metrics]
    values = torch.stack([value.detach().float() for value in (result.loss, *result.metrics.values())])
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return dict(zip(names, values.tolist(), strict=True))


def _require_finite(loss: float, step: int, cfg: Config) -> None:
    if not math.isfinite(loss):
        raise ConfigError(
            f"The loss is {loss} at step {step}: lower optim.lr={cfg.optim.lr:g}, lengthen optim.warmup_steps="
            f"{cfg.optim.warmup_steps}, or set optim.grad_clip=1."
        )

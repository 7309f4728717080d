"""Stop before a loss that is no longer finite reaches a checkpoint, without asking the device at every step."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from ito_ray.losses.gather import world_size

NEVER = torch.iinfo(torch.int64).max


class FiniteGuard:
    """Remembers on the device, term by term, at which step it first was NaN or infinite.

    Reading it makes the host wait for the device, so the loop does that only when it reports or checkpoints.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.first_bad: dict[str, Tensor] = {}

    def watch(self, step: int, terms: dict[str, Tensor]) -> None:
        """Look at this step's scalars; no synchronisation."""
        for name, value in terms.items():
            before = self.first_bad.get(name)
            if before is None:
                before = torch.full((), NEVER, device=value.device)
            bad_now = (before == NEVER) & ~torch.isfinite(value.detach())
            self.first_bad[name] = torch.where(bad_now, step, before)

    def check(self) -> None:
        """
        Raises:
            ConfigError: naming the first step that was not finite on any rank, and its terms.
        """
        names = list(self.first_bad)
        steps = torch.stack([self.first_bad[name] for name in names])
        if world_size() > 1:
            dist.all_reduce(steps, op=dist.ReduceOp.MIN)
        bad = {name: step for name, step in zip(names, steps.tolist(), strict=True) if step != NEVER}
        if not bad:
            return
        step = min(bad.values())
        terms = ", ".join(name for name, when in bad.items() if when == step)
        optim = self.cfg.optim
        raise ConfigError(
            f"{terms}: not finite at step {step}; no checkpoint was written since. Lower optim.lr={optim.lr:g}, "
            f"lengthen optim.warmup_steps={optim.warmup_steps}, or set optim.grad_clip=1 (now {optim.grad_clip:g}), "
            "and run the same command again: it resumes from the last checkpoint."
        )

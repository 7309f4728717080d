"""The optimiser, its parameter groups and its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info
from torch import nn

from ito_ray.config.schema import OptimConfig

NO_DECAY = (
    "*.bias",
    "*.cls_token",
    "*.pos_embed",
    "*.reg_token",
    "*.text_positions",
    "*.readout_token",
    "*position_embedding*",
    "*.relative_position_bias_table",
    "*.attn_pool.latent",
)
"""Learned tokens and positions of our own modules, of Hugging Face's, and those that timm's lists leave out."""


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> torch.optim.Optimizer:
    """timm's `cfg.name` in two groups: weight decay on matrices and kernels, none on norms, biases, positions, scale.

    Source: OpenCLIP's exclusion rule (ndim < 2, bn, ln, bias, logit_scale), plus learned tokens and positions, and what
    the timm model itself names in `no_weight_decay()`.
    """
    spared = (*NO_DECAY, *_named_by_modules(model))
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            excluded = parameter.ndim < 2 or any(fnmatchcase(name, pattern) for pattern in spared)
            (plain if excluded else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    about = get_optimizer_info(cfg.name)
    options: dict[str, Any] = {"betas": cfg.betas} if about.has_betas else {}
    options |= {"eps": cfg.eps} if about.has_eps else {}
    options |= {"fused": True} if cfg.name == "adamw" else {}
    optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, opt=cfg.name, lr=cfg.lr, **options)
    return optimizer


def _named_by_modules(model: nn.Module) -> Iterator[str]:
    """Names and patterns of parameters that timm models spare, as `model` calls them."""
    for prefix, module in model.named_modules():
        if hasattr(module, "no_weight_decay"):
            yield from (f"{prefix}.{name}" if prefix else name for name in module.no_weight_decay())


def learning_rate(step: int, steps: int, cfg: OptimConfig) -> float:
    """Linear warm-up to `cfg.lr`, then cosine to 0; a function of the step alone, so a resumed run continues it.

    Args:
        step: 0-based number of the step about to be taken.
        steps: length of the whole run.
    """
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / cfg.warmup_steps
    progress = (step - cfg.warmup_steps) / max(1, steps - cfg.warmup_steps)
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """The same rate for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = value

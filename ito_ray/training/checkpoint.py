"""Checkpoints: a folder of safetensors and JSON, never a pickle.

    method.safetensors     towers, logit scale, fusion: everything trainable, and buffers
    optimizer.safetensors  AdamW's moments and step counts, by parameter name
    state.json             format version, step, data position, the configuration

There is no random state to save: every step seeds torch from (seed, step, rank), and every sample its augmentation
from (seed, task, row), so a resumed run draws what the undisturbed one would have drawn.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ito_ray.training.state import State, write_state


def save(folder: Path, method: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Write a checkpoint into an empty folder; `method` is the bare module, not DDP's wrapper."""
    save_file(_detached(method.state_dict()), folder / "method.safetensors")
    moments = {
        f"{key}/{name}": value
        for name, parameter in method.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    save_file(_detached(moments), folder / "optimizer.safetensors")
    write_state(folder, state)


def load_method(folder: Path, method: nn.Module) -> None:
    """Fill `method` with a checkpoint's tensors; every name must match."""
    method.load_state_dict(load_file(folder / "method.safetensors"), strict=True)


def load_optimizer(folder: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW back its moments, parameter by parameter."""
    moments = load_file(folder / "optimizer.safetensors")
    for name, parameter in method.named_parameters():
        kept = {key.split("/", 1)[0]: value for key, value in moments.items() if key.split("/", 1)[1] == name}
        if kept:
            optimizer.state[parameter] = {
                key: value.to(parameter.device if value.ndim else value.device) for key, value in kept.items()
            }


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

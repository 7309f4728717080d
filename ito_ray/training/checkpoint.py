"""Checkpoints: a folder of safetensors and JSON, never a pickle.

    method.safetensors     towers, logit scale, fusion: everything trainable, and buffers
    ema.safetensors        the moving average of the encoder, where there is one
    optimizer.safetensors  the optimiser's moments and step counts, by parameter name
    state.json             format version, step, data position, the configuration

There is no random state to save: every step seeds torch from (seed, step, rank), and every sample its augmentation
from (seed, task, row), so a resumed run draws what the undisturbed one would have drawn.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ito_ray.training.learner import Learner
from ito_ray.training.state import State, write_state

METHOD, EMA, OPTIMIZER = "method.safetensors", "ema.safetensors", "optimizer.safetensors"


def save(folder: Path, learner: Learner, state: State) -> None:
    """Write a checkpoint into an empty folder."""
    save_file(_detached(learner.method.state_dict()), folder / METHOD)
    if learner.ema is not None:
        save_file(_detached(learner.ema.module.state_dict()), folder / EMA)
    moments = {
        f"{key}/{name}": torch.as_tensor(value)
        for name, parameter in learner.method.named_parameters()
        for key, value in learner.optimizer.state.get(parameter, {}).items()
    }
    save_file(_detached(moments), folder / OPTIMIZER)
    write_state(folder, state)


def load(folder: Path, learner: Learner) -> None:
    """Give a fresh learner its tensors back; every name must match."""
    learner.method.load_state_dict(load_file(folder / METHOD), strict=True)
    if learner.ema is not None:
        learner.ema.module.load_state_dict(load_file(folder / EMA), strict=True)
    moments = load_file(folder / OPTIMIZER)
    for name, parameter in learner.method.named_parameters():
        kept = {key.split("/", 1)[0]: value for key, value in moments.items() if key.split("/", 1)[1] == name}
        if kept:
            learner.optimizer.state[parameter] = {key: _moment(value, parameter) for key, value in kept.items()}


def load_encoder(folder: Path, encoder: nn.Module) -> dict[str, tuple[int, ...]]:
    """Fill the encoder that ships: the moving average where there is one.

    Returns:
        Name and shape of every tensor that stays behind.
    """
    method = load_file(folder / METHOD)
    trained = {name.removeprefix("encoder."): value for name, value in method.items() if name.startswith("encoder.")}
    averaged = load_file(folder / EMA) if (folder / EMA).is_file() else trained
    encoder.load_state_dict(averaged, strict=True)
    return {name: tuple(value.shape) for name, value in method.items() if not name.startswith("encoder.")}


def _moment(value: Tensor, parameter: Tensor) -> Tensor | bool:
    if value.dtype == torch.bool:
        return bool(value)  # Muon notes which parameters are its own
    return value.to(parameter.device if value.ndim else value.device)


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

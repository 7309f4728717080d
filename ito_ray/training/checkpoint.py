"""Checkpoints: a folder of safetensors and JSON, never a pickle.

    method.safetensors     towers, logit scale, fusion: everything trainable, and buffers
    ema.safetensors        the moving average of the encoder, where there is one
    optimizer.safetensors  the optimiser's moments and step counts, by parameter name
    state.json             format version, step, data position, the configuration
    manifest.json          size and SHA-256 of all these (manifest.py)

Of a sharded run each rank writes its own rows (`method-00001-of-00004.safetensors`, …) and its own manifest, and any
number of ranks can read them: the pieces of a tensor are joined along its first dimension.

There is no random state to save: every step seeds torch from (seed, step, rank, micro-batch), and every sample its
augmentation from (seed, task, row), so a resumed run draws what the undisturbed one would have drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ito_ray.errors import DataError
from ito_ray.losses.gather import rank, world_size
from ito_ray.training.learner import Learner
from ito_ray.training.manifest import write_manifest
from ito_ray.training.parallel import like, local
from ito_ray.training.state import State, write_state

METHOD, EMA, OPTIMIZER = "method", "ema", "optimizer"


def save(folder: Path, learner: Learner, state: State | None) -> None:
    """Write this rank's part into an empty folder: without sharding, rank 0 writes everything.

    Args:
        state: of rank 0, which writes it; None on the others.
    """
    sharded = isinstance(learner.method, FSDPModule)
    written = [write_state(folder, state)] if state is not None else []
    if rank() > 0 and not sharded:
        return
    moments = {
        f"{key}/{name}": torch.as_tensor(value)
        for name, parameter in learner.method.named_parameters()
        for key, value in learner.optimizer.state.get(parameter, {}).items()
    }
    parts = {METHOD: learner.method.state_dict(), OPTIMIZER: moments}
    if learner.ema is not None:
        parts[EMA] = learner.ema.module.state_dict()
    suffix = f"-{rank() + 1:05d}-of-{world_size():05d}" if sharded else ""
    for part, tensors in parts.items():
        mine = {name: value for name, value in tensors.items() if rank() == 0 or local(value) is not value}
        written.append(folder / f"{part}{suffix}.safetensors")
        save_file(_detached(mine), written[-1])
    write_manifest(written, suffix)


def load(folder: Path, learner: Learner) -> None:
    """Give a fresh learner its tensors back; every name must match.

    Raises:
        DataError: a piece is missing.
    """
    _fill(folder, METHOD, learner.method)
    if learner.ema is not None:
        _fill(folder, EMA, learner.ema.module)
    with _pieces(folder, OPTIMIZER) as moments:
        kept: dict[str, dict[str, Any]] = {}
        for key in moments:
            kind, name = key.split("/", 1)
            kept.setdefault(name, {})[kind] = key
        for name, parameter in learner.method.named_parameters():
            if name in kept:
                learner.optimizer.state[parameter] = {
                    kind: _moment(moments[key](), parameter) for kind, key in kept[name].items()
                }


def load_encoder(folder: Path, encoder: nn.Module) -> dict[str, tuple[int, ...]]:
    """Fill the encoder that ships: the moving average where there is one.

    Returns:
        Name and shape of every tensor that stays behind.

    Raises:
        DataError: the checkpoint is of another model.
    """
    with _pieces(folder, METHOD) as method:
        tensors = {name: join() for name, join in method.items()}
    trained = {name.removeprefix("encoder."): value for name, value in tensors.items() if name.startswith("encoder.")}
    try:
        encoder.load_state_dict(trained, strict=True)
    except RuntimeError as error:
        raise DataError(_other_model(folder, METHOD, " ".join(str(error).split())[:300])) from error
    if list(folder.glob(f"{EMA}*")):
        _fill(folder, EMA, encoder)
    return {name: tuple(value.shape) for name, value in tensors.items() if not name.startswith("encoder.")}


@torch.no_grad()
def _fill(folder: Path, part: str, module: nn.Module) -> None:
    """Copy a checkpoint's tensors into a module's, one at a time."""
    with _pieces(folder, part) as pieces:
        targets = module.state_dict()
        if differ := sorted(set(pieces) ^ set(targets)):
            raise DataError(_other_model(folder, part, f"{', '.join(differ[:3])} are in one of the two only"))
        for name, target in targets.items():
            target.copy_(like(target, pieces[name]()))


def _other_model(folder: Path, part: str, differ: str) -> str:
    return (
        f"{folder}/{part} holds other tensors than the model that this configuration builds: {differ}. Use the "
        "versions of ito_ray, timm and transformers that it was written with, or choose another --name."
    )


@contextmanager
def _pieces(folder: Path, part: str) -> Iterator[Mapping[str, Any]]:
    """Every tensor of `part` by name, as a function that joins its pieces.

    Raises:
        DataError: fewer files than the ranks that wrote.
    """
    paths = sorted(folder.glob(f"{part}*.safetensors"))
    expected = int(paths[0].stem.rsplit("-of-", 1)[1]) if paths and "-of-" in paths[0].stem else 1
    if len(paths) != expected:
        raise DataError(
            f"{folder} has {len(paths)} of {expected} files {part}*.safetensors: the checkpoint is not whole. Take "
            "another one; a run that resumes sets such a folder aside by itself."
        )
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
        holders: dict[str, list[Any]] = {}
        for file in files:
            for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                holders.setdefault(name, []).append(file)
        yield {name: lambda name=name, held=held: _join(name, held) for name, held in holders.items()}


def _join(name: str, files: list[Any]) -> Tensor:
    pieces = [file.get_tensor(name) for file in files]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _moment(value: Tensor, parameter: Tensor) -> Tensor | bool:
    """One entry of an optimiser's state as it was before it was saved: on the parameter's device, in its order.

    Fused optimisers walk through parameter and moments as they lie in memory, so those of a channels-last kernel
    must be channels-last too: each would otherwise get its neighbour's.
    """
    if value.dtype == torch.bool:
        return bool(value)  # Muon notes which parameters are its own
    if value.shape == parameter.shape and value.ndim:
        moment = like(parameter, value.to(parameter.device))
        return torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)
    return value.to(parameter.device if value.ndim else value.device)


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: local(value.detach()).cpu().contiguous() for name, value in tensors.items()}

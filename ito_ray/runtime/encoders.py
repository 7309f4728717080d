"""Any model that can be evaluated, by its address. No Ray here: the workers of `runtime/evaluate.py` call it too."""

from __future__ import annotations

from pathlib import Path

import torch

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.data.tokens import load_tokenizer
from ito_ray.data.walk import is_folder
from ito_ray.errors import ConfigError
from ito_ray.evaluation.encoder import Encoder, FolderEncoder, TowerEncoder
from ito_ray.evaluation.peers import SCHEME, OpenClipEncoder
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.models.pixels import with_pixels
from ito_ray.runtime import best
from ito_ray.training import checkpoint
from ito_ray.training.state import read_state

_FILLED = {"model": {"image": {"pretrained": False, "weights": "", "locked": False}}}
"""The checkpoint has all weights: those that training began with need not be fetched, nor be there."""
KINDS = (
    "a SentenceTransformer folder (modules.json), an OpenCLIP folder (open_clip_config.json), a checkpoint of a run "
    "(RUN/step-…), open_clip:NAME,TAG, or a registry address such as models:/NAME@ALIAS"
)


def open_encoder(address: str, *, batch: int, name: str = "", download: bool = False) -> Encoder:
    """The encoder at a local address, on the GPU if there is one.

    Args:
        address: a folder, or `open_clip:NAME,TAG`; registry addresses are resolved by the caller.
        batch: inputs encoded at a time.
        name: what reports call it; empty = the address.
        download: whether OpenCLIP may fetch weights.

    Raises:
        ConfigError: nothing there, or not a model.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if address.startswith(SCHEME) and not is_folder(address):
        return OpenClipEncoder(address, batch=batch, device=device, name=name, download=download)
    folder = Path(address)
    if not is_folder(folder):
        raise ConfigError(f"model={address}: there is no such folder. Give {KINDS}.")
    if (folder / "modules.json").is_file():
        return FolderEncoder(folder, batch=batch, device=device, name=name)
    if (folder / "open_clip_config.json").is_file():
        return OpenClipEncoder(address, batch=batch, device=device, name=name)
    if (folder / "state.json").is_file():
        return open_checkpoint(folder, batch=batch, device=device, name=name)
    inside = sorted(one.name for one in folder.iterdir() if one.is_dir())
    steps = [one for one in inside if one.startswith("step-")]
    likely = [one for one in ("sentence_transformer", "open_clip") if one in inside] + steps[-1:]
    hint = f" It holds {', '.join(likely)}: give one of them." if likely else ""
    raise ConfigError(f"model={address} holds no model that is known.{hint} Known: {KINDS}.")


def open_checkpoint(folder: Path, *, batch: int, device: str = "cpu", name: str = "") -> TowerEncoder:
    """The encoder of a training checkpoint, the moving average where there is one; the fusion stays behind.

    The run's tokenizer is expected beside the checkpoint, in `../tokenizer`, where training puts it; that of a best
    checkpoint (RUN/best/step-…) one folder further up.

    Raises:
        ConfigError: a checkpoint of another format, or without its tokenizer.
        DataError: a piece of a sharded checkpoint is missing.
    """
    place = folder.absolute().parent
    tokenizer_dir = (place.parent if place.name == best.FOLDER else place) / "tokenizer"
    if not tokenizer_dir.is_dir():
        raise ConfigError(
            f"model={folder} is a checkpoint, but its run's tokenizer is not beside it: {tokenizer_dir} is missing."
        )
    source = str(folder / "state.json")
    cfg = overlay(with_pixels(overlay(Config(), read_state(folder).config, source=source)), _FILLED, source=source)
    tokenizer = load_tokenizer(tokenizer_dir)
    model = DualEncoder(cfg.model, tokenizer)
    checkpoint.load_encoder(folder, model)
    return TowerEncoder(model.to(device), tokenizer, device, batch, name=name or str(folder))

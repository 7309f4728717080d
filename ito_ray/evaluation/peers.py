"""Other people's models behind the same contract, so that they are measured by the same code."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from ito_ray.data.preprocess import to_rgb
from ito_ray.data.walk import is_folder
from ito_ray.errors import ConfigError
from ito_ray.evaluation.encoder import Embeddings, shortened

SCHEME = "open_clip:"
LOCAL = "local-dir:"


class OpenClipEncoder:
    """An OpenCLIP model: a folder that holds `open_clip_config.json`, or `open_clip:NAME,TAG`.

    TAG is one of OpenCLIP's pretrained tags or a file of weights. Nothing is fetched unless `download` is set: a tag
    must then be in the caches of this machine.

    Source: OpenCLIP 3.3, https://github.com/mlfoundations/open_clip.

    Raises:
        ConfigError: OpenCLIP is not installed, no such name, tag, folder or file, or its weights are not here.
    """

    def __init__(
        self, model: str, *, batch: int = 256, device: str = "cpu", name: str = "", download: bool = False
    ) -> None:
        self.name = name or model
        self._batch, self._device = batch, torch.device(device)
        library = _library(model)
        address, weights = _resolve(library, model)
        if weights and not download:
            _require_weights(library, address, weights)
        with _network(download):
            try:
                net, _, self._preprocess = library.create_model_and_transforms(
                    address, pretrained=weights or None, weights_only=True
                )
                self._tokenizer: Any = library.get_tokenizer(address)
            except (OSError, RuntimeError, ValueError, KeyError, SafetensorError, UnpicklingError) as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                raise ConfigError(f"model={model} cannot be loaded by OpenCLIP ({reason}).") from error
        self._net: Any = net.to(self._device).eval()

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> Embeddings:
        """RGB images to (n, D) float32, through the model's own preprocessing."""
        parts = []
        for start in range(0, len(images), self._batch):
            chunk = images[start : start + self._batch]
            pixels = torch.stack([self._preprocess(shortened(to_rgb(image))) for image in chunk])
            parts.append(self._net.encode_image(pixels.to(self._device), normalize=True).float().cpu().numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Texts to (n, D) float32."""
        parts = []
        for start in range(0, len(texts), self._batch):
            ids = self._tokenizer(list(texts[start : start + self._batch]))
            parts.append(self._net.encode_text(ids.to(self._device), normalize=True).float().cpu().numpy())
        return np.concatenate(parts)


def _library(model: str) -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise ConfigError(f"model={model} needs OpenCLIP: pip install 'ito_ray[clip]'.") from error
    return open_clip


def _resolve(library: Any, model: str) -> tuple[str, str]:
    """OpenCLIP's model address, and tag or file of weights ("" for a folder, which holds its own)."""
    if not model.startswith(SCHEME) or is_folder(model):
        return f"{LOCAL}{model}", ""
    name, _, weights = model.removeprefix(SCHEME).partition(",")
    if (Path(name) / "open_clip_config.json").is_file():
        return f"{LOCAL}{name}", ""
    if name not in library.list_models():
        near = difflib.get_close_matches(name, library.list_models(), n=5)
        raise ConfigError(
            f"model={model}: OpenCLIP knows no model {name!r}, and it is no folder with an open_clip_config.json. "
            f"{'Near it: ' + ', '.join(near) + '.' if near else 'Take one of open_clip.list_models().'}"
        )
    tags = library.list_pretrained_tags_by_model(name)
    if weights not in tags and not Path(weights).is_file():
        raise ConfigError(
            f"model={model}: {f'{weights!r} is no file and no tag' if weights else 'weights are missing'}; write "
            f"{SCHEME}{name},TAG with one of {', '.join(tags) or 'no tags'}, or with a file of weights."
        )
    return name, weights


def _require_weights(library: Any, name: str, weights: str) -> None:
    """Refuse a tag whose weights are not in a cache: loading would fetch them."""
    if Path(weights).is_file():
        return
    from huggingface_hub import try_to_load_from_cache

    described: dict[str, str] = library.pretrained.get_pretrained_cfg(name, weights)
    kept = Path("~/.cache/clip").expanduser() / Path(described.get("url", "")).name
    if described.get("url") and kept.is_file():
        return
    repository, _, file = described.get("hf_hub", "").rpartition("/")
    known = (file,) if file else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    if repository and any(isinstance(try_to_load_from_cache(repository, one), str) for one in known):
        return
    raise ConfigError(
        f"model={SCHEME}{name},{weights}: the weights are not on this machine, and nothing is fetched unasked. Add "
        "--download to fetch them, or name a file of weights instead of the tag."
    )


@contextmanager
def _network(allowed: bool) -> Iterator[None]:
    """Hugging Face's libraries ask their server even about files that they have, unless told that there is none."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = not allowed
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before

"""Which encoder it is: told apart by the content of its folder, wherever that lies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ito_ray.errors import ConfigError, ExportError
from ito_ray.export.checks import TENSOR_SUFFIX, folder_manifest, manifest_digest

_CARD = (".md",)
SHORT = 12
"""Digits of a checksum that messages show."""


@dataclass(frozen=True)
class Model:
    """An exported SentenceTransformer folder."""

    address: str
    """As the user gave it."""
    version: str
    """In the registry; "" for a folder."""
    folder: Path
    checksum: str
    """sha256 over the sha256 of every file but the model card: weights, towers, preprocessing and tokenizer."""
    weights: dict[str, str]
    """sha256 of each safetensors file."""
    size: int | None
    """Side of the images it takes, pixels; None when it is not one of our exports."""

    @property
    def title(self) -> str:
        """For messages."""
        version = f" (version {self.version})" if self.version else ""
        return f"{self.address}{version}, sha256 {self.checksum[:SHORT]}…"

    def document(self) -> dict[str, Any]:
        """For manifests; no path but the address that was given."""
        return {
            "address": self.address,
            "version": self.version,
            "sha256": self.checksum,
            "weights": self.weights,
        }


def identify(folder: Path, *, address: str, version: str = "") -> Model:
    """Look at the folder's content.

    Raises:
        ConfigError: no SentenceTransformer folder.
    """
    if not (folder / "modules.json").is_file():
        raise ConfigError(
            f"--model {address} is not a SentenceTransformer folder (it has no modules.json): give the folder that "
            "training exported, or a registry address such as models:/NAME@ALIAS."
        )
    try:
        files = {name: digest for name, digest in folder_manifest(folder).items() if not name.endswith(_CARD)}
        facts = json.loads((folder / "ito.json").read_text("utf-8")) if "ito.json" in files else {}
    except (ExportError, OSError, ValueError) as error:
        raise ConfigError(f"--model {address} cannot be read: {error}") from error
    weights = {name: digest for name, digest in files.items() if name.endswith(TENSOR_SUFFIX)}
    size = facts.get("image", {}).get("size")
    return Model(address, version, folder.absolute(), manifest_digest(files), weights, size)


def read_files(folder: Path) -> dict[str, bytes]:
    """The folder as {relative path: content}, for machines that do not share a disk."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@contextmanager
def on_this_machine(model: Model, files: dict[str, bytes] | None) -> Iterator[Path]:
    """The folder here: where it is, when that is the same model; else a copy of `files` for the time of the block.

    Raises:
        ConfigError: the model is not here and there are no files.
    """
    if (model.folder / "modules.json").is_file() and identify(model.folder, address="").checksum == model.checksum:
        yield model.folder
        return
    if files is None:
        raise ConfigError(f"The model {model.title} has changed or is gone from {model.folder}: run again.")
    with TemporaryDirectory(prefix="ito-encoder-") as scratch:
        for name, content in files.items():
            path = Path(scratch, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield Path(scratch)

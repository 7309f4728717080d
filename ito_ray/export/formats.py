"""From the SentenceTransformer folder to one for OpenCLIP, transformers or onnxruntime, compared before it is there.

Each such folder has a README.md with the lines that use it and how the model came to be, and a manifest.json with the
sha256 of every other file.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from ito_ray.errors import ExportError
from ito_ray.export.card import read_origin, write_origin
from ito_ray.export.checks import MANIFEST, read_manifest, write_manifest
from ito_ray.export.hf_clip_folder import comparable_images, write_hf_clip
from ito_ray.export.load import TEXT, load_encoder
from ito_ray.export.onnx_folder import write_onnx
from ito_ray.export.onnx_int8 import Int8Loss, Tower, add_int8
from ito_ray.export.open_clip_folder import write_open_clip
from ito_ray.export.parity import Encoder, FreshProcess, require_parity, take_reference
from ito_ray.export.sentence_transformer import make_public
from ito_ray.models.dual_encoder import DualEncoder

Format = Literal["open_clip", "hf_clip", "onnx"]
WRITERS: Mapping[Format, Callable[[DualEncoder, Path, Path], None]] = {
    "open_clip": write_open_clip,
    "hf_clip": write_hf_clip,
    "onnx": write_onnx,
}
NEEDED: Mapping[Format, tuple[str, tuple[str, ...]]] = {
    "open_clip": ("clip", ("open_clip",)),
    "hf_clip": ("", ()),
    "onnx": ("onnx", ("onnx", "onnxruntime", "onnxscript")),
}
"""The extra of ito_ray, and its packages."""


@dataclass(frozen=True)
class Converted:
    """A folder that passed and is in its place."""

    folder: Path
    files: Mapping[str, str]
    """{relative path: sha256} of all files but the manifest."""
    max_abs_difference: float
    """Largest difference of an embedding's coordinate to the SentenceTransformer folder."""
    int8: Int8Loss | None = None
    """What the towers of 8 bits lose, if any were asked for."""


@dataclass(frozen=True)
class Int8:
    """That towers of 8 bits are wanted too, and what to measure them on."""

    towers: tuple[Tower, ...]
    pairs: Sequence[tuple[Image.Image, str]] = ()
    source: str = ""
    """Where the pairs are from."""

    def __post_init__(self) -> None:
        if "image" in self.towers and not self.pairs:
            raise ExportError("--int8-image is measured on photographs: give shards of pairs with --data.")


def convert(source: Path, to: Format, out: Path, encoder: Encoder, int8: Int8 | None = None) -> Converted:
    """Write `source` as `to`, compare it in a process without ito_ray, and only then give it its name.

    Args:
        source: a SentenceTransformer folder that training exported.
        to: open_clip: a `local-dir:` folder; onnx: two .onnx files and how to feed them.
        out: new, empty, or an earlier export of the same kind, which is replaced.
        encoder: encodes with `source`: what the new folder is compared with.
        int8: onnx only.

    Raises:
        ExportError: an option of another format; `out` holds something else; a package is missing; towers that the
            format cannot hold; or the new folder encodes differently.
    """
    source, out = source.resolve(), out.resolve()
    if int8 and to != "onnx":
        raise ExportError(f"--int8-{int8.towers[0]} is for --to onnx, not --to {to}: leave it out.")
    _require_packages(to)
    _require_free(out, to)
    with FreshProcess(to) as fresh, _staged(out) as folder:
        model = load_encoder(source)
        WRITERS[to](model, source / TEXT, folder)
        write_origin(folder, read_origin(source))
        images = comparable_images(model.image.cfg.size) if to == "hf_clip" else ()
        difference = require_parity(folder, take_reference(model, encoder, forbidden={}, images=images), fresh)
        loss = add_int8(folder, int8.towers, int8.pairs, int8.source) if int8 else None
        make_public(folder)
        files = write_manifest(folder, to)
    return Converted(out, files, difference, loss)


def _require_packages(to: Format) -> None:
    extra, packages = NEEDED[to]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ExportError(f'--to {to} needs {", ".join(missing)}, not installed: pip install "ito_ray[{extra}]".')


def _require_free(out: Path, to: Format) -> None:
    """Only what this module wrote, file by file, may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"--out {out} is a file: give a folder that is new or empty.")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if not found:
        return
    try:
        kind, files = read_manifest(out)
        ours = {MANIFEST, *files} if kind == to else set()
    except ExportError:
        ours = set()
    other = sorted(found - ours)
    if other:
        raise ExportError(
            f"--out {out} holds {other[0]}, which no earlier export to {to} wrote: give a folder that is new or empty."
        )


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` that gets its name when the block ends well, and vanishes when not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        built = Path(scratch, out.name)
        built.mkdir()
        try:
            yield built
        except ExportError as error:  # the user knows it by the name that it did not get
            raise ExportError(str(error).replace(str(built), str(out))) from error
        if out.exists():
            out.rename(Path(scratch, "replaced"))
        built.rename(out)

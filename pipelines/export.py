"""Convert an exported SentenceTransformer folder to a format for other programs.

    python -m pipelines.export --encoder runs/demo/sentence_transformer --to open_clip --out runs/demo/open_clip

open_clip: a folder for `open_clip.create_model_and_transforms("local-dir:FOLDER")`; CLIP's own towers only, that is a
timm vit_…_clip_… with model.text.kind=clip. hf_clip: the same towers for transformers' `CLIPModel`. onnx: both encoders
for onnxruntime, without torch; most towers; --int8-text and --int8-image add small towers, and measure what they lose.

The new folder is written under a temporary name, encodes images and texts in a process that cannot import ito_ray, and
gets its name when no number differs by more than 1e-5 from what the SentenceTransformer folder gives.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal

import tyro
from rich.console import Console

from ito_ray.errors import ExportError
from pipelines.command import console, exit_code

if TYPE_CHECKING:
    from PIL import Image

    from ito_ray.export.onnx_int8 import Tower

MAX_PIXELS = 64_000_000
USAGE = {
    "open_clip": """import open_clip
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{out}")
tokenizer = open_clip.get_tokenizer("local-dir:{out}")""",
    "hf_clip": """from transformers import AutoProcessor, CLIPModel
model = CLIPModel.from_pretrained("{out}")
processor = AutoProcessor.from_pretrained("{out}", backend="pil")""",
    "onnx": """import onnxruntime
image = onnxruntime.InferenceSession("{out}/image.onnx")   # pixels -> embeddings
text = onnxruntime.InferenceSession("{out}/text.onnx")     # input_ids, attention_mask -> embeddings
# {out}/README.md has the preprocessing as code""",
}


@dataclass(frozen=True)
class Arguments:
    """What to convert to what."""

    encoder: Path
    """The SentenceTransformer folder that training exported."""
    to: Literal["open_clip", "hf_clip", "onnx"]
    """Format."""
    out: Path
    """New or empty folder; an earlier export of the same format is replaced."""
    int8_text: bool = False
    """onnx: also a text tower with 8-bit weights; how far its embeddings are off is measured and written down."""
    int8_image: bool = False
    """onnx: the same of the image tower; needs --data."""
    data: tuple[str, ...] = ()
    """With int8 towers: shards of pairs to measure them on, also by R@1. Without, the text tower is measured on
    built-in sentences, by cosine only."""
    pairs: int = 500
    """How many of them."""


def run(arguments: Arguments, console: Console) -> None:
    """Convert, compare, print what was made and how to use it.

    Raises:
        ItoError: see `FolderEncoder` and `convert`.
    """
    # Imported here, so that --help and a wrong option answer at once.
    from transformers.utils import logging

    from ito_ray.evaluation.encoder import FolderEncoder
    from ito_ray.export.formats import Int8, convert

    if not (arguments.encoder / "modules.json").is_file():
        raise ExportError(
            f"--encoder {arguments.encoder} is not a SentenceTransformer folder (it has no modules.json): give the one "
            "that training exported."
        )
    wanted: dict[Tower, bool] = {"text": arguments.int8_text, "image": arguments.int8_image}
    towers = tuple(tower for tower, asked in wanted.items() if asked)
    if arguments.data and not towers:
        raise ExportError("--data is what --int8-text and --int8-image are measured on: give one of these too.")
    int8 = Int8(towers, *_pairs(arguments)) if towers else None
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    start = time.perf_counter()
    with console.status("Converting and comparing …"):
        encoder = FolderEncoder(arguments.encoder, device="cpu")
        made = convert(arguments.encoder, arguments.to, arguments.out, encoder, int8)
    megabytes = sum((made.folder / name).stat().st_size for name in made.files) / 1e6
    console.print(
        f"made: {arguments.out}, {len(made.files)} files and their manifest, {megabytes:.1f} MB "
        f"({time.perf_counter() - start:.0f} s)",
        soft_wrap=True,
    )
    console.print(
        f"checked without ito_ray: largest difference to {arguments.encoder} {made.max_abs_difference:.2g}",
        soft_wrap=True,
    )
    if made.int8:
        console.print(str(made.int8), soft_wrap=True)
    console.print(USAGE[arguments.to].format(out=arguments.out), soft_wrap=True)


def _pairs(arguments: Arguments) -> tuple[list[tuple[Image.Image, str]], str]:
    """Images with their first caption, and where they are from."""
    from ito_ray.config.schema import ColumnsConfig
    from ito_ray.data.heldout import HeldoutReader

    if not arguments.data:
        return [], ""
    reader = HeldoutReader(
        arguments.data, ColumnsConfig(), limit=arguments.pairs, max_pixels=MAX_PIXELS, field="--data"
    )
    found = [(pair.image, pair.captions[0]) for pair in reader if pair.captions]
    if len(found) < 2:
        raise ExportError(f"--data {' '.join(arguments.data)} has {len(found)} readable pairs: R@1 needs two or more.")
    return found, f"the pairs of {', '.join(PurePath(pattern).name for pattern in arguments.data)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when converted, 2 when something that the user can mend is wrong."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    run(tyro.cli(Arguments, prog="python -m pipelines.export", description=__doc__, args=arguments), console())


if __name__ == "__main__":
    sys.exit(main())

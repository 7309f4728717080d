"""Shards for the ingest benchmark, tar and Parquet with the same samples: made up, or from what the user has.

A made-up picture is a drawing of the icon demo on a texture whose spectrum falls with the frequency as a photograph's
does, with grain, at 400 to 640 px, JPEG of quality 90 with halved chroma: about three bits a pixel. The cost
of decoding hangs on pixels and bits, not on what is to be seen.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.decode import open_image
from ito_ray.data.icons.render import Placement, colour_pairs, render
from ito_ray.data.icons.splits import colour_caption, read_catalogue
from ito_ray.data.plan import Piece
from ito_ray.data.rows import BadSample, read_piece
from ito_ray.data.shards import list_shards
from ito_ray.data.write import Sample, ShardFormat, write_shards
from ito_ray.errors import DataError

FORMATS: tuple[ShardFormat, ...] = ("tar", "parquet")
SIDES, QUALITY, PER_SHARD = (400, 640), 90, 256
MAX_PIXELS = 64_000_000
_TEXTURES, _TEXTURE_SIDE = 12, 1024
_GRAIN, _FALL = 2.0, 1.2
_DONE = "made_from.json"
_IMAGES = (".jpg", ".jpeg", ".png", ".webp")


def prepare(folder: Path, count: int, source: Path | None) -> dict[str, float]:
    """Write `folder`/tar and `folder`/parquet unless they are there; what the samples are like.

    Args:
        source: a folder of images or shards to take the samples from; None makes pictures up.

    Raises:
        DataError: `source` has no usable image.
    """
    wanted = {"count": count, "source": str(source.absolute()) if source else ""}
    done = folder / _DONE
    if done.is_file():
        known = json.loads(done.read_text("utf-8"))
        if known["wanted"] == wanted:
            return dict(known["described"])
    samples = list(islice(from_folder(source) if source else made_up(count), count))
    if not samples:
        raise DataError(f"--source {source}: no image was found: give a folder of .jpg, .png or .webp, or of shards.")
    for format in FORMATS:
        for stale in (folder / format).glob("*"):
            stale.unlink()
        write_shards(samples, folder / format, prefix="part", per_shard=PER_SHARD, format=format)
    described = describe(samples)
    done.write_text(json.dumps({"wanted": wanted, "described": described}), encoding="utf-8")
    return described


def describe(samples: Sequence[Sample]) -> dict[str, float]:
    """Number of samples, mean bytes of an image, mean pixels, bits a pixel."""
    pixels = sum(np.prod(open_image(sample.image, max_pixels=MAX_PIXELS).size) for sample in samples)
    size = sum(len(sample.image) for sample in samples)
    count = len(samples)
    return {"samples": count, "bytes": size / count, "pixels": pixels / count, "bits_per_pixel": 8 * size / pixels}


def made_up(count: int, seed: int = 0) -> Iterator[Sample]:
    """`count` JPEGs with captions, the same for the same seed."""
    rng, draw = np.random.default_rng(seed), random.Random(seed)
    textures = [_texture(_TEXTURE_SIDE, rng) for _ in range(_TEXTURES)]
    drawings, colours = read_catalogue("shared").training, colour_pairs()
    for number in range(count):
        width, height = draw.randint(*SIDES), draw.randint(*SIDES)
        picture = _window(textures[draw.randrange(_TEXTURES)], width, height, rng)
        drawing, (front, back) = draw.choice(drawings), draw.choice(colours)
        side = min(width, height) // 2
        icon = Image.open(io.BytesIO(render(drawing, front, back, draw, Placement(size=side))))
        picture.paste(icon, (draw.randint(0, width - side), draw.randint(0, height - side)))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
        caption = colour_caption(drawing.name, front, back)
        yield Sample(f"{number:06d}", buffer.getvalue(), (caption,), {}, extension="jpg")


def from_folder(source: Path) -> Iterator[Sample]:
    """Good samples of the shards below `source`; without shards its image files, each captioned with its name."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    if not any(path.suffix in (".tar", ".parquet") for path in files):
        images = [path for path in files if path.suffix.lower() in _IMAGES]
        for number, path in enumerate(images):
            yield from _usable(number, path.read_bytes(), (path.stem.replace("_", " ").replace("-", " "),))
        return
    number = 0
    for shard in list_shards([str(source)], field="--source"):
        for row in read_piece(Piece(shard.url, 0, 1), ColumnsConfig()):
            if row.image is not None:
                yield from _usable(number, row.image, row.captions)
                number += 1


def _usable(number: int, image: bytes, captions: tuple[str, ...]) -> Iterator[Sample]:
    """The sample, or nothing when the header cannot be read: the peer would stop at what we count and drop."""
    try:
        kind = open_image(image, max_pixels=MAX_PIXELS).format
    except BadSample:
        return
    extension = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}.get(kind or "")
    if extension:
        yield Sample(f"{number:06d}", image, captions, {}, extension=extension)


def _texture(side: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """(side, side, 3), mean 0 and deviation 1: noise that is weaker the finer it is, with colours that go together."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    planes = [
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) / frequency**_FALL, (side, side)) for _ in "ybr"
    ]
    luma, blue, red = (plane / plane.std() for plane in planes)
    colours = np.stack([luma + 0.3 * red, luma, luma + 0.3 * blue], axis=-1)
    return np.asarray(colours / colours.std(), np.float32)


def _window(texture: npt.NDArray[np.float32], width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A piece of the texture, perhaps mirrored, in a light and contrast of its own, with grain."""
    top, left = (int(rng.integers(0, texture.shape[0] - side + 1)) for side in (height, width))
    piece = texture[top : top + height, left : left + width, :: 1 if rng.random() < 0.5 else -1]
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    light, contrast = rng.uniform(80, 170, 3).astype(np.float32), np.float32(rng.uniform(30, 65))
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(_GRAIN)
    return Image.fromarray((light + contrast * piece + grain).clip(0, 255).astype(np.uint8))

"""The same pictures under blur, noise, compression and low resolution; the same texts with typos and in other words.

Kinds and strengths after ImageNet-C (Hendrycks and Dietterich, https://arxiv.org/abs/1903.12261), three of each;
lengths are shares of the short side, so that small pictures are not wiped out.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ito_ray.data.preprocess import clean_text
from ito_ray.evaluation.embed import Change

MOST = 2000
"""Samples of a set that are asked about again."""
STRENGTHS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {"blur": (0.01, 0.02, 0.04), "noise": (0.05, 0.1, 0.2), "jpeg": (30, 10, 3), "scale": (0.5, 0.25, 0.125)}
)
UNITS: Mapping[str, str] = MappingProxyType(
    {"blur": "σ / short side", "noise": "σ of 0 … 1", "jpeg": "quality", "scale": "of its size"}
)
TYPO_RATES = (0.05, 0.1, 0.2)
FRAMES = ("a photo of {}", "a picture that shows {}", "{}, an image", "this is {}")
_AT_A_TIME = 1 << 22
_LONGEST_JPEG = 65_500
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def blur(image: Image.Image, key: str, strength: float) -> Image.Image:
    """Gaussian, σ as a share of the short side."""
    return image.filter(ImageFilter.GaussianBlur(strength * min(image.size)))


def noise(image: Image.Image, key: str, strength: float) -> Image.Image:
    """Gaussian, σ of values in 0 … 1; the key seeds it, so a sample gets the same noise in every process."""
    pixels = np.array(image)
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    for part in np.array_split(pixels.reshape(-1), -(-pixels.size // _AT_A_TIME)):  # the noise is 8 bytes a value
        part[:] = np.clip(np.rint(part + rng.normal(0, 255 * strength, part.shape)), 0, 255)
    return Image.fromarray(pixels)


def jpeg(image: Image.Image, key: str, strength: float) -> Image.Image:
    """Compressed and decoded; strength = quality. One that is too long for a JPEG stays as it is."""
    if max(image.size) > _LONGEST_JPEG:
        return image
    out = io.BytesIO()
    image.save(out, "JPEG", quality=int(strength))
    return Image.open(out).convert("RGB")


def scale(image: Image.Image, key: str, strength: float) -> Image.Image:
    """Shrunk to a share of its size and enlarged again."""
    small = (max(1, round(image.width * strength)), max(1, round(image.height * strength)))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


_KINDS: Mapping[str, Callable[..., Image.Image]] = MappingProxyType(
    {"blur": blur, "noise": noise, "jpeg": jpeg, "scale": scale}
)


def image_changes() -> dict[str, Change]:
    """`blur_1` … `scale_3` to functions of picture and key."""
    return {
        f"{kind}_{number}": partial(_KINDS[kind], strength=strength)
        for kind, strengths in STRENGTHS.items()
        for number, strength in enumerate(strengths, 1)
    }


def text_changes() -> dict[str, Callable[[str], str]]:
    """Typos at three rates, all capitals, and four frames around the text."""
    return {
        **{f"typos_{number}": partial(typos, rate=rate) for number, rate in enumerate(TYPO_RATES, 1)},
        "capitals": str.upper,
        **{f"frame_{number}": partial(_framed, frame=frame) for number, frame in enumerate(FRAMES, 1)},
    }


def typos(text: str, rate: float) -> str:
    """Each letter is, with chance `rate`, dropped, doubled, swapped with the next or hit beside; the text seeds it."""
    rng = np.random.default_rng(zlib.crc32(text.encode()))
    out: list[str] = []
    letters = list(text)
    while letters:
        letter = letters.pop(0)
        if not letter.isalpha() or rng.random() >= rate:
            out.append(letter)
            continue
        match rng.integers(4):
            case 0:
                continue
            case 1:
                out += [letter, letter]
            case 2 if letters:
                out += [letters.pop(0), letter]
            case _:
                out.append(_beside(letter, rng.random()))
    return clean_text("".join(out)) or text


def levels(hits: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.float64]:
    """(n,) share of the changes under which each sample is still right."""
    kept: NDArray[np.float64] = np.mean([one.astype(np.float64) for one in hits.values()], axis=0)
    return kept


def _framed(text: str, frame: str) -> str:
    return frame.replace("{}", text)


def _beside(letter: str, chance: float) -> str:
    row = next((row for row in _ROWS if letter.lower() in row), "")
    if not row:
        return letter
    at = row.index(letter.lower())
    return row[max(0, at - 1)] if (chance < 0.5 and at > 0) or at == len(row) - 1 else row[at + 1]

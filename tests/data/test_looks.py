"""The same picture scaled and compressed looks the same; another colour or another picture does not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ito_ray.data.looks import Looks, look_of


def _image(seed: int) -> Image.Image:
    """As many details as pHash looks at: smoother pictures leave some of its signs to chance."""
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    return Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC)


def _compressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.resize((60, 40)).save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


def test_scaled_and_compressed_copies_are_found() -> None:
    looks = Looks(4)
    assert [looks.find_or_add(look_of(_image(seed)), str(seed)) for seed in range(40)] == [None] * 40
    for seed in range(40):
        assert looks.find_or_add(look_of(_compressed(_image(seed))), "copy") == str(seed)


def test_another_colour_is_another_picture() -> None:
    looks = Looks(4)
    image = _image(0)
    red, green, blue = image.split()
    assert looks.find_or_add(look_of(image), "first") is None
    assert looks.find_or_add(look_of(Image.merge("RGB", (blue, red, green))), "second") is None


@pytest.mark.parametrize("distance", [0, 1, 4, 9])
def test_near_is_what_comparing_all_pairs_finds(distance: int) -> None:
    rng = np.random.default_rng(distance)
    base = [int(value) for value in rng.integers(0, 1 << 63, 20)]
    hashes = []
    for value in base * 3:
        for bit in rng.choice(64, int(rng.integers(0, distance + 3)), replace=False):
            value ^= 1 << int(bit)
        hashes.append(value)
    looks = Looks(distance)
    kept: list[int] = []
    for value in hashes:
        near = any((value ^ other).bit_count() <= distance for other in kept)
        found = looks.find_or_add(value.to_bytes(8, "big") + bytes(48), "x")
        assert (found is not None) == near
        if not near:
            kept.append(value)
    assert 0 < len(kept) < len(hashes)

"""The code that ships: the middle of any image at little cost, and PNGs that Pillow alone would not take."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from ito_ray.data.preprocess import MAX_PIXELS, TooManyPixels, middle_square, read_image, to_rgb
from tests.data.makers import encoded, noise, png
from tests.data.odd_images import exif, odd_images, png_chunk, with_chunks

ODD = odd_images()


def _theirs(image: Image.Image, size: int) -> np.ndarray:
    bicubic = transforms.InterpolationMode.BICUBIC
    both = transforms.Compose([transforms.Resize(size, interpolation=bicubic), transforms.CenterCrop(size)])
    return np.asarray(both(image)).astype(int)


def test_the_square_is_torchvisions_pixel_by_pixel() -> None:
    """Of noise, which shows every shift and every other order of rounding."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        width, height = rng.integers(10, 300, 2).tolist()
        size = int(rng.choice([16, 45, 224]))
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        assert (np.asarray(middle_square(image, size)) == _theirs(image, size)).all(), (width, height, size)


@pytest.mark.parametrize("shape", [(5, 170), (170, 5), (9, 512), (1, 77), (77, 1), (3, 1000), (1001, 4)])
def test_of_an_elongated_image_it_is_the_same_middle(shape: tuple[int, int]) -> None:
    image = Image.fromarray(noise(*shape, seed=2))
    assert abs(np.asarray(middle_square(image, 32)).astype(int) - _theirs(image, 32)).max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 1), (2, 30_000_000)])
def test_a_line_costs_little_memory(shape: tuple[int, int], tmp_path: Path) -> None:
    """Resized whole, a line of 30,000 pixels was 4.3 GB. What the image itself takes is allowed."""
    Image.new("RGB", shape).save(tmp_path / "line.png")
    code = (
        "import resource, sys\nfrom ito_ray.data.preprocess import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nread_image(sys.argv[1], 224)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "line.png")], check=True, capture_output=True, text=True
    )
    assert int(run.stdout) << 10 < 50_000_000 + 4 * shape[0] * shape[1]


@pytest.mark.parametrize("name", ODD)
def test_a_path_gives_what_bytes_give(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(ODD[name])
    image = read_image(tmp_path / name)
    assert image.mode == "RGB" and image.tobytes() == read_image(ODD[name]).tobytes()
    assert read_image(str(tmp_path / name), 20).size == (20, 20)
    assert to_rgb(image.copy()).tobytes() == image.tobytes()  # not turned twice


@pytest.mark.parametrize("name", [name for name in ODD if name.startswith(("long_", "many_"))])
def test_long_texts_and_profiles_cost_a_png_nothing(name: str) -> None:
    assert read_image(ODD[name]).tobytes() == noise(48, 32).tobytes()


@pytest.mark.parametrize("keyword", [b"Comment", b"Raw profile type exif"])
def test_a_text_bomb_is_not_unpacked(keyword: bytes) -> None:
    """Neither one that nobody needs nor one under a name that we look at."""
    bomb = png_chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(bytes(100 << 20), 9))
    data = with_chunks(encoded(Image.fromarray(noise(48, 32))), bomb)
    tracemalloc.start()
    try:
        assert read_image(data).tobytes() == noise(48, 32).tobytes()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_orientation_in_a_text_of_a_png_is_kept() -> None:
    """As ImageMagick writes it, in hexadecimal."""
    tags = exif(6).tobytes()
    text = f"\nexif\n{len(tags):8}\n{tags.hex()}\n".encode()
    plain = encoded(Image.fromarray(noise(48, 32)))
    for chunk in (b"zTXt", b"tEXt"):
        body = b"\0" + zlib.compress(text) if chunk == b"zTXt" else text
        assert read_image(with_chunks(plain, png_chunk(chunk, b"Raw profile type exif\0" + body))).size == (32, 48)


def test_too_many_pixels_and_none_are_refused() -> None:
    with pytest.raises(TooManyPixels, match=rf"10000×9000, {MAX_PIXELS} are allowed"):
        read_image(png(10_000, 9_000))
    with pytest.raises((ValueError, OSError)):
        read_image(png(0, 5))

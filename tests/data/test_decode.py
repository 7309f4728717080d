"""Every kind of picture becomes the RGB that a person sees, or a reason."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from ito_ray.data.decode import decode_rgb, open_image, upright_size
from ito_ray.data.rows import BadSample
from tests.data.makers import encoded, noise, png
from tests.data.odd_images import odd_images

LIMIT = 64_000_000
pytestmark = pytest.mark.filterwarnings("ignore")  # pytest undoes the module's own filters


def _decoded(data: bytes) -> np.ndarray:
    image = decode_rgb(data, max_pixels=LIMIT)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def _reason(data: bytes, max_pixels: int = LIMIT) -> str:
    with pytest.raises(BadSample) as caught:
        decode_rgb(data, max_pixels=max_pixels)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_rgb_is_left_as_it_is(kind: str) -> None:
    pixels = noise(20, 10)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (_decoded(encoded(Image.fromarray(pixels), kind, **options)) == pixels).all()


def test_transparency_is_laid_on_white() -> None:
    pixels = noise(16, 16, channels=4)
    colour, alpha = pixels[..., :3].astype(float), pixels[..., 3:].astype(float) / 255
    expected = colour * alpha + 255 * (1 - alpha)
    assert abs(_decoded(encoded(Image.fromarray(pixels))) - expected).max() <= 1


def test_grey_with_alpha() -> None:
    image = Image.new("LA", (4, 4), (0, 0))
    assert (_decoded(encoded(image)) == 255).all()


def test_palette_with_and_without_a_transparent_colour() -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 200, 10, 30, 0, 0, 0])
    image.putpixel((0, 0), 2)
    opaque, clear = _decoded(encoded(image)), _decoded(encoded(image, transparency=2))
    assert opaque[0, 0].tolist() == [0, 0, 0] and clear[0, 0].tolist() == [255, 255, 255]
    assert opaque[1, 3].tolist() == clear[1, 3].tolist() == [200, 10, 30]


def test_cmyk_jpeg() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert abs(_decoded(data) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_range(kind: str) -> None:
    levels = np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16)
    assert (_decoded(encoded(Image.fromarray(levels), kind)) == np.array([0, 0, 1, 128, 255])[None, :, None]).all()


def test_16_bit_colour() -> None:
    row = b"\0" + struct.pack(">6H", 0, 0x8000, 0xFFFF, 0x1234, 0, 0xFF00)
    assert _decoded(png(2, 1, depth=16, data=row)).tolist() == [[[0, 128, 255], [0x12, 0, 255]]]


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_and_bilevel(mode: str) -> None:
    assert (_decoded(encoded(Image.new(mode, (3, 3), 255))) == 255).all()


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert _decoded(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    image = Image.fromarray(noise(48, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif)
    turns = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
    turned, mirrored = turns.get(orientation, (0, False))
    exif[0x0112] = 1
    expected = np.rot90(np.asarray(Image.open(io.BytesIO(encoded(image, kind, exif=exif))).convert("RGB")), turned)
    expected = expected[:, ::-1] if mirrored else expected
    assert (_decoded(data) == expected).all()
    assert upright_size(open_image(data, max_pixels=LIMIT)) == (expected.shape[1], expected.shape[0])


def test_a_damaged_orientation_does_not_cost_the_picture() -> None:
    data = encoded(Image.fromarray(noise(32, 32)), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff broken")
    assert _decoded(data).shape == (32, 32, 3)


@pytest.mark.parametrize(("at_least", "short"), [(None, 320), (161, 320), (160, 160), (81, 160), (40, 40), (10, 40)])
def test_a_jpeg_comes_at_the_smallest_power_of_two_that_suffices(at_least: int | None, short: int) -> None:
    image = Image.fromarray(noise(400, 320))
    found = decode_rgb(encoded(image, "JPEG", quality=95), max_pixels=LIMIT, at_least=at_least)
    assert found.size == (short * 400 // 320, short)
    reference = np.asarray(image.resize(found.size, Image.Resampling.BOX)).astype(int)
    assert abs(np.asarray(found).astype(int) - reference).mean() < 4


@pytest.mark.parametrize(("name", "data"), odd_images().items())
def test_the_header_promises_the_size_that_is_delivered(name: str, data: bytes) -> None:
    encoded = open_image(data, max_pixels=LIMIT)
    assert upright_size(encoded) == decode_rgb(data, max_pixels=LIMIT).size


_HEIC = b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf"
NO_IMAGES = {
    "no bytes at all": b"",
    "40 zero bytes": bytes(40),
    "an HTML page": b"\xef\xbb\xbf\r\n<!DOCTYPE html>\n<html><svg/>404</html>",
    "an HTML page, ": b"<?xml version='1.0'?><!DOCTYPE html PUBLIC '-//W3C//DTD XHTML'><html/>",
    "an XML document": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "an SVG drawing": b"<?xml version='1.0'?>\n<!-- by hand -->\n<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "a PDF document": b"%PDF-1.7\n%\xe2\xe3",
    "a PostScript file": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "a JSON document": b'{"error": "not found"}',
    "a JSON document, ": b'[{"long": "' + b"x" * 9000 + b'"}]',
    "gzip data": b"\x1f\x8b\x08\0\0\0\0\0",
    "a zip archive": b"PK\x03\x04\x14\0",
    "a tar archive": b"name".ljust(257, b"\0") + b"ustar\x0000" + bytes(300),
    "a HEIC image": _HEIC,
    "an MP4 video": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41",
    "a QuickTime video": b"\0\0\0\x14ftypqt  \0\0\2\0qt  ",
    "a JPEG XL image": b"\0\0\0\x0cJXL \r\n\x87\n",
    "a JPEG XL image, ": b"\xff\x0a\x7f\x01",
    "a JPEG 2000 image": b"\0\0\0\x0cjP  \r\n\x87\n",
    "a Photoshop document": b"8BPS\0\1",
    "a Netpbm image": b"P6\n2 2\n255\n" + bytes(12),
    "a NumPy array": b"\x93NUMPY\1\0",
    "a Parquet file": b"PAR1\x15\x04",
    "an AVI video": b"RIFF\x10\0\0\0AVI LIST",
    "base64 text of an image": b"/9j/4AAQSkZJRgABAQEASABIAAD/2wBD",
    "a data: address": b"data:image/png;base64,iVBORw0KGgo=",
    "an address": b"https://example.org/cat.jpg\n",
    "text": "kein Bild".encode("utf-16"),
    "text, not": b"404 page not found\n",
}


@pytest.mark.parametrize(("kind", "data"), NO_IMAGES.items())
def test_what_is_no_image_is_called_what_it_is(kind: str, data: bytes) -> None:
    with pytest.raises(BadSample) as caught:
        decode_rgb(data, max_pixels=LIMIT)
    assert caught.value.reason == "image_unreadable"
    assert caught.value.detail.startswith(kind)
    assert caught.value.detail.endswith((", not an image", ", which is not read"))


@pytest.mark.parametrize(
    "data",
    [
        bytes(range(1, 200)),
        b"\x89PNG\r\n\x1a\n\0\0",
        b"\xff\xd8\xff\xe0",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"GIF89a  000",
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1",
    ],
)
def test_bytes_of_no_known_kind_are_not_blamed_on_a_reader(data: bytes) -> None:
    with pytest.raises(BadSample) as caught:
        decode_rgb(data, max_pixels=LIMIT)
    assert not any(word in caught.value.detail for word in ("MPO", "KeyError", "BytesIO"))
    assert caught.value.detail


@pytest.mark.parametrize("brands", [b"avif\0\0\0\0avifmif1miaf", b"mif1\0\0\0\0mif1avifmiaf"])
def test_a_damaged_avif_is_called_one(brands: bytes) -> None:
    with pytest.raises(BadSample, match="an AVIF image that is damaged"):
        decode_rgb(b"\0\0\0\x20ftyp" + brands + bytes(40), max_pixels=LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(pixels), kind)
    assert _reason(data[: len(data) // 2]) == "image_truncated"


def test_floating_point_pixels_are_refused() -> None:
    assert _reason(encoded(Image.new("F", (4, 4)), "TIFF")) == "image_unreadable"


def test_damaged_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "MPO"):
        data = encoded(Image.fromarray(noise(40, 40)), kind)
        for _ in range(60):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 6):
                broken[place] = rng.integers(0, 256)
            try:
                assert decode_rgb(bytes(broken), max_pixels=LIMIT).mode == "RGB"
            except BadSample as error:
                assert error.reason in ("image_unreadable", "image_truncated", "too_many_pixels")


@pytest.mark.parametrize("side", [(20_000, 10_000), (10_000, 9_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_judged_by_its_header(side: tuple[int, int]) -> None:
    """200, 90 and far too many megapixels: above Pillow's limit, above its warning, beyond reason."""
    assert _reason(png(*side)) == "too_many_pixels"


def test_a_real_bomb_of_a_few_kilobytes() -> None:
    data = png(20_000, 10_000, depth=1, colour=0, data=bytes((20_000 // 8 + 1) * 10_000))
    assert len(data) < 50_000
    assert _reason(data) == "too_many_pixels"


def test_the_limit_is_the_configured_one() -> None:
    data = encoded(Image.new("RGB", (100, 100)))
    assert decode_rgb(data, max_pixels=10_000).size == (100, 100)
    assert _reason(data, max_pixels=9_999) == "too_many_pixels"

"""Odd images as people have them: every mode, depth, orientation and container, each under a name."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image, ImageChops

from tests.data.makers import encoded, noise, png

_SIZE = (48, 32)


def odd_images() -> dict[str, bytes]:
    """Name to the bytes of a file that can be read."""
    colour = Image.fromarray(noise(*_SIZE))
    return {**_modes(colour), **_deep(), **_turned(colour), **_jpegs(colour), **_moving(colour), **_chunks(colour)}


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(data: bytes, *chunks: bytes, late: bool = False) -> bytes:
    """A PNG with chunks before its pixels, or `late` after them."""
    at = data.index(b"IEND" if late else b"IDAT") - 4
    return data[:at] + b"".join(chunks) + data[at:]


def exif(turn: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = turn
    return tags


def _modes(colour: Image.Image) -> dict[str, bytes]:
    clear = Image.fromarray(noise(*_SIZE, channels=4))
    palette = colour.quantize(8)
    holes = Image.fromarray(noise(*_SIZE, seed=5, channels=2), "LA")
    return {
        "rgb.png": encoded(colour),
        "rgb.bmp": encoded(colour, "BMP"),
        "rgb.tiff": encoded(colour, "TIFF"),
        "rgb.webp": encoded(colour, "WEBP", quality=80),
        "rgb.avif": encoded(colour, "AVIF", quality=80),
        "rgba.png": encoded(clear),
        "rgba.webp": encoded(clear, "WEBP", lossless=True),
        "rgba.tiff": encoded(clear, "TIFF"),
        "rgba.avif": encoded(clear, "AVIF", quality=80),
        "la.png": encoded(holes),
        "la.tiff": encoded(holes, "TIFF"),
        "p.png": encoded(palette),
        "p_hole.png": encoded(palette, transparency=2),
        "p_alphas.png": encoded(palette, transparency=bytes([0, 64, 128, 192, 255])),
        "p_hole.gif": encoded(palette, "GIF", transparency=2),
        "rgb_hole.png": encoded(colour, transparency=colour.getpixel((3, 3))),
        "l.png": encoded(colour.convert("L")),
        "l_hole.png": encoded(colour.convert("L"), transparency=7),
        "1.png": encoded(colour.convert("1")),
        "1.tiff": encoded(colour.convert("1"), "TIFF", compression="group4"),
        "cmyk.tiff": encoded(colour.convert("CMYK"), "TIFF"),
        "ycbcr.tiff": encoded(colour.convert("YCbCr"), "TIFF"),
    }


def _deep() -> dict[str, bytes]:
    levels = np.linspace(0, 0xFFFF, _SIZE[0] * _SIZE[1]).astype(np.uint16).reshape(_SIZE[1], _SIZE[0])
    big_endian = encoded(Image.fromarray(levels), "TIFF")
    wide = Image.fromarray(levels.astype(np.int32) * 2 - 500)
    row = b"\0" + levels[:1].astype(">u2").repeat(3, axis=0).T.tobytes()
    alpha = b"\0" + np.stack([levels[0], levels[1], levels[2], levels[::-8][0]], -1).astype(">u2").tobytes()
    return {
        "i16.png": encoded(Image.fromarray(levels)),
        "i16.tiff": big_endian,
        "i16_big.tiff": _big_endian_tiff(levels),
        "i32.tiff": encoded(wide, "TIFF"),
        "rgb48.png": png(_SIZE[0], 1, depth=16, data=row),
        "rgba64.png": png(_SIZE[0], 1, depth=16, colour=6, data=alpha),
    }


def _big_endian_tiff(levels: np.ndarray) -> bytes:
    height, width = levels.shape
    pixels = levels.astype(">u2").tobytes()
    tags = [(256, 4, width), (257, 4, height), (258, 3, 16 << 16), (259, 3, 1 << 16), (262, 3, 1 << 16), (273, 4, 8)]
    tags += [(277, 3, 1 << 16), (278, 4, height), (279, 4, len(pixels))]
    table = b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"MM\0*" + struct.pack(">I", 8 + len(pixels)) + pixels + struct.pack(">H", len(tags)) + table + bytes(4)


def _turned(colour: Image.Image) -> dict[str, bytes]:
    found = {f"turned{turn}.jpg": encoded(colour, "JPEG", exif=exif(turn)) for turn in range(1, 9)}
    return {
        **found,
        "turned6.png": encoded(colour, exif=exif(6)),
        "turned5.webp": encoded(colour, "WEBP", exif=exif(5)),
        "turned8.tiff": encoded(colour, "TIFF", exif=exif(8)),
        "turned6.avif": encoded(colour, "AVIF", exif=exif(6)),
        "turned0.jpg": encoded(colour, "JPEG", exif=exif(0)),
        "turned99.jpg": encoded(colour, "JPEG", exif=exif(99)),
        "broken_exif.jpg": encoded(colour, "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff broken"),
        "text_orientation.jpg": encoded(colour, "JPEG", exif=_ascii_orientation()),
        "turned6_xmp.png": with_chunks(encoded(colour), png_chunk(b"iTXt", _XMP)),
    }


_XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'


def _ascii_orientation() -> bytes:
    """The tag as a word, of which no turn can be made."""
    table = struct.pack("<HHHI4s", 1, 0x0112, 2, 4, b"abc\0")
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + table + bytes(4)


def _jpegs(colour: Image.Image) -> dict[str, bytes]:
    cmyk = encoded(colour.convert("CMYK"), "JPEG", quality=90)  # Pillow writes Adobe's, inverted
    adobe = cmyk.index(b"Adobe")
    plain = cmyk[: adobe - 4] + cmyk[adobe - 2 + int.from_bytes(cmyk[adobe - 2 : adobe], "big") :]
    second = ImageChops.invert(colour)
    return {
        "plain.jpg": encoded(colour, "JPEG", quality=90),
        "grey.jpg": encoded(colour.convert("L"), "JPEG"),
        "cmyk_adobe.jpg": cmyk,
        "cmyk_plain.jpg": plain,
        "rgb_inside.jpg": encoded(colour, "JPEG", keep_rgb=True),
        "progressive.jpg": encoded(colour, "JPEG", progressive=True),
        "two.mpo": encoded(colour, "MPO", save_all=True, append_images=[second]),
    }


def _moving(colour: Image.Image) -> dict[str, bytes]:
    rest = {"save_all": True, "append_images": [ImageChops.invert(colour)]}
    return {
        "moving.gif": encoded(colour, "GIF", **rest),
        "moving.webp": encoded(colour, "WEBP", lossless=True, **rest),
        "moving.png": encoded(colour, "PNG", **rest),
        "moving.avif": encoded(colour, "AVIF", quality=90, **rest),
        "pages.tiff": encoded(colour, "TIFF", **rest),
    }


def _chunks(colour: Image.Image) -> dict[str, bytes]:
    """What Pillow alone refuses, or finds too late."""
    data = encoded(colour)
    text, profile = zlib.compress(bytes(3 << 20)), zlib.compress(bytes(2 << 20))
    turned = exif(6).tobytes().removeprefix(b"Exif\0\0")
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    return {
        "long_text.png": with_chunks(data, png_chunk(b"zTXt", b"Comment\0\0" + text)),
        "long_late_text.png": with_chunks(data, png_chunk(b"zTXt", b"Comment\0\0" + text), late=True),
        "long_international_text.png": with_chunks(data, png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + text)),
        "long_profile.png": with_chunks(data, png_chunk(b"iCCP", b"wide\0\0" + profile)),
        "many_texts.png": with_chunks(data, *[png_chunk(b"tEXt", b"k\0" + bytes([65]) * (1 << 20))] * 70),
        "broken_text.png": with_chunks(data, png_chunk(b"zTXt", b"Raw profile type exif\0\0no zlib")),
        "no_hexadecimal.png": with_chunks(data, png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 3\nxyz\n")),
        "empty_texts.png": with_chunks(data, *(png_chunk(kind, b"") for kind in (b"zTXt", b"iTXt", b"tEXt", b"iCCP"))),
        "late_exif.png": with_chunks(data, png_chunk(b"eXIf", turned), late=True),
        "late_xmp.png": with_chunks(data, png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp), late=True),
    }

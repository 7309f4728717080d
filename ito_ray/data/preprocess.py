"""From the bytes of an image file to the square of RGB pixels that a model sees, and from a caption to its clean text.

Training, evaluation and the served model run this code, and every exported folder shows it. It needs Pillow and numpy.
"""

import html
import io
import unicodedata
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, features

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
"""What is opened at all: Pillow has readers, like the one for EPS, that start other programs."""
MAX_PIXELS = 64_000_000
_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAY_ORIENT = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
INVISIBLE = {0xAD: None, 0x200B: None, 0x2060: None, 0xFEFF: None} | {
    code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if not chr(code).isspace()
}
"""Soft hyphen, zero-width space, word joiner, byte order mark, NUL and other control characters that are no white
space. Joiners that scripts and emoji need stay."""
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_TEXT = 1 << 20
_ELONGATED = 32


def read_image(source: str | Path | bytes, size: int | None = None) -> Image.Image:
    """The image as RGB, upright; with `size`, the square of that side which the model sees.

    Transparency is laid on white; CMYK, grey, palette and 16-bit images become 8-bit RGB; of an animation the first
    frame is taken. Raises ValueError or OSError when it cannot be read or has more than `MAX_PIXELS`.
    """
    image = to_rgb(open_image(source if isinstance(source, bytes) else Path(source).read_bytes()))
    return image if size is None else middle_square(image, size)


def clean_text(text: str) -> str:
    """Entities resolved (also doubly escaped ones, common on the web), NFKC, runs of white space as one space.

    NFKC, so that ligatures, full-width letters and styled letters are the words that they show. Characters that show
    nothing go.
    """
    if "&" in text:
        text = html.unescape(html.unescape(text))
    if not text.isprintable():
        text = text.translate(INVISIBLE)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.split())


class TooManyPixels(ValueError):
    """An image that is refused by its header."""


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image with its header read and nothing decoded."""
    image = Image.open(io.BytesIO(_without_png_text(data)), formats=FORMATS)
    if not image.width * image.height:
        raise ValueError(f"{image.width}×{image.height} pixels")
    if image.width * image.height > max_pixels:
        raise TooManyPixels(f"{image.width}×{image.height}, {max_pixels} are allowed")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, upright, of an image in any mode; of what it gave already, the same."""
    image.load()
    turn = orientation(image)
    image = _on_white(image)
    if turn in _ORIENTATION:
        image = image.transpose(_ORIENTATION[turn])
        image.info = {key: value for key, value in image.info.items() if key not in _MAY_ORIENT}
    return image


def middle_square(image: Image.Image, size: int) -> Image.Image:
    """Short side to `size`, antialiased bicubic, and of the other side the middle.

    Equals timm's and OpenCLIP's Resize and CenterCrop. Of an elongated image only the middle is resized: a line of one
    pixel, made `size` pixels wide, would become gigabytes.
    """
    width, height = image.size
    short = min(width, height)
    across, down = int(size * width / short), int(size * height / short)
    left, top = round((across - size) / 2), round((down - size) / 2)
    if max(width, height) > _ELONGATED * short:
        x, y = width / across, height / down
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    # Resized whole where that is cheap: for a part of it, Pillow may filter down before across, and rounds otherwise.
    if short != size:
        image = image.resize((across, down), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 = upright; reading it costs, so only where the header has a place for it.

    A TIFF is turned by Pillow itself.
    """
    if image.format == "TIFF" or _MAY_ORIENT.isdisjoint(image.info):
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the tag is a courtesy: a damaged one must not cost the image
        return 1


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: the high byte, as Pillow itself takes it of 16-bit colour.
        levels = np.asarray(image)
        levels = levels.clip(0, 0xFFFF) if levels.itemsize > 2 else levels
        return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _without_png_text(data: bytes) -> bytes:
    """A PNG without texts and colour profile, of which Pillow takes 1 MB at most; its orientation before its pixels."""
    if not data.startswith(_PNG):
        return data
    kept, pixels, at = [data[: len(_PNG)]], 0, len(_PNG)
    late: list[bytes] = []
    while (end := at + 12 + int.from_bytes(data[at : at + 4], "big")) <= len(data):
        kind, chunk = data[at + 4 : at + 8], data[at:end]
        if kind == b"IDAT" and not pixels:
            pixels = len(kept)
        is_text = kind in (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
        if not is_text or _may_turn(kind, chunk[8:-4]):
            (late if pixels and (is_text or kind == b"eXIf") else kept).append(chunk)
        at = end
    return b"".join((*kept[:pixels], *late, *kept[pixels:], data[at:]))  # what is cut short stays to be complained of


def _may_turn(kind: bytes, body: bytes) -> bool:
    """Whether it is a text that may hold the orientation, and one that Pillow takes."""
    keyword, _, rest = body.partition(b"\0")
    if kind == b"iCCP" or len(body) > _MOST_TEXT:
        return False
    if keyword == b"XML:com.adobe.xmp":
        return rest[:1] == b"\0"  # not compressed
    if keyword != b"Raw profile type exif" or kind == b"iTXt":
        return False
    try:
        return kind == b"tEXt" or len(zlib.decompressobj().decompress(rest[1:], _MOST_TEXT)) < _MOST_TEXT
    except zlib.error:
        return False

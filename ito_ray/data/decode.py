"""From encoded bytes to an RGB picture, or to the reason why not."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import ExifTags, Image

from ito_ray.data.rows import BadSample

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO")
"""What is opened at all: Pillow has readers, like the one for EPS, that start other programs."""
_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)
_MAY_ORIENT = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}

# The header's size is checked here against the configured limit, and damaged pictures are counted: warnings on top of
# that would fill the workers' logs.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")


def decode_rgb(data: bytes, *, max_pixels: int, at_least: int | None = None) -> Image.Image:
    """Decode to RGB, upright.

    Transparency is laid on white; CMYK, grey, palette and 16-bit pictures become 8-bit RGB; of an animation the first
    frame is taken. A JPEG may come at 1/2, 1/4 or 1/8 of its size as long as its short side has `at_least` pixels.

    Raises:
        BadSample: image_unreadable, image_truncated or too_many_pixels (more than `max_pixels`, or than Pillow's own
            limit of 179 million, judged by the header before anything is decoded).
    """
    return to_rgb(open_image(data, max_pixels=max_pixels), at_least=at_least)


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """The picture with its header read and nothing decoded. Raises BadSample like `decode_rgb`."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadSample("too_many_pixels", str(error)[:120]) from error
    except Exception as error:  # damaged bytes make Pillow raise nearly anything: SyntaxError, struct.error, …
        raise _unreadable(error) from error
    if image.width * image.height > max_pixels:
        raise BadSample("too_many_pixels", f"{image.width}×{image.height}, {max_pixels} are allowed")
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) that `to_rgb` will give at full size."""
    return (image.height, image.width) if orientation(image) in _TURNED else image.size


def to_rgb(image: Image.Image, *, at_least: int | None = None) -> Image.Image:
    """Decode what `open_image` opened; see `decode_rgb`."""
    try:
        if at_least is not None and image.format in ("JPEG", "MPO"):
            image.draft(None, (at_least, at_least))
        image.load()
        turn = orientation(image)
        image = _as_rgb(image)
        return image.transpose(_ORIENTATION[turn]) if turn in _ORIENTATION else image
    except Exception as error:  # see open_image
        raise _unreadable(error) from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # PNG of 16-bit grey: the high byte, as Pillow itself takes it for 16-bit colour.
        levels = np.asarray(image).clip(0, 0xFFFF).astype(np.uint16) >> 8
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 = upright; reading it costs, so only where the header has a place for it.

    A TIFF is turned by Pillow itself.
    """
    if image.format == "TIFF" or _MAY_ORIENT.isdisjoint(image.info):
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the tag is a courtesy: a damaged one must not cost the picture
        return 1


def _unreadable(error: Exception) -> BadSample:
    truncated = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return BadSample("image_truncated" if truncated else "image_unreadable", f"{type(error).__name__}: {error}"[:200])

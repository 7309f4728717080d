"""From encoded bytes to an RGB picture, or to the reason why not: the one gate for all who read images."""

from __future__ import annotations

import warnings

from PIL import Image, UnidentifiedImageError

from ito_ray.data import preprocess
from ito_ray.data.file_kinds import no_image, what_it_is
from ito_ray.data.preprocess import TooManyPixels, orientation
from ito_ray.data.rows import BadSample

_TURNED = (5, 6, 7, 8)

# The header's size is checked here against the configured limit, and damaged pictures are counted: warnings on top of
# that would fill the workers' logs.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")


def decode_rgb(data: bytes, *, max_pixels: int, at_least: int | None = None) -> Image.Image:
    """Decode to RGB, upright; see `preprocess.read_image`.

    A JPEG may come at 1/2, 1/4 or 1/8 of its size as long as its short side has `at_least` pixels.

    Raises:
        BadSample: image_unreadable, image_truncated or too_many_pixels (more than `max_pixels`, or than Pillow's own
            limit of 179 million, judged by the header before anything is decoded).
    """
    return to_rgb(open_image(data, max_pixels=max_pixels), at_least=at_least)


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """The picture with its header read and nothing decoded. Raises BadSample like `decode_rgb`."""
    try:
        return preprocess.open_image(data, max_pixels)
    except (Image.DecompressionBombError, TooManyPixels) as error:
        raise BadSample("too_many_pixels", str(error)[:120]) from error
    except Exception as error:  # damaged bytes make Pillow raise nearly anything: SyntaxError, struct.error, …
        if kind := no_image(data):
            raise BadSample("image_unreadable", kind) from error
        if isinstance(error, UnidentifiedImageError):
            kind = what_it_is(data)  # one that is read
            unknown = f"not an image that is known, it begins {data[:8].hex(' ')}"
            raise BadSample("image_unreadable", f"{kind} that is damaged" if kind else unknown) from error
        raise _unreadable(error) from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) that `to_rgb` will give at full size."""
    return (image.height, image.width) if orientation(image) in _TURNED else image.size


def to_rgb(image: Image.Image, *, at_least: int | None = None) -> Image.Image:
    """Decode what `open_image` opened; see `decode_rgb`."""
    try:
        if at_least is not None and image.format in ("JPEG", "MPO"):
            image.draft(None, (at_least, at_least))
        return preprocess.to_rgb(image)
    except Exception as error:  # see open_image
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> BadSample:
    truncated = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return BadSample("image_truncated" if truncated else "image_unreadable", f"{type(error).__name__}: {error}"[:200])

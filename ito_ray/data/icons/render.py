"""Render a glyph as a small picture in two named colours: pure function of its arguments."""

import io
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ito_ray.data.icons.fonts import Drawing, font_folder
from ito_ray.errors import ConfigError

RGB = tuple[int, int, int]

PALETTE: Mapping[str, RGB] = {
    "black": (20, 20, 20),
    "white": (245, 245, 245),
    "gray": (135, 135, 135),
    "red": (215, 35, 35),
    "orange": (245, 140, 25),
    "yellow": (245, 220, 50),
    "green": (40, 150, 60),
    "blue": (40, 85, 210),
    "purple": (125, 50, 165),
    "pink": (250, 150, 190),
    "brown": (115, 70, 35),
    "cyan": (80, 210, 225),
}
MIN_CONTRAST = 2.0  # WCAG ratio; 1 is invisible, 21 is black on white
COLOUR_JITTER = 12  # greatest change of a channel, of 255: small enough to keep the colour's name
_MASK_SIDE = 96  # the longer side of a cached glyph mask, pixels
_FONT_PIXELS = 128


@dataclass(frozen=True)
class Placement:
    """How a glyph is put on the picture.

    `size` is the picture's side in pixels; `scale` the glyph's longer side as a share of it;
    `rotation` the greatest turn in degrees; `stroke` the chance that strokes are made thicker.
    """

    size: int = 64
    scale: tuple[float, float] = (0.75, 0.95)
    rotation: float = 6.0
    stroke: float = 0.3

    def __post_init__(self) -> None:
        if self.size < 8:
            raise ConfigError(f"size is {self.size}: a picture needs a side of at least 8 pixels.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"scale is {self.scale}: give two shares with 0 < least <= greatest <= 1.")
        if not 0 <= self.rotation <= 180:
            raise ConfigError(f"rotation is {self.rotation}: give degrees from 0 to 180.")


def contrast(first: RGB, second: RGB) -> float:
    """WCAG 2 contrast ratio of two sRGB colours, 1 to 21 (w3.org/TR/WCAG21, "contrast ratio")."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: RGB) -> float:
    red, green, blue = (
        channel / 12.92 if channel <= 0.03928 else ((channel + 0.055) / 1.055) ** 2.4
        for channel in (value / 255 for value in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def colour_pairs() -> list[tuple[str, str]]:
    """Every (foreground, background) of the palette that can be told apart, sorted."""
    return sorted(
        (front, back)
        for front in PALETTE
        for back in PALETTE
        # The margin leaves room for the jitter of both colours.
        if contrast(PALETTE[front], PALETTE[back]) >= MIN_CONTRAST * 1.1
    )


def is_drawable(drawing: Drawing) -> bool:
    """Whether the font holds ink for the drawing (a charmap may name an empty glyph)."""
    left, top, right, bottom = _font(drawing.font_file).getbbox(chr(drawing.codepoint))
    return right - left >= 1 and bottom - top >= 1


def render(drawing: Drawing, foreground: str, background: str, rng: random.Random, placement: Placement) -> bytes:
    """Draw one picture; returns the bytes of a `size` x `size` RGB PNG."""
    mask = _glyph_mask(drawing.font_file, drawing.codepoint)
    front, back = _jittered_pair(foreground, background, rng)
    if rng.random() < placement.stroke:
        mask = mask.filter(ImageFilter.MaxFilter(3))
    glyph = _fitted(mask, rng, placement)
    room = placement.size - glyph.width, placement.size - glyph.height
    corner = rng.randint(0, max(0, room[0])), rng.randint(0, max(0, room[1]))
    picture = Image.new("RGB", (placement.size, placement.size), back)
    picture.paste(front, (*corner, corner[0] + glyph.width, corner[1] + glyph.height), glyph)
    buffer = io.BytesIO()
    picture.save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _fitted(mask: Image.Image, rng: random.Random, placement: Placement) -> Image.Image:
    """Scale and turn the mask; the result always fits into the picture."""
    longest = placement.size * rng.uniform(*placement.scale)
    angle = rng.uniform(-placement.rotation, placement.rotation)
    factor = longest / max(mask.size)
    size = max(1, round(mask.width * factor)), max(1, round(mask.height * factor))
    glyph = mask.resize(size, Image.Resampling.BOX)
    if angle:
        glyph = glyph.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        glyph = glyph.crop(glyph.getbbox())
    if max(glyph.size) > placement.size:
        glyph.thumbnail((placement.size, placement.size), Image.Resampling.BOX)
    return glyph


def _jittered_pair(foreground: str, background: str, rng: random.Random) -> tuple[RGB, RGB]:
    for _ in range(100):
        front, back = _jittered(foreground, rng), _jittered(background, rng)
        if contrast(front, back) >= MIN_CONTRAST:
            return front, back
    raise AssertionError(f"{foreground} on {background} has too little contrast for colour_pairs()")


def _jittered(name: str, rng: random.Random) -> RGB:
    red, green, blue = (min(255, max(0, value + rng.randint(-COLOUR_JITTER, COLOUR_JITTER))) for value in PALETTE[name])
    return red, green, blue


@lru_cache(maxsize=32)
def _font(file: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_folder() / file), _FONT_PIXELS)


@lru_cache(maxsize=20_000)
def _glyph_mask(font_file: str, codepoint: int) -> Image.Image:
    """The glyph's ink as an "L" picture cropped to it, its longer side `_MASK_SIDE` pixels."""
    text = chr(codepoint)
    font = _font(font_file)
    left, top, right, bottom = (round(value) for value in font.getbbox(text))
    canvas = Image.new("L", (right - left, bottom - top), 0)
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=255, font=font)
    glyph = canvas.crop(canvas.getbbox())
    factor = _MASK_SIDE / max(glyph.size)
    size = max(1, round(glyph.width * factor)), max(1, round(glyph.height * factor))
    return glyph.resize(size, Image.Resampling.BILINEAR)

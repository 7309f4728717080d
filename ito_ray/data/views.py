"""Augmented views for training and the fixed view for evaluation.

V views, H = W = size. Finished views are (V, H, W, 3) uint8; while they are made, a view is planar, (3, H, W).

A training view is torchvision's RandomResizedCrop → ColorJitter → RandomGrayscale with two liberties that make it
several times cheaper. Crops are drawn from the header's size before decoding, so that a JPEG may be decoded at a
fraction of its size. Brightness, contrast, saturation, hue and grey are affine maps of a pixel's colour and are
composed, in their random order, into one 3×4 matrix: values are not clamped between the steps, and hue turns in YIQ
instead of HSV. Torch resizes: its antialiased bicubic on bytes is several times faster than Pillow's and within 2/255.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ito_ray.config.schema import ViewsConfig
from ito_ray.data.decode import open_image, to_rgb, upright_size
from ito_ray.data.preprocess import middle_square, orientation

_LOG_RATIO = math.log(3 / 4), math.log(4 / 3)
_ATTEMPTS = 10
_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)
_HUE_FIXED, _HUE_COS, _HUE_SIN = (
    _RGB @ np.array(turn) @ _YIQ
    for turn in (
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, 0], [0, 0, -1], [0, 1, 0]],
    )
)
"""Turning the hue by θ is FIXED + COS·cos θ + SIN·sin θ."""
_DRAWS = 11
"""Uniform numbers a view needs after its crop: jitter or not, four strengths, four places, grey or not, flip or not."""

Colours = npt.NDArray[np.float64]
"""(3, 4): linear map and offset of (r, g, b), 0…255."""


class Box(NamedTuple):
    """A crop in pixels."""

    x: int
    y: int
    width: int
    height: int


def make_views(
    data: bytes, cfg: ViewsConfig, size: int, *, max_pixels: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """`cfg.count` views of an encoded image, (V, size, size, 3) uint8.

    Raises:
        BadSample: when the image cannot be decoded, see `decode_rgb`.
    """
    encoded = open_image(data, max_pixels=max_pixels)
    width, height = upright_size(encoded)
    boxes = [crop_box(width, height, cfg.crop_scale, rng) for _ in range(cfg.count)]
    smallest = min(min(box.width, box.height) for box in boxes)
    pixels_HWC = _decoded(encoded, data, at_least=math.ceil(size * min(width, height) / smallest))
    image_BCHW = pixels_HWC.permute(2, 0, 1)[None]
    along, down = pixels_HWC.shape[1] / width, pixels_HWC.shape[0] / height
    views = np.empty((cfg.count, size, size, 3), np.uint8)
    for view, (x, y, w, h) in zip(views, boxes, strict=True):
        left, top = round(x * along), round(y * down)
        right, bottom = max(left + 1, round((x + w) * along)), max(top + 1, round((y + h) * down))
        crop_BCHW = image_BCHW[:, :, top:bottom, left:right]
        resized_BCHW = torch.nn.functional.interpolate(crop_BCHW, (size, size), mode="bicubic", antialias=True)
        draws = rng.random(_DRAWS).tolist()
        planes = _recolour(resized_BCHW[0].numpy(), cfg, draws)
        if draws[10] < cfg.flip_p:
            planes = planes[:, :, ::-1]
        for channel in range(3):  # three plain copies beat one transposed one by far
            view[:, :, channel] = planes[channel]
    return views


def _decoded(image: Image.Image, data: bytes, *, at_least: int) -> torch.Tensor:
    """(H, W, 3) uint8 of `data`, which `open_image` opened as `image`: the pixels that `to_rgb` gives.

    Torchvision decodes by the same library straight into memory that torch can use, a quarter faster. What is not
    plain, or makes it complain, goes through Pillow.
    """
    plain = image.format == "JPEG" and image.mode == "RGB" and orientation(image) == 1
    if plain and min(image.size) < 2 * at_least:  # a larger one is decoded at a fraction of its size, by Pillow
        from torchvision.io import ImageReadMode, decode_jpeg  # two seconds, which data without JPEGs need not wait

        with contextlib.suppress(RuntimeError):
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            pixels_CHW: torch.Tensor = decode_jpeg(encoded, ImageReadMode.RGB)
            return pixels_CHW.permute(1, 2, 0)
    return torch.from_numpy(np.array(to_rgb(image, at_least=at_least)))


def crop_box(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """RandomResizedCrop: area uniform in `scale`, log of the ratio uniform in ±log 4/3; the middle after ten misses."""
    low, high = _LOG_RATIO
    for _ in range(_ATTEMPTS):
        u_area, u_ratio, u_x, u_y = rng.random(4).tolist()
        area = width * height * (scale[0] + u_area * (scale[1] - scale[0]))
        ratio = math.exp(low + u_ratio * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(u_x * (width - w + 1)), int(u_y * (height - h + 1)), w, h)
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def _recolour(view_CHW: npt.NDArray[np.uint8], cfg: ViewsConfig, draws: list[float]) -> npt.NDArray[np.uint8]:
    """ColorJitter and RandomGrayscale on (3, H, W) uint8."""
    jittered, gray = draws[0] < cfg.jitter_p and any(cfg.jitter), draws[9] < cfg.gray_p
    if not jittered and not gray:
        return view_CHW
    pixels = view_CHW.reshape(3, -1).astype(np.float32)
    colours = jitter(cfg.jitter, draws[1:5], draws[5:9], pixels.mean(1)) if jittered else np.eye(3, 4)
    if gray:
        colours = np.tile(_LUMA @ colours, (3, 1))
    affine = colours.astype(np.float32)
    recoloured = affine[:, :3] @ pixels
    recoloured += affine[:, 3:] + 0.5  # half a level, since the conversion to bytes cuts off
    return recoloured.clip(0, 255, out=recoloured).astype(np.uint8).reshape(view_CHW.shape)


def jitter(
    strengths: tuple[float, float, float, float], draws: list[float], places: list[float], mean: npt.NDArray[Any]
) -> Colours:
    """ColorJitter's four steps as one map.

    Args:
        strengths: of brightness, contrast, saturation, hue, as torchvision has them.
        draws: four uniform numbers in [0, 1), how far each step goes.
        places: four numbers, whose order is that of the steps.
        mean: (3,) mean colour of the picture.
    """
    colours = np.eye(3, 4)
    for step in sorted(range(4), key=places.__getitem__):
        strength, draw = strengths[step], draws[step]
        if step == 3:
            angle = 2 * math.pi * strength * (1 - 2 * draw)  # I and Q turn against HSV's hue
            colours = (_HUE_FIXED + math.cos(angle) * _HUE_COS + math.sin(angle) * _HUE_SIN) @ colours
            continue
        least = max(0.0, 1 - strength)
        factor = least + draw * (1 + strength - least)
        luma = _LUMA @ colours
        colours *= factor
        if step == 1:
            # The pivot is the mean grey of what the steps before have made, which is affine in the mean colour.
            colours[:, 3] += (1 - factor) * (luma[:3] @ mean + luma[3])
        elif step == 2:
            colours += (1 - factor) * luma
    return colours


def eval_view(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """(size, size, 3) uint8: short side to `size`, antialiased bicubic, then the middle.

    Equals timm's evaluation transform with crop_pct 1, crop_mode center, bicubic, before its normalisation.
    """
    return np.asarray(middle_square(image, size))

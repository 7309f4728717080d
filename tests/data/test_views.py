"""Views: torchvision's distribution of crops, its colours where nothing clips, and timm's view for evaluation."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from ito_ray.config.schema import ViewsConfig
from ito_ray.data.rows import BadSample
from ito_ray.data.views import crop_box, eval_view, jitter, make_views
from tests.data.makers import encoded, noise, picture

LIMIT = 64_000_000
PLAIN = ViewsConfig(jitter_p=0, gray_p=0)


def _views(data: bytes, cfg: ViewsConfig, size: int = 32, seed: int = 0) -> np.ndarray:
    return make_views(data, cfg, size, max_pixels=LIMIT, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("size", [(64, 64), (500, 375), (300, 40), (7, 90)])
@pytest.mark.parametrize("scale", [(0.5, 1.0), (0.08, 1.0)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int], scale: tuple[float, float]) -> None:
    """Two-sample Kolmogorov-Smirnov tests, each at one in a thousand, of centre, area and ratio."""
    width, height = size
    rng = np.random.default_rng(0)
    count = 1500
    ours = np.array([crop_box(width, height, scale, rng) for _ in range(count)], float)
    torch.manual_seed(0)
    canvas = torch.empty(3, height, width)
    boxes = [RandomResizedCrop.get_params(canvas, list(scale), [3 / 4, 4 / 3]) for _ in range(count)]
    theirs = np.array([(left, top, w, h) for top, left, h, w in boxes], float)
    for feature in (_centre_x, _centre_y, _area, _log_ratio):
        assert _distance(feature(ours), feature(theirs)) < 1.95 * np.sqrt(2 / count)
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= width).all() and (ours[:, 1] + ours[:, 3] <= height).all()


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of the two empirical distribution functions."""
    at = np.union1d(a, b)
    left, right = (np.searchsorted(np.sort(sample), at, side="right") / len(sample) for sample in (a, b))
    return float(abs(left - right).max())


def _centre_x(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(boxes[:, 0] + boxes[:, 2] / 2)


def _centre_y(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(boxes[:, 1] + boxes[:, 3] / 2)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(boxes[:, 2] * boxes[:, 3])


def _log_ratio(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(boxes[:, 2] / boxes[:, 3]))


@pytest.mark.parametrize("shape", [(300, 40), (7, 90), (1, 50), (50, 1), (1, 1)])
def test_fallback_crop_is_torchvisions(shape: tuple[int, int]) -> None:
    """An area that never fits leaves the middle of the picture."""
    width, height = shape
    box = crop_box(width, height, (9.0, 9.0), np.random.default_rng(0))
    top, left, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), [9.0, 9.0], [3 / 4, 4 / 3])
    assert box == (left, top, w, h)


def test_a_view_is_the_crop_resized_as_pillow_does() -> None:
    data = picture(3, size=70)
    view = _views(data, PLAIN, size=48, seed=5)[1]
    rng = np.random.default_rng(5)
    x, y, w, h = [crop_box(70, 70, PLAIN.crop_scale, rng) for _ in range(2)][1]
    image = Image.open(io.BytesIO(data))
    expected = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h)))
    assert abs(view.astype(int) - expected).max() <= 2


def test_a_reduced_jpeg_gives_nearly_the_same_view() -> None:
    """800 px to 64 px is decoded at an eighth of the size or so; the crop must not move."""
    image = Image.fromarray(noise(800, 640, seed=2))
    jpeg, full = _views(encoded(image, "JPEG", quality=95), PLAIN, 64), _views(encoded(image), PLAIN, 64)
    assert abs(jpeg.astype(int) - full).mean() < 2


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"keep_rgb": True}])
def test_a_jpeg_is_decoded_as_pillow_does(options: dict[str, object]) -> None:
    """Torchvision decodes plain JPEGs: the view must be that of the pixels which Pillow sees."""
    jpeg = encoded(Image.fromarray(noise(90, 70, seed=3)), "JPEG", quality=80, **options)
    lossless = encoded(Image.open(io.BytesIO(jpeg)))
    assert (_views(jpeg, PLAIN, 64) == _views(lossless, PLAIN, 64)).all()


def test_a_jpeg_cut_short_is_truncated() -> None:
    jpeg = encoded(Image.fromarray(noise(90, 70, seed=3)), "JPEG")
    with pytest.raises(BadSample, match="image_truncated"):
        _views(jpeg[: len(jpeg) // 2], PLAIN, 64)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_of_other_colours(mode: str) -> None:
    jpeg = encoded(Image.new("RGB", (60, 60), (128, 128, 128)).convert(mode), "JPEG")
    assert abs(_views(jpeg, PLAIN).astype(int) - 128).max() <= 1


def test_shape_and_determinism() -> None:
    cfg = ViewsConfig(count=3)
    first = _views(picture(0), cfg, seed=1)
    assert first.shape == (3, 32, 32, 3) and first.dtype == np.uint8
    assert (first == _views(picture(0), cfg, seed=1)).all()
    assert not (first == _views(picture(0), cfg, seed=2)).all()
    assert not (first[0] == first[1]).all()


def test_orientation_is_applied_before_the_crop() -> None:
    """A picture twice as wide as high, lying on its side: upright, its left half is red."""
    upright = Image.new("RGB", (64, 32), "blue")
    upright.paste("red", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    cfg = ViewsConfig(count=1, jitter_p=0, gray_p=0, crop_scale=(1, 1))
    view = _views(data, cfg, 16)[0]
    assert view[8, 1].tolist() == [255, 0, 0] and view[8, 14].tolist() == [0, 0, 255]


def test_flip() -> None:
    flipped = _views(picture(1), PLAIN.model_copy(update={"flip_p": 1.0}))
    assert (flipped[:, :, ::-1] == _views(picture(1), PLAIN)).all()


def test_gray_is_luma() -> None:
    colour = _views(picture(1), PLAIN).astype(float)
    gray = _views(picture(1), ViewsConfig(jitter_p=0, gray_p=1)).astype(float)
    assert (gray == gray[..., :1]).all()
    assert abs(gray[..., 0] - colour @ [0.299, 0.587, 0.114]).max() <= 1


MIDDLE = (noise(24, 24, seed=4).astype(float) * 0.3 + 90).astype(np.uint8)
"""Colours that no step drives out of range."""


@pytest.mark.parametrize("places", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]])
@pytest.mark.parametrize("draws", [[0.1, 0.9, 0.3], [0.8, 0.2, 0.9]])
def test_brightness_contrast_saturation_are_torchvisions_in_any_order(places: list[float], draws: list[float]) -> None:
    mean = MIDDLE.reshape(-1, 3).mean(0)
    colours = jitter((0.4, 0.4, 0.4, 0.0), [*draws, 0.5], places, mean)
    ours = MIDDLE @ colours[:, :3].T + colours[:, 3]
    steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation]
    theirs = torch.from_numpy(MIDDLE).permute(2, 0, 1).float() / 255
    for step in sorted(range(3), key=places.__getitem__):
        theirs = steps[step](theirs, 0.6 + 0.8 * draws[step])
    assert abs(ours / 255 - theirs.permute(1, 2, 0).numpy()).max() < 2e-3


@pytest.mark.parametrize("draw", [0.0, 0.3, 0.5, 1.0])
def test_hue_turns_as_far_as_torchvisions_and_leaves_luma(draw: float) -> None:
    """YIQ's circle of hues is not HSV's: single colours may differ, the turn averaged over the circle may not."""
    circle = np.array([colorsys.hsv_to_rgb(hue, 0.3, 0.6) for hue in np.arange(0, 1, 1 / 24)]) * 255
    colours = jitter((0, 0, 0, 0.1), [0, 0, 0, draw], [0, 1, 2, 3], circle.mean(0))
    turned = circle @ colours[:, :3].T
    assert np.allclose(turned @ [0.299, 0.587, 0.114], circle @ np.array([0.299, 0.587, 0.114]), atol=0.02)
    turns = [(_hue(after) - _hue(before) + 0.5) % 1 - 0.5 for after, before in zip(turned, circle, strict=True)]
    theirs = 0.1 * (2 * draw - 1)
    assert abs(np.mean(turns) - theirs) < 0.01 and abs(np.array(turns) - theirs).max() < 0.06


def _hue(colour: np.ndarray) -> float:
    return colorsys.rgb_to_hsv(*(colour / 255).tolist())[0]


def test_jitter_and_gray_come_as_often_as_configured() -> None:
    data = encoded(Image.new("RGB", (8, 8), (180, 90, 40)))
    cfg = ViewsConfig(count=600, jitter_p=0.8, gray_p=0.2)
    views = _views(data, cfg, size=2)[:, 0, 0].astype(int)
    gray = (np.ptp(views, axis=1) == 0).mean()
    untouched = (views == [180, 90, 40]).all(axis=1).mean()
    assert abs(gray - 0.2) < 0.06 and abs(untouched - 0.2 * 0.8) < 0.06


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (5, 5)])
def test_tiny_and_extreme_pictures(size: tuple[int, int]) -> None:
    assert _views(encoded(Image.new("RGB", size, "red")), PLAIN).reshape(-1, 3).tolist()[0] == [255, 0, 0]


def test_bad_bytes_raise_the_reason() -> None:
    with pytest.raises(BadSample):
        _views(b"text", PLAIN)


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (500, 375), (375, 500), (333, 101), (30, 45), (225, 226)])
def test_eval_view_equals_timm(size: tuple[int, int]) -> None:
    image = Image.fromarray(noise(*size, seed=1))
    transform = create_transform(
        224, is_training=False, crop_pct=1.0, crop_mode="center", interpolation="bicubic", mean=(0,) * 3, std=(1,) * 3
    )
    theirs = (transform(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    ours = eval_view(image, 224)
    assert ours.dtype == np.uint8 and (ours == theirs).all()

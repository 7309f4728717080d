"""Coloured shapes drawn with Pillow, and an encoder that needs no training: it draws a text to compare it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ito_ray.data.write import Sample, write_shards
from ito_ray.evaluation.encoder import Embeddings

COLOURS = {
    "red": "#d62828",
    "orange": "#f3722c",
    "yellow": "#f9c74f",
    "green": "#2a9d3f",
    "teal": "#1b9aaa",
    "blue": "#2a5bd7",
    "purple": "#7b2cbf",
    "pink": "#ff6fa8",
    "brown": "#7f5539",
    "black": "#222222",
}
SHAPES = ("circle", "square", "triangle", "diamond", "bar", "cross")


def draw(colour: str, shape: str, *, size: int = 64, seed: int | None = None) -> Image.Image:
    """One shape on white; with a seed it is moved, scaled and slightly off its colour."""
    rng = np.random.default_rng(seed)
    radius, x, y = 0.32, 0.5, 0.5
    paint = np.array([int(COLOURS[colour][i : i + 2], 16) for i in (1, 3, 5)])
    if seed is not None:
        radius, x, y = rng.uniform(0.2, 0.36), rng.uniform(0.42, 0.58), rng.uniform(0.42, 0.58)
        paint = np.clip(paint + rng.integers(-25, 26, 3), 0, 255)
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    r, x, y = radius * size, x * size, y * size
    fill = (int(paint[0]), int(paint[1]), int(paint[2]))
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        pen.ellipse(box, fill)
    elif shape == "square":
        pen.rectangle(box, fill)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill)
    elif shape == "diamond":
        pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill)
    elif shape == "bar":
        pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill)
    else:
        pen.rectangle((x - r, y - r / 4, x + r, y + r / 4), fill)
        pen.rectangle((x - r / 4, y - r, x + r / 4, y + r), fill)
    return image


class ShapeEncoder:
    """Colour histogram and outline; a text is drawn first. One more axis keeps the modalities apart."""

    name = "shapes"

    def __init__(self) -> None:
        self.largest_call = 0

    def encode_images(self, images: Sequence[Image.Image]) -> Embeddings:
        self.largest_call = max(self.largest_call, len(images))
        return np.stack([self._describe(image, 0.25) for image in images])

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        return np.stack([self._describe(self._imagine(text), -0.25) for text in texts])

    @staticmethod
    def _imagine(text: str) -> Image.Image:
        words = text.split()
        colour = next((word for word in words if word in COLOURS), "black")
        shape = next((word for word in words if word in SHAPES), "bar")
        return draw(colour, shape)

    @staticmethod
    def _describe(image: Image.Image, side: float) -> Embeddings:
        pixels = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32) / 255
        ink = 1 - pixels.min(axis=2)
        mean = (pixels * ink[..., None]).sum((0, 1)) / ink.sum()
        outline = ink.reshape(8, 4, 8, 4).mean((1, 3)).ravel()
        colour = (mean - mean.mean()) * 2
        parts = [outline / np.linalg.norm(outline), colour, [side]]
        vector = np.concatenate(parts).astype(np.float32)
        return vector / np.linalg.norm(vector)


def write_shape_shards(folder: Path, count: int, *, seed: int = 0, per_shard: int = 50) -> Path:
    """`count` drawn pairs as tars; two captions each, meta `name` is the shape."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        out = io.BytesIO()
        draw(colour, shape, seed=seed + i).save(out, "PNG")
        captions = (f"a {colour} {shape}", f"{shape} number {i}")
        samples.append(Sample(f"{folder.name}-{i:05d}", out.getvalue(), captions, {"name": shape, "colour": colour}))
    write_shards(samples, folder, prefix="part", per_shard=per_shard, format="tar")
    return folder

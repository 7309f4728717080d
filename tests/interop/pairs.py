"""The pairs that every tool is given to write: pictures without loss, captions with what breaks naive readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.data.makers import picture

CAPTIONS = (
    "a plain caption",
    'a caption, with a comma and "quotes"',
    '"The quick brown fox" begins with a quote',
    "ein Caption mit Umlauten: äöüß; und Strichpunkt",
    "emoji 😀 and 日本語",
    "it's an apostrophe | and a pipe",
    "a # b: c / d % e {f} [g]",
    "a <tag> stays",
    "12345",
    "two words",
    "null",
    "[not a list",
)


@dataclass(frozen=True)
class Pair:
    """One pair; `stem` is the file name without its ending, as people have it: with dots and spaces."""

    stem: str
    image: bytes
    caption: str


PAIRS = tuple(
    Pair(f"Screenshot 2024-05-01 at 10.{number:02d}", picture(number), caption)
    for number, caption in enumerate(CAPTIONS)
)


def write_images(folder: Path) -> list[Path]:
    """A PNG for each pair, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{pair.stem}.png" for pair in PAIRS]
    for path, pair in zip(paths, PAIRS, strict=True):
        path.write_bytes(pair.image)
    return paths


def write_folder(folder: Path) -> Path:
    """name.png with name.txt beside it."""
    write_images(folder)
    for pair in PAIRS:
        (folder / f"{pair.stem}.txt").write_text(pair.caption, "utf-8")
    return folder


def by_name(*writers: Callable[[Path], Path]) -> dict[str, Callable[[Path], Path]]:
    """Writers by the names that tests have of them."""
    return {writer.__name__: writer for writer in writers}


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """The same captions, and the pixels of each."""
    assert set(found) == set(expected)
    for caption, pixels in expected.items():
        np.testing.assert_array_equal(found[caption], pixels)

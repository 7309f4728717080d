"""Held-out pairs: the same order every time, all captions, bad rows counted and passed over."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.decode import decode_rgb
from ito_ray.data.file_kinds import IMAGE_EXTENSIONS
from ito_ray.data.heldout import HeldoutReader
from ito_ray.errors import DataError
from tests.data.makers import encoded, good, good_tar, noise, picture, write_tar


def _reader(folder: Path, limit: int | None = None, max_pixels: int = 64_000_000) -> HeldoutReader:
    return HeldoutReader([str(folder)], ColumnsConfig(), limit=limit, max_pixels=max_pixels, field="data.heldout")


def test_order_content_and_account(tmp_path: Path) -> None:
    document = json.dumps({"captions": ["another &amp; more"], "name": "star"}).encode()
    write_tar(tmp_path / "b.tar", [("x", {"png": picture(7), "txt": b"one", "json": document}), ("y", {"txt": b"two"})])
    write_tar(tmp_path / "a.tar", [("m", good(0)), ("n", {"jpg": b"text", "txt": b"two"}), ("o", good(1))])
    reader = _reader(tmp_path)
    pairs = list(reader)
    assert [pair.key for pair in pairs] == ["m", "o", "x"]
    assert pairs[2].captions == ("one", "another & more") and pairs[2].meta == {"name": "star"}
    assert pairs[2].image.mode == "RGB"
    assert (np.asarray(pairs[2].image) == np.asarray(Image.open(io.BytesIO(picture(7))))).all()
    assert (reader.tally.read, reader.tally.delivered) == (5, 3)
    assert reader.tally.dropped == {"image_unreadable": 1, "missing_image": 1}
    assert [pair.key for pair in _reader(tmp_path)] == ["m", "o", "x"]


@pytest.mark.parametrize(("limit", "count"), [(0, 0), (3, 3), (None, 8), (100, 8)])
def test_limit_counts_good_pairs_and_reads_no_further(tmp_path: Path, limit: int | None, count: int) -> None:
    good_tar(tmp_path / "a.tar", 8)
    reader = _reader(tmp_path, limit)
    assert len(list(reader)) == count == reader.tally.read


def test_too_large_pictures_are_passed_over(tmp_path: Path) -> None:
    good_tar(tmp_path / "a.tar", 2)
    reader = _reader(tmp_path, max_pixels=10)
    assert list(reader) == [] and reader.tally.dropped == {"too_many_pixels": 2}


def test_the_message_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.heldout"):
        _reader(tmp_path)


@pytest.mark.parametrize("extension", IMAGE_EXTENSIONS)
def test_every_kind_of_image_is_found_in_a_tar(extension: str, tmp_path: Path) -> None:
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "jfif": "JPEG", "tif": "TIFF"}.get(extension, extension.upper())
    data = encoded(Image.fromarray(noise(24, 16)), kind)
    write_tar(tmp_path / "a.tar", [("s", {extension: data, "txt": b"a star"})])
    reader = HeldoutReader([str(tmp_path / "a.tar")], ColumnsConfig(), max_pixels=1000, field="data.heldout")
    [pair] = reader
    assert pair.image.tobytes() == decode_rgb(data, max_pixels=1000).tobytes() and pair.captions == ("a star",)

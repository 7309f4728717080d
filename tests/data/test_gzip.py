"""Compressed tars give the rows of the plain ones, piece by piece, and damage is reported as there."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.plan import Piece
from ito_ray.data.rows import Row, read_piece
from ito_ray.data.shards import list_shards, mean_sample_bytes, rows_in
from tests.data.makers import good_tar


def _rows(path: Path, parts: int = 1) -> list[Row]:
    return [row for part in range(parts) for row in read_piece(Piece(str(path), part, parts), ColumnsConfig())]


@pytest.mark.parametrize("name", ["b.tar.gz", "b.tgz"])
@pytest.mark.parametrize("parts", [1, 5])
def test_the_rows_of_the_plain_tar(tmp_path: Path, name: str, parts: int) -> None:
    good_tar(tmp_path / "a.tar", 30)
    (tmp_path / name).write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    plain, packed = _rows(tmp_path / "a.tar"), _rows(tmp_path / name, parts)
    assert [(row.key, row.image, row.captions) for row in packed] == [
        (row.key, row.image, row.captions) for row in plain
    ]
    (found,) = list_shards([str(tmp_path / "b*")], field="f")
    assert found.is_tar and found.is_gzipped
    assert rows_in(found, mean_sample_bytes([found])) == pytest.approx(30, rel=0.2)


def test_a_cut_file_loses_only_its_end(tmp_path: Path) -> None:
    good_tar(tmp_path / "a.tar", 30)
    packed = gzip.compress((tmp_path / "a.tar").read_bytes())
    (tmp_path / "b.tar.gz").write_bytes(packed[: len(packed) // 2])
    rows = _rows(tmp_path / "b.tar.gz")
    good = [row.key for row in rows if row.bad is None]
    assert 5 < len(good) < 30 and good == [f"s{number:03d}" for number in range(len(good))]
    assert [row.bad for row in rows if row.bad] == ["tar_truncated"]


def test_what_is_no_gzip_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "b.tar.gz").write_bytes(b"<html>" * 500)
    assert [row.bad for row in _rows(tmp_path / "b.tar.gz")] == ["not_a_tar"]

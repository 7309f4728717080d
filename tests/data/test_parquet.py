"""Parquet rows: all layouts people use, whole in pieces, and one bad page costs no other row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.plan import Piece
from ito_ray.data.rows import Row, read_piece
from tests.data.makers import damage, picture


def _write(path: Path, columns: dict[str, Any], *, group: int = 4) -> Path:
    table = pa.table(columns)
    pq.write_table(
        table, path, row_group_size=group, compression="none", write_page_checksum=True, use_dictionary=False
    )
    return path


def _read(path: Path, parts: int = 1, columns: ColumnsConfig | None = None) -> list[Row]:
    pieces = [Piece(str(path), part, parts) for part in range(parts)]
    return [row for piece in pieces for row in read_piece(piece, columns or ColumnsConfig())]


def _plain(count: int) -> dict[str, Any]:
    return {
        "key": [f"k{i}" for i in range(count)],
        "image": [picture(i) for i in range(count)],
        "caption": [f"caption {i}" for i in range(count)],
    }


def test_plain_columns(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", {**_plain(3), "width": [1, 2, 3], "vector": [[0.5], [1.5], [2.5]]})
    assert [(row.key, row.image, row.captions, row.meta, row.bad) for row in _read(path)] == [
        (f"k{i}", picture(i), (f"caption {i}",), {"width": i + 1}, None) for i in range(3)
    ]


def test_structs_lists_and_meta(tmp_path: Path) -> None:
    columns = {
        "image": [{"bytes": picture(i), "path": "x.png"} for i in range(2)],
        "captions": [["one", " two ", "one"], ["three"]],
        "meta": [json.dumps({"name": "star"}), None],
        "split": ["a", "b"],
    }
    rows = _read(_write(tmp_path / "a.parquet", columns))
    assert [row.captions for row in rows] == [("one", "two"), ("three",)]
    assert [row.meta for row in rows] == [{"split": "a", "name": "star"}, {"split": "b"}]
    assert [row.key for row in rows] == ["row 0", "row 1"]
    assert rows[0].image == picture(0)


def test_columns_can_be_renamed(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", {"url": ["u"], "webp": [b"x"], "alt": ["text"]})
    (row,) = _read(path, columns=ColumnsConfig(key=("url",), image=("webp",), captions=("nothing", "alt")))
    assert (row.key, row.image, row.captions, row.bad) == ("u", b"x", ("text",), None)


def test_bad_content_is_counted_row_by_row(tmp_path: Path) -> None:
    not_utf8 = pa.array([b"fine", b"caf\xe9", b"  ", None, b"fine", b"fine", b"fine"]).view(pa.string())
    columns = {
        "key": ["a", "b", "c", "d", "e", "f", "a"],
        "image": [b"x", b"x", b"x", b"x", None, b"x", b"x"],
        "caption": not_utf8,
        "meta": [None, None, None, None, None, "{broken", None],
    }
    rows = _read(_write(tmp_path / "a.parquet", columns))
    assert [row.bad for row in rows] == [
        None,
        "caption_not_utf8",
        "empty_caption",
        "missing_caption",
        "missing_image",
        "bad_json",
        "duplicate_key",
    ]


def test_a_caption_that_is_not_utf8_costs_only_itself(tmp_path: Path) -> None:
    texts = pa.array([b"fine", b"caf\xe9", b"x", b"caf\xe9"]).view(pa.string())
    captions = pa.ListArray.from_arrays([0, 1, 3, 4], texts)
    rows = _read(_write(tmp_path / "a.parquet", {"image": [b"x"] * 3, "captions": captions}))
    assert [row.bad for row in rows] == [None, None, "caption_not_utf8"]
    assert [row.captions for row in rows] == [("fine",), ("x",), ()]
    assert [row.notes for row in rows] == [(), ("caption_not_utf8",), ()]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"image": [b"x"]}, "missing_caption"),
        ({"caption": ["text"]}, "missing_image"),
        ({"image": ["a path"], "caption": ["text"]}, "missing_image"),
        ({"image": [b"x"], "caption": [7]}, "missing_caption"),
    ],
)
def test_columns_missing_or_of_another_type(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    assert [row.bad for row in _read(_write(tmp_path / "a.parquet", columns))] == [reason]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(0, 60), group=st.integers(1, 70), parts=st.integers(1, 20))
def test_pieces_are_the_whole(tmp_path: Path, count: int, group: int, parts: int) -> None:
    keys = [f"k{i}" for i in range(count)]
    columns = {"key": pa.array(keys, pa.string()), "image": pa.array([b"x"] * count, pa.binary()), "caption": keys}
    path = _write(tmp_path / "a.parquet", columns, group=group)
    assert [row.key for row in _read(path, parts)] == keys


def test_pieces_follow_row_groups_that_are_near(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", _plain(22), group=5)
    sizes = [len(list(read_piece(Piece(str(path), part, 4), ColumnsConfig()))) for part in range(4)]
    assert sizes == [5, 5, 5, 7]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"no footer" * 50 + b"PAR1"])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_bad_footer_is_one_row(tmp_path: Path, content: bytes, parts: int) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    (row,) = _read(tmp_path / "a.parquet", parts)
    assert row.bad == "parquet_unreadable" and row.detail and row.url.endswith("a.parquet")


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path, parts: int) -> None:
    path = _write(tmp_path / "a.parquet", _plain(12), group=4)
    column = pq.read_metadata(path).row_group(1).column(1)
    damage(path, column.data_page_offset + column.total_compressed_size // 2, b"\xff" * 64)
    rows = _read(path, parts)
    assert [row.key for row in rows if row.bad is None] == [f"k{i}" for i in (0, 1, 2, 3, 8, 9, 10, 11)]
    assert [row.bad for row in rows if row.bad] == ["parquet_unreadable"] * 4


def test_a_failing_disk_is_no_bad_data(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _read(tmp_path / "gone.parquet")

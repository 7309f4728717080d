"""Parquet rows: all layouts people use, whole in pieces, and one bad page costs no other row."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from tests.data.makers import damage, picture, write_tar


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


TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]
BYTES_TYPES = [
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.binary(3),
    pa.struct([("bytes", pa.large_binary()), ("path", pa.string_view())]),
]


def _as(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
@pytest.mark.parametrize("listed", [None, pa.list_, pa.large_list], ids=["plain", "list", "large_list"])
def test_every_type_of_text(tmp_path: Path, kind: pa.DataType, listed: Any) -> None:
    captions = _as(["one", None, "two", "one"], kind)
    if listed is pa.list_:
        captions = pa.ListArray.from_arrays([0, 1, 2, 3, 4], captions)
    if listed is pa.large_list:
        captions = pa.LargeListArray.from_arrays(pa.array([0, 1, 2, 3, 4], pa.int64()), captions)
    columns = {
        "key": _as(["a", "b", "c", "d"], kind),
        "image": [b"x"] * 4,
        "caption": captions,
        "meta": _as(['{"n": 1}', None, "{}", '{"n": 2}'], kind),
        "split": _as(["train", "val", None, "val"], kind),
    }
    rows = _read(_write(tmp_path / "a.parquet", columns))
    assert [(row.key, row.captions, row.bad) for row in rows] == [
        ("a", ("one",), None),
        ("b", (), "missing_caption"),
        ("c", ("two",), None),
        ("d", ("one",), None),
    ]
    assert [row.meta for row in rows if row.bad is None] == [
        {"split": "train", "n": 1},
        {"split": None},
        {"split": "val", "n": 2},
    ]


@pytest.mark.parametrize("kind", BYTES_TYPES, ids=str)
def test_every_type_of_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    values: list[Any] = [b"abc", None, b"def"]
    if pa.types.is_struct(kind):
        values = [value and {"bytes": value, "path": "x.jpg"} for value in values]
    rows = _read(_write(tmp_path / "a.parquet", {"image": pa.array(values, kind), "caption": ["one"] * 3}))
    assert [(row.image, row.bad) for row in rows] == [(b"abc", None), (None, "missing_image"), (b"def", None)]


def test_images_and_captions_in_whichever_column_is_filled(tmp_path: Path) -> None:
    columns = {
        "jpg": [b"one", None, b"", None],
        "png": pa.array(
            [{"bytes": None}, {"bytes": b"two"}, {"bytes": b"three"}, None], pa.struct([("bytes", "binary")])
        ),
        "caption": ["a", None, "", "d"],
        "text": ["b", "b", "c", None],
    }
    rows = _read(_write(tmp_path / "a.parquet", columns))
    assert [(row.image, row.captions, row.bad) for row in rows] == [
        (b"one", ("a",), None),
        (b"two", ("b",), None),
        (b"three", ("c",), None),
        (None, (), "missing_image"),
    ]


def test_a_column_of_addresses_beside_one_of_bytes(tmp_path: Path) -> None:
    (row,) = _read(_write(tmp_path / "a.parquet", {"image": ["cat.jpg"], "jpg": [b"x"], "caption": ["a"]}))
    assert (row.image, row.bad) == (b"x", None)


def test_meta_that_is_text(tmp_path: Path) -> None:
    texts = ["a note", "5", '["a"]', '{"n": 1}', "{'n': 1}", None]
    columns = {"image": [b"x"] * 6, "caption": ["a"] * 6, "meta": texts, "notes": [*texts[:4], '{"m": 2}', None]}
    path = _write(tmp_path / "a.parquet", columns)
    rows = _read(path)
    assert [row.bad for row in rows] == [None] * 6
    assert [row.meta.get("meta") for row in rows] == [*texts[:3], None, texts[4], None]
    assert rows[3].meta == {"n": 1, "notes": '{"n": 1}'}
    rows = _read(path, columns=ColumnsConfig(meta=()))
    assert [row.meta["meta"] for row in rows] == texts
    rows = _read(path, columns=ColumnsConfig(meta=("notes",)))
    assert [row.meta for row in rows][4:] == [{"meta": "{'n': 1}", "m": 2}, {"meta": None}]


@pytest.mark.parametrize("kind", [*TEXT_TYPES, pa.binary(), pa.large_binary()], ids=str)
def test_json_of_a_sample_in_a_column(tmp_path: Path, kind: pa.DataType) -> None:
    documents = _as(['{"caption": "a", "n": 1}', '{"caption": ', None], kind)
    rows = _read(_write(tmp_path / "a.parquet", {"jpg": [b"x"] * 3, "json": documents}))
    assert [(row.captions, row.meta, row.bad) for row in rows] == [
        (("a",), {"n": 1}, None),
        ((), {}, "bad_json"),
        ((), {}, "missing_caption"),
    ]


def test_capitals_of_names_do_not_matter(tmp_path: Path) -> None:
    (row,) = _read(_write(tmp_path / "a.parquet", {"ID": ["a"], "Image": [b"x"], "Caption": ["one"]}))
    assert (row.key, row.image, row.captions) == ("a", b"x", ("one",))
    columns = {"image": [b"x"], "Caption": ["another"], "caption": ["as it is written"]}
    (row,) = _read(_write(tmp_path / "b.parquet", columns))
    assert (row.captions, row.meta) == (("as it is written",), {"Caption": "another"})


def test_lists_of_lists(tmp_path: Path) -> None:
    captions = pa.array([[["a", "b"], ["c"]], [[], None], None], pa.list_(pa.large_list(pa.large_string())))
    rows = _read(_write(tmp_path / "a.parquet", {"image": [b"x"] * 3, "captions": captions}))
    assert [(row.captions, row.bad) for row in rows] == [
        (("a", "b", "c"), None),
        ((), "missing_caption"),
        ((), "missing_caption"),
    ]


def test_a_time_that_python_does_not_know_costs_one_row(tmp_path: Path) -> None:
    times = pa.array([0, 400_000_000_000_000, 1], pa.timestamp("s"))
    rows = _read(_write(tmp_path / "a.parquet", {"id": times, "image": [b"x"] * 3, "caption": ["a"] * 3}))
    assert [(row.key, row.bad) for row in rows] == [
        ("1970-01-01 00:00:00", None),
        ("row 1", "unexpected_error"),
        ("1970-01-01 00:00:01", None),
    ]
    assert "column 'id'" in rows[1].detail
    rows = _read(_write(tmp_path / "b.parquet", {"taken": times, "image": [b"x"] * 3, "caption": ["a"] * 3}))
    assert [row.bad for row in rows] == [None] * 3
    rows = _read(_write(tmp_path / "c.parquet", {"image": [b"x"] * 3, "caption": times}))
    assert [row.bad for row in rows] == ["missing_caption"] * 3


def test_one_name_for_two_columns_is_a_reason(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([b"x"]), pa.array(["a"]), pa.array(["b"])], ["image", "caption", "caption"])
    pq.write_table(table, tmp_path / "a.parquet")
    (row,) = _read(tmp_path / "a.parquet")
    assert row.bad == "parquet_unreadable" and "caption" in row.detail


def test_what_datasets_makes_of_a_tar_reads_as_the_tar(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    samples = [
        ("a", {"png": picture(0), "txt": b"one", "json": b'{"caption": "two", "width": 3}'}),
        ("b", {"png": picture(1), "txt": b"three", "json": b'{"caption": null, "width": 4}'}),
    ]
    write_tar(tmp_path / "a.tar", samples)
    found = datasets.load_dataset(
        "webdataset", data_files=str(tmp_path / "a.tar"), split="train", cache_dir=str(tmp_path / "cache")
    )
    found.to_parquet(str(tmp_path / "a.parquet"))
    tar, parquet = (_read(tmp_path / name) for name in ("a.tar", "a.parquet"))
    assert [(row.key, row.captions, row.image, row.bad) for row in parquet] == [
        (row.key, row.captions, row.image, row.bad) for row in tar
    ]
    assert [row.captions for row in parquet] == [("one", "two"), ("three",)]
    assert [row.meta["width"] for row in parquet] == [3, 4]

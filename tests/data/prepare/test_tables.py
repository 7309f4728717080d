"""Tables of every kind: the right pictures, captions and classes from each."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ito_ray.data.prepare.listing import ListedSource
from ito_ray.data.prepare.tables import list_classes, open_table
from ito_ray.errors import DataError
from tests.data.prepare.table_files import ROWS, listed, pairs, write


@pytest.mark.parametrize("orient", ["lines", "records"])
def test_pandas_json(tmp_path: Path, orient: Any) -> None:
    frame = pd.DataFrame(ROWS, columns=["image", "caption"])
    path = tmp_path / "t.json"
    frame.to_json(path, orient="records", lines=orient == "lines")
    assert pairs(path) == ROWS


@pytest.mark.parametrize("suffix", [".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zst", ".csv", ".jsonl.gz"])
def test_packed_tables(tmp_path: Path, suffix: str) -> None:
    rows = [(f"{n}.png", f"x {n * 7919}") for n in range(3000)]
    lines = [json.dumps({"image": image, "caption": caption}) for image, caption in rows]
    if ".csv" in suffix:
        lines = ["image,caption", *map(",".join, rows)]
    data = "\n".join(lines).encode()
    packed = {
        ".gz": gzip.compress(data[:50]) + gzip.compress(data[50:]),
        ".bz2": bz2.compress(data),
        ".xz": lzma.compress(data),
        ".zst": bytes(pa.compress(data, "zstd")),
        ".csv": gzip.compress(data),  # by its content, whatever its name
    }["." + suffix.rpartition(".")[2]]
    path = tmp_path / f"t{suffix}"
    path.write_bytes(packed)
    assert pairs(path) == rows
    path.write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(DataError, match="cannot be read to its end"):
        listed(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"PK\x03\x04xx", "an Excel workbook"),
        ("t.csv", b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
        ("t.csv", b"PAR1", "let its name end in .parquet"),
        ("t.csv", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("t.json", b'{"images": [], "annotations": []}', "use prepare coco"),
        ("t.json", b'[\n {"image": "a.png",\n  "caption": "x"},\n', "is not JSON: "),
        ("t.json", b'{"image": {"0": "a.png"}, "caption": {"0": "x"}}', "orient='records'"),
    ],
)
def test_files_of_another_kind_are_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        listed(tmp_path / name)


def test_tables_that_cannot_be_opened_are_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / ("x" * 300 + ".csv"), tmp_path / "none.csv"):
        with pytest.raises(DataError, match="There is no table"):
            listed(path)


def test_json_columns_are_those_of_all_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "a.png"},
        {"image": "b.png", "caption": "x"},
        {"caption": ["y", "z"], "image": "c.png"},
    ]
    for text in ("\n".join(map(json.dumps, rows)), json.dumps(rows, indent=1)):
        for suffix in (".json", ".jsonl"):
            found = listed(write(tmp_path / f"t{suffix}", text))
            assert [row.captions for row in found] == [[], ["x"], ["y", "z"]]


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    text = '{"image": "a.png", "caption": "x", "score": NaN, "deep": [{"a": -Infinity}, 1.5]}\n'
    (row,) = listed(write(tmp_path / "t.jsonl", text))
    assert row.meta == {"score": None, "deep": [{"a": None}, 1.5]}
    table = pa.table({"image": ["a.png", None], "caption": ["x", "y"], "score": [float("nan"), 1.0]})
    pq.write_table(table, tmp_path / "t.parquet")
    row, bad = listed(tmp_path / "t.parquet")
    assert row.meta == {"score": None}
    assert (bad.bad, bad.detail) == ("missing_image", "column 'image' is empty")


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ('["a", "b, c"]', ["a", "b, c"]),
        ("['a', \"it's\"]", ["a", "it's"]),
        ("['a' 'b']", ["a", "b"]),
        ("['a'\n 'b']", ["a", "b"]),
        ("[a cat] in brackets", ["[a cat] in brackets"]),
        ("[cat]", ["[cat]"]),
        ("[1, 2]", ["[1, 2]"]),
        ('["a", null]', ["a"]),
        ('[["a"], ["b"]]', ["a", "b"]),
        ("['a', None, nan]", ["a"]),
        ("['a', f(x)]", ["['a', f(x)]"]),
        ("[]", []),
        ("['a']['b']", ["['a']['b']"]),
    ],
)
def test_a_list_in_a_cell_is_a_list_of_captions(tmp_path: Path, cell: str, captions: list[str]) -> None:
    pd.DataFrame({"image": ["a.png"], "caption": [cell]}).to_csv(tmp_path / "t.csv", index=False)
    assert listed(tmp_path / "t.csv")[0].captions == captions


def test_lists_as_pandas_writes_them(tmp_path: Path) -> None:
    lists = [["a dog", "it's a dog"], ['so "small"', "x"]]
    for column in (lists, [np.array(one, object) for one in lists]):
        pd.DataFrame({"image": ["a.png", "b.png"], "caption": column}).to_csv(tmp_path / "t.csv", index=False)
        assert [row.captions for row in listed(tmp_path / "t.csv")] == lists


@pytest.mark.parametrize("image", [".", "/", "..", "x" * 300, "a\x00.png", "http://x/?id=1.5", "http://x/?id=1.7"])
def test_any_text_may_stand_where_a_path_belongs(tmp_path: Path, image: str) -> None:
    (row,) = listed(write(tmp_path / "t.jsonl", json.dumps({"image": image, "caption": "x"})))
    assert row.bad is None
    assert row.key == image or not image.startswith("http")


def test_capitals_of_names_do_not_matter(tmp_path: Path) -> None:
    assert pairs(write(tmp_path / "t.csv", "URL,TEXT\nhttp://x/a.png,x\n")) == [("a.png", "x")]


def test_parquet_values_that_python_cannot_hold_cost_no_others(tmp_path: Path) -> None:
    times = pa.array([0, 400_000_000_000_000_000], pa.timestamp("us"))
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff\xfe"], pa.binary()).buffers())
    lists = pa.ListArray.from_arrays([0, 1, 2], broken)
    for captions in (broken, lists):
        table = pa.table({"image": ["a.png", "b.png"], "caption": captions, "time": times})
        pq.write_table(table, tmp_path / "t.parquet")
        rows = listed(tmp_path / "t.parquet")
        assert [row.captions for row in rows] == [["ok"], ["\udcff\udcfe"]]
        assert [row.meta for row in rows] == [{}, {}]


def test_bytes_are_text_where_captions_belong_and_no_path_where_a_picture_does(tmp_path: Path) -> None:
    captions = pa.array([b"ok", b"\xff"], pa.binary())
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "caption": captions}), tmp_path / "t.parquet")
    assert [row.captions for row in listed(tmp_path / "t.parquet")] == [["ok"], ["\udcff"]]
    pq.write_table(pa.table({"image": captions, "caption": ["x", "y"]}), tmp_path / "t.parquet")
    assert {(row.bad, row.detail) for row in listed(tmp_path / "t.parquet")} == {
        ("missing_image", "column 'image' holds the picture itself, not its path: use prepare shards")
    }


def test_a_number_is_no_caption(tmp_path: Path) -> None:
    (row,) = listed(write(tmp_path / "t.jsonl", '{"image": "a.png", "caption": 1984}'))
    source = ListedSource.write([row], tmp_path / "listing.parquet", {})
    assert [row.bad for _, row in source.read(0)] == ["caption_not_text"]
    (row,) = listed(write(tmp_path / "t.jsonl", '{"image": "a.png", "caption": ["x", 7, NaN, null]}'))
    assert row.captions == ["x", 7]


def _labels(path: Path, column: str = "label") -> list[tuple[str, list[str], str | None]]:
    return [(Path(row.image).name, row.captions, row.bad) for row in list_classes(path, column)]


def test_classes_of_tables(tmp_path: Path) -> None:
    text = 'image,"label, in English"\na.png,"ice  cream, vanilla "\nb.png,1\nc.png,\na.png,"ice cream, vanilla"\n'
    path = write(tmp_path / "t.csv", text)
    assert open_table(path).names == ("image", "label, in English")
    assert _labels(path, "label, in English") == [
        ("a.png", ["ice cream, vanilla"], None),
        ("b.png", ["1"], None),
        ("", [], "missing_class"),
    ]
    rows = [("a.png", 1), ("b.png", 2.0), ("c.png", 2.5), ("d.png", True), ("e.png", None), ("f.png", float("nan"))]
    text = "\n".join(json.dumps({"image": image, "label": label}) for image, label in rows)
    found = _labels(write(tmp_path / "t.jsonl", text))
    assert [label for _, label, _ in found] == [["1"], ["2"], ["2.5"], ["True"], [], []]
    names = pd.Series(["cat", "dog"], dtype="category")
    pd.DataFrame({"image": ["a.png", "b.png"], "label": names}).to_parquet(tmp_path / "t.parquet")
    assert _labels(tmp_path / "t.parquet") == [("a.png", ["cat"], None), ("b.png", ["dog"], None)]


def test_a_picture_of_two_classes_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,label\na.png,cat\nb.png,cat\na.png,dog\n")
    (a, b) = list_classes(path, "label")
    assert (a.bad, a.detail, b.bad) == ("several_classes", "'cat' and 'dog'", None)

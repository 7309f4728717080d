"""Every kind of source gives the same pairs; what is wrong in it is a reason or a sentence."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.prepare import stored
from ito_ray.data.prepare.folders import list_coco, list_pairs
from ito_ray.data.prepare.listing import ListedSource, load
from ito_ray.data.prepare.source import plain_meta, safe_key
from ito_ray.data.prepare.stored import HuggingFaceSource, ShardSource
from ito_ray.data.prepare.tables import Columns, list_table
from ito_ray.errors import ConfigError, DataError
from tests.data.makers import good, picture, write_tar
from tests.data.prepare.makers import caption, write_coco, write_csv, write_pictures


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return write_pictures(tmp_path / "images", 6)


def _rows(tmp: Path, pictures: list[Path]) -> list[dict[str, Any]]:
    """Captions in two rounds, so that rows of one picture are not neighbours."""
    return [
        {
            "image": str(path.relative_to(tmp / "images")),
            "caption": caption(number, which),
            "licence": "CC0",
            "n": number,
        }
        for which in (0, 1)
        for number, path in enumerate(pictures)
    ]


def _write_table(tmp: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = tmp / f"table.{kind}"
    if kind in ("csv", "tsv"):
        return write_csv(path, rows, "," if kind == "csv" else "\t")
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_of_all_kinds_give_the_same_samples(tmp_path: Path, pictures: list[Path], kind: str) -> None:
    listed, notes = list_table(_write_table(tmp_path, kind, _rows(tmp_path, pictures)), tmp_path / "images", Columns())
    assert notes == {"rows": 12, "merged_rows": 6}
    assert [load(one).image for one in listed] == [path.read_bytes() for path in pictures]
    assert [load(one).captions for one in listed] == [(caption(n, 0), caption(n, 1)) for n in range(6)]
    assert listed[1].key == "part1/img.0001"
    number: int | str = 1 if kind in ("jsonl", "parquet") else "1"
    assert dict(listed[1].meta) == {"licence": "CC0", "n": number}


def test_a_table_without_the_columns_names_those_that_it_has(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [{"photo_name": "a.jpg", "words": "x"}])
    with pytest.raises(DataError, match=r"give --image-column, one of photo_name, words"):
        list_table(table, None, Columns())
    with pytest.raises(DataError, match=r"--caption-columns='text' is no column of .*: it has photo_name, words"):
        list_table(table, None, Columns(image="photo_name", captions=("text",)))
    listed, _ = list_table(table, None, Columns(image="photo_name", captions=("words",)))
    assert listed[0].captions == ["x"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "has no rows"),
        ("t.csv", "image,caption\n", "has no rows"),
        ("t.csv", "image,image,caption\na,b,c\n", "names a column twice"),
        ("t.xlsx", "x", "ends in '.xlsx'"),
        ("t.parquet", "not parquet", "cannot be read as Parquet"),
        ("none.csv", None, "There is no table"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list_table(tmp_path / name, None, Columns())


def test_bad_rows_of_tables_are_inputs_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "empty.png").write_bytes(b"")
    lines = [b"image,caption", b"a.png,fine", b"too,many,fields", b",no image", b"gone.png,x", b"empty.png,x"]
    (tmp_path / "t.csv").write_bytes(b"\n".join([*lines, b"caf\xe9.png,x", b"b.png,caf\xe9", b"c.png,", b""]))
    listed, _ = list_table(tmp_path / "t.csv", None, Columns())
    source = ListedSource.write(listed, tmp_path / "listing.parquet", {})
    reasons = {row.key: row.bad for piece in range(source.pieces) for _, row in source.read(piece)}
    assert reasons == {
        "a": None,
        "gone": "missing_file",
        "empty": "missing_image",
        "caf\\udce9": "name_not_utf8",
        "b": "caption_not_utf8",
        "c": "missing_caption",
        "line 3": "bad_row",
        "line 4": "missing_image",
    }
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "caption": "x"}\n{broken\n[1]\n')
    listed, _ = list_table(tmp_path / "t.jsonl", None, Columns())
    assert [(one.key, one.bad) for one in listed] == [("a", None), ("line 2", "bad_row"), ("line 3", "bad_row")]


def test_text_that_looks_like_a_number_or_nothing_stays_text(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [{"key": "0007", "image": "1.png", "caption": "NA"}])
    (one,), _ = list_table(table, None, Columns(key="key"))
    assert (one.key, one.captions) == ("0007", ["NA"])


def test_folder_of_pairs(tmp_path: Path, pictures: list[Path]) -> None:
    for number, path in enumerate(pictures[:-1]):
        text = path.with_name(path.name + ".txt") if number % 2 else path.with_suffix(".txt")
        text.write_text(caption(number) + "\n", encoding="utf-8")
    (tmp_path / "images" / "lonely.txt").write_text("x")
    (tmp_path / "images" / "readme.md").write_text("x")
    (tmp_path / "images" / ".hidden.txt").write_text("x")
    listed, notes, salt = list_pairs(tmp_path / "images")
    assert notes == {"other_files": 1, "hidden_or_foreign_files_and_folders": 1}
    rows = {row.key: row for row in map(load, listed)}
    for number, path in enumerate(pictures[:-1]):
        row = rows[str(path.relative_to(tmp_path / "images").with_suffix(""))]
        assert (row.image, row.captions, row.bad) == (path.read_bytes(), (caption(number),), None)
    assert {row.key: row.bad for row in rows.values() if row.bad} == {
        "part1/img.0005": "missing_caption",
        "lonely": "missing_image",
    }
    os.utime(pictures[0], ns=(1, 1))
    assert list_pairs(tmp_path / "images")[2] != salt


def test_folders_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no picture .*: 1 .txt, 0 other files"):
        list_pairs(tmp_path)
    with pytest.raises(DataError, match="There is no folder"):
        list_pairs(tmp_path / "none")


def test_coco(tmp_path: Path, pictures: list[Path]) -> None:
    path = write_coco(tmp_path / "captions.json", pictures, tmp_path / "images")
    listed, _ = list_coco(path, tmp_path / "images")
    rows = [load(one) for one in listed]
    assert [row.key for row in rows] == [str(100 + n) for n in range(6)]
    assert [row.image for row in rows] == [path.read_bytes() for path in pictures]
    assert [row.captions for row in rows] == [(caption(n, 0), caption(n, 1)) for n in range(6)]
    assert rows[0].meta == {"file_name": "part0/img.0000.png", "height": 24}


def test_bad_coco(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}, {"file_name": "c.png"}]
    notes = [{"image_id": 1, "caption": "x"}, {"image_id": 9, "caption": "y"}, {"image_id": 1}]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    listed, _ = list_coco(path, tmp_path)
    assert [(one.key, one.bad) for one in listed] == [
        ("1", None),
        ("1", None),
        ("images[2]", "bad_row"),
        ("annotations[1]", "annotation_without_image"),
        ("annotations[2]", "bad_row"),
    ]
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 1, "bbox": []}]}))
    with pytest.raises(DataError, match=r"have no caption, only bbox, image_id: give the file captions_"):
        list_coco(path, tmp_path)
    for content, message in (("[]", "holds a list"), ("{", "is not JSON"), ('{"images": []}', "it has images")):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            list_coco(path, tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        list_coco(path, tmp_path / "none")


def test_coco_of_any_content_is_bad_rows_or_a_sentence(tmp_path: Path) -> None:
    images = [{"id": [1], "file_name": "a.png"}, {"id": 2, "file_name": "\0", "x": float("nan")}, 3, {"id": 4}]
    notes = [{"image_id": [1], "caption": "x"}, {"image_id": 2, "caption": "y"}, {"image_id": 2, "caption": ["z"]}, 5]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    listed, _ = list_coco(path, tmp_path)
    assert [(row.key, row.bad) for row in map(load, listed)] == [
        ("images[0]", "bad_row"),
        ("2", "file_not_readable"),
        ("images[2]", "bad_row"),
        ("images[3]", "bad_row"),
        ("annotations[0]", "annotation_without_image"),
        ("annotations[2]", "bad_row"),
        ("annotations[3]", "bad_row"),
    ]
    assert dict(listed[1].meta) == {"file_name": "\0", "x": None}
    path.write_bytes(b"\x1f\x8b broken")
    for wrong, message in (
        (path, "cannot be read to its end"),
        (tmp_path, "There is no file"),
        (Path("x" * 300), "no file"),
    ):
        with pytest.raises(DataError, match=message):
            list_coco(wrong, tmp_path)


def _saved(folder: Path, count: int = 7) -> Path:
    table = {
        "image": [{"bytes": picture(n), "path": None} for n in range(count)],
        "caption": [[caption(n, 0), caption(n, 1)] for n in range(count)],
        "label": list(range(count)),
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.List(datasets.Value("string")),
            "label": datasets.Value("int64"),
        }
    )
    saved = datasets.Dataset.from_dict(table, features=features)
    datasets.DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(folder)
    return folder


def test_saved_hugging_face_data_set(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "saved")
    source = HuggingFaceSource.open(folder, "train", "", (), "")
    rows = dict(source.read(0))
    assert [rows[n].image for n in range(7)] == [picture(n) for n in range(7)]
    assert rows[3].captions == (caption(3, 0), caption(3, 1))
    assert (rows[3].key, rows[3].meta) == ("000000003", {"label": 3})
    assert dict(source.read(0, {4, 6})) == {4: rows[4], 6: rows[6]}
    for arguments, message in (
        (("", "", (), ""), "has the splits train, test: give --split"),
        (("train", "photo", (), ""), "has the columns image, caption, label: give --image-column"),
        (("train", "", ("label2",), ""), "give --caption-columns"),
    ):
        with pytest.raises(DataError, match=message):
            HuggingFaceSource.open(folder, *arguments)
    with pytest.raises(DataError, match="is no data set saved with save_to_disk"):
        HuggingFaceSource.open(tmp_path, "train", "", (), "")


def test_values_that_python_cannot_hold_cost_no_row_of_a_saved_data_set(tmp_path: Path) -> None:
    times = pa.array([0, 400_000_000_000_000_000], pa.timestamp("us"))
    table = pa.table(
        {"image": [{"bytes": picture(n), "path": None} for n in (0, 1)], "caption": ["x", "y"], "t": times}
    )
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    source = HuggingFaceSource.open(tmp_path / "saved", "", "", (), "")
    assert [(row.image, row.captions) for _, row in source.read(0)] == [(picture(0), ("x",)), (picture(1), ("y",))]


def test_without_datasets_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored._open.cache_clear()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install \"ito_ray\[huggingface\]\""):
        HuggingFaceSource.open(tmp_path, "", "", (), "")


def test_shards_are_read_in_runs_each_row_once(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ((f"k{n:04d}", good(n)) for n in range(300)))
    source = ShardSource.open([str(tmp_path)], "own", ColumnsConfig())
    assert source.pieces > 1
    rows = [row for piece in range(source.pieces) for _, row in source.read(piece)]
    assert [row.key for row in rows] == [f"k{n:04d}" for n in range(300)]
    everything = dict(source.read(1))
    assert dict(source.read(1, {2, 5})) == {2: everything[2], 5: everything[5]}


def test_keys_that_begin_anew_in_every_shard_can_be_told_apart(tmp_path: Path) -> None:
    for name in ("x/a", "y/a", "y/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / f"{name}.tar", [("0", good(0))])
    table = pa.table({"image": [picture(0)], "caption": ["x"]})
    pq.write_table(table, tmp_path / "y" / "c.parquet")
    pq.write_table(table, tmp_path / "y" / "d.parquet")

    def keys(kind: Any) -> list[str]:
        source = ShardSource.open([str(tmp_path)], kind, ColumnsConfig())
        return [row.key for piece in range(source.pieces) for _, row in source.read(piece)]

    assert keys("own") == ["0", "0", "0", "y/c/row 0", "y/d/row 0"]
    assert keys("shard") == ["x/a/0", "y/a/0", "y/b/0", "y/c/row 0", "y/d/row 0"]


@pytest.mark.parametrize("key", ["a/b.c", "ü" * 200, "", "a\nb", "x" * 80, "plain-key_1%2E"])
def test_safe_keys_fit_a_tar_and_stay_as_they_are_once_safe(key: str) -> None:
    safe = safe_key(key)
    assert 0 < len(safe.encode()) <= 80
    assert not set(safe) & set("./\\\n")
    assert safe_key(safe) == safe


def test_long_keys_that_differ_stay_different() -> None:
    assert safe_key("x" * 200 + "1") != safe_key("x" * 200 + "2")


def test_meta_is_what_json_holds() -> None:
    meta = plain_meta({"text": "t", "b": b"\xff", "n": np.float64(1.5), "bad": "\ud800", "o": object(), "l": [b"x"]})
    assert meta == {"text_": "t", "b": "\\xff", "n": 1.5, "bad": "?", "l": ["b'x'"]}

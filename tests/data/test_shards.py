"""Shards are found wherever they lie, and what is not one is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as arrow_fs

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data import shards as module
from ito_ray.data.plan import Piece
from ito_ray.data.rows import read_piece
from ito_ray.data.shards import Shard, list_shards, mean_sample_bytes, open_fs, rows_in
from ito_ray.errors import DataError
from tests.data.makers import good_tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("000.tar", "001.tar", "002.tar", "deep/er/003.tar", "deep/004.parquet", "note.txt", ".hidden.tar"):
        (tmp_path / name).write_bytes(b"x" * 600)
    return tmp_path


def _names(found: tuple[Shard, ...], folder: Path) -> list[str]:
    return [str(Path(shard.url).relative_to(folder)) for shard in found]


def test_braces_globs_folders_and_files(folder: Path) -> None:
    assert _names(list_shards([f"{folder}/{{000..001}}.tar"], field="f"), folder) == ["000.tar", "001.tar"]
    assert _names(list_shards([f"{folder}/*"], field="f"), folder)[:3] == ["000.tar", "001.tar", "002.tar"]
    everything = ["000.tar", "001.tar", "002.tar", "deep/004.parquet", "deep/er/003.tar"]
    assert _names(list_shards([str(folder)], field="f"), folder) == everything
    assert _names(list_shards([f"{folder}/**/*.parquet"], field="f"), folder) == ["deep/004.parquet"]


def test_sorted_once_each_with_size(folder: Path) -> None:
    found = list_shards([f"{folder}/002.tar", str(folder), f"file://{folder}/000.tar"], field="f")
    assert len(found) == 5 and list(found) == sorted(found, key=lambda shard: shard.url)
    assert {shard.size for shard in found} == {600}


def test_relative_address_becomes_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert list_shards(["000.tar"], field="f")[0].url == str(folder / "000.tar")


def test_folder_whose_name_ends_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "set.parquet").mkdir()
    (tmp_path / "set.parquet" / "part-0.parquet").write_bytes(b"PAR1")
    assert _names(list_shards([f"{tmp_path}/set.parquet"], field="f"), tmp_path) == ["set.parquet/part-0.parquet"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.tar", "nothing matches"),
        ("none-*.tar", "nothing matches"),
        ("empty", "no shard among them"),
        ("packed", "compressed"),
        ("note.txt", "neither .tar nor .parquet"),
        ("packed/a.tar.bz2", "compressed tar"),
        ("hollow/a.tar", "0 bytes"),
        ("{000.tar", "unbalanced braces"),
        ("nowhere://bucket/a.tar", "cannot be listed"),
    ],
)
def test_refusals_name_the_field_and_the_address(folder: Path, name: str, message: str) -> None:
    (folder / "empty").mkdir()
    for inner in ("packed/a.tar.bz2", "hollow/a.tar"):
        (folder / inner).parent.mkdir()
        (folder / inner).touch()
    url = name if "://" in name else f"{folder}/{name}"
    with pytest.raises(DataError, match=message) as caught:
        list_shards([url], field="data.train")
    assert str(caught.value).startswith("data.train") and name in str(caught.value)


def test_no_pattern_at_all() -> None:
    with pytest.raises(DataError, match=r"data\.heldout is empty"):
        list_shards([], field="data.heldout")


def test_an_empty_file_among_others_is_left_to_the_reader(folder: Path) -> None:
    (folder / "009.tar").touch()
    assert list_shards([f"{folder}/00[09].tar"], field="f")[1].size == 0


def test_other_file_systems_through_fsspec() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/shards/b.tar", b"12")
    memory.pipe("/shards/a.tar", b"1")
    found = list_shards(["memory://shards/{a,b}.tar"], field="f")
    assert [(shard.url, shard.size) for shard in found] == [
        ("memory:///shards/a.tar", 1),
        ("memory:///shards/b.tar", 2),
    ]
    fs, path = open_fs(found[1].url)
    assert fs.cat(path) == b"12"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An object store that is a local folder; the addresses that Arrow was asked for."""
    (tmp_path / "bucket" / "set").mkdir(parents=True)
    for number in range(2):
        good_tar(tmp_path / "bucket" / "set" / f"{number}.tar", 3)
    asked: list[str] = []

    class Store:
        @staticmethod
        def from_uri(uri: str) -> tuple[arrow_fs.FileSystem, str]:
            asked.append(uri)
            return arrow_fs.SubTreeFileSystem(str(tmp_path), arrow_fs.LocalFileSystem()), "bucket"

    monkeypatch.setattr(arrow_fs, "FileSystem", Store)
    module._arrow_fs.cache_clear()
    yield asked
    module._arrow_fs.cache_clear()


@pytest.mark.parametrize("pattern", ["{0,1}.tar", "*.tar", ""])
def test_object_stores_keep_their_options(bucket: list[str], pattern: str) -> None:
    found = list_shards([f"s3://bucket/set/{pattern}?region=eu-west-1"], field="f")
    assert [shard.url for shard in found] == [f"s3://bucket/set/{n}.tar?region=eu-west-1" for n in range(2)]
    assert all(shard.size and shard.is_tar for shard in found)
    rows = [row for part in range(2) for row in read_piece(Piece(found[0].url, part, 2), ColumnsConfig())]
    assert [row.key for row in rows] == ["s000", "s001", "s002"]
    assert set(bucket) == {"s3://bucket?region=eu-west-1"}


def test_rows_of_a_tar_are_estimated_from_its_bytes(tmp_path: Path) -> None:
    good_tar(tmp_path / "a.tar", 120)
    (tmp_path / "0.tar").write_bytes(b"not a tar" * 100)
    found = list_shards([str(tmp_path)], field="f")
    mean = mean_sample_bytes(found)
    assert mean is not None and 0.9 < mean * 120 / found[1].size < 1.1
    assert rows_in(found[1], mean) == pytest.approx(120, rel=0.1)
    assert rows_in(found[1], None) == 0


def test_rows_of_a_parquet_file_are_in_its_footer(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": list(range(100))}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and then nothing of use")
    whole, broken = list_shards([str(tmp_path)], field="f")
    assert rows_in(whole, None) == 100
    assert rows_in(broken, None) == 0

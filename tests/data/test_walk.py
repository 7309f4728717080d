"""One walk through local folders, and what it passes over."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data import walk as module
from ito_ray.data.prepare.folders import list_pairs
from ito_ray.data.prepare.listing import ListedSource
from ito_ray.data.shards import list_files, list_shards
from ito_ray.data.walk import PassedOver, literal_part, local_path, match_local, walk
from ito_ray.embeddings.inputs import open_inputs
from ito_ray.errors import DataError
from tests.data.makers import good_tar, picture

HIDDEN = "hidden or foreign files and folders"


def _write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def _walked(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    passed = PassedOver()
    return [os.path.relpath(entry.path, root) for entry in walk(root, passed)], passed.names


def test_files_are_sorted_and_what_is_foreign_is_noted_once(tmp_path: Path) -> None:
    _write(tmp_path, "b/2.jpg", "b/1.jpg", "a.jpg", "b/c/3.jpg", "b/@eaDir/1.jpg/t.jpg", ".git/a/b", "b/._1.jpg")
    assert _walked(tmp_path) == (
        ["a.jpg", "b/1.jpg", "b/2.jpg", "b/c/3.jpg"],
        {HIDDEN: [".git", "b/._1.jpg", "b/@eaDir"]},
    )


def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path) -> None:
    root = _write(tmp_path / ".cache" / "@eaDir", "a.tar", ".b.tar")
    assert _walked(root) == (["a.tar"], {HIDDEN: [".b.tar"]})
    assert [shard.url for shard in list_shards([str(root)], field="f")] == [str(root / "a.tar")]
    assert [shard.url for shard in list_shards([f"{root}/*"], field="f")] == [str(root / "a.tar")]
    assert [shard.url for shard in list_shards([f"{tmp_path}/.cache/@eaDir/*.tar"], field="f")] == [str(root / "a.tar")]
    assert [shard.url for shard in list_shards([str(root / ".b.tar")], field="f")] == [str(root / ".b.tar")]


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    _write(tmp_path, "set/a.jpg", "other/b.jpg")
    (tmp_path / "set" / "more").symlink_to(tmp_path / "other")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "other" / "up").symlink_to("../set")
    (tmp_path / "set" / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "set" / "self.jpg").symlink_to("self.jpg")
    assert _walked(tmp_path / "set") == (
        ["a.jpg", "gone.jpg", "more/b.jpg", "self.jpg"],
        {"links back to a folder above them": ["loop", "more/up"]},
    )


def test_sockets_and_pipes_are_never_opened(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "p.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.jpg"))
        assert _walked(tmp_path) == (["a.jpg"], {"sockets, pipes and devices": ["p.jpg", "s.jpg"]})


def test_a_folder_that_cannot_be_read_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "a.jpg", "a.txt", "closed/b.jpg", "z.jpg", "z.txt")
    real = module._entries

    def entries(folder: str) -> list[os.DirEntry[str]]:
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(module, "_entries", entries)
    assert _walked(tmp_path)[1] == {"folders that cannot be read": ["closed: Permission denied"]}
    listed, notes, _ = list_pairs(tmp_path)
    assert [one.key for one in listed] == ["a", "z"]
    assert notes == {"other_files": 0, "folders_that_cannot_be_read": 1}
    with pytest.raises(DataError, match="closed cannot be listed: Permission denied"):
        list_pairs(tmp_path / "closed")
    with pytest.raises(DataError, match="cannot be listed"):
        list_shards([str(tmp_path / "closed")], field="f")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.tar")
    good_tar(tmp_path / name, 2)
    assert [shard.url for shard in list_shards([str(tmp_path)], field="f")] == [str(tmp_path / name)]
    for stem in (os.fsdecode(b"\xe9"), "plain"):
        (tmp_path / f"{stem}.png").write_bytes(picture(0))
        (tmp_path / f"{stem}.txt").write_text("x")
    source = ListedSource.write(list_pairs(tmp_path)[0], tmp_path / "listing", {}, list_pairs(tmp_path)[2])
    assert {row.key: row.bad for _, row in source.read(0)} == {"\\udce9": "name_not_utf8", "plain": None}
    inputs = open_inputs([f"{tmp_path}/*.tar"], "image", ColumnsConfig(), tmp_path)
    assert [row.bad for unit in range(inputs.units) for row in inputs.read(unit)] == [None, None]


def test_it_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write(tmp_path, "a.tar", *(f"{number}/.DS_Store" for number in range(5)), "lost+found/x", "b/Thumbs.db")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            list_shards([str(tmp_path)], field="f")
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: passed over 7 hidden or foreign files and folders (0/.DS_Store, 1/.DS_Store, 2/.DS_Store, …)."
    ]


def test_a_pattern_matches_what_is_visible(tmp_path: Path) -> None:
    _write(tmp_path, "a.tar", "@eaDir/b.tar", "sub/c.tar", ".d.tar", "sub/._c.tar", "sub/lost+found/e.tar")
    for pattern, names in (
        ("*", ["a.tar", "sub"]),
        ("*.tar", ["a.tar"]),
        ("*/*.tar", ["sub/c.tar"]),
        ("**/*.tar", ["a.tar", "sub/c.tar"]),
        ("[ab].tar", ["a.tar"]),
        ("@eaDir/?.tar", ["@eaDir/b.tar"]),
        ("none*", []),
        ("none", []),
    ):
        found = match_local(f"{tmp_path}/{pattern}", PassedOver())
        assert [os.path.relpath(one, tmp_path) for one in found] == names, pattern


def test_an_address_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("a::b") == f"{tmp_path}/a::b"
    assert local_path("~/x") == "/home/me/x"
    assert local_path("file:///a b/c") == "/a b/c"
    assert local_path("s3://bucket/x") is None and local_path("zip://a::s3://b") is None
    _write(tmp_path, "~", "s3:/bucket/x")
    assert local_path("~") == f"{tmp_path}/~"
    assert local_path("s3://bucket/x") == f"{tmp_path}/s3:/bucket/x"
    assert literal_part("/none/x") == "/"
    assert literal_part(f"{tmp_path}/s3:/b*/x") == f"{tmp_path}/s3:/"


def _metadata(path: Path) -> None:
    pq.write_table(pa.table({"key": ["0"], "url": ["http://x"], "status": ["success"]}), path)


def test_metadata_of_img2dataset_is_no_shard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        good_tar(tmp_path / f"{number:05d}.tar", 4)
        _metadata(tmp_path / f"{number:05d}.parquet")
        (tmp_path / f"{number:05d}_stats.json").write_text("{}")
    (tmp_path / "lists").mkdir()
    _metadata(tmp_path / "lists" / "urls.parquet")
    tars = [f"{tmp_path}/{number:05d}.tar" for number in range(3)]
    with caplog.at_level(logging.WARNING):
        assert [shard.url for shard in list_shards([str(tmp_path)], field="f")] == tars
        assert [shard.url for shard in list_shards([f"{tmp_path}/*"], field="f")] == tars
    assert "passed over 4 Parquet files of metadata (00000.parquet, 00001.parquet, 00002.parquet, …)" in caplog.text
    pq.write_table(pa.table({"image": [picture(0)], "caption": ["x"]}), tmp_path / "00001.parquet")
    (tmp_path / "00002.parquet").write_bytes(b"PAR1 damaged, to be counted by its reader")
    kept = [f"{tmp_path}/00001.parquet", f"{tmp_path}/00002.parquet"]
    assert [shard.url for shard in list_shards([str(tmp_path)], field="f")] == sorted([*tars, *kept])
    assert [shard.url for shard in list_shards([f"{tmp_path}/*.parquet"], field="f")] == [
        f"{tmp_path}/00000.parquet",
        *kept,
    ]


def test_metadata_beside_folders_of_pictures(tmp_path: Path) -> None:
    _write(tmp_path, "00000/0.jpg", "00000/0.txt")
    _metadata(tmp_path / "00000.parquet")
    with pytest.raises(DataError, match="holds 3 files and no shard among them"):
        list_shards([str(tmp_path)], field="f")
    assert [file.url for file in list_files(str(tmp_path), field="f") or ()] == [
        f"{tmp_path}/00000.parquet",
        f"{tmp_path}/00000/0.jpg",
        f"{tmp_path}/00000/0.txt",
    ]

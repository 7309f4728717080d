"""Embedding without Ray: every row accounted for, equal files however it was interrupted, other jobs refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ito_ray.data.decode import decode_rgb
from ito_ray.data.shards import open_shard, public_url
from ito_ray.embeddings import inputs, job
from ito_ray.errors import DataError
from tests.data.makers import good_tar, picture, write_tar
from tests.embeddings.makers import HashEncoder, files, open_, run, table, vectors

SHARDS, ROWS = 4, 6


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four tars of six good samples each, the second with two bad ones more."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(SHARDS):
        samples: list[Any] = [
            (f"k{shard}{n}", {"png": picture(10 * shard + n), "txt": f"caption {shard}{n}".encode()})
            for n in range(ROWS)
        ]
        if shard == 1:
            samples[2:2] = [("broken", {"png": b"no picture", "txt": b"x"}), ("blind", {"txt": b"y"})]
        write_tar(folder / f"{shard}.tar", samples)
    return folder


def test_every_row_is_embedded_or_rejected(shards: Path, tmp_path: Path) -> None:
    encoder = HashEncoder()
    manifest = run(tmp_path / "out", shards, encoder=encoder)
    good = [(shard, n) for shard in range(SHARDS) for n in range(ROWS)]
    assert manifest["read"] == len(good) + 2 == manifest["embedded"] + sum(manifest["dropped"].values())
    assert manifest["dropped"] == {"image_unreadable": 1, "missing_image": 1}
    assert encoder.largest == 4
    found = table(tmp_path / "out")
    assert found["key"].to_pylist() == [f"k{shard}{n}" for shard, n in good]
    assert found["caption"].to_pylist() == [f"caption {shard}{n}" for shard, n in good]
    assert set(found["shard"].to_pylist()) == {str(shards / f"{n}.tar") for n in range(SHARDS)}
    pictures = [decode_rgb(picture(10 * shard + n), max_pixels=10**6) for shard, n in good]
    np.testing.assert_array_equal(vectors(tmp_path / "out"), HashEncoder().encode_images(pictures))
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    reasons = [(row["key"], row["reason"]) for row in rejected]
    assert reasons == [("broken", "image_unreadable"), ("blind", "missing_image")]
    assert {row["shard"] for row in rejected} == {str(shards / "1.tar")}
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.endswith(".lock")) == [
        "embeddings",
        "manifest.json",
        "rejected.parquet",
    ]


def test_files_say_which_model_made_them(shards: Path, tmp_path: Path) -> None:
    manifest = run(tmp_path / "out", shards)
    for name, record in manifest["files"].items():
        metadata = pq.read_schema(tmp_path / "out" / name).metadata
        assert metadata[b"ito.model_sha256"].decode() == manifest["model"]["sha256"] == "a" * 64
        assert metadata[b"ito.model_version"] == b"3"
        assert metadata[b"ito.model"] == b"models:/m@champion"
        assert (tmp_path / "out" / name).stat().st_size == record["bytes"]
    assert manifest["model"]["weights"] == {"model.safetensors": "b" * 64}


@pytest.mark.parametrize("stop_at", [0, 1, 3])
@pytest.mark.parametrize("where", ["before", "write_parquet", "write_json"])
def test_stopped_anywhere_goes_on_to_the_same_files(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, where: str
) -> None:
    run(tmp_path / "straight", shards)
    written = 0
    with monkeypatch.context() as patch:

        def stop(unit: int) -> None:
            if unit != stop_at:
                return
            if where == "before":
                raise KeyboardInterrupt
            patch.setattr(job, where, _dies)

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", shards, seen=stop)
    assert not (tmp_path / "out" / "manifest.json").exists()

    def count(unit: int) -> None:
        nonlocal written
        written += 1

    run(tmp_path / "out", shards, seen=count)
    assert written == SHARDS - stop_at, "what was done is not done again"
    assert files(tmp_path / "out") == files(tmp_path / "straight")


def _dies(*arguments: object, **named: object) -> None:
    raise KeyboardInterrupt


def test_a_finished_folder_is_left_alone(shards: Path, tmp_path: Path) -> None:
    manifest = run(tmp_path / "out", shards)
    before = files(tmp_path / "out")
    assert open_(tmp_path / "out", shards) == manifest
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changes", "named"), [({"checksum": "c" * 64}, "model: 'aaa"), ({"dtype": "float16"}, "dtype: 'float32' there")]
)
def test_another_job_in_the_same_folder_is_refused(
    shards: Path, tmp_path: Path, finished: bool, changes: dict[str, Any], named: str
) -> None:
    if finished:
        run(tmp_path / "out", shards)
    else:
        open_(tmp_path / "out", shards)
    before = files(tmp_path / "out")
    with pytest.raises(DataError, match=rf"holds another job \({named}"):
        open_(tmp_path / "out", shards, **changes)
    good_tar(shards / "new.tar", 2)
    with pytest.raises(DataError, match=r"holds another job \(data: "):
        open_(tmp_path / "out", shards)
    assert files(tmp_path / "out") == before


def test_a_folder_of_something_else_is_refused(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty and was not made by embed"):
        open_(tmp_path, shards)


def test_nothing_embedded_is_an_error_that_counts(tmp_path: Path) -> None:
    write_tar(tmp_path / "bad.tar", [("a", {"png": b"x", "txt": b"y"}), ("b", {"txt": b"y"})])
    with pytest.raises(DataError, match=r"None of the 2 rows was embedded \(.*missing_image 1.*\): see "):
        run(tmp_path / "out", tmp_path / "bad.tar")


@pytest.mark.parametrize("what", ["text", "both"])
def test_every_caption_becomes_a_row(tmp_path: Path, what: Any) -> None:
    document = json.dumps({"captions": ["one", "two", "one"]}).encode()
    write_tar(tmp_path / "a.tar", [("a", {"png": picture(1), "json": document}), ("b", {"txt": b"three"})])
    manifest = run(tmp_path / "out", tmp_path / "a.tar", what=what)
    found = table(tmp_path / "out")
    rows = list(zip(found["key"].to_pylist(), found["kind"].to_pylist(), found["caption"].to_pylist(), strict=True))
    if what == "text":
        assert rows == [("a", "text", "one"), ("a", "text", "two"), ("b", "text", "three")]
        assert manifest["dropped"] == {}
    else:
        assert rows == [("a", "image", "one"), ("a", "text", "one"), ("a", "text", "two")]
        assert manifest["dropped"] == {"missing_image": 1}
    texts = [row[2] for row in rows if row[1] == "text"]
    is_text = np.array([row[1] == "text" for row in rows])
    np.testing.assert_array_equal(vectors(tmp_path / "out")[is_text], HashEncoder().encode_texts(texts))


def test_parquet_without_captions_gives_its_pictures(tmp_path: Path) -> None:
    images = [picture(n) for n in range(5)]
    pq.write_table(pa.table({"key": [f"k{n}" for n in range(5)], "image": images}), tmp_path / "a.parquet")
    manifest = run(tmp_path / "out", tmp_path / "a.parquet", dtype="float16", thumbnail=16)
    assert manifest["embedded"] == 5
    found = table(tmp_path / "out")
    assert found.schema.field("embedding").type == pa.list_(pa.float16(), 8)
    expected = HashEncoder().encode_images([decode_rgb(image, max_pixels=10**6) for image in images])
    np.testing.assert_array_equal(vectors(tmp_path / "out"), expected.astype(np.float16).astype(np.float32))
    for data in found["thumbnail"].to_pylist():
        assert max(decode_rgb(data, max_pixels=10**6).size) == 16


def test_a_folder_of_pictures_with_and_without_texts(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name, number in {"a.png": 1, "sub/b.png": 2, "sub/a.png": 3}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))
    (folder / "a.txt").write_text("the first one")
    (folder / "lonely.txt").write_text("no picture")
    run(tmp_path / "out", folder)
    found = table(tmp_path / "out")
    assert found["key"].to_pylist() == [str(folder / name) for name in ("a.png", "sub/a.png", "sub/b.png")]
    assert found["caption"].to_pylist() == ["the first one", None, None]
    both = run(tmp_path / "both", folder, what="both")
    assert both["dropped"] == {"missing_caption": 2, "missing_image": 1}
    text = run(tmp_path / "text", folder, what="text")
    assert (text["read"], text["dropped"]) == (2, {})


def test_large_shards_are_cut_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good_tar(tmp_path / "a.tar", 40)
    monkeypatch.setattr(inputs, "ROWS_PER_UNIT", 10)
    manifest = run(tmp_path / "out", tmp_path / "a.tar")
    assert len(manifest["files"]) > 2
    assert table(tmp_path / "out")["key"].to_pylist() == [f"s{n:03d}" for n in range(40)]


def test_a_store_that_failed_is_asked_again(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "straight", shards)
    with monkeypatch.context() as patch:

        def failing(url: str) -> Any:
            if url.endswith("2.tar"):
                raise PermissionError(13, "closed")
            return open_shard(url)

        patch.setattr("ito_ray.data.rows.open_shard", failing)
        manifest = run(tmp_path / "out", shards)
        assert manifest["dropped"]["shard_unreadable"] >= 1
        assert manifest["read"] == manifest["embedded"] + sum(manifest["dropped"].values())
    done: list[int] = []
    run(tmp_path / "out", shards, seen=done.append)
    assert done == [2]
    assert files(tmp_path / "out") == files(tmp_path / "straight")


def test_vectors_that_are_not_finite_are_rejected(shards: Path, tmp_path: Path) -> None:
    class Diverged(HashEncoder):
        def encode_images(self, images: Any) -> Any:
            found = super().encode_images(images)
            found[0] = np.nan
            return found

    manifest = run(tmp_path / "out", shards, encoder=Diverged(), batch=ROWS)
    assert manifest["dropped"]["not_finite"] == SHARDS + 1
    assert np.isfinite(vectors(tmp_path / "out")).all()


def test_inputs_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("x")
    for name, said in (
        ("none.tar", "nothing matches"),
        ("empty", "holds 0 files"),
        ("notes", "holds 1 files, neither"),
    ):
        with pytest.raises(DataError, match=rf"^--data.*{said}"):
            open_(tmp_path / "out", tmp_path / name)
        assert not (tmp_path / "out" / ".embed").exists()


def test_secrets_in_an_address_stay_out_of_the_files() -> None:
    user = ":".join(("name", "word"))
    assert public_url(f"s3://{user}@bucket/a/b.tar?option=1") == "s3://bucket/a/b.tar"
    assert public_url("/data/a?b.tar") == "/data/a?b.tar"

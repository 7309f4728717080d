"""From source to shards and back: equal pixels and captions, equal bytes however it went, accounts that balance."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ito_ray.data.prepare import job as job_module
from ito_ray.data.prepare.inspect import Picture, fit
from ito_ray.data.prepare.job import Job, alone, open_job
from ito_ray.data.prepare.options import Coco, Folder, Output, Shards, Table
from ito_ray.data.prepare.source import safe_key
from ito_ray.errors import ConfigError, DataError
from tests.data.makers import encoded, noise, picture, write_tar
from tests.data.prepare.makers import (
    caption,
    pixels,
    read_back,
    run,
    shards_of,
    write_coco,
    write_csv,
    write_pictures,
)

COUNT = 30


def _coco(tmp: Path, out: str = "out", **options: Any) -> Coco:
    images = tmp / "images"
    if not images.exists():
        write_coco(tmp / "captions.json", write_pictures(images, COUNT), images)
    return Coco(annotations=tmp / "captions.json", images=images, out=tmp / out, **{"per_shard": 8, **options})


@pytest.mark.parametrize("format_", ["tar", "parquet"])
def test_round_trip_gives_the_same_pixels_captions_and_meta(tmp_path: Path, format_: Any) -> None:
    manifest = run(_coco(tmp_path, format=format_, val_fraction=0.3))
    rows = read_back(tmp_path / "out")
    paths = sorted((tmp_path / "images").rglob("*.*"), key=lambda path: path.stem)
    assert sorted(rows) == [str(100 + n) for n in range(COUNT)]
    for n, path in enumerate(paths):
        row = rows[str(100 + n)]
        np.testing.assert_array_equal(pixels(row.image), pixels(path.read_bytes()))
        assert row.captions == (caption(n, 0), caption(n, 1))
        assert row.meta == {"file_name": str(path.relative_to(tmp_path / "images")), "height": 24}
        if path.suffix in (".png", ".jpg", ".webp"):
            assert row.image == path.read_bytes()
    assert manifest["written"]["val"] > 0
    assert manifest["totals"]["samples"] == sum(manifest["written"].values()) == manifest["inputs"] == COUNT
    for name, shard in manifest["shards"].items():
        assert (tmp_path / "out" / name).stat().st_size == shard["bytes"]
    for split in ("train", "val"):
        sizes = [shard["samples"] for name, shard in manifest["shards"].items() if name.startswith(split)]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= 8
    assert not (tmp_path / "out" / ".prepare").exists()


def test_shards_of_shards_keep_keys_split_and_content(tmp_path: Path) -> None:
    run(_coco(tmp_path, val_fraction=0.3))
    first = tmp_path / "out"
    again = tmp_path / "again"
    run(Shards(shards=(str(first),), out=again, format="parquet", per_shard=11, val_fraction=0.3))
    before, after = read_back(first), read_back(again)
    assert {k: (r.image, r.captions, r.meta) for k, r in before.items()} == {
        k: (r.image, r.captions, r.meta) for k, r in after.items()
    }
    assert read_back(first / "val").keys() == read_back(again / "val").keys()


def test_equal_bytes_for_equal_input_another_order_for_another_seed(tmp_path: Path) -> None:
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(_coco(tmp_path, out, seed=seed, val_fraction=0.2))
    a, b, c = (shards_of(tmp_path / out) for out in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert a != c
    assert read_back(tmp_path / "a" / "val").keys() == read_back(tmp_path / "c" / "val").keys()
    order = list(read_back(tmp_path / "a" / "train"))
    assert order != sorted(order), "neighbours of the source must not stay neighbours"


def _kill_after(monkeypatch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    """The method raises at its n-th call, after having done its work."""
    real: Callable[..., Any] = getattr(job_module, name)
    count = 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        result = real(*args, **kwargs)
        if count == calls:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(job_module, name, dying)


@pytest.mark.parametrize(
    ("step", "calls"),
    [("inspect", 1), ("inspect", 2), ("place", 1), ("account", 1), ("write_shard", 1), ("write_shard", 3), ("fit", 5)],
)
def test_a_job_that_stops_anywhere_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, calls: int
) -> None:
    monkeypatch.setattr("ito_ray.data.prepare.listing.ROWS_PER_PIECE", 10)
    run(_coco(tmp_path, "undisturbed"))
    with monkeypatch.context() as patch:
        _kill_after(patch, step, calls)
        with pytest.raises(KeyboardInterrupt):
            run(_coco(tmp_path))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / ".prepare" / "made").iterdir()}
    finished = [tmp_path / "out" / "train" / path.name.removesuffix(".json") for path in made]
    times = {path: path.stat().st_mtime_ns for path in finished}
    manifest = run(_coco(tmp_path))
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "undisturbed")
    assert times == {path: path.stat().st_mtime_ns for path in finished}, "finished shards are not made again"
    assert manifest == {**json.loads((tmp_path / "undisturbed" / "manifest.json").read_text())}


def test_a_finished_job_is_not_done_again_and_a_lost_shard_is(tmp_path: Path) -> None:
    manifest = run(_coco(tmp_path))
    made = shards_of(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.tar")}
    assert run(_coco(tmp_path)) == manifest
    assert times == {path: path.stat().st_mtime_ns for path in times}
    (tmp_path / "out" / "train" / "train-00001.tar").unlink()
    run(_coco(tmp_path))
    assert shards_of(tmp_path / "out") == made


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    run(_coco(tmp_path))
    with pytest.raises(DataError, match=r"holds another job \(per_shard: 8 there, 9 here\)"):
        run(_coco(tmp_path, per_shard=9))
    document = json.loads((tmp_path / "captions.json").read_text())
    document["annotations"][0]["caption"] = "another"
    (tmp_path / "captions.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="inputs have changed"):
        run(_coco(tmp_path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(DataError, match="is not empty and was not made by prepare"):
        run(_coco(tmp_path, "full"))
    (tmp_path / "icons").mkdir()
    (tmp_path / "icons" / "manifest.json").write_text('{"version": 1, "request": {"seed": 0}}')
    with pytest.raises(DataError, match="holds another job"):
        run(_coco(tmp_path, "icons"))


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    options = _coco(tmp_path)
    with alone(options.out), pytest.raises(DataError, match="Another process prepares"):
        run(options)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        run(_coco(tmp_path, "file"))


def test_a_source_that_cannot_be_read_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no table"):
        run(Table(table=tmp_path / "none.csv", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_picture_that_changes_between_the_steps_stops_the_job(tmp_path: Path) -> None:
    options = _coco(tmp_path)
    with alone(options.out):
        job = open_job(options)
        assert isinstance(job, Job)
        for piece in job.pieces_to_inspect():
            job.inspect(piece)
        job.plan()
        (tmp_path / "images" / "part0" / "img.0000.png").write_bytes(picture(99))
        with pytest.raises(DataError, match=r"img.0000.png \(100\) is not what it was"):
            for number in job.shards_to_write():
                job.write(number)


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(data: bytes, picture: Any) -> tuple[bytes, str]:
        raise MemoryError("no room")

    monkeypatch.setattr("ito_ray.data.prepare.job.fit", fails)
    with pytest.raises(DataError, match=r"img.*cannot be written \(unexpected_error: MemoryError: no room\)"):
        run(_coco(tmp_path))


def _mixed_folder(tmp: Path) -> Folder:
    """Ten good pairs and one input for each thing that can be wrong."""
    folder = tmp / "pairs"
    folder.mkdir()

    def add(name: str, data: bytes, text: str | None) -> None:
        (folder / name).write_bytes(data)
        if text is not None:
            (folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")

    for number in range(10):
        add(f"good{number}.png", picture(number, size=40), f"a fine picture {number}")
    add("copy.png", picture(3, size=40), "a copy of three")
    small = Image.fromarray(noise(40, 40, seed=4)).resize((34, 34))
    add("like.jpg", encoded(small, "JPEG", quality=90), "looks like four")
    add("good5.jpg", picture(50, size=40, kind="JPEG"), "the key again")
    add("tiny.png", picture(11, size=8), "a tiny picture")
    add("long.png", encoded(Image.fromarray(noise(200, 40, seed=12))), "a long picture")
    add("short.png", picture(13, size=40), "ab")
    add("logo.png", picture(14, size=40), "this is a Logo")
    add("cut.png", picture(15, size=40)[:-300], "cut off")
    add("none.png", b"no picture", "not a picture")
    add("alone.png", picture(16, size=40), None)
    add("blank.png", picture(17, size=40), " \n")
    (folder / "orphan.txt").write_text("no picture")
    return Folder(
        folder=folder,
        out=tmp / "out",
        dedup="perceptual",
        min_side=16,
        max_aspect=3,
        caption_chars=(3, 0),
        where='"logo" not in lower(caption)',
    )


def test_every_input_is_written_or_dropped_with_a_reason(tmp_path: Path) -> None:
    manifest = run(_mixed_folder(tmp_path))
    dropped = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    assert {row["key"]: row["reason"] for row in dropped if row["key"] not in ("good3", "good5")} == {
        "like": "similar_image",
        "tiny": "image_too_small",
        "long": "image_too_long",
        "short": "caption_length",
        "logo": "where_false",
        "cut": "image_truncated",
        "none": "image_unreadable",
        "alone": "missing_caption",
        "blank": "empty_caption",
        "orphan": "missing_image",
    }
    twice = [row for row in dropped if row["key"] in ("good3", "good5")]
    assert [(row["key"], row["reason"], row["detail"]) for row in twice] == [
        ("good3", "duplicate_image", "same bytes as copy"),
        ("good5", "duplicate_key", "an earlier input has this key"),
    ]
    assert manifest["inputs"] == 22 == manifest["totals"]["samples"] + sum(manifest["dropped"].values())
    assert sum(manifest["dropped"].values()) == len(dropped)
    captions = manifest["captions"]
    assert captions["read"] == captions["written"] + captions["removed_by_length"] + captions["of_dropped"]
    assert set(read_back(tmp_path / "out")) == {f"good{n}" for n in range(10) if n != 3} | {"copy"}


def test_captions_that_are_too_short_go_alone(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "caption": text} for text in ("a long one", "ab", "also long")]
    (tmp_path / "a.png").write_bytes(picture(0))
    manifest = run(Table(table=write_csv(tmp_path / "t.csv", rows), out=tmp_path / "out", caption_chars=(3, 0)))
    assert read_back(tmp_path / "out")["a"].captions == ("a long one", "also long")
    assert manifest["captions"] == {"read": 3, "written": 2, "removed_by_length": 1, "of_dropped": 0}


def test_nothing_left_is_a_sentence_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"None of the 30 inputs is left \(image_too_small 30\): see .*dropped.parquet"):
        run(_coco(tmp_path, min_side=1000))


def test_the_same_key_in_two_shards_is_dropped_and_reported(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, name in enumerate("ab"):
        write_tar(tmp_path / "in" / f"{name}.tar", [("0", {"png": picture(number), "txt": b"x"})])
    manifest = run(Shards(shards=(str(tmp_path / "in"),), out=tmp_path / "own"))
    assert manifest["dropped"] == {"duplicate_key": 1}
    manifest = run(Shards(shards=(str(tmp_path / "in"),), out=tmp_path / "shard", keys="shard"))
    assert manifest["dropped"] == {}
    assert set(read_back(tmp_path / "shard")) == {safe_key("a/0"), safe_key("b/0")}


def test_damaged_shards_lose_only_what_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "a.tar", [(f"k{n}", {"png": picture(n), "txt": b"text"}) for n in range(20)])
    whole = (tmp_path / "in" / "a.tar").read_bytes()
    (tmp_path / "in" / "a.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "b.tar").write_bytes(b"x" * 2000)
    manifest = run(Shards(shards=(str(tmp_path / "in"),), out=tmp_path / "out"))
    assert set(manifest["dropped"]) == {"not_a_tar", "tar_truncated"}
    assert manifest["inputs"] == manifest["totals"]["samples"] + sum(manifest["dropped"].values())
    assert 5 < manifest["totals"]["samples"] < 15


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("JPEG", "jpg"), ("WEBP", "jpg"), ("AVIF", "jpg"), ("PNG", "png"), ("BMP", "png"), ("TIFF", "png")],
)
def test_long_pictures_are_made_smaller(kind: str, ending: str) -> None:
    data = encoded(Image.fromarray(noise(300, 150, seed=1)), kind)
    stored, extension = fit(data, Picture(100, 90, 10**6))
    assert extension == ending
    image = Image.open(io.BytesIO(stored))
    assert image.size == (100, 50)
    expected = Image.fromarray(noise(300, 150, seed=1)).resize((100, 50), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(image.convert("RGB"), int) - np.asarray(expected, int)).mean() < 6
    kept, _ = fit(encoded(expected, "JPEG"), Picture(100, 90, 10**6))
    assert kept == encoded(expected, "JPEG")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_an_image_that_fits_keeps_its_bytes(kind: str) -> None:
    data = encoded(Image.fromarray(noise(60, 40)), kind)
    assert fit(data, Picture(0, 90, 10**6)) == (data, "jpg" if kind == "JPEG" else kind.lower())


def test_a_turned_photo_is_stored_upright_when_made_smaller() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(noise(300, 150, seed=1)), "JPEG", exif=exif)
    stored, _ = fit(data, Picture(100, 90, 10**6))
    assert pixels(stored).shape == (100, 50, 3)
    assert pixels(fit(data, Picture(0, 90, 10**6))[0]).shape == (300, 150, 3)


@pytest.mark.parametrize(
    "values",
    [
        {"per_shard": 0},
        {"val_fraction": 1.0},
        {"val_fraction": -0.1},
        {"dedup_bits": 40},
        {"max_side": -1},
        {"jpeg_quality": 0},
        {"max_pixels": 0},
        {"where": "import os"},
    ],
)
def test_options_out_of_range(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--"):
        _coco(tmp_path, **values)


def test_all_options_but_the_place_are_part_of_the_request(tmp_path: Path) -> None:
    request = _coco(tmp_path).request()
    assert set(request) == {"source", *Output.__dataclass_fields__, "annotations", "images"} - {"out", "verbose"}

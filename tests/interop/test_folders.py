"""Folders as unpacked archives, download tools and `datasets` leave them: the pairs and nothing else."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from PIL import Image

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.data.prepare.options import Folder, HuggingFace, Output, Table
from ito_ray.data.preprocess import clean_text
from ito_ray.evaluation.sources import open_labelled, open_pairs, read
from tests.data.prepare.makers import pixels, read_back
from tests.data.prepare.makers import run as prepare
from tests.embeddings.makers import run as embed
from tests.interop.pairs import PAIRS, assert_same, write_folder, write_images
from tests.interop.shards import IMG2DATASET, img2dataset

EXPECTED = {clean_text(pair.caption): pixels(pair.image) for pair in PAIRS}
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(50)


def _zipped_by_macos(folder: Path, top: Path) -> Path:
    """`top` through a zip in the layout of Finder and ditto: a resource fork for each file below __MACOSX."""
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        for path in sorted(top.rglob("*")):
            name = path.relative_to(top.parent)
            if path.is_file():
                archive.write(path, name)
                archive.writestr(f"__MACOSX/{name.parent}/._{name.name}", APPLE_DOUBLE)
        archive.writestr(f"{top.name}/.DS_Store", b"\x00\x00\x00\x01Bud1")
        archive.writestr(f"__MACOSX/{top.name}/._.DS_Store", APPLE_DOUBLE)
    with zipfile.ZipFile(folder / "archive.zip") as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def macos_zip(folder: Path) -> Output:
    return Folder(folder=_zipped_by_macos(folder, write_folder(folder / "photos")), out=folder / "out")


def with_traces(folder: Path) -> Output:
    """Of Jupyter, a Synology disk, Windows and git."""
    made = write_folder(folder / "photos")
    for name in (".ipynb_checkpoints/copy-checkpoint.png", "@eaDir/SYNOPHOTO_THUMB_M.jpg", ".git/x.png"):
        path = made / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(PAIRS[0].image)
        path.with_suffix(".txt").write_text("not meant", "utf-8")
    (made / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (made / "desktop.ini").write_text("[.ShellClassInfo]", "utf-8")
    return Folder(folder=made, out=folder / "out")


def img2dataset_files(folder: Path) -> Output:
    """img2dataset's output "files": a folder a shard, each beside a table of metadata and a .json of statistics."""
    if not IMG2DATASET.is_file():
        pytest.skip("img2dataset is not installed: make test installs it")
    return Folder(folder=img2dataset(folder, "files"), out=folder / "made")


def datasets_saved(folder: Path) -> Output:
    """`save_to_disk`."""
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    columns = {
        "image": [Image.open(io.BytesIO(pair.image)) for pair in PAIRS],
        "caption": [pair.caption for pair in PAIRS],
    }
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder / "saved"))
    return HuggingFace(folder=folder / "saved", out=folder / "out")


def image_folder(folder: Path) -> Output:
    """The layout of `datasets.ImageFolder`: metadata.jsonl with file_name, beside the pictures."""
    paths = write_images(folder / "train")
    lines = (
        json.dumps({"file_name": path.name, "text": pair.caption}) for path, pair in zip(paths, PAIRS, strict=True)
    )
    (folder / "train" / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return Table(table=folder / "train" / "metadata.jsonl", out=folder / "out")


MAKERS: tuple[Callable[[Path], Output], ...] = (
    macos_zip,
    with_traces,
    img2dataset_files,
    datasets_saved,
    image_folder,
)


@pytest.mark.parametrize("maker", MAKERS)
def test_prepare_writes_the_pairs_and_nothing_else(maker: Callable[[Path], Output], tmp_path: Path) -> None:
    options = maker(tmp_path)
    manifest = prepare(options)
    assert manifest["dropped"] == {}
    assert manifest["inputs"] == manifest["totals"]["samples"] == len(PAIRS)
    rows = read_back(options.out).values()
    assert_same({row.captions[0]: pixels(row.image) for row in rows}, EXPECTED)


@pytest.mark.parametrize("maker", [macos_zip, with_traces, img2dataset_files])
def test_evaluate_and_embed_read_the_same_folder(maker: Callable[[Path], Folder], tmp_path: Path) -> None:
    folder = str(maker(tmp_path).folder)
    reader = read(
        open_pairs(overlay(Config(), {"data": {"heldout": [folder]}}, source="test")), limit=None, max_pixels=10**6
    )
    assert {pair.captions[0] for pair in reader} == set(EXPECTED)
    assert reader.tally.read == reader.tally.delivered == len(PAIRS), reader.tally
    manifest = embed(tmp_path / "embeddings", folder)
    assert (manifest["read"], manifest["embedded"]) == (len(PAIRS), len(PAIRS)), manifest["dropped"]


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog", ".ipynb_checkpoints", "@eaDir"):
        write_images(tmp_path / "photos" / name)
    folder = str(_zipped_by_macos(tmp_path, tmp_path / "photos") / "photos")
    cfg = overlay(Config(), {"eval": {"zero_shot": [folder]}}, source="test")
    labelled = open_labelled(cfg, cfg.eval.zero_shot, "eval.zero_shot")
    assert set(labelled.table.values()) == {"cat", "dog"}
    reader = read(labelled.source, limit=None, max_pixels=10**6)
    assert len(list(reader)) == reader.tally.read == 2 * len(PAIRS), reader.tally

"""A path that is there is taken as it is written, whatever signs are in it, by every reader and writer."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import tempfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ito_ray.config.evaluation import EvalConfig
from ito_ray.config.load import read_yaml
from ito_ray.config.schema import ColumnsConfig, Config, DataConfig
from ito_ray.data.plan import Piece
from ito_ray.data.prepare.folders import list_coco, list_pairs
from ito_ray.data.prepare.listing import Listed, ListedSource
from ito_ray.data.prepare.options import Folder, HuggingFace, Shards, Table
from ito_ray.data.prepare.tables import Columns, list_table
from ito_ray.data.rows import read_piece
from ito_ray.data.shards import list_shards, mean_sample_bytes, open_fs, rows_in
from ito_ray.data.survey import Reach
from ito_ray.embeddings.inputs import open_inputs
from ito_ray.errors import ConfigError
from ito_ray.evaluation.classes import read_class_table, read_templates
from ito_ray.evaluation.sources import Labelled, Source, open_labelled, open_pairs, read
from ito_ray.runtime.encoders import open_encoder
from ito_ray.search.index import Index, build
from pipelines import search
from pipelines.evaluate import is_address
from pipelines.models import find_model
from tests.data.makers import good_tar, picture
from tests.data.prepare.makers import read_back
from tests.data.prepare.makers import run as prepare
from tests.embeddings.makers import run as embed
from tests.evaluation.shapes import draw

AWKWARD = [
    *("photos [2024]", "set{1,2}", "{", "a}b", "{1..3}", "a::b", "zip::x", "50%", "a%20b", "c#1", "x?y=z", "*", "**"),
    *("~foo", "~", "a,b", "a b ", " a", "-x", "--help", "k=v", "a&b", "it's", 'q"q', "back\\slash", "new\nline", "é"),
    *("[bold]", "$HOME", "a;b", "s3:", "file:", "a|b", "x.tar", "x.parquet", "x.csv", "a@b", "!x", "^"),
]
SIGNS = st.text(st.sampled_from("ab[]{}*?%#:~,;=&@!$'\"\\ -.\n+^|é"), min_size=1, max_size=12)
NAMES = SIGNS.filter(lambda name: name[0] != "." and not name.endswith((".partial", ".crdownload")))


def _good(source: Source) -> list[str]:
    return [row.key for row in read(source, limit=None, max_pixels=10**6)]


def _pictures(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(f"caption {number}")
    return folder


def _shards(root: Path, name: str) -> None:
    """Folder, file, and patterns below a folder whose own name is no pattern."""
    folder = root / "shards" / name
    folder.mkdir(parents=True)
    tar = folder / f"{name}.tar"
    good_tar(tar, 3)
    pq.write_table(pa.table({"image": [picture(0)], "caption": ["x"]}), folder / "1.parquet")
    for pattern, found in (
        (str(folder), {str(tar), f"{folder}/1.parquet"}),
        (f"file://{folder}", {str(tar), f"{folder}/1.parquet"}),
        (str(tar), {str(tar)}),
        (f"{folder}/*.parquet", {f"{folder}/1.parquet"}),
        (f"{folder}/[0-9].p*", {f"{folder}/1.parquet"}),
        (f"{folder}/{{0..1}}.parquet", set()),
        (f"{folder}/{{1,1}}.parquet", {f"{folder}/1.parquet"}),
        (f"{folder}/**/*.parquet", {f"{folder}/1.parquet"}),
    ):
        if found:
            assert {shard.url for shard in list_shards([pattern], field="f")} == found, pattern
    (shard,) = list_shards([str(tar)], field="f")
    assert shard.is_tar and rows_in(shard, mean_sample_bytes([shard]))
    assert [row.bad for row in read_piece(Piece(shard.url, 0, 1), ColumnsConfig())] == [None] * 3
    assert Reach.of([str(folder)], limit=0).entries
    inputs = open_inputs([str(folder)], "image", ColumnsConfig(), root)
    assert sum(len(inputs.read(unit)) for unit in range(inputs.units)) == 4
    assert len(_good(open_pairs(Config(data=DataConfig(heldout=(str(folder),)))))) == 4


def _files(root: Path, name: str) -> None:
    """Pictures in files, listed by a folder, a table, COCO, and for embedding."""
    folder = _pictures(root / "files" / name)
    (folder / f"{name}.png").write_bytes(picture(9))
    (folder / f"{name}.txt").write_text("caption 9")
    listed, _, salt = list_pairs(folder)
    source = ListedSource.write(listed, root / "listing.parquet", {}, salt)
    rows = [row for piece in range(source.pieces) for _, row in source.read(piece)]
    assert len(rows) == 4 and all(row.bad is None for row in rows)
    assert len(_good(open_pairs(Config(data=DataConfig(heldout=(str(folder),)))))) == 4
    inputs = open_inputs([str(folder)], "pair", ColumnsConfig(), root)
    assert [row.bad for unit in range(inputs.units) for row in inputs.read(unit)] == [None] * 4
    cells = [f"{name}/{name}.png", f"{name}/0.png"]
    with (root / "files" / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *([cell, "x"] for cell in cells)])
    listed, _ = list_table(root / "files" / "table.csv", None, Columns())
    _all_load(root, listed)
    document = {"images": [{"id": 1, "file_name": f"{name}.png"}], "annotations": [{"image_id": 1, "caption": "x"}]}
    (folder / "captions.json").write_text(json.dumps(document))
    _all_load(root, list_coco(folder / "captions.json", folder)[0])


def _all_load(root: Path, listed: list[Listed]) -> None:
    source = ListedSource.write(listed, root / "listing.parquet", {})
    rows = [row for piece in range(source.pieces) for _, row in source.read(piece)]
    assert rows and [(row.bad, row.detail) for row in rows] == [(None, "")] * len(rows)


def _labelled(path: Path, **changes: str) -> Labelled:
    return open_labelled(Config(eval=EvalConfig(zero_shot=(str(path),), **changes)), (str(path),), "f")


def _classes(root: Path, name: str) -> None:
    """A folder a class, class files and prompts."""
    folder = root / "classes" / name
    for one in ("cat", "dog"):
        (folder / one).mkdir(parents=True)
        draw("red", "bar").save(folder / one / "0.png")
    found = _labelled(folder)
    assert (set(found.table), len(_good(found.source))) == ({"cat", "dog"}, 2)
    words = folder / f"{name}.txt"
    words.write_text("cat\ndog\n")
    assert list(read_class_table(str(words))) == ["cat", "dog"]
    words.write_text("a {}\n")
    assert read_templates(str(words)) == ("a {}",)
    fs, path = open_fs(str(words))
    assert fs.cat_file(path) == b"a {}\n"
    words.write_text("train: {}\n")
    assert read_yaml(words) == {"train": {}}


def _whole_jobs(root: Path, name: str) -> None:
    """Prepare from each source, embed and index, all in folders of this name."""
    root = root / "jobs" / name
    images = _pictures(root / "images" / name)
    with (root / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *([f"{number}.png", "x"] for number in range(3))])
    saved = datasets.Dataset.from_dict({"image": [picture(n) for n in range(3)], "caption": ["x"] * 3})
    saved.save_to_disk(str(root.parent.parent / "saved"))
    shutil.move(root.parent.parent / "saved", root / "saved")
    for kind, options in {
        "folder": Folder(folder=images, out=root / "folder"),
        "table": Table(table=root / f"{name}.csv", images=images, out=root / "table"),
        "huggingface": HuggingFace(folder=root / "saved", out=root / "huggingface"),
        "shards": Shards(shards=(str(root / "folder"),), out=root / "shards"),
    }.items():
        assert prepare(options)["totals"]["samples"] == 3, kind
        assert len(read_back(root / kind)) == 3
    manifest = embed(root / "embeddings", root / "folder", thumbnail=16)
    assert manifest["embedded"] == 3
    assert len(build(root / "embeddings", root / "index")) == 3
    assert len(Index(root / "index")) == 3


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names(tmp_path: Path, name: str) -> None:
    for check in (_shards, _files, _classes):
        check(tmp_path, name)


@pytest.mark.parametrize(
    "name", ["photos [2024]", "set{1,2}", "a::b", "a%20b", "x?y=z#1", "~foo", "*", "new\nline", "-x"]
)
def test_whole_jobs_in_awkward_folders(tmp_path: Path, name: str) -> None:
    _whole_jobs(tmp_path, name)


@settings(max_examples=25, deadline=None)
@given(NAMES)
def test_any_name(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for check in (_shards, _files, _classes):
            check(Path(folder), name)


@pytest.mark.parametrize("name", [name for name in AWKWARD if not name.startswith("-")])
def test_a_relative_path_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    _pictures(tmp_path / name / "pictures")
    good_tar(tmp_path / name / "0.tar", 3)
    assert [shard.url for shard in list_shards([name], field="f")] == [str(tmp_path / name / "0.tar")]
    assert len(_good(open_pairs(Config(data=DataConfig(heldout=(f"{name}/pictures",)))))) == 3
    (tmp_path / f"{name}.txt").write_text("cat\n")
    assert list(read_class_table(f"{name}.txt")) == ["cat"]


@pytest.mark.parametrize("name", ["open_clip:ViT-B-32,x", "models:/m@champion", "runs:/1/m"])
def test_a_model_folder_may_be_called_like_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    assert not is_address(name)
    with pytest.raises(ConfigError, match="holds no model that is known"):
        open_encoder(name, batch=1)
    with pytest.raises(ConfigError, match=r"modules\.json"):
        find_model(name, "")


def test_a_command_that_is_printed_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "a b [1]$x"
    root.mkdir()
    good_tar(root / "0.tar", 3)
    embed(root / "embeddings", root / "0.tar")
    assert search.main(["index", str(root / "embeddings"), "--out", str(root / "index")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next:")]
    assert shlex.split(line)[1:6] == ["python", "-m", "pipelines.search", "query", str(root / "index")]

"""Folders as CLIP_benchmark itself writes them, and an OpenCLIP folder through it: the same classes and numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.utils.data
from PIL import Image

from benchmarks.clip_benchmark import main
from ito_ray.config.evaluation import EvalConfig
from ito_ray.config.schema import Config, DataConfig
from ito_ray.errors import ConfigError, DataError
from ito_ray.evaluation.classes import read_numbered
from ito_ray.evaluation.evaluate import evaluate
from ito_ray.evaluation.sources import open_labelled, open_pairs, read
from ito_ray.runtime.encoders import open_encoder
from tests.evaluation.clip_like import write_clip
from tests.evaluation.shapes import COLOURS, SHAPES, ShapeEncoder, draw

builder = pytest.importorskip("clip_benchmark.webdataset_builder")
datasets = pytest.importorskip("clip_benchmark.datasets.builder")
LISTS = Path(datasets.__file__).parent
NAMES = ("circle", "square", "", "circle", "diamond", "bar", "cross", "square", "triangle")
"""Of classes: with a blank one and equal ones, as in its own lists."""
PROMPTS = ["a {c}", "a black {c}"]
CAPTIONS = ("a red circle", "a  red thing", "赤い丸", "a red circle", "круг")


class Pictures(list[tuple[Image.Image, Any]]):
    """What its exporter takes: pictures with a label each, and perhaps the names of classes."""

    classes: Sequence[str] = ()
    templates: Sequence[str] = ()


def _labelled() -> Pictures:
    shapes = {name: name for name in SHAPES} | {"": "cross"}
    rows = ((n, c) for n in range(len(NAMES)) for c in list(COLOURS)[: 4 + n % 2])
    found = Pictures((draw(colour, shapes[NAMES[n]], seed=17 * n), n) for n, colour in rows)
    found.classes, found.templates = NAMES, PROMPTS
    return found


def _captioned() -> Pictures:
    """Three to five captions each, of which the first and the fourth may be equal; one starts a line of its own."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    return Pictures(
        (
            draw(colour, shape, seed=n),
            [f"{said} {colour} {shape} number {n % 60}" for said in CAPTIONS[: 3 + n % 3]],
        )
        for n, (colour, shape) in enumerate(pairs)
    )


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its exporter, in this process and in shards of 15."""
    loader = torch.utils.data.DataLoader

    def write(folder: Path, pictures: Pictures, split: str = "test", **options: Any) -> Path:
        retrieval = not pictures.classes
        convert = builder.convert_retrieval_dataset if retrieval else builder.convert_dataset
        transform = builder.PIL_to_bytes("png")
        with monkeypatch.context() as patch:
            patch.setattr(torch.utils.data, "DataLoader", lambda rows, **options: loader(rows, collate_fn=_only))
            convert(pictures, split, str(folder), transform=transform, image_format="png", max_count=15, **options)
        return folder

    return partial(write, verbose=False)


def _only(batch: Any) -> Any:
    return batch[0]


def _classes(path: Path, **changes: Any) -> Any:
    cfg = Config(eval=EvalConfig(zero_shot=(str(path),), **changes))
    return open_labelled(cfg, cfg.eval.zero_shot, "eval.zero_shot")


def _pairs(path: Path) -> list[Any]:
    return list(read(open_pairs(Config(data=DataConfig(heldout=(str(path),)))), limit=None, max_pixels=10**6))


def test_a_class_is_a_number(tmp_path: Path, export: Any) -> None:
    folder = export(tmp_path / "set", _labelled())
    assert len(list((folder / "test").glob("*.tar"))) == 3
    found = _classes(folder)
    assert found.table == {str(number): name for number, name in enumerate(NAMES)}
    assert found.templates == ("a {}", "a black {}")
    rows = list(read(found.source, limit=None, max_pixels=10**6))
    assert [int(row.meta[found.field]) for row in rows] == [label for _, label in _labelled()]
    for row, (image, _) in zip(rows, _labelled(), strict=True):
        np.testing.assert_array_equal(np.asarray(row.image), np.asarray(image))
    report = evaluate(ShapeEncoder(), Config(eval=EvalConfig(zero_shot=(str(folder),))), evaluators=["zero_shot"])
    assert report.metrics()["zero_shot/images"] == len(rows) and report.dropped == {}


def test_tars_that_are_no_part_of_the_set_are_not_read(tmp_path: Path, export: Any) -> None:
    folder = export(tmp_path / "set", _labelled())
    shutil.copy(folder / "test" / "0.tar", folder / "test" / "3.tar")
    assert _classes(folder).source.pieces == 3
    (folder / "test" / "1.tar").unlink()
    with pytest.raises(DataError, match=r"nothing matches .*1\.tar"):
        _classes(folder)


@pytest.mark.parametrize("split", ["test", "val", "train"])
def test_other_splits(tmp_path: Path, export: Any, split: str) -> None:
    folder = export(tmp_path / "set", _labelled(), split)
    assert _classes(folder) == _classes(folder / split)
    export(folder, _labelled(), "other")
    if split == "test":
        assert _classes(folder) == _classes(folder / split)
    else:
        with pytest.raises(DataError, match=f"has the splits other, {split}: give one of them"):
            _classes(folder)


def test_every_line_of_a_retrieval_set_is_a_caption(tmp_path: Path, export: Any) -> None:
    folder = export(tmp_path / "set", _captioned())
    for path in (folder, folder / "test"):
        assert [row.captions for row in _pairs(path)] == [
            tuple(caption.replace("a  red", "a red") for caption in captions) for _, captions in _captioned()
        ]
    cfg = Config(data=DataConfig(heldout=(str(folder),)))
    found = evaluate(ShapeEncoder(), cfg, evaluators=["retrieval"]).metrics()
    assert found["heldout/captions"] == sum(len(captions) for _, captions in _captioned())
    with pytest.raises(DataError, match=r"eval\.zero_shot: .* a retrieval set: give it to data\.heldout"):
        _classes(folder)


def test_what_is_no_task_of_ours_is_refused_by_name(tmp_path: Path, export: Any) -> None:
    many = Pictures((image, np.eye(9)[label]) for image, label in _labelled())
    many.classes = NAMES
    folder = export(tmp_path / "many", many, multilabel=True)
    with pytest.raises(DataError, match="a multilabel set: such sets cannot be measured here"):
        _classes(folder)
    with pytest.raises(DataError, match="a multilabel set"):
        _pairs(folder)
    folder = export(tmp_path / "classes", _labelled())
    with pytest.raises(DataError, match=r"data\.heldout: .* a classification set: give it to eval\.zero_shot"):
        _pairs(folder)


@pytest.mark.parametrize("language", ["en", "it", "jp", "cn", "ar"])
def test_all_its_lists_of_classes_and_prompts(tmp_path: Path, language: str) -> None:
    lists = json.loads((LISTS / f"{language}_classnames.json").read_text("utf-8"))
    assert {"imagenet1k"} <= set(lists)
    for number, (name, classes) in enumerate(lists.items()):
        path = tmp_path / f"{number}.txt"
        newline = ("\n", "\r\n")[number % 2]
        path.write_text(newline.join(classes) + newline, encoding=("utf-8", "utf-8-sig")[number % 2], newline="")
        assert list(read_numbered(str(path)).values()) == [one.strip() for one in classes], name
    assert len(set(lists["imagenet1k"])) < 1000


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classnames.txt").write_text("\n\n")
    with pytest.raises(ConfigError, match="has no line"):
        read_numbered(str(tmp_path / "classnames.txt"))


@pytest.mark.slow
def test_clip_benchmark_finds_what_we_find(
    tmp_path: Path, export: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = write_clip(tmp_path / "model")
    export(tmp_path / "classes", _labelled(), "val")
    export(tmp_path / "pairs", _captioned())
    monkeypatch.chdir(tmp_path)
    common = ["--encoder", str(folders.open_clip), "--num_workers", "0", "--quiet"]
    words = ["--dataset", "wds/shapes", "--dataset_root", str(tmp_path / "classes"), "--output", "classes.json"]
    assert main([*common, *words, "--split", "val", "--task", "zeroshot_classification"]) == 0
    words = ["--dataset", "wds/pairs", "--dataset_root", str(tmp_path / "pairs"), "--output", "pairs.json"]
    assert main([*common, *words, "--task", "zeroshot_retrieval", "--recall_k", "1", "5", "10"]) == 0
    theirs = {name: json.loads(Path(f"{name}.json").read_text())["metrics"] for name in ("classes", "pairs")}

    encoder = open_encoder(str(folders.open_clip), batch=64)
    cfg = Config(
        data=DataConfig(heldout=(str(tmp_path / "pairs"),)),
        eval=EvalConfig(zero_shot=(str(tmp_path / "classes"),), batch=64),
    )
    ours = evaluate(encoder, cfg).metrics()
    assert ours["zero_shot/mean_per_class"] == pytest.approx(theirs["classes"]["mean_per_class_recall"], abs=1e-6)
    # Its top-k, unlike its argmax, puts any one of the classes of one name first.
    twins = sum(NAMES.count(NAMES[label]) > 1 for _, label in _labelled()) / len(_labelled())
    for ours_k, theirs_k in (("top1", "acc1"), ("top5", "acc5")):
        assert ours[f"zero_shot/{ours_k}"] == pytest.approx(theirs["classes"][theirs_k], abs=twins)
    for k in (1, 5, 10):
        assert ours[f"heldout/r{k}_text_to_image"] == pytest.approx(theirs["pairs"][f"image_retrieval_recall@{k}"])
        assert ours[f"heldout/r{k}_image_to_text"] == pytest.approx(theirs["pairs"][f"text_retrieval_recall@{k}"])
    assert main(["--encoder", "nowhere"]) == 2
    assert "--encoder nowhere is no OpenCLIP folder" in capsys.readouterr().err


@pytest.mark.slow
def test_without_equal_names_all_numbers_are_equal(
    tmp_path: Path, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = write_clip(tmp_path / "model")
    pictures = Pictures((image, SHAPES.index(NAMES[label])) for image, label in _labelled() if NAMES[label])
    pictures.classes, pictures.templates = SHAPES, PROMPTS
    export(tmp_path / "classes", pictures)
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "wds/shapes", "--dataset_root", str(tmp_path / "classes"), "--output", "classes.json"]
    common = ["--encoder", str(folders.open_clip), "--num_workers", "0", "--quiet"]
    assert main([*common, *words, "--task", "zeroshot_classification"]) == 0
    theirs = json.loads(Path("classes.json").read_text())["metrics"]
    cfg = Config(eval=EvalConfig(zero_shot=(str(tmp_path / "classes"),), batch=64))
    ours = evaluate(open_encoder(str(folders.open_clip), batch=64), cfg).metrics()
    for ours_name, name in (("top1", "acc1"), ("top5", "acc5"), ("mean_per_class", "mean_per_class_recall")):
        assert ours[f"zero_shot/{ours_name}"] == pytest.approx(theirs[name], abs=1e-6)

"""From shards to numbers, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ito_ray.config.evaluation import EvalConfig
from ito_ray.config.schema import Config, DataConfig
from ito_ray.data.heldout import HeldoutReader
from ito_ray.errors import ConfigError, DataError
from ito_ray.evaluation.evaluate import evaluate, read_classes, read_templates
from ito_ray.evaluation.measures import GEOMETRY
from ito_ray.evaluation.report import Measure
from ito_ray.runtime import encoders
from ito_ray.tracking.run import open_client, resolve_store
from pipelines import evaluate as command
from tests.evaluation.shapes import SHAPES, ShapeEncoder, write_shape_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_shape_shards(root / "heldout", 120)
    write_shape_shards(root / "labelled", 80, seed=1000)
    (root / "classes.txt").write_text("\n".join(SHAPES), encoding="utf-8")
    (root / "templates.txt").write_text("a {}\n\na black {}\n", encoding="utf-8")
    return root


def config(folder: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "zero_shot": (str(folder / "labelled"),),
        "classes": str(folder / "classes.txt"),
        "templates": str(folder / "templates.txt"),
        "batch": 32,
    }
    return Config(data=DataConfig(heldout=(str(folder / "heldout"),)), eval=EvalConfig(**(values | changes)))


def test_numbers_equal_a_full_matrix(folder: Path) -> None:
    cfg = config(folder)
    encoder = ShapeEncoder()
    report = evaluate(encoder, cfg)
    metrics = report.metrics()
    assert encoder.largest_call == 32

    rows = list(HeldoutReader(cfg.data.heldout, cfg.data.columns, max_pixels=10**6, field="data.heldout"))
    image = encoder.encode_images([row.image for row in rows]).astype(np.float64)
    text = encoder.encode_texts([row.captions[0] for row in rows]).astype(np.float64)
    score = np.round(text @ image.T, 12)  # equal captions tie exactly after rounding
    captions = np.array([row.captions[0] for row in rows])
    right = captions[:, None] == captions  # many drawings of one shape have one caption
    best = np.where(right, score, -np.inf).max(axis=1)
    rank = 1 + ((score >= best[:, None]) & ~right).sum(axis=1)
    for k in (1, 5, 10):
        assert metrics[f"heldout/r{k}_text_to_image"] == pytest.approx((rank <= k).mean())
    assert metrics["heldout/median_rank_text_to_image"] == np.median(rank)
    assert metrics["geometry/modality_gap"] == pytest.approx(np.linalg.norm(image.mean(0) - text.mean(0)), abs=1e-6)
    assert {name for name in metrics if name.startswith("geometry/")} == set(GEOMETRY)
    assert metrics["heldout/pairs"] == metrics["heldout/captions"] == 120
    assert metrics["heldout/shared_captions"] == (right.sum(axis=1) > 1).sum() > 100
    chances = {measure.name: measure.chance for measure in report.measures}
    assert chances["heldout/r1_text_to_image"] == pytest.approx(right.mean())

    labelled = list(HeldoutReader(cfg.eval.zero_shot, cfg.data.columns, max_pixels=10**6, field="eval.zero_shot"))
    prompts = np.stack([encoder.encode_texts([f"a {c}", f"a black {c}"]).mean(axis=0) for c in SHAPES])
    prompts /= np.linalg.norm(prompts, axis=1, keepdims=True)
    first = (encoder.encode_images([row.image for row in labelled]) @ prompts.T).argmax(axis=1)
    correct = first == [SHAPES.index(row.meta["name"]) for row in labelled]
    assert metrics["zero_shot/top1"] == pytest.approx(correct.mean())
    assert 0.3 < metrics["zero_shot/top1"] < 1
    assert (metrics["zero_shot/classes"], metrics["zero_shot/images"]) == (6, 80)
    assert set(report.intervals) == {m.name for m in report.headline}
    for measure in report.headline:
        if measure.interval:
            assert measure.interval[0] <= measure.value <= measure.interval[1]


def test_batch_does_not_change_the_numbers(folder: Path) -> None:
    assert (
        evaluate(ShapeEncoder(), config(folder, batch=7)).to_json()
        == evaluate(ShapeEncoder(), config(folder)).to_json()
    )


def test_more_captions_and_a_limit(folder: Path) -> None:
    metrics = evaluate(ShapeEncoder(), config(folder, captions=2), limit=30).metrics()
    assert (metrics["heldout/pairs"], metrics["heldout/captions"], metrics["zero_shot/images"]) == (30, 60, 30)


def test_what_is_left_out_is_counted(folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_shape_shards(shards, 40)
    (shards / "broken.tar").write_bytes(b"no tar at all" * 100)
    few = tmp_path / "few.txt"
    few.write_text("circle\nbar\n", encoding="utf-8")
    cfg = config(folder, zero_shot=(str(shards),), classes=str(few))
    report = evaluate(ShapeEncoder(), cfg)
    known = report.metrics()["zero_shot/images"]
    assert 0 < known < 40
    assert report.dropped == {"not_a_tar": 1, "class_not_listed": 40 - known}
    assert json.loads(report.to_json())["dropped"] == report.dropped


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ConfigError, match=r"data.heldout and eval.zero_shot are both empty"):
        evaluate(ShapeEncoder(), Config())


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"cat\ndog\ncat\n", "'cat' more than once"), (b"\n \n", "has no line"), (b"\xff\xfe", "as UTF-8 text")],
)
def test_wrong_class_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_classes(str(path))


def test_missing_files_and_templates(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval\.classes is empty"):
        read_classes("")
    with pytest.raises(ConfigError, match=r"eval.templates=.*gone.txt cannot be read"):
        read_templates(str(tmp_path / "gone.txt"))
    with pytest.raises(ConfigError, match=r"'circle' without \{\}"):
        read_templates(str(folder / "classes.txt"))
    assert read_templates("") == ("{}",)


def test_cells_of_a_measure() -> None:
    share = Measure("m", "R@1", 0.25, "share", (0.2, 0.3), 0.00004)
    assert share.cells() == ("R@1", "25.0 %", "20.0 % – 30.0 %", "0.004 %", "× 6,250")
    rank = Measure("m", "rank", 2.5, "rank", chance=500)
    assert rank.cells() == ("rank", "2.5", "–", "500", "× 200")
    assert Measure("m", "none", 0.0, "share", chance=0.1).cells()[4] == "× 0.0"
    assert Measure("m", "gap", 0.1234, "distance").cells() == ("gap", "0.123", "–", "–", "–")


def test_command_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(encoders, "open_encoder", lambda *_, **__: ShapeEncoder())
    out = tmp_path / "out"
    arguments = ["--model", "models/shapes", "--heldout", str(folder / "heldout"), "--out", str(out)]
    arguments += ["--zero-shot", str(folder / "labelled"), "--classes", str(folder / "classes.txt"), "--batch", "50"]
    assert command.main(arguments) == 0
    drawn = ["confusion.png", "gallery.png", "index.html", "map.png", "metrics.json"]
    assert sorted(path.name for path in out.iterdir()) == drawn
    written = json.loads((out / "metrics.json").read_text("utf-8"))
    printed = capsys.readouterr().out
    assert f"{100 * written['metrics']['heldout/r10_text_to_image']:.1f} %" in printed
    assert "Next: python -m http.server --directory" in printed


def test_the_recipe_fills_what_is_not_given() -> None:
    cfg = command.Evaluate(model="m", recipe="icons_cpu", batch=9, zero_shot=("other",)).config()
    assert cfg.data.heldout == ("demo/data/heldout",)
    assert (cfg.eval.zero_shot, cfg.eval.batch, cfg.eval.classes) == (("other",), 9, "demo/data/classes.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere", "--recipe", "icons"], "--recipe icons"),
        (["--model", "nowhere", "--heldout", "x.tar"], "model=nowhere: there is no such folder"),
        (["--model", "nowhere", "--heldout", "x.tar", "--evaluators", "knn"], "--evaluators knn needs eval.zero_shot"),
        (["--model", "nowhere", "--heldout", "x.tar", "--evaluators", "geo"], "--evaluators geo: there is retrieval"),
        (["--model", "nowhere", "--heldout", "x.tar", "--workers", "-1"], "--workers -1"),
        (["--model", "nowhere", "--batch", "0"], "eval.batch=0"),
    ],
)
def test_command_line_errors(arguments: list[str], message: str, capsys: Any) -> None:
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_missing_shards_name_the_field(folder: Path) -> None:
    with pytest.raises(DataError, match=r"eval\.zero_shot"):
        evaluate(ShapeEncoder(), config(folder, zero_shot=(str(folder / "gone-*.tar"),)))


@pytest.mark.slow  # a new SQLite store takes MLflow some seconds
def test_a_report_with_a_baseline_goes_to_a_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(encoders, "open_encoder", lambda *_, **__: ShapeEncoder())
    store = f"sqlite:///{tmp_path}/mlflow.db"
    client = open_client(resolve_store(store, ""))
    training = client.create_run(
        client.create_experiment("ito", artifact_location=(tmp_path / "a").as_uri())
    ).info.run_id
    for step in (1, 2, 3):
        client.log_metric(training, "train/loss", 3.0 / step, step=step)
    out = tmp_path / "out"
    arguments = ["--model", "shapes", "--heldout", str(folder / "heldout"), "--out", str(out), "--limit", "6"]
    arguments += ["--baselines", "other", "--report", "--tracking-uri", store, "--run", training]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert training in printed
    assert "Against shapes" in printed
    logged = client.get_run(training).data.metrics
    assert logged["evaluate/heldout/pairs"] == 6
    files = {one.path for one in client.list_artifacts(training, "evaluation")}
    assert {f"evaluation/{name}" for name in ("index.html", "map_tsne.png", "curves_training.png")} <= files
    html = (out / "index.html").read_text("utf-8")
    assert "train/loss" in html
    assert "Against shapes" in html
    assert command.main([*(word for word in arguments[:-1] if word != "--report"), "new"]) == 0
    assert len(client.search_runs([client.get_experiment_by_name("ito").experiment_id])) == 2  # type: ignore[union-attr]
    assert command.main([*(word for word in arguments[:-1] if word != "--report"), "gone"]) == 2
    assert "'gone'" in capsys.readouterr().err

"""An exported OpenCLIP folder through the CLIP_benchmark of PyPI, on local WebDatasets: the same numbers as ours."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from benchmarks.clip_benchmark import main
from ito_ray.config.evaluation import EvalConfig
from ito_ray.config.schema import Config, DataConfig
from ito_ray.evaluation.evaluate import evaluate
from ito_ray.runtime.encoders import open_encoder
from tests.evaluation.clip_like import write_clip
from tests.evaluation.shapes import COLOURS, SHAPES, draw
from tests.evaluation.test_sources import write_clip_benchmark


def write_retrieval(folder: Path) -> Path:
    (folder / "test").mkdir(parents=True)
    (folder / "dataset_type.txt").write_text("retrieval", encoding="utf-8")
    (folder / "test" / "nshards.txt").write_text("1", encoding="utf-8")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number, (colour, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
            picture, text = folder / "p.png", folder / "t.txt"
            draw(colour, shape, seed=number).save(picture)
            text.write_text(f"a {colour} {shape}", encoding="utf-8")
            tar.add(picture, f"{number:03d}.png")
            tar.add(text, f"{number:03d}.txt")
    return folder


@pytest.mark.slow
def test_clip_benchmark_finds_what_we_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("clip_benchmark.cli")
    monkeypatch.chdir(tmp_path)
    folders = write_clip(tmp_path / "model")
    rows = [(colour, shape, i) for shape in SHAPES for i, colour in enumerate(COLOURS)]
    write_clip_benchmark(tmp_path / "classes", rows)
    write_retrieval(tmp_path / "pairs")
    common = ["--encoder", str(folders.open_clip), "--num_workers", "0", "--quiet"]
    words = ["--dataset", "wds/shapes", "--dataset_root", str(tmp_path / "classes"), "--output", "classes.json"]
    assert main([*common, *words, "--task", "zeroshot_classification"]) == 0
    words = ["--dataset", "wds/pairs", "--dataset_root", str(tmp_path / "pairs"), "--output", "pairs.json"]
    assert main([*common, *words, "--task", "zeroshot_retrieval", "--recall_k", "1", "5", "10"]) == 0
    theirs = {name: json.loads(Path(f"{name}.json").read_text())["metrics"] for name in ("classes", "pairs")}

    encoder = open_encoder(str(folders.open_clip), batch=64)
    cfg = Config(
        data=DataConfig(heldout=(str(tmp_path / "pairs" / "test"),)),
        eval=EvalConfig(zero_shot=(str(tmp_path / "classes"),), batch=64),
    )
    ours = evaluate(encoder, cfg).metrics()
    assert ours["zero_shot/top1"] == pytest.approx(theirs["classes"]["acc1"], abs=1e-6)
    assert ours["zero_shot/top5"] == pytest.approx(theirs["classes"]["acc5"], abs=1e-6)
    assert ours["zero_shot/mean_per_class"] == pytest.approx(theirs["classes"]["mean_per_class_recall"], abs=1e-6)
    for k in (1, 5, 10):
        assert ours[f"heldout/r{k}_text_to_image"] == pytest.approx(theirs["pairs"][f"image_retrieval_recall@{k}"])
        assert ours[f"heldout/r{k}_image_to_text"] == pytest.approx(theirs["pairs"][f"text_retrieval_recall@{k}"])
    assert main(["--encoder", "nowhere"]) == 2
    assert "--encoder nowhere is no OpenCLIP folder" in capsys.readouterr().err

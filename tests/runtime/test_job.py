"""The main job on real Ray, real MLflow and real processes; and what it refuses before it starts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.data.position import Position, members
from ito_ray.data.rows import read_piece
from ito_ray.errors import ClusterError, ConfigError, DataError
from ito_ray.evaluation.encoder import FolderEncoder
from ito_ray.export.card import read_origin
from ito_ray.export.checks import check_manifest
from ito_ray.runtime import job, trainer
from ito_ray.runtime.console import Stages
from ito_ray.runtime.preflight import plan_data
from ito_ray.tracking.registry import download, load
from ito_ray.training.state import read_state
from tests.data.makers import picture, write_tar
from tests.runtime.shards import sample, small_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
REPOSITORY = Path(__file__).parents[2]


def _run(cfg: Config) -> job.Outcome:
    return job.run(cfg, recipe="test", stages=Stages(Console(quiet=True), job.STAGES))


def _samples(position: Position, cfg: Config) -> int:
    """Samples consumed, counted from the shards themselves."""
    plan = plan_data(cfg).plan
    pieces = [piece for entry in members(position.complete) for piece in plan.entry(entry)]
    return sum(1 for piece in pieces for _ in read_piece(piece, cfg.data.columns)) + position.samples_open


def test_the_job_from_shards_to_registry(tmp_path: Path) -> None:
    """On two ranks that share the weights, in micro-batches, with evaluation half-way."""
    train = {"steps": 20, "workers": 2, "parallel": "fsdp", "micro_batch": 4}
    cfg = small_config(tmp_path, train=train, eval={"every": 10}, tracking={"model_name": "small"})

    outcome = _run(cfg)

    finished = trainer.latest_checkpoint(cfg)
    assert finished is not None
    state = read_state(finished)
    position = Position.from_json(state.position)  # taking a sample twice would have raised
    assert (state.step, _samples(position, cfg)) == (20, 20 * 16)
    assert len(json.dumps(state.position)) < 4000

    runs = outcome.run.client.search_runs([outcome.run.experiment_id])
    assert len(runs) == 1
    assert runs[0].info.status == "FINISHED"
    curve = outcome.run.client.get_metric_history(outcome.run.run_id, "train/loss/total")
    assert sorted(point.step for point in curve) == list(range(1, 21))
    assert {"train/loss/align", "train/loss/fusion", "train/logit_scale", "train/data_wait_share"} <= set(
        runs[0].data.metrics
    )
    half_way = outcome.run.client.get_metric_history(outcome.run.run_id, "eval/heldout/r1_text_to_image")
    assert [point.step for point in half_way] == [10]
    pictures = {entry.path for entry in outcome.run.client.list_artifacts(outcome.run.run_id, "evaluation")}
    assert {f"evaluation/{name}" for name in ("index.html", "gallery.png", "map.png")} <= pictures

    _the_registered_model_is_the_trained_one(outcome)
    _its_card_says_what_the_run_measured(cfg, outcome)
    _running_again_changes_nothing(cfg, outcome)
    with pytest.raises(ConfigError, match=r"model\.embed_dim=32"):
        _run(overlay(cfg, {"model": {"embed_dim": 32}}, source="test"))


def _the_registered_model_is_the_trained_one(outcome: job.Outcome) -> None:
    texts, images = ["a red thing", "an old thing"], [picture(1), picture(2)]
    model: Any = load(outcome.registered.uri, outcome.run.store)
    folder = FolderEncoder(outcome.encoder)
    by_text = np.array(model.predict(pd.DataFrame({"text": texts}))["embedding"].tolist(), np.float32)
    by_image = np.array(model.predict(pd.DataFrame({"image": images}))["embedding"].tolist(), np.float32)
    np.testing.assert_allclose(by_text, folder.encode_texts(texts), atol=1e-6)
    assert by_image.shape == by_text.shape
    assert outcome.verified.max_abs_difference <= 1e-5


def _its_card_says_what_the_run_measured(cfg: Config, outcome: job.Outcome) -> None:
    known = read_origin(download(outcome.registered.uri, outcome.run.store))
    assert known.metrics == outcome.report.metrics()
    assert (known.recipe, known.training["steps"]) == ("test", "20 of 16 pairs")
    assert known.data_pairs_read == outcome.training.rows_delivered
    assert known.data_licence is None
    assert cfg.output not in (outcome.encoder / "README.md").read_text()
    assert "| licence | unknown |" in (outcome.encoder / "README.md").read_text()
    assert check_manifest(outcome.encoder) == "sentence_transformer"


def _running_again_changes_nothing(cfg: Config, outcome: job.Outcome) -> None:
    again = _run(cfg)
    assert again.registered.version == outcome.registered.version == "1"
    assert again.run.run_id == outcome.run.run_id
    assert again.report.metrics() == outcome.report.metrics()


def test_too_many_bad_samples_end_the_job_with_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    broken = [(f"bad{number}", {"jpg": b"plain text", "txt": b"a caption"}) for number in range(20)]
    write_tar(folder / "bad.tar", [*(sample(number) for number in range(40)), *broken])
    cfg = small_config(tmp_path, data={"train": [str(folder)]}, train={"max_failures": 1})
    with pytest.raises(DataError, match=r"20 of 60 samples are bad.*image_unreadable 20"):
        _run(cfg)
    store = f"sqlite:///{tmp_path / 'runs' / 'mlflow' / 'mlflow.db'}"
    (run,) = mlflow.MlflowClient(store).search_runs(["1"])
    assert run.info.status == "FAILED"


def test_more_workers_than_the_cluster_has_are_refused_at_start(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"train\.workers=16 .* but Ray Data needs at least one"):
        _run(small_config(tmp_path, train={"workers": 16, "cpus_per_worker": 1.0}))
    assert time.monotonic() - started < 60


def test_gpus_that_are_not_there_are_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="the cluster has 0"):
        _run(small_config(tmp_path, train={"gpu": True}))


def test_shards_without_one_readable_sample_are_refused_at_start(tmp_path: Path) -> None:
    folder = tmp_path / "junk"
    folder.mkdir()
    (folder / "junk.tar").write_bytes(b"no tar at all " * 100)
    with pytest.raises(DataError, match=r"not one readable sample .* not_a_tar"):
        _run(small_config(tmp_path, data={"train": [str(folder)]}))


def test_the_command_prints_one_sentence_and_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "pipelines.train", "--data.train", str(tmp_path / "empty")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: data.train")
    assert "Traceback" not in done.stderr + done.stdout

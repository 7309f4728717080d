"""The run's folder is lost, and the same command goes on from the copies in an object store, on real Ray and MLflow."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.faults import lines, problems_of_samples
from ito_ray.config.load import to_yaml
from ito_ray.config.schema import Config
from ito_ray.runtime import trainer, upload
from ito_ray.runtime.preflight import plan_data
from ito_ray.tracking.run import resolve_store
from ito_ray.training.stored import open_copies
from tests.data.store import Store, serving
from tests.runtime import recorded
from tests.runtime.shards import small_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
REPOSITORY = Path(__file__).parents[2]
STEPS, CUT, EVERY = 40, 20, 5


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "bucket").mkdir()
    with serving(tmp_path / "bucket") as running:
        yield running


def _arguments(cfg: Config, tmp: Path, stop: int) -> list[str]:
    (tmp / "config.yaml").write_text(to_yaml(cfg))
    (tmp / "record").mkdir(exist_ok=True)
    return [str(tmp / "record"), str(stop), "0", "--config", str(tmp / "config.yaml")]


def _killed_when_its_copy_is_there(cfg: Config, tmp: Path, last: Path) -> None:
    """In a process and a Ray of its own, which die with it; it stands still at that step, and copies go on."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    command = [sys.executable, "-m", "tests.runtime.recorded", *_arguments(cfg, tmp, stop=CUT + 2)]
    with (tmp / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, env=environment)
    deadline = time.monotonic() + 400
    while not last.is_file():
        assert process.poll() is None and time.monotonic() < deadline, (tmp / "log.txt").read_text()[-2000:]
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_lost_folder_is_brought_back(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"steps": STEPS, "checkpoint_every": EVERY, "checkpoint_store": store.url("copies")}
    cfg = small_config(tmp_path, train=train)
    run, copied = tmp_path / "runs" / cfg.name, tmp_path / "bucket" / "copies" / cfg.name
    _killed_when_its_copy_is_there(cfg, tmp_path, copied / f"step-{CUT:08d}" / "state.json")
    words = (run / "tokenizer" / "tokenizer.json").read_bytes()
    shutil.rmtree(run)  # MLflow's store lies beside it
    (copied / f"step-{CUT + EVERY:08d}").mkdir()
    (copied / f"step-{CUT + EVERY:08d}" / "method.safetensors").write_bytes(b"half a copy")
    first_life = {path.name for path in (tmp_path / "record").iterdir()}
    store.fault = lambda method, key: 503 if method == "POST" and f"step-{CUT + EVERY:08d}" in key else None

    assert recorded.main(_arguments(cfg, tmp_path, stop=0)) == 0
    assert f"step-{CUT:08d} was brought back from s3://bucket/copies" in capsys.readouterr().out
    (second,) = {path.name for path in (tmp_path / "record").iterdir()} - first_life
    shutil.copytree(tmp_path / "record", tmp_path / "second", ignore=shutil.ignore_patterns(*first_life))
    assert (tmp_path / "second" / second).is_file()
    assert [step for _, step, *_ in lines(tmp_path / "second")] == list(range(CUT + 1, STEPS + 1))
    assert (run / "tokenizer" / "tokenizer.json").read_bytes() == words

    newest = trainer.latest_checkpoint(cfg)
    assert newest is not None
    passes = (STEPS - EVERY) * cfg.train.global_batch // 96
    assert problems_of_samples(cfg, tmp_path / "record", plan_data(cfg).plan, newest, passes) == []
    client = MlflowClient(resolve_store(cfg.tracking.uri, cfg.output).uri)
    (told,) = client.search_runs(["1"])
    curve = client.get_metric_history(told.info.run_id, "train/loss/total")
    assert sorted(point.step for point in curve) == list(range(1, STEPS + 1)) and told.info.status == "FINISHED"

    copies = open_copies(cfg)
    assert copies is not None and copies.whole()[0] == newest.name == f"step-{STEPS:08d}"
    assert len(copies.whole()) <= cfg.train.keep_checkpoints
    assert not any((copied / f"step-{CUT + EVERY:08d}").glob("*")), "the half is gone"
    assert copies.get(newest.name, tmp_path / "got") == ""
    for path in newest.iterdir():
        assert (tmp_path / "got" / path.name).read_bytes() == path.read_bytes()

    shutil.rmtree(copied / newest.name)
    monkeypatch.setattr(upload, "PATIENCE_SECONDS", 1.0)
    store.fault = lambda method, key: 503 if method == "POST" and newest.name in key else None
    assert recorded.main(_arguments(cfg, tmp_path, stop=0)) == 2
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert f"has no copy of {newest.name}" in " ".join(said.split()) and "already trained" in said
    store.fault = lambda method, key: None
    assert recorded.main(_arguments(cfg, tmp_path, stop=0)) == 0, "the same command copies it"
    assert copies.whole()[0] == newest.name

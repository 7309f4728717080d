"""`ray job submit` to a real head: a run that is stopped on the way, beside one that is refused."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from ito_ray.config.load import to_yaml
from ito_ray.runtime import trainer
from ito_ray.training.state import read_state
from pipelines.command import LOG_WIDTH
from tests.runtime.head import Head, job_server, wait
from tests.runtime.shards import small_config

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
STEPS = 2000


@pytest.fixture(name="head")
def _head() -> Iterator[Head]:
    with job_server() as head:
        yield head


def test_a_stopped_job_can_be_resumed_and_a_refused_one_says_why(head: Head, tmp_path: Path) -> None:
    train = {"steps": STEPS, "checkpoint_every": STEPS}  # none is due before the job is stopped
    cfg = small_config(tmp_path, train=train)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    running = head.submit(f"pipelines.train --config {tmp_path / 'config.yaml'}")
    refused = head.submit(f"pipelines.train --config {tmp_path / 'config.yaml'} --output runs")

    def log() -> str:
        return str(head.client.get_job_logs(running))

    def has_trained() -> bool:
        assert not head.ended(running), log()
        return {"ray_ito_loss", "ray_ito_worker_starts_total"} <= _exported(head.metrics)

    wait(has_trained, 240, log)
    wait(lambda: head.ended(refused), 120, lambda: str(head.client.get_job_logs(refused)))
    head.client.stop_job(running)
    wait(lambda: head.ended(running), 90, log)

    _was_refused_with_a_sentence(head, refused)
    assert head.client.get_job_status(running) == "STOPPED"
    assert "Stopped. The same command again resumes from the newest checkpoint." in log(), log()
    assert "stopping: waiting for a checkpoint" in log(), log()
    newest = trainer.latest_checkpoint(cfg)
    assert newest is not None and 1 < read_state(newest).step < STEPS, f"a checkpoint out of turn: {log()}"
    store = f"sqlite:///{tmp_path / 'runs' / 'mlflow' / 'mlflow.db'}"
    (run,) = mlflow.MlflowClient(store).search_runs(["1"])
    assert run.info.status == "KILLED"
    _reads_well(log())


def _exported(url: str) -> set[str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:  # not yet
        return set()
    return {line.partition("{")[0] for line in lines if line.startswith("ray_ito_")}


def _was_refused_with_a_sentence(head: Head, job: str) -> None:
    """Ray deletes the copy of the working folder, so a run must not be kept there."""
    assert head.client.get_job_status(job) == "FAILED"
    assert head.client.get_job_info(job).driver_exit_code == 2
    text = head.client.get_job_logs(job)
    assert "error: The cluster cannot run this: output=runs is in the job's copy of the working folder" in text
    assert "Traceback" not in text


def _reads_well(text: str) -> None:
    """Headings, the table of the cluster, progress line by line; no control characters, no broken or foreign lines."""
    lines = text.splitlines()
    assert any(line.startswith(f"▸ 2/5 Train ito: {STEPS} steps") for line in lines), text
    assert any(f"/{STEPS} · loss" in line and "waiting for data" in line for line in lines), text
    assert any(line.strip().startswith("versions") and "ray 2." in line for line in lines), text
    assert "\x1b" not in text and "\r" not in text and "Traceback" not in text
    assert not any(line.startswith("(") for line in lines), "no lines of Ray's workers"
    ours = [line for line in lines if not line.startswith("Running entrypoint for job")]
    assert max(map(len, ours)) <= LOG_WIDTH, "rich wraps"

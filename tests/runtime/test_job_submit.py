"""`ray job submit` to a real head: a run that is stopped on the way, beside one that is refused."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import requests

from ito_ray.config.load import to_yaml
from ito_ray.runtime import trainer
from ito_ray.training.state import read_state
from pipelines.command import LOG_WIDTH
from tests.runtime.shards import small_config

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
REPOSITORY = Path(__file__).parents[2]
STEPS = 2000


@dataclass(frozen=True)
class Head:
    """A cluster of one node, as `ray start --head` makes it."""

    client: Any
    """JobSubmissionClient."""
    metrics: str

    def submit(self, arguments: str) -> str:
        """As `make submit` does."""
        environment = {"working_dir": str(REPOSITORY), "excludes": ["docs", "tests"]}
        command = f"{sys.executable} -m pipelines.train {arguments}"
        submitted: list[str] = []

        def is_accepted() -> bool:
            try:
                submitted.append(self.client.submit_job(entrypoint=command, runtime_env=environment))
            except RuntimeError as error:  # the page is there some seconds before the agent that starts jobs
                assert "No available agent" in str(error), error
            except requests.ConnectionError:  # and closes what it cannot answer yet
                pass
            return bool(submitted)

        _wait(is_accepted, 120, lambda: "no agent takes jobs")
        return submitted[0]

    def ended(self, job: str) -> bool:
        return bool(self.client.get_job_status(job).is_terminal())


def _wait(what: Callable[[], object], seconds: float, say: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, say()
        time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    """Below those that the system gives to anybody who asks: another Ray takes dozens before ours listens."""
    ports: set[int] = set()
    while len(ports) < count:
        port = random.randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.add(port)
    return list(ports)


@pytest.fixture(name="head")
def _head() -> Iterator[Head]:
    pytest.importorskip("aiohttp_cors", reason="needs ray[default]: the extra `jobs`")
    from ray.job_submission import JobSubmissionClient

    folder = Path(tempfile.mkdtemp(prefix="ito-"))  # short: Ray's sockets are below
    port, dashboard, agent, export, client = _free_ports(5)
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--num-cpus=2"),
        *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={export}", f"--temp-dir={folder}"),
        *(f"--ray-client-server-port={client}", "--node-ip-address=127.0.0.1", f"--object-store-memory={200 << 20}"),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    environment |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "RAY_metrics_report_interval_ms": "1000",
    }
    log = (folder / "head.txt").open("w+")
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{dashboard}"

        def is_up() -> bool:
            assert process.poll() is None, (folder / "head.txt").read_text()
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
            except OSError:
                return False
            return True

        _wait(is_up, 60, (folder / "head.txt").read_text)
        yield Head(JobSubmissionClient(address), f"http://127.0.0.1:{export}/metrics")
    finally:
        whole = psutil.Process(process.pid)  # --block keeps all of Ray's processes below itself
        for one in (*whole.children(recursive=True), whole):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_stopped_job_can_be_resumed_and_a_refused_one_says_why(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    train = {"steps": STEPS, "checkpoint_every": STEPS}  # none is due before the job is stopped
    cfg = small_config(tmp_path, train=train)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    running = head.submit(f"--config {tmp_path / 'config.yaml'}")
    refused = head.submit(f"--config {tmp_path / 'config.yaml'} --output runs")

    def log() -> str:
        return str(head.client.get_job_logs(running))

    def has_trained() -> bool:
        assert not head.ended(running), log()
        return {"ray_ito_loss", "ray_ito_worker_starts_total"} <= _exported(head.metrics)

    _wait(has_trained, 240, log)
    _wait(lambda: head.ended(refused), 120, lambda: str(head.client.get_job_logs(refused)))
    head.client.stop_job(running)
    _wait(lambda: head.ended(running), 90, log)

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

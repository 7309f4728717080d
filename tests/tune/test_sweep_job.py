"""A sweep sent with `ray job submit`, stopped with `ray job stop`, and sent again; its trials have two workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.command import LOG_WIDTH
from tests.runtime.head import Head, job_server, wait
from tests.tune.sweep_process import two_points
from tune.book import Book

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
STEPS, EVERY = 16, 4
NAME = "small-ito_lambda"


@pytest.fixture(name="head")
def _head() -> Iterator[Head]:
    with job_server() as head:
        yield head


def test_a_stopped_sweep_goes_on_when_it_is_sent_again(head: Head, tmp_path: Path) -> None:
    words = two_points(tmp_path, every=EVERY, steps=STEPS, workers=2, cpus_per_worker=0.5)
    command = f"tune.search {' '.join(words)}"
    stopped = head.submit(command)

    def book() -> Book:
        return Book(tmp_path / "runs" / NAME / "book.jsonl", read_only=True)

    def log(job: str) -> str:
        return str(head.client.get_job_logs(job))

    def has_evaluated() -> bool:
        assert not head.ended(stopped), log(stopped)
        return any(trial.curve for trial in book().trials.values())

    wait(has_evaluated, 300, lambda: log(stopped))
    head.client.stop_job(stopped)
    wait(lambda: head.ended(stopped), 90, lambda: log(stopped))
    assert head.client.get_job_status(stopped) == "STOPPED"
    assert f"Stopped. To resume: python -m {command}" in log(stopped).replace(" '", " ").replace("' ", " "), log(
        stopped
    )
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow' / 'mlflow.db'}")
    (before,) = [run for run in client.search_runs(["1"]) if "mlflow.parentRunId" not in run.data.tags]
    assert before.info.status == "KILLED"

    again = head.submit(command)
    wait(lambda: head.ended(again), 400, lambda: log(again))
    assert head.client.get_job_status(again) == "SUCCEEDED", log(again)
    assert "resumed: " in log(again), log(again)
    assert book().sessions == 2
    curves = {key: [step for step, _ in trial.curve] for key, trial in book().trials.items()}
    assert curves == {key: [4, 8, 12, 16] for key in ("p000-s0", "p001-s0")}
    runs = client.search_runs(["1"])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.run_id, parent.info.status) == (before.info.run_id, "FINISHED")
    children = {str(run.info.run_name): run for run in runs if run is not parent}
    assert sorted(children) == sorted(curves) and len(runs) == 3, "none lost, none twice"
    for run in children.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        points = client.get_metric_history(run.info.run_id, "train/loss/total")
        assert sorted(point.step for point in points) == list(range(1, STEPS + 1))
    _reads_well(log(stopped) + log(again))


def _reads_well(text: str) -> None:
    """No control characters, no foreign lines, none that a terminal of 80 columns would have broken."""
    addresses = ("Running entrypoint for job", "Stopped.", "Report", "Next:")  # as long as they are
    lines = [line for line in text.splitlines() if not line.startswith(addresses)]
    assert "\x1b" not in text and "\r" not in text and "Traceback" not in text, text
    assert not any(line.startswith("(") for line in lines), text
    assert any("2 finished · best" in line for line in lines) and max(map(len, lines)) <= LOG_WIDTH, text

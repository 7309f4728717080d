"""Nothing that a run tells MLflow is lost while the server is away, and nobody waits for it."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ito_ray.config.schema import Config
from ito_ray.errors import TrackingError
from ito_ray.tracking.outbox import Outbox
from ito_ray.tracking.provenance import dataset_identity
from ito_ray.tracking.run import METRICS_PER_CALL, TrackedRun, open_run
from tests.tracking.servers import free_port, kill, mlflow_server

LOSS = "train/loss/total"


def _opened(output: Path, uri: str = "") -> TrackedRun:
    cfg = Config(name="one", output=str(output), tracking={"uri": uri})
    data = dataset_identity("train", [], [("/data/a.tar", 10)])
    return open_run(cfg, recipe="tiny", dataset=data, versions={}, git="abc123")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


class Away:
    """A client whose server is away for the first calls."""

    def __init__(self, client: MlflowClient, calls: int) -> None:
        self._client, self.calls = client, calls

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            self.calls -= 1
            if self.calls >= 0:
                raise MlflowException("Connection refused by http://user:secret@host/")  # pragma: allowlist secret
            return getattr(self._client, name)(*given, **named)

        return call


def _curve(run: TrackedRun, name: str = LOSS) -> list[tuple[int, float]]:
    points = MlflowClient(run.store.uri).get_metric_history(run.run_id, name)
    return [(point.step, point.value) for point in points]


def test_all_arrives_in_order_once_the_server_is_back(output: Path, tmp_path: Path) -> None:
    run = _opened(output / "order")
    run.client = Away(run.client, 5)  # type: ignore[assignment]
    outbox = Outbox(run, tmp_path / "journal.jsonl", retry_seconds=0.05)
    page = tmp_path / "page.html"
    page.write_text("page")
    started = time.perf_counter()
    for step in range(1, 301):
        outbox.log(step, {LOSS: step / 10})
    outbox.log_file(page, "evaluation")
    assert time.perf_counter() - started < 1, "who logs does not wait"
    assert outbox.finish()
    assert _curve(run) == [(step, step / 10) for step in range(1, 301)]
    client = MlflowClient(run.store.uri)
    assert [item.path for item in client.list_artifacts(run.run_id, "evaluation")] == ["evaluation/page.html"]
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert not (tmp_path / "journal.jsonl").exists()


def test_a_server_that_stays_away_is_told_and_the_next_process_delivers(output: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    run = _opened(output / "away")
    run.client = Away(run.client, 10**9)  # type: ignore[assignment]
    outbox = Outbox(run, journal, retry_seconds=0.05)
    outbox.log(1, {LOSS: 0.5})
    outbox.log_file(tmp_path / "page.html")
    with pytest.raises(
        TrackingError, match=r"1 entries of metrics and 1 files \(MlflowException: Connection.*same comm"
    ):
        outbox.require_delivered(patience=0.3)
    assert "secret" not in outbox.complaint() and outbox.trouble
    assert not outbox.finish("FAILED", patience=0.1)
    with journal.open("a") as file:
        file.write('{"metrics": {"cut sh')  # a kill in the midst of a line
    (tmp_path / "page.html").write_text("page")

    again = _opened(output / "away")
    assert again.run_id == run.run_id
    later = Outbox(again, journal)
    later.log(2, {LOSS: 0.25})
    later.require_delivered(20)
    assert _curve(again) == [(1, 0.5), (2, 0.25)]
    assert [item.path for item in again.client.list_artifacts(run.run_id)] == ["config.yaml", "page.html"]
    assert again.client.get_run(run.run_id).info.status == "RUNNING", "the end of the process before is not its end"


def test_what_was_delivered_before_a_kill_is_not_there_twice(output: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    run = _opened(output / "twice")
    run.log(1, {LOSS: 0.5})
    items = [{"metrics": {LOSS: value}, "step": step, "time": 2**42} for step, value in ((1, 9.0), (2, 0.25))]
    journal.write_text("".join(json.dumps(item) + "\n" for item in items))
    Outbox(_opened(output / "twice"), journal).require_delivered(20)
    assert _curve(run) == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize("gone", ["file", "folder", "made a folder"])
def test_a_file_that_is_gone_holds_nothing_back(
    output: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, gone: str
) -> None:
    run = _opened(output / f"gone-{gone}")
    run.client = Away(run.client, 1)  # type: ignore[assignment]
    outbox = Outbox(run, tmp_path / "journal.jsonl", retry_seconds=0.5)
    page = tmp_path / "evaluation" / "page.html"
    page.parent.mkdir()
    page.write_text("page")
    outbox.log(1, {LOSS: 0.5})
    outbox.log_file(page)
    outbox.log(2, {LOSS: 0.25})
    page.unlink()
    if gone == "folder":
        page.parent.rmdir()
    elif gone == "made a folder":
        page.mkdir()
    assert outbox.finish(patience=20)
    assert _curve(run) == [(1, 0.5), (2, 0.25)]
    assert "does not get" in caplog.text and str(page) in caplog.text
    assert MlflowClient(run.store.uri).get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("tail", ['{"metrics": {"train/lo', "\0\0\0", "12", "\n"])
def test_a_line_that_was_cut_costs_no_other(
    output: Path, tmp_path: Path, tail: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The process before was killed while it wrote; the one after it is killed with everything still in its journal."""
    journal = tmp_path / "journal.jsonl"
    first = {"metrics": {LOSS: 0.5}, "step": 1, "time": 1}
    journal.write_text(json.dumps(first) + "\n" + tail)
    run = _opened(output / f"cut-{len(tail)}")
    run.client = Away(run.client, 10**9)  # type: ignore[assignment]
    killed = Outbox(run, journal, retry_seconds=60)
    killed.log(2, {LOSS: 0.25})
    killed.log(3, {LOSS: 0.125})
    again = _opened(output / f"cut-{len(tail)}")
    assert Outbox(again, journal).finish()
    assert _curve(again) == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert ("was cut short" in caplog.text) == bool(tail.strip())


def test_a_number_that_is_none_waits_as_null_and_is_told_as_it_was(output: Path, tmp_path: Path) -> None:
    run = _opened(output / "nan")
    run.client = Away(run.client, 10**6)  # type: ignore[assignment]
    journal = tmp_path / "journal.jsonl"
    Outbox(run, journal, retry_seconds=0.05).log(1, {LOSS: math.nan})
    (line,) = filter(None, journal.read_text().split("\n"))
    assert json.loads(line, parse_constant=pytest.fail)["metrics"] == {LOSS: None}
    after = _opened(output / "nan")
    Outbox(after, journal, retry_seconds=0.05).require_delivered()
    ((step, value),) = _curve(after)
    assert step == 1 and math.isnan(value)


def test_more_points_than_one_request_takes(output: Path) -> None:
    run = _opened(output / "many")
    names = [f"train/{number}" for number in range(METRICS_PER_CALL // 2 + 1)]
    run.log_steps([(step, 1, dict.fromkeys(names, float(step))) for step in (1, 2, 2)])
    assert _curve(run, names[0]) == _curve(run, names[-1]) == [(1, 1.0), (2, 2.0)]


@pytest.mark.slow
def test_a_real_server_is_killed_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = free_port()
    with mlflow_server(tmp_path, port) as server:
        run = _opened(tmp_path / "runs", f"http://127.0.0.1:{port}")
        outbox = Outbox(run, tmp_path / "journal.jsonl", retry_seconds=0.2)
        outbox.log(1, {LOSS: 1.0})
        outbox.require_delivered(20)
        kill(server)
        for step in range(2, 30):
            outbox.log(step, {LOSS: 1 / step})
        (tmp_path / "map.png").write_bytes(b"png")
        outbox.log_file(tmp_path / "map.png", "pictures")
        with pytest.raises(TrackingError, match="28 entries of metrics and 1 files"):
            outbox.require_delivered(1.0)
    with mlflow_server(tmp_path, port):
        assert outbox.finish(patience=60)
        assert _curve(run) == [(step, 1 / step) for step in range(1, 30)]
        assert [item.path for item in run.client.list_artifacts(run.run_id, "pictures")] == ["pictures/map.png"]

"""A node is lost under a sweep: its trial goes on from its checkpoint on another; nothing is lost or there twice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from benchmarks.nodes import Nodes
from tests.tune.sweep_process import last_words, start_search, two_points
from tune.book import Book

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
STEPS, EVERY = 40, 4
KEYS = ["p000-s0", "p001-s0"]


def _trains(node: Any) -> bool:
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    titles = [one.cmdline()[:1] for one in raylet.children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]
    return any("RayTrainWorker" in title for words in titles for title in words)


def test_the_trial_of_a_lost_node_goes_on_elsewhere(tmp_path: Path) -> None:
    """Started again by the sweep, since the recipe allows Ray Train no failure."""
    train = {"steps": STEPS, "cpus_per_worker": 1.0, "checkpoint_every": EVERY, "max_failures": 0}
    options = [*two_points(tmp_path, every=EVERY, **train), "--concurrent", "2"]

    def book() -> Book:
        return Book(tmp_path / "runs" / "small-ito_lambda" / "book.jsonl", read_only=True)

    with Nodes.started(tmp_path / "cluster") as nodes:
        sweep = start_search(options, nodes.environment)
        deadline = time.monotonic() + 300
        while [key for key, trial in book().trials.items() if trial.curve] != KEYS:
            assert sweep.poll() is None and time.monotonic() < deadline, last_words(sweep)
            time.sleep(0.2)
        lost = next(node for node in nodes.cluster.worker_nodes if _trains(node))
        nodes.kill(lost)
        assert any(trial.state == "open" for trial in book().trials.values())
        nodes.add()
        printed = sweep.communicate(timeout=600)[0]
    assert sweep.returncode == 0, printed
    for key, trial in book().trials.items():
        assert trial.state == "finished", (key, trial.reason, printed)
        assert [step for step, _ in trial.curve] == list(range(EVERY, STEPS + 1, EVERY))
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow' / 'mlflow.db'}")
    children = [run for run in client.search_runs(["1"]) if "mlflow.parentRunId" in run.data.tags]
    assert sorted(str(run.info.run_name) for run in children) == KEYS
    for run in children:
        assert run.info.status == "FINISHED"
        curve = client.get_metric_history(run.info.run_id, "train/loss/total")
        assert sorted(point.step for point in curve) == list(range(1, STEPS + 1))

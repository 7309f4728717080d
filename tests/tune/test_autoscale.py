"""A sweep sent to a cluster without nodes: they come for it, trials run side by side on them, and they leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tune.sweep_process import REPOSITORY, two_points
from tune.book import Book

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def test_nodes_come_for_a_sweep_and_leave(tmp_path: Path) -> None:
    options = two_points(tmp_path, every=10, steps=200, cpus_per_worker=1.0, wait_minutes=5)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.autoscale",
            "--as-job",
            "--idle-seconds",
            "20",
            "--",
            *options,
            "--concurrent",
            "2",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
    )
    assert done.returncode == 0 and "up to 2 nodes came" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert "0 worker nodes" in done.stdout and "2 when the cluster has grown" in done.stdout, done.stdout
    book = Book(tmp_path / "runs" / "small-ito_lambda" / "book.jsonl", read_only=True)
    assert {trial.state for trial in book.trials.values()} == {"finished"} and len(book.trials) == 2
    began, ended = ([getattr(trial, name) for trial in book.trials.values()] for name in ("began", "ended"))
    assert max(began) < min(ended), "they ran side by side"

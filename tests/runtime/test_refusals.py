"""What the main job refuses before it starts, and what ends it; test_main_job.py has it from start to end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from rich.console import Console

from ito_ray.config.schema import Config
from ito_ray.errors import ClusterError, DataError
from ito_ray.runtime import job
from ito_ray.runtime.console import Stages
from tests.data.makers import write_tar
from tests.runtime.shards import sample, small_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
REPOSITORY = Path(__file__).parents[2]


def _run(cfg: Config) -> job.Outcome:
    return job.run(cfg, recipe="test", stages=Stages(Console(quiet=True), job.STAGES))


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

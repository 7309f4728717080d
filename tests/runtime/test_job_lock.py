"""One driver a run: two would write each other's checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from ito_ray.data import job_folder
from ito_ray.errors import DataError
from ito_ray.runtime import job
from ito_ray.runtime.console import Stages
from tests.runtime.shards import small_config


def test_a_second_driver_of_a_run_is_refused_before_it_does_anything(tmp_path: Path) -> None:
    cfg = small_config(tmp_path)
    folder = Path(cfg.output) / cfg.name
    with job_folder.alone(folder, lock=job.LOCK, works="trains in"):
        with pytest.raises(DataError, match=f"Another process trains in {folder}: wait for it or stop it"):
            job.run(cfg, recipe="test", stages=Stages(Console(quiet=True), job.STAGES))
        assert [path.name for path in folder.iterdir()] == [job.LOCK]

"""A cluster of two nodes: both answer, and tasks and ranks are where the labels in the configuration ask for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.cluster
def test_blocks_and_ranks_are_where_they_were_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.runtime.placement_child", str(tmp_path / "data")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["blocks"]["data"]["data"] > 0 and found["blocks"]["data"]["train"] == 0
    assert found["blocks"]["train"]["train"] > 0 and found["blocks"]["train"]["data"] == 0
    assert found["answers"] == {"train": [2, ""], "data": [2, ""]}, "each node wrote to the run's folder"
    assert found["left"] == [], "and left nothing there"
    assert found["ranks"] == {"train": "train", "data": "data"}

"""Decoding happens on the nodes that `data.node_labels` asks for, on a cluster of two nodes besides the head."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_blocks_are_made_on_the_nodes_that_were_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.runtime.placement_child", str(tmp_path / "data")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["data"]["data"] > 0 and made["data"]["train"] == made["data"]["head"] == 0
    assert made["train"]["train"] > 0 and made["train"]["data"] == made["train"]["head"] == 0

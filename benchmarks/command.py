"""The real command on a tiny model, its steps slowed down, for benchmarks that hit it while it trains."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from benchmarks.faults import PATIENCE, Scene, until
from ito_ray.config.load import overlay, to_yaml
from tests.runtime.shards import small_config

REPOSITORY = Path(__file__).parents[1]
PACE = 0.25
"""Seconds that a step takes more than it needs."""
LEAVE_SECONDS = 120.0
"""For Ray's processes, which notice that their node is gone and end by themselves: long only on a busy machine."""


class Command:
    """The real command, with a record of what its ranks are given."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        changes: Mapping[str, Mapping[str, object]],
        pace: float = PACE,
    ) -> None:
        """`changes` are sections of the configuration."""
        self.folder, self.record, self.pace = folder, folder / "record", pace
        self.record.mkdir(parents=True)
        self.cfg = overlay(small_config(folder, name="chaos"), dict(changes), source="benchmarks.command")
        (folder / "config.yaml").write_text(to_yaml(self.cfg))
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "HF_HUB_OFFLINE": "1",
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._seen: set[psutil.Process] = set()

    def start(self) -> subprocess.Popen[bytes]:
        """Give the command."""
        words = [sys.executable, "-m", "tests.runtime.recorded", str(self.record), "0", str(self.pace)]
        words += ["--config", str(self.folder / "config.yaml")]
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(words, cwd=REPOSITORY, stdout=log, stderr=log, env=self.environment)
        return self.process

    def exits(self) -> int:
        """The exit code; what it has started may be there for some time."""
        assert self.process is not None
        started = self.process

        def over() -> bool:
            self.note_descendants()
            return started.poll() is not None

        until(over, "the command's end", 600)
        return started.returncode

    def ended(self) -> int:
        """The exit code, once all that it has started is gone too, also when it was given before."""
        code = self.exits()
        until(lambda: not any(map(_alive, self._seen)), "the end of all its processes", LEAVE_SECONDS)
        return code

    def ends_well(self) -> None:
        """Wait for its end; raises what went wrong."""
        code = self.ended()
        if code:
            raise RuntimeError(f"exit code {code}: {self.tail()}")

    def note_descendants(self) -> None:
        """Remember what runs now, which must be gone at the end."""
        assert self.process is not None
        if self.process.poll() is None:
            self._seen.update(psutil.Process(self.process.pid).children(recursive=True))

    def scene(self, draw: random.Random) -> Scene:
        """What faults need to know of it."""
        assert self.process is not None
        return Scene(self.cfg, self.record, self.process.pid, draw)

    def wait(self, found: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
        """Until `found` is true.

        Raises:
            RuntimeError: the command ended before.
        """
        assert self.process is not None
        started = self.process

        def seen() -> bool:
            over = started.poll() is not None
            if found():
                return True
            if over:
                raise RuntimeError(f"the command ended with {started.returncode} before {what}: {self.tail()}")
            return False

        until(seen, what, patience)

    def hit_at(self, step: int) -> Scene:
        """The scene, as soon as that step is taken."""
        scene = self.scene(random.Random(step))
        self.wait(lambda: scene.step() >= step, f"step {step}", 600)
        self.note_descendants()
        return scene

    def kill(self) -> None:
        """End it if it has not ended."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()

    def tail(self) -> str:
        """The end of its log."""
        return (self.folder / "log.txt").read_text(errors="replace")[-1500:]


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False

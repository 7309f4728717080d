"""What is done to a run while it trains, to real processes and real files, each fault a small function of the scene.

A scene knows the run by what its ranks record (tests/runtime/recorded.py) and by the titles of
Ray's processes.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import resource
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from ito_ray.config.schema import Config
from ito_ray.data.plan import ShardPlan
from ito_ray.data.position import ROW_BITS, ROW_PLACE_BITS, Position, members
from ito_ray.data.rows import read_piece
from ito_ray.runtime.snapshot import COPY, SNAPSHOT
from ito_ray.training.state import read_state

PATIENCE = 300.0
"""Seconds until something that must happen is taken for a failure."""
T = TypeVar("T")
Uids = dict[tuple[int, int], list[int]]
"""(step, rank) → the samples that it was given."""


@dataclass(frozen=True)
class Scene:
    """A run that goes on."""

    cfg: Config
    record: Path
    root: int
    """Process whose descendants Ray's processes are."""
    draw: random.Random

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.cfg.output) / self.cfg.name

    def processes(self, title: str) -> list[psutil.Process]:
        """Ray's processes whose title begins so."""
        found = []
        for process in psutil.Process(self.root).children(recursive=True):
            try:
                if process.cmdline()[0].startswith(title):
                    found.append(process)
            except (psutil.Error, IndexError):  # it has just ended
                continue
        return found

    def one(self, title: str) -> psutil.Process:
        """One of them, as soon as there is one."""
        return self.draw.choice(until(lambda: self.processes(title), f"a process {title}", pause=0.01))

    def latest(self, title: str) -> psutil.Process:
        """The one that began last: that of a start before may take a while to end, and nothing depends on it."""

        def began(process: psutil.Process) -> float:
            try:
                return float(process.create_time())
            except psutil.Error:  # it has just ended
                return 0.0

        return max(until(lambda: self.processes(title), f"a process {title}", pause=0.01), key=began)

    def step(self) -> int:
        """The newest step that a rank took."""
        return newest_step(self.record.glob("*.jsonl"))

    def newest(self) -> Path | None:
        """The newest registered checkpoint; the list's copy is whole at any time, unlike Ray's own."""
        if not (self.folder / COPY).is_file():
            return None
        latest = json.loads((self.folder / COPY).read_text())["latest_checkpoint_result"]
        return self.folder / str(latest["checkpoint_dir_name"])


def until(found: Callable[[], T | None], what: str, patience: float = PATIENCE, pause: float = 0.1) -> T:
    """What `found` returns as soon as it is true; asked every `pause` seconds."""
    deadline = time.monotonic() + patience
    while not (value := found()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience:.0f} s for {what}")
        time.sleep(pause)
    return value


def ranks(scene: Scene) -> list[psutil.Process]:
    """Those that train; the numbers of earlier ones may have been given to others since."""
    recorded = {int(path.stem.rsplit("-", 1)[1]) for path in scene.record.glob("*.jsonl")}
    return [process for process in scene.processes("ray::") if process.pid in recorded]


def kill_training_worker(scene: Scene) -> None:
    """kill -9 of a rank."""
    scene.draw.choice(until(lambda: ranks(scene), "a rank")).kill()


def kill_data_worker(scene: Scene) -> None:
    """kill -9 of a process that is making samples."""
    scene.one("ray::ReadEntries").kill()


def kill_coordinator(scene: Scene) -> None:
    """kill -9 of the actor that deals blocks to the ranks and schedules Ray Data's tasks."""
    scene.latest("ray::SplitCoordinator").kill()


def kill_controller(scene: Scene) -> None:
    """kill -9 of Ray Train's controller."""
    scene.latest("ray::TrainController").kill()


def kill_monitor(scene: Scene) -> None:
    """kill -9 of the actor that keeps the run's accounts."""
    scene.latest("ray::Monitor").kill()


def damage_newest(scene: Scene) -> Path:
    """Cut the end off the newest checkpoint's weights, as a full or failing disk does."""
    newest = until(scene.newest, "a checkpoint")
    weights = max(newest.glob("method*.safetensors"), key=lambda path: path.stat().st_size)
    os.truncate(weights, weights.stat().st_size // 2)
    return newest


def lose_folder(scene: Scene) -> None:
    """All that the run has on its own disk; MLflow's store and the copies of checkpoints are elsewhere."""
    shutil.rmtree(scene.folder)


def damage_newest_and_kill_worker(scene: Scene) -> None:
    """A truncated newest checkpoint, met when the workers start again."""
    damage_newest(scene)
    kill_training_worker(scene)


def fill_disk(scene: Scene) -> None:
    """No rank can write a file as large as the weights any more; a new process can."""
    newest = until(scene.newest, "a checkpoint")
    limit = max(path.stat().st_size for path in newest.iterdir()) - 1
    for process in until(lambda: ranks(scene), "a rank"):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))


def refuse_writing(scene: Scene) -> None:
    """Nobody can write in the run's folder any more, until all ranks have ended for it."""
    before = until(lambda: ranks(scene), "a rank")
    with _read_only(scene.folder):
        until(lambda: not any(process.is_running() for process in before), "the end of ranks that cannot save")


def refuse_listing(scene: Scene) -> None:
    """Ray Train's list of checkpoints cannot be written any more, until the controller has ended for it."""
    before = scene.latest("ray::TrainController")
    with _read_only(scene.folder / SNAPSHOT):
        until(lambda: not before.is_running(), "the end of a controller that cannot write its list")


@contextmanager
def _read_only(path: Path) -> Iterator[None]:
    """Root may write whatever its permissions say, so for root it is mounted on itself, read-only."""
    if os.geteuid():
        mode = path.stat().st_mode
        path.chmod(mode & ~0o222)
        try:
            yield
        finally:
            path.chmod(mode)
        return
    subprocess.run(["mount", "--bind", path, path], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def lines(record: Path) -> list[tuple[float, int, int, int, list[int]]]:
    """All that the ranks recorded, in order of time: (time, step, number of ranks, rank, uids)."""
    found = []
    for path in record.glob("*.jsonl"):
        ranks, rank = map(int, path.stem.split("-")[:2])
        for text in path.read_text().splitlines():
            if text.endswith("}"):  # a kill leaves half a line
                line = json.loads(text)
                found.append((line["time"], line["step"], ranks, rank, line["uid"]))
    return sorted(found)


def given(record: Path) -> Uids:
    """What each rank was given in the last life of each step: earlier ones were lost with what they had trained."""
    found = lines(record)
    last = {step: ranks for _, step, ranks, _, _ in found}
    return {(step, rank): uids for _, step, ranks, rank, uids in found if ranks == last[step]}


def newest_step(files: Iterable[Path]) -> int:
    """The highest step that is last in any of the ranks' files."""
    last = [
        next((text for text in reversed(path.read_text().splitlines()) if text.endswith("}")), "") for path in files
    ]
    return max((int(json.loads(text)["step"]) for text in last if text), default=0)


def redone(record: Path, since: float = 0.0, before: float = math.inf) -> int:
    """Steps that were taken again, between two times."""
    times: dict[int, list[float]] = {}
    for moment, step, _, rank, _ in lines(record):
        if rank == 0:
            times.setdefault(step, []).append(moment)
    return sum(since < moment <= before for taken in times.values() for moment in taken[1:])


def seconds_lost(record: Path, hit: float, before: float = math.inf) -> float:
    """The longest pause in steps that had not been taken before, after the fault at time `hit`.

    A lost process may be missed some steps later only, and steps that are taken again are part of the pause.

    Args:
        before: time of the next fault.
    """
    first: dict[int, float] = {}
    for moment, step, *_ in lines(record):
        first.setdefault(step, moment)
    times = [hit, *sorted(moment for moment in first.values() if hit < moment <= before)]
    return max((later - sooner for sooner, later in itertools.pairwise(times)), default=0.0)


def problems_of_samples(cfg: Config, record: Path, plan: ShardPlan, checkpoint: Path, passes: int) -> list[str]:
    """What contradicts "every step, and every sample of a pass exactly once"; compared with the shards themselves."""
    trained = given(record)
    steps = {step for step, _ in trained}
    found = (
        [] if steps == set(range(1, cfg.train.steps + 1)) else [f"{len(steps)} of {cfg.train.steps} steps were taken"]
    )
    counts = Counter(uid for uids in trained.values() for uid in uids)
    if counts.total() != cfg.train.steps * cfg.train.global_batch or max(counts.values()) > 1:
        found.append(f"{counts.total()} samples trained on, {len(counts)} different ones")
    complete = Position.from_json(read_state(checkpoint).position).complete
    if not complete or complete[0][0] != 0 or complete[0][1] < passes * plan.entries_per_pass:
        found.append(f"complete entries {complete} are fewer than {passes} passes")
    for entry in members(complete):
        there = {
            entry << ROW_BITS | slot << ROW_PLACE_BITS | row
            for slot, piece in enumerate(plan.entry(entry))
            for row, _ in enumerate(read_piece(piece, cfg.data.columns))
        }
        if there - counts.keys():
            found.append(f"entry {entry}: {len(there - counts.keys())} samples never trained on")
    return found

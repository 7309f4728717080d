"""Hit a training run at drawn moments, let it end, and prove that nothing was lost or is there twice.

    python -m benchmarks.chaos                             # every fault three times; about two minutes each
    python -m benchmarks.chaos --quick                     # once
    python -m benchmarks.chaos --fault "driver killed" --times 10 --json chaos.json

The run is the real command on a tiny model, its steps slowed down so that there is something to hit. After a fault that
ends the command the same command is given again. Survived means: exit code 0, every planned step, every sample of the
passes exactly once (told by what the ranks were given, compared with the shards), one run in MLflow with one unbroken
curve, a last loss within the noise of an undisturbed run's, whole checkpoints, and no process left.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import tyro
from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table

from benchmarks import faults
from benchmarks.chaos_nodes import NODE_FAULTS, Nodes
from benchmarks.faults import Scene, until
from ito_ray.config.load import overlay, to_yaml
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from ito_ray.runtime import trainer
from ito_ray.runtime.preflight import plan_data
from ito_ray.tracking.run import resolve_store
from ito_ray.training.manifest import damage
from pipelines.command import exit_code
from tests.runtime.shards import small_config
from tests.tracking.servers import free_port, kill, mlflow_server

REPOSITORY = Path(__file__).parents[1]
STEPS, EVERY, PACE = 60, 10, 0.25
EARLIEST, LATEST = 12, 48
"""Steps between which a fault hits."""
LAST = 10
"""Steps whose mean loss is compared."""
TOLERANCE = 0.3
"""Between the two: other batches after a resume, and steps of 16 pairs. Set by eye, not from runs of other seeds."""
AWAY_SECONDS = 15.0
LEAVE_SECONDS = 120.0
"""For Ray's processes, which notice that their node is gone and end by themselves: long only on a busy machine."""
LOSS = "train/loss/total"
LOST = "driver killed, run's folder lost"
"""The only fault that needs copies of checkpoints."""


@dataclass(frozen=True)
class Arguments:
    """What to try, and how often."""

    fault: tuple[str, ...] = ()
    """Names of faults; all when there is none."""
    times: int = 3
    quick: bool = False
    """Each fault once."""
    seed: int = 0
    """Of the moments."""
    json: Path | None = None
    """Also write the numbers there."""


@dataclass
class Tried:
    """What became of a run."""

    fault: str
    step: int
    """At which it was hit."""
    redone: int
    seconds_lost: float
    loss: float
    problems: list[str] = field(default_factory=list)


class Command:
    """The real command, with a record of what its ranks are given."""

    def __init__(self, folder: Path, environment: Mapping[str, str], **changes: object) -> None:
        self.folder, self.record = folder, folder / "record"
        self.record.mkdir(parents=True)
        train = {"steps": STEPS, "checkpoint_every": EVERY, "keep_checkpoints": 3}
        self.cfg = small_config(folder, name="chaos", train=train)
        self.cfg = overlay(self.cfg, dict(changes), source="benchmarks.chaos")
        (folder / "config.yaml").write_text(to_yaml(self.cfg))
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "HF_HUB_OFFLINE": "1",
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._seen: set[psutil.Process] = set()

    def start(self) -> subprocess.Popen[bytes]:
        """Give the command."""
        words = [sys.executable, "-m", "tests.runtime.recorded", str(self.record), "0", str(PACE)]
        words += ["--config", str(self.folder / "config.yaml")]
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(words, cwd=REPOSITORY, stdout=log, stderr=log, env=self._environment)
        return self.process

    def ended(self) -> int:
        """The exit code, once all that it has started is gone too."""
        assert self.process is not None
        started = self.process

        def over() -> bool:
            self._note_descendants()
            return started.poll() is not None

        until(over, "the command's end", 600, pause=1.0)
        until(lambda: not any(map(_alive, self._seen)), "the end of all its processes", LEAVE_SECONDS)
        return started.returncode

    def _note_descendants(self) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self._seen.update(psutil.Process(self.process.pid).children(recursive=True))

    def hit_at(self, step: int) -> Scene:
        """The scene, as soon as that step is taken."""
        assert self.process is not None
        scene = Scene(self.cfg, self.record, self.process.pid, random.Random(step))

        def reached() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"the command ended with {self.process.returncode} before step {step}: {self.tail()}"
                )
            return scene.step() >= step

        until(reached, f"step {step}", 600)
        self._note_descendants()
        return scene

    def tail(self) -> str:
        """The end of its log."""
        return (self.folder / "log.txt").read_text(errors="replace")[-1500:]


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


Fault = Callable[[Command, int], float]
"""Runs a command to its end with a fault at a step; when it hit. Raises what went wrong."""


def _ends_well(command: Command) -> None:
    code = command.ended()
    if code:
        raise RuntimeError(f"exit code {code}: {command.tail()}")


def inside(hit: Callable[[Scene], object]) -> Fault:
    """A fault that the command survives by itself."""

    def fault(command: Command, step: int) -> float:
        command.start()
        scene = command.hit_at(step)
        moment = time.time()
        hit(scene)
        _ends_well(command)
        return moment

    return fault


def of_driver(number: signal.Signals, code: int, then: Callable[[Scene], object] = lambda scene: None) -> Fault:
    """A signal to the command, which is given again, after something else has happened to what it left."""

    def fault(command: Command, step: int) -> float:
        process = command.start()
        scene = command.hit_at(step)
        moment = time.time()
        process.send_signal(number)
        if (ended := command.ended()) != code:
            raise RuntimeError(f"exit code {ended} instead of {code}: {command.tail()}")
        then(scene)
        command.start()
        _ends_well(command)
        return moment

    return fault


def server_away(*, for_good: bool) -> Fault:
    """The MLflow server is killed; it comes back while the run goes on, or only for the next command."""

    def fault(command: Command, step: int) -> float:
        port = int(command.cfg.tracking.uri.rsplit(":", 1)[1])
        with mlflow_server(command.folder, port) as server:
            command.start()
            command.hit_at(step)
            moment = time.time()
            kill(server)
        if not for_good:
            time.sleep(AWAY_SECONDS)
        elif (code := command.ended()) != 2 or "run the same command" not in command.tail():
            raise RuntimeError(f"exit code {code}: {command.tail()}")
        with mlflow_server(command.folder, port):
            if for_good:
                command.start()
            _ends_well(command)
            _curve(command)
        return moment

    return fault


FAULTS: dict[str, Fault] = {
    "none": inside(lambda scene: None),
    **{name: inside(hit) for name, hit in faults.INSIDE.items()},
    "driver killed": of_driver(signal.SIGKILL, -signal.SIGKILL),
    "driver killed, newest checkpoint truncated": of_driver(signal.SIGKILL, -signal.SIGKILL, faults.damage_newest),
    LOST: of_driver(signal.SIGKILL, -signal.SIGKILL, faults.lose_folder),
    "SIGTERM": of_driver(signal.SIGTERM, 128 + signal.SIGTERM),
    "MLflow away for a while": server_away(for_good=False),
    "MLflow away until the next command": server_away(for_good=True),
}
NAMES = (*FAULTS, *NODE_FAULTS)


def _curve(command: Command) -> list[float]:
    """The losses in MLflow by step, of the only run."""
    uri = resolve_store(command.cfg.tracking.uri, command.cfg.output).uri
    if uri.startswith("http"):
        uri = f"sqlite:///{command.folder}/mlflow.db"
    client = MlflowClient(uri)
    (run,) = client.search_runs(["1"])
    points = client.get_metric_history(run.info.run_id, LOSS)
    if sorted(point.step for point in points) != list(range(1, STEPS + 1)) or run.info.status != "FINISHED":
        raise RuntimeError(f"{len(points)} points in MLflow, run {run.info.status}")
    return [point.value for point in sorted(points, key=lambda point: point.step)]


def attempt(name: str, folder: Path, step: int) -> Tried:
    """Run the command with one fault."""
    with ExitStack() as stack:
        environment: dict[str, str] = {}
        changes: dict[str, object] = {}
        if name.startswith("MLflow"):
            changes["tracking"] = {"uri": f"http://127.0.0.1:{free_port()}"}
        if name == LOST:
            changes["train"] = {"checkpoint_store": str(folder / "copies")}
        if name in NODE_FAULTS:
            nodes = stack.enter_context(Nodes.started(folder))
            environment |= nodes.environment
            fault = inside(lambda scene: NODE_FAULTS[name](nodes, scene))
        else:
            fault = FAULTS[name]
        command = Command(folder / "run", environment, **changes)
        moment, problems, losses = 0.0, [], []
        try:
            moment = fault(command, step)
            losses = _curve(command)
            problems = _problems(command.cfg, command.record)
        except (RuntimeError, TimeoutError, AssertionError, ValueError) as error:
            problems = [f"{type(error).__name__}: {error}"]
        finally:
            if command.process is not None and command.process.poll() is None:
                command.process.kill()
    loss = statistics.fmean(losses[-LAST:]) if losses else float("nan")
    lost = faults.seconds_lost(command.record, moment) if moment else float("nan")
    return Tried(name, step, faults.redone(command.record), lost, loss, problems)


def _problems(cfg: Config, record: Path) -> list[str]:
    told: list[str] = []
    newest = trainer.latest_checkpoint(cfg, told.append)
    if newest is None or told or damage(newest):
        return [f"no good checkpoint at the end: {told}"]
    passes = (STEPS - EVERY) * cfg.train.global_batch // 96
    return faults.problems_of_samples(cfg, record, plan_data(cfg).plan, newest, passes)


def run(arguments: Arguments, console: Console) -> int:
    """0 when everything was survived."""
    unknown = [name for name in arguments.fault if name not in NAMES]
    if unknown:
        raise ConfigError(f"--fault {unknown[0]!r} is none of {', '.join(map(repr, NAMES))}.")
    names = [name for name in arguments.fault or NAMES if name != "none"]
    draw = random.Random(arguments.seed)
    logging.getLogger("ray.train").setLevel(logging.ERROR)  # it tells of every list that it reads
    tried: list[Tried] = []
    with tempfile.TemporaryDirectory(prefix="ito-chaos-") as scratch:
        undisturbed = attempt("none", Path(scratch, "none"), EARLIEST)
        console.print(f"undisturbed: loss {undisturbed.loss:.3f} {'; '.join(undisturbed.problems)}")
        for name in names:
            for number in range(1 if arguments.quick else arguments.times):
                folder = Path(scratch, f"{names.index(name)}-{number}")
                latest = EARLIEST if "notice" in name else LATEST  # the notice must run out before the steps do
                one = attempt(name, folder, draw.randint(EARLIEST, latest))
                noise = abs(one.loss - undisturbed.loss)
                if not one.problems and noise > TOLERANCE:
                    one.problems = [f"loss {one.loss:.3f}, undisturbed {undisturbed.loss:.3f}"]
                tried.append(one)
                console.print(
                    f"{name} at step {one.step}: {one.redone} steps redone, {one.seconds_lost:.1f} s lost, "
                    f"loss {one.loss:.3f} {'; '.join(one.problems)}",
                    soft_wrap=True,
                )
    console.print(_table(tried))
    if arguments.json:
        rows = [asdict(one) for one in (undisturbed, *tried)]
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 1 if any(one.problems for one in (undisturbed, *tried)) else 0


def _table(tried: Sequence[Tried]) -> Table:
    table = Table("fault", "tried", "survived", "steps redone", "seconds lost", "loss", box=None)
    for name in dict.fromkeys(one.fault for one in tried):
        mine = [one for one in tried if one.fault == name]
        survived = sum(not one.problems for one in mine)
        table.add_row(
            name,
            str(len(mine)),
            str(survived),
            _range([float(one.redone) for one in mine], 0),
            _range([one.seconds_lost for one in mine], 1),
            _range([one.loss for one in mine], 2),
        )
    return table


def _range(values: Sequence[float], digits: int) -> str:
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parsed = tyro.cli(Arguments, prog="python -m benchmarks.chaos", description=__doc__, args=arguments)
    return exit_code(lambda: run(parsed, Console(highlight=False, width=140)))


if __name__ == "__main__":
    sys.exit(main())

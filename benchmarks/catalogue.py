"""What benchmarks.chaos and benchmarks.soak do to a run, by name, each fault with the surroundings that it needs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Literal

from benchmarks import faults, nodes
from benchmarks.command import PACE, Command
from benchmarks.faults import Scene
from benchmarks.nodes import Nodes
from tests.tracking.servers import free_port, kill, mlflow_server

AWAY_SECONDS = 15.0
START_SECONDS = 10.0
"""For a server or a node to be up, at most."""
Needs = Literal["one machine", "copies", "server", "nodes"]
"""A local Ray and SQLite; also a store for copies of checkpoints; an MLflow server; a cluster that loses nodes."""


@dataclass
class Server:
    """An MLflow server that goes and comes back on its port."""

    folder: Path
    port: int
    stack: ExitStack
    process: Popen[bytes] | None = None

    def start(self) -> None:
        """Answers when this returns."""
        self.process = self.stack.enter_context(mlflow_server(self.folder, self.port))

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        kill(self.process)


@dataclass
class Around:
    """A command, and what it was given to live in."""

    command: Command
    server: Server | None = None
    nodes: Nodes | None = None


@dataclass(frozen=True)
class Fault:
    """What is done to a run that goes on."""

    hit: Callable[[Around, Scene], object]
    """Returns when the run is to recover: the command still runs, or was given again. Raises what went wrong."""
    needs: Needs = "one machine"
    restarts: bool = True
    """Whether ranks start again; otherwise they just go on."""
    repeats: bool = True
    """Whether a run can meet it on its way, not only at its end."""
    beside: float = 0.0
    """Seconds that it lasts while steps are taken, at most."""


def _inside(hit: Callable[[Scene], object], *, restarts: bool = True) -> Fault:
    """The command survives it by itself."""
    return Fault(lambda around, scene: hit(scene), restarts=restarts)


def _of_driver(
    number: signal.Signals,
    code: int,
    then: Callable[[Scene], object] | None = None,
    needs: Needs = "one machine",
) -> Fault:
    """A signal to the command, which is given again.

    At once, when ranks that it has left behind may still take steps; or when all of them are gone, and something else
    has happened to what they left.
    """

    def hit(around: Around, scene: Scene) -> None:
        command = around.command
        assert command.process is not None
        command.process.send_signal(number)
        if (ended := command.ended() if then else command.exits()) != code:
            raise RuntimeError(f"exit code {ended} instead of {code}: {command.tail()}")
        if then:
            then(scene)
        command.start()

    return Fault(hit, needs)


def _server_away(around: Around, scene: Scene) -> None:
    assert around.server is not None
    around.server.kill()
    time.sleep(AWAY_SECONDS)
    around.server.start()


def _server_away_until_the_next_command(around: Around, scene: Scene) -> None:
    assert around.server is not None
    around.server.kill()
    code, tail = around.command.ended(), around.command.tail()
    if code != 2 or "run the same command" not in tail:
        raise RuntimeError(f"exit code {code}: {tail}")
    around.server.start()
    around.command.start()


def _of_node(hit: Callable[[Nodes, Scene], object], *, restarts: bool = True, beside: float = 0.0) -> Fault:
    def of_ours(around: Around, scene: Scene) -> None:
        assert around.nodes is not None
        hit(around.nodes, scene)

    return Fault(of_ours, "nodes", restarts, beside=beside)


def _head_lost(around: Around, scene: Scene) -> None:
    """A new cluster takes its place, and the job is sent again."""
    assert around.nodes is not None
    around.nodes.lose_head()
    if not (code := around.command.ended()):
        raise RuntimeError(f"exit code {code} without a head")
    around.nodes.cluster.shutdown()
    around.nodes.start()
    around.command.environment |= around.nodes.environment
    around.command.start()


_killed = partial(_of_driver, signal.SIGKILL, -signal.SIGKILL)
FAULTS: Mapping[str, Fault] = {
    "training worker killed": _inside(faults.kill_training_worker),
    "data worker killed": _inside(faults.kill_data_worker, restarts=False),
    "split coordinator killed": _inside(faults.kill_coordinator),
    "controller killed": _inside(faults.kill_controller),
    "monitor killed": _inside(faults.kill_monitor),
    "newest checkpoint truncated, worker killed": _inside(faults.damage_newest_and_kill_worker),
    "disk full for the ranks": _inside(faults.fill_disk),
    "run's folder read-only for a while": _inside(faults.refuse_writing),
    "list of checkpoints read-only for a while": _inside(faults.refuse_listing),
    "driver killed": _killed(),
    "driver killed, newest checkpoint truncated": _killed(faults.damage_newest),
    "driver killed, run's folder lost": _killed(faults.lose_folder, "copies"),
    "SIGTERM": _of_driver(signal.SIGTERM, 128 + signal.SIGTERM),
    "MLflow away for a while": Fault(_server_away, "server", restarts=False, beside=AWAY_SECONDS + START_SECONDS),
    "MLflow away until the next command": Fault(_server_away_until_the_next_command, "server", repeats=False),
    "node of a rank lost in mid-step": _of_node(nodes.kill_training_node),
    "node of a rank lost in mid-checkpoint": _of_node(nodes.kill_node_in_mid_checkpoint),
    "node of data tasks lost": _of_node(nodes.kill_other_node, restarts=False, beside=START_SECONDS),
    "node of a rank drained with notice": _of_node(
        nodes.drain_training_node, beside=nodes.NOTICE_SECONDS + START_SECONDS
    ),
    "head lost": Fault(_head_lost, "nodes"),
}


@contextmanager
def surroundings(needs: Needs, folder: Path, train: Mapping[str, object], pace: float = PACE) -> Iterator[Around]:
    """A command that was not given yet, in `folder`; within, what it needs is up.

    Args:
        train: its section of that name.
        pace: seconds that each step takes more than it needs.
    """
    folder.mkdir(parents=True)
    changes: dict[str, Mapping[str, object]] = {"train": train}
    with ExitStack() as stack:
        if needs == "copies":
            changes["train"] = {**train, "checkpoint_store": str(folder / "copies")}
        server = Server(folder / "run", free_port(), stack) if needs == "server" else None
        if server:
            changes["tracking"] = {"uri": f"http://127.0.0.1:{server.port}"}
        cluster = stack.enter_context(Nodes.started(folder)) if needs == "nodes" else None
        command = Command(folder / "run", cluster.environment if cluster else {}, changes, pace)
        if server:
            server.start()
        try:
            yield Around(command, server, cluster)
        finally:
            command.kill()

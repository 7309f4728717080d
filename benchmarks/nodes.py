"""A cluster on this machine that faults are tried on: a head without CPUs, and two nodes that may be lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from benchmarks.faults import Scene, until
from ito_ray.runtime.access import require_token, token_variables

CPUS = 2
NOTICE_SECONDS = 8


@dataclass
class Nodes:
    """The cluster, and what a process needs to use it."""

    cluster: Any

    @classmethod
    @contextmanager
    def started(cls, folder: Path) -> Iterator[Nodes]:
        """Within, head and two nodes are up; ends them and nothing else."""
        require_token()
        folder.mkdir(parents=True, exist_ok=True)
        nodes = cls(None)
        try:
            nodes.start()
            yield nodes
        finally:
            nodes.cluster.shutdown()

    def start(self) -> None:
        """A head, and two nodes that join it."""
        noticed = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}  # in seconds
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 200 << 20, "_system_config": noticed}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.add()
        self.add()

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that uses the cluster."""
        return {"RAY_ADDRESS": self.cluster.address, **token_variables()}

    def add(self) -> Any:
        """One more node."""
        return self.cluster.add_node(num_cpus=CPUS, object_store_memory=200 << 20)

    def of_training(self, scene: Scene) -> Any:
        """The node of the rank that took the last step."""
        newest = max(scene.record.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
        above = {parent.pid for parent in psutil.Process(int(newest.stem.rsplit("-", 1)[1])).parents()}
        (node,) = [node for node in self.cluster.worker_nodes if _raylet(node) in above]
        return node

    def lose_head(self) -> None:
        """All processes of the head at once; the nodes notice, and end by themselves or with the next call."""
        self.kill(self.cluster.head_node)

    def kill(self, node: Any) -> None:
        """All processes of a node at once, without a word."""
        self.cluster.remove_node(node, allow_graceful=False)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def kill_training_node(nodes: Nodes, scene: Scene) -> None:
    """The node of the rank is lost in the midst of a step; another comes later."""
    nodes.kill(nodes.of_training(scene))
    nodes.add()


def kill_node_in_mid_checkpoint(nodes: Nodes, scene: Scene) -> None:
    """The node of the rank is lost while it writes a checkpoint that is not registered yet."""
    node = nodes.of_training(scene)
    known = set(scene.folder.glob("step-*"))

    def being_written() -> bool:
        newest = scene.newest()
        return any(path != newest for path in set(scene.folder.glob("step-*")) - known)

    until(being_written, "a checkpoint that is being written")
    nodes.kill(node)
    nodes.add()


def kill_other_node(nodes: Nodes, scene: Scene) -> None:
    """A node that only makes samples is lost."""
    mine = nodes.of_training(scene)
    nodes.kill(next(node for node in nodes.cluster.worker_nodes if node is not mine))
    nodes.add()


def drain_training_node(nodes: Nodes, scene: Scene) -> None:
    """The node of the rank is taken away with notice, as a spot node is."""
    node = nodes.of_training(scene)
    nodes.add()
    ray = str(Path(sys.executable).with_name("ray"))
    words = [ray, "drain-node", "--address", nodes.cluster.address, "--node-id", node.node_id]
    words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds"]
    subprocess.run([*words, str(NOTICE_SECONDS)], check=True, capture_output=True, env={**os.environ})
    threading.Timer(NOTICE_SECONDS, nodes.kill, [node]).start()

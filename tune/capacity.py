"""How many trials fit side by side, so that none can wait for what another holds.

A trial's driver reserves nothing. Its workers are placed together or not at all, so two half-placed trials cannot hold
each other up. What can is Ray Data: its tasks want a whole CPU, and with every CPU given to workers no batch ever
comes. So so many CPUs stay free as `data_cpus` says for each trial, and at least one whole one on one node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray._private.state import state

from ito_ray.config.schema import Config
from ito_ray.errors import ClusterError, ConfigError

MOST = 1000
HEAD = "node:__internal_head__"
DRIVER_BYTES = 2 << 30
"""Memory that a trial takes on the head: its driver (1.0 GB) and Ray Train's controller beside it (0.7 GB)."""


@dataclass(frozen=True)
class Need:
    """Of one trial."""

    workers: int
    cpus: float
    """A worker's."""
    gpus: float
    """A worker's."""
    data_cpus: float
    """For Ray Data, beside the workers."""
    train_labels: Mapping[str, str]
    data_labels: Mapping[str, str]

    @classmethod
    def of(cls, cfg: Config, data_cpus: float) -> Need:
        """As the configuration says.

        Raises:
            ConfigError: `train.workers` is a range.
        """
        train = cfg.train
        if train.workers.elastic:
            raise ConfigError(
                f"train.workers={train.workers}: trials lie side by side, so each has a fixed size: give a number."
            )
        return cls(
            train.workers.most,
            train.cpus_per_worker,
            1.0 if train.gpu else 0.0,
            data_cpus,
            train.node_labels,
            cfg.data.node_labels,
        )

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.workers} × {self.cpus:g} CPU{gpus} for workers, {self.data_cpus:g} CPU for Ray Data"


@dataclass(frozen=True)
class Node:
    """One machine."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] | None
    """None: not known, as of nodes that the autoscaler has yet to start; taken to be what is wanted."""

    @property
    def cpus(self) -> float:
        """All of them, whoever has them now."""
        return self.resources.get("CPU", 0.0)

    @property
    def gpus(self) -> float:
        """All of them."""
        return self.resources.get("GPU", 0.0)


def fitting(nodes: Sequence[Node], need: Need) -> int:
    """The largest number of trials whose workers can all be placed while Ray Data has its CPUs."""
    low, high = 0, MOST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _fit(nodes, need, middle) else (low, middle - 1)
    return low


def _fit(nodes: Sequence[Node], need: Need, trials: int) -> bool:
    """Place workers on nodes that cannot decode first; of the others leave whole CPUs, as tasks need them."""
    wanted = trials * need.workers
    for_data = max(1, math.ceil(trials * need.data_cpus))
    order = sorted(nodes, key=lambda node: (_has(node, need.data_labels), -node.gpus))
    placed, whole_left = 0, 0
    for node in order:
        room = _room(node, need) if _has(node, need.train_labels) else 0
        here = min(room, wanted - placed)
        if _has(node, need.data_labels):
            # The last ones: give CPUs to workers only as long as enough whole ones remain in all.
            rest = sum(int(other.cpus) for other in order[order.index(node) + 1 :] if _has(other, need.data_labels))
            while here and whole_left + int(node.cpus - here * need.cpus + 1e-9) + rest < for_data:
                here -= 1
            whole_left += int(node.cpus - here * need.cpus + 1e-9)
        placed += here
    return placed >= wanted and whole_left >= for_data


def _room(node: Node, need: Need) -> int:
    by_cpu = int((node.cpus + 1e-9) / need.cpus)
    return min(by_cpu, int(node.gpus / need.gpus)) if need.gpus else by_cpu


def _has(node: Node, labels: Mapping[str, str]) -> bool:
    return node.labels is None or labels.items() <= node.labels.items()


def drivers_on_head(nodes: Sequence[Node]) -> int:
    """Trials whose drivers fit into the head's memory; one at least, which is no more than the main job takes."""
    memory = sum(node.resources.get("memory", 0.0) for node in nodes if HEAD in node.resources)
    return max(1, int(memory // DRIVER_BYTES))


def nodes_now() -> list[Node]:
    """Those that are up."""
    return [Node(node["Resources"], node["Labels"]) for node in ray.nodes() if node["Alive"]]


def nodes_at_most() -> list[Node]:
    """Those that the autoscaler may bring the cluster to; those that are up, where there is none."""
    config = state.get_cluster_config()
    groups = list(config.node_group_configs) if config else []
    found: list[Node] = []
    for group in groups:
        count = min(group.max_count, MOST) if group.max_count >= 0 else MOST
        found += [Node(dict(group.resources), None)] * count
    now = nodes_now()
    return found if len(found) > len(now) else now


@dataclass(frozen=True)
class Capacity:
    """Trials side by side."""

    now: int
    at_most: int
    """When the cluster has grown as far as it may."""
    need: Need

    def __str__(self) -> str:
        fit = "1 trial fits" if self.now == 1 else f"{self.now} trials fit"
        grown = f", {self.at_most} when the cluster has grown" if self.at_most > self.now else ""
        return f"{fit} now{grown}; each needs {self.need}"


def require_capacity(cfg: Config, data_cpus: float, concurrent: int) -> Capacity:
    """
    Args:
        concurrent: as asked for; 0 = as many as fit. With `train.wait_minutes`, which says that nodes may come, it is
            taken to be what fits when the cluster has grown: few clusters tell how far they grow.

    Raises:
        ConfigError: `train.workers` is a range.
        ClusterError: not one trial fits, or fewer than asked for.
    """
    need = Need.of(cfg, data_cpus)
    now, most = nodes_now(), nodes_at_most()
    drivers = drivers_on_head(now)
    fit_now = min(drivers, fitting(now, need))
    grown = max(fitting(most, need), concurrent if cfg.train.wait_minutes else 0)
    capacity = Capacity(fit_now, max(fit_now, min(drivers, grown)), need)
    cpus = sum(node.cpus for node in most)
    if not capacity.at_most:
        raise ClusterError(
            f"Not one trial fits: it needs {need}, but the cluster has {cpus:g} CPUs on {len(most)} nodes and at least "
            f"one whole CPU must stay free for Ray Data, and the head has memory for {drivers} drivers: lower "
            "train.workers, train.cpus_per_worker or --data-cpus, or add nodes."
        )
    if concurrent > capacity.at_most:
        raise ClusterError(
            f"--concurrent {concurrent}: only {capacity.at_most} trials fit, each needs {need}; with more they could "
            "wait for each other for ever. Lower it, or add nodes. Where an autoscaler adds them, --train.wait-minutes "
            "15 says so."
        )
    return capacity

"""How many training workers fit on the nodes that are up, while Ray Data keeps a CPU. No Ray: numbers in, number out.

Ray Train's own count of an elastic run looks at the cluster's resources only. Beside these count here the labels
that ranks ask for, the whole CPU without which Ray Data never delivers a batch, and the evaluator's CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ito_ray.config.schema import Config

ROUNDING = 1e-6
"""0.3 CPUs hold three workers of 0.1."""


class Machine(Protocol):
    """A node, as far as it counts here."""

    @property
    def cpus(self) -> float:
        """All of them, whoever has them now."""

    @property
    def gpus(self) -> float:
        """All of them."""

    @property
    def labels(self) -> Mapping[str, str]:
        """As it was started with."""


@dataclass(frozen=True)
class Up:
    """A node that is up."""

    cpus: float
    gpus: float
    labels: Mapping[str, str]


def placeable(cfg: Config, machines: Sequence[Machine], *, evaluator: bool) -> int:
    """The largest number of workers that leave Ray Data its CPU; at most what `train.workers` allows.

    Args:
        machines: those that are up.
        evaluator: whether there is one beside training. It keeps its share from growth, not from the least workers:
            without an evaluator rank 0 measures.
    """
    train = cfg.train
    decoding = [one for one in machines if cfg.data.node_labels.items() <= one.labels.items()]
    shared = sum(_slots(cfg, one) for one in decoding)

    def fits(workers: int) -> bool:
        on_decoding = min(workers, shared)  # at worst: Ray chooses
        if on_decoding and _left([one.cpus for one in decoding], on_decoding * train.cpus_per_worker) < 1:
            return False
        if workers <= train.workers.least or not evaluator:
            return True
        cpus = _left([one.cpus for one in machines], workers * train.cpus_per_worker) - 1
        gpus = _left([one.gpus for one in machines], workers * train.gpu)
        return cpus >= cfg.eval.cpus and gpus >= cfg.eval.gpu

    room = min(sum(_slots(cfg, one) for one in machines), train.workers.most)
    return next((workers for workers in range(room, 0, -1) if fits(workers)), 0)


def _left(amounts: Sequence[float], taken: float) -> float:
    return sum(amounts) - taken + ROUNDING


def _slots(cfg: Config, machine: Machine) -> int:
    """Workers that one node has room for."""
    if not cfg.train.node_labels.items() <= machine.labels.items():
        return 0
    by_cpu = int(machine.cpus / cfg.train.cpus_per_worker + ROUNDING)
    return min(by_cpu, int(machine.gpus)) if cfg.train.gpu else by_cpu


def largest(sizes: Sequence[int], most: int) -> int:
    """The largest of the ascending sizes that is not more than `most`; 0 if there is none."""
    return max((size for size in sizes if size <= most), default=0)

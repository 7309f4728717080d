"""Training that grows and shrinks with its cluster: Ray Train's elastic policy, with what it leaves open decided.

- A size that does not divide the global batch is passed over, so shares are equal and the maths the recipe's.
- Growing starts all workers anew from the last checkpoint, so it asks them for one first and waits for it: next to no
  step is taken twice.
- Workers that run are let alone: a run shrinks only when it lost some.
- What fits is counted by room.py (labels, a CPU for Ray Data) and by Ray's autoscaling coordinator, which knows what
  other trainings hold; the smaller number counts. A size that could not be started all the same is left alone a while.

Light to import: Ray Train's controller unpickles it. Written for Ray 2.60, whose policy has no public hook;
tests/runtime/test_elastic.py fails where a later one differs.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from ito_ray.config.schema import Config
from ito_ray.runtime.halt import draining
from ito_ray.runtime.monitor import MonitorHandle
from ito_ray.runtime.room import Up, largest, placeable
from ito_ray.training.state import read_state

LOOK_SECONDS = 5.0
"""Between two looks at the cluster while the workers are well."""
ANSWER_SECONDS = 5.0
AVOID_SECONDS = 600.0
"""How long a size is not tried again whose workers could not be placed, though their nodes seemed to be there."""
PAUSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


def nodes_up() -> list[Up]:
    """Those that stay: a node that is being drained is about to go, and Ray places nothing on it."""
    going = draining()
    return [
        Up(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0), node["Labels"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in going
    ]


def scaling(cfg: Config) -> ScalingConfig:
    """What Ray Train is told of the workers."""
    workers = cfg.train.workers
    return ScalingConfig(
        num_workers=(workers.least, workers.most) if workers.elastic else workers.most,
        use_gpu=cfg.train.gpu,
        resources_per_worker={"CPU": cfg.train.cpus_per_worker} | ({"GPU": 1.0} if cfg.train.gpu else {}),
        label_selector=cfg.train.node_labels or None,
    )


class GrowingPolicy(ElasticScalingPolicy):
    """Decides how many workers there are, at every start and at every poll of those that run.

    Args:
        cfg: with a range of workers.
        monitor: knows the newest checkpoint.
        evaluator: whether there is one beside training.
    """

    def __init__(self, cfg: Config, monitor: MonitorHandle, *, evaluator: bool) -> None:
        super().__init__(scaling(cfg))
        self._cfg, self._monitor, self._evaluator = cfg, monitor, evaluator
        self._starting = 0
        self._avoided, self._avoided_until = cfg.train.workers.most + 1, float("-inf")
        self._looked = float("-inf")
        self._waiting_since: str | None = None
        """The newest checkpoint when there was room to grow; None while there is none."""

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """The size to start with; called again when such a start failed."""
        self._maybe_send_resource_request()  # type: ignore[no-untyped-call]
        room = self._room()
        if 0 < self._starting <= room:
            self._avoid(self._starting)
        self._waiting_since = None
        self._starting = self._size(room)
        if self._starting:
            return self._get_resize_decision(self._starting)
        _log.info("There is no room for the least of train.workers=%s: waiting for nodes.", self._cfg.train.workers)
        time.sleep(PAUSE_SECONDS)  # Ray Train asks again at once
        return NoopDecision()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """A larger size as soon as the checkpoint is there that the workers are asked for, else nothing."""
        self._maybe_send_resource_request()  # type: ignore[no-untyped-call]
        self._starting = 0
        running = worker_group_state.num_workers
        if self._waiting_since is None and not self._may_grow(running):
            return NoopDecision()
        newest = self._newest_checkpoint()
        if self._waiting_since is None and newest is not None:
            self._waiting_since = newest
            self._ask_for_checkpoint()
        if newest is None or newest == self._waiting_since:
            return NoopDecision()
        self._waiting_since = None
        if read_state(Path(newest)).step >= self._cfg.train.steps:  # the workers are about to end
            return NoopDecision()
        size = self._size(self._room())
        return self._get_resize_decision(size) if size > running else NoopDecision()

    def _may_grow(self, running: int) -> bool:
        """Whether there is room for more, asked every LOOK_SECONDS."""
        if running >= self.scaling_config.max_workers or time.monotonic() - self._looked < LOOK_SECONDS:
            return False
        self._looked = time.monotonic()
        room = self._room()
        return largest(self._cfg.train.sizes, room) > running and self._size(room) > running

    def _room(self) -> int:
        """Workers that the nodes have room for, whoever else is there."""
        return placeable(self._cfg, nodes_up(), evaluator=self._evaluator)

    def _size(self, room: int) -> int:
        """The number of workers to have now; 0: wait."""
        if time.monotonic() < self._avoided_until:
            room = min(room, self._avoided - 1)
        sizes = self._cfg.train.sizes
        if room < sizes[0]:
            return 0
        return largest(sizes, max(sizes[0], min(room, self._granted(room))))

    def _avoid(self, size: int) -> None:
        if size > self._cfg.train.sizes[0]:
            _log.warning("%d workers could not be placed: trying fewer for a while.", size)
            self._avoided, self._avoided_until = size, time.monotonic() + AVOID_SECONDS

    def _granted(self, room: int) -> int:
        """Workers that Ray's coordinator of all trainings has room for; `room` if it does not answer.

        It ignores the labels of nodes when it counts, so the nodes that it names mean nothing; how many CPUs they
        have in all does. A training that was killed keeps its claim there for three minutes.
        """
        self._send_resource_request()  # type: ignore[no-untyped-call]
        asked = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
        try:
            reserved: dict[str, dict[str, float]] = ray.get(asked, timeout=ANSWER_SECONDS)
        except RayError:
            return room
        return round(sum(one.get("CPU", 0.0) for one in reserved.values()) / self._cfg.train.cpus_per_worker)

    def _newest_checkpoint(self) -> str | None:
        try:
            return str(ray.get(self._monitor.checkpoint.remote(), timeout=ANSWER_SECONDS))
        except RayError:  # the monitor is lost: whoever needs it says so
            return None

    def _ask_for_checkpoint(self) -> None:
        self._monitor.halt.remote("checkpoint")

    def _get_num_workers_for_resource_request(self) -> int:
        """What the coordinator keeps from Ray Data, and what it asks an autoscaler for.

        With GPUs all that the run may have: they fit only where GPUs are. Without, what fits now: a claim to more would
        be a claim to the CPUs of Ray Data, which then runs one task at a time.
        """
        if self._cfg.train.gpu:
            return self._cfg.train.workers.most
        return max(largest(self._cfg.train.sizes, self._room()), self._cfg.train.workers.least)


class Trainer(TorchTrainer):
    """Ray's, with a policy of ours if there is one."""

    policy: ScalingPolicy | None = None

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        if self.policy is not None:
            given["scaling_policy"] = self.policy
        return super()._initialize_and_run_controller(**given)

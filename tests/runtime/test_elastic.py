"""Workers that grow and shrink with the cluster: what fits, what is decided (without Ray), and a run that does it."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private.state import state
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2.api import data_parallel_trainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from rich.console import Console

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.runtime import elastic, preflight
from ito_ray.runtime.console import TrainingLine
from ito_ray.runtime.elastic import GrowingPolicy, Trainer, scaling
from ito_ray.runtime.room import Up, placeable
from ito_ray.training.optimizer import learning_rate
from ito_ray.training.state import State, write_state
from tests.runtime.elastic_child import BATCH, CUT, ENVIRONMENT, NO_FURTHER, SEEN, STEPS
from tests.runtime.shards import small_config
from tests.tiny import tiny_config


def _config(workers: str = "1..4", **changes: dict[str, Any]) -> Config:
    train = {"workers": workers, "global_batch": 8, "cpus_per_worker": 1.0}
    base = tiny_config(train=train, data={"heldout": ["a.tar"]})
    return overlay(base, changes, source="test")


def _nodes(*cpus: float, gpus: float = 0.0, **labels: str) -> list[Up]:
    return [Up(number, gpus, labels) for number in cpus]


APART: dict[str, dict[str, Any]] = {
    "train": {"node_labels": {"pool": "train"}},
    "data": {"node_labels": {"pool": "data"}},
}


@pytest.mark.parametrize(
    ("nodes", "changes", "expected"),
    [
        (_nodes(4), {}, 3),  # one CPU is Ray Data's
        (_nodes(1), {}, 0),
        (_nodes(2, 2, 2), {}, 4),  # no more than asked for
        (_nodes(0, 1.5, 1.5), {}, 2),  # no worker of halves
        (_nodes(1.0), {"train": {"cpus_per_worker": 0.1}}, 0),
        (_nodes(1.3), {"train": {"cpus_per_worker": 0.1}}, 3),  # 0.3 / 0.1 is less than 3 in floating point
        (_nodes(3, pool="train") + _nodes(1, pool="data"), APART, 3),
        (_nodes(3, pool="train") + _nodes(8, pool="data"), APART, 3),  # Ray's own count would be 4
        (_nodes(8, pool="data"), APART, 0),
        (_nodes(8, 8, gpus=1), {"train": {"gpu": True}}, 2),
        (_nodes(8) + _nodes(8, gpus=2), {"train": {"gpu": True}}, 2),
        (_nodes(2, gpus=2), {"train": {"gpu": True}}, 1),
    ],
)
def test_what_fits_beside_ray_data(nodes: list[Up], changes: dict[str, Any], expected: int) -> None:
    assert placeable(_config(**changes), nodes, evaluator=False) == expected


def test_an_evaluator_keeps_its_share_from_growth_and_not_from_the_least() -> None:
    cfg = _config("2..4", eval={"every": 5, "cpus": 2.0})
    assert [placeable(cfg, _nodes(cpus), evaluator=True) for cpus in (3, 4, 5, 6, 7)] == [2, 2, 2, 3, 4]
    on_gpu = _config("1..2", train={"gpu": True}, eval={"every": 5, "cpus": 1.0, "gpu": True})
    assert [placeable(on_gpu, _nodes(9, gpus=gpus), evaluator=True) for gpus in (1, 2, 3)] == [1, 1, 2]


class _Policy(GrowingPolicy):
    """Asks neither Ray's coordinator nor the monitor."""

    granted = 99
    newest: str | None = ""
    asked = 0

    def _maybe_send_resource_request(self) -> None:
        pass

    def _granted(self, room: int) -> int:
        return self.granted

    def _newest_checkpoint(self) -> str | None:
        return self.newest

    def _ask_for_checkpoint(self) -> None:
        self.asked += 1


class _Cluster:
    """A policy and the cluster and clock that it sees."""

    def __init__(self, cfg: Config, monkeypatch: pytest.MonkeyPatch, tmp: Path) -> None:
        self.cpus, self.seconds, self._tmp = 0.0, 0.0, tmp
        monkeypatch.setattr(elastic, "nodes_up", lambda: _nodes(self.cpus + 1))
        monkeypatch.setattr(elastic, "time", SimpleNamespace(monotonic=lambda: self.seconds, sleep=lambda _: None))
        self.policy = _Policy(cfg, None, evaluator=False)

    def start(self) -> int:
        """The size to start with; 0: none."""
        return _size(self.policy.make_decision_for_non_running_worker_group())

    def poll(self, running: int, seconds: float = 1.0) -> int:
        """The size to change to; 0: none."""
        self.seconds += seconds
        group = SimpleNamespace(num_workers=running)
        return _size(self.policy.make_decision_for_running_worker_group(group, None))

    def checkpoint(self, step: int) -> None:
        """One is registered."""
        folder = self._tmp / f"step-{step}"
        folder.mkdir()
        write_state(folder, State(step, {}, {}, "", [], {}))
        self.policy.newest = str(folder)


def _size(decision: ScalingDecision) -> int:
    if isinstance(decision, ResizeDecision):
        assert decision.resources_per_worker == {"CPU": 1.0}
        return decision.num_workers
    assert isinstance(decision, NoopDecision)
    return 0


@pytest.fixture(name="cluster")
def _cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Cluster:
    return _Cluster(_config(), monkeypatch, tmp_path)


def test_a_start_takes_the_largest_size_that_divides_the_batch(cluster: _Cluster) -> None:
    sizes = []
    for cluster.cpus in (0, 1, 2, 3, 4, 9):
        sizes.append(cluster.start())
        cluster.poll(sizes[-1])
    assert sizes == [0, 1, 2, 2, 4, 4], "8 pairs are not shared by three"
    cluster.policy.granted, cluster.cpus = 3, 4
    assert cluster.start() == 2, "another training holds a node"
    cluster.poll(2)
    cluster.policy.granted = 0
    assert cluster.start() == 1, "the least as a run of fixed size: a killed training's claim ends by itself"


def test_growth_waits_for_a_checkpoint_and_takes_what_fits_then(cluster: _Cluster) -> None:
    cluster.cpus = 1
    assert cluster.start() == 1
    cluster.checkpoint(2)
    assert [*(cluster.poll(1, 9) for _ in range(3)), cluster.policy.asked] == [0, 0, 0, 0], "no room"
    cluster.cpus = 2
    assert [*(cluster.poll(1, 9) for _ in range(3)), cluster.policy.asked] == [0, 0, 0, 1], "room: one is asked for"
    cluster.cpus = 4
    cluster.checkpoint(4)
    assert cluster.poll(1) == 4, "at once, with what has come meanwhile"
    cluster.cpus = 3
    cluster.checkpoint(6)
    assert [cluster.poll(4, 9) for _ in range(2)] == [0, 0], "who runs is let alone"


def test_room_that_is_gone_when_the_checkpoint_comes_is_not_grown_into(cluster: _Cluster) -> None:
    cluster.cpus = 2
    assert cluster.poll(1, 9) == 0
    cluster.cpus = 1
    cluster.checkpoint(2)
    assert cluster.poll(1) == 0
    cluster.cpus = 3
    assert [cluster.poll(2, 9) for _ in range(2)] == [0, 0], "three do not divide the batch"
    cluster.cpus = 4
    assert cluster.poll(2, 1) == 0, "not looked yet"
    cluster.checkpoint(4)
    assert cluster.poll(2, 1) == 0, "that one was there before the room was seen"
    cluster.poll(2, 9)
    cluster.checkpoint(6)
    assert cluster.poll(2) == 4


def test_nothing_is_started_for_a_run_that_is_over_or_whose_monitor_is_lost(cluster: _Cluster) -> None:
    cluster.cpus = 4
    assert cluster.poll(1, 9) == 0
    cluster.checkpoint(10)
    assert cluster.poll(1) == 0, "the last step's"
    cluster.policy.newest = None
    assert [cluster.poll(1, 9) for _ in range(3)] == [0, 0, 0]


def test_a_size_that_cannot_be_placed_is_left_alone_for_a_while(cluster: _Cluster) -> None:
    cluster.cpus = 4
    assert [cluster.start(), cluster.start(), cluster.start(), cluster.start()] == [4, 2, 1, 1]
    cluster.checkpoint(2)
    assert cluster.poll(1, 9) == 0
    cluster.checkpoint(4)
    assert cluster.poll(1, 9) == 0
    cluster.poll(1, elastic.AVOID_SECONDS)
    cluster.checkpoint(6)
    assert cluster.poll(1) == 4


def test_a_start_that_failed_since_a_node_was_gone_keeps_nothing_from_the_next(cluster: _Cluster) -> None:
    cluster.cpus = 2
    assert cluster.start() == 2
    cluster.cpus = 1
    assert cluster.start() == 1, "Ray had not noticed yet"
    assert cluster.poll(1, 9) == 0
    cluster.cpus = 2
    assert cluster.poll(1, 9) == 0
    cluster.checkpoint(2)
    assert cluster.poll(1) == 2


def _node(name: str, cpus: float, gpus: float = 0.0) -> dict[str, Any]:
    return {"NodeID": name, "Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}, "Labels": {}}


class _Handle:
    """Ray's coordinator, here instead of in an actor."""

    def __init__(self, nodes: list[dict[str, Any]]) -> None:
        self.actor = _AutoscalingCoordinatorActor(
            send_resources_request=lambda *_, **__: None, get_cluster_nodes=lambda: nodes
        )

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.actor, name))


def test_rays_coordinator_is_asked_for_what_fits_and_knows_of_other_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its real arithmetic, on nodes that it learns of when it is asked."""
    nodes = [_node("a", 2.0)]
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(state, "get_draining_nodes", lambda: {"gone": 0})
    handle = _Handle(nodes)
    policy = GrowingPolicy(_config(train={"cpus_per_worker": 0.6}), None, evaluator=False)
    monkeypatch.setattr(GrowingPolicy, "_autoscaling_coordinator", property(lambda self: handle))
    monkeypatch.setattr(GrowingPolicy, "_send_resource_request", _sent_to(handle))
    policy._requester_id = "train-mine"
    assert policy._granted(4) == 1, "of two CPUs one is left to Ray Data"
    nodes += [_node("b", 2.0), _node("gone", 9.0)]
    assert policy._get_num_workers_for_resource_request() == 4 and policy._granted(4) == 4
    del nodes[1:]
    handle.actor.cancel_request("train-mine")
    handle.actor.request_resources("train-theirs", [{"CPU": 1.5}], 60.0, priority=ResourceRequestPriority.HIGH)
    assert policy._granted(4) == 0, "another training came first"


def _sent_to(handle: _Handle) -> Any:
    def send(self: GrowingPolicy) -> None:
        bundles = [self.scaling_config._resources_per_worker_not_none] * self._get_num_workers_for_resource_request()
        handle.actor.request_resources("train-mine", bundles, 60.0, priority=ResourceRequestPriority.HIGH)

    return send


def test_ray_train_takes_our_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no public way; this fails where a later Ray goes another."""
    given: list[Any] = []

    def taken(self: object, *, scaling_policy: object, **named: Any) -> Any:
        given.append(scaling_policy)
        return SimpleNamespace(error=None)

    monkeypatch.setattr(DataParallelTrainer, "_initialize_and_run_controller", taken)
    monkeypatch.setattr(data_parallel_trainer, "ObjectRefWrapper", lambda function: function)  # or Ray would start
    cfg = _config("1..2")
    trainer = Trainer(lambda: None, scaling_config=scaling(cfg))
    trainer.fit()
    trainer.policy = GrowingPolicy(cfg, None, evaluator=False)
    trainer.fit()
    Trainer(lambda: None, scaling_config=scaling(_config("2"))).fit()
    assert [type(one) for one in given] == [ElasticScalingPolicy, GrowingPolicy, FixedScalingPolicy]


def test_what_the_policy_overrides_is_there_to_be_overridden() -> None:
    for name, made in vars(GrowingPolicy).items():
        inherited = getattr(ElasticScalingPolicy, name, None)
        if inspect.isfunction(made) and inherited is not None and name != "__init__":
            assert list(inspect.signature(made).parameters) == list(inspect.signature(inherited).parameters), name
    overridden = {name for name in vars(GrowingPolicy) if hasattr(ElasticScalingPolicy, name)}
    assert {
        "make_decision_for_non_running_worker_group",
        "make_decision_for_running_worker_group",
        "_get_num_workers_for_resource_request",
    } <= overridden
    assert hasattr(ElasticScalingPolicy, "_send_resource_request")
    assert "recompute" in inspect.signature(_AutoscalingCoordinatorActor.get_reserved_resources).parameters


def test_the_least_must_have_room_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(cfg: Config, *nodes: Mapping[str, Any]) -> str:
        total = {kind: sum(one["Resources"][kind] for one in nodes) for kind in ("CPU", "GPU")}
        known = SimpleNamespace(cluster_resources=lambda: total, nodes=lambda: list(nodes))
        monkeypatch.setattr(preflight, "ray", known)
        monkeypatch.setattr(elastic, "ray", known)
        monkeypatch.setattr(state, "get_draining_nodes", dict)
        return preflight._lacking(cfg)

    assert lacking(_config("2..4"), _node("a", 3.0)) == ""
    assert "the least of train.workers=2..4, 2, × train.cpus_per_worker=1 leave 0" in lacking(
        _config("2..4"), _node("a", 2.0)
    )
    gpus = _config("2..4", train={"gpu": True})
    assert "the least of train.workers=2..4, 2, with train.gpu need as many GPUs" in lacking(gpus, _node("a", 9.0, 1))
    assert "No set of nodes has room for 2 workers of train.cpus_per_worker=2" in lacking(
        _config("2..4", train={"cpus_per_worker": 2.0}), *[_node("a", 1.5)] * 4
    )


def test_a_change_of_size_is_a_line() -> None:
    console = Console(file=StringIO(), width=100, record=True)
    line = TrainingLine(console, 100)
    for step, workers in ((0, 1.0), (10, 1.0), (10, 2.0), (20, 2.0), (20, 1.0)):
        line.update(step, {"train/workers": workers})
    assert [text.strip() for text in console.export_text().splitlines()] == [
        "step 10: 1 → 2 workers",
        "step 20: 2 → 1 workers",
    ]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_grows_and_shrinks_with_its_cluster(tmp_path: Path, parallel: str) -> None:
    """One node for ranks, then two, then one: the same batch and rate, every sample of a pass once, one curve."""
    command = [sys.executable, "-m", "tests.runtime.elastic_child", str(tmp_path), parallel]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | ENVIRONMENT
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["problems"] == [], "every step, every sample of the passes once"
    sizes = {int(step): size for step, size in found["sizes"].items()}
    grown = min(step for step, size in sizes.items() if size == 2) - 1
    assert SEEN < grown < NO_FURTHER, "after a checkpoint out of turn"
    assert sizes == {step: 2 if grown < step <= CUT else 1 for step in range(1, STEPS + 1)}, "back to the one before it"
    assert set(found["pairs"].values()) == {BATCH}, "all ranks of a step together"
    curve, rates = ({int(step): value for step, value in found[name].items()} for name in ("loss", "lr"))
    assert sorted(curve) == list(range(1, STEPS + 1)), "in MLflow, each step once"
    optim = small_config(tmp_path / "same").optim
    assert rates == {step: pytest.approx(learning_rate(step - 1, STEPS, optim)) for step in range(1, STEPS + 1)}
    assert found["workers"] == [1, 2, 1], "as told while it ran"

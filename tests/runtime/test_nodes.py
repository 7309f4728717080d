"""What nodes say of themselves, and what is refused or advised for it."""

from __future__ import annotations

import dataclasses
import io
import socket
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ito_ray.config.load import overlay
from ito_ray.config.recipes import cc12m_vitb16
from ito_ray.config.schema import Config
from ito_ray.errors import ClusterError
from ito_ray.runtime import nodes
from ito_ray.runtime.console import Stages
from ito_ray.runtime.nodes import MIB, Facts, Finding, Node, judge, probe, unreachable

FACTS = Facts({"ray": "2.60.0", "torch": "2.14.1"}, shm_bytes=16_000 * MIB, clock=0.0)
DATA = Node("10.0.0.2", 16, 0, 8_000 * MIB, {"pool": "data"}, FACTS)
TRAIN = Node("10.0.0.3", 8, 1, 8_000 * MIB, {"pool": "train"}, FACTS)


def _config(**changes: Any) -> Config:
    apart = {"data": {"node_labels": {"pool": "data"}}, "train": {"node_labels": {"pool": "train"}, "workers": 1}}
    cfg = overlay(cc12m_vitb16(), apart, source="test")
    return overlay(
        cfg, {"output": "/mnt/shared/runs", "tracking": {"uri": "http://mlflow:5000"}, **changes}, source="test"
    )


def _judged(cfg: Config, *cluster: Node, ahead: float = 0.0, tracking: str = "") -> dict[str, Finding]:
    return {one.what: one for one in judge(cfg, cluster, ahead_bytes=ahead, tracking=tracking)}


def _facts(node: Node, **changes: Any) -> Node:
    assert node.facts is not None
    return dataclasses.replace(node, facts=dataclasses.replace(node.facts, **changes))


def test_a_good_cluster_is_left_alone() -> None:
    found = _judged(_config(), DATA, TRAIN)
    assert [one.what for one in found.values() if one.advice or one.fatal] == []
    assert found["resources"].found == "nodes 2, CPUs 24, GPUs 1; CPUs for Ray Data 16"
    assert found["versions"].found == "ray 2.60.0; torch 2.14.1"


def test_cpus_for_data_are_those_that_training_leaves() -> None:
    together = _config(data={"node_labels": {}}, train={"node_labels": {}, "workers": 2, "cpus_per_worker": 2})
    assert _judged(together, TRAIN, TRAIN)["resources"].found.endswith("CPUs for Ray Data 12")
    starved = dataclasses.replace(DATA, cpus=1)
    assert "add nodes with CPUs" in _judged(_config(train={"workers": 2}), starved, TRAIN, TRAIN)["resources"].advice


def test_a_block_larger_than_a_store_is_refused_and_much_read_ahead_is_advised_against() -> None:
    block = 256 * 2 * 3 * 224**2
    small = dataclasses.replace(DATA, store_bytes=block - 1)
    assert _judged(_config(), small, TRAIN)["object store"].fatal
    assert not _judged(_config(), dataclasses.replace(DATA, store_bytes=block), TRAIN)["object store"].fatal
    assert "spill" in _judged(_config(), DATA, TRAIN, ahead=7_000 * MIB)["object store"].advice
    assert not _judged(_config(), DATA, TRAIN, ahead=6_000 * MIB)["object store"].advice


def test_an_output_that_is_not_shared_is_refused_with_the_nodes_that_lack_it() -> None:
    alone = _facts(TRAIN, output="it is another folder there than the driver's")
    found = _judged(_config(), DATA, alone)["output"]
    assert found.fatal and "on 10.0.0.3 it is another folder" in found.advice and "/mnt/shared/runs" in found.advice


def test_an_output_that_ray_would_delete_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "session" / nodes.RUNTIME_RESOURCES / "working_dir_files" / "abc"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert _judged(_config(output="runs"), TRAIN)["output"].fatal
    assert not _judged(_config(), TRAIN)["output"].fatal


def test_different_versions_are_refused_and_named() -> None:
    assert TRAIN.facts is not None
    other = _facts(TRAIN, versions={**TRAIN.facts.versions, "torch": "2.13.0"})
    found = _judged(_config(), DATA, other, dataclasses.replace(other, name="10.0.0.4"))["versions"]
    assert found.fatal and found.advice.startswith("torch differ")
    assert found.found == "ray 2.60.0; torch 2.14.1 on 10.0.0.2; torch 2.13.0 on 10.0.0.3, 10.0.0.4"


def test_small_shared_memory_late_clocks_and_silent_nodes_are_told() -> None:
    found = _judged(
        _config(),
        _facts(DATA, shm_bytes=64 * MIB),
        dataclasses.replace(TRAIN, skew=90.0),
        dataclasses.replace(TRAIN, name="10.0.0.9", facts=None),
    )
    assert "10.0.0.2" in found["/dev/shm"].advice and "--shm-size" in found["/dev/shm"].advice
    assert "10.0.0.3" in found["clocks"].advice
    assert "10.0.0.9 did not answer" in found["output"].advice
    assert not any(one.fatal for one in found.values())


def test_tracking_that_does_not_answer_or_is_a_file_of_many() -> None:
    assert (
        "does not answer: start" in _judged(_config(), DATA, tracking="mlflow:5000 does not answer")["tracking"].advice
    )
    file = _config(tracking={"uri": ""})
    assert "give a server" in _judged(file, DATA, TRAIN)["tracking"].advice
    assert not _judged(file, DATA)["tracking"].advice


def test_connections_are_tried_for_servers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert unreachable(f"http://127.0.0.1:{port}") == ""
    assert unreachable(f"http://127.0.0.1:{port}").startswith(f"127.0.0.1:{port} does not answer (")
    assert unreachable("sqlite:///mlflow.db") == unreachable("") == ""


def test_a_node_sees_the_drivers_file_and_writes_its_own(tmp_path: Path) -> None:
    assert "another folder" in probe(str(tmp_path), "mark").output
    (tmp_path / "mark").write_bytes(b"")
    facts = probe(str(tmp_path), "mark")
    assert facts.output == "" and {"Python", "ray", "torch", "ito_ray"} == set(facts.versions)
    assert [path.name for path in tmp_path.iterdir()] == ["mark"], "it cleans up"
    assert "cannot be read (Not a directory)" in probe(str(tmp_path / "mark"), "mark").output


def test_all_that_is_fatal_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = _facts(TRAIN, output="it cannot be written to (Read-only file system)", versions={"ray": "2.59.0"})
    monkeypatch.setattr(nodes, "survey", lambda output: [DATA, wrong])
    monkeypatch.setattr(nodes, "unreachable", lambda uri: "")
    with pytest.raises(ClusterError, match=r"output=/mnt.*Read-only file system.*; ray differ"):
        nodes.inspect(_config(), ahead_bytes=0.0)


def test_the_table_is_for_clusters_and_troubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(nodes, "unreachable", lambda uri: "")
    monkeypatch.setattr(nodes, "survey", lambda output: [DATA])
    assert nodes.inspect(_config(), ahead_bytes=0.0) == []
    monkeypatch.setattr(nodes, "survey", lambda output: [_facts(DATA, shm_bytes=64 * MIB), TRAIN])
    stages = Stages(Console(record=True, width=240, file=io.StringIO()), 1)
    stages.findings(nodes.inspect(_config(), ahead_bytes=0.0))
    shown = stages.console.export_text()
    assert "64 MiB at least" in shown and "docker --shm-size" in shown

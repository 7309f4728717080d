"""Ask every node of the cluster about itself, once, at the start: what cannot work is refused, what will hurt is said.

Nodes that an autoscaler starts later are not asked. Light to import, since it is unpickled on every node.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import time
import urllib.parse
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import ito_ray
from ito_ray.config.schema import Config
from ito_ray.errors import ClusterError
from ito_ray.redact import redact
from ito_ray.runtime.room import placeable

ANSWER_SECONDS = 120.0
"""Time for a node to answer: the first task there may have to fetch the job's code."""
CLOCK_SECONDS = 5.0
"""Clocks that are further apart make logs and curves of several nodes hard to read."""
CONNECT_SECONDS = 5.0
RUNTIME_RESOURCES = "runtime_resources"
"""Folder of a Ray session where copies of working folders are; Ray deletes them after the job."""
MIB = 2**20


@dataclass(frozen=True)
class Facts:
    """What a node says of itself."""

    versions: dict[str, str]
    """Of Python, ray, torch and, as a digest of its source, of this package."""
    shm_bytes: int
    """Of /dev/shm, where Ray keeps its objects; 0 where there is none."""
    clock: float
    """Seconds since the epoch."""
    output: str = ""
    """Why the run's folder cannot be used from there; empty if all is well."""


@dataclass(frozen=True)
class Node:
    """A node as Ray knows it, and what it answered."""

    name: str
    cpus: float
    gpus: float
    store_bytes: float
    """Of its object store."""
    labels: dict[str, str] = field(default_factory=dict)
    facts: Facts | None = None
    """None if it did not answer."""
    skew: float = 0.0
    """Seconds by which its clock surely is off from the driver's."""


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    what: str
    found: str
    advice: str = ""
    """Empty when all is well."""
    fatal: bool = False
    """Whether the run is refused for it."""


@cache
def source_digest() -> str:
    """Of this package's code, wherever it comes from: a wheel, an image or the job's working folder."""
    digest = hashlib.sha256()
    root = Path(ito_ray.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]  # 2.14.1+cpu works with 2.14.1
    except PackageNotFoundError:
        return "missing"


def probe(output: str, mark: str) -> Facts:
    """Look at the node that this runs on.

    Args:
        output: the run's folder, absolute.
        mark: name of a file there that the driver has written.
    """
    try:
        shm = shutil.disk_usage("/dev/shm").total
    except OSError:
        shm = 0
    versions = {"Python": platform.python_version(), "ray": ray.__version__, "torch": _version("torch")}
    return Facts(versions | {"ito_ray": source_digest()}, shm, time.time(), _usable(Path(output), mark))


def _usable(output: Path, mark: str) -> str:
    try:
        (output / mark).read_bytes()
    except FileNotFoundError:
        return "it is another folder there than the driver's"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    own = output / f"{mark}-{uuid.uuid4().hex}"
    try:
        own.write_bytes(b"may this node write?")
        own.unlink()
    except OSError as error:
        return f"it cannot be written to ({error.strerror})"
    return ""


def survey(output: Path) -> list[Node]:
    """All nodes that are up, with their answers; the driver's own without a task.

    Raises:
        ClusterError: the driver itself cannot write to the run's folder.
    """
    mark = f".ito-preflight-{uuid.uuid4().hex}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / mark).write_bytes(b"seen?")
    except OSError as error:
        raise ClusterError(f"output={output} cannot be written to: {error.strerror}. Give another folder.") from error
    here = ray.get_runtime_context().get_node_id()
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    ask = ray.remote(num_cpus=0, max_retries=0)(probe)
    asked, started = {}, time.time()
    try:
        for number in alive.keys() - {here}:
            where = NodeAffinitySchedulingStrategy(number, soft=False)
            asked[number] = ask.options(scheduling_strategy=where).remote(str(output), mark)
        answers: dict[str, Facts | None] = {here: probe(str(output), mark)}
        if asked:
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)
        answers |= {number: _answer(reference) for number, reference in asked.items()}
    finally:
        (output / mark).unlink(missing_ok=True)
    return [_node(alive[number], facts, started, time.time()) for number, facts in answers.items()]


def _answer(reference: Any) -> Facts | None:
    try:
        facts: Facts = ray.get(reference, timeout=0)
    except RayError:  # no answer yet, or the node was lost meanwhile
        return None
    return facts


def _node(known: dict[str, Any], facts: Facts | None, started: float, ended: float) -> Node:
    resources = known["Resources"]
    skew = max(0.0, started - facts.clock, facts.clock - ended) if facts else 0.0
    return Node(
        known["NodeManagerAddress"],
        resources.get("CPU", 0.0),
        resources.get("GPU", 0.0),
        resources.get("object_store_memory", 0.0),
        known["Labels"],
        facts,
        skew,
    )


def judge(cfg: Config, nodes: Sequence[Node], *, ahead_bytes: float, tracking: str) -> list[Finding]:
    """What the answers mean for the run that `cfg` asks for.

    Args:
        ahead_bytes: what the stream may hold in the object stores (`feed.bytes_ahead`).
        tracking: why the tracking server does not answer; empty if it does.
    """
    return [
        _resources(cfg, nodes),
        _store(cfg, nodes, ahead_bytes),
        _shared_memory(nodes),
        _output(cfg, nodes),
        _tracking(cfg, nodes, tracking),
        _versions(nodes),
        _clocks(nodes),
    ]


def _for_data(cfg: Config, nodes: Sequence[Node]) -> list[Node]:
    return [one for one in nodes if cfg.data.node_labels.items() <= one.labels.items() and one.cpus]


def _resources(cfg: Config, nodes: Sequence[Node]) -> Finding:
    cpus, gpus = sum(one.cpus for one in nodes), sum(one.gpus for one in nodes)
    data = _for_data(cfg, nodes)
    shared = [one for one in data if cfg.train.node_labels.items() <= one.labels.items()]
    workers = max(placeable(cfg, nodes, evaluator=False), cfg.train.workers.least)
    left = sum(one.cpus for one in data) - (workers * cfg.train.cpus_per_worker if shared == data else 0)
    found = f"nodes {len(nodes)}, CPUs {cpus:g}, GPUs {gpus:g}; CPUs for Ray Data {left:g}"
    if left < workers and cfg.train.gpu:
        return Finding("resources", found, "fewer CPUs for data than GPUs that wait for it: add nodes with CPUs")
    return Finding("resources", found)


def _store(cfg: Config, nodes: Sequence[Node], ahead_bytes: float) -> Finding:
    block = cfg.data.rows_per_task * cfg.data.views.count * 3 * cfg.model.image.size**2
    data = _for_data(cfg, nodes)
    smallest, total = min((one.store_bytes for one in data), default=0.0), sum(one.store_bytes for one in data)
    found = f"{total / MIB:,.0f} MiB; a block {block / MIB:,.0f}, read ahead up to {ahead_bytes / MIB:,.0f}"
    if data and block > smallest:
        advice = f"a block does not fit the smallest store of {smallest / MIB:,.0f} MiB: lower data.rows_per_task"
        return Finding("object store", found, advice, fatal=True)
    if ahead_bytes > 0.8 * total:
        advice = "Ray will spill blocks to disk: lower data.rows_per_task, or give nodes more (--object-store-memory)"
        return Finding("object store", found, advice)
    return Finding("object store", found)


def _shared_memory(nodes: Sequence[Node]) -> Finding:
    small = [one for one in nodes if one.facts and one.facts.shm_bytes < one.store_bytes]
    least = min((one.facts.shm_bytes for one in nodes if one.facts), default=0)
    advice = (
        f"smaller than the object store on {_names(small)}, so Ray uses the disk: docker --shm-size" if small else ""
    )
    return Finding("/dev/shm", f"{least / MIB:,.0f} MiB at least", advice)


def _output(cfg: Config, nodes: Sequence[Node]) -> Finding:
    folder = Path(cfg.output).absolute()
    if RUNTIME_RESOURCES in folder.parts:
        advice = f"output={cfg.output} is in the job's copy of the working folder, which Ray deletes: use a shared one"
        return Finding("output", str(folder), advice, fatal=True)
    silent = [one for one in nodes if one.facts is None]
    wrong = [one for one in nodes if one.facts and one.facts.output]
    if wrong:
        assert wrong[0].facts is not None
        advice = (
            f"output={cfg.output} must be one folder that all nodes write to, but on {_names(wrong)} "
            f"{wrong[0].facts.output}: mount it there, or give another"
        )
        return Finding("output", str(folder), advice, fatal=True)
    advice = f"{_names(silent)} did not answer in {ANSWER_SECONDS:g} s" if silent else ""
    return Finding("output", f"{folder}, nodes that write to it: {len(nodes) - len(silent)}", advice)


def _tracking(cfg: Config, nodes: Sequence[Node], unreachable: str) -> Finding:
    uri = redact(cfg.tracking.uri) or "SQLite below output"
    if unreachable:
        return Finding("tracking", uri, f"{unreachable}: start the server or correct tracking.uri")
    if len(nodes) > 1 and (not cfg.tracking.uri or cfg.tracking.uri.startswith("sqlite:")):
        return Finding("tracking", uri, "SQLite on a network disk may lock up: give a server, tracking.uri=http://…")
    return Finding("tracking", uri)


def _versions(nodes: Sequence[Node]) -> Finding:
    having: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for one in nodes:
        for package, found in (one.facts.versions if one.facts else {}).items():
            having[package, found].append(one)
    packages = [package for package, _ in having]
    different = sorted({package for package in packages if packages.count(package) > 1})
    listed = "; ".join(
        f"{package} {found}" + (f" on {_names(where)}" if package in different else "")
        for (package, found), where in having.items()
    )
    if not different:
        return Finding("versions", listed)
    advice = f"{', '.join(different)} differ between nodes: one image for all (deploy/Dockerfile), or submit the job "
    return Finding("versions", listed, advice + "with --working-dir, which brings ito_ray along", fatal=True)


def _clocks(nodes: Sequence[Node]) -> Finding:
    worst = max((one.skew for one in nodes), default=0.0)
    late = [one for one in nodes if one.skew > CLOCK_SECONDS]
    advice = f"the clock of {_names(late)} is off: run chrony or ntpd there" if late else ""
    return Finding("clocks", f"{worst:.1f} s apart at most" if worst else "as one", advice)


def _names(nodes: Sequence[Node]) -> str:
    shown = ", ".join(one.name for one in nodes[:3])
    return f"{shown} and {len(nodes) - 3} more" if len(nodes) > 3 else shown


def unreachable(uri: str) -> str:
    """Why no connection to a tracking server can be made; empty if one can, or if it is none or behind a proxy."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname or urllib.request.getproxies():
        return ""
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    try:
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except OSError as error:
        return f"{parts.hostname}:{port} does not answer ({error.strerror or error})"
    return ""


def inspect(cfg: Config, *, ahead_bytes: float) -> list[Finding]:
    """The table of a cluster; on one machine only what is wrong.

    Raises:
        ClusterError: something that cannot work.
    """
    nodes = survey(Path(cfg.output).absolute())
    findings = judge(cfg, nodes, ahead_bytes=ahead_bytes, tracking=unreachable(cfg.tracking.uri))
    if fatal := [one.advice for one in findings if one.fatal]:
        raise ClusterError(f"The cluster cannot run this: {'; '.join(fatal)}.")
    if len(nodes) > 1 or "RAY_ADDRESS" in os.environ:
        return findings
    return [one for one in findings if one.advice]

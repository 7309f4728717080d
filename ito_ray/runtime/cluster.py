"""Connect to Ray: the cluster that the environment names, else a small local one."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import ray
from ray._private.services import resolve_ip_for_localhost
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ito_ray.errors import ClusterError, ItoError
from ito_ray.runtime.access import loopback_only, on_loopback, require_token

OBJECT_STORE_BYTES = 1 << 30
"""Of a local Ray. The stream holds a few blocks at a time; Ray's default would be a third of the memory."""

TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")
"""Where Ray's sockets go when TMPDIR will not do, the first that does."""
LONGEST_FOLDER = 107 - len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.00000")
"""Bytes that the system leaves of a socket's path for the temporary folder."""

ANSWER_SECONDS = 20.0
"""How long the head of a cluster may take to accept a connection."""

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # data tasks; training workers set their threads themselves
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # checkpoints are registered at this pace; the default is 2 s
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

ALONE = {
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
}
"""What only a cluster needs: a dashboard's numbers, and a process that waits for notice that a node will be taken away;
a local Ray saves a twentieth of a core without. And what a local Ray should not do: end a process that was idle for a
second, since the next block of data would then wait for a new one to import torch (docs/log.md)."""


@contextmanager
def own_signals() -> Iterator[None]:
    """Keep this process's answers to SIGINT and SIGTERM; within, Ray puts its own in place.

    Ray's ends the process with the number of the signal as its code: here it is what this process makes of SIGTERM,
    or Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():  # which Ray leaves alone, too
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit as ended:
        answer = before[signal.SIGTERM]
        if ended.code == signal.SIGTERM and callable(answer):
            answer(signal.SIGTERM, None)  # whoever asks later must be told which signal it was
        raise KeyboardInterrupt from ended
    finally:
        for number, handler in before.items():
            if callable(handler):  # nobody's: Ray's is better than none
                signal.signal(number, handler)


def connect(*, verbose: bool) -> None:
    """Join the cluster of RAY_ADDRESS (set inside `ray job submit`), or start Ray on this machine.

    Args:
        verbose: let the log lines of Ray and of the workers through.

    Raises:
        ClusterError: Ray does not start, or the cluster does not answer.
    """
    if ray.is_initialized():
        return
    os.environ.update({name: value for name, value in WORKER_ENVIRONMENT.items() if name not in os.environ})
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not verbose:
        warnings.filterwarnings("ignore", module="ray")
        for name in ("ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
    level = logging.INFO if verbose else logging.ERROR
    if "RAY_ADDRESS" in os.environ:
        # A job may set the same names in its runtime environment; the values are the same, but Ray would refuse.
        os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
        environment = {"env_vars": {name: os.environ[name] for name in WORKER_ENVIRONMENT}}
        address = os.environ["RAY_ADDRESS"]
        with (
            own_signals(),
            _refusals(f"The cluster at RAY_ADDRESS={address} cannot be joined"),
            loopback_only() if _answers_on_loopback_only(address) else nullcontext(),
        ):
            ray.init(runtime_env=environment, logging_level=level, log_to_driver=verbose)
        return
    # Its processes inherit our environment; as a runtime_env each would start another Python first, a second of CPU.
    require_token()
    _require_short_folder()
    alone = {**ALONE, **on_loopback()}
    said = "Ray does not start on this machine, which may be too busy"
    with _environment(alone), loopback_only(), own_signals(), _refusals(said):
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=level,
            log_to_driver=verbose,
        )


def _require_short_folder() -> None:
    """Name Ray another temporary folder, where TMPDIR is too long for the path of a socket or cannot be written to.

    Raises:
        ClusterError: no temporary folder will do.
    """
    given = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or TEMPORARY[0]
    for folder in dict.fromkeys((given, *TEMPORARY)):
        if len(os.fsencode(folder)) <= LONGEST_FOLDER and os.access(folder, os.W_OK | os.X_OK):
            if folder != given:
                os.environ["RAY_TMPDIR"] = folder
            return
    raise ClusterError(
        f"Ray needs a folder for its sockets, but TMPDIR={given} has more than {LONGEST_FOLDER} characters or cannot "
        f"be written to, and neither can {' or '.join(TEMPORARY)}: set TMPDIR to a shorter one."
    )


def _answers_on_loopback_only(address: str) -> bool:
    """Whether the head listens on the loopback interface only, as that of a Ray that this project starts does.

    Ray replaces a loopback address by the machine's own, and asks a port that is closed there for more than ten
    minutes.

    Raises:
        OSError: nothing listens at the address.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():  # `auto`: Ray knows where
        return False
    own = resolve_ip_for_localhost(host)
    try:
        socket.create_connection((own, int(port)), timeout=ANSWER_SECONDS).close()
    except OSError:
        if own == host:
            raise
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        return True
    return False


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set what is not set; within only, since a cluster that this process starts later wants its accounting."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _refusals(said: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and bare Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClusterError(
            f"{said}: {reason} Run the same command again when it does; --verbose shows more."
        ) from error


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Where an actor belongs that the driver cannot do without: any other node may be taken away."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def release_of(actor: str) -> None:
    """Give back what a dead actor had reserved; until the job ends Ray would keep it from everybody.

    Ray Train leaves that to a helper that asks the dashboard, which a local Ray does not have. Ray's public table of
    placement groups does not tell who made them.

    Args:
        actor: its id, as RayActorError has it.
    """
    _release({actor})


def release_of_the_dead() -> int:
    """Give back what dead actors of this job had reserved: who kills an actor does not always hear its id.

    Returns:
        How many placement groups that were.
    """
    from ray._private.state import actors  # the public list of actors asks the dashboard

    job = ray.get_runtime_context().get_job_id()
    found = cast(dict[str, dict[str, Any]], actors(job_id=ray.JobID.from_hex(job)))
    return _release({actor for actor, row in found.items() if row["State"] == "DEAD"})


def _release(creators: Set[str]) -> int:
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    kind: Any = cast(Any, gcs_pb2).PlacementGroupTableData
    released = 0
    for row in state._connect_and_get_accessor().get_placement_group_table():
        group = kind.FromString(row)
        if group.creator_actor_id.hex() in creators and group.state != kind.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
            released += 1
    return released


def user_mistake(error: BaseException | None) -> ItoError | None:
    """The user's mistake behind what Ray wraps around it."""
    while error is not None:
        # Ray raises a class that derives from the cause's, whose text is the whole traceback: that is not the one.
        if isinstance(error, ItoError) and type(error).__module__ == ItoError.__module__:
            return error
        inner = getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__
    return None

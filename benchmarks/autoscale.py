"""A sweep on a cluster that grows for it: a head without CPUs, nodes that come when trials wait and leave when idle.

    python -m benchmarks.autoscale -- --recipe icons_cpu --space ito_lambda --points 6 --confirm 0 --concurrent 2 \
        --train.steps 30 --optim.warmup-steps 10 --train.workers 1 --train.cpus-per-worker 1 \
        --train.wait-minutes 5 --name grown --output demo/grown

Nodes are processes on this machine (Ray's fake multi-node provider, autoscaler v2), on ports and in a folder of their
own; only they are ended afterwards. What stands after `--` is the command line of tune.search. Printed: the number of
nodes over time, and whether they came, kept to the maximum, and left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
from ray.util.state import list_nodes
from ray.util.state.exception import ServerUnavailable
from rich.console import Console

from ito_ray.runtime.access import require_token, token_variables
from pipelines.command import exit_code

PORT, DASHBOARD, CLIENT, AGENT = 6411, 8311, 20111, 52411
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
LISTS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
)


@dataclass(frozen=True)
class Arguments:
    """The cluster."""

    most: int = 2
    """Worker nodes at most."""
    cpus: int = 2
    """Of a worker node; nothing is really reserved."""
    idle_seconds: float = 60.0
    """After which a node leaves: longer than a trial needs to start. Ray Train and Ray Data may hold their requests for
    up to 180 s more."""
    wait: float = 300.0
    """Longest wait for the nodes to leave."""
    as_job: bool = False
    """Send the sweep through `ray job submit`."""


def configuration(arguments: Arguments) -> dict[str, Any]:
    """What `ray start --autoscaling-config` reads."""
    address = f"127.0.0.1:{PORT}"
    worker = {
        "resources": {"CPU": arguments.cpus},
        "node_config": {},
        "min_workers": 0,
        "max_workers": arguments.most,
    }
    return {
        "cluster_name": "ito-local",
        "max_workers": arguments.most,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": worker,
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,  # under another name its autoscaler only fails
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": arguments.idle_seconds / 60,
        **{name: [] for name in LISTS},
    }


@contextmanager
def cluster(arguments: Arguments) -> Iterator[dict[str, str]]:
    """The environment of a process that uses the cluster; ends what was started, and nothing else."""
    scratch = tempfile.mkdtemp(prefix="ito-autoscale-")
    config = Path(scratch, "cluster.json")
    config.write_text(json.dumps(configuration(arguments)))
    require_token()
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={PORT}", f"--dashboard-port={DASHBOARD}", f"--ray-client-server-port={CLIENT}"]
    command += [f"--dashboard-agent-listen-port={AGENT}", f"--temp-dir={scratch}", "--num-cpus=0"]
    command += [f"--autoscaling-config={config}", "--object-store-memory=300000000"]
    with Path(scratch, "start.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        address = {"RAY_ADDRESS": f"127.0.0.1:{PORT}", "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{DASHBOARD}"}
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        yield {**plain, **address, **token_variables()}
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait()


def workers_up(environment: dict[str, str]) -> int:
    """Worker nodes that are alive; -1 while the cluster does not answer."""
    try:
        # A node that comes again has the same name here, and Ray takes the list for a cut one.
        nodes = list_nodes(
            address=environment["RAY_API_SERVER_ADDRESS"],
            filters=[("state", "=", "ALIVE")],
            raise_on_missing_output=False,
        )
    except ServerUnavailable:  # still starting
        return -1
    return len(nodes) - 1


def run(arguments: Arguments, words: Sequence[str], console: Console) -> int:
    """0 when nodes came, never too many, and left."""
    seen: list[tuple[float, int]] = []
    started = time.monotonic()

    def look(environment: dict[str, str]) -> int:
        count = workers_up(environment)
        if count >= 0 and (not seen or seen[-1][1] != count):
            seen.append((time.monotonic() - started, count))
            console.print(f"{seen[-1][0]:6.1f} s: {count} worker nodes")
        return count

    with cluster(arguments) as environment:
        while look(environment) < 0:
            time.sleep(1.0)
        command = [sys.executable, "-m", "tune.search", *words]
        if arguments.as_job:
            ray = str(Path(sys.executable).with_name("ray"))
            # Without --working-dir: these nodes share one session folder, where each that comes unpacks it anew, under
            # the driver's feet (Ray's working_dir.py overwrites). tests/tune/test_sweep_job.py uploads it.
            command = [ray, "job", "submit", "--", "env", "-C", str(Path.cwd()), *command]
        sweep = subprocess.Popen(command, env=environment)
        try:
            while sweep.poll() is None:
                look(environment)
                time.sleep(1.0)
        finally:
            sweep.terminate()  # does nothing to one that has ended
        ended = time.monotonic()
        while look(environment) != 0 and time.monotonic() - ended < arguments.wait:
            time.sleep(1.0)
    most = max(count for _, count in seen)
    problems = [f"the sweep ended with {sweep.returncode}"] if sweep.returncode else []
    problems += ["no node came"] if most < 1 else []
    problems += [f"{most} nodes, but {arguments.most} are the maximum"] if most > arguments.most else []
    problems += ["nodes did not leave"] if seen[-1][1] else []
    console.print("; ".join(problems) or f"up to {most} nodes came, trials ran on them, and all left")
    return 1 if problems else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # or the cluster would stay
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parsed = tyro.cli(Arguments, prog="python -m benchmarks.autoscale", description=__doc__, args=given[:cut])
    return exit_code(lambda: run(parsed, given[cut + 1 :], Console(highlight=False)))


if __name__ == "__main__":
    sys.exit(main())

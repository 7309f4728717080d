"""A cluster of one node that takes jobs, for the tests of `ray job submit`."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from ito_ray.runtime.access import require_token

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Head:
    """A cluster of one node, as `ray start --head` makes it."""

    client: Any
    """JobSubmissionClient."""
    metrics: str

    def submit(self, arguments: str) -> str:
        """`python -m …` as a job, as `make submit` does."""
        environment = {"working_dir": str(REPOSITORY), "excludes": ["docs", "tests"]}
        command = f"{sys.executable} -m {arguments}"
        submitted: list[str] = []

        def is_accepted() -> bool:
            try:
                submitted.append(self.client.submit_job(entrypoint=command, runtime_env=environment))
            except RuntimeError as error:  # the page is there some seconds before the agent that starts jobs
                assert "No available agent" in str(error), error
            except requests.ConnectionError:  # and closes what it cannot answer yet
                pass
            return bool(submitted)

        wait(is_accepted, 120, lambda: "no agent takes jobs")
        return submitted[0]

    def ended(self, job: str) -> bool:
        return bool(self.client.get_job_status(job).is_terminal())


def wait(what: Callable[[], object], seconds: float, say: Callable[[], str]) -> None:
    """Until `what` is true, or fail with what `say` says."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, say()
        time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    """Below those that the system gives to anybody who asks: another Ray takes dozens before ours listens."""
    ports: set[int] = set()
    while len(ports) < count:
        port = random.randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.add(port)
    return list(ports)


@contextmanager
def job_server() -> Iterator[Head]:
    """Skips the test where the job server's packages are missing; ends only what it started."""
    pytest.importorskip("aiohttp_cors", reason="needs ray[default]: the extra `jobs`")
    from ray.job_submission import JobSubmissionClient

    folder = Path(tempfile.mkdtemp(prefix="ito-"))  # short: Ray's sockets are below
    port, dashboard, agent, export, client = _free_ports(5)
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--num-cpus=2"),
        *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={export}", f"--temp-dir={folder}"),
        *(f"--ray-client-server-port={client}", "--node-ip-address=127.0.0.1", f"--object-store-memory={200 << 20}"),
    ]
    require_token()  # of head and client
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    environment |= {
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "RAY_metrics_report_interval_ms": "1000",
    }
    log = (folder / "head.txt").open("w+")
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{dashboard}"

        def is_up() -> bool:
            assert process.poll() is None, (folder / "head.txt").read_text()
            page = urllib.request.Request(f"{address}/api/version")
            page.add_header("Authorization", f"Bearer {os.environ['RAY_AUTH_TOKEN']}")
            try:
                urllib.request.urlopen(page, timeout=2).close()
            except OSError:
                return False
            return True

        wait(is_up, 180, (folder / "head.txt").read_text)
        yield Head(JobSubmissionClient(address), f"http://127.0.0.1:{export}/metrics")
    finally:
        whole = psutil.Process(process.pid)  # --block keeps all of Ray's processes below itself
        for one in (*whole.children(recursive=True), whole):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)

"""A stranger on this machine or its network meets a run that trains."""

from __future__ import annotations

import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from ray import _raylet
from ray._private.authentication.authentication_utils import get_authentication_mode_name

from benchmarks.faults import Scene, ranks, until
from ito_ray.config.load import to_yaml
from ito_ray.errors import ClusterError
from ito_ray.redact import redact
from ito_ray.runtime.access import require_token
from tests.runtime.shards import small_config

REPOSITORY = Path(__file__).parents[2]
JOIN = """
import sys
import ray

ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)
print(ray.get(ray.remote(lambda: "I ran").remote(), timeout=60))
"""


@dataclass(frozen=True)
class Listening:
    """A socket that somebody may connect to."""

    process: str
    address: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        address = ip_address(self.address)
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return (mapped or address).is_loopback


@dataclass(frozen=True)
class Victim:
    """A run that trains, with two ranks."""

    sockets: tuple[Listening, ...]
    token: str
    commands: str
    """Of all its processes."""
    folder: Path

    def port(self, process: str) -> int:
        """The first that the process listens at."""
        return next(one.port for one in self.sockets if one.process == process)

    def join(self, **environment: str) -> str:
        """What a process prints that joins with this environment and runs a task."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        # Ray would take 127.0.0.1 for the address of the network, at which nothing listens.
        mine = {"HOME": str(self.folder / "stranger"), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **environment}
        command = [sys.executable, "-c", JOIN, f"127.0.0.1:{self.port('gcs_server')}"]
        ended = subprocess.run(command, env={**clean, **mine}, capture_output=True, text=True, timeout=120)
        return ended.stdout + ended.stderr

    def submit(self, host: str, port: int, path: str, headers: dict[str, str], patience: float = 60) -> int:
        """The answer to a shell command as a job; 0 if there is none."""
        body = {"entrypoint": f"touch {self.folder / 'harm'}"}
        with suppress(requests.RequestException):
            return requests.post(
                f"http://{host}:{port}{path}", json=body, headers=headers, timeout=patience
            ).status_code
        return 0


def _listening(processes: list[psutil.Process]) -> Iterator[Listening]:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            name = process.name()
            for found in process.net_connections("inet"):
                if found.status == psutil.CONN_LISTEN or (found.type == socket.SOCK_DGRAM and not found.raddr):
                    yield Listening(name, found.laddr.ip, found.laddr.port)


RECORDED = """
import runpy
from ray._private.parameter import RayParams
RayParams.__init__.__defaults__ = tuple(0 if one == 52365 else one for one in RayParams.__init__.__defaults__)
runpy.run_module("tests.runtime.recorded", run_name="__main__", alter_sys=True)
"""
"""Each Ray wants port 52365 for its agent, which goes without when another has it: here any port will do."""


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """Trains until it is ended, with nothing about Ray in its environment."""
    folder = tmp_path_factory.mktemp("victim")
    record = folder / "record"
    record.mkdir()
    cfg = small_config(folder, train={"workers": 2, "cpus_per_worker": 0.5})
    (folder / "run.yaml").write_text(to_yaml(cfg))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", RECORDED, str(record), "2", "0", "--config"]
    log = (folder / "log.txt").open("w")
    run = subprocess.Popen(
        [*command, str(folder / "run.yaml")], cwd=REPOSITORY, stdout=log, stderr=log, env=clean, start_new_session=True
    )
    try:
        scene = Scene(cfg, record, run.pid, random.Random(0))
        until(lambda: len(ranks(scene)) == 2 and scene.step() >= 2, "two ranks that train", 180)
        all_of_it = psutil.Process(run.pid)
        processes = [all_of_it, *all_of_it.children(recursive=True)]
        token = next(one.environ()["RAY_AUTH_TOKEN"] for one in processes if one.name() == "gcs_server")
        commands = "\n".join(" ".join(one.cmdline()) for one in processes)
        yield Victim(tuple(_listening(processes)), token, commands, folder)
    finally:
        log.close()
        whole = psutil.Process(run.pid)
        for one in (*whole.children(recursive=True), whole):
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        run.wait()


@pytest.mark.slow
def test_every_socket_of_a_run_is_of_this_machine_only(victim: Victim) -> None:
    names = {one.process for one in victim.sockets}
    for process in ("gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent"):
        assert process in names, names
    assert sum("RayTrainWorker" in one.process for one in victim.sockets) >= 5, "two of Ray's, two of gloo's, one store"
    assert [one for one in victim.sockets if not one.loopback] == []


@pytest.mark.slow
def test_a_process_without_the_token_runs_nothing(victim: Victim) -> None:
    tries: tuple[dict[str, str], ...] = (
        {},
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": victim.token},
    )
    with ThreadPoolExecutor(2) as pool:
        *strangers, friend = pool.map(lambda environment: victim.join(**environment), tries)
    assert "I ran" in friend, friend
    for printed in strangers:
        assert "I ran" not in printed and "InvalidAuthToken" in printed, printed


@pytest.mark.slow
def test_no_port_takes_a_job_without_the_token(victim: Victim) -> None:
    pytest.importorskip("aiohttp_cors", reason="needs ray[default]: the extra `jobs`")
    outside = _address_of_this_machine()
    paths = ("/api/job_agent/jobs/", "/api/jobs/")
    wrong = {"Authorization": f"Bearer {'0' * 64}"}
    tries = [
        (host, port, path, headers, 5.0)  # Ray's other protocols never answer
        for port in sorted({one.port for one in victim.sockets})
        for path in paths
        for host, headers in (("127.0.0.1", {}), ("127.0.0.1", wrong), (outside, {}))
    ]
    with ThreadPoolExecutor(16) as pool:
        answers = dict(zip(map(str, tries), pool.map(lambda one: victim.submit(*one), tries), strict=True))
    assert {tried: code for tried, code in answers.items() if code not in (0, 401, 403, 404, 405)} == {}
    assert {code for tried, code in answers.items() if outside in tried} == {0}, "nothing listens there"
    agents = {one.port for one in victim.sockets if one.process == "ray::DashboardAgent"}
    assert 401 in {victim.submit("127.0.0.1", port, paths[0], {}) for port in agents}
    assert not (victim.folder / "harm").exists()
    right = {"Authorization": f"Bearer {victim.token}"}
    assert 200 in {victim.submit("127.0.0.1", port, paths[0], right) for port in agents}
    until(lambda: (victim.folder / "harm").exists(), "the job of who knows the token", 60)


@pytest.mark.slow
def test_the_token_is_written_nowhere(victim: Victim) -> None:
    token = victim.token.encode()
    assert victim.commands and victim.token not in victim.commands
    (name,) = set(re.findall(r"session_[\d_-]+", victim.commands))
    (session,) = Path(tempfile.gettempdir(), "ray").glob(name)
    files = [path for root in (victim.folder, session) for path in root.rglob("*") if path.is_file()]
    assert any(path.name == "gcs_server.out" for path in files)
    assert [path for path in files if token in path.read_bytes()] == []


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable about a token, and what is set is unset after the test."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("mode", [None, "", "token", "TOKEN"])
def test_a_ray_that_we_start_has_a_token_of_its_own(untouched: pytest.MonkeyPatch, mode: str | None) -> None:
    if mode is not None:
        untouched.setenv("RAY_AUTH_MODE", mode)
    require_token()
    first = os.environ["RAY_AUTH_TOKEN"]
    assert len(first) == 64 and os.environ["RAY_AUTH_MODE"] == "token"
    library: Any = _raylet
    assert get_authentication_mode_name(library.get_authentication_mode()) == "token"
    assert library.AuthenticationTokenLoader.instance().get_raw_token() == first
    require_token()
    assert os.environ["RAY_AUTH_TOKEN"] == first, "what Ray runs already knows it"
    del os.environ["RAY_AUTH_TOKEN"]
    require_token()
    assert os.environ["RAY_AUTH_TOKEN"] != first


def test_the_users_token_is_kept(untouched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("f" * 64)
    untouched.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    require_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    untouched.setenv("RAY_AUTH_TOKEN", "e" * 64)
    require_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "e" * 64


def test_who_disables_it_is_told_and_obeyed(untouched: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    untouched.setenv("RAY_AUTH_MODE", "disabled")
    with caplog.at_level(logging.WARNING):
        require_token()
    (record,) = caplog.records
    assert "can run commands as you" in record.getMessage() and "\n" not in record.getMessage()
    assert os.environ["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize("mode", ["off", "1", "tokens", "disable"])
def test_a_mode_that_ray_would_take_for_disabled_is_refused(untouched: pytest.MonkeyPatch, mode: str) -> None:
    untouched.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ClusterError, match=f"RAY_AUTH_MODE={mode} is neither token"):
        require_token()


def test_a_token_file_without_a_token_is_a_sentence(untouched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    untouched.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    with pytest.raises(ClusterError, match=r"RAY_AUTH_TOKEN_PATH=.*absent cannot be read"):
        require_token()
    (tmp_path / "absent").write_text(" \n")
    with pytest.raises(ClusterError, match="has no token"):
        require_token()


def test_the_token_is_hidden_in_what_is_printed(untouched: pytest.MonkeyPatch) -> None:
    require_token()
    assert redact(f"token {os.environ['RAY_AUTH_TOKEN']}") == "token ***"


def _address_of_this_machine() -> str:
    """Of a network, not of the loopback interface; nothing is sent."""
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family == socket.AF_INET and not ip_address(one.address).is_loopback:
                return one.address
    pytest.skip("this machine has the loopback interface only")

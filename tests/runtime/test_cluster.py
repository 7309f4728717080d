"""Addresses at which there is a cluster, and at which there is none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from ito_ray.errors import ClusterError
from ito_ray.runtime import cluster
from ito_ray.runtime.access import token_variables
from ito_ray.runtime.cluster import connect

JOIN = """
import ray
from ito_ray.runtime.cluster import connect

connect(verbose=False)
print(ray.get_runtime_context().get_node_id())
"""


def test_a_cluster_that_does_not_answer_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ClusterError, match=rf"RAY_ADDRESS=127\.0\.0\.1:{port} cannot be joined: .*refused"):
        connect(verbose=False)


def test_an_address_that_is_none_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(ClusterError, match="RAY_ADDRESS=nonsense cannot be joined"):
        connect(verbose=False)


@pytest.mark.slow
def test_a_head_on_the_loopback_interface_is_joined(local_ray: None) -> None:
    """Ray alone would look for it at the machine's own address, for more than ten minutes."""
    address = ray.get_runtime_context().gcs_address
    assert address.startswith("127.0.0.1:")
    joined = subprocess.run(
        [sys.executable, "-c", JOIN],
        env={**os.environ, **token_variables(), "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert joined.stdout.split() == [ray.get_runtime_context().get_node_id()], joined.stderr


def test_sockets_have_a_short_folder_whatever_tmpdir_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket's path has room for 107 bytes, of which Ray takes most."""
    monkeypatch.setattr(cluster, "TEMPORARY", (str(tmp_path),))
    monkeypatch.setattr(cluster, "LONGEST_FOLDER", len(str(tmp_path)) + 5)
    monkeypatch.setenv("RAY_TMPDIR", "")
    for given, meant in (
        (tmp_path / "fits", ""),
        (tmp_path / "much too long", str(tmp_path)),
        (tmp_path / "gone", str(tmp_path)),
    ):
        if given.name != "gone":
            given.mkdir()
        monkeypatch.setenv("TMPDIR", str(given))
        cluster._require_short_folder()
        assert os.environ["RAY_TMPDIR"] == meant, given
        monkeypatch.setenv("RAY_TMPDIR", "")
    monkeypatch.setattr(cluster, "TEMPORARY", (str(tmp_path / "gone"),))
    with pytest.raises(ClusterError, match=r"TMPDIR=.*gone has more than \d+ characters or cannot be written to"):
        cluster._require_short_folder()

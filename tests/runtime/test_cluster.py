"""Addresses at which there is no cluster."""

from __future__ import annotations

import socket

import pytest

from ito_ray.errors import ClusterError
from ito_ray.runtime.cluster import connect


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

"""How the ranks of a training meet, where Ray listens on the loopback interface only."""

from __future__ import annotations

import importlib
import socket
from ipaddress import ip_address
from typing import Any

import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class RankConfig(TorchConfig):
    """Ray Train's, whose ranks meet at a port of the address that their nodes have, and of no other."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """See RankConfig."""
        return _RankBackend


class _RankBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute_single(0, _listen_on_loopback)
        super().on_start(worker_group, backend_config)


def _listen_on_loopback() -> None:
    """In rank 0's process, whose store of addresses would otherwise listen on all interfaces and ask for no token."""
    if not ip_address(ray.util.get_node_ip_address()).is_loopback:
        return
    rendezvous: Any = importlib.import_module(
        "torch.distributed.rendezvous"
    )  # a function of torch.distributed has its name
    made = rendezvous.TCPStore

    def store(host_name: str, port: int, *, is_master: bool, **given: Any) -> Any:
        if is_master:
            given["master_listen_fd"] = socket.create_server((host_name, port)).detach()
        return made(host_name=host_name, port=port, is_master=is_master, **given)

    rendezvous.TCPStore = store

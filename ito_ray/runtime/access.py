"""Who may use a Ray that this machine starts: processes of this machine that know its token.

Whoever may use Ray may run any command as its user. Ray 2.60 listens on all interfaces, and asks for a token where the
environment says so; on macOS it keeps to the loopback interface, a choice that is made here on Linux, too.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import _raylet
from ray._private import ray_constants

from ito_ray.errors import ClusterError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"

_log = logging.getLogger(__name__)


def require_token() -> None:
    """From now on a Ray that this process starts refuses whoever does not know its token.

    The token is the user's (RAY_AUTH_TOKEN, or the file of RAY_AUTH_TOKEN_PATH), else a new one. It is kept in the
    environment, which Ray's processes inherit and other users cannot read: in no file, and on no command line. A user's
    RAY_AUTH_MODE=disabled is kept to, with a warning.

    Raises:
        ClusterError: RAY_AUTH_MODE is none that Ray knows, which Ray would take for `disabled`; there is no token in
            the file.
    """
    mode = os.environ.get(MODE, "").strip().lower()
    if mode == "disabled":
        _log.warning(
            "RAY_AUTH_MODE=disabled: whoever reaches a port of this Ray can run commands as you. Unset it, and Ray "
            "asks for a token."
        )
        return
    if mode not in ("", "token"):
        raise ClusterError(f"RAY_AUTH_MODE={os.environ[MODE]} is neither token, the default, nor disabled.")
    if not os.environ.get(TOKEN, "").strip():
        if path := os.environ.get(TOKEN_PATH, ""):
            _require_content(Path(path))
        else:
            os.environ[TOKEN] = secrets.token_hex(32)
    os.environ[MODE] = "token"
    library: Any = _raylet
    library.Config.initialize("")  # it has read the environment when it was imported
    library.AuthenticationTokenLoader.instance().reset_cache()


def token_variables() -> dict[str, str]:
    """What a process needs in its environment to use a Ray that this process starts."""
    return {name: os.environ[name] for name in (MODE, TOKEN, TOKEN_PATH) if name in os.environ}


def _require_content(path: Path) -> None:
    try:
        content = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"The token in RAY_AUTH_TOKEN_PATH={path} cannot be read: {error}") from error
    if not content:
        raise ClusterError(f"RAY_AUTH_TOKEN_PATH={path} has no token: `ray get-auth-token --generate` makes one.")


@contextmanager
def loopback_only() -> Iterator[None]:
    """A Ray that is started within listens on the loopback interface only, with all its processes."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def on_loopback() -> Mapping[str, str]:
    """Environment of the processes of such a Ray: gloo and NCCL know nothing of Ray's choice, nor do Ray's own."""
    names = [name for _, name in socket.if_nameindex() if name.rstrip("0123456789") == "lo"]
    collectives = {f"{library}_SOCKET_IFNAME": name for name in names[:1] for library in ("GLOO", "NCCL")}
    return {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0", **collectives}

"""How the processes of actors that others write end: at once."""

from __future__ import annotations

import atexit
import os
import sys

import ray


def leave_at_once() -> None:
    """Have the process of this actor end as soon as Python runs its exit handlers; does nothing in a driver.

    Ray 2.60 can hang in what comes after: a destructor waits for the event loop that it takes down (docs/log.md).
    Ray then takes the process for gone, and it stays for ever with all its memory.
    """
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
        atexit.register(_leave)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

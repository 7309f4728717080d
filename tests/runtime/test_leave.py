"""Actors whose process would hang after Python has ended."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import psutil
import pytest
import ray

from ito_ray.runtime.leave import leave_at_once


def test_a_driver_ends_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[object] = []
    monkeypatch.setattr("atexit.register", lambda *what: registered.append(what))
    leave_at_once()
    assert registered == []


class Hanging:
    """Its process waits for ever in a handler of C's `exit`, where Ray's destructors run."""

    def __init__(self, *, at_once: bool) -> None:
        libc = ctypes.CDLL(None)
        libc["__cxa_atexit"](libc.pause, None, None)
        if at_once:
            leave_at_once()

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)  # Ray may fetch it later
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("at_once", [True, False])
def test_an_actor_ends_without_what_comes_after_python(at_once: bool) -> None:
    actor: Any = ray.remote(num_cpus=0)(Hanging).remote(at_once=at_once)
    process = psutil.Process(ray.get(actor.pid.remote()))
    del actor
    deadline = time.monotonic() + (60 if at_once else 5)
    while _runs(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _runs(process) is not at_once
    if not at_once:
        process.kill()

"""A checkpoint out of turn: before the command ends on Ctrl-C or SIGTERM, and when a node is about to be taken away.

The driver tells the monitor, the ranks ask it while they take their steps, and all of them hear the same word at the
same step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from typing import Any

import ray
from ray.exceptions import RayActorError, RpcError

from ito_ray.runtime.monitor import MonitorHandle
from ito_ray.training.halt import Halt

GRACE_SECONDS = 20.0
"""How long a command that is stopped waits for the checkpoint: Kubernetes allows 30 s, our clusters' jobs 60 s."""
POLL_SECONDS = 0.1
QUESTIONS_A_STEP = 64
"""At most so many ranks ask the monitor at every step; more of them ask at every second, third … one."""
DRAIN_POLL_SECONDS = 5.0


class Word:
    """What a rank does after a step besides what is due. Asked for a step ahead, so that no step waits for it."""

    def __init__(self, monitor: MonitorHandle, ranks: int) -> None:
        self._monitor = monitor
        self._every = 1 + (ranks - 1) // QUESTIONS_A_STEP
        self._asked: Any = None

    def __call__(self, done: int) -> Halt:
        """The word after `done` steps; the same on every rank."""
        word: Halt = ray.get(self._asked) if self._asked else ""
        self._asked = self._monitor.halted.remote(done) if done % self._every == 0 else None
        return word


def fit(train: Callable[[], object], monitor: MonitorHandle, tell: Callable[[str], None]) -> None:
    """Call `train` (TorchTrainer.fit); on Ctrl-C or SIGTERM have the ranks leave a checkpoint and end, then raise.

    It runs in a thread of its own, where Ray Train leaves this process's answers to signals alone.

    Raises:
        KeyboardInterrupt: at the latest GRACE_SECONDS after the signal; at once at the next one.
    """
    ended: Future[None] = Future()
    Thread(target=_run, args=(train, ended), name="TorchTrainer.fit", daemon=True).start()
    try:
        _wait(ended, math.inf)
        ended.result()
    except KeyboardInterrupt:
        with suppress(RayActorError):
            if ray.get(monitor.halt.remote("stop")):
                tell(f"stopping: waiting for a checkpoint, {GRACE_SECONDS:.0f} s at most; Ctrl-C stops at once")
                _wait(ended, GRACE_SECONDS)
        raise
    finally:
        del ended  # an error's traceback holds this frame, and would hold itself, and Ray Train's actors with it


def _run(train: Callable[[], object], ended: Future[None]) -> None:
    try:
        train()
        ended.set_result(None)
    except BaseException as error:  # for whoever waits
        ended.set_exception(error)


def _wait(ended: Future[None], seconds: float) -> None:
    """In short pieces: the system may hand a signal to any thread, and only an awake main thread answers it."""
    deadline = time.monotonic() + seconds
    while not ended.done() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


class Drains:
    """Notices that nodes will be taken away; asked often, looks every few seconds."""

    def __init__(self) -> None:
        self._known: frozenset[str] = frozenset()
        self._next = 0.0

    def new(self) -> int:
        """How many nodes more than before."""
        if time.monotonic() < self._next:
            return 0
        self._next = time.monotonic() + DRAIN_POLL_SECONDS
        before, self._known = self._known, frozenset(draining())
        return len(self._known - before)


def draining() -> dict[str, int]:
    """Ids of the nodes that are being drained, with their deadlines. Ray's public list of nodes does not tell."""
    from ray._private.state import state

    with suppress(RpcError):  # a head that does not answer for a moment
        found: dict[str, int] = state.get_draining_nodes()
        return found
    return {}

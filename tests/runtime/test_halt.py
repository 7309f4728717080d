"""How a command that waits for training hears a signal."""

from __future__ import annotations

import signal
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ito_ray.runtime import halt


def test_a_signal_that_the_system_hands_to_another_thread_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux may choose any thread; Python answers in the main one, which a wait without end would not wake."""
    not_yet = SimpleNamespace(halt=SimpleNamespace(remote=lambda how: how))
    monkeypatch.setattr("ray.get", lambda answer: False)  # no rank takes steps: nothing to wait for
    seconds = 5.0

    def train() -> None:
        time.sleep(0.5)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        time.sleep(seconds)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        halt.fit(train, cast(Any, not_yet), print)
    assert time.monotonic() - began < seconds / 2


def test_what_training_raises_is_raised() -> None:
    def train() -> None:
        raise ValueError("a reason")

    with pytest.raises(ValueError, match="a reason"):
        halt.fit(train, cast(Any, None), print)

"""The thread that hands metrics to the driver: its end is the run's."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ito_ray.runtime import trainer


class _Monitor:
    """Ranks that begin to take steps after some questions."""

    def __init__(self, questions: int) -> None:
        self.questions, self.halted, self.decided = questions, [], []  # type: ignore[var-annotated]
        news = SimpleNamespace(checkpoint="/a/step-1", metrics=[(1, {"eval/loss": 1.0})], ends_soon=False)
        self.drain = SimpleNamespace(remote=lambda logged: news)
        self.halt = SimpleNamespace(remote=self._halt)
        self.decide = SimpleNamespace(remote=lambda step, word: self.decided.append((step, word)))

    def _halt(self, how: str) -> bool:
        self.halted.append(how)
        return len(self.halted) > self.questions


def _fail(*_: object) -> Any:
    raise ZeroDivisionError("no disk for metrics")


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.get", lambda answer: answer)
    monkeypatch.setattr("ito_ray.runtime.halt.draining", dict)
    monkeypatch.setattr(trainer, "POLL_SECONDS", 0.01)


@pytest.mark.parametrize("questions", [0, 3])
@pytest.mark.parametrize(
    "listener",
    [
        trainer.Listener(_fail),
        trainer.Listener(lambda step, metrics: None, on_checkpoint=_fail),
        trainer.Listener(lambda step, metrics: None, judge=_fail),
    ],
    ids=["metrics", "checkpoint", "judge"],
)
def test_a_failure_of_the_driver_ends_the_run_at_once(listener: trainer.Listener, questions: int) -> None:
    monitor: Any = _Monitor(questions)
    with pytest.raises(ZeroDivisionError):
        trainer._relay(monitor, listener, threading.Event())
    assert monitor.halted == ["stop"] * (questions + 1), "asked until the ranks take steps"
    assert monitor.decided[-1] == (None, False), "no rank waits for a judge"


def test_it_does_not_wait_for_ranks_that_have_ended() -> None:
    monitor: Any = _Monitor(10**9)
    ended = threading.Event()
    ended.set()
    with pytest.raises(ZeroDivisionError):
        trainer._relay(monitor, trainer.Listener(_fail), ended)
    assert len(monitor.halted) == 1


def test_all_is_handed_over() -> None:
    ended, got, newest = threading.Event(), [], []  # type: ignore[var-annotated]
    ended.set()
    listener = trainer.Listener(lambda step, metrics: got.append((step, metrics)), on_checkpoint=newest.append)
    monitor: Any = _Monitor(0)
    assert trainer._relay(monitor, listener, ended) is False
    assert got == [(1, {"eval/loss": 1.0})] and newest == [Path("/a/step-1")] and monitor.halted == []

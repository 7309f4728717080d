"""Evaluations under way while training goes on, killed after any step: the curve is the one made while waiting.

Ray is played by `_Ray`, in which an evaluator's numbers are made at once, or when somebody asks: as late as can be.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError
from safetensors.torch import load_file

from ito_ray.config.schema import Config
from ito_ray.runtime import best, live
from ito_ray.runtime.shelf import name_of
from ito_ray.training import checkpoint, loop, spare
from ito_ray.training.learner import build_learner
from ito_ray.training.selection import criterion, stopped_early
from ito_ray.training.state import State, read_state
from tests.tiny import tiny_config, tiny_method
from tests.training.test_training import colours

METRIC = "heldout/r1_image_to_text"
STEPS, EVERY, CHECKPOINT_EVERY = 9, 2, 3
CPU = torch.device("cpu")


class _Late:
    """A reference: what it stands for is made when somebody asks."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


class _Ray:
    """As much of ray as `live` uses."""

    def __init__(self, *, at_once: bool = False, lost_after: int | None = None) -> None:
        self.at_once = at_once
        self.lost_after = lost_after

    def remote(self, **resources: object) -> Callable[[type], Any]:
        return lambda kind: SimpleNamespace(remote=lambda launch: self._actor(kind, launch))

    def _actor(self, kind: type, launch: Any) -> Any:
        made: list[Any] = []

        def measure(done: int, weights: _Late) -> dict[str, float]:
            if self.lost_after is not None and done > self.lost_after:
                raise RayActorError
            made.extend([kind(launch)] if not made else [])
            found: dict[str, float] = made[0].measure(done, weights.make())
            return found

        def begin(done: int, weights: _Late) -> _Late:
            if not self.at_once:
                return _Late(lambda: measure(done, weights))
            found = measure(done, weights)
            return _Late(lambda: found)

        ready = SimpleNamespace(remote=lambda: _Late(lambda: None))
        return SimpleNamespace(ready=ready, measure=SimpleNamespace(remote=begin))

    @staticmethod
    def put(value: object) -> _Late:
        return _Late(lambda: value)

    @staticmethod
    def get(reference: _Late, timeout: float = 0.0) -> Any:
        return reference.make()

    @staticmethod
    def kill(actor: object) -> None: ...


class _Monitor:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.log = SimpleNamespace(remote=self._log)

    def _log(self, step: int, values: dict[str, float]) -> _Late:
        self.points.append((step, values))
        return _Late(lambda: None)


class _Kill(Exception):
    """In place of SIGKILL."""


def _number(weights: bytes) -> dict[str, float]:
    """Looks random, and is another one for other weights."""
    return {METRIC: int.from_bytes(hashlib.sha256(weights).digest()[:2], "big") / 2**16}


@pytest.fixture(scope="module", autouse=True)
def numbers() -> Iterator[None]:
    """Numbers from the weights instead of data."""

    class Spare:
        def __init__(self, *_: object) -> None: ...

        def measure(self, weights: bytes, *, needed: bool = False) -> dict[str, float]:
            return _number(weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "Spare", Spare)
        patch.setattr(live, "measure", lambda encoder, *_, needed: _number(spare.take(encoder)))
        yield


def _config(tmp: Path, **evaluation: object) -> Config:
    return tiny_config(
        output=str(tmp),
        name="run",
        data={"heldout": ["heldout.tar"]},
        eval={"every": EVERY, "best": METRIC, **evaluation},
        train={"steps": STEPS, "checkpoint_every": CHECKPOINT_EVERY, "log_every": 1},
    )


def _train(cfg: Config, monitor: _Monitor, *, evaluator: bool, kill_after: int | None = None) -> State:
    """As runtime/worker.py does it, from the newest checkpoint on; two newest ones are kept."""
    run = Path(cfg.output) / cfg.name
    run.mkdir(exist_ok=True)
    learner = build_learner(cfg, tiny_method(cfg).float())
    committed = sorted(run.glob("step-*"))
    state = read_state(committed[-1]) if committed else None
    if state:
        checkpoint.load(committed[-1], learner)
    launch: Any = SimpleNamespace(
        cfg=cfg,
        judged=False,
        evaluator=evaluator,
        monitor=monitor,
        tokenizer=SimpleNamespace(load=lambda: None),
        go_to_folder=lambda: None,
    )
    lively = live.LiveEvaluation(launch, learner, None, CPU, state)
    if state and stopped_early(cfg, state):
        return state
    if state and state.evaluating:
        lively.begin(state.step)

    def report(done: int, _: dict[str, float]) -> None:
        if done - 1 == kill_after:
            raise _Kill

    def save(done: int) -> None:
        curve, under_way = lively.before_checkpoint(done, last=lively.stopped or done == STEPS)
        made_with = cfg.model_dump(mode="json")
        folder = run / name_of(done)
        folder.mkdir()
        checkpoint.save(folder, learner, State(done, {}, made_with, "plan", [], {}, curve, under_way, lively.stopped))
        for old in sorted(run.glob("step-*"))[:-2]:
            shutil.rmtree(old)
        lively.after_checkpoint(done)

    first = state.step if state else 0
    hooks = loop.Hooks(report, lively.evaluate, save, at_end=lively.chooses, with_checkpoint=lively.chooses)
    loop.train(cfg, learner, colours(cfg, first), CPU, hooks, first)
    return read_state(max(run.glob("step-*")))


def _curve(monitor: _Monitor) -> list[tuple[int, dict[str, float]]]:
    """As MLflow has it: a step that is there already is left out (`TrackedRun.log`)."""
    curve: list[tuple[int, dict[str, float]]] = []
    for step, values in monitor.points:
        if live.LOST not in values and (not curve or step > curve[-1][0]):
            curve.append((step, values))
    return curve


Outcome = tuple[list[tuple[int, dict[str, float]]], State, bytes]


@pytest.fixture(scope="module")
def inline(numbers: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What an undisturbed run gives in which training waits for its evaluations."""
    monitor, cfg = _Monitor(), _config(tmp_path_factory.mktemp("inline"), keep_best=2)
    state = _train(cfg, monitor, evaluator=False)
    return _curve(monitor), state, _shipped(cfg)


def _shipped(cfg: Config) -> bytes:
    """Weights of what ships; the best one must be the very one whose evaluation was best."""
    newest = max((Path(cfg.output) / cfg.name).glob("step-*"))
    chosen, rule = best.choose(cfg, newest), criterion(cfg)
    assert rule is not None
    learner = build_learner(cfg, tiny_method(cfg).float())
    checkpoint.load(chosen.folder, learner)
    weights = spare.take(learner.shipped)
    assert (chosen.step, _number(weights)[METRIC]) == rule.best(read_state(newest).curve)
    assert load_file(chosen.folder / "method.safetensors")
    curve = read_state(newest).curve
    wanted, before = ({name_of(step) for step, _ in rule.kept(some)} for some in (curve, curve[:-1]))
    assert wanted <= {path.name for path in (newest.parent / best.FOLDER).iterdir()} <= wanted | before
    return weights


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("kill_after", range(1, STEPS))
def test_killed_after_any_step_curve_and_kept_checkpoints_are_the_inline_ones(
    kill_after: int, at_once: bool, inline: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, ended, weights = inline
    assert [step for step, _ in expected] == [2, 4, 6, 8, 9]
    monkeypatch.setattr(live, "ray", _Ray(at_once=at_once))
    monitor, cfg = _Monitor(), _config(tmp_path, cpus=1, keep_best=2)
    with pytest.raises(_Kill):
        _train(cfg, monitor, evaluator=True, kill_after=kill_after)
    state = _train(cfg, monitor, evaluator=True)
    assert _curve(monitor) == expected
    assert (state.curve, state.evaluating) == (ended.curve, False)
    assert _shipped(cfg) == weights


def test_rank_0_takes_over_from_an_evaluator_that_is_lost(
    inline: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _, weights = inline
    monkeypatch.setattr(live, "ray", _Ray(lost_after=2))
    monitor, cfg = _Monitor(), _config(tmp_path, cpus=1)
    _train(cfg, monitor, evaluator=True)
    assert _curve(monitor) == expected and _shipped(cfg) == weights
    assert [step for step, values in monitor.points if live.LOST in values] == [4], "once, and not in silence"


@pytest.mark.parametrize("evaluator", [False, True])
def test_training_ends_without_improvement_and_stays_ended(
    evaluator: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluator's number is heard at the next evaluation: one later than inline."""
    monkeypatch.setattr(live, "ray", _Ray())
    monitor, cfg = _Monitor(), _config(tmp_path, cpus=float(evaluator), patience=1, min_improvement=1.0)
    state = _train(cfg, monitor, evaluator=evaluator)
    assert state.step == (6 if evaluator else 4) and state.stopped
    assert [step for step, _ in state.curve] == list(range(EVERY, state.step + 1, EVERY))
    assert "by more than 1 in 1 evaluations after step 2" in stopped_early(cfg, state)
    _shipped(cfg)
    told = list(monitor.points)
    assert _train(cfg, monitor, evaluator=evaluator) == state and monitor.points == told

    patient = _config(tmp_path, patience=9)
    assert _train(patient, monitor, evaluator=False).step == STEPS
    assert [step for step, _ in _curve(monitor)] == [2, 4, 6, 8, 9]


def test_an_encoder_for_evaluations_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under FSDP rank 0 measures a copy of the weights itself, at every evaluation."""
    built: list[object] = []

    class Spare:
        def __init__(self, *given: object) -> None:
            built.append(given)

        def measure(self, weights: bytes, *, needed: bool = False) -> dict[str, float]:
            return _number(weights)

    monkeypatch.setattr(live, "Spare", Spare)
    cfg, monitor = _config(tmp_path), _Monitor()
    cfg = cfg.model_copy(update={"train": cfg.train.model_copy(update={"parallel": "fsdp"})})
    learner = build_learner(cfg, tiny_method(cfg).float())
    launch: Any = SimpleNamespace(cfg=cfg, judged=False, evaluator=False, monitor=monitor)
    lively = live.LiveEvaluation(launch, learner, None, CPU, None)
    for step in (2, 4, 6):
        lively.begin(step)
    assert len(built) == 1
    assert monitor.points == [
        (step, {f"eval/{METRIC}": _number(spare.take(learner.shipped))[METRIC]}) for step in (2, 4, 6)
    ]

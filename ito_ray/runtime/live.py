"""Evaluation while training: by an evaluator with resources of its own, or by rank 0 while the others wait.

The evaluator gets a copy of the weights and training goes on. One evaluation is under way at a time: the next one, and
a checkpoint of a later step, wait for it. A checkpoint of its own step does not, but notes that it was under way, so
whoever resumes from there makes it again from the same weights: no point of the curve is lost or there twice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
import torch
import torch.distributed as dist
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from ito_ray.losses.gather import rank
from ito_ray.runtime import best
from ito_ray.runtime.cluster import user_mistake
from ito_ray.runtime.launch import Launch
from ito_ray.training import parallel
from ito_ray.training.learner import Learner
from ito_ray.training.selection import criterion
from ito_ray.training.spare import Spare, measure, take
from ito_ray.training.state import State

ASK_EVERY_SECONDS = 0.2
START_SECONDS = 120.0
"""Time that an evaluator still has to start when the first number is waited for."""
LOST = "eval/evaluator_lost"
"""A point of this curve is where rank 0 took over."""


class Evaluator:
    """The actor: measures weights and tells the monitor. It ends with rank 0, whose it is."""

    def __init__(self, launch: Launch) -> None:
        cfg = launch.cfg
        torch.set_num_threads(max(1, int(cfg.eval.cpus)))
        launch.go_to_folder()
        device = torch.device("cuda" if cfg.eval.gpu else "cpu")
        self._monitor = launch.monitor
        self._spare = Spare(cfg, launch.tokenizer.load(), device)

    def ready(self) -> None:
        """Returns when the encoder is built."""

    def measure(self, done: int, weights: bytes) -> dict[str, float]:
        """The numbers after `done` steps; the monitor has them when this returns."""
        found = self._spare.measure(weights)
        ray.get(self._monitor.log.remote(done, _named(found)))
        return found


@dataclass(frozen=True)
class _UnderWay:
    step: int
    numbers: Any
    """Reference to what the evaluator will find."""
    weights: Any
    """Reference to what it was given."""


class LiveEvaluation:
    """One rank's part; the curve and the evaluator are rank 0's.

    Args:
        launch: as every worker gets it.
        learner: what is trained.
        tokenizer: of the text tower.
        device: that the learner is on.
        resumed: of the checkpoint that training goes on from.
    """

    def __init__(
        self, launch: Launch, learner: Learner, tokenizer: Any, device: torch.device, resumed: State | None
    ) -> None:
        self._launch, self._learner, self._tokenizer, self._device = launch, learner, tokenizer, device
        self._rule = None if launch.judged else criterion(launch.cfg)
        self._run = Path(launch.cfg.output).absolute() / launch.cfg.name
        self._curve = list(resumed.curve) if resumed else []
        self._saved = resumed.step if resumed else 0
        self._under_way: _UnderWay | None = None
        self._evaluator: Any = None
        self._ready: Any = None
        self._spare: Spare | None = None
        """Made once: a tower of a library takes long to build, and its start weights may be read from a disk."""
        self.stopped = False
        """Whether training ends early."""
        if rank() == 0:
            if launch.evaluator:
                self._start()
            self._keep()

    @property
    def chooses(self) -> bool:
        """Whether the best checkpoint is kept."""
        return self._rule is not None

    def evaluate(self, done: int) -> bool:
        """The loop's hook: whether training goes on. All ranks."""
        self._settle()
        self.begin(done)
        return self._goes_on(done)

    def begin(self, done: int) -> None:
        """Have the weights measured, as they are after `done` steps. All ranks."""
        sharded = self._launch.cfg.train.parallel == "fsdp"
        weights = take(self._learner.shipped) if sharded or self._evaluator is not None else b""
        if rank() > 0:
            return  # the others wait in the next collective
        if self._evaluator is not None:
            reference = ray.put(weights)
            self._under_way = _UnderWay(done, self._evaluator.measure.remote(done, reference), reference)
        elif sharded:
            self._found(done, self._measured_here(weights))
        else:
            cfg, needed = self._launch.cfg, self._launch.judged
            self._found(done, measure(self._learner.shipped, cfg, self._tokenizer, self._device, needed=needed))

    def before_checkpoint(self, done: int, *, last: bool) -> tuple[list[tuple[int, float]], bool]:
        """What the checkpoint keeps as (`State.curve`, `State.evaluating`). Rank 0."""
        if self._under_way and (last or self._under_way.step < done):
            self._settle()
        return list(self._curve), self._under_way is not None

    def after_checkpoint(self, done: int) -> None:
        """Keep what was saved, if it is the best. All ranks."""
        self._saved = done
        if self._rule is None:
            return
        if dist.is_initialized():
            dist.barrier()  # every rank has written its part
        if rank() == 0:
            self._keep()

    def _start(self) -> None:
        """Before the first batch is asked for: Ray Data then finds the evaluator's CPUs taken, and not the reverse."""
        cfg = self._launch.cfg
        remote = cast(Any, ray.remote(num_cpus=cfg.eval.cpus, num_gpus=int(cfg.eval.gpu), max_restarts=0)(Evaluator))
        self._evaluator = remote.remote(self._launch)
        self._ready = self._evaluator.ready.remote()

    def _settle(self) -> None:
        """Wait for what is under way, and take it into the curve."""
        if self._under_way is None:
            return
        one, self._under_way = self._under_way, None
        try:
            ray.get(self._ready, timeout=START_SECONDS)
            self._add(one.step, ray.get(one.numbers))
        except RayError as error:
            if known := user_mistake(error):
                raise known from None
            if not isinstance(error, RayActorError | GetTimeoutError):
                raise
            ray.kill(self._evaluator)  # or it would start once there is room
            self._evaluator = None
            self._launch.monitor.log.remote(one.step, {LOST: 1.0})
            self._found(one.step, self._measured_here(ray.get(one.weights)))
        self._keep()

    def _measured_here(self, weights: bytes) -> dict[str, float]:
        if self._spare is None:
            self._spare = Spare(self._launch.cfg, self._tokenizer, self._device)
        return self._spare.measure(weights, needed=self._launch.judged)  # a sweep cannot judge without a number

    def _found(self, done: int, numbers: dict[str, float]) -> None:
        """Tell the monitor what was measured here."""
        self._launch.monitor.log.remote(done, _named(numbers))
        self._add(done, numbers)

    def _add(self, done: int, numbers: dict[str, float]) -> None:
        if self._rule is not None and self._rule.metric in numbers:
            self._curve.append((done, numbers[self._rule.metric]))

    def _keep(self) -> None:
        """The best, and the best before the newest point: that is what a run is resumed with which is killed now."""
        if self._rule is None:
            return
        bests = (*self._rule.kept(self._curve), *self._rule.kept(self._curve[:-1]))
        best.keep(self._run, {step for step, _ in bests if step <= self._saved})

    def _goes_on(self, done: int) -> bool:
        """The same word on every rank."""
        if self._launch.judged:
            while (answer := ray.get(self._launch.monitor.goes_on.remote(done))) is None:
                time.sleep(ASK_EVERY_SECONDS)
            return bool(answer)
        if self._rule is None or not self._rule.patience:
            return True
        self.stopped = parallel.of_all_ranks(self._rule.ran_out(self._curve) is not None)[0]
        return not self.stopped


def _named(numbers: dict[str, float]) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in numbers.items()}

"""Ray Tune at work: it starts trials and hands over their evaluations; the plan, the book and `Stopping` decide.

Ray Tune's own snapshots are not used. They are taken now and then, so a kill forgets trials and repeats others; the
book is written before anybody acts on it, and a rerun builds plan, searcher and stopping from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune as rtune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher as RaySearcher

from ito_ray.errors import ItoError
from ito_ray.runtime.cluster import on_this_node, release_of_the_dead
from ito_ray.runtime.desk import Desk, Order, Word
from ito_ray.runtime.trial import run_trial
from tune.book import Book, Job, Spent, State, Trial
from tune.budget import Budget
from tune.capacity import nodes_now
from tune.plan import Plan
from tune.room import Room
from tune.stopping import Stopping

FAILED, STEP, VALUES = "failed", "step", "values/"
DRIVER_RESOURCE = "node:__internal_head__"
"""A trial's driver runs beside the sweep's: it needs the tracker, and no node must wait for it."""
SPENT_EVERY_SECONDS = 15.0
TICK_SECONDS = 1.0
YIELDS = "makes room for those behind"
RESTARTS = 1
"""Of a trial whose driver was lost, or whose workers could not be kept alive; it goes on from its checkpoint."""

Tick = Callable[[], None]


@dataclass(frozen=True)
class Sweep:
    """What the parts below share."""

    book: Book
    budget: Budget
    order: Callable[[Trial], Order]
    stopping: Stopping
    desk_name: str
    desk: Any


def open_desk(name: str) -> Any:
    """The actor that trials ask."""
    return Desk.options(name=name, scheduling_strategy=on_this_node()).remote()  # type: ignore[attr-defined]


def drive(sweep: Sweep, plan: Plan, folder: Path, *, room: Room, tick: Tick) -> None:
    """Run the plan to its end.

    Args:
        room: says how many trials may run side by side.
        folder: for what Ray Tune writes.
        tick: called about once a second.

    Raises:
        ConfigError: the objective names a metric that the evaluation does not give.
    """
    if plan.is_finished:
        return
    judge = _Judge(sweep, plan)
    config = rtune.TuneConfig(
        search_alg=_Next(sweep, plan, room),
        scheduler=judge,
        num_samples=-1,
        max_concurrent_trials=room.most,
        reuse_actors=True,  # trials end by themselves, and the next one need not import everything again
        trial_dirname_creator=_directory,
        trial_name_creator=_directory,
    )
    clock = _Clock(sweep, tick)
    trainable = rtune.with_resources(run_trial, {DRIVER_RESOURCE: 0.001})
    run = rtune.RunConfig(
        name=f"session-{sweep.book.sessions}-{int(time.time())}",
        storage_path=str(folder),
        verbose=0,
        failure_config=rtune.FailureConfig(max_failures=RESTARTS),
        callbacks=[clock],
    )
    try:
        rtune.Tuner(trainable, tune_config=config, run_config=run).fit()
    except rtune.TuneError as error:
        if judge.error:
            raise judge.error from error
        raise
    finally:
        room.let_go()
        clock.count()
        tick()


def _directory(trial: RayTrial) -> str:
    return f"{trial.config['trial']}-{trial.trial_id}"


class _Unsaved:
    """What Ray Tune pickles with its snapshots, which nobody reads."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Next(_Unsaved, RaySearcher):
    """Gives Ray Tune the plan's trials, each when there is room for it."""

    def __init__(self, sweep: Sweep, plan: Plan, room: Room) -> None:
        super().__init__(metric=STEP, mode="max")
        self._sweep, self._plan, self._room = sweep, plan, room
        self._keys: dict[str, str] = {}
        self._running: set[str] = set()
        self._job: Job | None = None
        """The next one, while it waits for room."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        self._job = self._job or self._plan.next()
        if self._job is None:
            self._room.let_go()
            return self.FINISHED if self._plan.is_finished else None
        if not self._room.for_one_more(len(self._running)):
            return None
        job, self._job = self._job, None
        self._running.add(trial_id)
        ray.get(self._sweep.desk.place.remote(job.key, self._sweep.order(self._sweep.book.trials[job.key])))
        self._keys[trial_id] = job.key
        return {"trial": job.key, "desk": self._sweep.desk_name}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._running.discard(trial_id)
        trial = self._sweep.book.trials[self._keys[trial_id]]
        if trial.state == "open" and not trial.due:
            self._sweep.book.ended(trial.job.key, "crashed", f"lost after {trial.steps:,} steps, {1 + RESTARTS} times")
        self._plan.ended(trial)

    def save(self, checkpoint_path: str) -> None:
        """The book is what lasts."""

    def restore(self, checkpoint_path: str) -> None:
        """Never asked for."""


class _Judge(_Unsaved, FIFOScheduler):
    """Writes evaluations down and decides; never tells Ray Tune to stop a trial, which would kill it."""

    def __init__(self, sweep: Sweep, plan: Plan) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sweep, self._plan = sweep, plan
        self.error: ItoError | None = None
        """What a user can mend, which Ray Tune would make a traceback of."""

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: Mapping[str, Any]) -> str:
        key = trial.config["trial"]
        if FAILED in result:
            self._sweep.book.ended(key, "failed", result[FAILED])
        elif STEP in result:
            # Ray Tune has made {"values": {name: …}} flat.
            values = {name.removeprefix(VALUES): result[name] for name in result if name.startswith(VALUES)}
            try:
                word = self._word(key, result[STEP], values)
            except ItoError as error:
                self.error = error
                raise
            ray.get(self._sweep.desk.decide.remote(key, result[STEP], word))
        return self.CONTINUE

    def _word(self, key: str, step: int, values: dict[str, float]) -> Word:
        """The word on an evaluation, the same when it comes twice."""
        trial = self._sweep.book.trials[key]
        if step not in trial.verdicts:
            note(self._sweep, self._plan, trial, step, values)
        if trial.due:
            return YIELDS
        if trial.turn(step) is None:
            return trial.verdicts[step]
        order = self._sweep.order(trial)
        assert order.takeover is not None and order.takeover.step == step
        ray.get(self._sweep.desk.place.remote(key, order))  # for Ray Tune, if it has to start the trial again
        return order.takeover


def note(sweep: Sweep, plan: Plan, trial: Trial, step: int, values: Mapping[str, float]) -> None:
    """Decide on an evaluation that the book does not have yet, and write both down."""
    train = sweep.order(trial).cfg.train
    taken, full = step - trial.steps, train.steps
    spent = sweep.book.spent
    samples = spent.samples + taken * train.global_batch
    sweep.book.spend(Spent(spent.steps + taken, samples, spent.seconds, spent.money))
    verdict = ""
    if trial.job.phase == "search":
        verdict = sweep.stopping.verdict(trial.job.key, step, values)
        gone = sweep.budget.gone(sweep.book.spent)
        if gone and step < full:
            verdict = verdict or f"{gone} used up"
    end: State = "finished" if step >= full else "stopped" if verdict else "open"
    due = end == "open" and plan.yields(trial, step)
    turn = plan.turn(trial, step, values) if end == "open" and not due else None
    sweep.book.evaluated(trial.job.key, step, values, verdict, end, turn=turn, due=due)


class _Clock(_Unsaved, rtune.Callback):
    """Counts time and money, and lets the table be drawn."""

    def __init__(self, sweep: Sweep, tick: Tick) -> None:
        self._sweep, self._tick = sweep, tick
        self._counted = self._drawn = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        now = time.monotonic()
        if now - self._counted >= SPENT_EVERY_SECONDS:
            self.count()
            release_of_the_dead()  # of a trial that was killed, whose next start would wait for them for ever
        if now - self._drawn >= TICK_SECONDS:
            self._drawn = now
            self._tick()

    def count(self) -> None:
        """Write down what was used since the last time."""
        now = time.monotonic()
        seconds, self._counted = now - self._counted, now
        spent = self._sweep.book.spent
        money = spent.money + seconds * self._sweep.budget.rate(node.resources for node in nodes_now())
        self._sweep.book.spend(Spent(spent.steps, spent.samples, spent.seconds + seconds, money))

"""Launch or resume the TorchTrainer, draw progress, and pass rank 0's metrics on to the tracked run."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ray
import ray.train
from ray.exceptions import RayActorError, RayError
from ray.train.v2._internal.exceptions import RayTrainError
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig

from ito_ray.config.schema import Config
from ito_ray.data import quarantine
from ito_ray.data.plan import ShardPlan
from ito_ray.data.position import Position, within
from ito_ray.data.tally import Account, close, from_json, mismatch
from ito_ray.errors import ClusterError, DataError
from ito_ray.runtime import halt, preflight, snapshot
from ito_ray.runtime.cluster import on_this_node, release_of
from ito_ray.runtime.committed import CommittedCallback
from ito_ray.runtime.elastic import GrowingPolicy, Trainer, scaling
from ito_ray.runtime.feed import Feed
from ito_ray.runtime.launch import Launch, TokenizerFiles, train_worker
from ito_ray.runtime.monitor import Monitor, MonitorHandle, News, Setup
from ito_ray.runtime.preflight import TrainingData
from ito_ray.runtime.ranks import RankConfig
from ito_ray.runtime.stream import ENTRIES_AT_ONCE, MONITOR_LOST, EntryError, StartAnew, StreamFactory, entries_needed
from ito_ray.training.manifest import damage
from ito_ray.training.state import State, read_state, require_format, require_same_run

POLL_SECONDS = 0.5

OnMetrics = Callable[[int, dict[str, float]], None]
Judge = Callable[[int, dict[str, float]], bool]
"""Given an evaluation, whether training goes on."""
Tell = Callable[[str], None]
_log: Tell = logging.getLogger(__name__).warning


@dataclass(frozen=True)
class Listener:
    """Who hears of a run in the driver's process; one thread calls, in the order of what happens."""

    on_metrics: OnMetrics
    """Gets (step, metrics). Those that a killed driver may not have passed on come once more."""
    judge: Judge | None = None
    """Asked after every evaluation, then one at `train.steps` too, while the workers wait; on False they leave a
    checkpoint and training ends there."""
    tell: Tell = _log
    """Gets a sentence for each new start, and for each checkpoint that is damaged."""
    on_checkpoint: Callable[[Path], object] = lambda newest: None
    """Gets the newest registered checkpoint, again and again; Ray Train removes it when newer ones are there."""

    def judged(self, step: int, metrics: dict[str, float]) -> bool | None:
        """Whether training goes on, if these are an evaluation's and there is a judge."""
        return self.judge(step, metrics) if self.judge and is_evaluation(metrics) else None


@dataclass(frozen=True)
class Trained:
    """What training leaves."""

    checkpoint: Path
    accounts: dict[str, Account]
    """By source, over the whole run; empty when a judge had ended it before."""
    mismatch: str = ""
    """A sentence if the accounts do not add up."""


class _Lost(Exception):
    """What a run cannot do without is gone, and can be started again."""


class _StreamEnds(Exception):
    """A checkpoint was left because the stream has few entries left, and the run needs more than one holds."""


def latest_checkpoint(cfg: Config, tell: Tell = _log) -> Path | None:
    """The newest good checkpoint, from which the same command would continue. Not to be asked of a run that goes on.

    Each file is compared with what was written. A damaged checkpoint is renamed, not removed, and taken off Ray Train's
    list, so that Ray Train resumes from the same one.

    Args:
        tell: called with a sentence for each checkpoint that is damaged or gone.

    Raises:
        ConfigError: it was written by another version of the format.
        DataError: it cannot be read now, whatever it holds.
    """
    run_folder = Path(cfg.output).absolute() / cfg.name
    for name in snapshot.mend(run_folder):
        tell(f"checkpoint {name} is gone from {run_folder}")
    while (run_folder / snapshot.SNAPSHOT).is_file():
        found = ray.train.Result.from_path(str(run_folder)).checkpoint
        if not found:
            break
        newest = Path(found.path)
        try:
            wrong = damage(newest)
        except OSError as error:
            raise DataError(
                f"The checkpoint {newest} cannot be read: {error}. See that its disk works and run the same command "
                "again."
            ) from error
        if not wrong:
            return newest
        require_format(newest)
        kept = snapshot.set_aside(newest)
        tell(
            f"checkpoint {newest.name} is damaged ({wrong}): set aside as {kept.name}, going on from the one before it"
        )
    return None


def resumable_state(cfg: Config, plan: ShardPlan, newest: Path) -> State:
    """What the checkpoint knows, if `cfg` may go on from it.

    Raises:
        ConfigError: it belongs to another model, method or data set than `cfg`'s.
    """
    state = read_state(newest)
    require_same_run(state, cfg, plan.digest, newest)
    return state


def fit(cfg: Config, data: TrainingData, tokenizer: TokenizerFiles, listener: Listener) -> Trained:
    """Train until `train.steps`, from the newest good checkpoint if there is one.

    Ray Train starts lost workers again. When its controller is lost, or our monitor, or the checkpoint that it would
    start from is damaged, all of it is started anew here, as often as workers may fail.

    Raises:
        DataError, ConfigError: what the workers found and a user can mend.
        ClusterError: the workers could not be kept alive.
    """
    failures = 0
    while True:
        try:
            return _attempt(cfg, data, tokenizer, listener)
        except _StreamEnds as ends:
            listener.tell(f"{ends}: going on with the next one from its last checkpoint")
        except _Lost as lost:
            failures += 1
            if failures > cfg.train.max_failures:
                raise ClusterError(
                    f"Training was given up: {lost}. Rerun the same command to go on from the last checkpoint; "
                    "--verbose shows Ray's log."
                ) from lost
            listener.tell(f"{lost}: starting again from the last checkpoint")


def _attempt(cfg: Config, data: TrainingData, tokenizer: TokenizerFiles, listener: Listener) -> Trained:
    """One life of Ray Train's controller and of the monitor.

    Raises:
        _Lost: another one may do better.
        _StreamEnds: another one goes on.
    """
    newest = latest_checkpoint(cfg, listener.tell)
    resumed = resumable_state(cfg, data.plan, newest) if newest else None
    for step, metrics in resumed.metrics if resumed else ():
        listener.on_metrics(step, metrics)  # the driver before us may have been killed with them in hand
        if newest and listener.judged(step, metrics) is False:
            return Trained(newest, {})
    monitor = start_monitor(cfg, data.plan, resumed)
    ray.get(monitor.committed.remote(str(newest or "")))
    trainer = _trainer(cfg, data, tokenizer, monitor, judged=listener.judge is not None)

    stop = threading.Event()
    pool = ThreadPoolExecutor(1)
    relay = pool.submit(_relay, monitor, listener, stop)
    failure: Exception | None = None
    try:
        halt.fit(trainer.fit, monitor, listener.tell)
    except (ray.train.TrainingFailedError, RayActorError) as error:
        failure = error
    finally:
        stop.set()
        wait([relay])
        with suppress(RayActorError):
            ray.get(monitor.flush.remote())
    if failure:
        try:
            raise _explained(failure, cfg, monitor) from failure
        finally:  # its traceback holds this frame, and the controller with all its actors: they must end now
            failure = None
    if _fatal(monitor) is None:
        raise _Lost(MONITOR_LOST)
    stream_ends = relay.result()  # raises what on_metrics raised: no metric is lost in silence
    news: News = ray.get(monitor.drain.remote(0))
    if news.fatal:
        raise DataError(news.fatal)
    damaged: list[str] = []
    finished = latest_checkpoint(cfg, damaged.append)
    if damaged:
        raise _Lost("; ".join(damaged))
    if finished is None:
        raise _Lost(f"the checkpoints of {cfg.name} were taken away")
    state = read_state(finished)
    if stream_ends and state.step < cfg.train.steps:
        raise _StreamEnds(f"a stream of {ENTRIES_AT_ONCE:,} blocks is read at step {state.step:,}")
    position = Position.from_json(state.position)
    accounts = close(news.tallies, position.seen, data.plan.names)
    made = ray.get(monitor.ahead.remote(position.complete))
    return Trained(finished, accounts, mismatch(accounts, ahead=made - position.samples_open, repeats=position.repeats))


def _fatal(monitor: MonitorHandle) -> str | None:
    """Why the run must stop, or ""; None if the monitor is lost."""
    try:
        return str(ray.get(monitor.fatal.remote()))
    except RayActorError:
        return None


def _explained(failure: Exception, cfg: Config, monitor: MonitorHandle) -> Exception:
    """What a failure of `TorchTrainer.fit` means for the run."""
    if isinstance(failure, RayActorError):  # the workers were its own and die with it
        if failure.actor_id:
            release_of(failure.actor_id)
        return _Lost("Ray Train's controller was lost")
    reason = _fatal(monitor)
    if reason is None:
        return _Lost(MONITOR_LOST)
    if reason:
        return DataError(reason)
    if isinstance(failure, ray.train.ControllerError):
        if isinstance(failure.controller_failure, StartAnew):
            return _Lost(str(failure.controller_failure))
        if isinstance(failure.controller_failure, OSError):  # it keeps the list of checkpoints
            return _Lost(f"Ray Train's controller failed: {_root(failure.controller_failure)}")
        times = ""
    else:
        times = f"failed {cfg.train.max_failures + 1} times and "
    return ClusterError(
        f"Training {times}was given up: {_root(failure)}. Rerun the same command to go on from the last checkpoint; "
        "--verbose shows Ray's log."
    )


def start_monitor(cfg: Config, plan: ShardPlan, resumed: State | None) -> MonitorHandle:
    """A monitor that goes on where the checkpoint stands."""
    folder = Path(cfg.output).absolute() / cfg.name / quarantine.FOLDER
    complete = resumed.position["complete"] if resumed else []
    read_in_part = {int(entry): from_json(one) for entry, one in resumed.open_tallies.items()} if resumed else {}
    quarantine.forget(folder, lambda entry: within(complete, entry) or entry in read_in_part)
    setup = Setup(
        plan.names,
        plan.entries_per_pass,
        cfg.data.max_bad_fraction,
        str(folder),
        complete,
        from_json(resumed.tallies) if resumed else {},
        read_in_part,
        cfg.name,
    )
    # As Ray Train's controller; with another node all accounts might be taken away.
    return Monitor.options(scheduling_strategy=on_this_node()).remote(setup)  # type: ignore[attr-defined]


def _trainer(
    cfg: Config, data: TrainingData, tokenizer: TokenizerFiles, monitor: MonitorHandle, *, judged: bool
) -> Trainer:
    count = entries_needed(cfg, data.rows_per_entry)
    evaluator = not judged and preflight.has_evaluator(cfg)
    launch = Launch(cfg, data.plan.digest, data.plan.names, tokenizer, monitor, str(Path.cwd()), judged, evaluator)
    stream = StreamFactory(data.plan, cfg, tokenizer, monitor, count, ENTRIES_AT_ONCE)
    trainer = Trainer(
        train_worker,
        train_loop_config={"launch": launch},
        datasets={"train": stream},
        dataset_config=Feed(cfg),
        torch_config=RankConfig(),
        scaling_config=scaling(cfg),
        run_config=RunConfig(
            name=cfg.name,
            storage_path=str(Path(cfg.output).absolute()),
            failure_config=FailureConfig(max_failures=cfg.train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=cfg.train.keep_checkpoints),
            callbacks=[CommittedCallback(monitor)],
        ),
    )
    if cfg.train.workers.elastic:
        trainer.policy = GrowingPolicy(cfg, monitor, evaluator=evaluator)
    return trainer


def _relay(monitor: MonitorHandle, listener: Listener, stop: threading.Event) -> bool:
    """Hand rank 0's metrics to the driver until `stop`, and once more after it; take the judge's word back.

    The workers wait for that word, so whatever keeps it from them must end them too; and without a judge, too: nobody
    would hear of the run any more. They leave a checkpoint, and the driver raises what happened here.

    Returns:
        Whether the workers were told to end because the stream does, and not by the judge.
    """
    try:
        return _pass_on(monitor, listener, stop)
    except BaseException:
        with suppress(RayActorError):
            ray.get(monitor.decide.remote(None, False))
            while not ray.get(monitor.halt.remote("stop")) and not stop.wait(POLL_SECONDS):
                pass  # no rank takes steps yet
        raise


def _pass_on(monitor: MonitorHandle, listener: Listener, stop: threading.Event) -> bool:
    finished, logged, drains = False, 0, halt.Drains()
    stream_ends, goes_on = False, True
    while not finished:
        finished = stop.wait(POLL_SECONDS)
        if drains.new() and ray.get(monitor.halt.remote("checkpoint")):
            listener.tell("a node will be taken away: leaving a checkpoint")
        news: News = ray.get(monitor.drain.remote(logged))
        if news.checkpoint:
            listener.on_checkpoint(Path(news.checkpoint))
        for step, metrics in news.metrics:
            listener.on_metrics(step, metrics)
            if (word := listener.judged(step, metrics)) is not None:
                goes_on = word
                ray.get(monitor.decide.remote(step, word))
        logged = len(news.metrics)
        if news.ends_soon and not stream_ends:
            stream_ends = ray.get(monitor.halt.remote("stop"))
    return stream_ends and goes_on


def is_evaluation(metrics: Mapping[str, float]) -> bool:
    """Whether these are an evaluation's."""
    return any(name.startswith("eval/") for name in metrics)


_RAISED = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception|Interrupt|Exit)): *(\S.*)$", re.MULTILINE)
"""The line of a traceback that says what was raised."""
_WRAPPERS = ("RayTaskError", "UserCodeException", "SystemException", "WorkerGroupError", "ControllerError")


def _root(error: BaseException) -> str:
    """What went wrong first, without its full stop: Ray tells by causes, by attributes, or only by a traceback's text.

    Around it Ray puts hints of its own, which say nothing of this run.
    """
    chain = [error]
    while (inner := _behind(chain[-1])) is not None and inner not in chain:
        chain.append(inner)
    raised = [found for one in reversed(chain) for found in _RAISED.findall(str(one)) if found[0] not in _WRAPPERS]
    for name, said in raised:
        if name == EntryError.__name__:
            return str(said).removesuffix(".")
    innermost = chain[-1]
    if isinstance(innermost, RayError | RayTrainError) and raised:
        return ": ".join(raised[0]).removesuffix(".")
    name, lines = type(innermost).__name__, str(innermost).strip().splitlines()
    known = len(chain) == 1 or isinstance(innermost, RayError)
    return ": ".join([*([] if known and lines else [name]), *lines[-1:]]).removesuffix(".")


def _behind(error: BaseException) -> BaseException | None:
    """What the error was raised for."""
    failures = getattr(error, "worker_failures", None) or {}
    known = [*failures.values(), getattr(error, "controller_failure", None), getattr(error, "cause", None)]
    return next((one for one in [*known, error.__cause__] if isinstance(one, BaseException)), None)

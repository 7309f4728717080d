"""One trial of a sweep: a small driver that trains as the main job does, and lets the sweep decide how long.

It reserves no CPU: it waits. After every evaluation the workers hold still while the sweep judges, so a trial that is
stopped ends like one that has finished, with a checkpoint and with nothing left running. (Ray Tune would kill the
driver instead, and the placement group of Ray Train's workers would outlive it.) If the word is to go on from another
checkpoint with other settings, the workers end in the same way and new ones start, in the same trial and MLflow run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import ray
import ray.tune

from ito_ray.config.schema import Config
from ito_ray.errors import ClusterError, ItoError, TrackingError
from ito_ray.runtime import preflight, trainer
from ito_ray.runtime.desk import Order, Word
from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.runtime.shelf import hold, name_of
from ito_ray.runtime.takeover import take_over
from ito_ray.tracking.outbox import JOURNAL, Outbox
from ito_ray.tracking.provenance import dataset_identity, git_commit, installed_versions
from ito_ray.tracking.run import open_run

STEP_SECONDS = "step_seconds"
"""Mean duration of a step, beside the evaluation's numbers."""
STEP_CPU_SECONDS = "step_cpu_seconds"
"""The same in CPU time of all ranks, which other work on the machine hardly changes."""
IN_FLIGHT = "pbt/"
"""Begins the names of the curves of settings that may change in flight."""


def run_trial(given: dict[str, Any]) -> None:
    """Ray Tune's entry point; `given` is {"trial": key, "desk": name of the Desk}.

    Reports {"step", "values"} for every evaluation. A failure that would only come again is reported as {"failed":
    reason}; anything else is raised, and Ray Tune starts the trial once more from its checkpoint.
    """
    key, desk = given["trial"], cast(Any, ray.get_actor(given["desk"]))
    order: Order = ray.get(desk.order.remote(key))
    os.chdir(order.folder)
    try:
        identity, train = _prepared(order)
        tracked = open_run(
            order.cfg, recipe=order.recipe, dataset=identity, versions=installed_versions(), git=git_commit()
        )
        try:
            tracked.set_tags(order.tags)
            outbox = Outbox(tracked, Path(order.cfg.output).absolute() / order.cfg.name / JOURNAL)
            judged = _Judged(key, desk, outbox, order)
            stopped = judged.fit(train)
            _deliver(outbox)
        except BaseException as error:
            with suppress(TrackingError):  # why it failed is to be told
                tracked.set_tags({"ito.stopped": f"failed: {error}"})
                tracked.finish("FAILED")
            raise
        accounts = {"ito.accounts": judged.mismatch} if judged.mismatch else {}
        tracked.set_tags({"ito.stopped": stopped or "finished", **accounts})
        tracked.finish("KILLED" if stopped else "FINISHED")
    except (ClusterError, TrackingError):  # not the trial's fault: Ray Tune starts it again
        raise
    except ItoError as error:
        ray.tune.report({"failed": str(error)})


def _deliver(outbox: Outbox) -> None:
    try:
        outbox.require_delivered()
    except TrackingError as error:  # not the trial's fault: Ray Tune starts it again, and there is nothing to train
        raise ClusterError(str(error)) from error


Train = Callable[[Config, trainer.Listener], trainer.Trained]


def _prepared(order: Order) -> tuple[Any, Train]:
    cfg = order.cfg
    data = preflight.plan_data(cfg)
    tokenizer = order.tokenizer
    if tokenizer is None:
        folder = Path(cfg.output).absolute() / cfg.name / "tokenizer"
        preflight.prepare_tokenizer(cfg, data.plan, folder)
        tokenizer = TokenizerFiles.read(folder)
    identity = dataset_identity(cfg.name, cfg.data.train, [(shard.url, shard.size) for shard in data.shards])
    return identity, lambda now, listener: trainer.fit(now, data, tokenizer, listener)


class _Judged:
    """Takes metrics to MLflow, and evaluations to the sweep."""

    def __init__(self, key: str, desk: Any, outbox: Outbox, order: Order) -> None:
        self._key, self._desk, self._outbox, self._order = key, desk, outbox, order
        self._cfg, self._settings = order.cfg, order.settings
        self._seconds: list[float] = []
        self._cpu_seconds: list[float] = []
        self.mismatch = ""
        """A sentence if the account of rows does not add up."""
        self._word: Word = ""

    def fit(self, train: Train) -> str:
        """Why training was stopped early, or ""."""
        takeover = self._order.takeover
        while True:
            if takeover is not None:
                take_over(takeover)
                self._cfg, self._settings = takeover.cfg, takeover.settings
            word = self._last_word(train)
            if isinstance(word, str):
                return word
            takeover = word

    def _last_word(self, train: Train) -> Word:
        """The one that ended training; "" if it went to its end."""
        self._word = ""
        self.mismatch = train(self._cfg, trainer.Listener(self._on_metrics, self._judge)).mismatch
        return self._word

    def _on_metrics(self, step: int, metrics: dict[str, float]) -> None:
        if rate := metrics.get("train/samples_per_second"):
            batch = self._cfg.train.global_batch
            self._seconds.append(batch / rate)
            self._cpu_seconds.append(batch * metrics["train/cpu_ms_per_sample"] / 1000)
            metrics = metrics | {f"{IN_FLIGHT}{name}": value for name, value in self._settings.items()}
        self._outbox.log(step, metrics)

    def _judge(self, step: int, metrics: Mapping[str, float]) -> bool:
        values = {name.removeprefix("eval/"): value for name, value in metrics.items()}
        for name, taken in ((STEP_SECONDS, self._seconds), (STEP_CPU_SECONDS, self._cpu_seconds)):
            if steady := taken[1:] or taken:
                values[name] = sum(steady) / len(steady)
        newest = Path(self._cfg.output).absolute() / self._cfg.name / name_of(step)
        if self._order.shelf and newest.is_dir():  # not there: the sweep was asked before, and is asked again
            hold(newest, Path(self._order.shelf))
        ray.tune.report({"step": step, "values": values})
        self._word = ray.get(self._desk.word.remote(self._key, step))
        return self._word == ""

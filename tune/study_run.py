"""A study from top to bottom: check, then for each seed all arms to their end, each measured once on the test sets.

Safe to be run again at any point: what the book has is not done again.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ito_ray.config.load import overlay
from ito_ray.evaluation.subject import require_samples
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.runtime import cluster, preflight
from ito_ray.runtime.console import Stages
from ito_ray.runtime.desk import Order
from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.tracking.address import with_store
from ito_ray.tracking.evaluation import log_evaluation
from ito_ray.tracking.run import TrackedRun
from ito_ray.tracking.sweep import child_tags, children, settle
from tune.axes import apply
from tune.book import BOOK, Book, Job, Trial
from tune.budget import Budget
from tune.capacity import require_capacity
from tune.drive import Sweep, drive, open_desk
from tune.final_test import measure, require_separate_test
from tune.judging import Objective
from tune.options import R1
from tune.parent import ENVIRONMENT, closing, endings, fields, open_parent
from tune.plan import Listed
from tune.results import note_name
from tune.room import Room
from tune.stopping import Rungs, Stopping
from tune.studies import Study
from tune.table import SweepTable
from tune.trials import TrialMaker

ARM = "ito.arm"
OBJECTIVE = Objective(R1)
"""What the live table and the curves show, on validation data."""


@dataclass(frozen=True)
class Size:
    """How much of a study is run now."""

    seeds: int
    arms: Sequence[str]
    concurrent: int
    """Trials side by side; 0 = as many as fit."""
    data_cpus: float
    """CPUs that each trial leaves to Ray Data."""


def run(study: Study, output: Path, size: Size, stages: Stages) -> Path:
    """Run what is missing; returns the study's folder.

    Raises:
        ItoError: anything that a user can mend.
    """
    os.environ.update(ENVIRONMENT)
    folder = output.absolute() / study.name
    cfg = overlay(study.base, {"output": str(output)}, source=f"study {study.name}")
    with Book(folder / BOOK) as book:
        cfg = with_store(cfg, folder)
        with stages.stage(f"Check the arms, the data and the cluster for {study.name}"):
            for changes in study.arms.values():
                apply(cfg, changes, source=f"study {study.name}")
            require_separate_test(dict(study.test), cfg, source=f"study {study.name}")
            data = preflight.plan_data(cfg)
            require_samples(cfg)
            # A tower that cannot be built is refused here, not by every trial.
            DualEncoder(cfg.model, preflight.prepare_tokenizer(cfg, data.plan, folder / "tokenizer"))
            book.open_session(settings(study), growing=("arms",))
            cluster.connect(verbose=False)
            preflight.require_resources(cfg)
            capacity = require_capacity(cfg, size.data_cpus, size.concurrent)
            stages.say(str(capacity))
            tags = {"ito.study": study.name, "ito.objective": str(OBJECTIVE)}
            tracked = open_parent(cfg, study.name, recipe=study.name, tags=tags, data=data)
        with closing(tracked, book):
            if book.trials:
                stages.say(f"resumed: {len(book.trials)} trials are known")
            maker = TrialMaker(
                study.name,
                cfg,
                cfg,
                folder,
                tracked.store,
                cfg.eval.every,
                TokenizerFiles.read(folder / "tokenizer"),
                child_tags(tracked, study.name),
            )
            room = Room(capacity.need, size.concurrent or capacity.at_most)
            settle(tracked, endings(book, only_ended=True))
            _Session(study, stages, book, maker, tracked, room).run(size)
            tracked.log_file(book.path, "sweep")
        tracked.finish()
    return folder


def settings(study: Study) -> dict[str, Any]:
    """What may not change when a study goes on, but for more arms; seeds, the choice of arms and concurrency may."""
    return {
        "study": study.name,
        "arms": {arm: dict(changes) for arm, changes in study.arms.items()},
        "test": dict(study.test),
        "headline": list(study.headline),
        "objective": list(OBJECTIVE.names),
        "config": fields(study.base),
    }


def steps_ahead(book: Book, jobs: Sequence[Job], steps: int) -> int:
    """Steps that the jobs have still to take; one that failed takes none.

    Args:
        steps: of a job that does not change them.
    """
    ahead = 0
    for job in jobs:
        trial = book.trials.get(job.key)
        if trial is None or trial.state == "open":
            ahead += int(job.changes.get("train.steps", steps)) - (trial.steps if trial else 0)
    return ahead


@dataclass(frozen=True)
class _Session:
    """The part that follows the checks."""

    study: Study
    stages: Stages
    book: Book
    maker: TrialMaker
    tracked: TrackedRun
    room: Room

    def run(self, size: Size) -> None:
        """Seed by seed, so that a study that is cut short is whole as far as it goes."""
        desk_name = f"ito-desk-{self.study.name}-{uuid.uuid4().hex[:8]}"
        never = Stopping("none", Rungs(self.maker.every, self.maker.base.train.steps, 2), OBJECTIVE)
        sweep = Sweep(self.book, Budget(), self._order, never, desk_name, open_desk(desk_name))
        points = {arm: point for point, arm in enumerate(self.study.arms, start=1)}
        first = self.maker.base.train.seed
        of_seed = {
            seed: [Job(points[arm], seed, "study", self.study.arms[arm]) for arm in size.arms]
            for seed in range(first, first + size.seeds)
        }
        jobs_of_all = [job for jobs in of_seed.values() for job in jobs]
        ahead = partial(steps_ahead, self.book, jobs_of_all, self.study.base.train.steps)
        for seed, jobs in of_seed.items():
            with self.stages.stage(f"Seed {seed}: {', '.join(size.arms)}"):
                with SweepTable(self.stages.console, self.book, OBJECTIVE, sweep.budget, "study", ahead) as table:
                    plan = Listed(self.book, jobs)
                    drive(sweep, plan, self.maker.folder / "ray", room=self.room, tick=table.tick)
                settle(self.tracked, endings(self.book, only_ended=True))
                for job in jobs:
                    self._test(self.book.trials[job.key])

    def _order(self, trial: Trial) -> Order:
        order = self.maker.order(trial)
        return replace(order, tags={**order.tags, ARM: [*self.study.arms][trial.job.point - 1]})

    def _test(self, trial: Trial) -> None:
        """Measure a trial on the test sets, once, and let its weights go."""
        key = trial.job.key
        if trial.state != "finished" or note_name(key) in self.book.notes:
            return
        metrics = measure(self.maker, trial, dict(self.study.test), source=f"study {self.study.name}")
        self.book.note(note_name(key), metrics)
        run_ids = {str(run.info.run_name): str(run.info.run_id) for run in children(self.tracked)}
        experiment = self.maker.base.tracking.experiment
        log_evaluation(metrics, [], store=self.tracked.store, run_id=run_ids[key], experiment=experiment, name=key)
        for folder in self.maker.run_folder(trial.job).glob("step-*"):
            shutil.rmtree(folder)

"""A sweep from top to bottom: check, search, confirm, decide, report, register. Safe to be run again at any point."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from ito_ray.evaluation.subject import require_samples
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.runtime import cluster, job, preflight
from ito_ray.runtime.console import Stages
from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.tracking.address import with_store
from ito_ray.tracking.run import TrackedRun
from ito_ray.tracking.sweep import child_tags, settle
from tune.axes import Space
from tune.book import BOOK, Book, Phase, Trial
from tune.capacity import require_capacity
from tune.decision import Decision, confirmation_jobs, decide
from tune.drive import Sweep, drive, open_desk
from tune.final_test import measure_test, pairs_of, require_separate_test
from tune.judging import Objective, require_metrics
from tune.options import SearchOptions
from tune.parent import ENVIRONMENT, closing, endings, fields, open_parent
from tune.plan import Listed, Plan, Search
from tune.population import Population, release
from tune.report import write_report
from tune.room import Room
from tune.searchers import Searcher, make_searcher
from tune.stopping import Rungs, Stopping
from tune.table import SweepTable
from tune.trials import TrialMaker, evaluation_interval
from tune.warm_start import Lesson, lessons

STAGES = 4


@dataclass(frozen=True)
class Result:
    """What a sweep leaves."""

    folder: Path
    decision: Decision | None
    report: Path
    tracked: TrackedRun
    registered: str
    """Address of the winner in the registry; "" when there is none."""


def sweep_folder(cfg: Config, space: Space) -> Path:
    """Where a sweep keeps everything; its last part is the sweep's name."""
    return Path(cfg.output).absolute() / f"{cfg.name}-{space.name}"


def run(cfg: Config, options: SearchOptions, space: Space, stages: Stages) -> Result:
    """Search, confirm, decide, report; goes on where an earlier session stopped.

    Raises:
        ItoError: anything that a user can mend.
    """
    os.environ.update(ENVIRONMENT)
    folder = sweep_folder(cfg, space)
    with Book(folder / BOOK) as book:
        cfg = with_store(cfg, folder)
        with stages.stage(f"Check the space, the data and the cluster for {folder.name}"):
            space.check(cfg)
            require_metrics(Objective(options.objective, options.against), cfg)
            if options.test:
                require_separate_test(pairs_of(options.test), cfg)
            data = preflight.plan_data(cfg)
            if options.register:
                job.require_later_stages(cfg)
            else:
                require_samples(cfg)
            # A tower that cannot be built is refused here, not by every trial.
            DualEncoder(cfg.model, preflight.prepare_tokenizer(cfg, data.plan, folder / "tokenizer"))
            settings = _settings(cfg, options, space)
            learned = lessons(options.warm_start, cfg, space, folder, book, settings)
            book.open_session(settings)
            for lesson in learned:
                stages.say(str(lesson))
            cluster.connect(verbose=options.verbose)
            preflight.require_resources(cfg)  # waits for the first trial's nodes, if told to
            capacity = require_capacity(cfg, options.data_cpus, options.concurrent)
            stages.say(str(capacity))
            tags = _tags(options, space)
            tracked = open_parent(cfg, folder.name, recipe=options.recipe, tags=tags, data=data)
        with closing(tracked, book):
            if book.trials:
                stages.say(f"resumed: {len(book.trials)} trials are known, {len(_open(book))} go on")
            maker = TrialMaker(
                options.recipe,
                cfg,
                space.start(cfg),
                folder,
                tracked.store,
                evaluation_interval(cfg, options.factor),
                TokenizerFiles.read(folder / "tokenizer"),
                child_tags(tracked, folder.name),
                in_flight=tuple(axis.field for axis in space.axes) if options.scheduler == "pbt" else (),
                fixed=tuple(space.fixed),
            )
            settle(tracked, endings(book, only_ended=True))
            room = Room(capacity.need, options.concurrent or capacity.at_most)
            session = _Session(cfg, options, space, stages, book, maker, tracked, room, learned)
            result = session.run()
        tracked.finish()
        return result


def _open(book: Book) -> list[Trial]:
    return [trial for trial in book.trials.values() if trial.state == "open"]


def _settings(cfg: Config, options: SearchOptions, space: Space) -> dict[str, Any]:
    """What may not change when a sweep goes on; budget, points, concurrency and confirmation may."""
    return {
        "recipe": options.recipe,
        "space": [list(row) for row in space.rows()],
        "searcher": options.searcher,
        "scheduler": options.scheduler,
        "factor": options.factor,
        "seeds": options.seeds,
        "objective": list(options.objective),
        "against": options.against,
        "warm_start": list(options.warm_start),
        "evaluate_every": evaluation_interval(cfg, options.factor),
        "config": fields(cfg),
    }


def _tags(options: SearchOptions, space: Space) -> dict[str, str]:
    rows = "; ".join(" ".join(row).strip() for row in space.rows())
    return {"ito.space": rows, "ito.objective": " ".join(options.objective)}


@dataclass(frozen=True)
class _Session:
    """The part of a sweep that follows the checks."""

    cfg: Config
    options: SearchOptions
    space: Space
    stages: Stages
    book: Book
    maker: TrialMaker
    tracked: TrackedRun
    room: Room
    lessons: Sequence[Lesson]

    @property
    def objective(self) -> Objective:
        return Objective(self.options.objective, self.options.against)

    def run(self) -> Result:
        options, book = self.options, self.book
        # The desk of a session before, in the same Ray, may not be gone yet.
        desk_name = f"ito-desk-{self.maker.folder.name}-{uuid.uuid4().hex[:8]}"
        rungs = Rungs(self.maker.every, self.cfg.train.steps, options.factor)
        stopping = Stopping(options.scheduler, rungs, self.objective)
        stopping.replay(trial for trials in book.points("search").values() for trial in trials)
        sweep = Sweep(book, options.budget, self.maker.order, stopping, desk_name, open_desk(desk_name))
        with self.stages.stage(f"Search {self.space.name}: {options.points} points, {self.objective}"):
            if options.scheduler == "pbt":
                population = self._population()
                self._drive(sweep, population, "search", population.release)
            else:
                self._drive(sweep, self._search_plan(), "search")
            self._forget_weights()
        title = "Draw the front" if options.against else f"Confirm the best on fresh seeds ({options.confirm})"
        with self.stages.stage(title):
            if options.confirm and not options.against:
                recipe, first = self.maker.recipe_changes, self.cfg.train.seed
                confirmation = Listed(book, confirmation_jobs(book, self.objective, options.confirm, first, recipe))
                if cost := confirmation.cost(self.cfg.train.steps):
                    beyond = ", which the budget does not count" if options.budget.is_set else ""
                    self.stages.say(f"{cost}{beyond}")
                self._drive(sweep, confirmation, "confirm", self._release_confirmations)
            if options.test and book.points("confirm"):
                measure_test(book, self.maker, options.test)
            decision = decide(book, self.objective)
            if decision is None:
                raise ConfigError(self._nothing())
            self.stages.say(decision.sentence)
        with self.stages.stage("Report"):
            self.tracked.set_tags({"ito.decision": decision.sentence})
            page = write_report(
                self.maker.folder / "report",
                book,
                name=self.maker.folder.name,
            )
            for path in [*sorted(page.parent.iterdir()), book.path]:
                self.tracked.log_file(path, "sweep")
            registered = self._register(decision) if options.register else ""
        return Result(self.maker.folder, decision, page, self.tracked, registered)

    def _searcher(self) -> Searcher:
        options, seed = self.options, self.cfg.train.seed
        start = self.maker.start
        return make_searcher(
            options.searcher, self.space, start, self.objective, seed=seed, grid_points=options.grid_points
        )

    def _population(self) -> Population:
        options = self.options
        return Population(
            self.book,
            self._searcher(),
            options.budget,
            options.points,
            self.cfg.train.seed,
            self.space,
            self.maker.start,
            self.objective,
            options.factor,
            self.maker.shelf,
        )

    def _release_confirmations(self) -> None:
        """Of what it held, a confirmation takes over its last checkpoint at most."""
        for trials in self.book.points("confirm").values():
            for trial in trials:
                release(self.maker.shelf, [trial], trial.steps if trial.state == "open" else inf)

    def _search_plan(self) -> Search:
        options, searcher = self.options, self._searcher()
        for lesson in self.lessons:
            lesson.teach(searcher)
        seeds = [self.cfg.train.seed + number for number in range(options.seeds)]
        return Search(self.book, searcher, options.budget, options.points, seeds)

    def _drive(self, sweep: Sweep, plan: Plan, phase: Phase, release: Callable[[], None] = lambda: None) -> None:
        with SweepTable(self.stages.console, self.book, self.objective, self.options.budget, phase) as table:

            def tick() -> None:
                table.tick()
                release()

            drive(sweep, plan, self.maker.folder / "ray", room=self.room, tick=tick)
        settle(self.tracked, endings(self.book, only_ended=True))

    def _forget_weights(self) -> None:
        """The search's trials have told what they are worth, and nothing goes on from their weights."""
        for trial in self.book.trials.values():
            if trial.job.phase == "search" and trial.state != "open":
                for folder in list(self.maker.run_folder(trial.job).rglob("step-*")):
                    shutil.rmtree(folder)

    def _nothing(self) -> str:
        failed = [trial for trial in self.book.trials.values() if trial.state in ("failed", "crashed")]
        if failed:
            return f"No trial has finished; {len(failed)} failed, the first with: {failed[0].reason}"
        gone = self.options.budget.gone(self.book.spent)
        return f"No trial has finished within the {gone}: raise the budget and run the same command again."

    def _register(self, decision: Decision) -> str:
        """Train the winner with the main job, which hands it to the registry."""
        if not decision.is_better:
            self.stages.say("not registered: no point is surely better than the recipe")
            return ""
        tracking = self.cfg.tracking.model_copy(update={"uri": self.tracked.store.uri})
        winner = self.maker.point(decision.best.changes).model_copy(
            update={"name": "winner", "output": str(self.maker.folder), "tracking": tracking}
        )
        stages = Stages(self.stages.console, job.STAGES)
        outcome = job.run(
            winner, recipe=self.options.recipe, stages=stages, verbose=self.options.verbose, tags=self.maker.tags
        )
        self.tracked.set_tags({"ito.registered": f"{outcome.registered.model_name}/{outcome.registered.version}"})
        return outcome.registered.uri

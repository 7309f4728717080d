"""Population-based training without Ray: who copies whom and what, and the same history after a kill anywhere."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ito_ray.config.recipes import icons_cpu
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.runtime.shelf import name_of
from ito_ray.tracking.run import Store
from tests.tiny import tiny_config
from tests.tune.books import EVERY, FULL, OBJECTIVE, base, settings
from tune.axes import Axis, Changes, Choice, Range, Space, apply, value_of
from tune.book import BASELINE, Book, Job, Trial, Turn
from tune.budget import Budget
from tune.decision import confirmation_jobs, decide
from tune.drive import Sweep, note
from tune.explore import RESAMPLE, explore, require_in_flight
from tune.plan import Listed
from tune.population import Population, lineage, release
from tune.searchers import make_searcher
from tune.spaces import ito_schedule
from tune.stopping import Rungs, Stopping
from tune.trials import TrialMaker

LAMBDA, LR, READOUT = "method.fusion_weight", "optim.lr", "method.fusion.readout"
SPACE = Space("small", (Axis(LAMBDA, Range(0.5, 8.0)), Axis(LR, Range(1e-4, 1e-2, log=True))))


def _population(book: Book, shelves: Path, *, points: int, factor: int = 3, budget: Budget | None = None) -> Population:
    start = SPACE.start(base())
    searcher = make_searcher("random", SPACE, start, OBJECTIVE, seed=0, grid_points=3)
    return Population(
        book, searcher, budget or Budget(), points, 0, SPACE, start, OBJECTIVE, factor, lambda key: shelves / key
    )


class _World:
    """Trials whose score is how much good their settings did so far, wherever their weights come from."""

    def __init__(
        self, folder: Path, *, points: int, places: int, factor: int = 3, budget: Budget | None = None
    ) -> None:
        self.book = Book(folder / "book.jsonl")
        self.shelves = folder / "held"
        self.plan = _population(self.book, self.shelves, points=points, factor=factor, budget=budget)
        order: Any = lambda trial: SimpleNamespace(cfg=base())  # noqa: E731
        never = Stopping("pbt", Rungs(EVERY, FULL, factor), OBJECTIVE)
        self.sweep = Sweep(self.book, self.plan.budget, order, never, "", None)
        self.places = places
        self.running: list[str] = []

    def close(self) -> None:
        self.book.__exit__(None, None, None)

    def good(self, trial: Trial, step: int) -> float:
        """Of the weights after `step` steps, by the trial's ancestors."""
        course = lineage(self.book, trial.job.key, {}, step)
        ends = [*(first for first, _ in course[1:]), step]
        return sum(
            (end - first) * (9.0 - abs(float(changes.get(LAMBDA, 2.0)) - 4.0))
            for (first, changes), end in zip(course, ends, strict=True)
        )

    def events(self) -> Iterator[None]:
        """Run on, one evaluation at a time: that of the trial which is furthest behind."""
        while True:
            while len(self.running) < self.places and (job := self.plan.next()) is not None:
                self.running.append(job.key)
            if not self.running:
                assert self.plan.is_finished
                return
            key = min(self.running, key=lambda one: (self.book.trials[one].steps, one))
            trial = self.book.trials[key]
            step = trial.steps + EVERY
            (self.shelves / key / name_of(step)).mkdir(parents=True, exist_ok=True)
            note(self.sweep, self.plan, trial, step, {"heldout/r1": self.good(trial, step)})
            if trial.state != "open" or trial.due:
                self.running.remove(key)
                self.plan.ended(trial)
            self.plan.release()
            yield


def _history(book: Book) -> dict[str, Any]:
    return {key: (trial.job, trial.curve, trial.turns, trial.state) for key, trial in book.trials.items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Book:
    world = _World(tmp_path_factory.mktemp("whole"), points=6, places=6)
    for _ in world.events():
        pass
    world.close()
    return world.book


def test_a_population_gathers_where_it_is_good(undisturbed: Book) -> None:
    trials = list(undisturbed.trials.values())
    assert len(trials) == 6 and all(trial.state == "finished" for trial in trials)
    assert all([step for step, _ in trial.curve] == list(range(EVERY, FULL + 1, EVERY)) for trial in trials)
    turns = [turn for trial in trials for turn in trial.turns]
    assert turns and {turn.step for turn in turns} <= {EVERY, 2 * EVERY}, "nobody turns at the end"
    assert not undisturbed.trials["p000-s0"].turns, "the recipe stays what it is"
    for trial in trials:
        for turn in trial.turns:
            before, donor = trial.values(turn.step), undisturbed.trials[turn.donor].values(turn.step)
            assert before is not None and donor is not None and donor["heldout/r1"] > before["heldout/r1"]
            assert turn.changes != undisturbed.trials[turn.donor].changes(turn.step)
            assert turn.changes.keys() == {LAMBDA, LR}


@pytest.mark.parametrize("kill_after", range(1, 18))
def test_killed_anywhere_and_gone_on_is_the_same_history(kill_after: int, undisturbed: Book, tmp_path: Path) -> None:
    first = _World(tmp_path, points=6, places=6)
    for number, _ in enumerate(first.events(), start=1):
        if number == kill_after:
            break
    first.close()
    again = _World(tmp_path, points=6, places=6)
    for _ in again.events():
        pass
    again.close()
    assert _history(again.book) == _history(undisturbed)


@pytest.mark.parametrize("kill_after", [None, 3, 8])
def test_with_fewer_places_members_take_turns(kill_after: int | None, tmp_path: Path) -> None:
    world = _World(tmp_path, points=5, places=2)
    for number, _ in enumerate(world.events(), start=1):
        if number == kill_after:
            break
        steps = [trial.steps for trial in world.book.trials.values()]
        assert max(steps) - (min(steps) if len(steps) == 5 else 0) <= 2 * EVERY
    world.close()
    world = _World(tmp_path, points=5, places=2)
    for _ in world.events():
        pass
    world.close()
    trials = list(world.book.trials.values())
    assert len(trials) == 5 and all(trial.state == "finished" and not trial.due for trial in trials)
    assert all([step for step, _ in trial.curve] == list(range(EVERY, FULL + 1, EVERY)) for trial in trials)
    lowest = min(trials, key=lambda trial: (trial.values(EVERY) or {})["heldout/r1"])
    assert lowest.turn(EVERY) is not None, "whoever came first was judged with those who came later"
    again = Book(world.book.path, read_only=True)
    assert again.trials == world.book.trials


def test_what_nobody_can_take_over_any_more_goes(tmp_path: Path) -> None:
    world = _World(tmp_path, points=4, places=4)
    for _ in world.events():
        held = {int(path.name.removeprefix("step-")) for path in world.shelves.glob("*/step-*")}
        slowest = min(trial.steps for trial in world.book.trials.values())
        assert all(step >= slowest for step in held) or slowest == FULL
        for trial in world.book.trials.values():
            if trial.turns and trial.turns[-1].step == trial.steps:
                turn = trial.turns[-1]
                assert (world.shelves / turn.donor / name_of(turn.step)).is_dir(), "it may not have been copied yet"
    world.close()
    assert not list(world.shelves.glob("*/step-*"))


def test_a_spent_budget_ends_it_and_more_goes_on(tmp_path: Path) -> None:
    short = _World(tmp_path, points=4, places=2, budget=Budget(steps=5 * EVERY))
    for _ in short.events():
        pass
    short.close()
    states = [trial.state for trial in short.book.trials.values()]
    assert "finished" not in states and "stopped" in states
    more = _World(tmp_path, points=4, places=2)
    for _ in more.events():
        pass
    more.close()
    assert {trial.state for trial in more.book.trials.values()} == {"stopped", "finished"}


def _evaluated(book: Book, shelves: Path, scores: list[float]) -> None:
    """Members that were evaluated once."""
    for point, score in enumerate(scores):
        key = book.started(Job(point, 0, "search", {LAMBDA: 1.0 + point} if point else {})).job.key
        (shelves / key / name_of(EVERY)).mkdir(parents=True)
        book.evaluated(key, EVERY, {"heldout/r1": score}, "")


def _donors(book: Book, shelves: Path, factor: int) -> dict[int, int]:
    """Point → point that it copies, as if each were the last to come."""
    plan = _population(book, shelves, points=9, factor=factor)
    found = {}
    for trial in book.trials.values():
        if turn := plan.turn(trial, *trial.curve[-1]):
            found[trial.job.point] = book.trials[turn.donor].job.point
    return found


def test_the_lowest_copy_the_highest_and_nobody_else(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        _evaluated(book, tmp_path, [0.5, 0.1, 0.6, 0.9, 0.2, 0.8])
        assert _donors(book, tmp_path, factor=6) == {1: 3}
        assert _donors(book, tmp_path, factor=9) == {1: 3}, "at least one"
        found = _donors(book, tmp_path, factor=2)
        assert found.keys() == {1, 4} and set(found.values()) <= {2, 3, 5}, "the recipe is low, and stays"
        book.ended("p003-s0", "failed", "not finite")
        assert _donors(book, tmp_path, factor=6) == {1: 5}, "one that failed is no example"
        (tmp_path / "p005-s0" / name_of(EVERY)).rmdir()
        assert _donors(book, tmp_path, factor=6) == {}, "its checkpoint is gone"


@pytest.mark.parametrize("scores", [[0.5], [0.5, 0.5], [0.1, 0.5]])
def test_alone_level_or_ahead_goes_on(scores: list[float], tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        _evaluated(book, tmp_path, scores)
        assert _donors(book, tmp_path, factor=2) == {}


def test_another_step_is_not_compared(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        _evaluated(book, tmp_path, [0.5, 0.1])
        plan, trial = _population(book, tmp_path, points=2), book.trials["p001-s0"]
        assert plan.turn(trial, EVERY, {"heldout/r1": 0.1}) is not None
        assert plan.turn(trial, 2 * EVERY, {"heldout/r1": 0.1}) is None


def test_explored_settings_are_near_and_inside() -> None:
    space = Space(
        "mixed",
        (
            *SPACE.axes,
            Axis("optim.betas", Choice(((0.9, 0.95), (0.9, 0.98), (0.9, 0.999)))),
            Axis("optim.grad_clip", Range(1, 5, integer=True)),
        ),
    )
    start = base()
    copied: Changes = {LAMBDA: 7.5, LR: 1e-3, "optim.betas": [0.9, 0.95], "optim.grad_clip": 2}
    drawn = [explore(space, start, copied, random.Random(f"7/p001-s0/{step}")) for step in range(2000)]
    assert drawn[0] == explore(space, start, copied, random.Random("7/p001-s0/0"))
    for one in drawn:
        apply(start, one, source="test")
        assert 0.5 <= one[LAMBDA] <= 8.0 and 1e-4 <= one[LR] <= 1e-2 and one["optim.grad_clip"] in range(1, 6)
    near = [one[LR] for one in drawn if min(abs(one[LR] - 1.2e-3), abs(one[LR] - 0.8e-3)) < 1e-9]
    assert len(near) / len(drawn) == pytest.approx(1 - RESAMPLE, abs=0.04)
    assert sum(one[LAMBDA] == 8.0 for one in drawn) > 500, "1.2 × 7.5 stops at the border"
    assert {one["optim.betas"] for one in drawn} == {(0.9, 0.95), (0.9, 0.98), (0.9, 0.999)}
    far = sum(one["optim.betas"] == (0.9, 0.999) for one in drawn) / len(drawn)
    assert far == pytest.approx(RESAMPLE / 3, abs=0.03), "two places off: only if drawn anew"
    of_recipe = [explore(SPACE, start, {}, random.Random(number))[LAMBDA] for number in range(100)]
    weight = value_of(start, LAMBDA)
    assert of_recipe.count(0.8 * weight) > 20 and of_recipe.count(1.2 * weight) > 20


@pytest.mark.parametrize(
    ("axes", "fixed", "message"),
    [
        (
            (Axis("model.embed_dim", Choice((16, 32))),),
            {},
            "change model.embed_dim in flight: --fix model.embed",
        ),
        ((Axis(READOUT, Choice(("cls", "mean"))), Axis(LR, Range(1, 2))), {}, f"--fix {READOUT}=cls takes them out"),
        ((Axis("optim.warmup_steps", Range(1, 9, integer=True)),), {}, "can change: method.fusion_weight, "),
        ((Axis(LAMBDA, Range(0.0, 8.0)),), {}, "keep both above 0"),
        ((Axis(LAMBDA, Choice((0.0, 2.0))),), {}, "keep both above 0"),
        ((Axis(LR, Range(1, 2)),), {LAMBDA: 0.0}, "keep both above 0"),
        ((Axis(LR, Range(1, 2)),), {"model.embed_dim": 32}, "fixed to 32, but the recipe, .*has 16"),
    ],
)
def test_what_cannot_change_in_flight_is_refused(axes: tuple[Axis, ...], fixed: Changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        require_in_flight(Space("wrong", axes, fixed), tiny_config())


@pytest.mark.parametrize("recipe", [icons_cpu(), tiny_config(), tiny_config(method={"fusion_weight": 0.0})])
def test_what_can_is_not(recipe: Config) -> None:
    if recipe.method.fusion_weight:
        require_in_flight(ito_schedule(recipe), recipe)
    free = Space("free", (Axis("data.views.jitter.0", Range(0.0, 1.0)),), {READOUT: recipe.method.fusion.readout})
    require_in_flight(free, recipe)


def _lineage(book: Book) -> None:
    """Point 2 went on from the recipe, then from point 1, which had gone on from the recipe; point 1 from point 2."""
    book.open_session(settings(scheduler="pbt"))
    for point in range(3):
        book.started(Job(point, 0, "search", {LAMBDA: float(point)} if point else {}))
    turns = {
        ("p001-s0", 30): Turn(30, "p000-s0", {LAMBDA: 1.5}),
        ("p002-s0", 30): Turn(30, "p000-s0", {LAMBDA: 2.5}),
        ("p001-s0", 60): Turn(60, "p002-s0", {LAMBDA: 1.75}),
        ("p002-s0", 60): Turn(60, "p001-s0", {LAMBDA: 2.75}),
    }
    for step in (30, 60, 90):
        for point, key in enumerate(("p000-s0", "p001-s0", "p002-s0")):
            values = {"heldout/r1": point * step / 1000}
            book.evaluated(key, step, values, "", "finished" if step == FULL else "open", turn=turns.get((key, step)))


def test_a_confirmation_repeats_the_schedule_that_made_the_weights(tmp_path: Path) -> None:
    recipe = {"method.alignment_weights": ()}
    with Book(tmp_path / "book.jsonl") as book:
        _lineage(book)
        schedule = ((0, recipe), (30, {LAMBDA: 1.5}), (60, {LAMBDA: 2.75}))
        assert lineage(book, "p002-s0", recipe) == schedule
        assert lineage(book, "p002-s0", recipe, before=60) == ((0, recipe), (30, {LAMBDA: 2.5}))
        jobs = confirmation_jobs(book, OBJECTIVE, 2, first_seed=0, recipe=recipe)
        assert [(job.point, job.seed, job.changes, job.schedule) for job in jobs] == [
            (point, seed, changes, later)
            for seed in (1000, 1001)
            for point, changes, later in ((BASELINE, {}, ()), (2, recipe, schedule[1:]))
        ]
        assert Listed(book, jobs).next() == jobs[0]
        book.started(jobs[1])
        decision = decide(book, OBJECTIVE)
        assert decision is not None and "The schedule of point 2 leads the search" in decision.sentence
    again = Book(tmp_path / "book.jsonl", read_only=True)
    plan, trial = Listed(again, jobs), again.trials["p002-s1000"]
    assert plan.turn(trial, 60, {}) == Turn(60, "p002-s1000", {LAMBDA: 2.75})
    assert plan.turn(trial, 90, {}) is None and not plan.yields(trial, 60)
    assert again.trials["p001-s0"].course == ((0, {LAMBDA: 1.0}), (30, {LAMBDA: 1.5}), (60, {LAMBDA: 1.75}))


def test_a_confirmation_holds_its_last_checkpoint_only(tmp_path: Path) -> None:
    for step in (30, 60, 90):
        (tmp_path / "p002-s1000" / name_of(step)).mkdir(parents=True)
    trial = Trial(Job(2, 1000, "confirm", {}), curve=[(30, {}), (60, {})])
    release(lambda key: tmp_path / key, [trial], trial.steps)
    assert sorted(path.name for path in (tmp_path / "p002-s1000").iterdir()) == [name_of(60), name_of(90)]


def test_a_trial_is_told_what_it_goes_on_from_and_with(tmp_path: Path) -> None:
    recipe = base()
    space = ito_schedule(recipe)
    fields, view = tuple(axis.field for axis in space.axes), "method.alignment_weights.1"
    store, files = Store("sqlite:///mlflow.db", None), TokenizerFiles(())
    maker = TrialMaker(
        "tiny", recipe, space.start(recipe), tmp_path, store, EVERY, files, {}, fields, tuple(space.fixed)
    )
    first, later = {LAMBDA: 0.5, view: 2.0}, {LAMBDA: 3.0, view: 0.5, LR: 1e-4}
    trial = Trial(Job(1, 7, "search", first), turns=[Turn(EVERY, "p002-s7", later)])
    order = maker.order(trial)
    assert (order.cfg.method.fusion_weight, order.settings[LAMBDA], order.settings[view]) == (0.5, 0.5, 2.0)
    assert order.shelf == str(tmp_path / "trials" / "p001-s7" / "held")
    takeover = order.takeover
    assert takeover is not None and takeover.cfg == maker.present(trial)
    assert takeover.checkpoint == str(tmp_path / "trials" / "p002-s7" / "held" / name_of(EVERY))
    assert (takeover.cfg.output, takeover.cfg.name) == (str(tmp_path / "trials" / "p001-s7"), "p001-s7-from-30")
    assert takeover.cfg.method.alignment_weights == (1.0, 0.5) and takeover.settings[LR] == 1e-4
    changed = {"method": takeover.cfg.method, "optim": takeover.cfg.optim, "name": "p001-s7-from-30"}
    assert order.cfg.model_copy(update={**changed, "output": takeover.cfg.output}) == takeover.cfg
    assert order.cfg.train.checkpoint_every == EVERY and order.cfg.train.seed == 7
    assert maker.point(maker.recipe_changes) == recipe, "a schedule can begin as the recipe"
    of_recipe = maker.order(Trial(Job(BASELINE, 7, "search", {})))
    assert of_recipe.takeover is None and of_recipe.settings.keys() == set(fields) - {view}, "it names no weights"

"""What is learned from an earlier sweep: as much as from its points themselves, and only what the space holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError, TrackingError
from ito_ray.tracking.provenance import dataset_identity
from ito_ray.tracking.run import open_run
from ito_ray.tracking.sweep import SWEEP
from tests.tune.books import EVERY, FULL, OBJECTIVE, base, score, settings
from tune.axes import Axis, Changes, Choice, Range, Space
from tune.book import BASELINE, BOOK, Book, Job, State, Turn
from tune.parent import fields
from tune.searchers import OptunaSearcher
from tune.spaces import WITH_FUSION
from tune.warm_start import FOLDER, Lesson, lesson, lessons

LAMBDA, READOUT, LR = "method.fusion_weight", "method.fusion.readout", "optim.lr"
SPACE = Space("s", (Axis(LAMBDA, Range(0.0, 8.0)), Axis(READOUT, Choice(("cls", "mean")), when=WITH_FUSION)))
WEIGHTS = (2.0, 0.0, 0.5, 1.0, 3.0, 4.2, 5.0, 6.0, 7.0, 8.0)


def _settings(cfg: Config, space: Space = SPACE, **changes: Any) -> dict[str, Any]:
    return settings(config=fields(cfg), space=[list(row) for row in space.rows()], **changes)


def _run(book: Book, job: Job, last: int = FULL) -> None:
    key = book.started(job).job.key
    weight = job.changes.get(LAMBDA, 2.0)
    for step in range(EVERY, last + 1, EVERY):
        end: State = "finished" if step == FULL else "stopped" if step == last else "open"
        book.evaluated(key, step, {"heldout/r1": score(weight, job.seed, step)}, "behind" * (end == "stopped"), end)


def _earlier(path: Path, points: list[Changes], *, seeds: int = 1, space: Space = SPACE, **changes: Any) -> Book:
    """Every third point was stopped early, with the second seed later than with the first."""
    with Book(path) as book:
        book.open_session(_settings(base(), space, **changes))
        for number, point in enumerate(points):
            for seed in range(seeds):
                last = EVERY * (1 + seed) if number % 3 == 2 else FULL
                _run(book, Job(number, seed, "search", {} if number == BASELINE else point), last)
    return Book(path, read_only=True)


def _points() -> list[Changes]:
    return [
        {LAMBDA: weight, **({READOUT: ("cls", "mean")[number % 2]} if weight else {})}
        for number, weight in enumerate(WEIGHTS)
    ]


def _lesson(book: Book, space: Space = SPACE, cfg: Config | None = None, **changes: Any) -> Lesson:
    cfg = cfg or base()
    return lesson("early", book, _settings(cfg, space, **changes), space, space.start(cfg))


def _searcher(space: Space = SPACE) -> OptunaSearcher:
    return OptunaSearcher("tpe", space, space.start(base()), OBJECTIVE, seed=0)


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_warm_start_asks_what_a_searcher_asks_that_ran_the_points_itself(seeds: int, tmp_path: Path) -> None:
    earlier = _earlier(tmp_path / BOOK, _points(), seeds=seeds)
    warm, itself, ignorant = _searcher(), _searcher(), _searcher()
    learned = _lesson(earlier)
    learned.teach(warm)
    for number, trials in earlier.points("search").items():
        if number != BASELINE:
            itself.pending(number, trials[0].job.changes)
        itself.tell(number, trials[0].job.changes, trials)
    assert [trial.state for trial in warm.study.trials] == [trial.state for trial in itself.study.trials]
    asked = [[one.ask(number) for number in (20, 21, 22)] for one in (warm, itself, ignorant)]
    assert asked[0] == asked[1] != asked[2]
    assert str(learned) == "learned from 10 of the 10 points of early"


def test_what_lies_outside_the_space_is_left_out_and_counted(tmp_path: Path) -> None:
    earlier = _earlier(tmp_path / BOOK, _points())
    narrow = Space("n", (Axis(LAMBDA, Range(0.75, 5.0)), Axis(READOUT, Choice(("mean",)))))
    learned = _lesson(earlier, narrow)
    assert [changes[LAMBDA] for changes, _ in learned.points] == [1.0, 4.2]
    assert str(learned) == "learned from 2 of the 10 points of early; 8 lie outside this space"
    fixed = SPACE.changed({}, {READOUT: "mean"})
    assert {changes[LAMBDA] for changes, _ in _lesson(earlier, fixed).points} == {1.0, 4.2, 6.0, 8.0}


def test_another_space_and_another_recipe_are_read_with_what_the_trials_ran_with(tmp_path: Path) -> None:
    """The rate was not searched then, and is now; the recipe's own point had the old recipe's λ."""
    earlier = _earlier(tmp_path / BOOK, _points())
    wide = Space("w", (*SPACE.axes, Axis(LR, Range(1e-5, 1e-1, log=True))))
    now = overlay(base(), {"method": {"fusion_weight": 6.5}}, source="test")
    learned = _lesson(earlier, wide, now)
    assert len(learned.points) == 10
    assert {changes[LR] for changes, _ in learned.points} == {base().optim.lr}
    assert learned.points[0][0][LAMBDA] == base().method.fusion_weight == 2.0
    searched = _earlier(tmp_path / "rates", [{LAMBDA: 1.0, LR: 0.01 * number} for number in range(1, 4)], space=wide)
    assert [changes[LAMBDA] for changes, _ in _lesson(searched).points] == [2.0], "the others had other rates"


def test_what_a_condition_sets_must_be_what_the_trial_ran_with(tmp_path: Path) -> None:
    earlier = _earlier(tmp_path / BOOK, [{}, {LAMBDA: 0.0, READOUT: "mean"}, {LAMBDA: 3.0, READOUT: "mean"}])
    without = Axis(READOUT, Choice(("cls", "mean")), when=WITH_FUSION, otherwise="cls")
    learned = _lesson(earlier, Space("c", (SPACE.axes[0], without)))
    assert [changes[LAMBDA] for changes, _ in learned.points] == [2.0, 3.0]


def test_unfinished_failed_and_changing_points_teach_nothing(tmp_path: Path) -> None:
    with Book(tmp_path / BOOK) as book:
        book.open_session(_settings(base()))
        _run(book, Job(0, 0, "search", {}))
        book.started(Job(1, 0, "search", {LAMBDA: 1.0}))
        book.ended(book.started(Job(2, 0, "search", {LAMBDA: 1.0})).job.key, "failed", "not finite")
        key = book.started(Job(3, 0, "search", {LAMBDA: 1.0})).job.key
        book.evaluated(key, EVERY, {"heldout/r1": 0.1}, "", "open", turn=Turn(EVERY, key, {LAMBDA: 2.0}))
        book.evaluated(key, FULL, {"heldout/r1": 0.1}, "", "finished")
    learned = _lesson(Book(tmp_path / BOOK, read_only=True))
    assert str(learned).endswith("1 of the 4 points of early; 2 did not come to a score; 1 changed in flight")


def test_what_cannot_be_learned_from_is_refused_in_a_sentence(tmp_path: Path) -> None:
    earlier = _earlier(tmp_path / BOOK, _points())
    with pytest.raises(ConfigError, match=r"its train\.steps is 90, here it is 91, so its scores mean something else"):
        _lesson(earlier, cfg=overlay(base(), {"train": {"steps": 91}}, source="test"))
    with pytest.raises(ConfigError, match=r"its --objective is \['heldout/r1'\], here it is"):
        _lesson(earlier, objective=["heldout/r5"])
    nothing = Space("n", (Axis(LAMBDA, Range(20.0, 30.0)),))
    with pytest.raises(ConfigError, match="nothing can be learned from its 10 points; 10 lie outside this space"):
        _lesson(earlier, nothing)
    del earlier.settings["config"]["eval.max_samples"]
    with pytest.raises(ConfigError, match=r"does not say its eval\.max_samples"):
        _lesson(earlier)
    earlier.settings.clear()
    with pytest.raises(ConfigError, match=r"does not say its --objective.* or by a study"):
        _lesson(earlier)


def test_a_rerun_learns_what_the_first_session_learned(tmp_path: Path) -> None:
    """From an MLflow store; in the meantime the earlier sweep has got more points."""
    cfg = overlay(base(), {"output": str(tmp_path)}, source="test")
    earlier = _earlier(tmp_path / "early" / BOOK, _points()[:4])
    data = dataset_identity("d", ["a.tar"], [("a.tar", 1)])
    tracked = open_run(cfg.model_copy(update={"name": "early"}), recipe="tiny", dataset=data, versions={}, git="")
    tracked.set_tags({SWEEP: "early"})
    with pytest.raises(TrackingError, match="has it come to its end"):
        lessons(["early"], cfg, SPACE, tmp_path / "late", Book(tmp_path / "none", read_only=True), _settings(cfg))
    tracked.log_file(earlier.path, "sweep")
    with Book(tmp_path / "late" / BOOK) as book:
        first = lessons(["early", "early"], cfg, SPACE, tmp_path / "late", book, _settings(cfg))
        book.open_session(_settings(cfg))
    assert [len(one.points) for one in first] == [4]
    with Book(earlier.path) as more:
        _run(more, Job(4, 0, "search", _points()[4]))
    tracked.log_file(earlier.path, "sweep")
    with Book(tmp_path / "late" / BOOK) as book:
        again = lessons(["early"], cfg, SPACE, tmp_path / "late", book, _settings(cfg))
    assert again[0].points == first[0].points and list((tmp_path / "late" / FOLDER).iterdir())
    fresh = lessons(["early"], cfg, SPACE, tmp_path / "later", Book(tmp_path / "none", read_only=True), _settings(cfg))
    assert len(fresh[0].points) == 5
    with pytest.raises(ConfigError, match="is this sweep itself"):
        lessons(["late"], cfg, SPACE, tmp_path / "late", Book(tmp_path / "none", read_only=True), _settings(cfg))

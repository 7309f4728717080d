"""Searchers, stopping and the plan, without Ray: what is proposed, stopped and gone on with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.tune.books import EVERY, FULL, OBJECTIVE, base, score
from tune.axes import Axis, Changes, Choice, Range, Space
from tune.book import BASELINE, Book, Job, State
from tune.budget import Budget
from tune.judging import Objective
from tune.plan import Listed, Search
from tune.searchers import OptunaSearcher, Searcher, SearcherName, make_searcher
from tune.spaces import WITH_FUSION, ito_lambda
from tune.stopping import Rungs, SchedulerName, Stopping

LAMBDA = "method.fusion_weight"


def _searcher(name: SearcherName = "tpe", seed: int = 0) -> Searcher:
    start = base()
    return make_searcher(name, ito_lambda(start), start, OBJECTIVE, seed=seed, grid_points=5)


def _run(book: Book, job: Job, last: int = FULL) -> None:
    """What a trial would tell."""
    weight = job.changes.get(LAMBDA, 2.0)
    for step in range(book.trials[job.key].steps + EVERY, last + 1, EVERY):
        end: State = "finished" if step == FULL else "open"
        book.evaluated(job.key, step, {"heldout/r1": score(weight, job.seed, step)}, "", end)


def _search(book: Book, searcher: Searcher, points: int, seeds: int = 1, budget: Budget | None = None) -> Search:
    return Search(book, searcher, budget or Budget(), points, range(seeds))


def _drive(book: Book, plan: Search) -> list[Job]:
    jobs = []
    while (job := plan.next()) is not None:
        jobs.append(job)
        _run(book, job)
        plan.ended(book.trials[job.key])
    assert plan.is_finished
    return jobs


def test_the_recipe_is_the_first_point(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        jobs = _drive(book, _search(book, _searcher("random"), 4, seeds=2))
    assert [(job.point, job.seed) for job in jobs] == [(p, s) for p in range(4) for s in range(2)]
    assert jobs[0].changes == {} and all(0 <= job.changes[LAMBDA] <= 8 for job in jobs[2:])
    assert jobs[2].changes == jobs[3].changes != jobs[4].changes


def test_tpe_learns_where_the_top_is(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        jobs = _drive(book, _search(book, _searcher("tpe"), 40))
    late = [abs(job.changes[LAMBDA] - 4.0) for job in jobs[25:]]
    early = [abs(job.changes[LAMBDA] - 4.0) for job in jobs[1:9]]
    assert sum(late) / len(late) < 0.7 * sum(early) / len(early)


def test_a_grid_ends_by_itself_and_goes_on_where_it_was(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        first = _drive(book, _search(book, _searcher("grid"), 3))
        second = _drive(book, _search(book, _searcher("grid"), 100))
    assert [job.changes.get(LAMBDA) for job in first + second] == [None, 0.0, 2.0, 4.0, 6.0, 8.0]


def test_a_resumed_grid_does_not_draw_what_was_open_again(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        plan = _search(book, _searcher("grid"), 4)
        killed = [plan.next() for _ in range(3)]
        again = _search(book, _searcher("grid"), 100)
        side_by_side = [again.next() for _ in range(6)]
        assert again.next() is None
    assert side_by_side[:3] == killed
    assert [job and job.changes.get(LAMBDA) for job in side_by_side] == [None, 0.0, 2.0, 4.0, 6.0, 8.0]


def test_a_resumed_search_goes_on_with_what_was_open_and_repeats_nothing(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        plan = _search(book, _searcher("tpe"), 6)
        jobs = [plan.next() for _ in range(4)]
        assert all(jobs)
        for job in jobs[:2]:
            assert job is not None
            _run(book, job)
            plan.ended(book.trials[job.key])
        assert jobs[2] is not None
        _run(book, jobs[2], last=EVERY)
    with Book(tmp_path / "book.jsonl") as again:  # killed with two trials open, one of them evaluated once
        resumed = _drive(again, _search(again, _searcher("tpe"), 6))
        assert resumed[:2] == jobs[2:]
        assert [job.point for job in resumed] == [2, 3, 4, 5]
        assert all(trial.state == "finished" for trial in again.trials.values())
        assert len({trial.job.changes.get(LAMBDA) for trial in again.trials.values()}) == 6


def test_missing_seeds_of_a_point_are_made_up_for(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        plan = _search(book, _searcher("random"), 2, seeds=3)
        first = plan.next()
        assert first is not None
        _run(book, first)
    with Book(tmp_path / "book.jsonl") as again:
        jobs = _drive(again, _search(again, _searcher("random"), 2, seeds=3))
    assert [(job.point, job.seed) for job in jobs] == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_a_spent_budget_starts_nothing_new(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        plan = _search(book, _searcher("random"), 10, budget=Budget(steps=100))
        assert plan.next() is not None
        book.spent.steps = 100
        assert plan.is_finished and plan.next() is None


def test_listed_jobs_run_once_each_over_all_sessions(tmp_path: Path) -> None:
    jobs = [Job(point, 1000, "confirm", {}) for point in (0, 3)]
    with Book(tmp_path / "book.jsonl") as book:
        plan = Listed(book, jobs)
        assert plan.next() == jobs[0]
        _run(book, jobs[0])
        assert plan.next() == jobs[1]
        again = Listed(book, jobs)
        assert again.next() == jobs[1] and again.is_finished


@pytest.mark.parametrize("name", ["asha", "hyperband", "none"])
def test_the_worst_are_stopped_and_the_word_is_the_same_after_a_resume(name: SchedulerName, tmp_path: Path) -> None:
    def stopping() -> Stopping:
        return Stopping(name, Rungs(EVERY, FULL, 3), OBJECTIVE)

    with Book(tmp_path / "book.jsonl") as book:
        judge, verdicts = stopping(), {}
        for number, weight in enumerate((4.0, 4.1, 3.9, 8.0, 0.0, 7.9)):
            key = book.started(Job(number, 0, "search", {LAMBDA: weight})).job.key
            values = {"heldout/r1": score(weight, 0, EVERY)}
            verdicts[key] = judge.verdict(key, EVERY, values)
            book.evaluated(key, EVERY, values, verdicts[key], "stopped" if verdicts[key] else "open")
        bad = {"heldout/r1": score(8.0, 0, EVERY)}
        resumed = stopping()
        resumed.replay(book.trials.values())
        words = [bool(one.verdict(f"new{n}", EVERY, bad)) for one in (judge, resumed) for n in range(6)]
        assert words[:6] == words[6:] and any(words) == (name != "none")
        assert judge.verdict("p000-s0", FULL, {"heldout/r1": 0.0}) == "", "who has come to the end has finished"
    if name == "none":
        assert not any(verdicts.values())
    if name == "asha":
        assert verdicts["p000-s0"] == "" and "below the others after 30 steps" in verdicts["p004-s0"]


def test_stopped_and_failed_points_are_told_as_such(tmp_path: Path) -> None:
    searcher = _searcher("tpe")
    assert isinstance(searcher, OptunaSearcher)
    with Book(tmp_path / "book.jsonl") as book:
        plan = _search(book, searcher, 5)
        jobs = [job for _ in range(4) if (job := plan.next())]
        _run(book, jobs[0])
        _run(book, jobs[1])
        book.evaluated(jobs[2].key, EVERY, {"heldout/r1": 0.1}, "below", "stopped")
        book.ended(jobs[3].key, "failed", "not finite")
        for job in jobs:
            plan.ended(book.trials[job.key])
    states = [trial.state.name for trial in searcher.study.trials]
    assert states.count("COMPLETE") == 2 and states.count("PRUNED") == 1 and states.count("FAIL") == 1


def test_two_objectives_are_both_told(tmp_path: Path) -> None:
    objective = Objective(("heldout/r1",), "step_seconds")
    start = base()
    searcher = make_searcher("nsga2", ito_lambda(start), start, objective, seed=0, grid_points=3)
    assert isinstance(searcher, OptunaSearcher)
    with Book(tmp_path / "book.jsonl") as book:
        plan = _search(book, searcher, 12)
        while (job := plan.next()) is not None:
            weight = job.changes.get(LAMBDA, 2.0)
            values = {"heldout/r1": score(weight, 0, FULL), "step_seconds": weight}
            book.evaluated(job.key, FULL, values, "", "finished")
            plan.ended(book.trials[job.key])
    assert len(searcher.study.trials) == 12
    assert {trial.values[1] for trial in searcher.study.best_trials} <= {
        trial.values[1] for trial in searcher.study.trials
    }


TWO = Objective(("heldout/r1",), "step_seconds")
MIXED = Space(
    "mixed", (Axis(LAMBDA, Range(0.0, 8.0)), Axis("method.fusion.readout", Choice(("cls", "mean")), when=WITH_FUSION))
)


def _overlapping(path: Path, name: SearcherName, points: int, kill_after: Iterable[int]) -> list[Changes]:
    """What is asked for by three trials side by side, of which the second oldest ends first; killed after some ends."""
    objective, ends = TWO if name == "nsga2" else OBJECTIVE, 0

    def session(book: Book) -> tuple[Search, list[Job]]:
        plan = _search(book, OptunaSearcher(name, MIXED, base(), objective, seed=3), points)
        return plan, [job for _ in book.open_trials("search") if (job := plan.next())]

    book = Book(path)
    plan, running = session(book)
    while True:
        while len(running) < 3 and (job := plan.next()):
            running.append(job)
        if not running:
            break
        done = running.pop(1 if len(running) > 1 else 0)
        weight = done.changes.get(LAMBDA, 2.0)
        values = {"heldout/r1": score(weight, 0, FULL), "step_seconds": 0.1 + abs(weight - 1)}
        book.evaluated(done.key, FULL, values, "", "finished")
        ends += 1
        if ends in kill_after:  # before the plan hears of the end
            book.__exit__(None, None, None)
            book = Book(path)
            plan, running = session(book)
        else:
            plan.ended(book.trials[done.key])
    book.__exit__(None, None, None)
    return [trial.job.changes for trial in book.trials.values()]


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_a_killed_search_asks_what_the_undisturbed_one_asks(name: SearcherName, tmp_path: Path) -> None:
    """Three generations of NSGA-II; and after the first points TPE trusts its model."""
    undisturbed = _overlapping(tmp_path / "undisturbed", name, 28, ())
    killed = _overlapping(tmp_path / "killed", name, 28, (1, 4, 9, 10, 17, 22))
    assert killed == undisturbed and len({str(changes) for changes in killed}) > 20


def test_nsga2_breeds_from_generation_to_generation(tmp_path: Path) -> None:
    searcher = OptunaSearcher("nsga2", MIXED, base(), TWO, seed=0)
    with Book(tmp_path / "book.jsonl") as book:
        plan = _search(book, searcher, 26)
        while job := plan.next():
            weight = job.changes.get(LAMBDA, 2.0)
            values = {"heldout/r1": score(weight, 0, FULL), "step_seconds": 0.1 + abs(weight - 1)}
            book.evaluated(job.key, FULL, values, "", "finished")
    again = OptunaSearcher("nsga2", MIXED, base(), TWO, seed=0)
    with Book(tmp_path / "book.jsonl") as book:
        _search(book, again, 26)
    for one in (searcher, again):
        generations = [trial.system_attrs["NSGAIISampler:generation"] for trial in one.study.trials[:25]]
        assert generations == [0] * 8 + [1] * 8 + [2] * 8 + [3]


def test_conditional_axes_and_tuples_survive_a_resume(tmp_path: Path) -> None:
    start = base()
    space = Space(
        "mixed",
        (
            Axis(LAMBDA, Range(0.0, 8.0)),
            Axis("method.fusion.readout", Choice(("cls", "mean")), when=WITH_FUSION),
            Axis("method.alignment_weights", Choice(((1.0, 1.0), (1.0, 2.0)))),
        ),
    )
    with Book(tmp_path / "book.jsonl") as book:
        plan = _search(book, OptunaSearcher("tpe", space, start, OBJECTIVE, seed=0), 6)
        for _ in range(3):
            job = plan.next()
            assert job is not None
            if job.point < 2:
                _run(book, job)
                plan.ended(book.trials[job.key])
    searcher = OptunaSearcher("tpe", space, start, OBJECTIVE, seed=0)
    with Book(tmp_path / "book.jsonl") as again:
        _drive(again, _search(again, searcher, 6))
    assert [trial.state.name for trial in searcher.study.trials] == ["COMPLETE"] * 5, "the recipe has other weights"
    assert all(job.job.point == BASELINE or len(job.job.changes) == 3 for job in again.trials.values())

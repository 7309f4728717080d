"""Intervals against their textbook values, decisions from books, the front against all pairs, budgets, capacity."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ito_ray.errors import ConfigError
from tests.tiny import tiny_config
from tests.tune.books import FULL, OBJECTIVE, fill, finished_sweep, settings
from tune.book import BASELINE, Book, Job, Spent, Trial
from tune.budget import Budget
from tune.capacity import HEAD, Need, Node, drivers_on_head, fitting
from tune.decision import confirmation_jobs, decide
from tune.judging import Estimate, Objective, Standing, difference, pareto, require_metrics, saved_steps, standings
from tune.plan import Listed


def test_the_interval_is_students() -> None:
    estimate = Estimate((0.1, 0.2, 0.4))
    low, high = stats.t.interval(0.95, 2, loc=np.mean(estimate.values), scale=stats.sem(estimate.values))
    assert estimate.interval == pytest.approx((low, high))
    assert Estimate((0.1,)).interval is None


def test_a_difference_is_judged_by_its_interval() -> None:
    one, other = Estimate((0.50, 0.51, 0.52)), Estimate((0.40, 0.41, 0.42))
    assert difference(one, other).is_better and difference(other, one).is_worse
    wide = difference(Estimate((0.1, 0.9)), other)
    assert not wide.is_better and not wide.is_worse
    assert not difference(Estimate((0.9,)), other).is_better, "one seed decides nothing"


def test_intervals_hold_what_they_promise() -> None:
    """Of means of four normal seeds, 95 % intervals cover the truth 95 times in 100."""
    source = np.random.default_rng(0)
    samples = source.normal(0.3, 0.02, (2000, 4))
    covered = [low <= 0.3 <= high for low, high in (Estimate(tuple(row)).interval or (1.0, 0.0) for row in samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_the_best_point_is_confirmed_on_fresh_seeds(tmp_path: Path) -> None:
    with finished_sweep(tmp_path / "book.jsonl") as book:
        decision = decide(book, OBJECTIVE)
        assert decision is not None
        assert (decision.best.point, decision.is_better) == (5, True)
        assert "is better than the recipe" in decision.sentence
        jobs = confirmation_jobs(book, OBJECTIVE, 3, first_seed=0)
        searched = {trial.job.seed for trial in book.trials.values() if trial.job.phase == "search"}
    assert [(job.point, job.seed) for job in jobs] == [(p, s) for s in (1000, 1001, 1002) for p in (BASELINE, 5)]
    assert not searched & {job.seed for job in jobs}


def test_luck_is_called_luck(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        book.open_session(settings())
        fill(book, BASELINE, 2.0)
        fill(book, 1, 4.0)
        for seed, (recipe, best) in enumerate(((0.5, 0.4), (0.51, 0.41), (0.52, 0.42)), start=1000):
            for point, value in ((BASELINE, recipe), (1, best)):
                key = book.started(Job(point, seed, "confirm", {})).job.key
                book.evaluated(key, FULL, {"heldout/r1": value}, "", "finished")
        decision = decide(book, OBJECTIVE)
    assert decision is not None and not decision.is_better
    assert "by luck" in decision.sentence


def test_a_stopped_or_failed_seed_keeps_a_point_from_the_standings(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        book.open_session(settings())
        fill(book, 1, 4.0, seed=0)
        fill(book, 1, 4.0, seed=1, last=30)
        fill(book, 2, 3.0)
        assert [one.point for one in standings(book.points(), OBJECTIVE)] == [2]
        assert saved_steps(book, FULL) == (FULL - 30, FULL)


def test_the_front_is_what_no_other_point_beats() -> None:
    source = random.Random(1)
    trial = (Trial(Job(0, 0, "search", {})),)
    points = [
        Standing(number, Estimate((source.random(),)), Estimate((source.random(),)), trial) for number in range(60)
    ]

    def beats(one: Standing, other: Standing) -> bool:
        no_worse = one.score.mean >= other.score.mean and one.cost.mean <= other.cost.mean
        return no_worse and (one.score.mean, one.cost.mean) != (other.score.mean, other.cost.mean)

    naive = {one.point for one in points if not any(beats(other, one) for other in points)}
    assert {one.point for one in pareto(points)} == naive


def test_an_unknown_metric_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="--objective heldout/r2: the evaluation gives heldout/r1"):
        Objective(("heldout/r2",)).score({"heldout/r1": 0.5})


def _front(path: Path, costs: dict[int, tuple[float, float]]) -> str:
    """The sentence on points of so much score at so much cost."""
    with Book(path) as book:
        for point, (points, cost) in costs.items():
            key = book.started(Job(point, 0, "search", {} if point == BASELINE else {"optim.lr": 0.1})).job.key
            book.evaluated(key, FULL, {"heldout/r1": points, "step_seconds": cost}, "", "finished")
        decision = decide(book, Objective(OBJECTIVE.names, "step_seconds"))
    assert decision is not None and not decision.is_better
    return decision.sentence


def test_a_front_is_told_by_its_ends_and_where_the_recipe_is(tmp_path: Path) -> None:
    spread = {0: (0.3, 1.0), 1: (0.2, 0.5), 2: (0.4, 2.0), 3: (0.1, 0.9)}
    assert _front(tmp_path / "on", spread) == (
        "3 points are on the front of score against step_seconds, "
        "from 0.2000 at 0.5 (point 1) to 0.4000 at 2 (point 2)."
    )
    beaten = {**spread, 3: (0.35, 0.9)}
    assert _front(tmp_path / "off", beaten).endswith("the recipe is not: point 3 is as good or better in both.")
    assert "No point scores higher than point 1 (0.4000)" in _front(tmp_path / "one", {0: (0.3, 1.0), 1: (0.4, 0.5)})
    assert _front(tmp_path / "none", {0: (0.3, 1.0), 1: (0.2, 1.5)}).startswith("Nothing that was tried")


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (
            Objective(("heldout/r1_image_to_txt",)),
            r"--objective heldout/r1_image_to_txt: no .* Did you mean heldout/r1_im",
        ),
        (Objective(("zero_shot/top1",)), r"--objective zero_shot/top1: no trial gives"),
        (
            Objective(("heldout/r1_image_to_text",), "step_second"),
            r"--against step_second: .*Did you mean step_seconds\?",
        ),
        (Objective(("heldout/median_rank_image_to_text",)), "less of it is better"),
    ],
)
def test_a_number_that_no_trial_gives_is_refused_at_the_start(objective: Objective, said: str) -> None:
    cfg = tiny_config(data={"heldout": ("v.tar",)})
    with pytest.raises(ConfigError, match=said):
        require_metrics(objective, cfg)
    require_metrics(Objective(("heldout/r5_text_to_image", "geometry/alignment"), "step_cpu_seconds"), cfg)


def test_a_confirmation_says_what_it_costs(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        jobs = [Job(point, 1000, "confirm", {}) for point in (0, 3)]
        assert Listed(book, jobs).cost(FULL) == "2 trials of 90 steps, 180 in all"
        fill(book, 3, 4.2, seed=1000, phase="confirm")
        key = book.started(jobs[0]).job.key
        book.evaluated(key, 30, {"heldout/r1": 0.1}, "", "open")
        assert Listed(book, jobs).cost(FULL) == "1 trial of 90 steps, 90 in all, 30 of them taken"
        book.evaluated(key, FULL, {"heldout/r1": 0.1}, "", "finished")
        assert Listed(book, jobs).cost(FULL) == ""


@pytest.mark.parametrize(
    ("budget", "spent", "word"),
    [
        (Budget(), Spent(10**9, 10**9, 1e9, 1e9), ""),
        (Budget(steps=100), Spent(steps=99), ""),
        (Budget(steps=100), Spent(steps=100), "100 steps"),
        (Budget(samples=100, steps=1000), Spent(steps=1, samples=101), "100 samples"),
        (Budget(hours=0.5), Spent(seconds=1801), "0.5 hours"),
        (Budget(money=2.0, prices={"CPU": 0.1}), Spent(money=2.5), "2 in money"),
    ],
)
def test_a_budget_is_gone_when_it_is(budget: Budget, spent: Spent, word: str) -> None:
    assert word in budget.gone(spent) and bool(word) == bool(budget.gone(spent))


def test_money_is_the_price_of_all_nodes() -> None:
    budget = Budget(money=1.0, prices={"CPU": 0.36, "GPU": 3.6})
    assert budget.rate([{"CPU": 10.0}, {"CPU": 2.0, "GPU": 1.0}]) == pytest.approx(12 * 1e-4 + 1e-3)
    with pytest.raises(ConfigError, match="there are no prices"):
        Budget(money=1.0).check()
    with pytest.raises(ConfigError, match=r"--budget\.steps is -1"):
        Budget(steps=-1).check()


def _nodes(*cpus: float, gpus: float = 0.0, labels: dict[str, str] | None = None) -> list[Node]:
    return [Node({"CPU": one, "GPU": gpus}, labels or {}) for one in cpus]


def _need(workers: int, cpus: float, *, gpus: float = 0.0, data: float = 1.0, pool: str = "") -> Need:
    train = {"pool": pool} if pool else {}
    return Need(workers, cpus, gpus, data, train, {"pool": "data"} if pool else {})


def test_a_trial_has_a_fixed_size() -> None:
    sized = tiny_config(train={"workers": 2, "node_labels": {"pool": "train"}})
    assert Need.of(sized, 0.5) == Need(2, 1.0, 0.0, 0.5, {"pool": "train"}, {})
    with pytest.raises(ConfigError, match=r"train\.workers=1\.\.2: trials lie side by side"):
        Need.of(tiny_config(train={"workers": "1..2"}), 0.5)


@pytest.mark.parametrize(
    ("nodes", "need", "expected"),
    [
        (_nodes(2), _need(1, 1.0), 1),
        (_nodes(2), _need(2, 0.5), 1),
        (_nodes(2), _need(1, 0.25, data=0.5), 2),
        (_nodes(2), _need(2, 1.0), 0),  # no CPU for Ray Data: it would hang
        (_nodes(1), _need(1, 0.5), 0),  # half a CPU is left, and a task wants a whole one
        (_nodes(), _need(1, 1.0), 0),
        (_nodes(8), _need(1, 1.0, data=0.0), 7),
        (_nodes(4, 4), _need(3, 1.0), 2),
        (_nodes(3, 3, 3), _need(1, 2.0), 3),  # the CPU that two workers leave on each node
        (_nodes(8, 8, gpus=4), _need(4, 1.0, gpus=1.0, data=2.0), 2),
        (_nodes(8, gpus=1), _need(2, 1.0, gpus=1.0), 0),
        (
            [*_nodes(4, gpus=4, labels={"pool": "train"}), *_nodes(2, labels={"pool": "data"})],
            _need(2, 1.0, pool="train"),
            2,
        ),
        ([*_nodes(4, labels={"pool": "train"})], _need(2, 1.0, pool="train"), 0),  # nowhere to decode
        ([Node({"CPU": 4.0}, None)] * 2, _need(1, 1.0, pool="train"), 4),  # nodes that are yet to come
    ],
)
def test_as_many_trials_as_can_never_wait_for_each_other(nodes: list[Node], need: Need, expected: int) -> None:
    assert fitting(nodes, need) == expected


def test_drivers_are_bounded_by_the_heads_memory() -> None:
    head, other = Node({HEAD: 1.0, "memory": 9.0 * 2**30}, {}), Node({"memory": 900.0 * 2**30}, {})
    assert drivers_on_head([head, other]) == 4
    assert drivers_on_head([other]) == 1

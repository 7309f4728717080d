"""A real population as its own process, killed when one member was to copy another: λ changes inside a trial."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ito_ray.config.load import to_yaml
from ito_ray.runtime.shelf import name_of
from tests.runtime.shards import small_config
from tests.tune.sweep_process import last_words, start_search
from tune.book import Book, Trial

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
STEPS, EVERY = 8, 4
NAME = "small-ito_lambda"
RECIPE, MEMBER = "p000-s9", "p001-s9"
OBJECTIVE = "geometry/alignment"
"""Rises in the recipe's first steps and falls in its next ones: who copies it and then stands still is ahead."""
LAMBDA, FIRST, RECIPES = "method.fusion_weight", 0.5, 2.0


def _start(tmp: Path, *, places: int) -> subprocess.Popen[str]:
    """The recipe, and a member whose rate lets it learn nothing.

    With one place the member comes to the comparison after the recipe, whatever the machine.
    """
    if not (tmp / "config.yaml").exists():
        train = {"steps": STEPS, "seed": 9, "cpus_per_worker": 0.25, "max_failures": 0}
        optim = {"lr": 1e-4}
        cfg = small_config(tmp, train=train, optim=optim, eval={"every": EVERY, "zero_shot": []})
        (tmp / "config.yaml").write_text(to_yaml(cfg))
    options = ["--config", str(tmp / "config.yaml"), "--space", "ito_lambda", "--points", "2", "--scheduler", "pbt"]
    options += ["--searcher", "grid", "--grid-points", "2", "--objective", OBJECTIVE]
    options += ["--axis", f"{LAMBDA}={FIRST}..8:log", "optim.lr=1e-9..2e-9:log"]
    options += ["--confirm", "0", "--concurrent", str(places), "--data-cpus", "0.5"]
    return start_search(options)


def _book(tmp: Path) -> Book:
    return Book(tmp / "runs" / NAME / "book.jsonl", read_only=True)


def _wait(process: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not what():
        assert process.poll() is None and time.monotonic() < deadline, last_words(process)
        time.sleep(0.1)


def test_a_member_goes_on_from_the_donors_checkpoint_with_another_weight(tmp_path: Path) -> None:
    def member() -> Trial | None:
        return _book(tmp_path).trials.get(MEMBER)

    killed = _start(tmp_path, places=1)
    _wait(killed, lambda: bool((one := member()) and one.turns))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (turn,) = _book(tmp_path).trials[MEMBER].turns
    assert (turn.step, turn.donor) == (EVERY, RECIPE) and turn.changes[LAMBDA] not in (FIRST, RECIPES)

    last = _start(tmp_path, places=2)
    trials = tmp_path / "runs" / NAME / "trials"
    weights = f"{name_of(EVERY)}/method.safetensors"
    taken, held = trials / MEMBER / f"{MEMBER}-from-{EVERY}" / weights, trials / RECIPE / "held" / weights
    _wait(last, taken.exists)
    assert taken.samefile(held)
    printed = last.communicate(timeout=600)[0]
    assert last.returncode == 0 and "Traceback" not in printed, printed
    book = _book(tmp_path)
    assert book.sessions == 2 and book.trials[MEMBER].turns == [turn], "the word is the same after the kill"
    for trial in book.trials.values():
        assert trial.state == "finished" and [step for step, _ in trial.curve] == [EVERY, STEPS]
    assert book.spent.steps == 2 * STEPS
    before, after = book.trials[RECIPE].values(EVERY), book.trials[MEMBER].values(STEPS)
    assert before and after and after[OBJECTIVE] == pytest.approx(before[OBJECTIVE], rel=1e-4), "the donor's weights"
    _the_curves_tell_it(tmp_path, turn.changes[LAMBDA])
    report = tmp_path / "runs" / NAME / "report"
    assert "Schedule of point 1" in (report / "index.html").read_text("utf-8")
    assert (report / f"course-{LAMBDA}.png").is_file()
    assert not list(trials.rglob("step-*")), "the search keeps no weights"


def _the_curves_tell_it(tmp: Path, weight: float) -> None:
    client = MlflowClient(f"sqlite:///{tmp / 'runs' / 'mlflow' / 'mlflow.db'}")
    runs = {run.info.run_name: run.info.run_id for run in client.search_runs(["1"])}
    assert runs.keys() == {NAME, RECIPE, MEMBER}

    def curve(key: str, name: str) -> list[float]:
        points = sorted(client.get_metric_history(runs[key], name), key=lambda one: one.step)
        assert [point.step for point in points] == list(range(1, STEPS + 1)), (key, name)
        return [point.value for point in points]

    assert curve(RECIPE, f"pbt/{LAMBDA}") == [RECIPES] * STEPS
    assert curve(MEMBER, f"pbt/{LAMBDA}") == [FIRST] * EVERY + [weight] * (STEPS - EVERY)
    for name in ("train/loss/align", "train/loss/fusion"):
        ours, donors = curve(MEMBER, name), curve(RECIPE, name)
        assert ours[EVERY] == pytest.approx(donors[EVERY], rel=1e-5), "the same weights, samples and views"
        assert ours[EVERY - 1] != pytest.approx(donors[EVERY - 1], rel=1e-5)
    align, fusion, total = (curve(MEMBER, f"train/loss/{name}") for name in ("align", "fusion", "total"))
    assert total[EVERY] == pytest.approx(align[EVERY] + weight * fusion[EVERY], rel=1e-5)
    assert total[EVERY - 1] == pytest.approx(align[EVERY - 1] + FIRST * fusion[EVERY - 1], rel=1e-5)

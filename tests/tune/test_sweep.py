"""A real sweep as its own process: killed, interrupted, resumed to its end; and what MLflow then holds."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ito_ray.config.load import to_yaml
from tests.runtime.shards import small_config, write_shards
from tests.tune.sweep_process import last_words, start_search, trial_drivers
from tune.book import TEST, Book

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
BOOK = "book.jsonl"
STEPS, EVERY = 12, 4
NAME = "small-ito_lambda"
KEYS = ["p000-s0", "p001-s0", "p000-s1000"]
FAILED = "p001-s0"


def _start(tmp: Path) -> subprocess.Popen[str]:
    """The recipe and a point that cannot be trained, side by side on two CPUs."""
    if not (tmp / "config.yaml").exists():
        _write_config(tmp, cpus=0.25)
        write_shards(tmp / "test", 24, 1)
    options = ["--config", str(tmp / "config.yaml"), "--space", "ito_lambda", "--searcher", "grid", "--points", "2"]
    options += ["--axis", "method.fusion_weight=[0.5]", "optim.lr=[1.0e+30]", "--scheduler", "none"]
    options += ["--confirm", "1", "--test", str(tmp / "test"), "--concurrent", "2", "--data-cpus", "0.5"]
    return start_search(options)


def _write_config(tmp: Path, *, cpus: float) -> None:
    train = {"steps": STEPS, "cpus_per_worker": cpus, "checkpoint_every": EVERY, "max_failures": 0}
    cfg = small_config(tmp, train=train, eval={"every": EVERY, "zero_shot": []})
    (tmp / "config.yaml").write_text(to_yaml(cfg))


def _book(tmp: Path) -> Book:
    return Book(tmp / "runs" / NAME / BOOK, read_only=True)


def _wait_for_evaluations(tmp: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 900
    while sum(len(trial.curve) for trial in _book(tmp).trials.values()) < count:
        assert process.poll() is None and time.monotonic() < deadline, last_words(process)
        time.sleep(0.2)


def test_killed_interrupted_and_resumed_to_its_end(tmp_path: Path) -> None:
    killed = _start(tmp_path)
    _wait_for_evaluations(tmp_path, 1, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    known = set(_book(tmp_path).trials)
    assert known == set(KEYS[:2])

    interrupted = _start(tmp_path)
    deadline = time.monotonic() + 400
    while _book(tmp_path).sessions < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(5.0)
    interrupted.send_signal(signal.SIGINT)
    printed = interrupted.communicate(timeout=400)[0]
    assert interrupted.returncode == 130, printed
    assert "To resume: python -m tune.search --config" in printed and "Traceback" not in printed

    last = _start(tmp_path)
    printed = last.communicate(timeout=900)[0]
    assert last.returncode == 0, printed
    assert "resumed: " in printed and "Traceback" not in printed, printed
    _the_book_tells_it_all(_book(tmp_path))
    _mlflow_holds_one_parent_and_each_trial_once(tmp_path)
    assert (tmp_path / "runs" / NAME / "report" / "index.html").is_file()
    weights = tmp_path / "runs" / NAME / "trials"
    assert not list(weights.glob("*-s0/step-*")) and list(weights.glob("*-s1000/step-*"))


def _the_book_tells_it_all(book: Book) -> None:
    assert book.sessions == 3
    assert sorted(book.trials) == sorted(KEYS), "nothing lost, nothing twice"
    failed = book.trials[FAILED]
    assert failed.state == "failed" and "not finite" in failed.reason and "1e+30" in failed.reason
    for key in set(KEYS) - {FAILED}:
        assert book.trials[key].state == "finished", (key, book.trials[key])
        assert [step for step, _ in book.trials[key].curve] == [4, 8, 12]
    assert book.spent.steps == 2 * STEPS and book.spent.seconds > 10
    scores = book.notes[TEST]["scores"]
    assert {point: len(seeds) for point, seeds in scores.items()} == {"0": 1}


def _mlflow_holds_one_parent_and_each_trial_once(tmp: Path) -> None:
    client = MlflowClient(f"sqlite:///{tmp / 'runs' / 'mlflow' / 'mlflow.db'}")
    runs = client.search_runs(["1"])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.run_name, parent.info.status) == (NAME, "FINISHED")
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert sorted(children) == sorted(KEYS) and len(runs) == len(KEYS) + 1
    for key, run in children.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == ("FAILED" if key == FAILED else "FINISHED"), key
    assert "not finite" in children[FAILED].data.tags["ito.stopped"]
    assert children[FAILED].data.params["method.fusion_weight"] == "0.5"
    assert children["p000-s1000"].data.params["train.seed"] == "1000"
    for key in set(KEYS) - {FAILED}:
        curve = client.get_metric_history(children[key].info.run_id, "train/loss/total")
        assert [point.step for point in sorted(curve, key=lambda one: one.step)] == list(range(1, STEPS + 1)), key
    assert {"sweep/index.html", f"sweep/{BOOK}"} <= {
        file.path for file in client.list_artifacts(parent.info.run_id, "sweep")
    }


@pytest.mark.parametrize(("kills", "state"), [(1, "finished"), (2, "crashed")])
def test_a_trial_whose_driver_is_killed_starts_once_more(kills: int, state: str, tmp_path: Path) -> None:
    """From its checkpoint, in its MLflow run; what its workers had reserved on two CPUs does not stay reserved."""
    _write_config(tmp_path, cpus=1.0)
    options = ["--config", str(tmp_path / "config.yaml"), "--space", "ito_lambda", "--points", "1"]
    sweep = start_search([*options, "--scheduler", "none", "--confirm", "0"])
    for kill in range(kills):
        _wait_for_evaluations(tmp_path, kill + 1, sweep)
        (driver,) = trial_drivers(sweep.pid)
        driver.kill()
    printed = sweep.communicate(timeout=600)[0]
    (trial,) = _book(tmp_path).trials.values()
    assert trial.state == state, printed
    assert [step for step, _ in trial.curve] == [4, 8, 12][: 3 if state == "finished" else 2]
    runs = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow' / 'mlflow.db'}").search_runs(["1"])
    (child,) = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    if state == "finished":
        assert (sweep.returncode, child.info.status) == (0, "FINISHED"), printed
    else:
        assert sweep.returncode == 2 and "lost after 8 steps, 2 times" in printed, printed
        assert child.info.status == "FAILED" and "lost after 8 steps" in child.data.tags["ito.stopped"]

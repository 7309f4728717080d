"""A sweep's runs: nested, one for each trial however many write at once, closed by whoever is left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ito_ray.errors import TrackingError
from ito_ray.tracking.provenance import dataset_identity
from ito_ray.tracking.run import TrackedRun, open_run
from ito_ray.tracking.sweep import STOPPED, SWEEP, child_tags, children, fetch_file, settle
from tests.tiny import tiny_config

WRITERS = 8


def _open(tmp: Path, name: str) -> TrackedRun:
    cfg = tiny_config(name=name, output=str(tmp / name.split("-")[0]), tracking={"uri": f"sqlite:///{tmp / 'm.db'}"})
    identity = dataset_identity("d", ["a.tar"], [("a.tar", 1)])
    return open_run(cfg, recipe="tiny", dataset=identity, versions={"torch": "1"}, git="abc")


@pytest.mark.slow
def test_eight_trials_write_at_once_and_each_has_one_run(tmp_path: Path) -> None:
    parent = _open(tmp_path, "sweep")
    parent.set_tags({SWEEP: "sweep"})

    def trial(number: int) -> None:
        for _ in range(2):  # started, and started again after its driver was lost
            run = _open(tmp_path, f"trial-{number}")
            run.set_tags(child_tags(parent, "sweep"))
            for step in range(5):
                run.log(step, {"train/loss": float(step)})
        if number % 2:
            run.finish()

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(trial, range(WRITERS)))
    found = {run.info.run_name: run for run in children(parent)}
    assert len(children(parent)) == len(found) == WRITERS
    for run in found.values():
        curve = parent.client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted(point.step for point in curve) == list(range(5))

    settle(parent, {f"trial-{number}": ("KILLED", "interrupted") for number in range(WRITERS) if number != 6})
    status = {run.info.run_name: (run.info.status, run.data.tags.get(STOPPED)) for run in children(parent)}
    assert status["trial-0"] == ("KILLED", "interrupted")
    assert status["trial-1"] == ("FINISHED", None), "what has ended is left alone"
    assert status["trial-6"] == ("RUNNING", None)

    (tmp_path / "book.jsonl").write_text("{}\n")
    parent.log_file(tmp_path / "book.jsonl", "sweep")
    assert fetch_file(parent.store, "ito", "sweep", "sweep/book.jsonl") == b"{}\n"
    with pytest.raises(TrackingError, match="no sweep 'other'"):
        fetch_file(parent.store, "ito", "other", "sweep/book.jsonl")
    with pytest.raises(TrackingError, match=r"holds no sweep/none\.jsonl"):
        fetch_file(parent.store, "ito", "sweep", "sweep/none.jsonl")

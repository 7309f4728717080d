"""Whatever ends a sweep, no run of it stays RUNNING."""

from __future__ import annotations

from pathlib import Path

import pytest

from ito_ray.errors import TrackingError
from ito_ray.tracking.provenance import dataset_identity
from ito_ray.tracking.run import TrackedRun, open_run
from ito_ray.tracking.sweep import STOPPED, child_tags
from tests.tiny import tiny_config
from tune.book import Book, Job
from tune.parent import closing


def _open(folder: Path, name: str) -> TrackedRun:
    cfg = tiny_config(name=name, output=str(folder), tracking={"uri": f"sqlite:///{folder / 'mlflow.db'}"})
    return open_run(cfg, recipe="tiny", dataset=dataset_identity("d", [], [("a.tar", 1)]), versions={}, git="")


@pytest.mark.parametrize("error", [ValueError("before the first trial"), KeyboardInterrupt()])
@pytest.mark.parametrize("away", [False, True])
def test_runs_of_a_sweep_end_with_it(
    tmp_path: Path, error: BaseException, away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, child = _open(tmp_path, "sweep"), _open(tmp_path, "p000-s0")
    child.set_tags(child_tags(parent, "sweep"))

    def refuse(*_: object, **__: object) -> None:
        raise TrackingError("the server is away")

    with Book(tmp_path / "book.jsonl") as book:
        book.open_session({})
        book.started(Job(0, 0, "search", {}))
        if away:
            monkeypatch.setattr("tune.parent.settle", refuse)
        with pytest.raises(type(error)), closing(parent, book):
            raise error
    status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    assert parent.client.get_run(parent.run_id).info.status == status
    if not away:
        found = child.client.get_run(child.run_id)
        assert (found.info.status, found.data.tags[STOPPED]) == ("KILLED", "interrupted")

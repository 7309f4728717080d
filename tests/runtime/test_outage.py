"""A store that loses a shard for a while, and workers that are killed in that time and after it: the run ships."""

from __future__ import annotations

import io
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from benchmarks.faults import Scene, kill_training_worker, until
from ito_ray.config.schema import Config
from ito_ray.data.position import Position
from ito_ray.runtime import job, trainer
from ito_ray.runtime.console import Stages
from ito_ray.training.state import read_state
from tests.data.store import Store, serving
from tests.runtime.recorded import recording
from tests.runtime.shards import small_config

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]
STEPS, EVERY, BATCH = 40, 5, 16
LOST = "part-002.tar"


def _config(tmp: Path, store: Store) -> Config:
    address = store.url("*.tar").replace("s3://", "s3://user:word@")  # pragma: allowlist secret
    return small_config(
        tmp,
        name="outage",
        data={"train": [address], "max_bad_fraction": 0.9},
        train={"steps": STEPS, "checkpoint_every": EVERY, "global_batch": BATCH},
    )


def _hit(scene: Scene, store: Store) -> None:
    """Entries that were read whole are read again without a shard, and those are read again with it."""
    until(lambda: scene.step() >= 8 and scene.newest(), "step 8")
    store.fault = lambda method, key: 404 if key == LOST else None
    kill_training_worker(scene)
    until(lambda: scene.step() >= 18, "step 18")
    store.fault = lambda method, key: None
    kill_training_worker(scene)


def _run(cfg: Config) -> tuple[job.Outcome, str]:
    console = Console(file=io.StringIO(), width=200, record=True)
    outcome = job.run(cfg, recipe="tiny", stages=Stages(console, job.STAGES))
    return outcome, console.export_text()


def test_an_outage_with_killed_workers_ends_in_a_registered_model_and_a_true_account(tmp_path: Path) -> None:
    (tmp_path / "record").mkdir()
    small_config(tmp_path)
    with serving(tmp_path / "train") as store:
        cfg = _config(tmp_path, store)
        scene = Scene(cfg, tmp_path / "record", os.getpid(), random.Random(0))
        with recording(scene.record, pace=0.1), ThreadPoolExecutor(1) as pool:
            hits = pool.submit(_hit, scene, store)
            outcome, said = _run(cfg)
            hits.result()
        _check(cfg, outcome.training, said)
        record = tmp_path / "runs" / cfg.name / "training.json"
        before = json.loads(record.read_text())
        record.unlink()  # as if the driver had been killed before it was written
        again, said = _run(cfg)
        _check(cfg, again.training, said)
        assert outcome.registered.version == "1" and again.registered.model_name == outcome.registered.model_name
    after = json.loads(record.read_text())
    kept = ("rows_delivered", "mismatch")
    assert [after[name] for name in kept] == [before[name] for name in kept]


def _check(cfg: Config, training: job.Training, said: str) -> None:
    assert training.mismatch == "" and "does not add up" not in said
    (account,) = training.sources.values()
    dropped = account.get("dropped/shard_unreadable", 0)
    assert account["delivered"] == STEPS * BATCH
    assert account["read"] == account["delivered"] + account["pending"] + dropped
    folder = Path(cfg.output) / cfg.name
    newest = trainer.latest_checkpoint(cfg)
    assert newest is not None
    position = Position.from_json(read_state(newest).position)
    assert position.seen.total() == STEPS * BATCH and position.repeats == 0
    listed = folder / "quarantine.parquet"
    lost = pq.read_table(listed).to_pylist() if listed.is_file() else []
    assert len(lost) == dropped and all(LOST in row["shard"] for row in lost)

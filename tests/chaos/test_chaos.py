"""One run, hit where it hurts: a worker is killed, then the newest checkpoint is truncated under another, then Ray
Train's controller is killed, then the next one cannot write its list of checkpoints. It reaches its steps by itself,
and nothing is lost or there twice.

`python -m benchmarks.chaos` has all faults, at drawn moments, and the same with whole nodes.
"""

from __future__ import annotations

import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from ray.util import placement_group_table

from benchmarks.faults import (
    Scene,
    damage_newest_and_kill_worker,
    kill_controller,
    kill_training_worker,
    problems_of_samples,
    refuse_listing,
    until,
)
from ito_ray.config.schema import Config
from ito_ray.runtime import preflight, trainer
from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.runtime.snapshot import DAMAGED
from ito_ray.training.manifest import damage
from ito_ray.training.state import read_state
from tests.runtime.recorded import recording
from tests.runtime.shards import small_config

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]
STEPS, EVERY = 50, 5
PACE = 0.1


def _config(tmp: Path) -> Config:
    return small_config(tmp, name="chaos", train={"steps": STEPS, "checkpoint_every": EVERY})


def _hit(scene: Scene) -> list[str]:
    """Each fault between two checkpoints; the name of the damaged one."""
    until(lambda: scene.step() >= 8, "step 8")
    kill_training_worker(scene)
    until(lambda: scene.step() >= 18 and scene.newest(), "step 18")
    newest = scene.newest()
    assert newest is not None
    damage_newest_and_kill_worker(scene)
    until(lambda: scene.step() >= 28, "step 28")
    kill_controller(scene)
    until(lambda: scene.step() >= 38, "step 38")
    refuse_listing(scene)
    return [newest.name]


def test_a_run_survives_worker_checkpoint_controller_and_list(tmp_path: Path) -> None:
    cfg = _config(tmp_path)
    data = preflight.plan_data(cfg)
    folder = tmp_path / "runs" / "chaos"
    preflight.prepare_tokenizer(cfg, data.plan, folder / "tokenizer")
    record = tmp_path / "record"
    record.mkdir()
    curve: dict[int, float] = {}
    told: list[str] = []

    def on_metrics(step: int, metrics: dict[str, float]) -> None:
        if "train/loss/total" in metrics:
            curve.setdefault(step, metrics["train/loss/total"])

    scene = Scene(cfg, record, os.getpid(), random.Random(0))
    with recording(record, pace=PACE), ThreadPoolExecutor(1) as pool:
        hits = pool.submit(_hit, scene)
        listener = trainer.Listener(on_metrics, tell=told.append)
        trained = trainer.fit(cfg, data, TokenizerFiles.read(folder / "tokenizer"), listener)
        (damaged,) = hits.result()

    assert problems_of_samples(cfg, record, data.plan, trained.checkpoint, passes=5) == []
    assert sorted(curve) == list(range(1, STEPS + 1)), "one unbroken curve"
    (account,) = trained.accounts.values()
    assert account.delivered == STEPS * cfg.train.global_batch and account.read == account.delivered + account.pending
    assert read_state(trained.checkpoint).step == STEPS and damage(trained.checkpoint) == ""
    aside = folder / f"{DAMAGED}{damaged}"
    assert "method.safetensors has" in damage(aside), "it was kept"
    assert any(damaged in text and "set aside" in text for text in told)
    assert any("controller was lost" in text for text in told)
    assert any("controller failed" in text and "checkpoint_manager_snapshot.json" in text for text in told)
    until(lambda: not scene.processes("ray::RayTrainWorker"), "the workers' end", 120)
    until(lambda: not scene.processes("ray::TrainController"), "the controllers' end", 120)
    states = {group["state"] for group in placement_group_table().values()}
    assert states <= {"REMOVED"}, "nothing holds CPUs that the next run needs"
    until(lambda: ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"], "all CPUs free", 120)
    shutil.rmtree(aside)

"""A run on a cluster that gains a node and loses it: writes what its ranks were given. Run by test_elastic.py.

The head makes samples; each other node has room for one rank. Steps that wait for files make the course certain: the
node comes long before a checkpoint is due and is lost soon after one.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from benchmarks.faults import given, lines, problems_of_samples, until
from ito_ray.config.schema import Config
from ito_ray.runtime import preflight, trainer
from ito_ray.runtime.access import require_token
from ito_ray.runtime.elastic import LOOK_SECONDS
from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.runtime.shelf import name_of
from ito_ray.runtime.snapshot import COPY
from ito_ray.tracking.provenance import dataset_identity
from ito_ray.tracking.run import TrackedRun, open_run
from tests.runtime.recorded import recording
from tests.runtime.shards import small_config

STEPS, BATCH = 26, 16
CUT = 16
"""Every how many steps there is a checkpoint: the one that two ranks leave before one is lost."""
SEEN, NO_FURTHER, LOST = 6, 11, CUT + 2
"""Steps at which the first node's rank waits for the second node, then to be ended, and the two until one is killed."""
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_enable_metrics_collection": "0",
    "RAY_raylet_start_wait_time_s": "120",  # a busy machine is no failure
}
"""Of this process: Ray reads some of it when it is imported."""


def _config(folder: Path, parallel: str) -> Config:
    train = {
        "steps": STEPS,
        "workers": "1..2",
        "cpus_per_worker": 1.0,
        "checkpoint_every": CUT,
        "max_failures": 1,
        "parallel": parallel,
        "node_labels": {"pool": "train"},
    }
    return small_config(folder, name="elastic", train=train, data={"node_labels": {"pool": "data"}})


def _fit(cfg: Config, record: Path) -> tuple[Path, TrackedRun, list[int]]:
    """Train; the last checkpoint, the run in MLflow, and the numbers of workers in the order of the news of them."""
    data = preflight.plan_data(cfg)
    folder = Path(cfg.output) / cfg.name
    preflight.prepare_tokenizer(cfg, data.plan, folder / "tokenizer")
    identity = dataset_identity(cfg.name, cfg.data.train, [(shard.url, shard.size) for shard in data.shards])
    tracked = open_run(cfg, recipe="test", dataset=identity, versions={}, git="")
    told: list[int] = []

    def on_metrics(step: int, metrics: Mapping[str, float]) -> None:
        tracked.log(step, metrics)
        if (workers := int(metrics.get("train/workers", 0))) and told[-1:] != [workers]:
            told.append(workers)

    with recording(
        record, pace=0.05, holds={(1, SEEN): "seen", **dict.fromkeys(((1, NO_FURTHER), (2, LOST)), "never")}
    ):
        trained = trainer.fit(cfg, data, TokenizerFiles.read(folder / "tokenizer"), trainer.Listener(on_metrics))
    return trained.checkpoint, tracked, told


def _reached(record: Path, ranks: int, step: int, run: Future[Any]) -> None:
    """Wait until that many ranks were given that step's samples."""

    def reached() -> bool:
        if run.done():
            raise RuntimeError(f"the run ended before step {step} of {ranks} ranks: {run.exception() or run.result()}")
        return sum(one[1:3] == (step, ranks) for one in lines(record)) == ranks

    until(reached, f"step {step} with {ranks} ranks", 180)


def _found(cfg: Config, record: Path, checkpoint: Path, tracked: TrackedRun) -> dict[str, Any]:
    passes = 3  # of the four that are in the steps
    steps = range(1, STEPS + 1)
    by_rank = given(record)
    last = {step: ranks for _, step, ranks, _, _ in lines(record)}
    history = {
        name: {one.step: one.value for one in tracked.client.get_metric_history(tracked.run_id, f"train/{key}")}
        for name, key in (("loss", "loss/total"), ("lr", "lr"))
    }
    return {
        "problems": problems_of_samples(cfg, record, preflight.plan_data(cfg).plan, checkpoint, passes),
        "sizes": last,
        "pairs": {step: sum(len(uids) for (at, _), uids in by_rank.items() if at == step) for step in steps},
        **history,
    }


def main(folder: Path, parallel: str) -> None:
    """The run in a thread: nodes are added by the main one."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    noticed = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    head = {"num_cpus": 2, "labels": {"pool": "data"}, "include_dashboard": False, "_system_config": noticed}
    require_token()
    cluster = Cluster(initialize_head=True, head_node_args=head)
    record = folder / "record"
    record.mkdir()
    cfg = _config(folder, parallel)
    rank: dict[str, Any] = {"num_cpus": 1, "labels": {"pool": "train"}, "object_store_memory": 100 << 20}
    cluster.add_node(**rank)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    with ThreadPoolExecutor(1) as pool:
        preflight.require_resources(cfg)
        assert preflight.starting_with(cfg) == 1
        run = pool.submit(_fit, cfg, record)
        _reached(record, 1, SEEN, run)
        second = cluster.add_node(**rank)
        until(lambda: preflight.starting_with(cfg) == 2, "the second node", 60)
        time.sleep(LOOK_SECONDS + 2)  # until the policy has seen it too
        (record / "seen").touch()
        _reached(record, 2, LOST, run)
        listed = Path(cfg.output) / cfg.name / COPY
        until(lambda: name_of(CUT) in listed.read_text(), "the checkpoint before the loss", 60)
        cluster.remove_node(second, allow_graceful=False)
        checkpoint, tracked, told = run.result(180)
    # One failure is allowed: had growing counted as one, the loss would have ended the run.
    found = {**_found(cfg, record, checkpoint, tracked), "workers": told}
    (folder / "found.json").write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

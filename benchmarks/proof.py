"""What must hold of a run that has ended, whatever was done to it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mlflow import MlflowClient

from benchmarks.command import Command
from benchmarks.faults import problems_of_samples
from ito_ray.runtime import trainer
from ito_ray.runtime.preflight import plan_data
from ito_ray.tracking.run import resolve_store
from ito_ray.training.manifest import damage

LOSS = "train/loss/total"
LAST = 10
"""Steps whose mean loss is compared, of a run of 60."""
TOLERANCE = 0.3
"""Between the two: other batches after a resume, and steps of 16 pairs. Set by eye for runs of 60 steps. Two
undisturbed ones of 522 steps, with other seeds, were 0.31 apart in the last 10 steps, and 0.17 in the last 100
(2026-11-29)."""
SAMPLES = 96
"""Of the shards that the command trains on."""


def curve(command: Command) -> list[float]:
    """The losses in MLflow by step, of the only run; raises when one is missing or there twice."""
    uri = resolve_store(command.cfg.tracking.uri, command.cfg.output).uri
    if uri.startswith("http"):
        uri = f"sqlite:///{command.folder}/mlflow.db"
    client = MlflowClient(uri)
    (run,) = client.search_runs(["1"])
    points = client.get_metric_history(run.info.run_id, LOSS)
    steps = list(range(1, command.cfg.train.steps + 1))
    if sorted(point.step for point in points) != steps or run.info.status != "FINISHED":
        raise RuntimeError(f"{len(points)} points in MLflow, run {run.info.status}")
    return [point.value for point in sorted(points, key=lambda point: point.step)]


def last_loss(losses: Sequence[float], last: int = LAST) -> float:
    """The mean of the last ones; NaN of none."""
    return statistics.fmean(losses[-last:]) if losses else float("nan")


def problems_at_end(command: Command) -> list[str]:
    """What contradicts "the newest checkpoint is whole, every step was taken, and every sample of a pass once"."""
    cfg = command.cfg
    told: list[str] = []
    newest = trainer.latest_checkpoint(cfg, told.append)
    if newest is None or told or damage(newest):
        return [f"no good checkpoint at the end: {told}"]
    passes = (cfg.train.steps - cfg.train.checkpoint_every) * cfg.train.global_batch // SAMPLES
    return problems_of_samples(cfg, command.record, plan_data(cfg).plan, newest, passes)


def spread(values: Sequence[float], digits: int) -> str:
    """Lowest and highest."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"

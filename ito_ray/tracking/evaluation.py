"""Evaluations and the runs they are about: curves to show beside the numbers, and where the numbers go."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from ito_ray.tracking.run import SERVER, Store, open_client, open_experiment, refusals

FOLDER = "evaluation"
PREFIX = "evaluate/"
_CURVES = ("train/loss", "train/geometry/", "eval/")


def read_curves(run_id: str, store: Store) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of the losses, the geometry and the evaluations that a run logged, by metric name.

    Raises:
        TrackingError: no such run.
    """
    client = open_client(store)
    with refusals(f"give the run {run_id!r}", store, kind=SERVER):
        names = [name for name in client.get_run(run_id).data.metrics if name.startswith(_CURVES)]
        return {
            name: sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))
            for name in sorted(names)
        }


def require_run(run_id: str, store: Store, experiment: str) -> None:
    """Refuse a run that is not there, or an experiment that gives no `new` one, before anything is measured.

    Raises:
        TrackingError: no such run, or no such experiment.
    """
    client = open_client(store)
    if run_id == "new":
        open_experiment(client, store, experiment)
        return
    with refusals(f"give the run {run_id!r}", store, kind=SERVER):
        client.get_run(run_id)


def run_behind(uri: str, store: Store) -> str:
    """Id of the run that trained a registered model; "" when the registry does not know."""
    if uri.startswith("runs:/"):
        return uri.removeprefix("runs:/").split("/")[0]
    name = uri.removeprefix("models:/")
    client = open_client(store)
    try:
        if "@" in name:
            version = client.get_model_version_by_alias(*name.split("@", 1))
        else:
            version = client.get_model_version(*name.split("/", 1))
    except (MlflowException, TypeError):
        return ""  # loading the model tells what is wrong with the address
    return str(version.run_id or "")


def log_evaluation(
    metrics: Mapping[str, float], files: Sequence[Path], *, store: Store, run_id: str, experiment: str, name: str
) -> str:
    """Put the numbers as `evaluate/…` and the files into a run; returns its id.

    Args:
        metrics: by name.
        files: become artifacts below `evaluation`.
        store: tracking server.
        run_id: an existing run; empty = a new one.
        experiment: of a new run, created when missing.
        name: of a new run.

    Raises:
        TrackingError: no such run, or the store refuses.
    """
    client = open_client(store)
    with refusals("take the evaluation", store, kind=SERVER):
        if not run_id:
            run_id = str(client.create_run(open_experiment(client, store, experiment), run_name=name).info.run_id)
            client.set_terminated(run_id)
        now = int(time.time() * 1000)
        points = [Metric(PREFIX + key, float(value), now, 0) for key, value in metrics.items()]
        for start in range(0, len(points), 500):
            client.log_batch(run_id, metrics=points[start : start + 500])
        for file in files:
            client.log_artifact(run_id, str(file), FOLDER)
    return run_id

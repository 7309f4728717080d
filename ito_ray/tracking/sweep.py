"""A sweep in MLflow: one parent run, its trials nested below it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Run, RunStatus
from mlflow.exceptions import MlflowException

from ito_ray.errors import TrackingError
from ito_ray.tracking.aliases import quoted
from ito_ray.tracking.run import SERVER, Status, Store, TrackedRun, open_client, refusals

PARENT = "mlflow.parentRunId"
SWEEP = "ito.sweep"
STOPPED = "ito.stopped"
"""Why a trial ended."""
PAGE = 1000


def child_tags(parent: TrackedRun, sweep: str) -> dict[str, str]:
    """Tags that put a run below its sweep's."""
    return {PARENT: parent.run_id, SWEEP: sweep}


def children(parent: TrackedRun) -> list[Run]:
    """The runs of all trials."""
    found: list[Run] = []
    token: str | None = None
    while token or not found:
        with refusals("list the trials", parent.store, kind=SERVER):
            page = parent.client.search_runs(
                [parent.experiment_id], f"tags.`{PARENT}` = '{parent.run_id}'", max_results=PAGE, page_token=token
            )
        found += page
        token = page.token
        if not token:
            break
    return found


def settle(parent: TrackedRun, endings: Mapping[str, tuple[Status, str]]) -> None:
    """Close the runs of trials that could not do it themselves.

    Args:
        endings: status and reason by the name of the run; others are left alone.
    """
    for run in children(parent):
        ending = endings.get(str(run.info.run_name))
        if ending and RunStatus.from_string(run.info.status) == RunStatus.RUNNING:
            status, reason = ending
            with refusals(f"mark the trial {run.info.run_name} as {status}", parent.store, kind=SERVER):
                parent.client.set_tag(run.info.run_id, STOPPED, reason)
                parent.client.set_terminated(run.info.run_id, status)


def fetch_file(store: Store, experiment: str, sweep: str, path: str) -> bytes:
    """What is in a file that a sweep's parent run holds.

    Raises:
        TrackingError: no such sweep, or it holds no such file.
    """
    client = open_client(store)
    query = f"tags.`{SWEEP}` = {quoted(sweep)} and attributes.run_name = {quoted(sweep)}"
    with refusals(f"search the sweep {sweep!r}", store, kind=SERVER):
        found = client.get_experiment_by_name(experiment)
        runs = client.search_runs([found.experiment_id], query, max_results=1) if found else []
    if not runs:
        raise TrackingError(
            f"There is no sweep {sweep!r} in the experiment {experiment!r} of {store.uri}: give the name of one, or "
            "another tracking.uri."
        )
    try:
        with tempfile.TemporaryDirectory(prefix="ito-sweep-") as scratch:
            return Path(client.download_artifacts(runs[0].info.run_id, path, scratch)).read_bytes()
    except (MlflowException, OSError) as error:
        raise TrackingError(f"The sweep {sweep!r} in {store.uri} holds no {path}: has it come to its end?") from error

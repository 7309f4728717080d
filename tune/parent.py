"""What every kind of sweep does around its trials: its own MLflow run, the ends of theirs, and Ray Tune kept quiet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from ito_ray.config.schema import Config
from ito_ray.errors import TrackingError
from ito_ray.redact import without_secrets
from ito_ray.runtime import preflight
from ito_ray.tracking.provenance import dataset_identity, git_commit, installed_versions
from ito_ray.tracking.run import Status, TrackedRun, failing, open_run
from ito_ray.tracking.sweep import SWEEP, settle
from tune.book import Book, State

ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the configuration start from where the command was given
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the book and MLflow have everything
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # nobody resumes from Ray Tune's snapshots
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has no metric to report
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command like any other
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints a banner however quiet it is told to be
}
STATUS: Mapping[State, Status] = {
    "open": "KILLED",
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "crashed": "FAILED",
}


def open_parent(
    cfg: Config, name: str, *, recipe: str, tags: Mapping[str, str], data: preflight.TrainingData
) -> TrackedRun:
    """The MLflow run that those of the trials hang below.

    Args:
        cfg: what all trials share.
        name: the sweep's.
        recipe: where `cfg` comes from.
        tags: besides those of every run.
        data: the training shards.
    """
    identity = dataset_identity(cfg.name, cfg.data.train, [(shard.url, shard.size) for shard in data.shards])
    named = cfg.model_copy(update={"name": name})
    tracked = open_run(named, recipe=recipe, dataset=identity, versions=installed_versions(), git=git_commit())
    with failing(tracked):
        tracked.set_tags({SWEEP: name, **tags})
    return tracked


@contextmanager
def closing(tracked: TrackedRun, book: Book) -> Iterator[None]:
    """Mark the sweep's run and those of its trials as ended when what is within raises."""
    with failing(tracked):
        try:
            yield
        except BaseException:
            with suppress(TrackingError):  # why the sweep has ended is to be told
                settle(tracked, endings(book))
            raise


def endings(book: Book, *, only_ended: bool = False) -> dict[str, tuple[Status, str]]:
    """How each trial's MLflow run is to be closed."""
    return {
        key: (STATUS[trial.state], trial.reason or ("interrupted" if trial.state == "open" else trial.state))
        for key, trial in book.trials.items()
        if trial.state != "open" or not only_ended
    }


def fields(cfg: Config) -> dict[str, Any]:
    """What may not change when a sweep goes on, by dotted name: all but names and places."""
    config = without_secrets(cfg.model_dump(mode="json", exclude={"tracking": True, "output": True, "name": True}))
    return {name: value for section in config.items() for name, value in _flat(*section)}


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        return [(prefix, value)]
    return [pair for name, below in value.items() for pair in _flat(f"{prefix}.{name}", below)]

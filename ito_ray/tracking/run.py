"""One MLflow run per training run, however often it is restarted, in whatever process."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from ito_ray import strict_json
from ito_ray.config.schema import Config
from ito_ray.errors import ItoError, TrackingError
from ito_ray.redact import redact, remember, without_secrets
from ito_ray.tracking.provenance import DatasetIdentity
from ito_ray.tracking.sqlite import SCHEME, database_of, sqlite_uri, without_strays

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
DATABRICKS = ("databricks", "databricks-uc")
RUN_KEY = "ito.run_key"
DATASET_CONTEXT = "mlflow.data.context"  # the tag that MLflow's page shows as the dataset's role
PARAMS_PER_CALL = 100
PARAM_LENGTH = 6000
METRICS_PER_CALL = 1000
SOURCE_LENGTH, NAME_LENGTH = 60_000, 500
"""Of a data set; MLflow takes 65,535 characters of a source."""
SERVER = "tracking server"
STORES = ("boto3.", "botocore.", "google.", "azure.")
"""Modules of the exceptions that artifact stores' clients raise through MLflow."""
Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Store:
    """An MLflow tracking server or SQLite file, and where its artifacts go."""

    uri: str = field(repr=False)
    """With its password, if it has one: for MLflow only."""
    artifacts: str | None
    """Artifact location for new experiments; None lets a server decide."""

    @property
    def address(self) -> str:
        """`uri` as it may be printed."""
        return redact(self.uri)


def resolve_store(uri: str, output: str) -> Store:
    """The store of `uri`; empty means that of MLFLOW_TRACKING_URI, else SQLite in `<output>/mlflow`.

    The embedded one gets an absolute path and its artifacts beside it: MLflow's defaults depend on the working folder.

    Raises:
        TrackingError: a plain folder (MLflow's file store is in maintenance mode), or an embedded store at a URL.
    """
    named = "tracking.uri" if uri else TRACKING_VARIABLE
    uri = uri or os.environ.get(TRACKING_VARIABLE, "")
    remember(uri)
    if uri in DATABRICKS:
        return Store(uri, None)
    if not uri:
        if "://" in output:
            raise TrackingError(
                f"tracking.uri is empty, but output={output} is no local folder for the embedded MLflow: set "
                "tracking.uri to a server or to sqlite:////absolute/path/mlflow.db."
            )
        return _embedded(Path(output) / "mlflow" / "mlflow.db")
    if uri.startswith(SCHEME):
        return _embedded(database_of(uri))
    if "://" not in uri or uri.startswith("file:"):
        raise TrackingError(
            f"{named}={uri} is a plain folder, which MLflow no longer writes to: use "
            f"sqlite:///{Path(uri.removeprefix('file://')).resolve() / 'mlflow.db'} or the address of a server."
        )
    return Store(uri, None)


def _embedded(database: Path) -> Store:
    database = database.resolve()
    return Store(sqlite_uri(database), (database.parent / "artifacts").as_uri())


@contextmanager
def refusals(action: str, store: Store, *, kind: str = "registry") -> Iterator[None]:
    """The errors of MLflow, its database, its artifact store and the network as one sentence.

    Raises:
        TrackingError: "The KIND … does not ACTION: …".
    """
    try:
        yield
    except Exception as error:
        known = isinstance(error, MlflowException | SQLAlchemyError | OSError)  # requests' errors are OSErrors
        if isinstance(error, ItoError) or not (known or type(error).__module__.startswith(STORES)):
            raise
        raise TrackingError(f"The {kind} {store.uri} does not {action}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Its first line; of MLflow's, without the number of its kind."""
    text = str(error.message if isinstance(error, MlflowException) else error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextmanager
def failing(run: TrackedRun) -> Iterator[None]:
    """Mark the run as failed, or as killed, when what is within raises; a run that stays RUNNING looks alive."""
    try:
        yield
    except BaseException as error:
        with suppress(TrackingError):  # why the work has ended is to be told
            run.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


@contextmanager
def exclusively(store: Store) -> Iterator[None]:
    """One process at a time for a SQLite store; a server needs no lock, its database has transactions.

    Two processes that open a new SQLite file at once would both create its tables, and one would fail.
    """
    if store.artifacts is None:
        yield
        return
    folder = database_of(store.uri).parent
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "mlflow.lock"):
        yield


def open_client(store: Store) -> MlflowClient:
    """A client of `store`; creates the tables of a new SQLite file."""
    try:
        with exclusively(store), without_strays(store.uri):
            client = MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)
            if store.artifacts is not None:
                client.search_registered_models(max_results=1)  # opens the file's second half, the registry, as well
            return client
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # the last: a database's driver
        raise TrackingError(f"tracking.uri={store.uri} cannot be opened: {_reason(error)}") from error


def open_experiment(client: MlflowClient, store: Store, name: str) -> str:
    """Id of the experiment, created when missing, also when another process creates it at the same time."""
    try:
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name, artifact_location=store.artifacts))
            except MlflowException:
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(
            f"tracking.uri={store.uri} does not give the experiment {name!r}: {_reason(error)} Is the server up and "
            "are you allowed to write?"
        ) from error
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"tracking.experiment={name} was deleted in {store.uri}: restore it there or take another name."
        )
    return str(found.experiment_id)


class TrackedRun:
    """A run to log to. Made by `open_run`."""

    def __init__(self, client: MlflowClient, store: Store, run: Run, *, reopened: bool) -> None:
        self.client = client
        self.store = store
        self.run_id = str(run.info.run_id)
        self.experiment_id = str(run.info.experiment_id)
        self.reopened = reopened
        self._last_steps: dict[str, int] = {}

    def last_step(self, name: str) -> int:
        """Step of the newest point of a curve, by any process; -1 when it has none."""
        if name not in self._last_steps:
            with self._refusals(f"give the curve {name}"):
                history = self.client.get_metric_history(self.run_id, name) if self.reopened else []
            self._last_steps[name] = max((point.step for point in history), default=-1)
        return self._last_steps[name]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one point to each curve, in one request.

        A step that a curve already has is left out: after a restart from a checkpoint the steps since then come
        again, and a curve keeps its first value.
        """
        self.log_steps([(step, int(time.time() * 1000), metrics)])

    def log_steps(self, steps: Sequence[tuple[int, int, Mapping[str, float]]]) -> None:
        """`log` of several (step, milliseconds since the epoch, metrics), in as few requests as MLflow takes."""
        points: list[Metric] = []
        last: dict[str, int] = {}
        for step, moment, metrics in steps:
            for name, value in metrics.items():
                if step > last.get(name, self.last_step(name)):
                    points.append(Metric(name, float(value), moment, step))
                    last[name] = step
        for start in range(0, len(points), METRICS_PER_CALL):
            some = points[start : start + METRICS_PER_CALL]
            with self._refusals("take metrics"):
                self.client.log_batch(self.run_id, metrics=some)
            self._last_steps.update((point.key, point.step) for point in some)

    def log_picture(self, path: Path) -> None:
        """Store a picture in the run's `pictures` folder; the same file name replaces the older one."""
        self.log_file(path, "pictures")

    def log_file(self, path: Path, folder: str = "") -> None:
        """Store a file in the run's artifacts, below `folder`."""
        with self._refusals(f"take {path}"):
            self.client.log_artifact(self.run_id, str(path), folder or None)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run, in one request."""
        with self._refusals("take tags"):
            self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def finish(self, status: Status = "FINISHED") -> None:
        """Mark the run as ended; `open_run` opens it again."""
        with self._refusals(f"mark the run {self.run_id} as {status}"):
            self.client.set_terminated(self.run_id, status)

    def _refusals(self, action: str) -> AbstractContextManager[None]:
        return refusals(action, self.store, kind=SERVER)


def run_key(cfg: Config) -> str:
    """What makes two processes the same training run: the output folder and the run's name."""
    output = cfg.output if "://" in cfg.output else str(Path(cfg.output).resolve())
    return hashlib.sha256(json.dumps([output, cfg.name]).encode()).hexdigest()[:32]


def config_digest(cfg: Config) -> str:
    """First 16 characters of the sha256 of the resolved configuration, without where it is tracked."""
    public = without_secrets(cfg.model_dump(mode="json", exclude={"tracking"}))
    return hashlib.sha256(json.dumps(public, sort_keys=True).encode()).hexdigest()[:16]


def open_run(
    cfg: Config, *, recipe: str, dataset: DatasetIdentity, versions: Mapping[str, str], git: str
) -> TrackedRun:
    """The one run of this training run: created the first time, reopened ever after, also when it had finished.

    Args:
        cfg: the resolved configuration; becomes parameters and config.yaml. Parameters cannot change in MLflow: those
            that differ in a later process are listed in the tag `ito.changed_params`, and config.yaml is the latest.
        recipe: name of the recipe it derives from.
        dataset: becomes an input of the run.
        versions: library versions, become tags `version.*`.
        git: commit.

    Raises:
        TrackingError: the store cannot be opened.
    """
    store = resolve_store(cfg.tracking.uri, cfg.output)
    client = open_client(store)
    experiment = open_experiment(client, store, cfg.tracking.experiment)
    with refusals(f"open the run {cfg.name!r}", store, kind=SERVER), exclusively(store):
        run, reopened = _get_or_create(client, experiment, cfg)
    tracked = TrackedRun(client, store, run, reopened=reopened)
    with failing(tracked), refusals(f"describe the run {cfg.name!r}", store, kind=SERVER):
        _describe(tracked, cfg, recipe=recipe, dataset=dataset, versions=versions, git=git, params=run.data.params)
    return tracked


def _describe(
    tracked: TrackedRun,
    cfg: Config,
    *,
    recipe: str,
    dataset: DatasetIdentity,
    versions: Mapping[str, str],
    git: str,
    params: Mapping[str, str],
) -> None:
    """Parameters, tags, configuration and data set."""
    changed = _log_params(tracked, flatten(cfg), params)
    tags = {"ito.recipe": recipe, "mlflow.source.git.commit": git, "ito.config_digest": config_digest(cfg)}
    tags |= {f"version.{name}": version for name, version in versions.items()}
    if changed:
        tags["ito.changed_params"] = json.dumps(changed)[:PARAM_LENGTH]
    tracked.set_tags(tags)
    _log_config(tracked, cfg)
    tracked.client.log_inputs(tracked.run_id, [dataset_input(dataset, "training")])


def _get_or_create(client: MlflowClient, experiment: str, cfg: Config) -> tuple[Run, bool]:
    """The run, and whether it was there."""
    key = run_key(cfg)
    found = client.search_runs([experiment], f"tags.`{RUN_KEY}` = '{key}'", max_results=1, order_by=["start_time ASC"])
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return found[0], True
    tags = {RUN_KEY: key, "mlflow.source.type": "LOCAL", "mlflow.user": getuser()}
    return client.create_run(experiment, tags=tags, run_name=cfg.name), False


def flatten(cfg: Config) -> dict[str, str]:
    """The configuration as dotted names and short texts, e.g. {"train.steps": "150000"}."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for name, below in value.items():
                walk(f"{prefix}.{name}" if prefix else name, below)
        else:
            flat[prefix] = (value if isinstance(value, str) and value else json.dumps(value))[:PARAM_LENGTH]

    walk("", cfg.model_dump(mode="json"))
    return flat


def _log_params(run: TrackedRun, params: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """Log what is new; return what differs from the known."""
    new = [Param(name, value) for name, value in params.items() if name not in known]
    for start in range(0, len(new), PARAMS_PER_CALL):
        run.client.log_batch(run.run_id, params=new[start : start + PARAMS_PER_CALL])
    return {name: value for name, value in params.items() if known.get(name, value) != value}


def _log_config(run: TrackedRun, cfg: Config) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "config.yaml")
        path.write_text(yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False, allow_unicode=True), "utf-8")
        run.log_file(path)


class ShardDataset(MetaDataset):
    """MLflow's dataset without data, with the number of shards and bytes as its profile."""

    def __init__(self, identity: DatasetIdentity) -> None:
        self.identity = identity
        source = CodeDatasetSource({"patterns": _shortened(identity.source)})
        super().__init__(source, name=identity.name, digest=identity.digest)

    @property
    def profile(self) -> dict[str, int]:
        return {"shards": self.identity.shards, "bytes": self.identity.bytes}


def _shortened(patterns: Sequence[str]) -> list[str]:
    """The first ones, when all would be more than MLflow takes: a set may name each of its thousand shards."""
    room, kept = SOURCE_LENGTH, list[str]()
    for pattern in patterns:
        room -= len(json.dumps(json.dumps(pattern))) + 2  # MLflow writes it as a string inside a string
        if room < 0:
            return [*kept, f"… and {len(patterns) - len(kept):,} more"]
        kept.append(pattern)
    return kept


def dataset_input(identity: DatasetIdentity, context: str) -> DatasetInput:
    """What MLflow records of a dataset as a run's input; `context` is its role: training, evaluation."""
    described = ShardDataset(identity)
    facts = described.to_dict()
    dataset = Dataset(
        identity.name[:NAME_LENGTH],
        identity.digest,
        facts["source_type"],
        facts["source"],
        profile=strict_json.dumps(described.profile),
    )
    return DatasetInput(dataset, [InputTag(DATASET_CONTEXT, context)])

"""The model registry: a verified SentenceTransformer folder as an MLflow model with version and alias.

A new version becomes `candidate`. It becomes `champion` here only when the model has none: a verified folder has passed
what can be asked without one to compare with. Every other champion goes through `promote.py`.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel, load_model, save_model

from ito_ray.config.schema import RESERVED_ALIASES
from ito_ray.errors import ExportError, TrackingError
from ito_ray.export.checks import folder_manifest, manifest_digest
from ito_ray.export.parity import Verified
from ito_ray.export.standalone import standalone
from ito_ray.tracking.aliases import CANDIDATE, CHAMPION, LOCK, Registry, crown_first, logged_model, quoted
from ito_ray.tracking.provenance import DatasetIdentity
from ito_ray.tracking.run import (
    SERVER,
    TRACKING_VARIABLE,
    Store,
    TrackedRun,
    dataset_input,
    open_client,
    open_experiment,
    refusals,
)
from ito_ray.tracking.signature import SERVING, example, signature

ENCODER = "encoder"
REQUIREMENTS = ("mlflow", "sentence-transformers", "transformers", "timm", "torch", "pillow", "pandas")
LAST_RUN = "ito.last_run"
"""Tag of a registered model: the training run that last meant to register a version."""
MODEL_NAME_LENGTH = 256
"""Of MLflow's databases."""
_NOT_IN_LOGGED_NAMES = re.compile(r"""[/:.%"']""")
"""A registered model may be called clip.v2, a logged one may not."""
_ALIAS, _NO_ALIAS = re.compile(r"[\w-]{1,255}"), re.compile(r"latest|v\d+", re.IGNORECASE)
SHA256, PARITY = "ito.sha256", "ito.parity"
RUN_TAGS = ("mlflow.source.git.commit", "ito.recipe", "ito.config_digest", "mlflow.parentRunId", "ito.sweep")
"""Of the training run, copied to the version. The parent is the sweep that the run belongs to."""


@dataclass(frozen=True)
class Registered:
    """Where the model is found now."""

    uri: str
    """models:/<name>@champion if it is that, else under its other alias, else models:/<name>/<version>"""
    model_name: str
    version: str
    model_id: str
    """MLflow's LoggedModel."""


def register(
    verified: Verified,
    *,
    store: Store,
    experiment: str,
    model_name: str,
    alias: str = CANDIDATE,
    run: TrackedRun | None = None,
    step: int = 0,
    metrics: Mapping[str, float] | None = None,
    measured_on: Mapping[str, DatasetIdentity] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Registered:
    """Log the folder as a model from code and register a new version of it: the candidate, and maybe first champion.

    Args:
        verified: what `ito_ray.export.parity.verify` returned; a folder changed since then is refused.
        store: tracking server and registry.
        experiment: experiment of the logged model, when there is no run.
        model_name: registered model, created when missing.
        alias: moves to the new version, and so does `candidate`.
        run: the training run it comes from.
        step: training step of the weights.
        metrics: of this model, at this step; need a run. Use the names and values of the run's own points: other
            values would be second points of the same curves.
        measured_on: data that the metrics whose names start like this were measured on: inputs of the run.
        tags: of the model version, e.g. the dataset's digest.

    Raises:
        ExportError: the folder is not the one that was verified.
        TrackingError: the server or the registry refuses; an alias that the gate alone may move.
    """
    require_free(alias)
    if manifest_digest(folder_manifest(verified.folder)) != verified.digest:
        raise ExportError(f"{verified.folder} has changed since it was verified: verify it again.")
    client = run.client if run else open_client(store)
    experiment_id = run.experiment_id if run else open_experiment(client, store, experiment)
    facts = json.loads((verified.folder / "ito.json").read_text("utf-8"))
    all_tags = {**_run_tags(run), **(tags or {}), **_evidence(verified)}
    with _using(store), refusals(f"register {model_name}@{alias}", store):
        model = client.create_logged_model(
            experiment_id,
            name=_NOT_IN_LOGGED_NAMES.sub("-", model_name),
            source_run_id=run.run_id if run else None,
            tags=all_tags,
            params={"embed_dim": str(facts["embed_dim"]), "logit_scale": f"{facts['logit_scale']:.6g}"},
            model_type="image-text-encoder",
        )
        _upload(client, model, verified.folder, facts, run.run_id if run else None)
        if run:
            client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, step)])
            _log_metrics(run, model.model_id, step, metrics or {}, measured_on or {})
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        version = _new_version(client, model, model_name, run, all_tags)
    registry = Registry(client, store, model_name)
    for name in dict.fromkeys((CANDIDATE, alias)):
        registry.set_alias(name, version)
    return _settled(registry, version, model.model_id)


def find(digest: str, *, store: Store, model_name: str) -> Registered | None:
    """The newest version that is the very folder with this digest: then there is nothing to register."""
    client = open_client(store)
    with refusals(f"search {model_name!r}", store):
        same = client.search_model_versions(f"name = {quoted(model_name)} AND tags.`{SHA256}` = '{digest}'")
    if not same:
        return None
    version = max(same, key=lambda one: int(one.version))
    return _settled(Registry(client, store, model_name), str(version.version), logged_model(version))


def require_registrable(store: Store, *, experiment: str, model_name: str, alias: str, run: str) -> None:
    """Refuse at start what `register` would be refused: it asks the registry for the same things.

    A model that is not there is made, without versions; one that is there notes the run in its tag `ito.last_run`.

    Raises:
        TrackingError: a name or alias that cannot be, no right to write, or a server too old for logged models.
    """
    require_free(alias)
    if len(model_name) + len(LOCK) > MODEL_NAME_LENGTH:
        raise TrackingError(
            f"The model name {model_name[:40]}… has {len(model_name)} characters, and "
            f"{MODEL_NAME_LENGTH - len(LOCK)} are allowed: shorten it."
        )
    if "'" in model_name and '"' in model_name:
        raise TrackingError(
            f"The model name {model_name} has both kinds of quotes, which MLflow cannot find: drop one."
        )
    _requirements()
    client = open_client(store)
    experiment_id = open_experiment(client, store, experiment)
    with refusals(f"take a version of the model {model_name!r}", store):
        client.search_logged_models([experiment_id], max_results=1)
        _make_model(client, model_name)
        client.set_registered_model_tag(model_name, LAST_RUN, run)


def require_free(alias: str) -> None:
    """TrackingError for an alias that the gate alone may move, or that MLflow does not take."""
    if not _ALIAS.fullmatch(alias) or _NO_ALIAS.fullmatch(alias):
        raise TrackingError(
            f"The alias {alias!r} is none that MLflow takes: use letters, digits, _ and -, and neither latest nor a "
            "version such as v1."
        )
    if alias in RESERVED_ALIASES:
        raise TrackingError(
            f"The alias {alias!r} moves through the gate alone: register without it, then "
            "python -m pipelines.register promote."
        )


def _settled(registry: Registry, version: str, model_id: str) -> Registered:
    """Where the version is found now; a first one becomes champion."""
    crown_first(registry, version)
    mine = [alias for alias, other in registry.aliases().items() if other == version]
    best = next((alias for alias in (CHAMPION, CANDIDATE, *mine) if alias in mine), None)
    address = f"models:/{registry.name}@{best}" if best else f"models:/{registry.name}/{version}"
    return Registered(address, registry.name, version, model_id)


def load(uri: str, store: Store | None = None) -> PyFuncModel:
    """The registered model, ready to predict.

    Args:
        uri: models:/name@alias or models:/name/version.
        store: where to look; None is MLflow's own default (MLFLOW_TRACKING_URI).

    Raises:
        TrackingError: no such model, version or alias.
    """
    with _using(store), refusals(f"give {uri}", store or _default()):
        return load_model(uri)


def download(uri: str, store: Store | None = None, into: Path | None = None) -> Path:
    """The SentenceTransformer folder inside a registered model.

    Args:
        uri, store: as for `load`.
        into: a folder to copy to; without it a local store gives its own folder (read only), a server one that is
            removed when this process ends.

    Raises:
        TrackingError: no such model, version or alias, or one that `register` did not make.
    """
    with _using(store), refusals(f"give {uri}", store or _default()):
        target = into or _scratch(store)
        folder = Path(download_artifacts(artifact_uri=uri, dst_path=str(target) if target else None))
        artifacts = Model.load(str(folder)).flavors["python_function"].get("artifacts", {})
    if ENCODER not in artifacts:
        raise TrackingError(f"{uri} has no artifact {ENCODER!r}: ito_ray did not register it, give another address.")
    return folder / str(artifacts[ENCODER]["path"])


def _scratch(store: Store | None) -> Path | None:
    """Where a server's files go."""
    if store is None or store.artifacts is not None:
        return None
    folder = tempfile.mkdtemp(prefix="ito-model-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _upload(
    client: MlflowClient, model: LoggedModel, folder: Path, facts: Mapping[str, Any], run_id: str | None
) -> None:
    """Write the pyfunc and upload it.

    Not `log_model`: it would start a run when none is active, load the model once more to try the example, and leave
    this machine's paths in the artifact.
    """
    requirements = _requirements()
    with tempfile.TemporaryDirectory(prefix="ito-register-") as scratch:
        path, code = Path(scratch, "model"), Path(scratch, "pyfunc_model.py")
        code.write_text(standalone(Path(__file__).with_name("pyfunc_model.py")), encoding="utf-8")
        save_model(
            str(path),
            mlflow_model=Model(
                artifact_path=model.artifact_location, model_uuid=model.model_id, model_id=model.model_id, run_id=run_id
            ),
            python_model=str(code),
            artifacts={ENCODER: folder.absolute().as_uri()},  # a path would be unquoted: %20 in it
            signature=signature(),
            input_example=example(),
            model_config=SERVING,
            pip_requirements=requirements,
            metadata={key: facts[key] for key in ("embed_dim", "logit_scale")},
        )
        _without_paths(path / "MLmodel")
        for cache in path.rglob("__pycache__"):
            for compiled in cache.iterdir():
                compiled.unlink()
            cache.rmdir()
        client.log_model_artifacts(model.model_id, str(path))


def _requirements() -> list[str]:
    """What the model is served with, pinned to what is installed here."""
    try:
        return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in REQUIREMENTS]
    except importlib.metadata.PackageNotFoundError as error:
        raise TrackingError(
            f"A registered model is served with {', '.join(REQUIREMENTS)}, but {error.name} is not installed here: "
            "install ito_ray with its dependencies."
        ) from error


def _without_paths(mlmodel: Path) -> None:
    """MLflow writes where the code and the folder came from; loading uses the names inside the model only."""
    content = yaml.safe_load(mlmodel.read_text("utf-8"))
    flavor = content["flavors"]["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    mlmodel.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")


def _log_metrics(
    run: TrackedRun,
    model_id: str,
    step: int,
    metrics: Mapping[str, float],
    measured_on: Mapping[str, DatasetIdentity],
) -> None:
    """Attach metrics and their data to the model.

    MLflow stores the metrics in the run too: the point that is there must be hit exactly.
    """
    if measured_on:
        run.client.log_inputs(run.run_id, [dataset_input(one, "evaluation") for one in measured_on.values()])
    now = int(time.time() * 1000)
    points = []
    for name, value in metrics.items():
        same = (point for point in run.client.get_metric_history(run.run_id, name) if point.step == step)
        times = [point.timestamp for point in same if point.value == value]
        data = next((one for prefix, one in measured_on.items() if name.startswith(prefix)), None)
        points.append(
            Metric(
                name,
                float(value),
                times[0] if times else now,
                step,
                model_id=model_id,
                run_id=run.run_id,
                dataset_name=data.name if data else None,
                dataset_digest=data.digest if data else None,
            )
        )
    if points:
        run.client.log_batch(run.run_id, metrics=points)


def _new_version(
    client: MlflowClient, model: LoggedModel, model_name: str, run: TrackedRun | None, tags: Mapping[str, str]
) -> str:
    _make_model(client, model_name)
    version = client.create_model_version(
        model_name, model.model_uri, run_id=run.run_id if run else None, tags=dict(tags), model_id=model.model_id
    )
    return str(version.version)


def _make_model(client: MlflowClient, model_name: str) -> None:
    """Unless it is there, or another process makes it at the same time."""
    there = f"name = {quoted(model_name)}"
    if client.search_registered_models(there, max_results=1):
        return
    try:
        client.create_registered_model(model_name)
    except MlflowException:
        if not client.search_registered_models(there, max_results=1):
            raise


def _run_tags(run: TrackedRun | None) -> dict[str, str]:
    if run is None:
        return {}
    with refusals(f"give the run {run.run_id}", run.store, kind=SERVER):
        tags = run.client.get_run(run.run_id).data.tags
    return {name: tags[name] for name in RUN_TAGS if name in tags}


def _evidence(verified: Verified) -> dict[str, str]:
    return {SHA256: verified.digest, PARITY: f"{verified.max_abs_difference:.3g}"}


@contextmanager
def _using(store: Store | None) -> Iterator[None]:
    """MLflow's loaders take the store from a global; put it back afterwards."""
    if store is None:
        yield
        return
    tracking, registry = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    variables = {name: os.environ.get(name) for name in (TRACKING_VARIABLE, "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(store.uri)
    mlflow.set_registry_uri(store.uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(tracking)
        mlflow.set_registry_uri(registry)
        for name, value in variables.items():  # which MLflow sets, too
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _default() -> Store:
    """MLflow's own, for messages."""
    return Store(mlflow.get_tracking_uri(), None)

"""Addresses in the model registry: models:/NAME@ALIAS and models:/NAME/VERSION."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlflow.exceptions import MlflowException

from ito_ray.errors import TrackingError
from ito_ray.tracking.registry import download
from ito_ray.tracking.run import Store, open_client, resolve_store

_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def find_store(uri: str, output: str) -> Store:
    """The store of `uri`, else of MLFLOW_TRACKING_URI, else the SQLite file in `<output>/mlflow`.

    Raises:
        TrackingError: a SQLite file that does not exist; MLflow would make an empty one.
    """
    store = resolve_store(uri or os.environ.get("MLFLOW_TRACKING_URI", ""), output)
    database = Path(store.uri.removeprefix("sqlite:///"))
    if store.uri.startswith("sqlite:///") and not database.is_file():
        raise TrackingError(
            f"There is no model registry at {store.uri}: give --tracking-uri, sqlite:///PATH/mlflow.db or the address "
            "of a server."
        )
    return store


def fetch(address: str, store: Store) -> tuple[Path, str]:
    """The SentenceTransformer folder and the version that the address means now.

    Raises:
        TrackingError: not such an address, or no such model, version or alias.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise TrackingError(f"--model {address}: give models:/NAME@ALIAS or models:/NAME/VERSION, or a folder.")
    name, version = match["name"], match["version"]
    if version is None:
        try:
            version = str(open_client(store).get_model_version_by_alias(name, match["alias"]).version)
        except MlflowException as error:
            raise TrackingError(f"The registry {store.uri} has no {address}: {error.message}") from error
    # By its number: the alias may move meanwhile.
    return download(f"models:/{name}/{version}", store), version

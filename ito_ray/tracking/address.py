"""Which store is meant, and addresses in its model registry: models:/NAME@ALIAS and models:/NAME/VERSION."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlflow.exceptions import MlflowException

from ito_ray.config.schema import Config
from ito_ray.data.job_folder import read_json, write_json
from ito_ray.errors import TrackingError
from ito_ray.redact import HIDDEN, without_secrets
from ito_ray.tracking.registry import download
from ito_ray.tracking.run import TRACKING_VARIABLE, Store, open_client, resolve_store
from ito_ray.tracking.sqlite import SCHEME, database_of, sqlite_uri

NOTE = "tracking.json"
"""In a run's folder: the store that it is tracked in."""
_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def find_store(uri: str, output: str) -> Store:
    """The store of `uri`, else of MLFLOW_TRACKING_URI, else the SQLite file in `<output>/mlflow`.

    Raises:
        TrackingError: a SQLite file that does not exist; MLflow would make an empty one.
    """
    store = resolve_store(uri, output)
    if store.uri.startswith(SCHEME) and not database_of(store.uri).is_file():
        raise TrackingError(
            f"There is no model registry at {store.uri}: give --tracking-uri, sqlite:///PATH/mlflow.db or the address "
            "of a server."
        )
    return store


def with_store(cfg: Config, folder: Path) -> Config:
    """`cfg` with the store filled in that `tracking.uri` leaves open.

    A run stays in the store of its first launch, which is noted in `folder`, also when MLFLOW_TRACKING_URI is another
    one meanwhile or not set: its curves and versions would lie in two places. `tracking.uri` overrules both.

    Raises:
        TrackingError: the note has no password, and MLFLOW_TRACKING_URI is not that address.
    """
    note = folder / NOTE
    uri = cfg.tracking.uri
    if not uri:
        given = os.environ.get(TRACKING_VARIABLE, "")
        known = _noted(note, cfg)
        if known is None or (given and without_secrets(given) == without_secrets(known)):
            uri = given
        elif HIDDEN in known:
            raise TrackingError(
                f"{cfg.name} was begun in the store {known}: set {TRACKING_VARIABLE} or tracking.uri to that address "
                "with its password."
            )
        else:
            uri = known or (resolve_store(sqlite_uri(_local(cfg)), "").uri if given else "")
    write_json(note, {"uri": uri})
    return cfg.model_copy(update={"tracking": cfg.tracking.model_copy(update={"uri": uri})})


def _noted(note: Path, cfg: Config) -> str | None:
    """The store of an earlier launch, "" for the one in the output folder; None if there was no launch."""
    if note.is_file():
        return str(read_json(note)["uri"])
    begun = (note.parent / "tokenizer").is_dir() and _local(cfg).is_file()  # before notes were taken
    return "" if begun else None


def _local(cfg: Config) -> Path:
    return Path(cfg.output).absolute() / "mlflow" / "mlflow.db"


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

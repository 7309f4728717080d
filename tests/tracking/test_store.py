"""Which store a run is tracked in: tracking.uri, else where it was begun, else MLFLOW_TRACKING_URI, else its output."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.errors import TrackingError
from ito_ray.tracking.address import NOTE, find_store, with_store
from ito_ray.tracking.registry import download
from ito_ray.tracking.run import open_client, resolve_store

ONE, OTHER = "http://user:planted-5f1c@one:5000", "http://other:5000"  # pragma: allowlist secret


def _config(tmp_path: Path, uri: str = "") -> Config:
    return overlay(Config(), {"output": str(tmp_path), "tracking": {"uri": uri}}, source="test")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def _used(cfg: Config, folder: Path) -> str:
    return resolve_store(with_store(cfg, folder).tracking.uri, cfg.output).uri


def test_the_order(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    assert resolve_store("", str(tmp_path)).uri == local
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ONE)
    assert resolve_store("", str(tmp_path)).uri == ONE == find_store("", str(tmp_path)).uri
    assert resolve_store(OTHER, str(tmp_path)).uri == OTHER == find_store(OTHER, str(tmp_path)).uri
    assert _used(_config(tmp_path, OTHER), folder) == OTHER


def test_a_run_stays_where_it_was_begun(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    assert _used(_config(tmp_path), folder) == local
    monkeypatch.setenv("MLFLOW_TRACKING_URI", OTHER)
    assert _used(_config(tmp_path), folder) == local
    (folder / NOTE).unlink()
    assert _used(_config(tmp_path), folder) == OTHER
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert _used(_config(tmp_path), folder) == OTHER
    assert _used(_config(tmp_path, local), folder) == local
    monkeypatch.setenv("MLFLOW_TRACKING_URI", OTHER)
    assert _used(_config(tmp_path), folder) == local


def test_a_run_begun_before_there_were_notes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tokenizer").mkdir()
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", OTHER)
    assert _used(_config(tmp_path), folder) == f"sqlite:///{tmp_path}/mlflow/mlflow.db"


def test_the_note_has_no_password(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ONE)
    assert _used(_config(tmp_path), folder) == ONE
    assert json.loads((folder / NOTE).read_text("utf-8")) == {"uri": "http://***@one:5000"}
    changed = "http://user:changed-77aa@one:5000"  # pragma: allowlist secret
    monkeypatch.setenv("MLFLOW_TRACKING_URI", changed)
    assert _used(_config(tmp_path), folder) == changed
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(TrackingError, match=r"begun in the store http://\*\*\*@one:5000: set MLFLOW_TRACKING_URI"):
        with_store(_config(tmp_path), folder)


def test_what_is_no_store_is_named_by_where_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(TrackingError, match=r"^MLFLOW_TRACKING_URI=\./mlruns is a plain folder"):
        resolve_store("", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    assert resolve_store("", str(tmp_path)).uri == "databricks"


def test_loading_a_model_leaves_the_variable_as_it_was(tmp_path: Path) -> None:
    """MLflow's own functions set it, and the next store would be looked for there."""
    store = resolve_store("", str(tmp_path))
    open_client(store)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        assert name not in os.environ
    with pytest.raises(TrackingError):
        download("models:/nothing/1", store)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        assert name not in os.environ

"""SQLite stores in folders of any name."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from ito_ray.tracking.run import open_client, open_experiment, resolve_store
from ito_ray.tracking.sqlite import database_of, sqlite_uri

NAMES = (
    "plain",
    "a b",
    "a%20b",
    "a%2Fb",
    "what?",
    "x?mode=ro",
    "number#1",
    "猫 é",
    "a+b",
    "a&b=c;d",
    "100%",
    "c:d@e",
    "[v2]",
)


@pytest.mark.parametrize("name", NAMES)
def test_an_address_leads_back_to_its_file(name: str, tmp_path: Path) -> None:
    database = tmp_path / name / "mlflow.db"
    assert database_of(sqlite_uri(database)) == database


def test_a_file_that_is_there_is_meant_literally(tmp_path: Path) -> None:
    for name in ("a%20b", "a b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mlflow.db").touch()
        assert database_of(f"sqlite:///{tmp_path / name / 'mlflow.db'}") == tmp_path / name / "mlflow.db"


def test_a_folder_that_is_there_is_meant_literally(tmp_path: Path) -> None:
    for name in ("what?", "a%20b"):
        (tmp_path / name).mkdir()
        database = tmp_path / name / "mlflow" / "mlflow.db"
        assert database_of(f"sqlite:///{database}") == database
    assert database_of(f"sqlite:///{tmp_path}/mlflow.db?mode=ro") == tmp_path / "mlflow.db"


@pytest.mark.slow
@pytest.mark.parametrize("name", ("a b", "a%20b", "what?", "number#1"))
def test_a_store_is_in_its_folder_and_nowhere_else(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = resolve_store("", str(tmp_path / name))
    client = open_client(store)
    experiment = open_experiment(client, store, "e")
    run = client.create_run(experiment).info.run_id
    (tmp_path / "note.txt").write_text("here")
    client.log_artifact(run, str(tmp_path / "note.txt"))
    client.create_registered_model("m")
    open_client(store)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "note.txt"])
    assert (tmp_path / name / "mlflow" / "mlflow.db").is_file()
    (kept,) = (tmp_path / name / "mlflow" / "artifacts").rglob("note.txt")
    assert kept.read_text() == "here"
    assert MlflowClient(store.uri, store.uri).search_registered_models()[0].name == "m"

"""What an address in the registry means."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from ito_ray.errors import TrackingError
from ito_ray.tracking import address
from ito_ray.tracking.address import fetch, find_store
from ito_ray.tracking.run import Store


def test_an_alias_is_its_version_at_this_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}", None)
    client = MlflowClient(store.uri, store.uri)
    client.create_registered_model("m")
    for _ in range(2):
        client.create_model_version("m", source=tmp_path.as_uri())
    client.set_registered_model_alias("m", "champion", "2")
    asked: list[str] = []

    def download(uri: str, store: Store) -> Path:
        asked.append(uri)
        return tmp_path

    monkeypatch.setattr(address, "download", download)
    found = find_store(store.uri, "nowhere")
    assert fetch("models:/m@champion", found) == (tmp_path, "2")
    assert fetch("models:/m/1", found) == (tmp_path, "1")
    assert asked == ["models:/m/2", "models:/m/1"]
    with pytest.raises(TrackingError, match=r"has no models:/m@none"):
        fetch("models:/m@none", found)
    for wrong in ("models:/m", "models:/m@a@b", "models:/m/latest", "https://host/m"):
        with pytest.raises(TrackingError, match=r"give models:/NAME@ALIAS or models:/NAME/VERSION"):
            fetch(wrong, found)


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError, match=r"There is no model registry at sqlite:///.*mlflow\.db"):
        find_store("", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert find_store("", str(tmp_path)) == Store("http://127.0.0.1:5000", None)
    assert list(tmp_path.iterdir()) == []

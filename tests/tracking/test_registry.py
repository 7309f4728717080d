"""From verified folder to `models:/…@champion` and back, in a real SQLite registry."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from ito_ray.config.schema import Config, TrackingConfig
from ito_ray.errors import ExportError, TrackingError
from ito_ray.export.checks import folder_manifest, manifest_digest
from ito_ray.export.parity import PROBE_TEXTS, Verified, probe_images, reference_path
from ito_ray.tracking.provenance import dataset_identity
from ito_ray.tracking.registry import Registered, download, find, load, register, require_registrable
from ito_ray.tracking.run import Store, TrackedRun, config_digest, open_client, open_run, resolve_store
from pipelines.register import main
from tests.export.tiny import Exported, export

NAME = "ito-dual-encoder"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def verified(made: Exported) -> Verified:
    """The comparison itself is tested with the export; here it is taken as passed."""
    return Verified(made.folder, manifest_digest(folder_manifest(made.folder)), 1e-7)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrackedRun:
    cfg = Config(name="run", output=str(tmp_path_factory.mktemp("runs")))
    data = dataset_identity("train", [], [("a.tar", 1)])
    tracked = open_run(cfg, recipe="tiny", dataset=data, versions={}, git="abc123")
    tracked.set_tags({"mlflow.parentRunId": "the sweep"})
    tracked.log(7, {"final/r1": 0.25, "final/r5": 0.5})
    return tracked


def put(verified: Verified, store: Store, **more: Any) -> Registered:
    arguments: dict[str, Any] = {"store": store, "experiment": "ito", "model_name": NAME}
    return register(verified, **(arguments | more))


@pytest.fixture(scope="module")
def registered(verified: Verified, run: TrackedRun) -> Registered:
    return put(
        verified,
        run.store,
        run=run,
        step=7,
        metrics={"final/r1": 0.25, "final/r5": 0.5},
        measured_on={"final/": dataset_identity("heldout", [], [("b.tar", 2)])},
        tags={"data": "abc"},
    )


@pytest.fixture(scope="module")
def champion(registered: Registered, run: TrackedRun) -> Any:
    assert registered.uri == f"models:/{NAME}@champion"
    return load(registered.uri, run.store)


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def embeddings(answer: pd.DataFrame) -> NDArray[np.float32]:
    return np.array(answer["embedding"].tolist(), dtype=np.float32)


def table(texts: Sequence[Any], images: Sequence[Any]) -> pd.DataFrame:
    return pd.DataFrame({"text": pd.Series(texts, dtype=object), "image": pd.Series(images, dtype=object)})


def test_champion_equals_the_trained_model(champion: Any, made: Exported) -> None:
    pictures = probe_images()
    texts = champion.predict(pd.DataFrame({"text": list(PROBE_TEXTS)}))
    images = champion.predict(pd.DataFrame({"image": [png(picture) for picture in pictures]}), {"batch_size": 2})
    assert set(texts["modality"]) == {"text"}
    assert set(images["modality"]) == {"image"}
    np.testing.assert_allclose(embeddings(texts), made.encoder.encode_texts(PROBE_TEXTS), atol=1e-5)
    np.testing.assert_allclose(embeddings(images), made.encoder.encode_images(pictures), atol=1e-5)


def test_rows_of_both_kinds_keep_their_places(champion: Any, made: Exported) -> None:
    first, second = probe_images()[:2]
    answer = champion.predict(table(["a bird", None, "", "boats"], [None, png(first), png(second), b""]))
    assert answer["modality"].tolist() == ["text", "image", "image", "text"]
    expected = made.encoder.encode_texts(["a bird", "boats"]), made.encoder.encode_images([first, second])
    np.testing.assert_allclose(embeddings(answer)[[0, 3, 1, 2]], np.concatenate(expected), atol=1e-5)


def test_version_alias_tags_and_metrics(registered: Registered, run: TrackedRun, verified: Verified) -> None:
    client: Any = run.client
    version = client.get_model_version_by_alias(NAME, "champion")
    assert version.run_id == run.run_id
    expected = {"data": "abc", "mlflow.source.git.commit": "abc123", "ito.recipe": "tiny", "ito.parity": "1e-07"}
    expected |= {"mlflow.parentRunId": "the sweep", "ito.config_digest": config_digest(run_config(run))}
    assert expected.items() <= version.tags.items()
    assert version.tags["ito.sha256"] == verified.digest
    model = client.get_logged_model(registered.model_id)
    assert model.source_run_id == run.run_id
    assert {metric.key: metric.value for metric in model.metrics} == {"final/r1": 0.25, "final/r5": 0.5}
    heldout = dataset_identity("heldout", [], [("b.tar", 2)])
    assert {(metric.dataset_name, metric.dataset_digest) for metric in model.metrics} == {("heldout", heldout.digest)}
    inputs = client.get_run(run.run_id).inputs.dataset_inputs
    assert {(one.dataset.name, one.tags[0].value) for one in inputs} == {
        ("train", "training"),
        ("heldout", "evaluation"),
    }
    assert [(point.step, point.value) for point in client.get_metric_history(run.run_id, "final/r1")] == [(7, 0.25)]
    (output,) = client.get_run(run.run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (registered.model_id, 7)


def run_config(run: TrackedRun) -> Config:
    """As it was when the run was opened."""
    path = download_artifacts(run_id=run.run_id, artifact_path="config.yaml", tracking_uri=run.store.uri)
    return Config.model_validate(yaml.safe_load(Path(path).read_text("utf-8")))


def test_signature_is_explicit(champion: Any) -> None:
    signature = champion.metadata.signature
    assert [(column.name, column.required) for column in signature.inputs] == [("text", False), ("image", False)]
    assert signature.outputs.input_names() == ["modality", "embedding", "error"]
    assert signature.params.params[0].name == "batch_size"


def test_artifact_holds_the_folder_its_code_and_no_foreign_path(
    verified: Verified, run: TrackedRun, made: Exported
) -> None:
    folder = download(put(verified, run.store, model_name="unloaded").uri, run.store)
    assert folder_manifest(folder) == folder_manifest(made.folder)
    root = folder.parents[1]
    beside = {path.name for path in root.iterdir()} - {"registered_model_meta"}
    assert beside == {
        *("MLmodel", "artifacts", "conda.yaml", "python_env.yaml", "requirements.txt", "pyfunc_model.py"),
        *("input_example.json", "serving_input_example.json"),
    }
    model = yaml.safe_load((root / "MLmodel").read_text())
    assert str(made.folder.parent) not in str(model)
    assert str(Path(__file__).parents[2]) not in str(model)
    assert "python_model" not in model["flavors"]["python_function"]  # where a pickle would be
    assert "sentence-transformers==" in (root / "requirements.txt").read_text()


def test_the_first_version_is_champion_and_the_newest_candidate(verified: Verified, run: TrackedRun) -> None:
    first = put(verified, run.store, model_name="second")
    newest = put(verified, run.store, model_name="second", alias="nightly", tags={"why": "again"})
    assert (first.uri, first.version) == ("models:/second@champion", "1")
    assert (newest.uri, newest.version) == ("models:/second@candidate", "2")
    aliases = run.client.get_registered_model("second").aliases
    assert {name: str(version) for name, version in aliases.items()} == {
        "champion": "1",
        "candidate": "2",
        "nightly": "2",
    }
    found = find(verified.digest, store=run.store, model_name="second")
    assert found is not None
    assert found == newest
    assert find("0" * 64, store=run.store, model_name="second") is None


def test_an_interrupted_registration_is_healed(verified: Verified, run: TrackedRun) -> None:
    """Killed between version and alias: running the job again makes the first version champion."""
    put(verified, run.store, model_name="cut")
    run.client.delete_registered_model_alias("cut", "champion")
    found = find(verified.digest, store=run.store, model_name="cut")
    assert found is not None
    assert found.uri == "models:/cut@champion"


@pytest.mark.parametrize("alias", ["champion", "previous"])
def test_only_the_gate_moves_the_champion(verified: Verified, run: TrackedRun, alias: str) -> None:
    with pytest.raises(TrackingError, match=f"{alias!r} moves through the gate alone"):
        put(verified, run.store, model_name="by force", alias=alias)
    with pytest.raises(ValidationError, match=f"tracking.alias={alias} moves through the gate alone"):
        TrackingConfig(alias=alias)


def test_a_folder_changed_after_its_check_is_refused(verified: Verified, run: TrackedRun, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(verified.folder, tmp_path / "copy"))
    (copy / "planted.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(ExportError, match="changed since it was verified"):
        put(Verified(copy, verified.digest, 0.0), run.store, model_name="third")
    assert not run.client.search_registered_models("name = 'third'")


@pytest.mark.parametrize("uri", [f"models:/{NAME}@nobody", f"models:/{NAME}/99", "models:/unknown@champion"])
def test_an_unknown_address_is_a_plain_error(registered: Registered, run: TrackedRun, uri: str) -> None:
    for ask in (load, download):
        with pytest.raises(TrackingError, match=uri):
            ask(uri, run.store)


@pytest.mark.slow
def test_command_line(made: Exported, run: TrackedRun, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["register", "--folder", str(made.folder), "--tracking-uri", run.store.uri, "--name", "by-hand"]
    assert main(base) == 2
    assert "reference" in capsys.readouterr().err
    made.reference.save(reference_path(made.folder))
    assert main([*base, "--alias", "new", "--tags", "owner", "me"]) == 0
    assert "models:/by-hand@champion, version 1" in capsys.readouterr().out
    assert run.client.get_model_version_by_alias("by-hand", "new").tags["owner"] == "me"
    assert main(base) == 0
    assert "registered before: models:/by-hand@champion, version 1" in capsys.readouterr().out


def test_command_line_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m pipelines.register promote --tracking-uri" in capsys.readouterr().out
    assert main(["register", "--folder", "nowhere", "--tracking-uri", "sqlite:///x.db"]) == 2
    assert "--folder nowhere is not a SentenceTransformer folder" in capsys.readouterr().err


def ask(store: Store, name: str = NAME, alias: str = "candidate") -> None:
    require_registrable(store, experiment="ito", model_name=name, alias=alias, run="run")


@pytest.mark.parametrize("name", ["clip.v2", "icons 100%", "it's", 'a "b"'])
def test_a_name_that_is_let_pass_at_the_start_is_registered(verified: Verified, run: TrackedRun, name: str) -> None:
    """MLflow takes more names for a registered model than for a logged one."""
    ask(run.store, name)
    made = put(verified, run.store, model_name=name, alias="nightly-1")
    assert (made.model_name, made.version) == (name, "1")
    assert find(verified.digest, store=run.store, model_name=name) == made
    assert run.client.get_registered_model(name).tags["ito.last_run"] == "run"


@pytest.mark.parametrize(
    ("name", "alias", "message"),
    [
        ("a/b", "candidate", "does not take a version of the model 'a/b'"),
        ("", "candidate", "does not take a version of the model ''"),
        ("n" * 250, "candidate", "has 250 characters"),
        (NAME, "champion", "moves through the gate alone"),
        (NAME, "latest", "none that MLflow takes"),
        (NAME, "v12", "none that MLflow takes"),
        (NAME, "night run", "none that MLflow takes"),
        (NAME, "", "none that MLflow takes"),
    ],
)
def test_what_registration_would_refuse_is_refused_at_the_start(
    tmp_path: Path, verified: Verified, name: str, alias: str, message: str
) -> None:
    store = resolve_store("", str(tmp_path))
    with pytest.raises(TrackingError, match=message):
        ask(store, name, alias)
    assert open_client(store).search_registered_models() == []


def test_a_registry_that_gives_no_right_to_write_is_noticed_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("Permission denied")

    store = resolve_store("", str(tmp_path))
    for call in ("create_registered_model", "set_registered_model_tag", "search_logged_models"):
        with monkeypatch.context() as patch, pytest.raises(TrackingError, match="Permission denied"):
            patch.setattr(MlflowClient, call, refuse)
            ask(store)

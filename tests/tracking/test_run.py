"""One run however often training restarts, in a real SQLite store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from ito_ray.config.schema import Config, TrackingConfig, TrainConfig
from ito_ray.errors import TrackingError
from ito_ray.tracking.provenance import dataset_identity, git_commit, installed_versions
from ito_ray.tracking.run import (
    TrackedRun,
    failing,
    flatten,
    open_client,
    open_experiment,
    open_run,
    resolve_store,
    run_key,
)

SHARDS = [("/data/b.tar", 20), ("/data/a.tar", 10)]
PROCESS = """
import sys
from ito_ray.config.schema import Config, TrainConfig
from ito_ray.tracking.provenance import dataset_identity
from ito_ray.tracking.run import open_run
output, steps, first, last, value = sys.argv[1], *map(int, sys.argv[2:])
cfg = Config(name="restarted", output=output, train=TrainConfig(steps=steps))
data = dataset_identity("train", ["/data/*.tar"], [("/data/a.tar", 10)])
run = open_run(cfg, recipe="tiny", dataset=data, versions={"torch": "2"}, git="abc123")
for step in range(first, last):
    run.log(step, {"train/loss": value + step / 1000, "train/logit_scale": 14.3})
print(run.run_id)
"""


def opened(output: Path, name: str = "one", steps: int = 20_000) -> TrackedRun:
    cfg = Config(name=name, output=str(output), train=TrainConfig(steps=steps))
    data = dataset_identity("train", ["/data/*.tar"], SHARDS)
    return open_run(cfg, recipe="tiny", dataset=data, versions={"torch": "2.9"}, git="abc123")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.slow
def test_a_restart_in_another_process_continues_the_same_curve(output: Path) -> None:
    """The first process dies at step 30 after a checkpoint at 20; the second repeats 20…29 and goes on to 39."""

    def train(steps: int, first: int, last: int, value: int) -> str:
        arguments = [str(output), *map(str, (steps, first, last, value))]
        result = subprocess.run(
            [sys.executable, "-c", PROCESS, *arguments], capture_output=True, text=True, timeout=300, check=True
        )
        assert result.stderr == ""
        return result.stdout.strip()

    first, second = train(20_000, 0, 30, 1), train(30_000, 20, 40, 2)
    assert first == second
    run = opened(output, "restarted")
    assert run.run_id == first
    assert len(run.client.search_runs([run.experiment_id], "tags.mlflow.runName = 'restarted'")) == 1
    curve = run.client.get_metric_history(run.run_id, "train/loss")
    assert [point.step for point in curve] == list(range(40))
    assert [int(point.value) for point in curve] == [1] * 30 + [2] * 10
    tags = run.client.get_run(run.run_id).data.tags
    assert json.loads(tags["ito.changed_params"]) == {"train.steps": "30000"}


@pytest.mark.slow
def test_processes_that_start_together_share_a_new_store_and_a_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path), "20000", "0", "3", "1"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(set(answers)) == 1


def test_what_is_recorded_of_a_run(output: Path) -> None:
    run = opened(output, "recorded")
    stored: Any = run.client.get_run(run.run_id)
    assert stored.data.params["method.fusion_weight"] == "2.0"
    assert stored.data.params["data.views.jitter"] == "[0.4, 0.4, 0.4, 0.1]"
    assert stored.data.tags["mlflow.source.git.commit"] == "abc123"
    assert stored.data.tags["version.torch"] == "2.9"
    assert stored.data.tags["ito.recipe"] == "tiny"
    (data,) = stored.inputs.dataset_inputs
    assert (data.dataset.name, len(data.dataset.digest)) == ("train", 16)
    assert json.loads(data.dataset.profile) == {"shards": 2, "bytes": 30}
    assert "/data/*.tar" in data.dataset.source
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training")]
    path = download_artifacts(run_id=run.run_id, artifact_path="config.yaml", tracking_uri=run.store.uri)
    written = Config.model_validate(yaml.safe_load(Path(path).read_text()))
    assert written == Config(name="recorded", output=str(output), train=TrainConfig(steps=20_000))
    assert stored.info.artifact_uri.startswith(f"{output.as_uri()}/mlflow/artifacts/")


def test_a_finished_run_is_opened_again(output: Path) -> None:
    run = opened(output, "finished")
    run.finish()
    assert run.client.get_run(run.run_id).info.status == "FINISHED"
    again = opened(output, "finished")
    assert again.run_id == run.run_id
    assert again.client.get_run(run.run_id).info.status == "RUNNING"
    stored: Any = again.client.get_run(run.run_id)
    assert len(stored.inputs.dataset_inputs) == 1


def test_each_curve_has_its_own_last_step(output: Path) -> None:
    run = opened(output, "curves")
    run.log(10, {"train/loss": 1.0})
    run.log(10, {"heldout/r1_image_to_text": 0.5, "train/loss": 9.0})
    run.log(5, {"train/loss": 9.0, "train/late": 3.0})
    run.log(11, {})
    values = {
        name: [(point.step, point.value) for point in run.client.get_metric_history(run.run_id, name)]
        for name in ("train/loss", "heldout/r1_image_to_text", "train/late")
    }
    assert values == {
        "train/loss": [(10, 1.0)],
        "heldout/r1_image_to_text": [(10, 0.5)],
        "train/late": [(5, 3.0)],
    }
    assert opened(output, "curves").last_step("train/loss") == 10


def test_pictures_and_files(output: Path, tmp_path: Path) -> None:
    run = opened(output, "files")
    (tmp_path / "map.png").write_bytes(b"png")
    (tmp_path / "page.html").write_text("page")
    run.log_picture(tmp_path / "map.png")
    run.log_file(tmp_path / "page.html", "evaluation")
    names = [
        item.path for folder in ("pictures", "evaluation") for item in run.client.list_artifacts(run.run_id, folder)
    ]
    assert names == ["pictures/map.png", "evaluation/page.html"]


def test_the_key_is_output_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    key = run_key(Config(name="a", output="runs"))
    assert key == run_key(Config(name="a", output=str(tmp_path / "runs"), train=TrainConfig(seed=5)))
    assert len({key, run_key(Config(name="b", output="runs")), run_key(Config(name="a", output="s3://b/runs"))}) == 3


def test_flatten_names_every_leaf() -> None:
    flat = flatten(Config(name="x"))
    assert flat["name"] == "x"
    assert flat["data.train"] == "[]"
    assert flat["model.image.kwargs"] == "{}"
    assert flat["model.text.source"] == '""'
    assert all(isinstance(value, str) and value for value in flat.values())


def test_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    embedded = resolve_store("", "runs")
    assert embedded.uri == f"sqlite:///{tmp_path}/runs/mlflow/mlflow.db"
    assert embedded.artifacts == f"file://{tmp_path}/runs/mlflow/artifacts"
    assert resolve_store("sqlite:///own.db", "s3://bucket").uri == f"sqlite:///{tmp_path}/own.db"
    assert resolve_store("https://tracking.example", "runs").artifacts is None
    for uri, output in (("", "s3://bucket/runs"), ("./mlruns", "runs"), (f"file://{tmp_path}/mlruns", "runs")):
        with pytest.raises(TrackingError, match=r"sqlite:///"):
            resolve_store(uri, output)


def test_an_unreachable_server_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = resolve_store("http://127.0.0.1:9", "runs")
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9"):
        open_experiment(open_client(store), store, "ito")


def test_a_deleted_experiment_is_named(output: Path) -> None:
    store = resolve_store("", str(output))
    client = open_client(store)
    client.delete_experiment(open_experiment(client, store, "gone"))
    with pytest.raises(TrackingError, match=r"tracking\.experiment=gone"):
        open_run(
            Config(output=str(output), tracking=TrackingConfig(experiment="gone")),
            recipe="tiny",
            dataset=dataset_identity("train", [], SHARDS),
            versions={},
            git="",
        )


def test_dataset_identity_depends_on_names_and_sizes_only() -> None:
    digest = dataset_identity("x", [], SHARDS).digest
    assert dataset_identity("x", ["p"], [("s3://other/a.tar", 10), ("s3://other/b.tar", 20)]).digest == digest
    assert dataset_identity("x", [], [("/data/b.tar", 20), ("/data/a.tar", 11)]).digest != digest
    assert dataset_identity("x", [], SHARDS[:1]).digest != digest


def test_git_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first", "--no-verify"]):
        subprocess.run([*git, *command], check=True)
    commit = git_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"


def test_versions_hold_what_decides_numbers() -> None:
    assert {"python", "torch", "timm", "transformers"} <= set(installed_versions())


CALLS = ("log_batch", "log_artifact", "log_inputs")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "error", [MlflowException("no\nmore"), OSError(28, "No space left on device"), requests.ConnectionError("away")]
)
def test_a_store_that_refuses_while_a_run_is_opened_leaves_none_running(
    output: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: Exception
) -> None:
    name = f"refused-{call}-{type(error).__name__}"

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(MlflowClient, call, refuse)
    with pytest.raises(TrackingError, match=r"does not .*(no|No space left on device|away)$"):
        opened(output, name)
    monkeypatch.undo()
    store = resolve_store("", str(output))
    client = open_client(store)
    (run,) = client.search_runs([open_experiment(client, store, "ito")], f"attributes.run_name = '{name}'")
    assert run.info.status == "FAILED"


def test_what_is_raised_before_the_work_begins_marks_the_run(output: Path) -> None:
    for error, status in ((ValueError("a bug"), "FAILED"), (KeyboardInterrupt(), "KILLED")):
        run = opened(output, f"failing-{status}")
        with pytest.raises(type(error)), failing(run):
            raise error
        assert run.client.get_run(run.run_id).info.status == status


def test_every_call_of_a_run_is_refused_in_a_sentence(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened(output, "sentences")
    again = opened(output, "sentences")
    page = output / "page.html"
    page.write_text("page")

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("the database is closed")

    for call in ("log_batch", "log_artifact", "set_terminated", "get_metric_history"):
        monkeypatch.setattr(MlflowClient, call, refuse)
    calls: list[Callable[[], object]] = [
        lambda: run.log(1, {"loss": 1.0}),
        lambda: run.set_tags({"a": "b"}),
        lambda: run.log_file(page),
        lambda: run.log_picture(page),
        run.finish,
        lambda: again.last_step("loss"),
    ]
    for refused in calls:
        with pytest.raises(TrackingError, match=r"The tracking server .* does not .*: the database is closed"):
            refused()


@pytest.mark.parametrize("kind", ["no database", "a folder", "a folder that nobody may write", "no driver"])
def test_a_store_that_cannot_be_opened_is_a_sentence(tmp_path: Path, kind: str) -> None:
    uri = {
        "no database": f"sqlite:///{tmp_path}/note.txt",
        "a folder": f"sqlite:///{tmp_path}/folder",
        "a folder that nobody may write": "sqlite:////proc/self/mine/mlflow.db",
        "no driver": "mssql+pymssql://localhost/mlflow",
    }[kind]
    (tmp_path / "note.txt").write_text("no database")
    (tmp_path / "folder").mkdir()
    with pytest.raises(TrackingError, match="cannot be opened"):
        open_client(resolve_store(uri, str(tmp_path)))

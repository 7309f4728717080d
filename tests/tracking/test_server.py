"""Over REST, with a real MLflow server: planted secrets stay out of everything, and promotions exclude each other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ito_ray.tracking.aliases import Registry
from ito_ray.tracking.run import open_client, resolve_store
from tests.export.tiny import export
from tests.tracking.servers import free_port, mlflow_server
from tests.tracking.test_aliases import race

pytestmark = pytest.mark.slow
TOKEN, KEY = "planted-token-5f1c", "planted-key-93ab"  # pragma: allowlist secret
REPOSITORY = Path(__file__).parents[2]
JOB = """
import sys
from pathlib import Path
from ito_ray.config.load import overlay, to_yaml
from ito_ray.config.schema import Config
from ito_ray.export.checks import folder_manifest, manifest_digest
from ito_ray.export.parity import Verified
from ito_ray.tracking.provenance import dataset_identity, git_commit, installed_versions
from ito_ray.tracking.registry import register
from ito_ray.tracking.run import open_run
from pipelines.command import exit_code
from pipelines.register import main

uri, folder, token = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
signed = f"https://bucket.example/a.tar?X-Amz-Signature={token}"
cfg = overlay(Config(), {"tracking": {"uri": uri}, "data": {"train": [signed]}, "output": sys.argv[4]}, source="test")
print(cfg, to_yaml(cfg), main(["list", "--tracking-uri", uri]))
data = dataset_identity("train", cfg.data.train, [(signed, 1)])
run = open_run(cfg, recipe="tiny", dataset=data, versions=installed_versions(), git=git_commit())
run.log(1, {"final/r1": 0.5})
verified = Verified(folder, manifest_digest(folder_manifest(folder)), 1e-7)
made = register(verified, store=run.store, experiment="ito", model_name="m", run=run, step=1, metrics={"final/r1": 0.5})
run.finish()
print(made, run.store, "at", run.store.address)
print(main(["list", "--tracking-uri", uri, "--name", "m"]), main(["rollback", "--tracking-uri", uri, "--reason", "x"]))
gone = uri.rsplit(":", 1)[0] + ":9"
print(main(["list", "--tracking-uri", gone]))
from mlflow import MlflowClient
print(exit_code(lambda: MlflowClient(gone, gone).search_experiments()))  # a bug: with a traceback of MLflow's
"""


class Server(NamedTuple):
    """A running MLflow server."""

    port: int
    folder: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    with mlflow_server(folder, port):
        yield Server(port, folder)


def test_planted_secrets_reach_neither_logs_nor_store(server: Server, tmp_path: Path) -> None:
    made = export(tmp_path / "export")
    uri = f"http://user:{TOKEN}@127.0.0.1:{server.port}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": KEY,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", JOB, uri, str(made.folder), TOKEN, str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=tmp_path,
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown

    store = resolve_store(f"http://127.0.0.1:{server.port}", ".")
    registry = Registry(open_client(store), store, "m")
    assert registry.aliases() == {"candidate": "1", "champion": "1"}  # it did arrive
    params = registry.client.get_run(str(registry.version("1").run_id)).data.params
    assert params["tracking.uri"] == f"http://***@127.0.0.1:{server.port}"
    assert "X-Amz-Signature=***" in params["data.train"]
    assert "Traceback" in shown and "***@127.0.0.1:9" in shown  # the errors were there, too

    places = {line: line.encode() for line in shown.splitlines()}
    places |= {str(path): path.read_bytes() for path in server.folder.rglob("*") if path.is_file()}
    places |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(name.endswith("config.yaml") for name in places)
    secrets = (TOKEN.encode(), KEY.encode())
    assert [name for name, content in places.items() if any(secret in content for secret in secrets)] == []


def test_promotions_exclude_each_other_over_rest(server: Server, tmp_path: Path) -> None:
    race(resolve_store(f"http://127.0.0.1:{server.port}", "."), tmp_path / "meeting", 4)

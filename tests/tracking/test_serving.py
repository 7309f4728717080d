"""What consumers do, over real processes: MLflow's loader, MLflow's server with real requests, and no ito_ray."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ito_ray.config.schema import Config
from ito_ray.export.checks import folder_manifest, manifest_digest
from ito_ray.export.parity import Verified, probe_images
from ito_ray.tracking.provenance import dataset_identity
from ito_ray.tracking.registry import register
from ito_ray.tracking.run import Store, open_run
from tests.export.tiny import Exported, export

STRANGER = """
import sys
sys.modules["ito_ray"] = None  # makes every import of it fail
import mlflow, numpy, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/served@champion")
picture = open(sys.argv[2], "rb").read()
answer = model.predict(pandas.DataFrame({"text": ["a photo of a red bird", None], "image": [None, picture]}))
assert answer["error"].isna().all() and answer["modality"].tolist() == ["text", "image"]
numpy.save(sys.argv[3], numpy.array(answer["embedding"].tolist()), allow_pickle=False)
"""
START_SECONDS = 300


class Registered(NamedTuple):
    made: Exported
    store: Store


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    made = export(tmp_path_factory.mktemp("export"))
    cfg = Config(name="run", output=str(tmp_path_factory.mktemp("runs")))
    run = open_run(cfg, recipe="tiny", dataset=dataset_identity("train", [], [("a.tar", 1)]), versions={}, git="abc")
    verified = Verified(made.folder, manifest_digest(folder_manifest(made.folder)), 1e-7)
    register(verified, store=run.store, experiment="ito", model_name="served", run=run)
    return Registered(made, run.store)


def environment(store: Store) -> dict[str, str]:
    """Of a consumer: nothing of ours on Python's path, and no pickle."""
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "MLFLOW_TRACKING_URI": store.uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.slow
def test_a_stranger_without_ito_ray_loads_it(registered: Registered, tmp_path: Path) -> None:
    made, store = registered
    picture, out = probe_images()[1], tmp_path / "embeddings.npy"
    (tmp_path / "picture.png").write_bytes(png(picture))
    command = [sys.executable, "-I", "-c", STRANGER, store.uri, "picture.png", str(out)]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path, env=environment(store))
    expected = made.encoder.encode_texts(["a photo of a red bird"]), made.encoder.encode_images([picture])
    np.testing.assert_allclose(np.load(out), np.concatenate(expected), atol=1e-5)


class Client:
    """Posts tables to `mlflow models serve`."""

    def __init__(self, address: str) -> None:
        self.address = address

    def post(self, body: Any, kind: str = "application/json") -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/invocations", data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)["predictions"]
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def rows(self, *rows: dict[str, Any], **params: Any) -> list[dict[str, Any]]:
        status, answer = self.post({"dataframe_records": rows, **({"params": params} if params else {})})
        assert status == 200, answer
        assert len(answer) == len(rows)
        return list(answer)


@pytest.fixture(scope="module")
def client(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    command = ["mlflow", "models", "serve", "-m", "models:/served@champion", "--env-manager", "local"]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "-h", "127.0.0.1", "-p", str(port)],
            env=environment(registered.store),
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"{address}/ping"):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log.txt").read_text()
            time.sleep(0.2)
        yield Client(address)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_the_server_answers_row_by_row_and_lives_on(registered: Registered, client: Client, tmp_path: Path) -> None:
    made = registered.made
    picture = probe_images()[2]
    good = {"text": "a photo of a red bird"}
    seen = {"image": base64.b64encode(png(picture)).decode()}
    expected_ND = np.concatenate([made.encoder.encode_texts([good["text"]]), made.encoder.encode_images([picture])])

    def assert_alive() -> None:
        np.testing.assert_allclose(_embeddings(client.rows(good, seen)), expected_ND, atol=1e-5)

    with ThreadPoolExecutor(8) as pool:  # rows of both kinds, each with its own key only; many requests at once
        for answer in pool.map(lambda _: client.rows(good, seen), range(16)):
            np.testing.assert_allclose(_embeddings(answer), expected_ND, atol=1e-5)
    np.testing.assert_allclose(_embeddings(client.rows(good)), expected_ND[:1], atol=1e-5)
    np.testing.assert_allclose(_embeddings(client.rows(seen)), expected_ND[1:], atol=1e-5)
    split = {"columns": ["text", "image"], "data": [[None, seen["image"]], [good["text"], None], [good["text"], ""]]}
    status, answer = client.post({"dataframe_split": split, "params": {"batch_size": 1}})
    assert status == 200
    np.testing.assert_allclose(_embeddings(answer), expected_ND[[1, 0, 0]], atol=1e-5)
    status, answer = client.post({"inputs": {"text": [good["text"], good["text"]]}})
    np.testing.assert_allclose(_embeddings(answer), expected_ND[[0, 0]], atol=1e-5)
    (long,) = client.rows({"text": "word " * 2000})
    np.testing.assert_allclose(long["embedding"], made.encoder.encode_texts(["word " * 2000])[0], atol=1e-5)

    (line,) = client.rows({"image": base64.b64encode(png(Image.new("RGB", (30_000, 1), "red"))).decode()})
    expected = made.encoder.encode_images([Image.new("RGB", (40, 40), "red")])[0]
    np.testing.assert_allclose(line["embedding"], expected, atol=1e-5)

    (tmp_path / "secret.png").write_bytes(png(picture))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/cat.png"
        bad: dict[str, dict[str, Any]] = {
            "image cannot be read": {"image": base64.b64encode(b"\x89PNG\r\n\x1a\n broken").decode()},
            "image of too many pixels (7072×7072, 40000000 are allowed)": {
                "image": base64.b64encode(png(Image.new("1", (7072, 7072)))).decode()
            },
            "not fetched": {"image": url},
            "image is not base64": {"image": str(tmp_path / "secret.png")},
            "both": {"text": "a bird", **seen},
            "neither": {"text": None},
            "text of 100001 characters": {"text": "a" * 100_001},
        }
        for reason, row in bad.items():
            first, failed, last = client.rows(good, row, seen)
            np.testing.assert_allclose(_embeddings([first, last]), expected_ND, atol=1e-5)
            assert failed["modality"] is None and failed["embedding"] is None
            assert failed["error"].startswith("row 1: ") and reason in failed["error"], failed["error"]
        assert "embedding" in client.rows({"text": url})[0]  # a text like any other
        with pytest.raises(BlockingIOError):
            listener.accept()  # nobody came

    for body, reason in (
        ({"dataframe_records": [{"caption": "a bird"}]}, "neither a column 'text' nor"),
        ({"dataframe_records": [good], "params": {"batch_size": 0}}, "give 1 to 1024"),
        ({"dataframe_records": [good], "params": {"batch_size": 10**9}}, "give 1 to 1024"),
        ({"rows": [good]}, "must be a JSON dictionary with exactly one of"),
        (b"{", "valid JSON"),
    ):
        status, message = client.post(body)
        assert (status, reason in message) == (400, True), (status, message)
    assert client.post(b"x", kind="text/plain")[0] == 415
    assert_alive()


def _embeddings(answer: list[dict[str, Any]]) -> NDArray[np.float64]:
    assert [row["error"] for row in answer] == [None] * len(answer)
    return np.array([row["embedding"] for row in answer])

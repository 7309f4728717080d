"""Nothing that consumes a model unpickles, and nothing of it opens a connection."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ito_ray.export.checks import folder_manifest, manifest_digest
from ito_ray.export.parity import Verified
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.tracking.registry import register
from ito_ray.tracking.run import resolve_store
from ito_ray.training import checkpoint
from ito_ray.training.learner import build_learner
from ito_ray.training.state import State
from tests.export.tiny import export
from tests.tiny import Vocabulary, tiny_config, tiny_method

REPOSITORY = Path(__file__).parents[2]
CONSUMER = """
import sys
sys.modules["ito_ray"] = None  # makes every import of it fail

import io, _pickle, pickle, socket
import mlflow, numpy, pandas, sentence_transformers, timm, torch
from PIL import Image

def forbidden(name):
    class Refused:
        def __init__(self, *arguments, **options):
            raise RuntimeError(f"{name} was called")
    return Refused

for module in (pickle, _pickle):
    for name in ("load", "loads", "Unpickler"):
        setattr(module, name, forbidden(f"pickle.{name}"))
pickle._load = pickle._loads = pickle._Unpickler = forbidden("pickle in Python")
torch.load = torch.serialization.load = forbidden("torch.load")

def watch(event, arguments):
    if event in ("pickle.find_class", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise RuntimeError(f"{event} {arguments[1:]}")
sys.addaudithook(watch)

picture = io.BytesIO()
Image.new("RGB", (40, 30), "red").save(picture, "PNG")
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
answer = model.predict(pandas.DataFrame({"text": ["a red bird", ""], "image": [b"", picture.getvalue()]}))
assert answer["modality"].tolist() == ["text", "image"]
assert numpy.isfinite(numpy.array(answer["embedding"].tolist())).all()

caught = 0  # and the guards do guard
for call in (
    lambda: pickle.loads(b"N."),
    lambda: pickle.Unpickler(io.BytesIO(b"N.")),
    lambda: torch.load(io.BytesIO(b"")),
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: socket.socket().connect(("127.0.0.1", 9)),
):
    try:
        call()
    except RuntimeError:
        caught += 1
print("consumed", caught)
"""


@pytest.mark.slow
def test_consuming_a_registered_model_unpickles_nothing_and_stays_offline(tmp_path: Path) -> None:
    made = export(tmp_path / "export")
    store = resolve_store("", str(tmp_path / "runs"))
    verified = Verified(made.folder, manifest_digest(folder_manifest(made.folder)), 1e-7)
    uri = register(verified, store=store, experiment="ito", model_name="m").uri
    done = subprocess.run(
        [sys.executable, "-I", "-c", CONSUMER, store.uri, uri],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "consumed 5"


def test_our_checkpoints_unpickle_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_config(train={"ema": 0.9})
    learner = build_learner(cfg, tiny_method(cfg))
    checkpoint.save(tmp_path, learner, State(3, {}, cfg.model_dump(mode="json"), "plan", [], {}))

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("something was unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    checkpoint.load(tmp_path, build_learner(cfg, tiny_method(cfg)))
    checkpoint.load_encoder(tmp_path, DualEncoder(cfg.model, Vocabulary()))


FORBIDDEN_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def _offences(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] != ["UnpicklingError"]:
            names = [node.module or ""]
        found += [f"imports {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.Call):
            given = {one.arg: one.value.value for one in node.keywords if isinstance(one.value, ast.Constant)}
            if ast.unparse(node.func) == "torch.load" and given.get("weights_only") is not True:
                found.append("calls torch.load without weights_only=True")
            found += [f"gives {name}=True" for name in ("trust_remote_code", "allow_pickle") if given.get(name) is True]
    return [f"{path.name}:{one}" for one in found]


def test_the_code_loads_nothing_that_can_run(tmp_path: Path) -> None:
    folders = ("ito_ray", "pipelines", "tune", "benchmarks")
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    assert len(files) > 100
    assert [offence for path in files for offence in _offences(path)] == []
    bad = tmp_path / "bad.py"
    bad.write_text(
        "from pickle import loads\ntorch.load(f)\nnp.load(f, allow_pickle=True)\ntorch.load(f, weights_only=True)"
    )
    assert [one.split(":")[1] for one in _offences(bad)] == [
        "imports pickle",
        "calls torch.load without weights_only=True",
        "gives allow_pickle=True",
    ]

"""The real command on a real Ray, killed with -9 and run again: the same vectors as without Ray, each key once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ito_ray.config.schema import ColumnsConfig
from ito_ray.embeddings.job import Job, alone, open_job
from ito_ray.embeddings.model import identify
from ito_ray.embeddings.spec import Spec
from ito_ray.errors import ClusterError
from ito_ray.evaluation.encoder import FolderEncoder
from ito_ray.runtime.embed import Pool, _share
from pipelines.embed import main
from tests.data.makers import picture, write_tar
from tests.data.store import Store, serving
from tests.embeddings.makers import table, vectors
from tests.export.tiny import export

ROOT = Path(__file__).parents[2]
SHARDS, ROWS = 24, 40


def _data(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        samples = [(f"k{shard:02d}{n:03d}", {"png": picture(n, size=40)}) for n in range(ROWS)]
        write_tar(folder / f"{shard:02d}.tar", [*samples, (f"bad{shard:02d}", {"png": b"no picture"})])
    return folder


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Iterator[Store]:
    _data(tmp_path / "bucket" / "data")
    with serving(tmp_path / "bucket") as store:
        yield store


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_killed_and_run_again_gives_each_key_once(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a store whose keys stand in the address, other ones at the second run."""
    made = export(tmp_path / "model")
    data, out = store.folder / "data", tmp_path / "out"

    def command_line(user: str) -> list[str]:
        address = store.url("data/*.tar").replace("s3://", "s3://" + ":".join((user, "its-word")) + "@")
        return ["--model", str(made.folder), "--data", address, "--out", str(out), "--batch-size", "16"]

    options = command_line("second")
    command = [sys.executable, "-m", "pipelines.embed", *command_line("first"), "--actors", "1", "1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    environment["PYTHONPATH"] = str(ROOT)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    done = out / ".embed" / "done"
    deadline = time.monotonic() + 400
    while len(list(done.glob("*.json"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    time.sleep(1)  # its workers follow
    kept = {path.stem: path.stat().st_mtime_ns for path in done.glob("*.json")}
    assert 3 <= len(kept) < SHARDS
    files = {stem: (out / "embeddings" / f"{stem}.parquet").stat().st_mtime_ns for stem in kept}
    assert main(options) == 0
    printed = capsys.readouterr().out
    for line in (f"{len(kept)} of {SHARDS} units", "dropped: image_unreadable", "rows/s", "pipelines.search index"):
        assert line in printed
    for stem, when in files.items():
        assert (out / "embeddings" / f"{stem}.parquet").stat().st_mtime_ns == when, "it was not made again"

    model = identify(made.folder, address=str(made.folder))
    straight = tmp_path / "straight"
    with alone(straight), ThreadPoolExecutor(1) as pool:
        job = open_job(straight, (str(data),), ColumnsConfig(), Spec("image", "float32", 160, 64_000_000, 32), model)
        assert isinstance(job, Job)
        encoder = FolderEncoder(made.folder, batch=16, device="cpu")
        for unit in job.units_to_embed():
            job.embed(unit, encoder, batch=16, pool=pool)
        expected = job.finish()
    keys = table(out)["key"].to_pylist()
    assert keys == table(straight)["key"].to_pylist() and len(set(keys)) == len(keys) == SHARDS * ROWS
    np.testing.assert_allclose(vectors(out), vectors(straight), atol=1e-6, rtol=0)
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["read"], manifest["embedded"]) == (SHARDS * (ROWS + 1), SHARDS * ROWS)
    assert manifest["dropped"] == expected["dropped"] == {"image_unreadable": SHARDS}
    assert manifest["model"]["sha256"] == model.checksum
    assert set(table(out)["shard"].to_pylist()) == {f"s3://bucket/data/{shard:02d}.tar" for shard in range(SHARDS)}
    assert not any(b"its-word" in path.read_bytes() for path in out.rglob("*") if path.is_file())

    assert main(options) == 0
    assert "already holds these embeddings" in capsys.readouterr().out
    assert main([*options, "--dtype", "float16"]) == 2
    assert "holds another job (dtype" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pool", "resources", "share"),
    [
        (Pool(), {"CPU": 8}, (1, 8, 1, 0)),
        (Pool(), {"CPU": 64, "GPU": 8}, (1, 8, 8, 1)),
        (Pool(cpus=4), {"CPU": 64, "GPU": 8}, (1, 8, 4, 1)),
        (Pool(gpus=0.5), {"CPU": 64, "GPU": 8}, (1, 16, 4, 0.5)),
        (Pool(gpus=0), {"CPU": 16, "GPU": 8}, (1, 16, 1, 0)),
        (Pool(actors=(2, 40)), {"CPU": 8}, (2, 40, 1, 0)),
        (Pool(actors=(2, 4), cpus=4), {"CPU": 8}, (2, 4, 4, 0)),
    ],
)
def test_what_actors_get(pool: Pool, resources: dict[str, float], share: tuple[float, ...]) -> None:
    found = _share(pool, resources, units=100)
    assert (found.least, found.most, found.cpus, found.gpus) == share


def test_an_actor_for_each_unit_at_most() -> None:
    assert _share(Pool(), {"CPU": 8}, units=3).most == 3


@pytest.mark.parametrize("pool", [Pool(actors=(9, 9)), Pool(cpus=9), Pool(gpus=1)])
def test_a_cluster_without_room_is_refused(pool: Pool) -> None:
    with pytest.raises(ClusterError, match=r"do not fit the cluster, which has 8 CPUs and 0 GPUs"):
        _share(pool, {"CPU": 8}, units=100)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "nowhere"], "--model nowhere is not a SentenceTransformer folder"),
        (["--model", "models:/a@b", "--tracking-uri", "sqlite:///none.db"], "There is no model registry at sqlite"),
        (["--model", "x", "--actors", "2", "1"], "--actors is 2 1"),
        (["--model", "x", "--batch-size", "0"], "--batch-size is 0"),
        (["--model", "x", "--thumbnail", "-1"], "--thumbnail is -1"),
    ],
)
def test_mistakes_are_sentences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main([*options, "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

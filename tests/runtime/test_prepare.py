"""Prepare on a real Ray: the same bytes as in one process, also when it was killed; mistakes come as sentences."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from ito_ray.data.prepare.options import Folder, Shards
from ito_ray.errors import DataError
from ito_ray.runtime.prepare import prepare
from pipelines.prepare import main
from tests.data.makers import picture, write_tar
from tests.data.prepare.makers import caption, run, shards_of, write_pictures

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def _pairs(folder: Path, count: int) -> Path:
    for number, path in enumerate(write_pictures(folder, count)):
        path.with_suffix(".txt").write_text(caption(number), encoding="utf-8")
    return folder


@pytest.mark.usefixtures("local_ray")
def test_ray_makes_the_same_bytes_as_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    for shard in range(3):
        rows = range(shard * 200, shard * 200 + 200)
        write_tar(tars / f"{shard}.tar", [(f"k{n:04d}", {"png": picture(n % 590), "txt": b"text"}) for n in rows])
    command = ["shards", str(tars), "--per-shard", "90", "--val-fraction", "0.1", "--dedup", "exact"]
    assert main([*command, "--out", str(tmp_path / "ray")]) == 0
    printed = capsys.readouterr().out
    options = Shards(shards=(str(tars),), out=tmp_path / "one", per_shard=90, val_fraction=0.1, dedup="exact")
    manifest = run(options)
    assert shards_of(tmp_path / "ray") == shards_of(tmp_path / "one")
    assert manifest == json.loads((tmp_path / "ray" / "manifest.json").read_text())
    assert manifest["dropped"] == {"duplicate_image": 10}
    for line in ("sum = inputs", "dropped: duplicate_image", "pipelines.doctor --data", "600"):
        assert line in printed
    assert main([*command, "--out", str(tmp_path / "ray")]) == 0
    assert "already holds this data" in capsys.readouterr().out


@pytest.mark.usefixtures("local_ray")
def test_a_mistake_found_by_a_task_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _pairs(tmp_path / "pairs", 8)
    options = Folder(folder=folder, out=tmp_path / "out")
    monkeypatch.setattr("ito_ray.runtime.prepare.Job.is_planned", property(lambda job: _spoil(folder)))
    with pytest.raises(DataError, match=r"^\S*img.0000.png \(\S+\) is not what it was when it was inspected"):
        prepare(options, Console(quiet=True))


def _spoil(folder: Path) -> bool:
    """Stands between the two steps: a picture becomes another one."""
    (folder / "part0" / "img.0000.png").write_bytes(picture(99))
    return False


@pytest.mark.usefixtures("local_ray")
def test_killed_and_run_again_gives_the_bytes_of_an_undisturbed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _pairs(tmp_path / "pairs", 1600)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pipelines.prepare", "folder", str(folder), "--out", str(out), "--per-shard", "25"]
    command += ["--val-fraction", "0.1", "--max-side", "16"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    made = out / ".prepare" / "made"
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while len(list(made.glob("*.json"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    time.sleep(1)  # its workers follow
    kept = [json.loads(path.read_text()) for path in made.glob("*.json")]
    total = len(json.loads((out / ".prepare" / "account.json").read_text())["shards"])
    assert 0 < len(kept) < total
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*/*.tar")}
    assert main(command[3:]) == 0
    assert "were done before" in capsys.readouterr().out
    run(Folder(folder=folder, out=tmp_path / "undisturbed", per_shard=25, val_fraction=0.1, max_side=16))
    assert shards_of(out) == shards_of(tmp_path / "undisturbed")
    unchanged = [name for name, when in times.items() if next(out.glob(f"*/{name}")).stat().st_mtime_ns == when]
    assert len(unchanged) >= len(kept)

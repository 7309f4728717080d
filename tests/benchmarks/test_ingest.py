"""The ingest benchmark counts whole process trees, compares within a round, and makes the shards it says."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from benchmarks import feeds
from benchmarks.feeds import Order, read_clock
from benchmarks.ingest import TITLES, ratios, summary, table
from benchmarks.pictures import describe, made_up, prepare
from benchmarks.processes import cpu_seconds, memory_bytes
from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.plan import Piece
from ito_ray.data.rows import read_piece
from ito_ray.data.shards import list_shards
from ito_ray.errors import DataError
from tests.data.makers import picture, write_tar

BURN = "import time\nwhile time.process_time() < 0.4: pass\n"
READ = {
    "samples": 100.0,
    "cpu_seconds": 1.0,
    "wall_seconds": 2.0,
    "normalize_cpu_ms": 0.3,
}


def _round(**cpu: float) -> dict[str, dict[str, float]]:
    return {feed: {**READ, "cpu_seconds": cpu.get(feed, 1.0)} for feed in TITLES}


def test_cpu_of_a_finished_grandchild_counts() -> None:
    before = cpu_seconds(os.getpid())
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])"
    subprocess.run([sys.executable, "-c", child], check=True)
    assert cpu_seconds(os.getpid()) - before >= 0.4


def test_memory_is_that_of_the_whole_tree() -> None:
    alone = memory_bytes(os.getpid())
    hold = "import sys\nheld = bytearray(200 << 20)\nprint(flush=True)\nsys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert memory_bytes(os.getpid()) - alone > 190 << 20
    child.communicate()


def test_the_clock_starts_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    given = 0

    def batches() -> Iterator[int]:
        nonlocal given
        while True:
            given += 10
            yield 10

    monkeypatch.setattr(feeds, "cpu_seconds", lambda root: float(given))
    found = read_clock(batches(), Order("tar", "", warmup=25, samples=45))
    assert found["samples"] == found["cpu_seconds"] == 50


def test_ratios_are_of_one_round() -> None:
    rounds = [_round(peer=2.0, tar=1.0), _round(peer=40.0, tar=10.0), _round(peer=3.0, tar=1.0)]
    assert ratios(rounds, "tar", "peer") == [3.0, 2.0, 4.0]


def test_fields_and_table() -> None:
    rounds = [_round(peer=3.0, tar=1.0, limit_tar=0.8, parquet=1.5, limit_parquet=1.2)]
    peaks = {feed: number * 2**20 for number, feed in enumerate(TITLES, start=1)}
    fields = summary(rounds, peaks, {"bytes_per_sample": 301_364.0})
    assert fields["tar_cpu_speedup_vs_peer"] == 3.0 and fields["parquet_cpu_speedup_vs_peer"] == 2.0
    fractions = [fields["tar_fraction_of_limit"], fields["parquet_fraction_of_limit"]]
    assert fractions == pytest.approx([0.8, 0.8])
    assert fields["peak_rss_mb"] == 5 and fields["bytes_per_sample"] == 301_364
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(rounds, peaks, "title"))
    shown = console.export_text()
    assert "3.00 (3.00–3.00)" in shown and "0.80 (0.80–0.80)" in shown and "10.00" in shown


def test_pictures_cost_what_photographs_cost_to_decode() -> None:
    samples = list(made_up(4))
    found = describe(samples)
    assert 400**2 <= found["pixels"] <= 640**2 and 2 < found["bits_per_pixel"] < 4.5
    assert Image.open(io.BytesIO(samples[0].image)).format == "JPEG"
    assert samples == list(made_up(4)) and len({sample.image for sample in samples}) == 4


def test_tar_and_parquet_hold_the_same_and_are_made_once(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    names = ("a red_fox", "two-birds")
    for number, name in enumerate(names):
        (source / f"{name}.png").write_bytes(picture(number))
    (source / "notes.jpg").write_bytes(b"no picture")
    found = prepare(tmp_path / "shards", 10, source)
    assert found["samples"] == 2
    rows = [_rows(tmp_path / "shards" / format) for format in ("tar", "parquet")]
    assert rows[0] == rows[1] == [(picture(0), ("a red fox",)), (picture(1), ("two birds",))]
    (source / "later.png").write_bytes(picture(3))
    assert prepare(tmp_path / "shards", 10, source) == found, "made once"
    assert prepare(tmp_path / "shards", 1, source)["samples"] == 1, "another order is another set"


def _rows(folder: Path) -> list[tuple[bytes | None, tuple[str, ...]]]:
    shards = list_shards([str(folder)], field="test")
    return [
        (row.image, row.captions) for shard in shards for row in read_piece(Piece(shard.url, 0, 1), ColumnsConfig())
    ]


def test_samples_may_come_from_shards(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    write_tar(source / "some.tar", [("a", {"png": picture(0), "txt": b"one"}), ("b", {"txt": b"no image"})])
    assert prepare(tmp_path / "shards", 10, source)["samples"] == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image was found"):
        prepare(tmp_path / "other", 10, tmp_path / "empty")

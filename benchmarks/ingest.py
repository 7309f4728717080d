"""What it costs to feed training: `python -m benchmarks.ingest [--quick] [--json FILE] [--source FOLDER]`.

Samples per CPU-second, and per second, delivered to a training process at 224 px with two views and tokenised captions:

- the peer: webdataset in torch's DataLoader with OpenCLIP's transform of floats and its tokenizer, decoded once;
- the bare limit: our own work on a sample in a plain loop, without Ray, from tar and from Parquet;
- our stream through Ray Data into a Ray Train worker, from tar and from Parquet.

The feeds take turns, each time in a fresh process, and are counted after a warm-up (benchmarks/feeds.py): CPU time is
user and system time of all processes of the feed, Ray's daemons, the object store and the training process included.
Ratios are taken within a round; the table gives their median, and the smallest and largest.

`--minutes 10` instead runs the tar stream alone for ten minutes and shows its memory. Linux only.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.pictures import prepare
from benchmarks.processes import memory_bytes
from ito_ray.errors import DataError

TITLES = {
    "peer": "webdataset + DataLoader, OpenCLIP's transform",
    "limit_tar": "bare limit, tar: no Ray",
    "tar": "Ray Data, tar",
    "limit_parquet": "bare limit, Parquet: no Ray",
    "parquet": "Ray Data, Parquet",
}
WARMUP = {"peer": 512, "limit_tar": 256, "limit_parquet": 256, "tar": 4096, "parquet": 4096}
"""Samples. The streams' covers what is made while the training process starts: Ray reads ahead."""
SAMPLES = {"peer": 4096, "limit_tar": 4096, "limit_parquet": 4096, "tar": 12288, "parquet": 12288}
"""Of a reading. The streams hand over blocks of 256, and what lies between the tasks and the trainer at either end of a
reading differs by a block or two: that must not count."""
MIB = 2**20
Reading = dict[str, float]


@dataclass(frozen=True)
class Ingest:
    """Samples per CPU-second of OpenCLIP's pipeline and of ours."""

    quick: bool = False
    """Two rounds instead of five, and readings half as long."""
    json: Path | None = None
    """Also write the ratios here."""
    data: Path = Path("runs/ingest-shards")
    """Where the shards are made, and found the next time."""
    samples: int = 2048
    """How many different samples the shards hold; they are read again and again."""
    source: Path | None = None
    """Take the samples from this folder of images or shards instead of making pictures up."""
    minutes: float = 0.0
    """Run the tar stream this long and show its memory; 0 = compare the feeds."""


def run_feed(order: Mapping[str, Any], watch: Callable[[float, int], None] | None = None) -> tuple[Reading, int]:
    """One feed in a fresh process; its reading and its largest memory in bytes, looked up once a second.

    Args:
        watch: called with (seconds since the start, bytes) at every look.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "benchmarks.feeds", json.dumps(order)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        feed = subprocess.Popen(command, env=environment, stdout=out, stderr=errors)
        started, peak = time.perf_counter(), 0
        while feed.poll() is None:
            try:
                now = memory_bytes(feed.pid)
            except psutil.NoSuchProcess:  # between the two lines
                continue
            peak = max(peak, now)
            if watch:
                watch(time.perf_counter() - started, now)
            time.sleep(1.0)
        out.seek(0), errors.seek(0)
        if feed.returncode:
            raise RuntimeError(f"The feed {order['feed']} failed:\n{errors.read()[-2000:]}")
        reading: Reading = json.loads(out.read().splitlines()[-1])
    return reading, peak


def per_second(reading: Reading, clock: str) -> float:
    """Samples per second of the clock `cpu` or `wall`."""
    return reading["samples"] / reading[f"{clock}_seconds"]


def ratios(rounds: Sequence[Mapping[str, Reading]], one: str, other: str, clock: str = "cpu") -> list[float]:
    """[median, smallest, largest] of how much more samples a second feed `one` makes than `other`, round by round."""
    each = [per_second(read[one], clock) / per_second(read[other], clock) for read in rounds]
    return [statistics.median(each), min(each), max(each)]


def summary(rounds: Sequence[Mapping[str, Reading]], peaks: Mapping[str, int], stored: Reading) -> dict[str, Any]:
    """The JSON fields."""
    fields: dict[str, Any] = {}
    for format in ("tar", "parquet"):
        for name, one, other in (
            ("cpu_speedup_vs_peer", format, "peer"),
            ("fraction_of_limit", format, f"limit_{format}"),
        ):
            found = ratios(rounds, one, other)
            fields[f"{format}_{name}"], fields[f"{format}_{name}_spread"] = found[0], found[1:]
    return {
        **fields,
        "bytes_per_sample": stored["bytes_per_sample"],
        "peak_rss_mb": max(peaks["tar"], peaks["parquet"]) / MIB,
        "peer_peak_rss_mb": peaks["peer"] / MIB,
        "normalize_cpu_ms": statistics.median(read["limit_tar"]["normalize_cpu_ms"] for read in rounds),
        "rounds": rounds,
    }


def table(rounds: Sequence[Mapping[str, Reading]], peaks: Mapping[str, int], title: str) -> Table:
    """A row for each feed."""
    shown = Table(title=title)
    for heading in (
        "feed",
        "CPU-ms a sample",
        "samples / CPU-s",
        "× peer",
        "of the limit",
        "samples / s",
        "peak memory",
    ):
        shown.add_column(heading, justify="left" if heading == "feed" else "right")
    for feed, name in TITLES.items():
        cpu, wall = (statistics.median(per_second(read[feed], clock) for read in rounds) for clock in ("cpu", "wall"))
        limited = (
            "{:.2f} ({:.2f}–{:.2f})".format(*ratios(rounds, feed, f"limit_{feed}"))
            if feed in ("tar", "parquet")
            else ""
        )
        shown.add_row(
            name,
            f"{1000 / cpu:.2f}",
            f"{cpu:.0f}",
            "{:.2f} ({:.2f}–{:.2f})".format(*ratios(rounds, feed, "peer")),
            limited,
            f"{wall:.0f}",
            f"{peaks[feed] / MIB:,.0f} MiB",
        )
    return shown


def compare(shards: Path, options: Ingest, console: Console) -> tuple[list[dict[str, Reading]], dict[str, int]]:
    """All rounds, each starting with another feed, and every feed's largest memory."""
    count, shorter = (2, 2) if options.quick else (5, 1)
    peaks = dict.fromkeys(TITLES, 0)
    rounds: list[dict[str, Reading]] = []
    names = list(TITLES)
    for number in range(count):
        read: dict[str, Reading] = {}
        for feed in names[number % len(names) :] + names[: number % len(names)]:
            with console.status(f"round {number + 1} of {count}: {TITLES[feed]}"):
                lengths = {"warmup": WARMUP[feed], "samples": SAMPLES[feed] // shorter}
                read[feed], peak = run_feed({"feed": feed, "shards": str(shards), **lengths})
            peaks[feed] = max(peaks[feed], peak)
        rounds.append(read)
    return rounds, peaks


def memory_over_time(shards: Path, minutes: float, console: Console) -> dict[str, float]:
    """Run the tar stream and print its memory every half minute; the means of two quarters of the time."""
    looks: list[tuple[float, int]] = []

    def watch(seconds: float, size: int) -> None:
        if not looks or seconds // 30 > looks[-1][0] // 30:
            console.print(f"{seconds / 60:5.1f} min  {size / MIB:8,.0f} MiB")
        looks.append((seconds, size))

    order = {"feed": "tar", "shards": str(shards), "warmup": WARMUP["tar"], "samples": 0, "seconds": 60 * minutes}
    reading, peak = run_feed(order, watch)
    begin, end = looks[-1][0] - 60 * minutes, looks[-1][0]
    first, last = (
        statistics.mean(size for seconds, size in looks if low <= (seconds - begin) / (end - begin) < high) / MIB
        for low, high in ((0.1, 0.3), (0.75, 0.95))  # nothing of the start and of the end
    )
    console.print(
        f"{first:,.0f} MiB after the start, {last:,.0f} MiB before the end, {reading['samples']:,.0f} samples."
    )
    return {
        "minutes": minutes,
        "samples": reading["samples"],
        "rss_first_mb": first,
        "rss_last_mb": last,
        "memory_growth": last / first,
        "peak_rss_mb": peak / MIB,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the shards, measure, print, write the JSON; the exit code."""
    options = tyro.cli(Ingest, args=arguments, prog="python -m benchmarks.ingest", description=__doc__)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    try:
        with console.status("Shards"):
            described = prepare(options.data, options.samples, options.source)
    except DataError as error:
        console.print(str(error), style="red")
        return 2
    title = (
        f"{described['samples']:.0f} samples of {described['pixels'] / 1e6:.2f} megapixels and "
        f"{described['bytes'] / 1024:.0f} KiB; 224 px, two views; {os.cpu_count()} cores"
    )
    if options.minutes:
        console.print(title)
        fields: dict[str, Any] = memory_over_time(options.data, options.minutes, console)
    else:
        rounds, peaks = compare(options.data, options, console)
        stored, _ = run_feed({"feed": "bytes", "shards": str(options.data), "warmup": 0, "samples": 0})
        console.print(table(rounds, peaks, title))
        fields = summary(rounds, peaks, stored)
        share = stored["bytes_per_sample"] / (2 * 3 * 224**2)
        console.print(
            f"Object store: {stored['bytes_per_sample']:,.0f} bytes a sample, {share:.3f} × its pixels. The peer hands "
            "over float32; turning our bytes into that on a CPU takes another "
            f"{fields['normalize_cpu_ms']:.2f} CPU-ms a sample."
        )
    if options.json:
        options.json.write_text(
            json.dumps({**fields, "data": described, "options": asdict(options)}, indent=1, default=str) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

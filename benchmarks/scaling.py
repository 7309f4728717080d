"""From 8 GPUs to 1,024, on paper: `python -m benchmarks.scaling [--quick] [--json FILE] [--ingest FILE]`.

Efficiency is the share of a step in which towers and fusion are computed, for global batches to 65,536 and three ways
to exchange features: all-gather as built, the same with a reduce-scatter backward, chunks passed round as in SigLIP.
The arithmetic is in benchmarks/network.py. Every number that it starts from is an option and is printed; those of a GPU
and of its network are assumptions until somebody measures them. It leaves out stragglers, restarts, evaluations and
checkpoints, and assumes that time is proportional to pairs.

The model is checked against one and two gloo ranks measured here (benchmarks/ranks.py).
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.network import Network, Step, Work, step
from ito_ray.errors import DataError, ItoError

RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)
BATCHES = (2048, 8192, 32768, 65536)
EXCHANGES = {"gathered": "all-gather, as built", "scattered": "with reduce-scatter", "chunked": "chunks passed round"}
FLOPS_PER_PAIR = 1.86 * 0.98e12 / 8
"""Of ITO on ViT-B/16, forward and backward: docs/method.md, counted by benchmarks.step_cost."""
HOUR = 3600.0


@dataclass(frozen=True)
class Scaling:
    """Efficiency, CPU nodes, object store and cost from 8 to 1,024 GPUs."""

    quick: bool = False
    """Check against fewer measured steps: seconds instead of minutes."""
    json: Path | None = None
    """Also write all numbers here."""
    step_cost: Path | None = None
    """JSON of benchmarks.step_cost: FLOPs of a pair; from a GPU also its seconds."""
    ingest: Path | None = None
    """JSON of benchmarks.ingest: CPU-seconds and bytes of a sample. Without it nothing is said about CPU nodes."""
    pair_ms: float = 0.0
    """Measured milliseconds of a pair on one GPU; 0 = FLOPs / (tflops × utilisation)."""
    tflops: float = 312.0
    """Of one GPU in bf16 (an A100's)."""
    utilisation: float = 0.4
    """Share of them that training reaches: an assumption."""
    network: Network = field(default_factory=Network)
    """Assumed."""
    cpus_per_node: int = 32
    """Of a data node."""
    rows_per_task: int = 256
    view_bytes: int = 2 * 3 * 224**2
    """Decoded pixels of a sample."""
    steps: int = 160_000
    """Of the run whose cost is counted, at every batch size."""
    gpu_node_price: float = 0.0
    """Of a GPU node for an hour; 0 = count hours only."""
    cpu_node_price: float = 0.0
    """Of a data node for an hour."""


@dataclass(frozen=True)
class Feed:
    """What a sample costs before training sees it, measured by benchmarks.ingest."""

    cpu_seconds: float
    """Of all processes, Ray's included; of the format that costs more."""
    stored_bytes: float
    """In the object store."""


def read_feed(path: Path) -> Feed:
    """The medians in the JSON of benchmarks.ingest.

    Raises:
        DataError: not such a file.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        each = {
            name: statistics.median(read[name]["cpu_seconds"] / read[name]["samples"] for read in found["rounds"])
            for name in ("tar", "parquet")
        }
        return Feed(max(each.values()), float(found["bytes_per_sample"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"--ingest {path} is not what `python -m benchmarks.ingest --json` writes: {error}.") from error


def pair_seconds(options: Scaling) -> tuple[float, str]:
    """Seconds of a pair on one GPU, and where that comes from.

    Raises:
        DataError: `--step-cost` names something else than its JSON.
    """
    if options.pair_ms:
        return options.pair_ms / 1e3, "given"
    flops = FLOPS_PER_PAIR
    if options.step_cost:
        try:
            found = json.loads(options.step_cost.read_text("utf-8"))
            setting, ito = found["setting"], found["measured"]["ito"]
            if setting["device"] != "cpu":
                return statistics.median(ito["wall_seconds"]) / setting["batch"], f"measured on {setting['device']}"
            flops = ito["flops"] / setting["batch"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"--step-cost {options.step_cost} is not what `python -m benchmarks.step_cost --json` writes: {error}."
            ) from error
    seconds = flops / (options.tflops * 1e12 * options.utilisation)
    return seconds, f"assumed: {flops / 1e12:.3f} TFLOP at {options.utilisation:.0%} of {options.tflops:g} TFLOP/s"


def cpu_nodes(options: Scaling, feed: Feed, samples_per_second: float) -> float:
    """Data nodes for one GPU node."""
    return samples_per_second * feed.cpu_seconds / options.cpus_per_node


def store_bytes(options: Scaling, cpus: float, ranks: int) -> float:
    """What the stream may hold of decoded pixels, as in runtime/trainer.py: two blocks a CPU and four a rank."""
    return (2 * cpus + 4 * ranks) * options.rows_per_task * options.view_bytes


def row(options: Scaling, work: Work, feed: Feed | None, ranks: int, batch: int) -> dict[str, float]:
    """All numbers of one size."""
    found: Step = step(work, options.network, ranks, batch)
    seconds = found.seconds()
    gpu_nodes = max(1.0, ranks / options.network.gpus_per_node)
    numbers = {"ranks": ranks, "batch": batch, "step_seconds": seconds, "samples_per_second": batch / seconds}
    numbers |= {f"{name}_efficiency": found.efficiency(name) for name in EXCHANGES}
    numbers |= {f"{name}_seconds": value for name, value in asdict(found).items()}
    numbers["gathered_bytes"] = 2 * work.features(batch)  # features and their gradients, on every GPU
    hours = options.steps * seconds / HOUR
    numbers["gpu_node_hours"] = hours * gpu_nodes
    if feed:
        nodes = cpu_nodes(options, feed, batch / seconds)
        cpus = nodes * options.cpus_per_node
        numbers |= {
            "cpu_nodes": nodes,
            "cpu_nodes_per_gpu_node": nodes / gpu_nodes,
            "store_bytes": store_bytes(options, cpus, ranks),
            "pixel_gbit_per_gpu_node": 8 * feed.stored_bytes * batch / seconds / gpu_nodes / 1e9,
            "cpu_node_hours": hours * nodes,
        }
    numbers["cost"] = (
        numbers["gpu_node_hours"] * options.gpu_node_price + numbers.get("cpu_node_hours", 0.0) * options.cpu_node_price
    )
    return numbers


def efficiencies(rows: Sequence[dict[str, float]]) -> Table:
    """Efficiency by GPUs and batch, one column a way to exchange features."""
    shown = Table(title="Efficiency: share of a step in which towers and fusion are computed")
    for heading in ("GPUs", "batch", "step", *EXCHANGES.values(), "most time lost to", "features on each GPU"):
        shown.add_column(heading, justify="right")
    for one in rows:
        shares = [f"{one[f'{name}_efficiency']:.0%}" for name in EXCHANGES]
        memory = f"{one['gathered_bytes'] / 2**20:,.0f} MiB"
        step_ms = f"{1e3 * one['step_seconds']:,.1f} ms"
        shown.add_row(f"{one['ranks']:,}", f"{one['batch']:,}", step_ms, *shares, most_lost(one), memory)
    return shown


def most_lost(one: dict[str, float]) -> str:
    """What costs most beside towers and fusion, and its share of the step."""
    names = {"losses": "logits", "gradients": "gradients", "gathered": "features"}
    worst = max(names, key=lambda part: one[f"{part}_seconds"])
    return f"{names[worst]} {one[f'{worst}_seconds'] / one['step_seconds']:.0%}"


def feeding(options: Scaling, rows: Sequence[dict[str, float]]) -> Table:
    """Data nodes, object store, network and hours."""
    shown = Table(title=f"Feeding and cost of {options.steps:,} steps; data nodes of {options.cpus_per_node} CPUs")
    headings = ("GPUs", "batch", "samples / s", "data nodes", "… a GPU node", "object stores", "pixels into a GPU node")
    for heading in (*headings, "GPU node hours", "data node hours", "cost"):
        shown.add_column(heading, justify="right")
    for one in rows:
        shown.add_row(
            f"{one['ranks']:,}",
            f"{one['batch']:,}",
            f"{one['samples_per_second']:,.0f}",
            f"{one['cpu_nodes']:,.1f}",
            f"{one['cpu_nodes_per_gpu_node']:.1f}",
            f"{one['store_bytes'] / 2**30:,.0f} GiB",
            f"{one['pixel_gbit_per_gpu_node']:.1f} Gbit/s",
            f"{one['gpu_node_hours']:,.0f}",
            f"{one['cpu_node_hours']:,.0f}",
            f"{one['cost']:,.0f}" if one["cost"] else "no prices",
        )
    return shown


def compute(options: Scaling) -> tuple[list[dict[str, float]], list[str]]:
    """All sizes, and the assumptions in words.

    Raises:
        DataError: a file that is not what its option says.
    """
    seconds, source = pair_seconds(options)
    work = Work(seconds)
    feed = read_feed(options.ingest) if options.ingest else None
    net = options.network
    assumptions = [
        f"a pair takes {1e3 * seconds:.2f} ms of a GPU ({source})",
        f"{net.gpus_per_node} GPUs a node, {net.node_gbit:g} Gbit/s between nodes, {net.inside_gbyte:g} GB/s inside, "
        f"{net.latency_us:g} µs a message (assumed)",
        f"{work.parameters / 1e6:g} M parameters in float32, all-reduced behind {work.overlap:.0%} of backward",
        f"{work.rows} float32 vectors of {work.width} a pair; losses at {work.float32_tflops:g} TFLOP/s (assumed)",
    ]
    if feed:
        assumptions.append(
            f"a sample takes {1e3 * feed.cpu_seconds:.1f} ms of a CPU and {feed.stored_bytes:,.0f} bytes (measured, "
            f"{options.ingest}); data nodes are assumed to have such CPUs and to lose nothing to each other"
        )
    sizes = [(ranks, batch) for batch in BATCHES for ranks in RANKS if batch // ranks >= 8]
    return [row(options, work, feed, ranks, batch) for ranks, batch in sizes], assumptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute, check against this machine, print, write the JSON; the exit code."""
    options = tyro.cli(Scaling, args=arguments, prog="python -m benchmarks.scaling", description=__doc__)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    try:
        rows, assumptions = compute(options)
    except ItoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print("\n".join(f"- {one}" for one in assumptions))
    console.print(efficiencies(rows))
    if options.ingest:
        console.print(feeding(options, rows))
    else:
        console.print("Data nodes and cost: give --ingest FILE, of python -m benchmarks.ingest --json FILE.")
    check = _check(options, console)
    if options.json:
        fields: dict[str, Any] = {"assumptions": assumptions, "rows": rows, "check": check, "options": asdict(options)}
        options.json.write_text(json.dumps(fields, indent=1, default=str) + "\n")
    return 0


def _check(options: Scaling, console: Console) -> dict[str, float]:
    """Two ranks as the model has them, and as they are."""
    from benchmarks.ranks import measure, summary  # torch and transformers take seconds that --help should not

    pairs, repeats = (4, 3) if options.quick else (8, 15)
    with console.status("Check: two gloo ranks on this machine"):
        check = summary(measure(pairs, repeats), pairs)
    console.print(
        f"Check: small ViT, {pairs} pairs a rank, gloo at {check['gbit']:.1f} Gbit/s: one rank {check['alone']:.3f} s, "
        f"two {check['together']:.3f} s a step; the model says {check['predicted']:.3f} s, "
        f"{check['predicted_to_measured']:.2f} × the measured."
    )
    return check


if __name__ == "__main__":
    sys.exit(main())

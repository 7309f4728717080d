"""What a training step costs beside OpenCLIP's own: `python -m benchmarks.step_cost [--quick] [--json FILE]`.

Five steps – OpenCLIP's CLIP; ours; ours with two views; ITO; ITO as its paper's text reads, written on OpenCLIP – on
the same weights, batch and precision, in one process, interleaved. A step is zero_grad, forward, loss, backward, AdamW.
Before anything is timed, OpenCLIP's CLIP and ours, and both ITOs, must give the same loss.

Headline of time: on a CPU the CPU-seconds of the process, which other programs on the machine disturb less than the
wall clock; on a GPU the wall clock, synchronised. Every ratio is a step of one repeat over OpenCLIP's step of the same
repeat; the table gives the median, and the smallest and largest. Memory: see benchmarks/peak.py. FLOPs: torch's
counter, attention counted in full, as its matrix products.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peak import measure_in_fresh_process
from benchmarks.summary import REFERENCE, Measured, ratios, summary
from benchmarks.variants import SAME_LOSS, TITLES, Setting, Step, build

GIB = 2**30


@dataclass(frozen=True)
class StepCost:
    """Time, peak memory and FLOPs of OpenCLIP's CLIP step and of ours, side by side."""

    quick: bool = False
    """A few repeats, small batches: a quarter of an hour instead of half on two cores."""
    json: Path | None = None
    """Also write the ratios of ViT-B/16 here."""
    batch: int = 0
    """Pairs a step on ViT-B/16; 0 = 16 (8 with --quick)."""
    repeats: int = 0
    """Interleaved repeats on ViT-B/16; 0 = 5 (2 with --quick)."""
    precision: str = "auto"
    """fp32, bf16, or auto: fp32 on a CPU and bf16 on a GPU."""
    threads: int = 2
    """Torch threads on a CPU."""


def check_losses(steps: dict[str, Step], tolerance: float) -> None:
    """A benchmark of different things would be worthless.

    Raises:
        RuntimeError: two steps that must agree do not.
    """
    for one, other in SAME_LOSS:
        with torch.no_grad():
            losses = float(steps[one].forward()), float(steps[other].forward())
        if abs(losses[0] - losses[1]) > tolerance:
            raise RuntimeError(f"{TITLES[one]} gives the loss {losses[0]:.6f}, {TITLES[other]} {losses[1]:.6f}.")


def count_flops(step: Step) -> int:
    """Of forward and backward."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # its other kernels go uncounted
        step.forward().backward()
    step.optimizer.zero_grad()
    return int(counter.get_total_flops())


def time_steps(steps: dict[str, Step], repeats: int, device: str) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of every repeat, the variants taking turns and each repeat starting with another."""
    names = list(steps)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repeat in range(-1, repeats):
        for position in range(len(names)):
            name = names[(position + repeat) % len(names)]
            _synchronize(device)
            cpu, wall = time.process_time(), time.perf_counter()
            steps[name]()
            _synchronize(device)
            if repeat >= 0:  # the first round makes optimiser states and warms caches
                seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
            steps[name].optimizer.zero_grad()
    return seconds


def measure(setting: Setting, repeats: int, console: Console) -> dict[str, Measured]:
    """All five variants."""
    with console.status(f"{setting.backbone}: peak memory, each step in a fresh process"):
        peaks = {name: measure_in_fresh_process(setting, name) for name in TITLES}
    with console.status(f"{setting.backbone}: same losses, FLOPs, {repeats} interleaved repeats"):
        steps = build(setting, TITLES)
        check_losses(steps, tolerance=0.1 if setting.bf16 else 1e-3)
        flops = {name: count_flops(step) for name, step in steps.items()}
        seconds = time_steps(steps, repeats, setting.device)
    return {
        name: Measured(
            cpu_seconds=tuple(cpu for cpu, _ in seconds[name]),
            wall_seconds=tuple(wall for _, wall in seconds[name]),
            flops=flops[name],
            step_bytes=peaks[name]["step"],
            whole_bytes=peaks[name]["whole"],
        )
        for name in TITLES
    }


def table(setting: Setting, measured: dict[str, Measured]) -> Table:
    """One row a variant, everything as a multiple of OpenCLIP's CLIP step."""
    base = measured[REFERENCE]
    precision = "bf16" if setting.bf16 else "fp32"
    shown = Table(
        title=f"{setting.backbone}, {setting.batch} pairs, {precision}, {setting.device}: multiples of OpenCLIP"
    )
    for heading in ("step", "CPU time", "wall time", "FLOPs", "memory of a step", "… with weights, optimiser"):
        shown.add_column(heading, justify="left" if heading == "step" else "right")
    for name, own in measured.items():
        clocks = ((own.cpu_seconds, base.cpu_seconds), (own.wall_seconds, base.wall_seconds))
        amounts = (
            (own.flops, base.flops, f"{base.flops / 1e12:.2f} TFLOP"),
            (own.step_bytes, base.step_bytes, f"{base.step_bytes / GIB:.2f} GiB"),
            (own.whole_bytes, base.whole_bytes, f"{base.whole_bytes / GIB:.2f} GiB"),
        )
        if name == REFERENCE:
            times = [f"{ratios(clock, [1.0] * len(clock))[0]:.2f} s" for clock, _ in clocks]
            shown.add_row(TITLES[name], *times, *(text for *_, text in amounts))
            continue
        times = ["{:.2f} ({:.2f}–{:.2f})".format(*ratios(*pair)) for pair in clocks]
        shown.add_row(TITLES[name], *times, *(f"{mine / theirs:.2f}" for mine, theirs, _ in amounts))
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both backbones, print a table of each, write the JSON; the exit code."""
    options = tyro.cli(StepCost, args=arguments, prog="python -m benchmarks.step_cost", description=__doc__)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = options.precision == "bf16" or (options.precision == "auto" and device == "cuda")
    batch, repeats = options.batch or (8 if options.quick else 16), options.repeats or (2 if options.quick else 5)
    fields: dict[str, object] = {}
    for backbone, size, rounds in (("vit_small", 16, 3 if options.quick else 10), ("vit_b16", batch, repeats)):
        setting = Setting(backbone, size, bf16, device, options.threads)
        measured = measure(setting, rounds, console)
        console.print(table(setting, measured))
        fields = {
            **summary(measured, headline="cpu" if device == "cpu" else "wall"),
            "setting": asdict(setting),
            "repeats": rounds,
            "machine": f"{platform.machine()}, torch {torch.__version__}",
            "measured": {name: asdict(own) for name, own in measured.items()},
        }
    if options.json:
        options.json.write_text(json.dumps(fields, indent=1) + "\n")
    return 0


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())

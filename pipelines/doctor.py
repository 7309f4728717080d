"""Is this machine ready? `python -m pipelines.doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import tyro
from rich.console import Console
from rich.table import Table

from ito_ray.config.load import overlay
from ito_ray.config.recipes import recipe
from ito_ray.errors import ItoError
from ito_ray.runtime.preflight import plan_data
from ito_ray.tracking.provenance import installed_versions
from ito_ray.training.loop import use_bf16

GIB = 2**30
LEAST_CPUS, LEAST_MEMORY, LEAST_DISK = 2, 6 * GIB, 2 * GIB


@dataclass(frozen=True)
class Doctor:
    """Check the machine, the installation and, if asked, a recipe's data; exit code 1 when something is missing.

    For instance `python -m pipelines.doctor --recipe icons_cpu`.
    """

    recipe: str = ""
    """Also list and open this recipe's shards."""
    data: tuple[str, ...] = ()
    """Shards to open instead of the recipe's."""


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    what: str
    found: str
    advice: str = ""
    """Empty when all is well."""


def examine(options: Doctor) -> list[Finding]:
    """Everything that can be known without starting Ray."""
    memory, disk = psutil.virtual_memory().total, shutil.disk_usage(Path.cwd()).free
    cpus = os.cpu_count() or 1
    cfg = recipe(options.recipe or "icons_cpu")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    findings = [
        Finding("Python", platform.python_version(), "" if sys.version_info >= (3, 11) else "install Python 3.11"),
        Finding("CPUs", str(cpus), "" if cpus >= LEAST_CPUS else "one for training and one for Ray Data are the least"),
        Finding("Memory", f"{memory / GIB:.0f} GiB", "" if memory >= LEAST_MEMORY else "the demo needs 6 GiB"),
        Finding("Free disk", f"{disk / GIB:.0f} GiB", "" if disk >= LEAST_DISK else "the demo needs 2 GiB"),
        Finding("Device", torch.cuda.get_device_name() if device.type == "cuda" else "CPU"),
        Finding("train.precision=auto", "bf16" if use_bf16(cfg, device) else "fp32"),
        Finding("Ray", os.environ.get("RAY_ADDRESS", "local: RAY_ADDRESS is not set")),
    ]
    findings += [Finding(name, version) for name, version in installed_versions().items() if name != "python"]
    findings += [_extra("open_clip_torch", "clip"), _extra("qtawesome", "demo")]
    if options.recipe or options.data:
        findings.append(_data(options))
    return findings


def _extra(package: str, extra: str) -> Finding:
    try:
        return Finding(package, importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, f'not installed, optional: pip install "ito_ray[{extra}]"')


def _data(options: Doctor) -> Finding:
    cfg = recipe(options.recipe or "icons_cpu")
    if options.data:
        changes = {"data": {"train": options.data, "heldout": ()}, "eval": {"zero_shot": ()}}
        cfg = overlay(cfg, changes, source="command line")
    try:
        data = plan_data(cfg)
    except ItoError as error:
        return Finding("Data", "not readable", str(error))
    size = sum(shard.size for shard in data.shards)
    rows = round(data.rows_per_entry * data.plan.entries_per_pass)
    return Finding("Data", f"{len(data.shards)} shards, {size / 1e6:,.1f} MB, about {rows:,} samples")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 when something is missing, 2 for a mistake on the command line."""
    options = tyro.cli(Doctor, prog="python -m pipelines.doctor", args=arguments)
    console = Console(highlight=False)
    try:
        findings = examine(options)
    except ItoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        table.add_row(
            "[red]✗[/red]" if finding.advice else "[green]✓[/green]", finding.what, finding.found, finding.advice
        )
    console.print(table)
    if any(finding.advice for finding in findings):
        return 1
    console.print("Next: make demo, or python -m pipelines.train --help")
    return 0


if __name__ == "__main__":
    sys.exit(main())

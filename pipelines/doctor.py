"""Is this machine ready, and what is in these shards? `python -m pipelines.doctor --data data/pairs/train`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import psutil
import torch
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ito_ray.config.load import overlay
from ito_ray.config.recipes import recipe
from ito_ray.config.schema import Config
from ito_ray.data.job_folder import write_json
from ito_ray.data.survey import Reach, Survey, advice, numbers, views_ms
from ito_ray.data.tally import said
from ito_ray.errors import ConfigError
from ito_ray.evaluation.contact import contact_html, contact_png
from ito_ray.runtime.console import progress_line
from ito_ray.tracking.provenance import installed_versions
from ito_ray.training.loop import use_bf16
from pipelines.command import console, exit_code

GIB = 2**30
LEAST_CPUS, LEAST_MEMORY, LEAST_DISK = 2, 6 * GIB, 2 * GIB


@dataclass(frozen=True)
class Doctor:
    """Check the machine and the installation, and look into shards; exit code 1 when something is missing.

    For instance `python -m pipelines.doctor --data data/pairs/train --pictures doctor`, or `--recipe icons_cpu`.
    """

    recipe: str = ""
    """Look into this recipe's shards, and judge by its settings."""
    data: tuple[str, ...] = ()
    """Shards to look into: files, folders, globs or brace patterns."""
    limit: int = 20_000
    """Samples to look at, from all over the shards; 0 = all of them."""
    global_batch: int = 0
    """For the steps in a pass; 0 = the recipe's."""
    workers: int = 0
    """Training workers that the advice is for; 0 = the recipe's."""
    json: Path | None = None
    """Also write what was found in the shards to this file."""
    pictures: Path | None = None
    """Also write a contact sheet of random pairs, contact.png and contact.html, to this folder."""


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
    return findings


def _extra(package: str, extra: str) -> Finding:
    try:
        return Finding(package, importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, f'not installed, optional: pip install "ito_ray[{extra}]"')


def settings(options: Doctor) -> Config:
    """The recipe whose settings the shards are judged by, with what the options change."""
    cfg = recipe(options.recipe or "icons_cpu")
    train: dict[str, Any] = {}
    if options.global_batch:
        train["global_batch"] = options.global_batch
    if options.workers:
        train["workers"] = options.workers
    data: dict[str, Any] = {"train": options.data, "heldout": ()} if options.data else {}
    evaluation: dict[str, Any] = {"zero_shot": ()} if options.data else {}
    return overlay(cfg, {"train": train, "data": data, "eval": evaluation}, source="command line")


def look_into(cfg: Config, options: Doctor, console: Console) -> dict[str, Any]:
    """Survey the shards and print what was found; the numbers.

    Raises:
        DataError: no shard, or nothing in them.
    """
    if options.limit < 0:
        raise ConfigError(f"--limit is {options.limit}: give a number of samples, or 0 for all.")
    reach = Reach.of([one for patterns in cfg.data.sources.values() for one in patterns], limit=options.limit)
    survey = Survey(cfg.data)
    entries = 0
    with progress_line(console, "Look into shards") as update:
        for rows in reach.rows(cfg.data):
            for row in rows:
                survey.add(row)
            entries += 1
            share = survey.tally.read / options.limit if options.limit else 0.0
            update(max(share, entries / reach.entries), f"{survey.tally.read:,} samples")
    found = numbers(survey, reach, entries, global_batch=cfg.train.global_batch)
    found["views_ms"] = views_ms(survey, size=cfg.model.image.size)
    found["view_size"] = cfg.model.image.size
    found["advice"] = advice(found, cfg.data, workers=cfg.train.workers.most)
    show(found, cfg, console)
    if options.json:
        write_json(options.json, found)
        console.print(f"Numbers  {options.json}", soft_wrap=True)
    if options.pictures and survey.pairs:
        options.pictures.mkdir(parents=True, exist_ok=True)
        title = f"{len(survey.pairs)} random pairs of {' '.join(cfg.data.train)}"
        contact_png(survey.pairs, options.pictures / "contact.png", title=title)
        page = contact_html(survey.pairs, options.pictures / "contact.html", title=title)
        console.print(f"Pictures {page.with_suffix('.png')} and {page.name}", soft_wrap=True)
    return found


def show(found: dict[str, Any], cfg: Config, console: Console) -> None:
    """Tables for people."""
    shards, images, captions = found["shards"], found["images"], found["captions"]
    about = "" if found["complete"] else "about "
    table = Table(box=None, show_header=False, pad_edge=False)
    kinds = ", ".join(f"{count} {kind}" for kind, count in shards["kinds"].items())
    per_shard = found["samples_estimated"] / shards["count"]
    rate = 1e3 / found["views_ms"] if found["views_ms"] else 0.0
    again = found["duplicates"]
    for what, text in (
        ("Shards", f"{kinds}, {shards['bytes'] / 1e6:,.1f} MB, {about}{per_shard:,.0f} samples each"),
        ("Samples", f"{about}{found['samples_estimated']:,}; looked at {found['read']:,}, good {found['good']:,}"),
        ("Formats", ", ".join(f"{kind} {count:,}" for kind, count in images["formats"].items())),
        ("Meta fields", ", ".join(f"{name} {count:,}" for name, count in found["meta_fields"].items()) or "none"),
        ("Duplicates", f"{again['exact']:,} exact, {again['similar']:,} that look the same, {again['keys']:,} keys"),
        ("Noted", said(found["notes"]) or "nothing"),
        ("Same first caption", f"{captions['first_repeated']:,} repeat an earlier sample's"),
        ("Steps in a pass", f"{about}{found['steps_per_pass']:,} of {found['global_batch']:,}"),
        (
            "Views",
            f"{found['views_ms']:.1f} CPU-ms a sample ({cfg.data.views.count} of {found['view_size']} px), so about "
            f"{rate:,.0f} samples/s a core; decoding alone at full size {found['decode_ms']:.1f} ms",
        ),
    ):
        table.add_row(what, text)
    console.print(table)
    if found["read"] and found["good"]:
        console.print(_spread(found))
    if found["dropped"]:
        console.print(_dropped(found))
    for text in found["advice"]:
        console.print(Text.assemble(("!", "yellow"), f" {text}"), soft_wrap=True)


def _spread(found: dict[str, Any]) -> Table:
    images, captions = found["images"], found["captions"]
    table = Table(box=None, pad_edge=False)
    for title in ("", "least", "5 %", "median", "95 %", "most"):
        table.add_column(title, justify="right" if title else "left")
    for title, values in (
        ("width, px", images["width"]),
        ("height, px", images["height"]),
        ("short side, px", images["short_side"]),
        ("long / short side", images["aspect"]),
        ("bytes", images["bytes"]),
        ("captions a sample", captions["per_sample"]),
        ("first caption, characters", captions["first_chars"]),
        ("first caption, words", captions["first_words"]),
        ("all captions, characters", captions["all_chars"]),
        ("all captions, words", captions["all_words"]),
    ):
        table.add_row(title, *(f"{value:,.2f}".rstrip("0").rstrip(".") for value in values))
    return table


def _dropped(found: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("Bad samples by reason")
    table.add_column("count", justify="right")
    table.add_column("share", justify="right")
    table.add_column("for instance")
    for reason, count in found["dropped"].items():
        table.add_row(reason, f"{count:,}", f"{count / found['read']:.2%}", found["examples"][reason][0])
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 when something is missing, 2 for a mistake on the command line."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    options = tyro.cli(Doctor, prog="python -m pipelines.doctor", args=arguments)
    return diagnose(options, console())


def diagnose(options: Doctor, console: Console) -> int:
    """Machine, then shards if any are named; the exit code."""
    cfg = settings(options)
    findings = examine(options)
    _print(findings, console)
    wrong = any(finding.advice for finding in findings)
    if options.recipe or options.data:
        found = look_into(cfg, options, console)
        wrong = wrong or not found["good"] or found["good"] < found["read"] * (1 - cfg.data.max_bad_fraction)
    if wrong:
        return 1
    data = f" --data.train {' '.join(map(quote, options.data))}" if options.data else ""
    console.print(f"Next: python -m pipelines.train --recipe {options.recipe or 'icons_cpu'}{data}", soft_wrap=True)
    return 0


def _print(findings: Sequence[Finding], console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        mark = Text("✗", "red") if finding.advice else Text("✓", "green")
        table.add_row(mark, finding.what, finding.found, finding.advice)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())

"""Make data to train on: `python -m pipelines.prepare icons --out data/icons`, or from what you have (`--help`)."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table as RichTable

from ito_ray.data.icons.render import Placement
from ito_ray.data.icons.splits import (
    SPLITS,
    TEMPLATES,
    IconPlan,
    Names,
    plan_pictures,
    read_catalogue,
    render_split,
)
from ito_ray.data.prepare.job import DROPPED, reasons_of
from ito_ray.data.prepare.options import Coco, Folder, HuggingFace, Output, Shards, Table
from ito_ray.data.tally import said
from ito_ray.data.write import JsonValue, ShardFormat, write_shards
from ito_ray.errors import DataError
from pipelines.command import console, exit_code

DESCRIPTION = """Make tar or Parquet shards to train on, in parallel, with an account of every input.

  icons         the demo's pictures, drawn offline: needs nothing
  table         pictures in files, captions in a CSV, TSV, JSON-lines or Parquet table
  coco          COCO's captions_*.json and a folder of pictures
  folder        name.jpg with name.txt beside it
  huggingface   a data set that `datasets` saved on disk
  shards        other shards: filter, mix and cut them anew

For example:

  python -m pipelines.prepare table pairs.csv --images photos --out data/pairs --val-fraction 0.01

A killed job goes on when the same command is run again. What is left out is listed by reason, and input by input in
dropped.parquet."""
SOURCES = {"table": Table, "coco": Coco, "folder": Folder, "huggingface": HuggingFace, "shards": Shards}
MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
# Below this many pictures, starting processes takes longer than it saves.
POOL_FROM = 6000


@dataclass(frozen=True)
class Icons:
    """Render the icon fonts of the qtawesome wheel as captioned pictures, offline.

    Writes train/, heldout/ (unseen colours of known drawings, for retrieval), unseen_artist/ (Font
    Awesome's drawings of known names, for zero-shot), classes.txt, templates.txt, manifest.json.

    For instance `python -m pipelines.prepare icons --out data/icons`, then
    `python -m pipelines.train --recipe icons_cpu`.
    """

    out: Path
    """Folder to make. If it holds the same data already, nothing is done."""
    seed: int = 0
    """Two runs with the same seed and options give equal bytes."""
    format: Literal["tar", "parquet", "both"] = "tar"
    """WebDataset tars, Parquet files, or both side by side."""
    names: Names = IconPlan.names
    """`shared`: things that at least two families draw; `tested`: of those, what the unseen artist draws, too; `all`:
    every drawing."""
    per_drawing: int = IconPlan.per_drawing
    """Training pictures of each drawing."""
    heldout: int = IconPlan.heldout
    """Pictures in the heldout split."""
    unseen_per_class: int = IconPlan.unseen_per_class
    """Most pictures of one class in the unseen_artist split."""
    size: int = Placement.size
    """Side of a picture, pixels."""
    scale: tuple[float, float] = Placement.scale
    """Least and greatest length of a glyph's longer side, as a share of the picture."""
    rotation: float = Placement.rotation
    """Greatest turn of a glyph, degrees."""
    per_shard: int = 1000
    """Samples in a shard."""

    def plan(self) -> IconPlan:
        """The part of the options that decides the pixels."""
        return IconPlan(
            seed=self.seed,
            names=self.names,
            per_drawing=self.per_drawing,
            heldout=self.heldout,
            unseen_per_class=self.unseen_per_class,
            placement=Placement(size=self.size, scale=self.scale, rotation=self.rotation),
        )

    def request(self) -> dict[str, JsonValue]:
        """What the manifest keeps, to tell whether a folder already holds this data."""
        plan: dict[str, JsonValue] = json.loads(json.dumps(dataclasses.asdict(self.plan())))
        return {**plan, "format": self.format, "per_shard": self.per_shard}


def prepare_icons(options: Icons) -> bool:
    """Make the folder; False if it is there already.

    Everything is written next to `out` and renamed at the end, so a killed run leaves no half
    made data under that name.

    Raises:
        DataError: `out` holds something else.
        ConfigError: an option is out of range.
    """
    request = options.request()
    if _holds(options.out, request):
        return False
    partial = options.out.with_name(f".{options.out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # left by a killed run
    partial.mkdir(parents=True)
    plan = options.plan()
    catalogue = read_catalogue(plan.names)
    pictures = plan_pictures(plan, catalogue)
    formats: list[ShardFormat] = ["tar", "parquet"] if options.format == "both" else [options.format]
    splits: dict[str, JsonValue] = {}
    with ExitStack() as stack:
        pool = None
        workers = os.cpu_count() or 1
        if workers > 1 and sum(map(len, pictures.values())) >= POOL_FROM:
            spawn = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=spawn))
        for split in SPLITS:
            samples = list(render_split(pictures[split], plan, pool))
            shards: dict[str, int] = {}
            for format_ in formats:
                folder = partial / split
                per_shard = options.per_shard
                shards |= write_shards(samples, folder, prefix=split, per_shard=per_shard, format=format_)
            splits[split] = {"samples": len(samples), "shards": shards}
    _write_lines(partial / "classes.txt", catalogue.classes)
    _write_lines(partial / "templates.txt", TEMPLATES)
    manifest = {
        "version": MANIFEST_VERSION,
        "seed": options.seed,
        "classes": len(catalogue.classes),
        "drawings": len(catalogue.training),
        "names": len(catalogue.alternatives),
        "splits": splits,
        "request": request,
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    partial.rename(options.out)
    return True


def _holds(out: Path, request: dict[str, JsonValue]) -> bool:
    """Whether `out` is this very data; False if there is nothing yet."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    manifest = out / MANIFEST
    if not manifest.is_file():
        raise DataError(
            f"--out {out} exists and is not a folder made by prepare (no {MANIFEST}): give a new folder or remove it."
        )
    found = json.loads(manifest.read_text("utf-8"))
    if found.get("version") == MANIFEST_VERSION and found.get("request") == request:
        return True
    raise DataError(
        f"--out {out} holds data made with other options ({found.get('request')}): give a new folder or remove it."
    )


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _report(out: Path, made: bool, seconds: float) -> None:
    manifest = json.loads((out / MANIFEST).read_text("utf-8"))
    if made:
        print(f"Made {out} in {seconds:.1f} s:")
    else:
        print(f"{out} already holds this data, nothing to do:")
    for split, entry in manifest["splits"].items():
        print(f"  {split:14} {entry['samples']:6} pictures in {len(entry['shards'])} shards")
    print(
        f"  {manifest['drawings']} training drawings of {manifest['names']} things; "
        f"{manifest['classes']} zero-shot classes by an unseen artist"
    )
    print("Next: python -m pipelines.train --recipe icons_cpu")


def _prepare_shards(options: Output, console: Console) -> None:
    """Make the shards and print the account."""
    from ito_ray.runtime.prepare import prepare  # Ray takes a second that --help should not

    start = time.perf_counter()
    manifest, made = prepare(options, console)
    totals, out = manifest["totals"], options.out
    if made:
        console.print(f"Made {out} in {time.perf_counter() - start:.1f} s", soft_wrap=True)
    else:
        console.print(f"{out} already holds this data, nothing to do", soft_wrap=True)
    console.print(_account(manifest))
    captions = manifest["captions"]
    console.print(
        f"{totals['shards']:,} shards, {totals['bytes'] / 1e6:,.1f} MB; captions: {captions['written']:,} of "
        f"{captions['read']:,} written, {captions['removed_by_length']:,} removed by length, "
        f"{captions['of_dropped']:,} dropped with their sample"
    )
    if manifest["dropped"]:
        console.print(f"Each dropped input with its reason: {out / DROPPED}", soft_wrap=True)
    not_utf8 = [name for part in ("dropped", "notes") for name in manifest[part] if name.endswith("_not_utf8")]
    if not_utf8 and isinstance(options, Table) and not options.encoding:
        console.print("If the table is not UTF-8: remove the folder, add --encoding, e.g. cp1252 or gb18030")
    if manifest["dropped"].get("duplicate_key") and isinstance(options, Shards) and options.keys == "own":
        console.print("If the keys begin anew in every shard, the pictures differ: remove the folder, add --keys shard")
    heldout = f" --data.heldout {quote(str(out / 'val'))}" if manifest["written"]["val"] else ""
    console.print(f"Next: python -m pipelines.doctor --data {quote(str(out / 'train'))}", soft_wrap=True)
    console.print(
        f"then: python -m pipelines.train --recipe cc12m_vitb16 --data.train {quote(str(out / 'train'))}{heldout}",
        soft_wrap=True,
    )


def _account(manifest: dict[str, Any]) -> RichTable:
    table = RichTable(box=None, pad_edge=False)
    table.add_column("Inputs")
    table.add_column("Samples", justify="right")
    table.add_column("Share", justify="right")
    for what, count in reasons_of(manifest):
        table.add_row(what, f"{count:,}", f"{count / manifest['inputs']:.2%}")
    table.add_row("sum = inputs", f"{manifest['inputs']:,}", "", style="bold")
    if notes := manifest.get("notes"):
        table.add_row(f"noted: {said(notes)}")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, make the data, say what was made; the exit code."""
    return exit_code(lambda: _run(arguments), stopped="Stopped. The same command again goes on.")


def _run(arguments: Sequence[str] | None) -> None:
    start = time.perf_counter()
    options = tyro.extras.subcommand_cli_from_dict(
        {"icons": Icons, **SOURCES}, prog="python -m pipelines.prepare", description=DESCRIPTION, args=arguments
    )
    if isinstance(options, Output):
        _prepare_shards(options, console())
    else:
        made = prepare_icons(options)
        _report(options.out, made, time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())

"""Embed a whole data set: `python -m pipelines.embed --model models:/NAME@champion --data SHARDS --out FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console
from rich.table import Table

from ito_ray.config.schema import ColumnsConfig, DataConfig
from ito_ray.data.tally import said
from ito_ray.embeddings.spec import Precision, Spec, What
from ito_ray.errors import ConfigError
from pipelines.command import console, exit_code
from pipelines.models import find_model

if TYPE_CHECKING:
    from ito_ray.runtime.embed import Pool, Speed


@dataclass(frozen=True)
class Embed:
    """Pictures or texts of shards, or of folders, to Parquet files of keys and unit vectors, on Ray.

    Writes OUT/embeddings/*.parquet (key, shard, kind, caption, thumbnail, embedding), one file for each unit of the
    input, rejected.parquet (what gave no vector, and why) and manifest.json. A killed run goes on when the same command
    is run again. For example:

      python -m pipelines.embed --model models:/ito-dual-encoder@champion --data 's3://BUCKET/{000..099}.tar' --out out

      python -m pipelines.embed --model FOLDER --data photos --dtype float16 --out out
    """

    model: str
    """models:/NAME@ALIAS, models:/NAME/VERSION, or a SentenceTransformer folder that training exported."""
    data: tuple[str, ...]
    """Shards (tar, Parquet), folders of them or of pictures, globs, brace patterns; local, s3:// or gs://."""
    out: Path
    """New folder, or one where the same command was run before."""
    what: What = "image"
    """image: pictures, captioned or not; text: every caption; both: pairs, the picture and every caption."""
    dtype: Precision = "float32"
    """Of the vectors; float16 takes half the room, similarities then differ by about 0.0005."""
    batch_size: int = 64
    """Rows that an actor encodes at a time."""
    thumbnail: int = 160
    """Longest side of the small pictures kept for pipelines.search, pixels; 0 = none: smaller and faster."""
    actors: tuple[int, int] | None = None
    """Least and most actors; default: 1 up to what the cluster has room for."""
    cpus_per_actor: int | None = None
    """Threads of one actor; default: 1, or a GPU's share of the CPUs."""
    gpus_per_actor: float | None = None
    """Default: 1 where the cluster has GPUs, else 0."""
    max_pixels: int = DataConfig().max_pixels
    """Larger pictures are dropped undecoded."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    tracking_uri: str = ""
    """Registry of models:/…; default: MLFLOW_TRACKING_URI, else the SQLite file in runs/mlflow."""
    verbose: bool = False
    """Let Ray's own log lines through."""

    def check(self) -> None:
        """Raises ConfigError for values out of range."""
        least, most = self.actors or (1, 1)
        if not 1 <= least <= most:
            raise ConfigError(f"--actors is {least} {most}: give the least, at least 1, and the most, not below it.")
        if not 0 <= self.thumbnail <= 1024:
            raise ConfigError(f"--thumbnail is {self.thumbnail}: give 1 to 1024 pixels, or 0 for none.")
        for name in ("batch_size", "cpus_per_actor", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}: give at least 1.")
        if self.gpus_per_actor is not None and self.gpus_per_actor < 0:
            raise ConfigError(f"--gpus-per-actor is {self.gpus_per_actor}: give 0 or more.")

    def pool(self) -> Pool:
        """How many actors with what."""
        from ito_ray.runtime.embed import Pool

        return Pool(self.actors, self.cpus_per_actor, self.gpus_per_actor)


def run(options: Embed, console: Console) -> dict[str, Any]:
    """Embed, print the account; the manifest.

    Raises:
        ItoError: see `find_model`, `open_job` and `runtime.embed.embed`.
    """
    options.check()
    from ito_ray.embeddings.job import Job, alone, open_job  # torch and Ray take seconds that --help should not
    from ito_ray.runtime.embed import embed

    model = find_model(options.model, options.tracking_uri)
    spec = Spec(options.what, options.dtype, options.thumbnail, options.max_pixels, model.size)
    console.print(f"Model {model.title}", soft_wrap=True)
    with alone(options.out.absolute()):
        job = open_job(options.out, options.data, options.columns, spec, model)
        speed = None
        if isinstance(job, Job):
            manifest, speed = embed(job, options.pool(), console, batch=options.batch_size, verbose=options.verbose)
        else:
            manifest = job
            console.print(f"{options.out} already holds these embeddings, nothing to do", soft_wrap=True)
    _report(options.out, manifest, speed, console)
    return manifest


def _report(out: Path, manifest: dict[str, Any], speed: Speed | None, console: Console) -> None:
    from ito_ray.runtime.embed import as_counts

    table = Table(box=None, pad_edge=False)
    table.add_column("Rows")
    for header in ("Count", "Share"):
        table.add_column(header, justify="right")
    for what, count in as_counts(manifest):
        table.add_row(what, f"{count:,}", f"{count / manifest['read']:.2%}")
    table.add_row("sum = read", f"{manifest['read']:,}", "", style="bold")
    if notes := manifest.get("notes"):
        table.add_row(f"noted: {said(notes)}")
    console.print(table)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(manifest["kinds"].items()))
    console.print(
        f"{kinds} vectors of {manifest['width']} {manifest['request']['dtype']} in {len(manifest['files']):,} files "
        f"of {out / 'embeddings'}",
        soft_wrap=True,
    )
    if speed is not None and speed.rows:
        rate = f"{speed.rows:,} rows in {speed.seconds:.1f} s: {speed.rows_per_second:,.1f} rows/s"
        console.print(f"{rate}, after {speed.start:.1f} s in which actors started")
    if manifest["dropped"]:
        console.print(f"Each dropped row with its reason: {out / 'rejected.parquet'}", soft_wrap=True)
    if manifest["dropped"].get("shard_unreadable"):
        console.print("Rows lost to a store that failed: the same command tries them again.")
    console.print(
        f"Next: python -m pipelines.search index {quote(str(out))} --out {quote(f'{out.name}-index')}", soft_wrap=True
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and embed; the exit code."""
    return exit_code(lambda: _run(arguments), stopped="Stopped. The same command again goes on.")


def _run(arguments: Sequence[str] | None) -> None:
    run(tyro.cli(Embed, prog="python -m pipelines.embed", args=arguments), console())


if __name__ == "__main__":
    sys.exit(main())

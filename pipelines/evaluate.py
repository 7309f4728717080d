"""Measure an exported model: `python -m pipelines.evaluate --model FOLDER --recipe icons_cpu`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console
from rich.table import Table

from ito_ray.config.load import overlay
from ito_ray.config.recipes import recipe
from ito_ray.config.schema import Config
from pipelines.command import console, exit_code

if TYPE_CHECKING:
    from ito_ray.evaluation.report import Report

THUMBNAIL = 160
"""Pixels: as large as the page shows them, a few kB each."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """On what a model is measured: a recipe's data, or what is given here."""

    recipe: str = ""
    """Take from this recipe whatever is not given below."""
    heldout: tuple[str, ...] = ()
    """Shards of image-text pairs: files, folders, globs or brace patterns."""
    zero_shot: tuple[str, ...] = ()
    """Shards of labelled images."""
    classes: str = ""
    """Text file, one class name a line."""
    templates: str = ""
    """Text file, one prompt a line with {} for the class name; without it, the bare name."""
    field: str = ""
    """Field of the samples' json that holds the class name; without it, `name`."""
    captions: int | None = None
    """How many captions of an image count, the first ones."""
    limit: int | None = None
    """Read only so many samples of each set."""
    batch: int | None = None
    """Images encoded at a time."""

    def config(self) -> Config:
        """The recipe, or the defaults, with what was given laid over it.

        Raises:
            ConfigError: no such recipe, or values that do not fit.
        """
        base = recipe(self.recipe) if self.recipe else Config()
        evaluation: dict[str, Any] = {
            "zero_shot": self.zero_shot or None,
            "classes": self.classes or None,
            "templates": self.templates or None,
            "zero_shot_field": self.field or None,
            "captions": self.captions,
            "batch": self.batch,
        }
        changes: dict[str, Any] = {
            "eval": {name: value for name, value in evaluation.items() if value is not None},
            "data": {"heldout": self.heldout} if self.heldout else {},
        }
        return overlay(base, changes, source="command line")


@dataclass(frozen=True, kw_only=True)
class Evaluate(Measured):
    """Measure an exported model: retrieval on held-out pairs, zero-shot classification of labelled images.

    Writes index.html, gallery.png, map.png and metrics.json. For example:

      python -m pipelines.evaluate --model models:/ito-dual-encoder@champion --recipe icons_cpu

      python -m pipelines.evaluate --model FOLDER --heldout 's3://BUCKET/coco/{000..004}.tar' --out coco
    """

    model: str
    """A SentenceTransformer folder, or an address in the model registry: models:/NAME@ALIAS or models:/NAME/VERSION."""
    out: Path = Path("evaluation")
    """Folder for the results; those of an earlier evaluation are replaced."""
    tracking_uri: str = ""
    """Registry to take models:/ from; without it, the SQLite file in the recipe's output folder."""


def run(options: Evaluate, console: Console) -> Report:
    """Evaluate, write the files, print the table.

    Raises:
        ItoError: see `FolderEncoder`, `evaluate` and `registry.download`.
    """
    from transformers.utils import logging  # these take seconds that --help should not

    from ito_ray.evaluation.encoder import FolderEncoder
    from ito_ray.evaluation.evaluate import evaluate
    from ito_ray.evaluation.show import write_files

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    cfg = options.config()
    with console.status("Loading the model …"):
        folder = _folder(options.model, cfg, options.tracking_uri)
        encoder = FolderEncoder(folder, batch=cfg.eval.batch, name=options.model)
    with console.status("Encoding …"):
        report = evaluate(encoder, cfg, limit=options.limit, thumbnail=THUMBNAIL)
    page = write_files(
        report,
        options.out,
        title=f"Evaluation of {Path(options.model).name}",
        usage=usage(options.model),
        dataset=", ".join((*cfg.data.heldout, *cfg.eval.zero_shot)),
    )
    console.print(table(report))
    if report.dropped:
        console.print(f"Left out: {', '.join(f'{count} {reason}' for reason, count in report.dropped.items())}")
    console.print(f"Page  {page}", soft_wrap=True)
    console.print(f"Next: python -m http.server --directory {options.out}", soft_wrap=True)
    return report


def table(report: Report) -> Table:
    """The headline as a table for the terminal."""
    drawn = Table(header_style="bold", caption=", ".join(f"{m.cells()[1]} {m.label}" for m in report.counts))
    drawn.add_column("measure")
    for header in ("value", "95 % interval", "chance", "times chance"):
        drawn.add_column(header, justify="right", no_wrap=True)
    for measure in report.headline:
        drawn.add_row(*measure.cells())
    return drawn


def usage(model: str) -> str:
    """Code that a reader of the page can paste."""
    if is_address(model):
        return (
            f'import mlflow, pandas as pd\nmodel = mlflow.pyfunc.load_model("{model}")\n'
            'model.predict(pd.DataFrame({"text": ["a red heart"]}))'
        )
    return (
        "from sentence_transformers import SentenceTransformer\n"
        f'model = SentenceTransformer("{model}", local_files_only=True)\n'
        'model.similarity(model.encode([{"text": "a red heart"}]), model.encode([image]))  # image: PIL, RGB'
    )


def is_address(model: str) -> bool:
    """Whether `model` names something in a registry rather than a folder."""
    return model.startswith(("models:/", "runs:/"))


def _folder(model: str, cfg: Config, tracking_uri: str) -> Path:
    if not is_address(model):
        return Path(model)
    from ito_ray.tracking.registry import download  # mlflow takes seconds to import, and a folder needs none of it
    from ito_ray.tracking.run import resolve_store

    return download(model, resolve_store(tracking_uri or cfg.tracking.uri, cfg.output))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and evaluate; the exit code."""
    options = tyro.cli(Evaluate, prog="python -m pipelines.evaluate", args=arguments)
    return exit_code(lambda: run(options, console()))


if __name__ == "__main__":
    sys.exit(main())

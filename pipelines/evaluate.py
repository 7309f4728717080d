"""Measure an exported model: `python -m pipelines.evaluate --model FOLDER --recipe icons_cpu`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ito_ray.config.load import overlay
from ito_ray.config.recipes import recipe
from ito_ray.config.schema import Config
from ito_ray.data.walk import is_folder
from ito_ray.errors import ConfigError
from pipelines.command import console, exit_code

if TYPE_CHECKING:
    from ito_ray.evaluation.encoder import Encoder
    from ito_ray.evaluation.report import Report
    from ito_ray.tracking.run import Store

THUMBNAIL = 160
"""Pixels: as large as the page shows them, a few kB each."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """On what a model is measured: a recipe's data, or what is given here."""

    recipe: str = ""
    """Take from this recipe whatever is not given below."""
    heldout: tuple[str, ...] = ()
    """Image-text pairs: shards (files, folders, globs, braces), a table, or a folder of name.jpg by name.txt."""
    zero_shot: tuple[str, ...] = ()
    """Labelled images: shards, a folder of class folders, a table, or a CLIP_benchmark folder."""
    classes: str = ""
    """Text file, one class name a line, or `what the samples say<TAB>name`; folders and tables need none."""
    templates: str = ""
    """Text file, one prompt a line with {} for the class name; without it, the bare name."""
    field: str = ""
    """Field of the samples' json, or column of the table, that holds the class name; without it, `name`."""
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
    """Measure an encoder: retrieval on held-out pairs, classification of labelled images, robustness, and more.

    Writes index.html, metrics.json and pictures. Your own data needs no shards: a folder a class, or a CSV or Parquet
    table of picture files with a class or caption column, does as well. For example:

      python -m pipelines.evaluate --model models:/ito-dual-encoder@champion --recipe icons_cpu --report

      python -m pipelines.evaluate --model FOLDER --zero-shot photos/ --evaluators zero_shot linear_probe knn

      python -m pipelines.evaluate --model FOLDER --heldout pairs.csv --baselines OTHER open_clip:ViT-B-32,TAG
    """

    model: str
    """A SentenceTransformer or OpenCLIP folder, a checkpoint RUN/step-…, open_clip:NAME,TAG, or models:/NAME@ALIAS."""
    evaluators: tuple[str, ...] = ()
    """Of retrieval geometry zero_shot linear_probe knn robustness text_robustness; without it, the first three."""
    probe: tuple[str, ...] = ()
    """Labelled images that linear_probe and knn are fitted to; without it, half of --zero-shot."""
    baselines: tuple[str, ...] = ()
    """Other encoders to measure by the same code on the same data, and to compare with."""
    download: bool = False
    """Let OpenCLIP fetch weights that are not on this machine; nothing else ever asks the network."""
    workers: int = 0
    """Ray workers that share the embedding; 0 = here, without Ray."""
    report: bool = False
    """The long page: also the best and worst queries, a t-SNE map, and the curves of the run behind the model."""
    out: Path = Path("evaluation")
    """Folder for the results; those of an earlier evaluation are replaced."""
    tracking_uri: str = ""
    """Registry to take models:/ from and to log to; default: the recipe's, MLFLOW_TRACKING_URI, else the SQLite file in
    the recipe's output folder."""
    run: str = ""
    """MLflow run to log numbers, page and pictures to, and to take curves from: an id, or `new`."""


def run(options: Evaluate, console: Console) -> Report:
    """Evaluate, write the files, print the table.

    Raises:
        ItoError: see `open_encoder`, `evaluate`, `registry.download` and `log_evaluation`.
    """
    from transformers.utils import logging  # these take seconds that --help should not

    from ito_ray.evaluation.show import write_files

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    cfg = options.config()
    if options.workers < 0:
        raise ConfigError(f"--workers {options.workers}: 0 for none, or how many.")
    store = _store(options, cfg) if options.run or any(map(is_address, (options.model, *options.baselines))) else None
    _check(options, cfg, store)
    with console.status("Loading …"):  # all of them first: a wrong address must not cost the time of the others
        opened = [_open(model, options, cfg, store) for model in (options.model, *options.baselines)]
    _check_places(options, cfg)
    report, *baselines = [_measure(one, options, cfg, console) for one in opened]
    page = write_files(
        report,
        options.out,
        title=f"Evaluation of {Path(options.model).name}",
        usage=usage(options.model),
        dataset=", ".join((*cfg.data.heldout, *cfg.eval.zero_shot)),
        full=options.report,
        baselines=baselines,
        curves=_curves(options, store) if options.report and store else None,
    )
    _print(report, baselines, console)
    if options.run and store:
        console.print(f"Run   {_log(report, options, cfg, store)}", soft_wrap=True)
    console.print(f"Page  {page}", soft_wrap=True)
    console.print(f"Next: python -m http.server --directory {quote(str(options.out))}", soft_wrap=True)
    return report


def _check(options: Evaluate, cfg: Config, store: Store | None) -> None:
    """What can be refused before a model is loaded."""
    from ito_ray.evaluation.evaluators import choose

    if store and options.run:
        from ito_ray.tracking.evaluation import require_run

        require_run(options.run, store, cfg.tracking.experiment)
    if options.evaluators and (cfg.data.heldout or cfg.eval.zero_shot):
        choose(options.evaluators, pairs=bool(cfg.data.heldout), labelled=bool(cfg.eval.zero_shot))


def _check_places(options: Evaluate, cfg: Config) -> None:
    """What can be refused before anything is measured: every set, and where the results go."""
    from ito_ray.evaluation.show import require_writable
    from ito_ray.evaluation.sources import open_labelled
    from ito_ray.evaluation.subject import require_samples

    require_samples(cfg)
    if options.probe:
        open_labelled(cfg, options.probe, "--probe")
    require_writable(options.out)


@dataclass(frozen=True)
class _Opened:
    """An encoder and where it came from."""

    model: str
    """As it was given."""
    address: str
    """A folder, also for a registered model."""
    encoder: Encoder


def _open(model: str, options: Evaluate, cfg: Config, store: Store | None) -> _Opened:
    from ito_ray.runtime.encoders import open_encoder

    address = model
    if is_address(model) and store:
        from ito_ray.tracking.registry import download  # mlflow takes seconds to import, and a folder needs none of it

        address = str(download(model, store))
    encoder = open_encoder(address, batch=cfg.eval.batch, name=model, download=options.download)
    return _Opened(model, address, encoder)


def _measure(opened: _Opened, options: Evaluate, cfg: Config, console: Console) -> Report:
    from ito_ray.evaluation.evaluate import evaluate
    from ito_ray.evaluation.subject import one_pass

    passes: Any = one_pass
    if options.workers:
        from ito_ray.runtime.evaluate import RayPasses  # and Ray only when asked for

        passes = RayPasses(opened.address, cfg, options.workers, opened.model)
    with console.status(Text(f"Encoding with {opened.model} …")):
        return evaluate(
            opened.encoder,
            cfg,
            evaluators=options.evaluators or None,
            limit=options.limit,
            thumbnail=THUMBNAIL if opened.model == options.model else 0,
            probe=options.probe,
            passes=passes,
        )


def _curves(options: Evaluate, store: Store) -> dict[str, list[tuple[int, float]]]:
    from ito_ray.tracking.evaluation import read_curves, run_behind

    run_id = options.run if options.run not in ("", "new") else ""
    if not run_id and is_address(options.model):
        run_id = run_behind(options.model, store)
    return read_curves(run_id, store) if run_id else {}


def _log(report: Report, options: Evaluate, cfg: Config, store: Store) -> str:
    from ito_ray.evaluation.show import files_of
    from ito_ray.tracking.evaluation import log_evaluation

    return log_evaluation(
        report.metrics(),
        files_of(options.out),
        store=store,
        run_id="" if options.run == "new" else options.run,
        experiment=cfg.tracking.experiment,
        name=f"evaluate {Path(options.model).name}",
    )


def _print(report: Report, baselines: Sequence[Report], console: Console) -> None:
    from ito_ray.evaluation.page import compare

    console.print(table(report))
    for other in baselines:
        grid = compare(report, other)
        drawn = Table(header_style="bold", title=f"Against {other.encoder}; * = the interval leaves zero out")
        for header in grid.header:
            drawn.add_column(header, justify="left" if header == grid.header[0] else "right")
        for row in grid.rows:
            drawn.add_row(*row)
        console.print(drawn)
    if report.dropped:
        console.print(f"Left out: {', '.join(f'{count} {reason}' for reason, count in report.dropped.items())}")


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
    """Code that a reader of the page can paste; empty where the model is no SentenceTransformer."""
    if is_address(model):
        return (
            f'import mlflow, pandas as pd\nmodel = mlflow.pyfunc.load_model("{model}")\n'
            'model.predict(pd.DataFrame({"text": ["a red heart"]}))'
        )
    if not (Path(model) / "modules.json").is_file():
        return ""
    return (
        "from sentence_transformers import SentenceTransformer\n"
        f'model = SentenceTransformer("{model}", local_files_only=True)\n'
        'model.similarity(model.encode([{"text": "a red heart"}]), model.encode([image]))  # image: PIL, RGB'
    )


def is_address(model: str) -> bool:
    """Whether `model` names something in a registry rather than a folder."""
    return model.startswith(("models:/", "runs:/")) and not is_folder(model)


def _store(options: Evaluate, cfg: Config) -> Store:
    from ito_ray.tracking.run import resolve_store

    return resolve_store(options.tracking_uri or cfg.tracking.uri, cfg.output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and evaluate; the exit code."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    run(tyro.cli(Evaluate, prog="python -m pipelines.evaluate", args=arguments), console())


if __name__ == "__main__":
    sys.exit(main())

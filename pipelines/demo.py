"""The whole pipeline in a few minutes on a laptop: `make demo`, or `python -m pipelines.demo`."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import psutil
import tyro
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from ito_ray import strict_json
from ito_ray.config.load import overlay
from ito_ray.config.recipes import recipe
from ito_ray.config.schema import Config
from ito_ray.data.heldout import HeldoutReader
from ito_ray.evaluation.gallery import Hit, Query
from ito_ray.evaluation.pictures import gallery_png
from ito_ray.runtime import job
from ito_ray.runtime.console import Stages
from ito_ray.tracking.sqlite import sqlite_uri
from pipelines.command import console, exit_code
from pipelines.prepare import Icons, prepare_icons

FOLDER = Path("demo")
ICONS = {
    "icons_cpu": Icons(out=FOLDER / "data"),
    "icons_cpu_long": Icons(out=FOLDER / "data_long", per_drawing=12),
}
QUERIES = ("heart", "umbrella", "a yellow star on a blue background")
THINGS = ("heart", "umbrella", "star")
ANSWERS = 5


@dataclass(frozen=True)
class Demo:
    """Draw icons, train on them, export, evaluate, register, and use the registered model.

    Everything stays in the folder demo/: no server, no account, no download. Running it again resumes an interrupted
    run; after a finished one it only repeats what follows training (remove demo/runs to train afresh).

    For instance `python -m pipelines.demo` (minutes) or `python -m pipelines.demo --recipe icons_cpu_long` (an hour).
    """

    recipe: Literal["icons_cpu", "icons_cpu_long"] = "icons_cpu"
    """How long."""
    verbose: bool = False
    """Let Ray's own log lines through."""


class PeakMemory(threading.Thread):
    """Largest memory of this process and its children, sampled every two seconds; shared pages count once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.megabytes = 0.0

    def run(self) -> None:
        """Sample until the process ends."""
        while True:
            self.megabytes = max(self.megabytes, _memory() / 1e6)
            time.sleep(2.0)


def _memory() -> float:
    """Private pages of all, and the largest shared part of any: Ray's object store and the libraries' code."""
    this = psutil.Process()
    private, shared = 0.0, 0.0
    for process in [this, *this.children(recursive=True)]:
        try:
            used = process.memory_info()
        except psutil.Error:
            continue  # ended meanwhile
        part = getattr(used, "shared", 0)
        private, shared = private + used.rss - part, max(shared, part)
    return private + shared


def run(options: Demo, console: Console) -> None:
    """The demo from top to bottom.

    Raises:
        ItoError: anything that a user can mend.
    """
    started = time.perf_counter()
    memory = PeakMemory()
    memory.start()
    cfg = recipe(options.recipe)
    store = sqlite_uri(Path(cfg.output) / "mlflow" / "mlflow.db")  # its own, whatever MLFLOW_TRACKING_URI says
    cfg = overlay(cfg, {"tracking": {"uri": store}}, source="demo")

    console.print("▸ Draw the icons", style="bold")
    icons = ICONS[options.recipe]
    made = prepare_icons(icons)
    console.print(f"    {icons.out}" + ("" if made else " already holds them"))

    stages = Stages(console, job.STAGES)
    outcome = job.run(cfg, recipe=options.recipe, stages=stages, verbose=options.verbose)
    answers = _use(cfg, outcome, console)
    summary = _summary(outcome, stages.seconds, time.perf_counter() - started, memory.megabytes)
    path = FOLDER / "summary.json"
    path.write_text(strict_json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    console.print()
    for label, where in (
        ("Numbers", path),
        ("Answers", answers),
        ("Gallery", outcome.page),
        ("Next", f"mlflow ui --backend-store-uri {outcome.run.store.address}"),
    ):
        console.print(f"{label:8} {where}", soft_wrap=True)


def _use(cfg: Config, outcome: job.Outcome, console: Console) -> Path:
    """The two lines that a user needs: printed, run, and asked for icons among pictures that training never saw."""
    from ito_ray.evaluation.encoder import FolderEncoder
    from ito_ray.tracking.registry import load

    uri = outcome.registered.uri
    console.print("▸ Use it: all that anybody needs, without this package", style="bold")
    console.print(f'    mlflow.pyfunc.load_model("{uri}")', soft_wrap=True)
    console.print(f'    SentenceTransformer("{_short(outcome.encoder)}")', soft_wrap=True)
    registered, encoder = load(uri, outcome.run.store), FolderEncoder(outcome.encoder)

    patterns = cfg.data.heldout
    pictures = list(HeldoutReader(patterns, cfg.data.columns, max_pixels=cfg.data.max_pixels, field="data.heldout"))
    image_ND = _predict(registered, pd.DataFrame({"image": [_png(one.image) for one in pictures]}))
    text_QD = _predict(registered, pd.DataFrame({"text": list(QUERIES)}))
    difference = np.abs(text_QD - encoder.encode_texts(QUERIES)).max()
    console.print(f"    both give the same embeddings (largest difference {difference:.1e})")

    answers = []
    for text, thing, score_N in zip(QUERIES, THINGS, text_QD @ image_ND.T, strict=True):
        best = np.argsort(-score_N)[:ANSWERS].tolist()
        right_N = [one.meta["name"] == thing for one in pictures]
        hits = tuple(Hit(_png(pictures[i].image), pictures[i].captions[0], float(score_N[i]), right_N[i]) for i in best)
        rank = 1 + int((score_N > score_N[right_N].max()).sum())
        answers.append(Query(text, hits, rank, len(pictures)))
        console.print(f"    {text} → {', '.join(hit.name for hit in hits)}")
    return gallery_png(answers, FOLDER / "answers.png")


def _predict(model: Any, table: pd.DataFrame) -> NDArray[np.float32]:
    """Embeddings by MLflow's generic model."""
    return np.array(model.predict(table)["embedding"].tolist(), np.float32)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _short(path: Path) -> str:
    """Relative to the working folder where that is possible, since that is what one types."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _summary(outcome: job.Outcome, seconds: Mapping[str, float], total: float, megabytes: float) -> dict[str, Any]:
    """What the run measured, under the names that docs and benchmarks use."""
    metrics, intervals = outcome.report.metrics(), outcome.report.intervals
    summary: dict[str, Any] = {
        "heldout_pairs": int(metrics["heldout/pairs"]),
        "unseen_artist_classes": int(metrics["zero_shot/classes"]),
        "unseen_artist_images": int(metrics["zero_shot/images"]),
    }
    for name, metric in (
        ("heldout_r1_image_to_text", "heldout/r1_image_to_text"),
        ("heldout_r1_text_to_image", "heldout/r1_text_to_image"),
        ("unseen_artist_top1", "zero_shot/top1"),
        ("unseen_artist_top5", "zero_shot/top5"),
    ):
        summary[name] = metrics[metric]
        summary[f"{name}_ci"] = list(intervals[metric])
    return summary | {
        "modality_gap": metrics["geometry/modality_gap"],
        "samples_per_second": outcome.training.samples_per_second,
        "data_wait_share": outcome.training.data_wait_share,
        "train_seconds": outcome.training.seconds,
        "total_seconds": total,
        "stage_seconds": dict(seconds),
        "peak_rss_mb": megabytes,
        "rows_read": outcome.training.rows_read,
        "rows_delivered": outcome.training.rows_delivered,
        "rows_dropped": outcome.training.rows_dropped,
        "checkpoint": outcome.chosen.why,
        "stopped_early": outcome.chosen.stopped,
        "model_uri": outcome.registered.uri,
        "parity_max_abs_diff": outcome.verified.max_abs_difference,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run the demo; the exit code."""
    stopped = "Stopped. The same command again resumes from the newest checkpoint."
    return exit_code(lambda: _run(arguments), stopped=stopped)


def _run(arguments: Sequence[str] | None) -> None:
    run(tyro.cli(Demo, prog="python -m pipelines.demo", args=arguments), console())


if __name__ == "__main__":
    sys.exit(main())

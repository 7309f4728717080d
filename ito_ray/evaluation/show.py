"""A report as files that people look at: index.html, metrics.json and the pictures as PNG."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from ito_ray import strict_json
from ito_ray.errors import ConfigError
from ito_ray.evaluation.charts import Curve, curves_png
from ito_ray.evaluation.gallery import Choice, make_queries
from ito_ray.evaluation.page import Gallery, Map, gallery_html
from ito_ray.evaluation.pictures import gallery_png, map_png
from ito_ray.evaluation.report import Grid, Picture, Report, Section
from ito_ray.redact import redact

METRICS = "metrics.json"
FEWEST_PAIRS_OF_A_MAP = 3
_EXTREMES = 6
_NOTES: Mapping[Choice, tuple[str, str]] = {
    "random": (
        "From text to images",
        "captions drawn at random, not chosen by their result, each looked up among all images. The image that the "
        "caption belongs to is framed and ticked; the number is the cosine similarity.",
    ),
    "best": (
        "What it finds most easily",
        "captions whose own image is furthest ahead of all others. Chosen by their result, unlike those above.",
    ),
    "worst": (
        "What it gets most wrong",
        "captions whose own image is furthest behind the one put first. A look at these tells whether the encoder errs "
        "or the caption does.",
    ),
}
_MAPS: Mapping[Literal["pca", "tsne"], tuple[str, str, str]] = {
    "pca": (
        "map.png",
        "Every dot is an image, every triangle a caption, on the two directions in which the embeddings vary most. The "
        "thick line joins the centres of the two kinds; the thin ones join pairs.",
        "Scatter plot of image embeddings (dots) and caption embeddings (triangles) on their first two principal "
        "components",
    ),
    "tsne": (
        "map_tsne.png",
        "The same by t-SNE, which keeps neighbourhoods: where dots and triangles lie mixed, an image's neighbours are "
        "captions. Distances between groups mean nothing here.",
        "Scatter plot of image embeddings (dots) and caption embeddings (triangles) by t-SNE",
    ),
}


def require_writable(out: Path) -> None:
    """Refuse at start a folder that `write_files` cannot write to.

    Raises:
        ConfigError: it cannot be made, or nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error}. Make it writable, or choose another folder.") from error


def write_files(
    report: Report,
    out: Path,
    *,
    title: str,
    usage: str,
    dataset: str,
    full: bool = False,
    baselines: Sequence[Report] = (),
    curves: Mapping[str, Curve] | None = None,
) -> Path:
    """Write what there is something for into `out`; the files of an earlier evaluation go. Returns the page.

    metrics.json lists all `files`, so that other things in the folder are neither removed nor taken for ours.

    Args:
        full: also the best and worst queries and the t-SNE map, which takes a while.
        baselines: other encoders on the same data.
        curves: of the run that trained the encoder, by metric name.
    """
    out.mkdir(parents=True, exist_ok=True)
    for earlier in files_of(out):
        earlier.unlink(missing_ok=True)
    sections = [*report.sections, *run_sections(curves or {})]
    drawn = []
    for section in sections:
        paths = [out / f"{picture.stem}.png" for picture in section.pictures]
        for picture, path in zip(section.pictures, paths, strict=True):
            picture.draw(path)
        drawn.append((section, paths))
    galleries, maps = _galleries(report, out, full=full), _maps(report, out, full=full)
    page = gallery_html(
        out / "index.html",
        title=title,
        report=report,
        galleries=galleries,
        maps=maps,
        baselines=baselines,
        sections=drawn,
        usage=usage,
        dataset=redact(dataset),
    )
    pictures = [path for _, paths in drawn for path in paths]
    pictures += [gallery.path for gallery in galleries if gallery.path] + [drawn_map.path for drawn_map in maps]
    names = sorted(path.name for path in (page, out / METRICS, *pictures))
    document = {**json.loads(report.to_json()), "files": names}
    (out / METRICS).write_text(strict_json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return page


def files_of(out: Path) -> list[Path]:
    """What the last evaluation wrote into `out`; nothing where there was none."""
    try:
        names = json.loads((out / METRICS).read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [out / Path(str(name)).name for name in names]


def run_sections(curves: Mapping[str, Curve]) -> list[Section]:
    """Training curves and geometry over time, for what the run logged."""
    kept = {name: points for name, points in curves.items() if len(points) > 1}
    groups = {
        "Training": [name for name in kept if name.startswith("train/loss")],
        "Held-out during training": [
            name for name in kept if name.startswith(("eval/heldout/r1_", "eval/zero_shot/top1"))
        ],
        "Geometry over time": [name for name in kept if "/geometry/" in name],
    }
    sections = []
    for title, names in groups.items():
        if not names:
            continue
        panels = {name: {name: kept[name]} for name in sorted(names)}
        rows = tuple(
            (name, f"{kept[name][0][1]:.4g}", f"{kept[name][-1][1]:.4g}", f"{kept[name][-1][0]:,}") for name in panels
        )
        stem = "curves_" + title.split()[0].lower().replace("-", "_")
        alt = f"{title}: curves of {', '.join(panels)} over the steps; the table has where they begin and end."
        picture = Picture(stem, alt, partial(_draw, panels))
        grid = Grid(("Metric", "first", "last", "at step"), rows)
        sections.append(Section(title, "As logged by the run that trained this encoder.", (picture,), (grid,)))
    return sections


def _draw(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    curves_png(panels, path)


def _galleries(report: Report, out: Path, *, full: bool) -> list[Gallery]:
    if report.pairs is None or not report.pairs.thumbnails:
        return []
    galleries = []
    choices: tuple[Choice, ...] = ("random", "best", "worst") if full else ("random",)
    for choice in choices:
        queries = make_queries(report.pairs, choice=choice, count=12 if choice == "random" else _EXTREMES)
        path = gallery_png(queries, out / ("gallery.png" if choice == "random" else f"gallery_{choice}.png"))
        title, note = _NOTES[choice]
        galleries.append(Gallery(title, f"{len(queries)} {note}", queries, path))
    return galleries


def _maps(report: Report, out: Path, *, full: bool) -> list[Map]:
    if report.pairs is None or len(report.pairs.keys) < FEWEST_PAIRS_OF_A_MAP:
        return []
    gap = next((m.cells()[1] for m in report.measures if m.name == "geometry/modality_gap"), "")
    maps = []
    methods: tuple[Literal["pca", "tsne"], ...] = ("pca", "tsne") if full else ("pca",)
    for method in methods:
        file, note, alt = _MAPS[method]
        apart = f"; their centres are {gap} apart in all dimensions" if gap else ""
        maps.append(Map(map_png(report.pairs, out / file, method=method), f"{alt}{apart}.", note))
    return maps

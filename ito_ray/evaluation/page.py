"""One self-contained HTML page about an evaluated encoder: no script, no font, no file beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ito_ray.evaluation.gallery import Query
from ito_ray.evaluation.html_templates import page_templates
from ito_ray.evaluation.report import Grid, Report, Section


@dataclass(frozen=True)
class Gallery:
    """Some queries under a heading."""

    title: str
    note: str
    queries: tuple[Query, ...]
    path: Path | None = None
    """Where it is drawn as a PNG."""


@dataclass(frozen=True)
class Map:
    """A drawn map of the space."""

    path: Path
    alt: str
    note: str


def gallery_html(
    path: Path,
    *,
    title: str,
    report: Report,
    galleries: Sequence[Gallery] = (),
    maps: Sequence[Map] = (),
    baselines: Sequence[Report] = (),
    sections: Sequence[tuple[Section, Sequence[Path]]] = (),
    usage: str = "",
    dataset: str = "",
) -> Path:
    """Write the page: headline table, comparisons, galleries, sections of the evaluators, maps, how to use the model.

    Every picture has an alternative text, and what a chart shows is in a table too: the page can be read without
    pictures.

    Args:
        path: where to write; returned.
        title: heading and window title.
        report: the numbers.
        galleries: queries from `gallery.make_queries`.
        maps: from `pictures.map_png`.
        baselines: other encoders on the same data.
        sections: with the drawn pictures of each.
        usage: code that loads and uses the model, shown as it is; empty = no such part.
        dataset: what it was evaluated on, in a few words.
    """
    environment = page_templates(Path(__file__).parent)
    environment.filters["webp"] = lambda data: _data_uri(data, "image/webp")
    environment.filters["inline"] = _inline
    html = environment.get_template("page.html.jinja").render(
        title=title,
        report=report,
        galleries=[gallery for gallery in galleries if gallery.queries],
        maps=maps,
        comparisons=[(other.encoder, compare(report, other)) for other in baselines],
        sections=[(section, list(zip(section.pictures, paths, strict=True))) for section, paths in sections],
        usage=usage.strip(),
        dataset=dataset,
    )
    path.write_text(html, encoding="utf-8")
    return path


def compare(report: Report, other: Report) -> Grid:
    """Both encoders' headline numbers; for shares of the same samples the difference, with its own interval."""
    theirs = {measure.name: measure for measure in other.headline}
    rows = []
    for measure in report.headline:
        if (their := theirs.get(measure.name)) is None:
            continue
        difference = measure.difference(their)
        verdict = difference.text() + (" *" if difference.sure else "") if difference else "–"
        mine, yours = measure.cells(), their.cells()
        rows.append((measure.label, f"{mine[1]}\n{mine[2]}", f"{yours[1]}\n{yours[2]}", verdict))
    return Grid(("Measure", "This encoder", "The other", "Difference in points"), tuple(rows))


def _inline(path: Path) -> str:
    """A drawn picture as WebP: a third of the PNG's size."""
    out = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(out, "WEBP", quality=90)
    return _data_uri(out.getvalue(), "image/webp")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"

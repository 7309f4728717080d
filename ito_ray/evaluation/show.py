"""A report as files that people look at: gallery.png, map.png, metrics.json and index.html."""

from __future__ import annotations

from pathlib import Path

from ito_ray.evaluation.gallery import make_queries
from ito_ray.evaluation.page import gallery_html
from ito_ray.evaluation.pictures import gallery_png, map_png
from ito_ray.evaluation.report import Report
from ito_ray.redact import redact

FEWEST_PAIRS_OF_A_MAP = 3


def write_files(report: Report, out: Path, *, title: str, usage: str, dataset: str) -> Path:
    """Write what there are pairs for into `out`, replacing files of an earlier evaluation; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(report.to_json(), encoding="utf-8")
    queries = make_queries(report.pairs) if report.pairs else ()
    if queries:
        gallery_png(queries, out / "gallery.png")
    enough = report.pairs is not None and len(report.pairs.keys) >= FEWEST_PAIRS_OF_A_MAP
    drawn = map_png(report.pairs, out / "map.png") if report.pairs and enough else None
    return gallery_html(
        out / "index.html",
        title=title,
        report=report,
        queries=queries,
        map_png=drawn,
        usage=usage,
        dataset=redact(dataset),
    )

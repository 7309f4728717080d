"""One self-contained HTML page about an evaluated encoder: no script, no font, no file beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from ito_ray.evaluation.gallery import Query
from ito_ray.evaluation.report import Report


def gallery_html(
    path: Path,
    *,
    title: str,
    report: Report,
    queries: Sequence[Query] = (),
    map_png: Path | None = None,
    usage: str = "",
    dataset: str = "",
) -> Path:
    """Write the page: headline table, gallery of queries, map of modalities, how to use the model.

    Every picture has an alternative text, so the page can be read without pictures too.

    Args:
        path: where to write; returned.
        title: heading and window title.
        report: the numbers.
        queries: from `gallery.make_queries`; empty = no gallery.
        map_png: from `pictures.map_png`; None = no map.
        usage: code that loads and uses the model, shown as it is; empty = no such part.
        dataset: what it was evaluated on, in a few words.
    """
    environment = Environment(
        loader=PackageLoader("ito_ray", "evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["webp"] = lambda data: _data_uri(data, "image/webp")
    html = environment.get_template("page.html.jinja").render(
        title=title,
        report=report,
        queries=queries,
        candidates=f"{queries[0].candidates:,}" if queries else "",
        map_uri=_map_uri(map_png) if map_png else "",
        usage=usage.strip(),
        dataset=dataset,
    )
    path.write_text(html, encoding="utf-8")
    return path


def _map_uri(path: Path) -> str:
    """The map as WebP: a third of the PNG's size."""
    out = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(out, "WEBP", quality=90)
    return _data_uri(out.getvalue(), "image/webp")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"

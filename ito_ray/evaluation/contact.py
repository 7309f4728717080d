"""Contact sheet: random pairs as a training run would see them, as PNG and as a page. Nobody chose the good ones."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ito_ray.data.survey import Pair
from ito_ray.evaluation.html_templates import page_templates
from ito_ray.redact import redact

_COLUMNS = 6
_INK, _SOFT = "#16191d", "#5a6472"


def contact_png(pairs: Sequence[Pair], path: Path, *, title: str) -> Path:
    """Draw up to four lines of each pair's first caption below its picture.

    Args:
        pairs: at least one.
        path: where to write; returned.
        title: in the first line.
    """
    title = redact(title)
    rows = -(-len(pairs) // _COLUMNS)
    height = 0.5 + 2.45 * rows
    figure = Figure(figsize=(1.9 * _COLUMNS, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(
        0.015,
        1 - 0.25 / height,
        textwrap.shorten(title, 110),
        weight="bold",
        color=_INK,
        va="center",
        parse_math=False,
    )
    for number, pair in enumerate(pairs):
        row, column = divmod(number, _COLUMNS)
        bottom = height - 0.5 - 2.45 * row - 1.65
        axes = figure.add_axes((column / _COLUMNS + 0.012, bottom / height, 1 / _COLUMNS - 0.024, 1.6 / height))
        axes.imshow(np.asarray(Image.open(io.BytesIO(pair.thumbnail)).convert("RGB")))
        axes.set(xticks=[], yticks=[], anchor="N")
        axes.spines[:].set_edgecolor("#c9ced6")
        text = "\n".join(textwrap.wrap(pair.captions[0], 31, max_lines=4, placeholder=" …"))
        place = (column / _COLUMNS + 0.012, (bottom - 0.06) / height)
        figure.text(*place, text, fontsize=7.5, color=_INK, va="top", parse_math=False)
        if len(pair.captions) > 1:
            figure.text(
                (column + 1) / _COLUMNS - 0.012,
                (bottom + 1.62) / height,
                f"{len(pair.captions)} captions",
                fontsize=6,
                color=_SOFT,
                va="bottom",
                ha="right",
            )
    figure.savefig(path)
    return path


def contact_html(pairs: Sequence[Pair], path: Path, *, title: str) -> Path:
    """Write one self-contained page with all captions of each pair; returns `path`. All texts are escaped."""
    environment = page_templates(Path(__file__).parent)
    pictures = [f"data:image/webp;base64,{base64.b64encode(pair.thumbnail).decode('ascii')}" for pair in pairs]
    html = environment.get_template("contact.html.jinja").render(
        title=title, entries=list(zip(pairs, pictures, strict=True))
    )
    path.write_text(html, encoding="utf-8")
    return path

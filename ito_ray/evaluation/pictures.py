"""The pictures of an evaluation: a gallery of queries and a map of both modalities, as PNG files.

N images, M captions, D width, S points drawn.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ito_ray.evaluation.embed import PairEmbeddings
from ito_ray.evaluation.gallery import Hit, Query
from ito_ray.evaluation.geometry import modality_gap

_IMAGE, _TEXT = "#0b6fb8", "#c2500a"
_RIGHT, _PLAIN, _INK, _SOFT = "#0a7d38", "#c9ced6", "#16191d", "#5a6472"


def gallery_png(queries: Sequence[Query], path: Path) -> Path:
    """Draw query → first images; the right one has a thick frame, a tick and the word.

    Args:
        queries: from `gallery.make_queries`, at least one.
        path: where to write; returned.
    """
    tiles = max(len(query.hits) for query in queries)
    figure = Figure(figsize=(3.2 + 1.5 * tiles, 0.5 + 2.0 * len(queries)), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(queries),
        tiles + 1,
        width_ratios=[2.1] + [1.0] * tiles,
        left=0.02,
        right=0.985,
        top=1 - 0.42 / figure.get_figheight(),
        bottom=0.5 / figure.get_figheight(),
        hspace=0.5,
        wspace=0.1,
    )
    top = 1 - 0.2 / figure.get_figheight()
    figure.text(0.02, top, "Query", weight="bold", color=_INK, va="center")
    for row, query in enumerate(queries):
        label = figure.add_subplot(grid[row, 0])
        label.axis("off")
        _question(label, query)
        for column, hit in enumerate(query.hits):
            axes = figure.add_subplot(grid[row, column + 1])
            _tile(axes, hit)
            if row == 0:
                place = axes.get_position()
                x = (place.x0 + place.x1) / 2
                figure.text(x, top, f"{column + 1}", weight="bold", color=_INK, ha="center", va="center")
    figure.savefig(path)
    return path


def map_png(
    pairs: PairEmbeddings, path: Path, *, points: int = 1500, lines: int = 40, method: Literal["pca", "tsne"] = "pca"
) -> Path:
    """Draw both modalities in two dimensions, with their centroids and the gap.

    PCA shows the directions in which they vary most, and keeps distances as far as two directions can; t-SNE keeps
    neighbourhoods and says nothing about distances (van der Maaten and Hinton 2008).

    Args:
        pairs: every n-th pair is drawn when there are more than `points`; a pair is an image and its first caption.
        path: where to write; returned.
        points: pairs drawn at most.
        lines: pairs joined by a line at most.

    Raises:
        ValueError: fewer than 3 pairs.
    """
    n = len(pairs.keys)
    if n < 3:
        raise ValueError(f"{n} pairs: a map needs at least 3.")
    picked_S = np.unique(np.linspace(0, n - 1, min(points, n)).round().astype(np.int64))
    first_N = np.unique(pairs.owner, return_index=True)[1]
    both = np.concatenate([pairs.image[picked_S], pairs.text[first_N[picked_S]]]).astype(np.float64)
    image_S2, text_S2, axis_names = _plane(both, method)

    figure = Figure(figsize=(6.6, 5.6), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    every = max(1, len(picked_S) // lines)
    for a, b in zip(image_S2[::every], text_S2[::every], strict=True):
        axes.plot(*zip(a, b, strict=True), color="#8a929e", linewidth=0.6, alpha=0.6, zorder=1)
    _cloud(axes, image_S2, "o", _IMAGE, "image")
    _cloud(axes, text_S2, "^", _TEXT, "text")
    centres = image_S2.mean(axis=0), text_S2.mean(axis=0)
    axes.plot(*zip(*centres, strict=True), color=_INK, linewidth=2.2, zorder=4, label="between the centroids")
    for centre, marker, colour, size in zip(centres, "o^", (_IMAGE, _TEXT), (200, 70), strict=True):
        axes.scatter(
            centre[0], centre[1], s=size, marker=marker, color=colour, edgecolors="white", linewidths=2, zorder=5
        )
    axes.plot([], [], color="#8a929e", linewidth=0.8, label=f"one pair in {every}" if every > 1 else "a pair")
    axes.set_xlabel(axis_names[0], color=_INK)
    axes.set_ylabel(axis_names[1], color=_INK)
    distance = modality_gap(torch.from_numpy(pairs.image), torch.from_numpy(pairs.text))
    gap = f"in all {pairs.image.shape[1]} dimensions the centroids are {distance:.2f} apart"
    axes.set_title(f"{len(picked_S):,} of {n:,} pairs; {gap}", loc="left", fontsize=10, color=_SOFT)
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(color="#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path)
    return path


def _plane(
    both_RD: NDArray[np.float64], method: Literal["pca", "tsne"]
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, str]]:
    """Images and texts, each (S, 2), and what the axes are called."""
    if method == "tsne":
        near = min(30.0, (len(both_RD) - 1) / 3)
        tsne = TSNE(n_components=2, perplexity=near, init="pca", metric="cosine", random_state=0)
        image_S2, text_S2 = np.split(tsne.fit_transform(both_RD), 2)
        return image_S2, text_S2, ("t-SNE: neighbours are kept, distances mean nothing", "")
    pca = PCA(n_components=2, svd_solver="covariance_eigh")
    image_S2, text_S2 = np.split(pca.fit_transform(both_RD), 2)
    share = pca.explained_variance_ratio_
    first, second = (
        f"{n} principal component ({s:.0%} of the variance)" for n, s in zip(("1st", "2nd"), share, strict=True)
    )
    return image_S2, text_S2, (first, second)


def _question(axes: Axes, query: Query) -> None:
    text = _wrap(query.text, 30, 4)
    axes.text(0, 1, text, fontsize=10.5, color=_INK, va="top", linespacing=1.25, parse_math=False)
    below = -(14 * (text.count("\n") + 1) + 5)  # points; a line has 10.5 × 1.25
    axes.annotate(
        f"right image: rank {query.rank:,} of {query.candidates:,}",
        (0, 1),
        (0, below),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8.5,
        color=_SOFT,
        va="top",
    )


def _tile(axes: Axes, hit: Hit) -> None:
    axes.imshow(np.asarray(_square(hit.thumbnail)))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    frame = Rectangle(
        (0, 0),
        1,
        1,
        transform=axes.transAxes,
        fill=False,
        clip_on=False,
        edgecolor=_RIGHT if hit.right else _PLAIN,
        linewidth=4 if hit.right else 0.8,
    )
    axes.add_patch(frame)
    label = f"✓ right   {hit.similarity:.2f}" if hit.right else f"{hit.similarity:.2f}"
    weight = "bold" if hit.right else "normal"
    axes.set_xlabel(label, fontsize=8.5, color=_RIGHT if hit.right else _SOFT, weight=weight, labelpad=5)
    axes.annotate(
        _wrap(hit.name, 24, 2),
        (0.5, 0),
        (0, -19),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=7,
        color=_INK if hit.right else _SOFT,
        ha="center",
        va="top",
        parse_math=False,
    )


def _cloud(axes: Axes, point_S2: NDArray[np.float64], marker: str, colour: str, label: str) -> None:
    size = float(np.clip(6000 / len(point_S2), 8, 45))
    axes.scatter(
        point_S2[:, 0],
        point_S2[:, 1],
        s=size,
        marker=marker,
        color=colour,
        alpha=0.55,
        linewidths=0.3,
        edgecolors="white",
        label=label,
        zorder=3,
    )


def _square(thumbnail: bytes) -> Image.Image:
    """Padded with white to a square, so that all tiles are equal."""
    image = Image.open(io.BytesIO(thumbnail)).convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _wrap(text: str, width: int, lines: int) -> str:
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))

"""Charts of evaluators as PNG files: confusions, robustness, curves of a run.

C classes shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

Curve = Sequence[tuple[int, float]]
"""(step, value)."""


def confusion_png(counts_CC: NDArray[np.int64], names: Sequence[str], path: Path) -> Path:
    """Draw counts as a heat map, each row in shares of its true class; numbers where there is room."""
    share_CC = counts_CC / np.maximum(1, counts_CC.sum(axis=1, keepdims=True))
    side = 2.6 + 0.36 * len(names)
    figure = Figure(figsize=(side + 0.6, side), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
    labels = [name if len(name) <= 22 else name[:21] + "…" for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)
    for row, column in zip(*np.nonzero(counts_CC), strict=True):
        colour = "white" if share_CC[row, column] > 0.5 else "#16191d"
        axes.text(column, row, str(counts_CC[row, column]), ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="put first", ylabel="true class")
    axes.spines[:].set_visible(False)
    figure.savefig(path)
    return path


def strengths_png(clean: float, values: Mapping[str, Sequence[float]], label: str, path: Path) -> Path:
    """Draw shares against strengths, one line a kind of change, all starting at the clean share."""
    figure = Figure(figsize=(6.6, 3.6), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (kind, shares), marker in zip(values.items(), "os^D", strict=True):
        axes.plot(range(len(shares) + 1), [100 * clean, *(100 * share for share in shares)], marker=marker, label=kind)
    axes.set_xticks(range(4), ["unchanged", "weak", "middle", "strong"])
    axes.set(ylabel=f"{label}, %", ylim=(0, None))
    axes.grid(color="#eceef1")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=4, fontsize=9)
    figure.savefig(path)
    return path


def curves_png(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> Path:
    """Draw one panel below the other, each with its lines over the steps of training."""
    figure = Figure(figsize=(6.6, 0.4 + 2.1 * len(panels)), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, lines) in enumerate(panels.items(), 1):
        axes: Axes = figure.add_subplot(len(panels), 1, number)
        for name, points in lines.items():
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, marker="." if len(points) < 30 else "", linewidth=1.3, label=name)
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(color="#eceef1")
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8, ncols=3)
    axes.set_xlabel("step")
    figure.savefig(path)
    return path

"""The figures of a study's page, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from tune.arms import LAMBDAS, PAPER, TWICE
from tune.results import Results

SHARES = ("heldout/r", "zero_shot/")
"""Beginnings of the names of metrics that are shares, shown in per cent."""
NAMES: Mapping[str, str] = {
    "zero_shot/top1": "unseen artist, top 1",
    "zero_shot/top5": "unseen artist, top 5",
    "heldout/r1_image_to_text": "R@1, image → text",
    "heldout/r1_text_to_image": "R@1, text → image",
    "heldout/r5_image_to_text": "R@5, image → text",
    "heldout/r5_text_to_image": "R@5, text → image",
    "geometry/modality_gap": "modality gap",
    "geometry/linear_separability": "told by a linear rule",
    "geometry/alignment": "alignment",
    "geometry/uniformity_image": "uniformity, images",
    "geometry/uniformity_text": "uniformity, texts",
    "geometry/effective_rank_image": "effective rank, images",
}
COLOURS = {
    "clip": "#5a6472",
    TWICE: "#16191d",
    "siglip": "#c2500a",
    "align": "#0a7d38",
    **dict(zip((f"ito_{weight:g}" for weight in LAMBDAS), ("#9ecbee", "#4fa0dc", "#0b6fb8", "#073f6b"), strict=True)),
    "align_captions": "#b8860b",
    "ito_1_captions_drop": "#a3195b",
}
GAP = "geometry/modality_gap"
OTHERS = matplotlib.color_sequences["tab20"]
WEIGHTS = {"align": 0.0, **{f"ito_{weight:g}": weight for weight in LAMBDAS}}


def colour(results: Results, arm: str) -> ColorType:
    """The same in all figures of a study."""
    if results.comparison is PAPER:
        return COLOURS[arm]
    return OTHERS[[*results.comparison.labels].index(arm) % len(OTHERS)]


def curves_png(results: Results, folder: Path) -> Path:
    """Validation score and modality gap by images encoded: the mean over seeds, and the span of all seeds behind it."""
    figure, (score, gap) = _figure(10.5, 4.4, 2)
    for arm in results.arms:
        per_step = results.effort(arm).images / results.effort(arm).steps / 1000
        runs = results.of(arm)
        steps = sorted(set.intersection(*({step for step, _ in run.curve} for run in runs)))
        at = np.array(steps) * per_step
        curves = [dict(run.curve) for run in runs]
        scores = [[100 * results.objective.score(curve[step]) for step in steps] for curve in curves]
        gaps = [[curve[step].get(GAP, np.nan) for step in steps] for curve in curves]
        for axes, values in ((score, np.array(scores)), (gap, np.array(gaps))):
            axes.fill_between(at, values.min(0), values.max(0), color=colour(results, arm), alpha=0.15, lw=0)
            axes.plot(at, values.mean(0), color=colour(results, arm), lw=1.6, label=results.label(arm))
    score.set(xlabel="thousand images encoded", ylabel="validation, mean R@1 both ways, %", ylim=(0, None))
    gap.set(xlabel="thousand images encoded", ylabel="modality gap on validation pairs")
    handles, labels = score.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside upper center", ncols=4)
    return _save(figure, folder / f"{results.name}-curves.png")


def differences_png(results: Results, folder: Path) -> Path:
    """For each headline metric the differences to each reference, with their intervals."""
    arms = results.arms[::-1]
    figure, panels = _figure(3.1 * len(results.headline) + 1.6, 1.4 + 0.5 * len(arms), len(results.headline))
    for axes, metric in zip(panels, results.headline, strict=True):
        axes.axvline(0, color="#16191d", lw=0.8)
        for shift, reference in zip((0.22, 0.0, -0.22), results.references, strict=False):
            for place, arm in enumerate(arms):
                found = results.difference(arm, reference, metric) if arm != reference else None
                if found is None:
                    continue
                at = place + shift
                if found.interval is not None:
                    axes.plot([100 * end for end in found.interval], [at, at], color=colour(results, reference), lw=1.4)
                axes.plot([100 * found.value], [at], "o", color=colour(results, reference), ms=4)
        axes.set_ylim(-0.5, len(arms) - 0.5)
        axes.set_yticks(range(len(arms)), map(results.label, arms) if axes is panels[0] else [""] * len(arms))
        axes.set_title(NAMES[metric], fontsize=9)
        axes.set_xlabel("points", fontsize=8)
    for reference in results.references:
        panels[0].plot([], [], "o-", color=colour(results, reference), ms=4, label=f"less {results.label(reference)}")
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=3)
    return _save(figure, folder / f"{results.name}-differences.png")


def lambda_png(results: Results, folder: Path) -> Path:
    """For each headline metric the score by λ, every seed a point, beside CLIP's mean."""
    figure, panels = _figure(3.1 * len(results.headline) + 0.6, 3.2, len(results.headline))
    for axes, metric in zip(panels, results.headline, strict=True):
        line = []
        for arm, weight in WEIGHTS.items():
            values = [100 * value for value in results.tested(arm, metric).values()]
            axes.plot([weight] * len(values), values, "o", color=COLOURS[arm], ms=4, alpha=0.8)
            line += [(weight, fmean(values))] if values else []
        if line:
            axes.plot(*zip(*line, strict=True), color="#0b6fb8", lw=1.2, label="mean over seeds")
        for arm, style in (("clip", "--"), (TWICE, ":")):
            if estimate := results.estimate(arm, metric):
                axes.axhline(100 * estimate.mean, color=COLOURS[arm], lw=1.2, ls=style, label=results.label(arm))
        axes.set_title(NAMES[metric], fontsize=9)
        axes.set(xlabel="λ", ylabel="%" if axes is panels[0] else "")
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])  # the highest point whole
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside upper center", ncols=3)
    return _save(figure, folder / f"{results.name}-lambda.png")


def _figure(width: float, height: float, panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    found = [figure.add_subplot(1, panels, number) for number in range(1, panels + 1)]
    for axes in found:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eceef1")
    return figure, found


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path

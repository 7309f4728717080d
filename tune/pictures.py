"""The pictures of a sweep's report, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tune.book import BASELINE, Trial
from tune.judging import Objective, Standing
from tune.table import short, short_name

LAMBDA = "method.fusion_weight"
PAPER_U = ((0.0, 43.7), (2.0, 44.3), (6.0, 43.2))
"""λ and ImageNet zero-shot top-1 in per cent, ViT-B/16 on YFCC15M (arXiv 2603.02767)."""
INK, SOFT, BLUE, ORANGE, GREEN = "#16191d", "#5a6472", "#0b6fb8", "#c2500a", "#0a7d38"
NAMED_MEMBERS = 12
"""Up to so many lines are named."""
FIT_POINTS = 5
"""Points from which a parabola is drawn through a response."""


def curves_png(trials: Sequence[Trial], objective: Objective, path: Path) -> Path:
    """Score by step of every trial; a cross where it was stopped."""
    figure, axes = _figure(8, 4.2)
    marks = {"stopped": ("x", ORANGE, "stopped"), "finished": ("o", BLUE, "finished"), "open": (".", SOFT, "running")}
    named = set()
    for trial in (trial for trial in trials if trial.curve):
        steps = [step for step, _ in trial.curve]
        scores = [objective.score(values) for _, values in trial.curve]
        mark, colour, label = marks.get(trial.state, ("v", INK, "failed"))
        is_recipe = trial.job.point == BASELINE
        axes.plot(steps, scores, color=INK if is_recipe else colour, lw=2.2 if is_recipe else 1.0, alpha=0.8)
        axes.plot(steps[-1:], scores[-1:], mark, color=colour, label=None if label in named else label)
        named.add(label)
        if is_recipe:
            axes.plot([], [], color=INK, lw=2.2, label=None if "recipe" in named else "the recipe as it is")
            named.add("recipe")
    axes.set(xlabel="steps", ylabel="score on validation data")
    axes.legend(frameon=False)
    return _save(figure, path)


def parallel_png(points: Sequence[tuple[Mapping[str, Any], float]], names: Sequence[str], path: Path) -> Path:
    """One line a point across all axes, coloured by score.

    Args:
        points: (settings, score).
        names: of the axes, in order.
    """
    figure, axes = _figure(max(6.0, 1.7 * (len(names) + 1)), 4.6)
    scores = np.array([score for _, score in points])
    span = np.ptp(scores) or 1.0
    columns = [_column([settings.get(name) for settings, _ in points]) for name in names]
    heights = np.array(
        [[*(column[0][row] for column in columns), (scores[row] - scores.min()) / span] for row in range(len(points))]
    )
    for row in np.argsort(scores):
        share = float((scores[row] - scores.min()) / span)
        axes.plot(heights[row], color=colormaps["viridis"](share), lw=1 + 2 * share, alpha=0.85)
    for place, (_, ticks) in enumerate(columns):
        axes.axvline(place, color=SOFT, lw=0.6)
        for height, text in ticks:
            axes.text(place + 0.03, height, text, fontsize=7.5, color=INK, va="center")
    axes.axvline(len(names), color=SOFT, lw=0.6)
    for height, value in ((0.0, scores.min()), (1.0, scores.max())):
        axes.text(len(names) + 0.03, height, f"{value:.3f}", fontsize=7.5, color=INK, va="center")
    axes.set_xticks(range(len(names) + 1), [*map(short_name, names), "score"], rotation=15)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) + 0.45)
    axes.spines[:].set_visible(False)
    return _save(figure, path)


UNSET = -0.12
"""Height of the points that have no value on an axis: where a field is a list, the recipe's may be shorter."""


def _column(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights 0…1 of the values of one axis (missing ones below it), and its ticks."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, (int, float)) for value in known):
        low, high = min(known), max(known)
        span = (high - low) or 1.0
        heights = [(value - low) / span if value is not None else UNSET for value in values]
        ticks = [(0.0, short(float(low))), (1.0, short(float(high)))]
    else:
        kinds = sorted({str(value) for value in known})
        places = {kind: place / max(1, len(kinds) - 1) for place, kind in enumerate(kinds)}
        heights = [places[str(value)] if value is not None else UNSET for value in values]
        ticks = [(at, kind) for kind, at in places.items()]
    return heights, [*ticks, (UNSET, "not set")] if None in values else ticks


def importance_png(importance: Mapping[str, float], path: Path) -> Path:
    """A bar for each axis."""
    ordered = sorted(importance.items(), key=lambda item: item[1])
    figure, axes = _figure(7, 1.2 + 0.38 * len(ordered))
    axes.barh([short_name(name) for name, _ in ordered], [value for _, value in ordered], color=BLUE, height=0.6)
    for place, (_, value) in enumerate(ordered):
        axes.text(value + 0.01, place, f"{value:.0%}", va="center", color=INK, fontsize=9)
    axes.set(xlim=(0, 1.12), xlabel="share of the scores' spread")
    return _save(figure, path)


def response_png(points: Sequence[tuple[float, float]], name: str, path: Path, *, baseline: float | None) -> Path:
    """Score against one axis; for λ with the paper's three points beside.

    Args:
        points: (value, score).
        baseline: the recipe's value, marked.
    """
    figure, axes = _figure(7.2, 4.2)
    value, score = np.array(points, float).T
    axes.plot(value, score, "o", color=BLUE, label="ours (left scale)")
    if len(set(value)) >= FIT_POINTS:
        grid = np.linspace(value.min(), value.max(), 100)
        axes.plot(
            grid, np.polyval(np.polyfit(value, score, 2), grid), color=BLUE, lw=1.2, label="parabola through ours"
        )
    if baseline is not None:
        axes.axvline(baseline, color=INK, lw=0.8, ls=":", label="the recipe's value")
    axes.set(xlabel="λ, fusion weight" if name == LAMBDA else name, ylabel="score on validation data")
    handles, labels = axes.get_legend_handles_labels()
    if name == LAMBDA:
        other = axes.twinx()
        other.plot(*zip(*PAPER_U, strict=True), "s--", color=ORANGE, label="paper, ImageNet zero-shot % (right scale)")
        other.set_ylabel("paper, %", color=ORANGE)
        other.spines["top"].set_visible(False)
        more = other.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside upper center", ncols=2)
    return _save(figure, path)


def course_png(trials: Sequence[Trial], name: str, path: Path, *, recipe: float | None) -> Path:
    """The course of one setting over steps, a line a member; a ring is where one went on from another's checkpoint.

    Args:
        recipe: its value in the recipe, which keeps it.
    """
    figure, axes = _figure(8, 4.2)
    colours = colormaps["viridis"]
    members = [trial for trial in trials if trial.curve]
    for number, trial in enumerate(members):
        steps = [step for step, _ in trial.course] + [trial.steps]
        known = [changes.get(name, recipe) for _, changes in trial.course]
        values = [float(value) for value in known if value is not None]
        if len(values) < len(known):
            continue
        is_recipe = trial.job.point == BASELINE
        colour = INK if is_recipe else colours(number / max(1, len(members) - 1) * 0.9)
        label = "the recipe as it is" if is_recipe else f"point {trial.job.point}"
        axes.step(steps, [*values, values[-1]], where="post", color=colour, lw=2.2 if is_recipe else 1.2, label=label)
        axes.plot(steps[1:-1], values[1:], "o", color=colour, mfc="none", ms=8)
        for turn, value in zip(trial.turns, values[1:], strict=True):
            donor = turn.donor.split("-")[0].removeprefix("p").lstrip("0") or "0"
            axes.annotate(f" from {donor}", (turn.step, value), fontsize=7.5, color=colour, va="bottom")
    axes.set(xlabel="steps", ylabel="λ, fusion weight" if name == LAMBDA else name)
    if len(members) <= NAMED_MEMBERS:
        axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def front_png(points: Sequence[Standing], front: Sequence[Standing], objective: Objective, path: Path) -> Path:
    """Score against cost; the front joined."""
    figure, axes = _figure(7, 4.2)
    axes.plot([one.cost.mean for one in points], [one.score.mean for one in points], "o", color=SOFT, label="points")
    axes.step(
        [one.cost.mean for one in front],
        [one.score.mean for one in front],
        "o-",
        where="post",
        color=GREEN,
        label="front",
    )
    for one in front:
        axes.annotate(f" {one.point}", (one.cost.mean, one.score.mean), color=INK, fontsize=9)
    axes.set(xlabel=objective.against, ylabel="score on validation data")
    axes.legend(frameon=False)
    return _save(figure, path)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path

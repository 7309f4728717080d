"""Tables and figures of a study, put between two marks of a Markdown page; the words outside them stay as they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from ito_ray.errors import DataError
from tune.arms import PAPER
from tune.judging import Difference, Estimate
from tune.results import Results, read_results
from tune.results_figures import NAMES, SHARES, curves_png, differences_png, lambda_png

GEOMETRY = (
    "geometry/modality_gap",
    "geometry/linear_separability",
    "geometry/alignment",
    "geometry/uniformity_image",
    "geometry/uniformity_text",
    "geometry/effective_rank_image",
)
CHANCE = {"heldout/r": "heldout/pairs", "zero_shot/top": "zero_shot/classes"}
"""What a share is of, by the beginning of its name: with one right answer chance is k over this."""


def write_page(source: Path, page: Path, images: Path) -> str:
    """Renew a study's part of the page and its figures; returns a sentence for people.

    Raises:
        DataError: no results, no page, or no place for the study in it.
    """
    results = read_results(source)
    if not page.is_file():
        raise DataError(f"--page {page} does not exist: make it, with the lines {' and '.join(marks(results.name))}.")
    text = page.read_text("utf-8")
    start, end = marks(results.name)
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise DataError(f"--page {page} has no place for {results.name}: put the lines {start} and {end} into it.")
    images.mkdir(parents=True, exist_ok=True)
    folder = os.path.relpath(images, page.parent)
    before, after = text.split(start)[0], text.split(end)[1]
    page.write_text(f"{before}{start}\n{made(results, images, folder)}\n{end}{after}", "utf-8")
    return f"{page}: {results.name}, {len(results.runs)} runs, {len(results.missing)} missing"


def marks(name: str) -> tuple[str, str]:
    """The lines that a study's part stands between."""
    return f"<!-- study {name} -->", f"<!-- end of {name} -->"


def made(results: Results, images: Path, folder: str) -> str:
    """All that is made from the numbers, as Markdown; draws the figures.

    Args:
        images: where they are drawn.
        folder: the same as the page has to say it.
    """
    by_weight = results.comparison is PAPER and "align" in results.arms
    parts = [
        _scope(results),
        _tests(results),
        *(_differences(results, reference) for reference in results.references),
        _figure(
            differences_png(results, images),
            folder,
            f"Differences to {'; '.join(map(results.label, results.references))}, with intervals",
        ),
        _figure(lambda_png(results, images), folder, "Test scores by λ") if by_weight else "",
        _courses(results),
        _figure(curves_png(results, images), folder, "Validation score and modality gap over training"),
        _geometry(results),
        _cost(results),
    ]
    return "\n\n".join(part for part in parts if part)


def _scope(results: Results) -> str:
    fields = results.settings["config"]
    seeds = sorted({run.seed for run in results.runs})
    lines = (
        f"{len(results.runs)} runs: {len(results.arms)} arms, seeds {', '.join(map(str, seeds))}; "
        f"{fields['train.steps']:,} steps of {fields['train.global_batch']} pairs, warm-up "
        f"{fields['optim.warmup_steps']:,}, lr {fields['optim.lr']:g}, {fields['model.image.name']} at "
        f"{fields['model.image.size']} px."
    )
    return lines + (f" Not there: {'; '.join(results.missing)}." if results.missing else "")


def _tests(results: Results) -> str:
    rows = [["chance", "", *(_chance(results, metric) for metric in results.headline)]]
    for arm in results.arms:
        cells = [_estimate(results.estimate(arm, metric), metric) for metric in results.headline]
        rows.append([results.label(arm), str(len(results.of(arm))), *cells])
    header = ["arm", "seeds", *(f"{NAMES[metric]}, %" for metric in results.headline)]
    return "Test sets, mean ± standard deviation over seeds:\n\n" + _table(header, rows)


def _chance(results: Results, metric: str) -> str:
    for start, count in CHANCE.items():
        if metric.startswith(start):
            among = results.runs[0].test.get(count)
            k = int("".join(filter(str.isdigit, metric.removeprefix(start).split("_")[0])))
            return f"{100 * k / among:.2g}" if among else ""
    return ""


def _differences(results: Results, reference: str) -> str:
    rows = []
    for arm in results.arms:
        if arm != reference:
            cells = [_difference(results.difference(arm, reference, metric)) for metric in results.headline]
            rows.append([results.label(arm), *cells])
    header = ["arm", *(NAMES[metric] for metric in results.headline)]
    words = (
        f"Less {results.label(reference)}, seed by seed, in points, with the 95 % interval over seeds (Student's t; "
        "bold: 0 lies outside):"
    )
    return f"{words}\n\n" + _table(header, rows)


def _courses(results: Results) -> str:
    rows = []
    for arm in results.arms:
        courses = results.courses(arm)
        rows.append(
            [
                results.label(arm),
                _spread([100 * one.best for one in courses]),
                _spread([100 * one.at for one in courses], digits=0),
                _spread([100 * one.last for one in courses]),
                _spread([100 * one.fall for one in courses]),
            ]
        )
    header = ["arm", "best, %", "reached after, % of the steps", "at the end, %", "fall to the end, points"]
    words = "Validation pairs during training, mean of R@1 both ways: a fall from the best to the end is overfitting:"
    return f"{words}\n\n" + _table(header, rows)


def _geometry(results: Results) -> str:
    metrics = [metric for metric in GEOMETRY if results.tested(results.arms[0], metric)]
    if not metrics:
        return ""
    rows = []
    for arm in results.arms:
        rows.append([results.label(arm), *(_estimate(results.estimate(arm, one), one) for one in metrics)])
    return "Geometry on the test pairs:\n\n" + _table(["arm", *(NAMES[metric] for metric in metrics)], rows)


def _cost(results: Results) -> str:
    unit = results.comparison.cost
    first, base = results.step_cpu(unit), results.effort(unit)
    rows = []
    for arm in results.arms:
        effort, cpu = results.effort(arm), results.step_cpu(arm)
        row = [results.label(arm), f"{effort.steps:,}", f"{effort.images:,}", f"{effort.captions:,}"]
        row += [f"{cpu:.3f}", f"{cpu * effort.steps / 60:.1f}"] if cpu else ["–", "–"]
        row.append(f"{cpu * effort.steps / (first * base.steps):.2f}" if cpu and first else "–")
        rows.append(row)
    header = ["arm", "steps", "images encoded", "captions encoded", "CPU-s a step", "CPU-min a run"]
    header.append(f"× {results.label(unit)}")
    words = "Cost of training, CPU time of the training processes (decoding and augmenting not counted):"
    return f"{words}\n\n" + _table(header, rows)


def _estimate(estimate: Estimate | None, metric: str) -> str:
    if estimate is None:
        return "–"
    factor, digits = (100, 1) if metric.startswith(SHARES) else (1, 3)
    return _spread([factor * value for value in estimate.values], digits=digits)


def _spread(values: Sequence[float], *, digits: int = 1) -> str:
    if len(values) < 2:
        return f"{fmean(values):.{digits}f}"
    return f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    value = f"{100 * difference.value:+.1f}"
    if difference.interval is None:
        return f"{value} (one seed)"
    low, high = difference.interval
    text = f"{value} ({100 * low:+.1f} – {100 * high:+.1f})"
    return f"**{text}**" if difference.is_better or difference.is_worse else text


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([_line(header), "|" + "---|" * len(header), *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(path: Path, folder: str, words: str) -> str:
    return f"![{words}]({folder}/{path.name})"

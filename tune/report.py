"""The report of a sweep: one HTML page and its pictures, made from the book alone.

    python -m tune.report --folder demo/runs/icons_cpu-ito_weights

writes it again, also while the sweep runs.
"""

from __future__ import annotations

import base64
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import tyro
from jinja2 import Environment
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from ito_ray.errors import DataError
from ito_ray.evaluation.html_templates import page_templates
from pipelines.command import exit_code
from tune import pictures
from tune.book import BASELINE, TEST, Book
from tune.decision import Decision, decide
from tune.judging import Estimate, Objective, pareto, saved_steps, standings
from tune.population import lineage
from tune.table import settings, short_name, since

BEST = 8
"""Rows of the table."""
COURSE = (
    "A line is a member of the population; a ring is where it went on from the checkpoint of the one that is named."
)
IMPORTANCE_POINTS = 8
"""From so many points on importance is computed; below, a forest would only repeat noise."""


@dataclass(frozen=True)
class Compared:
    """Points at one step, so that stopped and finished ones can be compared."""

    step: int
    points: tuple[tuple[Mapping[str, Any], float], ...]
    """(settings, mean score over the seeds); the recipe has the settings {}."""


@dataclass(frozen=True)
class Picture:
    """One figure of the page."""

    title: str
    text: str
    uri: str
    alt: str


def write_report(out: Path, book: Book, *, name: str) -> Path:
    """Draw everything that there is data for into `out`, replacing an older report; returns the page.

    Raises:
        DataError: no trial was evaluated yet.
    """
    out.mkdir(parents=True, exist_ok=True)
    objective = Objective(tuple(book.settings["objective"]), book.settings["against"])
    trials = [trial for trial in book.trials.values() if trial.job.phase == "search"]
    if not any(trial.curve for trial in trials):
        raise DataError(f"{book.path}: no trial was evaluated yet, so there is nothing to report.")
    decision = decide(book, objective)
    full = book.settings["config"]["train.steps"]
    compared = common_step(book, objective)
    html = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=f"Sweep {name}",
            decision=decision,
            objective=objective,
            settings=book.settings,
            counts=Counter(trial.state for trial in trials),
            spent=book.spent,
            saved=saved_steps(book, full),
            rows=_rows(book, objective),
            fresh=_fresh(decision),
            tests=_tests(book, objective),
            test_shards=book.notes.get(TEST, {}).get("shards", []),
            schedule=_schedule(book, decision),
            pictures=_pictures(out, book, objective, compared),
            failures=[trial for trial in trials if trial.state in ("failed", "crashed")],
            advice=advice(book, decision, compared),
        )
    )
    page = out / "index.html"
    page.write_text(html, encoding="utf-8")
    return page


def _environment() -> Environment:
    environment = page_templates(Path(__file__).parent)
    environment.filters["words"] = settings
    return environment


def common_step(book: Book, objective: Objective) -> Compared:
    """The latest step that at least half of the evaluated points have reached."""
    reached = {
        number: trials for number, trials in book.points("search").items() if all(trial.curve for trial in trials)
    }
    if not reached:
        return Compared(0, ())
    last = sorted(min(trial.steps for trial in trials) for trials in reached.values())
    step = last[len(last) // 2]
    points = []
    for number, trials in reached.items():
        at = [values for trial in trials for when, values in trial.curve if when == step]
        if len(at) == len(trials):
            points.append((trials[0].job.changes if number != BASELINE else {}, fmean(map(objective.score, at))))
    return Compared(step, tuple(points))


def _rows(book: Book, objective: Objective) -> list[dict[str, Any]]:
    best = standings(book.points("search"), objective)[:BEST]
    return [
        {
            "point": one.point,
            "words": settings(one.changes) + since(one.trials[0]) if one.point != BASELINE else "the recipe as it is",
            "score": f"{one.score.mean:.4f}",
            "interval": _interval(one.score),
            "cost": f"{one.cost.mean:.4g}" if objective.against else "",
        }
        for one in best
    ]


def _schedule(book: Book, decision: Decision | None) -> list[tuple[str, str]]:
    """(step, settings from there on) of the best, if they changed in flight."""
    if decision is None or not decision.best.trials[0].turns:
        return []
    found = lineage(book, decision.best.trials[0].job.key, {})
    return [(f"{step:,}", settings(changes) or "the recipe as it is") for step, changes in found]


def _interval(estimate: Estimate) -> str:
    if estimate.interval is None:
        return "one seed"
    return f"{estimate.interval[0]:.4f} – {estimate.interval[1]:.4f}"


def _fresh(decision: Decision | None) -> list[tuple[str, str, str]]:
    if decision is None or decision.fresh_best is None or decision.fresh_recipe is None:
        return []
    rows = [("the recipe as it is", f"{decision.fresh_recipe.mean:.4f}", _interval(decision.fresh_recipe))]
    if decision.best.point != BASELINE:
        rows.insert(
            0, (f"point {decision.best.point}", f"{decision.fresh_best.mean:.4f}", _interval(decision.fresh_best))
        )
    return rows


def _tests(book: Book, objective: Objective) -> list[tuple[str, str, str, str]]:
    """(metric, point, mean, interval) on the test split."""
    scores: Mapping[str, list[Mapping[str, float]]] = book.notes.get(TEST, {}).get("scores", {})
    rows = []
    for name in objective.names:
        for point, seeds in scores.items():
            if seeds and all(name in one for one in seeds):
                estimate = Estimate(tuple(one[name] for one in seeds))
                who = "the recipe as it is" if int(point) == BASELINE else f"point {point}"
                rows.append((name, who, f"{estimate.mean:.4f}", _interval(estimate)))
    return rows


def _pictures(out: Path, book: Book, objective: Objective, compared: Compared) -> list[Picture]:
    trials = [trial for trial in book.trials.values() if trial.job.phase == "search"]
    at = f"Scores after {compared.step:,} steps, which at least half of the points have reached."
    names = _axes([point for point, _ in compared.points])
    found = []

    def add(title: str, text: str, path: Path) -> None:
        uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        found.append(Picture(title, text, uri, f"{title}. {text}"))

    add(
        "Learning curves",
        "Every trial on validation data; a cross is where it was stopped.",
        pictures.curves_png(trials, objective, out / "curves.png"),
    )
    if book.settings["scheduler"] == "pbt":  # what follows speaks of settings that do not change
        for name, _, note in book.settings["space"]:
            recipe = _recipe(book, [name]).get(name)
            values = [changes.get(name, recipe) for trial in trials for _, changes in trial.course]
            if note != "fixed" and all(_is_number(value) or value is None for value in values):
                path = pictures.course_png(trials, name, out / f"course-{name}.png", recipe=recipe)
                add(f"Course of {short_name(name)}", COURSE, path)
        return found
    filled = [({**_recipe(book, names), **point}, score) for point, score in compared.points]
    if len(filled) >= 2 and names:
        path = pictures.parallel_png(filled, names, out / "parallel.png")
        add("Parallel coordinates", f"A line is a point; the brighter and thicker, the better. {at}", path)
    if weights := importance(filled, names):
        path = pictures.importance_png(weights, out / "importance.png")
        add("Importance", f"fANOVA: how much of the spread of the scores an axis explains alone. {at}", path)
    for name in names:
        response = [(float(point[name]), score) for point, score in filled if _is_number(point.get(name))]
        if name == pictures.LAMBDA and len(response) >= 3:
            baseline = _recipe(book, [name]).get(name)
            path = pictures.response_png(response, name, out / "lambda.png", baseline=baseline)
            add("Response to λ", f"Other axes vary too, so points scatter. {at}", path)
    if objective.against:
        points = standings(book.points("search"), objective)
        path = pictures.front_png(points, pareto(points), objective, out / "front.png")
        add("Pareto front", "No point is better in one objective without being worse in the other.", path)
    return found


def _axes(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields that differ between points, in the order in which they are drawn."""
    names = list(dict.fromkeys(name for point in points for name in point))
    return [name for name in names if len({str(point.get(name)) for point in points if point}) > 1]


def _recipe(book: Book, names: Sequence[str]) -> dict[str, Any]:
    """The recipe's values of these axes."""
    config = book.settings["config"]
    found = {}
    for name in names:
        path, _, place = name.rpartition(".")
        if name in config:
            found[name] = config[name]
        elif place.isdigit() and int(place) < len(config.get(path) or ()):
            found[name] = config[path][int(place)]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def importance(points: Sequence[tuple[Mapping[str, Any], float]], names: Sequence[str]) -> dict[str, float]:
    """fANOVA over the axes that all points have; {} with too few points."""
    shared = [name for name in names if all(name in point for point, _ in points)]
    shared = [name for name in shared if len({str(point[name]) for point, _ in points}) > 1]
    if len(points) < IMPORTANCE_POINTS or len(shared) < 2 or len({score for _, score in points}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    distributions = {name: _observed([point[name] for point, _ in points]) for name in shared}
    for point, score in points:
        values = {name: point[name] if _is_number(point[name]) else str(point[name]) for name in shared}
        values = {
            name: value if isinstance(distributions[name], FloatDistribution) else str(value)
            for name, value in values.items()
        }
        study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=score))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _observed(values: Sequence[Any]) -> BaseDistribution:
    if all(map(_is_number, values)):
        return FloatDistribution(float(min(values)), float(max(values)))
    return CategoricalDistribution(sorted({str(value) for value in values}))


def advice(book: Book, decision: Decision | None, compared: Compared) -> list[str]:
    """What to do next, in words."""
    found: list[str] = []
    failed = [trial for trial in book.trials.values() if trial.state in ("failed", "crashed")]
    if failed:
        found.append(f"{len(failed)} of {len(book.trials)} trials failed; the first says: {failed[0].reason}")
    if decision is None:
        return [*found, "No trial has finished: raise the budget and run the same command again."]
    population = book.settings["scheduler"] == "pbt"
    if decision.front:
        found.append(
            f"Choose a point of the front by what you can pay in {decision.against}, and train it with the main job. "
            "Neighbours on it may have changed places by luck: --seeds 3 tells."
        )
    elif decision.is_better and population:
        found.append("Its confirmation repeated the schedule below on fresh seeds; those trials keep their weights.")
    elif decision.is_better:
        found.append("Train the winner to full length and register it: the same command with --register.")
    elif decision.best.point != BASELINE and decision.gain is None:
        found.append("Compare the leader with the recipe on fresh seeds before believing it: --confirm 3.")
    elif decision.best.point != BASELINE and decision.gain is not None and not decision.gain.is_worse:
        found.append("The difference is within the spread of seeds: more of them (--confirm 8), or longer trials.")
    else:
        found.append("Keep the recipe, or search another space: the ones of tune/spaces.py, or one of your own.")
    found += _edges(decision, book)
    if len(compared.points) < IMPORTANCE_POINTS and not population:
        found.append(f"{len(compared.points)} points are few: raise --points and run the same command again.")
    return found


def _edges(decision: Decision, book: Book) -> list[str]:
    """Axes on whose border the best point lies."""
    found = []
    for name, domain, _ in book.settings["space"]:
        value = decision.best.changes.get(name)
        if not _is_number(value) or ".." not in domain:
            continue
        low, high = (float(bound) for bound in domain.split(":")[0].split(".."))
        assert isinstance(value, (int, float))
        if (value < low + 0.05 * (high - low) and low > 0) or value > high - 0.05 * (high - low):
            found.append(
                f"The best {short_name(name)} ({value:.3g}) lies at the border of {domain}: widen it (--axis)."
            )
    return found


@dataclass(frozen=True)
class Arguments:
    """Write the report of a sweep again."""

    folder: Path
    """The sweep's folder: <output>/<name>-<space>."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report and say where; the exit code."""
    parsed = tyro.cli(Arguments, prog="python -m tune.report", description=__doc__, args=arguments)
    return exit_code(lambda: _again(parsed.folder))


def _again(folder: Path) -> None:
    path = folder / "book.jsonl"
    if not path.is_file():
        raise DataError(f"--folder {folder} has no book.jsonl: give the folder of a sweep, <output>/<name>-<space>.")
    print(write_report(folder / "report", Book(path, read_only=True), name=folder.resolve().name))


if __name__ == "__main__":
    sys.exit(main())

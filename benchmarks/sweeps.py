"""Is a search worth its compute? TPE with ASHA, random search without stopping, and the recipe's λ = 2, at equal steps.

    python -m pipelines.prepare icons --out demo/data
    python -m benchmarks.sweeps --out demo/sweeps

Both searches get the same number of training steps; the confirmation on fresh seeds comes on top and is the same for
both. A trial has one worker. Half of the held-out shards judge, the other half is the test split. Stopped and run again
it goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import tyro
from rich.console import Console
from rich.table import Table

from ito_ray.errors import DataError
from pipelines.command import exit_code
from tune.book import BASELINE, TEST, Book
from tune.decision import decide
from tune.judging import Estimate, Objective
from tune.options import R1
from tune.search import main as search

OBJECTIVE = Objective(R1)
POINTS = 10_000
"""More than any budget reaches."""


@dataclass(frozen=True)
class Arguments:
    """What is compared, and for how long."""

    out: Path = Path("demo/sweeps")
    data: Path = Path("demo/data")
    """Made by `pipelines.prepare icons`."""
    space: str = "ito_weights"
    steps: int = 310
    """Of a trial that is not stopped."""
    budget: int = 3720
    """Steps of each search."""
    seeds: int = 3
    """Fresh ones for the confirmation."""


ARMS = {"tpe_asha": ("tpe", "asha"), "random": ("random", "none")}


def words(arguments: Arguments, arm: str) -> list[str]:
    """The command line of one search."""
    searcher, scheduler = ARMS[arm]
    heldout = sorted((arguments.data / "heldout").glob("*.tar"))
    if len(heldout) < 2:
        raise DataError(f"--data {arguments.data} needs two shards in heldout/: one to judge by and one to test on.")
    half = len(heldout) // 2
    options = {
        "recipe": "icons_cpu",
        "name": arm,
        "output": arguments.out,
        "space": arguments.space,
        "searcher": searcher,
        "scheduler": scheduler,
        "points": POINTS,
        "budget.steps": arguments.budget,
        "confirm": arguments.seeds,
        "train.steps": arguments.steps,
        "train.workers": 1,
        "optim.warmup-steps": max(1, arguments.steps // 3),
        "eval.max-samples": 1000,
        "data.train": arguments.data / "train",
    }
    listed = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    listed += ["--data.heldout", *map(str, heldout[:half]), "--test", *map(str, heldout[half:])]
    return [*listed, "--eval.zero-shot"]


def rows(arm: str, book: Book) -> list[tuple[str, ...]]:
    """(who, points, steps of the search, validation on fresh seeds, test) of the search's best and of the recipe."""
    decision = decide(book, OBJECTIVE)
    assert decision is not None and decision.fresh_recipe is not None
    tests: dict[str, list[dict[str, float]]] = book.notes[TEST]["scores"]

    def tested(point: int) -> str:
        return str(Estimate(tuple(fmean(one[name] for name in R1) for one in tests[str(point)])))

    searched = [trial for trial in book.trials.values() if trial.job.phase == "search"]
    used = sum(trial.steps for trial in searched)
    found: list[tuple[str, ...]] = [
        (f"recipe, λ = 2, seeds of {arm}", "1", "0", str(decision.fresh_recipe), tested(BASELINE))
    ]
    if decision.best.point != BASELINE and decision.fresh_best is not None:
        best = (str(len(searched)), f"{used:,}", str(decision.fresh_best), tested(decision.best.point))
        found.append((f"{arm}: {decision.best.changes}", *best))
    else:
        found.append((f"{arm}: the recipe itself", str(len(searched)), f"{used:,}", *found[0][3:]))
    return found


def run(arguments: Arguments, console: Console) -> int:
    """Both searches, then the table."""
    table = Table("setting", "points", "steps of the search", "validation R@1", "test R@1", box=None)
    for arm in ARMS:
        code = search(words(arguments, arm))
        if code:
            return code
        for row in rows(arm, Book(arguments.out / f"{arm}-{arguments.space}" / "book.jsonl", read_only=True)):
            table.add_row(*row)
    console.print(table)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parsed = tyro.cli(Arguments, prog="python -m benchmarks.sweeps", description=__doc__, args=arguments)
    return exit_code(lambda: run(parsed, Console(highlight=False, width=200)))


if __name__ == "__main__":
    sys.exit(main())

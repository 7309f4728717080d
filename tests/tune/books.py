"""Books of sweeps that never ran, with scores from a formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ito_ray.config.schema import Config
from tests.tiny import tiny_config
from tune.book import BASELINE, Book, Job, Phase, State
from tune.judging import Objective

FULL, EVERY = 90, 30
OBJECTIVE = Objective(("heldout/r1",))


def base() -> Config:
    return tiny_config(train={"steps": FULL}, optim={"warmup_steps": 2})


def settings(**changes: Any) -> dict[str, Any]:
    """As a session writes them, for the space of λ."""
    return {
        "recipe": "tiny",
        "space": [["method.fusion_weight", "0..8", ""]],
        "searcher": "random",
        "scheduler": "asha",
        "factor": 3,
        "seeds": 1,
        "objective": list(OBJECTIVE.names),
        "against": "",
        "warm_start": [],
        "evaluate_every": EVERY,
        "config": {"train.steps": FULL, "method.fusion_weight": 2.0, "data.heldout": ["v.tar"]},
        **changes,
    }


def score(weight: float, seed: int, step: int) -> float:
    """An inverted U with its top at 4."""
    return (0.5 - 0.01 * (weight - 4.0) ** 2 + 0.001 * (seed % 3)) * step / FULL


def fill(book: Book, point: int, weight: float, *, seed: int = 0, phase: Phase = "search", last: int = FULL) -> None:
    """A trial that was stopped at `last`, or finished."""
    changes = {} if point == BASELINE else {"method.fusion_weight": weight}
    key = book.started(Job(point, seed, phase, changes)).job.key
    for step in range(EVERY, last + 1, EVERY):
        end: State = "finished" if step == FULL else "stopped" if step == last else "open"
        verdict = "below the others" if end == "stopped" else ""
        book.evaluated(key, step, {"heldout/r1": score(weight, seed, step), "step_seconds": weight}, verdict, end)


def finished_sweep(path: Path) -> Book:
    """Ten points, six of them stopped, and three fresh seeds of the best and of the recipe."""
    book = Book(path)
    book.open_session(settings())
    for point, weight in enumerate((2.0, 0.0, 0.5, 1.0, 3.0, 4.2, 5.0, 6.0, 7.0, 8.0)):
        fill(book, point, weight, last=FULL if 1.5 < weight < 5.5 else EVERY)
    for seed in (1000, 1001, 1002):
        fill(book, BASELINE, 2.0, seed=seed, phase="confirm")
        fill(book, 5, 4.2, seed=seed, phase="confirm")
    return book

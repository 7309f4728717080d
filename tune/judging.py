"""From numbers to words: what a point is worth over its seeds, whether one is better than another, who is on the front.

Intervals are Student's t over seeds, so they say how a *new seed* would come out, not how a new test set would.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError, did_you_mean
from ito_ray.evaluation.evaluate import criteria
from ito_ray.evaluation.measures import GEOMETRY
from tune.book import Book, Trial

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Objective:
    """What is searched for, on validation data."""

    names: tuple[str, ...]
    """Evaluation metrics whose mean is made as large as possible."""
    against: str = ""
    """A second number, made as small as possible; "" = there is one objective only."""

    def __str__(self) -> str:
        first = self.names[0] if len(self.names) == 1 else f"mean of {' and '.join(self.names)}"
        return first + (f" against {self.against}" if self.against else "")

    def score(self, values: Mapping[str, float]) -> float:
        """The first objective.

        Raises:
            ConfigError: a metric that the evaluation does not give.
        """
        return fmean(_number(values, name, "--objective") for name in self.names)

    def cost(self, values: Mapping[str, float]) -> float:
        """The second one; 0 when there is none."""
        return _number(values, self.against, "--against") if self.against else 0.0


STEP_NUMBERS = ("step_seconds", "step_cpu_seconds")
"""What every trial gives beside its evaluation (ito_ray/runtime/trial.py)."""


def require_metrics(objective: Objective, cfg: Config) -> None:
    """
    Raises:
        ConfigError: a name that no evaluation of this configuration gives (the nearest is named), or one of which
            less is better, as the objective.
    """
    ways = criteria(cfg)
    known = [*ways, *(GEOMETRY if cfg.data.heldout else ()), *STEP_NUMBERS]
    asked = [("--objective", name) for name in objective.names]
    for option, name in asked + ([("--against", objective.against)] if objective.against else []):
        if name not in known:
            raise ConfigError(
                f"{option} {name}: no trial gives such a number. data.heldout gives heldout/… and geometry/…, "
                f"eval.zero_shot gives zero_shot/…; here there are {', '.join(known)}.{did_you_mean(name, known)}"
            )
    for name in objective.names:
        if name in STEP_NUMBERS or not ways.get(name, True):
            raise ConfigError(f"--objective {name}: less of it is better, but the objective is made large: --against.")


def _number(values: Mapping[str, float], name: str, option: str) -> float:
    if name not in values:
        raise ConfigError(f"{option} {name}: the evaluation gives {', '.join(sorted(values))}.")
    return values[name]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the values."""
        return fmean(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % for the mean; None with one seed, which says nothing of the others."""
        if len(self.values) < 2:
            return None
        half = (
            stats.t.ppf((1 + CONFIDENCE) / 2, len(self.values) - 1) * stdev(self.values) / math.sqrt(len(self.values))
        )
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:.4f} (one seed)"
        return f"{self.mean:.4f} ({self.interval[0]:.4f} – {self.interval[1]:.4f}, {len(self.values)} seeds)"


@dataclass(frozen=True)
class Difference:
    """How much larger one mean is than another, with its 95 % interval; None with one seed."""

    value: float
    interval: tuple[float, float] | None

    @property
    def is_better(self) -> bool:
        """Surely larger."""
        return self.interval is not None and self.interval[0] > 0

    @property
    def is_worse(self) -> bool:
        """Surely smaller."""
        return self.interval is not None and self.interval[1] < 0


def difference(one: Estimate, other: Estimate) -> Difference:
    """`one` less `other`: Welch's interval, which takes no equal spread for granted."""
    value = one.mean - other.mean
    if min(len(one.values), len(other.values)) < 2:
        return Difference(value, None)
    if stdev(one.values) == stdev(other.values) == 0:
        return Difference(value, (value, value))
    low, high = stats.ttest_ind(one.values, other.values, equal_var=False).confidence_interval(CONFIDENCE)
    return Difference(value, (float(low), float(high)))


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference:
    """`one` less `other`, by seed, over the seeds that both have: Student's t over the differences.

    Narrower than `difference` where a seed is lucky for both, since what they share cancels.
    """
    gaps = Estimate(tuple(one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())))
    return Difference(gaps.mean, gaps.interval)


@dataclass(frozen=True)
class Standing:
    """What a point is worth, of the trials that went to the end."""

    point: int
    score: Estimate
    cost: Estimate
    trials: tuple[Trial, ...]

    @property
    def changes(self) -> dict[str, object]:
        """What it changes of the recipe, at last."""
        return self.trials[0].changes()


def standings(trials: Mapping[int, Sequence[Trial]], objective: Objective) -> list[Standing]:
    """The points whose trials all finished, best first."""
    found = []
    for point, all_of_it in trials.items():
        if any(trial.state != "finished" for trial in all_of_it):
            continue
        last = [trial.curve[-1][1] for trial in all_of_it]
        score = Estimate(tuple(objective.score(values) for values in last))
        cost = Estimate(tuple(objective.cost(values) for values in last))
        found.append(Standing(point, score, cost, tuple(all_of_it)))
    return sorted(found, key=lambda one: -one.score.mean)


def pareto(points: Iterable[Standing]) -> list[Standing]:
    """Those that no other beats in one objective without losing in the other, cheapest first."""
    front: list[Standing] = []
    for one in sorted(points, key=lambda one: (one.cost.mean, -one.score.mean)):
        if not front or one.score.mean > front[-1].score.mean:
            front.append(one)
    return front


def saved_steps(book: Book, full: int) -> tuple[int, int]:
    """(steps that stopping early saved, steps that all stopped trials would have taken)."""
    stopped = [trial for trial in book.trials.values() if trial.state == "stopped"]
    return sum(full - trial.steps for trial in stopped), full * len(stopped)

"""Which point comes next: Optuna's samplers, or a grid. Rebuilt from the book whenever a sweep resumes.

Points are drawn through an Optuna trial axis by axis, so conditions are Optuna's own define-by-run; values that Optuna
cannot hold (tuples) are known to it by their place in the list.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from ito_ray.config.schema import Config
from tune.axes import Axis, Changes, Choice, Domain, Space, value_of
from tune.book import Trial
from tune.judging import Objective

SearcherName = Literal["tpe", "nsga2", "random", "grid"]
STARTUP_POINTS = 8
"""Random points before TPE trusts its model."""


class Searcher(Protocol):
    """Gives points and learns from them."""

    def ask(self, point: int) -> Changes | None:
        """The next point; None: there are no more."""

    def tell(self, point: int, changes: Changes, trials: Sequence[Trial]) -> None:
        """All trials of a point have ended; also for points that it was not asked for."""

    def pending(self, point: int, changes: Changes) -> None:
        """A point that was drawn by an earlier session and has not ended: not to be drawn again."""


def make_searcher(
    name: SearcherName, space: Space, start: Config, objective: Objective, *, seed: int, grid_points: int
) -> Searcher:
    """The searcher called `name`, which has seen nothing yet."""
    if name == "grid":
        return GridSearcher(space, start, grid_points)
    return OptunaSearcher(name, space, start, objective, seed=seed)


class GridSearcher:
    """Every combination in turn."""

    def __init__(self, space: Space, start: Config, points: int) -> None:
        self._left: Iterator[Changes] = space.grid(start, points)
        self._skip: list[Changes] = []

    def ask(self, point: int) -> Changes | None:
        return next((changes for changes in self._left if not self._known(changes)), None)

    def tell(self, point: int, changes: Changes, trials: Sequence[Trial]) -> None:
        self._skip.append(changes)

    def pending(self, point: int, changes: Changes) -> None:
        self._skip.append(changes)

    def _known(self, changes: Changes) -> bool:
        return any(repr(sorted(changes.items())) == repr(sorted(known.items())) for known in self._skip)


class OptunaSearcher:
    """TPE (multivariate), NSGA-II or random points."""

    def __init__(self, name: SearcherName, space: Space, start: Config, objective: Objective, *, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # TPE's groups
        self._space, self._start, self._objective = space, start, objective
        self._name, self._seed = name, seed
        self.study = new_study(objective)
        self._asked: dict[int, optuna.Trial] = {}

    def ask(self, point: int) -> Changes | None:
        # Seeded by the point's number: a resumed sweep draws what the undisturbed one would have drawn at random.
        self.study.sampler = _sampler(self._name, self._seed + 7919 * point)
        trial = self.study.ask()
        self._asked[point] = trial
        return self._space.draw(lambda axis: suggest(trial, axis), self._start)

    def tell(self, point: int, changes: Changes, trials: Sequence[Trial]) -> None:
        asked = self._asked.pop(point, None)
        if asked is not None:
            state, values = outcome(trials, self._objective)
            if state == TrialState.PRUNED and not self._objective.against:
                step, value = trials[0].steps, values[0]
                asked.report(value, step)
                self.study.tell(asked, state=state)
            else:
                self.study.tell(asked, values if state == TrialState.COMPLETE else None, state=state)
        elif frozen := frozen_trial(self._space, self._start, changes, trials, self._objective):
            self.study.add_trial(frozen)

    def pending(self, point: int, changes: Changes) -> None:
        if not _fits(self._space, changes):
            return
        self.study.enqueue_trial(
            {axis.field: _code(axis, changes[axis.field]) for axis in _drawn(self._space, changes)}
        )
        self.ask(point)


def new_study(objective: Objective) -> optuna.Study:
    """An empty one, in memory: the book is what lasts."""
    return optuna.create_study(directions=["maximize", "minimize"] if objective.against else ["maximize"])


def _sampler(name: SearcherName, seed: int) -> optuna.samplers.BaseSampler:
    if name == "tpe":
        return optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP_POINTS, seed=seed
        )
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=STARTUP_POINTS, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def suggest(trial: optuna.Trial, axis: Axis) -> Any:
    """Draw one axis."""
    domain = axis.domain
    if isinstance(domain, Choice):
        return domain.values[trial.suggest_categorical(axis.field, range(len(domain.values)))]
    if domain.integer:
        return trial.suggest_int(axis.field, int(domain.low), int(domain.high), log=domain.log)
    return trial.suggest_float(axis.field, domain.low, domain.high, log=domain.log)


def outcome(trials: Sequence[Trial], objective: Objective) -> tuple[TrialState, list[float]]:
    """What Optuna is told: the mean over the seeds; pruned if one of them was stopped, failed if one of them did."""
    if any(trial.state in ("failed", "crashed") or not trial.curve for trial in trials):
        return TrialState.FAIL, []
    last = [trial.curve[-1][1] for trial in trials]
    values = [sum(map(objective.score, last)) / len(last)]
    if objective.against:
        values.append(sum(map(objective.cost, last)) / len(last))
    return TrialState.PRUNED if any(trial.state == "stopped" for trial in trials) else TrialState.COMPLETE, values


def frozen_trial(
    space: Space, start: Config, changes: Changes, trials: Sequence[Trial], objective: Objective
) -> FrozenTrial | None:
    """A finished point as Optuna keeps it; None when it lies outside the space and teaches nothing about it."""
    complete = space.draw(lambda axis: changes.get(axis.field, value_of(start, axis.field)), start)
    if not _fits(space, complete):
        return None
    state, values = outcome(trials, objective)
    axes = list(_drawn(space, complete))
    pruned = state == TrialState.PRUNED and not objective.against
    return optuna.trial.create_trial(
        state=state,
        params={axis.field: _code(axis, complete[axis.field]) for axis in axes},
        distributions={axis.field: distribution(axis.domain) for axis in axes},
        values=values if state == TrialState.COMPLETE else None,
        intermediate_values={trials[0].steps: values[0]} if pruned else None,
    )


def distribution(domain: Domain) -> BaseDistribution:
    """As Optuna says it."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(tuple(range(len(domain.values))))
    if domain.integer:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def _drawn(space: Space, changes: Changes) -> Iterator[Axis]:
    """Axes that the point draws; those that a condition sets are no parameters."""
    for axis in space.axes:
        if axis.field in changes and not (axis.otherwise == changes[axis.field] and not _inside(axis, changes)):
            yield axis


def _inside(axis: Axis, changes: Changes) -> bool:
    domain, value = axis.domain, changes[axis.field]
    if isinstance(domain, Choice):
        return any(_same(value, other) for other in domain.values)
    return isinstance(value, (int, float)) and domain.low <= value <= domain.high


def _fits(space: Space, changes: Changes) -> bool:
    return all(_inside(axis, changes) for axis in _drawn(space, changes))


def _code(axis: Axis, value: Any) -> Any:
    if isinstance(axis.domain, Choice):
        return next(place for place, other in enumerate(axis.domain.values) if _same(value, other))
    return value


def _same(value: Any, other: Any) -> bool:
    """JSON has lists where a space has tuples."""
    return bool(
        (list(value) if isinstance(value, tuple) else value) == (list(other) if isinstance(other, tuple) else other)
    )

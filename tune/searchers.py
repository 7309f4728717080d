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
        """A point that was drawn by an earlier session: not to be drawn again, and perhaps told later."""


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
            state, values, step = outcome(trials, self._objective)
            if state == TrialState.PRUNED and not self._objective.against:
                asked.report(values[0], step)
                self.study.tell(asked, state=state)
            else:
                self.study.tell(asked, values if state == TrialState.COMPLETE else None, state=state)
        elif frozen := frozen_trial(self._space, self._start, changes, trials, self._objective):
            self.study.add_trial(frozen)

    def pending(self, point: int, changes: Changes) -> None:
        params = parameters(self._space, self._start, changes)
        if params is not None:
            self.study.enqueue_trial(params)
            self.ask(point)
            if isinstance(self.study.sampler, optuna.samplers.NSGAIISampler):
                # Optuna asks the sampler nothing about a trial whose values are given, and it then has no generation.
                asked = self.study.trials[self._asked[point].number]
                generation = self.study.sampler.get_trial_generation(self.study, asked)
                self.study.sampler.get_parent_population(self.study, generation)


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


def outcome(trials: Sequence[Trial], objective: Objective) -> tuple[TrialState, list[float], int]:
    """What Optuna is told: the mean over the seeds, and the step that it is of.

    Pruned if one of them was stopped, and then at the last step that all have come to; failed if one of them did.
    """
    if any(trial.state in ("failed", "crashed") or not trial.curve for trial in trials):
        return TrialState.FAIL, [], 0
    step = min(trial.steps for trial in trials)
    at = [trial.values(step) or trial.curve[-1][1] for trial in trials]
    values = [sum(map(objective.score, at)) / len(at)]
    if objective.against:
        values.append(sum(map(objective.cost, at)) / len(at))
    stopped = any(trial.state == "stopped" for trial in trials)
    return TrialState.PRUNED if stopped else TrialState.COMPLETE, values, step


def frozen_trial(
    space: Space, start: Config, changes: Changes, trials: Sequence[Trial], objective: Objective
) -> FrozenTrial | None:
    """A finished point as Optuna keeps it; None when it lies outside the space and teaches nothing about it."""
    params = parameters(space, start, changes)
    if params is None:
        return None
    state, values, step = outcome(trials, objective)
    pruned = state == TrialState.PRUNED and not objective.against
    return optuna.trial.create_trial(
        state=state,
        params=params,
        distributions={axis.field: distribution(axis.domain) for axis in space.axes if axis.field in params},
        values=values if state == TrialState.COMPLETE else None,
        intermediate_values={step: values[0]} if pruned else None,
        # NSGA-II takes no trial without it for a parent; it was not drawn from parents, so it is of the first ones.
        system_attrs={optuna.samplers.NSGAIISampler._get_generation_key(): 0},
    )


def distribution(domain: Domain) -> BaseDistribution:
    """As Optuna says it."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(tuple(range(len(domain.values))))
    if domain.integer:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def parameters(space: Space, start: Config, changes: Changes) -> dict[str, Any] | None:
    """A point as Optuna's parameters: of the axes that are drawn where it lies; None when it lies outside the space."""
    codes: dict[str, Any] = {}

    def pick(axis: Axis) -> Any:
        value = changes[axis.field] if axis.field in changes else value_of(start, axis.field)
        codes[axis.field] = code = _code(axis.domain, value)
        return axis.domain.values[code] if isinstance(axis.domain, Choice) and code is not None else value

    space.draw(pick, start)
    return None if None in codes.values() else codes


def _code(domain: Domain, value: Any) -> Any:
    """Optuna's word for a value; None if it lies outside."""
    if isinstance(domain, Choice):
        return next((place for place, other in enumerate(domain.values) if same(value, other)), None)
    is_number = isinstance(value, int if domain.integer else (int, float)) and not isinstance(value, bool)
    return value if is_number and domain.low <= value <= domain.high else None


def same(value: Any, other: Any) -> bool:
    """Whether two values are, but that JSON has lists where a space has tuples."""
    return bool(_lists(value) == _lists(other))


def _lists(value: Any) -> Any:
    return [_lists(part) for part in value] if isinstance(value, (list, tuple)) else value

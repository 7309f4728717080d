"""Which evaluation was best, and when not to wait for a better one: pure functions of a curve.

A curve is the (step, value) of `eval.best`, by step; evaluations that could not be made are not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError, did_you_mean
from ito_ray.evaluation.evaluate import criteria
from ito_ray.training.state import State

Point = tuple[int, float]


@dataclass(frozen=True)
class Criterion:
    """What `eval.best` and the fields that go with it ask for."""

    metric: str
    larger: bool
    """Whether a larger value is better."""
    patience: int = 0
    """Evaluations in a row without improvement; 0 = without end."""
    min_improvement: float = 0.0
    keep: int = 1
    """How many of the best checkpoints stay."""

    def best(self, curve: Sequence[Point]) -> Point | None:
        """The best point, the first of equal ones; None when there is none."""
        return next(iter(self._by_gain(curve)), None)

    def kept(self, curve: Sequence[Point]) -> list[Point]:
        """The best points, at most `keep`, the best one first."""
        return self._by_gain(curve)[: self.keep]

    def improvements(self, curve: Sequence[Point]) -> Iterator[Point]:
        """The points that patience counts from: the first, and each one better than the last of these by enough."""
        last: float | None = None
        for step, value in curve:
            if last is None or self._gain(value) - self._gain(last) > self.min_improvement:
                last = value
                yield step, value

    def ran_out(self, curve: Sequence[Point]) -> Point | None:
        """The improvement after which patience ran out; None while it lasts. What comes later does not change it."""
        if not self.patience or not curve:
            return None
        at = {step: number for number, (step, _) in enumerate(curve)}
        improved = list(self.improvements(curve))
        until = [at[step] for step, _ in improved[1:]] + [len(curve)]
        waits = zip(improved, until, strict=True)
        return next((one for one, end in waits if end - at[one[0]] > self.patience), None)

    def _by_gain(self, curve: Sequence[Point]) -> list[Point]:
        return sorted(curve, key=lambda point: -self._gain(point[1]))

    def _gain(self, value: float) -> float:
        return value if self.larger else -value


def criterion(cfg: Config) -> Criterion | None:
    """The criterion of a configuration; None without `eval.best`.

    Raises:
        ConfigError: a metric that its evaluations do not give (the nearest is named).
    """
    wanted, known = cfg.eval.best, criteria(cfg)
    if not wanted:
        return None
    if wanted not in known:
        there = ", ".join(known) or "nothing: data.heldout and eval.zero_shot are empty"
        hint = did_you_mean(wanted, known, cutoff=0.4)
        raise ConfigError(f"eval.best={wanted}: with this data there is {there}.{hint}")
    return Criterion(wanted, known[wanted], cfg.eval.patience, cfg.eval.min_improvement, cfg.eval.keep_best)


def stopped_early(cfg: Config, state: State) -> str:
    """Why training ended before its last step, as far as this configuration still wants it to; empty if it did not."""
    rule = criterion(cfg)
    since = rule.ran_out(state.curve) if rule and state.stopped else None
    if rule is None or since is None:
        return ""
    least = f" by more than {rule.min_improvement:g}" if rule.min_improvement else ""
    return (
        f"{rule.metric} did not improve{least} in {rule.patience} evaluations after step {since[0]:,} "
        f"({since[1]:.4f}): ended after {state.step:,} of {cfg.train.steps:,} steps"
    )

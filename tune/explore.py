"""Settings that change in flight: which can, and how a member of a population tries others than those it copies.

Source: Jaderberg et al., Population Based Training of Neural Networks (https://arxiv.org/abs/1711.09846), "explore":
a number is multiplied by 0.8 or 1.2, and now and then any setting is drawn anew.
"""

from __future__ import annotations

import math
import random
from typing import Any

from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from ito_ray.training.state import IN_FLIGHT
from tune.axes import Axis, Changes, Choice, Domain, Range, Space, value_of

FACTORS = (0.8, 1.2)
RESAMPLE = 0.25
"""Chance of an axis to be drawn anew."""
LAMBDA = "method.fusion_weight"


def require_in_flight(space: Space, base: Config) -> None:
    """Refuse what a member of a population could not change when it goes on from another's checkpoint.

    Raises:
        ConfigError: a field that the tensors of a checkpoint depend on.
    """
    stuck = [axis.field for axis in space.axes if not _is_free(axis.field)]
    if stuck:
        fixes = " ".join(f"{name}={_word(value_of(base, name))}" for name in stuck)
        raise ConfigError(
            f"--scheduler pbt cannot change {', '.join(stuck)} in flight: --fix {fixes} takes them out, or search them "
            f"with another scheduler. What can change: {', '.join(IN_FLIGHT)}; --space ito_schedule has some of them."
        )
    for name, value in space.fixed.items():
        if not _is_free(name) and value_of(base, name) != value:
            raise ConfigError(
                f"--scheduler pbt: {name} is fixed to {_word(value)}, but the recipe, which is a member of the "
                f"population, has {_word(value_of(base, name))}: change it in the recipe, with --{name} {_word(value)}."
            )
    drawn = next((axis.domain for axis in space.axes if axis.field == LAMBDA), None)
    recipes = base.method.fusion_weight
    domain = drawn or Choice((space.fixed.get(LAMBDA, recipes),))
    if _is_zero(domain) != (recipes == 0) or (drawn and _has_zero(domain)):
        raise ConfigError(
            f"--scheduler pbt: {LAMBDA} is {recipes:g} in the recipe and {domain} in the space, but with 0 "
            "there is no fusion module, so checkpoints could not be exchanged: keep both above 0, e.g. --axis "
            f"{LAMBDA}=0.25..8:log."
        )


def _is_free(name: str) -> bool:
    path, _, place = name.rpartition(".")
    return name in IN_FLIGHT or (place.isdigit() and path in IN_FLIGHT)


def _is_zero(domain: Domain) -> bool:
    return isinstance(domain, Choice) and set(domain.values) == {0}


def _has_zero(domain: Domain) -> bool:
    return domain.low <= 0 if isinstance(domain, Range) else 0 in domain.values


def _word(value: Any) -> str:
    """As the command line takes it."""
    return f"[{','.join(map(_word, value))}]" if isinstance(value, tuple) else str(value)


def explore(space: Space, start: Config, copied: Changes, source: random.Random) -> Changes:
    """Settings near those that are copied; every axis of them stays in its domain.

    Args:
        start: what `space.start` returned.
        copied: of the trial whose checkpoint is taken over; the recipe's are {}.
        source: decides; equal ones give equal settings.
    """

    def pick(axis: Axis) -> Any:
        before = copied.get(axis.field, value_of(start, axis.field))
        if isinstance(axis.domain, Choice):
            return _neighbour(axis.domain, before, source)
        return _perturbed(axis.domain, before, source)

    return space.draw(pick, start)


def _perturbed(domain: Range, before: float, source: random.Random) -> float:
    if source.random() < RESAMPLE:
        if domain.log:
            after = math.exp(source.uniform(math.log(domain.low), math.log(domain.high)))
        else:
            after = source.uniform(domain.low, domain.high)
    else:
        after = before * source.choice(FACTORS)
    after = min(max(after, domain.low), domain.high)
    return round(after) if domain.integer else after


def _neighbour(domain: Choice, before: Any, source: random.Random) -> Any:
    same = [place for place, value in enumerate(domain.values) if _plain(value) == _plain(before)]
    if not same or source.random() < RESAMPLE:
        return source.choice(domain.values)
    place = same[0] + source.choice((-1, 1))
    return domain.values[min(max(place, 0), len(domain.values) - 1)]


def _plain(value: Any) -> Any:
    """JSON has lists where a space has tuples."""
    return list(value) if isinstance(value, tuple) else value

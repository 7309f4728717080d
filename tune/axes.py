"""What a search space is made of: axes over fields of the configuration, drawn one after the other.

A later axis may depend on what earlier ones drew (`when`), so corners that cannot exist are never drawn.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import yaml

from ito_ray.config.load import overlay, require_field
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError

Changes = dict[str, Any]
"""Dotted field → value, e.g. {"method.fusion_weight": 3.1, "method.alignment_weights.1": 0.5}."""
PROBES = 200
"""Random points whose configurations are built before a sweep starts."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    """Equal chances for equal ratios; needs low > 0."""
    integer: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ConfigError(f"range {self}: give smallest < largest, and for log a smallest above 0.")

    def __str__(self) -> str:
        marks = [name for name, on in (("log", self.log), ("int", self.integer)) if on]
        return ":".join([f"{self.low:g}..{self.high:g}", *marks])

    def grid(self, points: int) -> list[Any]:
        """`points` values at equal distances, ends included."""
        spaced = np.geomspace if self.log else np.linspace
        values = [float(f"{value:.6g}") for value in spaced(self.low, self.high, points)]
        return sorted({round(value) for value in values}) if self.integer else values


@dataclass(frozen=True)
class Choice:
    """One of these values."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return " | ".join(str(value) for value in self.values)

    def grid(self, points: int) -> list[Any]:
        """All of them."""
        return list(self.values)


Domain = Range | Choice
Look = Callable[[str], Any]
"""Gives the value of a field: what was drawn, else the recipe's."""


@dataclass(frozen=True)
class When:
    """A condition on what was drawn before."""

    text: str
    """For people."""
    holds: Callable[[Look], bool]


def above(name: str, bound: float) -> When:
    """`name` is larger than `bound`."""
    return When(f"{name} > {bound:g}", lambda look: bool(look(name) > bound))


def among(name: str, *values: Any) -> When:
    """`name` is one of `values`."""
    return When(f"{name} in {list(values)}", lambda look: look(name) in values)


@dataclass(frozen=True)
class Axis:
    """One field that is searched."""

    field: str
    """Dotted; a last part that is a number is a place in a tuple: data.views.jitter.0."""
    domain: Domain
    when: When | None = None
    """Drawn only if this holds."""
    otherwise: Any = None
    """The value where it does not; None leaves the recipe's."""


@dataclass(frozen=True)
class Space:
    """Axes in the order in which they are drawn."""

    name: str
    axes: tuple[Axis, ...]
    fixed: Changes = field(default_factory=dict)
    """Laid over the recipe before anything is drawn."""

    def start(self, base: Config) -> Config:
        """The recipe with what the space fixes.

        Raises:
            ConfigError: an unknown field (the nearest is named), or values that do not fit.
        """
        for name in [*self.fixed, *(axis.field for axis in self.axes)]:
            require_field(_tuple_field(name)[0], source=f"space {self.name}")
        return apply(base, self.fixed, source=f"space {self.name}")

    def draw(self, pick: Callable[[Axis], Any], start: Config) -> Changes:
        """One point; `pick` is asked for each axis whose condition holds.

        Args:
            start: what `start` returned.
        """
        drawn: Changes = {}

        def look(name: str) -> Any:
            return drawn[name] if name in drawn else value_of(start, name)

        for axis in self.axes:
            if axis.when is None or axis.when.holds(look):
                drawn[axis.field] = pick(axis)
            elif axis.otherwise is not None:
                drawn[axis.field] = axis.otherwise
        return drawn

    def grid(self, start: Config, points: int) -> Iterator[Changes]:
        """Every combination, `points` values for each range; combinations that conditions make equal come once."""
        seen = set()
        values = [axis.domain.grid(points) for axis in self.axes]
        places = {axis.field: place for place, axis in enumerate(self.axes)}
        for combination in itertools.product(*values):
            changes = self.draw(partial(_picked, combination, places), start)
            key = repr(sorted(changes.items()))
            if key not in seen:
                seen.add(key)
                yield changes

    def check(self, base: Config) -> None:
        """Build the configurations of some random points.

        Raises:
            ConfigError: one cannot exist; names the point.
        """
        start = self.start(base)
        source = random.Random(0)
        for _ in range(PROBES if self.axes else 0):
            changes = self.draw(lambda axis: _random(axis.domain, source), start)
            try:
                apply(start, changes, source=f"space {self.name}")
            except ConfigError as error:
                raise ConfigError(
                    f"{error} It was drawn as {changes}: exclude such corners with a condition (tune/spaces.py), or "
                    "narrow an axis with --axis."
                ) from error

    def changed(self, axes: Mapping[str, Domain], fixed: Changes) -> Space:
        """With other domains (new fields are added at the end), and without the axes that are fixed.

        Raises:
            ConfigError: a field that is both searched and fixed here.
        """
        if both := sorted(set(axes) & set(fixed)):
            raise ConfigError(f"--axis and --fix both name {', '.join(both)}: choose one of them.")
        known = [axis.field for axis in self.axes]
        kept = [
            Axis(axis.field, axes.get(axis.field, axis.domain), axis.when, axis.otherwise)
            for axis in self.axes
            if axis.field not in fixed
        ]
        added = [Axis(name, domain) for name, domain in axes.items() if name not in known]
        return Space(self.name, (*kept, *added), {**self.fixed, **fixed})

    def rows(self) -> list[tuple[str, str, str]]:
        """(field, domain, condition) of every axis, as texts; fixed fields first."""
        fixed = [(name, str(value), "fixed") for name, value in self.fixed.items()]
        return fixed + [
            (axis.field, str(axis.domain), _condition(axis.when.text, axis.otherwise) if axis.when else "")
            for axis in self.axes
        ]


def _picked(combination: Sequence[Any], places: Mapping[str, int], axis: Axis) -> Any:
    return combination[places[axis.field]]


def _condition(text: str, otherwise: Any) -> str:
    return f"if {text}" + ("" if otherwise is None else f", else {otherwise}")


def apply(base: Config, changes: Changes, *, source: str) -> Config:
    """`base` with dotted changes.

    Raises:
        ConfigError: unknown fields, values that do not fit, or a place that the tuple does not have.
    """
    nested: dict[str, Any] = {}
    tuples: dict[str, list[Any]] = {}
    for name, value in changes.items():
        path, place = _tuple_field(name)
        if place is not None:
            before = changes.get(path, value_of(base, path))
            if not isinstance(before, tuple) or place >= len(before):
                raise ConfigError(
                    f"{source}: {name} has no such place, {path} is {before!r}. If that is a list that is too short, "
                    f"give all of it first, e.g. --fix {path}=[1,1]."
                )
            values = tuples.setdefault(path, list(before))
            values[place] = value
            value = tuple(values)
        *sections, last = path.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    return overlay(base, nested, source=source)


def value_of(cfg: Config, name: str) -> Any:
    """The value of a dotted field."""
    found: Any = cfg
    for part in name.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found


def _tuple_field(name: str) -> tuple[str, int | None]:
    path, _, last = name.rpartition(".")
    return (path, int(last)) if last.isdigit() else (name, None)


def _random(domain: Domain, source: random.Random) -> Any:
    if isinstance(domain, Choice):
        return source.choice(domain.values)
    if domain.integer:
        return source.randint(int(domain.low), int(domain.high))
    return source.uniform(domain.low, domain.high)


def parse_axis(text: str) -> tuple[str, Domain]:
    """`FIELD=LOW..HIGH[:log][:int]` or `FIELD=[a, b, c]`.

    Raises:
        ConfigError: neither.
    """
    name, separator, rest = text.partition("=")
    try:
        if separator and ".." in rest:
            bounds, *marks = rest.split(":")
            low, high = (float(bound) for bound in bounds.split(".."))
            if set(marks) <= {"log", "int"}:
                return name, Range(low, high, "log" in marks, "int" in marks)
        elif separator and isinstance(values := yaml.safe_load(rest), list) and values:
            return name, Choice(tuple(tuple(value) if isinstance(value, list) else value for value in values))
    except (ValueError, yaml.YAMLError) as error:
        if isinstance(error, ConfigError):
            raise
    raise ConfigError(
        f"--axis {text}: write FIELD=LOW..HIGH, with :log or :int after it if wanted, or FIELD=[a, b, c]."
    )


def parse_fixed(text: str) -> tuple[str, Any]:
    """`FIELD=VALUE`, the value as in YAML.

    Raises:
        ConfigError: no `=`, or no YAML.
    """
    name, separator, rest = text.partition("=")
    try:
        value = yaml.safe_load(rest)
    except yaml.YAMLError:
        separator = ""
    if not separator:
        raise ConfigError(f"--fix {text}: write FIELD=VALUE.")
    return name, tuple(value) if isinstance(value, list) else value

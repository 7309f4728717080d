"""What an earlier sweep found, told to the searcher of another: `--warm-start NAME`.

A point is learned from if its score is one that a point of the present space would have: the settings that either
sweep names are the same or lie on an axis. The earlier book is copied when the sweep begins: a rerun learns the same.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from ito_ray.tracking.run import resolve_store
from ito_ray.tracking.sweep import fetch_file
from tune.axes import Changes, Space, value_of
from tune.book import BASELINE, BOOK, Book, Trial
from tune.searchers import Searcher, parameters, same

FOLDER = "warm-start"
"""Of the copies, in the folder of the sweep."""
SAME = ("objective", "against", "config.train.steps", "config.data.heldout", "config.eval.max_samples")
"""Settings without which a score means something else."""
ZERO_SHOT = ("config.eval.zero_shot", "config.eval.classes")
UNFINISHED, IN_FLIGHT, OUTSIDE = "did not come to a score", "changed in flight", "lie outside this space"


@dataclass(frozen=True)
class Lesson:
    """What an earlier sweep teaches."""

    name: str
    points: tuple[tuple[Changes, Sequence[Trial]], ...]
    """Each with the values of all axes of the present space, and what became of it."""
    left_out: Mapping[str, int]
    """How many could not be learned from, by reason."""

    def __str__(self) -> str:
        return f"learned from {len(self.points)} of the {self.total} points of {self.name}{self.reasons}"

    @property
    def total(self) -> int:
        """Points of the earlier sweep."""
        return len(self.points) + sum(self.left_out.values())

    @property
    def reasons(self) -> str:
        """Why some are left out; "" if none is."""
        return "".join(f"; {count} {reason}" for reason, count in self.left_out.items())

    def teach(self, searcher: Searcher) -> None:
        """Tell the searcher all of it."""
        for changes, trials in self.points:
            searcher.tell(-1, changes, trials)


def lessons(
    names: Sequence[str], cfg: Config, space: Space, folder: Path, now: Book, settings: Mapping[str, Any]
) -> list[Lesson]:
    """What the earlier sweeps teach; each name counts once.

    Args:
        folder: the sweep's.
        now: its book; when it has begun before, the copies are read that it began with.
        settings: as it is about to begin or go on with.

    Raises:
        ConfigError: a sweep that cannot be learned from.
        TrackingError: one that MLflow does not hold.
    """
    found = []
    for name in dict.fromkeys(names):
        if name == folder.name:
            raise ConfigError(f"--warm-start {name} is this sweep itself: give the name of an earlier one.")
        copy = folder / FOLDER / f"{name.replace('/', '_')}.jsonl"
        if not (now.sessions and copy.is_file()):
            store = resolve_store(cfg.tracking.uri, cfg.output)
            _write(fetch_file(store, cfg.tracking.experiment, name, f"sweep/{BOOK}"), copy)
        found.append(lesson(name, Book(copy, read_only=True), settings, space, space.start(cfg)))
    return found


def _write(fetched: bytes, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    half = copy.with_suffix(".half")
    half.write_bytes(fetched)
    half.replace(copy)


def lesson(name: str, earlier: Book, settings: Mapping[str, Any], space: Space, start: Config) -> Lesson:
    """What one sweep teaches.

    Raises:
        ConfigError: nothing, or its scores mean something else.
    """
    _require_comparable(name, earlier.settings, settings)
    points: list[tuple[Changes, Sequence[Trial]]] = []
    left_out: Counter[str] = Counter()
    for trials in earlier.points("search").values():
        if any(trial.state not in ("finished", "stopped") or not trial.curve for trial in trials):
            left_out[UNFINISHED] += 1
        elif any(trial.turns for trial in trials):
            left_out[IN_FLIGHT] += 1
        elif (changes := _translated(trials[0], earlier.settings, space, start)) is None:
            left_out[OUTSIDE] += 1
        else:
            points.append((changes, trials))
    found = Lesson(name, tuple(points), left_out)
    if not points:
        raise ConfigError(
            f"--warm-start {name}: nothing can be learned from its {found.total} points{found.reasons}. Leave it out, "
            "or search the axes that it searched (--axis, --fix)."
        )
    return found


def _require_comparable(name: str, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    zero_shot = any(metric.startswith("zero_shot/") for metric in now["objective"])
    for what in (*SAME, *(ZERO_SHOT if zero_shot else ())):
        section, _, field = what.partition(".")
        label = field or f"--{what}"
        if section not in earlier or (field and field not in earlier[section]):
            raise ConfigError(
                f"--warm-start {name}: its book does not say its {label}, so nobody knows what its scores mean; it was "
                "written by another version or by a study. Leave it out."
            )
        old, new = (one[section][field] if field else one[section] for one in (earlier, now))
        if not same(old, new):
            raise ConfigError(
                f"--warm-start {name}: its {label} is {old!r}, here it is {new!r}, so its scores mean something else: "
                "leave it out, or give the same."
            )


def _translated(trial: Trial, earlier: Mapping[str, Any], space: Space, start: Config) -> Changes | None:
    """The values of the present axes in an earlier trial; None if it is no point of the present space."""
    fixed = {} if trial.job.point == BASELINE else _fixed(earlier)
    ran = {**fixed, **trial.job.changes}
    axes = [axis.field for axis in space.axes]

    def value(name: str) -> Any:
        """What the trial ran with; the present start's where its recipe has no such field or place."""
        return ran[name] if name in ran else _of_config(earlier["config"], name, lambda: _of_start(start, name))

    for name in {*ran, *space.fixed}:
        by_places = any(other.startswith(f"{name}.") for other in (*axes, *ran))
        if name not in axes and not by_places and not same(value(name), _of_start(start, name)):
            return None
    changes = {name: value(name) for name in axes}
    params = parameters(space, start, changes)
    set_by_condition = [axis for axis in space.axes if axis.otherwise is not None and axis.field not in (params or {})]
    if params is None or any(not same(changes[axis.field], axis.otherwise) for axis in set_by_condition):
        return None
    return changes


def _fixed(earlier: Mapping[str, Any]) -> Changes:
    """What the earlier space laid over its recipe; the book has it as texts."""
    return {name: _read(text) for name, text, note in earlier.get("space", ()) if note == "fixed"}


def _read(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a word


def _of_config(config: Mapping[str, Any], name: str, otherwise: Callable[[], Any]) -> Any:
    path, _, place = name.rpartition(".")
    if name in config:
        return config[name]
    listed = config.get(path) if place.isdigit() else None
    return listed[int(place)] if isinstance(listed, list) and int(place) < len(listed) else otherwise()


def _of_start(start: Config, name: str) -> Any:
    try:
        return value_of(start, name)
    except IndexError:  # a place of a list that the present recipe leaves empty
        return None

"""What happened in a sweep, line by line: the one truth that a sweep resumes from and that the report reads.

Only the sweep's driver writes it, one JSON object a line, on disk before anybody acts on it. A kill at any moment
leaves at most half a last line, which is cut off when the book is opened again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from filelock import FileLock, Timeout

from ito_ray import strict_json
from ito_ray.errors import ConfigError, DataError
from ito_ray.redact import redact_all, without_secrets
from tune.axes import Changes

State = Literal["open", "finished", "stopped", "failed", "crashed"]
"""open: runs, or goes on when the sweep does; stopped: by the sweep; failed: by its settings; crashed: by the rest."""
Phase = Literal["search", "confirm", "study"]
BOOK = "book.jsonl"
"""Name of the file, in the folder of the sweep."""
BASELINE = 0
"""The point that is the recipe as it is."""
TEST = "test"
"""Name of the note that holds the test scores."""


Schedule = tuple[tuple[int, Changes], ...]
"""(step, the settings from there on), by step."""


@dataclass(frozen=True)
class Turn:
    """A trial goes on from a checkpoint, another trial's or its own, with other settings."""

    step: int
    donor: str
    """Key of the trial whose checkpoint of that step it is."""
    changes: Changes


@dataclass(frozen=True)
class Job:
    """One point with one seed."""

    point: int
    seed: int
    phase: Phase
    changes: Changes
    schedule: Schedule = ()
    """What it changes later, from its own checkpoints: a confirmation repeats what a population found."""

    @property
    def key(self) -> str:
        """Names the trial, its folder and its MLflow run."""
        return f"p{self.point:03d}-s{self.seed}"


@dataclass
class Trial:
    """A job and what became of it."""

    job: Job
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """(step, values) of every evaluation."""
    verdicts: dict[int, str] = field(default_factory=dict)
    """By step; "" let it go on."""
    state: State = "open"
    reason: str = ""
    turns: list[Turn] = field(default_factory=list)
    due: bool = False
    """Whether it yielded its place after the last evaluation, and a turn is to be thought of when it goes on."""
    began: int = 0
    """Line of the book with which it was started."""
    ended: int = 0
    """Line with which it ended; 0 while it is open."""

    def changes(self, before: float = math.inf) -> Changes:
        """The settings that its checkpoint of step `before` was trained with at last; without it, the present ones."""
        turns = [turn for turn in self.turns if turn.step < before]
        return turns[-1].changes if turns else self.job.changes

    @property
    def course(self) -> Schedule:
        """Its settings over time; those that made its weights may be another's (`lineage`)."""
        return ((0, self.job.changes), *((turn.step, turn.changes) for turn in self.turns))

    def turn(self, step: int) -> Turn | None:
        """What changed after the evaluation at `step`."""
        return next((turn for turn in self.turns if turn.step == step), None)

    def values(self, step: int) -> dict[str, float] | None:
        """The values of the evaluation at `step`."""
        return next((values for when, values in self.curve if when == step), None)

    @property
    def steps(self) -> int:
        """Steps of the last evaluation."""
        return self.curve[-1][0] if self.curve else 0


@dataclass
class Spent:
    """What the sweep used, over all its sessions."""

    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    money: float = 0.0


class Book:
    """The events of one sweep. A context manager: one process at a time writes."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.trials: dict[str, Trial] = {}
        self.spent = Spent()
        self.settings: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}
        """What was found out once, by name, e.g. the decision and the test scores."""
        self.sessions = 0
        self._lines = 0
        self._lock = FileLock(path.with_suffix(".lock"))
        if read_only:
            for event in _events(path):
                self._apply(event)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(
                f"The sweep in {path.parent} is being driven by another process: wait for it or stop it."
            ) from error
        try:
            for event in _events(path):
                self._apply(event)
            _cut_half_line(path)
            self._file = path.open("a", encoding="utf-8")
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Book:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._lock.release()

    def open_session(self, settings: Mapping[str, Any], growing: Collection[str] = ()) -> None:
        """Begin, or go on with the same settings.

        Args:
            growing: names of dictionaries that may have more entries at their end than before.

        Raises:
            ConfigError: the sweep was started with others.
        """
        for name, value in settings.items() if self.settings else ():
            known, now = (without_secrets(one) for one in (self.settings.get(name), json.loads(json.dumps(value))))
            same = known == now
            if name in growing and known:
                same = [*known.items()] == [*now.items()][: len(known)]
            if not same:
                before = _short(known, value)
                raise ConfigError(
                    f"The sweep in {self.path.parent} was started with {name}={before}: "
                    "give the same again to resume it, or another --name for another sweep."
                )
        self._write({"event": "session", "settings": dict(settings)})

    def started(self, job: Job) -> Trial:
        """Note a new trial, before it runs."""
        self._write(
            {
                "event": "started",
                "trial": job.key,
                "point": job.point,
                "seed": job.seed,
                "phase": job.phase,
                "changes": job.changes,
                **({"schedule": job.schedule} if job.schedule else {}),
            }
        )
        return self.trials[job.key]

    def evaluated(
        self,
        key: str,
        step: int,
        values: Mapping[str, float],
        verdict: str,
        end: State = "open",
        *,
        turn: Turn | None = None,
        due: bool = False,
    ) -> None:
        """Note an evaluation with the word on it, and in the same line whether the trial ends or turns by it."""
        self._write(
            {
                "event": "evaluated",
                "trial": key,
                "step": step,
                "values": dict(values),
                "verdict": verdict,
                "state": end,
                **_turned(turn),
                **({"due": True} if due else {}),
            }
        )

    def thought(self, key: str, turn: Turn | None) -> None:
        """Note what was decided on a trial that had yielded its place, before it goes on."""
        self._write({"event": "thought", "trial": key, **_turned(turn)})

    def ended(self, key: str, state: State, reason: str) -> None:
        """Note how a trial ended otherwise."""
        self._write({"event": "ended", "trial": key, "state": state, "reason": reason})

    def spend(self, spent: Spent) -> None:
        """Note what the sweep has used so far."""
        self._write({"event": "spent", **vars(spent)})

    def note(self, name: str, value: Any) -> None:
        """Note something that is found out once."""
        self._write({"event": "note", "name": name, "value": value})

    def points(self, phase: Phase | None = None) -> dict[int, list[Trial]]:
        """The trials of each point."""
        found: dict[int, list[Trial]] = {}
        for trial in self.trials.values():
            if phase in (None, trial.job.phase):
                found.setdefault(trial.job.point, []).append(trial)
        return found

    def open_trials(self, phase: Phase) -> list[Trial]:
        """Those that have not ended."""
        return [one for one in self.trials.values() if one.state == "open" and one.job.phase == phase]

    def _write(self, event: dict[str, Any]) -> None:
        line = strict_json.dumps(redact_all(event), ensure_ascii=False)
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._apply(json.loads(line))  # what a later session would read

    def _apply(self, event: dict[str, Any]) -> None:
        self._lines += 1
        match event["event"]:
            case "session":
                self.sessions += 1
                self.settings = event["settings"]
            case "started":
                schedule = tuple((step, changes) for step, changes in event.get("schedule", ()))
                job = Job(event["point"], event["seed"], event["phase"], event["changes"], schedule)
                assert job.key not in self.trials, f"{job.key} was started before"
                self.trials[job.key] = Trial(job, began=self._lines)
            case "evaluated":
                trial = self.trials[event["trial"]]
                trial.curve.append((event["step"], strict_json.numbers(event["values"])))
                trial.verdicts[event["step"]] = event["verdict"]
                trial.state, trial.reason = event["state"], event["verdict"]
                trial.ended = self._lines if trial.state != "open" else 0
                trial.due = event.get("due", False)
                trial.turns += _turns(event, event["step"])
            case "thought":
                trial = self.trials[event["trial"]]
                trial.due = False
                trial.turns += _turns(event, trial.steps)
            case "ended":
                trial = self.trials[event["trial"]]
                trial.state, trial.reason, trial.ended = event["state"], event["reason"], self._lines
            case "spent":
                self.spent = Spent(**{name: value for name, value in event.items() if name != "event"})
            case "note":
                self.notes[event["name"]] = event["value"]


def _turned(turn: Turn | None) -> dict[str, Any]:
    return {"turn": {"donor": turn.donor, "changes": turn.changes}} if turn else {}


def _turns(event: dict[str, Any], step: int) -> list[Turn]:
    return [Turn(step, event["turn"]["donor"], event["turn"]["changes"])] if "turn" in event else []


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines.

    Raises:
        DataError: one in the middle is no JSON.
    """
    if not path.is_file():
        return
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}, is no JSON: the sweep cannot be resumed from it.") from error


def _cut_half_line(path: Path) -> None:
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _short(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        differing = [name for name in before if before[name] != json.loads(json.dumps(now)).get(name)][:3]
        before, now = ({name: one.get(name) for name in differing} for one in (before, now))
    return f"{before!r} instead of {now!r}"

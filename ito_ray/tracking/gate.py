"""The gate: may this candidate become champion? Numbers in, decision out; no registry, no model, no clock.

`promote.py` measures the evidence and carries out what is decided here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ito_ray.config.gate import Gate
from ito_ray.evaluation.compare import Gain, GroupChange
from ito_ray.evaluation.latency import Latency

ROUNDING = 1e-9
"""0.55 − 0.50 is a little more than 0.05."""
NAMED_GROUPS = 5
"""Of those that fall too far, how many a sentence names."""


@dataclass(frozen=True)
class Size:
    """Of a model folder."""

    bytes: int
    parameters: int


@dataclass(frozen=True)
class Evidence:
    """What was measured of a candidate, and of the champion beside it; None or empty where it was not."""

    problems: Sequence[str] = ()
    """Of integrity: contents, digest, parity in a fresh process. One sentence each."""
    has_champion: bool = True
    gains: Sequence[Gain] = ()
    groups: Sequence[GroupChange] | None = None
    """None: no zero-shot set."""
    latency: Mapping[str, Latency] = dataclasses.field(default_factory=dict)
    """By kind of input."""
    size: Size | None = None
    champion_size: Size | None = None


@dataclass(frozen=True)
class Criterion:
    """One line of the decision."""

    name: str
    passed: bool | None
    """None: does not apply."""
    measured: str
    required: str
    sentence: str = ""
    """Why it failed, or why it does not apply."""


@dataclass(frozen=True)
class Decision:
    """The criteria with their numbers."""

    criteria: tuple[Criterion, ...]

    @property
    def passed(self) -> bool:
        """Whether none failed."""
        return all(one.passed is not False for one in self.criteria)

    @property
    def refusals(self) -> tuple[str, ...]:
        """A sentence for each criterion that failed."""
        return tuple(one.sentence for one in self.criteria if one.passed is False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"passed": self.passed, "criteria": [dataclasses.asdict(one) for one in self.criteria]}


def judge(gate: Gate, evidence: Evidence) -> Decision:
    """Every criterion, each with its numbers. A folder that is not sound is judged by nothing else."""
    sound = _integrity(evidence.problems)
    if evidence.problems:
        return Decision((sound,))
    if not evidence.has_champion:
        reason = "There is no champion yet, so there is nothing to beat."
        return Decision((sound, Criterion("better than the champion", None, "–", "–", reason)))
    assert evidence.gains, "a candidate is compared with the champion on at least one metric"
    return Decision(
        (
            sound,
            *(_better(gate, one) for one in evidence.gains),
            _groups(gate, evidence.groups),
            *(_latency(gate, kind, one) for kind, one in evidence.latency.items()),
            _size(gate, evidence.size, evidence.champion_size),
        )
    )


def _integrity(problems: Sequence[str]) -> Criterion:
    found = "sound" if not problems else f"{len(problems)} problems"
    return Criterion(
        "contents, digest, parity", not problems, found, "two towers, no pickle, parity ≤ 1e-5", " ".join(problems)
    )


def _better(gate: Gate, one: Gain) -> Criterion:
    measured = (
        f"{one.candidate:.2%} against {one.champion:.2%}: {one.value:+.2%} ({one.low:+.2%} to {one.high:+.2%}), "
        f"{one.items:,} items"
    )
    required = f"all of the interval above {gate.min_gain:+.2%}"
    if one.items < gate.min_items:
        sentence = (
            f"{one.metric} was measured on {one.items} items, and fewer than gate.min_items={gate.min_items} decide "
            "nothing: give more data."
        )
        return Criterion(one.metric, False, measured, required, sentence)
    if one.low <= gate.min_gain:
        more = "more data makes the interval narrower" if one.value > gate.min_gain else "train a better candidate"
        sentence = (
            f"{one.metric} changes by {one.value:+.2%}, with 95 % certainty by {one.low:+.2%} to {one.high:+.2%}, "
            f"and that does not lie above {gate.min_gain:+.2%}: {more}."
        )
        return Criterion(one.metric, False, measured, required, sentence)
    return Criterion(one.metric, True, measured, required)


def _groups(gate: Gate, groups: Sequence[GroupChange] | None) -> Criterion:
    name, required = "groups of classes", f"none falls by more than {gate.max_group_fall:.1%}"
    if groups is None:
        return Criterion(name, None, "–", required, "Not measured: no zero-shot set was given.")
    worst = max(groups, key=lambda change: change.fall)
    measured = f"{len(groups)} groups, worst {worst.group}: {worst.champion:.1%} → {worst.candidate:.1%}"
    fallen = [change for change in groups if change.fall > gate.max_group_fall + ROUNDING]
    if not fallen:
        return Criterion(name, True, measured, required)
    listed = ", ".join(
        f"{one.group} {one.champion:.1%} → {one.candidate:.1%} of {one.images} images" for one in fallen[:NAMED_GROUPS]
    )
    rest = f" and {len(fallen) - NAMED_GROUPS} more" if len(fallen) > NAMED_GROUPS else ""
    sentence = (
        f"{len(fallen)} of {len(groups)} groups of classes lose more than gate.max_group_fall={gate.max_group_fall:g} "
        f"of top-1 accuracy: {listed}{rest}."
    )
    return Criterion(name, False, measured, required, sentence)


def _latency(gate: Gate, kind: str, one: Latency) -> Criterion:
    measured = f"{one.candidate_ms:.2f} ms against {one.champion_ms:.2f} ms, ratio {one.ratio:.2f}"
    if one.ratio <= gate.max_latency_ratio:
        return Criterion(f"latency, {kind}", True, measured, f"ratio ≤ {gate.max_latency_ratio:g}")
    sentence = (
        f"The time per {kind} is {one.ratio:.2f} times the champion's ({one.candidate_ms:.2f} ms against "
        f"{one.champion_ms:.2f} ms), and gate.max_latency_ratio={gate.max_latency_ratio:g} is allowed: measure on a "
        "quiet machine, or raise it if that is the price."
    )
    return Criterion(f"latency, {kind}", False, measured, f"ratio ≤ {gate.max_latency_ratio:g}", sentence)


def _size(gate: Gate, ours: Size | None, theirs: Size | None) -> Criterion:
    assert ours is not None
    assert theirs is not None
    ratio = ours.bytes / theirs.bytes
    measured = (
        f"{ours.bytes / 1e6:,.1f} MB against {theirs.bytes / 1e6:,.1f} MB, ratio {ratio:.2f}; "
        f"{ours.parameters / 1e6:.2f} M parameters against {theirs.parameters / 1e6:.2f} M"
    )
    required = f"ratio ≤ {gate.max_size_ratio:g}"
    if ratio <= gate.max_size_ratio:
        return Criterion("size", True, measured, required)
    sentence = (
        f"The folder is {ratio:.2f} times the champion's ({ours.bytes / 1e6:,.1f} MB against "
        f"{theirs.bytes / 1e6:,.1f} MB), and gate.max_size_ratio={gate.max_size_ratio:g} is allowed."
    )
    return Criterion("size", False, measured, required, sentence)

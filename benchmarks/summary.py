"""From measurements to ratios: medians of paired repeats, with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.variants import TITLES

REFERENCE = next(iter(TITLES))


@dataclass(frozen=True)
class Measured:
    """All of one variant."""

    cpu_seconds: tuple[float, ...]
    """CPU time of this process, one a repeat."""
    wall_seconds: tuple[float, ...]
    flops: int
    """Of forward and backward."""
    step_bytes: int
    """Activations and gradients at their peak."""
    whole_bytes: int
    """With weights and optimiser state."""


def ratios(own: Sequence[float], reference: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of the ratios repeat by repeat, so that a slow minute hits both sides of one."""
    each = [mine / theirs for mine, theirs in zip(own, reference, strict=True)]
    return statistics.median(each), min(each), max(each)


def summary(measured: Mapping[str, Measured], *, headline: str) -> dict[str, float | list[float]]:
    """The JSON fields of every variant but the reference: `…_ratio`, and `…_spread` [smallest, largest] of times.

    Args:
        measured: by variant; the first of `TITLES` is the reference.
        headline: `cpu` or `wall`: which clock gives `…_time_ratio`.
    """
    base = measured[REFERENCE]
    fields: dict[str, float | list[float]] = {}
    for name, own in measured.items():
        if name == REFERENCE:
            continue
        clocks = {
            "cpu_time": ratios(own.cpu_seconds, base.cpu_seconds),
            "wall_time": ratios(own.wall_seconds, base.wall_seconds),
        }
        for clock, (median, low, high) in {"time": clocks[f"{headline}_time"], **clocks}.items():
            fields[f"{name}_{clock}_ratio"] = median
            fields[f"{name}_{clock}_spread"] = [low, high]
        fields[f"{name}_flop_ratio"] = own.flops / base.flops
        fields[f"{name}_memory_ratio"] = own.step_bytes / base.step_bytes
        fields[f"{name}_whole_memory_ratio"] = own.whole_bytes / base.whole_bytes
    return fields

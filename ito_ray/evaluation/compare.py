"""Two encoders on the same samples: what one gains over the other, and which groups of classes pay for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ito_ray.config.gate import TOP1
from ito_ray.errors import ConfigError, DataError
from ito_ray.evaluation.intervals import paired_ci
from ito_ray.evaluation.report import CONFIDENCE, Report, Sample

UNGROUPED = "(in no group)"


@dataclass(frozen=True)
class Gain:
    """How much a share grew."""

    metric: str
    candidate: float
    champion: float
    low: float
    high: float
    """95 % interval of candidate − champion, both drawn together."""
    items: int
    """Queries, classified images or classes that were answered by both."""

    @property
    def value(self) -> float:
        """candidate − champion."""
        return self.candidate - self.champion


@dataclass(frozen=True)
class GroupChange:
    """Top-1 accuracy of both on the images of one group of classes."""

    group: str
    images: int
    candidate: float
    champion: float

    @property
    def fall(self) -> float:
        """champion − candidate: positive where the candidate is worse."""
        return self.champion - self.candidate


def gain(candidate: Report, champion: Report, metric: str) -> Gain:
    """Compare a share that both reports measured on the same samples.

    Raises:
        DataError: the samples were not the same.
    """
    ours, theirs = _both(candidate, champion, metric)
    low, high = paired_ci(ours.hits, theirs.hits, groups=ours.groups, confidence=CONFIDENCE)
    return Gain(metric, float(ours.hits.mean()), float(theirs.hits.mean()), low, high, len(ours.hits))


def group_changes(
    candidate: Report, champion: Report, groups: Mapping[str, Sequence[str]] | None, *, min_images: int
) -> tuple[GroupChange, ...]:
    """Zero-shot accuracy by group of classes, the largest fall first.

    Args:
        candidate, champion: of the same zero-shot set.
        groups: {group: class names}, from `read_groups`; None = every class is one.
        min_images: smaller groups are judged together, since one image more or less would move them far.

    Raises:
        DataError: the samples were not the same.
    """
    ours, theirs = _both(candidate, champion, TOP1)
    assert ours.groups is not None, "zero-shot samples are grouped by class"
    of_class = {name: name for name in candidate.classes} if groups is None else {}
    of_class |= {name: group for group, names in (groups or {}).items() for name in names}
    label_of = [of_class.get(name, UNGROUPED) for name in candidate.classes]
    group_N = np.array([label_of[label] for label in ours.groups.tolist()], dtype=object)
    names, images = np.unique(group_N, return_counts=True)
    small = set(names[images < min_images].tolist())
    if len(small) > 1:
        pooled = f"({len(small)} with fewer than {min_images} images, together)"
        group_N = np.array([pooled if name in small else name for name in group_N], dtype=object)
    changes = []
    for name in sorted(set(group_N.tolist())):
        inside = group_N == name
        shares = (float(sample.hits[inside].mean()) for sample in (ours, theirs))
        changes.append(GroupChange(name, int(inside.sum()), *shares))
    return tuple(sorted(changes, key=lambda change: -change.fall))


def read_groups(path: Path, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Groups of classes from a JSON file {"group": ["class", …], …}.

    Args:
        path: the file.
        classes: all class names; those that no group names are judged as one more group.

    Raises:
        ConfigError: no such file, another content, an unknown class, or a class in two groups.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"gate.groups={path} cannot be read as JSON ({error}).") from error
    lists = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise ConfigError(f'gate.groups={path} must be an object of lists of names: {{"animals": ["cat", "dog"], …}}.')
    seen: dict[str, str] = {}
    for group, names in content.items():
        for name in names:
            if name not in classes:
                raise ConfigError(
                    f"gate.groups={path} puts {name!r} into {group!r}, but the class file has no such class: it has "
                    f"{', '.join(map(repr, classes[:3]))}, …"
                )
            if name in seen:
                raise ConfigError(f"gate.groups={path} has {name!r} in {seen[name]!r} and in {group!r}: keep one.")
            seen[name] = group
    return {group: tuple(names) for group, names in content.items()}


def _both(candidate: Report, champion: Report, metric: str) -> tuple[Sample, Sample]:
    ours, theirs = candidate.sample(metric), champion.sample(metric)
    same_groups = (ours.groups is None) == (theirs.groups is None) and (
        ours.groups is None or theirs.groups is None or np.array_equal(ours.groups, theirs.groups)
    )
    if ours.hits.shape != theirs.hits.shape or not same_groups:
        raise DataError(
            f"{metric}: {candidate.encoder} was measured on {len(ours.hits)} samples, {champion.encoder} on other "
            f"{len(theirs.hits)}: the shards changed in between; compare again when they are complete."
        )
    return ours, theirs

"""What an evaluation found, with how sure it is and what guessing would give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ito_ray import strict_json
from ito_ray.evaluation.embed import PairEmbeddings
from ito_ray.evaluation.intervals import bootstrap_ci, paired_ci
from ito_ray.redact import redact_all

Unit = Literal["share", "rank", "distance", "count"]

CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Sample:
    """What a share is the mean of."""

    hits: NDArray[np.bool_] | NDArray[np.float64]
    """(n,) whether each query was answered, or a value in [0, 1]."""
    groups: NDArray[np.int64] | None = None
    """(n,) as in `bootstrap_ci`."""


@dataclass(frozen=True)
class Measure:
    """One number."""

    name: str
    """Flat metric name, e.g. `heldout/r1_text_to_image`."""
    label: str
    """For people."""
    value: float
    unit: Unit
    interval: tuple[float, float] | None = None
    """95 %."""
    chance: float | None = None
    """The same number for a random order."""
    sample: Sample | None = field(default=None, repr=False, compare=False)
    """Of a share: what two encoders are compared by."""
    detail: bool = False
    """Shown in its section only, not in the headline."""

    @classmethod
    def share(
        cls, name: str, label: str, sample: Sample, chance: float | None = None, *, detail: bool = False
    ) -> Measure:
        """The mean of a sample, with its interval."""
        interval = bootstrap_ci(sample.hits, groups=sample.groups, confidence=CONFIDENCE)
        return cls(name, label, float(sample.hits.mean()), "share", interval, chance, sample, detail)

    @property
    def times_chance(self) -> float | None:
        """How often better than guessing; for a rank, how often smaller."""
        if not self.chance:
            return None
        if self.unit == "rank":
            return self.chance / self.value
        return self.value / self.chance

    def cells(self) -> tuple[str, str, str, str, str]:
        """Label, value, interval, chance and times chance, formatted."""
        return (
            self.label,
            self._text(self.value),
            "–" if self.interval is None else f"{self._text(self.interval[0])} – {self._text(self.interval[1])}",
            "–" if self.chance is None else self._text(self.chance),
            "–" if self.times_chance is None else f"× {_times(self.times_chance)}",
        )

    def _text(self, value: float) -> str:
        if self.unit == "share":
            percent = 100 * value
            return f"{percent:.1f} %" if percent >= 0.1 or not percent else f"{percent:.2g} %"
        if self.unit == "distance":
            return f"{value:.3f}"
        return f"{value:,.1f}".removesuffix(".0")

    def difference(self, other: Measure) -> Difference | None:
        """This share less the other's on the same samples; None where they are not the same samples."""
        if self.sample is None or other.sample is None or len(self.sample.hits) != len(other.sample.hits):
            return None
        mine, theirs = self.sample.hits, other.sample.hits
        low, high = paired_ci(mine, theirs, groups=self.sample.groups, confidence=CONFIDENCE)
        return Difference(self.value - other.value, (low, high))


@dataclass(frozen=True)
class Difference:
    """How much better one encoder is than another on the same samples."""

    value: float
    interval: tuple[float, float]
    """95 %, of the differences sample by sample."""

    @property
    def sure(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.interval[0] > 0 or self.interval[1] < 0

    def text(self) -> str:
        """In points, e.g. `+3.1` and below it `+0.4 – +5.9`."""
        low, high = self.interval
        return f"{100 * self.value:+.1f}\n{100 * low:+.1f} – {100 * high:+.1f}"


@dataclass(frozen=True)
class Picture:
    """One picture of a section, drawn only if somebody wants to look."""

    stem: str
    """File name without its ending; also its place in the page."""
    alt: str
    """Says in words what it shows."""
    draw: Callable[[Path], object]
    """Writes a PNG to the path."""


@dataclass(frozen=True)
class Grid:
    """A table of a section: the first column names the rows."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Section:
    """What an evaluator has to show besides its numbers."""

    title: str
    note: str
    """How to read it."""
    pictures: tuple[Picture, ...] = ()
    grids: tuple[Grid, ...] = ()


@dataclass(frozen=True)
class Report:
    """All numbers of one evaluation."""

    encoder: str
    measures: tuple[Measure, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Samples that could not be used, by reason."""
    pairs: PairEmbeddings | None = None
    """The held-out pairs, for pictures."""
    classes: tuple[str, ...] = ()
    """Names of the classes of the zero-shot set."""
    sections: tuple[Section, ...] = ()
    """What the evaluators show, in their order."""

    def sample(self, name: str) -> Sample:
        """What the share `name` is the mean of; KeyError when there is none."""
        return {m.name: m.sample for m in self.measures if m.sample is not None}[name]

    def metrics(self) -> dict[str, float]:
        """Flat name to value, for a tracker."""
        return {measure.name: measure.value for measure in self.measures}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals, where there is one."""
        return {m.name: m.interval for m in self.measures if m.interval is not None}

    @property
    def headline(self) -> tuple[Measure, ...]:
        """What a table shows: everything but counts and details."""
        return tuple(measure for measure in self.measures if measure.unit != "count" and not measure.detail)

    @property
    def counts(self) -> tuple[Measure, ...]:
        """How much data stands behind the headline."""
        return tuple(measure for measure in self.measures if measure.unit == "count")

    def to_json(self) -> str:
        """Everything but the embeddings, as an indented JSON object."""
        document: dict[str, Any] = {
            "encoder": self.encoder,
            "confidence": CONFIDENCE,
            "metrics": self.metrics(),
            "intervals": self.intervals,
            "chance": {m.name: m.chance for m in self.measures if m.chance is not None},
            "dropped": dict(self.dropped),
        }
        return strict_json.dumps(redact_all(document), indent=2) + "\n"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"

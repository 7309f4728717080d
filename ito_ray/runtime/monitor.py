"""One small actor that everybody of a run tells what happened, and that the driver asks.

Data tasks report what they read and dropped, rank 0 its metrics, the controller which checkpoint it registered. The
driver drains it to draw progress and to log to MLflow, so no worker needs MLflow and no step waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train

from ito_ray.data.tally import Tally

JUDGE_AFTER_ROWS = 1000
"""Rows after which the share of bad ones is believed, if one pass is not shorter."""


@dataclass
class News:
    """What the driver is told when it asks."""

    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """(step, values) in order, of which the driver has not said yet that they are logged."""
    tally: Tally = field(default_factory=Tally)
    """Of the whole run since its start or resume, not only since the last call."""
    fatal: str = ""
    """Why the run must stop; for a user."""


@ray.remote(num_cpus=0, max_restarts=0)
class Monitor:
    """State of one launch. Reports of a data task are kept by entry, so a retried task does not count twice."""

    def __init__(self, entries_per_pass: int, max_bad_fraction: float) -> None:
        self._entries_per_pass = entries_per_pass
        self._max_bad_fraction = max_bad_fraction
        self._tallies: dict[int, Tally] = {}
        self._total = Tally()
        self._metrics: list[tuple[int, dict[str, float]]] = []
        self._checkpoint = ""
        self._fatal = ""

    def record(self, entry: int, tally: Tally) -> str:
        """Note what a data task read; answers with a sentence when the task must raise, else ""."""
        if entry not in self._tallies:
            self._tallies[entry] = tally
            self._total = self._total + tally
        self._fatal = self._fatal or self._judge()
        return self._fatal

    def _judge(self) -> str:
        total = self._total
        bad = sum(total.dropped.values())
        believed = total.read >= JUDGE_AFTER_ROWS or len(self._tallies) >= self._entries_per_pass
        if not believed or bad <= self._max_bad_fraction * total.read:
            return ""
        worst = sorted(total.dropped.items(), key=lambda item: -item[1])[:3]
        reasons = ", ".join(f"{reason} {count}" for reason, count in worst)
        examples = [example for reason, _ in worst for example in total.examples.get(reason, [])][:2]
        return (
            f"{bad} of {total.read} samples are bad ({bad / total.read:.1%}), more than data.max_bad_fraction="
            f"{self._max_bad_fraction:g} allows: {reasons}; for example {' and '.join(examples)}. Mend the shards or "
            "raise data.max_bad_fraction."
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Take rank 0's metrics."""
        self._metrics.append((step, metrics))

    def stop(self, reason: str) -> None:
        """Note why a worker is about to raise for a reason that a user can mend."""
        self._fatal = self._fatal or reason

    def committed(self, checkpoint: str) -> None:
        """Note the checkpoint that Ray Train would restart from."""
        self._checkpoint = checkpoint

    def checkpoint(self) -> str:
        """The path last given to `committed`, or ""."""
        return self._checkpoint

    def fatal(self) -> str:
        """Why the run must stop, or ""."""
        return self._fatal

    def drain(self, logged: int) -> News:
        """Forget the first `logged` metrics, which the driver has passed on, and hand out the others."""
        del self._metrics[:logged]
        return News(self._metrics, self._total, self._fatal)

    def unlogged(self) -> list[tuple[int, dict[str, float]]]:
        """Metrics that may not have been passed on yet; a checkpoint keeps them."""
        return self._metrics


MonitorHandle = Any
"""Handle of a `Monitor`; Ray's own type does not name the methods."""


class CommittedCallback(ray.train.UserCallback):
    """Tells the monitor which checkpoint a restart would load, so that the stream starts where the weights stand."""

    def __init__(self, monitor: MonitorHandle) -> None:
        self._monitor = monitor

    def after_report(self, run_context: object, metrics: object, checkpoint: ray.train.Checkpoint | None) -> None:
        if checkpoint is not None:
            ray.get(self._monitor.committed.remote(checkpoint.path))

"""Ray metrics of a run, as Prometheus scrapes them from the nodes and deploy/grafana.json draws them.

Recorded in one place, the run's monitor, from what it is told anyway: no worker or step pays for them. Ray exports a
gauge `ito_x` as `ray_ito_x` and a counter as `ray_ito_x_total`.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Metric

from ito_ray.data.tally import Tallies

GAUGES = {
    "train/samples_per_second": ("ito_samples_per_second", "Training samples a second over all ranks"),
    "train/data_wait_share": ("ito_data_wait_share", "Share of a step's time that rank 0 waits for data, 0 to 1"),
    "train/loss/total": ("ito_loss", "Loss, mean over ranks"),
    "train/workers": ("ito_workers", "Training workers"),
    "checkpoint/seconds": ("ito_checkpoint_seconds", "Seconds that training stood still for the last checkpoint"),
}
"""Metric that rank 0 reports → name and description of its gauge."""


class RunMetrics:
    """The gauges and counters of one run."""

    def __init__(self, run: str, sources: tuple[str, ...]) -> None:
        """Register them.

        Args:
            run: the value of their tag `run`.
            sources: names of the sources, for the tag `source` of rows.
        """
        tags = {"run": run}
        self._sources = sources
        self._gauges = {
            key: Gauge(name, about, tag_keys=("run",)).set_default_tags(tags) for key, (name, about) in GAUGES.items()
        }
        self._step = Gauge("ito_step", "Steps taken", tag_keys=("run",)).set_default_tags(tags)
        self._starts = Counter(
            "ito_worker_starts", "Starts of the training workers; every one after the first is a restart", ("run",)
        ).set_default_tags(tags)
        # No counters: what is read again, after a failure, may have fewer rows, or fewer bad ones.
        self._read = Gauge("ito_rows_read", "Rows read from shards", ("run", "source")).set_default_tags(tags)
        self._dropped = Gauge(
            "ito_rows_dropped", "Rows that could not be used", ("run", "source", "reason")
        ).set_default_tags(tags)
        self._counts: collections.Counter[tuple[str, ...]] = collections.Counter()

    @property
    def registered(self) -> tuple[Metric, ...]:
        """All of them."""
        return (*self._gauges.values(), self._step, self._starts, self._read, self._dropped)

    def reported(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note what rank 0 reported."""
        self._step.set(step)
        for key, gauge in self._gauges.items():
            if key in metrics:
                gauge.set(metrics[key])

    def rows(self, tallies: Tallies, before: Tallies | None = None) -> None:
        """Note what a data task read, and that it stands for what was noted `before`."""
        changes: collections.Counter[tuple[str, ...]] = collections.Counter()
        for sign, some in ((1, tallies), (-1, before or {})):
            for number, tally in some.items():
                changes[self._sources[number],] += sign * tally.read
                for reason, count in tally.dropped.items():
                    changes[self._sources[number], reason] += sign * count
        for tags, change in changes.items():
            if change:
                self._counts[tags] += change
                metric = self._read if len(tags) == 1 else self._dropped
                metric.set(self._counts[tags], dict(zip(("source", "reason"), tags, strict=False)))

    def started(self) -> None:
        """Note that training workers were started."""
        self._starts.inc()

"""One small actor that everybody of a run tells what happened, and that the driver asks.

Data tasks report what they read and dropped, rank 0 its metrics, the controller which checkpoint it registered. The
driver drains it to draw progress and to log to MLflow, so no worker needs MLflow and no step waits for it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from ito_ray.data.position import within
from ito_ray.data.tally import EntryReport, Tallies, Tally, added, to_json, without
from ito_ray.training.halt import Agreement, Halt

JUDGE_AFTER_ROWS = 1000
"""Rows after which the share of bad ones is believed, if one pass is not shorter."""


@dataclass
class News:
    """What the driver is told when it asks."""

    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """(step, values) in order, of which the driver has not said yet that they are logged."""
    tallies: Tallies = field(default_factory=dict)
    """Of the whole run, by source."""
    fatal: str = ""
    """Why the run must stop; for a user."""
    ends_soon: bool = False
    """The stream has few entries left, and the run needs more."""
    checkpoint: str = ""
    """The newest that is registered, or ""."""


@dataclass(frozen=True)
class Setup:
    """What a monitor starts from."""

    names: tuple[str, ...]
    """Of the sources."""
    entries_per_pass: int
    max_bad_fraction: float
    quarantine: str
    """Folder for the rows that are dropped."""
    complete: list[list[int]] = field(default_factory=list)
    """Intervals of the entries that the run had consumed before."""
    tallies: Tallies = field(default_factory=dict)
    """Account of these."""
    open: dict[int, Tallies] = field(default_factory=dict)
    """Account of each entry that the run had consumed in part."""
    run: str = ""
    """Name of the run, for its Ray metrics."""


@dataclass(frozen=True)
class Kept:
    """What a checkpoint keeps of the monitor's."""

    metrics: list[tuple[int, dict[str, float]]]
    """Those that may not have been passed on yet."""
    tallies: dict[str, Any]
    """Account of all entries that are complete, as JSON."""
    open: dict[str, dict[str, Any]]
    """The same of each entry that is open."""


@ray.remote(num_cpus=0, max_restarts=0)
class Monitor:
    """State of one launch. The newest report of each entry counts: a retried task does not count twice, and an entry
    that is read again may give other rows than before.

    Entries that a committed checkpoint holds complete are not read again. They are folded into one account: memory does
    not grow with the run.
    """

    def __init__(self, setup: Setup) -> None:
        from ito_ray.data.quarantine import Quarantine  # pyarrow: not for everyone who unpickles this module
        from ito_ray.runtime.metrics import RunMetrics

        self._setup = setup
        self._complete = setup.complete
        self._folded = setup.tallies
        self._tallies = dict(setup.open)
        self._total = functools.reduce(added, setup.open.values(), setup.tallies)
        self._streams = 0
        self._stream_of: dict[int, int] = {}
        self._candidates: dict[str, list[list[int]]] = {}
        self._quarantine = Quarantine(Path(setup.quarantine), setup.names)
        self._metrics: list[tuple[int, dict[str, float]]] = []
        self._ray_metrics = RunMetrics(setup.run, setup.names)
        self._ray_metrics.rows(self._total)
        self._checkpoint = ""
        self._fatal = ""
        self._goes_on: dict[int, bool] = {}
        self._judged = True
        self._agreement = Agreement()
        self._newest = -1
        self._last_but_few: int | None = None

    def record(self, entry: int, report: EntryReport, stream: int = 0) -> str:
        """Note what a data task of a stream read; answers with a sentence when the task must raise, else "".

        A task that outlives its stream says nothing about what the next one delivered.
        """
        self._newest = max(self._newest, entry)
        if not within(self._complete, entry) and stream >= self._stream_of.get(entry, 0):
            self._stream_of[entry] = stream
            self._replace(entry, report)
        self._fatal = self._fatal or self._judge()
        return self._fatal

    def _replace(self, entry: int, report: EntryReport) -> None:
        before = self._tallies.get(entry, {})
        self._tallies[entry] = report.tallies
        self._total = added(without(self._total, before), report.tallies)
        # Of an open entry there may be rows on disk from a reading after the checkpoint that this launch goes on from.
        again = entry in self._setup.open or any(tally.dropped for tally in before.values())
        self._quarantine.add(entry, report.lost, again=again)
        self._ray_metrics.rows(report.tallies, before)

    def ends_soon_after(self, entry: int) -> None:
        """Note that the stream which is about to start has few entries after that one."""
        self._last_but_few = entry

    def _judge(self) -> str:
        total = sum(self._total.values(), Tally())
        bad = sum(total.dropped.values())
        entries = len(self._tallies) + sum(past - first for first, past in self._complete)
        believed = total.read >= JUDGE_AFTER_ROWS or entries >= self._setup.entries_per_pass
        if not believed or bad <= self._setup.max_bad_fraction * total.read:
            return ""
        worst = sorted(total.dropped.items(), key=lambda item: -item[1])[:3]
        reasons = ", ".join(f"{reason} {count}" for reason, count in worst)
        examples = [example for reason, _ in worst for example in total.examples.get(reason, [])][:2]
        return (
            f"{bad} of {total.read} samples are bad ({bad / total.read:.1%}), more than data.max_bad_fraction="
            f"{self._setup.max_bad_fraction:g} allows: {reasons}; for example {' and '.join(examples)}. Mend the "
            "shards or raise data.max_bad_fraction."
        )

    def settle(self, checkpoint: str, complete: list[list[int]], open_entries: Sequence[int]) -> Kept:
        """What the checkpoint of that name keeps, in which these entries are complete and those are open."""
        self._quarantine.flush()
        self._candidates[checkpoint] = complete
        known = [entry for entry in open_entries if entry in self._tallies]
        return Kept(
            self._metrics,
            to_json(self._of(complete)),
            {str(entry): to_json(self._tallies[entry]) for entry in known},
        )

    def _of(self, complete: list[list[int]]) -> Tallies:
        reports = (tallies for entry, tallies in self._tallies.items() if within(complete, entry))
        return functools.reduce(added, reports, self._folded)

    def ahead(self, complete: list[list[int]]) -> int:
        """Samples made in the recorded entries that are not among these."""
        left = (tallies for entry, tallies in self._tallies.items() if not within(complete, entry))
        return sum(tally.delivered for tallies in left for tally in tallies.values())

    def flush(self) -> None:
        """Bring all dropped rows to disk."""
        self._quarantine.flush()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Take rank 0's metrics."""
        self._metrics.append((step, metrics))
        self._ray_metrics.reported(step, metrics)

    def started(self) -> None:
        """Count a start of the training workers."""
        self._ray_metrics.started()
        self._agreement.restarted()

    def halt(self, how: Halt) -> bool:
        """Have all ranks leave a checkpoint after the same step; whether they are taking steps."""
        return self._agreement.order(how)

    def halted(self, step: int) -> Halt:
        """What a rank does soon after `step`."""
        return self._agreement.word(step)

    def stop(self, reason: str) -> None:
        """Note why a worker is about to raise for a reason that a user can mend."""
        self._fatal = self._fatal or reason

    def decide(self, step: int | None, goes_on: bool) -> None:
        """Note the judge's word on the evaluation at `step`; None: there is no judge any more, training ends."""
        if step is None:
            self._judged = False
        else:
            self._goes_on[step] = goes_on

    def goes_on(self, step: int) -> bool | None:
        """Whether training goes on after the evaluation at `step`; None while the judge has not spoken."""
        return self._goes_on.get(step, None if self._judged else False)

    def committed(self, checkpoint: str) -> None:
        """Note the checkpoint that Ray Train would restart from."""
        self._checkpoint = checkpoint
        complete = self._candidates.pop(Path(checkpoint).name, None)
        if complete is not None:
            self._folded = self._of(complete)
            self._complete = complete
            self._tallies = {entry: one for entry, one in self._tallies.items() if not within(complete, entry)}
            self._stream_of = {entry: one for entry, one in self._stream_of.items() if entry in self._tallies}

    def checkpoint(self) -> str:
        """The path last given to `committed`, or ""."""
        return self._checkpoint

    def stream(self) -> tuple[str, int]:
        """The checkpoint that a stream which is about to start goes on from, and the stream's number."""
        self._streams += 1
        return self._checkpoint, self._streams

    def fatal(self) -> str:
        """Why the run must stop, or ""."""
        return self._fatal

    def drain(self, logged: int) -> News:
        """Forget the first `logged` metrics, which the driver has passed on, and hand out the others."""
        del self._metrics[:logged]
        ends_soon = self._last_but_few is not None and self._newest >= self._last_but_few
        return News(self._metrics, self._total, self._fatal, ends_soon, self._checkpoint)


MonitorHandle = Any
"""Handle of a `Monitor`; Ray's own type does not name the methods."""

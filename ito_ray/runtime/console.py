"""What a person sees: stage headings, one live line while training, plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from ito_ray.data.tally import Account, said
from ito_ray.runtime.nodes import Finding

PLAIN_LINE_EVERY_SECONDS = 10.0
_COLUMNS = ("read", "delivered", "pending", "share of training", "dropped")


@dataclass
class Stages:
    """Numbered headings with the seconds that each stage took."""

    console: Console
    total: int
    number: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Print the heading; afterwards note how long it took under `title`."""
        self.number += 1
        self.console.print(Text(f"▸ {self.number}/{self.total} {title}", "bold"))
        started = time.perf_counter()
        yield
        self.seconds[title] = time.perf_counter() - started

    def say(self, text: str) -> None:
        """A line of what the stage found."""
        self.console.print(Text(f"    {text}"))

    def warn(self, text: str) -> None:
        """A line that must not be missed."""
        self.console.print(Text(f"    warning: {text}", "bold yellow"))

    def findings(self, findings: Sequence[Finding]) -> None:
        """What preflight found on the cluster, with advice where something will hurt."""
        table = Table("cluster", "found", "advice", box=None, pad_edge=False)
        for one in findings:
            table.add_row(one.what, Text(one.found), Text(one.advice, "yellow"))
        if findings:
            self.console.print(Padding(table, (0, 0, 0, 4)))

    def table(self, accounts: Mapping[str, Account]) -> None:
        """What became of every row, by source."""
        table = Table("source", *(Column(name, justify="right") for name in _COLUMNS), box=None, pad_edge=False)
        for name, one in accounts.items():
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(one.dropped.items())) or "none"
            if one.notes:
                reasons += f"; noted: {said(one.notes)}"
            numbers = (f"{one.read:,}", f"{one.delivered:,}", f"{one.pending:,}", f"{one.fraction:.1%}")
            table.add_row(Text(name), *numbers, Text(reasons))
        self.console.print(Padding(table, (0, 0, 0, 4)))


@dataclass
class TrainingLine:
    """Step, loss, samples/s and time left: live on a terminal, else a line every ten seconds."""

    console: Console
    steps: int
    first_step: int = 0

    def __post_init__(self) -> None:
        self._progress = Progress(
            TextColumn("    step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            transient=False,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("", total=self.steps, completed=self.first_step, text="starting workers …")
        self._started = 0.0
        self._printed = time.monotonic()
        self._text = ""
        self._workers = 0

    def __enter__(self) -> TrainingLine:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show the newest metrics; those of evaluations, and another number of workers, have a line of their own."""
        workers = int(metrics.get("train/workers", self._workers))
        if workers != self._workers:
            if self._workers:
                self.console.print(f"    step {step}: {self._workers} → {workers} workers", highlight=False)
            self._workers = workers
        if "train/loss/total" not in metrics:
            shown = ", ".join(
                f"{name.removeprefix('eval/')} {metrics[name]:.3f}" for name in _HEADLINE if name in metrics
            )
            if shown:
                self.console.print(f"    step {step}: {shown}", highlight=False)
            return
        wait = metrics["train/data_wait_share"]
        self._text = (
            f"loss {metrics['train/loss/total']:.3f} · {metrics['train/samples_per_second']:.0f} samples/s · "
            f"{wait:.0%} waiting for data"
        )
        self._progress.update(self._task, completed=step, text=self._text)
        if not self.console.is_terminal:
            self._print_plainly(step)

    def _print_plainly(self, step: int) -> None:
        now = time.monotonic()
        if not self._started:
            self._started, self.first_step = now, step
        if now - self._printed < PLAIN_LINE_EVERY_SECONDS and step < self.steps:
            return
        self._printed = now
        taken = step - self.first_step
        left = (now - self._started) / taken * (self.steps - step) if taken else 0.0
        ahead = f" · {timedelta(seconds=round(left))} left" if left else ""
        self.console.print(f"    step {step}/{self.steps} · {self._text}{ahead}", highlight=False)


@contextmanager
def progress_line(console: Console, title: str) -> Iterator[Callable[[float, str], None]]:
    """A bar with the time left, on a terminal; call what it gives with the share done (0…1) and a text."""
    with Progress(
        TextColumn("    {task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(title, total=1.0, text="")

        def update(share: float, text: str) -> None:
            progress.update(task, completed=min(share, 1.0), text=text)

        yield update


_HEADLINE = (
    "eval/heldout/r1_image_to_text",
    "eval/heldout/r1_text_to_image",
    "eval/zero_shot/top1",
    "eval/zero_shot/top5",
)

"""Prepare shards in parallel: Ray Data tasks inspect the pieces of a source, then others write the planned shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import ray.data
from rich.console import Console

from ito_ray.data.prepare.job import Job, alone, open_job
from ito_ray.data.prepare.options import Output
from ito_ray.runtime.cluster import connect, user_mistake
from ito_ray.runtime.console import progress_line
from ito_ray.runtime.stream import Rest

MOST_TASKS = 2000
"""Ray Data plans every task before the first begins; beyond this many, a task takes several pieces or shards."""


@dataclass(frozen=True)
class _Step:
    """What a task does with the numbers that it is given."""

    job: Job
    numbers: tuple[int, ...]
    what: Literal["inspect", "write"]

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        do = self.job.inspect if self.what == "inspect" else self.job.write
        for index in batch["id"].tolist():
            yield {"samples": np.array([do(self.numbers[index])])}


def prepare(options: Output, console: Console) -> tuple[dict[str, Any], bool]:
    """Make the shards, or go on with what a killed run has left; the manifest, and False if it was there already.

    On a cluster `options.out` and local sources must be on disks that all nodes share.

    Raises:
        ItoError: anything that a user can mend.
    """
    out = options.out.absolute()
    with alone(out):
        job = open_job(options)
        if not isinstance(job, Job):
            return job, False
        connect(verbose=options.verbose)
        _run(job, job.pieces_to_inspect(), "inspect", total=job.source.pieces, console=console)
        if not job.is_planned:
            job.plan()
        _run(job, job.shards_to_write(), "write", total=len(job.shards()), console=console)
        return job.finish(), True


def _run(job: Job, numbers: Sequence[int], what: Literal["inspect", "write"], *, total: int, console: Console) -> None:
    if not numbers:
        return
    context = ray.data.DataContext.get_current()
    context.custom_execution_callback_classes = [cast(Any, Rest)]
    tasks = min(len(numbers), MOST_TASKS)
    step = cast(Callable[..., Any], _Step(job, tuple(numbers), what).__call__)
    results = ray.data.range(len(numbers), override_num_blocks=tasks).map_batches(step, batch_size=None)
    title = {"inspect": "Inspect inputs", "write": "Write shards"}[what]
    done, samples = total - len(numbers), 0
    if done:
        console.print(f"    {title}: {done} of {total} were done before")
    with progress_line(console, title) as update:
        try:
            for batch in cast(Any, results).iter_batches(batch_size=None, batch_format="numpy"):
                done, samples = done + len(batch["samples"]), samples + int(batch["samples"].sum())
                update(done / total, f"{done:,} of {total:,}, {samples:,} samples")
        except Exception as error:
            known = user_mistake(error)
            if known is None:
                raise
            raise known from None
    if not console.is_terminal:
        console.print(f"    {title}: {done}/{total}, {samples:,} samples")

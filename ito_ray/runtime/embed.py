"""Embed a data set in parallel: a pool of Ray actors, each with the encoder loaded once, takes unit after unit."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import ray
import ray.data
import torch
from rich.console import Console

from ito_ray.embeddings.job import Job
from ito_ray.embeddings.model import on_this_machine, read_files
from ito_ray.errors import ClusterError
from ito_ray.evaluation.encoder import FolderEncoder
from ito_ray.runtime.cluster import connect, user_mistake
from ito_ray.runtime.console import PLAIN_LINE_EVERY_SECONDS, progress_line
from ito_ray.runtime.prepare import MOST_TASKS
from ito_ray.runtime.stream import Rest

_TITLE = "Embed"


@dataclass(frozen=True)
class Pool:
    """How many actors with what; None is decided by the cluster."""

    actors: tuple[int, int] | None = None
    """Least and most; they are started and stopped as there is work. None: 1 up to what the cluster has room for."""
    cpus: int | None = None
    """Of one actor: threads that decode pictures and, without a GPU, encode. None: 1, or the GPU's share of them."""
    gpus: float | None = None
    """Of one actor. None: 1 where the cluster has GPUs, else 0."""


@dataclass(frozen=True)
class Speed:
    """Of this run alone."""

    rows: int
    seconds: float
    """From the first unit's beginning to the end of the last."""
    start: float
    """Seconds before that: actors start and load the encoder."""

    @property
    def rows_per_second(self) -> float:
        """Rows read, embedded or not."""
        return self.rows / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class _Share:
    """What an actor gets; `Pool` with nothing left open."""

    least: int
    most: int
    cpus: int
    gpus: float


@dataclass
class _Progress:
    """Rows and units, and what they promise for the rest."""

    console: Console
    total: int
    done: int
    rows: int = 0
    first: float | None = None
    _began: float = field(default_factory=time.time)
    _printed: float = field(default_factory=time.monotonic)

    @property
    def speed(self) -> Speed:
        """So far."""
        now = time.time()
        first = now if self.first is None else min(max(self.first, self._began), now)  # another node's clock
        return Speed(self.rows, now - first, first - self._began)

    def add(self, rows: np.ndarray, started: np.ndarray) -> None:
        """Note finished units."""
        self.done += len(rows)
        self.rows += int(rows.sum())
        self.first = min(float(started.min()), self.first or np.inf)

    def text(self) -> str:
        """For the line that is shown."""
        return f"{self.done:,} of {self.total:,} units, {self.rows:,} rows, {self.speed.rows_per_second:,.0f} rows/s"

    def print_plainly(self, at_start: int) -> None:
        """A line every ten seconds where there is no terminal."""
        if self.console.is_terminal or time.monotonic() - self._printed < PLAIN_LINE_EVERY_SECONDS:
            return
        self._printed = time.monotonic()
        left = self.speed.seconds / max(1, self.done - at_start) * (self.total - self.done)
        self.console.print(f"    {_TITLE}: {self.text()}, {left:,.0f} s left", highlight=False)


class _Embedder:
    """The actor."""

    def __init__(self, job: Job, files: Any, share: _Share, batch: int) -> None:
        torch.set_num_threads(share.cpus)
        device = "cuda" if share.gpus else "cpu"
        with on_this_machine(job.model, None if files is None else ray.get(files[0])) as folder:
            self._encoder = FolderEncoder(folder, batch=batch, device=device, name=job.model.address)
        self._job, self._batch = job, batch
        self._pool = ThreadPoolExecutor(share.cpus, thread_name_prefix="decode")

    def __call__(self, units: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for unit in units["unit"].tolist():
            record = self._job.embed(unit, self._encoder, batch=self._batch, pool=self._pool)
            yield {"read": np.array([record["read"]]), "started": np.array([record["started"]])}


def embed(job: Job, pool: Pool, console: Console, *, batch: int, verbose: bool) -> tuple[dict[str, Any], Speed]:
    """Embed every unit that is not done yet; the manifest, and how fast this run was.

    On a cluster `job.out` and local inputs must be on disks that all nodes share; the encoder need not be.

    Args:
        batch: rows that an actor encodes at a time.

    Raises:
        ClusterError: the cluster has no room for one actor.
        DataError: nothing was embedded.
    """
    units = job.units_to_embed()
    progress = _Progress(console, total=job.inputs.units, done=job.inputs.units - len(units))
    before = progress.done
    if before:
        rows = job.done_before()["read"]
        console.print(f"    {_TITLE}: {before:,} of {progress.total:,} units ({rows:,} rows) were done before")
    if units:
        if not verbose:  # Ray 2.60 prints an error for each actor that it could restart (its issue 53727)
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        connect(verbose=verbose)
        share = _share(pool, ray.cluster_resources(), len(units))
        with progress_line(console, _TITLE) as update:
            for found in _run(job, units, share, batch):
                progress.add(found["read"], found["started"])
                update(progress.done / progress.total, progress.text())
                progress.print_plainly(before)
    return job.finish(), progress.speed


def _run(job: Job, units: list[int], share: _Share, batch: int) -> Iterator[Mapping[str, np.ndarray]]:
    ray.data.DataContext.get_current().custom_execution_callback_classes = [cast(Any, Rest)]
    shared = len({node["NodeID"] for node in ray.nodes() if node["Alive"]}) == 1
    files = None if shared else [ray.put(read_files(job.model.folder))]  # in a list: Ray would pass the content itself
    results = ray.data.from_items(
        [{"unit": unit} for unit in units], override_num_blocks=min(len(units), MOST_TASKS)
    ).map_batches(
        cast(Callable[..., Any], _Embedder),
        fn_constructor_args=(job, files, share, batch),
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(min_size=share.least, max_size=share.most),
        num_cpus=share.cpus,
        num_gpus=share.gpus,
    )
    try:
        yield from cast(Any, results).iter_batches(batch_size=None, batch_format="numpy")
    except Exception as error:
        known = user_mistake(error)
        if known is None:
            raise
        raise known from None


def _share(pool: Pool, resources: Mapping[str, float], units: int) -> _Share:
    """What each actor gets.

    Raises:
        ClusterError: no room for one, or for the least number asked for.
    """
    has_cpus, has_gpus = int(resources.get("CPU", 0)), resources.get("GPU", 0.0)
    gpus = pool.gpus if pool.gpus is not None else float(has_gpus > 0)
    cpus = pool.cpus or (max(1, int(has_cpus * gpus / has_gpus)) if gpus and has_gpus else 1)
    room = min(has_cpus // cpus, int(has_gpus / gpus) if gpus else has_cpus)
    least, most = pool.actors or (1, max(1, room))
    if room < least:
        raise ClusterError(
            f"{least} actors of {cpus} CPUs and {gpus:g} GPUs each do not fit the cluster, which has {has_cpus} CPUs "
            f"and {has_gpus:g} GPUs: lower --actors, --cpus-per-actor or --gpus-per-actor."
        )
    return _Share(least, max(least, min(most, units)), cpus, gpus)


def as_counts(manifest: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Lines of the account: embedded, dropped by reason; they sum up to what was read."""
    dropped: Counter[str] = Counter(manifest["dropped"])
    return [("embedded", manifest["embedded"]), *((f"dropped: {reason}", n) for reason, n in dropped.most_common())]

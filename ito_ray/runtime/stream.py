"""The stream: numbers of plan entries → Ray Data tasks → uint8 samples → equal batches on every rank.

Each entry of the endless shard plan is one task that reads, drops, decodes, augments and tokenises; the fused task is
what makes it fast, and one task making one block in plan order is what makes it the same for the same seed. Nothing
here has an end: ranks take a fixed number of steps, so none can finish before another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from ito_ray.config.schema import Config
from ito_ray.data.mixer import mixed_batches
from ito_ray.data.plan import ShardPlan
from ito_ray.data.position import Position, rows_known, within
from ito_ray.data.shards import public_url
from ito_ray.data.tally import EntryReport
from ito_ray.errors import DataError, ItoError
from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.runtime.leave import leave_at_once
from ito_ray.runtime.monitor import MonitorHandle
from ito_ray.runtime.uninterrupted import uninterrupted
from ito_ray.training.manifest import damage
from ito_ray.training.state import read_state

Arrays = dict[str, np.ndarray]
MONITOR_LOST = "the actor that keeps the run's accounts was lost"
ENTRIES_AT_ONCE = 50_000
"""Entries of one stream: before it starts, Ray Data makes an object for each (docs/log.md). A run of more goes on with
a new stream from a checkpoint that it leaves in time."""


class EntryError(Exception):
    """A data task failed, and not by a sample, which would be counted; says by what and in which shards."""


@dataclass(frozen=True)
class EntryReader:
    """What a data task does with its entry number. Plain and picklable; state is cached by process."""

    plan: ShardPlan
    cfg: Config
    tokenizer: TokenizerFiles
    monitor: MonitorHandle
    taken: dict[int, frozenset[int]]
    """Places of unfinished entries that a resumed run has consumed."""
    stream: int = 0
    """Number that the monitor gave the stream."""

    def __call__(self, numbers: Any) -> Arrays:
        """One entry's samples; `numbers` is {"id": int64 (1,)}."""
        (entry,) = numbers["id"].tolist()
        try:
            block, report = self.make(entry)
        except ItoError:
            raise
        except Exception as error:
            raise EntryError(f"{type(error).__name__}: {error}, in {self._shards(entry)}") from error
        if reason := ray.get(self.monitor.record.remote(entry, report, self.stream)):
            raise DataError(reason)
        total = len(block["uid"]) + len(self.taken.get(entry, ()))
        return {**block, "entry_rows": np.full(len(block["uid"]), total, np.int32)}

    def _shards(self, entry: int) -> str:
        """What the entry is read of, for a message."""
        with suppress(Exception):
            return f"entry {entry}: {', '.join(dict.fromkeys(public_url(one.url) for one in self.plan.entry(entry)))}"
        return f"entry {entry}"

    def make(self, entry: int) -> tuple[Arrays, EntryReport]:
        """Samples and account of one entry: all the work of a task, without Ray."""
        # Decoder and tokenizer take seconds to import, and only data tasks need them; every process of Ray Data and
        # Ray Train that passes this object on imports this module.
        with uninterrupted():
            from ito_ray.data.rows import read_patiently
            from ito_ray.data.samples import SampleSpec, make_block

        data, taken = self.cfg.data, self.taken.get(entry, frozenset())
        known = rows_known(taken)
        pieces = [
            (piece, read_patiently(piece, data.columns, known=known.get(slot, 0)))
            for slot, piece in enumerate(self.plan.entry(entry))
        ]
        spec = SampleSpec(
            views=data.views,
            captions=data.captions,
            size=self.cfg.model.image.size,
            max_pixels=data.max_pixels,
            tokenizer=self.tokenizer.load(),
            context=self.cfg.model.text.context,
            templates=data.templates,
        )
        return make_block(pieces, spec, seed=self.plan.seed, entry=entry, skip=taken)


class Rest:
    """Execution callback in the split coordinator: Ray Data's scheduler rests a moment after each of its steps.

    With all blocks made that the trainer has room for, no task runs that the scheduler could wait for, and Ray 2.60
    then polls without a pause: half a core, taken from training (docs/log.md).
    """

    SECONDS = 0.01

    def before_execution_starts(self, executor: object) -> None:
        """Called in the process that schedules."""
        leave_at_once()

    def on_execution_step(self, executor: object) -> None:
        """Called at the end of every step of the scheduler."""
        time.sleep(self.SECONDS)

    def after_execution_succeeds(self, executor: object) -> None:
        """Nothing to clean up."""

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        """Nothing to clean up."""


class StartAnew(Exception):
    """Raised where Ray Train's controller starts the workers: it could only fail again, so the driver must begin anew.

    Ray Train gives up at once on this, and not on errors of Ray, which it would meet with starts without end.
    """


@dataclass(frozen=True)
class StreamFactory:
    """Called by Ray Train's controller at every start of the workers: goes on where the checkpoint stands."""

    plan: ShardPlan
    cfg: Config
    tokenizer: TokenizerFiles
    monitor: MonitorHandle
    entries: int
    """Enough for the whole run."""
    at_once: int
    """At most so many in one stream."""

    def __call__(self) -> ray.data.Dataset:
        """The stream from the position of the newest registered checkpoint on.

        Raises:
            StartAnew: the monitor is lost, or the checkpoint, which the controller hands to the workers, is damaged.
        """
        leave_at_once()
        try:
            newest, number = ray.get(self.monitor.stream.remote())
        except ray.exceptions.RayActorError as error:
            raise StartAnew(MONITOR_LOST) from error
        if newest and (wrong := damage(Path(newest))):
            raise StartAnew(f"checkpoint {Path(newest).name} is damaged: {wrong}")
        position = Position.from_json(read_state(Path(newest)).position) if newest else Position()
        taken = {entry: frozenset(rows) for entry, (_, rows) in position.open.items()}
        ray.data.DataContext.get_current().custom_execution_callback_classes = [cast(Any, Rest)]
        reader = EntryReader(self.plan, self.cfg, self.tokenizer, self.monitor, taken, number)
        entries = next_entries(position, min(self.entries, self.at_once))
        if len(entries) < self.entries:  # what is left after that entry lasts until the checkpoint
            self.monitor.ends_soon_after.remote(entries[len(entries) * 9 // 10])
        return open_stream(reader, entries)


def entries_needed(cfg: Config, rows_per_entry: float) -> int:
    """How many entries surely hold what the run consumes; those beyond are never read.

    Args:
        rows_per_entry: estimated from the shards' sizes; may be off by half.
    """
    samples = cfg.train.steps * cfg.train.global_batch
    held_back = cfg.train.workers.most * (cfg.data.shuffle_buffer + 4 * cfg.data.rows_per_task)
    delivered = max(1.0, rows_per_entry * (1 - cfg.data.max_bad_fraction) / 2)
    return int((samples + held_back) / delivered) + 16


def open_stream(reader: EntryReader, entries: Sequence[int]) -> ray.data.Dataset:
    """A lazy dataset of these entries, in their order."""
    numbers: ray.data.Dataset = ray.data.read_datasource(Entries(entries), override_num_blocks=len(entries))
    return numbers.map_batches(cast(Any, reader.__call__), batch_size=None)


class Entries(Datasource):
    """Numbers of entries, one for each task.

    `ray.data.range` would do as well, but with each of its tasks it pickles three closures, which takes 1.5 ms
    (docs/log.md).
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._numbers = numbers

    def estimate_inmemory_data_size(self) -> int:
        """Bytes."""
        return 8 * len(self._numbers)

    def get_read_tasks(self, *arguments: Any, **named: Any) -> list[ReadTask]:
        """However many Ray asks for: one for each entry."""
        known = BlockMetadata(num_rows=1, size_bytes=8, exec_stats=None)
        return [ReadTask(EntryNumber(number), known) for number in self._numbers]


@dataclass(frozen=True)
class EntryNumber:
    """What a read task returns."""

    number: int

    def __call__(self) -> list[pa.Table]:
        """One block of one row."""
        return [pa.table({"id": [self.number]})]


def next_entries(position: Position, count: int) -> list[int]:
    """The next `count` entries, in plan order."""
    entries: list[int] = []
    entry = 0
    while len(entries) < count:
        if not within(position.complete, entry):
            entries.append(entry)
        entry += 1
    return entries


def rank_blocks(shard: Any) -> Iterator[Arrays]:
    """This rank's blocks, of which the first is asked for at once, by a thread.

    Ray Data starts with the first request. Its processes then import their libraries while this one imports torch and
    builds the model.

    Args:
        shard: the rank's ray.data iterator.
    """
    blocks = (
        block
        for block in shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
        if len(block["uid"])
    )
    first: Future[Arrays | None] = Future()

    def fetch() -> None:
        try:
            first.set_result(next(blocks, None))
        except BaseException as error:  # for whoever asks
            first.set_exception(error)

    Thread(target=fetch, name="first block", daemon=True).start()
    return _continued(first, blocks)


def _continued(first: Future[Arrays | None], others: Iterator[Arrays]) -> Iterator[Arrays]:
    block = first.result()
    if block is not None:
        yield block
    yield from others


def rank_batches(
    blocks: Iterator[Arrays], cfg: Config, position: Position, *, rank: int, workers: int
) -> Iterator[Arrays]:
    """This rank's equal batches; notes in `position` what they consume, the moment they are handed out.

    Args:
        blocks: of `rank_blocks`.
        workers: ranks that there are now.

    Raises:
        DataError: the stream ended, since the shards hold far less than their sizes promised.
    """
    # Another draw after a resume than at the start, the same for the same resume.
    started_from = sum(past - first for first, past in position.complete)
    rng = np.random.default_rng((cfg.train.seed, rank, started_from))
    local_batch, rest = divmod(cfg.train.global_batch, workers)
    assert not rest, "only sizes that divide the batch are started"
    for batch in mixed_batches(blocks, batch=local_batch, hold=cfg.data.shuffle_buffer, rng=rng):
        position.take(batch["uid"], batch["entry_rows"], batch["source"])
        yield batch
    raise DataError(
        "The stream of training samples ended before train.steps were taken: data.train holds far fewer samples than "
        "the sizes of its shards promised. Rerun the same command to go on, or check the shards."
    )

"""Dropped rows on disk: which key of which shard and source, why, and when. Parts are only ever added.

A part is written whole and then given its name, so a killed process leaves no half part. Of an entry that was read more
than once the last report counts. Before a checkpoint is saved everything is on disk; rows of entries that it does not
know are forgotten on resuming, since those entries are read again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ito_ray.data.tally import Lost

FOLDER, MERGED = "quarantine", "quarantine.parquet"
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("time", pa.timestamp("ms", tz="UTC")),
        ("entry", pa.int64()),
        ("place", pa.int64()),
    ]
)
_PART = SCHEMA.append(pa.field("report", pa.int64()))
"""`report` grows from one report of an entry to the next. A report without rows has one without a reason."""
_MOST_ROWS, _MOST_SECONDS = 1000, 10.0
"""What is held in memory at most, and for how long while rows keep coming."""


class Quarantine:
    """Appends dropped rows below `folder`."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._names = names
        self._rows: list[tuple[object, ...]] = []
        self._since = time.monotonic()
        self._report = 0

    def add(self, entry: int, lost: Sequence[Lost], *, again: bool = False) -> None:
        """Note the rows that one entry lost; if it is read `again`, in place of those that it had lost before."""
        now = int(time.time() * 1000)
        self._report = max(self._report + 1, time.time_ns())
        if not self._rows:
            self._since = time.monotonic()
        self._rows += [
            (
                self._names[one.source],
                one.shard,
                one.key,
                one.reason,
                one.detail,
                now,
                entry,
                one.place,
                self._report,
            )
            for one in lost
        ]
        if again and not lost:
            self._rows.append((None, None, None, None, None, now, entry, None, self._report))
        if len(self._rows) >= _MOST_ROWS or time.monotonic() - self._since > _MOST_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(values, field.type) for values, field in zip(columns, _PART, strict=True)]
            _write(pa.table(arrays, schema=_PART), self._folder / f"part-{uuid.uuid4().hex}.parquet")
            self._rows = []


def read(folder: Path) -> pa.Table:
    """The newest rows of each entry, each once, by entry and place."""
    parts = [pq.read_table(path, schema=_PART) for path in sorted(folder.glob("part-*.parquet"))]
    table = pa.concat_tables(parts) if parts else _PART.empty_table()
    reports = [report or 0 for report in table["report"].to_pylist()]
    entries, places = table["entry"].to_pylist(), table["place"].to_pylist()
    newest = dict[int, int]()
    for entry, report in zip(entries, reports, strict=True):
        newest[entry] = max(newest.get(entry, 0), report)
    rows = {
        (entry, place): row
        for row, (entry, place, report) in enumerate(zip(entries, places, reports, strict=True))
        if place is not None and report == newest[entry]
    }
    return table.select(SCHEMA.names).take(pa.array([rows[key] for key in sorted(rows)], pa.int64()))


def forget(folder: Path, is_known: Callable[[int], bool]) -> None:
    """Leave only rows of entries that a checkpoint knows: the others are read again."""
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        return
    table = read(folder)
    kept = table.filter(pa.array([is_known(entry) for entry in table["entry"].to_pylist()], pa.bool_()))
    _write(kept, folder / f"part-{uuid.uuid4().hex}.parquet")
    for path in parts:
        path.unlink()


def merge(folder: Path, target: Path) -> dict[str, int]:
    """Write all parts as one file, unless there is nothing; the rows of each reason."""
    table = read(folder)
    if not len(table):
        return {}
    _write(table, target)
    counts = pc.value_counts(table["reason"]).to_pylist()
    return {item["values"]: item["counts"] for item in counts}


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial, compression="zstd")
    partial.replace(path)

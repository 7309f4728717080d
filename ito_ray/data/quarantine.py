"""Dropped rows on disk: which key of which shard and source, why, and when. Parts are only ever added.

A part is written whole and then given its name, so a killed process leaves no half part. Before a checkpoint is saved
everything is on disk; rows of entries that the checkpoint does not hold complete are forgotten on resuming, since those
entries are read again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
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
_MOST_ROWS, _MOST_SECONDS = 1000, 10.0
"""What is held in memory at most, and for how long while rows keep coming."""


class Quarantine:
    """Appends dropped rows below `folder`."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._names = names
        self._rows: list[tuple[object, ...]] = []
        self._since = time.monotonic()

    def add(self, entry: int, lost: Iterable[Lost]) -> None:
        """Note the rows that one entry lost."""
        now = int(time.time() * 1000)
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
            )
            for one in lost
        ]
        if len(self._rows) >= _MOST_ROWS or time.monotonic() - self._since > _MOST_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
            _write(pa.table(arrays, schema=SCHEMA), self._folder / f"part-{uuid.uuid4().hex}.parquet")
            self._rows = []


def read(folder: Path) -> pa.Table:
    """All parts, each row once, by entry and place."""
    parts = [pq.read_table(path, schema=SCHEMA) for path in sorted(folder.glob("part-*.parquet"))]
    table = pa.concat_tables(parts) if parts else SCHEMA.empty_table()
    first = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    kept = first.group_by(["entry", "place"]).aggregate([("row", "min")])["row_min"]
    return table.take(kept).sort_by([("entry", "ascending"), ("place", "ascending")])


def forget(folder: Path, is_complete: Callable[[int], bool]) -> None:
    """Leave only rows of entries that are complete: the others are read again."""
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        return
    table = read(folder)
    kept = table.filter(pa.array([is_complete(entry) for entry in table["entry"].to_pylist()], pa.bool_()))
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

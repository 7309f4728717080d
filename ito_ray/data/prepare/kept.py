"""Files of one piece that came over the network, kept on disk until the job ends: each is fetched once.

A server may not give a second time what it gave the first, and shards are written long after inputs were inspected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ito_ray.data.rows import Row
from ito_ray.data.write import PARTIAL

_GROUP = 16
"""Rows of a row group, which is what is read for a single one."""
_SCHEMA = pa.schema([("image", pa.binary()), ("bad", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True)
class Kept:
    """What became of one input: its bytes, or why there are none."""

    image: bytes | None
    bad: str | None
    detail: str


def keep(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    """The rows, which are at `path` once the last one was taken."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    with pq.ParquetWriter(partial, _SCHEMA, compression="none") as writer:
        group: list[Row] = []
        for row in rows:
            group.append(row)
            if len(group) == _GROUP:
                writer.write_table(_table(group))
                group = []
            yield row
        if group:
            writer.write_table(_table(group))
    partial.replace(path)


def read_kept(path: Path, places: Iterable[int]) -> Iterator[Kept]:
    """The inputs at these places, which are in order."""
    file = pq.ParquetFile(path)
    for group, members in groupby(places, lambda place: place // _GROUP):
        table = file.read_row_group(group)
        for place in members:
            (values,) = table.slice(place % _GROUP, 1).to_pylist()
            yield Kept(**values)


def _table(rows: list[Row]) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in _SCHEMA.names}
    return pa.table(columns, schema=_SCHEMA)

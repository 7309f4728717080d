"""Reading rows of a Parquet file that may be damaged, whole or in pieces.

Pieces are cut at row groups where one is near, and inside a row group when it is larger than a piece. Reading the
second half of a row group means passing over the first: write row groups of about the piece's size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ito_ray.config.schema import ColumnsConfig

_BATCH = 64
"""Rows decoded at a time: what a damaged page costs at most beyond itself."""
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ParquetRow:
    """One row as stored; `bad` is a reason of rows.py when the file, not the content, is at fault."""

    key: str
    image: Any = None
    captions: Any = None
    """The column's value; with `captions_from` a mapping of column to value."""
    meta: dict[str, Any] = field(default_factory=dict)
    bad: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Columns:
    """Names of the columns that the file has for each role."""

    key: str | None
    image: str | None
    captions: str | None
    meta: str | None
    scalars: tuple[str, ...]
    named: tuple[str, ...]
    """Columns that `captions_from` asks for."""

    @property
    def all(self) -> list[str]:
        return [
            name
            for name in (self.key, self.image, self.captions, self.meta, *self.scalars, *self.named)
            if name is not None
        ]


def count_rows(file: BinaryIO) -> int:
    """Rows by the footer, 0 when it cannot be read."""
    try:
        return int(pq.read_metadata(file).num_rows)
    except (OSError, pa.ArrowException) as error:
        _raise_if_io(error)
        return 0


def holds_bytes(file: Any) -> bool:
    """Whether a column could hold pictures: bytes, or a structure with bytes in it. True for a damaged file."""
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        _raise_if_io(error)
        return True
    return any(_has_bytes(column.type) for column in schema)


def _has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_has_bytes(kind.field(index).type) for index in range(kind.num_fields))
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def read_parquet(file: BinaryIO, part: int, parts: int, columns: ColumnsConfig) -> Iterator[ParquetRow]:
    """Rows of piece `part` of `parts`, in the file's order.

    A file without a readable footer gives one bad row (from its first piece); of a damaged row group every row that
    cannot be read any more gives one, since the footer tells how many they were.
    """
    try:
        source = pq.ParquetFile(file, buffer_size=_READ_BYTES, pre_buffer=False, page_checksum_verification=True)
        names = _find(source.schema_arrow, columns)
        groups = [int(source.metadata.row_group(group).num_rows) for group in range(source.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        _raise_if_io(error)
        if part == 0:
            yield ParquetRow("", bad="parquet_unreadable", detail=_brief(error))
        return
    edges = [0, *accumulate(groups)]
    begin, end = (_boundary(edges, cut, parts) for cut in (part, part + 1))
    for group in range(len(groups)):
        first, last = max(begin, edges[group]), min(end, edges[group + 1])
        if first < last:
            yield from _read_group(source, group, edges[group], first, last, names)


def _read_group(
    source: pq.ParquetFile, group: int, at: int, first: int, last: int, names: _Columns
) -> Iterator[ParquetRow]:
    """Rows [first, last) of the file, all in one row group that begins at row `at`."""
    try:
        for batch in source.iter_batches(_BATCH, row_groups=[group], columns=names.all, use_threads=False):
            skip, stop = max(0, first - at), min(batch.num_rows, last - at)
            if skip < stop:
                yield from _rows(batch.slice(skip, stop - skip), at + skip, names)
                first = at + stop
            at += batch.num_rows
            if at >= last:
                return
    except (OSError, pa.ArrowException) as error:
        _raise_if_io(error)
        for row in range(first, last):
            yield ParquetRow(f"row {row}", bad="parquet_unreadable", detail=f"row group {group}: {_brief(error)}")


def _rows(batch: pa.RecordBatch, at: int, names: _Columns) -> Iterator[ParquetRow]:
    def column(name: str | None) -> list[Any]:
        return [None] * batch.num_rows if name is None else values_of(batch.column(name))

    keys, images, captions, metas = map(column, (names.key, names.image, names.captions, names.meta))
    scalars = [column(name) for name in names.scalars]
    if names.named:
        values = zip(*map(column, names.named), strict=True)
        captions = [dict(zip(names.named, one, strict=True)) for one in values]
    for index in range(batch.num_rows):
        key = f"row {at + index}" if keys[index] is None else str(keys[index])
        meta = {name: values[index] for name, values in zip(names.scalars, scalars, strict=True)}
        if metas[index] is not None:
            try:
                meta |= _object(metas[index])
            except (ValueError, RecursionError) as error:
                yield ParquetRow(key, bad="bad_json", detail=f"column {names.meta!r}: {_brief(error)}")
                continue
        yield ParquetRow(key, images[index], captions[index], meta)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a value that Python cannot hold, such as a time after the year 9999."""

    error: str


def values_of(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Python values; one that cannot be converted must not cost the others.

    Text that is not UTF-8 comes as bytes, what cannot be had at all as `Unreadable`.
    """
    try:
        return list(column.to_pylist())
    except Exception:
        return [_value(item) for item in column]


def _value(item: pa.Scalar) -> Any:
    try:
        return item.as_py()
    except Exception as error:
        if isinstance(item, pa.DictionaryScalar | pa.ExtensionScalar):
            return _value(item.value)
        if isinstance(item, pa.StructScalar):
            return {name: _value(one) for name, one in item.items()}
        if isinstance(item, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar | pa.ListViewScalar):
            return [_value(one) for one in item.values]
        if isinstance(error, UnicodeDecodeError):
            return item.as_buffer().to_pybytes()
        return Unreadable(_brief(error))


def _object(text: str | bytes) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"an object is expected, not {type(value).__name__}")
    return value


def _find(schema: pa.Schema, columns: ColumnsConfig) -> _Columns:
    key, image, captions = (
        next((name for name in names if name in schema.names), None)
        for names in (columns.key, columns.image, columns.captions)
    )
    named = tuple(name for name in columns.captions_from if name in schema.names)
    if columns.captions_from:
        captions = None
    meta = "meta" if "meta" in schema.names and pa.types.is_string(schema.field("meta").type) else None
    taken = {key, image, captions, meta, *named}
    scalars = tuple(entry.name for entry in schema if entry.name not in taken and _is_scalar(entry.type))
    return _Columns(key, image, captions, meta, scalars, named)


def _is_scalar(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    return any(test(kind) for test in tests)


def _boundary(edges: Sequence[int], cut: int, parts: int) -> int:
    """First row of piece `cut`: the even cut, moved to a row group's edge when one is within a quarter of a piece."""
    rows = edges[-1]
    even = rows * cut // parts
    nearest = min(edges, key=lambda edge: abs(edge - even))
    return nearest if abs(nearest - even) * 4 <= rows // parts else even


def _brief(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _raise_if_io(error: Exception) -> None:
    """A failing disk or network is no bad data: Arrow's complaints about content carry no errno."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error

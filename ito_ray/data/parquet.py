"""Reading rows of a Parquet file that may be damaged, whole or in pieces.

Pieces are cut at row groups where one is near, and inside a row group when it is larger than a piece. Reading the
second half of a row group means passing over the first: write row groups of about the piece's size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ito_ray.config.schema import ColumnsConfig

_BATCH = 64
"""Rows decoded at a time: what a damaged page costs at most beyond itself."""
_READ_BYTES = 1 << 20
DOCUMENT = "json"
"""The column that Hugging Face's export of a WebDataset makes of KEY.json."""
_LOOKS_LIKE_AN_OBJECT = re.compile(r"\s*\{(?!\s*')")
"""What Python prints of a dictionary is text."""


@dataclass(frozen=True, slots=True)
class ParquetRow:
    """One row as stored; `bad` is a reason of rows.py when the file, not the content, is at fault."""

    key: str
    image: Any = None
    captions: Any = None
    """The column's value; with `captions_from` a mapping of column to value."""
    document: dict[str, Any] = field(default_factory=dict)
    """What KEY.json would hold in a tar: captions and meta data."""
    meta: dict[str, Any] = field(default_factory=dict)
    bad: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Columns:
    """Names of the columns that the file has for each role; of images or captions the first that a row fills counts."""

    key: str | None
    images: tuple[str, ...]
    captions: tuple[str, ...]
    meta: str | None
    document: str | None
    scalars: tuple[str, ...]
    named: tuple[str, ...]
    """Columns that `captions_from` asks for."""

    @property
    def all(self) -> list[str]:
        single = (name for name in (self.key, self.meta, self.document) if name is not None)
        return list(dict.fromkeys([*single, *self.images, *self.captions, *self.scalars, *self.named]))


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
    except Exception as error:  # damaged pages make Arrow, and what they hold makes Python, raise nearly anything
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
    except Exception as error:  # damaged pages make Arrow, and what they hold makes Python, raise nearly anything
        _raise_if_io(error)
        for row in range(first, last):
            yield ParquetRow(f"row {row}", bad="parquet_unreadable", detail=f"row group {group}: {_brief(error)}")


def _rows(batch: pa.RecordBatch, at: int, names: _Columns) -> Iterator[ParquetRow]:
    columns = {name: values_of(batch.column(name)) for name in names.all}
    for index in range(batch.num_rows):
        values = {name: column[index] for name, column in columns.items()}
        key = values[names.key] if names.key else None
        number = f"row {at + index}"
        if isinstance(key, Unreadable):
            yield ParquetRow(number, bad="unexpected_error", detail=f"column {names.key!r}: {key.error}")
            continue
        try:
            document = _object(values, names.document)
            meta = {name: values[name] for name in names.scalars} | _object(values, names.meta)
        except (ValueError, RecursionError) as error:
            yield ParquetRow(_key(key, number), bad="bad_json", detail=_brief(error))
            continue
        captions: Any = {name: values[name] for name in names.named}
        if not captions:
            captions = _first([values[name] for name in names.captions], _says_something)
        image = _first([values[name] for name in names.images], _has_content)
        yield ParquetRow(_key(key, number), image, captions, document, meta)


def _key(value: Any, number: str) -> str:
    if value is None:
        return number
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _first(values: Sequence[Any], accept: Callable[[Any], bool]) -> Any:
    """The first value that will do, else the first that there is."""
    there = [value for value in values if value is not None]
    return next(filter(accept, there), there[0] if there else None)


def _has_content(image: Any) -> bool:
    data = image.get("bytes") if isinstance(image, dict) else image
    return isinstance(data, bytes) and bool(data)


def _says_something(captions: Any) -> bool:
    if isinstance(captions, list):
        return any(map(_says_something, captions))
    return captions is not None and captions != ""


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


def _object(values: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """The fields of a structure or JSON object; text that is neither, and does not look like one, stays under its name.

    Raises:
        ValueError, RecursionError: broken JSON.
    """
    value = values[name] if name else None
    if value is None:
        return {}
    if isinstance(value, dict):
        return {field: one for field, one in value.items() if one is not None}
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if not isinstance(value, str) or not _LOOKS_LIKE_AN_OBJECT.match(value):
        return {str(name): value}
    try:
        fields: dict[str, Any] = json.loads(value)
    except ValueError as error:
        raise ValueError(f"column {name!r}: {error}") from error
    return fields


def _find(schema: pa.Schema, columns: ColumnsConfig) -> _Columns:
    types = dict(zip(schema.names, schema.types, strict=True))

    lower = {name.lower(): name for name in reversed(types)}

    def there(*names: str) -> tuple[str, ...]:
        """Those that the file has, capitals or not."""
        found = (name if name in types else lower.get(name.lower(), "") for name in names)
        return tuple(dict.fromkeys(name for name in found if name))

    key = next(iter(there(*columns.key)), None)
    named = there(*columns.captions_from)
    captions = () if columns.captions_from else there(*columns.captions)
    images = there(*columns.image)
    meta = next((name for name in there(*columns.meta) if _may_be_object(types[name])), None)
    used = {key, meta, *images, *captions, *named}
    document = next((name for name in there(DOCUMENT) if name not in used and _may_be_object(types[name])), None)
    taken = {*used, document}
    scalars = tuple(name for name, kind in types.items() if name not in taken and _is_scalar(kind))
    return _Columns(key, images, captions, meta, document, scalars, named)


def _may_be_object(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) or _is_text(kind) or _has_bytes(kind)


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view))


def _is_scalar(kind: pa.DataType) -> bool:
    types = pa.types
    return _is_text(kind) or any(test(kind) for test in (types.is_integer, types.is_floating, types.is_boolean))


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

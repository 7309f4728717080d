"""A table of picture files with captions or classes: separated fields, JSON or Parquet; one reader for all commands."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import tokenize
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ito_ray.data.parquet import values_of
from ito_ray.data.prepare.delimited import Dialect, open_delimited
from ito_ray.data.prepare.fetch import ADDRESS
from ito_ray.data.prepare.listing import Listed
from ito_ray.data.prepare.source import plain_meta
from ito_ray.data.prepare.table_text import TableText
from ito_ray.data.rows import listed
from ito_ray.data.walk import is_file, warn_once
from ito_ray.errors import DataError
from ito_ray.redact import redact

IMAGE_COLUMNS = (
    *("image", "image_path", "file_name", "filename", "filepath", "file", "path", "img", "photo"),
    *("image_name", "image_url", "url"),
)
CAPTION_COLUMNS = ("captions", "caption", "text", "title", "description", "txt", "comment", "sentence")
CLASS_COLUMNS = ("class", "label", "name", "category", "target")
_SEPARATED = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|", ".txt": "\t", ".token": "\t"}
_JSON = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*_SEPARATED, *_JSON, ".parquet")
_PACKED = (".gz", ".bz2", ".zst", ".xz", ".lz4")
_NUMBERED = re.compile(r"(.+\.(?:jpe?g|png))#\d+$", re.IGNORECASE)
"""Flickr's name of a picture with the number of the caption."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row by column, or why there is none."""

    place: str
    values: dict[str, Any]
    bad: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """A table that was opened: its columns, and its rows as often as they are asked for."""

    path: Path
    names: tuple[str, ...]
    form: str
    """How it is written, in words."""
    records: Callable[[], Iterator[Record]] = field(repr=False)

    def find(self, option: str, given: str, known: Sequence[str]) -> str:
        """The column of this name, or the first of `known` that the table has, capitals or not.

        Raises:
            DataError: naming `option`, when there is none.
        """
        if given and given not in self.names:
            raise DataError(f"{option}={given!r} is no column of {self.path}: it has {', '.join(self.names)}.")
        lower = {name.strip().lower(): name for name in reversed(self.names)}
        found = given or next((lower[name] for name in known if name in lower), "")
        if not found:
            raise DataError(
                f"{self.path} has none of the usual columns: give {option}, one of {', '.join(self.names)}. "
                f"It was read as {self.form}."
            )
        return found


@dataclass(frozen=True)
class Columns:
    """Which column is what; empty = the first known name that the table has."""

    image: str = ""
    captions: tuple[str, ...] = ()
    key: str = ""


def open_table(path: Path, dialect: Dialect | None = None, columns: Sequence[str] = ()) -> Table:
    """Find out how a table is written.

    Args:
        path: the table; its name tells the kind, and may end in .gz, .bz2, .zst, .xz or .lz4 besides.
        dialect: of a table of separated fields; None = found out.
        columns: names that are known beside the usual ones, by which a header is told from a row.

    Raises:
        DataError: the file is missing, of another kind or cannot be read.
    """
    if not is_file(path):
        raise DataError(f"There is no table {path}: give a {', '.join(SUFFIXES)} file.")
    kind = kind_of(path)
    dialect = dialect or Dialect()
    if kind == ".parquet":
        return Table(path, _parquet_names(path), "Parquet", lambda: _parquet(path))
    if kind in _JSON:
        return _json_table(TableText.open(path, dialect.encoding))
    if kind not in _SEPARATED:
        raise DataError(f"{path} ends in {kind!r}: a table is one of {', '.join(SUFFIXES)}.")
    known = {name.lower() for name in (*IMAGE_COLUMNS, *CAPTION_COLUMNS, *CLASS_COLUMNS, *columns) if name}
    table = open_delimited(TableText.open(path, dialect.encoding), _SEPARATED[kind], dialect, known)
    if (table.separator, table.quoting, table.text.encoding) not in _usual(kind):
        warn_once(f"{path}: read as {table.form}.")

    def records() -> Iterator[Record]:
        for row in table.rows():
            place = f"line {row.line}"
            if row.bad:
                yield Record(place, {}, "bad_row", f"{place}: {row.bad}")
            else:
                yield Record(place, dict(zip(table.names, row.values, strict=True)))

    return Table(path, table.names, table.form, records)


def _usual(kind: str) -> list[tuple[str, str, str]]:
    return [(_SEPARATED[kind], "double", encoding) for encoding in ("utf-8", "utf-8-sig")]


def kind_of(path: Path) -> str:
    """The ending that tells a table's kind, in lower case, without that of a packed file."""
    packed = path.suffix.lower() in _PACKED
    return (path.with_suffix("") if packed else path).suffix.lower()


def list_table(
    path: Path, images: Path | None, columns: Columns, dialect: Dialect | None = None
) -> tuple[list[Listed], dict[str, int]]:
    """Samples in the order of their first row, and how many rows were merged into earlier ones.

    Rows of one key and picture are one sample with several captions. Without a key column the key is the picture's
    path without its ending. Held in memory: some hundred bytes a row.

    Args:
        path: the table.
        images: folder that relative paths of pictures start from; None = the table's folder.
        columns: see `Columns`.
        dialect: see `open_table`.

    Raises:
        DataError: the file is missing, of another kind or empty, or a column is not there.
    """
    table = open_table(path, dialect, (columns.image, *columns.captions, columns.key))
    root = str((images if images is not None else path.parent).absolute())
    samples: dict[tuple[str, str], Listed] = {}
    broken: list[Listed] = []
    chosen: Columns | None = None
    rows = 0
    for record in table.records():
        rows += 1
        if record.bad is not None:
            broken.append(Listed(record.place, bad=record.bad, detail=record.detail))
            continue
        chosen = chosen or _choose(table, columns)
        image = record.values.get(chosen.image)
        if not isinstance(image, str) or not image.strip():
            broken.append(Listed(record.place, bad="missing_image", detail=_no_image(chosen.image, image)))
            continue
        image = _plain_name(root, image)
        named = record.values.get(chosen.key) if chosen.key else None
        key = _key(image) if _is_empty(named) else str(named)
        sample = samples.get((key, image))
        if sample is None:
            used = {chosen.image, chosen.key, *chosen.captions}
            meta = plain_meta({name: value for name, value in record.values.items() if name not in used})
            sample = samples[key, image] = Listed(key, _address(root, image), meta=meta)
        for name in chosen.captions:
            sample.captions += _texts(record.values.get(name))
    if not rows:
        raise DataError(f"{path} has no rows: give a table with a row for each caption.")
    return [*samples.values(), *broken], {"rows": rows, "merged_rows": rows - len(samples) - len(broken)}


def list_classes(path: Path, column: str) -> list[Listed]:
    """Pictures in the order of their first row, the class as their only caption; relative paths start at the table.

    A number is a class as well: 1 and 1.0 are `1`. A picture that several rows give different classes has none.

    Raises:
        DataError: as for `list_table`.
    """
    table = open_table(path, None, (column,))
    image = table.find("--image-column", "", IMAGE_COLUMNS)
    root = str(path.parent.absolute())
    samples: dict[str, Listed] = {}
    broken: list[Listed] = []
    for record in table.records():
        found, label = record.values.get(image), _label(record.values.get(column))
        if record.bad is not None:
            broken.append(Listed(record.place, bad=record.bad, detail=record.detail))
        elif not isinstance(found, str) or not found.strip():
            broken.append(Listed(record.place, bad="missing_image", detail=_no_image(image, found)))
        elif not label:
            detail = f"{record.place}: column {column!r} says no class"
            broken.append(Listed(_key(found.strip()), bad="missing_class", detail=detail))
        else:
            name = _plain_name(root, found)
            sample = samples.setdefault(name, Listed(_key(name), _address(root, name), [label]))
            if sample.captions != [label]:
                detail = f"{sample.captions[0]!r} and {label!r}"
                samples[name] = replace(sample, bad="several_classes", detail=detail)
    if not samples and not broken:
        raise DataError(f"{path} has no rows: give a table with a row for each picture.")
    return [*samples.values(), *broken]


def _choose(table: Table, columns: Columns) -> Columns:
    image = table.find("--image-column", columns.image, IMAGE_COLUMNS)
    captions = tuple(table.find("--caption-columns", name, ()) for name in columns.captions)
    captions = captions or (table.find("--caption-columns", "", CAPTION_COLUMNS),)
    return Columns(image, captions, table.find("--key-column", columns.key, ()) if columns.key else "")


def _is_empty(value: Any) -> bool:
    """None, "" and what stands for a missing value among numbers."""
    return value is None or value == "" or (isinstance(value, float) and value != value)


def _no_image(column: str, value: Any) -> str:
    if isinstance(value, bytes | dict):
        return f"column {column!r} holds the picture itself, not its path: use prepare shards"
    empty = _is_empty(value) or (isinstance(value, str) and not value.strip())
    return f"column {column!r} is {'empty' if empty else type(value).__name__}"


def _key(image: str) -> str:
    """A path without its ending, an address as it is: what follows a dot in its query tells pictures apart."""
    return redact(image) if ADDRESS.match(image) else str(PurePosixPath(os.path.splitext(image)[0]))  # noqa: PTH122 (any text)


def _plain_name(root: str, cell: str) -> str:
    """The picture without white space around it and Flickr's number of the caption, unless a file is called so."""
    image = cell.strip()
    if image != cell and os.path.lexists(_address(root, cell)):
        return cell
    numbered = _NUMBERED.match(image)
    if not numbered or os.path.lexists(_address(root, image)):
        return image
    return numbered[1]


def _address(root: str, image: str) -> str:
    return image if ADDRESS.match(image) or image.startswith("/") else f"{root.rstrip('/')}/{image}"


def _texts(value: Any) -> list[Any]:
    """What may be captions; a number is none, and is left for the gate of all captions to say so."""
    values = _list_in(value) if isinstance(value, str) else listed(value)
    values = [one.decode("utf-8", "surrogateescape") if isinstance(one, bytes) else one for one in values]
    return [one for one in values if not (_is_empty(one) or (isinstance(one, str) and not one.strip()))]


def _list_in(cell: str) -> list[str]:
    """The texts of a list that was written into a cell, as JSON, by Python or by NumPy; else the cell itself.

    As where a list is a value of its own, lists in it are opened, and missing values are none.
    """
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return [cell]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _python_list(text)
    texts = listed(found) if isinstance(found, list) else [found]
    return texts if all(isinstance(one, str) for one in texts) else [cell]


def _python_list(text: str) -> list[Any] | None:
    """The texts of `['a', 'b']` or of NumPy's `['a' 'b']`, which Python itself would join; None for anything else."""
    passed = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    try:
        tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in passed]
        strings = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    others = {token.string for token in tokens[1:-1] if token.type != tokenize.STRING}
    return strings if others <= {",", "None", "nan"} else None


def _label(value: Any) -> str:
    """A class as text, white space as in captions; "" where there is none."""
    if _is_empty(value) or isinstance(value, list | dict | bytes):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).split())


def _json_table(text: TableText) -> Table:
    """JSON lines, or one list of objects; the columns are those of all rows."""
    first = next((line.lstrip() for line in text.lines() if line.strip()), "")
    rows: Callable[[TableText], Iterator[Record]] = _json_lines
    if first.startswith("[") or kind_of(text.path) == ".json":
        rows = _reading_of(text)
    names: dict[str, None] = {}
    for record in rows(text):
        names |= dict.fromkeys(record.values)
    return Table(text.path, tuple(names), f"JSON, {text.encoding}", lambda: rows(text))


def _reading_of(text: TableText) -> Callable[[TableText], Iterator[Record]]:
    """Whether the file is one list or lines. Raises DataError where it is one object of another kind."""
    try:
        document = json.loads(text.read())
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        if any(record.bad is None for record in _json_lines(text)):
            return _json_lines
        raise DataError(f"{text.path} is not JSON: {str(error)[:200]}.") from error
    if isinstance(document, list):
        return _json_list
    if isinstance(document, dict) and any(isinstance(value, str) for value in document.values()):
        return _json_lines
    names = list(document) if isinstance(document, dict) else [type(document).__name__]
    is_coco = {"images", "annotations"} <= set(names)
    raise DataError(
        f"{text.path} is one JSON object ({', '.join(map(str, names[:6]))}), not a list of rows: "
        + ("use prepare coco." if is_coco else "write a list of objects (pandas: orient='records'), or one a line.")
    )


def _json_lines(text: TableText) -> Iterator[Record]:
    for number, line in enumerate(text.lines(), 1):
        if not line.strip():
            continue
        try:
            yield _json_record(f"line {number}", json.loads(line))
        except (ValueError, RecursionError) as error:
            yield Record(f"line {number}", {}, "bad_row", f"line {number}: {str(error)[:200]}")


def _json_list(text: TableText) -> Iterator[Record]:
    for number, value in enumerate(json.loads(text.read())):
        yield _json_record(f"item {number}", value)


def _json_record(place: str, value: Any) -> Record:
    if isinstance(value, dict):
        return Record(place, value)
    return Record(place, {}, "bad_row", f"{place}: an object is expected, not {type(value).__name__}")


def _parquet_names(path: Path) -> tuple[str, ...]:
    with _parquet_failures(path):
        return tuple(pq.read_schema(path).names)


def _parquet(path: Path) -> Iterator[Record]:
    number = 0
    with _parquet_failures(path):
        for batch in pq.ParquetFile(path).iter_batches(4096):
            columns = [values_of(column) for column in batch.columns]
            for row in zip(*columns, strict=True):
                yield Record(f"row {number}", dict(zip(batch.schema.names, row, strict=True)))
                number += 1


@contextmanager
def _parquet_failures(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}".splitlines()[0][:300]) from error

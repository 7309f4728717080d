"""A table of picture files and captions: CSV, TSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ito_ray.data.prepare.listing import Listed
from ito_ray.data.prepare.source import plain_meta
from ito_ray.errors import DataError

IMAGE_COLUMNS = ("image", "image_path", "file_name", "filename", "filepath", "file", "path", "img", "photo")
CAPTION_COLUMNS = ("captions", "caption", "text", "title", "description", "txt", "TEXT", "comment", "sentence")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True, slots=True)
class _Record:
    """One row by column, or why there is none."""

    place: str
    values: dict[str, Any]
    bad: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Columns:
    """Which column is what; empty = the first known name that the table has."""

    image: str = ""
    captions: tuple[str, ...] = ()
    key: str = ""


def list_table(path: Path, images: Path | None, columns: Columns) -> tuple[list[Listed], dict[str, int]]:
    """Samples in the order of their first row, and how many rows were merged into earlier ones.

    Rows of one key and picture are one sample with several captions. Without a key column the key is the picture's
    path without its ending. Held in memory: some hundred bytes a row.

    Args:
        path: the table.
        images: folder that relative paths of pictures start from; None = the table's folder.
        columns: see `Columns`.

    Raises:
        DataError: the file is missing, of another kind or empty, or a column is not there.
    """
    root = str((images if images is not None else path.parent).absolute())
    samples: dict[tuple[str, str], Listed] = {}
    broken: list[Listed] = []
    rows = 0
    chosen: Columns | None = None
    for record in _records(path):
        rows += 1
        if record.bad is not None:
            broken.append(Listed(record.place, bad=record.bad, detail=record.detail))
            continue
        chosen = chosen or _choose(path, list(record.values), columns)
        image = record.values.get(chosen.image)
        if not isinstance(image, str) or not image.strip():
            detail = f"column {chosen.image!r} is {'empty' if not image else type(image).__name__}"
            broken.append(Listed(record.place, bad="missing_image", detail=detail))
            continue
        image = image.strip()
        named = record.values.get(chosen.key) if chosen.key else None
        key = str(PurePosixPath(image).with_suffix("")) if named in (None, "") else str(named)
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


def _choose(path: Path, names: Sequence[str], columns: Columns) -> Columns:
    def find(field: str, given: str, known: Sequence[str]) -> str:
        if given and given not in names:
            raise DataError(f"{field}={given!r} is no column of {path}: it has {', '.join(names)}.")
        found = given or next((name for name in known if name in names), "")
        if not found:
            raise DataError(f"{path} has none of the usual columns: give {field}, one of {', '.join(names)}.")
        return found

    image = find("--image-column", columns.image, IMAGE_COLUMNS)
    captions = tuple(find("--caption-columns", name, ()) for name in columns.captions)
    captions = captions or (find("--caption-columns", "", CAPTION_COLUMNS),)
    return Columns(image, captions, find("--key-column", columns.key, ()) if columns.key else "")


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]


def _address(root: str, image: str) -> str:
    return image if "://" in image or image.startswith("/") else f"{root.rstrip('/')}/{image}"


def _records(path: Path) -> Iterator[_Record]:
    if not path.is_file():
        raise DataError(f"There is no table {path}: give a {', '.join(SUFFIXES)} file.")
    match path.suffix.lower():
        case ".csv":
            yield from _separated(path, ",")
        case ".tsv":
            yield from _separated(path, "\t")
        case ".jsonl" | ".ndjson":
            yield from _json_lines(path)
        case ".parquet":
            yield from _parquet(path)
        case other:
            raise DataError(f"{path} ends in {other!r}: a table is one of {', '.join(SUFFIXES)}.")


def _separated(path: Path, separator: str) -> Iterator[_Record]:
    csv.field_size_limit(sys.maxsize)
    # Bytes that are not UTF-8 pass as surrogates, to be told from good captions where these are checked.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(f"{path} names a column twice: {', '.join(header)}.")
        for values in reader:
            place = f"line {reader.line_num}"
            if not values:
                continue
            if len(values) == len(header):
                yield _Record(place, dict(zip(header, values, strict=True)))
            else:
                yield _Record(place, {}, "bad_row", f"{len(values)} fields, the header has {len(header)}")


def _json_lines(path: Path) -> Iterator[_Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield _Record(f"line {number}", {}, "bad_row", str(error)[:200])
                continue
            if isinstance(values, dict):
                yield _Record(f"line {number}", values)
            else:
                yield _Record(f"line {number}", {}, "bad_row", f"an object is expected, not {type(values).__name__}")


def _parquet(path: Path) -> Iterator[_Record]:
    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(4096):
            for values in batch.to_pylist():
                yield _Record(f"row {number}", values)
                number += 1
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}".splitlines()[0][:300]) from error

"""Samples as they lie in a shard, tar or Parquet alike: every one is either good or carries the reason why not.

Reasons: shard_unreadable (the disk or store); not_a_tar, tar_truncated, tar_damaged, parquet_unreadable (the file);
duplicate_key, missing_image, missing_caption, empty_caption, caption_not_utf8, bad_json (the sample); and, found on
decoding (decode.py), image_unreadable, image_truncated, too_many_pixels.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.captions import clean
from ito_ray.data.parquet import ParquetRow, read_parquet
from ito_ray.data.plan import Piece
from ito_ray.data.shards import Shard, open_shard
from ito_ray.data.tar import IMAGE_EXTENSIONS, TarSample, read_tar, unpack

Needs = Literal["pair", "image", "text"]
"""What makes a row good. `image`: captions are taken where they can be read; `text`: the image is not looked at."""
RETRY_SECONDS = (0.5, 2.0, 8.0)
"""Waits between attempts to read a piece, give or take a half; the store's library has tried a few times by itself."""


class BadSample(Exception):
    """A sample that cannot be used; caught where samples are counted, never shown to the user as an error."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Row:
    """One image with its cleaned captions. `bad`: a reason, None when the row is good and has what was needed of it."""

    key: str
    image: bytes | None
    captions: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    bad: str | None = None
    detail: str = ""
    url: str = ""
    weights: tuple[float, ...] = ()
    """Chances of the captions to be drawn, up to a common factor; empty = equal."""


def read_piece(piece: Piece, columns: ColumnsConfig, needs: Needs = "pair") -> Iterator[Row]:
    """Rows of a piece in the shard's order.

    Damaged content never raises, it gives rows with `bad` set. A disk or store that fails raises OSError.
    """
    shard = Shard(piece.url, 0)
    with open_shard(piece.url) as file:
        if shard.is_tar:
            with unpack(file) if shard.is_gzipped else nullcontext(file) as archive:
                for sample in read_tar(archive, piece.part, piece.parts):
                    yield _checked(piece.url, sample.key, sample.bad, sample.detail, sample, columns, needs)
        else:
            seen: set[str] = set()
            for row in read_parquet(file, piece.part, piece.parts, columns):
                again = row.bad is None and row.key in seen
                seen.add(row.key)
                bad, detail = ("duplicate_key", "an earlier row has this key") if again else (row.bad, row.detail)
                yield _checked(piece.url, row.key, bad, detail, row, columns, needs)


def read_retrying(piece: Piece, columns: ColumnsConfig, needs: Needs = "pair") -> Iterator[Row]:
    """Rows of a piece; a disk or store that fails is asked again, longer and longer later, for the rows still missing.

    Raises:
        OSError: it went on failing; at once if the shard is not there or closed to us.
    """
    done, waits = 0, iter(RETRY_SECONDS)
    while True:
        try:
            for row in itertools.islice(read_piece(piece, columns, needs), done, None):
                done += 1
                yield row
            return
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            wait = next(waits, None)
            if wait is None:
                raise
        time.sleep(wait * random.uniform(0.5, 1.5))  # else all tasks would come back at the same moment


def read_patiently(piece: Piece, columns: ColumnsConfig, needs: Needs = "pair") -> list[Row]:
    """All rows of a piece, for training, which goes on without those that a failing disk or store keeps back.

    What was read is kept and the rest, as many rows as the plan expects of the piece, are bad rows: a lost shard weighs
    in the run's account what its samples would have.
    """
    rows: list[Row] = []
    try:
        rows.extend(read_retrying(piece, columns, needs))
    except OSError as error:
        lost = Row("", None, (), bad="shard_unreadable", detail=str(error)[:200], url=piece.url)
        rows += [lost] * max(1, piece.rows - len(rows))
    return rows


def _checked(
    url: str,
    key: str,
    bad: str | None,
    detail: str,
    source: TarSample | ParquetRow,
    columns: ColumnsConfig,
    needs: Needs,
) -> Row:
    if bad is None:
        try:
            image = None if needs == "text" else _image(source)
            try:
                groups, meta = _texts(source, columns.captions_from)
                captions, weights = _captions(groups)
            except BadSample:
                if needs != "image":
                    raise
                captions, weights, meta = (), (), {}
            return Row(key, image, captions, meta, url=url, weights=weights)
        except BadSample as error:
            bad, detail = error.reason, error.detail
    return Row(key, None, (), bad=bad, detail=detail, url=url)


Groups = list[tuple[float, list[str]]]
"""Captions of one field each, with the field's chance to be drawn from."""


def _image(source: TarSample | ParquetRow) -> bytes:
    if isinstance(source, TarSample):
        member = _member(source.members, IMAGE_EXTENSIONS)
        if not member:
            detail = "the image is empty" if member is not None else f"found only {sorted(source.members)}"
            raise BadSample("missing_image", detail)
        return member
    image = source.image.get("bytes") if isinstance(source.image, dict) else source.image
    if not isinstance(image, bytes) or not image:
        detail = "no image" if not image else f"the column holds {type(image).__name__}, not bytes"
        raise BadSample("missing_image", detail)
    return image


def _texts(source: TarSample | ParquetRow, fields: Mapping[str, float]) -> tuple[Groups, dict[str, Any]]:
    """Captions and meta data."""
    return _tar_texts(source, fields) if isinstance(source, TarSample) else _parquet_texts(source, fields)


def _tar_texts(sample: TarSample, fields: Mapping[str, float]) -> tuple[Groups, dict[str, Any]]:
    text = _member(sample.members, ("txt",))
    document = _member(sample.members, ("json",))
    meta: dict[str, Any] = {}
    if document is not None:
        try:
            meta = json.loads(document)
        except (ValueError, RecursionError) as error:
            raise BadSample("bad_json", str(error)[:200]) from error
        if not isinstance(meta, dict):
            raise BadSample("bad_json", f"an object is expected, not {type(meta).__name__}")
    if not fields:
        found = [] if text is None else [_utf8(text)]
        for name in ("captions", "caption", "text"):
            found += _json_captions(meta, name)
        return [(1.0, found)], meta
    groups = [
        (chance, [_utf8(text)] if name == "txt" and text is not None else _json_captions(meta, name))
        for name, chance in fields.items()
    ]
    return groups, meta


def _parquet_texts(row: ParquetRow, fields: Mapping[str, float]) -> tuple[Groups, dict[str, Any]]:
    if not fields:
        return [(1.0, _column_captions(row.captions))], row.meta
    values = row.captions or {}
    return [(chance, _column_captions(values.get(name))) for name, chance in fields.items()], row.meta


def _column_captions(column: Any) -> list[str]:
    values = column if isinstance(column, list) else [column]
    found = [_utf8(value) if isinstance(value, bytes) else value for value in values if value is not None]
    if not all(isinstance(value, str) for value in found):
        raise BadSample("missing_caption", f"the column holds {type(found[0]).__name__}, not text")
    return found


def _member(members: dict[str, bytes], extensions: Sequence[str]) -> bytes | None:
    """The member with the first of `extensions`; failing that one that ends in it, as in `photo.final.jpg`."""
    exact = (members[extension] for extension in extensions if extension in members)
    ending = (data for name, data in members.items() if name.rpartition(".")[2] in extensions)
    return next(exact, next(ending, None))


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSample("caption_not_utf8", str(error)[:200]) from error


def _json_captions(meta: dict[str, Any], name: str) -> list[str]:
    """Takes the captions of one field out of a sample's json; what is left is its meta data."""
    value = meta.pop(name, None)
    values = [one for one in (value if isinstance(value, list) else [value]) if one is not None]
    if not all(isinstance(one, str) for one in values):
        raise BadSample("bad_json", f"{name} must be a string or a list of strings")
    return values


def usable_captions(found: Iterable[str]) -> tuple[str, ...]:
    """Cleaned, those that say something, each once, in order. Raises BadSample when none is left."""
    return _captions([(1.0, list(found))])[0]


def _captions(groups: Groups) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Cleaned, those that say something, each once, in order; and their weights, none where all are equal."""
    weights: dict[str, float] = {}
    for chance, found in groups:
        said = dict.fromkeys(text for text in map(clean, found) if text)
        for text in said:
            weights[text] = weights.get(text, 0.0) + chance / len(said)
    if not weights:
        raise BadSample("empty_caption" if any(found for _, found in groups) else "missing_caption")
    return tuple(weights), tuple(weights.values()) if len(groups) > 1 else ()

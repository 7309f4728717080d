"""Samples as they lie in a shard, tar or Parquet alike: every one is either good or carries the reason why not.

Reasons: shard_unreadable (the disk or store); not_a_tar, tar_truncated, tar_damaged, parquet_unreadable (the file);
tar_unsorted, ambiguous_members, tar_link, tar_sparse (how it was packed);
duplicate_key, missing_image, missing_caption, empty_caption, caption_not_utf8, caption_too_long, bad_json (the sample);
found on decoding (decode.py), image_unreadable, image_truncated, too_many_pixels; and unexpected_error, whatever else a
single sample raises.

A caption that cannot be used costs the sample only when it has no other; else it is left out and counted in the row's
notes.
"""

from __future__ import annotations

import io
import itertools
import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from ito_ray.config.schema import ColumnsConfig, KeyEnds
from ito_ray.data.captions import cleaned
from ito_ray.data.file_kinds import IMAGE_EXTENSIONS
from ito_ray.data.parquet import ParquetRow, read_parquet
from ito_ray.data.plan import Piece
from ito_ray.data.shards import Shard, open_shard
from ito_ray.data.tar import TarSample, read_tar, unpack
from ito_ray.data.tar_layout import Layout
from ito_ray.data.tar_members import TEXT_EXTENSIONS
from ito_ray.redact import redact

Needs = Literal["pair", "image", "text"]
"""What makes a row good. `image`: captions are taken where they can be read; `text`: the image is not looked at."""
RETRY_SECONDS = (0.5, 2.0, 8.0)
"""Waits between attempts to read a piece, give or take a half; the store's library has tried a few times by itself."""


class BadSample(Exception):
    """A sample that cannot be used; caught where samples are counted, never shown to the user as an error."""

    def __init__(self, reason: str, detail: str = "") -> None:
        detail = redact(detail)
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@contextmanager
def one_sample() -> Iterator[None]:
    """Whatever work on a single sample raises costs that sample alone: it comes as a BadSample.

    A disk or store that fails goes on as it is, an OSError with an errno: it is no fault of the sample.
    """
    try:
        yield
    except BadSample:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadSample("unexpected_error", f"{type(error).__name__}: {error}"[:200]) from error


@dataclass(frozen=True, slots=True)
class Row:
    """One image with its cleaned captions. `bad`: a reason, None when the row is good and has what was needed of it.

    `url` and `detail` are for people and files: whatever secrets they are given are not kept.
    """

    key: str
    image: bytes | None
    captions: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    bad: str | None = None
    detail: str = ""
    url: str = ""
    weights: tuple[float, ...] = ()
    """Chances of the captions to be drawn, up to a common factor; empty = equal."""
    notes: tuple[str, ...] = ()
    """What is to be counted of a row that is good all the same: for each caption left out, why; for each member of a
    tar with several dots in its name, where the key ends."""

    def __post_init__(self) -> None:
        for name in ("url", "detail"):
            object.__setattr__(self, name, redact(getattr(self, name)))


def read_piece(piece: Piece, columns: ColumnsConfig, needs: Needs = "pair") -> Iterator[Row]:
    """Rows of a piece in the shard's order.

    Damaged content never raises, it gives rows with `bad` set; what nobody has foreseen gives one without a key, which
    stands for all that follow. A disk or store that fails raises OSError.
    """
    try:
        yield from _read_piece(piece, columns, needs)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        detail = f"{type(error).__name__}: {error}"[:200]
        yield Row("", None, (), bad="unexpected_error", detail=detail, url=piece.url)


def _read_piece(piece: Piece, columns: ColumnsConfig, needs: Needs) -> Iterator[Row]:
    shard = Shard(piece.url, 0)
    with open_shard(piece.url) as file:
        if shard.is_tar:
            with unpack(file) if shard.is_gzipped else nullcontext(file) as archive:
                layout = _layout(piece.url, archive.seek(0, io.SEEK_END), columns.key_ends)
                for sample in read_tar(archive, piece.part, piece.parts, layout):
                    yield _checked(piece.url, sample.key, sample.bad, sample.detail, sample, columns, needs)
        else:
            seen: set[str] = set()
            for row in read_parquet(file, piece.part, piece.parts, columns):
                again = row.bad is None and row.key in seen
                seen.add(row.key)
                bad, detail = ("duplicate_key", "an earlier row has this key") if again else (row.bad, row.detail)
                yield _checked(piece.url, row.key, bad, detail, row, columns, needs)


@lru_cache(maxsize=1024)
def _layout(url: str, size: int, key_ends: KeyEnds) -> Layout:
    """What is known of a tar in this process: pieces need not find it out again."""
    return Layout(None if key_ends == "auto" else key_ends)


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


def read_patiently(piece: Piece, columns: ColumnsConfig, needs: Needs = "pair", *, known: int = 0) -> list[Row]:
    """All rows of a piece, for training, which goes on without those that a failing disk or store keeps back.

    What was read is kept and the rest, as many rows as the plan expects of the piece, are bad rows: a lost shard weighs
    in the run's account what its samples would have.

    Args:
        known: rows that were read before, of which some were taken; at least one row more is bad.
    """
    rows: list[Row] = []
    lost: Row | None = None
    try:
        rows.extend(read_retrying(piece, columns, needs))
        if rows and rows[-1].bad == "unexpected_error" and not rows[-1].key:
            lost = rows.pop()
    except OSError as error:
        lost = Row("", None, (), bad="shard_unreadable", detail=str(error)[:200], url=piece.url)
    if lost:
        rows += [lost] * (max(piece.rows, len(rows) + 1, known + 1) - len(rows))
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
            with one_sample():
                return _good(url, key, source, columns, needs)
        except BadSample as error:
            bad, detail = cause(source, error)
    return Row(key, None, (), bad=bad, detail=detail, url=url)


def _good(url: str, key: str, source: TarSample | ParquetRow, columns: ColumnsConfig, needs: Needs) -> Row:
    """The row with what is needed of it; raises BadSample."""
    image = None if needs == "text" else _image(source)
    try:
        groups, meta = _texts(source, columns.captions_from)
        texts = _captions(groups, not_text="bad_json" if isinstance(source, TarSample) else "missing_caption")
    except BadSample:
        if needs != "image":
            raise
        texts, meta = Texts(()), {}
    notes = (*texts.notes, *source.notes) if isinstance(source, TarSample) else texts.notes
    return Row(key, image, texts.captions, meta, url=url, weights=texts.weights, notes=notes)


def cause(source: TarSample | ParquetRow, error: BadSample) -> tuple[str, str]:
    """Reason and detail: where a tar's member is missing, why it is."""
    kinds = {"missing_image": IMAGE_EXTENSIONS, "missing_caption": TEXT_EXTENSIONS, "missing_class": TEXT_EXTENSIONS}
    if isinstance(source, TarSample):
        for extension, why in source.lacking.items():
            wanted = kinds.get(error.reason, ())
            if wanted and (not extension or extension.rpartition(".")[2] in wanted):
                return why
    return error.reason, error.detail


@dataclass(frozen=True, slots=True)
class Texts:
    """Captions cleaned, with their weights (none where all are equal) and why others were left out."""

    captions: tuple[str, ...]
    weights: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


Groups = list[tuple[float, list[Any]]]
"""What stands in one field each, with the field's chance to be drawn from."""


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
    meta = _document(document) if document is not None else {}
    if not fields:
        groups: Groups = [(1.0, [*listed(text), *_captions_of(meta)])]
    else:
        groups = [
            (chance, [text] if name == "txt" and text is not None else listed(meta.pop(name, None)))
            for name, chance in fields.items()
        ]
    return groups, _storable(meta)


def _captions_of(document: dict[str, Any]) -> list[Any]:
    """Takes the captions out of a sample's json; what is left is its meta data."""
    return [one for name in ("captions", "caption", "text") for one in listed(document.pop(name, None))]


def _storable(value: Any) -> Any:
    """The value with `?` for halves of surrogate pairs, which no file can hold."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_storable(name): _storable(one) for name, one in value.items()}
    return [_storable(one) for one in value] if isinstance(value, list) else value


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSample("bad_json", str(error)[:200]) from error
    if not isinstance(document, dict):
        raise BadSample("bad_json", f"an object is expected, not {type(document).__name__}")
    return document


def _parquet_texts(row: ParquetRow, fields: Mapping[str, float]) -> tuple[Groups, dict[str, Any]]:
    document = dict(row.document)
    if not fields:
        groups: Groups = [(1.0, [*listed(row.captions), *_captions_of(document)])]
    else:
        values = row.captions or {}
        groups = [
            (chance, [*listed(values.get(name)), *listed(document.pop(name, None))]) for name, chance in fields.items()
        ]
    return groups, _storable({**row.meta, **document})


def _member(members: dict[str, bytes], extensions: Sequence[str]) -> bytes | None:
    """The member with the first of `extensions`; failing that one that ends in it, as in `photo.final.jpg`."""
    exact = (members[extension] for extension in extensions if extension in members)
    ending = (data for name, data in members.items() if name.rpartition(".")[2] in extensions)
    return next(exact, next(ending, None))


def listed(value: Any) -> list[Any]:
    """What a field holds, be it one value or a list, also of lists; without those that are null."""
    if isinstance(value, list | tuple):
        return [one for part in value for one in listed(part)]
    return [] if value is None else [value]


def usable_captions(found: Iterable[Any]) -> Texts:
    """Cleaned, those that can be captions and say something, each once, in order.

    Raises:
        BadSample: none is left: why the first could not be used, or empty_caption or missing_caption.
    """
    return _captions([(1.0, list(found))], not_text="caption_not_text")


def _captions(groups: Groups, *, not_text: str) -> Texts:
    """See `usable_captions`. `not_text`: the reason where all are of another type."""
    weights: dict[str, float] = {}
    faults: list[tuple[str, str]] = []
    for chance, found in groups:
        texts = [cleaned(value) for value in found]
        faults += [fault for _, fault in texts if fault]
        said = dict.fromkeys(text for text, fault in texts if text and not fault)
        for text in said:
            weights[text] = weights.get(text, 0.0) + chance / len(said)
    if not weights and faults:
        reason, detail = faults[0]
        raise BadSample(not_text if reason == "caption_not_text" else reason, detail)
    if not weights:
        raise BadSample("empty_caption" if any(found for _, found in groups) else "missing_caption")
    notes = tuple(reason for reason, _ in faults)
    return Texts(tuple(weights), tuple(weights.values()) if len(groups) > 1 else (), notes)

"""Pictures that lie in files of their own: a list of them, kept as a Parquet file that tasks read in parts."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.fernet import Fernet

from ito_ray import strict_json
from ito_ray.data.captions import fault_of, is_unicode
from ito_ray.data.prepare.fetch import fetch, is_remote
from ito_ray.data.prepare.kept import Kept, keep, read_kept
from ito_ray.data.prepare.web import DEFAULT_POLICY, FetchPolicy
from ito_ray.data.rows import BadSample, Needs, Row, Texts, one_sample, usable_captions
from ito_ray.data.shards import public_url
from ito_ray.errors import UnreadableError
from ito_ray.redact import redact

ROWS_PER_PIECE = 512
_AT_ONCE = 16
"""Files fetched at a time by one task."""
_SEALED = "fernet:"
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("text", pa.string()),
        ("meta", pa.string()),
        ("bad", pa.string()),
        ("detail", pa.string()),
        ("notes", pa.list_(pa.string())),
    ]
)


@dataclass(slots=True)
class Listed:
    """One input. `image` and `text` (a file with one caption) are addresses; `bad` says why it cannot be used."""

    key: str
    image: str = ""
    captions: list[str] = field(default_factory=list)
    text: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    bad: str | None = None
    detail: str = ""
    notes: list[str] = field(default_factory=list)
    """Why captions were left out, as in `Row`."""


@dataclass(frozen=True)
class ListedSource:
    """A listing on disk; piece n is its n-th row group.

    Addresses with a password or a signature lie in it encrypted. Their key is here, so it ends with the command.
    """

    path: str
    pieces: int
    fingerprint: str
    notes: Mapping[str, int]
    policy: FetchPolicy = DEFAULT_POLICY
    key: bytes = field(default_factory=Fernet.generate_key, repr=False)

    @property
    def scattered(self) -> bool:
        """Every picture is a file."""
        return True

    @staticmethod
    def write(
        rows: Iterable[Listed],
        path: Path,
        notes: Mapping[str, int],
        salt: str = "",
        policy: FetchPolicy = DEFAULT_POLICY,
    ) -> ListedSource:
        """Keep the listing at `path`. `salt` is what else tells the inputs apart."""
        digest = hashlib.sha256(salt.encode(errors="surrogateescape"))
        pieces = 0
        partial = path.with_suffix(".partial")
        key = Fernet.generate_key()
        with pq.ParquetWriter(partial, _SCHEMA, compression="zstd") as writer:
            for group in _batched(map(_encodable, rows), ROWS_PER_PIECE):
                columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
                for row in group:
                    meta = strict_json.dumps(row.meta, ensure_ascii=False, sort_keys=True)
                    last = (meta, row.bad, redact(row.detail), row.notes)
                    known = (row.key, public_url(row.image), row.captions, public_url(row.text), *last)
                    values = (row.key, _seal(row.image, key), row.captions, _seal(row.text, key), *last)
                    digest.update(json.dumps(known).encode())
                    for column, value in zip(columns.values(), values, strict=True):
                        column.append(value)
                writer.write_table(pa.table(columns, schema=_SCHEMA), row_group_size=ROWS_PER_PIECE)
                pieces += 1
        partial.replace(path)
        return ListedSource(str(path), pieces, digest.hexdigest(), dict(notes), policy, key)

    def read(
        self, piece: int, places: Collection[int] | None = None, needs: Needs = "pair"
    ) -> Iterator[tuple[int, Row]]:
        """Rows of one row group, each picture and caption file opened in turn.

        Raises:
            UnreadableError: the disk or store fails; what is done stays, and the same command goes on.
        """
        table = self._file.read_row_group(piece)
        chosen = range(table.num_rows) if places is None else sorted(places)
        listed = [self._listed(values) for values in table.take(list(chosen)).to_pylist()]
        kept = Path(self.path).with_name(f"fetched-{piece:07d}.parquet")
        rows: Iterator[Row]
        try:
            if self.policy.keep and kept.is_file():
                rows = map(_known, listed, read_kept(kept, chosen))
            else:
                rows = load_all(listed, needs, self.policy)
                if self.policy.keep and places is None and any(is_remote(one.image) for one in listed):
                    rows = keep(rows, kept)
            yield from zip(chosen, rows, strict=True)
        except OSError as error:
            raise UnreadableError(
                f"{str(error)[:300]}. Run the same command again when the disk or store answers: it goes on where it "
                "stopped."
            ) from error

    def _listed(self, values: dict[str, Any]) -> Listed:
        values |= {name: _unseal(values[name], self.key) for name in ("image", "text")}
        return Listed(meta=json.loads(values.pop("meta")), **values)

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}


def load_all(rows: Iterable[Listed], needs: Needs, policy: FetchPolicy) -> Iterator[Row]:
    """`load` of each in order; of those that are not on this machine several at a time."""
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")
    ahead: deque[Callable[[], Row]] = deque()
    try:
        for listed in rows:
            one = partial(load, listed, needs, policy)
            ahead.append(pool.submit(one).result if is_remote(listed.image or listed.text) else one)
            if len(ahead) >= _AT_ONCE:
                yield ahead.popleft()()
        while ahead:
            yield ahead.popleft()()
    finally:
        pool.shutdown(cancel_futures=True)


def _known(listed: Listed, kept: Kept) -> Row:
    """The input as it was when it was fetched."""
    if kept.bad is not None:
        return Row(listed.key, None, (), bad=kept.bad, detail=kept.detail, url=listed.image)
    texts = usable_captions(listed.captions)
    notes = (*listed.notes, *texts.notes)
    return Row(listed.key, kept.image, texts.captions, dict(listed.meta), url=listed.image, notes=notes)


def load(listed: Listed, needs: Needs = "pair", policy: FetchPolicy = DEFAULT_POLICY) -> Row:
    """The input with its bytes and its cleaned captions, or with the reason why not.

    Raises:
        OSError: the disk or store fails; whatever concerns this file alone is a reason.
    """
    try:
        if listed.bad is not None:
            raise BadSample(listed.bad, listed.detail)
        with one_sample():
            texts = _captions(listed, needs, policy)
            image = None if needs == "text" else fetch(listed.image, policy)
        if image == b"":
            raise BadSample("missing_image", "the file is empty")
    except BadSample as error:
        return Row(listed.key, None, (), bad=error.reason, detail=error.detail, url=listed.image or listed.text)
    notes = (*listed.notes, *texts.notes)
    return Row(listed.key, image, texts.captions, dict(listed.meta), url=listed.image or listed.text, notes=notes)


def _captions(listed: Listed, needs: Needs, policy: FetchPolicy) -> Texts:
    try:
        return usable_captions([*listed.captions, *([fetch(listed.text, policy)] if listed.text else [])])
    except BadSample:
        if needs == "image":
            return Texts(())
        raise


def _seal(url: str, key: bytes) -> str:
    return url if redact(url) == url else _SEALED + Fernet(key).encrypt(url.encode()).decode()


def _unseal(url: str, key: bytes) -> str:
    return Fernet(key).decrypt(url.removeprefix(_SEALED)).decode() if url.startswith(_SEALED) else url


def _encodable(row: Listed) -> Listed:
    """Bytes that are not UTF-8 come as lone surrogates (file names, tables), which Arrow cannot hold."""
    wrong = next((text for text in (row.key, row.image, row.text) if not is_unicode(text)), None)
    if wrong is not None:
        return Listed(ascii(row.key)[1:-1], bad="name_not_utf8", detail=ascii(wrong)[:200])
    faults = [fault_of(text) for text in row.captions]
    if not any(faults):
        return row
    kept = [text for text, fault in zip(row.captions, faults, strict=True) if not fault]
    reason, detail = next(fault for fault in faults if fault)
    if row.bad is None and not kept and not row.text:
        return replace(row, captions=[], bad=reason, detail=detail)
    return replace(row, captions=kept, notes=[*row.notes, *(fault[0] for fault in faults if fault)])


def _batched(rows: Iterable[Listed], size: int) -> Iterator[list[Listed]]:
    group: list[Listed] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group

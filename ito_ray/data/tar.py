"""Reading a tar of samples that may be damaged, whole or in pieces.

Python's `tarfile` takes a damaged header in the middle for the end of the archive and says nothing. This reader walks
the 512-byte headers itself (ustar, GNU long names, pax `path` and `size`), reports what is wrong, and goes on at the
next valid header.

A tar has no index, so it is cut by bytes, like Hadoop's input splits. Consecutive members of one key are a *run*. Let
r(x) be the run of the first member whose header starts at or after byte x. The piece [S, E) owns the runs after r(S) up
to and with r(E); the first piece owns run 0 too. Two neighbours agree on r(x) without talking, so that every run
belongs to exactly one piece. Damage belongs to the owner of the run before it.
"""

from __future__ import annotations

import gzip
import io
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from ito_ray.data.file_kinds import IMAGE_EXTENSIONS

BLOCK = 512
_CHUNK, _CHUNK_BEYOND = 8 << 20, 256 << 10
"""Bytes asked of the store at a time within the piece and beyond it; a request a header would be thousands of trips."""
_LOOK_BACK = 64 << 10
"""A piece starts this much early, so that a long name whose header lies just before its start is known."""
_RECORD = 10_240
"""What an empty archive is padded to."""
_WITHOUT_DATA = b"123456"
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


@dataclass(frozen=True, slots=True)
class TarSample:
    """Members of one sample by extension, or what went wrong (`bad`: a reason of rows.py, `detail`: free text)."""

    key: str
    members: dict[str, bytes]
    bad: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Member:
    at: int
    key: str
    extension: str
    data: bytes


@dataclass(frozen=True, slots=True)
class _Damage:
    reason: str
    detail: str
    key: str = ""


@dataclass(slots=True)
class _Group:
    """One sample in the making. `before`, `inside`, `after`: damage met around its members."""

    key: str | None
    last: int = 0
    members: dict[str, bytes] = field(default_factory=dict)
    before: list[_Damage] = field(default_factory=list)
    inside: list[_Damage] = field(default_factory=list)
    after: list[_Damage] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        """Has an image and something that may hold captions; the end of the archive (key None) lacks nothing."""
        extensions = {name.rpartition(".")[2] for name in self.members}
        return self.key is None or (
            not extensions.isdisjoint(IMAGE_EXTENSIONS) and not extensions.isdisjoint(("txt", "json"))
        )


def read_tar(file: BinaryIO, part: int, parts: int) -> Iterator[TarSample]:
    """Samples of piece `part` of `parts`, in the file's order; damage comes as samples with `bad` set.

    Args:
        file: seekable; read in large chunks from the piece's start.
    """
    size = file.seek(0, io.SEEK_END)
    start, end = (_boundary(size, cut, parts) for cut in (part, part + 1))
    source = _Source(file, max(0, start - _LOOK_BACK), end)
    walk = _Walk(source, size, start, None if part == 0 else end)
    owned = part == 0
    skipped: str | None = None
    previous = _Group(None)
    past_end = False
    seen: set[str] = set()
    for group in _groups(iter(walk)):
        ours, new_run = owned, group.key != previous.key
        if new_run:
            if not owned and skipped is None and part:
                skipped = group.key
            else:
                owned = not past_end and group.key is not None
        if ours and previous.intact and group.intact:
            yield from _rows(group.before)
        if new_run and past_end:
            return
        if owned and group.key is not None:
            yield _sample(group, group.key, seen)
            if group.intact:
                yield from _rows(group.inside)
        past_end = past_end or (part + 1 < parts and group.last >= end)
        previous = group


def unpack(file: BinaryIO, *, most: int | None = None) -> BinaryIO:
    """The unpacked bytes of a gzip file, up to its end, to damage, or to `most`, in a nameless file on disk.

    A compressed tar cannot be read from the middle, so every piece of it costs unpacking it whole.
    """
    unpacked = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115  # the caller closes it
    packed = gzip.GzipFile(fileobj=file)
    try:
        while (most is None or unpacked.tell() < most) and (chunk := packed.read1(_CHUNK_BEYOND)):
            unpacked.write(chunk)
    except (zlib.error, EOFError, gzip.BadGzipFile):
        pass  # the reader finds the tar cut here, and says so
    return unpacked


def mean_sample_bytes(file: BinaryIO, *, most: int = 16 << 20, samples: int = 64) -> float | None:
    """Bytes from one sample's first header to the next one's, averaged over the head of the file; None if no sample."""
    size = file.seek(0, io.SEEK_END)
    found, first, last = 0, 0, 0
    key: str | None = None
    for event in _Walk(_Source(file, 0, most), size):
        if isinstance(event, _Damage) or event.key == key:
            continue
        found, first, last, key = found + 1, first if found else event.at, event.at, event.key
        if found > samples or event.at > most:
            break
    if found == 0:
        return None
    return (last - first) / (found - 1) if found > 1 else float(size)


def _boundary(size: int, cut: int, parts: int) -> int:
    return size if cut == parts else size * cut // parts // BLOCK * BLOCK


def _rows(damages: list[_Damage]) -> Iterator[TarSample]:
    for damage in damages:
        yield TarSample(damage.key, {}, damage.reason, damage.detail)


def _sample(group: _Group, key: str, seen: set[str]) -> TarSample:
    touched = [*group.before, *group.inside, *group.after]
    if touched and not group.intact:
        return TarSample(key, {}, touched[0].reason, touched[0].detail)
    if key in seen:
        return TarSample(key, {}, "duplicate_key", "an earlier sample of the shard has this key")
    seen.add(key)
    return TarSample(key, group.members)


def _groups(walk: Iterator[_Member | _Damage]) -> Iterator[_Group]:
    """Members gathered by key; the same extension twice begins a new sample. Ends with a group of key None."""
    group = _Group(None)
    pending: list[_Damage] = []
    for event in walk:
        if isinstance(event, _Damage):
            pending.append(event)
        elif event.key == group.key and event.extension not in group.members:
            group.members[event.extension] = event.data
            group.last = event.at
            group.inside += pending
            pending = []
        else:
            if group.key is not None:
                group.after = pending
                yield group
            group = _Group(event.key, event.at, {event.extension: event.data}, before=pending)
            pending = []
    if group.key is not None:
        group.after = pending
        yield group
    yield _Group(None, before=pending)


class _Source:
    """Sequential reader from `position`; takes no more than needed beyond `until`."""

    def __init__(self, file: BinaryIO, position: int, until: int) -> None:
        self.position = position
        self._file = file
        self._until = until
        self._buffer = b""
        self._offset = 0
        file.seek(position)

    def read(self, count: int) -> bytes:
        """`count` bytes, fewer only at the end of the file."""
        if len(self._buffer) - self._offset < count:
            chunks = [self._buffer[self._offset :]]
            missing = count - len(chunks[0])
            ahead = min(_CHUNK, max(_CHUNK_BEYOND, self._until - self.position))
            while missing > 0 and (chunk := self._file.read(max(missing, ahead))):
                chunks.append(chunk)
                missing -= len(chunk)
            self._buffer, self._offset = b"".join(chunks), 0
        data = self._buffer[self._offset : self._offset + count]
        self._offset += len(data)
        self.position += len(data)
        return data

    def skip(self, count: int) -> None:
        """Go on `count` bytes without holding them."""
        if len(self._buffer) - self._offset >= count:
            self._offset += count
        else:
            self._buffer, self._offset = b"", 0
            self._file.seek(self.position + count)
        self.position += count


class _Walk:
    """Members with a header at or after `start`, and damage, in order.

    A piece other than the first begins in the midst of something and gives up at `give_up` when it has met no member by
    then: it owns nothing.
    """

    def __init__(self, source: _Source, size: int, start: int = 0, give_up: int | None = None) -> None:
        self._source, self._size, self._start, self._give_up = source, size, start, give_up
        self._synced = give_up is None
        self._met = False
        self._ended = False
        self._head: bytes | None = None
        """First block of the file when it is no header: damage, or no tar at all; known at the next header."""
        self._name: str | None = None
        self._length: int | None = None
        """Name and size that an extended header announced for the next member."""

    def __iter__(self) -> Iterator[_Member | _Damage]:
        first = self._give_up is None
        while self._met or self._give_up is None or self._source.position < self._give_up:
            at = self._source.position
            block = self._source.read(BLOCK)
            if len(block) < BLOCK:
                yield from self._at_end()
                return
            if not block.strip(b"\0"):
                self._ended = self._ended or self._synced
                continue
            header = _parse(block)
            if header is None:
                if first and not self._met:
                    self._head = self._head or block
                elif self._synced:
                    yield _Damage("tar_damaged", f"no valid header at byte {at}")
                self._synced = False
                continue
            if self._head is not None and not self._met:
                yield _Damage("tar_damaged", "the first header is not valid")
            self._synced, self._ended, self._met = True, False, self._met or at >= self._start
            event = self._member(at, *header)
            if event is not None:
                yield event
            if isinstance(event, _Damage):
                return

    def _member(self, at: int, kind: bytes, name: str, length: int) -> _Member | _Damage | None:
        """What follows a header: a sample's member, None for anything else, or the file's end in the midst of it."""
        if kind in b"Lx":
            data = self._source.read(_padded(length))[:length]
            path, size = _pax(data) if kind == b"x" else (data, None)
            self._name = self._name if path is None else _text(path)
            self._length = self._length if size is None else size
            return None
        name, length = self._name or name, length if self._length is None else self._length
        self._name = self._length = None
        place = _split(name) if kind in b"0\x007" else None
        if kind in _WITHOUT_DATA:
            length = 0
        missing = self._source.position + length - self._size
        if missing > 0:
            detail = f"the file ends {missing} bytes before the end of {name!r}"
            return _Damage("tar_truncated", detail, place[0] if place else "")
        if place is None or at < self._start:
            self._source.skip(_padded(length))
            return None
        if not _wanted(place[1]):
            self._source.skip(_padded(length))
            return _Member(at, *place, b"")
        return _Member(at, *place, self._source.read(_padded(length))[:length])

    def _at_end(self) -> Iterator[_Damage]:
        first = self._give_up is None
        if first and not self._met and (self._head is not None or not BLOCK <= self._size <= _RECORD):
            yield _Damage("not_a_tar", _guess(self._head or b"", self._size))
        elif self._synced and not self._ended:
            yield _Damage("tar_truncated", "the mark of the archive's end is missing")


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _guess(head: bytes, size: int) -> str:
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return f"{name} data: unpack it to a plain .tar"
    return f"no valid header in {size} bytes"


def _parse(block: bytes) -> tuple[bytes, str, int] | None:
    """(type, name, size) of a header, None when its checksum does not hold."""
    checksum = _number(block[148:156])
    if checksum is None or sum(block) - sum(block[148:156]) + 8 * 32 != checksum:
        return None
    length = _number(block[124:136])
    if length is None:
        return None
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345] != 0:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return block[156:157], _text(name), length


def _number(digits: bytes) -> int | None:
    """Octal text, or GNU's big-endian form when the first bit is set."""
    if digits[0] & 0x80:
        return int.from_bytes(digits[1:], "big")
    try:
        return int(digits.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return None


def _pax(data: bytes) -> tuple[bytes | None, int | None]:
    """`path` and `size` of a pax extended header: records "<length> <key>=<value>\\n"."""
    path: bytes | None = None
    size: int | None = None
    while data:
        digits, _, _ = data.partition(b" ")
        if not digits.isdigit() or not 0 < int(digits) <= len(data):
            break
        key, _, value = data[len(digits) + 1 : int(digits) - 1].partition(b"=")
        if key == b"path":
            path = value
        elif key == b"size" and value.isdigit():
            size = int(value)
        data = data[int(digits) :]
    return path, size


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "backslashreplace")


def _split(name: str) -> tuple[str, str] | None:
    """(key, extension) at the first dot of the base name; None for hidden files and names without a dot."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or not extension:
        return None
    return folder + slash + stem, extension.lower()


def _wanted(extension: str) -> bool:
    return extension.rpartition(".")[2] in (*IMAGE_EXTENSIONS, "txt", "json", "cls")

"""Members of a tar that may be damaged, one header after the other.

Python's `tarfile` takes a damaged header in the middle for the end of the archive and says nothing. This walk reads the
512-byte headers itself (ustar, GNU long names, pax `path` and `size`), reports what is wrong, and goes on at the next
valid header.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ito_ray.data.file_kinds import IMAGE_EXTENSIONS, what_it_is
from ito_ray.data.foreign import foreign_part

TEXT_EXTENSIONS = ("txt", "json", "cls")
BLOCK = 512
_CHUNK, _CHUNK_BEYOND = 8 << 20, 256 << 10
"""Bytes asked of the store at a time within the piece and beyond it; a request a header would be thousands of trips."""
_RECORD = 10_240
"""What an empty archive is padded to."""
_LONGEST_NAME = 1 << 20
"""Bytes of an extended header: what claims more is no name."""
_MOST_DIGITS = 20
_LINKS = {b"1": ("hard", "--hard-dereference"), b"2": ("symbolic", "--dereference")}
_WITHOUT_DATA = b"123456"


@dataclass(frozen=True, slots=True)
class Member:
    """A member that a sample may have. `fault`: reason and detail when its content cannot be had from here."""

    at: int
    name: str
    data: bytes
    fault: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Foreign:
    """A file that a system or program has left, and that is nobody's sample."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A place that cannot be read; `name` of the member, where it is known."""

    reason: str
    detail: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class _Header:
    kind: bytes
    name: str
    length: int
    link: str
    extended: bool
    """More blocks with the places of an old GNU sparse file follow."""


class Source:
    """Sequential reader from `position`; takes no more than needed beyond `until`. Others may use the file as well."""

    def __init__(self, file: BinaryIO, position: int, until: int) -> None:
        self.position = position
        self._file = file
        self._until = until
        self._buffer = b""
        self._offset = 0

    def read(self, count: int) -> bytes:
        """`count` bytes, fewer only at the end of the file."""
        if len(self._buffer) - self._offset < count:
            chunks = [self._buffer[self._offset :]]
            missing = count - len(chunks[0])
            ahead = min(_CHUNK, max(_CHUNK_BEYOND, self._until - self.position))
            self._file.seek(self.position + len(chunks[0]))
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
        self.position += count


class Walk:
    """Members with a header at or after `start`, and damage, in order.

    A piece other than the first begins in the midst of something and gives up at `give_up` when it has met no member by
    then: it owns nothing.

    Args:
        names_only: pass over all content.
    """

    def __init__(
        self, source: Source, size: int, start: int = 0, give_up: int | None = None, *, names_only: bool = False
    ) -> None:
        self._source, self._size, self._start, self._give_up = source, size, start, give_up
        self._names_only = names_only
        self._synced = give_up is None
        self.met = False
        """Whether there was a header at or after `start`."""
        self._ended = False
        self._head: bytes | None = None
        """First block of the file when it is no header: damage, or no tar at all; known at the next header."""
        self._beyond: Damage | None = None
        """A member that says it is longer than the file: cut off if no header follows, else its header is wrong."""
        self._name: str | None = None
        self._length: int | None = None
        self._sparse = False
        """What an extended header announced for the next member."""

    def __iter__(self) -> Iterator[Member | Foreign | Damage]:
        first = self._give_up is None
        while self.met or self._give_up is None or self._source.position < self._give_up:
            at = self._source.position
            block = self._source.read(BLOCK)
            if len(block) < BLOCK:
                self._head = self._head or block
                yield from self._at_end()
                return
            if not block.strip(b"\0"):
                self._ended = self._ended or self._synced
                continue
            header = _parse(block)
            if header is None:
                if first and not self.met:
                    self._head = self._head or block
                elif self._synced:
                    yield Damage("tar_damaged", f"no valid header at byte {at}")
                self._synced = False
                continue
            if self._head is not None and not self.met:
                yield Damage("tar_damaged", "the first header is not valid")
            if self._beyond:
                yield Damage("tar_damaged", f"{self._beyond.detail}, but others follow", self._beyond.name)
                self._beyond = None
            self._synced, self._ended, self.met = True, False, self.met or at >= self._start
            event = self._member(at, header)
            if event is not None:
                yield event

    def _member(self, at: int, header: _Header) -> Member | Foreign | Damage | None:
        """What follows a header: a sample's member, None for anything else, or damage."""
        if header.kind in b"LKxXg":
            return self._extended(at, header)
        name = (header.name if self._name is None else self._name).removeprefix("./")
        length = header.length if self._length is None else self._length
        sparse = self._sparse or header.kind == b"S"
        self._name, self._length, self._sparse = None, None, False
        while header.extended and (block := self._source.read(BLOCK)) and block[504:505] == b"\x01":
            pass
        if header.kind in _WITHOUT_DATA:
            length = 0
        ours = at >= self._start and is_member(name)
        if header.kind in _LINKS and ours:
            kind, option = _LINKS[header.kind]
            detail = f"{name!r} is a {kind} link to {header.link!r}: pack again with tar {option}"
            return Member(at, name, b"", ("tar_link", detail))
        missing = self._source.position + length - self._size
        if missing > 0:
            said = f"the file ends {missing} bytes before the end of {name!r}"
            self._beyond = Damage("tar_truncated", said, name if is_member(name) else "")
            self._synced = False
            return None
        if not ours or header.kind not in b"0\x007S" or sparse or self._names_only or not is_wanted(name):
            self._source.skip(_padded(length))
        if at >= self._start and foreign_part(name) and is_wanted(name) and header.kind in b"0\x007":
            return Foreign()
        if not ours or header.kind not in b"0\x007S":
            return None
        if sparse:
            return Member(at, name, b"", ("tar_sparse", f"{name!r} is a sparse file: pack again without --sparse"))
        if self._names_only or not is_wanted(name):
            return Member(at, name, b"")
        return Member(at, name, self._source.read(_padded(length))[:length])

    def _extended(self, at: int, header: _Header) -> Damage | None:
        """Take what an extended header says of the next member."""
        if header.length > _LONGEST_NAME:
            self._synced = False
            return Damage("tar_damaged", f"a name of {header.length} bytes at byte {at}")
        data = self._source.read(_padded(header.length))[: header.length]
        if header.kind == b"L":
            self._name = _text(data)
        elif header.kind in b"xX":
            records = _pax(data)
            self._sparse = any(key.startswith(b"GNU.sparse.") for key in records)
            path = records.get(b"GNU.sparse.name", records.get(b"path"))
            self._name = self._name if path is None else _text(path)
            size = records.get(b"size", b"")
            self._length = int(size) if size.isdigit() and len(size) <= _MOST_DIGITS else self._length
        return None

    def _at_end(self) -> Iterator[Damage]:
        first = self._give_up is None
        if first and not self.met and (self._head or not BLOCK <= self._size <= _RECORD):
            yield Damage("not_a_tar", guess(self._head or b"", self._size))
        elif self._beyond:
            yield self._beyond
        elif self._synced and not self._ended:
            yield Damage("tar_truncated", "the mark of the archive's end is missing")


def is_member(name: str) -> bool:
    """Whether a sample may have it: a file with a dot in its name that is neither hidden nor foreign."""
    stem, dot, extension = name.rpartition("/")[2].partition(".")
    return bool(stem and dot and extension) and not foreign_part(name)


def is_wanted(name: str) -> bool:
    """Whether its content is looked at."""
    return name.rpartition(".")[2].lower() in (*IMAGE_EXTENSIONS, *TEXT_EXTENSIONS)


def guess(head: bytes, size: int) -> str:
    """What a file is that is no tar, and what to do."""
    what = what_it_is(head) if head else None
    return f"no valid header in {size} bytes" + (f": {what}, a plain .tar is needed" if what else "")


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _parse(block: bytes) -> _Header | None:
    """A header, None when its checksum does not hold or a number is none."""
    checksum = _number(block[148:156])
    if checksum is None or sum(block) - sum(block[148:156]) + 8 * 32 != checksum:
        return None
    length = _number(block[124:136])
    if length is None:
        return None
    kind = block[156:157]
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345] != 0:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    extended = kind == b"S" and block[482:483] == b"\x01"
    return _Header(kind, _text(name), length, _text(block[157:257].split(b"\0", 1)[0]), extended)


def _number(digits: bytes) -> int | None:
    """Octal text, or GNU's big-endian form when the first bit is set; None for what is negative or no number."""
    if digits[0] & 0x80:
        return None if digits[0] & 0x40 else int.from_bytes(bytes([digits[0] & 0x3F]) + digits[1:], "big")
    text = digits.strip(b"\0 ") or b"0"
    try:
        return int(text, 8) if text.isdigit() else None
    except ValueError:
        return None


def _pax(data: bytes) -> dict[bytes, bytes]:
    """Records "<length> <key>=<value>\\n" of a pax extended header."""
    records = {}
    while data:
        digits, _, _ = data.partition(b" ")
        if not digits.isdigit() or len(digits) > _MOST_DIGITS or not 0 < int(digits) <= len(data):
            break
        key, _, value = data[len(digits) + 1 : int(digits) - 1].partition(b"=")
        records[key] = value
        data = data[int(digits) :]
    return records


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "backslashreplace")

"""The text of a table: unpacked, decoded, in physical lines, whatever program and system wrote it."""

from __future__ import annotations

import codecs
import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from ito_ray.errors import ConfigError, DataError

_HEAD = 1 << 16
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_XZ = b"\xfd7zXZ\x00"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save it as CSV",
    b"PAR1": "a Parquet file: let its name end in .parquet",
    b"ARROW1": "an Arrow file: save it as Parquet",
    b"SQLite format 3": "an SQLite database: export the table as CSV",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with git lfs pull",
}
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class TableText:
    """A text file. `ending`: CR where old Mac programs wrote it; LF for all others, which may have a CR before it."""

    path: Path
    encoding: str
    ending: str

    @staticmethod
    def open(path: Path, encoding: str = "") -> TableText:
        """Find out how the text is written.

        Args:
            encoding: its name; empty = UTF-8, or UTF-16 or UTF-32 where the bytes say so.

        Raises:
            ConfigError: there is no such encoding.
            DataError: the file cannot be read, or is no text.
        """
        with _failures(path), _unpacked(path) as file:
            head = file.read(_HEAD)
        foreign = next((what for magic, what in _FOREIGN.items() if head.startswith(magic)), None)
        if foreign:
            raise DataError(f"{path} is no text but {foreign}.")
        encoding = _known(encoding) if encoding else _encoding_of(head)
        text = head.decode(encoding, "ignore")
        return TableText(path, encoding, "\r" if _ends_in_cr(text) else "\n")

    def lines(self) -> Iterator[str]:
        """Physical lines, each with `\\n` as its only line end.

        Bytes that the encoding does not have come as lone surrogates, to be told from good text where that is checked.

        Raises:
            DataError: the file ends too early or cannot be read.
        """
        # A surrogate cannot stand for a byte where characters have two or four.
        errors = "surrogatepass" if self.encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
        with _failures(self.path), _unpacked(self.path) as file:
            for line in io.TextIOWrapper(file, self.encoding, errors, self.ending):
                # Inside a line the other sign is white space; the csv module would take it for an end.
                yield line.rstrip("\r\n").replace("\r", " ").replace("\n", " ") + "\n"

    def read(self) -> str:
        """All of it. Raises DataError, see `lines`."""
        return "".join(self.lines())


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        magic = file.read(8)
    packed = next((name for start, name in _PACKED.items() if magic.startswith(start)), None)
    if magic.startswith(_XZ):
        with lzma.open(path) as unpacked:
            yield cast(BinaryIO, unpacked)
    elif packed:
        with pa.input_stream(str(path), compression=packed) as unpacked:
            yield cast(BinaryIO, unpacked)
    else:
        with path.open("rb") as file:
            yield file


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeError as error:
        raise DataError(f"{path} is not what its encoding says ({error}): give --encoding.") from error
    except (OSError, EOFError, lzma.LZMAError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read to its end: {str(error)[:200]}.") from error


def _known(encoding: str) -> str:
    try:
        "".encode(encoding)
        return codecs.lookup(encoding).name
    except (LookupError, UnicodeError, ValueError) as error:
        raise ConfigError(
            f"--encoding={encoding!r} is no encoding of text: give e.g. utf-8, utf-16, cp1252 or latin-1."
        ) from error


def _encoding_of(head: bytes) -> str:
    marked = next((name for mark, name in _BOMS if head.startswith(mark)), None)
    if marked:
        return marked
    # Without a mark: of text that is mostly ASCII, every second byte of UTF-16 is 0.
    even, odd = head[::2], head[1::2]
    for name, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if zeros and zeros.count(0) > len(zeros) // 2 and others.count(0) < len(others) // 8:
            return name
    return "utf-8"


def _ends_in_cr(text: str) -> bool:
    """Whether the first line that ends outside of quotes ends in CR alone."""
    quoted = False
    for at, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif not quoted and character == "\n":
            return False
        elif not quoted and character == "\r":
            return text[at + 1 : at + 2] != "\n"
    return "\r" in text and "\n" not in text

"""Finding shards: files, folders, globs and brace patterns, local or in an object store.

`s3://` and `gs://` are opened through Arrow, which needs no further package; its options may be given in the address,
e.g. `s3://bucket/*.tar?region=eu-west-1&endpoint_override=http://host:9000`. Every other scheme goes to fsspec.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, BinaryIO, cast

import pyarrow.fs
from braceexpand import braceexpand
from fsspec import AbstractFileSystem
from fsspec.core import has_magic, url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.spec import AbstractBufferedFile

from ito_ray.data import parquet, tar
from ito_ray.errors import DataError

GZIPPED = (".tar.gz", ".tgz")
COMPRESSED = (".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
SUFFIXES = (".tar", *GZIPPED, ".parquet")
_LISTING_THREADS = 32
"""Requests in flight while listing: each is one round trip to the store and no work here."""
_STAMPS = ("ETag", "etag", "md5Hash", "mtime", "LastModified")
"""What listings of different stores call the thing that changes with a file."""
_GZIPPED_HEAD = 16 << 20
"""Unpacked bytes from which the rows of a `.tar.gz` are estimated."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One `.tar`, `.tar.gz` or `.parquet` file; `size` in bytes, 0 where the server does not tell."""

    url: str
    size: int

    @property
    def is_tar(self) -> bool:
        return _plain(self.url).endswith((".tar", *GZIPPED))

    @property
    def is_gzipped(self) -> bool:
        """A tar that can only be read from its beginning."""
        return _plain(self.url).endswith(GZIPPED)


def open_fs(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of `url` and the path in it. Connections are kept for the life of the process."""
    fs, path, _ = _locate(url)
    return fs, path


class _StoreFile(io.RawIOBase):
    """A file whose every failure is an OSError with an errno, whatever the store's library raises.

    Arrow tells damaged content by an OSError without one (parquet.py), so the two cannot be mistaken.
    """

    def __init__(self, file: AbstractBufferedFile) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        with _failing_as_oserror():
            return bytes(self._file.read(size))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _failing_as_oserror():
            self._file.seek(offset, whence)
            return int(self._file.tell())

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _failing_as_oserror() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error


@contextmanager
def open_shard(url: str) -> Iterator[BinaryIO]:
    """The shard's bytes, seekable. A disk or store that fails raises OSError with an errno, now or on reading."""
    with _failing_as_oserror():
        fs, path = open_fs(url)
        file = _StoreFile(fs.open(path, "rb", cache_type="none"))
    with file:
        yield cast(BinaryIO, file)


def list_shards(patterns: Sequence[str], *, field: str) -> tuple[Shard, ...]:
    """All shards that `patterns` name, sorted by address, each once.

    A folder or glob takes its `.tar` and `.parquet` files (recursively, hidden ones left out) and passes over others;
    a file named outright must be one of the two.

    Raises:
        DataError: naming `field`, when a pattern matches nothing, a folder has no shard, a file is of another kind or
            a compressed tar, or all files are empty.
    """
    if not patterns:
        raise DataError(f"{field} is empty: give at least one .tar or .parquet file, folder or pattern.")
    urls = [url for pattern in patterns for url in expand_braces(pattern, field)]
    with ThreadPoolExecutor(min(_LISTING_THREADS, len(urls))) as pool:
        found = [shard for part in pool.map(partial(_expand, field=field), urls) for shard in part]
    shards = tuple(sorted(set(found), key=lambda shard: shard.url))
    if not any(shard.size for shard in shards) and all(_is_sized(shard) for shard in shards):
        raise DataError(
            f"{field}: every one of the {len(shards)} files found is 0 bytes long, e.g. {shards[0].url!r}: "
            "write or copy them again."
        )
    return shards


def mean_sample_bytes(shards: Iterable[Shard], *, tries: int = 8) -> float | None:
    """Bytes that a sample takes in a tar, headers included, from the head of the first readable tar; None if none."""
    for shard in [shard for shard in shards if shard.is_tar][:tries]:
        with open_shard(shard.url) as file:
            mean = _mean_of_gzipped(file) if shard.is_gzipped else tar.mean_sample_bytes(file)
        if mean is not None:
            return mean
    return None


def _mean_of_gzipped(file: BinaryIO) -> float | None:
    """Compressed bytes that a sample takes."""
    head, end = tar.unpack(file, most=_GZIPPED_HEAD), file.tell()
    with head:
        size, mean = head.seek(0, io.SEEK_END), tar.mean_sample_bytes(head)
    return mean * end / size if mean else None


def rows_in(shard: Shard, sample_bytes: float | None) -> float:
    """About how many rows the shard has; 0 when there is no telling.

    A tar is measured by its bytes (`sample_bytes` from `mean_sample_bytes`), a Parquet file by its footer. A Parquet
    file whose footer is damaged reports that when it is read.
    """
    if shard.is_tar:
        return shard.size / sample_bytes if sample_bytes else 0.0
    with open_shard(shard.url) as file:
        return float(parquet.count_rows(file))


def list_files(url: str, *, field: str) -> list[tuple[str, int, str]] | None:
    """(address, bytes, a stamp that changes with the content) of each visible file below a folder, sorted by address.

    None when `url` is no folder. Raises DataError, naming `field`, when it cannot be listed.
    """
    try:
        fs, path, to_url = _locate(url)
        if has_magic(path) or not fs.isdir(path):
            return None
        files = _files(fs, fs.info(path))
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{field}: {url!r} cannot be listed: {error}. Check address and credentials.") from error
    stamps = [str(next((file[name] for name in _STAMPS if file.get(name)), "")) for file in files]
    found = [
        (to_url(file["name"]), int(file.get("size") or 0), stamp) for file, stamp in zip(files, stamps, strict=True)
    ]
    return sorted(found)


def public_url(url: str) -> str:
    """The address without what may be secret: user, password and options."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = rest.split("?", 1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def expand_braces(pattern: str, field: str) -> list[str]:
    """All addresses that a brace pattern stands for. Raises DataError, naming `field`, for unbalanced braces."""
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{field}: {pattern!r} has unbalanced braces: write e.g. data/{{000..009}}.tar.") from error


def _expand(url: str, *, field: str) -> list[Shard]:
    """The shards of one address without braces."""
    try:
        fs, path, to_url = _locate(url)
        pattern = has_magic(path)
        entries = list(fs.glob(path, detail=True).values()) if pattern else [fs.info(path)]
    except FileNotFoundError:
        entries, pattern = [], True
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{field}: {url!r} cannot be listed: {error}. Check address and credentials.") from error
    if not entries:
        raise DataError(
            f"{field}: nothing matches {url!r}: give existing .tar or .parquet files, a folder of them, or a pattern."
        )
    if not pattern and entries[0]["type"] != "directory":
        _check_kind(url, field)
        return [_shard(entries[0], to_url)]
    files = [file for entry in entries for file in _files(fs, entry)]
    shards = [_shard(file, to_url) for file in files if _plain(file["name"]).endswith(SUFFIXES)]
    if not shards:
        compressed = [file["name"] for file in files if _plain(file["name"]).endswith(COMPRESSED)]
        hint = f"{compressed[0]!r} is compressed, unpack it first." if compressed else "expected .tar or .parquet."
        raise DataError(f"{field}: {url!r} holds {len(files)} files and no shard among them: {hint}")
    return shards


def _files(fs: AbstractFileSystem, entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The visible files of a listing's entry, all below it when it is a folder."""
    if entry["type"] != "directory":
        return [] if entry["name"].rpartition("/")[2].startswith(".") else [entry]
    root = entry["name"].rstrip("/") + "/"
    found: dict[str, dict[str, Any]] = fs.find(entry["name"], detail=True)
    return [
        file
        for name, file in found.items()
        if not any(part.startswith((".", "_")) for part in name.removeprefix(root).split("/"))
    ]


def _check_kind(url: str, field: str) -> None:
    name = _plain(url)
    if name.endswith(COMPRESSED):
        raise DataError(
            f"{field}: {url!r} is a compressed tar, which cannot be read from the middle: unpack it to a plain .tar "
            "(JPEGs do not shrink anyway)."
        )
    if not name.endswith(SUFFIXES):
        raise DataError(f"{field}: {url!r} is neither .tar nor .parquet: convert it, or name the right file.")


def _shard(entry: dict[str, Any], to_url: Callable[[str], str]) -> Shard:
    return Shard(to_url(entry["name"]), int(entry.get("size") or 0))


def _is_sized(shard: Shard) -> bool:
    """Whether a size of 0 means an empty file, and not a web server that keeps the size to itself."""
    return not shard.url.startswith(("http://", "https://"))


def _plain(url: str) -> str:
    """Lower-case address without its query."""
    return url.split("?", 1)[0].lower()


def _locate(url: str) -> tuple[AbstractFileSystem, str, Callable[[str], str]]:
    """File system, path in it, and the function from such a path back to an address that any machine can open."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme in ("s3", "gs", "gcs"):
        address, options = rest, ""
        if "=" in rest.rpartition("?")[2]:
            address, _, options = rest.rpartition("?")
        host, _, key = address.partition("/")
        query = f"?{options}" if options else ""
        user = host.rpartition("@")[0]
        prefix = f"{scheme}://{user}@" if user else f"{scheme}://"
        fs, bucket = _arrow_fs("gs" if scheme == "gcs" else scheme, host, query)
        return fs, f"{bucket}/{key}".rstrip("/"), lambda path: f"{prefix}{path}{query}"
    fs, path = url_to_fs(url)
    local = "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
    return fs, path, str if local else fs.unstrip_protocol


@lru_cache(maxsize=64)
def _arrow_fs(scheme: str, host: str, query: str) -> tuple[AbstractFileSystem, str]:
    fs, bucket = pyarrow.fs.FileSystem.from_uri(f"{scheme}://{host}{query}")
    return ArrowFSWrapper(fs, skip_instance_cache=True), bucket

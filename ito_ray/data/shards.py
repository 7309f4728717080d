"""Finding shards: files, folders, globs and brace patterns, local or in an object store.

`s3://` and `gs://` are opened through Arrow, which needs no further package; its options may be given in the address,
e.g. `s3://bucket/*.tar?region=eu-west-1&endpoint_override=http://host:9000`. Every other scheme goes to fsspec.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
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
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

from ito_ray.data import parquet, tar
from ito_ray.data.walk import PassedOver, is_folder, literal_part, local_path, match_local, walk
from ito_ray.errors import DataError
from ito_ray.redact import redact, remember, without_secrets

GZIPPED = (".tar.gz", ".tgz")
COMPRESSED = (".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
SUFFIXES = (".tar", *GZIPPED, ".parquet")
_LISTING_THREADS = 32
"""Requests in flight while listing: each is one round trip to the store and no work here."""
_GS_RETRY_SECONDS = 30
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


def file_name(url: str) -> str:
    """The last part of an address, without options and credentials."""
    return redact(url).rsplit("/", 1)[-1]


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


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a listing."""

    url: str
    size: int
    stamp: str = ""
    """Changes with the content."""


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

    A path that is there as it is written is no pattern, whatever signs its name has. A folder or glob takes its `.tar`
    and `.parquet` files (recursively, hidden and foreign ones left out) and passes over others; a file named outright
    must be one of the two.

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


def list_files(url: str, *, field: str) -> list[Found] | None:
    """Each visible file below a folder, sorted by address; None when `url` is no folder.

    Raises:
        DataError: naming `field`, when it cannot be listed.
    """
    with _listing(url, field):
        path = local_path(url)
        if path is not None:
            return _below(path) if is_folder(path) else None
        fs, path, to_url = _locate(url)
        if not fs.isdir(path):
            return None
        passed = PassedOver()
        files = _remote_files(fs, fs.info(path), to_url, passed)
        passed.report(public_url(url))
        return sorted(files, key=lambda file: file.url)


def shards_among(files: Sequence[Found], passed: PassedOver) -> list[Shard]:
    """The shards of a listing.

    A Parquet file without pictures beside tars, or beside a folder of its name, is none: img2dataset reads and writes
    such ones.
    """
    shards = [Shard(file.url, file.size) for file in files if _plain(file.url).endswith(SUFFIXES)]
    tables = [shard for shard in shards if not shard.is_tar]
    folders = {file.url.rpartition("/")[0] for file in files}
    doubtful = tables if len(tables) < len(shards) else [one for one in tables if _stem(one.url) in folders]
    if not doubtful:
        return shards
    with ThreadPoolExecutor(min(_LISTING_THREADS, len(doubtful))) as pool:
        lacking = {one for one, holds in zip(doubtful, pool.map(_holds_pictures, doubtful), strict=True) if not holds}
    for shard in doubtful:
        if shard in lacking:
            passed.add("Parquet files of metadata", public_url(shard.url).rpartition("/")[2])
    return [shard for shard in shards if shard not in lacking]


def public_url(url: str) -> str:
    """The address without what may be secret: user, password and options."""
    scheme, separator, rest = without_secrets(url).partition("://")
    return f"{scheme}://{rest.split('?', 1)[0]}" if separator else url


def expand_braces(pattern: str, field: str) -> list[str]:
    """All addresses that a brace pattern stands for; the part of a path that is there as it is written is no pattern.

    Raises:
        DataError: naming `field`, for unbalanced braces.
    """
    path = local_path(pattern)
    start = literal_part(path) if path is not None else ""
    rest = (pattern if path is None else path).removeprefix(start)
    if "{" not in rest:  # else backslashes would go
        return [pattern]
    try:
        return [start + one for one in braceexpand(rest)]
    except ValueError as error:
        raise DataError(f"{field}: {pattern!r} has unbalanced braces: write e.g. data/{{000..009}}.tar.") from error


@contextmanager
def _listing(url: str, field: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise  # it is a ValueError, and has its sentence
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{field}: {url!r} cannot be listed: {error}. Check address and credentials.") from error


def _expand(url: str, *, field: str) -> list[Shard]:
    """The shards of one address without braces."""
    passed = PassedOver()
    with _listing(url, field):
        files, outright = _find(url, passed)
        if files is None:
            raise DataError(
                f"{field}: nothing matches {url!r}: give existing .tar or .parquet files, a folder of them, or a "
                "pattern."
            )
        if outright:
            _check_kind(files[0].url, field)
            return [Shard(files[0].url, files[0].size)]
        shards = shards_among(files, passed)
    passed.report(public_url(url))
    if not shards:
        compressed = [file.url for file in files if _plain(file.url).endswith(COMPRESSED)]
        hint = f"{compressed[0]!r} is compressed, unpack it first." if compressed else "expected .tar or .parquet."
        raise DataError(f"{field}: {url!r} holds {len(files)} files and no shard among them: {hint}")
    return shards


def _find(url: str, passed: PassedOver) -> tuple[list[Found] | None, bool]:
    """Files of one address without braces, None when nothing is there; and whether it names one file."""
    path = local_path(url)
    if path is not None:
        matches = match_local(path, passed)
        if matches == [path] and not is_folder(path):
            return [_found(path)], True
        below = [_below(one, passed) if is_folder(one) else [_found(one)] for one in matches]
        return (list(itertools.chain(*below)) if matches else None), False
    fs, path, to_url = _locate(url)
    entries = list(fs.glob(path, detail=True).values()) if has_magic(path) else []  # one listing, as a rule
    pattern = bool(entries)
    if not pattern:
        try:
            entries = [fs.info(path)]
        except FileNotFoundError:
            return None, False
    if not pattern and entries[0]["type"] != "directory":
        return [_entry(entries[0], to_url)], True
    below = [_remote_files(fs, entry, to_url, passed) for entry in entries]
    return list(itertools.chain(*below)), False


def _below(folder: str, passed: PassedOver | None = None) -> list[Found]:
    """Visible files of a local folder, sorted by address; what is passed over is said, or noted in `passed`."""
    noted = passed if passed is not None else PassedOver()
    files = sorted((_found(entry.path) for entry in walk(folder, noted)), key=lambda file: file.url)
    if passed is None:
        noted.report(folder)
    return files


def _found(path: str) -> Found:
    """A link that leads nowhere has no size: reading it tells why."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return Found(path, 0)
    return Found(path, status.st_size, str(status.st_mtime))


def _remote_files(
    fs: AbstractFileSystem, entry: dict[str, Any], to_url: Callable[[str], str], passed: PassedOver
) -> list[Found]:
    """The visible files of a store's entry, all below it when it is a folder."""
    if entry["type"] != "directory":
        return [] if passed.hides(entry["name"].rpartition("/")[2]) else [_entry(entry, to_url)]
    root = entry["name"].rstrip("/") + "/"
    found: dict[str, dict[str, Any]] = fs.find(entry["name"], detail=True)
    return [_entry(file, to_url) for name, file in found.items() if not passed.hides(name.removeprefix(root))]


def _entry(entry: dict[str, Any], to_url: Callable[[str], str]) -> Found:
    stamp = str(next((entry[name] for name in _STAMPS if entry.get(name)), ""))
    return Found(to_url(entry["name"]), int(entry.get("size") or 0), stamp)


def _holds_pictures(shard: Shard) -> bool:
    with open_shard(shard.url) as file:
        return parquet.holds_bytes(file)


def _check_kind(url: str, field: str) -> None:
    name = _plain(url)
    if name.endswith(COMPRESSED):
        raise DataError(
            f"{field}: {url!r} is a compressed tar, which cannot be read from the middle: unpack it to a plain .tar "
            "(JPEGs do not shrink anyway)."
        )
    if not name.endswith(SUFFIXES):
        raise DataError(f"{field}: {url!r} is neither .tar nor .parquet: convert it, or name the right file.")


def _stem(url: str) -> str:
    """The address without its shard's ending."""
    path = url.split("?", 1)[0] if "://" in url else url
    suffix = next(suffix for suffix in SUFFIXES if path.lower().endswith(suffix))
    return path[: -len(suffix)]


def _is_sized(shard: Shard) -> bool:
    """Whether a size of 0 means an empty file, and not a web server that keeps the size to itself."""
    return not shard.url.startswith(("http://", "https://"))


def _plain(url: str) -> str:
    """Lower-case address without the query that one of a store may have."""
    return (url.split("?", 1)[0] if "://" in url else url).lower()


def _locate(url: str) -> tuple[AbstractFileSystem, str, Callable[[str], str]]:
    """File system, path in it, and the function from such a path back to an address that any machine can open."""
    remember(url)  # errors of the store's library may quote a part of it
    local = local_path(url)
    if local is not None:
        return LocalFileSystem(), local, str
    scheme, _, rest = url.partition("://")
    if scheme in ("s3", "gs", "gcs"):
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
    return fs, path, fs.unstrip_protocol


@lru_cache(maxsize=64)
def _arrow_fs(scheme: str, host: str, query: str) -> tuple[AbstractFileSystem, str]:
    if scheme == "gs" and "retry_limit_seconds" not in query:  # Google's library itself would try for 15 minutes
        query += f"{'&' if query else '?'}retry_limit_seconds={_GS_RETRY_SECONDS}"
    fs, bucket = pyarrow.fs.FileSystem.from_uri(f"{scheme}://{host}{query}")
    return ArrowFSWrapper(fs, skip_instance_cache=True), bucket

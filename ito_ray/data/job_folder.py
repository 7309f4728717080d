"""A job's folder on disk: one process at a time, and files that are whole or not there."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ito_ray import strict_json
from ito_ray.data.write import PARTIAL
from ito_ray.errors import DataError
from ito_ray.redact import redact_all


@contextmanager
def alone(out: Path, *, lock: str, works: str) -> Iterator[None]:
    """Keep other processes out of the folder, which is made when missing and removed again when it stays empty.

    The locked file stays: were it removed while others may have it open, two of them could hold a lock, each of another
    file of this name.

    Args:
        lock: name of the file that is locked.
        works: what the other process does with it, for the message: "prepares --out".

    Raises:
        DataError: another process is at work there, `out` is a file, or nothing can be written in it.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, where a folder is needed: choose another place or remove it.")
    new = not out.exists()
    held = FileLock(out / lock)
    try:
        out.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout as error:
        raise DataError(f"Another process {works} {out}: wait for it or stop it.") from error
    except OSError as error:
        raise DataError(
            f"{out} cannot be written: {error}. Make it writable, or choose another place, and run the same command "
            "again."
        ) from error
    try:
        yield
    finally:
        # Where nothing can be written any more, why the work has ended is to be told, not that a folder stays.
        with suppress(OSError):
            if new and [path.name for path in out.iterdir()] == [lock]:
                Path(held.lock_file).unlink()  # nobody's work is there, and FileLock takes no file without a name
                out.rmdir()
        held.release()


def difference(found: Any, request: dict[str, Any]) -> str:
    """In what two requests differ, the first three things."""
    if not isinstance(found, dict):
        return "of another kind"
    names = [name for name in {**found, **request} if found.get(name) != request.get(name)]
    return ", ".join(f"{name}: {found.get(name)!r} there, {request.get(name)!r} here" for name in names[:3])


def known(path: Path) -> dict[str, Any]:
    """The document at `path`, {} when there is none."""
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    """The document at `path`. Raises DataError when it is not JSON."""
    try:
        value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): remove the folder and run again.") from error
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Indented UTF-8, without secrets."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    partial.write_text(strict_json.dumps(redact_all(value), indent=2, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(path)


def write_parquet(table: pa.Table, path: Path, **options: Any) -> None:
    """`options` as for `pyarrow.parquet.write_table`."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    pq.write_table(table, partial, **options)
    partial.replace(path)


def remove_partials(out: Path) -> None:
    """Files that killed processes have left half written."""
    for partial in out.rglob(f".*{PARTIAL}"):
        partial.unlink(missing_ok=True)

"""Addresses of SQLite files, whatever characters their folders have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.engine import make_url

from ito_ray.errors import TrackingError

SCHEME = "sqlite:///"


def sqlite_uri(database: Path) -> str:
    """The address from which SQLAlchemy finds `database` again; % and ? need other spellings than they have.

    Raises:
        TrackingError: there is none.
    """
    path = str(database.absolute())
    for spelling in (path, quote(path, safe="/ +")):
        if make_url(SCHEME + spelling).database == path:
            return SCHEME + spelling
    raise TrackingError(
        f"An MLflow store cannot be kept in {path}, whose name SQLite addresses cannot hold: give another output "
        "folder, or the address of a server."
    )


def database_of(uri: str) -> Path:
    """The file of a sqlite:/// address, absolute. File or folder that is there by that very name is meant literally."""
    literal = Path(uri.removeprefix(SCHEME))
    meant = Path(make_url(uri).database or "")
    if literal.is_file() or _depth(literal) > _depth(meant):
        return literal.absolute()
    return meant.absolute()


def _depth(path: Path) -> int:
    """Parts of the path that are there."""
    return next(len(one.parts) for one in (path.absolute(), *path.absolute().parents) if one.exists())


@contextmanager
def without_strays(uri: str) -> Iterator[None]:
    """Remove again what MLflow makes on opening: the folder of the address as it is spelled, not as it is meant."""
    spelled = Path(uri.removeprefix(SCHEME)).parent
    strays = (
        [] if spelled == database_of(uri).parent else [one for one in (spelled, *spelled.parents) if not one.exists()]
    )
    try:
        yield
    finally:
        for folder in strays:
            with suppress(OSError):
                folder.rmdir()

"""Local folders as they are found: one walk for every reader, and an account of what it passed over."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from functools import cache
from glob import glob, has_magic
from pathlib import Path

from fsspec.utils import glob_translate

from ito_ray.data.foreign import foreign_part

_log = logging.getLogger(__name__)
_NAMED = 3
"""Names of a kind that a report gives."""


class PassedOver:
    """What lies in a folder and is not read: names by kind."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}

    def add(self, kind: str, name: str) -> None:
        """Note a file or folder, however often it is met; `kind` is what several of its sort are called."""
        self._names.setdefault(kind, {})[name] = None

    def hides(self, path: str) -> bool:
        """Whether a part of a relative path is hidden or foreign; then it is noted."""
        part = foreign_part(path)
        if not part:
            return False
        self.add("hidden or foreign files and folders", f"{path.partition(part)[0]}{part}")
        return True

    @property
    def names(self) -> dict[str, list[str]]:
        """Each name once."""
        return {kind: list(names) for kind, names in self._names.items()}

    def report(self, folder: str) -> None:
        """Say it, once a process for each folder."""
        parts = []
        for kind, names in self.names.items():
            more = ", …" if len(names) > _NAMED else ""
            parts.append(f"{len(names):,} {kind} ({', '.join(names[:_NAMED])}{more})")
        if parts:
            warn_once(f"{folder}: passed over {'; '.join(parts)}.")

    @property
    def notes(self) -> dict[str, int]:
        """How many of each kind, for a manifest."""
        return {kind.replace(" ", "_"): len(names) for kind, names in self.names.items()}


def walk(folder: str | Path, passed: PassedOver) -> Iterator[os.DirEntry[str]]:
    """Files below `folder`, sorted by name in each folder; links are followed, a link that leads nowhere is a file.

    Raises:
        OSError: `folder` itself cannot be listed.
    """
    root = os.fspath(folder)
    above = [_identity(root)]
    open_folders = [iter(_entries(root))]
    while open_folders:
        entry = next(open_folders[-1], None)
        if entry is None:
            open_folders.pop()
            above.pop()
            continue
        name = os.path.relpath(entry.path, root)
        if passed.hides(name):
            continue
        match _kind(entry):
            case "file":
                yield entry
            case "special":
                passed.add("sockets, pipes and devices", name)
            case "folder":
                try:
                    identity, entries = _identity(entry.path), _entries(entry.path)
                except OSError as error:
                    passed.add("folders that cannot be read", f"{name}: {error.strerror}")
                    continue
                if identity in above:
                    passed.add("links back to a folder above them", name)
                    continue
                above.append(identity)
                open_folders.append(iter(entries))


def local_path(address: str) -> str | None:
    """The absolute path that an address has on this machine's disks; None when it names a store.

    What is there as it is written is taken literally, be it called `~x`, `a::b` or `s3:`; else `~` is the home folder.
    """
    path = address
    if not os.path.lexists(path):
        scheme, separator, rest = address.partition("://")
        if separator and scheme not in ("file", "local"):
            return None
        path = rest if separator else address
    if not os.path.lexists(path):
        path = os.path.expanduser(path)  # noqa: PTH111  # Path raises for unknown users
    return str(Path(path).absolute())


def literal_part(path: str) -> str:
    """The longest leading part of an absolute path that is there as it is written, up to a `/`, or the whole path."""
    if os.path.lexists(path):
        return path
    cut = len(path)
    while (cut := path.rfind("/", 0, cut)) > 0:
        if is_folder(path[:cut]):
            return path[: cut + 1]
    return path[:1]


def is_folder(path: str | Path) -> bool:
    """Whether the path names a folder; False for whatever cannot be one, where `Path.is_dir` may raise."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: str | Path) -> bool:
    """The same for a file that is no pipe or device."""
    return os.path.isfile(path)  # noqa: PTH113


def match_local(pattern: str, passed: PassedOver) -> list[str]:
    """Files and folders that an absolute path names: itself, or those that match its `*`, `?`, `[…]` and `**`.

    Raises:
        OSError: a folder cannot be listed.
    """
    root = literal_part(pattern)
    rest = pattern.removeprefix(root)
    if not rest:
        return [pattern]
    if not has_magic(rest):
        return []
    if "**" in rest:
        matches = re.compile(glob_translate(rest)).match
        below = (entry.path.removeprefix(root) for entry in walk(root, passed))
        return [root + name for name in below if matches(name)]
    given = rest.split("/")
    found = sorted(glob(rest, root_dir=root))  # noqa: PTH207  # Path's follows no links and hides nothing
    return [
        root + name
        for name in found
        if not passed.hides("/".join(part for part in name.split("/") if part not in given))
    ]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116  # follows links, as the walk does
    return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if not entry.is_file():
            entry.stat()
            return "special"
    except OSError:
        pass  # a link to nothing or to itself: its reader says so
    return "file"


@cache
def warn_once(text: str) -> None:
    """Say something that the user should know, once a process."""
    _log.warning(text)

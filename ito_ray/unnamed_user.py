"""A user without a name: `docker run --user 12345`, or OpenShift's arbitrary ids, which /etc/passwd does not have.

torch, Ray and Python ask for the name or the home folder and fail without; they take both from the environment first.
"""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path


def name_user() -> None:
    """Where this process's user has no entry, put a name into the environment, and a home that can be written to."""
    number = os.getuid()
    try:
        pwd.getpwuid(number)
    except KeyError:
        for variable in ("USER", "LOGNAME"):
            os.environ.setdefault(variable, f"uid{number}")
        home = os.environ.get("HOME", "")
        if not home or not os.access(home, os.W_OK):
            os.environ["HOME"] = _own_folder(number)


def _own_folder(number: int) -> str:
    """The same for all processes of a user; another one if somebody else has taken that name."""
    folder = Path(tempfile.gettempdir(), f"ito-home-{number}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not folder.is_symlink() and folder.stat().st_uid == number and os.access(folder, os.W_OK):
            return str(folder)
    except OSError:
        pass
    return tempfile.mkdtemp(prefix=f"ito-home-{number}-")

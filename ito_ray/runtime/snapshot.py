"""Ray Train's list of a run's checkpoints, kept whole.

Ray 2.60 rewrites the file in place, so a kill in the midst of it leaves half a list, or an empty one, and the run could
neither be resumed nor started anew. A second copy is made after every write and takes its place when it must.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

SNAPSHOT = "checkpoint_manager_snapshot.json"
COPY = "checkpoint_manager_snapshot.copy.json"


def keep(run: Path) -> None:
    """Copy the list, which Ray has just written; the copy is whole or the one before it."""
    partial = run / f".{COPY}"
    shutil.copyfile(run / SNAPSHOT, partial)
    partial.replace(run / COPY)


def mend(run: Path) -> None:
    """Put the copy in the place of a list that cannot be read; without a copy no checkpoint was registered.

    Not while the run goes on: Ray may be in the midst of writing.
    """
    if not (run / SNAPSHOT).is_file() or _is_whole(run / SNAPSHOT):
        return
    if (run / COPY).is_file():
        shutil.copyfile(run / COPY, run / SNAPSHOT)
    else:
        (run / SNAPSHOT).unlink()


def _is_whole(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text("utf-8")))
    except ValueError:
        return False

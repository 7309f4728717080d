"""Ray Train's list of a run's checkpoints, kept whole and true.

Ray 2.60 rewrites the file in place, so a kill in the midst of it leaves half a list, or an empty one, and the run could
neither be resumed nor started anew. A second copy is made after every write and takes its place when it must. Ray also
refuses a list with a checkpoint that is gone, and hands out the newest one whatever its files hold: a checkpoint that
is missing or damaged is taken off the list here, so that Ray Train, the stream and the driver resume from the same one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ray

SNAPSHOT = "checkpoint_manager_snapshot.json"
COPY = "checkpoint_manager_snapshot.copy.json"
DAMAGED = "damaged-"
"""What the name of a checkpoint that was set aside begins with."""


def keep(run: Path) -> None:
    """Copy the list, which Ray has just written; the copy is whole or the one before it."""
    partial = run / f".{COPY}"
    shutil.copyfile(run / SNAPSHOT, partial)
    partial.replace(run / COPY)


def mend(run: Path) -> list[str]:
    """Put the copy in the place of a list that cannot be read, and take off it what is gone.

    Not while the run goes on: Ray may be in the midst of writing.

    Returns:
        Names of the checkpoints that were on the list and are gone.
    """
    if not (run / SNAPSHOT).is_file():
        return []
    if not _is_whole(run / SNAPSHOT):
        if not (run / COPY).is_file():  # no checkpoint was registered
            (run / SNAPSHOT).unlink()
            return []
        shutil.copyfile(run / COPY, run / SNAPSHOT)
    listed = json.loads((run / SNAPSHOT).read_text("utf-8"))["checkpoint_results"]
    gone = [name for name in (one["checkpoint_dir_name"] for one in listed) if not (run / name).is_dir()]
    if gone:
        _forget(run, gone)
    return gone


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint and take it off the list; its new path."""
    number, kept = 1, checkpoint.with_name(DAMAGED + checkpoint.name)
    while kept.exists():
        number += 1
        kept = checkpoint.with_name(f"{DAMAGED}{number}-{checkpoint.name}")
    checkpoint.rename(kept)  # first: a kill before the next line leaves a list that `mend` mends
    _forget(checkpoint.parent, [checkpoint.name])
    return kept


def add(run: Path, checkpoint: str) -> None:
    """Put a checkpoint, which is in the run's folder by this name, on the list as the newest."""
    if not (run / SNAPSHOT).is_file():
        begin(run, checkpoint)
        return
    document = json.loads((run / SNAPSHOT).read_text("utf-8"))
    result = _result(checkpoint)
    document["checkpoint_results"].append(result)
    document["checkpoint_report_indices"].append(document["current_report_index"])
    document["current_report_index"] += 1
    document["latest_checkpoint_result"] = result
    _replace(run, document)


def begin(run: Path, checkpoint: str) -> None:
    """Write the list of a run that starts from one checkpoint, which is in its folder by this name."""
    result = _result(checkpoint)
    document = {
        "ray_version": ray.__version__,
        "checkpoint_results": [result],
        "checkpoint_report_indices": [0],
        "latest_checkpoint_result": result,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": 1,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    (run / SNAPSHOT).write_text(json.dumps(document), encoding="utf-8")
    keep(run)


def _forget(run: Path, names: list[str]) -> None:
    """Take checkpoints off the list; the newest of the others becomes the one to resume from."""
    document: dict[str, Any] = json.loads((run / SNAPSHOT).read_text("utf-8"))
    results, numbers = document["checkpoint_results"], document["checkpoint_report_indices"]
    stay = [pair for pair in zip(results, numbers, strict=True) if pair[0]["checkpoint_dir_name"] not in names]
    if not stay:
        (run / SNAPSHOT).unlink()
        (run / COPY).unlink(missing_ok=True)
        return
    document["checkpoint_results"] = [result for result, _ in stay]
    document["checkpoint_report_indices"] = [number for _, number in stay]
    document["latest_checkpoint_result"] = max(stay, key=lambda pair: pair[1])[0]
    for key in ("pending_training_results", "pending_validation_specs"):
        document[key] = []  # we ask Ray Train for no validations
    for key, value in document.items():
        if key.endswith("_checkpoint_dir_names"):
            document[key] = [name for name in value if name not in names]
    _replace(run, document)


def _result(checkpoint: str) -> dict[str, Any]:
    return {"version": 0, "checkpoint_dir_name": checkpoint, "metrics": {}}


def _replace(run: Path, document: dict[str, Any]) -> None:
    partial = run / f".{SNAPSHOT}"
    partial.write_text(json.dumps(document), encoding="utf-8")
    partial.replace(run / SNAPSHOT)
    keep(run)


def _is_whole(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text("utf-8")))
    except ValueError:
        return False

"""What a checkpoint's files were when they were written, so that a damaged one is known before it is loaded.

No torch: the process that builds the stream reads it too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

NAME = "manifest"
HASHING_THREADS = 8
"""Files that are read at once; hashing does not hold Python's lock."""


def write_manifest(files: Iterable[Path], suffix: str = "") -> None:
    """Write size and SHA-256 of the files that this rank has written, beside them.

    Args:
        files: all in one folder.
        suffix: "-00001-of-00004" for the first of four ranks that write, "" where one writes everything.
    """
    files = list(files)
    entries = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files}
    (files[0].parent / f"{NAME}{suffix}.json").write_text(json.dumps({"files": entries}, indent=1), encoding="utf-8")


def renew(folder: Path, name: str) -> None:
    """Note what a file is now; the manifest may be a link to another checkpoint's, which stays as it is."""
    for path in folder.glob(f"{NAME}*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        if name in document["files"]:
            file = folder / name
            document["files"][name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            path.unlink()
            path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def damage(folder: Path) -> str:
    """What is wrong with the checkpoint in `folder`, for a sentence; "" if every file is as it was written.

    Raises:
        OSError: a file is there and cannot be read: the disk's fault, and perhaps only for now.
    """
    manifests = sorted(folder.glob(f"{NAME}*.json"))
    if not manifests:
        return f"{NAME}.json is missing"
    ranks = int(manifests[0].stem.rsplit("-of-", 1)[1]) if "-of-" in manifests[0].stem else 1
    if len(manifests) != ranks:
        return f"{len(manifests)} of {ranks} files {NAME}*.json are there"
    listed: dict[str, dict[str, Any]] = {}
    for path in manifests:
        try:
            listed |= json.loads(path.read_text(encoding="utf-8"))["files"]
        except (ValueError, KeyError, TypeError):
            return f"{path.name} is damaged"
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        wrong = pool.map(lambda name: _wrong(folder / name, listed[name]), listed)
    return next(filter(None, wrong), "")


def _wrong(path: Path, expected: dict[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{path.name} has {size:,} bytes instead of {expected['bytes']:,}"
        return "" if _sha256(path) == expected["sha256"] else f"{path.name} is not what was written (SHA-256)"
    except FileNotFoundError:
        return f"{path.name} is missing"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Checkpoints under a second name, so that they outlast Ray Train's rotation; light to import."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def name_of(step: int) -> str:
    """Folder of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The inverse."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints(folder: Path) -> list[Path]:
    """Those in a folder, by step."""
    return sorted(folder.glob("step-*"))


def hold(checkpoint: Path, shelf: Path) -> None:
    """Link a checkpoint into a folder, whole or not at all, unless one of its name is there."""
    name = checkpoint.name
    if (shelf / name).is_dir():
        return
    shelf.mkdir(parents=True, exist_ok=True)
    partial = shelf / f".{name}"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoint, partial, copy_function=link)
    partial.replace(shelf / name)


def link(source: str, target: str) -> None:
    """The same file by another name; a copy where links are not known."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or a store that knows no links
        shutil.copy2(source, target)

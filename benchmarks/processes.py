"""CPU time and memory of a process with all that it started, by Linux's own account."""

from __future__ import annotations

import psutil


def cpu_seconds(root: int) -> float:
    """User and system time of process `root` and all its descendants since they began, of finished ones too.

    A finished process counts once its parent has waited for it; no descendant may outlive its parent.
    """
    total = 0.0
    for process in _tree(root):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # its parent has it in `children_…` from now on
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_bytes(root: int) -> int:
    """Resident memory of the same processes, a page that several share counted once (PSS)."""
    total = 0
    for process in _tree(root):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total


def _tree(root: int) -> list[psutil.Process]:
    top = psutil.Process(root)
    return [top, *top.children(recursive=True)]

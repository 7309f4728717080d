"""The sweep's command as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
DRIVER = "ray::ImplicitFunc"
"""Begins the title of the processes in which Ray Tune runs functions."""


def start_search(options: list[str]) -> subprocess.Popen[str]:
    """With a Ray of its own, whatever runs beside it."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "tune.search", *options],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def trial_drivers(pid: int) -> list[psutil.Process]:
    """The processes of the trials that a sweep runs, and those that wait to be given one."""
    return [
        one for one in psutil.Process(pid).children(recursive=True) if one.cmdline()[:1] and DRIVER in one.cmdline()[0]
    ]

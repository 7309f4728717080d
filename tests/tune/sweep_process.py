"""A small sweep's command line, and the command as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from ito_ray.config.load import to_yaml
from tests.runtime.shards import small_config

REPOSITORY = Path(__file__).parents[2]
DRIVER = "ray::ImplicitFunc"
"""Begins the title of the processes in which Ray Tune runs functions."""


def two_points(tmp: Path, *, every: int, **train: Any) -> list[str]:
    """Options for the recipe and λ = ½, each trained to its end and evaluated every so many steps, none confirmed."""
    cfg = small_config(tmp, train=train, eval={"every": every, "zero_shot": []})
    (tmp / "config.yaml").write_text(to_yaml(cfg))
    words = (
        "--space ito_lambda --searcher grid --points 2 --axis method.fusion_weight=[0.5] --scheduler none --confirm 0"
    )
    return ["--config", str(tmp / "config.yaml"), *words.split()]


def start_search(options: list[str], cluster: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """With a Ray of its own, whatever runs beside it; or on the cluster that these variables name."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | dict(cluster or {})
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


def last_words(process: subprocess.Popen[str]) -> str:
    """What a process that does not get on has printed; it is ended, or its reader would wait as long as it does."""
    process.kill()
    return process.communicate()[0][-3000:]

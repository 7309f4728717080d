"""Small shards of coloured pictures and a configuration that trains on them in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from tests.data.makers import picture, write_tar
from tests.tiny import tiny_config

WORDS = ("red", "green", "blue", "round", "square", "small", "large", "old")


def caption(number: int) -> str:
    return f"a {WORDS[number % 8]} {WORDS[number // 8 % 8]} thing number {number}"


def sample(number: int) -> tuple[str, dict[str, bytes]]:
    """A good sample with a key of its own."""
    meta = json.dumps({"name": WORDS[number % 8]}).encode()
    return f"s{number:05d}", {"png": picture(number), "txt": caption(number).encode(), "json": meta}


def write_shards(folder: Path, samples: int, shards: int) -> Path:
    """`samples` good samples, dealt over `shards` tars."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        write_tar(folder / f"part-{shard:03d}.tar", (sample(number) for number in range(shard, samples, shards)))
    return folder


def small_config(tmp: Path, **changes: Any) -> Config:
    """Tiny model, 16 steps of 16 pairs over 96 samples in 4 shards, all below `tmp`."""
    train, heldout = tmp / "train", tmp / "heldout"
    if not train.exists():
        write_shards(train, 96, 4)
        write_shards(heldout, 24, 1)
        (tmp / "classes.txt").write_text("\n".join(WORDS) + "\n")
    base = overlay(
        tiny_config(),
        {
            "name": "small",
            "output": str(tmp / "runs"),
            "data": {
                "train": [str(train)],
                "heldout": [str(heldout)],
                "rows_per_task": 16,
                "mix": 2,
                "shuffle_buffer": 8,
            },
            "train": {"steps": 16, "global_batch": 16, "cpus_per_worker": 0.5, "log_every": 1, "checkpoint_every": 4},
            "eval": {"zero_shot": [str(heldout)], "classes": str(tmp / "classes.txt")},
        },
        source="test",
    )
    return overlay(base, changes, source="test")

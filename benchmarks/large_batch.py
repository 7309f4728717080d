"""Peak memory of a step as the batch grows eightfold: `python -m benchmarks.large_batch [--quick] [--json FILE]`.

The whole ITO objective, fusion included, undivided and in micro-batches with cached features (training/step.py), each
in a fresh process (benchmarks/peak.py). Pixels are uint8 on the host, as the stream gives them. Undivided, activations
grow with the batch; in micro-batches only the features do, for one more forward pass.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.captions import captions, padded_ids
from benchmarks.peak import in_fresh_process, peak_of, resident
from benchmarks.variants import BACKBONES
from ito_ray.config.schema import Config, OptimConfig, TrainConfig
from ito_ray.data.tokens import clip_tokenizer
from ito_ray.methods import build_method
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.training.learner import build_learner
from ito_ray.training.loop import Arrays, split, to_batch
from ito_ray.training.step import backward

MICRO_BATCH, GROWTH = 32, (1, 2, 4, 8)


@dataclass(frozen=True)
class LargeBatch:
    """What a large batch needs, undivided and in micro-batches."""

    quick: bool = False
    """Micro-batches of 8 instead of 32."""
    json: Path | None = None
    """Also write what was measured here."""


def measure_here(batch: int, micro_batch: int) -> dict[str, float]:
    """Peak bytes of a step and its CPU-seconds."""
    torch.set_num_threads(1)
    bare = resident("VmRSS")
    model = BACKBONES["vit_small"]
    train = TrainConfig(steps=100, global_batch=batch, micro_batch=micro_batch)
    cfg = Config(model=model, train=train, optim=OptimConfig(warmup_steps=10))
    method = build_method(cfg, DualEncoder(model, clip_tokenizer(model.text.context))).train()
    learner = build_learner(cfg, method)
    ids_BT, length_B = padded_ids(captions(batch, seed=0), model.text.context)
    side = model.image.size
    arrays: Arrays = {
        "views": np.random.default_rng(0).integers(0, 256, (batch, 2, side, side, 3), dtype=np.uint8),
        "ids": ids_BT[:, None].numpy().astype(np.int32),
        "lengths": length_B[:, None].numpy().astype(np.int32),
    }
    pieces = [
        partial(to_batch, part, torch.device("cpu"), method.encoder.image.mean, method.encoder.image.std)
        for part in split(arrays, micro_batch)
    ]

    def step() -> None:
        learner.optimizer.zero_grad()
        backward(method, method, pieces, torch.manual_seed)
        learner.optimizer.step()

    peak = peak_of(step, learner.optimizer, "cpu", bare)
    started = time.process_time()
    step()
    return {"bytes": peak["step"], "cpu_seconds": time.process_time() - started}


def measure(unit: int, console: Console) -> dict[str, list[dict[str, float]]]:
    """Both ways, every batch size."""
    found: dict[str, list[dict[str, float]]] = {"undivided": [], "micro_batches": []}
    for growth in GROWTH:
        for way, micro_batch in (("undivided", 0), ("micro_batches", unit)):
            with console.status(f"{growth * unit} pairs, {way}"):
                result = in_fresh_process("benchmarks.large_batch", str(growth * unit), str(micro_batch))
            found[way].append({"batch": growth * unit, **result})
    return found


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """How much memory grew from the smallest batch to the largest, and what the second forward pass costs there."""

    def ratio(field: str, one: tuple[str, int], other: tuple[str, int]) -> float:
        return found[one[0]][one[1]][field] / found[other[0]][other[1]][field]

    return {
        "batch_growth": GROWTH[-1],
        "undivided_memory_growth": ratio("bytes", ("undivided", -1), ("undivided", 0)),
        "micro_batch_memory_growth": ratio("bytes", ("micro_batches", -1), ("micro_batches", 0)),
        "micro_batch_time_ratio": ratio("cpu_seconds", ("micro_batches", -1), ("undivided", -1)),
        "measured": found,
    }


def table(found: dict[str, list[dict[str, float]]], unit: int) -> Table:
    """A row for each batch."""
    shown = Table(title="ITO, small ViT at 112 px, fp32, one thread: peak of activations and gradients, CPU time")
    for heading in ("pairs", "undivided", f"in micro-batches of {unit}"):
        shown.add_column(heading, justify="right")
    for whole, cached in zip(found["undivided"], found["micro_batches"], strict=True):
        cells = (f"{one['bytes'] / 2**20:,.0f} MiB  {one['cpu_seconds']:.1f} s" for one in (whole, cached))
        shown.add_row(f"{whole['batch']:.0f}", *cells)
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON; the exit code."""
    options = tyro.cli(LargeBatch, args=arguments, prog="python -m benchmarks.large_batch", description=__doc__)
    console = Console(highlight=False)
    unit = 8 if options.quick else MICRO_BATCH
    found = measure(unit, console)
    console.print(table(found, unit))
    if options.json:
        options.json.write_text(json.dumps(summary(found), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1].isdigit():  # one measurement, for the parent process
        print(json.dumps(measure_here(int(sys.argv[1]), int(sys.argv[2]))))
        sys.exit(0)
    sys.exit(main())

"""Peak memory of one variant's step: `python -m benchmarks.peak '{"backbone": "vit_b16", …}' ito` prints JSON.

On a GPU torch's allocator keeps the books. On a CPU nothing does, so each variant steps in a fresh process of its own
and the kernel's high-water mark of resident memory is read. That counts everything, scratch space of the matrix library
included, and cannot miss an allocation as a count of saved tensors can. Three things keep it honest:

- glibc hands every block above 64 KiB back to the kernel when it is freed (MALLOC_MMAP_THRESHOLD_, set by the caller),
  so that resident memory is live memory;
- a step on the same batch has gone before, so that Adam's moments, caches and scratch space are already there;
- the mark is reset (/proc/self/clear_refs) after the model is built, or ru_maxrss would report the building.

Two numbers come out, in bytes. `step`: what a step needs above weights and optimiser state, that is activations and
gradients; it grows with the batch, so it decides how large a batch fits, and it is the headline. `whole`: with weights
and optimiser state, as max_memory_allocated counts. Linux only.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.variants import Setting, build

STEPS = 2


def measure_in_fresh_process(setting: Setting, name: str) -> dict[str, int]:
    """`step` and `whole` of the variant `name`, in bytes."""
    return in_fresh_process("benchmarks.peak", json.dumps(asdict(setting)), name)


def in_fresh_process(module: str, *arguments: str) -> dict[str, Any]:
    """Run a module that prints JSON in its last line.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed in a fresh process:\n{done.stderr[-2000:]}")
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def peak_of(step: Callable[[], None], optimizer: torch.optim.Optimizer, device: str, bare: int) -> dict[str, int]:
    """`step` and `whole` of a training step in this process, which must have run nothing else.

    Args:
        bare: resident bytes before the model was built.
    """
    step()
    optimizer.zero_grad()
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(STEPS):
            step()
        whole = torch.cuda.max_memory_allocated()
        return {"step": whole - before, "whole": whole}
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(STEPS):
        step()
    peak = resident("VmHWM")
    return {"step": peak - before, "whole": peak - bare}


def resident(field: str) -> int:
    """Bytes, of Linux's own account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main(described: str, name: str) -> None:
    """Measure one variant here and print it."""
    setting = Setting(**json.loads(described))
    torch.set_num_threads(setting.threads)
    bare = resident("VmRSS")
    step = build(setting, [name])[name]
    print(json.dumps(peak_of(step, step.optimizer, setting.device, bare)))


if __name__ == "__main__":
    main(*sys.argv[1:])

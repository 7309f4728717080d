"""`python -m tests.runtime.recorded FOLDER STOP PACE train-arguments…`: the job, with a record of each step's samples.

Each rank appends a JSON line a step: the step, the time, the samples' uids and the ids of their captions. This is what
the trainer got, told by nobody's bookkeeping. After STOP steps (0 = never) it waits to be killed; each step takes PACE
seconds more than it needs. Before a step that is held back it waits for a file in FOLDER.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def recording_worker(given: dict[str, Any]) -> None:
    """Runs on the workers, where it is not imported but unpickled."""
    import json
    import os
    import time
    from pathlib import Path

    import ray.train

    from ito_ray.runtime import stream as module
    from ito_ray.runtime.launch import train_worker
    from ito_ray.training.state import read_state

    stream: Any = module
    untold = stream.rank_batches
    context = ray.train.get_context()
    checkpoint = ray.train.get_checkpoint()
    step = read_state(Path(checkpoint.path)).step if checkpoint else 0

    def told(*arguments: Any, **named: Any) -> Any:
        path = Path(given["record"], f"{context.get_world_size()}-{context.get_world_rank()}-{os.getpid()}.jsonl")
        with path.open("w") as file:
            for number, batch in enumerate(untold(*arguments, **named), start=step + 1):
                line = {"step": number, "time": time.time(), "uid": batch["uid"].tolist()}
                file.write(json.dumps({**line, "ids": batch["ids"][:, 0].tolist()}) + "\n")
                file.flush()
                time.sleep(given["pace"])
                held_by = given["holds"].get((context.get_world_size(), number))
                while held_by and not Path(given["record"], held_by).exists():
                    time.sleep(0.05)
                yield batch
                if number == given["stop"]:
                    time.sleep(600)

    stream.rank_batches = told  # before the worker's module is imported, which takes it from there
    train_worker(given)


@contextmanager
def recording(
    folder: Path, stop: int = 0, pace: float = 0.0, holds: Mapping[tuple[int, int], str] | None = None
) -> Iterator[None]:
    """Within, what trains in this process is recorded in `folder`; every step takes `pace` seconds more.

    Args:
        holds: (number of ranks, step) → file in `folder` that this step waits for.
    """
    from ito_ray.runtime import trainer as module

    trainer: Any = module
    made = trainer.Trainer
    record = {"record": str(folder), "stop": stop, "pace": pace, "holds": dict(holds or {})}

    def recorded(_: object, *, train_loop_config: dict[str, Any], **named: Any) -> Any:
        return made(recording_worker, train_loop_config={**train_loop_config, **record}, **named)

    trainer.Trainer = recorded
    try:
        yield
    finally:
        trainer.Trainer = made


def main(arguments: Sequence[str]) -> int:
    """The job's exit code."""
    from pipelines import train

    with recording(Path(arguments[0]), int(arguments[1]), float(arguments[2])):
        return train.main(arguments[3:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

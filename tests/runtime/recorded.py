"""`python -m tests.runtime.recorded FOLDER STOP train-arguments…`: the job, with a record of what each step was given.

Each rank appends a JSON line a step: the step, the time, the samples' uids and the ids of their captions. This is what
the trainer got, told by nobody's bookkeeping. After STOP steps (0 = never) it waits to be killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def recording_worker(given: dict[str, Any]) -> None:
    """Runs on the workers, where it is not imported but unpickled."""
    import json
    import os
    import time
    from pathlib import Path

    import ray.train

    from ito_ray.runtime import worker as module
    from ito_ray.training.state import read_state

    worker: Any = module
    untold = worker.rank_batches
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
                yield batch
                if number == given["stop"]:
                    time.sleep(600)

    worker.rank_batches = told
    worker.train_worker(given)


def main(arguments: Sequence[str]) -> int:
    """The job's exit code."""
    from ito_ray.runtime import trainer as module
    from pipelines import train

    trainer: Any = module
    made = trainer.TorchTrainer
    record = {"record": arguments[0], "stop": int(arguments[1])}

    def recorded(_: object, *, train_loop_config: dict[str, Any], **named: Any) -> Any:
        return made(recording_worker, train_loop_config={**train_loop_config, **record}, **named)

    trainer.TorchTrainer = recorded
    try:
        return train.main(arguments[2:])
    finally:
        trainer.TorchTrainer = made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Equal, well-mixed batches from blocks of any size, the same for the same seed and blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


def mixed_batches(
    blocks: Iterator[Arrays], *, batch: int, hold: int, rng: np.random.Generator
) -> Iterator[dict[str, np.ndarray]]:
    """Hold `hold` samples back and draw every batch at random from these and what came last.

    Unlike a shuffling reader that flushes its buffer, no batch is ever short.

    Args:
        blocks: arrays by name, all with the same first dimension; may be empty.
        batch: samples in every batch.
        hold: samples kept back; 0 mixes only within what one block brings.
        rng: decides the draw.

    Yields:
        Copies, `batch` rows each. When `blocks` ends, what is held back is drawn too; fewer than `batch` rows are left.
    """
    pool: dict[str, np.ndarray] = {}
    count = 0
    for block in blocks:
        rows = len(next(iter(block.values())))
        pool = _with_room(pool, block, count, rows)
        for name, values in block.items():
            pool[name][count : count + rows] = values
        count += rows
        while count >= hold + batch:
            yield _draw(pool, count, batch, rng)
            count -= batch
    while count >= batch:
        yield _draw(pool, count, batch, rng)
        count -= batch


def _with_room(pool: dict[str, np.ndarray], block: Arrays, count: int, rows: int) -> dict[str, np.ndarray]:
    if pool and len(next(iter(pool.values()))) >= count + rows:
        return pool
    grown = {}
    for name, values in block.items():
        grown[name] = np.empty((2 * (count + rows), *values.shape[1:]), values.dtype)
        if pool:
            grown[name][:count] = pool[name][:count]
    return grown


def _draw(pool: dict[str, np.ndarray], count: int, batch: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Take `batch` random rows of the first `count` out of the pool; the last rows move into the holes."""
    picked = rng.choice(count, batch, replace=False)
    drawn = {name: values[picked] for name, values in pool.items()}
    left = count - batch
    holes = picked[picked < left]
    tail = np.setdiff1d(np.arange(left, count), picked)
    for values in pool.values():
        values[holes] = values[tail]
    return drawn

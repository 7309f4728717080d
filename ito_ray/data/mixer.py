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
    order = np.empty(0, np.intp)
    count = 0
    for block in blocks:
        rows = len(next(iter(block.values())))
        pool, order = _with_room(pool, order, block, count + rows)
        for name, values in block.items():
            pool[name][order[count : count + rows]] = values
        count += rows
        while count >= hold + batch:
            yield _draw(pool, order, count, batch, rng)
            count -= batch
    while count >= batch:
        yield _draw(pool, order, count, batch, rng)
        count -= batch


def _with_room(
    pool: dict[str, np.ndarray], order: np.ndarray, block: Arrays, needed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    if pool and len(order) >= needed:
        return pool, order
    grown = {name: np.empty((2 * needed, *values.shape[1:]), values.dtype) for name, values in block.items()}
    for name, values in pool.items():
        grown[name][: len(order)] = values
    return grown, np.concatenate([order, np.arange(len(order), 2 * needed)])


def _draw(
    pool: dict[str, np.ndarray], order: np.ndarray, count: int, batch: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Take `batch` random rows of the pool. Rows are large, so they stay where they are and only their order changes.

    Args:
        order: int (rows of the pool,), in place: where the `count` rows that are held lie, then which places are free.
    """
    picked = rng.choice(count, batch, replace=False)
    places = order[picked]
    left = count - batch
    holes = picked[picked < left]
    order[holes] = order[np.setdiff1d(np.arange(left, count), picked)]
    order[left:count] = places
    return {name: values[places] for name, values in pool.items()}

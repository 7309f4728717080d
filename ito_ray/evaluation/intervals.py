"""How sure a share is: percentile bootstrap, over groups where samples are not independent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CELLS = 1 << 20
"""Draws held at a time: 8 MB."""


def bootstrap_ci(
    hits: NDArray[np.bool_] | NDArray[np.float64],
    *,
    groups: NDArray[np.int64] | None = None,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the mean of `hits` (Efron's percentile bootstrap; with groups, whole groups are drawn).

    Where all hits are equal every resample is too, and the bootstrap would claim to be certain: there the bound is that
    of Clopper and Pearson for as many trials as there are groups.

    Args:
        hits: (n,) bool, or values in [0, 1].
        groups: (n,) integers; samples with the same one stand or fall together (captions of one image, images of one
            class). None = every sample for itself.
        confidence: share of repetitions whose interval holds the true mean.
        samples: bootstrap repetitions.

    Returns:
        (low, high).

    Raises:
        ValueError: no hits, or groups of another shape.
    """
    if not len(hits):
        raise ValueError("hits is empty: an interval needs at least one sample.")
    sums: NDArray[np.float64] = hits.astype(np.float64)
    counts = np.ones(len(hits))
    if groups is not None:
        if groups.shape != hits.shape:
            raise ValueError(f"groups has shape {groups.shape}, but hits has {hits.shape}.")
        member = np.unique(groups, return_inverse=True)[1]
        sums = np.bincount(member, weights=sums).astype(np.float64)
        counts = np.bincount(member).astype(np.float64)
    n, tail = len(sums), (1 - confidence) / 2
    if not hits.any():
        return 0.0, 1 - tail ** (1 / n)
    if (hits == 1).all():
        return tail ** (1 / n), 1.0

    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, _CELLS // n)
    for start in range(0, samples, step):
        drawn = rng.integers(n, size=(min(step, samples - start), n))
        means[start : start + step] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)

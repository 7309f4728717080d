"""How sure a number is: bootstrap, over groups where samples are not independent; random halves where it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_CELLS = 1 << 20
"""Draws held at a time: 8 MB."""
_WORK = 2 * 10**8
"""Values looked at for the interval of one median: a second or two."""


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
    sums, counts = _by_group(hits.astype(np.float64), groups)
    n, tail = len(sums), (1 - confidence) / 2
    if not hits.any():
        return 0.0, 1 - tail ** (1 / n)
    if (hits == 1).all():
        return tail ** (1 / n), 1.0
    low, high = np.quantile(_resampled_means(sums, counts, samples, seed), (tail, 1 - tail))
    return float(low), float(high)


def paired_ci(
    ours: NDArray[np.bool_] | NDArray[np.float64],
    theirs: NDArray[np.bool_] | NDArray[np.float64],
    *,
    groups: NDArray[np.int64] | None = None,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of mean(ours) − mean(theirs), two encoders' hits on the same samples: both are drawn together.

    What is hard for both cancels, so this is narrower than the two intervals apart. Where all differences are equal the
    bootstrap would claim to be certain, and the bound is Clopper and Pearson's, stretched to [−1, 1].

    Args:
        ours: (n,) bool, or values in [0, 1].
        theirs: (n,), of the same samples in the same order.
        groups, confidence, samples, seed: as in `bootstrap_ci`.

    Returns:
        (low, high) in [−1, 1].

    Raises:
        ValueError: no hits, or shapes that differ.
    """
    if not len(ours) or ours.shape != theirs.shape:
        raise ValueError(f"ours has shape {ours.shape}, theirs {theirs.shape}: they must be equal and not empty.")
    difference = ours.astype(np.float64) - theirs.astype(np.float64)
    sums, counts = _by_group(difference, groups)
    n, tail = len(sums), (1 - confidence) / 2
    if (difference == difference[0]).all():
        # With `confidence`, at most this share of all samples is different; each by as much as the range allows.
        value, share = float(difference[0]), 1 - tail ** (1 / n)
        return value - (1 + value) * share, value + (1 - value) * share
    low, high = np.quantile(_resampled_means(sums, counts, samples, seed), (tail, 1 - tail))
    return float(low), float(high)


def _by_group(
    values: NDArray[np.float64], groups: NDArray[np.int64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and size of each group; of each sample without groups."""
    if groups is None:
        return values, np.ones(len(values))
    if groups.shape != values.shape:
        raise ValueError(f"groups has shape {groups.shape}, but hits has {values.shape}.")
    member = np.unique(groups, return_inverse=True)[1]
    return np.bincount(member, weights=values).astype(np.float64), np.bincount(member).astype(np.float64)


def _resampled_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], samples: int, seed: int
) -> NDArray[np.float64]:
    """(samples,) means of as many groups drawn with replacement."""
    rng = np.random.default_rng(seed)
    n, means = len(sums), np.empty(samples)
    step = max(1, _CELLS // n)
    for start in range(0, samples, step):
        drawn = rng.integers(n, size=(min(step, samples - start), n))
        means[start : start + step] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means


def bootstrap_median_ci(
    values: NDArray[np.int64] | NDArray[np.float64],
    *,
    groups: NDArray[np.int64] | None = None,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the median of `values` (percentile bootstrap; with groups, whole groups are drawn).

    Args:
        values: (n,), n > 0.
        groups: (n,) as for `bootstrap_ci`.
        samples: bootstrap repetitions; fewer, 100 at least, for more than 100,000 values.

    Returns:
        (low, high).
    """
    n = len(values)
    order_N = np.argsort(values, kind="stable")
    sorted_N = values[order_N]
    member_N = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    member_N, count = member_N[order_N], int(member_N.max()) + 1
    rng = np.random.default_rng(seed)
    medians = []
    for _ in range(int(np.clip(_WORK // n, 100, samples))):
        times_G = np.bincount(rng.integers(count, size=count), minlength=count)
        reached_N = np.cumsum(times_G[member_N])  # drawn values up to and with each, in order
        total = int(reached_N[-1])
        low, high = (sorted_N[np.searchsorted(reached_N, k)] for k in ((total + 1) // 2, total // 2 + 1))
        medians.append((float(low) + float(high)) / 2)
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(medians, (tail, 1 - tail))
    return float(lower), float(upper)


def half_sample_ci(
    statistic: Callable[[NDArray[np.int64]], float],
    count: int,
    estimate: float,
    *,
    confidence: float = 0.95,
    repeats: int = 40,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of a number that a bootstrap would bend, since samples drawn twice make a cloud look flatter.

    A statistic of a random half, drawn without replacement, varies around that of the whole as the whole does around
    the truth: m = n/2 gives σ²/m·(1 − m/n) = σ²/n (delete-half jackknife, Shao and Wu 1989,
    https://doi.org/10.1214/aos/1176347263). Normal, so symmetric around the estimate.

    Args:
        statistic: of the samples with these indices, (count // 2,) ascending.
        count: how many samples there are, at least 4.
        estimate: the statistic of all samples.
        repeats: halves drawn.

    Returns:
        (low, high).
    """
    rng = np.random.default_rng(seed)
    found = [statistic(np.sort(rng.permutation(count)[: count // 2])) for _ in range(repeats)]
    odd = (count - count // 2) / (count // 2)  # 1 for an even count
    spread = NormalDist().inv_cdf((1 + confidence) / 2) * float(np.std(found, ddof=1)) / odd**0.5
    return estimate - spread, estimate + spread

"""Bootstrap intervals against what is known in closed form."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.stats import beta, binom

from ito_ray.evaluation.intervals import bootstrap_ci, bootstrap_median_ci, half_sample_ci, paired_ci


@pytest.mark.parametrize(("hits", "n"), [(30, 100), (250, 1000), (900, 1000)])
def test_equals_the_binomial_interval(hits: int, n: int) -> None:
    """The mean of a resample of 0/1 values is Binomial(n, p) / n exactly."""
    expected = binom(n, hits / n).ppf([0.025, 0.975]) / n
    found = bootstrap_ci(np.arange(n) < hits, samples=20_000)
    np.testing.assert_allclose(found, expected, atol=1.5 / n)


def test_confidence_and_seed() -> None:
    hits = np.arange(200) < 80
    wide, narrow = bootstrap_ci(hits, confidence=0.99), bootstrap_ci(hits, confidence=0.8)
    assert wide[0] < narrow[0] < 0.4 < narrow[1] < wide[1]
    assert bootstrap_ci(hits) == bootstrap_ci(hits)
    assert bootstrap_ci(hits, seed=1) != bootstrap_ci(hits, seed=2)


@pytest.mark.parametrize("n", [3, 50])
def test_certainty_is_not_claimed_at_the_ends(n: int) -> None:
    """No hit, or nothing but hits: Clopper and Pearson's exact bound."""
    low, high = bootstrap_ci(np.zeros(n, dtype=bool))
    assert low == 0
    assert high == pytest.approx(beta.ppf(0.975, 1, n))
    low, high = bootstrap_ci(np.ones(n, dtype=bool))
    assert low == pytest.approx(beta.ppf(0.025, n, 1))
    assert high == 1


def test_groups_that_stand_or_fall_together_count_once() -> None:
    per_group = np.arange(100) < 40
    groups = np.repeat(np.arange(100), 10)
    alone = bootstrap_ci(per_group, samples=5000)
    grouped = bootstrap_ci(np.repeat(per_group, 10), groups=groups, samples=5000)
    assert grouped == pytest.approx(alone, abs=1e-12)
    ignored = bootstrap_ci(np.repeat(per_group, 10), samples=5000)
    ratio = (grouped[1] - grouped[0]) / (ignored[1] - ignored[0])
    assert ratio == pytest.approx(np.sqrt(10), rel=0.1)


def test_groups_of_unequal_size_equal_a_naive_bootstrap() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(1000, 1030, size=400)
    hits = rng.random(400) < (groups % 7) / 7
    members = [hits[groups == g] for g in np.unique(groups)]
    means = [
        np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]).mean() for _ in range(4000)
    ]
    np.testing.assert_allclose(
        bootstrap_ci(hits, groups=groups, samples=4000), np.quantile(means, [0.025, 0.975]), atol=0.01
    )


def test_memory_is_bounded() -> None:
    def peak(n: int) -> int:
        hits = np.arange(n) % 3 == 0
        tracemalloc.start()
        bootstrap_ci(hits, samples=100)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(100_000) < 1.2 * peak(20_000)


def test_refuses_nothing_and_wrong_groups() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        bootstrap_ci(np.zeros(0, dtype=bool))
    with pytest.raises(ValueError, match="groups has shape"):
        bootstrap_ci(np.ones(3, dtype=bool), groups=np.zeros(2, dtype=np.int64))


def test_paired_differences_are_a_bootstrap_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.random(300) < 0.6).astype(float), (rng.random(300) < 0.5).astype(float)
    drawn = rng.integers(300, size=(4000, 300))
    expected = np.quantile((one - other)[drawn].mean(axis=1), [0.025, 0.975])
    np.testing.assert_allclose(paired_ci(one, other, samples=4000), expected, atol=0.01)
    hard = rng.random(300)  # both find the same samples hard: much surer than two intervals would be
    close = paired_ci((hard < 0.60).astype(float), (hard < 0.57).astype(float))
    alone = bootstrap_ci(hard < 0.60)
    assert close[0] > 0
    assert close[1] - close[0] < (alone[1] - alone[0]) / 2
    low, high = paired_ci(one, one)
    assert -0.02 < low < 0 < high < 0.02


@pytest.mark.parametrize("grouped", [False, True])
def test_the_median_equals_a_naive_bootstrap(grouped: bool) -> None:
    rng = np.random.default_rng(1)
    values = rng.geometric(0.05, size=240)
    groups = rng.integers(0, 60, size=240) if grouped else None
    members = (
        [values[groups == g] for g in np.unique(groups)]
        if groups is not None
        else [values[i : i + 1] for i in range(240)]
    )
    medians = [
        np.median(np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]))
        for _ in range(3000)
    ]
    found = bootstrap_median_ci(values, groups=groups)
    np.testing.assert_allclose(found, np.quantile(medians, [0.025, 0.975]), atol=1.0)
    assert found[0] < np.median(values) < found[1]
    assert bootstrap_median_ci(np.full(9, 3)) == (3.0, 3.0)


@pytest.mark.parametrize("count", [300, 301])
def test_random_halves_are_as_wide_as_the_truth_of_a_mean(count: int) -> None:
    values = np.random.default_rng(2).normal(size=count)
    low, high = half_sample_ci(lambda half: float(values[half].mean()), count, float(values.mean()), repeats=4000)
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std(ddof=1) / np.sqrt(count), rel=0.05)

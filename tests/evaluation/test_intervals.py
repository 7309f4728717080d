"""Bootstrap intervals against what is known in closed form."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.stats import beta, binom  # type: ignore[import-untyped]

from ito_ray.evaluation.intervals import bootstrap_ci, paired_ci


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


def test_a_paired_interval_equals_its_closed_form() -> None:
    """Differences in {−1, 0, 1}: the resampled mean is (gains − losses) / n of a multinomial draw."""
    n, gains, losses = 400, 60, 30
    ours = np.arange(n) < gains
    theirs = (np.arange(n) >= gains) & (np.arange(n) < gains + losses)
    drawn = np.random.default_rng(1).multinomial(n, [gains / n, losses / n, 1 - (gains + losses) / n], size=200_000)
    expected = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.025, 0.975])
    np.testing.assert_allclose(paired_ci(ours, theirs, samples=20_000), expected, atol=1.5 / n)
    low, high = paired_ci(theirs, ours, samples=20_000)
    np.testing.assert_allclose((-high, -low), expected, atol=1.5 / n)


def test_pairing_sees_what_apart_is_lost() -> None:
    """Twenty of 1,000 more, and none less: sure when paired, lost in the noise of two intervals apart."""
    theirs = np.arange(1000) < 500
    ours = np.arange(1000) < 520
    assert paired_ci(ours, theirs)[0] > 0
    assert bootstrap_ci(ours)[0] < bootstrap_ci(theirs)[1]


def test_whole_groups_are_drawn_for_a_paired_interval() -> None:
    """Ten copies of each sample add no certainty."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(60) < 0.6, rng.random(60) < 0.5
    copied = paired_ci(np.repeat(ours, 10), np.repeat(theirs, 10), groups=np.repeat(np.arange(60), 10))
    np.testing.assert_allclose(copied, paired_ci(ours, theirs))


@pytest.mark.parametrize("n", [3, 50])
def test_a_paired_interval_claims_no_certainty(n: int) -> None:
    yes, no = np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
    share = beta.ppf(0.975, 1, n)  # at most so many are different
    assert paired_ci(yes, yes) == pytest.approx((-share, share))
    assert paired_ci(yes, no) == pytest.approx((1 - 2 * share, 1))
    assert paired_ci(no, yes) == pytest.approx((-1, 2 * share - 1))
    with pytest.raises(ValueError, match="must be equal"):
        paired_ci(yes, no[1:])

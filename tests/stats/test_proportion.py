"""Intervals of described counts and shares against published values, scipy, and their own laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from payoff.stats.proportion import order_statistic_ranks, poisson_count, wilson

levels = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99])


@given(st.integers(1, 10**7), st.floats(0, 1), levels)
def test_wilson_is_scipys_and_holds_its_share(n: int, share: float, level: float) -> None:
    k = round(share * n)
    low, high = wilson(k, n, level)
    theirs = stats.binomtest(k, n).proportion_ci(confidence_level=level, method="wilson") if n < 1e5 else None
    if theirs is not None:
        assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high


def test_wilson_is_closed_at_its_ends() -> None:
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=5e-5))
    assert wilson(10, 10) == (pytest.approx(0.7225, abs=5e-5), 1.0)


def test_wilson_of_newcombes_example() -> None:
    """Newcombe (1998), Statistics in Medicine 17:857, table I, method 3: 81 of 263 and 15 of 148."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_garwoods_table() -> None:
    """The limits that every table since Garwood (1936) gives at 95%: for counts of 0, 1, 2, 5 and 10."""
    published = {0: (0, 3.689), 1: (0.0253, 5.572), 2: (0.2422, 7.225), 5: (1.6235, 11.668), 10: (4.7954, 18.390)}
    for k, ends in published.items():
        assert poisson_count(k) == pytest.approx(ends, abs=5e-4)


@given(st.integers(0, 10**6), levels)
def test_the_ends_of_a_count_are_where_its_tails_are_half_of_what_is_left(k: int, level: float) -> None:
    low, high = poisson_count(k, level)
    assert stats.poisson.cdf(k, high) == pytest.approx((1 - level) / 2, rel=1e-6)
    if k:
        assert stats.poisson.sf(k - 1, low) == pytest.approx((1 - level) / 2, rel=1e-6)
    assert low <= k < high


def test_ranks_of_a_median_in_tables() -> None:
    """Conover's and every sign test's table: 95% ranks of a median of 6, 9, 10, 15, 20, 25 values."""
    found = {n: order_statistic_ranks(n, 0.5) for n in (6, 9, 10, 15, 20, 25)}
    assert found == {6: (1, 6), 9: (2, 8), 10: (2, 9), 15: (4, 12), 20: (6, 15), 25: (8, 18)}
    assert order_statistic_ranks(5, 0.5) is None
    assert order_statistic_ranks(0, 0.5) is None


@given(st.integers(1, 3000), st.floats(0.02, 0.98), levels)
def test_ranks_cover_and_closer_ones_would_not(n: int, q: float, level: float) -> None:
    ranks = order_statistic_ranks(n, q, level)
    tail = (1 - level) / 2
    if ranks is None:
        assert stats.binom.cdf(0, n, q) > tail or stats.binom.sf(n - 1, n, q) > tail
        return
    lower, upper = ranks
    assert 1 <= lower <= upper <= n
    # fewer than `lower` units at or below the quantile, or at least `upper`
    assert stats.binom.cdf(lower - 1, n, q) <= tail * (1 + 1e-9)
    assert stats.binom.sf(upper - 1, n, q) <= tail * (1 + 1e-9)
    assert stats.binom.cdf(lower, n, q) > tail * (1 - 1e-9)
    assert stats.binom.sf(upper - 2, n, q) > tail * (1 - 1e-9)


def test_ranks_cover_a_skewed_median() -> None:
    rng = np.random.default_rng(4)
    draws = np.sort(rng.lognormal(size=(4000, 25)), axis=1)
    ranks = order_statistic_ranks(25, 0.5)
    assert ranks is not None
    inside = np.mean((draws[:, ranks[0] - 1] <= 1.0) & (draws[:, ranks[1] - 1] >= 1.0))
    exact = stats.binom.cdf(ranks[1] - 1, 25, 0.5) - stats.binom.cdf(ranks[0] - 1, 25, 0.5)
    assert inside == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000))


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, math.nan])
def test_a_level_is_a_level(level: float) -> None:
    for call in (
        lambda: wilson(1, 2, level),
        lambda: poisson_count(1, level),
        lambda: order_statistic_ranks(9, 0.5, level),
    ):
        with pytest.raises(ValueError, match="confidence level"):
            call()


def test_what_is_no_share_no_count_and_no_quantile() -> None:
    for k, n in ((1, 0), (-1, 2), (3, 2)):
        with pytest.raises(ValueError, match="a share is of"):
            wilson(k, n)
    with pytest.raises(ValueError, match="not below zero"):
        poisson_count(-1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        order_statistic_ranks(10, 1.0)

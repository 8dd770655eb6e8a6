"""Quantiles by two ranks: exact binomial coverage, clustered rows, ties, and arms compared."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from payoff.estimate import FloatArray
from payoff.stats import quantile
from payoff.stats.compare import Level, difference
from payoff.stats.moments import Moments
from payoff.stats.quantile import outer_ranks, quantile_se


def counts(x: FloatArray, unit: FloatArray, q: float) -> Moments:
    """(rows at or below the sample quantile, rows) per unit."""
    below = np.bincount(unit.astype(int), weights=x <= np.quantile(x, q))
    return Moments.of(np.column_stack([below, np.bincount(unit.astype(int))]))


def read(x: FloatArray, unit: FloatArray, q: float, level: float = 0.95) -> tuple[float, float, float, Level]:
    """Value, low, high and Level, as the engine reads them with quantile_cont."""
    low, high = np.quantile(x, outer_ranks(counts(x, unit, q), len(x), q, level))
    value = float(np.quantile(x, q))
    m = counts(x, unit, q)
    return value, float(low), float(high), quantile.level(value, float(low), float(high), m.n, level)


def ranks(p: tuple[float, float], n: int) -> tuple[int, int]:
    """The 1-based ranks that the probabilities stand for."""
    low, high = (1 + end * (n - 1) for end in p)
    assert low == pytest.approx(round(low), abs=1e-6)
    assert high == pytest.approx(round(high), abs=1e-6)
    return round(low), round(high)


# --- one row a unit: order statistics ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "q"), [(30, 0.5), (100, 0.5), (100, 0.9), (1_000, 0.9), (1_000, 0.05), (20_000, 0.99)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_order_statistics_cover_by_the_exact_binomial(n: int, q: float, level: float) -> None:
    """P(X_(l) <= xi < X_(u)) = P(l <= B < u), B ~ Bin(n, q), for any continuous distribution (David and Nagaraja 2003,
    "Order Statistics", section 7.1): at least the level for outer ranks, and below it two ranks further in at each end."""
    x = np.random.default_rng(n).permutation(n).astype(float)
    low, high = ranks(outer_ranks(counts(x, np.arange(n), q), n, q, level), n)

    def covered(inwards: int) -> float:
        return float(stats.binom.cdf(high - inwards - 1, n, q) - stats.binom.cdf(low + inwards - 1, n, q))

    assert covered(0) >= level > covered(2)


@given(st.integers(200, 5_000), st.floats(0.1, 0.9))
def test_one_row_a_unit_is_the_binomial(n: int, q: float) -> None:
    """Half a width of t sqrt(q (1 - q) / n), but for n / (n - 1) and the rounding to ranks outwards: 2 ranks at most."""
    x = np.random.default_rng(n).permutation(n).astype(float)
    low, high = ranks(outer_ranks(counts(x, np.arange(n), q), n, q), n)
    half = stats.t.ppf(0.975, n - 1) * math.sqrt(q * (1 - q) * n)
    assert n * q - half * math.sqrt(n / (n - 1)) - 1 <= low <= n * q - half + 1e-6
    assert n * q + half - 1e-6 + 1 <= high <= n * q + half * math.sqrt(n / (n - 1)) + 2


@given(st.integers(200, 5_000), st.floats(0.1, 0.9))
def test_the_other_end_has_the_mirrored_ranks(n: int, q: float) -> None:
    assume(abs(n * q - round(n * q)) > 1e-6)
    low, high = ranks(outer_ranks(Moments(n, np.array([q, 1.0]), np.diag([q * (1 - q), 0.0])), n, q), n)
    turned = Moments(n, np.array([1 - q, 1.0]), np.diag([q * (1 - q), 0.0]))
    assert ranks(outer_ranks(turned, n, 1 - q), n) == (n + 1 - high, n + 1 - low)


# --- clustered rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_the_width_is_the_delta_methods_over_units(q: float) -> None:
    """Continuous rows: the share F at the sample quantile is q but for one row, and the variance that of a ratio."""
    rng = np.random.default_rng(2)
    unit = np.repeat(np.arange(400), rng.poisson(5, 400) + 1)
    x = rng.normal(size=400)[unit] + rng.normal(size=len(unit))
    m = counts(x, unit, q)
    (i, r), n = m.mean, m.n
    se = math.sqrt((m.cov[0, 0] - 2 * i / r * m.cov[0, 1] + (i / r) ** 2 * m.cov[1, 1]) / n) / r
    low, high = outer_ranks(m, len(x), q)
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, n - 1) * se, rel=0.01, abs=2 / len(x))
    assert se > 1.2 * math.sqrt(q * (1 - q) / len(x)), "the premise: rows of a unit are alike"


def test_rows_repeated_within_units_add_nothing() -> None:
    """Each unit's row written three times: the interval's ends are the same values, not a third as far apart."""
    x = np.random.default_rng(3).normal(size=500)
    one = read(x, np.arange(500), 0.5)
    three = read(np.repeat(x, 3), np.repeat(np.arange(500), 3), 0.5)
    assert three[3].se == pytest.approx(one[3].se, rel=0.15)  # ranks are rounded outwards by a third as much


@pytest.mark.parametrize(("n", "q", "alike"), [(60, 0.5, 1.0), (300, 0.9, 1.0), (300, 0.5, 0.0), (2_000, 0.99, 1.0)])
def test_clustered_intervals_cover(n: int, q: float, alike: float) -> None:
    """Skewed rows, several a unit, 1,200 worlds: at least 95% less 3.5 binomial errors, and outer by 3 points at most."""
    rng = np.random.default_rng([n, round(100 * q)])
    truth = math.exp(stats.norm.ppf(q) * math.sqrt(alike**2 + 1))
    hits, of_difference, worlds = 0, 0, 1_200
    for _ in range(worlds):
        arms = []
        for _ in range(2):
            unit = np.repeat(np.arange(n), rng.poisson(3, n) + 1)
            arms.append(read(np.exp(alike * rng.normal(size=n)[unit] + rng.normal(size=len(unit))), unit, q))
        hits += arms[0][1] <= truth <= arms[0][2]
        low, high = difference(arms[1][3], arms[0][3]).interval()
        of_difference += low <= 0 <= high
    room = 3.5 * math.sqrt(0.05 * 0.95 / worlds)
    for found in (hits / worlds, of_difference / worlds):
        assert 0.95 - room <= found <= 0.98 + room


# --- ties ----------------------------------------------------------------------------------------------------------------


def test_ties_widen_to_what_q_needs_and_a_tied_top_is_taken_as_one_row_a_unit() -> None:
    n = 1_000
    rng = np.random.default_rng(4)
    tied = np.floor(rng.exponential(2.0, n))
    at_q = outer_ranks(counts(tied, np.arange(n), 0.5), n, 0.5)
    smooth = outer_ranks(counts(rng.normal(size=n), np.arange(n), 0.5), n, 0.5)
    assert at_q == pytest.approx(smooth, abs=2 / n)
    # every row at or below the quantile: how alike a unit's rows are cannot be seen
    unit = np.repeat(np.arange(n), 4)
    low, high = outer_ranks(counts(np.ones(4 * n), unit, 0.5), 4 * n, 0.5)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.25 / n), rel=0.02)


def test_a_discrete_scale_is_still_covered() -> None:
    """Rows rounded to whole numbers, true 0.6 quantile 2 (Poisson(2): P(X <= 1) = .41, P(X <= 2) = .68)."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(1_000):
        x = rng.poisson(2.0, 200).astype(float)
        low, high = np.quantile(x, outer_ranks(counts(x, np.arange(200), 0.6), 200, 0.6))
        hits += low <= 2 <= high
    assert hits / 1_000 >= 0.95


# --- as a Level ----------------------------------------------------------------------------------------------------------


def test_a_level_gives_back_its_own_interval_when_that_is_symmetric() -> None:
    level = quantile.level(10.0, 8.0, 12.0, 50, 0.9)
    assert level.interval(0.9) == pytest.approx((8.0, 12.0), rel=1e-12)
    assert level.weights == ()
    assert level.se == pytest.approx(quantile_se(8.0, 12.0, 0.9, 49.0), rel=1e-12)
    assert quantile_se(8.0, 12.0, 0.95, math.inf) == pytest.approx(4 / (2 * 1.959963984540054), rel=1e-12)


OK = Moments(100, np.array([0.5, 1.0]), np.diag([0.25, 0.0]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: outer_ranks(OK, 100, 1.0), "lies between 0 and 1"),
        (lambda: outer_ranks(OK, 100, 0.5, 1.0), "confidence level"),
        (lambda: outer_ranks(OK.take([0]), 100, 0.5), "2 measures"),
        (lambda: outer_ranks(Moments.of([[1.0, 1.0]]), 1, 0.5), "it takes two"),
        (lambda: outer_ranks(OK, 200, 0.5), "do not fit"),
        (lambda: outer_ranks(OK, 100, 0.99), "its upper end lies beyond"),
        (lambda: outer_ranks(OK, 100, 0.01), "its lower end lies beyond"),
        (lambda: quantile_se(2.0, 1.0, 0.95, 9.0), "in order"),
        (lambda: quantile.level(1.0, 1.0, 1.0, 50), "too many rows have exactly this value"),
        (lambda: quantile.level(3.0, 1.0, 2.0, 50), "outside its own interval"),
        (lambda: quantile.level(1.0, 0.0, 2.0, 1), "it takes two"),
    ],
)
def test_refuses_in_plain_words(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=words):
        call()

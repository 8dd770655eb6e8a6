"""Looking more than once: against published tables, the multivariate normal, simulation, and the laws of the figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from payoff.estimate import FloatArray
from payoff.stats.sequential import (
    Spending,
    always_valid,
    always_valid_p,
    boundaries,
    crossing,
    error_of_peeking,
    repeated_interval,
    repeated_p,
)

FIFTHS = [0.2, 0.4, 0.6, 0.8, 1.0]
SPENDINGS: tuple[Spending, ...] = ("obrien_fleming", "pocock")


def equal(looks: int) -> list[float]:
    return [k / looks for k in range(1, looks + 1)]


# --- published tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spending", "table"),
    [
        # Lan and DeMets boundaries of ldbounds and gsDesign (sfLDOF, sfLDPocock), five equal looks, 5% two-sided
        ("obrien_fleming", (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ("pocock", (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
    ],
)
def test_boundaries_are_the_published_ones(spending: Spending, table: tuple[float, ...]) -> None:
    # the tables' own integration differs from ours in the fourth decimal
    assert boundaries(FIFTHS, 0.05, spending) == pytest.approx(table, abs=1.5e-4)


@pytest.mark.parametrize(
    ("looks", "pocock", "obrien_fleming"), [(2, 2.178, 1.977), (5, 2.413, 2.040), (10, 2.555, 2.087)]
)
def test_classical_boundaries_spend_five_percent(looks: int, pocock: float, obrien_fleming: float) -> None:
    """Jennison and Turnbull 2000, tables 2.1 and 2.3; a constant rounded to 0.0005 moves the error by about 0.0001."""
    assert sum(crossing(equal(looks), [pocock] * looks)) == pytest.approx(0.05, abs=1e-4)
    falling = [obrien_fleming / math.sqrt(t) for t in equal(looks)]
    assert sum(crossing(equal(looks), falling)) == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize(
    ("looks", "error"),
    [(1, 0.05), (2, 0.083), (3, 0.107), (4, 0.126), (5, 0.142), (10, 0.193), (20, 0.248), (50, 0.320)],
)
def test_error_of_peeking_is_that_of_armitage(looks: int, error: float) -> None:
    """Armitage, McPherson, Rowe 1969, as printed to three decimals."""
    assert error_of_peeking(equal(looks), 0.05) == pytest.approx(error, abs=6e-4)


# --- other ways to the same number -------------------------------------------------------------------------------


@pytest.mark.parametrize("information", [[0.3, 0.7, 1.0], [0.05, 0.9, 0.92], [0.5, 0.5004, 1.3], [0.02, 0.03, 0.5]])
@pytest.mark.parametrize("spending", SPENDINGS)
def test_boundaries_against_the_multivariate_normal(information: list[float], spending: Spending) -> None:
    """The chance of no crossing is that of a box, and each look has spent what the function allows."""
    t = np.array(information)
    covariance = np.sqrt(np.minimum.outer(t, t) / np.maximum.outer(t, t))
    critical = np.array(boundaries(information, 0.05, spending))
    for k in (2, 3):
        normal = stats.multivariate_normal(np.zeros(k), covariance[:k, :k], allow_singular=True, seed=1)
        normal.abseps = 1e-7
        inside = normal.cdf(critical[:k], lower_limit=-critical[:k])
        share = min(information[k - 1], 1.0)
        allowed = (
            4 * stats.norm.cdf(stats.norm.ppf(0.05 / 4) / math.sqrt(share))
            if spending == "obrien_fleming"
            else 0.05 * math.log(1 + (math.e - 1) * share)
        )
        assert 1 - inside == pytest.approx(allowed, abs=2e-6)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0, 1.4])
def test_one_look_at_all_the_information_is_a_fixed_design(share: float) -> None:
    (critical,) = boundaries([share], 0.05, "obrien_fleming")
    assert (critical == pytest.approx(1.959964, abs=1e-6)) == (share >= 1)
    assert repeated_p(2.5, [1.0], "pocock") == pytest.approx(2 * stats.norm.sf(2.5), rel=1e-9)


@pytest.mark.parametrize(
    ("information", "spending"),
    [
        ([0.4, 1.1], "obrien_fleming"),
        ([0.1, 0.15, 0.5, 0.85, 1.0], "obrien_fleming"),
        ([0.1, 0.15, 0.5, 0.85, 1.0], "pocock"),
        ([0.05, 0.06, 0.2, 0.3, 0.5, 0.55, 0.7, 0.701, 0.9, 1.02], "obrien_fleming"),
        ([0.05, 0.06, 0.2, 0.3, 0.5, 0.55, 0.7, 0.701, 0.9, 1.02], "pocock"),
    ],
)
def test_overall_error_is_five_percent_at_unequal_looks(information: list[float], spending: Spending) -> None:
    rng, worlds = np.random.default_rng(len(information)), 60_000
    steps = np.sqrt(np.diff([0.0, *information]))
    z = np.cumsum(rng.standard_normal((worlds, len(steps))) * steps, axis=1) / np.sqrt(information)
    found = float((np.abs(z) >= boundaries(information, 0.05, spending)).any(axis=1).mean())
    assert found == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / worlds))


def test_error_of_unequal_looks_against_simulation() -> None:
    information = [120, 150, 600, 601, 4000]
    rng, worlds = np.random.default_rng(8), 60_000
    steps = np.sqrt(np.diff([0, *information]))
    z = np.cumsum(rng.standard_normal((worlds, 5)) * steps, axis=1) / np.sqrt(information)
    found = float((np.abs(z) > 1.959964).any(axis=1).mean())
    assert error_of_peeking(information, 0.05) == pytest.approx(found, abs=4 * math.sqrt(0.13 * 0.87 / worlds))


# --- laws --------------------------------------------------------------------------------------------------------

rising = st.lists(st.floats(0.02, 1.0), min_size=1, max_size=5, unique=True).map(sorted)


@settings(deadline=None, max_examples=40)
@given(rising, st.floats(0.0, 6.0), st.floats(1e-6, 0.5), st.sampled_from(SPENDINGS))
def test_repeated_p_and_interval_agree(information: list[float], z: float, alpha: float, spending: Spending) -> None:
    if any(b < a * 1.01 for a, b in itertools.pairwise(information)):
        information = information[-1:]
    critical = boundaries(information, alpha, spending)[-1]
    low, _ = repeated_interval(z, 1.0, critical)
    p = repeated_p(z, information, spending)
    if abs(z - critical) > 1e-7:
        assert (p <= alpha) == (low > 0)
    assert repeated_p(-z, information, spending) == p


def test_looks_made_so_far_do_not_depend_on_those_to_come() -> None:
    assert boundaries(FIFTHS[:3], 0.05, "pocock") == pytest.approx(boundaries(FIFTHS, 0.05, "pocock")[:3], abs=1e-9)


def test_looks_apart_by_next_to_nothing_count_as_one() -> None:
    critical = boundaries([0.5, 0.500001, 1.0, 1.000001], 0.05, "obrien_fleming")
    assert critical[0] == critical[1]
    assert critical[2] == critical[3]
    assert (critical[0], critical[2]) == pytest.approx(boundaries([0.5, 1.0], 0.05, "obrien_fleming"), abs=1e-4)
    assert error_of_peeking([1, 1.000001], 0.05) == pytest.approx(0.05)


def test_a_look_with_nothing_to_spend_finds_nothing() -> None:
    early, late = boundaries([1e-5, 1.0], 0.05, "obrien_fleming")
    assert 37 < early < 38
    assert late == pytest.approx(1.959964, abs=1e-5)


def test_thousands_of_looks_keep_rising() -> None:
    assert 0.37 < error_of_peeking(equal(100), 0.05) < 0.38
    assert error_of_peeking(equal(100), 0.05) < error_of_peeking(equal(1000), 0.05) < 1


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.integers(1, 10**9),
    st.integers(2, 10**7),
    st.floats(1e-6, 0.9),
    st.floats(0.001, 0.2),
)
def test_always_valid_p_and_interval_agree_at_every_level(
    value: float, se: float, n: int, tightest_at: int, alpha: float, design_alpha: float
) -> None:
    low, high = always_valid(value, se, n, tightest_at, 1 - alpha, design_alpha=design_alpha)
    p = always_valid_p(value, se, n, tightest_at, design_alpha)
    distance = min(abs(low), abs(high))
    if distance > 1e-6 * se:  # at the edge itself rounding decides
        assert (p <= alpha) == (low > 0 or high < 0)
    assert high - value == pytest.approx(value - low, rel=1e-6, abs=1e-9)
    k = always_valid(1000 * value, 1000 * se, n, tightest_at, 1 - alpha, design_alpha=design_alpha)
    assert k == pytest.approx((1000 * low, 1000 * high), rel=1e-9, abs=1e-6 * se)


def test_always_valid_is_growthbooks_formula_and_tightest_where_it_says() -> None:
    """sigma sqrt(2 (t r^2 + 1) / (t^2 r^2) ln(sqrt(t r^2 + 1) / a)), r = sqrt((-2 ln a + ln(1 - 2 ln a)) / N), as GrowthBook writes it."""
    a, tightest, n, sigma = 0.05, 5_000, 12_000, 3.0
    r2 = (-2 * math.log(a) + math.log(1 - 2 * math.log(a))) / tightest
    half = sigma * math.sqrt(2 * (n * r2 + 1) / (n * n * r2) * math.log(math.sqrt(n * r2 + 1) / a))
    _, high = always_valid(0.0, sigma / math.sqrt(n), n, tightest, 0.95, design_alpha=a)
    assert high == pytest.approx(half, rel=1e-12)
    # in standard errors the width is smallest near the size asked for (Howard et al. 2021: to a few percent of the size)
    sizes = np.geomspace(500, 50_000, 4001)
    widths = [always_valid(0.0, 1.0, n, tightest, 0.95, design_alpha=a)[1] for n in sizes]
    assert sizes[int(np.argmin(widths))] == pytest.approx(tightest, rel=0.05)


def test_always_valid_p_of_another_null_is_that_of_a_shifted_value() -> None:
    assert always_valid_p(3.0, 1.0, 500, 1000, 0.05, null=0.5) == always_valid_p(2.5, 1.0, 500, 1000, 0.05)


# --- the error of ever being wrong -------------------------------------------------------------------------------

Draw = Callable[[np.random.Generator, tuple[int, ...]], FloatArray]


def _buyers(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    return np.where(rng.random(shape) < 0.2, rng.lognormal(0, 0.8, shape), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda rng, shape: rng.standard_normal(shape), id="normal"),
        pytest.param(lambda rng, shape: rng.exponential(size=shape), id="skewed"),
        pytest.param(_buyers, id="mostly zero"),
    ],
)
def test_always_valid_is_wrong_at_any_of_a_hundred_looks_less_than_five_percent(draw: Draw) -> None:
    rng, worlds, looks, each = np.random.default_rng(11), 3000, 100, 100
    wrong = fixed = 0
    n = 2.0 * each * np.arange(1, looks + 1)
    for _ in range(worlds // 100):
        y = draw(rng, (100, 2, looks, each))
        total, squares = y.sum(axis=3).cumsum(axis=2), (y**2).sum(axis=3).cumsum(axis=2)
        mean = total / (n / 2)
        variance = (squares - total * mean) / (n / 2 - 1) / (n / 2)
        gap, se = mean[:, 0] - mean[:, 1], np.sqrt(variance.sum(axis=1))
        fixed += int((np.abs(gap) > 1.96 * se).any(axis=1).sum())
        half = np.array([always_valid(0.0, 1.0, k, 10_000, 0.95, design_alpha=0.05)[1] for k in n])
        wrong += int((np.abs(gap) > half * se).any(axis=1).sum())
    assert wrong / worlds < 0.05
    # the same looks with a fixed interval: what the exact recursion says, to four Monte Carlo errors
    expected = error_of_peeking([float(k) for k in n], 0.05)
    assert fixed / worlds == pytest.approx(expected, abs=4 * math.sqrt(0.24 / worlds))


# --- refused -----------------------------------------------------------------------------------------------------


def test_a_look_after_all_was_spent_is_refused() -> None:
    with pytest.raises(ValueError, match="105% of the planned units has spent the whole error rate"):
        boundaries([0.5, 1.05, 1.2], 0.05, "pocock")


@pytest.mark.parametrize("information", [[], [0.0, 1.0], [0.5, 0.5], [0.9, 0.4], [math.nan], [math.inf]])
def test_information_that_cannot_be_is_refused(information: list[float]) -> None:
    with pytest.raises(ValueError, match=r"look"):
        boundaries(information, 0.05, "pocock")
    with pytest.raises(ValueError, match=r"look"):
        error_of_peeking(information, 0.05)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, math.nan])
def test_levels_out_of_range_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        boundaries([1.0], bad, "pocock")
    with pytest.raises(ValueError, match="between 0 and 1"):
        error_of_peeking([1.0], bad)
    with pytest.raises(ValueError, match="between 0 and 1"):
        always_valid(0.0, 1.0, 10, 10, bad, design_alpha=0.05)
    with pytest.raises(ValueError, match="between 0 and 1"):
        always_valid_p(0.0, 1.0, 10, 10, bad)


def test_other_figures_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="standard error above zero"):
        always_valid(0.0, 0.0, 10, 10, 0.95, design_alpha=0.05)
    with pytest.raises(ValueError, match="needs units"):
        always_valid(0.0, 1.0, 0, 10, 0.95, design_alpha=0.05)
    with pytest.raises(ValueError, match="tightest"):
        always_valid(0.0, 1.0, 10, 0, 0.95, design_alpha=0.05)
    with pytest.raises(ValueError, match="z statistic"):
        repeated_p(math.nan, [1.0], "pocock")
    with pytest.raises(ValueError, match="as many critical values"):
        crossing([0.5, 1.0], [2.0])
    with pytest.raises(ValueError, match="critical value"):
        crossing([1.0], [0.0])
    with pytest.raises(ValueError, match="spent as"):
        boundaries([0.5], 0.05, "linear")  # type: ignore[arg-type]

"""Means from sums, stickiness, cost per unit and payback: against numpy, scipy, laws, and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from payoff.stats import cohort
from payoff.stats.proportion import wilson


def test_a_mean_from_sums_is_the_t_interval_of_the_values() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        values = rng.lognormal(2, 1, int(rng.integers(2, 200))) * (rng.random() < 0.9)
        found = cohort.mean_of(len(values), float(values.sum()), float((values**2).sum()))
        if np.ptp(values) == 0:
            assert found is None
            continue
        assert found is not None
        expected = scipy_stats.t.interval(0.9, len(values) - 1, values.mean(), scipy_stats.sem(values))
        assert found.interval(0.9) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 9.99, 1e8, -3.3])
def test_no_spread_gives_no_mean(value: float) -> None:
    values = np.full(1001, value)
    assert cohort.mean_of(1001, float(values.sum()), float((values**2).sum())) is None
    assert cohort.mean_of(1, value, value**2) is None


def test_sums_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        cohort.mean_of(3, 1.0, float("inf"))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.sampled_from([0.8, 0.95]))
def test_stickiness_is_dau_over_mau_and_its_interval_can_be(days: list[int], level: float) -> None:
    value, low, high = cohort.share_of_days(len(days), sum(days), sum(d * d for d in days), 30, level)
    assert value == pytest.approx(np.mean(days) / 30)
    assert 1 / 30 - 1e-12 <= low <= value <= high <= 1 + 1e-12


def test_stickiness_of_units_all_alike_has_wilsons_interval() -> None:
    value, low, high = cohort.share_of_days(40, 40 * 15, 40 * 225, 30, 0.95)
    assert value == 0.5
    assert (low, high) == pytest.approx(wilson(20, 40, 0.95))


def test_stickiness_covers() -> None:
    rng = np.random.default_rng(3)
    p = 0.3
    truth = 28 * p / (1 - (1 - p) ** 28) / 28
    hits = 0
    for _ in range(2000):
        days = rng.binomial(28, p, 80)
        days = days[days > 0]
        _, low, high = cohort.share_of_days(len(days), int(days.sum()), int((days**2).sum()), 28, 0.95)
        hits += low <= truth <= high
    assert abs(hits / 2000 - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize(("n", "total"), [(0, 0), (3, 2), (2, 61)])
def test_days_that_cannot_be_are_refused(n: int, total: int) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        cohort.share_of_days(n, total, total, 30, 0.95)


def test_cost_per_unit_has_the_exact_interval_of_the_count() -> None:
    value, low, high = cohort.cost_per_unit(1000.0, 10, 0.95)
    # Garwood's interval for a count of 10: 4.795 to 18.39
    assert value == 100
    assert (low, high) == pytest.approx((1000 / 18.3904, 1000 / 4.7954), rel=1e-4)


@pytest.mark.parametrize(("cost", "units"), [(0.0, 5), (-1.0, 5), (10.0, 0), (float("nan"), 2)])
def test_a_cost_per_unit_needs_both(cost: float, units: int) -> None:
    with pytest.raises(ValueError, match="no cost per unit"):
        cohort.cost_per_unit(cost, units, 0.95)


def test_payback_by_hand() -> None:
    bands = [(1.0, 0.5, 1.5), None, (4.0, 3.0, 5.0), (5.0, 4.5, 5.5), (6.0, 5.2, 6.8)]
    assert cohort.payback(bands, 5.0) == cohort.Payback(period=3, earliest=2, latest=4)
    assert cohort.payback(bands, 6.0) == cohort.Payback(period=4, earliest=4, latest=None)
    assert cohort.payback(bands, 6.5) == cohort.Payback(period=None, earliest=4, latest=None)
    assert cohort.payback(bands, 0.2) == cohort.Payback(0, 0, 0)
    assert cohort.payback([], 1.0) == cohort.Payback(None, None, None)
    with pytest.raises(ValueError, match="does not hold"):
        cohort.payback([(1.0, 2.0, 3.0)], 1.0)


@given(st.lists(st.tuples(st.floats(-5, 20), st.floats(0, 5), st.floats(0, 5)), max_size=12), st.floats(0, 15))
def test_payback_is_between_its_ends(steps: list[tuple[float, float, float]], cost: float) -> None:
    found = cohort.payback([(v, v - a, v + b) for v, a, b in steps], cost)
    if found.latest is not None:
        assert found.period is not None
        assert found.period <= found.latest
    if found.period is not None:
        assert found.earliest is not None
        assert found.earliest <= found.period

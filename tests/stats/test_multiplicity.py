"""Many questions: against statsmodels, and the errors that each correction promises."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from payoff.estimate import FloatArray, Normal
from payoff.stats.multiplicity import (
    Corrected,
    Interval,
    benjamini_hochberg,
    benjamini_hochberg_family,
    holm,
    holm_family,
)

FAMILIES = (holm_family, benjamini_hochberg_family)
Family = Callable[..., Corrected]
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def normal(values: FloatArray | list[float], df: float = math.inf) -> tuple[list[float], Interval]:
    spread = Normal(1.0, df)
    return [spread.p_value(v) for v in values], lambda i, level: spread.interval(values[i], level)


@given(p_values)
def test_adjusted_p_values_are_those_of_statsmodels(p: list[float]) -> None:
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], rel=1e-12)
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1], rel=1e-12)


@given(p_values, st.data())
def test_order_changes_nothing(p: list[float], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(p))))
    for adjust in (holm, benjamini_hochberg):
        whole = adjust(p)
        assert adjust([p[i] for i in order]) == tuple(whole[i] for i in order)


def test_one_question_is_left_as_it_is() -> None:
    p, interval = normal([2.3])
    for family in FAMILIES:
        found = family(p, interval, 0.95, [2.3])
        assert found.p_values == tuple(p)
        assert found.intervals[0] == pytest.approx(interval(0, 0.95), rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@given(
    values=st.lists(st.floats(-6, 6), min_size=1, max_size=10),
    df=st.sampled_from([5.0, 60.0, math.inf]),
    level=st.sampled_from([0.8, 0.95, 0.99]),
)
def test_an_interval_excludes_zero_exactly_when_its_p_value_says_so(
    family: Family, values: list[float], df: float, level: float
) -> None:
    p, interval = normal(values, df)
    found = family(p, interval, level, values)
    for value, q, (low, high) in zip(values, found.p_values, found.intervals, strict=True):
        assert (q <= 1 - level) == (low > 0 or high < 0)
        assert low <= value <= high
        assert not (low > 0 and value < 0)


def test_what_is_cut_and_what_is_not() -> None:
    """Four z of 4, 2.4, -2.3 and 0.5: Bonferroni at 5% finds the first alone (2.498), Holm neither of the next two (2.394 for three),
    and once the second is 2.41, both it and not the third (2.241 for two would do)."""
    values = [4.0, 2.41, -2.3, 0.5]
    p, interval = normal(values)
    found = holm_family(p, interval, 0.95, values)
    half = stats.norm.ppf(1 - 0.05 / 8)
    assert [q <= 0.05 for q in found.p_values] == [True, True, True, False]
    assert found.intervals[0] == pytest.approx((4 - half, 4 + half))
    assert 0 < found.intervals[1][0] < 1e-12
    assert found.intervals[1][1] == pytest.approx(2.41 + half)
    assert -1e-12 < found.intervals[2][1] < 0
    assert found.intervals[2][0] == pytest.approx(-2.3 - half)
    assert found.intervals[3] == pytest.approx((0.5 - half, 0.5 + half))
    assert found.level == pytest.approx(1 - 0.05 / 4)


def test_false_coverage_level_counts_the_findings() -> None:
    values = [4.0, 3.0, 0.1, 0.2]
    p, interval = normal(values)
    found = benjamini_hochberg_family(p, interval, 0.95, values)
    assert found.level == pytest.approx(1 - 2 * 0.05 / 4)
    assert found.intervals[0] == pytest.approx(interval(0, found.level))
    none = benjamini_hochberg_family(*normal([0.1, 0.2]), 0.95, [0.1, 0.2])
    assert none.level == pytest.approx(1 - 0.05 / 2)


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_holm_is_wrong_anywhere_in_five_percent_of_families_and_each_interval_covers(rho: float) -> None:
    """Ten questions, five truly zero, sharing a control where rho > 0."""
    rng, worlds = np.random.default_rng(1), 2500
    truth = np.array([0.0] * 5 + [1.0, 2.0, 3.0, 4.0, 8.0])
    false = misses = every = 0
    for _ in range(worlds):
        z = truth + math.sqrt(rho) * rng.standard_normal() + math.sqrt(1 - rho) * rng.standard_normal(10)
        found = holm_family(*normal(z), 0.95, list(z))
        low, high = np.array(found.intervals).T
        outside = (truth < low) | (truth > high)
        false += bool(outside[:5].any())
        misses += int(outside.sum())
        every += bool(outside.any())
    # at most; plus three Monte Carlo errors
    assert false / worlds < 0.05 + 3 * math.sqrt(0.05 * 0.95 / worlds)
    assert misses / worlds / 10 < 0.05
    assert every / worlds < 0.10


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_false_discovery_and_false_coverage_are_five_percent_at_most(share: float) -> None:
    rng, worlds, m = np.random.default_rng(2), 2000, 20
    truth = np.where(np.arange(m) < share * m, 2.5, 0.0)
    discoveries, coverages = [], []
    for _ in range(worlds):
        z = truth + rng.standard_normal(m)
        found = benjamini_hochberg_family(*normal(z), 0.95, list(z))
        low, high = np.array(found.intervals).T
        picked = np.array(found.p_values) <= 0.05
        r = max(int(picked.sum()), 1)
        discoveries.append((picked & (truth == 0)).sum() / r)
        coverages.append((picked & ((truth < low) | (truth > high))).sum() / r)
    error = 3 * float(np.std(coverages)) / math.sqrt(worlds)
    assert np.mean(discoveries) < 0.05 * (1 - share) + error
    assert np.mean(coverages) < 0.05 + error


def test_rounding_between_p_and_interval_does_not_let_them_disagree() -> None:
    found = holm_family([0.04, 0.9], lambda i, level: (0.1, 0.3), 0.95, [0.2, 0.2])
    assert found.intervals == ((0.0, 0.3), (0.0, 0.3))


def test_what_cannot_be_is_refused() -> None:
    whole: Interval = lambda i, level: (-1.0, 1.0)  # noqa: E731
    for bad in ([], [math.nan], [1.2], [-0.1]):
        with pytest.raises(ValueError, match="p-value"):
            holm(bad)
        with pytest.raises(ValueError, match="p-value"):
            benjamini_hochberg(bad)
    with pytest.raises(ValueError, match="confidence level"):
        holm_family([0.1], whole, 1.0, [1.0])
    with pytest.raises(ValueError, match="as many values"):
        holm_family([0.1], whole, 0.95, [1.0, 2.0])
    with pytest.raises(ValueError, match="finite and in order"):
        holm_family([0.1], lambda i, level: (1.0, -1.0), 0.95, [1.0])
    with pytest.raises(ValueError, match="value of zero"):
        holm_family([0.01], whole, 0.95, [0.0])

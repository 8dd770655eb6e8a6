"""Effects that differ: against published tables and other implementations, simulation with known truth, and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.regression.linear_model import GLS
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.oneway import anova_generic

from payoff.estimate import FloatArray
from payoff.stats.compare import Level, difference, mean_level
from payoff.stats.heterogeneity import (
    assignment_dependence,
    cumulative,
    effect_interaction,
    gail_simon,
    interaction,
    partial_pooling,
    simultaneous_band,
    steps_differ,
    trend,
)
from payoff.stats.moments import Moments

classes = st.integers(2, 8).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(-50, 50), min_size=k, max_size=k), st.lists(st.floats(0.1, 10), min_size=k, max_size=k)
    )
)


def four_errors(share: float, worlds: int) -> float:
    return 4 * math.sqrt(share * (1 - share) / worlds)


# --- interaction -------------------------------------------------------------------------------------------------


@given(classes)
def test_q_is_that_of_statsmodels(of: tuple[list[float], list[float]]) -> None:
    values, ses = np.array(of[0]), np.array(of[1])
    assume(np.ptp(values) > 1e-6)  # statsmodels divides by Q
    oracle = combine_effects(values, ses**2).test_homogeneity()
    found = interaction(of[0], of[1])
    assert found.statistic == pytest.approx(oracle.statistic, rel=1e-8, abs=1e-8)
    assert found.df == len(values) - 1
    assert found.p_value == pytest.approx(oracle.pvalue, rel=1e-6, abs=1e-12)


def test_small_classes_use_welchs_f() -> None:
    """statsmodels' Welch anova of group means is the same formula with se^2 = variance / n and n - 1 degrees of freedom."""
    means, variances, n = np.array([1.0, 2.5, 0.3, 1.9]), np.array([1.0, 4.0, 2.0, 0.5]), np.array([8, 12, 30, 9])
    oracle = anova_generic(means, variances, n, use_var="unequal", welch_correction=True)
    found = interaction(means.tolist(), np.sqrt(variances / n).tolist(), (n - 1).tolist())
    assert found.p_value == pytest.approx(oracle.pvalue, rel=1e-9)


@given(classes, st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_unit_shift_and_order_leave_the_interaction(
    of: tuple[list[float], list[float]], unit: float, shift: float
) -> None:
    values, ses = of
    p = interaction(values, ses).p_value
    moved = [unit * (v + shift) for v in values]
    assert interaction(moved, [unit * s for s in ses]).p_value == pytest.approx(p, rel=1e-5, abs=1e-9)
    assert interaction(values[::-1], ses[::-1]).p_value == pytest.approx(p, rel=1e-9, abs=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize(("k", "n"), [(2, 12), (5, 25), (20, 25)])
def test_small_classes_that_do_not_differ_are_said_to_in_five_percent(k: int, n: int) -> None:
    rng, worlds = np.random.default_rng(k), 4000
    found = loose = 0
    for _ in range(worlds):
        y = rng.standard_normal((k, 2, n)) * np.array([1.0, 2.0])[:, np.newaxis]
        mean, v = y.mean(axis=2), y.var(axis=2, ddof=1) / n
        gap, se2 = mean[:, 1] - mean[:, 0], v.sum(axis=1)
        df = se2**2 / (v**2 / (n - 1)).sum(axis=1)
        found += interaction(gap, np.sqrt(se2), df).p_value <= 0.05
        loose += interaction(gap, np.sqrt(se2)).p_value <= 0.05
    # Welch's F is itself an approximation, to about half a percent here
    assert found / worlds == pytest.approx(0.05, abs=four_errors(0.05, worlds) + 0.004)
    assert loose >= found


# --- qualitative interaction -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "critical"),
    [
        # Gail and Simon 1985, table 1: at .10, .05, .01, .001
        (2, (1.64, 2.71, 5.41, 9.55)),
        (3, (2.95, 4.23, 7.29, 11.76)),
        (4, (4.01, 5.43, 8.75, 13.47)),
        (5, (4.96, 6.50, 10.02, 14.95)),
    ],
)
def test_critical_values_are_those_of_gail_and_simon(k: int, critical: tuple[float, ...]) -> None:
    for alpha, table in zip((0.1, 0.05, 0.01, 0.001), critical, strict=True):

        def surplus(q: float, alpha: float = alpha) -> float:
            return gail_simon([math.sqrt(q)] + [-100.0] * (k - 1), [1.0] * k).p_value - alpha

        # two printed decimals; their .001 entry for five classes is 0.01 below the formula's 14.96
        assert optimize.brentq(surplus, 0.01, 50) == pytest.approx(table, abs=0.016)


@given(classes)
def test_a_flip_has_no_direction_and_no_unit(of: tuple[list[float], list[float]]) -> None:
    values, ses = of
    found = gail_simon(values, ses)
    assert gail_simon([-v for v in values], ses) == found
    assert gail_simon([100 * v for v in values], [100 * s for s in ses]).p_value == pytest.approx(
        found.p_value, rel=1e-9
    )
    assert gail_simon(values[::-1], ses[::-1]).p_value == pytest.approx(found.p_value, rel=1e-9)
    assert 0 <= found.p_value <= 1
    if min(values) >= 0 or max(values) <= 0:
        assert found.p_value == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [None, 10.0])
def test_a_flip_is_found_in_five_percent_at_most_at_the_worst_null(degrees: float | None) -> None:
    """The worst null (Gail and Simon 1985): one effect far on one side and all others zero, so that the smaller sum is that of those
    others on the other side; the size is then exactly alpha."""
    rng, worlds = np.random.default_rng(6), 20_000
    for k in (2, 4):
        truth = np.array([50.0] + [0.0] * (k - 1))
        noise = rng.standard_normal((worlds, k)) if degrees is None else rng.standard_t(degrees, (worlds, k))
        dfs = None if degrees is None else [degrees] * k
        found = sum(gail_simon(z, [1.0] * k, dfs).p_value <= 0.05 for z in truth + noise)
        assert found / worlds == pytest.approx(0.05, abs=four_errors(0.05, worlds))


def test_student_effects_with_infinite_degrees_are_normal_ones() -> None:
    values, ses = [1.0, -2.0, 3.0], [1.0, 0.7, 2.0]
    assert gail_simon(values, ses, [math.inf] * 3) == gail_simon(values, ses)
    assert gail_simon(values, ses, [1e9] * 3).p_value == pytest.approx(gail_simon(values, ses).p_value, rel=1e-6)
    assert gail_simon(values, ses, [5.0] * 3).p_value > gail_simon(values, ses).p_value
    assert interaction(values, ses, [math.inf] * 3) == interaction(values, ses)


# --- partial pooling ---------------------------------------------------------------------------------------------

SCHOOLS = ([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
"""Rubin 1981, eight schools."""


def test_eight_schools_against_quadrature() -> None:
    """The same model integrated over (mu, tau) by brute force."""
    y, se = (np.array(x) for x in SCHOOLS)
    s0 = 1 / math.sqrt(np.mean(1 / se**2))
    mu, tau = np.linspace(-60, 75, 700), np.geomspace(0.003 * s0, 60 * s0, 900)
    m, t = np.meshgrid(mu, tau, indexing="ij")
    log = -np.log1p((t / (5 * s0)) ** 2) + np.log(t)  # half-Cauchy, on a grid that is even in ln tau
    for yi, si in zip(y, se, strict=True):
        log += stats.norm.logpdf(yi, m, np.sqrt(si**2 + t**2))
    w = np.exp(log - log.max())
    w /= w.sum()
    found = partial_pooling(*SCHOOLS)
    assert found.mean == pytest.approx(float((w * m).sum()), abs=0.02)
    assert found.mean_se == pytest.approx(math.sqrt(float((w * (m - found.mean) ** 2).sum())), rel=0.01)
    for i in range(8):
        share = t**2 / (t**2 + se[i] ** 2)
        centre, own = m + share * (y[i] - m), np.sqrt(share) * se[i]
        mean = float((w * centre).sum())
        assert found.values[i] == pytest.approx(mean, abs=0.02)
        assert found.ses[i] == pytest.approx(math.sqrt(float((w * (own**2 + (centre - mean) ** 2)).sum())), rel=0.01)
        for end, q in zip(found.intervals[i], (0.025, 0.975), strict=True):
            assert float((w * stats.norm.cdf(end, centre, own)).sum()) == pytest.approx(q, abs=5e-4)
    below = np.cumsum(w.sum(axis=0))
    assert found.tau == pytest.approx(tau[int(np.searchsorted(below, 0.5))], rel=0.03)


@given(classes, st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_pooling_has_no_unit_no_origin_and_no_order(
    of: tuple[list[float], list[float]], unit: float, shift: float
) -> None:
    values, ses = of
    found = partial_pooling(values, ses)
    moved = partial_pooling([unit * (v + shift) for v in values], [unit * s for s in ses])
    assert np.array(moved.values) / unit - shift == pytest.approx(np.array(found.values), rel=1e-5, abs=1e-5)
    assert np.array(moved.ses) / unit == pytest.approx(np.array(found.ses), rel=1e-5)
    assert moved.tau / unit == pytest.approx(found.tau, rel=1e-5)
    back = partial_pooling(values[::-1], ses[::-1])
    assert back.values[::-1] == pytest.approx(found.values, rel=1e-7, abs=1e-7)
    low, high = min(values) - 1e-9, max(values) + 1e-9
    assert all(low <= v <= high for v in found.values)
    assert np.sqrt(np.diagonal(found.covariance)) == pytest.approx(found.ses)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("k", [2, 5, 12])
def test_pooled_intervals_cover_and_pooled_values_are_nearer(k: int, scale: float) -> None:
    rng, worlds = np.random.default_rng(10 * k + int(scale)), 800
    inside, pooled_error, raw_error = [], 0.0, 0.0
    for _ in range(worlds):
        se = rng.uniform(0.5, 2.0, k)
        theta = rng.normal(5.0, scale, k)
        y = rng.normal(theta, se)
        found = partial_pooling(y, se)
        low, high = np.array(found.intervals).T
        inside.append(((low <= theta) & (theta <= high)).mean())
        pooled_error += float(((found.values - theta) ** 2).sum())
        raw_error += float(((y - theta) ** 2).sum())
    # one point below 95% is what was seen at worst (three standard errors of these classes apart), and Monte Carlo error
    assert np.mean(inside) > 0.94 - 3 * float(np.std(inside)) / math.sqrt(worlds)
    assert pooled_error < raw_error


def test_alike_is_drawn_together_and_unlike_is_left_alone() -> None:
    alike = partial_pooling([1.0, 1.1, 0.9, 1.0, 1.05, 0.95], [1.0] * 6)
    assert max(alike.values) - min(alike.values) < 0.08
    apart = partial_pooling([0.0, 1e4, -1e4, 3e4], [1.0] * 4)
    assert apart.values == pytest.approx([0.0, 1e4, -1e4, 3e4], abs=0.01)
    assert apart.ses == pytest.approx([1.0] * 4, rel=1e-3)
    assert 5e3 < apart.tau < 5e4
    assert apart.tau_interval[0] < apart.tau < apart.tau_interval[1]


def test_a_given_mean_is_what_values_are_drawn_to() -> None:
    found = partial_pooling([1.0, 1.2, 0.8], [1.0, 1.0, 1.0], mean=0.0)
    assert (found.mean, found.mean_se) == (0.0, 0.0)
    assert all(0 < v < y for v, y in zip(found.values, [1.0, 1.2, 0.8], strict=True))


# --- over time ---------------------------------------------------------------------------------------------------


def steps(seed: int, k: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((k, k)) + 2 * np.eye(k)
    return rng.standard_normal(k), root @ root.T, np.cumsum(rng.uniform(0.5, 2, k))


@pytest.mark.parametrize("k", [2, 3, 7])
def test_trend_and_equality_are_statsmodels_gls(k: int) -> None:
    y, cov, t = steps(k, k)
    oracle = GLS(y, np.column_stack([np.ones(k), t]), sigma=cov).fit(cov_type="fixed scale", use_t=False)
    found = trend(y, cov, t)
    assert (found.slope, found.se) == pytest.approx((oracle.params[1], oracle.bse[1]), rel=1e-9)
    assert found.p_value == pytest.approx(oracle.pvalues[1], rel=1e-8)
    apart = np.diff(np.eye(k), axis=0)
    q = (apart @ y) @ np.linalg.solve(apart @ cov @ apart.T, apart @ y)
    same = steps_differ(y, cov)
    assert (same.statistic, same.df) == pytest.approx((q, k - 1), rel=1e-9)
    assert same.p_value == pytest.approx(stats.chi2.sf(q, k - 1), rel=1e-8)


@given(st.integers(0, 1000), st.integers(2, 6), st.floats(1e-6, 1e6), st.floats(1e-2, 1e2))
def test_trends_follow_their_units(seed: int, k: int, money: float, days: float) -> None:
    y, cov, t = steps(seed, k)
    for df in (math.inf, 50.0):
        found = trend(y, cov, t, df)
        other = trend(money * y, money**2 * cov, days * t + 7, df)
        assert other.slope == pytest.approx(found.slope * money / days, rel=1e-6)
        assert other.p_value == pytest.approx(found.p_value, rel=1e-6)
        assert trend(-y, cov, t, df).slope == pytest.approx(-found.slope, rel=1e-9)
        assert trend(y + 3, cov, t, df).slope == pytest.approx(found.slope, rel=1e-6, abs=1e-8)
        assert trend(y[::-1], cov[::-1, ::-1], t[::-1], df).p_value == pytest.approx(found.p_value, rel=1e-6)
        assert steps_differ(money * y, money**2 * cov, df).p_value == pytest.approx(
            steps_differ(y, cov, df).p_value, rel=1e-6
        )


def test_hotelling_of_two_steps_is_a_paired_t() -> None:
    y = np.random.default_rng(3).normal([0.0, 0.4], 1.0, (15, 2))
    oracle = stats.ttest_rel(y[:, 0], y[:, 1]).pvalue
    mean, cov = y.mean(axis=0), np.cov(y.T) / 15
    assert steps_differ(mean, cov, 14).p_value == pytest.approx(oracle, rel=1e-10)
    assert trend(mean, cov, [0, 1], 14).p_value == pytest.approx(oracle, rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("k", "n"), [(4, 20), (10, 30), (30, 50)])
def test_steps_that_do_not_change_are_said_to_in_five_percent(k: int, n: int) -> None:
    """Few units and many steps, of one user's correlated days: exact with degrees of freedom, far too sure without."""
    rng, worlds = np.random.default_rng(k), 1500
    root = np.linalg.cholesky(0.5 + np.diag(np.linspace(0.5, 2.5, k)))
    found, loose = np.zeros(2), np.zeros(2)
    for _ in range(worlds):
        y = rng.standard_normal((n, k)) @ root.T
        mean, cov = y.mean(axis=0), np.cov(y.T) / n
        found += [trend(mean, cov, np.arange(k), n - 1).p_value <= 0.05, steps_differ(mean, cov, n - 1).p_value <= 0.05]
        loose += [trend(mean, cov, np.arange(k)).p_value <= 0.05, steps_differ(mean, cov).p_value <= 0.05]
    assert found / worlds == pytest.approx(np.array([0.05, 0.05]), abs=four_errors(0.05, worlds))
    assert (loose / worlds > 0.07).all()


def test_running_totals_are_sums() -> None:
    y, cov, _ = steps(5, 4)
    found = cumulative(y, cov)
    lower = np.tril(np.ones((4, 4)))
    assert found.values == pytest.approx(lower @ y)
    assert found.covariance == pytest.approx(lower @ cov @ lower.T)
    assert found.ses == pytest.approx(np.sqrt(np.diagonal(lower @ cov @ lower.T)))
    assert cumulative([0.0, 1.0], [[0.0, 0.0], [0.0, 1.0]]).ses == pytest.approx([0.0, 1.0])


def test_a_band_lies_between_pointwise_and_bonferroni() -> None:
    rng = np.random.default_rng(1)
    independent = simultaneous_band(np.eye(5), 0.95, rng)
    assert independent == pytest.approx(stats.norm.ppf(0.5 + 0.95 ** (1 / 5) / 2), abs=0.02)  # Sidak, exact here
    assert simultaneous_band(np.ones((5, 5)), 0.95, rng) == pytest.approx(1.96, abs=0.02)
    assert simultaneous_band([[1.0]], 0.95, rng) == pytest.approx(stats.norm.ppf(0.975), rel=1e-9)
    half = simultaneous_band(0.5 + 0.5 * np.eye(10), 0.95, rng)
    assert 1.96 < half < stats.norm.ppf(1 - 0.025 / 10)
    assert simultaneous_band(np.eye(3), 0.95, np.random.default_rng(2)) == simultaneous_band(
        np.eye(3), 0.95, np.random.default_rng(2)
    )


def test_a_band_of_running_totals_covers_them_all() -> None:
    rng, k = np.random.default_rng(4), 20
    total = cumulative(np.zeros(k), np.eye(k))
    critical = simultaneous_band(total.covariance / np.outer(total.ses, total.ses), 0.95, rng)
    walks = np.cumsum(rng.standard_normal((20_000, k)), axis=1)
    inside = float((np.abs(walks) <= critical * total.ses).all(axis=1).mean())
    # the critical value has Monte Carlo error of its own, about 0.1% of coverage
    assert inside == pytest.approx(0.95, abs=four_errors(0.05, 20_000) + four_errors(0.05, 40_000))


# --- two experiments ---------------------------------------------------------------------------------------------


def cells(seed: int) -> list[Level]:
    rng = np.random.default_rng(seed)
    return [mean_level(Moments.of(rng.normal(m, s, n))) for m, s, n in ((3, 1, 40), (1, 2, 60), (2, 1, 30), (1, 1, 90))]


def test_an_effect_interaction_is_a_difference_of_differences() -> None:
    a, b, c, d = cells(1)
    found = effect_interaction(a, b, c, d)
    with_, without = difference(a, b), difference(c, d)
    assert found.value == pytest.approx(with_.value - without.value)
    assert found.se == pytest.approx(math.hypot(with_.se, without.se))
    assert min(x.df for x in (a, b, c, d)) <= found.df <= sum(x.df for x in (a, b, c, d))
    other = effect_interaction(c, d, a, b)
    assert (other.value, other.se, other.df) == pytest.approx((-found.value, found.se, found.df))
    # which experiment is called the other one changes nothing
    turned = effect_interaction(a, c, b, d)
    assert (turned.value, turned.se) == pytest.approx((found.value, found.se))


@pytest.mark.slow
def test_effects_that_do_not_interact_are_said_to_in_five_percent() -> None:
    rng, worlds, found = np.random.default_rng(7), 4000, 0
    for _ in range(worlds):
        levels = []
        for mean, sd, n in ((3, 1, 12), (2, 3, 15), (1.5, 1, 30), (0.5, 2, 10)):
            y = rng.normal(mean, sd, n)
            levels.append(Level(float(y.mean()), float(y.var(ddof=1)) / n, n))
        found += effect_interaction(*levels).p_value() <= 0.05
    # Satterthwaite's approximation is good to about half a percent at these sizes
    assert found / worlds == pytest.approx(0.05, abs=four_errors(0.05, worlds) + 0.004)


def test_dependence_of_assignments_is_scipys() -> None:
    table = [[500, 480, 20], [470, 530, 25]]
    oracle = stats.chi2_contingency(table, correction=False)
    found = assignment_dependence(table)
    assert (found.statistic, found.p_value) == pytest.approx((oracle.statistic, oracle.pvalue), rel=1e-10)
    assert found.df == oracle.dof
    assert found.smallest_expected == pytest.approx(oracle.expected_freq.min())
    empty = assignment_dependence([[500, 0, 480, 20], [470, 0, 530, 25], [0, 0, 0, 0]])
    assert empty == found


# --- refused -----------------------------------------------------------------------------------------------------


def test_effects_that_cannot_be_compared_are_refused() -> None:
    for test in (interaction, gail_simon, partial_pooling):
        with pytest.raises(ValueError, match="at least two classes"):
            test([1.0], [1.0])
        with pytest.raises(ValueError, match="above zero"):
            test([1.0, 2.0], [1.0, 0.0])
        with pytest.raises(ValueError, match="above zero"):
            test([1.0, math.nan], [1.0, 1.0])
        with pytest.raises(ValueError, match="of the same"):
            test([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="degrees of freedom"):
        interaction([1.0, 2.0], [1.0, 1.0], [3.0])
    with pytest.raises(ValueError, match="degrees of freedom"):
        gail_simon([1.0, 2.0], [1.0, 1.0], [3.0, 0.0])
    with pytest.raises(ValueError, match="confidence level"):
        partial_pooling([1.0, 2.0], [1.0, 1.0], 1.0)
    with pytest.raises(ValueError, match="prior mean"):
        partial_pooling([1.0, 2.0], [1.0, 1.0], mean=math.inf)


def test_steps_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two steps"):
        steps_differ([1.0], [[1.0]])
    with pytest.raises(ValueError, match="nothing varies"):
        trend([1.0, 2.0], [[1.0, 0.0], [0.0, 0.0]], [0, 1])
    with pytest.raises(ValueError, match="move as one"):
        steps_differ([1.0, 2.0], [[1.0, 1.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match="move as one"):
        trend([1.0, 2.0], [[1.0, 1.0], [1.0, 1.0]], [0, 1])
    with pytest.raises(ValueError, match="same time"):
        trend([1.0, 2.0], np.eye(2), [1, 1])
    with pytest.raises(ValueError, match="finite times"):
        trend([1.0, 2.0], np.eye(2), [1, math.nan])
    with pytest.raises(ValueError, match="too many for so few units"):
        trend(np.zeros(10), np.eye(10), np.arange(10), 9)
    with pytest.raises(ValueError, match="too many for so few units"):
        steps_differ(np.zeros(10), np.eye(10), 9)
    with pytest.raises(ValueError, match="does not fit"):
        cumulative([1.0, 2.0], [[1.0]])
    with pytest.raises(ValueError, match="finite"):
        cumulative([1.0, math.nan], np.eye(2))


def test_bands_and_tables_that_cannot_be_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="confidence level"):
        simultaneous_band(np.eye(2), 0.0, rng)
    with pytest.raises(ValueError, match="square"):
        simultaneous_band([[1.0, 0.0]], 0.95, rng)
    with pytest.raises(ValueError, match="ones on its diagonal"):
        simultaneous_band(2 * np.eye(2), 0.95, rng)
    with pytest.raises(ValueError, match="one arm only"):
        assignment_dependence([[10, 12], [0, 0]])
    with pytest.raises(ValueError, match="whole numbers"):
        assignment_dependence([[10, -1], [2, 3]])

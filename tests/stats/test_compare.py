"""Comparing arms: against scipy, statsmodels and tea-tasting, against simulation, and the laws the figures obey."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import NormalIndPower, TTestIndPower

from payoff.estimate import FloatArray
from payoff.stats.compare import (
    ArmSizes,
    Fieller,
    Level,
    LogDelta,
    NoRelativeLift,
    conversion_variance,
    design_effect,
    difference,
    difference_correlation,
    difference_covariance,
    icc,
    level_covariance,
    mean_level,
    minimum_detectable_effect,
    missingness,
    noninferiority_n,
    noninferiority_power,
    normal_approximation_doubtful,
    power,
    ratio_interval,
    ratio_level,
    relative_lift,
    required_n,
    srm,
)
from payoff.stats.moments import Moments


def mean_of(values: FloatArray, scale: float = 1.0) -> Level:
    return mean_level(Moments.of(values), scale)


def ratio_of(y: FloatArray, d: FloatArray, scale: float = 1.0) -> Level:
    return ratio_level(Moments.of(np.column_stack([y, d])), scale)


def two_arms(seed: int, n_control: int, n_treatment: int, lift: float) -> tuple[FloatArray, ...]:
    """(y control, y treatment, d control, d treatment): skewed values, and counts from one up."""
    rng = np.random.default_rng(seed)
    y0, y1 = rng.lognormal(1, 1, n_control), rng.lognormal(1, 1, n_treatment) * (1 + lift)
    return y0, y1, rng.poisson(3, n_control) + 1.0, rng.poisson(3, n_treatment) + 1.0


# --- against other libraries -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_t", "n_c", "offset"), [(2, 2, 0.0), (3, 40, 0.0), (700, 300, 0.0), (500, 500, 1e6)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_difference_is_scipys_welch(n_t: int, n_c: int, offset: float, level: float) -> None:
    rng = np.random.default_rng(n_t)
    t, c = rng.normal(offset + 1, 2, n_t), rng.gamma(2, 1, n_c) + offset
    oracle = stats.ttest_ind(t, c, equal_var=False)
    gap = difference(mean_of(t), mean_of(c))
    assert gap.value == pytest.approx(t.mean() - c.mean(), rel=1e-10)
    assert gap.df == pytest.approx(oracle.df, rel=1e-10)
    assert gap.p_value() == pytest.approx(oracle.pvalue, rel=1e-10)
    assert gap.interval(level) == pytest.approx(tuple(oracle.confidence_interval(level)), rel=1e-10)


def test_p_value_against_another_null_is_that_of_shifted_values() -> None:
    t, c = np.random.default_rng(3).normal(1, 1, (2, 50))
    oracle = stats.ttest_ind(t, c + 0.3, equal_var=False).pvalue
    assert difference(mean_of(t), mean_of(c)).p_value(0.3) == pytest.approx(oracle, rel=1e-10)


def test_level_interval_is_scipys_one_sample_t() -> None:
    y = np.random.default_rng(4).exponential(size=30)
    oracle = stats.ttest_1samp(y, 0.0).confidence_interval(0.9)
    assert mean_of(y).interval(0.9) == pytest.approx(tuple(oracle), rel=1e-10)


# tea-tasting 1.14.0, Experiment(mean=Mean("y"), ratio=RatioOfMeans("y", "d")).analyze() on two_arms(seed, n, n, lift):
# difference, its low and high, its p value, relative lift, its low and high.
TEA_TASTING = {
    (1, 400, 600, 0.05, "mean"): (
        0.8096636715224608, 0.0489182423636072, 1.5704091006813143, 0.0370034691423906,
        0.20871385729599234, 0.011068242130582329, 0.4449956273383431,
    ),
    (1, 400, 600, 0.05, "ratio"): (
        0.18333938350849133, -0.017739315867591476, 0.38441808288457413, 0.07388110591824647,
        0.1818364843573903, -0.01635731007582919, 0.41996427164615113,
    ),
    (2, 30, 50, 0.5, "mean"): (
        3.15986358107246, 0.4148378020845236, 5.904889360060396, 0.024620516093627424,
        0.7787813699571713, 0.06498606450384292, 1.970990201248116,
    ),
    (2, 30, 50, 0.5, "ratio"): (
        0.7283229720492372, -0.03586291310001277, 1.4925088571984872, 0.061469673337264205,
        0.6940774951973061, -0.052036094598833516, 2.027434423802743,
    ),
    (3, 5000, 2000, 0.0, "mean"): (
        0.025756102358778676, -0.298384636027948, 0.34989684074550537, 0.8762053917185634,
        0.005707847078720407, -0.06371710767165917, 0.08028063095380644,
    ),
    (3, 5000, 2000, 0.0, "ratio"): (
        0.012532920635821121, -0.07225328696650898, 0.09731912823815123, 0.7719712258814772,
        0.011165858903556813, -0.06181753771359011, 0.08982680375454577,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "expected"), TEA_TASTING.items(), ids=str)
def test_difference_and_relative_lift_are_tea_tastings(
    case: tuple[int, int, int, float, str], expected: tuple[float, ...]
) -> None:
    seed, n_control, n_treatment, by, of = case
    y0, y1, d0, d1 = two_arms(seed, n_control, n_treatment, by)
    t, c = (mean_of(y1), mean_of(y0)) if of == "mean" else (ratio_of(y1, d1), ratio_of(y0, d0))
    gap, lift = difference(t, c), relative_lift(t, c)
    assert isinstance(lift, LogDelta)
    found = gap.value, *gap.interval(), gap.p_value(), lift.value, *lift.interval()
    # The formulas are the same; seven digits are left for the generators' and libraries' last places.
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("counts", "shares"),
    [([5123, 4877], [0.5, 0.5]), ([1000, 1100, 950], [1 / 3] * 3), ([90_500, 9_500], [0.9, 0.1]), ([7, 0], [0.5, 0.5])],
)
def test_srm_is_scipys_chisquare_over_all_arms(counts: list[int], shares: list[float]) -> None:
    total = sum(counts)
    oracle = stats.chisquare(counts, [total * share for share in shares])
    names = [f"arm {i}" for i in range(len(counts))]
    found = srm(dict(zip(names, counts, strict=True)), dict(zip(names, shares, strict=True)))
    assert found.statistic == pytest.approx(oracle.statistic, rel=1e-12)
    assert found.p_value == pytest.approx(oracle.pvalue, rel=1e-12)
    assert found.df == len(counts) - 1
    assert found.smallest_expected == pytest.approx(total * min(shares))


def test_srm_takes_shares_as_weights_and_names_in_any_order() -> None:
    one = srm({"a": 120, "b": 60, "c": 70}, {"a": 0.5, "b": 0.25, "c": 0.25})
    other = srm({"c": 70, "a": 120, "b": 60}, {"b": 1, "c": 1, "a": 2})
    assert (one.statistic, one.p_value) == pytest.approx((other.statistic, other.p_value), rel=1e-12)


@pytest.mark.parametrize("counts", [[(90, 100), (150, 200)], [(10, 100), (19, 100), (11, 100)], [(0, 50), (3, 70)]])
def test_missingness_is_scipys_contingency_chi_square(counts: list[tuple[int, int]]) -> None:
    oracle = stats.chi2_contingency([[some, every - some] for some, every in counts], correction=False)
    found = missingness(
        {str(i): some for i, (some, _) in enumerate(counts)}, {str(i): every for i, (_, every) in enumerate(counts)}
    )
    assert found.statistic == pytest.approx(oracle.statistic, rel=1e-12)
    assert found.p_value == pytest.approx(oracle.pvalue, rel=1e-12)
    assert found.df == oracle.dof
    assert found.smallest_expected == pytest.approx(oracle.expected_freq.min())


@pytest.mark.parametrize(("effect", "n"), [(0.2, 100), (0.5, 10), (0.05, 4000), (-0.3, 60)])
@pytest.mark.parametrize(("sides", "alternative"), [(2, "two-sided"), (1, "larger")])
def test_power_is_statsmodels_t_test_power(effect: float, n: int, sides: int, alternative: str) -> None:
    oracle = TTestIndPower().power(effect, n, 0.05, alternative=alternative)
    found = power(3 * effect, 9.0, n, 9.0, n, sides=1 if sides == 1 else 2)
    assert found == pytest.approx(oracle, rel=1e-8)


@pytest.mark.parametrize("ratio", [1.0, 0.25, 9.0])
def test_required_n_is_statsmodels_for_large_samples(ratio: float) -> None:
    """statsmodels' normal power with n2 = ratio n1; t instead of normal asks for about two units more."""
    effect = 0.02
    control = NormalIndPower().solve_power(effect, None, 0.05, 0.8, ratio=ratio)
    found = required_n(effect, 1.0, 1.0, treatment_share=ratio / (1 + ratio))
    assert found.control == pytest.approx(control, abs=3 * max(1.0, 1 / ratio))
    assert found.treatment == pytest.approx(control * ratio, abs=3 * max(1.0, ratio))


def test_required_n_is_the_smallest_that_suffices() -> None:
    oracle = math.ceil(TTestIndPower().solve_power(0.2, None, 0.05, 0.8))
    sizes = required_n(0.2, 1.0, 1.0)
    assert sizes == ArmSizes(oracle, oracle)
    assert sizes.total == 2 * oracle
    assert power(0.2, 1, sizes.treatment, 1, sizes.control) >= 0.8
    assert power(0.2, 1, sizes.treatment - 1, 1, sizes.control - 1) < 0.8
    assert required_n(-0.2, 1.0, 1.0) == sizes
    assert required_n(0.2, 1.0, 1.0, sides=1).total < sizes.total
    assert required_n(100.0, 1.0, 1.0).treatment >= 2


@given(
    st.floats(0.1, 10), st.floats(0.1, 10), st.integers(5, 10**7), st.integers(5, 10**7), st.floats(0.2, 0.99),
    st.sampled_from([1, 2]),
)  # fmt: skip
def test_minimum_detectable_effect_has_the_power_asked_for(
    v_t: float, v_c: float, n_t: int, n_c: int, wanted: float, sides: int
) -> None:
    one_or_two = 1 if sides == 1 else 2
    effect = minimum_detectable_effect(v_t, n_t, v_c, n_c, power_wanted=wanted, sides=one_or_two)
    assert power(effect, v_t, n_t, v_c, n_c, sides=one_or_two) == pytest.approx(wanted, abs=1e-9)
    share = n_t / (n_t + n_c)
    sizes = required_n(effect, v_t, v_c, treatment_share=share, power_wanted=wanted, sides=one_or_two)
    assert sizes.treatment == pytest.approx(n_t, abs=1 + 1e-6 * n_t)
    assert sizes.control == pytest.approx(n_c, abs=1 + 1e-6 * n_c)


def test_power_of_no_effect_is_the_false_alarm_rate() -> None:
    assert power(0.0, 1.0, 50, 4.0, 80) == pytest.approx(0.05, rel=1e-9)
    assert power(0.0, 1.0, 50, 4.0, 80, level=0.9, sides=1) == pytest.approx(0.1, rel=1e-9)


# --- sizes for non-inferiority and for clusters ------------------------------------------------------------------------


def test_noninferiority_is_the_textbooks_fifty_an_arm() -> None:
    """Chow, Shao, Wang 2008, "Sample Size Calculations in Clinical Research", section 3.2: standard deviation 10, margin 5,
    no true difference, one-sided .05, power .8: 50 an arm by the normal formula; by t one more."""
    z = stats.norm.ppf(0.95) + stats.norm.ppf(0.8)
    assert math.ceil(2 * (10 * z / 5) ** 2) == 50
    sizes = noninferiority_n(5.0, 0.0, 100.0, 100.0, level=0.9)
    oracle = math.ceil(TTestIndPower().solve_power(0.5, None, 0.05, 0.8, alternative="larger"))
    assert sizes == ArmSizes(oracle, oracle)
    assert sizes.control in (50, 51)
    assert noninferiority_power(5.0, 0.0, 100, 51, 100, 51, level=0.9) >= 0.8
    assert noninferiority_power(5.0, 0.0, 100, 49, 100, 49, level=0.9) < 0.8


def test_noninferiority_power_is_how_often_the_interval_excludes_the_margin() -> None:
    """4,000 worlds; 3.5 binomial errors. A true harm of the margin is called safe in 2.5% of them."""
    rng = np.random.default_rng(30)
    for effect in (0.1, -0.5):
        safe = 0
        for _ in range(4_000):
            t, c = rng.normal(effect, 2.0, 150), rng.normal(0, 1.0, 100)
            safe += difference(mean_of(t), mean_of(c)).interval()[0] > -0.5
        told = noninferiority_power(0.5, effect, 4.0, 150, 1.0, 100)
        assert safe / 4_000 == pytest.approx(told, abs=3.5 * math.sqrt(told * (1 - told) / 4_000))
    assert told == pytest.approx(0.025)


@given(st.floats(0.05, 2), st.floats(-0.04, 1))
def test_noninferiority_sizes_fall_with_the_margin_and_with_a_better_truth(margin: float, effect: float) -> None:
    total = noninferiority_n(margin, effect, 4.0, 4.0).total
    assert noninferiority_n(2 * margin, effect, 4.0, 4.0).total <= total
    assert noninferiority_n(margin, effect + 0.1, 4.0, 4.0).total <= total
    assert total == required_n(margin + effect, 4.0, 4.0, level=0.975, sides=1).total


def test_design_effect_of_equal_clusters_is_donner_and_klars() -> None:
    """1 + (m - 1) icc: 20 units a cluster with an icc of .05 need 1.95 times as many."""
    assert design_effect(20, 0.0, 0.05) == pytest.approx(1.95)
    assert design_effect(1, 0.0, 0.7) == 1.0
    assert design_effect(20, 0.5, 0.05) == pytest.approx(1 + (1.25 * 20 - 1) * 0.05)


def test_icc_from_totals_is_the_truth_and_gives_the_clustered_variance() -> None:
    rng = np.random.default_rng(31)
    size = rng.integers(1, 12, 20_000)
    g = np.repeat(np.arange(20_000), size)
    y = 5 + rng.normal(0, 0.5, 20_000)[g] + rng.normal(0, 1.0, len(g))
    totals = Moments.of(np.column_stack([np.bincount(g, weights=y), size]))
    found = icc(totals, float(y.var()))
    assert found == pytest.approx(0.25 / 1.25, abs=0.01)
    # the design effect is the clustered variance over that of independent units, exactly but for n / (n - 1)
    cv = float(size.std() / size.mean())
    independent = float(y.var()) / len(y)
    assert design_effect(float(size.mean()), cv, found) == pytest.approx(
        ratio_level(totals).variance / independent, rel=1e-3
    )
    p = rng.beta(2, 8, 20_000)[g]  # beta-binomial: icc 1 / (2 + 8 + 1)
    ones = Moments.of(np.column_stack([np.bincount(g, weights=rng.random(len(g)) < p), size]))
    assert icc(ones) == pytest.approx(1 / 11, abs=0.01)
    assert conversion_variance(0.2) == pytest.approx(0.16)


@pytest.mark.parametrize("effect", [-200.0, -38.0, -20.0, 20.0, 38.0, 200.0])
def test_the_power_of_an_enormous_effect_is_one(effect: float) -> None:
    assert power(effect, 50, 100, 50, 100) == pytest.approx(1.0)
    assert power(effect, 50, 100, 50, 100, sides=1) == pytest.approx(float(effect > 0))


# --- ratios --------------------------------------------------------------------------------------------------------


def test_ratio_is_the_least_squares_slope_with_clustered_errors() -> None:
    """The delta method's variance is that of y = r d + e through the origin, robust by unit, with IV weights: sum of
    (y - r d)^2 / (sum d)^2, which times n / (n - 1) must be equal, not merely near."""
    rng = np.random.default_rng(5)
    d = rng.poisson(4, 300) + 1.0
    y = rng.gamma(1.0, d)
    found = ratio_of(y, d)
    r = y.sum() / d.sum()
    assert found.value == pytest.approx(r, rel=1e-12)
    assert found.variance == pytest.approx(((y - r * d) ** 2).sum() / d.sum() ** 2 * 300 / 299, rel=1e-10)


def test_ratio_variance_counts_units_not_rows() -> None:
    """Against the variance seen over 20,000 samples; the visits' own count is far off. 3% is 6 Monte-Carlo errors of 0.5%."""
    rng = np.random.default_rng(6)
    d = 1.0 + rng.poisson(5, (20_000, 200))
    y = d * rng.normal(10, 3, (20_000, 200))
    seen = (y.sum(axis=1) / d.sum(axis=1)).var()
    told = np.mean([ratio_of(y[i], d[i]).variance for i in range(500)])
    assert told == pytest.approx(seen, rel=0.06)
    assert 9.0 / d.sum(axis=1).mean() < 0.4 * seen


@given(st.integers(0, 10**6), st.integers(3, 60))
def test_ratio_with_a_denominator_of_one_is_the_mean(seed: int, n: int) -> None:
    y = np.random.default_rng(seed).lognormal(size=n)
    one, other = ratio_of(y, np.ones(n)), mean_of(y)
    assert (one.value, one.variance, one.n) == pytest.approx((other.value, other.variance, other.n), rel=1e-12)


# --- laws ------------------------------------------------------------------------------------------------------------


@st.composite
def arms(draw: st.DrawFn) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n_t, n_c = draw(st.integers(2, 200)), draw(st.integers(2, 200))
    lift = draw(st.floats(-0.9, 3.0))
    return (1 + lift) * rng.lognormal(0, 0.5, n_t), rng.lognormal(0, 0.5, n_c)


@given(arms())
def test_swapping_labels_flips_the_sign(pair: tuple[FloatArray, FloatArray]) -> None:
    t, c = mean_of(pair[0]), mean_of(pair[1])
    gap, pag = difference(t, c), difference(c, t)
    assert (pag.value, pag.se, pag.df) == pytest.approx((-gap.value, gap.se, gap.df), rel=1e-12)
    assert pag.p_value() == pytest.approx(gap.p_value(), rel=1e-9)
    lift, tfil = relative_lift(t, c), relative_lift(c, t)
    if isinstance(lift, LogDelta) and isinstance(tfil, LogDelta):
        assert math.log1p(tfil.value) == pytest.approx(-math.log1p(lift.value), rel=1e-9, abs=1e-12)
        assert tfil.p_value() == pytest.approx(lift.p_value(), rel=1e-9)


@given(arms(), st.sampled_from([100.0, 1e-6, 3.7e9]))
def test_money_in_other_units_scales_the_difference_and_leaves_the_lift(
    pair: tuple[FloatArray, FloatArray], factor: float
) -> None:
    plain = [mean_of(y) for y in pair]
    gap = difference(*plain)
    for scaled in ([mean_of(factor * y) for y in pair], [mean_of(y, scale=factor) for y in pair]):
        other = difference(*scaled)
        assert (other.value, other.se) == pytest.approx((factor * gap.value, factor * gap.se), rel=1e-7)
        assert other.interval() == pytest.approx(
            tuple(factor * end for end in gap.interval()), rel=1e-9, abs=1e-9 * factor * gap.se
        )
        assert other.p_value() == pytest.approx(gap.p_value(), rel=1e-7)
        one, two = relative_lift(*plain), relative_lift(*scaled)
        assert type(one) is type(two)
        if isinstance(one, LogDelta) and isinstance(two, LogDelta):
            assert two.interval() == pytest.approx(one.interval(), rel=1e-9, abs=1e-9)


@given(arms(), st.floats(0.5, 0.999))
def test_p_is_below_alpha_exactly_when_the_interval_excludes_zero(
    pair: tuple[FloatArray, FloatArray], level: float
) -> None:
    t, c = mean_of(pair[0]), mean_of(pair[1])
    gap, lift = difference(t, c), relative_lift(t, c, level)
    for p, (low, high) in [(gap.p_value(), gap.interval(level))] + (
        [(lift.p_value(), lift.interval(level))] if isinstance(lift, LogDelta) else []
    ):
        assume(abs(p - (1 - level)) > 1e-12)  # at the very edge rounding decides
        assert (p < 1 - level) == (low > 0 or high < 0)
        assert low < high


@given(arms())
def test_the_order_of_units_changes_nothing(pair: tuple[FloatArray, FloatArray]) -> None:
    one = difference(*(mean_of(y) for y in pair))
    other = difference(*(mean_of(y[::-1]) for y in pair))
    assert (other.value, other.se, other.df) == pytest.approx((one.value, one.se, one.df), rel=1e-9, abs=1e-12)


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_arms_changes_nothing(names: list[str]) -> None:
    counts, shares = {"a": 10, "b": 22, "c": 35, "d": 4}, {"a": 1.0, "b": 2.0, "c": 3.0, "d": 0.5}
    assert srm({k: counts[k] for k in names}, {k: shares[k] for k in names}) == srm(counts, shares)
    every = {"a": 50, "b": 60, "c": 70, "d": 20}
    assert missingness({k: counts[k] for k in names}, {k: every[k] for k in names}) == missingness(counts, every)


@given(arms(), st.integers(0, 200))
def test_merged_moments_give_the_same_difference(pair: tuple[FloatArray, FloatArray], cut: int) -> None:
    whole = difference(*(mean_of(y) for y in pair))
    parts = difference(*(mean_level(Moments.of(y[:cut]).merge(Moments.of(y[cut:]))) for y in pair))
    assert (parts.value, parts.se, parts.df) == pytest.approx((whole.value, whole.se, whole.df), rel=1e-8, abs=1e-12)


# --- the relative lift's three answers -------------------------------------------------------------------------------


def level_at(value: float, se: float, n: int = 1_000) -> Level:
    return Level(value, se * se, n)


def test_fieller_solves_its_own_equation_and_agrees_with_the_difference() -> None:
    """The ends are where (m_t - theta m_c)^2 = t^2 (v_t + theta^2 v_c), theta = 1 + lift (Fieller 1954)."""
    t, c = level_at(-0.2, 0.3), level_at(2.0, 0.25)
    found = relative_lift(t, c, 0.9)
    assert isinstance(found, Fieller)
    gap = difference(t, c)
    quantile = stats.t.ppf(0.95, gap.df)
    for end in (found.low, found.high):
        theta = 1 + end
        assert (t.value - theta * c.value) ** 2 == pytest.approx(quantile**2 * (t.variance + theta**2 * c.variance))
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(-1.1)
    assert found.p_value == gap.p_value()
    assert found.level == 0.9


@given(st.floats(-5, 0.99), st.floats(0.05, 3), st.floats(0.5, 3), st.floats(0.5, 0.999))
def test_fieller_excludes_zero_exactly_when_the_difference_does(m: float, se: float, c_se: float, level: float) -> None:
    t, c = level_at(m * se, se), level_at(10.0, c_se)
    found, gap = relative_lift(t, c, level), difference(t, c)
    assume(isinstance(found, Fieller) and abs(gap.p_value() - (1 - level)) > 1e-9)
    assert isinstance(found, Fieller)
    low, high = gap.interval(level)
    assert (found.low > 0 or found.high < 0) == (low > 0 or high < 0)


def test_a_treatment_level_below_its_own_error_goes_to_fieller() -> None:
    assert isinstance(relative_lift(level_at(0.99, 1.0), level_at(10, 0.1)), Fieller)
    assert isinstance(relative_lift(level_at(1.01, 1.0), level_at(10, 0.1)), LogDelta)


@given(st.integers(1, 50), st.integers(60, 500), st.integers(0, 1000))
def test_values_never_below_zero_always_take_the_log_scale(buyers: int, n: int, seed: int) -> None:
    y = np.zeros(n)
    y[:buyers] = np.random.default_rng(seed).lognormal(0, 2, buyers)
    assert isinstance(relative_lift(mean_of(y), level_at(5.0, 0.1)), LogDelta)


@pytest.mark.parametrize(
    ("control", "words"),
    [
        (level_at(-1.0, 0.1), "is not above zero"),
        (level_at(0.0, 0.1), "is not above zero"),
        (level_at(0.1, 0.1), "cannot be told from zero"),
    ],
)
def test_no_lift_on_a_control_near_or_below_zero(control: Level, words: str) -> None:
    for treatment in (level_at(1.0, 0.1), level_at(-1.0, 0.1)):
        found = relative_lift(treatment, control)
        assert isinstance(found, NoRelativeLift)
        assert words in found.reason


def test_a_few_treated_units_can_make_the_control_too_uncertain_for_fieller() -> None:
    """The difference's degrees of freedom, one, widen the control's interval past zero: no bounded interval exists."""
    found = relative_lift(level_at(0.01, 10.0, n=2), level_at(1.0, 0.2, n=1_000))
    assert isinstance(found, NoRelativeLift)


# --- arms that covary ------------------------------------------------------------------------------------------------


def pairs(seed: int, n: int = 60) -> tuple[FloatArray, FloatArray, float]:
    """The same units twice, and the covariance of their two means."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=n)
    t, c = 12 + common + rng.normal(0, 0.6, n), 10 + common + rng.normal(0, 0.4, n)
    return t, c, float(np.cov(t, c)[0, 1]) / n


@given(st.integers(0, 10**6))
def test_the_covariance_of_paired_units_gives_scipys_paired_error(seed: int) -> None:
    t, c, shared = pairs(seed)
    gap, oracle = difference(mean_of(t), mean_of(c), shared), stats.ttest_rel(t, c)
    assert gap.value / gap.se == pytest.approx(oracle.statistic, rel=1e-9)
    assert len(t) - 1 - 1e-9 <= gap.df <= 2 * (len(t) - 1) + 1e-9


@given(st.integers(0, 10**6), st.sampled_from([100.0, 1e-6]))
def test_covariance_keeps_the_laws(seed: int, factor: float) -> None:
    t, c, shared = pairs(seed)
    gap, pag = difference(mean_of(t), mean_of(c), shared), difference(mean_of(c), mean_of(t), shared)
    assert (pag.value, pag.se, pag.df) == pytest.approx((-gap.value, gap.se, gap.df), rel=1e-12)
    scaled = difference(mean_of(factor * t), mean_of(factor * c), factor**2 * shared)
    assert (scaled.value, scaled.se) == pytest.approx((factor * gap.value, factor * gap.se), rel=1e-8)
    one = relative_lift(mean_of(t), mean_of(c), covariance=shared)
    other = relative_lift(mean_of(factor * t), mean_of(factor * c), covariance=factor**2 * shared)
    assert isinstance(one, LogDelta)
    assert isinstance(other, LogDelta)
    assert other.interval() == pytest.approx(one.interval(), rel=1e-8)
    # the log ratio's error is that of the mean of log-linearised pairs
    u = t / t.mean() - c / c.mean()
    assert one.se_log == pytest.approx(u.std(ddof=1) / math.sqrt(len(u)), rel=1e-9)


def test_fieller_with_a_covariance_solves_its_own_equation() -> None:
    t, c, shared = level_at(-0.2, 0.3), level_at(2.0, 0.25), 0.05
    found = relative_lift(t, c, 0.9, shared)
    assert isinstance(found, Fieller)
    quantile = stats.t.ppf(0.95, difference(t, c, shared).df)
    for theta in (1 + found.low, 1 + found.high):
        variance = t.variance + theta**2 * c.variance - 2 * theta * shared
        assert (t.value - theta * c.value) ** 2 == pytest.approx(quantile**2 * variance)


def test_lost_degrees_of_freedom_are_missing_everywhere() -> None:
    full, less = Level(5.0, 0.1, 30), Level(5.0, 0.1, 30, lost=9)
    assert (full.df, less.df) == (29, 20)
    assert less.interval()[1] - 5 == pytest.approx(stats.t.ppf(0.975, 20) * math.sqrt(0.1))
    assert difference(less, less).df == pytest.approx(40)


def test_what_only_one_arm_adds_has_that_arms_degrees_of_freedom() -> None:
    """The control's error is all in the treatment's too: what is left of the difference's is the treatment's own."""
    t, c = Level(1.0, 0.5, 20), Level(0.0, 0.2, 1_000)
    assert difference(t, c, 0.2).df == pytest.approx(19)
    assert difference(t, c, 0.2).se == pytest.approx(math.sqrt(0.3))
    assert difference(t, c, 0.25).df == pytest.approx(19)


# --- joint errors ------------------------------------------------------------------------------------------------------


def test_a_level_with_itself_has_its_own_variance() -> None:
    rng = np.random.default_rng(9)
    d = rng.poisson(3, 80) + 1.0
    y = rng.gamma(1, d)
    m = Moments.of(np.column_stack([y, d]))
    mean, ratio = mean_level(m.take([0]), 7.0), ratio_level(m, 0.5)
    assert level_covariance(mean, mean, m.take([0, 0])) == pytest.approx(mean.variance, rel=1e-12)
    assert level_covariance(ratio, ratio, m.take([0, 1, 0, 1])) == pytest.approx(ratio.variance, rel=1e-9)


def test_covariance_of_a_mean_and_a_ratio_is_what_repeated_samples_show() -> None:
    """On partly shared units, with the shared ones unlike the rest. 4,000 samples; 3.5 standard errors of a covariance."""
    rng = np.random.default_rng(10)
    worlds, n = 4_000, 150
    group = rng.random((worlds, n))  # decides who is measured, and moves what is measured
    d = 1.0 + rng.poisson(2, (worlds, n))
    noise = rng.normal(0, 1, (worlds, n))
    y = d * (1 + 10 * group) + 2 * noise
    x = noise - 3 * group
    a_has, b_has = group < 0.7, group > 0.4
    means, ratios, told = np.empty(worlds), np.empty(worlds), np.empty(worlds)
    for w in range(worlds):
        in_a, in_b = a_has[w], b_has[w]
        a, b = mean_of(x[w, in_a]), ratio_of(y[w, in_b], d[w, in_b])
        both = in_a & in_b
        shared = Moments.of(np.column_stack([x[w, both], y[w, both], d[w, both]]))
        means[w], ratios[w], told[w] = a.value, b.value, level_covariance(a, b, shared)
    seen = np.cov(means, ratios)
    error = math.sqrt((seen[0, 0] * seen[1, 1] + seen[0, 1] ** 2) / worlds)
    assert abs(told.mean() - seen[0, 1]) < 3.5 * error
    assert abs(seen[0, 1]) > 8 * error, "the premise: there is a covariance to find"


def test_contrasts_that_share_a_control_covary_by_its_variance() -> None:
    rng = np.random.default_rng(11)
    one, two, c = (rng.normal(size=n) for n in (50, 60, 70))
    control = Moments.of(c)
    first, second = difference(mean_of(one), mean_of(c)), difference(mean_of(two), mean_of(c))
    shared = [(mean_of(c), mean_of(c), control.take([0, 0]))]
    assert difference_covariance(shared) == pytest.approx(mean_of(c).variance, rel=1e-12)
    expected = mean_of(c).variance / (first.se * second.se)
    assert difference_correlation(first, second, shared) == pytest.approx(expected, rel=1e-12)


def test_two_metrics_of_one_contrast_correlate_as_their_units_do() -> None:
    rng = np.random.default_rng(12)
    shared, differences = [], []
    for _ in range(2):
        y = rng.multivariate_normal([1.0, 2.0], [[1.0, 0.6], [0.6, 1.0]], 5_000)
        m = Moments.of(y)
        shared.append((mean_level(m.take([0])), mean_level(m.take([1])), m))
    for metric in (0, 1):
        differences.append(difference(shared[0][metric], shared[1][metric]))
    found = difference_correlation(differences[0], differences[1], shared)
    assert found == pytest.approx(0.6, abs=5 * (1 - 0.36) / math.sqrt(10_000))
    assert difference_correlation(differences[0], differences[0], [(a, a, m.take([0, 0])) for a, _, m in shared]) == (
        pytest.approx(1.0, rel=1e-12)
    )


def test_levels_on_different_units_do_not_covary() -> None:
    a, b = mean_of(np.arange(5.0)), mean_of(np.arange(7.0))
    assert level_covariance(a, b, Moments.of(np.empty((0, 2)))) == 0.0
    assert difference_covariance([]) == 0.0


# --- when to doubt the interval ------------------------------------------------------------------------------------


def conversions(n: int, ones: int) -> Level:
    return mean_of(np.r_[np.ones(ones), np.zeros(n - ones)])


@pytest.mark.parametrize(
    ("treatment", "control", "words"),
    [
        (conversions(1000, 40), conversions(1000, 9), "only 9 of the 1,000 units in control"),
        (conversions(1000, 992), conversions(1000, 900), "only 8 of the 1,000 units in treatment"),
        (conversions(9000, 180), conversions(1000, 20), "control carries most of the uncertainty"),
        (conversions(1000, 20), conversions(9000, 180), "treatment carries most of the uncertainty"),
        (level_at(3.0, 1.0), level_at(30.0, 1.0), "a few units decide the mean of treatment"),
        (level_at(10.0, 0.1), level_at(10.0, 0.9), "control carries most of the uncertainty"),
    ],
)
def test_doubt_names_the_arm_and_why(treatment: Level, control: Level, words: str) -> None:
    found = normal_approximation_doubtful(treatment, control)
    assert found is not None
    assert words in found
    named = str(normal_approximation_doubtful(treatment, control, names=("'new'", "'old'")))
    assert named == found.replace("in treatment", "in 'new'").replace("in control", "in 'old'").replace(
        "of treatment:", "of 'new':"
    ).replace("control carries", "'old' carries").replace("treatment carries", "'new' carries")


@pytest.mark.parametrize(
    ("treatment", "control"),
    [
        (conversions(1000, 40), conversions(1000, 30)),
        (conversions(90_000, 4_000), conversions(10_000, 400)),
        (level_at(10.0, 1.0), level_at(10.0, 1.0)),
        (level_at(10.0, 0.1), level_at(10.0, 0.4)),
        (level_at(-10.0, 0.1), level_at(10.0, 5.0)),
    ],
)
def test_no_doubt_where_there_is_enough(treatment: Level, control: Level) -> None:
    assert normal_approximation_doubtful(treatment, control) is None


def test_a_relative_lift_of_skewed_values_wants_more() -> None:
    t, c = level_at(6.0, 1.0), level_at(6.0, 1.0)
    assert normal_approximation_doubtful(t, c) is None
    assert "fewer than 150" in str(normal_approximation_doubtful(t, c, relative=True))


def test_a_relative_lift_of_a_treatment_at_zero_is_doubtful_on_either_side_of_it() -> None:
    c = level_at(10.0, 0.3)
    for value in (0.1, -0.1):
        t = level_at(value, 0.3)
        assert normal_approximation_doubtful(t, c, relative=True) is not None
    assert normal_approximation_doubtful(level_at(-10.0, 0.3), c, relative=True) is None


# --- refusals --------------------------------------------------------------------------------------------------------

OK = Moments.of([[1.0, 2.0], [2.0, 3.0], [4.0, 3.0]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_of(np.empty(0)), "an arm of 0 units"),
        (lambda: mean_of(np.ones(1)), "an arm of 1 unit has no variation"),
        (lambda: ratio_of(np.ones(1), np.ones(1)), "an arm of 1 unit"),
        (lambda: mean_of(np.full(50, 0.1)), "all 50 units have the same value"),
        (lambda: mean_of(np.full(50, 1e8 + 0.1)), "all 50 units have the same value"),
        (lambda: mean_of(np.zeros(5)), "all 5 units have the same value"),
        # What an engine's running mean leaves of fifty times 0.1 is rounding, not variation.
        (lambda: mean_level(Moments(50, np.array([0.1]), np.array([[2e-34]]))), "all 50 units have the same value"),
        (lambda: ratio_of(np.full(6, 0.3), np.full(6, 0.7)), "all 6 units have the same ratio"),
        (lambda: ratio_of(0.1 * np.arange(1.0, 9.0), np.arange(1.0, 9.0)), "all 8 units have the same ratio"),
        (lambda: ratio_of(np.zeros(6), np.arange(6.0)), "all 6 units have the same ratio"),
        (lambda: ratio_of(np.arange(6.0), np.zeros(6)), "the denominator adds up to zero over 6 units"),
        (lambda: mean_of(np.array([1.0, np.nan])), "1 of 2 values are not finite"),
        (lambda: mean_of(np.arange(4.0) * 1e200), "not a finite number"),
        (lambda: mean_of(np.arange(4.0), scale=0.0), "scale"),
        (lambda: ratio_of(np.arange(4.0), np.ones(4), scale=math.inf), "scale"),
        (lambda: mean_level(OK), "moments of 1 measures a unit, not of 2"),
        (lambda: ratio_level(OK.take([0])), "moments of 2 measures a unit, not of 1"),
        (lambda: Level(math.nan, 1.0, 10), "not finite"),
        (lambda: Level(1.0, math.inf, 10), "not finite"),
        (lambda: mean_of(np.arange(4.0)).interval(1.0), "between 0 and 1"),
        (lambda: relative_lift(level_at(1, 0.1), level_at(1, 0.1), 95), "between 0 and 1"),
        (lambda: srm({"a": 1}, {"a": 1.0}), "at least two arms"),
        (lambda: srm({"a": 1, "b": 2}, {"a": 0.5, "c": 0.5}), "not in both: b, c"),
        (lambda: srm({"a": 0, "b": 0}, {"a": 0.5, "b": 0.5}), "no units were counted"),
        (lambda: srm({"a": 1, "b": -2}, {"a": 0.5, "b": 0.5}), "arm 'b' has a count of -2"),
        (lambda: srm({"a": 1, "b": 2}, {"a": 1.0, "b": 0.0}), "above zero"),
        (lambda: srm({"a": 1, "b": 2}, {"a": 1.0, "b": math.nan}), "above zero"),
        (lambda: missingness({"a": 5, "b": 6}, {"a": 5, "b": 6}), "every unit has a value"),
        (lambda: missingness({"a": 0, "b": 0}, {"a": 5, "b": 6}), "no unit has a value"),
        (lambda: missingness({"a": 6, "b": 0}, {"a": 5, "b": 6}), "6 units with a value but only 5"),
        (lambda: missingness({"a": 0, "b": 0}, {"a": 0, "b": 6}), "arm 'a' has no units"),
        (lambda: missingness({"a": 1}, {"a": 2}), "at least two arms"),
        (lambda: missingness({"a": 1}, {"b": 2}), "the same arms"),
        (lambda: power(1.0, 0.0, 10, 1.0, 10), "variance of a unit in treatment"),
        (lambda: power(1.0, 1.0, 10, math.nan, 10), "variance of a unit in control"),
        (lambda: power(1.0, 1.0, 1, 1.0, 10), "at least two units"),
        (lambda: power(math.nan, 1.0, 10, 1.0, 10), "finite"),
        (lambda: minimum_detectable_effect(0.0, 10, 1.0, 10), "variance of a unit in treatment"),
        (lambda: minimum_detectable_effect(1.0, 0, 1.0, 10), "at least two units"),
        (lambda: minimum_detectable_effect(1.0, 10, 1.0, 10, power_wanted=0.04), "power wanted"),
        (lambda: minimum_detectable_effect(1.0, 10, 1.0, 10, power_wanted=1.0), "power wanted"),
        (lambda: required_n(0.0, 1.0, 1.0), "other than zero"),
        (lambda: required_n(0.1, 1.0, -1.0), "variance of a unit in control"),
        (lambda: required_n(0.1, 1.0, 1.0, treatment_share=1.0), "between 0 and 1"),
        (lambda: required_n(1e-9, 1.0, 1.0), "no number of units"),
        (lambda: noninferiority_n(0.1, -0.1, 1.0, 1.0), "no number of units would"),
        (lambda: noninferiority_n(-0.1, 0.0, 1.0, 1.0), "margin must be"),
        (lambda: noninferiority_power(0.1, math.inf, 1.0, 9, 1.0, 9), "true effect must be"),
        (lambda: conversion_variance(1.0), "between 0 and 1"),
        (lambda: design_effect(0.5, 0.0, 0.1), "at least one unit"),
        (lambda: design_effect(5, -1.0, 0.1), "coefficient of variation"),
        (lambda: design_effect(5, 0.0, 1.5), "intraclass correlation lies"),
        (lambda: design_effect(5, 0.0, -0.5), "cannot be that of clusters"),
        (lambda: icc(OK.take([0]), 1.0), "2 measures"),
        (lambda: icc(Moments.of([[1.0, 1.0], [2.0, 1.0], [4.0, 1.0]]), 1.0), "every cluster has one unit"),
        (lambda: icc(Moments.of([[1.0, 0.0], [2.0, 0.0]]), 1.0), "no units"),
        (lambda: icc(Moments.of([[1.0, 2.0], [2.0, 3.0]]), 0.0), "variance of a unit"),
        (lambda: Level(1.0, 1.0, 5, lost=4), "leave nothing to judge by"),
        (lambda: difference(level_at(1, 1), level_at(1, 1), 1.0), "move as one"),
        (lambda: difference(level_at(1, 1), level_at(1, 2), 2.1), "more than each varies"),
        (lambda: difference(level_at(1, 1), level_at(1, 2), math.nan), "finite"),
        (lambda: ratio_interval(1.0, 1.0, 1.0, 1.0, 0.0, 2.0), "could be anything"),
        (lambda: level_covariance(level_at(1, 1), level_at(1, 1), OK), "made by mean_level or ratio_level"),
        (lambda: level_covariance(mean_of(np.arange(4.0)), mean_of(np.arange(4.0)), OK.take([0])), "2 measures"),
        (lambda: level_covariance(mean_of(np.arange(2.0)), mean_of(np.arange(4.0)), OK), "3 shared units"),
    ],
)
def test_refuses_in_plain_words(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()

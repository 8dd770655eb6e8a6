"""Adjustment by what was known before: against statsmodels, against simulation with known truth, and its laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.multivariate.manova import MANOVA

from payoff.estimate import FloatArray
from payoff.stats.adjust import (
    Adjusted,
    Kind,
    adjusted_levels,
    balance,
    diluted,
    post_stratified,
    tail_share,
)
from payoff.stats.compare import (
    Difference,
    Fieller,
    Level,
    LogDelta,
    difference,
    difference_correlation,
    difference_covariance,
    mean_level,
    ratio_level,
    relative_lift,
)
from payoff.stats.moments import Moments

Table = dict[str, FloatArray]


def arms_of(seed: int, sizes: Mapping[str, int], kind: Kind = "mean", p: int = 3) -> Table:
    """By arm: measures, then ``p`` correlated covariates that pull harder in later arms; residuals are skewed."""
    rng = np.random.default_rng(seed)
    out: Table = {}
    for i, (arm, n) in enumerate(sizes.items()):
        x = rng.normal(size=(n, p)) @ (np.eye(p) + 0.5) + np.arange(p)
        y = 20 + i + x @ np.linspace(1, 2 + i, p) + rng.gamma(2, 2, n)
        d = rng.poisson(3, n) + 1.0
        out[arm] = np.column_stack([y, x] if kind == "mean" else [y * d, d, x])
    return out


def moments_of(table: Table) -> dict[str, Moments]:
    return {arm: Moments.of(rows) for arm, rows in table.items()}


def gap(a: Adjusted, treatment: str = "t", control: str = "c") -> Difference:
    return difference(a.levels[treatment], a.levels[control], a.covariance[treatment, control])


THREE = {"c": 80, "t": 120, "u": 60}


# --- against statsmodels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, -100.0])
def test_adjusted_means_are_predictions_of_each_arms_ols_at_the_pooled_means(scale: float) -> None:
    """Exactly equal: the value; s2 (1/n + d' SS^-1 d), which is OLS's variance of a predicted mean; R2. What is added to it
    is the pooled means' own variance, here from the arms' covariances."""
    table = arms_of(1, THREE)
    found = adjusted_levels(moments_of(table), scale=scale)
    every = np.vstack([rows[:, 1:] for rows in table.values()])
    n = len(every)
    pooled = sum((len(rows) / n * np.cov(rows[:, 1:], rowvar=False) for rows in table.values()), np.zeros((3, 3))) / n
    fits = {arm: sm.OLS(rows[:, 0], sm.add_constant(rows[:, 1:])).fit() for arm, rows in table.items()}
    for arm, fit in fits.items():
        level = found.levels[arm]
        prediction = fit.get_prediction(np.r_[1.0, every.mean(axis=0)])
        slope = fit.params[1:]
        assert level.value == pytest.approx(scale * prediction.predicted_mean[0], rel=1e-10)
        own = float(np.asarray(prediction.se_mean).item()) ** 2
        assert level.variance == pytest.approx(scale**2 * (own + slope @ pooled @ slope), rel=1e-9)
        assert found.r2[arm] == pytest.approx(fit.rsquared, rel=1e-9)
        assert level.df == fit.df_resid
        for other in table:
            if other != arm:
                expected = scale**2 * slope @ pooled @ fits[other].params[1:]
                assert found.covariance[arm, other] == pytest.approx(expected, rel=1e-9)


def test_the_difference_is_the_treatment_coefficient_of_lins_interacted_regression() -> None:
    """Exactly equal: the value. Only close: the error. HC2 leaves out the pooled means' variance, (b_t - b_c)' V (b_t - b_c),
    and with it added differs by the residuals' heteroscedasticity alone: 5% at these sizes."""
    table = arms_of(2, {"c": 300, "t": 500})
    every = np.vstack(list(table.values()))
    t = np.r_[np.zeros(300), np.ones(500)]
    x = every[:, 1:] - every[:, 1:].mean(axis=0)
    fit = sm.OLS(every[:, 0], np.column_stack([np.ones(800), t, x, t[:, None] * x])).fit(cov_type="HC2")
    found = gap(adjusted_levels(moments_of(table)))
    assert found.value == pytest.approx(fit.params[1], rel=1e-10)
    slopes = fit.params[5:]
    v = sum((len(rows) / 800**2 * np.cov(rows[:, 1:], rowvar=False) for rows in table.values()), np.zeros((3, 3)))
    assert found.se**2 == pytest.approx(fit.bse[1] ** 2 + slopes @ v @ slopes, rel=0.05)
    assert found.se > fit.bse[1]


def test_adjusted_ratios_are_predictions_of_the_linearised_units() -> None:
    table = arms_of(3, THREE, "ratio")
    found = adjusted_levels(moments_of(table), kind="ratio")
    middle = np.vstack([rows[:, 2:] for rows in table.values()]).mean(axis=0)
    for arm, rows in table.items():
        y, d, x = rows[:, 0], rows[:, 1], rows[:, 2:]
        r = y.sum() / d.sum()
        fit = sm.OLS((y - r * d) / d.mean(), sm.add_constant(x)).fit()
        prediction = fit.get_prediction(np.r_[1.0, middle])
        assert found.levels[arm].value == pytest.approx(r + prediction.predicted_mean[0], rel=1e-10)
        shared = found.levels[arm].variance - float(np.asarray(prediction.se_mean).item()) ** 2
        assert shared > 0
        assert found.plain[arm] == ratio_level(Moments.of(rows[:, :2]))


def test_a_denominator_of_one_is_the_mean() -> None:
    table = arms_of(4, THREE)
    as_ratio = {arm: np.column_stack([rows[:, 0], np.ones(len(rows)), rows[:, 1:]]) for arm, rows in table.items()}
    mean, ratio = adjusted_levels(moments_of(table)), adjusted_levels(moments_of(as_ratio), kind="ratio")
    for arm in table:
        assert ratio.levels[arm].value == pytest.approx(mean.levels[arm].value, rel=1e-12)
        assert ratio.levels[arm].variance == pytest.approx(mean.levels[arm].variance, rel=1e-9)


def clustered(seed: int, clusters: Mapping[str, int]) -> tuple[dict[str, tuple[FloatArray, ...]], dict[str, Moments]]:
    """(cluster, y, x) of units by arm, and the clusters' totals of y, units, x."""
    rng = np.random.default_rng(seed)
    units, totals = {}, {}
    for i, (arm, n) in enumerate(clusters.items()):
        size = rng.poisson(6, n) + 1
        g = np.repeat(np.arange(n), size)
        common = rng.normal(size=n)
        x = 5 + common[g] + rng.normal(size=len(g))
        y = 10 + i + 2 * x + rng.normal(size=n)[g] + rng.normal(size=len(g))
        units[arm] = g, y, x
        sums = [np.bincount(g, weights=w) for w in (y, np.ones(len(g)), x)]
        totals[arm] = Moments.of(np.column_stack(sums))
    return units, totals


def test_clusters_are_cluster_robust_ols() -> None:
    """Plain levels: exactly equal to OLS of units on arms with errors by cluster, times n / (n - 1) an arm (statsmodels'
    own correction is over all clusters together). The adjusted difference: OLS of the clusters' linearised totals,
    exactly; unit-level OLS with the same covariate weighs clusters otherwise and is only close: 15% of the error."""
    units, totals = clustered(5, {"c": 150, "t": 90})
    y = np.concatenate([u[1] for u in units.values()])
    x = np.concatenate([u[2] for u in units.values()])
    t = np.repeat([0.0, 1.0], [len(u[1]) for u in units.values()])
    g = np.concatenate([units["c"][0], units["t"][0] + 1_000])
    groups = {"groups": g, "use_correction": False}
    found = adjusted_levels(totals, size=1)
    # one column an arm: a block-diagonal covariance, an arm's own block each
    fit = sm.OLS(y, np.column_stack([1 - t, t])).fit(cov_type="cluster", cov_kwds=groups)
    for i, (arm, n) in enumerate((("c", 150), ("t", 90))):
        assert found.plain[arm].value == pytest.approx(fit.params[i], rel=1e-10)
        assert found.plain[arm].variance == pytest.approx(fit.bse[i] ** 2 * n / (n - 1), rel=1e-9)
    centred = x - x.mean()
    near = sm.OLS(y, np.column_stack([np.ones(len(y)), t, centred, t * centred])).fit(
        cov_type="cluster", cov_kwds=groups
    )
    assert gap(found).se == pytest.approx(near.bse[1], rel=0.15)
    assert abs(gap(found).value - near.params[1]) < near.bse[1]
    assert gap(found).se < 0.5 * difference(found.plain["t"], found.plain["c"]).se
    units_in_all = sum(m.n * m.mean[1] for m in totals.values())
    for arm, m in totals.items():
        rows = np.column_stack([np.bincount(units[arm][0], weights=w) for w in (units[arm][1], units[arm][2])])
        size = np.bincount(units[arm][0])
        r = rows[:, 0].sum() / size.sum()
        z = rows[:, 1] - sum(o.n * o.mean[2] for o in totals.values()) / units_in_all * size
        exact = sm.OLS((rows[:, 0] - r * size) / m.mean[1], sm.add_constant(z)).fit().get_prediction([1.0, 0.0])
        assert found.levels[arm].value == pytest.approx(r + exact.predicted_mean[0], rel=1e-10)


def test_clusters_of_one_unit_are_units() -> None:
    table = arms_of(6, THREE)
    sized = {arm: np.column_stack([rows[:, 0], np.ones(len(rows)), rows[:, 1:]]) for arm, rows in table.items()}
    one, other = adjusted_levels(moments_of(table)), adjusted_levels(moments_of(sized), size=1)
    for arm in table:
        assert other.levels[arm].value == pytest.approx(one.levels[arm].value, rel=1e-12)
        assert other.levels[arm].variance == pytest.approx(one.levels[arm].variance, rel=1e-9)


# --- laws ------------------------------------------------------------------------------------------------------------


SEEDS = st.integers(0, 10**6)


@given(SEEDS, st.sampled_from(["mean", "ratio"]))
def test_swapped_labels_flip_the_sign_and_the_order_of_arms_says_nothing(seed: int, kind: Kind) -> None:
    table = arms_of(seed, THREE, kind)
    found = adjusted_levels(moments_of(table), kind=kind)
    one, other = gap(found), gap(found, "c", "t")
    assert (other.value, other.se, other.df) == pytest.approx((-one.value, one.se, one.df), rel=1e-9)
    turned = adjusted_levels(moments_of(dict(reversed(table.items()))), kind=kind)
    assert (gap(turned).value, gap(turned).se) == pytest.approx((one.value, one.se), rel=1e-8)


@given(SEEDS, st.sampled_from([100.0, 1e-9, 1e8]), st.integers(0, 2))
def test_units_of_measures_and_of_covariates(seed: int, factor: float, covariate: int) -> None:
    table = arms_of(seed, THREE)
    plain = gap(adjusted_levels(moments_of(table)))
    for column, by in ((0, factor), (1 + covariate, 1.0)):
        scaled = {arm: rows * np.where(np.arange(4) == column, factor, 1.0) for arm, rows in table.items()}
        found = gap(adjusted_levels(moments_of(scaled)))
        assert (found.value / by, found.se / by) == pytest.approx((plain.value, plain.se), rel=1e-8)


@given(SEEDS, st.sampled_from([1e8, -1e8]))
def test_covariates_far_from_zero_change_nothing(seed: int, offset: float) -> None:
    """1e8 leaves eight of a covariate's sixteen digits: the noise it keeps is right to about 1e-8."""
    table = arms_of(seed, THREE)
    moved = {arm: rows + np.array([0, offset, 0, offset]) for arm, rows in table.items()}
    one, other = gap(adjusted_levels(moments_of(table))), gap(adjusted_levels(moments_of(moved)))
    assert (other.value, other.se) == pytest.approx((one.value, one.se), rel=1e-6)


@given(SEEDS, st.integers(0, 80))
def test_merged_equals_whole(seed: int, cut: int) -> None:
    table = arms_of(seed, THREE)
    parts = {arm: Moments.of(rows[:cut]).merge(Moments.of(rows[cut:])) for arm, rows in table.items()}
    one, other = gap(adjusted_levels(moments_of(table))), gap(adjusted_levels(parts))
    assert (other.value, other.se, other.df) == pytest.approx((one.value, one.se, one.df), rel=1e-8)


@given(SEEDS)
def test_another_order_or_basis_of_covariates_changes_nothing(seed: int) -> None:
    table = arms_of(seed, THREE)
    mixed = {
        arm: np.column_stack([rows[:, 0], rows[:, 3], rows[:, 1] + rows[:, 2], rows[:, 1] - 3 * rows[:, 3]])
        for arm, rows in table.items()
    }
    one, other = gap(adjusted_levels(moments_of(table))), gap(adjusted_levels(moments_of(mixed)))
    assert (other.value, other.se) == pytest.approx((one.value, one.se), rel=1e-8)


@given(SEEDS)
def test_pure_noise_moves_little(seed: int) -> None:
    """With an r of about 1 / sqrt(n), beta' d is of order se / sqrt(n): half an error would be six of those."""
    table = arms_of(seed, {"c": 800, "t": 700})
    rng = np.random.default_rng(seed + 1)
    noisy = {arm: np.column_stack([rows, rng.normal(size=len(rows))]) for arm, rows in table.items()}
    one, other = gap(adjusted_levels(moments_of(table))), gap(adjusted_levels(moments_of(noisy)))
    assert abs(one.value - other.value) < 0.5 * one.se
    assert other.se == pytest.approx(one.se, rel=0.03)


# --- what cannot be used -------------------------------------------------------------------------------------------


@given(SEEDS, st.sampled_from([1.0, 1e8, 1e-9]))
def test_constant_and_collinear_covariates_are_dropped(seed: int, size: float) -> None:
    table = arms_of(seed, THREE)
    rng = np.random.default_rng(seed)
    odd = {
        arm: np.column_stack(
            [
                rows[:, 0],
                np.full(len(rows), 7.7),  # 0: constant
                rows[:, 1] * size,  # 1
                rows[:, 2],  # 2
                size * (3 * rows[:, 1] - 2 * rows[:, 2]),  # 3: made of 1 and 2
                rng.random(len(rows)) < (0 if arm == "u" else 0.5),  # 4: constant in one arm
                rows[:, 3] * 1e-9 + (1e-2 if size == 1 else 0),  # 5
            ]
        )
        for arm, rows in table.items()
    }
    found = adjusted_levels(moments_of(odd))
    assert found.used == (1, 2, 5)
    assert found.dropped == (0, 3, 4)
    one = gap(adjusted_levels(moments_of(table)))
    assert (gap(found).value, gap(found).se) == pytest.approx((one.value, one.se), rel=1e-6)
    assert found.levels["t"].weights[1] == 0.0
    assert len(found.levels["t"].weights) == 7


def test_a_covariate_that_is_the_clusters_size_is_dropped() -> None:
    """A column of ones a unit adds up to the size: after taking the mean away nothing is left but rounding."""
    _, totals = clustered(7, {"c": 60, "t": 70})
    with_ones = {arm: m.take([0, 1, 1, 2]) for arm, m in totals.items()}
    assert adjusted_levels(with_ones, size=1).used == (1,)


def test_balance_drops_and_counts_only_what_says_something() -> None:
    table = arms_of(8, THREE)
    odd = {arm: np.column_stack([rows, np.ones(len(rows)), rows[:, 1] - rows[:, 2]]) for arm, rows in table.items()}
    found, same = balance(moments_of(odd), 5), balance(moments_of(table), 3)
    assert found is not None
    assert same is not None
    assert found.used == (0, 1, 2)
    assert found.df == 6
    assert found.statistic == pytest.approx(same.statistic, rel=1e-9)
    assert balance({arm: Moments.of(np.ones((9, 2))) for arm in "ab"}, 2) is None


REFUSED: list[tuple[Callable[[], object], str]] = [
    (
        lambda: adjusted_levels(moments_of(arms_of(1, {"c": 14, "t": 50}, p=4))),
        "'c' has 14 units for 4 covariates: more",
    ),
    (lambda: adjusted_levels(moments_of(arms_of(1, {"c": 50}))), "at least two arms"),
    (lambda: adjusted_levels({"c": Moments.of(np.ones((30, 2))), "t": Moments.of(np.ones((30, 2)))}), "same value"),
    (lambda: adjusted_levels({a: Moments.of(np.arange(30.0)) for a in "ct"}), "no covariate varies"),
    (
        lambda: adjusted_levels({a: Moments.of(np.arange(30.0)).take([0, 0]) for a in "ct"}),
        "explain the value of every unit in arm 'c'",
    ),
    (lambda: adjusted_levels(moments_of(arms_of(1, THREE)), size=0), "cannot be the clusters' size"),
    (
        lambda: adjusted_levels({"c": Moments.of(np.eye(30)), "t": Moments.of(np.eye(29))}),
        "same columns",
    ),
    (lambda: balance({"c": Moments.of(np.eye(30))}, 2), "at least two arms"),
    (lambda: balance(moments_of(arms_of(1, THREE)), 5), "cannot be the last of 4"),
    (lambda: post_stratified({"a": {"c": Moments.of([1.0, 2.0])}}), "at least two arms"),
    (lambda: post_stratified({"a": {x: Moments.of([1.0, 2.0, 5.0]) for x in "ct"}}), "fewer than two strata"),
    (lambda: diluted(Difference(1.0, 1.0, 9.0), {"c": 5}, {"c": 4}), "5 triggered units of 4"),
    (lambda: diluted(Difference(1.0, 1.0, 9.0), {"c": 0}, {"c": 4}), "no unit triggered"),
    (lambda: diluted(Difference(1.0, 1.0, 9.0), {"c": 1}, {"t": 4}), "same arms"),
    (lambda: tail_share(1.0, 2.0, 1.0, 9), "cannot be below the mean"),
    (lambda: tail_share(3.0, 2.0, 0.0, 9), "without variation"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_refuses_in_plain_words(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


# --- coverage ----------------------------------------------------------------------------------------------------------


def world(
    rng: np.random.Generator, kind: Kind, n: int, lift: float, r2: float, skewed: bool, share: float = 0.5
) -> dict[str, Moments]:
    """Means 10 and 10 (1 + lift); the values before exposure explain r2 of the variance (of the ratio's units: less)."""
    out = {}
    for arm, m, by in (("c", n - round(n * share), 1.0), ("t", round(n * share), 1.0 + lift)):
        s2 = 0.75**2
        z = rng.normal(size=m)
        if skewed:
            z = (np.exp(0.75 * z) - math.exp(s2 / 2)) / math.sqrt((math.exp(s2) - 1) * math.exp(s2))
        y = (10 + 3 * (math.sqrt(r2) * z + math.sqrt(1 - r2) * rng.normal(size=m))) * by
        columns = [y, 10 + 3 * z]
        if kind == "ratio":
            d = rng.poisson(3, m) + 1.0
            columns = [y * d, d, (10 + 3 * z) * d, d + rng.normal(0, 0.1, m)]
        out[arm] = Moments.of(np.column_stack(columns))
    return out


def coverage(kind: Kind, n: int, lift: float, r2: float, skewed: bool, worlds: int) -> tuple[float, float]:
    """The shares of worlds in which the 95% intervals of the difference and of the relative lift hold the truth."""
    rng = np.random.default_rng([n, int(skewed), len(kind)])
    hits = np.zeros(2)
    for _ in range(worlds):
        found = adjusted_levels(world(rng, kind, n, lift, r2, skewed), kind=kind)
        t, c, shared = found.levels["t"], found.levels["c"], found.covariance["t", "c"]
        low, high = difference(t, c, shared).interval()
        relative = relative_lift(t, c, covariance=shared)
        assert isinstance(relative, LogDelta)
        left, right = relative.interval()
        hits += [low <= 10 * lift <= high, left <= lift <= right]
    return hits[0] / worlds, hits[1] / worlds


def band(worlds: int) -> float:
    """3.5 binomial standard errors of .95."""
    return 3.5 * math.sqrt(0.95 * 0.05 / worlds)


@pytest.mark.parametrize("kind", ["mean", "ratio"])
@pytest.mark.parametrize("n", [200, 2_000])
def test_strong_adjustment_and_a_large_lift_keep_both_intervals(kind: Kind, n: int) -> None:
    """R2 .98 and a lift of 50%, where treating the pooled or the control's mean as fixed covers .754."""
    of_difference, of_lift = coverage(kind, n, 0.5, 0.98, False, 800)
    assert of_difference == pytest.approx(0.95, abs=band(800))
    assert of_lift == pytest.approx(0.95, abs=band(800))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mean", "ratio"])
@pytest.mark.parametrize("n", [200, 2_000])
@pytest.mark.parametrize(("lift", "r2"), [(0.5, 0.98), (0.0, 0.98), (0.05, 0.5), (0.5, 0.0)])
@pytest.mark.parametrize("skewed", [False, True])
def test_coverage_of_adjusted_intervals(kind: Kind, n: int, lift: float, r2: float, skewed: bool) -> None:
    """One hundredth is left, beside Monte-Carlo error, for skewed covariates at 100 units an arm."""
    room = band(5_000) + (0.01 if skewed and n == 200 else 0.0)
    for found in coverage(kind, n, lift, r2, skewed, 5_000):
        assert found == pytest.approx(0.95, abs=room)


def test_leaving_out_the_shared_mean_undercovers() -> None:
    """The premise of the covariance: without (beta_t - beta_c)' V (beta_t - beta_c) coverage at R2 .98 falls below .8."""
    rng = np.random.default_rng(12)
    hits = 0
    for _ in range(600):
        m = world(rng, "mean", 200, 0.5, 0.98, False)
        found = adjusted_levels(m)
        se = math.sqrt(sum(float(np.array(x.weights) @ m[a].cov @ x.weights) / x.n for a, x in found.levels.items()))
        hits += abs(gap(found).value - 5.0) <= stats.t.ppf(0.975, gap(found).df) * se
    assert hits / 600 < 0.8


# --- joint errors ----------------------------------------------------------------------------------------------------


def parts_of(
    a: Adjusted, of_a: tuple[str, str], b: Adjusted, of_b: tuple[str, str], joint: Mapping[str, Moments]
) -> list[tuple[Level, Level, Moments]]:
    one, other = a.parts(*of_a), b.parts(*of_b)
    return [(one[arm], other[arm], joint[arm]) for arm in joint]


@given(SEEDS, st.sampled_from(["mean", "ratio"]))
def test_the_parts_of_a_difference_have_its_variance(seed: int, kind: Kind) -> None:
    """By two routes: Cov of the parts over all arms, and Var(t) + Var(c) - 2 Cov(t, c). They differ by the divisors of
    residuals (n - 1 and n - 1 - p) and by beta's own uncertainty: with 3 covariates of 1,000 units, under 1%."""
    m = moments_of(arms_of(seed, {"c": 1_000, "t": 1_500, "u": 1_200}, kind))
    found = adjusted_levels(m, kind=kind)
    columns = list(range(m["c"].k)) * 2
    for pair in combinations(("t", "u", "c"), 2):
        shared = parts_of(found, pair, found, pair, {arm: x.take(columns) for arm, x in m.items()})
        assert difference_covariance(shared) == pytest.approx(gap(found, *pair).se ** 2, rel=0.02)


@pytest.mark.parametrize("lift", [0.0, 1.0])
def test_joint_errors_of_adjusted_differences_are_what_repeated_samples_show(lift: float) -> None:
    """Two metrics of one contrast, and two contrasts of one metric, with covariates that pull harder in treatment. 3,000
    samples: a correlation's standard error is at most 1 / sqrt(3000) = .018, and told ones vary by less."""
    rng = np.random.default_rng(13)
    seen, told = [], []
    sizes = {"c": 150, "t": 150, "u": 100}
    for _ in range(3_000):
        m = {}
        for arm, n in sizes.items():
            by = 1.0 if arm == "c" else 1 + lift
            x = rng.normal(size=(n, 2))
            e = rng.normal(size=n)
            a = by * (x[:, 0] + x[:, 1]) + 0.3 * e
            b = by * x[:, 0] + 0.3 * e + 0.3 * rng.normal(size=n)
            m[arm] = Moments.of(np.column_stack([a, x, b, x[:, 0]]))
        first, second = ({arm: x.take(c) for arm, x in m.items()} for c in ([0, 1, 2], [3, 4]))
        one, two = adjusted_levels(first), adjusted_levels(second)
        columns = [0, 1, 2] * 2
        told.append(
            [
                difference_correlation(gap(one), gap(two), parts_of(one, ("t", "c"), two, ("t", "c"), m)),
                difference_correlation(
                    gap(one),
                    gap(one, "u"),
                    parts_of(one, ("t", "c"), one, ("u", "c"), {arm: x.take(columns) for arm, x in m.items()}),
                ),
            ]
        )
        seen.append([gap(one).value, gap(two).value, gap(one, "u").value])
    correlation = np.corrcoef(np.array(seen), rowvar=False)
    expected = correlation[0, 1], correlation[0, 2]
    assert np.mean(told, axis=0) == pytest.approx(expected, abs=4 * 0.018)
    if lift == 0.0:  # then the levels' own weights say the same: the shared mean cancels
        plain = [(one.levels[arm], two.levels[arm], m[arm]) for arm in ("t", "c")]
        assert difference_correlation(gap(one), gap(two), plain) == pytest.approx(told[-1][0], abs=0.02)


# --- balance -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [{"c": 40, "t": 60}, THREE])
def test_balance_is_pillais_trace(sizes: dict[str, int]) -> None:
    table = arms_of(14, sizes)
    x = np.vstack([rows[:, 1:] for rows in table.values()])
    group = np.repeat(np.arange(len(sizes)), list(sizes.values()))
    dummies = np.column_stack([np.ones(len(x)), *[group == g for g in range(1, len(sizes))]]).astype(float)
    contrast = np.eye(len(sizes))[1:]
    tests = MANOVA(x, dummies).mv_test([("arms", contrast)]).results["arms"]["stat"]
    found = balance(moments_of(table), 3)
    assert found is not None
    assert found.statistic == pytest.approx((len(x) - 1) * float(tests.loc["Pillai's trace", "Value"]), rel=1e-8)
    assert found.p_value == pytest.approx(stats.chi2.sf(found.statistic, 3 * (len(sizes) - 1)), rel=1e-9)


def test_balance_of_one_covariate_is_the_squared_correlation() -> None:
    x = np.random.default_rng(15).normal(size=50)
    t = np.arange(50) < 20
    found = balance({"c": Moments.of(x[~t]), "t": Moments.of(x[t])}, 1)
    assert found is not None
    assert found.statistic == pytest.approx(49 * np.corrcoef(x, t)[0, 1] ** 2, rel=1e-10)
    assert found.standardised == pytest.approx((x[t].mean() - x[~t].mean()) / x.std(ddof=1), rel=1e-10)


@given(SEEDS, st.sampled_from([1e8, 1e-9]))
def test_balance_knows_no_scale_and_no_offset(seed: int, factor: float) -> None:
    table = arms_of(seed, THREE)
    moved = {arm: rows * [1, factor, 1, 1] + [0, 0, 1e7, 0] for arm, rows in table.items()}
    one, other = balance(moments_of(table), 3), balance(moments_of(moved), 3)
    assert one is not None
    assert other is not None
    assert other.statistic == pytest.approx(one.statistic, rel=1e-6)
    assert (other.worst, other.between) == (one.worst, one.between)


def test_balance_names_the_worst_covariate_and_survives_one_that_tells_the_arms_apart() -> None:
    rng = np.random.default_rng(16)
    rows = {arm: rng.normal(size=(100, 3)) + np.array([0, 0, 1.5 * (arm == "t")]) for arm in ("c", "t", "u")}
    found = balance(moments_of(rows), 3)
    assert found is not None
    assert found.worst == 2  # a shift of 1.5 in one arm of three: a variance of 1 within and 0.5 between
    assert "t" in found.between
    assert found.standardised * (1 if found.between[1] == "t" else -1) == pytest.approx(1.5 / math.sqrt(1.5), abs=0.3)
    assert found.p_value < 1e-6
    apart = balance({arm: Moments.of(np.column_stack([rows[arm], np.full(100, float(arm == "t"))])) for arm in "ct"}, 4)
    assert apart is not None
    assert apart.worst == 3
    assert 0 < apart.p_value < 1e-20


@pytest.mark.parametrize(("n", "p", "arms"), [(200, 10, 2), (300, 5, 3), (100, 15, 2)])
def test_balance_alarms_no_more_often_than_it_says(n: int, p: int, arms: int) -> None:
    """Skewed covariates, arms drawn at random, 1,500 times: at most 5% and 3.5 binomial errors."""
    rng = np.random.default_rng([n, p])
    alarms = 0
    for _ in range(1_500):
        rows = np.array_split(rng.lognormal(0, 0.7, (n, p)), arms)
        found = balance({str(i): Moments.of(x) for i, x in enumerate(rows)}, p)
        assert found is not None
        alarms += found.p_value < 0.05
    assert 0.015 < alarms / 1_500 < 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / 1_500)


# --- post-stratification -------------------------------------------------------------------------------------------------

SHARES, BASE, LIFTS = np.array([0.5, 0.3, 0.2]), np.array([5.0, 10.0, 30.0]), np.array([0.1, 0.5, 0.8])


def strata_of(
    rng: np.random.Generator, n: int, kind: Kind = "mean"
) -> tuple[dict[str, dict[str, Moments]], Table, Table]:
    strata: dict[str, dict[str, Moments]] = {"a": {}, "b": {}, "z": {}}
    classes, tables = {}, {}
    for arm, m in (("c", n // 3), ("t", n - n // 3)):
        s = rng.choice(3, m, p=SHARES)
        y = BASE[s] * (1 + (LIFTS[s] if arm == "t" else 0)) + rng.normal(0, 3, m)
        d = rng.poisson(2, m) + 1.0
        rows = y[:, None] if kind == "mean" else np.column_stack([y * d, d])
        for i, name in enumerate(strata):
            strata[name][arm] = Moments.of(rows[s == i])
        classes[arm], tables[arm] = s.astype(float), rows
    return strata, classes, tables


def test_post_stratified_means_are_lins_regression_on_the_classes() -> None:
    """Exactly equal: the values, for a regression on all classes' 0/1 columns fits each class's mean. Only close: the
    variances, for the regression takes one residual variance for all classes."""
    strata, classes, tables = strata_of(np.random.default_rng(17), 900)
    found = post_stratified(strata)
    dummies = {
        arm: Moments.of(np.column_stack([tables[arm][:, 0], classes[arm] == 1, classes[arm] == 2])) for arm in classes
    }
    same = adjusted_levels(dummies)
    for arm in ("c", "t"):
        assert found.levels[arm].value == pytest.approx(same.levels[arm].value, rel=1e-10)
        assert found.levels[arm].variance == pytest.approx(same.levels[arm].variance, rel=0.05)
        assert found.r2[arm] == pytest.approx(same.r2[arm], rel=1e-9)
        assert found.plain[arm].value == pytest.approx(tables[arm][:, 0].mean(), rel=1e-10)
    assert found.covariance["t", "c"] == pytest.approx(same.covariance["t", "c"], rel=0.05)
    assert gap(found).se < difference(found.plain["t"], found.plain["c"]).se


def test_post_stratified_ratios_are_joint_and_a_denominator_of_one_is_the_mean() -> None:
    strata, _, tables = strata_of(np.random.default_rng(18), 300, "ratio")
    found = post_stratified(strata, kind="ratio", scale=2.0)
    total = sum(m.n for by_arm in strata.values() for m in by_arm.values())
    weight = {s: sum(m.n for m in by_arm.values()) / total for s, by_arm in strata.items()}
    y, d = sum((weight[s] * strata[s]["t"].mean for s in strata), np.zeros(2))
    assert found.levels["t"].value == pytest.approx(2 * y / d, rel=1e-12)
    ones = {
        s: {arm: Moments(m.n, np.r_[m.mean[0], 1.0], np.diag([m.cov[0, 0], 0.0])) for arm, m in by_arm.items()}
        for s, by_arm in strata.items()
    }
    as_mean, as_ratio = post_stratified(strata), post_stratified(ones, kind="ratio")
    for arm in tables:
        assert as_ratio.levels[arm].variance == pytest.approx(as_mean.levels[arm].variance, rel=1e-9)
        assert as_ratio.levels[arm].df == as_mean.levels[arm].df


@pytest.mark.parametrize("kind", ["mean", "ratio"])
@pytest.mark.parametrize("n", [200, 1_500])
def test_post_stratified_intervals_cover(kind: Kind, n: int) -> None:
    """The lift differs much between strata, so the shares' own uncertainty is a good part of the difference's."""
    rng = np.random.default_rng(n)
    treated, control = float(SHARES @ (BASE * (1 + LIFTS))), float(SHARES @ BASE)
    hits = np.zeros(2)
    for _ in range(1_000):
        found = post_stratified(strata_of(rng, n, kind)[0], kind=kind)
        low, high = gap(found).interval()
        lift = relative_lift(found.levels["t"], found.levels["c"], covariance=found.covariance["t", "c"])
        assert isinstance(lift, LogDelta)
        left, right = lift.interval()
        hits += [low <= treated - control <= high, left <= treated / control - 1 <= right]
    assert hits / 1_000 == pytest.approx(np.full(2, 0.95), abs=band(1_000))


def test_clusters_in_strata_are_a_ratio_of_totals_and_of_one_unit_are_units() -> None:
    strata, _, _ = strata_of(np.random.default_rng(23), 300, "ratio")
    one = post_stratified(strata, size=1)
    assert one == post_stratified(strata, kind="ratio")
    sized = {
        s: {arm: Moments(m.n, np.r_[m.mean, 1.0], np.pad(m.cov, ((0, 1), (0, 1)))) for arm, m in by_arm.items()}
        for s, by_arm in strata.items()
    }
    units, alone = post_stratified(strata), post_stratified(sized, size=2)
    assert (gap(alone).value, gap(alone).se) == pytest.approx((gap(units).value, gap(units).se), rel=1e-10)


def test_small_strata_are_merged_smallest_first_and_named() -> None:
    rng = np.random.default_rng(19)

    def cell(n: int) -> Moments:
        return Moments.of(rng.normal(size=(n, 2)))

    strata = {
        "big": {"c": cell(50), "t": cell(60)},
        "one": {"c": cell(1), "t": cell(9)},
        "small": {"c": cell(6), "t": cell(5)},
        "absent": {"t": cell(3)},
        "empty": {"c": cell(0), "t": cell(0)},
    }
    found = post_stratified(strata)
    assert found.merged == (("absent", "one", "small"),)
    assert found.levels["c"].n == 57
    by_hand = {"big": strata["big"], "rest": {}}
    for arm in ("c", "t"):
        whole = Moments(0, np.zeros(2), np.zeros((2, 2)))
        for name in ("one", "small", "absent"):
            whole = whole.merge(strata[name].get(arm, Moments(0, np.zeros(2), np.zeros((2, 2)))))
        by_hand["rest"][arm] = whole
    assert gap(post_stratified(by_hand)).se == pytest.approx(gap(found).se, rel=1e-12)
    assert gap(post_stratified(dict(reversed(strata.items())))).value == pytest.approx(gap(found).value, rel=1e-12)
    with pytest.raises(ValueError, match="not linear"):
        found.parts("t", "c")


# --- dilution and tails ------------------------------------------------------------------------------------------------


def test_dilution_is_the_difference_over_everyone_with_zeros() -> None:
    """Units that never trigger have the same values in both arms on average: over everyone, their zeros counted, the plain
    difference estimates the same quantity, less precisely."""
    rng = np.random.default_rng(20)
    values, widths, plain = [], [], []
    for _ in range(2_000):
        arms, some = {}, {}
        for arm, by in (("c", 4.0), ("t", 5.0)):
            hit = rng.random(400) < 0.2
            arms[arm] = np.where(hit, rng.normal(by, 2.0, 400), rng.normal(0.0, 3.0, 400))
            some[arm] = arms[arm][hit]
        d = difference(mean_level(Moments.of(some["t"])), mean_level(Moments.of(some["c"])))
        found = diluted(d, {a: len(x) for a, x in some.items()}, dict.fromkeys(arms, 400))
        values.append(found.difference.value)
        widths.append(found.difference.se**2)
        plain.append(arms["t"].mean() - arms["c"].mean())
    assert np.mean(values) == pytest.approx(0.2, abs=4 * np.std(values) / math.sqrt(2_000))
    assert np.mean(widths) == pytest.approx(np.var(values), rel=5 * math.sqrt(2 / 2_000))
    assert np.var(values) < 0.5 * np.var(plain)


def test_dilution_when_all_trigger_is_the_difference_and_the_share_is_wilsons() -> None:
    d = Difference(2.0, 0.5, 30.0)
    found = diluted(d, {"c": 50, "t": 50}, {"c": 50, "t": 50})
    assert found.difference == d
    assert found.share.value == 1.0
    for k in (1, 17, 100):
        oracle = stats.binomtest(k, 100).proportion_ci(0.9, "wilson")
        share = diluted(d, {"c": k}, {"c": 100}).share
        assert share.interval(0.9) == pytest.approx((oracle.low, oracle.high), rel=1e-10)


def test_tail_share_is_the_largest_values_part_of_the_scatter() -> None:
    y = np.random.default_rng(21).lognormal(0, 2, 500)
    scatter: Sequence[float] = (y - y.mean()) ** 2
    m = Moments.of(y)
    found = tail_share(float(y.max()), float(m.mean[0]), float(m.var[0]), m.n)
    assert found == pytest.approx(max(scatter) / sum(scatter), rel=1e-10)
    assert found < 499 / 500
    lonely = np.r_[np.zeros(99), 1.0]
    assert tail_share(1.0, 0.01, float(lonely.var(ddof=1)), 100) == pytest.approx(0.99, rel=1e-10)


def test_a_lift_below_its_error_goes_to_fieller_with_the_covariance() -> None:
    rng = np.random.default_rng(22)
    rows = {}
    for arm, by in (("c", 10.0), ("t", -0.1)):
        x = rng.normal(size=100)
        rows[arm] = np.column_stack([by + 5 * x + rng.normal(size=100), x])
    found = adjusted_levels(moments_of(rows))
    t, c, shared = found.levels["t"], found.levels["c"], found.covariance["t", "c"]
    lift = relative_lift(t, c, 0.9, shared)
    assert isinstance(lift, Fieller)
    quantile = stats.t.ppf(0.95, gap(found).df)
    for theta in (1 + lift.low, 1 + lift.high):
        variance = t.variance + theta**2 * c.variance - 2 * theta * shared
        assert (t.value - theta * c.value) ** 2 == pytest.approx(quantile**2 * variance, rel=1e-8)

"""One set of inputs, two programs: tea-tasting's figures and ours, and worked examples as they were published."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import tea_tasting as tt

from payoff.stats import compare, heterogeneity, multiplicity
from payoff.stats.moments import Moments


@pytest.fixture(scope="module")
def units() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(12)
    n = 4_000
    variant = rng.integers(0, 2, n)
    sessions = rng.poisson(4, n) + 1
    orders = rng.binomial(sessions, 0.25 + 0.01 * variant)
    revenue = orders * rng.lognormal(3, 0.5, n)
    return {
        "variant": variant,
        "sessions": sessions.astype(float),
        "orders": orders.astype(float),
        "revenue": revenue,
        "bought": (orders > 0).astype(float),
    }


def arm(units: dict[str, np.ndarray], which: int, *columns: str) -> Moments:
    return Moments.of(np.column_stack([units[c][units["variant"] == which] for c in columns]))


@pytest.mark.parametrize("metric", ["sessions", "orders", "revenue", "bought"])
def test_a_mean_is_tea_tastings(units: dict[str, np.ndarray], metric: str) -> None:
    theirs = tt.Experiment(m=tt.Mean(metric)).analyze(pa.table(units))["m"]
    control, treatment = (compare.mean_level(arm(units, i, metric)) for i in (0, 1))
    ours = compare.difference(treatment, control)
    assert ours.value == pytest.approx(theirs.effect_size, rel=1e-8)
    assert ours.interval() == pytest.approx((theirs.effect_size_ci_lower, theirs.effect_size_ci_upper), rel=1e-8)
    assert ours.p_value() == pytest.approx(theirs.pvalue, rel=1e-8)
    lift = compare.relative_lift(treatment, control)
    assert isinstance(lift, compare.LogDelta)
    assert lift.value == pytest.approx(theirs.rel_effect_size, rel=1e-8)
    # both on the log scale; theirs takes the difference's degrees of freedom where ours has the log ratio's own
    assert lift.interval() == pytest.approx(
        (theirs.rel_effect_size_ci_lower, theirs.rel_effect_size_ci_upper), rel=1e-5
    )


@pytest.mark.parametrize(("numerator", "denominator"), [("orders", "sessions"), ("revenue", "orders")])
def test_a_ratio_is_tea_tastings(units: dict[str, np.ndarray], numerator: str, denominator: str) -> None:
    theirs = tt.Experiment(m=tt.RatioOfMeans(numerator, denominator)).analyze(pa.table(units))["m"]
    control, treatment = (compare.ratio_level(arm(units, i, numerator, denominator)) for i in (0, 1))
    ours = compare.difference(treatment, control)
    assert ours.value == pytest.approx(theirs.effect_size, rel=1e-8)
    assert ours.interval() == pytest.approx((theirs.effect_size_ci_lower, theirs.effect_size_ci_upper), rel=1e-8)
    assert ours.p_value() == pytest.approx(theirs.pvalue, rel=1e-8)


def test_families_are_tea_tastings(units: dict[str, np.ndarray]) -> None:
    names = ("sessions", "orders", "revenue", "bought")
    result = tt.Experiment(**{m: tt.Mean(m) for m in names}).analyze(pa.table(units))
    raw = [result[m].pvalue for m in names]
    for theirs, ours in (
        (tt.adjust_fwer(result, arbitrary_dependence=True, method="bonferroni"), multiplicity.holm(raw)),
        (tt.adjust_fdr(result, arbitrary_dependence=False), multiplicity.benjamini_hochberg(raw)),
    ):
        by_name = {row["metric"]: row["pvalue_adj"] for row in theirs.to_dicts()}
        assert ours == pytest.approx([by_name[m] for m in names], rel=1e-8)


# ---------------------------------------------------------------- as published


def test_benjamini_and_hochbergs_example() -> None:
    """Benjamini and Hochberg 1995, section 3.2: 15 comparisons of two treatments of heart attacks. At 5% Bonferroni (and Holm)
    reject the three smallest, their procedure the four smallest."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
    assert sum(x <= 0.05 for x in multiplicity.holm(p)) == 3
    assert sum(x <= 0.05 for x in multiplicity.benjamini_hochberg(p)) == 4


def test_gail_and_simons_example() -> None:
    """Gail and Simon 1985, section 4: two treatments of breast cancer, the differences in the share without disease after three
    years by age and receptor, with their standard errors. Q- is 4.28, p = 0.088: no qualitative interaction is shown."""
    found = heterogeneity.gail_simon([-0.163, 0.114, 0.047, 0.151], [0.0788, 0.0689, 0.0614, 0.0547])
    assert found.statistic == pytest.approx(4.28, abs=0.005)
    assert found.p_value == pytest.approx(0.088, abs=0.0005)


def test_students_example() -> None:
    """Student 1908, "The probable error of a mean", section 9: additional hours of sleep under two drugs, ten patients each. Taken as
    two independent groups, as Welch's test does: t = -1.8608, df = 17.776, p = 0.07939, interval -3.3655 to 0.2055 (the figures
    that R prints for its data set `sleep`)."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    gap = compare.difference(*(compare.mean_level(Moments.of(x)) for x in (first, second)))
    assert gap.value / gap.se == pytest.approx(-1.8608, abs=5e-5)
    assert gap.df == pytest.approx(17.776, abs=5e-4)
    assert gap.p_value() == pytest.approx(0.07939, abs=5e-6)
    assert gap.interval() == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)


def test_the_always_valid_formula_by_hand() -> None:
    """Waudby-Smith and others 2021, eq. 9, worked by hand at n = 5,000, tightest at 5,000, alpha 5%: rho = 5000 / (5.9915 +
    ln 6.9915) = 630.03, so the half-width is sqrt((5000 + 630.03) / 5000 ln(5630.03 / (630.03 x .0025))) = 3.0352 standard errors."""
    from payoff.stats.sequential import always_valid

    rho = 5_000 / (-2 * math.log(0.05) + math.log(1 - 2 * math.log(0.05)))
    assert rho == pytest.approx(630.03, abs=0.01)
    low, high = always_valid(0.0, 1.0, 5_000, 5_000, 0.95, design_alpha=0.05)
    assert high == pytest.approx(3.0352, abs=1e-4)
    assert low == -high

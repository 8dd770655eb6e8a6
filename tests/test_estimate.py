"""Estimates: intervals against scipy, p values that agree with them, units, joint draws, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from payoff.estimate import Bounds, Draws, Estimate, Normal, Uncertainty, combine, draw_jointly

DRAWS = Draws(np.random.default_rng(0).normal(2.0, 1.0, 999))


def estimate(value: float = 2.0, uncertainty: Uncertainty | None = None, **other: Any) -> Estimate:
    fields: dict[str, Any] = {
        "estimand": "difference in means",
        "metric": "spend",
        "contrast": "new vs old",
        "unit": "USD",
        "interval_kind": "confidence",
        "n": {"new": 10, "old": 12},
    }
    return Estimate(value=value, uncertainty=uncertainty or Normal(0.5, 20.0), **(fields | other))


# --- intervals and p values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [1.0, 4.5, 30.0, 1e7, math.inf])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_normal_interval_and_p_value_are_scipys(df: float, level: float) -> None:
    oracle = stats.norm(2.0, 0.7) if math.isinf(df) else stats.t(df, 2.0, 0.7)
    spread = Normal(0.7, df)
    assert spread.interval(2.0, level) == pytest.approx(oracle.interval(level), rel=1e-10)
    # How far the null 0.4 lies out in a distribution around 2.0 is how far 2.0 lies out around 0.4.
    assert spread.p_value(2.0, 0.4) == pytest.approx(2 * oracle.cdf(0.4), rel=1e-10)


def test_log1p_interval_is_the_exponential_of_the_logs() -> None:
    low, high = Normal(0.1, 50.0, "log1p").interval(0.2, 0.95)
    half = stats.t.ppf(0.975, 50) * 0.1
    assert (low, high) == pytest.approx((1.2 * math.exp(-half) - 1, 1.2 * math.exp(half) - 1), rel=1e-12)


@given(
    st.floats(-0.9, 5), st.floats(0.01, 2), st.sampled_from([1.0, 3.0, 40.0, math.inf]), st.floats(0.01, 0.99),
    st.sampled_from(["identity", "log1p"]), st.floats(-0.5, 2),
)  # fmt: skip
def test_p_is_below_alpha_exactly_when_the_interval_excludes_the_null(
    value: float, se: float, df: float, level: float, scale: Any, null: float
) -> None:
    spread = Normal(se, df, scale)
    p = spread.p_value(value, null)
    assume(abs(p - (1 - level)) > 1e-9)  # at the very edge rounding decides
    # expm1 of a heavy-tailed half-width overflows only where no lift is worth giving
    assume(scale == "identity" or not (df == 1.0 and level > 0.9))
    low, high = spread.interval(value, level)
    assert low < value < high
    assert (p < 1 - level) == (low > null or high < null)


@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_a_higher_level_is_a_wider_interval(one: float, other: float) -> None:
    assume(abs(one - other) > 1e-6)
    for e in (estimate(), estimate(uncertainty=DRAWS)):
        (low, high), (lower, higher) = e.interval(min(one, other)), e.interval(max(one, other))
        assert lower <= low
        assert high <= higher


def test_draws_give_quantiles_and_probabilities_and_no_p_value() -> None:
    spread = Draws(np.arange(1001.0))
    assert spread.interval(500.0, 0.9) == pytest.approx((50.0, 950.0))
    assert spread.probability_above(899.5) == pytest.approx(101 / 1001)
    assert spread.p_value(500.0) is None
    assert estimate(uncertainty=spread).p_value is None


def test_bounds_are_known_at_their_own_level_only() -> None:
    e = estimate(1.0, Bounds(-1.0, 4.0, 0.95, 0.3), interval_kind="bounds")
    assert (e.low, e.high, e.p_value) == (-1.0, 4.0, 0.3)
    assert Bounds(-1.0, 4.0, 0.95, 0.3).p_value(1.0, 0.5) is None
    with pytest.raises(ValueError, match=r"known at level 0\.95 only, not at 0\.9"):
        e.interval(0.9)


# --- units -------------------------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e3), st.sampled_from([100.0, -100.0, 1e-4, -3.0]))
def test_scaling_moves_value_error_and_interval_together(value: float, se: float, factor: float) -> None:
    for uncertainty in (
        Normal(se, 9.0),
        Draws(value + se * np.arange(-5.0, 6.0)),
        Bounds(value - se, value + 2 * se, 0.95),
    ):
        plain = estimate(value, uncertainty)
        scaled = plain.scale(factor, "cents")
        ends = sorted((plain.low * factor, plain.high * factor))
        assert scaled.value == plain.value * factor
        assert scaled.interval() == pytest.approx(ends, rel=1e-9, abs=1e-9 * abs(factor) * se)
        assert scaled.p_value == (None if plain.p_value is None else pytest.approx(plain.p_value, rel=1e-9))
        assert (scaled.unit, scaled.n, scaled.metric) == ("cents", plain.n, plain.metric)
    assert plain.scale(2.0).unit == "USD"


# --- draws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "spread"),
    [
        (2.0, Normal(0.5)),
        (2.0, Normal(0.5, 4.0)),
        (0.2, Normal(0.1, 12.0, "log1p")),
        (2.0, DRAWS),
        (1.0, Bounds(-1.0, 4.0, 0.9)),
    ],
    ids=repr,
)
def test_draws_have_the_interval_they_were_drawn_from(value: float, spread: Uncertainty) -> None:
    e = estimate(value, spread, level=0.9)
    alone = e.draw(np.random.default_rng(1), 200_000)
    jointly = draw_jointly([e, estimate()], np.array([[1.0, 0.9], [0.9, 1.0]]), np.random.default_rng(2), 200_000)[:, 0]
    for drawn in (alone, jointly):
        # 4 binomial standard errors of the share below each end, at the end's own 5%.
        band = 4 * math.sqrt(0.05 * 0.95 / 200_000)
        assert float(np.mean(drawn < e.low)) == pytest.approx(0.05, abs=band + (1 / 999 if spread is DRAWS else 0))
        assert float(np.mean(drawn > e.high)) == pytest.approx(0.05, abs=band + (1 / 999 if spread is DRAWS else 0))


@pytest.mark.parametrize("rho", [-1.0, -0.4, 0.0, 0.8, 1.0])
def test_joint_draws_have_the_correlation_asked_for(rho: float) -> None:
    pair = [estimate(1.0, Normal(1.0)), estimate(5.0, Normal(3.0))]
    drawn = draw_jointly(pair, np.array([[1.0, rho], [rho, 1.0]]), np.random.default_rng(3), 100_000)
    assert drawn.shape == (100_000, 2)
    assert np.corrcoef(drawn.T)[0, 1] == pytest.approx(rho, abs=5 * (1 - rho**2) / math.sqrt(100_000) + 1e-9)
    assert drawn.std(axis=0) == pytest.approx([1.0, 3.0], rel=5 / math.sqrt(200_000))


@pytest.mark.parametrize(
    "spread", [Normal(0.5, 5.0), Normal(0.1, 5.0, "log1p"), DRAWS, Bounds(0.0, 3.0, 0.95)], ids=repr
)
def test_joint_draws_keep_the_order_of_their_correlation_whatever_the_margin(spread: Uncertainty) -> None:
    pair = [estimate(1.0, spread), estimate(1.0, Normal(1.0))]
    drawn = draw_jointly(pair, np.array([[1.0, 0.7], [0.7, 1.0]]), np.random.default_rng(4), 50_000)
    # Spearman's rank correlation of a Gaussian copula: 6 / pi asin(rho / 2).
    assert stats.spearmanr(drawn).statistic == pytest.approx(6 / math.pi * math.asin(0.35), abs=0.02)


def test_correlations_that_do_not_fit_together_leave_the_margins_alone() -> None:
    """Pairwise estimates need not make a possible matrix: here A is like B and C, which are opposites."""
    odd = np.array([[1.0, 0.9, 0.9], [0.9, 1.0, -0.9], [0.9, -0.9, 1.0]])
    assert np.linalg.eigvalsh(odd)[0] < -0.5
    drawn = draw_jointly([estimate(0.0, Normal(2.0))] * 3, odd, np.random.default_rng(5), 100_000)
    assert drawn.std(axis=0) == pytest.approx([2.0] * 3, rel=5 / math.sqrt(200_000))


def test_the_same_seed_gives_the_same_draws() -> None:
    pair = [estimate(), estimate(uncertainty=DRAWS)]
    one, two = (draw_jointly(pair, np.eye(2), np.random.default_rng(6), 100) for _ in range(2))
    assert np.array_equal(one, two)


def test_combine_carries_correlation_into_a_sum() -> None:
    pair = [estimate(3.0, Normal(1.0)), estimate(4.0, Normal(2.0))]
    for rho in (-0.5, 0.5):
        correlation = np.array([[1.0, rho], [rho, 1.0]])
        total = combine(lambda x: x.sum(axis=1), pair, correlation, np.random.default_rng(7), 200_000, pair[0])
        assert total.value == 7.0
        assert isinstance(total.uncertainty, Draws)
        se = math.sqrt(1 + 4 + 2 * rho * 2)
        assert total.uncertainty.values.std() == pytest.approx(se, rel=5 / math.sqrt(400_000))
        assert (total.metric, total.unit) == ("spend", "USD")


# --- JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "e",
    [
        estimate(),
        estimate(uncertainty=Normal(0.5)),
        estimate(0.2, Normal(0.1, 7.0, "log1p"), estimand="relative lift"),
        estimate(uncertainty=DRAWS, interval_kind="credible"),
        estimate(uncertainty=Bounds(0.0, 3.0, 0.95, 0.2), interval_kind="bounds", segment="mobile"),
        estimate(np.float64(2.0), Normal(np.float64(0.5)), n={"new": np.int64(3)}),
    ],
    ids=lambda e: type(e.uncertainty).__name__,
)
def test_json_round_trip(e: Estimate) -> None:
    told = e.to_dict()
    back = json.loads(json.dumps(told, allow_nan=False))
    assert back == told
    assert (back["value"], back["low"], back["high"], back["p_value"]) == (e.value, e.low, e.high, e.p_value)
    assert back["n"] == dict(e.n)
    spread = back["uncertainty"]
    if spread["kind"] == "normal":
        again = Normal(spread["se"], math.inf if spread["df"] is None else spread["df"], spread["scale"])
        assert again.interval(back["value"], back["level"]) == (back["low"], back["high"])


def test_estimates_of_equal_draws_are_equal() -> None:
    other = Draws(DRAWS.values.copy())
    assert other == DRAWS
    assert hash(other) == hash(DRAWS)
    assert estimate(uncertainty=other) == estimate(uncertainty=DRAWS)
    assert Draws(DRAWS.values + 1) != DRAWS


# --- refusals ------------------------------------------------------------------------------------------------------------

TWO = [estimate(), estimate()]
RNG = np.random.default_rng(8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: estimate(math.nan), "must be a finite number"),
        (lambda: estimate(math.inf), "must be a finite number"),
        (lambda: estimate(level=95.0), "between 0 and 1"),
        (lambda: estimate().interval(0.0), "between 0 and 1"),
        (lambda: estimate(uncertainty=DRAWS).interval(1.5), "between 0 and 1"),
        (lambda: estimate(-1.0, Normal(0.1, scale="log1p")), "a relative lift of -100% has no logarithm"),
        (lambda: estimate(5.0, Bounds(0.0, 1.0, 0.95)), "outside its own bounds"),
        (lambda: Normal(0.0), "above zero"),
        (lambda: Normal(math.nan), "above zero"),
        (lambda: Normal(math.inf), "finite"),
        (lambda: Normal(1.0, 0.0), "degrees of freedom"),
        (lambda: Normal(1.0, math.nan), "degrees of freedom"),
        (lambda: Draws(np.array([])), "at least one"),
        (lambda: Draws(np.zeros((2, 2))), "shape"),
        (lambda: Draws(np.array([1.0, np.inf, np.nan])), "2 of 3 draws are not finite"),
        (lambda: Bounds(1.0, 0.0, 0.95), "in order"),
        (lambda: Bounds(-math.inf, 0.0, 0.95), "finite"),
        (lambda: Bounds(0.0, 1.0, 1.0), "between 0 and 1"),
        (lambda: estimate().scale(0.0), "other than zero"),
        (lambda: estimate().scale(math.nan), "other than zero"),
        (lambda: estimate(0.2, Normal(0.1, scale="log1p")).scale(2.0), "a relative lift is not scaled"),
        (lambda: draw_jointly(TWO, np.eye(3), RNG, 5), r"not \(2, 2\)"),
        (lambda: draw_jointly(TWO, np.array([[1.0, 0.2], [0.3, 1.0]]), RNG, 5), "symmetric"),
        (lambda: draw_jointly(TWO, np.array([[4.0, 0.2], [0.2, 1.0]]), RNG, 5), "ones on its diagonal"),
        (lambda: draw_jointly(TWO, np.array([[1.0, 2.0], [2.0, 1.0]]), RNG, 5), "between -1 and 1"),
        (lambda: draw_jointly(TWO, np.array([[1.0, np.nan], [np.nan, 1.0]]), RNG, 5), "symmetric"),
    ],
)
def test_refuses_in_plain_words(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()

"""The winner's curse: simulated programmes whose true effects are known, and the laws of totals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from payoff.estimate import FloatArray
from payoff.stats.compare import Difference
from payoff.stats.programme import against_holdout, lee_shen_total, programme_total, shrink

programmes = st.integers(3, 8).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(-5, 5), min_size=k, max_size=k), st.lists(st.floats(0.2, 2), min_size=k, max_size=k)
    )
)


def worlds(
    seed: int, experiments: int, mean: float, spread: float, count: int
) -> list[tuple[FloatArray, FloatArray, FloatArray]]:
    """(true effects, estimates, standard errors) of programmes in which something won."""
    rng = np.random.default_rng(seed)
    out = []
    while len(out) < count:
        se = rng.uniform(0.5, 1.5, experiments)
        truth = mean + spread * rng.standard_normal(experiments)
        seen = rng.normal(truth, se)
        if (seen > 1.96 * se).any():
            out.append((truth, seen, se))
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (1.0, 1.0), (0.0, 0.3)])
def test_shrinking_takes_out_most_of_the_winners_luck_and_covers(mean: float, spread: float) -> None:
    raw, shrunk, lee_shen, covered = [], [], [], []
    for truth, seen, se in worlds(int(10 * spread + mean), 20, mean, spread, 500):
        won = np.flatnonzero(seen > 1.96 * se)
        found = programme_total(seen.tolist(), se.tolist(), won.tolist(), shrink(seen.tolist(), se.tolist()))
        total = float(truth[won].sum())
        raw.append(found.raw.value - total)
        shrunk.append(found.shrunk.value - total)
        lee_shen.append(lee_shen_total(seen.tolist(), se.tolist()).value - total)
        low, high = found.shrunk.interval()
        covered.append(low <= total <= high)
    assert np.mean(raw) > 8 * np.std(raw) / math.sqrt(len(raw))  # the curse is there
    assert abs(np.mean(shrunk)) < 0.25 * np.mean(raw)
    root_mean_square = [float(np.sqrt(np.mean(np.square(x)))) for x in (shrunk, lee_shen, raw)]
    assert root_mean_square == sorted(root_mean_square)  # the shrunk total is nearest, then Lee and Shen's
    # "over programmes with a winner" is a selection too, so not exactly 95%
    assert 0.92 < np.mean(covered) < 0.995


def test_no_spread_and_no_effect_leaves_next_to_nothing_of_the_winners() -> None:
    raw = shrunk = 0.0
    for _, seen, se in worlds(9, 20, 0.0, 0.0, 60):
        won = np.flatnonzero(seen > 1.96 * se)
        found = programme_total(seen.tolist(), se.tolist(), won.tolist(), shrink(seen.tolist(), se.tolist(), mean=0.0))
        raw += found.raw.value
        shrunk += found.shrunk.value
    assert shrunk < 0.25 * raw


@pytest.mark.parametrize("truth", [-1.0, 0.5, 1.96, 3.0])
def test_lee_and_shens_error_is_that_of_its_formula(truth: float) -> None:
    """At the true effect a, 1(X > b s)(X - a) - s phi(b - X / s) varies by what the closed form says, here by integration. A winner of
    next to no variance beside it keeps the total from being refused."""
    se, b = 0.7, 1.96
    t = b - truth / se

    def moment(order: int) -> float:
        def integrand(z: float) -> float:
            term = (z if z > t else 0.0) - stats.norm.pdf(t - z)
            return float(term**order * stats.norm.pdf(z))

        return sum(integrate.quad(integrand, *ends, epsabs=1e-14)[0] for ends in ((-12, t), (t, t + 12)))

    found = lee_shen_total([9.0, truth], [1e-9, se], critical=b)
    assert found.se**2 == pytest.approx(se**2 * (moment(2) - moment(1) ** 2), rel=1e-8)


def test_lee_and_shens_correction_is_right_for_known_effects() -> None:
    """The bias of a sum over winners is the sum of s phi(b - a / s): one experiment with its true effect in the place of its estimate."""
    a, se, b = 1.2, 0.7, 1.96
    x = np.random.default_rng(3).normal(a, se, 400_000)
    bias = float(((x > b * se) * (x - a)).mean())
    total = lee_shen_total([9.0, a], [1e-9, se], critical=b).value
    assert 9.0 - total == pytest.approx(bias, abs=4 * se / math.sqrt(400_000))


@given(programmes)
def test_totals_follow_signs_units_and_order(of: tuple[list[float], list[float]]) -> None:
    values, ses = of
    ship = [0, len(values) - 1]
    found = programme_total(values, ses, ship, shrink(values, ses))
    assert found.raw.value == pytest.approx(values[0] + values[-1])
    assert found.raw.se == pytest.approx(math.hypot(ses[0], ses[-1]))
    minus, hundred = [-v for v in values], ([100 * v for v in values], [100 * s for s in ses])
    down = programme_total(minus, ses, ship, shrink(minus, ses))
    assert (down.shrunk.value, down.shrunk.se) == pytest.approx(
        (-found.shrunk.value, found.shrunk.se), rel=1e-6, abs=1e-9
    )
    more = programme_total(*hundred, ship, shrink(*hundred))
    assert (more.shrunk.value, more.shrunk.se) == pytest.approx(
        (100 * found.shrunk.value, 100 * found.shrunk.se), rel=1e-6, abs=1e-7
    )
    turned = programme_total(values[::-1], ses[::-1], ship, shrink(values[::-1], ses[::-1]))
    assert turned.shrunk.value == pytest.approx(found.shrunk.value, rel=1e-7, abs=1e-9)
    assert found.curse == pytest.approx(found.raw.value - found.shrunk.value)


def test_a_direction_down_is_the_mirror_of_up() -> None:
    up = lee_shen_total([3.0, 0.2, -1.0], [1.0, 0.5, 1.0])
    down = lee_shen_total([-3.0, -0.2, 1.0], [1.0, 0.5, 1.0], sign=-1)
    assert (down.value, down.se) == pytest.approx((-up.value, up.se))


def test_the_holdout_is_another_estimate_of_the_same() -> None:
    gap = against_holdout(Difference(3.0, 0.6, math.inf), Difference(1.0, 0.8, 50.0))
    assert (gap.value, gap.se) == pytest.approx((2.0, 1.0))
    assert gap.df == pytest.approx(50 / 0.64**2)
    assert against_holdout(Difference(3.0, 0.6, math.inf), Difference(1.0, 0.8, math.inf)).p_value() == pytest.approx(
        0.0455, abs=1e-4
    )


def test_what_cannot_be_is_refused() -> None:
    values, ses = [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="needs three"):
        shrink([1.0, 2.0], [1.0, 1.0])
    pooled = shrink(values, ses)
    with pytest.raises(ValueError, match="nothing was shipped"):
        programme_total(values, ses, [], pooled)
    for bad in ([0, 0], [3], [-1]):
        with pytest.raises(ValueError, match="different ones of 3"):
            programme_total(values, ses, bad, pooled)
    with pytest.raises(ValueError, match="same experiments"):
        programme_total([*values, 1.0], [*ses, 1.0], [0], pooled)
    with pytest.raises(ValueError, match="no experiment is clear of zero"):
        lee_shen_total([0.1, 0.2, 0.3], ses)
    with pytest.raises(ValueError, match="finite effect"):
        lee_shen_total([math.nan, 5.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="direction"):
        lee_shen_total(values, ses, sign=0)

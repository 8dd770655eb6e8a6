"""A normal prior and a normal likelihood: against integration, simulation, and the laws of the figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from payoff.stats.bayes import NormalPosterior, normal_posterior

lifts = st.floats(-0.5, 0.5)
spreads = st.floats(1e-3, 1.0)


@given(lifts, spreads, lifts, spreads)
def test_posterior_is_bayes_rule(value: float, se: float, prior_mean: float, prior_sd: float) -> None:
    """Precisions add; the density is prior times likelihood at any two points, up to one constant."""
    found = normal_posterior(value, se, prior_mean, prior_sd)
    assert 1 / found.sd**2 == pytest.approx(1 / se**2 + 1 / prior_sd**2, rel=1e-9)
    assert found.mean * (1 / se**2 + 1 / prior_sd**2) == pytest.approx(
        value / se**2 + prior_mean / prior_sd**2, rel=1e-7, abs=1e-7
    )


@pytest.mark.parametrize(("mean", "sd"), [(0.02, 0.01), (-0.03, 0.01), (0.0, 0.2), (0.3, 0.05)])
@pytest.mark.parametrize("sign", [1, -1])
def test_expected_loss_is_its_integral(mean: float, sd: float, sign: int) -> None:
    oracle, _ = integrate.quad(
        lambda x: max(0.0, -sign * x) * stats.norm.pdf(x, mean, sd),
        mean - 12 * sd,
        mean + 12 * sd,
        points=[0.0],
        epsabs=1e-15,
    )
    assert NormalPosterior(mean, sd).expected_loss(sign) == pytest.approx(oracle, rel=1e-6, abs=1e-13)


@given(lifts, st.floats(1e-3, 0.5))
def test_directions_are_two_sides_of_one_thing(mean: float, sd: float) -> None:
    p = NormalPosterior(mean, sd)
    assert p.chance_to_beat(1) + p.chance_to_beat(-1) == pytest.approx(1.0)
    assert p.expected_loss(-1) - p.expected_loss(1) == pytest.approx(mean, rel=1e-9, abs=1e-12)
    assert p.chance_to_beat(-1) == NormalPosterior(-mean, sd).chance_to_beat(1)
    assert p.expected_loss(1) >= 0
    low, high = p.interval(0.9)
    assert (low, high) == pytest.approx(stats.norm.interval(0.9, mean, sd), rel=1e-9, abs=1e-12)


def test_loss_keeps_its_digits_far_out() -> None:
    """phi(z) / z^2 (1 - 3 / z^2 + 15 / z^4 ...) as z grows (Abramowitz and Stegun 26.2.12)."""
    z = 30.0
    series = stats.norm.pdf(z) / z**2 * (1 - 3 / z**2 + 15 / z**4 - 105 / z**6)
    assert NormalPosterior(z, 1.0).expected_loss() == pytest.approx(series, rel=1e-8)
    assert NormalPosterior(-60.0, 1.0).expected_loss() == pytest.approx(60.0)
    assert NormalPosterior(60.0, 1.0).expected_loss() == 0.0  # below the smallest double


def test_the_prior_gives_way_to_data_and_data_to_a_certain_prior() -> None:
    vague, sure = normal_posterior(0.05, 0.01, 0.0, 1e6), normal_posterior(0.05, 0.01, 0.0, 1e-9)
    assert (vague.mean, vague.sd) == pytest.approx((0.05, 0.01))
    assert (sure.mean, sure.sd) == pytest.approx((0.0, 1e-9), abs=1e-12)


def test_probabilities_and_losses_are_right_on_average() -> None:
    """Effects drawn from the prior: of arms said to be better with 80% to 90%, that many are; losses average to what was said."""
    rng, worlds = np.random.default_rng(4), 20_000
    truth = rng.normal(0.01, 0.03, worlds)
    seen = truth + rng.normal(0, 0.02, worlds)
    posterior = [normal_posterior(x, 0.02, 0.01, 0.03) for x in seen]
    chance = np.array([p.chance_to_beat() for p in posterior])
    some = (chance > 0.8) & (chance < 0.9)
    assert (truth[some] > 0).mean() == pytest.approx(chance[some].mean(), abs=4 * 0.36 / math.sqrt(some.sum()))
    loss = np.array([p.expected_loss() for p in posterior])
    realised = np.maximum(0, -truth)
    assert realised.mean() == pytest.approx(loss.mean(), abs=4 * float(np.std(realised - loss)) / math.sqrt(worlds))
    inside = np.mean(
        [low <= t <= high for t, (low, high) in zip(truth, (p.interval() for p in posterior), strict=True)]
    )
    assert inside == pytest.approx(0.95, abs=4 * math.sqrt(0.05 * 0.95 / worlds))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        normal_posterior(math.nan, 0.1, 0.0, 0.1)
    with pytest.raises(ValueError, match="standard error of the lift"):
        normal_posterior(0.0, 0.0, 0.0, 0.1)
    with pytest.raises(ValueError, match="standard deviation of the prior"):
        normal_posterior(0.0, 0.1, 0.0, math.inf)
    with pytest.raises(ValueError, match="direction"):
        NormalPosterior(0.0, 1.0).chance_to_beat(0)
    with pytest.raises(ValueError, match="level"):
        NormalPosterior(0.0, 1.0).interval(1.0)

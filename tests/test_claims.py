"""Claims: the arithmetic against closed forms, the grade rule by rule, every refusal, and the words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from payoff import formats
from payoff.claims import (
    ClaimResult,
    Population,
    Swing,
    Volume,
    grade,
    lacks,
    price,
)
from payoff.estimate import Bounds, Draws, Estimate, Normal, Uncertainty
from payoff.result import Check, Closer, MetricReading, Reconciliation, Refusal, Result, Span, Verdict
from payoff.spec.nouns import Claim, Value

TODAY = date(2026, 7, 1)
YEAR = timedelta(days=365)
DRAWS = 20_000
DOTS = tuple((i + 0.5) / 20 for i in range(20))
USERS = {("user", YEAR): Population(1000, 365)}


def estimate(
    metric: str,
    value: float,
    spread: Uncertainty | float = 1.0,
    *,
    unit: str = "USD per user",
    contrast: str = "on vs off",
    estimand: str = "difference in means",
    segment: str | None = None,
) -> Estimate:
    uncertainty = Normal(spread) if isinstance(spread, float | int) else spread
    kind = "bounds" if isinstance(uncertainty, Bounds) else "confidence"
    return Estimate(estimand, metric, contrast, value, unit, uncertainty, kind, {"on": 50, "off": 50}, segment=segment)


def result(
    *estimates: Estimate,
    name: str = "experiments.x",
    letter: str = "A",
    verdict: Verdict = "positive",
    directions: Mapping[str, str] | None = None,
    checks: tuple[Check, ...] = (),
    refusals: tuple[Refusal, ...] = (),
    correlations: Mapping[tuple[tuple[str, str], tuple[str, str]], float] | None = None,
    readings: tuple[MetricReading, ...] | None = None,
) -> Result:
    if readings is None:
        readings = tuple(
            MetricReading(e.metric, e.contrast, "primary", (directions or {}).get(e.metric, "up"), "improved", "")
            for e in estimates
        )
    return Result(
        name=name,
        question="?",
        method="experiment",
        design="randomised",
        verdict=verdict,
        grade=letter,
        finding="",
        estimates=estimates,
        arms=(),
        readings=readings,
        checks=checks,
        assumptions=(),
        refusals=refusals,
        correlations=correlations or {},
    )


def good(value: float, low: float | None = None, high: float | None = None, **parts: Any) -> Value:
    """A value that lacks nothing, unless ``parts`` say otherwise."""
    whole = {"source": "Finance", "owner": "cfo", "expires": date(2027, 1, 1)} | parts
    low, high = (value if low is None else low), (value if high is None else high)
    return Value.model_validate({"value": value, "low": low, "high": high} | whole)


def claim(amount: str, **more: Any) -> Claim:
    return Claim.model_validate({"statement": "Annual gain", "evidence": ["x"], "amount": amount} | more)


def priced(
    what: Claim,
    results: Mapping[str, Result | Refusal] | Result | None = None,
    values: Mapping[str, Value] | None = None,
    volumes: Mapping[tuple[str, timedelta], Volume] | None = None,
    populations: Mapping[tuple[str, timedelta | None], Population] | None = None,
    **more: Any,
) -> ClaimResult:
    got = asked(what, results, values, volumes, populations, **more)
    assert isinstance(got, ClaimResult), got
    return got


def refused(what: Claim, *arguments: Any, **more: Any) -> Refusal:
    got = asked(what, *arguments, **more)
    assert isinstance(got, Refusal), got
    assert got.reason
    assert got.remedy
    return got


def asked(
    what: Claim,
    results: Mapping[str, Result | Refusal] | Result | None = None,
    values: Mapping[str, Value] | None = None,
    volumes: Mapping[tuple[str, timedelta], Volume] | None = None,
    populations: Mapping[tuple[str, timedelta | None], Population] | None = None,
    *,
    seed: int = 1,
    draws: int = DRAWS,
    today: date = TODAY,
    currency: str = "USD",
    alpha: float = 0.05,
) -> ClaimResult | Refusal:
    if isinstance(results, Result):
        results = {"x": results}
    found: Mapping[tuple[str, timedelta | None], Population] = USERS if populations is None else populations  # type: ignore[assignment]
    return price(
        "gain", what, results or {}, values or {}, volumes or {}, found, currency, today, seed, draws, alpha=alpha
    )


def swing_of(got: ClaimResult, name: str) -> Swing:
    return next(swing for swing in got.sensitivity if swing.input == name)


def quantile_error(probability: float, density: float, draws: int = DRAWS) -> float:
    """Four standard errors of a sample quantile: sqrt(p (1 - p) / n) / f(q)."""
    return 4 * math.sqrt(probability * (1 - probability) / draws) / density


PER_USER = "effect(margin) * population(user, 365d)"
MARGIN = result(estimate("margin", 2.0, 0.5))


# ---------------------------------------------------------------- figures against closed forms


def test_a_linear_claim_has_the_normal_interval() -> None:
    got = priced(claim(PER_USER, less={"team": 500}), MARGIN)
    # 1000 users x N(2, 0.5) - 500 is N(1500, 500).
    assert got.amount.value == 2000
    assert got.cost == 500
    assert got.net is not None
    assert got.net.value == 1500
    error = quantile_error(0.025, stats.norm.pdf(1.959964) / 500)
    assert got.net.low == pytest.approx(1500 - 1.959964 * 500, abs=error)
    assert got.net.high == pytest.approx(1500 + 1.959964 * 500, abs=error)
    inner = quantile_error(0.25, stats.norm.pdf(0.6744898) / 500)
    assert got.net.quantiles[0.25] == pytest.approx(1500 - 0.6744898 * 500, abs=inner)
    assert got.net.quantiles[0.75] == pytest.approx(1500 + 0.6744898 * 500, abs=inner)
    p = stats.norm.cdf(3)
    assert got.probability_positive == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / DRAWS))
    assert got.amount.level == 0.95
    assert got.amount.unit == "USD/year"


def test_the_level_is_one_minus_alpha() -> None:
    got = priced(claim(PER_USER), MARGIN, alpha=0.2)
    assert got.amount.level == 0.8
    error = quantile_error(0.1, stats.norm.pdf(1.281552) / 500)
    assert got.amount.low == pytest.approx(2000 - 1.281552 * 500, abs=error)


def test_a_small_sample_keeps_its_student_t_interval() -> None:
    got = priced(claim(PER_USER), result(estimate("margin", 2.0, Normal(0.5, df=5))))
    q = stats.t.ppf(0.975, 5)
    assert got.amount.high == pytest.approx(2000 + q * 500, abs=quantile_error(0.025, stats.t.pdf(q, 5) / 500))


def test_a_value_with_a_range_is_triangular() -> None:
    got = priced(claim("value(v)"), values={"v": good(3.0, 1.0, 7.0)}, draws=200_000)
    quantile = stats.triang(c=2 / 6, loc=1, scale=6)
    assert got.amount.value == 3.0  # the mode, as declared, and not the mean, 11/3
    for q, found in ((0.025, got.amount.low), (0.25, got.amount.quantiles[0.25]), (0.75, got.amount.quantiles[0.75])):
        at = float(quantile.ppf(q))
        assert found == pytest.approx(at, abs=quantile_error(q, float(quantile.pdf(at)), 200_000))
    assert sum(got.amount.quantiles[q] for q in DOTS) / 20 == pytest.approx(11 / 3, abs=0.02)  # (1 + 3 + 7) / 3


def test_one_sided_ranges_are_drawn_on_their_side() -> None:
    up = priced(claim("value(v)"), values={"v": good(2.0, 2.0, 8.0)})
    assert up.amount.low > 2.0
    assert up.amount.low == pytest.approx(8 - 6 * math.sqrt(0.975), abs=0.02)
    assert any("lopsided" in note for note in up.notes)
    down = priced(claim("value(v)"), values={"v": good(2.0, -4.0, 2.0)})
    assert down.amount.high == pytest.approx(-4 + 6 * math.sqrt(0.975), abs=0.02)


def test_a_volume_is_normal_and_never_negative() -> None:
    volumes = {("orders", YEAR): Volume(100, 10, 365)}
    got = priced(claim("volume(orders, 365d) * 2"), volumes=volumes)
    assert got.amount.high == pytest.approx(200 + 1.959964 * 20, abs=quantile_error(0.025, 0.05844507 / 20))
    wild = priced(claim("volume(orders, 365d) * 2"), volumes={("orders", YEAR): Volume(10, 100, 365)})
    assert wild.amount.low == 0.0
    assert next(one for one in wild.inputs if one.kind == "volume").low == 0.0


@pytest.mark.parametrize("rho", [-0.9, 0.0, 0.8])
@pytest.mark.parametrize("reverse", [False, True])
def test_effects_of_one_result_are_drawn_with_their_correlation(rho: float, reverse: bool) -> None:
    pair = (("a", "on vs off"), ("b", "on vs off"))
    both = result(estimate("a", 1.0, 3.0), estimate("b", 1.0, 4.0), correlations={pair[::-1] if reverse else pair: rho})
    got = priced(claim("effect(a) + effect(b)", unit="USD"), both)
    sd = math.sqrt(9 + 16 + 2 * rho * 12)
    error = quantile_error(0.025, 0.05844507 / sd)
    assert got.amount.high - 2 == pytest.approx(1.959964 * sd, abs=error)
    assert not any("correlation was not estimated" in text for text in got.assumptions)


def test_the_correlation_of_improvements_turns_with_a_direction() -> None:
    pair = {(("a", "on vs off"), ("b", "on vs off")): 0.8}
    both = result(estimate("a", 1.0, 3.0), estimate("b", -1.0, 4.0), correlations=pair, directions={"b": "down"})
    got = priced(claim("effect(a) + effect(b)", unit="USD"), both)
    sd = math.sqrt(9 + 16 - 2 * 0.8 * 12)
    assert got.amount.value == 2.0
    assert got.amount.high - 2 == pytest.approx(1.959964 * sd, abs=quantile_error(0.025, 0.05844507 / sd))


def test_a_correlation_not_estimated_is_stated_as_an_assumption() -> None:
    got = priced(claim("effect(a) + effect(b)", unit="USD"), result(estimate("a", 1.0), estimate("b", 1.0)))
    assert "b and a in x err independently: their correlation was not estimated." in got.assumptions


def test_effects_of_two_results_are_independent_and_that_is_stated() -> None:
    results = {"x": result(estimate("a", 1.0, 3.0)), "y": result(estimate("b", 1.0, 4.0))}
    got = priced(claim("effect(a) + effect(b)", unit="USD", evidence=["x", "y"]), results)
    assert got.amount.high - 2 == pytest.approx(1.959964 * 5, abs=quantile_error(0.025, 0.05844507 / 5))
    assert "The errors of x and y are independent of one another." in got.assumptions


def test_effect_is_the_improvement_whichever_way_is_better() -> None:
    up = priced(claim(PER_USER), MARGIN)
    down = priced(claim(PER_USER), result(estimate("margin", -2.0, 0.5), directions={"margin": "down"}))
    assert down.amount.value == up.amount.value == 2000
    (shown,) = [one for one in down.inputs if one.kind == "effect"]
    assert shown.value == 2.0
    assert (shown.low, shown.high) == pytest.approx((2 - 1.959964 * 0.5, 2 + 1.959964 * 0.5))
    assert "counted as improvement: a fall of margin is positive, because its direction is down" in shown.notes


def test_draws_and_bounds_are_carried_too() -> None:
    posterior = np.linspace(0, 4, 4001)
    got = priced(claim(PER_USER), result(estimate("margin", 2.0, Draws(posterior))))
    assert got.amount.high == pytest.approx(3900, abs=quantile_error(0.025, 0.25 / 1000))
    bounds = priced(claim(PER_USER), result(estimate("margin", 2.0, Bounds(1.0, 5.0, 0.95))))
    assert bounds.amount.low == pytest.approx(1000, abs=60)
    assert bounds.amount.high == pytest.approx(5000, abs=180)


def test_the_interval_of_known_bounds_is_shown_at_its_own_level() -> None:
    got = priced(claim(PER_USER), result(estimate("margin", 2.0, Bounds(1.0, 5.0, 0.95))), alpha=0.1)
    (shown,) = [one for one in got.inputs if one.kind == "effect"]
    assert (shown.low, shown.high) == (1.0, 5.0)
    assert "its interval is known at 95% only" in shown.notes


def test_the_same_effect_under_two_spellings_is_one_input() -> None:
    got = priced(claim("effect(margin) - effect(margin, on)", unit="USD"), MARGIN)
    assert (got.amount.value, got.amount.low, got.amount.high) == (0, 0, 0)
    assert len([one for one in got.inputs if one.kind == "effect"]) == 1


# ---------------------------------------------------------------- ROI, payback, decision


def test_roi_is_the_net_over_the_cost() -> None:
    got = priced(claim(PER_USER, less={"team": 500, "licence": 300}), MARGIN)
    assert got.roi is not None
    assert got.roi.value == pytest.approx(1200 / 800)
    assert got.roi.high == pytest.approx(
        (1200 + 1.959964 * 500) / 800, abs=quantile_error(0.025, 0.05844507 / 500) / 800
    )
    assert got.roi.unit == "ratio"


def test_payback_is_cost_over_amount_times_the_period() -> None:
    got = priced(claim(PER_USER, less={"team": 500}), result(estimate("margin", 2.0, 0.25)))
    assert got.payback is not None
    assert got.payback.value == pytest.approx(365 * 500 / 2000)
    # Monotone in the amount, N(2000, 250), so its ends are the amount's ends; the tolerance is the density's, transformed.
    for z, found in ((1.959964, got.payback.low), (-1.959964, got.payback.high)):
        amount = 2000 + z * 250
        assert found == pytest.approx(
            365 * 500 / amount, abs=quantile_error(0.025, 0.05844507 / 250) * 365 * 500 / amount**2 * 1.1
        )
    assert got.payback.never == 0.0


def test_payback_without_an_upper_end_says_so() -> None:
    got = priced(claim(PER_USER, less={"team": 500}), result(estimate("margin", 2.0, 1.25)))
    assert got.payback is not None
    never = stats.norm.cdf(-2 / 1.25)  # 5.5%
    assert got.payback.never == pytest.approx(never, abs=4 * math.sqrt(never * (1 - never) / DRAWS))
    assert got.payback.high is None
    assert got.payback.low is not None
    assert "with no upper end" in got.payback.sentence
    assert f"in {formats.probability(got.payback.never)} of the draws it never is" in got.payback.sentence


def test_payback_longer_than_the_period_says_so() -> None:
    got = priced(claim(PER_USER, less={"team": 4000}), result(estimate("margin", 2.0, 0.1)))
    assert got.payback is not None
    assert got.payback.value == pytest.approx(730)
    assert "longer than the 365 days that the cost is for" in got.payback.sentence


@pytest.mark.parametrize(
    ("amount", "margin", "words"),
    [(PER_USER, -2.0, "never covers the cost"), ("effect(margin) * 1000", 2.0, "no period over which it comes in")],
)
def test_no_payback_where_it_has_no_meaning(amount: str, margin: float, words: str) -> None:
    got = priced(claim(amount, less={"team": 500}), result(estimate("margin", margin, 0.1)))
    assert got.payback is None
    assert got.roi is not None
    assert any(words in note for note in got.notes)


def test_without_costs_the_net_is_the_amount_and_there_is_no_roi() -> None:
    got = priced(claim(PER_USER), MARGIN)
    assert got.net == got.amount
    assert got.cost == 0
    assert got.roi is None
    assert got.payback is None
    assert any("No cost is declared" in note for note in got.notes)


@pytest.mark.parametrize("cost", [0, {"value": 5, "low": -5, "high": 10}])
def test_no_roi_where_the_cost_may_not_be_above_zero(cost: object) -> None:
    got = priced(claim(PER_USER, less={"team": cost}), MARGIN)
    assert got.roi is None
    assert got.payback is None
    assert any("not, or not certainly, above zero" in note for note in got.notes)


def test_a_cost_with_a_range_widens_the_net() -> None:
    cost = {"value": 900, "low": 300, "high": 1500}
    got = priced(claim(PER_USER, less={"team": cost}), result(estimate("margin", 2.0, 1e-9)))
    assert got.net is not None
    triangular = stats.triang(c=0.5, loc=300, scale=1200)
    assert got.net.low == pytest.approx(2000 - triangular.ppf(0.975), abs=10)
    assert got.net.high == pytest.approx(2000 - triangular.ppf(0.025), abs=10)


@pytest.mark.parametrize(
    ("threshold", "true"),
    [
        ("net > 1000", stats.norm.sf(1000, 1500, 500)),
        ("net < 1000", stats.norm.cdf(1000, 1500, 500)),
        ("amount >= 2500", stats.norm.sf(2500, 2000, 500)),
        ("roi > 2", stats.norm.sf(1000, 1500, 500)),
        ("roi <= 1.5e0", stats.norm.cdf(750, 1500, 500)),
    ],
)
def test_the_decision_is_the_probability_of_its_threshold(threshold: str, true: float) -> None:
    for needed, met in ((true + 0.02, False), (true - 0.02, True)):
        rule = {"threshold": threshold, "probability": needed}
        got = priced(claim(PER_USER, less={"team": 500}, decision=rule), MARGIN)
        assert got.decision is not None
        assert got.decision.observed_probability == pytest.approx(true, abs=0.015)
        assert got.decision.met is met
        assert f"is {'met' if met else 'not met'}: {threshold} has a probability of " in got.decision.sentence


def test_a_decision_on_withheld_evidence_is_not_to_be_acted_on() -> None:
    rule = {"threshold": "net > 0", "probability": 0.5}
    withheld = result(estimate("margin", 2.0, 0.5), verdict="withheld")
    got = priced(claim(PER_USER, decision=rule), withheld)
    assert got.decision is not None
    assert got.decision.observed_probability > 0.99
    assert got.decision.met
    assert got.decision.sentence.startswith("Do not act on the decision rule: x is withheld")


# ---------------------------------------------------------------- laws


@settings(max_examples=15, deadline=None)
@given(factor=st.floats(0.01, 1000), value=st.floats(0.5, 5), cost=st.floats(1, 1000))
def test_money_times_a_factor_is_the_claim_times_the_factor(factor: float, value: float, cost: float) -> None:
    def at(scale: float) -> ClaimResult:
        one = claim("effect(n) * value(v) * 100", less={"team": {"value": cost * scale, "high": 2 * cost * scale}})
        worth = good(value * scale, value * scale / 2, value * scale * 2)
        return priced(one, result(estimate("n", 2.0, 0.5, unit="orders")), {"v": worth}, draws=2000)

    before, after = at(1.0), at(factor)
    assert before.net is not None
    assert after.net is not None
    assert before.roi is not None
    assert after.roi is not None
    for one in ("value", "low", "high"):
        assert getattr(after.net, one) == pytest.approx(factor * getattr(before.net, one), rel=1e-9, abs=1e-6 * factor)
        assert getattr(after.roi, one) == pytest.approx(getattr(before.roi, one), rel=1e-9, abs=1e-9)
    assert after.probability_positive == before.probability_positive


def test_a_minus_sign_turns_the_claim_around() -> None:
    plus, minus = priced(claim("effect(margin) * 10"), MARGIN), priced(claim("-effect(margin) * 10"), MARGIN)
    assert (minus.amount.value, minus.amount.low, minus.amount.high) == pytest.approx(
        (-plus.amount.value, -plus.amount.high, -plus.amount.low)
    )
    assert minus.probability_positive == 1 - plus.probability_positive
    assert (plus.verdict, minus.verdict) == ("positive", "negative")


def test_the_same_seed_gives_the_same_claim_and_another_seed_another() -> None:
    one = claim(PER_USER, less={"team": {"value": 500, "low": 400, "high": 700}}, sensitivity=["novelty_decay"])
    first, again, other = (priced(one, MARGIN, seed=seed).to_dict() for seed in (1, 1, 2))
    assert first == again
    assert first["net"]["low"] != other["net"]["low"]
    assert first["net"]["value"] == other["net"]["value"]


def test_a_cost_does_not_change_the_draws_of_the_amount() -> None:
    bare = priced(claim(PER_USER), MARGIN)
    costed = priced(claim(PER_USER, less={"team": {"value": 5, "low": 1, "high": 9}}), MARGIN)
    assert costed.amount == bare.amount


def test_the_dict_is_the_contract_and_is_strict_json() -> None:
    one = claim(
        "effect(n) * value(v) * volume(orders, 365d) * population(user) / 10",
        less={"team": 500, "licence": {"value": 9, "low": 8, "high": 12, "owner": "ops", "expires": date(2026, 1, 1)}},
        decision={"threshold": "roi > 0", "probability": 0.8},
        sensitivity=["discount_rate"],
        owner="cfo",
    )
    got = priced(
        one,
        result(estimate("n", 2.0, 0.5, unit="orders")),
        {"v": good(2, 1, 3, per="order")},
        {("orders", YEAR): Volume(100, 10, 30, ("counted since June",))},
        {("user", None): Population(10, 30)},
    )
    whole = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    wanted = {
        "name": None,
        "statement": None,
        "grade": None,
        "grade_reasons": None,
        "verdict": None,
        "finding": None,
        "evidence": None,
        "amount_expression": None,
        "amount": {"value", "low", "high", "level", "unit"},
        "cost": None,
        "costs": {"name", "value", "low", "high", "source", "owner", "expires"},
        "net": {"value", "low", "high", "level", "unit"},
        "roi": {"value", "low", "high", "level", "unit"},
        "payback": {"value", "low", "high", "level", "unit"},
        "probability_positive": None,
        "decision": {"threshold", "probability", "observed_probability", "met"},
        "inputs": {"name", "kind", "value", "low", "high", "unit", "source", "owner", "expires", "notes"},
        "sensitivity": {
            "input",
            "low_input",
            "high_input",
            "net_at_low",
            "net_at_high",
            "flips",
            "flips_at",
            "sentence",
        },
        "assumptions": None,
        "notes": None,
        "compare": None,
    }
    for key, inner in wanted.items():
        part = whole[key]
        for row in part if isinstance(part, list) else [part]:
            assert inner is None or inner <= row.keys(), key
    assert [cost["name"] for cost in whole["costs"]] == ["team", "licence"]
    assert whole["costs"][1]["expires"] == "2026-01-01"
    assert {one["kind"] for one in whole["inputs"]} == {"effect", "value", "volume", "population", "cost"}
    assert whole["owner"] == "cfo"
    assert whole["net_quantiles"] == [whole["net"]["quantiles"][f"{q:g}"] for q in DOTS]
    for part in ("amount", "net", "roi"):
        quantiles = whole[part]["quantiles"]
        assert {f"{q:g}" for q in DOTS} <= quantiles.keys()
        assert list(quantiles.values()) == sorted(quantiles.values())
        assert (whole[part]["low_50"], whole[part]["high_50"]) == (quantiles["0.25"], quantiles["0.75"])
    (volume,) = [one for one in whole["inputs"] if one["kind"] == "volume"]
    assert volume["notes"] == ["counted since June", "observed on 30 of 365 days, and scaled up to all of them"]


# ---------------------------------------------------------------- the grade


@pytest.mark.parametrize("letter", ["A", "B", "C", "D", "E"])
def test_a_claim_is_as_good_as_its_evidence(letter: str) -> None:
    assert grade({"x": letter}, {"v": good(2, 1, 3)}, (), TODAY) == (letter, (f"The evidence x is graded {letter}.",))


def test_the_weakest_evidence_counts_and_the_rest_is_named() -> None:
    letter, reasons = grade({"x": "A", "y": "C", "z": "B"}, {}, (), TODAY)
    assert letter == "C"
    assert reasons == ("The weakest evidence that the amount needs, y, is graded C (also used: x A, z B).",)


def test_an_amount_without_evidence_is_e() -> None:
    letter, (reason,) = grade({}, {"v": good(2, 1, 3)}, (), TODAY)
    assert letter == "E"
    assert "every figure in it is typed in or counted" in reason


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"owner": None}, "has no owner"),
        ({"owner": ""}, "has no owner"),
        ({"source": None}, "has no source"),
        ({"expires": None}, "has no expiry"),
        ({"expires": TODAY - timedelta(days=1)}, "expired on 2026-06-30"),
        ({"expires": TODAY}, "expires today"),
        ({"low": None}, "has no range (low and high)"),
        ({"high": None}, "has no range (low and high)"),
    ],
)
def test_a_value_that_lacks_something_costs_a_letter(parts: dict[str, Any], words: str) -> None:
    value = Value.model_validate(good(2, 1, 3).model_dump() | parts)
    assert grade({"x": "A"}, {"v": value}, (), TODAY) == (
        "B",
        ("The evidence x is graded A.", f"One letter down: the value v {words}."),
    )


def test_a_value_that_expires_tomorrow_lacks_nothing() -> None:
    assert lacks(good(2, 1, 3, expires=TODAY + timedelta(days=1)), TODAY) == ()


def test_each_value_costs_one_letter_however_much_it_lacks() -> None:
    letter, reasons = grade({"x": "A"}, {"v": Value(value=2), "w": Value(value=3), "fine": good(2, 1, 3)}, (), TODAY)
    assert letter == "C"
    assert reasons[1] == (
        "One letter down: the value v has no owner, has no source, has no expiry and has no range (low and high)."
    )
    assert len(reasons) == 3


def test_the_grade_ends_at_e() -> None:
    assert grade({"x": "D"}, {"v": Value(value=2), "w": Value(value=3)}, ("p and q differ",), TODAY)[0] == "E"


def test_only_the_values_and_evidence_that_the_amount_needs_count() -> None:
    results = {"x": result(estimate("n", 2.0, unit="orders")), "y": result(estimate("other", 1.0), letter="D")}
    got = priced(claim("effect(n) * value(v)", evidence=["x", "y"]), results, {"v": good(2, 1, 3), "w": Value(value=1)})
    assert got.grade == "A"


def test_a_cost_that_lacks_something_is_named_and_lowers_nothing() -> None:
    stale = {"value": 9, "low": 8, "high": 12, "source": "s", "owner": "o", "expires": date(2020, 1, 1)}
    got = priced(claim(PER_USER, less={"team": 500, "licence": stale}), MARGIN)
    assert got.grade == "A"
    assert "The cost team has no owner, has no source and has no expiry; it is taken as given." in got.notes
    assert "The cost licence expired on 2020-01-01; it is taken as given." in got.notes


def test_a_value_without_a_range_is_fixed_and_that_is_noted() -> None:
    got = priced(claim("effect(n) * value(v)"), result(estimate("n", 2.0, unit="orders")), {"v": Value(value=2)})
    (value,) = [one for one in got.inputs if one.kind == "value"]
    assert (value.low, value.high) == (2.0, 2.0)
    assert "taken as exact: it has no range" in value.notes
    assert got.grade == "B"


# ---------------------------------------------------------------- several pieces of evidence


def test_the_first_evidence_is_used_and_the_others_are_compared_with_it() -> None:
    results = {
        "x": result(estimate("margin", 2.0, 0.5)),
        "y": result(estimate("margin", 1.5, 0.5), letter="B"),
        "z": result(estimate("margin", 6.0, 0.5)),
        "w": result(estimate("margin", 1.0, contrast="a vs off"), estimate("margin", 1.0, contrast="b vs off")),
        "v": Refusal("v", "no data", "wait"),
    }
    got = priced(claim(PER_USER, evidence=["x", "y", "z", "w", "v"]), results)
    assert got.amount.value == 2000
    assert got.grade == "A"
    (effect,) = [one for one in got.inputs if one.kind == "effect"]
    assert effect.source == "x"
    agreement = [note for note in effect.notes if note.startswith(("y", "z", "not compared"))]
    assert agreement == [
        "y agrees as measured: +$1.50 per user (+$0.52 to +$2.48 per user), same sign, intervals overlap",
        "z does not agree as measured: +$6.00 per user (+$5.02 to +$6.98 per user), same sign, intervals do not overlap",
        "not compared with w, which has several arms",
    ]
    assert "v was refused; the amount does not need it." in got.notes


@pytest.mark.parametrize(("other", "letter"), [(-2.0, "B"), (-0.5, "A")])
def test_evidence_that_contradicts_itself_costs_a_letter(other: float, letter: str) -> None:
    results = {"x": MARGIN, "y": result(estimate("margin", other, 0.5))}
    got = priced(claim(PER_USER, evidence=["x", "y"]), results)
    assert got.grade == letter
    assert any("contradict each other on margin" in reason for reason in got.grade_reasons) is (letter == "B")


def test_refused_evidence_gives_way_to_evidence_that_measures_the_same() -> None:
    got = priced(claim(PER_USER, evidence=["y", "x"]), {"y": Refusal("y", "empty arm", "wait"), "x": MARGIN})
    assert got.amount.value == 2000
    assert "y was refused; the amount does not need it." in got.notes


# ---------------------------------------------------------------- refusals

TWO_ARMS = result(
    estimate("margin", 2.0, contrast="Mens E-Mail vs off"), estimate("margin", 1.0, contrast="womens vs off")
)


def test_an_arm_is_chosen_by_its_name() -> None:
    assert priced(claim('effect(margin, "Mens E-Mail")', unit="USD"), TWO_ARMS).amount.value == 2.0
    assert priced(claim("effect(margin, womens)", unit="USD"), TWO_ARMS).amount.value == 1.0


def test_an_estimate_of_a_segment_or_of_another_estimand_is_not_the_effect() -> None:
    got = priced(
        claim(PER_USER),
        result(
            estimate("margin", 9.0, segment="new"),
            estimate("margin", 0.1, estimand="relative lift"),
            estimate("margin", 2.0),
        ),
    )
    assert got.amount.value == 2000


@pytest.mark.parametrize(
    ("amount", "more", "results", "reason", "remedy"),
    [
        ("effect(margin", {}, MARGIN, "is never closed", "Change the claim's amount"),
        ("policy_value(a)", {}, MARGIN, "not known in this version", "Change the claim's amount"),
        (PER_USER, {}, {}, "there is no result of x", "Run x"),
        (PER_USER, {}, {"x": Refusal("x", "an empty arm", "Wait.")}, "x was refused: an empty arm", "Wait."),
        (
            "effect(margn)",
            {},
            MARGIN,
            "does not measure 'margn'; it measures margin; did you mean 'margin'",
            "Add margn",
        ),
        ("effect(margin)", {}, TWO_ARMS, "any of 2 comparisons", 'Name the arm, such as effect(margin, "Mens E-Mail")'),
        (
            "effect(margin, mens)",
            {},
            TWO_ARMS,
            "compares no arm 'mens' with control; it compares Mens E-Mail, womens",
            "such as",
        ),
        (
            PER_USER,
            {},
            result(refusals=(Refusal("x.margin", "zero variance", "Check the column."),)),
            "no number in x: zero variance",
            "Check the column.",
        ),
        (
            PER_USER,
            {},
            result(estimate("margin", 5.0, estimand="attributed value")),
            "does not measure 'margin'",
            "Add margin",
        ),
        (PER_USER, {}, result(estimate("margin", 5.0), readings=()), "does not say whether a rise", "direction"),
        ("effect(margin) * value(vv)", {}, MARGIN, "'vv' is not a declared value", "under values"),
        ("effect(margin) * volume(orders, 365d)", {}, MARGIN, "volume(orders, 365d) was not counted", "orders"),
        ("effect(margin) * population(market, 365d)", {}, MARGIN, "was not counted", "market"),
        ("1 / effect(margin)", {}, result(estimate("margin", 1.0, 1.0)), "effect(margin), which can be zero", "amount"),
        ("1 / 0", {}, MARGIN, "divides by 0, which is zero", "amount"),
        ("1e308 * 1e308", {}, MARGIN, "too large", "amount"),
        (PER_USER, {"decision": {"threshold": "roi > 0", "probability": 0.8}}, MARGIN, "asks for the ROI", "less"),
        (
            "effect(nps)",
            {"less": {"team": 5}},
            result(estimate("nps", 5.0, unit="points")),
            "in points, and costs in USD cannot be taken from it",
            "value()",
        ),
        (
            PER_USER,
            {"less": {"team": 5}, "unit": "hours/year"},
            MARGIN,
            "unit is 'hours/year', and costs in USD",
            "unit in USD",
        ),
        (
            "effect(nps) + effect(orders)",
            {},
            result(estimate("nps", 5.0, unit="points"), estimate("orders", 5.0, unit="orders per user")),
            "mixes effects in points and orders per user",
            "value()",
        ),
    ],
)
def test_refuses_in_words_and_says_what_to_do(
    amount: str, more: dict[str, Any], results: Any, reason: str, remedy: str
) -> None:
    got = refused(claim(amount, **more), results)
    assert got.name == "gain"
    assert reason in got.reason
    assert remedy in got.remedy


def test_refuses_a_volume_of_nothing() -> None:
    volumes = {("orders", YEAR): Volume(0, 0, 365)}
    assert "is zero" in refused(claim("effect(margin) * volume(orders, 365d)"), MARGIN, None, volumes).reason


def test_refuses_a_range_that_ends_on_a_division_by_zero() -> None:
    values = {"v": good(2.0, 0.0, 3.0)}
    assert "value(v), which is zero" in refused(claim("effect(margin) / value(v)"), MARGIN, values).reason


def test_a_misspelt_value_gets_a_suggestion() -> None:
    values = {"agent_second": good(2, 1, 3)}
    assert "did you mean 'agent_second'" in refused(claim("value(agent_seconds)"), MARGIN, values).reason


@pytest.mark.parametrize("bad", [(-1, 0), (1, -1), (math.nan, 0), (1, math.inf)])
def test_a_volume_is_a_finite_count(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        Volume(*bad, days_observed=1)
    with pytest.raises(ValueError, match="finite and not negative"):
        Population(-1 if bad[0] == 1 else bad[0], 1)


@pytest.mark.parametrize(
    ("worth", "cost"),
    [
        (good(-1e308, -1.7e308, -1e307), {"value": 1e308}),
        (good(0.0, -1.7e308, 1.7e308), {"value": 1.0}),
        (good(-1.0), {"value": 1.0, "low": 0.5, "high": 1.7e308}),
        (good(-1e308), {"value": 1.0, "low": 1.0, "high": 1.7e308}),
    ],
)
def test_figures_too_large_for_an_interval_are_refused_and_never_not_a_number(
    worth: Value, cost: dict[str, float]
) -> None:
    got = asked(claim("value(v)", less={"team": cost}), None, {"v": worth})
    if isinstance(got, Refusal):
        assert "too large to be a number" in got.reason
    else:
        json.dumps(got.to_dict(), allow_nan=False)


def test_a_vanity_metric_and_a_caveat_are_named_beside_the_effect() -> None:
    reading = MetricReading(
        "opens", "on vs off", "vanity", "up", "improved", "", caveat="Mail programs open by themselves."
    )
    got = priced(claim("effect(opens)", unit="USD"), result(estimate("opens", 2.0), readings=(reading,)))
    assert {"opens is declared a vanity metric", "Mail programs open by themselves."} <= set(got.inputs[0].notes)


# ---------------------------------------------------------------- attributed credit


def credited(
    model: str, touchpoint: str, values: Any, *, estimand: str = "attributed value", unit: str = "USD", **labels: str
) -> Estimate:
    drawn = np.asarray(values, dtype=float)
    named = {"model": model, "touchpoint": touchpoint, "conversion": "orders", "window": "30d"} | labels
    contrast = " ".join(named.values())
    spread = Draws(drawn)
    return Estimate(
        estimand, "orders", contrast, float(drawn.mean()), unit, spread, "bootstrap", {"units": 900}, labels=named
    )


BOOT = np.random.default_rng(7).normal(1000, 50, 400)
"""Credit of one touchpoint, resampled; the other has what it has not, so their sum hardly moves."""


def attribution(*more: Estimate, letter: str = "D", closer: Closer | None = None, **parts: Any) -> Result:
    found = [
        credited("last", "home", BOOT),
        credited("last", "channel: Paid", 3000 - BOOT),
        credited("last", "channel: Email", np.full(400, 10.0)),
        credited("last", "(unattributed)", np.full(400, 90.0)),
        credited("last", "(total)", np.full(400, 3100.0)),
        credited("participation", "home", 2 * BOOT),
        credited("participation", "channel: Paid", 3000 - BOOT),
        credited("participation", "channel: Email", 3000 - BOOT),
        *more,
    ]
    got = result(*found, name="attribution.all", letter=letter, verdict="descriptive", readings=(), **parts)
    return replace(got, closer=closer or Closer(), design="descriptive", method="attribution")


def credit_claim(amount: str, **more: Any) -> Claim:
    return claim(amount, **({"evidence": ["attribution.all"]} | more))


ALL = {"attribution.all": attribution()}


def test_attributed_credit_is_an_input_with_its_bootstrap_draws() -> None:
    got = priced(credit_claim("attributed(all, last, home)"), ALL)
    (shown,) = got.inputs
    assert (shown.kind, shown.name, shown.unit, shown.source) == (
        "attributed",
        "attributed(all, last, home)",
        "USD",
        "attribution.all",
    )
    assert got.amount.value == pytest.approx(BOOT.mean())
    low, high = np.quantile(BOOT, [0.025, 0.975])
    assert (shown.low, shown.high) == pytest.approx((low, high))
    assert (got.amount.low, got.amount.high) == pytest.approx((low, high), rel=0.02)
    assert got.amount.unit == "USD"


def test_a_decision_on_credit_says_what_it_rests_on() -> None:
    rule = {"threshold": "roi > 0", "probability": 0.8}
    got = priced(credit_claim("attributed(all, last, home)", less={"team": 100}, decision=rule), ALL)
    assert got.decision is not None
    assert got.decision.sentence.endswith("It rests on what was attributed, not on what was shown to be incremental.")
    shown = priced(claim(PER_USER, less={"team": 100}, decision=rule), MARGIN)
    assert shown.decision is not None
    assert "attributed" not in shown.decision.sentence


def test_touchpoints_are_added_up_as_they_were_resampled_together() -> None:
    got = priced(credit_claim("attributed(all, last)"), ALL)
    # home and Paid always share 3,000, and Email has 10: the sum does not move, whatever each of them does.
    assert got.amount.value == pytest.approx(3010)
    assert got.amount.high - got.amount.low < 1e-6
    channel = priced(credit_claim("attributed(all, last, channel)"), ALL)
    assert channel.amount.value == pytest.approx(3010 - BOOT.mean())
    one = priced(credit_claim("attributed(all, last, 'channel: Email')"), ALL)
    assert one.amount.value == 10
    both = priced(credit_claim("attributed(all, last, home) + attributed(all, last, channel)"), ALL)
    assert both.amount.high - both.amount.low < 1e-6, "two inputs of one attribution are drawn on the same resamples"


def test_credit_without_draws_in_common_is_no_surer_than_its_parts_together() -> None:
    parts = [
        replace(credited("even", "home", [1000.0, 1000.0]), uncertainty=Normal(30.0)),
        replace(credited("even", "mail", [500.0, 500.0]), uncertainty=Normal(40.0)),
    ]
    got = priced(credit_claim("attributed(all, even)"), {"attribution.all": attribution(*parts)})
    assert got.amount.high - got.amount.low == pytest.approx(2 * 1.96 * 70, rel=0.05)


def test_conversions_are_credited_where_there_is_no_value() -> None:
    counted = result(
        credited("last", "home", BOOT, estimand="attributed conversions", unit="conversions"), letter="D", readings=()
    )
    got = priced(
        credit_claim("attributed(all, last) * value(order)"), {"attribution.all": counted}, {"order": good(2.0)}
    )
    assert got.amount.value == pytest.approx(2 * BOOT.mean())
    assert (got.amount.unit, got.grade) == ("USD", "D")
    plain = priced(credit_claim("attributed(all, last)"), {"attribution.all": counted})
    assert (plain.amount.unit, plain.net) == ("conversions", None)


def test_an_attributed_claim_is_graded_d_at_best_and_says_so() -> None:
    for letter in "AD":
        got = priced(
            credit_claim("attributed(all, last, home)", less={"team": 100}),
            {"attribution.all": attribution(letter=letter)},
        )
        assert got.grade == "D"
        assert any("attributed only; credit was shared out, and nothing was compared" in r for r in got.grade_reasons)
    assert "Evidence grade D: attributed only." in got.finding
    assert got.finding.startswith('Stated as "Annual gain"')
    words = json.dumps(got.to_dict())
    assert "attributes to home" in words
    assert re.search(r"\b(effects?|improvements?|drove|lift|because of)\b", words) is None
    assert re.search(r"(?<!not )\bcaused\b", words) is None
    mixed = priced(
        claim("effect(margin) * population(user, 365d) + attributed(all, last)", evidence=["x", "attribution.all"]),
        {"x": MARGIN, **ALL},
    )
    assert mixed.grade == "D"
    assert any("not scaled to 365d" in note for note in mixed.notes)


def test_a_value_costs_an_attributed_claim_a_letter_and_a_failed_check_withholds_it() -> None:
    got = priced(credit_claim("attributed(all, last) * value(v)"), ALL, {"v": Value(value=2.0)})
    assert got.grade == "E"
    failed = attribution(checks=(Check("conserved", "fail", None, "credit does not add up"),))
    assert priced(credit_claim("attributed(all, last)"), {"attribution.all": failed}).verdict == "withheld"


@pytest.mark.parametrize(
    ("amount", "more", "results", "reason", "remedy"),
    [
        ("effect(margin)", {}, ALL, "is attributed, and nothing was compared", "attributed(NAME, MODEL)"),
        (
            "effect(orders) * population(user, 365d)",
            {},
            {"attribution.all": attribution(estimate("orders", 5.0))},
            "is attributed, and nothing was compared",
            "experiment",
        ),
        ("attributed(all, last)", {"evidence": ["x"]}, {"x": MARGIN, **ALL}, "not among the claim's evidence", "attribution.all"),
        ("attributed(all, last)", {}, {}, "there is no result of attribution.all", "Run attribution.all"),
        (
            "attributed(all, last)",
            {},
            {"attribution.all": Refusal("attribution.all", "no conversions", "Widen it.")},
            "attribution.all was refused: no conversions",
            "Widen it.",
        ),
        ("attributed(all, lats)", {}, ALL, "credits nothing by 'lats'; did you mean 'last'?", "model"),
        ("attributed(all, last, hom)", {}, ALL, "credits nothing to 'hom'; did you mean 'home'?", "touchpoint"),
        ("attributed(all, participation)", {}, ALL, "so its credit has no total", "another model"),
        ("attributed(all, participation, channel)", {}, ALL, "so they have no total", "channel: Paid"),
        (
            "attributed(all, last)",
            {},
            {"attribution.all": attribution(credited("last", "home", BOOT, window="7d"))},
            "could be any of orders over 30d and orders over 7d",
            "with one of them",
        ),
        (
            "attributed(all, markov)",
            {},
            {"attribution.all": attribution(refusals=(Refusal("attribution.all.markov", "a loop", "Take order 1."),))},
            "no number in attribution.all: a loop",
            "Take order 1.",
        ),
    ],
)  # fmt: skip
def test_credit_that_has_no_number_is_refused(
    amount: str, more: dict[str, Any], results: Any, reason: str, remedy: str
) -> None:
    got = refused(credit_claim(amount, **more), results)
    assert reason in got.reason
    assert remedy in got.remedy


def test_an_attribution_among_the_evidence_does_not_stand_in_for_an_experiment() -> None:
    got = priced(
        claim(PER_USER, evidence=["attribution.all", "x"]),
        {"x": MARGIN, "attribution.all": Refusal("attribution.all", "no conversions", "Widen it.")},
    )
    assert (got.grade, got.amount.value) == ("A", 2000)
    assert "attribution.all was refused; the amount does not need it." in got.notes


def test_what_is_attributed_stands_beside_an_amount_that_was_measured() -> None:
    got = priced(claim(PER_USER, compare=["attribution.all"]), {"x": MARGIN, **ALL})
    (line,) = got.to_dict()["compare"]
    assert (line["name"], line["model"], line["unit"]) == ("attribution.all", "last", "USD")
    assert line["value"] == pytest.approx(3010)
    assert line["low"] <= line["value"] <= line["high"]
    assert line["sentence"] == (
        "last attributes $3,010 to all touchpoints together (attributed, not caused), over the conversions that "
        "attribution.all reads; the claim's own amount, which was measured by comparing, is $2,000 a year "
        "($1,030 to $2,980 a year)."
    )
    page = (Path(__file__).parents[1] / "docs" / "claims.md").read_text()
    assert line["sentence"] in page
    moving = attribution(credited("even", "home", BOOT))
    got = priced(claim(PER_USER, compare=["attribution.all"]), {"x": MARGIN, "attribution.all": moving})
    assert "even attributes $995 ($903 to $1,080) to all" in got.compare[1].sentence
    assert got.grade == "A", "what stands beside the amount does not lower its grade"
    assert not priced(claim(PER_USER), MARGIN).compare


def test_each_window_and_conversion_is_compared_apart() -> None:
    more = attribution(credited("last", "home", BOOT, window="7d"))
    got = priced(claim(PER_USER, compare=["attribution.all"]), {"x": MARGIN, "attribution.all": more})
    assert [("over 30d" in c.sentence, "over 7d" in c.sentence) for c in got.compare] == [(True, False), (False, True)]


def test_credit_that_was_reconciled_is_compared_in_the_experiments_own_scope() -> None:
    held = Reconciliation(
        "global_holdout", "on vs off", "last", "orders", "USD", 900, Span(2000, 1900, 2100), Span(500, 300, 700),
        Span(0.25, 0.15, 0.35), Span(0.75, 0.65, 0.85), (), "in proportion", "", "s",
    )  # fmt: skip
    got = priced(
        claim(PER_USER, compare=["attribution.all"]),
        {"x": MARGIN, "attribution.all": attribution(closer=Closer(reconciliation=(held,)))},
    )
    (line,) = got.compare
    assert (line.model, line.value, line.low, line.high) == ("last", 2000, 1900, 2100)
    assert "attributed, not caused" in line.sentence
    assert "global_holdout shows $500 ($300 to $700) as incremental there" in line.sentence
    assert line.sentence.endswith("Of what is attributed, 75.0% (65.0% to 85.0%) is more than the experiment shows.")
    below = replace(held, ratio=Span(-0.09, -0.5, 0.3), anyway=Span(1.09, 0.7, 1.5))
    more = replace(held, contrast="new vs off")
    got = priced(
        claim(PER_USER, compare=["attribution.all"]),
        {
            "x": MARGIN,
            "attribution.all": attribution(credited("even", "home", BOOT), closer=Closer(reconciliation=(below, more))),
        },
    )
    assert [line.model for line in got.compare] == ["last", "last", "even"], (
        "a model that was not reconciled has its total"
    )
    assert "treated units (on vs off) (attributed, not caused)" in got.compare[0].sentence
    assert got.compare[0].sentence.endswith("Incremental over attributed is \u22129% (\u221250% to 30%).")
    assert "treated units (new vs off)" in got.compare[1].sentence
    assert "to all touchpoints together" in got.compare[2].sentence
    unknown = replace(held, ratio=None, anyway=None, reason="the credit is not clear of zero")
    got = priced(
        claim(PER_USER, compare=["attribution.all"]),
        {"x": MARGIN, "attribution.all": attribution(closer=Closer(reconciliation=(unknown,)))},
    )
    assert got.compare[0].sentence.endswith("The credit is not clear of zero.")


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({"attribution.all": Refusal("attribution.all", "no conversions", "Widen it.")}, "attribution.all was refused: no conversions"),
        ({}, "there is no result of attribution.all"),
        ({"attribution.all": replace(attribution(), estimates=())}, "attribution.all credits nothing that has a total"),
    ],
)  # fmt: skip
def test_an_attribution_that_cannot_be_shown_is_named(results: Any, words: str) -> None:
    got = priced(claim(PER_USER, compare=["attribution.all"]), {"x": MARGIN, **results})
    (line,) = got.compare
    assert (line.value, line.low, line.high) == (None, None, None)
    assert words in line.sentence


def test_a_typed_claim_is_not_called_measured_beside_an_attribution() -> None:
    got = priced(claim("100 * population(user, 365d)", compare=["attribution.all"]), ALL)
    assert "was not measured by comparing either" in got.compare[0].sentence


# ---------------------------------------------------------------- sensitivity


def test_a_search_for_a_break_even_stops_where_nothing_can_be_computed() -> None:
    # Below v = 0 the amount would turn, but on the way it divides by zero.
    got = priced(claim("100 / value(v)"), values={"v": good(5.0, 4.0, 6.0)})
    assert swing_of(got, "value(v)").break_even is None
    assert swing_of(got, "value(v)").sentence == (
        "Moving the value v anywhere from $4 to $6 does not change the sign of the net."
    )


def test_a_narrow_range_of_a_large_number_is_searched_to_the_last_digit() -> None:
    got = priced(claim("value(v)", less={"team": 1e9}), values={"v": good(1e9, 1e9 - 1e-6, 1e9 + 1e-6)})
    assert swing_of(got, "value(v)").flips_at == pytest.approx(1e9)


def test_moving_one_input_through_its_range_by_hand() -> None:
    got = priced(
        claim("effect(n) * value(v) * volume(orders, 365d)", less={"team": {"value": 500, "low": 400, "high": 1500}}),
        result(estimate("n", 2.0, 0.5, unit="orders")),
        {"v": good(5.0, 4.0, 7.0)},
        {("orders", YEAR): Volume(100, 10, 365)},
    )
    # Centre: 2 x 5 x 100 - 500 = 500.
    ends = {
        "effect(n)": ((2 - 0.5 * 1.959964) * 500 - 500, (2 + 0.5 * 1.959964) * 500 - 500),
        "value(v)": (4 * 200 - 500, 7 * 200 - 500),
        "volume(orders, 365d)": (804 - 500, 1196 - 500),
        "cost(team)": (600, -500),
    }
    flips = {"effect(n)": 1.0, "value(v)": 2.5, "volume(orders, 365d)": 50.0, "cost(team)": 1000.0}
    for name, (low, high) in ends.items():
        swing = swing_of(got, name)
        assert (swing.net_at_low, swing.net_at_high) == pytest.approx((low, high), rel=1e-6), name
        assert swing.break_even == pytest.approx(flips[name]), name
        inside = swing.low_input <= flips[name] <= swing.high_input
        assert swing.flips is inside, name
        assert swing.flips_at == (swing.break_even if inside else None), name
    assert [swing.input for swing in got.sensitivity] == sorted(ends, key=lambda n: -abs(ends[n][1] - ends[n][0]))
    assert swing_of(got, "cost(team)").sentence == (
        "If the cost team rose above $1,000, the net would be zero; that lies within its range, $400 to $1,500."
    )
    assert swing_of(got, "volume(orders, 365d)").sentence == (
        "Moving the volume of orders anywhere from 80.4 rows a year to 120 rows a year does not change the sign of the net; if the "
        "volume of orders fell below 50 rows a year, the net would be zero, which lies outside that range."
    )
    assert len(got.overturn) == 2
    assert got.overturn[0].startswith("Chance alone")
    assert got.overturn[1] == swing_of(got, "cost(team)").sentence


def test_the_three_named_sensitivities_by_hand() -> None:
    named = ["holdout_contamination", "novelty_decay", "discount_rate"]
    got = priced(claim(PER_USER, less={"team": 1600}, sensitivity=named), MARGIN)
    contamination, decay, discount = (swing_of(got, name) for name in named)
    assert contamination.net_at_low == decay.net_at_low == discount.net_at_low == 400
    assert contamination.net_at_high == pytest.approx(2000 / 0.9 - 1600)
    assert decay.net_at_high == pytest.approx(2000 * 0.75 - 1600)
    assert discount.net_at_high == pytest.approx(2000 * (1 - math.exp(-0.2)) / 0.2 - 1600)
    assert (contamination.high_input, decay.high_input, discount.high_input) == (0.10, 0.50, 0.20)
    assert decay.flips
    assert decay.flips_at == pytest.approx(0.4)  # 2000 (1 - d / 2) = 1600
    assert decay.sentence.startswith("If the part of the effect lost by the end of the period rose above 40%, the net")
    assert not contamination.flips
    assert not discount.flips


def test_discounting_goes_by_the_years_of_the_period() -> None:
    populations = {("user", 3 * YEAR): Population(1000, 1095)}
    got = priced(
        claim("effect(margin) * population(user, 1095d)", sensitivity=["discount_rate"]),
        MARGIN,
        populations=populations,
    )
    assert swing_of(got, "discount_rate").net_at_high == pytest.approx(2000 * (1 - math.exp(-0.6)) / 0.6)
    assert got.amount.unit == "USD/1095d"


def test_named_sensitivities_that_do_not_apply_are_noted() -> None:
    got = priced(claim("value(v)", sensitivity=["novelty_decay", "discount_rate"]), values={"v": good(2, 1, 3)})
    assert [swing.input for swing in got.sensitivity] == ["value(v)"]
    assert any("novelty_decay was asked for, but no measured effect" in note for note in got.notes)
    assert any("discount_rate was asked for, but the amount has no period" in note for note in got.notes)


def test_a_flip_is_of_the_decision_where_there_is_one() -> None:
    rule = {"threshold": "roi > 1", "probability": 0.8}
    got = priced(claim(PER_USER, less={"team": 800}, decision=rule), MARGIN)
    effect = swing_of(got, "effect(margin)")
    assert effect.flips_at == pytest.approx(1.6)  # 1600 - 800 = 1 x 800
    assert effect.sentence.startswith(
        "If the improvement of margin fell below $1.60 per user, the ROI would be 1, the decision's threshold"
    )
    assert swing_of(got, "cost(team)").break_even == pytest.approx(1000)


def test_a_claim_at_a_loss_flips_upwards() -> None:
    got = priced(claim(PER_USER, less={"team": 2400}), MARGIN)
    effect = swing_of(got, "effect(margin)")
    assert effect.flips_at == pytest.approx(2.4)
    assert "rose above $2.40 per user, the net would be zero" in effect.sentence
    assert swing_of(got, "cost(team)").break_even == pytest.approx(2000)


def test_an_amount_that_turns_finds_the_nearest_flip() -> None:
    # v (10 - v) - 16 is zero at 2 and at 8 and positive between them.
    got = priced(claim("value(v) * (10 - value(v))", less={"team": 16}), values={"v": good(7.0, 1.0, 9.0)})
    swing = swing_of(got, "value(v)")
    assert swing.flips_at == pytest.approx(8.0)
    assert swing.net_at_low == swing.net_at_high == -7
    assert swing.swing == pytest.approx(16, abs=0.01)  # from -7 up to 9 at the top and back


def test_what_would_overturn_it_names_checks_chance_and_inputs() -> None:
    doubtful = result(
        estimate("margin", 2.0, 1.5),
        checks=(Check("srm", "pass", 1.0, "fine"), Check("size", "warn", None, "Smaller than planned.")),
    )
    got = priced(claim(PER_USER), doubtful)
    assert got.overturn[0] == "The check size of x gave a warning: Smaller than planned."
    assert got.overturn[1].startswith("Chance alone: the 95% interval of the net includes zero")
    assert got.overturn[2].startswith("If the improvement of margin fell below $0 per user")


def test_where_no_input_overturns_it_the_nearest_break_even_is_named() -> None:
    got = priced(claim(PER_USER, less={"team": 500}), result(estimate("margin", 2.0, 0.1)))
    (only,) = got.overturn
    assert only.startswith("No single input, moved within its range, does it. ")
    assert swing_of(got, "effect(margin)").sentence in only


# ---------------------------------------------------------------- verdict and words


@pytest.mark.parametrize(("margin", "verdict"), [(2.0, "positive"), (-2.0, "negative"), (0.3, "not conclusive")])
def test_the_verdict_is_what_the_interval_of_the_net_shows(margin: float, verdict: str) -> None:
    assert priced(claim(PER_USER), result(estimate("margin", margin, 0.5))).verdict == verdict


def test_costs_can_turn_a_positive_amount_into_a_negative_net() -> None:
    got = priced(claim(PER_USER, less={"team": 9000}), MARGIN)
    assert got.amount.low > 0
    assert got.verdict == "negative"
    assert "exceptionally unlikely to be above zero (probability under 1%)" in got.finding


@pytest.mark.parametrize(
    "bad",
    [
        result(estimate("margin", 2.0, 0.1), verdict="withheld"),
        result(estimate("margin", 2.0, 0.1), checks=(Check("srm", "fail", 40.0, "Shares differ."),)),
    ],
)
def test_a_failed_check_withholds_the_claim(bad: Result) -> None:
    got = priced(claim(PER_USER), bad)
    assert got.verdict == "withheld"
    assert got.finding.startswith("Withheld, because a check failed in x; do not rely on this figure. ")
    assert got.amount.value == 2000


def test_a_guardrail_at_risk_blocks_a_positive_verdict() -> None:
    readings = (
        MetricReading("margin", "on vs off", "primary", "up", "improved", ""),
        MetricReading("returns", "on vs off", "guardrail", "down", "at risk", ""),
        MetricReading("churn", "on vs off", "guardrail", "down", "safe", ""),
    )
    harmful = result(estimate("margin", 2.0, 0.1), verdict="guardrail at risk", readings=readings)
    got = priced(claim(PER_USER), harmful)
    assert got.verdict == "guardrail at risk"
    assert got.finding.endswith("A guardrail is at risk in x (returns).")
    assert "A guardrail is at risk in x (returns)." in got.notes
    assert priced(claim(PER_USER, less={"team": 9000}), harmful).verdict == "negative"


def test_the_finding_leads_with_the_statement_and_its_interval() -> None:
    got = priced(
        claim(PER_USER, statement="Annual gain.", less={"team": 500_000}),
        result(estimate("margin", 2910.0, 750.0), letter="B"),
    )
    assert got.net is not None
    shown = formats.written(got.net.value, got.net.low, got.net.high, formats.unit("USD/year"))
    assert shown.value == "$2.4M a year"
    assert got.finding == (
        f"Annual gain: $2.4M a year net (95% interval {shown.range}), virtually certain to be above zero "
        "(probability over 99%). Evidence grade B."
    )


def test_an_amount_in_the_metrics_own_unit_has_no_net() -> None:
    got = priced(claim("effect(nps)", statement="Projected NPS lift"), result(estimate("nps", 3.0, 1.0, unit="points")))
    assert got.amount.unit == "points"
    assert got.net is None
    assert got.roi is None
    assert got.payback is None
    assert got.verdict == "positive"
    assert re.fullmatch(
        r"Projected NPS lift: \+3\.0 points \(95% interval \+[01]\.\d to \+[45]\.\d points\), virtually certain to be "
        r"above zero \(probability over 99%\)\. Evidence grade A\.",
        got.finding,
    )
    total = priced(claim("effect(n) * population(user, 365d)"), result(estimate("n", 3.0, unit="orders per user")))
    assert total.amount.unit == "orders/year"
    assert total.net is None


@pytest.mark.parametrize(
    ("amount", "more", "unit"),
    [
        ("effect(n) * value(v)", {}, "USD"),
        ("effect(n) * value(v) * population(user, 365d)", {}, "USD/year"),
        ("effect(n) * value(v) * population(user, 30d)", {}, "USD/30d"),
        ("effect(n)", {"unit": "USD/week"}, "USD/week"),
        ("effect(n)", {"less": {"team": 1}}, "USD"),
        ("effect(n)", {}, "orders"),
        ("effect(n) * population(user, 365d)", {}, "orders/year"),
    ],
)
def test_the_unit_follows_from_what_is_multiplied(amount: str, more: dict[str, Any], unit: str) -> None:
    populations = {("user", YEAR): Population(10, 9), ("user", timedelta(days=30)): Population(1, 9)}
    got = priced(
        claim(amount, **more), result(estimate("n", 1.0, unit="orders")), {"v": good(2, 1, 3)}, populations=populations
    )
    assert got.amount.unit == unit
    assumed = any("nothing declares otherwise" in text for text in got.assumptions)
    assert assumed is ("less" in more)


CAUSAL = re.compile(
    r"\b(cause[sd]?|effects?|impact|lift|saves?|savings?|earns?|drives?|due to|because of)\b", re.IGNORECASE
)


@pytest.mark.parametrize("letter", ["D", "E"])
def test_no_causal_word_below_grade_c(letter: str) -> None:
    weak = {"x": result(estimate("margin", 2.0, 0.5), letter=letter)}
    got = priced(claim(PER_USER, less={"team": 500}, sensitivity=["novelty_decay"]), weak)
    assert got.finding.startswith('Stated as "Annual gain": ')
    assert got.finding.endswith(f"Evidence grade {letter}: descriptive only.")
    texts = [got.finding, *got.assumptions, *got.overturn, *(s.sentence for s in got.sensitivity)]
    for text in texts:
        assert not CAUSAL.search(text.replace("effect(margin)", "")), text


def test_a_claim_of_exact_inputs_claims_no_certainty() -> None:
    got = priced(claim("2 * 100"))
    assert (got.amount.value, got.amount.low, got.amount.high) == (200, 200, 200)
    assert got.grade == "E"
    assert got.finding == (
        'Stated as "Annual gain": $200 before any cost (exact: no input has a range, so this is no measure of '
        "certainty). Evidence grade E: descriptive only."
    )


# ---------------------------------------------------------------- coverage


def _covered(worlds: int, draws: int) -> float:
    """The share of worlds whose true net lies in the 95% interval: effect, value, volume and cost all unknown."""
    rng = np.random.default_rng(20260701)
    inside = 0
    for world in range(worlds):
        value, volume, cost = rng.triangular(4, 5, 7), rng.normal(1000, 60), rng.triangular(3000, 4000, 6000)
        true = 2.0 * value * volume - cost
        seen, counted = rng.normal(2.0, 0.4), 1000.0
        one = claim(
            "effect(n) * value(v) * volume(orders, 365d)",
            less={"team": {"value": 4000, "low": 3000, "high": 6000}},
        )
        got = priced(
            one,
            result(estimate("n", seen, 0.4, unit="orders")),
            {"v": good(5, 4, 7)},
            {("orders", YEAR): Volume(counted, 60, 365)},
            seed=world,
            draws=draws,
        )
        assert got.net is not None
        inside += got.net.low <= true <= got.net.high
    return inside / worlds


def test_the_interval_covers_the_true_net_in_a_few_worlds() -> None:
    share = _covered(150, 2000)
    assert abs(share - 0.95) <= 4 * math.sqrt(0.95 * 0.05 / 150)


@pytest.mark.slow
def test_the_interval_covers_the_true_net_in_95_of_100_worlds() -> None:
    worlds = 2000
    share = _covered(worlds, 4000)
    assert abs(share - 0.95) <= 3 * math.sqrt(0.95 * 0.05 / worlds)


# ---------------------------------------------------------------- the worked example


def test_the_worked_example_of_the_page_is_what_is_computed() -> None:
    """Every figure of the example in docs/claims.md, from the inputs given there."""
    page = (Path(__file__).parents[1] / "docs" / "claims.md").read_text(encoding="utf-8")
    aht = estimate("aht", -20.0, 4.0, unit="seconds", contrast="v3 vs v2")
    got = priced(
        claim(
            "effect(aht) * value(agent_second) * volume(conversations, 365d)",
            statement="Estimated annual savings from the new intent model",
            less={"run_cost": 180_000},
            decision={"threshold": "roi > 0", "probability": 0.8},
            sensitivity=["novelty_decay"],
        ),
        result(aht, directions={"aht": "down"}),
        {"agent_second": good(0.011, 0.009, 0.014, per="second")},
        {("conversations", YEAR): Volume(2_000_000, 40_000, 180)},
    )
    assert got.roi is not None
    assert got.payback is not None
    assert got.decision is not None
    decay = swing_of(got, "novelty_decay")
    for text in (
        got.finding,
        got.payback.sentence,
        got.decision.sentence,
        swing_of(got, "effect(aht)").sentence,
        swing_of(got, "cost(run_cost)").sentence,
        f"ROI {got.roi.value:.2f} ({got.roi.low:.2f} to {got.roi.high:.2f})",
        f"20 x 0.011 x 2,000,000 = {got.amount.value:,.0f}",
        f"{got.amount.value:,.0f} - 180,000 = {got.amount.value - got.cost:,.0f}",
        f"novelty_decay: {decay.net_at_low:,.0f} at 0%, {decay.net_at_high:,.0f} at 50%",
        *got.notes,
    ):
        assert text in page, text

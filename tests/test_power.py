"""Planning: sizes against other implementations and tables, and experiments run at the planned size for their power."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from statsmodels.stats.power import NormalIndPower, TTestIndPower
from statsmodels.stats.proportion import proportion_effectsize

from payoff.errors import DataError, UsageError
from payoff.methods.experiment import ExperimentDesign, MetricUse
from payoff.methods.experiment import power as planning
from payoff.methods.experiment.power import Ask, Plan
from payoff.run import Asked, Project
from payoff.spec import nouns
from payoff.spec.nouns import Experiment
from payoff.stats import compare, sequential
from payoff.stats import planning as sizes
from payoff.stats.adjust import adjusted_levels
from payoff.stats.moments import Moments
from payoff.stats.planning import Baseline, Question
from payoff.warehouse.history import Arrivals, Pretended
from payoff.warehouse.needs import ArmsData, ClusterProfile, MetricMoments
from tests.builders import make_project

EVEN = (0.5, 0.5)
Rng = np.random.Generator
Array = NDArray[np.float64]


# ---------------------------------------------------------------- against other implementations, tables and laws


@pytest.mark.parametrize(
    ("d", "power", "ratio", "alpha"), [(0.2, 0.8, 1, 0.05), (0.5, 0.9, 3, 0.01), (0.05, 0.8, 1, 0.05)]
)
def test_units_of_a_mean_are_those_of_statsmodels(d: float, power: float, ratio: float, alpha: float) -> None:
    theirs = TTestIndPower().solve_power(d, power=power, ratio=ratio, alpha=alpha)
    shares = (1 / (1 + ratio), ratio / (1 + ratio))
    ours = sizes.observations(3 * d, Baseline(10, 9.0), shares, Question(alpha), power)
    if ratio == 1:
        assert ours == pytest.approx(2 * theirs, rel=1e-6)
    else:  # Welch's degrees of freedom are fewer than the pooled ones where arms differ in size: a few units
        assert 0 <= ours - (1 + ratio) * theirs < 8
    found = sizes.smallest(ours, Baseline(10, 9.0), shares, Question(alpha), power)
    assert found == pytest.approx(3 * d, rel=1e-6)


@pytest.mark.parametrize(("p", "effect"), [(0.1, 0.01), (0.5, 0.05), (0.02, 0.004)])
def test_units_of_a_conversion_are_those_of_statsmodels(p: float, effect: float) -> None:
    there = p + effect
    spread = math.sqrt((p * (1 - p) + there * (1 - there)) / 2)
    exact = NormalIndPower().solve_power(effect / spread, power=0.8, alpha=0.05)
    arcsine = NormalIndPower().solve_power(proportion_effectsize(there, p), power=0.8, alpha=0.05)
    ours = sizes.observations(effect, Baseline(p, p * (1 - p), binary=True), EVEN, Question(0.05), 0.8)
    assert 0 < ours - 2 * exact < 5  # t in place of z: about z^2 / 2 units in all
    assert ours == pytest.approx(2 * arcsine, rel=0.01)  # another approximation of the same


@pytest.mark.parametrize(("d", "n"), [(0.2, 393), (0.5, 64), (0.8, 26)])
def test_cohens_table(d: float, n: int) -> None:
    """Cohen 1988, "Statistical Power Analysis for the Behavioral Sciences", table 2.4.1: two-tailed .05, power .80."""
    assert math.ceil(sizes.observations(d, Baseline(0, 1.0), EVEN, Question(0.05), 0.8) / 2) in (n, n + 1)


@pytest.mark.parametrize(
    ("looks", "pocock", "factor80", "factor90"),
    [(2, 2.178, 1.110, 1.100), (3, 2.289, 1.166, 1.151), (4, 2.361, 1.202, 1.183), (5, 2.413, 1.229, 1.207)],
)
def test_inflation_factors_of_pocock(looks: int, pocock: float, factor80: float, factor90: float) -> None:
    """Jennison and Turnbull 2000, tables 2.1 and 2.2 (two-sided .05, three decimals)."""
    for power, factor in ((0.8, factor80), (0.9, factor90)):
        drift = math.sqrt(factor) * (1.959964 + NORMAL[power])
        assert sizes.sequential_power(drift, [pocock] * looks) == pytest.approx(power, abs=6e-4)


@pytest.mark.parametrize(
    ("looks", "constant", "factor80", "factor90"),
    [(2, 1.977, 1.008, 1.007), (3, 2.004, 1.017, 1.016), (4, 2.024, 1.024, 1.022), (5, 2.040, 1.028, 1.026)],
)
def test_inflation_factors_of_obrien_and_fleming(looks: int, constant: float, factor80: float, factor90: float) -> None:
    """Jennison and Turnbull 2000, tables 2.3 and 2.4: critical values are the constant times sqrt(K / k)."""
    critical = [constant * math.sqrt(looks / (k + 1)) for k in range(looks)]
    for power, factor in ((0.8, factor80), (0.9, factor90)):
        drift = math.sqrt(factor) * (1.959964 + NORMAL[power])
        assert sizes.sequential_power(drift, critical) == pytest.approx(power, abs=6e-4)


NORMAL = {0.8: 0.841621, 0.9: 1.281552}


def test_without_drift_the_chance_is_the_error() -> None:
    for spending in ("obrien_fleming", "pocock"):
        critical = sequential.boundaries([k / 7 for k in range(1, 8)], 0.03, spending)  # type: ignore[arg-type]
        assert sizes.sequential_power(0.0, critical) == pytest.approx(0.03, abs=1e-8)


@given(
    scale=st.floats(1e-6, 1e6),
    d=st.floats(0.05, 1.0),
    power=st.sampled_from([0.5, 0.8, 0.95]),
    share=st.floats(0.1, 0.9),
    rule=st.sampled_from(["fixed", "always_valid", "group_sequential"]),
    sides=st.sampled_from([1, 2]),
)
def test_units_and_effect_are_each_others_inverse_in_any_unit(
    scale: float, d: float, power: float, share: float, rule: str, sides: int
) -> None:
    test = Question(0.05, 1 if sides == 1 else 2, rule=rule, looks=4, tightest_at=2_000)
    shares = (share, 1 - share)
    total = sizes.observations(d, Baseline(1, 1.0), shares, test, power)
    assert sizes.observations(scale * d, Baseline(scale, scale**2), shares, test, power) == pytest.approx(
        total, rel=1e-6
    )
    found = sizes.smallest(total, Baseline(scale, scale**2), shares, test, power)
    assert found == pytest.approx(scale * d, rel=1e-6)
    more = sizes.observations(d, Baseline(1, 1.0), shares, replace(test, alpha=0.05 / 3), power)
    assert more > total
    if rule != "fixed":
        assert total >= sizes.observations(d, Baseline(1, 1.0), shares, Question(0.05, test.sides), power) * (1 - 1e-9)


def test_a_share_goes_no_further_than_all_or_none() -> None:
    baseline = Baseline(0.9, 0.09, binary=True)
    assert sizes.smallest(20, baseline, EVEN, Question(0.05), 0.8) is None
    with pytest.raises(ValueError, match=r"cannot rise by 0\.2: it would be 1\.1"):
        sizes.observations(0.2, baseline, EVEN, Question(0.05), 0.8)
    assert sizes.smallest(3, Baseline(1, 1), EVEN, Question(0.05), 0.8) is None


@given(new=st.lists(st.integers(0, 50), min_size=1, max_size=40), day=st.floats(0.5, 80))
def test_days_until_so_many_came_is_the_inverse_of_how_many_came(new: list[int], day: float) -> None:
    counts = tuple(np.cumsum(new).tolist())
    came, beyond = sizes.arrived(counts, day)
    assert beyond == (day > len(counts))
    back, _ = sizes.days_until(counts, came)
    if back is not None and came > 0:
        assert sizes.arrived(counts, back)[0] == pytest.approx(came, rel=1e-9)
        assert back <= day * (1 + 1e-9)


# ---------------------------------------------------------------- experiments run at the planned size


def make_design(
    experiment: dict[str, Any], metric: dict[str, Any], part: str = "primary", **more: Any
) -> ExperimentDesign:
    base = {"assignment": {"source": "seen", "variant": "arm", "control": "old", "split": {"old": 1, "new": 1}}}
    declared = Experiment.model_validate({**base, **experiment})
    made = nouns.ProjectSpec.model_validate({"version": 1, "project": "p", "metrics": {"y": metric}}).metrics["y"]
    use = MetricUse("y", made, part, timedelta(days=7), timedelta(days=7) if declared.adjust else None)
    return ExperimentDesign("x", declared, "seen", "user", (use,), **more)


def make_data(m: Moments, covariates: tuple[str, ...] = (), units: int | None = None) -> ArmsData:
    arm = planning.ARM
    n = m.n if units is None else units
    numbers = MetricMoments(
        {arm: m}, {arm: 0}, {arm: n}, {arm: 0}, (None,), covariates=covariates, units={} if units is None else {arm: n}
    )
    cluster = None if units is None else ClusterProfile({arm: m.n}, 0, 0, 0, 0.0)
    return ArmsData(
        {arm: n}, 0, {}, n, 0, 0, 0, "user_id", 0, 0, 0, {"y": numbers}, {}, {}, (), cluster=cluster
    )  # fmt: skip


def plan_of(design: ExperimentDesign, data: ArmsData, by_unit: ArmsData | None = None, **asked: Any) -> Plan:
    days = tuple(1_000 * (d + 1) for d in range(28))
    came = Arrivals(days, tuple(d // 10 for d in days))
    found = Pretended("seen", None, None, None, 28)
    return planning.plan(design, Ask.of(design, **asked), found, data, by_unit, came)


def share_found(
    arms: dict[str, int], draw: Callable[[int, bool], Array], found: Callable[[Moments, Moments], bool], runs: int
) -> float:
    hits = sum(found(Moments.of(draw(arms["new"], True)), Moments.of(draw(arms["old"], False))) for _ in range(runs))
    return hits / runs


def near(share: float, power: float, runs: int) -> bool:
    """Within four standard errors of the simulation, and what a history of 200,000 units leaves uncertain of the size."""
    return abs(share - power) < 4 * math.sqrt(power * (1 - power) / runs) + 0.005


def significant(t: compare.Level, c: compare.Level) -> bool:
    low, high = compare.difference(t, c).interval(0.95)
    return low > 0 or high < 0


RUNS = 2_000
COUNT = {"kind": "sum", "from": "orders", "column": "amount"}
RATIO = {"kind": "ratio", "numerator": {"sum": "orders.amount"}, "denominator": {"count": "orders"}}
CONVERSION = {"kind": "conversion", "to": {"source": "orders", "where": "amount > 1"}}


def test_power_of_a_skewed_mean(rng: Rng) -> None:
    def draw(n: int, treated: bool) -> Array:
        return rng.gamma(0.5, 2.0, n) + 0.3 * treated

    asked = (
        plan_of(make_design({}, COUNT), make_data(Moments.of(rng.gamma(0.5, 2.0, 200_000))), mde=0.3).metrics[0].asked
    )
    assert asked is not None
    hit = share_found(
        dict(asked.arms), draw, lambda t, c: significant(compare.mean_level(t), compare.mean_level(c)), RUNS
    )
    assert near(hit, 0.8, RUNS)


def test_power_of_a_ratio_with_arms_of_unequal_size(rng: Rng) -> None:
    def draw(n: int, treated: bool) -> Array:
        rows = rng.poisson(3, n) + 1.0
        each = rng.normal(5 + 0.35 * treated, 1.0, n)
        return np.column_stack([each * rows, rows])

    design = make_design(
        {"assignment": {"source": "seen", "variant": "arm", "control": "old", "split": {"old": 1, "new": 4}}}, RATIO
    )
    asked = plan_of(design, make_data(Moments.of(draw(200_000, False))), lift="7%", power=0.9).metrics[0].asked
    assert asked is not None
    assert asked.arms["new"] == pytest.approx(4 * asked.arms["old"], abs=4)
    hit = share_found(
        dict(asked.arms), draw, lambda t, c: significant(compare.ratio_level(t), compare.ratio_level(c)), RUNS
    )
    assert near(hit, 0.9, RUNS)


def test_power_of_a_conversion_whose_variance_moves_with_it(rng: Rng) -> None:
    def draw(n: int, treated: bool) -> Array:
        return (rng.random(n) < (0.10 if treated else 0.05)).astype(float)

    asked = plan_of(make_design({}, CONVERSION), make_data(Moments.of(draw(200_000, False))), mde=0.05).metrics[0].asked
    assert asked is not None
    hit = share_found(
        dict(asked.arms), draw, lambda t, c: significant(compare.mean_level(t), compare.mean_level(c)), RUNS
    )
    assert near(hit, 0.8, RUNS)


def test_power_of_an_adjusted_mean_needs_fewer_units(rng: Rng) -> None:
    def draw(n: int, treated: bool) -> Array:
        before = rng.gamma(2.0, 1.0, n)
        return np.column_stack([before + rng.normal(0, 1, n) + 0.25 * treated, before])

    def found(t: Moments, c: Moments) -> bool:
        a = adjusted_levels({"new": t, "old": c})
        low, high = compare.difference(
            a.levels["new"], a.levels["old"], covariance=a.covariance["new", "old"]
        ).interval()
        return low > 0 or high < 0

    design = make_design({"adjust": "cuped"}, COUNT)
    metric = plan_of(design, make_data(Moments.of(draw(200_000, False)), ("y before exposure",)), mde=0.25).metrics[0]
    assert metric.asked is not None
    assert metric.r2 == pytest.approx(2 / 3, abs=0.01)
    assert metric.asked.units == pytest.approx(metric.asked.plain_units / 3, rel=0.03)
    assert "adjusting for the 7 days before saves two thirds of the units" in metric.sentence
    assert near(share_found(dict(metric.asked.arms), draw, found, RUNS), 0.8, RUNS)


def test_power_to_exclude_harm_beyond_a_margin(rng: Rng) -> None:
    def draw(n: int, treated: bool) -> Array:
        return rng.gamma(2.0, 1.0, n)

    design = make_design({}, {**COUNT, "margin": 0.2, "direction": "down"}, part="guardrail")
    metric = plan_of(design, make_data(Moments.of(draw(200_000, False)))).metrics[0]
    assert metric.asked is not None
    assert metric.question == "non-inferiority"
    assert metric.sentence.startswith("To exclude harm beyond $0.20 in y, where there is none, with 80% power takes ")

    def found(t: Moments, c: Moments) -> bool:  # down is better: harm is the upper end
        return compare.difference(compare.mean_level(t), compare.mean_level(c)).interval(0.95)[1] < 0.2

    assert near(share_found(dict(metric.asked.arms), draw, found, RUNS), 0.8, RUNS)


def clustered(rng: Rng, clusters: int, treated: bool) -> tuple[Array, Array]:
    """(cluster totals with sizes, unit values): sizes differ, and a cluster's units share half a unit's variance."""
    sizes = rng.integers(1, 20, clusters)
    of = np.repeat(np.arange(clusters), sizes)
    y = rng.normal(10, 1, clusters)[of] + rng.normal(0, 1, len(of)) + 0.4 * treated
    return np.column_stack([np.bincount(of, y), sizes]), y


def test_power_of_clusters(rng: Rng) -> None:
    totals, y = clustered(rng, 40_000, False)
    design = make_design({"cluster": "account"}, COUNT)
    data, by_unit = make_data(Moments.of(totals), units=len(y)), make_data(Moments.of(y))
    metric = plan_of(design, data, by_unit, mde=0.4).metrics[0]
    assert metric.asked is not None
    assert metric.clusters is not None
    assert metric.clusters.icc == pytest.approx(0.5, abs=0.02)
    sizes = totals[:, 1]
    expected = compare.design_effect(sizes.mean(), sizes.std() / sizes.mean(), 0.5)
    assert metric.clusters.design_effect == pytest.approx(expected, rel=0.03)
    assert metric.asked.clusters is not None
    assert metric.asked.units == pytest.approx(10 * metric.asked.clusters, rel=0.02)
    half = metric.asked.clusters // 2

    def draw(n: int, treated: bool) -> Array:
        return clustered(rng, n, treated)[0]

    hit = share_found(
        {"new": half, "old": half},
        draw,
        lambda t, c: significant(compare.ratio_level(t), compare.ratio_level(c)),
        RUNS,
    )
    assert near(hit, 0.8, RUNS)


@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
def test_power_of_a_group_sequential_design(rng: Rng, spending: str) -> None:
    """z at five equally spaced looks, with the planned units at the last: it is found at one of them with the power asked."""
    stop = {"rule": "group_sequential", "n": 5_000, "looks": 5, "spending": spending, "mde": 0.1}
    metric = plan_of(make_design({"stop": stop}, COUNT), make_data(Moments.of(rng.standard_normal(200_000)))).metrics[0]
    assert metric.asked is not None
    assert metric.asked.units > metric.asked.fixed_units
    assert "being free to look earlier costs" in metric.sentence
    critical = sequential.boundaries([0.2, 0.4, 0.6, 0.8, 1.0], 0.05, spending)  # type: ignore[arg-type]
    runs, per_look = 40_000, metric.asked.units / 2 / 5
    steps = rng.normal(0.1, math.sqrt(2 / per_look), (runs, 5))
    looks = np.arange(1, 6)
    z = steps.cumsum(axis=1) / looks / np.sqrt(2 / (per_look * looks))
    assert near(float((np.abs(z) > critical).any(axis=1).mean()), 0.8, runs)
    assert metric.planned_power is not None
    at_declared = sizes.power_at(
        0.1,
        5_000,
        Baseline(0, 1.0),
        EVEN,
        Question(0.05, rule="group_sequential", looks=5, spending=spending),
        0.8,  # type: ignore[arg-type]
    )
    assert metric.planned_power == pytest.approx(at_declared, abs=0.01)


def test_power_of_an_always_valid_design(rng: Rng) -> None:
    stop = {"rule": "always_valid", "tightest_at": 3_000, "mde": 0.1}
    metric = plan_of(make_design({"stop": stop}, COUNT), make_data(Moments.of(rng.standard_normal(200_000)))).metrics[0]
    assert metric.asked is not None
    assert "being free to look at any time costs" in metric.sentence
    runs, n = 40_000, metric.asked.units
    se = math.sqrt(4 / n)
    value = rng.normal(0.1, se, runs)
    half = sequential.always_valid(0, se, n, 3_000, 0.95, design_alpha=0.05)[1]
    assert near(float((np.abs(value) > half).mean()), 0.8, runs)


def test_several_primary_questions_are_planned_at_the_first_step_of_holm(rng: Rng) -> None:
    three = {"source": "seen", "variant": "arm", "control": "old", "split": {"old": 2, "new": 1, "other": 1}}
    data = make_data(Moments.of(rng.standard_normal(10_000)))
    plan = plan_of(make_design({"assignment": three}, COUNT), data, mde=0.1)
    metric = plan.metrics[0]
    assert (metric.questions, metric.alpha) == (2, 0.025)
    assert metric.asked is not None
    wanted = compare.required_n(0.1, metric.variance, metric.variance, treatment_share=1 / 3, level=0.975)
    assert metric.asked.arms["new"] == metric.asked.arms["other"] == pytest.approx(wanted.treatment, abs=1)
    assert metric.asked.arms["old"] == pytest.approx(wanted.control, abs=1)
    assert any("2 primary questions" in note and "0.025" in note for note in plan.notes)


# ---------------------------------------------------------------- what is asked


def test_what_cannot_be_asked() -> None:
    design = make_design({}, COUNT)
    for options, said in (
        ({"mde": 0.0}, "must be above zero, not 0"),
        ({"mde": -2.0}, "must be above zero, not -2"),
        ({"mde": math.nan}, "must be above zero"),
        ({"mde": 1.0, "lift": 0.1}, "give one of them"),
        ({"lift": "-5%"}, "must be above zero, not -5%"),
        ({"lift": "much"}, "such as 5% or 0.05"),
        ({"lift": 5}, r"write 5% or 0.05, or 500% if you mean it"),
        ({"weeks": 0}, "from 1 to 520"),
        ({"weeks": 2.5}, "from 1 to 520"),
        ({"power": 1.0}, "cannot be 1"),
        ({"power": 0.01}, "chance alone"),
        ({"history": "some"}, "such as 28d"),
        ({"history": "1h"}, "from one day to ten years"),
    ):
        with pytest.raises(UsageError, match=said):
            Ask.of(design, **options)  # type: ignore[arg-type]
    assert Ask.of(design, lift="5%").lift == Ask.of(design, lift=0.05).lift == 0.05
    assert Ask.of(design, lift="150%").lift == 1.5
    stop = {"rule": "fixed", "mde": 2, "power": 0.9}
    declared = Ask.of(make_design({"stop": stop}, COUNT))
    assert (declared.mde, declared.power) == (2, 0.9)
    assert Ask.of(make_design({"stop": stop}, COUNT), lift=0.1).mde is None


def test_an_effect_that_cannot_be_is_refused(rng: Rng) -> None:
    with pytest.raises(UsageError, match=r"cannot rise by 0\.7"):
        plan_of(make_design({}, CONVERSION), make_data(Moments.of((rng.random(1_000) < 0.4) * 1.0)), mde=0.7)
    with pytest.raises(UsageError, match="not clearly above zero"):
        plan_of(make_design({}, COUNT), make_data(Moments.of(rng.standard_normal(1_000))), lift=0.1)
    with pytest.raises(UsageError, match=r"below 10\^15"):
        plan_of(make_design({}, COUNT), make_data(Moments.of(rng.standard_normal(1_000))), mde=1e-9)
    with pytest.raises(DataError, match="all 50 units have the same value"):
        plan_of(make_design({}, COUNT), make_data(Moments.of(np.ones(50))), mde=1)


def test_units_without_a_value_are_counted_in(rng: Rng) -> None:
    data = make_data(Moments.of(rng.standard_normal(5_000)))
    half = replace(
        data, exposed={"history": 10_000}, metrics={"y": replace(data.metrics["y"], eligible={"history": 10_000})}
    )
    full, thin = (plan_of(make_design({}, COUNT), d, mde=0.1).metrics[0].asked for d in (data, half))
    assert full is not None
    assert thin is not None
    assert thin.units == pytest.approx(2 * full.units, abs=4)


def test_every_option_is_in_both_python_and_the_command_line() -> None:
    from payoff import cli

    python = set(inspect.signature(Project.power).parameters) - {"self", "progress"}
    command = set(inspect.signature(cli.power).parameters) - {"project", "json_", "quiet"}
    assert python == command


# ---------------------------------------------------------------- from a project's own tables

TABLES = """
    CREATE TABLE visits AS SELECT hash(i) % 1000 AS user_id, hash(i) % 100 AS account_id,
        TIMESTAMP '2026-01-01' + INTERVAL (i * 97) SECOND AS t
      FROM range(60000) r(i);
    CREATE TABLE orders AS SELECT hash(-i) % 1000 AS user_id, TIMESTAMP '2026-01-01' + INTERVAL (i * 293) SECOND AS t,
        hash(-i) % 1000 / 100.0 + i * 7 % 11 AS amount
      FROM range(20000) r(i);
    CREATE TABLE exposures (user_id INTEGER, account_id INTEGER, t TIMESTAMP, arm VARCHAR);
    CREATE TABLE customers AS SELECT i AS id, CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END AS arm, i % 17 AS spend
      FROM range(1000) r(i);
"""
DEFINITIONS = """
    sources:
      exposures: {table: exposures, time: t, entity: {user: user_id, account: account_id}}
      visits:    {table: visits, time: t, entity: {user: user_id, account: account_id}}
      orders:    {table: orders, time: t, entity: {user: user_id}}
      customers: {table: customers, one_row_per: user, id: id}
    metrics:
      revenue: {kind: sum, from: orders, column: amount, window: 7d}
      visited: {kind: count, from: visits, window: 7d, margin: 0.5}
      bought:  {kind: conversion, to: orders, window: 7d}
      spend:   {kind: mean, from: customers, column: spend}
    experiments:
      x:
        entity: user
        assignment: {source: exposures, variant: arm, control: old, split: {old: 1, new: 1}}
        primary: revenue
        guardrails: [visited]
        adjust: cuped
        stop: {rule: fixed, mde: 0.5}
      accounts:
        entity: user
        cluster: account
        assignment: {source: exposures, variant: arm, control: old}
        primary: revenue
        secondary: [visited]
      static:
        entity: user
        assignment: {source: customers, variant: arm, control: a}
        primary: spend
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("power"), DEFINITIONS, TABLES)


def test_an_experiment_without_exposures_is_planned_where_its_units_were_seen(project: Project) -> None:
    import duckdb

    plan = project.experiments["x"].power(history="14d")
    assert plan.source == "visits"  # not orders, of which revenue counts every row
    with duckdb.connect(str(project.root / "data.duckdb"), read_only=True) as c:
        end, seen = c.execute(
            "SELECT greatest((SELECT max(t) FROM visits), (SELECT max(t) FROM orders)), (SELECT max(t) FROM visits)"
        ).fetchone()  # type: ignore[misc]
        closes = min(end - timedelta(days=7), seen)
        rows = c.execute(
            """
            WITH first AS (SELECT user_id, min(t) AS t0 FROM visits WHERE t >= $a AND t < $b GROUP BY 1)
            SELECT coalesce(sum(amount) FILTER (o.t >= t0 AND o.t < t0 + INTERVAL 7 DAY), 0),
                   coalesce(sum(amount) FILTER (o.t >= t0 - INTERVAL 7 DAY AND o.t < t0), 0), any_value(t0)
            FROM first LEFT JOIN orders o USING (user_id) GROUP BY user_id
            """,
            {"a": closes - timedelta(days=14), "b": closes},
        ).fetchall()
    after, before = (np.array([float(r[i]) for r in rows]) for i in (0, 1))
    revenue, visited = plan.metrics
    assert revenue.n == plan.units == len(rows)
    assert revenue.value == pytest.approx(after.mean())
    assert revenue.variance == pytest.approx(after.var(ddof=1))
    r = np.corrcoef(after, before)[0, 1]
    assert revenue.r2 == pytest.approx(max(0.0, 1 - (1 - r * r) * (len(rows) - 1) / (len(rows) - 2)))
    assert visited.question == "non-inferiority"
    assert revenue.asked is not None
    sizes = compare.required_n(0.5, *[revenue.variance * (1 - revenue.r2)] * 2)
    assert revenue.asked.units == sizes.total
    assert [s.week for s in revenue.steps] == list(range(1, 13))
    assert revenue.steps[-1].extrapolated
    assert not revenue.steps[0].extrapolated
    assert plan.exit_code == 0
    assert plan.sentence.startswith("To find a rise of $0.50 (")
    assert "new users by day" in [step for step, _ in plan.sql]


def test_weeks_are_those_until_enough_units_came_and_the_window(project: Project) -> None:
    plan = project.experiments["x"].power(mde=5, source="visits", history="4w")
    asked = plan.metrics[0].asked
    assert asked is not None
    assert asked.days is not None
    assert not asked.extrapolated
    assert asked.weeks == pytest.approx((asked.days + 7) / 7)
    # every user visits within the first days, so there is nobody left for a third week
    with_all = project.experiments["x"].power(mde=0.01, history="4w").metrics[0].asked
    assert with_all is not None
    assert with_all.weeks is None
    assert "no new unit came in the last week" in with_all.no_weeks


def test_the_source_of_history_can_be_chosen_and_what_it_does_is_said(project: Project) -> None:
    plan = project.experiments["x"].power(source="orders")
    assert plan.source == "orders"
    assert any("every row of 'orders' counts for it" in note for note in plan.metrics[0].notes)
    with pytest.raises(UsageError, match="there is no source 'order'; did you mean 'orders'"):
        project.experiments["x"].power(source="order")
    with pytest.raises(DataError, match="no history to plan from: 'exposures' has no row of a user"):
        project.experiments["x"].power(source="exposures")


def test_a_primarys_own_source_comes_before_others_unless_being_seen_there_counts() -> None:
    def ranks(metric: dict[str, Any]) -> dict[str, int]:
        design = make_design({}, metric)
        return {c.source: c.rank for c in planning.candidates(design, ["answers", "orders", "seen"], Ask.of(design))}

    assert ranks(COUNT) == {"seen": 0, "answers": 3, "orders": 4}
    assert ranks({**COUNT, "where": "amount > 1"}) == ranks(RATIO) == {"seen": 0, "orders": 2, "answers": 3}
    design = make_design({}, COUNT)
    assert [c.source for c in planning.candidates(design, ["seen"], Ask.of(design, source="orders"))] == ["orders"]


def test_clusters_of_a_project(project: Project) -> None:
    plan = project.experiments["accounts"].power(lift=0.2)
    metric = plan.metrics[0]
    assert plan.source == "visits"
    assert metric.clusters is not None
    assert metric.clusters.mean_size == pytest.approx(10, rel=0.05)
    assert metric.asked is not None
    assert metric.asked.clusters == pytest.approx(metric.asked.units / metric.clusters.mean_size, abs=1)
    assert any("No split is declared" in note for note in plan.notes)


def test_a_table_without_time_is_its_own_history_and_has_no_weeks(project: Project) -> None:
    plan = project.experiments["static"].power(lift="5%")
    metric = plan.metrics[0]
    assert (plan.units, plan.days, plan.per_week) == (1_000, 0, None)
    assert metric.asked is not None
    assert metric.asked.weeks is None
    assert metric.asked.no_weeks == "'customers' has no time, so it does not tell how many units a week brings"
    assert [(s.week, s.units) for s in metric.steps] == [(None, 1_000)]
    assert "in how many weeks is not known" in plan.sentence


def test_too_short_a_history_says_so(project: Project) -> None:
    stretched = DEFINITIONS.replace("window: 7d", "window: 90d")
    long = make_project(project.root.parent / "long", stretched, TABLES)
    with pytest.raises(DataError, match="the history is too short: users were seen from 2026-01-01"):
        long.experiments["x"].power()
    early = make_project(
        project.root.parent / "early",
        DEFINITIONS.replace("primary: revenue\n", "starts: 2025-06-01\n        primary: revenue\n", 1),
        TABLES,
    )
    with pytest.raises(DataError, match=r"before the experiment starts \(2025-06-01\)"):
        early.experiments["x"].power()


OTHERS = """
    sources:
      seen:   {table: visits, time: t, entity: {user: user_id}}
      orders: {table: orders, time: t, entity: {user: user_id}}
      absent: {table: absent, time: t, entity: {user: user_id}}
    attributes:
      account: {column: account_id, cuts: [30, 60]}
    metrics:
      revenue: {kind: sum, from: orders, column: amount, window: 7d}
      p90:     {kind: quantile, from: orders, column: amount, q: 0.9, window: 7d}
      back:    {kind: retention, to: {source: orders, where: amount > 9}, at: 2d, within: 2d}
    experiments:
      where:
        assignment: {source: seen, where: user_id > 5000, variant: "'a'", control: a}
        secondary: [revenue, p90, back]
      trigger:
        assignment: {source: seen, variant: "'a'", control: a}
        primary: revenue
        trigger: {source: orders, where: amount > 15}
        adjust: {attributes: [account]}
      strata:
        assignment: {source: seen, variant: "'a'", control: a}
        primary: revenue
        adjust: {post_stratify: account}
      regions:
        type: switchback
        assignment: {source: seen, variant: "'a'", control: a}
        period: 2d
        primary: revenue
      later:
        assignment: {source: absent, variant: "'a'", control: a}
        primary: back
"""


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("others"), OTHERS, TABLES, "defaults: {entity: user}\n")


def test_an_assignment_whose_where_has_no_rows_yet(others: Project) -> None:
    plan = others.experiments["where"].power(lift="10%", history="2w")
    assert plan.source == "seen"
    assert any("without it" in note for note in plan.notes)
    assert [m.metric for m in plan.metrics] == ["revenue", "p90", "back"]
    assert all(m.asked is not None and m.asked.units > 0 for m in plan.metrics)
    assert {m.questions for m in plan.metrics} == {1}
    assert any("Benjamini and Hochberg" in note for note in plan.notes)


def test_with_a_trigger_all_that_are_assigned_are_counted(others: Project) -> None:
    plan = others.experiments["trigger"].power(mde=2, history="4w")
    asked = plan.metrics[0].asked
    assert asked is not None
    share = float(next(n for n in plan.notes if "trigger" in n).split("%")[0]) / 100
    assert 0.3 < share < 0.6
    variance = plan.metrics[0].variance * (1 - plan.metrics[0].r2)
    assert asked.units == pytest.approx(compare.required_n(2, variance, variance).total / share, rel=2e-3)


def test_strata_explain_what_they_explain(others: Project) -> None:
    metric = others.experiments["strata"].power(mde=2, history="4w").metrics[0]
    assert metric.covariates == ("account",)
    assert metric.asked is not None
    assert 0 <= metric.r2 < 0.2
    assert metric.asked.units == pytest.approx(metric.asked.plain_units * (1 - metric.r2), abs=3)


def test_a_switchback_counts_periods_of_units(others: Project) -> None:
    plan = others.experiments["regions"].power(mde=1, history="4w")
    asked = plan.metrics[0].asked
    assert asked is not None
    assert "user-periods" in plan.sentence
    assert plan.units > 5_000  # 1,000 users seen in most of 14 periods
    assert asked.weeks is not None
    assert asked.days is not None
    assert asked.weeks == pytest.approx((asked.days + 2) / 7)


def test_an_assignment_that_does_not_exist_yet_needs_a_source(others: Project) -> None:
    with pytest.raises(DataError, match="source 'absent'"):
        others.experiments["later"].power()
    plan = others.experiments["later"].power(source="seen")
    assert plan.source == "seen"
    assert 0 < plan.metrics[0].value < 1


def test_small_groups_are_not_shown(project: Project) -> None:
    few = make_project(project.root.parent / "few", DEFINITIONS, TABLES, "defaults: {min_cell: 5000}\n")
    with pytest.raises(DataError, match="only 1,000 units with a closed window"):
        few.experiments["x"].power()


def test_nothing_after_the_start_is_history(project: Project) -> None:
    begun = DEFINITIONS.replace("primary: revenue\n", "starts: 2026-02-15\n        primary: revenue\n", 1)
    tables = f"""{TABLES}
        INSERT INTO exposures SELECT user_id, account_id, t, 'new' FROM visits WHERE t >= '2026-02-15';
        UPDATE orders SET amount = 1000 WHERE t >= '2026-02-15'"""
    same = make_project(project.root.parent / "begun", begun, tables)
    plan = same.experiments["x"].power(history="2w")
    assert plan.source == "visits"
    assert plan.ends is not None
    assert "2026-02-07" <= plan.ends <= "2026-02-08T00:00:00Z"
    assert plan.metrics[0].value < 100
    with pytest.raises(DataError, match="'exposures' has no row of a user before the experiment starts"):
        same.experiments["x"].power(source="exposures")


def test_names_that_are_not_experiments(project: Project) -> None:
    with pytest.raises(UsageError, match="'y' is not an experiment"):
        project.power("y")
    assert isinstance(project.experiments["x"], Asked)


def run_cli(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "payoff", "power", *options, "-p", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_verb_and_python_say_the_same(project: Project) -> None:
    shown = run_cli(project.root, "x", "--json", "--lift", "20%", "--history", "2w", "--weeks", "14", "--power", "0.9")
    assert shown.returncode == 0, shown.stderr
    ours = project.power("x", lift=0.2, history=timedelta(days=14), weeks=14, power=0.9)
    told, known = (m["steps"] for m in (json.loads(shown.stdout)["metrics"][0], ours.to_dict()["metrics"][0]))
    assert [s["units"] for s in told] == [s["units"] for s in known]
    assert [s["mde"] for s in told] == pytest.approx([s["mde"] for s in known])  # sums made in parallel
    assert json.loads(shown.stdout).keys() == ours.to_dict().keys()
    assert len(ours.metrics[0].steps) == 14
    text = run_cli(project.root, "x", "--lift", "20%", "--history", "2w")
    assert " ".join(text.stdout.split()).startswith("To find a rise of $")
    assert "exclude harm" in text.stdout
    failed = run_cli(project.root, "x", "--json", "--mde", "-1")
    assert failed.returncode == 2
    assert json.loads(failed.stdout)["error"] == "UsageError"
    assert run_cli(project.root, "x", "--source", "exposures").returncode == 3


def test_a_primary_that_cannot_be_planned_for_is_refused_and_the_rest_is_not(project: Project) -> None:
    folder = project.root.parent / "bought"
    other = make_project(
        folder, DEFINITIONS.replace("primary: revenue", "primary: bought", 1).replace("mde: 0.5", "mde: 0.05"), TABLES
    )
    plan = other.experiments["x"].power(source="orders")
    assert plan.exit_code == 1
    assert [r.name for r in plan.refusals] == ["experiments.x.bought"]
    assert "--source" in plan.refusals[0].remedy
    assert [m.metric for m in plan.metrics] == ["visited"]
    assert "cannot be planned for" in plan.sentence
    assert run_cli(folder, "x", "--source", "orders").returncode == 1

"""Attribution as a run gives it: credit with intervals, arm against arm, held against an experiment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from payoff.estimate import Estimate
from payoff.methods.attribution import AttributionMethod
from payoff.methods.attribution.words import model_words
from payoff.result import Check, Refusal, Result
from payoff.run import Project
from tests.builders import make_project

DEFINITIONS = """
    entities: {{user: {{}}}}
    sources:
      seen:   {{table: seen, time: t, id: id, entity: {{user: u}}}}
      orders: {{table: orders, time: t, id: id, entity: {{user: u}}}}
      shown:  {{table: shown, time: t, entity: {{user: u}}}}
      spent:  {{table: spent, time: t}}
    touchpoints:
      recs:   {{source: seen, where: "surface = 'recs'", personalised: "chosen"{recs}}}
      search: {{source: seen, where: "surface = 'search'", personalised: "chosen", cost: "0.5"}}
      paid:   {{source: seen, where: "surface = 'paid'", cost: {{source: spent, column: amount}}}}
      typed:  {{source: seen, where: "surface = 'typed'", direct: true}}
    attribution:
      shop:
        conversion: {{event: orders, value: amount}}
        touchpoints: [recs, search, paid, typed]
        window: 10d
        models: [last, first, linear, last_non_direct, participation, shapley, ordered_shapley, markov]
        {more}
    experiments:
      holdout:
        type: holdout
        assignment: {{source: shown, variant: arm, control: generic}}
        primary: spend
      only_recs:
        assignment: {{source: shown, variant: "CASE WHEN length(u) % 2 = 0 THEN 'on' ELSE 'off' END", control: 'off'}}
        primary: spend
    metrics:
      spend: {{kind: sum, from: orders, column: amount, window: 20d}}
"""
TABLES = """
    CREATE TABLE shown AS
    SELECT 'u' || i AS u, TIMESTAMP '2026-01-01' AS t, CASE WHEN hash(i) % 2 = 0 THEN 'personal' ELSE 'generic' END AS arm
    FROM range({users}) r(i);
    CREATE TABLE seen AS
    SELECT row_number() OVER () AS id, s.u, TIMESTAMP '2026-01-01' + to_hours(CAST(hash(s.u, k) % 300 AS INT)) AS t,
           CASE hash(k, s.u, 1) % 4 WHEN 0 THEN 'recs' WHEN 1 THEN 'search' WHEN 2 THEN 'paid' ELSE 'typed' END AS surface,
           s.arm = 'personal' AND hash(k, s.u, 3) % 4 > 0 AS chosen
    FROM shown s, range(6) q(k) WHERE hash(s.u, k, 2) % 3 > 0;
    CREATE TABLE orders AS
    SELECT row_number() OVER () AS id, s.u, TIMESTAMP '2026-01-01' + to_hours(CAST(100 + hash(s.u, k, 9) % 260 AS INT)) AS t,
           10.0 + hash(s.u, k, 5) % 40 AS amount
    FROM shown s, range(2) q(k) WHERE hash(s.u, k, 4) % 100 < CASE WHEN s.arm = 'personal' THEN 36 ELSE 30 END;
    CREATE TABLE spent AS SELECT TIMESTAMP '2026-01-05' AS t, 400.0 AS amount;
"""


def shop(folder: Path, more: str = "", recs: str = "", users: int = 3000, extra: str = "", root: str = "") -> Project:
    text = DEFINITIONS.format(more=more, recs=recs)
    return make_project(folder, text, TABLES.format(users=users) + extra, root)


def answered(project: Project) -> Result:
    (found,) = [r for r in project.run(["attribution.shop"], record=False).results if r.method == "attribution"]
    return found


def cells(result: Result, estimand: str) -> dict[tuple[str, str], Estimate]:
    return {
        (str(e.labels["model"]), str(e.labels["touchpoint"])): e for e in result.estimates if e.estimand == estimand
    }


def check(result: Result, name: str) -> Check:
    return next(c for c in result.checks if c.name == name)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return answered(shop(tmp_path_factory.mktemp("plain")))


# ---------------------------------------------------------------- credit


def test_credit_and_the_unattributed_are_the_total(plain: Result) -> None:
    for estimand in ("attributed conversions", "attributed value", "share of conversions", "share of value"):
        found = cells(plain, estimand)
        for model in ("last", "first", "linear", "last_non_direct", "shapley", "ordered_shapley", "markov"):
            parts = sum(e.value for (m, t), e in found.items() if m == model and t != "(total)")
            whole = 1.0 if estimand.startswith("share") else found[model, "(total)"].value
            assert parts == pytest.approx(whole), (estimand, model)
    assert (
        cells(plain, "attributed value")["participation", "recs"].value
        > cells(plain, "attributed value")["shapley", "recs"].value
    )


def test_every_figure_has_an_interval_that_holds_it(plain: Result) -> None:
    for e in plain.estimates:
        assert e.low <= e.value <= e.high
        assert e.low < e.high, e.contrast
        assert e.interval_kind == "bootstrap"
    assert len({(e.contrast, e.estimand) for e in plain.estimates}) == len(plain.estimates)
    assert (plain.verdict, plain.grade, plain.design) == ("descriptive", "D", "descriptive")


def test_the_sentence_says_attributed_and_never_caused(plain: Result) -> None:
    said = plain.finding + " ".join(c.detail for c in plain.checks)
    assert "attributed" in plain.finding
    assert not any(word in said.lower() for word in ("caused", "drove", "lift", "effect of"))
    assert plain.finding.startswith("By last touch, ")
    assert re.search(r"The models disagree most over \w+: [\d.]+ pp \([\d.]+ to [\d.]+ pp\) between ", plain.finding)
    assert plain.to_dict()["estimates"][0]["model"] == "last"


def test_every_check_is_there_and_named_in_the_docs(plain: Result) -> None:
    assert tuple(c.name for c in plain.checks) == AttributionMethod.checks
    page = (Path(__file__).parents[2] / "docs" / "methods" / "attribution.md").read_text()
    assert [name for name in AttributionMethod.checks if f"`{name}`" not in page] == []
    assert {a.tested_by for a in AttributionMethod.assumptions if a.tested_by} <= set(AttributionMethod.checks)


def test_return_and_cost_of_what_costs(plain: Result) -> None:
    value, count = cells(plain, "attributed value"), cells(plain, "attributed conversions")
    back, price = cells(plain, "attributed value per cost"), cells(plain, "cost per attributed conversion")
    assert {t for _, t in back} == {"search", "paid"}
    assert back["linear", "paid"].value == pytest.approx(value["linear", "paid"].value / 400)
    assert price["linear", "paid"].value == pytest.approx(400 / count["linear", "paid"].value)
    assert price["linear", "paid"].low == pytest.approx(400 / count["linear", "paid"].high, rel=1e-6)


def test_a_cost_of_less_than_one_is_not_called_nothing(tmp_path: Path) -> None:
    found = answered(shop(tmp_path, users=400, extra="UPDATE spent SET amount = 0.4;"))
    assert {e.labels["cost"] for (_, t), e in cells(found, "attributed value per cost").items() if t == "paid"} == {0.4}


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("last_non_direct", "last_non_direct", "last non-direct touch"),
        ("time_decay", "time_decay", "time decay"),
        ("time_decay 7d", "time_decay", "time decay 7d"),
        ("u_shaped", "position", "U-shape"),
        ("markov 2", "markov", "Markov 2"),
        ("my_decay", "time_decay", "my_decay"),
        ("last", "custom", "last"),
    ],
)
def test_a_model_is_called_in_words_and_a_declared_name_as_declared(name: str, kind: str, words: str) -> None:
    assert model_words(name, kind) == words


def test_intervals_are_those_of_units_and_not_of_conversions(plain: Result) -> None:
    """Units come as they come: the variance of a total is the sum of squares of what each brings."""
    found = cells(plain, "attributed conversions")["linear", "(total)"]
    share = found.value / 2 / 3000  # each unit has at most two orders, by chance alone
    variance = 3000 * (2 * share * (1 - share) + 4 * share**2)
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(np.sqrt(variance), rel=0.1)


def test_a_run_is_the_same_run_again(tmp_path: Path) -> None:
    project = shop(tmp_path, users=400)
    first, second = (answered(project) for _ in range(2))
    assert [(e.value, e.low, e.high) for e in first.estimates] == [
        (pytest.approx(e.value), pytest.approx(e.low), pytest.approx(e.high)) for e in second.estimates
    ]


# ---------------------------------------------------------------- too few


def test_those_of_too_few_units_are_taken_together(tmp_path: Path) -> None:
    extra = """
        INSERT INTO seen SELECT 100000 + i, 'u' || i, TIMESTAMP '2026-01-06', 'rare', true FROM range(12) r(i);
        INSERT INTO orders SELECT 100000 + i, 'u' || i, TIMESTAMP '2026-01-07', 20 FROM range(12) r(i);
    """
    text = DEFINITIONS.format(more="", recs="").replace("surface = 'paid'", "surface = 'rare'")
    root = "defaults: {min_cell: 30}\n"
    project = make_project(tmp_path, text, TABLES.format(users=3000) + extra, root)
    found = answered(project)
    shown = {t for _, t in cells(found, "attributed value")}
    assert "paid" not in shown
    # its neighbour goes with it: alone, what it is would be had by subtraction
    assert "(too few units)" in shown
    assert len({"recs", "search", "typed"} & shown) == 2
    assert "2 touchpoints of fewer than 30 units are taken together" in check(found, "channels").detail
    assert sum(e.value for (m, t), e in cells(found, "share of value").items() if m == "linear") == pytest.approx(1)


def test_a_rest_too_small_to_be_shown_is_not_told_by_shares(tmp_path: Path) -> None:
    extra = """
        INSERT INTO seen SELECT 100000 + id, u, t - INTERVAL 1 HOUR, 'typed', false FROM orders;
        INSERT INTO orders SELECT 100000 + i, 'stranger' || i, TIMESTAMP '2026-01-07', 20 FROM range(12) r(i);
    """
    found = answered(shop(tmp_path, extra=extra, root="defaults: {min_cell: 30}\n"))
    assert {e.estimand for e in found.estimates if e.estimand.startswith("share")} == set()
    assert {t for _, t in cells(found, "attributed value")} == {"recs", "search", "paid", "typed"}
    assert re.match(
        r"By last touch, \$[\d,.]+ \(95% interval .*\) of the value of orders is credited to typed;", found.finding
    )
    assert "%" not in found.finding.replace("95% interval", "")
    assert "nothing" not in found.finding
    (refusal,) = [r for r in found.refusals if r.name.endswith(" shares")]
    assert refusal.reason.startswith("fewer than 30 conversions have no touch")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("DELETE FROM orders;", "there are no conversions to credit in orders"),
        ("DELETE FROM seen;", "there is not one touch of recs, search, paid, typed"),
        ("UPDATE seen SET u = 'x' || u;", "conversions has a touch in the 10d before it"),
        ("UPDATE orders SET u = NULL;", "have no unit, and so no path"),
    ],
)
def test_nothing_to_credit_is_refused_with_a_remedy(tmp_path: Path, extra: str, said: str) -> None:
    run = shop(tmp_path, users=200, extra=extra).run(["attribution.shop"], record=False)
    (refusal,) = run.refusals
    assert isinstance(refusal, Refusal)
    assert said in refusal.reason
    assert refusal.remedy


def test_what_is_wrong_is_named_with_its_source_and_count(tmp_path: Path) -> None:
    extra = """
        INSERT INTO seen VALUES (900001, 'u1', TIMESTAMP '1960-01-01', 'recs', true), (900002, 'u1', TIMESTAMP '2100-01-01', 'recs', true),
               (900003, 'u1', NULL, 'recs', true);
        INSERT INTO seen SELECT * FROM seen WHERE id IN (1, 2);
        INSERT INTO orders SELECT 900000 + i, NULL, TIMESTAMP '2026-01-08', 5 FROM range(7) r(i);
        INSERT INTO orders VALUES (800000, 'u1', TIMESTAMP '2026-01-08', NULL);
    """
    found = answered(shop(tmp_path, users=400, extra=extra))
    assert (
        "1 rows of seen are dated before 1970; 1 rows of seen are dated in the future; 1 rows of seen are without a time"
        in check(found, "clock").detail
    )
    assert "2 rows of seen repeat an id" in check(found, "repeats").detail
    assert "7 conversions of orders have no unit" in check(found, "identity").detail
    assert "1 conversions of orders have no value" in check(found, "values").detail
    assert all(check(found, name).status == "warn" for name in ("clock", "repeats", "identity", "values"))
    assert found.left_out["rows of orders without a unit"] == 7


# ---------------------------------------------------------------- arms, and the experiment


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return answered(shop(tmp_path_factory.mktemp("held"), "reconcile_with: holdout", users=6000))


def test_arm_against_arm_is_a_difference_in_what_was_attributed(held: Result) -> None:
    found: dict[tuple[Any, Any], Estimate] = {
        (e.labels.get("model"), e.labels["touchpoint"]): e
        for e in held.estimates
        if e.estimand == "difference in attributed value per unit"
    }
    assert set(found) == {
        (None, "(total)"),
        *(
            (m, t)
            for m in ("last", "first", "linear", "last_non_direct", "participation", "shapley", "ordered_shapley")
            for t in ("recs", "search", "paid", "typed")
        ),
    }
    total = found[None, "(total)"]
    assert (total.contrast, total.unit) == ("personal vs generic", "USD/user")
    assert set(total.n) == {"personal", "generic"}
    assert sum(total.n.values()) == 6000
    assert total.low < total.value < total.high
    for model in ("last", "linear", "shapley", "ordered_shapley"):
        of = [found[model, t].value for t in ("recs", "search", "paid", "typed")]
        assert sum(of) == pytest.approx(total.value), model
    assert found["ordered_shapley", "recs"].value == pytest.approx(found["shapley", "recs"].value)


def test_credit_of_the_treated_is_rescaled_to_what_the_experiment_shows(held: Result) -> None:
    by_model = {r.model: r for r in held.closer.reconciliation}
    assert set(by_model) == {"last", "first", "linear", "last_non_direct", "shapley", "ordered_shapley"}
    for r in by_model.values():
        assert (r.experiment, r.contrast, r.metric, r.unit) == (
            "experiments.holdout",
            "personal vs generic",
            "value of orders",
            "USD",
        )
        tested = [row for row in r.rows if row.by == "holdout"]
        assert {row.touchpoint for row in tested} == {"recs", "search"}
        assert sum(row.incremental.value for row in tested if row.incremental) == pytest.approx(r.incremental.value)
        assert sum(row.attributed.value for row in tested) == pytest.approx(r.attributed.value)
        assert {row.by for row in r.rows} == {"holdout", "not personalised"}
        assert r.ratio is not None
        assert r.anyway is not None
        assert r.ratio.low < r.ratio.value < r.ratio.high
        assert r.anyway.value == pytest.approx(1 - r.incremental.value / r.attributed.value)
        assert r.units == held.estimates[-1].n["personal"]
    # what is attributed is far more than what treatment brought, as a fifth more orders do
    assert by_model["linear"].ratio is not None
    detail = check(held, "reconciled").detail
    assert "markov credits all paths together" in detail
    assert "participation gives every touchpoint the whole conversion" in detail
    assert by_model["linear"].sentence.startswith("by linear, $")


def test_a_touchpoint_with_its_own_test_takes_what_that_shows(tmp_path: Path) -> None:
    project = shop(tmp_path, "reconcile_with: holdout", recs=", experiment: only_recs", users=4000)
    found = answered(project)
    r = next(r for r in found.closer.reconciliation if r.model == "linear")
    by = {row.touchpoint: row for row in r.rows if row.by != "not personalised"}
    assert {name: row.by for name, row in by.items()} == {"recs": "own experiment", "search": "remainder"}
    assert sum(row.incremental.value for row in by.values() if row.incremental) == pytest.approx(r.incremental.value)
    assert "a test of its own" in r.rule
    # that test compares units by the length of their name: it shows nothing, which contradicts what recs is credited with
    assert "its own test shows" in by["recs"].conflict
    detail = check(found, "reconciled").detail
    assert "tests contradict the credit of " in detail
    assert "recs by linear" in detail


def test_an_experiment_that_says_nothing_leaves_credit_as_it_is(tmp_path: Path) -> None:
    found = answered(shop(tmp_path, "reconcile_with: holdout", users=600, extra="UPDATE shown SET arm = 'generic';"))
    assert found.closer.reconciliation == ()
    assert check(found, "reconciled").status == "warn"
    assert "the credit is not held against holdout" in check(found, "reconciled").detail
    assert any("another arm to compare" in r.reason for r in found.refusals)
    assert cells(found, "attributed value")

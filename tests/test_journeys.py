"""Journeys from end to end: asked for, planned, answered, kept, verified, and read by whoever reads the JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from payoff.cli import app
from payoff.errors import UsageError
from payoff.result import Result
from payoff.run import Project
from tests.builders import make_project

SITE = """
entities:
  user: {id: user_id, aliases: [anonymous_id, device_id], identity: {source: identifies, rule: deterministic, lookback: 90d}}
sources:
  identifies: {table: identifies, time: t, columns: [user_id, anonymous_id, device_id]}
  exposures:  {table: exposures, time: t, entity: {user: any_id}}
  orders:     {table: orders, time: t, entity: {user: user_id}, id: order_id}
  returns:    {table: returns, time: t, entity: {user: user_id}, links: {orders: order_id}}
metrics:
  margin_90d: {kind: sum, from: orders, column: "amount * 0.3", window: 90d, direction: up, role: north_star, unit: USD}
touchpoints:
  homepage:        {source: exposures, where: "surface = 'home'",   personalised: "variant <> 'generic'"}
  search:          {source: exposures, where: "surface = 'search'", personalised: "variant <> 'generic'"}
  recommendations: {source: exposures, where: "surface = 'recs'",   personalised: "variant <> 'generic'"}
  paid_social:     {source: exposures, where: "surface = 'paid_social'", cost: spend}
attribution:
  personalisation:
    conversion: {event: orders, value: amount}
    touchpoints: [homepage, search, recommendations, paid_social]
    window: 30d
    models: [first, last, linear, {time_decay: {half_life: 7d}}, {position: [0.4, 0.2, 0.4]}, markov, shapley]
    reconcile_with: global_holdout
funnels:
  kept: {steps: [exposures, orders, {name: kept, without: returns, within: 14d}], within: 30d}
cohorts:
  buyers: {start: orders, activity: exposures, every: month, retention: {kind: n_day, period: 7d, periods: 4}}
paths:
  to_order: {touchpoints: [homepage, search, recommendations, paid_social], to: orders}
experiments:
  global_holdout:
    type: holdout
    assignment: {source: exposures, variant: global_arm, control: generic, split: {generic: 0.10, personalised: 0.90}}
    starts: 2026-07-01
    primary: margin_90d
claims:
  personalisation_total:
    statement: "Total revenue impact of personalization as a holistic function"
    evidence: [global_holdout]
    compare: [attribution.personalisation]
    amount: "effect(margin_90d) * population(user, 365d)"
    less: {licence: 400, team: 900}
  credited:
    statement: "What last touch credits to recommendations"
    evidence: [attribution.personalisation]
    amount: "attributed(personalisation, last, recommendations)"
reports:
  quarterly: {audience: cfo, show: [claims.personalisation_total, attribution.personalisation, funnels.kept]}
"""
TABLES = """
CREATE TABLE exposures AS
SELECT CASE WHEN hash(i * 11) % 3 = 0 THEN 'a' || u ELSE 'u' || u END AS any_id,
       TIMESTAMP '2026-07-02' + to_minutes((hash(i * 3) % 200000)::INT) AS t,
       ['home', 'search', 'recs', 'paid_social'][1 + (hash(i * 5) % 4)::INT] AS surface,
       CASE WHEN u % 10 = 0 THEN 'generic' ELSE 'personalised' END AS global_arm,
       CASE WHEN u % 10 = 0 THEN 'generic' ELSE 'model' END AS variant,
       CASE WHEN hash(i * 5) % 4 = 3 THEN 0.05 END AS spend
FROM (SELECT i, i % 3000 AS u FROM range(15000) AS r(i));
CREATE TABLE identifies AS
SELECT 'u' || u AS user_id, 'a' || u AS anonymous_id, 'd' || u AS device_id, TIMESTAMP '2026-07-03' AS t FROM range(3000) AS r(u);
CREATE TABLE orders AS
SELECT i AS order_id, 'u' || (hash(i * 7) % 3000) AS user_id,
       TIMESTAMP '2026-07-05' + to_minutes((hash(i * 13) % 180000)::INT) AS t, (20 + hash(i * 17) % 100)::DOUBLE AS amount
FROM range(4000) AS r(i);
CREATE TABLE returns AS SELECT user_id, t + INTERVAL 3 DAY AS t, order_id FROM orders WHERE order_id % 9 = 0;
"""
ROOT = "defaults: {entity: user, window: 90d}\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("site"), SITE, TABLES, ROOT)


def test_everything_asked_for_is_answered_in_one_run_and_verifies(site: Project) -> None:
    run = site.run()
    assert not run.refusals
    names = [r.name for r in run.results]
    wanted = ["attribution.personalisation", "funnels.kept", "cohorts.buyers", "paths.to_order"]
    assert names == ["experiments.global_holdout", *wanted]
    for result in run.results:
        assert result.provenance.sql
        assert result.provenance.data_fingerprint
        assert any("identity" in step for step, _ in result.provenance.sql)
    assert site.verify().equal


def test_the_json_names_cells_by_their_labels(site: Project) -> None:
    found = json.loads(json.dumps(site.run(record=False).to_dict(), allow_nan=False))
    results = {r["name"]: r for r in found["results"]}
    credit = [
        e for e in results["attribution.personalisation"]["estimates"] if e["estimand"] == "attributed conversions"
    ]
    with duckdb.connect(str(site.root / "data.duckdb"), read_only=True) as connection:
        orders = connection.execute("SELECT count(*) FROM orders").fetchall()[0][0]
    assert {e["model"] for e in credit} == {"first", "last", "linear", "time_decay", "position", "markov", "shapley"}
    for model in {e["model"] for e in credit}:
        mine = {e["touchpoint"]: e["value"] for e in credit if e["model"] == model}
        assert "(unattributed)" in mine
        assert sum(v for t, v in mine.items() if t != "(total)") == pytest.approx(orders, rel=1e-9)
        assert all(e["low"] <= e["value"] <= e["high"] for e in credit)
    steps = [e for e in results["funnels.kept"]["estimates"] if e["estimand"] == "units reaching step"]
    assert [e["step"] for e in steps] == ["exposures", "orders", "kept"]
    assert steps[0]["value"] >= steps[1]["value"] >= steps[2]["value"] > 0


def test_stitching_is_compared_before_and_after(site: Project) -> None:
    result = site.attribution["personalisation"].run(record=False).outcome
    assert isinstance(result, Result)
    (joined,) = result.closer.stitching
    with duckdb.connect(str(site.root / "data.duckdb"), read_only=True) as connection:
        seen, people = connection.execute(
            """
            SELECT count(DISTINCT id), count(DISTINCT substr(id, 2))
            FROM (SELECT any_id AS id FROM exposures UNION ALL SELECT user_id FROM orders)
            """
        ).fetchall()[0]
    assert (joined.before["users"], joined.after["users"]) == (seen, people)
    assert joined.units == 3000


def test_the_experiment_that_credit_is_held_against_reads_the_same_rows(site: Project) -> None:
    """Treated conversions in the reconciliation are those of the arm, and incremental is its difference times its units."""
    result = site.attribution["personalisation"].run(record=False).outcome
    assert isinstance(result, Result)
    last = next(r for r in result.closer.reconciliation if r.model == "last")
    with duckdb.connect(str(site.root / "data.duckdb"), read_only=True) as connection:
        arms = connection.execute(
            """
            WITH x AS (SELECT substr(any_id, 2) AS u, min(t) AS t0, any_value(global_arm) AS arm FROM exposures
                       WHERE t >= TIMESTAMP '2026-07-01' GROUP BY 1)
            SELECT arm, count(DISTINCT x.u) AS n, coalesce(sum(amount), 0) AS total
            FROM x LEFT JOIN orders o ON substr(o.user_id, 2) = x.u AND o.t >= x.t0 GROUP BY arm ORDER BY arm
            """
        ).fetchall()
    (_, n0, v0), (_, n1, v1) = arms
    assert last.units == n1
    assert last.incremental.value == pytest.approx((v1 / n1 - v0 / n0) * n1, rel=1e-9)
    assert sum(r.incremental.value for r in last.rows if r.incremental is not None) == pytest.approx(
        last.incremental.value, rel=1e-9
    )


def test_a_claim_on_credit_is_graded_d_and_one_beside_it_is_compared(site: Project) -> None:
    run = site.run(["credited", "personalisation_total"], record=False).to_dict()
    claims = {c["name"]: c for c in run["claims"]}
    assert claims["claims.credited"]["grade"] == "D"
    assert "attributed" in json.dumps(claims["claims.credited"])
    compared = claims["claims.personalisation_total"]["compare"]
    assert {c["name"] for c in compared} == {"attribution.personalisation"}
    assert all(c["low"] <= c["value"] <= c["high"] for c in compared if c["value"] is not None)


def test_what_is_dated_after_now_is_in_the_future(site: Project) -> None:
    early, late = (
        site.run(["paths.to_order"], record=False, now=now).results[0]
        for now in (datetime(2026, 9, 1, tzinfo=UTC), None)
    )
    assert any("future" in reason for reason in early.left_out)
    assert not any("future" in reason for reason in late.left_out)
    assert sum(early.estimates[0].n.values()) < sum(late.estimates[0].n.values())


def test_a_plan_reads_no_rows_and_names_what_it_would_read(site: Project) -> None:
    text = "\n".join(step.name for step in site.plan(["funnels.kept"]))
    assert "identity of user" in text
    sql = "\n".join(step.sql for step in site.plan())
    assert "data.duckdb" not in sql


def test_names_that_are_declared_twice_are_asked_for_in_full(tmp_path: Path) -> None:
    project = make_project(
        tmp_path,
        """
        entities: {user: {id: u}}
        sources: {a: {table: a, time: t}, b: {table: b, time: t}}
        touchpoints: {a: {source: a}}
        funnels: {x: {steps: [a, b], within: 7d}}
        paths: {x: {touchpoints: [a], to: b}}
        """,
        """
        CREATE TABLE a AS SELECT i % 50 AS u, TIMESTAMP '2026-01-01' + to_hours(i::INT) AS t FROM range(200) AS r(i);
        CREATE TABLE b AS SELECT i % 50 AS u, TIMESTAMP '2026-01-02' + to_hours(i::INT) AS t FROM range(300) AS r(i);
        """,
        "defaults: {entity: user}\n",
    )
    with pytest.raises(UsageError, match=r"'x' is a funnel and paths; say funnels\.x or paths\.x"):
        project.run(["x"])
    assert [r.name for r in project.run(["paths.x"], record=False).results] == ["paths.x"]


def test_every_verb_takes_a_journey(site: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for call in (
        ["run", "funnels.kept"],
        ["explain", "paths.to_order"],
        ["show", "funnels.kept"],
        ["verify", "funnels.kept"],
    ):
        code = app([*call, "-p", str(site.root), "--json"], standalone_mode=False)
        assert code in (0, None), call
        assert json.loads(capsys.readouterr().out)


def test_pictures_and_tables_of_an_answer(site: Project) -> None:
    for answer, what in (
        (site.funnels["kept"].run(record=False), "funnel"),
        (site.cohorts["buyers"].run(record=False), "retention"),
        (site.paths["to_order"].run(record=False), "flow"),
        (site.attribution["personalisation"].run(record=False), "credit"),
    ):
        assert answer.plot(what).startswith("<svg")
        assert "descriptive" in str(answer)
        assert answer.to_arrow().num_rows > 0


def test_events_of_one_source_are_read_once_for_before_and_after(site: Project) -> None:
    run = site.run(["attribution.personalisation"], record=False)
    (step,) = [s for s in run.plan if s.name == "users before and after joining"]
    assert step.sql.count('"exposures"') == 1

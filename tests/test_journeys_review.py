"""Journeys held against small, obvious computations: what several kernels and the experiment must agree on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders import make_project

DEFINITIONS = """
    entities: {user: {}}
    sources:
      seen:    {table: seen, time: t, id: id, entity: {user: u}}
      carts:   {table: carts, time: t, entity: {user: u}}
      orders:  {table: orders, time: t, id: id, entity: {user: u}}
      returns: {table: returns, time: t, entity: {user: u}, links: {orders: order_id}}
      shown:   {table: shown, time: t, entity: {user: u}}
    touchpoints:
      recs:   {source: seen, where: "surface = 'recs'", personalised: chosen}
      search: {source: seen, where: "surface = 'search'", personalised: chosen}
      cart:   {source: carts}
    attribution:
      shop:
        conversion: {event: orders, value: amount}
        touchpoints: [recs, search, cart]
        window: 10d
        models: [last, linear, shapley, markov]
        reconcile_with: holdout
    funnels:
      kept:
        steps: [{name: seen, source: seen}, {name: cart, source: carts}, {name: order, source: orders}, {name: kept, without: returns, within: 5d}]
        within: 10d
    cohorts:
      weeks: {start: seen, activity: carts, revenue: {event: orders, value: amount}, every: week, retention: {period: 7d, periods: 2}}
    paths:
      ways: {touchpoints: [recs, search, cart], to: orders, window: 10d}
    experiments:
      holdout: {type: holdout, assignment: {source: shown, variant: arm, control: generic}, primary: spend}
    metrics:
      spend: {kind: sum, from: orders, column: amount}
"""
TABLES = """
    CREATE TABLE shown AS
    SELECT CAST(i AS {0}) AS u, TIMESTAMP '2026-01-01' AS t, CASE WHEN i % 2 = 1 THEN 'generic' ELSE 'personal' END AS arm FROM range(400) r(i);
    CREATE TABLE all_seen AS
    SELECT row_number() OVER (ORDER BY i, k) AS id, i, TIMESTAMP '2026-01-02' + to_hours(CAST(hash(i, k) % 400 AS INT)) AS t,
           CASE WHEN hash(i, k, 1) % 2 = 0 THEN 'recs' ELSE 'search' END AS surface, i % 2 = 0 AS chosen,
           hash(i, k, 2) % 10 < 6 AS carted, hash(i, k, 3) % 2 = 0 AS ordered, 5.0 + hash(i, k, 4) % 40 AS amount
    FROM range(400) r(i), range(3) q(k) WHERE hash(i, k, 5) % 3 > 0;
    CREATE TABLE seen AS SELECT id, CAST(i AS {1}) AS u, t, surface, chosen FROM all_seen;
    CREATE TABLE carts AS SELECT CAST(i AS {2}) AS u, t + INTERVAL 3 HOUR AS t FROM all_seen WHERE carted;
    CREATE TABLE orders AS SELECT id, CAST(i AS {3}) AS u, t + INTERVAL 9 HOUR AS t, amount FROM all_seen WHERE ordered;
    CREATE TABLE returns AS SELECT CAST(id AS {4}) AS order_id, CAST(i AS {3}) AS u, t + INTERVAL 30 HOUR AS t FROM all_seen WHERE ordered AND id % 4 = 0;
"""
ASKED = ["attribution.shop", "funnels.kept", "cohorts.weeks", "paths.ways"]


def figures(folder: Path, *kinds: str) -> dict[str, list[object]]:
    """Every figure of every journey, units (and the id that a return names) stored as ``kinds``."""
    run = make_project(folder, DEFINITIONS, TABLES.format(*kinds)).run(ASKED, record=False)
    assert not run.refusals
    found: dict[str, list[object]] = {}
    for result in run.results:
        found[result.name] = [(e.estimand, e.contrast, pytest.approx(e.value)) for e in result.estimates]
        found[f"{result.name}, held"] = [
            (r.model, r.units, pytest.approx(r.attributed.value), pytest.approx(r.incremental.value))
            for r in result.closer.reconciliation
        ]
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    found = figures(tmp_path_factory.mktemp("plain"), "BIGINT", "BIGINT", "BIGINT", "BIGINT", "BIGINT")
    assert sum(map(len, found.values())) > 100
    return found


@pytest.mark.parametrize(
    "kinds",
    [
        ("VARCHAR", "BIGINT", "DOUBLE", "VARCHAR", "DOUBLE"),
        ("DOUBLE", "INTEGER", "DECIMAL(10, 2)", "BIGINT", "VARCHAR"),
    ],
)
def test_ids_with_gaps_that_became_fractions_are_the_same_units(
    tmp_path: Path, plain: dict[str, list[object]], kinds: tuple[str, ...]
) -> None:
    """pandas stores whole ids as 7.0 where one is missing; such a table meets others by 7 and by '7'."""
    assert figures(tmp_path, *kinds) == plain

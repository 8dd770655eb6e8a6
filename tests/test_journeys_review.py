"""Journeys held against small, obvious computations: what several kernels and the experiment must agree on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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


# ---------------------------------------------------------------- credit and experiment are of the same rows

HELD = """
    entities:
      user: {id: u, aliases: [device], identity: {source: logins}}
    sources:
      logins: {table: logins, time: t, columns: [u, device]}
      seen:   {table: seen, time: t, entity: {user: who}}
      orders: {table: orders, time: t, id: id, entity: {user: who}}
      shown:  {table: shown, time: t, entity: {user: who}}
    touchpoints:
      recs: {source: seen, where: "surface = 'recs'", personalised: chosen}
      mail: {source: seen, where: "surface = 'mail'"}
    attribution:
      shop:
        conversion: {event: orders, value: amount}
        touchpoints: [recs, mail]
        window: 10d
        models: [linear, shapley, markov]
        starts: 2026-01-10
        ends: 2026-02-20
        reconcile_with: holdout
    experiments:
      holdout:
        type: holdout
        assignment: {source: shown, variant: arm, control: generic}
        starts: 2026-01-05
        ends: 2026-02-01
        primary: spend
        window: 3d
    metrics:
      spend: {kind: sum, from: orders, column: amount}
"""
DAY = 24  # hours


@dataclass(frozen=True)
class Event:
    unit: int
    hour: float | None
    what: str
    amount: float | None = None
    chosen: bool = False


def company(rng: np.random.Generator) -> tuple[list[Event], list[Event], list[Event]]:
    """Exposures, touches and orders of 300 units: some in two arms, some exposed before or after the experiment, orders at its edges."""
    shown, seen, orders = [], [], []
    for u in range(300):
        arm = "generic" if u % 3 == 0 else "personal"
        for hour in rng.integers(0, 45 * DAY, rng.integers(1, 3)):
            shown.append(Event(u, float(hour), arm))
        if rng.random() < 0.05:
            shown.append(Event(u, float(rng.integers(5 * DAY, 30 * DAY)), "generic"))
        if rng.random() < 0.05:
            shown.append(Event(u, None, "generic"))
        for hour in rng.integers(0, 60 * DAY, rng.integers(2, 9)):
            surface = "recs" if rng.random() < 0.6 else "mail"
            seen.append(
                Event(u, float(hour), surface, chosen=arm == "personal" and surface == "recs" and rng.random() < 0.7)
            )
        for hour in rng.integers(0, 60 * DAY, rng.integers(0, 4)):
            orders.append(Event(u, float(hour), "order", None if rng.random() < 0.05 else float(rng.integers(5, 50))))
    first = next(e for e in shown if e.what == "personal" and e.hour is not None and 4 * DAY <= e.hour < 31 * DAY)
    assert first.hour is not None
    orders += [Event(first.unit, hour, "order", 500.0) for hour in (first.hour, 9.0 * DAY, 50.0 * DAY, 51.0 * DAY)]
    orders += [Event(first.unit, 9000.0 * DAY, "order", 1e6)]  # dated decades ahead
    return shown, seen, orders


def tables(rng: np.random.Generator, shown: list[Event], seen: list[Event], orders: list[Event]) -> str:
    """Half of all rows name the unit by a device that it logged in on."""

    def rows(of: list[Event], more: Callable[[int, Event], str]) -> str:
        who = ["u" if rng.random() < 0.5 else "d" for _ in of]
        at = ["NULL" if e.hour is None else f"TIMESTAMP '2026-01-01' + INTERVAL {int(e.hour)} HOUR" for e in of]
        return ", ".join(
            f"('{w}{e.unit}', {t}, {more(i, e)})" for i, (w, t, e) in enumerate(zip(who, at, of, strict=True))
        )

    return f"""
        CREATE TABLE logins AS SELECT 'u' || i AS u, 'd' || i AS device, TIMESTAMP '2026-01-01' AS t FROM range(300) r(i);
        CREATE TABLE shown AS SELECT * FROM (VALUES {rows(shown, lambda i, e: f"'{e.what}'")}) v(who, t, arm);
        CREATE TABLE seen AS SELECT * FROM (VALUES {rows(seen, lambda i, e: f"'{e.what}', {e.chosen}")}) v(who, t, surface, chosen);
        CREATE TABLE orders AS SELECT * FROM
          (VALUES {rows(orders, lambda i, e: f"{i}, {'NULL' if e.amount is None else e.amount}::DOUBLE")}) v(who, t, id, amount);
    """


def held_by_hand(shown: list[Event], seen: list[Event], orders: list[Event]) -> dict[str, float]:
    """What the treated's personalised touches are credited with by linear, and what the experiment shows of the same orders."""
    arms: dict[int, set[str]] = {}
    since: dict[int, float] = {}
    for e in shown:
        if e.hour is None or 4 * DAY <= e.hour < 31 * DAY:
            arms.setdefault(e.unit, set()).add(e.what)
            if e.hour is not None:
                since[e.unit] = min(e.hour, since.get(e.unit, np.inf))
    exposed = {u: next(iter(a)) for u, a in arms.items() if len(a) == 1 and u in since}
    spent = dict.fromkeys(exposed, 0.0)
    credited = {u: {"recs": 0.0, "mail": 0.0} for u in exposed}
    personalised = 0.0
    for o in orders:
        assert o.hour is not None
        if o.unit not in exposed or o.hour < since[o.unit] or not 9 * DAY <= o.hour < 50 * DAY:
            continue
        worth = o.amount or 0.0
        spent[o.unit] += worth
        path = [s for s in seen if s.unit == o.unit and s.hour is not None and o.hour - 10 * DAY < s.hour <= o.hour]
        for s in path:
            credited[o.unit][s.what] += worth / len(path)
            if s.chosen and exposed[o.unit] == "personal":
                personalised += worth / len(path)
    treated = [u for u, arm in exposed.items() if arm == "personal"]
    control = [u for u, arm in exposed.items() if arm == "generic"]
    gap = float(np.mean([spent[u] for u in treated]) - np.mean([spent[u] for u in control]))
    out = {"attributed": personalised, "incremental": gap * len(treated), "units": float(len(treated))}
    for touchpoint in ("recs", "mail"):
        a, b = (np.array([credited[u][touchpoint] for u in of]) for of in (treated, control))
        out[touchpoint] = float(a.mean() - b.mean())
        out[f"{touchpoint} error"] = float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
    return out


@pytest.mark.parametrize("seed", [1, 2])
def test_credit_and_the_experiment_it_is_held_against_are_of_the_same_rows(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = company(rng)
    run = make_project(tmp_path, HELD, tables(rng, *made)).run(["attribution.shop"], record=False)
    (result,) = [r for r in run.results if r.method == "attribution"]
    told, hand = {r.model: r for r in result.closer.reconciliation}["linear"], held_by_hand(*made)
    assert told.units == hand["units"]
    assert told.attributed.value == pytest.approx(hand["attributed"])
    assert told.incremental.value == pytest.approx(hand["incremental"])
    between = {
        str(e.labels["touchpoint"]): e
        for e in result.estimates
        if e.estimand == "difference in attributed value per unit" and e.labels.get("model") == "linear"
    }
    for touchpoint in ("recs", "mail"):
        assert between[touchpoint].value == pytest.approx(hand[touchpoint])
        assert between[touchpoint].uncertainty.se == pytest.approx(hand[f"{touchpoint} error"])  # type: ignore[union-attr]


def test_paths_that_end_shortly_before_what_is_read_may_still_convert(tmp_path: Path) -> None:
    """Conversions from ``ends`` on are not read, so a path that ends within a window before it is as open as one at the end of the data."""
    rng = np.random.default_rng(4)
    shown, seen, orders = company(rng)
    run = make_project(tmp_path, HELD, tables(rng, shown, seen, orders)).run(["attribution.shop"], record=False)
    (result,) = [r for r in run.results if r.method == "attribution"]
    last: dict[int, float] = {}
    for e in seen:
        if e.hour is not None and e.hour < 50 * DAY:
            last[e.unit] = max(e.hour, last.get(e.unit, 0.0))
    won = {o.unit for o in orders if o.hour is not None and last.get(o.unit, np.inf) <= o.hour < 50 * DAY}
    still = sum(hour > 40 * DAY and unit not in won for unit, hour in last.items())
    (check,) = [c for c in result.checks if c.name == "open_paths"]
    assert check.status == "warn"
    assert check.detail.startswith(f"{still} paths (")


def test_orders_that_are_there_twice_are_not_held_against_an_experiment_that_counts_them_twice(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    twice = "INSERT INTO orders SELECT * FROM orders WHERE id % 9 = 0;"
    run = make_project(tmp_path, HELD, tables(rng, *company(rng)) + twice).run(["attribution.shop"], record=False)
    (result,) = [r for r in run.results if r.method == "attribution"]
    assert result.closer.reconciliation == ()
    (check,) = [c for c in result.checks if c.name == "reconciled"]
    assert check.status == "warn"
    assert "rows of orders repeat an id, which credit counts once and holdout every time" in check.detail


def test_a_conversion_dated_by_the_day_comes_before_what_led_to_it_that_day_and_that_is_said(tmp_path: Path) -> None:
    days = "CREATE TABLE by_day AS SELECT * REPLACE (CAST(t AS DATE) AS t) FROM orders; DROP TABLE orders; ALTER TABLE by_day RENAME TO orders;"
    kinds = ["BIGINT"] * 5
    project = make_project(tmp_path, DEFINITIONS, TABLES.format(*kinds) + days)
    for result in project.run(["attribution.shop", "paths.ways", "funnels.kept"], record=False).results:
        (clock,) = [c for c in result.checks if c.name == "clock"]
        assert clock.status == "warn"
        assert "orders tells days and no times, and a day counts as its midnight" in clock.detail


def test_a_test_of_those_who_are_reached_alone_is_said_to_be_taken_for_all(tmp_path: Path) -> None:
    """Its difference is per unit that it tested; the treated are many more."""
    rng = np.random.default_rng(5)
    text = HELD.replace(
        "mail: {source: seen, where: \"surface = 'mail'\"}",
        "mail: {source: seen, where: \"surface = 'mail'\", experiment: mailed}",
    )
    text = text.replace(
        "    experiments:\n",
        "    experiments:\n      mailed: {assignment: {source: mailing, variant: arm, control: none}, primary: spend}\n",
    ).replace("      shown:  {", "      mailing: {table: mailing, time: t, entity: {user: who}}\n      shown:  {")
    mailing = """
        CREATE TABLE mailing AS SELECT 'u' || (2 * i) AS who, TIMESTAMP '2026-01-11' AS t, CASE WHEN i % 2 = 0 THEN 'none' ELSE 'mail' END AS arm
        FROM range(40) r(i);
        UPDATE seen SET chosen = true WHERE surface = 'mail';
    """
    text = text.replace("surface = 'mail'\", experiment", "surface = 'mail'\", personalised: chosen, experiment")
    run = make_project(tmp_path, text, tables(rng, *company(rng)) + mailing).run(["attribution.shop"], record=False)
    (result,) = [r for r in run.results if r.method == "attribution"]
    (check,) = [c for c in result.checks if c.name == "reconciled"]
    assert "the test of mail is of 40 units, and its difference per unit is taken for all " in check.detail
    linear = {r.model: r for r in result.closer.reconciliation}["linear"]
    assert {r.touchpoint: r.by for r in linear.rows if r.by != "not personalised"} == {
        "recs": "remainder",
        "mail": "own experiment",
    }


def test_what_few_of_an_arm_met_is_not_had_by_difference_either(tmp_path: Path) -> None:
    few = "DELETE FROM carts WHERE u % 2 = 1 AND u > 30;"
    project = make_project(tmp_path, DEFINITIONS, TABLES.format(*["BIGINT"] * 5) + few, "defaults: {min_cell: 20}\n")
    (result,) = [r for r in project.run(["attribution.shop"], record=False).results if r.method == "attribution"]
    told = {str(e.labels["touchpoint"]) for e in result.estimates if e.estimand.startswith("difference in attributed")}
    # of generic 1 to 15 units met a cart; the total less both others would be their credit
    assert "cart" in {str(e.labels["touchpoint"]) for e in result.estimates if e.estimand == "attributed value"}
    assert "(total)" in told
    assert "cart" not in told
    assert len(told & {"recs", "search"}) == 1
    hidden = [r for r in result.refusals if "personal vs generic, " in r.name]
    assert len(hidden) == 2
    assert all("fewer than 20 units of an arm are behind it" in r.reason for r in hidden)


def test_a_source_that_ends_long_before_the_others_is_named(tmp_path: Path) -> None:
    late = "DELETE FROM carts WHERE t > TIMESTAMP '2026-01-05'; INSERT INTO seen SELECT 9000 + i, i, TIMESTAMP '2026-02-10', 'recs', true FROM range(9) r(i);"
    project = make_project(tmp_path, DEFINITIONS, TABLES.format(*["BIGINT"] * 5) + late)
    found = {r.name: r for r in project.run(["funnels.kept", "cohorts.weeks"], record=False).results}
    for name, check in (("funnels.kept", "steps"), ("cohorts.weeks", "matured")):
        (told,) = [c for c in found[name].checks if c.name == check]
        assert told.status == "warn"
        assert "carts ends at 2026-01-0" in told.detail

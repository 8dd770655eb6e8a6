"""Data that once gave a wrong number, a needless failure or an internal error: each test is one such shape."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import duckdb
import numpy as np
import pytest

from payoff.errors import DataError
from payoff.run import Project, Run
from payoff.warehouse.volumes import Counted, rows_in, units_in
from tests.builders import make_project, write_project

TABLES = """
    CREATE TABLE sends AS SELECT i AS id, i % 200 AS u, CASE WHEN i % 2 = 0 THEN 'c' ELSE 't' END AS arm,
        TIMESTAMP '2026-01-01' + i * INTERVAL 1 HOUR AS ts FROM range(400) AS r (i);
    CREATE TABLE orders AS SELECT (i * 13 + i // 7) % 200 AS u, CAST((i * 7) % 23 AS DOUBLE) AS amount, i % 400 AS send,
        TIMESTAMP '2026-01-01' + i * INTERVAL 20 MINUTE AS ts FROM range(1500) AS r (i);
"""
SENDS = "{table: sends, time: ts, id: id, entity: {user: u}}"
ORDERS = "{table: orders, time: ts, entity: {user: u}}"


def project(
    folder: Path, metrics: str, sends: str = SENDS, orders: str = ORDERS, tables: str = TABLES, more: str = ""
) -> Project:
    names = ", ".join(line.split(":")[0].strip() for line in metrics.strip().splitlines())
    text = f"sources:\n  sends: {sends}\n  orders: {orders}\nentities: {{user: {{}}}}\nmetrics:\n{metrics}\n"
    text += "experiments:\n  x: {entity: user, assignment: {source: sends, variant: arm, control: c}, "
    text += f"secondary: [{names}]}}\n{more}"
    return make_project(folder, text, tables)


def figures(run: Run) -> Mapping[tuple[str, str], tuple[int, float]]:
    return {(a.metric, a.arm): (a.n, a.value) for r in run.results for a in r.arms}


COUNT = "  m: {kind: count, from: orders, entity: user, window: 48h}"


@pytest.mark.parametrize(("here", "there"), [("INTEGER", "DOUBLE"), ("VARCHAR", "DOUBLE"), ("FLOAT", "DECIMAL(9, 2)")])
def test_whole_numbers_stored_as_fractions_are_the_same_ids(tmp_path: Path, here: str, there: str) -> None:
    plain = figures(project(tmp_path / "plain", COUNT).run(record=False))
    alter = f"{TABLES} ALTER TABLE sends ALTER u TYPE {here}; ALTER TABLE orders ALTER u TYPE {there};"
    assert figures(project(tmp_path / "mixed", COUNT, tables=alter).run(record=False)) == plain


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_cap_does_not_hide_what_is_not_a_number(tmp_path: Path, bad: str) -> None:
    metric = "  m: {kind: sum, from: orders, column: amount, entity: user, window: 48h, cap: 30}"
    tables = f"{TABLES} UPDATE orders SET amount = '{bad}' WHERE u % 5 = 0;"
    with pytest.raises(DataError, match="NaN or infinite"):
        project(tmp_path / "bad", metric, tables=tables).run(record=False)


@pytest.mark.parametrize("table", ["sends", "orders"])
def test_an_infinite_time_is_named_and_a_far_one_is_read(tmp_path: Path, table: str) -> None:
    infinite = f"{TABLES} UPDATE {table} SET ts = 'infinity' WHERE u = 7;"
    with pytest.raises(DataError, match="outside the calendar") as error:
        project(tmp_path / "infinite", COUNT, tables=infinite).run(record=False)
    assert (error.value.source, error.value.column) == (table, "ts")
    ends = f"""{TABLES} UPDATE {table} SET ts = '9999-12-31 23:59:59' WHERE u = 7;
        UPDATE {table} SET ts = '0001-01-01' WHERE u = 8;"""
    (result,) = project(tmp_path / "far", COUNT, tables=ends).run(record=False).results
    assert next(c for c in result.checks if c.name == "clock").status == "warn"


def test_links_to_a_table_of_one_row_a_unit(tmp_path: Path) -> None:
    one = "{sql: 'SELECT * FROM sends WHERE id < 200', time: ts, id: id, entity: {user: u}, one_row_per: user}"
    linked = "{table: orders, time: ts, entity: {user: u}, links: {sends: send}}"
    tables = f"{TABLES} UPDATE orders SET send = u WHERE send % 3 = 0;"
    found = figures(project(tmp_path / "linked", COUNT, one, linked, tables).run(record=False))
    with duckdb.connect() as connection:
        connection.execute(tables)
        expected = connection.execute(
            "SELECT arm, count(o.u) / 100 FROM sends s LEFT JOIN orders o ON o.u = s.u AND o.send = s.id AND o.ts >= s.ts"
            " AND o.ts < s.ts + INTERVAL 48 HOUR WHERE id < 200 GROUP BY arm"
        ).fetchall()
    assert {arm: found["m", arm][1] for arm in "ct"} == pytest.approx(dict(expected))


def test_after_holds_for_a_table_of_one_row_a_unit(tmp_path: Path) -> None:
    one = "{table: sends, where: 'id < 200', time: ts, entity: {user: u}, one_row_per: user}"
    metrics = """\
  after: {kind: conversion, entity: user, to: {source: sends, where: u % 5 = 0}, after: {source: sends, where: u % 3 = 0}, window: 48h}
  both: {kind: conversion, entity: user, to: {source: sends, where: u % 5 = 0 AND u % 3 = 0}, window: 48h}"""
    found = figures(project(tmp_path / "one", metrics, one).run(record=False))
    assert [found["after", arm] for arm in "ct"] == [found["both", arm] for arm in "ct"] == [(100, 0.07), (100, 0.07)]


@pytest.mark.parametrize(
    "select",
    [
        "WITH orders AS (SELECT * FROM orders WHERE amount >= 0) SELECT * FROM orders",
        "WITH Kept AS (SELECT * FROM orders), again AS (SELECT * FROM kept) SELECT * FROM AGAIN",
        "SELECT * FROM (WITH o AS (SELECT * FROM main.orders) SELECT * FROM o) AS inner_one",
        "SELECT * FROM odd.seen",
    ],
)
def test_sql_sources_name_steps_and_tables_as_people_do(tmp_path: Path, select: str) -> None:
    tables = f"{TABLES} CREATE SCHEMA odd; CREATE VIEW odd.seen AS SELECT * FROM orders;"
    plain = figures(project(tmp_path / "plain", COUNT).run(record=False))
    source = f'{{sql: "{select}", time: ts, entity: {{user: u}}}}'
    assert figures(project(tmp_path / "sql", COUNT, orders=source, tables=tables).run(record=False)) == plain


def test_a_claim_counts_a_source_over_a_text_file_that_another_reads(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    write_project(
        folder,
        f"""
        sources:
          sends: {{file: sends.csv, time: ts, id: id, entity: {{user: u}}}}
          orders: {{file: orders.csv, time: ts, entity: {{user: u}}}}
          big: {{file: orders.csv, time: ts, where: "amount > 3", entity: {{user: u}}}}
        entities: {{user: {{}}}}
        metrics:
        {COUNT}
        experiments: {{x: {{entity: user, assignment: {{source: sends, variant: arm, control: c}}, secondary: [m]}}}}
        values: {{v: {{value: 10, per: order, source: s, owner: o, expires: 2100-01-01}}}}
        claims: {{k: {{statement: s, evidence: [x], amount: "effect(m) * value(v) * volume(big, 1d)"}}}}
        """,
    )
    with duckdb.connect() as connection:
        connection.execute(TABLES)
        for table in ("sends", "orders"):
            connection.execute(f"COPY {table} TO '{folder}/{table}.csv'")
        last_day = "ts > (SELECT max(ts) FROM orders) - INTERVAL 1 DAY"
        expected = connection.execute(f"SELECT count(*) FROM orders WHERE amount > 3 AND {last_day}").fetchone()
    (claim,) = Project.load(folder).run(record=False).claims
    assert next(i.value for i in claim.inputs if i.kind == "volume") == expected[0]  # type: ignore[index]


def counted(folder: Path, rows: str, period: timedelta) -> Counted:
    found = project(folder, COUNT, tables=f"{TABLES} DROP TABLE orders; CREATE TABLE orders AS {rows};")
    with found.catalog(["orders"]) as catalog:
        return rows_in(catalog, "orders", period)


def test_dates_are_days_observed(tmp_path: Path) -> None:
    """Ten dates are ten days, not the nine between the first and the last."""
    rows = "SELECT i AS u, DATE '2026-01-01' + CAST(i % 10 AS INT) AS ts FROM range(1000) AS r (i)"
    assert counted(tmp_path / "year", rows, timedelta(days=365)).value == pytest.approx(36_500)
    assert counted(tmp_path / "five", rows, timedelta(days=5)).value == 500


def test_a_sparse_source_is_not_scaled_up(tmp_path: Path) -> None:
    """One row every 20 days for a year, over 28 days: two rows, whose distance says nothing of what was observed."""
    rows = "SELECT i AS u, TIMESTAMP '2025-01-01' + i * INTERVAL 20 DAY AS ts FROM range(20) AS r (i)"
    found = counted(tmp_path / "sparse", rows, timedelta(days=28))
    assert (found.value, found.days, found.notes) == (2.0, 28.0, ())
    assert found.se == pytest.approx(np.sqrt(28 * np.var([1, 1] + [0] * 26, ddof=1)))


def test_less_than_the_period_is_scaled_by_what_was_observed(tmp_path: Path) -> None:
    rows = "SELECT i AS u, TIMESTAMP '2025-01-01' + i * INTERVAL 1 HOUR AS ts FROM range(36) AS r (i)"
    found = counted(tmp_path / "short", rows, timedelta(days=2))
    assert found.value == pytest.approx(36 * 48 / 35)
    assert found.days == pytest.approx(35 / 24)


def test_units_without_an_id_are_counted_in_the_period_too(tmp_path: Path) -> None:
    one = "{table: sends, time: ts, one_row_per: user}"
    metric = "  m: {kind: sum, from: sends, column: u, entity: user}"
    with project(tmp_path / "noid", metric, one).catalog(["sends"]) as catalog:
        assert units_in(catalog, "sends", "user", None, timedelta(days=1)).value == 24


def test_arms_share_the_error_of_their_control(tmp_path: Path) -> None:
    """The sum of two arms' effects is (a - c) + (b - c), whose error counts the control twice over, not independently."""
    tables = TABLES.replace("ELSE 't' END", "WHEN i % 4 = 1 THEN 'a' ELSE 'b' END")
    claims = """
claims:
  total: {statement: s, evidence: [x], amount: "effect(m, a) + effect(m, b)"}
  gap: {statement: s, evidence: [x], amount: "effect(m, a) - effect(m, b)"}
"""
    metric = "  m: {kind: sum, from: orders, column: amount, entity: user, window: 48h, unit: USD}"
    run = project(tmp_path / "arms", metric, tables=tables, more=claims).run(record=False)
    se = {a.arm: (a.high - a.low) / 2 / 1.98 for a in run.results[0].arms}  # t at 50 to 100 units: about 1.98 to 2.01
    width = {c.name: c.amount.high - c.amount.low for c in run.claims}
    total = np.sqrt(se["a"] ** 2 + se["b"] ** 2 + 4 * se["c"] ** 2)
    assert width["claims.total"] / 2 / 1.98 == pytest.approx(total, rel=0.04)
    assert width["claims.gap"] / 2 / 1.98 == pytest.approx(np.hypot(se["a"], se["b"]), rel=0.04)
    assert not any("err independently: their correlation" in a for c in run.claims for a in c.assumptions)


def test_a_mean_and_a_quantile_of_one_column_are_read_together(tmp_path: Path) -> None:
    mean = "  mean: {kind: mean, from: orders, column: amount, entity: user, window: 48h}"
    half = "  half: {kind: quantile, from: orders, column: amount, entity: user, window: 48h}"
    together = figures(project(tmp_path / "both", f"{mean}\n{half}").run(record=False))
    alone = [figures(project(tmp_path / name, text).run(record=False)) for name, text in (("m", mean), ("h", half))]
    assert together == {**alone[0], **alone[1]}
    assert len(together) == 4

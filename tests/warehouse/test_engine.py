"""What every engine shares: what it tells of a running statement, what a plan says of bytes, which engine a run opens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import duckdb
import pyarrow as pa
import pytest

from payoff.errors import ConnectionFailed
from payoff.run import Project
from payoff.spec.nouns import DuckDBConnection, PostgresConnection
from payoff.warehouse import engine as engines
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.query import Query, sql

SHOP = """
version: 1
project: shop
defaults: {entity: user, window: 7d}
sources:
  seen:   {file: seen.parquet, time: ts, entity: {user: id}, through: 2026-06-20}
  orders: {file: orders.parquet, time: ts, entity: {user: id}, through: 2026-06-20}
metrics:
  bought: {kind: conversion, to: {source: orders}}
  spent:  {kind: sum, from: orders, column: amount}
experiments:
  one: {assignment: {source: seen, variant: arm, control: a}, primary: bought}
  two: {assignment: {source: seen, variant: arm, control: a}, primary: spent}
"""


def write(folder: Path, users: int, text: str = SHOP) -> None:
    """A project over ``users`` who are seen, a third of whom order a day later."""
    with duckdb.connect() as connection:
        for name, step, select in (
            ("seen", 1, "SELECT i AS id, CASE i % 2 WHEN 0 THEN 'a' ELSE 'b' END AS arm, TIMESTAMP '2026-06-01' AS ts"),
            (
                "orders",
                3,
                "SELECT i AS id, (i % 97)::DOUBLE AS amount, 'never read' || i AS note, TIMESTAMP '2026-06-02' AS ts",
            ),
        ):
            path = folder / f"{name}.parquet"
            connection.execute(
                f"COPY ({select} FROM range({users}) AS t(i) WHERE i % {step} = 0) TO '{path}' (FORMAT parquet)"
            )
    (folder / "payoff.yml").write_text(text)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    write(tmp_path, 20_000)
    return tmp_path


def stored(path: Path, *columns: str) -> int:
    named = ", ".join(f"'{c}'" for c in columns)
    found = duckdb.sql(
        f"SELECT sum(total_compressed_size) FROM parquet_metadata('{path}') WHERE path_in_schema IN ({named})"
    ).fetchall()
    return int(found[0][0])


def test_a_plan_counts_the_bytes_of_the_columns_that_it_reads(shop: Path) -> None:
    steps = {step.name: step for step in Project.load(shop).plan()}
    assert steps["values of orders"].bytes == stored(shop / "orders.parquet", "id", "amount", "ts")
    assert steps["values of orders"].reads == "file orders.parquet"
    assert all(step.bytes is None for step in steps.values() if not step.reads)


def test_a_text_file_is_read_whole_and_a_table_by_its_blocks(shop: Path) -> None:
    duckdb.sql(f"COPY (FROM '{shop / 'orders.parquet'}') TO '{shop / 'orders.csv'}'")
    with duckdb.connect(str(shop / "shop.duckdb")) as connection:
        connection.execute(f"CREATE TABLE seen AS FROM '{shop / 'seen.parquet'}'")
    text = SHOP.replace("file: orders.parquet", "file: orders.csv").replace("file: seen.parquet", "table: seen")
    (shop / "payoff.yml").write_text(text + "connections: {main: {engine: duckdb, path: shop.duckdb}}\n")
    steps = {step.name: step for step in Project.load(shop).plan()}
    assert steps["load file orders.csv"].bytes == (shop / "orders.csv").stat().st_size
    size = steps["exposures in seen"].bytes
    assert size is not None
    assert 0 < size <= (shop / "shop.duckdb").stat().st_size
    assert size % 262_144 == 0


def test_what_is_asked_together_reads_a_source_once(shop: Path) -> None:
    project = Project.load(shop)
    assert project.named() == ["experiments.one", "experiments.two"]

    def passes(names: list[str] | None) -> int:
        return sum(1 for step in project.plan(names) if step.reads and step.serves)

    assert passes(None) == 2
    assert sum(passes([name]) for name in project.named()) == 4


def test_progress_tells_rows_and_their_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[tuple[str, float | None]] = []
    now = [100.0]
    monkeypatch.setattr(engines, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with DuckDBEngine({}, tmp_path, progress=lambda what, share: said.append((what, share))) as engine:
        engine.tell("values of orders", "orders", None)
        engine.rows["orders"] = 20_000_000
        engine.tell("values of orders", "orders", 0.1)
        now[0] = 102.0
        engine.tell("values of orders", "orders", 0.5)
        engine.tell("count arms", None, None)
    assert said == [
        ("values of orders", None),
        ("values of orders · 20,000,000 rows of orders", 0.1),
        ("values of orders · 20,000,000 rows of orders · 5.0M rows/s", 0.5),
        ("count arms", None),
    ]


def test_a_long_statement_tells_how_far_it_is(tmp_path: Path) -> None:
    said: list[tuple[str, float | None]] = []
    with DuckDBEngine({}, tmp_path, progress=lambda what, share: said.append((what, share))) as engine:
        engine.rows["r"] = 300_000_000
        engine.fetch(sql("SELECT sum(sqrt(i) * cos(i)) AS s FROM range(120000000) AS r(i)"), "a long sum", "r")
    assert said[0] == ("a long sum · 300,000,000 rows of r", None)
    assert any(share for _, share in said)


def test_one_run_reads_one_engine(tmp_path: Path) -> None:
    several = {
        "main": DuckDBConnection(engine="duckdb", path="x.duckdb"),
        "wh": PostgresConnection(engine="postgres", url="postgresql://u:secret@127.0.0.1:1/d"),
    }
    with pytest.raises(ConnectionFailed, match="several engines \\(duckdb and postgres\\)"):
        engines.open_engine(several, tmp_path)
    two = dict.fromkeys(("wh", "other"), several["wh"])
    with pytest.raises(ConnectionFailed, match="several postgres connections \\(other, wh\\)"):
        engines.open_engine(two, tmp_path)


def test_what_returns_does_not_grow_with_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that come back: as many for ten times the users, and more for more metrics."""
    returned: list[int] = []
    fetch = DuckDBEngine.fetch

    def counted(self: DuckDBEngine, query: Query, what: str, source: str | None = None) -> pa.Table:
        table = fetch(self, query, what, source)
        returned.append(table.num_rows * table.num_columns)
        return table

    monkeypatch.setattr(DuckDBEngine, "fetch", counted)
    more = "funnels: {f: {steps: [{name: seen, source: seen}, {name: ordered, source: orders}], within: 2d}}\n"
    more += (
        "cohorts: {c: {start: seen, activity: orders, every: day, retention: {kind: n_day, period: 1d, periods: 3}}}\n"
    )
    more += (
        "touchpoints: {arm: {source: seen, by: arm}}\n"
        "attribution: {a: {conversion: {event: {source: orders}, value: amount}, touchpoints: [arm], window: 7d,"
        " models: [last, linear, markov, shapley]}}\n"
    )

    def cells(users: int, text: str) -> int:
        folder = tmp_path / f"{users}-{len(text)}"
        folder.mkdir()
        write(folder, users, text)
        returned.clear()
        assert not Project.load(folder).run(record=False).refusals
        return sum(returned)

    assert cells(60_000, SHOP + more) == cells(180_000, SHOP + more)  # every group of units has some
    two = SHOP.replace("primary: bought", "primary: bought, secondary: [spent]")
    assert cells(3_000, two) > cells(3_000, SHOP)

"""ClickHouse: each form of ours gives over hostile rows what DuckDB gives, and a session leaves the folder as it was.

In process by chdb. What a server's client does is executed against a small HTTP server whose statements chdb runs: a stand-in
for the interface, not for the server.
"""

from __future__ import annotations

import base64
import contextlib
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from payoff.errors import ConnectionFailed, DataError
from payoff.spec.nouns import ClickHouseConnection, DuckDBConnection
from payoff.warehouse.dialect import CannotRun
from payoff.warehouse.engine import Engine
from payoff.warehouse.engines.clickhouse import DIALECT, ClickHouseEngine, told_type
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.query import Query, bucket, column, sql

chdb: Any = pytest.importorskip("chdb")
ROOT = Path("/")

TEXTS = [
    "",
    "a",
    "A",
    "b",
    "_",
    "ä",
    "Z",
    "O'Brien",
    'q"q',
    " pad ",
    "100%",
    "x\\y",
    "two\nlines",
    "日本",
    "7",
    "7.0",
    None,
]
DOUBLES = [0.0, 1.0, -1.5, 2.5, 3.5, -2.5, 0.1, 1e15, 123456.789, 0.001, -7.0, None, 7.0, 1234567.25, 1 / 3]
STAMPS = [
    datetime(2026, 3, 8, 2, 30),  # is not on the clocks of New York
    datetime(2026, 11, 1, 1, 30),  # is twice
    datetime(1969, 12, 31, 23, 59, 59, 999_999),
    datetime(1970, 1, 1),
    datetime(2026, 2, 28, 23, 59, 59, 123_456),
    datetime(1950, 5, 5, 5, 5, 5, 5),
    datetime(2199, 7, 7, 7, 7, 7, 777_000),
    None,
]
ZONES = ("America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kolkata")


def _rows() -> pa.Table:
    rng = random.Random(7)
    n = 85

    def turn(values: list[Any]) -> list[Any]:
        return [values[(i * 7) % len(values)] for i in range(n)]

    stamps = turn(STAMPS)
    return pa.table(
        {
            "i": pa.array([None if k % 11 == 0 else k - 40 for k in range(n)], pa.int32()),
            "n": pa.array([None if k % 13 == 0 else (k - 40) * 10**15 for k in range(n)], pa.int64()),
            "g": pa.array([k % 5 if k % 7 else None for k in range(n)], pa.int32()),
            "d": pa.array(turn(DOUBLES), pa.float64()),
            "v": pa.array([None if k % 9 == 4 else rng.gauss(5, 3) for k in range(n)], pa.float64()),
            "m": pa.array([None if k % 8 == 0 else Decimal(k - 40) / 4 for k in range(n)], pa.decimal128(9, 2)),
            "s": pa.array(turn(TEXTS), pa.string()),
            "flag": pa.array([None if k % 6 == 5 else k % 2 == 0 for k in range(n)], pa.bool_()),
            "day": pa.array([None if x is None else x.date() for x in stamps], pa.date32()),
            "ts": pa.array(stamps, pa.timestamp("us")),
            "tz": pa.array(
                [None if x is None else x.replace(tzinfo=UTC) for x in reversed(stamps)], pa.timestamp("us", tz="UTC")
            ),
            "Select": pa.array(range(n), pa.int64()),
            "u": pa.array([f"u{rng.randrange(9)}" for _ in range(n)], pa.string()),
            "us": pa.array([rng.randrange(40) for _ in range(n)], pa.int64()),
        }
    )


TABLE = _rows()
_CREATE = """
CREATE TABLE rows (i Nullable(Int32), n Nullable(Int64), g Nullable(Int32), d Nullable(Float64), v Nullable(Float64),
  m Nullable(Decimal(9, 2)), s Nullable(String), flag Nullable(Bool), day Nullable(Date32), ts Nullable(DateTime64(6)),
  tz Nullable(DateTime64(6, 'UTC')), `Select` Int64, u String, us Int64) ENGINE = MergeTree ORDER BY tuple()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ClickHouse's with the rows, made by a process of its own."""
    root = tmp_path_factory.mktemp("clickhouse")
    pq.write_table(TABLE, root / "rows.parquet")
    statements = [
        _CREATE,
        f"INSERT INTO rows SELECT * FROM file('{root / 'rows.parquet'}', Parquet)",
        "CREATE TABLE kinds (e Enum8('one' = 1, 'two' = 2), f FixedString(3), l LowCardinality(Nullable(String)), w DateTime,"
        " z DateTime('Europe/Berlin'), b UInt64, h Int128) ENGINE = Memory",
        "CREATE DATABASE other",
        "CREATE TABLE other.kept (x Int64) ENGINE = MergeTree ORDER BY x",
        "INSERT INTO other.kept VALUES (1), (2)",
        "CREATE TABLE kinds_too ENGINE = MergeTree ORDER BY tuple() AS SELECT CAST('two' AS Enum8('one' = 1, 'two' = 2)) AS e,"
        " CAST('ab' AS FixedString(3)) AS f, 5 AS plain",
    ]
    code = "import sys, chdb\nc = chdb.connect(sys.argv[1])\nfor s in sys.stdin.read().split(';;'):\n    c.query(s)\nc.close()"
    subprocess.run(
        [sys.executable, "-c", code, str(root / "store")],
        input=";;".join(statements),
        text=True,
        check=True,
        timeout=60,
    )
    return root / "store"


def opened(folder: Path, **more: Any) -> ClickHouseEngine:
    return ClickHouseEngine("main", ClickHouseConnection(engine="clickhouse", path=str(folder)), ROOT, **more)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[ClickHouseEngine]:
    with opened(folder) as found:
        yield found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("duckdb") / "data.duckdb"
    with duckdb.connect(str(path)) as made:
        made.register("given", TABLE)
        made.execute("CREATE TABLE rows AS SELECT * FROM given")
    with DuckDBEngine({"main": DuckDBConnection(engine="duckdb", path=str(path))}, ROOT) as found:
        yield found


def plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return [plain(v) for v in value] if isinstance(value, list) else value


def answer(engine: Engine, text: str) -> list[list[Any]]:
    return [[plain(v) for v in row.values()] for row in engine.fetch(sql(text), "a test").to_pylist()]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-15)
    return bool(one == other)


ROW_WISE = [
    # whole numbers
    *(
        "i // 7",
        "i % 7",
        "(-7) % 3",
        "n // 86400000000",
        "n % 86400000000",
        "n - 9000000000",
        "i * 3 - 1",
        "i / 4",
        "-i",
    ),
    *(
        "CAST(abs(i) AS BIGINT) << 3",
        "n >> 5",
        "i & 5",
        "bit_count(i & 255)",
        "greatest(i, 3)",
        "least(i, NULL, g)",
        "abs(i)",
    ),
    *(
        "CAST(CASE WHEN abs(d) < 1e9 THEN d END AS INTEGER)",
        "CAST(m AS INTEGER)",
        "CAST(flag AS INTEGER)",
        "CAST(flag AS DOUBLE)",
        "CAST(m AS DOUBLE)",
    ),
    *("TRY_CAST(CASE WHEN d = floor(d) THEN d END AS HUGEINT)", "TRY_CAST(s AS DOUBLE) IS NULL", "floor(d)", "ceil(d)"),
    *(
        "round(d)",
        "round(d, 1)",
        "power(2.0::DOUBLE, i / 10)",
        "isfinite(d)",
        "sqrt(abs(d))",
        "ln(abs(d) + 1)",
        "isfinite(ln(d - d))",
        "isnan(sqrt(-1 - abs(d)))",
        "sign(d)",
    ),
    "coalesce(i, -1)",
    "nullif(i, 3)",
    # truth
    *("i > 3", "i > 3 AND flag", "NOT flag", "i IS NULL", "i IN (1, 2, 3)", "i NOT IN (1, NULL)", "i BETWEEN -3 AND g"),
    *("i IS NOT DISTINCT FROM g", "coalesce(i > g, FALSE)", "CASE WHEN i > 3 THEN flag ELSE i < -3 END", "flag = TRUE"),
    "CASE WHEN i > 3 THEN 1 WHEN i < -3 THEN -1 END",
    # text
    *(
        "CAST(i AS VARCHAR)",
        "CAST(n AS VARCHAR)",
        "CAST(flag AS VARCHAR)",
        "CAST(day AS VARCHAR)",
        "CAST(ts AS VARCHAR)",
    ),
    *(
        "CAST(tz AS VARCHAR)",
        "CAST(i > 3 AS VARCHAR)",
        "CAST(d AS VARCHAR)",
        "CAST('x' AS VARCHAR)",
        "CAST(s AS VARCHAR)",
    ),
    *("lower(s)", "upper(s)", "length(s)", "trim(s)", "trim(s, ' a')", "s || 'x'", "concat(s, NULL, 'x')", "s < 'b'"),
    *("s LIKE 'a%'", "s ILIKE 'A'", r"s LIKE 'x\y'", "regexp_matches(s, '[a-z]{2}')", "regexp_matches(s, 'two.lines')"),
    *(
        "contains(s, 'ä')",
        "starts_with(s, 'x')",
        "ends_with(s, 'y')",
        "substring(s, 2, 3)",
        "left(s, 2)",
        "right(s, 2)",
    ),
    *(
        "replace(s, 'a', 'bb')",
        "split_part(s, 'q', 2)",
        "regexp_replace(s, '[aä]', '-')",
        "regexp_extract(s, '[0-9]+')",
    ),
    *("md5(s)", "s = 'O''Brien'", "coalesce(s, 'O''B\\n')", "s IN ('x\\y', 'a')"),
    # times
    *("epoch_us(ts)", "epoch_us(tz)", "epoch_us(day)", "epoch_us(make_timestamp(n))", "epoch_us(make_timestamptz(n))"),
    *(
        "epoch_us(epoch_ms(n // 1000000))",
        "year(ts)",
        "month(day)",
        "day(ts)",
        "hour(ts)",
        "minute(tz)",
        "dayofweek(day)",
        "week(day)",
    ),
    *(f"epoch_us(ts AT TIME ZONE '{zone}')" for zone in ZONES),
    *(f"epoch_us(tz AT TIME ZONE '{zone}')" for zone in ZONES),
    *(
        "epoch_us((CAST(day AS TIMESTAMP)) AT TIME ZONE 'Europe/Berlin')",
        "day + 5",
        "CAST(ts AS DATE)",
        "ts > '2000-01-01'",
    ),
    *(f"epoch_us(date_trunc('{unit}', ts))" for unit in ("minute", "hour", "day", "week", "month", "quarter", "year")),
    *(
        "epoch_us(ts + INTERVAL 1 DAY)",
        "epoch_us(tz - INTERVAL 90 MINUTE)",
        "date_diff('day', ts, tz)",
        "tz >= TIMESTAMPTZ '2026-01-01 00:00:00+00:00'",
    ),
    "epoch_us(CAST('2026-03-01 10:00:00.5' AS TIMESTAMP))",
    "year(DATE '1970-01-01' + CAST(i // 7 AS INTEGER))",
    # lists and structs
    *("list_extract([i, g], 2)", "list_extract([i], 3)", "list_sort(list_filter([i, g, 3], lambda x: x IS NOT NULL))"),
    *("list_contains([1, 2], i)", '"Select"', "struct_extract({'t': i, 'v': s}, 'v')"),
]


@pytest.mark.parametrize("text", ROW_WISE)
def test_every_row_is_as_on_duckdb(text: str, engine: Engine, reference: Engine) -> None:
    query = f'SELECT "Select" AS k, {text} AS it FROM rows ORDER BY k'
    ours, theirs = answer(reference, query), answer(engine, query)
    differ = [(a, b) for a, b in zip(ours, theirs, strict=True) if not same(a, b)]
    assert not differ, differ[:5]


AGGREGATES = [
    *(
        "count(*)",
        "count(i)",
        "count(DISTINCT d)",
        "sum(i)",
        "sum(v)",
        "avg(n)",
        "avg(v)",
        "min(s)",
        "max(s)",
        "max(day)",
    ),
    *(
        "var_samp(v)",
        "covar_samp(v, i)",
        "var_samp(i)",
        "quantile_cont(v, 0.25)",
        "quantile_cont(i, CAST('0.9' AS DOUBLE))",
    ),
    *(
        "coalesce(count_if(i > 0), 0)",
        "bool_or(i > 38)",
        "bool_or(NULL::BOOLEAN)",
        "bit_or(CAST(us AS UINTEGER))",
        "fsum(v)",
    ),
    *("sum(v) FILTER (WHERE i > 1000)", "count(*) FILTER (WHERE i > 1000)", "count(DISTINCT u) FILTER (WHERE i > 0)"),
    *("arg_max(s, i)", "any_value(g)", "min(v) FILTER (WHERE flag)", "max(i > 3)", "avg(CAST(m AS DOUBLE))"),
    "struct_extract(min({'t': us, 'v': s}) FILTER (WHERE i IS NOT NULL), 'v')",
    "struct_extract(max({'t': us, 'v': s}) FILTER (WHERE s IS NOT NULL), 'v')",
    "struct_extract(min({'t': us, 'v': s}) FILTER (WHERE i > 1000), 'v')",
    "string_agg(u, '>' ORDER BY \"Select\")",
    'list_extract(arg_max([i, g], us * 100 + "Select"), 1)',
]


@pytest.mark.parametrize("text", AGGREGATES)
@pytest.mark.parametrize("where", ["TRUE", "i = 1", "FALSE"])
def test_every_aggregate_is_as_on_duckdb(text: str, where: str, engine: Engine, reference: Engine) -> None:
    """Over groups with NULL keys, over one row, and over nothing."""
    for query in (
        f"SELECT {text} AS it FROM rows WHERE {where}",
        f"SELECT g, {text} AS it FROM rows WHERE {where} GROUP BY g ORDER BY g",
    ):
        ours, theirs = answer(reference, query), answer(engine, query)
        assert same(ours, theirs), (ours[:4], theirs[:4])


_OVER = 'OVER (PARTITION BY g ORDER BY us, "Select"'
WINDOWS = [
    *(f"row_number() {_OVER})", f"lag(i) {_OVER})", f"lead(v, 2) {_OVER})", f'lag("Select") {_OVER})'),
    *(
        f"sum(us) {_OVER} ROWS UNBOUNDED PRECEDING)",
        f"count(*) {_OVER} ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)",
    ),
    *(f"lead(CASE WHEN i % 3 = 0 THEN i END IGNORE NULLS) {_OVER})", f"lag(i IGNORE NULLS) {_OVER})"),
    f"last_value(i) {_OVER} ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)",
    "min(us) FILTER (WHERE i % 2 = 0) OVER (PARTITION BY u ORDER BY us RANGE BETWEEN CURRENT ROW AND 5 FOLLOWING)",
    "min(us) over (partition by u order by us range between current row and 5000000000 following)",  # more than 32 bits
    "sum(v) OVER (PARTITION BY u)",
]


@pytest.mark.parametrize("text", WINDOWS)
def test_every_window_is_as_on_duckdb(text: str, engine: Engine, reference: Engine) -> None:
    query = f'SELECT "Select" AS k, {text} AS it FROM rows ORDER BY k'
    ours, theirs = answer(reference, query), answer(engine, query)
    assert same(ours, theirs), [(a, b) for a, b in zip(ours, theirs, strict=True) if not same(a, b)][:5]


STATEMENTS = [
    "SELECT -us AS us, count(*) AS n FROM rows GROUP BY us ORDER BY us",  # the order is that of what comes out
    "SELECT us + 1 AS us, us * 2 AS twice FROM rows WHERE us > 3 ORDER BY us, twice",
    "SELECT g, flag, count(*) AS n FROM rows WHERE g IS NOT NULL AND flag IS NOT NULL GROUP BY GROUPING SETS ((g), (g, flag)) ORDER BY g, flag",
    'SELECT s, d FROM rows ORDER BY s DESC, d, "Select"',
    'SELECT x.u, y.us FROM rows AS x LEFT JOIN (SELECT u, us FROM rows WHERE us > 37) AS y ON x.u = y.u AND x.us < y.us ORDER BY x.u, y.us, x."Select"',
    "SELECT count(*) AS n FROM rows AS x JOIN rows AS y ON x.g IS NOT DISTINCT FROM y.g",
    'SELECT u, us FROM rows QUALIFY row_number() OVER (PARTITION BY u ORDER BY us, "Select") = 1 ORDER BY u',
    "WITH a AS (SELECT row_number() OVER () AS r, u FROM rows) SELECT count(*) AS n FROM a AS p JOIN a AS q ON p.r = q.r AND p.u = q.u",
    "SELECT k, count(*) AS n FROM rows CROSS JOIN range(3) AS q(k) WHERE us > k GROUP BY k ORDER BY k",
    "SELECT \"Select\" AS k, unnest([1, 2]) AS a, unnest(['p', 'q']) AS b FROM rows WHERE us < 5 ORDER BY k, a",
    "SELECT x, count(*) AS n FROM (SELECT unnest(list_filter([CASE WHEN us > 20 THEN 1 END, CASE WHEN flag THEN 2 END], lambda it: it IS NOT NULL)) AS x FROM rows) AS h GROUP BY x ORDER BY x",
    "SELECT struct_extract(it, 'v') AS v, count(*) AS n FROM (SELECT unnest([CASE WHEN us > 20 THEN {'t': 1, 'v': u} END]) AS it FROM rows) AS h WHERE it IS NOT NULL GROUP BY v ORDER BY v",
    "SELECT a, b FROM (SELECT 1 AS a, 'x' AS b UNION ALL BY NAME SELECT 'y' AS b, 2 AS a) AS q ORDER BY a",
    "SELECT * EXCLUDE (us), us + 1 AS next FROM (SELECT u, us FROM rows) AS q ORDER BY u, next",
    "SELECT us, sum(us) AS us_sum FROM rows WHERE u IN (SELECT u FROM rows WHERE us = 0) GROUP BY us ORDER BY us",
    "SELECT u FROM rows AS o WHERE NOT EXISTS (SELECT 1 FROM rows AS i WHERE i.u = o.u AND i.us > o.us) ORDER BY u, us",
    "SELECT i FROM rows WHERE us < 5 UNION SELECT g AS i FROM rows WHERE us < 5 ORDER BY i",
    "SELECT i FROM rows EXCEPT SELECT g AS i FROM rows ORDER BY i",
]


@pytest.mark.parametrize("text", STATEMENTS)
def test_every_shape_is_as_on_duckdb(text: str, engine: Engine, reference: Engine) -> None:
    ours, theirs = answer(reference, text), answer(engine, text)
    assert same(ours, theirs), (ours[:6], theirs[:6])


def test_a_variance_is_stable_far_from_zero(engine: Engine) -> None:
    (row,) = answer(engine, "SELECT var_samp(1000000000.0::DOUBLE + us) AS far, var_samp(us) AS near FROM rows")
    assert row[0] == pytest.approx(row[1], rel=1e-7)


def test_wall_clocks_around_every_change_of_a_zone(engine: Engine, reference: Engine) -> None:
    for zone in ZONES:
        for start in (
            datetime(2026, 3, 7),
            datetime(2026, 3, 28),
            datetime(2026, 4, 4),
            datetime(2026, 10, 3),
            datetime(2026, 10, 24),
            datetime(2026, 10, 31),
        ):
            first = int((start - datetime(1970, 1, 1)) / timedelta(microseconds=1))
            text = f"""
                SELECT w, epoch_us(make_timestamp(w) AT TIME ZONE '{zone}') AS a, epoch_us(make_timestamptz(w) AT TIME ZONE '{zone}') AS b
                FROM (SELECT {first} + 900000000 * k AS w FROM (SELECT unnest(range(0, 200)) AS k) AS r) AS q ORDER BY w
            """
            assert answer(engine, text) == answer(reference, text), (zone, start)


def test_buckets_are_those_of_duckdb(engine: Engine, reference: Engine) -> None:
    query = sql("SELECT s, $b AS b FROM rows ORDER BY s", b=bucket(column("s"), 512))
    assert engine.fetch(query, "").to_pylist() == reference.fetch(query, "").to_pylist()


def test_types_are_told_in_one_set_of_names(engine: Engine, reference: Engine) -> None:
    query = sql(
        "SELECT i, n, d, m, s, flag, day, ts, tz, i > 3 AS c, CAST(s AS VARCHAR) AS t, epoch_us(ts) AS us FROM rows"
    )
    assert engine.types(query) == reference.types(query)
    for zoned, kind in (("ts", "TIMESTAMP WITH TIME ZONE"), ("tz", "TIMESTAMP")):
        asked = sql(
            f"SELECT {zoned} AT TIME ZONE 'Europe/Berlin' AS it"
            " FROM (SELECT CAST(NULL AS TIMESTAMP) AS ts, CAST(NULL AS TIMESTAMPTZ) AS tz) AS typed"
        )
        assert engine.types(asked) == reference.types(asked) == {"it": kind}
    assert told_type("LowCardinality(Nullable(String))") == "VARCHAR"
    assert told_type("Array(Nullable(DateTime64(3, 'Asia/Tokyo')))") == "TIMESTAMP WITH TIME ZONE[]"
    assert told_type("Nullable(Decimal(38, 4))") == "DECIMAL(38,4)"
    assert told_type("Map(String, Int64)") == "JSON"


def test_enumerations_are_read_as_text(engine: ClickHouseEngine) -> None:
    select = sql("SELECT * FROM rows").tree.copy()
    select.find(type(engine.place("main", ["rows"]))).replace(engine.place("main", ["kinds_too"]))  # type: ignore[union-attr]
    columns = engine.types(Query(select))
    assert columns == {"e": "VARCHAR", "f": "VARCHAR", "plain": "UTINYINT"}
    settled = Query(engine.settled(select, columns))
    assert set(engine.types(settled)) == set(columns)
    (row,) = engine.fetch(settled, "").to_pylist()
    assert (row["e"], row["f"].rstrip("\0"), row["plain"]) == ("two", "ab", 5)


@pytest.mark.parametrize(
    ("text", "construct"),
    [
        ("SELECT s LIKE u FROM rows", "LIKE with a pattern"),
        ("SELECT substring(s, i, 2) FROM rows", "substring\\(\\)"),
        ("SELECT array_agg(i) FROM rows", "array_agg\\(\\)"),
        ("SELECT quantile_cont(v, i) FROM rows", "a quantile"),
        ("SELECT ts AT TIME ZONE s FROM rows", "a time zone"),
        ("SELECT try_strptime(s, '%Y') FROM rows", "try_strptime\\(\\)"),
        ("SELECT lead(i, 2 IGNORE NULLS) OVER (ORDER BY us) FROM rows", "lead\\(\\) of several rows"),
        (
            "SELECT sum(us) OVER (ORDER BY us RANGE BETWEEN 5 PRECEDING AND CURRENT ROW) FROM rows",
            "a window over a distance",
        ),
    ],
)
def test_what_has_no_equal_form_is_refused_by_name(text: str, construct: str) -> None:
    with pytest.raises(CannotRun, match=rf"clickhouse cannot run 'a step': it has no equal form of {construct}"):
        DIALECT.text(sql(text).tree, "a step")


@pytest.mark.parametrize(
    "text",
    ["SELECT i // (i - i) AS x FROM rows",
     "SELECT CAST(1e30::DOUBLE + d AS BIGINT) AS x FROM rows", "SELECT CAST(s AS DOUBLE) AS x FROM rows", "SELECT CAST(s AS TIMESTAMP) AS x FROM rows", "SELECT CAST(u AS DATE) AS x FROM rows"],
)  # fmt: skip
def test_what_is_no_number_is_an_error_on_both(text: str, engine: Engine, reference: Engine) -> None:
    for one in (engine, reference):
        with pytest.raises(DataError, match=r"^a test: "):
            answer(one, text)


# ---------------------------------------------------------------- the session

ENDLESS = """
SELECT count(*) AS n FROM (SELECT unnest(range(0, 1000000)) AS a) AS x, (SELECT unnest(range(0, 1000000)) AS b) AS y
WHERE md5(a || b) = 'x'
"""


def interrupted(engine: Engine) -> float:
    """The seconds that a statement goes on for, when Ctrl-C comes after one."""
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            answer(engine, ENDLESS)
    finally:
        timer.cancel()
    return time.monotonic() - began


def test_tables_are_kept_added_to_and_forgotten(folder: Path) -> None:
    with opened(folder) as one:
        one.keep(
            "rows", sql("SELECT 1::BIGINT AS x, CAST('a' AS VARCHAR) AS s"), "keep"
        )  # named like a table of the user's
        one.append("rows", sql("SELECT 2::BIGINT AS x, NULL AS s"), "append")
        assert answer(one, "SELECT x, s FROM rows ORDER BY x") == [[1, "a"], [2, None]]
        stored = sql("SELECT count(*) AS n FROM rows").tree.copy()
        stored.find(type(one.place("main", ["rows"]))).replace(one.place("main", ["rows"]))  # type: ignore[union-attr]
        assert one.row(Query(stored), "stored") == {"n": TABLE.num_rows}
        one.drop("rows")
        one.drop("rows")
        assert one.size(one.place("main", ["rows"]), ["i", "s"]) is None  # one small part
        with opened(folder) as two:
            two.keep("mine", sql("SELECT 1 AS x"), "keep")
            with pytest.raises(DataError, match="mine"):
                answer(one, "SELECT * FROM mine")
    with opened(folder) as again, pytest.raises(DataError, match="mine"):
        answer(again, "SELECT * FROM mine")


@pytest.mark.parametrize("text", ["INSERT INTO other.kept VALUES (3)", "DROP TABLE other.kept", "CREATE TABLE x (a Int64) ENGINE = Memory", "TRUNCATE TABLE other.kept", "SET readonly = 0"])  # fmt: skip
def test_nothing_of_the_users_can_be_written(text: str, engine: ClickHouseEngine) -> None:
    with pytest.raises(Exception, match="readonly"):
        engine._session.send(text, "mark", False)
    stored = sql("SELECT sum(x) AS x FROM other.kept")
    assert engine.row(stored, "stored") == {"x": 3}


def test_what_is_missing_is_told_in_a_sentence(folder: Path, engine: ClickHouseEngine, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^source 'visits': look: .*nowhere") as missing:
        engine.fetch(sql("SELECT * FROM nowhere"), "look", "visits")
    assert "\n" not in str(missing.value)
    assert "version" not in str(missing.value)
    with pytest.raises(ConnectionFailed, match="there is no folder"):
        opened(tmp_path / "none")
    with pytest.raises(ConnectionFailed, match="this process reads another folder of ClickHouse's"):
        opened(tmp_path)
    with pytest.raises(DataError, match="not given to read"):
        engine.files(["a.csv"], "csv", "visits")
    with pytest.raises(DataError, match="reads as a pattern"):
        engine.files(["a{1}.parquet"], "parquet", "visits")


def test_parquet_files_are_read_in_process(folder: Path, engine: ClickHouseEngine) -> None:
    path = str(folder.parent / "rows.parquet")
    beside = folder.parent / "more.parquet"
    pq.write_table(TABLE, beside)
    for paths in ([path], [path, str(beside)]):
        read = sql("SELECT count(*) AS n, sum(us) AS us FROM given").tree.copy()
        table = read.find(type(engine.place("main", ["x"])))
        assert table is not None
        table.replace(engine.files(paths, "parquet", "visits").subquery("given"))  # type: ignore[arg-type]
        found = engine.row(Query(read), "count")
        assert found["n"] == TABLE.num_rows * len(paths)
    assert found["us"] == 2 * sum(TABLE["us"].to_pylist())
    with pytest.raises(DataError, match="files in several folders"):
        engine.files([path, "/elsewhere/rows.parquet"], "parquet", "visits")


def test_ctrl_c_stops_the_statement(folder: Path) -> None:
    with opened(folder) as one:
        assert interrupted(one) < 60
        assert answer(one, "SELECT 1 AS x") == [[1]]


def test_progress_is_told(folder: Path) -> None:
    told: list[tuple[str, float | None]] = []
    with opened(folder, progress=lambda what, share: told.append((what, share))) as one:
        one.fetch(
            sql(
                "SELECT count(*) AS n FROM (SELECT unnest(range(0, 3000)) AS a) AS x, (SELECT unnest(range(0, 3000)) AS b) AS y WHERE md5(a || b) = 'x'"
            ),
            "walk",
        )
    assert told[0] == ("walk", None)
    assert all(share is None or 0 <= share <= 1 for _, share in told)


# ---------------------------------------------------------------- by HTTP


class _Interface(BaseHTTPRequestHandler):
    """What a ClickHouse server's HTTP interface does with a statement, by chdb."""

    folder: Path
    sessions: dict[str, Any]
    lock = threading.Lock()

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        given = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()}
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode() or given.get("query", "")
        login = base64.b64decode(self.headers.get("Authorization", "Basic Og==").split()[1]).decode()
        if login != "reader:s3:cret":
            self._say(403, b"Code: 516. DB::Exception: reader: Authentication failed. (AUTHENTICATION_FAILED)", "516")
            return
        key = given.get("session_id", "none")
        with self.lock:
            session = self.sessions.get(key)
            if session is None:
                session = self.sessions[key] = chdb.connect(str(self.folder))
        if "KILL" in text or "system.processes" in text:
            mark = text.split("query_id = '")[1].split("'")[0]
            text = text.replace(f"query_id = '{mark}'", f"startsWith(query, '/* {mark} */')")
        if "query_id" in given:
            text = f"/* {given['query_id']} */ {text}"
        try:
            self._say(200, bytes(session.query(text, "TabSeparated").bytes() or b""))
        except RuntimeError as error:
            with contextlib.suppress(RuntimeError):  # chdb's next answer begins with what the failed one had written
                session.query("SELECT 1", "TabSeparated")
            code = str(error).split("Code: ")[1].split(".")[0]
            self._say(500, str(error).encode(), code)

    def _say(self, status: int, body: bytes, code: str | None = None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-ClickHouse-Exception-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address of the stand-in, without a user."""
    pytest.importorskip("clickhouse_connect")
    handler = type("Interface", (_Interface,), {"folder": folder, "sessions": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()
        for session in handler.sessions.values():  # type: ignore[attr-defined]
            session.close()


def reached(url: str) -> ClickHouseEngine:
    return ClickHouseEngine("main", ClickHouseConnection(engine="clickhouse", url=url), ROOT)


def test_a_server_is_read_by_its_url(server: str) -> None:
    with reached(f"http://reader:s3%3Acret@{server}/other") as one:
        assert one.version.startswith("26.")
        assert one.place("main", ["kept"]).sql() == '"other"."kept"'
        assert answer(one, "SELECT sum(x) AS s, count(*) > 1 AS c FROM other.kept") == [[3, True]]
        one.keep("mine", sql("SELECT x, x::VARCHAR || 'ä' AS s FROM other.kept"), "keep")
        one.append("mine", sql("SELECT 7 AS x, NULL AS s"), "append")
        assert answer(one, "SELECT x, s FROM mine ORDER BY x") == [[1, "1ä"], [2, "2ä"], [7, None]]
        assert one.types(sql("SELECT * FROM mine")) == {"x": "BIGINT", "s": "VARCHAR"}
        with pytest.raises(DataError, match=r"^source 'visits': look: .*nowhere"):
            one.fetch(sql("SELECT * FROM nowhere"), "look", "visits")
        with pytest.raises(Exception, match="readonly"):
            one._session.send("DROP TABLE other.kept", "mark", False)
        with pytest.raises(DataError, match="not given to read"):
            one.files(["a.parquet"], "parquet", "visits")


def test_ctrl_c_stops_the_statement_on_the_server(server: str) -> None:
    with reached(f"http://reader:s3%3Acret@{server}") as one:
        assert interrupted(one) < 60
        assert answer(one, "SELECT 1 AS x") == [[1]]


def test_a_server_that_refuses_or_is_not_there_is_told_without_the_password(server: str) -> None:
    with pytest.raises(ConnectionFailed, match="refused the user or the password") as refused:
        reached(f"http://reader:wr0ng@{server}")
    with pytest.raises(ConnectionFailed, match="nobody answers there") as absent:
        reached("http://reader:wr0ng@127.0.0.1:9")
    for error in (refused, absent):
        assert "wr0ng" not in str(error.value)
        assert error.value.__cause__ is None

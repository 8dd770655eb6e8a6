"""PostgreSQL: each form of ours gives over hostile rows what DuckDB gives, and a session leaves the database as it was."""

from __future__ import annotations

import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from payoff.errors import ConnectionFailed, DataError
from payoff.spec.nouns import DuckDBConnection, PostgresConnection
from payoff.warehouse.dialect import CannotRun
from payoff.warehouse.engine import Engine
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.engines.postgres import DIALECT
from payoff.warehouse.query import Query, bucket, column, parsed_query, sql
from tests.warehouse.conformance.engines import NotHere, on_postgres

psycopg = pytest.importorskip("psycopg")
ROOT = Path("/")

TEXTS = [
    "",
    "a",
    "A",
    "b",
    "B",
    "_",
    "ä",
    "Z",
    "é",
    "O'Brien",
    'q"q',
    "a b",
    " pad ",
    "100%",
    "x\\y",
    "line\nbreak",
    "日本",
    "😀",
    "7",
    "7.0",
    None,
]
DOUBLES = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    2.5,
    3.5,
    -2.5,
    0.1,
    1e15,
    1234567890123456.5,
    1e16,
    1e20,
    9007199254740993.0,
    1e-7,
    123456.789,
    math.nan,
    math.inf,
    -math.inf,
    None,
    7.0,
    1e38,
]
STAMPS = [
    datetime(2026, 3, 8, 2, 30),  # is not on the clocks of New York
    datetime(2026, 11, 1, 1, 30),  # is twice
    datetime(1969, 12, 31, 23, 59, 59, 999_999),
    datetime(1970, 1, 1),
    datetime(2026, 2, 28, 23, 59, 59, 123_456),
    datetime(1850, 5, 5, 5, 5, 5, 5),
    datetime(2199, 7, 7, 7, 7, 7, 777_777),
    None,
]


def _rows() -> pa.Table:
    rng = random.Random(7)
    n = 84

    def turn(values: list[Any]) -> list[Any]:
        return [values[(i * 5) % len(values)] for i in range(n)]

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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with the rows in a database of locale C and in one of English ("en-US") order."""
    try:
        with on_postgres(tmp_path_factory.mktemp("postgres"), {"rows": TABLE}) as place:
            url = (place.connect() or {})["url"]
            with psycopg.connect(url, autocommit=True) as admin:
                admin.execute(
                    "CREATE DATABASE spoken TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C'"
                )
                with psycopg.connect(url.replace("/postgres", "/spoken")) as other:
                    other.execute("CREATE TABLE rows (s text)")
                    with other.cursor() as cursor:
                        cursor.executemany("INSERT INTO rows VALUES (%s)", [(s,) for s in TEXTS])
            yield url
    except NotHere as error:
        why = f"postgres was not executed: {error}"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)


@pytest.fixture
def admin(server: str) -> Iterator[Any]:
    with psycopg.connect(server, autocommit=True) as connection:
        yield connection


def opened(url: str, **more: Any) -> Any:
    from payoff.warehouse.engines.postgres import PostgresEngine

    return PostgresEngine("main", PostgresConnection(engine="postgres", url=url, **more), ROOT)


@pytest.fixture
def postgres(server: str) -> Iterator[Any]:
    with opened(server) as engine:
        yield engine


@pytest.fixture(scope="module")
def duck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("duck") / "d.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.register("given", TABLE)
        connection.execute("CREATE TABLE rows AS SELECT * FROM given")
    with DuckDBEngine({"main": DuckDBConnection(engine="duckdb", path=str(path))}, ROOT) as engine:
        yield engine


def relation(engine: Engine, table: str = "rows") -> Query:
    """A source's relation, as statements read it."""
    from sqlglot import exp

    select = exp.select("*").from_(engine.place("main", [table]))
    return Query(engine.settled(select, engine.types(Query(select))))


def plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value


def same(ours: Any, theirs: Any) -> bool:
    ours, theirs = plain(ours), plain(theirs)
    if isinstance(ours, float) and isinstance(theirs, float | int):
        if math.isnan(ours) or math.isinf(ours):
            return str(ours) == str(float(theirs))
        return math.isclose(ours, theirs, rel_tol=1e-11, abs_tol=1e-300)
    return (type(ours) is type(theirs) and ours == theirs) or (
        isinstance(ours, int) and not isinstance(ours, bool) and ours == theirs
    )


def _found(engine: Engine, template: str, parts: dict[str, Any]) -> list[dict[str, Any]]:
    query = sql(template, rows=relation(engine), **parts)
    steps = query.tree.args["with_"]
    steps.set("expressions", sorted(steps.expressions, key=lambda step: step.alias != "rows"))
    found: list[dict[str, Any]] = engine.fetch(query, "test").to_pylist()
    return found


def differing(duck: Engine, postgres: Engine, template: str, **parts: Any) -> list[Any]:
    """Rows of a statement over ``rows`` that are not the same on both, in the order that the statement gives."""
    ours, theirs = (_found(engine, template, parts) for engine in (duck, postgres))
    assert len(ours) == len(theirs)
    assert ours, "nothing to compare"
    assert [list(r) for r in ours[:1]] == [list(r) for r in theirs[:1]]
    return [(a, b) for a, b in zip(ours, theirs, strict=True) if not all(same(a[k], b[k]) for k in a)]


ROW_WISE = [
    "epoch_us(ts)", "epoch_us(tz)", "epoch_us(day)", "epoch_us(ts AT TIME ZONE 'America/New_York')",
    "epoch_us(CAST(day AS TIMESTAMP) AT TIME ZONE 'Europe/Berlin')", "epoch_us(tz AT TIME ZONE 'Asia/Kolkata')",
    "epoch_us(make_timestamp(n))", "epoch_us(make_timestamptz(n // 7))", "epoch_us(to_timestamp(i))", "epoch_us(epoch_ms(n // 1000))",
    "CAST(i AS VARCHAR)", "CAST(n AS VARCHAR)", "CAST(d AS VARCHAR)", "CAST(m AS VARCHAR)", "CAST(flag AS VARCHAR)", "CAST(ts AS VARCHAR)",
    "CAST(day AS VARCHAR)", "CAST(tz AS VARCHAR)", "CAST(CAST(i AS FLOAT) AS VARCHAR)",
    "coalesce(CAST(TRY_CAST(CASE WHEN d = floor(d) THEN d END AS HUGEINT) AS VARCHAR), CAST(d AS VARCHAR))",
    "coalesce(CAST(TRY_CAST(CASE WHEN m = floor(m) THEN m END AS HUGEINT) AS VARCHAR), CAST(m AS VARCHAR))",
    "CAST(flag AS DOUBLE)", "CAST(i AS DOUBLE)", "CAST(n AS DOUBLE)", "CAST(m AS DOUBLE)", "CAST(flag AS BIGINT)", "CAST(flag AS INTEGER)",
    "CAST(CASE WHEN abs(d) < 1e15 THEN d END AS BIGINT)", "CAST(m AS BIGINT)", "CAST(m AS INTEGER)", "CAST(ts AS DATE)", "CAST(tz AS DATE)",
    "TRY_CAST(s AS DOUBLE)", "TRY_CAST(s AS BIGINT)", "TRY_CAST(d AS BIGINT)",
    "i / 4", "n / 7", "m / 3", "i / g", "d / 2", "i // 7", "n // 7", "i // -7", "i % 7", "n % 7", "i % -7", "m % 3", "v % 2.5", "abs(i)", "-i",
    "i + n", "i * 0.5", "d > 1", "d = d", "d <> 1", "d >= 'nan'::DOUBLE", "isfinite(d)", "isfinite(ts)", "isnan(d)", "isinf(d)",
    "greatest(i, g, 3)", "least(i, g, 3)", "coalesce(i, g)", "nullif(i, 3)", "i IS NOT DISTINCT FROM g", "i IS DISTINCT FROM g",
    "i IN (1, 2)", "i NOT IN (1, NULL)", "i BETWEEN -3 AND 3", "flag AND i > 0", "flag OR i > 0", "NOT flag", "flag IS FALSE",
    "s || '!'", "concat(s, '-', i)", "lower(s)", "upper(CASE WHEN s <> 'ß' THEN s END)", "length(s)", "trim(s)", "trim(s, ' a')", "s LIKE '%a%'",
    r"s LIKE 'x\y'", "s LIKE '_'", "s ILIKE 'Ä'", "contains(s, 'b')", "starts_with(s, 'a')", "ends_with(s, 'n')", "replace(s, 'a', 'z')",
    "substring(s, 2, 3)", "left(s, 2)", "right(s, 2)", "split_part(s, 'b', 1)", "md5(s)", "s < 'a'", "s >= 'B'", "s IN ('A', 'ä')", "instr(s, 'b')",
    r"regexp_matches(s, '^(.*b.*|q.q)$')", r"regexp_matches(s, '^[^a-z]+$')", r"regexp_matches(s, '\d+[.]\d')", "regexp_matches(s, 'B', 'i')",
    "CASE WHEN i > 0 THEN 'Z' WHEN i < 0 THEN 'a' END", "CASE flag WHEN true THEN 1 ELSE 0 END",
    "year(ts)", "month(ts)", "day(ts)", "hour(ts)", "minute(tz)", "second(ts)", "dayofweek(ts)", "week(day)", "extract(year FROM tz)",
    "epoch_us(date_trunc('week', ts))", "epoch_us(date_trunc('month', day))", "epoch_us(date_trunc('hour', tz))", "date_diff('day', ts, tz)",
    "epoch_us(ts + INTERVAL 1 DAY)", "epoch_us(day + 3)", "epoch_us(make_date(2026, 2, 3))", "date_part('month', ts)", "epoch(ts)",
    "round(v)", "round(m)", "round(m, 1)", "round(i / 2)", "floor(v)", "ceil(v)", "sign(v)", "sqrt(v)", "ln(v)", "exp(v)", "exp(v * -1000)", "v ** 2", "log10(v)",
    "(i & 6)", "(n >> 3)", "(us << 2)", "CAST(bit_count(CAST(g AS UINTEGER)) AS BIGINT)",
    "CAST(flag AS SMALLINT)", "CAST(i > 0 AS SMALLINT)", "CAST(i AS BOOLEAN)", "CAST(v AS BOOLEAN)", "CAST(m AS BOOLEAN)",
    "CAST(CASE WHEN i > 0 THEN 'true' ELSE 'F' END AS BOOLEAN)", "CAST(flag AS BOOLEAN)", "i / NULL", "g / 0", "(g - 2) / (g - 2)", "list_extract([i, g, 5], 2)", "list_contains([i, g], 3)", "length(list_filter([i, g], lambda x: x IS NOT NULL))",
    """'{"a": {"b": "c"}}' ->> '$.a.b'""", "epoch_us(CAST('2026-03-01 10:00:00+02:00' AS TIMESTAMPTZ))",
    "epoch_us(CAST(CASE WHEN i > 0 THEN '2026-03-01 10:00:00+02:00' ELSE '2026-03-01' END AS TIMESTAMP))",
]  # fmt: skip


@pytest.mark.parametrize("expression", ROW_WISE)
def test_an_expression_means_the_same(expression: str, duck: Engine, postgres: Engine) -> None:
    query = f'SELECT "Select" AS k, {expression} AS it FROM rows ORDER BY k'
    assert differing(duck, postgres, query) == []


AGGREGATES = [
    "count(*)", "count(i)", "count(DISTINCT s)", "sum(i)", "sum(n)", "sum(v)", "sum(flag)", "sum(i > 3)", "avg(i)", "avg(v)", "min(s)", "max(s)",
    "min(d)", "max(d)", "min(CASE WHEN i > 0 THEN 'Z' ELSE 'a' END)", "var_samp(v)", "covar_samp(v, i)", "var_samp(v + 1000)", "count_if(flag)",
    "count_if(v > 3) FILTER (WHERE flag)", "count_if(NULL::BOOLEAN)", "bool_or(flag)", "bool_and(flag)", "quantile_cont(v, 0.5)", "quantile_cont(v, 0.9) FILTER (WHERE flag)",
    "arg_max(i, n)", "arg_min(v, i)", "arg_max(s, us * 100 + i)", "struct_extract(min({'t': us, 'v': s}), 'v')",
    "struct_extract(max({'t': us, 'v': i}) FILTER (WHERE flag), 'v')", "struct_extract(min({'t': i, 'v': us}), 't')",
    "bit_or(CAST(1 AS UINTEGER) << CAST(us // 2 AS UINTEGER))", "max(i) / sum(us)", "fsum(v)", "sum(v ORDER BY v)", "any_value(g)",
    "sum(i) FILTER (WHERE false)", "count(*) FILTER (i IS NULL)", "min(day) = max(day)", "epoch_us(min(ts))", "max(flag::INTEGER)",
    "list_extract(arg_max([us, i], i), 2)", "listagg(chr(CAST(us + 65 AS INTEGER)), '' ORDER BY us)",
]  # fmt: skip


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_an_aggregate_means_the_same(aggregate: str, duck: Engine, postgres: Engine) -> None:
    assert differing(duck, postgres, f"SELECT g, {aggregate} AS it FROM rows GROUP BY g ORDER BY g") == []
    nothing = f"SELECT {aggregate} AS it FROM (SELECT * FROM rows WHERE i = 10000) AS none"
    assert differing(duck, postgres, nothing) == []


STATEMENTS = [
    'SELECT "Select", row_number() OVER (PARTITION BY u ORDER BY s, "Select") AS k FROM rows ORDER BY "Select"',
    'SELECT "Select", row_number() OVER (PARTITION BY u ORDER BY i DESC, "Select") AS k FROM rows ORDER BY "Select"',
    """SELECT "Select", lead(CASE WHEN flag THEN "Select" END IGNORE NULLS) OVER o AS k FROM rows
       WINDOW o AS (PARTITION BY u ORDER BY us, "Select") ORDER BY "Select" """,
    """SELECT "Select", min(us) FILTER (WHERE flag) OVER (PARTITION BY u ORDER BY us RANGE BETWEEN CURRENT ROW AND 5 FOLLOWING) AS k,
       last_value("Select") OVER (PARTITION BY u ORDER BY us, "Select" ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS l,
       lag(us) OVER (PARTITION BY u ORDER BY us, "Select") AS b FROM rows ORDER BY "Select" """,
    "SELECT u, g, count(*) AS n FROM rows GROUP BY ALL ORDER BY u, g",
    "SELECT u, g, count(*) AS n FROM rows GROUP BY GROUPING SETS ((u, g), (u), ()) ORDER BY u, g, n",
    """SELECT u, us, "Select" AS k FROM rows QUALIFY s IS NULL OR row_number() OVER (PARTITION BY s ORDER BY us, "Select") = 1 ORDER BY k""",
    "WITH a AS (SELECT us AS first, u, g AS last FROM rows) SELECT * EXCLUDE (first, last), first + 1 AS k FROM a ORDER BY u, k, last",
    "SELECT DISTINCT s FROM rows ORDER BY s",
    "SELECT s FROM rows WHERE i > 0 UNION SELECT 'M' AS s ORDER BY s",
    """WITH f AS (SELECT u, min(us) AS lo FROM rows WHERE flag GROUP BY u) SELECT a.u, a.us, a."Select" AS k FROM rows AS a
       ANTI JOIN f ON f.u = a.u AND f.lo < a.us ORDER BY k""",
    "SELECT k, v FROM (SELECT unnest([1, 2, 3]) AS k, unnest(CAST(['b', 'B', NULL] AS VARCHAR[])) AS v) AS t WHERE EXISTS (SELECT 1 FROM rows) ORDER BY v, k",
    """SELECT "Select" AS k, unnest(list_filter([CASE WHEN flag THEN 1 END, CASE WHEN i > 0 THEN 2 END], lambda it: it IS NOT NULL)) AS x
       FROM rows ORDER BY k, x""",
    'SELECT "Select" AS k, unnest(range(us, us + 3)) AS run FROM rows ORDER BY k, run',
    """SELECT k, struct_extract(it, 'mark') AS mark, struct_extract(it, 'value') AS value FROM (
         SELECT "Select" AS k, unnest([CASE WHEN flag THEN {'mark': CAST(1 AS SMALLINT), 'value': s} END,
                                       CASE WHEN i > 0 THEN {'mark': CAST(2 AS SMALLINT), 'value': CAST(NULL AS VARCHAR)} END]) AS it
         FROM rows) AS marked WHERE it IS NOT NULL ORDER BY k, mark""",
    """SELECT m.k, (m.seen >> CAST(q.k AS UHUGEINT)) & 1 AS it FROM (SELECT u AS k,
         bit_or(CAST(1 AS UHUGEINT) << CAST(us * 3 AS UHUGEINT)) AS seen FROM rows GROUP BY u) AS m, range(0, 120) AS q(k) ORDER BY 1, q.k""",
    """SELECT u, n FROM (SELECT u, count(*) AS n FROM rows WHERE s IN (SELECT s FROM rows WHERE flag) GROUP BY u HAVING count(*) > 1) ORDER BY u""",
]  # fmt: skip


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_statement_means_the_same(statement: str, duck: Engine, postgres: Engine) -> None:
    assert differing(duck, postgres, statement) == []


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">="])
@pytest.mark.parametrize("side", ["", "LEFT"])
def test_the_latest_before_is_found(side: str, sign: str, duck: Engine, postgres: Engine) -> None:
    """Rows of one unit that tie in time have one ``at``, so that which of them is taken does not show."""
    template = f"""
        WITH found AS (SELECT u, us, max(i) AS at, min(s) AS word FROM rows WHERE flag GROUP BY u, us)
        SELECT l."Select" AS k, l.us AS mine, p.us, p.at, p.word AS said, p.at + 1 AS more
        FROM rows AS l ASOF {side} JOIN found AS p ON l.u = p.u AND l.us {sign} p.us
        WHERE p.us IS NULL OR p.us <> 17 ORDER BY k
    """
    assert differing(duck, postgres, template) == []


def test_branches_of_other_columns_are_united(duck: Engine, postgres: Engine) -> None:
    template = """
        SELECT u, us, v, CAST(NULL AS VARCHAR) AS s FROM rows WHERE i > 20
        UNION ALL BY NAME SELECT us, u, s FROM rows WHERE i < -20
        UNION ALL BY NAME SELECT us, i, u FROM rows WHERE i = 0 ORDER BY us, u, v, s, i
    """
    assert differing(duck, postgres, template) == []


def test_buckets_are_the_same(duck: Engine, postgres: Engine) -> None:
    assert differing(duck, postgres, "SELECT s, $b AS it FROM rows ORDER BY s", b=bucket(column("s"), 97)) == []


@pytest.mark.parametrize(
    "expression",
    ["now()", "nextval('x')", "pg_sleep(1)", "regexp_matches(s, s)", r"regexp_matches(s, '\bx')", "regexp_matches(s, '(?i)x')", "strftime(ts, '%Y')"],
)  # fmt: skip
def test_what_has_no_equal_form_is_refused(expression: str, postgres: Engine) -> None:
    with pytest.raises(CannotRun, match="postgres cannot run 'test'"):
        postgres.fetch(sql(f"SELECT {expression} AS it FROM rows", rows=relation(postgres)), "test")


def test_a_star_without_columns_is_written_out_or_refused() -> None:
    known = sql("SELECT * EXCLUDE (n) FROM step", step=sql("SELECT 1 AS n, 2 AS m"))
    assert DIALECT.text(known.tree).endswith('SELECT\n  "m"\nFROM "step"')
    with pytest.raises(CannotRun, match="EXCLUDE of a table's columns"):
        DIALECT.text(sql("SELECT a.* EXCLUDE (n) FROM kept AS a").tree)


def test_text_is_ordered_by_its_bytes_whatever_the_collation(server: str) -> None:
    expected = sorted((s for s in TEXTS if s is not None), key=lambda s: s.encode())
    with psycopg.connect(server.replace("/postgres", "/spoken")) as other:
        own = [r[0] for r in other.execute("SELECT s FROM rows WHERE s IS NOT NULL ORDER BY s").fetchall()]
    assert own != expected, "a database whose own order is that of bytes proves nothing"
    with opened(server.replace("/postgres", "/spoken")) as engine:
        query = sql("SELECT s FROM rows WHERE s IS NOT NULL ORDER BY s", rows=relation(engine))
        assert engine.fetch(query, "test")["s"].to_pylist() == expected
        ends = sql("SELECT min(s) AS low, max(s) AS high, count_if(s < 'a') AS under FROM rows", rows=relation(engine))
        assert engine.row(ends, "test") == {
            "low": expected[0],
            "high": expected[-1],
            "under": sum(s < "a" for s in expected),
        }
        engine.keep("kept", query, "test")
        again = sql("SELECT s, row_number() OVER (ORDER BY s DESC) AS k FROM kept ORDER BY k DESC")
        assert engine.fetch(again, "test")["s"].to_pylist() == expected
        word = sql(
            "SELECT min(k) AS it FROM (SELECT CASE WHEN s = 'a' THEN 'a' ELSE 'B' END AS k FROM rows) AS x",
            rows=relation(engine),
        )
        assert engine.row(word, "test") == {"it": "B"}


def test_types_are_told_in_the_names_of_duckdb(postgres: Engine, admin: Any) -> None:
    admin.execute("DROP TABLE IF EXISTS kinds")
    admin.execute(
        "CREATE TABLE kinds (a smallint, b integer, c bigint, d real, e double precision, f numeric(9, 2), g numeric, h text,"
        ' i varchar(5), j char(3), k uuid, l jsonb, m inet, n boolean, o date, p timestamp(3), q timestamptz, r integer[], s text[], "T" "char")'
    )
    admin.execute(
        "INSERT INTO kinds VALUES (1, 2, 3, 0.1, 0.2, 1.25, 12345678901234567890.5, 'x', 'y', 'z', '00000000-0000-0000-0000-000000000001', '{\"a\": 1}',"
        " '10.0.0.1', true, '2026-01-02', '2026-01-02', '2026-01-02', '{1,2}', '{a}', 'c')"
    )
    found = postgres.types(relation(postgres, "kinds"))
    assert list(found.values()) == [
        *("SMALLINT", "INTEGER", "BIGINT", "FLOAT", "DOUBLE", "DECIMAL(9,2)", "DECIMAL(38,10)", *("VARCHAR",) * 6),
        *("BOOLEAN", "DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "INTEGER[]", "VARCHAR[]", "VARCHAR"),
    ]
    assert list(found) == [*"abcdefghijklmnopqrs", "T"]
    row = postgres.row(relation(postgres, "kinds"), "test")
    assert (row["j"], row["k"], row["m"], row["r"], row["T"]) == (
        "z",
        "00000000-0000-0000-0000-000000000001",
        "10.0.0.1/32",
        [1, 2],
        "c",
    )
    told = sql("SELECT coalesce(CAST(TRY_CAST(CASE WHEN g + 0.5 = floor(g + 0.5) THEN g + 0.5 END AS HUGEINT) AS VARCHAR), '?') AS it FROM kinds",
               kinds=relation(postgres, "kinds"))  # fmt: skip
    assert postgres.row(told, "test") == {"it": "12345678901234567891"}
    admin.execute("DROP TABLE kinds")


def test_sums_of_integers_are_whole_beyond_a_bigint(postgres: Engine) -> None:
    most = 2**63 - 1
    found = postgres.row(
        parsed_query(f"SELECT sum(x) AS it FROM (SELECT unnest([{most}, {most}]) AS x) AS t")[0], "test"
    )
    assert int(found["it"]) == 2 * most


# ---------------------------------------------------------------- what a session does and leaves


def catalog(admin: Any) -> list[Any]:
    found: list[Any] = admin.execute(
        "SELECT n.nspname::text, c.relname::text, c.relkind::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname !~ '^pg_toast' UNION ALL SELECT n.nspname, p.proname, 'p' FROM pg_proc AS p JOIN pg_namespace AS n"
        " ON n.oid = p.pronamespace ORDER BY 1, 2, 3"
    ).fetchall()
    return found


def test_a_role_that_may_only_read_is_enough_and_nothing_is_left(server: str, admin: Any) -> None:
    admin.execute("DROP ROLE IF EXISTS reader")
    admin.execute("CREATE ROLE reader LOGIN")
    admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    admin.execute("GRANT SELECT ON rows TO reader")
    before = catalog(admin)
    with opened(server.replace("tester@", "reader@")) as engine:
        engine.keep("values_0", sql("SELECT u, sum(v) AS x FROM rows GROUP BY u", rows=relation(engine)), "test")
        engine.append("values_0", sql("SELECT 'one more' AS u, 1.0 AS x"), "test")
        assert (
            engine.row(sql("SELECT count(*) AS n FROM values_0"), "test")["n"] == len(set(TABLE["u"].to_pylist())) + 1
        )
        assert catalog(admin) != before
        with pytest.raises(DataError, match="permission denied"), engine._writing():
            engine._run("CREATE TABLE public.mine (i integer)", "test", None)
    deadline = time.monotonic() + 10
    while catalog(admin) != before and time.monotonic() < deadline:
        time.sleep(0.02)  # the server notices that a session ended a moment later
    assert catalog(admin) == before
    admin.execute("DROP OWNED BY reader")
    admin.execute("DROP ROLE reader")


def test_who_may_write_still_does_not(postgres: Any) -> None:
    with pytest.raises(DataError, match="read-only transaction"):
        postgres._run("INSERT INTO public.rows (i) VALUES (1)", "test", None)
    with pytest.raises(DataError, match="read-only transaction"):
        postgres._run("CREATE TABLE public.mine (i integer)", "test", None)


def test_permissions_that_lack_are_named(server: str, admin: Any) -> None:
    admin.execute("CREATE ROLE blind LOGIN")
    admin.execute("CREATE DATABASE closed")
    try:
        with (
            opened(server.replace("tester@", "blind@")) as engine,
            pytest.raises(DataError, match="GRANT SELECT") as error,
        ):
            engine.fetch(relation(engine), "look", "rows")
        assert "source 'rows': " in str(error.value)
        admin.execute("REVOKE TEMPORARY ON DATABASE closed FROM PUBLIC")
        with pytest.raises(ConnectionFailed, match=r"permission denied to create temporary.*GRANT TEMPORARY"):
            opened(server.replace("tester@/postgres", "blind@/closed"))
    finally:
        admin.execute("DROP DATABASE closed WITH (FORCE)")
        admin.execute("DROP ROLE blind")


def test_our_tables_do_not_hide_those_of_the_user_nor_are_they_dropped(postgres: Any, admin: Any) -> None:
    admin.execute("DROP TABLE IF EXISTS values_0")
    admin.execute("CREATE TABLE values_0 AS SELECT 'theirs' AS whose")
    with pytest.raises(DataError, match="values_0"):
        postgres.fetch(sql("SELECT * FROM values_0"), "test")  # ours, which is not there yet
    postgres.keep("values_0", sql("SELECT 'ours' AS whose"), "test")
    assert postgres.row(sql("SELECT whose FROM values_0"), "test") == {"whose": "ours"}
    assert postgres.row(relation(postgres, "values_0"), "test") == {"whose": "theirs"}
    postgres.drop("values_0")
    postgres.drop("values_0")
    assert admin.execute("SELECT whose FROM values_0").fetchone() == ("theirs",)
    admin.execute("DROP TABLE values_0")


def test_names_of_any_length_and_case(postgres: Any, admin: Any) -> None:
    long = "a_name_that_is_longer_than_what_postgresql_keeps_of_names_which_is_"
    postgres.keep(f"{long}_Kept", Query(sql("SELECT 1 AS a").tree), "test")
    query = sql(f"SELECT a AS {long}_one, a + 1 AS {long}_two, 3 AS Mixed FROM {long}_Kept")
    assert postgres.row(query, "test") == {f"{long}_one": 1, f"{long}_two": 2, "Mixed": 3}
    admin.execute('CREATE SCHEMA "Deep"')
    admin.execute('CREATE TABLE "Deep"."Orders" ("userId" integer, "user" text)')
    try:
        for parts in (["Deep", "Orders"], ["deep", "orders"]):
            select = parsed_query("SELECT * FROM t")[0].tree
            place = postgres.place("main", parts)
            next(iter(select.find_all(type(place)))).replace(place)
            assert list(postgres.types(Query(select))) == ["userId", "user"]
    finally:
        admin.execute('DROP SCHEMA "Deep" CASCADE')


ENDLESS = "SELECT count(*) AS n FROM range(0, 100000) AS a(x), range(0, 100000) AS b(y), range(0, 1000) AS c(z)"


def _running(admin: Any) -> int:
    row = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'payoff' AND state = 'active'"
    ).fetchone()
    return int(row[0])


def _once_running(admin: Any, then: Any) -> threading.Thread:
    def wait() -> None:
        deadline = time.monotonic() + 20
        while _running(admin) == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "run",
    [lambda engine: engine.fetch(sql(ENDLESS), "test"), lambda engine: engine.keep("endless", sql(ENDLESS), "test")],
    ids=["fetch", "keep"],
)
def test_ctrl_c_stops_the_statement_on_the_server(run: Callable[[Any], Any], postgres: Any, admin: Any) -> None:
    thread = _once_running(admin, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(postgres)
    thread.join()
    assert _running(admin) == 0
    with pytest.raises(DataError, match="endless"):
        postgres.fetch(sql("SELECT * FROM endless"), "test")
    assert postgres.row(sql("SELECT 1 AS one"), "test") == {"one": 1}


def test_ctrl_c_outside_of_a_wait_stops_it_too(postgres: Any, admin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def sent_only(text: bytes) -> None:
        postgres._session.pgconn.send_query(text)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(postgres._session, "execute", sent_only)
        with pytest.raises(KeyboardInterrupt):
            postgres._run("SELECT pg_sleep(600)", "test", None)
    assert _running(admin) == 0
    assert postgres.row(sql("SELECT 1 AS one"), "test") == {"one": 1}


def test_a_server_that_goes_is_told_of(postgres: Any, admin: Any) -> None:
    pid = postgres._session.info.backend_pid
    thread = _once_running(admin, lambda: admin.execute("SELECT pg_terminate_backend(%s)", (pid,)))
    with pytest.raises(ConnectionFailed, match=r"^count: the server of connection 'main' ended the session"):
        postgres.fetch(sql(ENDLESS), "count")
    thread.join()


def test_no_room_is_told_of(server: str) -> None:
    options = "&options=-c%20temp_file_limit%3D1MB%20-c%20work_mem%3D64kB"
    with opened(server + options) as engine, pytest.raises(ConnectionFailed, match=r"^sort: the server has no room"):
        engine.fetch(sql("SELECT count(*) AS n FROM (SELECT DISTINCT x FROM range(0, 1000000) AS a(x)) AS d"), "sort")


def test_tuning_of_the_url_is_kept_and_meaning_is_not_left_to_it(server: str, admin: Any) -> None:
    admin.execute("ALTER DATABASE postgres SET timezone = 'Asia/Tokyo'")
    admin.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
    admin.execute("ALTER DATABASE postgres SET datestyle = 'SQL, DMY'")
    try:
        with opened(server + "&options=-c%20work_mem%3D33MB%20-c%20TimeZone%3DAsia/Tokyo") as engine:
            assert engine._session.execute("SHOW work_mem").fetchone() == ("33MB",)
            assert engine._session.execute("SHOW TimeZone").fetchone() == ("UTC",)
            query = sql(
                "SELECT CAST(CAST('2026-02-03' AS DATE) AS VARCHAR) AS a, CAST(t AS VARCHAR) AS b FROM (SELECT CAST('2026-02-03' AS TIMESTAMPTZ) AS t) AS x"
            )
            assert engine.row(query, "test") == {"a": "2026-02-03", "b": "2026-02-03 00:00:00+00"}
    finally:
        for name in ("timezone", "default_transaction_read_only", "datestyle"):
            admin.execute(f"ALTER DATABASE postgres RESET {name}")


@pytest.mark.parametrize("scheme", ["postgres://", "postgresql://", "postgresql+psycopg://", "postgresql+psycopg2://"])
def test_urls_of_other_tools_are_read(scheme: str, server: str) -> None:
    with opened(server.replace("postgresql://", scheme)) as engine:
        assert engine.version.split(".")[0].isdigit()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cr3t@127.0.0.1:1/db",
        "postgresql://u:s3cr3t@nowhere.invalid/db",
        "postgresql://u:s3cr3t@h:port/db",
        "s3cr3t",
    ],
)
def test_no_connection_and_no_password_in_what_is_said(url: str) -> None:
    with pytest.raises(ConnectionFailed, match=r"^connection 'main': ") as error:
        opened(url)
    assert "s3cr3t" not in str(error.value)
    assert "s3cr3t" not in "".join(
        str(a) for a in (error.value.__cause__, error.value.__context__) if error.value.__cause__ is a
    )


def test_a_table_that_is_not_there(postgres: Any) -> None:
    with pytest.raises(DataError, match=r'source .nothing.: look at columns: relation "public.nothing" does not exist'):
        postgres.types(parsed_query("SELECT * FROM public.nothing")[0], "nothing")


def test_dates_are_python_dates(postgres: Any) -> None:
    row = postgres.row(
        sql("SELECT CAST('2026-02-03' AS DATE) AS d, CAST(NULL AS BIGINT) AS n, true AS b, 0.5 AS x"), "test"
    )
    assert row == {"d": date(2026, 2, 3), "n": None, "b": True, "x": 0.5}

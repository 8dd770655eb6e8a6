"""Dialects that are written and not executed.

Most forms are read back by sqlglot, whose reading of each dialect is not ours, as DuckDB's SQL, and executed beside what they were
written from; those that cannot be are compared as text. A whole project is parsed back. What has no form is refused by its name.
"""

from __future__ import annotations

import random
from datetime import date, datetime, time
from pathlib import Path

import duckdb
import pytest
import sqlglot
from sqlglot import exp

from payoff import Project
from payoff.errors import UsageError
from payoff.warehouse.dialect import CannotRun
from payoff.warehouse.engines import rendered, spark
from payoff.warehouse.engines.rendered import RENDERED, dialect_of, written
from payoff.warehouse.query import bucket, column, fragment, parsed_query, sql
from payoff.warehouse.sources import Clock
from payoff.world import World, write_demo_project

DIALECTS = sorted(RENDERED)


def said(dialect: str, text: str, rows: str = "t") -> str:
    return " ".join(RENDERED[dialect].text(sql(f"SELECT {text} AS it FROM {rows}").tree).split())


# ---------------------------------------------------------------- read back and executed

ROWS = """
    CREATE TABLE t AS SELECT * FROM (VALUES
      (1, 7, 2, 1.5::DOUBLE, 'ab', true, TIMESTAMP '2026-03-29 12:30:00.123456', [1, NULL]),
      (1, -7, 2, NULL, NULL, false, TIMESTAMP '2026-01-05 00:00:00', [4]),
      (2, NULL, 3, -2.5, 'b ', NULL, NULL, [NULL]),
      (2, 9, 0, 'inf'::DOUBLE, '', true, TIMESTAMP '1969-12-31 23:59:59.5', [3, 2]),
      (2, 3, 3, 0.0, 'ab', false, TIMESTAMP '2026-06-01 00:00:00', [5]),
      (2, 3, NULL, 6.0, 'ba', false, TIMESTAMP '2026-11-01 07:15:00', [2])) AS v(k, a, b, x, s, p, ts, l)
"""
THEIRS = """
    CREATE MACRO timestamp_micros(us) AS make_timestamp(us);
    CREATE MACRO from_unixtime_nanos(ns) AS make_timestamp(ns // 1000);
    CREATE MACRO with_timezone(naive, zone) AS timezone(zone, naive);
    CREATE MACRO is_finite(x) AS isfinite(x);
    CREATE MACRO bitwise_left_shift(a, b) AS a << b;
    CREATE MACRO bitwise_right_shift(a, b) AS a >> b;
    CREATE MACRO get(l, i) AS l[i + 1];
    CREATE MACRO btrim(s, of) AS trim(s, of);
    CREATE MACRO fsum(x) AS sum(x::DOUBLE)
"""
"""Functions by which they are read back that DuckDB has under another name."""

SCALARS = [
    *("a // 7", "a // nullif(b, 0)", "a % 7", "least(a, b)", "greatest(a, b, x)", "a IS NOT DISTINCT FROM b", "a / 7"),
    *(
        "epoch_us(ts)",
        "epoch_us(CAST(ts AS TIMESTAMP) AT TIME ZONE 'America/New_York')",
        "make_timestamp(epoch_us(ts))",
    ),
    *("isfinite(x)", "contains(s, 'a')", "ends_with(s, 'b')", "regexp_matches(s, '^[ab]')", "s LIKE 'a%'", "trim(s)"),
    *("trim(s, 'a')", "CAST(a > 2 AS DOUBLE)", "list_contains(l, 2)", "list_extract(l, 2)", "CAST(ts AS DATE) + 3"),
    *("year(ts)", "extract(hour FROM ts)", "a & 3", "1 << 3", "a >> 1", "(a, b) IN ((7, 2), (9, 0))", "power(a, 2)"),
    *("substring(s, 1, 1)", "TRY_CAST(CASE WHEN x = floor(x) THEN x END AS HUGEINT)"),
]
AGGREGATES = [
    *("count(*) FILTER (WHERE a > 1)", "sum(a) FILTER (WHERE p)", "sum(a > 2)", "avg(a)", "var_samp(a)", "fsum(a)"),
    *("covar_samp(a, b)", "quantile_cont(a, 0.5)", "arg_max(s, x)", "arg_min(s, x)", "bool_or(p)", "bit_or(b)"),
    *("any_value(k) FILTER (WHERE b > 1)", "count(DISTINCT s) FILTER (WHERE p)", "string_agg(s, '>' ORDER BY a, s)"),
    *("struct_extract(min({'t': a, 'v': s}), 'v')", "struct_extract(min({'t': a, 'v': s}) FILTER (WHERE b > 1), 'v')"),
]
WINDOWS = [
    "row_number() OVER (PARTITION BY k ORDER BY a NULLS LAST, x)",
    "lead(s IGNORE NULLS) OVER (ORDER BY a NULLS LAST, x)",
    "lag(s) OVER (ORDER BY a NULLS LAST, x NULLS LAST)",
]
NOT_READ = {
    ("trino", "a // 7"): "its / of whole numbers is whole, which sqlglot does not read",
    ("trino", "a // nullif(b, 0)"): "the same",
    ("redshift", "make_timestamp(epoch_us(ts))"): "the same",
    ("redshift", "TRY_CAST(CASE WHEN x = floor(x) THEN x END AS HUGEINT)"): "the text of DECIMAL(38, 0) is not read",
    ("databricks", "epoch_us(CAST(ts AS TIMESTAMP) AT TIME ZONE 'America/New_York')"): "to_utc_timestamp() is misread",
    ("databricks", "list_contains(l, 2)"): "false where there is no list, as on Spark",
    ("databricks", "quantile_cont(a, 0.5)"): "percentile() interpolates; sqlglot reads quantile()",
    ("bigquery", "struct_extract(min({'t': a, 'v': s}), 'v')"): "DuckDB has no LIMIT within array_agg()",
    ("bigquery", "struct_extract(min({'t': a, 'v': s}) FILTER (WHERE b > 1), 'v')"): "the same",
}
NO_FORM = {
    "bigquery": {"quantile_cont"},
    "snowflake": {"list_contains", "list_extract", "struct_extract"},
    "databricks": set[str](),
    "trino": {"quantile_cont"},
    "redshift": {"list_contains", "list_extract", "struct_extract", "arg_max", "arg_min"},
}


def plain(value: object) -> object:
    """A date as its midnight: days are read back as an interval."""
    return datetime.combine(value, time()) if isinstance(value, date) and not isinstance(value, datetime) else value


@pytest.fixture(scope="module")
def executing() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for statement in (*THEIRS.split(";"), ROWS):
        connection.execute(statement)
    return connection


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_written_means_the_same(executing: duckdb.DuckDBPyConnection, dialect: str) -> None:
    done = 0
    for expressions, rest in ((SCALARS, ""), (AGGREGATES, " GROUP BY k"), (WINDOWS, "")):
        for ours in expressions:
            text = f"SELECT k, {ours} AS it FROM t{rest}"
            try:
                theirs = RENDERED[dialect].text(sql(text).tree)
            except CannotRun:
                assert ours.split("(")[0] in NO_FORM[dialect], ours
                continue
            assert ours.split("(")[0] not in NO_FORM[dialect], ours
            if (dialect, ours) in NOT_READ:
                continue
            back = sqlglot.transpile(theirs, read=dialect, write="duckdb")[0]
            wanted, got = (sorted(executing.execute(q).fetchall(), key=repr) for q in (text, back))
            assert [list(map(plain, row)) for row in got] == [list(map(plain, row)) for row in wanted], (ours, theirs)
            done += 1
    assert done > 35


# ---------------------------------------------------------------- compared as text

FORMS = [
    ("bigquery", "epoch_us(t.z)", "UNIX_MICROS(CAST(t.z AS TIMESTAMP))"),
    ("snowflake", "epoch_us(t.z)", "DATE_PART(EPOCH_MICROSECOND, t.z)"),
    ("trino", "epoch_us(t.z)", "TO_UNIXTIME(CAST(t.z AS TIMESTAMP(6) WITH TIME ZONE))"),
    ("redshift", "epoch_us(t.z)", "DATEDIFF(MICROSECOND, CAST('1970-01-01' AS TIMESTAMP), CAST(t.z AS TIMESTAMP))"),
    ("redshift", "make_timestamp(a)", "DATEADD( DAY, CAST(( CAST(a AS BIGINT) ) / 86400000000 AS INTEGER), CAST('1970"),
    ("trino", "a // 7", "( a / 7 )"),
    ("snowflake", "a // 7", "- MOD(a, 7) ) / 7 ) AS BIGINT)"),
    ("redshift", "sum(a) // 7", "AS BIGINT)"),
    ("bigquery", "least(a, b)", "LEAST(COALESCE(a, b), COALESCE(b, a))"),
    ("redshift", "least(a, b)", "LEAST(a, b)"),
    ("bigquery", "sum(a) OVER (ORDER BY b)", "ORDER BY ( b IS NULL ) ASC, b ASC"),
    ("bigquery", "struct_extract(min({'t': a, 'v': b}), 'v')", "IGNORE NULLS ORDER BY ( a IS NULL ) ASC, a ASC"),
    ("bigquery", "any_value(a)", "ANY_VALUE(a)"),
    ("trino", "any_value(a)", "ANY_VALUE(a)"),
    ("redshift", "any_value(a)", "MIN(a)"),
    ("snowflake", "row_number() OVER ()", "ROW_NUMBER() OVER (ORDER BY 1 ASC)"),
    ("snowflake", "quantile_cont(a, 0.5)", "PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY CAST(a AS DOUBLE) ASC)"),
    ("snowflake", "TRY_CAST(s AS DOUBLE)", "TRY_CAST(CAST(s AS VARCHAR) AS DOUBLE)"),
    ("trino", "struct_extract(min({'t': a, 'v': b}), 'v')", "ELEMENT_AT(ARRAY_AGG(b ORDER BY a"),
    ("trino", "CAST(a AS TIMESTAMP)", "CAST(a AS TIMESTAMP(6))"),
    ("trino", "CAST(a AS DATE) + n", "DATE_ADD('day', n, CAST(a AS DATE))"),
    ("trino", "string_agg(a, ',' ORDER BY b)", "LISTAGG(a, ',') WITHIN GROUP (ORDER BY b"),
    *((d, "CAST(a > 1 AS DOUBLE)", "CAST(CAST(a > 1 AS ") for d in DIALECTS),
]


@pytest.mark.parametrize(("dialect", "ours", "theirs"), FORMS, ids=[f"{d} {o}" for d, o, _ in FORMS])
def test_forms_as_text(dialect: str, ours: str, theirs: str) -> None:
    assert theirs in said(dialect, ours).replace("`", "")


BUCKETS = {
    "bigquery": "CAST(CONCAT('0x', SUBSTR(TO_HEX(MD5(id)), 1, 15)) AS INT64)",
    "snowflake": "TO_NUMBER(SUBSTR(MD5(id), 1, 15), 'XXXXXXXXXXXXXXX')",
    "databricks": "CONV(SUBSTRING(MD5(id), 1, 15), 16, 10)",
    "trino": "FROM_BASE(SUBSTR(TO_HEX(MD5(TO_UTF8(id))), 1, 15), 16)",
    "redshift": "STRTOL(SUBSTRING(MD5(id), 1, 15), 16)",
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_bucket_is_of_the_same_digits(dialect: str) -> None:
    text = RENDERED[dialect].text(sql("SELECT $b AS b FROM t", b=bucket(column("id"), 512)).tree)
    assert BUCKETS[dialect] in text.replace('"', "").replace("`", "")


def test_databricks_has_the_table_that_is_executed_on_spark() -> None:
    assert RENDERED["databricks"].macros is spark.DIALECT.macros
    assert RENDERED["databricks"].plain is spark.DIALECT.plain
    assert said("databricks", "s.a", "stream AS s").endswith("FROM `stream` AS s")  # which is a keyword there


# ---------------------------------------------------------------- refused

STORED = "(SELECT * FROM shop.orders) AS base"
REFUSED = [
    ("bigquery", "quantile_cont(a, 0.5)", "quantile_cont()"),
    ("trino", "quantile_cont(a, 0.5)", "quantile_cont()"),
    ("redshift", "arg_max(a, b)", "arg_max()"),
    ("redshift", "TRY_CAST(s AS DOUBLE)", "TRY_CAST of what may be an empty text"),
    ("redshift", "quantile_cont(a, 0.5) + quantile_cont(b, 0.5)", "of different orders"),
    ("snowflake", "bit_count(a)", "bit_count()"),
    ("trino", "extract(dow FROM a)", "extract(dow)"),
    ("trino", "hash(a, b)", "hash() of several values"),
    ("bigquery", "CAST(a AS TIMESTAMPTZ) AT TIME ZONE 'Europe/Berlin'", "AT TIME ZONE of an instant"),
    *((d, "regexp_matches(a, '\\d')", "a regular expression") for d in DIALECTS if d != "bigquery"),
    *((d, "soundex(a)", "soundex()") for d in DIALECTS),
    *((d, "a AT TIME ZONE 'Europe/Berlin'", "AT TIME ZONE of a time whose type no cast shows") for d in DIALECTS),
    *((d, "CAST(a AS INTEGER)", "may be a fraction") for d in DIALECTS),
    *((d, "CAST(a / 2 AS INTEGER)", "may be a fraction") for d in DIALECTS),
    *((d, "a // 2", "// of what may be a fraction") for d in DIALECTS),
    *((d, "floor(a) // 2", "// of what may be a fraction") for d in DIALECTS),
    *((d, "CAST(CAST(a AS DOUBLE) AS VARCHAR)", "to text") for d in DIALECTS),
    *((d, "CAST(a > 1 AS VARCHAR)", "to text") for d in DIALECTS),
    *((d, "a LIKE '10\\%'", "LIKE by a pattern with a backslash") for d in DIALECTS),
]


@pytest.mark.parametrize(("dialect", "ours", "named"), REFUSED)
def test_what_has_no_form_is_named(dialect: str, ours: str, named: str) -> None:
    with pytest.raises(CannotRun) as refused:
        said(dialect, ours, STORED)
    assert named in str(refused.value)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_shown_to_be_whole_is_cast(dialect: str) -> None:
    for ours in (
        "floor(a)",
        "count(*)",
        "epoch_us(a) // 86400000000",
        "CASE WHEN a > 1 THEN 1 ELSE 0 END",
        "'7'",
        "a > 1",
    ):
        assert "CAST" in said(dialect, f"CAST({ours} AS INTEGER)", STORED)
    assert "CAST" in said(dialect, "CAST(a AS INTEGER)", "made_by_a_run")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ["TIMESTAMP", "DATE", "VARCHAR"])
def test_a_clock_in_a_zone_is_no_users_guess(dialect: str, kind: str) -> None:
    us = Clock(column("seen"), kind, "Europe/Berlin").us
    assert "Europe/Berlin" in RENDERED[dialect].text(sql(f"SELECT $us AS us FROM {STORED}", us=us).tree)
    own = fragment("epoch_us($seen AT TIME ZONE 'Europe/Berlin')", seen=column("seen"))
    with pytest.raises(CannotRun, match="AT TIME ZONE"):
        RENDERED[dialect].text(sql(f"SELECT $us AS us FROM {STORED}", us=own).tree)


# ---------------------------------------------------------------- whole statements


def test_asof_joins_are_spans() -> None:
    """The rewriting is run as it is written, on DuckDB itself: the same rows as its own ASOF join, with ties and NULLs."""
    seeded = random.Random(7)
    with duckdb.connect() as connection:
        for table in ("l", "r"):
            rows = [(seeded.choice("ab"), seeded.choice([None, *range(8)])) for _ in range(40)]
            connection.execute(f"CREATE TABLE {table} (k VARCHAR, t INTEGER)")
            connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)
        for kind in ("ASOF JOIN", "ASOF LEFT JOIN"):
            for order in (">=", ">", "<=", "<"):
                text = f"SELECT l.k AS k, l.t AS t, r.t AS found FROM l {kind} r ON l.k = r.k AND l.t {order} r.t"
                tree = rendered._nearest_as_spans(sql(text).tree.copy())
                assert "ASOF" not in tree.sql("duckdb")
                ours, theirs = (sorted(connection.execute(q).fetchall(), key=str) for q in (text, tree.sql("duckdb")))
                assert ours == theirs


def test_lists_are_rows() -> None:
    text = """
        SELECT k, struct_extract(it, 'm') AS m, struct_extract(it, 'v') AS v FROM (
          SELECT k, unnest(list_filter([CASE WHEN k > 0 THEN {'m': 0, 'v': k} END, CASE WHEN k > 1 THEN {'m': 1, 'v': k + 5} END],
                                       lambda x: x IS NOT NULL)) AS it
          FROM (SELECT unnest([0, 1, 2, 3]) AS k)
        )
    """
    tree = rendered._lists_as_rows(sql(text).tree.copy())
    assert "UNNEST" not in tree.sql("duckdb")
    with duckdb.connect() as connection:
        ours, theirs = (sorted(connection.execute(q).fetchall()) for q in (text, tree.sql("duckdb")))
    assert ours == theirs
    assert len(ours) == 5


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Of the simulated company's project short statements that hold every kind of node that any of its statements holds."""
    folder: Path = tmp_path_factory.mktemp("company")
    write_demo_project(
        folder / "project", World(customers=200, seed=7), today=date(2026, 11, 22), truth_dir=folder / "truth"
    )
    held = {
        (step.name, step.sql): {
            node.name.lower() if isinstance(node, exp.Anonymous) else type(node)
            for node in parsed_query(step.sql)[0].tree.walk()
        }
        for step in Project.load(folder / "project").plan()
    }
    out, missing = [], set[object]().union(*held.values())
    while missing:
        best = max(held, key=lambda step: len(held[step] & missing) / len(step[1]))
        missing -= held[best]
        out.append(best)
    return out


LACKING = {
    "bigquery": {"array_agg()", "UNION BY NAME", "the greatest of structs", "quantile_cont() as an aggregate"},
    "snowflake": {"array_agg()", "UNION BY NAME", "a part of a struct", "bit_count()", "list_contains() (a list's"},
    "databricks": {"UNION BY NAME of different columns"},
    "trino": {"array_agg()", "UNION BY NAME", "the greatest of structs", "quantile_cont()", "* EXCLUDE"},
    "redshift": {"array_agg()", "UNION BY NAME", "a part of a struct", "bit_count()", "list_contains()", "arg_max()"},
}
"""What the project needs and the dialect is refused, beside lists that are unnested."""


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_whole_project_is_written_and_parsed_back(plan: list[tuple[str, str]], dialect: str) -> None:
    out = written(dialect, plan)
    assert [w.step for w in out] == [step for step, _ in plan]
    refused = [w.refused.split("equal form of ")[1] for w in out if w.refused is not None]
    for reason in refused:
        assert any(reason.startswith(r) for r in (*LACKING[dialect], "unnest() of a list")), reason
    for w in out:
        if w.text is not None:
            trees = [t for t in sqlglot.parse(w.text, read=dialect) if t is not None]
            assert all(isinstance(t, exp.Query | exp.Create | exp.Drop) for t in trees), w.text
    assert len(out) - len(refused) > 10


def test_an_unknown_dialect_lists_those_known() -> None:
    with pytest.raises(UsageError, match="known: duckdb, postgres, clickhouse, spark, bigquery"):
        dialect_of("bigqery")


def test_ours_is_given_back_as_it_is() -> None:
    ours = [("rows", "CREATE TEMPORARY TABLE a AS\nSELECT\n  1 AS x")]
    assert written("duckdb", ours)[0].text == ours[0][1]

"""Dialects that are written and not executed: documented forms, parsed back; what has no form is refused by its name."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
import sqlglot
from sqlglot import exp

from payoff import Project
from payoff.errors import UsageError
from payoff.warehouse.dialect import CannotRun
from payoff.warehouse.engines.rendered import RENDERED, dialect_of, written
from payoff.warehouse.query import bucket, column, sql
from payoff.world import World, write_demo_project

DIALECTS = sorted(RENDERED)


def said(dialect: str, text: str) -> str:
    return " ".join(RENDERED[dialect].text(sql(f"SELECT {text} AS it FROM t").tree).split())


FORMS = [
    ("bigquery", "epoch_us(t.at)", "UNIX_MICROS(CAST(t.`at` AS TIMESTAMP))"),
    ("snowflake", "epoch_us(t.at)", "DATE_PART(EPOCH_MICROSECOND, t.at)"),
    ("databricks", "epoch_us(t.at)", "UNIX_MICROS(CAST(t.at AS TIMESTAMP))"),
    ("trino", "epoch_us(t.at)", "TO_UNIXTIME(CAST(t.at AS TIMESTAMP(6) WITH TIME ZONE))"),
    ("redshift", "epoch_us(t.at)", "DATEDIFF(MICROSECOND, CAST('1970-01-01' AS TIMESTAMP), CAST(t.at AS TIMESTAMP))"),
    ("bigquery", "a // 7", "DIV(a, 7)"),
    ("snowflake", "a // 7", "- MOD(a, 7) ) / 7 ) AS BIGINT)"),
    ("bigquery", "count(*) FILTER (WHERE a > 1)", "COUNT(CASE WHEN a > 1 THEN 1 END)"),
    ("redshift", "sum(a) FILTER (WHERE b)", "SUM(CASE WHEN b THEN a END)"),
    ("trino", "sum(a) FILTER (WHERE b)", "SUM(a) FILTER(WHERE b)"),
    ("bigquery", "least(a, b)", "LEAST(COALESCE(a, b), COALESCE(b, a))"),
    ("redshift", "least(a, b)", "LEAST(a, b)"),
    ("redshift", "a IS NOT DISTINCT FROM b", "( a = b OR ( a IS NULL AND b IS NULL ) )"),
    ("snowflake", "avg(a)", "AVG(CAST(a AS DOUBLE))"),
    ("redshift", "avg(a)", "AVG(CAST(a AS DOUBLE PRECISION))"),
    ("trino", "a & 3", "BITWISE_AND(a, 3)"),
    ("snowflake", "quantile_cont(a, 0.5)", "PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY a ASC)"),
    ("snowflake", "arg_max(a, b)", "MAX_BY(a, CASE WHEN NOT a IS NULL THEN b END)"),
    ("trino", "min({'t': a, 'v': b}).v", "ELEMENT_AT(ARRAY_AGG(b ORDER BY a"),
]


@pytest.mark.parametrize(("dialect", "ours", "theirs"), FORMS, ids=[f"{d} {o}" for d, o, _ in FORMS])
def test_documented_forms(dialect: str, ours: str, theirs: str) -> None:
    if ours.startswith("min({"):
        ours = "struct_extract(min({'t': a, 'v': b}), 'v')"
    assert theirs in said(dialect, ours)


BUCKETS = {
    "bigquery": "CAST(CONCAT('0x', SUBSTR(TO_HEX(MD5(id)), 1, 15)) AS INT64)",
    "snowflake": "TO_NUMBER(SUBSTR(MD5(id), 1, 15), 'XXXXXXXXXXXXXXX')",
    "databricks": "CONV(SUBSTR(MD5(id), 1, 15), 16, 10)",
    "trino": 'FROM_BASE(SUBSTR(TO_HEX(MD5(TO_UTF8("id"))), 1, 15), 16)',
    "redshift": 'STRTOL(SUBSTRING(MD5("id"), 1, 15), 16)',
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_bucket_is_of_the_same_digits(dialect: str) -> None:
    text = RENDERED[dialect].text(sql("SELECT $b AS b FROM t", b=bucket(column("id"), 512)).tree)
    assert BUCKETS[dialect].replace('"', "") in text.replace('"', "").replace("`", "")


REFUSED = [
    ("bigquery", "quantile_cont(a, 0.5)", "quantile_cont()"),
    ("trino", "quantile_cont(a, 0.5)", "quantile_cont()"),
    ("redshift", "arg_max(a, b)", "arg_max()"),
    ("snowflake", "bit_count(a)", "bit_count()"),
    *((d, "soundex(a)", "soundex()") for d in DIALECTS),
    *((d, "CAST(a AS UBIGINT)", "63 bits") for d in DIALECTS),
]


@pytest.mark.parametrize(("dialect", "ours", "named"), REFUSED)
def test_what_has_no_form_is_named(dialect: str, ours: str, named: str) -> None:
    with pytest.raises(CannotRun) as refused:
        said(dialect, ours)
    assert named in str(refused.value)


def test_asof_joins_are_spans() -> None:
    """The rewriting is run as it is written, on DuckDB itself: the same rows as its own ASOF join, with ties and NULLs."""
    import random

    import duckdb

    from payoff.warehouse.engines.rendered import _nearest_as_spans

    seeded = random.Random(7)
    with duckdb.connect() as connection:
        for table in ("l", "r"):
            rows = [(seeded.choice("ab"), seeded.choice([None, *range(8)])) for _ in range(40)]
            connection.execute(f"CREATE TABLE {table} (k VARCHAR, t INTEGER)")
            connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)
        for kind in ("ASOF JOIN", "ASOF LEFT JOIN"):
            for order in (">=", ">", "<=", "<"):
                text = f"SELECT l.k AS k, l.t AS t, r.t AS found FROM l {kind} r ON l.k = r.k AND l.t {order} r.t"
                tree = _nearest_as_spans(sql(text).tree.copy())
                assert "ASOF" not in tree.sql("duckdb")
                ours, theirs = (sorted(connection.execute(q).fetchall(), key=str) for q in (text, tree.sql("duckdb")))
                assert ours == theirs


def test_lists_are_rows() -> None:
    import duckdb

    from payoff.warehouse.engines.rendered import _lists_as_rows

    text = """
        SELECT k, struct_extract(it, 'm') AS m, struct_extract(it, 'v') AS v FROM (
          SELECT k, unnest(list_filter([CASE WHEN k > 0 THEN {'m': 0, 'v': k} END, CASE WHEN k > 1 THEN {'m': 1, 'v': k + 5} END],
                                       lambda x: x IS NOT NULL)) AS it
          FROM (SELECT unnest([0, 1, 2, 3]) AS k)
        )
    """
    tree = _lists_as_rows(sql(text).tree.copy())
    assert "UNNEST" not in tree.sql("duckdb")
    with duckdb.connect() as connection:
        ours, theirs = (sorted(connection.execute(q).fetchall()) for q in (text, tree.sql("duckdb")))
    assert ours == theirs
    assert len(ours) == 5


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """The statements of the simulated company's project: every kernel is in it."""
    folder: Path = tmp_path_factory.mktemp("company")
    write_demo_project(
        folder / "project", World(customers=200, seed=7), today=date(2026, 11, 22), truth_dir=folder / "truth"
    )
    return [(step.name, step.sql) for step in Project.load(folder / "project").plan()]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_whole_project_is_written_and_parsed_back(plan: list[tuple[str, str]], dialect: str) -> None:
    out = written(dialect, plan)
    assert [w.step for w in out] == [step for step, _ in plan]
    refused = [w for w in out if w.text is None]
    assert len(refused) <= len(out) // 8
    assert all(w.refused and dialect in w.refused for w in refused)
    for w in out:
        if w.text is not None:
            trees = [t for t in sqlglot.parse(w.text, read=dialect) if t is not None]
            assert all(isinstance(t, exp.Query | exp.Create | exp.Drop) for t in trees), w.text
    made = [w for w in out if w.text and "CREATE " in w.text]
    assert len(made) > 10


def test_an_unknown_dialect_lists_those_known() -> None:
    with pytest.raises(UsageError, match="known: duckdb, postgres, clickhouse, spark, bigquery"):
        dialect_of("bigqery")


def test_ours_is_given_back_as_it_is() -> None:
    ours = [("rows", "CREATE TEMPORARY TABLE a AS\nSELECT\n  1 AS x")]
    assert written("duckdb", ours)[0].text == ours[0][1]

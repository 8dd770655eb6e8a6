"""The only door through which a user's text becomes SQL."""

from __future__ import annotations

import hashlib
import string

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlglot import exp

from payoff.warehouse.query import ExpressionError, bucket, column, fragment, scalar, select_only, sql

COLUMNS = {"amount": "DOUBLE", "ts": "TIMESTAMP", "name": "VARCHAR", "props": "STRUCT(utm STRUCT(source VARCHAR))"}


@pytest.mark.parametrize(
    "text",
    [
        "amount * 1.2",
        "AMOUNT > 4 AND NOT name IS NULL",
        "CASE WHEN amount > 1 THEN 1 ELSE 0 END",
        "name ILIKE 'x%' OR name IN ('a', 'b')",
        "TRY_CAST(name AS DOUBLE)",
        "ts + INTERVAL 3 DAY",
        "date_trunc('day', ts)",
        "extract(hour FROM ts)",
        "props.utm.source",
        "coalesce(amount, 0) / 100",
        "regexp_matches(name, '^a')",
        "epoch(to_timestamp(amount))",
        "amount BETWEEN 1 AND 2",
    ],
)
def test_row_expressions_are_allowed_and_mean_what_they_meant(text: str) -> None:
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE t AS SELECT 2.5::DOUBLE AS amount, TIMESTAMP '2026-03-01 12:00' AS ts, 'abc' AS name,"
            " {'utm': {'source': 'mail'}} AS props"
        )
        as_written = connection.execute(f"SELECT {text} FROM t").fetchone()
        as_bound = connection.execute(f"SELECT {scalar(text, COLUMNS, 't').sql('duckdb')} FROM t").fetchone()
    assert as_bound == as_written


@pytest.mark.parametrize(
    "text",
    [
        "(SELECT 1)",
        "amount IN (SELECT 1)",
        "EXISTS (SELECT 1)",
        "sum(amount)",
        "row_number() OVER ()",
        "count(*)",
        "*",
        "COLUMNS('.*')",
        "getenv('HOME')",
        "current_setting('home_directory')",
        "read_csv('/etc/passwd')",
        "read_text('/etc/passwd')",
        "glob('*')",
        "random()",
        "uuid()",
        "now()",
        "current_date",
        "unnest([1, 2])",
        "$secret",
        "?",
        "nextval('s')",
        "query('SELECT 1')",
        "getvariable('x')",
        "error('x')",
    ],
)
def test_everything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        scalar(text, COLUMNS, "t")
    assert caught.value.code == "sql-not-allowed"


@pytest.mark.parametrize(
    "text", ["", "amount +", "amount; DROP TABLE t", "SELECT", ")(", "(" * 5_000, "NOT " * 2_000 + "a"]
)
def test_what_is_not_an_expression_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ExpressionError):
        scalar(text, COLUMNS, "t")


def test_an_unknown_column_is_named_with_the_nearest_one() -> None:
    with pytest.raises(ExpressionError, match="source 't' has no column 'amuont'; did you mean 'amount'"):
        scalar("amuont + 1", COLUMNS, "t")


@given(st.text(alphabet=string.printable, max_size=60))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        tree = scalar(text, COLUMNS, "t")
    except ExpressionError:
        return
    assert not list(tree.find_all(exp.Select, exp.Anonymous, exp.Placeholder, exp.Command)) or all(
        node.name.lower() in {"to_timestamp", "epoch_ms", "epoch", "len", "day", "hour"}
        for node in tree.find_all(exp.Anonymous)
    )


@given(st.text(min_size=1, max_size=40).filter(lambda s: "\x00" not in s and s.isprintable()))
def test_any_column_name_and_any_value_survives_quoting(name: str) -> None:
    with duckdb.connect() as connection:
        quoted = column(name).sql("duckdb")
        connection.execute(f"CREATE TABLE t ({quoted} VARCHAR)")
        connection.execute("INSERT INTO t VALUES (?)", [name])
        found = connection.execute(
            fragment("$c = $v", c=column(name), v=name).sql("duckdb").join(("SELECT ", " FROM t"))
        )
        assert found.fetchone() == (True,)


@pytest.mark.parametrize(
    "text",
    [
        "DELETE FROM t",
        "SELECT 1; SELECT 2",
        "INSERT INTO t VALUES (1)",
        "COPY t TO 'x.csv'",
        "ATTACH 'x.db'",
        "PRAGMA version",
        "SELECT * FROM read_csv('x.csv')",
        "SELECT * FROM 'x.csv'",
        "SELECT * FROM glob('*')",
        "SELECT getenv('HOME')",
        "SELECT now()",
        "SELECT * FROM duckdb_secrets()",
        "not sql at all",
        "",
    ],
)
def test_a_sql_source_is_one_deterministic_select_over_tables(text: str) -> None:
    with pytest.raises(ExpressionError):
        select_only(text)


def test_parts_become_readable_ctes_and_lists_several_columns() -> None:
    query = sql(
        "SELECT $shown, $label AS label FROM events WHERE n > $least",
        shown=[column("a"), column("b")],
        label="it's",
        least=3,
        events=sql("SELECT * FROM inner_events", inner_events=sql("SELECT 1 AS a, 2 AS b, 4 AS n")),
    )
    with duckdb.connect() as connection:
        assert connection.execute(query.render()).fetchall() == [(1, 2, "it's")]
    assert query.render().startswith("WITH inner_events AS")


def test_a_part_that_is_not_used_is_a_mistake() -> None:
    with pytest.raises(KeyError, match="not used"):
        sql("SELECT $a AS a", a=1, b=2)


@given(st.lists(st.text(), min_size=1, max_size=20), st.sampled_from([1, 2, 64, 512, 10**9]))
def test_a_bucket_is_the_same_wherever_md5_is(ids: list[str], count: int) -> None:
    ids = [i.replace("\x00", "0") for i in ids if i.isprintable() or i == ""] or ["7"]
    with duckdb.connect() as connection:
        query = sql(
            "SELECT $bucket AS b FROM (SELECT unnest($ids) AS id)",
            bucket=bucket(column("id"), count),
            ids=exp.convert(ids),
        )
        found = [row[0] for row in connection.execute(query.render()).fetchall()]
    assert found == [int(hashlib.md5(i.encode(), usedforsecurity=False).hexdigest()[:15], 16) % count for i in ids]

"""Spark's dialect, expression by expression on Sail beside DuckDB over the same hostile rows; the session and its errors."""

from __future__ import annotations

import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from payoff.errors import ConnectionFailed, DataError
from payoff.spec.nouns import SparkConnection
from payoff.warehouse.dialect import CannotRun
from payoff.warehouse.engines import spark
from payoff.warehouse.engines.spark import DIALECT, SparkEngine
from payoff.warehouse.query import Query, bucket, column, sql
from payoff.warehouse.statements import Step
from tests.warehouse.conformance.engines import NotHere, Place, on_spark

ROWS = """
    SELECT CAST(n AS BIGINT) AS n, CAST(d AS DOUBLE) AS d, CAST(s AS VARCHAR) AS s, CAST(b AS BOOLEAN) AS b,
           CAST(t AS TIMESTAMP) AS t, CAST(u AS BIGINT) AS u
    FROM (
        SELECT -7 AS n, '0.5' AS d, 'it''s' AS s, true AS b, '2024-03-10 02:30:00' AS t, 1 AS u
        UNION ALL SELECT 7, '-2.5', 'é \\ "q"', false, '2024-11-03 01:30:00', 1
        UNION ALL SELECT 0, '12345678.5', '', NULL, '1960-01-01 00:00:00.000001', 2
        UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, 2
        UNION ALL SELECT 9007199254740993, '0.0005', 'Z', true, '2024-11-03 00:30:00', 3
        UNION ALL SELECT 3, '1e20', 'a', false, '2024-11-03 01:30:00', 3
        UNION ALL SELECT 3, '7', 'a', false, '2250-01-01 00:00:00', 3
    ) AS given
"""
"""Negative, whole, NULL, too large for a double, far and near zero; a clock turned forward and back; ties."""

EXPRESSIONS = [
    "n // 2",
    "n % 3",
    "n / 2",
    "abs(n) << 1",
    "n >> 1",
    "n & 3",
    "CAST(d AS VARCHAR)",
    "CAST(n AS VARCHAR)",
    "CAST(b AS VARCHAR)",
    "CAST(b AS INTEGER)",
    "CAST(CASE WHEN abs(d) < 1e9 THEN d END AS BIGINT)",
    "TRY_CAST(s AS DOUBLE)",
    "floor(d)",
    "ceil(d)",
    "isfinite(d)",
    "epoch_us(t)",
    "epoch_us(t AT TIME ZONE 'America/New_York')",
    "epoch_us(t AT TIME ZONE 'UTC')",
    "year(t)",
    "month(t)",
    "extract(hour FROM t)",
    "extract(dow FROM t)",
    "epoch_us(date_trunc('month', t))",
    "date_diff('day', DATE '2020-01-01', t)",
    "epoch_us(make_timestamptz(n))",
    "epoch_us(make_timestamp(n))",
    "greatest(n, 1)",
    "least(d, n)",
    "length(s)",
    "lower(s) || '-' || upper(s)",
    "trim(s)",
    "s IS NOT DISTINCT FROM 'a'",
    "n NOT IN (3, 7)",
    "list_extract(list_sort(list_filter([n, u, NULL], lambda x: x IS NOT NULL)), 1)",
    "len(list_filter([n, u], lambda x: x IS NOT NULL))",
    "power(2.0::DOUBLE, CAST(u AS DOUBLE))",
    "CAST(chr(CAST(u AS INTEGER) + 950) AS VARCHAR)",
    "regexp_matches(s, '^[a-z]')",
    "contains(s, '\"')",
    "ends_with(s, 's')",
    "substring(md5(s), 1, 15)",
]
AGGREGATES = [
    "sum(n)",
    "count(DISTINCT s)",
    "avg(d)",
    "var_samp(u)",
    "covar_samp(u, n)",
    "quantile_cont(n, 0.3)",
    "quantile_cont(d, 0.5) FILTER (WHERE n < 5)",
    "arg_max(s, n)",
    "count_if(n > 0)",
    "bool_or(b)",
    "bit_or(u)",
    "min(s)",
    "max(s)",
    "struct_extract(min({'u': u, 's': s}), 's')",
    "struct_extract(max({'u': u, 's': s}), 's')",
    "sum(n) FILTER (WHERE false)",
    "count(*) FILTER (WHERE b)",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    try:
        tables = {"given": pa.table({"id": [1, 2]}), "many": pa.table({"id": range(5000)})}
        with on_spark(tmp_path_factory.mktemp("spark"), tables) as started:
            yield started
    except NotHere as error:
        pytest.skip(f"spark was not executed: {error}")


@pytest.fixture(scope="module")
def connection(place: Place) -> SparkConnection:
    return SparkConnection(**(place.connect() or {}))


@pytest.fixture
def server(place: Place) -> int:
    """The process of the server, where its time can be read."""
    if place.process is None or not Path("/proc/self/stat").exists():
        pytest.skip("there is no /proc to see in whether a server works")
    return place.process


@pytest.fixture(scope="module")
def engine(connection: SparkConnection) -> Iterator[SparkEngine]:
    with SparkEngine("main", connection, Path.cwd()) as opened:
        yield opened


def on_duckdb(query: Query) -> list[dict[str, Any]]:
    with duckdb.connect() as session:
        session.execute("SET TimeZone = 'UTC'")
        return session.sql(query.render()).to_arrow_table().to_pylist()


def same(ours: Any, theirs: Any) -> bool:
    if ours is None or theirs is None or isinstance(ours, str | bool):
        return ours is theirs if ours is None or theirs is None else ours == theirs
    return math.isclose(float(ours), float(theirs), rel_tol=1e-12) or (ours != ours and theirs != theirs)


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expressions_mean_the_same(text: str, engine: SparkEngine) -> None:
    query = sql(f"SELECT n, u, t, {text} AS it FROM rows ORDER BY n, u, d, t", rows=sql(ROWS))
    ours, theirs = on_duckdb(query), engine.fetch(query, "an expression").to_pylist()
    assert len(ours) == len(theirs) == 7
    for one, other in zip(ours, theirs, strict=True):
        assert same(one["it"], other["it"]), (one, other)


@pytest.mark.parametrize("text", AGGREGATES)
def test_aggregates_mean_the_same(text: str, engine: SparkEngine) -> None:
    query = sql(f"SELECT u, {text} AS it FROM rows GROUP BY u ORDER BY u", rows=sql(ROWS))
    ours, theirs = on_duckdb(query), engine.fetch(query, "an aggregate").to_pylist()
    assert [r["u"] for r in ours] == [r["u"] for r in theirs] == [1, 2, 3]
    for one, other in zip(ours, theirs, strict=True):
        assert same(one["it"], other["it"]), (one, other)


@pytest.mark.parametrize("way", [">", ">=", "<", "<="])
@pytest.mark.parametrize("side", ["", "LEFT"])
def test_the_latest_before_is_found(way: str, side: str, engine: SparkEngine) -> None:
    query = sql(
        f"""
        SELECT l.u, l.n, p.m FROM ours AS l ASOF {side} JOIN theirs AS p ON l.u = p.u AND l.n {way} p.m ORDER BY l.u, l.n, p.m
        """,
        ours=sql("SELECT u, n FROM rows", rows=sql(ROWS)),
        theirs=sql("SELECT DISTINCT u, n - 1 AS m FROM rows WHERE n < 100 UNION SELECT u, 3 FROM rows", rows=sql(ROWS)),
    )
    assert on_duckdb(query) == engine.fetch(query, "latest before").to_pylist()


def test_groups_by_all_and_what_is_left_of_a_star(engine: SparkEngine) -> None:
    query = sql(
        "SELECT * EXCLUDE (m) FROM counted ORDER BY u",
        counted=sql("SELECT u, count(*) AS k, max(n) AS m FROM rows GROUP BY ALL", rows=sql(ROWS)),
    )
    assert on_duckdb(query) == engine.fetch(query, "groups").to_pylist()


@pytest.mark.parametrize(
    "select",
    [
        "count(*) AS n, count(CAST(s AS VARCHAR)) AS a, count(u) AS b, count(CAST(u AS VARCHAR)) AS c, count(DISTINCT u) AS d",
        "count(u) AS a, count(CAST(u AS VARCHAR)) AS b, count(CAST(rows.u AS DOUBLE)) AS c",
        "count(DISTINCT u) AS a, count(DISTINCT CAST(u AS VARCHAR)) AS b",
        "min(CAST(u AS VARCHAR)) AS a, min(u) AS b, max(u) AS c, max(CAST(u AS DOUBLE)) AS d",
        "sum(CAST(n AS DOUBLE)) + sum(n) AS a, sum(n) AS b",
        "count(n) FILTER (WHERE u < 3) AS a, count(CAST(n AS VARCHAR)) FILTER (WHERE u < 3) AS b, count(n) AS c",
        "arg_max(CAST(u AS DOUBLE), n) AS a, arg_max(u, n) AS b",
    ],
)
def test_aggregates_that_differ_by_casts_stand_side_by_side(select: str, engine: SparkEngine) -> None:
    rows = sql("SELECT * FROM stored WHERE n IS NULL OR n < 100", stored=sql(ROWS))
    engine.keep("casts", rows, "keep")
    read = sql(f"SELECT {select} FROM rows", rows=sql("SELECT * FROM (SELECT n, u, s FROM casts) AS rows"))
    ours = sql(f"SELECT {select} FROM rows", rows=rows)
    assert on_duckdb(ours) == engine.fetch(read, "side by side").to_pylist()


def test_buckets_are_those_of_duckdb(engine: SparkEngine) -> None:
    query = sql("SELECT s, $b AS b FROM rows ORDER BY s", b=bucket(column("s"), 97), rows=sql(ROWS))
    assert on_duckdb(query) == engine.fetch(query, "buckets").to_pylist()


def test_numbers_of_rows_are_unique_and_of_their_values_alone(engine: SparkEngine) -> None:
    def numbers(order: str) -> dict[str, int]:
        units = sql(f"SELECT 'u' || CAST(k AS VARCHAR) AS unit FROM range(0, 5000) AS q(k) ORDER BY k {order}")
        found = engine.fetch(sql("SELECT row_number() OVER () AS uid, unit FROM units", units=units), "numbers")
        return dict(zip(found["unit"].to_pylist(), found["uid"].to_pylist(), strict=True))

    one, other = numbers("ASC"), numbers("DESC")
    assert one == other
    assert len(set(one.values())) == 5000
    assert min(one.values()) >= 1


def test_kept_tables_are_added_to_and_dropped(engine: SparkEngine) -> None:
    engine.keep("some", sql("SELECT n, u FROM rows", rows=sql(ROWS)), "keep")
    engine.append("some", sql("SELECT n, u FROM rows WHERE u = 1", rows=sql(ROWS)), "append")
    assert engine.row(sql("SELECT count(*) AS n, count(n) AS m FROM some"), "count") == {"n": 9, "m": 8}
    rest = sql("SELECT a.* EXCLUDE (n) FROM some AS a")
    engine.check([Step("left", "", "", (), (), rest)])  # before anything is known of the table
    left = engine.fetch(rest, "left")
    assert left.column_names == ["u"]
    engine.drop("some")
    assert engine.sent(rest.render(), "left") == "SELECT\n  a.`u`\nFROM some AS a"  # as it was, by its columns
    engine.drop("some")
    with pytest.raises(DataError, match="some"):
        engine.fetch(sql("SELECT * FROM some"), "gone")


def test_types_are_told_in_duckdbs_names(engine: SparkEngine) -> None:
    kinds = {
        "a": "VARCHAR",
        "b": "BIGINT",
        "c": "DOUBLE",
        "d": "TIMESTAMP",
        "e": "TIMESTAMP WITH TIME ZONE",
        "f": "DATE",
        "g": "DECIMAL(10,2)",
        "h": "BOOLEAN",
        "i": "INTEGER",
        "j": "VARCHAR[]",
    }
    select = ", ".join(f"CAST(NULL AS {kind}) AS {name}" for name, kind in kinds.items())
    assert engine.types(sql(f"SELECT {select}")) == kinds


def test_a_table_that_is_not_there_is_named(engine: SparkEngine) -> None:
    with pytest.raises(DataError, match="nowhere") as told:
        engine.fetch(sql("SELECT * FROM nowhere"), "look at nowhere", "orders")
    assert "stacktrace" not in str(told.value).lower()


def test_what_has_no_form_is_refused_by_name(engine: SparkEngine) -> None:
    with pytest.raises(CannotRun, match=r"strip_accents\(\)"):
        engine.fetch(sql("SELECT strip_accents('é') AS it"), "accents")
    with pytest.raises(CannotRun, match="log"):
        DIALECT.text(sql("SELECT log(2, 8) AS it").tree)


ENDLESS = "SELECT max(md5(CAST(a AS VARCHAR))) AS x FROM range(0, 1000000000000) AS x(a)"
"""One scan: Sail hears of an end between two batches that are read, and hours later in a join of two ranges."""


def seconds_of(process: int) -> float:
    """The processor's time that a process has taken."""
    with open(f"/proc/{process}/stat") as told:
        return sum(map(int, told.read().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")


def wait_until(true: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, why
        time.sleep(0.2)


def is_idle(process: int) -> bool:
    before = seconds_of(process)
    time.sleep(0.5)
    return seconds_of(process) - before < 0.1


@pytest.mark.parametrize("keep", [False, True], ids=["fetch", "keep"])
def test_ctrl_c_stops_the_statement_on_the_server(keep: bool, engine: SparkEngine, server: int) -> None:
    began = seconds_of(server)

    def stop() -> None:
        wait_until(lambda: seconds_of(server) > began + 1, "it never ran")
        os.kill(os.getpid(), signal.SIGINT)

    stopping = Thread(target=stop)
    stopping.start()
    with pytest.raises(KeyboardInterrupt):
        engine.keep("endless", sql(ENDLESS), "test") if keep else engine.fetch(sql(ENDLESS), "test")
    stopping.join()
    wait_until(lambda: is_idle(server), "the server goes on")
    with pytest.raises(DataError, match="endless"):
        engine.fetch(sql("SELECT * FROM endless"), "gone")
    assert engine.row(sql("SELECT 1 AS one"), "test") == {"one": 1}


def test_a_statement_that_cannot_be_stopped_is_left_to_itself(
    engine: SparkEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ends = Event()
    monkeypatch.setattr(spark, "SECONDS_TO_STOP", 0.5)
    monkeypatch.setattr(type(engine._spark), "interruptTag", lambda _, tag: asked.append(tag))
    timer = Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            engine._watched(ends.wait, "test", None)
    finally:
        timer.cancel()
        ends.set()
    assert set(asked) == {asked[0]}
    assert asked[0].startswith("payoff-")


def _kept(folder: Path) -> dict[Path, bytes | list[str]]:
    """Each file's bytes; the ledger by its rows, as SQLite keeps its journal beside it or not."""
    found: dict[Path, bytes | list[str]] = {}
    for path in folder.rglob("*"):
        if path.name == "ledger.db":
            with closing(sqlite3.connect(path)) as ledger:
                found[path] = list(ledger.iterdump())
        elif path.is_file() and not path.name.startswith("ledger.db"):
            found[path] = path.read_bytes()
    return found


def test_a_run_that_is_interrupted_leaves_the_ledger_as_it_was(
    connection: SparkConnection, server: int, tmp_path: Path
) -> None:
    endless = "SELECT a.id + b.id + c.id AS id, CASE WHEN a.id % 2 = 0 THEN 'a' ELSE 'b' END AS arm, c.id AS y FROM many AS a, many AS b, many AS c"
    definitions = f"""
        version: 1
        project: shop
        currency: EUR
        connections: {{main: {{engine: spark, url: '{connection.url}'}}}}
        sources: {{pairs: {{sql: "SQL", one_row_per: user, id: id}}}}
        metrics: {{y: {{kind: mean, from: pairs, column: y}}}}
        experiments: {{e: {{assignment: {{source: pairs, variant: arm, control: a}}, primary: y}}}}
    """
    project = tmp_path / "payoff.yml"
    project.write_text(
        textwrap.dedent(definitions).replace(
            "SQL", "SELECT id + 10 AS id, 'a' AS arm, 1 AS y FROM given UNION ALL SELECT id, 'b', 2 FROM given"
        )
    )
    start = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from payoff.cli import main; main()"
    )
    command = [sys.executable, "-c", start, "run", "-p", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode in (0, 1), first.stderr
    kept = _kept(tmp_path / ".payoff")
    assert "ledger.db" in {path.name for path in kept}
    project.write_text(textwrap.dedent(definitions).replace("SQL", endless))
    began = seconds_of(server)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: process.poll() is not None or seconds_of(server) > began + 2, "it never ran")
    process.send_signal(signal.SIGINT)
    out, told = process.communicate(timeout=120)
    assert (process.returncode, out, told) == (130, "", "interrupted; what was kept before is untouched\n")
    assert kept == _kept(tmp_path / ".payoff")
    wait_until(lambda: is_idle(server), "the server goes on")


def test_a_server_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    away = SparkConnection(engine="spark", url=f"sc://127.0.0.1:{port}/;token=verysecret")
    with pytest.raises(ConnectionFailed, match=f"no Spark Connect server answers at 127.0.0.1:{port}") as told:
        SparkEngine("main", away, tmp_path)
    assert "verysecret" not in str(told.value)


def test_a_session_of_the_users_stays_open(connection: SparkConnection, tmp_path: Path) -> None:
    with SparkEngine("main", connection, tmp_path) as first:
        first.keep("ours", sql("SELECT 1 AS n"), "keep")
    with SparkEngine("main", connection, tmp_path) as second:
        assert second.row(sql("SELECT count(*) AS n FROM given"), "count") == {"n": 2}
        with pytest.raises(DataError, match="ours"):
            second.fetch(sql("SELECT * FROM ours"), "gone")


def test_a_process_without_a_main_file_is_not_ended() -> None:
    """The client of Spark Connect ends such a process (``python -c``, a pool's worker): it takes it for its own tests."""
    code = "from payoff.warehouse.engines import spark\nwith spark._quiet():\n    import pyspark.sql.connect\nprint('went on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "went on\n")

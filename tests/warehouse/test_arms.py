"""The sufficient-statistics kernel on shapes the world does not have: files, several sources, several kinds of unit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest

from payoff.errors import ConnectionFailed, DataError
from payoff.result import Result
from payoff.run import Project
from tests.builders import make_project, write_project
from tests.methods.test_experiment import decision_log, decisions_project, only_result


def values(result: Result) -> dict[tuple[str, str], float]:
    return {(a.arm, a.metric): a.value for a in result.arms}


FILES = """
    sources:
      decisions: {{file: "decisions{ending}", time: {time}, entity: {{visitor: visitor_id}}}}
      events:    {{file: "events{ending}", time: {time2}, entity: {{visitor: visitor_id}}}}
    metrics:
      bought:  {{kind: conversion, to: {{source: events, where: "name = 'purchase'"}}, window: 48h}}
      revenue: {{kind: sum, from: events, column: amount, where: "name = 'purchase'", window: 48h}}
    experiments:
      ranking: {{assignment: {{source: decisions, variant: arm, control: old}}, primary: bought, secondary: [revenue]}}
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decision log as Parquet (two files), CSV, gzipped CSV, JSON lines and a JSON array."""
    folder = tmp_path_factory.mktemp("tables")
    with duckdb.connect() as connection:
        decision_log(connection)
        for table in ("decisions", "events"):
            connection.execute(f"COPY {table} TO '{folder}/{table}.csv' (HEADER)")
            connection.execute(f"COPY {table} TO '{folder}/{table}.csv.gz' (HEADER, COMPRESSION gzip)")
            connection.execute(f"COPY {table} TO '{folder}/{table}.jsonl' (FORMAT json)")
            connection.execute(f"COPY {table} TO '{folder}/{table}.json' (FORMAT json, ARRAY true)")
            for part in (0, 1):
                kept = f"SELECT * FROM {table} WHERE length(visitor_id) % 2 = {part}"
                connection.execute(f"COPY ({kept}) TO '{folder}/{table}_{part}.parquet' (FORMAT parquet)")
    return folder


@pytest.mark.parametrize("ending", ["_*.parquet", ".csv", ".csv.gz", ".jsonl", ".json"])
def test_every_file_format_gives_the_same_figures(tmp_path: Path, tables: Path, ending: str) -> None:
    text = FILES.format(ending=ending, time="decided_at", time2="t").replace('file: "', f'file: "{tables}/')
    if "json" in ending:
        text = text.replace("time: decided_at", 'time: "CAST(decided_at AS TIMESTAMP)"')
        text = text.replace("time: t,", 'time: "CAST(t AS TIMESTAMP)",')
    seen = values(only_result(make_project(tmp_path / "files", text)))
    expected = values(only_result(decisions_project(tmp_path / "tables")))
    assert seen == pytest.approx({k: v for k, v in expected.items() if k[1] != "clicks"})


def test_a_text_file_is_read_once(tmp_path: Path, tables: Path) -> None:
    text = FILES.format(ending=".csv", time="decided_at", time2="t").replace('file: "', f'file: "{tables}/')
    project = make_project(tmp_path, text)
    reads = [s.sql for s in project.plan() if "READ_CSV" in s.sql]
    assert len(reads) == 2
    run = project.run(record=False)
    assert sum("READ_CSV" in s.sql for s in run.plan) == 2


def test_sources_that_are_conditions_over_one_table_share_its_scan(tmp_path: Path) -> None:
    split = """
    sources:
      decisions: {table: decisions, time: decided_at, entity: {visitor: visitor_id}}
      orders:    {table: events, time: t, entity: {visitor: visitor_id}, where: "name = 'purchase'"}
      clicks:    {table: events, time: t, entity: {visitor: visitor_id}, where: "name = 'click'"}
    metrics:
      bought:  {kind: conversion, to: orders, window: 48h}
      revenue: {kind: sum, from: orders, column: amount, window: 48h}
      clicks:  {kind: count, from: clicks, window: 48h}
    experiments:
      ranking: {assignment: {source: decisions, variant: arm, control: old}, primary: bought, secondary: [revenue, clicks]}
    """
    project = decisions_project(tmp_path / "a", definitions=split)
    assert [s.reads for s in project.plan() if s.reads and not s.name.startswith("look")] == [
        "table main.decisions",
        "table main.events",
    ]
    assert values(only_result(project)) == pytest.approx(values(only_result(decisions_project(tmp_path / "b"))))


TWO_KINDS = """
    entities: {conversation: {id: conversation_id}}
    sources:
      decisions: {table: decisions, time: decided_at, entity: {visitor: visitor_id}}
      events:    {table: events, time: t, entity: {visitor: visitor_id}}
      chats:     {table: chats, time: started, entity: {conversation: conversation_id}}
      surveys:   {table: surveys, time: t, entity: {conversation: conversation_id}}
    metrics:
      revenue: {kind: sum, from: events, column: amount, window: 48h}
      nps:     {entity: conversation, kind: nps, from: surveys, column: score}
      csat:    {entity: conversation, kind: csat, from: surveys, column: stars}
      long:    {entity: conversation, kind: rate, from: surveys, where: "minutes > 10", direction: down}
      minutes: {entity: conversation, kind: mean, from: surveys, column: minutes, direction: down}
    experiments:
      ranking: {assignment: {source: decisions, variant: arm, control: old}, primary: revenue}
      bot:
        entity: conversation
        assignment: {source: chats, variant: bot, control: "false"}
        primary: nps
        secondary: [csat, long, minutes]
      inline:
        assignment: {table: decisions, time: decided_at, entity: {visitor: visitor_id}, variant: "upper(arm)", control: OLD, where: "visitor_id <> 'v1'"}
        primary: revenue
"""
CHATS = """
    CREATE TABLE chats AS SELECT i AS conversation_id, TIMESTAMP '2026-03-01' + to_minutes(i) AS started, hash(i) % 2 = 0 AS bot
        FROM range(600) AS r(i);
    CREATE TABLE surveys AS SELECT i AS conversation_id, TIMESTAMP '2026-03-02' + to_minutes(i) AS t, (hash(i * 7) % 11)::INT AS score,
        (hash(i * 3) % 5 + 1)::INT AS stars, CASE WHEN hash(i * 5) % 6 > 0 THEN (hash(i * 11) % 20)::INT END AS minutes
        FROM range(500) AS r(i) WHERE hash(i * 13) % 3 > 0;
    INSERT INTO surveys SELECT conversation_id, t + INTERVAL 1 DAY, score, stars, minutes FROM surveys WHERE conversation_id % 5 = 0
"""


def test_kinds_of_unit_and_kinds_of_metric_side_by_side(tmp_path: Path) -> None:
    run = decisions_project(tmp_path, CHATS, TWO_KINDS).run(record=False)
    assert not run.refusals
    by_name = {r.name.split(".")[1]: r for r in run.results}
    assert values(by_name["inline"])["OLD", "revenue"] == pytest.approx(
        values(by_name["ranking"])["old", "revenue"], rel=0.05
    )
    assert by_name["inline"].estimate("revenue").n != by_name["ranking"].estimate("revenue").n
    with duckdb.connect(str(tmp_path / "data.duckdb"), read_only=True) as connection:
        for arm in (True, False):
            row = connection.execute(
                """
                SELECT 100.0 * (count(*) FILTER (score >= 9) - count(*) FILTER (score <= 6)) / count(*),
                       count(*) FILTER (stars >= 4) / count(*), count(*) FILTER (minutes > 10) / count(minutes)
                FROM surveys JOIN chats USING (conversation_id) WHERE bot = ?
                """,
                [arm],
            ).fetchone()
            means = connection.execute(
                "SELECT avg(m), count(m), count(*) FROM (SELECT avg(minutes) AS m FROM chats LEFT JOIN surveys USING (conversation_id) WHERE bot = ? GROUP BY conversation_id)",
                [arm],
            ).fetchone()
            assert row is not None
            assert means is not None
            seen = values(by_name["bot"])
            name = str(arm).lower()
            assert (seen[name, "nps"], seen[name, "csat"], seen[name, "long"]) == pytest.approx(row)
            assert seen[name, "minutes"] == pytest.approx(means[0])
            (shown,) = [a for a in by_name["bot"].arms if a.arm == name and a.metric == "minutes"]
            assert shown.n == means[1] < means[2]


def test_answers_off_the_scale_are_left_out_and_counted(tmp_path: Path) -> None:
    wrong = (
        CHATS + "; UPDATE surveys SET score = 12 WHERE conversation_id IN (SELECT conversation_id FROM surveys LIMIT 7)"
    )
    run = decisions_project(tmp_path, wrong, TWO_KINDS).run(["bot"], record=False)
    (found,) = [c for c in run.results[0].checks if c.name == "out_of_range"]
    with duckdb.connect(str(tmp_path / "data.duckdb"), read_only=True) as connection:
        counted = connection.execute("SELECT count(*) FROM surveys WHERE score = 12").fetchone()
    assert counted is not None
    assert (found.status, found.statistic) == ("warn", float(counted[0]))
    assert run.results[0].left_out["rows with an impossible value (nps)"] == counted[0]


def test_times_in_the_future_are_named(tmp_path: Path) -> None:
    result = only_result(decisions_project(tmp_path, "UPDATE events SET t = '2099-01-01' WHERE visitor_id = 'nobody'"))
    (found,) = [c for c in result.checks if c.name == "clock"]
    assert found.status == "warn"
    assert "source 'events' goes to 2099-01-01" in found.detail


def test_ids_of_different_types_are_joined_as_text(tmp_path: Path) -> None:
    project = decisions_project(
        tmp_path / "a",
        "UPDATE decisions SET visitor_id = substr(visitor_id, 2); UPDATE events SET visitor_id = substr(visitor_id, 2) WHERE visitor_id <> 'nobody';"
        "CREATE TABLE numbered AS SELECT * REPLACE (visitor_id::BIGINT AS visitor_id) FROM decisions",
        """
    sources:
      decisions: {table: numbered, time: decided_at, entity: {visitor: visitor_id}}
      events:    {table: events, time: t, entity: {visitor: visitor_id}}
    metrics:
      revenue: {kind: sum, from: events, column: amount, where: "name = 'purchase'", window: 48h}
    experiments:
      ranking: {assignment: {source: decisions, variant: arm, control: old}, primary: revenue}
    """,
    )
    expected = values(only_result(decisions_project(tmp_path / "b")))
    assert values(only_result(project))["new", "revenue"] == pytest.approx(expected["new", "revenue"])


def test_a_unit_level_table_with_repeated_ids_is_an_error(tmp_path: Path) -> None:
    project = make_project(
        tmp_path,
        """
        sources: {people: {table: people, entity: {person: id}, one_row_per: person}}
        metrics: {spend: {kind: mean, from: people, column: spend}}
        experiments: {x: {assignment: {source: people, variant: arm, control: a}}}
        """,
        "CREATE TABLE people AS SELECT i % 95 AS id, i::DOUBLE AS spend, CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END AS arm FROM range(100) AS r(i)",
    )
    with pytest.raises(DataError, match="source 'people', column 'id': 5 rows repeat an id"):
        project.run(record=False)


def test_offsets_of_a_hundred_million_keep_their_variance(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    y = rng.standard_normal(4_000)
    rows = [{"y": 1e8 + float(v), "arm": "ab"[i % 2]} for i, v in enumerate(y)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    project = make_project(
        tmp_path,
        """
        sources: {rows: {file: rows.jsonl, one_row_per: unit}}
        metrics: {y: {kind: mean, from: rows, column: y}}
        experiments: {x: {assignment: {source: rows, variant: arm, control: a}}}
        """,
    )
    estimate = only_result(project).estimate("y")
    expected = np.sqrt(y[::2].var(ddof=1) / 2_000 + y[1::2].var(ddof=1) / 2_000)
    assert estimate.uncertainty.to_dict()["se"] == pytest.approx(expected, rel=1e-5)


def broken(folder: Path, content: bytes, name: str) -> Project:
    write_project(
        folder,
        f"""
        sources: {{rows: {{file: {name}, one_row_per: unit}}}}
        metrics: {{y: {{kind: mean, from: rows, column: y}}}}
        experiments: {{x: {{assignment: {{source: rows, variant: arm, control: a}}}}}}
        """,
    )
    (folder / name).write_bytes(content)
    return Project.load(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.parquet", b"this is not Parquet"),
        ("rows.csv", b"\x00\xff\xfe\x00" * 50),
        ("rows.jsonl", b'{"y": 1, "arm": "a"}\n{"y": 2, "arm": \n'),
        ("rows.xlsx", b"PK"),
        ("rows.csv", b""),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises((DataError, ConnectionFailed)) as caught:
        broken(tmp_path, content, name).run(record=False)
    assert caught.value.exit_code == 3
    assert "rows" in str(caught.value)


def test_text_in_the_last_row_of_a_csv_is_counted(tmp_path: Path) -> None:
    lines = ["y,arm", *(f"{i},{'ab'[i % 2]}" for i in range(50_000)), "oops,a"]
    with pytest.raises(DataError, match=r"source 'rows', column 'y': 1 of 50,001 values are text.*oops"):
        broken(tmp_path, "\n".join(lines).encode(), "rows.csv").run(record=False)


BIG = """
    sources:
      decisions: {table: big, time: decided_at, entity: {visitor: visitor_id}}
      events:    {table: events, time: t, entity: {visitor: visitor_id}}
    metrics: {clicks: {kind: count, from: events}}
    experiments: {x: {assignment: {source: decisions, variant: arm, control: old}, primary: clicks}}
"""
BIG_TABLE = """
    CREATE TABLE big AS SELECT md5(i::VARCHAR) AS visitor_id, TIMESTAMP '2026-03-01' AS decided_at,
        CASE WHEN i % 2 = 0 THEN 'old' ELSE 'new' END AS arm FROM range(3000000) AS r(i);
    INSERT INTO events SELECT md5(i::VARCHAR), TIMESTAMP '2026-03-02', 'click', 0 FROM range(0, 3000000, 3) AS r(i)
"""
RUN_WITH_SMALL_FILES = """
import resource, signal, sys
from payoff.errors import ConnectionFailed
from payoff.run import Project
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # any longer file is refused, as on a full disk
try:
    Project.load(sys.argv[1]).run(record=False)
except ConnectionFailed as error:
    print(error)
"""


@pytest.fixture(scope="module")
def spilling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three million exposures with text ids under a limit of 100 MB, which cannot hold them."""
    folder = tmp_path_factory.mktemp("spilling")
    decisions_project(folder, BIG_TABLE, BIG)
    path = folder / "payoff.yml"
    small = "path: data.duckdb, memory_limit: 100MB, threads: 1, temp_directory: spill}"
    path.write_text(path.read_text().replace("path: data.duckdb}", small))
    return folder


def test_what_does_not_fit_in_memory_spills_and_leaves_nothing_behind(spilling: Path) -> None:
    result = only_result(Project.load(spilling))
    assert sum(a.n for a in result.arms) == 3_000_000
    assert not list((spilling / "spill").iterdir())


def test_a_full_disk_is_a_plain_error_that_says_what_to_do(spilling: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN_WITH_SMALL_FILES, str(spilling)], capture_output=True, text=True, check=True
    )
    assert "room to spill" in done.stdout
    assert "temp_directory" in done.stdout
    assert not list((spilling / "spill").iterdir())

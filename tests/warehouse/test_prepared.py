"""Prepared layouts: the same rows in another order, and never read once what they were made of has changed."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlglot import exp
from typer.testing import CliRunner

from payoff.cli import app
from payoff.errors import ConnectionFailed, UsageError
from payoff.ledger import compare
from payoff.run import Project
from payoff.warehouse import prepared
from payoff.warehouse.prepared import UNIT, US, Part, Prepared, grouped, pack, unpack
from payoff.warehouse.query import Query, column
from tests.builders import make_project
from tests.methods.shop import make_shop
from tests.methods.test_closer import experiment
from tests.test_journeys import ROOT, SITE, TABLES

EVENTS = """
    entities: {user: {}}
    sources:
      events: {file: "events/*.parquet", time: t, entity: {user: u}}
"""
START = datetime(2026, 3, 1)


def events(rng: np.random.Generator, rows: int, *, text: bool = True) -> pa.Table:
    """Rows with ties, repeats, and ids and times that are missing."""
    units = [None if rng.random() < 0.1 else int(rng.integers(5)) for _ in range(rows)]
    return pa.table(
        {
            "u": pa.array(
                [u if u is None or not text else f"u{u}" for u in units], pa.string() if text else pa.int64()
            ),
            "t": pa.array(
                [
                    None
                    if rng.random() < 0.1
                    else START + timedelta(days=int(rng.integers(4)), seconds=int(rng.integers(2)))
                    for _ in range(rows)
                ],
                pa.timestamp("us"),
            ),
            "v": pa.array([None if rng.random() < 0.1 else float(rng.integers(3)) for _ in range(rows)], pa.float64()),
        }
    )


def write(folder: Path, name: str, table: pa.Table) -> Path:
    path = folder / "events" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Project:
    """Three files of events."""
    rng = np.random.default_rng(7)
    for name in "abc":
        write(tmp_path, name, events(rng, 40))
    return make_project(tmp_path, EVENTS)


def layout(project: Project, source: str = "events", entity: str = "user") -> Prepared | str:
    """The fresh layout, or why there is none."""
    with project.catalog([source]) as catalog:
        view = catalog.view(source)
        found = prepared.of(catalog, view, entity)
        return found if found is not None else prepared.why_not(catalog, view, entity)


def fresh(project: Project, source: str = "events", entity: str = "user") -> Prepared:
    found = layout(project, source, entity)
    assert isinstance(found, Prepared), found
    return found


def rows_of(project: Project, source: str = "events", *, as_stored: bool) -> Counter[Any]:
    with project.catalog([source], as_stored=as_stored) as catalog:
        view = catalog.view(source)
        texts = [exp.cast(column(name), "VARCHAR") for name in view.own.columns]  # Python has no infinite time
        select = catalog.stored(source).select if as_stored else view.own.select
        rows = catalog.engine.fetch(Query(exp.select(*texts).from_(select.copy().subquery())), "rows", source)
    return Counter(map(repr, rows.to_pylist()))


def the_same_rows(project: Project, source: str = "events") -> None:
    """What is read of the copy is what is stored."""
    assert isinstance(layout(project, source), Prepared)
    assert rows_of(project, source, as_stored=False) == rows_of(project, source, as_stored=True)


def table_of(path: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return rows


def ids_of(found: Prepared) -> dict[int, Any]:
    numbers = table_of(found.units)
    assert [row[UNIT] for row in numbers] == list(range(len(numbers)))
    out = {row[UNIT]: row["unit"] for row in numbers}
    assert len(set(out.values())) == len(out)
    assert None not in out.values()
    return out


def ofs(found: Prepared) -> list[list[str]]:
    """What each segment was made of."""
    return [[part.of for part in segment.parts] for segment in found.segments]


def in_order(rows: list[dict[str, Any]]) -> bool:
    """By unit and time, those without last."""
    keys = [tuple((row[c] is None, row[c] or 0) for c in (UNIT, US)) for row in rows]
    return keys == sorted(keys)


def status(project: Project, *sources: str) -> dict[str, str]:
    return {report.relation: report.status for report in project.prepare(sources or None)}


# ---------------------------------------------------------------- what is in a layout


@pytest.mark.parametrize("text", [True, False])
def test_a_layout_is_the_stored_rows_sorted_with_unit_and_time(tmp_path: Path, text: bool) -> None:
    rng = np.random.default_rng(11)
    for round_ in range(3):
        folder = tmp_path / str(round_)
        stored = {name: events(rng, int(rng.integers(1, 60)), text=text) for name in ("b", "a", "c")}
        for name, table in stored.items():
            write(folder, name, table)
        project = make_project(folder, EVENTS)
        (report,) = project.prepare()
        found = fresh(project)
        assert ofs(found) == [["events/a.parquet"], ["events/b.parquet"], ["events/c.parquet"]]
        ids = ids_of(found)
        for segment in found.segments:
            rows = table_of(segment.path)
            (part,) = segment.parts
            wanted = stored[Path(part.of).stem].to_pylist()
            assert Counter(repr({c: row[c] for c in "utv"}) for row in rows) == Counter(map(repr, wanted))
            assert in_order(rows)
            for row in rows:
                assert (None if row[UNIT] is None else ids[row[UNIT]]) == row["u"]
                assert row[US] == (None if row["t"] is None else micros(row["t"], "UTC"))
            times = [row[US] for row in rows if row[US] is not None]
            assert segment.rows == len(rows)
            assert (segment.first_us, segment.last_us) == ((min(times), max(times)) if times else (None, None))
            assert part.timed == len(times)
            units = {-1 if row[UNIT] is None else row[UNIT] for row in rows}
            assert unpack(segment.units(part)).tolist() == sorted(units)
        assert (report.rows, report.units) == (sum(t.num_rows for t in stored.values()), len(ids))
        assert dict(found.columns) == {"u": "VARCHAR" if text else "BIGINT", "t": "TIMESTAMP", "v": "DOUBLE"}
        the_same_rows(project)


def micros(moment: datetime, zone: str) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))
    return round((aware - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


@pytest.mark.parametrize(
    ("kind", "zone", "value", "us"),
    [
        ("DATE", "UTC", "2026-03-29", micros(datetime(2026, 3, 29), "UTC")),
        ("DATE", "Europe/Paris", "2026-07-29", micros(datetime(2026, 7, 29), "Europe/Paris")),
        (
            "TIMESTAMP",
            "Europe/Paris",
            "2026-01-01 12:00:00.000001",
            micros(datetime(2026, 1, 1, 12, 0, 0, 1), "Europe/Paris"),
        ),
        ("TIMESTAMPTZ", "Europe/Paris", "2026-01-01 12:00:00+05", micros(datetime(2026, 1, 1, 7), "UTC")),
        ("TIMESTAMP", "UTC", "1961-01-01", micros(datetime(1961, 1, 1), "UTC")),
        ("TIMESTAMP", "UTC", "infinity", None),
    ],
)
def test_the_time_is_that_of_the_source(tmp_path: Path, kind: str, zone: str, value: str, us: int | None) -> None:
    tables = f"CREATE TABLE e AS SELECT 'x' AS u, CAST('{value}' AS {kind}) AS t UNION ALL SELECT 'x', NULL"
    definitions = f"sources: {{e: {{table: e, time: t, timezone: {zone}, entity: {{user: u}}}}}}"
    project = make_project(tmp_path, definitions, tables)
    project.prepare()
    found = fresh(project, "e")
    times = [us for s in found.segments for us in pq.ParquetFile(s.path).read(columns=[US])[US].to_pylist()]
    assert sorted(times, key=repr) == sorted([us, None], key=repr)
    the_same_rows(project, "e")


def test_ties_are_in_one_order_whatever_the_history(tmp_path: Path) -> None:
    """Built at once, or file by file in another order: only the numbers of units may differ."""
    rng = np.random.default_rng(3)
    stored = {name: events(rng, 60) for name in "abcd"}
    at_once, piecemeal = tmp_path / "once", tmp_path / "piecemeal"
    for name, table in stored.items():
        write(at_once, name, table)
    first = make_project(at_once, EVENTS)
    first.prepare()
    for name in "dbac":
        shuffled = stored[name].take(rng.permutation(stored[name].num_rows))
        write(piecemeal, name, shuffled)
        second = make_project(piecemeal, EVENTS)
        second.prepare()
    ordered = []
    for project in (first, second):
        found = fresh(project)
        ids = ids_of(found)
        by_unit: dict[Any, list[str]] = {}
        for segment in found.segments:
            for row in table_of(segment.path):
                by_unit.setdefault(ids.get(row[UNIT]), []).append(
                    repr([[p.of for p in segment.parts], row["t"], row["v"]])
                )
        ordered.append(by_unit)
    assert ordered[0] == ordered[1]


EXACT: dict[str, list[str]] = {
    "BOOLEAN": ["true"],
    "TINYINT": ["-128"],
    "USMALLINT": ["65535"],
    "UINTEGER": ["4294967295"],
    "BIGINT": ["-9223372036854775808"],
    "UBIGINT": ["18446744073709551615"],
    "FLOAT": ["'nan'", "'-inf'", "1e-45"],
    "DOUBLE": ["'nan'", "'inf'", "5e-324", "0.1"],
    "DECIMAL(4,1)": ["999.9"],
    "DECIMAL(38,3)": ["12345678901234567890123456789012345.678"],
    "VARCHAR": ["''", "'é'", "chr(0) || 'a'"],
    "BLOB": ["'\\xAA\\x00'"],
    "DATE": ["'infinity'", "'-infinity'", "'0044-03-15 (BC)'"],
    "TIME": ["'24:00:00'", "'12:00:00.123456'"],
    "TIMESTAMP": ["'infinity'", "'294247-01-10 04:00:54.775806'"],
    "TIMESTAMPTZ": ["'-infinity'", "'2020-01-01 00:00:00.123456+05'"],
    "TIMESTAMP_NS": ["'2020-01-01 00:00:00.123456789'"],
    "UUID": ["'ffffffff-ffff-ffff-ffff-ffffffffffff'"],
    "INTEGER[]": ["[1, NULL]", "[]"],
    "STRUCT(a INTEGER, b VARCHAR)": ["{'a': 1, 'b': NULL}"],
    "MAP(VARCHAR, INTEGER)": ["MAP {'a': 1}"],
}


def test_every_type_that_is_copied_comes_back_exactly(tmp_path: Path) -> None:
    columns = ", ".join(f'"c{i}" {kind}' for i, kind in enumerate(EXACT))
    tables = f"CREATE TABLE e (u INTEGER, t TIMESTAMP, {columns});"
    for i, values in enumerate(EXACT.values()):
        tables += "".join(f"INSERT INTO e (u, t, c{i}) VALUES ({i}, '2026-01-01', {value});" for value in values)
    project = make_project(tmp_path, "sources: {e: {table: e, time: t, entity: {user: u}}}", tables)
    assert status(project) == {"table main.e": "prepared"}
    found = fresh(project, "e")
    with duckdb.connect(str(tmp_path / "data.duckdb"), read_only=True) as connection:
        copy = f"(SELECT * EXCLUDE ({UNIT}, {US}) FROM read_parquet({[s.path for s in found.segments]!r}))"
        for one, other in (("e", copy), (copy, "e")):
            assert connection.execute(f"SELECT * FROM {one} EXCEPT ALL SELECT * FROM {other}").fetchall() == []
        assert dict(found.columns) == {row[0]: row[1] for row in connection.execute("DESCRIBE e").fetchall()}


@pytest.mark.parametrize(
    "kind",
    [
        "HUGEINT",
        "INTERVAL",
        "ENUM('a', 'b')",
        "UNION(n INTEGER, s VARCHAR)",
        "TIMETZ",
        "TIMESTAMP_S",
        "BIT",
        "INTEGER[2]",
    ],
)
def test_a_type_that_parquet_does_not_hold_is_refused(tmp_path: Path, kind: str) -> None:
    tables = f"CREATE TABLE e (u INTEGER, t TIMESTAMP, odd {kind})"
    project = make_project(tmp_path, "sources: {e: {table: e, time: t, entity: {user: u}}}", tables)
    (report,) = project.prepare()
    assert report.status == "refused"
    assert "column 'odd'" in report.detail
    assert "cannot hold exactly" in report.detail
    assert layout(project, "e") == "it has not been prepared"


def test_names_that_a_copy_adds_are_refused_and_hostile_ones_are_not(tmp_path: Path) -> None:
    tables = f"""
    CREATE TABLE taken AS SELECT 1 AS u, TIMESTAMP '2026-01-01' AS t, 1 AS {UNIT.upper()};
    CREATE TABLE hostile AS SELECT 'x' AS "select", TIMESTAMP '2026-01-01' AS "t "" t", 1 AS "a.b", 2 AS "Ünit", 3 AS "%s'";
    """
    definitions = r"""
    sources:
      taken: {table: taken, time: t, entity: {user: u}}
      hostile: {table: hostile, time: '"t "" t"', entity: {user: '"select"'}}
    """
    project = make_project(tmp_path, definitions, tables)
    assert status(project) == {"table main.taken": "refused", "table main.hostile": "prepared"}
    the_same_rows(project, "hostile")


def test_what_could_change_unseen_is_refused(tmp_path: Path) -> None:
    tables = (
        "CREATE TABLE e AS SELECT 1 AS u, TIMESTAMP '2026-01-01' AS t; CREATE VIEW w AS SELECT * FROM e WHERE t < now()"
    )
    definitions = """
    sources:
      seen: {table: w, time: t, entity: {user: u}}
      chosen: {sql: SELECT * FROM e, time: t, entity: {user: u}}
      timeless: {table: e, entity: {user: u}}
    """
    project = make_project(tmp_path, definitions, tables)
    details = {r.sources[0]: r.detail for r in project.prepare(["seen", "chosen", "timeless"])}
    assert "view" in details["seen"]
    assert "SELECT" in details["chosen"]
    assert "no time" in details["timeless"]
    assert [r.sources[0] for r in project.prepare()] == ["seen", "chosen"]


def test_tables_are_called_whatever_they_are_called(tmp_path: Path) -> None:
    """Also what preparing calls its own steps."""
    names = ("units", "stored", "own", "rows", "seen", "segment", "every")
    tables = "".join(
        f"CREATE TABLE {n} AS SELECT i % {k} AS unit, TIMESTAMP '2026-01-01' + to_days((i % 5)::INT) AS t FROM range(40) AS r(i);"
        for k, n in enumerate(names, 3)
    )
    sources = "".join(f"  {n}: {{table: {n}, time: t, entity: {{user: unit}}}}\n" for n in names)
    project = make_project(tmp_path, f"sources:\n{sources}", tables)
    for k, name in enumerate(names, 3):
        (report,) = project.prepare([name])
        assert (report.units, report.rows) == (k, 40)
        assert set(ids_of(fresh(project, name)).values()) == set(range(k))
        the_same_rows(project, name)


def test_hostile_paths_links_and_places_outside(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    folder = tmp_path / "a [1] 'b'"
    outside = write(tmp_path / "elsewhere", "x*[é] 'q'", events(rng, 20))
    write(folder, "we ird's [2]", events(rng, 20))
    (folder / "events" / "link.parquet").symlink_to(outside)
    project = make_project(folder, EVENTS)
    assert status(project) == {"file events/*.parquet": "prepared"}
    found = fresh(project)
    assert ofs(found) == [["../elsewhere/events/x*[é] 'q'.parquet"], ["events/we ird's [2].parquet"]]
    the_same_rows(project)
    (folder / "events" / "again.parquet").symlink_to(outside)
    (report,) = project.prepare()
    assert report.status == "refused"
    assert "twice" in report.detail


def test_no_rows_one_row_and_rows_without_any_unit(tmp_path: Path) -> None:
    tables = """
    CREATE TABLE none (u VARCHAR, t TIMESTAMP);
    CREATE TABLE one AS SELECT 'x' AS u, TIMESTAMP '2026-01-01' AS t;
    CREATE TABLE nobody AS SELECT NULL::BIGINT AS u, NULL::DATE AS t FROM range(3);
    """
    names = ("none", "one", "nobody")
    sources = "".join(f"  {n}: {{table: {n}, time: t, entity: {{user: u}}}}\n" for n in names)
    project = make_project(tmp_path, f"sources:\n{sources}", tables)
    assert set(status(project).values()) == {"prepared"}
    assert set(status(project).values()) == {"fresh"}
    for name, rows, units in zip(names, (0, 1, 3), (0, 1, 0), strict=True):
        found = fresh(project, name)
        assert sum(s.rows for s in found.segments) == rows
        assert len(ids_of(found)) == units
        the_same_rows(project, name)


def test_a_large_file_is_a_segment_a_month(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_WHOLE", 10)
    times = [
        datetime(1969, 12, 31),
        datetime(2026, 1, 31, 23, 59, 59),
        datetime(2026, 2, 1),
        datetime(2120, 5, 5),
        None,
    ]
    stored = pa.table({"u": ["x", "y", "z", "x", "y"] * 4, "t": pa.array(times * 4, pa.timestamp("us"))})
    write(tmp_path, "a", stored)
    project = make_project(tmp_path, EVENTS)
    project.prepare()
    labels = ["2026-01", "2026-02", "after 2099", "before 1970", "without a time"]
    assert ofs(fresh(project)) == [[f"events/a.parquet {label}"] for label in labels]
    assert [s.rows for s in fresh(project).segments] == [4] * 5
    the_same_rows(project)


# ---------------------------------------------------------------- parts that are one segment

DAY = 86_400_000_000


def a_part(of: str, first: int | None, last: int | None, rows: int = 2, timed: int = 2) -> Part:
    return Part(of, of, rows, first, last, timed, of)


def months_and_days(us: int) -> tuple[tuple[int, int], int]:
    moment = datetime(1970, 1, 1) + timedelta(microseconds=us)
    return (moment.year, moment.month), us // DAY


def may_follow(before: Part, after: Part, parts: list[Part]) -> bool:
    """By the words of the documentation, slowly."""
    if before.timed < before.rows or after.timed < after.rows:
        return False
    ends = [us for p in (before, after) for us in (p.first_us, p.last_us)]
    assert None not in ends
    a, b, c, d = map(int, ends)  # type: ignore[arg-type]
    if b >= c:
        return False
    if any(p.rows and p.timed and b < p.first_us and p.last_us < c for p in parts):  # type: ignore[operator]
        return False
    begin = [months_and_days(p.first_us) for p in parts if p.first_us is not None]
    months, days = zip(*map(months_and_days, (a, b, c, d)), strict=True)
    if len(set(months)) == 1 and any(month > months[0] for month, _ in begin):
        return True
    return len(set(days)) == 1 and any(day > days[0] for _, day in begin) and months[0] == max(begin)[0]


def test_parts_of_a_period_that_is_over_and_no_others_are_one_segment() -> None:
    """Against the rules, each on its own: neighbours that may follow each other do, and whatever was put together may."""
    rng = np.random.default_rng(41)
    start = int(datetime(2026, 1, 30, tzinfo=UTC).timestamp()) * 1_000_000
    most = 0
    for round_ in range(600):
        parts = []
        for i in range(int(rng.integers(1, 12))):
            if rng.random() < 0.1:
                parts.append(a_part(f"p{i:02}", None, None, *((0, 0) if rng.random() < 0.5 else (3, 0))))
                continue
            # hours in the order of the names, now and then elsewhere, or as long as days
            first = start + int(rng.integers(0, 100) if rng.random() < 0.2 else 9 * i + round_ % 9) * DAY // 24
            last = first + int(rng.choice([0, 1, 5, 30])) * DAY // 24 + int(rng.choice([-1, 0]))
            parts.append(a_part(f"p{i:02}", first, max(first, last), 2, 2 - int(rng.random() < 0.05)))
        found = grouped([parts[i] for i in rng.permutation(len(parts))])
        assert sorted(p.of for group in found for p in group) == [p.of for p in parts]
        assert [g[0].of for g in found] == sorted(g[0].of for g in found)
        with_rows = [p for p in parts if p.rows]
        assert [p for group in found for p in group if p.rows] == with_rows, "the canonical order"
        together = {p.of: i for i, group in enumerate(found) for p in group}
        for before, after in pairwise(with_rows):
            may = before.timed > 0 and after.timed > 0 and may_follow(before, after, parts)
            assert (together[before.of] == together[after.of]) == may, (before, after, parts)
        most = max(most, *map(len, found))
    assert most > 3


def test_a_segment_has_no_more_rows_than_is_quickly_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_MOST", 10)
    rows = [4, 4, 4, 11, 1, 9, 1]
    parts = [a_part(f"p{i}", i * DAY, i * DAY + 1, n, n) for i, n in enumerate(rows)] + [
        a_part("q", 40 * DAY, 40 * DAY)
    ]
    assert [[p.rows for p in group] for group in grouped(parts)] == [[4, 4], [4], [11], [1, 9], [1], [2]]


def test_units_are_packed_and_come_back() -> None:
    rng = np.random.default_rng(6)
    for _ in range(200):
        units = np.unique(rng.integers(-1, int(rng.choice([3, 300, 10**7])), int(rng.integers(0, 60))))
        assert unpack(pack(units)).tolist() == units.tolist()
    every = pack(np.arange(10_000))
    assert every.nbytes < 10_100, "a byte a unit"


class Calendar:
    """A project of a file a day or an hour over the end of a month, whose files come late, change, and vanish."""

    def __init__(self, root: Path, seed: int, ending: str) -> None:
        self.root, self.rng, self.ending, self.hour = root, np.random.default_rng(seed), ending, 0
        for _ in range(7):
            self.append()
        self.project = make_project(root, EVENTS.replace("*.parquet", f"*.{ending}"))

    def put(self, name: str, hour: int, hours: int) -> Path:
        rng, rows = self.rng, int(self.rng.integers(2, 25))
        if rng.random() < 0.05 and self.ending == "parquet":
            rows = 0
        odd = rng.random() < 0.05
        start = datetime(2026, 1, 30) + timedelta(hours=hour)
        times = [start + timedelta(seconds=int(rng.integers(3)) * 1000 * hours) for _ in range(rows)]
        table = pa.table(
            {
                "u": pa.array(
                    [None if rng.random() < 0.1 else f"u{rng.integers(5)}" for _ in range(rows)], pa.string()
                ),
                "t": pa.array([None if odd and rng.random() < 0.3 else t for t in times], pa.timestamp("us")),
                "v": pa.array([float(rng.integers(3)) + 0.5 for _ in range(rows)], pa.float64()),
            }
        )
        path = self.root / "events" / f"{name}.{self.ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.ending == "parquet":
            pq.write_table(table, path)
        else:
            path.write_text("u,t,v\n" + "".join(f"{r['u'] or ''},{r['t'] or ''},{r['v']}\n" for r in table.to_pylist()))
        return path

    def append(self) -> Path:
        hours = int(self.rng.choice([1, 6, 24]))
        if hours == 24:
            self.hour = -(-self.hour // 24) * 24
        self.hour += hours
        return self.put(f"{self.hour - hours:03}", self.hour - hours, hours)

    def step(self) -> str:
        files = sorted((self.root / "events").iterdir())
        chosen = files[int(self.rng.integers(len(files)))]
        what = str(self.rng.choice(["append", "append", "append", "late", "change", "remove"]))
        if what == "append":
            for _ in range(int(self.rng.integers(1, 4))):
                self.append()
        elif what == "late":
            hour = int(self.rng.integers(self.hour))
            self.put(str(self.rng.choice([f"{hour:03}-late", f"z{self.rng.integers(100)}"])), hour, 1)
        elif what == "change":
            self.put(chosen.stem, int(chosen.stem[:3].lstrip("z").split("-")[0]) if chosen.stem[0] != "z" else 5, 1)
        elif len(files) > 2:
            chosen.unlink()
        return what


def in_sequence(project: Project) -> tuple[list[list[str]], dict[Any, list[str]]]:
    """Which parts lie together, and the rows of each id in the order of the copy."""
    found = fresh(project)
    ids, by_unit = ids_of(found), dict[Any, list[str]]()
    for segment in found.segments:
        rows = table_of(segment.path)
        assert in_order(rows)
        assert len(rows) == segment.rows
        for row in rows:
            by_unit.setdefault(ids.get(row[UNIT]), []).append(repr((row["t"], row["v"])))
    return ofs(found), by_unit


@pytest.mark.parametrize(
    ("seed", "ending"),
    [
        (1, "parquet"),
        (2, "csv"),
        *(pytest.param(s, e, marks=pytest.mark.slow) for s in range(3, 13) for e in ("parquet", "csv")),
    ],
)
def test_segments_follow_the_calendar_whatever_the_history(
    tmp_path: Path, seed: int, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each step the copy is that of an empty folder; what a part has, wherever it lies, is its file's rows in order; and stored
    rows are read of files alone that are new or changed."""
    shop = Calendar(tmp_path / "p", seed, ending)
    read: set[str] = set()
    of_parts = prepared._Making._of_parts

    def watched(self: Any, parts: Any) -> Any:
        read.update(part.of for part in parts)
        return of_parts(self, parts)

    monkeypatch.setattr(prepared._Making, "_of_parts", watched)
    known: dict[str, str] = {}
    merged, done = 0, [""]
    for step in range(7):
        read.clear()
        shop.project.prepare()
        found = fresh(shop.project)
        assert read == {of for of, fingerprint in found.parts.items() if known.get(of) != fingerprint}, done
        known = found.parts
        assert ofs(found) == [[p.of for p in g] for g in grouped(p for s in found.segments for p in s.parts)]
        twin = tmp_path / f"twin-{step}"
        shutil.copytree(shop.root, twin, ignore=shutil.ignore_patterns(".payoff"))
        anew = Project.load(twin)
        anew.prepare()
        assert in_sequence(shop.project) == in_sequence(anew), done
        the_same_rows(shop.project)
        parts_hold_their_rows(shop, found)
        merged = max(merged, *(len(s.parts) for s in found.segments))
        done.append(shop.step())
    assert merged > 1, "days or hours lay together at some time"


def parts_hold_their_rows(shop: Calendar, found: Prepared) -> None:
    """Of each part: rows, units, times; and any of the parts of a segment, read by themselves."""
    wanted: dict[str, list[Any]] = {}
    with shop.project.catalog(["events"], as_stored=True) as catalog:
        listed = catalog.stored("events").select.copy()
        for row in catalog.engine.fetch(Query(listed), "rows").to_pylist():
            wanted.setdefault("all", []).append(repr(row))
    numbers = {unit: number for number, unit in ids_of(found).items()} | {None: -1}
    copied = []
    for segment in found.segments:
        rows = [{c: row[c] for c in (*"utv", US)} for row in table_of(segment.path)]
        copied += [repr({c: row[c] for c in "utv"}) for row in rows]
        for part in segment.parts:
            low, high = part.first_us, part.last_us
            own = [r for r in rows if len(segment.parts) == 1 or low <= r[US] <= high]  # type: ignore[operator]
            times = [r[US] for r in own if r[US] is not None]
            assert (part.rows, part.timed) == (len(own), len(times))
            assert (low, high) == ((min(times), max(times)) if times else (None, None))
            assert unpack(segment.units(part)).tolist() == sorted({numbers[r["u"]] for r in own})
        chosen = {p.of for p in segment.parts if shop.rng.random() < 0.5}
        cut = segment.only(chosen)
        assert (cut is None) == (not chosen)
        if cut is not None:
            assert {p.of for p in cut.parts} == chosen
            inside = cut.condition()
            assert (inside is None) == (len(chosen) == len(segment.parts))
            where = "true" if inside is None else inside.sql("duckdb")
            read = duckdb.read_parquet(segment.path).filter(where)
            assert len(read) == cut.rows
            if inside is not None:
                spans = [(p.first_us, p.last_us) for p in cut.parts]
                assert all(any(a <= row[0] <= b for a, b in spans) for row in read.select(US).fetchall())  # type: ignore[operator]
    assert Counter(copied) == Counter(wanted.get("all", []))


def test_the_end_of_a_month_is_safe_from_whatever_ends_a_preparing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The month is written from the copy of its days, which stay until the manifest is in place."""
    rng = np.random.default_rng(9)
    for day in range(29, 32):
        write(tmp_path, f"{day}", dated(rng, datetime(2026, 1, day)))
    project = make_project(tmp_path, EVENTS)
    project.prepare()
    before = fresh(project)
    assert [len(s.parts) for s in before.segments] == [1, 1, 1]
    added = write(tmp_path, "32", dated(rng, datetime(2026, 2, 1)))
    written = prepared._Writer.write
    for at in range(1, 5):
        calls: list[int] = []

        def dying(*args: Any, at: int = at, calls: list[int] = calls) -> None:
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            written(*args)

        with monkeypatch.context() as patched:
            patched.setattr(prepared._Writer, "write", dying)
            with pytest.raises(KeyboardInterrupt):
                project.prepare()
        shutil.move(added, tmp_path / "aside")
        assert fresh(project) == before
        the_same_rows(project)
        shutil.move(tmp_path / "aside", added)
    (report,) = project.prepare()
    assert (report.segments, report.built, report.removed) == (2, 2, 0)
    assert [len(s.parts) for s in fresh(project).segments] == [3, 1]
    the_same_rows(project)


def dated(rng: np.random.Generator, day: datetime) -> pa.Table:
    times = [day + timedelta(hours=int(h)) for h in rng.integers(0, 24, 20)]
    return pa.table({"u": [f"u{i}" for i in rng.integers(0, 5, 20)], "t": times, "v": rng.random(20)})


# ---------------------------------------------------------------- histories


def test_any_history_of_files_gives_the_rows_that_are_stored(tmp_path: Path) -> None:
    """Files are added, changed, removed, touched, at random: segments of files that stayed are left alone, and so are numbers."""
    rng = np.random.default_rng(23)
    write(tmp_path, "f0", events(rng, 10))
    project = make_project(tmp_path, EVENTS)
    project.prepare()
    given: dict[Any, int] = {}
    for step in range(9):
        before, present = fresh(project), sorted((tmp_path / "events").iterdir())
        action = rng.choice(["add", "change", "remove", "touch"])
        chosen = present[int(rng.integers(len(present)))]
        if action == "add":
            chosen = write(tmp_path, f"f{step + 1}", events(rng, int(rng.integers(1, 30))))
        elif action == "change":
            write(tmp_path, chosen.stem, events(rng, int(rng.integers(1, 30))))
        elif action == "remove":
            if len(present) == 1:
                continue
            chosen.unlink()
        else:
            os.utime(chosen, ns=(1, step * 1_000_000_007 + 1))
        found = layout(project)
        assert isinstance(found, Prepared) == (action == "touch")
        if isinstance(found, str):
            assert {"add": "1 new", "change": "1 changed", "remove": "1 gone"}[action] in found
        assert rows_of(project, as_stored=False) == rows_of(project, as_stored=True)
        assert status(project) == {"file events/*.parquet": "fresh" if action == "touch" else "prepared"}
        after = fresh(project)
        the_same_rows(project)
        kept = {s for s in before.segments if s.parts[0].of != f"events/{chosen.name}"}
        assert kept <= set(after.segments)
        assert (after.version == before.version) == (action == "touch")
        assert after.numbering == before.numbering
        numbers = {unit: number for number, unit in ids_of(after).items()}
        assert given.items() <= numbers.items()
        given = numbers
        paths = [Path(s.path) for s in after.segments]
        named = {p.name for p in (Path(after.units), *paths, *(path.with_suffix(".units") for path in paths))}
        assert {p.name for p in after.folder.iterdir()} == {*named, "manifest.json"}


def test_a_new_column_makes_all_of_it_anew(small: Project) -> None:
    small.prepare()
    before = fresh(small)
    wider = events(np.random.default_rng(1), 5).append_column("w", pa.array([1, 2, 3, 4, None]))
    write(small.root, "d", wider)
    (report,) = small.prepare()
    assert report.built == 4
    after = fresh(small)
    assert list(after.columns) == ["u", "t", "v", "w"]
    assert after.numbering != before.numbering
    the_same_rows(small)


def test_a_table_is_compared_by_month_once_its_database_changed(tmp_path: Path) -> None:
    tables = """
    CREATE TABLE e AS SELECT 'u' || (i % 7) AS u, TIMESTAMP '2026-01-15' + to_days((i % 4 * 30)::INT) AS t, i AS v
    FROM range(100) AS r(i);
    CREATE TABLE other AS SELECT 1 AS x
    """
    project = make_project(tmp_path, "sources: {e: {table: e, time: t, entity: {user: u}}}", tables)
    (report,) = project.prepare()
    assert (report.status, report.built) == ("prepared", 4)
    database = str(tmp_path / "data.duckdb")

    def change(statement: str) -> prepared.Report:
        with duckdb.connect(database) as connection:
            connection.execute(statement)
        assert layout(project, "e") == "its database has changed since"
        assert rows_of(project, "e", as_stored=False) == rows_of(project, "e", as_stored=True)
        (report,) = project.prepare()
        the_same_rows(project, "e")
        return report

    assert change("INSERT INTO other VALUES (2)").status == "fresh"
    assert change("UPDATE e SET v = v + 1 WHERE month(t) = 2").built == 1
    assert change("INSERT INTO e SELECT u, NULL, v FROM e LIMIT 3").built == 1
    gone = change("DELETE FROM e WHERE month(t) = 3")
    assert (gone.built, gone.removed, gone.segments) == (0, 1, 4)
    # two changes whose mixed hashes cancel: the rows of a month twice over
    assert (
        change(
            "INSERT INTO e SELECT * FROM e WHERE month(t) = 1; INSERT INTO e SELECT * FROM e WHERE month(t) = 1"
        ).built
        == 1
    )
    assert change("ALTER TABLE e ADD COLUMN w INTEGER").built == 4


def test_what_a_database_has_committed_to_its_log_is_a_change(tmp_path: Path) -> None:
    database = tmp_path / "data.duckdb"
    database.write_bytes(b"1")
    before = prepared._store(tmp_path, database)
    (tmp_path / "data.duckdb.wal").write_bytes(b"1")
    assert prepared._store(tmp_path, database) != before


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_text_is_not_parsed_again_and_types_are_those_of_all_files(tmp_path: Path, ending: str) -> None:
    def put(name: str, rows: list[dict[str, Any]]) -> None:
        path = tmp_path / f"{name}.{ending}"
        if ending == "csv":
            lines = [",".join(rows[0]), *(",".join(str(v) for v in row.values()) for row in rows)]
        else:
            lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n")

    put("a", [{"u": "007", "t": "2026-01-01 10:00:00", "v": 1}, {"u": "7", "t": "2026-01-01 10:00:00", "v": 2}])
    definitions = f"""
    sources: {{e: {{file: "*.{ending}", time: CAST(t AS TIMESTAMP), entity: {{user: CAST(u AS VARCHAR)}}}}}}
    metrics: {{n: {{kind: count, from: e}}}}
    """
    project = make_project(tmp_path, definitions)
    project.prepare()
    the_same_rows(project, "e")
    with project.catalog(["e"]) as catalog:
        catalog.view("e")
        assert catalog.prepare(run=True) == []
    put("b", [{"u": "8", "t": "2026-01-02 10:00:00", "v": 3}])
    (report,) = project.prepare()
    assert report.built == 1
    put("c", [{"u": "x9", "t": "2026-01-02 10:00:00", "v": 3}])  # now ids are text everywhere, and 007 keeps its zeros
    project.prepare()
    the_same_rows(project, "e")
    found = fresh(project, "e")
    assert found.columns["u"] == "VARCHAR"
    assert set(ids_of(found).values()) == {"007", "7", "8", "x9"}


def test_values_in_folder_names_are_columns(tmp_path: Path) -> None:
    """They are read as what all of them are: a number beside a word is text."""
    rng = np.random.default_rng(6)
    for shard in ("1", "2"):
        write(tmp_path / "events" / f"shard={shard}", "a", events(rng, 20))
    project = make_project(tmp_path, EVENTS.replace("events/*.parquet", "**/*.parquet"))
    project.prepare()
    assert fresh(project).columns["shard"] == "BIGINT"
    the_same_rows(project)
    write(tmp_path / "events" / "shard=x", "a", events(rng, 20))
    (report,) = project.prepare()
    assert (report.built, fresh(project).columns["shard"]) == (3, "VARCHAR")
    the_same_rows(project)


def test_another_id_time_or_zone_makes_it_anew_and_until_then_serves_no_unit(small: Project) -> None:
    small.prepare()
    definitions = small.root / "definitions" / "all.yml"
    for change in (("entity: {user: u}", "entity: {user: upper(u)}"), ("time: t", "time: t, timezone: Asia/Tokyo")):
        definitions.write_text(definitions.read_text().replace(*change))
        project = Project.load(small.root)
        assert "clustered by another" in str(layout(project))
        assert "clustered by user" in str(layout(project, entity="account"))
        assert rows_of(project, as_stored=False) == rows_of(project, as_stored=True)
        (report,) = project.prepare()
        assert report.built == 3
        the_same_rows(project)


def test_sources_over_one_relation_share_a_layout(tmp_path: Path) -> None:
    definitions = (
        EVENTS
        + """
      clicks: {file: "events/*.parquet", where: "v > 1", time: t, entity: {user: u}}
      untimed: {file: "events/*.parquet", entity: {user: u}}
    """
    )
    write(tmp_path, "a", events(np.random.default_rng(5), 30))
    project = make_project(tmp_path, definitions)
    for asked in (["clicks"], ["untimed"], None):
        (report,) = project.prepare(asked)
        assert report.sources == ("events", "clicks", "untimed")
    assert fresh(project, "clicks") == fresh(project, "events")
    assert "time" in str(layout(project, "untimed"))
    assert sum(s.rows for s in fresh(project, "clicks").segments) == 30


# ---------------------------------------------------------------- runs


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert one["results"]
    for section in ("results", "refusals", "claims"):
        for mine, theirs in zip(one[section], other[section], strict=True):
            assert [str(d) for d in compare(mine, theirs)] == []


def test_an_experiment_with_cuped_has_the_same_figures(tmp_path: Path) -> None:
    body = "        secondary: [ordered, visits, aov, p90, back]\n        adjust: cuped"
    project, _ = make_shop(tmp_path, experiment(body), users=500)
    today = date(2026, 6, 1)
    stored = project.run(record=False, today=today).to_dict()
    assert {r.status for r in project.prepare()} == {"prepared"}
    copied = project.run(record=False, today=today)
    read = {step.reads for step in copied.plan if step.reads.startswith("table") and "customers" not in step.reads}
    assert read == {f"table main.{name}, prepared" for name in ("exposures", "orders", "sessions")}
    alike(stored, copied.to_dict())
    marks = [r["provenance"]["data_fingerprint"] for run in (stored, copied.to_dict()) for r in run["results"]]
    assert len(set(marks)) == 1


def test_journeys_with_joined_ids_verify_after_preparing(tmp_path: Path) -> None:
    project = make_project(tmp_path, SITE, TABLES.replace("range(15000)", "range(4000)"), ROOT)
    project.run()
    assert {r.status for r in project.prepare()} == {"prepared"}
    assert project.verify().equal
    plan = project.plan()
    assert {step.reads for step in plan if step.reads.startswith("table")} == {
        f"table main.{name}, prepared" for name in ("exposures", "identifies", "orders", "returns")
    }
    assert not project.stale
    with duckdb.connect(str(tmp_path / "data.duckdb")) as connection:
        connection.execute("CREATE TABLE x AS SELECT 1 AS a")
    assert not any("prepared" in step.reads for step in project.plan())
    assert set(project.stale.values()) == {"its database has changed since"}


# ---------------------------------------------------------------- what goes wrong


def test_a_preparing_that_dies_leaves_the_old_layout(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    small.prepare()
    before = fresh(small)
    added = write(small.root, "d", events(np.random.default_rng(9), 30))
    written = prepared._Writer.write
    for at, error in ((1, KeyboardInterrupt), (2, MemoryError), (3, KeyboardInterrupt)):
        calls: list[Path] = []

        def dying(
            engine: Any,
            query: Query,
            path: Path,
            *words: str,
            at: int = at,
            error: type = error,
            calls: list[Path] = calls,
        ) -> None:
            calls.append(path)
            if len(calls) == at:
                raise error
            written(engine, query, path, *words)

        with monkeypatch.context() as patched:
            patched.setattr(prepared._Writer, "write", dying)
            with pytest.raises(error):
                small.prepare()
        assert "1 new" in str(layout(small))
    shutil.move(added, small.root / "aside.parquet")
    assert fresh(small) == before  # it was made of the files that are there again
    the_same_rows(small)


def test_what_a_killed_process_left_is_swept(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its manifest was in place, it could not tidy up: nothing names its files, and the next one removes them."""
    small.prepare()
    folder = fresh(small).folder
    write(small.root, "d", events(np.random.default_rng(9), 30))
    process = os.fork()
    if process == 0:
        prepared._commit = lambda *_: os._exit(9)  # type: ignore[assignment]
        small.prepare()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    left = len(list(folder.iterdir()))
    assert left > 8
    assert "1 new" in str(layout(small))
    small.prepare()
    the_same_rows(small)
    assert len(list(folder.iterdir())) == 10 < left


def test_a_full_disk_is_told_and_leaves_the_old_layout(small: Project) -> None:
    small.prepare()
    before = {p.name for p in fresh(small).folder.iterdir()}
    big = pa.table(
        {"u": [f"user {i * 7919 % 100_003}" for i in range(50_000)], "t": [START] * 50_000, "v": [0.5] * 50_000}
    )
    write(small.root, "d", big)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ConnectionFailed, match="could not be written"):
            small.prepare()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name for p in (small.root / ".payoff" / "prepared").glob("*/*")} == before
    small.prepare()
    the_same_rows(small)


def test_only_one_prepares_at_a_time(small: Project) -> None:
    with prepared._alone(small.root), pytest.raises(ConnectionFailed, match="another payoff prepare"):
        small.prepare()
    small.prepare()


def test_a_run_that_reads_a_copy_keeps_its_files(small: Project) -> None:
    small.prepare()
    with small.catalog(["events"]) as catalog:
        query = catalog.view("events").relation.query()
        before = catalog.engine.fetch(query, "rows").num_rows
        write(small.root, "a", events(np.random.default_rng(4), 3))
        small.prepare()
        assert catalog.engine.fetch(query, "rows").num_rows == before
        with pytest.raises(ConnectionFailed, match="a run is reading"):
            small.drop_prepared()
    the_same_rows(small)
    small.prepare()
    assert len(list(fresh(small).folder.iterdir())) == 8  # three segments and their units, all units, manifest


def test_a_copy_that_is_damaged_is_not_read(small: Project) -> None:
    small.prepare()
    found = fresh(small)
    manifest = found.folder / "manifest.json"
    text = manifest.read_text()
    victim = Path(found.segments[1].path)
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1])
    assert "missing or cut short" in str(layout(small))
    (report,) = small.prepare()
    assert report.built == 3
    for damaged in ("", "{}", text.replace(victim.name, "../../../events/a.parquet"), text[: len(text) // 2]):
        manifest.write_text(damaged)
        assert layout(small) == "it has not been prepared"
        assert rows_of(small, as_stored=False) == rows_of(small, as_stored=True)
    small.prepare()
    the_same_rows(small)


def test_what_is_written_to_meanwhile_is_not_kept(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    written = prepared._Writer.write

    def meddling(self: prepared._Writer, *args: Any) -> None:
        write(small.root, "a", events(np.random.default_rng(8), 7))
        written(self, *args)

    monkeypatch.setattr(prepared._Writer, "write", meddling)
    with pytest.raises(ConnectionFailed, match="written to while it was being prepared"):
        small.prepare()
    assert layout(small) == "it has not been prepared"


# ---------------------------------------------------------------- the verb


def test_the_verb(small: Project) -> None:
    def asked(*words: str) -> tuple[int, Any]:
        result = CliRunner().invoke(app, ["prepare", "-p", str(small.root), "--json", *words])
        return result.exit_code, json.loads(result.stdout)

    code, found = asked()
    (report,) = found["prepared"]
    assert (code, report["status"], report["sources"]) == (0, "prepared", ["events"])
    assert (report["rows"], report["segments"], report["built"]) == (120, 3, 3)
    assert asked("events")[1]["prepared"][0]["status"] == "fresh"
    assert asked("event")[0] == UsageError.exit_code
    plain = CliRunner().invoke(app, ["prepare", "-p", str(small.root)])
    assert plain.stdout.startswith("fresh: file events/*.parquet for events")
    code, found = asked("--drop")
    assert (code, [r["status"] for r in found["prepared"]]) == (0, ["dropped"])
    assert not list((small.root / ".payoff" / "prepared").glob("*/"))
    assert asked("--drop") == (0, {"project": "small", "prepared": []})


def test_a_source_that_was_named_and_cannot_be_prepared_fails(tmp_path: Path) -> None:
    tables = "CREATE TABLE e AS SELECT 1 AS u, DATE '2026-01-01' AS t, INTERVAL 1 DAY AS i"
    make_project(tmp_path, "sources: {e: {table: e, time: t, entity: {user: u}}}", tables)
    for words, code in (([], 0), (["e"], 1)):
        result = CliRunner().invoke(app, ["prepare", "-p", str(tmp_path), *words])
        assert result.exit_code == code
        assert "INTERVAL" in result.stdout

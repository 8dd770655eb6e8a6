"""The paths kernel against a slow, obvious one on random streams: ties, repeats, windows, long paths, several sources."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import pytest

from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import DuckDBConnection, Entity, Journey, Source, Touchpoint
from payoff.warehouse import paths
from payoff.warehouse.sources import Catalog

DAY = 86_400_000_000
T0 = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 1_000_000
NOW = T0 + 400 * DAY
TOUCHPOINTS = {
    "ad": Touchpoint(source="touches", where="kind = 'ad'"),
    "mail": Touchpoint(source="touches", where="kind = 'mail'"),
    "shop": Touchpoint(source="visits"),
    "site": Touchpoint(source="touches", where="kind = 'site'", by="page"),
}
Row = tuple[str, int, str, str | None]  # unit, us, what, page


def catalog_of(
    folder: Path, touches: list[Row], visits: list[Row], orders: list[tuple[str | None, int, int]]
) -> Catalog:
    path = folder / "data.duckdb"
    path.unlink(missing_ok=True)
    with duckdb.connect(str(path)) as c:
        c.execute("CREATE TABLE touches (u VARCHAR, us BIGINT, kind VARCHAR, page VARCHAR)")
        c.execute("CREATE TABLE visits (u VARCHAR, us BIGINT, kind VARCHAR, page VARCHAR)")
        c.execute("CREATE TABLE orders (u VARCHAR, us BIGINT, id INTEGER)")
        for table, rows in (("touches", touches), ("visits", visits), ("orders", orders)):
            if rows:
                marks = ", ".join("?" for _ in rows[0])
                c.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
    source: Any = {"time": "make_timestamp(us)", "entity": {"user": "u"}}
    sources = {
        "touches": Source(table="touches", **source),
        "visits": Source(table="visits", **source),
        "orders": Source(table="orders", id="id", **source),
    }
    connections = {"main": DuckDBConnection(engine="duckdb", path=path.name)}
    return Catalog(sources, {"user": Entity(id=None)}, connections, folder, "UTC")


def design(given: Mapping[str, Any], **more: Any) -> JourneyDesign:
    declared = Journey.model_validate({"touchpoints": list(TOUCHPOINTS), **given})
    return JourneyDesign("paths.p", declared, "user", now_us=NOW, touchpoints=TOUCHPOINTS, **more)


@dataclass
class Slow:
    paths: dict[tuple[tuple[str, ...], bool], list[str]]
    waits: list[int]
    edges: Counter[tuple[int, str | None, str | None]]
    unripe: int


def slowly(
    touches: list[Row],
    visits: list[Row],
    orders: list[tuple[str | None, int, int]],
    d: JourneyDesign,
    labels: list[str],
) -> Slow:
    declared = d.declared
    assert isinstance(declared, Journey)
    window, to = round(declared.window.total_seconds() * 1e6), declared.to is not None

    def label(row: Row) -> str:
        return f"site: {row[3] or '(none)'}" if row[2] == "site" else row[2]

    met = sorted((r[0], r[1], labels.index(label(r))) for r in (*touches, *visits))
    as_of = min(max(r[1] for r in rows) for rows in (touches, visits, orders) if rows)
    out = Slow({}, [], Counter(), 0)
    seen: set[int] = set()
    for unit, us, id_ in sorted(orders, key=lambda o: (o[1], o[0] or "")):
        if unit is None or id_ in seen:
            continue
        seen.add(id_)
        if not to and us + window - 1 > as_of:
            out.unripe += 1
            continue
        low, high = (us - window + 1, us) if to else (us, us + window - 1)
        mine = [(t, c) for u, t, c in met if u == unit and low <= t <= high]
        codes = [c for _, c in mine]
        stops = [k for k, _ in groupby(codes)] if declared.collapse else codes
        names = [labels[c] for c in stops]
        cut = len(names) > declared.longest
        shown = names[-declared.longest :] if to else names[: declared.longest]
        out.paths.setdefault((tuple(shown), cut), []).append(unit)
        if mine and to:
            out.waits.append(us - mine[0][0])
        beside = [*reversed(shown)] if to else shown
        if not names:
            out.edges[1, None, None] += 1
        for k, name in enumerate(beside[: paths.FLOW_STOPS], start=1):
            other = beside[k - 2] if k > 1 else None
            out.edges[(k, name, other) if to else (k, other, name)] += 1
    return out


def random_rows(seed: int) -> tuple[list[Row], list[Row], list[tuple[str | None, int, int]]]:
    rng = random.Random(seed)
    users = [f"u{i}" for i in range(rng.randint(1, 6))]

    def when() -> int:
        return T0 + rng.randint(0, 40) * DAY // 2

    touches: list[Row] = []
    for _ in range(rng.randint(1, 60)):
        kind = rng.choice(["ad", "ad", "mail", "site"])
        touches.append((rng.choice(users), when(), kind, rng.choice(["a", "b > c", None]) if kind == "site" else None))
    visits: list[Row] = [(rng.choice(users), when(), "shop", None) for _ in range(rng.randint(1, 20))]
    orders: list[tuple[str | None, int, int]] = [
        (rng.choice([*users, "stranger", None]), when(), rng.randint(0, 30)) for _ in range(rng.randint(1, 25))
    ]
    return touches, visits, orders


@pytest.mark.parametrize("seed", range(24))
def test_random_streams_equal_the_slow_reading(tmp_path: Path, seed: int) -> None:
    touches, visits, orders = random_rows(seed)
    rng = random.Random(seed + 1000)
    given = {
        ("to" if seed % 2 else "from"): "orders",
        "window": rng.choice(["1d", "3d", "12h", "30d"]),
        "longest": rng.choice([1, 2, 20]),
        "collapse": rng.random() < 0.6,
        "top": 200,
    }
    d = design(given)
    with catalog_of(tmp_path, touches, visits, orders) as catalog:
        found = paths.read(catalog, d)
    labels = [s.label for s in found.stops]
    slow = slowly(touches, visits, orders, d, labels)
    told = {(tuple(labels[c] for c in p.codes), p.cut): p for p in found.paths}
    if found.untouched is not None:
        told[(), False] = found.untouched
    assert {k: p.n for k, p in told.items()} == {k: len(units) for k, units in slow.paths.items()}
    everyone = Counter(u for units in slow.paths.values() for u in units)
    assert found.journeys == everyone.total()
    assert found.units == len(everyone)
    assert found.squares == sum(n * n for n in everyone.values())
    for key, units in slow.paths.items():
        own = Counter(units)
        assert told[key].units == len(own)
        assert told[key].squares == sum(n * n for n in own.values())
        assert told[key].cross == sum(n * everyone[u] for u, n in own.items())

    def named(code: int | None) -> str | None:
        return None if code is None else labels[code]

    assert {(e.stop, named(e.source), named(e.target)): e.n for e in found.edges} == slow.edges
    assert found.unripe == slow.unripe
    assert found.rest_units == 0
    if "to" in given and slow.waits:
        if isinstance(found.wait, str):
            assert "too few" in found.wait or "it takes two" in found.wait
        else:
            assert found.wait is not None
            assert found.wait.value == pytest.approx(median(slow.waits) / 1e6)
            assert found.wait.n == len(slow.waits)
            assert found.wait.low <= found.wait.value <= found.wait.high


def test_the_commonest_are_told_and_others_by_how_many_units(tmp_path: Path) -> None:
    touches: list[Row] = [(f"u{i}", T0, "ad" if i < 6 else "mail", None) for i in range(9)]
    touches += [("u9", T0, "ad", None), ("u9", T0 + 1, "mail", None)]
    orders: list[tuple[str | None, int, int]] = [(f"u{i}", T0 + DAY, i) for i in range(11)]
    with catalog_of(tmp_path, touches, [], orders) as catalog:
        few = paths.read(catalog, design({"to": "orders", "top": 1}))
        hidden = paths.read(catalog, design({"to": "orders"}, min_cell=3))
    assert [(p.codes, p.n) for p in few.paths] == [((0,), 6)]
    assert few.rest_units == 4
    assert [(p.codes, p.n) for p in hidden.paths] == [((0,), 6), ((1,), 3)]
    assert hidden.untouched is None
    assert hidden.rest_units == 2  # of the path of two stops, and of none
    assert hidden.journeys == 11


def test_a_plan_reads_nothing_and_names_what_is_read(tmp_path: Path) -> None:
    touches, visits, orders = random_rows(3)
    with catalog_of(tmp_path, touches, visits, orders) as catalog:
        for given in ({"to": "orders"}, {"from": "orders"}):
            planned = paths.plan(catalog, design(given))
            read = paths.read(catalog, design(given))
            names = [step.name for step in planned]
            # a source with faults takes a statement of its own to tell them
            more = {step.name for step in read.steps if not step.name.startswith("faults of")}
            assert more - set(names) <= {
                "units of all other paths",
                "where journeys began",
                "journeys that begin before the data",
            }
            assert {step.reads for step in planned if step.reads} >= {"orders", "touches", "visits"}


def test_a_machine_that_does_not_stop_takes_no_more_than_its_rows(tmp_path: Path) -> None:
    """A unit with 50,000 touches and 2,000 events would be 100 million pairs; its paths are 2,000 of at most ``longest`` stops."""
    touches: list[Row] = [("u1", T0, "ad", None)]
    with catalog_of(tmp_path, touches, [], [("u1", T0 + 1, 0)]) as catalog:
        assert paths.read(catalog, design({"to": "orders"})).journeys == 1
    with duckdb.connect(str(tmp_path / "data.duckdb")) as c:
        c.execute(
            f"INSERT INTO touches SELECT 'bot', {T0} + i * 1000000, CASE WHEN i % 2 = 0 THEN 'ad' ELSE 'mail' END, NULL"
            " FROM range(50000) t(i)"
        )
        c.execute(f"INSERT INTO orders SELECT 'bot', {T0} + i * 20000000, i + 1 FROM range(2000) t(i)")
    sources: Any = {"time": "make_timestamp(us)", "entity": {"user": "u"}}
    with Catalog(
        {
            "touches": Source(table="touches", **sources),
            "visits": Source(table="visits", **sources),
            "orders": Source(table="orders", id="id", **sources),
        },
        {"user": Entity(id=None)},
        {"main": DuckDBConnection(engine="duckdb", path="data.duckdb", memory_limit="256MB")},
        tmp_path,
        "UTC",
    ) as catalog:
        found = paths.read(catalog, design({"to": "orders", "longest": 5}))
    assert found.journeys == 2001
    assert found.paths[0].n > 900
    assert found.paths[0].cut

"""The funnel kernel against a slow, obvious one: every chain of rows tried, on random streams of events."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from payoff.errors import DataError
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import DuckDBConnection, Entity, Event, Funnel, FunnelStep, Source
from payoff.warehouse import funnels
from payoff.warehouse.sources import Catalog

MIN = 60_000_000
T0 = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 1_000_000
NOW = T0 + 400 * 86_400_000_000


@dataclass(frozen=True)
class Row:
    source: str
    unit: str | None
    us: int | None
    name: str
    id: int | None
    cls: str | None
    link: int | None


def at(minute: float) -> int:
    return T0 + round(minute * MIN)


def row(source: str, unit: str | None, minute: float | None, name: str = "a", **more: Any) -> Row:
    us = None if minute is None else at(minute)
    return Row(source, unit, us, name, more.get("id"), more.get("cls"), more.get("link"))


SOURCES = {
    "views": Source(table="views", time="t", entity={"user": "u"}),
    "carts": Source(table="carts", time="t", entity={"user": "u"}),
    "orders": Source(table="orders", time="t", entity={"user": "u"}, id="id"),
    "returns": Source(table="returns", time="t", entity={"user": "u"}, links={"orders": "link"}),
    "bans": Source(table="bans", time="t", entity={"user": "u"}),
}


def catalog_of(
    folder: Path, rows: Sequence[Row], sources: dict[str, Source] | None = None, kind: str = "TIMESTAMP"
) -> Catalog:
    sources = sources or SOURCES
    path = folder / "data.duckdb"
    path.unlink(missing_ok=True)
    with duckdb.connect(str(path)) as connection:
        for source in sources:
            connection.execute(
                f"CREATE TABLE {source} (u VARCHAR, t {kind}, name VARCHAR, id BIGINT, cls VARCHAR, link BIGINT)"
            )
            these = [r for r in rows if r.source == source]
            if these:
                connection.executemany(
                    f"INSERT INTO {source} SELECT ?, make_timestamp(CAST(? AS BIGINT)), ?, ?, ?, ?",
                    [(r.unit, r.us, r.name, r.id, r.cls, r.link) for r in these],
                )
    connections = {"main": DuckDBConnection(engine="duckdb", path=str(path))}
    return Catalog(sources, {"user": Entity(id="u")}, connections, folder, "UTC")


def design_of(funnel: Funnel, **more: Any) -> JourneyDesign:
    return JourneyDesign(name="funnels.tried", declared=funnel, entity="user", now_us=NOW, **more)


def read(folder: Path, rows: Sequence[Row], declared: dict[str, Any], **more: Any) -> funnels.FunnelData:
    with catalog_of(folder, rows) as catalog:
        return funnels.read(catalog, design_of(Funnel.model_validate(declared), **more))


def units(data: funnels.FunnelData, segment: str | None = None) -> list[int]:
    return [r.units for r in data.reached if r.segment == segment]


# ---------------------------------------------------------------- the slow one


def us_of(span: timedelta | None) -> int:
    return 0 if span is None else span // timedelta(microseconds=1)


def meets(event: Event | FunnelStep, r: Row) -> bool:
    if r.source != event.source:
        return False
    return event.where is None or f"'{r.name}'" in event.where


@dataclass
class Slow:
    """All chains of one funnel over a list of rows."""

    funnel: Funnel
    rows: list[Row]
    starts: int | None
    ends: int | None
    as_of: int

    def __post_init__(self) -> None:
        self.happening = [s for s in self.funnel.steps if s.without is None]
        self.kept = self.funnel.steps[-1] if self.funnel.steps[-1].without is not None else None
        wait = us_of(self.kept.within) if self.kept else 0
        window = funnels.window_us(self.funnel)
        self.cut = self.as_of - (window or 0) - wait
        self.latest = self.as_of - wait

    def unit(self, unit: str) -> tuple[int, tuple[int, ...], bool]:
        """(depth, times of its way, whether only its entries still inside are there)."""
        mine = sorted((r for r in self.rows if r.unit == unit and r.us is not None), key=lambda r: r.us or 0)
        self.mine = [(r, r.us) for r in mine if r.us is not None and 0 <= r.us <= NOW + 86_400_000_000]
        if self.funnel.order == "unordered":
            return self.gather()
        entries = [x for x in self.mine if meets(self.happening[0], x[0]) and self.inside(x[1])]
        if self.funnel.entry == "first":
            entries = [x for x in entries if x[1] == entries[0][1]]
        ready = [x for x in entries if x[1] <= self.cut]
        if not ready:
            return 0, (), bool(entries)
        ways = [way for entry in ready for way in self.chains((entry,))]
        # deepest; of those the latest entry; there first; and then from its end backwards the latest rows
        best = max(ways, key=lambda w: (w[0], w[1][0], -w[1][-1], w[1][::-1]))
        return best[0], best[1], False

    def inside(self, us: int) -> bool:
        return (self.starts is None or us >= self.starts) and (self.ends is None or us < self.ends)

    def chains(self, way: tuple[tuple[Row, int], ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
        k, (_, last), entry = len(way), way[-1], way[0][1]
        times = tuple(us for _, us in way)
        yield k, times
        if k == len(self.happening):
            if self.kept is not None and self.stayed(way[-1][0], last):
                yield k + 1, times
            return
        step = self.happening[k]
        strictly = step.source in {s.source for s in self.happening[:k]}
        for r, us in self.mine:
            if not meets(step, r) or us < last or (strictly and us == last) or us > self.latest:
                continue
            if self.funnel.within is not None and us > entry + us_of(self.funnel.within):
                continue
            if step.within is not None and us > last + us_of(step.within):
                continue
            if not any(last < b < us and self.ends_attempt(k, x) for x, b in self.mine):
                yield from self.chains((*way, (r, us)))

    def ends_attempt(self, k: int, r: Row) -> bool:
        if any(meets(event, r) for event in self.funnel.exclude):
            return True
        others = [s for j, s in enumerate(self.happening) if j not in (k - 1, k)]
        return self.funnel.order == "strict" and any(meets(s, r) for s in others)

    def stayed(self, order: Row, us: int) -> bool:
        assert self.kept is not None
        assert self.kept.without is not None
        without, until = self.kept.without, us + us_of(self.kept.within)
        if order.source == "orders" and without.source == "returns":
            if order.id is None:
                return False
            rows = [r for r in self.rows if r.link == order.id]
        else:
            rows = [r for r, _ in self.mine]
        return not any(meets(without, r) and r.us is not None and us < r.us <= until for r in rows)

    def gather(self) -> tuple[int, tuple[int, ...], bool]:
        entries = [us for r, us in self.mine if any(meets(s, r) for s in self.happening) and self.inside(us)]
        if self.funnel.entry == "first":
            entries = entries[:1]
        ready = [us for us in entries if us <= self.cut]
        if not ready:
            return 0, (), bool(entries)
        found = []
        for entry in ready:
            firsts = [
                min(
                    (us for r, us in self.mine if meets(s, r) and entry <= us <= entry + us_of(self.funnel.within)),
                    default=None,
                )
                for s in self.happening
            ]
            times = sorted(us for us in firsts if us is not None)
            found.append((len(times), entry, tuple(times)))
        depth, _, times = max(found)
        return depth, times, False


def expected(slow: Slow) -> tuple[dict[str, int], list[list[float]], int]:
    """(depth by unit, the seconds of each transition, units still inside)."""
    names = sorted({r.unit for r in slow.rows if r.unit is not None})
    depths: dict[str, int] = {}
    passed: list[list[float]] = [[] for _ in slow.happening]
    inside = 0
    for name in names:
        depth, times, waiting = slow.unit(name)
        inside += waiting
        if depth:
            depths[name] = depth
            for k in range(1, len(times)):
                passed[k].append((times[k] - times[k - 1]) / 1e6)
    return depths, passed, inside


# ---------------------------------------------------------------- random streams and random funnels


def stream(rng: random.Random, users: int) -> list[Row]:
    """Ties, duplicates, NULL units and times, repeated ids, few names: small times so that everything collides."""
    rows: list[Row] = []
    order = 0
    for u in range(users):
        for source in SOURCES:
            for _ in range(rng.choice((0, 1, 2, 3, 5) if source != "bans" else (0, 0, 1))):
                minute: float | None = rng.randrange(0, 24)
                unit: str | None = f"u{u:02d}"
                if rng.random() < 0.03:
                    unit = None
                if rng.random() < 0.03:
                    minute = None
                order += 1
                made = row(
                    source,
                    unit,
                    minute,
                    rng.choice("ab"),
                    id=order if source == "orders" and rng.random() < 0.95 else None,
                    cls=rng.choice((None, "x", "y")),
                    link=rng.randrange(1, order + 1) if rng.random() < 0.8 else None,
                )
                rows.append(made)
                if rng.random() < 0.08:  # sent twice, sometimes later
                    late = rng.choice((0, 0, 1, 3))
                    rows.append(made if made.us is None else replace(made, us=made.us + late * MIN))
    rng.shuffle(rows)
    return rows


def once(rows: Sequence[Row]) -> list[Row]:
    """Each id of an order once: its first row."""
    seen: set[int] = set()
    out = []
    for r in sorted(rows, key=lambda r: (r.us or 0, r.unit or "")):
        if r.source == "orders" and r.id is not None and r.unit is not None and r.us is not None:
            if r.id in seen:
                continue
            seen.add(r.id)
        out.append(r)
    return out


def declare(rng: random.Random) -> dict[str, Any]:
    order = rng.choice(("ordered", "ordered", "strict", "unordered"))
    spans = ("2m", "5m", "12m")
    sources = [rng.choice(("views", "carts", "orders", "views")) for _ in range(rng.randrange(2, 5))]
    steps: list[dict[str, Any]] = []
    for k, source in enumerate(sources):
        step: dict[str, Any] = {"name": f"step {k}", "source": source}
        if order == "unordered" and sources.count(source) > 1:
            if sources[:k].count(source) > 1:
                continue  # two names: two steps of a source that exclude each other
            step["where"] = f"name = '{'ab'[sources[:k].count(source)]}'"
        elif rng.random() < 0.5:
            step["where"] = f"name = '{rng.choice('ab')}'"
        if k and order != "unordered" and rng.random() < 0.3:
            step["within"] = rng.choice(spans)
        steps.append(step)
    declared: dict[str, Any] = {"steps": steps, "order": order, "entry": rng.choice(("any", "first"))}
    if order == "unordered" or rng.random() < 0.6:
        declared["within"] = rng.choice(spans)
    if order != "unordered":
        if rng.random() < 0.4:
            without = rng.choice(("returns", {"source": "returns", "where": "name = 'a'"}, "bans"))
            steps.append({"name": "kept", "without": without, "within": rng.choice(spans)})
        if rng.random() < 0.3:
            declared["exclude"] = [rng.choice(("bans", {"source": "carts", "where": "name = 'b'"}))]
    if len(steps) < 2:
        return declare(rng)
    return declared


@pytest.mark.parametrize("seed", range(60))
def test_it_equals_every_chain_tried(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    users = 24
    rows = stream(rng, users)
    with catalog_of(tmp_path, rows) as catalog:
        for _ in range(3):
            declared = declare(rng)
            starts, ends = rng.choice(((None, None), (at(3), at(15)), (None, at(12)), (at(5), None)))
            funnel = Funnel.model_validate(declared)
            named = {s.source for s in funnel.steps} | {e.source for e in funnel.exclude}
            named |= {s.without.source for s in funnel.steps if s.without is not None}
            as_of = max(r.us for r in rows if r.source in named and r.us is not None and (r.unit or r.link))
            slow = Slow(funnel, once(rows), starts, ends, as_of)
            depths, passed, inside = expected(slow)
            by = {} if funnel.order == "unordered" else {"by": "u"}
            data = funnels.read(
                catalog,
                design_of(Funnel.model_validate(declared | by), starts_us=starts, ends_us=ends, alpha=0.5),
            )
            if data.as_of_us != as_of:  # rows that do not enter have no say in it
                slow = Slow(funnel, once(rows), starts, ends, data.as_of_us or 0)
                depths, passed, inside = expected(slow)
            k = len(funnel.steps)
            assert units(data) == [sum(d >= p for d in depths.values()) for p in range(1, k + 1)], declared
            assert data.inside == inside, declared
            if by:
                by_unit = {r.segment: 0 for r in data.reached if r.segment}
                for r in data.reached:
                    if r.segment:
                        by_unit[r.segment] += r.units
                assert by_unit == depths, declared
            for r in data.reached:
                if r.segment is None and r.times:
                    them = passed[r.position - 1]
                    for time in r.times:
                        assert time.value == pytest.approx(np.quantile(them, time.q)), declared
                        assert {time.low, time.high} <= set(them)

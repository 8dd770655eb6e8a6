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
from payoff.warehouse.funnel_statements import MOST_CLASSES, window_us
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
        window = window_us(self.funnel)
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


@pytest.mark.parametrize("seed", [*range(15), *(pytest.param(s, marks=pytest.mark.slow) for s in range(15, 120))])
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


# ---------------------------------------------------------------- by hand


def test_any_entry_is_not_first_entry(tmp_path: Path) -> None:
    """Who looks, waits, and looks again before buying: every one is seen from any entry, none from the first."""
    rows = [
        r for u in range(30) for r in (row("views", f"u{u}", 0), row("views", f"u{u}", 20), row("orders", f"u{u}", 22))
    ]
    rows.append(row("views", "late", 60))
    declared = {"steps": ["views", "orders"], "within": "5m"}
    assert units(read(tmp_path, rows, declared)) == [30, 30]
    assert units(read(tmp_path, rows, declared | {"entry": "first"})) == [30, 0]


def test_units_inside_their_window_are_no_drop_offs(tmp_path: Path) -> None:
    rows = [
        row("views", "a", 0),
        row("orders", "a", 1),
        row("views", "b", 58),
        row("views", "c", 10),
        row("views", "c", 59),
    ]
    rows.append(row("views", "end", 60))
    data = read(tmp_path, rows, {"steps": ["views", "orders"], "within": "5m"})
    assert (units(data), data.inside, data.as_of_us, data.cut_us) == ([2, 1], 2, at(60), at(55))


def test_a_declared_end_of_the_data_closes_windows(tmp_path: Path) -> None:
    rows = [row("views", "a", 0), row("views", "b", 58), row("orders", "b", 59)]
    sources = {
        n: s.model_copy(update={"through": datetime(2026, 3, 1, 1, 3)}) for n, s in SOURCES.items() if n != "views"
    }
    with catalog_of(tmp_path, rows, {"views": SOURCES["views"], **sources}) as catalog:
        data = funnels.read(catalog, design_of(Funnel.model_validate({"steps": ["views", "orders"], "within": "5m"})))
    assert (units(data), data.inside, data.as_of_us) == ([2, 1], 0, at(63))


def test_only_entry_is_bound_by_the_range(tmp_path: Path) -> None:
    rows = [
        row("views", "a", 9),
        row("orders", "a", 13),
        row("views", "b", 10),
        row("orders", "b", 11),
        row("views", "c", 4),
    ]
    rows += [row("orders", "c", 5), row("views", "z", 60)]
    data = read(tmp_path, rows, {"steps": ["views", "orders"], "within": "5m"}, starts_us=at(5), ends_us=at(10))
    assert units(data) == [1, 1]  # a alone: c entered before, b at the very end, which is outside


@pytest.mark.parametrize(
    ("minute", "reached"), [(5, 1), (5.0001, 0), (0, 1)], ids=["its last instant", "after it", "the same instant"]
)
def test_a_window_is_closed_at_both_ends(tmp_path: Path, minute: float, reached: int) -> None:
    rows = [row("views", "a", 0), row("orders", "a", minute), row("views", "z", 60)]
    assert units(read(tmp_path, rows, {"steps": ["views", "orders"], "within": "5m"})) == [1, reached]
    steps = ["views", {"source": "orders", "within": "5m"}]
    assert units(read(tmp_path, rows, {"steps": steps})) == [1, reached]


@pytest.mark.parametrize(("minute", "reached"), [(0, 1), (1, 0), (2, 1)], ids=["at entry", "between", "at the order"])
@pytest.mark.parametrize("how", ["exclude", "strict"])
def test_what_lies_between_ends_the_attempt_and_what_ties_does_not(
    tmp_path: Path, minute: float, reached: int, how: str
) -> None:
    rows = [row("views", "a", 0), row("orders", "a", 2), row("carts", "a", minute), row("views", "z", 60)]
    steps = [{"source": "views"}, {"source": "orders"}]
    if how == "exclude":
        declared: dict[str, Any] = {"steps": steps, "exclude": ["carts"]}
    else:
        declared = {"steps": [*steps, {"source": "carts", "within": "1m"}], "order": "strict"}
    assert units(read(tmp_path, rows, declared | {"within": "5m"}))[:2] == [1, reached]


def test_a_row_serves_one_step(tmp_path: Path) -> None:
    steps = [
        {"name": "once", "source": "views"},
        {"name": "again", "source": "views"},
        {"name": "thrice", "source": "views"},
    ]
    rows = [
        row("views", "a", 0),
        row("views", "b", 0),
        row("views", "b", 0),
        row("views", "c", 0),
        row("views", "c", 1),
    ]
    rows += [row("views", "c", 2), row("views", "z", 60)]
    assert units(read(tmp_path, rows, {"steps": steps, "within": "5m"})) == [3, 1, 1]


@pytest.mark.parametrize(("minute", "kept"), [(2, 1), (3, 0), (12, 0), (12.01, 1)])
@pytest.mark.parametrize("linked", [True, False])
def test_kept_is_nothing_of_the_kind_in_its_time(tmp_path: Path, minute: float, kept: int, linked: bool) -> None:
    """Left-open, right-closed: a return in the instant of the order is of another one, one in the last instant counts."""
    rows = [row("views", "a", 0), row("orders", "a", 2, id=7), row("views", "z", 60)]
    back = row("returns", "someone else" if linked else "a", minute, link=7) if linked else row("bans", "a", minute)
    without = "returns" if linked else "bans"
    steps = ["views", "orders", {"name": "kept", "without": without, "within": "10m"}]
    assert units(read(tmp_path, [*rows, back], {"steps": steps, "within": "5m"})) == [1, 1, kept if minute != 3 else 0]


def test_a_return_of_another_order_leaves_this_one_kept(tmp_path: Path) -> None:
    rows = [
        row("orders", "a", 0, id=1),
        row("orders", "a", 1, id=2),
        row("returns", "a", 3, link=1),
        row("views", "z", 60),
    ]
    rows += [row("orders", "b", 0, id=3), row("returns", "b", 3, link=3), row("orders", "c", 0), row("returns", "c", 1)]
    data = read(tmp_path, rows, {"steps": ["orders", {"name": "kept", "without": "returns", "within": "10m"}]})
    # the data of these sources ends at 3: nothing can be told yet
    assert (units(data), data.inside) == ([0, 0], 3)
    rows += [row("returns", "y", 30, link=99)]
    data = read(tmp_path, rows, {"steps": ["orders", {"name": "kept", "without": "returns", "within": "10m"}]})
    assert units(data) == [3, 1]
    assert data.left_out["rows of orders without an id, to which no returns can belong"] == 1
    assert data.left_out["rows of returns without the id of orders"] == 1


def test_clocks_of_days(tmp_path: Path) -> None:
    """Two sources: one day is in order. One source: the later step is on a later day, and the check can say so."""
    rows = [
        row("views", "a", 0),
        row("orders", "a", 0),
        row("views", "b", 0),
        row("orders", "b", 1440),
        row("views", "z", 99999),
    ]
    rows += [row("views", "a", 0, "b"), row("views", "b", 1440, "b")]
    with catalog_of(tmp_path, rows, kind="DATE") as catalog:
        data = funnels.read(catalog, design_of(Funnel.model_validate({"steps": ["views", "orders"], "within": "2d"})))
        assert (units(data), data.days, data.dates) == ([2, 2], (), ("views", "orders"))
        steps = [{"name": n, "source": "views", "where": f"name = '{n}'"} for n in "ab"]
        data = funnels.read(catalog, design_of(Funnel.model_validate({"steps": steps, "within": "2d"})))
        assert (units(data), data.days) == ([2, 1], ("views",))


def test_an_empty_step_one_row_and_no_row(tmp_path: Path) -> None:
    declared = {"steps": ["views", "carts", "orders"]}
    data = read(tmp_path, [row("views", "a", 0)], declared)
    assert units(data) == [1, 0, 0]
    assert [p.rows for p in data.precedence] == [0, 0]
    data = read(tmp_path, [], declared)
    assert (units(data), data.as_of_us) == ([0, 0, 0], None)


def test_rows_that_do_not_enter_are_counted_by_source(tmp_path: Path) -> None:
    rows = [row("views", "a", 0), row("views", None, 0), row("views", "a", None), row("orders", "a", 1, id=1)]
    rows += [
        row("orders", "a", 1, id=1),
        replace(row("views", "b", 0), us=-5),
        replace(row("views", "b", 0), us=NOW * 2),
    ]
    data = read(tmp_path, rows, {"steps": ["views", "orders"]})
    assert units(data) == [1, 1]
    assert data.left_out == {
        "rows of views without a unit": 1,
        "rows of views without a time": 1,
        "rows of views dated before 1970": 1,
        "rows of views dated in the future": 1,
        "rows of orders that repeat an id": 1,
    }


def test_many_classes_are_taken_together(tmp_path: Path) -> None:
    rows = [
        row("views", f"u{n}-{i}", i, cls=f"c{n:02d}" if n else None) for n in range(40) for i in range(2 + (n < 29))
    ]
    rows += [row("carts", "u0-0", 5), row("views", "u1-0", 0, cls="")]
    data = read(tmp_path, rows, {"steps": ["views", "carts"], "by": "cls"})
    classes = {r.segment: r.units for r in data.reached if r.position == 1}
    assert len(classes) == MOST_CLASSES + 2  # the whole, thirty, and the rest
    assert (data.classes, data.folded) == (40, 10)
    assert sum(n for c, n in classes.items() if c) == classes[None] == len({r.unit for r in rows})
    assert (classes["(none)"], classes["(other)"]) == (3, 20)
    assert units(data, "(none)") == [3, 1]


def test_the_class_is_that_of_the_deepest_way_or_of_each_step(tmp_path: Path) -> None:
    rows = [row("views", "a", 0, cls="x"), row("views", "a", 5, cls="y"), row("carts", "a", 6, cls="app")]
    rows += [row("views", "a", 30, cls="z"), row("views", "end", 60, cls="x"), row("carts", "end", 60, cls="web")]
    declared = {"steps": ["views", "carts"], "within": "10m", "by": "cls"}
    rows.append(row("views", "far", 100, cls="x"))
    data = read(tmp_path, rows, declared)
    assert {(r.segment, r.position): r.units for r in data.reached if r.segment and r.units} == {
        ("y", 1): 1, ("y", 2): 1, ("x", 1): 1, ("x", 2): 1,
    }  # fmt: skip
    data = read(tmp_path, rows, declared | {"by": {"column": "cls", "step": "each"}})
    assert {(r.segment, r.position): r.units for r in data.reached if r.segment and r.units} == {
        ("y", 1): 1, ("app", 2): 1, ("x", 1): 1, ("web", 2): 1,
    }  # fmt: skip


def test_an_unordered_funnel_refuses_rows_of_two_steps(tmp_path: Path) -> None:
    steps = [{"name": "any", "source": "views"}, {"name": "a", "source": "views", "where": "name = 'a'"}]
    with pytest.raises(DataError, match="3 rows meet the conditions of more than one step"):
        read(tmp_path, [row("views", "u", n) for n in range(3)], {"steps": steps, "order": "unordered", "within": "5m"})


def test_ids_of_two_types_are_one_unit(tmp_path: Path) -> None:
    with catalog_of(tmp_path, [row("views", "7", 0), row("orders", "8", 1, id=7)]) as catalog:
        catalog.view("orders").source.entity["user"] = "id"
        data = funnels.read(catalog, design_of(Funnel.model_validate({"steps": ["views", "orders"]})))
    assert units(data) == [1, 1]

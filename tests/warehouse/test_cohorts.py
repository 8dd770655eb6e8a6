"""The cohort kernel against a slow, obvious count in Python, on random streams with ties, duplicates, NULLs and zones."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest

from payoff.errors import DataError
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Cohort, DuckDBConnection, Entity, Source
from payoff.warehouse import cohorts
from payoff.warehouse.cohorts import CohortsData
from payoff.warehouse.sources import Catalog, to_us

DAY = 86_400_000_000
NOW = datetime(2026, 12, 1, tzinfo=UTC)


def us(moment: datetime) -> int:
    return to_us(moment, "UTC")


@contextmanager
def catalog_over(folder: Path, sql: str, zone: str = "UTC", **extra: dict[str, Any]) -> Iterator[Catalog]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "data.duckdb"
    path.unlink(missing_ok=True)
    with duckdb.connect(str(path)) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(sql)
    sources = {
        name: Source.model_validate({"table": name, "time": "t", **extra.get(name, {})})
        for name in ("signups", "visits", "orders", "ads")
    }
    main = DuckDBConnection.model_validate({"engine": "duckdb", "path": "data.duckdb", "threads": 1})
    with Catalog(sources, {"user": Entity(id="who")}, {"main": main}, folder, zone) as catalog:
        yield catalog


def design_of(declared: dict[str, Any], zone: str = "UTC", **more: Any) -> JourneyDesign:
    noun = Cohort.model_validate(declared)
    return JourneyDesign("cohorts.c", noun, "user", zone=zone, now_us=us(NOW), **more)


EMPTY = {
    "signups": "who VARCHAR, t TIMESTAMPTZ, plan VARCHAR",
    "visits": "who VARCHAR, t TIMESTAMPTZ",
    "orders": "who VARCHAR, t TIMESTAMPTZ, amount DOUBLE, id VARCHAR",
    "ads": "t TIMESTAMPTZ, spend DOUBLE",
}


def tables(**rows: Sequence[tuple[Any, ...]]) -> str:
    """SQL of the four tables. Times are microseconds since the epoch, or None."""

    def cell(value: Any, kind: str) -> str:
        if value is None:
            return "NULL"
        if kind == "TIMESTAMPTZ":
            return f"make_timestamptz({value})"
        return f"'{value}'" if kind == "VARCHAR" else repr(value)

    out = []
    for table, columns in EMPTY.items():
        kinds = [c.split()[1] for c in columns.split(", ")]
        out.append(f"CREATE TABLE {table} ({columns});")
        listed = [
            "(" + ", ".join(cell(v, k) for v, k in zip(row, kinds, strict=True)) + ")" for row in rows.get(table, ())
        ]
        if listed:
            out.append(f"INSERT INTO {table} VALUES {', '.join(listed)};")
    return "\n".join(out)


# ---------------------------------------------------------------- the slow, obvious count


@dataclass
class Slow:
    """Everything by loops over units, in the words of the definition."""

    signups: Sequence[tuple[Any, ...]]
    visits: Sequence[tuple[Any, ...]]
    orders: Sequence[tuple[Any, ...]]
    design: JourneyDesign
    ids: bool
    as_of: int = 0
    start: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def noun(self) -> Cohort:
        assert isinstance(self.design.declared, Cohort)
        return self.design.declared

    def __post_init__(self) -> None:
        rows = (*self.signups, *self.visits, *self.orders)
        # a row without a unit does not enter, but shows how far its source goes
        self.as_of = max(r[1] for r in rows if self.valid(("somebody", r[1])))
        for row in self.signups:
            low, high = self.design.starts_us, self.design.ends_us
            if not self.valid(row) or (low is not None and row[1] < low) or (high is not None and row[1] >= high):
                continue
            named = (
                "(none)" if row[2] is None else f'"{row[2]}"' if row[2] in ("(all)", "(none)", "(other)") else row[2]
            )
            key = (row[1], named)
            self.start[row[0]] = min(self.start.get(row[0], key), key)

    @staticmethod
    def valid(row: tuple[Any, ...]) -> bool:
        return row[0] is not None and row[1] is not None and 0 <= row[1] <= us(NOW) + DAY

    def local(self, t: int) -> date:
        return (
            (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=t)).astimezone(ZoneInfo(self.design.zone)).date()
        )

    def step(self, t: int, every: str) -> date:
        day = self.local(t)
        if every == "week":
            return day - timedelta(days=day.weekday())
        return day.replace(day=1) if every == "month" else day

    def cohort(self, unit: str) -> str:
        t, plan = self.start[unit]
        return plan if self.noun.by is not None else self.step(t, self.noun.every).isoformat()

    def spans(self) -> list[tuple[int, int]]:
        kept = self.noun.retention
        if kept.kind == "bracket":
            ends = [0, *(int(b.total_seconds() * 1e6) for b in kept.brackets)]
        else:
            ends = [int(kept.period.total_seconds() * 1e6) * k for k in range(kept.periods + 2)]
        return list(pairwise(ends))

    def answer(self) -> dict[str, tuple[Any, ...]]:
        out: dict[str, tuple[Any, ...]] = {}
        for name in {self.cohort(u) for u in self.start}:
            units = [u for u in self.start if self.cohort(u) == name]
            eligible, active, total, squares = [], [], [], []
            for low, high in self.spans():
                here = [u for u in units if self.start[u][0] + high <= self.as_of]
                came, money = 0, []
                for u in here:
                    t0 = self.start[u][0]
                    last = self.as_of + 1 if self.noun.retention.kind == "unbounded" else t0 + high
                    came += any(self.valid(r) and r[0] == u and t0 + low <= r[1] < last for r in self.visits)
                    paid = [r for r in self.orders if self.valid(r) and r[0] == u and t0 <= r[1] < t0 + high]
                    worth = sum(r[2] for r in (set(paid) if self.ids else paid) if r[2] is not None)
                    money.append(worth)
                eligible.append(len(here))
                active.append(came)
                total.append(sum(money))
                squares.append(sum(x * x for x in money))
            out[name] = (len(units), tuple(eligible), tuple(active), pytest.approx(total), pytest.approx(squares))
        return out

    def over(self, step: date, every: str) -> bool:
        return self.step(self.as_of, every) > step

    def lifecycle(self, every: str) -> dict[str, tuple[int, int, int, int]]:
        seen: dict[str, set[date]] = defaultdict(set)
        for r in self.visits:
            if self.valid(r):
                seen[r[0]].add(self.step(r[1], every))
        steps = [min(d for days in seen.values() for d in days)]
        while self.over(steps[-1], every):
            steps.append(self.next(steps[-1], every))
        out = {}
        for before, now in zip([None, *steps], steps[:-1], strict=False):
            states = Counter[str]()
            for days in seen.values():
                if now in days:
                    states["new" if now == min(days) else "returning" if before in days else "resurrected"] += 1
                elif before in days:
                    states["dormant"] += 1
            active = states["new"] + states["returning"] + states["resurrected"]
            out[now.isoformat()] = (active, states["new"], states["returning"], states["dormant"])
        return out

    def next(self, step: date, every: str) -> date:
        if every == "month":
            return (step + timedelta(days=32)).replace(day=1)
        return step + timedelta(days=1 if every == "day" else 7)

    def stickiness(self, every: str) -> dict[str, tuple[int, int, int, int]]:
        days: dict[date, dict[str, set[date]]] = defaultdict(lambda: defaultdict(set))
        for r in self.visits:
            if self.valid(r) and self.over(self.step(r[1], every), every):
                days[self.step(r[1], every)][r[0]].add(self.local(r[1]))
        return {
            s.isoformat(): (
                (self.next(s, every) - s).days,
                len(of),
                sum(len(d) for d in of.values()),
                sum(len(d) ** 2 for d in of.values()),
            )
            for s, of in days.items()
        }


def found(data: CohortsData) -> dict[str, tuple[Any, ...]]:
    return {c.name: (c.units, c.eligible, c.active, list(c.total), list(c.squares)) for c in data.cohorts}


def stream(rng: random.Random) -> tuple[list[Any], list[Any], list[Any], int]:
    """Small streams full of ties: times on a coarse grid around a change of clocks, few units, some rows twice, some broken."""
    begin = us(datetime(2026, 3, 20, tzinfo=UTC))
    grain = rng.choice([DAY // 24, DAY // 2, DAY])

    def when() -> int | None:
        odd = rng.random()
        if odd < 0.03:
            return rng.choice([None, -DAY, us(NOW) + 40 * DAY])
        return begin + rng.randrange(0, rng.choice([5, 20, 60]) * DAY // grain) * grain + rng.choice([0, 0, 1, -1])

    def who() -> str | None:
        return None if rng.random() < 0.03 else f"u{rng.randrange(rng.choice([2, 8, 15]))}"

    signups = [(who(), when(), rng.choice(["a", "b", None, "(all)"])) for _ in range(rng.randrange(1, 25))]
    visits = [(who(), when()) for _ in range(rng.randrange(1, 80))]
    worth = [None, 1.0, 9.99, -3.0, 100.0]
    orders = [(who(), when(), rng.choice(worth), str(i)) for i in range(rng.randrange(1, 50))]
    signups += rng.sample(signups, len(signups) // 4)
    visits += rng.sample(visits, len(visits) // 3)
    orders += rng.sample(orders, len(orders) // 4)
    if rng.random() < 0.5:  # one start is another's period boundary
        signups.append(("u0", begin, "b"))
        visits.append(("u0", begin + 7 * DAY))
    return signups, visits, orders, begin


@pytest.mark.parametrize("seed", range(60))
def test_it_equals_a_slow_and_obvious_count(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    signups, visits, orders, begin = stream(rng)
    retention = rng.choice(
        [
            {"kind": "n_day", "period": rng.choice(["1d", "7d", "36h"]), "periods": rng.choice([1, 6, 40, 70])},
            {"kind": "unbounded", "period": rng.choice(["1d", "7d"]), "periods": rng.choice([1, 6, 40, 70])},
            {"kind": "bracket", "brackets": rng.choice([["1d"], ["1d", "3d", "7d", "30d"]])},
        ]
    )
    zone = rng.choice(["UTC", "Europe/Berlin", "America/Sao_Paulo", "Pacific/Auckland", "Asia/Kathmandu"])
    declared: dict[str, Any] = {
        "start": "signups",
        "activity": "visits",
        "revenue": {"event": "orders", "value": "amount"},
        "every": rng.choice(["day", "week", "month"]),
        "retention": retention,
        "lifecycle": rng.choice(["day", "week", "month"]),
        "stickiness": rng.choice(["week", "month"]),
        **({"by": "plan"} if rng.random() < 0.3 else {}),
    }
    more: dict[str, Any] = {}
    if rng.random() < 0.4:
        more["starts_us"] = begin + 3 * DAY
    if rng.random() < 0.4:
        more["ends_us"] = begin + 30 * DAY
    design = design_of(declared, zone, **more)
    extra = {"orders": {"id": "id"}} if rng.random() < 0.3 else {}
    with catalog_over(tmp_path, tables(signups=signups, visits=visits, orders=orders), zone, **extra) as catalog:
        data = cohorts.read(catalog, design)
        planned = cohorts.plan(catalog, design)
        told = [s.name for s in data.steps if not s.name.startswith("faults of")]  # run where the first look saw some
        assert [s.name for s in planned] == told or not data.cohorts
    if not any(Slow.valid(("somebody", r[1])) for r in (*signups, *visits, *orders)):
        assert data.as_of_us is None
        return
    slow = Slow(signups, visits, orders, design, bool(extra))
    assert data.as_of_us == slow.as_of
    assert found(data) == slow.answer()
    if not more and slow.start and any(slow.valid(r) for r in visits):
        every = declared["lifecycle"]
        assert {s.step: (s.active, s.new, s.returning, s.lapsed) for s in data.lifecycle} == slow.lifecycle(every)
        of = {s.step: (s.days, s.units, s.total, s.squares) for s in data.stickiness}
        assert of == slow.stickiness(declared["stickiness"])


# ---------------------------------------------------------------- what streams do not have


BEGIN = us(datetime(2026, 3, 2, tzinfo=UTC))
PLAIN = {"start": "signups", "activity": "visits", "retention": {"period": "7d", "periods": 2}}


def test_nothing_at_all(tmp_path: Path) -> None:
    with catalog_over(tmp_path, tables()) as catalog:
        data = cohorts.read(catalog, design_of(PLAIN))
    assert (data.as_of_us, data.cohorts, data.lifecycle) == (None, (), ())


def test_a_plan_reads_no_rows_and_says_what_only_data_tells(tmp_path: Path) -> None:
    declared = {**PLAIN, "lifecycle": "day", "cost": {"source": "ads", "column": "spend"}}
    with catalog_over(tmp_path, tables(), "Europe/Berlin") as catalog:
        steps = cohorts.plan(catalog, design_of(declared, "Europe/Berlin", starts_us=BEGIN))
    text = "\n".join(s.sql for s in steps)
    assert "$as_of_us" in text
    assert "$local_offset_us" in text
    assert {s.serves for s in steps} <= {(), ("cohorts.c",)}


def test_dates_and_ids_of_other_types(tmp_path: Path) -> None:
    """Signups know the day alone and number their users; visits hold the same numbers as text, orders as fractions."""
    sql = """
        CREATE TABLE signups AS SELECT i AS who, DATE '2026-03-02' + i::INTEGER AS t, NULL AS plan FROM range(4) AS r(i);
        CREATE TABLE visits AS SELECT i::VARCHAR AS who, TIMESTAMP '2026-03-10 12:00' AS t FROM range(2) AS r(i);
        CREATE TABLE orders AS SELECT i::DOUBLE AS who, TIMESTAMP '2026-04-10' AS t, 2.5 AS amount, 'x' || i AS id FROM range(3) AS r(i);
        CREATE TABLE ads (t TIMESTAMP, spend DOUBLE);
    """
    declared = {
        **PLAIN,
        "revenue": {"event": "orders", "value": "amount"},
        "retention": {"period": "30d", "periods": 1},
    }
    with catalog_over(tmp_path, sql, "America/New_York") as catalog:
        data = cohorts.read(catalog, design_of(declared, "America/New_York"))
    (cohort,) = data.cohorts
    assert (cohort.name, cohort.units, cohort.active[0]) == ("2026-03-02", 4, 2)
    assert data.dates_only == ("signups",)
    assert cohort.eligible == (4, 0)


def test_classes_beyond_the_largest_are_taken_together(tmp_path: Path) -> None:
    signups = [(f"{c}-{i}", BEGIN, f"plan{c:02}") for c in range(40) for i in range(1 + (c < 29))]
    with catalog_over(tmp_path, tables(signups=signups, visits=[("0-0", BEGIN + 1)])) as catalog:
        data = cohorts.read(catalog, design_of({**PLAIN, "by": "plan"}))
    sizes = {c.name: c.units for c in data.cohorts}
    assert len(sizes) == cohorts.MOST_CLASSES + 1
    # 29 have two units; of those with one the first by name stands alone, the other ten do not
    assert (sizes["plan28"], sizes["plan29"], sizes["(other)"]) == (2, 1, 10)
    assert list(sizes)[-1] == "(other)"


def test_orders_without_an_id_are_not_one_order(tmp_path: Path) -> None:
    orders = [
        ("a", BEGIN, 1.0, "x"),
        ("a", BEGIN + 1, 1.0, "x"),
        ("a", BEGIN + 2, 5.0, None),
        ("a", BEGIN + 3, 5.0, None),
    ]
    declared = {**PLAIN, "revenue": {"event": "orders", "value": "amount"}}
    rows: dict[str, list[tuple[Any, ...]]] = {
        "signups": [("a", BEGIN, None)],
        "orders": orders,
        "visits": [("a", BEGIN + 8 * DAY)],
    }
    with catalog_over(tmp_path, tables(**rows), orders={"id": "id"}) as catalog:
        data = cohorts.read(catalog, design_of(declared))
    assert data.cohorts[0].total[0] == 11.0
    assert data.left_out["rows of orders that repeat an id"] == 1


@pytest.mark.parametrize("table", ["orders", "ads"])
def test_values_that_are_not_finite_are_named(tmp_path: Path, table: str) -> None:
    sql = tables(
        signups=[("a", BEGIN, None)],
        visits=[("a", BEGIN + 9 * DAY)],
        orders=[("a", BEGIN, 1.0, "x")],
        ads=[(BEGIN, 1.0)],
    )
    sql += f"UPDATE {table} SET {'amount' if table == 'orders' else 'spend'} = 'nan';"
    declared = {
        **PLAIN,
        "revenue": {"event": "orders", "value": "amount"},
        "cost": {"source": "ads", "column": "spend"},
    }
    with (
        catalog_over(tmp_path, sql) as catalog,
        pytest.raises(DataError, match=r"1 values of .* are NaN or infinite") as e,
    ):
        cohorts.read(catalog, design_of(declared))
    assert e.value.source == table


def test_one_source_may_be_start_and_activity_by_conditions(tmp_path: Path) -> None:
    visits = [("a", BEGIN), ("a", BEGIN + 7 * DAY), ("b", BEGIN + 1), ("c", BEGIN + 30 * DAY)]
    declared = {
        **PLAIN,
        "start": {"source": "visits", "where": "who <> 'c'"},
        "activity": {"source": "visits", "where": "who <> 'b'"},
    }
    with catalog_over(tmp_path, tables(visits=visits)) as catalog:
        twice = [cohorts.read(catalog, design_of(declared)) for _ in range(2)]  # leaves no table behind
    assert twice[0].cohorts == twice[1].cohorts
    assert (twice[0].cohorts[0].units, twice[0].cohorts[0].active) == (2, (1, 1, 0))
    assert {p.rows for p in twice[0].sources.values()} == {3}
    assert len(twice[0].sources) == 2


@pytest.mark.parametrize(
    "zone", ["Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia"]
)
def test_stretches_of_a_zone_are_those_of_its_clock(zone: str) -> None:
    low, high = us(datetime(1985, 3, 1, tzinfo=UTC)), us(datetime(2027, 1, 1, tzinfo=UTC))
    found = cohorts.offsets_of(zone, low, high)
    tz = ZoneInfo(zone)
    rng = random.Random(1)
    moments = [rng.randrange(low, high) for _ in range(2000)] + [t + d for t, _ in found[1:] for d in (-1, 0)]
    for t in moments:
        ahead = [offset for at, offset in found if at <= t][-1]
        aware = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=t)).astimezone(tz).utcoffset()
        assert aware is not None
        assert ahead == aware // timedelta(microseconds=1)


@pytest.mark.parametrize("every", ["day", "week", "month"])
def test_a_step_holds_its_days(every: cohorts.Every) -> None:
    for n in range(0, 25_000, 13):
        day = date(1970, 1, 1) + timedelta(days=n)
        step = cohorts.step_of(day, every)
        assert cohorts.first_day(step, every) <= day < cohorts.first_day(step + 1, every)
    assert cohorts.first_day(cohorts.step_of(date(2026, 3, 4), "week"), "week") == date(2026, 3, 2)

"""The kernel against a slow and obvious reading of the same rows, one unit at a time, in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest

from payoff.errors import DataError
from payoff.spec import nouns
from payoff.spec.nouns import DuckDBConnection, Entity, Source
from payoff.stats.moments import Moments
from payoff.warehouse.arms import ArmsReader
from payoff.warehouse.measures import (
    calendar_need,
    cannibalisation_need,
    count_or_sum_unit,
    is_ratio,
    metric_need,
    origin,
    step_need,
    unit_of,
)
from payoff.warehouse.needs import (
    Anchor,
    ArmsData,
    ArmsNeed,
    AttributeNeed,
    Cap,
    Measure,
    MetricNeed,
    Quantile,
)
from payoff.warehouse.sources import Catalog

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR, DAY = 3_600_000_000, 86_400_000_000
ODD = ["o'brien", 'say "hi"', "ünï ©", "$unit; --", "", " spaced ", "NULL", "(other)"]


def us(moment: datetime) -> int:
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * 1_000_000


ZERO = us(START)


def unit_name(i: int) -> str:
    return ODD[i] if i < len(ODD) else f"u{i}"


class World:
    """Random rows on an hourly grid, so that many fall on the very edges of windows; kept as Python and as tables."""

    def __init__(self, folder: Path, seed: int = 1, units: int = 240) -> None:
        rng = np.random.default_rng(seed)
        self._grouped: dict[str, pd.DataFrame] | None = None
        self.folder, self.units = folder, [unit_name(i) for i in range(units)]
        hours = lambda low, high, n: ZERO + rng.integers(low, high, n) * HOUR  # noqa: E731
        self.exposures = pd.DataFrame(
            [
                (u, int(t), "ab"[hash_of(u) % 2] if k or rng.random() > 0.03 else "b", plan, city)
                for u in self.units
                for k in range(int(rng.integers(1, 3)))
                for t, plan, city in [
                    (
                        hours(240, 480, 1)[0],
                        [None, "free", "pro's", 'te"am'][int(rng.integers(0, 4))],
                        f"c{hash_of(u) // 7 % 12}",
                    )
                ]
            ],
            columns=["u", "t", "arm", "plan", "city"],
        )
        # a few in both arms, a few without an id, a time or an arm
        self.exposures.loc[len(self.exposures)] = [None, ZERO + 300 * HOUR, "a", "free", "c1"]
        self.exposures.loc[len(self.exposures)] = ["u9", None, "a", "free", "c1"]
        self.exposures.loc[len(self.exposures)] = ["u10", ZERO + 300 * HOUR, None, "free", "c1"]
        n = 6_000
        who = rng.choice([*self.units[20:], "stranger"], n)
        self.events = pd.DataFrame(
            {
                "u": np.where(rng.random(n) < 0.01, None, who),
                "t": hours(0, 960, n),
                "name": rng.choice(["view", "buy", "it's", None], n, p=[0.6, 0.25, 0.1, 0.05]),
                "amount": np.where(rng.random(n) < 0.1, np.nan, rng.gamma(1.5, 20, n).round(2)),
            }
        )
        self.events = pd.concat([self.events, self.events.head(200)], ignore_index=True)
        self.events.loc[len(self.events)] = ["u30", ZERO + 1_500 * HOUR, "view", 1.0]  # the data go on to here
        self.people = pd.DataFrame(
            [
                (u, None if rng.random() < 0.2 else float(rng.integers(18, 80)), int(t))
                for u in self.units[5:]
                for t in hours(-2_000, 470, 1)
            ],
            columns=["u", "age", "joined"],
        )
        n = 900
        self.history = pd.DataFrame(
            {"u": rng.choice(self.units[10:], n), "t": hours(100, 600, n), "tier": rng.choice(["gold", "tin", None], n)}
        )
        self.labels = pd.DataFrame(
            {"u": rng.choice(self.units, 300), "colour": rng.choice(["red", "blue"], 300, p=[0.9, 0.1])}
        )
        self.tables: dict[str, pd.DataFrame] = {
            "exposures": self.exposures,
            "events": self.events,
            "people": self.people,
            "history": self.history,
            "labels": self.labels,
        }

    def sources(self) -> dict[str, Source]:
        timed = {"time": "t", "entity": {"user": "u"}}
        return {
            "exposures": Source.model_validate(
                {"table": "exposures", "time": "t", "entity": {"user": "u", "city": "city"}}
            ),
            "events": Source.model_validate({"table": "events", **timed}),
            "people": Source.model_validate({"table": "people", "entity": {"user": "u"}}),
            "history": Source.model_validate({"table": "history", **timed}),
            "labels": Source.model_validate({"table": "labels", "entity": {"user": "u"}}),
        }

    def write(self) -> None:
        path = self.folder / "data.duckdb"
        path.unlink(missing_ok=True)
        with duckdb.connect(str(path)) as connection:
            for name, table in self.tables.items():
                frame = table.copy()
                for column in frame.columns:
                    if column in ("t", "joined"):
                        frame[column] = pd.to_datetime(frame[column].astype("Int64"), unit="us")
                    elif frame[column].map(lambda v: isinstance(v, str) or v is None).all():
                        frame[column] = frame[column].astype("object")
                connection.register("frame", frame)
                connection.execute(f"CREATE TABLE {name} AS SELECT * FROM frame")
                connection.unregister("frame")

    def read(self, *needs: ArmsNeed, sources: Mapping[str, Source] | None = None) -> dict[str, ArmsData]:
        self.write()
        with Catalog(
            sources or self.sources(),
            {"user": Entity(), "city": Entity()},
            {"main": DuckDBConnection(engine="duckdb", path="data.duckdb", threads=2)},
            self.folder,
            "UTC",
        ) as catalog:
            planned = ArmsReader(catalog, needs).plan()
            assert all(step.sql for step in planned)
        with Catalog(
            sources or self.sources(),
            {"user": Entity(), "city": Entity()},
            {"main": DuckDBConnection(engine="duckdb", path="data.duckdb", threads=2)},
            self.folder,
            "UTC",
        ) as catalog:
            reader = ArmsReader(catalog, needs)
            out = reader.fetch()
            # every pass over a source was planned, and so was every other but what the data alone can call for
            assert [s.name for s in reader.steps if s.reads] == [s.name for s in planned if s.reads]
            sure = {s.name for s in reader.steps if not s.name.startswith(("capped moments of", "moments of"))}
            assert sure <= {s.name for s in planned}
            return out

    # ------------------------------------------------------------ the slow reading

    def first(self, exposures: pd.DataFrame | None = None) -> dict[str, tuple[str, int, dict[str, Any]]]:
        """Unit -> (arm, first time, its first row), those of several arms left out."""
        rows = self.exposures if exposures is None else exposures
        out: dict[str, tuple[str, int, dict[str, Any]]] = {}
        for u, mine in rows[rows.u.notna() & rows.arm.notna()].groupby("u"):
            placed = mine[mine.t.notna()]
            if mine.arm.nunique() == 1 and len(placed):
                row = placed.sort_values(["t", "plan"], na_position="last").iloc[0]
                out[str(u)] = (row.arm, int(row.t), {k: None if pd.isna(v) else v for k, v in row.items()})
        return out

    def rows_of(self, u: str) -> pd.DataFrame:
        if self._grouped is None:
            self._grouped = {str(name): rows for name, rows in self.events.groupby("u")}
        return self._grouped.get(u, self.events.head(0))

    def value(self, u: str, t0: int, m: Measure, opening: int | None = None) -> float:
        """One measure of one unit; NaN where it has none."""
        rows, opens = self.rows_of(u), t0 if opening is None else opening
        rows = rows[rows.t >= opens + m.from_us]
        if m.window_us is not None:
            rows = rows[rows.t < opens + m.window_us]
        if m.since_us is not None:
            rows = rows[rows.t >= m.since_us]
        if m.before_us is not None:
            rows = rows[rows.t < m.before_us]
        if m.where is not None:
            rows = rows[rows.name.map(WHERES[m.where]).astype(bool)]
        if m.fold == "count":
            return float(len(rows))
        if m.fold == "any":
            return float(len(rows) > 0)
        if m.fold == "sum":
            return float(rows.amount.sum())
        return float(rows.amount.mean()) if rows.amount.notna().any() else np.nan


WHERES: dict[str, Callable[[object], bool]] = {
    "name = 'buy'": lambda n: n == "buy",
    "name = 'it''s'": lambda n: n == "it's",
    "name = 'view'": lambda n: n == "view",
}


def hash_of(text: str) -> int:
    return sum(ord(c) * (i + 3) * 31 for i, c in enumerate(text))


def need(metrics: Iterable[MetricNeed], **more: Any) -> ArmsNeed:
    return ArmsNeed("x", "exposures", "user", "arm", None, None, None, (), tuple(metrics), **more)


BUY = "name = 'buy'"
BUYS = MetricNeed("buys", (Measure("events", "count", None, BUY, 72 * HOUR),))
SPEND = MetricNeed("spend", (Measure("events", "sum", "amount", BUY, 72 * HOUR),))
BEFORE = tuple(replace(m, from_us=-96 * HOUR, window_us=0) for m in SPEND.measures)
ENDS = ZERO + 1_500 * HOUR


def arms_of(first: Mapping[str, tuple[str, int, Any]], table: Mapping[str, Sequence[float]]) -> dict[str, Moments]:
    """Moments by arm of the units whose columns are all numbers."""
    out = {}
    for arm in sorted({a for a, _, _ in first.values()}):
        rows = [row for u, row in table.items() if first[u][0] == arm and not np.isnan(row).any()]
        width = len(next(iter(table.values())))
        out[arm] = Moments.of(np.array(rows).reshape(len(rows), width))
    return out


def agree(found: Mapping[str, Moments], expected: Mapping[str, Moments]) -> None:
    assert {a for a, m in found.items() if m.n} == {a for a, m in expected.items() if m.n}
    for arm, m in expected.items():
        if m.n:
            assert found[arm].n == m.n
            np.testing.assert_allclose(found[arm].mean, m.mean, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(
                found[arm].cov, m.cov, rtol=1e-9, atol=1e-9 * max(1.0, float(np.abs(m.cov).max()))
            )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize("fold", ["count", "sum", "mean", "any"])
@pytest.mark.parametrize(
    "bounds",
    [
        {"window_us": 72 * HOUR},
        {"window_us": 96 * HOUR, "from_us": 24 * HOUR},
        {"window_us": 0, "from_us": -96 * HOUR},
        {"since_us": ZERO + 300 * HOUR, "before_us": ZERO + 400 * HOUR},
        {"window_us": 100 * HOUR, "since_us": ZERO + 300 * HOUR},
    ],
)
def test_windows_open_closed_before_and_by_the_calendar(world: World, fold: Any, bounds: dict[str, int]) -> None:
    measure = Measure("events", fold, "amount" if fold in ("sum", "mean") else None, BUY, **bounds)
    # beside measures that stretch the scan in both directions
    wide = MetricNeed("wide", (Measure("events", "count", None, None, 200 * HOUR, from_us=-150 * HOUR),))
    found = world.read(need([MetricNeed("m", (measure,)), wide, SPEND]))["x"].metrics["m"]
    first = world.first()
    agree(found.moments, arms_of(first, {u: [world.value(u, t0, measure)] for u, (_, t0, _) in first.items()}))
    assert sum(found.ineligible.values()) == 0


def test_measures_before_exposure_are_joint_with_theirs_and_close_no_window(world: World) -> None:
    ratio = MetricNeed(
        "per_buy",
        (Measure("events", "sum", "amount", BUY, 72 * HOUR), Measure("events", "count", None, BUY, 72 * HOUR)),
        ratio=True,
        before=tuple(
            Measure("events", fold, column, BUY, 0, from_us=-96 * HOUR)
            for fold, column in (("sum", "amount"), ("count", None))
        ),
    )
    metrics = [replace(SPEND, before=BEFORE), ratio]
    found = world.read(need(metrics, crosses=(("spend", "per_buy"),)))["x"]
    first = world.first()
    spend = {u: [world.value(u, t, m) for m in (*SPEND.measures, *BEFORE)] for u, (_, t, _) in first.items()}
    both = {u: [world.value(u, t, m) for m in (*ratio.measures, *ratio.before)] for u, (_, t, _) in first.items()}
    both = {u: [np.nan] * 4 if row[0] == row[1] == 0 else row for u, row in both.items()}
    agree(found.metrics["spend"].moments, arms_of(first, spend))
    agree(found.metrics["per_buy"].moments, arms_of(first, both))
    assert found.metrics["spend"].covariates == ("spend before exposure",)
    assert found.metrics["per_buy"].covariates == (
        "per_buy numerator before exposure",
        "per_buy denominator before exposure",
    )
    agree(found.crosses["spend", "per_buy"], arms_of(first, {u: [*spend[u], *both[u]] for u in spend}))
    assert sum(found.metrics["per_buy"].without.values()) == sum(np.isnan(row[0]) for row in both.values())


def test_an_average_before_exposure_that_some_have_not_is_filled_and_told(world: World) -> None:
    measure = Measure("events", "mean", "amount", BUY, 200 * HOUR)
    earlier = replace(measure, from_us=-96 * HOUR, window_us=0)
    found = world.read(need([MetricNeed("m", (measure,), before=(earlier,))]))["x"].metrics["m"]
    first = world.first()
    rows = {u: [world.value(u, t, measure), world.value(u, t, earlier)] for u, (_, t, _) in first.items()}
    entering = {u: row for u, row in rows.items() if not np.isnan(row[0])}
    centre = float(np.nanmean([row[1] for row in entering.values()]))
    filled = {u: [y, centre if np.isnan(b) else b, float(np.isnan(b))] for u, (y, b) in entering.items()}
    agree(found.moments, arms_of({u: first[u] for u in filled}, filled))
    assert found.covariates == ("m before exposure", "m before exposure missing")


def test_open_windows_leave_units_out_of_values_and_of_what_was_before(world: World) -> None:
    world.events = world.events.iloc[:-1]
    world.tables["events"] = world.events
    as_of = int(world.events.t.max())
    long = tuple(replace(m, window_us=as_of - ZERO - 400 * HOUR) for m in SPEND.measures)
    metric = replace(SPEND, measures=long, before=BEFORE)
    found = world.read(need([metric, BUYS]))["x"].metrics["spend"]
    first = world.first()
    rows = {u: [world.value(u, t, m) for m in (*long, *BEFORE)] for u, (_, t, _) in first.items()}
    rows = {u: row if first[u][1] <= ZERO + 400 * HOUR else [np.nan] * 2 for u, row in rows.items()}
    agree(found.moments, arms_of(first, rows))
    assert sum(found.ineligible.values()) == sum(t > ZERO + 400 * HOUR for _, t, _ in first.values()) > 0


def test_a_window_that_closes_with_the_very_last_row_is_closed(world: World) -> None:
    first = world.first()
    # those of several arms, a few of whom were exposed later, are in no figure
    world.exposures = world.exposures[world.exposures.u.isin(first)]
    world.tables["exposures"] = world.exposures
    last = max(t for _, t, _ in first.values())
    latest = sum(t == last for _, t, _ in first.values())
    for window, left_out in ((ENDS - last, 0), (ENDS - last + 1, latest)):
        metric = replace(SPEND, measures=(replace(SPEND.measures[0], window_us=window),))
        numbers = world.read(need([metric]))["x"].metrics["spend"]
        assert sum(numbers.ineligible.values()) == left_out
        closed = {u: who for u, who in first.items() if who[1] + window <= ENDS}
        rows = {u: [world.value(u, t, metric.measures[0])] for u, (_, t, _) in closed.items()}
        agree(numbers.moments, arms_of(closed, rows))


def test_a_percentile_cap_holds_before_exposure_too(world: World) -> None:
    capped = tuple(replace(m, cap=Cap(percentile=90, nonzero=True)) for m in SPEND.measures)
    metric = replace(SPEND, measures=capped, before=tuple(replace(m, cap=capped[0].cap) for m in BEFORE))
    found = world.read(need([metric]))["x"].metrics["spend"]
    first = world.first()
    rows = {u: [world.value(u, t, m) for m in (*SPEND.measures, *BEFORE)] for u, (_, t, _) in first.items()}
    values = np.array([row[0] for row in rows.values()])
    cap = float(np.quantile(values[values != 0], 0.9))
    assert found.caps == (pytest.approx(cap),)
    agree(found.moments, arms_of(first, {u: [min(v, cap) for v in row] for u, row in rows.items()}))
    assert max(row[1] for row in rows.values()) > cap


def test_extremes_and_units_below_zero(world: World) -> None:
    world.events.loc[world.events.u == "u31", "amount"] = -5.0
    found = world.read(need([SPEND, BUYS]))["x"].metrics
    first = world.first()
    values = {u: world.value(u, t, SPEND.measures[0]) for u, (_, t, _) in first.items()}
    assert found["spend"].lowest == (min(values.values()),)
    assert found["spend"].highest == (pytest.approx(max(values.values())),)
    assert found["spend"].negative == sum(v < 0 for v in values.values())
    assert found["buys"].negative == 0


def test_one_great_spender_makes_the_capped_figures_appear(world: World) -> None:
    world.events.loc[len(world.events)] = ["u40", world.first()["u40"][1], "buy", 50_000.0]
    world.tables["events"] = world.events
    found = world.read(need([SPEND, BUYS]))["x"].metrics
    first = world.first()
    values = {u: world.value(u, t, SPEND.measures[0]) for u, (_, t, _) in first.items()}
    some = np.array([v for v in values.values() if v != 0])
    cap = float(np.quantile(some, 0.99))
    capped = found["spend"].if_capped
    assert capped is not None
    assert capped.cap == pytest.approx(cap)
    assert capped.above == (some > cap).sum()
    agree(capped.moments, arms_of(first, {u: [min(v, cap)] for u, v in values.items()}))
    agree(found["spend"].moments, arms_of(first, {u: [v] for u, v in values.items()}))


# ---------------------------------------------------------------- kinds of metric


def test_retention_steps_calendar_and_paths(world: World) -> None:
    retention = nouns.RetentionMetric.model_validate({"kind": "retention", "to": "events", "at": "3d", "within": "2d"})
    spend = nouns.SumMetric.model_validate(
        {"kind": "sum", "from": "events", "column": "amount", "where": BUY, "cap": "p99"}
    )
    converted = nouns.ConversionMetric.model_validate({"kind": "conversion", "to": {"source": "events", "where": BUY}})
    rate = nouns.RateMetric.model_validate({"kind": "rate", "from": "events", "where": BUY})
    paths = nouns.Cannibalisation.model_validate({"within": "events", "by": "name", "paths": ["buy", "it's"]})
    worth = nouns.Cannibalisation.model_validate(
        {"within": "events", "by": "name", "paths": ["buy", "it's"], "value": "amount"}
    )
    edges = (0, 24 * HOUR, 72 * HOUR, 96 * HOUR)
    dates = tuple(ZERO + h * HOUR for h in (240, 300, 400, 500))
    metrics = [
        metric_need("kept", retention, timedelta(days=9), None, before=timedelta(days=4)),
        step_need("spend by step", spend, edges),
        step_need("converted by step", converted, edges),
        step_need("rate by step", rate, edges),
        calendar_need("spend by date", spend, dates),
        cannibalisation_need("paths", paths, timedelta(days=3)),
        cannibalisation_need("worth", worth, timedelta(days=3)),
    ]
    found = world.read(need(metrics))["x"].metrics
    first = world.first()

    def check(name: str, columns: Callable[[str, int], list[float]]) -> None:
        agree(found[name].moments, arms_of(first, {u: columns(u, t) for u, (_, t, _) in first.items()}))

    kept = Measure("events", "any", None, None, 120 * HOUR, from_us=72 * HOUR)
    earlier = Measure("events", "any", None, None, 0, from_us=-96 * HOUR)
    check("kept", lambda u, t: [world.value(u, t, kept), world.value(u, t, earlier)])
    steps = [{"from_us": a, "window_us": b} for a, b in pairwise(edges)]
    spent = Measure("events", "sum", "amount", BUY)
    check("spend by step", lambda u, t: [world.value(u, t, replace(spent, **s)) for s in steps])
    bought = Measure("events", "any", None, BUY)
    check("converted by step", lambda u, t: [world.value(u, t, replace(bought, **s)) for s in steps])

    def rates(u: str, t: int) -> list[float]:
        out = []
        for s in steps:
            rows = world.rows_of(u)
            rows = rows[(rows.t >= t + s["from_us"]) & (rows.t < t + s["window_us"])]
            out += [float((rows.name == "buy").sum()), float(rows.name.notna().sum())]
        return out

    check("rate by step", rates)
    calendar = [{"since_us": a, "before_us": b} for a, b in pairwise(dates)]
    check("spend by date", lambda u, t: [world.value(u, t, replace(spent, **s)) for s in calendar])

    def by_path(u: str, t: int, of: Callable[[pd.DataFrame], float]) -> list[float]:
        rows = world.rows_of(u)
        rows = rows[(rows.t >= t) & (rows.t < t + 72 * HOUR)]
        named = [of(rows[rows.name == path]) for path in ("buy", "it's")]
        return [*named, of(rows[~rows.name.isin(["buy", "it's"])])]

    check("paths", lambda u, t: by_path(u, t, lambda rows: float(len(rows))))
    check("worth", lambda u, t: by_path(u, t, lambda rows: float(rows.amount.sum())))
    assert all(not m.covariates and not m.segments for m in metrics[1:])
    assert (is_ratio(retention), origin(retention), unit_of(retention, "EUR", "user")) == (
        False,
        "source 'events'",
        "share",
    )
    assert (count_or_sum_unit(paths, "EUR", "user"), count_or_sum_unit(worth, "EUR", "user")) == ("events/user", "EUR")


def test_what_metrics_ask_before_exposure() -> None:
    converted = nouns.ConversionMetric.model_validate(
        {"kind": "conversion", "to": "events", "after": {"source": "events", "within": "1d"}}
    )
    asked = metric_need("m", converted, timedelta(days=2), None, before=timedelta(days=7))
    assert asked.before == (Measure("events", "any", None, None, 0, from_us=-7 * DAY),)
    assert asked.horizon_us == 3 * DAY
    slow = nouns.QuantileMetric.model_validate({"kind": "quantile", "from": "events", "column": "amount", "q": 0.9})
    asked = metric_need("m", slow, timedelta(days=2), None, before=timedelta(days=7), level=0.9)
    assert (asked.before, asked.quantile) == ((), Quantile(0.9, "rows", 0.9))
    assert (unit_of(slow, "EUR", "user"), origin(slow)) == ("amount", "source 'events'")


@pytest.mark.parametrize("of", ["rows", "units"])
@pytest.mark.parametrize("cluster", [None, "city"])
def test_quantiles_of_rows_and_of_units(tmp_path: Path, of: Any, cluster: str | None) -> None:
    from payoff.stats.quantile import outer_ranks, quantile_se

    measure = Measure("events", "mean" if of == "rows" else "sum", "amount", None, 200 * HOUR)
    metric = MetricNeed("m", (measure,), quantile=Quantile(0.4, of, 0.9), covariates=False, segments=False)
    world = World(tmp_path) if cluster is None else clustered_world(tmp_path)
    data = world.read(need([metric, SPEND], cluster=cluster))["x"]
    found, first = data.metrics["m"], world.first()
    if cluster is not None:
        first = one_arm_cities({u: one for u, one in first.items() if one[2]["city"] is not None})
    reasons: dict[str, str] = {}
    for arm in "ab":
        drawn: dict[str, list[float]] = {}
        units = 0
        for u, (a, t, row) in first.items():
            if a != arm:
                continue
            rows = world.rows_of(u)
            rows = rows[(rows.t >= t) & (rows.t < t + 200 * HOUR)].amount.dropna()
            values = list(rows) if of == "rows" else [float(rows.sum())]
            units += bool(values)
            if values:
                drawn.setdefault(row["city"] if cluster else u, []).extend(values)
        every = np.concatenate([np.array(v) for v in drawn.values()])
        at = float(np.quantile(every, 0.4))
        ranks = Moments.of(np.array([[sum(v <= at for v in vs), len(vs)] for vs in drawn.values()], dtype=float))
        try:
            low, high = (float(np.quantile(every, p)) for p in outer_ranks(ranks, len(every), 0.4, 0.9))
        except ValueError as error:
            reasons[arm] = str(error)
            continue
        seen = found.quantiles[arm]
        assert (seen.n, seen.rows) == (len(drawn), len(every))
        assert (seen.value, seen.low, seen.high) == pytest.approx((at, low, high))
        assert seen.se == pytest.approx(quantile_se(low, high, 0.9, len(drawn) - 1))
        assert found.units[arm] == units
        assert found.without[arm] == sum(a == arm for a, _, _ in first.values()) - units
    assert not found.moments
    assert found.quantiles
    assert found.no_quantile == reasons


def test_a_quantile_that_lies_beyond_the_rows_says_why(world: World) -> None:
    measure = Measure("events", "mean", "amount", BUY, 24 * HOUR)
    metric = MetricNeed("m", (measure,), quantile=Quantile(0.9999, "rows", 0.95))
    found = world.read(need([metric]))["x"].metrics["m"]
    assert not found.quantiles
    assert "lies beyond the rows" in found.no_quantile["a"]


# ---------------------------------------------------------------- attributes


PLAN = AttributeNeed("plan", "exposures", column="plan")
AGE = AttributeNeed("age", "people", column="age", cuts=(30.0, 50.0))
TENURE = AttributeNeed("tenure", "people", since="joined", cuts=(7.0,), labels=("new", "old"))
TIER = AttributeNeed("tier", "history", column="tier")
COLOUR = AttributeNeed("colour", "labels", column="colour")
EARLIER = AttributeNeed("earlier", "events", measure=replace(SPEND.measures[0], from_us=-96 * HOUR, window_us=0))


def known(world: World, first: Mapping[str, tuple[str, int, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Each attribute of each unit, one at a time."""
    out: dict[str, dict[str, Any]] = {}
    people = world.people.set_index("u")
    for u, (_, t, row) in first.items():
        mine: dict[str, Any] = {"plan": row["plan"], "age": None, "tenure": None, "tier": None, "colour": None}
        if u in people.index:
            age, joined = people.loc[u]
            mine["age"] = None if pd.isna(age) else age
            mine["tenure"] = (t - joined) / DAY if joined <= t else None
            mine["unborn"] = joined > t
        rows = world.history[(world.history.u == u) & world.history.tier.notna()]
        past = rows[rows.t <= t]
        if len(past):
            mine["tier"] = past[past.t == past.t.max()].tier.max()
        mine["late"] = len(rows) > 0 and len(past) == 0
        colours = set(world.labels[world.labels.u == u].colour)
        mine["colour"] = colours.pop() if len(colours) == 1 else None
        mine["many"] = len(colours) > 1 or (mine["colour"] is None and len(colours) == 1)
        mine["earlier"] = world.value(u, t, EARLIER.measure) if EARLIER.measure else None
        out[u] = mine
    for u, mine in out.items():
        mine["many"] = len(set(world.labels[world.labels.u == u].colour)) > 1
    return out


def test_attributes_as_they_were_at_exposure_and_what_is_not_known(world: World) -> None:
    attributes = (PLAN, AGE, TENURE, TIER, COLOUR, EARLIER)
    data = world.read(need([SPEND], attributes=attributes))["x"]
    first = world.first()
    truth = known(world, first)
    seen = data.attributes
    for a in attributes:
        values = [mine[a.name] for mine in truth.values()]
        empty = sum(v is None for v in values)
        assert seen[a.name].missing + seen[a.name].future + seen[a.name].ambiguous == empty, a.name
        assert seen[a.name].classes == len({v for v in values if v is not None}), a.name
        assert seen[a.name].refused is None
    assert seen["tenure"].future == sum(mine.get("unborn", False) for mine in truth.values()) > 0
    assert seen["tier"].future == sum(mine["late"] for mine in truth.values()) > 0
    assert seen["colour"].ambiguous == sum(mine["many"] for mine in truth.values()) > 0


def text(value: Any, cuts: Sequence[float] = (), names: Sequence[str] = ()) -> str:
    if value is None:
        return "(unknown)"
    return str(value) if not cuts else names[int(np.searchsorted(cuts, value, side="right"))]


def test_segments_come_with_what_was_before(world: World) -> None:
    by_spend = AttributeNeed("by_spend", "events", measure=EARLIER.measure, quantiles=(0.5, 0.9))
    attributes = (PLAN, AGE, TENURE, TIER, by_spend)
    names = tuple(a.name for a in attributes)
    metrics = [replace(SPEND, before=BEFORE), replace(BUYS, segments=False)]
    data = world.read(need(metrics, attributes=attributes, segments=names, crosses=(("spend", "buys"),)))["x"]
    found, first = data.metrics["spend"], world.first()
    truth = known(world, first)
    rows = {u: [world.value(u, t, m) for m in (*SPEND.measures, *BEFORE)] for u, (_, t, _) in first.items()}
    agree(found.moments, arms_of(first, rows))
    cuts = [float(c) for c in np.quantile([m["earlier"] for m in truth.values()], [0.5, 0.9])]
    ranges = [f"under {cuts[0]:.6g}", f"{cuts[0]:.6g} to {cuts[1]:.6g}", f"{cuts[1]:.6g} and over"]
    classes: dict[str, Callable[[dict[str, Any]], str]] = {
        "plan": lambda m: text(m["plan"]),
        "age": lambda m: text(m["age"], (30, 50), ("under 30", "30 to 50", "50 and over")),
        "tenure": lambda m: text(m["tenure"], (7,), ("new", "old")),
        "tier": lambda m: text(m["tier"]),
        "by_spend": lambda m: text(m["earlier"], cuts, ranges),
    }
    for name, of in classes.items():
        expected = {of(mine) for mine in truth.values()}
        assert set(found.segments[name]) == expected
        for cls in expected:
            inside = {u: first[u] for u, mine in truth.items() if of(mine) == cls}
            agree(found.segments[name][cls], arms_of(inside, {u: rows[u] for u in inside}))
    assert list(found.segments["age"]) == ["under 30", "30 to 50", "50 and over", "(unknown)"]
    assert not data.metrics["buys"].segments
    both = {u: [*rows[u], world.value(u, first[u][1], BUYS.measures[0])] for u in rows}
    agree(data.crosses["spend", "buys"], arms_of(first, both))


def test_covariates_are_joint_with_every_metric_over_its_own_units(world: World) -> None:
    attributes = (replace(AGE, cuts=()), TIER, EARLIER, PLAN)
    mean = MetricNeed("mean", (Measure("events", "mean", "amount", BUY, 72 * HOUR),))
    metrics = [replace(SPEND, before=BEFORE), BUYS, mean, replace(BUYS, name="plain", covariates=False)]
    names = tuple(a.name for a in attributes)
    data = world.read(need(metrics, attributes=attributes, covariates=names, crosses=(("buys", "mean"),)))["x"]
    first = world.first()
    truth = known(world, first)
    age = float(np.mean([m["age"] for m in truth.values() if m["age"] is not None]))

    def order(name: str) -> list[str]:
        counted = pd.Series([text(m[name]) for m in truth.values()]).value_counts()
        return sorted(counted.index, key=lambda c: (-counted[c], c))

    def columns(u: str) -> list[float]:
        m = truth[u]
        out = [age if m["age"] is None else m["age"], float(m["age"] is None)]
        out += [float(text(m["tier"]) == c) for c in order("tier")[1:]] + [m["earlier"]]
        return out + [float(text(m["plan"]) == c) for c in order("plan")[1:]]

    told = ["age", "age missing", *(f"tier = {c}" for c in order("tier")[1:]), "earlier"]
    told += [f"plan = {c}" for c in order("plan")[1:]]
    assert data.metrics["spend"].covariates == ("spend before exposure", *told)
    assert data.metrics["buys"].covariates == tuple(told)
    assert data.metrics["plain"].covariates == ()
    one = {
        name: {u: [world.value(u, t, m) for m in metric.measures] for u, (_, t, _) in first.items()}
        for name, metric in (("buys", BUYS), ("mean", mean))
    }
    for name, rows in one.items():
        agree(data.metrics[name].moments, arms_of(first, {u: [*row, *columns(u)] for u, row in rows.items()}))
    both = {u: [*one["buys"][u], *columns(u), *one["mean"][u], *columns(u)] for u in first}
    agree(data.crosses["buys", "mean"], arms_of(first, both))


def test_what_is_measured_after_exposure_cannot_serve(world: World) -> None:
    late = world.history.copy()
    late["t"] = ZERO + 700 * HOUR
    world.tables["history"] = world.history = late
    found = world.read(need([SPEND], attributes=(TIER,), segments=("tier",), covariates=("tier",)))["x"]
    profile = found.attributes["tier"]
    assert profile.refused is not None
    assert "measured after exposure: it may be an effect of the treatment" in profile.refused
    assert profile.future > 150
    assert not found.metrics["spend"].segments
    assert not found.metrics["spend"].covariates


def test_what_is_mostly_measured_after_exposure_cannot_serve(world: World) -> None:
    early = world.history[world.history.u == "u50"].head(1).assign(t=ZERO, tier="gold")
    world.tables["history"] = pd.concat([world.history.assign(t=ZERO + 700 * HOUR), early])
    profile = world.read(need([SPEND], attributes=(TIER,)))["x"].attributes["tier"]
    assert profile.refused is not None
    assert "after exposure" in profile.refused


def test_ten_thousand_classes_are_refused_and_none_comes_back(world: World) -> None:
    names = [f"u{i}" for i in range(10_000)]
    world.tables["exposures"] = pd.DataFrame(
        {"u": names, "t": ZERO + 300 * HOUR, "arm": ["a", "b"] * 5_000, "plan": names, "city": "c"}
    )
    data = world.read(need([SPEND], attributes=(PLAN,), segments=("plan",)))["x"]
    assert data.attributes["plan"].refused == "it has 10,000 values, and segments have at most 50"
    assert data.attributes["plan"].classes == 10_000
    assert not data.metrics["spend"].segments
    # as a covariate its most frequent classes are told apart, and the rest are one
    data = world.read(need([SPEND], attributes=(PLAN,), covariates=("plan",)))["x"]
    assert len(data.metrics["spend"].covariates) == 20
    assert data.metrics["spend"].covariates[-1] == "plan = (other)"
    assert sum(m.n * m.mean[-1] for m in data.metrics["spend"].moments.values()) == pytest.approx(10_000 - 20)


def test_an_attribute_of_which_nothing_is_known_says_so(world: World) -> None:
    world.people["age"] = np.nan
    found = world.read(need([SPEND], attributes=(AGE, COLOUR), covariates=("age",), segments=("age",)))["x"]
    assert found.attributes["age"].refused == "nothing is known of it for any exposed unit"
    assert not found.metrics["spend"].covariates
    world.tables["labels"] = pd.DataFrame({"u": world.units * 2, "colour": ["red"] * 240 + ["blue"] * 240})
    ambiguous = world.read(need([SPEND], attributes=(COLOUR,)))["x"].attributes["colour"]
    assert ambiguous.ambiguous == sum(world.read(need([SPEND]))["x"].exposed.values())
    assert ambiguous.refused is not None


def test_numbers_far_from_zero_keep_their_digits(world: World) -> None:
    rng = np.random.default_rng(3)
    world.people["age"] = 1e8 + rng.standard_normal(len(world.people))
    world.people.loc[::7, "age"] = None
    found = world.read(need([SPEND], attributes=(replace(AGE, cuts=()),), covariates=("age",)))["x"].metrics["spend"]
    first, people = world.first(), world.people.set_index("u").age
    ages = {u: people.get(u, np.nan) for u in first}
    centre = 1e8 + float(np.nanmean([a - 1e8 for a in ages.values()]))
    rows = {
        u: [world.value(u, t, SPEND.measures[0]), centre if np.isnan(ages[u]) else ages[u], float(np.isnan(ages[u]))]
        for u, (_, t, _) in first.items()
    }
    for arm, m in arms_of(first, rows).items():
        np.testing.assert_allclose(found.moments[arm].cov, m.cov, rtol=1e-6, atol=1e-6)


def test_a_text_that_should_be_cut_is_named(world: World) -> None:
    with pytest.raises(DataError, match=r"source 'exposures', column 'plan': .* text, not numbers"):
        world.read(need([SPEND], attributes=(replace(PLAN, cuts=(1.0,)),)))


# ---------------------------------------------------------------- clusters


def one_arm_cities(first: Mapping[str, tuple[str, int, dict[str, Any]]]) -> dict[str, tuple[str, int, dict[str, Any]]]:
    arms: dict[str, set[str]] = {}
    for a, _, row in first.values():
        arms.setdefault(row["city"], set()).add(a)
    return {u: one for u, one in first.items() if len(arms[one[2]["city"]]) == 1}


def clustered_world(folder: Path) -> World:
    world = World(folder)
    for i, u in enumerate(world.units):  # most cities keep to one arm, one has a single unit, some units have none
        city = None if i % 31 == 0 else "alone" if i == 7 else f"c{hash_of(u) % 2}-{i % 14}"
        world.exposures.loc[world.exposures.u == u, "city"] = "mixed" if i % 29 == 1 else city
    world.tables["exposures"] = world.exposures
    return world


def test_clusters_are_drawn_and_units_counted(tmp_path: Path) -> None:
    world = clustered_world(tmp_path)
    metrics = [
        replace(SPEND, before=BEFORE),
        MetricNeed("mean", (Measure("events", "mean", "amount", BUY, 72 * HOUR),)),
    ]
    attributes = (replace(AGE, cuts=()), PLAN)
    asked = need(
        metrics,
        attributes=attributes,
        covariates=("age",),
        segments=("plan",),
        cluster="city",
        crosses=(("spend", "mean"),),
    )
    data = world.read(asked)["x"]
    first = world.first()
    without = [u for u, one in first.items() if one[2]["city"] is None]
    first = {u: one for u, one in first.items() if one[2]["city"] is not None}
    kept = one_arm_cities(first)
    assert data.cluster is not None
    assert data.cluster.without == len(without) > 0
    assert data.cluster.several_arms == len({one[2]["city"] for one in first.values()}) - len(
        {one[2]["city"] for one in kept.values()}
    )
    assert data.exposed == {arm: sum(a == arm for a, _, _ in kept.values()) for arm in "ab"}
    sizes = pd.Series([(one[0], one[2]["city"]) for one in kept.values()]).value_counts()
    assert data.cluster.single == (sizes == 1).sum() > 0
    assert data.cluster.largest == pytest.approx(max(n / data.exposed[a] for (a, _), n in sizes.items()))
    truth = known(world, kept)
    age = float(np.mean([m["age"] for m in truth.values() if m["age"] is not None]))
    rows = {
        "spend": {u: [world.value(u, t, m) for m in (*SPEND.measures, *BEFORE)] for u, (_, t, _) in kept.items()},
        "mean": {u: [world.value(u, t, metrics[1].measures[0])] for u, (_, t, _) in kept.items()},
    }

    def totals(name: str, only: Callable[[str], bool] = lambda _: True) -> dict[tuple[str, str], list[float]]:
        out: dict[tuple[str, str], list[float]] = {}
        for u, (arm, _, row) in kept.items():
            y, *before = rows[name][u]
            if np.isnan(y) or not only(u):
                continue
            mine = truth[u]["age"]
            line = [y, 1.0, *before, age if mine is None else mine, float(mine is None)]
            total = out.setdefault((arm, row["city"]), [0.0] * len(line))
            out[arm, row["city"]] = [a + b for a, b in zip(total, line, strict=True)]
        return out

    def by_arm(table: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, Moments]:
        return {arm: Moments.of([row for (a, _), row in table.items() if a == arm]) for arm in "ab"}

    for name, each in rows.items():
        agree(data.metrics[name].moments, by_arm(totals(name)))
        assert data.cluster.clusters == {arm: m.n for arm, m in by_arm(totals("spend")).items()}
        for arm in "ab":
            entering = [u for u, row in each.items() if kept[u][0] == arm and not np.isnan(row[0])]
            assert data.metrics[name].units[arm] == len(entering)
            assert data.metrics[name].without[arm] == data.exposed[arm] - len(entering)
    for cls in {text(m["plan"]) for m in truth.values()}:
        table = totals("spend", lambda u, cls=cls: text(truth[u]["plan"]) == cls)  # type: ignore[misc]
        agree(data.metrics["spend"].segments["plan"][cls], by_arm(table))
    one, other = totals("spend"), totals("mean")
    agree(data.crosses["spend", "mean"], by_arm({c: [*one[c], *other[c]] for c in one if c in other}))
    values = [row[0] for row in rows["spend"].values()]
    assert (data.metrics["spend"].lowest, data.metrics["spend"].highest) == (
        (min(values),),
        (pytest.approx(max(values)),),
    )


# ---------------------------------------------------------------- triggers and periods


def test_a_trigger_moves_exposure_and_leaves_the_others_out(world: World) -> None:
    trigger = Anchor("events", "name = 'it''s'", None)
    data = world.read(
        need([replace(SPEND, before=BEFORE), replace(BUYS, measures=(replace(BUYS.measures[0], window_us=None),))],
             trigger=trigger, attributes=(TIER,))
    )["x"]  # fmt: skip
    first, moved, never = world.first(), {}, {"a": 0, "b": 0}
    for u, (arm, t, row) in first.items():
        rows = world.rows_of(u)
        rows = rows[(rows.name == "it's") & (rows.t >= t)]
        if len(rows):
            moved[u] = (arm, int(rows.t.min()), row)
        else:
            never[arm] += 1
    assert data.untriggered == never
    assert data.exposed == {arm: sum(a == arm for a, _, _ in moved.values()) for arm in "ab"}
    rows = {u: [world.value(u, t, m) for m in (*SPEND.measures, *BEFORE)] for u, (_, t, _) in moved.items()}
    agree(data.metrics["spend"].moments, arms_of(moved, rows))
    bought = replace(BUYS.measures[0], window_us=None)
    agree(
        data.metrics["buys"].moments, arms_of(moved, {u: [world.value(u, t, bought)] for u, (_, t, _) in moved.items()})
    )
    truth = known(world, moved)
    assert data.attributes["tier"].future == sum(m["late"] for m in truth.values())


def test_a_switchback_reads_periods_of_units(world: World) -> None:
    period, washout = 24 * HOUR, 6 * HOUR
    regions = world.units[:30]
    world.units[:30] = regions
    rows = []
    rng = np.random.default_rng(4)
    for region in regions:
        for day in range(10, 30):
            arm = "ab"[int(rng.integers(0, 2))]
            for hour in sorted(rng.choice(24, int(rng.integers(1, 4)), replace=False)):
                rows.append((region, ZERO + (day * 24 + int(hour)) * HOUR, arm, "free", "c"))
    rows.append((regions[0], ZERO + 10 * 24 * HOUR, "a", "free", "c"))
    rows.append((regions[0], ZERO + (10 * 24 + 23) * HOUR, "b", "free", "c"))
    world.tables["exposures"] = exposures = pd.DataFrame(rows, columns=["u", "t", "arm", "plan", "city"])
    world.events["u"] = np.array(regions)[rng.integers(0, 30, len(world.events))]
    world.events.loc[world.events.index[-1], "u"] = regions[3]
    measures = tuple(replace(m, from_us=washout, window_us=period) for m in SPEND.measures)
    data = world.read(need([replace(SPEND, measures=measures)], period_us=period, attributes=(PLAN,)))["x"]
    first: dict[str, tuple[str, int, Any]] = {}
    values: dict[str, list[float]] = {}
    several = 0
    for (u, start), mine in exposures.groupby([exposures.u, exposures.t // period * period]):
        if mine.arm.nunique() > 1:
            several += 1
            continue
        first[f"{u} {start}"] = (mine.arm.iloc[0], int(start), None)
        values[f"{u} {start}"] = [world.value(str(u), int(start), measures[0])]
    agree(data.metrics["spend"].moments, arms_of(first, values))
    assert data.several_arms == several == 1
    assert sum(data.exposed.values()) == len(first)


# ---------------------------------------------------------------- several experiments


def two(world: World) -> tuple[ArmsNeed, ArmsNeed]:
    rng = np.random.default_rng(8)
    second = world.exposures.sample(300, random_state=1).assign(
        arm=lambda e: np.where(rng.random(len(e)) < 0.4, "p", "q")
    )
    second = second[second.u.notna()].drop_duplicates("u")
    both = pd.concat([world.exposures.assign(exp="one"), second.assign(exp="two")], ignore_index=True)
    world.tables["exposures"] = both
    one = need([SPEND, BUYS], beside=("two",), beside_metrics=("spend",))
    other = ArmsNeed("two", "exposures", "user", "arm", "exp = 'two'", None, None, (), ())
    return replace(one, where="exp = 'one'"), other


@pytest.mark.parametrize("form", ["exp = 'two'", "exp IN ('two')"])
def test_experiments_beside_each_other_are_crossed(world: World, form: str) -> None:
    one, other = two(world)
    data = world.read(one, replace(other, where=form))
    assert data["two"].metrics == {}
    every = world.tables["exposures"]
    first = world.first(every[every.exp == "one"])
    second = world.first(every[every.exp == "two"])
    pairs = {u: (first[u][0], second[u][0]) for u in first if u in second}
    counted = pd.Series(list(pairs.values())).value_counts()
    assert data["x"].beside["two"] == dict(counted)
    for cell in counted.index:
        inside = {u: first[u] for u, pair in pairs.items() if pair == cell}
        expected = Moments.of([world.value(u, t, SPEND.measures[0]) for u, (_, t, _) in inside.items()])
        agree({"it": data["x"].metrics["spend"].beside["two"][cell]}, {"it": expected})
    assert not data["x"].metrics["buys"].beside
    rows = {u: [world.value(u, t, SPEND.measures[0])] for u, (_, t, _) in first.items()}
    agree(data["x"].metrics["spend"].moments, arms_of(first, rows))


def test_conditions_that_only_look_different_may_share_a_row(world: World) -> None:
    """To a column of numbers '1' and '01' are one value: the row is in both experiments."""
    world.tables["exposures"] = world.exposures.assign(exp=1)
    one = replace(need([SPEND]), where="exp = '1'")
    data = world.read(one, replace(one, experiment="y", where="exp = '01'"))
    assert data["x"].exposed == data["y"].exposed
    assert sum(data["x"].exposed.values()) == len(world.first())


def test_many_experiments_are_read_in_the_order_of_their_units_and_say_the_same(world: World) -> None:
    world.tables["exposures"] = pd.concat(
        [world.exposures.sample(frac=0.7, random_state=k).assign(exp=f"e{k}") for k in range(5)], ignore_index=True
    )
    ever = MetricNeed("ever", (Measure("events", "any", None, BUY, 72 * HOUR),))
    asked = [
        replace(need([replace(SPEND, before=BEFORE), BUYS, ever]), experiment=f"e{k}", where=f"exp = 'e{k}'")
        for k in range(5)
    ]
    together = world.read(*asked)
    for one in asked:
        rows = world.tables["exposures"]
        first = world.first(rows[rows.exp == one.experiment])
        for metric in one.metrics:
            columns = [*metric.measures, *metric.before]
            table = {u: [world.value(u, t, m) for m in columns] for u, (_, t, _) in first.items()}
            agree(together[one.experiment].metrics[metric.name].moments, arms_of(first, table))
        # the numbering of units and the sort are for the machine: alone, an experiment says the same
        alone = world.read(one)[one.experiment]
        assert alone.exposed == together[one.experiment].exposed


def test_a_pass_in_parts_says_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is short for many experiments, the units are read in parts, each with its rows."""
    asked = [replace(need([replace(SPEND, before=BEFORE), BUYS]), experiment=f"e{k}") for k in range(4)]
    whole = world.read(*asked)
    monkeypatch.setattr("payoff.warehouse.arms._ROW", 500_000)  # as if each row took that many bytes of a gigabyte
    small = DuckDBConnection(engine="duckdb", path="data.duckdb", threads=2, memory_limit="1GB")
    entities = {"user": Entity(), "city": Entity()}
    with Catalog(world.sources(), entities, {"main": small}, world.folder, "UTC") as catalog:
        reader = ArmsReader(catalog, asked)
        parts = reader.fetch()
    names = [s.name for s in reader.steps if s.name.startswith("values of events")]
    assert len(names) > 2
    assert names == [f"values of events, part {k + 1} of {len(names)}" for k in range(len(names))]
    for one in asked:
        for metric in one.metrics:
            agree(
                parts[one.experiment].metrics[metric.name].moments, whole[one.experiment].metrics[metric.name].moments
            )


def test_a_quantile_has_no_joint_moments(world: World) -> None:
    slow = MetricNeed(
        "slow", (Measure("events", "mean", "amount", None, 200 * HOUR),), quantile=Quantile(0.5, "rows", 0.95)
    )
    asked = need([SPEND, slow, BUYS], crosses=(("spend", "slow"), ("spend", "buys")))
    assert list(world.read(asked)["x"].crosses) == [("spend", "buys")]


def test_an_experiment_that_is_not_read_cannot_be_crossed(world: World) -> None:
    with pytest.raises(DataError, match="experiment 'other' is not read together with 'x'"):
        world.read(need([SPEND], beside=("other",)))


def test_experiments_of_every_shape_share_a_read(world: World) -> None:
    one, other = two(world)
    trigger = Anchor("events", BUY, None)
    shapes = [
        one,
        replace(other, metrics=(SPEND, replace(BUYS, before=BEFORE))),
        replace(one, experiment="clustered", cluster="city", beside=(), beside_metrics=()),
        replace(one, experiment="triggered", trigger=trigger, beside=(), beside_metrics=()),
        replace(one, experiment="periods", period_us=24 * HOUR, beside=(), beside_metrics=()),
    ]
    together = world.read(*shapes)
    for shape in shapes:
        alone = world.read(*([one, other] if shape.beside else [shape]))[shape.experiment]
        mine = together[shape.experiment]
        assert mine.exposed == alone.exposed
        assert (mine.untriggered, mine.cluster, mine.several_arms) == (
            alone.untriggered,
            alone.cluster,
            alone.several_arms,
        )
        for name, numbers in alone.metrics.items():
            agree(mine.metrics[name].moments, numbers.moments)


# ---------------------------------------------------------------- one row a unit


@pytest.fixture
def table(tmp_path: Path) -> tuple[World, dict[str, Source], pd.DataFrame]:
    world, rng = World(tmp_path), np.random.default_rng(9)
    n = 400
    frame = pd.DataFrame(
        {
            "id": [f"u{i}" for i in range(n)],
            "arm": rng.choice(["a", "b"], n),
            "spend": rng.gamma(1, 30, n).round(2),
            "ms": np.where(rng.random(n) < 0.1, np.nan, rng.gamma(2, 100, n)),
            "plan": rng.choice(["free", "pro", None], n),
            "age": rng.integers(18, 70, n).astype(float),
            "city": [f"{'ab'[i % 2]}{i % 40}" for i in range(n)],
        }
    )
    frame["arm"] = ["ab"[i % 2] for i in range(n)]
    world.tables["people"] = frame
    return (
        world,
        {
            "people": Source.model_validate(
                {"table": "people", "one_row_per": "user", "entity": {"user": "id", "city": "city"}}
            )
        },
        frame,
    )


def test_a_table_of_one_row_a_unit_has_segments_covariates_clusters_and_quantiles(
    table: tuple[World, dict[str, Source], pd.DataFrame],
) -> None:
    world, sources, frame = table
    metrics = (
        MetricNeed("spend", (Measure("people", "sum", "spend", None, 72 * HOUR),)),
        MetricNeed("slow", (Measure("people", "mean", "ms"),), quantile=Quantile(0.5, "rows", 0.95)),
    )
    plain = ArmsNeed(
        "x", "people", "user", "arm", None, None, None, (), metrics,
        attributes=(AttributeNeed("plan", "people", column="plan"), AttributeNeed("age", "people", column="age")),
        covariates=("age",), segments=("plan",),
    )  # fmt: skip
    data = world.read(plain, replace(plain, experiment="y", cluster="city"), sources=sources)
    for arm in "ab":
        mine = frame[frame.arm == arm]
        np.testing.assert_allclose(data["x"].metrics["spend"].moments[arm].cov, np.cov(mine.spend, mine.age))
        for cls in ("free", "pro", None):
            inside = mine[mine.plan.isna()] if cls is None else mine[mine.plan == cls]
            seen = data["x"].metrics["spend"].segments["plan"][cls or "(unknown)"][arm]
            np.testing.assert_allclose(seen.mean, [inside.spend.mean(), inside.age.mean()])
        cities = mine.groupby("city").agg(spend=("spend", "sum"), n=("id", "count"), age=("age", "sum"))
        np.testing.assert_allclose(data["y"].metrics["spend"].moments[arm].cov, np.cov(cities.to_numpy().T))
        assert data["x"].metrics["slow"].quantiles[arm].value == pytest.approx(mine.ms.median())
        assert data["x"].metrics["slow"].quantiles[arm].rows == mine.ms.notna().sum()


def test_what_has_no_time_has_no_before_and_no_steps(table: tuple[World, dict[str, Source], pd.DataFrame]) -> None:
    world, sources, _ = table
    measure = Measure("people", "sum", "spend", None, 0, from_us=-72 * HOUR)
    metric = MetricNeed("spend", (Measure("people", "sum", "spend"),), before=(measure,))
    one = ArmsNeed("x", "people", "user", "arm", None, None, None, (), (metric,))
    with pytest.raises(DataError, match="has no time, so what it recorded cannot be placed before exposure"):
        world.read(one, sources=sources)
    with pytest.raises(DataError, match="has no time, so its rows have no period"):
        world.read(replace(one, metrics=(), period_us=DAY), sources=sources)
    aged = (AttributeNeed("tenure", "people", since="TIMESTAMP '2026-01-01'"),)
    with pytest.raises(DataError, match="has no time, so the age of"):
        world.read(replace(one, metrics=(), attributes=aged), sources=sources)


# ---------------------------------------------------------------- passes


def test_everything_over_one_relation_is_read_in_one_pass(world: World) -> None:
    world.write()
    asked = need(
        [replace(SPEND, before=BEFORE), BUYS, step_need("steps", nouns.CountMetric.model_validate({"kind": "count", "from": "events"}), (0, DAY, 2 * DAY))],
        attributes=(TIER, PLAN, EARLIER), segments=("tier",), covariates=("earlier",),
    )  # fmt: skip
    with Catalog(
        world.sources(),
        {"user": Entity(), "city": Entity()},
        {"main": DuckDBConnection(engine="duckdb", path="data.duckdb")},
        world.folder,
        "UTC",
    ) as catalog:
        reader = ArmsReader(catalog, [asked, replace(asked, experiment="y")])
        planned = [(s.name, s.reads) for s in reader.plan()]
        reader.fetch()
        made = [(s.name, s.reads) for s in reader.steps if not s.name.startswith("capped")]
    assert made == planned
    passes = [reads for name, reads in made if reads and not name.startswith(("look", "ids"))]
    assert sorted(passes) == ["table main.events", "table main.exposures", "table main.history"]

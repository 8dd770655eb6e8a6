"""Cohorts: units by when they began, and what became of them. Counts and sums come back, never units.

A unit begins with its first row of ``start`` in the range; ties by the smallest class. A cohort is the calendar step of that row
in the project's time zone (weeks begin on Monday), or the class of ``by`` in it. Periods are spans since the unit's own start:
period k is [start + edge k, start + edge k+1), and it is closed once its end is not after ``as_of_us``: only units whose period is
closed are counted in it. Nothing after ``as_of_us`` is read.

``as_of_us`` is the earliest of what the sources declare (``through``), else the latest row over them, and never after now.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

from sqlglot import exp

from payoff.errors import DataError
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Cohort, Event, Spend
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.events import (
    MOST_VALUE,
    EventProfile,
    clock_us,
    no_figure,
    outcome_columns,
    profile,
    profile_step,
    rows_of,
)
from payoff.warehouse.fused_journeys import RetentionWalk
from payoff.warehouse.query import Query, column, fragment, sql
from payoff.warehouse.sources import Catalog, as_id, to_us
from payoff.warehouse.statements import Step
from payoff.warehouse.units import placeholder
from payoff.warehouse.walks import Walker, Walks

Every = Literal["day", "week", "month"]
DAY_US = 86_400_000_000
MOST_CLASSES = 30
"""Classes of ``by`` that stand alone, by size; the rest are "(other)", and NULL is "(none)"."""
_OWN_NAMES = ("(all)", "(other)", "(none)")
_EPOCH = date(1970, 1, 1)
_AHEAD_US = DAY_US
_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}


@dataclass(frozen=True, slots=True)
class CohortCounts:
    """One cohort. ``eligible[k]`` units have closed period k; of them ``active[k]`` were active (empty without activity).

    ``total[k]`` and ``squares[k]`` are the sum and the sum of squares, over the eligible units, of what each brought up to the end of
    period k (empty without revenue). ``starts_us`` to ``ends_us`` is the part of the calendar step inside the range (None for a
    class of ``by``); ``cost`` is what was spent in it, None where no spending is recorded.
    """

    name: str
    units: int
    eligible: tuple[int, ...]
    active: tuple[int, ...] = ()
    total: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()
    starts_us: int | None = None
    ends_us: int | None = None
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class StepActivity:
    """Units active in one closed calendar step: of them ``new`` never before, ``returning`` in the step before too.

    ``lapsed``: active in the step before and not in this one. ``first`` marks the first step with any row at all.
    """

    step: str
    active: int
    new: int
    returning: int
    lapsed: int
    first: bool


@dataclass(frozen=True, slots=True)
class StepDays:
    """``units`` active in one closed calendar step of ``days`` days: sum and sum of squares of their active days.

    ``partly``: the first step with any row, whose first day has none: recording seems to begin within it.
    """

    step: str
    days: int
    units: int
    total: int
    squares: int
    partly: bool = False


@dataclass(frozen=True, slots=True)
class CohortsData:
    """``edges_us``: period k lasts from edge k to edge k+1 after the start. ``cost``: all spending in the range up to the end of
    the last closed step, with its own bounds; None without any.

    ``before_start``: rows by source that lie before their unit's start, which count nowhere. ``earlier_units`` began before the
    range already. ``dates_only`` are sources whose clock is a date.
    """

    sources: Mapping[str, EventProfile]
    sql: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    as_of_us: int | None
    left_out: Mapping[str, int]
    edges_us: tuple[int, ...]
    cohorts: tuple[CohortCounts, ...]
    lifecycle: tuple[StepActivity, ...] = ()
    stickiness: tuple[StepDays, ...] = ()
    cost: float | None = None
    cost_units: int = 0
    before_start: Mapping[str, int] = field(default_factory=dict)
    earlier_units: int = 0
    dates_only: tuple[str, ...] = ()
    clock_changes: int = 0


def edges_of(declared: Cohort) -> tuple[int, ...]:
    """Where periods end and begin, in microseconds since the start: 0, then the end of each."""
    kept = declared.retention
    if kept.kind == "bracket":
        return (0, *(span // timedelta(microseconds=1) for span in kept.brackets))
    period = kept.period // timedelta(microseconds=1)
    return tuple(period * k for k in range(kept.periods + 2))


# ---------------------------------------------------------------- the calendar


def step_of(day: date, every: Every) -> int:
    """The number of the calendar step that holds ``day``; that of 1970-01-01 is 0."""
    if every == "month":
        return (day.year - 1970) * 12 + day.month - 1
    days = (day - _EPOCH).days
    return days if every == "day" else (days + 3) // 7


def first_day(step: int, every: Every) -> date:
    """The first day of a calendar step: its name."""
    if every == "month":
        return date(1970 + step // 12, step % 12 + 1, 1)
    return _EPOCH + timedelta(days=step if every == "day" else 7 * step - 3)


def begins_us(step: int, every: Every, zone: str) -> int:
    """When a calendar step begins in ``zone``."""
    day = first_day(step, every)
    return to_us(datetime(day.year, day.month, day.day), zone)


def offsets_of(zone: str, low_us: int, high_us: int) -> list[tuple[int, int]]:
    """(from when, microseconds ahead of UTC) for each stretch of ``zone`` between two times; the first one's start is ``low_us``.

    Found by halving between days whose offsets differ, to the second: no zone changes twice a day.
    """
    tz = ZoneInfo(zone)

    def ahead(second: int) -> int:
        offset = datetime.fromtimestamp(second, UTC).astimezone(tz).utcoffset()
        assert offset is not None
        return offset // timedelta(microseconds=1)

    at, last = low_us // 1_000_000, -(-high_us // 1_000_000)
    out = [(low_us, ahead(at))]
    while at < last:
        after = min(at + 86_400, last)
        if ahead(after) != out[-1][1]:
            low, high = at, after
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if ahead(middle) == out[-1][1] else (low, middle)
            out.append((high * 1_000_000, ahead(high)))
        at = after
    return out


@dataclass(frozen=True, slots=True)
class _Facts:
    """What only the data can tell; in a plan, placeholders. ``ahead`` is how far local time is ahead of ``us``, a column."""

    as_of: exp.Expr
    as_of_us: int | None
    offsets: tuple[tuple[int, int], ...] | None

    def local(self, us: str) -> exp.Expr:
        """Local microseconds of the column ``us``. A sum over the few stretches of the span: asking the zone of each row
        costs more than all else that is done to it."""
        at = exp.column(us)
        if self.offsets is None:
            return fragment("$at + $ahead", at=at, ahead=placeholder("local_offset_us"))
        (_, ahead), *later = self.offsets
        if not later:
            return fragment("$at + $ahead", at=at, ahead=ahead)
        case = exp.Case()
        for (until, _), (_, offset) in zip(later, self.offsets, strict=False):
            case = case.when(fragment("$at < $until", at=at, until=until), exp.convert(offset))
        return exp.Add(this=at.copy(), expression=case.else_(exp.convert(self.offsets[-1][1])))

    def day(self, us: str) -> exp.Expr:
        """The local day of ``us`` since 1970-01-01. A week is added first: ``//`` cuts towards zero."""
        return fragment("(($local + 604800000000) // 86400000000 - 7)", local=exp.paren(self.local(us)))

    def step(self, us: str, every: Every) -> exp.Expr:
        day = self.day(us)
        if every == "day":
            return day
        if every == "week":
            return fragment("(($d + 3) // 7)", d=day)
        return fragment(
            """((year(DATE '1970-01-01' + CAST($d AS INTEGER)) - 1970) * 12
               + month(DATE '1970-01-01' + CAST($d AS INTEGER)) - 1)""",
            d=day,
        )


# ---------------------------------------------------------------- the statements


class _Statements:
    """The statements of one cohort, bound. ``tables`` are those they keep."""

    def __init__(self, catalog: Catalog, design: JourneyDesign) -> None:
        assert isinstance(design.declared, Cohort)
        self.catalog, self.design, self.declared = catalog, design, design.declared
        self.edges = edges_of(self.declared)
        self._name = re.sub(r"\W", "_", design.name)
        self.starts, self.money = f"{self._name}_starts", f"{self._name}_revenue"
        self.walked = f"{self._name}_walked"
        self.tables = [self.starts, self.money, self.walked]
        self.tables += [self.days(every) for every in ("day", "week", "month")]
        self._cast = self._key_type()

    def days(self, every: str) -> str:
        return f"{self._name}_by_{every}"

    @property
    def events(self) -> list[Event]:
        revenue = None if self.declared.revenue is None else self.declared.revenue.event
        return [e for e in (self.declared.start, self.declared.activity, revenue) if e is not None]

    def _key_type(self) -> str | None:
        """The type that units are joined on: their own where the sources agree, BIGINT where all fit it, else text."""
        views = [self.catalog.view(e.source) for e in self.events]
        kinds = {view.type_of(view.unit(self.design.entity)) for view in views}
        return None if len(kinds) == 1 else "BIGINT" if kinds <= _INTEGERS else "VARCHAR"

    def _rows(
        self,
        event: Event,
        columns: Mapping[str, exp.Expr] | None = None,
        *,
        distinct: bool = False,
        low_us: int | None = None,
        high_us: int | None = None,
    ) -> Query:
        d = self.design
        rows = rows_of(
            self.catalog, event, d.entity, d.now_us, columns, distinct=distinct, low_us=low_us, high_us=high_us
        )
        if self._cast is None:
            return rows
        view = self.catalog.view(event.source)
        unit: exp.Expr = exp.column("unit")
        if self._cast == "VARCHAR":
            unit = as_id(unit, view.type_of(view.unit(d.entity)))
        names = [exp.column(name, quoted=True) for name in columns or {}]
        return sql(
            "SELECT $unit AS unit, us, $names FROM raw" if names else "SELECT $unit AS unit, us FROM raw",
            unit=exp.cast(unit, self._cast),
            raw=rows,
            **({"names": names} if names else {}),
        )

    def _step(self, name: str, purpose: str, reads: str, texts: Sequence[str | None], query: Query) -> Step:
        columns: tuple[str, ...] = ()
        if reads:
            view = self.catalog.view(reads)
            columns = tuple(sorted(view.referenced([t for t in (*texts, view.unit_text(self.design.entity)) if t])))
        return Step(name, reads, purpose, columns, (self.design.name,), query)

    def _period(self, us: exp.Expr) -> exp.Expr:
        """The period that a time since the start lies in: how many ends it has reached, which is also how many periods have closed by
        then."""
        ends = self.edges[1:]
        if self.declared.retention.kind != "bracket":
            return fragment("least($us // $period, $most)", us=exp.paren(us), period=ends[0], most=len(ends))
        case = exp.Case()
        for k, end in enumerate(ends):
            case = case.when(fragment("$us < $end", us=exp.paren(us), end=end), exp.convert(k))
        return case.else_(exp.convert(len(ends)))

    def keep_starts(self, facts: _Facts, walk: RetentionWalk | None = None) -> Step:
        declared, d = self.declared, self.design
        view = self.catalog.view(declared.start.source)
        high = facts.as_of_us if d.ends_us is None else min(d.ends_us - 1, facts.as_of_us or d.ends_us - 1)
        closed = self._period(fragment("$as_of - t0", as_of=facts.as_of))
        if walk is not None:
            query = self._walked_starts(walk, facts.step("t0", declared.every), closed)
        elif declared.by is None:
            query = sql(
                """
                SELECT CAST(row_number() OVER () AS UINTEGER) AS u, unit, t0, $step AS c, $closed AS m
                FROM (SELECT unit, min(us) AS t0 FROM start_rows GROUP BY unit) AS firsts
                """,
                start_rows=self._rows(declared.start, low_us=d.starts_us, high_us=high),
                step=facts.step("t0", declared.every),
                closed=closed,
            )
        else:
            own = ", ".join(exp.Literal.string(n).sql() for n in _OWN_NAMES)
            text = fragment("CAST($by AS VARCHAR)", by=view.scalar(declared.by))
            # a class that is called as one of ours is quoted, so that the two stay apart
            named = fragment(
                f"CASE WHEN $by IS NULL THEN '(none)' WHEN $by IN ({own}) THEN '\"' || $by || '\"' ELSE $by END",
                by=text,
            )
            query = sql(
                """
                SELECT CAST(row_number() OVER () AS UINTEGER) AS u, f.unit, f.t0, CASE WHEN t.place <= $most THEN f.c ELSE '(other)' END AS c,
                       $closed AS m
                FROM firsts AS f JOIN top AS t ON f.c = t.c
                """,
                firsts=sql(
                    """
                    SELECT unit, struct_extract(min({'us': us, 'c': c}), 'us') AS t0, struct_extract(min({'us': us, 'c': c}), 'c') AS c
                    FROM start_rows GROUP BY unit
                    """,
                    start_rows=self._rows(declared.start, {"c": named}, low_us=d.starts_us, high_us=high),
                ),
                top=sql("SELECT c, row_number() OVER (ORDER BY count(*) DESC, c) AS place FROM firsts GROUP BY c"),
                most=MOST_CLASSES,
                closed=closed,
            )
        return self._step(
            "starts",
            "Each unit's first row, its cohort, and how many of its periods are closed",
            view.name if walk is None else "",  # a walk has read the rows
            [declared.start.where, declared.by],
            query,
        )

    def walk(self) -> RetentionWalk | str:
        """Starts and activity from one walk over prepared rows, or why not, in a clause."""
        declared, d = self.declared, self.design
        if declared.by is not None or declared.activity is None or self._cast is not None:
            return "it asks for more than when units were active"
        periods = len(self.edges) - 1
        return RetentionWalk.of(self.catalog, declared.start, declared.activity, d.entity, d.now_us, periods)

    def walker(self, walk: RetentionWalk, as_of_us: int) -> Walker:
        """Who makes ``walk``, which then has found the table ``walked``."""
        declared, d = self.declared, self.design
        assert declared.activity is not None
        step = self._step(
            "starts and activity",
            "Each unit's first row and the periods of its activity: rows of the prepared copy, followed outside SQL in one walk",
            declared.start.source,
            [declared.start.where, declared.activity.where],
            walk.rows.query(walk.reads),
        )
        high = as_of_us if d.ends_us is None else min(d.ends_us - 1, as_of_us)
        unbounded = declared.retention.kind == "unbounded"
        return walk.walker(self.edges, unbounded, d.starts_us, high, as_of_us, step)

    def _walked_starts(self, walk: RetentionWalk, step: exp.Expr, closed: exp.Expr) -> Query:
        """As ``keep_starts``, with the number of a unit for ``u``; its id is looked up only where rows are joined to it."""
        parts: dict[str, Any] = {"step": step, "closed": closed}
        if self.declared.revenue is None and self.design.starts_us is None:
            return sql(
                f"SELECT CAST(unit AS UINTEGER) AS u, unit, t0, $step AS c, $closed AS m FROM {self.walked}", **parts
            )
        return sql(
            f"""
            SELECT CAST(w.unit AS UINTEGER) AS u, n.unit, t0, $step AS c, $closed AS m
            FROM {self.walked} AS w JOIN read_parquet($units) AS n ON n.payoff_unit = w.unit
            """,
            units=exp.Literal.string(walk.rows.layout.units),
            **parts,
        )

    def sizes(self) -> Step:
        query = sql(f"SELECT c, m, count(*) AS n FROM {self.starts} GROUP BY c, m")
        return self._step("cohort sizes", "Units of each cohort by how many periods are closed", "", [], query)

    def earlier(self) -> Step:
        declared, d = self.declared, self.design
        assert d.starts_us is not None
        query = sql(
            f"SELECT count(*) AS n FROM {self.starts} WHERE unit IN (SELECT unit FROM earlier)",
            earlier=self._rows(declared.start, high_us=d.starts_us - 1),
        )
        purpose = "Units of the cohorts that began before the range already"
        return self._step("earlier starts", purpose, declared.start.source, [declared.start.where], query)

    @property
    def _bits(self) -> str:
        return "UINTEGER" if len(self.edges) <= 31 else "UBIGINT" if len(self.edges) <= 62 else "UHUGEINT"

    def active(self, facts: _Facts, walked: bool = False) -> Step:
        """Cohort, period, units active in it whose period is closed; and, without a cohort, rows before their unit's start.

        A unit's active periods are bits of one number, so that a period counts once however many rows it has. Unbounded: any later
        period counts too, so the last one says it all (``k`` is that, by closed periods ``m``). Units are never written down: that
        would cost a quarter of the whole.
        """
        activity, most = self.declared.activity, len(self.edges) - 1
        assert activity is not None
        period = self._period(fragment("r.us - s.t0"))
        if self.declared.retention.kind == "unbounded":
            what = fragment("max($k) FILTER (WHERE r.us >= s.t0)", k=period)
            answer = "SELECT c, m, seen AS k, n FROM grouped WHERE seen IS NOT NULL"
            parts: dict[str, int] = {}
        else:
            what = fragment(
                f"""bit_or(CASE WHEN r.us >= s.t0 AND r.us < s.t0 + $reach
                    THEN CAST(1 AS {self._bits}) << CAST(greatest(least($k, $last), 0) AS {self._bits}) END)""",
                k=period,
                last=most - 1,
                reach=self.edges[-1],
            )
            answer = f"""
                SELECT g.c, NULL AS m, q.k, sum(g.n) AS n FROM grouped AS g CROSS JOIN range($periods) AS q(k)
                WHERE q.k < g.m AND ((g.seen >> CAST(q.k AS {self._bits})) & 1) = 1 GROUP BY g.c, q.k
                """
            parts = {"periods": most}
        if walked:
            kind = "BIGINT" if self.declared.retention.kind == "unbounded" else self._bits
            seen = sql(
                f"SELECT CAST(unit AS UINTEGER) AS u, CAST(seen AS {kind}) AS seen, early FROM {self.walked} WHERE rows > 0"
            )
        else:
            seen = sql(
                f"""
                SELECT s.u, $what AS seen, count(*) FILTER (WHERE r.us < s.t0) AS early
                FROM activity_rows AS r JOIN {self.starts} AS s ON r.unit = s.unit GROUP BY s.u
                """,
                what=what,
                activity_rows=self._rows(activity, high_us=facts.as_of_us),
            )
        query = sql(
            f"{answer} UNION ALL SELECT NULL, NULL, NULL, sum(early) FROM grouped",
            seen_by_unit=seen,
            grouped=sql(
                f"""
                SELECT s.c, s.m, a.seen, count(*) AS n, sum(a.early) AS early
                FROM {self.starts} AS s JOIN seen_by_unit AS a ON s.u = a.u GROUP BY s.c, s.m, a.seen
                """
            ),
            **parts,
        )
        purpose = "Units of each cohort active in each closed period"
        return self._step("retention", purpose, "" if walked else activity.source, [activity.where], query)

    def keep_money(self, facts: _Facts) -> Step:
        revenue = self.declared.revenue
        assert revenue is not None
        query = sql(
            f"""
            SELECT s.u, s.c, s.m, CASE WHEN r.us < s.t0 THEN -1 ELSE $k END AS k, sum(r.value) AS x, count(*) AS n,
                   count(r.value) AS valued, count(*) FILTER (WHERE $odd) AS bad
            FROM revenue_rows AS r JOIN {self.starts} AS s ON r.unit = s.unit GROUP BY ALL
            """,
            odd=no_figure(column("value", "r")),
            k=self._period(fragment("r.us - s.t0")),
            revenue_rows=self._rows(
                revenue.event, outcome_columns(self.catalog, revenue), distinct=True, high_us=facts.as_of_us
            ),
        )
        purpose = "What each unit brought in each period since its start"
        return self._step("revenue by unit", purpose, revenue.event.source, [revenue.event.where, revenue.value], query)

    def odd_money(self) -> Step:
        query = sql(
            f"""
            SELECT coalesce(sum(n) FILTER (WHERE k < 0), 0) AS early, coalesce(sum(n - valued), 0) AS without,
                   coalesce(sum(bad), 0) AS bad
            FROM {self.money}
            """
        )
        return self._step(
            "revenue left out", "Rows before their unit's start, without a value, or not finite", "", [], query
        )

    def paid(self) -> Step:
        """By cohort, closed periods m and period k: what is added in k to the sum, and to the sum of squares, of the running totals.

        A running total C that grows by x adds x(2C - x) to the squares: so no unit needs a row for a period without revenue.
        """
        query = sql(
            f"""
            SELECT c, m, k, fsum(x) AS added, fsum(x * (2 * run - x)) AS squares
            FROM (SELECT c, m, k, x, sum(x) OVER (PARTITION BY u ORDER BY k ROWS UNBOUNDED PRECEDING) AS run
                  FROM {self.money} WHERE k >= 0 AND k < m AND x IS NOT NULL) AS running
            GROUP BY c, m, k
            """
        )
        return self._step("cumulative revenue", "Sums and squares of running totals over closed periods", "", [], query)

    def spending_profile(self) -> Step:
        spend, view, base = self.spending_rows()
        t = clock_us(view)
        query = sql(
            """
            SELECT count(*) AS n, count(*) FILTER (WHERE $t IS NULL) AS without_time, count(*) FILTER (WHERE $t < 0) AS before_1970,
                   count(*) FILTER (WHERE $t > $most) AS ahead, min($t) FILTER (WHERE $t >= 0 AND $t <= $most) AS first_us,
                   max($t) FILTER (WHERE $t >= 0 AND $t <= $most) AS last_us, count(*) FILTER (WHERE $v IS NULL) AS without,
                   count(*) FILTER (WHERE $odd) AS bad
            FROM base
            """,
            t=t,
            most=self.design.now_us + _AHEAD_US,
            v=view.number(spend.column),
            odd=no_figure(view.number(spend.column)),
            base=base,
        )
        return Step(
            f"profile {view.name}",
            view.name,
            "Count rows of spending",
            self._spend_columns(),
            (self.design.name,),
            query,
        )

    def spending(self, facts: _Facts) -> Step:
        spend, view, base = self.spending_rows()
        d = self.design
        bounds = [fragment("us >= 0")]
        bounds += [fragment("us >= $low", low=d.starts_us)] if d.starts_us is not None else []
        bounds += [fragment("us < $high", high=d.ends_us)] if d.ends_us is not None else []
        query = sql(
            """
            SELECT $step AS c, sum(v) AS cost FROM (SELECT $t AS us, $v AS v FROM base) AS spent
            WHERE v IS NOT NULL AND us <= $most AND $bounds GROUP BY ALL
            """,
            step=facts.step("us", self.declared.every),
            t=clock_us(view),
            v=view.number(spend.column),
            most=d.now_us + _AHEAD_US,
            bounds=exp.and_(*bounds),
            base=base,
        )
        purpose = "What was spent in each calendar step"
        return Step("spending", view.name, purpose, self._spend_columns(), (self.design.name,), query)

    def spending_rows(self) -> tuple[Spend, Any, Query]:
        spend = self.declared.cost
        assert spend is not None
        view = self.catalog.view(spend.source)
        base = view.rows()
        return spend, view, Query(base if spend.where is None else base.where(view.condition(spend.where)))

    def _spend_columns(self) -> tuple[str, ...]:
        spend, view, _ = self.spending_rows()
        return tuple(sorted(view.referenced([t for t in (spend.column, spend.where) if t is not None])))

    def keep_days(self, every: Every, facts: _Facts) -> Step:
        activity = self.declared.activity
        assert activity is not None
        by_day = {"day": None, "week": "day - (7 * step - 3)", "month": None}[every]
        day = facts.day("us")
        if every == "month":
            by_day = "dayofmonth(DATE '1970-01-01' + CAST(day AS INTEGER)) - 1"
        bits = [] if by_day is None else [
            exp.alias_(fragment(f"bit_or(CAST(1 AS UINTEGER) << CAST({by_day} AS UINTEGER))"), "days")
        ]  # fmt: skip
        query = sql(
            "SELECT unit, step, $bits FROM stepped GROUP BY unit, step"
            if bits
            else "SELECT DISTINCT unit, step FROM stepped",
            stepped=sql(
                "SELECT unit, $day AS day, $step AS step FROM activity_rows",
                day=day,
                step=facts.step("us", every),
                activity_rows=self._rows(activity, high_us=facts.as_of_us),
            ),
            **({"bits": bits} if bits else {}),
        )
        purpose = f"The calendar {every}s in which each unit was active"
        return self._step(f"active by {every}", purpose, activity.source, [activity.where], query)

    def lifecycle(self, every: str) -> Step:
        query = sql(
            f"""
            SELECT step, count(*) AS active, count(*) FILTER (WHERE gap IS NULL) AS new, count(*) FILTER (WHERE gap = 1) AS returning_units
            FROM (SELECT step, step - lag(step) OVER (PARTITION BY unit ORDER BY step) AS gap FROM {self.days(every)}) AS gaps
            GROUP BY step ORDER BY step
            """
        )
        return self._step("lifecycle", f"Units new and returning in each {every}", "", [], query)

    def stickiness(self, every: str) -> Step:
        query = sql(
            f"""
            SELECT step, count(*) AS units, sum(d) AS total, sum(d * d) AS squares
            FROM (SELECT step, CAST(bit_count(days) AS BIGINT) AS d FROM {self.days(every)}) AS counted
            GROUP BY step ORDER BY step
            """
        )
        return self._step("stickiness", f"Active days of the units of each {every}", "", [], query)


def plan(catalog: Catalog, design: JourneyDesign, walks: Walks | None = None) -> list[Step]:
    """The statements in order; what only the data can tell is left as $parameters. Reads no rows."""
    statements = _Statements(catalog, design)
    declared = statements.declared
    facts = _Facts(placeholder("as_of_us"), None, ((0, 0),) if design.zone == "UTC" else None)
    steps = [profile_step(catalog, event, design.entity, ids=ids) for event, ids in _to_profile(statements)]
    steps += [statements.spending_profile()] if declared.cost is not None else []
    walk = statements.walk()
    walked = walk if isinstance(walk, RetentionWalk) else None
    if walked is not None:
        walker = statements.walker(walked, 0)
        (walks or Walks(catalog.engine)).plan(walker)
        steps.append(walker.step)
    steps += [statements.keep_starts(facts, walked).keeping(statements.starts), statements.sizes()]
    steps += [statements.earlier()] if design.starts_us is not None else []
    if declared.activity is not None:
        steps.append(statements.active(facts, walked=walked is not None))
    if declared.revenue is not None:
        steps += [statements.keep_money(facts).keeping(statements.money), statements.odd_money(), statements.paid()]
    steps += [statements.spending(facts)] if declared.cost is not None else []
    steps += [statements.keep_days(every, facts).keeping(statements.days(every)) for every in _calendars(declared)]
    steps += [statements.lifecycle(declared.lifecycle)] if declared.lifecycle is not None else []
    steps += [statements.stickiness(declared.stickiness)] if declared.stickiness is not None else []
    return steps


def _calendars(declared: Cohort) -> list[Every]:
    asked = (declared.lifecycle, declared.stickiness)
    return [every for every in ("day", "week", "month") if every in asked]


def _to_profile(statements: _Statements) -> list[tuple[Event, bool]]:
    """Each event once, and whether repeated ids matter in it: a repeated order counts once, a repeated visit never twice."""
    revenue = statements.declared.revenue
    seen: dict[tuple[str, str | None], tuple[Event, bool]] = {}
    for event in statements.events:
        money = revenue is not None and event is revenue.event
        key = (event.source, event.where)
        seen[key] = (event, money or (key in seen and seen[key][1]))
    return list(seen.values())


# ---------------------------------------------------------------- running


@dataclass(slots=True)
class _Run:
    """Runs steps and remembers them."""

    catalog: Catalog
    steps: list[Step] = field(default_factory=list)

    def fetch(self, step: Step) -> list[dict[str, Any]]:
        self.steps.append(step)
        rows: list[dict[str, Any]] = self.catalog.engine.fetch(step.query, step.name, step.reads or None).to_pylist()
        return rows

    def keep(self, table: str, step: Step) -> None:
        self.steps.append(step.keeping(table))
        self.catalog.engine.keep(table, step.query, step.name, step.reads or None)


@contextmanager
def _dropping(catalog: Catalog, tables: Sequence[str]) -> Iterator[None]:
    try:
        yield
    finally:
        for table in tables:
            catalog.engine.drop(table)


def read(catalog: Catalog, design: JourneyDesign) -> CohortsData:
    """Run the plan. Raises DataError where a source or a value is not what its definition says."""
    return begin(catalog, design, Walks(catalog.engine)).read()


def begin(catalog: Catalog, design: JourneyDesign, walks: Walks) -> _Reading:
    """Look at what there is, and plan the walk that it takes, if it takes one; ``read`` of what comes back runs the rest. Both raise
    DataError."""
    statements, run = _Statements(catalog, design), _Run(catalog)
    declared = statements.declared
    profiles: dict[str, EventProfile] = {}
    for event, ids in _to_profile(statements):
        found, steps = profile(catalog, event, design.entity, design.now_us, ids=ids)
        run.steps += steps
        profiles[event.source if event.source not in profiles else f"{event.source} where {event.where}"] = found
    as_of = _as_of(catalog, profiles, design.now_us)
    left_out: dict[str, int] = {}
    for found in profiles.values():
        left_out |= found.left_out()
    if declared.cost is not None:
        spent = _spending_profile(catalog, statements, run, left_out)
        profiles[spent.source if spent.source not in profiles else f"{spent.source} (cost)"] = spent
    reading = _Reading(statements, run, profiles, as_of, left_out, walks)
    walk = None if as_of is None else statements.walk()
    if as_of is not None and isinstance(walk, RetentionWalk):
        reading.walk, reading.walker = walk, statements.walker(walk, as_of)
        walks.plan(reading.walker)
    return reading


@dataclass(slots=True)
class _Reading:
    """A cohort that was looked at."""

    statements: _Statements
    run: _Run
    profiles: dict[str, EventProfile]
    as_of: int | None
    left_out: dict[str, int]
    walks: Walks
    walk: RetentionWalk | None = None
    walker: Walker | None = None

    def follow(self) -> None:
        """Starts and activity from the walk, if it takes one."""
        if self.walk is not None and self.walker is not None:
            self.walks.make(self.walker)
            self.run.steps.append(self.walker.step)
            engine = self.statements.catalog.engine
            assert isinstance(engine, DuckDBEngine) and self.walk.found is not None
            engine.show(self.statements.walked, self.walk.found)

    def read(self) -> CohortsData:
        return _read(self)


def _read(reading: _Reading) -> CohortsData:
    statements, run, profiles, as_of, left_out = (
        reading.statements,
        reading.run,
        reading.profiles,
        reading.as_of,
        reading.left_out,
    )
    catalog, design, declared = statements.catalog, statements.design, statements.declared
    spans = [us for p in profiles.values() for us in (p.first_us, p.last_us) if us is not None]
    dates = tuple(
        sorted({s for s in (p.source for p in profiles.values()) if (c := catalog.view(s).clock) and c.kind == "DATE"})
    )
    if as_of is None or not spans:
        return CohortsData(profiles, _texts(run.steps), tuple(run.steps), as_of, left_out, statements.edges, ())
    offsets = offsets_of(design.zone, min(spans), max(*spans, as_of))
    facts = _Facts(exp.convert(as_of), as_of, tuple(offsets))
    early: dict[str, int] = {}
    with _dropping(catalog, statements.tables):
        reading.follow()
        run.keep(statements.starts, statements.keep_starts(facts, reading.walk))
        sizes = run.fetch(statements.sizes())
        earlier = int(run.fetch(statements.earlier())[0]["n"]) if design.starts_us is not None and sizes else 0
        active: list[dict[str, Any]] = []
        paid: list[dict[str, Any]] = []
        if declared.activity is not None:
            active = run.fetch(statements.active(facts, walked=reading.walk is not None))
            early[declared.activity.source] = sum(int(row["n"] or 0) for row in active if row["c"] is None)
            active = [row for row in active if row["c"] is not None]
        if declared.revenue is not None:
            run.keep(statements.money, statements.keep_money(facts))
            odd, source = run.fetch(statements.odd_money())[0], declared.revenue.event.source
            if odd["bad"]:
                raise DataError(
                    f"{odd['bad']:,} values of revenue are NaN or infinite, or beyond {MOST_VALUE:g}; leave them out with where:"
                    f' "abs({declared.revenue.value}) <= {MOST_VALUE:g}" or mend them at the source',
                    source=source,
                    column=declared.revenue.value,
                    count=int(odd["bad"]),
                )
            early[source] = max(int(odd["early"]), early.get(source, 0))
            left_out |= {f"rows of {source} without a value": int(odd["without"])} if odd["without"] else {}
            paid = run.fetch(statements.paid())
        costs = {int(r["c"]): float(r["cost"]) for r in run.fetch(statements.spending(facts))} if declared.cost else {}
        cohorts = _cohorts(design, statements, sizes, active, paid, costs)
        cost, cost_units = _whole_cost(design, statements, cohorts, costs, as_of)
        for every in _calendars(declared):
            run.keep(statements.days(every), statements.keep_days(every, facts))
        lifecycle = _lifecycle(design, statements, run, as_of)
        begun = None if declared.activity is None else profiles[declared.activity.source].first_us
        stickiness = _stickiness(design, statements, run, as_of, begun)
    return CohortsData(
        sources=profiles,
        sql=_texts(run.steps),
        steps=tuple(run.steps),
        as_of_us=as_of,
        left_out=left_out,
        edges_us=statements.edges,
        cohorts=cohorts,
        lifecycle=lifecycle,
        stickiness=stickiness,
        cost=cost,
        cost_units=cost_units,
        before_start={source: n for source, n in early.items() if n},
        earlier_units=earlier,
        dates_only=dates,
        clock_changes=len(offsets) - 1,
    )


def _texts(steps: Sequence[Step]) -> tuple[tuple[str, str], ...]:
    return tuple((step.name, step.sql) for step in steps)


def _as_of(catalog: Catalog, profiles: Mapping[str, EventProfile], now_us: int) -> int | None:
    through = [p.through_us for p in profiles.values() if p.through_us is not None]
    if not through:
        return None
    declared = [
        p.through_us
        for p in profiles.values()
        if p.through_us is not None and catalog.view(p.source).source.through is not None
    ]
    return min(*declared, max(through), now_us) if declared else min(max(through), now_us)


def _spending_profile(catalog: Catalog, statements: _Statements, run: _Run, left_out: dict[str, int]) -> EventProfile:
    spend, view, _ = statements.spending_rows()
    found = run.fetch(statements.spending_profile())[0]
    if found["bad"]:
        raise DataError(
            f"{found['bad']:,} values of spending are NaN or infinite, or beyond {MOST_VALUE:g}; leave them out with where or mend them at the source",
            source=view.name,
            column=spend.column,
            count=int(found["bad"]),
        )
    lost = {k: int(found[k]) for k in ("without_time", "before_1970", "ahead")}
    first, last = (None if found[k] is None else int(found[k]) for k in ("first_us", "last_us"))
    declared = view.source.through
    out = EventProfile(
        source=view.name,
        rows=max(int(found["n"]) - sum(lost.values()), 0),
        without_unit=0,
        first_us=first,
        last_us=last,
        through_us=last if declared is None or view.clock is None else to_us(declared, view.clock.zone),
        fingerprint=catalog.fingerprint(view.relation),
        beneath=(),
        dates=view.clock is not None and view.clock.kind == "DATE",
        **lost,
    )
    left_out |= out.left_out()
    left_out |= {f"rows of {view.name} without a cost": int(found["without"])} if found["without"] else {}
    return out


def _cohorts(
    design: JourneyDesign,
    statements: _Statements,
    sizes: Sequence[Mapping[str, Any]],
    active: Sequence[Mapping[str, Any]],
    paid: Sequence[Mapping[str, Any]],
    costs: Mapping[int, float],
) -> tuple[CohortCounts, ...]:
    declared, periods = statements.declared, len(statements.edges) - 1
    closed: dict[Any, list[int]] = {}
    for row in sizes:
        closed.setdefault(row["c"], [0] * (periods + 1))[int(row["m"])] += int(row["n"])
    came = {c: [0] * periods for c in closed}
    for row in active:
        if declared.retention.kind == "unbounded":
            for k in range(min(int(row["m"]), int(row["k"]) + 1, periods)):
                came[row["c"]][k] += int(row["n"])
        else:
            came[row["c"]][int(row["k"])] += int(row["n"])
    totals, squares = ({c: [0.0] * periods for c in closed} for _ in range(2))
    for row in paid:
        for k in range(int(row["k"]), min(int(row["m"]), periods)):
            totals[row["c"]][k] += float(row["added"])
            squares[row["c"]][k] += float(row["squares"])
    out = []
    for c in sorted(closed, key=lambda c: (c in _OWN_NAMES, c) if declared.by is not None else (False, int(c))):
        name, low, high = str(c), None, None
        if declared.by is None:
            name, (low, high) = first_day(int(c), declared.every).isoformat(), _within(design, int(c), declared.every)
        out.append(
            CohortCounts(
                name=name,
                units=sum(closed[c]),
                eligible=tuple(sum(closed[c][k + 1 :]) for k in range(periods)),
                active=tuple(came[c]) if declared.activity is not None else (),
                total=tuple(totals[c]) if declared.revenue is not None else (),
                squares=tuple(squares[c]) if declared.revenue is not None else (),
                starts_us=low,
                ends_us=high,
                cost=costs.get(int(c)) if declared.by is None else None,
            )
        )
    return tuple(out)


def _within(design: JourneyDesign, step: int, every: Every) -> tuple[int, int]:
    """The part of a calendar step that is in the range."""
    low, high = begins_us(step, every, design.zone), begins_us(step + 1, every, design.zone)
    return (
        low if design.starts_us is None else max(low, design.starts_us),
        high if design.ends_us is None else min(high, design.ends_us),
    )


def _whole_cost(
    design: JourneyDesign,
    statements: _Statements,
    cohorts: Sequence[CohortCounts],
    costs: Mapping[int, float],
    as_of: int,
) -> tuple[float | None, int]:
    """Spending over the closed steps from the range's first on, and the units that began in them.

    Without a range it is from the first cohort's step on: earlier spending won units that are not here.
    """
    declared = statements.declared
    if not costs or not cohorts:
        return None, 0
    every = declared.every
    if declared.by is None:
        first = min(step_of(date.fromisoformat(c.name), every) for c in cohorts)
        units = sum(c.units for c in cohorts if c.ends_us is not None and c.ends_us <= as_of)
    else:
        query = sql(f"SELECT min(t0) AS first FROM {statements.starts}")
        first_us = int(statements.catalog.engine.row(query, "first start")["first"])
        first = _step_at(first_us, every, design.zone)
    last = max(s for s in costs) if design.ends_us is None else _step_at(design.ends_us - 1, every, design.zone)
    last = min(last, _step_at(as_of, every, design.zone))
    while last >= first and _within(design, last, every)[1] > as_of:
        last -= 1
    first = first if design.starts_us is None else min(first, _step_at(design.starts_us, every, design.zone))
    if last < first:
        return None, 0
    if declared.by is not None:
        low, high = _within(design, first, every)[0], _within(design, last, every)[1]
        query = sql(
            f"SELECT count(*) AS n FROM {statements.starts} WHERE t0 >= $low AND t0 < $high", low=low, high=high
        )
        units = int(statements.catalog.engine.row(query, "units won")["n"])
    else:
        end = _within(design, last, every)[1]
        units = sum(c.units for c in cohorts if c.ends_us is not None and c.ends_us <= end)
    return sum(cost for step, cost in costs.items() if first <= step <= last), units


def _step_at(us: int, every: Every, zone: str) -> int:
    return step_of(datetime.fromtimestamp(us // 1_000_000, UTC).astimezone(ZoneInfo(zone)).date(), every)


def _shown(design: JourneyDesign, step: int, every: Every, as_of: int) -> bool:
    """Is a calendar step over, and wholly in the range?"""
    low, high = begins_us(step, every, design.zone), begins_us(step + 1, every, design.zone)
    return (
        high <= as_of
        and (design.starts_us is None or low >= design.starts_us)
        and (design.ends_us is None or high <= design.ends_us)
    )


def _lifecycle(design: JourneyDesign, statements: _Statements, run: _Run, as_of: int) -> tuple[StepActivity, ...]:
    every = statements.declared.lifecycle
    if every is None:
        return ()
    found = {int(row["step"]): row for row in run.fetch(statements.lifecycle(every))}
    if not found:
        return ()
    first, out = min(found), []
    for step in range(first, _step_at(as_of, every, design.zone) + 1):
        if not _shown(design, step, every, as_of):
            continue
        now = found.get(step, {"active": 0, "new": 0, "returning_units": 0})
        before = int(found[step - 1]["active"]) if step - 1 in found else 0
        returning = int(now["returning_units"])
        out.append(
            StepActivity(
                step=first_day(step, every).isoformat(),
                active=int(now["active"]),
                new=int(now["new"]),
                returning=returning,
                lapsed=before - returning,
                first=step == first,
            )
        )
    return tuple(out)


def _stickiness(
    design: JourneyDesign, statements: _Statements, run: _Run, as_of: int, first_us: int | None
) -> tuple[StepDays, ...]:
    every = statements.declared.stickiness
    if every is None:
        return ()
    found = run.fetch(statements.stickiness(every))
    day = 0 if first_us is None else _step_at(first_us, "day", design.zone)
    return tuple(
        StepDays(
            step=first_day(step, every).isoformat(),
            days=(first_day(step + 1, every) - first_day(step, every)).days,
            units=int(row["units"]),
            total=int(row["total"]),
            squares=int(row["squares"]),
            partly=first_day(step, every) < first_day(day, "day") < first_day(step + 1, every),
        )
        for row in found
        if _shown(design, step := int(row["step"]), every, as_of)
    )

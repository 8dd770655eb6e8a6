"""Paths: what units met before an event, or after one, in order. Read as runs of touches, so that no pair of a touch and an event
is made: what a path takes is at most ``longest`` stops, whatever a unit did.

What counts. ``to``: touches in (event - window, event]. ``from``: touches in [event, event + window), of events whose window is over.
Touches are ordered by time, at one time by the order of the touchpoints. ``collapse`` makes a run of one touchpoint one stop. Of
a path ``to`` the last ``longest`` stops are kept, of one ``from`` the first. Each event is a journey, with a window of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from sqlglot import exp

from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Journey, Outcome
from payoff.stats.moments import Moments
from payoff.stats.quantile import outer_ranks
from payoff.warehouse.events import EventProfile
from payoff.warehouse.query import Query, fragment, sql
from payoff.warehouse.sources import Catalog
from payoff.warehouse.statements import Step
from payoff.warehouse.touches import Stop, Touches, outcome_readings
from payoff.warehouse.units import placeholder

FLOW_STOPS = 10
"""Stops from the event up to which a flow is counted."""
_LETTER = 48
"""A path is kept as one letter a stop, chr(code + 48)."""
_SPENT = (("touches",), (), ("runs",), ("marks", "events"), ("stretches",), ("spans",))
"""The tables that are not needed any more after each of the last six of ``_TABLES``."""
_TABLES = ("rows", "units", "events", "touches", "runs", "marks", "stretches", "spans", "stops", "journeys")


@dataclass(frozen=True, slots=True)
class PathCount:
    """``n`` journeys of ``units`` on one path (codes of stops; ``cut``: there are more). ``squares``: each unit's journeys on it,
    squared and summed; ``cross``: times all its journeys."""

    codes: tuple[int, ...]
    cut: bool
    n: int
    units: int
    squares: float
    cross: float


@dataclass(frozen=True, slots=True)
class EdgeCount:
    """``n`` journeys of ``units`` from one stop to the next; ``stop`` is its distance from the event (1 is beside it). None is
    the event, or (``empty``) that no touchpoint was met."""

    stop: int
    source: int | None
    target: int | None
    n: int
    units: int
    empty: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Median seconds from the first touch to the event over ``n`` journeys of ``units``, with the rows that hold it at the level."""

    value: float
    low: float
    high: float
    n: int
    units: int


@dataclass(frozen=True, slots=True, eq=False)
class PathData:
    """``paths`` are the commonest of enough units; ``untouched`` journeys met no touchpoint (None: none, or too few to tell).
    ``rest_units``: those of journeys on no path here. ``unripe``: events whose window is not over, in nothing. ``unseen``: journeys whose window begins before the first touch
    that the data holds. ``wait`` is a sentence where there is no median to give, None where none is asked for."""

    stops: tuple[Stop, ...]
    event: str
    journeys: int
    units: int
    squares: float
    paths: tuple[PathCount, ...]
    untouched: PathCount | None
    rest_units: int
    edges: tuple[EdgeCount, ...]
    wait: Wait | str | None
    unripe: int
    unseen: int
    left_out: Mapping[str, int]
    sources: Mapping[str, EventProfile]
    as_of_us: int
    steps: tuple[Step, ...]

    @property
    def sql(self) -> tuple[tuple[str, str], ...]:
        return tuple((step.name, step.sql) for step in self.steps)


def plan(catalog: Catalog, design: JourneyDesign) -> list[Step]:
    """The statements in order, with what only the data can tell left as $parameters. Reads no rows."""
    return list(_Kernel(catalog, design).planned())


def read(catalog: Catalog, design: JourneyDesign) -> PathData:
    """Run them. Raises DataError where a source or a column is not what the definition says."""
    kernel = _Kernel(catalog, design)
    try:
        return kernel.read()
    finally:
        for name in _TABLES:
            catalog.engine.drop(f"path_{name}")


class _Kernel:
    def __init__(self, catalog: Catalog, design: JourneyDesign) -> None:
        assert isinstance(design.declared, Journey)
        self.catalog, self.design, self.declared = catalog, design, design.declared
        self.to = self.declared.to is not None
        event = self.declared.to.event if self.declared.to is not None else self.declared.from_
        assert event is not None
        self.event = event.source
        self.window = round(self.declared.window.total_seconds() * 1e6)
        self.touches = Touches(catalog, design)
        (self.reading,) = outcome_readings(
            catalog, design, {self.event: Outcome(event=event)}
        )  # its worth is not asked
        self.text = len(self.touches.unit_types | {self.reading.unit_type}) > 1
        self.steps: list[Step] = []

    # ---------------------------------------------------------------- in order

    def planned(self) -> Iterator[Step]:
        yield from self.reading.plan()
        yield from self.touches.plan()
        yield self._rows().keeping("path_rows")
        yield self._units().keeping("path_units")
        yield self._events(placeholder("as_of") if not self.to else None).keeping("path_events")
        yield self._all()
        touches = self._touches(placeholder("first_event_less_window"), placeholder("last_event_and_window"))
        yield touches.keeping("path_touches")
        yield from (step.keeping(f"path_{name}") for name, step in zip(_TABLES[4:], self._shaped(), strict=True))
        yield self._counts(touched=True)
        yield self._counts(touched=False)
        if self.to:
            yield self._median()
            yield self._below(placeholder("median"))
            yield self._ends(placeholder("lower"), placeholder("upper"))
        yield self._flow()

    def read(self) -> PathData:
        self.steps += self.reading.look(self.catalog)
        self.touches.look()
        self.steps += self.touches.steps
        as_of = self._as_of()
        self._keep("rows", self._rows())
        self._keep("units", self._units())
        self._keep("events", self._events(None if self.to else exp.convert(as_of)))
        found = self._row(self._all())
        self.catalog.engine.drop("path_rows")
        n, unseen = int(found["n"]), 0
        first = min((p.first_us for p in self.touches.profiles.values() if p.first_us is not None), default=None)
        paths: tuple[PathCount, ...] = ()
        untouched: PathCount | None = None
        edges: tuple[EdgeCount, ...] = ()
        wait: Wait | str | None = None
        rest = 0
        if n:
            self._keep("touches", self._touches(int(found["opens"]), int(found["closes"])))
            self.catalog.engine.drop("path_units")
            if first is not None and self.to:
                unseen = int(self._row(self._unseen(first))["n"])
            for name, step, spent in zip(_TABLES[4:], self._shaped(), _SPENT, strict=True):
                self._keep(name, step)
                for table in spent:
                    self.catalog.engine.drop(f"path_{table}")
            paths = self._top()
            untouched = next(iter(self._paths(self._counts(touched=False))), None)
            rest = self._rest_units(paths, untouched)
            edges = self._edges(untouched)
            wait = self._wait() if self.to else None
        return PathData(
            stops=self.touches.stops,
            event=self.event,
            journeys=n,
            units=int(found["units"]),
            squares=float(found["squares"] or 0),
            paths=paths,
            untouched=untouched,
            rest_units=rest,
            edges=edges,
            wait=wait,
            unripe=int(found["unripe"]),
            unseen=unseen,
            left_out=self._left_out(int(found["unripe"])),
            sources={
                **self.touches.profiles,
                **({} if self.reading.profile is None else {self.event: self.reading.profile}),
            },
            as_of_us=as_of,
            steps=tuple(self.steps),
        )

    # ---------------------------------------------------------------- running

    def _step(self, name: str, purpose: str, query: Query, source: str = "") -> Step:
        columns: tuple[str, ...] = ()
        if source:
            known = set(self.catalog.view(source).relation.columns)
            columns = tuple(sorted({c.name for c in query.tree.find_all(exp.Column) if c.name in known}))
        return Step(name, source, purpose, columns, (self.design.name,), query)

    def _keep(self, table: str, step: Step) -> None:
        self.steps.append(step.keeping(f"path_{table}"))
        self.catalog.engine.keep(f"path_{table}", step.query, step.name, step.reads or None)

    def _fetch(self, step: Step) -> pa.Table:
        self.steps.append(step)
        return self.catalog.engine.fetch(step.query, step.name, step.reads or None)

    def _row(self, step: Step) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self._fetch(step).to_pylist()
        return rows[0]

    def _as_of(self) -> int:
        """Up to when all that is read is complete."""
        profiles = [*self.touches.profiles.values(), *([] if self.reading.profile is None else [self.reading.profile])]
        return min([*(p.through_us for p in profiles if p.through_us is not None), self.design.now_us])

    def _left_out(self, unripe: int) -> dict[str, int]:
        out: dict[str, int] = {}
        for profile in (
            *self.touches.profiles.values(),
            *([] if self.reading.profile is None else [self.reading.profile]),
        ):
            for reason, n in profile.left_out().items():
                out[reason] = max(n, out.get(reason, 0))  # a source read for both says the same of both
        if unripe:
            out[f"rows of {self.event} whose window is not over"] = unripe
        return out

    # ---------------------------------------------------------------- events and touches

    def _rows(self) -> Step:
        starts, ends = self.design.starts_us, self.design.ends_us
        rows = self.reading.query(starts, None if ends is None else ends - 1, self.text)
        query = sql("SELECT unit, us FROM events", events=rows)
        return self._step(f"events in {self.event}", "every event of the range", query, self.event)

    def _units(self) -> Step:
        query = sql(
            "SELECT unit, CAST(row_number() OVER () AS INTEGER) AS uid FROM (SELECT DISTINCT unit FROM path_rows)"
        )
        return self._step("number the units", "units that have an event", query)

    def _events(self, as_of: exp.Expr | None) -> Step:
        """Each with the times that its touches lie between, both included."""
        opens = fragment("r.us - $w + 1", w=self.window) if self.to else fragment("r.us")
        closes = fragment("r.us") if self.to else fragment("r.us + $w - 1", w=self.window)
        over = exp.true() if as_of is None else fragment("$closes <= $as_of", closes=closes, as_of=as_of)
        query = sql(
            """
            SELECT CAST(row_number() OVER () AS INTEGER) AS cid, u.uid, r.us, $opens AS opens, $closes AS closes
            FROM path_rows AS r JOIN path_units AS u ON u.unit = r.unit WHERE $over
            """,
            opens=opens,
            closes=closes,
            over=over,
        )
        return self._step("number the events", "the time before or after each in which touches are on its path", query)

    def _all(self) -> Step:
        query = sql(
            """
            SELECT coalesce(sum(n), 0) AS n, count(*) AS units, sum(CAST(n AS DOUBLE) * n) AS squares, min(opens) AS opens,
                   max(closes) AS closes, (SELECT count(*) FROM path_rows) - coalesce(sum(n), 0) AS unripe
            FROM (SELECT uid, count(*) AS n, min(opens) AS opens, max(closes) AS closes FROM path_events GROUP BY uid)
            """
        )
        return self._step("count the journeys", "journeys, units, and how journeys gather in units", query)

    def _unseen(self, first_us: int) -> Step:
        query = sql("SELECT count(*) AS n FROM path_events WHERE opens < $first", first=first_us)
        return self._step(
            "journeys that begin before the data", "windows that reach back before the first touch", query
        )

    def _touches(self, low: exp.Expr | int, high: exp.Expr | int) -> Step:
        query = sql(
            "SELECT u.uid, t.us, t.code FROM touched AS t JOIN path_units AS u ON u.unit = t.unit",
            touched=self.touches.query(low, high, self.text),
        )
        sources = ", ".join(r.source for r in self.touches.readings)
        return self._step(
            f"touches in {sources}", "of units that have an event alone", query, self.touches.readings[0].source
        )

    # ---------------------------------------------------------------- from touches to paths

    def _shaped(self) -> Iterator[Step]:
        """``runs``, ``marks``, ``stretches``, ``spans``, ``stops``, ``journeys``."""
        new = fragment("CASE WHEN code = earlier THEN 0 ELSE 1 END") if self.declared.collapse else exp.convert(1)
        yield self._step(
            "number the stops of each unit",
            "touches in order; a run of one touchpoint is one stop" if self.declared.collapse else "touches in order",
            sql(
                """
                SELECT uid, us, code,
                       CAST(sum($new) OVER (PARTITION BY uid ORDER BY us, code ROWS UNBOUNDED PRECEDING) AS INTEGER) AS run
                FROM (SELECT uid, us, code, lag(code) OVER (PARTITION BY uid ORDER BY us, code) AS earlier FROM path_touches)
                """,
                new=new,
            ),
        )
        yield self._step(
            "the first and the last stop of each moment",
            "touches at one time are met together",
            sql("SELECT uid, us, min(run) AS low, max(run) AS high FROM path_runs GROUP BY uid, us"),
        )
        yield self._step(
            "one row a stop",
            "each with the stop that follows it",
            sql(
                """
                SELECT uid, run, code, lead(code) OVER (PARTITION BY uid ORDER BY run) AS follows
                FROM (SELECT uid, run, any_value(code) AS code FROM path_runs GROUP BY uid, run)
                """
            ),
        )
        yield self._step(
            "the stops of each journey",
            "from the first touch in its window to the last",
            sql(
                """
                SELECT e.cid, e.uid, e.us - f.us AS wait, CASE WHEN f.us <= e.closes THEN f.low END AS low,
                       CASE WHEN f.us <= e.closes THEN l.high END AS high
                FROM path_events AS e
                ASOF LEFT JOIN path_marks AS f ON f.uid = e.uid AND e.opens <= f.us
                ASOF LEFT JOIN path_marks AS l ON l.uid = e.uid AND e.closes >= l.us
                """
            ),
        )
        longest = self.declared.longest
        yield self._step(
            "the stops that are shown",
            f"the {'last' if self.to else 'first'} {longest} of each journey",
            sql(
                """
                SELECT p.cid, p.uid, p.run, s.code, s.follows, p.high - p.low AS left_to_go, p.stop
                FROM (
                  SELECT cid, uid, low, high, run, CAST($stop AS SMALLINT) AS stop
                  FROM (SELECT *, unnest(range($first, $last + 1)) AS run FROM path_spans WHERE low <= high)
                ) AS p
                JOIN path_stretches AS s ON s.uid = p.uid AND s.run = p.run
                """,
                stop=fragment("high - run + 1") if self.to else fragment("run - low + 1"),
                first=fragment("greatest(low, high - $n)", n=longest - 1) if self.to else fragment("low"),
                last=fragment("high") if self.to else fragment("least(high, low + $n)", n=longest - 1),
            ),
        )
        yield self._step(
            "the path of each journey",
            "a letter a stop",
            sql(
                """
                SELECT s.uid, coalesce(p.path, '') AS path, coalesce(s.high - s.low >= $longest, false) AS cut,
                       CASE WHEN p.path IS NOT NULL THEN s.wait END AS wait
                FROM path_spans AS s
                LEFT JOIN (
                  SELECT cid, string_agg(chr(CAST(code + $letter AS INTEGER)), '' ORDER BY run) AS path
                  FROM path_stops GROUP BY cid
                ) AS p ON p.cid = s.cid
                """,
                longest=longest,
                letter=_LETTER,
            ),
        )

    # ---------------------------------------------------------------- what is told

    def _counts(self, touched: bool) -> Step:
        query = sql(
            """
            SELECT e.path, e.cut, CAST(sum(e.n) AS BIGINT) AS n, count(*) AS units, sum(CAST(e.n AS DOUBLE) * e.n) AS squares,
                   sum(CAST(e.n AS DOUBLE) * o.n) AS together
            FROM (SELECT path, cut, uid, count(*) AS n FROM path_journeys WHERE $which GROUP BY path, cut, uid) AS e
            JOIN (SELECT uid, count(*) AS n FROM path_journeys GROUP BY uid) AS o ON o.uid = e.uid
            GROUP BY e.path, e.cut HAVING count(*) >= $least ORDER BY n DESC, e.path, e.cut LIMIT $most
            """,
            which=fragment("path <> ''") if touched else fragment("path = ''"),
            least=self.design.min_cell,
            most=self.declared.top,
        )
        return self._step(
            "the commonest paths" if touched else "journeys without a touch", "journeys and units on each", query
        )

    def _paths(self, step: Step) -> tuple[PathCount, ...]:
        return tuple(
            PathCount(
                tuple(ord(c) - _LETTER for c in r["path"]),
                r["cut"],
                int(r["n"]),
                int(r["units"]),
                r["squares"],
                r["together"],
            )
            for r in self._fetch(step).to_pylist()
        )

    def _top(self) -> tuple[PathCount, ...]:
        return self._paths(self._counts(touched=True))

    def _rest_units(self, paths: tuple[PathCount, ...], untouched: PathCount | None) -> int:
        """Units of journeys on no path that is told."""
        told = [
            exp.Tuple(expressions=[exp.Literal.string("".join(chr(c + _LETTER) for c in p.codes)), exp.convert(p.cut)])
            for p in (*paths, *([] if untouched is None else [untouched]))
        ]
        other = exp.true() if not told else exp.not_(exp.In(this=fragment("(path, cut)"), expressions=told))
        query = sql("SELECT count(DISTINCT uid) AS n FROM path_journeys WHERE $other", other=other)
        return int(self._row(self._step("units of all other paths", "so that none is told by difference", query))["n"])

    def _flow(self) -> Step:
        """Steps between stops, counted from the event: where ``to``, from the stop to the one after it; else to it from before."""
        query = sql(
            """
            SELECT stop, code AS source, CASE WHEN $beside THEN NULL ELSE follows END AS target, count(*) AS n,
                   count(DISTINCT uid) AS units
            FROM path_stops WHERE stop <= $most AND $kept GROUP BY ALL ORDER BY stop, n DESC, source, target
            """,
            beside=fragment("stop = 1") if self.to else exp.false(),
            most=FLOW_STOPS if self.to else FLOW_STOPS - 1,
            kept=exp.true() if self.to else fragment("stop <= left_to_go"),
        )
        return self._step("where journeys went", "from stop to stop", query)

    def _edges(self, untouched: PathCount | None) -> tuple[EdgeCount, ...]:
        rows = self._fetch(self._flow()).to_pylist()
        out = []
        if self.to:
            out = [EdgeCount(r["stop"], r["source"], r["target"], int(r["n"]), int(r["units"])) for r in rows]
        else:
            first = sql(
                "SELECT code, count(*) AS n, count(DISTINCT uid) AS units FROM path_stops WHERE stop = 1 GROUP BY code"
            )
            begun = self._fetch(self._step("where journeys began", "the stop after the event", first)).to_pylist()
            out = [EdgeCount(1, None, r["code"], int(r["n"]), int(r["units"])) for r in begun]
            out += [EdgeCount(r["stop"] + 1, r["source"], r["target"], int(r["n"]), int(r["units"])) for r in rows]
        if untouched is not None:
            out.append(EdgeCount(1, None, None, untouched.n, untouched.units, empty=True))
        return tuple(sorted(out, key=lambda e: (e.stop, -e.n, e.source or -1, e.target or -1)))

    # ---------------------------------------------------------------- time to the event

    def _median(self) -> Step:
        query = sql(
            """
            SELECT quantile_cont(wait, 0.5) AS median, count(*) AS n, count(DISTINCT uid) AS units
            FROM path_journeys WHERE wait IS NOT NULL
            """
        )
        return self._step("median time to convert", "from the first touch in the window", query)

    def _below(self, median: exp.Expr | float) -> Step:
        query = sql(
            """
            SELECT count(*) AS units, avg(b) AS b, avg(n) AS n, var_samp(b) AS bb, var_samp(n) AS nn, covar_samp(b, n) AS bn
            FROM (
              SELECT CAST(count(*) FILTER (WHERE wait <= $median) AS DOUBLE) AS b, CAST(count(*) AS DOUBLE) AS n
              FROM path_journeys WHERE wait IS NOT NULL GROUP BY uid
            )
            """,
            median=median,
        )
        return self._step("how units differ about the median", "journeys below it, and all, a unit", query)

    def _ends(self, low: exp.Expr | float, high: exp.Expr | float) -> Step:
        query = sql(
            """
            SELECT quantile_cont(wait, $low) AS low, quantile_cont(wait, $high) AS high
            FROM path_journeys WHERE wait IS NOT NULL
            """,
            low=low,
            high=high,
        )
        return self._step("the interval of the median", "the two journeys that hold it", query)

    def _wait(self) -> Wait | str:
        found = self._row(self._median())
        if not found["n"]:
            return "no conversion has a touch in its window"
        n, median = int(found["n"]), float(found["median"])
        of = self._row(self._below(median))
        both = float(of["bn"] or 0.0)
        try:
            moments = Moments(
                int(of["units"]),
                np.array([of["b"], of["n"]]),
                np.array([[of["bb"] or 0.0, both], [both, of["nn"] or 0.0]]),
            )
            low, high = outer_ranks(moments, n, 0.5, self.design.level)
        except ValueError as error:
            return str(error)
        ends = self._row(self._ends(low, high))
        seconds = (median, float(ends["low"]), float(ends["high"]))
        value, bottom, top = (x / 1e6 for x in seconds)
        return Wait(value, min(bottom, value), max(top, value), n, int(found["units"]))

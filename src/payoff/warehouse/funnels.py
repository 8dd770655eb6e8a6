"""The funnel kernel: how many units go from step to step, by which way and in what time, without a row leaving the engine.

What counts. A *way* is one row of each step, each after the one before it:

- ordered: a row at or after (>=) that of the step before; strictly after (>) where an earlier step reads the same source, so
  that no row serves two steps. Rows of two sources are two rows.
- ``within`` ends with its last instant: a step counts at ``t <= entry + within``, and at ``t <= step before + its own within``.
- an excluded row ends the attempt when it lies strictly between two steps' rows; one at the very time of either does not.
  strict: so does a row of any other step of the funnel (repeats of the two steps themselves do not).
- entry: ``starts <= t < ends``, and only where its whole time has passed by ``as_of``; later steps are not bound by ``ends``.
  ``first`` knows the unit's first row in that span alone, ``any`` every one.
- a step without something (kept): a row of the step before, at t, has no such row in (t, t + within]: of that very row where the
  source of those links to it, else of the unit. ``within`` of the funnel bounds t, not t + the step's own within.
- unordered: k distinct steps in [entry, entry + within], counted from the earliest of them.

Why one pass forward is exact. For each row of a step take the latest row of the step before that was reached and lies at or before
it (ASOF). The later that row, the later the entry it carries (by induction: what is latest for an earlier row lies not after what is
latest for a later one), the shorter the time since it, and the fewer rows lie between. Every rule only gets easier, so where
the latest fails all fail: nothing else need be tried. A unit's way is that of its deepest step, of those the one that entered
latest, of those the one that was there first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlglot import exp

from payoff.errors import DataError
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Event, Funnel
from payoff.stats.proportion import order_statistic_ranks
from payoff.warehouse.events import EventProfile, clock_us, profile, profile_step, rows_of
from payoff.warehouse.query import Query, conjunction, fragment, parsed, sql
from payoff.warehouse.sources import Catalog, View, to_us
from payoff.warehouse.statements import Step
from payoff.warehouse.units import placeholder

MOST_CLASSES = 30
NONE, EMPTY, OTHER = "(none)", "(empty)", "(other)"
_QUANTILES = (0.25, 0.5, 0.75)
_SAMPLE = 200_000
"""Rows that tell whether steps are in order; of more, so many units' are taken."""
_DEPTH = 2**56
"""Above every time in microseconds until the year 4253: a depth times it, and a time, order ways by depth and then by time."""


@dataclass(frozen=True, slots=True)
class TimeQuantile:
    """The ``q`` quantile of the seconds from the step before, with the order statistics that hold it at the design's level."""

    q: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Reached:
    """``units`` that came to a step (of ``segment``; None: all). ``times`` lack those quantiles that too few units tell."""

    position: int
    segment: str | None
    units: int
    times: tuple[TimeQuantile, ...] = ()


@dataclass(frozen=True, slots=True)
class Precedence:
    """Of units that have rows of both steps (``units``, of a sample where there are many), those whose first row of the later step is
    before that of the earlier. ``rows`` are the later step's."""

    position: int
    units: int
    earlier: int
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class FunnelData:
    """``labels`` by position; ``reached`` has every step of the whole, then of each class. ``inside``: units whose only entries are
    after ``cut_us``, so that their time has not passed. ``kept``: the last step is the absence of something. ``classes`` were
    found, of which ``folded`` are taken together. ``days``: sources with dates for times that several steps read."""

    sources: Mapping[str, EventProfile]
    sql: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    as_of_us: int | None
    left_out: Mapping[str, int]
    labels: tuple[str, ...]
    reached: tuple[Reached, ...]
    inside: int
    cut_us: int | None
    window_us: int | None
    kept: bool
    classes: int = 0
    folded: int = 0
    precedence: tuple[Precedence, ...] = ()
    dates: tuple[str, ...] = ()
    days: tuple[str, ...] = ()
    repeated: Mapping[str, int] = field(default_factory=dict)


def plan(catalog: Catalog, design: JourneyDesign) -> list[Step]:
    """The statements in order, what only the data can tell left as $parameters. Reads no rows."""
    return _Kernel(catalog, design).plan()


def read(catalog: Catalog, design: JourneyDesign) -> FunnelData:
    """Run them. Raises DataError where a source or a column is not what the definition says."""
    return _Kernel(catalog, design).read()


def window_us(declared: Funnel) -> int | None:
    """The longest time from entry to the last step that happens; None where nothing bounds it."""
    steps = [s for s in declared.steps[1:] if s.without is None]
    spans = [_us(declared.within)] if declared.within is not None else []
    if all(s.within is not None for s in steps):
        spans.append(sum(_us(s.within) for s in steps))
    return min(spans, default=None)


def _us(span: timedelta | None) -> int:
    assert span is not None
    return span // timedelta(microseconds=1)


@dataclass(slots=True)
class _Source:
    """One source of the funnel: its events by flag (``s1`` a step, ``x0`` an exclusion, ``w`` what a step is without)."""

    view: View
    events: dict[str, Event] = field(default_factory=dict)
    columns: dict[str, exp.Expr] = field(default_factory=dict)
    repeated: int = 0
    keeps_first: bool = False

    @property
    def later(self) -> list[str]:
        """Flags of the rows that are kept. Those of a first step are the most, and are read where they are needed."""
        return [flag for flag in self.events if flag != "s1" or self.keeps_first]

    @property
    def happening(self) -> list[str]:
        return [flag for flag in self.events if flag.startswith("s")]

    def event(self, flags: Iterable[str]) -> Event:
        """The rows of any of the events."""
        wheres = [self.events[flag].where for flag in flags]
        known = [w for w in dict.fromkeys(wheres) if w is not None]
        if None in wheres or not known:
            return Event(source=self.view.name)
        return Event(source=self.view.name, where=exp.or_(*(exp.paren(parsed(w)) for w in known)).sql("duckdb"))


@dataclass(slots=True)
class _Bounds:
    """Times that bound reading. ``cut`` is the latest entry whose time has passed, ``steps`` the latest that a step can be at;
    as numbers, or (in a plan) as the parameters that stand for them."""

    low: int | None = None
    cut: exp.Expr | int | None = None
    steps: exp.Expr | int | None = None
    absent: exp.Expr | int | None = None


class _Kernel:
    def __init__(self, catalog: Catalog, design: JourneyDesign) -> None:
        assert isinstance(design.declared, Funnel)
        self._catalog, self._design, self._declared = catalog, design, design.declared
        steps = self._declared.steps
        self._kept = steps[-1] if steps[-1].without is not None else None
        self._happening = steps[:-1] if self._kept is not None else steps
        self._m = len(self._happening)
        self._window = window_us(self._declared)
        self._wait = 0 if self._kept is None else _us(self._kept.within)
        self._prefix = re.sub(r"\W", "_", design.name)
        self._sources: dict[str, _Source] = {}
        for k, step in enumerate(self._happening, 1):
            assert step.source is not None
            self._add(f"s{k}", Event(source=step.source, where=step.where))
        for n, event in enumerate(self._declared.exclude):
            self._add(f"x{n}", event)
        self._link: tuple[View, Event, exp.Expr, exp.Expr] | None = None
        if self._kept is not None and self._kept.without is not None:
            self._link = self._linked(self._kept.without)
            if self._link is None:
                self._add("w", self._kept.without)
        by = self._declared.by
        if by is not None:
            for k in range(1, self._m + 1) if by.step == "each" else (1,):
                source = self._of(f"s{k}")
                source.columns["class"] = exp.cast(source.view.scalar(by.column), "VARCHAR")
        kinds = {s.view.type_of(s.view.unit(design.entity)) for s in self._sources.values()}
        self._as_text = len(kinds) > 1
        for source in self._sources.values():
            source.keeps_first = self._declared.order == "unordered"
        self._bounds = _Bounds(low=design.starts_us)
        self._steps: list[Step] = []
        self._tables: list[str] = []

    # ---------------------------------------------------------------- what is declared

    def _add(self, flag: str, event: Event) -> None:
        view = self._catalog.view(event.source)
        clock_us(view)  # a source without a clock is told before anything is read
        self._sources.setdefault(event.source, _Source(view)).events[flag] = event

    def _of(self, flag: str) -> _Source:
        return next(s for s in self._sources.values() if flag in s.events)

    def _linked(self, event: Event) -> tuple[View, Event, exp.Expr, exp.Expr] | None:
        """(view, event, its link, the id it links to) where the rows of ``event`` name the very row of the step before."""
        before = self._of(f"s{self._m}")
        view = self._catalog.view(event.source)
        link, key = view.source.links.get(before.view.name), before.view.source.id
        if link is None or key is None:
            return None
        clock_us(view)
        theirs, ours = view.scalar(link), before.view.scalar(key)
        if view.type_of(theirs) != before.view.type_of(ours):
            theirs, ours = exp.cast(theirs, "VARCHAR"), exp.cast(ours, "VARCHAR")
        before.columns["id"] = ours
        return view, event, theirs, ours

    def _after(self, k: int) -> str:
        """How the time of step ``k`` compares with that of the step before."""
        earlier = {step.source for step in self._happening[: k - 1]}
        return ">" if self._happening[k - 1].source in earlier else ">="

    # ---------------------------------------------------------------- rows

    def _table(self, name: str) -> str:
        return f"{self._prefix}_{name}"

    def _later_table(self, source: _Source) -> str:
        return self._table(f"rows_of_{source.view.name}")

    def _rows(self, source: _Source, flags: Sequence[str], low: int | None, high: exp.Expr | int | None) -> Query:
        """unit, us, a boolean for each of ``flags``, and the source's columns, of the rows of any of them in a span of time."""
        everything = list(source.events) if source.repeated else list(flags)
        columns = {
            flag: exp.true() if (w := source.events[flag].where) is None else source.view.condition(w) for flag in flags
        }
        columns = (
            {flag: fragment("coalesce($it, false)", it=c) for flag, c in columns.items()} if len(flags) > 1 else {}
        )
        columns |= source.columns
        if source.repeated:
            assert source.view.source.id is not None
            columns["same"] = source.view.scalar(source.view.source.id)
            if len(flags) == 1 and (w := source.events[flags[0]].where) is not None:
                columns["wanted"] = source.view.condition(w)
        inner = rows_of(
            self._catalog,
            source.event(everything),
            self._design.entity,
            self._design.now_us,
            columns,
            # where an id repeats its first row counts, wherever that lies
            low_us=None if source.repeated else low,
            high_us=high if isinstance(high, int) and not source.repeated else None,
        )
        kept = [*(flags if len(flags) > 1 else ()), *source.columns]
        unit = fragment("CAST(unit AS VARCHAR)") if self._as_text else fragment("unit")
        out = [exp.alias_(unit, "unit"), fragment("us"), *(exp.column(name, quoted=True) for name in kept)]
        if source.repeated:
            once = fragment("same IS NULL OR row_number() OVER (PARTITION BY same ORDER BY us, unit) = 1")
            inner = Query(exp.select("*").from_(inner.tree.subquery("every_row")).qualify(once))
        conditions = [fragment("us >= $low", low=low)] if low is not None else []
        conditions += [fragment("us <= $high", high=high)] if high is not None else []
        if source.repeated:
            if "wanted" in columns:
                conditions.append(fragment("wanted"))
            elif len(flags) > 1:
                conditions.append(exp.or_(*(exp.column(flag) for flag in flags)))
        return _from(inner, out, conjunction(*conditions) if conditions else None)

    def _flagged(self, flag: str, *columns: str) -> Query:
        """The kept rows of one later event: unit, us and ``columns``."""
        source = self._of(flag)
        select = exp.select("unit", "us", *columns).from_(self._later_table(source))
        return Query(select.where(exp.column(flag)) if len(source.later) > 1 else select)

    def _first_rows(self) -> Query:
        """The first step's rows that may be an entry."""
        ends, cut = self._design.ends_us, self._bounds.cut
        high: exp.Expr | int | None = cut
        if ends is not None:
            high = min(cut, ends - 1) if isinstance(cut, int) else ends - 1
        rows = self._rows(self._of("s1"), ["s1"], self._bounds.low, high)
        if isinstance(cut, exp.Expr) and ends is not None:
            rows = _from(rows, [exp.Star()], fragment("us <= $cut", cut=cut))
        return rows

    def _rows_of_step(self, k: int, *columns: str) -> Query:
        if k > 1 or self._declared.order == "unordered":
            return self._flagged(f"s{k}", *columns)
        return _from(self._first_rows(), [exp.column(c) for c in ("unit", "us", *columns)])

    # ---------------------------------------------------------------- statements

    def _step(self, name: str, reads: str, purpose: str, query: Query, columns: tuple[str, ...] = ()) -> Step:
        return Step(name, reads, purpose, columns, (self._design.name,), query)

    def _profiles(self) -> list[Step]:
        return [
            profile_step(
                self._catalog,
                source.event(source.events),
                self._design.entity,
                self._design.now_us,
                ids=source.view.source.id is not None,
            )
            for source in self._sources.values()
        ]

    def _profile_linked(self) -> Step:
        """As ``events.profile_step``, of rows that are found by what they link to: they need no unit."""
        assert self._link is not None
        view, event, link, _ = self._link
        base = view.rows()
        if event.where is not None:
            base = base.where(view.condition(event.where))
        query = sql(
            """
            SELECT count(*) AS n, count(*) FILTER (WHERE $link IS NULL) AS without_link,
                   count(*) FILTER (WHERE $t IS NULL) AS without_time, count(*) FILTER (WHERE $t < 0) AS before_1970,
                   count(*) FILTER (WHERE $t > $most) AS ahead,
                   min($t) FILTER (WHERE $t BETWEEN 0 AND $most) AS first_us,
                   max($t) FILTER (WHERE $t BETWEEN 0 AND $most) AS last_us
            FROM base
            """,
            link=link,
            t=clock_us(view),
            most=self._design.now_us + 86_400_000_000,
            base=Query(base),
        )
        return self._step(f"profile {view.name}", view.name, "Count rows that enter and rows that do not", query)

    def _keep_later(self, source: _Source) -> Step:
        highs = [self._bounds.absent if flag == "w" else self._bounds.steps for flag in source.later]
        high = highs[0] if len(set(map(str, highs))) == 1 else self._bounds.absent
        query = self._rows(source, source.later, self._bounds.low, high)
        texts = [e.where for e in source.events.values() if e.where is not None]
        return self._step(
            f"rows of {source.view.name}",
            source.view.relation.key,
            "rows of the steps after the first, and of what ends an attempt: one reading for all that this source holds",
            query,
            tuple(sorted(source.view.referenced(texts))),
        )

    def _entered(self) -> Step:
        """Each unit with its first entry, and ``t1``: the one its way is taken from where it goes no further (NULL: time has not passed)."""
        if self._declared.order == "unordered":
            rows = self._every_step()
        else:
            rows = self._rows(self._of("s1"), ["s1"], self._bounds.low, self._last_entry())
        t1 = (
            "CASE WHEN min(us) <= $cut THEN min(us) END"
            if self._declared.entry == "first"
            else "max(us) FILTER (WHERE us <= $cut)"
        )
        query = sql(
            f"SELECT unit, min(us) AS first_us, {t1} AS t1 FROM firsts WHERE $inside GROUP BY unit",
            firsts=rows,
            cut=self._bounds.cut,
            inside=self._in_range(),
        )
        source = self._of("s1").view
        return self._step("entries", source.relation.key, "every unit that entered, and when", query)

    def _last_entry(self) -> int | None:
        return None if self._design.ends_us is None else self._design.ends_us - 1

    def _in_range(self) -> exp.Expr:
        low, high = self._design.starts_us, self._last_entry()
        return conjunction(
            None if low is None else fragment("us >= $low", low=low),
            None if high is None else fragment("us <= $high", high=high),
        )

    def _entries(self) -> Query:
        """unit, t1 of every entry whose time has passed; of the first only, where that is asked."""
        if self._declared.entry == "first":
            return sql(f"SELECT unit, t1 FROM {self._table('entered')} WHERE t1 IS NOT NULL")
        return _from(self._first_rows(), [fragment("unit"), exp.alias_(fragment("us"), "t1")])

    def _reach(self, k: int) -> Step:
        """The rows of step ``k`` that were reached, with the times of the way to each."""
        columns = ["id"] if self._link is not None and k == self._m else []
        own = self._happening[k - 1].within
        latest = [fragment("l.us <= p.t1 + $w", w=_us(self._declared.within))] if self._declared.within else []
        latest += [fragment(f"l.us <= p.t{k - 1} + $w", w=_us(own))] if own is not None else []
        latest += [fragment("l.us <= $high", high=self._bounds.steps)] if self._bounds.steps is not None else []
        parts: dict[str, Any] = {"these": self._flagged(f"s{k}", *columns)}
        if k == 2 and self._declared.entry == "any":
            # most entries lead nowhere: only those of units with a row of the next step, around those, are sorted
            spans = [_us(s) for s in (self._declared.within, own) if s is not None]
            near = [fragment("e.t1 >= s.low - $w", w=min(spans))] if spans else []
            parts["before"] = sql(
                "SELECT e.unit AS unit, e.t1 AS t1 FROM entries AS e JOIN spans AS s ON e.unit = s.unit"
                " WHERE e.t1 <= s.high AND $near",
                near=conjunction(*near),
                entries=self._entries(),
                spans=sql("SELECT unit, min(us) AS low, max(us) AS high FROM these GROUP BY unit"),
            )
        elif k == 2:
            parts["before"] = self._entries()
        else:
            parts["before"] = sql(f"SELECT * FROM {self._table(f'step_{k - 1}')}")
        times = [fragment(f"p.t{j}") for j in range(1, k)]
        query = sql(
            f"SELECT l.unit AS unit, $times, l.us AS t{k}, $columns FROM these AS l"
            f" ASOF JOIN before AS p ON l.unit = p.unit AND l.us {self._after(k)} p.t{k - 1} WHERE $latest",
            times=times,
            columns=[exp.column(c, table="l") for c in columns],
            latest=conjunction(*latest),
            **parts,
        )
        blockers = self._blockers(k)
        if blockers:
            carried = [*(f"t{j}" for j in range(1, k + 1)), *columns]
            query = sql(
                "SELECT c.unit AS unit, $carried FROM came AS c"
                f" ASOF LEFT JOIN blocking AS b ON c.unit = b.unit AND c.t{k} > b.us"
                f" WHERE b.us IS NULL OR b.us <= c.t{k - 1}",
                carried=[exp.column(c, table="c") for c in carried],
                came=query,
                blocking=sql(
                    "SELECT b.unit AS unit, b.us AS us FROM ending AS b JOIN lying AS s ON b.unit = s.unit"
                    " WHERE b.us > s.low AND b.us < s.high",
                    ending=_union(blockers),
                    lying=sql(f"SELECT unit, min(t{k - 1}) AS low, max(t{k}) AS high FROM came GROUP BY unit"),
                ),
            )
        label = self._happening[k - 1].label
        return self._step(f"step {k}: {label}", "", f"units that reached {label}, from the latest row before it", query)

    def _blockers(self, k: int) -> list[Query]:
        """Rows that may not lie between steps ``k - 1`` and ``k``."""
        flags = [f"x{n}" for n in range(len(self._declared.exclude))]
        queries = [self._flagged(flag) for flag in flags]
        if self._declared.order == "strict":
            others = [j for j in range(1, self._m + 1) if j not in (k - 1, k)]
            queries += [self._flagged(f"s{j}") for j in others if j > 1]
            if 1 in others:
                every = self._rows(self._of("s1"), ["s1"], self._bounds.low, self._bounds.steps)
                queries.append(_from(every, [fragment("unit"), fragment("us")]))
        return queries

    def _keeps(self) -> Step:
        """Of the rows of the last step that happens, those that nothing followed."""
        assert self._kept is not None
        times = [f"t{j}" for j in range(1, self._m + 1)]
        ours = ["unit", *times, *(["id"] if self._link is not None else [])]
        if self._m > 1:
            rows = sql(f"SELECT $ours FROM {self._table(f'step_{self._m}')}", ours=[exp.column(c) for c in ours])
        elif self._declared.entry == "any":
            rows = sql(
                "SELECT unit, us AS t1, $id FROM firsts",
                id=[exp.column(c) for c in ours[2:]],
                firsts=self._first_rows(),
            )
        else:
            rows = sql(
                "SELECT r.unit AS unit, e.t1 AS t1, $id FROM firsts AS r JOIN entries AS e ON r.unit = e.unit AND r.us = e.t1",
                id=[exp.column(c, table="r") for c in ours[2:]],
                firsts=self._first_rows(),
                entries=self._entries(),
            )
        if self._link is None:
            after, key = self._flagged("w"), "unit"
        else:
            view, event, link, _ = self._link
            base = view.rows().where(fragment("$link IS NOT NULL AND $t >= 0", link=link, t=clock_us(view)))
            if event.where is not None:
                base = base.where(view.condition(event.where))
            base = base.select(
                exp.alias_(link.copy(), "followed"), exp.alias_(clock_us(view), "followed_us"), append=False
            )
            after, key = (
                _from(Query(base), [exp.alias_(fragment("followed"), "id"), exp.alias_(fragment("followed_us"), "us")]),
                "id",
            )
            rows = sql("SELECT * FROM came WHERE id IS NOT NULL", came=rows)
        query = sql(
            "SELECT c.unit AS unit, $times FROM last_step AS c"
            f" ASOF LEFT JOIN following AS f ON c.{key} = f.{key} AND c.t{self._m} < f.us"
            f" WHERE f.us IS NULL OR f.us > c.t{self._m} + $wait",
            times=[exp.column(c, table="c") for c in times],
            last_step=rows,
            following=after,
            wait=self._wait,
        )
        label = self._kept.label
        return self._step(
            f"step {self._m + 1}: {label}",
            "" if self._link is None else self._link[0].relation.key,
            f"units that reached {label}: nothing of the kind followed",
            query,
        )

    def _ways(self) -> Step:
        """One row a unit: how deep it came, and the times of its way. Units that only entered are here where classes are asked."""
        parts = []
        if self._declared.by is not None:
            nulls = [exp.alias_(fragment("CAST(NULL AS BIGINT)"), f"t{j}") for j in range(2, self._m + 1)]
            parts.append(
                sql(
                    f"SELECT unit, 1 AS depth, t1, $nulls FROM {self._table('entered')} WHERE t1 IS NOT NULL",
                    nulls=nulls,
                )
            )
        deepest = self._m + (self._kept is not None)
        for k in range(2, deepest + 1):
            times = [
                fragment(f"min(t{j})") if j <= k else fragment("CAST(NULL AS BIGINT)") for j in range(2, self._m + 1)
            ]
            parts.append(
                sql(
                    f"SELECT unit, CAST($k AS INTEGER) AS depth, t1, $times FROM {self._table(f'step_{k}')} GROUP BY unit, t1",
                    k=k,
                    times=[exp.alias_(t, f"t{j}") for j, t in enumerate(times, 2)],
                )
            )
        chosen = [
            exp.alias_(fragment(f"arg_max(t{j}, depth * CAST($deep AS BIGINT) + t1)", deep=_DEPTH), f"t{j}")
            for j in range(1, self._m + 1)
        ]
        query = sql(
            "SELECT unit, max(depth) AS depth, $chosen FROM ways GROUP BY unit", chosen=chosen, ways=_union(parts)
        )
        return self._step("ways", "", "of each unit the deepest way, the latest to enter, the first to be there", query)

    def _every_step(self) -> Query:
        return _union(
            [
                sql("SELECT unit, us, CAST($k AS INTEGER) AS step FROM flagged", k=k, flagged=self._flagged(f"s{k}"))
                for k in range(1, self._m + 1)
            ]
        )

    def _gathered(self) -> Step:
        """Steps in any order: from each entry the first row of every step, those times sorted."""
        ks, span = range(1, self._m + 1), _us(self._declared.within)
        if self._declared.entry == "first":
            found = sql(
                f"SELECT e.unit AS unit, e.t1 AS us, $nexts FROM every AS r JOIN {self._table('entered')} AS e"
                " ON r.unit = e.unit WHERE r.us BETWEEN e.t1 AND e.t1 + $span GROUP BY e.unit, e.t1",
                nexts=[exp.alias_(fragment("min(r.us) FILTER (WHERE r.step = $k)", k=k), f"n{k}") for k in ks],
                every=self._every_step(),
                span=span,
            )
        else:
            over = "OVER (PARTITION BY unit ORDER BY us RANGE BETWEEN CURRENT ROW AND $span FOLLOWING)"
            found = sql(
                "SELECT * FROM nexts WHERE us <= $cut AND $inside",
                cut=self._bounds.cut,
                inside=self._in_range(),
                nexts=sql(
                    "SELECT unit, us, $nexts FROM every",
                    nexts=[
                        exp.alias_(fragment(f"min(us) FILTER (WHERE step = $k) {over}", k=k, span=span), f"n{k}")
                        for k in ks
                    ],
                    every=self._every_step(),
                ),
            )
        times = exp.Array(expressions=[exp.column(f"n{k}") for k in ks])
        query = sql(
            """
            SELECT unit, max(depth) AS depth, $times
            FROM (SELECT unit, us, len(times) AS depth, times
                  FROM (SELECT unit, us, list_sort(list_filter($all_times, lambda x: x IS NOT NULL)) AS times FROM found) AS listed) AS counted
            GROUP BY unit
            """,
            times=[
                exp.alias_(
                    fragment(f"list_extract(arg_max(times, depth * CAST($deep AS BIGINT) + us), {k})", deep=_DEPTH),
                    f"t{k}",
                )
                for k in ks
            ],
            all_times=times,
            found=found,
        )
        return self._step("ways", "", "of each unit the entry with the most steps together, of those the latest", query)

    def _classes(self) -> Step:
        """unit, position, class: the value in the row of each step of its way; of rows at one time the largest."""
        assert self._declared.by is not None
        ks = range(1, self._m + 1) if self._declared.by.step == "each" else (1,)
        parts = [
            sql(
                f"""
                SELECT w.unit AS unit, CAST($k AS INTEGER) AS position, max(r.class) AS class
                FROM {self._table("ways")} AS w JOIN rows_of_step AS r ON w.unit = r.unit AND w.t{k} = r.us
                WHERE w.depth >= $k GROUP BY w.unit
                """,
                k=k,
                rows_of_step=self._rows_of_step(k, "class"),
            )
            for k in ks
        ]
        query = sql(
            "SELECT unit, position, CASE WHEN class IS NULL THEN $none WHEN class = '' THEN $empty ELSE class END AS class FROM valued",
            none=NONE,
            empty=EMPTY,
            valued=_union(parts),
        )
        return self._step("classes", self._of("s1").view.relation.key, "the class of each unit at each step", query)

    def _largest(self) -> Step:
        query = sql(
            f"""
            SELECT class, n, count(*) OVER () AS classes
            FROM (SELECT class, count(*) AS n FROM {self._table("classes")} GROUP BY class) AS sizes
            ORDER BY n DESC, class LIMIT $most
            """,
            most=MOST_CLASSES + 1,
        )
        return self._step("largest classes", "", f"at most {MOST_CLASSES} classes are told apart", query)

    def _walked(self, classes: Sequence[exp.Expr] | None) -> Step:
        """position, class, and the time since the step before, of every unit at every step it reached."""
        parts = []
        for position in range(1 if classes is not None else 2, len(self._declared.steps) + 1):
            timed = 1 < position <= self._m
            passed = fragment(f"w.t{position} - w.t{position - 1}") if timed else fragment("CAST(NULL AS BIGINT)")
            if classes is None:
                parts.append(
                    sql(
                        f"SELECT CAST($p AS INTEGER) AS position, CAST(NULL AS VARCHAR) AS class, $passed AS passed FROM {self._table('ways')} AS w WHERE w.depth >= $p",
                        p=position,
                        passed=passed,
                    )
                )
                continue
            assert self._declared.by is not None
            at = min(position, self._m) if self._declared.by.step == "each" else 1
            parts.append(
                sql(
                    f"""
                    SELECT CAST($p AS INTEGER) AS position, CASE WHEN c.class IN ($told) THEN c.class ELSE $other END AS class,
                           $passed AS passed
                    FROM {self._table("ways")} AS w JOIN {self._table("classes")} AS c ON w.unit = c.unit AND c.position = $at
                    WHERE w.depth >= $p
                    """,
                    p=position,
                    at=at,
                    told=list(classes) or [exp.null()],
                    other=OTHER,
                    passed=passed,
                )
            )
        return self._step(
            "steps of ways",
            "",
            "every unit at every step of its way, and the time since the step before",
            _union(parts),
        )

    def _counts(self) -> Step:
        query = sql(f"SELECT position, class, count(*) AS n FROM {self._table('walked')} GROUP BY position, class")
        return self._step("units by step", "", "units at each step", query)

    def _times(self, wanted: Mapping[tuple[int, str | None], Iterable[int]], split: bool) -> Step:
        """The times at given ranks (1 is the shortest), by position and (``split``) by class."""
        triples = [(position, c, rank) for (position, c), ranks in wanted.items() for rank in sorted(set(ranks))]
        positions, ranks = (exp.Array(expressions=[exp.convert(t[i]) for t in triples]) for i in (0, 2))
        lists = [exp.alias_(fragment("unnest($them)", them=positions), "position")]
        lists.append(exp.alias_(fragment("unnest($them)", them=ranks), "place"))
        if split:
            names = exp.Array(expressions=[exp.convert(t[1]) for t in triples])
            lists.append(exp.alias_(fragment("unnest($them)", them=names), "class"))
        query = sql(
            f"""
            SELECT s.position AS position, $its_class AS class, s.place AS place, s.passed AS passed
            FROM (SELECT position, class, passed,
                         row_number() OVER (PARTITION BY $parts ORDER BY passed) AS place
                  FROM {self._table("walked")} WHERE passed IS NOT NULL) AS s
            JOIN wanted AS a ON s.position = a.position AND s.place = a.place AND $alike
            """,
            parts=[exp.column("position"), *([exp.column("class")] if split else [])],
            its_class=exp.column("class", table="s") if split else exp.null(),
            alike=fragment("s.class = a.class") if split else exp.true(),
            wanted=Query(exp.select(*lists)),
        )
        return self._step("time between steps", "", "the times at the ranks that hold each quantile", query)

    def _precedence(self, one_in: int = 1) -> Step:
        """By later step: units with both it and the step before, and those that had it first; of a sample of units by their hash."""
        ks = range(2, self._m + 1)
        some = fragment("hash(unit) % $n = 0", n=one_in) if one_in > 1 else exp.true()
        rows = [
            _from(
                self._flagged(f"s{k}"),
                [fragment("unit"), fragment("us"), exp.alias_(fragment("CAST($k AS INTEGER)", k=k), "step")],
                some,
            )
            for k in ks
        ]
        firsts = sql(
            "SELECT unit, $firsts FROM every GROUP BY unit",
            firsts=[exp.alias_(fragment("min(us) FILTER (WHERE step = $k)", k=k), f"f{k}") for k in ks],
            every=_union(rows),
        )
        out = []
        for k in ks:
            before = "e.first_us" if k == 2 else f"f.f{k - 1}"
            both = f"count(*) FILTER (WHERE f.f{k} IS NOT NULL AND {before} IS NOT NULL)"
            out.append(exp.alias_(fragment(both), f"both_{k}"))
            out.append(exp.alias_(fragment(f"count(*) FILTER (WHERE f.f{k} < {before})"), f"earlier_{k}"))
        query = sql(
            f"SELECT $out FROM firsts AS f LEFT JOIN {self._table('entered')} AS e ON f.unit = e.unit",
            out=out,
            firsts=firsts,
        )
        return self._step(
            "order of steps", "", "whether a later step tends to come first: a sign of swapped clocks", query
        )

    def _rows_by_step(self) -> Step:
        parts = [
            _from(
                self._flagged(f"s{k}"),
                [exp.alias_(fragment("CAST($k AS INTEGER)", k=k), "position"), exp.alias_(fragment("count(*)"), "n")],
            )
            for k in range(2, self._m + 1)
        ]
        return self._step("rows by step", "", "a step without a row is a step misspelt", _union(parts))

    def _doubles(self, source: _Source) -> Step | None:
        """Rows that would serve two steps that may come in any order."""
        flags = source.happening
        if len(flags) < 2:
            return None
        total = fragment(" + ".join(f"CAST({flag} AS INTEGER)" for flag in flags))
        query = sql(f"SELECT count(*) AS n FROM {self._later_table(source)} WHERE $total > 1", total=exp.paren(total))
        return self._step(f"rows of two steps in {source.view.name}", "", "a row serves one step", query)

    # ---------------------------------------------------------------- running

    def plan(self) -> list[Step]:
        steps = self._profiles() + ([self._profile_linked()] if self._link is not None else [])
        cut = placeholder("latest_entry_whose_time_has_passed")
        self._bounds.cut = cut
        self._bounds.steps = self._bounds.absent = placeholder("latest_time_of_a_step")
        steps += [self._keep_later(source) for source in self._sources.values() if source.later]
        unordered = self._declared.order == "unordered"
        steps += [step for s in self._sources.values() if unordered and (step := self._doubles(s)) is not None]
        steps.append(self._entered())
        steps += [self._gathered()] if unordered else self._passes()
        if self._declared.by is not None:
            steps += [self._classes(), self._largest()]
        steps.append(self._walked(None if self._declared.by is None else [placeholder("largest_classes")]))
        steps += [self._counts(), self._times({(2, None): [1]}, split=False)]
        if self._declared.by is not None:
            steps.append(self._times({(2, "$class"): [1]}, split=True))
        return steps + ([self._rows_by_step(), self._precedence()] if self._m > 1 and not unordered else [])

    def _passes(self) -> list[Step]:
        return [
            *(self._reach(k) for k in range(2, self._m + 1)),
            *([self._keeps()] if self._kept is not None else []),
            self._ways(),
        ]

    def _keep(self, name: str, step: Step) -> None:
        table = self._table(name)
        self._catalog.engine.keep(table, step.query, step.name, step.reads or None)
        self._tables.append(table)
        self._steps.append(step)

    def _fetch(self, step: Step) -> list[dict[str, Any]]:
        self._steps.append(step)
        rows: list[dict[str, Any]] = self._catalog.engine.fetch(step.query, step.name).to_pylist()
        return rows

    def read(self) -> FunnelData:
        try:
            return self._read()
        finally:
            for table in self._tables:
                self._catalog.engine.drop(table)

    def _read(self) -> FunnelData:
        profiles, left_out = self._look()
        as_of = self._as_of(profiles)
        cut = None if as_of is None else as_of - (self._window or 0) - self._wait
        labels = tuple(step.label for step in self._declared.steps)
        if self._declared.order == "unordered":
            labels = (*(f"any {k} of {self._m} steps" for k in range(1, self._m)), f"all {self._m} steps")
        entered = inside = 0
        reached: list[Reached] = []
        found = folded = 0
        precedence: tuple[Precedence, ...] = ()
        if as_of is not None and cut is not None:
            self._bound(as_of, cut)
            for source in self._sources.values():
                if source.later:
                    name = f"rows_of_{source.view.name}"
                    self._keep(name, self._keep_later(source))
            if self._declared.order == "unordered":
                self._refuse_doubles()
            self._keep("entered", self._entered())
            counted = sql(f"SELECT count(t1) AS n, count(*) - count(t1) AS inside FROM {self._table('entered')}")
            row = self._fetch(
                self._step("units that entered", "", "units that entered, their time passed or not", counted)
            )[0]
            entered, inside = int(row["n"]), int(row["inside"])
            if entered:
                self._go()
                reached, found, folded = self._reached(entered)
                if self._m > 1 and self._declared.order != "unordered":
                    precedence = self._preceding()
        if not reached:
            reached = [Reached(1, None, entered)] + [Reached(k, None, 0) for k in range(2, len(labels) + 1)]
        return FunnelData(
            sources=profiles,
            sql=tuple((step.name, step.sql) for step in self._steps),
            steps=tuple(self._steps),
            as_of_us=as_of,
            left_out=left_out,
            labels=labels,
            reached=tuple(reached),
            inside=inside,
            cut_us=cut,
            window_us=self._window,
            kept=self._kept is not None,
            classes=found,
            folded=folded,
            precedence=precedence,
            dates=tuple(s.view.name for s in self._sources.values() if s.view.clock and s.view.clock.kind == "DATE"),
            days=tuple(
                s.view.name
                for s in self._sources.values()
                if s.view.clock and s.view.clock.kind == "DATE" and len(s.happening) > 1
            ),
            repeated={p.source: p.repeated for p in profiles.values() if p.repeated is not None},
        )

    def _look(self) -> tuple[dict[str, EventProfile], dict[str, int]]:
        """What enters of each source, and what does not, by reason."""
        profiles: dict[str, EventProfile] = {}
        left_out: dict[str, int] = {}
        for source in self._sources.values():
            found, step = profile(
                self._catalog,
                source.event(source.events),
                self._design.entity,
                self._design.now_us,
                ids=source.view.source.id is not None,
            )
            self._steps.append(step)
            profiles[found.source] = found
            left_out |= found.left_out()
            source.repeated = found.repeated or 0
        if self._link is not None:
            view, before = self._link[0], self._of(f"s{self._m}").view
            row = self._fetch(self._profile_linked())[0]
            lost = {k: int(row[k]) for k in ("without_time", "before_1970", "ahead")}
            first, last = (None if row[k] is None else int(row[k]) for k in ("first_us", "last_us"))
            unlinked = int(row["without_link"])
            linked = EventProfile(
                source=view.name,
                rows=max(int(row["n"]) - unlinked - sum(lost.values()), 0),
                without_unit=0,
                through_us=self._through(view) if view.source.through is not None else last,
                first_us=first,
                last_us=last,
                fingerprint=self._catalog.fingerprint(view.relation),
                **lost,
            )
            left_out |= linked.left_out()
            if unlinked:
                left_out[f"rows of {view.name} without the id of {before.name}"] = unlinked
            profiles.setdefault(view.name, linked)
            event = self._of(f"s{self._m}").events[f"s{self._m}"]
            base = before.rows() if event.where is None else before.rows().where(before.condition(event.where))
            query = _from(
                Query(base), [exp.alias_(fragment("count(*)"), "n")], fragment("$id IS NULL", id=self._link[3])
            )
            nameless = int(
                self._fetch(self._step("rows without an id", before.name, "what nothing can link to", query))[0]["n"]
            )
            if nameless:
                left_out[f"rows of {before.name} without an id, to which no {view.name} can belong"] = nameless
        return profiles, left_out

    @staticmethod
    def _through(view: View) -> int:
        assert view.clock is not None and view.source.through is not None
        return to_us(view.source.through, view.clock.zone)

    def _as_of(self, profiles: Mapping[str, EventProfile]) -> int | None:
        """Up to when all of the sources are complete: the earliest that one declares, else the latest row over all of them."""
        declared = [self._through(v) for n in profiles if (v := self._catalog.view(n)).source.through is not None]
        seen = [p.last_us for p in profiles.values() if p.last_us is not None]
        return None if not seen else min(declared, default=max(seen))

    def _bound(self, as_of: int, cut: int) -> None:
        last = cut if self._last_entry() is None else min(cut, self._last_entry() or 0)
        steps = as_of - self._wait if self._window is None else last + self._window
        self._bounds = _Bounds(self._design.starts_us, cut, steps, steps + self._wait)

    def _refuse_doubles(self) -> None:
        for source in self._sources.values():
            step = self._doubles(source)
            if step is None:
                continue
            n = int(self._fetch(step)[0]["n"])
            if n:
                raise DataError(
                    f"{n:,} rows meet the conditions of more than one step, and in a funnel whose steps come in any order a row"
                    " serves one; write conditions that exclude each other",
                    source=source.view.name,
                    count=n,
                )

    def _go(self) -> None:
        """From entries to one way a unit."""
        if self._declared.order == "unordered":
            self._keep("ways", self._gathered())
            return
        for k in range(2, self._m + 1):
            self._keep(f"step_{k}", self._reach(k))
        if self._kept is not None:
            self._keep(f"step_{self._m + 1}", self._keeps())
        self._keep("ways", self._ways())

    def _reached(self, entered: int) -> tuple[list[Reached], int, int]:
        """Units and times at each step, of all and by class; how many classes there are, and how many were taken together."""
        told: list[str] | None = None
        found = 0
        if self._declared.by is not None:
            self._keep("classes", self._classes())
            sizes = self._fetch(self._largest())
            found = int(sizes[0]["classes"]) if sizes else 0
            told = [
                r["class"] for r in sizes[:MOST_CLASSES] if int(r["n"]) >= self._design.min_cell and r["class"] != OTHER
            ]
        self._keep("walked", self._walked(None if told is None else [exp.convert(c) for c in told]))
        units = {(int(r["position"]), r["class"]): int(r["n"]) for r in self._fetch(self._counts())}
        positions = range(1, len(self._declared.steps) + 1)
        classes = sorted({c for _, c in units if c is not None}, key=lambda c: (c == OTHER, c == NONE, c))
        total: dict[tuple[int, str | None], int] = {(1, None): entered}
        for p in positions[1:]:
            total[p, None] = sum(n for (at, _), n in units.items() if at == p)
        split: dict[tuple[int, str | None], int] = {(p, c): units.get((p, c), 0) for c in classes for p in positions}
        times = self._quantiles(total, False) | (self._quantiles(split, True) if classes else {})
        return (
            [Reached(p, c, n, times.get((p, c), ())) for (p, c), n in (total | split).items()],
            found,
            found - len(told) if told is not None else 0,
        )

    def _quantiles(
        self, units: Mapping[tuple[int, str | None], int], split: bool
    ) -> dict[tuple[int, str | None], tuple[TimeQuantile, ...]]:
        places: dict[tuple[int, str | None], dict[float, tuple[int, int, int, int]]] = {}
        for (position, c), n in units.items():
            for q in _QUANTILES if 1 < position <= self._m else ():
                ends = order_statistic_ranks(n, q, self._design.level)
                if ends is not None:
                    # as quantile_cont: between the two rows on either side of (n - 1) q
                    lower = int((n - 1) * q)
                    around = (lower + 1, min(lower + 2, n))
                    places.setdefault((position, c), {})[q] = (ends[0], *around, ends[1])
        if not places:
            return {}
        wanted = {key: [rank for ranks in qs.values() for rank in ranks] for key, qs in places.items()}
        at = {
            (int(r["position"]), r["class"], int(r["place"])): float(r["passed"]) / 1e6
            for r in self._fetch(self._times(wanted, split))
        }
        out = {}
        for (position, c), qs in places.items():
            n, said = units[position, c], []
            for q, ranks in qs.items():
                low, below, above, high = (at[position, c, rank] for rank in ranks)
                value = below + ((n - 1) * q - int((n - 1) * q)) * (above - below)
                said.append(TimeQuantile(q, min(max(value, low), high), low, high))
            out[position, c] = tuple(said)
        return out

    def _preceding(self) -> tuple[Precedence, ...]:
        rows = {int(r["position"]): int(r["n"]) for r in self._fetch(self._rows_by_step())}
        row = self._fetch(self._precedence(max(1, sum(rows.values()) // _SAMPLE)))[0]
        return tuple(
            Precedence(k, int(row[f"both_{k}"]), int(row[f"earlier_{k}"]), rows[k]) for k in range(2, self._m + 1)
        )


def _from(query: Query, columns: Sequence[exp.Expr], where: exp.Expr | None = None) -> Query:
    select = exp.select(*(c.copy() for c in columns)).from_(query.tree.subquery("these_rows"))
    return Query(select if where is None else select.where(where))


def _union(queries: Sequence[Query]) -> Query:
    """All rows of several SELECTs of the same columns."""
    if len(queries) == 1:
        return queries[0]
    parts = [exp.select("*").from_(q.tree.subquery(f"part_{i}")) for i, q in enumerate(queries, 1)]
    return Query(exp.union(*parts, distinct=False))

"""The statements of the funnel kernel, bound as syntax trees over one funnel's sources. Nothing here runs one. What counts: ``funnels``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlglot import exp

from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Event, Funnel
from payoff.warehouse.events import AHEAD_US, clock_us, profile_step, rows_of
from payoff.warehouse.query import Query, bucket, conjunction, fragment, parsed, sql
from payoff.warehouse.sources import Catalog, View, as_id
from payoff.warehouse.statements import Step

MOST_CLASSES = 30
NONE, EMPTY, OTHER = "(none)", "(empty)", "(other)"
_DEPTH = 2**56
"""Above every time in microseconds until the year 4253: a depth times it, and a time, order ways by depth and then by time."""


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
class FunnelSource:
    """One source of the funnel: its events by flag (``s1`` a step, ``x0`` an exclusion, ``w`` what a step is without)."""

    view: View
    events: dict[str, Event] = field(default_factory=dict)
    columns: dict[str, exp.Expr] = field(default_factory=dict)
    repeated: int = 0
    clean: bool = False
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
class Bounds:
    """Times that bound reading. ``cut`` is the latest entry whose time has passed, ``steps`` the latest that a step can be at;
    as numbers, or (in a plan) as the parameters that stand for them."""

    low: int | None = None
    cut: exp.Expr | int | None = None
    steps: exp.Expr | int | None = None
    absent: exp.Expr | int | None = None


class FunnelStatements:
    """A Step of each statement. ``bounds`` are set when the data has told them; ``sources`` learn of repeats likewise."""

    def __init__(self, catalog: Catalog, design: JourneyDesign) -> None:
        assert isinstance(design.declared, Funnel)
        self.catalog, self.design, self.declared = catalog, design, design.declared
        steps = self.declared.steps
        self.kept = steps[-1] if steps[-1].without is not None else None
        self.happening = steps[:-1] if self.kept is not None else steps
        self.m = len(self.happening)
        self.window = window_us(self.declared)
        self.wait = 0 if self.kept is None else _us(self.kept.within)
        self.prefix = re.sub(r"\W", "_", design.name)
        self.sources: dict[str, FunnelSource] = {}
        for k, step in enumerate(self.happening, 1):
            assert step.source is not None
            self._add(f"s{k}", Event(source=step.source, where=step.where))
        for n, event in enumerate(self.declared.exclude):
            self._add(f"x{n}", event)
        self.link: tuple[View, Event, exp.Expr, exp.Expr] | None = None
        if self.kept is not None and self.kept.without is not None:
            self.link = self._linked(self.kept.without)
            if self.link is None:
                self._add("w", self.kept.without)
        by = self.declared.by
        if by is not None:
            for k in range(1, self.m + 1) if by.step == "each" else (1,):
                source = self.of(f"s{k}")
                source.columns["class"] = exp.cast(source.view.scalar(by.column), "VARCHAR")
        kinds = {s.view.type_of(s.view.unit(design.entity)) for s in self.sources.values()}
        self.as_text = len(kinds) > 1 and not kinds <= {"SMALLINT", "INTEGER", "BIGINT"}
        self.kind = "VARCHAR" if self.as_text else max(kinds)
        for source in self.sources.values():
            source.keeps_first = self.declared.order == "unordered"
        self.bounds = Bounds(low=design.starts_us)

    # ---------------------------------------------------------------- what is declared

    def _add(self, flag: str, event: Event) -> None:
        view = self.catalog.view(event.source)
        clock_us(view)  # a source without a clock is told before anything is read
        self.sources.setdefault(event.source, FunnelSource(view)).events[flag] = event

    def of(self, flag: str) -> FunnelSource:
        return next(s for s in self.sources.values() if flag in s.events)

    def _linked(self, event: Event) -> tuple[View, Event, exp.Expr, exp.Expr] | None:
        """(view, event, its link, the id it links to) where the rows of ``event`` name the very row of the step before."""
        before = self.of(f"s{self.m}")
        view = self.catalog.view(event.source)
        link, key = view.source.links.get(before.view.name), before.view.source.id
        if link is None or key is None:
            return None
        clock_us(view)
        theirs, ours = view.scalar(link), before.view.scalar(key)
        if (linking := view.type_of(theirs)) != (linked := before.view.type_of(ours)):
            theirs, ours = as_id(theirs, linking), as_id(ours, linked)
        before.columns["id"] = ours
        return view, event, theirs, ours

    def after(self, k: int) -> str:
        """How the time of step ``k`` compares with that of the step before."""
        earlier = {step.source for step in self.happening[: k - 1]}
        return ">" if self.happening[k - 1].source in earlier else ">="

    # ---------------------------------------------------------------- rows

    def table(self, name: str) -> str:
        return f"{self.prefix}_{name}"

    def later_table(self, source: FunnelSource) -> str:
        return self.table(f"rows_of_{source.view.name}")

    def _rows(self, source: FunnelSource, flags: Sequence[str], low: int | None, high: exp.Expr | int | None) -> Query:
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
        inner = self._entering(source, source.event(everything), columns)
        kept = [*(flags if len(flags) > 1 else ()), *source.columns]
        unit = fragment("unit")
        if self.as_text:
            unit = as_id(unit, source.view.type_of(source.view.unit(self.design.entity)))
        out = [exp.alias_(unit, "unit"), fragment("us"), *(exp.column(name, quoted=True) for name in kept)]
        if source.repeated:
            once = fragment("same IS NULL OR row_number() OVER (PARTITION BY same ORDER BY us, unit) = 1")
            inner = Query(exp.select("*").from_(inner.tree.subquery("every_row")).qualify(once))
        else:  # where an id repeats its first row counts, wherever that lies
            assert source.view.clock is not None
            for bound in source.view.clock.between(low, high if isinstance(high, int) else None):
                inner.tree.where(bound, copy=False)
        conditions = [fragment("us >= $low", low=low)] if low is not None else []
        conditions += [fragment("us <= $high", high=high)] if high is not None else []
        if source.repeated:
            if "wanted" in columns:
                conditions.append(fragment("wanted"))
            elif len(flags) > 1:
                conditions.append(exp.or_(*(exp.column(flag) for flag in flags)))
        return select_from(inner, out, conjunction(*conditions) if conditions else None)

    def _entering(self, source: FunnelSource, event: Event, columns: Mapping[str, exp.Expr]) -> Query:
        """As ``events.rows_of``; where all rows enter none is asked whether it does, which is a third of reading one."""
        view = source.view
        if not source.clean:
            return rows_of(self.catalog, event, self.design.entity, self.design.now_us, columns)
        select = exp.select(
            exp.alias_(view.unit(self.design.entity), "unit"),
            exp.alias_(clock_us(view), "us"),
            *(exp.alias_(e.copy(), name, quoted=True) for name, e in columns.items()),
        ).from_(view.rows().subquery("base"))
        return Query(select if event.where is None else select.where(view.condition(event.where)))

    def flagged(self, flag: str, *columns: str) -> Query:
        """The kept rows of one later event: unit, us and ``columns``."""
        source = self.of(flag)
        select = exp.select("unit", "us", *columns).from_(self.later_table(source))
        return Query(select.where(exp.column(flag)) if len(source.later) > 1 else select)

    def _first_rows(self) -> Query:
        """The first step's rows that may be an entry."""
        ends, cut = self.design.ends_us, self.bounds.cut
        high: exp.Expr | int | None = cut
        if ends is not None:
            high = min(cut, ends - 1) if isinstance(cut, int) else ends - 1
        rows = self._rows(self.of("s1"), ["s1"], self.bounds.low, high)
        if isinstance(cut, exp.Expr) and ends is not None:
            rows = select_from(rows, [exp.Star()], fragment("us <= $cut", cut=cut))
        return rows

    def _rows_of_step(self, k: int, *columns: str) -> Query:
        if k > 1 or self.declared.order == "unordered":
            return self.flagged(f"s{k}", *columns)
        return select_from(self._first_rows(), [exp.column(c) for c in ("unit", "us", *columns)])

    # ---------------------------------------------------------------- statements

    def step(self, name: str, reads: str, purpose: str, query: Query, columns: tuple[str, ...] = ()) -> Step:
        return Step(name, reads, purpose, columns, (self.design.name,), query)

    def profiles(self) -> list[Step]:
        return [
            profile_step(
                self.catalog,
                source.event(source.events),
                self.design.entity,
                ids=source.view.source.id is not None,
            )
            for source in self.sources.values()
        ]

    def profile_linked(self) -> Step:
        """As ``events.profile_step``, of rows that are found by what they link to: they need no unit."""
        assert self.link is not None
        view, event, link, _ = self.link
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
            most=self.design.now_us + AHEAD_US,
            base=Query(base),
        )
        return self.step(f"profile {view.name}", view.name, "Count rows that enter and rows that do not", query)

    def keep_later(self, source: FunnelSource) -> Step:
        highs = [self.bounds.absent if flag == "w" else self.bounds.steps for flag in source.later]
        high = highs[0] if len(set(map(str, highs))) == 1 else self.bounds.absent
        query = self._rows(source, source.later, self.bounds.low, high)
        texts = [e.where for e in source.events.values() if e.where is not None]
        return self.step(
            f"rows of {source.view.name}",
            source.view.relation.key,
            "rows of the steps after the first, and of what ends an attempt: one reading for all that this source holds",
            query,
            tuple(sorted(source.view.referenced(texts))),
        )

    def entered(self) -> Step:
        """Each unit with its first entry, and ``t1``: the one its way is taken from where it goes no further (NULL: time has not passed)."""
        if self.declared.order == "unordered":
            rows = self._every_step()
        else:
            rows = self._rows(self.of("s1"), ["s1"], self.bounds.low, self.last_entry())
        t1 = (
            "CASE WHEN min(us) <= $cut THEN min(us) END"
            if self.declared.entry == "first"
            else "max(us) FILTER (WHERE us <= $cut)"
        )
        query = sql(
            f"SELECT unit, min(us) AS first_us, {t1} AS t1 FROM firsts WHERE $inside GROUP BY unit",
            firsts=rows,
            cut=self.bounds.cut,
            inside=self._in_range(),
        )
        source = self.of("s1").view
        return self.step("entries", source.relation.key, "every unit that entered, and when", query)

    def last_entry(self) -> int | None:
        return None if self.design.ends_us is None else self.design.ends_us - 1

    def _in_range(self) -> exp.Expr:
        low, high = self.design.starts_us, self.last_entry()
        return conjunction(
            None if low is None else fragment("us >= $low", low=low),
            None if high is None else fragment("us <= $high", high=high),
        )

    def _entries(self) -> Query:
        """unit, t1 of every entry whose time has passed; of the first only, where that is asked."""
        if self.declared.entry == "first":
            return sql(f"SELECT unit, t1 FROM {self.table('entered')} WHERE t1 IS NOT NULL")
        return select_from(self._first_rows(), [fragment("unit"), exp.alias_(fragment("us"), "t1")])

    def reach(self, k: int) -> Step:
        """The rows of step ``k`` that were reached, with the times of the way to each."""
        columns = ["id"] if self.link is not None and k == self.m else []
        own = self.happening[k - 1].within
        latest = [fragment("l.us <= p.t1 + $w", w=_us(self.declared.within))] if self.declared.within else []
        latest += [fragment(f"l.us <= p.t{k - 1} + $w", w=_us(own))] if own is not None else []
        latest += [fragment("l.us <= $high", high=self.bounds.steps)] if self.bounds.steps is not None else []
        parts: dict[str, Any] = {"these": self.flagged(f"s{k}", *columns)}
        if k == 2 and self.declared.entry == "any":
            # most entries lead nowhere: only those of units with a row of the next step, around those, are sorted
            spans = [_us(s) for s in (self.declared.within, own) if s is not None]
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
            parts["before"] = sql(f"SELECT * FROM {self.table(f'step_{k - 1}')}")
        times = [fragment(f"p.t{j}") for j in range(1, k)]
        query = sql(
            f"SELECT l.unit AS unit, $times, l.us AS t{k}, $columns FROM these AS l"
            f" ASOF JOIN before AS p ON l.unit = p.unit AND l.us {self.after(k)} p.t{k - 1} WHERE $latest",
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
        label = self.happening[k - 1].label
        return self.step(f"step {k}: {label}", "", f"units that reached {label}, from the latest row before it", query)

    def _blockers(self, k: int) -> list[Query]:
        """Rows that may not lie between steps ``k - 1`` and ``k``."""
        flags = [f"x{n}" for n in range(len(self.declared.exclude))]
        queries = [self.flagged(flag) for flag in flags]
        if self.declared.order == "strict":
            others = [j for j in range(1, self.m + 1) if j not in (k - 1, k)]
            queries += [self.flagged(f"s{j}") for j in others if j > 1]
            if 1 in others:
                every = self._rows(self.of("s1"), ["s1"], self.bounds.low, self.bounds.steps)
                queries.append(select_from(every, [fragment("unit"), fragment("us")]))
        return queries

    def keeps(self) -> Step:
        """Of the rows of the last step that happens, those that nothing followed."""
        assert self.kept is not None
        times = [f"t{j}" for j in range(1, self.m + 1)]
        ours = ["unit", *times, *(["id"] if self.link is not None else [])]
        if self.m > 1:
            rows = sql(f"SELECT $ours FROM {self.table(f'step_{self.m}')}", ours=[exp.column(c) for c in ours])
        elif self.declared.entry == "any":
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
        if self.link is None:
            after, key = self.flagged("w"), "unit"
        else:
            view, event, link, _ = self.link
            base = view.rows().where(fragment("$link IS NOT NULL AND $t >= 0", link=link, t=clock_us(view)))
            if event.where is not None:
                base = base.where(view.condition(event.where))
            base = base.select(
                exp.alias_(link.copy(), "followed"), exp.alias_(clock_us(view), "followed_us"), append=False
            )
            after, key = (
                select_from(
                    Query(base), [exp.alias_(fragment("followed"), "id"), exp.alias_(fragment("followed_us"), "us")]
                ),
                "id",
            )
            rows = sql("SELECT * FROM came WHERE id IS NOT NULL", came=rows)
        query = sql(
            "SELECT c.unit AS unit, $times FROM last_step AS c"
            f" ASOF LEFT JOIN following AS f ON c.{key} = f.{key} AND c.t{self.m} < f.us"
            f" WHERE f.us IS NULL OR f.us > c.t{self.m} + $wait",
            times=[exp.column(c, table="c") for c in times],
            last_step=rows,
            following=after,
            wait=self.wait,
        )
        label = self.kept.label
        return self.step(
            f"step {self.m + 1}: {label}",
            "" if self.link is None else self.link[0].relation.key,
            f"units that reached {label}: nothing of the kind followed",
            query,
        )

    def ways(self) -> Step:
        """One row a unit: how deep it came, and the times of its way. Units that only entered are here where classes are asked."""
        parts = []
        if self.declared.by is not None:
            nulls = [exp.alias_(fragment("CAST(NULL AS BIGINT)"), f"t{j}") for j in range(2, self.m + 1)]
            parts.append(
                sql(
                    f"SELECT unit, 1 AS depth, t1, $nulls FROM {self.table('entered')} WHERE t1 IS NOT NULL",
                    nulls=nulls,
                )
            )
        deepest = self.m + (self.kept is not None)
        for k in range(2, deepest + 1):
            times = [
                fragment(f"min(t{j})") if j <= k else fragment("CAST(NULL AS BIGINT)") for j in range(2, self.m + 1)
            ]
            parts.append(
                sql(
                    f"SELECT unit, CAST($k AS INTEGER) AS depth, t1, $times FROM {self.table(f'step_{k}')} GROUP BY unit, t1",
                    k=k,
                    times=[exp.alias_(t, f"t{j}") for j, t in enumerate(times, 2)],
                )
            )
        chosen = [
            exp.alias_(fragment(f"arg_max(t{j}, depth * CAST($deep AS BIGINT) + t1)", deep=_DEPTH), f"t{j}")
            for j in range(1, self.m + 1)
        ]
        query = sql(
            "SELECT unit, max(depth) AS depth, $chosen FROM ways GROUP BY unit", chosen=chosen, ways=_union(parts)
        )
        return self.step("ways", "", "of each unit the deepest way, the latest to enter, the first to be there", query)

    def _every_step(self) -> Query:
        return _union(
            [
                sql("SELECT unit, us, CAST($k AS INTEGER) AS step FROM flagged", k=k, flagged=self.flagged(f"s{k}"))
                for k in range(1, self.m + 1)
            ]
        )

    def gathered(self) -> Step:
        """Steps in any order: from each entry the first row of every step, those times sorted."""
        ks, span = range(1, self.m + 1), _us(self.declared.within)
        if self.declared.entry == "first":
            found = sql(
                f"SELECT e.unit AS unit, e.t1 AS us, $nexts FROM every AS r JOIN {self.table('entered')} AS e"
                " ON r.unit = e.unit WHERE r.us BETWEEN e.t1 AND e.t1 + $span GROUP BY e.unit, e.t1",
                nexts=[exp.alias_(fragment("min(r.us) FILTER (WHERE r.step = $k)", k=k), f"n{k}") for k in ks],
                every=self._every_step(),
                span=span,
            )
        else:
            over = "OVER (PARTITION BY unit ORDER BY us RANGE BETWEEN CURRENT ROW AND $span FOLLOWING)"
            found = sql(
                "SELECT * FROM nexts WHERE us <= $cut AND $inside",
                cut=self.bounds.cut,
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
        return self.step("ways", "", "of each unit the entry with the most steps together, of those the latest", query)

    def classes(self) -> Step:
        """unit, position, class: the value in the row of each step of its way; of rows at one time the largest."""
        assert self.declared.by is not None
        ks = range(1, self.m + 1) if self.declared.by.step == "each" else (1,)
        parts = [
            sql(
                f"""
                SELECT w.unit AS unit, CAST($k AS INTEGER) AS position, max(r.class) AS class
                FROM {self.table("ways")} AS w JOIN rows_of_step AS r ON w.unit = r.unit AND w.t{k} = r.us
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
        return self.step("classes", self.of("s1").view.relation.key, "the class of each unit at each step", query)

    def largest(self) -> Step:
        query = sql(
            f"""
            SELECT class, n, count(*) OVER () AS classes
            FROM (SELECT class, count(*) AS n FROM {self.table("classes")} GROUP BY class) AS sizes
            ORDER BY n DESC, class LIMIT $most
            """,
            most=MOST_CLASSES + 1,
        )
        return self.step("largest classes", "", f"at most {MOST_CLASSES} classes are told apart", query)

    def walked(self, classes: Sequence[exp.Expr] | None) -> Step:
        """position, class, and the time since the step before, of every unit at every step it reached."""
        parts = []
        for position in range(1 if classes is not None else 2, len(self.declared.steps) + 1):
            timed = 1 < position <= self.m
            passed = fragment(f"w.t{position} - w.t{position - 1}") if timed else fragment("CAST(NULL AS BIGINT)")
            if classes is None:
                parts.append(
                    sql(
                        f"SELECT CAST($p AS INTEGER) AS position, CAST(NULL AS VARCHAR) AS class, $passed AS passed FROM {self.table('ways')} AS w WHERE w.depth >= $p",
                        p=position,
                        passed=passed,
                    )
                )
                continue
            assert self.declared.by is not None
            at = min(position, self.m) if self.declared.by.step == "each" else 1
            parts.append(
                sql(
                    f"""
                    SELECT CAST($p AS INTEGER) AS position, CASE WHEN c.class IN ($told) THEN c.class ELSE $other END AS class,
                           $passed AS passed
                    FROM {self.table("ways")} AS w JOIN {self.table("classes")} AS c ON w.unit = c.unit AND c.position = $at
                    WHERE w.depth >= $p
                    """,
                    p=position,
                    at=at,
                    told=list(classes) or [exp.null()],
                    other=OTHER,
                    passed=passed,
                )
            )
        return self.step(
            "steps of ways",
            "",
            "every unit at every step of its way, and the time since the step before",
            _union(parts),
        )

    def counts(self) -> Step:
        query = sql(f"SELECT position, class, count(*) AS n FROM {self.table('walked')} GROUP BY position, class")
        return self.step("units by step", "", "units at each step", query)

    def times(self, wanted: Mapping[tuple[int, str | None], Iterable[int]], split: bool) -> Step:
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
                  FROM {self.table("walked")} WHERE passed IS NOT NULL) AS s
            JOIN wanted AS a ON s.position = a.position AND s.place = a.place AND $alike
            """,
            parts=[exp.column("position"), *([exp.column("class")] if split else [])],
            its_class=exp.column("class", table="s") if split else exp.null(),
            alike=fragment("s.class = a.class") if split else exp.true(),
            wanted=Query(exp.select(*lists)),
        )
        return self.step("time between steps", "", "the times at the ranks that hold each quantile", query)

    def precedence(self, one_in: int = 1) -> Step:
        """By later step: units with both it and the step before, and those that had it first; of a sample of units by their hash."""
        ks = range(2, self.m + 1)
        rows = [
            select_from(
                self.flagged(f"s{k}"),
                [fragment("unit"), fragment("us"), exp.alias_(fragment("CAST($k AS INTEGER)", k=k), "step")],
                self.sampled(one_in),
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
            f"SELECT $out FROM firsts AS f LEFT JOIN {self.table('entered')} AS e ON f.unit = e.unit",
            out=out,
            firsts=firsts,
        )
        return self.step(
            "order of steps", "", "whether a later step tends to come first: a sign of swapped clocks", query
        )

    def sampled(self, one_in: int) -> exp.Expr | None:
        """Whether a unit is looked at; None where all are."""
        return fragment("$b = 0", b=bucket(as_id(exp.column("unit"), self.kind), one_in)) if one_in > 1 else None

    def rows_by_step(self) -> Step:
        parts = [
            select_from(
                self.flagged(f"s{k}"),
                [exp.alias_(fragment("CAST($k AS INTEGER)", k=k), "position"), exp.alias_(fragment("count(*)"), "n")],
            )
            for k in range(2, self.m + 1)
        ]
        return self.step("rows by step", "", "a step without a row is a step misspelt", _union(parts))

    def doubles(self, source: FunnelSource) -> Step | None:
        """Rows that would serve two steps that may come in any order."""
        flags = source.happening
        if len(flags) < 2:
            return None
        total = fragment(" + ".join(f"CAST({flag} AS INTEGER)" for flag in flags))
        query = sql(f"SELECT count(*) AS n FROM {self.later_table(source)} WHERE $total > 1", total=exp.paren(total))
        return self.step(f"rows of two steps in {source.view.name}", "", "a row serves one step", query)


def select_from(query: Query, columns: Sequence[exp.Expr], where: exp.Expr | None = None) -> Query:
    select = exp.select(*(c.copy() for c in columns)).from_(query.tree.subquery("these_rows"))
    return Query(select if where is None else select.where(where))


def _union(queries: Sequence[Query]) -> Query:
    """All rows of several SELECTs of the same columns."""
    if len(queries) == 1:
        return queries[0]
    parts = [exp.select("*").from_(q.tree.subquery(f"part_{i}")) for i, q in enumerate(queries, 1)]
    return Query(exp.union(*parts, distinct=False))

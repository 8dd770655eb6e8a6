"""The statements of the sufficient-statistics kernel, bound as syntax trees over a Layout. Nothing here runs one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sqlglot import exp

from payoff.warehouse.layout import Exposure, Folded, Known, Layout, Lookup, Rows, Scan, sources_of, trigger_measure
from payoff.warehouse.needs import Measure
from payoff.warehouse.query import Query, column, conjunction, fragment, keeping, parsed, sql
from payoff.warehouse.sources import View


@dataclass(frozen=True)
class Step:
    """One statement of a plan. ``reads`` names what is scanned (empty: only temporary tables); ``serves`` who asked.

    ``bytes`` are those of the columns read, as they are stored, where that is known without reading them. ``keeps`` names the
    temporary table that its rows stay in; without one they are fetched.
    """

    name: str
    reads: str
    purpose: str
    columns: tuple[str, ...]
    serves: tuple[str, ...]
    query: Query
    bytes: int | None = None
    keeps: str | None = None

    @cached_property
    def sql(self) -> str:
        return self.query.render() if self.keeps is None else keeping(self.keeps, self.query)

    def keeping(self, table: str) -> Step:
        """The same statement, whose rows stay in ``table``."""
        return replace(self, keeps=table)

    def to_dict(self) -> dict[str, Any]:
        return {
            "step": self.name,
            "source": self.reads,
            "purpose": self.purpose,
            "columns": list(self.columns),
            "serves": list(self.serves),
            "bytes": self.bytes,
            "keeps": self.keeps,
            "sql": self.sql,
        }


class _Row:
    """The columns that a scan takes from each row, each expression once."""

    def __init__(self) -> None:
        self._by_text: dict[str, tuple[str, exp.Expr]] = {}

    def named(self, expression: exp.Expr, name: str) -> str:
        """The name under which the expression is read: ``name``, or the one it already has."""
        return self._by_text.setdefault(expression.sql("duckdb"), (name, expression))[0]

    def columns(self) -> list[exp.Expr]:
        return [exp.alias_(expression.copy(), name) for name, expression in self._by_text.values()]


class Statements:
    """A Step (for showing) or a Query (for running) of each statement; what only the data can tell is a parameter."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def profile(self, view: View) -> Step:
        entities = sorted({n.entity for n in self.layout.needs if view.name == n.source or view.name in sources_of(n)})
        parts: list[exp.Expr] = [exp.alias_(exp.Count(this=exp.Star()), "n")]
        for entity in entities:
            if view.unit_text(entity) is not None:
                parts.append(exp.alias_(exp.Count(this=view.unit(entity)), f"ids_{entity}"))
        if view.clock is not None:
            raw = view.clock.raw
            parts += [
                exp.alias_(exp.Count(this=raw.copy()), "times"),
                exp.alias_(exp.Min(this=raw.copy()), "first"),
                exp.alias_(exp.Max(this=raw.copy()), "last"),
            ]
        inner = Query(exp.select(*parts).from_(view.relation.select.copy().subquery("base")))
        query = inner
        if view.clock is not None:
            # the times themselves stay in the engine: Python has none before the year 1 or after 9999
            spans = [exp.alias_(view.clock.us_of(column(end)), f"{end}_us") for end in ("first", "last")]
            query = sql("SELECT * EXCLUDE (first, last), $spans FROM seen", spans=spans, seen=inner)
        columns = tuple(sorted({c.name for p in parts for c in p.find_all(exp.Column)}))
        return Step(
            f"look at {view.name}",
            view.relation.key,
            "rows, NULLs and time span (answered from Parquet or table statistics where they hold them)",
            columns,
            (),
            query,
        )

    def ids(self, view: View) -> Step | None:
        """A count of repeated ids, where a source declares them and a repeat would change a number; else None."""
        entity = view.source.one_row_per
        summed = tuple(
            need.experiment
            for need in self.layout.needs
            if any(
                m.source == view.name and m.fold in ("count", "sum", "mean") for x in need.metrics for m in x.measures
            )
        )
        if entity is not None and view.unit_text(entity) is not None:
            key = view.unit(entity)
        elif view.source.id is not None and summed:
            key = view.scalar(view.source.id)
        else:
            return None
        query = sql("SELECT count($k) - count(DISTINCT $k) AS repeated FROM base", k=key, base=Query(view.rows()))
        columns = tuple(sorted({c.name for c in key.find_all(exp.Column)}))
        return Step(
            f"ids of {view.name}", view.relation.key, "a repeated id would be counted twice", columns, summed, query
        )

    # ---------------------------------------------------------------- exposures

    def _exposure(self, exposure: Exposure) -> Query:
        """Every unit (or period of a unit) of every experiment over one relation: arm, first time, and what it records."""
        view, clock, xs = exposure.view, exposure.view.clock, exposure.experiments
        t = clock.us if clock else exp.cast(exp.null(), "BIGINT")
        unit = (
            self.layout.unit(view, exposure.entity) if view.unit_text(exposure.entity) is not None else exp.convert(0)
        )
        conditions = {x: self._takes_part(view, x, t) for x in xs}
        arms = {x: fragment("CAST($v AS VARCHAR)", v=view.scalar(self.layout.needs[x].variant)) for x in xs}
        clusters = {
            x: fragment("CAST($v AS VARCHAR)", v=view.unit(entity))
            for x in xs
            if (entity := self.layout.needs[x].cluster) is not None
        }
        row = _Row()
        row.named(unit, "unit")
        row.named(t, "t")
        arm = _by_experiment({x: column(row.named(e, f"arm_{x}")) for x, e in arms.items()}, xs)
        of_cluster = _by_experiment({x: column(row.named(e, f"cluster_{x}")) for x, e in clusters.items()}, xs)
        kept = {name: column(row.named(self._own_value(view, m), name)) for m, name in exposure.own.items()}
        known = {name: column(row.named(self._known(view, k), name)) for k, name in exposure.known.items()}
        link = column(row.named(view.scalar(self.layout.id_text(view)), "link_id")) if exposure.with_ids else exp.null()
        which: exp.Expr
        if len(xs) == 1:
            which = exp.alias_(exp.convert(xs[0]), "x")
        elif _exclude_each_other(view, [self.layout.needs[x].where for x in xs]):
            which = exp.alias_(_first_true(conditions), "x")
        else:
            hits = [fragment("CASE WHEN $mine THEN $x END", mine=c, x=x) for x, c in conditions.items()]
            which = exp.alias_(
                fragment("unnest(list_filter($hits, lambda it: it IS NOT NULL))", hits=exp.Array(expressions=hits)), "x"
            )
        rows = Query(
            exp.select(which, *row.columns())
            .from_(view.relation.select.copy().subquery("base"))
            .where(conjunction(view.where, exp.or_(*conditions.values())))
        )
        periods = {x: self._period_start(column("t"), p) for x in xs if (p := self.layout.needs[x].period_us)}
        single = view.source.one_row_per is not None and not periods
        timed = clock is not None
        out: list[exp.Expr] = []

        def at_exposure(value: exp.Expr) -> exp.Expr:
            """The value on the first row; without times the only value that there is."""
            if single:
                return value
            if timed:  # of rows at one time the smallest, so that a second run gives the same
                return fragment(
                    "struct_extract(min({'t': t, 'v': $v}) FILTER (WHERE arm IS NOT NULL AND t IS NOT NULL), 'v')",
                    v=value,
                )
            return fragment("CASE WHEN min($v) = max($v) THEN min($v) END", v=value)

        out += [exp.alias_(value, name) for name, value in kept.items()]
        if exposure.clustered:
            out.append(exp.alias_(at_exposure(column("cluster")), "cluster"))
        for name, value in known.items():
            out.append(exp.alias_(at_exposure(value), name))
            if not single and not timed:
                out.append(exp.alias_(fragment("coalesce(min($v) <> max($v), false)", v=value), f"{name}_many"))
        if exposure.with_ids:
            out.append(exp.alias_(fragment("[$id]" if single else "array_agg(DISTINCT $id)", id=link), "ids"))
        named = [exp.alias_(arm, "arm")]
        named += [exp.alias_(of_cluster, "cluster")] if exposure.clustered else []
        named += [exp.alias_(_by_experiment(periods, xs), "period")] if periods else []
        rows = sql("SELECT *, $named FROM hits", named=named, hits=rows)
        if single:
            return sql(
                """
                SELECT x, unit, t AS t0, arm AS lo, arm AS hi, 1 AS n,
                       (t IS NULL)::INT AS no_time, (arm IS NULL)::INT AS no_arm, $out
                FROM rows
                """.replace(", $out", ", $out" if out else ""),
                rows=rows,
                **({"out": out} if out else {}),
            )
        first = fragment("min(t) FILTER (WHERE arm IS NOT NULL)")
        if periods:
            switched = exp.Tuple(expressions=[exp.convert(x) for x in periods])
            first = fragment("CASE WHEN x IN $xs THEN period ELSE $first END", xs=switched, first=first)
        return sql(
            """
            SELECT x, unit, $first AS t0, min(arm) AS lo, max(arm) AS hi, count(*) AS n,
                   count(*) FILTER (WHERE t IS NULL) AS no_time, count(*) FILTER (WHERE arm IS NULL) AS no_arm, $out
            FROM rows
            GROUP BY x, unit, $period
            """.replace(", $out", ", $out" if out else "").replace(", $period", ", period" if periods else ""),
            first=first,
            rows=rows,
            **({"out": out} if out else {}),
        )

    def _takes_part(self, view: View, x: int, t: exp.Expr) -> exp.Expr:
        """Whether a row is an exposure of experiment ``x``."""
        need = self.layout.needs[x]
        return conjunction(
            None if need.where is None else view.condition(need.where),
            # a row without a time is kept here, to be counted among those that had to be left out
            fragment("$t >= $us OR $t IS NULL", t=t, us=need.starts_us) if need.starts_us is not None else None,
            fragment("$t < $us OR $t IS NULL", t=t, us=need.ends_us) if need.ends_us is not None else None,
        )

    @staticmethod
    def _period_start(t: exp.Expr, period_us: int) -> exp.Expr:
        """The start of the period that a time is in; periods are counted from the epoch, in UTC."""
        return fragment("$t - (($t % $p) + $p) % $p", t=t, p=period_us)

    def _known(self, view: View, key: Known) -> exp.Expr:
        """What a row says of its unit: a value as it is stored, or a time in microseconds since the epoch."""
        if not key.since:
            return view.scalar(key.text)
        return view.time(key.text).us

    def _own_value(self, view: View, measure: Measure) -> exp.Expr:
        """The value of a measure on its unit's only row, NULL where the row does not count."""
        condition = None if measure.where is None else view.condition(measure.where)
        if measure.fold in ("count", "any"):
            value: exp.Expr = (
                exp.convert(1.0) if condition is None else fragment("CASE WHEN $c THEN 1.0 ELSE 0.0 END", c=condition)
            )
            return value
        assert measure.column is not None
        number = view.number(measure.column)
        return number if condition is None else fragment("CASE WHEN $c THEN $v END", c=condition, v=number)

    def exposure(self, exposure: Exposure) -> Step:
        query = self._exposure(exposure)
        view = exposure.view
        purpose = (
            "one row a unit: arm and its metrics" if view.source.one_row_per else "first exposure and arm of every unit"
        )
        return Step(
            f"exposures in {view.name}",
            view.relation.key,
            purpose,
            self._columns_read(query, view),
            tuple(self.layout.needs[x].experiment for x in exposure.experiments),
            query,
        )

    def _columns_read(self, query: Query, view: View) -> tuple[str, ...]:
        known = set(view.relation.columns)
        return tuple(sorted({c.name for c in query.tree.find_all(exp.Column) if c.name in known}))

    def _assigned(self, entity: str) -> Query:
        """All experiments of one kind of unit in one table, numbered densely, so that later joins are on integers."""
        branches: list[exp.Query] = []
        for exposure in self.layout.exposures:
            if exposure.entity != entity:
                continue
            own: list[exp.Expr] = [column(name) for name in exposure.own.values()]
            if exposure.with_ids:
                own.append(column("ids"))
            if exposure.clustered:
                own.append(column("cluster"))
            untimed = exposure.view.clock is None and exposure.view.source.one_row_per is None
            for name in exposure.known.values():
                own += [column(name), *([column(f"{name}_many")] if untimed else [])]
            declared = [
                fragment(
                    "x = $x AND lo NOT IN $arms",
                    x=x,
                    arms=exp.Tuple(expressions=[exp.convert(a) for a in self.layout.needs[x].arms]),
                )
                for x in exposure.experiments
                if self.layout.needs[x].arms
            ]
            valid = conjunction(
                fragment("unit IS NOT NULL AND lo = hi"),
                fragment("t0 IS NOT NULL") if exposure.view.clock is not None else None,
                exp.not_(exp.paren(exp.or_(*declared))) if declared else None,
            )
            branches.append(
                exp.select("x", "unit", exp.alias_(column("lo"), "arm"), "t0", *own).from_(exposure.table).where(valid)
            )
        union = branches[0]
        for branch in branches[1:]:
            union = exp.union(union, branch, distinct=False)
            union.set("by_name", True)
        units: exp.Query = union
        if any(scan.entity == entity and scan.ordered for scan in self.layout.scans):
            units = exp.select("*").from_(union.subquery("every")).order_by(column("unit"))
        return sql("SELECT row_number() OVER () - 1 AS uid, * FROM units", units=Query(units))

    def stages(self, entity: str) -> list[str]:
        """The tables that exposures pass through, the last one ``exposed_``: assigned, triggered, without mixed clusters."""
        needs = [n for n in self.layout.needs if n.entity == entity]
        out = ["assigned"]
        out += ["triggered"] if any(n.trigger is not None for n in needs) else []
        out += ["clustered"] if any(n.cluster is not None for n in needs) else []
        return [f"{name}_{entity}" for name in out[:-1]] + [f"exposed_{entity}"]

    def assigned(self, entity: str) -> Step:
        return Step(
            f"number the {entity}s",
            "",
            "units of one arm each, numbered, so that later joins are on integers",
            (),
            self._experiments_of(entity),
            self._assigned(entity),
        )

    def triggered(self, entity: str) -> Step:
        """Exposure moved to the first row of the trigger; units without one are left out."""
        source = self.stages(entity)[0]
        query = exp.select("a.*").from_(exp.table_(source, alias="a"))
        moved, kept = [], []
        for x, need in enumerate(self.layout.needs):
            if need.entity != entity or need.trigger is None:
                continue
            table, name = self.layout.table_of(x, trigger_measure(need))
            alias = f"of_{table}"
            if not any(j.this.alias == alias for j in query.args.get("joins") or []):
                query = query.join(
                    exp.table_(table, alias=alias), on=fragment(f"{alias}.uid = a.uid"), join_type="left"
                )
            moved.append((x, column(name, alias)))
            kept.append(fragment("a.x <> $x OR $t IS NOT NULL", x=x, t=column(name, alias)))
        opens = exp.Case(default=column("t0", "a"))
        for x, t in moved:
            opens = opens.when(fragment("a.x = $x", x=x), t.copy())
        rows = self._assigned(entity).tree.find_all(exp.Select)
        names = [n for n in dict.fromkeys(n for row in rows for n in row.named_selects) if n not in ("*", "t0")]
        query.set("expressions", [*(column(n, "a") for n in names), exp.alias_(opens, "t0")])
        return Step(
            f"trigger the {entity}s",
            "",
            "exposure moved to the trigger; units that never triggered are left out",
            (),
            self._experiments_of(entity),
            Query(query.where(conjunction(*kept))),
        )

    def mixed_clusters(self, entity: str) -> Step:
        """Clusters that were seen in several arms."""
        query = sql(
            "SELECT x, cluster FROM $source WHERE x IN $xs AND cluster IS NOT NULL GROUP BY x, cluster HAVING min(arm) <> max(arm)".replace(
                "$source", self.stages(entity)[-2]
            ),
            xs=self._clustered(entity),
        )
        return Step(
            f"mixed clusters of {entity}s", "", "clusters in several arms", (), self._experiments_of(entity), query
        )

    def clustered(self, entity: str) -> Step:
        query = sql(
            """
            SELECT a.* FROM $source AS a LEFT JOIN $mixed AS m ON m.x = a.x AND m.cluster = a.cluster
            WHERE m.x IS NULL AND (a.x NOT IN $xs OR a.cluster IS NOT NULL)
            """.replace("$source", self.stages(entity)[-2]).replace("$mixed", f"mixed_{entity}"),
            xs=self._clustered(entity),
        )
        return Step(
            f"clusters of {entity}s",
            "",
            "units whose cluster is known and kept to one arm",
            (),
            self._experiments_of(entity),
            query,
        )

    def _clustered(self, entity: str) -> exp.Tuple:
        needs = enumerate(self.layout.needs)
        return exp.Tuple(expressions=[exp.convert(x) for x, n in needs if n.entity == entity and n.cluster is not None])

    def _experiments_of(self, entity: str) -> tuple[str, ...]:
        return tuple(
            self.layout.needs[x].experiment for e in self.layout.exposures if e.entity == entity for x in e.experiments
        )

    # ---------------------------------------------------------------- outcomes

    def _units(self, entity: str, users: set[int], table: str | None = None) -> exp.Select:
        """The exposed units of some experiments."""
        units = exp.select("x.*").from_(exp.table_(table or f"exposed_{entity}", alias="x"))
        everyone = {x for e in self.layout.exposures if e.entity == entity for x in e.experiments}
        if users != everyone:
            only = exp.Tuple(expressions=[exp.convert(x) for x in sorted(users)])
            units = units.where(fragment("x.x IN $xs", xs=only))
        return units

    def _bounds(self, view: View, low: exp.Expr | None, high: exp.Expr | None) -> list[exp.Expr]:
        """Conditions by which whole row groups are skipped; the join decides exactly."""
        if view.clock is None:
            return []
        if low is None or isinstance(low, exp.Literal | exp.Neg):
            return view.clock.between(*(None if b is None else int(b.sql()) for b in (low, high)))
        return [fragment("$t BETWEEN $low AND $high", t=view.clock.us, low=low, high=high)]

    def _scan(self, scan: Scan, low: exp.Expr | None, high: exp.Expr | None, part: int) -> Query:
        view, reach, back = scan.view, self.layout.reach(scan), self.layout.back(scan)
        clock = view.clock
        row = _Row()
        row.named(self.layout.unit(view, scan.entity), "unit")
        if clock is not None:
            row.named(clock.us, "t")
        anchors: dict[str, tuple[str, str]] = {}
        wheres: list[exp.Expr | None] = []
        outer = [
            exp.alias_(self._fold(scan, folded, name, row, anchors, wheres, reach, back), name)
            for folded, name in scan.columns.items()
        ]
        join = [fragment("e.unit = x.unit")]
        within = scan.period_us is not None and clock is not None and back == 0
        if within and clock is not None and reach is not None and reach <= (scan.period_us or 0):
            row.named(self._period_start(clock.us, scan.period_us or 1), "period")
            join.append(fragment("e.period = x.t0"))
        rows = exp.select(*row.columns()).from_(view.relation.select.copy().subquery("base"))
        bounds = self._bounds(view, low, high)
        distinct = {w.sql(): w for w in wheres if w is not None}
        any_of = None if any(w is None for w in wheres) else exp.or_(*distinct.values())
        rows = rows.where(conjunction(*bounds, any_of)) if bounds or any_of is not None else rows
        units = self._units(scan.entity, scan.users, self.stages(scan.entity)[0] if scan.stage < 0 else None)
        if scan.parts > 1:
            ours = "hash($u) % $parts = $part"
            unit = self.layout.unit(view, scan.entity)
            rows = rows.where(fragment(ours, u=unit, parts=scan.parts, part=part))
            units = units.where(fragment(ours, u=column("unit", "x"), parts=scan.parts, part=part))
        if scan.ordered:
            rows = rows.order_by(column("unit"))
        for alias, (table, source_column) in anchors.items():
            units = units.select(exp.alias_(column(source_column, alias), alias)).join(
                exp.table_(table, alias=alias), on=fragment(f"{alias}.uid = x.uid"), join_type="left"
            )
        if clock is not None:
            join.append(fragment("e.t >= x.t0 - $back", back=back) if back else fragment("e.t >= x.t0"))
            if reach is not None:
                join.append(fragment("e.t < x.t0 + $reach", reach=reach))
        return sql(
            "SELECT x.uid AS uid, $measures FROM event_rows AS e JOIN units AS x ON $join GROUP BY x.uid",
            measures=outer,
            join=exp.and_(*join),
            event_rows=Query(rows),
            units=Query(units),
        )

    def _fold(
        self,
        scan: Scan,
        folded: Folded,
        name: str,
        row: _Row,
        anchors: dict[str, tuple[str, str]],
        wheres: list[exp.Expr | None],
        reach: int | None,
        back: int,
    ) -> exp.Expr:
        """The aggregate of one measure; adds what it needs to ``row``, and of the unit to ``anchors``."""
        measure, view = folded.measure, self.layout.views[folded.measure.source]
        own = self._own_rows(view, measure)
        wheres.append(own)
        filters: list[exp.Expr] = []
        if own is not None:
            filters.append(fragment(f"e.{row.named(own, f'{name}_if')}"))
        opening = "x.t0"
        if measure.after is not None:
            assert folded.only is not None
            anchor = Measure(measure.after.source, "first", None, measure.after.where, measure.after.within_us)
            table, source_column = self.layout.table_of(folded.only, anchor)
            alias = f"after_{table}_{source_column}"
            anchors[alias] = (table, source_column)
            opening = f"x.{alias}"
        if view.clock is not None:
            anchored = measure.after is not None
            filters += _inside(measure, opening, None if anchored else -back, None if anchored else reach)
        if folded.only is not None:
            filters.append(fragment("x.x = $x", x=folded.only))
            target = self.layout.needs[folded.only].source
            if target in view.source.links:
                link = row.named(view.scalar(view.source.links[target]), f"{name}_link")
                filters.append(fragment(f"list_contains(x.ids, e.{link})"))
        value = "" if measure.column is None else row.named(view.number(measure.column), f"{name}_value")
        aggregate = {
            "count": "count(*)",
            "sum": f"sum(e.{value})",
            "mean": f"avg(e.{value})",
            "first": "min(e.t)",
        }[measure.fold]
        if not filters:
            return fragment(aggregate)
        return fragment(f"{aggregate} FILTER (WHERE $keep)", keep=exp.and_(*filters))

    def _own_rows(self, view: View, measure: Measure) -> exp.Expr | None:
        """The condition of the rows that a measure counts, None where it counts all."""
        if view.where is None and measure.where is None:
            return None
        return conjunction(view.where, None if measure.where is None else view.condition(measure.where))

    def rows(self, rows: Rows, low: exp.Expr | None, high: exp.Expr | None) -> Step:
        """Every row's value in its unit's window."""
        view, measure = rows.view, rows.folded.measure
        assert measure.column is not None
        row = _Row()
        row.named(self.layout.unit(view, rows.entity), "unit")
        value = row.named(view.number(measure.column), "value")
        join = [fragment("e.unit = x.unit")]
        if view.clock is not None:
            row.named(view.clock.us, "t")
            join += _inside(measure, "x.t0", None, None)
        if rows.folded.only is not None:
            target = self.layout.needs[rows.folded.only].source
            link = row.named(view.scalar(view.source.links[target]), "link")
            join.append(fragment(f"list_contains(x.ids, e.{link})"))
        events = exp.select(*row.columns()).from_(view.relation.select.copy().subquery("base"))
        kept = conjunction(
            self._own_rows(view, measure),
            fragment("$v IS NOT NULL", v=view.number(measure.column)),
            *self._bounds(view, low, high),
        )
        query = sql(
            f"SELECT x.uid AS uid, e.{value} AS value FROM event_rows AS e JOIN units AS x ON $join",
            join=exp.and_(*join),
            event_rows=Query(events.where(kept)),
            units=Query(self._units(rows.entity, rows.users)),
        )
        serves = [
            f"{self.layout.needs[x].experiment}.{m.name}"
            for x in sorted(rows.users)
            for m in self.layout.needs[x].metrics
            if m.quantile is not None and any(self.layout.rows_of(x, measure) is rows for measure in m.measures)
        ]
        return Step(
            f"rows of {measure.source}",
            view.relation.key,
            "every row's value, for quantiles",
            self._columns_read(query, view),
            tuple(serves),
            query,
        )

    # ---------------------------------------------------------------- attributes

    def lookup(self, lookup: Lookup) -> Step:
        """What a source knew of each unit when it was exposed: its latest row by then, or its only value."""
        view, row = lookup.view, _Row()
        row.named(self.layout.unit(view, lookup.entity), "unit")
        if view.clock is not None:
            row.named(view.clock.us, "t")
        out: list[exp.Expr] = []
        for key, name in lookup.columns.items():
            v = column(row.named(self._known(view, key), name), "e")
            if view.clock is not None:
                # of rows at one time the largest, so that a second run gives the same
                latest = fragment(
                    "struct_extract(max({'t': e.t, 'v': $v}) FILTER (WHERE e.t <= x.t0 AND $v IS NOT NULL), 'v')", v=v
                )
                out.append(exp.alias_(latest, name))
                out.append(
                    exp.alias_(
                        fragment("coalesce(bool_or(e.t > x.t0 AND $v IS NOT NULL), false)", v=v), f"{name}_later"
                    )
                )
            else:
                truths = view.type_of(self._known(view, key)) == "BOOLEAN"  # not every engine has a least truth
                low, high = ("bool_and($v)", "bool_or($v)") if truths else ("min($v)", "max($v)")
                out.append(exp.alias_(fragment(f"CASE WHEN {low} = {high} THEN {low} END", v=v), name))
                out.append(exp.alias_(fragment(f"coalesce({low} <> {high}, false)", v=v), f"{name}_many"))
        rows = exp.select(*row.columns()).from_(view.relation.select.copy().subquery("base"))
        if view.where is not None:
            rows = rows.where(view.where.copy())
        query = sql(
            "SELECT x.uid AS uid, $out FROM source_rows AS e JOIN units AS x ON e.unit = x.unit GROUP BY x.uid",
            out=out,
            source_rows=Query(rows),
            units=Query(self._units(lookup.entity, lookup.users)),
        )
        return Step(
            f"attributes in {view.name}",
            view.relation.key,
            "what was known of each unit at exposure",
            self._columns_read(query, view),
            tuple(self.layout.needs[x].experiment for x in sorted(lookup.users)),
            query,
        )

    def scan(self, scan: Scan, low: exp.Expr | None, high: exp.Expr | None, part: int = 0) -> Step:
        query = self._scan(scan, low, high, part)
        serves = [
            f"{need.experiment}.{metric.name}"
            for x, need in enumerate(self.layout.needs)
            for metric in need.metrics
            if any(self.layout.folded_in(x, m, scan) for m in metric.folds)
        ]
        serves += [
            f"{self.layout.needs[x].experiment}.{a.name}"
            for x in sorted(scan.users)
            for a in self.layout.needs[x].attributes
            if a.measure is not None and self.layout.folded_in(x, a.measure, scan)
        ]
        if scan.stage < 0:
            serves = [self.layout.needs[x].experiment for x in sorted(scan.users)]
        names = sorted({f.measure.source for f in scan.columns})
        return Step(
            f"{'triggers in' if scan.stage < 0 else 'values of'} {', '.join(names)}"
            + (f", part {part + 1} of {scan.parts}" if scan.parts > 1 else ""),
            scan.view.relation.key,
            "the first trigger of each unit at or after exposure"
            if scan.stage < 0
            else "one row a unit: every metric of every experiment over this source, in one pass",
            self._columns_read(query, scan.view),
            tuple(serves),
            query,
        )


def _by_experiment(values: Mapping[int, exp.Expr], xs: Sequence[int]) -> exp.Expr:
    """One expression for every experiment's rows: the value that they share, else a choice by ``x``."""
    texts = {value.sql("duckdb") for value in values.values()}
    if len(texts) == 1 and len(values) == len(xs):
        return next(iter(values.values())).copy()
    out = exp.Case()
    for x, value in values.items():
        out = out.when(fragment("x = $x", x=x), value.copy())
    return out if values else exp.null()


def _first_true(conditions: Mapping[int, exp.Expr]) -> exp.Expr:
    out = exp.Case()
    for x, condition in conditions.items():
        out = out.when(condition.copy(), exp.convert(x))
    return out


def _exclude_each_other(view: View, wheres: Sequence[str | None]) -> bool:
    """Can no row meet two of these conditions, seen by their form: each names another value of one column of text?

    Of text only: to a number '1' and '01' are the same.
    """
    seen = set()
    for text in wheres:
        tree = None if text is None else parsed(text)
        if not (isinstance(tree, exp.EQ) and isinstance(tree.left, exp.Column) and isinstance(tree.right, exp.Literal)):
            return False
        if not tree.right.is_string or view.type_of(view.scalar(tree.left.sql("duckdb"))) != "VARCHAR":
            return False
        seen.add((tree.left.sql("duckdb").lower(), tree.right.name))
    return len({name for name, _ in seen}) == 1 and len(seen) == len(wheres)


def _inside(measure: Measure, opening: str, low: int | None, high: int | None) -> list[exp.Expr]:
    """That ``e.t`` is in the measure's window. ``low``/``high``: offsets from the opening that are already sure."""
    out: list[exp.Expr] = []
    if measure.from_us != low:
        out.append(
            fragment(f"e.t >= {opening} + $w", w=measure.from_us) if measure.from_us else fragment(f"e.t >= {opening}")
        )
    if measure.window_us is not None and measure.window_us != high:
        out.append(
            fragment(f"e.t < {opening} + $w", w=measure.window_us)
            if measure.window_us
            else fragment(f"e.t < {opening}")
        )
    if measure.since_us is not None:
        out.append(fragment("e.t >= $us", us=measure.since_us))
    if measure.before_us is not None:
        out.append(fragment("e.t < $us", us=measure.before_us))
    return out

"""The statements of the sufficient-statistics kernel, bound as syntax trees over a Layout. Nothing here runs one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlglot import exp

from payoff.warehouse.layout import Exposure, Folded, Layout, Scan, sources_of
from payoff.warehouse.needs import Measure
from payoff.warehouse.query import Query, column, conjunction, fragment, sql
from payoff.warehouse.sources import View


@dataclass(frozen=True)
class Step:
    """One statement of a plan. ``reads`` names what is scanned (empty: only temporary tables); ``serves`` who asked."""

    name: str
    reads: str
    purpose: str
    columns: tuple[str, ...]
    serves: tuple[str, ...]
    query: Query

    @cached_property
    def sql(self) -> str:
        return self.query.render()

    def to_dict(self) -> dict[str, Any]:
        return {
            "step": self.name,
            "source": self.reads,
            "purpose": self.purpose,
            "columns": list(self.columns),
            "serves": list(self.serves),
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
        view, clock = exposure.view, exposure.view.clock
        t = clock.us if clock else exp.cast(exp.null(), "BIGINT")
        unit = (
            self.layout.unit(view, exposure.entity) if view.unit_text(exposure.entity) is not None else exp.convert(0)
        )
        hits: list[exp.Expr] = []
        conditions: list[exp.Expr] = []
        for x in exposure.experiments:
            need = self.layout.needs[x]
            limits = [
                # a row without a time is kept here, to be counted among those that had to be left out
                fragment("$t >= $us OR $t IS NULL", t=t, us=need.starts_us) if need.starts_us is not None else None,
                fragment("$t < $us OR $t IS NULL", t=t, us=need.ends_us) if need.ends_us is not None else None,
            ]
            mine = conjunction(None if need.where is None else view.condition(need.where), *limits)
            conditions.append(mine)
            arm = fragment("CAST($v AS VARCHAR)", v=view.scalar(need.variant))
            hits.append(fragment("CASE WHEN $mine THEN {'x': $x, 'arm': $arm} END", mine=mine, x=x, arm=arm))
        own = [exp.alias_(self._own_value(view, m), name) for m, name in exposure.own.items()]
        ids = [exp.alias_(view.scalar(self.layout.id_text(view)), "link_id")] if exposure.with_ids else []
        inner = (
            exp.select(
                exp.alias_(unit, "unit"),
                exp.alias_(t, "t"),
                exp.alias_(exp.Array(expressions=hits), "hits"),
                *own,
                *ids,
            )
            .from_(view.relation.select.copy().subquery("base"))
            .where(conjunction(view.where, exp.or_(*conditions)))
        )
        if len(hits) == 1:
            x = exposure.experiments[0]
            arm = fragment("CAST($v AS VARCHAR)", v=view.scalar(self.layout.needs[x].variant))
            one = (
                exp.select(
                    exp.alias_(unit, "unit"),
                    exp.alias_(t, "t"),
                    exp.alias_(exp.convert(x), "x"),
                    exp.alias_(arm, "arm"),
                    *own,
                    *ids,
                )
                .from_(view.relation.select.copy().subquery("base"))
                .where(conjunction(view.where, conditions[0]))
            )
            rows = Query(one)
        else:
            rows = sql(
                "SELECT * EXCLUDE (hit), hit.x AS x, hit.arm AS arm FROM (SELECT * EXCLUDE (hits), unnest(hits) AS hit FROM wide) WHERE hit IS NOT NULL",
                wide=Query(inner),
            )
        if view.source.one_row_per is not None:
            kept: list[exp.Expr] = [column(name) for name in exposure.own.values()]
            if exposure.with_ids:
                kept.append(exp.alias_(fragment("[link_id]"), "ids"))
            return sql(
                """
                SELECT x, unit, t AS t0, arm AS lo, arm AS hi, 1 AS n,
                       (t IS NULL)::INT AS no_time, (arm IS NULL)::INT AS no_arm, $kept
                FROM rows
                """.replace(", $kept", ", $kept" if kept else ""),
                rows=rows,
                **({"kept": kept} if kept else {}),
            )
        extra = [fragment("array_agg(DISTINCT link_id)")] if exposure.with_ids else []
        return sql(
            """
            SELECT x, unit, min(t) FILTER (WHERE arm IS NOT NULL) AS t0, min(arm) AS lo, max(arm) AS hi, count(*) AS n,
                   count(*) FILTER (WHERE t IS NULL) AS no_time, count(*) FILTER (WHERE arm IS NULL) AS no_arm, $ids
            FROM rows
            GROUP BY x, unit
            """.replace(", $ids", ", $ids" if extra else ""),
            rows=rows,
            **({"ids": [exp.alias_(e, "ids") for e in extra]} if extra else {}),
        )

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

    def _exposed(self, entity: str) -> Query:
        """All experiments of one kind of unit in one table, numbered densely, so that later joins are on integers."""
        branches: list[exp.Query] = []
        for exposure in self.layout.exposures:
            if exposure.entity != entity:
                continue
            own: list[exp.Expr] = [column(name) for name in exposure.own.values()]
            if exposure.with_ids:
                own.append(column("ids"))
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
        return sql("SELECT row_number() OVER () - 1 AS uid, * FROM units", units=Query(union))

    def exposed(self, entity: str) -> Step:
        return Step(
            f"number the {entity}s",
            "",
            "units of one arm each, numbered, so that later joins are on integers",
            (),
            tuple(
                self.layout.needs[x].experiment
                for e in self.layout.exposures
                if e.entity == entity
                for x in e.experiments
            ),
            self._exposed(entity),
        )

    def _scan(self, scan: Scan, low: exp.Expr | None, high: exp.Expr | None) -> Query:
        view, reach = scan.view, self.layout.reach(scan)
        clock = view.clock
        row = _Row()
        row.named(self.layout.unit(view, scan.entity), "unit")
        if clock is not None:
            row.named(clock.us, "t")
        anchors: dict[str, tuple[str, str]] = {}
        wheres: list[exp.Expr | None] = []
        outer = [
            exp.alias_(self._fold(scan, folded, name, row, anchors, wheres, reach), name)
            for folded, name in scan.columns.items()
        ]
        rows = exp.select(*row.columns()).from_(view.relation.select.copy().subquery("base"))
        bounds: list[exp.Expr] = []
        if clock is not None and (low is None or isinstance(low, exp.Literal)):
            # the join below decides exactly; these let whole row groups be skipped
            bounds = clock.between(*(None if b is None else int(b.this) for b in (low, high)))
        elif clock is not None:
            bounds = [fragment("$t BETWEEN $low AND $high", t=clock.us, low=low, high=high)]
        distinct = {w.sql(): w for w in wheres if w is not None}
        any_of = None if any(w is None for w in wheres) else exp.or_(*distinct.values())
        rows = rows.where(conjunction(*bounds, any_of)) if bounds or any_of is not None else rows
        exposed = f"exposed_{scan.entity}"
        users = sorted(scan.users)
        units: exp.Query = exp.select("x.*").from_(exp.table_(exposed, alias="x"))
        everyone = {x for e in self.layout.exposures if e.entity == scan.entity for x in e.experiments}
        if set(users) != everyone:
            units = (
                exp.select("x.*")
                .from_(exp.table_(exposed, alias="x"))
                .where(fragment("x.x IN $xs", xs=exp.Tuple(expressions=[exp.convert(x) for x in users])))
            )
        assert isinstance(units, exp.Select)
        for alias, (table, source_column) in anchors.items():
            units = units.select(exp.alias_(column(source_column, alias), alias)).join(
                exp.table_(table, alias=alias), on=fragment(f"{alias}.uid = x.uid"), join_type="left"
            )
        join = [fragment("e.unit = x.unit")]
        if clock is not None:
            join.append(fragment("e.t >= x.t0"))
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
    ) -> exp.Expr:
        """The aggregate of one measure; adds what it needs to ``row``, and of the unit to ``anchors``."""
        measure, view = folded.measure, self.layout.views[folded.measure.source]
        own = conjunction(view.where, None if measure.where is None else view.condition(measure.where))
        plain = view.where is None and measure.where is None
        wheres.append(None if plain else own)
        filters: list[exp.Expr] = []
        if not plain:
            filters.append(fragment(f"e.{row.named(own, f'{name}_if')}"))
        opening = "x.t0"
        if measure.after is not None:
            assert folded.only is not None
            anchor = Measure(measure.after.source, "first", None, measure.after.where, measure.after.within_us)
            table, source_column = self.layout.table_of(folded.only, anchor)
            alias = f"after_{table}_{source_column}"
            anchors[alias] = (table, source_column)
            opening = f"x.{alias}"
            filters.append(fragment(f"e.t >= {opening}"))
        if (
            view.clock is not None
            and measure.window_us is not None
            and (measure.after is not None or measure.window_us != reach)
        ):
            filters.append(fragment(f"e.t < {opening} + $w", w=measure.window_us))
        if folded.only is not None:
            filters.append(fragment("x.x = $x", x=folded.only))
            target = self.layout.needs[folded.only].source
            if target in view.source.links:
                link = row.named(view.scalar(view.source.links[target]), f"{name}_link")
                filters.append(fragment(f"list_contains(x.ids, e.{link})"))
        value = "" if measure.column is None else row.named(view.number(measure.column), f"{name}_value")
        aggregate = {
            "count": "count(*)",
            "any": "count(*)",
            "sum": f"sum(e.{value})",
            "mean": f"avg(e.{value})",
            "first": "min(e.t)",
        }[measure.fold]
        if not filters:
            return fragment(aggregate)
        return fragment(f"{aggregate} FILTER (WHERE $keep)", keep=exp.and_(*filters))

    def scan(self, scan: Scan, low: exp.Expr | None, high: exp.Expr | None) -> Step:
        query = self._scan(scan, low, high)
        serves = [
            f"{need.experiment}.{metric.name}"
            for x, need in enumerate(self.layout.needs)
            for metric in need.metrics
            if any(self.layout.table_of(x, m)[0] == scan.table for m in metric.measures)
        ]
        names = sorted({f.measure.source for f in scan.columns})
        return Step(
            f"values of {', '.join(names)}",
            scan.view.relation.key,
            "one row a unit: every metric of every experiment over this source, in one pass",
            self._columns_read(query, scan.view),
            tuple(serves),
            query,
        )

    def _unit_values(
        self, x: int, cutoffs: Mapping[str, exp.Expr | None], caps: Mapping[tuple[str, int], exp.Expr]
    ) -> Query:
        """One row a unit of experiment ``x``: arm, and for each metric its values, NULL where it does not enter."""
        need = self.layout.needs[x]
        exposed = f"exposed_{need.entity}"
        tables: dict[str, str] = {}
        raw: list[exp.Expr] = [fragment("x.arm"), fragment("x.t0")]
        kept: list[exp.Expr] = [fragment("arm")]
        for i, metric in enumerate(need.metrics):
            names = [f"v{i}_{j}" for j in range(len(metric.measures))]
            for j, measure in enumerate(metric.measures):
                table, name = self.layout.table_of(x, measure)
                alias = "x" if table == exposed else tables.setdefault(table, f"o{len(tables)}")
                value: exp.Expr = column(name, alias)
                if measure.fold == "any":
                    value = fragment("CASE WHEN $c > 0 THEN 1.0 ELSE 0.0 END", c=value)
                elif measure.fold != "mean":
                    value = fragment("coalesce(CAST($c AS DOUBLE), 0.0)", c=value)
                if (metric.name, j) in caps:
                    # NaN sorts above every number: it stays what it is, and is told of, like infinity
                    value = fragment(
                        "CASE WHEN $v > $cap AND isfinite($v) THEN $cap ELSE $v END", v=value, cap=caps[metric.name, j]
                    )
                raw.append(exp.alias_(value, names[j]))
            if metric.invalid is not None:
                table, name = self.layout.table_of(x, metric.invalid)
                alias = "x" if table == exposed else tables.setdefault(table, f"o{len(tables)}")
                raw.append(exp.alias_(column(name, alias), f"bad{i}"))
                kept.append(column(f"bad{i}"))
            cutoff = cutoffs[metric.name]
            closed = exp.true() if cutoff is None else fragment("t0 <= $cutoff", cutoff=cutoff)
            enters = [] if cutoff is None else [closed]
            if metric.ratio:
                enters.append(fragment(f"NOT ({names[0]} = 0 AND {names[1]} = 0)"))
            for name in names:
                it = column(name)
                kept.append(
                    exp.alias_(fragment("CASE WHEN $k THEN $v END", k=exp.and_(*enters), v=it), name) if enters else it
                )
            kept.append(exp.alias_(closed, f"e{i}"))
        values = exp.select(*raw).from_(exp.table_(exposed, alias="x"))
        for table, alias in tables.items():
            values = values.join(exp.table_(table, alias=alias), on=fragment(f"{alias}.uid = x.uid"), join_type="left")
        return sql(
            "SELECT $kept FROM unit_values", kept=kept, unit_values=Query(values.where(fragment("x.x = $x", x=x)))
        )

    def caps(self, x: int, cutoffs: Mapping[str, exp.Expr | None]) -> Step:
        need = self.layout.needs[x]
        parts: list[exp.Expr] = []
        for i, metric in enumerate(need.metrics):
            for j, measure in enumerate(metric.measures):
                if measure.cap is None or measure.cap.percentile is None:
                    continue
                only = f" FILTER (WHERE v{i}_{j} <> 0)" if measure.cap.nonzero else ""
                parts.append(
                    exp.alias_(
                        fragment(f"quantile_cont(v{i}_{j}, $p){only}", p=measure.cap.percentile / 100), f"cap{i}_{j}"
                    )
                )
        query = sql("SELECT $parts FROM units", parts=parts, units=self._unit_values(x, cutoffs, {}))
        return Step(
            f"caps of {need.experiment}",
            "",
            "percentiles of the unit values pooled over arms",
            (),
            (need.experiment,),
            query,
        )

    def _moments(
        self, x: int, cutoffs: Mapping[str, exp.Expr | None], caps: Mapping[tuple[str, int], exp.Expr]
    ) -> Query:
        need = self.layout.needs[x]
        parts: list[exp.Expr] = []
        index = {metric.name: i for i, metric in enumerate(need.metrics)}
        for i, metric in enumerate(need.metrics):
            parts.append(exp.alias_(fragment(f"count(*) FILTER (WHERE e{i})"), f"eligible{i}"))
            if metric.invalid is not None:
                parts.append(exp.alias_(fragment(f"sum(bad{i})"), f"bad{i}"))
            parts += _moments_of([f"v{i}_{j}" for j in range(len(metric.measures))], f"s{i}", None)
        for a, b in need.crosses:
            i, j = index[a], index[b]
            names = [f"v{i}_{k}" for k in range(len(need.metrics[i].measures))]
            names += [f"v{j}_{k}" for k in range(len(need.metrics[j].measures))]
            parts += _moments_of(names, f"c{i}_{j}", f"v{i}_0 IS NOT NULL AND v{j}_0 IS NOT NULL")
        return sql(
            "SELECT arm, $parts FROM units GROUP BY arm ORDER BY arm",
            parts=parts,
            units=self._unit_values(x, cutoffs, caps),
        )

    def moments(self, x: int, cutoffs: Mapping[str, exp.Expr | None], caps: Mapping[tuple[str, int], exp.Expr]) -> Step:
        need = self.layout.needs[x]
        return Step(
            f"moments of {need.experiment}",
            "",
            "n, mean, variance and covariance by arm",
            (),
            tuple(m.name for m in need.metrics),
            self._moments(x, cutoffs, caps),
        )


def _moments_of(names: Sequence[str], prefix: str, only: str | None) -> list[exp.Expr]:
    """count, averages, variances and covariances of columns, by Welford in the engine: never raw sums of squares."""
    suffix = f" FILTER (WHERE {only})" if only else ""
    parts = [exp.alias_(fragment(f"count({names[0]}){suffix}"), f"{prefix}_n")]
    for a, name in enumerate(names):
        parts.append(exp.alias_(fragment(f"avg({name}){suffix}"), f"{prefix}_mean{a}"))
        parts.append(exp.alias_(fragment(f"var_samp({name}){suffix}"), f"{prefix}_var{a}"))
    for a, b in pairs(len(names)):
        parts.append(exp.alias_(fragment(f"covar_samp({names[a]}, {names[b]}){suffix}"), f"{prefix}_cov{a}_{b}"))
    return parts


def pairs(k: int) -> Iterable[tuple[int, int]]:
    return ((a, b) for a in range(k) for b in range(a + 1, k))

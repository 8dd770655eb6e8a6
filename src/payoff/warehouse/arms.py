"""The sufficient-statistics kernel: from event tables to Moments by arm, in as few scans as there are things to read.

Every assignment source is read once for all experiments over it (first exposures), every outcome once for all metrics of
all experiments that read it (unit values); several sources that are conditions over one table share its scan. What follows
(caps, moments) reads only temporary tables of one row a unit. What returns to the client grows with experiments x metrics
x arms, never with units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from sqlglot import exp

from payoff.errors import DataError
from payoff.stats.moments import Moments
from payoff.warehouse.needs import Anchor, ArmsData, ArmsNeed, Measure, MetricMoments, MetricNeed, SourceProfile
from payoff.warehouse.query import Query, column, conjunction, fragment, sql
from payoff.warehouse.sources import Catalog, View, to_us


@dataclass(frozen=True, slots=True)
class Step:
    """One statement of a plan. ``reads`` names what is scanned (empty: only temporary tables); ``serves`` who asked."""

    name: str
    reads: str
    purpose: str
    columns: tuple[str, ...]
    serves: tuple[str, ...]
    sql: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "step": self.name,
            "source": self.reads,
            "purpose": self.purpose,
            "columns": list(self.columns),
            "serves": list(self.serves),
            "sql": self.sql,
        }


@dataclass(frozen=True, slots=True)
class _Folded:
    """A measure without its cap: what a scan computes. ``only`` is the one experiment it is for, None when any shares it."""

    measure: Measure
    only: int | None


@dataclass(slots=True)
class _Pass:
    """One scan of one relation for one kind of unit. ``stage`` 1 needs the anchors that stage 0 found."""

    stage: int
    entity: str
    view: View
    columns: dict[_Folded, str] = field(default_factory=dict)
    users: set[int] = field(default_factory=set)
    table: str = ""


@dataclass(slots=True)
class _Exposure:
    """One scan of one assignment relation. ``own`` are measures whose source is the one-row-per-unit assignment itself."""

    view: View
    entity: str
    experiments: list[int] = field(default_factory=list)
    own: dict[Measure, str] = field(default_factory=dict)
    with_ids: bool = False
    table: str = ""


class ArmsReader:
    """Unites the needs of a run. ``plan`` shows the statements; ``fetch`` runs them.

    Raises DataError (a source, a column or a value is not what its definition says) and ExpressionError (bad SQL).
    """

    def __init__(self, catalog: Catalog, needs: Sequence[ArmsNeed]) -> None:
        self._catalog, self._needs = catalog, list(needs)
        self._profiles: dict[str, SourceProfile] = {}
        self._views: dict[str, View] = {}
        for name in sorted({n.source for n in needs} | {s for n in needs for s in _sources(n)}):
            self._views[name] = catalog.view(name)
        self._key_types: dict[str, str | None] = {}
        self._exposures: list[_Exposure] = []
        self._passes: list[_Pass] = []
        self._place: dict[tuple[int, Measure], tuple[_Pass | None, str]] = {}
        self.steps: list[Step] = []

    # ---------------------------------------------------------------- public

    def plan(self) -> list[Step]:
        """The statements in order, with what only the data can tell left as $parameters. Reads no rows."""
        self._load_text_files(run=False)
        self._layout()
        steps = self.steps + [self._profile_step(view)[0] for view in self._unique_views()]
        for exposure in self._exposures:
            steps.append(self._exposure_step(exposure))
        for entity in self._entities():
            steps.append(self._exposed_step(entity))
        for scan in self._passes:
            bounds = {k: exp.Placeholder(this=k) for k in ("first_exposure", "last_exposure_and_window")}
            steps.append(self._pass_step(scan, bounds["first_exposure"], bounds["last_exposure_and_window"]))
        for x, need in enumerate(self._needs):
            cutoffs: dict[str, exp.Expr | None] = {
                m.name: exp.Placeholder(this=f"closed_before_{m.name}") if m.horizon_us is not None else None
                for m in need.metrics
            }
            caps: dict[tuple[str, int], exp.Expr] = {}
            if any(measure.cap and measure.cap.percentile for m in need.metrics for measure in m.measures):
                steps.append(self._caps_step(x, cutoffs)[0])
            for m in need.metrics:
                for j, measure in enumerate(m.measures):
                    if measure.cap is not None:
                        given = measure.cap.value
                        caps[m.name, j] = (
                            exp.Placeholder(this=f"cap_{m.name}_{j}") if given is None else exp.convert(given)
                        )
            steps.append(self._moments_step(x, cutoffs, caps))
        return steps

    def fetch(self) -> dict[str, ArmsData]:
        """Run the plan. Returns the answer to each need by experiment name."""
        engine = self._catalog.engine
        self._load_text_files(run=True)
        self._layout()
        for view in self._unique_views():
            self._profile(view)
        counts: dict[int, dict[str, Any]] = {}
        arms: dict[int, dict[str, int]] = {}
        for exposure in self._exposures:
            step = self._exposure_step(exposure)
            engine.keep(exposure.table, self._exposure_query(exposure), step.purpose, exposure.view.name)
            self.steps.append(step)
            self._count_exposures(exposure, counts, arms)
        for entity in self._entities():
            step = self._exposed_step(entity)
            engine.keep(f"exposed_{entity}", self._exposed_query(entity), step.purpose)
            self.steps.append(step)
        for exposure in self._exposures:
            engine.drop(exposure.table)
        for scan in self._passes:
            firsts = [counts[x]["first_us"] for x in scan.users if counts[x]["first_us"] is not None]
            lasts = [counts[x]["last_us"] for x in scan.users if counts[x]["last_us"] is not None]
            reach = self._reach(scan)
            low = exp.convert(min(firsts)) if firsts else None
            high = exp.convert(max(lasts) + reach) if lasts and reach is not None else None
            step = self._pass_step(scan, low, high)
            engine.keep(scan.table, self._pass_query(scan, low, high), step.purpose, scan.view.name)
            self.steps.append(step)
        return {
            need.experiment: self._answer(x, need, counts[x], arms.get(x, {})) for x, need in enumerate(self._needs)
        }

    def _load_text_files(self, run: bool) -> None:
        wanted: dict[str, set[str]] = {}
        for name, view in self._views.items():
            wanted.setdefault(view.relation.key, set()).update(view.referenced(self._texts(name)))
        for key, names, text in self._catalog.load_text_files(wanted, run=run):
            purpose = "a text file is read once, into a temporary table of the columns needed"
            self.steps.append(Step(f"load {key}", key, purpose, names, (), text))

    # ---------------------------------------------------------------- layout

    def _layout(self) -> None:
        if self._exposures:
            return
        for x, need in enumerate(self._needs):
            view = self._views[need.source]
            exposure = next((e for e in self._exposures if e.view is view and e.entity == need.entity), None)
            if exposure is None:
                exposure = _Exposure(view, need.entity, table=f"first_rows_{len(self._exposures)}")
                self._exposures.append(exposure)
            exposure.experiments.append(x)
            anchors = {m.after.source for metric in need.metrics for m in metric.measures if m.after is not None}
            for metric in need.metrics:
                for measure in metric.folds:
                    self._lay(x, need, exposure, replace(measure, cap=None), anchors)
        self._passes.sort(key=lambda p: p.stage)
        for number, scan in enumerate(self._passes):
            scan.table = f"values_{number}"
        for entity in self._entities():
            self._key_types[entity] = self._key_type(entity)

    def _lay(self, x: int, need: ArmsNeed, exposure: _Exposure, measure: Measure, anchors: set[str]) -> None:
        view = self._views[measure.source]
        if view is exposure.view and view.source.one_row_per is not None:
            exposure.own.setdefault(measure, f"own_{self._exposures.index(exposure)}_{len(exposure.own)}")
            self._place[x, measure] = (None, exposure.own[measure])
            return
        if view.clock is not None and exposure.view.clock is None:
            raise DataError(
                f"has no time, so what '{measure.source}' recorded cannot be placed before or after exposure",
                source=need.source,
            )
        stage = 0
        if measure.after is not None:
            anchor = Measure(measure.after.source, "first", None, measure.after.where, measure.after.within_us)
            self._lay(x, need, exposure, anchor, anchors)
            stage = 1
        elif measure.source not in anchors and any(
            p.stage == 1 and p.view.relation.key == view.relation.key for p in self._passes
        ):
            stage = 1
        folded_measure = measure
        if view is exposure.view and need.where is not None:
            both = need.where if measure.where is None else f"({need.where}) AND ({measure.where})"
            folded_measure = replace(measure, where=both)
        linked = need.source in view.source.links
        exposure.with_ids = exposure.with_ids or linked
        folded = _Folded(folded_measure, x if linked or measure.after is not None else None)
        unit = view.unit(need.entity).sql()
        clock = view.clock.us.sql() if view.clock else ""
        scan = next(
            (
                p
                for p in self._passes
                if p.stage == stage
                and p.entity == need.entity
                and p.view.relation.key == view.relation.key
                and p.view.unit(need.entity).sql() == unit
                and (p.view.clock.us.sql() if p.view.clock else "") == clock
            ),
            None,
        )
        if scan is None:
            scan = _Pass(stage, need.entity, view)
            self._passes.append(scan)
        scan.columns.setdefault(folded, f"m{len(scan.columns)}_{measure.fold}")
        scan.users.add(x)
        self._place[x, measure] = (scan, scan.columns[folded])

    def _table_of(self, x: int, measure: Measure) -> tuple[str, str]:
        """Where the values of a measure are: (table, column)."""
        scan, name = self._place[x, replace(measure, cap=None)]
        return (f"exposed_{self._needs[x].entity}" if scan is None else scan.table), name

    def _entities(self) -> list[str]:
        return list(dict.fromkeys(e.entity for e in self._exposures))

    def _unique_views(self) -> list[View]:
        return [self._views[name] for name in sorted(self._views)]

    def _texts(self, source: str) -> list[str]:
        """Every user expression that some need reads of a source."""
        texts: list[str | None] = []
        for need in self._needs:
            if need.source == source:
                view = self._views[source]
                texts += [need.variant, need.where, view.unit_text(need.entity)]
            for metric in need.metrics:
                for m in metric.folds:
                    if m.source == source:
                        texts += [m.column, m.where, self._views[source].unit_text(need.entity)]
                    if m.after is not None and m.after.source == source:
                        texts += [m.after.where, self._views[source].unit_text(need.entity)]
        return [t for t in texts if t is not None]

    def _key_type(self, entity: str) -> str | None:
        """The type units are joined on: their own where every source agrees, else text."""
        kinds = set()
        for exposure in self._exposures:
            if exposure.entity == entity and exposure.view.unit_text(entity) is not None:
                kinds.add(exposure.view.type_of(exposure.view.unit(entity)))
        for scan in self._passes:
            if scan.entity == entity:
                kinds.add(scan.view.type_of(scan.view.unit(entity)))
        return None if len(kinds) <= 1 else "VARCHAR"

    def _unit(self, view: View, entity: str) -> exp.Expr:
        kind = self._key_types.get(entity)
        unit = view.unit(entity)
        return unit if kind is None else exp.cast(unit, kind)

    # ---------------------------------------------------------------- a first look

    def _profile_step(self, view: View) -> tuple[Step, Query]:
        entities = sorted({n.entity for n in self._needs if view.name == n.source or view.name in _sources(n)})
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
        inner = exp.select(*parts).from_(view.relation.select.copy().subquery("base"))
        outer = exp.select("*").from_(inner.subquery("seen"))
        if view.clock is not None:
            outer = exp.select(
                exp.Star(),
                exp.alias_(view.clock.us_of(column("first")), "first_us"),
                exp.alias_(view.clock.us_of(column("last")), "last_us"),
            ).from_(inner.subquery("seen"))
        query = Query(outer)
        columns = tuple(sorted({c.name for p in parts for c in p.find_all(exp.Column)}))
        return (
            Step(
                f"look at {view.name}",
                view.relation.key,
                "rows, NULLs and time span (answered from Parquet or table statistics where they hold them)",
                columns,
                (),
                query.render(),
            ),
            query,
        )

    def _profile(self, view: View) -> None:
        step, query = self._profile_step(view)
        found = self._catalog.engine.row(query, step.name, view.name)
        self.steps.append(step)
        rows = int(found["n"])
        nulls = {k.removeprefix("ids_"): rows - int(v) for k, v in found.items() if k.startswith("ids_")}
        null_times = rows - int(found["times"]) if view.clock is not None else 0
        if view.where is not None and (null_times or any(nulls.values())):
            nulls, null_times = self._exact_nulls(view, list(nulls))
        first, last = found.get("first_us"), found.get("last_us")
        if view.clock is not None and view.source.through is not None:
            last = to_us(view.source.through, view.clock.zone)
        self._profiles[view.name] = SourceProfile(
            name=view.name,
            rows=rows,
            null_ids={view.unit_text(e) or e: n for e, n in nulls.items()},
            null_times=null_times,
            first_us=None if first is None else int(first),
            last_us=None if last is None else int(last),
            repeated_ids=self._repeated(view),
            id_column=view.source.id,
            fingerprint=self._catalog.fingerprint(view.relation),
        )

    def _exact_nulls(self, view: View, entities: list[str]) -> tuple[dict[str, int], int]:
        parts = [
            exp.alias_(fragment("count(*) FILTER (WHERE $u IS NULL)", u=view.unit(e)), f"ids_{e}") for e in entities
        ]
        if view.clock is not None:
            parts.append(exp.alias_(fragment("count(*) FILTER (WHERE $t IS NULL)", t=view.clock.raw), "times"))
        found = self._catalog.engine.row(
            sql("SELECT $parts FROM base", parts=parts, base=Query(view.rows())),
            f"count NULLs of {view.name}",
            view.name,
        )
        return {e: int(found[f"ids_{e}"]) for e in entities}, int(found.get("times", 0))

    def _repeated(self, view: View) -> int | None:
        """Rows whose declared id was seen before. Asked only where a repeat would change a number."""
        entity = view.source.one_row_per
        if entity is not None and view.unit_text(entity) is not None:
            key = view.unit(entity)
        elif view.source.id is not None and any(
            m.source == view.name and m.fold in ("count", "sum", "mean")
            for n in self._needs
            for metric in n.metrics
            for m in metric.measures
        ):
            key = view.scalar(view.source.id)
        else:
            return None
        query = sql("SELECT count($k) - count(DISTINCT $k) AS repeated FROM base", k=key, base=Query(view.rows()))
        found = self._catalog.engine.row(query, f"look for repeated ids in {view.name}", view.name)
        self.steps.append(
            Step(
                f"ids of {view.name}",
                view.relation.key,
                "repeated ids would be counted twice",
                tuple(sorted({c.name for c in key.find_all(exp.Column)})),
                (),
                query.render(),
            )
        )
        repeated = int(found["repeated"])
        if entity is not None and repeated:
            text = view.unit_text(entity)
            raise DataError(
                f"{repeated:,} rows repeat an id, though the source is declared one_row_per: {entity}",
                source=view.name,
                column=text,
                count=repeated,
            )
        return repeated

    # ---------------------------------------------------------------- exposures

    def _exposure_query(self, exposure: _Exposure) -> Query:
        view, clock = exposure.view, exposure.view.clock
        t = clock.us if clock else exp.cast(exp.null(), "BIGINT")
        unit = self._unit(view, exposure.entity) if view.unit_text(exposure.entity) is not None else exp.convert(0)
        hits: list[exp.Expr] = []
        conditions: list[exp.Expr] = []
        for x in exposure.experiments:
            need = self._needs[x]
            limits = [
                fragment("$t >= $us", t=t, us=need.starts_us) if need.starts_us is not None else None,
                fragment("$t < $us", t=t, us=need.ends_us) if need.ends_us is not None else None,
            ]
            mine = conjunction(None if need.where is None else view.condition(need.where), *limits)
            conditions.append(mine)
            arm = fragment("CAST($v AS VARCHAR)", v=view.scalar(need.variant))
            hits.append(fragment("CASE WHEN $mine THEN {'x': $x, 'arm': $arm} END", mine=mine, x=x, arm=arm))
        own = [exp.alias_(self._own_value(view, m), name) for m, name in exposure.own.items()]
        ids = [exp.alias_(view.scalar(self._id_text(view)), "link_id")] if exposure.with_ids else []
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
            arm = fragment("CAST($v AS VARCHAR)", v=view.scalar(self._needs[x].variant))
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
            return sql(
                """
                SELECT x, unit, t AS t0, arm AS lo, arm AS hi, 1 AS n,
                       (t IS NULL)::INT AS no_time, (arm IS NULL)::INT AS no_arm, $own
                FROM rows
                """.replace(", $own", ", $own" if own else ""),
                rows=rows,
                **({"own": [column(name) for name in exposure.own.values()]} if own else {}),
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

    def _id_text(self, view: View) -> str:
        """The column that links point at: the declared id, else a column of the linking column's own name."""
        if view.source.id is not None:
            return view.source.id
        for other in self._views.values():
            text = other.source.links.get(view.name)
            if text is not None and text.lower() in {c.lower() for c in view.relation.columns}:
                return text
        raise DataError("another source links to this one, which declares no id: COLUMN", source=view.name)

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

    def _exposure_step(self, exposure: _Exposure) -> Step:
        query = self._exposure_query(exposure)
        view = exposure.view
        purpose = (
            "one row a unit: arm and its metrics" if view.source.one_row_per else "first exposure and arm of every unit"
        )
        return Step(
            f"exposures in {view.name}",
            view.relation.key,
            purpose,
            self._columns_read(query, view),
            tuple(self._needs[x].experiment for x in exposure.experiments),
            query.render(),
        )

    def _columns_read(self, query: Query, view: View) -> tuple[str, ...]:
        known = set(view.relation.columns)
        return tuple(sorted({c.name for c in query.tree.find_all(exp.Column) if c.name in known}))

    def _count_exposures(
        self, exposure: _Exposure, counts: dict[int, dict[str, Any]], arms: dict[int, dict[str, int]]
    ) -> None:
        engine, table = self._catalog.engine, exposure.table
        timed = exposure.view.clock is not None
        totals = sql(
            f"""
            SELECT x, sum(n) AS n, coalesce(sum(n) FILTER (WHERE unit IS NULL), 0) AS no_id, sum(no_time) AS no_time,
                   sum(no_arm) AS no_arm, count(*) FILTER (WHERE unit IS NOT NULL AND lo <> hi) AS several,
                   min(t0) FILTER (WHERE unit IS NOT NULL) AS first_us, max(t0) FILTER (WHERE unit IS NOT NULL) AS last_us
            FROM {table} GROUP BY x
            """
        )
        by_arm = sql(
            f"""
            SELECT x, lo AS arm, count(*) AS n FROM {table}
            WHERE unit IS NOT NULL AND lo = hi AND (t0 IS NOT NULL OR $untimed) GROUP BY x, lo ORDER BY x, lo
            """,
            untimed=not timed,
        )
        empty = dict.fromkeys(("n", "no_id", "no_time", "no_arm", "several"), 0)
        for x in exposure.experiments:
            counts[x] = {**empty, "first_us": None, "last_us": None}
        for row in engine.fetch(totals, "count exposures").to_pylist():
            counts[row["x"]] = {k: (v if k.endswith("_us") and v is None else int(v)) for k, v in row.items()}
            if not timed:
                counts[row["x"]]["no_time"] = 0
        for row in engine.fetch(by_arm, "count arms").to_pylist():
            arms.setdefault(row["x"], {})[row["arm"]] = row["n"]

    def _exposed_query(self, entity: str) -> Query:
        """All experiments of one kind of unit in one table, numbered densely, so that later joins are on integers."""
        branches: list[exp.Query] = []
        for exposure in self._exposures:
            if exposure.entity != entity:
                continue
            own: list[exp.Expr] = [column(name) for name in exposure.own.values()]
            if exposure.with_ids:
                own.append(column("ids"))
            declared = [
                fragment(
                    "x = $x AND lo NOT IN $arms",
                    x=x,
                    arms=exp.Tuple(expressions=[exp.convert(a) for a in self._needs[x].arms]),
                )
                for x in exposure.experiments
                if self._needs[x].arms
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

    def _exposed_step(self, entity: str) -> Step:
        return Step(
            f"number the {entity}s",
            "",
            "units of one arm each, numbered, so that later joins are on integers",
            (),
            tuple(self._needs[x].experiment for e in self._exposures if e.entity == entity for x in e.experiments),
            self._exposed_query(entity).render(),
        )

    # ---------------------------------------------------------------- outcomes

    def _reach(self, scan: _Pass) -> int | None:
        spans = [f.measure.horizon_us for f in scan.columns]
        known = [s for s in spans if s is not None]
        return max(known) if len(known) == len(spans) else None

    def _pass_query(self, scan: _Pass, low: exp.Expr | None, high: exp.Expr | None) -> Query:
        view, reach = scan.view, self._reach(scan)
        clock = view.clock
        inner: list[exp.Expr] = [exp.alias_(self._unit(view, scan.entity), "unit")]
        if clock is not None:
            inner.append(exp.alias_(clock.us, "t"))
        outer: list[exp.Expr] = []
        anchors: dict[str, tuple[str, str]] = {}
        wheres: list[exp.Expr | None] = []
        for folded, name in scan.columns.items():
            outer.append(exp.alias_(self._fold(scan, folded, name, inner, anchors, wheres, reach), name))
        rows = exp.select(*inner).from_(view.relation.select.copy().subquery("base"))
        bounds: list[exp.Expr | None] = []
        if clock is not None:
            # the stored column is bounded too (a day looser), so that files and row groups are skipped by statistics
            for bound, pick, operator in ((low, clock.no_earlier_than, ">="), (high, clock.no_later_than, "<=")):
                if bound is None:
                    continue
                bounds.append(fragment(f"$t {operator} $b", t=clock.us, b=bound))
                if isinstance(bound, exp.Literal):
                    bounds.append(pick(int(bound.this)))
        any_of = None if any(w is None for w in wheres) else exp.or_(*(w for w in wheres if w is not None))
        kept = conjunction(*bounds, any_of)
        rows = rows.where(kept) if bounds or any_of is not None else rows
        exposed = f"exposed_{scan.entity}"
        users = sorted(scan.users)
        units: exp.Query = exp.select("x.*").from_(exp.table_(exposed, alias="x"))
        everyone = {x for e in self._exposures if e.entity == scan.entity for x in e.experiments}
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
        scan: _Pass,
        folded: _Folded,
        name: str,
        inner: list[exp.Expr],
        anchors: dict[str, tuple[str, str]],
        wheres: list[exp.Expr | None],
        reach: int | None,
    ) -> exp.Expr:
        """The aggregate of one measure; adds what it needs of the row to ``inner``, of the unit to ``anchors``."""
        measure, view = folded.measure, self._views[folded.measure.source]
        own = conjunction(view.where, None if measure.where is None else view.condition(measure.where))
        plain = view.where is None and measure.where is None
        wheres.append(None if plain else own)
        filters: list[exp.Expr] = []
        if not plain:
            inner.append(exp.alias_(own, f"{name}_if"))
            filters.append(fragment(f"e.{name}_if"))
        opening = "x.t0"
        if measure.after is not None:
            assert folded.only is not None
            anchor = Measure(measure.after.source, "first", None, measure.after.where, measure.after.within_us)
            table, source_column = self._table_of(folded.only, anchor)
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
            target = self._needs[folded.only].source
            if target in view.source.links:
                inner.append(exp.alias_(view.scalar(view.source.links[target]), f"{name}_link"))
                filters.append(fragment(f"list_contains(x.ids, e.{name}_link)"))
        if measure.column is not None:
            inner.append(exp.alias_(view.number(measure.column), f"{name}_value"))
        aggregate = {
            "count": "count(*)",
            "any": "count(*)",
            "sum": f"sum(e.{name}_value)",
            "mean": f"avg(e.{name}_value)",
            "first": "min(e.t)",
        }[measure.fold]
        if not filters:
            return fragment(aggregate)
        return fragment(f"{aggregate} FILTER (WHERE $keep)", keep=exp.and_(*filters))

    def _pass_step(self, scan: _Pass, low: exp.Expr | None, high: exp.Expr | None) -> Step:
        query = self._pass_query(scan, low, high)
        serves = [
            f"{need.experiment}.{metric.name}"
            for x, need in enumerate(self._needs)
            for metric in need.metrics
            if any(self._table_of(x, m)[0] == scan.table for m in metric.measures)
        ]
        names = sorted({f.measure.source for f in scan.columns})
        return Step(
            f"values of {', '.join(names)}",
            scan.view.relation.key,
            "one row a unit: every metric of every experiment over this source, in one pass",
            self._columns_read(query, scan.view),
            tuple(serves),
            query.render(),
        )

    # ---------------------------------------------------------------- statistics

    def _unit_values(
        self, x: int, cutoffs: Mapping[str, exp.Expr | None], caps: Mapping[tuple[str, int], exp.Expr]
    ) -> Query:
        """One row a unit of experiment ``x``: arm, and for each metric its values, NULL where it does not enter."""
        need = self._needs[x]
        exposed = f"exposed_{need.entity}"
        tables: dict[str, str] = {}
        raw: list[exp.Expr] = [fragment("x.arm"), fragment("x.t0")]
        kept: list[exp.Expr] = [fragment("arm")]
        for i, metric in enumerate(need.metrics):
            names = [f"v{i}_{j}" for j in range(len(metric.measures))]
            for j, measure in enumerate(metric.measures):
                table, name = self._table_of(x, measure)
                alias = "x" if table == exposed else tables.setdefault(table, f"o{len(tables)}")
                value: exp.Expr = column(name, alias)
                if measure.fold == "any":
                    value = fragment("CASE WHEN $c > 0 THEN 1.0 ELSE 0.0 END", c=value)
                elif measure.fold != "mean":
                    value = fragment("coalesce(CAST($c AS DOUBLE), 0.0)", c=value)
                if (metric.name, j) in caps:
                    value = fragment("CASE WHEN $v > $cap THEN $cap ELSE $v END", v=value, cap=caps[metric.name, j])
                raw.append(exp.alias_(value, names[j]))
            if metric.invalid is not None:
                table, name = self._table_of(x, metric.invalid)
                alias = "x" if table == exposed else tables.setdefault(table, f"o{len(tables)}")
                raw.append(exp.alias_(column(name, alias), f"bad{i}"))
                kept.append(column(f"bad{i}"))
            cutoff = cutoffs[metric.name]
            closed = exp.true() if cutoff is None else fragment("t0 <= $cutoff", cutoff=cutoff)
            enters = [] if cutoff is None else [closed]
            if len(names) == 2:
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

    def _caps_step(self, x: int, cutoffs: Mapping[str, exp.Expr | None]) -> tuple[Step, Query]:
        need = self._needs[x]
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
        step = Step(
            f"caps of {need.experiment}",
            "",
            "percentiles of the unit values pooled over arms",
            (),
            (need.experiment,),
            query.render(),
        )
        return step, query

    def _moments_query(
        self, x: int, cutoffs: Mapping[str, exp.Expr | None], caps: Mapping[tuple[str, int], exp.Expr]
    ) -> Query:
        need = self._needs[x]
        parts: list[exp.Expr] = []
        index = {metric.name: i for i, metric in enumerate(need.metrics)}
        for i, metric in enumerate(need.metrics):
            parts.append(exp.alias_(fragment(f"count(*) FILTER (WHERE e{i})"), f"eligible{i}"))
            parts.append(exp.alias_(fragment(f"count(*) FILTER (WHERE v{i}_0 <> 0)"), f"converted{i}"))
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

    def _moments_step(
        self, x: int, cutoffs: Mapping[str, exp.Expr | None], caps: Mapping[tuple[str, int], exp.Expr]
    ) -> Step:
        need = self._needs[x]
        return Step(
            f"moments of {need.experiment}",
            "",
            "n, mean, variance and covariance by arm",
            (),
            tuple(m.name for m in need.metrics),
            self._moments_query(x, cutoffs, caps).render(),
        )

    def _answer(self, x: int, need: ArmsNeed, counts: Mapping[str, Any], arms: Mapping[str, int]) -> ArmsData:
        engine = self._catalog.engine
        involved = sorted({need.source} | _sources(need))
        clocks = [self._profiles[s].last_us for s in involved if self._profiles[s].last_us is not None]
        as_of = max(c for c in clocks if c is not None) if clocks else None
        cutoffs: dict[str, exp.Expr | None] = {}
        for metric in need.metrics:
            through = [
                self._profiles[s].last_us
                for s in _metric_sources(metric)
                if self._views[s].source.through is not None and self._views[s].clock is not None
            ]
            complete = min([t for t in through if t is not None] + ([as_of] if as_of is not None else []), default=None)
            horizon = metric.horizon_us
            timed = counts["first_us"] is not None and any(self._views[s].clock for s in _metric_sources(metric))
            cutoffs[metric.name] = (
                exp.convert(complete - horizon) if timed and complete is not None and horizon is not None else None
            )
        caps: dict[tuple[str, int], float] = {}
        if any(m.cap is not None and m.cap.percentile is not None for metric in need.metrics for m in metric.measures):
            step, query = self._caps_step(x, cutoffs)
            found = engine.row(query, step.name)
            self.steps.append(step)
        for i, metric in enumerate(need.metrics):
            for j, measure in enumerate(metric.measures):
                if measure.cap is None:
                    continue
                value = measure.cap.value if measure.cap.value is not None else found[f"cap{i}_{j}"]
                if value is not None:
                    caps[metric.name, j] = float(value)
        bound = {k: exp.convert(v) for k, v in caps.items()}
        step = self._moments_step(x, cutoffs, bound)
        self.steps.append(step)
        try:
            table = engine.fetch(self._moments_query(x, cutoffs, bound), step.name).to_pylist()
        except DataError:
            self._name_what_is_not_finite(need)
            raise
        if not all(math.isfinite(v) for row in table for v in row.values() if isinstance(v, float)):
            self._name_what_is_not_finite(need)
            raise DataError(
                f"a metric of {need.experiment} overflows: values are too large for a variance", source=need.source
            )
        exposed = {arm: n for arm, n in arms.items() if not need.arms or arm in need.arms}
        metrics: dict[str, MetricMoments] = {}
        for i, metric in enumerate(need.metrics):
            k = len(metric.measures)
            moments = {row["arm"]: _read_moments(row, f"s{i}", k) for row in table}
            eligible = {row["arm"]: row[f"eligible{i}"] for row in table}
            metrics[metric.name] = MetricMoments(
                moments=moments,
                ineligible={arm: n - eligible.get(arm, 0) for arm, n in exposed.items()},
                eligible=eligible,
                without={arm: eligible[arm] - moments[arm].n for arm in moments},
                converted={row["arm"]: row[f"converted{i}"] for row in table},
                caps=tuple(caps.get((metric.name, j)) for j in range(k)),
                invalid=sum(int(row.get(f"bad{i}") or 0) for row in table),
            )
        index = {metric.name: i for i, metric in enumerate(need.metrics)}
        crosses = {
            (a, b): {
                row["arm"]: _read_moments(
                    row,
                    f"c{index[a]}_{index[b]}",
                    len(need.metrics[index[a]].measures) + len(need.metrics[index[b]].measures),
                )
                for row in table
            }
            for a, b in need.crosses
        }
        view = self._views[need.source]
        return ArmsData(
            exposed=exposed,
            several_arms=counts["several"],
            unknown_arms={arm: n for arm, n in arms.items() if need.arms and arm not in need.arms},
            rows=counts["n"],
            rows_without_id=counts["no_id"],
            rows_without_time=counts["no_time"],
            rows_without_arm=counts["no_arm"],
            unit_column=view.unit_text(need.entity) or "(row)",
            first_us=counts["first_us"],
            last_us=counts["last_us"],
            as_of_us=as_of,
            metrics=metrics,
            crosses=crosses,
            sources={s: self._profiles[s] for s in involved},
            sql=tuple(
                (s.name, s.sql)
                for s in self.steps
                if not s.serves
                or any(v.split(".")[0] == need.experiment or v == need.experiment for v in s.serves)
                or s is step
            ),
        )

    def _name_what_is_not_finite(self, need: ArmsNeed) -> None:
        """Raise DataError for the first column that holds NaN or infinity."""
        for metric in need.metrics:
            for measure in metric.measures:
                if measure.column is None:
                    continue
                view = self._views[measure.source]
                found = self._catalog.engine.row(
                    sql(
                        "SELECT count(*) FILTER (WHERE NOT isfinite(v)) AS bad FROM (SELECT $v AS v FROM base)",
                        v=view.number(measure.column),
                        base=Query(view.rows()),
                    ),
                    "look for NaN and infinity",
                    view.name,
                )
                if found["bad"]:
                    raise DataError(
                        f"{found['bad']:,} values are NaN or infinite (metric '{metric.name}'); leave them out with where:"
                        f' "isfinite({measure.column})" or mend them at the source',
                        source=view.name,
                        column=measure.column,
                        count=int(found["bad"]),
                    )


def _sources(need: ArmsNeed) -> set[str]:
    return {s for metric in need.metrics for s in _metric_sources(metric)}


def _metric_sources(metric: MetricNeed) -> set[str]:
    return {m.source for m in metric.measures} | {
        m.after.source for m in metric.measures if isinstance(m.after, Anchor)
    }


def _moments_of(names: Sequence[str], prefix: str, only: str | None) -> list[exp.Expr]:
    """count, averages, variances and covariances of columns, by Welford in the engine: never raw sums of squares."""
    suffix = f" FILTER (WHERE {only})" if only else ""
    parts = [exp.alias_(fragment(f"count({names[0]}){suffix}"), f"{prefix}_n")]
    for a, name in enumerate(names):
        parts.append(exp.alias_(fragment(f"avg({name}){suffix}"), f"{prefix}_mean{a}"))
        parts.append(exp.alias_(fragment(f"var_samp({name}){suffix}"), f"{prefix}_var{a}"))
    for a, b in _pairs(len(names)):
        parts.append(exp.alias_(fragment(f"covar_samp({names[a]}, {names[b]}){suffix}"), f"{prefix}_cov{a}_{b}"))
    return parts


def _pairs(k: int) -> Iterable[tuple[int, int]]:
    return ((a, b) for a in range(k) for b in range(a + 1, k))


def _read_moments(row: Mapping[str, Any], prefix: str, k: int) -> Moments:
    n = row[f"{prefix}_n"]
    mean, cov = np.zeros(k), np.zeros((k, k))
    if n:
        mean[:] = [row[f"{prefix}_mean{a}"] for a in range(k)]
    if n > 1:
        for a in range(k):
            cov[a, a] = row[f"{prefix}_var{a}"]
        for a, b in _pairs(k):
            cov[a, b] = cov[b, a] = row[f"{prefix}_cov{a}_{b}"]
    return Moments(n, mean, cov)

"""The sufficient-statistics kernel: from event tables to Moments by arm, in as few scans as there are things to read.

Every assignment source is read once for all experiments over it (first exposures), every outcome once for all metrics of
all experiments that read it (unit values); several sources that are conditions over one table share its scan. What follows
(attributes, caps, moments) reads only temporary tables of one row a unit. What returns to the client grows with experiments x metrics
x arms, never with units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlglot import exp

from payoff.errors import DataError
from payoff.stats import adjust, quantile
from payoff.stats.moments import Moments
from payoff.warehouse.fused import Pass
from payoff.warehouse.layout import Exposure, Layout, Rows, Scan, metric_sources, sources_of
from payoff.warehouse.needs import (
    ROWS,
    ArmQuantile,
    ArmsData,
    ArmsNeed,
    AttributeNeed,
    AttributeProfile,
    ClusterProfile,
    IfCapped,
    MetricMoments,
    MetricNeed,
    SourceProfile,
)
from payoff.warehouse.query import Query, fragment, sql
from payoff.warehouse.sources import Catalog, View, to_us
from payoff.warehouse.state import Refresh, begin
from payoff.warehouse.statements import Statements, Step
from payoff.warehouse.units import (
    IN,
    MOST_CLASSES,
    UNKNOWN,
    Facts,
    Summed,
    Units,
    class_of,
    double,
    needs_units_kept,
    of_classes,
    of_number,
    placeholder,
    read_moments,
)

_CALENDAR = (-62_135_596_800_000_000, 253_402_300_800_000_000)
"""The years 1 to 9999 in microseconds since the epoch."""
_ROW = 64
"""Bytes of memory that a row of a pass for many experiments must find, sorted and joined: beyond it the pass is made in parts."""
_HEAVY = 0.05
"""A share of an arm's variance: where one unit makes more, what a cap would do is worked out too."""


class ArmsReader:
    """Unites the needs of a run. ``plan`` shows the statements; ``fetch`` runs them, and ``steps`` lists what was run.

    Raises DataError (a source, a column or a value is not what its definition says) and ExpressionError (bad SQL).
    """

    def __init__(self, catalog: Catalog, needs: Sequence[ArmsNeed], *, full: bool = False) -> None:
        self._layout = Layout(catalog, needs)
        self._statements = Statements(self._layout)
        self._profiles: dict[str, SourceProfile] = {}
        self._passes: dict[str, Pass] = {}
        self._full = full
        self._refreshed: dict[str, Refresh] = {}
        self._exact = False
        self.steps: list[Step] = []

    def _fuse(self, exposed: int | None = None) -> None:
        """Which scans are made in one walk over a prepared copy. Where all are, no figure may depend on an order of rows.

        ``exposed``: how many exposures there are, where that is known; a walk that has no room for them is made in SQL.
        """
        found = {scan.table: Pass.of(self._layout, scan) for scan in self._layout.scans}
        self._passes = {
            table: one
            for table, one in found.items()
            if isinstance(one, Pass) and (exposed is None or one.fits(exposed))
        }
        kept = {scan.table for scan in self._layout.scans if scan.entity in self._refreshed}
        self._exact = bool(found) and len(self._passes.keys() | kept) == len(found)
        for scan in self._layout.scans:
            scan.ordered = scan.ordered and scan.table not in self._passes

    def _scanned(self, scan: Scan, low: exp.Expr | None, high: exp.Expr | None) -> Step:
        step = self._statements.scan(scan, low, high)
        return self._passes[scan.table].step(step) if scan.table in self._passes else step.keeping(scan.table)

    def plan(self) -> list[Step]:
        """The statements in order, with what only the data can tell left as $parameters. Reads no rows.

        What a heavy tail would become under a cap is worked out only where there is one, and is not in the plan.
        """
        self._prepare(run=False)
        layout, statements = self._layout, self._statements
        layout.arrange()
        self._fuse()
        steps = list(self.steps)
        for view in layout.unique_views():
            steps += [step for step in (statements.profile(view), statements.ids(view)) if step is not None]
        for exposure in layout.exposures:
            step, refresh = statements.exposure(exposure), begin(layout, exposure.entity, full=False)
            if layout.catalog.prepared:
                said = refresh.foreseen() if isinstance(refresh, Refresh) else f"full: {refresh}"
                step = replace(step, purpose=f"{step.purpose} ({said})")
            steps.append(step.keeping(exposure.table))
        low, high = placeholder("first_exposure"), placeholder("last_exposure_and_window")
        for entity in layout.entities():
            stages = statements.stages(entity)
            steps.append(statements.assigned(entity).keeping(stages[0]))
            steps += [self._scanned(s, low, high) for s in layout.scans if s.stage < 0 and s.entity == entity]
            steps += [statements.triggered(entity).keeping(stages[1])] if self._has_triggers(entity) else []
            if self._has_clusters(entity):
                steps.append(statements.mixed_clusters(entity).keeping(f"mixed_{entity}"))
                steps.append(statements.clustered(entity).keeping(stages[-1]))
            assert stages[-1] == f"exposed_{entity}"
        steps += [self._scanned(scan, low, high) for scan in layout.scans if scan.stage >= 0]
        steps += [statements.rows(rows, low, high).keeping(rows.table) for rows in layout.rows]
        steps += [statements.lookup(lookup).keeping(lookup.table) for lookup in layout.lookups]
        for x, need in enumerate(layout.needs):
            steps += self._planned(x, need)
        return steps

    def _planned(self, x: int, need: ArmsNeed) -> list[Step]:
        units, steps = Units(self._layout, x, self._exact), []
        facts = Facts(
            {m.name: placeholder(f"closed_before_{m.name}") if m.horizon_us is not None else None for m in need.metrics}
        )
        if need.cluster is not None:
            steps.append(units.clusters())
        if need.attributes:
            steps += [units.attributes().keeping(units.table("attributes")), units.profile()]
            for k, attribute in enumerate(need.attributes):
                cuts = [*attribute.cuts, *attribute.quantiles]
                if attribute.name in need.segments:
                    facts.segments[attribute.name] = class_of(attribute, k, cuts)[0]
                if attribute.name in need.covariates and units.is_number(attribute):
                    facts.covariates += of_number(attribute, k, placeholder(f"mean_of_{attribute.name}"), gaps=False)
                elif attribute.name in need.covariates:
                    steps.append(units.classes(k))
                    facts.covariates += of_classes(attribute, k, ["", f"$classes_of_{attribute.name}"])
        kept = self._exact or needs_units_kept(need)
        if kept:
            steps.append(units.keep(facts).keeping(units.table("units")))
        found = units.facts(facts, kept)
        steps += [found] if found is not None else []
        for m in need.metrics:
            for j, measure in enumerate(m.measures):
                if measure.cap is not None:
                    given = measure.cap.value
                    facts.caps[m.name, j] = placeholder(f"cap_{m.name}_{j}") if given is None else double(given)
        for step, _, _ in self._moments_of(units, facts, kept):
            steps += _with_rows(step)
        for m in need.metrics:
            if m.quantile is not None:
                at, ends = placeholder("quantile"), (placeholder("low_rank"), placeholder("high_rank"))
                arms = need.arms or ("$arm",)
                steps += [
                    units.spread(m, facts).keeping(units.table("spread")),
                    units.quantiles(m),
                    *_with_rows(units.below(m, dict.fromkeys(arms, at))),
                ]
                steps.append(units.outer(m, dict.fromkeys(arms, ends)))
        steps += [units.crossed_arms(n) for n in range(len(need.beside))]
        return steps

    def _has_triggers(self, entity: str) -> bool:
        return any(n.entity == entity and n.trigger is not None for n in self._layout.needs)

    def _has_clusters(self, entity: str) -> bool:
        return any(n.entity == entity and n.cluster is not None for n in self._layout.needs)

    # ---------------------------------------------------------------- running

    def fetch(self) -> dict[str, ArmsData]:
        """Run the plan. Returns the answer to each need by experiment name."""
        layout, statements = self._layout, self._statements
        self._prepare(run=True)
        layout.arrange()
        for entity in layout.entities():
            refresh = begin(layout, entity, full=self._full)
            if isinstance(refresh, Refresh):
                self._refreshed[entity] = refresh.open()
        for view in layout.unique_views():
            self._profile(view)
        for scan in layout.scans:
            if scan.ordered:
                wanted = self._profiles[scan.view.name].rows * _ROW
                scan.parts = math.ceil(max(wanted, 1) / layout.catalog.engine.memory())
        counts: dict[int, dict[str, Any]] = {}
        arms: dict[int, dict[str, int]] = {}
        placed: list[tuple[int, Refresh]] = []
        self._refreshed = {entity: refresh for entity, refresh in self._refreshed.items() if refresh.count()}
        for refresh in self._refreshed.values():
            placed.append((len(self.steps), refresh))
            self.steps += refresh.steps()
            for x in refresh.experiments:
                counts[x], arms[x] = refresh.counts(x)
        for exposure in layout.exposures:
            if exposure.entity not in self._refreshed:
                self._keep(exposure.table, statements.exposure(exposure), exposure.view.name)
                self._count_exposures(exposure, counts, arms)
        self._fuse(sum(n for by_arm in arms.values() for n in by_arm.values()))
        for entity in layout.entities():
            if entity not in self._refreshed:
                self._expose(entity, counts)
        for scan in layout.scans:
            if scan.stage >= 0 and scan.entity not in self._refreshed:
                self._read(scan, *self._span(scan, counts))
        named = {rows.entity for rows in layout.rows} | {lookup.entity for lookup in layout.lookups}
        for entity in named & self._refreshed.keys():
            self._refreshed[entity].show()
        for rows in layout.rows:
            self._keep(rows.table, statements.rows(rows, *self._span(rows, counts)), rows.view.name)
        for lookup in layout.lookups:
            self._keep(lookup.table, statements.lookup(lookup), lookup.view.name)
        answers = {
            need.experiment: self._answer(x, need, counts[x], arms.get(x, {})) for x, need in enumerate(layout.needs)
        }
        for at, refresh in placed:
            refresh.keep()
            self.steps[at] = replace(self.steps[at], purpose=f"{self.steps[at].purpose} ({refresh.told})")
        return answers

    def _looked(self, view: View, query: Callable[[View], Query], what: str) -> dict[str, Any]:
        """The row of a statement of counts and times over a source: of one that is refreshed, only new parts are asked."""
        for refresh in self._refreshed.values():
            found = refresh.summed(view, query, what)
            if found is not None:
                return found
        return self._layout.catalog.engine.row(query(view), what, view.name)

    def _keep(self, table: str, step: Step, source: str | None = None) -> None:
        self._layout.catalog.engine.keep(table, step.query, step.name, source)
        self.steps.append(step.keeping(table))

    def _read(self, scan: Scan, low: exp.Expr | None, high: exp.Expr | None) -> None:
        if scan.table in self._passes:
            exposed = self._statements.stages(scan.entity)[0 if scan.stage < 0 else -1]
            bounds = [None if bound is None else int(bound.sql()) for bound in (low, high)]
            step = self._statements.scan(scan, low, high)
            self.steps.append(self._passes[scan.table].run(exposed, bounds[0], bounds[1], step))
            return
        self._keep(scan.table, self._statements.scan(scan, low, high), scan.view.name)
        for part in range(1, scan.parts):
            step = self._statements.scan(scan, low, high, part)
            self._layout.catalog.engine.append(scan.table, step.query, step.name, scan.view.name)
            self.steps.append(step)

    def _rows(self, step: Step) -> list[dict[str, Any]]:
        """The rows of a statement over unit values. Raises ValueError where moments that are summed exactly are not finite."""
        engine = self._layout.catalog.engine
        self.steps += _with_rows(step)
        rows: list[dict[str, Any]] = engine.fetch(step.query, step.name).to_pylist()
        if isinstance(step, Summed) and step.rows is not None:
            rows = step.complete(rows, engine.fetch(step.rows.query, step.rows.name), engine.threads())
        return rows

    def _span(
        self, read: Scan | Rows, counts: Mapping[int, Mapping[str, Any]]
    ) -> tuple[exp.Expr | None, exp.Expr | None]:
        """The first and the last time that a pass can need, None where there is no bound."""
        if isinstance(read, Rows):
            back, reach = max(0, -read.folded.measure.from_us), read.folded.measure.horizon_us
        else:
            back, reach = self._layout.back(read), self._layout.reach(read)
        firsts = [counts[x]["first_us"] for x in read.users if counts[x]["first_us"] is not None]
        lasts = [counts[x]["last_us"] for x in read.users if counts[x]["last_us"] is not None]
        low = exp.convert(min(firsts) - back) if firsts else None
        return low, exp.convert(max(lasts) + reach) if lasts and reach is not None else None

    def _expose(self, entity: str, counts: dict[int, dict[str, Any]]) -> None:
        """The exposed units of every experiment on one kind of unit: numbered, triggered, of clusters in one arm."""
        layout, statements, engine = self._layout, self._statements, self._layout.catalog.engine
        stages = statements.stages(entity)
        self._keep(stages[0], statements.assigned(entity))
        for exposure in layout.exposures:
            if exposure.entity == entity:
                engine.drop(exposure.table)
        at = 0
        if self._has_triggers(entity):
            for scan in layout.scans:
                if scan.stage < 0 and scan.entity == entity:
                    low, _ = self._span(scan, counts)
                    self._read(scan, low, None)
            self._keep(stages[1], statements.triggered(entity))
            moved = [x for x, n in enumerate(layout.needs) if n.entity == entity and n.trigger is not None]
            for x in moved:
                before, after = (self._arms_in(stages[s], x, counts[x], s == 1) for s in (0, 1))
                counts[x]["untriggered"] = {
                    arm: n - after.get(arm, 0) for arm, n in before.items() if n > after.get(arm, 0)
                }
                counts[x]["exposed"] = after
            at = 1
        if self._has_clusters(entity):
            self._keep(f"mixed_{entity}", statements.mixed_clusters(entity))
            self._keep(stages[at + 1], statements.clustered(entity))
            for x in [x for x, n in enumerate(layout.needs) if n.entity == entity and n.cluster is not None]:
                counted = sql(
                    f"""
                    SELECT (SELECT count(*) FROM mixed_{entity} WHERE x = $x) AS several,
                           (SELECT count(*) FROM {stages[at]} WHERE x = $x AND cluster IS NULL) AS without
                    """,
                    x=x,
                )
                counts[x]["mixed"] = engine.row(counted, "count clusters")
                counts[x]["exposed"] = self._arms_in(stages[-1], x, counts[x], True)
            engine.drop(f"mixed_{entity}")
        for table in stages[:-1]:
            engine.drop(table)

    def _arms_in(self, table: str, x: int, counts: dict[str, Any], spanned: bool) -> dict[str, int]:
        """Units by arm, and (``spanned``) the span of their exposures into ``counts``."""
        query = sql(
            f"SELECT arm, count(*) AS n, min(t0) AS first_us, max(t0) AS last_us FROM {table} WHERE x = $x GROUP BY arm ORDER BY arm",
            x=x,
        )
        rows = self._layout.catalog.engine.fetch(query, "count exposed units").to_pylist()
        if spanned:
            counts["first_us"] = min((r["first_us"] for r in rows if r["first_us"] is not None), default=None)
            counts["last_us"] = max((r["last_us"] for r in rows if r["last_us"] is not None), default=None)
        return {row["arm"]: int(row["n"]) for row in rows}

    def _profile(self, view: View) -> None:
        step = self._statements.profile(view)
        found = self._looked(view, lambda v: self._statements.profile(v).query, step.name)
        self.steps.append(step)
        rows = self._layout.catalog.engine.rows[view.name] = int(found["n"])
        nulls = {k.removeprefix("ids_"): rows - int(v) for k, v in found.items() if k.startswith("ids_")}
        null_times = rows - int(found["times"]) if view.clock is not None else 0
        if view.where is not None and (null_times or any(nulls.values())):
            rows, nulls, null_times = self._exact_nulls(view, list(nulls))
        first, last = found.get("first_us"), found.get("last_us")
        timed = view.clock is not None and int(found["times"]) > 0
        if timed and not all(us is not None and _CALENDAR[0] <= int(us) < _CALENDAR[1] for us in (first, last)):
            raise DataError(
                "holds times outside the calendar (infinity, or a year beyond 9999); leave them out with time:"
                f' "CASE WHEN isfinite({view.source.time}) THEN {view.source.time} END" or mend them at the source',
                source=view.name,
                column=view.source.time,
            )
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
            fingerprint=self._layout.catalog.fingerprint(view.relation),
            clock=None if view.clock is None else view.clock.kind,
            declared_through=view.source.through is not None,
            declared_zone=view.source.timezone is not None,
        )

    def _exact_nulls(self, view: View, entities: list[str]) -> tuple[int, dict[str, int], int]:
        parts: list[exp.Expr] = [exp.alias_(fragment("count(*)"), "n")]
        parts += [
            exp.alias_(fragment("count(*) FILTER (WHERE $u IS NULL)", u=view.unit(e)), f"ids_{e}") for e in entities
        ]
        if view.clock is not None:
            parts.append(exp.alias_(fragment("count(*) FILTER (WHERE $t IS NULL)", t=view.clock.raw), "times"))
        found = self._looked(
            view,
            lambda v: sql("SELECT $parts FROM base", parts=parts, base=Query(v.rows())),
            f"count NULLs of {view.name}",
        )
        return int(found["n"]), {e: int(found[f"ids_{e}"]) for e in entities}, int(found.get("times", 0))

    def _repeated(self, view: View) -> int | None:
        """Rows whose declared id was seen before; None where no figure depends on it."""
        step = self._statements.ids(view)
        if step is None:
            return None
        repeated = int(self._layout.catalog.engine.row(step.query, step.name, view.name)["repeated"])
        self.steps.append(step)
        entity = view.source.one_row_per
        if entity is not None and repeated:
            raise DataError(
                f"{repeated:,} rows repeat an id, though the source is declared one_row_per: {entity}",
                source=view.name,
                column=view.unit_text(entity),
                count=repeated,
            )
        return repeated

    def _count_exposures(
        self, exposure: Exposure, counts: dict[int, dict[str, Any]], arms: dict[int, dict[str, int]]
    ) -> None:
        engine, table = self._layout.catalog.engine, exposure.table
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

    # ---------------------------------------------------------------- answers

    def _answer(self, x: int, need: ArmsNeed, counts: Mapping[str, Any], arms: Mapping[str, int]) -> ArmsData:
        engine, began = self._layout.catalog.engine, len(self.steps)
        units = Units(self._layout, x, self._exact)
        involved = sorted({need.source} | sources_of(need))
        as_of = self._as_of(need)
        facts = Facts(self._cutoffs(need, counts, as_of))
        exposed = {arm: n for arm, n in arms.items() if not need.arms or arm in need.arms}
        exposed = counts.get("exposed", exposed)
        summed = self._summed(x)
        if summed is None and need.entity in self._refreshed:
            self._refreshed[need.entity].show()
        clusters = self._clusters(units, counts) if need.cluster is not None else None
        attributes, order = self._attributes(units, facts)
        kept = summed is None and (self._exact or needs_units_kept(need))
        if kept:
            self._keep(units.table("units"), units.keep(facts))
        self._facts(units, facts, kept)
        metrics, crosses = self._metrics(units, facts, kept, exposed, order)
        beside = {
            name: {(r["arm"], r["other"]): int(r["n"]) for r in self._rows(units.crossed_arms(n))}
            for n, name in enumerate(need.beside)
        }
        for table in ("attributes", "units"):
            engine.drop(units.table(table))
        view = self._layout.views[need.source]
        return ArmsData(
            exposed=exposed,
            several_arms=counts["several"],
            unknown_arms={arm: n for arm, n in arms.items() if need.arms and arm not in need.arms},
            rows=counts["n"],
            rows_without_id=counts["no_id"],
            rows_without_time=counts["no_time"],
            rows_without_arm=counts["no_arm"],
            unit_column=view.unit_text(need.entity) or ROWS,
            first_us=counts["first_us"],
            last_us=counts["last_us"],
            as_of_us=as_of,
            metrics=metrics,
            crosses=crosses,
            sources={s: self._profiles[s] for s in involved},
            sql=tuple(
                (s.name, s.sql)
                for number, s in enumerate(self.steps)
                if number >= began
                or (s.reads and not s.serves)
                or any(v == need.experiment or v.split(".")[0] == need.experiment for v in s.serves)
            ),
            attributes=attributes,
            cluster=clusters,
            untriggered=counts.get("untriggered", {}),
            beside=beside,
        )

    def _as_of(self, need: ArmsNeed) -> int | None:
        """The latest time of the sources whose rows are counted: what is known of units says nothing of how far those go."""
        named = {need.source, *(s for metric in need.metrics for s in metric_sources(metric))}
        named |= {need.trigger.source} if need.trigger is not None else set()
        clocks = [us for s in named if (us := self._profiles[s].last_us) is not None]
        return max(clocks, default=None)

    def _cutoffs(self, need: ArmsNeed, counts: Mapping[str, Any], as_of: int | None) -> dict[str, exp.Expr | None]:
        cutoffs: dict[str, exp.Expr | None] = {}
        for metric in need.metrics:
            through = [
                self._profiles[s].last_us
                for s in metric_sources(metric)
                if self._layout.views[s].source.through is not None and self._layout.views[s].clock is not None
            ]
            complete = min([t for t in through if t is not None] + ([as_of] if as_of is not None else []), default=None)
            horizon = metric.horizon_us
            timed = counts["first_us"] is not None and any(self._layout.views[s].clock for s in metric_sources(metric))
            cutoff = complete - horizon if timed and complete is not None and horizon is not None else None
            # where the last unit's window is closed, all are, and no unit need be asked
            if cutoff is not None and counts["last_us"] is not None and counts["last_us"] <= cutoff:
                cutoff = None
            cutoffs[metric.name] = None if cutoff is None else exp.convert(cutoff)
        return cutoffs

    def _clusters(self, units: Units, counts: Mapping[str, Any]) -> ClusterProfile:
        rows, mixed = self._rows(units.clusters()), counts["mixed"]
        return ClusterProfile(
            clusters={row["arm"]: int(row["clusters"]) for row in rows},
            single=sum(int(row["single"]) for row in rows),
            several_arms=int(mixed["several"]),
            without=int(mixed["without"]),
            largest=max((float(row["largest"]) for row in rows), default=0.0),
        )

    def _attributes(self, units: Units, facts: Facts) -> tuple[dict[str, AttributeProfile], dict[str, list[str]]]:
        """Profiles of the attributes, the order of their classes; segments and covariates into ``facts``."""
        need = units.need
        if not need.attributes:
            return {}, {}
        self._keep(units.table("attributes"), units.attributes())
        (found,) = self._rows(units.profile())
        profiles: dict[str, AttributeProfile] = {}
        order: dict[str, list[str]] = {}
        for k, attribute in enumerate(need.attributes):
            n, known, later, many = (
                int(found["n"]),
                *(int(found[f"{part}{k}"] or 0) for part in ("known", "later", "many")),
            )
            profile = AttributeProfile(
                attribute.name,
                missing=n - known - later - many,
                future=later,
                ambiguous=many,
                classes=int(found[f"classes{k}"]),
                refused=_refused(need, attribute, n, known, later, many, int(found[f"classes{k}"])),
            )
            profiles[attribute.name] = profile
            if profile.refused is not None:
                continue
            if attribute.name in need.segments:
                cuts = list(attribute.cuts)
                if attribute.quantiles:  # ties make some of them the same; names of their own need them all
                    cuts = [float(found[f"cut{k}_{j}"]) for j in range(len(attribute.quantiles))]
                    cuts = cuts if attribute.labels else sorted(set(cuts))
                facts.segments[attribute.name], order[attribute.name] = class_of(attribute, k, cuts)
            if attribute.name in need.covariates and units.is_number(attribute):
                facts.covariates += of_number(attribute, k, double(found[f"mean{k}"]), gaps=known < n)
            elif attribute.name in need.covariates:
                classes = [row["class"] for row in self._rows(units.classes(k))]
                facts.covariates += of_classes(attribute, k, classes)
        return profiles, order

    def _facts(self, units: Units, facts: Facts, kept: bool) -> None:
        """Caps, and what stands for the values before exposure that some units have not, into ``facts``."""
        step = units.facts(facts, kept)
        found = self._rows(step)[0] if step is not None else {}
        for i, metric in enumerate(units.need.metrics):
            for j, measure in enumerate(metric.measures):
                if measure.cap is not None:
                    value = measure.cap.value if measure.cap.value is not None else found[f"cap{i}_{j}"]
                    if value is not None:
                        facts.caps[metric.name, j] = double(value)
            for j in range(len(metric.before)):
                if f"centre{i}_{j}" in found:
                    centre = found[f"centre{i}_{j}"]
                    facts.centres[metric.name, j] = (
                        double(0.0 if centre is None else centre),
                        bool(found[f"gaps{i}_{j}"]),
                    )

    def _moments_of(self, units: Units, facts: Facts, kept: bool) -> list[tuple[Step, list[MetricNeed], Sequence[str]]]:
        """The statements of moments: each with its metrics and the keys that it groups by besides the arm."""
        need = units.need
        crossed = {name for pair in units.crosses for name in pair}
        segmented = [m for m in need.metrics if m.segments and facts.segments and m.quantile is None]
        plain = [m for m in need.metrics if m not in segmented]
        plain += [m for m in segmented if m.name in crossed]
        out: list[tuple[Step, list[MetricNeed], Sequence[str]]] = []
        if plain:
            out.append((units.moments(plain, facts, kept, (), units.crosses), plain, ()))
        if segmented:
            keys = [f"s{k}" for k in range(len(facts.segments))]
            out.append((units.moments(segmented, facts, kept, keys), segmented, keys))
        beside = [m for m in need.metrics if m.name in need.beside_metrics and m.quantile is None]
        if beside and need.beside:
            keys = [f"o{n}" for n in range(len(need.beside))]
            out.append((units.moments(beside, facts, kept, keys), beside, keys))
        return out

    def _metrics(
        self,
        units: Units,
        facts: Facts,
        kept: bool,
        exposed: Mapping[str, int],
        order: Mapping[str, list[str]],
    ) -> tuple[dict[str, MetricMoments], dict[tuple[str, str], dict[str, Moments]]]:
        need = units.need
        whole: dict[str, dict[str, Mapping[str, Any]]] = {m.name: {} for m in need.metrics}
        segments: dict[str, dict[str, dict[str, dict[str, Moments]]]] = {m.name: {} for m in need.metrics}
        beside: dict[str, dict[str, dict[tuple[str, str], Moments]]] = {m.name: {} for m in need.metrics}
        crosses: dict[tuple[str, str], dict[str, Moments]] = {pair: {} for pair in units.crosses}
        names = list(facts.segments)
        for step, metrics, keys in self._moments_of(units, facts, kept):
            for row in self._finite(need, step, self._again(units, facts, step)):
                key = next((k for k in keys if row[k] is not None), None)
                for metric in metrics:
                    if key is None:
                        whole[metric.name].setdefault(row["arm"], row)
                    elif metric.quantile is not None:
                        continue
                    elif key.startswith("s"):
                        classes = segments[metric.name].setdefault(names[int(key[1:])], {})
                        found = read_moments(row, units.columns(metric, facts))
                        classes.setdefault(row[key], {})[row["arm"]] = found
                    elif row[key].startswith(IN):
                        cells = beside[metric.name].setdefault(need.beside[int(key[1:])], {})
                        pair = row["arm"], row[key].removeprefix(IN)
                        cells[pair] = read_moments(row, units.columns(metric, facts))
                if not keys:
                    for a, b in units.crosses:
                        crosses[a, b][row["arm"]] = read_moments(row, units.crossed(a, b, facts))
        out: dict[str, MetricMoments] = {}
        for metric in need.metrics:
            out[metric.name] = self._metric(
                units, facts, metric, whole[metric.name], exposed,
                {name: _ordered(classes, order[name]) for name, classes in segments[metric.name].items()},
                beside[metric.name],
            )  # fmt: skip
        tops = {
            m.name: {arm: row[f"high{units.index[m.name]}_0"] for arm, row in whole[m.name].items()}
            for m in need.metrics
            if m.quantile is None
        }
        for name, capped in self._if_capped(units, facts, kept, out, tops).items():
            out[name] = replace(out[name], if_capped=capped)
        return out, crosses

    def _metric(
        self,
        units: Units,
        facts: Facts,
        metric: MetricNeed,
        rows: Mapping[str, Mapping[str, Any]],
        exposed: Mapping[str, int],
        segments: Mapping[str, Mapping[str, Mapping[str, Moments]]],
        beside: Mapping[str, Mapping[tuple[str, str], Moments]],
    ) -> MetricMoments:
        i, k = units.index[metric.name], len(metric.measures)
        eligible = {arm: int(row[f"eligible{i}"] or 0) for arm, row in rows.items()}
        numbers = MetricMoments(
            moments={},
            ineligible={arm: n - eligible.get(arm, 0) for arm, n in exposed.items()},
            eligible=eligible,
            without={},
            caps=tuple(_number(facts.caps.get((metric.name, j))) for j in range(k)),
            invalid=sum(int(row.get(f"bad{i}") or 0) for row in rows.values()),
        )
        if metric.quantile is not None:
            return self._quantiles(units, facts, metric, numbers)
        moments = {arm: read_moments(row, units.columns(metric, facts)) for arm, row in rows.items()}
        counted = {arm: int(row[f"units{i}"] or 0) if units.clustered else moments[arm].n for arm, row in rows.items()}
        lows, highs = (
            [[row[f"{end}{i}_{j}"] for row in rows.values() if row[f"{end}{i}_{j}"] is not None] for j in range(k)]
            for end in ("low", "high")
        )
        some = any(counted.values())
        return replace(
            numbers,
            moments=moments,
            without={arm: eligible[arm] - counted[arm] for arm in moments},
            covariates=units.covariates(metric, facts),
            units=counted,
            lowest=tuple(min(values) for values in lows) if some else (),
            highest=tuple(max(values) for values in highs) if some else (),
            negative=sum(int(row[f"negative{i}"] or 0) for row in rows.values()),
            segments=segments,
            beside=beside,
        )

    def _if_capped(
        self,
        units: Units,
        facts: Facts,
        kept: bool,
        metrics: Mapping[str, MetricMoments],
        tops: Mapping[str, Mapping[str, float | None]],
    ) -> dict[str, IfCapped]:
        """What a cap would do to the single totals of which one unit makes much of an arm's variance."""
        heavy: dict[str, float] = {}
        for metric in units.need.metrics:
            measure, numbers = metric.measures[0], metrics[metric.name]
            single = len(metric.measures) == 1 and metric.quantile is None and measure.fold in ("count", "sum")
            if not single or measure.cap is not None or units.clustered or not numbers.highest:
                continue
            shares = [
                (adjust.tail_share(top, float(m.mean[0]), float(m.cov[0, 0]), m.n), m.n)
                for arm, m in numbers.moments.items()
                if m.n > 1 and m.cov[0, 0] > 0 and (top := tops[metric.name].get(arm)) is not None
            ]
            # of a few hundred units without any tail the largest lies sqrt(2 ln n) deviations up: twice that is a tail
            if any(share > max(_HEAVY, 8 * math.log(n) / (n - 1)) for share, n in shares):
                heavy[metric.name] = max(share for share, _ in shares)
        if not heavy:
            return {}
        if units.need.entity in self._refreshed:
            self._refreshed[units.need.entity].show()
        rows = self._finite(units.need, units.if_capped(list(heavy), facts, kept))
        out = {}
        for name, share in heavy.items():
            i = units.index[name]
            cap = next((row[f"cap{i}"] for row in rows if row[f"cap{i}"] is not None), None)
            if cap is not None and cap > 0:
                moments = {row["arm"]: read_moments(row, [f"v{i}_0"]) for row in rows}
                out[name] = IfCapped(float(cap), sum(int(row[f"above{i}"]) for row in rows), moments, share)
        return out

    def _quantiles(self, units: Units, facts: Facts, metric: MetricNeed, numbers: MetricMoments) -> MetricMoments:
        assert metric.quantile is not None
        engine, wanted, table = self._layout.catalog.engine, metric.quantile, units.table("spread")
        self._keep(table, units.spread(metric, facts))
        found = {row["arm"]: row for row in self._rows(units.quantiles(metric))}
        if any(row["bad"] for row in found.values()):
            self._name_what_is_not_finite(units.need)
            raise DataError(f"metric '{metric.name}' has values that are not finite", source=metric.measures[0].source)
        drawn: dict[str, Moments] = {}
        ranks: dict[str, tuple[float, float]] = {}
        why: dict[str, str] = {}
        if found:
            at = {arm: double(row["value"]) for arm, row in found.items()}
            drawn = {r["arm"]: read_moments(r, ["below", "rows"]) for r in self._rows(units.below(metric, at))}
        for arm, row in found.items():
            try:
                ranks[arm] = quantile.outer_ranks(drawn[arm], int(row["rows"]), wanted.q, wanted.level)
            except ValueError as error:
                why[arm] = str(error)
        quantiles: dict[str, ArmQuantile] = {}
        if ranks:
            (ends,) = self._rows(units.outer(metric, {arm: (double(a), double(b)) for arm, (a, b) in ranks.items()}))
            for n, arm in enumerate(ranks):
                low, high = float(ends[f"low{n}"]), float(ends[f"high{n}"])
                quantiles[arm] = ArmQuantile(
                    value=float(found[arm]["value"]),
                    low=low,
                    high=high,
                    se=quantile.quantile_se(low, high, wanted.level, drawn[arm].n - 1.0),
                    n=drawn[arm].n,
                    rows=int(found[arm]["rows"]),
                )
        engine.drop(table)
        counted = {arm: int(found[arm]["units"]) if arm in found else 0 for arm in numbers.eligible}
        return replace(
            numbers,
            without={arm: n - counted[arm] for arm, n in numbers.eligible.items()},
            units=counted,
            lowest=(min(float(row["low"]) for row in found.values()),) if found else (),
            highest=(max(float(row["high"]) for row in found.values()),) if found else (),
            quantiles=quantiles,
            no_quantile=why,
        )

    def _summed(self, x: int) -> Refresh | None:
        """What keeps the sums of an experiment's moments, where something does."""
        refresh = self._refreshed.get(self._layout.needs[x].entity)
        return refresh if refresh is not None and refresh.sums(x) else None

    def _again(self, units: Units, facts: Facts, step: Step) -> Callable[[], list[dict[str, Any]]] | None:
        """The rows of ``step``, the statement of an experiment's moments, from sums that are kept."""
        summed = self._summed(units.x)
        if summed is None:
            return None
        assert isinstance(step, Summed)

        def make(facts: Facts) -> Summed:
            ((step, _, _),) = self._moments_of(units, facts, False)
            assert isinstance(step, Summed)
            return step

        return lambda: summed.moments(units.x, step, make, facts)

    def _finite(
        self, need: ArmsNeed, step: Step, kept: Callable[[], list[dict[str, Any]]] | None = None
    ) -> list[dict[str, Any]]:
        """The rows of a statement of moments, from the sums that are ``kept`` where there are any. Raises DataError for a number
        that is none."""
        try:
            if kept is None:
                rows = self._rows(step)
            else:
                self.steps += _with_rows(step)
                rows = kept()
        except DataError:
            self._name_what_is_not_finite(need)
            raise
        except ValueError:
            rows = [{"overflow": math.inf}]
        if not all(math.isfinite(v) for row in rows for v in row.values() if isinstance(v, float)):
            self._name_what_is_not_finite(need)
            raise DataError(
                f"a metric of {need.experiment} overflows: values are too large for a variance", source=need.source
            )
        return rows

    def _name_what_is_not_finite(self, need: ArmsNeed) -> None:
        """Raise DataError for the first column that holds NaN or infinity."""
        for metric in need.metrics:
            for measure in metric.measures:
                if measure.column is None:
                    continue
                view = self._layout.views[measure.source]
                found = self._layout.catalog.engine.row(
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

    def _prepare(self, run: bool) -> None:
        """Text files, identities and sessions: read once, into temporary tables of the columns needed."""
        self._layout.columns_wanted()
        self.steps += self._layout.catalog.prepare(run=run)


def _with_rows(step: Step) -> list[Step]:
    """A statement, and that of the values whose moments are summed outside it."""
    return [step, step.rows] if isinstance(step, Summed) and step.rows is not None else [step]


def _refused(
    need: ArmsNeed, attribute: AttributeNeed, n: int, known: int, later: int, many: int, classes: int
) -> str | None:
    """Why an attribute cannot serve, as a clause, or None."""
    if later > 0 and (known == 0 or later > n / 2):
        return (
            f"{later:,} of {n:,} units have only values measured after exposure: it may be an effect of the treatment"
        )
    if known == 0 and n:
        return (
            f"all {many:,} units that have values have several, and no time says which was there at exposure"
            if many
            else "nothing is known of it for any exposed unit"
        )
    if attribute.name in need.segments and not attribute.cuts and not attribute.quantiles and classes > MOST_CLASSES:
        return f"it has {classes:,} values, and segments have at most {MOST_CLASSES}"
    return None


def _ordered(classes: Mapping[str, Mapping[str, Moments]], order: Sequence[str]) -> Mapping[str, Mapping[str, Moments]]:
    """Classes as their cuts order them, else by name; the unknown last."""
    place = {name: i for i, name in enumerate(order)}
    return {name: classes[name] for name in sorted(classes, key=lambda c: (c == UNKNOWN, place.get(c, -1), c))}


def _number(value: exp.Expr | None) -> float | None:
    return None if value is None else float(value.this.name)

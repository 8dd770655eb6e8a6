"""The sufficient-statistics kernel: from event tables to Moments by arm, in as few scans as there are things to read.

Every assignment source is read once for all experiments over it (first exposures), every outcome once for all metrics of
all experiments that read it (unit values); several sources that are conditions over one table share its scan. What follows
(caps, moments) reads only temporary tables of one row a unit. What returns to the client grows with experiments x metrics
x arms, never with units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlglot import exp

from payoff.errors import DataError
from payoff.stats.moments import Moments
from payoff.warehouse.layout import Exposure, Layout, metric_sources, sources_of
from payoff.warehouse.needs import ROWS, ArmsData, ArmsNeed, MetricMoments, SourceProfile
from payoff.warehouse.query import Query, fragment, sql
from payoff.warehouse.sources import Catalog, View, to_us
from payoff.warehouse.statements import Statements, Step, pairs

_CALENDAR = (-62_135_596_800_000_000, 253_402_300_800_000_000)
"""The years 1 to 9999 in microseconds since the epoch."""


class ArmsReader:
    """Unites the needs of a run. ``plan`` shows the statements; ``fetch`` runs them, and ``steps`` lists what was run.

    Raises DataError (a source, a column or a value is not what its definition says) and ExpressionError (bad SQL).
    """

    def __init__(self, catalog: Catalog, needs: Sequence[ArmsNeed]) -> None:
        self._layout = Layout(catalog, needs)
        self._statements = Statements(self._layout)
        self._profiles: dict[str, SourceProfile] = {}
        self.steps: list[Step] = []

    def plan(self) -> list[Step]:
        """The statements in order, with what only the data can tell left as $parameters. Reads no rows."""
        self._load_text_files(run=False)
        self._layout.arrange()
        steps = list(self.steps)
        for view in self._layout.unique_views():
            steps += [step for step in (self._statements.profile(view), self._statements.ids(view)) if step is not None]
        for exposure in self._layout.exposures:
            steps.append(self._statements.exposure(exposure))
        for entity in self._layout.entities():
            steps.append(self._statements.exposed(entity))
        for scan in self._layout.scans:
            bounds = {k: exp.Placeholder(this=k) for k in ("first_exposure", "last_exposure_and_window")}
            steps.append(self._statements.scan(scan, bounds["first_exposure"], bounds["last_exposure_and_window"]))
        for x, need in enumerate(self._layout.needs):
            cutoffs: dict[str, exp.Expr | None] = {
                m.name: exp.Placeholder(this=f"closed_before_{m.name}") if m.horizon_us is not None else None
                for m in need.metrics
            }
            caps: dict[tuple[str, int], exp.Expr] = {}
            if any(measure.cap and measure.cap.percentile for m in need.metrics for measure in m.measures):
                steps.append(self._statements.caps(x, cutoffs))
            for m in need.metrics:
                for j, measure in enumerate(m.measures):
                    if measure.cap is not None:
                        given = measure.cap.value
                        caps[m.name, j] = (
                            exp.Placeholder(this=f"cap_{m.name}_{j}") if given is None else exp.convert(given)
                        )
            steps.append(self._statements.moments(x, cutoffs, caps))
        return steps

    def fetch(self) -> dict[str, ArmsData]:
        """Run the plan. Returns the answer to each need by experiment name."""
        engine = self._layout.catalog.engine
        self._load_text_files(run=True)
        self._layout.arrange()
        for view in self._layout.unique_views():
            self._profile(view)
        counts: dict[int, dict[str, Any]] = {}
        arms: dict[int, dict[str, int]] = {}
        for exposure in self._layout.exposures:
            step = self._statements.exposure(exposure)
            engine.keep(exposure.table, step.query, step.purpose, exposure.view.name)
            self.steps.append(step)
            self._count_exposures(exposure, counts, arms)
        for entity in self._layout.entities():
            step = self._statements.exposed(entity)
            engine.keep(f"exposed_{entity}", step.query, step.purpose)
            self.steps.append(step)
        for exposure in self._layout.exposures:
            engine.drop(exposure.table)
        for scan in self._layout.scans:
            firsts = [counts[x]["first_us"] for x in scan.users if counts[x]["first_us"] is not None]
            lasts = [counts[x]["last_us"] for x in scan.users if counts[x]["last_us"] is not None]
            reach = self._layout.reach(scan)
            low = exp.convert(min(firsts)) if firsts else None
            high = exp.convert(max(lasts) + reach) if lasts and reach is not None else None
            step = self._statements.scan(scan, low, high)
            engine.keep(scan.table, step.query, step.purpose, scan.view.name)
            self.steps.append(step)
        return {
            need.experiment: self._answer(x, need, counts[x], arms.get(x, {}))
            for x, need in enumerate(self._layout.needs)
        }

    def _profile(self, view: View) -> None:
        step = self._statements.profile(view)
        found = self._layout.catalog.engine.row(step.query, step.name, view.name)
        self.steps.append(step)
        rows = int(found["n"])
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
        )

    def _exact_nulls(self, view: View, entities: list[str]) -> tuple[int, dict[str, int], int]:
        parts: list[exp.Expr] = [exp.alias_(fragment("count(*)"), "n")]
        parts += [
            exp.alias_(fragment("count(*) FILTER (WHERE $u IS NULL)", u=view.unit(e)), f"ids_{e}") for e in entities
        ]
        if view.clock is not None:
            parts.append(exp.alias_(fragment("count(*) FILTER (WHERE $t IS NULL)", t=view.clock.raw), "times"))
        found = self._layout.catalog.engine.row(
            sql("SELECT $parts FROM base", parts=parts, base=Query(view.rows())),
            f"count NULLs of {view.name}",
            view.name,
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

    def _answer(self, x: int, need: ArmsNeed, counts: Mapping[str, Any], arms: Mapping[str, int]) -> ArmsData:
        engine = self._layout.catalog.engine
        involved = sorted({need.source} | sources_of(need))
        clocks = [self._profiles[s].last_us for s in involved if self._profiles[s].last_us is not None]
        as_of = max(c for c in clocks if c is not None) if clocks else None
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
            cutoffs[metric.name] = (
                exp.convert(complete - horizon) if timed and complete is not None and horizon is not None else None
            )
        caps: dict[tuple[str, int], float] = {}
        if any(m.cap is not None and m.cap.percentile is not None for metric in need.metrics for m in metric.measures):
            step = self._statements.caps(x, cutoffs)
            found = engine.row(step.query, step.name)
            self.steps.append(step)
        for i, metric in enumerate(need.metrics):
            for j, measure in enumerate(metric.measures):
                if measure.cap is None:
                    continue
                value = measure.cap.value if measure.cap.value is not None else found[f"cap{i}_{j}"]
                if value is not None:
                    caps[metric.name, j] = float(value)
        bound = {k: exp.convert(v) for k, v in caps.items()}
        step = self._statements.moments(x, cutoffs, bound)
        self.steps.append(step)
        try:
            table = engine.fetch(step.query, step.name).to_pylist()
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

    def _load_text_files(self, run: bool) -> None:
        for key, names, query in self._layout.catalog.load_text_files(self._layout.columns_wanted(), run=run):
            purpose = "a text file is read once, into a temporary table of the columns needed"
            self.steps.append(Step(f"load {key}", key, purpose, names, (), query))


def _read_moments(row: Mapping[str, Any], prefix: str, k: int) -> Moments:
    n = row[f"{prefix}_n"]
    mean, cov = np.zeros(k), np.zeros((k, k))
    if n:
        mean[:] = [row[f"{prefix}_mean{a}"] for a in range(k)]
    if n > 1:
        for a in range(k):
            cov[a, a] = row[f"{prefix}_var{a}"]
        for a, b in pairs(k):
            cov[a, b] = cov[b, a] = row[f"{prefix}_cov{a}_{b}"]
    return Moments(n, mean, cov)

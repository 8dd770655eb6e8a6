"""What is read where: every need of a run laid over as few scans as there are things to read.

An assignment's relation is read once for all experiments over it; an outcome's once for all metrics of all experiments that
read it, whatever conditions their sources put on it. Nothing here makes or runs a statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sqlglot import exp

from payoff.errors import DataError
from payoff.warehouse.needs import Anchor, ArmsNeed, Measure, MetricNeed
from payoff.warehouse.query import fragment
from payoff.warehouse.sources import Catalog, View

_FIT_BIGINT = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}


@dataclass(frozen=True, slots=True)
class Folded:
    """A measure without its cap: what a scan computes. ``only`` is the one experiment it is for, None when any shares it."""

    measure: Measure
    only: int | None


@dataclass(slots=True)
class Scan:
    """One pass over one relation for one kind of unit. ``stage`` 1 needs the anchors that stage 0 found."""

    stage: int
    entity: str
    view: View
    columns: dict[Folded, str] = field(default_factory=dict)
    users: set[int] = field(default_factory=set)
    table: str = ""


@dataclass(slots=True)
class Exposure:
    """One scan of one assignment relation. ``own`` are measures whose source is the one-row-per-unit assignment itself."""

    view: View
    entity: str
    experiments: list[int] = field(default_factory=list)
    own: dict[Measure, str] = field(default_factory=dict)
    with_ids: bool = False
    table: str = ""


class Layout:
    """Where each measure of each need is computed: in which scan, under which column.

    Raises DataError (a source is not what its definition says) and ExpressionError (bad SQL).
    """

    def __init__(self, catalog: Catalog, needs: Sequence[ArmsNeed]) -> None:
        self.catalog, self.needs = catalog, list(needs)
        names = sorted({n.source for n in needs} | {s for n in needs for s in sources_of(n)})
        self.views: dict[str, View] = {name: catalog.view(name) for name in names}
        self.exposures: list[Exposure] = []
        self.scans: list[Scan] = []
        self._key_types: dict[str, str | None] = {}
        self._place: dict[tuple[int, Measure], tuple[Scan | None, str]] = {}

    def columns_wanted(self) -> dict[str, set[str]]:
        """Relation -> columns that some need reads, for loading text files."""
        wanted: dict[str, set[str]] = {}
        for name, view in self.views.items():
            wanted.setdefault(view.relation.key, set()).update(view.referenced(self._texts(name)))
        return wanted

    def arrange(self) -> None:
        if self.exposures:
            return
        for x, need in enumerate(self.needs):
            view = self.views[need.source]
            exposure = next((e for e in self.exposures if e.view is view and e.entity == need.entity), None)
            if exposure is None:
                exposure = Exposure(view, need.entity, table=f"first_rows_{len(self.exposures)}")
                self.exposures.append(exposure)
            exposure.experiments.append(x)
            anchors = {m.after.source for metric in need.metrics for m in metric.measures if m.after is not None}
            for metric in need.metrics:
                for measure in metric.folds:
                    self._lay(x, need, exposure, replace(measure, cap=None), anchors)
        self.scans.sort(key=lambda p: p.stage)
        for number, scan in enumerate(self.scans):
            scan.table = f"values_{number}"
        for entity in self.entities():
            self._key_types[entity] = self._key_type(entity)

    def _lay(self, x: int, need: ArmsNeed, exposure: Exposure, measure: Measure, anchors: set[str]) -> None:
        view = self.views[measure.source]
        alone = measure.after is None and measure.fold != "first"  # an anchor's time is found by a scan
        if view is exposure.view and view.source.one_row_per is not None and alone:
            exposure.own.setdefault(measure, f"own_{self.exposures.index(exposure)}_{len(exposure.own)}")
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
            p.stage == 1 and p.view.relation.key == view.relation.key for p in self.scans
        ):
            stage = 1
        folded_measure = measure
        if view is exposure.view and need.where is not None:
            both = need.where if measure.where is None else f"({need.where}) AND ({measure.where})"
            folded_measure = replace(measure, where=both)
        linked = need.source in view.source.links
        exposure.with_ids = exposure.with_ids or linked
        folded = Folded(folded_measure, x if linked or measure.after is not None else None)
        unit = view.unit(need.entity).sql()
        clock = view.clock.us.sql() if view.clock else ""
        scan = next(
            (
                p
                for p in self.scans
                if p.stage == stage
                and p.entity == need.entity
                and p.view.relation.key == view.relation.key
                and p.view.unit(need.entity).sql() == unit
                and (p.view.clock.us.sql() if p.view.clock else "") == clock
            ),
            None,
        )
        if scan is None:
            scan = Scan(stage, need.entity, view)
            self.scans.append(scan)
        scan.columns.setdefault(folded, f"m{len(scan.columns)}_{measure.fold}")
        scan.users.add(x)
        self._place[x, measure] = (scan, scan.columns[folded])

    def table_of(self, x: int, measure: Measure) -> tuple[str, str]:
        """Where the values of a measure are: (table, column)."""
        scan, name = self._place[x, replace(measure, cap=None)]
        return (f"exposed_{self.needs[x].entity}" if scan is None else scan.table), name

    def entities(self) -> list[str]:
        return list(dict.fromkeys(e.entity for e in self.exposures))

    def unique_views(self) -> list[View]:
        return [self.views[name] for name in sorted(self.views)]

    def _texts(self, source: str) -> list[str]:
        """Every user expression that some need reads of a source."""
        texts: list[str | None] = []
        for need in self.needs:
            if need.source == source:
                view = self.views[source]
                texts += [need.variant, need.where, view.unit_text(need.entity)]
            for metric in need.metrics:
                for m in metric.folds:
                    if m.source == source:
                        texts += [m.column, m.where, self.views[source].unit_text(need.entity)]
                    if m.after is not None and m.after.source == source:
                        texts += [m.after.where, self.views[source].unit_text(need.entity)]
        return [t for t in texts if t is not None]

    def _key_type(self, entity: str) -> str | None:
        """The type units are joined on: their own where every source agrees, BIGINT where all fit it, else text."""
        kinds = set()
        for exposure in self.exposures:
            if exposure.entity == entity and exposure.view.unit_text(entity) is not None:
                kinds.add(exposure.view.type_of(exposure.view.unit(entity)))
        for scan in self.scans:
            if scan.entity == entity:
                kinds.add(scan.view.type_of(scan.view.unit(entity)))
        if len(kinds) <= 1:
            return None
        return "BIGINT" if kinds <= _FIT_BIGINT else "VARCHAR"

    def unit(self, view: View, entity: str) -> exp.Expr:
        kind = self._key_types.get(entity)
        unit = view.unit(entity)
        if kind == "VARCHAR" and view.type_of(unit).startswith(("FLOAT", "DOUBLE", "DECIMAL")):
            # whole numbers stored as fractions (pandas makes ids with gaps so): 7.0 is the unit '7'
            whole = fragment("TRY_CAST(CASE WHEN $u = floor($u) THEN $u END AS HUGEINT)", u=exp.paren(unit))
            return fragment("coalesce(CAST($w AS VARCHAR), CAST($u AS VARCHAR))", w=whole, u=exp.paren(unit))
        return unit if kind is None else exp.cast(unit, kind)

    def reach(self, scan: Scan) -> int | None:
        spans = [f.measure.horizon_us for f in scan.columns]
        known = [s for s in spans if s is not None]
        return max(known) if len(known) == len(spans) else None

    def id_text(self, view: View) -> str:
        """The column that links point at: the declared id, else a column of the linking column's own name."""
        if view.source.id is not None:
            return view.source.id
        for other in self.views.values():
            text = other.source.links.get(view.name)
            if text is not None and text.lower() in {c.lower() for c in view.relation.columns}:
                return text
        raise DataError("another source links to this one, which declares no id: COLUMN", source=view.name)


def sources_of(need: ArmsNeed) -> set[str]:
    return {s for metric in need.metrics for s in metric_sources(metric)}


def metric_sources(metric: MetricNeed) -> set[str]:
    return {m.source for m in metric.measures} | {
        m.after.source for m in metric.measures if isinstance(m.after, Anchor)
    }

"""What is read where: every need of a run laid over as few scans as there are things to read.

An assignment's relation is read once for all experiments over it; an outcome's once for all metrics of all experiments that
read it, whatever conditions their sources put on it. Nothing here makes or runs a statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sqlglot import exp

from payoff.errors import DataError
from payoff.warehouse.needs import Anchor, ArmsNeed, AttributeNeed, Measure, MetricNeed
from payoff.warehouse.query import fragment
from payoff.warehouse.sources import Catalog, View

_WORTH_ORDERING = 4
"""Experiments in a pass from which on it is ordered. A row then meets several exposures, which lie side by side, and their values
stay in the processor's cache until the unit's next row. Where a row meets few, there is little to gain for the sort."""

_FIT_BIGINT = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}


@dataclass(frozen=True, slots=True)
class Folded:
    """A measure without its cap: what a scan computes. ``only`` is the one experiment it is for, None when any shares it."""

    measure: Measure
    only: int | None


@dataclass(slots=True)
class Scan:
    """One pass over one relation for one kind of unit.

    ``stage`` -1 finds the triggers that open exposure, 0 folds, 1 needs the anchors that stage 0 found. ``period_us``: the
    units are periods of units, and each row belongs to one of them. ``ordered``: rows and units are first put in the order of
    the units, on which no figure depends. ``parts``: how many times the relation is gone through, each time for some of the units.
    """

    stage: int
    entity: str
    view: View
    period_us: int | None = None
    columns: dict[Folded, str] = field(default_factory=dict)
    users: set[int] = field(default_factory=set)
    table: str = ""
    ordered: bool = False
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Known:
    """A column of what was known of units: an expression, or (``since``) a time."""

    text: str
    since: bool


@dataclass(slots=True)
class Lookup:
    """One pass over a source for what was known of units when they were exposed."""

    entity: str
    view: View
    columns: dict[Known, str] = field(default_factory=dict)
    users: set[int] = field(default_factory=set)
    table: str = ""


@dataclass(slots=True)
class Rows:
    """One pass that keeps the value of every row in the window, for quantiles."""

    entity: str
    view: View
    folded: Folded
    users: set[int] = field(default_factory=set)
    table: str = ""


@dataclass(slots=True)
class Exposure:
    """One scan of one assignment relation. ``own`` are measures whose source is the one-row-per-unit assignment itself,
    ``known`` are attributes that it records."""

    view: View
    entity: str
    experiments: list[int] = field(default_factory=list)
    own: dict[Measure, str] = field(default_factory=dict)
    known: dict[Known, str] = field(default_factory=dict)
    with_ids: bool = False
    clustered: bool = False
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
        self.lookups: list[Lookup] = []
        self.rows: list[Rows] = []
        self._key_types: dict[str, str | None] = {}
        self._place: dict[tuple[int, Measure], tuple[Scan | None, str]] = {}
        self._rows: dict[tuple[int, Measure], Rows] = {}

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
            exposure.clustered = exposure.clustered or need.cluster is not None
            if need.period_us is not None and view.clock is None:
                raise DataError("has no time, so its rows have no period (a switchback needs one)", source=need.source)
            if need.trigger is not None:
                self._lay_trigger(x, need, exposure)
            for attribute in need.attributes:
                if attribute.measure is None:
                    self._lay_known(x, need, exposure, attribute)
            anchors = {m.after.source for metric in need.metrics for m in metric.measures if m.after is not None}
            kept = list(dict.fromkeys(m for metric in need.metrics if _keeps_rows(metric) for m in metric.measures))
            folds = [m for metric in need.metrics if not _keeps_rows(metric) for m in metric.folds]
            for measure in [*folds, *(a.measure for a in need.attributes if a.measure is not None)]:
                self._lay(x, need, exposure, replace(measure, cap=None), anchors)
            for measure in kept:
                self._lay_rows(x, need, exposure, measure)
        self.scans.sort(key=lambda p: p.stage)
        for number, scan in enumerate(self.scans):
            scan.table = f"values_{number}"
            scan.ordered = len(scan.users) >= _WORTH_ORDERING
        for number, lookup in enumerate(self.lookups):
            lookup.table = f"known_{number}"
        for number, rows in enumerate(self.rows):
            rows.table = f"rows_{number}"
        for entity in self.entities():
            self._key_types[entity] = self._key_type(entity)

    def _lay_trigger(self, x: int, need: ArmsNeed, exposure: Exposure) -> None:
        assert need.trigger is not None
        view = self.views[need.trigger.source]
        if view.clock is None or exposure.view.clock is None:
            named = need.source if exposure.view.clock is None else need.trigger.source
            raise DataError("has no time, so no trigger can be placed after exposure", source=named)
        self._put(x, need, exposure, trigger_measure(need), view, -1)

    def _lay_known(self, x: int, need: ArmsNeed, exposure: Exposure, attribute: AttributeNeed) -> None:
        view, key = self.views[attribute.source], known_of(attribute)
        if view is exposure.view:
            exposure.known.setdefault(key, f"known_{self.exposures.index(exposure)}_{len(exposure.known)}")
            if key.since and view.clock is None:
                raise DataError(f"has no time, so the age of '{key.text}' at exposure is not known", source=view.name)
            return
        if exposure.view.clock is None and (view.clock is not None or key.since):
            raise DataError(
                f"has no time, so what '{attribute.source}' recorded cannot be placed before or after exposure",
                source=need.source,
            )
        lookup = next((k for k in self.lookups if k.entity == need.entity and k.view is view), None)
        if lookup is None:
            lookup = Lookup(need.entity, view)
            self.lookups.append(lookup)
        lookup.columns.setdefault(key, f"k{len(lookup.columns)}")
        lookup.users.add(x)

    def known_at(self, x: int, attribute: AttributeNeed) -> tuple[str | None, str, bool]:
        """Where an attribute that is no measure is: (table, or None for the exposures), column, whether its source has times."""
        key, view = known_of(attribute), self.views[attribute.source]
        for lookup in self.lookups:
            if x in lookup.users and lookup.view is view and key in lookup.columns:
                return lookup.table, lookup.columns[key], view.clock is not None
        exposure = self.exposure_of(x)
        return None, exposure.known[key], view.clock is not None

    def exposure_of(self, x: int) -> Exposure:
        return next(e for e in self.exposures if x in e.experiments)

    def _lay_rows(self, x: int, need: ArmsNeed, exposure: Exposure, measure: Measure) -> None:
        """The one measure of a quantile over rows: kept row by row, or a unit's only row."""
        view = self.views[measure.source]
        if _is_own(exposure, view, measure):
            self._lay(x, need, exposure, replace(measure, cap=None), set())
            return
        self._check_clocks(need, exposure, view, measure)
        folded = Folded(
            self._with_assignments_where(need, exposure, view, measure), self._only(x, need, exposure, view)
        )
        rows = next((r for r in self.rows if r.entity == need.entity and r.view is view and r.folded == folded), None)
        if rows is None:
            rows = Rows(need.entity, view, folded)
            self.rows.append(rows)
        rows.users.add(x)
        self._rows[x, measure] = rows

    def rows_of(self, x: int, measure: Measure) -> Rows | None:
        """The pass that kept a measure's rows; None where units have one row each, in the exposures."""
        return self._rows.get((x, measure))

    def _check_clocks(self, need: ArmsNeed, exposure: Exposure, view: View, measure: Measure) -> None:
        if view.clock is not None and exposure.view.clock is None:
            raise DataError(
                f"has no time, so what '{measure.source}' recorded cannot be placed before or after exposure",
                source=need.source,
            )
        bounded = measure.from_us != 0 or measure.since_us is not None or measure.before_us is not None
        if view.clock is None and bounded:
            raise DataError(
                "has no time, so what it recorded cannot be placed before exposure or in a step of time",
                source=measure.source,
            )

    def _with_assignments_where(self, need: ArmsNeed, exposure: Exposure, view: View, measure: Measure) -> Measure:
        if view is not exposure.view or need.where is None:
            return measure
        both = need.where if measure.where is None else f"({need.where}) AND ({measure.where})"
        return replace(measure, where=both)

    def _only(self, x: int, need: ArmsNeed, exposure: Exposure, view: View) -> int | None:
        """The experiment that a folded value is for, where its links make it another's."""
        linked = need.source in view.source.links
        exposure.with_ids = exposure.with_ids or linked
        return x if linked else None

    def _lay(self, x: int, need: ArmsNeed, exposure: Exposure, measure: Measure, anchors: set[str]) -> None:
        view = self.views[measure.source]
        if _is_own(exposure, view, measure):
            exposure.own.setdefault(measure, f"own_{self.exposures.index(exposure)}_{len(exposure.own)}")
            self._place[x, measure] = (None, exposure.own[measure])
            return
        self._check_clocks(need, exposure, view, measure)
        stage = 0
        if measure.after is not None:
            anchor = Measure(measure.after.source, "first", None, measure.after.where, measure.after.within_us)
            self._lay(x, need, exposure, anchor, anchors)
            stage = 1
        elif measure.source not in anchors and any(
            p.stage == 1 and p.view.relation.key == view.relation.key for p in self.scans
        ):
            stage = 1
        self._put(x, need, exposure, measure, view, stage)

    def _put(self, x: int, need: ArmsNeed, exposure: Exposure, measure: Measure, view: View, stage: int) -> None:
        """Into the scan of its relation, a new one where there is none."""
        only = self._only(x, need, exposure, view)
        # whether there is any row is known from how many there are
        counted = replace(measure, fold="count") if measure.fold == "any" else measure
        folded = Folded(
            self._with_assignments_where(need, exposure, view, counted), x if measure.after is not None else only
        )
        unit = view.unit(need.entity).sql()
        clock = view.clock.us.sql() if view.clock else ""
        scan = next(
            (
                p
                for p in self.scans
                if p.stage == stage
                and p.entity == need.entity
                and p.period_us == need.period_us
                and p.view.relation.key == view.relation.key
                and p.view.unit(need.entity).sql() == unit
                and (p.view.clock.us.sql() if p.view.clock else "") == clock
            ),
            None,
        )
        if scan is None:
            scan = Scan(stage, need.entity, view, need.period_us)
            self.scans.append(scan)
        scan.columns.setdefault(folded, f"m{len(scan.columns)}_{measure.fold}")
        scan.users.add(x)
        self._place[x, measure] = (scan, scan.columns[folded])

    def table_of(self, x: int, measure: Measure) -> tuple[str, str]:
        """Where the values of a measure are: (table, column)."""
        scan, name = self._place[x, replace(measure, cap=None)]
        return (f"exposed_{self.needs[x].entity}" if scan is None else scan.table), name

    def folded_in(self, x: int, measure: Measure, scan: Scan) -> bool:
        place = self._place.get((x, replace(measure, cap=None)))
        return place is not None and place[0] is scan

    def entities(self) -> list[str]:
        return list(dict.fromkeys(e.entity for e in self.exposures))

    def unique_views(self) -> list[View]:
        return [self.views[name] for name in sorted(self.views)]

    def _texts(self, source: str) -> list[str]:
        """Every user expression that some need reads of a source."""
        texts: list[str | None] = []
        view = self.views[source]
        for need in self.needs:
            if need.source == source:
                texts += [need.variant, need.where, view.unit_text(need.entity)]
                texts += [view.unit_text(need.cluster) if need.cluster is not None else None]
            if need.trigger is not None and need.trigger.source == source:
                texts += [need.trigger.where, view.unit_text(need.entity)]
            for attribute in need.attributes:
                if attribute.source == source:
                    texts += [attribute.column, attribute.since, view.unit_text(need.entity)]
            measures = [m for metric in need.metrics for m in metric.folds]
            for m in [*measures, *(a.measure for a in need.attributes if a.measure is not None)]:
                if m.source == source:
                    texts += [m.column, m.where, view.unit_text(need.entity)]
                if m.after is not None and m.after.source == source:
                    texts += [m.after.where, view.unit_text(need.entity)]
        return [t for t in texts if t is not None]

    def _key_type(self, entity: str) -> str | None:
        """The type units are joined on: their own where every source agrees, BIGINT where all fit it, else text."""
        kinds = set()
        for exposure in self.exposures:
            if exposure.entity == entity and exposure.view.unit_text(entity) is not None:
                kinds.add(exposure.view.type_of(exposure.view.unit(entity)))
        reads: list[Scan | Lookup | Rows] = [*self.scans, *self.lookups, *self.rows]
        for view in [r.view for r in reads if r.entity == entity]:
            kinds.add(view.type_of(view.unit(entity)))
        if len(kinds) <= 1:
            return None
        return "BIGINT" if kinds <= _FIT_BIGINT else "VARCHAR"

    def key_type(self, entity: str) -> str | None:
        """The type that units are cast to before they are joined, None where all sources have one."""
        return self._key_types.get(entity)

    def unit(self, view: View, entity: str) -> exp.Expr:
        return self.as_key(view.unit(entity), view, entity)

    def as_key(self, unit: exp.Expr, view: View, entity: str) -> exp.Expr:
        """An expression that holds units as ``view`` stores them, as units are joined."""
        kind = self._key_types.get(entity)
        if kind == "VARCHAR" and view.type_of(view.unit(entity)).startswith(("FLOAT", "DOUBLE", "DECIMAL")):
            # whole numbers stored as fractions (pandas makes ids with gaps so): 7.0 is the unit '7'
            whole = fragment("TRY_CAST(CASE WHEN $u = floor($u) THEN $u END AS HUGEINT)", u=exp.paren(unit))
            return fragment("coalesce(CAST($w AS VARCHAR), CAST($u AS VARCHAR))", w=whole, u=exp.paren(unit))
        return unit if kind is None else exp.cast(unit, kind)

    def reach(self, scan: Scan) -> int | None:
        spans = [f.measure.horizon_us for f in scan.columns]
        known = [s for s in spans if s is not None]
        return max(known) if len(known) == len(spans) else None

    def back(self, scan: Scan) -> int:
        """How long before exposure a scan begins to look."""
        return max(0, *(-f.measure.from_us for f in scan.columns))

    def id_text(self, view: View) -> str:
        """The column that links point at: the declared id, else a column of the linking column's own name."""
        if view.source.id is not None:
            return view.source.id
        for other in self.views.values():
            text = other.source.links.get(view.name)
            if text is not None and text.lower() in {c.lower() for c in view.relation.columns}:
                return text
        raise DataError("another source links to this one, which declares no id: COLUMN", source=view.name)


def _is_own(exposure: Exposure, view: View, measure: Measure) -> bool:
    """Is it the unit's only row, which is its exposure too? An anchor's time is found by a scan, and what is not at
    exposure is not there."""
    return (
        view is exposure.view
        and view.source.one_row_per is not None
        and measure.after is None
        and measure.fold != "first"
        and measure.from_us == 0
        and measure.since_us is None
        and measure.before_us is None
    )


def _keeps_rows(metric: MetricNeed) -> bool:
    return metric.quantile is not None and metric.quantile.of == "rows"


def known_of(attribute: AttributeNeed) -> Known:
    if attribute.since is not None:
        return Known(attribute.since, True)
    assert attribute.column is not None
    return Known(attribute.column, False)


def trigger_measure(need: ArmsNeed) -> Measure:
    assert need.trigger is not None
    return Measure(need.trigger.source, "first", None, need.trigger.where, need.trigger.within_us)


def sources_of(need: ArmsNeed) -> set[str]:
    """Every source that a need reads besides its assignment's."""
    metrics = {s for metric in need.metrics for s in metric_sources(metric)}
    attributes = {a.source if a.measure is None else a.measure.source for a in need.attributes}
    return metrics | attributes | ({need.trigger.source} if need.trigger is not None else set())


def metric_sources(metric: MetricNeed) -> set[str]:
    return {m.source for m in metric.measures} | {
        m.after.source for m in metric.measures if isinstance(m.after, Anchor)
    }

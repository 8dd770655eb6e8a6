"""The fused pass: every measure of every experiment folded in one walk over the prepared rows of a relation.

Joining events to the exposures of many experiments makes many rows of each event. Where the events lie sorted by (unit, time), a unit's
exposures are at hand when its rows come by, and nothing has to be joined: DuckDB reads and evaluates (which conditions a row meets, as
bits; its values), and a compiled loop adds each row to the values of the exposures whose windows hold it.

The rows of a unit are added one after another in the order of the segments, and in a segment in the order of the file. A pass that
goes on with later segments therefore gives, to the last bit, what one pass over all of them gives.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from sqlglot import exp

from payoff.errors import DataError
from payoff.warehouse import prepared
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.layout import Layout, Scan
from payoff.warehouse.needs import Measure
from payoff.warehouse.query import Query, column, conjunction, fragment, sql
from payoff.warehouse.sources import View
from payoff.warehouse.statements import Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from payoff.warehouse.prepared import Prepared, Segment

    Longs = NDArray[np.int64]
    Doubles = NDArray[np.float64]

NEVER = 1 << 62
"""A time that no row has: of an anchor that a unit has not, of a first row that was not met. Differences to it do not overflow."""
_MOST_BITS, _BLOCK = 62, 4096
_SELECTIVE = 2
"""Conditions up to which rows that meet none are left out in SQL. Of more, most rows meet one, and the loop is quicker to skip them: of 20
million rows of which all are kept, leaving none out takes a third of the reading's time."""
_KINDS = {"count": 0, "sum": 1, "mean": 2, "first": 3}
_SHARE = 0.5
"""Of the engine's memory, that the values of one pass may take."""


@dataclass(frozen=True, slots=True)
class Fold:
    """One measure of every exposure: what is made of the rows whose mask has all of ``bits``.

    ``low`` and ``high`` are microseconds from the opening, which is exposure or the anchor named ``after``; ``since`` and ``before``
    are since the epoch; None is no bound. ``value`` is the number of the value column, ``only`` the one experiment it is for (-1: all).
    """

    name: str
    kind: Literal["count", "sum", "mean", "first"]
    bits: int = 0
    value: int | None = None
    low: int | None = 0
    high: int | None = None
    since: int | None = None
    before: int | None = None
    after: str | None = None
    only: int = -1

    @property
    def cells(self) -> int:
        """A mean is a sum and a count."""
        return 2 if self.kind == "mean" else 1


@dataclass(slots=True)
class Exposures:
    """The n exposures of a pass, in the order of ``unit`` and, in a unit, of ``t0``; all arrays are int64 of shape (n,).

    ``unit`` is the number of the unit in the prepared rows, ``x`` its experiment, ``t0`` and ``anchors`` are microseconds since
    the epoch. An anchor that a unit has not is ``NEVER``.
    """

    uid: Longs
    unit: Longs
    x: Longs
    t0: Longs
    anchors: Mapping[str, Longs]

    def sorted(self) -> Exposures:
        """The same exposures in the order that a pass needs. Units below zero, which have no rows, are left out."""
        known = np.flatnonzero(self.unit >= 0)
        return self.take(known[order(self.unit[known], self.t0[known])])

    def take(self, rows: NDArray[Any]) -> Exposures:
        anchors = {name: times[rows] for name, times in self.anchors.items()}
        return Exposures(self.uid[rows], self.unit[rows], self.x[rows], self.t0[rows], anchors)


@dataclass(slots=True)
class Accumulators:
    """The values folded so far: ``cells``, int64 of shape (n exposures, m), of which a sum's hold the bits of a double.

    Eight bytes a cell. A later pass over further segments goes on from them.
    """

    folds: tuple[Fold, ...]
    cells: Longs
    _columns: Longs | None = field(default=None, repr=False, compare=False)

    @classmethod
    def empty(cls, folds: Sequence[Fold], n: int) -> Accumulators:
        cells = np.zeros((n, sum(f.cells for f in folds)), np.int64, order="F")  # a column is read where it lies
        for fold, at in _places(folds):
            if fold.kind == "first":
                cells[:, at] = NEVER
        return cls(tuple(folds), cells)

    def column(self, fold: Fold) -> pa.Array:
        """A fold's values: BIGINT counts, DOUBLE sums, means and (BIGINT) first times that are NULL where there was no row."""
        at = next(at for f, at in _places(self.folds) if f == fold)
        if self._columns is None and self.cells.flags.f_contiguous:
            self._columns = self.cells.T
        elif self._columns is None:
            self._columns = np.empty(self.cells.shape[::-1], np.int64)
            for low in range(
                0, len(self.cells), _BLOCK
            ):  # a block is still in the processor's cache for its last column
                self._columns[:, low : low + _BLOCK] = self.cells[low : low + _BLOCK].T
        first = self._columns[at]
        if fold.kind == "count":
            return pa.array(first)
        if fold.kind == "first":
            return pa.array(first, mask=first == NEVER)
        if fold.kind == "sum":
            return pa.array(first.view(np.float64))
        n = self._columns[at + 1]
        with np.errstate(all="ignore"):  # what is not finite is told of where it is used
            return pa.array(first.view(np.float64) / np.maximum(n, 1), mask=n == 0)


def _places(folds: Sequence[Fold]) -> list[tuple[Fold, int]]:
    out, at = [], 0
    for fold in folds:
        out.append((fold, at))
        at += fold.cells
    return out


# ---------------------------------------------------------------- what a scan is, to a pass


def available() -> bool:
    """Is the compiler of the loop installed?"""
    return importlib.util.find_spec("numba") is not None


def layout_of(layout: Layout, scan: Scan) -> Prepared | str:
    """The prepared rows that a scan can be made over in one pass, or why it cannot, in a clause."""
    if not isinstance(layout.catalog.engine, DuckDBEngine):
        return "it is read by another engine"
    if not available():
        return "numba is not installed"
    views = {f.measure.source: layout.views[f.measure.source] for f in scan.columns}
    if any(scan.entity in view.joined for view in views.values()):
        return "its units are joined by an identity"
    for folded in scan.columns:
        if folded.only is not None and layout.needs[folded.only].source in views[folded.measure.source].source.links:
            return "its rows are linked to single exposures"
    found = prepared.of(layout.catalog, scan.view, scan.entity)
    return found if found is not None else prepared.why_not(layout.catalog, scan.view, scan.entity)


def folds_of(layout: Layout, scan: Scan) -> tuple[tuple[Fold, ...], Query] | None:
    """What a scan folds, and the SELECT over ``prepared_rows`` that gives (unit, t, mask, v0 ...) for it.

    None where it has more conditions than a mask has bits.
    """
    bits: dict[str, tuple[int, exp.Expr]] = {}
    values: dict[str, tuple[int, exp.Expr]] = {}
    folds, wheres = [], []

    def bit(condition: exp.Expr) -> int:
        return 1 << bits.setdefault(condition.sql("duckdb"), (len(bits), condition))[0]

    for folded, name in scan.columns.items():
        measure, view = folded.measure, layout.views[folded.measure.source]
        own = conditions(view, measure)
        wheres.append(own)
        mask = 0 if own is None else bit(own)
        value = None
        if measure.column is not None:
            number = view.number(measure.column)
            value = values.setdefault(number.sql("duckdb"), (len(values), number))[0]
            mask |= bit(fragment("$v IS NOT NULL", v=exp.paren(number.copy())))
        kind = measure.fold
        assert kind != "any"  # a layout counts those
        folds.append(
            Fold(
                name,
                kind,
                mask,
                value if kind in ("sum", "mean") else None,
                measure.from_us,
                measure.window_us,
                measure.since_us,
                measure.before_us,
                None if measure.after is None else "{}.{}".format(*anchor_of(layout, folded.only, measure)),
                -1 if folded.only is None else folded.only,
            )
        )
    if len(bits) > _MOST_BITS:
        return None
    mask_: exp.Expr = exp.cast(exp.convert(0), "BIGINT")
    for n, condition in bits.values():
        mask_ = exp.Add(this=mask_, expression=fragment("CASE WHEN $c THEN $bit ELSE 0 END", c=condition, bit=1 << n))
    rows = exp.select(
        exp.alias_(column(prepared.UNIT), "unit"),
        exp.alias_(column(prepared.US), "t"),
        exp.alias_(exp.cast(mask_, "BIGINT"), "mask"),
        *(exp.alias_(fragment("coalesce($v, 0.0::DOUBLE)", v=v), f"v{n}") for n, v in values.values()),
    ).from_("prepared_rows")
    rows = rows.where(fragment(f"{prepared.UNIT} IS NOT NULL AND {prepared.US} IS NOT NULL"))
    distinct = {w.sql("duckdb"): w for w in wheres if w is not None}
    if all(w is not None for w in wheres) and len(distinct) <= _SELECTIVE:
        rows = rows.where(exp.paren(exp.or_(*(exp.paren(w.copy()) for w in distinct.values()))))
    return tuple(folds), Query(rows)


def conditions(view: View, measure: Measure) -> exp.Expr | None:
    if view.where is None and measure.where is None:
        return None
    return conjunction(view.where, None if measure.where is None else view.condition(measure.where))


def anchor_of(layout: Layout, x: int | None, measure: Measure) -> tuple[str, str]:
    """Where the time that opens a measure's window is: (table, column)."""
    assert measure.after is not None and x is not None
    opened = measure.after
    return layout.table_of(x, Measure(opened.source, "first", None, opened.where, opened.within_us))


class Pass:
    """One scan made in one walk over the prepared rows. ``of`` gives one, or why there is none, in a clause."""

    def __init__(self, layout: Layout, scan: Scan, rows: Prepared, folds: tuple[Fold, ...], projection: Query) -> None:
        self.layout, self.scan, self.rows, self.folds, self.projection = layout, scan, rows, folds, projection

    @classmethod
    def of(cls, layout: Layout, scan: Scan) -> Pass | str:
        rows = layout_of(layout, scan)
        if isinstance(rows, str):
            return rows
        made = folds_of(layout, scan)
        return "it has too many conditions" if made is None else cls(layout, scan, rows, *made)

    def fits(self, exposures: int) -> bool:
        """Do the values of so many exposures leave the engine half of its memory?"""
        cells = sum(f.cells for f in self.folds) + 4 + len({f.after for f in self.folds if f.after})
        return 8 * cells * exposures <= _SHARE * self.layout.catalog.engine.memory()

    def step(self, like: Step, segments: Sequence[Segment] | None = None) -> Step:
        """The statement that is run, told as the step ``like`` that it stands for."""
        paths = [s.path for s in (self.rows.segments if segments is None else segments)]
        purpose = f"{like.purpose}: rows of the prepared copy, folded outside SQL in one walk"
        return Step(like.name, like.reads, purpose, like.columns, like.serves, over(self.projection, paths))

    def run(self, exposed: str, low: int | None, high: int | None, like: Step) -> Step:
        """Fold all segments that hold times from ``low`` to ``high`` into the scan's table. Returns the step as it was run."""
        engine = self.layout.catalog.engine
        assert isinstance(engine, DuckDBEngine)
        exposures = self.exposures(exposed)
        segments = [s for s in self.rows.segments if reaches(s, low, high)]
        into = Accumulators.empty(self.folds, len(exposures.uid))
        accumulate(engine, segments, self.projection, exposures, into, like.name, self.scan.view.name)
        columns = {"uid": pa.array(exposures.uid)}
        for fold in self.folds:
            columns[fold.name] = into.column(fold)
        engine.show(self.scan.table, pa.table(columns))
        return self.step(like, segments)

    def exposures(self, exposed: str) -> Exposures:
        """The exposures of the scan's experiments whose units have rows, from the table ``exposed``."""
        engine, scan = self.layout.catalog.engine, self.scan
        key = self.layout.as_key(column("unit", "n"), scan.view, scan.entity)
        query = exp.select("x.uid", "n.payoff_unit AS unit", "x.x", "x.t0").from_(exp.table_(exposed, alias="x"))
        numbers = sql("SELECT payoff_unit, unit FROM read_parquet($path)", path=exp.Literal.string(self.rows.units))
        query = query.join(numbers.tree.subquery("n"), on=exp.EQ(this=key, expression=column("unit", "x")))
        anchors = sorted({f.after for f in self.folds if f.after is not None})
        joined: dict[str, str] = {}
        for number, name in enumerate(anchors):
            table, source_column = name.split(".")
            if table not in joined:
                joined[table] = f"a{len(joined)}"
                query = query.join(
                    exp.table_(table, alias=joined[table]), on=f"{joined[table]}.uid = x.uid", join_type="left"
                )
            time = fragment("coalesce($t, $never)", t=column(source_column, joined[table]), never=NEVER)
            query = query.select(exp.alias_(time, f"after{number}"))
        everyone = {x for e in self.layout.exposures if e.entity == scan.entity for x in e.experiments}
        if scan.users != everyone:
            wanted = exp.Tuple(expressions=[exp.convert(x) for x in sorted(scan.users)])
            query = query.where(fragment("x.x IN $xs", xs=wanted))
        found = engine.fetch(Query(query), f"units of {scan.view.name}", scan.view.name)
        arrays = {name: _longs(found[name]) for name in found.column_names}
        times = {name: arrays[f"after{number}"] for number, name in enumerate(anchors)}
        return Exposures(arrays["uid"], arrays["unit"], arrays["x"], arrays["t0"], times).sorted()


def over(projection: Query, paths: Sequence[str]) -> Query:
    """The projection over the rows of some segments."""
    listed = exp.Array(expressions=[exp.Literal.string(path) for path in paths])
    rows = sql("SELECT * FROM read_parquet($files)", files=listed)
    return Query(projection.tree.copy().with_("prepared_rows", as_=rows.tree))


def reaches(segment: Segment, low: int | None, high: int | None) -> bool:
    """Can a segment hold a row from ``low`` to ``high``?"""
    if segment.first_us is None or segment.last_us is None:
        return False
    return (high is None or segment.first_us <= high) and (low is None or segment.last_us >= low)


# ---------------------------------------------------------------- the pass


def accumulate(
    engine: DuckDBEngine,
    segments: Iterable[Segment],
    projection: Query,
    exposures: Exposures,
    into: Accumulators,
    what: str,
    source: str | None = None,
    only: NDArray[np.bool_] | None = None,
) -> int:
    """Add the rows of ``segments``, in their order, to the values of ``exposures``. Returns how many rows were read.

    ``into.cells`` has a row for each exposure. ``only`` (n,) names the exposures that are added to; the others stay as they are.
    """
    paths = [segment.path for segment in segments]
    rows = np.arange(len(exposures.uid)) if only is None else np.flatnonzero(only)
    if not paths or not len(rows):
        return 0
    into._columns = None
    walk = Walk(exposures if only is None else exposures.take(rows), into.folds)
    read = 0
    for batch in engine.stream(over(projection, paths), what, source):
        read += batch.num_rows
        walk.add(batch, into.cells, rows)
    if walk.restarts >= len(paths):
        raise DataError(
            "its prepared copy is not in order; make it anew (payoff prepare --drop, payoff prepare)", source=source
        )
    return read


class Walk:
    """The loop over rows, ready to be given them batch by batch."""

    def __init__(self, exposures: Exposures, folds: Sequence[Fold]) -> None:
        many = int(exposures.unit[-1]) + 1 if len(exposures.unit) else 0
        self._start = np.zeros(many + 1, np.int64)
        np.cumsum(np.bincount(exposures.unit, minlength=many), out=self._start[1:])
        self._x, self._t0 = exposures.x, exposures.t0
        names = sorted({f.after for f in folds if f.after is not None})
        self._anchors = np.stack([exposures.anchors[n] for n in names]) if names else np.empty((0, 0), np.int64)
        lowest, highest = -NEVER, NEVER
        self._folds = np.array(
            [
                (
                    f.bits,
                    _KINDS[f.kind],
                    at,
                    -1 if f.value is None else f.value,
                    -1 if f.after is None else names.index(f.after),
                    lowest if f.low is None else f.low,
                    highest if f.high is None else f.high,
                    lowest if f.since is None else f.since,
                    highest if f.before is None else f.before,
                    f.only,
                )
                for f, at in _places(folds)
            ],
            np.int64,
        ).reshape(len(folds), 10)
        own = [f for f in folds if f.after is None]
        anchored = len(own) < len(folds)
        self._back = max([0, *(-(lowest if f.low is None else f.low) for f in own)])
        self._reach = highest if anchored or not own else max(highest if f.high is None else f.high for f in own)
        self._at = np.array([-1, 0, 0, 0], np.int64)

    def add(self, batch: pa.RecordBatch, cells: Longs, rows: NDArray[Any]) -> None:
        """Add a batch of (unit, t, mask, v0 ...). Exposure e has the cells of row ``rows[e]``."""
        if not batch.num_rows:
            return
        unit, t, mask = (_longs(batch.column(i)) for i in range(3))
        held = [batch.column(i).to_numpy() for i in range(3, batch.num_columns)]
        values = np.stack(held) if len(held) > 1 else np.reshape(held, (len(held), len(unit)))
        compiled(_walk)(
            unit, t, mask, values, self._start, self._x, self._t0, self._anchors, self._folds, self._back, self._reach,
            rows, cells, cells.view(np.float64), self._at,
        )  # fmt: skip

    @property
    def restarts(self) -> int:
        """How often the rows began again at a lower unit or time, as they do at each segment after the first."""
        return int(self._at[3])


def _longs(values: Any) -> Longs:
    return np.asarray(values.to_numpy(), np.int64)


def order(unit: NDArray[Any], t0: Longs) -> Longs:
    """The places of exposures (n,) by unit, and those of one unit by time, equal times as they come. Units are numbers from -1."""
    places: Longs = compiled(_order)(unit, t0, int(unit.max(initial=-1)) + 2)
    return places


@cache
def compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """A loop as machine code, which is kept beside the source for the next process."""
    import numba

    try:
        return numba.njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # there is no folder to keep it in
        return numba.njit(nogil=True)(loop)


def _order(unit: NDArray[Any], t0: Longs, many: int) -> Longs:
    """Plain Python that numba compiles: units are counted, and put where their count begins; a unit has few exposures."""
    ends = np.zeros(many + 1, np.int64)
    for u in unit:
        ends[u + 2] += 1
    for u in range(many):
        ends[u + 1] += ends[u]
    starts = ends[:many].copy()
    out = np.empty(len(unit), np.int64)
    for i in range(len(unit)):
        at = ends[unit[i] + 1]
        ends[unit[i] + 1] += 1
        while at > starts[unit[i] + 1] and t0[out[at - 1]] > t0[i]:
            out[at] = out[at - 1]
            at -= 1
        out[at] = i
    return out


def _walk(
    unit: Longs,
    t: Longs,
    mask: Longs,
    values: Doubles,
    start: Longs,
    x: Longs,
    t0: Longs,
    anchors: Longs,
    folds: Longs,
    back: int,
    reach: int,
    rows: Longs,
    cells: Longs,
    doubles: Doubles,
    at: Longs,
) -> None:
    """The loop: plain Python that numba compiles. ``at`` is (unit, time, first exposure in reach) of the last row
    before, and how often the order began again."""
    units = len(start) - 1
    n_folds = folds.shape[0]
    active = np.empty(n_folds, np.int64)
    n_active = 0
    active_mask = -1
    last_unit, last_t, first = at[0], at[1], at[2]
    for i in range(len(unit)):
        u, now = unit[i], t[i]
        if u != last_unit or now < last_t:
            if u <= last_unit:
                at[3] += 1  # a segment begins
            first = start[u] if u < units else 0
        last_unit, last_t = u, now
        if u >= units:
            continue
        end = start[u + 1]
        while first < end and now - t0[first] >= reach:
            first += 1
        if first == end or now - t0[first] < -back:
            continue
        if mask[i] != active_mask:
            active_mask, n_active = mask[i], 0
            for f in range(n_folds):
                if active_mask & folds[f, 0] == folds[f, 0]:
                    active[n_active] = f
                    n_active += 1
        if n_active == 0:
            continue
        for e in range(first, end):
            since = now - t0[e]
            if since < -back:
                break
            row = rows[e]
            for a in range(n_active):
                f = active[a]
                opening = folds[f, 4]
                offset = since if opening < 0 else now - anchors[opening, e]
                if offset < folds[f, 5] or offset >= folds[f, 6] or now < folds[f, 7] or now >= folds[f, 8]:
                    continue
                if folds[f, 9] >= 0 and folds[f, 9] != x[e]:
                    continue
                kind, cell = folds[f, 1], folds[f, 2]
                if kind == 0:
                    cells[row, cell] += 1
                elif kind == 3:
                    cells[row, cell] = min(cells[row, cell], now)
                else:
                    doubles[row, cell] += values[folds[f, 3], i]
                    if kind == 2:
                        cells[row, cell + 1] += 1
    at[0], at[1], at[2] = last_unit, last_t, first

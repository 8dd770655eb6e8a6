"""The fused pass: every measure of every experiment folded in one walk over the prepared rows of a relation.

Joining events to the exposures of many experiments makes many rows of each event. Where the events lie sorted by (unit, time), a unit's
exposures are at hand when its rows come by, and nothing has to be joined: DuckDB reads and evaluates (which conditions a row meets, as
bits; its values), and a compiled loop adds each row to the values of the exposures whose windows hold it.

The rows of a unit are added one after another in the order of the segments, and in a segment in the order of the file. A pass that
goes on with later segments therefore gives, to the last bit, what one pass over all of them gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from sqlglot import exp

from payoff.warehouse import prepared, walks
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.layout import Layout, Scan
from payoff.warehouse.needs import Measure
from payoff.warehouse.query import Query, column, conjunction, fragment, sql
from payoff.warehouse.sources import View
from payoff.warehouse.statements import Step
from payoff.warehouse.walks import Places, Reads, over

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from payoff.warehouse.prepared import Prepared, Segment

    Longs = NDArray[np.int64]
    Doubles = NDArray[np.float64]

NEVER = 1 << 62
"""A time that no row has: of an anchor that a unit has not, of a first row that was not met. Differences to it do not overflow."""
_BLOCK = 4096
_SLOTS = 256
"""Masks of which a loop remembers what they add to."""
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


def layout_of(layout: Layout, scan: Scan) -> Prepared | str:
    """The prepared rows that a scan can be made over in one pass, or why it cannot, in a clause."""
    if not isinstance(layout.catalog.engine, DuckDBEngine):
        return "it is read by another engine"
    if not walks.available():
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
    folds, reads = reads_of(layout, scan)
    made = walks.united([reads], scan.view.own.columns)
    return None if made is None else (folds, made[0])


def reads_of(layout: Layout, scan: Scan) -> tuple[tuple[Fold, ...], Reads]:
    """What a scan folds, the bits and values of its folds being the numbers of what is read for it."""
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
    distinct = {w.sql("duckdb"): w for w in wheres if w is not None}
    return tuple(folds), Reads(
        tuple(condition for _, condition in bits.values()),
        tuple(value for _, value in values.values()),
        tuple(distinct.values()) if all(w is not None for w in wheres) else None,
    )


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
        purpose = f"{like.purpose}: rows of the prepared copy, folded outside SQL in one walk"
        return Step(
            like.name,
            like.reads,
            purpose,
            like.columns,
            like.serves,
            over(self.projection, self.rows.segments if segments is None else segments),
        )

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
    rows = np.arange(len(exposures.uid)) if only is None else np.flatnonzero(only)
    if not len(rows):
        return 0
    into._columns = None
    walk = Walk(exposures if only is None else exposures.take(rows), into.folds, into.cells, rows)
    return walks.through(engine, list(segments), projection, lambda: [walk.loop()], what, source)


class Walk:
    """Adds rows to values: exposure e has the row ``rows[e]`` of ``cells``. Loops over ranges of units do not meet each other's."""

    def __init__(self, exposures: Exposures, folds: Sequence[Fold], cells: Longs, rows: NDArray[Any]) -> None:
        many = int(exposures.unit[-1]) + 1 if len(exposures.unit) else 0
        self._start = np.zeros(many + 1, np.int64)
        np.cumsum(np.bincount(exposures.unit, minlength=many), out=self._start[1:])
        self._x, self._t0 = exposures.x, exposures.t0
        names = sorted({f.after for f in folds if f.after is not None})
        self._anchors = np.stack([exposures.anchors[n] for n in names]) if names else np.empty((0, 0), np.int64)
        lowest, highest = -NEVER, NEVER
        windows: dict[tuple[int, ...], int] = {}
        told = []
        for f, at in _places(folds):
            window = (
                -1 if f.after is None else names.index(f.after),
                lowest if f.low is None else f.low,
                highest if f.high is None else f.high,
                lowest if f.since is None else f.since,
                highest if f.before is None else f.before,
                f.only,
            )
            number = windows.setdefault(window, len(windows))
            told.append((number, f.bits, _KINDS[f.kind], at, -1 if f.value is None else f.value))
        self._folds = np.array(sorted(told), np.int64).reshape(len(folds), 5)  # those of one window side by side
        self._windows = np.array(list(windows), np.int64).reshape(len(windows), 6)
        own = [f for f in folds if f.after is None]
        anchored = len(own) < len(folds)
        self._back = max([0, *(-(lowest if f.low is None else f.low) for f in own)])
        self._reach = highest if anchored or not own else max(highest if f.high is None else f.high for f in own)
        self._cells, self._doubles = cells, cells.view(np.float64)
        self._rows = np.asarray(rows, np.int64)

    def loop(self, places: Places | None = None) -> WalkLoop:
        """One for a range of units. ``places``: where the conditions and values of the folds are, where that is not by their numbers."""
        folds = self._folds
        if places is not None:
            folds = folds.copy()
            folds[:, 1] = [places.mask(int(own)) for own in self._folds[:, 1]]
            folds[:, 4] = [-1 if own < 0 else places.values[own] for own in self._folds[:, 4]]
        return WalkLoop(self, folds)


class WalkLoop:
    def __init__(self, walk: Walk, folds: Longs) -> None:
        self._walk, self._folds = walk, folds
        self._at = np.array([-1, 0, 0, 0], np.int64)
        self._known = np.full(_SLOTS, -1, np.int64)
        self._adds = np.zeros((_SLOTS, len(folds) + 1), np.int64)

    def add(self, unit: Longs, t: Longs, mask: Longs, values: Doubles) -> None:
        walk = self._walk
        walks.compiled(_walk)(
            unit, t, mask, values, walk._start, walk._x, walk._t0, walk._anchors, walk._windows, self._folds, walk._back,
            walk._reach, walk._rows, walk._cells, walk._doubles, self._known, self._adds, self._at,
        )  # fmt: skip

    def end(self) -> None:
        """No row is pending."""


def loops() -> list[WalkLoop]:
    """One over no exposure."""
    none = np.empty(0, np.int64)
    return [Walk(Exposures(none, none, none, none, {}), (), np.zeros((0, 1), np.int64), none).loop()]


def _longs(values: Any) -> Longs:
    return np.asarray(values.to_numpy(), np.int64)


def order(unit: NDArray[Any], t0: Longs) -> Longs:
    """The places of exposures (n,) by unit, and those of one unit by time, equal times as they come. Units are numbers from -1."""
    places: Longs = walks.compiled(_order)(unit, t0, int(unit.max(initial=-1)) + 2)
    return places


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
    windows: Longs,
    folds: Longs,
    back: int,
    reach: int,
    rows: Longs,
    cells: Longs,
    doubles: Doubles,
    known: Longs,
    adds: Longs,
    at: Longs,
) -> None:
    """The loop: plain Python that numba compiles. ``at`` is (unit, time, first exposure in reach, end of the unit's exposures) of the
    last row that added to something. ``known`` are masks, by their slots, and ``adds`` how many folds each adds to, and which."""
    units, slots = len(start) - 1, len(known)
    last_unit, last_t, first, end = at[0], at[1], at[2], at[3]
    for i in range(len(unit)):
        m = mask[i]
        slot = (m ^ (m >> 8) ^ (m >> 17) ^ (m >> 31)) & (slots - 1)
        if known[slot] != m:
            n = 0
            for f in range(len(folds)):
                if m & folds[f, 1] == folds[f, 1]:
                    n += 1
                    adds[slot, n] = f
            known[slot], adds[slot, 0] = m, n
        n_adds = adds[slot, 0]
        u = unit[i]
        if n_adds == 0 or u >= units:
            continue
        now = t[i]
        if u != last_unit or now < last_t:
            first, end = start[u], start[u + 1]
        last_unit, last_t = u, now
        while first < end and now - t0[first] >= reach:
            first += 1
        for e in range(first, end):
            since = now - t0[e]
            if since < -back:
                break
            row, window, inside = rows[e], -1, False
            for a in range(1, n_adds + 1):
                f = adds[slot, a]
                if folds[f, 0] != window:
                    window = folds[f, 0]
                    opening = windows[window, 0]
                    offset = since if opening < 0 else now - anchors[opening, e]
                    inside = (
                        windows[window, 1] <= offset < windows[window, 2]
                        and windows[window, 3] <= now < windows[window, 4]
                        and (windows[window, 5] < 0 or windows[window, 5] == x[e])
                    )
                if not inside:
                    continue
                kind, cell = folds[f, 2], folds[f, 3]
                if kind == 0:
                    cells[row, cell] += 1
                elif kind == 3:
                    cells[row, cell] = min(cells[row, cell], now)
                else:
                    doubles[row, cell] += values[folds[f, 4], i]
                    if kind == 2:
                        cells[row, cell + 1] += 1
    at[0], at[1], at[2], at[3] = last_unit, last_t, first, end

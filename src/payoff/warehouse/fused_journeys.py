"""Funnels and retention in one walk over prepared rows, in place of a join a step.

Where a unit's rows come by in the order of their times, what decides its next step is what it has reached so far: a few numbers a
unit, and no row is met twice. The walks give the tables that the SQL kernels make (``entered`` and ``ways``; starts and the periods
of activity), unit by unit, and leave what follows to them. They take the common forms; ``of`` says, in a clause, why one is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sqlglot import exp

from payoff.warehouse import prepared, walks
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.events import AHEAD_US
from payoff.warehouse.query import Query, conjunction, fragment, sql
from payoff.warehouse.sources import Catalog, View
from payoff.warehouse.walks import Loop, Places, Reads, Walker, over

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from payoff.spec.nouns import Event
    from payoff.warehouse.funnel_statements import FunnelStatements
    from payoff.warehouse.prepared import Prepared, Segment
    from payoff.warehouse.statements import Step

    Doubles = NDArray[np.float64]
    Longs = NDArray[np.int64]

_SHARE = 0.5
"""Of the engine's memory, that what is kept of each unit may take."""
_FAR = 1 << 62
"""Later than any time; no sum of a time and a span overflows beside it."""


@dataclass(frozen=True)
class Rows:
    """The prepared rows that events of one entity are read from, in the order of each unit's time."""

    layout: Prepared
    segments: tuple[Segment, ...]
    units: int

    @classmethod
    def of(cls, catalog: Catalog, views: Sequence[View], entity: str) -> Rows | str:
        """Those of sources over one relation; else why there are none, in a clause."""
        if not isinstance(catalog.engine, DuckDBEngine):
            return "it is read by another engine"
        if not walks.available():
            return "numba is not installed"
        if len({view.own.key for view in views}) > 1:
            return "its steps are in several relations"
        if any(entity in view.joined for view in views):
            return "its units are joined by an identity"
        for view in views:
            found = prepared.of(catalog, view, entity)
            if found is None:
                return prepared.why_not(catalog, view, entity)
        assert found is not None
        timed = sorted((s for s in found.segments if s.first_us is not None), key=lambda s: (s.first_us, s.last_us))
        for before, after in pairwise(timed):
            if before.last_us is None or after.first_us is None or before.last_us >= after.first_us:
                return "its files overlap in time"
        return cls(found, tuple(timed), pq.read_metadata(found.units).num_rows)

    def fits(self, catalog: Catalog, bytes_a_unit: int) -> bool:
        return bytes_a_unit * self.units <= _SHARE * catalog.engine.memory()

    def query(self, reads: Reads) -> Query:
        """The statement that reads what is asked, for one alone."""
        made = walks.united([reads], self.layout.columns)
        assert made is not None
        return over(made[0], self.segments)

    def walker(
        self,
        reads: Reads,
        kept: int,
        begin: Callable[[], Callable[[Places], Loop]],
        tell: Callable[[], None],
        step: Step,
    ) -> Walker:
        return Walker(self.segments, self.layout.columns, reads, kept, begin, tell, step)


class _Loop:
    """A compiled loop over the rows of one range; ``pending`` is what it has of rows not yet taken."""

    def __init__(self, loop: Callable[..., None], pending: Sequence[int], *fixed: Longs) -> None:
        self._loop, self._fixed = loop, fixed
        self._pending = np.array([-1, *pending], np.int64)

    def add(self, unit: Longs, t: Longs, mask: Longs, values: Doubles) -> None:
        walks.compiled(self._loop)(unit, t, mask, *self._fixed, self._pending, 0)

    def end(self) -> None:
        walks.compiled(self._loop)(walks.NOTHING, walks.NOTHING, walks.NOTHING, *self._fixed, self._pending, 1)


def loops() -> list[Loop]:
    """One of each kind, over no unit."""
    one, none = np.zeros(1, np.int64), np.zeros((0, 1), np.int64)
    return [
        _Loop(_funnel, (0, 0), one, one, one, one, np.zeros(8, np.int64), _slots(1, True), none, one),
        _Loop(_retention, (0, 0, 0), np.zeros(7, np.int64), one, none),
    ]


def _condition(view: View, event: Event) -> exp.Expr:
    """Whether a row is one of an event's, never NULL."""
    both = conjunction(view.where, None if event.where is None else view.condition(event.where))
    return fragment("coalesce($it, false)", it=exp.paren(both))


# ---------------------------------------------------------------- funnels


@dataclass
class FunnelWalk:
    """What one walk tells of a funnel. ``entered`` and ``ways`` are the tables of the kernel, of units by their numbers."""

    rows: Rows
    reads: Reads
    flags: tuple[str, ...]
    entered: pa.Table | None = None
    ways: pa.Table | None = None
    later: tuple[int, ...] = ()
    firsts: Longs | None = None

    @classmethod
    def of(cls, funnel: FunnelStatements) -> FunnelWalk | str:
        declared, m = funnel.declared, funnel.m
        if declared.order == "unordered" or funnel.kept is not None or declared.by is not None:
            return "it asks for more than steps in their order"
        if any(source.repeated for source in funnel.sources.values()):
            return "rows repeat an id"
        rows = Rows.of(funnel.catalog, [source.view for source in funnel.sources.values()], funnel.design.entity)
        if isinstance(rows, str):
            return rows
        if not rows.fits(funnel.catalog, 8 * _width(m)):
            return "what is kept of its units would not fit in memory"
        flags = {f: _condition(s.view, e) for s in funnel.sources.values() for f, e in s.events.items()}
        reads = Reads(tuple(flags.values()), rows=tuple(flags.values()))
        if walks.united([reads], rows.layout.columns) is None:
            return "it has too many conditions"
        return cls(rows, reads, tuple(flags))

    def walker(self, funnel: FunnelStatements, step: Step) -> Walker:
        m = funnel.m
        return self.rows.walker(
            self.reads, 8 * _width(m) * self.rows.units, partial(self._begin, funnel), self._tell, step
        )

    def _begin(self, funnel: FunnelStatements) -> Callable[[Places], Loop]:
        m, units = funnel.m, self.rows.units
        blocking = funnel.declared.order == "strict" or any(flag[0] == "x" for flag in self.flags)
        self._slots = _slots(m, blocking)
        self._kept = _rows_of(units, int(self._slots[3, m]))
        self._counts: list[Longs] = []
        return partial(self._loop, funnel)

    def _loop(self, funnel: FunnelStatements, places: Places) -> Loop:
        declared, m, bounds = funnel.declared, funnel.m, funnel.bounds
        assert isinstance(bounds.cut, int) and isinstance(bounds.steps, int)
        bits = dict(zip(self.flags, places.bits, strict=True))
        steps = np.array([bits[f"s{k}"] for k in range(1, m + 1)], np.int64)
        blocks = np.zeros(m, np.int64)
        for k in range(m):
            for flag, bit in bits.items():
                if flag.startswith("x"):
                    blocks[k] |= bit
            if declared.order == "strict":
                for j in range(m):
                    blocks[k] |= steps[j] if j not in (k - 1, k) else 0
        own = [None if step.within is None else _us(step.within) for step in funnel.happening]
        last = funnel.last_entry()
        settings = np.array(
            [
                0 if bounds.low is None else max(bounds.low, 0),
                funnel.design.now_us + AHEAD_US,
                _FAR if last is None else last,
                bounds.cut,
                bounds.steps,
                _FAR if declared.within is None else _us(declared.within),
                int(declared.entry == "first"),
                int(bool(blocks.any())),
            ],
            np.int64,
        )
        spans = np.array([_FAR if k == 0 or own[k] is None else own[k] for k in range(m)], np.int64)
        order = np.array(_order([k > 0 and funnel.after(k + 1) == ">" for k in range(m)]), np.int64)
        self._counts.append(np.zeros(m, np.int64))
        return _Loop(_funnel, (0, 0), steps, blocks, order, spans, settings, self._slots, self._kept, self._counts[-1])

    def _tell(self) -> None:
        kept, m = self._kept, len([flag for flag in self.flags if flag[0] == "s"])

        def column_of(values: Longs) -> pa.Array:
            return pa.array(values - 1, mask=values == 0)

        ways, seen, best, _ = self._slots
        came = np.flatnonzero(kept[:, 0])
        self.entered = pa.table({"unit": came, "first_us": kept[came, 0] - 1, "t1": column_of(kept[came, ways[0]])})
        went = np.flatnonzero(kept[:, 2])
        times = {f"t{k + 1}": column_of(kept[went, best[k]]) for k in range(m)}
        self.ways = pa.table({"unit": went, "depth": pa.array(kept[went, 2], pa.int32()), **times})
        self.later = tuple(int(n) for n in np.sum(self._counts, axis=0)) if self._counts else (0,) * m
        # of each unit the first entry, and the first row of each later step
        self.firsts = np.stack([kept[:, 0], *(kept[:, seen[k]] for k in range(1, m))])
        del self._kept

    def precedence(self, catalog: Catalog, sampled: exp.Expr | None) -> dict[str, int]:
        """Of units with both a step and the one before, those that had it first, as ``FunnelStatements.precedence`` tells them.
        ``sampled`` is the condition on ``unit`` to be looked at."""
        assert self.firsts is not None
        wanted = np.ones(self.rows.units, bool)
        if sampled is not None:
            query = sql(
                "SELECT payoff_unit FROM read_parquet($path) WHERE $sampled",
                path=exp.Literal.string(self.rows.layout.units),
                sampled=sampled,
            )
            wanted[:] = False
            wanted[catalog.engine.fetch(query, "units looked at")["payoff_unit"].to_numpy()] = True
        out = {}
        for k, (before, own) in enumerate(pairwise(self.firsts), 2):
            both = wanted & (own > 0) & (before > 0)
            out[f"both_{k}"] = int(both.sum())
            out[f"earlier_{k}"] = int((both & (own < before)).sum())
        return out


def _us(span: timedelta) -> int:
    return int(span // timedelta(microseconds=1))


def _order(strictly: Sequence[bool]) -> list[int]:
    """The steps in the order in which they may take what happens at one time: a step that lies strictly after the one before it is
    taken before that one, so that it sees what was there earlier; any other is taken after it."""
    out: list[int] = []
    together: list[int] = []
    for k in reversed(range(len(strictly))):
        together.insert(0, k)
        if strictly[k] or k == 0:
            out += together
            together = []
    return out


def _slots(m: int, blocking: bool) -> Longs:
    """Where what is kept of a unit is in its row, of shape (4, m), for each step k: its own way's first time, the first row of k, the k-th
    time of the deepest way, the last row that ends an attempt at k; and at the end of the last its width.

    What early steps need comes first, since most rows are theirs: it is one line of the processor's cache.
    """
    slots = np.zeros((4, m + 1), np.int64)
    slots[:, 0] = 1, 0, 3, 0
    at = 4
    for k in range(1, m):
        slots[2, k], slots[1, k], slots[0, k] = at, at + 1, at + 2
        at += k + 3
    if blocking:
        slots[3, :m] = np.arange(at, at + m)
        at += m
    slots[3, m] = -(-at // 8) * 8
    return slots


def _width(m: int) -> int:
    """At most, of a unit's row."""
    return int(_slots(m, True)[3, m])


def _rows_of(units: int, width: int) -> Longs:
    """Zeros (units, width), each row at the beginning of a line of the cache. Zeros are pages that are made where they are written,
    by the thread that does."""
    room = np.zeros(units * width + 8, np.int64)
    first = -room.ctypes.data % 64 // 8
    return room[first : first + units * width].reshape(units, width)


def _funnel(
    unit: Longs,
    t: Longs,
    mask: Longs,
    steps: Longs,
    blocks: Longs,
    order: Longs,
    spans: Longs,
    settings: Longs,
    slots: Longs,
    kept: Longs,
    counts: Longs,
    pending: Longs,
    last: int,
) -> None:
    """The loop: plain Python that numba compiles. Rows of a unit at one time are taken together.

    ``kept`` has a row for each unit, of which ``slots`` tells the places. A time is one more than it is, so that 0 is none. It holds the
    first entry (0); how deep the deepest way went (2; 0: no further than the entry); for each step the times of the way to its latest row
    that was reached, and its first row; of the deepest ways, of those the latest to enter, the first time of each step; and (where there
    are any) the last row that ends an attempt at each. ``pending`` is (unit, time, mask) of the rows not yet taken; with ``last`` they are.
    """
    m, n = len(steps), len(unit)
    low, most, last_entry, cut, last_step = (
        settings[0] + 1,
        settings[1] + 1,
        settings[2] + 1,
        settings[3] + 1,
        settings[4] + 1,
    )
    within, first_only, blocking = settings[5], settings[6], settings[7]
    entry, depth, first, best = slots[0, 0], 2, 0, slots[2]
    mine = 0
    for k in range(m):
        mine |= steps[k] | blocks[k]
    of_unit, us, flags = pending[0], pending[1], pending[2]
    for i in range(n + last):
        if i < n:
            got, now = mask[i] & mine, t[i] + 1
            if got == 0 or now < low or now > most:
                continue
            if now <= last_step:
                for k in range(1, m):
                    counts[k] += (got & steps[k]) != 0
            if unit[i] == of_unit and now == us:
                flags |= got
                continue
        if of_unit >= 0:
            own = kept[of_unit]
            for place in range(m):
                k = order[place]
                if flags & steps[k] == 0:
                    continue
                if k == 0:
                    if us <= last_entry:
                        if us <= cut and (not first_only or own[first] == 0):
                            own[entry] = us
                        if own[first] == 0:
                            own[first] = us
                    continue
                if us > last_step:
                    continue
                if own[slots[1, k]] == 0:
                    own[slots[1, k]] = us
                at, prior = slots[0, k], slots[0, k - 1]
                opening, previous = own[prior], own[prior + k - 1]
                if (
                    opening == 0
                    or us - opening > within
                    or us - previous > spans[k]
                    or (blocking and own[slots[3, k]] > previous)
                ):
                    continue
                for j in range(k):
                    own[at + j] = own[prior + j]
                own[at + k] = us
                if own[depth] < k + 1 or (own[depth] == k + 1 and own[best[0]] < opening):
                    own[depth] = k + 1
                    for j in range(k + 1):
                        own[best[j]] = own[at + j]
                elif own[depth] == k + 1 and own[best[0]] == opening:
                    for j in range(1, k + 1):
                        own[best[j]] = min(own[best[j]], own[at + j])
            if blocking:
                for k in range(m):
                    if flags & blocks[k]:
                        own[slots[3, k]] = us
        if i < n:
            of_unit, us, flags = unit[i], now, got
    pending[0], pending[1], pending[2] = of_unit, us, flags


# ---------------------------------------------------------------- retention


@dataclass
class RetentionWalk:
    """What one walk tells of a cohort: of each unit its start, the periods in which it was active, and rows before its start.

    ``found`` has (unit, t0, seen, early, rows) of the units that started: ``seen`` is a bit for each period or, of unbounded retention, the
    last period with a row; NULL where there is none.
    """

    rows: Rows
    reads: Reads
    now_us: int
    found: pa.Table | None = None

    @classmethod
    def of(
        cls, catalog: Catalog, start: Event, activity: Event, entity: str, now_us: int, periods: int
    ) -> RetentionWalk | str:
        views = [catalog.view(e.source) for e in (start, activity)]
        rows = Rows.of(catalog, views, entity)
        if isinstance(rows, str):
            return rows
        if periods > 62:
            return "it has more periods than a number has bits"
        if not rows.fits(catalog, 8 * 4):
            return "what is kept of its units would not fit in memory"
        conditions = tuple(_condition(catalog.view(e.source), e) for e in (start, activity))
        return cls(rows, Reads(conditions, rows=conditions), now_us)

    def walker(
        self,
        edges: Sequence[int],
        unbounded: bool,
        low_us: int | None,
        high_us: int,
        as_of_us: int,
        step: Step,
    ) -> Walker:
        """``low_us`` to ``high_us`` are the times of a start, ``as_of_us`` the last of activity."""
        bounds = [0 if low_us is None else low_us, high_us, as_of_us, self.now_us + AHEAD_US, int(unbounded)]
        ends = np.array(edges[1:], np.int64)

        def begin() -> Callable[[Places], Loop]:
            self._kept = kept = np.zeros((self.rows.units, 4), np.int64)
            return lambda at: _Loop(_retention, (0, 0, 0), np.array([*bounds, *at.bits], np.int64), ends, kept)

        return self.rows.walker(self.reads, 8 * 4 * self.rows.units, begin, self._tell, step)

    def _tell(self) -> None:
        begun = np.flatnonzero(self._kept[:, 0])
        t0, seen, early, rows = np.ascontiguousarray(self._kept[begun].T)
        self.found = pa.table(
            {"unit": begun, "t0": t0 - 1, "seen": pa.array(seen, mask=rows == early), "early": early, "rows": rows}
        )
        del self._kept


def _retention(
    unit: Longs,
    t: Longs,
    mask: Longs,
    bounds: Longs,
    ends: Longs,
    kept: Longs,
    pending: Longs,
    last: int,
) -> None:
    """The loop: plain Python that numba compiles. ``kept`` is (start, what was seen, rows before the start, rows) of each unit, where a
    start is one more than it is, so that 0 is none. ``pending`` is (unit, time, mask, rows of activity) of the rows not yet taken:
    those of a unit at one time are taken together, since a start counts for all of them; with ``last`` they are."""
    low, high, as_of, most = bounds[0] + 1, bounds[1] + 1, bounds[2] + 1, bounds[3] + 1
    unbounded, starts, active = bounds[4], bounds[5], bounds[6]
    n, periods = len(unit), len(ends)
    even, reach = ends[0], ends[periods - 1]
    for k in range(periods):
        if ends[k] != ends[0] * (k + 1):
            even = 0
    of_unit, us, flags, count = pending[0], pending[1], pending[2], pending[3]
    for i in range(n + last):
        if i < n:
            got, now = mask[i] & (starts | active), t[i] + 1
            if got == 0 or now < 1 or now > most:
                continue
            more = 1 if got & active else 0
            if unit[i] == of_unit and now == us:
                flags |= got
                count += more
                continue
        if of_unit >= 0:
            own = kept[of_unit]
            if own[0] == 0 and flags & starts and low <= us <= high:
                own[0] = us
            if count and us <= as_of:
                own[3] += count
                if own[0] == 0:
                    own[2] += count
                else:
                    since = us - own[0]
                    k = periods
                    if since < reach:
                        if even:
                            k = since // even
                        else:
                            k = 0
                            while since >= ends[k]:
                                k += 1
                    if unbounded:
                        own[1] = k
                    elif k < periods:
                        own[1] |= 1 << k
        if i < n:
            of_unit, us, flags, count = unit[i], now, got, more
    pending[0], pending[1], pending[2], pending[3] = of_unit, us, flags, count

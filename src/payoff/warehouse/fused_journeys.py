"""Funnels and retention in one walk over prepared rows, in place of a join a step.

Where a unit's rows come by in the order of their times, what decides its next step is what it has reached so far: a few numbers a
unit, and no row is met twice. The walks give the tables that the SQL kernels make (``entered`` and ``ways``; starts and the periods
of activity), unit by unit, and leave what follows to them. They take the common forms; ``of`` says, in a clause, why one is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sqlglot import exp

from payoff.warehouse import prepared
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.events import AHEAD_US
from payoff.warehouse.fused import available, over
from payoff.warehouse.query import Query, column, conjunction, fragment, sql
from payoff.warehouse.sources import Catalog, View

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from payoff.spec.nouns import Event
    from payoff.warehouse.funnel_statements import FunnelStatements
    from payoff.warehouse.prepared import Prepared, Segment

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
        if not available():
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

    def masked(self, conditions: Sequence[exp.Expr], now_us: int) -> Query:
        """(unit, t, mask) of the rows that meet any of ``conditions``, the n-th of which is bit n of the mask."""
        mask: exp.Expr = exp.cast(exp.convert(0), "BIGINT")
        for n, condition in enumerate(conditions):
            mask = exp.Add(this=mask, expression=fragment("CASE WHEN $c THEN $bit ELSE 0 END", c=condition, bit=1 << n))
        rows = exp.select(
            exp.alias_(column(prepared.UNIT), "unit"),
            exp.alias_(column(prepared.US), "t"),
            exp.alias_(exp.cast(mask, "BIGINT"), "mask"),
        ).from_("prepared_rows")
        inside = fragment(f"{prepared.UNIT} IS NOT NULL AND {prepared.US} BETWEEN 0 AND $most", most=now_us + AHEAD_US)
        return over(
            Query(rows.where(conjunction(inside, exp.or_(*(exp.paren(c.copy()) for c in conditions))))),
            [segment.path for segment in self.segments],
        )

    def walk(
        self, catalog: Catalog, query: Query, what: str, source: str, loop: Callable[[Longs, Longs, Longs], None]
    ) -> None:
        assert isinstance(catalog.engine, DuckDBEngine)
        for batch in catalog.engine.stream(query, what, source):
            if batch.num_rows:
                loop(*(np.asarray(batch.column(i).to_numpy(), np.int64) for i in range(3)))


def _condition(view: View, event: Event) -> exp.Expr:
    """Whether a row is one of an event's, never NULL."""
    both = conjunction(view.where, None if event.where is None else view.condition(event.where))
    return fragment("coalesce($it, false)", it=exp.paren(both))


# ---------------------------------------------------------------- funnels


@dataclass
class FunnelWalk:
    """What one walk tells of a funnel. ``entered`` and ``ways`` are the tables of the kernel, of units by their numbers."""

    rows: Rows
    query: Query
    bits: Mapping[str, int]
    entered: pa.Table | None = None
    ways: pa.Table | None = None
    later: tuple[int, ...] = ()
    first_times: Longs | None = None
    first_entries: Longs | None = None

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
        if not rows.fits(funnel.catalog, 8 * (m * (m + 1) // 2 + m * 3 + 3)):
            return "what is kept of its units would not fit in memory"
        flags = {f: _condition(s.view, e) for s in funnel.sources.values() for f, e in s.events.items()}
        bits = {flag: 1 << n for n, flag in enumerate(flags)}
        if len(bits) > 62:
            return "it has too many conditions"
        return cls(rows, rows.masked(list(flags.values()), funnel.design.now_us), bits)

    def run(self, funnel: FunnelStatements, what: str) -> None:
        declared, m, units, bounds = funnel.declared, funnel.m, self.rows.units, funnel.bounds
        assert isinstance(bounds.cut, int) and isinstance(bounds.steps, int)
        steps = np.array([self.bits[f"s{k}"] for k in range(1, m + 1)], np.int64)
        blocks = np.zeros(m, np.int64)
        for k in range(m):
            blocks[k] = sum(bit for flag, bit in self.bits.items() if flag.startswith("x"))
            if declared.order == "strict":
                blocks[k] |= sum(int(steps[j]) for j in range(m) if j not in (k - 1, k))
        own = [None if step.within is None else _us(step.within) for step in funnel.happening]
        settings = np.array(
            [
                -_FAR if bounds.low is None else bounds.low,
                _FAR if (last := funnel.last_entry()) is None else last,
                bounds.cut,
                bounds.steps,
                _FAR if declared.within is None else _us(declared.within),
                int(declared.entry == "first"),
                int(bool(blocks.any())),
            ],
            np.int64,
        )
        strictly = np.array([int(k > 0 and funnel.after(k + 1) == ">") for k in range(m)], np.int64)
        spans = np.array([_FAR if k == 0 or own[k] is None else own[k] for k in range(m)], np.int64)
        ways = m * (m + 1) // 2
        kept = np.full((units, ways + 3 + 2 * m + (m if settings[6] else 0)), -1, np.int64)
        counts = np.zeros(m, np.int64)
        pending = np.array([-1, 0, 0], np.int64)
        loop = _compiled(_funnel)

        def add(unit: Longs, t: Longs, mask: Longs) -> None:
            loop(
                unit, t, mask, steps, blocks, strictly, spans, settings, kept, counts, pending
            )  # fmt: skip

        self.rows.walk(funnel.catalog, self.query, what, funnel.of("s1").view.name, add)
        add(*(np.array([v], np.int64) for v in (-1, 0, 0)))  # what is pending of the last unit
        best = ways + 3
        self._tell(m, kept[:, ways : ways + 2], kept[:, ways + 2], kept[:, best : best + m])
        self.later, self.first_times = tuple(int(n) for n in counts), kept[:, best + m : best + 2 * m]
        self.first_entries = kept[:, ways]

    def _tell(self, m: int, entries: Longs, depth: Longs, best: Longs) -> None:
        def column_of(values: Longs) -> pa.Array:
            return pa.array(values, mask=values < 0)

        came = np.flatnonzero(entries[:, 0] >= 0)
        self.entered = pa.table(
            {"unit": came, "first_us": entries[came, 0], "t1": column_of(np.ascontiguousarray(entries[came, 1]))}
        )
        went = np.flatnonzero(depth > 1)
        times = {f"t{k + 1}": column_of(np.ascontiguousarray(best[went, k])) for k in range(m)}
        self.ways = pa.table({"unit": went, "depth": pa.array(depth[went], pa.int32()), **times})

    def precedence(self, catalog: Catalog, sampled: exp.Expr | None) -> dict[str, int]:
        """Of units with both a step and the one before, those that had it first, as ``FunnelStatements.precedence`` tells them.
        ``sampled`` is the condition on ``unit`` to be looked at."""
        assert self.first_times is not None and self.first_entries is not None
        wanted = np.ones(self.rows.units, bool)
        if sampled is not None:
            query = sql(
                "SELECT payoff_unit FROM read_parquet($path) WHERE $sampled",
                path=exp.Literal.string(self.rows.layout.units),
                sampled=sampled,
            )
            wanted[:] = False
            wanted[catalog.engine.fetch(query, "units looked at")["payoff_unit"].to_numpy()] = True
        before, out = self.first_entries, {}
        for k in range(1, self.first_times.shape[1]):
            own = self.first_times[:, k]
            both = wanted & (own >= 0) & (before >= 0)
            out[f"both_{k + 1}"] = int(both.sum())
            out[f"earlier_{k + 1}"] = int((both & (own < before)).sum())
            before = own
        return out


def _us(span: timedelta) -> int:
    return int(span // timedelta(microseconds=1))


def _funnel(
    unit: Longs,
    t: Longs,
    mask: Longs,
    steps: Longs,
    blocks: Longs,
    strictly: Longs,
    spans: Longs,
    settings: Longs,
    kept: Longs,
    counts: Longs,
    pending: Longs,
) -> None:
    """The loop: plain Python that numba compiles. Rows of a unit at one time are taken together.

    ``kept`` has a row for each unit, so that it is met in one place of memory; -1 is a time that is not there. For each step the times
    of the way to its latest row that was reached (those of step k from k(k + 1) / 2 on); the first entry, and the one that a way of no further
    step is told from; how deep the deepest way went, of those the latest to enter, and the first time of each of its steps; the first
    row of each step; and (where there are any) the last row that ends an attempt at each. ``pending`` is (unit, time, mask) of the rows not yet taken.
    """
    m = len(steps)
    low, last_entry, cut, last_step, within, first_only, blocking = settings
    first = m * (m + 1) // 2
    latest, depth, best = first + 1, first + 2, first + 3
    seen, blocked = best + m, best + 2 * m
    was = np.empty(m, np.int64)
    before = np.empty(m, np.int64)
    for i in range(len(unit)):
        if unit[i] == pending[0] and t[i] == pending[1]:
            pending[2] |= mask[i]
        else:
            us, flags = pending[1], pending[2]
            if pending[0] >= 0 and us >= low:
                own = kept[pending[0]]
                before[0] = -1
                for k in range(m):
                    at = k * (k + 1) // 2
                    for j in range(k + 1):
                        was[j] = own[at + j]
                    if flags & steps[k]:
                        if k == 0:
                            if us <= last_entry:
                                opens = us <= cut and (not first_only or own[first] < 0)
                                if own[first] < 0:
                                    own[first] = us
                                if opens:
                                    own[latest] = us
                                    own[0] = us
                        elif us <= last_step:
                            if own[seen + k] < 0:
                                own[seen + k] = us
                            prior = at - k
                            opening = before[0] if strictly[k] else own[prior]
                            previous = before[k - 1] if strictly[k] else own[prior + k - 1]
                            if (
                                opening >= 0
                                and us - opening <= within
                                and us - previous <= spans[k]
                                and (not blocking or own[blocked + k] <= previous)
                            ):
                                for j in range(k):
                                    own[at + j] = before[j] if strictly[k] else own[prior + j]
                                own[at + k] = us
                                if own[depth] < k + 1 or (own[depth] == k + 1 and own[best] < opening):
                                    own[depth] = k + 1
                                    for j in range(k + 1):
                                        own[best + j] = own[at + j]
                                elif own[depth] == k + 1 and own[best] == opening:
                                    for j in range(1, k + 1):
                                        own[best + j] = min(own[best + j], own[at + j])
                    for j in range(k + 1):
                        before[j] = was[j]
                if blocking:
                    for k in range(m):
                        if flags & blocks[k]:
                            own[blocked + k] = us
            pending[0], pending[1], pending[2] = unit[i], t[i], mask[i]
        if unit[i] >= 0 and low <= t[i] <= last_step:
            for k in range(1, m):
                if mask[i] & steps[k]:
                    counts[k] += 1


# ---------------------------------------------------------------- retention


@dataclass
class RetentionWalk:
    """What one walk tells of a cohort: of each unit its start, the periods in which it was active, and rows before its start.

    ``found`` has (unit, t0, seen, early) of the units that started: ``seen`` is a bit for each period or, of unbounded retention, the last
    period with a row; NULL where there is none.
    """

    rows: Rows
    query: Query
    found: pa.Table | None = None

    @classmethod
    def of(
        cls, catalog: Catalog, start: Event, activity: Event | None, entity: str, now_us: int, periods: int
    ) -> RetentionWalk | str:
        views = [catalog.view(e.source) for e in (start, activity) if e is not None]
        rows = Rows.of(catalog, views, entity)
        if isinstance(rows, str):
            return rows
        if periods > 62:
            return "it has more periods than a number has bits"
        if not rows.fits(catalog, 8 * 4):
            return "what is kept of its units would not fit in memory"
        conditions = [_condition(catalog.view(e.source), e) for e in (start, activity) if e is not None]
        return cls(rows, rows.masked(conditions, now_us))

    def run(
        self,
        catalog: Catalog,
        edges: Sequence[int],
        unbounded: bool,
        low_us: int | None,
        high_us: int,
        as_of_us: int,
        what: str,
        source: str,
    ) -> None:
        units = self.rows.units
        bounds = np.array([-_FAR if low_us is None else low_us, high_us, as_of_us, int(unbounded)], np.int64)
        ends = np.array(edges[1:], np.int64)
        kept = np.zeros((units, 4), np.int64)
        kept[:, 0] = -1
        pending = np.array([-1, 0, 0, 0], np.int64)
        loop = _compiled(_retention)

        def add(unit: Longs, t: Longs, mask: Longs) -> None:
            loop(unit, t, mask, bounds, ends, kept, pending)

        self.rows.walk(catalog, self.query, what, source, add)
        add(*(np.array([v], np.int64) for v in (-1, 0, 0)))
        begun = np.flatnonzero(kept[:, 0] >= 0)
        t0, seen, early, rows = np.ascontiguousarray(kept[begun].T)
        self.found = pa.table(
            {"unit": begun, "t0": t0, "seen": pa.array(seen, mask=rows == early), "early": early, "rows": rows}
        )


def _retention(
    unit: Longs,
    t: Longs,
    mask: Longs,
    bounds: Longs,
    ends: Longs,
    kept: Longs,
    pending: Longs,
) -> None:
    """The loop: plain Python that numba compiles. ``kept`` is (start or -1, what was seen, rows before the start, rows) of each unit, ``pending`` is (unit, time, mask, rows of activity) of the rows not yet taken:
    those of a unit at one time are taken together, since a start counts for all of them."""
    low, high, as_of, unbounded = bounds
    periods = len(ends)
    even = ends[0]
    for k in range(periods):
        if ends[k] != ends[0] * (k + 1):
            even = 0
    for i in range(len(unit)):
        if unit[i] == pending[0] and t[i] == pending[1]:
            pending[2] |= mask[i]
            pending[3] += (mask[i] >> 1) & 1
            continue
        us, n = pending[1], pending[3]
        if pending[0] >= 0:
            own = kept[pending[0]]
            if pending[2] & 1 and own[0] < 0 and low <= us <= high:
                own[0] = us
            if n and us <= as_of:
                own[3] += n
                if own[0] < 0:
                    own[2] += n
                else:
                    since = us - own[0]
                    if even:
                        k = min(since // even, periods)
                    else:
                        k = 0
                        while k < periods and since >= ends[k]:
                            k += 1
                    if unbounded:
                        own[1] = k
                    elif k < periods:
                        own[1] |= 1 << k
        pending[0], pending[1], pending[2], pending[3] = unit[i], t[i], mask[i], (mask[i] >> 1) & 1


@cache
def _compiled(loop: Callable[..., None]) -> Callable[..., None]:
    """A loop as machine code, which is kept beside the source for the next process."""
    import numba

    try:
        return numba.njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # there is no folder to keep it in
        return numba.njit(nogil=True)(loop)

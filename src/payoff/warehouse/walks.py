"""One walk over the prepared rows of a relation for all who ask something of them.

DuckDB reads and evaluates (which conditions a row meets, as bits of a mask; its values); compiled loops, one for each that asks, take
batch after batch. Units are cut into ranges, and each range is walked by a thread and a session of its own, all segments in their
order: the rows of a unit are met one after another by one loop, so that nothing depends on how many threads there are.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow.parquet as pq
from sqlglot import exp

from payoff.errors import DataError
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.prepared import UNIT, US
from payoff.warehouse.query import Query, column, conjunction, fragment, sql

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from payoff.warehouse.engine import Engine
    from payoff.warehouse.prepared import Segment
    from payoff.warehouse.statements import Step

    Longs = NDArray[np.int64]
    Doubles = NDArray[np.float64]

MOST_BITS = 62
_SELECTIVE = 2
"""Conditions up to which rows that meet none are left out in SQL. Of more, most rows meet one, and the loop is quicker to skip them."""
_ROWS = 250_000
"""Rows that a range has at least: of fewer, opening another session costs more than it saves."""
_SHARE = 0.5
"""Of the engine's memory, that all that follow one walk may keep together."""
_LOOKED = 16
"""Segments whose statistics tell where units are cut: the largest. Ranges need only be about equal."""
_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}


NOTHING = np.empty(0, np.int64)
"""A column of no rows."""
NOTHING.flags.writeable = False  # as the columns of a batch are: for another type a loop would be compiled anew


class Loop(Protocol):
    """What follows the rows of one range: ``add`` is given (unit, t, mask) and values, of shape (how many, rows); ``end`` comes last."""

    def add(self, unit: Longs, t: Longs, mask: Longs, values: Doubles) -> None: ...

    def end(self) -> None: ...


def available() -> bool:
    """Is the compiler of the loops installed?"""
    return importlib.util.find_spec("numba") is not None


@cache
def compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """A loop as machine code, which is kept beside the source for the next process."""
    import numba

    try:
        return numba.njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # there is no folder to keep it in
        return numba.njit(nogil=True)(loop)


def warm(loops: Callable[[], Sequence[Loop]]) -> None:
    """Have loops loaded, or compiled, by a thread, while other things are read: each is given no rows."""

    def run() -> None:
        with suppress(Exception):  # it is told by who needs the loop
            compiled(_in_order)(NOTHING, NOTHING, np.array([-1, 0, 0], np.int64))
            for loop in loops():
                loop.add(NOTHING, NOTHING, NOTHING, np.empty((0, 0)))

    if available():
        threading.Thread(target=run, name="payoff loads loops", daemon=True).start()


# ---------------------------------------------------------------- what is read of a row


@dataclass(frozen=True)
class Reads:
    """What is asked of each row: whether it meets ``conditions``, and ``values`` (doubles). ``every``: rows that meet none of
    ``rows`` matter too; else they may be left out."""

    conditions: tuple[exp.Expr, ...]
    values: tuple[exp.Expr, ...] = ()
    rows: tuple[exp.Expr, ...] | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """Where what one of several asked for is: the bit of the mask for each of its conditions, the number of each of its values."""

    bits: tuple[int, ...]
    values: tuple[int, ...]

    def mask(self, own: int) -> int:
        """The bits for a mask of which bit n is the n-th condition."""
        return sum({bit for n, bit in enumerate(self.bits) if own >> n & 1})


def united(asked: Sequence[Reads], types: Mapping[str, str]) -> tuple[Query, tuple[Places, ...]] | None:
    """The SELECT over ``prepared_rows`` that gives (unit, t, mask, v0 ...) for all that is asked, equal conditions and values once.

    ``types`` are those of the relation's columns. None where there are more conditions than a mask has bits.
    """
    bits: dict[str, tuple[int, exp.Expr]] = {}
    values: dict[str, tuple[int, exp.Expr]] = {}
    places = []
    for reads in asked:
        own = [bits.setdefault(c.sql("duckdb"), (1 << len(bits), c))[0] for c in reads.conditions]
        numbers = [values.setdefault(v.sql("duckdb"), (len(values), v))[0] for v in reads.values]
        places.append(Places(tuple(own), tuple(numbers)))
    if len(bits) > MOST_BITS:
        return None
    query = exp.select(
        exp.alias_(column(UNIT), "unit"),
        exp.alias_(column(US), "t"),
        exp.alias_(mask_of([(c, bit) for bit, c in bits.values()], types), "mask"),
        *(exp.alias_(fragment("coalesce($v, 0.0::DOUBLE)", v=v), f"v{n}") for n, v in values.values()),
    ).from_("prepared_rows")
    query = query.where(fragment(f"{UNIT} IS NOT NULL AND {US} IS NOT NULL"))
    wanted = {row.sql("duckdb"): row for reads in asked for row in reads.rows or ()}
    if len(wanted) <= _SELECTIVE and all(reads.rows is not None for reads in asked):
        query = query.where(exp.paren(exp.or_(*(exp.paren(row.copy()) for row in wanted.values()))))
    return Query(query), tuple(places)


def mask_of(conditions: Sequence[tuple[exp.Expr, int]], types: Mapping[str, str]) -> exp.Expr:
    """A BIGINT with the bit of each condition that holds; where it is NULL it does not.

    Equalities of one column with literals are one CASE, which stops at the first that holds.
    """
    cases: dict[str, dict[str, tuple[exp.Expr, int]]] = {}
    columns: dict[str, exp.Expr] = {}
    others: list[exp.Expr] = []
    for condition, bit in conditions:
        found = _one_of(condition, types)
        if found is None:
            others.append(fragment("CASE WHEN $c THEN $bit ELSE 0 END", c=condition, bit=bit))
            continue
        by, literals = found
        name = by.sql("duckdb")
        columns[name] = by
        for literal in literals:
            key, known = literal.sql("duckdb"), cases.setdefault(name, {})
            known[key] = (literal, known.get(key, (literal, 0))[1] | bit)
    parts: list[exp.Expr] = []
    for name, known in cases.items():
        case = exp.Case(this=columns[name].copy())
        for literal, bit in known.values():
            case = case.when(literal.copy(), exp.convert(bit))
        parts.append(case.else_(exp.convert(0)))
    total: exp.Expr | None = None
    for part in (*parts, *others):
        total = part if total is None else exp.Add(this=total, expression=part)
    return exp.cast(exp.convert(0) if total is None else total, "BIGINT")


def any_of(condition: exp.Expr, types: Mapping[str, str]) -> exp.Expr:
    """What holds where a condition does (where it is NULL, neither does); of equalities of one column, the CASE of ``mask_of``: DuckDB
    reads a file with it in less than half the time that comparing each value takes."""
    parts, seen = [condition], []
    while parts:
        part = parts.pop()
        if isinstance(part, exp.Paren):
            parts.append(part.this)
        elif isinstance(part, exp.Or):
            parts += [part.this, part.expression]
        else:
            seen.append(part)
    found = [_one_of(part, types) for part in seen]
    if not all(found) or len({one[0].sql("duckdb") for one in found if one is not None}) > 1:
        return condition
    return fragment("$mask > 0", mask=mask_of([(part, 1) for part in seen], types))


def _one_of(condition: exp.Expr, types: Mapping[str, str]) -> tuple[exp.Expr, list[exp.Expr]] | None:
    """The column and the literals of ``column = literal`` or ``column IN (literals)``, where different literals are different values."""
    while isinstance(condition, exp.Paren) or (
        isinstance(condition, exp.Coalesce)
        and len(condition.expressions) == 1
        and condition.expressions[0] == exp.false()  # what is NULL does not hold either way
    ):
        condition = condition.this
    if isinstance(condition, exp.EQ):
        by, literals = condition.this, [condition.expression]
        if isinstance(by, exp.Literal):
            by, literals = condition.expression, [by]
    elif isinstance(condition, exp.In) and condition.expressions and set(condition.args) <= {"this", "expressions"}:
        by, literals = condition.this, condition.expressions
    else:
        return None
    if not isinstance(by, exp.Column) or not all(isinstance(one, exp.Literal) for one in literals):
        return None
    kind = types.get(by.name)
    if kind == "VARCHAR" and all(one.is_string for one in literals):
        return by, literals
    if kind in _INTEGERS and all(one.is_int for one in literals):
        return by, [exp.convert(int(one.name)) for one in literals]
    return None


def rows_of(segments: Sequence[Segment], only: str | None = None) -> exp.Select:
    """The rows of segments; ``only``: a table of the units that are wanted, whose rows then have their places too."""
    listed = exp.Array(expressions=[exp.Literal.string(s.path) for s in segments])
    named = "" if only is None else ", file_index, file_row_number"
    query = sql(f"SELECT *{named} FROM read_parquet($files)", files=listed).tree
    assert isinstance(query, exp.Select)
    for number, segment in enumerate(segments):
        if (inside := segment.condition()) is not None:
            query = query.where(fragment("(file_index <> $number OR $inside)", number=number, inside=inside))
    return query if only is None else query.where(fragment(f"coalesce({UNIT}, -1) IN (SELECT unit FROM {only})"))


def over(projection: Query, segments: Sequence[Segment]) -> Query:
    """The projection over the rows of some segments."""
    return Query(projection.tree.copy().with_("prepared_rows", as_=rows_of(segments)))


# ---------------------------------------------------------------- the walk


class Feed:
    """Gives batches of (unit, t, mask, v0 ...) to loops, and sees to it that they are in order: that they begin again at a lower
    unit or time less than ``segments`` times. Raises DataError."""

    def __init__(self, loops: Sequence[Loop], segments: int, source: str | None) -> None:
        self._loops, self._segments, self._source = loops, segments, source
        self._last = np.array([-1, 0, 0], np.int64)

    def add(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        unit, t, mask = (_longs(batch.column(i)) for i in range(3))
        compiled(_in_order)(unit, t, self._last)
        if self._last[2] >= self._segments:
            raise DataError(
                "its prepared copy is not in order; make it anew (payoff prepare --drop, payoff prepare)",
                source=self._source,
            )
        held = [batch.column(i).to_numpy() for i in range(3, batch.num_columns)]
        values = np.stack(held) if len(held) > 1 else np.reshape(held, (len(held), len(unit)))
        for loop in self._loops:
            loop.add(unit, t, mask, values)

    def end(self) -> None:
        for loop in self._loops:
            loop.end()


def through(
    engine: Engine,
    segments: Sequence[Segment],
    projection: Query,
    loops: Callable[[], Sequence[Loop]],
    what: str,
    source: str | None = None,
) -> int:
    """Give the rows of ``segments``, in their order, to loops: ``loops`` makes those of one range. Returns how many rows were read.

    Raises DataError and ConnectionFailed; what loops have written is then of no use.
    """
    assert isinstance(engine, DuckDBEngine)
    if not segments:
        return 0
    total = sum(segment.rows for segment in segments)
    queries, feeds = [], []
    for low, high in ranges(segments, min(engine.threads(), max(1, total // _ROWS))):
        tree = projection.tree.copy()
        assert isinstance(tree, exp.Select)
        bounds = [fragment(f"{UNIT} >= $n", n=low)] if low is not None else []
        bounds += [fragment(f"{UNIT} < $n", n=high)] if high is not None else []
        queries.append(over(Query(tree.where(conjunction(*bounds)) if bounds else tree), segments))
        feeds.append(Feed(loops(), len(segments), source))
    read = engine.read_apart(queries, [feed.add for feed in feeds], what, source, total)
    for feed in feeds:
        feed.end()
    return read


@dataclass(eq=False)
class Walker:
    """One who asks for a walk over ``segments``. ``loops`` begins anew, and gives what makes the loop of a range; ``told`` takes what
    they found. ``bytes`` are those that it keeps meanwhile. ``step`` is the walk as it would be made for it alone."""

    segments: tuple[Segment, ...]
    types: Mapping[str, str]
    reads: Reads
    bytes: int
    loops: Callable[[], Callable[[Places], Loop]]
    told: Callable[[], None]
    step: Step
    done: bool = False
    error: DataError | None = None


class Walks:
    """The walks of one run. All who will need one ``plan`` it before any is made; the first that is needed is made for all over the
    same rows that fit in memory together."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._planned: list[Walker] = []

    def plan(self, walker: Walker) -> None:
        self._planned.append(walker)

    def make(self, walker: Walker) -> None:
        """Make the walk of one, if it was not made yet. Raises DataError and ConnectionFailed."""
        if not walker.done:
            group = next(group for group in self._groups() if walker in group)
            try:
                self._make(group)
            except DataError as error:
                if len(group) == 1:
                    walker.error = error
                else:  # what is wrong with the question of one is not told to all
                    for one in group:
                        try:
                            self._make([one])
                        except DataError as own:
                            one.error = own
            for one in group:
                one.done = True
        if walker.error is not None:
            raise walker.error

    def _make(self, group: Sequence[Walker]) -> None:
        made = united([one.reads for one in group], group[0].types)
        assert made is not None
        projection, places = made
        loops = [one.loops() for one in group]
        what, source = group[0].step.name, group[0].step.reads
        through(
            self._engine,
            group[0].segments,
            projection,
            lambda: [loop(place) for loop, place in zip(loops, places, strict=True)],
            what,
            source,
        )
        for one in group:
            one.told()

    def _groups(self) -> list[list[Walker]]:
        """Who shares a walk, in the order in which they were planned."""
        out: list[list[Walker]] = []
        room = _SHARE * self._engine.memory()
        for walker in self._planned:
            for group in out:
                if (
                    group[0].segments == walker.segments
                    and group[0].done == walker.done
                    and sum(one.bytes for one in (*group, walker)) <= room
                    and united([one.reads for one in (*group, walker)], walker.types) is not None
                ):
                    group.append(walker)
                    break
            else:
                out.append([walker])
        return out

    def shared(self, steps: Sequence[Step]) -> list[Step]:
        """Steps of all that was asked, of which those that are one walk read rows once: with the first of them."""
        changed: dict[int, Step] = {}
        for group in self._groups():
            first = group[0].step
            if len(group) == 1:
                continue
            made = united([one.reads for one in group], group[0].types)
            assert made is not None
            changed[id(first)] = replace(
                first,
                columns=tuple(sorted({column for one in group for column in one.step.columns})),
                serves=tuple(dict.fromkeys(name for one in group for name in one.step.serves)),
                query=over(made[0], group[0].segments),
            )
            for one in group[1:]:
                told = f"{one.step.purpose}: the same walk as that for {' and '.join(first.serves)}"
                changed[id(one.step)] = replace(one.step, reads="", columns=(), purpose=told)
        return [changed.get(id(step), step) for step in steps]


def ranges(segments: Sequence[Segment], parts: int) -> list[tuple[int | None, int | None]]:
    """Units cut into at most ``parts`` ranges [from, to) of about as many rows, None being no bound: by the statistics of row groups."""
    if parts < 2:
        return [(None, None)]
    lows, highs, rows = [], [], []
    for segment in sorted(segments, key=lambda s: -s.rows)[:_LOOKED]:
        footer = pq.read_metadata(segment.path)
        place = footer.schema.names.index(UNIT)
        for n in range(footer.num_row_groups):
            told = footer.row_group(n).column(place).statistics
            if told is not None and told.has_min_max:
                lows.append(told.min)
                highs.append(told.max + 1)
                rows.append(footer.row_group(n).num_rows)
    if not rows:
        return [(None, None)]
    low, high, weight = (np.array(v, np.int64) for v in (lows, highs, rows))
    at = np.unique(np.linspace(low.min(), high.max(), 4096).astype(np.int64))
    below = sum(w * np.clip((at - a) / (b - a), 0, 1) for a, b, w in zip(low, high, weight, strict=True))
    cuts = np.unique(at[np.searchsorted(below, weight.sum() * np.arange(1, parts) / parts)])
    ends = [None, *(int(cut) for cut in cuts if low.min() < cut < high.max()), None]
    return list(pairwise(ends))


def _longs(values: Any) -> Longs:
    return np.asarray(values.to_numpy(), np.int64)


def _in_order(unit: Longs, t: Longs, last: Longs) -> None:
    """``last`` is the unit and the time of the row before, and how often the order began again."""
    u, now, again = last[0], last[1], last[2]
    for i in range(len(unit)):
        if unit[i] < u or (unit[i] == u and t[i] < now):
            again += 1
        u, now = unit[i], t[i]
    last[0], last[1], last[2] = u, now, again

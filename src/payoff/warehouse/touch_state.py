"""Incremental attribution: what the conversions of each day credit is kept, and a run counts the days that are not as they were.

A conversion looks back over its unit's touches of one window. So what the conversions of a day credit is a function of the rows of
that day and of the window before it, and as long as no part of the prepared layout that can hold such rows has changed, it is
taken from the store. Sums are whole numbers of 2^-64, so that days can be added and taken away again without a trace: a run
that counts every day gives the same figures to the last bit.

Distinct units are kept as how many days each has: those with none are no longer there. Of each unit there is also a bound of how
many pairs of touch and conversion it may have. Where that is beyond ``max_pairs`` all of its history weighs on each of its
conversions, and everything is read as without a state.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlglot import exp

from payoff.spec.journeys import JourneyDesign
from payoff.warehouse import prepared
from payoff.warehouse.credited import GROUPS, POSITIONS, IntArray
from payoff.warehouse.crediting import CreditStatements
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.events import AHEAD_US
from payoff.warehouse.prepared import UNIT, US, Part, Prepared, pack, unpack
from payoff.warehouse.query import Query, bucket, fragment, sql
from payoff.warehouse.sources import Catalog, View, as_id
from payoff.warehouse.state import Array, Damaged, Held, Store, compare, home, sweep
from payoff.warehouse.statements import Step
from payoff.warehouse.touches import Reading

VERSION = 1
"""Of what the state holds and how it is counted: another number makes every state anew."""
_DAY_US = 86_400_000_000
_MOST_DAYS = 5_000
_MOST_VALUES = 10_000
"""Values of one touchpoint by values that are counted by day."""
_MOST_CELLS = 1 << 27
"""Of the converting units: how many numbers are kept of all of them together."""
_PAIRS = 1_000_000
"""Pairs of touch and conversion that are summed in one go."""
_ROWS = 4_000_000
"""Rows whose units are fetched in one go."""
_SMALL, _LARGE = 2.0**-24, 2.0**40
"""A value of a conversion that is not 0 lies between these, or its exact sum would lose digits or have no room."""


class _Cannot(Exception):
    """Days cannot be counted one by one; the message says why, in a clause."""


# ---------------------------------------------------------------- exact sums


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Rows of exact sums by a sorted ``key``: ``high`` + ``low`` / 2^64, each (rows, columns)."""

    key: IntArray
    high: IntArray
    low: NDArray[np.uint64]

    @classmethod
    def empty(cls, columns: int) -> Sums:
        return cls(np.zeros(0, np.int64), np.zeros((0, columns), np.int64), np.zeros((0, columns), np.uint64))

    @classmethod
    def of(cls, key: IntArray, columns: Sequence[pa.ChunkedArray]) -> Sums:
        """From what an engine gave: whole numbers are counts, decimals are sums of 2^-64. Keys are each there once."""
        order = np.argsort(key)
        high = np.zeros((len(key), len(columns)), np.int64)
        low = np.zeros((len(key), len(columns)), np.uint64)
        for i, column in enumerate(columns):
            whole = column.combine_chunks()
            if pa.types.is_decimal(whole.type):
                words = np.frombuffer(whole.buffers()[1], np.uint64)[2 * whole.offset :][: 2 * len(whole)]
                low[:, i], high[:, i] = words[0::2], words[1::2].view(np.int64)
            else:
                high[:, i] = whole.to_numpy(zero_copy_only=False)
        return cls(key[order], high[order], low[order])

    def merged(self, other: Sums, sign: int) -> Sums:
        """The sum (``sign`` 1) or the difference (-1); rows of zeros alone are left out."""
        key = np.union1d(self.key, other.key)
        high = np.zeros((len(key), self.high.shape[1]), np.int64)
        low = np.zeros((len(key), self.high.shape[1]), np.uint64)
        for one, minus in ((self, False), (other, sign < 0)):
            at = np.searchsorted(key, one.key)
            add_high, add_low = one.high, one.low
            if minus:
                add_low = ~one.low + np.uint64(1)
                add_high = ~one.high + (add_low == 0)
            low[at] += add_low
            high[at] += add_high + (low[at] < add_low)
        some = ((high != 0) | (low != 0)).any(axis=1)
        return Sums(key[some], high[some], low[some])

    def part(self, first: int, last: int) -> Sums:
        """The rows with keys from ``first`` to before ``last``, by what is beyond ``first``."""
        a, b = np.searchsorted(self.key, [first, last])
        return Sums(self.key[a:b] - first, self.high[a:b], self.low[a:b])

    def numbers(self) -> NDArray[np.float64]:
        """Each to the nearest double, or next to it."""
        below = self.high < 0
        low = np.where(below, ~self.low + np.uint64(1), self.low)
        high = np.where(below, ~self.high + (low == 0), self.high)
        size = high.astype(np.float64) + low.astype(np.float64) * 2.0**-64
        return np.where(below, -size, size)


def packed(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Named arrays as bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in arrays.items():
            one = io.BytesIO()
            np.lib.format.write_array(one, array, allow_pickle=False)
            archive.writestr(f"{name}.npy", one.getvalue())
    raw = out.getvalue()
    squeezed = pa.compress(raw, codec="zstd", asbytes=True)
    return np.frombuffer(len(raw).to_bytes(8, "little") + squeezed, np.uint8)


def unpacked(data: np.ndarray) -> dict[str, np.ndarray]:
    raw = np.ascontiguousarray(data).tobytes()
    whole = pa.decompress(raw[8:], decompressed_size=int.from_bytes(raw[:8], "little"), codec="zstd", asbytes=True)
    with np.load(io.BytesIO(whole), allow_pickle=False) as found:
        return dict(found)


# ---------------------------------------------------------------- statements over some days


class _Numbered(View):
    """A view over segments of its prepared relation, its unit being the number that it has there (NULL without an id)."""

    @classmethod
    def over(cls, view: View, paths: Sequence[str]) -> View:
        listed = exp.Array(expressions=[exp.Literal.string(path) for path in paths])
        select = sql("SELECT * FROM read_parquet($files)", files=listed).tree
        out = object.__new__(cls)
        out.__dict__.update({k: v for k, v in view.__dict__.items() if k != "relation"})
        out.own = replace(view.own, select=select, columns={**view.own.columns, UNIT: "BIGINT"})
        return out

    def unit(self, entity: str) -> exp.Expr:
        return exp.column(UNIT, quoted=True)


class _OfDays(CreditStatements):
    """The same statements over the conversions of some ``days``, with the day in front of every cell, and with exact sums."""

    exact = True

    def __init__(self, catalog: Catalog, design: JourneyDesign, days: Sequence[int], units: str, kind: str) -> None:
        super().__init__(catalog, design)
        self.days, self._units_path, self.kind = days, units, kind
        self.models = {name: m for name, m in self.models.items() if m.kind != "markov"}
        self.text = False

    @property
    def block(self) -> int:
        """Cells of one day."""
        return len(self.outcomes) * self._slots * GROUPS

    def only(self, days: Sequence[int]) -> None:
        """Sum these days alone, of those whose pairs there are."""
        low, high = ((day - self.days[0]) * self.block for day in (days[0], days[-1] + 1))
        self._some = fragment("cell >= $low AND cell < $high", low=low, high=high)

    def _raw(self) -> Step:
        starts, ends = self.design.starts_us, self.design.ends_us
        low, high = self.days[0] * _DAY_US, (self.days[-1] + 1) * _DAY_US - 1
        low = low if starts is None else max(low, starts)
        step = self._converted(low, high if ends is None else min(high, ends - 1))
        if len(self.days) == self.days[-1] - self.days[0] + 1:
            return step
        among = exp.Tuple(expressions=[exp.convert(day) for day in self.days])
        query = sql(f"SELECT * FROM spanned WHERE us // {_DAY_US} IN $days", days=among, spanned=step.query)
        return replace(step, query=query)

    def _outcome(self) -> exp.Expr:
        return fragment(f"(r.us // {_DAY_US} - $first) * $n + r.outcome", first=self.days[0], n=len(self.outcomes))

    def _units(self) -> Step:
        query = sql(
            f"""
            SELECT d.unit, CAST(d.unit AS INTEGER) AS uid, CAST($bucket AS INTEGER) AS g
            FROM (SELECT DISTINCT unit FROM credit_raw WHERE inside) AS d
            JOIN (SELECT {UNIT}, unit AS id FROM read_parquet($units)) AS u ON u.{UNIT} = d.unit
            """,
            bucket=self._bucket(GROUPS),
            units=exp.Literal.string(self._units_path),
        )
        return self._step("number the converting units", "units by number, and their hash groups", query)

    def _bucket(self, groups: int) -> exp.Expr:
        return bucket(as_id(exp.column("id", table="u"), self.kind), groups)

    def odd(self) -> Query:
        """By day and outcome: conversions without a value, and values that have no exact sum."""
        return sql(
            f"""
            SELECT us // {_DAY_US} AS day, outcome, count(*) FILTER (WHERE worth IS NULL) AS unvalued,
                   count(*) FILTER (WHERE worth <> 0 AND NOT coalesce(abs(worth) BETWEEN $small AND $large, FALSE)) AS odd,
                   min(us) AS first_us, max(us) AS last_us
            FROM credit_raw WHERE inside GROUP BY ALL
            """,
            small=exp.Literal.number(repr(_SMALL)),
            large=exp.Literal.number(repr(_LARGE)),
        )

    def converted(self) -> Query:
        """By day, outcome and unit: conversions."""
        return sql(
            "SELECT cell // $of AS slot, uid, count(*) AS n FROM credit_conversions GROUP BY ALL",
            of=GROUPS * self._slots,
        )

    def met(self) -> Query:
        """By day, outcome, unit and touchpoint: the age of the newest touch."""
        return sql(
            "SELECT cell // $of AS slot, uid, code, min(age) AS newest FROM credit_pairs WHERE $some GROUP BY ALL",
            of=GROUPS * self._slots,
            some=exp.true() if self._some is None else self._some,
        )


# ---------------------------------------------------------------- the state


def begin(ways: CreditStatements, *, full: bool = False) -> Daily | str:
    """The refresh of an attribution, or why all of it is read instead, in a clause. ``ways`` is told what there is, in place of a look."""
    catalog, design = ways.catalog, ways.design
    if not (catalog.prepared or catalog.stale) or not isinstance(catalog.engine, DuckDBEngine):
        return "nothing is prepared"
    if design.arms is not None:
        return f"it is held against {design.arms.experiment}"
    if any(m.kind == "custom" for m in ways.models.values()):
        return "a custom weight is looked at over everything"
    views = {r.view.name: r.view for r in (*ways.readings, *ways.touches.readings)}
    found: dict[str, Prepared] = {}
    for view in views.values():
        if view.source.sessions is not None:
            return f"'{view.name}' is made of sessions"
        if design.entity in view.joined:
            return f"the ids of '{design.entity}' are joined by an identity"
        if view.source.id is not None:
            return f"rows of '{view.name}' are told apart by their id, over everything"
        of = prepared.of(catalog, view, design.entity)
        if of is None:
            return f"of '{view.name}' {prepared.why_not(catalog, view, design.entity)}"
        found[of.key] = of
    if len(found) > 1:
        return "touches and conversions are in several tables"
    (only,) = found.values()
    daily = Daily(ways, views, only, full)
    spans = [(p.first_us, p.last_us) for p in daily.parts if p.first_us is not None and p.last_us is not None]
    if not spans:
        return "there is no row with a time"
    if min(first for first, _ in spans) < 0 or max(last for _, last in spans) > design.now_us + AHEAD_US:
        return "there are rows dated before 1970 or in the future"
    if max(last for _, last in spans) - min(first for first, _ in spans) > _MOST_DAYS * _DAY_US:
        return f"there are more than {_MOST_DAYS:,} days"
    return daily


class Daily:
    """An attribution counted by day. ``count`` brings the state up to the rows that there are; then ``tables`` has what the summed
    statements and that of the units behind each touchpoint would give, by their names; ``keep`` stores the state."""

    def __init__(self, ways: CreditStatements, views: Mapping[str, View], of: Prepared, full: bool) -> None:
        self.catalog, self.design, self.ways = ways.catalog, ways.design, ways
        self._views, self._prepared, self._full = views, of, full
        self._engine = ways.catalog.engine
        self.parts = [part for segment in of.segments for part in segment.parts]
        self.kind = next(iter(views.values())).type_of_own(next(iter(views.values())).own_id(ways.design.entity))
        self._store = Store(home(ways.catalog.root), self._definition())
        self.steps: list[Step] = []
        self.tables: dict[str, pa.Table] = {}
        self.unvalued: dict[int, int] = {}
        self.cannot = ""
        self._why = self._unkept = ""
        self._fresh = self._same = False
        self._came = 0
        self._held = Held()
        self._changed = np.zeros(0, bool)
        self._counted: list[int] = []

    def _definition(self) -> str:
        """A mark of all that a stored day depends on beside its rows."""
        of, ways = self._prepared, self.ways
        said: list[object] = [VERSION, GROUPS, POSITIONS, self.design.entity, self.kind]
        said += [of.key, dict(of.columns), of.numbering, of.unit, of.time]
        said += [self.design.starts_us, self.design.ends_us, list(ways.windows.items()), self.ways.declared.max_pairs]
        said += [(name, repr(m)) for name, m in ways.models.items() if m.kind != "markov"]
        said += [(name, repr(o)) for name, o in ways.outcomes.items()]
        said += [(name, repr(t)) for name, t in self.design.touchpoints.items()]
        said += [
            (
                r.view.name,
                [(m.number, m.name, _text(m.where), _text(m.by), *map(_text, m.columns.values())) for m in r.marks],
            )
            for r in (*ways.readings, *ways.touches.readings)
        ]
        said += [(name, _text(view.where)) for name, view in self._views.items()]
        return hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()

    # ---------------------------------------------------------------- which days

    def _reaching(self, day: int, back_us: int) -> str:
        """A mark of the parts that can hold rows of a day, or of so long before it."""
        low, high = day * _DAY_US - back_us, (day + 1) * _DAY_US - 1
        digest = hashlib.blake2b(digest_size=12)
        for part in self.parts:
            if _within(part, low, high):
                digest.update(f"{part.of}\0{part.fingerprint}\0".encode())
        return digest.hexdigest()

    def _days(self) -> tuple[dict[str, str], dict[str, str]]:
        """The days that may hold rows, and those of them that may hold conversions: each with the mark of what it is made of."""
        days = sorted(
            {
                d
                for p in self.parts
                if p.first_us is not None and p.last_us is not None
                for d in _days(p.first_us, p.last_us)
            }
        )
        starts, ends = self.design.starts_us, self.design.ends_us
        of = [
            d for d in days if (starts is None or (d + 1) * _DAY_US > starts) and (ends is None or d * _DAY_US < ends)
        ]
        return (
            {str(d): self._reaching(d, 0) for d in days},
            {str(d): self._reaching(d, self.ways.longest - 1) for d in of},
        )

    def _new(self, held: Mapping[str, str]) -> int:
        change = compare(held, self._prepared.parts)
        return len(change.added) + len(change.late) + len(change.changed)

    def foreseen(self) -> str:
        """How a run would go, in a clause; no row is read for it."""
        try:
            held = self._store.parts()
        except Damaged as error:
            return f"full: the state is damaged ({error}); {len(self.parts):,} parts"
        if held is None:
            return f"full: the first of its kind; {len(self.parts):,} parts"
        _, days = self._days()
        if 2 * len(_stale(held["days"], days)) > len(days):
            return f"full: more than half of the days changed; {len(self.parts):,} parts"
        return f"refresh: {self._new(held['rows']):,} new parts of {len(self.parts):,}"

    @property
    def told(self) -> str:
        """How it went, in a sentence."""
        unkept = f"; {self._unkept}" if self._unkept else ""
        if self._fresh:
            return f"full: {self._why}; {len(self.parts):,} parts read{unkept}"
        return (
            f"refresh: {self._came:,} new parts of {len(self.parts):,};"
            f" {len(self._counted):,} of {len(self._held.facts['days']):,} days counted{unkept}"
        )

    # ---------------------------------------------------------------- the run

    def count(self) -> bool:
        """Bring the state up to the rows that there are, whether or not there was one: what it then gives is the same. False where
        days cannot be counted by themselves; ``cannot`` says why."""
        try:
            try:
                self._bring_up(self._load())
            except Damaged as error:
                self._bring_up(self._none(f"the state was damaged ({error})"))
            except _Cannot as error:
                if self._fresh:
                    raise
                self._bring_up(self._none(str(error)))  # what was kept is a bound, and may be too wide by now
            self._give()
        except _Cannot as error:
            self.cannot = str(error)
            return False
        return True

    def _load(self) -> Held:
        if self._full:
            return self._none("asked for")
        try:
            held = self._store.load()
        except Damaged as error:
            return self._none(f"the state was damaged ({error})")
        if held is None:
            return self._none("the first of its kind")
        self._came = self._new(held.facts["parts"]["rows"])
        return held

    def _none(self, why: str) -> Held:
        """A state of no day."""
        self._fresh, self._why = True, why
        self.steps, self.tables = [], {}
        facts: dict[str, Any] = {
            "parts": {"rows": {}, "days": {}},
            "seen": {},
            "days": {},
            "stops": None,
            "columns": {},
        }
        made = Held(0, {"unit": np.zeros(0, np.int32), "conversions": np.zeros(0, np.int64)}, {}, facts)
        made.parts["touches"] = Array(np.zeros(0, np.int32))
        return made

    def _bring_up(self, held: Held) -> None:
        self._held, self._before = held, held.rows
        self._changed = np.zeros(held.rows, bool)
        seen, days = self._days()
        facts = held.facts
        stale = _stale(facts["parts"]["days"], days)
        if not self._fresh and 2 * len(stale) > len(days):
            return self._bring_up(self._none("more than half of the days changed"))
        self._look(seen)
        self._adopt()
        stops = [[s.label, s.touchpoint] for s in self.ways.touches.stops]
        if facts["stops"] is None:
            self._shape(len(stops))
            facts["stops"] = stops
        elif facts["stops"] != stops:
            return self._bring_up(self._none("the values of a touchpoint are others, or in another order"))
        kept = unpacked(held.parts["total"].read()) if "total" in held.parts else {}
        self._totals = {name: _sums(kept, name) for name in facts["columns"]}
        for day in facts["days"].keys() - days.keys():
            self._take(day)
        self._counted = sorted(map(int, stale))
        for day in stale:
            self._take(day)
        if self._counted:
            self._count_days(self._counted)
        self._same = facts["parts"] == {"rows": self._prepared.parts, "days": days}
        facts["parts"] = {"rows": self._prepared.parts, "days": days}
        held.parts["total"] = Array(packed(dict(_named(self._totals))))
        if len(self._changed) < held.rows:
            self._changed = np.concatenate([self._changed, np.ones(held.rows - len(self._changed), bool)])

    def _shape(self, codes: int) -> None:
        """Columns of a state that holds no unit yet."""
        wide = (len(self.ways.outcomes), len(self.ways.windows), codes)
        self._held.columns["converted"] = np.zeros((0, wide[0]), np.uint16)
        self._held.columns["behind"] = np.zeros((0, *wide), np.uint16)

    # ---------------------------------------------------------------- rows by day

    def _statements(self, days: Sequence[int]) -> _OfDays:
        low, high = self._span(days)
        segments = self._prepared.segments
        paths = [s.path for s in segments if any(_within(part, low, high) for part in s.parts)]
        paths = paths or [s.path for s in segments]
        return self._over(paths, days)

    def _over(self, paths: Sequence[str], days: Sequence[int]) -> _OfDays:
        views = {name: _Numbered.over(view, paths) for name, view in self._views.items()}
        return _OfDays(self.catalog.seen_as(views), self.design, days, self._prepared.units, self.kind)

    def _span(self, days: Sequence[int]) -> tuple[int, int]:
        """From when to when touches of these days' conversions may be."""
        return days[0] * _DAY_US - self.ways.longest + 1, (days[-1] + 1) * _DAY_US - 1

    def _look(self, seen: Mapping[str, str]) -> None:
        """Rows, units and values by day: of days that are not as they were."""
        facts, held = self._held.facts, self._held
        for day in facts["seen"].keys() - seen.keys():
            del facts["seen"][day]
        new = sorted(int(day) for day, mark in seen.items() if facts["seen"].get(day, {}).get("mark") != mark)
        ways = self._over([s.path for s in self._prepared.segments], new or [0])
        readings = self._readings(ways)
        if not all(reading.told_apart for reading in readings.values()):
            raise _Cannot("there are more than 62 touchpoints over one source")
        for day in new:
            facts["seen"][str(day)] = {"mark": seen[str(day)], "rows": {}, "values": {}}
        for at, reading in readings.items():
            for low, high in _stretches(new):
                for row in self._fetch(reading.days_step(low, high)).to_pylist():
                    facts["seen"][str(row.pop("day"))]["rows"].setdefault(at, []).append(row)
                for mark in reading.marks:
                    if mark.by is None:
                        continue
                    for row in self._fetch(reading.values_by_day_step(mark, low, high)).to_pylist():
                        of = facts["seen"][str(row["day"])]["values"].setdefault(str(mark.number), [])
                        of.append([row["value"], row["n"]])
                        if len(of) > _MOST_VALUES:
                            raise _Cannot(f"{mark.name} has more than {_MOST_VALUES:,} values")
        us = exp.column(US, quoted=True)
        self._untimed = {at: {"n": 0, "units": 0} for at in readings}
        if any(part.rows > part.timed for part in self.parts):
            self._untimed = {at: self._fetch(r.untimed_step(us)).to_pylist()[0] for at, r in readings.items()}
        if new:
            held.parts["touches"] = Array(self._touches(ways, new))

    def _touches(self, ways: _OfDays, days: Sequence[int]) -> np.ndarray:
        """By the number of a unit: how many touches it has at most."""
        out = self._held.parts["touches"].read().astype(np.int64)
        seen = self._held.facts["seen"]
        for reading in ways.touches.readings:
            rows = [sum(r["n"] for r in seen[str(day)]["rows"].get(f"touches {reading.source}", ())) for day in days]
            for chunk in _chunks(list(zip(days, rows, strict=True)), _ROWS):
                for low, high in _stretches(chunk):
                    found = self._fetch(reading.units_step(low, high))
                    units = found.column("unit").to_numpy()
                    more = np.bincount(units, found.column("times").to_numpy(), len(out)).astype(np.int64)
                    more[: len(out)] += out
                    out = more
        return np.minimum(out, np.iinfo(np.int32).max).astype(np.int32)

    @staticmethod
    def _readings(ways: CreditStatements) -> dict[str, Reading]:
        """Those of touches and of conversions, by a name of their own."""
        out = {f"touches {r.source}": r for r in ways.touches.readings}
        return out | {f"conversions {r.source}": r for r in ways.readings}

    def _adopt(self) -> None:
        """Tell the readings what there is, as if they had looked at everything."""
        days = list(self._held.facts["seen"].values())
        for at, reading in self._readings(self.ways).items():
            rows, untimed = [row for d in days for row in d["rows"].get(at, ())], self._untimed[at]
            n, units = (sum(r[k] for r in rows) for k in ("n", "units"))
            reading.rows = {m.number: 0 for m in reading.marks}
            reading.overlaps = False
            for row in rows:
                served = reading.served(row["kind"])
                reading.overlaps |= len(served) > 1
                for number in served:
                    reading.rows[number] += row["units"]
            lost = {
                "without_unit": n - units + untimed["n"] - untimed["units"],
                "without_time": untimed["units"],
                "before_1970": 0,
                "ahead": 0,
            }
            first, last = ([r[k] for r in rows if r[k] is not None] for k in ("first_us", "last_us"))
            span = min(first, default=None), max(last, default=None)
            reading.tell(self.catalog, n + untimed["n"], lost, span)
        values: dict[int, dict[str | None, int]] = {
            m.number: {} for r in self.ways.touches.readings for m in r.marks if m.by is not None
        }
        for day in days:
            for number, found in day["values"].items():
                of = values[int(number)]
                for value, n in found:
                    of[value] = of.get(value, 0) + n
        if any(len(of) > _MOST_VALUES for of in values.values()):
            raise _Cannot(f"a touchpoint has more than {_MOST_VALUES:,} values")
        self._values = values
        self.ways.touches.adopt(self.ways.touches, values)

    # ---------------------------------------------------------------- conversions by day

    def _fetch(self, step: Step) -> pa.Table:
        self.steps.append(step)
        return self._engine.fetch(step.query, step.name, step.reads or None)

    def _keep(self, table: str, step: Step) -> None:
        self.steps.append(step.keeping(f"credit_{table}"))
        self._engine.keep(f"credit_{table}", step.query, step.name, step.reads or None)

    def _count_days(self, days: list[int]) -> None:
        ways = self._statements(days)
        ways.touches.adopt(self.ways.touches, self._values)
        for mine, theirs in zip(ways.readings, self.ways.readings, strict=True):
            mine.rows, mine.overlaps, mine.profile = theirs.rows, theirs.overlaps, theirs.profile
        facts, outcomes = self._held.facts, len(ways.outcomes)
        for day in days:
            facts["days"][str(day)] = {"outcomes": {}, "some": False}
        try:
            self._keep("raw", ways._raw())
            for row in self._engine.fetch(ways.odd(), "look at values of conversions by day").to_pylist():
                if row["odd"]:
                    raise _Cannot("values of conversions are too small or too large to be added exactly")
                told = [row["unvalued"], row["first_us"], row["last_us"]]
                facts["days"][str(row["day"])]["outcomes"][str(row["outcome"])] = told
            if not any(facts["days"][str(day)]["outcomes"] for day in days):
                return
            self._keep("units", ways._units())
            self._keep("conversions", ways._conversions())
            converted = self._engine.fetch(ways.converted(), "conversions by day and unit")
            self._bound(_array(converted, "uid"), _array(converted, "n"))
            self._keep("touches", ways._touches(*self._span(days)))
            self._keep("pairs", ways._pairs(heavy=False))
            self._engine.drop("credit_touches")
            self._sum(ways, converted, outcomes)
        finally:
            for table in ("raw", "units", "conversions", "touches", "pairs"):
                self._engine.drop(f"credit_{table}")

    def _bound(self, uid: IntArray, n: IntArray) -> None:
        """Note new conversions of units. Raises _Cannot where one may have too many pairs."""
        held = self._held
        units, at = np.unique(uid, return_inverse=True)
        added = np.zeros(len(units), np.int64)
        np.add.at(added, at, n)
        rows = self._rows(units)
        self._changed[rows[rows < len(self._changed)]] = True
        held.columns["conversions"][rows] += added
        touches = held.parts["touches"].read().astype(np.int64)
        of = held.column("unit")
        own = np.zeros(held.rows, np.int64)
        some = of < len(touches)
        own[some] = touches[of[some]]
        if (own * held.column("conversions") > self.ways.declared.max_pairs).any():
            raise _Cannot(f"a unit may have more than {self.ways.declared.max_pairs:,} pairs of touch and conversion")

    def _rows(self, units: IntArray) -> IntArray:
        """The rows of units, each once; those that have none get one."""
        held = self._held
        where = np.full(int(max(held.column("unit").max(initial=-1), units.max(initial=-1))) + 1, -1, np.int64)
        where[held.column("unit")] = np.arange(held.rows)
        new = units[where[units] < 0]
        if len(new):
            first = held.rows
            if (first + len(new)) * int(np.prod(held.columns["behind"].shape[1:])) > _MOST_CELLS:
                raise _Cannot("there are too many converting units by touchpoints")
            held.grow(len(new))
            for name in held.columns:
                held.columns[name][first : held.rows] = 0
            held.columns["unit"][first : held.rows] = new
            where[new] = np.arange(first, held.rows)
        return where[units]

    def _sum(self, ways: _OfDays, converted: pa.Table, outcomes: int) -> None:
        """What the pairs at hand credit, by day, added to all."""
        found: dict[int, dict[str, np.ndarray]] = {}
        steps = list(ways.summed())
        for pairs, step in steps:
            if not pairs:
                self._by_day(ways, step, self._fetch(step), found)
        slot, uid = (_array(converted, name) for name in ("slot", "uid"))
        for day, mine in _each(slot // outcomes + ways.days[0]):
            found.setdefault(day, {})["converted"] = pack(np.unique(uid[mine] * outcomes + slot[mine] % outcomes))
        several, codes = self._held.columns["behind"].shape[2:]
        bounds = np.sort(np.array(list(ways.windows.values())))
        for days in self._of_pairs(ways):
            ways.only(days)
            for _, step in (s for s in ways.summed() if s[0]):
                self._by_day(ways, step, self._fetch(step), found)
            met = self._engine.fetch(ways.met(), "units behind each touchpoint by day")
            slot, uid, code, newest = (_array(met, name) for name in ("slot", "uid", "code", "newest"))
            # of a touch the shortest window that it lies in
            window = np.searchsorted(bounds, newest, side="right")
            key = ((uid * outcomes + slot % outcomes) * codes + code) * several + window
            for day, mine in _each(slot // outcomes + ways.days[0]):
                found.setdefault(day, {})["behind"] = pack(np.sort(key[mine]))
            for day in days:
                self._settle(day, found.pop(day))
        for day, arrays in found.items():
            self._settle(day, arrays)

    def _settle(self, day: int, arrays: Mapping[str, np.ndarray]) -> None:
        self._held.facts["days"][str(day)]["some"] = True
        self._held.parts[f"day {day}"] = Array(packed(arrays))
        self._add(arrays, 1)

    def _of_pairs(self, ways: _OfDays) -> list[list[int]]:
        """Days that are summed together, so that what comes back is bounded."""
        by_day = self._engine.fetch(
            sql("SELECT cell // $of AS day, count(*) AS n FROM credit_pairs GROUP BY ALL ORDER BY day", of=ways.block),
            "pairs by day",
        )
        days = (_array(by_day, "day") + ways.days[0]).tolist()
        return list(_chunks(list(zip(days, _array(by_day, "n").tolist(), strict=True)), _PAIRS))

    def _by_day(self, ways: _OfDays, step: Step, found: pa.Table, days: dict[int, dict[str, np.ndarray]]) -> None:
        columns = [c for c in found.column_names if c not in _KEYS]
        self._held.facts["columns"][step.name] = columns
        self._totals.setdefault(step.name, Sums.empty(len(columns)))
        if not found.num_rows:
            return
        key = _array(found, "cell")
        for name, wide in zip(_KEYS[1:], self._wide(), strict=True):
            key = key * wide + (_array(found, name) if name in found.column_names else 0)
        sums = Sums.of(key, [found.column(name) for name in columns])
        block = ways.block * int(np.prod(self._wide()))
        for at in np.unique(sums.key // block).tolist():
            part = sums.part(at * block, (at + 1) * block)
            days.setdefault(at + ways.days[0], {}).update(_named({step.name: part}))

    def _wide(self) -> tuple[int, int, int]:
        return (self._held.columns["behind"].shape[3], 2, POSITIONS + 1)

    def _take(self, day: str) -> None:
        """Take away what a day added."""
        told = self._held.facts["days"].pop(day, None)
        if told is not None and told["some"]:
            self._add(unpacked(self._held.parts.pop(f"day {day}").read()), -1)

    def _add(self, arrays: Mapping[str, np.ndarray], sign: int) -> None:
        held = self._held
        for name, total in self._totals.items():
            if f"{name}|key" in arrays:
                self._totals[name] = total.merged(_sums(arrays, name), sign)
        outcomes, several, codes = held.columns["behind"].shape[1:]
        step = np.uint16(1) if sign > 0 else np.uint16(0xFFFF)
        if "converted" in arrays:
            key = unpack(arrays["converted"])
            rows = self._touched(key // outcomes)
            held.columns["converted"][rows, key % outcomes] += step
        if "behind" in arrays:
            key = unpack(arrays["behind"])
            unit, outcome = key // several // codes // outcomes, key // several // codes % outcomes
            rows = self._touched(unit)
            order = np.argsort(np.array(list(self.ways.windows.values())), kind="stable")
            for at, window in enumerate(order):
                within = key % several <= at
                held.columns["behind"][rows[within], outcome[within], window, key[within] // several % codes] += step

    def _touched(self, units: IntArray) -> IntArray:
        """The rows of units that have one, which are now to be written."""
        each, at = np.unique(units, return_inverse=True)
        rows = self._rows(each)[at]
        self._changed[rows[rows < len(self._changed)]] = True
        return rows

    # ---------------------------------------------------------------- what is given

    def _give(self) -> None:
        """The tables of the summed statements, as if they had run over everything."""
        facts, held = self._held.facts, self._held
        for name, columns in facts["columns"].items():
            sums = self._totals[name]
            table: dict[str, np.ndarray] = {}
            key = sums.key
            for column, wide in zip(reversed(_KEYS[1:]), reversed(self._wide()), strict=True):
                table[column], key = key % wide, key // wide
            numbers = sums.numbers()
            table |= {"cell": key} | {column: numbers[:, i] for i, column in enumerate(columns)}
            self.tables[name] = _table(table)
        if len(self.tables) <= 2:  # there never was a pair of touch and conversion
            for _, step in self.ways.summed():
                if step.name not in self.tables:
                    self.tables[step.name] = _table({c: np.zeros(0) for c in step.query.tree.named_selects})
        by_outcome: list[tuple[int, ...]] = []
        for o in range(len(self.ways.outcomes)):
            told = [d["outcomes"][str(o)] for d in facts["days"].values() if str(o) in d["outcomes"]]
            self.unvalued[o] = sum(t[0] for t in told)
            units = int((held.column("converted")[:, o] > 0).sum())
            if told:
                first, last = min(t[1] for t in told), max(t[2] for t in told)
                by_outcome.append((o, units, first, last))
        names = ("outcome", "units", "first_us", "last_us")
        totals, behind = self.ways._totals()[1], self.ways._behind()
        self.tables[totals.name] = _table(
            {name: np.array([row[i] for row in by_outcome], np.int64) for i, name in enumerate(names)}
        )
        there = held.column("behind") > 0
        count, any_of = there.sum(axis=0), there.any(axis=3).sum(axis=0)
        outcomes, several, codes = count.shape
        rows = [(o, c) for o in range(outcomes) for c in range(-1, codes)]
        table = {"outcome": np.array([o for o, _ in rows]), "code": np.array([c for _, c in rows])}
        for w in range(several):
            table[f"units_{w}"] = np.array([any_of[o, w] if c < 0 else count[o, w, c] for o, c in rows])
        self.tables[behind.name] = _table(table)

    def keep(self) -> None:
        """Store the state, unless another run of the same is at it. Where it cannot be written, ``told`` says so and the last stays."""
        if self._same and not self._fresh:
            return
        try:
            with self._store.lock() as alone:
                if not alone or (not self._fresh and self._store.moved()):
                    self._unkept = "another run stored its state"
                    return
                self._store.save(self._held, None if self._fresh else np.flatnonzero(self._changed[: self._before]))
            sweep(self._store.folder.parent)
        except OSError as error:
            self._unkept = f"the state could not be stored: {error.strerror or error}"


_KEYS = ("cell", "code", "personalised", "position")


def _within(part: Part, low: int, high: int) -> bool:
    """May it have rows of a span of time?"""
    return part.first_us is not None and part.last_us is not None and part.first_us <= high and part.last_us >= low


def _stale(held: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [day for day, mark in now.items() if held.get(day) != mark]


def _named(of: Mapping[str, Sums]) -> Iterator[tuple[str, np.ndarray]]:
    for name, sums in of.items():
        yield f"{name}|key", sums.key
        yield f"{name}|high", sums.high
        yield f"{name}|low", sums.low


def _sums(arrays: Mapping[str, np.ndarray], name: str) -> Sums:
    return Sums(arrays[f"{name}|key"], arrays[f"{name}|high"], arrays[f"{name}|low"])


def _days(first: int, last: int) -> range:
    return range(first // _DAY_US, last // _DAY_US + 1)


def _stretches(days: Sequence[int]) -> Iterator[tuple[int, int]]:
    """From when to when each run of days without a gap is, in microseconds, both included."""
    found = np.array(days, np.int64)
    for run in np.split(found, np.flatnonzero(np.diff(found) > 1) + 1) if len(found) else ():
        yield int(run[0]) * _DAY_US, (int(run[-1]) + 1) * _DAY_US - 1


def _chunks(sizes: Sequence[tuple[int, int]], most: int) -> Iterator[list[int]]:
    """Days (each with its size) in order, together while their sizes add up to no more than ``most``."""
    chunk: list[int] = []
    held = 0
    for day, size in sizes:
        if chunk and held + size > most:
            yield chunk
            chunk, held = [], 0
        chunk.append(day)
        held += size
    if chunk:
        yield chunk


def _each(of: IntArray) -> Iterator[tuple[int, IntArray]]:
    """Each value, and where it is."""
    order = np.argsort(of, kind="stable")
    values, first = np.unique(of[order], return_index=True)
    yield from zip(values.tolist(), np.split(order, first[1:]) if len(values) else [], strict=True)


def _table(columns: Mapping[str, np.ndarray]) -> pa.Table:
    """Of numbers; without what pyarrow imports to look at an array."""
    arrays = []
    for column in columns.values():
        kind = pa.float64() if column.dtype == np.float64 else pa.int64()
        values = np.ascontiguousarray(column, np.float64 if kind == pa.float64() else np.int64)
        arrays.append(pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)]))
    return pa.Table.from_arrays(arrays, names=list(columns))


def _array(table: pa.Table, name: str) -> IntArray:
    return np.asarray(table.column(name).to_numpy(), dtype=np.int64)


def _text(tree: exp.Expr | None) -> str | None:
    return None if tree is None else tree.sql("duckdb")

"""Touches and conversions as rows (unit, time, code): what credit and paths are made of.

Each source is read once, however many touchpoints or outcomes are conditions over it; a row may serve several. Rows enter as
``events`` says; rows that repeat a declared id enter once (the earliest). A touchpoint ``by`` an expression is one touchpoint a
value, as many as ``MOST_VALUES``; the rest go by "(other)", NULL by "(none)".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from sqlglot import exp

from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Outcome, Touchpoint
from payoff.warehouse.events import AHEAD_US, EventProfile, beneath, clock_us
from payoff.warehouse.query import Query, column, conjunction, fragment, sql
from payoff.warehouse.sources import Catalog, View, as_id, to_us
from payoff.warehouse.statements import Step

MOST_VALUES = 100
NONE, OTHER = "(none)", "(other)"
_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Stop:
    """One touchpoint as credit goes to it: ``label`` is its name, or ``name: value`` of a touchpoint by values; ``code`` its order.

    ``rows``: rows that enter. ``unnamed``: its value is NULL.
    """

    code: int
    label: str
    touchpoint: str
    direct: bool
    rows: int
    unnamed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """Rows of a source that are one thing: ``name`` is the touchpoint or outcome, ``number`` its place among them.

    ``columns`` are what is taken from each row, the same names for all marks of a reading.
    """

    number: int
    name: str
    where: exp.Expr | None
    columns: Mapping[str, exp.Expr]
    by: exp.Expr | None = None


@dataclass
class Reading:
    """All marks over one source; what ``look`` found: rows by mark, whether a row serves two, whether an id repeats."""

    view: View
    entity: str
    now_us: int
    marks: tuple[Mark, ...]
    rows: dict[int, int] = field(default_factory=dict)
    overlaps: bool = True
    profile: EventProfile | None = None

    @property
    def source(self) -> str:
        return self.view.name

    # ---------------------------------------------------------------- what is there

    def profile_step(self) -> Step:
        """Rows by what they serve, cheaply: where every one has a unit and a time that may be, there is no more to look for."""
        kind = self._kind() if self._apart or self._by_bits else exp.convert(0)
        row = [exp.alias_(self.view.unit(self.entity), "unit"), exp.alias_(clock_us(self.view), "us")]
        query = sql(
            """
            SELECT kind, count(*) AS n, count(unit) AS units, count(us) AS times, min(us) AS first_us, max(us) AS last_us
            FROM (SELECT * FROM told WHERE $some) GROUP BY kind
            """,
            some=fragment("kind > 0") if self._by_bits else fragment("kind IS NOT NULL"),
            told=Query(
                (self.view.rows() if self._apart or self._by_bits else self._base()).select(
                    *row, exp.alias_(kind, "kind"), append=False
                )
            ),
        )
        return self._step(f"look at {self.source}", "rows, units and times, by what they are", query)

    def plan(self) -> list[Step]:
        """What ``look`` would run where it finds nothing amiss."""
        return [step for step in (self.profile_step(), self.ids_step()) if step is not None]

    def ids_step(self) -> Step | None:
        """How many rows repeat an id; None where the source declares none."""
        if self.view.source.id is None:
            return None
        query = sql(
            "SELECT count($id) - count(DISTINCT $id) AS repeated FROM base",
            id=self.view.scalar(self.view.source.id),
            base=Query(self._base()),
        )
        return self._step(f"ids of {self.source}", "rows that are there twice", query)

    def faults_step(self) -> Step:
        """The statement that counts what enters and what does not, by mark."""
        row = [exp.alias_(self.view.unit(self.entity), "unit"), exp.alias_(clock_us(self.view), "us")]
        row += [exp.alias_(conjunction(m.where), f"is_{m.number}") for m in self.marks]
        inside = "(unit IS NOT NULL AND us >= 0 AND us <= $most)"
        out = [
            exp.alias_(
                fragment(f"count(*) FILTER (WHERE {inside} AND is_{m.number})", most=self._most), f"mark_{m.number}"
            )
            for m in self.marks
        ]
        query = sql(
            f"""
            SELECT count(*) AS n, count(*) FILTER (WHERE unit IS NULL) AS without_unit,
                   count(*) FILTER (WHERE unit IS NOT NULL AND us IS NULL) AS without_time,
                   count(*) FILTER (WHERE unit IS NOT NULL AND us < 0) AS before_1970,
                   count(*) FILTER (WHERE unit IS NOT NULL AND us > $most) AS ahead,
                   min(us) FILTER (WHERE {inside}) AS first_us, max(us) FILTER (WHERE {inside}) AS last_us, $out
            FROM told
            """,
            most=self._most,
            out=out,
            told=Query(self._base().select(*row, append=False)),
        )
        return self._step(f"faults of {self.source}", "rows that enter and rows that do not, and why", query)

    def look(self, catalog: Catalog) -> list[Step]:
        """Fills in what is there, and gives the statements that it took."""
        steps = [self.profile_step()]
        kinds = catalog.engine.fetch(steps[0].query, steps[0].name, self.source).to_pylist()
        n = sum(r["n"] for r in kinds)
        first, last = ([r[k] for r in kinds if r[k] is not None] for k in ("first_us", "last_us"))
        whole = all(r["n"] == r["units"] == r["times"] for r in kinds)
        lost = dict.fromkeys(("without_unit", "without_time", "before_1970", "ahead"), 0)
        span: tuple[int | None, int | None] = (min(first, default=None), max(last, default=None))
        self.overlaps = len(self.marks) > 1 and not self._apart
        if not self.overlaps:
            self.rows = dict.fromkeys((m.number for m in self.marks), 0)
            self.rows |= {self.marks[0].number if len(self.marks) == 1 else int(r["kind"]): r["n"] for r in kinds}
        elif self._by_bits:
            bits = {m.number: 2**place for place, m in enumerate(self.marks)}
            self.rows = {k: sum(r["n"] for r in kinds if int(r["kind"]) & bit) for k, bit in bits.items()}
            self.overlaps = any(int(r["kind"]).bit_count() > 1 for r in kinds)
        if (
            (self.overlaps and not self._by_bits)
            or not whole
            or min(first, default=0) < 0
            or max(last, default=0) > self._most
        ):
            steps.append(self.faults_step())
            found = catalog.engine.row(steps[-1].query, steps[-1].name, self.source)
            n, lost = int(found["n"]), {k: int(found[k]) for k in lost}
            span = (found["first_us"], found["last_us"])
            self.rows = {m.number: int(found[f"mark_{m.number}"]) for m in self.marks}
        repeated = None
        ids = self.ids_step()
        if ids is not None:
            steps.append(ids)
            repeated = int(catalog.engine.row(ids.query, ids.name, self.source)["repeated"])
        below, more = beneath(catalog, self.view, self.now_us)
        steps += more
        self.tell(catalog, int(n), lost, span, repeated, below)
        return steps

    def tell(
        self,
        catalog: Catalog,
        n: int,
        lost: Mapping[str, int],
        span: tuple[int | None, int | None],
        repeated: int | None = None,
        below: tuple[tuple[str, int], ...] = (),
    ) -> None:
        """Set the profile: ``n`` rows serve a mark, those ``lost`` do not enter, and those that do lie in ``span``."""
        through = span[1]
        if self.view.clock is not None and self.view.source.through is not None:
            through = to_us(self.view.source.through, self.view.clock.zone)
        self.profile = EventProfile(
            source=self.source,
            rows=n - sum(lost.values()),
            first_us=span[0],
            last_us=span[1],
            through_us=through,
            fingerprint=catalog.fingerprint(self.view.relation),
            repeated=repeated,
            beneath=below,
            dates=self.view.clock is not None and self.view.clock.kind == "DATE",
            **lost,
        )

    @property
    def told_apart(self) -> bool:
        """Is there a number for what a row serves? There are 62 marks at most, or no row serves two of them."""
        return self._apart or len(self.marks) <= 62

    def served(self, kind: int) -> list[int]:
        """The marks that a ``kind`` of ``days_step`` means."""
        return [kind] if self._apart else [m.number for place, m in enumerate(self.marks) if kind >> place & 1]

    def days_step(self, low_us: int, high_us: int) -> Step:
        """By day and ``kind`` (see ``served``): rows, those with a unit (``units``) and the span of these."""
        query = sql(
            f"""
            SELECT us // {_DAY_US} AS day, kind, count(*) AS n, count(unit) AS units,
                   min(us) FILTER (WHERE unit IS NOT NULL) AS first_us, max(us) FILTER (WHERE unit IS NOT NULL) AS last_us
            FROM told WHERE $some GROUP BY ALL
            """,
            some=fragment("kind IS NOT NULL") if self._apart else fragment("kind > 0"),
            told=Query(self._dated(low_us, high_us)),
        )
        return self._step(f"look at {self.source}", "rows, units and times by day, by what they are", query)

    def units_step(self, low_us: int, high_us: int) -> Step:
        """Of every row that enters the number of its unit, as often as it serves a mark. For views whose units are numbers alone."""
        times = "1" if self._apart else "bit_count(kind)"
        query = sql(
            f"SELECT CAST(unit AS INTEGER) AS unit, CAST({times} AS TINYINT) AS times FROM told WHERE unit IS NOT NULL AND $some",
            some=fragment("kind IS NOT NULL") if self._apart else fragment("kind > 0"),
            told=Query(self._dated(low_us, high_us)),
        )
        return self._step(f"units of {self.source}", "how many pairs there can be", query)

    def untimed_step(self, us: exp.Expr) -> Step:
        """Rows without a time that serve a mark, and those of them with a unit: almost always none, which statistics of ``us`` tell."""
        rows = self._base().where(fragment("$t IS NULL", t=us))
        query = sql(
            "SELECT count(*) AS n, count(unit) AS units FROM told",
            told=Query(rows.select(exp.alias_(self.view.unit(self.entity), "unit"), append=False)),
        )
        return self._step(f"rows of {self.source} without a time", "how many", query)

    def values_by_day_step(self, mark: Mark, low_us: int, high_us: int) -> Step:
        """The values of a touchpoint by values by day, and how many rows each has."""
        assert mark.by is not None
        value = exp.alias_(exp.cast(mark.by.copy(), "VARCHAR"), "value")
        query = sql(
            f"SELECT us // {_DAY_US} AS day, value, count(*) AS n FROM told WHERE unit IS NOT NULL GROUP BY ALL",
            told=Query(self._dated(low_us, high_us).where(conjunction(mark.where)).select(value)),
        )
        return self._step(f"values of {mark.name}", "by day", query)

    def _kind(self) -> exp.Expr:
        """The one mark that a row serves (NULL: none), or a bit for each."""
        if self._apart:
            return self._pick({m: exp.convert(m.number) for m in self.marks}, None)
        kind: exp.Expr = exp.convert(0)
        for place, m in enumerate(self.marks):
            kind = fragment("$a + CASE WHEN $w THEN $bit ELSE 0 END", a=kind, w=conjunction(m.where), bit=2**place)
        return kind

    def _dated(self, low_us: int, high_us: int) -> exp.Select:
        """SELECT unit, us, kind of a span of time (both included)."""
        assert self.view.clock is not None
        t = clock_us(self.view)
        within = fragment("$t >= $low AND $t <= $high", t=t, low=low_us, high=high_us)
        rows = self.view.rows().where(*self.view.clock.between(low_us, high_us), within)
        row = [exp.alias_(self.view.unit(self.entity), "unit"), exp.alias_(t, "us"), exp.alias_(self._kind(), "kind")]
        return rows.select(*row, append=False)

    @cached_property
    def _apart(self) -> bool:
        """Can no row serve two marks, seen by their form? Else it is looked for."""
        return len(self.marks) > 1 and _exclude_each_other(self.view, [m.where for m in self.marks])

    @property
    def _by_bits(self) -> bool:
        """Are marks looked for by one bit each? There are 62 of them."""
        return not self._apart and 1 < len(self.marks) <= 62

    def values_step(self, mark: Mark) -> Step:
        """The commonest values of a touchpoint by values, and how many rows each has."""
        assert mark.by is not None
        query = sql(
            """
            SELECT value, n FROM (SELECT CAST($by AS VARCHAR) AS value, count(*) AS n FROM base GROUP BY ALL)
            ORDER BY (value IS NULL) DESC, n DESC, value LIMIT $most
            """,
            by=mark.by,
            base=Query(self._base(mark).where(self._inside())),
            most=MOST_VALUES + 1,
        )
        return self._step(f"values of {mark.name}", "the commonest values; the rest are taken together", query)

    # ---------------------------------------------------------------- rows

    @property
    def unit_type(self) -> str:
        return self.view.type_of(self.view.unit(self.entity))

    def query(
        self, low_us: exp.Expr | int | None = None, high_us: exp.Expr | int | None = None, text: bool = False
    ) -> Query:
        """SELECT unit (``text``: as VARCHAR), us, mark, value (text, of a mark by values) and the marks' columns; both bounds are included. No order."""
        view, names = self.view, list(self.marks[0].columns)
        unit = view.unit(self.entity)
        row = [
            exp.alias_(as_id(unit, self.unit_type) if text else unit, "unit"),
            exp.alias_(clock_us(view), "us"),
        ]
        # where marks are apart, a row's own number says whether it is any of them: one look at its columns, not two
        rows = (self.view.rows() if self._apart else self._base()).where(self._inside())
        once = view.source.id is not None and (self.profile is None or bool(self.profile.repeated))
        bounds = [(b, way) for b, way in ((low_us, ">="), (high_us, "<=")) if b is not None]
        if once and view.source.id is not None:
            first = fragment(
                "$id IS NULL OR row_number() OVER (PARTITION BY $id ORDER BY $t, $u) = 1",
                id=view.scalar(view.source.id),
                t=clock_us(view),
                u=view.unit(self.entity),
            )
            rows = (rows.where(self._any()) if self._apart else rows).qualify(first)
        for bound, way in [] if once else bounds:  # of a repeated row the earliest is meant, inside or not
            if isinstance(bound, int):
                assert view.clock is not None
                pair = (bound, None) if way == ">=" else (None, bound)
                for condition in view.clock.between(*pair):  # by which files and row groups are skipped
                    rows = rows.where(condition)
            rows = rows.where(fragment(f"$t {way} $bound", t=clock_us(view), bound=bound))
        found = self._marked(rows, row, names)
        for bound, way in bounds if once else []:
            found = found.where(fragment(f"us {way} $bound", bound=bound))
        return Query(found)

    def _marked(self, rows: exp.Select, row: Sequence[exp.Expr], names: Sequence[str]) -> exp.Select:
        """Each row once for every mark that it serves."""
        if self.overlaps and len(self.marks) > 1:
            marks = exp.Array(expressions=[self._struct(m, names) for m in self.marks])
            inner = rows.select(*row, exp.alias_(fragment("unnest($marks)", marks=marks), "it"), append=False)
            out: list[exp.Expr] = [column("unit"), column("us")]
            out += [exp.alias_(fragment(f"struct_extract(it, '{n}')"), n) for n in ("mark", "value", *names)]
            return exp.select(*out).from_(inner.subquery("marked")).where(fragment("it IS NOT NULL"))
        picked = [exp.alias_(self._pick({m: exp.convert(m.number) for m in self.marks}, "SMALLINT"), "mark")]
        by: dict[Mark, exp.Expr] = {
            m: exp.null() if m.by is None else exp.cast(m.by.copy(), "VARCHAR") for m in self.marks
        }
        picked.append(exp.alias_(self._pick(by, "VARCHAR"), "value"))
        picked += [exp.alias_(self._pick({m: m.columns[n] for m in self.marks}, None), n, quoted=True) for n in names]
        every = exp.select("*").from_(rows.select(*row, *picked, append=False).subquery("marked"))
        return every.where(fragment("mark IS NOT NULL")) if self._apart else every

    def _struct(self, mark: Mark, names: Sequence[str]) -> exp.Expr:
        by = exp.null() if mark.by is None else mark.by.copy()
        parts: dict[str, exp.Expr] = {
            "mark": exp.cast(exp.convert(mark.number), "SMALLINT"),
            "value": exp.cast(by, "VARCHAR"),
        }
        parts |= {n: mark.columns[n].copy() for n in names}
        struct = exp.Struct(
            expressions=[exp.PropertyEQ(this=exp.to_identifier(n, quoted=True), expression=e) for n, e in parts.items()]
        )
        return fragment("CASE WHEN $c THEN $struct END", c=conjunction(mark.where), struct=struct)

    def _pick(self, of: Mapping[Mark, exp.Expr], kind: str | None) -> exp.Expr:
        """The one of the marks' expressions whose condition holds (at most one does)."""
        texts = {e.sql("duckdb") for e in of.values()}
        if len(texts) == 1:
            picked: exp.Expr = next(iter(of.values())).copy()
        else:
            choice = exp.Case()
            for mark, e in of.items():
                choice = choice.when(conjunction(mark.where), e.copy())
            picked = choice
        return picked if kind is None else exp.cast(picked, kind)

    def _base(self, only: Mark | None = None) -> exp.Select:
        return self.view.rows().where(self._any(only))

    def _any(self, only: Mark | None = None) -> exp.Expr:
        wheres = [m.where for m in self.marks if only is None or m is only]
        if any(w is None for w in wheres):
            return exp.true()
        return exp.paren(exp.or_(*(exp.paren(w.copy()) for w in wheres if w is not None)))

    def _inside(self) -> exp.Expr:
        return fragment(
            "$u IS NOT NULL AND $t >= 0 AND $t <= $most",
            u=self.view.unit(self.entity),
            t=clock_us(self.view),
            most=self._most,
        )

    @property
    def _most(self) -> int:
        return self.now_us + AHEAD_US

    def _step(self, name: str, purpose: str, query: Query) -> Step:
        known = set(self.view.relation.columns)
        columns = tuple(sorted({c.name for c in query.tree.find_all(exp.Column) if c.name in known}))
        return Step(name, self.source, purpose, columns, (), query)


def _readings(catalog: Catalog, design: JourneyDesign, marks: Sequence[tuple[str, Mark]]) -> tuple[Reading, ...]:
    by_source: dict[str, list[Mark]] = {}
    for source, mark in marks:
        by_source.setdefault(source, []).append(mark)
    return tuple(
        Reading(catalog.view(source), design.entity, design.now_us, tuple(of)) for source, of in by_source.items()
    )


def outcome_readings(catalog: Catalog, design: JourneyDesign, outcomes: Mapping[str, Outcome]) -> tuple[Reading, ...]:
    """One reading a source; the column ``worth`` is a conversion's value (DOUBLE; 1 where conversions are only counted)."""
    marks = []
    for number, (name, outcome) in enumerate(outcomes.items()):
        view = catalog.view(outcome.event.source)
        where = None if outcome.event.where is None else view.condition(outcome.event.where)
        worth = exp.cast(exp.convert(1), "DOUBLE") if outcome.value is None else view.number(outcome.value)
        marks.append((view.name, Mark(number, name, where, {"worth": worth})))
    return _readings(catalog, design, marks)


class Touches:
    """The touchpoints of a design. ``look`` first (it reads the sources' rows); then ``stops`` and ``query``.

    For a plan, nothing is looked at: a touchpoint by values then counts as one.
    """

    def __init__(self, catalog: Catalog, design: JourneyDesign) -> None:
        self._catalog, self._declared = catalog, dict(design.touchpoints)
        marks = [(t.source, self._mark(n, name, t)) for n, (name, t) in enumerate(self._declared.items())]
        self.readings = _readings(catalog, design, marks)
        self._values: dict[int, list[tuple[str | None, int]]] = {}
        self.steps: list[Step] = []

    def _mark(self, number: int, name: str, touchpoint: Touchpoint) -> Mark:
        view = self._catalog.view(touchpoint.source)
        chosen = exp.false() if touchpoint.personalised is None else view.condition(touchpoint.personalised)
        cost: exp.Expr = exp.cast(exp.null(), "DOUBLE")
        if isinstance(touchpoint.cost, str):
            cost = view.number(touchpoint.cost)
        return Mark(
            number,
            name,
            None if touchpoint.where is None else view.condition(touchpoint.where),
            {"personalised": fragment("coalesce($c, false)", c=exp.paren(chosen)), "cost": cost},
            None if touchpoint.by is None else view.scalar(touchpoint.by),
        )

    def plan(self) -> list[Step]:
        """What ``look`` would run. Reads no rows."""
        out = []
        for reading in self.readings:
            out += reading.plan()
            out += [reading.values_step(m) for m in reading.marks if m.by is not None]
        return out

    def look(self) -> None:
        for reading in self.readings:
            self.steps += reading.look(self._catalog)
            for mark in reading.marks:
                if mark.by is not None:
                    step = reading.values_step(mark)
                    self.steps.append(step)
                    rows = self._catalog.engine.fetch(step.query, step.name, reading.source).to_pylist()
                    self._values[mark.number] = [(r["value"], int(r["n"])) for r in rows]

    def adopt(self, other: Touches, values: Mapping[int, Mapping[str | None, int]]) -> None:
        """In place of ``look``: what another found of the same touchpoints, and their ``values`` by mark, with the rows of each."""
        for mine, theirs in zip(self.readings, other.readings, strict=True):
            mine.rows, mine.overlaps, mine.profile = theirs.rows, theirs.overlaps, theirs.profile
        for number, of in values.items():
            order = sorted(of.items(), key=lambda v: (v[0] is not None, -v[1], (v[0] or "").encode()))
            self._values[number] = order[: MOST_VALUES + 1]

    @property
    def profiles(self) -> dict[str, EventProfile]:
        return {r.source: r.profile for r in self.readings if r.profile is not None}

    @property
    def stops(self) -> tuple[Stop, ...]:
        """Touchpoints in declared order, those by values in order of their rows, then the rest, then NULL."""
        rows = {number: n for r in self.readings for number, n in r.rows.items()}
        found: list[Stop] = []

        def stop(label: str, name: str, n: int, unnamed: bool = False) -> None:
            found.append(Stop(len(found), label, name, self._declared[name].direct, n, unnamed))

        for number, (name, declared) in enumerate(self._declared.items()):
            if declared.by is None or number not in self._values:
                stop(name, name, rows.get(number, 0))
                continue
            named, nulls, others = self._split(number, rows.get(number, 0))
            for value, n in named:
                stop(f"{name}: {_quoted(value)}", name, n)
            if others:
                stop(f"{name}: {OTHER}", name, others)
            if nulls or not (named or others):
                stop(f"{name}: {NONE}", name, nulls, unnamed=True)
        return tuple(found)

    def _split(self, number: int, rows: int) -> tuple[list[tuple[str, int]], int, int]:
        """The values of a mark that are touchpoints of their own; rows with NULL; rows with any other value."""
        values = self._values[number]
        named = [(v, n) for v, n in values if v is not None][:MOST_VALUES]
        nulls = sum(n for v, n in values if v is None)
        return named, nulls, rows - nulls - sum(n for _, n in named)

    @property
    def unit_types(self) -> set[str]:
        return {r.unit_type for r in self.readings}

    def query(
        self, low_us: exp.Expr | int | None = None, high_us: exp.Expr | int | None = None, text: bool = False
    ) -> Query:
        """SELECT unit (``text``: as VARCHAR, as sources of several types need), us, code, personalised, cost of every touch between
        the bounds (both included). No order."""
        branches: list[exp.Query] = [r.query(low_us, high_us, text).tree for r in self.readings]
        union = branches[0]
        for branch in branches[1:]:
            union = exp.union(union, branch, distinct=False)
        by_number, coded = self._codes()
        if not coded:
            code: exp.Expr = exp.cast(column("mark", "m"), "SMALLINT")
            if [by_number[n] for n in sorted(by_number)] != sorted(by_number):
                code = self._choice(by_number)
            return sql("SELECT m.unit, m.us, $code AS code, m.personalised, m.cost FROM m", code=code, m=Query(union))
        numbers, values, codes = zip(*coded, strict=True)
        return sql(
            """
            SELECT m.unit, m.us, CAST(coalesce(k.code, $rest) AS SMALLINT) AS code, m.personalised, m.cost
            FROM m LEFT JOIN named_values AS k ON k.mark = m.mark AND k.value IS NOT DISTINCT FROM m.value
            """,
            rest=self._choice(by_number),
            m=Query(union),
            named_values=sql(
                "SELECT unnest($numbers) AS mark, unnest($of) AS value, unnest($codes) AS code",
                numbers=_array(numbers),
                of=exp.cast(_array(values), exp.DataType.build("VARCHAR[]", dialect="duckdb")),
                codes=_array(codes),
            ),
        )

    def _codes(self) -> tuple[dict[int, int], list[tuple[int, str | None, int]]]:
        """The code of each mark without values, or of what has no code of its own; and (mark, value, code) of those that do."""
        rest: dict[int, int] = {}
        coded: list[tuple[int, str | None, int]] = []
        at = 0
        for number, (_, declared) in enumerate(self._declared.items()):
            if declared.by is None or number not in self._values:
                rest[number] = at
                at += 1
                continue
            rows = next(r.rows.get(number, 0) for r in self.readings if any(m.number == number for m in r.marks))
            named, nulls, others = self._split(number, rows)
            for value, _ in named:
                coded.append((number, value, at))
                at += 1
            if others:
                rest[number] = at
                at += 1
            if nulls or not (named or others):
                coded.append((number, None, at))
                rest.setdefault(number, at)
                at += 1
            rest.setdefault(number, at - 1)
        return rest, coded

    @staticmethod
    def _choice(by_number: Mapping[int, int]) -> exp.Expr:
        choice = exp.Case()
        for number, code in by_number.items():
            choice = choice.when(fragment("m.mark = $n", n=number), exp.convert(code))
        return exp.cast(choice, "SMALLINT")


def _array(values: Sequence[str | int | None]) -> exp.Array:
    return exp.Array(expressions=[exp.convert(v) for v in values])


def _quoted(value: str) -> str:
    """A value as part of a label: one that reads like our own words, is blank at an end or cannot be printed as it is is quoted.

    So nothing in it breaks a line, and no two values have one label.
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    plain = text == value == value.strip() and text not in (NONE, OTHER, "") and not (text[0] == text[-1] == "'")
    return text if plain else f"'{text}'"


def _exclude_each_other(view: View, wheres: Sequence[exp.Expr | None]) -> bool:
    """Does every pair of conditions want two values of one column of text? Of text only: to a number '1' and '01' are the same."""
    wanted: list[dict[str, str]] = []
    for where in wheres:
        found: dict[str, str] = {}
        parts = [] if where is None else where.flatten() if isinstance(where, exp.And) else [where]
        for part in (p.unnest() for p in parts):
            if (
                isinstance(part, exp.EQ)
                and isinstance(part.left, exp.Column)
                and isinstance(part.right, exp.Literal)
                and part.right.is_string
                and view.type_of(part.left) == "VARCHAR"
            ):
                found[part.left.sql("duckdb")] = part.right.name
        wanted.append(found)
    return all(any(a[k] != b[k] for k in a.keys() & b.keys()) for at, a in enumerate(wanted) for b in wanted[at + 1 :])

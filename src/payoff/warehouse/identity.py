"""Identity: which ids are one unit. Pairs of ids from a source's rows, and their connected components, found in the engine.

Rows of the identity's source that hold two or more ids say that these are one unit. Units are the connected components of those
pairs; each is named by the smallest value of the entity's id column in it (as text), else by its smallest alias. Nothing of the user's
is rewritten: the map is made anew from the pairs in every run, so that a value blocked today is apart again.

Components are found by alternating large-star and small-star steps, each of which hangs every id on the smallest number around it,
until what is left is stars (R. Kiveris et al., Connected Components in MapReduce and Beyond, SoCC 2014, algorithms 1 to 3). The steps
needed grow with the logarithm of the ids; those of the id column have the smallest numbers, so that a usual graph is one of stars at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlglot import exp

from payoff.errors import DataError, did_you_mean
from payoff.result import Stitching
from payoff.spec.nouns import Identity
from payoff.warehouse.query import Query, column, fragment, sql
from payoff.warehouse.sources import Catalog, View, as_id, identity_table
from payoff.warehouse.statements import Step

BLOCKED = ("null", "undefined", "guest", "anonymous", "unknown", "none", "nan")
"""Values that stand for nobody, whatever their case. So do empty ones and those of nothing but zeros, dashes and blanks."""
_FILL = " \t\r\n0-"
_PRESENT = (
    "CASE WHEN $v >= '!' OR trim($v, $blank) <> '' THEN $v END"  # most need no trimming: blanks come before all else
)
_SHOWN, _NAMED = 10, 200
NUMBERS = 2**62
"""Ids are numbered by a hash below this, and an alias that is in no row's id column by that and so much more: what aliases are seen
with in the id column is then smaller. Should two ids get one number, all are numbered anew."""


@dataclass(frozen=True, slots=True)
class Identified:
    """What an identity did. ``ids`` of ``units`` are joined to another by ``pairs``; the map is in the temporary table ``table``.

    ``largest`` (unit, its ids) and ``shared`` (alias, how many values of the id column claim it) are the ten largest; ``blocked``
    (value, the rows of several ids that it stood in; equal rows count once) and ``too_large`` (component, its ids) the 200 largest. The
    counts beside them are of all. ``both`` values stand in the id column and in one of aliases. ``untimed``: rows that hold several ids and no
    time, which join nothing where a ``lookback`` is declared.
    """

    entity: str
    source: str
    table: str
    pairs: int
    ids: int
    units: int
    largest: tuple[tuple[str, int], ...]
    shared: tuple[tuple[str, int], ...]
    shared_count: int
    apart: bool
    blocked: tuple[tuple[str, int], ...]
    blocked_count: int
    too_large: tuple[tuple[str, int], ...]
    too_large_count: int
    too_large_ids: int
    both: int
    untimed: int
    max_size: int
    steps: tuple[Step, ...]


def report(found: Identified, before: Mapping[str, int], after: Mapping[str, int]) -> Stitching:
    """What a result tells of the identity. ``before`` and ``after`` are the result's own counts, without and with it."""
    said = [
        f"{found.pairs:,} pairs of ids in '{found.source}' joined {found.ids:,} ids into {found.units:,} {found.entity}s."
    ]
    if found.shared_count:
        what = (
            "their pairs were left out"
            if found.apart
            else "whoever shares one was joined (shared: apart keeps them so)"
        )
        said.append(
            f"{_many(found.shared_count, 'alias belongs', 'aliases belong')} to several {found.entity}s; {what}."
        )
    if found.blocked_count:
        said.append(
            f"{_many(found.blocked_count, 'value that stands', 'values that stand')} for nobody joined nothing."
        )
    if found.too_large_count:
        name, size = found.too_large[0]
        said.append(
            f"{_many(found.too_large_count, 'group', 'groups')} of more than {found.max_size:,} ids"
            f" ({found.too_large_ids:,} ids, the largest {size:,} around '{name}') joined nothing: block the value that holds"
            " them together, or raise max_size."
        )
    if found.both:
        said.append(
            f"{_many(found.both, 'value stands', 'values stand')} both as an id and as an alias, and count as one."
        )
    if found.untimed:
        said.append(f"{_many(found.untimed, 'row', 'rows')} of pairs without a time joined nothing.")
    return Stitching(
        entity=found.entity,
        source=found.source,
        pairs=found.pairs,
        ids=found.ids,
        units=found.units,
        largest=found.largest,
        shared=found.shared,
        shared_count=found.shared_count,
        blocked=found.blocked,
        too_large=found.too_large,
        before=dict(before),
        after=dict(after),
        sentence=" ".join(said),
    )


def _many(n: int, one: str, several: str) -> str:
    return f"{n:,} {one if n == 1 else several}"


def plan(catalog: Catalog, entity: str) -> list[Step]:
    """The statements of ``build`` in order, one round of its loop for all. Reads no rows."""
    work = _Work(catalog, entity)
    kept = (
        ("names", work.names()),
        ("rows", work.rows()),
        ("odd", work.odd()),
        ("codes", work.codes()),
        ("shared", work.shared()),
        ("pairs", work.pairs()),
        ("leaves", work.leaves()),
        ("edges_0", work.edges()),
        ("star_0", work.small_star(0)),
        ("edges_1", work.large_star(0)),
        ("members", work.members(1)),
        ("units", work.units()),
    )
    return [*(step.keeping(f"{work.table}_{part}") for part, step in kept), work.map().keeping(work.table)]


def read_columns(catalog: Catalog, entity: str) -> None:
    """Name the columns that the identity reads, so that a text file is loaded with them."""
    _Work(catalog, entity)


def build(catalog: Catalog, entity: str) -> Identified:
    """Make the map of an entity's ids: the temporary table ``identity_ENTITY`` (id, canonical, from_us).

    It holds every id that is of another's name; the rest are their own. Raises DataError where no row holds two ids that
    may be joined.
    """
    work = _Work(catalog, entity)
    try:
        return work.run()
    finally:
        for table in work.tables:
            catalog.engine.drop(table)


class _Work:
    """The statements over the tables ``identity_ENTITY_*``; what is a round's is numbered."""

    def __init__(self, catalog: Catalog, entity: str) -> None:
        declared = catalog.identity(entity)
        assert declared is not None
        self.catalog, self.entity, self.declared = catalog, entity, declared
        self.view = catalog.view(declared.source)
        self.table = identity_table(entity)
        self.values = _ids(self.view, entity, catalog.aliases(entity))
        self.apart, self.salt = declared.shared == "apart", 0
        self.time = _time(self.view, declared)
        self.tables: list[str] = []
        self.steps: list[Step] = []

    # ---------------------------------------------------------------- statements

    def _step(self, name: str, purpose: str, query: Query, reads: str = "", columns: Sequence[str] = ()) -> Step:
        return Step(f"identity of {self.entity}: {name}", reads, purpose, tuple(columns), (), query)

    def _told(self) -> exp.Select:
        """The rows that hold several ids: those as text (v0 is the id's, NULL where there is none), and the time."""
        names = [f"v{k}" for k in range(len(self.values))]
        told = [
            exp.alias_(fragment(_PRESENT, v=v, blank=" \t\r\n"), name)
            for v, name in zip(self.values, names, strict=True)
        ]
        us = self.time if self.time is not None else exp.cast(exp.null(), "BIGINT")
        rows = exp.select(*told, exp.alias_(us.copy(), "us")).from_(self.view.own_rows().subquery("base"))
        present = " + ".join(f"({name} IS NOT NULL)::INTEGER" for name in names)
        return exp.select("*").from_(rows.subquery("told")).where(fragment(f"{present} >= 2"))

    def _hash(self, name: str) -> exp.Expr:
        """The number of an id: of 62 bits, so that there is room to tell aliases by one more."""
        salted = (
            exp.DPipe(this=exp.Literal.string(str(self.salt)), expression=column(name)) if self.salt else column(name)
        )
        number = f"CASE WHEN {name} IS NOT NULL THEN CAST(hash($id) % $most AS BIGINT) END"  # NULL has a hash too
        return fragment(number, id=salted, most=NUMBERS)

    def rows(self) -> Step:
        count = len(self.values)
        query = sql(
            f"""
            SELECT $numbers, min(us) AS us, count(*) FILTER (WHERE us IS NULL) AS untimed
            FROM told GROUP BY {", ".join(f"n{k}" for k in range(count))}
            """,
            numbers=[exp.alias_(self._hash(f"v{k}"), f"n{k}") for k in range(count)],
            told=Query(self._told()),
        )
        reads = sorted({c.name for e in (*self.values, self.time) if e is not None for c in e.find_all(exp.Column)})
        return self._step(
            "rows", "rows that hold several ids, in numbers, equal ones once", query, self.view.own.key, reads
        )

    def names(self) -> Step:
        parts = [
            exp.select(exp.alias_(column(f"v{k}"), "id"), exp.alias_(exp.convert(k == 0), "own"))
            .from_(self._told().subquery("told"))
            .where(fragment(f"v{k} IS NOT NULL"))
            for k in range(len(self.values))
        ]
        every: exp.Query = parts[0]
        for part in parts[1:]:
            every = exp.union(every, part, distinct=False)
        query = sql(
            """
            SELECT id, $n AS n, own, alias, $blocked AS blocked
            FROM (SELECT id, bool_or(own) AS own, bool_or(NOT own) AS alias FROM every_id GROUP BY id) AS ids
            """,
            n=self._hash("id"),
            blocked=_nobody(self.declared),
            every_id=Query(every),
        )
        reads = sorted({c.name for e in self.values for c in e.find_all(exp.Column)})
        return self._step("names", "every id once; which stand for nobody", query, self.view.own.key, reads)

    def odd(self) -> Step:
        query = sql(f"SELECT n, blocked FROM {self.table}_names WHERE blocked OR (own AND alias)")
        return self._step("odd ids", "those that stand for nobody, or in two columns", query)

    def codes(self) -> Step:
        """Rows again, without those who are nobody. An alias has a larger number than any value of the id column."""
        count, t = len(self.values), self.table
        told = ["CASE WHEN o0.blocked THEN NULL ELSE n0 END AS n0"]
        told += [
            f"CASE WHEN o{k}.blocked THEN NULL WHEN o{k}.n IS NULL THEN n{k} + $alias ELSE n{k} END AS n{k}"
            for k in range(1, count)
        ]
        joins = " ".join(f"LEFT JOIN {t}_odd AS o{k} ON o{k}.n = r.n{k}" for k in range(count))
        timed = "WHERE r.us IS NOT NULL" if self.time is not None else ""
        query = sql(f"SELECT {', '.join(told)}, r.us FROM {t}_rows AS r {joins} {timed}", alias=NUMBERS)
        return self._step("codes", "the rows of those who are somebody", query)

    def shared(self) -> Step:
        told = " UNION ALL ".join(
            f"SELECT n0, n{k} AS n FROM {self.table}_codes WHERE n0 <> n{k}" for k in range(1, len(self.values))
        )
        query = sql(
            f"SELECT n, count(DISTINCT n0) AS units FROM ({told}) AS told GROUP BY n HAVING count(DISTINCT n0) > 1"
        )
        return self._step("shared", "aliases that several values of the id column claim", query)

    def pairs(self) -> Step:
        """Each row's first id with each other of it: as much joined as by every pair."""
        count = len(self.values)
        codes = f"SELECT * FROM {self.table}_codes"
        if self.apart:
            own = ", ".join(["n0", *(f"CASE WHEN s{k}.n IS NULL THEN n{k} END AS n{k}" for k in range(1, count))])
            joins = " ".join(f"LEFT JOIN {self.table}_shared AS s{k} ON s{k}.n = n{k}" for k in range(1, count))
            codes = f"SELECT {own}, us FROM {self.table}_codes {joins}"
        told = " UNION ALL ".join(
            f"SELECT coalesce({', '.join(f'n{j}' for j in range(k))}) AS first, n{k} AS other, us FROM codes"
            for k in range(1, count)
        )
        query = sql(
            f"""
            SELECT greatest(first, other) AS a, least(first, other) AS b, min(us) AS us
            FROM ({told}) AS told WHERE first <> other GROUP BY a, b
            """,
            codes=sql(codes),
        )
        return self._step("pairs", "which id was seen with which, and since when", query)

    def leaves(self) -> Step:
        """Ids that were seen with one other alone, a smaller one: they need no rounds, and are mostly the greater part."""
        query = sql(
            f"""
            SELECT a, min(b) AS b FROM {self.table}_pairs
            WHERE a NOT IN (SELECT b FROM {self.table}_pairs) GROUP BY a HAVING count(*) = 1
            """
        )
        return self._step("leaves", "ids seen with one other alone", query)

    def edges(self) -> Step:
        query = sql(f"SELECT p.a, p.b FROM {self.table}_pairs AS p ANTI JOIN {self.table}_leaves AS l ON l.a = p.a")
        return self._step("edges, round 0", "each pair hangs the larger number on the smaller", query)

    def small_star(self, i: int) -> Step:
        query = sql(
            f"""
            SELECT DISTINCT greatest(x, y) AS a, least(x, y) AS b
            FROM (
              SELECT e.b AS x, m.b AS y FROM {self._round(i)} AS e JOIN least_of AS m ON e.a = m.a WHERE e.b <> m.b
              UNION ALL SELECT a, b FROM least_of
            ) AS hung
            """,
            least_of=sql(f"SELECT a, min(b) AS b FROM {self._round(i)} GROUP BY a"),
        )
        return self._step(f"small star, round {i + 1}", "all that an id hangs on, on the smallest of it", query)

    def large_star(self, i: int) -> Step:
        query = sql(
            """
            SELECT DISTINCT e.b AS a, m.b AS b FROM ends AS e JOIN least_of AS m ON e.a = m.a WHERE e.b > e.a
            """,
            ends=sql(f"SELECT a, b FROM {self._star(i)} UNION ALL SELECT b, a FROM {self._star(i)}"),
            least_of=sql("SELECT a, least(min(b), a) AS b FROM ends GROUP BY a"),
        )
        return self._step(f"large star, round {i + 1}", "all that hangs on an id, on the smallest around it", query)

    def _round(self, i: int) -> str:
        return f"{self.table}_edges_{i}"

    def _star(self, i: int) -> str:
        return f"{self.table}_star_{i}"

    def members(self, i: int) -> Step:
        query = sql(
            f"""
            SELECT n, unit FROM core
            UNION ALL SELECT l.a, coalesce(m.unit, l.b) FROM {self.table}_leaves AS l LEFT JOIN core AS m ON m.n = l.b
            UNION ALL SELECT DISTINCT l.b, l.b FROM {self.table}_leaves AS l ANTI JOIN core AS m ON m.n = l.b
            """,
            core=sql(
                f"SELECT a AS n, b AS unit FROM {self._round(i)} UNION ALL SELECT DISTINCT b, b FROM {self._round(i)}"
            ),
        )
        return self._step("members", "which unit each number is of", query)

    def units(self) -> Step:
        query = sql(
            f"""
            SELECT m.unit, count(*) AS size, coalesce(min(c.id) FILTER (WHERE c.own), min(c.id)) AS canonical
            FROM {self.table}_members AS m JOIN {self.table}_names AS c ON c.n = m.n % $numbers GROUP BY m.unit
            """,
            numbers=NUMBERS,
        )
        return self._step("units", "the ids of each unit, and the one that names it", query)

    def map(self) -> Step:
        parts: dict[str, Query | int] = {"most": self.declared.max_size, "numbers": NUMBERS}
        since, times = "CAST(NULL AS BIGINT)", ""
        if self.declared.lookback is not None:
            # left open, as every look back is: a row of just that long before is too early
            parts["back"] = round(self.declared.lookback.total_seconds() * 1e6) - 1
            ends = f"SELECT a AS n, us FROM {self.table}_pairs UNION ALL SELECT b, us FROM {self.table}_pairs"
            parts["seen"] = sql(f"SELECT n, min(us) AS us FROM ({ends}) AS ends GROUP BY n")
            since, times = "s.us - $back", "JOIN seen AS s ON s.n = m.n"
        query = sql(
            f"""
            SELECT c.id, u.canonical, {since} AS from_us
            FROM {self.table}_members AS m JOIN {self.table}_names AS c ON c.n = m.n % $numbers
              JOIN {self.table}_units AS u ON u.unit = m.unit {times}
            WHERE u.size <= $most AND c.id <> u.canonical
            """,
            **parts,
        )
        return self._step("map", "each id, the unit that it is of, and since when", query)

    # ---------------------------------------------------------------- running

    def _keep(self, part: str, step: Step) -> None:
        self.tables.append(f"{self.table}_{part}")
        self.catalog.engine.keep(self.tables[-1], step.query, step.name, self.view.name)
        self.steps.append(step.keeping(self.tables[-1]))

    def _drop(self, *parts: str) -> None:
        for part in parts:
            self.catalog.engine.drop(f"{self.table}_{part}")

    def _row(self, text: str, **parts: Any) -> dict[str, Any]:
        return self.catalog.engine.row(sql(text, **parts), f"identity of {self.entity}", self.view.name)

    def _top(self, text: str, most: int = _SHOWN) -> tuple[tuple[str, int], ...]:
        query = sql(f"SELECT name, n FROM ({text}) AS named ORDER BY n DESC, name LIMIT {most:d}")
        found = self.catalog.engine.fetch(query, f"identity of {self.entity}", self.view.name).to_pylist()
        return tuple((str(row["name"]), int(row["n"])) for row in found)

    def run(self) -> Identified:
        t = self.table
        self._number()
        self._keep("rows", self.rows())
        self._keep("odd", self.odd())
        self._keep("codes", self.codes())
        seen = self._row(
            f"SELECT count(*) AS n, coalesce(sum(untimed) FILTER (WHERE us IS NULL), 0) AS untimed FROM {t}_rows"
        )
        self._keep("shared", self.shared())
        self._keep("pairs", self.pairs())
        self._drop("codes")
        pairs = int(self._row(f"SELECT count(*) AS n FROM {t}_pairs")["n"])
        untimed = int(seen["untimed"]) if self.time is not None else 0
        blocked = self._row(f"SELECT count(*) AS n FROM {t}_names WHERE blocked")["n"]
        if not pairs:
            raise self._nothing(int(seen["n"]), untimed, int(blocked))
        self._keep("leaves", self.leaves())
        self._keep("members", self.members(self._components()))
        self._keep("units", self.units())
        step = self.map()
        self.catalog.engine.keep(t, step.query, step.name, self.view.name)
        self.steps.append(step.keeping(t))
        sizes = self._row(
            f"""
            SELECT count(*) FILTER (WHERE size <= $most) AS units, coalesce(sum(size) FILTER (WHERE size <= $most), 0) AS ids,
                   count(*) FILTER (WHERE size > $most) AS too_large,
                   coalesce(sum(size) FILTER (WHERE size > $most), 0) AS too_large_ids
            FROM {t}_units
            """,
            most=self.declared.max_size,
        )
        most = self.declared.max_size
        columns = " UNION ALL ".join(f"SELECT n{k} AS n FROM {t}_rows" for k in range(len(self.values)))
        return Identified(
            entity=self.entity,
            source=self.view.name,
            table=t,
            pairs=pairs,
            ids=int(sizes["ids"]),
            units=int(sizes["units"]),
            largest=self._top(f"SELECT canonical AS name, size AS n FROM {t}_units WHERE size <= {most:d}"),
            shared=self._top(
                f"SELECT c.id AS name, s.units AS n FROM {t}_shared AS s JOIN {t}_names AS c ON c.n = s.n % {NUMBERS}"
            ),
            shared_count=int(self._row(f"SELECT count(*) AS n FROM {t}_shared")["n"]),
            apart=self.apart,
            blocked=self._top(
                f"""
                SELECT c.id AS name, count(*) AS n FROM ({columns}) AS r JOIN {t}_names AS c ON c.n = r.n
                WHERE c.blocked GROUP BY c.id
                """,
                _NAMED,
            ),
            blocked_count=int(blocked),
            too_large=self._top(f"SELECT canonical AS name, size AS n FROM {t}_units WHERE size > {most:d}", _NAMED),
            too_large_count=int(sizes["too_large"]),
            too_large_ids=int(sizes["too_large_ids"]),
            both=int(self._row(f"SELECT count(*) AS n FROM {t}_names WHERE own AND alias AND NOT blocked")["n"]),
            untimed=untimed,
            max_size=most,
            steps=tuple(self.steps),
        )

    def _number(self) -> None:
        """Every id under a number of its own."""
        while True:
            self._keep("names", self.names())
            told = self._row(f"SELECT count(*) = count(DISTINCT n) AS apart FROM {self.table}_names")
            if told["apart"]:
                return
            self._drop("names")
            self.salt += 1

    def _components(self) -> int:
        """Rounds until every id hangs on one that hangs on none; returns the number of the last."""
        i = 0
        self._keep("edges_0", self.edges())
        while True:
            edges = self._round(i)
            form = self._row(
                f"""
                SELECT one, leads = 0 AS flat
                FROM (SELECT count(*) = count(DISTINCT a) AS one FROM {edges}) AS ids,
                     (SELECT count(*) AS leads FROM {edges} WHERE b IN (SELECT a FROM {edges})) AS ways
                """
            )
            if form["one"] and form["flat"]:
                return i
            if form["one"]:  # nothing to do for a small star: each id hangs on one
                self._keep(f"star_{i}", self._step("edges", "as they are", sql(f"SELECT a, b FROM {edges}")))
            else:
                self._keep(f"star_{i}", self.small_star(i))
            self._drop(f"edges_{i}")
            self._keep(f"edges_{i + 1}", self.large_star(i))
            self._drop(f"star_{i}")
            i += 1

    def _nothing(self, rows: int, untimed: int, blocked: int) -> DataError:
        columns = ", ".join([self.view.unit_text(self.entity) or "", *self.catalog.aliases(self.entity)])
        why = (
            f"no row holds two of {columns}"
            if not rows
            else f"none of the {rows:,} kinds of rows with several ids joins two"
        )
        why += f" ({blocked:,} values stand for nobody)" if blocked else ""
        why += f" ({untimed:,} rows have no time, which lookback needs)" if untimed else ""
        return DataError(
            f"{why}, so the identity of {self.entity} joins nothing; name the columns that hold its ids together, or leave the"
            " identity out",
            source=self.view.name,
        )


def _ids(view: View, entity: str, aliases: Sequence[str]) -> list[exp.Expr]:
    """The id and the aliases as text."""
    raw = [view.scalar(view.unit_text(entity) or "")]
    known = {name.lower(): name for name in view.own.columns}
    for alias in aliases:
        if alias.lower() not in known:
            raise DataError(
                f"has no column '{alias}'{did_you_mean(alias, view.own.columns)}, an alias of {entity}",
                source=view.name,
                column=alias,
            )
        view.used.add(known[alias.lower()])
        raw.append(column(known[alias.lower()]))
    return [as_id(value, view.type_of_own(value)) for value in raw]


def _time(view: View, declared: Identity) -> exp.Expr | None:
    if declared.lookback is None:
        return None
    if view.clock is None:
        raise DataError("has no time (time: COLUMN), and a lookback counts from when ids were joined", source=view.name)
    return view.clock.us


def _nobody(declared: Identity) -> exp.Expr:
    """Does an id (the column ``id``) stand for nobody?"""
    words = [exp.Literal.string(word) for word in BLOCKED]
    own = [exp.Literal.string(value) for value in declared.blocked]
    condition: exp.Expr = fragment("id < '1' AND trim(id, $fill) = ''", fill=_FILL)
    condition = exp.or_(condition, exp.In(this=fragment("lower(trim(id))"), expressions=words))
    return exp.or_(condition, exp.In(this=column("id"), expressions=own)) if own else condition

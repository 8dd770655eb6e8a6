"""Declared sources as relations: what to read, the unit, the clock, the conditions. One Catalog serves one run."""

from __future__ import annotations

import copy
import glob
import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo

from sqlglot import exp

from payoff.errors import ConnectionFailed, DataError, did_you_mean
from payoff.spec.nouns import Connection, DuckDBConnection, Entity, Identity, SessionsOf, Source
from payoff.warehouse.engine import Engine, Progress, open_engine
from payoff.warehouse.query import ExpressionError, Query, column, fragment, literal, scalar, select_only, sql

if TYPE_CHECKING:  # these read views, and are imported where they are used
    from payoff.warehouse.identity import Identified
    from payoff.warehouse.prepared import Prepared
    from payoff.warehouse.statements import Step

_NUMBERS = (
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "UHUGEINT",
    "FLOAT",
    "DOUBLE",
    "DECIMAL",
    "BOOLEAN",
)
_INTEGERS = _NUMBERS[:10]
_INSTANTS = ("TIMESTAMP", "TIMESTAMP WITH TIME ZONE")
_READERS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}


def is_number(kind: str) -> bool:
    """Is a column type one of numbers? A boolean is: 0 or 1."""
    return kind.startswith(_NUMBERS) and not kind.endswith("]")  # which would be a list of them


def to_us(moment: datetime, zone: str) -> int:
    """Microseconds since the epoch; a naive moment is in ``zone``."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))
    delta = aware.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def from_us(us: int) -> str:
    """ISO 8601 in UTC, to the second."""
    seconds, _ = divmod(us, 1_000_000)
    return (datetime(1970, 1, 1, tzinfo=UTC).fromtimestamp(seconds, UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


def files_of(name: str, source: Source, root: Path) -> list[str]:
    """The files of a ``file:`` source, sorted. Raises DataError where there are none or where one cannot be read."""
    if source.file is None:
        return []
    pattern = str(Path(glob.escape(str(root))) / source.file)
    found = sorted(p for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
    if not found:
        raise DataError(f"no file matches {source.file} (looked in {root})", source=name)
    kinds = {_reader(name, path) for path in found}
    if len(kinds) > 1:
        raise DataError(f"{source.file} matches files of several formats", source=name)
    for path in found:
        try:
            with open(path, "rb") as handle:
                empty = not handle.read(1)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}", source=name) from error
        if empty:
            raise DataError(f"{path} is empty: not even a header", source=name)
    return [str(Path(path).resolve()) for path in found]


def _reader(name: str, path: str) -> str:
    suffixes = [s.lower() for s in Path(path).suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    kind = _READERS.get(suffixes[-1] if suffixes else "")
    if kind is None:
        raise DataError(f"{path} is not CSV, Parquet or JSON lines (by its ending)", source=name)
    return kind


@dataclass(frozen=True)
class Relation:
    """One thing to read. Several sources may be conditions over the same one; it is still read once.

    ``columns`` are those that an expression may name. ``table`` is the temporary table that ``select`` reads, where it has to be
    made first: a text file's, or one of sessions. ``copy`` is the prepared layout that ``select`` reads in place of ``files``
    or of a table.
    """

    key: str
    select: exp.Query
    columns: Mapping[str, str]
    files: tuple[str, ...] = ()
    table: str | None = None
    copy: Prepared | None = None

    def query(self) -> Query:
        return Query(self.select)


@dataclass(frozen=True)
class Stored:
    """Where the rows of a source are: ``files``, or a ``table`` of the DuckDB file ``database`` (both None for a SELECT or another
    engine's). ``select`` reads them, and ``text`` tells whether it finds out their types from text."""

    key: str
    select: exp.Query
    files: tuple[str, ...] = ()
    text: bool = False
    database: Path | None = None
    table: exp.Table | None = None


@dataclass(frozen=True)
class Clock:
    """A time column as stored (``raw``), with its type and the zone that a naive time is in."""

    raw: exp.Expr
    kind: str
    zone: str

    @property
    def us(self) -> exp.Expr:
        """Microseconds since the epoch."""
        return self.us_of(self.raw)

    def us_of(self, raw: exp.Expr) -> exp.Expr:
        """The same of another expression of the stored type, such as its minimum."""
        if self.kind == "TIMESTAMP WITH TIME ZONE":
            return fragment("epoch_us($raw)", raw=raw)
        # in a zone a naive time says so by a cast: what AT TIME ZONE means depends on the type, which not every dialect can ask for
        naive = raw if self.kind == "TIMESTAMP" and self.zone == "UTC" else exp.cast(raw.copy(), "TIMESTAMP")
        if self.zone != "UTC":
            naive = fragment("$raw AT TIME ZONE $zone", raw=exp.paren(naive.copy()), zone=self.zone)
        return fragment("epoch_us($raw)", raw=naive)

    def between(self, low_us: int | None, high_us: int | None) -> list[exp.Expr]:
        """Bounds on the column as stored, so that files and row groups are skipped by their statistics. Never too tight:
        to the second where it is stored as an instant or in UTC, to the day elsewhere."""
        slack = 0 if self.kind in _INSTANTS and ("ZONE" in self.kind or self.zone == "UTC") else 86_400_000_000
        out = []
        if low_us is not None:
            out.append(fragment("$raw >= $bound", raw=self.raw, bound=self._stored(low_us - slack)))
        if high_us is not None:
            out.append(fragment("$raw <= $bound", raw=self.raw, bound=self._stored(high_us + slack + 1_000_000)))
        return out

    def _stored(self, us: int) -> exp.Expr:
        first, last = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
        seconds = min(max(us // 1_000_000, int(first.timestamp())), int(last.timestamp()))
        moment = datetime.fromtimestamp(seconds, UTC)
        if self.kind == "DATE":
            return exp.cast(exp.Literal.string(moment.date().isoformat()), "DATE")
        return literal(moment if "ZONE" in self.kind else moment.replace(tzinfo=None))


def as_id(expression: exp.Expr, kind: str) -> exp.Expr:
    """An id as text. Whole numbers stored as fractions (pandas makes ids with gaps so) are whole: 7.0 is '7'."""
    if kind == "VARCHAR":
        return expression.copy()
    text = exp.cast(expression.copy(), "VARCHAR")
    if not kind.startswith(("FLOAT", "DOUBLE", "DECIMAL")):
        return text
    inside = exp.paren(expression.copy())
    whole = fragment("TRY_CAST(CASE WHEN $u = floor($u) THEN $u END AS HUGEINT)", u=inside)
    return fragment("coalesce(CAST($w AS VARCHAR), $own_id)", w=whole, own_id=text)


def identity_table(entity: str) -> str:
    """The temporary table of an entity's joined ids: (id, canonical, from_us), from_us NULL where it is joined at any time."""
    return f"identity_{entity}"


def _qualified(expression: exp.Expr) -> exp.Expr:
    """Its columns are those of ``own``, and not of what is joined to it."""
    out = expression.copy()
    for node in list(out.find_all(exp.Column)):
        node.set("table", exp.to_identifier("own"))
    return out


@dataclass(frozen=True)
class _Joined:
    """A unit found through an identity: the id here as text, and the column that the relation gives the unit in."""

    text: exp.Expr
    since: exp.Expr | None
    name: str


class View:
    """A source as the planner sees it: its relation, and its expressions resolved against the relation's columns.

    ``identities`` are the entities whose ids are joined. Where the source names such an entity, the relation holds a column more,
    the unit as its identity knows it, which ``unit`` gives; ``own_unit`` gives the id that the row itself holds.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        relation: Relation,
        entities: Mapping[str, Entity],
        zone: str,
        engine: Engine,
        identities: Iterable[str] = (),
    ) -> None:
        self.name, self.source, self.own = name, source, relation
        self.used: set[str] = set()
        """Columns that some expression named."""
        self._entities, self._zone, self._engine = entities, source.timezone or zone, engine
        self._identities = frozenset(identities)
        self._known_types: dict[tuple[object, ...], str] = {}

    @cached_property
    def relation(self) -> Relation:
        """What to read: the source's own relation, with the units of its entities that have an identity."""
        if not self.joined:
            return self.own
        select = exp.select("own.*").from_(self.own.select.copy().subquery("own"))
        for entity, found in self.joined.items():
            table = identity_table(entity)
            alias = f"of_{entity}"
            text = _qualified(found.text)
            canonical: exp.Expr = exp.column("canonical", table=alias)
            if found.since is not None:
                canonical = fragment(
                    f"CASE WHEN $t >= {alias}.from_us THEN {alias}.canonical END",
                    t=_qualified(found.since),
                )
            unit = fragment("coalesce($canonical, $own_id)", canonical=canonical, own_id=text)
            select = select.select(exp.alias_(unit, found.name, quoted=True)).join(
                exp.table_(table, alias=alias), on=fragment(f"{alias}.id = $own_id", own_id=text), join_type="left"
            )
        return Relation(self.own.key, select, self.own.columns, self.own.files, self.own.table, self.own.copy)

    @cached_property
    def joined(self) -> Mapping[str, _Joined]:
        """The entities of this source that have an identity, and how their ids here are told."""
        out: dict[str, _Joined] = {}
        for entity in sorted(self._identities):
            declared, raw = self.unit_text(entity), None
            if declared is not None and self.source.sessions is None:
                try:
                    raw = self.scalar(declared)
                except ExpressionError:  # told where the unit is asked for: most sources have not every entity
                    continue
            if raw is None:
                continue
            identity = self._entities[entity].identity
            bounded = identity is not None and identity.lookback is not None
            since = self.clock.us if bounded and self.clock is not None else None
            # sources over one table share its scan by their units' names: one name, one expression
            mark = hashlib.sha256(f"{raw.sql('duckdb')} {since and since.sql('duckdb')}".encode()).hexdigest()[:6]
            out[entity] = _Joined(as_id(raw, self.type_of_own(raw)), since, f"{entity}_joined_{mark}")
        return out

    def scalar(self, text: str) -> exp.Expr:
        tree = scalar(text, self.own.columns, self.name)
        self.used.update(node.name for node in tree.find_all(exp.Column))
        return tree

    def type_of(self, expression: exp.Expr) -> str:
        """The type of an expression, asked of the engine over an empty relation of the same columns: reads nothing."""
        return self._type(expression, {**self.own.columns, **{found.name: "VARCHAR" for found in self.joined.values()}})

    def type_of_own(self, expression: exp.Expr) -> str:
        """The same of an expression over the source's own columns."""
        return self._type(expression, self.own.columns)

    def _type(self, expression: exp.Expr, columns: Mapping[str, str]) -> str:
        # experiments and metrics ask for the same ones over and over
        asked = (expression.sql("duckdb"), *columns.items())
        if asked not in self._known_types:
            it = exp.select(exp.alias_(expression.copy(), "it")).from_(typed_row(columns))
            (self._known_types[asked],) = self._engine.types(Query(it), self.name).values()
        return self._known_types[asked]

    @cached_property
    def where(self) -> exp.Expr | None:
        return None if self.source.where is None else self.condition(self.source.where)

    def condition(self, text: str) -> exp.Expr:
        """A user's condition as a boolean. A number is true when it is not 0. Raises DataError for text."""
        expression = self.scalar(text)
        kind = self.type_of_own(expression)
        if kind == "BOOLEAN":
            return expression
        if kind.startswith(_NUMBERS):
            return fragment("$it <> 0", it=exp.paren(expression))
        raise DataError(
            f"'{text}' is used as a condition but is {kind}; compare it with something", source=self.name, column=text
        )

    def number(self, text: str) -> exp.Expr:
        """A user's expression as DOUBLE. Raises DataError with the count of values that are not numbers."""
        expression = self.scalar(text)
        kind = self.type_of(expression)
        if kind.startswith(_NUMBERS):
            return exp.cast(expression, "DOUBLE")
        if kind != "VARCHAR":
            raise DataError(f"is {kind}, not a number", source=self.name, column=text)
        found = self._engine.row(
            sql(
                """
                SELECT count(*) FILTER (v IS NOT NULL AND TRY_CAST(v AS DOUBLE) IS NULL) AS bad, count(v) AS present,
                       min(v) FILTER (TRY_CAST(v AS DOUBLE) IS NULL) AS example
                FROM (SELECT $v AS v FROM rows)
                """,
                v=expression,
                rows=Query(self.rows()),
            ),
            "look for text among numbers",
            self.name,
        )
        if found["bad"]:
            raise DataError(
                f"{found['bad']:,} of {found['present']:,} values are text, not numbers (for example {str(found['example'])[:40]!r})",
                source=self.name,
                column=text,
                count=int(found["bad"]),
            )
        raise DataError(f"holds numbers stored as text; write CAST({text} AS DOUBLE)", source=self.name, column=text)

    def rows(self) -> exp.Select:
        """Every row of the source (its condition applied)."""
        select = exp.select("*").from_(self.relation.select.copy().subquery("base"))
        return select if self.where is None else select.where(self.where.copy())

    def own_rows(self) -> exp.Select:
        """The same as the source has them, without the units that identities add."""
        select = exp.select("*").from_(self.own.select.copy().subquery("base"))
        return select if self.where is None else select.where(self.where.copy())

    @property
    def entities(self) -> list[str]:
        """The entities that its rows hold an id of: those it maps itself first."""
        known = dict.fromkeys([*self.source.entity, *((self.source.one_row_per,) if self.source.one_row_per else ())])
        own = [e for e, declared in self._entities.items() if declared.id in self.own.columns]
        return [e for e in dict.fromkeys([*known, *own]) if self.unit_text(e) is not None]

    def unit_text(self, entity: str) -> str | None:
        """The expression that identifies ``entity`` here, as declared; None where rows have no id (one row a unit)."""
        if self.source.sessions is not None:
            return self.source.entity.get(entity)
        declared = self.source.entity.get(entity) or (self._entities[entity].id if entity in self._entities else None)
        if declared is None and self.source.one_row_per == entity:
            return self.source.id
        return declared

    def unit(self, entity: str) -> exp.Expr:
        """The unit of a row: its id, or (as text) what the entity's identity says it is."""
        raw = self.own_id(entity)
        if entity in self.joined:
            return column(self.joined[entity].name)
        declared = self._entities.get(entity)
        if declared is not None and declared.identity is not None and self.source.sessions is None:
            raise DataError(
                f"its {entity}s are known by the identity over '{declared.identity.source}', which is not among the sources"
                " read together",
                source=self.name,
            )
        return raw

    def own_unit(self, entity: str) -> exp.Expr:
        """The id that the row itself holds, as text."""
        raw = self.own_id(entity)
        return as_id(raw, self.type_of_own(raw))

    def own_id(self, entity: str) -> exp.Expr:
        """The id that the row itself holds, as stored. Raises DataError where the source has none."""
        text = self.unit_text(entity)
        if text is None:
            raise DataError(
                f"does not say which column identifies '{entity}' (entity: {{{entity}: COLUMN}})", source=self.name
            )
        return self.scalar(text)

    @cached_property
    def clock(self) -> Clock | None:
        """The time of a row, or None where the source has none. Raises DataError where it is not a time."""
        return None if self.source.time is None else self.time(self.source.time, "time: ")

    def time(self, text: str, key: str = "") -> Clock:
        """A user's expression as a time. ``key`` is what introduces it in a definition. Raises DataError where it is none."""
        raw = self.scalar(text)
        kind = self.type_of_own(raw)
        if kind == "DATE" or kind.startswith("TIMESTAMP"):
            return Clock(raw, kind, self._zone)
        remedy = {
            "VARCHAR": f'{key}"CAST({text} AS TIMESTAMP)"',
        }.get(
            kind,
            f'{key}"to_timestamp({text})" for seconds, "epoch_ms({text})" for milliseconds',
        )
        raise DataError(f"is {kind}, not a time; write {remedy}", source=self.name, column=text)

    def referenced(self, texts: Iterable[str]) -> set[str]:
        """Columns that expressions read, plus those of the source's own where, time, id and links."""
        own = [
            self.source.where,
            self.source.time,
            self.source.id,
            *self.source.links.values(),
            *self.source.entity.values(),
        ]
        own += [e.id for e in self._entities.values() if e.id in self.own.columns]
        names: set[str] = set()
        for text in [*texts, *(t for t in own if t is not None)]:
            names |= {node.name for node in self.scalar(text).find_all(exp.Column)}
        return names


@dataclass
class _Made:
    """A temporary table that is made once a run, when a statement first names it. ``columns``: those it was made with."""

    kind: Literal["text", "identity", "sessions"]
    of: str
    columns: frozenset[str] | None = None
    planned: bool = False


class Catalog:
    """Every source of a project, described once. Opening it opens the engine.

    Text files, identities and sessions are read once into temporary tables, of the columns that expressions name: by ``prepare``,
    or when a statement first needs them. Prepared copies are read in place of what they are of while they are fresh, and with
    ``as_stored`` never.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        entities: Mapping[str, Entity],
        connections: Mapping[str, Connection],
        root: Path,
        zone: str,
        progress: Progress | None = None,
        as_stored: bool = False,
    ) -> None:
        self.zone, self._sources, self._entities, self._connections = (
            zone,
            dict(sources),
            dict(entities),
            dict(connections),
        )
        self._files = {name: files_of(name, source, root) for name, source in sources.items()}
        from payoff.warehouse.prepared import Layouts

        files = [f for fs in self._files.values() for f in fs]
        copies = not as_stored and all(c.engine == "duckdb" for c in connections.values() if c.holds_tables)
        self._layouts = Layouts(root) if copies else None
        self.stale: dict[str, str] = {}
        """Relations that have a prepared copy which is not read, by key: why, in a clause."""
        copied = self._layouts.paths if self._layouts is not None else []
        try:
            self.engine: Engine = open_engine(connections, root, [*files, *copied], progress)
        except BaseException:
            if self._layouts is not None:
                self._layouts.close()
            raise
        self.engine.ready = self._ready
        self.root = root
        self._relations: dict[str, Relation] = {}
        self._views: dict[str, View] = {}
        self._opening: list[str] = []
        self._texts: dict[str, Relation] = {}
        self._made: dict[str, _Made] = {
            identity_table(name): _Made("identity", name)
            for name, entity in entities.items()
            if entity.identity is not None and entity.identity.source in sources
        }
        self._identified: dict[str, Identified] = {}
        self._untold: list[Step] = []

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        if self._layouts is not None:
            self._layouts.close()

    def view(self, name: str) -> View:
        if name not in self._views:
            if name not in self._sources:
                raise DataError(f"there is no source '{name}'{did_you_mean(name, self._sources)}")
            source = self._sources[name]
            if source.sessions is not None:
                self._views[name] = self._sessions(name, source, source.sessions)
            else:
                joined = [made.of for made in self._made.values() if made.kind == "identity"]
                relation = self._relation(name, source)
                self._views[name] = View(name, source, relation, self._entities, self.zone, self.engine, joined)
        return self._views[name]

    def seen_as(self, views: Mapping[str, View]) -> Catalog:
        """The same catalog, in which these sources are read by other views. It is not opened or closed by itself."""
        out = copy.copy(self)
        out._views = {**self._views, **views}
        return out

    def identity(self, entity: str) -> Identity | None:
        """How the ids of an entity are joined; None where each id is a unit of its own."""
        return self._entities[entity].identity if entity in self._entities else None

    def aliases(self, entity: str) -> tuple[str, ...]:
        return self._entities[entity].aliases

    def identified(self, entity: str) -> Identified | None:
        """What the identity of an entity did, worked out where it was not yet; None where it has none."""
        table = identity_table(entity)
        if table not in self._made:
            return None
        self._make(table)
        return self._identified[entity]

    # ---------------------------------------------------------------- tables made once a run

    def prepare(self, run: bool, only: Container[str] | None = None) -> list[Step]:
        """Make the temporary tables that the views opened so far read (or those of them in ``only``); returns the steps, each told once.

        With ``run`` off nothing is read: the steps show what a run would do, and later statements refer to tables that do not
        exist. Tables that are first needed later are made then, and their steps come with the next call.
        """
        for name, source in self._sources.items():
            if source.sessions is not None:
                self.view(name)
        used = self._identities_used()
        tables = [
            t
            for t, made in self._made.items()
            if (made.kind != "identity" or t in used) and (only is None or t in only)
        ]
        order = {"text": 0, "identity": 1, "sessions": 2}
        for table in sorted(tables, key=lambda t: order[self._made[t].kind]):
            made = self._made[table]
            if run:
                self._make(table)
            elif not made.planned and made.columns is None:
                made.planned = True
                self._untold += self._plan(table)
        told, self._untold = self._untold, []
        return told

    def making(self, steps: Iterable[Step]) -> dict[str, list[Step]]:
        """The temporary tables that statements name, and those that they are made of in turn: how each would be made."""
        found: dict[str, list[Step]] = {}
        left = [step.query.tree for step in steps]
        while left:
            for table in self._named(left.pop()):
                if table not in found:
                    found[table] = self._plan(table)
                    left += [step.query.tree for step in found[table]]
        return found

    def _named(self, tree: exp.Query) -> list[str]:
        return sorted({t.name for t in tree.find_all(exp.Table) if not t.db} & self._made.keys())

    def _ready(self, tree: exp.Query) -> None:
        """Before a statement runs: the tables that it names."""
        for table in self._named(tree):
            self._make(table)

    def _make(self, table: str) -> None:
        made = self._made[table]
        wanted = self._wanted(table)
        if made.columns is not None:
            if wanted <= made.columns:
                return
            wanted = frozenset(self._known(table))  # asked of a second time: all of it, so that there is no third
            self.engine.drop(table)
        if made.kind == "identity":
            from payoff.warehouse import identity

            found = identity.build(self, made.of)
            self._identified[made.of] = found
            self._untold += found.steps
        else:
            step = self._step(table, wanted)
            self.engine.keep(table, step.query, step.name, self._owner(table))
            self._untold.append(step.keeping(table))
        made.columns = wanted

    def _plan(self, table: str) -> list[Step]:
        made = self._made[table]
        if made.kind != "identity":
            return [self._step(table, self._wanted(table)).keeping(table)]
        from payoff.warehouse import identity

        return identity.plan(self, made.of)

    def _step(self, table: str, wanted: frozenset[str]) -> Step:
        """The statement that makes the table of a text file or of sessions, with the columns wanted."""
        from payoff.warehouse.statements import Step

        made = self._made[table]
        kept = tuple(c for c in self._known(table) if c in wanted)
        if made.kind == "text":
            raw = self._texts[table]
            kept = kept or (next(iter(raw.columns)),)
            query = Query(exp.select(*(column(c) for c in kept)).from_(raw.select.copy().subquery("text_file")))
            purpose = "a text file is read once, into a temporary table of the columns needed"
            return Step(f"load {raw.key}", raw.key, purpose, kept, (), query)
        from payoff.warehouse import sessions

        return sessions.step(self.view(self._of(made.of).of), made.of, self._of(made.of), self._unit_of(made.of), kept)

    def _identities_used(self) -> set[str]:
        """The maps that the views opened so far read; the columns that they are made of are then named in their sources."""
        from payoff.warehouse import identity

        entities = {entity for view in list(self._views.values()) for entity in view.joined}
        for entity in entities:
            identity.read_columns(self, entity)
        return {identity_table(entity) for entity in entities}

    def _wanted(self, table: str) -> frozenset[str]:
        """The columns of a table that some expression names: a session's are in turn columns of its rows."""
        made = self._made[table]
        if made.kind == "identity":
            return frozenset()
        if made.kind == "text":
            self._identities_used()
        sharing = [v for v in self._views.values() if v.own.table == table]
        names = {name for view in sharing for name in view.used | view.referenced([])}
        if made.kind == "sessions":  # what a session has of its own is always there
            names &= self._views[self._of(made.of).of].own.columns.keys()
        for view in self._views.values():
            if view.source.sessions is not None and self._views[view.source.sessions.of] in sharing:
                names |= view.used & self._known(table).keys()
        return frozenset(names)

    def _known(self, table: str) -> Mapping[str, str]:
        made = self._made[table]
        return (self._texts[table] if made.kind == "text" else self._views[made.of].own).columns

    def _owner(self, table: str) -> str:
        return next(v.name for v in self._views.values() if v.own.table == table)

    # ---------------------------------------------------------------- relations

    def _of(self, name: str) -> SessionsOf:
        made = self._sources[name].sessions
        assert made is not None
        return made

    def _unit_of(self, name: str) -> str:
        """Whose sessions a source holds: as it declares, else the only entity that its rows map, else the only one with an id."""
        made = self._of(name)
        if made.entity is not None:
            return made.entity
        rows = self._sources.get(made.of)
        own = list(rows.entity) if rows is not None else []
        own = own or [entity for entity, declared in self._entities.items() if declared.id is not None]
        if len(own) != 1:
            raise DataError("does not say whose sessions it holds (sessions: {entity: NAME})", source=name)
        return own[0]

    def _sessions(self, name: str, source: Source, made: SessionsOf) -> View:
        from payoff.warehouse import sessions

        if name in self._opening:
            raise DataError(f"is made of its own rows: {' of '.join([*self._opening, name])}", source=name)
        self._opening.append(name)
        try:
            rows, entity = self.view(made.of), self._unit_of(name)
        finally:
            self._opening.pop()
        table = f"sessions_{name}"
        columns = sessions.columns_of(rows, name, made, entity)
        self._made[table] = _Made("sessions", name)
        relation = Relation(f"sessions {name}", exp.select("*").from_(table), columns, rows.own.files, table)
        told = source.model_copy(update={"time": "session_start", "entity": {entity: "session_unit"}})
        return View(name, told, relation, self._entities, self.zone, self.engine)

    def _relation(self, name: str, source: Source) -> Relation:
        select, key = self._select(name, source)
        if key not in self._relations and (copy := self._copy(name)) is not None:
            self._relations[key] = Relation(key, copy.rows(), copy.columns, tuple(self._files[name]), copy=copy)
        if key not in self._relations:
            files = tuple(self._files[name])
            columns = self.engine.types(Query(select), name)
            relation = Relation(key, self.engine.settled(select, columns), columns, files)
            if files and _reader(name, files[0]) != "parquet":
                table = f"loaded_{len(self._texts)}"
                self._texts[table], self._made[table] = relation, _Made("text", key)
                relation = Relation(key, exp.select("*").from_(table), columns, files, table)
            self._relations[key] = relation
        return self._relations[key]

    @property
    def names(self) -> list[str]:
        """The sources that it has, but those made of others' rows."""
        return [name for name, source in self._sources.items() if source.sessions is None]

    @property
    def prepared(self) -> dict[str, Prepared]:
        """The prepared copies that are read, by their relation's key: of the views opened so far."""
        return {key: relation.copy for key, relation in self._relations.items() if relation.copy is not None}

    @property
    def databases(self) -> dict[str, DuckDBConnection]:
        return {name: c for name, c in self._connections.items() if isinstance(c, DuckDBConnection)}

    def stored(self, name: str) -> Stored:
        """Where the rows of a source are, whatever copy of them is read."""
        source = self._sources[name]
        select, key = self._select(name, source)
        files = tuple(self._files[name])
        if files:
            return Stored(key, select, files, _reader(name, files[0]) != "parquet")
        connection = self.databases.get(self._connection_of(name, source))
        if source.table is None or connection is None or connection.path is None:
            return Stored(key, select)
        table = select.find(exp.Table)
        return Stored(key, select, database=(self.root / connection.path).resolve(), table=table)

    def _copy(self, name: str) -> Prepared | None:
        if self._layouts is None:
            return None
        stored = self.stored(name)
        found = self._layouts.look(stored)
        if isinstance(found, str):
            self.stale[stored.key], found = found, None
        return found

    def _select(self, name: str, source: Source) -> tuple[exp.Query, str]:
        if source.file is not None:
            files = self._files[name]
            kind = _reader(name, files[0])
            if kind == "json" and all(_starts_with_bracket(f) for f in files):
                kind = "json-array"
            return self.engine.files(files, kind, name), f"file {source.file}"
        catalog = self._connection_of(name, source)
        if source.table is not None:
            parts = source.table.split(".")
            if len(parts) > 2:
                raise DataError(f"table '{source.table}' has more parts than schema.table", source=name)
            table = self.engine.place(catalog, parts)
            return exp.select("*").from_(table), f"table {catalog}.{source.table}"
        assert source.sql is not None
        tree = select_only(source.sql).copy()
        for node in list(tree.find_all(exp.Table)):
            if node.catalog:
                if node.catalog not in self._connections:
                    continue
                place = self.engine.place(node.catalog, [node.db, node.name])
            elif node.db in self._connections:  # another connection's table, as CONNECTION.TABLE
                place = self.engine.place(node.db, [node.name])
            elif node.db or not _names_a_cte(node):
                place = self.engine.place(catalog, [node.db, node.name] if node.db else [node.name])
            else:
                continue
            for part in ("this", "db", "catalog"):
                node.set(part, place.args.get(part))
        return tree, f"sql {tree.sql('duckdb')}"

    def _connection_of(self, name: str, source: Source) -> str:
        usable = {k: c for k, c in self._connections.items() if c.holds_tables}
        if source.connection is not None:
            if source.connection not in usable:
                raise DataError(f"connection '{source.connection}' has no tables that could be read", source=name)
            return source.connection
        if not usable:
            raise ConnectionFailed(
                f"source '{name}' reads a table, but no connection of the project holds tables"
                " (connections: {main: {engine: duckdb, path: FILE}})"
            )
        return next(iter(usable))

    def told(self, step: Step) -> Step:
        """A step with what it reads by its relation's name (a source's may be one of several over it), and the bytes of it."""
        if not step.reads:
            return step
        known = self._views.get(step.reads)
        key = known.own.key if known is not None else step.reads
        reads = f"{key}, prepared" if key in self.prepared else key
        return replace(step, reads=reads, bytes=self._size(key, step.columns))

    def _size(self, key: str, columns: Sequence[str]) -> int | None:
        relation = next((r for r in (*self._texts.values(), *self._relations.values()) if r.key == key), None)
        if relation is None:
            return None
        if relation in self._texts.values():
            return sum(Path(path).stat().st_size for path in relation.files)
        if not columns or relation.table is not None:  # a table that this run made is no source
            return 0
        if relation.copy is not None or relation.files:
            copied = None if relation.copy is None else [segment.path for segment in relation.copy.segments]
            return self.engine.size(copied or relation.files, columns)
        place = relation.select.find(exp.Table)
        return None if place is None or not key.startswith("table ") else self.engine.size(place, columns)

    def fingerprint(self, relation: Relation) -> str:
        """Of files: their sizes, heads and tails (a Parquet tail holds its statistics). Of a table: left to the profile."""
        digest = hashlib.sha256()
        for path in relation.files:
            size = Path(path).stat().st_size
            digest.update(f"{Path(path).name}:{size}:".encode())
            with open(path, "rb") as handle:
                digest.update(handle.read(65_536))
                handle.seek(max(0, size - 65_536))
                digest.update(handle.read())
        return digest.hexdigest()


def typed_row(columns: Mapping[str, str]) -> exp.Subquery:
    """One row of NULLs of these types, to ask what comes of them."""
    typed = [
        exp.alias_(exp.cast(exp.null(), exp.DataType.build(kind, dialect="duckdb", udt=True)), name, quoted=True)
        for name, kind in columns.items()
    ]
    return exp.select(*typed).subquery("typed")


def _names_a_cte(table: exp.Table) -> bool:
    """Is this the name of a WITH step in scope there? A step that is not recursive does not see itself, only earlier ones:
    ``WITH orders AS (SELECT * FROM orders WHERE paid)`` reads the table."""
    inner: exp.Expr = table
    outer = table.parent
    while outer is not None:
        steps = outer.args.get("with_") if isinstance(outer, exp.Query | exp.DML) else None
        if (
            inner is not steps
            and steps is not None
            and table.name.lower() in {c.alias.lower() for c in steps.expressions}
        ):
            return True
        if isinstance(outer, exp.With):
            before = outer.expressions if outer.recursive else outer.expressions[: inner.index]
            if table.name.lower() in {c.alias.lower() for c in before}:
                return True
        inner, outer = outer, outer.parent
    return False


def _starts_with_bracket(path: str) -> bool:
    with open(path, "rb") as handle:
        return handle.read(64).lstrip()[:1] == b"["

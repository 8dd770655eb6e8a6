"""Declared sources as relations: what to read, the unit, the clock, the conditions. One Catalog serves one run."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from zoneinfo import ZoneInfo

from sqlglot import exp

from payoff.errors import ConnectionFailed, DataError, did_you_mean
from payoff.spec.nouns import DuckDBConnection, Entity, Source
from payoff.warehouse.engine import DuckDBEngine, Progress, catalog_of
from payoff.warehouse.query import Query, column, fragment, literal, scalar, select_only, sql

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
    pattern = str(root / source.file)
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
    """One physical thing to read. Several sources may be conditions over the same one; it is still read once."""

    key: str
    select: exp.Query
    columns: Mapping[str, str]
    files: tuple[str, ...] = ()
    text_file: bool = False

    def query(self) -> Query:
        return Query(self.select)


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
        naive = raw if self.kind == "TIMESTAMP" else exp.cast(raw.copy(), "TIMESTAMP")
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


class View:
    """A source as the planner sees it: its relation, and its expressions resolved against the relation's columns."""

    def __init__(
        self,
        name: str,
        source: Source,
        relation: Relation,
        entities: Mapping[str, Entity],
        zone: str,
        engine: DuckDBEngine,
    ) -> None:
        self.name, self.source, self.relation = name, source, relation
        self._entities, self._zone, self._engine = entities, source.timezone or zone, engine

    def scalar(self, text: str) -> exp.Expr:
        return scalar(text, self.relation.columns, self.name)

    def type_of(self, expression: exp.Expr) -> str:
        """The type of an expression, asked of the engine over an empty relation of the same columns: reads nothing."""
        typed = [
            exp.alias_(exp.cast(exp.null(), exp.DataType.build(kind, dialect="duckdb", udt=True)), name, quoted=True)
            for name, kind in self.relation.columns.items()
        ]
        empty = exp.select(*typed).subquery("typed")
        return next(
            iter(
                self._engine.types(
                    Query(exp.select(exp.alias_(expression.copy(), "it")).from_(empty)), self.name
                ).values()
            )
        )

    @cached_property
    def where(self) -> exp.Expr | None:
        return None if self.source.where is None else self.condition(self.source.where)

    def condition(self, text: str) -> exp.Expr:
        """A user's condition as a boolean. A number is true when it is not 0. Raises DataError for text."""
        expression = self.scalar(text)
        kind = self.type_of(expression)
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
                       any_value(v) FILTER (TRY_CAST(v AS DOUBLE) IS NULL) AS example
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

    def unit_text(self, entity: str) -> str | None:
        """The expression that identifies ``entity`` here, as declared; None where rows have no id (one row a unit)."""
        declared = self.source.entity.get(entity) or (self._entities[entity].id if entity in self._entities else None)
        if declared is None and self.source.one_row_per == entity:
            return self.source.id
        return declared

    def unit(self, entity: str) -> exp.Expr:
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
        kind = self.type_of(raw)
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
        own += [e.id for e in self._entities.values() if e.id in self.relation.columns]
        names: set[str] = set()
        for text in [*texts, *(t for t in own if t is not None)]:
            names |= {node.name for node in self.scalar(text).find_all(exp.Column)}
        return names


class Catalog:
    """Every source of a project, described once. Opening it opens the engine."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        entities: Mapping[str, Entity],
        connections: Mapping[str, DuckDBConnection],
        root: Path,
        zone: str,
        progress: Progress | None = None,
    ) -> None:
        self.zone, self._sources, self._entities, self._connections = (
            zone,
            dict(sources),
            dict(entities),
            dict(connections),
        )
        self._files = {name: files_of(name, source, root) for name, source in sources.items()}
        self.engine = DuckDBEngine(connections, root, [f for files in self._files.values() for f in files], progress)
        self._root = root
        self._relations: dict[str, Relation] = {}
        self._views: dict[str, View] = {}

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def view(self, name: str) -> View:
        if name not in self._views:
            if name not in self._sources:
                raise DataError(f"there is no source '{name}'{did_you_mean(name, self._sources)}")
            source = self._sources[name]
            self._views[name] = View(name, source, self._relation(name, source), self._entities, self.zone, self.engine)
        return self._views[name]

    # ---------------------------------------------------------------- relations

    def _relation(self, name: str, source: Source) -> Relation:
        select, key = self._select(name, source)
        if key not in self._relations:
            files = tuple(self._files[name])
            columns = self.engine.types(Query(select), name)
            text_file = bool(files) and _reader(name, files[0]) != "parquet"
            self._relations[key] = Relation(key, select, columns, files, text_file)
        return self._relations[key]

    def _select(self, name: str, source: Source) -> tuple[exp.Query, str]:
        if source.file is not None:
            files = self._files[name]
            listed = exp.Array(expressions=[exp.Literal.string(f) for f in files])
            kind = _reader(name, files[0])
            if kind == "parquet":
                template = "SELECT * FROM read_parquet($files, union_by_name = true)"
            elif kind == "csv":
                # the whole file is sniffed: a word in the last row must not be met half-way through a scan
                template = "SELECT * FROM read_csv($files, sample_size = -1, union_by_name = true)"
            else:
                template = "SELECT * FROM read_json($files, sample_size = -1, union_by_name = true, format = 'newline_delimited')"
                if all(_starts_with_bracket(f) for f in files):
                    template = template.replace("newline_delimited", "array")
            return sql(template, files=listed).tree, f"file {source.file}"
        catalog = self._connection_of(name, source)
        if source.table is not None:
            parts = source.table.split(".")
            if len(parts) > 2:
                raise DataError(f"table '{source.table}' has more parts than schema.table", source=name)
            table = exp.Table(
                this=exp.to_identifier(parts[-1], quoted=True),
                db=exp.to_identifier(parts[0] if len(parts) == 2 else "main", quoted=True),
                catalog=exp.to_identifier(catalog_of(catalog), quoted=True),
            )
            return exp.select("*").from_(table), f"table {catalog}.{source.table}"
        assert source.sql is not None
        tree = select_only(source.sql).copy()
        for node in list(tree.find_all(exp.Table)):
            if node.db in self._connections and not node.args.get("catalog"):
                # another connection's table, as CONNECTION.TABLE
                node.set("catalog", exp.to_identifier(catalog_of(node.db), quoted=True))
                node.set("db", exp.to_identifier("main", quoted=True))
            elif node.args.get("catalog"):
                if node.catalog in self._connections:
                    node.set("catalog", exp.to_identifier(catalog_of(node.catalog), quoted=True))
            elif node.db or not _names_a_cte(node):
                node.set("catalog", exp.to_identifier(catalog_of(catalog), quoted=True))
                if not node.db:
                    node.set("db", exp.to_identifier("main", quoted=True))
        return tree, f"sql {tree.sql('duckdb')}"

    def _connection_of(self, name: str, source: Source) -> str:
        usable = {k: c for k, c in self._connections.items() if c.path is not None}
        if source.connection is not None:
            if source.connection not in usable:
                raise DataError(f"connection '{source.connection}' has no database path", source=name)
            return source.connection
        if not usable:
            raise ConnectionFailed(
                f"source '{name}' reads a table, but no connection of the project has a path"
                " (connections: {main: {engine: duckdb, path: FILE}})"
            )
        return next(iter(usable))

    def load_text_files(
        self, wanted: Mapping[str, Iterable[str]], run: bool = True
    ) -> list[tuple[str, tuple[str, ...], Query]]:
        """Read each CSV or JSON file once, keeping only ``wanted`` columns by relation key.

        Returns (relation, columns, query) of each. With ``run`` off nothing is read, and later statements refer to tables
        that do not exist: for showing a plan.
        """
        done: list[tuple[str, tuple[str, ...], Query]] = []
        for number, (key, names) in enumerate(sorted(wanted.items())):
            relation = self._relations[key]
            if not relation.text_file:
                continue
            # other sources over the same file are counted from this table too (a claim's volume)
            sharing = [v for v in self._views.values() if v.relation is relation]
            needed = set(names).union(*(v.referenced([]) for v in sharing))
            kept = tuple(c for c in relation.columns if c in needed) or (next(iter(relation.columns)),)
            table = f"loaded_{number}"
            owner = sharing[0].name
            select = Query(exp.select(*(column(c) for c in kept)).from_(relation.select.copy().subquery("text_file")))
            if run:
                self.engine.keep(table, select, f"load {key}", owner)
            loaded = Relation(key, exp.select("*").from_(table), relation.columns, relation.files)
            self._relations[key] = loaded
            for view in self._views.values():
                if view.relation is relation:
                    view.relation = loaded
            done.append((key, kept, select))
        return done

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

"""What every engine gives: statements run over one session, and tables that last as long as it does.

A statement is a tree in our own SQL (DuckDB's dialect). Each engine is one file in ``engines/``: its Dialect, by which the tree
is translated or refused, and its driver. Data stays in the engine; what comes back grows with what is asked, never with users.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from sqlglot import exp

from payoff.errors import ConnectionFailed, DataError
from payoff.spec.nouns import ClickHouseConnection, Connection, DuckDBConnection, PostgresConnection, SparkConnection
from payoff.warehouse.dialect import Dialect
from payoff.warehouse.query import Query, keeping, parsed_query

if TYPE_CHECKING:
    from typing import Self

    import pyarrow as pa

    from payoff.warehouse.statements import Step

Progress = Callable[[str, float | None], None]
"""Told the step's name and the share done (0 to 1, or None where the engine cannot say)."""


class Engine(ABC):
    """A session over the connections of a project that a run reads. Use as a context manager.

    ``ready`` is told of every statement before it runs, so that the tables it names can be made first. What is named
    ``what`` is the step, for progress and errors; ``source`` the source that an error is told of. Statements raise DataError (the
    data is not what its definition says), CannotRun (the engine has no form of it) and ConnectionFailed.
    """

    dialect: ClassVar[Dialect]
    version: str = ""
    """Of the engine's server or library, where it is not told as a package's."""
    _progress: Progress | None = None
    _telling: tuple[str, float] | None = None
    ready: Callable[[exp.Query], None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---------------------------------------------------------------- statements

    def text(self, query: Query, what: str = "a statement") -> str:
        """The statement as it is sent."""
        return query.render() if self.dialect.native else self._written(query, what)[1]

    def _written(self, query: Query, what: str) -> tuple[Query, str]:
        """A statement in the engine's own SQL, with its text: it is checked, sent and told, and writing it takes longer than many a statement."""
        query = self.resolved(query)
        key = query.render()
        if key not in self._translations:
            tree = self.dialect.translate(query.tree, what)
            self._translations[key] = Query(tree, self.dialect.writer), self.dialect.write(tree, what)
        return self._translations[key]

    def check(self, steps: Iterable[Step]) -> None:
        """That every statement of a plan has a form here. Raises CannotRun; nothing is sent."""
        if not self.dialect.native:
            for step in steps:
                self.text(step.query, step.name)

    def as_sent(self, step: Step) -> Step:
        """A step as it was executed here."""
        return step if self.dialect.native else replace(step, query=self._sent_as(step.query, step.name))

    def sent(self, text: str, what: str) -> str:
        """The text of a statement in our own SQL as it was executed here."""
        if self.dialect.native:
            return text
        query, table = parsed_query(text)
        out = self._sent_as(query, what)
        return out.render() if table is None else keeping(table, out)

    def _sent_as(self, query: Query, what: str) -> Query:
        """As it was sent, whose tables may be gone by now; as it would be, where it was not."""
        return self._sent.get(query.render()) or self._written(query, what)[0]

    def fetch(self, query: Query, what: str, source: str | None = None) -> pa.Table:
        """Run a SELECT."""
        self._before(query, what)
        return self._select(self.text(query, what), what, source)

    def row(self, query: Query, what: str, source: str | None = None) -> dict[str, Any]:
        """The single row of a SELECT that always has one."""
        rows: list[dict[str, Any]] = self.fetch(query, what, source).to_pylist()
        return rows[0]

    def keep(self, table: str, query: Query, what: str, source: str | None = None) -> None:
        """Keep the rows of a SELECT in a temporary table of this session."""
        self._before(query, what)
        self._create(table, query, what, source)

    def append(self, table: str, query: Query, what: str, source: str | None = None) -> None:
        """Add the rows of a SELECT to a table that ``keep`` made of the same columns."""
        self._before(query, what)
        self._insert(table, query, what, source)

    def _before(self, query: Query, what: str) -> None:
        if self.ready is not None:
            self.ready(query.tree)
        if not self.dialect.native:
            self._sent[query.render()] = self._written(query, what)[0]

    def tell(self, what: str, source: str | None, share: float | None) -> None:
        """Say how far a statement is: its step, how many rows of which source it goes through, and how fast."""
        if self._progress is None:
            return
        if self._telling is None or self._telling[0] != what or share is None:
            self._telling = (what, time.monotonic())
        rows = self.rows.get(source or "")
        if rows:
            what += f" · {rows:,} rows of {source}"
            took = time.monotonic() - self._telling[1]
            if share and took > 0.5:
                what += f" · {_brief(share * rows / took)} rows/s"
        self._progress(what, share)

    # ---------------------------------------------------------------- what an engine's file gives

    @cached_property
    def _translations(self) -> dict[str, tuple[Query, str]]:
        return {}

    @cached_property
    def _sent(self) -> dict[str, Query]:
        return {}

    @cached_property
    def rows(self) -> dict[str, int]:
        """Source -> its rows, once they were counted; for progress alone."""
        return {}

    @abstractmethod
    def _select(self, text: str, what: str, source: str | None) -> pa.Table: ...

    @abstractmethod
    def _create(self, table: str, query: Query, what: str, source: str | None) -> None: ...

    @abstractmethod
    def _insert(self, table: str, query: Query, what: str, source: str | None) -> None: ...

    @abstractmethod
    def drop(self, table: str) -> None:
        """Forget a table that ``keep`` made, if there is one."""

    @abstractmethod
    def types(self, query: Query, source: str | None = None) -> dict[str, str]:
        """Column name -> type of a SELECT in DuckDB's names (VARCHAR, BIGINT, TIMESTAMP WITH TIME ZONE), without running it."""

    @abstractmethod
    def place(self, connection: str, parts: Sequence[str]) -> exp.Table:
        """The table that ``parts`` (its name, or schema and name) mean at a connection."""

    def resolved(self, query: Query) -> Query:
        """A statement of ours, before it is translated, with what the engine knows of the tables that were kept."""
        return query

    def settled(self, select: exp.Query, columns: Mapping[str, str]) -> exp.Query:
        """A source's relation as statements read it; ``columns`` are its own, with their types. The same columns come out."""
        return select

    def files(self, paths: Sequence[str], kind: str, source: str) -> exp.Query:
        """A SELECT of all columns of files of one ``kind`` (parquet, csv, json, json-array)."""
        raise DataError(
            f"is a file, which {self.dialect.name} is not given to read; load it into a table there, or read it with duckdb",
            source=source,
        )

    def size(self, place: exp.Table | Sequence[str], columns: Sequence[str]) -> int | None:
        """Bytes that these columns of a table (or of Parquet files) take where they are stored, if known without reading them."""
        return None

    def memory(self) -> int:
        """The bytes that the engine may use, beyond which long passes are split."""
        return 1 << 62

    def threads(self) -> int:
        """How many threads what is worked out beside the engine may use."""
        return 1

    def stamp(self, connection: str) -> str:
        """What tells that a connection's data may have changed, where the engine knows without reading; else empty."""
        return ""

    @abstractmethod
    def close(self) -> None: ...


def _brief(rate: float) -> str:
    """A rate in three digits at most: 830, 12k, 4.1M."""
    for unit in ("", "k", "M", "G"):
        if rate < 999.5 or unit == "G":
            break
        rate /= 1000
    return f"{rate:.1f}{unit}" if unit and rate < 9.95 else f"{rate:.0f}{unit}"


def open_engine(
    connections: Mapping[str, Connection], root: Path, files: Iterable[str] = (), progress: Progress | None = None
) -> Engine:
    """The engine that these connections are of, opened. One run reads one engine.

    ``files`` are the absolute paths that ``file:`` sources resolved to. Raises ConnectionFailed where it cannot be opened or several
    are meant, MissingExtra where its driver is not installed.
    """
    kinds = sorted({c.engine for c in connections.values()})
    if len(kinds) > 1:
        raise ConnectionFailed(
            f"what is read together is on several engines ({' and '.join(kinds)}); one run reads one: copy the smaller"
            " source to where the larger one is, or ask for one at a time"
        )
    embedded = {name: c for name, c in connections.items() if isinstance(c, DuckDBConnection)}
    if len(embedded) == len(connections):
        from payoff.warehouse.engines.duckdb import DuckDBEngine

        return DuckDBEngine(embedded, root, files, progress)
    if len(connections) > 1:
        raise ConnectionFailed(
            f"what is read together is on several {kinds[0]} connections ({', '.join(sorted(connections))}); one run reads one"
        )
    ((name, connection),) = connections.items()
    if isinstance(connection, PostgresConnection):
        from payoff.warehouse.engines.postgres import PostgresEngine

        return PostgresEngine(name, connection, root, progress)
    if isinstance(connection, ClickHouseConnection):
        from payoff.warehouse.engines.clickhouse import ClickHouseEngine

        return ClickHouseEngine(name, connection, root, progress)
    assert isinstance(connection, SparkConnection)  # SQLite keeps ledgers, and is named by no source
    from payoff.warehouse.engines.spark import SparkEngine

    return SparkEngine(name, connection, root, progress)

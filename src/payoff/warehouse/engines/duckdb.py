"""The embedded engine: DuckDB, opened read-only and locked down before the first query.

Databases are attached READ_ONLY to an in-memory session; only the files that sources name may be read; nothing may be
written but temporary tables, which spill to a private folder. Once locked, no setting can be changed back.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa
from sqlglot import exp

from payoff.errors import ConnectionFailed, DataError
from payoff.spec.nouns import DuckDBConnection
from payoff.warehouse.dialect import Dialect
from payoff.warehouse.engine import Engine, Progress
from payoff.warehouse.query import Query, keeping, sql

T = TypeVar("T")
_BATCH = 131_072
"""Rows of a batch that is read outside SQL."""


def catalog_of(connection: str) -> str:
    """The name a connection's database goes by in SQL; its own may be reserved there, as ``main`` is."""
    return f"{connection}_db"


def quarter_of_memory() -> str:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{max(pages // 4 // 2**20, 256)}MiB"


class DuckDBEngine(Engine):
    """A session over every DuckDB connection of a project.

    ``files`` are the absolute paths that ``file:`` sources resolved to. Raises ConnectionFailed when a database cannot be
    opened. The spill folder goes when it is closed.
    """

    dialect = Dialect("duckdb", "duckdb", native=True)

    def __init__(
        self,
        connections: Mapping[str, DuckDBConnection],
        root: Path,
        files: Iterable[str] = (),
        progress: Progress | None = None,
    ) -> None:
        self._progress = progress
        settings = next(iter(connections.values()), None)
        spill_root = root / settings.temp_directory if settings and settings.temp_directory else None
        try:
            if spill_root is not None:
                spill_root.mkdir(parents=True, exist_ok=True)
            self._spill = tempfile.mkdtemp(prefix="payoff-spill-", dir=spill_root)
        except OSError as error:
            raise ConnectionFailed(f"no folder to spill to: {error}") from error
        try:
            self._open(connections, root, files, settings)
        except BaseException:
            shutil.rmtree(self._spill, ignore_errors=True)
            raise

    def _open(
        self,
        connections: Mapping[str, DuckDBConnection],
        root: Path,
        files: Iterable[str],
        settings: DuckDBConnection | None,
    ) -> None:
        self._shown: set[str] = set()
        self._connection = duckdb.connect(":memory:")
        for name, declared in connections.items():
            if declared.path is None:
                continue
            path = (root / declared.path).resolve()
            if not path.is_file():
                raise ConnectionFailed(f"connection '{name}': there is no database at {path}")
            literal, alias = exp.Literal.string(str(path)), exp.to_identifier(catalog_of(name), quoted=True)
            try:
                self._connection.execute(f"ATTACH {literal.sql('duckdb')} AS {alias.sql('duckdb')} (READ_ONLY)")
            except duckdb.Error as error:
                raise ConnectionFailed(f"connection '{name}': {path} cannot be opened: {_plain(error)}") from error
        attached = [name for name, declared in connections.items() if declared.path is not None]
        if len(attached) == 1:  # a view's unqualified names are looked up as in the database itself
            alias = exp.to_identifier(catalog_of(attached[0]), quoted=True)
            self._connection.execute(f"USE {alias.sql('duckdb')}")
        limit = settings.memory_limit if settings and settings.memory_limit else quarter_of_memory()
        options: dict[str, object] = {
            "memory_limit": limit.replace(" ", ""),
            "temp_directory": self._spill,
            "TimeZone": "UTC",
            "preserve_insertion_order": False,
            "enable_progress_bar": True,
            "enable_progress_bar_print": False,
            "allowed_paths": sorted(set(files)),
            "enable_external_access": False,
            "lock_configuration": True,
        }
        if settings and settings.threads:
            options = {"threads": settings.threads, **options}
        self._options = options
        _set(self._connection, options)

    def close(self) -> None:
        self._connection.close()
        shutil.rmtree(self._spill, ignore_errors=True)

    def memory(self) -> int:
        """The bytes that the engine may use."""
        row = self._connection.execute("SELECT parse_formatted_bytes(current_setting('memory_limit'))").fetchall()[0]
        return int(row[0])

    # ---------------------------------------------------------------- running

    def _select(self, text: str, what: str, source: str | None) -> pa.Table:
        return self._watched(lambda: self._connection.sql(text).to_arrow_table(), what, source)

    def _create(self, table: str, query: Query, what: str, source: str | None) -> None:
        self._run(keeping(table, query), what, source)

    def _insert(self, table: str, query: Query, what: str, source: str | None) -> None:
        into = exp.to_identifier(table, quoted=True).sql("duckdb")
        self._run(f"INSERT INTO {into} {query.render()}", what, source)

    def threads(self) -> int:
        """How many threads the engine may use."""
        return int(self._connection.execute("SELECT current_setting('threads')").fetchall()[0][0])

    def read_apart(
        self,
        queries: Sequence[Query],
        takers: Sequence[Callable[[pa.RecordBatch], None]],
        what: str,
        source: str | None = None,
        rows: int | None = None,
    ) -> int:
        """Give the rows of each SELECT over files alone to its taker, batch by batch, in the order in which the files are named and
        hold them. Returns how many there were; ``rows`` is what is expected, for progress.

        Each has a thread and a session of one thread of its own, since this session keeps no order, and its share of the memory.
        What a taker raises stops all of them, and is raised here.
        """
        stop = threading.Event()
        failed: list[BaseException] = []
        read = [0] * len(queries)
        limit = f"{max(self.memory() // len(queries) // 1024, 1)}KiB"
        with ExitStack() as opened:
            sessions = []
            for n in range(len(queries)):
                sessions.append(opened.enter_context(duckdb.connect(":memory:")))
                own = {"threads": 1, "memory_limit": limit, "temp_directory": os.path.join(self._spill, f"apart-{n}")}
                _set(sessions[-1], {"threads": 1, **self._options, **own, "preserve_insertion_order": True})

            def run(n: int) -> None:
                try:
                    for batch in sessions[n].sql(queries[n].render()).to_arrow_reader(_BATCH):
                        if stop.is_set():
                            return
                        takers[n](batch)
                        read[n] += batch.num_rows
                except BaseException as error:  # noqa: BLE001 - it is raised by who waits
                    failed.append(error)
                    stop.set()

            running = [threading.Thread(target=run, args=(n,), name=f"payoff reads {n}") for n in range(len(queries))]
            try:
                self.tell(what, source, None)
                for thread in running:
                    thread.start()
                for thread in running:
                    while thread.is_alive() and not stop.is_set():
                        thread.join(0.2)  # a wait without an end does not hear Ctrl-C everywhere
                        if rows:
                            self.tell(what, source, min(sum(read) / rows, 1.0))
            finally:
                stop.set()
                while any(thread.is_alive() for thread in running):
                    for session in sessions:
                        session.interrupt()
                    for thread in running:
                        if thread.ident is not None:
                            thread.join(0.02)
        if failed:
            if isinstance(failed[0], duckdb.Error | pa.ArrowException | OSError):
                raise _translated(failed[0], what, source) from failed[0]
            raise failed[0]
        return sum(read)

    def show(self, table: str, rows: pa.Table) -> None:
        """Let statements read an Arrow table under a name, where it lies."""
        self._shown.add(table)
        self._connection.register(table, rows)

    def drop(self, table: str) -> None:
        if table in self._shown:
            self._shown.remove(table)
            self._connection.unregister(table)
            return
        self._connection.execute(f"DROP TABLE IF EXISTS {exp.to_identifier(table, quoted=True).sql('duckdb')}")

    def types(self, query: Query, source: str | None = None) -> dict[str, str]:
        rows = self._run(f"DESCRIBE {query.render()}", "look at columns", source).fetchall()
        return {str(row[0]): str(row[1]) for row in rows}

    def place(self, connection: str, parts: Sequence[str]) -> exp.Table:
        return exp.Table(
            this=exp.to_identifier(parts[-1], quoted=True),
            db=exp.to_identifier(parts[0] if len(parts) == 2 else "main", quoted=True),
            catalog=exp.to_identifier(catalog_of(connection), quoted=True),
        )

    def files(self, paths: Sequence[str], kind: str, source: str) -> exp.Query:
        listed = exp.Array(expressions=[exp.Literal.string(path) for path in paths])
        template = {
            "parquet": "SELECT * FROM read_parquet($files, union_by_name = true)",
            # the whole file is sniffed: a word in the last row must not be met half-way through a scan
            "csv": "SELECT * FROM read_csv($files, sample_size = -1, union_by_name = true)",
            "json": "SELECT * FROM read_json($files, sample_size = -1, union_by_name = true, format = 'newline_delimited')",
            "json-array": "SELECT * FROM read_json($files, sample_size = -1, union_by_name = true, format = 'array')",
        }[kind]
        return sql(template, files=listed).tree

    def size(self, place: exp.Table | Sequence[str], columns: Sequence[str]) -> int | None:
        """Of Parquet files from their footers. Of a table the blocks that its column segments are in: a block may be shared."""
        named = exp.Tuple(expressions=[exp.Literal.string(c) for c in columns])
        if isinstance(place, exp.Table):
            query = sql(
                """
                SELECT (count(DISTINCT block_id) + coalesce(sum(len(additional_block_ids)), 0)) * 262144 AS size
                FROM pragma_storage_info($place) WHERE column_name IN $named AND block_id >= 0
                """,
                place=exp.Literal.string(place.sql("duckdb")),
                named=named,
            )
        else:
            query = sql(
                """
                SELECT CAST(sum(total_compressed_size) AS BIGINT) AS size FROM parquet_metadata($files)
                WHERE split_part(path_in_schema, ', ', 1) IN $named
                """,
                files=exp.Array(expressions=[exp.Literal.string(path) for path in place]),
                named=named,
            )
        found = self.row(query, "look at sizes")["size"]
        return None if found is None else int(found)

    def _run(self, text: str, what: str, source: str | None) -> duckdb.DuckDBPyConnection:
        return self._watched(lambda: self._connection.execute(text), what, source)

    def _watched(self, run: Callable[[], T], what: str, source: str | None) -> T:
        """Run in a thread of its own: DuckDB does not look for Ctrl-C, so this one stays free to hear it, and tells progress."""
        with ThreadPoolExecutor(max_workers=1) as worker:
            running = worker.submit(run)
            try:
                self.tell(what, source, None)
                while wait([running], timeout=0.2).not_done:
                    if self._progress is not None:
                        share = self._connection.query_progress()
                        self.tell(what, source, share / 100 if share >= 0 else None)
                return running.result()
            except duckdb.Error as error:
                raise _translated(error, what, source) from error
            except BaseException:
                while wait([running], timeout=0.1).not_done:  # it may not have begun when it is first told to stop
                    self._connection.interrupt()
                raise


def _set(session: duckdb.DuckDBPyConnection, options: Mapping[str, object]) -> None:
    for option, value in options.items():
        text = exp.convert(value).sql("duckdb")
        session.execute(f"SET {option} = {text}")


def _plain(error: Exception) -> str:
    text = str(error).split("\n\n")[0].split("\nLINE ")[0]
    return " ".join(text.split())


def _translated(error: Exception, what: str, source: str | None) -> DataError | ConnectionFailed:
    reason = _plain(error)
    full = ("No space left", "File too large", "max_temp_directory_size", "Could not write")
    if isinstance(error, duckdb.OutOfMemoryException) or any(sign in reason for sign in full):
        return ConnectionFailed(
            f"{what}: out of memory or of room to spill ({reason}). Raise memory_limit or point temp_directory at a"
            " larger disk in the project's connection"
        )
    if isinstance(error, duckdb.CatalogException):
        return DataError(f"{what}: {reason}", source=source)
    if isinstance(error, duckdb.IOException):
        return ConnectionFailed(f"{f'source {source!r}: ' if source else ''}{what}: cannot be read: {reason}")
    return DataError(f"{what}: {reason}", source=source)

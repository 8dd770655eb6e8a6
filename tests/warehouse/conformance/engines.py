"""The engines that the suite is executed on: each is started once, given the tables, and says how a project connects.

One that cannot be started here says why (``NotHere``): its tests are skipped, loudly, or fail where ``CI`` is set.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

Tables = Mapping[str, pa.Table]


class NotHere(Exception):
    """An engine cannot be started on this machine; the argument says why."""


@dataclass(frozen=True)
class Place:
    """Where the tables are. ``connect`` gives the connection as payoff.yml has it, good for one session at a time.

    ``files``: the tables are Parquet files in ``folder``, and sources name those. ``prepared``: copies of them are made first.
    ``process`` is that of a server that was started for it.
    """

    folder: Path
    connect: Callable[[], dict[str, Any] | None]
    files: bool = False
    prepared: bool = False
    process: int | None = None


Start = Callable[[Path, Tables], AbstractContextManager[Place]]


def _parquet(folder: Path, tables: Tables) -> Path:
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def _in_duckdb(folder: Path, tables: Tables) -> Path:
    path = folder / "data.duckdb"
    with duckdb.connect(str(path)) as connection:
        for name, table in tables.items():
            connection.register("given", table)
            connection.execute(f'CREATE TABLE "{name}" AS SELECT * FROM given')
            connection.unregister("given")
    return path


@contextmanager
def on_duckdb(folder: Path, tables: Tables) -> Iterator[Place]:
    connection = {"engine": "duckdb", "path": str(_in_duckdb(folder, tables)), "threads": 1}
    yield Place(folder, lambda: connection)


@contextmanager
def on_files(folder: Path, tables: Tables) -> Iterator[Place]:
    """The same rows as Parquet, in another order, read by several threads: sums are added in other orders."""
    turned = {
        name: table.take(pa.array(range(table.num_rows - 1, -1, -1), pa.int64())) for name, table in tables.items()
    }
    # what is not a file (the SELECT of a sql: source) is read from the database beside them
    connection = {"engine": "duckdb", "path": str(_in_duckdb(folder, turned)), "threads": 4}
    yield Place(_parquet(folder, turned), lambda: connection, files=True)


@contextmanager
def on_copies(folder: Path, tables: Tables) -> Iterator[Place]:
    """The same files, read from prepared copies: in one walk where that is made, and with what runs remember."""
    with on_files(folder, tables) as place:
        yield replace(place, prepared=True)


# ---------------------------------------------------------------- ClickHouse, in process

_CLICKHOUSE = {
    pa.string(): "String",
    pa.int32(): "Int32",
    pa.int64(): "Int64",
    pa.float64(): "Float64",
    pa.bool_(): "Bool",
    pa.date32(): "Date32",
    pa.timestamp("us"): "DateTime64(6)",
    pa.timestamp("us", tz="UTC"): "DateTime64(6, 'UTC')",
}
_LOAD_CHDB = """
import sys
from chdb import session
loading = session.Session(sys.argv[1])
for statement in sys.stdin.read().split(";;"):
    loading.query(statement)
loading.close()
"""


@contextmanager
def on_clickhouse(folder: Path, tables: Tables) -> Iterator[Place]:
    try:
        import chdb  # noqa: F401
    except ImportError as error:
        raise NotHere(f"chdb is not installed ({error})") from None
    statements = []
    for name, table in tables.items():
        columns = ", ".join(
            f"`{field.name}` Nullable({_CLICKHOUSE.get(field.type) or _decimal(field.type)})" for field in table.schema
        )
        path = str(folder / f"{name}.parquet").replace("'", "\\'")
        statements.append(f"CREATE TABLE `{name}` ({columns}) ENGINE = MergeTree ORDER BY tuple()")
        statements.append(f"INSERT INTO `{name}` SELECT * FROM file('{path}', Parquet)")
    _parquet(folder, tables)
    store = folder / "store"
    # by a process of its own: one process has one session
    loaded = subprocess.run(
        [sys.executable, "-c", _LOAD_CHDB, str(store)],
        input=";;".join(statements),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    yield Place(folder, lambda: {"engine": "clickhouse", "path": str(store)})


def _decimal(kind: pa.DataType) -> str:
    assert pa.types.is_decimal(kind), kind
    return f"Decimal({kind.precision}, {kind.scale})"


# ---------------------------------------------------------------- PostgreSQL, a cluster of its own

_POSTGRES = {
    pa.string(): "text",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.float64(): "double precision",
    pa.bool_(): "boolean",
    pa.date32(): "date",
    pa.timestamp("us"): "timestamp",
    pa.timestamp("us", tz="UTC"): "timestamptz",
}


def _postgres_binary(name: str) -> str:
    found = shutil.which(name)
    packaged = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: path.parts[-3].zfill(3))
    if found is None and not packaged:
        raise NotHere(f"PostgreSQL is not installed: there is no {name} (on Debian and Ubuntu: apt install postgresql)")
    return str(packaged[-1]) if packaged else str(found)


def _as_nobody(folder: Path) -> list[str]:
    """PostgreSQL refuses to be run by root: what runs it as a user without rights, who then owns the folder."""
    if os.getuid() != 0:
        return []
    runner = shutil.which("setpriv")
    if runner is None:
        raise NotHere("PostgreSQL does not run as root, and there is no setpriv to run it as somebody else")
    shutil.chown(folder, "nobody", "nogroup")
    return [runner, "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=INT"]


@contextmanager
def on_postgres(folder: Path, tables: Tables) -> Iterator[Place]:
    try:
        import psycopg
    except ImportError as error:
        raise NotHere(f"psycopg is not installed ({error})") from None
    initdb, server = _postgres_binary("initdb"), _postgres_binary("postgres")
    home = Path(tempfile.mkdtemp(prefix="payoff-pg-", dir="/tmp"))  # short, as the path of a socket must be
    running: subprocess.Popen[bytes] | None = None
    try:
        run_as = _as_nobody(home)
        data = home / "data"
        made = subprocess.run(
            [*run_as, initdb, "-D", str(data), "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=home,
        )
        if made.returncode != 0:
            raise NotHere(f"initdb failed: {(made.stderr or made.stdout).strip().splitlines()[-1]}")
        settings = {"listen_addresses": "", "unix_socket_directories": str(home), "fsync": "off", "jit": "off"}
        with open(home / "log", "wb") as log:
            running = subprocess.Popen(
                [*run_as, server, "-D", str(data), *(f"--{key}={value}" for key, value in settings.items())],
                stdout=log,
                stderr=log,
                cwd=home,
            )
        url = f"postgresql://tester@/postgres?host={home}"
        deadline = time.monotonic() + 60
        while True:
            try:
                connection = psycopg.connect(url)
                break
            except psycopg.OperationalError as error:
                if running.poll() is not None or time.monotonic() > deadline:
                    raise NotHere(f"PostgreSQL did not start: {str(error).strip()}") from None
                time.sleep(0.05)
        with connection:
            for name, table in tables.items():
                columns = ", ".join(
                    f'"{field.name}" {_POSTGRES.get(field.type) or _decimal(field.type)}' for field in table.schema
                )
                connection.execute(f'CREATE TABLE "{name}" ({columns})')
                with connection.cursor().copy(f'COPY "{name}" FROM STDIN') as copy:
                    for row in table.to_pylist():
                        copy.write_row(list(row.values()))
        connection.close()
        yield Place(folder, lambda: {"engine": "postgres", "url": url})
    finally:
        if running is not None:
            running.send_signal(signal.SIGINT)
            running.wait(timeout=30)
        shutil.rmtree(home, ignore_errors=True)


# ---------------------------------------------------------------- Spark, by Spark Connect, on Sail


_SAIL = """
import os, sys
os.environ["SAIL_EXECUTION__CHECKPOINT__PATH"] = sys.argv[1]  # where it keeps what a run keeps
from pysail.spark import SparkConnectServer
server = SparkConnectServer("127.0.0.1", 0)
server.start(background=True)
print(server.listening_address[1], flush=True)
sys.stdin.read()  # until whoever started it is gone
os._exit(0)
"""


@contextmanager
def on_spark(folder: Path, tables: Tables) -> Iterator[Place]:
    main = sys.modules["__main__"]
    if not hasattr(main, "__file__"):  # in a worker of xdist, which its client takes for its own tests, and ends
        main.__file__ = __file__
    try:
        with warnings.catch_warnings():  # of pandas, and of its own old ways
            warnings.simplefilter("ignore")
            import pyspark.sql.connect  # noqa: F401
    except ImportError as error:
        raise NotHere(f"the client of Spark Connect is not installed ({error})") from None
    if find_spec("pysail") is None:
        raise NotHere("Sail (pysail) is not installed")
    _parquet(folder, tables)
    with open(folder / "sail.log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", _SAIL, (folder / "kept").as_uri()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert server.stdin is not None
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    assert port, (folder / "sail.log").read_text()

    def connect() -> dict[str, Any]:
        """A session that has the tables: Sail's own tables live as long as their session."""
        from pyspark.sql import SparkSession

        url = f"sc://127.0.0.1:{port}/;session_id={uuid.uuid4()}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = SparkSession.builder.remote(url).create()
            for name in tables:
                path = str(folder / f"{name}.parquet").replace("'", "\\'")
                session.sql(f"CREATE TABLE `{name}` USING parquet LOCATION '{path}'").collect()
            session.client.close()
        return {"engine": "spark", "url": url}

    try:
        yield Place(folder, connect, process=server.pid)
    finally:
        server.stdin.close()
        server.wait(timeout=30)
        server.stdout.close()


ENGINES: dict[str, Start] = {
    "duckdb-files": on_files,
    "duckdb-copies": on_copies,
    "clickhouse": on_clickhouse,
    "postgres": on_postgres,
    "spark": on_spark,
}
"""What is held against ``REFERENCE``: the same engine over other storage, then the others."""
REFERENCE = on_duckdb

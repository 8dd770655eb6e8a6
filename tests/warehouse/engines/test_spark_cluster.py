"""A Spark cluster of processes (a master, two workers) that loses a worker in the middle of a run gives DuckDB's figures.

Run from an environment that has Spark itself: its Python is PAYOFF_SPARK_PYTHON, or that of .venv-spark (make test-slow).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from payoff.run import Project
from tests.warehouse.conformance.answers import differences

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
SECONDS_TO_START = 90
TABLES = ("assigned", "events")
NOW = datetime(2026, 6, 1, tzinfo=UTC)

PROJECT = """
version: 1
project: cluster
connections: {main: {CONNECTION}}
entities: {user: {id: user_id}}
defaults: {entity: user, window: 14d}
sources:
  assigned: {SOURCE_assigned, time: at}
  events:   {SOURCE_events, time: at}
metrics:
  revenue: {kind: sum, from: events, column: amount, cap: {percentile: 99}}
  orders:  {kind: count, from: events, where: "kind = 'order'"}
  bought:  {kind: conversion, to: {source: events, where: "kind = 'order'"}}
experiments:
  recs: {assignment: {source: assigned, variant: arm, control: a}, primary: [revenue], secondary: [orders, bought], adjust: cuped}
"""
"""Its tables are kept and read again: first exposures, numbered units, their values."""

RUN = """
import json, sys, warnings
warnings.simplefilter("ignore")
from datetime import UTC, datetime
from pathlib import Path
from pyspark.sql import SparkSession
from payoff.run import Project
from payoff.warehouse.engines import spark

folder, url, options, tables = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
session = SparkSession.builder.master(url).appName("payoff")
for key, value in options.items():
    session = session.config(key, value)
session = session.getOrCreate()
for name, path in tables.items():
    session.sql(f"CREATE TABLE {name} USING parquet LOCATION '{path}'")

keep = spark.SparkEngine._create
def told(self, table, query, what, source):  # whoever watches may kill a worker now
    keep(self, table, query, what, source)
    print(json.dumps({"kept": table}), flush=True)
    sys.stdin.readline()
spark.SparkEngine._create = told
run = Project.load(folder).run(record=False, now=datetime(2026, 6, 1, tzinfo=UTC))
print(json.dumps({"run": run.to_dict()}), flush=True)
"""


ROUNDS = """
import json, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from payoff.spec.nouns import SparkConnection
from payoff.warehouse.engines.spark import SparkEngine
from payoff.warehouse.query import sql

options = {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "2"}
plans = []
with SparkEngine("main", SparkConnection(engine="spark", url="local[1]", options=options), Path.cwd()) as engine:
    engine.keep("ids", sql("SELECT 1 AS id UNION ALL SELECT 2"), "ids")
    for _ in range(8):
        engine.keep("next", sql("SELECT a.id FROM ids AS a JOIN ids AS b ON a.id = b.id"), "round")
        engine.keep("ids", sql("SELECT id FROM next"), "round")
        plans.append(len(engine._spark.table("ids")._jdf.queryExecution().analyzed().toString()))
    rows = engine.fetch(sql("SELECT id FROM ids ORDER BY id"), "ids").to_pylist()
print(json.dumps({"plans": plans, "rows": rows}))
"""


def spark_python() -> Path:
    named = os.environ.get("PAYOFF_SPARK_PYTHON")
    found = Path(named) if named else ROOT / ".venv-spark" / "bin" / "python"
    if not found.exists():
        why = f"a Spark cluster was not executed: there is no {found} (make .venv-spark/.spark, or PAYOFF_SPARK_PYTHON)"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    return found


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    def __init__(self, python: Path, folder: Path) -> None:
        home = subprocess.run(
            [python, "-c", "import pyspark; print(pyspark.__path__[0])"], capture_output=True, text=True, check=True
        ).stdout.strip()
        self.env = {**os.environ, "SPARK_HOME": home, "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "512m"}
        self._class = [f"{home}/bin/spark-class"]
        self._folder, self._running = folder, list[subprocess.Popen[bytes]]()
        self.port, self._page = free_port(), free_port()
        self.url = f"spark://127.0.0.1:{self.port}"
        self._start(
            "master", "Master", "--host", "127.0.0.1", "--port", str(self.port), "--webui-port", str(self._page)
        )
        self._wait("master", "New state: ALIVE")
        self.workers = [self._worker(n) for n in (1, 2)]
        for n in (1, 2):
            self._wait(f"worker{n}", "Successfully registered")

    def _worker(self, n: int) -> subprocess.Popen[bytes]:
        work = str(self._folder / f"work{n}")
        options = ["--host", "127.0.0.1", "--cores", "1", "--memory", "1g", "--webui-port", "0", "--work-dir", work]
        return self._start(f"worker{n}", "worker.Worker", *options, self.url)

    def _start(self, name: str, kind: str, *options: str) -> subprocess.Popen[bytes]:
        kind = kind if "." in kind else f"master.{kind}"
        with open(self._folder / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                [*self._class, f"org.apache.spark.deploy.{kind}", *options],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a worker's executors go with it
            )
        self._running.append(process)
        return process

    def _wait(self, name: str, words: str) -> None:
        log, until = self._folder / f"{name}.log", time.monotonic() + SECONDS_TO_START
        while words not in log.read_text(errors="replace"):
            assert time.monotonic() < until, log.read_text(errors="replace")[-3000:]
            time.sleep(0.2)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """At once, with the executors that it started."""
        with open(f"/proc/{process.pid}/stat") as stat:
            assert stat.read()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def executors(self, n: int) -> list[int]:
        """Processes whose working directory is that of worker ``n``."""
        work, found = str(self._folder / f"work{n}"), []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.readlink(entry / "cwd").startswith(work):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for n in (1, 2):
            for pid in self.executors(n):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def cluster_of(python: Path, folder: Path) -> Iterator[Cluster]:
    folder.mkdir()
    cluster = Cluster(python, folder)
    try:
        yield cluster
    finally:
        cluster.close()


def rows(folder: Path) -> None:
    rng, n, m = np.random.default_rng(20_260_501), 2_000, 20_000
    start = np.datetime64("2026-03-01T00:00:00", "us")
    ids = np.array([f"u{i:05d}" for i in range(n)])
    assigned = {
        "user_id": ids,
        "at": start + rng.integers(0, 20 * 86_400_000_000, n).astype("timedelta64[us]"),
        "arm": rng.choice(["a", "b"], n),
        "other": rng.choice(["a", "b", "c"], n),
    }
    events = {
        "user_id": rng.choice(ids, m),
        "at": start + rng.integers(-30 * 86_400_000_000, 40 * 86_400_000_000, m).astype("timedelta64[us]"),
        "kind": rng.choice(["view", "order"], m, p=[0.7, 0.3]),
        "amount": np.round(rng.lognormal(2, 1, m), 2),
    }
    for name, columns in (("assigned", assigned), ("events", events)):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")


def project(folder: Path, name: str, connection: str, data: Path) -> Path:
    (folder / name).mkdir()
    text = PROJECT.replace("CONNECTION", connection)
    for table in TABLES:
        where = f"table: {table}" if "spark" in connection else f"file: '{data}/{table}.parquet'"
        text = text.replace(f"SOURCE_{table}", where)
    (folder / name / "payoff.yml").write_text(text)
    return folder / name


def test_a_worker_that_dies_changes_no_figure(tmp_path: Path) -> None:
    python = spark_python()
    data = tmp_path / "data"
    data.mkdir()
    rows(data)
    here = Project.load(project(tmp_path, "here", "engine: duckdb", data))
    expected = json.loads(json.dumps(here.run(record=False, now=NOW).to_dict()))
    assert len(expected["results"]) == 1

    with cluster_of(python, tmp_path / "cluster") as cluster:
        options = {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.memory": "1g",
            "spark.executor.memory": "600m",
            "spark.executor.cores": "1",
            "spark.sql.shuffle.partitions": "2",
            "spark.ui.enabled": "false",
            "spark.network.timeout": "60s",
        }
        options["spark.sql.warehouse.dir"] = str(tmp_path / "warehouse")
        folder = project(tmp_path, "there", f"engine: spark, url: '{cluster.url}'", data)
        tables = {table: f"{data}/{table}.parquet" for table in TABLES}
        log = open(tmp_path / "run.log", "wb")  # noqa: SIM115 - closed below, with the process
        running = subprocess.Popen(
            [python, "-c", RUN, folder, *map(json.dumps, (cluster.url, options, tables))],
            cwd=tmp_path,
            env={**cluster.env, "PYTHONPATH": str(ROOT / "src"), "SPARK_LOCAL_IP": "127.0.0.1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        found, kept, killed = None, [], False
        try:
            assert running.stdin is not None
            assert running.stdout is not None
            for line in running.stdout:
                if not line.startswith("{"):
                    continue
                told = json.loads(line)
                if "run" in told:
                    found = told["run"]
                    break
                kept.append(told["kept"])
                if len(kept) == 2:  # both tables are in the memory of executors, and are read again from here on
                    victims = cluster.executors(2)
                    assert victims, "the second worker has no executor: it would not be missed"
                    cluster.kill(cluster.workers[1])
                    for pid in cluster.executors(2):
                        os.kill(pid, signal.SIGKILL)
                    killed = True
                running.stdin.write("\n")
                running.stdin.flush()
        finally:
            for pipe in (running.stdin, running.stdout):
                pipe.close() if pipe else None
            try:
                running.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
            log.close()
    assert killed, kept
    assert found is not None, (tmp_path / "run.log").read_text()[-3000:]
    assert not list(differences(expected, found)), (tmp_path / "run.log").read_text()[-3000:]


def test_what_is_kept_round_after_round_is_no_larger_a_plan(tmp_path: Path) -> None:
    """Identity makes its tables of those of the round before, named twice: plans that held them all would double with each."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(
        [spark_python(), "-c", ROUNDS], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == [{"id": 1}, {"id": 2}]
    assert max(found["plans"]) <= 2 * found["plans"][0]

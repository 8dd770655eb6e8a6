"""How far is a run from the raw scan of the columns it reads? Everything side by side, in one run, on one machine.

    make bench                       1M users, 20M events
    benchmarks/run.py --users 200000 --events 4000000 --repeats 5

Each contestant is a process of its own (so that peak memory is its own), repeated in turn with the others; the figures are
the medians of what each process measures around its work, imports left out. All must agree on the figures, or the
benchmark fails.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WINDOW_DAYS = 14
COLUMNS = ("user_id", "ts", "name", "amount")
METRICS = ("views", "clicks", "ordered", "revenue")

PROJECT = """
version: 1
project: bench
connections: {main: {engine: duckdb, memory_limit: 4GB, threads: 2}}
defaults: {entity: user, window: 14d}
sources:
  exposures: {file: exposures.parquet, time: ts, entity: {user: user_id}}
  events:    {file: events.parquet,    time: ts, entity: {user: user_id}}
metrics:
  views:   {kind: count, from: events, where: "name = 'view'"}
  clicks:  {kind: count, from: events, where: "name = 'click'"}
  ordered: {kind: conversion, to: {source: events, where: "name = 'order'"}}
  revenue: {kind: sum, from: events, column: amount, where: "name = 'order'"}
experiments:
  ranking:
    assignment: {source: exposures, variant: arm, control: a, split: {a: 0.5, b: 0.5}}
    primary: revenue
    secondary: [views, clicks, ordered]
"""


def make_data(folder: Path, users: int, events: int) -> None:
    """Time-ordered events of all users; half of them exposed, over ten days."""
    import duckdb

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "payoff.yml").write_text(PROJECT)
    stamp = folder / f"made-{users}-{events}"
    if stamp.exists():
        return
    print(f"making {events:,} events of {users:,} users in {folder} ...", file=sys.stderr)
    step = int(60 * 86_400e6 / events)
    with duckdb.connect() as connection:
        connection.execute(
            f"""
            COPY (
              SELECT (hash(i) % {users})::BIGINT AS user_id,
                     TIMESTAMP '2026-06-01' + to_microseconds(i * {step}) AS ts,
                     CASE WHEN h < 70 THEN 'view' WHEN h < 85 THEN 'click' WHEN h < 95 THEN 'cart' ELSE 'order' END AS name,
                     CASE WHEN h >= 95 THEN (hash(i * 13) % 10000) / 100.0 ELSE 0 END::DOUBLE AS amount
              FROM (SELECT i, hash(i * 7) % 100 AS h FROM range({events}) AS t(i))
              ORDER BY i
            ) TO '{folder / "events.parquet"}' (FORMAT parquet, ROW_GROUP_SIZE 200000)
            """
        )
        connection.execute(
            f"""
            COPY (
              SELECT i AS user_id, TIMESTAMP '2026-06-10' + to_seconds((hash(i * 3) % 864000)::BIGINT) AS ts,
                     CASE WHEN hash(i * 5) % 2 = 0 THEN 'a' ELSE 'b' END AS arm
              FROM range(0, {users}, 2) AS t(i)
            ) TO '{folder / "exposures.parquet"}' (FORMAT parquet)
            """
        )
    stamp.touch()


# ---------------------------------------------------------------- contestants: each returns {metric: (difference, se)}

Figures = dict[str, tuple[float, float]]
# relative, of the difference and of its standard error; tea-tasting's variances vary a little from run to run
TOLERANCES = {"tea-tasting": (1e-8, 1e-4)}


def scan(folder: Path) -> tuple[float, Figures]:
    """The limit: reading the same columns and doing nothing with them."""
    import duckdb

    connection = duckdb.connect(config={"threads": 2, "memory_limit": "4GB"})
    start = time.perf_counter()
    connection.execute(
        f"SELECT sum(user_id), max(epoch_us(ts)), min(name), sum(amount) FROM '{folder / 'events.parquet'}'"
    ).fetchall()
    return time.perf_counter() - start, {}


def payoff(folder: Path) -> tuple[float, Figures]:
    from payoff.report import figures  # noqa: F401  (imports are not what is measured)
    from payoff.run import Project

    start = time.perf_counter()
    run = Project.load(folder).run(record=False)
    took = time.perf_counter() - start
    out = {}
    for name in METRICS:
        estimate = run.results[0].estimate(name)
        out[name] = (estimate.value, estimate.uncertainty.to_dict()["se"])
    return took, out


def polars(folder: Path) -> tuple[float, Figures]:
    import polars as pl

    start = time.perf_counter()
    exposed = (
        pl.scan_parquet(folder / "exposures.parquet")
        .group_by("user_id")
        .agg(pl.col("ts").min().alias("t0"), pl.col("arm").first())
    )
    kept = pl.col("ts").is_between(pl.col("t0"), pl.col("t0") + pl.duration(days=WINDOW_DAYS), closed="left")
    units = (
        pl.scan_parquet(folder / "events.parquet")
        .join(exposed, on="user_id")
        .filter(kept)
        .group_by("user_id")
        .agg(
            (pl.col("name") == "view").sum().cast(pl.Float64).alias("views"),
            (pl.col("name") == "click").sum().cast(pl.Float64).alias("clicks"),
            (pl.col("name") == "order").any().cast(pl.Float64).alias("ordered"),
            pl.col("amount").filter(pl.col("name") == "order").sum().alias("revenue"),
        )
    )
    arms = (
        exposed.join(units, on="user_id", how="left")
        .with_columns(pl.col(m).fill_null(0.0) for m in METRICS)
        .group_by("arm")
        .agg(
            pl.len().alias("n"),
            *(pl.col(m).mean().alias(f"{m}_mean") for m in METRICS),
            *(pl.col(m).var().alias(f"{m}_var") for m in METRICS),
        )
        .collect(engine="streaming")
    )
    took = time.perf_counter() - start
    rows = {row["arm"]: row for row in arms.to_dicts()}
    return took, {m: _welch(rows, m) for m in METRICS}


def tea_tasting(folder: Path) -> tuple[float, Figures]:
    """The library reads unit-level data; the same engine makes it from the events, and the library does the rest."""
    import duckdb
    import tea_tasting as tt

    connection = duckdb.connect(config={"threads": 2, "memory_limit": "4GB"})
    start = time.perf_counter()
    table = connection.sql(
        f"""
        SELECT x.user_id, (x.arm = 'b')::BIGINT AS variant, coalesce(views, 0)::DOUBLE AS views, coalesce(clicks, 0)::DOUBLE AS clicks,
               coalesce(ordered, 0)::DOUBLE AS ordered, coalesce(revenue, 0) AS revenue
        FROM '{folder / "exposures.parquet"}' AS x LEFT JOIN (
          SELECT x.user_id, count(*) FILTER (name = 'view') AS views, count(*) FILTER (name = 'click') AS clicks,
                 bool_or(name = 'order')::INT AS ordered, sum(amount) FILTER (name = 'order') AS revenue
          FROM '{folder / "events.parquet"}' AS e JOIN '{folder / "exposures.parquet"}' AS x
            ON e.user_id = x.user_id AND e.ts >= x.ts AND e.ts < x.ts + INTERVAL {WINDOW_DAYS} DAY
          GROUP BY 1
        ) AS u USING (user_id)
        """
    ).to_arrow_table()
    result = tt.Experiment(**{m: tt.Mean(m) for m in METRICS}).analyze(table)
    took = time.perf_counter() - start
    out = {}
    for m in METRICS:
        one = result[m]
        out[m] = (one.effect_size, one.effect_size / one.statistic)
    return took, out


CONTESTANTS = {"scan": scan, "payoff": payoff, "polars": polars, "tea-tasting": tea_tasting}


def _welch(rows: dict[str, Any], metric: str) -> tuple[float, float]:
    a, b = rows["a"], rows["b"]
    se = math.sqrt(a[f"{metric}_var"] / a["n"] + b[f"{metric}_var"] / b["n"])
    return b[f"{metric}_mean"] - a[f"{metric}_mean"], se


# ---------------------------------------------------------------- the race


def one(name: str, folder: Path) -> dict[str, Any]:
    """A contestant in a process of its own."""
    command = [sys.executable, __file__, "--contestant", name, "--data", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--contestant", choices=CONTESTANTS)
    arguments = parser.parse_args()
    if arguments.contestant:
        took, figures = CONTESTANTS[arguments.contestant](arguments.data)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": took, "peak_mib": peak, "figures": figures}))
        return
    make_data(arguments.data, arguments.users, arguments.events)
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for _ in range(arguments.repeats):
        for name in CONTESTANTS:
            seen[name].append(one(name, arguments.data))
    reference = seen["payoff"][0]["figures"]
    for name, runs in seen.items():
        for run in runs:
            for metric, figures in run["figures"].items():
                for ours, theirs, tolerance in zip(
                    reference[metric], figures, TOLERANCES.get(name, (1e-8, 1e-8)), strict=True
                ):
                    if not math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=1e-10):
                        sys.exit(f"{name} disagrees on {metric}: {figures} against {reference[metric]}")
    base = statistics.median(r["seconds"] for r in seen["scan"])
    print(f"1 experiment x 4 metrics, {arguments.events:,} events of {arguments.users:,} users; {platform.machine()},"
          f" {os.cpu_count()} cores, Python {platform.python_version()}; medians of {arguments.repeats}; differences agree to 1e-8")  # fmt: skip
    print(f"{'':14}{'seconds':>9}{'x scan':>9}{'x payoff':>10}{'peak MiB':>10}")
    ours = statistics.median(r["seconds"] for r in seen["payoff"])
    for name, runs in seen.items():
        took = statistics.median(r["seconds"] for r in runs)
        peak = statistics.median(r["peak_mib"] for r in runs)
        print(f"{name:14}{took:9.2f}{took / base:9.1f}{took / ours:10.2f}{peak:10.0f}")


if __name__ == "__main__":
    main()

"""A company's event table at 20 and 100 million rows: what payoff takes, what others take, and how far both are from reading the columns.

    make bench                                          every task at 20M events of 1M users
    benchmarks/scale.py a c --events 2e6 --repeats 5    some tasks, other sizes
    benchmarks/scale.py --events 100e6 --repeats 1      one user for twenty events
    benchmarks/scale.py --spark .venv-spark/bin/python  Spark beside them, in an environment that has it
    benchmarks/scale.py a --strings                     ids that are text

Tasks: a: 3 experiments x 4 metrics, CUPED; b: 10 x 12 (two ratios), CUPED; c: a funnel of 4 steps in 7 days; d: retention over 12 weeks;
acd: those three in one run, and one after another; g: one new day, after a run that knew all the days before; h: 2,000 bootstrap
replicates over the users. Attribution and identity (tasks e and f): benchmarks/journeys.py.

Each contestant is a process of its own (so that peak memory is its own), repeated in turn with the others; the figures are
the medians of what each measures around its work, imports left out. All must agree on the figures, or the benchmark fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DAYS, WINDOW_DAYS = 90, 14
LIMIT = "2500MB"
"""What the engine of every contestant that has one may use; the process takes more, and should stay below 4 GB."""
SEED = 20_260_601
EXPERIMENTS = tuple(f"x{k}" for k in range(10))
NAMES = ("view", "click", "search", "cart", "order")

Figures = dict[str, tuple[float, float]]
"""A figure and its standard error (0 where it is a count), by name."""

# ---------------------------------------------------------------- data

DAY_OF_EVENTS = """
COPY (
  SELECT {user} AS user_id, TIMESTAMP '2026-06-01' + to_microseconds((i * {step})::BIGINT) AS ts,
         CASE WHEN h < 55 THEN 'view' WHEN h < 75 THEN 'click' WHEN h < 85 THEN 'search' WHEN h < 95 THEN 'cart' ELSE 'order' END AS name,
         CASE WHEN h >= 85 THEN (hash(i * 13) % 10000) / 100.0 ELSE 0 END::DOUBLE AS amount
  FROM (SELECT i, hash(i * 7) % 100 AS h,
               ((CASE WHEN hash(i * 17) % 4 = 0 THEN hash(i) % {tenth} ELSE hash(i) % {users} END) * 7919 % {users})::BIGINT AS u
        FROM range({first}, {last}) AS t(i))
  ORDER BY i
) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 200000)
"""
EXPOSURES = """
COPY (
  SELECT 'x' || k AS experiment, {user} AS user_id,
         TIMESTAMP '2026-06-15' + to_days(k::INT * 2) + to_seconds((hash(u * 3 + k * 1000003) % 3456000)::BIGINT) AS ts,
         CASE WHEN hash(u * 5 + k * 777767) % 2 = 0 THEN 'a' ELSE 'b' END AS arm
  FROM range({users}) AS t(u), range({experiments}) AS e(k) WHERE hash(u * 11 + k * 999983) % 2 = 0
  ORDER BY ts
) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 200000)
"""


def make(folder: Path, users: int, events: int, strings: bool) -> None:
    """A file of time-ordered events for each of 90 days, a tenth of the users more busy; half of the users in each experiment."""
    import duckdb

    (folder / "events").mkdir(parents=True, exist_ok=True)
    user = "'user-' || lpad(u::VARCHAR, 9, '0')" if strings else "u"
    step, edge = DAYS * 86_400e6 / events, [round(events * d / DAYS) for d in range(DAYS + 1)]
    with duckdb.connect(config={"memory_limit": "4GB", "threads": 2}) as connection:
        for d in range(DAYS):
            part = {
                "first": edge[d],
                "last": edge[d + 1],
                "users": users,
                "tenth": max(users // 10, 1),
                "step": step,
                "user": user,
            }
            connection.execute(DAY_OF_EVENTS.format(path=folder / "events" / f"{d:03}.parquet", **part))
        path = folder / "exposures.parquet"
        connection.execute(EXPOSURES.format(path=path, users=users, experiments=len(EXPERIMENTS), user=user))


# ---------------------------------------------------------------- projects

COUNTED = {"views": "view", "clicks": "click", "searches": "search", "carts": "cart", "orders": "order"}
CONVERTED = {"clicked": "click", "carted": "cart", "ordered": "order"}
ADDED = {"revenue": "order", "cart_value": "cart"}
RATIOS = {"click_rate": ("clicks", "views"), "order_value": ("revenue", "orders")}
FOUR = ("revenue", "views", "clicks", "ordered")
TWELVE = (*COUNTED, *CONVERTED, *ADDED, *RATIOS)


def _metric(name: str) -> str:
    if name in COUNTED:
        return f"{{kind: count, from: events, where: \"name = '{COUNTED[name]}'\"}}"
    if name in CONVERTED:
        return f"{{kind: conversion, to: {{source: events, where: \"name = '{CONVERTED[name]}'\"}}}}"
    if name in ADDED:
        return f"{{kind: sum, from: events, column: amount, where: \"name = '{ADDED[name]}'\"}}"
    parts = []
    for part in RATIOS[name]:
        what = "sum: events.amount" if part in ADDED else "count: events"
        parts.append(f"{{{what}, where: \"name = '{({**COUNTED, **ADDED})[part]}'\"}}")
    return f"{{kind: ratio, numerator: {parts[0]}, denominator: {parts[1]}}}"


def _experiments(count: int, metrics: tuple[str, ...]) -> str:
    lines = ["metrics:", *(f"  {name}: {_metric(name)}" for name in metrics), "experiments:"]
    for x in EXPERIMENTS[:count]:
        lines += [
            f"  {x}:",
            f"    assignment: {{source: exposures, where: \"experiment = '{x}'\", variant: arm, control: a, split: {{a: 0.5, b: 0.5}}}}",
            f"    primary: revenue\n    secondary: [{', '.join(m for m in metrics if m != 'revenue')}]\n    adjust: cuped",
        ]
    return "\n".join(lines)


FUNNEL = """
funnels:
  f:
    steps: [{name: view, source: events, where: "name = 'view'"}, {name: click, source: events, where: "name = 'click'"},
            {name: cart, source: events, where: "name = 'cart'"}, {name: order, source: events, where: "name = 'order'"}]
    within: 7d
"""
COHORT = """
cohorts:
  c: {start: events, activity: events, every: week, retention: {kind: n_day, period: 7d, periods: 12}}
"""
WHAT = {
    "a": _experiments(3, FOUR),
    "b": _experiments(10, TWELVE),
    "c": FUNNEL,
    "d": COHORT,
    "acd": _experiments(3, FOUR) + FUNNEL + COHORT,
    "g": _experiments(3, FOUR),
}
TITLES = {
    "a": "3 experiments x 4 metrics, CUPED",
    "b": "10 experiments x 12 metrics (2 ratios), CUPED",
    "c": "funnel, 4 steps, 7 days",
    "d": "retention, 12 weeks",
    "acd": "a, c and d in one run",
    "g": "one new day",
    "h": "bootstrap, 2,000 replicates over the users",
}
SCANS = {
    "c": ("sum(user_id), max(epoch_us(ts)), min(name)", None),
    "d": ("sum(user_id), max(epoch_us(ts))", None),
}
WHOLE = (
    "sum(user_id), max(epoch_us(ts)), min(name), sum(amount)",
    "sum(user_id), max(epoch_us(ts)), min(experiment), min(arm)",
)


def project(task: str, connection: str, events: str = "../../events/*.parquet") -> str:
    by = "" if "duckdb" in connection else ", connection: main"
    return f"""
version: 1
project: bench
connections: {{{connection}}}
defaults: {{entity: user, window: {WINDOW_DAYS}d}}
sources:
  exposures: {{file: ../../exposures.parquet, time: ts, entity: {{user: user_id}}{by}}}
  events:    {{file: {events}, time: ts, entity: {{user: user_id}}{by}}}
{WHAT[task]}
"""


SPARK = "main: {engine: spark, url: 'local[2]', options: {spark.driver.memory: 3g, spark.ui.enabled: 'false', spark.sql.shuffle.partitions: '8'}}"
ENGINES = {
    "payoff on Spark": SPARK,
    "payoff on chdb": "main: {engine: clickhouse, path: chdb}",
    "payoff": f"main: {{engine: duckdb, memory_limit: {LIMIT}, threads: 2}}",
    "payoff-prepared": f"main: {{engine: duckdb, memory_limit: {LIMIT}, threads: 2}}",
}


def folder_of(data: Path, who: str, task: str) -> Path:
    folder = data / who / task
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "payoff.yml").write_text(project(task, ENGINES[who]))
    return folder


# ---------------------------------------------------------------- payoff


def _load(folder: Path) -> Any:
    from payoff.run import Project

    return Project.load(folder)


def figures_of(run: Any) -> Figures:
    if run.refusals:
        sys.exit(f"refused: {run.refusals[0].reason}")
    out: Figures = {}
    for result in run.results:
        kind, _, name = result.name.rpartition(".")
        for e in result.to_dict()["estimates"]:
            if kind == "funnels" and e["estimand"] == "units reaching step":
                out[f"step {e['step']}"] = (e["value"], 0.0)
            elif kind == "cohorts" and e["estimand"] == "retention" and e["cohort"] == "(all)":
                out[f"week {e['period']}"] = (e["value"], 0.0)
        if kind in ("", "experiments"):
            for metric in {e.metric for e in result.estimates}:
                for told, estimand in (
                    ("adjusted", "difference in means"),
                    ("plain", "difference in means, unadjusted"),
                ):
                    e = result.estimate(metric, estimand=estimand)
                    out[f"{name} {metric} {told}"] = (e.value, e.uncertainty.to_dict()["se"])
    return out


def payoff(data: Path, task: str, who: str = "payoff") -> tuple[float, Figures]:
    folder = folder_of(data, who, task)
    start = time.perf_counter()
    run = _load(folder).run(record=False, **({"full": True} if who == "payoff-prepared" else {}))
    return time.perf_counter() - start, figures_of(run)


def payoff_prepared(data: Path, task: str) -> tuple[float, Figures]:
    return payoff(data, task, "payoff-prepared")


def payoff_on_spark(data: Path, task: str) -> tuple[float, Figures]:
    """The same project on a classic session of two threads, started beforehand."""
    from pyspark.sql import SparkSession

    SparkSession.builder.master("local[2]").config("spark.driver.memory", "3g").config(
        "spark.ui.enabled", "false"
    ).getOrCreate()
    return payoff(data, task, "payoff on Spark")


def payoff_on_chdb(data: Path, task: str) -> tuple[float, Figures]:
    return payoff(data, task, "payoff on chdb")


def payoff_again(data: Path, task: str) -> tuple[float, Figures]:
    """The same once more, with what the run before remembers and nothing new."""
    folder = folder_of(data, "payoff-prepared", task)
    start = time.perf_counter()
    run = _load(folder).run(record=False)
    return time.perf_counter() - start, figures_of(run)


def payoff_apart(data: Path, task: str) -> tuple[float, Figures]:
    """a, c and d asked one after another, each in a run of its own."""
    parts = [payoff(data, one, "payoff-prepared") for one in ("a", "c", "d")]
    return sum(took for took, _ in parts), {k: v for _, found in parts for k, v in found.items()}


# ---------------------------------------------------------------- others


def _files(data: Path) -> tuple[str, str]:
    return str(data / "events" / "*.parquet"), str(data / "exposures.parquet")


def _session() -> Any:
    import duckdb

    return duckdb.connect(config={"threads": 2, "memory_limit": LIMIT})


def scan(data: Path, task: str) -> tuple[float, Figures]:
    """The limit: reading the same columns once and doing nothing with them."""
    connection, (events, exposures) = _session(), _files(data)
    of_events, of_exposures = SCANS.get(task, WHOLE)
    start = time.perf_counter()
    for path, columns in ((events, of_events), (exposures, of_exposures)):
        if columns:
            text = columns.replace("sum(user_id)", "max(user_id)")
            connection.execute(f"SELECT {text} FROM '{path}'").fetchall()
    return time.perf_counter() - start, {}


def _folds(before: bool) -> list[tuple[str, str]]:
    side = "e.ts < x.ts" if before else "e.ts >= x.ts"
    suffix = "_before" if before else ""
    return [
        *((f"{m}{suffix}", f"count(*) FILTER (name = '{n}' AND {side})::DOUBLE") for m, n in COUNTED.items()),
        *(
            (f"{m}{suffix}", f"coalesce(bool_or(name = '{n}' AND {side}), false)::INT::DOUBLE")
            for m, n in CONVERTED.items()
        ),
        *((f"{m}{suffix}", f"sum(amount) FILTER (name = '{n}' AND {side})") for m, n in ADDED.items()),
    ]


def tea_tasting(data: Path, task: str) -> tuple[float, Figures]:
    """Unit-level data by the SQL that one would write for one experiment, in the same engine; the library does the rest."""
    import tea_tasting as tt

    count, metrics = (3, FOUR) if task == "a" else (10, TWELVE)
    own = {p for m in metrics for p in RATIOS.get(m, (m,))}
    folds = [(n, f) for before in (False, True) for n, f in _folds(before) if n.removesuffix("_before") in own]

    def tests(before: bool) -> dict[str, Any]:
        named = (lambda m: f"{m}_before") if before else (lambda m: None)
        return {
            m: tt.RatioOfMeans(*RATIOS[m], *(named(p) for p in RATIOS[m]))
            if m in RATIOS
            else tt.Mean(m, covariate=named(m))
            for m in metrics
        }

    connection, (events, exposures) = _session(), _files(data)
    took, out = 0.0, {}
    for x in EXPERIMENTS[:count]:
        start = time.perf_counter()
        table = connection.sql(
            f"""
            WITH exposed AS (FROM '{exposures}' WHERE experiment = '{x}')
            SELECT (x.arm = 'b')::BIGINT AS variant, {", ".join(f"coalesce({n}, 0) AS {n}" for n, _ in folds)}
            FROM exposed AS x LEFT JOIN (
              SELECT x.user_id, {", ".join(f"{f} AS {n}" for n, f in folds)}
              FROM '{events}' AS e JOIN exposed AS x
                ON e.user_id = x.user_id AND e.ts >= x.ts - INTERVAL {WINDOW_DAYS} DAY AND e.ts < x.ts + INTERVAL {WINDOW_DAYS} DAY
              GROUP BY 1
            ) AS u USING (user_id)
            """
        ).to_arrow_table()
        adjusted = tt.Experiment(**tests(before=True)).analyze(table)
        took += time.perf_counter() - start
        plain = tt.Experiment(**tests(before=False)).analyze(table)  # for comparison alone
        for kind, result in (("adjusted", adjusted), ("plain", plain)):
            for m in metrics:
                one = result[m]
                out[f"{x} {m} {kind}"] = (one.effect_size, one.effect_size / one.statistic)
    return took, out


def _adjusted(units: Any, arms: Mapping[str, Any], k: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """An arm's level and its variance: plain, and adjusted (Lin 2013). Columns are k measures, then the same before exposure."""
    import numpy as np

    mean, covariance, n = units.mean(axis=0), np.cov(units, rowvar=False), len(units)
    level = mean[0] if k == 1 else mean[0] / mean[1]
    form = np.array([1.0]) if k == 1 else np.array([1.0, -level]) / mean[1]
    pooled = sum(u[:, k:].sum(axis=0) for u in arms.values()) / sum(len(u) for u in arms.values())
    with_before = covariance[k:, :k] @ form
    beta = np.linalg.solve(covariance[k:, k:], with_before)
    variance = form @ covariance[:k, :k] @ form
    return (float(level), float(variance / n)), (
        float(level - beta @ (mean[k:] - pooled)),
        float((variance - beta @ with_before) / n),
    )


def _differences(x: str, metrics: tuple[str, ...], columns: Mapping[str, Mapping[str, Any]], out: Figures) -> None:
    """``columns``: arm -> name -> array of a value a unit."""
    import numpy as np

    for metric in metrics:
        parts = RATIOS.get(metric, (metric,))
        wanted = [f"{p}{suffix}" for suffix in ("", "_before") for p in parts]
        found = {arm: np.column_stack([np.asarray(of[c], dtype=float) for c in wanted]) for arm, of in columns.items()}
        if metric in RATIOS:  # who has neither is in no ratio
            found = {arm: u[(u[:, 0] != 0) | (u[:, 1] != 0)] for arm, u in found.items()}
        levels = {arm: _adjusted(u, found, len(parts)) for arm, u in found.items()}
        for at, kind in enumerate(("plain", "adjusted")):
            a, b = levels["a"][at], levels["b"][at]
            out[f"{x} {metric} {kind}"] = (b[0] - a[0], math.sqrt(a[1] + b[1]))


def polars(data: Path, task: str) -> tuple[float, Figures]:
    """The same by hand, lazily, with the streaming engine where it can."""
    import polars as pl

    events, exposures = _files(data)
    out: Figures = {}
    start = time.perf_counter()
    if task in ("a", "b"):
        count, metrics = (3, FOUR) if task == "a" else (10, TWELVE)
        own = {p for m in metrics for p in RATIOS.get(m, (m,))}
        for x in EXPERIMENTS[:count]:
            exposed = (
                pl.scan_parquet(exposures)
                .filter(pl.col("experiment") == x)
                .group_by("user_id")
                .agg(pl.col("ts").min().alias("t0"), pl.col("arm").first())
            )
            after, named = pl.col("ts") >= pl.col("t0"), {n: pl.col("name") == n for n in NAMES}
            values = []
            for side, suffix in ((after, ""), (~after, "_before")):
                values += [
                    *(
                        (side & named[n]).sum().cast(pl.Float64).alias(f"{m}{suffix}")
                        for m, n in COUNTED.items()
                        if m in own
                    ),
                    *(
                        (side & named[n]).any().cast(pl.Float64).alias(f"{m}{suffix}")
                        for m, n in CONVERTED.items()
                        if m in own
                    ),
                    *(
                        pl.col("amount").filter(side & named[n]).sum().alias(f"{m}{suffix}")
                        for m, n in ADDED.items()
                        if m in own
                    ),
                ]
            window = pl.duration(days=WINDOW_DAYS)
            units = (
                pl.scan_parquet(events)
                .join(exposed, on="user_id")
                .filter(pl.col("ts").is_between(pl.col("t0") - window, pl.col("t0") + window, closed="left"))
                .group_by("user_id")
                .agg(values)
            )
            names = [f"{m}{suffix}" for suffix in ("", "_before") for m in own]
            table = (
                exposed.join(units, on="user_id", how="left")
                .select("arm", *(pl.col(c).fill_null(0.0) for c in names))
                .collect(engine="streaming")
            )
            columns = {arm: {c: table.filter(pl.col("arm") == arm)[c].to_numpy() for c in names} for arm in ("a", "b")}
            _differences(x, metrics, columns, out)
    elif task == "c":
        rows = pl.scan_parquet(events).select("user_id", "ts", "name")
        last = rows.select(pl.col("ts").max()).collect(engine="streaming").item()
        steps = {
            n: rows.filter(pl.col("name") == n).select("user_id", "ts").collect().sort("ts")
            for n in ("view", "click", "cart", "order")
        }
        week = pl.duration(days=7)
        reach = steps["view"].filter(pl.col("ts") + week <= last).with_columns(pl.col("ts").alias("entry"))
        out["step view"] = (float(reach["user_id"].n_unique()), 0.0)
        for name in ("click", "cart", "order"):
            following = steps[name].join_asof(reach, on="ts", by="user_id", strategy="backward")
            reach = following.filter(pl.col("entry").is_not_null() & (pl.col("ts") <= pl.col("entry") + week))
            out[f"step {name}"] = (float(reach["user_id"].n_unique()), 0.0)
    else:
        rows = pl.scan_parquet(events).select("user_id", "ts")
        begin = rows.group_by("user_id").agg(pl.col("ts").min().alias("t0"))
        last = rows.select(pl.col("ts").max()).collect(engine="streaming").item()
        period = (pl.col("ts") - pl.col("t0")).dt.total_microseconds() // (7 * 86_400_000_000)
        active = (
            rows.join(begin, on="user_id").select("user_id", "t0", period.alias("k")).filter(pl.col("k") < 12).unique()
        )
        _grid(active.collect(engine="streaming"), begin.collect(engine="streaming"), last, out)
    return time.perf_counter() - start, out


def _grid(active: Any, begun: Any, last: Any, out: Figures) -> None:
    import polars as pl

    for k in range(12):
        closed = pl.col("t0") + pl.duration(days=7 * (k + 1)) <= last
        of = begun.filter(closed).height
        if of:
            out[f"week {k}"] = (active.filter((pl.col("k") == k) & closed).height / of, 0.0)


def pandas(data: Path, task: str) -> tuple[float, Figures]:
    """The same in frames that are whole in memory."""
    import pandas as pd

    events, exposures = _files(data)
    out: Figures = {}
    start = time.perf_counter()
    rows = pd.read_parquet(Path(events).parent, columns=["user_id", "ts", "name", "amount"])
    every = pd.read_parquet(exposures)
    window = pd.Timedelta(days=WINDOW_DAYS)
    for x in EXPERIMENTS[:3]:
        exposed = every[every["experiment"] == x].rename(columns={"ts": "t0"})[["user_id", "t0", "arm"]]
        joined = rows.merge(exposed, on="user_id")
        joined = joined[(joined["ts"] >= joined["t0"] - window) & (joined["ts"] < joined["t0"] + window)]
        after = joined["ts"] >= joined["t0"]
        units = exposed.set_index("user_id")
        for side, suffix in ((after, ""), (~after, "_before")):
            of = joined[side]
            units[f"views{suffix}"] = of[of["name"] == "view"].groupby("user_id").size()
            units[f"clicks{suffix}"] = of[of["name"] == "click"].groupby("user_id").size()
            orders = of[of["name"] == "order"].groupby("user_id")["amount"]
            units[f"revenue{suffix}"] = orders.sum()
            units[f"ordered{suffix}"] = (orders.size() > 0).astype(float)
        units = units.fillna({c: 0.0 for c in units.columns if c not in ("t0", "arm")})
        _differences(x, FOUR, dict(units.groupby("arm")), out)
    return time.perf_counter() - start, out


def window_funnel(data: Path, task: str) -> tuple[float, Figures]:
    """ClickHouse in process: windowFunnel over the same steps. Entries whose window is still open are left out, as payoff leaves them."""
    from chdb import session

    events, _ = _files(data)
    chdb = session.Session()
    chdb.query(f"SET max_threads = 2; SET max_memory_usage = {4 * 2**30}")
    start = time.perf_counter()
    last = json.loads(chdb.query(f"SELECT max(ts) AS m FROM file('{events}', Parquet)", "JSONEachRow").bytes())["m"]
    found = chdb.query(
        f"""
        SELECT countIf(level >= 1), countIf(level >= 2), countIf(level >= 3), countIf(level >= 4) FROM (
          SELECT user_id, windowFunnel({7 * 86_400_000_000})(toUInt64(toUnixTimestamp64Micro(ts)),
                   name = 'view' AND ts <= toDateTime64('{last}', 6) - INTERVAL 7 DAY, name = 'click', name = 'cart', name = 'order') AS level
          FROM file('{events}', Parquet) GROUP BY user_id)
        """,
        "TabSeparated",
    ).bytes()
    took = time.perf_counter() - start
    counts = [float(n) for n in found.decode().split()]
    return took, {f"step {name}": (n, 0.0) for name, n in zip(("view", "click", "cart", "order"), counts, strict=True)}


def count_distinct(data: Path, task: str) -> tuple[float, Figures]:
    """The query that everybody writes for retention, on the same engine."""
    connection, (events, _) = _session(), _files(data)
    start = time.perf_counter()
    last = connection.sql(f"SELECT max(epoch_us(ts)) FROM '{events}'").fetchall()[0][0]
    week = 7 * 86_400_000_000
    found = connection.sql(
        f"""
        WITH begun AS (SELECT user_id, min(epoch_us(ts)) AS t0 FROM '{events}' GROUP BY user_id),
        active AS (SELECT (epoch_us(e.ts) - b.t0) // {week} AS k, count(DISTINCT e.user_id) AS n
                   FROM '{events}' AS e JOIN begun AS b ON b.user_id = e.user_id
                   WHERE b.t0 + ((epoch_us(e.ts) - b.t0) // {week} + 1) * {week} <= {last} GROUP BY k)
        SELECT k, n, (SELECT count(*) FROM begun WHERE t0 + (k + 1) * {week} <= {last}) AS of FROM active WHERE k < 12 ORDER BY k
        """
    ).fetchall()
    return time.perf_counter() - start, {f"week {k}": (n / of, 0.0) for k, n, of in found}


# ---------------------------------------------------------------- a new day


def new_day(data: Path, task: str) -> tuple[float, Figures]:
    """One new day's file after a run over all the days before it: `payoff prepare`, then `payoff run`."""
    return _day(data, full=False)


def all_days(data: Path, task: str) -> tuple[float, Figures]:
    """The same with --full: prepared, but nothing remembered of earlier runs."""
    return _day(data, full=True)


def _day(data: Path, full: bool) -> tuple[float, Figures]:
    folder = data / "new-day"
    (folder / "p").mkdir(parents=True, exist_ok=True)
    (folder / "events").mkdir(exist_ok=True)
    text = project("g", ENGINES["payoff"], "../events/*.parquet")
    (folder / "p" / "payoff.yml").write_text(text)
    days = sorted((data / "events").glob("*.parquet"))
    for day in days:
        link = folder / "events" / day.name
        if day != days[-1] and not link.exists():
            os.link(day, link)
    newest = folder / "events" / days[-1].name
    newest.unlink(missing_ok=True)
    prepare(folder / "p")
    if not full:
        _load(folder / "p").run(record=False)  # what yesterday's run left
    os.link(days[-1], newest)
    start = time.perf_counter()
    prepare(folder / "p")
    run = _load(folder / "p").run(record=False, full=full)
    return time.perf_counter() - start, figures_of(run)


def prepare(folder: Path) -> None:
    _load(folder).prepare()


# ---------------------------------------------------------------- bootstrap


def bootstrap(data: Path, task: str) -> tuple[float, Figures]:
    """Revenue and orders a user, and their ratio: sums of 1,000 groups of users in SQL, drawn 2,000 times."""
    import numpy as np

    from payoff.stats.credit import Bootstrap

    units = _units(data)
    connection = _session()
    connection.register("units", units)
    start = time.perf_counter()
    sums = connection.sql(
        """
        SELECT CAST('0x' || substr(md5(CAST(user_id AS VARCHAR)), 1, 15) AS BIGINT) % 1000 AS g,
               count(*) AS n, sum(revenue) AS revenue, sum(orders) AS orders FROM units GROUP BY g ORDER BY g
        """
    ).fetchnumpy()
    table = np.column_stack([np.asarray(sums[c], dtype=float) for c in ("n", "revenue", "orders")])
    drawn = Bootstrap.drawn(np.random.default_rng(SEED), 1000, 2000).ratios(table[:, 1:2], table[:, 2])
    took = time.perf_counter() - start
    return took, {"revenue an order": (float(drawn.value[0]), float(drawn.draws[:, 0].std(ddof=1)))}


def poisson(data: Path, task: str) -> tuple[float, Figures]:
    """What is usually written: a Poisson weight for every user and replicate, in numpy. A tenth of the replicates, times ten."""
    import numpy as np

    units = _units(data)
    revenue, orders = (units.column(c).to_numpy() for c in ("revenue", "orders"))
    rng = np.random.default_rng(SEED)
    start = time.perf_counter()
    ratio = []
    for _ in range(200):
        weights = rng.poisson(1.0, len(revenue)).astype(np.float64)
        ratio.append(float(weights @ revenue) / float(weights @ orders))
    took = 10 * (time.perf_counter() - start)
    return took, {"revenue an order": (float(revenue.sum() / orders.sum()), float(np.std(ratio, ddof=1)))}


def _units(data: Path) -> Any:
    events, _ = _files(data)
    return (
        _session()
        .sql(
            f"SELECT user_id, sum(amount) FILTER (name = 'order') AS revenue, count(*) FILTER (name = 'order')::DOUBLE AS orders FROM '{events}'"
            " GROUP BY user_id HAVING count(*) FILTER (name = 'order') > 0"
        )
        .to_arrow_table()
    )


# ---------------------------------------------------------------- the race

Contestant = Callable[[Path, str], tuple[float, Figures]]
EVERYBODY: dict[str, Contestant] = {
    "scan": scan,
    "payoff": payoff,
    "payoff-prepared": payoff_prepared,
    "payoff again": payoff_again,
    "one by one": payoff_apart,
    "payoff on Spark": payoff_on_spark,
    "payoff on chdb": payoff_on_chdb,
    "tea-tasting": tea_tasting,
    "polars": polars,
    "pandas": pandas,
    "windowFunnel": window_funnel,
    "count distinct": count_distinct,
    "new day": new_day,
    "full": all_days,
    "groups": bootstrap,
    "poisson": poisson,
}
WHO = {
    "a": (
        "scan",
        "payoff",
        "payoff-prepared",
        "payoff again",
        "tea-tasting",
        "polars",
        "pandas",
        "payoff on chdb",
        "payoff on Spark",
    ),
    "b": ("scan", "payoff", "payoff-prepared", "payoff again", "tea-tasting", "polars"),
    "c": ("scan", "payoff", "payoff-prepared", "windowFunnel", "polars", "payoff on chdb", "payoff on Spark"),
    "d": ("scan", "payoff", "payoff-prepared", "count distinct", "polars", "payoff on chdb", "payoff on Spark"),
    "acd": ("scan", "payoff", "payoff-prepared", "payoff again", "one by one"),
    "g": ("scan", "payoff", "full", "new day"),
    "h": ("groups", "poisson"),
}
OURS = ("payoff.run", "payoff.report.figures", "duckdb", "sqlglot", "pyarrow", "scipy.stats", "numba", "pandas")
MODULES = {
    "scan": ("duckdb",),
    "count distinct": ("duckdb",),
    "tea-tasting": ("duckdb", "tea_tasting"),
    "polars": ("polars", "numpy"),
    "pandas": ("pandas", "pyarrow", "numpy"),
    "windowFunnel": ("chdb.session",),
    "groups": ("duckdb", "numpy", "payoff.stats.credit"),
    "poisson": ("duckdb", "numpy"),
}
AIMS = {
    "a": "at most 4 x scan prepared, 6 x raw",
    "b": "tea-tasting takes at least 5 x payoff-prepared",
    "c": "windowFunnel takes at least 2 x payoff-prepared",
    "d": "count distinct takes at least 3 x payoff-prepared",
    "acd": "at most 4 x scan prepared",
    "g": "payoff takes at least 15 x a new day, at 100M",
    "h": "at most 0.3 s",
}
ALONE = {"pandas": 30_000_000}
"""Rows beyond which a contestant does not fit in memory."""


def disagreement(who: str, name: str, ours: tuple[float, float], theirs: tuple[float, float]) -> str | None:
    """What two contestants say differently, None where they agree.

    Plain differences are the same number, computed in another order: 1e-8, relatively (or of the standard error, beside a
    difference near zero). So are adjusted ones where the estimator is the same. tea-tasting adjusts both arms by one pooled
    slope, payoff each arm by its own: the two differ by (arm's slope - pooled slope) x (arm's mean before exposure - pooled
    mean), a product of two chances, 1 / n where a standard error is 1 / sqrt(n). A twentieth of a standard error is allowed.
    Standard errors of adjusted differences differ by terms of second order, which payoff counts and the others leave out;
    tea-tasting's plain variances move in the sixth digit between runs, and its ratios count the units that have neither part.
    Two bootstraps have other draws: their standard errors agree to a tenth.
    """
    other, adjusted = who == "tea-tasting", name.endswith("adjusted")
    value = 0.05 * ours[1] if other and adjusted else 1e-8 * max(abs(ours[0]), ours[1])
    error = 0.1 if who == "poisson" else 1e-2 if adjusted else 1e-4 if other else 1e-8
    if abs(ours[0] - theirs[0]) <= value and math.isclose(ours[1], theirs[1], rel_tol=error):
        return None
    return f"{who} disagrees on {name}: {theirs} against {ours}"


def contest(python: str, who: str, task: str, data: Path) -> dict[str, Any]:
    """A contestant in a process of its own."""
    done = subprocess.run(
        [python, __file__, task, "--contestant", who, "--data", str(data)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{who} failed at {task}:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def race(task: str, data: Path, events: int, repeats: int, spark: str | None, only: list[str] | None) -> None:
    names = [n for n in WHO[task] if events <= ALONE.get(n, events) and (n != "payoff on Spark" or spark)]
    names = [n for n in names if only is None or n in only]
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            python = spark if name == "payoff on Spark" and spark else sys.executable
            seen[name].append(contest(python, name, task, data))
    ours = next(n for n in names if n != "scan")
    reference = seen[ours][0]["figures"]
    for name, runs in seen.items():
        for run in runs:
            if run["figures"] and run["figures"].keys() != reference.keys():
                sys.exit(f"{name} has other figures at {task}: {run['figures'].keys() ^ reference.keys()}")
            found = [disagreement(name, key, reference[key], theirs) for key, theirs in run["figures"].items()]
            if any(found):
                sys.exit("\n".join(text for text in found if text))
    median = {
        n: {k: statistics.median(r[k] for r in runs) for k in ("seconds", "cpu", "peak_mib")}
        for n, runs in seen.items()
    }
    base = median["scan"]["seconds"] if "scan" in median else math.nan
    fastest = "payoff-prepared" if "payoff-prepared" in median else names[-1] if task == "g" else ours
    print(f"\n{task}: {TITLES[task]}. Aim: {AIMS[task]}")
    print(f"{'':18}{'seconds':>9}{'x scan':>9}{f'x {fastest}':>18}{'cpu s':>8}{'peak MiB':>10}")
    for name, of in median.items():
        took = of["seconds"]
        against = took / median[fastest]["seconds"]
        ratio = "" if math.isnan(base) else f"{took / base:.1f}"
        print(f"{name:18}{took:9.2f}{ratio:>9}{against:18.2f}{of['cpu']:8.2f}{of['peak_mib']:10.0f}", flush=True)


def made(root: Path, users: int, events: int, strings: bool) -> Path:
    """The data and the prepared layout, made once."""
    data = root / f"scale-{users}-{events}{'-strings' if strings else ''}"
    data.mkdir(parents=True, exist_ok=True)
    stamp = data / "made"
    if not stamp.exists():
        print(f"making {events:,} events of {users:,} users in {data} ...", file=sys.stderr)
        # in a process of its own too: on Linux a child's peak memory begins at what its parent holds
        command = [
            sys.executable,
            __file__,
            "--make",
            "--data",
            str(data),
            "--users",
            str(users),
            "--events",
            str(events),
        ]
        subprocess.run([*command, *(["--strings"] if strings else [])], check=True)
        stamp.touch()
    return data


def prepared(data: Path, tasks: list[str]) -> None:
    """One layout for all tasks' projects: they have the same sources."""
    first = None
    for task in tasks:
        if task in WHAT and task != "g":
            folder = folder_of(data, "payoff-prepared", task)
            if first is None:
                took = contest(sys.executable, "prepare", task, data)
                print(f"prepare: {took['seconds']:.1f} s, peak {took['peak_mib']:.0f} MiB (0 s where it was there)")
                first = folder / ".payoff" / "prepared"
            else:
                (folder / ".payoff").mkdir(exist_ok=True)
                if not (folder / ".payoff" / "prepared").exists():
                    shutil.copytree(first, folder / ".payoff" / "prepared", copy_function=os.link)


def _prepare(data: Path, task: str) -> tuple[float, Figures]:
    folder = folder_of(data, "payoff-prepared", task)
    start = time.perf_counter()
    prepare(folder)
    return time.perf_counter() - start, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=[], help=f"{', '.join(TITLES)}; default: all")
    parser.add_argument("--users", type=lambda text: int(float(text)), help="default: one for twenty events")
    parser.add_argument("--events", type=lambda text: int(float(text)), default=20_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--strings", action="store_true", help="ids that are text")
    parser.add_argument("--spark", metavar="PYTHON", help="an interpreter that has pyspark, and payoff")
    parser.add_argument("--contestants", help="some of them, with commas; default: all")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    users = arguments.users or max(arguments.events // 20, 100)
    if arguments.make:
        make(arguments.data, users, arguments.events, arguments.strings)
        return
    if arguments.contestant:
        work = {**EVERYBODY, "prepare": _prepare}[arguments.contestant]
        for module in MODULES.get(arguments.contestant, OURS):  # imports are not what is measured
            importlib.import_module(module)
        before = resource.getrusage(resource.RUSAGE_SELF)
        took, figures = work(arguments.data, arguments.tasks[0])
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({"seconds": took, "cpu": cpu, "peak_mib": after.ru_maxrss / 1024, "figures": figures}))
        return
    tasks = arguments.tasks or list(TITLES)
    if unknown := set(tasks) - TITLES.keys():
        parser.error(f"no task is called {', '.join(sorted(unknown))}; there are {', '.join(TITLES)}")
    data = made(arguments.data, users, arguments.events, arguments.strings)
    print(
        f"{arguments.events:,} events of {users:,} users{' (ids are text)' if arguments.strings else ''}; {platform.machine()},"
        f" {os.cpu_count()} cores, Python {platform.python_version()}; medians of {arguments.repeats}; all figures agree"
    )
    prepared(data, tasks)
    for task in tasks:
        only = None if arguments.contestants is None else arguments.contestants.split(",")
        race(task, data, arguments.events, arguments.repeats, arguments.spark, only)


if __name__ == "__main__":
    main()

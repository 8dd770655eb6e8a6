"""How far is a run from the raw scan of the columns it reads, and from doing the same by other means? In one run, on one machine.

    make bench                                    both sets: 1 experiment x 4 metrics, 10 experiments x 12 metrics with CUPED
    benchmarks/run.py one --users 200000 --events 2e6 --repeats 5
    benchmarks/run.py ten --contestants payoff,tea-tasting
    benchmarks/run.py growth --events 2e6,20e6,100e6    payoff alone: seconds and peak memory as events grow

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WINDOW_DAYS = 14
MEMORY = {"one": "4GB", "ten": "1500MB"}
"""What the engine of every contestant that has one may use: a process takes more than its engine, and should stay below 2 GB."""

Figure = tuple[float, float]
Figures = dict[str, Figure]
"""A difference and its standard error, by name."""


# ---------------------------------------------------------------- one experiment x 4 metrics

METRICS = ("views", "clicks", "ordered", "revenue")
ONE = f"""
version: 1
project: bench
connections: {{main: {{engine: duckdb, memory_limit: {MEMORY["one"]}, threads: 2}}}}
defaults: {{entity: user, window: {WINDOW_DAYS}d}}
sources:
  exposures: {{file: exposures.parquet, time: ts, entity: {{user: user_id}}}}
  events:    {{file: events.parquet,    time: ts, entity: {{user: user_id}}}}
metrics:
  views:   {{kind: count, from: events, where: "name = 'view'"}}
  clicks:  {{kind: count, from: events, where: "name = 'click'"}}
  ordered: {{kind: conversion, to: {{source: events, where: "name = 'order'"}}}}
  revenue: {{kind: sum, from: events, column: amount, where: "name = 'order'"}}
experiments:
  ranking:
    assignment: {{source: exposures, variant: arm, control: a, split: {{a: 0.5, b: 0.5}}}}
    primary: revenue
    secondary: [views, clicks, ordered]
"""


def make_one(folder: Path, users: int, events: int) -> None:
    """Time-ordered events of all users; half of them exposed, over ten days."""
    import duckdb

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


def scan_one(folder: Path) -> tuple[float, Figures]:
    """The limit: reading the same columns and doing nothing with them."""
    import duckdb

    connection = duckdb.connect(config={"threads": 2, "memory_limit": MEMORY["one"]})
    start = time.perf_counter()
    connection.execute(
        f"SELECT sum(user_id), max(epoch_us(ts)), min(name), sum(amount) FROM '{folder / 'events.parquet'}'"
    ).fetchall()
    return time.perf_counter() - start, {}


def payoff_one(folder: Path) -> tuple[float, Figures]:
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


def polars_one(folder: Path) -> tuple[float, Figures]:
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


def tea_tasting_one(folder: Path) -> tuple[float, Figures]:
    """The library reads unit-level data; the same engine makes it from the events, and the library does the rest."""
    import duckdb
    import tea_tasting as tt

    connection = duckdb.connect(config={"threads": 2, "memory_limit": MEMORY["one"]})
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


# ---------------------------------------------------------------- 10 experiments x 12 metrics

EXPERIMENTS = tuple(f"x{k}" for k in range(10))
NAMES = ("view", "click", "search", "cart", "order")
TEN_METRICS = {
    "views": "{kind: count, from: events, where: \"name = 'view'\"}",
    "clicks": "{kind: count, from: events, where: \"name = 'click'\"}",
    "searches": "{kind: count, from: events, where: \"name = 'search'\"}",
    "carts": "{kind: count, from: events, where: \"name = 'cart'\"}",
    "orders": "{kind: count, from: events, where: \"name = 'order'\"}",
    "revenue": "{kind: sum, from: events, column: amount, where: \"name = 'order'\"}",
    "cart_value": "{kind: sum, from: events, column: amount, where: \"name = 'cart'\"}",
    "clicked": "{kind: conversion, to: {source: events, where: \"name = 'click'\"}}",
    "carted": "{kind: conversion, to: {source: events, where: \"name = 'cart'\"}}",
    "ordered": "{kind: conversion, to: {source: events, where: \"name = 'order'\"}}",
    "click_rate": "{kind: ratio, numerator: {count: events, where: \"name = 'click'\"}, "
    "denominator: {count: events, where: \"name = 'view'\"}}",
    "order_value": "{kind: ratio, numerator: {sum: events.amount, where: \"name = 'order'\"}, "
    "denominator: {count: events, where: \"name = 'order'\"}}",
}
RATIOS = {"click_rate": ("clicks", "views"), "order_value": ("revenue", "orders")}
UNIT_COLUMNS = tuple(m for m in TEN_METRICS if m not in RATIOS)


def ten_project() -> str:
    metrics = "\n".join(f"  {name}: {text}" for name, text in TEN_METRICS.items())
    experiments = "\n".join(
        f"  {x}:\n"
        f"    assignment: {{source: exposures, where: \"experiment = '{x}'\", variant: arm, control: a, split: {{a: 0.5, b: 0.5}}}}\n"
        f"    primary: revenue\n    secondary: [{', '.join(m for m in TEN_METRICS if m != 'revenue')}]\n    adjust: cuped"
        for x in EXPERIMENTS
    )
    return f"""
version: 1
project: bench
connections: {{main: {{engine: duckdb, memory_limit: {MEMORY["ten"]}, threads: 2}}}}
defaults: {{entity: user, window: {WINDOW_DAYS}d}}
sources:
  exposures: {{file: exposures.parquet, time: ts, entity: {{user: user_id}}}}
  events:    {{file: events.parquet,    time: ts, entity: {{user: user_id}}}}
metrics:
{metrics}
experiments:
{experiments}
"""


def make_ten(folder: Path, users: int, events: int) -> None:
    """Time-ordered events of all users, a tenth of them three times as busy; half of the users in each experiment."""
    import duckdb

    step = int(60 * 86_400e6 / events)
    with duckdb.connect(config={"memory_limit": "4GB"}) as connection:
        connection.execute(
            f"""
            COPY (
              SELECT ((CASE WHEN hash(i * 17) % 4 = 0 THEN hash(i) % {users // 10} ELSE hash(i) % {users} END) * 7919 % {users})::BIGINT AS user_id,
                     TIMESTAMP '2026-06-01' + to_microseconds(i * {step}) AS ts,
                     CASE WHEN h < 55 THEN 'view' WHEN h < 75 THEN 'click' WHEN h < 85 THEN 'search' WHEN h < 95 THEN 'cart' ELSE 'order' END AS name,
                     CASE WHEN h >= 85 THEN (hash(i * 13) % 10000) / 100.0 ELSE 0 END::DOUBLE AS amount
              FROM (SELECT i, hash(i * 7) % 100 AS h FROM range({events}) AS t(i))
              ORDER BY i
            ) TO '{folder / "events.parquet"}' (FORMAT parquet, ROW_GROUP_SIZE 200000)
            """
        )
        connection.execute(
            f"""
            COPY (
              SELECT 'x' || k AS experiment, i AS user_id,
                     TIMESTAMP '2026-06-15' + to_days(k::INT) + to_seconds((hash(i * 3 + k * 1000003) % 864000)::BIGINT) AS ts,
                     CASE WHEN hash(i * 5 + k * 777767) % 2 = 0 THEN 'a' ELSE 'b' END AS arm
              FROM range({users}) AS t(i), range({len(EXPERIMENTS)}) AS e(k) WHERE hash(i * 11 + k * 999983) % 2 = 0
              ORDER BY ts
            ) TO '{folder / "exposures.parquet"}' (FORMAT parquet)
            """
        )


def scan_ten(folder: Path) -> tuple[float, Figures]:
    """The limit: reading the same columns once and doing nothing with them."""
    import duckdb

    connection = duckdb.connect(config={"threads": 2, "memory_limit": MEMORY["ten"]})
    start = time.perf_counter()
    for file, columns in (
        ("events", "sum(user_id), max(epoch_us(ts)), min(name), sum(amount)"),
        ("exposures", "sum(user_id), max(epoch_us(ts)), min(experiment), min(arm)"),
    ):
        connection.execute(f"SELECT {columns} FROM '{folder / f'{file}.parquet'}'").fetchall()
    return time.perf_counter() - start, {}


def payoff_ten(folder: Path) -> tuple[float, Figures]:
    from payoff.report import figures  # noqa: F401  (imports are not what is measured)
    from payoff.run import Project

    start = time.perf_counter()
    run = Project.load(folder).run(record=False)
    took = time.perf_counter() - start
    out = {}
    for result in run.results:
        experiment = result.name.rpartition(".")[2]
        for metric in TEN_METRICS:
            for kind, estimand in (("adjusted", "difference in means"), ("plain", "difference in means, unadjusted")):
                estimate = result.estimate(metric, estimand=estimand)
                out[f"{experiment} {metric} {kind}"] = (estimate.value, estimate.uncertainty.to_dict()["se"])
    return took, out


def polars_ten(folder: Path) -> tuple[float, Figures]:
    """By hand, with the same estimator: each arm its own regression on the values before exposure."""
    import numpy as np
    import polars as pl

    window = pl.duration(days=WINDOW_DAYS)
    out: Figures = {}
    start = time.perf_counter()
    for x in EXPERIMENTS:
        exposed = (
            pl.scan_parquet(folder / "exposures.parquet")
            .filter(pl.col("experiment") == x)
            .group_by("user_id")
            .agg(pl.col("ts").min().alias("t0"), pl.col("arm").first())
        )
        after, named = pl.col("ts") >= pl.col("t0"), {n: pl.col("name") == n for n in NAMES}
        values = []
        for side, suffix in ((after, ""), (~after, "_before")):
            values += [
                *((side & named[n]).sum().cast(pl.Float64).alias(f"{m}{suffix}") for m, n in COUNTED.items()),
                *((side & named[n]).any().cast(pl.Float64).alias(f"{m}{suffix}") for m, n in CONVERTED.items()),
                *(pl.col("amount").filter(side & named[n]).sum().alias(f"{m}{suffix}") for m, n in ADDED.items()),
            ]
        columns = [f"{m}{suffix}" for suffix in ("", "_before") for m in UNIT_COLUMNS]
        units = (
            pl.scan_parquet(folder / "events.parquet")
            .join(exposed, on="user_id")
            .filter(pl.col("ts").is_between(pl.col("t0") - window, pl.col("t0") + window, closed="left"))
            .group_by("user_id")
            .agg(values)
        )
        table = (
            exposed.join(units, on="user_id", how="left")
            .select("arm", *(pl.col(c).fill_null(0.0) for c in columns))
            .collect(engine="streaming")
        )
        arms = {arm: table.filter(pl.col("arm") == arm) for arm in ("a", "b")}
        for metric in TEN_METRICS:
            parts = RATIOS.get(metric, (metric,))
            wanted = [f"{p}{suffix}" for suffix in ("", "_before") for p in parts]
            found = {arm: units.select(wanted).to_numpy() for arm, units in arms.items()}
            if metric in RATIOS:  # who has neither is in no ratio
                found = {arm: u[(u[:, 0] != 0) | (u[:, 1] != 0)] for arm, u in found.items()}
            levels = {arm: _adjusted(u, found, len(parts), np) for arm, u in found.items()}
            for at, kind in enumerate(("plain", "adjusted")):
                a, b = levels["a"][at], levels["b"][at]
                out[f"{x} {metric} {kind}"] = (b[0] - a[0], math.sqrt(a[1] + b[1]))
    return time.perf_counter() - start, out


COUNTED = {"views": "view", "clicks": "click", "searches": "search", "carts": "cart", "orders": "order"}
CONVERTED = {"clicked": "click", "carted": "cart", "ordered": "order"}
ADDED = {"revenue": "order", "cart_value": "cart"}


def _adjusted(units: Any, arms: dict[str, Any], k: int, np: Any) -> tuple[Figure, Figure]:
    """An arm's level and its variance: plain, and adjusted (Lin 2013). Columns are k measures, then the same before exposure."""
    mean, covariance, n = units.mean(axis=0), np.cov(units, rowvar=False), len(units)
    level = mean[0] if k == 1 else mean[0] / mean[1]
    form = np.array([1.0]) if k == 1 else np.array([1.0, -level]) / mean[1]
    pooled = sum(u[:, k:].sum(axis=0) for u in arms.values()) / sum(len(u) for u in arms.values())
    with_before = covariance[k:, :k] @ form
    beta = np.linalg.solve(covariance[k:, k:], with_before)
    variance = form @ covariance[:k, :k] @ form
    plain = float(level), float(variance / n)
    return plain, (float(level - beta @ (mean[k:] - pooled)), float((variance - beta @ with_before) / n))


def tea_tasting_ten(folder: Path) -> tuple[float, Figures]:
    """Unit-level data by the SQL that one would write for one experiment, in the same engine; the library does the rest."""
    import duckdb
    import tea_tasting as tt

    sides = {"": "e.ts >= x.ts", "_before": "e.ts < x.ts"}
    folds = [
        *((m, f"count(*) FILTER (name = '{n}' AND $side)::DOUBLE") for m, n in COUNTED.items()),
        *((m, f"coalesce(bool_or(name = '{n}' AND $side), false)::INT::DOUBLE") for m, n in CONVERTED.items()),
        *((m, f"sum(amount) FILTER (name = '{n}' AND $side)") for m, n in ADDED.items()),
    ]
    values = [f"{fold.replace('$side', side)} AS {m}{suffix}" for suffix, side in sides.items() for m, fold in folds]
    columns = [f"coalesce({m}{suffix}, 0) AS {m}{suffix}" for suffix in sides for m, _ in folds]

    def tests(before: bool) -> dict[str, Any]:
        named = (lambda m: f"{m}_before") if before else (lambda m: None)
        means = {m: tt.Mean(m, covariate=named(m)) for m in UNIT_COLUMNS}
        ratios = {m: tt.RatioOfMeans(n, d, named(n), named(d)) for m, (n, d) in RATIOS.items()}
        return {**means, **ratios}

    connection = duckdb.connect(config={"threads": 2, "memory_limit": MEMORY["ten"]})
    took, out = 0.0, {}
    for x in EXPERIMENTS:
        start = time.perf_counter()
        table = connection.sql(
            f"""
            WITH exposed AS (FROM '{folder / "exposures.parquet"}' WHERE experiment = '{x}')
            SELECT (x.arm = 'b')::BIGINT AS variant, {", ".join(columns)}
            FROM exposed AS x LEFT JOIN (
              SELECT x.user_id, {", ".join(values)}
              FROM '{folder / "events.parquet"}' AS e JOIN exposed AS x
                ON e.user_id = x.user_id AND e.ts >= x.ts - INTERVAL {WINDOW_DAYS} DAY AND e.ts < x.ts + INTERVAL {WINDOW_DAYS} DAY
              GROUP BY 1
            ) AS u USING (user_id)
            """
        ).to_arrow_table()
        adjusted = tt.Experiment(**tests(before=True)).analyze(table)
        took += time.perf_counter() - start
        plain = tt.Experiment(**tests(before=False)).analyze(table)  # for comparison alone
        for kind, result in (("adjusted", adjusted), ("plain", plain)):
            for m in TEN_METRICS:
                one = result[m]
                out[f"{x} {m} {kind}"] = (one.effect_size, one.effect_size / one.statistic)
    return took, out


# ---------------------------------------------------------------- the race

SETS: dict[str, dict[str, Callable[[Path], tuple[float, Figures]]]] = {
    "one": {"scan": scan_one, "payoff": payoff_one, "polars": polars_one, "tea-tasting": tea_tasting_one},
    "ten": {"scan": scan_ten, "payoff": payoff_ten, "polars": polars_ten, "tea-tasting": tea_tasting_ten},
}
TITLES = {"one": "1 experiment x 4 metrics", "ten": "10 experiments x 12 metrics (2 ratios), CUPED"}


def _welch(rows: dict[str, Any], metric: str) -> Figure:
    a, b = rows["a"], rows["b"]
    se = math.sqrt(a[f"{metric}_var"] / a["n"] + b[f"{metric}_var"] / b["n"])
    return b[f"{metric}_mean"] - a[f"{metric}_mean"], se


def disagreement(who: str, name: str, ours: Figure, theirs: Figure) -> str | None:
    """What two contestants say differently, None where they agree.

    Plain differences are the same number, computed in another order: 1e-8, relatively (or of the standard error, beside a
    difference near zero). So are adjusted ones where the estimator is the same. tea-tasting adjusts both arms by one pooled
    slope, payoff each arm by its own: the two differ by (arm's slope - pooled slope) x (arm's mean before exposure - pooled
    mean), a product of two chances, 1 / n where a standard error is 1 / sqrt(n). A twentieth of a standard error is allowed.
    Standard errors of adjusted differences differ by terms of second order, which payoff counts and the others leave out;
    tea-tasting's plain variances move in the sixth digit between runs, and its ratios count the units that have neither part.
    """
    other, adjusted = who == "tea-tasting", name.endswith("adjusted")
    value = 0.05 * ours[1] if other and adjusted else 1e-8 * max(abs(ours[0]), ours[1])
    error = 1e-2 if adjusted else 1e-4 if other else 1e-8
    if abs(ours[0] - theirs[0]) <= value and math.isclose(ours[1], theirs[1], rel_tol=error):
        return None
    return f"{who} disagrees on {name}: {theirs} against {ours}"


def make(folder: Path, which: str, users: int, events: int) -> Path:
    """The data of a set, made once."""
    folder = folder / f"{which}-{users}-{events}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "payoff.yml").write_text(ONE if which == "one" else ten_project())
    stamp = folder / "made"
    if not stamp.exists():
        print(f"making {events:,} events of {users:,} users in {folder} ...", file=sys.stderr)
        # in a process of its own too: on Linux a child's peak memory begins at what its parent holds
        command = [sys.executable, __file__, which, "--make", "--data", str(folder)]
        subprocess.run([*command, "--users", str(users), "--events", str(events)], check=True)
        stamp.touch()
    return folder


def contest(which: str, name: str, folder: Path) -> dict[str, Any]:
    """A contestant in a process of its own."""
    command = [sys.executable, __file__, which, "--contestant", name, "--data", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def race(which: str, names: list[str], folder: Path, users: int, events: int, repeats: int) -> None:
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            seen[name].append(contest(which, name, folder))
    reference = seen["payoff"][0]["figures"]
    for name, runs in seen.items():
        for run in runs:
            if run["figures"] and run["figures"].keys() != reference.keys():
                sys.exit(f"{name} has other figures: {run['figures'].keys() ^ reference.keys()}")
            found = [disagreement(name, key, reference[key], theirs) for key, theirs in run["figures"].items()]
            if any(found):
                sys.exit("\n".join(text for text in found if text))
    print(f"{TITLES[which]}, {events:,} events of {users:,} users; {platform.machine()},"
          f" {os.cpu_count()} cores, Python {platform.python_version()}; medians of {repeats}; all figures agree")  # fmt: skip
    median = {
        n: {k: statistics.median(r[k] for r in runs) for k in ("seconds", "peak_mib")} for n, runs in seen.items()
    }
    base = median["scan"]["seconds"] if "scan" in median else math.nan
    print(f"{'':14}{'seconds':>9}{'x scan':>9}{'x payoff':>10}{'peak MiB':>10}")
    for name, of in median.items():
        took = of["seconds"]
        print(f"{name:14}{took:9.2f}{took / base:9.1f}{took / median['payoff']['seconds']:10.2f}{of['peak_mib']:10.0f}")


def growth(folder: Path, users: int, sizes: list[int], repeats: int) -> None:
    """payoff alone on ten experiments, at several numbers of events: does time grow in line, does memory stay?"""
    print(f"{TITLES['ten']}, {users:,} users; medians of {repeats}")
    print(f"{'events':>12}{'scan s':>9}{'payoff s':>10}{'x scan':>8}{'us/event':>10}{'peak MiB':>10}")
    for events in sizes:
        made = make(folder, "ten", users, events)
        runs = [(contest("ten", "scan", made), contest("ten", "payoff", made)) for _ in range(repeats)]
        base, took = (statistics.median(pair[i]["seconds"] for pair in runs) for i in (0, 1))
        peak = statistics.median(pair[1]["peak_mib"] for pair in runs)
        print(f"{events:12,}{base:9.2f}{took:10.2f}{took / base:8.1f}{1e6 * took / events:10.3f}{peak:10.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", nargs="?", choices=("both", *SETS, "growth"), default="both")
    parser.add_argument("--users", type=lambda text: int(float(text)), default=1_000_000)
    parser.add_argument("--events", default=None, help="rows; several, with commas, for growth")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--contestants", default=",".join(SETS["one"]), help="some of them, with commas")
    parser.add_argument("--contestant", choices=SETS["one"], help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        {"one": make_one, "ten": make_ten}[arguments.set](arguments.data, arguments.users, int(arguments.events))
        return
    if arguments.contestant:
        took, figures = SETS[arguments.set][arguments.contestant](arguments.data)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": took, "peak_mib": peak, "figures": figures}))
        return
    default = "2e6,20e6,100e6" if arguments.set == "growth" else "20e6"
    sizes = [int(float(text)) for text in (arguments.events or default).split(",")]
    if arguments.set == "growth":
        growth(arguments.data, arguments.users, sizes, arguments.repeats)
        return
    names = [name for name in SETS["one"] if name in {"payoff", *arguments.contestants.split(",")}]
    for which in SETS if arguments.set == "both" else (arguments.set,):
        for events in sizes:
            folder = make(arguments.data, which, arguments.users, events)
            race(which, names, folder, arguments.users, events, arguments.repeats)


if __name__ == "__main__":
    main()

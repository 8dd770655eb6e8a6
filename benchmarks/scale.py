"""A company's event table at 20 and 100 million rows: what payoff takes, what others take, and how far all are from reading the columns.

    make bench                                            every task at 20M events of 1M users
    benchmarks/scale.py a c --events 2e6 --repeats 5      some tasks, other sizes
    benchmarks/scale.py --events 100e6 --out at100.md     one user for twenty events; tables and raw figures after each contestant
    benchmarks/scale.py --spark .venv-spark/bin/python    Spark beside them, in an environment that has it
    benchmarks/scale.py e --channel-attribution .venv-attribution/bin/python
    benchmarks/scale.py a --strings                       ids that are text
    benchmarks/scale.py returned                          bytes that come back to the client, by experiments, metrics and segments

Tasks: a: 3 experiments x 4 metrics, CUPED; b: 10 x 12 (two ratios), CUPED; c: a funnel of 4 steps in 7 days; d: retention over 12 weeks;
acd: those three in one run, and one after another; e: five models of attribution; f: identity over pairs of ids; g: one new day, after a
run that knew all the days before; h: 2,000 bootstrap replicates over the users.

Each contestant is a process of its own (so that peak memory is its own), repeated in turn with the others. All of a task must agree on
the figures, or the benchmark fails. An ``--out`` file that has other tasks of the same data is added to.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from race import Aim, Figures, Record, Watch, contest, has, machine, peak_mib, perform

HERE = Path(__file__).parent
DAYS, WINDOW_DAYS = 90, 14
WEEK = 7 * 86_400_000_000
LIMIT = "2500MB"
"""What the engine of every contestant that has one may use; the process takes more, and should stay below 4 GiB."""
SEED = 20_260_601
EXPERIMENTS = tuple(f"x{k}" for k in range(10))
NAMES = ("view", "click", "search", "cart", "order")
STEPS = ("view", "click", "cart", "order")
REHEARSED = {"users": 2_000, "events": 40_000}

# ---------------------------------------------------------------- data

# A quarter of the rows is of a tenth of the users, beside what they have of the others.
USER = "((CASE WHEN hash(i * 17 + {salt}) % 4 = 0 THEN hash(i + {salt}) % {tenth} ELSE hash(i + {salt}) % {users} END) * 7919 % {users})::BIGINT"
TIME = "TIMESTAMP '2026-06-01' + to_microseconds((i * {step})::BIGINT)"
DAY_OF_EVENTS = f"""
COPY (
  SELECT {{user}} AS user_id, {TIME} AS ts,
         CASE WHEN h < 55 THEN 'view' WHEN h < 75 THEN 'click' WHEN h < 85 THEN 'search' WHEN h < 95 THEN 'cart' ELSE 'order' END AS name,
         CASE WHEN h >= 85 THEN (hash(i * 13) % 10000) / 100.0 ELSE 0 END::DOUBLE AS amount
  FROM (SELECT i, hash(i * 7) % 100 AS h, {USER.replace("{salt}", "0")} AS u FROM range({{first}}, {{last}}) AS t(i))
  ORDER BY i
) TO '{{path}}' (FORMAT parquet, ROW_GROUP_SIZE 200000)
"""
DAY_OF_TOUCHES = f"""
COPY (
  SELECT {{user}} AS user_id, {TIME} AS ts, 'c' || floor(12 * pow((hash(i * 31) % 1000000) / 1e6, 2))::INT AS channel
  FROM (SELECT i, {USER.replace("{salt}", "1000003")} AS u FROM range({{first}}, {{last}}) AS t(i))
  ORDER BY i
) TO '{{path}}' (FORMAT parquet, ROW_GROUP_SIZE 200000)
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
PAIRS = """
COPY (
  SELECT 'u' || (hash(i) % {people}) AS user_id,
         'd' || (CASE WHEN hash(i * 3) % 20 = 0 THEN hash(i * 5) % {edges} ELSE i END) AS device_id,
         TIMESTAMP '2026-06-01' + to_microseconds((hash(i * 3) % {span})::BIGINT) AS ts
  FROM range({edges}) AS t(i) ORDER BY ts
) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 200000)
"""
FEW = """
COPY (
  SELECT 'd' || i AS any_id, TIMESTAMP '2026-06-01' + to_seconds(i) AS ts, CASE WHEN i % 10 = 0 THEN 'order' ELSE 'view' END AS name
  FROM range(20000) AS t(i)
) TO '{path}' (FORMAT parquet)
"""


WRITTEN = ("events", "touches", "exposures.parquet", "pairs.parquet", "few.parquet")


def touches_of(events: int) -> int:
    return events * 3 // 5


def files_of(events: int) -> int:
    """A file a day; every ten days where there is little."""
    return DAYS if events >= 1_000_000 else DAYS // 10


def edges_of(events: int) -> int:
    """Five million from twenty million events on."""
    return min(max(events // 4, 3000), 5_000_000)


def make(folder: Path, users: int, events: int, strings: bool) -> None:
    """What is not there yet: time-ordered events and touches of 90 days, a file a day; exposures, half of the users in each
    experiment; pairs of ids, three a person, one in twenty over a device that somebody else has too."""
    import duckdb

    user = "'user-' || lpad(u::VARCHAR, 9, '0')" if strings else "u"
    own = {"users": users, "tenth": max(users // 10, 1), "user": user}
    edges, span = edges_of(events), DAYS * 86_400_000_000
    with duckdb.connect(config={"memory_limit": LIMIT, "threads": 2}) as connection:

        def days(path: Path, text: str, rows: int) -> None:
            path.mkdir()
            files = files_of(events)
            edge = [round(rows * d / files) for d in range(files + 1)]
            for d in range(files):
                place = {"path": path / f"{d:03}.parquet", "first": edge[d], "last": edge[d + 1], "step": span / rows}
                connection.execute(text.format(**place, **own))

        one: dict[str, Callable[[Path], object]] = {
            "events": lambda path: days(path, DAY_OF_EVENTS, events),
            "touches": lambda path: days(path, DAY_OF_TOUCHES, touches_of(events)),
            "exposures.parquet": lambda path: connection.execute(
                EXPOSURES.format(path=path, experiments=len(EXPERIMENTS), **own)
            ),
            "pairs.parquet": lambda path: connection.execute(
                PAIRS.format(path=path, edges=edges, people=edges // 3, span=span)
            ),
            "few.parquet": lambda path: connection.execute(FEW.format(path=path)),
        }
        for name, write in one.items():
            if not (folder / name).exists():
                unfinished = folder / f"unfinished-{name}"
                shutil.rmtree(unfinished, ignore_errors=True)
                write(unfinished)
                unfinished.rename(folder / name)


def made(root: Path, users: int, events: int, strings: bool) -> Path:
    """The data, made once; in a process of its own, for its memory."""
    data = root / f"scale-{users}-{events}{'-strings' if strings else ''}"
    data.mkdir(parents=True, exist_ok=True)
    if all((data / name).exists() for name in WRITTEN):
        return data
    command = [sys.executable, __file__, "--make", "--data", data, "--users", users, "--events", events]
    subprocess.run([str(c) for c in (*command, *(["--strings"] if strings else []))], check=True)
    return data


# ---------------------------------------------------------------- projects

COUNTED = {"views": "view", "clicks": "click", "searches": "search", "carts": "cart", "orders": "order"}
CONVERTED = {"clicked": "click", "carted": "cart", "ordered": "order"}
ADDED = {"revenue": "order", "cart_value": "cart"}
RATIOS = {"click_rate": ("clicks", "views"), "order_value": ("revenue", "orders")}
FOUR = ("revenue", "views", "clicks", "ordered")
TWELVE = (*COUNTED, *CONVERTED, *ADDED, *RATIOS)
ASKED = {"a": (EXPERIMENTS[:3], FOUR), "b": (EXPERIMENTS, TWELVE)}
RULES = ("first", "last", "linear", "time_decay", "position")


def parts_of(metrics: tuple[str, ...]) -> list[str]:
    """What has to be counted for these metrics, once each."""
    return list(dict.fromkeys(part for metric in metrics for part in RATIOS.get(metric, (metric,))))


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


def experiments(names: tuple[str, ...], metrics: tuple[str, ...], more: str = "") -> str:
    lines = ["metrics:", *(f"  {name}: {_metric(name)}" for name in metrics), "experiments:"]
    for x in names:
        lines += [
            f"  {x}:",
            f"    assignment: {{source: exposures, where: \"experiment = '{x}'\", variant: arm, control: a, split: {{a: 0.5, b: 0.5}}}}",
            f"    primary: revenue\n    secondary: [{', '.join(m for m in metrics if m != 'revenue')}]\n    adjust: cuped{more}",
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
ATTRIBUTION = """
touchpoints:
  channel: {source: touches, by: channel}
attribution:
  a:
    conversion: {event: {source: events, where: "name = 'order'"}, value: amount}
    touchpoints: [channel]
    window: 30d
    models: [first, last, linear, {time_decay: {half_life: 7d}}, {position: [0.4, 0.2, 0.4]}]
"""
IDENTITY = """
funnels:
  f: {steps: [{name: a, source: few}, {name: b, source: few, where: "name = 'order'"}], within: 1h}
"""
WHAT = {
    "a": experiments(*ASKED["a"]),
    "b": experiments(*ASKED["b"]),
    "c": FUNNEL,
    "d": COHORT,
    "acd": experiments(*ASKED["a"]) + FUNNEL + COHORT,
    "e": ATTRIBUTION,
    "f": IDENTITY,
    "g": experiments(*ASKED["a"]),
    "layout": experiments(*ASKED["a"]) + FUNNEL + COHORT + ATTRIBUTION,
}
SOURCES = {"e": ("events", "touches"), "f": ("pairs", "few"), "layout": ("events", "exposures", "touches")}
WHERE = {
    "events": "file: {up}/events/*.parquet, time: ts, entity: {{user: user_id}}",
    "touches": "file: {up}/touches/*.parquet, time: ts, entity: {{user: user_id}}",
    "exposures": "file: {up}/exposures.parquet, time: ts, entity: {{user: user_id}}",
    "pairs": "file: {up}/pairs.parquet, time: ts",
    "few": "file: {up}/few.parquet, time: ts, entity: {{user: any_id}}",
}
DUCKDB = f"main: {{engine: duckdb, memory_limit: {LIMIT}, threads: 2}}"
SPARK = "main: {engine: spark, url: 'local[2]', options: {spark.driver.memory: 3g, spark.ui.enabled: 'false', spark.sql.shuffle.partitions: '8'}}"
CHDB = "main: {engine: clickhouse, path: chdb}"


def project(task: str, connection: str, what: str | None = None, where: Mapping[str, str] | None = None) -> str:
    """Its text; files are two folders up, but for those that ``where`` has in another place."""
    by = "" if "duckdb" in connection else ", connection: main"
    user = (
        "{id: user_id, aliases: [device_id], identity: {source: pairs, max_size: 1000}}"
        if task == "f"
        else "{id: user_id}"
    )
    sources = [
        f"  {name}: {{{WHERE[name].format(up=(where or {}).get(name, '../..'))}{by}}}"
        for name in SOURCES.get(task, ("events", "exposures"))
    ]  # fmt: skip
    return "\n".join([
        "version: 1",
        "project: bench",
        f"connections: {{{connection}}}",
        f"defaults: {{entity: user, window: {WINDOW_DAYS}d}}",
        f"entities: {{user: {user}}}",
        "sources:",
        *sources,
        WHAT[task] if what is None else what,
    ])  # fmt: skip


def folder_of(data: Path, who: str, task: str, connection: str = DUCKDB) -> Path:
    folder = data / who / task
    folder.mkdir(parents=True, exist_ok=True)
    text = project(task, connection)
    if not (folder / "payoff.yml").exists() or (folder / "payoff.yml").read_text() != text:
        (folder / "payoff.yml").write_text(text)
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
        told = result.to_dict()
        for e in told["estimates"]:
            if kind == "funnels" and e["estimand"] == "units reaching step":
                out[f"step {e['step']}"] = (e["value"], 0.0)
            elif kind == "cohorts" and e["estimand"] == "retention" and e["cohort"] == "(all)":
                out[f"week {e['period']}"] = (e["value"], 0.0)
            elif (
                kind == "attribution"
                and e["estimand"] == "attributed conversions"
                and not e["touchpoint"].startswith("(")
            ):
                out[f"{e['model']} {e['touchpoint'].removeprefix('channel: ')}"] = (e["value"], 0.0)
        if stitching := told["closer"].get("stitching") if kind == "funnels" else None:
            out = {what: (float(stitching[0][what]), 0.0) for what in ("units", "ids")}
        if kind in ("", "experiments"):
            for metric in {e.metric for e in result.estimates}:
                for said, estimand in (
                    ("adjusted", "difference in means"),
                    ("plain", "difference in means, unadjusted"),
                ):
                    e = result.estimate(metric, estimand=estimand)
                    out[f"{name} {metric} {said}"] = (e.value, e.uncertainty.to_dict()["se"])
    return out


def payoff(data: Path, task: str, watch: Watch) -> Figures:
    """The stored rows: Project.load and run."""
    folder = folder_of(data, "payoff", task)
    with watch:
        run = _load(folder).run(record=False)
    return figures_of(run)


def payoff_prepared(data: Path, task: str, watch: Watch) -> Figures:
    """The prepared copies, everything counted and its state kept."""
    folder = folder_of(data, "payoff-prepared", task)
    with watch:
        run = _load(folder).run(record=False, full=True)
    _reads_copies(run)
    return figures_of(run)


def payoff_again(data: Path, task: str, watch: Watch) -> Figures:
    """The same once more, with what the run before remembers and nothing new."""
    folder = folder_of(data, "payoff-prepared", task)
    with watch:
        run = _load(folder).run(record=False)
    return figures_of(run)


def payoff_apart(data: Path, task: str, watch: Watch) -> Figures:
    """a, c and d asked one after another, each in a run of its own."""
    return {k: v for one in ("a", "c", "d") for k, v in payoff_prepared(data, one, watch).items()}


def payoff_on_chdb(data: Path, task: str, watch: Watch) -> Figures:
    folder = folder_of(data, "payoff on chdb", task, CHDB)
    (folder / "chdb").mkdir(exist_ok=True)  # a database without tables: the files are read where they are
    with watch:
        run = _load(folder).run(record=False)
    return figures_of(run)


def payoff_on_spark(data: Path, task: str, watch: Watch) -> Figures:
    """The same project on a classic session of two threads, started beforehand."""
    _spark()
    folder = folder_of(data, "payoff on Spark", task, SPARK)
    with watch:
        run = _load(folder).run(record=False)
    return figures_of(run)


def _reads_copies(run: Any) -> None:
    """A copy that went stale would be passed over in silence, and the stored rows timed."""
    if not any("prepared" in step.reads for step in run.plan):
        sys.exit("the prepared copies were not read")


# ---------------------------------------------------------------- others


def _files(data: Path) -> tuple[str, str]:
    return str(data / "events" / "*.parquet"), str(data / "exposures.parquet")


def _session() -> Any:
    import duckdb

    return duckdb.connect(config={"threads": 2, "memory_limit": LIMIT})


ROWS = "max(user_id), max(epoch_us(ts)), min(name), sum(amount)"
SCANS = {
    "c": {"events": "max(user_id), max(epoch_us(ts)), min(name)"},
    "d": {"events": "max(user_id), max(epoch_us(ts))"},
    "e": {"events": ROWS, "touches": "max(user_id), max(epoch_us(ts)), min(channel)"},
    "f": {"pairs": "max(user_id), max(device_id), max(epoch_us(ts))"},
}
WHOLE = {"events": ROWS, "exposures": "max(user_id), max(epoch_us(ts)), min(experiment), min(arm)"}


def scan(data: Path, task: str, watch: Watch) -> Figures:
    """The limit: DuckDB reads the same columns once and does nothing with them."""
    connection = _session()
    with watch:
        for name, columns in SCANS.get(task, WHOLE).items():
            path = data / (f"{name}/*.parquet" if name in ("events", "touches") else f"{name}.parquet")
            connection.execute(f"SELECT {columns} FROM '{path}'").fetchall()
    return {}


def _folds(metrics: tuple[str, ...]) -> dict[str, str]:
    """Name -> aggregate, in SQL that DuckDB and Spark share: values of the window, then of the time before exposure."""
    out = {}
    for suffix, side in (("", "e.ts >= x.ts"), ("_before", "e.ts < x.ts")):
        for part in parts_of(metrics):
            name = {**COUNTED, **CONVERTED, **ADDED}[part]
            test = f"name = '{name}' AND {side}"
            if part in ADDED:
                out[part + suffix] = f"sum(amount) FILTER (WHERE {test})"
            elif part in CONVERTED:
                out[part + suffix] = f"CAST(max(CASE WHEN {test} THEN 1 ELSE 0 END) AS DOUBLE)"
            else:
                out[part + suffix] = f"CAST(count(*) FILTER (WHERE {test}) AS DOUBLE)"
    return out


def _units_sql(events: str, exposures: str, x: str, metrics: tuple[str, ...]) -> str:
    """A row for each unit of an experiment: what one would write for one experiment."""
    folds = _folds(metrics)
    return f"""
        WITH exposed AS (SELECT user_id, ts, arm FROM {exposures} WHERE experiment = '{x}')
        SELECT x.arm, CASE WHEN x.arm = 'b' THEN 1 ELSE 0 END AS variant, {", ".join(f"coalesce({n}, 0) AS {n}" for n in folds)}
        FROM exposed AS x LEFT JOIN (
          SELECT x.user_id, {", ".join(f"{f} AS {n}" for n, f in folds.items())}
          FROM {events} AS e JOIN exposed AS x
            ON e.user_id = x.user_id AND e.ts >= x.ts - INTERVAL {WINDOW_DAYS} DAY AND e.ts < x.ts + INTERVAL {WINDOW_DAYS} DAY
          GROUP BY x.user_id
        ) AS u ON u.user_id = x.user_id
    """


def tea_tasting(data: Path, task: str, watch: Watch) -> Figures:
    """Unit-level data by the SQL that one would write for one experiment, in the same engine; the library does the rest."""
    import tea_tasting as tt

    names, metrics = ASKED[task]

    def tests(before: bool) -> dict[str, Any]:
        named = (lambda m: f"{m}_before") if before else (lambda m: None)
        return {
            m: tt.RatioOfMeans(*RATIOS[m], *(named(p) for p in RATIOS[m]))
            if m in RATIOS
            else tt.Mean(m, covariate=named(m))
            for m in metrics
        }

    connection, (events, exposures) = _session(), _files(data)
    out = {}
    for x in names:
        with watch:
            table = connection.sql(_units_sql(f"'{events}'", f"'{exposures}'", x, metrics)).to_arrow_table()
            adjusted = tt.Experiment(**tests(before=True)).analyze(table)
        plain = tt.Experiment(**tests(before=False)).analyze(table)  # for comparison alone
        for kind, result in (("adjusted", adjusted), ("plain", plain)):
            for m in metrics:
                one = result[m]
                out[f"{x} {m} {kind}"] = (one.effect_size, one.effect_size / one.statistic)
    return out


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


def polars(data: Path, task: str, watch: Watch) -> Figures:
    """The same by hand, lazily, with the streaming engine where it can."""
    with watch:
        return {"a": _polars_units, "b": _polars_units, "c": _polars_funnel, "d": _polars_grid, "e": _polars_credit, "f": _polars_identity}[task](data, task)  # fmt: skip


def _polars_units(data: Path, task: str) -> Figures:
    import polars as pl

    events, exposures = _files(data)
    names, metrics = ASKED[task]
    out: Figures = {}
    for x in names:
        exposed = (
            pl.scan_parquet(exposures)
            .filter(pl.col("experiment") == x)
            .group_by("user_id")
            .agg(pl.col("ts").min().alias("t0"), pl.col("arm").first())
        )
        after, named = pl.col("ts") >= pl.col("t0"), {n: pl.col("name") == n for n in NAMES}
        values = {}
        for side, suffix in ((after, ""), (~after, "_before")):
            for part in parts_of(metrics):
                if part in COUNTED:
                    value = (side & named[COUNTED[part]]).sum().cast(pl.Float64)
                elif part in CONVERTED:
                    value = (side & named[CONVERTED[part]]).any().cast(pl.Float64)
                else:
                    value = pl.col("amount").filter(side & named[ADDED[part]]).sum()
                values[part + suffix] = value.alias(part + suffix)
        window = pl.duration(days=WINDOW_DAYS)
        units = (
            pl.scan_parquet(events)
            .join(exposed, on="user_id")
            .filter(pl.col("ts").is_between(pl.col("t0") - window, pl.col("t0") + window, closed="left"))
            .group_by("user_id")
            .agg(values.values())
        )
        table = (
            exposed.join(units, on="user_id", how="left")
            .select("arm", *(pl.col(c).fill_null(0.0) for c in values))
            .collect(engine="streaming")
        )
        columns = {arm: {c: table.filter(pl.col("arm") == arm)[c].to_numpy() for c in values} for arm in ("a", "b")}
        _differences(x, metrics, columns, out)
    return out


def _polars_funnel(data: Path, task: str) -> Figures:
    import polars as pl

    rows = pl.scan_parquet(_files(data)[0]).select("user_id", "ts", "name")
    last = rows.select(pl.col("ts").max()).collect(engine="streaming").item()
    steps = {n: rows.filter(pl.col("name") == n).select("user_id", "ts").collect().sort("ts") for n in STEPS}
    week = pl.duration(days=7)
    reach = steps["view"].filter(pl.col("ts") + week <= last).with_columns(pl.col("ts").alias("entry"))
    out = {"step view": (float(reach["user_id"].n_unique()), 0.0)}
    for name in STEPS[1:]:
        following = steps[name].join_asof(reach, on="ts", by="user_id", strategy="backward")
        reach = following.filter(pl.col("entry").is_not_null() & (pl.col("ts") <= pl.col("entry") + week))
        out[f"step {name}"] = (float(reach["user_id"].n_unique()), 0.0)
    return out


def _polars_grid(data: Path, task: str) -> Figures:
    import polars as pl

    rows = pl.scan_parquet(_files(data)[0]).select("user_id", "ts")
    begin = rows.group_by("user_id").agg(pl.col("ts").min().alias("t0"))
    last = rows.select(pl.col("ts").max()).collect(engine="streaming").item()
    period = (pl.col("ts") - pl.col("t0")).dt.total_microseconds() // WEEK
    active = (
        rows.join(begin, on="user_id").select("user_id", "t0", period.alias("k")).filter(pl.col("k") < 12).unique()
    ).collect(engine="streaming")
    begun = begin.collect(engine="streaming")
    out = {}
    for k in range(12):
        closed = pl.col("t0") + pl.duration(days=7 * (k + 1)) <= last
        if of := begun.filter(closed).height:
            out[f"week {k}"] = (active.filter((pl.col("k") == k) & closed).height / of, 0.0)
    return out


def _polars_credit(data: Path, task: str) -> Figures:
    import polars as pl

    orders = (
        pl.scan_parquet(_files(data)[0])
        .filter(pl.col("name") == "order")
        .select("user_id", pl.col("ts").alias("at"))
        .with_row_index("order")
    )
    touches = pl.scan_parquet(data / "touches" / "*.parquet").select("user_id", "ts", "channel")
    inside = (pl.col("ts") <= pl.col("at")) & (pl.col("ts") > pl.col("at") - pl.duration(days=30))
    at, size = pl.col("ts").rank("ordinal").over("order"), pl.len().over("order")
    decay = 0.5 ** ((pl.col("at") - pl.col("ts")).dt.total_microseconds() / WEEK)
    weights = {
        "first": (at == 1).cast(pl.Float64),
        "last": (at == size).cast(pl.Float64),
        "linear": 1 / size,
        "time_decay": decay / decay.sum().over("order"),
        "position": pl.when(size == 1).then(1.0).when(size == 2).then(0.5)
        .when((at == 1) | (at == size)).then(0.4).otherwise(0.2 / (size - 2)),
    }  # fmt: skip
    table = (
        touches.join(orders, on="user_id")
        .filter(inside)
        .with_columns(weights[m].alias(m) for m in RULES)
        .group_by("channel")
        .agg(pl.col(m).sum() for m in RULES)
        .collect(engine="streaming")
    )
    return {f"{m} {row['channel']}": (row[m], 0.0) for row in table.to_dicts() for m in RULES}


def _polars_identity(data: Path, task: str) -> Figures:
    import numpy as np
    import polars as pl

    pairs = pl.scan_parquet(data / "pairs.parquet").select("user_id", "device_id").unique().collect()
    ids = pl.concat([pairs["user_id"], pairs["device_id"]]).unique()
    code = pl.DataFrame({"id": ids, "n": pl.int_range(len(ids), eager=True)})
    coded = pairs.join(code.rename({"n": "a"}), left_on="user_id", right_on="id")
    coded = coded.join(code.rename({"n": "b"}), left_on="device_id", right_on="id")
    a, b = coded["a"].to_numpy(), coded["b"].to_numpy()
    root = np.arange(len(ids))
    while True:  # the smallest neighbour, and the neighbour's own smallest, until nothing moves
        before = root.copy()
        low = np.minimum(root[a], root[b])
        np.minimum.at(root, a, low)
        np.minimum.at(root, b, low)
        root = np.minimum(root, root[root])
        if (root == before).all():
            break
    return _joined(np.unique(root, return_counts=True)[1])


def _joined(sizes: Any) -> Figures:
    joined = sizes[(sizes > 1) & (sizes <= 1000)]
    return {"units": (float(len(joined)), 0.0), "ids": (float(joined.sum()), 0.0)}


def pandas(data: Path, task: str, watch: Watch) -> Figures:
    """The same in frames that are whole in memory."""
    with watch:
        return {"a": _pandas_units, "b": _pandas_units, "c": _pandas_funnel, "d": _pandas_grid}[task](data, task)


def _pandas_units(data: Path, task: str) -> Figures:
    import pandas as pd

    names, metrics = ASKED[task]
    out: Figures = {}
    rows = pd.read_parquet(data / "events", columns=["user_id", "ts", "name", "amount"])
    every = pd.read_parquet(data / "exposures.parquet")
    window = pd.Timedelta(days=WINDOW_DAYS)
    for x in names:
        exposed = every[every["experiment"] == x].rename(columns={"ts": "t0"})[["user_id", "t0", "arm"]]
        joined = rows.merge(exposed, on="user_id")
        joined = joined[(joined["ts"] >= joined["t0"] - window) & (joined["ts"] < joined["t0"] + window)]
        after = joined["ts"] >= joined["t0"]
        units = exposed.set_index("user_id")
        for side, suffix in ((after, ""), (~after, "_before")):
            by = {name: of.groupby("user_id")["amount"] for name, of in joined[side].groupby("name")}
            for part in parts_of(metrics):
                of = by[{**COUNTED, **CONVERTED, **ADDED}[part]]
                if part in ADDED:
                    units[part + suffix] = of.sum()
                elif part in CONVERTED:
                    units[part + suffix] = (of.size() > 0).astype(float)
                else:
                    units[part + suffix] = of.size()
        units = units.fillna({c: 0.0 for c in units.columns if c not in ("t0", "arm")})
        _differences(x, metrics, dict(iter(units.groupby("arm"))), out)
    return out


def _pandas_funnel(data: Path, task: str) -> Figures:
    import pandas as pd

    rows = pd.read_parquet(data / "events", columns=["user_id", "ts", "name"])
    week, last = pd.Timedelta(days=7), rows["ts"].max()
    steps = {n: rows.loc[rows["name"] == n, ["user_id", "ts"]].sort_values("ts") for n in STEPS}
    reach = steps["view"][steps["view"]["ts"] + week <= last]
    reach = reach.assign(entry=reach["ts"])
    out = {"step view": (float(reach["user_id"].nunique()), 0.0)}
    for name in STEPS[1:]:
        following = pd.merge_asof(steps[name], reach, on="ts", by="user_id")
        reach = following[following["ts"] <= following["entry"] + week]
        out[f"step {name}"] = (float(reach["user_id"].nunique()), 0.0)
    return out


def _pandas_grid(data: Path, task: str) -> Figures:
    import pandas as pd

    rows = pd.read_parquet(data / "events", columns=["user_id", "ts"])
    begun, last = rows.groupby("user_id")["ts"].min().rename("t0"), rows["ts"].max()
    rows = rows.join(begun, on="user_id")
    rows["k"] = (rows["ts"] - rows["t0"]) // pd.Timedelta(days=7)
    active = rows[["user_id", "t0", "k"]].drop_duplicates()
    out = {}
    for k in range(12):
        closed = pd.Timedelta(days=7 * (k + 1))
        if of := int((begun + closed <= last).sum()):
            out[f"week {k}"] = (int(((active["k"] == k) & (active["t0"] + closed <= last)).sum()) / of, 0.0)
    return out


def window_funnel(data: Path, task: str, watch: Watch) -> Figures:
    """ClickHouse in process: windowFunnel over the same steps. Entries whose window is still open are left out, as payoff leaves them."""
    from chdb import session

    events, _ = _files(data)
    chdb = session.Session()
    chdb.query(f"SET max_threads = 2; SET max_memory_usage = {4 * 2**30}")
    with watch:
        last = json.loads(chdb.query(f"SELECT max(ts) AS m FROM file('{events}', Parquet)", "JSONEachRow").bytes())["m"]
        found = chdb.query(
            f"""
            SELECT countIf(level >= 1), countIf(level >= 2), countIf(level >= 3), countIf(level >= 4) FROM (
              SELECT user_id, windowFunnel({WEEK})(toUInt64(toUnixTimestamp64Micro(ts)),
                       name = 'view' AND ts <= toDateTime64('{last}', 6) - INTERVAL 7 DAY, name = 'click', name = 'cart', name = 'order') AS level
              FROM file('{events}', Parquet) GROUP BY user_id)
            """,
            "TabSeparated",
        ).bytes()
    counts = [float(n) for n in found.decode().split()]
    return {f"step {name}": (n, 0.0) for name, n in zip(STEPS, counts, strict=True)}


def _retention_sql(events: str, us: str, floor: str, last: int) -> str:
    return f"""
        WITH begun AS (SELECT user_id, min({us}) AS t0 FROM {events} GROUP BY user_id),
        active AS (SELECT {floor} AS k, count(DISTINCT e.user_id) AS n
                   FROM (SELECT user_id, {us} AS t FROM {events}) AS e JOIN begun AS b ON b.user_id = e.user_id
                   WHERE b.t0 + ({floor} + 1) * {WEEK} <= {last} GROUP BY {floor})
        SELECT k, n, (SELECT count(*) FROM begun WHERE t0 + (k + 1) * {WEEK} <= {last}) AS of FROM active WHERE k < 12 ORDER BY k
    """


def count_distinct(data: Path, task: str, watch: Watch) -> Figures:
    """The query that everybody writes for retention, on the same engine."""
    connection, (events, _) = _session(), _files(data)
    with watch:
        last = connection.sql(f"SELECT max(epoch_us(ts)) FROM '{events}'").fetchall()[0][0]
        text = _retention_sql(f"'{events}'", "epoch_us(ts)", f"(t - t0) // {WEEK}", last)
        found = connection.sql(text).fetchall()
    return {f"week {k}": (n / of, 0.0) for k, n, of in found}


def _paths_sql(data: Path) -> str:
    """A row for each touch within 30 days before an order: ``o`` the order, ``k`` its place, ``n`` how many, ``age`` in microseconds."""
    return f"""
        WITH orders AS (SELECT row_number() OVER () AS o, user_id, ts AS till FROM '{data}/events/*.parquet' WHERE name = 'order')
        SELECT o, channel, t.ts, epoch_us(till) - epoch_us(t.ts) AS age, row_number() OVER (PARTITION BY o ORDER BY t.ts) AS k, count(*) OVER (PARTITION BY o) AS n
        FROM '{data}/touches/*.parquet' AS t JOIN orders USING (user_id) WHERE t.ts <= till AND t.ts > till - INTERVAL 30 DAY
    """


def sql_credit(data: Path, task: str, watch: Watch) -> Figures:
    """The query that one would write for all five rules, in the same engine."""
    connection = _session()
    with watch:
        found = connection.sql(
            f"""
            WITH paths AS ({_paths_sql(data)}),
            decayed AS (SELECT *, 0.5 ** (age / {WEEK}) AS d, sum(0.5 ** (age / {WEEK})) OVER (PARTITION BY o) AS every FROM paths)
            SELECT channel, sum((k = 1)::INT), sum((k = n)::INT), sum(1 / n), sum(d / every),
                   sum(CASE WHEN n = 1 THEN 1 WHEN n = 2 THEN 0.5 WHEN k IN (1, n) THEN 0.4 ELSE 0.2::DOUBLE / (n - 2) END::DOUBLE)
            FROM decayed GROUP BY channel
            """
        ).fetchall()
    return {f"{m} {row[0]}": (float(v), 0.0) for row in found for m, v in zip(RULES, row[1:], strict=True)}


def channel_attribution(data: Path, task: str, watch: Watch) -> Figures:
    """Paths of the orders are joined by DuckDB, the library (C++) does the rest: three of the five models."""
    import ChannelAttribution as ca

    connection = _session()
    with watch:
        with watch.part("paths"):
            paths = connection.sql(
                f"""
                SELECT path, count(*) AS conv, 0 AS "null" FROM (
                  SELECT string_agg(channel, ' > ' ORDER BY ts) AS path FROM ({_paths_sql(data)}) GROUP BY o) GROUP BY path
                """
            ).df()
        with watch.part("library"):
            found = ca.heuristic_models(paths, "path", "conv", flg_pro=False)
    rows = found.to_dict("records")
    return {f"{m} {row['channel_name']}": (float(row[f"{m}_touch"]) if m != "linear" else float(row["linear_touch"]), 0.0) for row in rows for m in ("first", "last", "linear")}  # fmt: skip


def components(data: Path, task: str, watch: Watch) -> Figures:
    """Ids are numbered by DuckDB, scipy finds the components."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    connection = _session()
    with watch:
        connection.execute(
            f"""
            CREATE TEMP TABLE pairs AS SELECT DISTINCT user_id, device_id FROM '{data}/pairs.parquet';
            CREATE TEMP TABLE ids AS SELECT id, row_number() OVER () - 1 AS n FROM (SELECT user_id AS id FROM pairs UNION SELECT device_id FROM pairs)
            """
        )
        n = connection.sql("SELECT count(*) FROM ids").fetchall()[0][0]
        coded = connection.sql(
            "SELECT a.n AS a, b.n AS b FROM pairs JOIN ids AS a ON a.id = user_id JOIN ids AS b ON b.id = device_id"
        ).fetchnumpy()
        graph = coo_array((np.ones(len(coded["a"]), dtype=np.int8), (coded["a"], coded["b"])), shape=(n, n))
        labels = connected_components(graph, directed=False)[1]
        return _joined(np.bincount(labels))


def _spark() -> Any:
    from pyspark.sql import SparkSession

    settings = {"spark.driver.memory": "3g", "spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "8"}
    return SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()


def spark_sql(data: Path, task: str, watch: Watch) -> Figures:
    """Spark SQL by hand on a session of two threads, started beforehand: the same queries, one an experiment."""
    session = _spark()
    session.conf.set("spark.sql.session.timeZone", "UTC")
    out: Figures = {}
    with watch:
        session.read.parquet(str(data / "events")).createOrReplaceTempView("events")
        if task == "a":
            session.read.parquet(str(data / "exposures.parquet")).createOrReplaceTempView("exposures")
            for x in ASKED[task][0]:
                table = session.sql(_units_sql("events", "exposures", x, ASKED[task][1])).toArrow()
                arm = table["arm"].to_numpy(zero_copy_only=False)
                columns = {a: {c: table[c].to_numpy()[arm == a] for c in table.column_names[2:]} for a in ("a", "b")}
                _differences(x, ASKED[task][1], columns, out)
            return out
        last = session.sql("SELECT max(unix_micros(CAST(ts AS TIMESTAMP))) FROM events").collect()[0][0]
        us = "unix_micros(CAST(ts AS TIMESTAMP))"
        if task == "d":
            text = _retention_sql("events", us, f"((t - t0) div {WEEK})", last)
            return {f"week {k}": (n / of, 0.0) for k, n, of in session.sql(text).collect()}
        number = "CASE name " + " ".join(f"WHEN '{n}' THEN {k}" for k, n in enumerate(STEPS)) + " END"
        text = f"SELECT user_id, {us} AS t, {number} AS s FROM events WHERE name IN ('view', 'click', 'cart', 'order')"
        text = f"SELECT *, CASE WHEN s = 0 AND t + {WEEK} <= {last} THEN t END AS m FROM ({text})"
        for k in (1, 2, 3):  # the latest entry that has come as far, carried to the next step
            entry = f"max(CASE WHEN s = {k - 1} THEN m END) OVER (PARTITION BY user_id ORDER BY t, s ROWS UNBOUNDED PRECEDING)"
            text = f"SELECT user_id, t, s, CASE WHEN s <> {k} THEN m WHEN t - e <= {WEEK} THEN e END AS m FROM (SELECT *, {entry} AS e FROM ({text}))"
        found = session.sql(f"SELECT s, count(DISTINCT user_id) FROM ({text}) WHERE m IS NOT NULL GROUP BY s").collect()
        return {f"step {STEPS[s]}": (float(n), 0.0) for s, n in found}


# ---------------------------------------------------------------- a new day


def new_day(data: Path, task: str, watch: Watch) -> Figures:
    """One new day's file after a run over all the days before it: `payoff prepare`, then `payoff run`."""
    return _day(data, watch, full=False)


def all_days(data: Path, task: str, watch: Watch) -> Figures:
    """The same with --full: prepared, but nothing remembered of earlier runs."""
    return _day(data, watch, full=True)


def _day(data: Path, watch: Watch, full: bool) -> Figures:
    """``yesterday`` holds the copies of all days but the last, and what a run over them knew; each time it is begun with anew."""
    home, days = data / "new-day", sorted((data / "events").glob("*.parquet"))
    folder, kept, newest = home / "p", home / "yesterday", home / "events" / days[-1].name
    newest.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (home / "events").mkdir(exist_ok=True)
    (folder / "payoff.yml").write_text(project("g", DUCKDB, where={"events": ".."}))
    for day in days[:-1]:
        if not (home / "events" / day.name).exists():
            os.link(day.resolve(), home / "events" / day.name)
    if kept.exists():
        shutil.copytree(kept, folder / ".payoff", copy_function=os.link)
    _load(folder).prepare()  # nothing to do, but where another version of the program made them
    _load(folder).run(record=False)
    if not kept.exists():
        shutil.copytree(folder / ".payoff", kept, copy_function=os.link)
    os.link(days[-1].resolve(), newest)
    with watch.part("prepare"):
        _load(folder).prepare()
    with watch.part("run"):
        run = _load(folder).run(record=False, full=full)
    _reads_copies(run)
    return figures_of(run)


# ---------------------------------------------------------------- bootstrap


def bootstrap(data: Path, task: str, watch: Watch) -> Figures:
    """Revenue and orders a user, and their ratio: sums of 1,000 groups of users in SQL, drawn 2,000 times."""
    import numpy as np

    from payoff.stats.credit import Bootstrap

    units = _units(data)
    connection = _session()
    connection.register("units", units)
    with watch:
        sums = connection.sql(
            """
            SELECT CAST('0x' || substr(md5(CAST(user_id AS VARCHAR)), 1, 15) AS BIGINT) % 1000 AS g,
                   count(*) AS n, sum(revenue) AS revenue, sum(orders) AS orders FROM units GROUP BY g ORDER BY g
            """
        ).fetchnumpy()
        table = np.column_stack([np.asarray(sums[c], dtype=float) for c in ("n", "revenue", "orders")])
        drawn = Bootstrap.drawn(np.random.default_rng(SEED), len(table), 2000).ratios(table[:, 1:2], table[:, 2])
    return {"revenue an order": (float(drawn.value[0]), float(drawn.draws[:, 0].std(ddof=1)))}


def poisson(data: Path, task: str, watch: Watch) -> Figures:
    """What is usually written: a Poisson weight for every user and replicate, in numpy. A tenth of the replicates, times ten."""
    import numpy as np

    units = _units(data)
    revenue, orders = (units.column(c).to_numpy() for c in ("revenue", "orders"))
    rng = np.random.default_rng(SEED)
    ratio, watch.times = [], 10
    with watch:
        for _ in range(200):
            weights = rng.poisson(1.0, len(revenue)).astype(np.float64)
            ratio.append(float(weights @ revenue) / float(weights @ orders))
    return {"revenue an order": (float(revenue.sum() / orders.sum()), float(np.std(ratio, ddof=1)))}


def _units(data: Path) -> Any:
    events, _ = _files(data)
    return (
        _session()
        .sql(
            f"SELECT user_id, coalesce(sum(amount) FILTER (name = 'order'), 0) AS revenue, count(*) FILTER (name = 'order')::DOUBLE AS orders FROM '{events}'"
            " GROUP BY user_id"
        )
        .to_arrow_table()
    )


# ---------------------------------------------------------------- what comes back


def returned(data: Path, connection: str, who: str, shapes: list[tuple[int, int, int]]) -> list[dict[str, int]]:
    """Bytes and cells that statements bring to the client, by (experiments, metrics, segments of six classes each)."""
    from payoff.warehouse.engine import Engine

    fetch, tables = Engine.fetch, []

    def counted(self: Any, *args: Any, **named: Any) -> Any:
        tables.append(fetch(self, *args, **named))
        return tables[-1]

    Engine.fetch = counted  # type: ignore[method-assign]
    out = []
    for count, many, segments in shapes:
        names = EXPERIMENTS[:count]
        metrics = TWELVE[:many] if "revenue" in TWELVE[:many] else ("revenue", *TWELVE[: many - 1])
        attributes = [f"  s{k}: {{metric: views, period: {k + 3}d, cuts: [1, 2, 3, 4, 5]}}" for k in range(segments)]
        more = f"\n    segments: [{', '.join(f's{k}' for k in range(segments))}]" if segments else ""
        what = experiments(names, tuple(dict.fromkeys((*metrics, "views"))) if segments else metrics, more)
        what += "\nattributes:\n" + "\n".join(attributes) if segments else ""
        folder = data / "returned" / who
        (folder / "chdb").mkdir(parents=True, exist_ok=True)
        (folder / "payoff.yml").write_text(project("a", connection, what))
        tables.clear()
        run = _load(folder).run(record=False)
        if run.refusals:
            sys.exit(f"refused: {run.refusals[0].reason}")
        out.append({
            "experiments": count, "metrics": many, "segments": segments,
            "statements": len(tables), "cells": sum(t.num_rows * t.num_columns for t in tables), "bytes": sum(t.nbytes for t in tables),
        })  # fmt: skip
    Engine.fetch = fetch  # type: ignore[method-assign]
    return out


# ---------------------------------------------------------------- the race


@dataclass(frozen=True)
class Contestant:
    work: Callable[[Path, str, Watch], Figures]
    needs: tuple[str, ...]
    """Modules without which it is left out, and the table says so."""
    inside: str
    """What its clock holds."""
    at: str = "here"
    """The interpreter: here, spark or channel-attribution."""


PAYOFF = ("payoff", "duckdb", "numba")
EVERYBODY = {
    "scan": Contestant(scan, ("duckdb",), "DuckDB reads the same columns of the stored rows once"),
    "payoff": Contestant(payoff, PAYOFF, "`Project.load(...).run()` over the stored rows"),
    "payoff-prepared": Contestant(
        payoff_prepared, PAYOFF, "the same over prepared copies: everything counted (`full=True`), what it knows kept"
    ),
    "payoff again": Contestant(
        payoff_again, PAYOFF, "the same over prepared copies, with what the run before kept and nothing new"
    ),
    "one by one": Contestant(payoff_apart, PAYOFF, "a, c and d as three runs of payoff-prepared, added up"),
    "tea-tasting": Contestant(
        tea_tasting,
        ("tea_tasting", "duckdb"),
        "a hand-written query an experiment on DuckDB, then the library; the plain differences not timed",
    ),
    "polars": Contestant(polars, ("polars", "numpy"), "by hand, lazily, streaming where it can; reading included"),
    "pandas": Contestant(pandas, ("pandas", "pyarrow"), "by hand; reading included"),
    "windowFunnel": Contestant(
        window_funnel, ("chdb",), "the query on ClickHouse in process (chdb); the session begins before"
    ),
    "count distinct": Contestant(count_distinct, ("duckdb",), "the usual query for retention, on DuckDB"),
    "SQL by hand": Contestant(sql_credit, ("duckdb",), "one query for the five rules on DuckDB; counts alone"),
    "ChannelAttribution": Contestant(
        channel_attribution,
        ("ChannelAttribution", "duckdb"),
        "paths are joined by DuckDB, then the library; first, last and linear alone",
        "channel-attribution",
    ),
    "DuckDB and scipy": Contestant(
        components, ("duckdb", "scipy"), "ids numbered by DuckDB, components by scipy; nothing else"
    ),
    "Spark SQL": Contestant(
        spark_sql, ("pyspark",), "by hand, on `local[2]`; the session begins before, and its JVM is in the memory", "spark"
    ),
    "payoff on chdb": Contestant(payoff_on_chdb, ("payoff", "chdb"), "`run()` on ClickHouse in process (chdb)"),
    "payoff on Spark": Contestant(
        payoff_on_spark, ("payoff", "pyspark"), "`run()` on `local[2]`; the session begins before", "spark"
    ),
    "all days in full": Contestant(all_days, PAYOFF, "`payoff prepare` of the day that is new, then `run --full`"),
    "new day": Contestant(new_day, PAYOFF, "`payoff prepare` of the day that is new, then `run`, after a run of the days before"),
    "groups": Contestant(
        bootstrap, ("duckdb", "numpy", "payoff"), "from a row a user in memory: sums of 1,000 groups on DuckDB, then the draws"
    ),
    "poisson": Contestant(
        poisson, ("duckdb", "numpy"), "from arrays in memory, a Poisson weight a user and replicate; 200 replicates, times ten"
    ),
}  # fmt: skip
ENGINES_TOO = ("payoff on chdb", "payoff on Spark")
WHO = {
    "a": ("scan", "payoff", "payoff-prepared", "payoff again", "tea-tasting", "polars", "pandas", "Spark SQL", *ENGINES_TOO),
    "b": ("scan", "payoff", "payoff-prepared", "payoff again", "tea-tasting", "polars", "pandas"),
    "c": ("scan", "payoff", "payoff-prepared", "windowFunnel", "polars", "pandas", "Spark SQL", *ENGINES_TOO),
    "d": ("scan", "payoff", "payoff-prepared", "count distinct", "polars", "pandas", "Spark SQL", *ENGINES_TOO),
    "acd": ("scan", "payoff", "payoff-prepared", "payoff again", "one by one", *ENGINES_TOO),
    "e": ("scan", "payoff", "payoff-prepared", "SQL by hand", "ChannelAttribution", "polars", *ENGINES_TOO),
    "f": ("scan", "payoff", "DuckDB and scipy", "polars", *ENGINES_TOO),
    "g": ("scan", "payoff", "all days in full", "new day"),
    "h": ("groups", "poisson"),
}  # fmt: skip
TITLES = {
    "a": "3 experiments x 4 metrics, CUPED",
    "b": "10 experiments x 12 metrics (2 ratios), CUPED",
    "c": "funnel, 4 steps, 7 days",
    "d": "retention, 12 weeks",
    "acd": "a, c and d in one run",
    "e": "five attribution models, 30 days back",
    "f": "identity over pairs of ids",
    "g": "one new day",
    "h": "bootstrap, 2,000 replicates over the users",
}
NOT_HERE = (
    "Who is in no row of a task cannot do it: tea-tasting has no funnels, cohorts, credit or identity; windowFunnel is for funnels;"
    " ChannelAttribution starts from paths, and has two of the five models, time decay and position, not. pandas is left out of e, and where its"
    " frames would not fit in memory. Identity is not read from a prepared copy. Copies and what runs keep (payoff-prepared, payoff again, g) are"
    " of DuckDB alone.",
    "Intervals are in payoff's figures of every task; of the others' only tea-tasting has them. By hand, they are there in a and b alone.",
)
ALONE = {"pandas": 30_000_000}
"""Rows beyond which a contestant does not fit in memory."""


def aims_of(events: int) -> list[Aim]:
    prepared, again = "payoff-prepared", "payoff again"
    size = "" if events >= 100_000_000 else f" (an aim at 100M; here {events / 1e6:g}M)"
    return [
        Aim("a", "payoff-prepared at most 4 x scan", prepared, "scan", at_most=4),
        Aim("a", "the same, once a run has been made", again, "scan", at_most=4),
        Aim("a", "payoff at most 6 x scan", "payoff", "scan", at_most=6),
        Aim("b", "tea-tasting takes at least 5 x payoff-prepared", "tea-tasting", prepared, at_least=5),
        Aim("b", "the same, once a run has been made", "tea-tasting", again, at_least=5),
        Aim("c", "windowFunnel takes at least 2 x payoff-prepared", "windowFunnel", prepared, at_least=2),
        Aim("d", "count distinct takes at least 3 x payoff-prepared", "count distinct", prepared, at_least=3),
        Aim("acd", "payoff-prepared at most 4 x scan", prepared, "scan", at_most=4),
        Aim("acd", "the same, once a run has been made", again, "scan", at_most=4),
        Aim("e", "payoff at most 6 x scan", "payoff", "scan", at_most=6),
        Aim("f", "payoff at most 2 s a million pairs", "payoff", None, at_most=2, per=edges_of(events) / 1e6),
        Aim("g", f"--full over the copies takes at least 15 x a new day{size}", "all days in full", "new day", at_least=15),
        Aim("g", f"all stored rows take at least 15 x a new day{size}", "payoff", "new day", at_least=15),
        Aim("h", "at most 0.3 s", "groups", None, at_most=0.3),
    ]  # fmt: skip


def disagreement(who: str, name: str, users: int, ours: tuple[float, float], theirs: tuple[float, float]) -> str | None:
    """What two contestants say differently, None where they agree.

    Plain differences are the same number, computed in another order: 1e-8, relatively (or of the standard error, beside a
    difference near zero). So are adjusted ones where the estimator is the same. tea-tasting adjusts both arms by one pooled
    slope, payoff each arm by its own: the two differ by (arm's slope - pooled slope) x (arm's mean before exposure - pooled
    mean), a product of two chances, 1 / n where a standard error is 1 / sqrt(n). A twentieth of a standard error is allowed, and more of few users.
    Standard errors of adjusted differences differ by terms of second order, 1 / n, which payoff counts and the others leave out;
    tea-tasting's plain variances move between runs by a few times 1 / n, and its ratios count the units that have neither part.
    Two bootstraps have other draws, and 200 of them know a standard error to a twentieth: they agree to a fifth.
    """
    other, adjusted = who == "tea-tasting", name.endswith("adjusted")
    value = (0.05 + 5 / math.sqrt(users)) * ours[1] if other and adjusted else 1e-8 * max(abs(ours[0]), ours[1])
    error = 0.2 if who == "poisson" else 1e-2 + 100 / users if adjusted else 1e-4 + 20 / users if other else 1e-8
    if abs(ours[0] - theirs[0]) <= value and math.isclose(ours[1], theirs[1], rel_tol=error):
        return None
    return f"{who} disagrees on {name}: {theirs} against {ours}"


def compared(who: str, users: int, ours: Figures, theirs: Figures) -> str | None:
    """The first figure on which a contestant differs, or that it or the other has not; None where they agree."""
    if who == "scan":
        return None
    if who == "ChannelAttribution":
        ours = {k: v for k, v in ours.items() if k.split()[0] in ("first", "last", "linear")}
    if ours.keys() != theirs.keys():
        return f"{who} has other figures: {', '.join(sorted(ours.keys() ^ theirs.keys())[:5])}"
    return next((wrong for name in ours if (wrong := disagreement(who, name, users, ours[name], theirs[name]))), None)


@dataclass(frozen=True)
class Race:
    data: Path
    rehearsal: Path
    events: int
    users: int
    repeats: int
    record: Record
    python: dict[str, str | None]
    """An interpreter for each place that a contestant runs at, None where none was named."""

    def run(self, task: str, names: list[str]) -> bool:
        """Whether all of a task's contestants that were run gave the same figures."""
        self.record.seen[task] = {who: {"runs": []} for who in names}
        reference: Figures | None = None
        modules: dict[str, Path] = {}
        well = True
        for who in names:
            of = EVERYBODY[who]
            python, reason = self.python[of.at], None
            if python is None:
                reason = f"no --{of.at} was named"
            elif self.events > ALONE.get(who, self.events):
                reason = "does not fit in memory"
            elif lacks := has(python, of.needs):
                reason = f"not installed: {lacks}"
            if reason:
                print(f"{task}: {who} is not run: {reason}", file=sys.stderr)
                self.record.add(task, who, {"skipped": reason})
                continue
            heard = self._contest(task, who, self.rehearsal, None)
            if "failed" in heard:
                well = self._failed(task, who, heard)
                continue
            modules[who] = self.rehearsal / "modules" / f"{task} {who}.json"
            modules[who].parent.mkdir(exist_ok=True)
            modules[who].write_text(json.dumps(heard["modules"]))
        for at in range(self.repeats):
            for who in list(modules):
                seen = self._contest(task, who, self.data, modules[who])
                if "failed" in seen:
                    well = self._failed(task, who, seen)
                    del modules[who]
                    continue
                print(f"{task}: {who}: {seen['seconds']:.2f} s, {seen['peak_mib']:,.0f} MiB", file=sys.stderr)
                figures = {k: (v[0], v[1]) for k, v in seen["figures"].items()}
                if reference is None and who != "scan":
                    reference = figures
                wrong = compared(who, self.users, reference or {}, figures)
                seen["figures"] = figures if at == 0 else {}
                self.record.add(task, who, seen)
                if wrong:
                    well = False
                    print(f"{task}: {wrong}", file=sys.stderr)
                    self.record.wrong(task, who, wrong)
        return well

    def _failed(self, task: str, who: str, seen: dict[str, Any]) -> bool:
        print(f"{task}: {who} failed\n{seen.pop('told')}", file=sys.stderr)
        self.record.add(task, who, seen)
        return False

    def _contest(self, task: str, who: str, data: Path, modules: Path | None) -> dict[str, Any]:
        command = [self.python[EVERYBODY[who].at] or "", __file__, task, "--contestant", who, "--data", str(data)]
        return contest([*command, *(["--modules", modules] if modules else [])])


def copies(data: Path, tasks: list[str], record: Record | None = None) -> None:
    """The prepared copies, made once for all tasks: what runs kept is forgotten. What making them took stays beside them."""
    layout = data / "payoff-prepared" / "layout"
    folder_of(data, "payoff-prepared", "layout")
    took = layout / "took.json"
    seen = contest([sys.executable, __file__, "--prepare", "--data", data])
    if "failed" in seen:
        sys.exit(f"payoff prepare failed:\n{seen['told']}")
    if any(of["status"] == "prepared" for of in seen["reports"]):
        took.write_text(json.dumps(seen))
    for task in {*tasks, *(("a", "c", "d") if "acd" in tasks else ())}:
        kept = folder_of(data, "payoff-prepared", task) / ".payoff"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(layout / ".payoff" / "prepared", kept / "prepared", copy_function=os.link)
    if record is not None and took.exists():
        seen = json.loads(took.read_text())
        head = ["copy of", "rows", "segments", "bytes", "seconds"]
        rows = [
            [", ".join(of["sources"]), f"{of['rows']:,}", f"{of['segments']}", f"{of['bytes']:,}", f"{of['seconds']:.1f}"]
            for of in seen["reports"]
        ]  # fmt: skip
        stored = sum(p.stat().st_size for name in ("events", "touches") for p in (data / name).glob("*.parquet"))
        stored += (data / "exposures.parquet").stat().st_size
        title = f"`payoff prepare`, once ({seen['seconds']:.1f} s, {seen['cpu']:.1f} s of processor time, peak {seen['peak_mib']:,.0f} MiB; the stored files are {stored:,} bytes)"
        record.tables = {k: v for k, v in record.tables.items() if not k.startswith("`payoff prepare`")} | {title: [head, *rows]}  # fmt: skip
        record.write()


SHAPES = [(1, 4, 0), (3, 4, 0), (10, 4, 0), (1, 12, 0), (3, 12, 0), (10, 12, 0), (3, 4, 1), (3, 4, 2), (10, 12, 1)]
FEW_SHAPES = [(1, 4, 0), (3, 4, 0), (3, 12, 0), (3, 4, 1)]
"""On engines that take seconds for each statement."""


def whats_returned(race: Race, only: list[str]) -> None:
    """The table of bytes that come back: of DuckDB, for few users and for all; of the other engines, for few."""
    title = "What comes back to the client, by experiments, metrics of each and segments (of six classes) of each"
    rows = [["on", "rows of events", "experiments", "metrics", "segments", "statements", "cells", "bytes"]]
    for who in ("payoff", *ENGINES_TOO):
        python = race.python[EVERYBODY[who].at]
        if who not in only or python is None or has(python, EVERYBODY[who].needs):
            print(f"returned: {who} is not run", file=sys.stderr)
            continue
        many = [(race.data, race.events)] if who == "payoff" else []
        for data, events in ((race.rehearsal, REHEARSED["events"]), *many):
            seen = contest([python, __file__, "returned", "--contestant", who, "--data", data])
            if "failed" in seen:
                sys.exit(f"returned: {who} failed:\n{seen['told']}")
            rows += [[who, f"{events:,}", *(f"{v:,}" for v in of.values())] for of in seen["returned"]]
            race.record.tables[title] = rows
            race.record.write()


def rehearse_or_perform(arguments: argparse.Namespace) -> None:
    """What a process of its own does."""
    (task,), who, data = arguments.tasks, arguments.contestant, arguments.data
    if task == "returned":
        of = {"payoff": DUCKDB, "payoff on chdb": CHDB, "payoff on Spark": SPARK}[who]
        print(json.dumps({"returned": returned(data, of, who, SHAPES if who == "payoff" else FEW_SHAPES)}))
        return
    perform(lambda watch: EVERYBODY[who].work(data, task, watch), arguments.modules)


def prepare(data: Path) -> None:
    import payoff.run
    import payoff.warehouse.engines.duckdb  # noqa: F401

    with (watch := Watch()):
        reports = _load(data / "payoff-prepared" / "layout").prepare()
    told = {"seconds": watch.seconds, "cpu": watch.cpu, "peak_mib": peak_mib(), "reports": [r.to_dict() for r in reports]}  # fmt: skip
    print(json.dumps(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=[], help=f"{', '.join(TITLES)}, returned; default: all")
    parser.add_argument("--users", type=lambda text: int(float(text)), help="default: one for twenty events")
    parser.add_argument("--events", type=lambda text: int(float(text)), default=20_000_000)
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each contestant, of which the median is told; default: 3"
    )
    parser.add_argument(
        "--data", type=Path, default=HERE / "data", help="the folder of the data, made where it is not there"
    )
    parser.add_argument(
        "--out", type=Path, help="tables (Markdown), and raw figures beside them (.json); written after each contestant"
    )
    parser.add_argument("--strings", action="store_true", help="ids that are text")
    parser.add_argument("--spark", metavar="PYTHON", help="an interpreter that has pyspark, and payoff")
    parser.add_argument(
        "--channel-attribution", metavar="PYTHON", help="an interpreter that has ChannelAttribution, and duckdb"
    )
    parser.add_argument("--contestants", help="some of them, with commas; default: all")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--modules", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    users = arguments.users or max(arguments.events // 20, 100)
    if arguments.make:
        make(arguments.data, users, arguments.events, arguments.strings)
        return
    if arguments.prepare:
        prepare(arguments.data)
        return
    if arguments.contestant:
        rehearse_or_perform(arguments)
        return
    tasks = arguments.tasks or [*TITLES, "returned"]
    if unknown := set(tasks) - {*TITLES, "returned"}:
        parser.error(f"no task is called {', '.join(sorted(unknown))}; there are {', '.join(TITLES)}, returned")
    only = list(EVERYBODY) if arguments.contestants is None else arguments.contestants.split(",")
    if unknown := set(only) - EVERYBODY.keys():
        parser.error(f"no contestant is called {', '.join(sorted(unknown))}; there are {', '.join(EVERYBODY)}")
    raced = {task: [n for n in WHO[task] if n in only] for task in tasks if task != "returned"}
    data, rehearsal = made(arguments.data, users, arguments.events, arguments.strings), made(arguments.data, **REHEARSED, strings=arguments.strings)  # fmt: skip
    of = {
        "events": arguments.events, "users": users, "touches": touches_of(arguments.events), "edges": edges_of(arguments.events),
        "ids": "text" if arguments.strings else "numeric", **machine(),
    }  # fmt: skip
    notes = [
        "Inside the clock of each: what it does from the first statement on. Outside: the interpreter's start and every import (a rehearsal over a few"
        " rows tells which), and whatever the line says. Compiled loops are loaded from numba's cache inside, and were compiled before.",
        "",
        *(f"- **{who}**: {c.inside}" for who, c in EVERYBODY.items() if any(who in names for names in raced.values())),
        "",
        *NOT_HERE,
    ]  # fmt: skip
    record = Record(arguments.out, of, TITLES, aims_of(arguments.events), notes)
    python = {"here": sys.executable, "spark": arguments.spark, "channel-attribution": arguments.channel_attribution}
    race = Race(data, rehearsal, arguments.events, users, arguments.repeats, record, python)
    copied = [t for t, names in raced.items() if {"payoff-prepared", "payoff again", "one by one"} & {*names}]
    if copied:
        copies(rehearsal, copied)
        copies(data, copied, record)
    well = [race.run(task, names) for task, names in raced.items()]
    if "returned" in tasks:
        whats_returned(race, only)
    print(record.text())
    sys.exit(0 if all(well) else "a contestant failed, or differs from the others")


if __name__ == "__main__":
    main()

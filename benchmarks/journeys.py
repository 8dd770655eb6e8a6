"""Journeys against the raw scan of their columns, and against the same by hand. In one run, on one machine.

    benchmarks/journeys.py                                 every task, 20M events: 12M touches, 600k orders
    benchmarks/journeys.py last funnel --events 2e6 --repeats 3
    benchmarks/journeys.py growth --events 2e6,20e6,100e6  payoff alone: seconds and peak memory as events grow
    benchmarks/journeys.py bots                            five rules with and without 20 users who hold 2% of the rows
    benchmarks/journeys.py markov --channel-attribution /path/to/python   the C++ library, in an environment that has it

Each contestant is a process of its own, repeated in turn with the others; figures are medians of what each measures around its
work, imports left out; processor seconds beside them, which another load on the machine moves less. Contestants that give
figures must agree with payoff's, or the benchmark fails.
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
DAY = 86_400_000_000
START = 1_780_272_000_000_000  # 2026-06-01
DAYS = 90
CHANNELS = 12
LIMIT = "900MB"
"""What payoff's engine may use; the aim for the process is 1 GB."""

Figures = dict[str, float]

SOURCES = """
version: 1
project: bench
connections: {{main: {{engine: duckdb, memory_limit: {limit}, threads: 2}}}}
defaults: {{entity: user}}
entities: {entities}
sources:
  events: {{file: ../events.parquet, time: ts, entity: {{user: user_id}}}}
  pairs:  {{file: ../pairs.parquet, time: ts}}
touchpoints:
  channel: {{source: events, where: "name = 'touch'", by: channel}}
"""
ATTRIBUTION = """
attribution:
  a:
    conversion: {{event: {{source: events, where: "name = 'order'"}}, value: amount}}
    touchpoints: [channel]
    window: 30d
    models: {models}
"""
PROJECTS = {
    "last": ATTRIBUTION.format(models="[last]"),
    "rules": ATTRIBUTION.format(
        models="[first, last, linear, {time_decay: {half_life: 7d}}, {position: [0.4, 0.2, 0.4]}]"
    ),
    "markov": ATTRIBUTION.format(models="[markov]"),
    "shapley": ATTRIBUTION.format(models="[shapley]"),
    "funnel": """
funnels:
  f:
    steps: [{name: view, source: events, where: "name = 'view'"}, {name: cart, source: events, where: "name = 'cart'"},
            {name: order, source: events, where: "name = 'order'"}]
    within: 7d
""",
    "retention": """
cohorts:
  c: {start: events, activity: events, every: week, retention: {kind: n_day, period: 7d, periods: 12}}
""",
    "identity": """
funnels:
  f: {steps: [{name: a, source: few}, {name: b, source: few, where: "name = 'order'"}], within: 1h}
""",
}
TITLES = {
    "last": "last touch",
    "rules": "five rule models in one pass",
    "markov": "Markov, order 1",
    "shapley": "Shapley",
    "funnel": "funnel, 3 steps, 7 days, any entry",
    "retention": "retention grid, 12 weeks",
    "identity": "identity over the pairs",
}
AIMS = {"rules": 6.0, "funnel": 12.0, "retention": 4.0, "markov": 8.0}


def project(task: str, limit: str) -> str:
    entities = "{user: {id: user_id}}"
    text = PROJECTS[task]
    if task == "identity":
        entities = "{user: {id: user_id, aliases: [device_id], identity: {source: pairs, max_size: 1000}}}"
        text = "  few: {file: ../few.parquet, time: ts, entity: {user: any_id}}\n" + text
        head = SOURCES.format(limit=limit, entities=entities)
        return (
            head.replace("touchpoints:\n  channel: {source: events, where: \"name = 'touch'\", by: channel}\n", "")
            + text
        )
    return SOURCES.format(limit=limit, entities=entities) + text


# ---------------------------------------------------------------- data


def make(folder: Path, users: int, events: int, bots: bool) -> None:
    """Time-ordered rows: 60% touches over 12 channels, 30% views, 7% carts, 3% orders. ``bots``: 20 users hold 2% of the rows.

    Pairs of ids: three a person, one in twenty over a device that somebody else has too.
    """
    import duckdb

    step = DAYS * DAY / events
    unit = f"(hash(i) % {users})::BIGINT"
    if bots:
        unit = f"CASE WHEN hash(i * 17) % 50 = 0 THEN (hash(i) % 20)::BIGINT ELSE {unit} END"
    with duckdb.connect(config={"memory_limit": "4GB", "threads": 2}) as connection:
        connection.execute(
            f"""
            COPY (
              SELECT {unit} AS user_id, make_timestamp({START} + (i * {step})::BIGINT) AS ts,
                     CASE WHEN h < 600 THEN 'touch' WHEN h < 900 THEN 'view' WHEN h < 970 THEN 'cart' ELSE 'order' END AS name,
                     CASE WHEN h < 600 THEN 'c' || (floor({CHANNELS} * pow((hash(i * 31) % 1000000) / 1e6, 2)))::INT END AS channel,
                     CASE WHEN h >= 970 THEN (hash(i * 13) % 10000) / 100.0 END::DOUBLE AS amount
              FROM (SELECT i, hash(i * 7) % 1000 AS h FROM range({events}) AS t(i)) ORDER BY i
            ) TO '{folder / "events.parquet"}' (FORMAT parquet, ROW_GROUP_SIZE 200000)
            """
        )
        pairs = max(events * 3 // 20, 1000)
        connection.execute(
            f"""
            COPY (
              SELECT 'u' || (hash(i) % {pairs // 3}) AS user_id,
                     'd' || (CASE WHEN hash(i * 3) % 20 = 0 THEN hash(i * 5) % {pairs} ELSE i END) AS device_id,
                     make_timestamp({START} + (hash(i * 3) % {DAYS * DAY})::BIGINT) AS ts
              FROM range({pairs}) AS t(i) WHERE true ORDER BY ts
            ) TO '{folder / "pairs.parquet"}' (FORMAT parquet, ROW_GROUP_SIZE 200000)
            """
        )
        connection.execute(
            f"""
            COPY (SELECT 'd' || i AS any_id, make_timestamp({START} + i * 1000000) AS ts,
                         CASE WHEN i % 10 = 0 THEN 'order' ELSE 'view' END AS name FROM range(20000) AS t(i))
            TO '{folder / "few.parquet"}' (FORMAT parquet)
            """
        )


# ---------------------------------------------------------------- contestants

COLUMNS = {
    "funnel": "sum(user_id), max(epoch_us(ts)), min(name)",
    "retention": "sum(user_id), max(epoch_us(ts))",
}


def scan(folder: Path, task: str) -> Figures:
    """The limit: reading the columns once and doing nothing with them."""
    import duckdb

    connection = duckdb.connect(config={"threads": 2, "memory_limit": LIMIT})
    if task == "identity":
        text = f"SELECT min(user_id), min(device_id), max(epoch_us(ts)) FROM '{folder / 'pairs.parquet'}'"
    else:
        columns = COLUMNS.get(task, "sum(user_id), max(epoch_us(ts)), min(name), min(channel), sum(amount)")
        text = f"SELECT {columns} FROM '{folder / 'events.parquet'}'"
    connection.execute(text).fetchall()
    return {}


def payoff(folder: Path, task: str) -> Figures:
    from payoff.run import Project

    run = Project.load(folder / task).run(record=False)
    if run.refusals:
        sys.exit(f"refused: {run.refusals[0].reason}")
    (result,) = run.results
    out: Figures = {}
    for e in result.to_dict()["estimates"]:
        if task == "funnel" and e["estimand"] == "units reaching step":
            out[e["step"]] = e["value"]
        elif task == "retention" and e["estimand"] == "retention" and e["cohort"] == "(all)":
            out[f"week {e['period']}"] = e["value"]
        elif e["estimand"] == "attributed conversions" and e["touchpoint"] != "(total)":
            out[f"{e['model']} {e['touchpoint'].removeprefix('channel: ')}"] = e["value"]
    if task == "identity":
        found = result.to_dict()["closer"]["stitching"][0]
        out = {"units": float(found["units"]), "ids": float(found["ids"])}
    return out


def _touched(folder: Path) -> tuple[Any, Any]:
    import polars as pl

    events = pl.scan_parquet(folder / "events.parquet")
    orders = (
        events.filter(pl.col("name") == "order").select("user_id", pl.col("ts").alias("at")).with_row_index("order")
    )
    touches = events.filter(pl.col("name") == "touch").select("user_id", "ts", "channel")
    return orders, touches


def polars(folder: Path, task: str) -> Figures:
    """The same by hand, lazily, with the streaming engine where it can."""
    import polars as pl

    if task in ("last", "rules", "shapley"):
        orders, touches = _touched(folder)
        n = orders.select(pl.len()).collect(engine="streaming").item()
        inside = (pl.col("ts") <= pl.col("at")) & (pl.col("ts") > pl.col("at") - pl.duration(days=30))
        joined = touches.join(orders, on="user_id").filter(inside)
        if task == "shapley":
            credit = (
                joined.select("order", "channel").unique().with_columns((1 / pl.len().over("order")).alias("shapley"))
            )
            models = ["shapley"]
        else:
            at, size = pl.col("ts").rank("ordinal").over("order"), pl.len().over("order")
            w = 0.5 ** ((pl.col("at") - pl.col("ts")).dt.total_microseconds() / (7 * DAY))
            both = {
                "last": (at == size).cast(pl.Float64),
                "first": (at == 1).cast(pl.Float64),
                "linear": 1 / size,
                "time_decay": w / w.sum().over("order"),
                "position": pl.when(size == 1).then(1.0).when(size == 2).then(0.5)
                .when((at == 1) | (at == size)).then(0.4).otherwise(0.2 / (size - 2)),
            }  # fmt: skip
            models = ["last"] if task == "last" else list(both)
            credit = joined.with_columns(both[m].alias(m) for m in models)
        table = credit.group_by("channel").agg(pl.col(m).sum() for m in models).collect(engine="streaming")
        out = {f"{m} {row['channel']}": row[m] for row in table.to_dicts() for m in models}
        for m in models:
            out[f"{m} (unattributed)"] = n - sum(row[m] for row in table.to_dicts())
        return out
    if task == "funnel":
        events = pl.scan_parquet(folder / "events.parquet").select("user_id", "ts", "name")
        last = events.select(pl.col("ts").max()).collect(engine="streaming").item()
        steps = {
            n: events.filter(pl.col("name") == n).select("user_id", "ts").collect().sort("ts")
            for n in ("view", "cart", "order")
        }
        week = pl.duration(days=7)
        reach = steps["view"].filter(pl.col("ts") + week <= last).with_columns(pl.col("ts").alias("entry"))
        out = {"view": float(reach["user_id"].n_unique())}
        for name in ("cart", "order"):
            following = steps[name].join_asof(reach, on="ts", by="user_id", strategy="backward")
            reach = following.filter(pl.col("entry").is_not_null() & (pl.col("ts") <= pl.col("entry") + week))
            out[name] = float(reach["user_id"].n_unique())
        return out
    if task == "retention":
        events = pl.scan_parquet(folder / "events.parquet").select("user_id", "ts")
        start = events.group_by("user_id").agg(pl.col("ts").min().alias("t0"))
        last = events.select(pl.col("ts").max()).collect(engine="streaming").item()
        period = (pl.col("ts") - pl.col("t0")).dt.total_microseconds() // (7 * DAY)
        active = (
            events.join(start, on="user_id")
            .select("user_id", "t0", period.alias("k"))
            .filter(pl.col("k") < 12)
            .unique()
        )
        active = active.collect(engine="streaming")
        begun = start.collect(engine="streaming")
        out = {}
        for k in range(12):
            closed = pl.col("t0") + pl.duration(days=7 * (k + 1)) <= last
            of = begun.filter(closed).height
            out[f"week {k}"] = active.filter((pl.col("k") == k) & closed).height / of if of else math.nan
        return {k: v for k, v in out.items() if not math.isnan(v)}
    if task == "identity":
        import numpy as np

        pairs = pl.scan_parquet(folder / "pairs.parquet").select("user_id", "device_id").unique().collect()
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
        sizes = np.unique(root, return_counts=True)[1]
        joined = sizes[(sizes > 1) & (sizes <= 1000)]
        return {"units": float(len(joined)), "ids": float(joined.sum())}
    return {}


def contest_channel(folder: Path, task: str) -> Figures:
    """ChannelAttribution (C++): the paths are made by the same engine, the library does the rest. No figures: it draws at random."""
    import ChannelAttribution as ca
    import pyarrow.parquet as pq

    paths = pq.read_table(folder / "paths.parquet").to_pandas()
    start = time.perf_counter()
    if task == "markov":
        ca.markov_model(paths, "path", "conv", var_null="null", order=1, out_more=False, flg_pro=False)
    else:
        ca.heuristic_models(paths, "path", "conv", flg_pro=False)
    print(json.dumps({"library": time.perf_counter() - start}), file=sys.stderr)
    return {}


# ---------------------------------------------------------------- the race

CONTESTANTS: dict[str, Callable[[Path, str], Figures]] = {"scan": scan, "payoff": payoff, "polars": polars}


def prepared(folder: Path, users: int, events: int, bots: bool, limit: str = LIMIT) -> Path:
    folder = folder / f"journeys-{users}-{events}{'-bots' if bots else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    for task in PROJECTS:
        (folder / task).mkdir(exist_ok=True)
        (folder / task / "payoff.yml").write_text(project(task, limit))
    stamp = folder / "made"
    if not stamp.exists():
        print(f"making {events:,} events of {users:,} users in {folder} ...", file=sys.stderr)
        command = [
            sys.executable,
            __file__,
            "--make",
            "--data",
            str(folder),
            "--users",
            str(users),
            "--events",
            str(events),
        ]
        subprocess.run([*command, *(["--bots"] if bots else [])], check=True)
        stamp.touch()
    return folder


def contest(name: str, task: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, task, "--contestant", name, "--data", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed at {task}:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def disagreement(task: str, ours: Figures, theirs: Figures) -> str | None:
    """The same counts in another order: 1e-6 relatively (sums of twelve million weights), or they are different figures."""
    for key, value in theirs.items():
        if key not in ours:
            return f"{task}: payoff has no {key}"
        if not math.isclose(ours[key], value, rel_tol=1e-6, abs_tol=1e-6):
            return f"{task}: {key} is {value} by hand and {ours[key]} by payoff"
    return None


def race(tasks: list[str], folder: Path, repeats: int, names: list[str]) -> None:
    print(
        f"{'task':38}{'contestant':12}{'seconds':>9}{'x scan':>9}{'x payoff':>10}{'cpu s':>8}{'x scan':>8}{'peak MiB':>10}"
    )
    for task in tasks:
        seen: dict[str, list[dict[str, Any]]] = {n: [] for n in names if not (n == "polars" and task == "markov")}
        for _ in range(repeats):
            for name, runs in seen.items():
                runs.append(contest(name, task, folder))
        for name, runs in seen.items():
            wrong = disagreement(task, seen["payoff"][0]["figures"], runs[0]["figures"]) if name != "payoff" else None
            if wrong:
                sys.exit(wrong)
        median = {
            n: {k: statistics.median(r[k] for r in runs) for k in ("seconds", "cpu", "peak_mib")}
            for n, runs in seen.items()
        }
        base, base_cpu = median["scan"]["seconds"], median["scan"]["cpu"]
        for name, of in median.items():
            aim = f"   aim {AIMS[task]:g}" if name == "payoff" and task in AIMS else ""
            print(
                f"{TITLES[task] if name == 'scan' else '':38}{name:12}{of['seconds']:9.2f}{of['seconds'] / base:9.1f}"
                f"{of['seconds'] / median['payoff']['seconds']:10.2f}{of['cpu']:8.2f}{of['cpu'] / base_cpu:8.1f}"
                f"{of['peak_mib']:10.0f}{aim}",
                flush=True,
            )


def channel_attribution(folder: Path, interpreter: str, tasks: list[str]) -> None:
    """Paths of the orders (collapsed, 30 days back), made by DuckDB, then the library in its own environment."""
    import duckdb

    if not (folder / "paths.parquet").exists():
        with duckdb.connect(config={"memory_limit": "8GB", "threads": 2}) as connection:
            connection.execute(
                f"""
                COPY (
                  WITH o AS (SELECT user_id, ts, row_number() OVER () AS n FROM '{folder / "events.parquet"}' WHERE name = 'order'),
                  j AS (SELECT n, t.ts, channel FROM '{folder / "events.parquet"}' t JOIN o ON o.user_id = t.user_id AND t.ts <= o.ts
                        AND t.ts > o.ts - INTERVAL 30 DAY WHERE t.name = 'touch')
                  SELECT path, count(*) AS conv, 0 AS "null" FROM (
                    SELECT n, string_agg(channel, ' > ' ORDER BY ts) AS path FROM j GROUP BY n) GROUP BY path
                ) TO '{folder / "paths.parquet"}' (FORMAT parquet)
                """
            )
    for task in tasks:
        command = [interpreter, __file__, task, "--contestant", "channel-attribution", "--data", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"ChannelAttribution does not run here at {task}: {done.stderr.strip().splitlines()[-1]}")
            continue
        took = json.loads(done.stderr.strip().splitlines()[-1])["library"]
        peak = json.loads(done.stdout.splitlines()[-1])["peak_mib"]
        print(f"ChannelAttribution, {task}: {took:.2f} s on ready-made paths, peak {peak:.0f} MiB")


def growth(data: Path, sizes: list[int], tasks: list[str], limit: str) -> None:
    print(f"{'task':38}{'events':>14}{'scan s':>9}{'payoff s':>10}{'x scan':>8}{'peak MiB':>10}")
    for events in sizes:
        folder = prepared(data, max(events // 20, 1000), events, False, limit)
        for task in tasks:
            base, ours = (contest(n, task, folder) for n in ("scan", "payoff"))
            print(
                f"{TITLES[task]:38}{events:14,}{base['seconds']:9.2f}{ours['seconds']:10.2f}"
                f"{ours['seconds'] / base['seconds']:8.1f}{ours['peak_mib']:10.0f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help=f"{', '.join(PROJECTS)}, or growth, or bots; default: every task")
    parser.add_argument("--users", type=lambda text: int(float(text)), default=1_000_000)
    parser.add_argument("--events", default="20e6", help="rows; several, with commas, for growth")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--contestants", default="scan,payoff,polars")
    parser.add_argument("--limit", default=LIMIT, help="what payoff's engine may use in growth")
    parser.add_argument("--channel-attribution", metavar="PYTHON", help="an interpreter that has ChannelAttribution")
    parser.add_argument("--bots", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = [int(float(n)) for n in arguments.events.split(",")]
    if arguments.make:
        make(arguments.data, arguments.users, sizes[0], arguments.bots)
        return
    if arguments.contestant:
        task = arguments.tasks[0]
        if arguments.contestant == "payoff":
            import payoff.report.figures
            import payoff.run  # noqa: F401  (imports are not what is measured)
        elif arguments.contestant == "scan":
            import duckdb  # noqa: F401
        elif arguments.contestant == "polars":
            import polars  # noqa: F401
        run = {**CONTESTANTS, "channel-attribution": contest_channel}[arguments.contestant]
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        figures = run(arguments.data, task)
        took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({"seconds": took, "cpu": cpu, "peak_mib": after.ru_maxrss / 1024, "figures": figures}))
        return
    named = [t for t in arguments.tasks if t in PROJECTS] or list(PROJECTS)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; medians of {arguments.repeats}"
    )
    if "growth" in arguments.tasks:
        growth(arguments.data, sizes, named, arguments.limit)
    elif "bots" in arguments.tasks:
        for bots in (False, True):
            print("with 20 users who hold 2% of the rows" if bots else "without them")
            folder = prepared(arguments.data, arguments.users, sizes[0], bots)
            race(["rules"], folder, arguments.repeats, ["scan", "payoff"])
    else:
        folder = prepared(arguments.data, arguments.users, sizes[0], False)
        race(named, folder, arguments.repeats, arguments.contestants.split(","))
        if arguments.channel_attribution:
            channel_attribution(folder, arguments.channel_attribution, [t for t in named if t in ("rules", "markov")])


if __name__ == "__main__":
    main()

"""A shop in a few tables, small enough to be worked through by hand: what a test asks of it is recomputed in numpy.

Every user has a spend before exposure that explains most of the spend after it. The treatment helps returning customers
and harms new ones, sells through recommendations what search would have sold, and wears off over two weeks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from payoff.run import Project
from tests.builders import make_project

START = np.datetime64("2026-03-01T00:00:00", "us")
DAY = np.timedelta64(86_400, "s")

SOURCES = """
    sources:
      exposures: {table: exposures, time: t, entity: {user: user_id, account: account_id}}
      orders:    {table: orders, time: t, entity: {user: user_id}}
      sessions:  {table: sessions, time: t, entity: {user: user_id}}
      seen:      {table: seen, time: t, entity: {user: user_id}}
      customers: {table: customers, entity: {user: user_id}, one_row_per: user, id: user_id}
    metrics:
      revenue:  {kind: sum, from: orders, column: amount, window: 14d}
      ordered:  {kind: conversion, to: orders, window: 14d}
      visits:   {kind: count, from: sessions, window: 14d}
      aov:      {kind: ratio, numerator: {sum: orders.amount}, denominator: {count: orders}, window: 14d}
      per_visit: {kind: ratio, numerator: {sum: orders.amount}, denominator: {count: sessions}, window: 14d}
      back:     {kind: retention, to: sessions, at: 7d, within: 7d}
      p90:      {kind: quantile, from: orders, column: amount, q: 0.9, window: 14d}
"""


@dataclass(frozen=True)
class Shop:
    """Row i is user i. ``before`` and ``after`` are spends in the 14 days on either side of exposure."""

    arm: NDArray[np.str_]
    account: NDArray[np.int64]
    tenure: NDArray[np.float64]
    device: NDArray[np.str_]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    by_step: NDArray[np.float64]
    by_path: NDArray[np.float64]
    visits: NDArray[np.int64]
    triggered: NDArray[np.bool_]


PATHS = ("recommendations", "search", "browse")


def make_shop(
    folder: Path,
    experiment: str,
    *,
    users: int = 3_000,
    seed: int = 5,
    extra: str = "",
    root: str = "",
    sources: str = "",
) -> tuple[Project, Shop]:
    """A project over the shop with one experiment called ``x`` (its YAML below ``experiments:``), and its truth."""
    rng = np.random.default_rng(seed)
    arm = np.where(rng.random(users) < 0.5, "new", "old")
    account = rng.integers(0, users // 10, users)
    tenure = rng.exponential(200, users)
    device = rng.choice(["mobile", "desktop", "tablet"], users, p=[0.6, 0.3, 0.1])
    taste = rng.lognormal(2.0, 0.8, users)
    exposed = START + (rng.integers(20 * 86_400, 25 * 86_400, users) * 1_000_000).astype("timedelta64[us]")
    treated = arm == "new"
    effect = np.where(treated, np.where(tenure >= 90, 4.0, -3.0), 0.0)
    orders: list[tuple[str, np.datetime64, float, str]] = []
    before, after = np.zeros(users), np.zeros(users)
    by_step, by_path = np.zeros((users, 7)), np.zeros((users, 4))
    visits = np.zeros(users, dtype=np.int64)
    sessions: list[tuple[str, np.datetime64]] = []
    fade = np.array([2.2, 1.8, 1.4, 0.9, 0.5, 0.2, 0.0])
    for i in range(users):
        for day in range(-14, 14):
            if rng.random() < 0.25:
                offset = day * 86_400 + int(rng.integers(1, 86_399))
                amount = taste[i] * rng.gamma(4.0, 0.25)
                path = str(rng.choice(PATHS, p=[0.2, 0.5, 0.3]))
                if day >= 0 and treated[i]:
                    amount = max(amount + effect[i] * fade[day // 2], 0.01)
                    if path == "search" and rng.random() < 0.5:
                        path = "recommendations"
                amount = round(float(amount), 2)
                orders.append((f"u{i}", exposed[i] + np.timedelta64(offset, "s"), amount, path))
                if day < 0:
                    before[i] += amount
                else:
                    after[i] += amount
                    by_step[i, day // 2] += amount
                    by_path[i, PATHS.index(path)] += amount
            if rng.random() < 0.2:
                offset = day * 86_400 + int(rng.integers(1, 86_399))
                sessions.append((f"u{i}", exposed[i] + np.timedelta64(offset, "s")))
                visits[i] += day >= 0
    triggered = rng.random(users) < 0.4
    seen = [(f"u{i}", exposed[i] + np.timedelta64(60, "s")) for i in range(users) if triggered[i]]
    end = START + np.timedelta64(60 * 86_400, "s")
    sessions.append(("nobody", end))  # the data go on long after the last window
    orders.append(("nobody", end, 1.0, "browse"))
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"u{i}" for i in range(users)]
    tables = {
        "exposures": {
            "user_id": names,
            "t": exposed,
            "arm": arm,
            "account_id": account,
            "device": device,
        },
        "orders": dict(zip(("user_id", "t", "amount", "path"), map(list, zip(*orders, strict=True)), strict=True)),
        "sessions": dict(zip(("user_id", "t"), map(list, zip(*sessions, strict=True)), strict=True)),
        "seen": dict(zip(("user_id", "t"), map(list, zip(*seen, strict=True)), strict=True)),
        "customers": {
            "user_id": names,
            "signed_up_at": exposed - (tenure * 86_400e6).astype("timedelta64[us]"),
            "tenure_days": tenure,
        },
    }
    with duckdb.connect(str(folder / "data.duckdb")) as connection:
        for table, columns in tables.items():
            connection.register("rows", pa.table(columns))
            connection.execute(f"CREATE TABLE {table} AS SELECT * FROM rows")
            connection.unregister("rows")
        if extra:
            connection.execute(extra)
    project = make_project(
        folder, SOURCES.replace("    metrics:\n", f"{sources}    metrics:\n") + experiment, "SELECT 1", root
    )
    return project, Shop(arm, account, tenure, device, before, after, by_step, by_path, visits, triggered)

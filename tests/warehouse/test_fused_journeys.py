"""Funnels and retention in one walk over a prepared copy give what the SQL kernels give, which their own tests hold against slow Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from payoff.run import Project
from payoff.warehouse import fused_journeys, walks
from payoff.warehouse.engines.duckdb import DuckDBEngine

DAY = 86_400_000_000
START = 1_780_272_000_000_000  # 2026-06-01
HEAD = """
version: 1
project: walks
defaults: {entity: user}
sources:
  events: {file: "events/*.parquet", time: ts, entity: {user: id}}
  live:   {file: "events/*.parquet", time: ts, entity: {user: id}, where: "NOT test"}
"""
A, B, C, D = (f"{{name: {n}, source: events, where: \"name = '{n}'\"}}" for n in "abcd")
LIVE = "{name: b, source: live, where: \"name = 'b'\"}"
FUNNELS = {
    "plain": f"steps: [{A}, {B}, {C}]\n    within: 2h",
    "four": f"steps: [{A}, {B}, {C}, {D}]\n    within: 1d",
    "endless": f"steps: [{A}, {B}, {C}]",
    "other_sources": f"steps: [{A}, {LIVE}, {C}]\n    within: 6h",
    "own_windows": "steps: ["
    + A
    + ", {name: b, source: events, where: \"name = 'b'\", within: 30m}, "
    + C
    + "]\n    within: 5h",
    "first_entry": f"steps: [{A}, {B}, {C}]\n    within: 3h\n    entry: first",
    "strict": f"steps: [{A}, {B}, {C}]\n    within: 4h\n    order: strict",
    "excluded": f"steps: [{A}, {B}, {C}]\n    within: 4h\n    exclude: [{{source: events, where: \"name = 'd'\"}}]",
    "same_step_twice": f"steps: [{A}, {{name: again, source: events, where: \"name = 'a'\"}}, {B}]\n    within: 3h",
    "overlapping": f"steps: [{A}, {{name: any, source: live}}, {C}]\n    within: 3h",
    "from_day_two": f"steps: [{A}, {B}, {C}]\n    within: 2h\n    starts: 2026-06-02\n    ends: 2026-06-04",
}
ACTIVE = "{source: events, where: \"name <> 'd'\"}"
COHORTS = {
    "n_day": "start: events, activity: events, every: day, retention: {kind: n_day, period: 1d, periods: 4}",
    "weekly": f"start: {{source: events, where: \"name = 'a'\"}}, activity: {ACTIVE}, every: week, retention: {{kind: n_day, period: 12h, periods: 6}}",
    "brackets": f"start: live, activity: {ACTIVE}, every: day, retention: {{kind: bracket, brackets: [6h, 1d, 60h]}}",
    "unbounded": "start: events, activity: live, every: day, retention: {kind: unbounded, period: 1d, periods: 4}",
    "ranged": f"start: live, activity: {ACTIVE}, every: day, starts: 2026-06-02, ends: 2026-06-05, retention: {{kind: n_day, period: 1d, periods: 3}}",
    "money": "start: events, activity: events, every: day, retention: {kind: n_day, period: 1d, periods: 3}, revenue: {event: {source: events, where: \"name = 'c'\"}, value: amount}",
}


def write(folder: Path, rng: np.random.Generator, *, text: bool, grid: int = 600) -> Path:
    """Six days of events on a coarse clock, so that many share a time; NULL ids, times and names; some rows twice."""
    n, users = int(rng.integers(150, 900)), int(rng.integers(3, 40))
    at = START + rng.integers(0, 6 * DAY // (grid * 1_000_000), n) * grid * 1_000_000
    who = rng.integers(0, users, n)
    name = rng.choice(list("abcd"), n, p=rng.dirichlet(np.ones(4) * 3))
    table = pa.table(
        {
            "id": pa.array([f"ü{i}" if text else int(i) for i in who], mask=rng.random(n) < 0.02),
            "ts": pa.array(at, pa.timestamp("us"), mask=rng.random(n) < 0.02),
            "name": pa.array(name.tolist(), mask=rng.random(n) < 0.03),
            "test": pa.array((rng.random(n) < 0.2).tolist(), mask=rng.random(n) < 0.03),
            "amount": pa.array(rng.integers(1, 2000, n) / 100),
        }
    )
    again = rng.integers(0, n, n // 20)
    table = pa.concat_tables([table, table.take(again)])
    (folder / "events").mkdir(parents=True, exist_ok=True)
    day = (table["ts"].cast(pa.int64()).to_numpy(zero_copy_only=False) - START) // DAY
    day = np.where(np.isfinite(day), day, 9).astype(int)
    for d in sorted(set(day.tolist())):
        pq.write_table(table.filter(pa.array(day == d)), folder / "events" / f"{d}.parquet")
    lines = ["funnels:", *(f"  {n}:\n    {text}" for n, text in FUNNELS.items())]
    lines += ["cohorts:", *(f"  {n}: {{{text}}}" for n, text in COHORTS.items())]
    (folder / "payoff.yml").write_text(HEAD + "\n".join(lines))
    return folder


def rounded(it: Any) -> Any:
    if isinstance(it, dict):
        return {k: rounded(v) for k, v in it.items()}
    if isinstance(it, list):
        return [rounded(v) for v in it]
    return float(f"{it:.9g}") if isinstance(it, float) else it


def answers(folder: Path) -> tuple[dict[str, Any], set[str]]:
    """Results by name, and whose rows were followed in one walk."""
    run = Project.load(folder).run(record=False)
    assert not run.refusals
    out = {r["name"]: {k: v for k, v in r.items() if k != "provenance"} for r in run.to_dict()["results"]}
    if "cohorts.money" in out:  # sums of money are added in the order of the rows
        out["cohorts.money"] = rounded(out["cohorts.money"])
    steps = {"entries and ways", "starts and activity"}
    return out, {r.name for r in run.results if steps & {name for name, _ in r.provenance.sql}}


@pytest.mark.parametrize("seed", range(6))
def test_a_walk_gives_what_the_kernels_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = np.random.default_rng([20_261, seed])
    folder = write(tmp_path, rng, text=bool(seed % 2), grid=600 if seed % 3 else 7200)
    raw, _ = answers(folder)
    Project.load(folder).prepare()
    monkeypatch.setattr(walks, "_ROWS", 1)  # as many ranges of units as threads
    monkeypatch.setattr(DuckDBEngine, "threads", lambda _: (1, 2, 3, 7, 60, 2)[seed])
    by_walk, walked = answers(folder)
    assert walked == {f"funnels.{n}" for n in FUNNELS} | {f"cohorts.{n}" for n in COHORTS}
    monkeypatch.setattr(walks, "available", lambda: False)
    by_sql, walked = answers(folder)
    assert walked == set()
    for name, result in by_sql.items():
        assert by_walk[name] == result, name
        assert raw[name] == result, name


def test_the_plan_and_the_run_read_rows_once_for_all(tmp_path: Path) -> None:
    folder = write(tmp_path, np.random.default_rng(9), text=False)
    text = (folder / "payoff.yml").read_text()
    (folder / "payoff.yml").write_text("\n".join(line for line in text.splitlines() if "money:" not in line))
    asked = {f"funnels.{n}" for n in FUNNELS} | {f"cohorts.{n}" for n in COHORTS if n != "money"}
    Project.load(folder).prepare()
    for steps in (Project.load(folder).plan(), Project.load(folder).run(record=False).plan):
        read = [s for s in steps if s.reads and s.serves and s.name != "earlier starts"]
        assert [set(s.serves) for s in read] == [asked]
        assert sum("the same walk as that for funnels.plain" in s.purpose for s in steps) == len(asked) - 1


def test_batches_may_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, np.random.default_rng(5), text=False)
    Project.load(folder).prepare()
    whole = answers(folder)
    add = walks.Feed.add

    def in_crumbs(self: walks.Feed, batch: pa.RecordBatch) -> None:
        for at in range(0, batch.num_rows, 3):
            add(self, batch.slice(at, 3))

    monkeypatch.setattr(walks.Feed, "add", in_crumbs)
    assert answers(folder) == whole


def test_files_that_overlap_in_time_are_not_walked(tmp_path: Path) -> None:
    folder = write(tmp_path, np.random.default_rng(6), text=False)
    late = folder / "events" / "9late.parquet"
    duckdb.sql(f"COPY (SELECT * FROM '{folder / 'events' / '1.parquet'}' LIMIT 5) TO '{late}' (FORMAT parquet)")
    Project.load(folder).prepare()
    assert answers(folder)[1] == set()


def test_what_a_walk_cannot_tell_is_left_to_sql(tmp_path: Path) -> None:
    folder = write(tmp_path, np.random.default_rng(7), text=False)
    Project.load(folder).prepare()
    more = {
        "any_order": f"steps: [{A}, {B}, {C}]\n    within: 2h\n    order: unordered",
        "by": f"steps: [{A}, {B}]\n    within: 2h\n    by: name",
        "kept": f"steps: [{A}, {B}, {{name: kept, without: {{source: events, where: \"name = 'd'\"}}, within: 1h}}]\n    within: 2h",
    }
    lines = ["funnels:", *(f"  {n}:\n    {text}" for n, text in more.items())]
    (folder / "payoff.yml").write_text(HEAD + "\n".join(lines))
    assert answers(folder)[1] == set()


def test_too_many_units_for_the_memory_are_left_to_sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, np.random.default_rng(8), text=False)
    Project.load(folder).prepare()
    before, _ = answers(folder)
    monkeypatch.setattr(fused_journeys, "_SHARE", 1e-9)
    assert answers(folder) == (before, set())

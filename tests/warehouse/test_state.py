"""Incremental refresh: whichever way the state came about, the figures are the same to the last bit."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from payoff import registry
from payoff.cli import app
from payoff.ledger import compare
from payoff.run import Project
from payoff.warehouse import state
from payoff.warehouse.layout import Layout
from payoff.warehouse.state import Array, Damaged, Held, Refresh, Store, begin

pytest.importorskip("numba", reason="refresh goes over prepared rows in a compiled loop")

# ---------------------------------------------------------------- the store


def held(rng: np.random.Generator, rows: int) -> Held:
    columns = {
        "a": rng.integers(0, 9, rows, dtype=np.int32),
        "b": rng.integers(-9, 9, rows),
        "cells": rng.integers(0, 99, (rows, 3)),
    }
    return Held(rows, columns, {"units": Array(np.arange(5, dtype=np.int32))}, {"segments": {"x": "1"}})


def told(of: Held | None) -> Any:
    """All that a state holds, to be compared."""
    assert of is not None
    columns = {name: of.column(name).tolist() for name in sorted(of.columns)}
    parts = {name: part.read().tolist() for name, part in of.parts.items()}
    return of.rows, columns, parts, json.loads(json.dumps(of.facts))


def left_in(store: Store) -> set[str]:
    """Files of a store that its manifest does not name."""
    manifest = json.loads((store.folder / "manifest.json").read_text())
    named = [*manifest["columns"].values(), *manifest["parts"].values(), *manifest["deltas"]]
    return {p.name for p in store.folder.iterdir()} - {"manifest.json", "lock", *(n["file"] for n in named)}


def read_all(root: Path) -> Any:
    return told(Store(root, "d" * 40).load())


def change(rng: np.random.Generator, of: Held, rows: int, added: int) -> np.ndarray:
    """Change some rows and add others; returns those changed."""
    first = of.rows
    changed = np.sort(rng.choice(first, min(rows, first), replace=False))
    of.grow(added)
    for name, column in of.columns.items():
        column[changed] = rng.integers(0, 99, column[changed].shape)
        of.columns[name][first : of.rows] = rng.integers(0, 99, column[first : of.rows].shape)
    of.parts["units"] = Array(rng.integers(0, 9, 4, dtype=np.int32))
    of.facts["segments"]["x"] = str(rng.integers(1000))
    return changed


def test_a_state_comes_back_as_it_was_stored_whatever_was_changed_and_added(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    store = Store(tmp_path, "d" * 40)
    assert store.load() is None
    now = held(rng, 40)
    with store.lock() as alone:
        assert alone
        store.save(now, None)
    beside = 0
    for _ in range(40):
        back = Store(tmp_path, "d" * 40)
        found = back.load()
        assert told(found) == told(now)
        now = found
        changed = change(rng, now, int(rng.integers(0, 12)), int(rng.integers(0, 6)))
        back.save(now, changed)
        beside += len(json.loads((back.folder / "manifest.json").read_text())["deltas"]) > 0
        assert left_in(back) == set(), "files that no manifest names are swept"
    assert 5 < beside < 40, "changes are written beside the columns, and the columns anew when those are many"


class Killed(BaseException):
    pass


def failing(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> Callable[[], int]:
    """Let the ``at``-th step of writing fail, half-way through its file; how many steps there were."""
    steps = 0
    write, rename, unlink = state._write, os.replace, Path.unlink

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == at:
            raise error

    def writing(path: Path, pieces: Any, length: int | None = None) -> None:
        pieces = list(pieces)
        if steps + 1 == at:
            write(path, [np.ascontiguousarray(p).reshape(-1).view(np.uint8)[: p.nbytes // 2] for p in pieces], None)
        step()
        write(path, pieces, length)

    def renaming(old: Path, new: Path) -> None:
        step()
        rename(old, new)

    def removing(path: Path, missing_ok: bool = False) -> None:
        if isinstance(error, Killed):
            step()
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(state, "_write", writing)
    monkeypatch.setattr(os, "replace", renaming)
    monkeypatch.setattr(Path, "unlink", removing)
    return lambda: steps


@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device")], ids=["killed", "full disk"])
@pytest.mark.parametrize("whole", [False, True])
def test_whenever_writing_ends_half_way_the_old_state_or_the_new_one_is_there(
    tmp_path: Path, error: BaseException, whole: bool
) -> None:
    at, done = 0, False
    while not done:
        at += 1
        rng = np.random.default_rng(2)
        root = tmp_path / str(at)
        store = Store(root, "d" * 40)
        first = held(rng, 40)
        with store.lock():
            store.save(first, None)
        back = Store(root, "d" * 40)
        now = back.load()
        assert now is not None
        before = told(now)
        changed = change(rng, now, 3, 2)
        after = told(now)
        with pytest.MonkeyPatch.context() as patch:
            count = failing(patch, at, error)
            with suppress(Killed, OSError):
                back.save(now, None if whole else changed)
            done = count() < at
        again = Store(root, "d" * 40)
        left = again.load()
        assert told(left) in (before, after)
        assert left is not None
        more = change(rng, left, 2, 1)
        wanted = told(left)
        again.save(left, more)
        assert told(Store(root, "d" * 40).load()) == wanted
        assert left_in(again) == set(), "what was left behind is swept"
    assert at > 4


def test_every_file_that_is_not_as_it_was_written_is_told_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    store = Store(tmp_path, "d" * 40)
    now = held(rng, 2_000)
    with store.lock():
        store.save(now, None)
    store.save(now, change(rng, now, 30, 10))
    files = sorted(p for p in store.folder.iterdir() if p.name != "lock")
    assert len(files) == 6
    for path in files:
        whole = path.read_bytes()
        used = 2_000 * 4 if "column" in path.name else len(whole)
        spoilt = [
            *(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in (0, used // 2, used - 1)),
            whole[: len(whole) // 3],
            b"",
        ]
        for bad in spoilt:
            path.write_bytes(bad)
            with pytest.raises(Damaged):
                read_all(tmp_path)
        path.unlink()
        if path.name != "manifest.json":
            with pytest.raises(Damaged):
                read_all(tmp_path)
        path.write_bytes(whole)
    assert told(Store(tmp_path, "d" * 40).load()) == told(now)


def test_one_process_writes_at_a_time_and_knows_when_another_has_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    one, other = Store(tmp_path, "d" * 40), Store(tmp_path, "d" * 40)
    with one.lock() as alone, other.lock() as second:
        assert alone
        assert not second
        one.save(held(rng, 5), None)
    assert other.load() is not None
    assert not other.moved()
    one.load()
    one.save(held(rng, 6), None)
    assert other.moved()
    assert not one.moved()


def test_states_that_no_run_uses_are_swept(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for name in ("old", "new"):
        store = Store(tmp_path, name * 20)
        with store.lock():
            store.save(held(rng, 5), None)
    old = Store(tmp_path, "old" * 20).folder
    os.utime(old / "manifest.json", (1e9, 1e9))
    assert state.sweep(tmp_path) == 1
    assert not old.exists()
    assert Store(tmp_path, "new" * 20).load() is not None
    assert state.drop(tmp_path) == 1
    assert not list(tmp_path.iterdir())


def test_how_parts_changed() -> None:
    old = {"a": "1", "c": "1", "d": "1"}
    found = state.compare(old, {"a": "1", "b": "1", "c": "2", "e": "1"})
    assert (found.added, found.late, found.changed, found.gone) == (("e",), ("b",), ("c",), ("d",))
    assert found.rewritten == 3
    assert state.compare({}, old).added == ("a", "c", "d")
    assert state.compare(old, old).rewritten == 0


def test_counts_and_extremes_move_and_an_extreme_that_is_gone_is_looked_for() -> None:
    row = {"arm": "a", "eligible0": 10, "low0_0": 1.0, "high0_0": 9.0}
    gone = {"arm": "a", "eligible0": 2, "low0_0": 2.0, "high0_0": 9.0}
    came = {"arm": "a", "eligible0": 3, "low0_0": 0.5, "high0_0": 9.5}
    moved = state._moved({"a": row}, {"a": gone}, {"a": came})
    assert moved == [{"arm": "a", "eligible0": 11, "low0_0": 0.5, "high0_0": 9.5}]
    assert state._moved({"a": row}, {"a": gone}, {"a": {**came, "high0_0": 8.0}}) is None
    assert state._moved({"a": row}, {"a": gone}, {}) is None
    assert state._moved({}, {}, {"a": came}) == [came]


# ---------------------------------------------------------------- histories

DEFINITIONS = """
version: 1
project: small
defaults: {entity: user, window: 4d}
sources:
  exposures: {file: "exposures/*.parquet", time: ts, entity: {user: user_id}}
  events: {file: "events/*.parquet", time: ts, entity: {user: user_id}}
  customers: {file: "customers.parquet", entity: {user: user_id}, one_row_per: user}
metrics:
  views:   {kind: count, from: events, where: "name = 'view'"}
  ordered: {kind: conversion, to: {source: events, where: "name = 'order'"}}
  revenue: {kind: sum, from: events, column: amount, where: "name = 'order'", cap: 40}
  capped:  {kind: sum, from: events, column: amount, window: 2d, cap: p90}
  size:    {kind: mean, from: events, column: amount}
  rate:    {kind: ratio, numerator: {count: events, where: "name = 'order'"}, denominator: {count: events}}
attributes:
  plan: {from: customers, column: plan}
experiments:
  one:
    assignment: {source: exposures, where: "experiment = 'one'", variant: arm, control: a, split: {a: 0.5, b: 0.5}}
    primary: revenue
    secondary: [views, ordered, rate]
    adjust: {cuped: true, period: 3d}
  two:
    assignment: {source: exposures, where: "experiment = 'two'", variant: arm, control: a}
    primary: capped
    secondary: [size, revenue]
    segments: [plan]
"""
START = np.datetime64("2026-01-26", "us")
"""The sixth day is the last of its month."""
NOW = datetime(2026, 3, 1, tzinfo=UTC)


class Shop:
    """A project whose files have a history. Ids are missing here and there, and times in some files; times tie, arms change."""

    def __init__(self, root: Path, seed: int, rows: int = 150) -> None:
        self.root, self.rng, self.rows, self.day = root, np.random.default_rng(seed), rows, 0
        for kind in ("events", "exposures"):
            (root / kind).mkdir(parents=True)
        (root / "payoff.yml").write_text(DEFINITIONS)
        plans = {"user_id": np.arange(200), "plan": self.rng.choice(["free", "paid"], 200)}
        pq.write_table(pa.table(plans), root / "customers.parquet")
        for _ in range(5):
            self.append()

    def write(self, kind: str, name: str, day: int, rows: int) -> None:
        rng, users = self.rng, 50 + 4 * self.day
        seconds = day * 86_400 + rng.integers(0, 24, rows) * 3_600
        unit = rng.integers(0, users, rows)
        table = {
            "user_id": pa.array(unit, mask=rng.random(rows) < 0.03),
            "ts": pa.array(START + seconds.astype("timedelta64[s]"), mask=rng.random(rows) < rng.choice([0, 0, 0.05])),
        }
        if kind == "events":
            amounts = np.round(rng.lognormal(2, 1, rows), 2) * rng.choice([1.0, 1e-9, 1e5], rows, p=[0.9, 0.05, 0.05])
            table["name"] = pa.array(rng.choice(["view", "order", "other"], rows))
            table["amount"] = pa.array(amounts, mask=rng.random(rows) < 0.05)
        else:
            arms = np.where(rng.random(rows) < 0.97, np.where(unit % 2 == 0, "a", "b"), rng.choice(["a", "b"], rows))
            table["experiment"] = pa.array(rng.choice(["one", "two", "other"], rows))
            table["arm"] = pa.array(arms, mask=rng.random(rows) < 0.02)
        pq.write_table(pa.table(table), self.root / kind / f"{name}.parquet")

    def append(self) -> str:
        self.write("events", f"day-{self.day:02}", self.day, self.rows)
        self.write("exposures", f"day-{self.day:02}", self.day, self.rows // 4)
        self.day += 1
        return "a day"

    def files(self, kind: str) -> list[Path]:
        return sorted((self.root / kind).glob("*.parquet"))

    def step(self) -> str:
        """One thing that may happen to files."""
        kind = str(self.rng.choice(["events", "exposures"]))
        path = self.files(kind)[int(self.rng.integers(len(self.files(kind))))]
        what = str(self.rng.choice(["append", "append", "events", "late", "correct", "delete", "remove", "nothing"]))
        if what == "append":
            self.append()
        elif what == "events":
            self.write("events", f"day-{self.day:02}", self.day, self.rows)
            self.day += 1
        elif what == "late":
            day = int(self.rng.integers(self.day))
            self.write(kind, f"day-{day:02}-late-{self.rng.integers(1000)}", day, 12)
        elif what == "remove" and len(self.files(kind)) > 3:
            path.unlink()
        elif what in ("correct", "delete"):
            table = pq.read_table(path)
            keep = np.sort(self.rng.choice(len(table), int(len(table) * 0.9), replace=False))
            if what == "delete":
                table = table.take(keep)
            elif kind == "events":
                amounts = pa.array(np.round(self.rng.lognormal(2, 1, len(table)), 2))
                table = table.set_column(3, "amount", amounts)
            else:
                table = table.set_column(3, "arm", pa.array(self.rng.choice(["a", "b"], len(table))))
            pq.write_table(table, path)
        return what

    def prepare(self) -> None:
        Project.load(self.root).prepare()

    @contextmanager
    def refresh(self, *, full: bool = False) -> Iterator[Refresh]:
        """Exposures and values brought up to date, without what is computed of them."""
        project, method = Project.load(self.root), registry.method("experiment")
        designs = project._designs(["one", "two"])
        with project._reading(designs, (), ()) as catalog:
            layout = Layout(catalog, [method.needs(design) for design in designs])
            layout.columns_wanted()
            layout.arrange()
            found = begin(layout, "user", full=full)
            assert isinstance(found, Refresh), found
            assert found.open().count()
            yield found

    def run(self, *, full: bool = False, now: datetime = NOW) -> dict[str, Any]:
        ran = Project.load(self.root).run(record=False, now=now, today=date(2026, 3, 1), full=full)
        return ran.to_dict()


def how(run: dict[str, Any]) -> str:
    """What the plan says of how far the run had a state."""
    said = [s["purpose"].partition(" (")[2].rstrip(")") for s in run["plan"] if s["step"] == "exposures in exposures"]
    return said[0] or "as stored"


def foreseen(shop: Shop) -> str:
    """The same of what a run would do."""
    steps = [step.to_dict() for step in Project.load(shop.root).plan()]
    return how({"plan": steps})


def figures(value: Any) -> Any:
    """The whole run but its id, its times of day, the statements that it ran, and the code (which is edited while tests run)."""
    if isinstance(value, dict):
        left_out = ("run_id", "started", "finished", "plan", "sql", "versions")
        return {k: figures(v) for k, v in value.items() if k not in left_out}
    return [figures(item) for item in value] if isinstance(value, list) else value


def values(of: Refresh) -> dict[tuple[int, Any], list[Any]]:
    """(experiment, id) -> what is held of the unit; without what has no rows any more."""
    h = of._held
    out = {}
    key = of._exposures[0].view.relation.key
    ids = pq.read_table(of._prepared[key].units)
    by_number = dict(zip(ids["payoff_unit"].to_pylist(), ids["unit"].to_pylist(), strict=True)) | {-1: None}
    arms = [*h.facts["arms"], None]
    (scan,) = of._scans
    for i in range(h.rows):
        row = {name: h.columns[name][i] for name in h.columns}
        if row["n"]:
            folded = row[f"{scan.table}_cells"].tolist() if row[f"{scan.table}_t0"] != state._NEVER else None
            counted = [int(row[k]) for k in ("t0", "n", "no_time", "no_arm")]
            out[int(row["x"]), by_number[row["unit"]]] = [*counted, arms[row["lo"]], arms[row["hi"]], folded]
    return out


def slowly(shop: Shop) -> dict[tuple[int, Any], list[Any]]:
    """The exposures of the files, row by row: (experiment, id) -> first time, rows, without time, without arm, arms."""
    out: dict[tuple[int, Any], list[Any]] = {}
    seen: dict[tuple[int, Any], list[tuple[int | None, str | None]]] = defaultdict(list)
    for path in shop.files("exposures"):
        for row in pq.read_table(path).to_pylist():
            if row["experiment"] in ("one", "two"):
                us = None if row["ts"] is None else int((row["ts"] - datetime(1970, 1, 1)) / timedelta(microseconds=1))
                seen[("one", "two").index(row["experiment"]), row["user_id"]].append((us, row["arm"]))
    for key, rows in seen.items():
        times = [us for us, arm in rows if arm is not None and us is not None]
        arms = [arm for _, arm in rows if arm is not None]
        out[key] = [
            min(times, default=state._NEVER),
            len(rows),
            sum(us is None for us, _ in rows),
            sum(arm is None for _, arm in rows),
            min(arms, default=None),
            max(arms, default=None),
        ]
    return out


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 24))])
def test_whatever_happens_to_files_the_values_of_units_are_those_of_a_full_count(tmp_path: Path, seed: int) -> None:
    shop = Shop(tmp_path / "p", seed)
    done = []
    for _ in range(7):
        shop.prepare()
        with shop.refresh() as found:
            found.keep()
            mine, counted = values(found), [found.counts(x) for x in (0, 1)]
        with shop.refresh(full=True) as other:
            assert values(other) == mine, done
            assert [other.counts(x) for x in (0, 1)] == counted, done
        assert {key: row[:6] for key, row in mine.items()} == slowly(shop), done
        done += [shop.step() for _ in range(int(shop.rng.integers(1, 4)))]


@pytest.mark.parametrize("seed", [11, *(pytest.param(s, marks=pytest.mark.slow) for s in range(12, 24))])
def test_a_run_after_any_history_is_the_run_of_an_empty_folder_to_the_last_bit(tmp_path: Path, seed: int) -> None:
    shop = Shop(tmp_path / "p", seed)
    done: list[str] = []
    for step in range(4):
        stored = shop.run(now=NOW + timedelta(days=step))
        assert how(stored) == "as stored"
        shop.prepare()
        found = shop.run(now=NOW + timedelta(days=step))
        assert how(found).startswith("refresh: " if done else "full: the first of its kind"), (done, how(found))
        full = shop.run(full=True, now=NOW + timedelta(days=step))
        assert how(full).startswith("full: asked for")
        assert figures(found) == figures(full), done
        assert not compare(figures(stored), figures(found), 1e-9, 1e-9), done
        empty = tmp_path / f"empty-{step}"
        shutil.copytree(shop.root, empty, ignore=shutil.ignore_patterns(".payoff"))
        other = Shop.__new__(Shop)
        other.root = empty
        other.prepare()
        assert figures(other.run(now=NOW + timedelta(days=step))) == figures(found), done
        while (what := shop.step()) == "nothing":
            pass
        done.append(what)


def test_only_units_that_something_new_touches_are_counted_again(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "p", 31, rows=400)
    shop.prepare()
    with shop.refresh() as found:
        found.keep()
        every = found.recounted
    assert every > 60
    with shop.refresh() as found:
        assert (found.recounted, found.rows_read, found._changed.sum()) == (0, 0, 0)
    # a day of events alone: its rows are read, and nothing else
    shop.write("events", f"day-{shop.day:02}", shop.day, 400)
    shop.prepare()
    with shop.refresh() as found:
        found.keep()
        assert found.recounted == 0
        assert 0 < found.rows_read <= 400
        assert found.told == "refresh: 1 new parts of 11; 0 units recomputed"
    # one unit's late row: it alone, in either experiment
    h = found._held
    units = pq.read_table(found._prepared["file events/*.parquet"].units)
    entering = set(h.column("unit")[h.column(f"{found._scans[0].table}_t0") != state._NEVER].tolist())
    assert entering
    late = {
        "user_id": [int(units["unit"][5].as_py())] * 2,
        "ts": pa.array([START + np.timedelta64(1, "D")] * 2),
        "name": ["order"] * 2,
        "amount": [1.5, 2.5],
    }
    pq.write_table(pa.table(late), shop.root / "events" / "day-01-late.parquet")
    shop.prepare()
    with shop.refresh() as found:
        found.keep()
        assert found.recounted <= 2
        assert found.rows_read < 100, "the rows of one unit, and not those of all"
    # its exposure corrected: again it alone
    pq.write_table(pa.table({**late, "amount": [9.0, 9.0]}), shop.root / "events" / "day-01-late.parquet")
    shop.prepare()
    with shop.refresh() as found:
        found.keep()
        assert found.recounted <= 2
    (shop.root / "events" / "day-01-late.parquet").unlink()
    shop.prepare()
    with shop.refresh() as found:
        assert found.recounted <= 2
        mine = values(found)
    with shop.refresh(full=True) as other:
        assert values(other) == mine


def test_a_month_that_ends_has_nothing_counted_again(tmp_path: Path) -> None:
    """Its days are one segment then, with the same rows; also where some of them are new to the state."""
    shop = Shop(tmp_path / "p", 81)

    def prepared(*days: tuple[str, int]) -> list[int]:
        """How many parts each segment of the events has, once some days are there."""
        for kind, day in days:
            shop.write(kind, f"day-{day:02}", day, 100)
        for path in (path for kind in ("events", "exposures") for path in shop.files(kind)):
            table = pq.read_table(path)
            pq.write_table(table.filter(table["ts"].is_valid()), path)
        shop.prepare()
        with shop.refresh() as found:
            return [len(s.parts) for s in found._prepared["file events/*.parquet"].segments]

    assert prepared() == [1] * 5
    with shop.refresh() as found:
        found.keep()
    assert prepared(("events", 5), ("events", 6)) == [6, 1]
    with shop.refresh() as found:
        found.keep()
        assert found.told == "refresh: 2 new parts of 12; 0 units recomputed"
        assert 100 < found.rows_read <= 200, "the last day of the month and the first of the next"
        mine = values(found)
    with shop.refresh(full=True) as other:
        assert values(other) == mine
    assert prepared(("events", 7)) == [6, 1, 1]
    with shop.refresh() as found:
        assert found.told == "refresh: 1 new parts of 13; 0 units recomputed"
        found.keep()
    # the exposures' month ends: only those of its last days are new
    assert prepared(("exposures", 5), ("exposures", 6)) == [6, 1, 1]
    with shop.refresh() as found:
        assert [c.rewritten for c in found._changes.values()] == [0, 0]
        mine = values(found)
    with shop.refresh(full=True) as other:
        assert values(other) == mine


def test_what_ends_a_state_is_told(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "p", 41)
    shop.prepare()
    assert foreseen(shop) == "full: the first of its kind; 10 parts"
    first = shop.run()
    assert how(first) == "full: the first of its kind; 10 parts read"
    assert how(shop.run()) == "refresh: 0 new parts of 10; 0 units recomputed"
    assert foreseen(shop) == "refresh: 0 new parts of 10"
    # a file of it is damaged: it is counted anew, and stored
    folder = next(p for p in state.home(shop.root).iterdir() if p.is_dir())
    column = max(folder.glob("*-column*"), key=lambda p: p.stat().st_size)
    column.write_bytes(b"\x01" + column.read_bytes()[1:] if column.read_bytes()[0] != 1 else b"\x02")
    found = shop.run()
    assert how(found).startswith("full: the state was damaged")
    assert figures(found) == figures(first)
    assert how(shop.run()).startswith("refresh: 0")
    # a part that is read only when it is needed
    for path in folder.glob("*-part*"):
        path.write_bytes(b"")
    shop.write("events", "day-00-late", 0, 10)
    shop.prepare()
    found = shop.run()
    assert how(found).startswith("full: the state was damaged")
    assert figures(found) == figures(shop.run(full=True))
    shop.write("events", "day-00-later", 0, 10)
    shop.prepare()
    assert foreseen(shop) == "refresh: 1 new parts of 12"
    # too much is another
    for path in shop.files("events")[:6]:
        pq.write_table(pq.read_table(path).slice(1), path)
    shop.prepare()
    assert foreseen(shop) == "full: more than half of the parts changed; 12 parts"
    assert how(shop.run()).startswith("full: more than half of the parts changed")
    # a definition is another, and the old one is found again
    text = (shop.root / "payoff.yml").read_text()
    (shop.root / "payoff.yml").write_text(text.replace("name = 'view'", "name = 'other'"))
    assert how(shop.run()).startswith("full: the first of its kind")
    (shop.root / "payoff.yml").write_text(text)
    assert how(shop.run()).startswith("refresh: 0 new")
    # caps, roles and levels are no part of it
    (shop.root / "payoff.yml").write_text(
        text.replace("cap: 40", "cap: 30").replace("secondary: [views,", "secondary: [")
    )
    assert how(shop.run()).startswith("full: the first of its kind"), "a metric less is another pass"
    (shop.root / "payoff.yml").write_text(text.replace("cap: 40", "cap: 30"))
    found = shop.run()
    assert how(found).startswith("refresh: 0 new")
    assert figures(found) == figures(shop.run(full=True))


def test_two_runs_at_once_and_a_full_disk_cost_the_state_and_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(tmp_path / "p", 51)
    shop.prepare()
    shop.run()
    shop.append()
    shop.prepare()
    folder = next(p for p in state.home(shop.root).iterdir() if p.is_dir())
    other = Store(folder.parent, "")
    other.folder = folder
    with other.lock() as alone:
        assert alone
        found = shop.run()
    assert how(found).endswith("units recomputed; another run stored its state")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state, "_write", full)
        again = shop.run()
    assert how(again).endswith("the state could not be stored: No space left on device")
    assert figures(again) == figures(found)
    assert figures(shop.run()) == figures(found)
    assert how(shop.run()).startswith("refresh: 0 new parts of 12")


def test_the_command_line_counts_all_again_when_asked_and_drops_states_with_copies(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "p", 61)
    shop.prepare()

    def run(*arguments: str) -> dict[str, Any]:
        found = CliRunner().invoke(
            app, ["run", "one", "--json", "--no-record", "--project", str(shop.root), *arguments]
        )
        assert found.exit_code in (0, 1), found.output
        answer: dict[str, Any] = json.loads(found.stdout)
        return answer

    assert how(run()).startswith("full: the first of its kind")
    assert how(run()).startswith("refresh: 0 new parts")
    assert how(run("--full")).startswith("full: asked for")
    assert state.home(shop.root).is_dir()
    dropped = CliRunner().invoke(app, ["prepare", "--drop", "--project", str(shop.root)])
    assert dropped.exit_code == 0, dropped.output
    assert not any(state.home(shop.root).iterdir())


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("primary: capped\n", "primary: capped\n    trigger: {source: events}\n", "a trigger"),
        ("one_row_per: user}", "one_row_per: user}\nentities: {user: {}, team: {}}", None),
    ],
)
def test_what_has_no_incremental_form_is_counted_in_full(tmp_path: Path, old: str, new: str, why: str | None) -> None:
    shop = Shop(tmp_path / "p", 71)
    assert old in DEFINITIONS
    (shop.root / "payoff.yml").write_text(DEFINITIONS.replace(old, new))
    stored = shop.run()
    shop.prepare()
    found = shop.run()
    assert how(found).startswith("full: the first" if why is None else "as stored")
    assert not compare(figures(stored), figures(found), 1e-9, 1e-9)

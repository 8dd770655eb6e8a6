"""Incremental attribution: whichever days were counted before, the figures are the same to the last bit."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from payoff.run import Project
from payoff.warehouse import credit, state
from payoff.warehouse.credited import CreditData
from payoff.warehouse.crediting import CreditStatements
from payoff.warehouse.touch_state import Daily, Sums, begin, packed, unpacked

# ---------------------------------------------------------------- exact sums


def whole(of: Sums) -> dict[int, list[int]]:
    """Sums as whole numbers of 2^-64."""
    return {
        int(k): [(int(h) << 64) + int(w) for h, w in zip(high, low, strict=True)]
        for k, high, low in zip(of.key, of.high, of.low, strict=True)
    }


def some_sums(rng: np.random.Generator) -> tuple[Sums, dict[int, list[int]]]:
    key = rng.choice(12, int(rng.integers(0, 9)), replace=False).astype(np.int64)
    numbers = [
        [int(rng.choice([0, 1, -1, 2**64 - 1, -(2**64), 2**63])) * int(rng.integers(1, 99)) for _ in range(2)]
        for _ in key
    ]
    columns = [pa.chunked_array([pa.array([n[i] for n in numbers], pa.decimal128(38, 0))]) for i in range(2)]
    return Sums.of(key, columns), {int(k): n for k, n in zip(key, numbers, strict=True)}


def test_sums_are_added_and_taken_away_as_whole_numbers_are() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        (a, mine), (b, theirs) = some_sums(rng), some_sums(rng)
        assert whole(a) == mine
        for sign in (1, -1):
            found = a.merged(b, sign)
            wanted = {
                k: [x + sign * y for x, y in zip(mine.get(k, [0, 0]), theirs.get(k, [0, 0]), strict=True)]
                for k in mine.keys() | theirs.keys()
            }
            assert whole(found) == {k: v for k, v in wanted.items() if any(v)}
            assert whole(found.merged(b, -sign)) == {k: v for k, v in mine.items() if any(v)}
        for row, numbers in zip(a.numbers(), (mine[k] for k in sorted(mine)), strict=True):
            assert [math.isclose(x, n / 2**64, rel_tol=4e-16) for x, n in zip(row, numbers, strict=True)] == [
                True,
                True,
            ]
    assert whole(a.part(3, 8)) == {k - 3: v for k, v in mine.items() if 3 <= k < 8}


def test_counts_are_whole_and_arrays_come_back() -> None:
    counts = Sums.of(np.array([4, 2]), [pa.chunked_array([pa.array([7, 9])])])
    assert counts.numbers().tolist() == [[9.0], [7.0]]
    arrays = {"a, 1|key": np.arange(5), "b": np.zeros((0, 3), np.uint64)}
    back = unpacked(packed(arrays))
    assert back.keys() == arrays.keys()
    assert all((back[k] == arrays[k]).all() and back[k].dtype == arrays[k].dtype for k in arrays)


# ---------------------------------------------------------------- histories

DEFINITIONS = """
version: 1
project: small
defaults: {entity: user}
sources:
  events: {file: "events/*.parquet", time: ts, entity: {user: user_id}}
touchpoints:
  push: {source: events, where: "name = 'push'", personalised: chosen}
  seen: {source: events, where: "name IN ('view', 'push')", cost: amount}
  channel: {source: events, where: "name = 'visit'", by: channel, direct: true}
attribution:
  a:
    conversions:
      order: {event: {source: events, where: "name = 'order'"}, value: amount}
      lead: {event: {source: events, where: "name IN ('lead', 'order')"}}
    touchpoints: [push, seen, channel]
    window: [1d, 2h]
    models: [first, last_non_direct, linear, {time_decay: {half_life: 1h}}, {position: [0.4, 0.2, 0.4]}, participation, shapley,
             ordered_shapley]
"""
SIMPLE = """
version: 1
project: small
defaults: {entity: user}
sources:
  events: {file: "events/*.parquet", time: ts, entity: {user: user_id}}
touchpoints:
  seen: {source: events, where: "name IN ('view', 'push')"}
  channel: {source: events, where: "name = 'visit'", by: channel}
attribution:
  a:
    conversion: {event: {source: events, where: "name = 'order'"}, value: amount}
    touchpoints: [seen, channel]
    window: 1d
    models: [linear]
"""
START = np.datetime64("2026-01-01", "us")
NOW_US = round(datetime(2026, 3, 1, tzinfo=UTC).timestamp() * 1e6)


class Shop:
    """A project whose files have a history. Ids, times and values are missing here and there; times tie."""

    def __init__(self, root: Path, seed: int, rows: int = 150, definitions: str = DEFINITIONS) -> None:
        self.root, self.rng, self.rows, self.day, self.users = root, np.random.default_rng(seed), rows, 0, 20
        (root / "events").mkdir(parents=True)
        (root / "payoff.yml").write_text(definitions)
        for _ in range(12):
            self.append()

    def write(self, name: str, day: int, rows: int) -> None:
        rng = self.rng
        seconds = day * 86_400 + rng.integers(0, 26, rows) * 3_600  # files reach into the next day
        amounts = np.round(rng.lognormal(2, 1, rows), 2) * rng.choice([1.0, -1e-5, 1e7], rows, p=[0.9, 0.05, 0.05])
        table = {
            "user_id": pa.array([f"u{u}é" for u in rng.integers(0, self.users, rows)], mask=rng.random(rows) < 0.03),
            "ts": pa.array(START + seconds.astype("timedelta64[s]"), mask=rng.random(rows) < 0.02),
            "name": pa.array(rng.choice(["view", "push", "visit", "order", "lead", "other"], rows)),
            "channel": pa.array(
                rng.choice(["ads", "mail", "shop"], rows, p=[0.7, 0.2, 0.1]), mask=rng.random(rows) < 0.05
            ),
            "chosen": pa.array(rng.random(rows) < 0.5, mask=rng.random(rows) < 0.1),
            "amount": pa.array(amounts, mask=rng.random(rows) < 0.05),
        }
        pq.write_table(pa.table(table), self.root / "events" / f"{name}.parquet")

    def append(self) -> str:
        self.write(f"day-{self.day:02}", self.day, self.rows)
        self.day += 1
        self.users += 3
        return "a day"

    def files(self) -> list[Path]:
        return sorted((self.root / "events").glob("*.parquet"))

    def step(self) -> str:
        """One thing that may happen to files."""
        path = self.files()[int(self.rng.integers(len(self.files())))]
        what = str(self.rng.choice(["append", "append", "late", "correct", "delete", "remove", "gap", "nothing"]))
        if what == "append":
            self.append()
        elif what == "gap":
            self.day += int(self.rng.integers(1, 5))
            self.append()
        elif what == "late":
            day = int(self.rng.integers(self.day))
            self.write(f"day-{day:02}-late-{self.rng.integers(1000)}", day, 12)
        elif what == "remove" and len(self.files()) > 3:
            path.unlink()
        elif what in ("correct", "delete"):
            table = pq.read_table(path)
            if what == "delete":
                table = table.take(np.sort(self.rng.choice(len(table), int(len(table) * 0.9), replace=False)))
            else:
                names = self.rng.choice(["view", "push", "visit", "order", "lead"], len(table))
                table = table.set_column(2, "name", pa.array(names))
            pq.write_table(table, path)
        return what

    def prepare(self) -> None:
        Project.load(self.root).prepare()

    def declare(self, definitions: str) -> None:
        (self.root / "payoff.yml").write_text(definitions)

    def read(self, *, full: bool = False) -> CreditData:
        project = Project.load(self.root)
        design = dataclasses.replace(project._journey("attribution", "a"), now_us=NOW_US)
        with project._reading((), (design,), ()) as catalog:
            catalog.prepare(run=True)
            return credit.read(catalog, design, full=full)

    def begin(self) -> Daily | str:
        """How a run would begin."""
        project = Project.load(self.root)
        design = dataclasses.replace(project._journey("attribution", "a"), now_us=NOW_US)
        with project._reading((), (design,), ()) as catalog:
            return begin(CreditStatements(catalog, design))


def how(data: CreditData) -> str:
    (said,) = [s.purpose for s in data.steps if "(full: " in s.purpose or "(refresh: " in s.purpose]
    return said.partition(" (")[2].removesuffix(")")


def flat(value: Any, at: str = "") -> dict[str, Any]:
    """All that a run counted, by where it is."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name != "steps"}
    if isinstance(value, np.ndarray):
        return {f"{at}[{i}]": x for i, x in enumerate(value.ravel().tolist())} | {f"{at}.shape": value.shape}
    if isinstance(value, Mapping):
        pairs = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, (list, tuple)):
        pairs = [(str(i), v) for i, v in enumerate(value)]
    else:
        return {at: value}
    return {k: v for name, item in pairs for k, v in flat(item, f"{at}.{name}").items()}


def moves(data: CreditData) -> list[Any]:
    """Moves, in an order of their own: the engine gives them in any."""
    return [
        sorted(zip(m.group.tolist(), m.state.tolist(), m.follows.tolist(), m.count.tolist(), strict=True))
        for c in data.credits
        for m in c.moves.values()
    ]


def same(a: CreditData, b: CreditData, near: float = 0.0) -> None:
    assert moves(a) == moves(b)
    mine, theirs = ({k: v for k, v in flat(d).items() if ".moves." not in k} for d in (a, b))
    assert mine.keys() == theirs.keys()
    differ = {
        k: (v, theirs[k])
        for k, v in mine.items()
        if v != theirs[k]
        and not (near and isinstance(v, float) and math.isclose(v, theirs[k], rel_tol=near, abs_tol=near))
    }
    assert not differ, dict(list(differ.items())[:5])


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 16))])
def test_after_any_history_a_run_gives_what_a_full_one_does_to_the_last_bit(tmp_path: Path, seed: int) -> None:
    shop = Shop(tmp_path / "p", seed)
    done: list[str] = []
    told = []
    for _ in range(5):
        shop.prepare()
        found = shop.read()
        told.append(how(found))
        full = shop.read(full=True)
        assert how(full).startswith("full: asked for"), done
        same(found, full)
        assert found.credits[0].counts["linear"].sum() > 0
        while (what := shop.step()) == "nothing":
            pass
        done.append(what)
    stored = shop.read()
    assert how(stored).startswith("full: of 'events' of its "), (
        "the copy is stale, and the rows are read as they are stored"
    )
    shop.prepare()
    same(shop.read(), stored, 1e-9)
    assert told[0].startswith("full: the first of its kind")
    assert sum(t.startswith("refresh: ") for t in told) >= 2, (done, told)


def test_markov_is_counted_anew_beside_what_is_kept(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "p", 21, definitions=SIMPLE.replace("[linear]", "[linear, markov, {markov: {order: 2}}]"))
    shop.prepare()
    shop.read()
    shop.append()
    stored = shop.read()
    shop.prepare()
    found = shop.read()
    assert how(found) == "refresh: 1 new parts of 13; 2 of 14 days counted"
    assert all(moves(found))
    same(found, stored, 1e-9)


def test_only_days_that_something_new_reaches_are_counted_again(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "p", 31, definitions=SIMPLE)
    shop.prepare()
    assert how(shop.read()) == "full: the first of its kind; 12 parts read"
    assert how(shop.read()) == "refresh: 0 new parts of 12; 0 of 13 days counted"
    shop.append()  # it reaches two hours into a day more, and the day before it ends with the rows of the file before
    assert shop.begin() == "of 'events' of its 13 files 1 new"
    shop.prepare()
    (foreseen,) = [s.purpose for s in Project.load(shop.root).plan(["attribution.a"]) if s.keeps == "credit_raw"]
    assert foreseen == "every conversion (refresh: 1 new parts of 13)"
    assert how(shop.read()) == "refresh: 1 new parts of 13; 2 of 14 days counted"
    # one late row: conversions of its day, and those of the next that its touch is in reach of
    late = {
        "user_id": ["u1é"],
        "ts": pa.array([START + np.timedelta64(5 * 24 + 12, "h")]),
        "name": ["push"],
        "channel": ["ads"],
        "chosen": [True],
        "amount": [1.0],
    }
    pq.write_table(pa.table(late), shop.root / "events" / "day-05-late.parquet")
    shop.prepare()
    found = shop.read()
    assert how(found) == "refresh: 1 new parts of 14; 2 of 14 days counted"
    same(found, shop.read(full=True))
    for path in shop.files()[3:10]:
        pq.write_table(pq.read_table(path).slice(1), path)
    shop.prepare()
    found = shop.read()
    assert how(found) == "full: more than half of the days changed; 14 parts read"
    same(found, shop.read(full=True))


def test_another_definition_is_another_state_and_another_order_of_values_counts_anew(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "p", 41, definitions=SIMPLE)
    shop.prepare()
    shop.read()
    for other in (("1d", "20h"), ("'order'", "'lead'"), ("[linear]", "[last]"), ("'view', 'push'", "'view'")):
        shop.declare(SIMPLE.replace(*other))
        assert how(shop.read()).startswith("full: the first of its kind"), other
    shop.declare(SIMPLE.replace("project: small", "project: other"))
    assert how(shop.read()).startswith("refresh: 0 new parts"), "and a name is not a definition"
    table = pq.read_table(shop.files()[-1])
    more = pa.table({**{c: table[c] for c in table.column_names}, "channel": pa.array(["shop"] * len(table))})
    for n in range(9):
        pq.write_table(more, shop.root / "events" / f"day-11-{n}.parquet")
    shop.prepare()
    found = shop.read()
    assert how(found).startswith("full: the values of a touchpoint are others, or in another order")
    assert [s.label for s in found.stops][1] == "channel: shop"
    assert how(shop.read()).startswith("refresh: 0 new parts")
    same(shop.read(), shop.read(full=True))


@pytest.mark.parametrize("error", ["killed", "full disk"])
def test_whenever_storing_ends_half_way_the_next_run_is_right(tmp_path: Path, error: str) -> None:
    class Killed(BaseException):
        pass

    shop = Shop(tmp_path / "p", 51, definitions=SIMPLE)
    shop.prepare()
    shop.read()
    shop.append()
    shop.prepare()
    kept = shop.root / ".payoff" / "state"
    shutil.copytree(kept, tmp_path / "before")
    wanted = shop.read(full=True)
    for at in (0, 3):
        shutil.rmtree(kept)
        shutil.copytree(tmp_path / "before", kept)
        with pytest.MonkeyPatch.context() as patch:
            count = iter(range(99))
            write = state._write

            def fail(*args: Any, at: int = at, count: Any = count, write: Any = write, **more: Any) -> None:
                if next(count) == at:
                    raise Killed if error == "killed" else OSError(28, "No space left on device")
                write(*args, **more)

            patch.setattr(state, "_write", fail)
            if error == "killed":
                with pytest.raises(Killed):
                    shop.read()
            else:
                found = shop.read()
                assert how(found).endswith("; the state could not be stored: No space left on device")
                same(found, wanted)
        found = shop.read()
        assert how(found) == "refresh: 1 new parts of 13; 2 of 14 days counted"
        same(found, wanted)


def test_a_state_that_is_not_as_it_was_written_is_counted_again(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "p", 61, definitions=SIMPLE)
    shop.prepare()
    wanted = shop.read()
    (folder,) = [p for p in (shop.root / ".payoff" / "state").iterdir() if p.is_dir()]

    def file(kind: str, name: str) -> Path:
        told = json.loads((folder / "manifest.json").read_text())
        return folder / str(told[kind][name]["file"])

    for kind, name in (("parts", "total"), ("columns", "behind"), ("", "manifest")):
        path = file(kind, name) if kind else folder / "manifest.json"
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        found = shop.read()
        assert how(found).startswith("full: the state was damaged"), name
        same(found, wanted)
        assert how(shop.read()).startswith("refresh: 0 new")
    # a day is read when it is taken away, and not before
    first = int(START.astype("datetime64[D]").astype(int))
    file("parts", f"day {first}").write_bytes(b"")
    assert how(shop.read()).startswith("refresh: 0 new")
    shop.files()[0].unlink()
    shop.prepare()
    found = shop.read()
    assert how(found).startswith("full: the state was damaged")
    same(found, shop.read(full=True))


def test_what_has_no_day_of_its_own_is_read_whole_and_said(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "p", 71, rows=60, definitions=SIMPLE)
    assert shop.begin() == "nothing is prepared"
    shop.prepare()
    assert isinstance(shop.begin(), Daily)
    shop.declare(SIMPLE.replace("time: ts", "time: ts, id: amount"))
    assert shop.begin() == "rows of 'events' are told apart by their id, over everything"
    shop.declare(SIMPLE.replace("[linear]", "[linear, {custom: {weight: position}}]"))
    assert shop.begin() == "a custom weight is looked at over everything"
    # a unit with too many pairs, and values that have no exact sum
    shop.declare(SIMPLE.replace("[linear]", "[linear]\n    max_pairs: 100"))
    assert how(shop.read()).startswith("full: the first of its kind")
    times = pa.array([START + np.timedelta64(11 * 24 * 60 + m, "m") for m in range(40)])
    bot = {
        "user_id": ["bot"] * 40,
        "ts": times,
        "name": ["push", "order"] * 20,
        "channel": ["ads"] * 40,
        "chosen": [True] * 40,
        "amount": [1.0] * 40,
    }
    pq.write_table(pa.table(bot), shop.root / "events" / "day-11-bot.parquet")
    stored = shop.read()
    shop.prepare()
    found = shop.read()
    assert how(found) == "full: a unit may have more than 100 pairs of touch and conversion"
    assert found.capped.units >= 1
    same(found, stored, 1e-9)
    shop.declare(SIMPLE)
    assert how(shop.read()).startswith("full: the first of its kind")
    assert how(shop.read()).startswith("refresh: 0 new parts of 13")
    pq.write_table(pa.table({**bot, "amount": [1e30] * 40}), shop.root / "events" / "day-11-bot.parquet")
    shop.prepare()
    found = shop.read()
    assert how(found) == "full: values of conversions are too small or too large to be added exactly"
    (total,) = found.totals.values()
    assert total.worth.sum() >= 2e31

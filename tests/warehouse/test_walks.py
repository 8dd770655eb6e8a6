"""One walk for all who ask: masks against a sum of conditions, ranges against their laws, and what several share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from sqlglot import exp

from payoff.errors import DataError
from payoff.warehouse import walks
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.prepared import Part, Segment
from payoff.warehouse.query import Query, fragment
from payoff.warehouse.statements import Step
from payoff.warehouse.walks import Places, Reads, Walker, Walks

pytest.importorskip("numba")

TYPES = {"name": "VARCHAR", "n": "INTEGER", "x": "DOUBLE", "day": "DATE"}
CONDITIONS = [
    "name = 'a'",
    "'b' = name",
    "(name = 'a')",
    "name IN ('a', 'c', 'ü')",
    "name IN ('a', NULL)",
    "coalesce((name = 'c'), FALSE)",
    "coalesce(name = 'c', TRUE)",
    "coalesce(name, 'a') = 'a'",
    "name <> 'a'",
    "name = 'a' AND n = 1",
    "name NOT IN ('a', 'b')",
    "n = 1",
    "n IN (1, 2, 007)",
    "n = 1.0",
    "n = '2'",
    "x = 1",
    "day = '2026-01-01'",
    "day IN ('2026-01-01', '2026-1-1')",
    "name IS NULL",
    "TRUE",
    "NULL",
]


@pytest.mark.parametrize("seed", range(8))
def test_a_mask_is_the_sum_of_its_conditions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = [CONDITIONS[i] for i in rng.permutation(len(CONDITIONS))[: int(rng.integers(1, len(CONDITIONS) + 1))]]
    bits = [1 << int(k) for k in rng.permutation(62)[: len(chosen)]]
    mask = walks.mask_of([(fragment(c), bit) for c, bit in zip(chosen, bits, strict=True)], TYPES)
    plain = " + ".join(f"CASE WHEN {c} THEN {bit}::BIGINT ELSE 0 END" for c, bit in zip(chosen, bits, strict=True))
    with duckdb.connect() as connection:
        connection.execute(
            """CREATE TABLE rows AS SELECT * FROM (VALUES ('a'), ('b'), ('c'), ('ü'), ('A'), (NULL)) AS a(name),
            (VALUES (1), (2), (7), (NULL)) AS b(n), (VALUES (1.0::DOUBLE), ('NaN'::DOUBLE), (NULL)) AS c(x),
            (VALUES (DATE '2026-01-01'), (NULL)) AS d(day)"""
        )
        found = connection.execute(
            f"SELECT {mask.sql('duckdb')}, {plain}, typeof({mask.sql('duckdb')}) FROM rows"
        ).fetchall()
    assert all(ours == theirs for ours, theirs, _ in found)
    assert {kind for *_, kind in found} == {"BIGINT"}


def test_equalities_of_one_column_are_one_case() -> None:
    conditions = [(fragment(f"coalesce((name = '{n}'), FALSE)"), 1 << k) for k, n in enumerate("abca")]
    assert walks.mask_of(conditions, TYPES).sql() == (
        "CAST(CASE name WHEN 'a' THEN 9 WHEN 'b' THEN 2 WHEN 'c' THEN 4 ELSE 0 END AS BIGINT)"
    )
    # where a column is of another type, two literals may be one value
    assert len(list(walks.mask_of(conditions, {"name": "UUID"}).find_all(exp.Case))) == 4


@pytest.mark.parametrize(
    ("condition", "is_case"),
    [
        ("name = 'a'", True),
        ("(name = 'a') OR ((name = 'ü') OR name IN ('c', 'A'))", True),
        ("n = 1 OR n IN (7, 2)", True),
        ("name = 'a' OR n = 1", False),
        ("name = 'a' OR name <> 'b'", False),
        ("name = 'a' AND n = 1", False),
        ("NOT (name = 'a' OR name = 'b')", False),
        ("name = 'a' OR NULL", False),
    ],
)
def test_any_of_equalities_keeps_the_rows_that_they_keep(condition: str, is_case: bool) -> None:
    found = walks.any_of(fragment(condition), TYPES).sql("duckdb")
    assert ("CASE" in found) == is_case
    rows = "(VALUES ('a'), ('b'), ('c'), ('ü'), ('A'), (NULL)) AS a(name), (VALUES (1), (2), (7), (9), (NULL)) AS b(n)"
    with duckdb.connect() as connection:
        kept = [connection.sql(f"SELECT name, n FROM {rows} WHERE {c}").fetchall() for c in (condition, found)]
    assert sorted(map(str, kept[0])) == sorted(map(str, kept[1])) != []


# ---------------------------------------------------------------- ranges


def written(folder: Path, of: str, units: Any, times: Any, **columns: Any) -> Segment:
    path = str(folder / f"{of}.parquet")
    table = pa.table({"payoff_unit": np.asarray(units, np.int64), "payoff_us": np.asarray(times, np.int64), **columns})
    duckdb.from_arrow(table).write_parquet(path, row_group_size=2048)
    return Segment(path, (Part(of, of, table.num_rows, 0, 0, table.num_rows),))


@pytest.mark.parametrize("parts", [1, 2, 3, 10, 400])
def test_ranges_hold_every_unit_once(tmp_path: Path, parts: int) -> None:
    rng = np.random.default_rng(parts)
    all_units = [np.sort(rng.integers(0, 500, n) ** 2 // 500) for n in (9_000, 100, 7_000)]
    segments = [written(tmp_path, f"s{k}", units, np.zeros(len(units))) for k, units in enumerate(all_units)]
    found = walks.ranges(segments, parts)
    assert len(found) <= parts
    assert found[0][0] is None
    assert found[-1][1] is None
    assert all(a[1] == b[0] for a, b in pairwise(found))
    assert all(a is None or b is None or a < b for a, b in found)
    if parts in (2, 3):
        together = np.concatenate(all_units)
        rows = [((together >= (a or 0)) & (together < (b or 10**9))).sum() for a, b in found]
        assert max(rows) < 1.4 * len(together) / parts


def test_one_unit_and_no_row_are_one_range(tmp_path: Path) -> None:
    alone = written(tmp_path, "alone", [7] * 100, range(100))
    empty = written(tmp_path, "empty", [], [])
    nobody = written(tmp_path, "nobody", [], [])
    assert walks.ranges([alone], 4) == [(None, None)]
    assert walks.ranges([empty, nobody], 4) == [(None, None)]
    assert walks.ranges([], 4) == [(None, None)]


# ---------------------------------------------------------------- what is shared


class Counting:
    """Counts rows of each unit that have a bit."""

    def __init__(self, condition: str, segments: tuple[Segment, ...], kept: int = 1) -> None:
        self.found = np.zeros(0, np.int64)
        self.total = 0
        reads = Reads((fragment(condition),))
        step = Step(condition, "events", "it is counted", ("name",), (condition,), Query(exp.select("1")))
        self.walker = Walker(segments, TYPES, reads, kept, self._begin, self._tell, step)

    def _begin(self) -> Callable[[Places], Any]:
        self.found = np.zeros(1000, np.int64)
        return lambda places: _Counting(self.found, places.bits[0])

    def _tell(self) -> None:
        self.total = int(self.found.sum())


class _Counting:
    def __init__(self, found: Any, bit: int) -> None:
        self._found, self._bit = found, bit

    def add(self, unit: Any, t: Any, mask: Any, values: Any) -> None:
        np.add.at(self._found, unit[mask & self._bit > 0], 1)

    def end(self) -> None:
        pass


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that are read."""
    out: list[str] = []
    through = walks.through

    def spy(engine: Any, segments: Any, projection: Query, *rest: Any) -> int:
        out.append(projection.render())
        return through(engine, segments, projection, *rest)

    monkeypatch.setattr(walks, "through", spy)
    monkeypatch.setattr(walks, "_ROWS", 1)
    return out


def asked(folder: Path) -> tuple[list[Counting], tuple[Segment, ...], list[int]]:
    rng = np.random.default_rng(1)
    n = 4_000
    units, names = np.sort(rng.integers(0, 300, n)), rng.choice(list("abc"), n)
    segments = (written(folder, "rows", units, np.arange(n), name=names.tolist()),)
    conditions = ["name = 'a'", "name = 'b'", "name <> 'a'"]
    return [Counting(c, segments) for c in conditions], segments, [int((names == "a").sum()), int((names == "b").sum()), int((names != "a").sum())]  # fmt: skip


def test_the_first_that_is_needed_is_made_for_all(tmp_path: Path, seen: list[str]) -> None:
    counting, segments, expected = asked(tmp_path)
    other = Counting("name = 'c'", (*segments, *segments))  # over other rows
    with DuckDBEngine({}, tmp_path, [segments[0].path]) as engine:
        planned = Walks(engine)
        for one in (*counting, other):
            planned.plan(one.walker)
        steps = planned.shared([one.walker.step for one in (other, *counting)])
        for one in (counting[1], other, counting[0], counting[2]):
            planned.make(one.walker)
    assert [one.total for one in counting] == expected
    assert len(seen) == 2
    assert [step.reads for step in steps] == ["events", "events", "", ""]
    assert steps[1].serves == tuple(one.walker.step.name for one in counting)
    assert "WHEN 'a' THEN 1 WHEN 'b' THEN 2" in " ".join(steps[1].sql.split())
    assert steps[0] == other.walker.step
    assert "the same walk as that for name = 'a'" in steps[2].purpose


def test_what_does_not_fit_together_is_walked_apart(
    tmp_path: Path, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, segments, expected = asked(tmp_path)
    monkeypatch.setattr(DuckDBEngine, "memory", lambda _: 2**24)
    for one in counting:
        one.walker.bytes = 2**22
    with DuckDBEngine({}, tmp_path, [segments[0].path]) as engine:
        planned = Walks(engine)
        for one in counting:
            planned.plan(one.walker)
        for one in counting:
            planned.make(one.walker)
    assert [one.total for one in counting] == expected
    assert len(seen) == 2


def test_what_is_wrong_with_one_question_is_told_to_no_other(tmp_path: Path, seen: list[str]) -> None:
    counting, segments, expected = asked(tmp_path)
    wrong = Counting("CAST(name AS INT) = 1", segments)
    with DuckDBEngine({}, tmp_path, [segments[0].path]) as engine:
        planned = Walks(engine)
        for one in (counting[0], wrong, *counting[1:]):
            planned.plan(one.walker)
        for one in counting:
            planned.make(one.walker)
        for _ in range(2):
            with pytest.raises(DataError, match="Could not convert"):
                planned.make(wrong.walker)
    assert [one.total for one in counting] == expected
    assert len(seen) == 5

"""One walk over prepared rows: the same unit values as the join in SQL and as a slow twin, to the last bit however it is cut."""

from __future__ import annotations

import bisect
import math
import threading
from _thread import interrupt_main
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from payoff.errors import DataError
from payoff.run import Project
from payoff.stats import exact
from payoff.warehouse import arms, fused, walks
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.fused import NEVER, Accumulators, Exposures, Fold, Pass
from payoff.warehouse.prepared import Part, Segment
from payoff.warehouse.query import sql
from tests.builders import make_project
from tests.warehouse.conformance.answers import answered, assert_equal, project_on
from tests.warehouse.conformance.data import tables
from tests.warehouse.conformance.engines import Place, on_duckdb
from tests.warehouse.conformance.projects import PROJECTS

pytest.importorskip("numba")

HOUR = 3_600_000_000
EXPERIMENTS = ("metrics", "nothing_to_say", "adjusted", "segments", "closer", "clusters", "switchback", "ids", "zones")


@pytest.fixture(autouse=True)
def ranges(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many ranges of units as threads, however few rows there are; of a random case some more."""
    monkeypatch.setattr(walks, "_ROWS", 1)
    seed = getattr(request.node, "callspec", None)
    if seed is not None and "seed" in seed.params:
        monkeypatch.setattr(DuckDBEngine, "threads", lambda _: seed.params["seed"] % 5 + 1)


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No state is kept, so that every pass is a walk of its own; the tables that were made by one."""
    seen: list[str] = []
    run = Pass.run

    def spy(self: Pass, *given: Any) -> Any:
        seen.append(self.scan.table)
        return run(self, *given)

    monkeypatch.setattr(Pass, "run", spy)
    monkeypatch.setattr(arms, "begin", lambda *_, **__: "not in this test")
    return seen


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with on_duckdb(tmp_path_factory.mktemp("tables"), tables()) as found:
        yield found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_walk_gives_what_the_join_gives(name: str, place: Place, tmp_path: Path, walked: list[str]) -> None:
    assert name in PROJECTS
    project = project_on(place, name, tmp_path)
    expected = answered(project)
    assert not walked
    project.prepare()
    found = answered(project)
    assert walked
    assert_equal(expected, found)
    assert str(expected) != str(found), "sums made exactly differ in some last digit"


def test_without_numba_the_copy_is_read_in_sql(
    place: Place, tmp_path: Path, walked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = project_on(place, "zones", tmp_path)
    project.prepare()
    found = answered(project)
    assert walked
    walked.clear()
    monkeypatch.setattr(walks, "available", lambda: False)
    assert_equal(found, answered(project))
    assert not walked


def test_the_plan_says_how_it_is_counted(place: Place, tmp_path: Path, walked: list[str]) -> None:
    project = project_on(place, "adjusted", tmp_path)
    before = project.plan()
    assert not any("one walk" in step.purpose or "exactly" in step.purpose for step in before)
    assert all("VARIANCE" in step.sql for step in before if step.name.startswith("moments of"))
    project.prepare()
    steps = project.plan()
    assert any("folded outside SQL in one walk" in step.purpose for step in steps)
    assert any("summed exactly outside SQL" in step.purpose for step in steps)
    assert not any("VARIANCE" in step.sql for step in steps if step.name.startswith("moments of"))
    assert not walked


def figures(project: Project) -> Any:
    found = answered(project)
    return [{key: r[key] for key in ("name", "estimates", "checks") if key in r} for r in found["results"]]


def test_no_digit_depends_on_threads_or_on_the_order_of_exposures(tmp_path: Path, walked: list[str]) -> None:
    """The same rows, stored in another order in the exposures' table and read by another number of threads."""
    rng = np.random.default_rng(5)
    found = []
    n = 6_000
    events = pa.table(
        {
            "user_id": rng.integers(0, 900, n),
            "ts": pa.array((rng.integers(0, 40 * 24, n) * HOUR).tolist(), pa.timestamp("us")),
            "amount": np.round(rng.exponential(20, n), 2),
        }
    )
    exposed = pa.table(
        {
            "user_id": np.arange(900),
            "ts": pa.array((rng.integers(15 * 24, 20 * 24, 900) * HOUR).tolist(), pa.timestamp("us")),
            "arm": np.where(rng.random(900) < 0.5, "a", "b"),
            "home": np.arange(900) // 3,
        }
    )
    text = """
    sources:
      exposures: {table: exposures, time: ts, entity: {user: user_id, home: home}}
      events: {table: events, time: ts, entity: {user: user_id}}
    metrics:
      spend: {kind: sum, from: events, column: amount, cap: p99}
      each: {kind: mean, from: events, column: amount}
    experiments:
      e: {assignment: {source: exposures, variant: arm, control: a}, primary: [spend, each], adjust: {cuped: true, period: 9d}}
      c: {assignment: {source: exposures, variant: arm, control: a}, entity: user, cluster: home, primary: [spend]}
    """
    for k, threads in enumerate((1, 4, 4)):
        folder = tmp_path / str(k)
        folder.mkdir()
        turned = exposed.take(pa.array(np.random.default_rng(k).permutation(900)))
        with duckdb.connect(str(folder / "data.duckdb")) as connection:
            for name, table in {"exposures": turned, "events": events}.items():
                connection.register("given", table)
                connection.execute(f"CREATE TABLE {name} AS FROM given")
        text_of_connection = f"connections: {{main: {{engine: duckdb, path: data.duckdb, threads: {threads}}}}}\n"
        project = make_project(folder, text, root="defaults: {entity: user, window: 9d}\n" + text_of_connection)
        project.prepare(["events"])
        found.append(figures(project))
    assert walked
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "1e200"])
def test_what_is_not_finite_is_told_as_sql_tells_it(bad: str, tmp_path: Path, walked: list[str]) -> None:
    project = make_project(
        tmp_path,
        """
        sources:
          exposures: {table: exposures, time: ts, entity: {user: user_id}}
          events: {table: events, time: ts, entity: {user: user_id}}
        metrics: {spend: {kind: sum, from: events, column: amount}}
        experiments: {e: {assignment: {source: exposures, variant: arm, control: a}, primary: spend}}
        """,
        f"""
        CREATE TABLE exposures AS SELECT i AS user_id, TIMESTAMP '2026-01-01' AS ts, CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END AS arm
        FROM range(40) AS t(i);
        CREATE TABLE events AS SELECT i % 40 AS user_id, TIMESTAMP '2026-01-02' AS ts,
        CASE WHEN i < 4 THEN '{bad}'::DOUBLE * (i + 1) ELSE i END AS amount FROM range(80) AS t(i);
        INSERT INTO events VALUES (0, TIMESTAMP '2026-02-02', 1);
        """,
        root="defaults: {entity: user, window: 9d}",
    )
    with pytest.raises(DataError, match=r"NaN or infinite|too large for a variance") as in_sql:
        project.run(record=False)
    project.prepare(["events"])
    with pytest.raises(DataError) as in_a_walk:
        project.run(record=False)
    assert walked
    assert str(in_sql.value) == str(in_a_walk.value)


def test_what_does_not_fit_in_memory_is_left_to_sql(
    place: Place, tmp_path: Path, walked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = project_on(place, "zones", tmp_path)
    project.prepare()
    monkeypatch.setattr(fused, "_SHARE", 0.0)
    found = answered(project)
    assert not walked
    monkeypatch.undo()
    assert_equal(found, answered(project))


# ---------------------------------------------------------------- the walk against a slow twin


class Case:
    """Random exposures, segments of rows in order, and folds of every kind; many ties, few units."""

    def __init__(self, seed: int, folder: Path) -> None:
        rng = np.random.default_rng(seed)
        self.folder = folder
        units, n = int(rng.integers(1, 6)), int(rng.integers(0, 14))
        t0 = rng.integers(0, 12, n)
        anchored = np.where(rng.random(n) < 0.6, t0 + rng.integers(0, 4, n), NEVER)
        self.exposures = Exposures(
            rng.permutation(n), rng.integers(-1, units, n), rng.integers(0, 3, n), t0, {"a": anchored}
        ).sorted()
        self.segments = []
        for k in range(int(rng.integers(0, 5))):
            m = int(rng.integers(0, 30))
            rows = sorted(
                (int(u), int(t), int(b), float(v), float(w))
                for u, t, b, v, w in zip(
                    rng.integers(0, units + 1, m), rng.integers(-6, 20, m), rng.integers(0, 8, m),
                    np.round(rng.normal(size=m), 2) * 10.0 ** rng.integers(-3, 9, m), rng.integers(0, 5, m), strict=True,
                )
            )  # fmt: skip
            self.segments.append(self._written(f"s{k}", rows))
        self.folds = [
            Fold("n", "count", bits=0),
            Fold("some", "count", bits=1, low=-3, high=4),
            Fold("v", "sum", bits=2, value=0, low=0, high=int(rng.integers(1, 9))),
            Fold("before", "sum", bits=1, value=0, low=-5, high=0),
            Fold("w", "mean", bits=3, value=1, low=-2, high=None),
            Fold("calendar", "sum", bits=0, value=1, low=0, since=3, before=9),
            Fold("mine", "count", bits=4, only=1),
            Fold("first", "first", bits=4, low=0, high=6),
            Fold("anchored", "sum", bits=1, value=0, low=0, high=3, after="a"),
        ]
        chosen = rng.permutation(len(self.folds))[: int(rng.integers(1, len(self.folds) + 1))]
        self.folds = [self.folds[i] for i in sorted(chosen)]
        self.projection = sql("SELECT payoff_unit AS unit, payoff_us AS t, mask, v0, v1 FROM prepared_rows")

    def _written(self, name: str, rows: list[tuple[int, int, int, float, float]]) -> tuple[Segment, list[Any]]:
        path = str(self.folder / f"{name}.parquet")
        columns = [pa.array([row[i] for row in rows], pa.int64() if i < 3 else pa.float64()) for i in range(5)]
        table = pa.table(columns, ["payoff_unit", "payoff_us", "mask", "v0", "v1"])
        duckdb.from_arrow(table).write_parquet(path, row_group_size=2048)
        return Segment(path, (Part(name, name, len(rows), None, None, 0),)), rows

    def walk(self, segments: list[Segment], into: Accumulators, only: np.ndarray | None = None) -> Accumulators:
        paths = [s.path for s, _ in self.segments]
        with DuckDBEngine({}, self.folder, paths) as engine:
            fused.accumulate(engine, segments, self.projection, self.exposures, into, "a walk", only=only)
        return into

    def empty(self) -> Accumulators:
        return Accumulators.empty(self.folds, len(self.exposures.uid))

    def twin(self) -> dict[str, list[Any]]:
        """By the definition: for each exposure and fold every row in turn."""
        out: dict[str, list[Any]] = {}
        e = self.exposures
        for fold in self.folds:
            out[fold.name] = []
            for i in range(len(e.uid)):
                opened = int(e.t0[i]) if fold.after is None else int(e.anchors[fold.after][i])
                held = [
                    row
                    for _, rows in self.segments
                    for row in rows
                    if row[0] == e.unit[i]
                    and row[2] & fold.bits == fold.bits
                    and opened != NEVER
                    and row[1] >= opened + (fold.low or 0)
                    and (fold.high is None or row[1] < opened + fold.high)
                    and (fold.since is None or row[1] >= fold.since)
                    and (fold.before is None or row[1] < fold.before)
                    and fold.only in (-1, e.x[i])
                ]
                total = 0.0
                for row in held:  # sum() of floats is more exact than one after another
                    total += row[3 + fold.value] if fold.value is not None else 0.0
                out[fold.name].append(
                    {
                        "count": len(held),
                        "sum": total,
                        "mean": total / len(held) if held else None,
                        "first": min((row[1] for row in held), default=None),
                    }[fold.kind]
                )
        return out


def columns(found: Accumulators) -> dict[str, list[Any]]:
    return {fold.name: found.column(fold).to_pylist() for fold in found.folds}


@pytest.mark.parametrize("seed", range(30))
def test_a_walk_is_its_definition_and_goes_on_where_another_ended(seed: int, tmp_path: Path) -> None:
    case = Case(seed, tmp_path)
    segments = [segment for segment, _ in case.segments]
    whole = case.walk(segments, case.empty())
    assert columns(whole) == case.twin()  # exactly: sums are made in the same order
    rng = np.random.default_rng(seed)
    cut = int(rng.integers(0, len(segments) + 1))
    resumed = case.walk(segments[cut:], case.walk(segments[:cut], case.empty()))
    assert resumed.cells.tobytes() == whole.cells.tobytes()
    some = rng.random(len(case.exposures.uid)) < 0.5
    parted = case.walk(segments, case.walk(segments, case.empty(), only=some), only=~some)
    assert parted.cells.tobytes() == whole.cells.tobytes()


def test_the_cases_are_not_trivial(tmp_path: Path) -> None:
    seen: dict[str, set[Any]] = {}
    for seed in range(30):
        (tmp_path / str(seed)).mkdir()
        for name, values in Case(seed, tmp_path / str(seed)).twin().items():
            seen.setdefault(name, set()).update(values)
    assert all(len(values) > 3 for values in seen.values()), seen
    assert len(seen) == 9


def test_the_loop_is_what_it_is_compiled_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(6):
        folder = tmp_path / str(seed)
        folder.mkdir()
        case = Case(seed, folder)
        segments = [segment for segment, _ in case.segments]
        fast = case.walk(segments, case.empty()).cells.tobytes()
        with monkeypatch.context() as patched:
            patched.setattr(walks, "compiled", lambda loop: loop)
            assert case.walk(segments, case.empty()).cells.tobytes() == fast


def test_many_exposures_of_one_unit_and_many_row_groups(tmp_path: Path) -> None:
    """Periods of a unit: each row meets only some of the exposures, found as time goes on, over batches and segments."""
    rng = np.random.default_rng(3)
    n = 300_000
    t = np.sort(rng.integers(0, 10_000, n))
    path = str(tmp_path / "rows.parquet")
    table = pa.table({"payoff_unit": np.zeros(n, np.int64), "payoff_us": t, "mask": np.zeros(n, np.int64)})
    duckdb.from_arrow(table).write_parquet(path, row_group_size=2048)
    t0 = np.arange(0, 10_000, 10)
    exposures = Exposures(np.arange(1000), np.zeros(1000, np.int64), np.zeros(1000, np.int64), t0, {}).sorted()
    into = Accumulators.empty([Fold("n", "count", low=0, high=10)], 1000)
    segment = Segment(path, (Part("rows", "rows", n, 0, 10_000, n),))
    with DuckDBEngine({}, tmp_path, [path]) as engine:
        projection = sql("SELECT payoff_unit AS unit, payoff_us AS t, mask FROM prepared_rows")
        assert fused.accumulate(engine, [segment], projection, exposures, into, "a walk") == n
        twice = Accumulators.empty([Fold("n", "count", low=0, high=10)], 1000)
        fused.accumulate(engine, [segment, segment], projection, exposures, twice, "a walk")
    expected = [bisect.bisect_left(t, a + 10) - bisect.bisect_left(t, a) for a in t0]
    assert into.cells[:, 0].tolist() == expected
    assert twice.cells[:, 0].tolist() == [2 * k for k in expected]


def test_rows_out_of_order_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.parquet")
    table = pa.table({"payoff_unit": [9, 8, 7, 3, 2, 1], "payoff_us": [0] * 6, "mask": [0] * 6})
    duckdb.from_arrow(table).write_parquet(path)
    exposures = Exposures(*(np.zeros(1, np.int64) for _ in range(4)), {})
    with DuckDBEngine({}, tmp_path, [path]) as engine, pytest.raises(DataError, match="not in order"):
        fused.accumulate(
            engine,
            [Segment(path, (Part("rows", "rows", 6, 0, 0, 6),))],
            sql("SELECT payoff_unit AS unit, payoff_us AS t, mask FROM prepared_rows"),
            exposures,
            Accumulators.empty([Fold("n", "count")], 1),
            "a walk",
        )


def test_what_is_read_apart_keeps_the_order_and_tells_errors(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.parquet")
    duckdb.sql("SELECT i FROM range(700000) AS t(i)").write_parquet(path, row_group_size=20_000)
    thirds = [sql("SELECT i FROM read_parquet($path) WHERE i % 3 = $n", path=path, n=n) for n in range(3)]
    bad = sql("SELECT CASE WHEN i = 699999 THEN CAST('x' AS INT) ELSE 1 END AS j FROM read_parquet($path)", path=path)
    with DuckDBEngine({}, tmp_path, [path]) as engine:
        found: list[list[int]] = [[], [], []]
        takers = [lambda batch, own=own: own.extend(batch.column(0).to_pylist()) for own in found]
        assert engine.read_apart(thirds, takers, "look") == 700_000
        assert found == [list(range(n, 700_000, 3)) for n in range(3)]
        with pytest.raises(DataError, match="Could not convert"):
            engine.read_apart([thirds[0], bad], takers[:2], "look")
        with pytest.raises(DataError, match="no_such_table"):
            engine.read_apart([sql("SELECT i FROM no_such_table")], takers[:1], "look")

        def refuse(_: pa.RecordBatch) -> None:
            raise DataError("no more")

        with pytest.raises(DataError, match="no more"):  # who stops early waits for nobody
            engine.read_apart(thirds, [takers[0], refuse, takers[2]], "look")
        with pytest.raises(KeyboardInterrupt):  # it is heard by the thread that waits
            engine.read_apart(thirds, [lambda _: interrupt_main()] * 3, "look")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("payoff reads")]


def test_moments_are_exact_by_either_implementation(
    place: Place, tmp_path: Path, walked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = project_on(place, "segments", tmp_path)
    project.prepare()
    found = figures(project)
    monkeypatch.setattr(exact, "compiled", lambda: None)
    assert figures(project) == found
    assert math.isfinite(found[0]["estimates"][0]["value"])

"""What was recorded before an experiment, against the same worked out row by row in Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from payoff.errors import DataError
from payoff.spec.nouns import DuckDBConnection, Entity, Source
from payoff.warehouse import history
from payoff.warehouse.history import Candidate
from payoff.warehouse.sources import Catalog

DAY = history.DAY_US
START = datetime(2026, 3, 1, tzinfo=UTC)
Row = tuple[str | None, int | None, datetime | None]


def us(moment: datetime) -> int:
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


def events(rng: np.random.Generator, n: int = 4_000, days: int = 40) -> list[Row]:
    """Units that return, ids and times that are missing, names that are no identifiers, ties at the edges of days."""
    names = ["o'brien", 'a "b"', "ünal", *(f"u{i}" for i in range(600))]
    rows: list[Row] = []
    for _ in range(n):
        unit = None if rng.random() < 0.02 else names[int(rng.integers(len(names)))]
        t = None if rng.random() < 0.02 else START + timedelta(seconds=int(rng.integers(0, days * 24)) * 3600)
        rows.append((unit, None if rng.random() < 0.05 else hash_of(unit), t))
    return rows


def hash_of(unit: str | None) -> int:
    return 0 if unit is None else sum(map(ord, unit)) % 37


@contextmanager
def catalog(folder: Path, rows: list[Row], **sources: Any) -> Iterator[Catalog]:
    path = folder / "data.duckdb"
    path.unlink(missing_ok=True)
    with duckdb.connect(str(path)) as c:
        units, accounts, times = (list(column) for column in zip(*rows, strict=True))
        naive = pa.array([t and t.replace(tzinfo=None) for t in times], pa.timestamp("us"))
        c.register("rows", pa.table({"user_id": units, "ac count": accounts, "t": naive}))
        c.execute("CREATE TABLE seen AS SELECT * FROM rows")
        c.execute("CREATE TABLE empty AS SELECT * FROM seen WHERE false")
    entity = {"user": "user_id", "account": '"ac count"'}
    known = {
        "seen": {"table": "seen", "time": "t", "entity": entity},
        "empty": {"table": "empty", "time": "t", "entity": entity},
        "still": {"table": "seen", "entity": entity},
        **sources,
    }
    declared = {name: Source.model_validate(s) for name, s in known.items()}
    connections = {"main": DuckDBConnection(engine="duckdb", path="data.duckdb")}
    with Catalog(declared, {"user": Entity()}, connections, folder, "UTC") as opened:
        yield opened


def first_days(rows: list[tuple[Any, datetime]], starts: datetime, days: int) -> tuple[int, ...]:
    first: dict[Any, datetime] = {}
    for unit, t in rows:
        if unit is not None and starts <= t < starts + timedelta(days=days):
            first[unit] = min(t, first.get(unit, t))
    return tuple(sum((t - starts) // timedelta(days=1) < d for t in first.values()) for d in range(1, days + 1))


@pytest.mark.parametrize("shift", [0, 5])
def test_new_units_and_clusters_by_day(tmp_path: Path, rng: np.random.Generator, shift: int) -> None:
    rows = events(rng)
    starts = START + timedelta(days=3, hours=shift)
    with catalog(tmp_path, rows) as c:
        found, texts = history.arrivals(c, "seen", "user", us(starts), 20, cluster="account")
    timed = [(u, a, t) for u, a, t in rows if t is not None]
    assert found.units == first_days([(u, t) for u, _, t in timed], starts, 20)
    assert found.clusters == first_days([(a, t) for _, a, t in timed], starts, 20)
    assert [name for name, _ in texts] == ["new users by day", "new accounts by day"]


def test_with_a_condition_and_in_periods(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = events(rng)
    with catalog(tmp_path, rows) as c:
        some, _ = history.arrivals(c, "seen", "user", us(START), 10, where="user_id <> 'u1'")
        periods, _ = history.arrivals(c, "seen", "user", us(START), 10, period_us=DAY // 2)
    timed = [(u, t) for u, _, t in rows if t is not None and u is not None]
    assert some.units == first_days([(u, t) for u, t in timed if u != "u1"], START, 10)
    assert periods.units == first_days([((u, us(t) // (DAY // 2)), t) for u, t in timed], START, 10)


def test_rows_without_a_name_are_units(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = events(rng, 500)
    with catalog(tmp_path, rows, table={"table": "seen", "time": "t", "one_row_per": "user"}) as c:
        found, _ = history.arrivals(c, "table", "user", us(START), 40)
    assert found.units[-1] == sum(t is not None for _, _, t in rows)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_a_clock_of_days_and_of_another_zone(tmp_path: Path, rng: np.random.Generator, zone: str) -> None:
    rows = events(rng, 800)
    with catalog(
        tmp_path, rows, local={"table": "seen", "time": "t", "timezone": zone, "entity": {"user": "user_id"}}
    ) as c:
        found, _ = history.arrivals(c, "local", "user", us(START), 30)
    local = [(u, t.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)) for u, _, t in rows if t is not None]
    assert found.units == first_days(local, START, 30)


def test_what_a_source_recorded(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = events(rng)
    bound = START + timedelta(days=7)
    with catalog(tmp_path, rows) as c:
        whole, early = history.recorded(c, "seen", "user"), history.recorded(c, "seen", "user", None, us(bound))
        still, empty = history.recorded(c, "still", "user"), history.recorded(c, "empty", "user")
    times = [t for u, _, t in rows if u is not None and t is not None]
    assert (whole.rows, whole.first_us, whole.last_us) == (len(times), us(min(times)), us(max(times)))
    before = [t for t in times if t < bound]
    assert (early.rows, early.last_us) == (len(before), us(max(before)))
    assert (still.rows, still.first_us) == (sum(u is not None for u, _, _ in rows), None)
    assert (empty.rows, empty.first_us) == (0, None)


def find(
    c: Catalog, *names: str, days: int = 14, window: int = 7, until: datetime | None = None, also: tuple[str, ...] = ()
) -> Any:
    return history.pretend(
        c,
        [Candidate(name) for name in names],
        "user",
        also,
        span_us=days * DAY,
        horizon_us=window * DAY,
        until_us=None if until is None else us(until),
    )


def test_exposure_is_pretended_where_every_window_has_closed(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = events(rng)
    last = max(t for u, _, t in rows if u is not None and t is not None)
    first = min(t for u, _, t in rows if u is not None and t is not None)
    with catalog(
        tmp_path, rows, cut={"table": "seen", "time": "t", "through": "2026-03-20", "entity": {"user": "user_id"}}
    ) as c:
        plain = find(c, "empty", "seen")
        assert plain.source == "seen"
        assert plain.ends_us == us(last) - 7 * DAY
        assert plain.starts_us == plain.ends_us - 14 * DAY
        assert plain.days == 21  # arrivals are known up to the end, windows closed or not
        assert plain.notes == ()
        assert find(c, "seen", also=("cut",)).ends_us == us(datetime(2026, 3, 13, tzinfo=UTC))
        before = find(c, "seen", until=datetime(2026, 3, 19, tzinfo=UTC))
        assert before.ends_us is not None
        assert before.ends_us <= us(datetime(2026, 3, 12, tzinfo=UTC))
        short = find(c, "seen", days=60)
        assert short.starts_us == us(first)
        assert short.notes == ("Only 33 of the 60 days of history asked for were recorded in 'seen'.",)
        assert find(c, "still") == history.Pretended("still", None, None, None, 0)


def test_of_equals_the_one_with_most_rows_is_taken(tmp_path: Path, rng: np.random.Generator) -> None:
    entity = {"user": "user_id"}
    few = {"table": "seen", "time": "t", "where": "user_id < 'u2'", "entity": entity}
    with catalog(tmp_path, events(rng), few=few) as c:
        for ranks, source in (((1, 1), "seen"), ((0, 1), "few"), ((1, 0), "seen")):
            both = [Candidate("few", rank=ranks[0]), Candidate("empty"), Candidate("seen", rank=ranks[1])]
            found = history.pretend(c, both, "user", (), span_us=7 * DAY, horizon_us=DAY)
            assert found.source == source


def test_no_history_and_too_short_a_history_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    with catalog(tmp_path, events(rng, 400)) as c:
        with pytest.raises(DataError, match="no history to plan from: 'empty' has no row of a user; name a source"):
            find(c, "empty")
        with pytest.raises(
            DataError, match=r"'empty' or 'seen' has no row of a user before the experiment starts \(2025-01-01\)"
        ):
            find(c, "empty", "seen", until=datetime(2025, 1, 1, tzinfo=UTC))
        with pytest.raises(
            DataError, match="the history is too short: users were seen from 2026-03-01 and data ends on"
        ):
            find(c, "seen", window=60)
        with pytest.raises(DataError, match="has no time"):
            history.arrivals(c, "still", "user", us(START), 7)
        with pytest.raises(DataError, match="less than one whole day"):
            history.arrivals(c, "seen", "user", us(START), 0)

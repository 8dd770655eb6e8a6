"""Identity against the slow obvious way and another implementation; what it blocks, bounds and refuses; units in every kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import networkx
import numpy as np
import pyarrow as pa
import pytest

from payoff.errors import DataError
from payoff.spec.nouns import DuckDBConnection, Entity, Source
from payoff.warehouse import identity
from payoff.warehouse.query import Query, sql
from payoff.warehouse.sources import Catalog
from tests.builders import make_project

Row = tuple[Any, ...]


def opened(
    folder: Path,
    tables: dict[str, pa.Table],
    sources: dict[str, dict[str, Any]],
    aliases: Sequence[str] = ("anon",),
    **how: Any,
) -> Catalog:
    folder.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(str(folder / "data.duckdb")) as connection:
        for name, table in tables.items():
            connection.register("given", table)
            connection.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM given")
            connection.unregister("given")
    entity = Entity.model_validate({"id": "user_id", "aliases": list(aliases), "identity": {"source": "ids", **how}})
    return Catalog(
        {name: Source.model_validate(source) for name, source in sources.items()},
        {"user": entity},
        {"main": DuckDBConnection(engine="duckdb", path="data.duckdb", threads=1)},
        folder,
        "UTC",
    )


def ids_of(rows: Iterable[Row], names: Sequence[str] = ("user_id", "anon"), timed: bool = False) -> pa.Table:
    kept = list(rows)
    columns = {name: pa.array([row[k] for row in kept], pa.string()) for k, name in enumerate(names)}
    if timed:
        columns["t"] = pa.array([row[len(names)] for row in kept], pa.timestamp("us"))
    return pa.table(columns)


def joined(catalog: Catalog) -> dict[str, str]:
    """Each id that is of another's name."""
    found = catalog.identified("user")
    assert found is not None
    rows = catalog.engine.fetch(sql(f"SELECT id, canonical FROM {found.table}"), "look").to_pylist()
    return {row["id"]: row["canonical"] for row in rows}


def stitched(
    folder: Path, rows: Iterable[Row], names: Sequence[str] = ("user_id", "anon"), **how: Any
) -> dict[str, str]:
    with opened(folder, {"ids": ids_of(rows, names)}, {"ids": {"table": "ids"}}, names[1:], **how) as catalog:
        return joined(catalog)


def by_hand(rows: Iterable[Row]) -> dict[str, str]:
    """The slow obvious way: merge sets until nothing changes, every pair of a row taken."""
    groups: list[set[str]] = []
    own: set[str] = set()
    for row in rows:
        merged = {value for value in row if value is not None}
        own |= {row[0]} & merged if len([value for value in row if value is not None]) > 1 else set()
        if len(merged) < 2:
            continue
        apart = []
        for group in groups:
            if group & merged:
                merged |= group
            else:
                apart.append(group)
        groups = [*apart, merged]
    out = {}
    for group in groups:
        name = min(group & own, default=min(group))
        out |= {value: name for value in group if value != name}
    return out


def by_networkx(rows: Sequence[Row]) -> dict[str, str]:
    own = {row[0] for row in rows if row[0] is not None and sum(value is not None for value in row) > 1}
    graph = networkx.Graph((a, b) for row in rows for a in row for b in row if a is not None and b is not None)
    out = {}
    for group in networkx.connected_components(graph):
        name = min([v for v in group if v in own], default=min(group))
        out |= {value: name for value in group if value != name}
    return out


@pytest.mark.parametrize("seed", range(8))
def test_components_are_those_of_two_other_implementations(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    people, devices, n = int(rng.integers(3, 60)), int(rng.integers(3, 60)), int(rng.integers(5, 90))
    rows: list[Row] = []
    for _ in range(n):
        # a value may stand in two columns, twice in one row, and in rows where others are missing
        row = [f"u{rng.integers(people)}", f"a{rng.integers(devices)}", f"d{rng.integers(devices)}"]
        row = [f"u{rng.integers(people)}" if rng.random() < 0.05 else value for value in row]
        rows.append(tuple(None if rng.random() < 0.3 else value for value in row))
    names = ("user_id", "anon", "device")
    found = stitched(tmp_path, rows, names, max_size=10_000)
    assert found == by_hand(rows) == by_networkx(rows)
    assert (
        stitched(tmp_path / "again", rng.permutation(np.array(rows, object)).tolist(), names, max_size=10_000) == found
    )


def test_a_path_of_a_hundred_thousand_ids_is_one_unit_in_few_rounds(tmp_path: Path) -> None:
    n = 100_000
    rng = np.random.default_rng(1)
    label = rng.permutation(n // 2 + 1)
    rows = [(f"u{label[(i + 1) // 2]}", f"a{label[i // 2]}") for i in range(n)]
    with opened(tmp_path, {"ids": ids_of(rows)}, {"ids": {"table": "ids"}}, max_size=200_000) as catalog:
        found = catalog.identified("user")
        assert found is not None
        assert (found.units, found.ids, found.pairs) == (1, n + 1, n)
        assert found.largest == (("u0", n + 1),)
        assert sum("large star" in step.name for step in found.steps) <= 20


def test_equal_numbers_of_two_ids_are_seen_and_numbered_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"u{i}", f"a{i}") for i in range(10)]
    numbered = "SELECT count(DISTINCT hash(id) % {most}) FROM (SELECT unnest({ids}) AS id)"
    ids = [value for row in rows for value in row]
    # so few numbers that two ids meet at first, and not so few that they always do
    few = next(m for m in range(200, 400) if duckdb.sql(numbered.format(most=m, ids=ids)).fetchall()[0][0] < 20)
    monkeypatch.setattr(identity, "NUMBERS", few)
    with opened(tmp_path, {"ids": ids_of(rows)}, {"ids": {"table": "ids"}}) as catalog:
        assert joined(catalog) == by_hand(rows)
        found = catalog.identified("user")
        assert found is not None
        assert sum(step.name.endswith("names") for step in found.steps) > 1


def test_a_blocked_value_splits_again(tmp_path: Path) -> None:
    rows = [("u1", "kiosk"), ("u2", "kiosk"), ("u2", "a2"), ("u3", "a3")]
    together = stitched(tmp_path / "a", rows)
    assert together == {"u2": "u1", "kiosk": "u1", "a2": "u1", "a3": "u3"}
    assert stitched(tmp_path / "b", rows, blocked=["kiosk"]) == {"a2": "u2", "a3": "u3"}
    assert stitched(tmp_path / "c", rows) == together


def test_values_that_stand_for_nobody_join_nothing_and_are_counted(tmp_path: Path) -> None:
    nobody = ["", "  ", "0", "000-000", "00000000-0000-0000-0000-000000000000", "NULL", "Guest", "anonymous", "UNKNOWN"]
    rows = [(f"u{i}", value) for i, value in enumerate([*nobody, "undefined", "house"])]
    rows += [("u90", "a1"), ("guest", "a1"), ("guest", "a2"), ("-", "a2")]
    with opened(tmp_path, {"ids": ids_of(rows)}, {"ids": {"table": "ids"}}, blocked=["house"]) as catalog:
        assert joined(catalog) == {"a1": "u90"}
        found = catalog.identified("user")
        assert found is not None
        told = dict(found.blocked)
        assert found.blocked_count == 11
        assert told["guest"] == 2
        assert told["house"] == 1
        sentence = identity.report(found, {}, {}).sentence
        assert "11 values that stand for nobody joined nothing." in sentence


def test_a_device_of_two_people_joins_them_or_keeps_them_apart(tmp_path: Path) -> None:
    rows = [("u1", "a1", "tv"), ("u2", "a2", "tv"), (None, "a3", "tv"), ("u3", "a3", None), ("u2", "a9", "phone")]
    names = ("user_id", "anon", "device")
    source = {"ids": {"table": "ids"}}
    with opened(tmp_path / "m", {"ids": ids_of(rows, names)}, source, names[1:]) as catalog:
        assert joined(catalog) == dict.fromkeys(["u2", "u3", "a1", "a2", "a3", "a9", "tv", "phone"], "u1")
        found = catalog.identified("user")
        assert found is not None
        assert (found.shared, found.shared_count) == ((("tv", 2),), 1)
        assert (
            "1 alias belongs to several users; whoever shares one was joined" in identity.report(found, {}, {}).sentence
        )
    with opened(tmp_path / "a", {"ids": ids_of(rows, names)}, source, names[1:], shared="apart") as catalog:
        assert joined(catalog) == {"a1": "u1", "a2": "u2", "a9": "u2", "phone": "u2", "a3": "u3"}
        found = catalog.identified("user")
        assert found is not None
        assert found.shared == (("tv", 2),)


def test_one_value_that_joins_half_the_population_is_named_and_joins_nothing(tmp_path: Path) -> None:
    rows = [(f"u{i:03}", f"a{i:03}") for i in range(200)] + [(f"u{i:03}", "wifi") for i in range(100)]
    with opened(tmp_path, {"ids": ids_of(rows)}, {"ids": {"table": "ids"}}, max_size=50) as catalog:
        found = catalog.identified("user")
        assert found is not None
        assert joined(catalog) == {f"a{i:03}": f"u{i:03}" for i in range(100, 200)}
        assert found.too_large == (("u000", 201),)
        assert (found.too_large_count, found.too_large_ids) == (1, 201)
        assert found.shared == (("wifi", 100),)
        told = identity.report(found, {"units": 400}, {"units": 300})
        assert "1 group of more than 50 ids (201 ids, the largest 201 around 'u000') joined nothing" in told.sentence
        assert told.before == {"units": 400}


def test_a_value_in_both_columns_is_one_id_and_is_counted(tmp_path: Path) -> None:
    rows = [("m1", "m1"), ("m1", "m2"), ("m2", "a"), ("z", "y")]
    with opened(tmp_path, {"ids": ids_of(rows)}, {"ids": {"table": "ids"}}) as catalog:
        found = catalog.identified("user")
        assert found is not None
        assert joined(catalog) == {"m2": "m1", "a": "m1", "y": "z"}
        assert (found.both, found.ids) == (2, 5)


HOSTILE = "'; DROP TABLE ids; --"


def test_hostile_and_odd_values_are_ids_like_any_other(tmp_path: Path) -> None:
    rows = [(HOSTILE, "a\x00b"), ("ü\n1", "$salt"), (" u1", "a1"), ("u1", "a1"), ("U1", '"quoted"')]
    assert stitched(tmp_path, rows) == by_hand(rows)
    assert stitched(tmp_path / "b", rows, blocked=[HOSTILE]) == by_hand(rows[1:])


def test_numbers_and_text_are_one_namespace(tmp_path: Path) -> None:
    ids = pa.table({"user_id": pa.array([123, 124, None], pa.int64()), "anon": ["x", "y", "z"]})
    text = pa.table({"who": ["123", "x", "y", "0123"]})
    fraction = pa.table({"user_id": pa.array([123.0, 124.0, None, 0.5])})
    sources = {
        "ids": {"table": "ids"},
        "texts": {"table": "texts", "entity": {"user": "who"}},
        "fractions": {"table": "fractions"},
    }
    with opened(tmp_path, {"ids": ids, "texts": text, "fractions": fraction}, sources) as catalog:
        assert units(catalog, "texts") == ["0123", "123", "123", "124"]
        assert units(catalog, "fractions") == ["0.5", "123", "124", None]
        assert units(catalog, "ids") == ["123", "124", None]


def units(catalog: Catalog, source: str, own: bool = False) -> list[str | None]:
    view = catalog.view(source)
    unit = view.own_unit("user") if own else view.unit("user")
    rows = catalog.engine.fetch(sql("SELECT $u AS u FROM base", u=unit, base=Query(view.rows())), "look").to_pylist()
    return sorted((row["u"] for row in rows), key=lambda u: (u is None, u))


START = datetime(2026, 7, 1)


def test_rows_long_before_an_id_was_joined_keep_their_own(tmp_path: Path) -> None:
    day = timedelta(days=1)
    ids = ids_of([("u1", "a1", START), ("u1", "a1", START + 9 * day), ("u1", "a2", START + 5 * day)], timed=True)
    when = [START - 2 * day, START - 2 * day + timedelta(microseconds=1), START, START + 30 * day]
    events = pa.table({"who": ["a1"] * 4 + ["a2"], "t": pa.array([*when, START], pa.timestamp("us"))})
    tables = {"ids": ids, "events": events, "profiles": pa.table({"who": ["a1", "u1", None]})}
    sources = {
        "ids": {"table": "ids", "time": "t"},
        "events": {"table": "events", "time": "t", "entity": {"user": "who"}},
        "profiles": {"table": "profiles", "entity": {"user": "who"}},
    }
    with opened(tmp_path, tables, sources, lookback="2d") as catalog:
        # just 2 days before is too early; a2 was first joined on the fifth day
        assert units(catalog, "events") == ["a1", "a2", "u1", "u1", "u1"]
        assert units(catalog, "events", own=True) == ["a1", "a1", "a1", "a1", "a2"]
        assert units(catalog, "profiles") == ["u1", "u1", None]
    with opened(tmp_path, tables, sources) as catalog:
        assert units(catalog, "events") == ["u1"] * 5


def test_pairs_without_a_time_join_nothing_under_a_lookback(tmp_path: Path) -> None:
    ids = ids_of([("u1", "a1", START), ("u2", "a2", None), ("u1", "a1", None)], timed=True)
    with opened(tmp_path, {"ids": ids}, {"ids": {"table": "ids", "time": "t"}}, lookback="2d") as catalog:
        assert joined(catalog) == {"a1": "u1"}
        found = catalog.identified("user")
        assert found is not None
        assert found.untimed == 1
        assert "1 row of pairs without a time" in identity.report(found, {}, {}).sentence


def test_the_sources_own_condition_holds_and_its_rows_are_units_too(tmp_path: Path) -> None:
    ids = pa.table({"user_id": ["u2", "u1", "u9"], "anon": ["a1", "a1", "a9"], "kind": ["login", "login", "test"]})
    with opened(tmp_path, {"ids": ids}, {"ids": {"table": "ids", "where": "kind = 'login'"}}) as catalog:
        assert joined(catalog) == {"u2": "u1", "a1": "u1"}
        assert units(catalog, "ids") == ["u1", "u1"]
        assert units(catalog, "ids", own=True) == ["u1", "u2"]


@pytest.mark.parametrize(
    ("rows", "how", "said"),
    [
        ([("u1", None), (None, "a1")], {}, "no row holds two of user_id, anon"),
        ([("guest", "a1"), ("u1", "0000")], {}, "2 values stand for nobody"),
        ([("u1", "u1")], {}, "joins nothing"),
        ([("u1", "a1")], {"lookback": "2d"}, "has no time"),
        ([], {}, "no row holds two"),
    ],
)
def test_an_identity_that_can_join_nothing_is_refused(tmp_path: Path, rows: list[Row], how: Any, said: str) -> None:
    with (
        opened(tmp_path, {"ids": ids_of(rows)}, {"ids": {"table": "ids"}}, **how) as catalog,
        pytest.raises(DataError, match=said),
    ):
        units(catalog, "ids")


def test_an_alias_that_is_no_column_is_named(tmp_path: Path) -> None:
    with (
        opened(tmp_path, {"ids": ids_of([("u1", "a1")])}, {"ids": {"table": "ids"}}, ["anom"]) as catalog,
        pytest.raises(DataError, match=r"has no column .anom.*anon"),
    ):
        units(catalog, "ids")


def test_units_are_refused_where_their_identity_is_not_read(tmp_path: Path) -> None:
    with (
        opened(tmp_path, {"other": ids_of([("u1", "a1")])}, {"other": {"table": "other"}}) as catalog,
        pytest.raises(DataError, match="known by the identity over 'ids'"),
    ):
        units(catalog, "other")


def test_an_entity_without_identity_is_read_as_before(tmp_path: Path) -> None:
    with opened(tmp_path, {"ids": ids_of([("u1", "a1")])}, {"ids": {"table": "ids"}}) as plain:
        view = Catalog(
            {"ids": Source.model_validate({"table": "ids"})},
            {"user": Entity(id="user_id")},
            {"main": DuckDBConnection(engine="duckdb", path="data.duckdb")},
            tmp_path,
            "UTC",
        ).view("ids")
        assert view.relation is view.own
        assert view.unit("user").sql("duckdb") == '"user_id"'
        assert plain.view("ids").relation is not plain.view("ids").own


def test_only_the_columns_named_are_read(tmp_path: Path) -> None:
    wide = pa.table(
        {"who": ["a1", "zz"], "t": pa.array([START, START], pa.timestamp("us")), "a": [1, 2], "b": ["x", "y"]}
    )
    sources = {"ids": {"table": "ids"}, "wide": {"table": "wide", "time": "t", "entity": {"user": "who"}}}
    with opened(tmp_path, {"ids": ids_of([("u1", "a1")]), "wide": wide}, sources) as catalog:
        view = catalog.view("wide")
        query = sql(
            "SELECT $u AS u, sum($a) AS a FROM base GROUP BY u",
            u=view.unit("user"),
            a=view.scalar("a"),
            base=Query(view.rows()),
        )
        assert sorted(catalog.engine.fetch(query, "look").to_pydict()["u"]) == ["u1", "zz"]
        told = catalog.engine._connection.execute(f"EXPLAIN {query.render()}").fetchall()[0][1]
        scan = told[told.index("wide") :]
        assert "who" in told
        assert "Projections" in scan
        assert not any(f" {column} " in told.replace(",", " ").replace("│", " ") for column in ("t", "b"))


def test_an_experiment_over_stitched_units(tmp_path: Path) -> None:
    """An anonymous exposure and an order under the user's id meet, by way of the CLI's own project."""
    values = ", ".join(
        f"('anon-{i}', '{'a' if i % 2 else 'b'}', TIMESTAMP '2026-07-{1 + i % 28:02}')" for i in range(1, 401)
    )
    orders = ", ".join(f"('u{i}', {10 + i % 2 + i % 5}, TIMESTAMP '2026-08-{2 + i % 28:02}')" for i in range(1, 401))
    pairs = ", ".join(f"('u{i}', 'anon-{i}', TIMESTAMP '2026-08-20')" for i in range(1, 401))
    project = make_project(
        tmp_path,
        """
        entities:
          user: {id: user_id, aliases: [anon], identity: {source: ids, lookback: 90d}}
        sources:
          ids: {table: ids, time: t}
          exposures: {table: exposures, time: t, entity: {user: who}}
          orders: {table: orders, time: t, through: 2026-09-30}
          visits: {sessions: {of: exposures, entity: user}}
        metrics:
          revenue: {kind: sum, from: orders, column: amount, window: 40d}
        experiments:
          x: {assignment: {source: exposures, variant: arm, control: b}, primary: revenue, entity: user}
        """,
        f"""
        CREATE TABLE exposures AS SELECT * FROM (VALUES {values}) AS v(who, arm, t);
        CREATE TABLE orders AS SELECT * FROM (VALUES {orders}) AS v(user_id, amount, t);
        CREATE TABLE ids AS SELECT * FROM (VALUES {pairs}) AS v(user_id, anon, t);
        """,
    )
    planned = [step.name for step in project.plan()]
    assert "identity of user: map" in planned
    run = project.run(record=False)
    assert not run.refusals, run.refusals
    outcome = run.results[0]
    means = {a.arm: a.value for a in outcome.arms if a.metric == "revenue"}
    odd, even = range(1, 401, 2), range(2, 401, 2)
    assert means["a"] == pytest.approx(np.mean([10 + i % 2 + i % 5 for i in odd]))
    assert means["b"] == pytest.approx(np.mean([10 + i % 2 + i % 5 for i in even]))
    assert "identity of user: map" in [step.name for step in run.plan]
    findings = project.doctor()
    assert {f.source for f in findings if f.check == "rows" and f.count == 400} == {
        "ids",
        "exposures",
        "orders",
        "visits",
    }
    assert not [f for f in findings if f.status == "fail"]
    assert project.experiments["x"].power().metrics[0].metric == "revenue"

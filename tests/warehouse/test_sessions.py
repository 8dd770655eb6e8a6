"""Sessions against a slow, obvious way on random streams; every channel of the published grouping; text files and joined units."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from payoff.errors import DataError
from payoff.spec.nouns import DuckDBConnection, Entity, Source
from payoff.warehouse.query import ExpressionError, Query, sql
from payoff.warehouse.sources import Catalog

Row = dict[str, Any]
START = datetime(2026, 7, 1, tzinfo=UTC)


def opened(
    folder: Path, tables: dict[str, pa.Table], sources: dict[str, dict[str, Any]], entities: Any = None
) -> Catalog:
    folder.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(str(folder / "data.duckdb")) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name, table in tables.items():
            connection.register("given", table)
            connection.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM given")
            connection.unregister("given")
    return Catalog(
        {name: Source.model_validate(source) for name, source in sources.items()},
        {name: Entity.model_validate(entity) for name, entity in (entities or {"user": {"id": "who"}}).items()},
        {"main": DuckDBConnection(engine="duckdb", path="data.duckdb", threads=1)},
        folder,
        "UTC",
    )


def read(catalog: Catalog, source: str, *columns: str) -> list[Row]:
    view = catalog.view(source)
    told = [view.scalar(column).as_(column) for column in columns]
    rows = catalog.engine.fetch(sql("SELECT $told FROM base", told=told, base=Query(view.rows())), "look").to_pylist()
    return sorted(rows, key=lambda row: (str(row["session_unit"]), row["session_start"]))


OWN = ("session_unit", "session_start", "session_end", "session_rows")


def by_hand(rows: list[Row], gap: timedelta) -> list[Row]:
    """Row by row, each unit's in order of time and id."""
    out: list[Row] = []
    kept = [row for row in rows if row["who"] is not None and row["t"] is not None]
    for row in sorted(kept, key=lambda row: (row["who"], row["t"], row["id"])):
        now = out[-1] if out and out[-1]["session_unit"] == row["who"] else None
        if now is not None and row["t"] - now["session_end"] < gap:
            now["session_end"], now["session_rows"] = row["t"], now["session_rows"] + 1
            continue
        out.append(
            {
                "session_unit": row["who"],
                "session_start": row["t"],
                "session_end": row["t"],
                "session_rows": 1,
                "id": row["id"],
                "page": row["page"],
            }
        )
    return sorted(out, key=lambda row: (row["session_unit"], row["session_start"]))


@pytest.mark.parametrize("seed", range(6))
def test_sessions_are_those_of_the_slow_way(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 200
    # whole minutes, so that there are ties and pauses of just the gap
    rows = [
        {
            "id": int(k),
            "who": None if rng.random() < 0.03 else f"u{rng.integers(8)}",
            "t": None if rng.random() < 0.03 else START + timedelta(minutes=int(rng.integers(24 * 60))),
            "page": f"p{rng.integers(5)}",
        }
        for k in rng.permutation(n)
    ]
    kinds = pa.schema(
        [("id", pa.int64()), ("who", pa.string()), ("t", pa.timestamp("us", "UTC")), ("page", pa.string())]
    )
    gap = ["30m", "20m", "1m", "5h"][seed % 4]
    sources = {
        "clicks": {"table": "clicks", "time": "t", "id": "id"},
        "visits": {"sessions": {"of": "clicks", "gap": gap}},
        "long": {"sessions": {"of": "clicks", "gap": gap}, "where": "session_rows > 1"},
    }
    with opened(tmp_path, {"clicks": pa.Table.from_pylist(rows, kinds)}, sources) as catalog:
        found = read(catalog, "visits", *OWN, "id", "page")
        span = {"m": timedelta(minutes=1), "h": timedelta(hours=1)}[gap[-1]] * int(gap[:-1])
        assert found == by_hand(rows, span)
        assert sum(row["session_rows"] for row in found) == sum(
            r["who"] is not None and r["t"] is not None for r in rows
        )
        assert read(catalog, "long", *OWN) == [
            {key: row[key] for key in OWN} for row in found if row["session_rows"] > 1
        ]


def test_ties_without_an_id_go_by_the_columns_read(tmp_path: Path) -> None:
    rows = [{"who": "u", "t": START, "page": page} for page in ("b", "a", "c")]
    sources = {"clicks": {"table": "clicks", "time": "t"}, "visits": {"sessions": {"of": "clicks"}}}
    with opened(tmp_path, {"clicks": pa.Table.from_pylist(rows)}, sources) as catalog:
        assert [row["page"] for row in read(catalog, "visits", *OWN, "page")] == ["a"]


CHANNELS = [
    ("(direct)", "(none)", None, "Direct"),
    ("(direct)", "(not set)", None, "Direct"),
    (None, None, None, "Direct"),
    ("", " ", "spring", "Direct"),
    ("google", "cpc", "x cross-network y", "Cross-network"),
    ("amazon.com", "cpc", None, "Paid Shopping"),
    ("newsletter", "ppc", "Spring Shopping", "Paid Shopping"),
    ("newsletter", "cpc", "eshop", "Paid Shopping"),  # the published pattern: before shop no letter but an e
    ("newsletter", "cpc", "workshop", "Paid Other"),
    ("google", "cpc", None, "Paid Search"),
    ("www.bing.com", "paidsearch", None, "Paid Search"),
    ("facebook", "paid_social", None, "Paid Social"),
    ("l.instagram.com", "cpm", None, "Paid Social"),
    ("youtube.com", "retargeting", None, "Paid Video"),
    ("somewhere", "display", None, "Display"),
    ("somewhere", "cpm", None, "Display"),
    ("somewhere", "ppc", None, "Paid Other"),
    ("chatgpt.com", None, None, "AI Assistant"),
    ("somewhere", "ai-assistant", "(ai-assistant)", "AI Assistant"),
    ("gemini.google.com", "referral", None, "AI Assistant"),
    ("etsy", "referral", None, "Organic Shopping"),
    ("somewhere", "referral", "shop", "Organic Shopping"),
    ("t.co", "referral", None, "Organic Social"),
    ("somewhere", "Social-Network", None, "Organic Social"),
    ("vimeo.com", "referral", None, "Organic Video"),
    ("somewhere", "video_ad", None, "Organic Video"),
    ("www.google.co.uk", "referral", None, "Organic Search"),
    ("somewhere", "organic", None, "Organic Search"),
    ("mail.google.com", "referral", None, "Referral"),
    ("notgoogle.com", "link", None, "Referral"),
    ("partner", "app", None, "Referral"),
    ("E-Mail", None, None, "Email"),
    ("news", "e mail", None, "Email"),
    ("partner", "affiliate", None, "Affiliates"),
    ("radio", "audio", None, "Audio"),
    ("sms", "text", None, "SMS"),
    ("x", "sms", None, "SMS"),
    ("x", "web-push", None, "Mobile Push Notifications"),
    ("x", "notification_2", None, "Mobile Push Notifications"),
    ("firebase", "x", None, "Mobile Push Notifications"),
    ("x", "x", None, "Unassigned"),
    ("x", None, None, "Unassigned"),
]


def test_the_published_grouping_channel_by_channel(tmp_path: Path) -> None:
    rows = [
        {"who": f"u{k:03}", "t": START, "utm_source": s, "utm_medium": m, "utm_campaign": c}
        for k, (s, m, c, _) in enumerate(CHANNELS)
    ]
    preset = {"preset": "ga4", "campaign": "utm_campaign"}
    sources = {"clicks": {"table": "clicks", "time": "t"}, "visits": {"sessions": {"of": "clicks", "channels": preset}}}
    with opened(tmp_path, {"clicks": pa.Table.from_pylist(rows)}, sources) as catalog:
        found = read(catalog, "visits", *OWN, "channel")
        assert [row["channel"] for row in found] == [channel for *_, channel in CHANNELS]
    assert len({channel for *_, channel in CHANNELS}) == 20  # 19 published and what none takes


def test_own_rules_take_the_first_that_holds_of_the_first_row(tmp_path: Path) -> None:
    rows = [
        {"who": "a", "t": START, "ref": "ads", "channel": "old", "n": 1},
        {"who": "a", "t": START + timedelta(minutes=1), "ref": "mail", "channel": "old", "n": 9},
        {"who": "b", "t": START, "ref": None, "channel": "old", "n": 5},
        {"who": "c", "t": START, "ref": None, "channel": "app", "n": None},
    ]
    channels = [
        {"name": "Ads", "when": "ref = 'ads'"},
        {"name": "Mail's", "when": "ref = 'mail' OR n > 4"},
        {"name": "App", "when": "channel = 'app'"},
    ]
    sources = {
        "clicks": {"table": "clicks", "time": "t"},
        "visits": {"sessions": {"of": "clicks", "channels": channels}},
    }
    tables = {"clicks": pa.Table.from_pylist(rows)}
    with opened(tmp_path, tables, sources) as catalog:
        assert [r["channel"] for r in read(catalog, "visits", *OWN, "channel")] == ["Ads", "Mail's", "App"]
    rest = [*channels[:1], {"name": "Rest"}]
    sources["visits"] = {"sessions": {"of": "clicks", "channels": rest}}
    with opened(tmp_path, tables, sources) as catalog:
        assert [r["channel"] for r in read(catalog, "visits", *OWN, "channel")] == ["Ads", "Rest", "Rest"]
    sources["visits"] = {"sessions": {"of": "clicks"}}
    with opened(tmp_path, tables, sources) as catalog:  # without rules the rows' own column stays
        assert [r["channel"] for r in read(catalog, "visits", *OWN, "channel")] == ["old", "old", "app"]


def test_sessions_go_on_across_devices_of_one_person(tmp_path: Path) -> None:
    rows = [
        {"who": "a1", "t": START, "page": "home"},
        {"who": "u1", "t": START + timedelta(minutes=10), "page": "cart"},
        {"who": "a2", "t": START + timedelta(minutes=50), "page": "home"},
    ]
    tables = {"clicks": pa.Table.from_pylist(rows), "ids": pa.table({"user_id": ["u1", "u1"], "anon": ["a1", "a2"]})}
    sources = {
        "clicks": {"table": "clicks", "time": "t", "entity": {"user": "who"}},
        "visits": {"sessions": {"of": "clicks"}},
        "ids": {"table": "ids"},
    }
    entities = {"user": {"id": "user_id", "aliases": ["anon"], "identity": {"source": "ids"}}}
    with opened(tmp_path, tables, sources, entities) as catalog:
        view = catalog.view("visits")
        assert view.unit("user").sql("duckdb") == '"session_unit"'
        assert view.clock is not None
        planned = [step.name for step in catalog.prepare(run=False)]
        assert planned[-1] == "sessions visits"
        assert "identity of user: map" in planned
        assert catalog.prepare(run=False) == []
        found = read(catalog, "visits", *OWN, "page")
        assert [(r["session_unit"], r["session_rows"], r["page"]) for r in found] == [
            ("u1", 2, "home"),
            ("u1", 1, "home"),
        ]
        assert [step.name for step in catalog.prepare(run=True)][-1] == "sessions visits"


@pytest.mark.parametrize("late", [False, True])
def test_a_text_file_under_sessions_and_identity_is_loaded_once(tmp_path: Path, late: bool) -> None:
    (tmp_path / "clicks.csv").write_text(
        "who,t,page,extra,unused\na1,2026-07-01 00:00:00,home,1,x\nu1,2026-07-01 00:10:00,cart,2,y\n"
    )
    (tmp_path / "ids.csv").write_text("user_id,anon,note\nu1,a1,n\n")
    sources = {
        "clicks": {"file": "clicks.csv", "time": "t", "entity": {"user": "who"}},
        "visits": {"sessions": {"of": "clicks"}},
        "ids": {"file": "ids.csv"},
    }
    entities = {"user": {"id": "user_id", "aliases": ["anon"], "identity": {"source": "ids"}}}
    with opened(tmp_path, {}, sources, entities) as catalog:
        view = catalog.view("visits")
        if not late:
            view.scalar("page")
        steps = catalog.prepare(run=True)
        found = read(catalog, "visits", *OWN, "page")
        assert [(r["session_unit"], r["session_rows"], r["page"]) for r in found] == [("u1", 2, "home")]
        steps += catalog.prepare(run=True)
        loads = [step for step in steps if step.name == "load file clicks.csv"]
        # what is asked for after it was made costs a second reading, which takes everything
        assert [step.columns for step in loads] == (
            [("who", "t"), ("who", "t", "page", "extra", "unused")] if late else [("who", "t", "page")]
        )
        assert [step.columns for step in steps if step.name == "load file ids.csv"] == [("user_id", "anon")]
        assert sum(step.name == "sessions visits" for step in steps) == 1 + late


@pytest.mark.parametrize(
    ("clicks", "sessions", "error", "said"),
    [
        ({"table": "clicks"}, {"of": "clicks"}, DataError, "sessions end with a pause"),
        ({"table": "clicks", "time": "t"}, {"of": "nothing"}, DataError, "no source 'nothing'"),
        ({"table": "clicks", "time": "t"}, {"of": "visits"}, DataError, "made of its own rows"),
        ({"table": "odd", "time": "t"}, {"of": "clicks"}, DataError, "has a column session_rows"),
        (
            {"table": "clicks", "time": "t"},
            {"of": "clicks", "channels": [{"name": "A", "when": "rf = 1"}]},
            ExpressionError,
            "no column 'rf'",
        ),
        (
            {"table": "clicks", "time": "t"},
            {"of": "clicks", "channels": [{"name": "A", "when": "who"}]},
            DataError,
            "used as a condition",
        ),
        (
            {"table": "clicks", "time": "t", "entity": {"a": "who", "b": "who"}},
            {"of": "clicks"},
            DataError,
            "whose sess",
        ),
    ],
)
def test_what_cannot_be_sessions_is_said(
    tmp_path: Path, clicks: dict[str, Any], sessions: dict[str, Any], error: type[Exception], said: str
) -> None:
    rows = pa.table({"who": ["a"], "t": pa.array([START], pa.timestamp("us", "UTC")), "ref": [1]})
    tables = {"clicks": rows, "odd": rows.append_column("session_rows", pa.array([1]))}
    with (
        opened(tmp_path, tables, {"clicks": clicks, "visits": {"sessions": sessions}}) as catalog,
        pytest.raises(error, match=said),
    ):
        catalog.view("visits")


def test_times_outside_the_calendar_and_columns_of_any_name(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "data.duckdb")) as connection:
        connection.execute(
            """
            CREATE TABLE clicks AS SELECT * FROM (VALUES
              (1, TIMESTAMP '2026-07-01', 'x', 'y'), (1, 'infinity', 'x', 'y'), (1, '-infinity', 'x', 'y'), (2, '1969-01-01', 'z', 'w')
            ) AS v(who, t, "session us", "select")
            """
        )
    sources = {"clicks": {"table": "clicks", "time": "t"}, "visits": {"sessions": {"of": "clicks"}}}
    with opened(tmp_path, {}, sources) as catalog:
        found = read(catalog, "visits", *OWN, '"select"')
        assert [(row["session_unit"], row["session_rows"]) for row in found] == [(1, 1), (2, 1)]

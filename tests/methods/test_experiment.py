"""The experiment method over real event tables: who enters, what is counted, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from payoff.errors import DataError, PayoffError
from payoff.result import Refusal, Result
from payoff.run import MissingColumns, Project
from tests.builders import make_project

DECISIONS = """
    sources:
      decisions: {table: decisions, time: decided_at, entity: {visitor: visitor_id}}
      events:    {table: events, time: t, entity: {visitor: visitor_id}}
    metrics:
      bought:  {kind: conversion, to: {source: events, where: "name = 'purchase'"}, window: 48h}
      revenue: {kind: sum, from: events, column: amount, where: "name = 'purchase'", window: 48h}
      clicks:  {kind: count, from: events, where: "name = 'click'", window: 48h}
    experiments:
      ranking:
        assignment: {source: decisions, variant: arm, control: old}
        primary: bought
        secondary: [revenue, clicks]
"""


def decision_log(connection: duckdb.DuckDBPyConnection, visitors: int = 400) -> None:
    """Several decisions a visitor, events before, inside and after the 48 hours; the truth is in `expected`."""
    rng = np.random.default_rng(11)
    connection.execute("CREATE TABLE decisions (visitor_id VARCHAR, decided_at TIMESTAMP, arm VARCHAR)")
    connection.execute("CREATE TABLE events (visitor_id VARCHAR, t TIMESTAMP, name VARCHAR, amount DOUBLE)")
    connection.execute(
        "CREATE TABLE expected (visitor_id VARCHAR, arm VARCHAR, bought INT, revenue DOUBLE, clicks INT)"
    )
    start = np.datetime64("2026-03-01T00:00:00", "us")
    decisions, events, expected = [], [], []
    for i in range(visitors):
        arm = "new" if rng.random() < 0.5 else "old"
        first = start + np.timedelta64(int(rng.integers(0, 5 * 86_400)), "s")
        for hours in [0.0, *rng.uniform(0, 100, rng.integers(0, 5))]:
            decisions.append((f"v{i}", str(first + np.timedelta64(int(hours * 3600), "s")), arm))
        bought = clicks = 0
        revenue = 0.0
        for _ in range(int(rng.integers(0, 8))):
            offset = int(rng.uniform(-48, 96) * 3600)
            name = "purchase" if rng.random() < 0.3 else "click"
            amount = round(float(rng.exponential(30)), 2)
            events.append((f"v{i}", str(first + np.timedelta64(offset, "s")), name, amount))
            if 0 <= offset < 48 * 3600:
                bought |= name == "purchase"
                revenue += amount if name == "purchase" else 0.0
                clicks += name == "click"
        expected.append((f"v{i}", arm, int(bought), revenue, clicks))
    events.append(("nobody", "2026-04-01 00:00:00", "click", 0.0))  # the data go on long after the last exposure
    for table, rows in (("decisions", decisions), ("events", events), ("expected", expected)):
        columns = {f"c{i}": list(column) for i, column in enumerate(zip(*rows, strict=True))}
        connection.register("rows", pa.table(columns))
        connection.execute(f"INSERT INTO {table} SELECT * FROM rows")
        connection.unregister("rows")


def decisions_project(folder: Path, extra_sql: str = "", definitions: str = DECISIONS, root: str = "") -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(str(folder / "data.duckdb")) as connection:
        decision_log(connection)
        if extra_sql:
            connection.execute(extra_sql)
    return make_project(folder, definitions, "SELECT 1", root)


def only_result(project: Project) -> Result:
    run = project.run(record=False)
    assert not run.refusals, run.refusals
    return run.results[0]


def only_refusal(project: Project) -> Refusal:
    run = project.run(record=False)
    assert not run.results
    return run.refusals[0]


def check(result: Result, name: str) -> Any:
    return next(c for c in result.checks if c.name == name)


def test_each_visitor_counts_once_from_first_exposure(tmp_path: Path) -> None:
    result = only_result(decisions_project(tmp_path))
    with duckdb.connect(str(tmp_path / "data.duckdb"), read_only=True) as connection:
        for metric in ("bought", "revenue", "clicks"):
            rows = connection.execute(f"SELECT arm, count(*), avg({metric}) FROM expected GROUP BY arm").fetchall()
            seen = {a.arm: (a.n, a.value) for a in result.arms if a.metric == metric}
            assert seen == {arm: (n, pytest.approx(mean)) for arm, n, mean in rows}
    assert sum(a.n for a in result.arms if a.metric == "bought") == 400


def test_units_in_several_arms_are_left_out_and_counted(tmp_path: Path) -> None:
    extra = "INSERT INTO decisions SELECT visitor_id, decided_at + INTERVAL 1 DAY, CASE arm WHEN 'new' THEN 'old' ELSE 'new' END FROM expected JOIN decisions USING (visitor_id, arm) WHERE visitor_id IN ('v1', 'v2', 'v3')"
    result = only_result(decisions_project(tmp_path, extra))
    assert result.left_out["units seen in several arms"] == 3
    assert check(result, "several_arms").status == "warn"
    assert sum(a.n for a in result.arms if a.metric == "bought") == 397


def test_null_ids_times_and_arms_are_named_with_their_counts(tmp_path: Path) -> None:
    extra = """
        INSERT INTO decisions VALUES (NULL, '2026-03-02', 'new'), (NULL, '2026-03-02', 'old'), ('x1', NULL, 'new'), ('x2', '2026-03-02', NULL);
        INSERT INTO events VALUES (NULL, '2026-03-02', 'click', 1), (NULL, '2026-03-02', 'click', 1), (NULL, '2026-03-02', 'click', 1)
    """
    result = only_result(decisions_project(tmp_path, extra))
    details = [c.detail for c in result.checks if c.status == "warn"]
    assert any("'decisions', column 'visitor_id': 2 of" in d for d in details)
    assert any("'events', column 'visitor_id': 3 of" in d for d in details)
    assert result.left_out["rows without a time"] == 1
    assert result.left_out["rows without an arm"] == 1
    assert sum(a.n for a in result.arms if a.metric == "bought") == 400


def test_units_whose_window_is_open_do_not_enter(tmp_path: Path) -> None:
    extra = "DELETE FROM events WHERE t > TIMESTAMP '2026-03-04 12:00:00'; DELETE FROM decisions WHERE decided_at > TIMESTAMP '2026-03-04 12:00:00'"
    result = only_result(decisions_project(tmp_path, extra))
    with duckdb.connect(str(tmp_path / "data.duckdb"), read_only=True) as connection:
        as_of = "(SELECT max(t) FROM (SELECT t FROM events UNION ALL SELECT decided_at FROM decisions))"
        (closed, open_) = connection.execute(
            f"SELECT count(*) FILTER (t0 <= {as_of} - INTERVAL 48 HOUR), count(*) FILTER (t0 > {as_of} - INTERVAL 48 HOUR)"
            " FROM (SELECT visitor_id, min(decided_at) AS t0 FROM decisions GROUP BY 1)"
        ).fetchall()[0]
    assert open_ > 0
    assert closed > 0
    assert sum(a.n for a in result.arms if a.metric == "bought") == closed
    assert result.left_out["units whose window is still open (bought)"] == open_


def test_a_window_open_for_everyone_is_a_refusal(tmp_path: Path) -> None:
    project = decisions_project(tmp_path, definitions=DECISIONS.replace("48h", "365d"))
    refusal = only_refusal(project)
    assert "not yet over for any unit" in refusal.reason


@pytest.mark.parametrize(
    ("extra", "definitions", "reason"),
    [
        ("", DECISIONS.replace("control: old", "control: nobody"), "control arm 'nobody' has no units"),
        ("DELETE FROM decisions WHERE arm = 'new'", DECISIONS, "one arm only"),
        ("DELETE FROM decisions", DECISIONS, "has no row"),
        ("UPDATE decisions SET visitor_id = NULL", DECISIONS, "none of the"),
        (
            "",
            DECISIONS.replace("control: old}", "control: old, split: {old: 0.4, new: 0.3, newer: 0.3}}"),
            "'newer' has no units",
        ),
    ],
)
def test_refusals_of_the_whole(tmp_path: Path, extra: str, definitions: str, reason: str) -> None:
    refusal = only_refusal(decisions_project(tmp_path, extra, definitions))
    assert reason in refusal.reason
    assert refusal.remedy


def test_zero_variance_refuses_that_metric_alone(tmp_path: Path) -> None:
    result = only_result(
        decisions_project(tmp_path, "DELETE FROM events WHERE name = 'click' AND visitor_id <> 'nobody'")
    )
    assert [r.name for r in result.refusals] == ["experiments.ranking.clicks"]
    assert "same value" in result.refusals[0].reason
    assert {e.metric for e in result.estimates} == {"bought", "revenue"}


def test_small_groups_are_not_shown(tmp_path: Path) -> None:
    refusal = only_refusal(decisions_project(tmp_path, root="defaults: {min_cell: 1000}\n"))
    assert "fewer than 1000 units" in refusal.reason


def test_srm_withholds_the_headline(tmp_path: Path) -> None:
    extra = "DELETE FROM decisions WHERE arm = 'new' AND hash(visitor_id) % 2 = 0"
    result = only_result(decisions_project(tmp_path, extra))
    assert check(result, "srm").status == "fail"
    assert (result.verdict, result.grade) == ("withheld", "C")
    assert result.finding.startswith("Withheld: sample ratio mismatch")


@pytest.mark.parametrize(
    ("sql", "definitions", "words"),
    [
        (
            "ALTER TABLE events ALTER amount TYPE VARCHAR; UPDATE events SET amount = 'lots' WHERE visitor_id = 'v7'",
            DECISIONS,
            ["events", "amount", "are text", "lots"],
        ),
        (
            "UPDATE events SET amount = 'nan' WHERE visitor_id LIKE 'v1%' AND name = 'purchase'",
            DECISIONS,
            ["events", "amount", "NaN"],
        ),
        (
            "UPDATE events SET amount = 'inf' WHERE visitor_id = 'v7'; UPDATE events SET name = 'purchase' WHERE visitor_id = 'v7'",
            DECISIONS,
            ["events", "amount", "infinite"],
        ),
        ("DROP TABLE events", DECISIONS, ["events", "does not exist"]),
        (
            "ALTER TABLE decisions ALTER decided_at TYPE VARCHAR",
            DECISIONS,
            ["decisions", "decided_at", "not a time", "CAST(decided_at AS TIMESTAMP)"],
        ),
        ("", DECISIONS.replace("table: events", "file: missing/*.parquet"), ["events", "no file matches"]),
    ],
)
def test_bad_data_names_the_source_and_the_column(tmp_path: Path, sql: str, definitions: str, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        decisions_project(tmp_path, sql, definitions).run(record=False)
    assert caught.value.exit_code == 3
    for word in words:
        assert word in str(caught.value)


def test_a_missing_column_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(MissingColumns) as caught:
        decisions_project(tmp_path, definitions=DECISIONS.replace("column: amount", "column: amuont")).run(record=False)
    assert caught.value.exit_code == 3
    assert "definitions/all.yml:7:" in str(caught.value)
    assert "source 'events' has no column 'amuont'; did you mean 'amount'?" in str(caught.value)


@pytest.mark.parametrize(
    "expression",
    ["(SELECT 1)", "read_csv('/etc/passwd')", "getenv('HOME')", "amount; DROP TABLE events", "sum(amount)", "random()"],
)
def test_expressions_outside_the_allow_list_are_refused(tmp_path: Path, expression: str) -> None:
    with pytest.raises(PayoffError) as caught:
        decisions_project(tmp_path, definitions=DECISIONS.replace("column: amount", f'column: "{expression}"')).run(
            record=False
        )
    assert caught.value.exit_code == 2


def test_several_metrics_and_experiments_share_one_scan(tmp_path: Path) -> None:
    second = """
      other:
        assignment: {source: decisions, variant: "CASE WHEN hash(visitor_id) % 2 = 0 THEN 'old' ELSE 'new' END", control: old}
        primary: revenue
    """.replace("hash(visitor_id) % 2 = 0", "length(visitor_id) % 2 = 0")
    project = decisions_project(tmp_path, definitions=DECISIONS + second)
    steps = project.plan()
    reads = [s.reads for s in steps if s.reads and not s.name.startswith("look")]
    assert sorted(reads) == ["table main.decisions", "table main.events"]
    both = project.run(record=False)
    alone = project.run(["ranking"], record=False)
    first = {(e.metric, e.estimand): e.value for e in both.results[0].estimates}
    assert first == pytest.approx({(e.metric, e.estimand): e.value for e in alone.results[0].estimates})


def test_a_time_zone_moves_naive_times_only(tmp_path: Path) -> None:
    zoned = DECISIONS.replace("time: t,", "time: \"t AT TIME ZONE 'UTC'\",")
    expected = only_result(decisions_project(tmp_path / "a"))
    same = only_result(decisions_project(tmp_path / "b", definitions=zoned))
    shifted = only_result(decisions_project(tmp_path / "c", definitions=zoned, root="timezone: America/New_York\n"))
    assert [e.value for e in same.estimates] == pytest.approx([e.value for e in expected.estimates])
    assert [e.value for e in shifted.estimates] != pytest.approx([e.value for e in expected.estimates])


def test_money_times_100_gives_effect_times_100(tmp_path: Path) -> None:
    one = only_result(decisions_project(tmp_path / "a"))
    cents = only_result(
        decisions_project(tmp_path / "b", definitions=DECISIONS.replace("column: amount", 'column: "amount * 100"'))
    )
    assert cents.estimate("revenue").value == pytest.approx(100 * one.estimate("revenue").value, rel=1e-12)
    assert cents.estimate("revenue").low == pytest.approx(100 * one.estimate("revenue").low, rel=1e-9)
    assert cents.estimate("revenue", estimand="relative lift").low == pytest.approx(
        one.estimate("revenue", estimand="relative lift").low, rel=1e-9
    )


def test_swapping_control_and_treatment_flips_the_sign(tmp_path: Path) -> None:
    one = only_result(decisions_project(tmp_path / "a"))
    other = only_result(
        decisions_project(tmp_path / "b", definitions=DECISIONS.replace("control: old", "control: new"))
    )
    for metric in ("bought", "revenue", "clicks"):
        a, b = one.estimate(metric), other.estimate(metric)
        assert (a.value, a.low, a.high) == pytest.approx((-b.value, -b.high, -b.low), rel=1e-12)


def test_an_open_rate_as_primary_is_named_as_untrustworthy(tmp_path: Path) -> None:
    definitions = DECISIONS.replace("bought:", "open_rate:").replace("primary: bought", "primary: open_rate")
    result = only_result(decisions_project(tmp_path, definitions=definitions))
    trusted = check(result, "trusted_primary")
    assert trusted.status == "warn"
    assert "pre-fetch" in trusted.detail
    assert "revenue" in trusted.detail


def test_guardrails_are_non_inferiority_against_their_margin(tmp_path: Path) -> None:
    unguarded = only_result(decisions_project(tmp_path / "0")).estimate("bought")
    low, high = unguarded.low, unguarded.high
    margins = {"safe": -low + 1e-6, "at risk": (-low + max(-high, 0.0)) / 2}
    if high < 0:
        margins["breached"] = -high - 1e-6
    for i, (state, margin) in enumerate(margins.items()):
        definitions = DECISIONS.replace(
            "window: 48h}\n      revenue", f"window: 48h, margin: {margin:.9f}}}\n      revenue"
        ).replace(
            "primary: bought\n        secondary: [revenue, clicks]", "primary: revenue\n        guardrails: [bought]"
        )
        run = decisions_project(tmp_path / f"{i + 1}", definitions=definitions).run(record=False)
        reading = next(r for r in run.results[0].readings if r.metric == "bought")
        assert (reading.role, reading.state) == ("guardrail", state)
        assert (run.exit_code == 1) == (state == "breached")


def test_a_registered_stop_is_held_against_what_happened(tmp_path: Path) -> None:
    stop = "        primary: bought\n        stop: {rule: fixed, at: 2026-12-31, n: 5000, mde: 0.05}\n"
    result = only_result(decisions_project(tmp_path, definitions=DECISIONS.replace("        primary: bought\n", stop)))
    planned = check(result, "planned_stop")
    assert planned.status == "warn"
    assert "before the planned stop (2026-12-31)" in planned.detail
    assert "400 of the 5,000" in planned.detail
    assert check(result, "planned_size").status == "warn"


def test_caps_are_percentiles_of_pooled_values(tmp_path: Path) -> None:
    capped = DECISIONS.replace(
        "where: \"name = 'purchase'\", window: 48h}\n      clicks",
        "where: \"name = 'purchase'\", window: 48h, cap: p90}\n      clicks",
    )
    assert "cap: p90" in capped
    result = only_result(decisions_project(tmp_path, definitions=capped))
    with duckdb.connect(str(tmp_path / "data.duckdb"), read_only=True) as connection:
        arms, values = zip(*connection.execute("SELECT arm, revenue FROM expected").fetchall(), strict=True)
    y = np.minimum(np.array(values), np.percentile(values, 90))
    new = np.array(arms) == "new"
    assert result.estimate("revenue").value == pytest.approx(y[new].mean() - y[~new].mean(), rel=1e-9)


def test_a_cap_that_caps_everything_is_a_refusal(tmp_path: Path) -> None:
    capped = DECISIONS.replace(
        "where: \"name = 'purchase'\", window: 48h}\n      clicks",
        "where: \"name = 'purchase'\", window: 48h, cap: p60}\n      clicks",
    )
    result = only_result(decisions_project(tmp_path, "DELETE FROM events WHERE hash(visitor_id) % 3 > 0", capped))
    assert "would cap every unit" in result.refusals[0].reason
    assert "nonzero" in result.refusals[0].remedy


def test_hostile_names_and_values_stay_data(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "data.duckdb")) as connection:
        decision_log(connection)
        connection.execute("""ALTER TABLE decisions RENAME arm TO "ar""m'; --" """)
        connection.execute(
            """UPDATE decisions SET "ar""m'; --" = 'old''; DROP TABLE events; --' WHERE "ar""m'; --" = 'old'"""
        )
    definitions = DECISIONS.replace(
        "variant: arm, control: old", 'variant: \'"ar""m\'\'; --"\', control: "old\'; DROP TABLE events; --"'
    )
    result = only_result(make_project(tmp_path, definitions, "SELECT 1"))
    assert {a.arm for a in result.arms} == {"new", "old'; DROP TABLE events; --"}


def test_a_source_that_ends_early_is_named(tmp_path: Path) -> None:
    late = (
        "CREATE TABLE visits AS SELECT visitor_id, decided_at + INTERVAL 30 DAY AS t FROM decisions;"
        "DELETE FROM events WHERE t > TIMESTAMP '2026-03-02'"
    )
    definitions = DECISIONS.replace(
        "    metrics:\n",
        "      visits:    {table: visits, time: t, entity: {visitor: visitor_id}}\n    metrics:\n      visited: {kind: count, from: visits}\n",
    ).replace("secondary: [revenue, clicks]", "secondary: [revenue, clicks, visited]")
    found = check(only_result(decisions_project(tmp_path / "a", late, definitions)), "freshness")
    assert found.status == "warn"
    assert "'events' ends" in found.detail
    assert check(only_result(decisions_project(tmp_path / "b")), "freshness").status == "pass"


def test_dates_beside_times_are_named(tmp_path: Path) -> None:
    result = only_result(decisions_project(tmp_path, "ALTER TABLE events ALTER t TYPE DATE"))
    assert check(result, "dates").status == "warn"
    assert "events" in check(result, "dates").detail


def test_one_arm_without_a_figure_leaves_the_others(tmp_path: Path) -> None:
    third = """
        INSERT INTO decisions SELECT 'w' || i, TIMESTAMP '2026-03-02', 'third' FROM range(200) AS r(i);
        INSERT INTO events SELECT 'w' || i, TIMESTAMP '2026-03-03', 'click', 0 FROM range(200) AS r(i)
    """
    result = only_result(
        decisions_project(
            tmp_path, third, DECISIONS.replace("control: old}", "control: old, split: {old: 1, new: 1, third: 1}}")
        )
    )
    assert {(e.metric, e.contrast) for e in result.estimates} == {
        ("bought", "new vs old"),
        ("revenue", "new vs old"),
        ("clicks", "new vs old"),
    }
    assert len(result.refusals) == 3
    assert all("arm 'third'" in r.reason for r in result.refusals)


def test_a_count_that_the_data_cannot_give_refuses_its_claim_alone(tmp_path: Path) -> None:
    claim = """
    claims:
      worth: {statement: s, evidence: [ranking], amount: "effect(revenue) * volume(none, 365d)"}
    """
    definitions = DECISIONS.replace("    metrics:\n", "      none:      {table: none, time: t}\n    metrics:\n") + claim
    run = decisions_project(tmp_path, "CREATE TABLE none (t TIMESTAMP)", definitions).run(record=False)
    assert [r.name for r in run.results] == ["experiments.ranking"]
    assert [(r.name, r.reason) for r in run.refusals] == [("claims.worth", "source 'none': has no rows to count")]
    assert run.exit_code == 1

"""The demo project on disk: valid, runnable definitions, equal tables, the truth out of reach, and the promised power."""

from __future__ import annotations

import json
import re
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from payoff.errors import ConnectionFailed, UsageError
from payoff.spec.loader import load
from payoff.spec.nouns import Percentile, SumMetric
from payoff.world import World, demo_definitions, make_company, unit_level, write, write_demo_project
from payoff.world.company import ANCHOR_WITHIN, TOUCHPOINTS, TREATMENT, WINDOWS
from payoff.world.journeys import GUEST

TODAY = date(2026, 11, 22)
WORLD = World(customers=500, days=130, seed=5)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_demo_project(tmp_path / "demo", WORLD, today=TODAY, truth_dir=tmp_path / "truth")
    return tmp_path / "demo"


def test_the_definitions_load_and_name_what_is_there(project: Path) -> None:
    spec = load(project).spec
    assert set(spec.experiments) == set(WINDOWS)
    assert spec.defaults.min_cell == 20
    assert spec.timezone == "UTC"
    through = datetime.combine(WORLD.start, datetime.min.time()) + timedelta(days=WORLD.days)
    for name, source in spec.sources.items():
        assert source.through == through
        if source.sessions is not None:
            assert source.sessions.of in spec.sources
            continue
        assert source.file is not None
        columns = pq.read_schema(project / source.file).names
        used = {source.time, source.id, *source.columns, *source.entity.values(), *source.links.values()}
        assert used <= set(columns), name
    for name, arm in TREATMENT.items():
        experiment = spec.experiments[name]
        assert experiment.assignment.split is not None
        assert set(experiment.assignment.split) == {arm, "generic"}
        assert experiment.assignment.control_arm == "generic"
    assert spec.experiments["global_holdout"].primary == ("margin_90d",)
    assert spec.experiments["first_name_subject"].primary == ("click_rate",)


def test_journeys_name_what_the_log_records(project: Path) -> None:
    loaded = load(project)
    spec, touches = loaded.spec, make_company(WORLD).tables["touches"]
    assert set(loaded.journeys()) == {
        "attribution.personalisation", "funnels.engagement_to_kept", "cohorts.signups", "paths.to_purchase", "paths.by_channel",
    }  # fmt: skip
    surfaces = set(touches["surface"].to_pylist())
    attribution = spec.attribution["personalisation"]
    assert set(attribution.touchpoints) == set(TOUCHPOINTS)
    told = {name: spec.touchpoints[name] for name in TOUCHPOINTS}
    assert {name: point.where for name, point in told.items()} == {
        name: f"surface = '{surface}'" for name, surface in TOUCHPOINTS.items()
    }
    assert {f"surface = '{surface}'" for surface in surfaces} == {point.where for point in told.values()}
    assert {name for name, point in told.items() if point.personalised} == {"home", "search", "recommendations"}
    assert attribution.reconcile_with == "global_holdout"
    # what is attributed is what the holdout measures: margin
    metric = spec.metrics["margin_90d"]
    assert isinstance(metric, SumMetric)
    assert attribution.conversion is not None
    assert (metric.from_, metric.column) == (attribution.conversion.event.source, attribution.conversion.value)
    assert spec.claims["personalisation_total"].compare == ("attribution.personalisation",)
    assert set(loaded.journeys()) < set(spec.reports["personalisation_quarterly"].show)
    user = spec.entities["user"]
    assert user.identity is not None
    assert set(user.aliases) < set(make_company(WORLD).tables["identifies"].schema.names)
    assert user.identity.blocked == (GUEST,)


@pytest.mark.parametrize("start", [date(2025, 9, 1), date(2025, 11, 25), date(2024, 2, 29), date(2025, 12, 31)])
@pytest.mark.parametrize("days", [120, 365, 730])
def test_cohorts_of_signups_are_whole_months_where_there_are_any(start: date, days: int) -> None:
    text = demo_definitions(World(start=start, days=days), today=TODAY)["definitions/journeys.yml"]
    starts, ends = (
        date.fromisoformat(day)
        for day in re.findall(r"^    (?:starts|ends): (\S+)", text.split("cohorts:")[1], re.M)[:2]
    )
    assert start <= starts < ends <= start + timedelta(days=0.4 * days + 1)
    if days > 300:
        assert starts.day == ends.day == 1


def test_windows_of_the_definitions_are_those_of_the_truth(project: Path) -> None:
    loaded = load(project)
    for name, windows in WINDOWS.items():
        assert {use.metric for use in loaded.metrics_of(name)} == set(windows)
        for metric, window in windows.items():
            assert loaded.window_of(metric, name) == timedelta(microseconds=window), metric
    assert loaded.spec.defaults.window == timedelta(microseconds=ANCHOR_WITHIN)


def test_money_is_complete_and_expires_in_a_year(project: Path) -> None:
    spec = load(project).spec
    money = [*spec.values.values(), *(cost for claim in spec.claims.values() for cost in claim.less.values())]
    assert len(money) == 4
    for value in money:
        assert value.low is not None
        assert value.high is not None
        assert value.source
        assert value.owner
        assert value.per
        assert value.expires == TODAY + timedelta(days=365)


def test_the_cap_can_be_left_off() -> None:
    texts = {capped: demo_definitions(WORLD, today=TODAY, capped=capped) for capped in (True, False)}
    assert "cap: {percentile: 99, of: nonzero}" in texts[True]["definitions/email_subject.yml"]
    assert all("cap:" not in text for text in texts[False].values())


def test_the_capped_metric_is_read_as_meant(project: Path) -> None:
    metric = load(project).spec.metrics["revenue_per_email"]
    assert isinstance(metric, SumMetric)
    assert metric.cap == Percentile(percentile=99, of="nonzero")


def test_what_is_written_is_the_company(project: Path) -> None:
    company = make_company(WORLD)
    assert {path.stem for path in (project / "data").iterdir()} == set(company.tables)
    for name, table in company.tables.items():
        assert pq.read_table(project / "data" / f"{name}.parquet").equals(table), name
    truth = json.loads((project.parent / "truth" / "truth.json").read_text(encoding="utf-8"))
    assert truth == company.truth


def test_the_project_holds_nothing_of_the_truth(project: Path) -> None:
    assert {p.relative_to(project).parts[0] for p in project.rglob("*")} == {"payoff.yml", "definitions", "data"}
    truth = make_company(WORLD).truth
    text = "".join(path.read_text(encoding="utf-8") for path in project.rglob("*.yml"))
    told = [m["effect"] for e in truth["experiments"].values() for m in e["metrics"].values()]
    assert all(repr(figure) not in text for figure in [*told, truth["true_incremental_revenue"]] if figure)
    assert "truth" not in text
    assert "seed" not in text
    for path in (project / "data").iterdir():
        metadata = pq.read_metadata(path).metadata or {}
        assert set(metadata) <= {b"ARROW:schema"}, path.name


@pytest.mark.parametrize("inside", [".", "deeper/still", "../data/x"])
def test_truth_inside_the_data_is_refused(tmp_path: Path, inside: str) -> None:
    data = tmp_path / "data"
    with pytest.raises(UsageError, match="name a folder outside"):
        write(make_company(WORLD), data, data / inside)
    assert not data.exists()  # refused before anything was written


def test_truth_inside_the_project_is_refused_even_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "demo")
    for truth_dir in (tmp_path / "demo" / "truth", tmp_path / "elsewhere" / "truth"):
        with pytest.raises(UsageError, match="name a folder outside"):
            write_demo_project(tmp_path / "demo", WORLD, today=TODAY, truth_dir=truth_dir)
    assert list((tmp_path / "demo").iterdir()) == []


def test_a_project_is_not_overwritten_unasked(project: Path) -> None:
    (project / "payoff.yml").write_text("version: 1\nproject: mine\n", encoding="utf-8")
    with pytest.raises(UsageError, match="already holds a project"):
        write_demo_project(project, WORLD, today=TODAY)
    assert "mine" in (project / "payoff.yml").read_text(encoding="utf-8")

    (project / ".payoff").mkdir()
    (project / ".payoff" / "ledger.db").write_bytes(b"kept")
    write_demo_project(project, WORLD, today=TODAY, overwrite=True)
    assert load(project).spec.project == "acme_demo"
    assert (project / ".payoff" / "ledger.db").read_bytes() == b"kept"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(ConnectionFailed, match=r"cannot write the tables to .*file"):
        write_demo_project(tmp_path / "file" / "demo", WORLD, today=TODAY)
    with pytest.raises(ConnectionFailed, match=r"cannot write .*truth\.json"):
        write(make_company(WORLD), tmp_path / "data", tmp_path / "file" / "truth")


def test_the_shipped_world_ends_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[World] = []

    def small(world: World) -> Any:
        made.append(world)
        return make_company(WORLD)

    monkeypatch.setattr("payoff.world.project.make_company", small)
    write_demo_project(tmp_path / "demo", today=TODAY)
    assert made[0].start + timedelta(days=made[0].days) == TODAY
    assert load(tmp_path / "demo").spec.sources["orders"].through == datetime(2026, 11, 22)


# ---------------------------------------------------------------- the shipped seed keeps its promises


def test_shipped_world_has_a_powered_and_an_underpowered_claim() -> None:
    """By Welch's interval on units counted without the pipeline, priced with the definitions' own figures."""
    company = make_company(World())

    def interval(experiment: str, metric: str) -> tuple[float, float]:
        units = unit_level(company, experiment)
        values, treated = units[metric], units["arm"] == TREATMENT[experiment]
        closed = ~np.isnan(values)
        test = stats.ttest_ind(values[closed & treated], values[closed & ~treated], equal_var=False)
        told = test.confidence_interval(0.95)
        assert told.low < company.effect(experiment, metric) < told.high
        return float(told.low), float(told.high)

    people = company.truth["experiments"]["global_holdout"]["units"]
    low, high = interval("global_holdout", "margin_90d")
    assert low * people > (0.33 + 0.27) * World().customers > 0  # even the dearest costs are covered at the low end
    assert company.effect("global_holdout", "margin_90d") * people > 0.5 * World().customers

    low, high = interval("first_name_subject", "revenue_per_email")
    sends = company.tables["email_sends"].num_rows
    assert low * 0.35 * sends < 0 < 0.07 * World().customers < high * 0.35 * sends  # cannot tell profit from loss

    low, high = interval("first_name_subject", "click_rate")
    assert low > 0
    assert company.truth["attributed_over_true"] > 5
    _, high = interval("first_name_subject", "unsubscribe_rate")
    assert high < 0.002  # the guardrail is safe

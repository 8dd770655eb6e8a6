"""Paths as they are told: figures with intervals, what is hidden, flows, refusals; and shares that gather in units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from payoff.methods.path import ALL, NONE, PathMethod
from payoff.result import Refusal, Result
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Journey
from payoff.stats.proportion import clustered_count, clustered_share, poisson_count, wilson
from payoff.warehouse.events import EventProfile
from payoff.warehouse.paths import EdgeCount, PathCount, PathData, Wait
from payoff.warehouse.touches import Stop
from tests.builders import make_project

DOCS = Path(__file__).resolve().parents[2] / "docs" / "methods" / "path.md"
PROFILE = EventProfile("touches", 1000, 0, 0, 0, 0, 1, 2, 2, "", 0)


def count(codes: Sequence[int], n: int, units: int | None = None, cut: bool = False) -> PathCount:
    return PathCount(tuple(codes), cut, n, units or n, float(n), float(n))


def data(**given: Any) -> PathData:
    base = PathData(
        stops=(Stop(0, "ad", "ad", False, 500), Stop(1, "mail", "mail", False, 400), Stop(2, "site: b > c", "site", False, 9)),
        event="orders",
        journeys=1000,
        units=1000,
        squares=1000.0,
        paths=(count([0], 500), count([0, 1], 200), count([2], 50, cut=True)),
        untouched=count([], 150),
        rest_units=100,
        edges=(EdgeCount(1, 0, None, 560, 560), EdgeCount(1, 1, None, 290, 290), EdgeCount(1, None, None, 150, 150, True),
               EdgeCount(2, 0, 1, 200, 200)),
        wait=Wait(7200.0, 7000.0, 7500.0, 850, 850),
        unripe=0,
        unseen=0,
        left_out={},
        sources={"touches": PROFILE},
        as_of_us=10**15,
        steps=(),
    )  # fmt: skip
    return replace(base, **given)


def design(declared: dict[str, Any] | None = None, **more: Any) -> JourneyDesign:
    given = declared or {"to": "orders", "window": "7d"}
    return JourneyDesign("paths.p", Journey.model_validate({"touchpoints": ["ad"], **given}), "user", **more)


def told(d: JourneyDesign, found: PathData) -> Result:
    result = PathMethod().answer(d, found, np.random.default_rng(1))
    assert isinstance(result, Result)
    return result


def refused(d: JourneyDesign, found: PathData) -> str:
    result = PathMethod().answer(d, found, np.random.default_rng(1))
    assert isinstance(result, Refusal)
    return result.reason


def values(result: Result, estimand: str) -> dict[str, float]:
    return {str(e.labels["path"]): e.value for e in result.estimates if e.estimand == estimand}


def test_counts_shares_and_time_each_with_its_interval() -> None:
    result = told(design(), data())
    assert values(result, "journeys on path") == {
        ALL: 1000, "ad": 500, "ad > mail": 200, "… > 'site: b > c'": 50, NONE: 150
    }  # fmt: skip
    share = next(e for e in result.estimates if e.estimand == "share of journeys" and e.labels["rank"] == 2)
    assert (share.low, share.high) == pytest.approx(wilson(200, 1000))
    assert share.to_dict()["path"] == "ad > mail"
    assert all(e.low <= e.value <= e.high for e in result.estimates)
    assert values(result, "median time to convert") == {ALL: 7200.0}
    assert result.left_out == {"journeys on other paths, or on paths of too few units to be shown": 100}
    assert "50.0% (95% interval 46.9% to 53.1%) came by ad, the most common path in the 7d before" in result.finding
    assert "15.0% (12.9% to 17.3%) met no touchpoint" in result.finding
    assert (result.method, result.verdict, result.grade) == ("path", "descriptive", "")
    assert len({(e.estimand, e.contrast) for e in result.estimates}) == len(result.estimates)
    for word in ("caused", "drove", "lift", "because"):
        assert word not in result.finding


def test_flows_are_counted_from_the_event() -> None:
    flow = told(design(), data()).closer.flow
    assert flow is not None
    assert [(e.step, e.source, e.target, e.n) for e in flow.edges] == [
        (-1, "ad", "orders", 560), (-1, "mail", "orders", 290), (-1, NONE, "orders", 150), (-2, "ad", "mail", 200)
    ]  # fmt: skip
    after = (EdgeCount(1, None, 0, 560, 560), EdgeCount(1, None, None, 150, 150, True), EdgeCount(2, 0, 1, 200, 200))
    flow = told(design({"from": "orders"}), data(edges=after, wait=None)).closer.flow
    assert flow is not None
    assert [(e.step, e.source, e.target) for e in flow.edges] == [
        (0, "orders", "ad"), (0, "orders", NONE), (1, "ad", "mail")
    ]  # fmt: skip


def test_what_is_not_told_is_of_enough_units_that_no_difference_tells_it() -> None:
    few = data(paths=(count([0], 700), count([1], 140)), rest_units=4, untouched=count([], 156))
    result = told(design(min_cell=10), few)
    assert set(values(result, "journeys on path")) == {ALL, "ad", NONE}
    assert list(result.left_out.values()) == [144]
    edges = (EdgeCount(1, 0, None, 900, 900), EdgeCount(1, 1, None, 96, 96), EdgeCount(1, 2, None, 4, 4))
    flow = told(design(min_cell=10), data(edges=edges)).closer.flow
    assert flow is not None
    assert [e.source for e in flow.edges] == ["ad"]
    assert flow.hidden == 100
    waits = told(design(min_cell=10), data(wait=Wait(1.0, 1.0, 1.0, 5, 5)))
    assert not values(waits, "median time to convert")
    assert "fewer than 10 units" in waits.refusals[0].reason


def test_a_time_that_too_few_tell_is_refused_and_the_rest_stands() -> None:
    result = told(design(), data(wait="9 rows of 9 units are too few"))
    assert [r.name for r in result.refusals] == ["paths.p.median time to convert"]
    assert not values(result, "median time to convert")


def test_what_cannot_be_told_is_refused() -> None:
    assert "no row of orders with a unit and a time" in refused(
        design(), data(journeys=0, units=0, left_out={"rows of orders without a unit": 3})
    )
    assert "is not over for any of the 7 rows of orders" in refused(
        design({"from": "orders"}), data(journeys=0, units=0, unripe=7)
    )
    assert "fewer than 2000 units" in refused(design(min_cell=2000), data())
    assert "no touchpoint has a row" in refused(design(), data(stops=(Stop(0, "ad", "ad", False, 0),)))


def test_checks_warn_of_what_they_name() -> None:
    def status(found: PathData, d: JourneyDesign | None = None) -> dict[str, str]:
        return {c.name: c.status for c in told(d or design(), found).checks}

    fine = status(data())
    assert set(fine) == set(PathMethod.checks)
    assert set(fine.values()) == {"pass", "not-run"}
    assert status(data(units=50, journeys=1000))["journeys"] == "warn"
    assert status(data(untouched=count([], 600)))["touched"] == "warn"
    assert status(data(untouched=None))["touched"] == "pass"
    assert status(data(unseen=200))["reach"] == "warn"
    assert status(data(unripe=5000), design({"from": "orders"}))["matured"] == "warn"
    assert status(data(stops=(*data().stops, Stop(3, "gone", "gone", False, 0))))["names"] == "warn"
    assert status(data(stops=(*data().stops, Stop(3, "x: (none)", "x", False, 9, True))))["names"] == "warn"
    assert status(data(sources={"touches": replace(PROFILE, repeated=4)}))["repeats"] == "warn"
    assert status(data(sources={"touches": replace(PROFILE, repeated=None)}))["repeats"] == "not-run"
    assert status(data(sources={"touches": replace(PROFILE, ahead=4)}))["clock"] == "warn"
    page = DOCS.read_text()
    assert all(f"`{name}`" in page for name in PathMethod.checks)
    tested = {a.tested_by for a in PathMethod.assumptions if a.tested_by}
    assert tested <= set(PathMethod.checks)


def test_a_project_tells_its_paths(tmp_path: Path) -> None:
    project = make_project(
        tmp_path,
        """
        entities: {user: {id: u}}
        sources:
          touches: {table: touches, time: t}
          orders: {table: orders, time: t, id: id}
        touchpoints:
          ad: {source: touches, where: "kind = 'ad'"}
          mail: {source: touches, where: "kind = 'mail'"}
        paths:
          p: {touchpoints: [ad, mail], to: orders, window: 7d}
        """,
        """
        CREATE TABLE touches AS SELECT i AS u, TIMESTAMP '2026-03-01' + INTERVAL (k * i) MINUTE AS t,
          CASE WHEN k = 2 AND i % 4 = 0 THEN 'mail' ELSE 'ad' END AS kind FROM range(200) r(i), range(3) s(k) WHERE i % 5 > 0;
        CREATE TABLE orders AS SELECT i AS id, i AS u, TIMESTAMP '2026-03-02' AS t FROM range(200) r(i);
        """,
    )
    (result,) = project.run(["paths.p"], record=False).to_dict()["results"]
    counts = {e["path"]: e["value"] for e in result["estimates"] if e["estimand"] == "journeys on path"}
    assert counts == {ALL: 200, "ad": 120, "ad > mail": 40, NONE: 40}
    assert result["closer"]["flow"]["journeys"] == 200
    assert [s["step"] for s in result["provenance"]["sql"]]


# ---------------------------------------------------------------- shares of rows that gather in units


def test_one_row_a_unit_is_the_plain_interval() -> None:
    assert clustered_share(20, 100, 20, 20, 100) == pytest.approx(wilson(20, 100))
    assert clustered_count(20, 20) == pytest.approx(poisson_count(20))
    assert clustered_count(0, 0) == pytest.approx(poisson_count(0))
    assert clustered_share(0, 100, 0, 0, 1000) == pytest.approx(wilson(0, 10))
    with pytest.raises(ValueError, match="squares that add up to no less"):
        clustered_count(20, 10)


def test_units_that_repeat_themselves_count_once() -> None:
    """Each of 50 units has 10 rows, all alike: as 50 rows."""
    assert clustered_share(200, 500, 20 * 100, 20 * 100, 50 * 100) == pytest.approx(wilson(20, 50))
    assert clustered_count(200, 2000) == pytest.approx(tuple(10 * x for x in poisson_count(20)))


@pytest.mark.slow
def test_intervals_of_clustered_rows_hold_the_truth() -> None:
    rng, held = np.random.default_rng(8), []
    for _ in range(1500):
        y = rng.geometric(0.4, 150)
        x = rng.binomial(y, rng.beta(0.6, 1.4, 150))
        n, k = int(y.sum()), int(x.sum())
        share = clustered_share(k, n, float((x * x).sum()), float((x * y).sum()), float((y * y).sum()))
        units = rng.poisson(150)
        z = rng.geometric(0.4, units) * rng.binomial(1, 0.2, units)
        total = clustered_count(int(z.sum()), float((z * z).sum()))
        held.append((share[0] <= 0.3 <= share[1], total[0] <= 150 * 0.2 / 0.4 <= total[1]))
    assert np.mean(held, axis=0) == pytest.approx([0.95, 0.95], abs=0.02)

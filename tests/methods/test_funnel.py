"""Funnels from definitions to the sentence that is read: figures by hand, what is refused, what is not shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from payoff.methods.funnel import FunnelMethod
from payoff.result import Refusal, Result
from payoff.run import Project
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Funnel
from payoff.stats.proportion import order_statistic_ranks, poisson_count, wilson
from payoff.warehouse.events import EventProfile
from payoff.warehouse.funnels import FunnelData, Precedence, Reached
from tests.builders import make_project

SHOP = """
    entities: {user: {id: user_id}}
    sources:
      clicks:    {table: clicks, time: t}
      carts:     {table: carts, time: t}
      checkouts: {table: checkouts, time: t}
      orders:    {table: orders, time: t, id: order_id}
      returns:   {table: returns, time: t, links: {orders: order_id}, through: 2026-06-01}
    funnels:
      reward:
        steps:
          - {name: engagement, source: clicks}
          - {source: carts, within: 2d}
          - checkouts
          - orders
          - {name: kept, without: returns, within: 30d}
        within: 7d
        owner: growth@acme.example
"""
# Of 240 users who click on 1 March, 1 in 2 has a cart an hour later, 1 in 3 of all a checkout, 1 in 4 an order (id = user), and 1 in 12 of
# all returns it: 10 of those on day 30, 10 a day too late. User 240 and later click on 20 May: their time has not passed.
SHOP_ROWS = """
    CREATE TABLE clicks AS SELECT i AS user_id, TIMESTAMP '2026-03-01 10:00' AS t FROM range(240) r(i)
      UNION ALL SELECT i, TIMESTAMP '2026-05-20' FROM range(240, 250) r(i);
    CREATE TABLE carts AS SELECT i AS user_id, TIMESTAMP '2026-03-01 11:00' + INTERVAL 1 SECOND * i AS t FROM range(0, 240, 2) r(i);
    CREATE TABLE checkouts AS SELECT i AS user_id, TIMESTAMP '2026-03-02 11:00' AS t FROM range(0, 240, 6) r(i)
      UNION ALL SELECT i + 2, TIMESTAMP '2026-03-02 11:00' FROM range(0, 240, 6) r(i);
    CREATE TABLE orders AS SELECT i AS user_id, TIMESTAMP '2026-03-02 12:00' AS t, i AS order_id FROM range(0, 240, 6) r(i)
      UNION ALL SELECT i + 2, TIMESTAMP '2026-03-02 12:00', i + 2 FROM range(0, 240, 12) r(i);
    CREATE TABLE returns AS
      SELECT user_id, order_id, t + (CASE WHEN order_id % 24 = 0 THEN INTERVAL 30 DAY ELSE INTERVAL 31 DAY END) AS t
      FROM orders WHERE order_id % 12 = 0;
"""


def only(project: Project, name: str = "reward") -> Result | Refusal:
    run = project.run([f"funnels.{name}"], record=False)
    (outcome,) = (*run.results, *run.refusals)
    return outcome


def values(result: Result, estimand: str, segment: str | None = None) -> dict[int, float]:
    return {
        int(e.labels["position"]): e.value for e in result.estimates if e.estimand == estimand and e.segment == segment
    }


def test_engagement_cart_checkout_order_kept(tmp_path: Path) -> None:
    result = only(make_project(tmp_path, SHOP, SHOP_ROWS))
    assert isinstance(result, Result), result
    assert values(result, "units reaching step") == {1: 240, 2: 120, 3: 80, 4: 60, 5: 50}
    assert values(result, "share of the step before") == pytest.approx({2: 0.5, 3: 2 / 3, 4: 0.75, 5: 5 / 6})
    assert values(result, "share of entrants reaching step")[5] == pytest.approx(50 / 240)
    assert values(result, "median time from the step before")[4] == 3600
    assert result.left_out["users still inside their window"] == 10
    assert (result.method, result.verdict, result.grade) == ("funnel", "descriptive", "")
    kept = next(e for e in result.estimates if e.labels["position"] == 5 and e.estimand == "share of the step before")
    assert (kept.low, kept.high) == pytest.approx(wilson(50, 60))
    counted = next(e for e in result.estimates if e.labels["position"] == 5 and e.unit == "units")
    assert (counted.low, counted.high) == pytest.approx(poisson_count(50))
    cart = next(e for e in result.estimates if e.metric == "carts" and e.estimand.startswith("median"))
    ranks = order_statistic_ranks(120, 0.5)
    assert ranks is not None
    times = [3600 + i for i in range(0, 240, 2)]
    assert (cart.value, cart.low, cart.high) == (np.median(times), times[ranks[0] - 1], times[ranks[1] - 1])
    assert result.finding == (
        "Of 240 users who entered, 20.8% (95% interval 16.2% to 26.4%) reached 'kept' ('orders' within 7d, and no row of returns in the 30d after);"
        " the largest loss is between 'engagement' and"
        " 'carts': 120, or 50.0% (43.7% to 56.3%) of those at the former. 10 more are still inside their window and are not counted."
    )
    row = next(e for e in result.to_dict()["estimates"] if e["step"] == "carts" and e["unit"] == "share")
    assert row["position"] == 2
    contrasts = [(e.estimand, e.contrast) for e in result.estimates]
    assert len(set(contrasts)) == len(contrasts)
    for word in ("caused", "drove", "lift"):
        assert word not in str(result.to_dict())


def test_the_plan_reads_no_rows_and_names_every_reading(tmp_path: Path) -> None:
    steps = make_project(tmp_path, SHOP, SHOP_ROWS).plan(["funnels.reward"])
    assert {s.reads.removeprefix("table main.") for s in steps if s.reads} >= {
        "clicks", "carts", "checkouts", "orders", "returns",
    }  # fmt: skip
    assert any("$latest_entry_whose_time_has_passed" in s.sql for s in steps)


# ---------------------------------------------------------------- the method alone


def data_of(counts: list[int], classes: dict[str, list[int]] | None = None, **more: Any) -> FunnelData:
    labels = tuple(f"step {k}" for k in range(1, len(counts) + 1))
    profile = EventProfile("views", 1000, 0, 0, 0, 0, 0, 1, 1, "")
    fields: dict[str, Any] = {
        "sources": {"views": profile},
        "sql": (),
        "steps": (),
        "as_of_us": 1_772_323_200_000_000,
        "left_out": {},
        "labels": labels,
        "reached": tuple(
            [Reached(p, None, n) for p, n in enumerate(counts, 1)]
            + [Reached(p, c, n) for c, them in (classes or {}).items() for p, n in enumerate(them, 1)]
        ),
        "inside": 0,
        "cut_us": 0,
        "window_us": 1,
        "kept": False,
    }
    return FunnelData(**(fields | more))


def answer(data: FunnelData, min_cell: int = 0, **more: Any) -> Result | Refusal:
    funnel = Funnel.model_validate({"steps": list(data.labels), "within": "7d", **more} | _steps_of(data))
    design = JourneyDesign(name="funnels.f", declared=funnel, entity="company", min_cell=min_cell)
    return FunnelMethod().answer(design, data, np.random.default_rng(1))


def _steps_of(data: FunnelData) -> dict[str, Any]:
    return {"steps": [{"name": label, "source": "views"} for label in data.labels]}


def answered(data: FunnelData, min_cell: int = 0, **more: Any) -> Result:
    result = answer(data, min_cell, **more)
    assert isinstance(result, Result), result
    return result


def test_nobody_entered() -> None:
    refusal = answer(data_of([0, 0], left_out={"rows of views without a unit": 12}))
    assert isinstance(refusal, Refusal)
    assert "no row of 'step 1'" in refusal.reason
    assert "12 rows of views without a unit" in refusal.reason


def test_everyone_is_still_inside() -> None:
    refusal = answer(data_of([0, 0], inside=7))
    assert isinstance(refusal, Refusal)
    assert "all 7 companies that entered are still inside their window of 7d" in refusal.reason
    assert "through" in refusal.remedy


def test_a_step_that_nobody_reached_is_zero_with_its_interval() -> None:
    result = answered(data_of([300, 20, 0], precedence=(Precedence(2, 30, 3, 40), Precedence(3, 0, 0, 0))))
    last = {e.estimand: e for e in result.estimates if e.labels["position"] == 3}
    assert last["units reaching step"].value == 0
    assert last["units reaching step"].high == pytest.approx(3.689, abs=1e-3)
    assert (last["share of the step before"].low, last["share of the step before"].value) == (0, 0)
    assert last["share of the step before"].high == pytest.approx(wilson(0, 20)[1])
    steps = next(c for c in result.checks if c.name == "steps")
    assert steps.status == "warn"
    assert "'step 3'" in steps.detail


def test_small_figures_are_not_shown_and_not_given_away() -> None:
    result = answered(
        data_of([100, 60, 58, 4], {"a": [70, 50, 49, 3], "b": [26, 8, 7, 1], "c": [4, 2, 2, 0]}), min_cell=5
    )
    shown = {(e.segment, e.labels["position"]): e.value for e in result.estimates if e.unit == "units"}
    # 58 would tell that 2 were lost after 60; class c alone of its step would be the total less a and b
    assert {p for s, p in shown if s is None} == {1, 2}
    assert (None, 3) not in shown
    assert ("c", 1) not in shown
    assert ("b", 1) not in shown
    assert all(v >= 5 for v in shown.values())
    for position in (1, 2):
        hidden = shown[None, position] - sum(v for (s, p), v in shown.items() if s and p == position)
        assert hidden == 0 or hidden >= 5
    assert any("fewer than 5" in reason for reason in result.left_out)
    refused = answer(data_of([4, 2]), min_cell=5)
    assert isinstance(refused, Refusal)
    assert "fewer than 5" in refused.reason


def test_checks_say_what_is_wrong_with_the_rows() -> None:
    profile = EventProfile("views", 1000, 0, 3, 2, 1, 0, 1, 1, "")
    data = data_of(
        [50, 20],
        sources={"views": profile},
        repeated={"orders": 9},
        days=("views",),
        precedence=(Precedence(2, 100, 80, 100),),
        inside=70,
    )
    checks = {c.name: c for c in answered(data).checks}
    assert set(checks) == set(FunnelMethod.checks)
    assert all(c.status == "warn" for name, c in checks.items() if name != "steps")
    assert "2 rows of views dated before 1970" in checks["clock"].detail
    assert "1 rows of views dated in the future" in checks["clock"].detail
    assert "9 in orders" in checks["repeats"].detail
    assert "80.0%" in checks["order"].detail
    fine = {c.name: c.status for c in answered(data_of([500, 20], repeated={"orders": 0})).checks}
    assert fine == {
        "entries": "pass", "matured": "pass", "steps": "not-run", "repeats": "pass", "clock": "pass", "order": "not-run",
    }  # fmt: skip


def test_too_few_for_a_median_time_is_said() -> None:
    result = answered(data_of([50, 5]))
    (refusal,) = result.refusals
    assert refusal.reason.startswith("5 reached 'step 2', too few")
    assert refusal.remedy.startswith("it takes 6 for the 95% interval")


def test_shares_of_each_steps_own_classes_are_of_everyone() -> None:
    data = data_of([100, 50], {"web": [90, 20], "app": [10, 30]})
    result = answered(data, by={"column": "device", "step": "each"})
    assert values(result, "share of the step before", "app") == {2: 0.3}
    assert values(result, "share of entrants reaching step", "app") == {1: 0.1, 2: 0.3}
    result = answered(data_of([100, 50], {"web": [90, 20], "app": [10, 5]}), by="device")
    assert values(result, "share of the step before", "app") == {2: 0.5}

"""The cohort method: figures worked by hand and against pandas, what is hidden, what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from payoff.estimate import Estimate
from payoff.methods.cohort import CohortMethod
from payoff.result import Refusal, Result
from payoff.stats.proportion import poisson_count
from payoff.warehouse import cohorts
from payoff.warehouse.cohorts import CohortCounts, CohortsData
from tests.builders import make_project
from tests.warehouse.test_cohorts import DAY, catalog_over, design_of, tables, us

MONDAY = us(datetime(2026, 3, 2, tzinfo=UTC))
DOCS = Path(__file__).parents[2] / "docs" / "methods" / "cohort.md"
RNG = np.random.default_rng(1)


def answer(
    folder: Path,
    declared: dict[str, Any],
    zone: str = "UTC",
    extra: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
    **rows: Sequence[tuple[Any, ...]],
) -> Result | Refusal:
    design = design_of(declared, zone, **(more or {}))
    with catalog_over(folder, tables(**rows), zone, **(extra or {})) as catalog:
        return CohortMethod().answer(design, cohorts.read(catalog, design), RNG)


def result(folder: Path, declared: dict[str, Any], zone: str = "UTC", **rest: Any) -> Result:
    out = answer(folder, declared, zone, **rest)
    assert isinstance(out, Result), out
    return out


def cells(found: Result, estimand: str, cohort: str = "(all)") -> dict[Any, Estimate]:
    return {
        e.labels.get("period"): e
        for e in found.estimates
        if e.estimand == estimand and e.labels.get("cohort") == cohort
    }


def percent(found: Result) -> list[int]:
    return [int(100 * e.value) for _, e in sorted(cells(found, "retention").items())]


def test_n_day_is_not_unbounded(tmp_path: Path) -> None:
    """Three users read 100, 33, 0, 0, 0, 33, 0 and 100, 66, 33, 33, 33, 33, 0."""
    signups = [(u, MONDAY, None) for u in "abc"]
    visits = [(u, MONDAY) for u in "abc"] + [("a", MONDAY + DAY), ("b", MONDAY + 5 * DAY + 7)]
    later = [("somebody else", MONDAY + 8 * DAY)]
    read = {}
    for kind in ("n_day", "unbounded"):
        declared = {
            "start": "signups",
            "activity": "visits",
            "retention": {"kind": kind, "period": "1d", "periods": 6},
        }
        found = result(tmp_path, declared, signups=signups, visits=[*visits, *later])
        read[kind] = percent(found)
        assert {e.labels["kind"] for e in found.estimates if e.estimand == "retention"} == {kind}
        assert ("unbounded retention" in found.question) == (kind == "unbounded")
        assert any(a.text.startswith("Unbounded") for a in found.assumptions) == (kind == "unbounded")
    # 66 needs b's return on day 5 alone to count for day 1 too
    assert read == {"n_day": [100, 33, 0, 0, 0, 33, 0], "unbounded": [100, 66, 33, 33, 33, 33, 0]}


def test_only_units_whose_period_is_closed_are_counted(tmp_path: Path) -> None:
    signups = [("early", MONDAY, None), ("late", MONDAY + 10 * DAY, None)]
    visits = [("early", MONDAY + 8 * DAY), ("late", MONDAY + 17 * DAY)]
    declared = {"start": "signups", "activity": "visits", "retention": {"period": "7d", "periods": 2}}
    found = result(tmp_path, declared, signups=signups, visits=visits)
    # the data goes to day 17: late's period 0 is over at that very moment, its period 1 is not
    assert {k: (e.value, dict(e.n)) for k, e in cells(found, "retention").items()} == {
        0: (0.0, {"(all)": 2}),
        1: (1.0, {"(all)": 1}),
    }
    assert list(cells(found, "retention", "2026-03-09")) == [0]


def test_declared_completeness_bounds_what_is_read(tmp_path: Path) -> None:
    signups = [("a", MONDAY, None)]
    visits = [("a", MONDAY + 1), ("a", MONDAY + 30 * DAY)]
    declared = {
        "start": "signups",
        "activity": "visits",
        "retention": {"kind": "unbounded", "period": "7d", "periods": 4},
    }
    found = result(
        tmp_path, declared, signups=signups, visits=visits, extra={"visits": {"through": datetime(2026, 3, 17)}}
    )
    # a visit after the time that is vouched for is not read, though it is there
    assert [e.value for e in cells(found, "retention").values()] == [1.0, 0.0]


def orders_of(rng: random.Random, users: int, n: int) -> tuple[list[Any], list[Any]]:
    signups = [(f"u{i}", MONDAY + rng.randrange(0, 21 * DAY), None) for i in range(users)]
    orders = [
        (f"u{rng.randrange(users)}", MONDAY + rng.randrange(0, 60 * DAY), round(rng.lognormvariate(2, 1), 2), str(i))
        for i in range(n)
    ]
    return signups, orders


def test_ltv_is_that_of_pandas(tmp_path: Path) -> None:
    signups, orders = orders_of(random.Random(4), 120, 700)
    declared = {
        "start": "signups",
        "revenue": {"event": "orders", "value": "amount"},
        "retention": {"period": "7d", "periods": 6},
    }
    found = result(tmp_path, declared, signups=signups, orders=orders)
    units = pd.DataFrame(signups, columns=["who", "t0", "plan"]).set_index("who")
    units["cohort"] = pd.to_datetime(units.t0, unit="us").dt.to_period("W-SUN").dt.start_time.dt.strftime("%Y-%m-%d")
    rows = pd.DataFrame(orders, columns=["who", "t", "amount", "id"]).join(units, on="who")
    as_of = max(rows.t.max(), units.t0.max())
    compared = 0
    for name in [*units.cohort.unique(), "(all)"]:
        for k, e in cells(found, "cumulative revenue per unit", str(name)).items():
            end = (k + 1) * 7 * DAY
            of = units[(units.t0 + end <= as_of) & ((units.cohort == name) | (name == "(all)"))]
            within = rows[(rows.t >= rows.t0) & (rows.t < rows.t0 + end)]
            worth = within.groupby("who").amount.sum().reindex(of.index).fillna(0.0)
            assert e.value == pytest.approx(worth.mean())
            expected = scipy_stats.t.interval(0.95, len(worth) - 1, worth.mean(), worth.sem())
            assert (e.low, e.high) == pytest.approx(expected)
            assert e.n == {name: len(worth)}
            assert e.unit == "USD/user"
            compared += 1
    assert compared > 20
    (total,) = cells(found, "revenue", "2026-03-02").values()
    last = cells(found, "cumulative revenue per unit", "2026-03-02")[total.labels["period"]]
    assert total.value == pytest.approx(last.value * last.n["2026-03-02"])


def test_revenue_without_a_value_counts_rows(tmp_path: Path) -> None:
    signups, orders = orders_of(random.Random(5), 50, 200)
    declared = {"start": "signups", "revenue": "orders", "retention": {"period": "7d", "periods": 2}}
    found = result(tmp_path, declared, signups=signups, orders=orders)
    assert {e.unit for e in cells(found, "cumulative revenue per unit").values()} == {"orders/user"}


def data_of(bands: Sequence[tuple[int, float, float]], cost: float | None, units: int = 100) -> CohortsData:
    """One cohort whose cumulative revenue per unit has these (units, mean, standard deviation)."""
    n = tuple(b[0] for b in bands)
    total = tuple(b[0] * b[1] for b in bands)
    squares = tuple((b[0] - 1) * b[2] ** 2 + b[0] * b[1] ** 2 for b in bands)
    week = (MONDAY, MONDAY + 7 * DAY)
    one = CohortCounts("2026-03-02", units, n, (), total, squares, *week, cost)
    edges = tuple(7 * DAY * k for k in range(len(bands) + 1))
    return CohortsData({}, (), (), MONDAY + 300 * DAY, {}, edges, (one,), cost=cost, cost_units=units)


PAYS = {
    "start": "signups",
    "revenue": {"event": "orders", "value": "amount"},
    "cost": {"source": "ads", "column": "spend"},
}


def described(data: CohortsData, **more: Any) -> Result:
    out = CohortMethod().answer(design_of(PAYS, **more), data, RNG)
    assert isinstance(out, Result)
    return out


def test_payback_is_the_end_of_the_first_period_that_returns_the_cost() -> None:
    # a standard deviation of 5 over 100 units is a half-width of 0.99
    found = described(data_of([(100, 5, 5), (100, 9.5, 5), (100, 10.5, 5), (100, 12, 5)], 1000.0))
    (cac,) = cells(found, "CAC", "2026-03-02").values()
    low, high = poisson_count(100)
    assert (cac.value, cac.low, cac.high) == pytest.approx((10, 1000 / high, 1000 / low))
    (payback,) = cells(found, "payback", "2026-03-02").values()
    assert (payback.value, payback.low, payback.high, payback.unit) == (21, 7, 28, "days")
    assert payback.labels["period"] == 2
    assert "was back within 21 days (7 to 28)" in found.finding
    # what came back in the first period may have on its first day
    found = described(data_of([(100, 15, 5), (100, 20, 5)], 1000.0))
    (payback,) = cells(found, "payback", "2026-03-02").values()
    assert (payback.value, payback.low, payback.high) == (7, 0, 7)
    assert "was back within 7 days (0 to 7)" in found.finding
    assert not found.refusals


@pytest.mark.parametrize(
    ("bands", "says"),
    [
        ([(100, 5, 5), (100, 8, 5)], "not paid back: by the end of period 1 a unit of 2026-03-02 had brought"),
        ([(100, 5, 5), (100, 10.5, 5)], "paid back after 14 days, but by the end of period 1 the low end"),
        ([(100, 0, 0), (100, 0, 0)], "no period of cohort 2026-03-02 has revenue with a band yet"),
    ],
)
def test_what_is_not_paid_back_is_a_sentence_and_never_a_number(bands: Any, says: str) -> None:
    found = described(data_of(bands, 1000.0))
    assert not [e for e in found.estimates if e.estimand == "payback"]
    reasons = {r.name: r.reason for r in found.refusals}
    assert says in reasons["cohorts.c.payback.2026-03-02"]
    assert all(r.remedy for r in found.refusals)


def test_revenue_without_spread_is_refused_and_not_certain() -> None:
    found = described(data_of([(100, 7, 0), (100, 9, 2)], 1000.0))
    assert list(cells(found, "cumulative revenue per unit")) == [1]
    (reason,) = [r.reason for r in found.refusals if r.name == "cohorts.c.revenue.2026-03-02"]
    assert "no spread among units up to period 0" in reason


def test_spending_belongs_to_the_step_it_was_spent_in(tmp_path: Path) -> None:
    """In Berlin the week begins an hour before the UTC one, and an hour earlier still after the clocks change on 29 March."""
    hour = DAY // 24
    weeks = [us(datetime(2026, 3, d, 23, tzinfo=UTC)) for d in (1, 8, 15, 22)] + [
        us(datetime(2026, 3, 29, 22, tzinfo=UTC)),
        us(datetime(2026, 4, 5, 22, tzinfo=UTC)),
    ]
    signups = [(f"{w}{e}{i}", t, None) for w, t in enumerate(weeks[:-1]) for e in (0, 1) for i in range(w + 1)]
    signups = [
        (who, t if who[1] == "0" else weeks[int(who[0]) + 1] - 1, plan) for who, t, plan in signups
    ]  # at its first and at its last moment
    ads: list[tuple[Any, Any]] = [(t, 10.0 * (w + 1)) for w, t in enumerate(weeks[:-1])] + [
        (t - 1, 1.0) for t in weeks[1:]
    ]
    ads += [(weeks[0] - 1, 1e6), (weeks[-1], 1e6), (None, 5.0), (weeks[2], None)]
    visits = [("000", weeks[-1] + hour)]
    found = result(
        tmp_path,
        {"start": "signups", "activity": "visits", "cost": PAYS["cost"]},
        "Europe/Berlin",
        signups=signups,
        visits=visits,
        ads=ads,
    )
    got = {e.labels["cohort"]: (e.value, dict(e.n)) for e in found.estimates if e.estimand == "CAC"}
    days = [datetime(2026, 3, 2) + timedelta(weeks=w) for w in range(5)]
    expected = {
        d.strftime("%Y-%m-%d"): ((10 * (w + 1) + 1) / (2 * w + 2), {d.strftime("%Y-%m-%d"): 2 * w + 2})
        for w, d in enumerate(days)
    }
    total = sum(10 * (w + 1) + 1 for w in range(5))
    assert got == {**expected, "(all)": (pytest.approx(total / 30), {"(all)": 30})}
    assert found.left_out["rows of ads without a time"] == 1
    assert found.left_out["rows of ads without a cost"] == 1


def test_spending_is_not_split_over_classes(tmp_path: Path) -> None:
    signups = [(f"u{i}", MONDAY + i * DAY // 4, "pro" if i % 3 else None) for i in range(28)]
    found = result(
        tmp_path,
        {"start": "signups", "activity": "visits", "by": "plan", "cost": PAYS["cost"]},
        signups=signups,
        visits=[("u1", MONDAY + 60 * DAY)],
        ads=[(MONDAY + d * DAY, 4.0) for d in range(7)],
    )
    assert [e.labels["cohort"] for e in found.estimates if e.estimand == "CAC"] == ["(all)"]
    assert cells(found, "CAC")[None].value == 1.0
    assert {r.name for r in found.refusals} == {"cohorts.c.CAC.pro", "cohorts.c.CAC.(none)"}


def test_a_step_that_is_not_over_and_one_without_spending_have_no_cac(tmp_path: Path) -> None:
    signups = [("a", MONDAY, None), ("b", MONDAY + 7 * DAY, None), ("c", MONDAY + 14 * DAY, None)]
    found = result(
        tmp_path,
        {"start": "signups", "activity": "visits", "cost": PAYS["cost"]},
        signups=signups,
        visits=[("a", MONDAY + 15 * DAY)],
        ads=[(MONDAY, 50.0), (MONDAY + 14 * DAY, 50.0)],
    )
    reasons = {r.name.split(".")[-1]: r.reason for r in found.refusals}
    assert "not over" in reasons["2026-03-16"]
    assert "no spending" in reasons["2026-03-09"]
    # together: 50 spent in the two weeks that are over, which won two
    assert cells(found, "CAC")[None].value == 25.0
    assert next(c for c in found.checks if c.name == "spend").status == "warn"


STATES = {"start": "signups", "activity": "visits", "lifecycle": "week", "stickiness": "week"}


def test_states_and_stickiness_by_hand(tmp_path: Path) -> None:
    week = 7 * DAY
    visits = [("old", MONDAY - DAY)]
    visits += [("a", MONDAY), ("a", MONDAY + DAY), ("b", MONDAY + 2 * DAY)]
    visits += [("a", MONDAY + week), ("c", MONDAY + week)]
    visits += [("b", MONDAY + 2 * week), ("c", MONDAY + 2 * week), ("old", MONDAY + 3 * week)]
    found = result(tmp_path, STATES, signups=[("a", MONDAY, None)], visits=visits)
    got = {
        (e.labels["period"], e.labels["state"]): int(e.value) for e in found.estimates if e.estimand == "units in state"
    }
    assert got == {
        ("2026-03-02", "new"): 2, ("2026-03-02", "returning"): 0, ("2026-03-02", "resurrected"): 0, ("2026-03-02", "dormant"): 1,
        ("2026-03-09", "new"): 1, ("2026-03-09", "returning"): 1, ("2026-03-09", "resurrected"): 0, ("2026-03-09", "dormant"): 1,
        ("2026-03-16", "new"): 0, ("2026-03-16", "returning"): 1, ("2026-03-16", "resurrected"): 1, ("2026-03-16", "dormant"): 1,
    }  # fmt: skip
    sticky = {e.labels["period"]: e for e in found.estimates if e.estimand == "stickiness"}
    # the week of 23 February has rows on its last day alone: recording begins within it
    assert sorted(sticky) == ["2026-03-02", "2026-03-09", "2026-03-16"]
    assert sticky["2026-03-02"].value == pytest.approx((2 + 1) / 2 / 7)
    # a and c were there one day each: the Wilson interval of 1/7 over two units, from 1/7 on, which no active unit is below
    assert sticky["2026-03-09"].low == pytest.approx(1 / 7)
    z2, p, n = scipy_stats.norm.ppf(0.975) ** 2, 1 / 7, 2
    high = (p + z2 / 2 / n + np.sqrt(z2 * (p * (1 - p) / n + z2 / 4 / n**2))) / (1 + z2 / n)
    assert sticky["2026-03-09"].high == pytest.approx(high)


def test_it_says_what_nobody_began(tmp_path: Path) -> None:
    out = answer(tmp_path, STATES, visits=[("a", MONDAY)])
    assert isinstance(out, Refusal)
    assert "no user has a row of signups" in out.reason
    assert isinstance(answer(tmp_path, STATES), Refusal)


def test_one_unit(tmp_path: Path) -> None:
    declared = {**STATES, **PAYS, "retention": {"period": "1d", "periods": 1}}
    found = result(
        tmp_path,
        declared,
        signups=[("a", MONDAY, None)],
        visits=[("a", MONDAY), ("a", MONDAY + 9 * DAY)],
        orders=[("a", MONDAY, 5.0, "1")],
        ads=[(MONDAY, 2.0)],
    )
    assert [e.value for e in cells(found, "retention").values()] == [1.0, 0.0]
    assert not cells(found, "cumulative revenue per unit")
    assert cells(found, "CAC")[None].value == 2.0
    assert {r.name for r in found.refusals} >= {"cohorts.c.revenue.(all)", "cohorts.c.payback.(all)"}
    json.dumps(found.to_dict(), allow_nan=False)


def test_nothing_closed_is_no_retention(tmp_path: Path) -> None:
    found = result(
        tmp_path, {"start": "signups", "activity": "visits"}, signups=[("a", MONDAY, None)], visits=[("a", MONDAY + 1)]
    )
    assert not cells(found, "retention")
    assert "is over as of" in found.refusals[0].reason
    assert next(c for c in found.checks if c.name == "matured").status == "fail"
    assert "none of their periods is over" in found.finding


def test_small_cells_are_hidden_and_cannot_be_had_by_difference() -> None:
    rng = random.Random(9)
    for _ in range(200):
        least, periods = rng.choice([2, 5, 10]), 4
        made = []
        for i in range(rng.randrange(1, 7)):
            units = rng.randrange(1, 25)
            eligible = sorted((rng.randrange(0, units + 1) for _ in range(periods)), reverse=True)
            active = [rng.randrange(0, n + 1) for n in eligible]
            made.append(CohortCounts(f"c{i}", units, tuple(eligible), tuple(active)))
        data = CohortsData({}, (), (), MONDAY, {}, tuple(DAY * k for k in range(periods + 1)), tuple(made))
        out = CohortMethod().answer(
            design_of({"start": "signups", "activity": "visits", "by": "plan"}, min_cell=least), data, RNG
        )
        if isinstance(out, Refusal):
            assert all(c.units < least for c in made)
            continue
        assert all(n >= least for e in out.estimates for n in e.n.values())
        for k in [None, *range(periods)]:
            estimand = "units in cohort" if k is None else "retention"
            shown = {
                e.labels["cohort"]: e.n[str(e.labels["cohort"])]
                for e in out.estimates
                if e.estimand == estimand and e.labels.get("period") == k
            }
            if "(all)" in shown:
                rest = shown.pop("(all)") - sum(shown.values())
                assert rest == 0 or rest >= least
        hidden = sum(c.units < least for c in made) + sum(
            0 < n < least for c in made if c.units >= least for n in c.eligible
        )
        assert out.left_out.get(f"cells of fewer than {least} units", 0) == hidden


def test_a_step_with_a_small_state_is_hidden_whole(tmp_path: Path) -> None:
    visits = [(f"u{i}", MONDAY + week * 7 * DAY) for week in range(4) for i in range(10 + 6 * week)]
    visits += [("few", MONDAY + 14 * DAY), ("few", MONDAY - DAY), ("last", MONDAY + 40 * DAY)]
    found = result(
        tmp_path, STATES, signups=[(f"u{i}", MONDAY, None) for i in range(10)], visits=visits, more={"min_cell": 5}
    )
    steps = {str(e.labels["period"]) for e in found.estimates if e.estimand == "units in state"}
    # "few" lapses in the week of 2 March, is back in that of 16 March, and lapses again in that of 23 March
    assert steps & {"2026-03-02", "2026-03-16", "2026-03-23"} == set()
    assert "2026-03-09" in steps


def test_every_check_is_named_and_documented(tmp_path: Path) -> None:
    signups, orders = orders_of(random.Random(6), 60, 200)
    visits = [(o[0], o[1]) for o in orders] + [("u1", MONDAY - 50 * DAY), ("u1", -DAY), ("u2", None)]
    found = result(
        tmp_path,
        {**STATES, **PAYS, "activity": "visits"},
        signups=signups,
        visits=visits,
        orders=orders,
        ads=[(MONDAY, 10.0)],
        more={"starts_us": MONDAY + 3 * DAY},
    )
    names = [c.name for c in found.checks]
    assert set(names) == set(CohortMethod.checks)
    assert len(names) == len(set(names))
    page = DOCS.read_text()
    assert all(f"`{name}`" in page for name in CohortMethod.checks)
    assert all(a.tested_by is None or a.tested_by in CohortMethod.checks for a in found.assumptions)
    by = {c.name: c for c in found.checks}
    assert by["clock"].status == "warn"
    assert "1 rows of visits before 1970" in by["clock"].detail
    assert by["before_start"].status == "warn"
    assert found.verdict == found.design == "descriptive"
    assert found.grade == ""
    words = json.dumps(found.to_dict())
    assert not any(w in words for w in ("caused", "drove", "lift"))


def test_a_unit_that_began_before_the_range_is_said_to_be_here(tmp_path: Path) -> None:
    signups = [("a", MONDAY - 5 * DAY, None), ("a", MONDAY, None), ("b", MONDAY, None)]
    found = result(
        tmp_path,
        {"start": "signups", "activity": "visits"},
        signups=signups,
        visits=[("a", MONDAY + 9 * DAY)],
        more={"starts_us": MONDAY},
    )
    check = next(c for c in found.checks if c.name == "first")
    assert (check.status, check.statistic) == ("warn", 1.0)
    assert cells(found, "units in cohort")[None].value == 2


def test_too_many_cells_are_refused() -> None:
    many = tuple(CohortCounts(f"c{i}", 5, (1,) * 121, (0,) * 121) for i in range(200))
    data = CohortsData({}, (), (), MONDAY, {}, tuple(range(122)), many)
    out = CohortMethod().answer(design_of({"start": "signups", "activity": "visits"}), data, RNG)
    assert isinstance(out, Refusal)
    assert "every: month" in out.remedy


def test_a_project_runs_it_and_spending_needs_no_unit(tmp_path: Path) -> None:
    project = make_project(
        tmp_path,
        """
        entities: {user: {id: who}}
        sources:
          signups: {table: signups, time: t}
          orders: {table: orders, time: t, id: id}
          ads: {table: ads, time: t}
        cohorts:
          won:
            start: signups
            revenue: {event: orders, value: amount}
            cost: {source: ads, column: spend}
            retention: {period: 7d, periods: 4}
            owner: growth
        """,
        """
        CREATE TABLE signups AS SELECT 'u' || i AS who, TIMESTAMP '2026-03-02' + to_hours(i) AS t FROM range(300) AS r(i);
        CREATE TABLE orders AS SELECT 'u' || (i * 7 % 300) AS who, TIMESTAMP '2026-03-02' + to_hours((i * 13 % 1200)::INT) AS t,
            (i * 31 % 1000) / 10 AS amount, i::VARCHAR AS id FROM range(2000) AS r(i);
        CREATE TABLE ads AS SELECT DATE '2026-03-02' + i::INTEGER AS t, 250.0 AS spend FROM range(14) AS r(i);
        """,
    )
    (found,) = project.run(["cohorts.won"], record=False).results
    assert (found.name, found.method, found.owner) == ("cohorts.won", "cohort", "growth")
    assert cells(found, "CAC", "2026-03-02")[None].value == pytest.approx(7 * 250 / 168)
    assert next(c for c in found.checks if c.name == "zone").status == "warn"
    assert found.provenance.as_of
    assert {s.name for s in project.plan(["cohorts.won"])} == {name for name, _ in found.provenance.sql}

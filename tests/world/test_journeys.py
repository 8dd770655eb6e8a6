"""How customers come and go: what each touchpoint is truly worth, counted slowly, and what makes journeys hard to put together."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from payoff.errors import UsageError
from payoff.world import Company, World, make_company, potential_world
from payoff.world.company import HISTORY_DAYS, TOUCHPOINTS
from payoff.world.journeys import GUEST, NO_DEVICE

SMALL = World(customers=600, days=125, seed=11, effect=6.0)
MEDIUM = World(customers=6_000, days=150, seed=3)
PERSONAL = ("home", "search", "recommendations")


@pytest.fixture(scope="module")
def small() -> Company:
    return make_company(SMALL)


@pytest.fixture(scope="module")
def medium() -> Company:
    return make_company(MEDIUM)


def rows(tables: dict[str, pa.Table], name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tables[name].to_pylist()
    return found


def sales(tables: dict[str, pa.Table]) -> dict[str, float]:
    """Conversions, revenue and margin after the start, row by row."""
    start = datetime.combine(SMALL.start, datetime.min.time())
    told = [row for row in rows(tables, "orders") if row["ordered_at"] >= start]
    return {
        "conversions": float(len(told)),
        "revenue": sum(row["amount"] for row in told),
        "margin": sum(row["amount"] * row["margin_rate"] for row in told),
    }


def difference(one: dict[str, float], zero: dict[str, float]) -> Any:
    return pytest.approx({key: one[key] - zero[key] for key in one}, abs=1e-6)


# ---------------------------------------------------------------- what each touchpoint is truly worth


@pytest.mark.parametrize("name", list(TOUCHPOINTS))
def test_the_worth_of_a_touchpoint_is_what_is_lost_without_it(small: Company, name: str) -> None:
    told = small.truth["touchpoints"][name]
    without = potential_world(SMALL, without=[name])
    assert {key: told[key] for key in ("conversions", "revenue", "margin")} == difference(
        sales(small.tables), sales(without)
    )
    assert (told["conversions"] > 0) == (name != "direct")
    surface = TOUCHPOINTS[name]
    before, after = (Counter(row["surface"] for row in rows(t, "touches")) for t in (small.tables, without))
    assert before[surface] > 0
    assert after == Counter({kind: count for kind, count in before.items() if kind != surface})


@pytest.mark.parametrize("name", PERSONAL)
def test_the_worth_of_personalising_a_surface_is_what_is_lost_when_it_is_generic(small: Company, name: str) -> None:
    plain = potential_world(SMALL, generic=[name])
    assert small.truth["touchpoints"][name]["personalised"] == difference(sales(small.tables), sales(plain))
    shown = {(row["surface"], row["variant"]) for row in rows(plain, "touches") if row["variant"] is not None}
    assert (TOUCHPOINTS[name], "personalised") not in shown
    assert len(shown) == 5


def test_worths_do_not_add_up_and_the_truth_says_by_how_much(small: Company) -> None:
    together = small.truth["together"]
    assert together["observed"] == pytest.approx(sales(small.tables))
    nothing = potential_world(SMALL, without=list(TOUCHPOINTS))
    assert together["touchpoints"] == difference(sales(small.tables), sales(nothing))
    assert rows(nothing, "touches") == []
    plain = potential_world(SMALL, generic=PERSONAL)
    assert together["personalised"] == difference(sales(small.tables), sales(plain))
    for key in ("touchpoints", "personalised"):
        assert together[f"{key}_one_by_one"]["revenue"] != pytest.approx(together[key]["revenue"], rel=0.001)
    one_by_one = sum(small.truth["touchpoints"][name]["revenue"] for name in TOUCHPOINTS)
    assert together["touchpoints_one_by_one"]["revenue"] == pytest.approx(one_by_one)


def test_all_that_is_personal_together_is_what_the_holdout_measures(small: Company, medium: Company) -> None:
    for company in (small, medium):
        told = company.truth["together"]["personalised"]["revenue"]
        assert told == pytest.approx(company.truth["true_incremental_revenue"], rel=1e-12)
    generic, plain = potential_world(SMALL, global_arm="generic"), potential_world(SMALL, generic=PERSONAL)
    for name in ("orders", "returns", "site_clicks", "carts", "checkouts", "identifies"):
        assert generic[name].equals(plain[name]), name


def test_worth_is_a_knob_that_moves_what_a_touchpoint_brings_and_not_what_comes_without_it(small: Company) -> None:
    world = replace(SMALL, worth=(0.5, 0.0, 0.3, -0.4))
    other = make_company(world)
    told = {name: other.truth["touchpoints"][name]["conversions"] for name in TOUCHPOINTS}
    assert told["home"] > small.truth["touchpoints"]["home"]["conversions"]
    assert told["search"] == other.truth["touchpoints"]["search"]["personalised"]["conversions"]
    assert told["paid_social"] < 0
    assert other.tables["touches"].equals(small.tables["touches"])
    with_knob, without = (potential_world(w, without=list(TOUCHPOINTS)) for w in (world, SMALL))
    assert with_knob == without


def test_nothing_is_worth_anything_in_the_null_world() -> None:
    truth = make_company(replace(SMALL, null=True)).truth
    for name, told in truth["touchpoints"].items():
        figures = {**told, **told.get("personalised", {})}
        assert {v for k, v in figures.items() if k not in ("spend", "personalised")} == {0.0}, name
    assert truth["together"]["touchpoints"] == {"conversions": 0.0, "revenue": 0.0, "margin": 0.0}


def test_most_advertising_for_new_customers_is_shown_to_people_who_never_sign_up(medium: Company) -> None:
    bills = rows(medium.tables, "ad_spend")
    joined = [row["signed_up_at"] for row in rows(medium.tables, "customers")]
    start = datetime.combine(MEDIUM.start, datetime.min.time()) - timedelta(days=HISTORY_DAYS)
    new = sum(at >= start for at in joined)
    assert sum(row["impressions"] for row in bills) > 1000 * new
    assert 10 < sum(row["spend"] for row in bills) / new < 50
    assert [row["billed_at"].date() for row in bills] == [(start + timedelta(days=k)).date() for k in range(len(bills))]
    assert bills[-1]["billed_at"].date() == max(joined).date()


def test_the_last_touch_before_an_order_is_seldom_what_brought_it(medium: Company) -> None:
    """By last touch recommendations and direct lead; truly it is search, and direct brings nothing."""
    start = datetime.combine(MEDIUM.start, datetime.min.time())
    credited: Counter[str] = Counter()
    for row in rows(medium.tables, "orders"):
        if row["ordered_at"] >= start:
            credited[row["last_touch"]] += 1
    truth = medium.truth["touchpoints"]
    assert max(truth, key=lambda name: float(truth[name]["conversions"])) == "search"
    assert credited["direct"] > 0.2 * sum(credited.values())
    assert truth["direct"]["conversions"] == 0.0
    assert credited["recs"] > 2 * truth["recommendations"]["conversions"] > 0
    assert truth["paid_social"]["margin"] < truth["paid_social"]["spend"]  # bought for those who were coming anyway


def test_advertising_goes_to_those_who_buy_anyway() -> None:
    tables = make_company(replace(MEDIUM, customers=4_000, null=True)).tables
    at: dict[str, list[datetime]] = defaultdict(list)
    for row in rows(tables, "orders"):
        at[row["user_id"]].append(row["ordered_at"])

    def bought(surface: str) -> float:
        told = [r for r in rows(tables, "touches") if r["surface"] == surface and r["any_id"].startswith("c")]
        hits = [any(timedelta(0) <= t - r["touched_at"] < timedelta(hours=1) for t in at[r["any_id"]]) for r in told]
        return sum(hits) / len(hits)

    assert bought("paid_social") > 1.5 * bought("direct")


def test_a_touchpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'search'"):
        potential_world(SMALL, without=["serach"])


# ---------------------------------------------------------------- devices, cookies and names


def test_customers_travel_under_several_names(medium: Company) -> None:
    names: dict[str, set[str]] = defaultdict(set)
    owners: dict[str, set[str]] = defaultdict(set)
    told = rows(medium.tables, "identifies")
    for row in told:
        names[row["user_id"]].add(row["anonymous_id"] or row["device_id"])
        owners[row["device_id"]].add(row["user_id"])
    assert sum(len(own) > 1 for user, own in names.items() if user != GUEST) > 0.5 * len(names)
    assert len(names[GUEST]) > 20
    assert len(owners[NO_DEVICE]) > 100
    shared = [d for d, who in owners.items() if d != NO_DEVICE and len(who - {GUEST}) > 1]
    assert 20 < len(shared) < 0.05 * len(owners)
    assert all(d is not None for d in owners)

    first_letter = Counter(row["any_id"][0] for row in rows(medium.tables, "touches"))
    total = sum(first_letter.values())
    assert 0.35 * total < first_letter["c"] < 0.65 * total
    assert first_letter["a"] > first_letter["d"] > 0.01 * total  # a cookie, or the device of an app


def test_most_nameless_touches_can_be_given_back_to_their_customer_and_some_cannot(medium: Company) -> None:
    known = {row["anonymous_id"] or row["device_id"] for row in rows(medium.tables, "identifies")}
    nameless = [row["any_id"] for row in rows(medium.tables, "touches") if not row["any_id"].startswith("c")]
    found = sum(name in known for name in nameless) / len(nameless)
    assert 0.6 < found < 0.97


def test_a_customer_is_recognised_once_on_each_cookie(medium: Company) -> None:
    told = [row for row in rows(medium.tables, "identifies") if row["user_id"] != GUEST]
    pairs = Counter((row["user_id"], row["anonymous_id"] or row["device_id"]) for row in told)
    seldom = sum(count > 1 for count in pairs.values())
    hidden = sum(row["device_id"] == NO_DEVICE for row in told)
    assert seldom <= hidden  # an app whose device is hidden has no other name
    assert medium.tables["identifies"].num_rows < 6 * MEDIUM.customers


def test_machines_touch_by_the_thousand_and_are_in_no_experiment(medium: Company) -> None:
    touches = Counter(row["any_id"] for row in rows(medium.tables, "touches"))
    machines = [name for name, count in touches.items() if count >= 2_000]
    assert len(machines) == 2 + MEDIUM.customers // 10_000
    assert {name[0] for name in machines} == {"a", "c"}
    assert max(count for name, count in touches.items() if name not in machines) < 500
    exposures = Counter(row["user_id"] for row in rows(medium.tables, "exposures"))
    assert max(exposures.values()) < 500
    known = {row["anonymous_id"] for row in rows(medium.tables, "identifies")}
    assert not known & {name for name in machines if name.startswith("a")}


# ---------------------------------------------------------------- carts, checkouts, pages


def test_every_order_of_a_visit_was_a_cart_and_a_checkout_first(small: Company) -> None:
    tables = small.tables
    carts = {row["cart_id"]: row for row in rows(tables, "carts")}
    begun: dict[str, list[datetime]] = defaultdict(list)
    for row in rows(tables, "checkouts"):
        assert carts[row["cart_id"]]["added_at"] < row["started_at"]
        assert carts[row["cart_id"]]["any_id"][0] != "c" or carts[row["cart_id"]]["any_id"] == row["user_id"]
        begun[row["user_id"]].append(row["started_at"])
    visits = [row for row in rows(tables, "orders") if row["session_id"] is not None]
    for row in visits:
        span = [row["ordered_at"] - at for at in begun[row["user_id"]]]
        assert any(timedelta(0) < gap < timedelta(minutes=31) for gap in span)
    assert len(visits) < tables["checkouts"].num_rows < tables["carts"].num_rows < tables["sessions"].num_rows
    recognised = {row["user_id"] for row in rows(tables, "identifies")}
    assert {row["user_id"] for row in rows(tables, "checkouts")} <= recognised


def test_touches_cover_the_lookback_and_pages_the_last_quarter(medium: Company) -> None:
    start = datetime.combine(MEDIUM.start, datetime.min.time())
    touched = [row["touched_at"] for row in rows(medium.tables, "touches")]
    assert touched[0] < start - timedelta(days=HISTORY_DAYS - 1)
    early = [row for row in rows(medium.tables, "touches") if row["touched_at"] < start]
    assert {row["variant"] for row in early} == {"generic", None}
    paid = [row for row in rows(medium.tables, "touches") if row["surface"] == "paid_social"]
    assert all(row["spend"] >= 0.10 and row["campaign"] in ("prospecting", "retargeting") for row in paid)
    assert medium.truth["touchpoints"]["paid_social"]["spend"] == pytest.approx(
        sum(row["spend"] for row in paid if row["touched_at"] >= start)
    )
    media = Counter(row["utm_medium"] for row in rows(medium.tables, "page_views") if row["page"] == "home")
    assert set(media) == {None, "organic", "paid_social", "social", "referral"}
    assert media.most_common(1)[0][0] is None

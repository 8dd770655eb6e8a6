"""Journeys over data and definitions as they come: the right number, or a reason that names the source and counts.

Every run here is also written as JSON and shown as page and terminal, which must not fail on whatever came out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from hashlib import md5
from pathlib import Path

import pytest

from payoff.errors import ConnectionFailed, DataError, DefinitionError, UsageError
from payoff.report.figures import build
from payoff.report.html import page
from payoff.report.terminal import text
from payoff.result import Refusal, Result
from payoff.run import Project, Run
from payoff.warehouse.credited import GROUPS
from payoff.warehouse.engines.duckdb import DuckDBEngine
from tests.builders import make_project, write_project

KINDS = ("attribution.credit", "funnels.buy", "cohorts.weekly", "paths.ways")
DEFINITIONS = """
entities: {user: {id: user_id}}
sources:
  visits: {table: visits, time: t, id: visit_id}
  carts: {table: carts, time: t, id: cart_id}
  orders: {table: orders, time: t, id: order_id}
touchpoints:
  web: {source: visits, by: channel}
attribution:
  credit:
    conversion: {event: orders, value: amount}
    touchpoints: [web]
    window: 30d
    models: [linear, first, last, markov]
funnels:
  buy: {steps: [visits, carts, orders], within: 14d}
cohorts:
  weekly: {start: visits, activity: visits, revenue: {event: orders, value: amount}, retention: {periods: 4}}
paths:
  ways: {touchpoints: [web], to: orders, window: 30d}
"""
# Each of 100 users visits six times, every third day from 1 March, by the four channels in turn (those of users 4k begin with seo); every
# second has a cart on 8 March, every fourth (4k) an order of $10 + 4k on 10 March: 25 orders of $1,450, each with one visit by each channel.
ROWS = """
CREATE TABLE visits AS SELECT i AS visit_id, i % 100 AS user_id, ['seo', 'ads', 'mail', 'direct'][1 + (i * 7 + i // 100) % 4] AS channel,
  TIMESTAMP '2026-03-01' + (i // 100) * INTERVAL 3 DAY + (i % 100) * INTERVAL 5 MINUTE AS t FROM range(600) r(i);
CREATE TABLE carts AS
  SELECT i AS cart_id, i AS user_id, TIMESTAMP '2026-03-08' + i * INTERVAL 5 MINUTE AS t FROM range(0, 100, 2) r(i);
CREATE TABLE orders AS SELECT i AS order_id, i AS user_id, 10.0::DOUBLE + i AS amount, TIMESTAMP '2026-03-10' + i * INTERVAL 5 MINUTE AS t
  FROM range(0, 100, 4) r(i);
"""


def small(folder: Path, extra: str = "", swap: Mapping[str, str] | None = None, root: str = "") -> Project:
    """The shop above after the SQL ``extra``; ``swap`` replaces text of its definitions."""
    definitions = DEFINITIONS
    for old, new in (swap or {}).items():
        assert old in definitions, old
        definitions = definitions.replace(old, new)
    return make_project(folder, definitions, ROWS + extra, root)


def answers(project: Project, *names: str) -> dict[str, Result | Refusal]:
    """What came out by name, once it has been written and shown."""
    run = project.run(names or KINDS, record=False)
    shown(run)
    outcomes: dict[str, Result | Refusal] = {r.name: r for r in run.results}
    return outcomes | {r.name: r for r in run.refusals}


def shown(run: Run) -> str:
    json.dumps(run.to_dict(), allow_nan=False)
    return page(build(run.to_dict())) + text(run.to_dict())


def result(project: Project, name: str) -> Result:
    found = answers(project, name)[name]
    assert isinstance(found, Result), found
    return found


def refusal(project: Project, name: str) -> Refusal:
    found = answers(project, name)[name]
    assert isinstance(found, Refusal), found
    return found


def credited(found: Result, model: str = "linear", estimand: str = "attributed conversions") -> dict[str, float]:
    return {
        str(e.labels["touchpoint"]): e.value
        for e in found.estimates
        if e.labels.get("model") == model and e.estimand == estimand
    }


def reached(found: Result) -> list[float]:
    return [e.value for e in found.estimates if e.estimand == "units reaching step" and e.segment is None]


def figures(outcomes: Mapping[str, Result | Refusal]) -> dict[str, float]:
    """Every figure and its interval, for holding one run against another."""
    return {
        f"{name}/{e.contrast}/{e.estimand}/{end}": at
        for name, found in outcomes.items()
        for e in (found.estimates if isinstance(found, Result) else ())
        for end, at in (("value", e.value), ("low", e.low), ("high", e.high))
    }


def check(found: Result, name: str) -> str:
    return next(c.detail for c in found.checks if c.name == name)


# ---------------------------------------------------------------- the shop itself


def test_the_shop(tmp_path: Path) -> None:
    found = answers(small(tmp_path))
    credit, funnel, cohort, paths = (found[name] for name in KINDS)
    assert isinstance(credit, Result)
    assert isinstance(funnel, Result)
    assert isinstance(cohort, Result)
    assert isinstance(paths, Result)
    assert credited(credit) == pytest.approx(
        dict.fromkeys(("web: seo", "web: ads", "web: mail", "web: direct"), 6.25) | {"(unattributed)": 0, "(total)": 25}
    )
    assert credited(credit, "first")["web: seo"] == credited(credit, "last")["web: direct"] == 25
    assert credited(credit, estimand="attributed value")["(total)"] == 1450
    assert reached(funnel) == [100, 50, 25]
    assert next(e.value for e in cohort.estimates if e.estimand == "revenue") == 1450
    assert paths.estimates[1].labels["path"] == "web: seo > web: ads > web: mail > web: direct"


def test_a_share_that_nobody_differs_from_is_not_sure(tmp_path: Path) -> None:
    """All 25 buyers began with seo: by Clopper and Pearson at least 86.3% of buyers do, were each in a group of its own.

    Two of them share one of the 512 groups, of which only the sum is kept: they count as Kish's effective number of units.
    """
    together = Counter(int(md5(str(user).encode()).hexdigest()[:15], 16) % GROUPS for user in range(0, 100, 4))
    units = 25**2 / sum(n**2 for n in together.values())
    assert units == 25**2 / 27
    found = result(small(tmp_path), "attribution.credit")
    shares = {
        (e.labels["touchpoint"], e.estimand): e
        for e in found.estimates
        if e.labels["model"] == "first" and e.unit == "share"
    }
    seo = shares["web: seo", "share of conversions"]
    assert (seo.value, seo.low, seo.high) == pytest.approx((1.0, 0.025 ** (1 / units), 1.0))
    assert all(e.low <= e.value <= e.high <= 1 and e.low < e.high for e in shares.values())
    assert "100.000000" not in found.finding


# ---------------------------------------------------------------- rows that are wrong


FAULTS = {
    "before 1970": ("UPDATE {t} SET t = '1950-01-01' WHERE {t_id} < 9", "rows of {t} dated before 1970"),
    "future": ("UPDATE {t} SET t = '2190-01-01' WHERE {t_id} < 9", "rows of {t} dated in the future"),
    "no time": ("UPDATE {t} SET t = NULL WHERE {t_id} < 9", "rows of {t} without a time"),
    "infinite": ("UPDATE {t} SET t = 'infinity' WHERE {t_id} < 9", "rows of {t} without a time"),
    "minus infinite": ("UPDATE {t} SET t = '-infinity' WHERE {t_id} < 9", "rows of {t} without a time"),
    "no unit": ("UPDATE {t} SET user_id = NULL WHERE {t_id} < 9", "rows of {t} without a unit"),
    "twice": ("INSERT INTO {t} SELECT * FROM {t} WHERE {t_id} < 9", "rows of {t} that repeat an id"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("table", "count"), [("visits", 9), ("orders", 3)])
def test_rows_that_do_not_enter_are_named_with_their_source_and_count(
    tmp_path: Path, fault: str, table: str, count: int
) -> None:
    statement, reason = (s.format(t=table, t_id=f"{table[:-1]}_id") for s in FAULTS[fault])
    found = answers(small(tmp_path, statement))
    for name, outcome in found.items():
        assert isinstance(outcome, Result), outcome
        if not (
            fault == "twice" and table == "visits" and name == "cohorts.weekly"
        ):  # a visit twice is one active unit
            assert outcome.left_out[reason.format(t=table)] == count, name
    credit, funnel = found["attribution.credit"], found["funnels.buy"]
    assert isinstance(credit, Result)
    assert isinstance(funnel, Result)
    orders = 25 if table == "visits" or fault == "twice" else 22
    assert credited(credit)["(total)"] == sum(v for k, v in credited(credit).items() if k != "(total)") == orders
    # users 0 to 8 lose their first visit, and enter later, with too little time left to be counted
    entered = 91 if table == "visits" and fault != "twice" else 100
    assert reached(funnel)[0] == entered


def test_a_channel_that_is_not_known_is_a_touchpoint_of_its_own(tmp_path: Path) -> None:
    found = answers(small(tmp_path, "UPDATE visits SET channel = NULL WHERE channel = 'seo'"))
    credit, paths = found["attribution.credit"], found["paths.ways"]
    assert isinstance(credit, Result)
    assert isinstance(paths, Result)
    assert credited(credit, "first")["web: (none)"] == 25
    assert "150 touches of web have no value" in check(credit, "channels")
    assert "150 rows of web" in check(paths, "names")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("'nan'", "3 values"),
        ("'inf'", "3 values"),
        ("1e300", "beyond 1e"),
        ("-1e308", "beyond 1e"),
    ],
)
def test_values_that_are_no_amounts(tmp_path: Path, value: str, reason: str) -> None:
    found = answers(small(tmp_path, f"UPDATE orders SET amount = {value} WHERE order_id < 9"))
    for name in ("attribution.credit", "cohorts.weekly"):
        outcome = found[name]
        assert isinstance(outcome, Refusal)
        assert "source 'orders', column 'amount': 3 values" in outcome.reason
        assert reason in outcome.reason
    assert isinstance(found["funnels.buy"], Result)


def test_values_without_a_figure_of_their_own(tmp_path: Path) -> None:
    """NULL adds nothing and is counted; decimals are as doubles; text is refused with what to write."""
    plain = figures(answers(small(tmp_path / "plain")))
    decimal = small(tmp_path / "decimal", "ALTER TABLE orders ALTER amount TYPE DECIMAL(18, 4)")
    assert figures(answers(decimal)) == pytest.approx(plain)
    credit = result(small(tmp_path / "null", "UPDATE orders SET amount = NULL WHERE order_id < 9"), KINDS[0])
    assert credited(credit)["(total)"] == 25
    assert credited(credit, estimand="attributed value")["(total)"] == 1450 - 10 - 14 - 18
    assert "3 conversions of orders have no value" in check(credit, "values")
    words = small(tmp_path / "text", "ALTER TABLE orders ALTER amount TYPE VARCHAR")
    assert "CAST(amount AS DOUBLE)" in refusal(words, KINDS[0]).reason


@pytest.mark.parametrize(("to", "total"), [("-amount", -1450), ("0", 0), ("(order_id // 4) % 2 * 10 - 5", -5)])
def test_values_below_zero_and_of_zero(tmp_path: Path, to: str, total: float) -> None:
    """A total that cannot be told from zero has credit, and no shares; one below zero has both."""
    credit = result(small(tmp_path, f"UPDATE orders SET amount = {to}"), "attribution.credit")
    worth = credited(credit, estimand="attributed value")
    assert worth["(total)"] == total
    assert sum(v for k, v in worth.items() if k != "(total)") == pytest.approx(total)
    shares = credited(credit, estimand="share of value")
    if total == -1450:
        assert shares["web: seo"] == pytest.approx(0.25)
    else:
        assert not shares
        assert any("cannot be told from zero" in r.reason for r in credit.refusals)
    assert credited(credit, estimand="share of conversions")["web: seo"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("time", "remedy"),
    [("VARCHAR", "CAST(t AS TIMESTAMP)"), ("BIGINT USING epoch_us(t)", "to_timestamp(t)"), ("TIME USING t::TIME", "t")],
)
def test_times_that_are_no_times(tmp_path: Path, time: str, remedy: str) -> None:
    for outcome in answers(small(tmp_path, f"ALTER TABLE visits ALTER t TYPE {time}")).values():
        assert isinstance(outcome, Refusal)
        assert "source 'visits', column 't'" in outcome.reason
        assert remedy in outcome.reason


def test_units_are_the_same_as_numbers_and_as_text(tmp_path: Path) -> None:
    plain = answers(small(tmp_path / "plain"))
    mixed = answers(
        small(
            tmp_path / "mixed",
            "ALTER TABLE visits ALTER user_id TYPE VARCHAR; ALTER TABLE carts ALTER user_id TYPE DOUBLE;"
            "ALTER TABLE orders ALTER user_id TYPE DECIMAL(9, 2)",
        )
    )
    for name in ("funnels.buy", "cohorts.weekly", "paths.ways"):
        assert figures({name: mixed[name]}) == pytest.approx(figures({name: plain[name]}))
    credit = mixed["attribution.credit"]
    assert isinstance(credit, Result)
    assert credited(credit)["web: seo"] == pytest.approx(6.25)


def test_units_that_are_written_unlike_are_not_taken_for_others(tmp_path: Path) -> None:
    found = answers(
        small(tmp_path, "ALTER TABLE visits ALTER user_id TYPE VARCHAR; UPDATE visits SET user_id = 'u' || user_id")
    )
    credit, paths = found["attribution.credit"], found["paths.ways"]
    assert isinstance(credit, Refusal)
    assert isinstance(paths, Result)
    assert "name units alike" in credit.remedy
    assert "25 of 25 journeys met no touchpoint" in check(paths, "touched")
    funnel = found["funnels.buy"]
    assert isinstance(funnel, Result)
    assert "none has rows of both 'visits' and 'carts'" in check(funnel, "steps")


# ---------------------------------------------------------------- little or nothing


@pytest.mark.parametrize("how", ["DELETE FROM {}", "UPDATE {} SET user_id = NULL", "UPDATE {} SET t = NULL"])
def test_sources_without_a_row_that_enters(tmp_path: Path, how: str) -> None:
    found = answers(small(tmp_path / "visits", how.format("visits")))
    for outcome in found.values():
        assert isinstance(outcome, Refusal), outcome
        assert ("600 rows of visits without a" in outcome.reason) == (not how.startswith("DELETE"))
    found = answers(small(tmp_path / "orders", how.format("orders")))
    assert isinstance(found["attribution.credit"], Refusal)
    assert isinstance(found["paths.ways"], Refusal)
    assert isinstance(found["cohorts.weekly"], Result)
    funnel = found["funnels.buy"]
    assert isinstance(funnel, Result)
    assert reached(funnel) == [100, 50, 0]
    last = next(e for e in funnel.estimates if e.labels["step"] == "orders" and e.unit == "share")
    assert last.low < last.high
    if not how.startswith("DELETE"):
        assert funnel.left_out["rows of orders without a " + ("unit" if "user_id" in how else "time")] == 25


def test_one_unit_says_what_it_is_and_no_more(tmp_path: Path) -> None:
    extra = ";".join(f"DELETE FROM {t} WHERE user_id <> 0" for t in ("visits", "carts", "orders"))
    found = answers(small(tmp_path, extra))
    credit, funnel = found["attribution.credit"], found["funnels.buy"]
    assert isinstance(credit, Result)
    assert isinstance(funnel, Result)
    assert credited(credit)["web: seo"] == 0.25
    assert not credited(credit, estimand="share of conversions")
    assert reached(funnel) == [1, 1, 1]
    for e in (*credit.estimates, *funnel.estimates):
        assert e.low < e.high or e.n.get("reached") == e.n.get("entrants") == 1, (e.contrast, e.estimand)


def test_everything_at_one_instant(tmp_path: Path) -> None:
    found = answers(
        small(tmp_path, "".join(f"UPDATE {t} SET t = '2026-03-01';" for t in ("visits", "carts", "orders")))
    )
    credit = found["attribution.credit"]
    assert isinstance(credit, Result)
    assert credited(credit)["web: seo"] == pytest.approx(25 / 3)  # two of six visits
    assert isinstance(found["funnels.buy"], Refusal)  # nobody's window has passed
    assert isinstance(found["cohorts.weekly"], Result)


def test_conversions_before_every_touch_and_touches_after_alone(tmp_path: Path) -> None:
    for folder, extra in (
        ("early", "UPDATE orders SET t = '2026-02-01'"),
        ("late", "DELETE FROM visits WHERE t < '2026-03-11'"),
    ):
        found = answers(small(tmp_path / folder, extra))
        credit, cohort = found["attribution.credit"], found["cohorts.weekly"]
        assert isinstance(credit, Refusal)
        assert isinstance(cohort, Result)
        assert "none of 25 conversions has a touch in the 30d before it" in credit.reason
        assert cohort.left_out["rows of orders before their unit's start"] == 25


# ---------------------------------------------------------------- names


HOSTILE = (
    "it's \"q\"", "line\nbreak", "line\\nbreak", "(unattributed)", "(total)", "(other)", "'(other)'", "(none)", "(too few units)",
    "<script>alert(1)</script>", "{{x}} $y %s", "$codes", "[red]x[/]", "a > b", "\\", "", " ", "😀", "שלום", "x" * 500, "x" * 500 + "y",
)  # fmt: skip


def test_values_of_a_touchpoint_are_text_and_nothing_else(tmp_path: Path) -> None:
    quoted = ", ".join("'" + v.replace("'", "''").replace("\n", "' || chr(10) || '") + "'" for v in HOSTILE)
    project = small(
        tmp_path,
        f"UPDATE visits SET channel = CASE WHEN visit_id % 7 < 6 THEN ([{quoted}])[1 + user_id % {len(HOSTILE)}] END",
    )
    run = project.run(["attribution.credit", "paths.ways"], record=False)
    shown(run)
    assert "<script>alert" not in page(build(run.to_dict()))
    credit = next(r for r in run.results if r.method == "attribution")
    names = [
        e.labels["touchpoint"] for e in credit.estimates if e.labels["model"] == "linear" and e.unit == "conversions"
    ]
    assert len(names) == len(set(names)) == len(HOSTILE) + 3  # (none), (unattributed), (total)
    assert {"web: '(other)'", "web: ''(other)''", "web: (none)", "web: ''", "web: ' '"} <= set(names)
    assert sum(v for k, v in credited(credit).items() if k != "(total)") == pytest.approx(25)


def test_columns_may_be_called_as_they_like(tmp_path: Path) -> None:
    plain = figures(answers(small(tmp_path / "plain")))
    taken = (
        *(
            "us",
            "unit",
            "code",
            "g",
            "mark",
            "value",
            "kind",
            "n",
            "m",
            "it",
            "base",
            "told",
            "personalised",
            "cost",
            "rn",
        ),
        *("id", "own", "step", "t0", "entry", "worth", "w", "c", "k", "u", "cid", "uid", "age", "pos", "session_unit"),
    )
    extra = "".join(
        f"ALTER TABLE {t} ADD COLUMN {c} VARCHAR DEFAULT 'zz';" for t in ("visits", "carts", "orders") for c in taken
    )
    assert figures(answers(small(tmp_path / "taken", extra))) == pytest.approx(plain)
    renamed = small(
        tmp_path / "renamed",
        "ALTER TABLE visits RENAME channel TO unit; ALTER TABLE orders RENAME amount TO us;"
        "ALTER TABLE visits RENAME visit_id TO code;",
        {"by: channel": "by: unit", "value: amount": "value: us", "id: visit_id": "id: code"},
    )
    assert figures(answers(renamed)) == pytest.approx(plain)


def test_names_of_definitions(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="is not a name"):
        small(tmp_path / "dot", swap={"  buy:": "  a.b:"})
    same = small(tmp_path / "same", swap={"  ways:": "  buy:"})
    with pytest.raises(UsageError, match=r"say funnels\.buy or paths\.buy"):
        same.run(["buy"], record=False)
    found = answers(same, "funnels.buy", "paths.buy")
    assert {r.method for r in found.values() if isinstance(r, Result)} == {"funnel", "path"}


# ---------------------------------------------------------------- definitions


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("[{time_decay: {half_life: 0d}}]", "longer than zero"),
        ("[{position: [0.4, 0.4, 0.4]}]", "add up to 1, not 1.2"),
        ("[{position: [0.5, -0.5, 1]}]", "at least 0"),
        ("[{position: [.nan, 0.5, 0.5]}]", "not infinite"),
        ("[linear, linear]", "two models go by one name"),
        ("[lienar]", "did you mean 'linear'"),
        ("[]", "at least one"),
    ],
)
def test_models_that_are_none(tmp_path: Path, models: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=message) as error:
        small(tmp_path, swap={"[linear, first, last, markov]": models})
    assert re.match(r"definitions/all\.yml:1[04]:", str(error.value))


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        ("0", "25 conversions have touches that all weigh 0"),
        ("-1", "100 touches have a weight below zero"),
        ("1 / 0", "infinite or not a number"),
        ("nope", "has no column 'nope'"),
        ("touchpoint", "weight"),
    ],
)
def test_weights_that_are_none(tmp_path: Path, weight: str, reason: str) -> None:
    alone = refusal(
        small(tmp_path / "alone", swap={"[linear, first, last, markov]": f"[{{custom: {weight}}}]"}), KINDS[0]
    )
    assert reason in alone.reason
    beside = result(small(tmp_path / "beside", swap={"last, markov]": f"last, {{custom: {weight}}}]"}), KINDS[0])
    assert credited(beside)["(total)"] == 25
    assert any(reason in r.reason for r in beside.refusals)


def test_what_leads_to_a_touchpoint_has_credit_of_a_chain_though_no_buyer_met_it(tmp_path: Path) -> None:
    """Two buy after seo; one goes from ads to seo and does not. Without seo none buys, without ads 4/9 in place of 2/3 do: the
    removal effects 1 and 1/3 share two conversions, and credit adds up to them."""
    extra = """
    DELETE FROM orders WHERE order_id > 4; DELETE FROM visits;
    INSERT INTO visits VALUES (1, 0, 'seo', '2026-03-09'), (2, 4, 'seo', '2026-03-09'), (3, 7, 'ads', '2026-03-01'),
      (4, 7, 'seo', '2026-03-02');
    """
    found = result(small(tmp_path, extra), "attribution.credit")
    assert credited(found, "markov") == pytest.approx(
        {"web: seo": 1.5, "web: ads": 0.5, "(unattributed)": 0, "(total)": 2}
    )
    assert credited(found, "last") == {"web: seo": 2, "web: ads": 0, "(unattributed)": 0, "(total)": 2}


def test_a_step_that_repeats(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="the step 'visits' is there twice"):
        small(tmp_path / "twice", swap={"[visits, carts, orders]": "[visits, visits, orders]"})
    again = small(
        tmp_path / "again",
        "DELETE FROM visits WHERE user_id % 4 = 1 AND t > '2026-03-04'",
        {"[visits, carts, orders]": "[visits, {name: again, source: visits}, orders]"},
    )
    assert reached(result(again, "funnels.buy")) == [100, 75, 25]  # a quarter has no second visit


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ("starts: 2026-03-02, ends: 2026-03-02", "nobody entered"),
        ("starts: 2190-01-01", "nobody entered"),
        ("within: 3000d", "still inside their window of 3000d"),
    ],
)
def test_ranges_and_windows_that_hold_nobody(tmp_path: Path, bounds: str, reason: str) -> None:
    swap = {"within: 14d": bounds if "within" in bounds else f"within: 14d, {bounds}"}
    assert reason in refusal(small(tmp_path, swap=swap), "funnels.buy").reason


def test_ranges_that_end_before_they_start(tmp_path: Path) -> None:
    for i, place in enumerate(("within: 14d", "retention: {periods: 4}", "to: orders, window: 30d")):
        with pytest.raises(DefinitionError, match="'ends' comes before 'starts'"):
            small(tmp_path / str(i), swap={place: f"{place}, starts: 2026-03-02, ends: 2026-03-01"})


def test_a_window_longer_than_the_data_and_one_of_a_moment(tmp_path: Path) -> None:
    long = result(small(tmp_path / "long", swap={"    window: 30d\n": "    window: 36525d\n"}), KINDS[0])
    assert credited(long)["web: seo"] == 6.25
    short = result(small(tmp_path / "short", swap={"    window: 30d\n": "    window: 1s\n"}), KINDS[0])
    assert credited(short)["web: direct"] == 25  # the visit at the very time of the order


# ---------------------------------------------------------------- clocks


def test_the_hour_that_is_there_twice(tmp_path: Path) -> None:
    """From 01:30 to 03:30 of 25 October 2026 are three hours in Berlin, and two in UTC; a day from noon to noon has 25."""
    rows = """
    CREATE TABLE visits AS SELECT i AS user_id, TIMESTAMP '2026-10-25 01:30' AS t FROM range(40) r(i);
    CREATE TABLE carts AS SELECT i AS user_id, TIMESTAMP '2026-10-25 03:30' AS t FROM range(40) r(i);
    CREATE TABLE orders AS SELECT i AS user_id, TIMESTAMPTZ '2026-10-26 00:30:00Z' AS t FROM range(40) r(i);
    """
    definitions = """
    entities: {user: {id: user_id}}
    sources: {visits: {table: visits, time: t}, carts: {table: carts, time: t}, orders: {table: orders, time: t}}
    funnels: {f: {steps: [visits, carts, orders], within: WITHIN}}
    """
    for zone, hours in (("Europe/Berlin", 3), ("UTC", 2)):
        project = make_project(
            tmp_path / f"{hours} more",
            definitions.replace("WITHIN", "26h").replace(
                "carts: {table: carts, time: t}", "carts: {table: carts, time: t, through: 2026-11-01}"
            ),
            rows + "INSERT INTO visits VALUES (99, '2026-10-28'); INSERT INTO orders VALUES (98, '2026-10-30');",
            f"timezone: {zone}\n",
        )
        found = result(project, "funnels.f")
        waits = {e.metric: e.value for e in found.estimates if e.estimand == "median time from the step before"}
        assert waits["carts"] == hours * 3600
        # 00:30 UTC of the 26th is 01:30 in Berlin, 22 hours after 03:30 there
        assert waits["orders"] == (22 if zone == "Europe/Berlin" else 21) * 3600


def test_dates_without_hours(tmp_path: Path) -> None:
    extra = "".join(f"ALTER TABLE {t} ALTER t TYPE DATE;" for t in ("visits", "carts", "orders"))
    found = answers(small(tmp_path, extra))
    credit, funnel = found["attribution.credit"], found["funnels.buy"]
    assert isinstance(credit, Result)
    assert isinstance(funnel, Result)
    assert credited(credit)["web: direct"] == 6.25  # a visit on the day of the order is before it
    assert reached(funnel) == [100, 50, 25]
    assert "steps of one day count as in order" in check(funnel, "clock")
    assert next(e.value for e in funnel.estimates if e.estimand.startswith("median")) == 7 * 86400


# ---------------------------------------------------------------- money spent


SPEND = {
    "touchpoints:\n": "  spend: {table: spend, time: t}\ntouchpoints:\n",
    "by: channel}": "by: channel, cost: {source: spend, column: m}}",
    "{periods: 4}": "{periods: 4}, cost: {source: spend, column: m}",
}


@pytest.mark.parametrize(
    "rows", ["WHERE false", "", "UNION ALL SELECT TIMESTAMP '2026-03-02', -7.0"], ids=["empty", "zero", "negative"]
)
def test_spending_of_nothing_gives_no_ratio(tmp_path: Path, rows: str) -> None:
    extra = f"CREATE TABLE spend AS SELECT TIMESTAMP '2026-03-02' AS t, 0.0::DOUBLE AS m {rows}"
    found = answers(small(tmp_path, extra, SPEND), "attribution.credit", "cohorts.weekly")
    credit, cohort = found["attribution.credit"], found["cohorts.weekly"]
    assert isinstance(credit, Result)
    assert isinstance(cohort, Result)
    assert "nothing is held against it" in check(credit, "costs")
    assert not [e for e in credit.estimates if "cost" in e.estimand]
    assert not [e for e in cohort.estimates if e.estimand in ("CAC", "payback")]


def test_spending_that_is_no_number_names_its_source(tmp_path: Path) -> None:
    extra = "CREATE TABLE spend AS SELECT TIMESTAMP '2026-03-02' AS t, 'inf'::DOUBLE AS m"
    for outcome in answers(small(tmp_path, extra, SPEND), "attribution.credit", "cohorts.weekly").values():
        assert isinstance(outcome, Refusal)
        assert "source 'spend'" in outcome.reason


# ---------------------------------------------------------------- held against an experiment


HELD = {
    "time: t, id: order_id}": "time: t, id: order_id, through: 2026-04-01}",
    "touchpoints:\n": "  seen: {table: seen, time: t}\ntouchpoints:\n",
    "by: channel}": "by: channel, personalised: \"channel = 'seo'\"}",
    "    window: 30d\n    models": "    reconcile_with: hold\n    window: 30d\n    models",
    "paths:\n": """metrics:
  spent: {kind: sum, from: orders, column: amount, window: 20d}
experiments:
  hold: {type: holdout, assignment: {source: seen, variant: arm, control: 'off'}, primary: spent}
paths:
""",
}
SEEN = """CREATE TABLE seen AS SELECT i AS user_id, CASE WHEN i % 5 = 0 THEN 'off' ELSE 'on' END AS arm, TIMESTAMP '2026-02-26' AS t
  FROM range(100) r(i);"""


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ("DELETE FROM seen WHERE arm = 'off'", "'off'"),
        ("DELETE FROM seen WHERE arm = 'on'", "one arm only"),
        ("DELETE FROM seen", "source 'seen' has no row"),
        ("UPDATE seen SET arm = NULL", "none of the 100 rows of 'seen'"),
        ("INSERT INTO seen SELECT user_id, CASE arm WHEN 'on' THEN 'off' ELSE 'on' END, t FROM seen", "100 w"),
        ("UPDATE orders SET amount = 0", "no metric can be read"),
    ],
)
def test_experiments_that_credit_cannot_be_held_against(tmp_path: Path, extra: str, why: str) -> None:
    found = result(small(tmp_path, SEEN + extra, HELD), "attribution.credit")
    assert credited(found)["(total)"] == 25
    assert not found.closer.reconciliation
    assert why in check(found, "reconciled")


def test_nothing_personalised_and_several_arms(tmp_path: Path) -> None:
    none = result(
        small(tmp_path / "none", SEEN + "UPDATE visits SET channel = 'x' WHERE channel = 'seo'", HELD), KINDS[0]
    )
    assert not none.closer.reconciliation
    assert "no personalised touchpoint is credited" in check(none, "reconciled")
    several = result(
        small(tmp_path / "several", SEEN + "UPDATE seen SET arm = 'more' WHERE user_id % 5 = 1", HELD), KINDS[0]
    )
    assert {r.contrast for r in several.closer.reconciliation} >= {"on vs off"}
    for told in several.closer.reconciliation:
        if told.model == "first":
            assert told.incremental.low < told.incremental.value < told.incremental.high


def test_an_experiment_on_users_joined_from_devices(tmp_path: Path) -> None:
    """The treated were seen by their device alone; joined to users, their mean is that of all who were treated."""
    joined = {
        **HELD,
        "{id: user_id}}": "{id: user_id, aliases: [device_id], identity: {source: logins}}}",
        "sources:\n": "sources:\n  logins: {table: logins, time: t}\n",
    }
    extra = f"""{SEEN} CREATE TABLE logins AS SELECT i AS user_id, 'd' || i AS device_id, TIMESTAMP '2026-02-01' AS t FROM range(100) r(i);
      ALTER TABLE seen ALTER user_id TYPE VARCHAR; UPDATE seen SET user_id = 'd' || user_id WHERE arm = 'on';"""
    found = answers(small(tmp_path, extra, joined), "experiments.hold", "attribution.credit")
    hold, credit = found["experiments.hold"], found["attribution.credit"]
    assert isinstance(hold, Result)
    assert isinstance(credit, Result)
    means = {a.arm: (a.n, a.value) for a in hold.arms}
    treated = [i for i in range(100) if i % 5]
    assert means["on"] == (80, pytest.approx(sum(10 + i for i in treated if i % 4 == 0) / 80))
    assert means["off"] == (20, pytest.approx(sum(10 + i for i in range(0, 100, 20)) / 20))
    (told,) = credit.closer.stitching
    assert (told.pairs, told.ids, told.units) == (99, 198, 99)


# ---------------------------------------------------------------- identity and sessions


JOINED = {
    "{id: user_id}}": "{id: user_id, aliases: [device_id], identity: {source: logins}}}",
    "sources:\n": "sources:\n  logins: {table: logins, time: t}\n",
}
LOGINS = """CREATE TABLE logins AS SELECT i AS user_id, 'd' || i AS device_id, TIMESTAMP '2026-02-01' AS t FROM range(100) r(i);
  ALTER TABLE visits ALTER user_id TYPE VARCHAR; UPDATE visits SET user_id = 'd' || user_id;
"""
KIOSK = "INSERT INTO logins SELECT i, 'kiosk', TIMESTAMP '2026-02-01' FROM range(50) r(i);"


def test_a_device_that_half_of_all_users_share(tmp_path: Path) -> None:
    plain = result(small(tmp_path / "plain", LOGINS, JOINED), "funnels.buy")
    assert reached(plain) == [100, 49, 24]  # 0 stands for nobody, and the device d0 is by itself
    too_many = result(small(tmp_path / "many", LOGINS + KIOSK, JOINED), "funnels.buy")
    assert reached(too_many) == [100, 25, 12]  # the first 49 joined nothing, and their devices have no order
    (told,) = too_many.closer.stitching
    assert told.shared == (("kiosk", 49),)
    assert told.too_large[0][1] == 99
    assert "1 group of more than 50 ids (99 ids" in told.sentence
    one = result(small(tmp_path / "merged", LOGINS + KIOSK, _with(JOINED, "max_size: 200")), "funnels.buy")
    assert reached(one) == [52, 26, 13]
    assert "whoever shares one was joined" in one.closer.stitching[0].sentence
    apart = result(small(tmp_path / "apart", LOGINS + KIOSK, _with(JOINED, "shared: apart")), "funnels.buy")
    assert reached(apart) == [100, 49, 24]
    assert "their pairs were left out" in apart.closer.stitching[0].sentence


def _with(swap: Mapping[str, str], key: str) -> dict[str, str]:
    return {old: new.replace("{source: logins}", f"{{source: logins, {key}}}") for old, new in swap.items()}


@pytest.mark.parametrize(
    ("extra", "key", "why"),
    [
        ("DELETE FROM logins", "", "no row holds two of user_id, device_id"),
        ("UPDATE logins SET device_id = NULL", "", "no row holds two of user_id, device_id"),
        ("UPDATE logins SET device_id = 'guest'", "", "100 kinds of rows with several ids joins two"),
        ("UPDATE logins SET t = NULL", "lookback: 90d", "100 rows have no time, which lookback needs"),
    ],
)
def test_an_identity_that_joins_nothing(tmp_path: Path, extra: str, key: str, why: str) -> None:
    project = small(tmp_path, LOGINS + extra, _with(JOINED, key) if key else JOINED)
    with pytest.raises(DataError, match=why) as error:
        project.run(["funnels.buy"], record=False)
    assert error.value.source == "logins"


SESSIONS = {
    "touchpoints:\n": "  sessions: {sessions: {of: visits, channels: [{name: A, when: \"channel = 'seo'\"}, {name: B}]}}\ntouchpoints:\n",
    "web: {source: visits": "web: {source: sessions",
}


def test_sessions_of_rows_without_a_time_or_a_unit(tmp_path: Path) -> None:
    whole = result(small(tmp_path / "whole", swap=SESSIONS), KINDS[0])
    assert credited(whole) == pytest.approx({"web: A": 6.25, "web: B": 18.75, "(unattributed)": 0, "(total)": 25})
    assert not whole.left_out
    extra = "UPDATE visits SET t = NULL WHERE visit_id < 20; UPDATE visits SET user_id = NULL WHERE visit_id >= 590;"
    found = answers(small(tmp_path / "some", extra, SESSIONS), "attribution.credit", "paths.ways")
    for outcome in found.values():
        assert isinstance(outcome, Result)
        assert (
            outcome.left_out
            == {
                "rows of visits without a unit, in no session": 10,
                "rows of visits without a time, in no session": 20,
            }
            or outcome.method == "path"
        )
        assert outcome.left_out["rows of visits without a time, in no session"] == 20
    none = refusal(small(tmp_path / "none", "UPDATE visits SET t = NULL", SESSIONS), KINDS[0])
    assert "600 rows of visits without a time, in no session" in none.reason


def test_channels_of_columns_that_are_not_there(tmp_path: Path) -> None:
    swap = {
        **SESSIONS,
        "touchpoints:\n": "  sessions: {sessions: {of: visits, channels: {preset: ga4}}}\ntouchpoints:\n",
    }
    with pytest.raises(DefinitionError, match="source 'visits' has no column 'utm_source'") as error:
        small(tmp_path, swap=swap).run(["attribution.credit"], record=False)
    assert error.value.exit_code == 3
    assert "'utm_medium'" in str(error.value)


def test_sessions_of_sessions(tmp_path: Path) -> None:
    swap = {old: new.replace("of: visits", "of: sessions") for old, new in SESSIONS.items()}
    with pytest.raises(DefinitionError, match="name a source of rows"):
        small(tmp_path, swap=swap)


# ---------------------------------------------------------------- small groups


def test_no_group_smaller_than_the_smallest_shown_can_be_had_by_difference(tmp_path: Path) -> None:
    """Three users came by a channel of their own: neither they nor what all others leave over is told."""
    extra = "UPDATE visits SET channel = 'rare' WHERE user_id IN (4, 8, 12)"
    project = small(tmp_path, extra, {"within: 14d": "within: 14d, by: channel"}, "defaults: {min_cell: 20}\n")
    run = project.run(KINDS, record=False)
    shown(run)
    for found in run.results:
        said = found.to_dict()
        said.pop("provenance")  # the SQL, which names values and no figures
        assert "rare" not in json.dumps(said)
    paths = next(r for r in run.results if r.method == "path")
    assert [e.labels["path"] for e in paths.estimates] == ["(all)", "(all)"]
    assert paths.closer.flow is None
    funnel = next(r for r in run.results if r.method == "funnel")
    entered = {e.segment: e.value for e in funnel.estimates if e.unit == "units" and e.labels["position"] == 1}
    assert 100 - sum(v for k, v in entered.items() if k is not None) >= 20
    credit = next(r for r in run.results if r.method == "attribution")
    for e in credit.estimates:
        assert not 0 < e.n.get("converting units", 0) < 20


# ---------------------------------------------------------------- size


def test_a_bot_of_many_touches_is_capped_and_named(tmp_path: Path) -> None:
    extra = """
    INSERT INTO visits SELECT 1000 + i, 999, 'bot', TIMESTAMP '2026-03-02' + i * INTERVAL 3 SECOND FROM range(200000) r(i);
    INSERT INTO orders SELECT 1000 + i, 999, 1.0, TIMESTAMP '2026-03-09' + i * INTERVAL 1 MINUTE FROM range(100) r(i);
    """
    credit = result(small(tmp_path, extra), "attribution.credit")
    assert "1 units have more than 100,000 pairs" in check(credit, "cap")
    assert "bots" in check(credit, "cap")
    (lost,) = [n for reason, n in credit.left_out.items() if "newest" in reason]
    inside = [sum(1 for i in range(200000) if 3 * i <= 7 * 86400 + 60 * k) for k in (0, 99)]
    assert 100 * inside[0] - 100 * 1000 <= lost <= 100 * inside[1] - 100 * 1000
    found = credited(credit)
    assert found["web: bot"] == pytest.approx(100)
    assert found["(total)"] == 125


def test_little_memory_and_nowhere_to_spill(tmp_path: Path) -> None:
    extra = """
    INSERT INTO visits SELECT 1000 + i, 1000 + i % 60000, 'ads', TIMESTAMP '2026-03-02' + i * INTERVAL 1 SECOND FROM range(400000) r(i);
    INSERT INTO orders SELECT 1000 + i, 1000 + i, 1.0, TIMESTAMP '2026-03-09' FROM range(60000) r(i);
    """
    write_project(tmp_path, DEFINITIONS, ROWS + extra)
    settings = (tmp_path / "payoff.yml").read_text()
    plain = answers(Project.load(tmp_path))
    (tmp_path / "payoff.yml").write_text(
        settings.replace("data.duckdb}", "data.duckdb, memory_limit: 100MB, threads: 1}")
    )
    assert figures(answers(Project.load(tmp_path))) == pytest.approx(figures(plain))
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "payoff.yml").write_text(
        settings.replace("data.duckdb}", "data.duckdb, memory_limit: 100MB, temp_directory: taken}")
    )
    with pytest.raises(ConnectionFailed, match="no folder to spill to"):
        Project.load(tmp_path).run(KINDS, record=False)
    (tmp_path / "payoff.yml").write_text(settings.replace("data.duckdb}", "data.duckdb, memory_limit: 3MB}"))
    with pytest.raises(ConnectionFailed, match="Raise memory_limit"):
        Project.load(tmp_path).run(KINDS, record=False)


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stops a run in the middle leaves nothing in the ledger, and the next run is whole."""
    project, fetch, calls = small(tmp_path), DuckDBEngine.fetch, []

    def stop(self: DuckDBEngine, *args: object, **more: object) -> object:
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return fetch(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(DuckDBEngine, "fetch", stop)
    with pytest.raises(KeyboardInterrupt):
        project.run(KINDS)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="no run of this project is stored yet"):
        project.verify()
    assert len(project.run(KINDS).results) == 4
    assert project.verify().equal


# ---------------------------------------------------------------- again, and otherwise asked


def test_the_same_seed_gives_the_same_figures_and_verify_finds_them_equal(tmp_path: Path) -> None:
    project = small(tmp_path)
    first, second = (project.run(KINDS, seed=7).to_dict() for _ in range(2))
    for a, b in zip(first["results"], second["results"], strict=True):
        for found in (a, b):  # what differs is until when a row is not in the future, in the SQL
            found["provenance"].pop("sql")
        assert a == b
    for name in KINDS:
        verified = project.verify(name)
        assert verified.equal
        assert [f.name for f in verified.figures] == [name]


def test_frames_and_pictures(tmp_path: Path) -> None:
    project = small(tmp_path, swap={"retention: {periods: 4}": "retention: {periods: 4}, lifecycle: week"})
    columns = {
        "attribution": {"model", "touchpoint", "conversion", "window"},
        "funnels": {"step", "position"},
        "cohorts": {"cohort", "period", "state"},
        "paths": {"path", "rank"},
    }
    for kind, wanted in columns.items():
        (asked,) = getattr(project, kind).values()
        answer = asked.run(record=False)
        frame = answer.to_frame()
        assert wanted | {"estimand", "value", "low", "high"} <= set(frame.columns)
        assert len(frame) == len(answer.to_dict()["estimates"])
        assert answer.plot().startswith("<svg")
        assert "SELECT" in answer.sql()
        assert "visits" in asked.explain()
        with pytest.raises(UsageError, match="chart"):
            answer.plot("nope")

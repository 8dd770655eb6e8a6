"""Runs as the report receives them: the JSON of a run, made by hand around numbers that fit one another."""

from __future__ import annotations

import copy
import math
from statistics import NormalDist
from typing import Any

from payoff.estimate import Normal

Json = dict[str, Any]

SQL = """WITH exposed AS (
    SELECT user_id, arg_min(subject_variant, sent_at) AS arm, min(sent_at) AS exposed_at
    FROM email_sends
    GROUP BY user_id
    HAVING count(DISTINCT subject_variant) = 1
),
clicked AS (
    SELECT e.user_id, max(CAST(c.clicked_at < e.exposed_at + INTERVAL 14 DAY AS INTEGER)) AS y
    FROM exposed AS e LEFT JOIN email_clicks AS c
      ON c.user_id = e.user_id AND c.clicked_at >= e.exposed_at
    GROUP BY e.user_id
)
SELECT arm, count(*) AS n, avg(y) AS mean, var_samp(y) AS var
FROM exposed JOIN clicked USING (user_id)
WHERE arm <> 'none' AND exposed_at < TIMESTAMP '2026-12-01'
GROUP BY arm"""


def difference(
    metric: str, contrast: str, value: float, se: float, unit: str, n: dict[str, int], df: float = 40000.0
) -> Json:
    return _estimate("difference in means", metric, contrast, value, Normal(se, df), unit, n)


def relative(metric: str, contrast: str, value: float, se_log: float, n: dict[str, int]) -> Json:
    return _estimate("relative lift", metric, contrast, value, Normal(se_log, 40000.0, "log1p"), "relative", n)


def _estimate(
    estimand: str, metric: str, contrast: str, value: float, spread: Normal, unit: str, n: dict[str, int]
) -> Json:
    low, high = spread.interval(value, 0.95)
    return {
        "metric": metric,
        "contrast": contrast,
        "segment": None,
        "estimand": estimand,
        "value": value,
        "low": low,
        "high": high,
        "level": 0.95,
        "interval_kind": "confidence",
        "unit": unit,
        "p_value": spread.p_value(value),
        "n": n,
        "uncertainty": spread.to_dict(),
    }


def arm(arm: str, metric: str, n: int, value: float, se: float, unit: str) -> Json:
    low, high = Normal(se).interval(value, 0.95)
    return {"arm": arm, "metric": metric, "n": n, "value": value, "low": low, "high": high, "unit": unit}


def reading(
    metric: str,
    contrast: str,
    role: str,
    state: str,
    sentence: str,
    direction: str = "up",
    margin: float | None = None,
    caveat: str | None = None,
) -> Json:
    return {
        "metric": metric,
        "contrast": contrast,
        "role": role,
        "direction": direction,
        "state": state,
        "sentence": sentence,
        "margin": margin,
        "caveat": caveat,
    }


def check(name: str, status: str, statistic: float | None, detail: str) -> Json:
    return {"name": name, "status": status, "statistic": statistic, "detail": detail}


def provenance(*sql: tuple[str, str]) -> Json:
    return {
        "sql": [{"step": step, "text": text} for step, text in sql],
        "definition_hash": "3f9c1b7a",
        "data_fingerprint": "c0ffee42",
        "seed": 7,
        "as_of": "2026-12-15T00:00:00+00:00",
        "versions": {"payoff": "0.1.0", "duckdb": "2.0.0"},
    }


def run(**parts: Any) -> Json:
    base: Json = {
        "project": "acme",
        "run_id": "20261215-7d1f",
        "started": "2026-12-15T08:30:11+00:00",
        "as_of": "2026-12-15T00:00:00+00:00",
        "currency": "USD",
        "alpha": 0.05,
        "results": [],
        "claims": [],
        "refusals": [],
        "reports": {},
        "plan": [
            {
                "step": 1,
                "source": "email_sends",
                "purpose": "first exposure of every user; arms and their sizes",
                "columns": ["user_id", "subject_variant", "sent_at"],
            },
            {
                "step": 2,
                "source": "email_clicks",
                "purpose": "click_rate of first_name_subject",
                "columns": ["user_id", "clicked_at"],
            },
        ],
        "definition_hash": "3f9c1b7a5d2e8846",
        "data_fingerprint": "c0ffee4211aa90b3",
        "seed": 7,
        "versions": {"payoff": "0.1.0", "duckdb": "2.0.0", "python": "3.11.9"},
    }
    return copy.deepcopy({**base, **parts})


# ---------------------------------------------------------------- an e-mail subject test, two arms

ASSUMPTIONS = [
    "Users were assigned to the subjects at random, in the planned shares",
    "One user's subject line does not change what another user does",
    "An order within 24 hours of a click was made by the person who clicked",
]


def email_result() -> Json:
    c, n = "first_name vs generic", {"first_name": 24871, "generic": 24993}
    return {
        "name": "experiments.first_name_subject",
        "method": "experiment",
        "question": "Using the first name in the subject raises clicks, not just opens",
        "design": "randomised",
        "verdict": "guardrail at risk",
        "grade": "A",
        "finding": "click_rate is higher with first_name",
        "estimates": [
            difference("click_rate", c, 0.01031, 0.00258, "share", n),
            relative("click_rate", c, 0.1153, 0.0272, n),
            difference("open_rate", c, 0.0412, 0.0044, "share", n),
            relative("open_rate", c, 0.1204, 0.0121, n),
            difference("order_rate", c, 0.0021, 0.0048, "share", n),
            relative("order_rate", c, 0.031, 0.07, n),
            difference("revenue_per_email", c, 0.0193, 0.0177, "USD", n),
            relative("revenue_per_email", c, 0.047, 0.042, n),
            difference("unsubscribe_rate", c, 0.00031, 0.00042, "share", n),
            relative("unsubscribe_rate", c, 0.13, 0.165, n),
        ],
        "arms": [
            arm("generic", "click_rate", 24993, 0.0894, 0.0018, "share"),
            arm("first_name", "click_rate", 24871, 0.0997, 0.0019, "share"),
            arm("generic", "open_rate", 24993, 0.342, 0.003, "share"),
            arm("first_name", "open_rate", 24871, 0.383, 0.0031, "share"),
            arm("generic", "revenue_per_email", 24993, 0.411, 0.012, "USD"),
            arm("first_name", "revenue_per_email", 24871, 0.430, 0.013, "USD"),
            arm("generic", "unsubscribe_rate", 24993, 0.0024, 0.0003, "share"),
            arm("first_name", "unsubscribe_rate", 24871, 0.0027, 0.0003, "share"),
        ],
        "readings": [
            reading("click_rate", c, "primary", "improved", "the interval lies above zero"),
            reading(
                "open_rate",
                c,
                "vanity",
                "improved",
                "the interval lies above zero",
                caveat="Apple mail pre-fetches images and inflates opens; decide on a click or a revenue metric",
            ),
            reading("order_rate", c, "secondary", "not conclusive", "the interval contains zero"),
            reading("revenue_per_email", c, "secondary", "not conclusive", "the interval contains zero"),
            reading("unsubscribe_rate", c, "guardrail", "at risk", "harm is not excluded", "down", margin=0.001),
        ],
        "checks": [
            check("srm", "pass", 0.298, "24,871 and 24,993 users against planned shares of 50% and 50%: p = 0.58"),
            check("several_arms", "pass", 0.002, "112 of 49,976 users saw both arms (0.2%) and were left out"),
            check("planned_size", "warn", 0.83, "the plan asked for 60,000 users; 49,864 were read"),
            check("pre_period", "not-run", None, "no data from before the first exposure was declared"),
        ],
        "assumptions": ASSUMPTIONS,
        "assumption_tests": {ASSUMPTIONS[0]: "srm"},
        "left_out": {"users seen in several arms": 112, "users whose 14-day window has not closed": 1840},
        "refusals": [
            {
                "name": "experiments.first_name_subject.refund_rate",
                "reason": "no user in the arm 'generic' has a refund",
                "remedy": "wait for refunds, or use a window longer than 14d",
            }
        ],
        "provenance": provenance(("moments of email_sends", SQL)),
    }


def email() -> Json:
    return run(
        results=[email_result()], reports={"weekly": {"audience": "crm", "show": ["experiments.first_name_subject"]}}
    )


# ---------------------------------------------------------------- three arms, no declared primary


def three_arms() -> Json:
    n = {"Mens E-Mail": 21307, "Womens E-Mail": 21387, "No E-Mail": 21306}
    mens, womens = "Mens E-Mail vs No E-Mail", "Womens E-Mail vs No E-Mail"
    result = {
        "name": "experiments.hillstrom",
        "method": "experiment",
        "question": "Does an e-mail bring customers back, and do they spend?",
        "design": "randomised",
        "verdict": "not conclusive",
        "grade": "A",
        "finding": "No primary metric is declared, so there is no headline: every figure below is exploratory.",
        "estimates": [
            difference("visit", mens, 0.07659, 0.00336, "share", n),
            relative("visit", mens, 0.7214, 0.027, n),
            difference("visit", womens, 0.04523, 0.00318, "share", n),
            relative("visit", womens, 0.426, 0.028, n),
            difference("conversion", mens, 0.0068, 0.000933, "share", n),
            difference("conversion", womens, 0.00311, 0.00082, "share", n),
            difference("spend", mens, 0.7698, 0.1452, "USD", n),
            relative("spend", mens, 1.179, 0.18, n),
            difference("spend", womens, 0.4244, 0.1298, "USD", n),
            relative("spend", womens, 0.65, 0.19, n),
        ],
        "arms": [
            arm(a, m, n[a], v, s, u)
            for m, u, levels in (
                ("visit", "share", ((0.1062, 0.0021), (0.1828, 0.0026), (0.1514, 0.0025))),
                ("conversion", "share", ((0.00573, 0.0005), (0.01253, 0.0008), (0.00884, 0.0006))),
                ("spend", "USD", ((0.6528, 0.079), (1.4226, 0.121), (1.0772, 0.103))),
            )
            for a, (v, s) in zip(("No E-Mail", "Mens E-Mail", "Womens E-Mail"), levels, strict=True)
        ],
        "readings": [
            reading(m, c, "secondary", "improved", "the interval lies above zero")
            for m in ("visit", "conversion", "spend")
            for c in (mens, womens)
        ],
        "checks": [check("srm", "pass", 0.204, "21,306, 21,307 and 21,387 customers against equal shares: p = 0.90")],
        "assumptions": ASSUMPTIONS[:2],
        "assumption_tests": {ASSUMPTIONS[0]: "srm"},
        "left_out": {},
        "refusals": [],
        "provenance": provenance(
            ("moments of customers", "SELECT segment, count(*), avg(visit) FROM customers GROUP BY 1")
        ),
    }
    return run(project="hillstrom", results=[result], plan=[])


# ---------------------------------------------------------------- a holdout and its claim


def holdout_result() -> Json:
    c, n = "personalised vs generic", {"personalised": 179_662, "generic": 20_038}
    return {
        "name": "experiments.global_holdout",
        "method": "experiment",
        "question": "What does personalisation add to the margin of a customer in 90 days?",
        "design": "randomised",
        "verdict": "positive",
        "grade": "A",
        "finding": "margin_90d is higher with personalised",
        "estimates": [
            difference("margin_90d", c, 1.8421, 0.3714, "USD", n),
            relative("margin_90d", c, 0.0432, 0.0089, n),
            difference("return_rate", c, -0.0004, 0.0011, "share", n),
            relative("return_rate", c, -0.006, 0.0165, n),
        ],
        "arms": [
            arm("generic", "margin_90d", 20038, 42.61, 0.35, "USD"),
            arm("personalised", "margin_90d", 179662, 44.45, 0.12, "USD"),
            arm("generic", "return_rate", 20038, 0.0671, 0.001, "share"),
            arm("personalised", "return_rate", 179662, 0.0667, 0.0004, "share"),
        ],
        "readings": [
            reading("margin_90d", c, "primary", "improved", "the interval lies above zero"),
            reading("return_rate", c, "guardrail", "safe", "harm of the margin is excluded", "down", margin=0.005),
        ],
        "checks": [check("srm", "pass", 0.06, "179,662 and 20,038 customers against planned 90% and 10%: p = 0.81")],
        "assumptions": ASSUMPTIONS[:2],
        "assumption_tests": {ASSUMPTIONS[0]: "srm"},
        "left_out": {"customers whose 90-day window has not closed": 30211},
        "refusals": [],
        "provenance": provenance(("moments of exposures", SQL.replace("email_sends", "exposures"))),
    }


def money(value: float, sd: float, unit: str = "USD/year") -> Json:
    def at(p: float) -> float:
        return value + sd * NormalDist().inv_cdf(p)

    ends = {"low": at(0.025), "high": at(0.975), "low_50": at(0.25), "high_50": at(0.75)}
    return {"value": value, "level": 0.95, "unit": unit, **ends}


def twenty(value: float, sd: float) -> list[float]:
    return [value + sd * NormalDist().inv_cdf((i + 0.5) / 20) for i in range(20)]


def moved(
    name: str,
    value: float,
    low: float,
    high: float,
    at_low: float,
    at_high: float,
    flips_at: float | None = None,
    break_even: float | None = None,
) -> Json:
    return {
        "input": name,
        "value": value,
        "low_input": low,
        "high_input": high,
        "net_at_low": at_low,
        "net_at_high": at_high,
        "swing": abs(at_high - at_low),
        "flips": flips_at is not None,
        "flips_at": flips_at,
        "break_even": break_even if flips_at is None else flips_at,
        "sentence": "a sentence with figures of its own",
    }


def claim() -> Json:
    effect, users, costs = 1.8421, 2_043_000.0, 1_300_000.0
    amount = effect * users
    sd = 0.3714 * users
    low, high = (effect - 1.96 * 0.3714, effect + 1.96 * 0.3714)
    net = amount - costs
    licence = {
        "kind": "cost",
        "value": 400000.0,
        "low": 400000.0,
        "high": 400000.0,
        "unit": "USD",
        "source": "contract 4411",
        "owner": "procurement@acme.example",
        "expires": "2027-06-30",
        "notes": ["taken as exact: it has no range"],
    }
    team = {
        "kind": "cost",
        "value": 900000.0,
        "low": 750000.0,
        "high": 1050000.0,
        "unit": "USD",
        "source": "HR plan 2026",
        "owner": "finance@acme.example",
        "expires": "2027-01-31",
        "notes": [],
    }
    return {
        "name": "personalisation_total",
        "statement": "Total margin that personalisation adds, over all surfaces",
        "owner": "personalisation@acme.example",
        "grade": "A",
        "grade_reasons": ["The evidence global_holdout is graded A."],
        "verdict": "positive",
        "finding": "a finding with figures of its own",
        "evidence": ["global_holdout"],
        "amount_expression": "effect(margin_90d) * population(user, 365d)",
        "currency": "USD",
        "period": "365d",
        "amount": money(amount, sd),
        "cost": costs,
        "costs": [{"name": "licence", **licence}, {"name": "team", **team}],
        "net": money(net, math.hypot(sd, 61000.0)),
        "roi": money(net / costs, sd / costs, "ratio"),
        "payback": {
            "value": 365 * costs / amount,
            "low": 365 * costs / (amount + 1.96 * sd),
            "high": 365 * costs / (amount - 1.96 * sd),
            "level": 0.95,
            "unit": "days",
            "never": 0.0,
            "sentence": "a sentence with figures of its own",
        },
        "probability_positive": 0.99955,
        "decision": {
            "threshold": "roi > 0",
            "probability": 0.8,
            "observed_probability": 0.99955,
            "met": True,
            "sentence": "a sentence with figures of its own",
        },
        "inputs": [
            {
                "name": "effect(margin_90d)",
                "kind": "effect",
                "value": effect,
                "low": low,
                "high": high,
                "unit": "USD",
                "source": "global_holdout",
                "owner": None,
                "expires": None,
                "notes": [
                    "counted as improvement: a rise of margin_90d is positive, because its direction is up",
                    "personalised vs generic",
                ],
            },
            {
                "name": "population(user, 365d)",
                "kind": "population",
                "value": users,
                "low": users,
                "high": users,
                "unit": "units over 365d",
                "source": "user",
                "owner": None,
                "expires": None,
                "notes": ["taken as exact"],
            },
            {"name": "cost(licence)", **licence},
            {"name": "cost(team)", **team},
        ],
        "sensitivity": [
            moved(
                "effect(margin_90d)",
                effect,
                low,
                high,
                low * users - costs,
                high * users - costs,
                break_even=costs / users,
            ),
            moved("novelty_decay", 0.0, 0.0, 0.5, net, amount * 0.75 - costs),
            moved("holdout_contamination", 0.0, 0.0, 0.1, net, amount / 0.9 - costs),
            moved("cost(team)", 900000.0, 750000.0, 1050000.0, amount - 1_150_000.0, amount - 1_450_000.0),
            moved("population(user, 365d)", users, users, users, net, net),
            moved("cost(licence)", 400000.0, 400000.0, 400000.0, net, net),
        ],
        "overturn": [],
        "assumptions": [
            "What global_holdout assumes, listed with that result, holds.",
            "The effect is as large over the whole period, and for everyone the amount counts, as it was where it"
            " was measured.",
        ],
        "notes": [],
        "net_quantiles": twenty(net, math.hypot(sd, 61000.0)),
    }


def weak_claim() -> Json:
    """Priced with a value that has no owner; not conclusive; one input flips it; the cost may never be paid back."""
    one = claim()
    amount, sd = 310_000.0, 190_000.0
    copywriting = {
        "kind": "cost",
        "value": 50000.0,
        "low": 50000.0,
        "high": 50000.0,
        "unit": "USD",
        "source": None,
        "owner": None,
        "expires": None,
        "notes": ["taken as exact: it has no range", "has no owner"],
    }
    one.update(
        name="subject_line_value",
        statement="What the first name in the subject line is worth in a year",
        owner=None,
        grade="B",
        grade_reasons=[
            "The evidence first_name_subject is graded A.",
            "One letter down: the value click_value has no owner.",
        ],
        verdict="not conclusive",
        evidence=["first_name_subject"],
        amount_expression="effect(click_rate) * value(click_value) * volume(sends, 365d)",
        amount=money(amount, sd),
        cost=50_000.0,
        costs=[{"name": "copywriting", **copywriting}],
        net=money(amount - 50_000.0, sd),
        roi=money((amount - 50_000.0) / 50_000.0, sd / 50_000.0, "ratio"),
        payback={
            "value": 365 * 50_000.0 / amount,
            "low": 365 * 50_000.0 / (amount + 1.96 * sd),
            "high": None,
            "level": 0.95,
            "unit": "days",
            "never": 0.051,
            "sentence": "a sentence with figures of its own",
        },
        probability_positive=0.914,
        decision={
            "threshold": "net > 0",
            "probability": 0.95,
            "observed_probability": 0.914,
            "met": False,
            "sentence": "a sentence with figures of its own",
        },
        inputs=[
            {
                "name": "effect(click_rate)",
                "kind": "effect",
                "value": 0.01031,
                "low": 0.00525,
                "high": 0.01537,
                "unit": "share",
                "source": "first_name_subject",
                "owner": None,
                "expires": None,
                "notes": [],
            },
            {
                "name": "value(click_value)",
                "kind": "value",
                "value": 2.4,
                "low": 0.3,
                "high": 4.5,
                "unit": "USD per click",
                "source": "CRM team, 2025",
                "owner": None,
                "expires": "2027-03-31",
                "notes": ["has no owner"],
            },
            {
                "name": "volume(sends, 365d)",
                "kind": "volume",
                "value": 12_528_500.0,
                "low": 12_380_000.0,
                "high": 12_677_000.0,
                "unit": "rows over 365d",
                "source": "sends",
                "owner": None,
                "expires": None,
                "notes": ["observed on 92 of 365 days, and scaled up to all of them"],
            },
            {"name": "cost(copywriting)", **copywriting},
        ],
        sensitivity=[
            moved("value(click_value)", 2.4, 0.3, 4.5, -11_250.0, 531_250.0, flips_at=0.387),
            moved("effect(click_rate)", 0.01031, 0.00525, 0.01537, 107_856.0, 412_143.0, break_even=0.00166),
            moved("volume(sends, 365d)", 12_528_500.0, 12_380_000.0, 12_677_000.0, 256_325.0, 263_674.0),
            moved("cost(copywriting)", 50_000.0, 50_000.0, 50_000.0, 260_000.0, 260_000.0),
        ],
        net_quantiles=twenty(amount - 50_000.0, sd),
    )
    return one


def points_claim() -> Json:
    """An amount that is not money: no net, no cost, no return on it."""
    one = claim()
    for key in ("net", "roi", "payback", "decision"):
        one[key] = None
    one.update(
        name="margin_each",
        statement="Margin that personalisation adds to a customer",
        amount_expression="effect(margin_90d)",
        amount=money(1.8421, 0.3714, "points"),
        cost=0.0,
        costs=[],
        inputs=one["inputs"][:1],
        sensitivity=[],
        net_quantiles=twenty(1.8421, 0.3714),
    )
    return one


def holdout() -> Json:
    return run(
        results=[holdout_result(), email_result()],
        claims=[claim(), weak_claim(), points_claim()],
        reports={
            "personalisation_quarterly": {
                "audience": "cfo",
                "title": "Personalisation, quarterly",
                "schedule": "quarterly",
                "show": ["claims.personalisation_total"],
            }
        },
        refusals=[
            {
                "name": "experiments.search_ranking",
                "reason": "the 14-day window of the last exposed users closes on 2026-12-22",
                "remedy": "run again on or after 2026-12-22",
            }
        ],
    )


# ---------------------------------------------------------------- what may not be read


def withheld() -> Json:
    """A sample-ratio mismatch: the figures exist, and must not be used."""
    result = email_result()
    result["verdict"] = "withheld"
    result["grade"] = "E"
    result["checks"][0] = check(
        "srm", "fail", 96.4, "26,012 and 23,852 users against planned shares of 50% and 50%: p < 0.001"
    )
    for one in result["readings"]:
        one["state"] = "withheld"
    return run(results=[result])


def breached() -> Json:
    """The primary metric improved, and a guardrail is worse than its margin."""
    one = holdout()
    result = one["results"][0]
    c, n = "personalised vs generic", {"personalised": 179_662, "generic": 20_038}
    result["estimates"][2] = difference("return_rate", c, 0.0112, 0.0014, "share", n)
    result["readings"][1]["state"] = "breached"
    result["verdict"] = "guardrail at risk"
    one["claims"][0]["verdict"] = "guardrail at risk"
    return one


def refused() -> Json:
    return run(
        refusals=[
            {
                "name": "experiments.search_ranking",
                "reason": "the source 'impressions' has no row in the arm 'control'",
                "remedy": "check the column 'ranker' of impressions, or the assignment's control",
            },
            {
                "name": "claims.search_value",
                "reason": "its evidence, search_ranking, has no figure",
                "remedy": "answer experiments.search_ranking first",
            },
        ]
    )


HOSTILE = "<script>alert('x')</script>"
RTL = "\u05de\u05d1\u05e6\u05e2 \u05d7\u05d5\u05e8\u05e3"
LONG = "a_very_long_name_" * 12


def hostile() -> Json:
    """Names that try to break out of the page, to rewrite the figures beside them, or to burst the layout."""
    one = email()
    one["project"] = HOSTILE + ' "quoted" & \x1b[31mred\u202e'
    result = one["results"][0]
    text = {"first_name vs generic": f'{HOSTILE} vs "{RTL}"'}
    for key in ("estimates", "readings"):
        for item in result[key]:
            item["contrast"] = text[item["contrast"]]
            item["metric"] = {"click_rate": LONG[:200], "open_rate": RTL}.get(item["metric"], item["metric"])
    for item in result["arms"]:
        item["arm"] = HOSTILE if item["arm"] == "first_name" else RTL
        item["metric"] = {"click_rate": LONG[:200], "open_rate": RTL}.get(item["metric"], item["metric"])
    result["question"] = f"Does {HOSTILE} & '{RTL}' {{{{ 7 * 7 }}}} {{% raw %}} work?"
    result["provenance"]["sql"][0]["text"] = "SELECT '</pre></details><script>1</script>' AS x -- \x1b[2J"
    result["left_out"] = {HOSTILE: 3}
    return one


ALL = {
    "email": email,
    "three_arms": three_arms,
    "holdout": holdout,
    "withheld": withheld,
    "breached": breached,
    "refused": refused,
    "hostile": hostile,
}

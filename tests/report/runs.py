"""Runs as the report receives them: the JSON of a run, made by hand around numbers that fit one another."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from payoff.estimate import Bounds, Correction, Draws, Estimate, IntervalKind, Normal, Uncertainty
from payoff.result import (
    Assumption,
    Capping,
    Check,
    Closer,
    Diluted,
    Displacement,
    Flow,
    FlowEdge,
    Interaction,
    Look,
    OverTime,
    PathGain,
    Peeking,
    Posterior,
    Precision,
    Provenance,
    Reconciled,
    Reconciliation,
    Result,
    SegmentRow,
    Segments,
    Span,
    Stitching,
    TimePoint,
)
from payoff.stats.proportion import poisson_count, wilson

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


# ---------------------------------------------------------------- an experiment with every closer look


def span(value: float, se: float, level: float = 0.95) -> Span:
    low, high = Normal(se).interval(value, level)
    return Span(value, low, high)


def _asked(one: Json, method: Literal["holm", "benjamini-hochberg"], of: int, p: float, level: float) -> Json:
    """``one`` as one of several questions: its interval at the level that the step-down procedure leaves it."""
    low, high = Normal(one["uncertainty"]["se"]).interval(one["value"], level)
    return {**one, "correction": Correction(method, of, p, low, high).to_dict()}


RICH, RICH_N = "recommended vs control", {"recommended": 41_204, "control": 41_087}
_TENURE = (("new", 13_871, -1.62, 0.52, 0.0111), ("1 to 12 months", 24_310, 1.12, 0.47, 0.0857), ("over a year", 44_110, 2.45, 0.43, 8.4e-8))  # fmt: skip
_COUNTRY = (("DE", 38_204, 0.71, 0.41, 0.333), ("FR", 22_410, 1.22, 0.52, 0.0949), ("UK", 21_651, 0.90, 0.55, 0.333))


def _segments(attribute: str, classes: Any, tau: float, shrink: float, **said: Any) -> Segments:
    """Rows corrected over six: each at the level of its place, widest where least is shown."""
    rows = [
        SegmentRow(
            segment=name,
            n={"recommended": n // 2, "control": n - n // 2},
            state="improved" if p < 0.05 and value > 0 else "harmed" if p < 0.05 else "not conclusive",
            difference=span(value, se, 1 - 0.05 / (5 if p < 0.05 else 4)),
            pooled=span(0.9 + (value - 0.9) * shrink, se * math.sqrt(shrink)),
            p_value=p,
            raw_p_value=Normal(se).p_value(value),
        )
        for name, n, value, se, p in classes
    ]
    return Segments(attribute=attribute, metric="margin_28d", contrast=RICH, unit="USD", direction="up", rows=tuple(rows), tau=tau, **said)  # fmt: skip


def rich_closer() -> Closer:
    tenure = _segments(
        "tenure",
        _TENURE,
        1.98,
        0.94,
        interaction_statistic=36.9,
        interaction_df=2,
        interaction_p=1.9e-8,
        flip="shown",
        flip_p=0.0018,
        sentence="Sign flip by tenure: recommended helps margin 28d among over a year and harms it among new"
        " (over a year +2.5 USD, new \u22121.6 USD, against control); the overall figure hides both",
    )
    country = _segments(
        "country",
        _COUNTRY,
        0.0,
        0.05,
        interaction_statistic=0.61,
        interaction_df=2,
        interaction_p=0.737,
        flip="none",
        flip_p=1.0,
        sentence="No sign that the effect on margin 28d differs by country (p = 0.74); what the classes' figures differ by is"
        " within chance",
    )
    hidden = SegmentRow("LI", {}, "refused", reason="'LI' has fewer than 20 units in an arm, the smallest group shown")
    country = replace(country, rows=(*country.rows, hidden))
    weeks = (0.52, 0.22, 0.11, 0.055)
    so_far = (2_900, 8_100, 13_600, 19_800, 25_300, 30_400, 34_600, 37_290)
    dates = ("10-12", "10-19", "10-26", "11-02", "11-09", "11-16", "11-23", "11-30")
    return Closer(
        precision=(
            Precision(
                "margin_28d",
                RICH,
                "USD",
                "regression",
                ("margin_28d before exposure", "tenure"),
                span(0.871, 0.432),
                0.268,
                0.432,
                1 - (0.268 / 0.432) ** 2,
                (0.432 / 0.268) ** 2,
                "Adjustment made the interval of margin 28d 38% shorter, worth 2.6 times as many units",
            ),
            Precision(
                "orders_28d",
                RICH,
                "orders/user",
                "regression",
                ("orders_28d before exposure",),
                span(0.0109, 0.0079),
                0.00605,
                0.0079,
                1 - (0.00605 / 0.0079) ** 2,
                (0.0079 / 0.00605) ** 2,
                "Adjustment made the interval of orders 28d 23% shorter, worth 1.7 times as many units",
            ),
        ),
        segments=(tenure, country),
        over_time=(
            OverTime(
                "margin_28d",
                RICH,
                "USD",
                "up",
                "days since exposure",
                "pointwise",
                tuple(TimePoint(str(7 * k), str(7 * k + 7), span(v, 0.118), RICH_N) for k, v in enumerate(weeks)),
                0,
                0.0041,
                "wears off",
                "The effect of recommended on margin 28d wears off (p = 0.004; +$0.52 in days 0 to 7, +$0.06 in days 21 to 28):"
                " what a longer run would keep is less than the average",
            ),
            OverTime(
                "margin_28d",
                RICH,
                "USD",
                "up",
                "calendar",
                "simultaneous",
                tuple(
                    TimePoint("2026-10-05", f"2026-{day}", span(value, 4_000 * math.sqrt(k + 1), 0.985), RICH_N)
                    for k, (day, value) in enumerate(zip(dates, so_far, strict=True))
                ),
                2,
                None,
                "",
                "By 2026-11-30 the 41,204 units of recommended had brought +$37,290 of margin 28d that they would not have brought"
                " in control (95% band over all dates +$9,770 to +$64,810)",
            ),
        ),
        cannibalisation=(
            Displacement(
                RICH,
                "USD/user",
                (
                    PathGain("recommendations", True, span(2.10, 0.21), 0.75, 2.85),
                    PathGain("search", False, span(-0.78, 0.19), 9.70, 8.92),
                    PathGain("navigation", False, span(-0.35, 0.17), 5.17, 4.82),
                    PathGain("e_mail", False, span(-0.07, 0.08), 2.80, 2.73),
                ),
                span(2.10, 0.21),
                span(-1.20, 0.24),
                span(0.90, 0.27),
                Span(1 - 0.90 / 2.85, 0.5, 0.86),
                "",
                "Recommendations gained +$2.10 (+$1.69 to +$2.51) a user in recommended, other paths changed by \u2212$1.20"
                " (\u2212$1.67 to \u2212$0.73), the net is +$0.90 (+$0.37 to +$1.43); of what is attributed to recommendations, 68% would"
                " have happened anyway (95% interval 50% to 86%)",
            ),
        ),
        interactions=(
            Interaction(
                "first_name_subject",
                "margin_28d",
                RICH,
                "first_name vs generic",
                "USD",
                31_870,
                0.42,
                0.52,
                span(-0.12, 0.54),
                0.824,
                0.824,
                "",
                "The effect on margin 28d is not shown to differ between the arms of first name subject (by \u2212$0.12, interval"
                " \u2212$1.18 to +$0.94; p = 0.82; 31,870 units are in both)",
            ),
            Interaction(
                "free_shipping",
                "margin_28d",
                RICH,
                "free vs paid",
                "USD",
                14,
                None,
                None,
                None,
                None,
                None,
                "fewer than 20 units are in recommended here and free there",
                "Whether free shipping changes the effect on margin 28d cannot be told: fewer than 20 units are in recommended here"
                " and free there",
            ),
        ),
        bayes=(
            Posterior(
                "margin_28d",
                RICH,
                0.0,
                0.05,
                span(0.0453, 0.0139),
                0.95,
                0.9994,
                0.0000021,
                "Under a normal prior on the lift with mean +0.0% and standard deviation 5.0%, stated before: over 99% that"
                " recommended is better on margin 28d; lift +4.5% (95% credible interval +1.8% to +7.3%); choosing it loses 0.00% on"
                " average if it is worse",
            ),
        ),
        diluted=(
            Diluted(
                "margin_28d",
                RICH,
                "USD",
                span(0.62, 0.0013),
                span(0.561, 0.166),
                "62.0% of those assigned triggered; over everyone the difference in margin 28d is +$0.56 (95% interval +$0.24 to"
                " +$0.89)",
            ),
        ),
        capping=(
            Capping(
                "margin_28d",
                RICH,
                "USD",
                0.31,
                1_240.0,
                412,
                span(0.871, 0.432),
                span(0.742, 0.301),
                "margin 28d has a heavy tail: its largest unit makes 31% of an arm's variance. A cap at $1,240 (the 99th percentile"
                " of those above zero; 412 units lie above) would give +$0.74 (+$0.15 to +$1.33) instead of +$0.87 (+$0.02 to +$1.72)",
            ),
        ),
        peeking=Peeking(
            "fixed",
            (
                Look("2026-10-20T09:12:00+00:00", "ana@acme.example", "2026-10-19", 18_204),
                Look("2026-11-03T16:40:00+00:00", "ana@acme.example", "2026-11-02", 46_511),
                Look("2026-11-17T08:05:00+00:00", "joel@acme.example", "2026-11-16", 70_020),
                Look("this run", "", "2026-12-15", 82_291),
            ),
            0.121,
            0.05,
            0.914,
            "Looked at 4 times with intervals that are made for one look: where nothing happened, a false finding at some look has a"
            " chance of 12%, not 5%",
        ),
        overturn=(
            "A bias of $0.26 (29% of the effect) against recommended vs control in margin 28d would be enough: from units lost unevenly,"
            " an event recorded in one arm only, or a read-out chosen for its result.",
            "Orders 28d (recommended vs control) is open: any difference in \u22120.0015 to +0.0257 orders per user remains possible;"
            " more units, or a sharper metric, would settle it.",
        ),
    )


def rich_result() -> Json:
    c, n = RICH, RICH_N
    by_segment = [
        {
            **difference("margin_28d", c, row.difference.value, 0.5, "USD", dict(row.n)),
            "segment": f"{table.attribute}={row.segment}",
        }
        for table in rich_closer().segments
        for row in table.rows
        if row.difference is not None
    ]
    everyone = difference("margin_28d", c, 0.561, 0.166, "USD", n)
    credible = relative("margin_28d", c, 0.0453, 0.0139, n)
    return {
        "name": "experiments.homepage_recommendations",
        "method": "experiment",
        "question": "Do recommendations on the home page earn more than what they displace?",
        "owner": "discovery@acme.example",
        "design": "randomised",
        "verdict": "positive",
        "grade": "A",
        "finding": "a finding with figures of its own",
        "estimates": [
            _asked(difference("margin_28d", c, 0.905, 0.268, "USD", n), "holm", 3, 0.0022, 1 - 0.05 / 3),
            {**difference("margin_28d", c, 0.871, 0.432, "USD", n), "estimand": "difference in means, unadjusted"},
            relative("margin_28d", c, 0.0491, 0.0144, n),
            _asked(difference("second_visit", c, 0.0065, 0.0031, "share", n), "holm", 3, 0.072, 0.975),
            relative("second_visit", c, 0.0204, 0.0098, n),
            _asked(difference("orders_28d", c, 0.0121, 0.00605, "orders/user", n), "holm", 3, 0.072, 0.975),
            relative("orders_28d", c, 0.0294, 0.0148, n),
            _asked(difference("clicks_on_page", c, 0.311, 0.021, "clicks/user", n), "benjamini-hochberg", 2, 1e-40, 0.95),
            _asked(difference("items_viewed", c, 0.042, 0.047, "items/user", n), "benjamini-hochberg", 2, 0.372, 0.95),
            difference("return_rate", c, -0.0003, 0.0011, "share", n),
            relative("return_rate", c, -0.0045, 0.0164, n),
            *by_segment,
            {**difference("cannibalisation", c, 2.10, 0.21, "USD/user", n), "estimand": "difference in means, gained on the treated path"},
            {**everyone, "estimand": "difference in means, everyone assigned"},
            {**credible, "estimand": "relative lift, posterior", "interval_kind": "credible"},
        ],
        "arms": [
            arm("control", "margin_28d", n["control"], 18.42, 0.19, "USD"),
            arm("recommended", "margin_28d", n["recommended"], 19.325, 0.19, "USD"),
            arm("control", "second_visit", n["control"], 0.318, 0.0023, "share"),
            arm("recommended", "second_visit", n["recommended"], 0.3245, 0.0023, "share"),
            arm("control", "return_rate", n["control"], 0.0671, 0.0008, "share"),
            arm("recommended", "return_rate", n["recommended"], 0.0668, 0.0008, "share"),
        ],
        "readings": [
            {**reading("margin_28d", c, "primary", "improved", "the interval lies above zero"), "target": 0.75},
            reading("second_visit", c, "primary", "not conclusive", "the interval contains zero"),
            reading("orders_28d", c, "primary", "not conclusive", "the interval contains zero"),
            reading("clicks_on_page", c, "secondary", "improved", "the interval lies above zero"),
            reading("items_viewed", c, "secondary", "not conclusive", "the interval contains zero"),
            reading("return_rate", c, "guardrail", "safe", "harm is excluded", "down", margin=0.005),
        ],
        "checks": [
            check("srm", "pass", 0.166, "41,204 and 41,087 users against planned shares of 50% and 50%: p = 0.68"),
            check("balance", "pass", 1.31, "what users were before exposure does not differ between the arms: p = 0.52"),
            check("peeking", "warn", 0.121, "read 4 times with intervals made for one read-out"),
        ],
        "assumptions": ASSUMPTIONS[:2],
        "assumption_tests": {ASSUMPTIONS[0]: "srm"},
        "left_out": {"units seen in several arms": 87, "units whose window is still open (margin_28d)": 3_204},
        "refusals": [
            {
                "name": "experiments.homepage_recommendations.segments.postcode",
                "reason": "postcode cannot make segments: it has 8,112 values",
                "remedy": "make fewer classes of it, with cuts, quantiles or a coarser column",
            }
        ],
        "closer": rich_closer().to_dict(),
        "provenance": provenance(("moments of home_views", SQL.replace("email_sends", "home_views"))),
    }  # fmt: skip


def rich() -> Json:
    return run(results=[rich_result()])


def peeked() -> Json:
    """Three arms under an always-valid rule; what could not be told says why; every closer part that it lacks is absent."""
    one = rich_result()
    name = {RICH: "four rows vs control", "other": "eight rows vs control"}
    closer = one["closer"]
    both = []
    for e in one["estimates"]:
        if e["metric"] not in ("margin_28d", "return_rate") or e["segment"] or "posterior" in e["estimand"]:
            continue
        if e["estimand"] != "difference in means":
            continue
        low, high = Normal(e["uncertainty"]["se"]).interval(e["value"], 0.999)
        bounds = {"kind": "bounds", "low": low, "high": high, "level": 0.95}
        for contrast in name.values():
            n = {contrast.partition(" vs ")[0]: 41_204, "control": 41_087}
            more = {
                "interval_kind": "always-valid",
                "low": low,
                "high": high,
                "uncertainty": bounds,
                "contrast": contrast,
            }
            both.append({**e, **more, "n": n, "p_value": 0.0412, "correction": None})
    both[0]["correction"] = both[1]["correction"] = {
        "method": "holm", "of": 2, "p_value": 0.0824, "low": both[0]["low"] - 0.05, "high": both[0]["high"] + 0.05,
    }  # fmt: skip
    one["estimates"] = both
    one["arms"] = []
    one["readings"] = [
        {**reading, "contrast": contrast, "target": None}
        for reading in one["readings"]
        if reading["metric"] in ("margin_28d", "return_rate")
        for contrast in name.values()
    ]
    one["name"] = "experiments.rows_of_recommendations"
    for key in ("precision", "interactions", "bayes", "diluted", "capping"):
        closer[key] = []
    closer["segments"] = [{**closer["segments"][1], "contrast": contrast} for contrast in name.values()]
    closer["over_time"] = [
        {**look, "contrast": contrast, "trend_p": 0.41, "pattern": "steady", "sentence": f"No sign that it changes ({contrast})"}
        for look in closer["over_time"][:1]
        for contrast in name.values()
    ]  # fmt: skip
    lost = closer["cannibalisation"][0]
    lost.update(
        anyway=None,
        reason="the treated arm's level on recommendations is not clear of zero",
        contrast=name[RICH],
        sentence="Recommendations gained; what share would have happened anyway cannot be told: its level is not clear of zero",
    )
    closer["peeking"].update(
        rule="always_valid", sentence="Looked at 4 times; the intervals hold at every look, so that costs nothing"
    )
    one["readings"][0]["state"] = one["readings"][1]["state"] = (
        "improved" if both[0]["low"] > 0.05 else "not conclusive"
    )
    one["verdict"] = "positive" if both[0]["low"] > 0.05 else "not conclusive"
    one["closer"]["overturn"] = []
    return run(results=[one])


def programme() -> Json:
    """Five experiments read together: winners shrink, and the total is held against a holdout."""
    n = {"treatment": 40_000, "control": 40_000}
    members = (
        ("homepage_recommendations", 0.905, 0.268, 0.702),
        ("first_name_subject", 0.412, 0.301, 0.298),
        ("search_ranking", 1.310, 0.355, 0.870),
        ("free_shipping", -0.220, 0.290, -0.062),
        ("reviews_first", 0.640, 0.310, 0.452),
    )
    metric = "margin_28d"

    def of(estimand: str, contrast: str, value: float, se: float, segment: str | None = None) -> Json:
        kind = "credible" if "shrunk" in estimand else "confidence"
        one = difference(metric, contrast, value, se, "USD", n)
        return {**one, "estimand": estimand, "segment": segment, "interval_kind": kind}

    shipped = "3 shipped experiments"
    result = {
        "name": "programmes.discovery_2026",
        "method": "programme",
        "question": "What are the changes that were kept worth together, once the luck of the winners is taken out?",
        "design": "programme",
        "verdict": "positive",
        "grade": "A",
        "finding": "a finding with figures of its own",
        "estimates": [
            *(of("difference in means", f"{name}: treatment vs control", raw, se) for name, raw, se, _ in members),
            *(of("difference in means, shrunk", f"{name}: treatment vs control", x, se * 0.82) for name, _, se, x in members),
            of("programme total", shipped, 2.855, 0.541),
            of("programme total, shrunk", shipped, 2.024, 0.447),
            of("holdout total", "everything vs holdout", 1.842, 0.371),
            of("holdout less programme", "holdout less programme", -0.182, 0.581),
        ],
        "arms": [],
        "readings": [],
        "checks": [check("contamination", "pass", 0.2, "12 of 20,038 units of the holdout saw a shipped change")],
        "assumptions": ["The effects of the experiments add up"],
        "assumption_tests": {},
        "left_out": {},
        "refusals": [],
        "closer": Closer().to_dict(),
        "provenance": provenance(),
    }  # fmt: skip
    return run(results=[result])


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


def rename(value: Any, names: dict[str, str]) -> Any:
    """Every text of a JSON value with ``names`` replaced inside it."""
    if isinstance(value, str):
        for old, new in names.items():
            value = value.replace(old, new)
        return value
    if isinstance(value, dict):
        return {rename(key, names): rename(item, names) for key, item in value.items()}
    return [rename(item, names) for item in value] if isinstance(value, list) else value


def hostile_rich() -> Json:
    """The same in the names of segments, paths, other experiments, people and covariates."""
    one = rich()
    names = {
        "recommended": HOSTILE,
        "tenure": LONG[:120],
        "over a year": RTL,
        "new": f"{HOSTILE} & new",
        "search": f"<b onmouseover=x>{LONG[:60]}",
        "first_name_subject": f"\x1b[31m{RTL}",
        "ana@acme.example": "ana\u202e@<img src=x>",
    }
    result = one["results"][0]
    for key in ("estimates", "arms", "readings", "closer"):
        result[key] = rename(result[key], names)
    return one


def withheld_rich() -> Json:
    one = rich()
    result = one["results"][0]
    result.update(verdict="withheld", grade="E")
    result["checks"][0] = check("srm", "fail", 96.4, "44,012 and 38,279 users against planned shares of 50% and 50%")
    for item in result["readings"]:
        item["state"] = "withheld"
    return one


# ---------------------------------------------------------------- journeys


def _described(
    estimand: str,
    metric: str,
    contrast: str,
    value: float,
    spread: Uncertainty,
    unit: str,
    n: dict[str, int],
    labels: dict[str, str | int],
    kind: IntervalKind = "confidence",
    segment: str | None = None,
) -> Estimate:
    return Estimate(estimand, metric, contrast, value, unit, spread, kind, n, segment=segment, labels=labels)


def _share(k: int, n: int) -> tuple[float, Bounds]:
    return k / n, Bounds(*wilson(k, n, 0.95), 0.95)


def _counted(k: int) -> Bounds:
    return Bounds(*poisson_count(k, 0.95), 0.95)


def _journey(name: str, method: str, question: str, finding: str, estimates: list[Estimate], **more: Any) -> Json:
    given: dict[str, Any] = {
        "design": "descriptive",
        "verdict": "descriptive",
        "grade": "",
        "arms": (),
        "readings": (),
        "checks": (Check("clock", "pass", 0.0, "no row lies before 1970 or in the future"),),
        "assumptions": (Assumption("Events are recorded when they happen", "clock"),),
        "provenance": Provenance(
            (("rows", SQL),), "3f9c1b7a", "c0ffee42", 7, "2026-12-15T00:00:00+00:00", {"payoff": "0.1.0"}
        ),
        "owner": "ana@acme.example",
    } | more
    return Result(
        name=name, method=method, question=question, finding=finding, estimates=tuple(estimates), **given
    ).to_dict()


def funnel_result(scale: int = 1, classes: tuple[str, ...] = ("phone", "desktop", "(none)")) -> Json:
    """Engagement to an order that was kept, in all and by device."""
    steps = ("engagement", "cart", "checkout", "kept for 30 days")
    shares = {None: (1.0, 0.312, 0.641, 0.884)} | {
        c: (1.0, 0.36 - 0.05 * k, 0.6 + 0.03 * k, 0.9 - 0.01 * k) for k, c in enumerate(classes)
    }
    entered = {None: 48_213 // scale} | {c: (48_213 // scale) // (k + 2) for k, c in enumerate(classes)}
    estimates = []
    for segment, of in shares.items():
        reached = entrants = entered[segment]
        for k, (step, share) in enumerate(zip(steps, of, strict=True)):
            before, reached = reached, round(reached * share)
            labels: dict[str, str | int] = {"step": step, "position": k + 1}
            where = f"{step}{f' ({segment})' if segment else ''}"

            def add(
                estimand: str, value: float, spread: Bounds, unit: str, n: int, at: Any = (labels, where, segment)
            ) -> None:
                estimates.append(
                    _described(
                        estimand, str(at[0]["step"]), at[1], value, spread, unit, {"units": n}, at[0], segment=at[2]
                    )
                )

            add("units reaching step", float(reached), _counted(reached), "units", reached)
            if k:
                add("share of entrants reaching step", *_share(reached, entrants), "share", entrants)
                add("share of the step before", *_share(reached, before), "share", before)
                hours = 3600.0 * (3.2, 0.11, 24.0 * 30)[k - 1]
                add("median time from the step before", hours, Bounds(hours * 0.94, hours * 1.05, 0.95), "s", reached)
    return _journey(
        "funnels.engagement_to_kept",
        "funnel",
        "How many who engage keep what they order?",
        "Of 48,213 users who entered, 17.7% (17.3% to 18.0%) reached kept for 30 days; the largest loss is between engagement and cart",
        estimates,
        left_out={"units still inside their window": 1_204, "rows without a user": 12},
        closer=Closer(stitching=(_stitching(),)),
    )


def _stitching() -> Stitching:
    return Stitching(
        entity="user",
        source="identifies",
        pairs=61_240,
        ids=118_022,
        units=59_411,
        largest=(("u-104", 14), ("u-9", 11), ("u-77", 9)),
        shared=(("device-5", 3), ("device-81", 2)),
        shared_count=2,
        blocked=(("guest", 4_120), ("00000000-0000-0000-0000-000000000000", 318)),
        too_large=(("kiosk-1", 40_112),),
        before={"units": 88_120, "paths over several devices": 0},
        after={"units": 59_411, "paths over several devices": 12_931},
        sentence="118,022 ids of users are 59,411 units; 12,931 paths lead over several devices",
    )


def cohort_result() -> Json:
    """Fourteen weekly cohorts: the young ones have few closed periods, and one cell is hidden."""
    rng = np.random.default_rng(11)
    estimates: list[Estimate] = []
    weeks = [f"2026-{8 + (d + 2) // 31:02d}-{(d + 2) % 31 + 1:02d}" for d in range(0, 98, 7)]
    sizes = [int(x) for x in rng.integers(820, 1490, len(weeks))]
    pooled: dict[int, list[int]] = {}
    for i, (week, size) in enumerate(zip(weeks, sizes, strict=True)):
        estimates.append(
            _described(
                "units in cohort",
                "units",
                f"cohort {week}",
                float(size),
                _counted(size),
                "units",
                {"units": size},
                {"cohort": week},
            )
        )
        for k in range(min(13, len(weeks) - i)):
            active = size if k == 0 else int(rng.binomial(size, 0.34 * k**-0.55 + 0.02))
            if (i, k) == (2, 6):
                continue  # too few units to show
            labels: dict[str, str | int] = {"cohort": week, "period": k}
            where = f"cohort {week}, period {k}"
            estimates.append(
                _described("retention", "active", where, *_share(active, size), "share", {"eligible": size}, labels)
            )
            money = 11.0 * math.log1p(k + 0.6) * (1 + 0.1 * math.sin(i))
            estimates.append(
                _described(
                    "cumulative revenue per unit",
                    "revenue",
                    where,
                    money,
                    Normal(0.06 * money + 0.1),
                    "USD",
                    {"units": size},
                    labels,
                )
            )
            pooled.setdefault(k, []).append(i)
            pooled[k].append(active)
    everyone = sum(sizes)
    of_all: dict[str, str | int] = {"cohort": "(all)"}
    estimates.append(
        _described(
            "units in cohort",
            "units",
            "all cohorts",
            float(everyone),
            _counted(everyone),
            "units",
            {"units": everyone},
            of_all,
        )
    )
    for k, pairs in pooled.items():
        n = sum(sizes[i] for i in pairs[::2])
        at = {**of_all, "period": k}
        where = f"all cohorts, period {k}"
        estimates.append(
            _described("retention", "active", where, *_share(sum(pairs[1::2]), n), "share", {"eligible": n}, at)
        )
        money = 11.0 * math.log1p(k + 0.6)
        estimates.append(
            _described(
                "cumulative revenue per unit",
                "revenue",
                where,
                money,
                Normal(0.02 * money + 0.05),
                "USD",
                {"units": n},
                at,
            )
        )
    for week, size in zip((*weeks[:4], "(all)"), (*sizes[:4], everyone), strict=True):
        cost = 14.2 + size % 7 / 5
        estimates.append(
            _described(
                "CAC",
                "cost",
                f"CAC of {week}",
                cost,
                Bounds(cost * 0.95, cost * 1.06, 0.95),
                "USD",
                {"units": size},
                {"cohort": week},
            )
        )
        if week != weeks[2]:
            estimates.append(
                _described(
                    "payback",
                    "revenue",
                    f"payback of {week}",
                    28.0,
                    Bounds(21.0, 35.0, 0.95),
                    "days",
                    {"units": size},
                    {"cohort": week},
                    "bounds",
                )
            )
    for i, week in enumerate(weeks):
        for state, n in (
            ("new", sizes[i]),
            ("returning", 300 + 90 * i),
            ("resurrected", 40 + 12 * i),
            ("dormant", 240 + 55 * i),
        ):
            estimates.append(
                _described(
                    "units in state",
                    "active",
                    f"{state} in {week}",
                    float(n),
                    _counted(n),
                    "units",
                    {"units": n},
                    {"period": week, "state": state},
                )
            )
        if i % 4 == 0:
            share = 0.18 + 0.004 * i
            estimates.append(
                _described(
                    "stickiness",
                    "active",
                    f"stickiness in {week}",
                    share,
                    Normal(0.006),
                    "share",
                    {"units": 1200 + i},
                    {"period": week},
                )
            )
    return _journey(
        "cohorts.signups",
        "cohort",
        "Do those who sign up come back, and what are they worth?",
        "Of 16,000 users who began, 27.1% (26.4% to 27.8%) were active in week 1 and 9.6% (8.9% to 10.4%) in week 12",
        estimates,
        left_out={"cells of fewer than 50 units": 1},
        refusals=(),
    )


def path_result() -> Json:
    paths = (
        ("email > search", 2_310), ("search", 1_904), ("recommendations > search", 1_377), ("email > recommendations > search", 860),
        ("paid_social > email > home > search > recommendations > search > recommendations", 412), ("home", 198),
    )  # fmt: skip
    total = 12_431
    estimates = []
    for rank, (path, n) in enumerate(paths, 1):
        labels: dict[str, str | int] = {"path": path, "rank": rank}
        estimates.append(
            _described("journeys on path", "journeys", path, float(n), _counted(n), "journeys", {"journeys": n}, labels)
        )
        estimates.append(
            _described("share of journeys", "journeys", path, *_share(n, total), "share", {"journeys": total}, labels)
        )
    estimates.append(
        _described(
            "median time to convert",
            "time",
            "all journeys",
            3.4 * 86400,
            Bounds(3.3 * 86400, 3.6 * 86400, 0.95),
            "s",
            {"journeys": total},
            {},
        )
    )
    surfaces = ("search", "recommendations", "email", "home", "paid_social")
    edges = [
        FlowEdge(-1, s, "(conversion)", n) for s, n in zip(surfaces, (5_910, 3_310, 1_420, 1_011, 402), strict=True)
    ]
    for step, scale in ((-2, 0.55), (-3, 0.3), (-4, 0.12)):
        for i, a in enumerate(surfaces):
            for j, b in enumerate(surfaces):
                n = int(1_100 * scale / (1 + 0.6 * i + 0.35 * j))
                if a != b and n > 60:
                    edges.append(FlowEdge(step, a, b, n))
    return _journey(
        "paths.to_purchase",
        "path",
        "What do people meet before they buy?",
        "The most common of 12,431 journeys is email > search: 18.6% (17.9% to 19.3%)",
        estimates,
        closer=Closer(flow=Flow(tuple(edges), total, 311, "Stops are counted back from the conversion")),
        left_out={"conversions without a touch": 1_910},
    )


MODELS = ("first", "last", "linear", "time_decay", "position", "markov", "shapley", "participation")


def attribution_result(
    touchpoints: tuple[str, ...] = ("recommendations", "search", "email", "paid_social"),
    models: tuple[str, ...] = ("first", "last", "linear", "markov", "shapley"),
    windows: tuple[str, ...] = ("30d", "7d"),
    conversions: tuple[str, ...] = ("orders", "signups"),
    reconciled: bool = True,
) -> Json:
    """Credit that adds up, in every model, conversion and window."""
    rng = np.random.default_rng(5)
    estimates: list[Estimate] = []

    def add(estimand: str, value: float, se: float, unit: str, labels: dict[str, str | int]) -> None:
        draws = Draws(value + se * rng.standard_normal(200))
        where = ", ".join(str(x) for x in labels.values())
        estimates.append(
            _described(
                estimand,
                str(labels["conversion"]),
                where,
                value,
                draws,
                unit,
                {"conversions": 8_000},
                labels,
                "bootstrap",
            )
        )

    for conversion in conversions:
        total = 8_000.0 if conversion == conversions[0] else 3_100.0
        for window in windows:
            rest = 0.08 + 0.05 * windows.index(window)
            for m, model in enumerate(models):
                weights = np.array([1 / (1 + k + 0.7 * ((k * 3 + m) % 4)) for k in range(len(touchpoints))])
                shares = weights / weights.sum() * (1 - rest)
                cells = [*zip(touchpoints, shares, strict=True), ("(unattributed)", rest), ("(total)", 1.0)]
                for point, share in cells:
                    at: dict[str, str | int] = {
                        "model": model,
                        "touchpoint": point,
                        "conversion": conversion,
                        "window": window,
                    }
                    add("attributed conversions", total * share, 0.02 * total * share + 9, "conversions", at)
                    add("attributed value", 61.5 * total * share, 1.4 * total * share + 700, "USD", at)
                    if point != "(total)":
                        add("share of conversions", share, 0.011, "share", at)
                        add("share of value", share, 0.013, "share", at)
                    if point == "paid_social":
                        add("attributed value per cost", 61.5 * total * share / 41_000, 0.06, "", at)
                        add("cost per attributed conversion", 41_000 / (total * share), 1.9, "USD", at)
    for k, (model, point) in enumerate([("", "(total)"), *((m, p) for p in touchpoints[:2] for m in models[:3])]):
        labels: dict[str, str | int] = {"touchpoint": point, "conversion": conversions[0], "window": windows[0]}
        labels |= {"model": model} if model else {}
        estimates.append(
            _described("difference in attributed value per unit", conversions[0], "personalised vs generic", 0.84 - 0.2 * k, Normal(0.21), "USD",
                       {"personalised": 88_120, "generic": 9_804}, labels)
        )  # fmt: skip
    found = tuple(_reconciled(model, touchpoints) for model in models[:3]) if reconciled else ()
    return _journey(
        "attribution.personalisation",
        "attribution",
        "Which touchpoints are orders attributed to?",
        "By last touch, 38% (36% to 40%) of attributed value is credited to search; by linear, 31% (30% to 33%)",
        estimates,
        grade="D",
        checks=(
            Check("conserved", "pass", 0.0, "credit and the unattributed add up to the total in every model"),
            Check("cap", "warn", 3.0, "3 users had more than 100,000 pairs of touch and conversion: 41,220 of their oldest touches were dropped"),
        ),
        closer=Closer(reconciliation=found, stitching=(_stitching(),)),
        left_out={"conversions without a user": 41},
    )  # fmt: skip


def _reconciled(model: str, touchpoints: tuple[str, ...]) -> Reconciliation:
    shift = 1 + 0.1 * MODELS.index(model)
    rows = [
        Reconciled(touchpoints[0], "holdout", span(128_000 * shift, 4_100), span(52_000, 14_000), span(0.41 / shift, 0.11), ""),
        Reconciled(touchpoints[1], "remainder", span(96_000 * shift, 3_800), span(39_000, 10_800), span(0.41 / shift, 0.11), ""),
        Reconciled(
            touchpoints[2], "own experiment", span(61_000 * shift, 2_900), span(8_000, 5_200), span(0.13, 0.09),
            "its own experiment shows $8,000 (-$2,200 to $18,200), below what is attributed to it",
        ),
        Reconciled(touchpoints[3], "not personalised", span(22_000 * shift, 1_800), None, None, ""),
    ]  # fmt: skip
    return Reconciliation(
        experiment="global_holdout",
        contrast="personalised vs generic",
        model=model,
        metric="value",
        unit="USD",
        units=88_120,
        attributed=span(285_000 * shift, 8_200),
        incremental=span(99_000, 21_000),
        ratio=span(0.347 / shift, 0.074),
        anyway=span(1 - 0.347 / shift, 0.074),
        rows=tuple(rows),
        rule="touchpoints with an experiment of their own keep it; what is left is spread in proportion to credit",
        reason="",
        sentence=f"By {model}, more is attributed than the holdout shows to be incremental",
    )


def journeys() -> Json:
    """All four kinds of journey, and an experiment of a funnel's name."""
    experiment = email_result()
    experiment["name"] = "experiments.engagement_to_kept"
    return run(
        results=[attribution_result(), funnel_result(), cohort_result(), path_result(), experiment],
        reports={
            "credit": {"audience": "cmo", "show": ["attribution.personalisation"]},
            "steps": {"audience": "cmo", "show": ["funnels.engagement_to_kept"]},
            "test": {"audience": "cmo", "show": ["experiments.engagement_to_kept"]},
            "none": {"audience": "cmo", "show": ["cohorts.engagement_to_kept"]},
        },
    )


def funnel() -> Json:
    return run(results=[funnel_result()])


def cohort() -> Json:
    return run(results=[cohort_result()])


def path() -> Json:
    return run(results=[path_result()])


def attribution() -> Json:
    return run(results=[attribution_result()])


def many_models() -> Json:
    """Twelve touchpoints, eight models, three windows."""
    points = (
        "recommendations",
        "search",
        "email",
        "paid_social",
        "home",
        "push",
        "sms",
        "affiliates",
        "direct",
        "display",
        "tv",
        "referral",
    )
    return run(results=[attribution_result(points, MODELS, ("30d", "7d", "1d"), ("orders",), reconciled=False)])


def compared() -> Json:
    """A measured claim with what is attributed beside it."""
    one = holdout()
    one["claims"][0]["compare"] = [
        {
            "name": "attribution.personalisation", "model": model, "value": value, "low": value * 0.95, "high": value * 1.04,
            "unit": "USD", "sentence": f"By {model}, this much is attributed to personalised touchpoints: attributed, not caused",
        }
        for model, value in (("last", 4.1e6), ("markov", 3.6e6))
    ] + [{"name": "attribution.search", "model": "", "value": None, "low": None, "high": None, "unit": "USD", "sentence": "it was refused: no conversion had a touch"}]  # fmt: skip
    one["results"].append(attribution_result())
    return one


def hostile_journeys() -> Json:
    """Touchpoints, models, steps, cohorts and paths with names that try to break out, or burst the layout."""
    one = run(results=[attribution_result(), funnel_result(1000), path_result()])
    names = {
        "recommendations": HOSTILE,
        "search": RTL,
        "linear": f"\x1b[31m{LONG[:90]}",
        "email": LONG[:120],
        "checkout": f"<b onmouseover=x>{LONG[:60]}",
        "device-5": "\u202e<img src=x>",
    }
    for result in one["results"]:
        for key in ("estimates", "closer"):
            result[key] = rename(result[key], names)
    return one


ALL = {
    "journeys": journeys,
    "funnel": funnel,
    "cohort": cohort,
    "path": path,
    "attribution": attribution,
    "many_models": many_models,
    "compared": compared,
    "hostile_journeys": hostile_journeys,
    "rich": rich,
    "peeked": peeked,
    "programme": programme,
    "hostile_rich": hostile_rich,
    "withheld_rich": withheld_rich,
    "email": email,
    "three_arms": three_arms,
    "holdout": holdout,
    "withheld": withheld,
    "breached": breached,
    "refused": refused,
    "hostile": hostile,
}

"""The figures: what is said, that sentences and tables agree, and that a missing figure stops the report."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from payoff.errors import UsageError
from payoff.report.figures import Effect, MissingFigure, build, of_result
from tests.report import runs

NUMBER = re.compile(r"[\u2212+]?[$\u20ac]?\d[\d,]*(?:\.\d+)?[MB%]?")


def numbers(text: str) -> set[str]:
    return {n.lstrip("+\u2212") for n in NUMBER.findall(text)}


@pytest.mark.parametrize("name", runs.ALL)
def test_a_run_is_json_and_gives_figures(name: str) -> None:
    run = json.loads(json.dumps(runs.ALL[name]()))
    assert build(run) == build(run)


def test_the_title_is_the_finding() -> None:
    assert build(runs.email()).title == (
        "Click rate rises by 1.03 pp with first_name against generic (95% confidence interval +0.53 to +1.54 pp); "
        "but unsubscribe rate may be worse than its margin of 0.1 pp"
    )
    assert build(runs.holdout()).title == (
        "Total margin that personalisation adds, over all surfaces: $2.5M a year net of its cost "
        "(95% simulation interval $1.0M to $4.0M a year), virtually certain to be above zero"
    )
    assert build(runs.refused()).title == "None of the 2 questions could be answered from the data"


@pytest.mark.parametrize("name", runs.ALL)
def test_sentences_use_only_numbers_that_the_tables_show(name: str) -> None:
    figures = build(runs.ALL[name]())
    for section in figures.sections:
        shown = {"95%"}
        for e in section.effects:
            shown |= numbers(
                f"{e.deciding.text} {e.deciding.range} {e.margin_text} {e.target_text} {e.label} {e.contrast} {e.family}"
            )
        shown |= {str(len(section.effects)), str(len({e.metric for e in section.effects}))}
        if section.programme is not None:
            shown |= {str(len(section.programme.members))} | numbers(section.programme.metric)
            for quantity in section.programme.quantities():
                shown |= numbers(f"{quantity.text} {quantity.range}")
        for look in section.looks.segments:
            shown |= numbers(f"{look.attribute} {look.harmed}")
        if not section.withheld and section.journey is None:  # a journey leads with the sentence of its method
            assert numbers(section.finding) <= shown
    for claim in figures.claims:
        shown = {"95%"} | numbers(f"{claim.net.text} {claim.net.range} {claim.statement}")
        for section in figures.sections:
            for e in section.guardrails:
                shown |= numbers(e.margin_text)
        assert numbers(claim.finding) <= shown


def test_every_card_has_its_interval_grade_units_date_and_owner() -> None:
    for name in ("email", "three_arms", "holdout", "breached"):
        cards = build(runs.ALL[name]()).cards
        assert 2 <= len(cards) <= 6
        for card in cards:
            assert card.quantity is not None
            assert card.quantity.range
            facts = dict(card.facts)
            assert {"Evidence", "Data through", "Owner"} <= set(facts)
            assert all(facts.values())


def test_a_chance_is_stated_of_money_and_a_p_value_of_a_confidence_interval() -> None:
    for card in build(runs.holdout()).cards:
        facts = dict(card.facts)
        if card.kind == "Net of cost":
            assert "Chance that it is above zero" in facts
        else:
            assert "Chance that it is above zero" not in facts
        if card.kind == "Primary metric":
            assert facts["Test"].startswith("p ")


def test_states_come_from_the_interval() -> None:
    states = {e.metric: e.state.key for e in build(runs.email()).sections[0].effects}
    assert states == {
        "click_rate": "positive",
        "open_rate": "positive",
        "order_rate": "not conclusive",
        "revenue_per_email": "not conclusive",
        "unsubscribe_rate": "at risk",
    }


def test_a_vanity_metric_is_named_and_never_green() -> None:
    section = build(runs.email()).sections[0]
    (vanity,) = section.vanity
    assert vanity.role_text == "vanity"
    assert "Apple mail" in vanity.caveat
    assert vanity.tone == "off"


def test_the_inner_band_is_the_50_percent_interval_of_the_same_distribution() -> None:
    effect = build(runs.email()).sections[0].effects[0]
    inner = effect.quantity.inner
    assert inner is not None
    # 0.6745 standard errors, the quartile of a normal distribution; 40,000 degrees of freedom are normal to 1e-4
    assert inner[1] - effect.quantity.value == pytest.approx(0.67449 * 0.00258, rel=1e-4)
    assert effect.quantity.low < inner[0] < inner[1] < effect.quantity.high


def test_a_breached_guardrail_blocks_a_green_headline() -> None:
    figures = build(runs.breached())
    assert figures.state.key == "breached"
    assert "return rate is worse than its margin of 0.5 pp" in figures.title
    assert figures.claims[0].state.key == "breached"
    assert "return rate" in figures.risks[0]
    assert figures.cards[-1].state.key == "breached"


def test_a_failed_check_withholds_but_does_not_hide() -> None:
    figures = build(runs.withheld())
    assert figures.title.startswith("Withheld: the sample ratio check failed")
    assert {card.state.key for card in figures.cards} == {"withheld"}
    assert all(card.quantity is not None for card in figures.cards)
    assert all("p <" not in text for card in figures.cards for _, text in card.facts)


def test_a_claim_on_withheld_evidence_is_withheld() -> None:
    run = runs.holdout()
    run["results"][0]["verdict"] = "withheld"
    run["results"][0]["checks"][0]["status"] = "fail"
    run["claims"][0]["verdict"] = "withheld"
    claim = build(run).claims[0]
    assert claim.state.key == "withheld"
    assert "withheld" in claim.finding
    assert "Do not act on it" in claim.decision


def test_three_arms_without_a_primary_are_exploratory() -> None:
    figures = build(runs.three_arms())
    assert figures.state.key == "exploratory"
    assert "none was declared primary" in figures.title
    assert {card.kind for card in figures.cards} == {"Exploratory metric"}
    assert any(e.relative is None and e.relative_note == "not stated" for e in figures.sections[0].effects)


def test_descriptive_figures_get_no_causal_verb() -> None:
    run = runs.email()
    run["results"][0]["grade"] = "D"
    finding = build(run).sections[0].finding
    assert "is higher by" in finding
    assert "rises" not in finding
    assert "not an effect" in finding


def test_a_claim_says_what_would_overturn_it() -> None:
    strong, weak, plain = build(runs.holdout()).claims
    assert strong.overturns[0].startswith(
        "No single input, moved within its range, takes the central return on cost across its threshold "
        "(roi > 0). Effect on margin 90d"
    )
    assert "does not; it would take +$0.636" in strong.overturns[0]
    # Not "the decision changes": the rule asks for a probability, and at this turning point that is about one half.
    assert weak.overturns[0] == (
        "The central net crosses its threshold (net > 0) if click value falls to $0.387 per click; "
        "its range is $0.30 to $4.50 per click."
    )
    assert any("contains zero" in line for line in weak.overturns)
    assert plain.bridge == ()
    assert plain.net.text.startswith("+1.84 points")
    # Inputs taken as exact move nothing, and are not drawn as if they did.
    assert [s.name for s in strong.swings] == [
        "effect on margin 90d",
        "novelty decay",
        "holdout contamination",
        "cost of team",
    ]


def test_without_a_rule_the_sign_is_what_could_change() -> None:
    run = runs.holdout()
    del run["claims"][1]["decision"]
    assert build(run).claims[1].overturns[0].startswith("The central net crosses zero if click value falls to $0.387")


def test_the_ends_of_a_swing_are_written_as_precisely_as_the_net() -> None:
    for claim in build(runs.holdout()).claims[:2]:
        width = claim.net.high - claim.net.low
        for swing in claim.swings:
            for text, end in zip(swing.nets.split(" to "), (swing.net_at_low, swing.net_at_high), strict=True):
                shown = float(re.sub(r"[^0-9.]", "", text)) * (1e6 if text.endswith("M") else 1.0)
                assert abs(shown - abs(end)) <= width / 20
                assert (text[0] == "\u2212") == (end < 0)


def test_a_doubt_is_told_once() -> None:
    run = runs.holdout()
    doubt = runs.check("few units", "warn", None, "a few units decide the mean of generic")
    run["results"][0]["checks"] += [doubt, doubt]
    lines = build(run).claims[0].overturns
    assert sum("a few units decide" in line for line in lines) == 1


def test_evidence_that_failed_a_check_is_not_called_observational() -> None:
    run = runs.holdout()
    run["results"][0].update(verdict="withheld", grade="C")
    run["results"][0]["checks"][0]["status"] = "fail"
    run["claims"][0].update(verdict="withheld", grade="C")
    figures = build(run)
    assert figures.claims[0].grade_text == "C: lowered, because a check failed"
    assert "observational" not in figures.standfirst


def test_payback_without_an_upper_end_has_its_interval_named() -> None:
    run = runs.holdout()
    run["claims"][0]["payback"] = {
        "value": 452.0,
        "low": 32.57,
        "high": None,
        "level": 0.95,
        "never": 0.44,
        "unit": "days",
    }
    assert build(run).claims[0].payback == (
        "14.9 months (95% simulation interval from 32.6 days, with no upper end, "
        "because in 44% of the draws the cost is never covered)"
    )
    run["claims"][0]["payback"]["low"] = None
    assert "it has no interval, because in 44%" in build(run).claims[0].payback


def test_a_lowered_grade_says_so_and_does_not_claim_another_design() -> None:
    weak = build(runs.holdout()).claims[1]
    assert weak.grade_text == "B: lowered from A, for the reasons given with the claim"


def test_units_behind_a_claim_are_those_of_its_effect() -> None:
    strong, weak, _ = build(runs.holdout()).claims
    assert (strong.n, weak.n) == ("199,700", "49,864")


def test_the_bridge_closes() -> None:
    for claim in build(runs.holdout()).claims[:2]:
        assert claim.bridge[0].end == claim.bridge[1].start
        assert claim.bridge[-2].end == pytest.approx(claim.net.value)


def test_assumptions_say_who_tests_them() -> None:
    tested = {a.text: a.tested_by for a in build(runs.email()).sections[0].assumptions}
    assert tested[runs.ASSUMPTIONS[0]] == "Sample ratio check: passed"
    assert tested[runs.ASSUMPTIONS[1]] == "No check can show it; it is judged by people"


def test_a_report_shows_its_claims_with_their_evidence_and_no_more() -> None:
    figures = build(runs.holdout(), "personalisation_quarterly")
    assert [c.name for c in figures.claims] == ["personalisation_total"]
    assert [s.name for s in figures.sections] == ["experiments.global_holdout"]
    assert figures.refusals == ()
    assert figures.kicker == "acme \u00b7 Personalisation, quarterly \u00b7 for cfo"
    with pytest.raises(UsageError, match="did you mean 'personalisation_quarterly'"):
        build(runs.holdout(), "personalisation_quartely")


def test_a_report_that_shows_what_the_run_lacks_is_not_written() -> None:
    run = runs.holdout()
    run["reports"]["personalisation_quarterly"]["show"].append("experiments.elsewhere")
    with pytest.raises(MissingFigure, match=r"experiments\.elsewhere"):
        build(run, "personalisation_quarterly")


def test_one_refusal_is_told_once() -> None:
    run = runs.email()
    run["refusals"] = list(run["results"][0]["refusals"])
    figures = build(run)
    assert len(figures.sections[0].refusals) == 1
    assert figures.refusals == ()


def test_the_same_sql_is_kept_once() -> None:
    run = runs.email()
    run["results"].append({**copy.deepcopy(run["results"][0]), "name": "experiments.again"})
    figures = build(run)
    assert len(figures.sql) == 1
    assert [s.sql for s in figures.sections] == [(1,), (1,)]


def test_data_without_dates_says_so() -> None:
    run = runs.three_arms()
    run["as_of"] = None
    run["results"][0]["provenance"]["as_of"] = None
    figures = build(run)
    assert figures.dated == "data without dates"
    assert dict(figures.cards[0].facts)["Data through"] == "not dated"


def test_one_result_alone() -> None:
    section = of_result(runs.email_result())
    assert section.finding.startswith("Click rate rises by 1.03 pp")


# ---------------------------------------------------------------- failing closed


def _drop(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def edit(run: dict[str, Any]) -> None:
        node: Any = run
        for step in path[:-1]:
            node = node[step]
        del node[path[-1]]

    return edit


def _put(value: Any, *path: str | int) -> Callable[[dict[str, Any]], None]:
    def edit(run: dict[str, Any]) -> None:
        node: Any = run
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = value

    return edit


@pytest.mark.parametrize("key", ["value", "low", "high", "level", "interval_kind", "unit", "n", "estimand", "contrast"])
def test_an_estimate_without_a_part_stops_the_report(key: str) -> None:
    run = runs.holdout()
    _drop("results", 0, "estimates", 0, key)(run)
    if key == "interval_kind":  # named so in every result; a claim's own interval is a simulation
        _put("hunch", "results", 0, "estimates", 0, key)(run)
    with pytest.raises(MissingFigure, match=rf"results\[0\]\.estimates\[0\]\.{key}|has no estimate"):
        build(run)


@pytest.mark.parametrize(
    "path",
    [
        ("claims", 0, "net", "low"),
        ("claims", 0, "amount", "value"),
        ("claims", 0, "probability_positive"),
        ("claims", 0, "statement"),
        ("claims", 0, "cost"),
        ("claims", 0, "costs", 0, "value"),
        ("claims", 0, "inputs", 0, "unit"),
        ("claims", 0, "sensitivity", 0, "net_at_low"),
        ("claims", 1, "payback", "never"),
        ("claims", 0, "decision", "met"),
        ("results", 0, "arms", 0, "low"),
        ("results", 0, "checks", 0, "detail"),
        ("results", 0, "question"),
        ("results", 0, "grade"),
        ("results", 0, "readings", 0, "state"),
        ("refusals", 0, "remedy"),
        ("run_id",),
        ("seed",),
        ("data_fingerprint",),
        ("currency",),
    ],
)
def test_a_missing_figure_stops_the_report(path: tuple[str | int, ...]) -> None:
    run = runs.holdout()
    _drop(*path)(run)
    with pytest.raises(MissingFigure, match=re.escape(str(path[-1]))):
        build(run)


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, "12", True])
def test_what_is_not_a_number_stops_the_report(bad: object) -> None:
    run = runs.holdout()
    _put(bad, "results", 0, "estimates", 0, "value")(run)
    with pytest.raises(MissingFigure, match=r"estimates\[0\]\.value"):
        build(run)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_put("improved", "results", 1, "readings", 2, "state"), "says 'positive' but its interval"),
        (_put("safe", "results", 1, "readings", 4, "state"), "says 'within margin' but its interval"),
        (_put("breached", "results", 0, "readings", 1, "state"), "says 'guardrail breached' but its interval"),
        (_put("negative", "results", 0, "verdict"), "borne by none of its readings"),
        (_put("splendid", "results", 0, "verdict"), "does not know"),
        (_put("negative", "claims", 0, "verdict"), "says 'negative' but its interval"),
        (_put(False, "claims", 0, "decision", "met"), "contradicts"),
        (_put(1.0, "claims", 0, "costs", 0, "value"), "amount less costs"),
        (_put("F", "claims", 0, "grade"), "grades are A to E"),
        (_put([], "results", 0, "estimates"), "has no estimate"),
        (_put(9e9, "results", 0, "estimates", 0, "low"), "wrong way round"),
    ],
)
def test_figures_that_contradict_each_other_stop_the_report(
    edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    run = runs.holdout()
    edit(run)
    with pytest.raises(MissingFigure, match=message):
        build(run)


def test_nothing_to_report_is_an_error() -> None:
    with pytest.raises(MissingFigure, match="nothing to report"):
        build(runs.run())


def test_a_claim_whose_evidence_is_elsewhere_still_stands() -> None:
    run = runs.holdout()
    run["results"] = []
    run["refusals"] = []
    claim = build(run).claims[0]
    assert claim.n == "not counted"
    assert claim.state.key == "positive"


def test_a_target_is_read_in_the_direction_of_the_metric() -> None:
    run = runs.email()
    result = run["results"][0]
    result["readings"][0]["target"] = 0.005
    result["readings"][0]["state"] = "above target"
    effect: Effect = build(run).sections[0].effects[0]
    assert effect.target_text == "+0.5 pp"
    assert effect.state.key == "above target"
    result["readings"][0]["target"] = 0.008
    with pytest.raises(MissingFigure, match="above target"):
        build(run)

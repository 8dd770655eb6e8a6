"""Journeys in the report: nothing is dropped, nothing is called an effect, and what may not be shown is said to be missing."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from payoff import formats
from payoff.errors import UsageError
from payoff.report import charts, html, terminal
from payoff.report.charts.journeys import _simplified
from payoff.report.charts.ranges import SHAPES
from payoff.report.figures import (
    AttributionFigures,
    CohortFigures,
    Edge,
    FunnelFigures,
    MissingFigure,
    PathFigures,
    Section,
    build,
    stop_name,
)
from tests.report import runs

KINDS = {"funnel": runs.funnel, "cohort": runs.cohort, "path": runs.path, "attribution": runs.attribution}


def section(run: dict[str, Any], at: int = 0) -> Section:
    return build(run).sections[at]


def words_of(section: Section) -> str:
    said = [section.standing]
    for part in section.parts:
        said += [part.title, *part.said, part.under]
        for grid in part.grids:
            said += [grid.caption, *grid.heads, *(cell.short for row in grid.rows for cell in row)]
    return " ".join(said)


# ---------------------------------------------------------------- what it is called


@pytest.mark.parametrize("name", KINDS)
def test_a_description_leads_with_its_finding_in_a_neutral_tone(name: str) -> None:
    run = KINDS[name]()
    figures = build(run)
    one = figures.sections[0]
    assert figures.title == run["results"][0]["finding"].rstrip(".")
    assert (one.state.key, one.state.tone) == ("descriptive", "quiet")
    credit = "Descriptive: credit is shared out by rules, not an effect. Evidence grade D"
    assert one.standing.startswith(
        credit if name == "attribution" else "Descriptive: nothing was compared, so it has no"
    )
    assert one.effects == ()
    if name == "attribution":
        assert one.grade_text == "D: attributed only, not causal"
        assert "attributed" in one.standing
    else:
        assert one.grade_text == "no grade: a description"
        assert figures.cards == ()


def test_a_long_finding_is_whole_in_its_section_and_its_first_sentence_is_the_title() -> None:
    run = runs.path()
    run["results"][0]["finding"] = "Of 1.50 million journeys most came by one path. " + "The rest of it is long. " * 12
    figures = build(run)
    assert figures.title == "Of 1.50 million journeys most came by one path"
    assert "The rest of it is long" in figures.sections[0].finding


@pytest.mark.parametrize("name", KINDS)
def test_nothing_described_is_called_an_effect(name: str) -> None:
    one = section(KINDS[name]())
    words = words_of(one).lower().replace("not an effect", "")
    assert not re.search(r"\b(effects?|lift|drove|drives|caused|causes|impact|improv\w+|no effect)\b", words)
    drawn = [chart for draws in html._of_journey(one).values() for draw in draws if (chart := draw()) is not None]
    assert drawn
    for chart in drawn:
        assert "no effect" not in chart.wide
        for colour in ("good", "bad", "warn", "good-band", "bad-band", "warn-band"):
            assert charts.PALETTE[colour] not in chart.wide + chart.narrow


@pytest.mark.parametrize("name", KINDS)
def test_no_estimate_is_dropped(name: str) -> None:
    result = KINDS[name]()["results"][0]
    written = {(q.value, q.low, q.high) for part in section(KINDS[name]()).parts for q in part.quantities()}
    for e in result["estimates"]:
        if e["estimand"] == "share of entrants reaching step" and e["position"] == 1:
            continue
        assert (e["value"], e["low"], e["high"]) in written, (e["estimand"], e["contrast"])


def test_figures_of_a_kind_that_is_not_known_are_still_shown() -> None:
    run = runs.funnel()
    extra = copy.deepcopy(run["results"][0]["estimates"][0])
    extra.update(estimand="units that came twice", contrast="engagement, twice", value=77.0, low=60.0, high=95.0)
    run["results"][0]["estimates"].append(extra)
    part = section(run).parts[-2]
    assert part.title == "Other figures"
    assert part.grids[0].rows[0][0].text == "Units that came twice, engagement, twice"


def test_cards_are_of_attributed_credit_and_of_what_was_shown() -> None:
    figures = build(runs.journeys())
    cards = {card.kind: card for card in figures.cards}
    assert {"Attributed", "Incremental over attributed", "Primary metric"} <= set(cards)
    assert cards["Attributed"].state.tone == "quiet"
    assert dict(cards["Attributed"].facts)["Credit"] == "Recommendations, by first"
    assert dict(cards["Incremental over attributed"].facts)["Beyond what is shown"].endswith(
        "of the credit is more than the experiment shows"
    )
    primary = [card for card in figures.cards if card.kind == "Primary metric"]
    assert all(card.state.key != "descriptive" for card in primary)
    assert any("its own experiment shows" in risk for risk in figures.risks)


# ---------------------------------------------------------------- which is shown


def test_a_report_tells_two_results_of_one_name_apart_by_their_kind() -> None:
    run = runs.journeys()
    assert [s.name for s in build(run, "steps").sections] == ["funnels.engagement_to_kept"]
    assert [s.name for s in build(run, "test").sections] == ["experiments.engagement_to_kept"]
    assert [s.name for s in build(run, "credit").sections] == ["attribution.personalisation"]
    with pytest.raises(MissingFigure, match=r"shows 'cohorts\.engagement_to_kept'"):
        build(run, "none")
    titles = [s.title for s in build(run).sections]
    assert titles[1] == "Engagement to kept (funnel)"
    assert titles[4] == "Engagement to kept"


def test_a_refused_journey_is_its_refusal() -> None:
    run = runs.run(
        refusals=[{"name": "funnels.checkout", "reason": "nobody entered", "remedy": "widen the range"}],
        reports={"r": {"audience": "cmo", "show": ["funnels.checkout"]}},
    )
    figures = build(run, "r")
    assert [r.name for r in figures.refusals] == ["funnels.checkout"]
    assert figures.sections == ()


# ---------------------------------------------------------------- funnels


def test_steps_stand_as_they_were_counted_and_those_inside_are_said_apart() -> None:
    one = section(runs.funnel())
    assert isinstance(one.journey, FunnelFigures)
    first, cart = one.journey.steps[:2]
    assert first.reached is not None
    assert first.reached.text == "48,213"
    assert cart.before is not None
    assert cart.before.text == "31.20%"
    assert one.journey.inside == "Units still inside their window: 1,204"
    assert "no drop-off" in one.parts[0].said[0]
    assert [name for name, _ in one.journey.classes] == ["phone", "desktop", "(none)"]


def test_a_step_of_too_few_units_is_hatched_and_named() -> None:
    run = runs.funnel()
    kept = [e for e in run["results"][0]["estimates"] if e["position"] != 3 or e["estimand"] != "units reaching step"]
    run["results"][0]["estimates"] = [e for e in kept if not (e["position"] == 3 and e["segment"] is None)]
    one = section(run)
    assert isinstance(one.journey, FunnelFigures)
    assert one.journey.steps[2].reached is None
    chart = charts.funnel(one.journey, one.title)
    assert "url(#hatch-" in chart.wide
    assert "too few units" in chart.description
    assert "not shown: too few units" in words_of(one)


def test_classes_of_each_step_are_shares_of_all_who_entered() -> None:
    run = runs.funnel()
    estimates = run["results"][0]["estimates"]
    entered = copy.deepcopy(next(e for e in estimates if e["estimand"].startswith("share of entrants")))
    estimates.append(
        {**entered, "step": "engagement", "position": 1, "segment": "phone", "value": 0.5, "low": 0.48, "high": 0.52}
    )
    by_class = next(part for part in section(run).parts if part.title == "By class")
    assert by_class.grids[0].caption.startswith("Each class at each step, as a share of all who entered")
    assert by_class.grids[0].rows[0][1].quantity is not None


# ---------------------------------------------------------------- cohorts


def test_what_has_not_closed_and_what_is_hidden_are_two_things() -> None:
    one = section(runs.cohort())
    assert isinstance(one.journey, CohortFigures)
    lines = {line.name: line for line in one.journey.lines}
    third, youngest = list(lines.values())[3], list(lines.values())[-1]
    assert third.retention[6].state == "hidden"
    assert [c.state for c in youngest.retention[:2]] == ["shown", "open"]
    assert all(c.state == "shown" for c in lines["All cohorts"].retention)
    said = " ".join(one.parts[0].said)
    assert "has not closed yet is blank" in said
    assert "Hatched: too few units" in said
    chart = charts.retention(one.journey, one.title)
    assert chart is not None
    assert chart.wide.count("url(#hatch-") == 1
    # one shaded box for each cell that is shown and not of nobody
    shown = sum(c.quantity is not None and c.quantity.value > 0 for line in lines.values() for c in line.retention)
    boxes = [p for p in ElementTree.fromstring(chart.wide).iter(f"{{{charts.SVG}}}path") if p.get("class") == "under"]
    assert len(boxes) == shown


def test_a_share_in_its_cell_is_that_of_the_table() -> None:
    one = section(runs.cohort())
    assert isinstance(one.journey, CohortFigures)
    chart = charts.retention(one.journey, one.title)
    assert chart is not None
    drawn = [t.text or "" for t in ElementTree.fromstring(chart.wide).iter(f"{{{charts.SVG}}}text")]
    for line in one.journey.lines:
        for cell in line.retention:
            if cell.quantity is not None:
                value = 100 * cell.quantity.value
                assert {cell.quantity.text, f"{value:.1f}%", f"{value:.0f}%"} & set(drawn)


def test_old_cohorts_give_way_and_the_page_says_so() -> None:
    run = runs.cohort()
    result = run["results"][0]
    base = next(e for e in result["estimates"] if e["estimand"] == "retention")
    result["estimates"] = [{**base, "cohort": f"2025-01-{d:02d}", "period": k} for d in range(1, 32) for k in range(2)]
    one = section(run)
    assert isinstance(one.journey, CohortFigures)
    assert len(one.journey.lines) == 26
    assert one.journey.lines[-1].name == "2025-01-31"
    assert "The 26 newest cohorts are shown; 5 older ones are in the JSON." in one.parts[0].said


@pytest.mark.parametrize(
    ("kind", "words"),
    [("n_day", "N-day retention"), ("unbounded", "can still grow"), ("bracket", "Bracket retention")],
)
def test_kinds_of_retention_are_told_apart(kind: str, words: str) -> None:
    run = runs.cohort()
    for e in run["results"][0]["estimates"]:
        if e["estimand"] == "retention":
            e.update(kind=kind, span=f"{7 * e['period']}d to {7 * e['period'] + 7}d")
    one = section(run)
    assert words in " ".join(one.parts[0].said)
    assert "Period 1, 7d to 14d" in words_of(one)


def test_a_payback_that_was_not_reached_has_no_number() -> None:
    one = section(runs.cohort())
    part = next(p for p in one.parts if p.title == "Cost and payback")
    rows = {row[0].text: row for row in part.grids[0].rows}
    third = list(rows)[3]
    assert rows[third][2].quantity is None
    assert rows[third][2].text == "not given"
    assert rows["All cohorts"][1].quantity is not None


# ---------------------------------------------------------------- paths


def test_paths_keep_their_rank_and_stops_their_name() -> None:
    one = section(runs.path())
    assert isinstance(one.journey, PathFigures)
    assert [row.rank for row in one.journey.rows] == [1, 2, 3, 4, 5, 6]
    assert one.parts[0].grids[0].rows[0][0].text == "1. email > search"
    assert [stop_name(at, -3) for at in (-3, -1, 0)] == ["3 stops before", "the last stop", "the event"]
    assert [stop_name(at, 0) for at in (0, 1, 4)] == ["the event", "stop 1", "stop 4"]
    flow = next(p for p in one.parts if p.picture == "flow")
    assert "311 journeys are in flows of too few units" in flow.said[0]


def test_a_simplified_flow_loses_no_journey_of_the_columns_it_shows() -> None:
    edges = [Edge(at, f"a{i}", f"a{j}", 1 + i + j) for at in range(-7, 0) for i in range(12) for j in range(12)]
    found, note = _simplified(edges)
    assert note == "3 earlier stops are in the table"
    assert sum(x.n for x in found) == sum(x.n for x in edges if x.at >= -4)
    assert max(len({x.source for x in found if x.at == at}) for at in range(-4, 0)) == 9
    onwards, later = _simplified([Edge(at, "a", "b", 5) for at in range(8)])
    assert {x.at for x in onwards} == {0, 1, 2, 3}
    assert later == "4 later stops are in the table"


# ---------------------------------------------------------------- attribution


def test_every_model_has_a_mark_of_its_own() -> None:
    assert len(set(SHAPES)) == len(SHAPES)
    one = section(runs.many_models())
    assert isinstance(one.journey, AttributionFigures)
    chart = charts.credit(one.journey, one.title)
    said = [t.text for t in ElementTree.fromstring(chart.wide).iter(f"{{{charts.SVG}}}text")]
    assert [m for m in said if m in one.journey.models] == list(one.journey.models)
    assert len(one.journey.rows) == 13
    assert one.journey.rows[-1].name == "(unattributed)"


def test_touchpoints_go_by_the_first_models_credit_the_rest_and_the_total_last() -> None:
    one = section(runs.attribution())
    assert isinstance(one.journey, AttributionFigures)
    names = [row[0].text for row in one.parts[0].grids[0].rows]
    assert names[-2:] == ["(unattributed)", "(total)"]
    first = [row[1].quantity for row in one.parts[0].grids[0].rows[:-2]]
    values = [q.value for q in first if q is not None]
    assert values == sorted(values, reverse=True)
    assert one.parts[0].grids[0].rows[-1][1].second is None


def test_windows_and_conversions_stand_side_by_side() -> None:
    parts = {part.title: part for part in section(runs.attribution()).parts}
    both = parts["Conversions and windows side by side"]
    assert both.grids[0].heads[1:] == (
        "Orders, 30d window",
        "Orders, 7d window",
        "Signups, 30d window",
        "Signups, 7d window",
    )
    assert [folded for folded, _ in both.blocks] == [
        "",
        "Attributed conversions by first",
        "By last",
        "By linear",
        "By Markov",
        "By Shapley",
    ]
    assert "Windows side by side" in {part.title for part in section(runs.many_models()).parts}


def test_credit_by_place_and_arm_against_arm_have_tables_of_their_own() -> None:
    run = runs.attribution()
    base = run["results"][0]["estimates"][0]
    for k in (1, 2):
        run["results"][0]["estimates"].append(
            {
                **base,
                "estimand": "attributed conversions by position",
                "touchpoint": f"search, touch {k}",
                "position": k,
            }
        )
    parts = {part.title: part for part in section(run).parts}
    assert parts["Credit by place in the path"].grids[0].heads == ("Touchpoint", "Touch 1", "Touch 2")
    arms = parts["Attributed value, arm against arm"].grids[0]
    assert "personalised vs generic" in arms.caption
    assert "units: personalised 88,120, generic 9,804" in arms.caption
    assert arms.rows[0][0].text == "All that is attributed"
    assert [cell.quantity.text for row in arms.rows[:2] for cell in row[1:] if cell.quantity is not None] == [
        *["+$0.84"] * 3,
        "+$0.64",
        "+$0.44",
        "+$0.24",
    ]


def test_attributed_and_incremental_stand_beside_one_another() -> None:
    one = section(runs.attribution())
    assert isinstance(one.journey, AttributionFigures)
    r = one.journey.reconciliations[0]
    assert r.anyway_text == (
        "65% of what was attributed is more than the experiment shows (95% simulation interval 51% to 80%)."
    )
    parts = {part.title: part for part in one.parts}
    leading = parts["Attributed and incremental, by first"]
    assert any(text.startswith("Conflict. Email: its own experiment shows") for text in leading.said)
    assert any(text.startswith("Rule: touchpoints with an experiment") for text in leading.said)
    assert [row[4].text for row in leading.grids[0].rows][-1] == "met by both arms alike: not tested"
    assert leading.grids[0].rows[-1][0].text == "Paid social, not personalised"
    side = parts["Attributed and incremental, model by model"]
    assert [row[0].text for row in side.grids[0].rows] == ["First", "Last", "Linear"]


def test_a_holdout_that_shows_nothing_is_not_a_number_alone() -> None:
    run = runs.attribution()
    r = run["results"][0]["closer"]["reconciliation"][0]
    r["incremental"] = {"value": 2_000.0, "low": -20_000.0, "high": 24_000.0}
    r["anyway"] = {"value": 0.99, "low": 0.9, "high": 1.1}
    one = section(run)
    assert isinstance(one.journey, AttributionFigures)
    assert one.journey.reconciliations[0].anyway_text.endswith(
        "What was shown is not clear of zero, so all of it may be."
    )
    r["anyway"] = r["ratio"] = None
    r["reason"] = "what is attributed is not clear of zero"
    one = section(run)
    assert isinstance(one.journey, AttributionFigures)
    assert "is not told: what is attributed is not clear of zero." in one.journey.reconciliations[0].anyway_text
    assert "Incremental over attributed" not in {card.kind for card in build(run).cards}


def test_a_claim_shows_what_is_attributed_beside_it() -> None:
    figures = build(runs.compared())
    lines = figures.claims[0].compare
    assert [(x.model, x.quantity is not None) for x in lines] == [("Last", True), ("Markov", True), ("no model", False)]
    page = html.page(figures)
    assert "Beside it: what is attributed" in page
    assert "attributed, not caused" in page
    assert figures.claims[0].grade == "A"
    assert "Beside it: what is attributed" in terminal.text(runs.compared())


def test_stitching_is_told_before_and_after() -> None:
    part = section(runs.funnel()).parts[-1]
    assert part.title == "User: ids taken together"
    assert [cell.text for cell in part.grids[0].rows[0]] == ["Units", "88,120", "59,411"]
    rows = {row[0].text: row for row in part.grids[1].rows}
    assert rows["Shared by several people"][2].text == "device-5: 3 people; device-81: 2 people"
    assert rows["Too large to be one unit"][2].text == "kiosk-1: 40,112 ids"
    assert rows["Blocked values"][2].text.startswith("guest: 4,120 pairs")


def test_what_an_earlier_section_shows_is_folded_away_in_later_ones() -> None:
    parts = [s.parts[-1] for s in build(runs.journeys()).sections[:2]]
    assert [grid.folded for grid in parts[0].grids] == ["", ""]
    assert all(grid.folded.startswith("As above: ") for grid in parts[1].grids)


# ---------------------------------------------------------------- renderers


def test_the_leading_picture_of_a_journey_needs_no_name() -> None:
    for name, make in KINDS.items():
        assert html.chart(make()).startswith("<svg"), name
    with pytest.raises(UsageError, match="no chart of 'flow' here; there is funnel"):
        html.chart(runs.funnel(), "flow")
    root = ElementTree.fromstring(html.chart(runs.funnel(), "funnel"))
    assert len(root.findall(f"{{{charts.SVG}}}svg")) == 2


def test_brief_prints_no_table_but_a_short_leading_one() -> None:
    out = io.StringIO()
    terminal.render(build(runs.attribution()), Console(file=out, width=80, no_color=True), brief=True)
    text = out.getvalue()
    assert "Attributed credit by model" not in text  # three models of many touchpoints are no finding
    assert "side by side" not in text
    assert "what is attributed to it" in text
    assert len(text.splitlines()) < 90


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    out = io.StringIO()
    terminal.render(build(runs.journeys()), Console(file=out, width=width, no_color=True))
    assert max(len(line) for line in out.getvalue().splitlines()) <= min(width, 100)


# ---------------------------------------------------------------- what stops a report


def _put(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda result: result.update({key: value})


def _first(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda result: result["estimates"][0].update({key: value})


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("funnel", _put("verdict", "positive"), "the verdict of a 'funnel' is not 'positive'"),
        ("funnel", _put("grade", "F"), "grades are A to E"),
        ("funnel", _put("estimates", []), "hold no step of the funnel"),
        ("funnel", _first("position", None), r"position is missing"),
        ("attribution", _put("estimates", []), "hold no credit"),
        ("attribution", _first("model", None), r"model is missing"),
        ("attribution", _first("value", float("nan")), "not a finite number"),
        ("path", _first("rank", "first"), "not a finite number"),
        ("cohort", _first("low", None), "low is missing"),
        ("path", lambda r: r["estimates"].pop(0), "has a share, but no count"),
        ("attribution", lambda r: r["closer"]["reconciliation"][0]["rows"][0].update(by="guess"), "does not know"),
        ("attribution", lambda r: r["closer"]["reconciliation"][0]["attributed"].update(low=9e9), "wrong way round"),
    ],
)
def test_what_contradicts_itself_stops_the_report(
    name: str, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    run = KINDS[name]()
    edit(run["results"][0])
    with pytest.raises(MissingFigure, match=message):
        build(run)


def test_an_experiment_is_never_descriptive_and_has_a_grade() -> None:
    run = runs.email()
    run["results"][0].update(verdict="descriptive")
    with pytest.raises(MissingFigure, match="is not 'descriptive'"):
        build(run)
    run = runs.email()
    run["results"][0].update(grade="")
    with pytest.raises(MissingFigure, match="grades are A to E"):
        build(run)


def test_a_failed_check_withholds_a_description() -> None:
    run = runs.attribution()
    run["results"][0]["verdict"] = "withheld"
    run["results"][0]["checks"][0] = runs.check("conserved", "fail", 2.0, "credit does not add up to the total by last")
    one = section(run)
    assert one.withheld
    assert one.finding.startswith("Withheld: the conserved check failed, so no figure may be read from")
    assert formats.capital(one.standing).startswith("Credit does not add up")

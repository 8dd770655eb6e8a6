"""The closer looks at an experiment: shown where they are, left out where they are not, and never against their own figures."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from payoff.errors import UsageError
from payoff.report import charts, html, terminal
from payoff.report.figures import MissingFigure, Section, build, of_result
from tests.report import runs
from tests.report.test_html import Page


def section(name: str) -> Section:
    return build(runs.ALL[name]()).sections[0]


def printed(run: dict[str, Any]) -> str:
    return re.sub(r"\s+", " ", terminal.text(run))


# ---------------------------------------------------------------- families


def test_a_metric_of_a_family_leads_with_its_corrected_interval_and_shows_the_raw_one() -> None:
    margin = section("rich").effects[0]
    assert margin.deciding.range == "+$0.26 to +$1.55"
    assert margin.quantity.range == "+$0.38 to +$1.43"
    assert (margin.test, margin.p_value) == ("p = 0.002", "p < 0.001")
    assert margin.part == "one of 3 primary questions, Holm"
    assert "95% confidence interval corrected for 3 questions, +$0.26 to +$1.55" in section("rich").finding
    for text in (Page(html.page(build(runs.rich()))).text, printed(runs.rich()), Page(html.snippet(runs.rich())).text):
        assert margin.deciding.range in text
        assert margin.quantity.range in text
        assert "one of 3 primary questions, Holm" in text
        assert "one of 2 secondary questions, Benjamini-Hochberg" in text


def test_what_only_a_single_question_would_have_shown_is_said() -> None:
    second_visit = section("rich").effects[1]
    assert second_visit.state.key == "not conclusive"
    assert second_visit.quantity.low > 0 > second_visit.deciding.low
    assert second_visit.reading == "Read alone the interval excludes zero; corrected for its family it contains it."


def test_classes_and_other_estimands_are_no_rows_beside_the_effects() -> None:
    assert [e.metric for e in section("rich").effects] == [
        "margin_28d",
        "second_visit",
        "orders_28d",
        "clicks_on_page",
        "items_viewed",
        "return_rate",
    ]


# ---------------------------------------------------------------- alarms


def test_a_sign_flip_comes_before_everything_else() -> None:
    figures = build(runs.rich())
    assert figures.title.endswith("; but the sign flips by tenure (new: harmed)")
    assert figures.risks[0].startswith("Homepage recommendations: sign flip by tenure")
    page = Page(html.page(figures)).text
    warning = page.index("Before the overall figure is read.")
    assert warning < page.index("Every metric against no effect")
    assert "Before the overall figure is read: Sign flip by tenure" in printed(runs.rich())
    snippet = Page(html.snippet(runs.rich())).text
    assert snippet.index("Sign flip by tenure") < snippet.index("Closer looks")


def test_a_possible_flip_warns_and_leaves_the_finding() -> None:
    run = runs.rich()
    run["results"][0]["closer"]["segments"][0]["flip"] = "possible"
    figures = build(run)
    assert "flips" not in figures.title
    assert [a.attribute for a in figures.sections[0].looks.alarms] == ["tenure"]


def test_without_a_flip_there_is_no_alarm() -> None:
    assert section("peeked").looks.alarms == ()
    assert "Before the overall figure" not in html.page(build(runs.peeked()))


# ---------------------------------------------------------------- what is shown, and what is not

HEADINGS = (
    "Precision",
    "Margin 28d by tenure",
    "Margin 28d by country",
    "Margin 28d by days since exposure",
    "Margin 28d so far",
    "What was gained, and what others lost",
    "Other experiments on the same units",
    "Bayesian reading, apart from the rest",
    "The effect on everyone assigned",
    "Heavy tails",
    "Who looked when",
    "What would overturn this",
)


def headings(run: dict[str, Any]) -> list[str]:
    return [text for tag, text in Page(html.page(build(run))).texts if tag == "h4"]


def test_every_part_has_its_place_and_order() -> None:
    assert [h for h in headings(runs.rich()) if h in HEADINGS] == list(HEADINGS)
    shown = headings(runs.rich())
    assert shown[:3] == ["Effects", "Guardrails", "Arms"]
    assert shown.index("What would overturn this") < shown.index("Checks")


@pytest.mark.parametrize("name", ["email", "holdout", "three_arms"])
def test_empty_parts_are_not_shown(name: str) -> None:
    run = runs.ALL[name]()
    of_claims = {"What would overturn this"} if run["claims"] else set()
    assert not (set(headings(run)) & set(HEADINGS)) - of_claims
    for result in run["results"]:
        result["closer"] = runs.Closer().to_dict()
    assert html.page(build(run)) == html.page(build(runs.ALL[name]()))


def test_one_look_alone_is_a_sentence() -> None:
    run = runs.rich()
    peeking = run["results"][0]["closer"]["peeking"]
    peeking.update(looks=peeking["looks"][-1:], sentence="Looked at once: the interval is what it says", error=0.05)
    page = Page(html.page(build(run))).text
    assert "Looked at once: the interval is what it says." in page
    assert "Every look that the ledger holds" not in page
    assert section("rich").looks.peeking is not None
    assert build(run).sections[0].looks.peeking.state.key == "pass"  # type: ignore[union-attr]


def test_what_could_not_be_told_says_why() -> None:
    page = Page(html.page(build(runs.peeked()))).text
    assert "cannot be told: the treated arm\u2019s level" in page.replace("'", "\u2019")
    assert "fewer than 20 units are in recommended here and free there" in Page(html.page(build(runs.rich()))).text
    assert "'LI' has fewer than 20 units in an arm" in printed(runs.rich())


def test_a_failed_check_keeps_back_what_would_conclude_something() -> None:
    looks = section("withheld_rich").looks
    assert looks.kept_back
    assert (looks.segments, looks.over_time, looks.cannibalisation, looks.bayes) == ((), (), (), ())
    for text in (Page(html.page(build(runs.withheld_rich()))).text, printed(runs.withheld_rich())):
        assert "not shown while a check fails" in text
        assert "helps" not in text


def test_the_bayesian_reading_stands_apart() -> None:
    page = Page(html.page(build(runs.rich())))
    for tag, text in page.texts:
        if tag in ("p", "li", "td", "caption", "figcaption", "h1"):
            assert not ("credible" in text and re.search(r"confidence interval|p [<=] ", text)), text
    assert not any("credible" in line for line in section("rich").looks.frequentist)
    assert [attrs["aria-label"] for attrs in page.of("aside")] == ["Bayesian reading"]


def test_each_kind_of_interval_has_its_name() -> None:
    looks = section("peeked").looks
    assert looks.segments[0].read[0].quantity.interval_name == "95% always-valid interval corrected over all segments"  # type: ignore[union-attr]
    # Pooling is made for one look, whatever the stopping rule.
    assert looks.segments[0].read[0].pooled.interval_name == "95% credible interval partially pooled"  # type: ignore[union-attr]
    run = runs.peeked()
    for estimate in run["results"][0]["estimates"]:
        estimate["interval_kind"] = "repeated"
    assert "95% repeated confidence interval" in build(run).title


def test_many_dates_fold_away() -> None:
    run = runs.rich()
    series = run["results"][0]["closer"]["over_time"][1]
    series["points"] = [dict(series["points"][0], end=f"2026-11-{day:02d}") for day in range(1, 31)]
    page = html.page(build(run))
    assert "All 30 dates in a table" in page
    drawn = ElementTree.fromstring(charts.over_time(build(run).sections[0].looks.by_date[0]).narrow)
    assert 2 <= sum("2026-11" in (text.text or "") for text in drawn.iter(f"{{{charts.SVG}}}text")) <= 12


def test_brief_keeps_the_alarm_and_what_would_overturn() -> None:
    out = io.StringIO()
    terminal.render(build(runs.rich()), Console(file=out, width=80), brief=True)
    text = re.sub(r"\s+", " ", out.getvalue())
    assert "Before the overall figure is read" in text
    assert "What would overturn this" in text
    assert "Chance of a false finding at 4 looks: 12%; at one: 5%" in text
    assert "Heavy tails" not in text


def test_right_to_left_names_keep_the_figures_in_order() -> None:
    for look in section("hostile_rich").looks.alarms:
        outside = re.sub("\u2068[^\u2069]*\u2069", "", look.sentence)
        assert runs.RTL.split()[0] in look.sentence
        assert not re.search("[\u0590-\u05ff]", outside)


@pytest.mark.parametrize(
    ("reduction", "words"),
    [
        (0.615, "62% of the variance taken out"),
        (-0.0005, "the variance changed by less than 1%"),
        (-0.04, "the variance grew by 4%"),
    ],
)
def test_adjustment_that_gained_nothing_is_said_so(reduction: float, words: str) -> None:
    run = runs.rich()
    run["results"][0]["closer"]["precision"][0]["variance_reduction"] = reduction
    assert build(run).sections[0].looks.precision[0].variance == words


# ---------------------------------------------------------------- failing closed


def _closer(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def edit(run: dict[str, Any]) -> None:
        node: Any = run["results"][0]["closer"]
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_closer("segments", 0, "rows", 1, "state", value="improved"), "says 'positive' but its interval"),
        (_closer("segments", 0, "rows", 0, "state", value="improved"), "says 'positive' but its interval"),
        (_closer("segments", 1, "flip", value="shown"), "all its differences have one sign"),
        (_closer("segments", 0, "flip", value="perhaps"), "does not know"),
        (_closer("segments", 0, "sentence", value=""), "sentence is empty"),
        (_closer("segments", 1, "rows", 3, "reason", value=""), "reason is empty"),
        (_closer("segments", 0, "rows", 0, "difference", "low", value=None), "difference.low is missing"),
        (_closer("over_time", 0, "axis", value="moons"), "does not know"),
        (_closer("over_time", 0, "pattern", value="soars"), "does not know"),
        (_closer("over_time", 0, "points", value=[]), "points is empty"),
        (_closer("cannibalisation", 0, "net", "value", value=1.0), "but the net is 1"),
        (_closer("cannibalisation", 0, "anyway", value=None), "reason is empty"),
        (_closer("interactions", 1, "reason", value=""), "reason is empty"),
        (_closer("peeking", "rule", value="whenever"), "does not know"),
        (_closer("precision", 0, "metric", value="elsewhere"), "has no estimate"),
        (_closer("capping", 0, "plain", "high", value=float("nan")), "not a finite number"),
        (_closer("bayes", 0, "chance_to_beat", value="certain"), "not a finite number"),
    ],
)
def test_a_look_that_contradicts_itself_stops_the_report(edit: Callable[[dict[str, Any]], None], message: str) -> None:
    run = runs.rich()
    edit(run)
    with pytest.raises(MissingFigure, match=re.escape(message)):
        build(run)


@pytest.mark.parametrize(("key", "value"), [("p_value", 1e-9), ("method", "wishful"), ("low", None)])
def test_a_correction_that_cannot_be_stops_the_report(key: str, value: object) -> None:
    run = runs.rich()
    run["results"][0]["estimates"][0]["correction"][key] = value
    with pytest.raises(MissingFigure, match="correction"):
        build(run)


def test_a_state_is_held_against_the_corrected_interval() -> None:
    run = runs.rich()
    run["results"][0]["readings"][1]["state"] = "improved"  # as its interval alone would say
    with pytest.raises(MissingFigure, match=r"second_visit.*says 'positive' but its interval"):
        build(run)


# ---------------------------------------------------------------- programmes


def test_a_programme_leads_with_the_total_that_may_be_believed() -> None:
    figures = build(runs.programme())
    assert figures.title == (
        "Margin 28d over the programme of 5 experiments, the luck of the winners taken out: +$2.02 (95% credible interval"
        " +$1.15 to +$2.90)"
    )
    (card,) = figures.cards
    assert (card.kind, card.quantity.text if card.quantity else "") == ("Programme total", "+$2.02")
    found = figures.sections[0].programme
    assert found is not None
    assert [m.label for m in found.members][:2] == ["Homepage recommendations", "First name subject"]
    assert [t.label for t in found.totals] == [
        "Total as measured",
        "Total, shrunk",
        "Holdout",
        "Holdout less programme",
    ]
    assert "Homepage recommendations" in html.chart(runs.programme(), "effects")
    assert "Holdout less programme" in Page(html.snippet(runs.programme())).text


def test_shrunk_and_measured_intervals_are_each_called_what_they_are() -> None:
    both = "as measured with its 95% confidence interval; shrunk with its 95% credible interval"
    page = Page(html.page(build(runs.programme()))).text
    assert page.count(both) == 2  # below the chart and above the table
    assert "shrunk +$0.70 (95% credible interval" in printed(runs.programme())
    assert "95% credible interval" in Page(html.snippet(runs.programme())).text


def test_a_programme_without_a_total_or_with_other_figures_is_still_shown() -> None:
    run = runs.programme()
    estimates = run["results"][0]["estimates"]
    run["results"][0]["estimates"] = [*estimates[:5], {**estimates[-1], "estimand": "holdout drift"}]
    run["results"][0]["verdict"] = "not conclusive"
    figures = build(run)
    assert "no total could be given" in figures.title
    assert "not shrunk" in html.page(figures)
    assert "Holdout drift, holdout less programme" in html.page(figures)


def test_a_programme_that_contradicts_itself_stops_the_report() -> None:
    run = runs.programme()
    run["results"][0]["verdict"] = "not conclusive"
    with pytest.raises(MissingFigure, match="says 'not conclusive'"):
        build(run)
    run = runs.programme()
    del run["results"][0]["estimates"][0]
    with pytest.raises(MissingFigure, match="is shrunk, but was not measured"):
        build(run)


# ---------------------------------------------------------------- plots


@pytest.mark.parametrize("what", html.WHATS)
def test_each_chart_can_be_had_alone(what: str) -> None:
    svg = html.chart(runs.journeys() if what in html.JOURNEYS else runs.rich(), what)
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    said = "".join(root.itertext())
    assert any(char.isdigit() for char in said)
    assert re.findall(r"(?:href|src)=|<script|<image|<foreignObject|\son\w+=", svg) == []
    if what in ("retention", "revenue", "lifecycle"):
        return
    hostile = runs.hostile_journeys() if what in html.JOURNEYS else runs.hostile_rich()
    assert html.chart(hostile, what).lower().count("<script") == 0


def test_charts_of_one_kind_stand_under_one_another_with_their_titles() -> None:
    root = ElementTree.fromstring(html.chart(runs.rich(), "segments"))
    inner = root.findall(f"{{{charts.SVG}}}svg")
    titles = [node.text for node in root.findall(f"{{{charts.SVG}}}text")]
    assert titles == ["Margin 28d by tenure, recommended vs control", "Margin 28d by country, recommended vs control"]
    assert len(inner) == 2
    ends = [float(node.get("y") or 0) + float(node.get("height") or 0) for node in inner]
    assert float(inner[1].get("y") or 0) > ends[0]
    assert ends[1] <= float(root.get("height") or 0)


def test_a_chart_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(UsageError, match="no chart of 'precision' here; there is effects, segments, over_time"):
        html.chart(runs.peeked(), "precision")
    with pytest.raises(UsageError, match="'segment' is not a chart; did you mean 'segments'"):
        html.chart(runs.rich(), "segment")
    with pytest.raises(UsageError, match="charts are effects, segments"):
        html.chart(runs.rich(), "zzz")
    only_claims = {**runs.holdout(), "results": [], "refusals": []}
    with pytest.raises(UsageError, match="a claim has one chart"):
        html.chart(only_claims, "segments")
    with pytest.raises(UsageError, match="nothing to plot"):
        html.chart(runs.refused(), "segments")


def test_a_class_is_drawn_by_its_corrected_interval_and_a_hollow_pooled_dot() -> None:
    look = section("rich").looks.segments[0]
    chart = charts.segments(look)
    for svg in (chart.wide, chart.narrow):
        said = [node.text for node in ElementTree.fromstring(svg).iter(f"{{{charts.SVG}}}text")]
        for row in look.read:
            assert row.quantity is not None
            assert row.quantity.text in said
            assert any(row.quantity.range in (text or "") for text in said)
        assert svg.count('fill="none"') >= len(look.read)
    assert all(row.pooled is not None and row.pooled.full in chart.description for row in look.read)


def test_one_result_alone_has_its_looks() -> None:
    assert of_result(runs.rich_result()).looks.segments[0].flip == "shown"

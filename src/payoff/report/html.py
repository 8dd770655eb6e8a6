"""One self-contained HTML file: no network, no script, readable on paper, on a telephone and by a screen reader."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from payoff import formats
from payoff.errors import ConnectionFailed, UsageError, did_you_mean
from payoff.report import charts
from payoff.report.figures import (
    GRADES,
    STATES,
    ArmLevel,
    AttributionFigures,
    CohortFigures,
    Figures,
    FunnelFigures,
    PathFigures,
    Section,
    build,
    of_result,
    sentence,
    uncapital,
)

LIGHT: Mapping[str, str] = {"paper": "#faf8f4", "card": "#ffffff", **charts.PALETTE}
DARK: Mapping[str, str] = {
    "paper": "#12161b",
    "card": "#1b2129",
    "ink": "#ece9e3",
    "muted": "#aab3bd",
    "rule": "#37414c",
    "zero": "#7f8b98",
    "strong": "#82c4ee",
    "good": "#79cda8",
    "quiet": "#b6c0cb",
    "warn": "#e8b662",
    "bad": "#f39b92",
    "off": "#a5adb7",
    "strong-band": "#24526e",
    "good-band": "#245240",
    "quiet-band": "#3c4753",
    "warn-band": "#5f4a1e",
    "bad-band": "#6a332f",
    "off-band": "#39424c",
    "hatch": "#2b343e",
    "hatch-line": "#4c5966",
}
"""Two themes. Every text colour keeps a contrast of 4.5 against paper and card (WCAG 2.2, 1.4.3)."""


_FIGURES = (
    "Difference", "Relative", "Level", "Adjusted", "Not adjusted", "Pooled", "Lift", "Over everyone", "As it is", "With the cap",
    "As measured", "Shrunk", "Share that triggered", "Attributed",
)  # fmt: skip
_COLUMNS = {
    **dict.fromkeys(("Units", "Statistic", "Expires", "Outcome", "How many", "Step", "Data to"), "short"),
    **dict.fromkeys(("Value and range", "Contrast", "Owner", "Source", "Tested by", "Test", "Margin"), "middle"),
    **dict.fromkeys(_FIGURES, "figure"),
}
"""How much room a column of a table insists on; all others are words, and give way."""


def _themed(chart: charts.Chart) -> charts.Chart:
    """The chart with the page's colours in place of its own."""
    wide, narrow = chart.wide, chart.narrow
    for name, colour in charts.PALETTE.items():
        wide = wide.replace(f'"{colour}"', f'"var(--{name})"')
        narrow = narrow.replace(f'"{colour}"', f'"var(--{name})"')
    return replace(chart, wide=wide, narrow=narrow)


Draw = Callable[[], charts.Chart | None]
Drawn = dict[str, list[charts.Chart]]
"""The charts of one claim or one section, by what they show."""


def _draw(figures: Figures) -> dict[str, Drawn]:
    drawn: dict[str, Drawn] = {}
    for claim in figures.claims:
        of_claim = {"bridge": charts.bridge(claim), "tornado": charts.tornado(claim), "dots": charts.dots(claim)}
        drawn[claim.anchor] = {key: [_themed(one)] if one else [] for key, one in of_claim.items()}
    for section in figures.sections:
        drawn[section.anchor] = {
            key: [_themed(one) for one in _called(draws)] for key, draws in _of_section(section).items()
        }
    return drawn


def _called(draws: list[Draw]) -> list[charts.Chart]:
    return [one for draw in draws if (one := draw()) is not None]


def _of_section(section: Section) -> dict[str, list[Draw]]:
    """Every chart that a result has, by the name that ``chart`` takes, each drawn when it is called."""
    looks, programme = section.looks, section.programme
    effects: list[Draw] = [partial(charts.effects, section)] if section.effects else []
    return {
        "effects": [partial(charts.programme, programme)] if programme else effects,
        "segments": [partial(charts.segments, look) for look in looks.segments],
        "over_time": [partial(charts.over_time, look) for look in looks.by_days],
        "cumulative": [partial(charts.over_time, look) for look in looks.by_date],
        "cannibalisation": [partial(charts.cannibalisation, look) for look in looks.cannibalisation],
        "precision": [partial(charts.precision, looks.precision)] if looks.precision else [],
        "peeking": [partial(charts.peeking, looks.peeking)] if looks.peeking and looks.peeking.looks else [],
        **_of_journey(section),
    }


def _of_journey(section: Section) -> dict[str, list[Draw]]:
    journey, title = section.journey, section.title
    drawn: dict[str, list[Draw]] = {name: [] for name in JOURNEYS}
    if isinstance(journey, FunnelFigures):
        drawn["funnel"] = [partial(charts.funnel, journey, title)]
        drawn["funnel"] += [partial(charts.funnel_classes, journey, title)] if journey.classes else []
    elif isinstance(journey, CohortFigures):
        drawn["retention"] = [partial(charts.retention, journey, title)] if journey.periods else []
        drawn["revenue"] = [partial(charts.revenue, journey, title)] if journey.curves else []
        drawn["lifecycle"] = [partial(charts.lifecycle, journey, title)] if journey.states else []
    elif isinstance(journey, PathFigures):
        drawn["paths"] = [partial(charts.paths, journey, title)] if journey.rows else []
        drawn["flow"] = [partial(charts.flow, journey, title)] if journey.edges else []
    elif isinstance(journey, AttributionFigures):
        drawn["credit"] = [partial(charts.credit, journey, title)]
        drawn["reconciliation"] = [partial(charts.reconciliation, r, title) for r in journey.reconciliations[:1]]
    return drawn


def _sentence(text: str) -> str:
    return formats.capital(sentence(text))


def _arms(section: Section) -> tuple[list[str], list[tuple[str, list[ArmLevel]]]]:
    """The names of the arms, and each metric with its level in each. No names where there are too many to stand side by
    side, or where an arm lacks a metric: then each level has a row of its own."""
    names = list(dict.fromkeys(arm.arm for arm in section.arms))
    metrics = list(dict.fromkeys(arm.metric for arm in section.arms))
    found = {(arm.metric, arm.arm): arm for arm in section.arms}
    if len(names) > 3 or len(found) != len(names) * len(metrics):
        return [], []
    return names, [(metric, [found[metric, name] for name in names]) for metric in metrics]


def _headline(figures: Figures) -> tuple[str, str, str]:
    """The title in three parts, the second its interval, which is set in a lighter hand."""
    title = f"{figures.title}."
    for quantity in figures.quantities():
        parts = title.partition(f"({quantity.interval})")
        if parts[1]:
            return parts
    return title, "", ""


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("payoff.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sentence"] = _sentence
    environment.filters["uncapital"] = uncapital
    environment.filters["capital"] = formats.capital
    return environment


def _css() -> str:
    def variables(theme: Mapping[str, str]) -> str:
        return "".join(f"--{name}:{colour};" for name, colour in theme.items())

    rules = resources.files("payoff.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    return (
        f":root{{color-scheme:light dark;{variables(LIGHT)}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}\n{rules}"
    )


def page(figures: Figures) -> str:
    """The whole report. Raises jinja2.UndefinedError, never prints an empty cell, if a figure is not there."""
    template = _environment().get_template("report.html.j2")
    rendered = template.render(
        f=figures,
        d=_draw(figures),
        css=_css(),
        headline=_headline(figures),
        states=list(STATES.values()),
        grades=GRADES,
        likelihood=[(formats.level(least) if least else "", word) for least, word in formats.LIKELIHOOD],
        columns=_COLUMNS,
        arms=_arms,
    )
    return formats.unbroken(rendered)


# ---------------------------------------------------------------- one thing at a time


JOURNEYS = ("funnel", "retention", "revenue", "lifecycle", "paths", "flow", "credit", "reconciliation")
WHATS = ("effects", "segments", "over_time", "cumulative", "cannibalisation", "precision", "peeking", *JOURNEYS)
"""What ``chart`` may be asked for."""


def chart(run: Mapping[str, Any], what: str | None = None) -> str:
    """A chart of a run as SVG text: ``what`` is one of ``WHATS``; by default a claim's bridge from amount to net, else the
    first result's effects, or the leading picture of a journey. Several charts of one kind stand under one another.

    Raises UsageError where there is no such chart, naming those there are.
    """
    if what is not None and what not in WHATS:
        hint = did_you_mean(what, WHATS) or f"; charts are {', '.join(WHATS)}"
        raise UsageError(f"'{what}' is not a chart{hint}")
    figures = build(run)
    if what is None:
        bridges = [charts.bridge(c) or charts.dots(c) or charts.tornado(c) for c in figures.claims]
        found = next((one for one in bridges if one is not None), None)
        if found is not None:
            return found.wide
    drawn = [_of_section(section) for section in figures.sections]
    if what is None and not any(d["effects"] for d in drawn):
        what = next((name for name in JOURNEYS if any(d[name] for d in drawn)), None)
    ones = next((d[what or "effects"] for d in drawn if d[what or "effects"]), [])
    if not ones:
        there = [name for name in WHATS if any(d[name] for d in drawn)]
        if figures.claims and not there:
            raise UsageError(f"there is no chart of '{what}' here: a claim has one chart, had without naming any")
        if not there:
            raise UsageError("there is nothing to plot: no figure was given, only the reasons why not")
        raise UsageError(f"there is no chart of '{what or 'effects'}' here; there is {', '.join(there)}")
    shown = _called(ones)
    return (
        shown[0].wide if what in (None, "effects") or (len(shown) == 1 and what in JOURNEYS) else charts.stacked(shown)
    )


def snippet(data: Mapping[str, Any]) -> str:
    """HTML for a notebook cell, from the JSON of a run or of one result: no style sheet, no script, every name escaped.

    Leads with the sentence and its interval, then state and grade, the estimates, and what to be careful of.
    """
    if "results" in data:
        figures = build(data)
        claims, sections, refusals = figures.claims, figures.sections, figures.refusals
    else:
        claims, sections, refusals = (), (of_result(data),), ()
    return _environment().get_template("snippet.html.j2").render(claims=claims, sections=sections, refusals=refusals)


# ---------------------------------------------------------------- the file


def write(figures: Figures, path: Path | str) -> Path:
    """Write the report to ``path``, whole or not at all: into a temporary file beside it, which then takes its name.

    Raises ConnectionFailed, with the reason in plain words, when the place cannot be written to.
    """
    target = Path(path)
    text = page(figures)
    temporary: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:40]}.", suffix=".tmp", dir=target.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise ConnectionFailed(f"the report could not be written to {target}: {error.strerror or error}") from error
    return target

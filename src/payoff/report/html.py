"""One self-contained HTML file: no network, no script, readable on paper, on a telephone and by a screen reader."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from payoff import formats
from payoff.errors import ConnectionFailed, UsageError
from payoff.report import charts
from payoff.report.figures import GRADES, STATES, ArmLevel, Figures, Section, build, of_result, sentence

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


_COLUMNS = {
    **dict.fromkeys(("Units", "Statistic", "Expires", "Outcome", "How many", "Step"), "short"),
    **dict.fromkeys(("Value and range", "Contrast", "Owner", "Source", "Tested by", "Test", "Margin"), "middle"),
    **dict.fromkeys(("Difference", "Relative", "Level"), "figure"),
}
"""How much room a column of a table insists on; all others are words, and give way."""


def _themed(chart: charts.Chart | None) -> charts.Chart | None:
    """The chart with the page's colours in place of its own."""
    if chart is None:
        return None
    wide, narrow = chart.wide, chart.narrow
    for name, colour in charts.PALETTE.items():
        wide = wide.replace(f'"{colour}"', f'"var(--{name})"')
        narrow = narrow.replace(f'"{colour}"', f'"var(--{name})"')
    return replace(chart, wide=wide, narrow=narrow)


def _draw(figures: Figures) -> dict[str, dict[str, charts.Chart | None]]:
    drawn: dict[str, dict[str, charts.Chart | None]] = {}
    for claim in figures.claims:
        drawn[claim.anchor] = {
            "bridge": _themed(charts.bridge(claim)),
            "tornado": _themed(charts.tornado(claim)),
            "dots": _themed(charts.dots(claim)),
        }
    for section in figures.sections:
        drawn[section.anchor] = {"effects": _themed(charts.effects(section))}
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
        parts = title.partition(f"({quantity.interval_name} {quantity.range})")
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


def chart(run: Mapping[str, Any]) -> str:
    """The first chart of a run as SVG text: a claim's bridge from amount to net, or an experiment's effects."""
    figures = build(run)
    drawn = [charts.bridge(c) or charts.dots(c) or charts.tornado(c) for c in figures.claims]
    drawn += [charts.effects(s) for s in figures.sections] if not any(drawn) else []
    found = next((one for one in drawn if one is not None), None)
    if found is None:
        raise UsageError("there is nothing to plot: no figure was given, only the reasons why not")
    return found.wide


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

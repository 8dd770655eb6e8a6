"""One self-contained HTML file: no network, no script, readable on paper, on a telephone and by a screen reader."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from payoff import formats
from payoff.errors import ConnectionFailed, UsageError
from payoff.report import charts
from payoff.report.figures import GRADES, STATES, Effect, Figures, Quantity, Section, State, build, of_result, sentence

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


@dataclass(frozen=True, slots=True)
class _Drawn:
    wide: Markup
    narrow: Markup


def _themed(chart: charts.Chart | None) -> _Drawn | None:
    """The chart with the page's colours in place of its own."""
    if chart is None:
        return None
    wide, narrow = chart.wide, chart.narrow
    for name, colour in charts.PALETTE.items():
        wide = wide.replace(f'"{colour}"', f'"var(--{name})"')
        narrow = narrow.replace(f'"{colour}"', f'"var(--{name})"')
    # Markup: ElementTree wrote this SVG, and escaped every name in it.
    return _Drawn(Markup(wide), Markup(narrow))


def _draw(figures: Figures) -> dict[str, dict[str, _Drawn | None]]:
    drawn: dict[str, dict[str, _Drawn | None]] = {}
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


def _cell(quantity: Quantity) -> Markup:
    return Markup('<span class="num value">{}</span> <span class="interval num">{}</span>').format(
        quantity.text, quantity.range
    )


def _pair(text: str, interval: str) -> Markup:
    return Markup('<span class="num">{}</span> <span class="interval num">{}</span>').format(text, interval)


def _arms(section: Section) -> tuple[list[str], list[list[str]]]:
    """Arms side by side, a metric a row; one row for each where there are many, or where an arm lacks a metric."""
    names = list(dict.fromkeys(arm.arm for arm in section.arms))
    metrics = list(dict.fromkeys(arm.metric for arm in section.arms))
    found = {(arm.metric, arm.arm): arm for arm in section.arms}
    if len(names) > 3 or len(found) != len(names) * len(metrics):
        return ["Metric", "Arm", "Units", "Level"], [[a.metric, a.arm, a.n, _cell(a.quantity)] for a in section.arms]

    def one(metric: str, name: str) -> Markup:
        arm = found[metric, name]
        return Markup('{}<span class="interval num">{} units</span>').format(_cell(arm.quantity), arm.n)

    return ["Metric", *names], [[metric, *(one(metric, name) for name in names)] for metric in metrics]


def _named(label: str, note: str) -> Markup:
    return Markup("{} <small>{}</small>").format(label, note)


def _headline(figures: Figures) -> Markup:
    """The title with its interval set in a lighter hand."""
    title = f"{figures.title}."
    for quantity in figures.quantities():
        before, interval, after = title.partition(f"({quantity.interval_name} {quantity.range})")
        if interval:
            return Markup('{}<span class="ci">{}</span>{}').format(before, interval, after)
    return escape(title)


def _breakable(text: str) -> Markup:
    """An address may break after its @."""
    return Markup("@<wbr>").join(text.split("@"))


def _reading(effect: Effect) -> Markup:
    shape = Markup('<span class="badge {}"><span class="shape" aria-hidden="true">{}</span> {}</span>').format(
        effect.tone, effect.state.shape, effect.state.label
    )
    return Markup("{} {}{}").format(
        shape,
        effect.reading,
        Markup(" <small>{}</small>").format(formats.capital(_sentence(effect.caveat))) if effect.caveat else "",
    )


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
    environment.filters["breakable"] = _breakable
    environment.filters["capital"] = formats.capital
    return environment


def _css() -> Markup:
    def variables(theme: Mapping[str, str]) -> str:
        return "".join(f"--{name}:{colour};" for name, colour in theme.items())

    rules = resources.files("payoff.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    return Markup(
        f":root{{color-scheme:light dark;{variables(LIGHT)}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}\n{rules}"
    )


def page(figures: Figures) -> str:
    """The whole report. Raises jinja2.UndefinedError, never prints an empty cell, if a figure is not there."""
    template = _environment().get_template("report.html.j2")
    return template.render(
        f=figures,
        d=_draw(figures),
        css=_css(),
        headline=_headline(figures),
        states=list(STATES.values()),
        grades=GRADES,
        likelihood=[(formats.level(least) if least else "", word) for least, word in formats.LIKELIHOOD],
        columns=_COLUMNS,
        arms=_arms,
        cell=_cell,
        pair=_pair,
        named=_named,
        reading=_reading,
    )


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
    parts = [
        _lead(c.finding, c.state, c.grade_text, [*([c.reason] if c.reason else []), *c.overturns, *c.notes])
        for c in claims
    ]
    for section in sections:
        warnings = [f"{c.name}: {c.state.label}. {c.detail}" for c in section.checks if c.state.key in ("fail", "warn")]
        warnings += [f"{e.label}: {e.caveat}" for e in section.effects if e.caveat]
        warnings += [f"Not answered: {r.name}. {_sentence(r.reason)}" for r in section.refusals]
        rows = Markup("").join(
            Markup("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{} {}</td></tr>").format(
                e.label, e.contrast, e.quantity.text, e.quantity.range, e.state.shape, e.state.label
            )
            for e in section.effects
        )
        head = "".join(
            f'<th scope="col">{h}</th>'
            for h in ("Metric", "Contrast", "Difference", f"{section.level} interval", "Reading")
        )
        table = (
            Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(Markup(head), rows)
            if rows
            else Markup("")
        )
        parts.append(_lead(section.finding, section.state, section.grade_text, warnings, table))
    for refusal in refusals:
        parts.append(
            Markup("<p><strong>Not answered: {}.</strong> {} <em>What would change it:</em> {}</p>").format(
                refusal.name, _sentence(refusal.reason), _sentence(refusal.remedy)
            )
        )
    return str(Markup('<div style="max-width:54em;line-height:1.5">{}</div>').format(Markup("").join(parts)))


def _lead(finding: str, state: State, grade: str, warnings: list[str], body: Markup | None = None) -> Markup:
    listed = Markup("").join(Markup("<li>{}</li>").format(line) for line in dict.fromkeys(warnings))
    return Markup(
        '<p style="font-size:1.15em;font-weight:600;margin:.6em 0 .2em">{}</p><p style="margin:0 0 .4em">{} {}. Evidence grade {}.</p>{}{}'
    ).format(
        _sentence(finding),
        state.shape,
        formats.capital(state.label),
        grade,
        body or Markup(""),
        Markup("<p><strong>Read with care</strong></p><ul>{}</ul>").format(listed) if listed else Markup(""),
    )


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

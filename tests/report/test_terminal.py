"""The terminal report: the same figures, at 80 columns, without colour, with ASCII alone."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from payoff.formats import ascii_only, without_unit
from payoff.report import terminal
from payoff.report.figures import build
from tests.report import runs


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("name", runs.ALL)
def test_every_figure_is_printed(name: str) -> None:
    figures = build(runs.ALL[name]())
    printed = squeezed(terminal.text(runs.ALL[name]()))
    folded = [
        q for s in figures.sections for part in s.parts for grid in part.grids if grid.folded for q in grid.quantities()
    ]
    shown = {id(q) for s in figures.sections for part in s.parts for q in part.quantities(folded=False)}
    away = {id(q) for q in folded} - shown
    for quantity in figures.quantities():
        if id(quantity) in away:
            continue
        assert quantity.text in printed
        short = squeezed(without_unit(quantity.text, quantity.range))
        assert squeezed(quantity.range) in printed or short in printed
    assert squeezed(figures.title) in printed
    for section in figures.sections:
        for effect in section.effects:
            assert effect.n_text in printed
            if not section.withheld:
                assert effect.p_value in printed or effect.p_value == "not defined"
        for arm in section.arms:
            assert arm.n in printed
        for _, count in section.left_out:
            assert count in printed
    for refusal in figures.refusals:
        assert refusal.remedy in printed


@pytest.mark.parametrize("name", runs.ALL)
def test_lines_fit_80_columns_and_hold_no_escape(name: str) -> None:
    text = terminal.text(runs.ALL[name]())
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("width", [40, 60, 200])
def test_other_widths_keep_every_number_whole(width: int) -> None:
    figures = build(runs.email())
    out = io.StringIO()
    terminal.render(figures, Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(cell_len(line) for line in lines) <= min(width, 100)
    for effect in figures.sections[0].effects:
        assert effect.quantity.text in squeezed(out.getvalue())


@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_level_of_an_arm_is_never_cut(width: int) -> None:
    run = runs.email()
    n = {"generic": 1_491_234, "first_name": 1_509_876}
    run["results"][0]["arms"] = [runs.arm(a, "visits", n[a], 2.793, 0.038, "sessions/user") for a in n]
    out = io.StringIO()
    terminal.render(build(run), Console(file=out, width=width))
    arms = squeezed(out.getvalue()).partition("Arms (level")[2].partition("Checks")[0]
    for words in ("2.793 sessions per user", "2.719 to 2.867", "1,491,234", "1,509,876"):
        assert words in arms.replace(" \u00b7", "")


def test_ascii_alone_when_the_terminal_has_no_more() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    figures = build(runs.hostile())
    terminal.render(figures, Console(file=out, width=80))
    printed = squeezed(raw.getvalue().decode("ascii"))
    for quantity in figures.quantities():
        assert ascii_only(quantity.text) in printed
    assert "! guardrail at risk" in printed


def test_a_dumb_terminal_gets_ascii_without_colour() -> None:
    out = io.StringIO()
    terminal.render(build(runs.email()), Console(file=out, width=80, force_terminal=True, _environ={"TERM": "dumb"}))
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().isascii()


def test_no_color_is_kept_to() -> None:
    out = io.StringIO()
    environ = {"TERM": "xterm-256color", "NO_COLOR": "1"}
    terminal.render(build(runs.email()), Console(file=out, width=80, force_terminal=True, _environ=environ))
    assert re.findall(r"\x1b\[[0-9;]*3[0-7]", out.getvalue()) == []  # bold may stay; no colour


def test_colour_never_carries_the_state_alone() -> None:
    text = terminal.text(runs.email())
    assert "\u25cf Click rate" in text
    assert "Positive: The whole interval is better than zero." in squeezed(text)
    assert "Guardrail at risk: Harm of 0.1 pp is not excluded." in squeezed(text)


def test_names_are_never_read_as_markup() -> None:
    run = runs.email()
    run["project"] = "[bold red]acme[/bold red] :smile:"
    assert "[bold red]acme[/bold red] :smile:" in terminal.text(run)


def test_brief_keeps_the_findings_and_the_trouble() -> None:
    out = io.StringIO()
    figures = build(runs.email())
    terminal.render(figures, Console(file=out, width=80), brief=True)
    printed = squeezed(out.getvalue())
    assert squeezed(figures.title) in printed
    assert "planned size" in printed
    assert "Arms (level" not in printed
    assert "What must hold" not in printed
    assert len(out.getvalue()) < len(terminal.text(runs.email()))

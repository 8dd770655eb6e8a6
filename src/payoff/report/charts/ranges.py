"""Marks with their intervals on one axis, several to a row: told apart by shape, not by colour alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from payoff import formats
from payoff.formats import Unit
from payoff.report.charts.sheet import WIDE, Sheet, fit, text_width, ticks
from payoff.report.figures import Quantity

SHAPES = (
    ("circle", False),
    ("square", True),
    ("triangle-up", False),
    ("diamond", True),
    ("triangle-down", False),
    ("circle", True),
    ("square", False),
    ("triangle-up", True),
    ("diamond", False),
    ("triangle-down", True),
    ("triangle-right", False),
    ("triangle-right", True),
)
"""Shape and whether it is hollow: no two neighbours look alike."""
_TONES = ("strong", "ink", "quiet")


@dataclass(frozen=True, slots=True)
class Row:
    """``marks`` in the order of the legend; None where that one has no figure. A bold row stands for all together."""

    name: str
    marks: Sequence[Quantity | None]
    bold: bool = False


def _tone(k: int) -> str:
    return _TONES[k % len(_TONES)]


def _legend(sheet: Sheet, names: Sequence[str], y: float) -> float:
    """The names with their marks, from the left, in as many lines as they need; the height below them."""
    x = 0.0
    for k, name in enumerate(names):
        shown = fit(name, sheet.width - 24, 12)
        wide = 18 + text_width(shown, 12) + 14
        if x and x + wide > sheet.width:
            x, y = 0.0, y + 20
        shape, hollow = SHAPES[k % len(SHAPES)]
        sheet.dot(x + 7, y - 4, _tone(k), 56, hollow, shape)
        sheet.text(x + 18, y, shown, "muted", 12)
        x += wide
    return y + 12


def ranges(rows: Sequence[Row], names: Sequence[str], unit: Unit, width: int) -> Sheet:
    """One row each, with one mark under another for each of ``names``. With few of them the numbers stand beside."""
    sheet, wide = Sheet(width), width == WIDE
    numbers = wide and len(names) <= 3
    step = 17.0 if numbers else 11.0
    left, right = (176 if wide else 8), (432 if numbers else width - 24)
    top = _legend(sheet, names, 14.0) if len(names) > 1 else 4.0
    ends = [0.0] + [end for row in rows for q in row.marks if q is not None for end in (q.low, q.high)]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return left + (value - low) / span * (right - left)

    marks = ticks(low, high, 5 if wide else 3) if high > low else [0.0]
    labels = [formats.axis(mark, max(abs(low), abs(high)), unit) for mark in marks]
    free = -1e9
    for mark, label in zip(marks, labels, strict=True):
        half = text_width(label, 12) / 2
        at = min(max(x(mark), half), width - half)
        if at - half > free:
            sheet.text(at, top + 14, label, "muted", 12, align="center")
            free = at + half + 6
    y = top + 24
    for row in rows:
        shown = [(k, q) for k, q in enumerate(row.marks) if q is not None]
        head = 0.0 if wide else 18.0
        tall = max(step * len(shown), 20.0 if wide else 8.0)
        sheet.line(0, y, width, y, "rule", layer="back")
        if wide:
            sheet.text(0, y + 18 if tall < 30 else y + tall / 2 + 9, fit(row.name, 166, 13, row.bold), bold=row.bold)
        else:
            sheet.text(0, y + 15, fit(row.name, width, 13, True), bold=True)
        for mark in marks:
            colour = "zero" if mark == 0 else "rule"
            sheet.line(x(mark), y + head + 1, x(mark), y + head + tall + 9, colour, layer="back")
        for place, (k, q) in enumerate(shown):
            middle = y + head + 5 + step * (place + 0.5) + max(tall - step * len(shown), 0) / 2
            shape, hollow = SHAPES[k % len(SHAPES)]
            sheet.line(x(q.low), middle, x(q.high), middle, _tone(k), 1.5)
            for end in (q.low, q.high):
                sheet.line(x(end), middle - 3, x(end), middle + 3, _tone(k), 1.5)
            sheet.dot(x(q.value), middle, _tone(k), 52, hollow, shape)
            if numbers:
                used = text_width(q.text, 12, True) + 8
                sheet.text(450, middle + 4, q.text, "ink", 12, bold=True)
                spans = (q.range, formats.without_unit(q.text, q.range))
                fitting = next((s for s in spans if text_width(s, 12) <= width - 450 - used), "")
                sheet.text(450 + used, middle + 4, fitting, "muted", 12)
        if not shown:
            sheet.text(left, y + head + 18, "not shown", "muted", 12)
        y += head + tall + 10
    sheet.height = y + 2
    return sheet

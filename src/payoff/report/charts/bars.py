"""Horizontal bars on one scale, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from payoff.report.charts.sheet import WIDE, Sheet, fit, fit_range, text_width


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    note: str
    text: str
    spread: str
    start: float
    end: float
    tone: str
    interval: tuple[float, float] | None = None
    bold: bool = False
    hatched: bool = False


def bars(rows: Sequence[Row], width: int, base: float, base_name: str, connect: bool) -> Sheet:
    """Horizontal bars on one scale of money: name and note at the left, the bar, its number at the right."""
    sheet = Sheet(width)
    wide = width == WIDE
    left, right = (214, 512) if wide else (6, width - 6)
    ends = [x for r in rows for x in (r.start, r.end, *(r.interval or ()))] + [base]
    low, high = min(ends), max(ends)
    span: float = (high - low) or 1.0

    def x(value: float) -> float:
        share: float = (value - low) / span
        return left + share * (right - left)

    half = text_width(base_name, 12) / 2
    sheet.text(min(max(x(base), left + half), right - half), 12, base_name, "muted", 12, align="center")
    y = 20.0
    previous: float | None = None
    for row in rows:
        if wide:
            middle, step = y + 22, 44.0
            sheet.text(0, middle - 3 if row.note else middle + 4, fit(row.name, 200, 13, row.bold), bold=row.bold)
            if row.note:
                sheet.text(0, middle + 13, fit(row.note, 202, 12), "muted", 12)
            sheet.text(530, middle - 3, fit(row.text, 186, 13, True), row.tone, 13, bold=True)
            sheet.text(530, middle + 13, fit_range(row.text, row.spread, 188, 12), "muted", 12)
        else:
            room = width - text_width(row.text, 13, True) - 10
            sheet.text(0, y + 13, fit(row.name, room, 13, True), bold=True)
            sheet.text(width, y + 13, row.text, row.tone, 13, bold=True, align="right")
            notes = [note for note in (row.note, row.spread) if note]
            together = " \u00b7 ".join(notes)
            said = [together] if text_width(together, 12) <= width else notes
            for index, note in enumerate(said):
                sheet.text(0, y + 29 + 15 * index, fit(note, width, 12), "muted", 12)
            middle = y + 30 + 15 * len(said)
            step = middle - y + 20
        if connect and previous is not None and wide:
            at = x(row.end if row.bold else row.start)
            sheet.line(at, previous + 9, at, middle - 9, "muted", layer="back")
        sheet.line(x(base), middle - (22 if wide else 12), x(base), middle + (22 if wide else 12), "ink", 1.2)
        sheet.box(
            x(row.start), middle - 9, x(row.end), middle + 9, "hatch" if row.hatched else f"{row.tone}-band", row.tone
        )
        if row.interval is not None:
            a, b = x(row.interval[0]), x(row.interval[1])
            sheet.line(a, middle, b, middle, "ink", 1.5)
            for end in (a, b):
                sheet.line(end, middle - 5, end, middle + 5, "ink", 1.5)
        previous = middle
        y += step
    sheet.height = y + 4
    return sheet

"""Cohorts as pictures: a grid of retention, curves of revenue, bars of what units were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from payoff import formats
from payoff.report.charts.sheet import WIDE, Chart, Sheet, both, fit, text_width, ticks
from payoff.report.figures import TOGETHER, CohortFigures, CohortLine, Quantity

_MOST = 4000
_PANELS = 9
_BARS = 40


def retention(figures: CohortFigures, name: str) -> Chart | None:
    """The share that was active in each period, the darker the larger; blank where a period has not closed."""
    if not figures.periods:
        return None
    said = []
    for line in figures.lines:
        cells = [
            f"period {p} {c.quantity.text} ({c.quantity.range})"
            for p, c in zip(figures.periods, line.retention, strict=True)
            if c.quantity is not None
        ]
        said.append(f"{line.name}: {', '.join(cells) or 'no period has closed, 0 figures'}")
    description = formats.shorten(". ".join(said) + ".", _MOST)
    return both(f"Retention by cohort, {name}", description, lambda width: _draw_grid(figures, width))


def _cell(quantity: Quantity, room: float) -> str:
    """The share in its cell, with as many of its digits as there is room for; all of them are in the table."""
    for text in (quantity.text, f"{100 * quantity.value:.1f}%"):
        if text_width(text, 12) <= room and len(text) <= len(quantity.text):
            return text
    whole = f"{100 * quantity.value:.0f}%"
    return "<1%" if quantity.value > 0 and whole == "0%" else whole


def _draw_grid(figures: CohortFigures, width: int) -> Sheet:
    sheet, wide = Sheet(width), width == WIDE
    lead = 152.0 if wide else 84.0
    each = max(min((width - lead) / len(figures.periods), 60.0), 42.0 if wide else 36.0)
    fits = max(int((width - lead) / each), 1)
    later = [c.quantity.value for x in figures.lines for c in x.retention[1:] if c.quantity is not None]
    top = max(later, default=1.0) or 1.0
    # From zero, unless that would make all cells alike.
    floor = min(later, default=0.0) if min(later, default=0.0) > top / 2 else 0.0
    y = 0.0
    for start in range(0, len(figures.periods), fits):
        block = figures.periods[start : start + fits]
        many = len(figures.periods) > fits
        sheet.text(0, y + 14, "cohort, units" if wide else "cohort", "muted", 12)
        for k, period in enumerate(block):
            at = lead + (k + 0.5) * each
            sheet.text(at, y + 14, fit(period, each - 2, 12), "muted", 12, align="center")
        y += 22
        for line in figures.lines:
            if start and all(cell.state == "open" for cell in line.retention[start : start + fits]):
                continue
            bold = line.name == TOGETHER
            sheet.text(0, y + 17, fit(line.name, 84 if wide else lead - 4, 12, bold), size=12, bold=bold)
            if wide and line.size is not None:
                sheet.text(lead - 8, y + 17, fit(line.size.text, 58, 12), "muted", 12, align="right")
            for k in range(len(block)):
                cell = line.retention[start + k]
                x = lead + k * each
                if cell.state == "hidden":
                    sheet.box(x + 1, y + 1, x + each - 1, y + 25, "hatch")
                if cell.quantity is None:
                    continue
                within = (cell.quantity.value - floor) / ((top - floor) or 1.0)
                shade = math.ceil(min(max(within, 0.0), 1.0) * 6) / 6 if cell.quantity.value > 0 else 0.0
                shade = max(shade, 0.08) if cell.quantity.value > 0 else 0.0
                if shade > 0:
                    sheet.box(x + 1, y + 1, x + each - 1, y + 25, "strong-band", opacity=round(shade, 3), layer="under")
                text = _cell(cell.quantity, each - 4)
                sheet.text(x + each / 2, y + 17, text, size=12, bold=bold, align="center")
            y += 27
        y += 10 if many else 2
    ends = " to ".join(formats.rounded(float(f"{end:.2g}"), formats.unit("share")) for end in (floor, top))
    sheet.text(0, y + 14, fit(f"shade: {ends}, or more", width, 12), "muted", 12)
    sheet.height = y + 20
    return sheet


def revenue(figures: CohortFigures, name: str) -> Chart | None:
    """Revenue per unit up to each period, cohort by cohort, on one scale; each with its band."""
    curves = figures.curves
    if not curves:
        return None
    shown = [*curves[:1], *curves[1:][-(_PANELS - 1) :]]
    ends = []
    for line in shown:
        points = [(p, c.quantity) for p, c in zip(figures.revenue_periods, line.revenue, strict=True) if c.quantity]
        first, last = points[0], points[-1]
        ends.append(f"{line.name}: {first[1].text} at period {first[0]}, {last[1].full} at period {last[0]}")
    description = formats.shorten(". ".join(ends) + ".", _MOST)
    return both(
        f"Cumulative revenue per unit by cohort, {name}", description, lambda width: _draw_curves(figures, shown, width)
    )


def _draw_curves(figures: CohortFigures, lines: Sequence[CohortLine], width: int) -> Sheet:
    sheet, wide = Sheet(width), width == WIDE
    across = min(3 if wide else 1, len(lines))
    quantities = [c.quantity for line in lines for c in line.revenue if c.quantity is not None]
    low = min(0.0, *(q.low for q in quantities))
    high = max(0.0, *(q.high for q in quantities))
    marks = ticks(low, high, 4)
    largest = max(abs(low), abs(high))
    labels = [formats.axis(mark, largest, figures.money) for mark in marks]
    margin = max(text_width(label, 12) for label in labels) + 8
    span = (high - low) or 1.0
    tall, head = (120.0 if len(lines) > 1 else 190.0), 22.0
    room = (width - margin) / across
    periods = len(figures.revenue_periods)
    for k, line in enumerate(lines):
        left = margin + (k % across) * room
        top = (k // across) * (tall + head + 28) + head
        right = left + room - (14 if across > 1 else 6)

        def down(value: float, top: float = top) -> float:
            return top + (high - value) / span * tall

        sheet.text(left, top - 8, fit(line.name, room - 18, 12, True), size=12, bold=True)
        for mark, label in zip(marks, labels, strict=True):
            sheet.line(left, down(mark), right, down(mark), "zero" if mark == 0 else "rule", layer="back")
            if k % across == 0:
                sheet.text(left - 6, down(mark) + 4, label, "muted", 12, align="right")
        places = [left + (p + 0.5) * (right - left) / periods for p in range(periods)]
        points = [(x, c.quantity) for x, c in zip(places, line.revenue, strict=True) if c.quantity is not None]
        sheet.area([(x, down(q.high), down(q.low)) for x, q in points], "strong-band", 0.8)
        for (x, a), (x2, b) in pairwise(points):
            sheet.line(x, down(a.value), x2, down(b.value), "strong", 1.8)
        for x, q in points:
            sheet.dot(x, down(q.value), "ink", 18 if periods > 8 else 28)
        widest = max(text_width(p, 12) for p in figures.revenue_periods) + 8
        every = max(math.ceil(widest * periods / (right - left)), 1)
        for p, x in list(zip(figures.revenue_periods, places, strict=True))[::every]:
            at = min(x, width - text_width(p, 12) / 2)
            sheet.text(at, top + tall + 16, p, "muted", 12, align="center")
    rows = math.ceil(len(lines) / across)
    bottom = rows * (tall + head + 28)
    sheet.text(margin, bottom + 8, "periods since the start", "muted", 12)
    sheet.height = bottom + 14
    return sheet


_FILLS = {
    "new": ("strong", 1.0),
    "returning": ("strong-band", 1.0),
    "resurrected": ("strong-band", 0.4),
    "dormant": ("hatch", 1.0),
}


def lifecycle(figures: CohortFigures, name: str) -> Chart | None:
    """Units by what they were in each closed step: active ones upwards, those who no longer were downwards."""
    bars = figures.states[-_BARS:]
    if not bars:
        return None
    said = [f"{b.name}: " + ", ".join(f"{state} {q.text} ({q.range})" for state, q in b.states.items()) for b in bars]
    description = formats.shorten(". ".join(said) + ".", _MOST)
    return both(f"New, back again, gone, {name}", description, lambda width: _draw_states(figures, width))


def _draw_states(figures: CohortFigures, width: int) -> Sheet:
    bars = figures.states[-(_BARS if width == WIDE else 16) :]
    sheet = Sheet(width)
    x, row = 0.0, 3.0
    for state, (colour, opacity) in _FILLS.items():
        if any(state in b.states for b in bars):
            wide = 20 + text_width(state, 12)
            if x + wide > width:
                x, row = 0.0, row + 20
            sheet.box(x, row, x + 14, row + 12, colour, "strong", opacity)
            sheet.text(x + 20, row + 11, state, "muted", 12)
            x += wide + 14
    up = max(sum(q.value for s, q in b.states.items() if s != "dormant") for b in bars)
    below = max((b.states["dormant"].value for b in bars if "dormant" in b.states), default=0.0)
    marks = ticks(-below, up, 5) if up + below > 0 else [0.0]
    labels = [formats.axis(abs(mark), max(up, below), formats.NUMBER) for mark in marks]
    left = max(text_width(label, 12) for label in labels) + 10
    top, tall = row + 27, 210.0
    span = (up + below) or 1.0

    def down(value: float) -> float:
        return top + (up - value) / span * tall

    for mark, label in zip(marks, labels, strict=True):
        sheet.line(left, down(mark), width - 2, down(mark), "ink" if mark == 0 else "rule", layer="back")
        sheet.text(left - 6, down(mark) + 4, label, "muted", 12, align="right")
    step = (width - 4 - left) / len(bars)
    free = -math.inf
    for k, bar in enumerate(bars):
        at = left + (k + 0.5) * step
        half, base = min(step * 0.36, 26.0), 0.0
        for state, (colour, opacity) in _FILLS.items():
            quantity = bar.states.get(state)
            if quantity is None or quantity.value == 0:
                continue
            if state == "dormant":
                sheet.box(at - half, down(0), at + half, down(-quantity.value), colour, "strong", opacity)
            else:
                sheet.box(at - half, down(base + quantity.value), at + half, down(base), colour, "strong", opacity)
                base += quantity.value
        reach = text_width(bar.name, 12) / 2
        place = min(max(at, reach), width - reach)
        if place - reach > free:
            sheet.text(place, top + tall + 22, bar.name, "muted", 12, align="center")
            free = place + reach + 12
    sheet.height = top + tall + 30
    return sheet

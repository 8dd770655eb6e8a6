"""The closer looks: for whom, when, where, how precisely, how often looked at; and a programme of experiments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from payoff import formats
from payoff.report.charts.bars import Row, bars
from payoff.report.charts.sheet import WIDE, Chart, Sheet, both, fit, fit_range, text_width, ticks
from payoff.report.figures import (
    DisplacementLook,
    PeekingLook,
    PrecisionLook,
    Programme,
    Quantity,
    SegmentsLook,
    TimeLook,
)

_MOST = 4000
"""Characters of a description; the table beside the chart says the rest."""


@dataclass(frozen=True, slots=True)
class _Line:
    """One row of ranges; ``second`` is drawn under it with a hollow dot. Without a quantity only its words stand there."""

    name: str
    note: str
    tone: str
    quantity: Quantity | None
    second: Quantity | None = None
    said: str = ""


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows on one scale."""

    title: str
    lines: Sequence[_Line]


def _ends(group: _Group) -> tuple[float, float]:
    ends = [0.0]
    for line in group.lines:
        for q in (line.quantity, line.second):
            if q is not None:
                ends += [q.low, q.high]
    return min(ends), max(ends)


def _ranges(groups: Sequence[_Group], width: int) -> Sheet:
    """Intervals against zero, which stands at one place for all groups; each group has its own scale."""
    sheet, wide = Sheet(width), width == WIDE
    left, right = (228, 532) if wide else (8, width - 8)
    extents = [_ends(group) for group in groups]
    shares = [-low / (high - low) for low, high in extents if high > low]
    zero_at = min(max((min(shares, default=0.5) + max(shares, default=0.5)) / 2, 0.06), 0.94)
    zero = left + zero_at * (right - left)
    half = text_width("no effect", 12) / 2
    sheet.text(min(max(zero, half), width - half), 12, "no effect", "muted", 12, align="center")
    y = 20.0
    for group, (low, high) in zip(groups, extents, strict=True):
        room = min((zero - left) / -low if low < 0 else math.inf, (right - zero) / high if high > 0 else math.inf)
        scale = room * 0.97 if math.isfinite(room) else 0.0
        if group.title:
            if y > 20.0:
                sheet.line(0, y + 2, width, y + 2, "rule", layer="back")
            sheet.text(0, y + 20, fit(group.title, zero - 8 if wide else width, 13, True), bold=True)
            y += 26
        for line in group.lines:
            middle, step = _words(sheet, line, y, width)
            q = line.quantity
            if q is not None:
                reach = 18 if wide else 12
                sheet.line(zero, middle - reach, zero, middle + reach + (8 if line.second else 0), "zero", layer="back")
                sheet.box(zero + q.low * scale, middle - 3.5, zero + q.high * scale, middle + 3.5, f"{line.tone}-band")
                for end in (q.low, q.high):
                    sheet.line(zero + end * scale, middle - 6.5, zero + end * scale, middle + 6.5, line.tone, 1.5)
                sheet.dot(zero + q.value * scale, middle, "ink", 46)
                if line.second is not None:
                    s, under = line.second, middle + 12
                    sheet.line(zero + s.low * scale, under, zero + s.high * scale, under, "muted", 1.2, layer="back")
                    sheet.dot(zero + s.value * scale, under, "ink", 40, hollow=True)
            y += step
    sheet.height = y + 4
    return sheet


def _words(sheet: Sheet, line: _Line, y: float, width: int) -> tuple[float, float]:
    """The row's text; returns where its marks go and how high it is."""
    text, spread = (line.said, "") if line.quantity is None else (line.quantity.text, line.quantity.range)
    extra = 8 if line.second is not None else 0
    if width == WIDE:
        middle = y + 20
        sheet.text(0, middle - 3 if line.note else middle + 4, fit(line.name, 212, 13, True), bold=True)
        if line.note:
            sheet.text(0, middle + 13, fit(line.note, 212, 12), "muted", 12)
        sheet.text(552, middle - 3 if spread else middle + 4, fit(text, 165, 13, True), line.tone, 13, bold=True)
        if spread:
            sheet.text(552, middle + 13, fit_range(text, spread, 168, 12), "muted", 12)
        return middle, 42.0 + extra
    room = width - text_width(text, 13, True) - 10
    sheet.text(0, y + 13, fit(line.name, room, 13, True), bold=True)
    sheet.text(width, y + 13, fit(text, width * 0.6, 13, True), line.tone, 13, bold=True, align="right")
    at = y + 13
    notes = [note for note in (line.note, spread) if note]
    if len(notes) == 2 and text_width(" \u00b7 ".join(notes), 12) <= width:
        notes = [" \u00b7 ".join(notes)]
    for note in notes:
        at += 16
        sheet.text(0, at, fit(note, width, 12), "muted", 12)
    if line.quantity is None:
        return at, at - y + 14
    return at + 18, at + 18 - y + 22 + extra


def _tone(quantity: Quantity, direction: str = "up") -> str:
    good = 1 if direction == "up" else -1
    low, high = sorted((good * quantity.low, good * quantity.high))
    return "good" if low > 0 else "bad" if high < 0 else "quiet"


# ---------------------------------------------------------------- for whom, and how precisely


def segments(look: SegmentsLook) -> Chart:
    """Each class's corrected interval against zero, and its partially pooled point."""
    said = [
        f"{row.name}: {row.quantity.full}, {row.state.label}" + (f"; {row.pooled.full}" if row.pooled else "")
        if row.quantity is not None
        else f"{row.name}: no figure, {row.reason}"
        for row in look.rows
    ]
    lines = [
        _Line(row.name, f"{row.n} units, {row.state.label}", row.state.tone, row.quantity, row.pooled)
        if row.quantity is not None
        else _Line(row.name, "not enough units to show", row.state.tone, None, said=row.state.label)
        for row in look.rows
    ]
    title = f"{look.label} by {look.attribute}, {look.contrast}"
    description = formats.shorten(". ".join([look.sentence, *said]) + ".", _MOST)
    return both(title, description, lambda width: _ranges([_Group("", lines)], width))


def precision(looks: Sequence[PrecisionLook]) -> Chart | None:
    """Each difference with adjustment and without."""
    if not looks:
        return None
    several = len({look.contrast for look in looks}) > 1
    groups = [
        _Group(
            f"{look.label}{f', {look.contrast}' if several else ''}",
            (
                _Line("Adjusted", f"worth {look.worth} the units", _tone_of_zero(look.adjusted), look.adjusted),
                _Line("Not adjusted", "", "off", look.plain),
            ),
        )
        for look in looks
    ]
    said = [
        f"{x.label}, {x.contrast}: {x.adjusted.full} adjusted, {x.plain.full} not adjusted. {x.sentence}" for x in looks
    ]
    description = formats.shorten(". ".join(said) + ".", _MOST)
    return both("What adjustment did", description, lambda width: _ranges(groups, width))


def _tone_of_zero(quantity: Quantity) -> str:
    """An interval clear of zero is set in a strong hand; which side is the better one is not known here."""
    return "strong" if quantity.low > 0 or quantity.high < 0 else "quiet"


def programme(found: Programme) -> Chart:
    """Each experiment raw and shrunk; the totals and the holdout, on a scale of their own."""
    members = [_Line(m.label, m.contrast, _tone_of_zero(m.shrunk or m.raw), m.raw, m.shrunk) for m in found.members]
    totals = [_Line(t.label, "", _tone_of_zero(t.quantity), t.quantity) for t in found.totals]
    groups = [_Group("Experiments", members)] if members else []
    groups += [_Group("Together", totals)] if totals else []
    said = [f"{m.label}: {m.raw.full}" + (f", shrunk {m.shrunk.full}" if m.shrunk else "") for m in found.members]
    said += [f"{t.label}: {t.quantity.full}" for t in found.totals]
    return both(
        f"{found.metric} over a programme",
        formats.shorten(". ".join(said) + ".", _MOST),
        lambda width: _ranges(groups, width),
    )


# ---------------------------------------------------------------- when


def over_time(look: TimeLook) -> Chart:
    """The effect at each time with its interval; the total so far has its ends joined to a band."""
    title = f"{look.label} {'so far' if look.calendar else 'by days since exposure'}, {look.contrast}"
    said = [f"{point.label}: {point.quantity.full}" for point in look.points]
    description = formats.shorten(". ".join([look.sentence, *said]) + ".", _MOST)
    return both(title, description, lambda width: _draw_time(look, width))


def _draw_time(look: TimeLook, width: int) -> Sheet:
    sheet = Sheet(width)
    ends = [0.0] + [end for p in look.points for end in (p.quantity.low, p.quantity.high)]
    low, high = min(ends), max(ends)
    marks = ticks(low, high, 5)
    largest = max(abs(low), abs(high))
    labels = [formats.axis(mark, largest, look.unit) for mark in marks]
    left = max(text_width(label, 12) for label in labels) + 12
    top, tall = 14.0, 200.0 if width == WIDE else 170.0
    right = width - 14
    span = (high - low) or 1.0

    def down(value: float) -> float:
        return top + (high - value) / span * tall

    for mark, label in zip(marks, labels, strict=True):
        sheet.line(left, down(mark), right, down(mark), "zero" if mark == 0 else "rule", layer="back")
        sheet.text(left - 6, down(mark) + 4, label, "muted", 12, align="right")
    step = (right - left) / len(look.points)
    places = [left + (k + 0.5) * step for k in range(len(look.points))]
    for a, b, here, there in zip(places, places[1:], look.points, look.points[1:], strict=False):
        if look.calendar:
            for left_end, right_end in (
                (here.quantity.low, there.quantity.low),
                (here.quantity.high, there.quantity.high),
            ):
                sheet.line(a, down(left_end), b, down(right_end), "muted", 1.2)
            sheet.line(a, down(here.quantity.value), b, down(there.quantity.value), "ink", 1.5)
    half = min(5.0, step * 0.3)
    for at, point in zip(places, look.points, strict=True):
        q = point.quantity
        tone = _tone(q, look.direction)
        sheet.box(at - half, down(q.high), at + half, down(q.low), f"{tone}-band")
        for end in (q.low, q.high):
            sheet.line(at - half - 1.5, down(end), at + half + 1.5, down(end), tone, 1.5)
        sheet.dot(at, down(q.value), "ink", 36 if step > 14 else 14)
    base, free = top + tall, -math.inf
    for at, point in zip(places, look.points, strict=True):
        reach = text_width(point.short, 12) / 2
        at_text = min(max(at, reach), width - reach)
        if at_text - reach > free:
            sheet.text(at_text, base + 22, point.short, "muted", 12, align="center")
            free = at_text + reach + 10
    sheet.text(left, base + 40, "up to this date" if look.calendar else "days since exposure, up to", "muted", 12)
    sheet.height = base + 46
    return sheet


# ---------------------------------------------------------------- where


def cannibalisation(look: DisplacementLook) -> Chart:
    """What was gained on the treated path, what the others changed by, and the net."""
    gained, others, net = look.gained, look.others, look.net
    rows = [
        Row("Gained", "on the treated path", gained.text, gained.range, 0.0, gained.value, _tone(gained),
            (gained.low, gained.high), bold=True),
        Row("Others", "all other paths", others.text, others.range, gained.value, net.value, _tone(others),
            (gained.value + others.low, gained.value + others.high), bold=True),
        Row("Net", "what is left", net.text, net.range, 0.0, net.value, _tone(net), (net.low, net.high), bold=True),
    ]  # fmt: skip
    description = f"Gained {gained.full}; others {others.full}; net {net.full}." + (
        f" Would have happened anyway: {look.anyway.full}." if look.anyway else ""
    )
    title = f"What was gained, what others lost, {look.contrast}"
    return both(title, description, lambda width: bars(rows, width, 0.0, "zero", connect=True))


# ---------------------------------------------------------------- looks


def peeking(look: PeekingLook) -> Chart:
    """The units at each look; under a fixed rule, what so many looks do to the chance of a false finding."""
    units = [
        Row(formats.capital(x.at), x.by, f"{x.units_text} units", f"data to {x.as_of}", 0.0, x.units, "quiet")
        for x in look.looks
    ]
    inflated = look.state.key == "warn"
    errors = [
        Row("False finding", "at one look, as planned", look.alpha_text, "", 0.0, look.alpha, "quiet"),
        Row("False finding", f"at {look.times} looks", look.error_text, "", 0.0, look.error, "warn"),
    ]

    def draw(width: int) -> Sheet:
        sheet = bars(units, width, 0.0, "no units", connect=False)
        if inflated:
            sheet.below(bars(errors, width, 0.0, "never", connect=False))
        return sheet

    said = [f"Look {k}: {x.at}, {x.by}, {x.units_text} units" for k, x in enumerate(look.looks, 1)]
    return both("Who looked when", formats.shorten(". ".join([*said, look.sentence]) + ".", _MOST), draw)

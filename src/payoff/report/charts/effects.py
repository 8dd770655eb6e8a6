"""The effects of an experiment, each against zero, its target and its margin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from payoff import formats
from payoff.report.charts.sheet import WIDE, Chart, Sheet, both, fit, fit_range, text_width
from payoff.report.figures import Effect, Section


def effects(section: Section) -> Chart | None:
    """Every metric's effect against zero, its target and its margin, with 50% and 95% bands; a row has its own scale."""
    rows = section.effects
    if not rows:
        return None
    title = f"Effects in {section.title}"
    said = [
        f"{e.label}, {e.contrast}: {e.deciding.full}, {e.state.label}"
        + (f"; {e.family}; read alone {e.quantity.range}" if e.adjusted else "")
        + (f", margin of harm {e.margin_text}" if e.margin_text else "")
        + (f", target {e.target_text}" if e.target_text else "")
        for e in rows
    ]
    description = formats.shorten(". ".join(said) + ".", 4000)
    return both(title, description, lambda width: _draw_effects(rows, width))


def _extent(group: Sequence[Effect]) -> tuple[float, float]:
    ends: list[float] = [0.0]
    for e in group:
        ends += [e.quantity.low, e.quantity.high, e.deciding.low, e.deciding.high]
        if e.margin is not None:
            ends.append(-e.margin if e.direction == "up" else e.margin)
        if e.target is not None:
            ends.append(e.target)
    return min(ends), max(ends)


def _draw_effects(rows: Sequence[Effect], width: int) -> Sheet:
    sheet = Sheet(width)
    wide = width == WIDE
    left, right = (228, 532) if wide else (8, width - 8)
    groups: dict[str, list[Effect]] = {}
    for effect in rows:
        groups.setdefault(effect.metric, []).append(effect)
    several = len({effect.contrast for effect in rows}) > 1
    extents = {metric: _extent(group) for metric, group in groups.items()}
    shares = [-low / (high - low) for low, high in extents.values() if high > low]
    zero_at = min(max((min(shares, default=0.5) + max(shares, default=0.5)) / 2, 0.15), 0.85)
    zero = left + zero_at * (right - left)
    sheet.text(zero, 12, "no effect", "muted", 12, align="center")
    y = 22.0
    for metric, group in groups.items():
        if y > 22.0:
            sheet.line(0, y, width, y, "rule", layer="back")
            y += 8
        low, high = extents[metric]
        room = min((zero - left) / -low if low < 0 else math.inf, (right - zero) / high if high > 0 else math.inf)
        scale = room * 0.97 if math.isfinite(room) else 0.0
        marked = sorted({(round(zero + line * scale), label) for e in group for line, label in _lines(e)})
        first = group[0]
        role = first.role_text
        if several or not wide:
            label = fit(first.label, width - text_width(role, 12) - 12, 13, True)
            sheet.text(0, y + 14, label, bold=True)
            sheet.text(text_width(label, 13, True) + 8, y + 14, role, "muted", 12)
            y += 20
        if marked:
            for place, label in marked:
                half = text_width(label, 12) / 2
                at = min(max(place, left - 4 + half), right + 4 - half)
                sheet.text(at, y + (14 if wide else 32 + 16 * several), label, _line_colour(label), 12, align="center")
        for index, e in enumerate(group):
            tone = e.tone
            extra = 15 if marked and index == 0 else 0
            if wide:
                middle, step = y + 20 + extra, 42.0 + extra
                if several:
                    sheet.text(0, middle + 4, fit(e.contrast, 212, 12), "muted", 12)
                else:
                    sheet.text(0, middle - 4, fit(e.label, 212, 13, True), bold=True)
                    sheet.text(0, middle + 12, fit(role, 212, 12), "muted", 12)
                sheet.text(552, middle - 4, fit(e.deciding.text, 165, 13, True), tone, 13, bold=True)
                sheet.text(552, middle + 12, fit_range(e.deciding.text, e.deciding.range, 168, 12), "muted", 12)
            else:
                at = y + 13
                if several:
                    sheet.text(0, at, fit(e.contrast, width, 12), "muted", 12)
                    at += 16
                sheet.text(0, at, e.deciding.text, tone, 13, bold=True)
                used = text_width(e.deciding.text, 13, True) + 10
                sheet.text(used, at, fit_range(e.deciding.text, e.deciding.range, width - used, 12), "muted", 12)
                middle = at + 18 + extra
                step = middle - y + 16
            for place, label in marked:
                sheet.line(place, middle - 12, place, middle + 12, _line_colour(label), 1.5, (3, 3))
            sheet.line(zero, middle - (24 if wide else 12), zero, middle + (22 if wide else 12), "zero", layer="back")
            q, whole = e.quantity, e.deciding
            sheet.line(zero + whole.low * scale, middle, zero + whole.high * scale, middle, tone, 1.5, layer="back")
            sheet.box(zero + q.low * scale, middle - 3.5, zero + q.high * scale, middle + 3.5, f"{tone}-band")
            for end in (whole.low, whole.high):
                sheet.line(zero + end * scale, middle - 6.5, zero + end * scale, middle + 6.5, tone, 1.5)
            if q.inner is not None:
                sheet.box(zero + q.inner[0] * scale, middle - 3.5, zero + q.inner[1] * scale, middle + 3.5, tone)
            sheet.dot(zero + q.value * scale, middle, "ink", 46)
            y += step
    sheet.height = y + 2
    return sheet


def _line_colour(label: str) -> str:
    return "warn" if label.startswith("margin") else "strong"


def _lines(effect: Effect) -> Iterable[tuple[float, str]]:
    if effect.margin is not None:
        yield (-effect.margin if effect.direction == "up" else effect.margin), f"margin {effect.margin_text}"
    if effect.target is not None:
        yield effect.target, f"target {effect.target_text}"

"""Charts as SVG text, drawn by Altair and vl-convert: no browser, no network, and fonts that every system has.

Every chart is laid out here in pixels and drawn with plain marks, so that nothing depends on a guess of the layout
engine; each exists in two widths, for a desk and for a telephone. Colours are those of ``PALETTE``, which the page maps
to its light and dark themes. Each SVG carries its numbers in words (<title>, <desc>).
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from payoff import formats
from payoff.report.figures import ClaimFigures, Effect, Section

WIDE, NARROW = 720, 300
FONT = "Helvetica, Arial, sans-serif"
PALETTE = {
    "ink": "#1c2733",
    "muted": "#566270",
    "rule": "#d8d4ca",
    "zero": "#7c8794",
    "strong": "#0b5c8a",
    "good": "#1f6f54",
    "quiet": "#586473",
    "warn": "#8a5300",
    "bad": "#a8322a",
    "off": "#666d75",
    "strong-band": "#a9cbe0",
    "good-band": "#a9d2c0",
    "quiet-band": "#c9ced5",
    "warn-band": "#ecc98f",
    "bad-band": "#eab8b2",
    "off-band": "#d9dbde",
    "hatch": "#dfe2e7",
    "hatch-line": "#b9bfc8",
}
SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure in two widths. ``description`` says the same in words."""

    title: str
    description: str
    wide: str
    narrow: str


# ---------------------------------------------------------------- drawing


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Width in pixels of ``text`` in Helvetica or Arial, from the advance widths of its characters; errs on the wide side."""
    total = 0.0
    for char in text:
        if unicodedata.combining(char) or unicodedata.category(char) == "Cf":
            continue
        if unicodedata.east_asian_width(char) in ("W", "F"):
            total += 1.0
        elif char in "iljI.,:;'|!()[] /tf-":
            total += 0.34
        elif char in "mwMW%@\u2026":
            total += 0.92
        elif char.isupper() or char in "+<>=~\u2212&$":
            total += 0.68
        else:
            total += 0.57
    return total * size * (1.06 if bold else 1.0)


def fit(text: str, width: float, size: float, bold: bool = False) -> str:
    """``text`` cut to ``width`` pixels with an ellipsis; whole in the table beside the chart."""
    if text_width(text, size, bold) <= width:
        return text
    kept = text
    while kept and text_width(kept + formats.ELLIPSIS, size, bold) > width:
        kept = kept[:-1]
    return kept.rstrip() + formats.ELLIPSIS


@dataclass(slots=True)
class _Sheet:
    """Marks in pixels, from the top left; grouped by style into Altair layers when drawn."""

    width: int
    height: float = 0.0
    marks: dict[tuple[Any, ...], list[dict[str, Any]]] = field(default_factory=dict)

    def _add(self, style: tuple[Any, ...], row: dict[str, Any]) -> None:
        self.marks.setdefault(style, []).append(row)

    def box(self, x: float, y: float, x2: float, y2: float, colour: str, outline: str | None = None) -> None:
        self._add(("rect", outline), {"x": min(x, x2), "x2": max(x, x2), "y": y, "y2": y2, "c": PALETTE[colour]})

    def line(
        self,
        x: float,
        y: float,
        x2: float,
        y2: float,
        colour: str,
        width: float = 1.0,
        dash: tuple[int, ...] = (),
        layer: str = "front",
    ) -> None:
        self._add(("rule", width, dash, layer), {"x": x, "x2": x2, "y": y, "y2": y2, "c": PALETTE[colour]})

    def dot(self, x: float, y: float, colour: str, area: float = 80.0, hollow: bool = False) -> None:
        self._add(("point", area, hollow), {"x": x, "y": y, "c": PALETTE[colour]})

    def text(
        self,
        x: float,
        y: float,
        text: str,
        colour: str = "ink",
        size: float = 13,
        bold: bool = False,
        align: str = "left",
    ) -> None:
        self._add(("text", size, bold, align), {"x": x, "y": y, "t": text, "c": PALETTE[colour]})

    def svg(self, title: str, description: str) -> str:
        import altair as alt
        import vl_convert
        from altair.utils.schemapi import debug_mode

        height = math.ceil(self.height)
        across = alt.Scale(domain=[0, self.width], nice=False, zero=False)
        down = alt.Scale(domain=[0, height], nice=False, zero=False, reverse=True)
        order = ("rect", "rule", "point", "text")
        layers: list[alt.Chart] = []
        # Altair checks every object against the whole schema as it is made, which takes longer than the drawing; these
        # few marks are fixed, and a wrong one fails in the drawing itself.
        with debug_mode(False):
            x = alt.X(field="x", type="quantitative", axis=None, scale=across)
            y = alt.Y(field="y", type="quantitative", axis=None, scale=down)
            x2, y2 = alt.X2(field="x2"), alt.Y2(field="y2")
            fill = alt.Fill(field="c", type="nominal", scale=None, legend=None)
            colour = alt.Color(field="c", type="nominal", scale=None, legend=None)
            words = alt.Text(field="t", type="nominal")
            for style, rows in sorted(self.marks.items(), key=lambda m: (m[0][-1] != "back", order.index(m[0][0]))):
                base = alt.Chart(alt.InlineData(values=rows))
                if style[0] == "rect":
                    boxes = base.mark_rect(stroke=PALETTE[style[1]]) if style[1] else base.mark_rect()
                    layers.append(boxes.encode(x=x, x2=x2, y=y, y2=y2, fill=fill))
                elif style[0] == "rule":
                    dash = list(style[2]) or alt.Undefined
                    rules = base.mark_rule(strokeWidth=style[1], strokeDash=dash)
                    layers.append(rules.encode(x=x, x2=x2, y=y, y2=y2, color=colour))
                elif style[0] == "point":
                    points = base.mark_point(size=style[1], filled=not style[2], opacity=1, strokeWidth=1.5)
                    layers.append(points.encode(x=x, y=y, color=colour))
                else:
                    texts = base.mark_text(
                        align=style[3],
                        baseline="alphabetic",
                        fontSize=style[1],
                        fontWeight="bold" if style[2] else "normal",
                        font=FONT,
                    )
                    layers.append(texts.encode(x=x, y=y, text=words, color=colour))
            chart = (
                alt.layer(*layers)
                .properties(width=self.width, height=height, padding=0, autosize=alt.AutoSizeParams(type="none"))
                .configure(background="transparent")
                .configure_view(stroke=None)
            )
            spec = chart.to_dict(validate=False)
        version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
        drawn = vl_convert.vegalite_to_svg(spec, vl_version=version, allowed_base_urls=[])
        return _slim(drawn, self.width, height, title, description)


_KEEP = {
    "d", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "transform", "fill", "stroke", "stroke-width",
    "stroke-dasharray", "text-anchor", "font-family", "font-size", "font-weight", "opacity",
}  # fmt: skip


def _slim(svg: str, width: int, height: int, title: str, description: str) -> str:
    """The drawing alone: one image with a title and a description, without the renderer's scaffolding and its ARIA roles."""
    root = ElementTree.fromstring(svg)
    marks: list[ElementTree.Element] = []

    def walk(node: ElementTree.Element, at: tuple[float, float]) -> None:
        for child in node:
            tag = child.tag.removeprefix(f"{{{SVG}}}")
            shift = re.fullmatch(r"translate\(([-\d.]+),([-\d.]+)\)", child.get("transform", ""))
            here = (at[0] + float(shift[1]), at[1] + float(shift[2])) if shift and tag == "g" else at
            if tag == "g":
                walk(child, here)
            elif (
                tag in ("path", "line", "text")
                and child.get("display") != "none"
                and child.get("class") not in ("background", "foreground")
            ):
                kept = {k: v for k, v in child.attrib.items() if k in _KEEP}
                if here != (0.0, 0.0):
                    kept["transform"] = f"translate({here[0]:g},{here[1]:g}) " + kept.get("transform", "")
                kept = {
                    k: re.sub(r"(\.\d\d)\d+", r"\1", v) if k in ("d", "transform", "x2", "y2") else v
                    for k, v in kept.items()
                }
                if kept.get("font-family") == FONT:
                    del kept["font-family"]
                kept.setdefault("fill", "none")  # as the group did that is left out here; without it a path is black
                mark = ElementTree.Element(tag, kept)
                mark.text = child.text
                marks.append(mark)

    walk(root, (0.0, 0.0))
    out = ElementTree.Element(
        "svg",
        {
            "xmlns": SVG,
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "role": "img",
            "font-family": FONT,
        },
    )
    ElementTree.SubElement(out, "title").text = title
    ElementTree.SubElement(out, "desc").text = description
    if any(mark.get("fill") == PALETTE["hatch"] for mark in marks):
        name = f"hatch-{zlib.crc32(f'{title}{width}'.encode()):x}"
        pattern = ElementTree.SubElement(
            ElementTree.SubElement(out, "defs"),
            "pattern",
            {
                "id": name,
                "width": "7",
                "height": "7",
                "patternUnits": "userSpaceOnUse",
                "patternTransform": "rotate(45)",
            },
        )
        ElementTree.SubElement(pattern, "rect", {"width": "7", "height": "7", "fill": PALETTE["hatch"]})
        ElementTree.SubElement(pattern, "rect", {"width": "2.5", "height": "7", "fill": PALETTE["hatch-line"]})
        for mark in marks:
            if mark.get("fill") == PALETTE["hatch"]:
                mark.set("fill", f"url(#{name})")
    out.extend(marks)
    return ElementTree.tostring(out, encoding="unicode")


def _both(title: str, description: str, draw: Any) -> Chart:
    return Chart(title, description, draw(WIDE).svg(title, description), draw(NARROW).svg(title, description))


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) inside [low, high], zero among them if it is inside."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * m for m in (1, 2, 5, 10, 20) if span / (step * m) <= most)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


# ---------------------------------------------------------------- effects of an experiment


def effects(section: Section) -> Chart | None:
    """Every metric's effect against zero, its target and its margin, with 50% and 95% bands; a row has its own scale."""
    rows = section.effects
    if not rows:
        return None
    title = f"Effects in {section.title}"
    said = [
        f"{e.label}, {e.contrast}: {e.quantity.full}, {e.state.label}"
        + (f", margin of harm {e.margin_text}" if e.margin_text else "")
        + (f", target {e.target_text}" if e.target_text else "")
        for e in rows
    ]
    description = formats.shorten(". ".join(said) + ".", 4000)
    return _both(title, description, lambda width: _draw_effects(rows, width))


def _extent(group: Sequence[Effect]) -> tuple[float, float]:
    ends: list[float] = [0.0]
    for e in group:
        ends += [e.quantity.low, e.quantity.high]
        if e.margin is not None:
            ends.append(-e.margin if e.direction == "up" else e.margin)
        if e.target is not None:
            ends.append(e.target)
    return min(ends), max(ends)


def _draw_effects(rows: Sequence[Effect], width: int) -> _Sheet:
    sheet = _Sheet(width)
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
                sheet.text(552, middle - 4, fit(e.quantity.text, 165, 13, True), tone, 13, bold=True)
                sheet.text(552, middle + 12, fit(e.quantity.range, 168, 12), "muted", 12)
            else:
                at = y + 13
                if several:
                    sheet.text(0, at, fit(e.contrast, width, 12), "muted", 12)
                    at += 16
                sheet.text(0, at, e.quantity.text, tone, 13, bold=True)
                used = text_width(e.quantity.text, 13, True) + 10
                sheet.text(used, at, fit(e.quantity.range, width - used, 12), "muted", 12)
                middle = at + 18 + extra
                step = middle - y + 16
            for place, label in marked:
                sheet.line(place, middle - 12, place, middle + 12, _line_colour(label), 1.5, (3, 3))
            sheet.line(zero, middle - (24 if wide else 12), zero, middle + (22 if wide else 12), "zero", layer="back")
            q = e.quantity
            sheet.box(zero + q.low * scale, middle - 3.5, zero + q.high * scale, middle + 3.5, f"{tone}-band")
            for end in (q.low, q.high):
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


# ---------------------------------------------------------------- claims


@dataclass(frozen=True, slots=True)
class _Row:
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


def _bars(rows: Sequence[_Row], width: int, base: float, base_name: str, connect: bool) -> _Sheet:
    """Horizontal bars on one scale of money: name and note at the left, the bar, its number at the right."""
    sheet = _Sheet(width)
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
            sheet.text(530, middle + 13, fit(row.spread, 188, 12), "muted", 12)
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


def bridge(claim: ClaimFigures) -> Chart | None:
    """Amount, each cost, net, with their intervals. More than six costs are drawn as five and the rest together."""
    steps = list(claim.bridge)
    if not steps:
        return None
    title = f"From amount to net: {claim.title}"
    description = (
        ". ".join(f"{s.name} {s.text}" + (f" ({s.range})" if s.range != "taken as exact" else "") for s in steps) + "."
    )
    head, *costs, tail = steps
    note = "hatched: extrapolated" if claim.extrapolated else ""
    shown = costs if len(costs) <= 6 else costs[:5]
    rows = [
        _Row(
            head.name,
            note,
            head.text,
            head.range,
            head.start,
            head.end,
            "quiet",
            head.interval,
            bold=True,
            hatched=claim.extrapolated,
        )
    ]
    rows += [_Row(s.name, "", s.text, s.range, s.start, s.end, "off") for s in shown]
    if len(costs) > len(shown):
        start, end = costs[5].start, costs[-1].end
        text = formats.exact(end - start, formats.Unit("money", claim.money.label))
        rows.append(_Row(f"{len(costs) - 5} other costs", "", text, "each in the list below", start, end, "off"))
    rows.append(
        _Row(
            tail.name,
            "amount less costs",
            tail.text,
            tail.range,
            tail.start,
            tail.end,
            claim.state.tone,
            tail.interval,
            bold=True,
        )
    )
    return _both(title, description, lambda width: _bars(rows, width, 0.0, "zero", connect=True))


def tornado(claim: ClaimFigures) -> Chart | None:
    """The net when each input alone goes to the ends of its range, widest first; at most eight inputs."""
    swings = claim.swings[:8]
    if not swings:
        return None
    # Of the central figure, as the sentences beside the chart say; the decision itself asks for a probability.
    crosses, stays = "crosses the threshold", "stays on its side"
    if claim.decision_met is None:
        crosses, stays = "changes sign", "keeps its sign"
    title = f"What moves the {claim.noun} most: {claim.title}"
    description = ". ".join(
        f"{s.name} from {s.inputs}: {claim.noun} {s.nets}{f', which {crosses}' if s.flips else ''}" for s in swings
    )
    rows = [
        _Row(
            name=s.name,
            note=s.inputs,
            text=crosses if s.flips else stays,
            spread=f"{claim.noun} {s.nets}",
            start=s.net_at_low,
            end=s.net_at_high,
            tone="warn" if s.flips else "quiet",
        )
        for s in swings
    ]
    return _both(
        title, f"The {claim.noun} now: {claim.net.text}. {description}.", lambda width: _tornado(rows, width, claim)
    )


def _tornado(rows: Sequence[_Row], width: int, claim: ClaimFigures) -> _Sheet:
    return _bars(rows, width, claim.net.value, f"{claim.noun} {claim.net.text}", connect=False)


def dots(claim: ClaimFigures) -> Chart | None:
    """Twenty equally likely values of the net, stacked: a quantile dot plot (Kay et al. 2016)."""
    if not claim.dots:
        return None
    title = f"Twenty equally likely outcomes: {claim.title}"
    description = f"{claim.dots_text} The {claim.noun}: {claim.net.full}."
    return _both(title, description, lambda width: _draw_dots(claim, width))


def _draw_dots(claim: ClaimFigures, width: int) -> _Sheet:
    sheet = _Sheet(width)
    left, right = 30, width - 30
    low, high = min(*claim.dots, 0.0), max(*claim.dots, 0.0)
    columns = 11
    size = (right - left) / columns
    span = (high - low) / (columns - 1)
    stacks: dict[int, int] = {}
    places = []
    for value in claim.dots:
        # Bins meet at zero, so that no dot stands on the wrong side of it.
        column = math.floor(value / span) if span else 0
        stacks[column] = stacks.get(column, 0) + 1
        places.append((column, stacks[column], value <= 0))
    first, last = min([*stacks, 0]), max([*stacks, -1]) + 1
    size = min(size, (right - left) / (last - first), 26.0)
    start = (width - size * (last - first)) / 2
    base = 26 + size * max(stacks.values())
    zero = start - first * size
    for column, level, bad in places:
        x = start + (column - first + 0.5) * size
        sheet.dot(x, base - (level - 0.5) * size, "bad" if bad else "strong", 0.62 * size * size, hollow=bad)
    sheet.line(start - 8, base + 2, start + size * (last - first) + 8, base + 2, "zero")
    sheet.line(zero, 18, zero, base + 8, "ink", 1.2)
    half = text_width("zero", 12) / 2
    sheet.text(min(max(zero, half), width - half), 12, "zero", "muted", 12, align="center")
    taken = [(zero - 12, zero + 12)]
    for tick in _ticks(first * span, last * span, 5):
        at = zero + tick / span * size
        label = formats.axis(tick, max(abs(low), abs(high)), formats.Unit(claim.money.kind, claim.money.label))
        reach = text_width(label, 12) / 2 + 6
        if all(at + reach < a or at - reach > b for a, b in taken[1:]) and at - reach > -6 and at + reach < width + 6:
            sheet.line(at, base + 2, at, base + 7, "zero")
            sheet.text(at, base + 21, label, "muted", 12, align="center")
            taken.append((at - reach, at + reach))
    sheet.height = base + 28
    return sheet

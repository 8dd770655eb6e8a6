"""Marks in pixels, and their way to SVG."""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from payoff import formats

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


def fit_range(text: str, span: str, width: float, size: float) -> str:
    """The range ``span`` of the number ``text``; where there is no room, without the unit that both of them end in."""
    if text_width(span, size) <= width:
        return span
    return fit(formats.without_unit(text, span), width, size)


@dataclass(slots=True)
class Sheet:
    """Marks in pixels, from the top left; grouped by style into Altair layers when drawn."""

    width: int
    height: float = 0.0
    marks: dict[tuple[Any, ...], list[dict[str, Any]]] = field(default_factory=dict)

    def _add(self, style: tuple[Any, ...], row: dict[str, Any]) -> None:
        self.marks.setdefault(style, []).append(row)

    def box(
        self,
        x: float,
        y: float,
        x2: float,
        y2: float,
        colour: str,
        outline: str | None = None,
        opacity: float = 1.0,
        layer: str = "front",
    ) -> None:
        """On the layer "under" a box lies below everything, and words may stand upon it."""
        row = {"x": min(x, x2), "x2": max(x, x2), "y": y, "y2": y2, "c": PALETTE[colour]}
        self._add(("rect", outline, opacity, layer), row)

    def area(self, ends: Sequence[tuple[float, float, float]], colour: str, opacity: float = 1.0) -> None:
        """The room between two lines, each given by its height at the same places: (x, y, y2); it lies below everything."""
        group = f"{sum(len(rows) for rows in self.marks.values())}"
        for x, y, y2 in ends:
            self._add(("area", opacity, "under"), {"x": x, "y": y, "y2": y2, "g": group, "c": PALETTE[colour]})

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

    def dot(
        self, x: float, y: float, colour: str, area: float = 80.0, hollow: bool = False, shape: str = "circle"
    ) -> None:
        self._add(("point", area, hollow, shape, ""), {"x": x, "y": y, "c": PALETTE[colour]})

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

    def below(self, other: Sheet, gap: float = 10.0) -> None:
        """``other`` drawn under this sheet."""
        down = self.height + gap
        for style, rows in other.marks.items():
            for row in rows:
                self._add(style, {k: v + down if k in ("y", "y2") else v for k, v in row.items()})
        self.height = down + other.height

    def svg(self, title: str, description: str) -> str:
        import altair as alt
        import vl_convert
        from altair.utils.schemapi import debug_mode

        height = math.ceil(self.height)
        across = alt.Scale(domain=[0, self.width], nice=False, zero=False)
        down = alt.Scale(domain=[0, height], nice=False, zero=False, reverse=True)
        order = ("area", "rect", "rule", "point", "text")
        depth = {"under": 0, "back": 1}
        under: set[int] = set()
        layers: list[alt.Chart] = []
        # By name, and given to the drawing as they are: Altair copies every row in a layer several times.
        rows_of: dict[str, list[dict[str, Any]]] = {}
        # Altair checks every object against the whole schema as it is made, which takes longer than the drawing; these
        # few marks are fixed, and a wrong one fails in the drawing itself.
        with debug_mode(False):
            x = alt.X(field="x", type="quantitative", axis=None, scale=across)
            y = alt.Y(field="y", type="quantitative", axis=None, scale=down)
            x2, y2 = alt.X2(field="x2"), alt.Y2(field="y2")
            fill = alt.Fill(field="c", type="nominal", scale=None, legend=None)
            colour = alt.Color(field="c", type="nominal", scale=None, legend=None)
            words = alt.Text(field="t", type="nominal")
            for style, rows in sorted(self.marks.items(), key=lambda m: (depth.get(m[0][-1], 2), order.index(m[0][0]))):
                if style[-1] == "under":
                    under.add(len(layers))
                base = alt.Chart(alt.NamedData(name=f"marks-{len(rows_of)}"))
                rows_of[f"marks-{len(rows_of)}"] = rows
                if style[0] == "rect":
                    thin = {} if style[2] == 1.0 else {"opacity": style[2]}
                    boxes = base.mark_rect(stroke=PALETTE[style[1]], **thin) if style[1] else base.mark_rect(**thin)
                    layers.append(boxes.encode(x=x, x2=x2, y=y, y2=y2, fill=fill))
                elif style[0] == "area":
                    areas = base.mark_area(opacity=style[1])
                    detail = alt.Detail(field="g", type="nominal")
                    layers.append(areas.encode(x=x, y=y, y2=y2, fill=fill, detail=detail))
                elif style[0] == "rule":
                    dash = list(style[2]) or alt.Undefined
                    rules = base.mark_rule(strokeWidth=style[1], strokeDash=dash)
                    layers.append(rules.encode(x=x, x2=x2, y=y, y2=y2, color=colour))
                elif style[0] == "point":
                    points = base.mark_point(
                        size=style[1], filled=not style[2], opacity=1, strokeWidth=1.5, shape=style[3]
                    )
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
            spec = {**chart.to_dict(validate=False), "datasets": rows_of}
        version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
        drawn = vl_convert.vegalite_to_svg(spec, vl_version=version, allowed_base_urls=[])
        return _slim(drawn, self.width, height, title, description, under)


_KEEP = {
    "d", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "transform", "fill", "stroke", "stroke-width",
    "stroke-dasharray", "text-anchor", "font-family", "font-size", "font-weight", "opacity",
}  # fmt: skip


def _slim(svg: str, width: int, height: int, title: str, description: str, under: Collection[int] = ()) -> str:
    """The drawing alone: one image with a title and a description, without the renderer's scaffolding and its ARIA roles.

    Marks of the layers ``under`` have that as their class: words may stand upon them.
    """
    root = ElementTree.fromstring(svg)
    marks: list[ElementTree.Element] = []

    def walk(node: ElementTree.Element, at: tuple[float, float], below: bool) -> None:
        for child in node:
            tag = child.tag.removeprefix(f"{{{SVG}}}")
            shift = re.fullmatch(r"translate\(([-\d.]+),([-\d.]+)\)", child.get("transform", ""))
            here = (at[0] + float(shift[1]), at[1] + float(shift[2])) if shift and tag == "g" else at
            if tag == "g":
                layer = re.search(r"\blayer_(\d+)_", child.get("class", ""))
                walk(child, here, int(layer[1]) in under if layer else below)
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
                if below:
                    kept["class"] = "under"
                mark = ElementTree.Element(tag, kept)
                mark.text = child.text
                marks.append(mark)

    walk(root, (0.0, 0.0), False)
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


def both(title: str, description: str, draw: Any) -> Chart:
    return Chart(title, description, draw(WIDE).svg(title, description), draw(NARROW).svg(title, description))


def stacked(charts: Sequence[Chart]) -> str:
    """Several charts as one image, each under its title: for a place that has no headings of its own."""
    out = ElementTree.Element("svg", {"xmlns": SVG, "role": "img", "font-family": FONT})
    y = 0
    for chart in charts:
        inner = ElementTree.fromstring(chart.wide)
        for node in inner.iter():
            node.tag = node.tag.removeprefix(f"{{{SVG}}}")
        y += 26
        heading = {"x": "0", "y": str(y - 8), "font-size": "14px", "font-weight": "bold", "fill": PALETTE["ink"]}
        ElementTree.SubElement(out, "text", heading).text = fit(chart.title, WIDE, 14, True)
        inner.set("y", str(y))
        out.append(inner)
        y += int(inner.get("height", "0")) + 14
    out.set("viewBox", f"0 0 {WIDE} {y}")
    out.set("width", str(WIDE))
    out.set("height", str(y))
    return ElementTree.tostring(out, encoding="unicode")


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) inside [low, high], zero among them if it is inside."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * m for m in (1, 2, 5, 10, 20) if span / (step * m) <= most)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]

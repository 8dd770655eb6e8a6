"""Funnels, paths and attributed credit as pictures. None has a colour of good or bad: nothing in them was compared."""

from __future__ import annotations

from collections.abc import Sequence

from payoff import formats
from payoff.formats import Unit
from payoff.report.charts.ranges import Row, ranges
from payoff.report.charts.sheet import WIDE, Chart, Sheet, both, fit, fit_range, text_width
from payoff.report.figures import (
    AttributionFigures,
    Edge,
    FunnelFigures,
    PathFigures,
    ReconciliationFigures,
    StepLine,
    stop_name,
)

_MOST = 4000
_SHARE = Unit("share")
MOST_PATHS, MOST_CLASSES, MOST_POINTS = 20, 20, 24
"""Rows of a picture; the table beside it has all."""


# ---------------------------------------------------------------- funnels


def funnel(figures: FunnelFigures, name: str) -> Chart:
    """A bar for each step, as a share of those who entered; between two the share that went on, and how long it took."""
    said = [_step_in_words(k, step) for k, step in enumerate(figures.steps)]
    if figures.inside:
        said.append(figures.inside)
    description = formats.shorten(". ".join(said) + ".", _MOST)
    return both(f"Steps of {name}", description, lambda width: _draw_funnel(figures.steps, width))


def _step_in_words(k: int, step: StepLine) -> str:
    if step.reached is None:
        return f"{step.name}: not shown, 0 figures: too few units"
    parts = [f"{step.name}: {step.reached.text} units"]
    parts += [f"{step.share.full} of entrants"] if step.share is not None and k else []
    parts += [f"{step.before.text} ({step.before.range}) of the step before"] if step.before is not None else []
    parts += [f"median time {step.median.text} ({step.median.range})"] if step.median is not None else []
    return ", ".join(parts)


def _draw_funnel(steps: Sequence[StepLine], width: int) -> Sheet:
    sheet, wide = Sheet(width), width == WIDE
    left, right = (190, 512) if wide else (2, width - 2)
    y = 4.0
    for k, step in enumerate(steps):
        if k:
            lines = _between(step, width - (left if wide else 0))
            for line in lines:
                sheet.text(left if wide else 0, y + 12, line, "muted", 12)
                y += 16
            y += 6 if lines else 0
        share = step.share.value if step.share is not None else 1.0 if not k and step.reached is not None else None
        units = f"{step.reached.text} units" if step.reached is not None else "too few units to show"
        text = step.share.text if step.share is not None and k else "entered" if not k else ""
        spread = step.share.range if step.share is not None and k else ""
        if wide:
            middle = y + 18
            sheet.text(0, middle - 3, fit(step.name, 180, 13, True), bold=True)
            sheet.text(0, middle + 13, fit(units, 180, 12), "muted", 12)
            sheet.text(530, middle - 3 if spread else middle + 4, fit(text, 186, 13, True), bold=True)
            sheet.text(530, middle + 13, fit_range(text, spread, 188, 12), "muted", 12)
        else:
            sheet.text(0, y + 13, fit(step.name, width - text_width(text, 13, True) - 8, 13, True), bold=True)
            sheet.text(width, y + 13, text, bold=True, align="right")
            note = units + (f" \u00b7 {spread}" if spread else "")
            sheet.text(0, y + 29, fit(note, width, 12), "muted", 12)
            middle = y + 47
        sheet.box(left, middle - 11, right, middle + 11, "hatch" if share is None else "off-band",
                  opacity=1.0 if share is None else 0.35, layer="under")  # fmt: skip
        if share is not None:
            sheet.box(left, middle - 11, left + share * (right - left), middle + 11, "strong-band", "strong")
        if step.share is not None and k:
            a, b = (left + end * (right - left) for end in (step.share.low, step.share.high))
            sheet.line(a, middle, b, middle, "ink", 1.5)
            for end in (a, b):
                sheet.line(end, middle - 5, end, middle + 5, "ink", 1.5)
        y = middle + 20
    sheet.height = y
    return sheet


def _between(step: StepLine, room: float) -> list[str]:
    """What happened between a step and the one before, in one line where it fits."""
    parts = []
    if step.before is not None:
        parts.append(f"\u2193 {step.before.text} ({step.before.range}) of the step before")
    if step.median is not None:
        parts.append(f"{'' if parts else chr(0x2193) + ' '}median {step.median.text} ({step.median.range})")
    whole = ", ".join(parts)
    return [fit(line, room, 12) for line in ([whole] if whole and text_width(whole, 12) <= room else parts)]


def funnel_classes(figures: FunnelFigures, name: str) -> Chart | None:
    """The last step's share of those who entered, class by class."""
    shown = [(label, lines[-1]) for label, lines in figures.classes if lines and lines[-1].share is not None]
    if not shown:
        return None
    rows = [Row(label, [line.share]) for label, line in shown[:MOST_CLASSES]]
    said = [f"{label}: {line.share.full}" for label, line in shown if line.share is not None]
    title = f"Share of entrants reaching {shown[0][1].name} by class, {name}"
    description = formats.shorten(". ".join(said) + ".", _MOST)
    return both(title, description, lambda width: ranges(rows, ["share"], _SHARE, width))


# ---------------------------------------------------------------- paths


def paths(figures: PathFigures, name: str) -> Chart | None:
    """The share of journeys on each of the most common paths."""
    shown = [(row, row.share or row.journeys) for row in figures.rows][:MOST_PATHS]
    if not shown:
        return None
    said = [f"{row.rank}. {row.path}: {row.journeys.text} journeys, {quantity.full}" for row, quantity in shown]
    rows = [Row(row.path, [quantity]) for row, quantity in shown]
    description = formats.shorten(". ".join(said) + ".", _MOST)
    return both(f"Most common paths, {name}", description, lambda width: _draw_paths(rows, width))


def _draw_paths(rows: Sequence[Row], width: int) -> Sheet:
    """A bar under the whole of its path, which may be long."""
    sheet = Sheet(width)
    top = max(q.high for row in rows for q in row.marks if q is not None) or 1.0
    room = width - (150 if width == WIDE else 4)
    y = 2.0
    for row in rows:
        q = row.marks[0]
        if q is None:
            continue
        numbers = text_width(q.text, 13, True)
        sheet.text(0, y + 14, fit(row.name, width - numbers - 16, 13))
        sheet.text(width, y + 14, q.text, bold=True, align="right")
        middle = y + 29
        sheet.box(0, middle - 6, q.value / top * room, middle + 6, "strong-band", "strong")
        a, b = q.low / top * room, q.high / top * room
        sheet.line(a, middle, b, middle, "ink", 1.5)
        for end in (a, b):
            sheet.line(end, middle - 4, end, middle + 4, "ink", 1.5)
        if width == WIDE:
            sheet.text(width, middle + 4, fit_range(q.text, q.range, 140, 12), "muted", 12, align="right")
        y = middle + 14
    sheet.height = y
    return sheet


def flow(figures: PathFigures, name: str) -> Chart | None:
    """Journeys from stop to stop, as thick as they are many; on a telephone a bar for each."""
    if not figures.edges:
        return None
    ordered = sorted(figures.edges, key=lambda x: (x.at, -x.n))
    said = [f"From {stop_name(x.at, ordered[0].at)}, {x.source} to {x.target}: {formats.count(x.n)}" for x in ordered]
    description = formats.shorten(". ".join([figures.flow_sentence.rstrip("."), *said]).strip(". ") + ".", _MOST)
    return both(
        f"Where journeys went, {name}",
        description,
        lambda width: _draw_flow(ordered) if width == WIDE else _list_flow(ordered),
    )


_COLUMNS, _NODES = 5, 9
_Node = tuple[int, str]


def _simplified(edges: Sequence[Edge]) -> tuple[list[Edge], str]:
    """At most so many columns, nearest the end that stops are counted from, and in each at most so many nodes: the smaller
    ones are taken together."""
    columns = sorted({x.at for x in edges} | {x.at + 1 for x in edges})
    backwards = columns[0] < 0
    kept = columns[-_COLUMNS:] if backwards else columns[:_COLUMNS]
    inside = [x for x in edges if x.at in kept and x.at + 1 in kept]
    sizes: dict[_Node, int] = {}
    for x in inside:
        for node in ((x.at, x.source), (x.at + 1, x.target)):
            sizes[node] = sizes.get(node, 0) + x.n
    allowed = set()
    for column in kept:
        ranked = sorted((node for node in sizes if node[0] == column), key=lambda node: -sizes[node])
        allowed |= set(ranked if len(ranked) <= _NODES else ranked[: _NODES - 1])
    merged: dict[tuple[int, str, str], int] = {}
    for x in inside:
        a = x.source if (x.at, x.source) in allowed else "others"
        b = x.target if (x.at + 1, x.target) in allowed else "others"
        merged[x.at, a, b] = merged.get((x.at, a, b), 0) + x.n
    left = len(columns) - len(kept)
    note = f"{left} {'earlier' if backwards else 'later'} stops are in the table" if left else ""
    return [Edge(at, a, b, n) for (at, a, b), n in merged.items()], note


def _draw_flow(edges: Sequence[Edge]) -> Sheet:
    sheet = Sheet(WIDE)
    found, note = _simplified(edges)
    inflow: dict[_Node, int] = {}
    outflow: dict[_Node, int] = {}
    for x in found:
        outflow[x.at, x.source] = outflow.get((x.at, x.source), 0) + x.n
        inflow[x.at + 1, x.target] = inflow.get((x.at + 1, x.target), 0) + x.n
    size = {node: max(inflow.get(node, 0), outflow.get(node, 0)) for node in (*outflow, *inflow)}
    columns = sorted({node[0] for node in size})
    nodes = {c: sorted((n for n in size if n[0] == c), key=lambda n: (n[1].startswith("("), -size[n])) for c in columns}
    gap, least, body = 8.0, 34.0, 240.0
    largest = max(sum(size[n] for n in nodes[c]) for c in columns)
    scale = body / largest
    wide = 116.0 if len(columns) > 2 else 150.0
    between = (WIDE - wide * len(columns)) / max(len(columns) - 1, 1)
    top, bottom = 26.0, 0.0
    place: dict[_Node, tuple[float, float]] = {}
    for k, column in enumerate(columns):
        left = k * (wide + between)
        sheet.text(left, 14, stop_name(column, columns[0]), "muted", 12)
        y = top
        for node in nodes[column]:
            tall = max(size[node] * scale, least)
            place[node] = left, y + (tall - size[node] * scale) / 2
            sheet.box(left, y, left + wide, y + tall, "strong-band", "strong", layer="under")
            count = formats.count(size[node])
            sheet.text(left + 6, y + tall / 2 - 2, fit(node[1], wide - 10, 12), size=12)
            sheet.text(left + 6, y + tall / 2 + 13, fit(count, wide - 10, 12, True), size=12, bold=True)
            y += tall + gap
        bottom = max(bottom, y)
    leave = dict.fromkeys(size, 0.0)
    arrive = dict.fromkeys(size, 0.0)
    rank = {node: k for column in columns for k, node in enumerate(nodes[column])}
    for x in sorted(found, key=lambda e: (e.at, rank[e.at, e.source], rank[e.at + 1, e.target])):
        a, b = (x.at, x.source), (x.at + 1, x.target)
        thick = max(x.n * scale, 1.0)
        y0, y1 = place[a][1] + leave[a], place[b][1] + arrive[b]
        leave[a] += x.n * scale
        arrive[b] += x.n * scale
        x0, x1 = place[a][0] + wide + 1, place[b][0] - 1
        ends = []
        for k in range(13):
            t = k / 12
            y = y0 + (y1 - y0) * t * t * (3 - 2 * t)
            ends.append((x0 + (x1 - x0) * t, y, y + thick))
        sheet.area(ends, "strong", 0.38)
    if note:
        sheet.text(0, bottom + 14, note, "muted", 12)
        bottom += 20
    sheet.height = bottom
    return sheet


def _list_flow(edges: Sequence[Edge]) -> Sheet:
    sheet, width = Sheet(300), 300.0
    shown = sorted(edges, key=lambda x: -x.n)[:24]
    top = shown[0].n or 1
    y = 0.0
    at: int | None = None
    columns = sorted({x.at for x in edges} | {x.at + 1 for x in edges})
    for x in sorted(shown, key=lambda e: (e.at, -e.n)):
        if x.at != at:
            sheet.text(0, y + 16, f"From {stop_name(x.at, columns[0])}", "muted", 12)
            y, at = y + 22, x.at
        count = formats.count(x.n)
        name = fit(f"{x.source} \u2192 {x.target}", width - text_width(count, 13, True) - 12, 13)
        sheet.text(0, y + 13, name)
        sheet.text(width, y + 13, count, bold=True, align="right")
        sheet.box(0, y + 19, max(x.n / top * width, 1.5), y + 28, "strong-band", "strong")
        y += 36
    if len(shown) < len(edges):
        sheet.text(0, y + 14, f"The {len(shown)} largest; the rest is in the table", "muted", 12)
        y += 20
    sheet.height = y
    return sheet


# ---------------------------------------------------------------- attribution


def credit(figures: AttributionFigures, name: str) -> Chart:
    """One row for each touchpoint, in it one mark for each model, with its interval."""
    models = figures.drawn_models
    rows = [Row(row.name, row.credit[: len(models)]) for row in figures.rows[:MOST_POINTS]]
    said = []
    for row in figures.rows:
        numbers = [f"{m} {q.text} ({q.range})" for m, q in zip(models, row.credit, strict=False) if q is not None]
        said.append(f"{row.name}: {', '.join(numbers) or 'not shown'}")
    title = f"Attributed {figures.what} by model, {name}, {figures.scope}"
    description = formats.shorten(". ".join(said) + ".", _MOST)
    return both(title, description, lambda width: ranges(rows, models, figures.unit, width))


def reconciliation(figures: ReconciliationFigures, name: str) -> Chart:
    """What is attributed and what is incremental, in total and by touchpoint, on one axis."""
    rows = [Row("All together", [figures.attributed, figures.incremental], bold=True)]
    rows += [Row(line.name, [line.attributed, line.incremental]) for line in figures.lines[:MOST_POINTS]]
    said = [f"All together: attributed {figures.attributed.full}, incremental {figures.incremental.full}"]
    said += [
        f"{x.name}: attributed {x.attributed.text} ({x.attributed.range}), "
        + (f"incremental {x.incremental.text} ({x.incremental.range})" if x.incremental is not None else x.by)
        for x in figures.lines
    ]
    title = f"Attributed by {figures.model} and incremental, {name}"
    description = formats.shorten(". ".join([*said, figures.anyway_text.rstrip(".")]) + ".", _MOST)
    names = ["incremental", "attributed"]
    swapped = [Row(r.name, [r.marks[1], r.marks[0]], r.bold) for r in rows]
    return both(title, description, lambda width: ranges(swapped, names, figures.unit, width))

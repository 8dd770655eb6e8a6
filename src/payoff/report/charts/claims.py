"""A claim: from its amount to its net, what moves it most, and twenty outcomes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from payoff import formats
from payoff.report.charts.bars import Row, bars
from payoff.report.charts.sheet import Chart, Sheet, both, text_width, ticks
from payoff.report.figures import ClaimFigures


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
        Row(
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
    rows += [Row(s.name, "", s.text, s.range, s.start, s.end, "off") for s in shown]
    if len(costs) > len(shown):
        start, end = costs[5].start, costs[-1].end
        text = formats.exact(end - start, formats.Unit("money", claim.money.label))
        rows.append(Row(f"{len(costs) - 5} other costs", "", text, "each in the list below", start, end, "off"))
    rows.append(
        Row(
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
    return both(title, description, lambda width: bars(rows, width, 0.0, "zero", connect=True))


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
        Row(
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
    return both(
        title, f"The {claim.noun} now: {claim.net.text}. {description}.", lambda width: _tornado(rows, width, claim)
    )


def _tornado(rows: Sequence[Row], width: int, claim: ClaimFigures) -> Sheet:
    return bars(rows, width, claim.net.value, f"{claim.noun} {claim.net.text}", connect=False)


def dots(claim: ClaimFigures) -> Chart | None:
    """Twenty equally likely values of the net, stacked: a quantile dot plot (Kay et al. 2016)."""
    if not claim.dots:
        return None
    title = f"Twenty equally likely outcomes: {claim.title}"
    description = f"{claim.dots_text} The {claim.noun}: {claim.net.full}."
    return both(title, description, lambda width: _draw_dots(claim, width))


def _draw_dots(claim: ClaimFigures, width: int) -> Sheet:
    sheet = Sheet(width)
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
    for tick in ticks(first * span, last * span, 5):
        at = zero + tick / span * size
        label = formats.axis(tick, max(abs(low), abs(high)), formats.Unit(claim.money.kind, claim.money.label))
        reach = text_width(label, 12) / 2 + 6
        if all(at + reach < a or at - reach > b for a, b in taken[1:]) and at - reach > -6 and at + reach < width + 6:
            sheet.line(at, base + 2, at, base + 7, "zero")
            sheet.text(at, base + 21, label, "muted", 12, align="center")
            taken.append((at - reach, at + reach))
    sheet.height = base + 28
    return sheet

"""Funnels and paths: what units did, described. Nothing here is compared, so nothing is called an effect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from payoff import formats
from payoff.formats import human, isolate
from payoff.report.figures.grids import Cell, Grid, Part, across, figure
from payoff.report.figures.reading import MissingFigure, Node, Quantity, read_quantity, read_unit, sentence

ALL = "(all)"


def size_of(estimate: Node) -> int:
    """The units a figure is of: of several counts (those who did, those who could) the largest."""
    counts = estimate.node("n").data
    if not counts:
        raise MissingFigure(f"{estimate.path}.n is empty; an estimate says how many units it is from")
    return max(int(n) for n in counts.values())


def label(name: str) -> str:
    """Somebody's name for a step, a touchpoint, a class."""
    return isolate(formats.capital(human(name)))


_COUNTS = ("units reaching step", "units in cohort", "units in state", "journeys on path")


def quantity_of(estimate: Node) -> Quantity:
    """A figure with its interval. What was counted stands as it was counted; its interval alone is rounded."""
    quantity = read_quantity(estimate, read_unit(estimate))
    if quantity.low == quantity.high:
        return replace(quantity, range=f"{quantity.text} at both ends")
    if estimate.text("estimand") in _COUNTS and quantity.value.is_integer():
        span = formats.without_unit(quantity.text, quantity.range)
        return replace(quantity, text=formats.count(int(quantity.value)), range=span)
    return quantity


def others_of(estimates: Sequence[Node]) -> tuple[Part, ...]:
    """Figures that have no place of their own are still shown."""
    rows = [
        (Cell(f"{formats.capital(human(e.text('estimand')))}, {isolate(e.text('contrast'))}"), [figure(quantity_of(e))])
        for e in estimates
    ]
    return (Part("Other figures", grids=across("Each with its interval", "What", ["Figure"], rows)),) if rows else ()


def intervals_of(quantities: Sequence[Quantity | None]) -> str:
    """What the intervals of a table are."""
    names = dict.fromkeys(q.interval_name for q in quantities if q is not None)
    return ", ".join(names) or "interval"


# ---------------------------------------------------------------- funnels


@dataclass(frozen=True, slots=True)
class StepLine:
    """One step of a funnel. Without figures too few units reached it to show them."""

    name: str
    reached: Quantity | None = None
    share: Quantity | None = None
    before: Quantity | None = None
    median: Quantity | None = None
    quarter: Quantity | None = None
    three_quarters: Quantity | None = None


@dataclass(frozen=True, slots=True)
class FunnelFigures:
    """``classes``: the same steps by the classes of the breakdown. ``inside``: units that may still go further."""

    steps: tuple[StepLine, ...]
    classes: tuple[tuple[str, tuple[StepLine, ...]], ...]
    inside: str
    parts: tuple[Part, ...]

    pictures = ("funnel",)


_STEP = {
    "units reaching step": "reached",
    "share of entrants reaching step": "share",
    "share of the step before": "before",
    "lower quartile of time from the step before": "quarter",
    "median time from the step before": "median",
    "upper quartile of time from the step before": "three_quarters",
}
_INSIDE = ("inside", "still in", "not matured", "immature")


def read_funnel(result: Node) -> FunnelFigures:
    found: dict[str | None, dict[int, dict[str, Quantity]]] = {}
    names: dict[int, str] = {}
    rest = []
    for e in result.nodes("estimates"):
        key = _STEP.get(e.text("estimand"))
        if key is None:
            rest.append(e)
            continue
        position = int(e.number("position"))
        names[position] = label(e.name("step"))
        segment = isolate(e.name("segment")) if e.has("segment") else None
        found.setdefault(segment, {}).setdefault(position, {})[key] = quantity_of(e)
    if None not in found:
        raise MissingFigure(f"{result.path}.estimates hold no step of the funnel")
    by_class = {
        segment: tuple(StepLine(names[p], **steps.get(p, {})) for p in sorted(names))
        for segment, steps in found.items()
    }
    steps = by_class.pop(None)
    classes = tuple((str(segment), lines) for segment, lines in by_class.items())
    left_out = result.data.get("left_out") or {}
    waiting = {str(why): int(n) for why, n in left_out.items() if any(word in str(why).lower() for word in _INSIDE)}
    inside = ". ".join(f"{formats.capital(formats.clean(why))}: {formats.count(n)}" for why, n in waiting.items())
    return FunnelFigures(steps, classes, inside, (*_funnel_parts(steps, classes, inside), *others_of(rest)))


def _funnel_parts(
    steps: Sequence[StepLine], classes: Sequence[tuple[str, Sequence[StepLine]]], inside: str
) -> Iterator[Part]:
    hidden = "not shown: too few units"
    rows = [
        (
            Cell(s.name),
            [
                figure(s.reached, without=hidden),
                figure(s.share if k else None, without="all who entered" if not k else hidden),
                figure(s.before, without="the first step" if not k else hidden),
                figure(s.median, without="the first step" if not k else "not given"),
            ],
        )
        for k, s in enumerate(steps)
    ]
    heads = ["Units", "Of entrants", "Of the step before", "Median time"]
    timed = [
        (Cell(s.name), [figure(s.quarter), figure(s.median), figure(s.three_quarters)]) for s in steps if s.quarter
    ]
    times = across("A quarter, half and three quarters of those who went on had done so after", "Step",
                   ["A quarter", "Half", "Three quarters"], timed, "How long each step took") if timed else ()  # fmt: skip
    said = [f"{inside}. They are in no figure here, and no drop-off." if inside else ""]
    shares = [s.share for s in steps if s.share is not None]
    yield Part(
        "Step by step",
        tuple(text for text in said if text),
        (*across(f"Units reaching each step, with the {intervals_of(shares)}", "Step", heads, rows), *times),
        "funnel",
        under="The bar is the share of those who entered; the black line is its interval.",
    )
    if classes:
        names = [s.name for s in steps]
        apart = any(lines[0].share is not None and lines[0].share.low < lines[0].share.high for _, lines in classes)

        def cell(k: int, line: StepLine) -> Cell:
            if k or apart:
                return figure(line.share, line.before, without=hidden)
            return figure(line.reached, without=hidden)

        cells = [(Cell(name), [cell(k, line) for k, line in enumerate(lines)]) for name, lines in classes]
        caption = (
            "Each class at each step, as a share of all who entered; below it, of all at the step before"
            if apart
            else "Units that entered; then the share of them reaching each step, below it that of the step before"
        )
        counted = [
            (Cell(name), [figure(x.reached, x.median, without=hidden) for x in lines]) for name, lines in classes
        ]
        whose = "all" if apart else "those"
        yield Part(
            "By class",
            (),
            (
                *across(caption, "Class", names, cells),
                *across("Units that reached each step; below, the median time from the step before", "Class", names, counted,
                        "How many, and how long each step took, by class"),
            ),
            "funnel",
            1,
            f"The share of {whose} who entered that reached {names[-1]}, class by class, with its interval.",
        )  # fmt: skip


# ---------------------------------------------------------------- paths


@dataclass(frozen=True, slots=True)
class PathRow:
    rank: int
    path: str
    journeys: Quantity
    share: Quantity | None
    median: Quantity | None


@dataclass(frozen=True, slots=True)
class Edge:
    """``n`` journeys from ``source``, in column ``at``, to ``target`` in the next."""

    at: int
    source: str
    target: str
    n: int


@dataclass(frozen=True, slots=True)
class PathFigures:
    rows: tuple[PathRow, ...]
    median: Quantity | None
    edges: tuple[Edge, ...]
    journeys: int
    flow_sentence: str
    parts: tuple[Part, ...]

    pictures = ("paths", "flow")


def read_paths(result: Node) -> PathFigures:
    found: dict[str, dict[str, Quantity]] = {}
    ranks: dict[str, int] = {}
    median, whole = None, None
    rest: list[Node] = []
    keys = {"journeys on path": "journeys", "share of journeys": "share", "median time to convert": "median"}
    for e in result.nodes("estimates"):
        key = keys.get(e.text("estimand"))
        path = e.name("path") if e.has("path") else ALL
        if key == "median" and path == ALL:
            median = quantity_of(e)
        elif key == "journeys" and path == ALL:
            whole = quantity_of(e)
        elif key is None or path == ALL:
            rest.append(e)
        else:
            found.setdefault(path, {})[key] = quantity_of(e)
            ranks[path] = int(e.number("rank"))
    for path, of in found.items():
        if "journeys" not in of:
            raise MissingFigure(f"{result.path}: the path '{path}' has a share, but no count")
    rows = tuple(
        PathRow(
            ranks[path], isolate(path), found[path]["journeys"], found[path].get("share"), found[path].get("median")
        )
        for path in sorted(found, key=lambda p: ranks[p])
    )
    flow = result.node("closer").node("flow") if result.has("closer") and result.node("closer").has("flow") else None
    edges = tuple(
        Edge(int(x.number("step")), isolate(x.name("source")), isolate(x.name("target")), int(x.number("n")))
        for x in (flow.nodes("edges") if flow is not None else ())
    )
    hidden = int(flow.number("hidden")) if flow is not None else 0
    said = sentence(flow.prose("sentence")) if flow is not None else ""
    if hidden and flow is not None:
        said += f" {formats.count(hidden)} journeys are in flows of too few units to be shown."
    parts = (*_path_parts(rows, whole, median, edges, said), *others_of(rest))
    return PathFigures(rows, median, edges, int(flow.number("journeys")) if flow is not None else 0, said, parts)


def stop_name(at: int, first: int) -> str:
    """Where a stop lies. Stops are counted from the event, back where the ``first`` is below zero, else onwards."""
    if at == 0:
        return "the event"
    if first < 0:
        return "the last stop" if at == -1 else f"{-at} stops before"
    return f"stop {at}"


def _path_parts(
    rows: Sequence[PathRow], whole: Quantity | None, median: Quantity | None, edges: Sequence[Edge], said: str
) -> Iterator[Part]:
    if rows:
        timed = any(row.median is not None for row in rows)
        last = [Cell("all"), *([Cell("below")] if timed else [])]
        everyone = [(Cell("All journeys"), [figure(whole), *last])] if whole is not None else []
        heads = ["Journeys", "Share of journeys"] + (["Median time"] if timed else [])
        cells = [
            (
                Cell(row.path if row.path.startswith("(") else f"{row.rank}. {row.path}"),
                [figure(row.journeys), figure(row.share)] + ([figure(row.median)] if timed else []),
            )
            for row in rows
        ]
        yield Part(
            "The most common paths",
            (),
            across(f"Journeys on each path, with the {intervals_of([row.share or row.journeys for row in rows])}", "Path", heads, [*cells, *everyone],
                   folded=f"All {len(rows)} paths in a table" if len(rows) > 20 else ""),
            "paths",
            under="The share of journeys on each path; the black line is its interval.",
        )  # fmt: skip
    if median is not None:
        yield Part("Time to convert", grids=across(f"From the first touch to the conversion, with its {median.interval_name}",
                                                   "What", ["Time"], [(Cell("Median"), [figure(median)])]))  # fmt: skip
    if edges:
        ordered = sorted(edges, key=lambda x: (x.at, -x.n))
        stops = tuple(
            (Cell(x.source, note=stop_name(x.at, ordered[0].at)), Cell(x.target), Cell(formats.count(x.n)))
            for x in ordered
        )
        yield Part(
            "Where journeys went",
            (said,) if said else (),
            (Grid("Journeys from stop to stop: counts of what was seen", ("From", "To", "Journeys"), stops,
                  f"All {len(stops)} flows in a table" if len(stops) > 8 else ""),),
            "flow",
            under="The thicker, or longer, the more journeys. Counts, of what was seen.",
        )  # fmt: skip

"""Funnels, cohorts and paths: what units did, described. Nothing here is compared, so nothing is called an effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from payoff import formats
from payoff.formats import Unit, human, isolate
from payoff.report.figures.grids import Cell, Grid, Part, across, figure
from payoff.report.figures.reading import MissingFigure, Node, Quantity, read_quantity, read_unit, sentence

ALL = "(all)"
TOGETHER = "All cohorts"
MOST_COHORTS, MOST_PERIODS = 26, 26
"""Cohorts and periods on a page; what is older, or later, is in the JSON, and the page says so."""


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


def _named(quantities: Sequence[Quantity | None]) -> str:
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
        (*across(f"Units reaching each step, with the {_named(shares)}", "Step", heads, rows), *times),
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


# ---------------------------------------------------------------- cohorts


@dataclass(frozen=True, slots=True)
class CohortCell:
    """``state``: "shown"; "open" (its period has not closed) or "hidden" (of too few units)."""

    state: str
    quantity: Quantity | None = None
    n: int = 0


@dataclass(frozen=True, slots=True)
class CohortLine:
    name: str
    size: Quantity | None
    retention: tuple[CohortCell, ...]
    revenue: tuple[CohortCell, ...]


@dataclass(frozen=True, slots=True)
class StateBar:
    """One closed step of the calendar: units by what they were in it."""

    name: str
    states: Mapping[str, Quantity]


@dataclass(frozen=True, slots=True)
class CohortFigures:
    """``lines`` begin with all cohorts taken together, where that was given."""

    lines: tuple[CohortLine, ...]
    periods: tuple[str, ...]
    revenue_periods: tuple[str, ...]
    money: Unit
    states: tuple[StateBar, ...]
    stickiness: tuple[tuple[str, Quantity], ...]
    parts: tuple[Part, ...]

    pictures = ("retention", "revenue", "lifecycle")

    @property
    def curves(self) -> tuple[CohortLine, ...]:
        """Cohorts whose revenue can be drawn: of two periods at least."""
        return tuple(x for x in self.lines if sum(c.quantity is not None for c in x.revenue) > 1)


STATES_OF = ("new", "returning", "resurrected", "dormant")
_GRIDS = ("retention", "cumulative revenue per unit")
_COHORT = ("units in cohort", *_GRIDS, "revenue", "CAC", "payback")
_KINDS = {
    "n_day": "N-day retention: active in the period itself.",
    "unbounded": "Unbounded retention: active in the period or in any later one, so that a figure can still grow.",
    "bracket": "Bracket retention: active between two times since the start.",
}


def _ordered(periods: Mapping[str, None]) -> tuple[str, ...]:
    return tuple(sorted(periods, key=lambda p: (not p.isdigit(), int(p) if p.isdigit() else 0)))


def _row(cells: Mapping[str, tuple[Quantity, int]], periods: Sequence[str], closed: int) -> tuple[CohortCell, ...]:
    """``closed``: how many periods have closed for this cohort, judged by its own later cells and by younger cohorts."""
    return tuple(
        CohortCell("shown", *cells[p]) if p in cells else CohortCell("hidden" if k < closed else "open")
        for k, p in enumerate(periods)
    )


def read_cohort(result: Node) -> CohortFigures:
    grid: dict[str, dict[str, dict[str, tuple[Quantity, int]]]] = {}
    single: dict[str, dict[str, Quantity]] = {}
    order: dict[str, None] = {}
    states: dict[str, dict[str, Quantity]] = {}
    sticky: list[tuple[str, Quantity]] = []
    rest: list[Node] = []
    of_revenue: dict[str, str] = {}
    spans: dict[str, dict[str, str]] = {}
    kinds: dict[str, None] = {}
    money = formats.NUMBER
    for e in result.nodes("estimates"):
        estimand = e.text("estimand")
        if estimand == "units in state":
            states.setdefault(formats.moment(e.name("period")), {})[e.name("state")] = quantity_of(e)
        elif estimand == "stickiness":
            sticky.append((formats.moment(e.name("period")) if e.has("period") else e.text("contrast"), quantity_of(e)))
        elif estimand in _COHORT:
            cohort = e.name("cohort")
            order[cohort] = None
            if estimand in _GRIDS:
                span = e.name("span") if e.has("span") else ""
                spans.setdefault(estimand, {})[e.name("period")] = span
                kinds[e.text("kind", "")] = None
                cells = grid.setdefault(estimand, {}).setdefault(cohort, {})
                cells[e.name("period")] = quantity_of(e), size_of(e)
                money = read_unit(e) if estimand == "cumulative revenue per unit" else money
            else:
                single.setdefault(estimand, {})[cohort] = quantity_of(e)
                if estimand == "revenue":
                    up_to = f" up to period {e.name('period')}" if e.has("period") else ""
                    of_revenue[cohort] = f"of {formats.count(size_of(e))} units{up_to}"
        else:
            rest.append(e)
    names = [ALL] * (ALL in order) + [name for name in order if name != ALL]
    skipped = max(len(names) - (ALL in order) - MOST_COHORTS, 0)
    names = names[:1] + names[1:][-MOST_COHORTS:] if ALL in order else names[-MOST_COHORTS:]
    lines_of = {}
    periods_of = {}
    for estimand in _GRIDS:
        of = grid.get(estimand, {})
        periods = _ordered({p: None for cells in of.values() for p in cells})[:MOST_PERIODS]
        periods_of[estimand] = periods
        closed, rows = 0, {}
        for name in [*reversed([n for n in names if n != ALL]), ALL]:
            cells = of.get(name, {})
            own = max((k + 1 for k, p in enumerate(periods) if p in cells), default=0)
            closed = max(closed, own)
            rows[name] = _row(cells, periods, closed if name != ALL else own)
        lines_of[estimand] = rows
    sizes = single.get("units in cohort", {})
    lines = tuple(
        CohortLine(
            TOGETHER if name == ALL else isolate(formats.moment(name)),
            sizes.get(name),
            lines_of["retention"][name],
            lines_of["cumulative revenue per unit"][name],
        )
        for name in names
        if name in lines_of["retention"]
    )
    bars = tuple(StateBar(name, of) for name, of in states.items())
    periods, ends = periods_of["retention"], periods_of["cumulative revenue per unit"]
    skipped_text = (
        f"The {MOST_COHORTS} newest cohorts are shown; {skipped} older ones are in the JSON." if skipped else ""
    )
    parts = [
        *_grid_parts(lines, periods, ends, spans, [_KINDS[k] for k in kinds if k in _KINDS], skipped_text),
        *_money_parts(names, single, of_revenue),
        *_state_parts(bars, sticky, bool(result.data.get("left_out"))),
        *others_of(rest),
    ]
    return CohortFigures(lines, periods, ends, money, bars, tuple(sticky), tuple(parts))


def _grid_parts(
    lines: Sequence[CohortLine],
    periods: Sequence[str],
    ends: Sequence[str],
    spans: Mapping[str, Mapping[str, str]],
    kinds: Sequence[str],
    skipped: str,
) -> Iterator[Part]:
    def rows(
        chosen: Sequence[CohortLine], of: Callable[[CohortLine], Sequence[CohortCell]]
    ) -> list[tuple[Cell, Sequence[Cell]]]:
        return [
            (
                Cell(line.name, note=f"{line.size.text} units" if line.size is not None else ""),
                [
                    figure(c.quantity, note=f"of {formats.count(c.n)}" if c.n else "", without=_SAID[c.state])
                    for c in of(line)
                ],
            )
            for line in chosen
        ]

    both = (("retention", periods), ("revenue", ends))
    for what, columns in both:
        if not columns:
            continue
        kind = what == "retention"
        cells = [c for line in lines for c in (line.retention if kind else line.revenue)]
        named = _named([c.quantity for c in cells])
        hidden = any(c.state == "hidden" for c in cells)
        waiting = any(c.state == "open" for c in cells)
        notes = [skipped, *(kinds if kind else ())]
        notes += (
            ["Only units whose period has closed count; a period that has not closed yet is blank."] if waiting else []
        )
        notes += ["Hatched: too few units to be shown."] if hidden and kind else []
        said = "Share of each cohort that was active" if kind else "Cumulative revenue per unit since the start"
        of_kind = spans.get("retention" if kind else "cumulative revenue per unit", {})
        heads = [(f"Period {p}" if p.isdigit() else p) + (f", {of_kind[p]}" if of_kind.get(p) else "") for p in columns]
        of: Callable[[CohortLine], Sequence[CohortCell]] = (lambda x: x.retention) if kind else (lambda x: x.revenue)
        together = [line for line in lines if line.name == TOGETHER]
        many = len(columns) * len(lines) > 24
        grids: list[Grid] = []
        if many and together:
            pairs = list(zip(heads, of(together[0]), strict=True))
            down = [
                (Cell(head), [figure(c.quantity, without=_SAID[c.state]), Cell(formats.count(c.n) if c.n else "none")])
                for head, c in pairs
            ]
            column = "Share" if kind else "Revenue per unit"
            grids += across(
                f"All cohorts together, with the {named} and the units it is of",
                "Since the start",
                [column, "Units"],
                down,
            )
        caption = f"{said}, by period since the start, with its {named} and the units it is of"
        rest = [line for line in lines if line not in together] if grids else lines
        grids += across(caption, "Cohort", heads, rows(rest, of), "Cohort by cohort" if many else "")
        yield Part(
            "Who came back" if kind else "What they were worth",
            tuple(note for note in notes if note),
            tuple(grids),
            what,
            under="The darker, the larger the share; the intervals are in the tables."
            if kind
            else "Line and dots: revenue per unit up to the end of each period, over those whose period has closed; band: interval.",
        )
    if any(line.size is not None for line in lines):
        of_sizes = [(Cell(line.name), [figure(line.size)]) for line in lines if line.size is not None]
        yield Part(
            "How many began",
            grids=across(
                f"Units in each cohort, with the {_named([line.size for line in lines])}", "Cohort", ["Units"], of_sizes,
                folded=f"All {len(of_sizes)} cohorts in a table" if len(of_sizes) > 8 else "",
            ),
        )  # fmt: skip


_SAID = {"open": "not closed yet", "hidden": "not shown", "shown": "no figure"}


def _money_parts(
    names: Sequence[str], single: Mapping[str, Mapping[str, Quantity]], of_revenue: Mapping[str, str]
) -> Iterator[Part]:
    called = {"CAC": "Cost to win one", "payback": "Payback", "revenue": "Revenue so far"}
    heads = [key for key in called if single.get(key)]
    rows: list[tuple[Cell, Sequence[Cell]]] = []
    for name in names:
        found = [single.get(key, {}).get(name) for key in heads]
        if any(q is not None for q in found):
            rows.append(
                (
                    Cell(TOGETHER if name == ALL else isolate(formats.moment(name))),
                    [
                        figure(q, note=of_revenue.get(name, "") if key == "revenue" else "", without="not given")
                        for key, q in zip(heads, found, strict=True)
                    ],
                )
            )
    if rows:
        yield Part(
            "Cost and payback" if heads != ["revenue"] else "Revenue",
            ("Payback is when revenue per unit first covers the cost of winning one. Where a figure is not given the reason stands below.",)
            if "payback" in heads or "CAC" in heads
            else (),
            across(f"By cohort, with the {_named([c.quantity for _, cells in rows for c in cells])}", "Cohort",
                   [called[key] for key in heads], rows),
        )  # fmt: skip


def _state_parts(bars: Sequence[StateBar], sticky: Sequence[tuple[str, Quantity]], hidden: bool) -> Iterator[Part]:
    if bars:
        states = [s for s in STATES_OF if any(s in b.states for b in bars)]
        states += [s for s in dict.fromkeys(s for b in bars for s in b.states) if s not in states]
        rows = [(Cell(b.name), [figure(b.states.get(s), without="not shown") for s in states]) for b in bars]
        yield Part(
            "New, back again, gone",
            (
                "New: for the first time. Returning: in the step before as well. Resurrected: before, but not in the step before. "
                "Dormant: in the step before, not in this one."
                + (" A step in which a state has too few units to be shown may be missing." if hidden else ""),
            ),
            across("Units in each state, step by step, with their interval", "Step", [formats.capital(s) for s in states], rows,
                   folded=f"All {len(rows)} steps in a table" if len(rows) > 8 else ""),
            "lifecycle",
            under="Upwards: who was active, by what they were before; downwards: who no longer was.",
        )  # fmt: skip
    if sticky:
        pairs = [(Cell(name), [figure(q)]) for name, q in sticky]
        yield Part(
            "Stickiness",
            ("The share of a step's days on which a unit that was active in it was active.",),
            across(f"With its {_named([q for _, q in sticky])}", "Step", ["Share of days"], pairs,
                   folded=f"All {len(pairs)} steps in a table" if len(pairs) > 8 else ""),
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
            across(f"Journeys on each path, with the {_named([row.share or row.journeys for row in rows])}", "Path", heads, [*cells, *everyone],
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

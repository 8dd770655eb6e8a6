"""Cohorts: who came back, what they were worth, what they cost, and what they were from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from payoff import formats
from payoff.formats import Unit, isolate
from payoff.report.figures.grids import Cell, Grid, Part, across, figure
from payoff.report.figures.journeys import ALL, intervals_of, others_of, quantity_of, size_of
from payoff.report.figures.reading import Node, Quantity, read_unit

TOGETHER = "All cohorts"
MOST_COHORTS, MOST_PERIODS = 26, 26
"""Cohorts and periods on a page; what is older, or later, is in the JSON, and the page says so."""


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
        named = intervals_of([c.quantity for c in cells])
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
            under="The stronger the shade, the larger the share; the intervals are in the tables."
            if kind
            else "Line and dots: revenue per unit up to the end of each period, over those whose period has closed; band: interval.",
        )
    if any(line.size is not None for line in lines):
        of_sizes = [(Cell(line.name), [figure(line.size)]) for line in lines if line.size is not None]
        yield Part(
            "How many began",
            grids=across(
                f"Units in each cohort, with the {intervals_of([line.size for line in lines])}", "Cohort", ["Units"], of_sizes,
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
            across(f"By cohort, with the {intervals_of([c.quantity for _, cells in rows for c in cells])}", "Cohort",
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
            across(f"With its {intervals_of([q for _, q in sticky])}", "Step", ["Share of days"], pairs,
                   folded=f"All {len(pairs)} steps in a table" if len(pairs) > 8 else ""),
        )  # fmt: skip

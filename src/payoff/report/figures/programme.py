"""Several experiments read together: each raw and with its luck taken out, their total, and the holdout's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from payoff import formats
from payoff.formats import human, isolate
from payoff.report.figures.reading import MissingFigure, Node, Quantity, read_quantity, read_unit, short_name

RAW, SHRUNK = "difference in means", "difference in means, shrunk"
TOTALS = {
    "programme total": "Total as measured",
    "programme total, shrunk": "Total, shrunk",
    "holdout total": "Holdout",
    "holdout less programme": "Holdout less programme",
}


@dataclass(frozen=True, slots=True)
class Member:
    """One experiment of the programme: as measured, and shrunk towards the others."""

    name: str
    label: str
    contrast: str
    raw: Quantity
    shrunk: Quantity | None
    n: str


@dataclass(frozen=True, slots=True)
class Total:
    estimand: str
    label: str
    quantity: Quantity


@dataclass(frozen=True, slots=True)
class Programme:
    metric: str
    members: tuple[Member, ...]
    totals: tuple[Total, ...]
    others: tuple[Total, ...]
    level: float

    @property
    def intervals(self) -> str:
        """What the intervals of its experiments are: the shrunk ones may be of another kind than the measured ones."""
        names = dict.fromkeys(m.raw.interval_name for m in self.members)
        shrunk = dict.fromkeys(m.shrunk.interval_name for m in self.members if m.shrunk is not None)
        said = f"as measured with its {', '.join(names)}"
        return f"{said}; shrunk with its {', '.join(shrunk)}" if shrunk else said

    @property
    def leading(self) -> Total | None:
        """The total that may be believed: the shrunk one where there is one."""
        by_estimand = {total.estimand: total for total in self.totals}
        return by_estimand.get("programme total, shrunk") or by_estimand.get("programme total")

    def quantities(self) -> Iterator[Quantity]:
        for member in self.members:
            yield member.raw
            if member.shrunk is not None:
                yield member.shrunk
        yield from (total.quantity for total in (*self.totals, *self.others))


def is_programme(result: Node) -> bool:
    return result.text("method") == "programme"


def read_programme(result: Node) -> Programme:
    """Raises MissingFigure where an experiment is shrunk that was not measured, or a total has two figures."""
    estimates = result.nodes("estimates")
    if not estimates:
        raise MissingFigure(f"{result.path}.estimates is empty; a programme without a figure is a refusal")
    raw: dict[str, Node] = {}
    shrunk: dict[str, Quantity] = {}
    totals: dict[str, Total] = {}
    others: list[Total] = []
    for e in estimates:
        estimand, member = e.text("estimand"), e.text("segment", "") or e.text("contrast")
        quantity = read_quantity(e, read_unit(e), change=True)
        if estimand == RAW:
            raw[member] = e
        elif estimand == SHRUNK:
            shrunk[member] = quantity
        elif estimand in TOTALS and estimand not in totals:
            totals[estimand] = Total(estimand, TOTALS[estimand], quantity)
        else:
            others.append(
                Total(estimand, isolate(f"{formats.capital(human(estimand))}, {e.text('contrast')}"), quantity)
            )
    stray = [name for name in shrunk if name not in raw]
    if stray:
        raise MissingFigure(f"{result.path}: '{stray[0]}' is shrunk, but was not measured")
    return Programme(
        metric=isolate(formats.capital(human(estimates[0].text("metric")))),
        members=tuple(
            Member(
                name=name,
                label=isolate(formats.capital(human(short_name(name.partition(": ")[0])))),
                contrast=name.partition(": ")[2] or e.text("contrast"),
                raw=read_quantity(e, read_unit(e), change=True),
                shrunk=shrunk.get(name),
                n=formats.count(sum(int(n) for n in e.node("n").data.values())),
            )
            for name, e in raw.items()
        ),
        totals=tuple(totals[key] for key in TOTALS if key in totals),
        others=tuple(others),
        level=estimates[0].number("level"),
    )

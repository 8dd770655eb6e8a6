"""Paths: by which touchpoints units came to an event, or where they went from one, in what order and time. It credits nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from payoff import formats
from payoff.estimate import Bounds, Estimate
from payoff.result import Assumption, Check, Closer, Flow, FlowEdge, Refusal, Result
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Journey, format_duration
from payoff.stats.proportion import clustered_count, clustered_share
from payoff.warehouse.events import dated
from payoff.warehouse.paths import FLOW_STOPS, EdgeCount, PathCount, PathData, Wait
from payoff.warehouse.sources import from_us

ALL, NONE, MORE = "(all)", "(no touchpoint)", "…"
_FEW = 100
_UNSEEN = 0.1


class PathMethod:
    assumptions: ClassVar[tuple[Assumption, ...]] = (
        Assumption(
            "Touches and events are told by one clock, or by clocks that agree: a path is an order in time.", "clock"
        ),
        Assumption(
            "A unit goes by one id from touch to event; a touch under another id is on nobody's path.", "touched"
        ),
        Assumption(
            "The data reaches back as far as the windows do; a path that began before it is told from its middle.",
            "reach",
        ),
        Assumption(
            "Units go their ways independently of each other; what one unit does again and again counts as one unit's."
        ),
        Assumption("Nothing is compared: that many came by a path does not say that they came because of it."),
    )
    checks: ClassVar[tuple[str, ...]] = ("journeys", "touched", "reach", "matured", "names", "repeats", "clock")

    def answer(self, design: JourneyDesign, data: PathData, rng: np.random.Generator) -> Result | Refusal:
        declared = design.declared
        assert isinstance(declared, Journey)
        nothing = _nothing(design, declared, data)
        if nothing is not None:
            return nothing
        told = _Told(design, declared, data)
        left_out = dict(data.left_out)
        if told.rest:
            left_out["journeys on other paths, or on paths of too few units to be shown"] = told.rest
        return Result(
            name=design.name,
            question=_question(declared, data),
            method="path",
            design="descriptive",
            verdict="descriptive",
            grade="",
            finding=told.finding(),
            estimates=tuple(told.estimates),
            arms=(),
            readings=(),
            checks=_checks(design, declared, data, told.untouched),
            assumptions=self.assumptions,
            left_out=left_out,
            owner=declared.owner,
            refusals=tuple(told.refusals),
            closer=Closer(flow=told.flow()),
        )


class _Told:
    """The estimates. ``paths`` are those shown; ``rest`` counts journeys on any other."""

    def __init__(self, design: JourneyDesign, declared: Journey, data: PathData) -> None:
        self.design, self.declared, self.data = design, declared, data
        shown = [*data.paths, *([] if data.untouched is None else [data.untouched])]
        if (
            0 < data.rest_units < design.min_cell and shown
        ):  # what is not shown must be no fewer, or a difference tells it
            shown.remove(min(shown, key=lambda p: (p.units, p.n)))
        self.paths = [p for p in shown if p.codes]
        self.untouched = next((p for p in shown if not p.codes), None)
        self.rest = data.journeys - sum(p.n for p in shown)
        self.refusals: list[Refusal] = []
        whole = PathCount((), False, data.journeys, data.units, data.squares, data.squares)
        self.estimates = [self._count(whole, ALL, 0)]
        for rank, path in enumerate(self.paths, start=1):
            self.estimates += [self._count(path, self._name(path), rank), self._share(path, self._name(path), rank)]
        if self.untouched is not None:
            rank = len(self.paths) + 1
            self.estimates += [self._count(self.untouched, NONE, rank), self._share(self.untouched, NONE, rank)]
        self.wait = self._wait()
        self.estimates += [] if self.wait is None else [self.wait]

    # ---------------------------------------------------------------- figures

    def _estimate(
        self,
        estimand: str,
        path: str,
        rank: int,
        value: float,
        unit: str,
        ends: tuple[float, float],
        n: Mapping[str, int],
    ) -> Estimate:
        return Estimate(
            estimand=estimand,
            metric=self.data.event,
            contrast=path,
            value=value,
            unit=unit,
            uncertainty=Bounds(*ends, self.design.level),
            interval_kind="confidence",
            n=n,
            level=self.design.level,
            labels={"path": path, "rank": rank},
        )

    def _count(self, path: PathCount, name: str, rank: int) -> Estimate:
        ends = clustered_count(path.n, path.squares, self.design.level)
        n = {"journeys": path.n, "units": path.units}
        return self._estimate("journeys on path", name, rank, float(path.n), "journeys", ends, n)

    def _share(self, path: PathCount, name: str, rank: int) -> Estimate:
        of = self.data.journeys
        ends = clustered_share(path.n, of, path.squares, path.cross, self.data.squares, self.design.level)
        n = {"journeys": path.n, "all journeys": of, "units": path.units}
        return self._estimate("share of journeys", name, rank, path.n / of, "share", ends, n)

    def _wait(self) -> Estimate | None:
        found = self.data.wait
        name = f"{self.design.name}.median time to convert"
        if isinstance(found, str):
            self.refusals.append(Refusal(name, found, "wait for more conversions, or widen their range"))
        if not isinstance(found, Wait):
            return None
        if found.units < self.design.min_cell:
            fewer = f"fewer than {self.design.min_cell} units came by a touch, the smallest group this project shows"
            self.refusals.append(Refusal(name, fewer, "wait for more conversions, or widen their range"))
            return None
        n = {"journeys": found.n, "units": found.units}
        return self._estimate("median time to convert", ALL, 0, found.value, "s", (found.low, found.high), n)

    def _label(self, code: int) -> str:
        label = formats.clean(self.data.stops[code].label)
        return f"'{label}'" if ">" in label else label  # which is what divides stops

    def _name(self, path: PathCount) -> str:
        stops = [self._label(code) for code in path.codes]
        if path.cut:
            stops = [MORE, *stops] if self.declared.to is not None else [*stops, MORE]
        return " > ".join(stops)

    # ---------------------------------------------------------------- flow

    def flow(self) -> Flow | None:
        """Steps between stops. Where ``to``, stop -1 is the last before the event; else stop 1 the first after it; the event is 0."""
        by_stop: dict[int, list[EdgeCount]] = {}
        for edge in self.data.edges:
            by_stop.setdefault(edge.stop, []).append(edge)
        edges: list[FlowEdge] = []
        hidden, before = 0, self.data.journeys
        for stop, rows in sorted(by_stop.items()):
            came = sum(e.n for e in rows)
            # journeys that go no further are a cell too, told by a difference to the stop before and to all
            ended, before = {max(before - came, 0), max(self.data.journeys - came, 0)}, came
            ranked = sorted(rows, key=lambda e: (-e.units, -e.n, e.source or 0, e.target or 0))
            kept = [e for e in ranked if e.units >= self.design.min_cell]
            lost = ranked[len(kept) :]
            while kept and any(0 < n + sum(e.units for e in lost) < self.design.min_cell for n in ended):
                lost.append(kept.pop())
            hidden = max(hidden, sum(e.n for e in lost))
            edges += [self._edge(stop, e) for e in sorted(kept, key=lambda e: -e.n)]
        if not edges:
            return None
        to, event = self.declared.to is not None, formats.clean(self.data.event)
        counted = f"counted back from {event}" if to else f"counted from {event} on"
        first = f"{'last' if to else 'first'} {min(FLOW_STOPS, self.declared.longest)}"
        return Flow(
            tuple(edges),
            self.data.journeys,
            hidden,
            f"The {first} stops of {self.data.journeys:,} journeys, {counted}.",
        )

    def _edge(self, stop: int, edge: EdgeCount) -> FlowEdge:
        beside = NONE if edge.empty else formats.clean(self.data.event)
        if self.declared.to is not None:
            source = NONE if edge.source is None else self._label(edge.source)
            target = formats.clean(self.data.event) if edge.target is None else self._label(edge.target)
            return FlowEdge(-stop, source, target, edge.n)
        source = formats.clean(self.data.event) if edge.source is None else self._label(edge.source)
        target = beside if edge.target is None else self._label(edge.target)
        return FlowEdge(stop - 1, source, target, edge.n)

    # ---------------------------------------------------------------- words

    def finding(self) -> str:
        to, event, n = self.declared.to is not None, formats.clean(self.data.event), self.data.journeys
        span, share = format_duration(self.declared.window), formats.unit("share")
        within = f"in the {span} {'before' if to else 'after'}"
        shares = {e.contrast: e for e in self.estimates if e.estimand == "share of journeys"}

        def written(e: Estimate, what: formats.Unit) -> str:
            text = formats.written(e.value, e.low, e.high, what)
            return f"{text.value} ({text.range})"

        said = f"Of {n:,} {'journeys to' if to else 'journeys from'} {event}, "
        if self.paths:
            top = self._name(self.paths[0])
            way = "came by" if to else "went by"
            first = formats.written(shares[top].value, shares[top].low, shares[top].high, share)
            ends = f"{formats.level(self.design.level)} interval {first.range}"
            said += f"{first.value} ({ends}) {way} {top}, the most common path {within}"
        else:
            said += f"no path {within} is of enough units to be shown"
        if NONE in shares:
            said += f"; {written(shares[NONE], share)} met no touchpoint"
        if self.wait is not None:
            said += f". The median time from the first touch is {written(self.wait, formats.unit('s'))}"
        return f"{said}."


def _question(declared: Journey, data: PathData) -> str:
    event = formats.clean(data.event)
    if declared.to is not None:
        return f"By which touchpoints do units come to {event}, in what order and time?"
    return f"Where do units go from {event}, in what order?"


def _nothing(design: JourneyDesign, declared: Journey, data: PathData) -> Refusal | None:
    event = formats.clean(data.event)
    lost = "; ".join(f"{n:,} {reason}" for reason, n in data.left_out.items())
    lost = f" ({lost})" if lost else ""
    if not data.journeys and data.unripe:
        return Refusal(
            design.name,
            f"the window of {format_duration(declared.window)} is not over for any of the {data.unripe:,} rows of {event}: none has"
            f" had its time by {formats.moment(from_us(data.as_of_us))}",
            "wait, shorten window, or, where the data is complete up to a later time than its last row, say so on the source:"
            " through: TIME",
        )
    if not data.journeys:
        return Refusal(
            design.name,
            f"no row of {event} with a unit and a time lies in the range, so no path leads {'to' if declared.to else 'from'} it{lost}",
            "look at its source and where, and at starts and ends, which bound it",
        )
    if data.units < design.min_cell:
        return Refusal(
            design.name,
            f"fewer than {design.min_cell} units have a row of {event}, the smallest group this project shows",
            "wait for more units (defaults.min_cell protects people in small groups)",
        )
    if not any(stop.rows for stop in data.stops):
        return Refusal(
            design.name,
            f"no touchpoint has a row, so nothing is on a path{lost}",
            f"look at the source and where of {', '.join(declared.touchpoints)}",
        )
    return None


# ---------------------------------------------------------------- checks


def _checks(design: JourneyDesign, declared: Journey, data: PathData, untouched: PathCount | None) -> tuple[Check, ...]:
    return (
        Check(
            "journeys",
            "pass" if data.units >= _FEW else "warn",
            float(data.units),
            f"{data.journeys:,} journeys of {data.units:,} units"
            + ("" if data.units >= _FEW else ": so few that a share is known only roughly; read the intervals"),
        ),
        _touched(design, declared, data, untouched),
        _reach(declared, data),
        _matured(declared, data),
        _names(data),
        _repeats(data),
        _clock(data),
    )


def _touched(design: JourneyDesign, declared: Journey, data: PathData, untouched: PathCount | None) -> Check:
    span = f"in the {format_duration(declared.window)} {'before' if declared.to is not None else 'after'}"
    if untouched is None:
        few = "too few to be shown, if any," if design.min_cell > 1 else "no journey"
        return Check("touched", "pass", None, f"{few} met no touchpoint {span}")
    share = untouched.n / data.journeys
    said = f"{untouched.n:,} of {data.journeys:,} journeys met no touchpoint {span}"
    if share <= 0.5:
        return Check("touched", "pass", share, said)
    return Check(
        "touched",
        "warn",
        share,
        f"{said}: most of them. Are touches and events told by one id, and is the window long enough?",
    )


def _reach(declared: Journey, data: PathData) -> Check:
    if declared.to is None:
        return Check("reach", "not-run", None, "paths from an event begin with it, so none begins before the data")
    share = data.unseen / data.journeys
    said = f"{data.unseen:,} of {data.journeys:,} windows reach back before the first touch that the data holds"
    if share <= _UNSEEN:
        return Check("reach", "pass", share, said)
    return Check("reach", "warn", share, f"{said}: what was met before it is on no path; let starts be a window later")


def _matured(declared: Journey, data: PathData) -> Check:
    if declared.to is not None:
        return Check("matured", "not-run", None, "paths to an event end with it, so all have had their time")
    share = data.unripe / (data.unripe + data.journeys)
    said = f"{data.unripe:,} rows of {data.event} whose window is not over are left out"
    return Check("matured", "warn" if share > 0.5 else "pass", share, said + (": most of them" if share > 0.5 else ""))


def _names(data: PathData) -> Check:
    empty = [formats.clean(s.label) for s in data.stops if not s.rows]
    unnamed = [f"{s.rows:,} rows of {formats.clean(s.touchpoint)}" for s in data.stops if s.unnamed and s.rows]
    said = [f"no row is {', '.join(empty)}"] if empty else []
    said += [f"without a value, taken as one touchpoint: {', '.join(unnamed)}"] if unnamed else []
    if not said:
        return Check("names", "pass", 0.0, f"all {len(data.stops)} touchpoints have rows and names")
    return Check("names", "warn", float(len(empty) + len(unnamed)), "; ".join(said))


def _repeats(data: PathData) -> Check:
    looked = {name: p.repeated for name, p in data.sources.items() if p.repeated is not None}
    if not looked:
        return Check(
            "repeats", "not-run", None, "no source here names its rows (id: COLUMN), so a row sent twice is met twice"
        )
    twice = {name: n for name, n in looked.items() if n}
    said = "; ".join(f"{n:,} rows of {name} repeat an id and enter once" for name, n in twice.items())
    return Check("repeats", "warn" if twice else "pass", float(sum(twice.values())), said or "no id is there twice")


def _clock(data: PathData) -> Check:
    wrong = {
        name: (p.without_time, p.before_1970, p.ahead)
        for name, p in data.sources.items()
        if p.without_time or p.before_1970 or p.ahead
    }
    days = dated(data.sources)
    if not wrong and not days:
        return Check("clock", "pass", 0.0, "every row has a time between 1970 and now")
    said = "; ".join(
        f"of {name} {none:,} rows without a time, {old:,} before 1970, {ahead:,} in the future"
        for name, (none, old, ahead) in wrong.items()
    )
    parts = [*([f"{said}: they are on no path"] if wrong else []), *([days] if days else [])]
    return Check("clock", "warn", float(sum(map(sum, wrong.values()))), "; ".join(parts))

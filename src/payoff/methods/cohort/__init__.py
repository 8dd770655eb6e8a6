"""Cohorts described: who came back, what a unit is worth so far, what it cost to win. Nothing is compared, so nothing is concluded.

A cell is one cohort in one period, over the units whose period is closed. Cells of fewer units than ``min_cell`` are left out, and
so is what would give them away by difference: the pooled row takes in hidden cells only where together they are enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar

import numpy as np

from payoff import formats
from payoff.estimate import Bounds, Estimate, Normal, Uncertainty
from payoff.methods.cohort.checks import Checks
from payoff.result import Assumption, Refusal, Result
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Cohort, format_duration
from payoff.stats import cohort as stats
from payoff.stats.proportion import poisson_count, wilson
from payoff.warehouse.cohorts import DAY_US, CohortCounts, CohortsData
from payoff.warehouse.sources import from_us

ALL = "(all)"
MOST_CELLS = 20_000
"""Cells beyond which nobody reads a grid, and a file of them helps nobody."""
_KINDS = {"n_day": "N-day", "unbounded": "unbounded", "bracket": "bracket"}


class CohortMethod:
    assumptions: ClassVar[tuple[Assumption, ...]] = (
        Assumption(
            "A unit belongs to the cohort of its first row of start in the range; what it did before the range is not looked at.",
            "first",
        ),
        Assumption(
            "The data is complete up to the time it is read as of: periods that end by then are closed, later ones are not shown.",
            "matured",
        ),
        Assumption(
            "The units of a cell are taken as a sample of units like them: intervals say how far such a figure scatters by chance.",
            "size",
        ),
        Assumption(
            "A figure at period k is over the units whose period k is closed. Later periods are over fewer, older units, so a"
            " curve may bend where the units change and not what they do.",
            "composition",
        ),
        Assumption("Calendar steps and days are those of the project's time zone.", "zone"),
    )
    checks: ClassVar[tuple[str, ...]] = (
        "matured",
        "size",
        "composition",
        "first",
        "before_start",
        "clock",
        "zone",
        "history",
        "spend",
    )

    def answer(self, design: JourneyDesign, data: CohortsData, rng: np.random.Generator) -> Result | Refusal:
        declared = design.declared
        assert isinstance(declared, Cohort)
        entity = design.entity
        if not data.cohorts:
            lost = "; ".join(f"{n:,} {reason}" for reason, n in data.left_out.items())
            return Refusal(
                design.name,
                f"no {entity} has a row of {declared.start.source} in the range, so there is no cohort{lost and f' ({lost})'}",
                "widen starts and ends, or mend start",
            )
        cells = len(data.cohorts) * (len(data.edges_us) - 1)
        if cells > MOST_CELLS:
            return Refusal(
                design.name,
                f"{len(data.cohorts):,} cohorts by {len(data.edges_us) - 1} periods are {cells:,} cells, more than {MOST_CELLS:,}",
                "take a longer step (every: month), fewer periods, or a shorter range",
            )
        sheet = _Sheet(design, declared, data)
        if not sheet.shown:
            return Refusal(
                design.name,
                f"every one of the {len(data.cohorts)} cohorts has fewer than {design.min_cell} {entity}s",
                "take a longer step (every: month), or a wider range",
            )
        sheet.sizes()
        if declared.activity is not None:
            sheet.retention()
        if declared.revenue is not None:
            sheet.revenue()
        if declared.cost is not None:
            sheet.cost()
        sheet.lifecycle()
        sheet.stickiness()
        left_out = dict(data.left_out)
        left_out |= {f"rows of {s} before their unit's start": n for s, n in data.before_start.items()}
        if sheet.hidden:
            left_out[f"cells of fewer than {design.min_cell} units"] = sheet.hidden
        return Result(
            name=design.name,
            question=_question(declared, entity),
            method="cohort",
            design="descriptive",
            verdict="descriptive",
            grade="",
            finding=sheet.finding(),
            estimates=tuple(sheet.estimates),
            arms=(),
            readings=(),
            checks=tuple(Checks(design, declared, data, sheet.shown, sheet.pooled, sheet.curves).all()),
            assumptions=(*self.assumptions, *_more_assumptions(declared)),
            left_out=left_out,
            owner=declared.owner,
            refusals=tuple(sheet.refusals),
        )


def _question(declared: Cohort, entity: str) -> str:
    by = (
        declared.by
        if declared.by is not None
        else f"the {declared.every} of their first row of {declared.start.source}"
    )
    began = f"{entity}s by {by}"
    asks = []
    if declared.activity is not None:
        asks.append(f"who came back ({_KINDS[declared.retention.kind]} retention)")
    if declared.revenue is not None:
        asks.append("what was one worth by then")
    if declared.cost is not None:
        asks.append("what did one cost to win")
    return f"Of {began}: {', '.join(asks)}?"


def _more_assumptions(declared: Cohort) -> tuple[Assumption, ...]:
    said = []
    if declared.retention.kind == "unbounded" and declared.activity is not None:
        said.append(
            Assumption(
                "Unbounded: active in period k or any later one up to now. A unit counts once its period k is closed; its later periods"
                " are still open, so an unbounded figure can only grow, and that of older cohorts has had longer to."
            )
        )
    if declared.lifecycle is not None:
        said.append(
            Assumption(
                "New is first ever recorded; the first recorded step is left out, because all of its units would seem new. Dormant is"
                " newly so: active in the step before, not in this one.",
                "history",
            )
        )
    if declared.cost is not None:
        said.append(
            Assumption(
                "All spending of a cohort's step won all of its units and no others; payback holds the cost as it was against the"
                " band of revenue, at the ends of periods; when within a period it came is not known.",
                "spend",
            )
        )
    return tuple(said)


@dataclass(slots=True)
class _Sheet:
    """The figures of one cohort noun as they are written: estimates, refusals, and how many cells are hidden."""

    design: JourneyDesign
    declared: Cohort
    data: CohortsData
    estimates: list[Estimate] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    hidden: int = 0
    shown: list[CohortCounts] = field(default_factory=list)
    pooled: CohortCounts = field(init=False)
    curves: dict[str, list[tuple[float, float, float] | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = self.design.min_cell
        self.shown = [c for c in self.data.cohorts if c.units >= least]
        self.pooled = self._pool()
        self.hidden = len(self.data.cohorts) - len(self.shown)
        self.hidden += sum(0 < n < least for c in self.shown for n in c.eligible)

    def _pool(self) -> CohortCounts:
        """All cohorts together, cell by cell. Hidden cells come in only where together they are ``min_cell`` units: else the
        pooled figure less the shown ones would give them away."""
        least, cohorts = self.design.min_cell, self.data.cohorts

        def members(sizes: Sequence[int]) -> list[CohortCounts]:
            small = [n for n in sizes if n < least]
            return [c for c, n in zip(cohorts, sizes, strict=True) if n >= least or sum(small) >= least]

        at = [members([c.eligible[k] for c in cohorts]) for k in range(len(self.data.edges_us) - 1)]
        some = cohorts[0]
        return CohortCounts(
            name=ALL,
            units=sum(c.units for c in members([c.units for c in cohorts])),
            eligible=tuple(sum(c.eligible[k] for c in of) for k, of in enumerate(at)),
            active=tuple(sum(c.active[k] for c in of) for k, of in enumerate(at)) if some.active else (),
            total=tuple(sum(c.total[k] for c in of) for k, of in enumerate(at)) if some.total else (),
            squares=tuple(sum(c.squares[k] for c in of) for k, of in enumerate(at)) if some.squares else (),
            cost=self.data.cost,
        )

    @property
    def rows(self) -> list[CohortCounts]:
        return [*self.shown, self.pooled]

    @property
    def money(self) -> str:
        """The unit of revenue: money, or the rows that are counted where they have no value."""
        assert self.declared.revenue is not None
        return self.design.currency if self.declared.revenue.value is not None else self.declared.revenue.event.source

    def _add(
        self,
        estimand: str,
        metric: str,
        contrast: str,
        value: float,
        unit: str,
        spread: Uncertainty,
        n: Mapping[str, int],
        labels: Mapping[str, str | int],
    ) -> None:
        self.estimates.append(
            Estimate(
                estimand=estimand,
                metric=metric,
                contrast=contrast,
                value=value,
                unit=unit,
                uncertainty=spread,
                interval_kind="confidence",
                n=n,
                level=self.design.level,
                labels=labels,
            )
        )

    def _bounds(self, low: float, high: float) -> Bounds:
        return Bounds(low, high, self.design.level)

    def _open(self, row: CohortCounts, k: int) -> bool:
        """Is the period closed for some units, and for enough of them to be shown?"""
        return row.eligible[k] >= max(self.design.min_cell, 1)

    def span(self, k: int) -> str:
        low, high = (timedelta(microseconds=us) for us in self.data.edges_us[k : k + 2])
        return f"{format_duration(low) if low else '0'} to {format_duration(high)}"

    # ---------------------------------------------------------------- figures

    def sizes(self) -> None:
        for row in self.rows:
            self._add(
                "units in cohort",
                self.declared.start.source,
                f"{row.name}: units",
                float(row.units),
                "units",
                self._bounds(*poisson_count(row.units, self.design.level)),
                {row.name: row.units},
                {"cohort": row.name},
            )

    def retention(self) -> None:
        assert self.declared.activity is not None
        kind = self.declared.retention.kind
        for row in self.rows:
            for k in range(len(row.eligible)):
                if not self._open(row, k):
                    continue
                n, came = row.eligible[k], row.active[k]
                labels: dict[str, str | int] = {"cohort": row.name, "period": k, "kind": kind, "span": self.span(k)}
                self._add(
                    "retention",
                    self.declared.activity.source,
                    f"{row.name}, period {k}, {_KINDS[kind]} retention",
                    came / n,
                    "share",
                    self._bounds(*wilson(came, n, self.design.level)),
                    {row.name: n},
                    labels,
                )
        if not any(e.estimand == "retention" for e in self.estimates):
            self.refusals.append(self._nothing_closed("retention"))

    def _nothing_closed(self, what: str) -> Refusal:
        as_of = "no time" if self.data.as_of_us is None else formats.moment(from_us(self.data.as_of_us))
        return Refusal(
            f"{self.design.name}.{what}",
            f"no cohort has enough units whose first period ({self.span(0)} after the start) is over as of {as_of}",
            "wait until it is, or take shorter periods",
        )

    def revenue(self) -> None:
        assert self.declared.revenue is not None
        source, level = self.declared.revenue.event.source, self.design.level
        for row in self.rows:
            curve: list[tuple[float, float, float] | None] = []
            alike: list[int] = []
            means: dict[int, stats.Mean] = {}
            for k in range(len(row.eligible)):
                if not self._open(row, k):
                    curve.append(None)
                    continue
                n = row.eligible[k]
                mean = stats.mean_of(n, row.total[k], row.squares[k])
                if mean is None:
                    alike.append(k)
                    curve.append(None)
                    continue
                curve.append((mean.value, *mean.interval(level)))
                means[k] = mean
                self._add(
                    "cumulative revenue per unit",
                    source,
                    f"{row.name}, up to period {k}",
                    mean.value,
                    f"{self.money}/{self.design.entity}",
                    Normal(mean.se, mean.df),
                    {row.name: n},
                    {"cohort": row.name, "period": k, "span": f"0 to {self.span(k).split(' to ')[1]}"},
                )
            self.curves[row.name] = curve
            # a total of the few who have closed a late period would look like a loss
            most = max((mean.n for mean in means.values()), default=0)
            if most:
                k = max(k for k, mean in means.items() if mean.n == most)
                self._add(
                    "revenue",
                    source,
                    f"{row.name}, {formats.count(most)} units, up to period {k}",
                    means[k].value * most,
                    self.money,
                    Normal(means[k].se * most, means[k].df),
                    {row.name: most},
                    {"cohort": row.name, "period": k},
                )
            if alike:
                self.refusals.append(
                    Refusal(
                        f"{self.design.name}.revenue.{row.name}",
                        f"cumulative revenue of cohort {row.name} has no spread among units up to period"
                        f" {', '.join(map(str, alike))} (all alike, or one unit alone), so no interval can be given",
                        "wait for more units or later periods, or take a longer step (every: month)",
                    )
                )
        if not any(self._open(self.pooled, k) for k in range(len(self.pooled.eligible))):
            self.refusals.append(self._nothing_closed("revenue"))

    def cost(self) -> None:
        assert self.declared.cost is not None
        for row in self.rows:
            why = self._no_cac(row)
            if why is not None:
                self.refusals.append(Refusal(f"{self.design.name}.CAC.{row.name}", *why))
                continue
            cost = row.cost
            units = self.data.cost_units if row.name == ALL else row.units
            assert cost is not None
            value, low, high = stats.cost_per_unit(cost, units, self.design.level)
            self._add(
                "CAC",
                self.declared.cost.source,
                f"{row.name}, cost per unit won",
                value,
                f"{self.design.currency}/{self.design.entity}",
                self._bounds(low, high),
                {row.name: units},
                {"cohort": row.name},
            )
            if self.declared.revenue is not None:
                self._payback(row, value)

    def _no_cac(self, row: CohortCounts) -> tuple[str, str] | None:
        """Why there is no cost per unit, and what would give one."""
        assert self.declared.cost is not None
        source, step = self.declared.cost.source, self.declared.every
        if row.name != ALL and self.declared.by is not None:
            return (
                f"spending is not known by {self.declared.by}, so none of it can be told to be that of {row.name}",
                f"read {ALL}, which holds all spending against all units, or make cohorts by the calendar",
            )
        if row.name == ALL:
            if row.cost is None or self.data.cost_units < max(self.design.min_cell, 1):
                return (
                    f"{source} records no spending in the closed {step}s of the range, or they have too few units",
                    f"mend the source, or wait until a {step} is over",
                )
            if self.pooled.units < sum(c.units for c in self.data.cohorts):
                return (
                    f"the cohorts of fewer than {self.design.min_cell} units could be told from it by difference",
                    "take a longer step (every: month), so that no cohort is that small",
                )
        elif row.ends_us is not None and (self.data.as_of_us is None or row.ends_us > self.data.as_of_us):
            return f"the {step} of {row.name} is not over: units and spending are still to come", "wait until it is"
        if row.cost is None:
            return (
                f"{source} records no spending in the {step} of {row.name}",
                "mend the source; what was won without spending has no CAC",
            )
        if row.cost <= 0:
            return (
                f"spending in the {step} of {row.name} adds up to {row.cost:g}",
                "mend the source: a cost is above zero",
            )
        return None

    def _payback(self, row: CohortCounts, cac: float) -> None:
        curve, name = self.curves.get(row.name, []), f"{self.design.name}.payback.{row.name}"
        unit = formats.unit(self.design.currency)
        known = [(k, band) for k, band in enumerate(curve) if band is not None]
        if not known:
            self.refusals.append(
                Refusal(
                    name, f"no period of cohort {row.name} has revenue with a band yet", "wait for periods to close"
                )
            )
            return
        found = stats.payback(curve, cac)
        k, band = known[-1]
        so_far = formats.written(*band, unit)
        wait = "wait for later periods, or raise periods"
        if found.period is None:
            self.refusals.append(
                Refusal(
                    name,
                    f"not paid back: by the end of period {k} a unit of {row.name} had brought {so_far.value} ({so_far.range}),"
                    f" less than the {formats.rounded(cac, unit)} it cost",
                    wait,
                )
            )
            return
        days = [
            self.data.edges_us[p + 1] / DAY_US for p in (found.period, found.earliest, found.latest) if p is not None
        ]
        if found.latest is None:
            self.refusals.append(
                Refusal(
                    name,
                    f"as measured, {row.name} is paid back after {days[0]:g} days, but by the end of period {k} the low end of its"
                    f" revenue ({so_far.range}) is still under the {formats.rounded(cac, unit)} a unit cost: how late it may"
                    " be cannot be said",
                    wait,
                )
            )
            return
        value, latest = days[0], days[-1]
        # at the end of the last period told before the earliest one it was not back yet; when since is not told
        assert found.earliest is not None
        below = [p for p, _ in known if p < found.earliest]
        earliest = self.data.edges_us[below[-1] + 1] / DAY_US if below else 0.0
        assert self.declared.revenue is not None
        self._add(
            "payback",
            self.declared.revenue.event.source,
            f"{row.name}, until revenue per unit reaches CAC",
            value,
            "days",
            self._bounds(earliest, latest),
            {row.name: row.eligible[found.period]},
            {"cohort": row.name, "period": found.period},
        )

    def lifecycle(self) -> None:
        if self.declared.lifecycle is None:
            return
        assert self.declared.activity is not None
        shown = 0
        for step in self.data.lifecycle:
            if step.first:
                continue
            states = {
                "new": step.new,
                "returning": step.returning,
                "resurrected": step.active - step.new - step.returning,
                "dormant": step.lapsed,
            }
            # one state less could be had from the others of this step and the next: the whole step goes
            if any(0 < n < self.design.min_cell for n in states.values()):
                self.hidden += len(states)
                continue
            for state, n in states.items():
                if n < self.design.min_cell:
                    continue
                shown += 1
                self._add(
                    "units in state",
                    self.declared.activity.source,
                    f"{step.step}, {state}",
                    float(n),
                    "units",
                    self._bounds(*poisson_count(n, self.design.level)),
                    {state: n},
                    {"period": step.step, "state": state},
                )
        if not shown:
            self.refusals.append(
                Refusal(
                    f"{self.design.name}.lifecycle",
                    f"no {self.declared.lifecycle} after the first recorded one is over, inside the range, and of enough units",
                    "widen the range, or take a shorter step",
                )
            )

    def stickiness(self) -> None:
        if self.declared.stickiness is None:
            return
        assert self.declared.activity is not None
        shown = 0
        for step in self.data.stickiness:
            if step.partly:
                continue
            if step.units < self.design.min_cell:
                self.hidden += 1
                continue
            shown += 1
            value, low, high = stats.share_of_days(step.units, step.total, step.squares, step.days, self.design.level)
            self._add(
                "stickiness",
                self.declared.activity.source,
                f"{step.step}, share of the {self.declared.stickiness}'s days active",
                value,
                "share",
                self._bounds(low, high),
                {step.step: step.units},
                {"period": step.step},
            )
        if not shown:
            self.refusals.append(
                Refusal(
                    f"{self.design.name}.stickiness",
                    f"no {self.declared.stickiness} is over, inside the range, and of enough units",
                    "widen the range, or wait until one is over",
                )
            )

    # ---------------------------------------------------------------- words

    def finding(self) -> str:
        """The pooled row at the latest period that at least half of the units have closed."""
        entity, row, level = self.design.entity, self.pooled, formats.level(self.design.level)
        began = f"{formats.count(row.units)} {entity}s began in {formats.count(len(self.data.cohorts))} cohort{'' if len(self.data.cohorts) == 1 else 's'}"
        said = []
        retention = {
            e.labels["period"]: e for e in self.estimates if e.estimand == "retention" and e.labels["cohort"] == ALL
        }
        worth = {
            e.labels["period"]: e
            for e in self.estimates
            if e.estimand == "cumulative revenue per unit" and e.labels["cohort"] == ALL
        }
        for figures, text in ((retention, self._came_back), (worth, self._brought)):
            at = [k for k in figures if isinstance(k, int)]
            half = [k for k in at if row.eligible[k] * 2 >= row.units]
            if at:
                estimate = figures[max(half or at)]
                # "one had brought" says of a unit already
                unit = formats.unit(estimate.unit.removesuffix(f"/{entity}"))
                written = formats.written(estimate.value, estimate.low, estimate.high, unit)
                said.append(text(estimate, written, level))
        if not said:
            return f"{began}; none of their periods is over and of enough units yet."
        paid = [e for e in self.estimates if e.estimand == "payback" and e.labels["cohort"] == ALL]
        if paid:
            e = paid[0]
            said.append(f"what one cost to win was back within {e.value:g} days ({e.low:g} to {e.high:g})")
        return f"{began}; {'; '.join(said)}."

    def _came_back(self, e: Estimate, written: formats.Written, level: str) -> str:
        k = int(e.labels["period"])
        later = " or later" if self.declared.retention.kind == "unbounded" else ""
        n = formats.count(e.n[ALL])
        return (
            f"of the {n} whose period {k} ({self.span(k)} after the start) is over, {written.value} ({level} interval"
            f" {written.range}) were active in it{later}"
        )

    def _brought(self, e: Estimate, written: formats.Written, level: str) -> str:
        end = self.span(int(e.labels["period"])).split(" to ")[1]
        return f"within {end} of the start one had brought {written.value} ({level} interval {written.range})"

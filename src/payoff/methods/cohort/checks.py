"""What of a cohort's figures a reader should know before using them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from payoff import formats
from payoff.result import Check
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Cohort
from payoff.warehouse.cohorts import CohortCounts, CohortsData
from payoff.warehouse.sources import from_us

_FEW = 30
"""Units below which a share or a mean is mostly luck, and Student's t leans on values that are nearly normal."""


@dataclass(frozen=True, slots=True)
class Checks:
    """``shown`` are the cohorts that are not hidden, ``pooled`` all together, ``curves`` cumulative revenue per unit by cohort."""

    design: JourneyDesign
    declared: Cohort
    data: CohortsData
    shown: Sequence[CohortCounts]
    pooled: CohortCounts
    curves: Mapping[str, Sequence[tuple[float, float, float] | None]]

    def all(self) -> list[Check]:
        return [
            self._matured(),
            self._size(),
            self._composition(),
            self._first(),
            self._before_start(),
            self._clock(),
            self._zone(),
            *([self._history()] if self.declared.lifecycle is not None else []),
            *([self._spend()] if self.declared.cost is not None else []),
        ]

    def _matured(self) -> Check:
        cohorts = self.data.cohorts
        partly = sum(0 < n < c.units for c in cohorts for n in c.eligible)
        whole = sum(c.eligible[-1] == c.units for c in cohorts)
        as_of = "" if self.data.as_of_us is None else f" as of {formats.moment(from_us(self.data.as_of_us))}"
        said = f"{whole} of {len(cohorts)} cohorts have closed every period{as_of}"
        if not any(c.eligible[0] for c in cohorts):
            return Check(
                "matured", "fail", 0.0, f"no period of any unit is over{as_of}: nothing can be said of who came back"
            )
        if partly:
            said += f"; {partly} cells are over a part of their cohort: the units whose period is over"
        behind = self._behind()
        if behind:
            said += f"; {', '.join(behind)}: later periods have no row of it, and count as if nothing happened. Load it, or say through: TIME"
        units = sum(c.units for c in cohorts)
        first = sum(c.eligible[0] for c in cohorts)
        if first * 2 < units:
            said += f"; period 0 is over for {first:,} of {units:,} units alone"
        return Check("matured", "warn" if behind or first * 2 < units else "pass", float(partly), said)

    def _behind(self) -> list[str]:
        """Sources of what units do whose rows end more than a period before what is read does."""
        as_of, period = self.data.as_of_us, self.data.edges_us[1] - self.data.edges_us[0]
        wanted = (self.declared.activity, None if self.declared.revenue is None else self.declared.revenue.event)
        names = {event.source for event in wanted if event is not None}
        ends = {p.source: p.through_us for p in self.data.sources.values() if p.source in names}
        if as_of is None:
            return []
        return [
            f"{name} ends at {formats.moment(from_us(us))}"
            for name, us in ends.items()
            if us is not None and us < as_of - period
        ]

    def _size(self) -> Check:
        small = [c for c in self.shown if c.units < _FEW]
        if not small:
            return Check("size", "pass", 0.0, f"every cohort shown has at least {_FEW} units")
        return Check(
            "size",
            "warn",
            float(len(small)),
            f"{len(small)} of {len(self.shown)} cohorts have fewer than {_FEW} units: their figures are mostly luck, and the bands of"
            " their revenue too narrow where it is skewed",
        )

    def _composition(self) -> Check:
        falls = [
            name
            for name, curve in self.curves.items()
            if any(a is not None and b is not None and b[0] < a[0] for a, b in pairwise(curve))
        ]
        counts = [n for n in self.pooled.eligible if n]
        if falls:
            return Check(
                "composition",
                "warn",
                float(len(falls)),
                f"cumulative revenue per unit falls with time in {_listed(falls)}: fewer units have closed the later period, and they are"
                " others, or money was paid back",
            )
        if len(set(counts)) > 1:
            return Check(
                "composition",
                "warn" if min(counts) * 2 < max(counts) else "pass",
                min(counts) / max(counts),
                f"the pooled row rests on {formats.count(max(counts))} units in its first period and {formats.count(min(counts))} in its"
                " last: compare cohorts with each other, not its ends",
            )
        return Check("composition", "pass", 1.0, "the pooled row is over the same units in every period")

    def _first(self) -> Check:
        n, source = self.data.earlier_units, self.declared.start.source
        if self.design.starts_us is None:
            return Check(
                "first", "pass", 0.0, f"all rows of {source} are read, so each unit's first is the first recorded"
            )
        if not n:
            return Check("first", "pass", 0.0, f"no unit has a row of {source} before the range")
        return Check(
            "first",
            "warn",
            float(n),
            f"{formats.count(n)} units have a row of {source} before the range too: they are here by their first inside it, and are not new",
        )

    def _before_start(self) -> Check:
        found = self.data.before_start
        if not found:
            return Check("before_start", "pass", 0.0, "no row lies before its unit's start")
        said = ", ".join(f"{formats.count(n)} of {source}" for source, n in found.items())
        return Check(
            "before_start",
            "warn",
            float(sum(found.values())),
            f"rows before their unit's start, which count nowhere: {said}",
        )

    def _clock(self) -> Check:
        wrong = {
            f"{formats.count(n)} rows of {p.source} {what}": n
            for p in self.data.sources.values()
            for what, n in (
                ("without a time", p.without_time),
                ("before 1970", p.before_1970),
                ("in the future", p.ahead),
            )
            if n
        }
        if not wrong:
            return Check("clock", "pass", 0.0, "every row has a time between 1970 and now")
        return Check("clock", "warn", float(sum(wrong.values())), f"left out: {'; '.join(wrong)}")

    def _zone(self) -> Check:
        zone, changes = self.design.zone, self.data.clock_changes
        said = f"steps begin at midnight in {zone}" + (
            f", whose clocks change {'once' if changes == 1 else f'{changes} times'} in the data" if changes else ""
        )
        if self.data.dates_only:
            return Check(
                "zone",
                "warn",
                float(len(self.data.dates_only)),
                f"{said}; {_listed(self.data.dates_only)} record dates alone, which count as midnight: periods begin there, not at the"
                " moment itself",
            )
        return Check("zone", "pass", float(changes), said)

    def _history(self) -> Check:
        steps = self.data.lifecycle
        first = next((s.step for s in steps if s.first), None)
        if first is None:
            return Check("history", "pass", None, "activity is recorded before the first step shown")
        return Check(
            "history",
            "warn",
            None,
            f"nothing is recorded before {first}, which is left out; in the steps after it some of the new may have been there before",
        )

    def _spend(self) -> Check:
        assert self.declared.cost is not None
        without = [c.name for c in self.shown if c.cost is None and self.declared.by is None]
        negative = [c.name for c in self.shown if c.cost is not None and c.cost <= 0]
        if without or negative:
            said = [f"no spending recorded in {_listed(without)}"] if without else []
            said += [f"spending not above zero in {_listed(negative)}"] if negative else []
            return Check("spend", "warn", float(len(without) + len(negative)), "; ".join(said))
        return Check("spend", "pass", 0.0, f"{self.declared.cost.source} records spending for what is shown")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

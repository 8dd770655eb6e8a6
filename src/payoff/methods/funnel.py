"""A funnel: how many units go from step to step, in what time, and where most are lost. It describes; it credits nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from payoff import formats
from payoff.estimate import Bounds, Estimate
from payoff.result import Assumption, Check, Refusal, Result
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Funnel, format_duration
from payoff.stats.proportion import order_statistic_ranks, poisson_count, wilson
from payoff.warehouse.events import dated
from payoff.warehouse.funnels import FunnelData, Reached
from payoff.warehouse.sources import from_us

_FEW = 100
_BOTH = 20
"""Units with both steps from which the order of two clocks is judged."""
_TIMES = {
    0.25: "lower quartile of time from the step before",
    0.5: "median time from the step before",
    0.75: "upper quartile of time from the step before",
}


class FunnelMethod:
    assumptions: ClassVar[tuple[Assumption, ...]] = (
        Assumption("The steps are told by one clock, or by clocks that agree.", "order"),
        Assumption("A unit goes by one id in all steps: who changes it on the way counts as lost, and as nobody new."),
        Assumption(
            "Everyone counted has had the same time: entries whose window had not passed are left out. Where the funnel has no"
            " window nothing is left out, and who entered late has had less time.",
            "matured",
        ),
        Assumption(
            "Units come to a step independently of each other; the intervals say how far such counts vary by chance."
        ),
        Assumption(
            "Nothing is compared: a loss between two steps, or a difference between classes, says where units are, not why."
        ),
    )
    checks: ClassVar[tuple[str, ...]] = ("entries", "matured", "steps", "repeats", "clock", "order")

    def answer(self, design: JourneyDesign, data: FunnelData, rng: np.random.Generator) -> Result | Refusal:
        declared = design.declared
        assert isinstance(declared, Funnel)
        total = [r.units for r in data.reached if r.segment is None]
        entered, who = total[0], _plural(design.entity)
        if entered == 0 or entered < design.min_cell:
            return _nobody(design, declared, data, entered, who)
        told = _Told(design, declared, data)
        left_out = dict(data.left_out)
        if data.inside and data.inside >= design.min_cell:
            left_out[f"{who} still inside their window"] = data.inside
        if told.hidden:
            left_out[f"figures of fewer than {design.min_cell} {who}, or that give such a figure away"] = told.hidden
        if data.folded:
            left_out['classes taken together as "(other)"'] = data.folded
        return Result(
            name=design.name,
            question=f"How many {who} go from {_quoted(data.labels[0])} to {_quoted(data.labels[-1])}, and where are most lost?",
            method="funnel",
            design="descriptive",
            verdict="descriptive",
            grade="",
            finding=_finding(design, declared, data, total, told.total, who),
            estimates=told.estimates,
            arms=(),
            readings=(),
            checks=_checks(design, data, entered, who),
            assumptions=self.assumptions,
            left_out=left_out,
            owner=declared.owner,
            refusals=told.refusals,
        )


# ---------------------------------------------------------------- estimates


class _Told:
    """The estimates of all steps and classes, less those of too few units. ``hidden`` counts the cells left out."""

    def __init__(self, design: JourneyDesign, declared: Funnel, data: FunnelData) -> None:
        self._design, self._data = design, data
        self._each = declared.by is not None and declared.by.step == "each"
        cells: dict[str | None, list[Reached]] = {}
        for r in data.reached:
            cells.setdefault(r.segment, []).append(r)
        self._all = [r.units for r in cells[None]]
        shown = {segment: _shown([r.units for r in rows], design.min_cell) for segment, rows in cells.items()}
        self.total = shown[None]
        if design.min_cell:
            _hide_what_gives_away(cells, shown, design.min_cell)
        self.hidden = sum(len(rows) - len(shown[segment]) for segment, rows in cells.items())
        estimates: list[Estimate] = []
        refusals: list[Refusal] = []
        for segment, rows in cells.items():
            for row in rows:
                if row.position in shown[segment]:
                    estimates += self._step(row, rows, shown[segment])
                    refusals += self._untimed(row) if segment is None else []
        self.estimates, self.refusals = tuple(estimates), tuple(refusals)

    def _step(self, row: Reached, rows: Sequence[Reached], shown: set[int]) -> list[Estimate]:
        level, position = self._design.level, row.position
        # a class of each step's own value is a share of everyone there: classes differ from step to step
        apart = self._each and row.segment is not None
        entered = self._all[0] if apart else rows[0].units
        before = 0 if position == 1 else (self._all if apart else [r.units for r in rows])[position - 2]
        out = [
            self._estimate(
                row, "units reaching step", row.units, "units", poisson_count(row.units, level), {"units": row.units}
            )
        ]
        if 1 in (self.total if apart else shown) and entered:
            sure = position == 1 and not apart  # who entered has entered
            ends = (1.0, 1.0) if sure else wilson(row.units, entered, level)
            n = {"reached": row.units, "entrants": entered}
            out.append(self._estimate(row, "share of entrants reaching step", row.units / entered, "share", ends, n))
        if before and position - 1 in (self.total if apart else shown):
            n = {"reached": row.units, "step before": before}
            ends = wilson(row.units, before, level)
            out.append(self._estimate(row, "share of the step before", row.units / before, "share", ends, n))
        out += [
            self._estimate(row, _TIMES[t.q], t.value, "s", (t.low, t.high), {"units": row.units}) for t in row.times
        ]
        return out

    def _estimate(
        self, row: Reached, estimand: str, value: float, unit: str, ends: tuple[float, float], n: Mapping[str, int]
    ) -> Estimate:
        label = self._data.labels[row.position - 1]
        return Estimate(
            estimand=estimand,
            metric=label,
            contrast=f"step {row.position}: {label}" + ("" if row.segment is None else f", {row.segment}"),
            value=float(value),
            unit=unit,
            uncertainty=Bounds(*ends, self._design.level),
            interval_kind="confidence",
            n=n,
            level=self._design.level,
            segment=row.segment,
            labels={"step": label, "position": row.position},
        )

    def _untimed(self, row: Reached) -> list[Refusal]:
        """Why a step that units reached has no median time."""
        happens = len(self._data.labels) - self._data.kept
        if not 1 < row.position <= happens or not row.units or any(t.q == 0.5 for t in row.times):
            return []
        enough = next(n for n in range(1, 200) if order_statistic_ranks(n, 0.5, self._design.level) is not None)
        label = self._data.labels[row.position - 1]
        return [
            Refusal(
                f"{self._design.name}.{label}",
                f"{row.units:,} reached {_quoted(label)}, too few for the interval of a median time",
                f"it takes {enough} for the {formats.level(self._design.level)} interval: wait, or widen the range of entries",
            )
        ]


def _shown(units: Sequence[int], least: int) -> set[int]:
    """Positions whose figure is shown: of no fewer units than ``least``, nor so near the last one shown that the difference is of fewer."""
    out: set[int] = set()
    last: int | None = None
    for position, n in enumerate(units, 1):
        if n >= least and not (last is not None and 0 < last - n < least):
            out.add(position)
            last = n
    return out


def _hide_what_gives_away(
    cells: Mapping[str | None, Sequence[Reached]], shown: Mapping[str | None, set[int]], least: int
) -> None:
    """Where the total of a step is shown, what is hidden of its classes must together be no fewer than ``least``."""
    for position in shown[None]:
        classes = {s: rows[position - 1].units for s, rows in cells.items() if s is not None}
        while True:
            hidden = sum(n for s, n in classes.items() if position not in shown[s])
            visible = sorted((n, s) for s, n in classes.items() if position in shown[s])
            if not 0 < hidden < least or not visible:
                break
            shown[visible[0][1]].discard(position)


# ---------------------------------------------------------------- words


def _plural(entity: str) -> str:
    word = formats.human(entity)
    if word.endswith(("s", "x", "ch", "sh")):
        return f"{word}es"
    return f"{word[:-1]}ies" if word.endswith("y") and word[-2:-1] not in "aeiou" else f"{word}s"


def _quoted(label: str) -> str:
    return f"'{formats.clean(label)}'"


def _range(design: JourneyDesign) -> str:
    low, high = design.starts_us, design.ends_us
    said = f" from {formats.moment(from_us(low))}" if low is not None else ""
    return said + (f" before {formats.moment(from_us(high))}" if high is not None else "")


def _nobody(design: JourneyDesign, declared: Funnel, data: FunnelData, entered: int, who: str) -> Refusal:
    first = data.labels[0] if declared.order != "unordered" else "its steps"
    if entered:
        return Refusal(
            design.name,
            f"fewer than {design.min_cell} {who} entered, the smallest group this project shows",
            f"wait for more {who} (defaults.min_cell protects people in small groups)",
        )
    if data.inside:
        span = format_duration(declared.within) if declared.within is not None else "the steps' own"
        until = "" if data.as_of_us is None else f" (the data goes to {formats.moment(from_us(data.as_of_us))})"
        few = data.inside < design.min_cell
        return Refusal(
            design.name,
            f"{'all' if few else f'all {data.inside:,}'} {who} that entered{_range(design)} are still inside their window of"
            f" {span}{until}: nobody can yet be said to have dropped off",
            "wait until the window of the first of them has passed, shorten within, or, where the data is complete up to a later"
            " time than its last row, say so on the source: through: TIME",
        )
    lost = "; ".join(f"{n:,} {reason}" for reason, n in data.left_out.items())
    return Refusal(
        design.name,
        f"nobody entered: no row of {_quoted(first)} that has a unit and a time lies{_range(design) or ' in the data'}"
        + (f" ({lost})" if lost else ""),
        "look at the first step's source and where, and at starts and ends, which bound entry",
    )


def _finding(
    design: JourneyDesign, declared: Funnel, data: FunnelData, total: Sequence[int], shown: set[int], who: str
) -> str:
    share, last = formats.unit("share"), len(total)
    within = f" within {format_duration(declared.within)}" if declared.within is not None else ""
    last_step = declared.steps[-1]
    waited = last_step.within if last_step.without is not None else None
    to_last = "" if waited is not None else within
    said = f"Of {total[0]:,} {who} who entered{_range(design)}, "
    if last in shown:
        low, high = wilson(total[-1], total[0], design.level)
        text = formats.written(total[-1] / total[0], low, high, share)
        ends = f"{formats.level(design.level)} interval {text.range}"
        said += f"{text.value} ({ends}) reached {_quoted(data.labels[-1])}{to_last}"
    else:
        said += f"too few to be shown reached {_quoted(data.labels[-1])}{to_last}"
    if waited is not None and last_step.without is not None:
        none = f"no row of {last_step.without.source} in the {format_duration(waited)} after"
        said += f" ({_quoted(data.labels[-2])}{within}, and {none})"
    pairs = [(total[p - 2] - total[p - 1], -p) for p in range(2, last + 1) if {p - 1, p} <= shown]
    if last > 2 and pairs and max(pairs)[0] > 0:
        lost, p = max(pairs)[0], -max(pairs)[1]
        low, high = wilson(lost, total[p - 2], design.level)
        text = formats.written(lost / total[p - 2], low, high, share)
        said += (
            f"; the largest loss is between {_quoted(data.labels[p - 2])} and {_quoted(data.labels[p - 1])}: {lost:,}, or"
            f" {text.value} ({text.range}) of those at the former"
        )
    if data.inside and data.inside >= design.min_cell:
        said += f". {data.inside:,} more are still inside their window and are not counted"
    return f"{said}."


# ---------------------------------------------------------------- checks


def _checks(design: JourneyDesign, data: FunnelData, entered: int, who: str) -> tuple[Check, ...]:
    return (
        Check(
            "entries",
            "pass" if entered >= _FEW else "warn",
            float(entered),
            f"{entered:,} {who} entered"
            + ("" if entered >= _FEW else ": so few that a share is known only roughly; read the intervals"),
        ),
        _matured(design, data, entered, who),
        _steps(data, who),
        _repeats(data),
        _clock(data),
        _order(data, who),
    )


def _matured(design: JourneyDesign, data: FunnelData, entered: int, who: str) -> Check:
    as_of = "" if data.as_of_us is None else f" at {formats.moment(from_us(data.as_of_us))}"
    if data.window_us is None and not data.kept:
        return Check(
            "matured",
            "not-run",
            None,
            f"no window bounds all of the steps: {who} who entered shortly before the end of the data{as_of} have had less time",
        )
    share = data.inside / (data.inside + entered)
    if data.window_us is None:
        said = "rows of the steps count up to when what they are without can be told"
    else:
        said = "entries whose window had passed are counted"
    if not data.inside:
        return Check("matured", "pass", 0.0, f"{said}: those of all {entered:,} {who}")
    count = f"{data.inside:,}" if data.inside >= design.min_cell else f"fewer than {design.min_cell}"
    return Check(
        "matured",
        "warn" if share > 0.5 else "pass",
        share if data.inside >= design.min_cell else None,
        f"{said}; {count} {who} whose only entries are still inside{as_of} are left out"
        + (": most of those who entered" if share > 0.5 else ""),
    )


def _behind(data: FunnelData) -> list[str]:
    """Sources whose rows end more than a window before what the others go up to."""
    if data.as_of_us is None or data.window_us is None:
        return []
    ends = {name: p.through_us for name, p in data.sources.items() if p.through_us is not None}
    as_of, window = data.as_of_us, data.window_us
    return [f"{name} ends at {formats.moment(from_us(us))}" for name, us in ends.items() if us < as_of - window]


def _steps(data: FunnelData, who: str) -> Check:
    behind = _behind(data)
    empty = [data.labels[p.position - 1] for p in data.precedence if p.rows == 0]
    if not data.precedence:
        return Check("steps", "not-run", None, "no step but the first is told by rows that come after")
    if empty:
        return Check(
            "steps",
            "warn",
            float(len(empty)),
            f"no row in the time of the funnel is {', '.join(map(_quoted, empty))}: look at its source and where",
        )
    if behind and data.as_of_us is not None:
        return Check(
            "steps",
            "warn",
            float(len(behind)),
            f"{', '.join(behind)}, and the data goes to {formats.moment(from_us(data.as_of_us))}: whose time has passed since has no row of it,"
            " and counts as lost there (of what is without such rows, as kept). Load it, or say up to when it is complete: through: TIME",
        )
    nobody = {r.position for r in data.reached if r.segment is None and r.units == 0}
    apart = [p for p in data.precedence if p.units == 0 and p.position in nobody]  # both: the first may be of a sample
    if apart:
        pairs = ", ".join(
            f"{_quoted(data.labels[p.position - 2])} and {_quoted(data.labels[p.position - 1])}" for p in apart
        )
        return Check(
            "steps",
            "warn",
            float(len(apart)),
            f"of {who} that were looked at, none has rows of both {pairs}: do their sources name units alike?",
        )
    return Check("steps", "pass", 0.0, f"every step has rows of some {who}")


def _repeats(data: FunnelData) -> Check:
    if not data.repeated:
        return Check("repeats", "not-run", None, "no source of the steps names its rows (id: COLUMN)")
    twice = {source: n for source, n in data.repeated.items() if n}
    if not twice:
        return Check("repeats", "pass", 0.0, f"no id repeats in {', '.join(data.repeated)}")
    listed = ", ".join(f"{n:,} in {source}" for source, n in twice.items())
    return Check(
        "repeats", "warn", float(sum(twice.values())), f"rows repeat an id ({listed}); the first row of each id counts"
    )


def _clock(data: FunnelData) -> Check:
    wrong = {
        f"{p.source} {what}": n
        for p in data.sources.values()
        for what, n in (
            ("without a time", p.without_time),
            ("dated before 1970", p.before_1970),
            ("dated in the future", p.ahead),
        )
        if n
    }
    said = [f"{n:,} rows of {what} are left out" for what, n in wrong.items()]
    if data.days:
        said.append(
            f"{', '.join(data.days)} tells days, and of two steps that read one source the later comes strictly later: what happens"
            " on one day is not told apart and does not count; give it a time with hours"
        )
    mixed = 0 < len(data.dates) < len(data.sources)
    if mixed:
        said.append(dated(data.sources))
    elif data.dates and not data.days:
        said.append(f"{', '.join(data.dates)} tells days: steps of one day count as in order")
    if wrong or data.days or mixed:
        return Check("clock", "warn", float(sum(wrong.values())), "; ".join(said))
    return Check("clock", "pass", 0.0, "; ".join(["every row has a time between 1970 and now", *said]))


def _order(data: FunnelData, who: str) -> Check:
    judged = [p for p in data.precedence if p.units >= _BOTH]
    if not judged:
        return Check(
            "order", "not-run", None, f"fewer than {_BOTH} {who} have rows of two steps that follow each other"
        )
    worst = max(judged, key=lambda p: p.earlier / p.units)
    share = worst.earlier / worst.units
    before, step = _quoted(data.labels[worst.position - 2]), _quoted(data.labels[worst.position - 1])
    text = formats.written(share, *wilson(worst.earlier, worst.units), formats.unit("share")).value
    if share > 0.5:
        return Check(
            "order",
            "warn",
            share,
            f"of {who} with rows of both, {text} have their first {step} before their first {before}: the steps may be in the"
            " wrong order, or a clock or a time zone wrong",
        )
    return Check("order", "pass", share, f"at most {text} of {who} have a later step first ({step} before {before})")

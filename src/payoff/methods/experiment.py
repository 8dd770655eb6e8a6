"""Randomised comparisons at a fixed horizon: experiments and holdouts, two or more arms against control.

The method says what it needs (moments by arm), and answers from those alone. All figures come from `stats.compare`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar

import numpy as np

from payoff import formats
from payoff.estimate import Bounds, Estimate, Normal
from payoff.result import Arm, Assumption, Check, MetricReading, Refusal, Result, Verdict
from payoff.spec import nouns
from payoff.stats import compare
from payoff.stats.compare import Level
from payoff.stats.moments import Moments
from payoff.warehouse.needs import Anchor, ArmsData, ArmsNeed, Cap, Measure, MetricMoments, MetricNeed
from payoff.warehouse.sources import from_us, to_us

SRM_ALARM = 0.001
"""Below this p the arms' sizes are not what was planned (Fabijan et al. 2019, "Diagnosing sample ratio mismatch")."""

_DAY_US = 86_400_000_000
_UNREAD_OPENS = re.compile(r"(^|_)opens?(_|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MetricUse:
    """A metric as this experiment reads it: its part here, its own role, its window, its direction and unit."""

    name: str
    metric: nouns.Metric
    part: str
    window: timedelta | None

    @property
    def role(self) -> str:
        """The label shown: vanity and north star keep theirs wherever they are read."""
        return self.metric.role if self.metric.role in ("vanity", "north_star") else self.part

    @property
    def sign(self) -> int:
        return 1 if self.metric.direction == "up" else -1


@dataclass(frozen=True, slots=True)
class ExperimentDesign:
    """An experiment with every default resolved. ``crosses`` are pairs of metrics that some claim prices together."""

    name: str
    experiment: nouns.Experiment
    source: str
    entity: str
    metrics: tuple[MetricUse, ...]
    zone: str = "UTC"
    currency: str = "USD"
    alpha: float = 0.05
    min_cell: int = 0
    timed: bool = True
    crosses: tuple[tuple[str, str], ...] = ()
    default_window: timedelta | None = None
    now_us: int | None = None

    @property
    def level(self) -> float:
        return 1.0 - self.alpha


@dataclass(slots=True)
class _Reading:
    """One metric's figures while the answer is put together."""

    use: MetricUse
    unit: str
    levels: dict[str, Level] = field(default_factory=dict)
    differences: dict[str, compare.Difference] = field(default_factory=dict)


class ExperimentMethod:
    assumptions: ClassVar[tuple[Assumption, ...]] = (
        Assumption("Units were assigned to arms at random, in the planned shares.", "srm"),
        Assumption("Each unit kept to one arm; those seen in several are left out and counted.", "several_arms"),
        Assumption("One unit's arm does not change another unit's outcome (no spill-over between arms)."),
        Assumption("Exposures and outcomes were recorded alike in every arm.", "missing_ids"),
        Assumption(
            "The read-out was planned for one moment; looking earlier makes chance findings more likely.",
            "planned_stop",
        ),
        Assumption("There are enough units for means to be close to normal.", "few_units"),
    )
    checks: ClassVar[tuple[str, ...]] = (
        "srm",
        "several_arms",
        "missing_ids",
        "missing_times",
        "missing_arms",
        "unknown_arms",
        "open_windows",
        "planned_stop",
        "planned_size",
        "values_missing",
        "few_units",
        "repeated_ids",
        "out_of_range",
        "clock",
        "trusted_primary",
    )

    # ---------------------------------------------------------------- needs

    def needs(self, design: ExperimentDesign) -> ArmsNeed:
        assignment, experiment = design.experiment.assignment, design.experiment
        return ArmsNeed(
            experiment=design.name,
            source=design.source,
            entity=design.entity,
            variant=assignment.variant,
            where=assignment.where if assignment.source is not None else None,
            starts_us=None if experiment.starts is None else to_us(experiment.starts, design.zone),
            ends_us=None if experiment.ends is None else to_us(experiment.ends, design.zone),
            arms=tuple(assignment.split or ()),
            metrics=tuple(_need(use, design.default_window) for use in design.metrics),
            crosses=design.crosses,
        )

    # ---------------------------------------------------------------- answer

    def answer(self, design: ExperimentDesign, data: ArmsData, rng: np.random.Generator) -> Result | Refusal:
        name = f"experiments.{design.name}"
        control = design.experiment.assignment.control_arm
        refusal = self._refuse_whole(name, design, data, control)
        if refusal is not None:
            return refusal
        treatments = sorted(arm for arm in data.exposed if arm != control)
        readings: list[_Reading] = []
        refusals: list[Refusal] = []
        for use in design.metrics:
            found = self._read(design, data, use, control, treatments)
            if isinstance(found, Refusal):
                refusals.append(found)
            else:
                readings.append(found)
        if not readings:
            reasons = "; ".join(f"{r.name.rsplit('.', 1)[1]}: {r.reason}" for r in refusals)
            return Refusal(name, f"no metric can be read: {reasons}", refusals[0].remedy)
        estimates, arms, no_lift = self._figures(design, data, readings, control, treatments)
        checks = self._check(design, data, readings, control, treatments)
        read = tuple(self._judge(design, r, arm, control) for r in readings for arm in treatments)
        failed = [c for c in checks if c.status == "fail"]
        verdict = _verdict(read, failed)
        target = design.experiment.target
        if verdict == "positive" and target is not None:
            headline = {(r.metric, r.contrast) for r in _headline(read) if r.state == "improved"}
            reached = [
                _improvement(r, arm, design.level)[0] > target
                for r in readings
                for arm in treatments
                if (r.use.name, f"{arm} vs {control}") in headline
            ]
            verdict = "above target" if any(reached) else verdict
        left_out = {
            "units seen in several arms": data.several_arms,
            "units of an arm that is not declared": sum(data.unknown_arms.values()),
            f"rows without an id ({data.unit_column})": data.rows_without_id,
            "rows without a time": data.rows_without_time,
            "rows without an arm": data.rows_without_arm,
        }
        for r in readings:
            numbers = data.metrics[r.use.name]
            left_out[f"units whose window is still open ({r.use.name})"] = sum(numbers.ineligible.values())
            left_out[f"units without a value ({r.use.name})"] = sum(numbers.without.values())
            left_out[f"rows with an impossible value ({r.use.name})"] = numbers.invalid
        assumptions = [*self.assumptions, *_windows(design, readings), *no_lift]
        return Result(
            name=name,
            question=design.experiment.hypothesis or _question(design, readings, control),
            method="experiment",
            design="randomised",
            verdict=verdict,
            grade="A" if not failed else "C",
            finding=_finding(read, failed),
            estimates=tuple(estimates),
            arms=tuple(arms),
            readings=read,
            checks=tuple(checks),
            assumptions=tuple(assumptions),
            left_out={reason: n for reason, n in left_out.items() if n},
            refusals=tuple(refusals),
            correlations=_correlations(design, data, readings, control, treatments),
        )

    def _refuse_whole(self, name: str, design: ExperimentDesign, data: ArmsData, control: str) -> Refusal | None:
        found = ", ".join(f"'{arm}' ({n:,})" for arm, n in sorted(data.exposed.items())) or "none"
        source = design.source
        if data.rows == 0:
            return Refusal(
                name, f"source '{source}' has no row for this experiment", "check the source, where, starts and ends"
            )
        if not data.exposed:
            return Refusal(
                name,
                f"none of the {data.rows:,} rows of '{source}' gives a unit with one arm and a time",
                f"look at the NULLs with: payoff doctor ({data.rows_without_id:,} rows have no id, {data.rows_without_time:,} no"
                f" time, {data.rows_without_arm:,} no arm; {data.several_arms:,} units were in several arms)",
            )
        if control not in data.exposed:
            return Refusal(
                name,
                f"the control arm '{control}' has no units; arms in '{source}': {found}",
                "set assignment.control to one of the arms found, spelt as it is in the data",
            )
        if len(data.exposed) == 1:
            return Refusal(
                name,
                f"there is one arm only ('{control}'), and nothing to compare it with",
                "wait for exposures in the other arm, or check assignment.variant and where",
            )
        empty = sorted(set(design.experiment.assignment.split or ()) - set(data.exposed))
        if empty:
            return Refusal(
                name,
                f"the declared arm '{empty[0]}' has no units; arms in '{source}': {found}",
                "check the arm's spelling in assignment.split, or wait for its first exposures",
            )
        small = sorted(arm for arm, n in data.exposed.items() if n < design.min_cell)
        if small:
            return Refusal(
                name,
                f"arm '{small[0]}' has fewer than {design.min_cell} units, the smallest group this project shows",
                "wait for more units (defaults.min_cell protects people in small groups)",
            )
        return None

    def _read(
        self, design: ExperimentDesign, data: ArmsData, use: MetricUse, control: str, treatments: list[str]
    ) -> _Reading | Refusal:
        name = f"experiments.{design.name}.{use.name}"
        numbers = data.metrics[use.name]
        ratio, scale = _is_ratio(use.metric), 100.0 if use.metric.kind == "nps" else 1.0
        out = _Reading(use, _unit(use.metric, design.currency))
        for position, cap in enumerate(numbers.caps):
            if cap is not None and cap <= 0:
                part = ("numerator", "denominator")[position] if ratio else "values"
                return Refusal(
                    name,
                    f"the cap's percentile of the pooled {part} is {cap:g}, which would cap every unit to it",
                    "cap at a percentile of the units that have any: cap: {percentile: 99, of: nonzero}",
                )
        for arm in [control, *treatments]:
            m = numbers.moments.get(arm)
            if numbers.eligible.get(arm, 0) == 0:
                as_of = "" if data.as_of_us is None else f" (the data goes to {from_us(data.as_of_us)})"
                return Refusal(
                    name,
                    f"the window of {_span(use)} is not yet over for any unit of arm '{arm}'{as_of}",
                    "wait until the first windows have closed, or declare a shorter window; if the data is complete to a"
                    " later time than its last row, say so on the source: through: TIME",
                )
            assert m is not None
            if m.n == 0:
                return Refusal(
                    name,
                    f"no unit of arm '{arm}' has a value",
                    f"check {_from(use.metric)} and its where; units without a row are left out of this kind of metric",
                )
            if m.n < design.min_cell:
                return Refusal(
                    name,
                    f"arm '{arm}' has fewer than {design.min_cell} units with a value, the smallest group this project shows",
                    "wait for more units",
                )
            try:
                out.levels[arm] = compare.ratio_level(m, scale) if ratio else compare.mean_level(m, scale)
            except ValueError as error:
                return Refusal(name, f"arm '{arm}': {error}", _remedy(m))
        for arm in treatments:
            out.differences[arm] = compare.difference(out.levels[arm], out.levels[control])
        return out

    def _figures(
        self, design: ExperimentDesign, data: ArmsData, readings: list[_Reading], control: str, treatments: list[str]
    ) -> tuple[list[Estimate], list[Arm], list[Assumption]]:
        estimates: list[Estimate] = []
        arms: list[Arm] = []
        no_lift: list[Assumption] = []
        for r in readings:
            for arm in [control, *treatments]:
                level = r.levels[arm]
                low, high = level.interval(design.level)
                arms.append(Arm(arm, r.use.name, level.n, level.value, low, high, r.unit))
            for arm in treatments:
                gap = r.differences[arm]
                common = {
                    "metric": r.use.name,
                    "contrast": f"{arm} vs {control}",
                    "n": {arm: r.levels[arm].n, control: r.levels[control].n},
                    "level": design.level,
                }
                estimates.append(
                    Estimate(
                        estimand="difference in means",
                        value=gap.value,
                        unit=r.unit,
                        uncertainty=Normal(gap.se, gap.df),
                        interval_kind="confidence",
                        **common,  # type: ignore[arg-type]
                    )
                )
                lift = compare.relative_lift(r.levels[arm], r.levels[control], design.level)
                if isinstance(lift, compare.NoRelativeLift):
                    no_lift.append(Assumption(f"No relative lift of {r.use.name} ({arm}): {lift.reason}."))
                    continue
                estimates.append(
                    Estimate(
                        estimand="relative lift",
                        value=lift.value,
                        unit="relative",
                        uncertainty=Normal(lift.se_log, lift.df, "log1p")
                        if isinstance(lift, compare.LogDelta)
                        else Bounds(lift.low, lift.high, lift.level, lift.p_value),
                        interval_kind="confidence",
                        **common,  # type: ignore[arg-type]
                    )
                )
        return estimates, arms, no_lift

    # ---------------------------------------------------------------- checks

    def _check(
        self, design: ExperimentDesign, data: ArmsData, readings: list[_Reading], control: str, treatments: list[str]
    ) -> list[Check]:
        return [
            _srm(design, data),
            *_row_checks(design, data),
            *_plan_checks(design, data, readings, control, treatments),
            *_value_checks(design, data, readings, control, treatments),
            *_trust_checks(readings),
        ]

    def _judge(self, design: ExperimentDesign, r: _Reading, arm: str, control: str) -> MetricReading:
        """What the interval shows, never what the point suggests."""
        use = r.use
        better, best = _improvement(r, arm, design.level)
        margin = use.metric.margin
        if use.part == "guardrail":
            if margin is not None:
                state = "safe" if better > -margin else "breached" if best < -margin else "at risk"
            else:
                state = "breached" if best < 0 else "safe" if better > 0 else "not conclusive"
        else:
            state = "improved" if better > 0 else "harmed" if best < 0 else "not conclusive"
        return MetricReading(
            metric=use.name,
            contrast=f"{arm} vs {control}",
            role=use.role,
            direction=use.metric.direction,
            state=state,
            sentence=_sentence(design, r, arm, control, state),
            margin=margin,
            caveat=_caveat(use),
        )


def _improvement(r: _Reading, arm: str, level: float) -> tuple[float, float]:
    """The interval of the difference, turned so that up is better."""
    low, high = r.differences[arm].interval(level)
    return (low, high) if r.use.sign > 0 else (-high, -low)


# ---------------------------------------------------------------- what is needed


def _us(span: timedelta | None) -> int | None:
    return None if span is None else round(span.total_seconds() * 1_000_000)


def _cap(cap: float | nouns.Percentile | None) -> Cap | None:
    if cap is None:
        return None
    if isinstance(cap, nouns.Percentile):
        return Cap(percentile=cap.percentile, nonzero=cap.of == "nonzero")
    return Cap(value=cap)


def _both(a: str | None, b: str) -> str:
    return b if a is None else f"({a}) AND ({b})"


def _need(use: MetricUse, default_window: timedelta | None) -> MetricNeed:
    invalid = None
    if isinstance(use.metric, nouns.NpsMetric):
        impossible = _both(use.metric.where, f"NOT (({use.metric.column}) BETWEEN 0 AND 10)")
        invalid = Measure(use.metric.from_, "count", None, impossible, _us(use.window))
    return MetricNeed(use.name, tuple(_measures(use.metric, use.window, default_window)), invalid)


def _measures(metric: nouns.Metric, window: timedelta | None, default_window: timedelta | None) -> Iterator[Measure]:
    """One measure a unit, or numerator and denominator."""
    span = _us(window)
    if isinstance(metric, nouns.CountMetric):
        yield Measure(metric.from_, "count", None, metric.where, span, cap=_cap(metric.cap))
    elif isinstance(metric, nouns.SumMetric):
        yield Measure(metric.from_, "sum", metric.column, metric.where, span, cap=_cap(metric.cap))
    elif isinstance(metric, nouns.MeanMetric):
        yield Measure(metric.from_, "mean", metric.column, metric.where, span, cap=_cap(metric.cap))
    elif isinstance(metric, nouns.RateMetric):
        yield Measure(metric.from_, "count", None, metric.where, span)
        yield Measure(metric.from_, "count", None, f"({metric.where}) IS NOT NULL", span)
    elif isinstance(metric, nouns.NpsMetric):
        answered = _both(metric.where, f"({metric.column}) BETWEEN 0 AND 10")
        score = f"CASE WHEN ({metric.column}) >= 9 THEN 1 WHEN ({metric.column}) <= 6 THEN -1 ELSE 0 END"
        yield Measure(metric.from_, "sum", score, answered, span)
        yield Measure(metric.from_, "count", None, answered, span)
    elif isinstance(metric, nouns.CsatMetric):
        yield Measure(metric.from_, "count", None, _both(metric.where, f"({metric.column}) >= {metric.top:g}"), span)
        yield Measure(metric.from_, "count", None, _both(metric.where, f"({metric.column}) IS NOT NULL"), span)
    elif isinstance(metric, nouns.ConversionMetric):
        after = None
        if metric.after is not None:
            within = metric.after.within or default_window
            after = Anchor(metric.after.source, metric.after.where, _us(within))
        yield Measure(metric.to.source, "any", None, metric.to.where, span, after)
    else:
        for part in (metric.numerator, metric.denominator):
            fold = "count" if part.column is None else "sum"
            yield Measure(part.source, fold, part.column, part.where, span, cap=_cap(part.cap))  # type: ignore[arg-type]


def _is_ratio(metric: nouns.Metric) -> bool:
    return metric.kind in ("rate", "nps", "csat", "ratio")


def _from(metric: nouns.Metric) -> str:
    if isinstance(metric, nouns.ConversionMetric):
        return f"source '{metric.to.source}'"
    if isinstance(metric, nouns.RatioMetric):
        return f"sources '{metric.numerator.source}' and '{metric.denominator.source}'"
    return f"source '{metric.from_}'"


def _unit(metric: nouns.Metric, currency: str) -> str:
    """The declared unit, else what the kind implies: shares, points, the project's currency for sums, a column's name."""
    if metric.unit is not None:
        return metric.unit
    if isinstance(metric, nouns.NpsMetric):
        return "points"
    if isinstance(metric, nouns.ConversionMetric | nouns.RateMetric | nouns.CsatMetric):
        return "share"
    if isinstance(metric, nouns.SumMetric):
        return currency
    if isinstance(metric, nouns.CountMetric):
        return metric.from_
    if isinstance(metric, nouns.MeanMetric):
        return metric.column if re.fullmatch(r"\w+", metric.column) else ""
    counted = metric.numerator.column is None, metric.denominator.column is None
    return currency if counted == (False, True) else "share" if counted == (True, True) else ""


# ---------------------------------------------------------------- checks


def _srm(design: ExperimentDesign, data: ArmsData) -> Check:
    split = design.experiment.assignment.split
    counts = dict(data.exposed)
    if split is None and design.experiment.type == "holdout":
        return Check(
            "srm", "not-run", None, "no split is declared for this holdout, so its size has nothing to be held against"
        )
    shares = {arm: (split[arm] if split else 1.0) for arm in counts}
    test = compare.srm(counts, shares)
    total, planned = sum(counts.values()), sum(shares.values())
    seen = ", ".join(
        f"{arm} {n:,} ({formats.exact(round(n / total, 4), formats.unit('share'))}, planned"
        f" {formats.exact(round(shares[arm] / planned, 4), formats.unit('share'))})"
        for arm, n in sorted(counts.items())
    )
    basis = "" if split else " (no split is declared, so equal shares are assumed)"
    if test.p_value < SRM_ALARM:
        return Check(
            "srm",
            "fail",
            test.statistic,
            f"sample ratio mismatch: {seen}{basis}; {formats.p_value(test.p_value)}. Something removes or adds units unevenly,"
            " so the arms are not comparable; find it before reading any figure",
        )
    return Check(
        "srm", "pass", test.statistic, f"arms have the planned sizes: {seen}{basis}; {formats.p_value(test.p_value)}"
    )


def _row_checks(design: ExperimentDesign, data: ArmsData) -> list[Check]:
    source = design.source
    units = sum(data.exposed.values())
    out: list[Check] = []
    share = data.several_arms / (units + data.several_arms)
    out.append(
        Check(
            "several_arms",
            "pass" if data.several_arms == 0 else "warn" if share <= 0.1 else "fail",
            share,
            f"{data.several_arms:,} of {units + data.several_arms:,} units were seen in more than one arm"
            + (" and are left out" if data.several_arms else ""),
        )
    )
    for check, n, column, what in (
        ("missing_ids", data.rows_without_id, data.unit_column, "id"),
        ("missing_times", data.rows_without_time, "time", "time"),
        ("missing_arms", data.rows_without_arm, design.experiment.assignment.variant, "arm"),
    ):
        if check == "missing_times" and not design.timed:
            out.append(Check(check, "not-run", None, f"'{source}' has no time column"))
        else:
            out.append(_null_check(check, source, column, n, data.rows, what))
    for profile in data.sources.values():
        if profile.name == source:
            continue
        for column, n in profile.null_ids.items():
            if n:
                out.append(_null_check("missing_ids", profile.name, column, n, profile.rows, "id"))
        if profile.null_times:
            out.append(_null_check("missing_times", profile.name, "time", profile.null_times, profile.rows, "time"))
    unknown = sum(data.unknown_arms.values())
    names = ", ".join(f"'{arm}' ({n:,})" for arm, n in sorted(data.unknown_arms.items()))
    out.append(
        Check(
            "unknown_arms",
            "warn" if unknown else "pass",
            float(unknown),
            f"arms in '{source}' that the split does not declare: {names}; their units are left out"
            if unknown
            else "every arm in the data is declared"
            if design.experiment.assignment.split
            else "arms are taken from the data",
        )
    )
    for profile in data.sources.values():
        if profile.repeated_ids:
            out.append(
                Check(
                    "repeated_ids",
                    "warn",
                    float(profile.repeated_ids),
                    f"source '{profile.name}', column '{profile.id_column}': {profile.repeated_ids:,} of {profile.rows:,} rows"
                    " repeat an id, and are counted again; remove the duplicates if they are one event recorded twice",
                )
            )
    if not any(c.name == "repeated_ids" for c in out):
        looked = [p.name for p in data.sources.values() if p.repeated_ids is not None]
        detail = (
            f"no repeated id in {', '.join(looked)}"
            if looked
            else "no source declares an id: COLUMN to look for repeats in"
        )
        out.append(Check("repeated_ids", "pass" if looked else "not-run", 0.0 if looked else None, detail))
    out.append(_clock_check(design, data))
    return out


def _clock_check(design: ExperimentDesign, data: ArmsData) -> Check:
    """Times in the future would make every window look closed."""
    if not design.timed or design.now_us is None:
        return Check("clock", "not-run", None, "there is no clock to look at")
    ahead = [p for p in data.sources.values() if p.last_us is not None and p.last_us > design.now_us + _DAY_US]
    if ahead:
        worst = max(ahead, key=lambda p: p.last_us or 0)
        return Check(
            "clock",
            "warn",
            float(len(ahead)),
            f"source '{worst.name}' goes to {from_us(worst.last_us or 0)}, which lies in the future: windows may look closed that"
            " are not. Look at the clock or the time zone, or say how far the data are complete: through: TIME",
        )
    return Check("clock", "pass", 0.0, "no source goes beyond today")


def _null_check(check: str, source: str, column: str, n: int, rows: int, what: str) -> Check:
    if n == 0:
        article = "a" if what == "time" else "an"
        return Check(check, "pass", 0.0, f"every row of '{source}' has {article} {what}")
    share = n / rows if rows else 0.0
    return Check(
        check,
        "fail" if share > 0.05 else "warn",
        share,
        f"source '{source}', column '{column}': {n:,} of {rows:,} rows are NULL and are left out",
    )


def _plan_checks(
    design: ExperimentDesign, data: ArmsData, readings: list[_Reading], control: str, treatments: list[str]
) -> list[Check]:
    out: list[Check] = []
    open_units = {r.use.name: sum(data.metrics[r.use.name].ineligible.values()) for r in readings}
    total = sum(data.exposed.values())
    worst = max(open_units, key=lambda name: open_units[name])
    if open_units[worst]:
        as_of = "" if data.as_of_us is None else f" at {from_us(data.as_of_us)}"
        listed = ", ".join(f"{name} {n:,}" for name, n in open_units.items() if n)
        out.append(
            Check(
                "open_windows",
                "warn" if open_units[worst] > total / 2 else "pass",
                open_units[worst] / total,
                f"of {total:,} units, those whose window is still open{as_of} are left out: {listed}",
            )
        )
    else:
        closed = (
            f"the windows of all {total:,} units have closed"
            if design.timed
            else "the table has no times, so no windows"
        )
        out.append(Check("open_windows", "pass" if design.timed else "not-run", 0.0 if design.timed else None, closed))
    stop = design.experiment.stop
    if stop is None or (stop.at is None and stop.n is None):
        out.append(
            Check(
                "planned_stop",
                "not-run",
                None,
                "no stop was registered: nobody can tell whether this read-out was the planned one",
            )
        )
    else:
        early: list[str] = []
        if stop.at is not None and data.as_of_us is not None and data.as_of_us < to_us(stop.at, design.zone):
            days = (to_us(stop.at, design.zone) - data.as_of_us) / 86_400e6
            early.append(f"{days:,.1f} days before the planned stop ({stop.at:%Y-%m-%d})")
        if stop.n is not None and total < stop.n:
            early.append(f"with {total:,} of the {stop.n:,} planned units")
        out.append(
            Check(
                "planned_stop",
                "warn" if early else "pass",
                None,
                f"read {' and '.join(early)}: an interval for one planned look is too narrow when looked at early"
                if early
                else "read at or after the planned stop",
            )
        )
    primary = next((r for r in readings if r.use.part == "primary"), None)
    if stop is None or stop.mde is None or primary is None:
        out.append(Check("planned_size", "not-run", None, "no smallest effect worth finding (stop.mde) was registered"))
        return out
    for arm in treatments:
        t, c = primary.levels[arm], primary.levels[control]
        achieved = compare.minimum_detectable_effect(
            t.unit_variance, t.n, c.unit_variance, c.n, level=design.level, power_wanted=stop.power
        )
        needed = compare.required_n(
            stop.mde,
            t.unit_variance,
            c.unit_variance,
            treatment_share=t.n / (t.n + c.n),
            level=design.level,
            power_wanted=stop.power,
        )
        unit = formats.unit(primary.unit)
        planned = formats.exact(stop.mde, unit, change=True)
        reached = formats.written(achieved, achieved * 0.95, achieved * 1.05, unit, change=True).value
        out.append(
            Check(
                "planned_size",
                "pass" if achieved <= stop.mde else "warn",
                achieved,
                f"{arm} vs {control}: planned to find {formats.size(planned)} in {primary.use.name} with {stop.power:.0%} power, which"
                f" takes {needed.total:,} units; {t.n + c.n:,} are in, enough for {formats.size(reached)}",
            )
        )
    return out


def _value_checks(
    design: ExperimentDesign, data: ArmsData, readings: list[_Reading], control: str, treatments: list[str]
) -> list[Check]:
    out: list[Check] = []
    for r in readings:
        numbers: MetricMoments = data.metrics[r.use.name]
        having = {arm: numbers.moments[arm].n for arm in [control, *treatments]}
        eligible = {arm: numbers.eligible[arm] for arm in having}
        # a ratio of sums stays a fair comparison when fewer units take part; an average over those who do does not
        if having == eligible or r.use.metric.kind in ("ratio", "rate"):
            continue
        test = compare.missingness(having, eligible)
        shares = ", ".join(f"{arm} {having[arm] / eligible[arm]:.1%}" for arm in having)
        if test.p_value < SRM_ALARM:
            out.append(
                Check(
                    "values_missing",
                    "warn",
                    test.statistic,
                    f"{r.use.name}: the share of units that have a value differs between arms ({shares};"
                    f" {formats.p_value(test.p_value)}), so those compared are no longer the ones randomised",
                )
            )
    if not any(c.name == "values_missing" for c in out):
        out.append(Check("values_missing", "pass", None, "no sign that having a value depends on the arm"))
    invalid = {r.use.name: n for r in readings if (n := data.metrics[r.use.name].invalid)}
    scaled = any(r.use.metric.kind == "nps" for r in readings)
    out.append(
        Check(
            "out_of_range",
            "warn" if invalid else "pass" if scaled else "not-run",
            float(sum(invalid.values())) if scaled else None,
            "; ".join(f"{name}: {n:,} answers are not between 0 and 10 and are left out" for name, n in invalid.items())
            or ("every answer lies on its scale" if scaled else "no metric here has a scale"),
        )
    )
    doubts: list[str] = []
    for r in readings:
        if r.use.metric.kind == "nps":  # the rule is for metrics that are never below zero
            continue
        for arm in treatments:
            pair, names = (r.levels[arm], r.levels[control]), (arm, control)
            doubt = compare.normal_approximation_doubtful(*pair, names=names)
            lift = doubt or compare.normal_approximation_doubtful(*pair, relative=True, names=names)
            if lift is not None:
                doubts.append(f"{r.use.name}{'' if doubt else ' (relative lift)'}: {lift}")
    out.append(
        Check(
            "few_units",
            "warn" if doubts else "pass",
            float(len(doubts)),
            "; ".join(doubts) or "enough units for normal intervals",
        )
    )
    return out


def _trust_checks(readings: list[_Reading]) -> list[Check]:
    """Is what the decision rests on a metric that can be trusted with it?"""
    primaries = [r.use for r in readings if r.use.part == "primary"]
    if not primaries:
        return [
            Check("trusted_primary", "not-run", None, "no primary metric is declared; every figure here is exploratory")
        ]
    better = [
        r.use.name for r in readings if r.use.part != "guardrail" and _caveat(r.use) is None and r.use not in primaries
    ]
    instead = (
        f"; decide on {' or '.join(better[:3])} instead" if better else "; decide on a click or revenue metric instead"
    )
    out = []
    for use in primaries:
        caveat = _caveat(use)
        if caveat is None:
            out.append(Check("trusted_primary", "pass", None, f"no caveat is known of {use.name}"))
        else:
            out.append(Check("trusted_primary", "warn", None, f"{use.name} is primary, but: {caveat}{instead}"))
    return out


def _caveat(use: MetricUse) -> str | None:
    """Why not to decide on this metric: its own caveat, its vanity, or an open rate's mail-privacy pre-fetch."""
    if use.metric.role == "vanity":
        why = use.metric.reason or "it can rise without anyone being better off"
        return f"a vanity metric: {why}"
    if use.metric.caveat is not None:
        return use.metric.caveat
    target = use.metric.to.source if isinstance(use.metric, nouns.ConversionMetric) else ""
    if _UNREAD_OPENS.search(use.name) or _UNREAD_OPENS.search(target):
        return "mail-privacy pre-fetch opens messages that nobody read, so an open rate does not count readers"
    return None


# ---------------------------------------------------------------- words


def _remedy(m: Moments) -> str:
    if m.n < 2:
        return "wait for more units: one unit says nothing about the next"
    return "check the metric's source, where and window: a metric that is the same for every unit has nothing to tell"


def _span(use: MetricUse) -> str:
    return nouns.format_duration(use.window) if use.window is not None else "unlimited length"


def _windows(design: ExperimentDesign, readings: list[_Reading]) -> list[Assumption]:
    if not design.timed:
        return [Assumption("The table has no timestamps: outcomes are taken to have happened after exposure.")]
    out: list[Assumption] = []
    endless = [r.use.name for r in readings if r.use.window is None]
    if endless:
        out.append(
            Assumption(
                f"{', '.join(endless)}: no window is declared, so everything after exposure counts, and units exposed earlier"
                " had longer."
            )
        )
    return out


def _question(design: ExperimentDesign, readings: list[_Reading], control: str) -> str:
    first = readings[0].use.name
    return f"What does {design.name} do to {formats.human(first)}, compared with {control}?"


def _sentence(design: ExperimentDesign, r: _Reading, arm: str, control: str, state: str) -> str:
    unit = formats.unit(r.unit)
    gap = r.differences[arm]
    low, high = gap.interval(design.level)
    margin = r.use.metric.margin
    against = [-margin, margin] if margin is not None else []
    text = formats.written(gap.value, low, high, unit, change=True, against=against)
    name, level = formats.human(r.use.name), formats.level(design.level)
    interval = f"{level} interval {text.range}"
    if state in ("improved", "harmed"):
        verb = "raises" if gap.value > 0 else "lowers"
        return f"{arm} {verb} {name} by {formats.size(text.value)} against {control} ({interval})"
    if r.use.part == "guardrail":
        allowed = "" if margin is None else formats.size(formats.exact(margin, unit, change=True))
        if state == "safe":
            what = (
                f"harm beyond the margin of {allowed} is excluded" if margin is not None else "it moves the right way"
            )
        elif state == "breached":
            what = f"it is worse by more than the margin of {allowed}" if margin is not None else "it is worse"
        elif margin is not None:
            what = f"harm beyond the margin of {allowed} cannot be excluded"
        else:
            what = "no margin is declared, so the absence of harm is not shown"
        return f"{name} of {arm} against {control}: {text.value} ({interval}); {what}"
    return f"{name} of {arm} against {control}: {text.value} ({interval}), which does not settle the direction"


def _verdict(readings: tuple[MetricReading, ...], failed: list[Check]) -> Verdict:
    if failed:
        return "withheld"
    primary = _headline(readings)
    at_risk = any(r.state in ("at risk", "breached") for r in readings)
    breached = any(r.state == "breached" for r in readings)
    if any(r.state == "improved" for r in primary):
        if at_risk:
            return "guardrail at risk"
        return "positive"
    if breached:
        return "guardrail at risk"
    if primary and all(r.state == "harmed" for r in primary):
        return "negative"
    return "not conclusive"


def _headline(readings: tuple[MetricReading, ...]) -> list[MetricReading]:
    """The readings that the verdict rests on: the first primary's, else the north star's, else the only metric's."""
    metrics = list(dict.fromkeys(r.metric for r in readings))
    for role in ("primary", "north_star"):
        named = [r.metric for r in readings if r.role == role]
        if named:
            return [r for r in readings if r.metric == named[0]]
    return list(readings) if len(metrics) == 1 else []


def _finding(readings: tuple[MetricReading, ...], failed: list[Check]) -> str:
    headline = _headline(readings)
    if failed:
        return f"Withheld: {failed[0].detail}."
    if not headline:
        return "No primary metric is declared, so there is no headline: every figure below is exploratory."
    parts = ["; ".join(r.sentence for r in headline) + "."]
    risky = [r for r in readings if r.state in ("at risk", "breached")]
    if risky:
        parts.append("Guardrail " + "; ".join(f"{r.state}: {r.sentence}" for r in risky) + ".")
    return " ".join(parts)


# ---------------------------------------------------------------- joint uncertainty


def _correlations(
    design: ExperimentDesign, data: ArmsData, readings: list[_Reading], control: str, treatments: list[str]
) -> Mapping[tuple[tuple[str, str], tuple[str, str]], float]:
    """Correlation of the sampling errors of pairs of differences, for the pairs that a claim prices together."""
    by_name = {r.use.name: r for r in readings}
    out: dict[tuple[tuple[str, str], tuple[str, str]], float] = {}
    for (a, b), joint in data.crosses.items():
        if a not in by_name or b not in by_name:
            continue
        for arm in treatments:
            shared = [(by_name[a].levels[x], by_name[b].levels[x], joint[x]) for x in (arm, control)]
            value = compare.difference_correlation(by_name[a].differences[arm], by_name[b].differences[arm], shared)
            contrast = f"{arm} vs {control}"
            out[(a, contrast), (b, contrast)] = value
    return out

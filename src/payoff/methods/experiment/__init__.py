"""Randomised comparisons at a fixed horizon: experiments and holdouts, two or more arms against control.

The method says what it needs (moments by arm), and answers from those alone. All figures come from `stats.compare`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import combinations, product
from typing import ClassVar

import numpy as np

from payoff.estimate import Bounds, Estimate, Normal
from payoff.methods.experiment.checks import caveat_of, run_checks
from payoff.methods.experiment.design import ExperimentDesign, MetricUse, Reading, improvement, span
from payoff.methods.experiment.words import finding, headline, question, remedy, sentence, verdict_of, windows
from payoff.result import Arm, Assumption, MetricReading, Refusal, Result
from payoff.stats import compare
from payoff.warehouse.measures import is_ratio, metric_need, origin, unit_of
from payoff.warehouse.needs import ArmsData, ArmsNeed
from payoff.warehouse.sources import from_us, to_us

__all__ = ["ExperimentDesign", "ExperimentMethod", "MetricUse"]


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
        "dates",
        "freshness",
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
            metrics=tuple(metric_need(u.name, u.metric, u.window, design.default_window) for u in design.metrics),
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
        readings: list[Reading] = []
        refusals: list[Refusal] = []
        for use in design.metrics:
            reading, refused = self._read(design, data, use, control, treatments)
            refusals += refused
            if reading is not None:
                readings.append(reading)
        if not readings:
            reasons = "; ".join(f"{r.name.rsplit('.', 1)[1]}: {r.reason}" for r in refusals)
            return Refusal(name, f"no metric can be read: {reasons}", refusals[0].remedy)
        estimates, arms, no_lift = self._figures(design, readings, control)
        checks = run_checks(design, data, readings, control)
        read = tuple(self._judge(design, r, arm, control) for r in readings for arm in r.differences)
        failed = [c for c in checks if c.status == "fail"]
        verdict = verdict_of(read, failed)
        target = design.experiment.target
        if verdict == "positive" and target is not None:
            leading = {(r.metric, r.contrast) for r in headline(read) if r.state == "improved"}
            reached = [
                improvement(r, arm, design.level)[0] > target
                for r in readings
                for arm in r.differences
                if (r.use.name, f"{arm} vs {control}") in leading
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
        assumptions = [*self.assumptions, *windows(design, readings), *no_lift]
        return Result(
            name=name,
            question=design.experiment.hypothesis or question(design, readings, control),
            method="experiment",
            design="randomised",
            verdict=verdict,
            grade="A" if not failed else "C",
            finding=finding(read, failed),
            estimates=tuple(estimates),
            arms=tuple(arms),
            readings=read,
            checks=tuple(checks),
            assumptions=tuple(assumptions),
            owner=design.experiment.owner,
            left_out={reason: n for reason, n in left_out.items() if n},
            refusals=tuple(refusals),
            correlations=_correlations(data, readings, control),
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
    ) -> tuple[Reading | None, list[Refusal]]:
        """The metric's figures for the arms that have them, and why the others do not."""
        name = f"experiments.{design.name}.{use.name}"
        for position, cap in enumerate(data.metrics[use.name].caps):
            if cap is not None and cap <= 0:
                part = ("numerator", "denominator")[position] if is_ratio(use.metric) else "values"
                return None, [
                    Refusal(
                        name,
                        f"the cap's percentile of the pooled {part} is {cap:g}, which would cap every unit to it",
                        "cap at a percentile of the units that have any: cap: {percentile: 99, of: nonzero}",
                    )
                ]
        out = Reading(use, unit_of(use.metric, design.currency, design.entity))
        refused: list[Refusal] = []
        for arm in [control, *treatments]:
            level = _level(name, design, data, use, arm)
            if isinstance(level, Refusal):
                refused.append(level)
                if arm == control:
                    break
            else:
                out.levels[arm] = level
                if arm != control:
                    out.differences[arm] = compare.difference(level, out.levels[control])
        return (out if out.differences else None), refused

    def _figures(
        self, design: ExperimentDesign, readings: list[Reading], control: str
    ) -> tuple[list[Estimate], list[Arm], list[Assumption]]:
        estimates: list[Estimate] = []
        arms: list[Arm] = []
        no_lift: list[Assumption] = []
        for r in readings:
            for arm, level in r.levels.items():
                low, high = level.interval(design.level)
                arms.append(Arm(arm, r.use.name, level.n, level.value, low, high, r.unit))
            for arm, gap in r.differences.items():
                estimate = partial(
                    Estimate,
                    metric=r.use.name,
                    contrast=f"{arm} vs {control}",
                    interval_kind="confidence",
                    n={arm: r.levels[arm].n, control: r.levels[control].n},
                    level=design.level,
                )
                spread = Normal(gap.se, gap.df)
                estimates.append(
                    estimate(estimand="difference in means", value=gap.value, unit=r.unit, uncertainty=spread)
                )
                lift = compare.relative_lift(r.levels[arm], r.levels[control], design.level)
                if isinstance(lift, compare.NoRelativeLift):
                    no_lift.append(Assumption(f"No relative lift of {r.use.name} ({arm}): {lift.reason}."))
                    continue
                of_lift = (
                    Normal(lift.se_log, lift.df, "log1p")
                    if isinstance(lift, compare.LogDelta)
                    else Bounds(lift.low, lift.high, lift.level, lift.p_value)
                )
                estimates.append(
                    estimate(estimand="relative lift", value=lift.value, unit="relative", uncertainty=of_lift)
                )
        return estimates, arms, no_lift

    def _judge(self, design: ExperimentDesign, r: Reading, arm: str, control: str) -> MetricReading:
        """What the interval shows, never what the point suggests."""
        use = r.use
        better, best = improvement(r, arm, design.level)
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
            sentence=sentence(design, r, arm, control, state),
            margin=margin,
            target=design.experiment.target if use.part == "primary" else None,
            caveat=caveat_of(use),
        )


def _level(name: str, design: ExperimentDesign, data: ArmsData, use: MetricUse, arm: str) -> compare.Level | Refusal:
    """The metric's level in one arm, or why there is none."""
    numbers = data.metrics[use.name]
    m = numbers.moments.get(arm)
    if m is None or numbers.eligible.get(arm, 0) == 0:
        as_of = "" if data.as_of_us is None else f" (the data goes to {from_us(data.as_of_us)})"
        return Refusal(
            name,
            f"the window of {span(use)} is not yet over for any unit of arm '{arm}'{as_of}",
            "wait until the first windows have closed, or declare a shorter window; if the data is complete to a"
            " later time than its last row, say so on the source: through: TIME",
        )
    if m.n == 0:
        return Refusal(
            name,
            f"no unit of arm '{arm}' has a value",
            f"check {origin(use.metric)} and its where; units without a row are left out of this kind of metric",
        )
    if m.n < design.min_cell:
        return Refusal(
            name,
            f"arm '{arm}' has fewer than {design.min_cell} units with a value, the smallest group this project shows",
            "wait for more units",
        )
    scale = 100.0 if use.metric.kind == "nps" else 1.0
    try:
        return compare.ratio_level(m, scale) if is_ratio(use.metric) else compare.mean_level(m, scale)
    except ValueError as error:
        return Refusal(name, f"arm '{arm}': {error}", remedy(m))


def _correlations(
    data: ArmsData, readings: list[Reading], control: str
) -> Mapping[tuple[tuple[str, str], tuple[str, str]], float]:
    """Correlation of the sampling errors of pairs of differences: of arms, and of the metrics that a claim prices together."""
    by_name = {r.use.name: r for r in readings}
    out: dict[tuple[tuple[str, str], tuple[str, str]], float] = {}
    for r in readings:  # arms share their control, and with it its error
        for arm, other in combinations(r.differences, 2):
            share = r.levels[control].se ** 2 / (r.differences[arm].se * r.differences[other].se)
            out[(r.use.name, f"{arm} vs {control}"), (r.use.name, f"{other} vs {control}")] = share
    for (a, b), joint in data.crosses.items():
        if a not in by_name or b not in by_name:
            continue
        for arm, other in product(by_name[a].differences, by_name[b].differences):
            same = (arm, control) if arm == other else (control,)
            shared = [(by_name[a].levels[x], by_name[b].levels[x], joint[x]) for x in same]
            value = compare.difference_correlation(by_name[a].differences[arm], by_name[b].differences[other], shared)
            out[(a, f"{arm} vs {control}"), (b, f"{other} vs {control}")] = value
    return out

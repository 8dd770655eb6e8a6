"""Randomised comparisons: experiments, holdouts and switchbacks, two or more arms against control.

The method says what it needs (moments by arm), and answers from those alone. All figures come from `stats`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from typing import ClassVar

import numpy as np

from payoff.estimate import Bounds, Estimate
from payoff.methods.experiment import when, where, who
from payoff.methods.experiment.checks import caveat_of, run_checks
from payoff.methods.experiment.closer import bayes, capping, diluted, overturn, precision
from payoff.methods.experiment.design import (
    AttributeUse,
    Beside,
    ExperimentDesign,
    MetricUse,
    Reading,
    improvement,
)
from payoff.methods.experiment.reading import Reader, correct_families
from payoff.methods.experiment.when import before_name
from payoff.methods.experiment.words import against, assumed, finding, headline, question, sentence, verdict_of
from payoff.result import Arm, Assumption, Closer, MetricReading, Refusal, Result
from payoff.stats import compare
from payoff.warehouse.measures import (
    calendar_need,
    cannibalisation_need,
    measures_of,
    metric_need,
    step_need,
)
from payoff.warehouse.needs import Anchor, ArmsData, ArmsNeed, AttributeNeed, MetricNeed
from payoff.warehouse.sources import to_us

__all__ = ["AttributeUse", "Beside", "ExperimentDesign", "ExperimentMethod", "MetricUse", "before_name"]


class ExperimentMethod:
    assumptions: ClassVar[tuple[Assumption, ...]] = (
        Assumption("Units were assigned to arms at random, in the planned shares.", "srm"),
        Assumption("Each unit kept to one arm; those seen in several are left out and counted.", "several_arms"),
        Assumption("One unit's arm does not change another unit's outcome (no spill-over between arms)."),
        Assumption("Exposures and outcomes were recorded alike in every arm.", "missing_ids"),
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
        "peeking",
        "planned_size",
        "values_missing",
        "few_units",
        "repeated_ids",
        "out_of_range",
        "negative_values",
        "heavy_tail",
        "balance",
        "covariates",
        "clusters",
        "sign_flip",
        "interference",
        "contamination",
        "exposure_order",
        "clock",
        "dates",
        "freshness",
        "trusted_primary",
    )

    # ---------------------------------------------------------------- needs

    def needs(self, design: ExperimentDesign) -> ArmsNeed:
        assignment, experiment = design.experiment.assignment, design.experiment
        need = ArmsNeed(
            experiment=design.name,
            source=design.source,
            entity=design.entity,
            variant=assignment.variant,
            where=assignment.where if assignment.source is not None else None,
            starts_us=None if experiment.starts is None else to_us(experiment.starts, design.zone),
            ends_us=None if experiment.ends is None else to_us(experiment.ends, design.zone),
            arms=tuple(assignment.split or ()),
            metrics=(),
            cluster=experiment.cluster,
            period_us=when.microseconds(experiment.period),
        )
        if design.only_beside:
            return need
        adjust, segments = experiment.adjust, list(experiment.segments)
        covariates: list[str] = []
        attributes = [_attribute_need(design, use) for use in design.attributes.values()]
        if adjust is not None:
            covariates += adjust.attributes
            if adjust.post_stratify is not None and adjust.post_stratify not in segments:
                segments.append(adjust.post_stratify)
            for use in design.attributes.values():
                if use.metric is not None and use.name in when.before_names(adjust):
                    covariates.append(use.name)
        trigger = experiment.trigger
        return replace(
            need,
            metrics=tuple(self._metrics(design)),
            crosses=design.crosses,
            attributes=tuple(attributes),
            covariates=tuple(dict.fromkeys(covariates)),
            segments=tuple(segments),
            trigger=None if trigger is None else Anchor(trigger.source, trigger.where, None),
            beside=tuple(other.name for other in design.beside),
            beside_metrics=tuple(u.name for u in design.primaries) if design.beside else (),
        )

    def _metrics(self, design: ExperimentDesign) -> list[MetricNeed]:
        experiment = design.experiment
        out = []
        for use in design.metrics:
            need = metric_need(
                use.name, use.metric, use.window, design.default_window, before=use.before, level=design.level
            )
            out.append(need)
        out += [step_need(when.steps_of(u), u.metric, edges) for u, edges in when.step_edges(design)]
        if design.timed and experiment.period is None:
            out += [
                when.around_need(u) for u in design.primaries if u.metric.kind in when.COUNTED and u.window is not None
            ]
        out += [calendar_need(when.calendar_of(u), u.metric, edges) for u, edges in when.calendar_edges(design)]
        if experiment.cannibalisation is not None:
            out.append(cannibalisation_need(where.NAME, experiment.cannibalisation, where.window(design)))
        if experiment.period is not None:
            return [when.in_period(need, experiment.period, experiment.washout) for need in out]
        return out

    # ---------------------------------------------------------------- answer

    def answer(self, design: ExperimentDesign, data: ArmsData, rng: np.random.Generator) -> Result | Refusal:
        name = f"experiments.{design.name}"
        control = design.experiment.assignment.control_arm
        refusal = self._refuse_whole(name, design, data, control)
        if refusal is not None:
            return refusal
        treatments = sorted(arm for arm in data.exposed if arm != control)
        reader = Reader(design, data, control, treatments)
        spent = reader.rule.spent()
        if spent is not None:
            return Refusal(name, spent, f"find that look with: payoff show {name} --history")
        readings: list[Reading] = []
        refusals: list[Refusal] = []
        for use in design.metrics:
            reading, refused = reader.read(use)
            refusals += refused
            if reading is not None:
                readings.append(reading)
        if not readings:
            reasons = "; ".join(f"{r.name.rsplit('.', 1)[1]}: {r.reason}" for r in refusals)
            return Refusal(name, f"no metric can be read: {reasons}", refusals[0].remedy)
        correct_families(readings, design.alpha)
        estimates, arms, no_lift = self._figures(design, readings, control)
        closer, more = self._closer(reader, readings, refusals, rng)
        checks = run_checks(reader, readings, closer)
        read = tuple(self._judge(design, r, arm, control) for r in readings for arm in r.differences)
        failed = [c for c in checks if c.status == "fail"]
        verdict = verdict_of(read, failed)
        target = design.experiment.target
        if verdict == "positive" and target is not None:
            mixed = {r.contrast for r in against(read)}
            leading = {
                (r.metric, r.contrast) for r in headline(read) if r.state == "improved" and r.contrast not in mixed
            }
            reached = [
                improvement(r, arm, design.level)[0] > target
                for r in readings
                for arm in r.differences
                if (r.use.name, f"{arm} vs {control}") in leading
            ]
            verdict = "above target" if any(reached) else verdict
        closer = replace(closer, overturn=overturn(reader, readings, closer, failed))
        return Result(
            name=name,
            question=design.experiment.hypothesis or question(design, readings, control),
            method="experiment",
            design="randomised",
            verdict=verdict,
            grade="A" if not failed else "C",
            finding=finding(read, failed, closer),
            estimates=(*estimates, *more),
            arms=tuple(arms),
            readings=read,
            checks=tuple(checks),
            assumptions=(*self.assumptions, *assumed(reader, readings), *no_lift),
            owner=design.experiment.owner,
            left_out=_left_out(data, readings),
            refusals=tuple(refusals),
            correlations=_correlations(data, readings, control),
            closer=closer,
        )

    def _closer(
        self, reader: Reader, readings: list[Reading], refusals: list[Refusal], rng: np.random.Generator
    ) -> tuple[Closer, list[Estimate]]:
        """The closer looks that were asked for; what of them is an estimate too; why some could not be had."""
        segments, by_segment, refused = who.segments(reader, readings)
        refusals += refused
        over_time, refused = when.over_time(reader, readings, rng)
        refusals += refused
        cannibalisation, of_paths, refused = where.displacement(reader)
        refusals += refused
        interactions = where.interactions(reader, readings)
        readings_of_lift, credible, refused = bayes(reader, readings)
        refusals += refused
        diluted_, of_everyone, refused = diluted(reader, readings)
        refusals += refused
        closer = Closer(
            precision=precision(reader, readings),
            segments=segments,
            over_time=over_time,
            cannibalisation=cannibalisation,
            interactions=interactions,
            bayes=readings_of_lift,
            diluted=diluted_,
            capping=capping(reader, readings),
            peeking=when.peeking(reader),
        )
        return closer, [*by_segment, *of_paths, *credible, *of_everyone]

    def _refuse_whole(self, name: str, design: ExperimentDesign, data: ArmsData, control: str) -> Refusal | None:
        found = ", ".join(f"'{arm}' ({n:,})" for arm, n in sorted(data.exposed.items())) or "none"
        source = design.source
        if data.rows == 0:
            return Refusal(
                name, f"source '{source}' has no row for this experiment", "check the source, where, starts and ends"
            )
        lost = data.cluster
        if not data.exposed and lost is not None and (lost.without or lost.several_arms):
            return Refusal(
                name,
                f"no unit is left to compare: {lost.without:,} have no {design.experiment.cluster}, and {lost.several_arms:,}"
                f" {design.experiment.cluster}s were seen in several arms",
                f"check the column of '{design.experiment.cluster}' in '{source}'; a whole {design.experiment.cluster} must keep to one arm",
            )
        if not data.exposed and data.untriggered:
            trigger = design.experiment.trigger
            return Refusal(
                name,
                f"none of the {sum(data.untriggered.values()):,} exposed units has a row of the trigger"
                f" '{trigger.source if trigger else ''}' after exposure",
                "check the trigger's source and where; it must be recorded in every arm, where the feature would have shown too",
            )
        if not data.exposed and data.several_arms:
            one = "period" if design.experiment.period is not None else design.entity
            return Refusal(
                name,
                f"none of the {data.rows:,} rows of '{source}' gives a unit with one arm: {data.several_arms:,} were seen in several",
                f"each {one} must keep one arm; check assignment.variant and where"
                + (", and that period is as long as an arm was kept" if design.experiment.period is not None else ""),
            )
        if not data.exposed:
            return Refusal(
                name,
                f"none of the {data.rows:,} rows of '{source}' gives a unit with one arm and a time",
                f"look at the NULLs with: payoff doctor ({data.rows_without_id:,} rows have no id, {data.rows_without_time:,} no"
                f" time, {data.rows_without_arm:,} no arm; {data.several_arms:,} units were in several arms)",
            )
        untriggered = sorted(arm for arm in data.untriggered if arm not in data.exposed)
        if untriggered:
            trigger = design.experiment.trigger
            return Refusal(
                name,
                f"none of the {data.untriggered[untriggered[0]]:,} exposed units of arm '{untriggered[0]}' has a row of the trigger"
                f" '{trigger.source if trigger else ''}' after exposure; arms with one: {found}",
                "a trigger must be recorded in every arm, where the feature would have shown too",
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
        refused = [p for p in data.attributes.values() if p.refused is not None and p.name in _adjusting(design)]
        if refused:
            return Refusal(
                name,
                f"it is to be adjusted for '{refused[0].name}', which cannot serve: {refused[0].refused}",
                "adjust only for what was known before exposure; leave the attribute out, or give its source a time"
                if refused[0].future or refused[0].ambiguous or not refused[0].classes
                else "make fewer classes of it, with cuts, quantiles or a coarser column",
            )
        return None

    def _figures(
        self, design: ExperimentDesign, readings: list[Reading], control: str
    ) -> tuple[list[Estimate], list[Arm], list[Assumption]]:
        estimates: list[Estimate] = []
        arms: list[Arm] = []
        no_lift: list[Assumption] = []
        for r in readings:
            for arm, level in r.plain.items():  # what the arm's own units did; adjustment is of the comparison
                low, high = level.interval(design.level)
                arms.append(Arm(arm, r.use.name, r.units[arm], level.value, low, high, r.unit))
            for arm, gap in r.differences.items():
                estimate = partial(
                    Estimate,
                    metric=r.use.name,
                    contrast=f"{arm} vs {control}",
                    interval_kind=r.rule.interval_kind,
                    n={arm: r.units[arm], control: r.units[control]},
                    level=design.level,
                )
                quantile = r.quantile
                n = r.count(arm)
                estimates.append(
                    estimate(
                        estimand="difference in quantiles" if quantile else "difference in means",
                        value=gap.value,
                        unit=r.unit,
                        uncertainty=r.rule.uncertainty(gap.value, gap.se, gap.df, n, design.level),
                        correction=r.corrections.get(arm),
                    )
                )
                if r.adjusted is not None:
                    raw = compare.difference(r.plain[arm], r.plain[control])
                    estimates.append(
                        estimate(
                            estimand="difference in means, unadjusted",
                            value=raw.value,
                            unit=r.unit,
                            uncertainty=r.rule.uncertainty(raw.value, raw.se, raw.df, n, design.level),
                        )
                    )
                lift = compare.relative_lift(
                    r.levels[arm], r.levels[control], design.level, covariance=r.between(arm, control)
                )
                if isinstance(lift, compare.NoRelativeLift):
                    no_lift.append(Assumption(f"No relative lift of {r.use.name} ({arm}): {lift.reason}."))
                    continue
                if isinstance(lift, compare.LogDelta):
                    try:
                        of_lift = r.rule.uncertainty(lift.value, lift.se_log, lift.df, n, design.level, log=True)
                    except ValueError as error:
                        no_lift.append(Assumption(f"No relative lift of {r.use.name} ({arm}): {error}."))
                        continue
                elif r.rule.kind == "fixed":
                    of_lift = Bounds(lift.low, lift.high, lift.level, lift.p_value)
                else:
                    no_lift.append(
                        Assumption(
                            f"No relative lift of {r.use.name} ({arm}): its interval would hold at one planned look only."
                        )
                    )
                    continue
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


def _adjusting(design: ExperimentDesign) -> set[str]:
    adjust = design.experiment.adjust
    if adjust is None:
        return set()
    return {*adjust.attributes, *when.before_names(adjust), *([adjust.post_stratify] if adjust.post_stratify else [])}


def _attribute_need(design: ExperimentDesign, use: AttributeUse) -> AttributeNeed:
    attribute = use.attribute
    measure = None
    if use.metric is not None:
        assert attribute.period is not None
        first = next(iter(measures_of(use.metric, None, design.default_window)))
        measure = replace(first, after=None, cap=None, from_us=-(when.microseconds(attribute.period) or 0), window_us=0)
    return AttributeNeed(
        name=use.name,
        source=use.source if measure is None else measure.source,
        column=attribute.column,
        since=attribute.since,
        measure=measure,
        cuts=attribute.cuts,
        quantiles=attribute.quantiles,
        labels=attribute.labels,
    )


def _left_out(data: ArmsData, readings: list[Reading]) -> Mapping[str, int]:
    out = {
        "units seen in several arms": data.several_arms,
        "units of an arm that is not declared": sum(data.unknown_arms.values()),
        f"rows without an id ({data.unit_column})": data.rows_without_id,
        "rows without a time": data.rows_without_time,
        "rows without an arm": data.rows_without_arm,
        "exposed units that never triggered": sum(data.untriggered.values()),
    }
    if data.cluster is not None:
        out["clusters seen in several arms"] = data.cluster.several_arms
        out["units without a cluster"] = data.cluster.without
    for r in readings:
        numbers = data.metrics[r.use.name]
        out[f"units whose window is still open ({r.use.name})"] = sum(numbers.ineligible.values())
        out[f"units without a value ({r.use.name})"] = sum(numbers.without.values())
        out[f"rows with an impossible value ({r.use.name})"] = numbers.invalid
    return {reason: n for reason, n in out.items() if n}


def _correlations(
    data: ArmsData, readings: list[Reading], control: str
) -> Mapping[tuple[tuple[str, str], tuple[str, str]], float]:
    """Correlation of the sampling errors of pairs of differences: of arms, and of the metrics that a claim prices together."""
    by_name = {r.use.name: r for r in readings}
    out: dict[tuple[tuple[str, str], tuple[str, str]], float] = {}
    for r in readings:  # arms share their control, and with it its error
        for arm, other in combinations(r.differences, 2):
            shared = r.levels[control].se ** 2 + r.between(arm, other)
            shared -= r.between(arm, control) + r.between(other, control)
            share = shared / (r.differences[arm].se * r.differences[other].se)
            out[(r.use.name, f"{arm} vs {control}"), (r.use.name, f"{other} vs {control}")] = min(1.0, max(-1.0, share))
    for (a, b), joint in data.crosses.items():
        if a not in by_name or b not in by_name or by_name[a].quantile or by_name[b].quantile:
            continue  # a quantile has no linear form, so what it shares with another metric is not known
        for arm, other in product(by_name[a].differences, by_name[b].differences):
            one, two = _parts(data, by_name[a], arm, control), _parts(data, by_name[b], other, control)
            shared_arms = [(one[x], two[x], joint[x]) for x in one if x in two and x in joint]
            value = compare.difference_correlation(
                by_name[a].linear(arm, control), by_name[b].linear(other, control), shared_arms
            )
            out[(a, f"{arm} vs {control}"), (b, f"{other} vs {control}")] = value
    return out


def _parts(data: ArmsData, r: Reading, arm: str, control: str) -> Mapping[str, compare.Level]:
    """Each arm's part in a difference, as linear in all columns of its Moments. Adjusted, every arm has one: the pooled
    means are all units'. Post-stratified levels are not linear, so the plain ones stand in for them."""
    if r.adjusted is not None and r.adjusted.pull:
        return r.adjusted.parts(arm, control)
    columns = data.metrics[r.use.name].moments
    return {x: _whole(r.plain[x], columns[x].k) for x in (arm, control)}


def _whole(level: compare.Level, k: int) -> compare.Level:
    """The level as linear in all ``k`` columns of its Moments: what it does not depend on has no weight."""
    return replace(level, weights=(*level.weights, *[0.0] * (k - len(level.weights))))

"""One metric's levels and differences: plain or adjusted, of units or of clusters, of means or of quantiles; and its families."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from payoff.estimate import CorrectedBy, Correction
from payoff.methods.experiment.design import ExperimentDesign, MetricUse, Reading, span
from payoff.methods.experiment.rule import Rule
from payoff.methods.experiment.words import remedy
from payoff.result import Refusal
from payoff.stats import adjust, compare, multiplicity, quantile
from payoff.stats.adjust import Adjusted
from payoff.stats.compare import Level
from payoff.stats.moments import Moments
from payoff.warehouse.measures import is_ratio, origin, unit_of
from payoff.warehouse.needs import ArmsData, MetricMoments
from payoff.warehouse.sources import from_us


def scale_of(use: MetricUse) -> float:
    return 100.0 if use.metric.kind == "nps" else 1.0


def plain_level(design: ExperimentDesign, use: MetricUse, m: Moments) -> Level:
    """The metric's level from Moments whose first columns are its measures. Raises ValueError where there is none."""
    if is_ratio(use.metric):
        return compare.ratio_level(m.take([0, 1]), scale_of(use))
    if design.experiment.cluster is not None:  # a cluster's total over its units: the mean of a unit, clusters drawn
        return compare.ratio_level(m.take([0, 1]), scale_of(use))
    return compare.mean_level(m.take([0]), scale_of(use))


def adjusted_levels(design: ExperimentDesign, use: MetricUse, by_arm: Mapping[str, Moments]) -> Adjusted:
    """The same by regression on every column behind the measures. Raises ValueError where there are too few units."""
    ratio = is_ratio(use.metric)
    size = None if design.experiment.cluster is None else (2 if ratio else 1)
    return adjust.adjusted_levels(by_arm, kind="ratio" if ratio else "mean", scale=scale_of(use), size=size)


def stratified_levels(
    design: ExperimentDesign,
    use: MetricUse,
    by_arm: Mapping[str, Moments],
    strata: Mapping[str, Mapping[str, Moments]],
) -> Adjusted:
    """The same by class. Raises ValueError where clusters have units in several classes: their parts are not independent."""
    ratio, cluster = is_ratio(use.metric), design.experiment.cluster
    if cluster is None:
        return adjust.post_stratified(strata, kind="ratio" if ratio else "mean", scale=scale_of(use))
    for arm, m in by_arm.items():
        if sum(classes[arm].n for classes in strata.values() if arm in classes) != m.n:
            raise ValueError(
                f"not every {cluster} lies whole in one class, so classes cannot be weighed as independent"
            )
    size = 2 if ratio else 1
    return adjust.post_stratified(strata, kind="ratio" if ratio else "mean", scale=scale_of(use), size=size)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Levels by arm with their covariances, control first."""

    levels: Mapping[str, Level]
    covariance: Mapping[tuple[str, str], float]
    adjusted: Adjusted | None
    why_not: str = ""

    def difference(self, arm: str, control: str) -> compare.Difference:
        return compare.difference(
            self.levels[arm], self.levels[control], covariance=self.covariance.get((arm, control), 0.0)
        )


def compared(
    design: ExperimentDesign,
    use: MetricUse,
    by_arm: Mapping[str, Moments],
    covariates: Sequence[str],
    strata: Mapping[str, Mapping[str, Moments]] | None = None,
) -> Comparison:
    """The arms' levels: adjusted where the design asks for it and the units allow it, else plain. Raises ValueError."""
    plain = {arm: plain_level(design, use, m) for arm, m in by_arm.items()}
    try:
        if strata is not None:
            found = stratified_levels(design, use, by_arm, strata)
        elif covariates:
            found = adjusted_levels(design, use, by_arm)
        else:
            return Comparison(plain, {}, None)
    except ValueError as error:
        return Comparison(plain, {}, None, str(error))
    return Comparison({arm: found.levels[arm] for arm in by_arm}, found.covariance, found)


class Reader:
    """Reads the metrics of one design from its data."""

    def __init__(self, design: ExperimentDesign, data: ArmsData, control: str, treatments: Sequence[str]) -> None:
        self.design, self.data, self.control, self.treatments = design, data, control, list(treatments)
        self.rule = self._rule()

    def _rule(self) -> Rule:
        return Rule.of(
            self.design.experiment.stop,
            self.design.alpha,
            [look.units for look in self.design.looks],
            decided_units(self.design, self.data),
        )

    def read(self, use: MetricUse) -> tuple[Reading | None, list[Refusal]]:
        """The metric's figures for the arms that have them, and why the others do not."""
        design, numbers = self.design, self.data.metrics[use.name]
        name = f"experiments.{design.name}.{use.name}"
        for position, cap in enumerate(numbers.caps):
            if cap is not None and cap <= 0:
                part = ("numerator", "denominator")[position] if is_ratio(use.metric) else "values"
                return None, [
                    Refusal(
                        name,
                        f"the cap's percentile of the pooled {part} is {cap:g}, which would cap every unit to it",
                        "cap at a percentile of the units that have any: cap: {percentile: 99, of: nonzero}",
                    )
                ]
        out = Reading(use, unit_of(use.metric, design.currency, design.entity), self.rule)
        refused: list[Refusal] = []
        for arm in [self.control, *self.treatments]:
            level = self._level(name, use, numbers, arm)
            if isinstance(level, Refusal):
                refused.append(level)
                if arm == self.control:
                    return None, refused
            else:
                out.plain[arm] = level
                out.units[arm] = units_of(numbers, arm)
        self._compare(out, use, numbers)
        for arm in self.treatments:
            if arm in out.levels:
                out.differences[arm] = compare.difference(
                    out.levels[arm], out.levels[self.control], covariance=out.between(arm, self.control)
                )
        return (out if out.differences else None), refused

    def _compare(self, out: Reading, use: MetricUse, numbers: MetricMoments) -> None:
        """Fill in the levels that are reported, and how they were adjusted."""
        out.levels = dict(out.plain)
        adjust_by = self.design.experiment.adjust
        if adjust_by is None or numbers.quantiles:
            return
        arms = {arm: numbers.moments[arm] for arm in out.plain}
        strata = None
        if adjust_by.post_stratify is not None:
            strata = {
                name: {arm: m for arm, m in classes.items() if arm in arms}
                for name, classes in numbers.segments.get(adjust_by.post_stratify, {}).items()
            }
            if not strata:
                out.unadjusted_because = f"no class of {adjust_by.post_stratify} is known"
                return
        found = compared(self.design, use, arms, numbers.covariates, strata)
        out.adjusted, out.unadjusted_because = found.adjusted, found.why_not
        if found.adjusted is not None:
            out.levels, out.covariance = dict(found.levels), found.covariance
            used = found.adjusted.used
            out.covariates = (
                tuple(numbers.covariates[i] for i in used)
                if adjust_by.post_stratify is None
                else (adjust_by.post_stratify,)
            )

    def _level(self, name: str, use: MetricUse, numbers: MetricMoments, arm: str) -> Level | Refusal:
        """The metric's level in one arm, or why there is none."""
        design, data = self.design, self.data
        n = units_of(numbers, arm)
        m = numbers.moments.get(arm)
        if numbers.eligible.get(arm, 0) == 0:
            as_of = "" if data.as_of_us is None else f" (the data goes to {from_us(data.as_of_us)})"
            return Refusal(
                name,
                f"the window of {span(use)} is not yet over for any unit of arm '{arm}'{as_of}",
                "wait until the first windows have closed, or declare a shorter window; if the data is complete to a"
                " later time than its last row, say so on the source: through: TIME",
            )
        if n == 0:
            return Refusal(
                name,
                f"no unit of arm '{arm}' has a value",
                f"check {origin(use.metric)} and its where; units without a row are left out of this kind of metric",
            )
        if n < design.min_cell:
            return Refusal(
                name,
                f"arm '{arm}' has fewer than {design.min_cell} units with a value, the smallest group this project shows",
                "wait for more units",
            )
        try:
            if use.metric.kind == "quantile":
                if arm not in numbers.quantiles:
                    raise ValueError(numbers.no_quantile.get(arm, "no row has a value"))
                found = numbers.quantiles[arm]
                return quantile.level(found.value, found.low, found.high, found.n, 1 - design.alpha)
            assert m is not None
            return plain_level(design, use, m)
        except ValueError as error:
            few = use.metric.kind == "quantile" and arm not in numbers.quantiles
            return Refusal(
                name,
                f"arm '{arm}': {error}",
                "wait for more units, or ask for a quantile nearer the middle" if few else remedy(n),
            )


def units_of(numbers: MetricMoments, arm: str) -> int:
    """Units with a value in one arm, where a Moments' own n may count clusters."""
    if arm in numbers.units:
        return numbers.units[arm]
    if arm in numbers.quantiles:
        return numbers.quantiles[arm].n
    return numbers.moments[arm].n if arm in numbers.moments else 0


def decided_units(design: ExperimentDesign, data: ArmsData) -> int:
    """The units that the first primary metric is read on: what information is counted in."""
    numbers = data.metrics[design.primaries[0].name]
    return sum(units_of(numbers, arm) for arm in data.exposed)


# ---------------------------------------------------------------- many questions

_METHODS: Mapping[str, Callable[..., multiplicity.Corrected]] = {
    "primary": multiplicity.holm_family,
    "secondary": multiplicity.benjamini_hochberg_family,
}


def correct_families(readings: Sequence[Reading], alpha: float) -> None:
    """Fill in each reading's corrections: Holm over the primary questions, Benjamini-Hochberg over the secondary ones.

    A question is a metric in a contrast. Guardrails are not corrected: they are shown safe, not found harmed, and an
    error there is to let harm pass, which more tests do not make likelier for any one of them.
    """
    for part, method in _METHODS.items():
        asked = [
            (r, arm) for r in readings if r.use.part == part and r.use.metric.role != "vanity" for arm in r.differences
        ]
        if len(asked) < 2:
            continue

        def interval(i: int, level: float, asked: list[tuple[Reading, str]] = asked) -> tuple[float, float]:
            return asked[i][0].interval(asked[i][1], level)

        found = method(
            [r.p_value(arm) for r, arm in asked], interval, 1 - alpha, [r.differences[arm].value for r, arm in asked]
        )
        name: CorrectedBy = "holm" if part == "primary" else "benjamini-hochberg"
        for i, (r, arm) in enumerate(asked):
            low, high = found.intervals[i]
            r.corrections[arm] = Correction(name, len(asked), found.p_values[i], low, high)

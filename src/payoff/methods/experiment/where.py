"""Where: what the treated surface took from others, and what other experiments on the same units do to this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import numpy as np

from payoff import formats
from payoff.estimate import Estimate
from payoff.methods.experiment import who
from payoff.methods.experiment.design import ExperimentDesign, Reading
from payoff.methods.experiment.reading import Reader, plain_level, units_of
from payoff.result import Displacement, Interaction, PathGain, Refusal, Span
from payoff.stats import compare, heterogeneity, multiplicity
from payoff.stats import displacement as paths
from payoff.stats.compare import Difference
from payoff.stats.moments import Moments
from payoff.warehouse.measures import count_or_sum_unit

NAME = "cannibalisation"
OTHER = "(other)"


def window(design: ExperimentDesign) -> timedelta | None:
    """As long as the first primary metric is measured, so that the two can be held against each other."""
    return design.primaries[0].window


# ---------------------------------------------------------------- cannibalisation


def displacement(reader: Reader) -> tuple[tuple[Displacement, ...], list[Estimate], list[Refusal]]:
    design, wanted = reader.design, reader.design.experiment.cannibalisation
    if wanted is None:
        return (), [], []
    moments = reader.data.metrics[NAME].moments
    named = (*wanted.paths, OTHER)
    if design.experiment.cluster is not None:
        moments = {arm: _a_unit(m) for arm, m in moments.items() if m.n > 0 and m.mean[-1] > 0}
    treated = named.index(wanted.treated_path)
    unit = count_or_sum_unit(wanted, design.currency, design.entity)
    out: list[Displacement] = []
    estimates: list[Estimate] = []
    refusals: list[Refusal] = []
    for arm in reader.treatments:
        refused = f"experiments.{design.name}.{NAME}"
        least = max(design.min_cell, 2)
        few = [
            x
            for x in (arm, reader.control)
            if x not in moments or moments[x].n < 2 or units_of(reader.data.metrics[NAME], x) < least
        ]
        if few:
            refusals.append(Refusal(refused, f"arm '{few[0]}' has fewer than {least} units", "wait for more units"))
            continue
        try:
            alike = reader.rule.one_look(moments[arm].n + moments[reader.control].n, design.level)
            found = paths.displacement(moments[arm], moments[reader.control], treated, level=alike or design.level)
            if alike is None:
                found = replace(found, anyway=None, reason="so early a look leaves its interval without an end")
        except ValueError as error:
            refusals.append(Refusal(refused, str(error), f"check cannibalisation.by and paths over '{wanted.within}'"))
            continue
        observed = moments[arm].n + moments[reader.control].n

        def span(gap: Difference, n: int = observed) -> Span:
            return Span(gap.value, *reader.rule.interval(gap.value, gap.se, gap.df, n, design.level))

        gains = tuple(
            PathGain(
                named[k],
                k == treated,
                span(found.paths[k]),
                float(moments[reader.control].mean[k]),
                float(moments[arm].mean[k]),
            )
            for k in range(len(named))
            if found.paths[k].se > 0
        )
        silent = [named[k] for k in range(len(wanted.paths)) if found.paths[k].se == 0]
        nothing = f"; nothing varies on {', '.join(silent)}, so no figure is shown there" if silent else ""
        said = Displacement(
            contrast=f"{arm} vs {reader.control}",
            unit=unit,
            paths=gains,
            gained=span(found.gained),
            others=span(found.others),
            net=span(found.net),
            anyway=None if found.anyway is None else Span(found.anyway.value, found.anyway.low, found.anyway.high),
            reason=found.reason,
            sentence=_sentence(
                reader, arm, wanted.treated_path, unit, span(found.gained), span(found.others), span(found.net), found
            )
            + nothing,
        )
        out.append(said)
        n = {x: units_of(reader.data.metrics[NAME], x) for x in (arm, reader.control)}
        for label, gap in (
            ("gained on the treated path", found.gained),
            ("on other paths", found.others),
            ("net", found.net),
        ):
            estimates.append(
                Estimate(
                    estimand=f"difference in means, {label}",
                    metric=NAME,
                    contrast=said.contrast,
                    value=gap.value,
                    unit=unit,
                    uncertainty=reader.rule.uncertainty(gap.value, gap.se, gap.df, observed, design.level),
                    interval_kind=reader.rule.interval_kind,
                    n=n,
                    level=design.level,
                )
            )
    return tuple(out), estimates, refusals


def _a_unit(m: Moments) -> Moments:
    """Clusters' totals, their size last, as what a unit has on each path: totals over units, linearised (Deng, Knoblich, Lu
    2018), so that means and their covariance are those of ratios of totals."""
    size = float(m.mean[-1])
    means = m.mean[:-1] / size
    weights = np.column_stack([np.eye(m.k - 1), -means]) / size
    return Moments(m.n, means, weights @ m.cov @ weights.T)


def _sentence(
    reader: Reader, arm: str, treated: str, unit: str, gained: Span, others: Span, net: Span, found: paths.Displaced
) -> str:
    what = formats.unit(unit)

    def written(s: Span) -> str:
        text = formats.written(s.value, s.low, s.high, what, change=True)
        return f"{text.value} ({text.range})"

    said = f"{formats.capital(treated)} gained {written(gained)} a {reader.design.entity} in {arm}, other paths changed by {written(others)}, the net is {written(net)}"
    if found.anyway is None:
        return f"{said}; what share would have happened anyway cannot be told: {found.reason}"
    a = found.anyway
    return (
        f"{said}; of what is attributed to {treated}, {formats.written(a.value, a.low, a.high, formats.RELATIVE).value} would have"
        f" happened anyway ({formats.level(reader.design.level)} interval {formats.written(a.value, a.low, a.high, formats.RELATIVE).range})"
    )


# ---------------------------------------------------------------- interactions


def interactions(reader: Reader, readings: list[Reading]) -> tuple[Interaction, ...]:
    """Each other experiment: do the assignments depend on each other, do the effects? One Holm family over the effects."""
    design, out = reader.design, []
    names = {u.name for u in design.primaries}
    for other in design.beside:
        counts = reader.data.beside.get(other.name, {})
        both = sum(counts.values())
        if 0 < both < design.min_cell:
            counts, both = {}, 0  # a group too small to be shown is as good as none
        for r in (r for r in readings if r.use.name in names and not reader.data.metrics[r.use.name].quantiles):
            cells = reader.data.metrics[r.use.name].beside.get(other.name, {})
            dependence, why = _dependence(counts, who.design_effect(reader, r))
            for arm in r.differences:
                for theirs in sorted({b for _, b in counts if b != other.control} or {""}):
                    gap, reason = _effect(reader, r, cells, arm, theirs, other.control)
                    count = sum(m.n for m in cells.values())
                    out.append(
                        Interaction(
                            other=other.name,
                            metric=r.use.name,
                            contrast=f"{arm} vs {reader.control}",
                            other_contrast=f"{theirs} vs {other.control}",
                            unit=r.unit,
                            both=both,
                            assignment_statistic=None if dependence is None else dependence.statistic,
                            assignment_p=None if dependence is None else dependence.p_value,
                            difference=None
                            if gap is None
                            else Span(gap.value, *reader.rule.interval(gap.value, gap.se, gap.df, count, design.level)),
                            p_value=None if gap is None else reader.rule.p_value(gap.value, gap.se, gap.df, count),
                            adjusted_p=None,
                            reason=why or reason,
                            sentence="",
                        )
                    )
    raw = [(i, x.p_value) for i, x in enumerate(out) if x.p_value is not None]
    adjusted = dict(zip((i for i, _ in raw), multiplicity.holm([p for _, p in raw]), strict=True)) if raw else {}
    return tuple(_said(x, adjusted.get(i), design.alpha) for i, x in enumerate(out))


def _dependence(counts: Mapping[tuple[str, str], int], effect: float) -> tuple[compare.ChiSquare | None, str]:
    mine, theirs = sorted({a for a, _ in counts}), sorted({b for _, b in counts})
    if len(mine) < 2 or len(theirs) < 2:
        return (
            None,
            "the units that are in both experiments are in one arm only of one of them"
            if counts
            else "no unit is in both experiments",
        )
    return heterogeneity.assignment_dependence([[counts.get((a, b), 0) for b in theirs] for a in mine], effect), ""


def _effect(
    reader: Reader, r: Reading, cells: Mapping[tuple[str, str], Moments], arm: str, theirs: str, their_control: str
) -> tuple[Difference | None, str]:
    wanted = [(arm, theirs), (reader.control, theirs), (arm, their_control), (reader.control, their_control)]
    least = max(reader.design.min_cell, 2)
    levels = []
    for cell in wanted:
        m = cells.get(cell)
        if m is None or m.n < least:
            return None, f"fewer than {least} units are in {cell[0]} here and {cell[1]} there"
        try:
            levels.append(plain_level(reader.design, r.use, m))
        except ValueError as error:
            return None, f"units in {cell[0]} here and {cell[1]} there: {error}"
    return heterogeneity.effect_interaction(*levels), ""


def _said(x: Interaction, adjusted: float | None, alpha: float) -> Interaction:
    other, unit = formats.human(x.other), formats.unit(x.unit)
    parts = []
    if x.assignment_p is not None and x.assignment_p < 0.001:
        parts.append(
            f"who was in which arm of {other} depends on the arm here ({formats.p_value(x.assignment_p)}): the two are not independent"
        )
    if x.difference is None:
        parts.append(f"whether {other} changes the effect on {formats.human(x.metric)} cannot be told: {x.reason}")
    else:
        d = formats.written(x.difference.value, x.difference.low, x.difference.high, unit, change=True)
        found = adjusted is not None and adjusted <= alpha
        verb = "differs" if found else "is not shown to differ"
        p = "" if adjusted is None else f"; {formats.p_value(adjusted, alpha)}"
        parts.append(
            f"the effect on {formats.human(x.metric)} {verb} between the arms of {other} (by {d.value}, interval {d.range}{p};"
            f" {x.both:,} units are in both)"
        )
    return replace(x, adjusted_p=adjusted, sentence=formats.capital("; ".join(parts)))

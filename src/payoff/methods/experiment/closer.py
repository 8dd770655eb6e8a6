"""Closer looks at single figures: what adjustment did, a Bayesian reading, the effect on everyone, heavy tails, what would overturn it."""

from __future__ import annotations

from payoff import formats
from payoff.estimate import Estimate, Normal
from payoff.methods.experiment.design import Reading, improvement
from payoff.methods.experiment.reading import Reader, plain_level
from payoff.result import Capping, Check, Closer, Diluted, Posterior, Precision, Refusal, Span
from payoff.stats import adjust, compare
from payoff.stats import bayes as bayesian


def precision(reader: Reader, readings: list[Reading]) -> tuple[Precision, ...]:
    out = []
    for r in readings:
        if r.adjusted is None:
            continue
        for arm, gap in r.differences.items():
            raw = compare.difference(r.plain[arm], r.plain[reader.control])
            low, high = reader.rule.interval(raw.value, raw.se, raw.df, r.count(arm), reader.design.level)
            reduction = 1 - (gap.se / raw.se) ** 2
            factor = (raw.se / gap.se) ** 2
            metric = formats.human(r.use.name)
            narrower = 1 - gap.se / raw.se
            by = "post-stratification" if _stratified(reader) else "regression"
            of = metric if len(r.differences) == 1 else f"{metric} ({arm} vs {reader.control})"
            worth = f"{factor:.1f} times the units" if factor >= 1.5 else f"{factor - 1:.0%} more units"
            said = (
                f"Adjustment made the interval of {of} {narrower:.0%} shorter, worth {worth}"
                if narrower >= 0.005
                else f"Adjustment changed the interval of {of} by less than 1%"
                if narrower > -0.005
                else f"Adjustment made the interval of {of} {-narrower:.0%} longer: what it is adjusted for explains too little"
            )
            out.append(
                Precision(
                    metric=r.use.name,
                    contrast=f"{arm} vs {reader.control}",
                    unit=r.unit,
                    by=by,
                    covariates=r.covariates,
                    plain=Span(raw.value, low, high),
                    se=gap.se,
                    plain_se=raw.se,
                    variance_reduction=reduction,
                    units_factor=factor,
                    sentence=said,
                )
            )
    return tuple(out)


def _stratified(reader: Reader) -> bool:
    wanted = reader.design.experiment.adjust
    return wanted is not None and wanted.post_stratify is not None


# ---------------------------------------------------------------- Bayes


def bayes(reader: Reader, readings: list[Reading]) -> tuple[tuple[Posterior, ...], list[Estimate], list[Refusal]]:
    design, prior = reader.design, reader.design.experiment.bayes
    if prior is None:
        return (), [], []
    out: list[Posterior] = []
    estimates: list[Estimate] = []
    refusals: list[Refusal] = []
    names = {u.name for u in design.primaries}
    for r in (r for r in readings if r.use.name in names):
        for arm in r.differences:
            lift = compare.relative_lift(
                r.levels[arm], r.levels[reader.control], design.level, covariance=r.between(arm, reader.control)
            )
            if isinstance(lift, compare.NoRelativeLift):
                refusals.append(
                    Refusal(
                        f"experiments.{design.name}.{r.use.name}",
                        f"there is no Bayesian reading of {arm}, whose prior is on the relative lift: {lift.reason}",
                        "read the difference, or wait until the control is clear of zero",
                    )
                )
                continue
            if isinstance(lift, compare.LogDelta):
                se = lift.se_log * (1 + lift.value)  # the delta method, back on the lift's own scale
            else:
                se = (lift.high - lift.low) / 2 / Normal(1.0, r.differences[arm].df).interval(0.0, lift.level)[1]
            found = bayesian.normal_posterior(lift.value, se, prior.mean, prior.sd)
            low, high = found.interval(design.level)
            chance, loss = found.chance_to_beat(r.use.sign), found.expected_loss(r.use.sign)
            text = formats.written(found.mean, low, high, formats.RELATIVE, change=True)
            contrast = f"{arm} vs {reader.control}"
            said = (
                f"Under a normal prior on the lift with mean {prior.mean:+.1%} and standard deviation {prior.sd:.1%}, stated before:"
                f" {formats.probability(chance)} that {arm} is better on {formats.human(r.use.name)}; lift {text.value}"
                f" ({formats.level(design.level)} credible interval {text.range}); choosing it loses {formats.loss(loss)} on average, where it is better counted as no loss"
            )
            out.append(
                Posterior(
                    metric=r.use.name,
                    contrast=contrast,
                    prior_mean=prior.mean,
                    prior_sd=prior.sd,
                    lift=Span(found.mean, low, high),
                    level=design.level,
                    chance_to_beat=chance,
                    expected_loss=loss,
                    sentence=said,
                )
            )
            estimates.append(
                Estimate(
                    estimand="relative lift, posterior",
                    metric=r.use.name,
                    contrast=contrast,
                    value=found.mean,
                    unit="relative",
                    uncertainty=Normal(found.sd),
                    interval_kind="credible",
                    n={arm: r.units[arm], reader.control: r.units[reader.control]},
                    level=design.level,
                )
            )
    return tuple(out), estimates, refusals


# ---------------------------------------------------------------- everyone


def diluted(reader: Reader, readings: list[Reading]) -> tuple[tuple[Diluted, ...], list[Estimate], list[Refusal]]:
    """A triggered effect on everyone assigned: those who never triggered saw nothing different, so theirs is zero."""
    design, data = reader.design, reader.data
    if design.experiment.trigger is None:
        return (), [], []
    out: list[Diluted] = []
    estimates: list[Estimate] = []
    refusals: list[Refusal] = []
    everyone = {arm: data.exposed[arm] + data.untriggered.get(arm, 0) for arm in data.exposed}
    for r in readings:
        if r.use.metric.kind not in ("count", "sum", "conversion", "retention"):
            refusals.append(
                Refusal(
                    f"experiments.{design.name}.{r.use.name}",
                    f"the effect on everyone is not the triggered effect times a share for a {r.use.metric.kind}",
                    "read the triggered effect, or a count, a sum or a conversion for the total",
                )
            )
            continue
        for arm, gap in r.differences.items():
            pair = (arm, reader.control)
            found = adjust.diluted(gap, {x: data.exposed[x] for x in pair}, {x: everyone[x] for x in pair})
            low, high = reader.rule.interval(
                found.difference.value, found.difference.se, found.difference.df, r.count(arm), design.level
            )
            share_low, share_high = found.share.interval(design.level)
            text = formats.written(found.difference.value, low, high, formats.unit(r.unit), change=True)
            contrast = f"{arm} vs {reader.control}"
            out.append(
                Diluted(
                    metric=r.use.name,
                    contrast=contrast,
                    unit=r.unit,
                    share=Span(found.share.value, share_low, share_high),
                    difference=Span(found.difference.value, low, high),
                    sentence=f"{found.share.value:.1%} of those assigned triggered; over everyone the difference in"
                    f" {formats.human(r.use.name)} is {text.value} ({formats.level(design.level)} interval {text.range})",
                )
            )
            estimates.append(
                Estimate(
                    estimand="difference in means, everyone assigned",
                    metric=r.use.name,
                    contrast=contrast,
                    value=found.difference.value,
                    unit=r.unit,
                    uncertainty=r.rule.uncertainty(
                        found.difference.value, found.difference.se, found.difference.df, r.count(arm), design.level
                    ),
                    interval_kind=r.rule.interval_kind,
                    n={x: everyone[x] for x in pair},
                    level=design.level,
                )
            )
    return tuple(out), estimates, refusals


# ---------------------------------------------------------------- heavy tails


def capping(reader: Reader, readings: list[Reading]) -> tuple[Capping, ...]:
    out = []
    for r in readings:
        numbers = reader.data.metrics[r.use.name]
        if numbers.if_capped is None or reader.design.experiment.cluster is not None:
            continue
        capped = numbers.if_capped
        share = capped.share
        for arm in r.differences:
            pair = (arm, reader.control)
            raw = compare.difference(r.plain[arm], r.plain[reader.control])
            try:
                of_arm, of_control = (plain_level(reader.design, r.use, capped.moments[x]) for x in pair)
                cut = compare.difference(of_arm, of_control)
            except (ValueError, KeyError):
                continue  # a cap that leaves nothing to vary says nothing
            n = r.count(arm)
            plain = Span(raw.value, *reader.rule.interval(raw.value, raw.se, raw.df, n, reader.design.level))
            less = Span(cut.value, *reader.rule.interval(cut.value, cut.se, cut.df, n, reader.design.level))
            unit = formats.unit(r.unit)
            before, after = (formats.written(s.value, s.low, s.high, unit, change=True) for s in (plain, less))
            out.append(
                Capping(
                    metric=r.use.name,
                    contrast=f"{arm} vs {reader.control}",
                    unit=r.unit,
                    share=min(share, 1.0),
                    cap=capped.cap,
                    above=capped.above,
                    plain=plain,
                    capped=less,
                    sentence=f"{formats.human(r.use.name)} has a heavy tail: its largest unit makes {min(share, 1.0):.0%} of an arm's"
                    f" variance. A cap at {formats.rounded(capped.cap, unit)} (the 99th percentile of those above zero; {capped.above:,}"
                    f" units lie above) would give {after.value} ({after.range}) instead of {before.value} ({before.range})",
                )
            )
    return tuple(out)


# ---------------------------------------------------------------- what would overturn it


def overturn(reader: Reader, readings: list[Reading], closer: Closer, failed: list[Check]) -> tuple[str, ...]:
    """What would take the finding away: each a sentence, the nearest first."""
    design, control = reader.design, reader.control
    if failed:
        return (f"Nothing is concluded while a check fails: {failed[0].name.replace('_', ' ')}.",)
    names = {u.name for u in design.primaries}
    out: list[str] = []
    for r in (r for r in readings if r.use.name in names):
        unit, metric = formats.unit(r.unit), formats.human(r.use.name)
        for arm, gap in r.differences.items():
            contrast = f"{arm} vs {control}"
            better, best = improvement(r, arm, design.level)
            if better > 0 or best < 0:
                room = better if better > 0 else -best
                share = room / abs(gap.value)
                size = formats.written(room, room * 0.95, room * 1.05, unit, change=True).value
                out.append(
                    f"A bias of {formats.size(size)} ({share:.0%} of the effect) against {contrast} in {metric} would be enough: from units"
                    " lost unevenly, an event recorded in one arm only, or a read-out chosen for its result."
                )
                low, high = r.interval(arm, design.level)
                if r.adjusted is not None:
                    raw = compare.difference(r.plain[arm], r.plain[control])
                    plain = reader.rule.interval(raw.value, raw.se, raw.df, r.count(arm), design.level)
                    if plain[0] <= 0 <= plain[1]:
                        out.append(f"Without adjustment the interval of {metric} ({contrast}) holds zero.")
            else:
                low, high = r.interval(arm, design.level)
                if low > 0 or high < 0:
                    of = r.corrections[arm].of
                    out.append(
                        f"Read alone, {metric} ({contrast}) would have been conclusive; as one of {of} questions it is not."
                    )
                else:
                    text = formats.written(gap.value, low, high, unit, change=True)
                    out.append(
                        f"{formats.capital(metric)} ({contrast}) is open: any difference in {text.range} remains possible; more units, or a"
                        " sharper metric, would settle it."
                    )
    out += [
        f"{formats.human(c.metric)} ({c.contrast}): a cap on the largest values changes the conclusion."
        for c in closer.capping
        if c.metric in names and (c.plain.low * c.plain.high > 0) != (c.capped.low * c.capped.high > 0)
    ]
    out += [f"{table.sentence}." for table in closer.segments if table.flip != "none"]
    out += [f"{series.sentence}." for series in closer.over_time if series.pattern == "wears off"]
    peeking = closer.peeking
    if peeking is not None and peeking.rule == "fixed" and len({x.units for x in peeking.looks}) > 1:
        out.append(f"{peeking.sentence}.")
    lost = reader.data.several_arms
    total = sum(reader.data.exposed.values())
    if lost and lost / (total + lost) > 0.01:
        out.append(
            f"{lost:,} units were left out because they saw several arms; if those differ by arm, so does the comparison."
        )
    return tuple(out)

"""What can be checked about an experiment from its own data. Each check is one sentence with its count."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from payoff import formats
from payoff.estimate import t_quantile
from payoff.methods.experiment.design import ExperimentDesign, MetricUse, Reading
from payoff.methods.experiment.reading import Reader, units_of
from payoff.methods.experiment.when import around_of
from payoff.methods.experiment.who import design_effect, few_units_checks, size_column
from payoff.result import Check, Closer
from payoff.spec import nouns
from payoff.stats import adjust, compare
from payoff.stats.moments import Moments
from payoff.warehouse.measures import metric_need
from payoff.warehouse.needs import ROWS, ArmsData, MetricMoments
from payoff.warehouse.sources import from_us, to_us

SRM_ALARM = 0.001
"""Below this p the arms' sizes are not what was planned (Fabijan et al. 2019, "Diagnosing sample ratio mismatch")."""

_DAY_US = 86_400_000_000
_UNREAD_OPENS = re.compile(r"(^|_)opens?(_|$)", re.IGNORECASE)


def run_checks(reader: Reader, readings: list[Reading], closer: Closer) -> list[Check]:
    design, data = reader.design, reader.data
    return [
        _srm(reader, readings),
        *_row_checks(design, data),
        _freshness_check(design, data, readings),
        *_plan_checks(reader, readings, closer),
        *_value_checks(reader, readings),
        *few_units_checks(reader, readings, closer.segments),
        *_distribution_checks(design, data, readings, closer),
        *_adjustment_checks(reader, readings),
        *_structure_checks(design, data, readings, closer),
        _order_check(reader, readings),
        *_trust_checks(readings),
    ]


def _srm(reader: Reader, readings: list[Reading]) -> Check:
    """Are the arms of the planned sizes, and did as many trigger in each? Counted are what was assigned: clusters, or units.

    Units of clusters would be counted as independent: with 10 in each a fair split fails every third time.
    """
    design, data = reader.design, reader.data
    split = design.experiment.assignment.split
    assigned = {arm: n + data.untriggered.get(arm, 0) for arm, n in data.exposed.items()}
    of = ""
    counts = assigned
    if data.cluster is not None and set(data.cluster.clusters) == set(assigned):
        counts, of = dict(data.cluster.clusters), f" {formats.human(design.experiment.cluster or '')}s"
    triggers = _trigger_shares(reader, readings, assigned)
    if triggers is not None and triggers.status == "fail":
        return triggers
    if split is None and design.experiment.type == "holdout":
        return triggers or Check(
            "srm", "not-run", None, "no split is declared for this holdout, so its size has nothing to be held against"
        )
    shares = {arm: (split[arm] if split else 1.0) for arm in counts}
    test = compare.srm(counts, shares)
    total, planned = sum(counts.values()), sum(shares.values())
    seen = ", ".join(
        f"{arm} {n:,}{of} ({formats.exact(round(n / total, 4), formats.unit('share'))}, planned"
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
    also = "" if triggers is None else f"; {triggers.detail}"
    return Check(
        "srm",
        "pass",
        test.statistic,
        f"arms have the planned sizes: {seen}{basis}; {formats.p_value(test.p_value)}{also}",
    )


def _trigger_shares(reader: Reader, readings: list[Reading], assigned: Mapping[str, int]) -> Check | None:
    """Does the share of assigned units that trigger differ between arms? None where all did, or there is no trigger."""
    data = reader.data
    if not sum(data.untriggered.values()):
        return None
    # sizes are known of triggered units only: at worst their clusters were larger before, by as much as did not trigger
    effect = max(design_effect(reader, r) for r in readings)
    effect *= sum(assigned.values()) / sum(data.exposed.values()) if effect > 1 else 1.0
    test = compare.missingness(data.exposed, assigned, effect)
    shares = ", ".join(f"{arm} {data.exposed[arm] / assigned[arm]:.2%}" for arm in sorted(assigned))
    if test.p_value < SRM_ALARM:
        return Check(
            "srm",
            "fail",
            test.statistic,
            f"the share of assigned units that trigger differs between arms: {shares}; {formats.p_value(test.p_value)}. The arm"
            " changes who triggers, or the trigger is not recorded alike, so those who triggered are not comparable",
        )
    return Check(
        "srm", "pass", test.statistic, f"as many trigger in each arm: {shares}; {formats.p_value(test.p_value)}"
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
        elif check == "missing_ids" and column == ROWS:
            out.append(Check(check, "not-run", None, f"'{source}' has no id column: each of its rows is a unit"))
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
    out += [_clock_check(design, data), _dates_check(design, data)]
    return out


def _clock_check(design: ExperimentDesign, data: ArmsData) -> Check:
    """Times in the future would make every window look closed."""
    if not design.timed or design.now_us is None:
        return Check("clock", "not-run", None, "there is no clock to look at")
    aware = [p.name for p in data.sources.values() if p.clock is not None and "ZONE" in p.clock]
    naive = [
        p.name
        for p in data.sources.values()
        if p.clock is not None and p.clock.startswith("TIMESTAMP") and "ZONE" not in p.clock and not p.declared_zone
    ]
    if aware and naive:
        return Check(
            "clock",
            "warn",
            float(len(naive)),
            f"times of {', '.join(sorted(aware))} have a zone and those of {', '.join(sorted(naive))} do not: these are read in"
            f" {design.zone}, and if that is wrong every window is shifted. Say it on the source: timezone: ZONE",
        )
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


def _freshness_check(design: ExperimentDesign, data: ArmsData, readings: list[Reading]) -> Check:
    """Does a source end long before the last windows that are counted as closed? Then it may have been loaded late."""
    if data.as_of_us is None or data.last_us is None:
        return Check("freshness", "not-run", None, "there is no clock to look at")
    stale: dict[str, float] = {}
    for r in readings:
        need = metric_need(r.use.name, r.use.metric, r.use.window, design.default_window)
        for measure in need.measures:
            profile, horizon = data.sources[measure.source], measure.horizon_us
            if profile.last_us is None or profile.declared_through or horizon is None:
                continue
            gap = min(data.as_of_us, data.last_us + horizon) - profile.last_us
            if gap > max(horizon / 2, _DAY_US):
                stale[profile.name] = max(stale.get(profile.name, 0.0), gap / _DAY_US)
    if not stale:
        return Check("freshness", "pass", 0.0, "every source goes on to the end of the windows that are counted")
    listed = ", ".join(f"'{name}' ends {days:,.1f} days before" for name, days in stale.items())
    return Check(
        "freshness",
        "warn",
        max(stale.values()),
        f"{listed} the last windows that are counted as closed: nothing may have happened, or the rows were loaded late and these"
        " units look worse than they are. Say up to when it is complete: through: TIME",
    )


def _dates_check(design: ExperimentDesign, data: ArmsData) -> Check:
    """A date is midnight: what happened later on the day of exposure then lies before it."""
    exposed = data.sources[design.source].clock
    dated = [p.name for p in data.sources.values() if p.clock == "DATE" and p.name != design.source]
    if exposed in (None, "DATE") or not dated:
        return Check("dates", "pass", 0.0, "no source is dated by the day where exposures have times")
    return Check(
        "dates",
        "warn",
        float(len(dated)),
        f"{', '.join(dated)}: rows have a date and no time, and exposures have times; a row on the day of exposure counts as before"
        ' it and is left out. Give times, or make exposures dates too: time: "CAST(... AS DATE)"',
    )


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


def _plan_checks(reader: Reader, readings: list[Reading], closer: Closer) -> list[Check]:
    design, data, control = reader.design, reader.data, reader.control
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
    out += [_planned_stop(design, data, closer), _peeking(closer)]
    stop = design.experiment.stop
    primary = next((r for r in readings if r.use.part == "primary"), None)
    if primary is None:
        out.append(
            Check("planned_size", "not-run", None, "no primary metric is declared that a size could be planned for")
        )
        return out
    chance = 0.8 if stop is None else stop.power
    for arm, gap in primary.differences.items():
        t, c = primary.levels[arm], primary.levels[control]
        unit, n = formats.unit(primary.unit), primary.n(arm, control)
        asked = 1 if arm not in primary.corrections else primary.corrections[arm].of
        level = 1 - design.alpha / asked  # as it is planned: each of several questions has its share of the error
        if primary.rule.kind == "fixed" and primary.between(arm, control) == 0:
            achieved = compare.minimum_detectable_effect(
                t.unit_variance, t.n, c.unit_variance, c.n, level=level, power_wanted=chance
            )
        else:  # the interval as it is, and the normal quantile of the power on top
            low, high = primary.interval(arm, level)
            achieved = (high - low) / 2 + gap.se * t_quantile(chance, math.inf)
        reached = formats.size(formats.written(achieved, achieved * 0.95, achieved * 1.05, unit, change=True).value)
        if stop is None or stop.mde is None:
            detail = (
                f"{arm} vs {control}: {n:,} units are enough to find {reached} in {primary.use.name} with {chance:.0%} power; no smallest"
                " effect worth finding (stop.mde) was registered to hold that against"
            )
            out.append(Check("planned_size", "not-run", achieved, detail))
            continue
        planned = formats.size(formats.exact(stop.mde, unit, change=True))
        needed = math.ceil(n * (achieved / stop.mde) ** 2)
        out.append(
            Check(
                "planned_size",
                "pass" if achieved <= stop.mde else "warn",
                achieved,
                f"{arm} vs {control}: planned to find {planned} in {primary.use.name} with {chance:.0%} power, which takes about"
                f" {needed:,} units; {n:,} are in, enough for {reached}",
            )
        )
    return out


def _planned_stop(design: ExperimentDesign, data: ArmsData, closer: Closer) -> Check:
    """What was registered against what happened."""
    stop, name = design.experiment.stop, "planned_stop"
    if stop is None or (stop.rule == "fixed" and stop.at is None and stop.n is None):
        return Check(
            name, "not-run", None, "no stop was registered: nobody can tell whether this read-out was the planned one"
        )
    if stop.rule == "always_valid":
        return Check(name, "pass", None, "the intervals are valid at any time, so there is no planned moment to miss")
    if stop.rule == "group_sequential":
        looks = closer.peeking.looks if closer.peeking is not None else ()
        sizes = {look.units for look in looks}
        share = closer.peeking.information if closer.peeking is not None else None
        assert stop.looks is not None
        assert stop.n is not None
        if len(sizes) > stop.looks:
            return Check(
                name,
                "warn",
                float(len(sizes)),
                f"{len(sizes)} looks were made and {stop.looks} were planned; the error is spent by what is in, so it still holds,"
                " but later looks have little left to spend",
            )
        if share is not None and share > 1.1:
            return Check(
                name,
                "warn",
                share,
                f"{share:.0%} of the {stop.n:,} planned units are in: the plan was over before this look",
            )
        return Check(
            name,
            "pass",
            share,
            f"look {len(sizes)} of at most {stop.looks}, with {share or 0:.0%} of the {stop.n:,} planned units",
        )
    early: list[str] = []
    if stop.at is not None and data.as_of_us is not None and data.as_of_us < to_us(stop.at, design.zone):
        days = (to_us(stop.at, design.zone) - data.as_of_us) / 86_400e6
        early.append(f"{days:,.1f} days before the planned stop ({stop.at:%Y-%m-%d})")
    if stop.n is not None:
        # exposed units whose window is open are in no figure, so they have not come yet
        numbers = data.metrics[design.primaries[0].name]
        closed = sum(numbers.eligible.values())
        waiting = sum(numbers.ineligible.values())
        if closed < stop.n:
            windows = f" (the window of {waiting:,} others is still open)" if waiting else ""
            early.append(f"with {closed:,} of the {stop.n:,} planned units{windows}")
    return Check(
        name,
        "warn" if early else "pass",
        None,
        f"read {' and '.join(early)}: an interval for one planned look is too narrow when looked at early"
        if early
        else "read at or after the planned stop",
    )


def _peeking(closer: Closer) -> Check:
    seen = closer.peeking
    if seen is None:
        return Check("peeking", "not-run", None, "no ledger tells who looked before")
    sizes = {look.units for look in seen.looks}
    others = sorted({look.by for look in seen.looks if look.by})
    who = f" (by {', '.join(others)})" if others else ""
    early = seen.rule == "fixed" and len(sizes) > 1
    return Check(
        "peeking", "warn" if early else "pass", seen.error if seen.rule == "fixed" else None, f"{seen.sentence}{who}"
    )


def _value_checks(reader: Reader, readings: list[Reading]) -> list[Check]:
    data, control = reader.data, reader.control
    out: list[Check] = []
    for r in readings:
        numbers: MetricMoments = data.metrics[r.use.name]
        having = {arm: units_of(numbers, arm) for arm in r.levels}
        eligible = {arm: numbers.eligible[arm] for arm in having}
        # a ratio of sums stays a fair comparison when fewer units take part; an average over those who do does not
        if having == eligible or r.use.metric.kind in ("ratio", "rate", "quantile"):
            continue
        test = compare.missingness(having, eligible, design_effect(reader, r))
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
    doubts: list[Check] = []
    for r in readings:
        if r.use.metric.kind in ("nps", "quantile"):  # the rule is for means of what is never below zero
            continue
        for arm in r.differences:
            pair, names = (r.plain[arm], r.plain[control]), (arm, control)  # skewness is of the values themselves
            doubt = compare.normal_approximation_doubtful(*pair, names=names)
            lift = doubt or compare.normal_approximation_doubtful(*pair, relative=True, names=names)
            if lift is not None:
                doubts.append(
                    Check("few_units", "warn", None, f"{r.use.name}{'' if doubt else ' (relative lift)'}: {lift}")
                )
    return [*out, *(doubts or [Check("few_units", "pass", None, "enough units for normal intervals")])]


def _distribution_checks(
    design: ExperimentDesign, data: ArmsData, readings: list[Reading], closer: Closer
) -> list[Check]:
    """Values that were not to be expected: below zero where money is added up, or one unit that outweighs the rest."""
    sums = [r.use.name for r in readings if r.use.metric.kind in ("sum", "mean", "ratio")]
    below = {name: n for name in sums if (n := data.metrics[name].negative)}
    listed = "; ".join(
        f"{name}: {n:,} units are below zero"
        + (
            "" if design.min_cell > 1 else f" (the lowest is {min(data.metrics[name].lowest):,.4g})"
        )  # one person's figure
        for name, n in below.items()
    )
    out = [
        Check(
            "negative_values",
            "warn" if below else "pass" if sums else "not-run",
            float(sum(below.values())) if sums else None,
            f"{listed}; refunds and returns make such values, and so do errors: they count as they are, and a cap cuts from above only"
            if below
            else "no unit is below zero"
            if sums
            else "no metric here adds up values",
        )
    ]
    heavy = {c.metric: c for c in closer.capping}
    out += [Check("heavy_tail", "warn", c.share, c.sentence) for c in heavy.values()]
    if not heavy:
        out.append(Check("heavy_tail", "pass", None, "no single unit makes more than 5% of a metric's variance"))
    return out


_BALANCE_DOUBT = 0.01


def _adjustment_checks(reader: Reader, readings: list[Reading]) -> list[Check]:
    """Were the arms alike before exposure, and could what was known then be used?"""
    design, data = reader.design, reader.data
    wanted = design.experiment.adjust
    out: list[Check] = []
    if wanted is None or wanted.post_stratify is not None:
        why = "nothing known before exposure is read" if wanted is None else "classes are compared one by one"
        out.append(Check("balance", "not-run", None, why))
    else:
        tested = [r for r in readings if data.metrics[r.use.name].covariates]
        # who has a value is an outcome too: those who have one may differ before exposure because the treatment chose them
        whole = [r for r in tested if not sum(data.metrics[r.use.name].without.values())]
        chosen, tested = not whole, whole or tested
        worst: tuple[float, str, float] | None = None
        for r in tested:
            numbers = data.metrics[r.use.name]
            found = adjust.balance({arm: numbers.moments[arm] for arm in r.plain}, len(numbers.covariates))
            if found is not None and (worst is None or found.p_value < worst[0]):
                worst = (found.p_value, numbers.covariates[found.worst], found.standardised)
        if worst is None:
            out.append(Check("balance", "not-run", None, "nothing that was known before exposure varies between units"))
        else:
            # the smallest of several p-values: Bonferroni's bound on how unusual that is
            p = min(1.0, worst[0] * len(tested))
            alike = p >= _BALANCE_DOUBT
            why = (
                "only units that have a value are read, and the treatment may have changed who has one"
                if chosen
                else "the assignment was not random, or exposure is logged late in one arm"
            )
            out.append(
                Check(
                    "balance",
                    "pass" if alike else "fail" if p < SRM_ALARM and not chosen else "warn",
                    p,
                    f"before exposure the arms were alike ({formats.p_value(p)})"
                    if alike
                    else f"before exposure the arms already differed ({formats.p_value(p)}), most in {worst[1]}"
                    f" ({worst[2]:+.2f} standard deviations): {why}",
                )
            )
    told: list[Check] = []
    for profile in data.attributes.values():
        parts = []
        if profile.refused is not None:
            parts.append(profile.refused)
        if profile.future:
            parts.append(f"{profile.future:,} units have only values from after exposure, which are not used")
        if profile.ambiguous:
            parts.append(f"{profile.ambiguous:,} units have several values and no time to choose by")
        if profile.missing:
            parts.append(f"{profile.missing:,} units have no value")
        if profile.refused is not None or profile.future or profile.ambiguous:
            told.append(Check("covariates", "warn", float(profile.missing), f"{profile.name}: {'; '.join(parts)}"))
    gaps = [
        f"{profile.name}: {profile.missing:,} units have no value"
        for profile in data.attributes.values()
        if profile.missing
    ]
    told += [
        Check("covariates", "warn", None, f"{r.use.name} is not adjusted: {r.unadjusted_because}")
        for r in readings
        if r.unadjusted_because
    ]
    for r in readings:
        for classes in r.adjusted.merged if r.adjusted is not None else ():
            why = "too few units in some arm to be compared alone"
            told.append(
                Check("covariates", "warn", None, f"{r.use.name}: {' and '.join(classes)} are taken together: {why}")
            )
    if not told:
        asked = bool(data.attributes) or wanted is not None
        told = [
            Check(
                "covariates",
                "pass" if asked else "not-run",
                None,
                "; ".join(["what was known before exposure can be used", *gaps])
                if asked
                else "nothing known before exposure is read",
            )
        ]
    return [*out, *told]


FEW_CLUSTERS = 20
"""Even clusters in an arm below which their own scatter is poorly known (Cameron, Gelbach, Miller 2008 put trouble at 5 to 30)."""


def even_clusters(sizes: Moments) -> float:
    """As how many clusters of one size an arm's clusters count, from the Moments of their sizes.

    n / (1 + G), G the squared coefficient of variation of what each adds to the variance (Carter, Schnepel, Steigerwald 2017,
    "Asymptotic behavior of a t-test robust to cluster heterogeneity"): sizes m where units of a cluster are not alike, m^2
    where they are. With c the squared coefficient of variation of m, 1 + G is then 1 + c, or (1 + c)^4 for lognormal m; how
    alike they are is not known here, so it is taken as (1 + c)^2.
    """
    mean, var = float(sizes.mean[0]), float(sizes.var[0])
    return sizes.n / (1 + var / mean**2) ** 2 if mean > 0 else 0.0


def _structure_checks(design: ExperimentDesign, data: ArmsData, readings: list[Reading], closer: Closer) -> list[Check]:
    out: list[Check] = []
    clusters = data.cluster
    if clusters is None:
        out.append(Check("clusters", "not-run", None, "units were assigned one by one"))
    else:
        fewest = min(clusters.clusters.values(), default=0)
        total = sum(clusters.clusters.values())
        even = float(fewest)
        for r in readings:
            numbers = data.metrics[r.use.name]
            if not numbers.quantiles:
                sizes = [numbers.moments[arm].take([size_column(r)]) for arm in r.levels]
                even = min(even, *(even_clusters(m) for m in sizes))
        few = even < FEW_CLUSTERS
        bad = few or clusters.largest > 0.2 or clusters.several_arms > 0 or clusters.without > 0
        parts = [
            f"{total:,} clusters ({', '.join(f'{arm} {n:,}' for arm, n in sorted(clusters.clusters.items()))}), {clusters.single:,}"
            " of them with one unit",
            f"the largest holds {clusters.largest:.0%} of the units of its arm",
        ]
        if few:
            uneven = (
                ""
                if fewest < FEW_CLUSTERS
                else f"their sizes differ so that an arm's count as {even:.0f} of one size; "
            )
            parts.append(f"{uneven}with fewer than {FEW_CLUSTERS} in an arm the interval may be too short")
        if clusters.several_arms:
            parts.append(f"{clusters.several_arms:,} clusters were seen in several arms and are left out")
        if clusters.without:
            parts.append(f"{clusters.without:,} units have no {design.experiment.cluster} and are left out")
        out.append(Check("clusters", "warn" if bad else "pass", float(fewest), "; ".join(parts)))
    flips = [t for t in closer.segments if t.flip != "none"]
    out += [Check("sign_flip", "warn", t.flip_p, t.sentence) for t in flips]
    if not flips:
        out.append(
            Check(
                "sign_flip",
                "pass" if closer.segments else "not-run",
                None,
                "no class is shown to be harmed by what helps another"
                if closer.segments
                else "no segments are read, so a gain for some may hide a harm to others",
            )
        )
    crossed = [
        x
        for x in closer.interactions
        if (x.assignment_p is not None and x.assignment_p < SRM_ALARM)
        or (x.adjusted_p is not None and x.adjusted_p <= design.alpha)
    ]
    out += [Check("interference", "warn", x.adjusted_p, x.sentence) for x in crossed]
    if not crossed:
        out.append(
            Check(
                "interference",
                "pass" if closer.interactions else "not-run",
                None,
                "no other experiment is shown to change this one's effect"
                if closer.interactions
                else "no other experiment is named to be looked at (interactions:)",
            )
        )
    control = design.experiment.assignment.control_arm
    if design.experiment.type != "holdout":
        out.append(Check("contamination", "not-run", None, "there is no holdout to be contaminated"))
    else:
        held = data.exposed.get(control, 0)
        share = data.several_arms / (held + data.several_arms) if held + data.several_arms else 0.0
        out.append(
            Check(
                "contamination",
                "pass" if share < 0.001 else "warn" if share <= 0.05 else "fail",
                share,
                f"{data.several_arms:,} units were seen in the holdout and outside it"
                + (f" ({share:.1%} of those ever held out); they are left out" if data.several_arms else ""),
            )
        )
    return out


def _order_check(reader: Reader, readings: list[Reading]) -> Check:
    """Is exposure logged after what it should have caused? Then outcomes crowd into the hour before it, and do not count."""
    name, data = "exposure_order", reader.data
    crowded: list[tuple[float, str]] = []
    seen = 0
    for r in readings:
        numbers = data.metrics.get(around_of(r.use))
        arms = (
            []
            if numbers is None
            else [arm for arm in r.levels if numbers.moments.get(arm) and numbers.moments[arm].n >= 2]
        )
        if numbers is None or reader.control not in arms or len(arms) < 2:
            continue
        seen += 1
        before, after = (
            sum(numbers.moments[arm].n * float(numbers.moments[arm].mean[j]) for arm in arms) for j in (0, 1)
        )
        words = f"{r.use.name}: {before:,.6g} in the hour before exposure (not counted), {after:,.6g} in the hour after"
        # one variance for all arms, as what lies before exposure has: each arm's own errs with its few events, and has no value
        # where nothing happened
        found = adjust.balance({arm: numbers.moments[arm].take([0]) for arm in arms}, 1)
        apart = ""
        if found is not None and found.p_value < SRM_ALARM:
            apart = f"; {' and '.join(found.between)} differ there, which exposure cannot have caused"
        units = sum(numbers.moments[arm].n for arm in arms)
        if apart or (before > 2 * after and before > 0.01 * units):
            crowded.append((before, words + apart))
    if crowded:
        return Check(
            name,
            "warn",
            max(x for x, _ in crowded),
            f"{'; '.join(text for _, text in crowded)}. Exposure may be logged after what it should have caused: look at where it is written",
        )
    if not seen:
        return Check(name, "not-run", None, "no primary metric with times is read around exposure")
    return Check(name, "pass", None, "outcomes do not crowd into the hour before exposure")


def _trust_checks(readings: list[Reading]) -> list[Check]:
    """Is what the decision rests on a metric that can be trusted with it?"""
    primaries = [r.use for r in readings if r.use.part == "primary"]
    if not primaries:
        return [
            Check("trusted_primary", "not-run", None, "no primary metric is declared; every figure here is exploratory")
        ]
    better = [
        r.use.name
        for r in readings
        if r.use.part != "guardrail" and caveat_of(r.use) is None and r.use not in primaries
    ]
    instead = (
        f"; decide on {' or '.join(better[:3])} instead" if better else "; decide on a click or revenue metric instead"
    )
    out = []
    for use in primaries:
        caveat = caveat_of(use)
        if caveat is None:
            out.append(Check("trusted_primary", "pass", None, f"no caveat is known of {use.name}"))
        else:
            out.append(Check("trusted_primary", "warn", None, f"{use.name} is primary, but: {caveat}{instead}"))
    return out


def caveat_of(use: MetricUse) -> str | None:
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

"""What an experiment says of itself: a sentence a metric, a verdict, a finding, and what has to be assumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from payoff import formats
from payoff.methods.experiment.design import ExperimentDesign, Reading
from payoff.result import Assumption, Check, Closer, MetricReading, Verdict
from payoff.spec import nouns

if TYPE_CHECKING:
    from payoff.methods.experiment.reading import Reader


_SPENDING = {"obrien_fleming": "O'Brien and Fleming", "pocock": "Pocock"}


def remedy(n: int) -> str:
    if n < 2:
        return "wait for more units: one unit says nothing about the next"
    return "check the metric's source, where and window: a metric that is the same for every unit has nothing to tell"


def assumed(reader: Reader, readings: list[Reading]) -> list[Assumption]:
    """What this design assumes besides what every experiment does."""
    design, experiment = reader.design, reader.design.experiment
    out: list[Assumption] = []
    if not design.timed:
        out.append(Assumption("The table has no timestamps: outcomes are taken to have happened after exposure."))
    else:
        endless = [r.use.name for r in readings if r.use.window is None and r.use.metric.kind != "retention"]
        if endless and experiment.period is None:
            out.append(
                Assumption(
                    f"{', '.join(endless)}: no window is declared, so everything after exposure counts, and units exposed"
                    " earlier had longer."
                )
            )
        if endless and reader.rule.kind != "fixed":
            out.append(
                Assumption(
                    f"{', '.join(endless)}: without a window a unit's value still changes between looks; that intervals hold at"
                    " all looks is shown for values that are final."
                )
            )
    rule = reader.rule.kind
    if rule == "fixed":
        out.append(
            Assumption(
                "The read-out was planned for one moment; looking earlier makes chance findings more likely.",
                "planned_stop",
            )
        )
    elif rule == "always_valid":
        out.append(
            Assumption(
                "Intervals hold at every look, however often it is looked at (asymptotic confidence sequence, tightest at"
                f" {reader.rule.tightest_at:,} units); they rest on the first look having enough units.",
                "few_units",
            )
        )
    else:
        out.append(
            Assumption(
                "Intervals hold at all planned looks together (repeated confidence intervals, error spent as"
                f" {_SPENDING[reader.rule.spending]} would); every look was made through this ledger. For all metrics the units"
                f" in are counted as those of {design.primaries[0].name}.",
                "peeking",
            )
        )
    if any(r.adjusted is not None for r in readings):
        out.append(
            Assumption(
                "What outcomes are adjusted for was known before exposure, so that the treatment cannot have changed it.",
                "balance",
            )
        )
    if experiment.cluster is not None:
        out.append(
            Assumption(f"Each {experiment.cluster} was assigned as a whole, independently of the others.", "clusters")
        )
    if experiment.trigger is not None:
        out.append(
            Assumption(
                "The trigger is recorded in every arm at the moment the feature would show, and the arm does not change who triggers.",
                "srm",
            )
        )
    if experiment.period is not None:
        rest = (
            ""
            if experiment.washout is None
            else f" once its first {nouns.format_duration(experiment.washout)} are left out"
        )
        out.append(
            Assumption(
                f"A period of {nouns.format_duration(experiment.period)} is not affected by the arm of the one before{rest}."
            )
        )
    if reader.design.experiment.segments:
        out.append(Assumption("Segments are made by what units were before exposure.", "covariates"))
        if experiment.cluster is not None:
            out.append(
                Assumption(
                    f"Classes are compared with each other as if no {experiment.cluster} had units in several of them; where one"
                    " has, classes resemble each other, and the tests of whether they differ find less than they could."
                )
            )
    return out


def question(design: ExperimentDesign, readings: list[Reading], control: str) -> str:
    first = readings[0].use.name
    return f"What does {design.name} do to {formats.human(first)}, compared with {control}?"


def sentence(design: ExperimentDesign, r: Reading, arm: str, control: str, state: str) -> str:
    unit = formats.unit(r.unit)
    gap = r.differences[arm]
    low, high = r.deciding(arm, design.level)
    margin = r.use.metric.margin
    against = [-margin, margin] if margin is not None else []
    text = formats.written(gap.value, low, high, unit, change=True, against=against)
    name, level = formats.human(r.use.name), formats.level(design.level)
    correction = r.corrections.get(arm)
    interval = f"{level} interval {text.range}" + (
        "" if correction is None else f", corrected for {correction.of} questions"
    )
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


def verdict_of(readings: tuple[MetricReading, ...], failed: list[Check]) -> Verdict:
    if failed:
        return "withheld"
    primary, mixed = headline(readings), {r.contrast for r in against(readings)}
    at_risk = any(r.state in ("at risk", "breached") for r in readings)
    breached = any(r.state == "breached" for r in readings)
    if any(r.state == "improved" and r.contrast not in mixed for r in primary):
        if at_risk:
            return "guardrail at risk"
        return "positive"
    if breached:
        return "guardrail at risk"
    if primary and all(r.state == "harmed" for r in primary):
        return "negative"
    return "not conclusive"


def headline(readings: tuple[MetricReading, ...]) -> list[MetricReading]:
    """The readings that the verdict rests on: the first primary's, else the north star's, else the only metric's."""
    metrics = list(dict.fromkeys(r.metric for r in readings))
    for role in ("primary", "north_star"):
        named = [r.metric for r in readings if r.role == role]
        if named:
            return [r for r in readings if r.metric == named[0]]
    return list(readings) if len(metrics) == 1 else []


def against(readings: tuple[MetricReading, ...]) -> list[MetricReading]:
    """Other metrics to decide on that are shown to be harmed: a gain in the first does not outweigh them by itself."""
    leading = headline(readings)
    return [r for r in readings if r.role in ("primary", "north_star") and r.state == "harmed" and r not in leading]


def finding(readings: tuple[MetricReading, ...], failed: list[Check], closer: Closer) -> str:
    leading = headline(readings)
    if failed:
        return f"Withheld: {failed[0].detail}."
    if not leading:
        return "No primary metric is declared, so there is no headline: every figure below is exploratory."
    parts = ["; ".join(r.sentence for r in leading) + "."]
    harmed = against(readings)
    if harmed:
        parts.append("Against it: " + "; ".join(r.sentence for r in harmed) + ".")
    risky = [r for r in readings if r.state in ("at risk", "breached")]
    if risky:
        parts.append("Guardrail " + "; ".join(f"{r.state}: {r.sentence}" for r in risky) + ".")
    parts += [f"{table.sentence}." for table in closer.segments if table.flip != "none"]
    return " ".join(parts)

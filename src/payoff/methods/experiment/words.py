"""What an experiment says of itself: a sentence a metric, a verdict, a finding, and what has to be assumed."""

from __future__ import annotations

from payoff import formats
from payoff.methods.experiment.design import ExperimentDesign, Reading
from payoff.result import Assumption, Check, MetricReading, Verdict
from payoff.stats.moments import Moments


def remedy(m: Moments) -> str:
    if m.n < 2:
        return "wait for more units: one unit says nothing about the next"
    return "check the metric's source, where and window: a metric that is the same for every unit has nothing to tell"


def windows(design: ExperimentDesign, readings: list[Reading]) -> list[Assumption]:
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


def question(design: ExperimentDesign, readings: list[Reading], control: str) -> str:
    first = readings[0].use.name
    return f"What does {design.name} do to {formats.human(first)}, compared with {control}?"


def sentence(design: ExperimentDesign, r: Reading, arm: str, control: str, state: str) -> str:
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


def verdict_of(readings: tuple[MetricReading, ...], failed: list[Check]) -> Verdict:
    if failed:
        return "withheld"
    primary = headline(readings)
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


def headline(readings: tuple[MetricReading, ...]) -> list[MetricReading]:
    """The readings that the verdict rests on: the first primary's, else the north star's, else the only metric's."""
    metrics = list(dict.fromkeys(r.metric for r in readings))
    for role in ("primary", "north_star"):
        named = [r.metric for r in readings if r.role == role]
        if named:
            return [r for r in readings if r.metric == named[0]]
    return list(readings) if len(metrics) == 1 else []


def finding(readings: tuple[MetricReading, ...], failed: list[Check]) -> str:
    leading = headline(readings)
    if failed:
        return f"Withheld: {failed[0].detail}."
    if not leading:
        return "No primary metric is declared, so there is no headline: every figure below is exploratory."
    parts = ["; ".join(r.sentence for r in leading) + "."]
    risky = [r for r in readings if r.state in ("at risk", "breached")]
    if risky:
        parts.append("Guardrail " + "; ".join(f"{r.state}: {r.sentence}" for r in risky) + ".")
    return " ".join(parts)

"""What an amount refers to, bound to numbers: effects, values, volumes, populations and costs, each with its draws."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from payoff import formats
from payoff.claims.grading import lacks
from payoff.claims.model import Input, Population, Refused, Volume
from payoff.claims.words import listed, per_period, rounded
from payoff.errors import did_you_mean
from payoff.estimate import Bounds, Estimate, FloatArray, draw_jointly
from payoff.result import Refusal, Result
from payoff.spec.amount import Effect, PopulationOf, Reference, VolumeOf
from payoff.spec.nouns import Claim, Value

EFFECT_ESTIMAND = "difference in means"
"""The only estimand that ``effect()`` accepts: a descriptive one (an attribution share) can never pose as an effect."""
EVERYONE_ESTIMAND = "difference in means, everyone assigned"
"""What it becomes where only some of a population triggered, and the amount counts all of it."""


@dataclass(frozen=True, slots=True)
class Bound:
    """An input with its draws. ``phrase`` names it in a sentence; ``search`` is where a break-even is looked for."""

    show: Input
    phrase: str
    draws: FloatArray
    search: tuple[float, float]
    references: tuple[Reference, ...] = ()  # none: a cost


def stream(seed: int, label: str) -> np.random.Generator:
    """One stream for each input, so that a cost added to a claim does not change the draws of its effects."""
    return np.random.default_rng([seed, zlib.crc32(label.encode())])


# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class _Measured:
    """The estimate behind one effect(), its direction (+1 up, -1 down), and how it compares with other evidence."""

    evidence: str
    result: Result
    estimate: Estimate
    sign: int
    notes: tuple[str, ...]
    disagreement: str | None


def _interval(estimate: Estimate, level: float) -> tuple[float, float]:
    if isinstance(estimate.uncertainty, Bounds):
        return estimate.uncertainty.low, estimate.uncertainty.high
    return estimate.interval(level)


def _effects(result: Result) -> list[Estimate]:
    return [e for e in result.estimates if e.estimand == EFFECT_ESTIMAND and e.segment is None]


def _of_metric(result: Result, metric: str) -> list[Estimate]:
    return [e for e in _effects(result) if e.metric == metric]


def _arm(estimate: Estimate) -> str:
    """The arm held against control. What an estimate counts names it, which a contrast of names with " vs " in them cannot."""
    counted = (a for a in estimate.n if estimate.contrast in {f"{a} vs {other}" for other in estimate.n if other != a})
    return next(counted, estimate.contrast.split(" vs ")[0])


def _for_arm(estimates: list[Estimate], arm: str | None) -> list[Estimate]:
    return estimates if arm is None else [e for e in estimates if _arm(e) == arm]


def _over_everyone(effect: Effect, name: str, result: Result, triggered: Estimate) -> Estimate:
    """The same effect on everyone assigned, as ``population()`` counts them: those who never triggered had none."""
    lost = result.left_out.get("exposed units that never triggered", 0)
    if not lost:
        return triggered
    for e in result.estimates:
        if (e.estimand, e.metric, e.contrast) == (EVERYONE_ESTIMAND, triggered.metric, triggered.contrast):
            return e
    raise Refused(
        f"{effect} is on those who triggered in {name}, and the population counts everyone assigned, {lost:,} of whom did not",
        "Multiply by a volume of what triggers, or price a count, a sum or a conversion, whose effect on everyone is known.",
    )


def _measure(
    effect: Effect,
    evidence: Sequence[str],
    results: Mapping[str, Result | Refusal],
    level: float,
    everyone: bool,
) -> _Measured:
    """The first piece of evidence that measures the effect. Raises Refused, with what is missing, when none does."""
    metric, arm = effect.metric, effect.arm
    for position, name in enumerate(evidence):
        result = results.get(name)
        if not isinstance(result, Result):
            continue
        found = _for_arm(_of_metric(result, metric), arm)
        if len(found) > 1:
            arms = [_arm(e) for e in found]
            raise Refused(
                f"{effect} could be any of {len(found)} comparisons in {name}: {', '.join(e.contrast for e in found)}",
                f"Name the arm, such as {Effect(metric, arms[0])}.",
            )
        if found:
            sign, notes = _direction(result, found[0])
            agreement, disagreement = _agreement(effect, found[0], name, evidence[position + 1 :], results, level)
            taken = _over_everyone(effect, name, result, found[0]) if everyone else found[0]
            if taken is not found[0]:
                notes += ("spread over everyone assigned, as the population counts them, not only those who triggered",)
            return _Measured(name, result, taken, sign, notes + agreement, disagreement)
    raise _not_measured(effect, evidence, results)


def _not_measured(effect: Effect, evidence: Sequence[str], results: Mapping[str, Result | Refusal]) -> Refused:
    metric = effect.metric
    measured: list[str] = []
    for name in evidence:
        result = results.get(name)
        if isinstance(result, Refusal):
            return Refused(f"{effect} has no number, because {name} was refused: {result.reason}", result.remedy)
        if result is None:
            return Refused(f"{effect} has no number: there is no result of {name}", f"Run {name} with the claim.")
        for refusal in result.refusals:
            if metric in re.split(r"[.\s]+", refusal.name):
                return Refused(f"{effect} has no number in {name}: {refusal.reason}", refusal.remedy)
        of_metric = _of_metric(result, metric)
        if of_metric:
            arms = [_arm(e) for e in of_metric]
            return Refused(
                f"{name} compares no arm '{effect.arm}' with control; it compares {', '.join(arms)}"
                + did_you_mean(str(effect.arm), arms),
                f"Name one of those arms, such as {Effect(metric, arms[0])}.",
            )
        measured += [e.metric for e in _effects(result)]
    known = sorted(set(measured))
    has = f"; it measures {', '.join(known)}" if known else ""
    return Refused(
        f"the claim's evidence ({', '.join(evidence)}) does not measure '{metric}'{has}{did_you_mean(metric, known)}",
        f"Add {metric} to the metrics of the evidence, or name other evidence that measures it.",
    )


def _direction(result: Result, estimate: Estimate) -> tuple[int, tuple[str, ...]]:
    readings = [r for r in result.readings if r.metric == estimate.metric]
    reading = next((r for r in readings if r.contrast == estimate.contrast), readings[0] if readings else None)
    if reading is None:
        raise Refused(
            f"{result.name} does not say whether a rise of '{estimate.metric}' is good or bad, so it has no price",
            f"Give {estimate.metric} a direction (up or down) and a role in {result.name}.",
        )
    down = reading.direction == "down"
    better = (
        f"counted as improvement: a fall of {estimate.metric} is positive, because its direction is down"
        if down
        else f"counted as improvement: a rise of {estimate.metric} is positive, because its direction is up"
    )
    notes = [better, f"{estimate.contrast}"]
    if reading.role == "vanity":
        notes.append(f"{estimate.metric} is declared a vanity metric")
    if reading.caveat:
        notes.append(reading.caveat)
    return (-1 if down else 1), tuple(notes)


def _agreement(
    effect: Effect,
    used: Estimate,
    name: str,
    others: Sequence[str],
    results: Mapping[str, Result | Refusal],
    level: float,
) -> tuple[tuple[str, ...], str | None]:
    """How later evidence on the same metric compares with the one used; the second is the contradiction, if there is one."""
    notes: list[str] = []
    contradicting: list[str] = []
    low, high = _interval(used, level)
    for other in others:
        result = results.get(other)
        if not isinstance(result, Result):
            continue
        found = _for_arm(_of_metric(result, effect.metric), effect.arm)
        if len(found) != 1:
            if found:
                notes.append(f"not compared with {other}, which has several arms")
            continue
        there = found[0]
        its_low, its_high = _interval(there, level)
        same_sign = used.value * there.value > 0
        overlap = low <= its_high and its_low <= high
        clear = (low > 0 or high < 0) and (its_low > 0 or its_high < 0)
        shown = formats.written(there.value, its_low, its_high, formats.unit(there.unit), change=True)
        notes.append(
            f"{other} {'agrees' if same_sign and overlap else 'does not agree'} as measured: {shown.value} ({shown.range}), "
            f"{'same sign' if same_sign else 'other sign'}, intervals {'overlap' if overlap else 'do not overlap'}"
        )
        if not same_sign and clear:
            contradicting.append(other)
    if not contradicting:
        return tuple(notes), None
    return tuple(notes), (
        f"{listed(contradicting)} and {name} contradict each other on {effect.metric}: "
        "the signs differ and no interval includes zero"
    )


def bind_effects(
    effects: Sequence[Effect],
    claim: Claim,
    results: Mapping[str, Result | Refusal],
    level: float,
    seed: int,
    draws: int,
    everyone: bool = False,
) -> tuple[list[Bound], dict[str, Result], list[str], list[str]]:
    """The effects with joint draws, the results they come from, contradictions and assumptions. ``everyone``: the amount
    counts a population, so an effect on some of it is spread over all of it."""
    measured: dict[tuple[str, str, str], _Measured] = {}
    references: dict[tuple[str, str, str], list[Effect]] = {}
    compared = [name for name in claim.evidence if not name.startswith("attribution.")]
    for effect in effects:
        if not compared:
            raise Refused(
                f"{effect} has no number: the claim's evidence ({', '.join(claim.evidence)}) is attributed, and nothing was compared",
                "Add an experiment to the evidence, or write attributed(NAME, MODEL) in its place.",
            )
        one = _measure(effect, compared, results, level, everyone)
        key = (one.evidence, one.estimate.metric, one.estimate.contrast)
        measured.setdefault(key, one)
        references.setdefault(key, []).append(effect)

    used = {one.evidence: one.result for one in measured.values()}
    bound: list[Bound] = []
    assumptions: list[str] = []
    for name, result in used.items():
        mine = {key: one for key, one in measured.items() if key[0] == name}
        keys, estimates = list(mine), [one.estimate for one in mine.values()]
        correlation = np.eye(len(keys))
        for i, first in enumerate(keys):
            for j, second in enumerate(keys[:i]):
                pair = (first[1:], second[1:])
                known = result.correlations.get(pair, result.correlations.get(pair[::-1]))
                if known is None:
                    assumptions.append(
                        f"{first[1]} and {second[1]} in {name} err independently: their correlation was not estimated."
                    )
                else:
                    correlation[i, j] = correlation[j, i] = known
        joint = draw_jointly(estimates, correlation, stream(seed, f"evidence({name})"), draws)
        for column, (key, one) in enumerate(mine.items()):
            ends = _interval(one.estimate, level)
            low, high = sorted(one.sign * end for end in ends)
            value, reach = one.sign * one.estimate.value, 5 * max(high - low, abs(one.estimate.value))
            label, shown, spread = str(references[key][0]), one.notes, one.estimate.uncertainty
            if isinstance(spread, Bounds) and not math.isclose(spread.level, level):
                shown += (f"its interval is known at {formats.level(spread.level)} only",)
            family = one.estimate.correction
            if family is not None and (low > 0 or high < 0) and family.low <= 0 <= family.high:
                # money is priced on what was measured; that it was one of several questions is not in the interval
                alone = f"{one.estimate.metric} in {name} is read here alone, as one question; as one of {family.of} it is not conclusive there"
                shown += (alone,)
                assumptions.append(f"{formats.capital(alone)}.")
            bound.append(
                Bound(
                    Input(label, "effect", value, low, high, one.estimate.unit, name, None, None, shown),
                    f"the improvement of {one.estimate.metric}",
                    one.sign * joint[:, column],
                    (value - reach, value + reach),
                    tuple(references[key]),
                )
            )
    if len(used) > 1:
        assumptions.append(f"The errors of {listed(list(used))} are independent of one another.")
    return bound, used, [one.disagreement for one in measured.values() if one.disagreement], assumptions


# ---------------------------------------------------------------- values, costs and counts


def _triangular(value: float, low: float, high: float, rng: np.random.Generator, size: int) -> FloatArray:
    """Draws from the triangular distribution on [low, high] with mode ``value``, by inverting its distribution function."""
    if high <= low:
        return np.full(size, value)
    u = rng.random(size)
    width = high - low
    mode = (value - low) / width
    return np.where(u < mode, low + width * np.sqrt(u * mode), high - width * np.sqrt((1 - u) * (1 - mode)))


def reach(value: float, low: float, high: float) -> tuple[float, float]:
    """Where to look for a break-even: from zero to ten times the value, on its own side of zero, and all of its range."""
    return min(low, 0.0, 10 * value), max(high, 0.0, 10 * value)


def bind_money(
    label: str, kind: str, value: Value, phrase: str, currency: str, today: date, rng: np.random.Generator, draws: int
) -> Bound:
    low = value.value if value.low is None else value.low
    high = value.value if value.high is None else value.high
    notes = [] if low < high else ["taken as exact: it has no range"]
    notes += lacks(value, today, needs_range=False)
    unit = currency if value.per is None else f"{currency} per {value.per}"
    return Bound(
        Input(label, kind, value.value, low, high, unit, value.source, value.owner, value.expires, tuple(notes)),
        phrase,
        _triangular(value.value, low, high, rng, draws),
        reach(value.value, low, high),
    )


def bind_count(
    reference: VolumeOf | PopulationOf,
    volumes: Mapping[tuple[str, timedelta], Volume],
    populations: Mapping[tuple[str, timedelta | None], Population],
    level: float,
    seed: int,
    draws: int,
) -> Bound:
    label = str(reference)
    count: Volume | Population | None
    if isinstance(reference, VolumeOf):
        kind, of, unit = "volume", reference.source, f"rows{per_period(reference.period)}"
        count = volumes.get((reference.source, reference.period))
        phrase = f"the volume of {of}"
    else:
        kind, of, unit = "population", reference.entity, "units"
        count = populations.get((reference.entity, reference.period))
        phrase = f"the population of {of}"
    if count is None:
        raise Refused(f"{label} was not counted", f"Check that {of} is declared and can be read, and run again.")
    if count.value == 0:
        raise Refused(
            f"{label} is zero, so the amount has nothing to multiply", f"Check the rows of {of} and its dates."
        )
    se = count.se if isinstance(count, Volume) else 0.0
    # The range shown is always +-1.96 se, whatever the level of the claim: it is what the sensitivity moves it through.
    low, high = max(count.value - 1.96 * se, 0.0), count.value + 1.96 * se
    notes = list(count.notes)
    if not se:
        notes.append("taken as exact")
    days = None if reference.period is None else reference.period / timedelta(days=1)
    if isinstance(count, Volume) and days is not None and count.days_observed < days:
        notes.append(
            f"observed on {rounded(count.days_observed)} of {rounded(days)} days, and scaled up to all of them"
        )
    normal = stream(seed, label).standard_normal(draws)
    return Bound(
        Input(label, kind, float(count.value), low, high, unit, of, None, None, tuple(notes)),
        phrase,
        np.maximum(count.value + se * normal, 0.0),
        reach(count.value, low, high),
        (reference,),
    )

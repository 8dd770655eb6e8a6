"""Price a claim: measured effects, money values, volumes and costs in; money with its interval, grade and verdict out.

Pure: nothing here reads a file, a table or a clock. ``price`` computes the central figure at the central inputs, so that a
pocket calculator reproduces it, and the interval from joint draws of every uncertain input.
"""

from __future__ import annotations

import math
import operator
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np

from payoff import formats
from payoff.errors import did_you_mean
from payoff.estimate import Bounds, Estimate, FloatArray, draw_jointly
from payoff.result import Refusal, Result, Verdict
from payoff.spec.amount import (
    Amount,
    AmountError,
    Effect,
    PopulationOf,
    Reference,
    ValueOf,
    VolumeOf,
    parse,
    period_text,
)
from payoff.spec.nouns import Claim, Decision, Value

EFFECT_ESTIMAND = "difference in means"
"""The only estimand that ``effect()`` accepts: a descriptive one (an attribution share) can never pose as an effect."""

GRADES = "ABCDE"
CAUSAL_GRADES = "ABC"

_DOTS = tuple((i + 0.5) / 20 for i in range(20))
_QUANTILES = tuple(sorted({*_DOTS, 0.1, 0.25, 0.5, 0.75, 0.9}))
"""Kept with every figure: twenty equally likely values, the middle half, and P10, P50, P90."""

# ---------------------------------------------------------------- what comes in


@dataclass(frozen=True, slots=True)
class Volume:
    """Rows of a source over a claim's whole period: ``value``, its standard error, and the days it was observed on."""

    value: float
    se: float
    days_observed: float
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and math.isfinite(self.se) and self.value >= 0 and self.se >= 0):
            raise ValueError(f"a volume and its standard error are finite and not negative: {self.value}, {self.se}")


@dataclass(frozen=True, slots=True)
class Population:
    """Units of an entity over a claim's whole period (or all of them, where it has none): a count, taken as exact."""

    value: float
    days_observed: float
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value >= 0):
            raise ValueError(f"a population is finite and not negative: {self.value}")


# ---------------------------------------------------------------- what comes out


@dataclass(frozen=True, slots=True)
class Quantity:
    """A figure with its interval at ``level``, and the quantiles of its draws by probability."""

    value: float
    low: float
    high: float
    level: float
    unit: str
    quantiles: Mapping[float, float]

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "unit": self.unit,
            "low_50": self.quantiles[0.25],
            "high_50": self.quantiles[0.75],
            "quantiles": {f"{q:g}": x for q, x in self.quantiles.items()},
        }


@dataclass(frozen=True, slots=True)
class Payback:
    """Days until the amount, coming in evenly, has covered the cost. An end is None where too many draws never get there."""

    value: float
    low: float | None
    high: float | None
    level: float
    never: float
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "unit": "days",
            "never": self.never,
            "sentence": self.sentence,
        }


@dataclass(frozen=True, slots=True)
class DecisionReading:
    """The decision rule, and what the draws say of it; ``sentence`` also says when the evidence is withheld."""

    threshold: str
    probability: float
    observed_probability: float
    met: bool
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "threshold": self.threshold,
            "probability": self.probability,
            "observed_probability": self.observed_probability,
            "met": self.met,
            "sentence": self.sentence,
        }


@dataclass(frozen=True, slots=True)
class Input:
    """One number that the claim is computed from, with its range and who stands behind it."""

    name: str
    kind: str  # effect, value, volume, population or cost
    value: float
    low: float
    high: float
    unit: str
    source: str | None
    owner: str | None
    expires: date | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
            "source": self.source,
            "owner": self.owner,
            "expires": None if self.expires is None else self.expires.isoformat(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Swing:
    """What moving one input through its range, all others at their central values, does to the net (or the amount).

    ``flips_at`` is the nearest value inside the range at which the decision (or the sign of the net) changes;
    ``break_even`` is that value wherever it lies, and None where no plausible value does it.
    """

    input: str
    value: float
    low_input: float
    high_input: float
    net_at_low: float
    net_at_high: float
    swing: float
    flips: bool
    flips_at: float | None
    break_even: float | None
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "input": self.input,
            "value": self.value,
            "low_input": self.low_input,
            "high_input": self.high_input,
            "net_at_low": self.net_at_low,
            "net_at_high": self.net_at_high,
            "swing": self.swing,
            "flips": self.flips,
            "flips_at": self.flips_at,
            "break_even": self.break_even,
            "sentence": self.sentence,
        }


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """A priced claim. ``finding`` is the sentence to lead with; ``verdict`` is what the interval of the net shows.

    ``net`` is None for an amount that is not money; ``roi`` and ``payback`` are None where they have no meaning, and
    ``notes`` then says why. ``net_quantiles`` are 20 equally likely values of the net (or amount), lowest first.
    """

    name: str
    statement: str
    grade: str
    grade_reasons: tuple[str, ...]
    verdict: Verdict
    finding: str
    evidence: tuple[str, ...]
    amount_expression: str
    amount: Quantity
    cost: float
    costs: tuple[Input, ...]
    net: Quantity | None
    roi: Quantity | None
    payback: Payback | None
    probability_positive: float
    decision: DecisionReading | None
    inputs: tuple[Input, ...]
    sensitivity: tuple[Swing, ...]
    overturn: tuple[str, ...]
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]
    net_quantiles: tuple[float, ...]
    currency: str
    period: str | None
    owner: str | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "statement": self.statement,
            "owner": self.owner,
            "grade": self.grade,
            "grade_reasons": list(self.grade_reasons),
            "verdict": self.verdict,
            "finding": self.finding,
            "evidence": list(self.evidence),
            "amount_expression": self.amount_expression,
            "currency": self.currency,
            "period": self.period,
            "amount": self.amount.to_dict(),
            "cost": self.cost,
            "costs": [cost.to_dict() for cost in self.costs],
            "net": None if self.net is None else self.net.to_dict(),
            "roi": None if self.roi is None else self.roi.to_dict(),
            "payback": None if self.payback is None else self.payback.to_dict(),
            "probability_positive": self.probability_positive,
            "decision": None if self.decision is None else self.decision.to_dict(),
            "inputs": [one.to_dict() for one in self.inputs],
            "sensitivity": [one.to_dict() for one in self.sensitivity],
            "overturn": list(self.overturn),
            "assumptions": list(self.assumptions),
            "notes": list(self.notes),
            "net_quantiles": list(self.net_quantiles),
        }


# ---------------------------------------------------------------- the grade


def lacks(value: Value, today: date, *, needs_range: bool = True) -> tuple[str, ...]:
    """What a money value is short of, in words: an owner, a source, an expiry still to come, a range. Empty: nothing."""
    short = [] if value.owner else ["has no owner"]
    if not value.source:
        short.append("has no source")
    if value.expires is None:
        short.append("has no expiry")
    elif value.expires <= today:
        short.append("expires today" if value.expires == today else f"expired on {value.expires.isoformat()}")
    if needs_range and (value.low is None or value.high is None):
        short.append("has no range (low and high)")
    return tuple(short)


def grade(
    evidence: Mapping[str, str], values: Mapping[str, Value], disagreements: Sequence[str], today: date
) -> tuple[str, tuple[str, ...]]:
    """The letter of a claim and the reasons for it.

    | step | rule                                                                                         |
    |------|----------------------------------------------------------------------------------------------|
    | 1    | start from the weakest grade among the evidence that the amount needs; with none, E          |
    | 2    | one letter down for each value that lacks an owner, a source, a range or an expiry to come   |
    | 3    | one letter down for each effect on which two pieces of evidence contradict each other        |
    | 4    | never below E                                                                                |

    ``evidence`` maps the evidence that the amount needs to its grade, ``values`` the money values it uses by name.
    """
    if not evidence:
        return "E", ("No measured effect enters the amount: every figure in it is typed in or counted.",)
    weakest = max(evidence, key=lambda name: GRADES.index(evidence[name]))
    start = evidence[weakest]
    reasons = [f"The evidence {weakest} is graded {start}."]
    if len(evidence) > 1:
        others = ", ".join(f"{name} {letter}" for name, letter in evidence.items() if name != weakest)
        reasons = [f"The weakest evidence that the amount needs, {weakest}, is graded {start} (also used: {others})."]
    steps = 0
    for name, value in values.items():
        short = lacks(value, today)
        if short:
            steps += 1
            reasons.append(f"One letter down: the value {name} {_listed(short)}.")
    for disagreement in disagreements:
        steps += 1
        reasons.append(f"One letter down: {disagreement}.")
    return GRADES[min(GRADES.index(start) + steps, len(GRADES) - 1)], tuple(reasons)


# ---------------------------------------------------------------- inputs, bound to numbers


class _Refused(Exception):
    def __init__(self, reason: str, remedy: str) -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class _Bound:
    """An input with its draws. ``phrase`` names it in a sentence; ``search`` is where a break-even is looked for."""

    show: Input
    phrase: str
    draws: FloatArray
    search: tuple[float, float]
    references: tuple[Reference, ...] = ()  # none: a cost


@dataclass(frozen=True, slots=True)
class _Measured:
    """The estimate behind one effect(), its direction (+1 up, -1 down), and how it compares with other evidence."""

    evidence: str
    result: Result
    estimate: Estimate
    sign: int
    notes: tuple[str, ...]
    disagreement: str | None


def _stream(seed: int, label: str) -> np.random.Generator:
    """One stream for each input, so that a cost added to a claim does not change the draws of its effects."""
    return np.random.default_rng([seed, zlib.crc32(label.encode())])


def _interval(estimate: Estimate, level: float) -> tuple[float, float]:
    if isinstance(estimate.uncertainty, Bounds):
        return estimate.uncertainty.low, estimate.uncertainty.high
    return estimate.interval(level)


def _of_metric(result: Result, metric: str) -> list[Estimate]:
    return [e for e in result.estimates if e.metric == metric and e.estimand == EFFECT_ESTIMAND and e.segment is None]


def _arms(estimates: Sequence[Estimate]) -> list[str]:
    return [estimate.contrast.split(" vs ")[0] for estimate in estimates]


def _for_arm(estimates: list[Estimate], arm: str | None) -> list[Estimate]:
    return estimates if arm is None else [e for e in estimates if e.contrast.startswith(f"{arm} vs ")]


def _measure(
    effect: Effect, evidence: Sequence[str], results: Mapping[str, Result | Refusal], level: float
) -> _Measured:
    """The first piece of evidence that measures the effect. Raises _Refused, with what is missing, when none does."""
    metric, arm = effect.metric, effect.arm
    for position, name in enumerate(evidence):
        result = results.get(name)
        if not isinstance(result, Result):
            continue
        found = _for_arm(_of_metric(result, metric), arm)
        if len(found) > 1:
            arms = _arms(found)
            raise _Refused(
                f"{effect} could be any of {len(found)} comparisons in {name}: {', '.join(e.contrast for e in found)}",
                f"Name the arm, such as {Effect(metric, arms[0])}.",
            )
        if found:
            sign, notes = _direction(result, found[0])
            agreement, disagreement = _agreement(effect, found[0], name, evidence[position + 1 :], results, level)
            return _Measured(name, result, found[0], sign, notes + agreement, disagreement)
    raise _not_measured(effect, evidence, results)


def _not_measured(effect: Effect, evidence: Sequence[str], results: Mapping[str, Result | Refusal]) -> _Refused:
    metric = effect.metric
    measured: list[str] = []
    for name in evidence:
        result = results.get(name)
        if isinstance(result, Refusal):
            return _Refused(f"{effect} has no number, because {name} was refused: {result.reason}", result.remedy)
        if result is None:
            return _Refused(f"{effect} has no number: there is no result of {name}", f"Run {name} with the claim.")
        for refusal in result.refusals:
            if metric in re.split(r"[.\s]+", refusal.name):
                return _Refused(f"{effect} has no number in {name}: {refusal.reason}", refusal.remedy)
        of_metric = _of_metric(result, metric)
        if of_metric:
            arms = _arms(of_metric)
            return _Refused(
                f"{name} compares no arm '{effect.arm}' with control; it compares {', '.join(arms)}"
                + did_you_mean(str(effect.arm), arms),
                f"Name one of those arms, such as {Effect(metric, arms[0])}.",
            )
        measured += [e.metric for e in result.estimates if e.estimand == EFFECT_ESTIMAND and e.segment is None]
    known = sorted(set(measured))
    has = f"; it measures {', '.join(known)}" if known else ""
    return _Refused(
        f"the claim's evidence ({', '.join(evidence)}) does not measure '{metric}'{has}{did_you_mean(metric, known)}",
        f"Add {metric} to the metrics of the evidence, or name other evidence that measures it.",
    )


def _direction(result: Result, estimate: Estimate) -> tuple[int, tuple[str, ...]]:
    readings = [r for r in result.readings if r.metric == estimate.metric]
    reading = next((r for r in readings if r.contrast == estimate.contrast), readings[0] if readings else None)
    if reading is None:
        raise _Refused(
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
        f"{_listed(contradicting)} and {name} contradict each other on {effect.metric}: "
        "the signs differ and no interval includes zero"
    )


def _triangular(value: float, low: float, high: float, rng: np.random.Generator, size: int) -> FloatArray:
    """Draws from the triangular distribution on [low, high] with mode ``value``, by inverting its distribution function."""
    if high <= low:
        return np.full(size, value)
    u = rng.random(size)
    width = high - low
    mode = (value - low) / width
    return np.where(u < mode, low + width * np.sqrt(u * mode), high - width * np.sqrt((1 - u) * (1 - mode)))


def _bind_effects(
    effects: Sequence[Effect],
    claim: Claim,
    results: Mapping[str, Result | Refusal],
    level: float,
    seed: int,
    draws: int,
) -> tuple[list[_Bound], dict[str, Result], list[str], list[str]]:
    """The effects with joint draws, the results they come from, contradictions and assumptions."""
    measured: dict[tuple[str, str, str], _Measured] = {}
    references: dict[tuple[str, str, str], list[Effect]] = {}
    for effect in effects:
        one = _measure(effect, claim.evidence, results, level)
        key = (one.evidence, one.estimate.metric, one.estimate.contrast)
        measured.setdefault(key, one)
        references.setdefault(key, []).append(effect)

    used = {one.evidence: one.result for one in measured.values()}
    bound: list[_Bound] = []
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
        joint = draw_jointly(estimates, correlation, _stream(seed, f"evidence({name})"), draws)
        for column, (key, one) in enumerate(mine.items()):
            ends = _interval(one.estimate, level)
            low, high = sorted(one.sign * end for end in ends)
            value, reach = one.sign * one.estimate.value, 5 * max(high - low, abs(one.estimate.value))
            label, shown, spread = str(references[key][0]), one.notes, one.estimate.uncertainty
            if isinstance(spread, Bounds) and not math.isclose(spread.level, level):
                shown += (f"its interval is known at {formats.level(spread.level)} only",)
            bound.append(
                _Bound(
                    Input(label, "effect", value, low, high, one.estimate.unit, name, None, None, shown),
                    f"the improvement of {one.estimate.metric}",
                    one.sign * joint[:, column],
                    (value - reach, value + reach),
                    tuple(references[key]),
                )
            )
    if len(used) > 1:
        assumptions.append(f"The errors of {_listed(list(used))} are independent of one another.")
    return bound, used, [one.disagreement for one in measured.values() if one.disagreement], assumptions


def _bind_money(
    label: str, kind: str, value: Value, phrase: str, currency: str, today: date, rng: np.random.Generator, draws: int
) -> _Bound:
    low = value.value if value.low is None else value.low
    high = value.value if value.high is None else value.high
    notes = [] if low < high else ["taken as exact: it has no range"]
    notes += lacks(value, today, needs_range=False)
    unit = currency if value.per is None else f"{currency} per {value.per}"
    return _Bound(
        Input(label, kind, value.value, low, high, unit, value.source, value.owner, value.expires, tuple(notes)),
        phrase,
        _triangular(value.value, low, high, rng, draws),
        _reach(value.value, low, high),
    )


def _reach(value: float, low: float, high: float) -> tuple[float, float]:
    """Where to look for a break-even: from zero to ten times the value, on its own side of zero, and all of its range."""
    return min(low, 0.0, 10 * value), max(high, 0.0, 10 * value)


def _bind_count(
    reference: VolumeOf | PopulationOf,
    volumes: Mapping[tuple[str, timedelta], Volume],
    populations: Mapping[tuple[str, timedelta | None], Population],
    level: float,
    seed: int,
    draws: int,
) -> _Bound:
    label = str(reference)
    count: Volume | Population | None
    if isinstance(reference, VolumeOf):
        kind, of, unit = "volume", reference.source, f"rows{_per(reference.period)}"
        count = volumes.get((reference.source, reference.period))
        phrase = f"the volume of {of}"
    else:
        kind, of, unit = "population", reference.entity, "units"
        count = populations.get((reference.entity, reference.period))
        phrase = f"the population of {of}"
    if count is None:
        raise _Refused(f"{label} was not counted", f"Check that {of} is declared and can be read, and run again.")
    if count.value == 0:
        raise _Refused(
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
            f"observed on {_rounded(count.days_observed)} of {_rounded(days)} days, and scaled up to all of them"
        )
    normal = _stream(seed, label).standard_normal(draws)
    return _Bound(
        Input(label, kind, float(count.value), low, high, unit, of, None, None, tuple(notes)),
        phrase,
        np.maximum(count.value + se * normal, 0.0),
        _reach(count.value, low, high),
        (reference,),
    )


# ---------------------------------------------------------------- the calculation


@dataclass(frozen=True, slots=True)
class _Model:
    """The claim as a function of its inputs, and the rule that a change of mind is measured by."""

    amount: Amount
    terms: tuple[_Bound, ...]
    costs: tuple[_Bound, ...]
    rule: Callable[[float, float], bool]  # of amount and cost

    def at(
        self, moved: _Bound | None = None, to: float = 0.0, *, effects: float = 1.0, factor: float = 1.0
    ) -> tuple[float, float]:
        """Amount and cost with every input at its centre but ``moved``; ``effects`` scales effects, ``factor`` the amount."""
        bindings: dict[Reference, float | FloatArray] = {}
        for one in self.terms:
            value = to if one is moved else one.show.value
            bindings.update(dict.fromkeys(one.references, value * (effects if one.show.kind == "effect" else 1.0)))
        cost = sum(to if one is moved else one.show.value for one in self.costs)
        return float(self.amount.evaluate(bindings)) * factor, cost

    def draws(self, size: int) -> tuple[FloatArray, FloatArray]:
        bindings: dict[Reference, float | FloatArray] = {}
        for one in self.terms:
            bindings.update(dict.fromkeys(one.references, one.draws))
        amount = np.broadcast_to(self.amount.evaluate(bindings), (size,)).astype(float)
        return amount, np.sum([one.draws for one in self.costs], axis=0) if self.costs else np.zeros(size)


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True, slots=True)
class _Threshold:
    figure: str  # roi, net or amount
    comparison: str
    number: float

    @classmethod
    def of(cls, decision: Decision) -> _Threshold:
        sign = next(sign for sign in (">=", "<=", ">", "<") if sign in decision.threshold)
        figure, _, number = decision.threshold.partition(sign)
        return cls(figure.strip(), sign, float(number))

    def holds(self, amount: Any, cost: Any) -> Any:
        """For numbers or arrays. roi > t is asked as net > t * cost: the same for a positive cost, and defined at zero."""
        if self.figure == "amount":
            return _COMPARE[self.comparison](amount, self.number)
        bar = self.number * cost if self.figure == "roi" else self.number
        return _COMPARE[self.comparison](amount - cost, bar)


def _finite(*figures: float) -> None:
    if not all(math.isfinite(x) for x in figures):
        raise _Refused("a figure of the claim is too large to be a number", "Check the sizes of its values and costs.")


def _quantity(value: float, draws: FloatArray, level: float, unit: str) -> Quantity:
    low, high, *inner = (float(q) for q in np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2, *_QUANTILES]))
    _finite(value, low, high)
    return Quantity(value, low, high, level, unit, dict(zip(_QUANTILES, inner, strict=True)))


def _payback(
    amount: float, cost: float, amounts: FloatArray, costs: FloatArray, period: timedelta, level: float
) -> Payback:
    days = period / timedelta(days=1)
    positive = amounts > 0
    times = np.full(amounts.shape, np.inf)
    np.divide(np.maximum(costs, 0.0) * days, amounts, out=times, where=positive)
    times.sort()

    def end(probability: float) -> float | None:
        at = float(times[max(math.ceil(probability * len(times)) - 1, 0)])  # no interpolation: it may be infinite
        return at if math.isfinite(at) else None

    value, never = cost / amount * days, float(np.mean(~positive))
    low, high = end(0.5 - level / 2), end(0.5 + level / 2)
    if low is not None and high is not None:
        shown = formats.written(value, low, high, _DAYS)
        sentence = f"The cost is covered after {shown.value} ({formats.level(level)} interval {shown.range})."
    else:
        start = (
            "" if low is None else f" ({formats.level(level)} interval from {_rounded(low, _DAYS)}, with no upper end)"
        )
        sentence = f"The cost is covered after {_rounded(value, _DAYS)}{start}; in {formats.probability(never)} of the draws it never is."
    if value > days:
        sentence += f" That is longer than the {_rounded(days)} days that the cost is for."
    return Payback(value, low, high, level, never, sentence)


# ---------------------------------------------------------------- sensitivity

_SCAN = 100
_DAYS, _SHARE = formats.unit("days"), formats.unit("share")


def _crossing(state: Callable[[float], bool], start: float, stop: float) -> float | None:
    """The value nearest to ``start``, on the way to ``stop``, at which ``state`` changes; None when it does not.

    Scans first, for functions that turn, then bisects. A value that cannot be evaluated ends the search.
    """
    here = state(start)
    before = start
    for step in range(1, _SCAN + 1):
        x = start + (stop - start) * step / _SCAN
        try:
            if state(x) != here:
                break
        except AmountError:
            return None
        before = x
    else:
        return None
    inside, outside = before, x
    exact = max(1e-12 * abs(stop - start), 4 * math.ulp(max(abs(start), abs(stop))))  # no finer than floats are
    while abs(outside - inside) > exact:
        middle = (inside + outside) / 2
        if state(middle) == here:
            inside = middle
        else:
            outside = middle
    at = (inside + outside) / 2
    return 0.0 if abs(at) <= exact else at


def _nearest(state: Callable[[float], bool], centre: float, low: float, high: float) -> float | None:
    found = [x for x in (_crossing(state, centre, low), _crossing(state, centre, high)) if x is not None]
    return min(found, key=lambda x: abs(x - centre)) if found else None


@dataclass(frozen=True, slots=True)
class _Words:
    """How a change of mind is written: "the net would be zero", "the sign of the net"."""

    outcome: str
    subject: str


def _swing(
    label: str,
    phrase: str,
    centre: float,
    low: float,
    high: float,
    search: tuple[float, float],
    at: Callable[[float], tuple[float, float]],
    rule: Callable[[float, float], bool],
    show: Callable[[float], str],
    words: _Words,
) -> Swing:
    def net(x: float) -> float:
        amount, cost = at(x)
        return amount - cost

    def state(x: float) -> bool:
        return rule(*at(x))

    path = [net(low + (high - low) * step / _SCAN) for step in range(_SCAN + 1)] if low < high else [net(centre)]
    _finite(*path, max(path) - min(path))
    flips_at = _nearest(state, centre, low, high) if low < high else None
    break_even = flips_at if flips_at is not None else _nearest(state, centre, *search)
    if break_even is None:
        way = ""
    else:
        verb = "fell below" if break_even < centre else "rose above"
        way = f"if {phrase} {verb} {show(break_even)}, {words.outcome}"
    if flips_at is not None:
        sentence = f"{way[0].upper()}{way[1:]}; that lies within its range, {show(low)} to {show(high)}."
    elif low < high:
        sentence = f"Moving {phrase} anywhere from {show(low)} to {show(high)} does not change {words.subject}"
        sentence += f"; {way}, which lies outside that range." if way else "."
    else:
        sentence = f"{phrase[0].upper()}{phrase[1:]} is taken as exact, at {show(centre)}" + (
            f"; {way}." if way else "."
        )
    return Swing(
        input=label,
        value=centre,
        low_input=low,
        high_input=high,
        net_at_low=path[0],
        net_at_high=path[-1],
        swing=max(path) - min(path),
        flips=flips_at is not None,
        flips_at=flips_at,
        break_even=break_even,
        sentence=sentence,
    )


def _sensitivity(
    model: _Model, claim: Claim, period: timedelta | None, words: _Words, descriptive: bool
) -> tuple[tuple[Swing, ...], tuple[str, ...]]:
    swings: list[Swing] = []
    notes: list[str] = []
    for one in model.terms + model.costs:
        shown = one.show
        phrase = f"the figure for {shown.name}" if descriptive and shown.kind == "effect" else one.phrase

        def moved(x: float, one: _Bound = one) -> tuple[float, float]:
            return model.at(one, x)

        def text(x: float, unit: str = shown.unit, kind: str = shown.kind) -> str:
            return _rounded(x, formats.unit(unit), change=kind == "effect")

        swings.append(
            _swing(shown.name, phrase, shown.value, shown.low, shown.high, one.search, moved, model.rule, text, words)
        )

    def named(name: str, phrase: str, high: float, at: Callable[[float], tuple[float, float]]) -> None:
        swings.append(_swing(name, phrase, 0.0, 0.0, high, (0.0, high), at, model.rule, _percentage, words))

    has_effect = any(one.show.kind == "effect" for one in model.terms)
    for asked in dict.fromkeys(claim.sensitivity):
        if asked != "discount_rate" and not has_effect:
            notes.append(f"The sensitivity to {asked} was asked for, but no measured effect enters the amount.")
        elif asked == "holdout_contamination":
            # A share c of the control group had the treatment after all, so the measured effect is (1 - c) of the true one.
            named(
                asked,
                "the share of the control group that was treated after all",
                0.10,
                lambda c: model.at(effects=1 / (1 - c)),
            )
        elif asked == "novelty_decay":
            # Linear from 1 to 1 - d over the period, whose mean is 1 - d / 2.
            named(
                asked,
                f"the part of the {'figure' if descriptive else 'effect'} lost by the end of the period",
                0.50,
                lambda d: model.at(effects=1 - d / 2),
            )
        elif period is None:
            notes.append(
                "The sensitivity to discount_rate was asked for, but the amount has no period to discount over."
            )
        else:
            years = period / timedelta(days=365)

            def discounted(rate: float, years: float = years) -> tuple[float, float]:
                # Money that comes in evenly over T years, discounted continuously; the cost is taken as paid at the start.
                x = rate * years
                return model.at(factor=-math.expm1(-x) / x if x > 0 else 1.0)

            named(asked, "the discount rate", 0.20, discounted)
    return tuple(sorted(swings, key=lambda swing: -swing.swing)), tuple(notes)


def _overturn(
    swings: Sequence[Swing], headline: Quantity, verdict: Verdict, used: Mapping[str, Result], subject: str
) -> tuple[str, ...]:
    found: list[str] = []
    for name, result in used.items():
        for check in result.checks:
            if check.status in ("fail", "warn"):
                word = "failed" if check.status == "fail" else "gave a warning"
                found.append(f"The check {check.name} of {name} {word}: {check.detail}")
    if verdict == "not conclusive":
        found.append(
            f"Chance alone: the {formats.level(headline.level)} interval of {subject} includes zero, "
            "so its sign is not settled."
        )
    flips = [swing.sentence for swing in swings if swing.flips]
    if not flips:
        nearest = min(
            ((abs(s.break_even - s.value) / abs(s.value), s) for s in swings if s.break_even is not None and s.value),
            key=lambda pair: pair[0],
            default=None,
        )
        if nearest is not None:
            flips = [f"No single input, moved within its range, does it. {nearest[1].sentence}"]
    return tuple(found + flips)


# ---------------------------------------------------------------- words and figures


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _rounded(x: float, unit: formats.Unit = formats.NUMBER, *, change: bool = False) -> str:
    """Three significant digits, for an end of a range or a turning point; a change of a share is in points."""
    return formats.exact(float(f"{x:.3g}"), unit, change=change and unit.kind == "share").removeprefix("+")


def _percentage(share: float) -> str:
    return _rounded(share, _SHARE)


def _per(period: timedelta | None) -> str:
    return "" if period is None else "/year" if period == timedelta(days=365) else f"/{period_text(period)}"


def _is_money(unit: str, currency: str) -> bool:
    read = formats.unit(unit)
    return read.kind == "money" and read.label == currency


def _unit(claim: Claim, amount: Amount, terms: Sequence[_Bound], currency: str) -> tuple[str, tuple[str, ...]]:
    """The amount's unit, and what had to be assumed to name it."""
    if claim.unit:
        return claim.unit, ()
    per = _per(amount.period)
    units = list(dict.fromkeys(one.show.unit for one in terms if one.show.kind == "effect"))
    if amount.values or (units and all(_is_money(unit, currency) for unit in units)):
        return currency + per, ()
    plain = _listed([unit or "no declared unit" for unit in units]) if units else "no unit"
    if claim.less or not units:
        read = [formats.unit(unit) for unit in units]
        if any(one.kind in ("share", "relative", "duration") or "point" in one.label for one in read):
            raise _Refused(
                f"the amount is in {plain}, and costs in {currency} cannot be taken from it",
                "Multiply the amount by a value(), which says what one is worth; or leave out the costs under less.",
            )
        whose = "the amount has no unit of its own" if not units else f"its effects are in {plain}"
        return currency + per, (f"The amount is in {currency}: {whose}, and nothing declares otherwise.",)
    if len(units) > 1:
        raise _Refused(
            f"the amount mixes effects in {plain}", "Price them with value(), or give the claim a unit of its own."
        )
    counted = [one.show.source or "" for one in terms if one.show.kind in ("volume", "population")]
    if not counted:
        return units[0] + per, ()
    head = re.split(r"/| per ", units[0])[0]
    # A share of the units counted is a number of those units.
    return (counted[0] if formats.unit(head).kind == "share" else head) + per, ()


# ---------------------------------------------------------------- the claim


def price(
    name: str,
    claim: Claim,
    results: Mapping[str, Result | Refusal],
    values: Mapping[str, Value],
    volumes: Mapping[tuple[str, timedelta], Volume],
    populations: Mapping[tuple[str, timedelta | None], Population],
    currency: str,
    today: date,
    seed: int,
    draws: int = 20_000,
    alpha: float = 0.05,
) -> ClaimResult | Refusal:
    """Price ``claim``: figures in ``currency`` over the amount's period, intervals at level 1 - ``alpha``.

    ``results`` is keyed by the names under the claim's ``evidence``; ``volumes`` and ``populations`` by what the amount
    refers to. The central figures are the amount at the central inputs. The intervals are quantiles of ``draws`` joint
    draws: effects of one result by their own distributions and correlations (Gaussian copula), results independently;
    values and costs from triangular distributions; volumes from normal ones. The same seed gives the same answer.
    """
    try:
        # What overflows is found by _finite() and refused.
        with np.errstate(over="ignore", invalid="ignore"):
            return _price(name, claim, results, values, volumes, populations, currency, today, seed, draws, 1 - alpha)
    except _Refused as refused:
        return Refusal(name, refused.reason, refused.remedy)
    except AmountError as error:
        return Refusal(name, f"the amount '{claim.amount}' has no number: {error}", "Change the claim's amount.")


def _price(
    name: str,
    claim: Claim,
    results: Mapping[str, Result | Refusal],
    values: Mapping[str, Value],
    volumes: Mapping[tuple[str, timedelta], Volume],
    populations: Mapping[tuple[str, timedelta | None], Population],
    currency: str,
    today: date,
    seed: int,
    draws: int,
    level: float,
) -> ClaimResult:
    amount = parse(claim.amount)
    references = amount.references()
    level = round(level, 12)  # 1 - 0.05 is 0.95, not 0.95 and a bit
    notes: list[str] = []

    effects, used, disagreements, assumptions = _bind_effects(
        [r for r in references if isinstance(r, Effect)], claim, results, level, seed, draws
    )
    terms = list(effects)
    for reference in references:
        if isinstance(reference, ValueOf):
            value = values.get(reference.name)
            if value is None:
                hint = did_you_mean(reference.name, values)
                raise _Refused(f"'{reference.name}' is not a declared value{hint}", "Declare it under values.")
            rng = _stream(seed, str(reference))
            bound = _bind_money(
                str(reference), "value", value, f"the value {reference.name}", currency, today, rng, draws
            )
            terms.append(_Bound(bound.show, bound.phrase, bound.draws, bound.search, (reference,)))
        elif not isinstance(reference, Effect):
            terms.append(_bind_count(reference, volumes, populations, level, seed, draws))
    costs: list[_Bound] = []
    for label, cost in claim.less.items():
        rng = _stream(seed, f"cost({name}.{label})")
        costs.append(_bind_money(f"cost({label})", "cost", cost, f"the cost {label}", currency, today, rng, draws))
        short = lacks(cost, today, needs_range=False)
        if short:
            notes.append(f"The cost {label} {_listed(short)}; it is taken as given.")

    unit, unit_assumptions = _unit(claim, amount, terms, currency)
    money = _is_money(unit, currency)
    if costs and not money:
        raise _Refused(
            f"the claim's unit is '{unit}', and costs in {currency} cannot be taken from it",
            f"Give the claim a unit in {currency}, or leave out the costs under less.",
        )
    period = amount.period

    threshold = _Threshold.of(claim.decision) if claim.decision is not None else None

    def rule(amount: float, cost: float) -> bool:
        return bool(threshold.holds(amount, cost)) if threshold is not None else amount - cost > 0

    model = _Model(amount, tuple(terms), tuple(costs), rule)
    central_amount, central_cost = model.at()
    amounts, cost_draws = model.draws(draws)
    nets = amounts - cost_draws
    gross = _quantity(central_amount, amounts, level, unit)
    headline = _quantity(central_amount - central_cost, nets, level, unit)
    net = headline if money else None
    subject = "the net" if money else "the amount"

    # ROI and payback
    costly = central_cost > 0 and bool(np.all(cost_draws > 0))
    roi: Quantity | None = None
    payback: Payback | None = None
    if costly:
        roi = _quantity(headline.value / central_cost, nets / cost_draws, level, "ratio")
        if period is None:
            notes.append("There is no payback time: the amount has no period over which it comes in.")
        elif central_amount <= 0:
            notes.append("There is no payback time: the amount is not positive, so it never covers the cost.")
        else:
            payback = _payback(central_amount, central_cost, amounts, cost_draws, period, level)
    elif money and not costs:
        notes.append(
            "No cost is declared under less, so the net equals the amount and there is no ROI or payback time."
        )
    elif money:
        notes.append("There is no ROI or payback time: the total cost is not, or not certainly, above zero.")
    if threshold is not None and threshold.figure == "roi" and roi is None:
        raise _Refused(
            "the decision asks for the ROI, which needs a cost above zero",
            "Declare what it costs under less, or decide on net or amount.",
        )

    # What the interval shows, what the checks allow, how it is graded
    positive = float(np.mean(nets > 0))
    withheld = [n for n, result in used.items() if result.verdict == "withheld" or result.failed()]
    at_risk = [n for n, result in used.items() if result.verdict == "guardrail at risk"]
    verdict: Verdict = "positive" if headline.low > 0 else "negative" if headline.high < 0 else "not conclusive"
    if withheld:
        verdict = "withheld"
    elif at_risk and verdict == "positive":
        verdict = "guardrail at risk"
    letter, reasons = grade(
        {n: result.grade for n, result in used.items()}, {n: values[n] for n in amount.values}, disagreements, today
    )
    descriptive = letter not in CAUSAL_GRADES

    # What must hold
    for evidence in used:
        assumptions.append(f"What {evidence} assumes, listed with that result, holds.")
    if used and not descriptive:
        assumptions.append(
            "The effect is as large over the whole period, and for everyone the amount counts, as it was where it was measured."
        )
    if len(terms) + len(costs) > 1:
        assumptions.append("Measured figures, values, volumes and costs err independently of one another.")
    if any(one.show.low < one.show.high for one in terms + costs if one.show.kind in ("value", "cost")):
        assumptions.append(
            "A value or cost with a range lies in it for certain, is likeliest at its central figure, and ever less likely "
            "towards the ends (a triangular distribution)."
        )
    assumptions.append(
        f"The probability that {subject} is positive reads the data alone, with no opinion held beforehand (a flat prior)."
    )
    assumptions.extend(unit_assumptions)
    for evidence in claim.evidence:
        if evidence not in used and isinstance(results.get(evidence), Refusal):
            notes.append(f"{evidence} was refused; the amount does not need it.")
    notes += [f"{d[0].upper()}{d[1:]}." for d in disagreements]
    for figure, what in ((gross, "amount"), (headline, "net")):
        if not figure.low <= figure.value <= figure.high:
            notes.append(
                f"The {what} at the central inputs lies outside its own interval, because a range is lopsided: its central "
                "figure is at or near one end. Check the ranges of the values and costs."
            )
            break

    decision = None
    if claim.decision is not None and threshold is not None:
        decision = _decide(claim.decision, float(np.mean(threshold.holds(amounts, cost_draws))), withheld)
    swings, skipped = _sensitivity(model, claim, period, _words(threshold, subject, unit), descriptive)
    notes.extend(skipped)
    risky = [
        f"{n} ({', '.join(sorted({r.metric for r in used[n].readings if r.state in ('at risk', 'breached')}))})"
        for n in at_risk
    ]
    if risky:
        notes.append(f"A guardrail is at risk in {_listed(risky)}.")
    tail = "" if not money else " net" if costs else " before any cost"
    return ClaimResult(
        name=name,
        statement=claim.statement,
        grade=letter,
        grade_reasons=reasons,
        verdict=verdict,
        finding=_finding(claim, headline, tail, positive, verdict, letter, withheld, risky),
        evidence=claim.evidence,
        amount_expression=str(amount),
        amount=gross,
        cost=central_cost,
        costs=tuple(_plain_cost(one.show) for one in costs),
        net=net,
        roi=roi,
        payback=payback,
        probability_positive=positive,
        decision=decision,
        inputs=tuple(one.show for one in terms + costs),
        sensitivity=swings,
        overturn=_overturn(swings, headline, verdict, used, subject),
        assumptions=tuple(dict.fromkeys(assumptions)),
        notes=tuple(dict.fromkeys(notes)),
        net_quantiles=tuple(headline.quantiles[q] for q in _DOTS),
        currency=currency,
        period=None if period is None else period_text(period),
        owner=claim.owner,
    )


def _plain_cost(cost: Input) -> Input:
    """A cost under the name it is declared by: run_cost, not cost(run_cost)."""
    return Input(
        cost.name.removeprefix("cost(").removesuffix(")"),
        cost.kind,
        cost.value,
        cost.low,
        cost.high,
        cost.unit,
        cost.source,
        cost.owner,
        cost.expires,
        cost.notes,
    )


def _decide(decision: Decision, observed: float, withheld: Sequence[str]) -> DecisionReading:
    text = " ".join(decision.threshold.split())
    met = observed >= decision.probability
    seen = formats.probability(observed, [decision.probability])
    sentence = (
        f"The decision rule is {'met' if met else 'not met'}: {text} has a probability of {seen}, and "
        f"{formats.probability(decision.probability)} is asked for."
    )
    if withheld:
        sentence = (
            f"Do not act on the decision rule: {_listed(withheld)} is withheld, because a check failed. {sentence}"
        )
    return DecisionReading(text, decision.probability, observed, met, sentence)


def _words(threshold: _Threshold | None, subject: str, unit: str) -> _Words:
    if threshold is None:
        return _Words(f"{subject} would be zero", f"the sign of {subject}")
    figure = "the ROI" if threshold.figure == "roi" else f"the {threshold.figure}"
    if threshold.number == 0:
        return _Words(f"{'the net' if threshold.figure == 'roi' else figure} would be zero", "the decision")
    bar = _rounded(threshold.number, formats.NUMBER if threshold.figure == "roi" else formats.unit(unit))
    return _Words(f"{figure} would be {bar}, the decision's threshold", "the decision")


def _finding(
    claim: Claim,
    headline: Quantity,
    tail: str,
    positive: float,
    verdict: Verdict,
    letter: str,
    withheld: Sequence[str],
    risky: Sequence[str],
) -> str:
    # What is not money is the metric itself, moved: it is written with its sign, and a share in points.
    shown = formats.written(headline.value, headline.low, headline.high, formats.unit(headline.unit), change=not tail)
    if headline.low < headline.high:
        sure = (
            f"({formats.level(headline.level)} interval {shown.range}), {formats.likelihood(positive)} to be above zero "
            f"(probability {formats.probability(positive)})"
        )
    else:
        sure = "(exact: no input has a range, so this is no measure of certainty)"
    statement = formats.clean(claim.statement).rstrip(" .:")
    if letter not in CAUSAL_GRADES:
        statement = f'Stated as "{statement}"'
    sentence = f"{statement}: {shown.value}{tail} {sure}. Evidence grade {letter}"
    sentence += "." if letter in CAUSAL_GRADES else ": descriptive only."
    if withheld:
        return f"Withheld, because a check failed in {_listed(withheld)}; do not rely on this figure. {sentence}"
    if verdict == "not conclusive":
        return f"Not conclusive. {sentence}"
    if verdict == "guardrail at risk":
        return f"{sentence} A guardrail is at risk in {_listed(risky)}."
    return sentence

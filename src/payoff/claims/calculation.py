"""The claim as a function of its inputs: its figures at the centre and in the draws, its unit, and its decision rule."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from payoff import formats
from payoff.claims.inputs import Bound
from payoff.claims.model import Payback, Quantity, Refused
from payoff.claims.words import listed, per_period, rounded
from payoff.estimate import FloatArray
from payoff.spec.amount import Amount, Reference
from payoff.spec.nouns import Claim, Decision

DOTS = tuple((i + 0.5) / 20 for i in range(20))
_QUANTILES = tuple(sorted({*DOTS, 0.1, 0.25, 0.5, 0.75, 0.9}))
"""Kept with every figure: twenty equally likely values, the middle half, and P10, P50, P90."""

_DAYS = formats.unit("days")


@dataclass(frozen=True, slots=True)
class Model:
    """The claim as a function of its inputs, and the rule that a change of mind is measured by."""

    amount: Amount
    terms: tuple[Bound, ...]
    costs: tuple[Bound, ...]
    rule: Callable[[float, float], bool]  # of amount and cost

    def at(
        self, moved: Bound | None = None, to: float = 0.0, *, effects: float = 1.0, factor: float = 1.0
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
class Threshold:
    figure: str  # roi, net or amount
    comparison: str
    number: float

    @classmethod
    def of(cls, decision: Decision) -> Threshold:
        sign = next(sign for sign in (">=", "<=", ">", "<") if sign in decision.threshold)
        figure, _, number = decision.threshold.partition(sign)
        return cls(figure.strip(), sign, float(number))

    def holds(self, amount: Any, cost: Any) -> Any:
        """For numbers or arrays. roi > t is asked as net > t * cost: the same for a positive cost, and defined at zero."""
        if self.figure == "amount":
            return _COMPARE[self.comparison](amount, self.number)
        bar = self.number * cost if self.figure == "roi" else self.number
        return _COMPARE[self.comparison](amount - cost, bar)


def finite(*figures: float) -> None:
    if not all(math.isfinite(x) for x in figures):
        raise Refused("a figure of the claim is too large to be a number", "Check the sizes of its values and costs.")


def quantity(value: float, draws: FloatArray, level: float, unit: str) -> Quantity:
    low, high, *inner = (float(q) for q in np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2, *_QUANTILES]))
    finite(value, low, high)
    return Quantity(value, low, high, level, unit, dict(zip(_QUANTILES, inner, strict=True)))


def payback_of(
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
            "" if low is None else f" ({formats.level(level)} interval from {rounded(low, _DAYS)}, with no upper end)"
        )
        sentence = f"The cost is covered after {rounded(value, _DAYS)}{start}; in {formats.probability(never)} of the draws it never is."
    if value > days:
        sentence += f" That is longer than the {rounded(days)} days that the cost is for."
    return Payback(value, low, high, level, never, sentence)


def is_money(unit: str, currency: str) -> bool:
    read = formats.unit(unit)
    return read.kind == "money" and read.label == currency


def unit_of(claim: Claim, amount: Amount, terms: Sequence[Bound], currency: str) -> tuple[str, tuple[str, ...]]:
    """The amount's unit, and what had to be assumed to name it."""
    if claim.unit:
        return claim.unit, ()
    per = per_period(amount.period)
    measured = [one.show for one in terms if one.show.kind in ("effect", "attributed")]
    units = list(dict.fromkeys(show.unit for show in measured))
    if amount.values or (units and all(is_money(unit, currency) for unit in units)):
        return currency + per, ()
    noun = "effects" if all(show.kind == "effect" for show in measured) else "measured figures"
    plain = listed([unit or "no declared unit" for unit in units]) if units else "no unit"
    if claim.less or not units:
        read = [formats.unit(unit) for unit in units]
        if any(one.kind in ("share", "relative", "duration") or "point" in one.label for one in read):
            raise Refused(
                f"the amount is in {plain}, and costs in {currency} cannot be taken from it",
                "Multiply the amount by a value(), which says what one is worth; or leave out the costs under less.",
            )
        whose = "the amount has no unit of its own" if not units else f"its {noun} are in {plain}"
        return currency + per, (f"The amount is in {currency}: {whose}, and nothing declares otherwise.",)
    if len(units) > 1:
        raise Refused(
            f"the amount mixes {noun} in {plain}",
            "Price them with value(), or give the claim a unit of its own.",
        )
    counted = [one.show.source or "" for one in terms if one.show.kind in ("volume", "population")]
    if not counted:
        return units[0] + per, ()
    head = re.split(r"/| per ", units[0])[0]
    # A share of the units counted is a number of those units.
    return (counted[0] if formats.unit(head).kind == "share" else head) + per, ()

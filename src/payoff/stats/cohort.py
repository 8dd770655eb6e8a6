"""Figures of a cohort: what a unit is worth so far, how often it comes, what it cost to win, and when that is paid back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from payoff.estimate import t_quantile
from payoff.stats.proportion import poisson_count

_LOST = 1e-10
"""A variance of less than this share of the squared mean is rounding where it is taken from sums of squares."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over ``n`` units with its standard error; ``df`` are those of Student's t."""

    n: int
    value: float
    se: float
    df: float

    def interval(self, level: float) -> tuple[float, float]:
        half = t_quantile(0.5 + level / 2, self.df) * self.se
        return self.value - half, self.value + half


def mean_of(n: int, total: float, squares: float) -> Mean | None:
    """The mean of ``n`` units from their sum and sum of squares, with s / sqrt(n) and n - 1 degrees of freedom.

    None where there is no spread to tell an error from: under two units, or all values alike (to five digits: a smaller spread is
    lost to rounding in a sum of squares; Chan, Golub, LeVeque 1983, section 1). Raises ValueError where a sum is not finite.
    """
    if not (math.isfinite(total) and math.isfinite(squares)):
        raise ValueError("a sum of values or of their squares is not a finite number: values are too large")
    if n < 2:
        return None
    mean = total / n
    variance = (squares - total * mean) / (n - 1)
    if variance <= _LOST * max(mean * mean, squares / n):
        return None
    return Mean(n, mean, math.sqrt(variance / n), n - 1.0)


def share_of_days(n: int, total: int, squares: int, days: int, level: float) -> tuple[float, float, float]:
    """Stickiness: (value, low, high) of the mean over ``n`` units of active days / ``days``, which is DAU / MAU.

    The step's days are fixed, so the delta method over units is the standard error of a mean; the ends are cut at 1 / days and 1,
    which no active unit can pass. Where all units are alike the Wilson interval of that share is taken instead: a share per
    unit varies by at most p(1 - p), so it is wide enough. Raises ValueError on counts that cannot be.
    """
    if n < 1 or not n <= total <= n * days:
        raise ValueError(f"{n} units with {total} active days of {days} cannot be")
    value = total / (n * days)
    spread = mean_of(n, float(total), float(squares))
    if spread is None:
        z2 = t_quantile(0.5 + level / 2, math.inf) ** 2
        centre = value + z2 / (2 * n)
        half = math.sqrt(z2 * (value * (1 - value) / n + z2 / (4 * n * n)))
        low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    else:
        low, high = (end / days for end in spread.interval(level))
    return value, min(max(low, 1 / days), value), max(min(high, 1.0), value)


def cost_per_unit(cost: float, units: int, level: float) -> tuple[float, float, float]:
    """CAC: (value, low, high) of ``cost`` / ``units`` won, the units a Poisson count (Garwood 1936) and the cost known.

    Raises ValueError unless both are above zero.
    """
    if units < 1 or not (math.isfinite(cost) and cost > 0):
        raise ValueError(f"a cost of {cost:g} for {units} units gives no cost per unit")
    few, many = poisson_count(units, level)
    return cost / units, cost / many, cost / few


@dataclass(frozen=True, slots=True)
class Payback:
    """The period at whose end the cost is back: as measured, at the earliest (the band's upper end), at the latest (its lower end).

    None: not reached in the periods given. ``earliest`` <= ``period`` <= ``latest`` where they are known.
    """

    period: int | None
    earliest: int | None
    latest: int | None


def payback(bands: Sequence[tuple[float, float, float] | None], cost: float) -> Payback:
    """The first period whose cumulative revenue per unit, (value, low, high), is at least ``cost`` per unit.

    A period without a band (None) is passed over. Raises ValueError where a band does not hold its value.
    """
    first: list[int | None] = [None, None, None]
    for k, band in enumerate(bands):
        if band is None:
            continue
        value, low, high = band
        if not low <= value <= high:
            raise ValueError(f"a band from {low:g} to {high:g} does not hold {value:g}")
        for i, figure in enumerate((value, high, low)):
            if first[i] is None and figure >= cost:
                first[i] = k
    return Payback(*first)

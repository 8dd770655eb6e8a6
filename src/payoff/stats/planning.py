"""Sizes before an experiment: the chance of a finding, how many units it takes, when they will have come."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from payoff.estimate import FloatArray
from payoff.stats import compare, sequential

# ---------------------------------------------------------------- the tests planned for


@dataclass(frozen=True, slots=True)
class Question:
    """One question as it will be decided: at ``alpha`` (already shared out among several), under the stopping rule.

    ``sides`` 2 finds a difference; 1 excludes harm beyond a margin with the harmful end of the two-sided interval.
    """

    alpha: float
    sides: compare.Sides = 2
    rule: str = "fixed"
    design_alpha: float = 0.05
    tightest_at: float = sequential.TIGHTEST_AT
    looks: int = 1
    spending: sequential.Spending = "obrien_fleming"

    def chance(self, effect: float, v_t: float, n_t: float, v_c: float, n_c: float, wanted: float) -> float:
        """The chance that ``effect`` (above zero; a margin for one side) is found by the last planned look.

        Exact for a fixed design (noncentral t). Always valid: the chance at a look at this size, which earlier looks can
        only add to. Group-sequential: that of a fixed design with fewer units, by the inflation factor, exact where the
        chance is ``wanted`` (Jennison and Turnbull 2000, section 2.3); one-sided, at the last look alone.
        """
        if self.rule == "always_valid":
            high = sequential.always_valid(
                0.0, 1.0, n_t + n_c, self.tightest_at, 1 - self.alpha, design_alpha=self.design_alpha
            )[1]
            return _beyond(effect, v_t, n_t, v_c, n_c, high, self.sides)
        level = 1 - self.alpha
        if self.rule == "group_sequential" and self.sides == 2:
            factor = inflation(self.looks, self.spending, self.alpha, wanted)
            v_t, v_c = v_t * factor, v_c * factor
        if self.sides == 1:
            last = (
                even_boundaries(self.looks, self.alpha, self.spending)[-1] if self.rule == "group_sequential" else None
            )
            level = 1 - self.alpha / 2 if last is None else float(special.ndtr(last))
        return compare.power(effect, v_t, n_t, v_c, n_c, level=level, sides=self.sides)


def _beyond(
    effect: float, v_t: float, n_t: float, v_c: float, n_c: float, critical: float, sides: compare.Sides
) -> float:
    """The chance that difference / se exceeds ``critical`` (in size, for two sides): noncentral t with Welch's df."""
    a, b = v_t / n_t, v_c / n_c
    df = 1 / ((a / (a + b)) ** 2 / (n_t - 1) + (b / (a + b)) ** 2 / (n_c - 1))
    shift = effect / math.sqrt(a + b)

    def below(x: float) -> float:
        found = float(special.nctdtr(df, shift, x))
        return found if math.isfinite(found) else 0.0 if shift > x else 1.0  # scipy has no tail below 1e-80

    return 1 - below(critical) + (below(-critical) if sides == 2 else 0.0)


@lru_cache(maxsize=256)
def even_boundaries(looks: int, alpha: float, spending: sequential.Spending) -> tuple[float, ...]:
    return sequential.boundaries([(k + 1) / looks for k in range(looks)], alpha, spending)


def sequential_power(drift: float, critical: Sequence[float]) -> float:
    """The chance that |z| exceeds ``critical`` at one of equally spaced looks, z at the last having mean ``drift``.

    By recursive integration of the density of z among those that did not cross yet (Armitage, McPherson, Rowe 1969;
    Jennison and Turnbull 2000, section 19.2). Looks are shares k / K of the information.
    """
    if not critical or not all(c > 0 for c in critical):
        raise ValueError("each look needs a critical value above zero")
    x, w = _legendre()
    crossed = 0.0
    z: FloatArray = np.zeros(1)
    mass: FloatArray = np.ones(1)
    looks = len(critical)
    for k, c in enumerate(critical):
        keep = math.sqrt(k / (k + 1))
        sd = math.sqrt(1 / (k + 1))
        mean = keep * z + drift / math.sqrt(looks) * sd  # the new information's part of z
        crossed += float(mass @ (special.ndtr((mean - c) / sd) + special.ndtr((-c - mean) / sd)))
        middle = drift * math.sqrt((k + 1) / looks)
        low, high = max(-c, middle - 9), min(c, middle + 9)
        if high <= low:
            break
        nodes, weights = low + (high - low) / 2 * (x + 1), (high - low) / 2 * w
        kernel = np.exp(-0.5 * ((nodes[:, None] - mean[None, :]) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))
        z, mass = nodes, weights * (kernel @ mass)
    return min(1.0, crossed)


@lru_cache(maxsize=1)
def _legendre() -> tuple[FloatArray, FloatArray]:
    x, w = special.roots_legendre(240)
    return x, w


@lru_cache(maxsize=256)
def inflation(looks: int, spending: sequential.Spending, alpha: float, power: float) -> float:
    """How many times the units of a fixed design a group-sequential one needs at its last look, for the same power."""
    critical = even_boundaries(looks, alpha, spending)
    fixed = _drift(lambda d: sequential_power(d, (-float(special.ndtri(alpha / 2)),)), power)
    return (_drift(lambda d: sequential_power(d, critical), power) / fixed) ** 2


def _drift(chance: Callable[[float], float], power: float) -> float:
    return float(optimize.brentq(lambda d: chance(d) - power, 0.0, 40.0, xtol=1e-10))


# ---------------------------------------------------------------- sizes


@dataclass(frozen=True, slots=True)
class Baseline:
    """What one observation (a unit; a cluster, where those are assigned) is like without treatment.

    ``variance`` is that of an observation's contribution, after adjustment. ``binary`` is the level of a 0/1 metric, whose
    variance moves with it; ``sign`` the direction in which it improves.
    """

    value: float
    variance: float
    sign: int = 1
    binary: bool = False

    def moved(self, effect: float) -> float:
        """The variance where the level has moved by ``effect`` towards the better. Raises ValueError where it cannot."""
        if not self.binary:
            return self.variance
        there = self.value + self.sign * effect
        if not 0 < there < 1:
            raise ValueError(
                f"a share of {self.value:.4g} cannot {'rise' if self.sign > 0 else 'fall'} by {effect:.4g}: it would be {there:.4g}"
            )
        return self.variance * there * (1 - there) / (self.value * (1 - self.value))

    @property
    def room(self) -> float:
        """The largest effect there can be."""
        return math.inf if not self.binary else 1 - self.value if self.sign > 0 else self.value


def power_at(
    effect: float, total: float, baseline: Baseline, shares: tuple[float, float], q: Question, wanted: float
) -> float:
    """The chance to find ``effect`` with ``total`` observations over all arms; ``shares`` of them are (treatment, control)."""
    v_t = baseline.variance if q.sides == 1 else baseline.moved(effect)
    return q.chance(effect, v_t, total * shares[0], baseline.variance, total * shares[1], wanted)


def observations(effect: float, baseline: Baseline, shares: tuple[float, float], q: Question, power: float) -> float:
    """The observations over all arms that find ``effect`` with chance ``power``; not rounded. Raises ValueError."""
    if not (math.isfinite(effect) and effect > 0):
        raise ValueError(f"the effect to find must be above zero, not {effect}")

    def surplus(log_total: float) -> float:
        return power_at(effect, math.exp(log_total), baseline, shares, q, power) - power

    low = math.log(2.000001 / min(shares))
    high = low
    while surplus(high) < 0:
        low, high = high, high + 1.0
        if high > math.log(1e15):
            raise ValueError("no number of units below 10^15 would find an effect this small")
    return math.exp(high if high == low else float(optimize.brentq(surplus, low, high, xtol=1e-13)))


def smallest(total: float, baseline: Baseline, shares: tuple[float, float], q: Question, power: float) -> float | None:
    """The smallest effect found with chance ``power`` with ``total`` observations; None where none that can exist would be."""
    if total * min(shares) < 2:
        return None

    def surplus(effect: float) -> float:
        return power_at(effect, total, baseline, shares, q, power) - power

    most = baseline.room * (1 - 1e-9)
    high = min(most, math.sqrt(baseline.variance / total * (1 / shares[0] + 1 / shares[1])))
    while surplus(high) < 0:
        if high >= most:
            return None
        high = min(most, 2 * high)
    return float(optimize.brentq(surplus, high * 1e-9, high, xtol=1e-13 * high))


# ---------------------------------------------------------------- arrivals


def rate(counts: Sequence[int]) -> float:
    """New units a day over the last week recorded."""
    if len(counts) <= 7:
        return counts[-1] / len(counts)
    return (counts[-1] - counts[-8]) / 7


def arrived(counts: Sequence[int], day: float) -> tuple[float, bool]:
    """How many have come by the end of ``day`` (from 1), and whether that is beyond what was recorded.

    ``counts`` are cumulative by the end of each recorded day; beyond the last it grows at the last week's rate.
    """
    if day > len(counts):
        return counts[-1] + (day - len(counts)) * rate(counts), True
    return float(np.interp(day, range(len(counts) + 1), (0, *counts))), False


def days_until(counts: Sequence[int], wanted: float) -> tuple[float | None, bool]:
    """The inverse of `arrived`: None where that many never come."""
    if not counts:
        return None, False
    if wanted <= 0:
        return 0.0, False
    if wanted > counts[-1]:
        a_day = rate(counts)
        return (None, True) if a_day <= 0 else (len(counts) + (wanted - counts[-1]) / a_day, True)
    k = next(k for k, n in enumerate(counts) if n >= wanted)
    before = counts[k - 1] if k else 0
    return k + (wanted - before) / (counts[k] - before), False

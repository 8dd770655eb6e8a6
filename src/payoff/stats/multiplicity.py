"""Many questions at once: p-values adjusted for how many there are, and intervals that agree with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from payoff.estimate import FloatArray

Interval = Callable[[int, float], tuple[float, float]]
"""(index of the question, level of confidence) to (low, high): any kind of interval will do."""


@dataclass(frozen=True, slots=True)
class Corrected:
    """Adjusted p-values and their intervals, in the order of the questions; ``level`` is that of each interval.

    An interval excludes zero exactly when its adjusted p-value is at most 1 - the family's level.
    """

    p_values: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    level: float


def holm(p: Sequence[float]) -> tuple[float, ...]:
    """Holm's adjusted p-values (Holm 1979, "A simple sequentially rejective multiple test procedure").

    Whatever the dependence, the chance of any false finding at adjusted p <= alpha is at most alpha.
    """
    raw, order = _sorted(p)
    m = len(raw)
    stepped = np.maximum.accumulate(raw[order] * np.arange(m, 0, -1))
    return _unsorted(stepped, order)


def benjamini_hochberg(p: Sequence[float]) -> tuple[float, ...]:
    """Benjamini and Hochberg's adjusted p-values (1995, "Controlling the false discovery rate").

    Of the findings at adjusted p <= alpha, at most alpha are false on average, for independent or positively dependent
    questions (Benjamini and Yekutieli 2001).
    """
    raw, order = _sorted(p)
    m = len(raw)
    stepped = np.minimum.accumulate((raw[order] * m / np.arange(1, m + 1))[::-1])[::-1]
    return _unsorted(stepped, order)


def holm_family(p: Sequence[float], interval: Interval, level: float, values: Sequence[float]) -> Corrected:
    """Holm's p-values, with Bonferroni's intervals at 1 - alpha / m cut at zero where Holm finds an effect.

    Holm finds more than Bonferroni does, so an interval at 1 - alpha / m may still hold zero where Holm excludes it.
    Zero and all beyond it on the other side of the value then go, and nothing else does: what a rejection says, and
    no more (after Guilbaud 2008 and Strassburger and Bretz 2008, "Compatible simultaneous lower confidence bounds for
    the Holm procedure", whose one-sided bounds also stop at zero). The cut end is zero itself, excluded; it is
    written as a number next to it.

    What holds: the chance that any interval wrongly excludes zero is at most alpha, for the whole family; each single
    interval misses its truth with chance alpha at most. That all cover at once holds at 1 - 2 alpha at least, for a
    wrong cut may come on top of a miss elsewhere (at 1 - alpha where nothing is cut).
    """
    adjusted = holm(p)
    alpha = _alpha(level)
    m = len(adjusted)
    each = 1.0 - alpha / m
    return Corrected(adjusted, _compatible(adjusted, interval, each, alpha, values), each)


def benjamini_hochberg_family(
    p: Sequence[float], interval: Interval, level: float, values: Sequence[float]
) -> Corrected:
    """Benjamini and Hochberg's p-values, with intervals whose false coverage rate is alpha: 1 - R alpha / m for R
    findings.

    Of the intervals of the findings at most alpha miss on average (Benjamini and Yekutieli 2005, "False discovery
    rate-adjusted multiple confidence intervals for selected parameters"). A finding has p <= R alpha / m, so its
    interval excludes zero; what was not found has p > (R + 1) alpha / m, so that at the same level its interval holds
    zero. With no finding the level is 1 - alpha / m, which one more finding would have needed.
    """
    adjusted = benjamini_hochberg(p)
    alpha = _alpha(level)
    found = sum(q <= alpha for q in adjusted)
    each = 1.0 - max(found, 1) * alpha / len(adjusted)
    return Corrected(adjusted, _compatible(adjusted, interval, each, alpha, values), each)


def _compatible(
    adjusted: Sequence[float], interval: Interval, level: float, alpha: float, values: Sequence[float]
) -> tuple[tuple[float, float], ...]:
    if len(values) != len(adjusted):
        raise ValueError(f"{len(adjusted)} p-values need as many values, not {len(values)}")
    out = []
    for i, (q, value) in enumerate(zip(adjusted, values, strict=True)):
        low, high = interval(i, level)
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"an interval must be finite and in order, not {low} to {high}")
        if q > alpha:
            # for p and interval of one distribution this changes nothing but what rounding did
            low, high = min(low, 0.0), max(high, 0.0)
        elif low <= 0.0 <= high:
            if value > 0:
                low = min(value, high) * _NEXT_TO_ZERO
            elif value < 0:
                high = max(value, low) * _NEXT_TO_ZERO
            else:
                raise ValueError("a value of zero cannot differ from zero: its p-value is not its own")
        out.append((low, high))
    return tuple(out)


_NEXT_TO_ZERO = float(np.finfo(np.float64).eps)


def _sorted(p: Sequence[float]) -> tuple[FloatArray, np.ndarray[tuple[int], np.dtype[np.intp]]]:
    raw = np.asarray(p, dtype=np.float64)
    if raw.ndim != 1 or len(raw) == 0:
        raise ValueError("there is no p-value to adjust")
    if not ((raw >= 0) & (raw <= 1)).all():
        raise ValueError("a p-value lies between 0 and 1")
    return raw, np.argsort(raw, kind="stable")


def _unsorted(stepped: FloatArray, order: np.ndarray[tuple[int], np.dtype[np.intp]]) -> tuple[float, ...]:
    out = np.empty(len(stepped))
    out[order] = np.minimum(stepped, 1.0)
    return tuple(out.tolist())


def _alpha(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level}")
    return 1.0 - level

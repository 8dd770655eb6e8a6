"""Quantiles of rows or units, whose interval the engine reads off at two ranks: no row leaves the warehouse."""

from __future__ import annotations

import math

import numpy as np

from payoff.estimate import t_quantile
from payoff.stats.compare import Level
from payoff.stats.moments import Moments


def outer_ranks(moments: Moments, n_rows: int, q: float, level: float = 0.95) -> tuple[float, float]:
    """(p_low, p_high): the probabilities at which ``n_rows`` sorted rows hold the interval of their ``q`` quantile.

    ``moments`` are of (rows at or below the sample quantile, rows) per unit, k = 2 in that order. The share of rows below
    the quantile is a ratio of unit totals, so its standard error is the delta method's over units, not the rows' (Deng,
    Knoblich, Lu 2018, "Applying the delta method in metric analytics", on percentile metrics). That of a share F of n rows
    would be F (1 - F) / n; the ratio of the two, the design effect, times q (1 - q) / n_rows is the variance used, because
    with tied rows F lies above q and may be 1. The effect is then (and only then) not known, and taken as if the rows of a
    unit were all alike. One row a unit gives sqrt(q (1 - q) / n), but for n / (n - 1).

    The ranks are outer ones, floor(n q - t s) and ceil(n q + t s) + 1 of n: the order statistics between which the
    quantile lies whatever the distribution (David and Nagaraja 2003, "Order Statistics", section 7.1), and the same ones
    from the other end for 1 - q. The answers are (rank - 1) / (n_rows - 1): SQL's quantile_cont at them is exactly
    that row. Raises ValueError when a rank lies outside the rows: an end of the interval is then not in the data.
    """
    if not 0 < q < 1:
        raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level}")
    if moments.k != 2:
        raise ValueError(f"expected moments of 2 measures a unit, not of {moments.k}")
    if moments.n < 2:
        raise ValueError(f"{moments.n} units with rows do not tell how units differ; it takes two")
    n, (below, rows) = moments.n, moments.mean.tolist()
    if abs(n * rows - n_rows) > 0.5 + 1e-9 * n_rows or n_rows < n or not 0 <= below <= rows * (1 + 1e-9):
        raise ValueError(f"{n_rows} rows do not fit the moments of {n} units with {rows:g} rows each")
    f = below / rows
    (below_var, both), (_, rows_var) = moments.cov.tolist()
    # as if a unit's rows were all alike: the sum of squared sizes over the sum of sizes
    effect = ((n - 1) * rows_var + n * rows * rows) / n_rows * (n / (n - 1))
    if 0 < f < 1 - 1e-12:
        ratio_variance = max(below_var - 2 * f * both + f * f * rows_var, 0.0) / (n * rows * rows)
        if ratio_variance > 0:
            effect = min(effect, ratio_variance * n_rows / (f * (1 - f)))
    half = t_quantile(0.5 + level / 2, n - 1.0) * math.sqrt(effect * q * (1 - q) * n_rows)
    low, high = math.floor(n_rows * q - half), math.ceil(n_rows * q + half) + 1
    if low < 1 or high > n_rows:
        end = "lower" if low < 1 else "upper"
        raise ValueError(
            f"{n_rows:,} rows of {n:,} units are too few for the {level:.0%} interval of the {q:g} quantile: its {end} end"
            " lies beyond the rows that there are"
        )
    return (low - 1) / (n_rows - 1), (high - 1) / (n_rows - 1)


def quantile_se(low: float, high: float, level: float, df: float) -> float:
    """The standard error that a Student t interval at ``level`` with these ends would have: (high - low) / (2 t)."""
    if not (np.isfinite([low, high]).all() and low <= high):
        raise ValueError(f"the ends of an interval must be finite and in order, not {low} and {high}")
    return (high - low) / (2 * t_quantile(0.5 + level / 2, df))


def level(value: float, low: float, high: float, n: int, level: float = 0.95) -> Level:
    """A quantile as a Level of ``n`` units, so that arms can be compared: its variance is what the interval tells.

    It has no weights: a quantile is not linear in unit measures that were kept. Raises ValueError where the interval is a
    single value, as when many rows tie: that is not certainty, it is a scale too coarse to show a difference on.
    """
    if n < 2:
        raise ValueError(f"{n} units with rows do not tell how units differ; it takes two")
    if not low <= value <= high:
        raise ValueError(f"a quantile of {value:g} lies outside its own interval, {low:g} to {high:g}")
    if low == high:
        raise ValueError(
            f"the quantile and both ends of its interval are {value:g}: too many rows have exactly this value to tell how"
            " sure it is; a share of rows above a threshold would tell"
        )
    return Level(value, quantile_se(low, high, level, n - 1.0) ** 2, n)

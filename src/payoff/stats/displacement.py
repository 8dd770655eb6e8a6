"""Cannibalisation: what one path gained, what all others lost, and the share that would have come anyway."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from payoff.estimate import FloatArray, t_quantile
from payoff.stats.compare import Difference, ratio_interval
from payoff.stats.moments import Moments

_ROUNDING = 64 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class Anyway:
    """1 - net / level with its interval at the level asked for; outside [0, 1] where others gained too, or lost more."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Displaced:
    """Treatment minus control by path, in the metric's unit for one unit. ``paths`` in the order of the columns, with a
    standard error of 0 where all units have the same (nothing, say) on a path; ``anyway`` is None where it cannot be told (``reason``)."""

    paths: tuple[Difference, ...]
    gained: Difference
    others: Difference
    net: Difference
    anyway: Anyway | None
    reason: str


def displacement(treatment: Moments, control: Moments, treated: int, *, level: float = 0.95) -> Displaced:
    """``gained`` on the ``treated`` path, the sum of differences on all ``others``, and the ``net`` of all paths.

    Columns are paths, the last all those not named, so that they add up to everything a unit does. Each figure is the
    difference of a sum of columns, so its variance holds the paths' covariances: who buys here does not buy there.

    ``anyway`` is the share of what is attributed to the treated path, in the treatment arm, that would have happened
    without it: 1 - net / that arm's level there. Net and level share the treated units; their covariance is in the
    interval, by Fieller's theorem (Fieller 1954), with the degrees of freedom of net - share * level. Where the level cannot
    be told from zero there is no share.

    Raises ValueError when there are fewer than two paths or units, or nothing varies on the treated path or on the others.
    """
    k = treatment.k
    if control.k != k:
        raise ValueError("both arms must have the same paths")
    if k < 2:
        raise ValueError("displacement needs the treated path and at least one other")
    if not 0 <= treated < k:
        raise ValueError(f"path {treated} is not one of {k}")
    if min(treatment.n, control.n) < 2:
        raise ValueError("each arm needs at least two units")
    own = np.eye(k)
    rest = np.ones(k) - own[treated]
    paths = tuple(_difference(treatment, control, own[j], own[j]) for j in range(k))
    gained, others = paths[treated], _difference(treatment, control, rest, rest)
    net = _difference(treatment, control, np.ones(k), np.ones(k))
    if gained.se == 0:
        raise ValueError("every unit has the same on the treated path, so no difference there can be judged")
    if others.se == 0:
        raise ValueError("every unit has the same on the other paths, so nothing can be seen to be displaced")
    if net.se == 0:
        raise ValueError("every unit has the same over all paths, so the net cannot be judged")
    found = _anyway(treatment, control, own[treated], net.value, level)
    return Displaced(paths, gained, others, net, *((None, found) if isinstance(found, str) else (found, "")))


def _anyway(t: Moments, c: Moments, treated: FloatArray, net: float, level: float) -> Anyway | str:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level}")
    every = np.ones(t.k)
    attributed = float(treated @ t.mean)
    if attributed <= 0:
        return f"the treatment arm's level on the treated path ({attributed:.4g}) is not above zero"
    share = net / attributed
    gap = _difference(t, c, every - share * treated, every)
    quantile = t_quantile(0.5 + level / 2, gap.df)
    level_variance = float(treated @ t.cov @ treated) / t.n
    net_variance = float(every @ t.cov @ every) / t.n + float(every @ c.cov @ every) / c.n
    both = float(every @ t.cov @ treated) / t.n
    try:
        low, high = ratio_interval(net, net_variance, attributed, level_variance, both, quantile)
    except ValueError:
        return (
            f"the treatment arm's level on the treated path ({attributed:.4g}, standard error"
            f" {math.sqrt(level_variance):.2g}) cannot be told from zero"
        )
    return Anyway(1 - share, 1 - high, 1 - low)


def _difference(t: Moments, c: Moments, of_t: FloatArray, of_c: FloatArray) -> Difference:
    """The difference of one sum of columns in each arm: Welch's, or a standard error of 0 where nothing varies."""
    value = float(of_t @ t.mean) - float(of_c @ c.mean)
    parts = [
        (max(float(w @ m.cov @ w), 0.0) / m.n, float(np.abs(np.outer(w, w) * m.cov).sum()) / m.n, m.n - 1.0)
        for m, w in ((t, of_t), (c, of_c))
    ]
    variance = sum(v for v, _, _ in parts)
    if variance <= _ROUNDING * sum(size for _, size, _ in parts):
        return Difference(value, 0.0, t.n + c.n - 2.0)
    return Difference(value, math.sqrt(variance), 1.0 / sum((v / variance) ** 2 / df for v, _, df in parts))

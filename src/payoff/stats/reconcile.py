"""Attributed credit held against what an experiment shows to be incremental: their ratio, and credit rescaled to the proven total."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from payoff.estimate import FloatArray, t_quantile
from payoff.stats.compare import ratio_interval
from payoff.stats.credit import Cells

By = Literal["holdout", "own experiment", "remainder", "not personalised"]
_DRAWS = 4000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its interval at the level asked for."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Shown:
    """What an experiment shows to be incremental in total: its difference per unit times the units it is claimed of."""

    value: float
    se: float

    def interval(self, level: float) -> Interval:
        half = t_quantile(0.5 + level / 2, math.inf) * self.se
        return Interval(self.value, self.value - half, self.value + half)


@dataclass(frozen=True, slots=True)
class Row:
    """One touchpoint, by its place among those given (those that are not personalised come after, in their order).

    ``incremental`` and ``ratio`` (over attributed) are None where they cannot be told or nothing of it was tested. ``conflict``: the
    two-sided p-value with which its own experiment contradicts its credit, None where it does not.
    """

    touchpoint: int
    by: By
    attributed: Interval
    incremental: Interval | None
    ratio: Interval | None
    conflict: float | None


@dataclass(frozen=True, slots=True)
class Reconciled:
    """``rows``' incremental figures, and ``left`` (what no touchpoint can be given; None where all was), add up to ``incremental``.

    ``ratio`` is incremental over attributed, ``anyway`` 1 - ratio, None for the ``reason`` given. ``left_reason`` likewise.
    """

    attributed: Interval
    incremental: Interval
    ratio: Interval | None
    anyway: Interval | None
    rows: tuple[Row, ...]
    left: Interval | None
    reason: str
    left_reason: str


def reconcile(
    credit: Cells,
    shown: Shown,
    own: Mapping[int, Shown],
    rng: np.random.Generator,
    *,
    other: Cells | None = None,
    level: float = 0.95,
) -> Reconciled:
    """``credit`` is that of personalised touches by touchpoint, ``other`` of the rest, for conversions within the experiment's scope.

    Without experiments of their ``own``, touchpoints get ``shown`` in proportion to their credit. One with its own gets what that
    shows; the remainder, shown less the sum of those, goes to the others in proportion to their credit. Ratios have Fieller's
    interval (1954); rescaled credit the percentiles of a normal draw of what was shown times the replicates' shares. The
    experiments and the credit are taken as independent: credit is nearly fixed beside a difference between arms, and
    where the same units' luck is in both, the ratio's interval is if anything too wide.

    A test contradicts its credit where the two differ by a z-test at ``level``. Raises ValueError when nothing is credited, or a
    standard error is not above zero.
    """
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level}")
    k = len(credit.value)
    if k == 0 or not np.any(credit.value):
        raise ValueError(
            "no personalised touchpoint is credited with anything, so there is nothing to hold against the experiment"
        )
    for what in (shown, *own.values()):
        if not (math.isfinite(what.value) and math.isfinite(what.se) and what.se > 0):
            raise ValueError(f"a standard error must be a finite number above zero, not {what.se}")
    if unknown := set(own) - set(range(k)):
        raise ValueError(f"touchpoint {min(unknown)} is not one of {k}")
    z = t_quantile(0.5 + level / 2, math.inf)
    total, total_se = float(credit.value.sum()), float(credit.draws.sum(axis=1).std(ddof=1))
    ratio, reason = _ratio(shown, total, total_se, z, "the attributed total")
    rest = [j for j in range(k) if j not in own]
    remains = Shown(
        shown.value - sum(own[j].value for j in own),
        math.sqrt(shown.se**2 + sum(own[j].se ** 2 for j in own)),
    )
    rest_ratio, left_reason = (
        _ratio(
            remains,
            float(credit.value[rest].sum()),
            float(credit.draws[:, rest].sum(axis=1).std(ddof=1)),
            z,
            "their credit",
        )
        if rest
        else (None, "every touchpoint has an experiment of its own")
    )
    spread = {} if rest_ratio is None else dict(zip(rest, _spread(credit, rest, remains, rng, level), strict=True))
    rows = []
    for j in range(k):
        attributed, conflict = _interval(credit, j, level), None
        if j in own:
            found: Interval | None = own[j].interval(level)
            se = float(credit.draws[:, j].std(ddof=1))
            of, _ = _ratio(own[j], float(credit.value[j]), se, z, "")
            p = 2 * float(special.ndtr(-abs(own[j].value - credit.value[j]) / math.hypot(own[j].se, se)))
            conflict = p if p < 1 - level else None
        else:
            found = spread.get(j)
            of = rest_ratio if found is not None and credit.value[j] != 0 else None
        by: By = "own experiment" if j in own else "remainder" if own else "holdout"
        rows.append(Row(j, by, attributed, found, of, conflict))
    if other is not None:
        rows += [
            Row(k + j, "not personalised", _interval(other, j, level), None, None, None)
            for j in range(len(other.value))
        ]
    return Reconciled(
        attributed=_sum(credit, level),
        incremental=shown.interval(level),
        ratio=ratio,
        anyway=None if ratio is None else Interval(1 - ratio.value, 1 - ratio.high, 1 - ratio.low),
        rows=tuple(rows),
        left=remains.interval(level) if rest_ratio is None else None,
        reason=reason,
        left_reason=left_reason,
    )


def _ratio(shown: Shown, credit: float, se: float, z: float, what: str) -> tuple[Interval | None, str]:
    try:
        low, high = ratio_interval(shown.value, shown.se**2, credit, se * se, 0.0, z)
    except ValueError:
        return None, f"{what} ({credit:.4g}, standard error {se:.2g}) cannot be told from zero"
    return Interval(shown.value / credit, low, high), ""


def _spread(credit: Cells, rest: list[int], remains: Shown, rng: np.random.Generator, level: float) -> list[Interval]:
    """``remains`` in proportion to credit. Its normal draws are evenly spaced in probability, so that they add no noise of their own.

    A replicate of few units may hold no credit at all, or less than none: it has no shares and is left out.
    """
    value, draws = credit.value[rest], credit.draws[:, rest]
    draws = draws[np.sign(draws.sum(axis=1)) == np.sign(value.sum())]
    times = -(-_DRAWS // len(draws))
    shares = np.tile(draws / draws.sum(axis=1, keepdims=True), (times, 1))
    even = special.ndtri((np.arange(len(shares)) + 0.5) / len(shares))
    amounts = (remains.value + remains.se * rng.permutation(even))[:, None] * shares
    points = remains.value * value / value.sum()
    return [_of(float(p), amounts[:, j], level) for j, p in enumerate(points)]


def _interval(cells: Cells, j: int, level: float) -> Interval:
    value = float(cells.value[j])
    return Interval(value, *cells.uncertainty(j).interval(value, level))


def _sum(cells: Cells, level: float) -> Interval:
    return _of(float(cells.value.sum()), cells.draws.sum(axis=1), level)


def _of(value: float, draws: FloatArray, level: float) -> Interval:
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, min(float(low), value), max(float(high), value))

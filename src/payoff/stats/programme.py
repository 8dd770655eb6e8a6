"""A programme of experiments: what the winners are worth once the luck that made them win is taken out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from payoff.estimate import FloatArray
from payoff.stats.compare import Difference
from payoff.stats.heterogeneity import Pooled, partial_pooling


@dataclass(frozen=True, slots=True)
class ProgrammeTotal:
    """The total effect of what was shipped: ``raw`` as measured, ``shrunk`` with the winners' luck taken out, each
    with its standard error and interval. ``curse`` is raw less shrunk."""

    raw: Difference
    shrunk: Difference

    @property
    def curse(self) -> float:
        return self.raw.value - self.shrunk.value


def shrink(values: Sequence[float], ses: Sequence[float], level: float = 0.95, mean: float | None = None) -> Pooled:
    """The true effects of a programme's experiments (at least three, all of them: winners and losers), shrunk together.

    Efron 2011 ("Tweedie's formula and selection bias"): given the distribution that true effects come from, their
    posterior means are free of selection bias, however the winners were picked. Here that distribution is normal,
    estimated from the experiments themselves (`partial_pooling`, which see), or centred on ``mean``: 0 says that
    changes do nothing on average. Leaving out the losers would undo it.
    """
    if len(values) < 3:
        raise ValueError(
            f"a programme of {len(values)} experiments is too few to tell luck from effect; it needs three"
        )
    return partial_pooling(values, ses, level, mean)


def programme_total(
    values: Sequence[float], ses: Sequence[float], shipped: Sequence[int], pooled: Pooled
) -> ProgrammeTotal:
    """The sums over ``shipped`` (indices), raw and shrunk; the shrunk one's variance counts what its parts share, the
    estimated mean and spread of the programme. Effects of different experiments are taken to add up, and to be
    independent.

    In simulations of 5 to 30 experiments whose winners (z above 1.96) ship, the shrunk total has 3% to 60% of the raw
    one's bias, and 15% to 80% of its error. Its 95% intervals cover 91% to 98%, over programmes with a winner; 80% to
    86% where most effects are exactly zero and a few large, which no normal describes, or with five experiments of
    which hardly any works.
    """
    index = _shipped(shipped, len(values))
    if len(pooled.values) != len(values) or len(ses) != len(values):
        raise ValueError("values, standard errors and their shrunk values must be of the same experiments")
    y, se = np.asarray(values, dtype=np.float64)[index], np.asarray(ses, dtype=np.float64)[index]
    drawn = pooled.covariance[np.ix_(index, index)]
    return ProgrammeTotal(
        Difference(float(y.sum()), math.sqrt(float((se**2).sum())), math.inf),
        Difference(float(np.asarray(pooled.values)[index].sum()), math.sqrt(float(drawn.sum())), math.inf),
    )


def lee_shen_total(
    values: Sequence[float], ses: Sequence[float], *, critical: float = 1.96, sign: float = 1
) -> Difference:
    """The total effect of the experiments whose z is above ``critical`` in the direction of ``sign``, less its
    estimated bias.

    Lee and Shen 2018 ("Winner's curse: bias estimation for total effects of features in online controlled
    experiments"): the sum over the winners is too high by sum of s_i phi(critical - a_i / s_i) on average, over ALL
    experiments, winners or not, a_i being the true effects; the estimates are put in their place. It needs no
    distribution of effects, but a rule of selection that was kept to. The standard error is that of the corrected sum
    about the winners' true total, term by term, in closed form at the same estimates, where the paper has a
    bootstrap.

    A second opinion. In the simulations of `programme_total` it takes out most of the bias where changes work, but
    overcorrects where hardly any does, and its error is 1.1 to 4.0 times the shrunk total's; its 95% intervals cover
    92% to 99%, but 74% to 81% with five experiments of which hardly any works. Raises ValueError when nothing was
    above ``critical``.
    """
    y, se = np.asarray(values, dtype=np.float64) * _sign(sign), np.asarray(ses, dtype=np.float64)
    if y.ndim != 1 or y.shape != se.shape or not (np.isfinite(y).all() and np.isfinite(se).all() and (se > 0).all()):
        raise ValueError("every experiment needs a finite effect and a standard error above zero")
    won = y > critical * se
    if not won.any():
        raise ValueError("no experiment is clear of zero in the right direction, so there is no total to correct")
    t = critical - y / se
    density = _phi(t)
    bias = float((se * density).sum())
    # the moments of 1(z > t) z - phi(t - z) for standard normal z
    overlap = np.exp(-(t**2) / 4) / (2 * math.sqrt(math.pi))
    mean = density - overlap
    square = (
        t * density
        + special.ndtr(-t)
        - 2 * overlap * (t / 2 * special.ndtr(-t / math.sqrt(2)) + _phi(t / math.sqrt(2)) / math.sqrt(2))
        + np.exp(-(t**2) / 3) / (2 * math.pi * math.sqrt(3))
    )
    variance = float((se**2 * (square - mean**2)).sum())
    return Difference(_sign(sign) * (float(y[won].sum()) - bias), math.sqrt(variance), math.inf)


def against_holdout(total: Difference, holdout: Difference) -> Difference:
    """A programme's total less what a holdout measured of the same changes on other units: `p_value` asks whether the
    two agree.

    Both on one scale (an effect on a unit over the same time). Degrees of freedom by Satterthwaite (1946).
    """
    v = total.se**2 + holdout.se**2
    spread = (total.se**2 / v) ** 2 / total.df + (holdout.se**2 / v) ** 2 / holdout.df
    return Difference(total.value - holdout.value, math.sqrt(v), 1.0 / spread if spread > 0 else math.inf)


def _phi(x: FloatArray) -> FloatArray:
    return np.asarray(np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), dtype=np.float64)


def _sign(sign: float) -> float:
    if sign not in (1, -1):
        raise ValueError(f"the direction of improvement is 1 or -1, not {sign}")
    return float(sign)


def _shipped(shipped: Sequence[int], experiments: int) -> NDArray[np.intp]:
    index = np.asarray(shipped, dtype=np.intp)
    if len(index) == 0:
        raise ValueError("nothing was shipped, so there is no total")
    if len(set(index.tolist())) != len(index) or index.min() < 0 or index.max() >= experiments:
        raise ValueError(f"what was shipped are different ones of {experiments} experiments, counted from 0")
    return index

"""Looking more than once: intervals that hold at every look, at a few planned looks, and what unplanned looks cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, special

from payoff.estimate import FloatArray

TIGHTEST_AT = 10_000
"""Where an always-valid interval is tightest unless the design says: the choice changes widths, never coverage."""

Spending = Literal["obrien_fleming", "pocock"]


# ---------------------------------------------------------------- at every look


def always_valid(
    value: float, se: float, n: float, tightest_at: float, level: float, *, design_alpha: float
) -> tuple[float, float]:
    """An asymptotic confidence sequence: at ``level`` for all looks together, whenever and however often they are made.

    value -+ se sqrt((n + rho) / n  ln((n + rho) / (rho (1 - level)^2))): Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas
    2021 ("Time-uniform central limit theory and asymptotic confidence sequences", with rho the inverse of their
    rho squared), from the normal mixture of Robbins 1970 and Howard, Ramdas, McAuliffe, Sekhon 2021, eq. 14. ``n``
    counts the units of both arms, ``se`` is the standard error at n. rho is chosen so that the sequence is about
    tightest at ``tightest_at`` units for an error of ``design_alpha``: it is fixed by the design, so that the intervals
    at different levels are of one family and `always_valid_p` is their inversion.

    Asymptotic: the normal approximation must be fair from the first look on that is acted on. Raises ValueError on a
    number out of range.
    """
    _estimate(value, se)
    alpha = 1.0 - _open("a confidence level", level)
    rho = _rho(n, tightest_at, design_alpha)
    half = se * math.sqrt((n + rho) / n * (math.log1p(n / rho) - 2.0 * math.log(alpha)))
    return value - half, value + half


def always_valid_p(
    value: float, se: float, n: float, tightest_at: float, design_alpha: float, null: float = 0.0
) -> float:
    """The smallest error at which `always_valid` excludes ``null``: sqrt((n + rho) / rho) exp(-z^2 n / (2 (n + rho))).

    At most 1. It may be read at every look: under the null it ever falls to a or below with chance a at most.
    """
    _estimate(value, se)
    rho = _rho(n, tightest_at, design_alpha)
    z = (value - null) / se
    return math.exp(min(0.0, 0.5 * (math.log1p(n / rho) - z * z * n / (n + rho))))


def always_valid_joint_p(statistic: float, df: int, n: float, tightest_at: float, design_alpha: float) -> float:
    """`always_valid_p` of several effects at once: ((n + rho) / rho)^(df / 2) exp(-Q n / (2 (n + rho))), at most 1.

    ``statistic`` Q is chi-square on ``df`` under the null. The normal mixture in ``df`` dimensions, its covariance that of the
    effects (Robbins 1970; the groups' shares of the units must keep still). On one degree of freedom Q is z^2.
    """
    if not (math.isfinite(statistic) and statistic >= 0 and df >= 1):
        raise ValueError(f"a chi-square is at least zero, on at least one degree of freedom, not {statistic} on {df}")
    rho = _rho(n, tightest_at, design_alpha)
    return math.exp(min(0.0, 0.5 * (df * math.log1p(n / rho) - statistic * n / (n + rho))))


def _rho(n: float, tightest_at: float, design_alpha: float) -> float:
    if not (math.isfinite(n) and n > 0):
        raise ValueError(f"an interval needs units to be read on, not {n}")
    if not (math.isfinite(tightest_at) and tightest_at > 0):
        raise ValueError(f"the size at which intervals are tightest must be above zero, not {tightest_at}")
    a = 2.0 * math.log(_open("an error rate", design_alpha))
    return tightest_at / (math.log1p(-a) - a)


# ---------------------------------------------------------------- at planned looks

# P(Z < -c) has no normal double below about 1e-300; a look with less error than that to spend can find nothing.
_NEVER = -float(special.ndtri(1e-300))
# Beyond this many standard errors nothing is integrated: the mass there is 2e-19.
_EDGE = 9.0
# Errors to spend below this are taken from the look's own tail, as if no earlier look had been: at most too strict.
_LEAST = 1e-14
# Looks closer than this share of their information are one look: between them |z| moves by about 0.004.
_SAME = 2.5e-5


def boundaries(information: Sequence[float], alpha: float, spending: Spending) -> tuple[float, ...]:
    """The critical |z| at each look so far, two-sided and symmetric, for an error of ``alpha`` over all looks together.

    ``information`` is the share of the planned information in at each look, rising, spaced as it happened (Lan and
    DeMets 1983, "Discrete sequential boundaries for clinical trials"): each look spends what the spending function
    allows up to there and no earlier look has. On each side, with a = alpha / 2, "obrien_fleming" allows 2 - 2
    Phi(z_{a/2} / sqrt(t)) and "pocock" a ln(1 + (e - 1) t), as in ldbounds and gsDesign. A look at or beyond all
    planned information spends all that is left, so later looks would have nothing: they are refused. Looks nearer
    than 1 in 40,000 count as one.

    By recursive numerical integration (Armitage, McPherson, Rowe 1969; Jennison and Turnbull 2000, chapter 19). A
    look too early to have any error to spend has a critical value of about 37, which nothing crosses.
    """
    _open("an error rate", alpha)
    times = _looks(information)
    over = next((k for k, t in enumerate(times) if t >= 1.0), len(times))
    if over + 1 < len(times) and times[-1] > times[over] * (1 + _SAME):
        raise ValueError(
            f"the look with {times[over]:.0%} of the planned units has spent the whole error rate, so a later one"
            f" (at {times[-1]:.0%}) can show nothing new: read the figures as they were at that look"
        )
    walk = _Walk.start(times)
    critical: list[float] = []
    spent = 0.0
    for k, t in enumerate(times):
        if k and walk.same(k):
            critical.append(critical[-1])
            continue
        allowed = _spent(min(t, 1.0), alpha, spending)
        critical.append(walk.solve(k, allowed - spent))
        spent = allowed
        walk.advance(k, critical[-1])
    return tuple(critical)


def repeated_interval(value: float, se: float, critical: float) -> tuple[float, float]:
    """value -+ critical se: with the critical values of `boundaries`, at its level over all looks together (Jennison
    and Turnbull 1989, "Interim analyses: the repeated confidence interval approach")."""
    _estimate(value, se)
    return value - critical * se, value + critical * se


def repeated_p(z: float, information: Sequence[float], spending: Spending) -> float:
    """The smallest error over all looks at which ``z``, at the last of ``information``, reaches its boundary.

    So p <= alpha exactly when the repeated interval at 1 - alpha excludes the null (Jennison and Turnbull 2000, chapter
    9). It is 1 where no error below one would do.
    """
    if not math.isfinite(z):
        raise ValueError("a z statistic must be a finite number")
    target = abs(z)

    def surplus(log_alpha: float) -> float:
        return boundaries(information, math.exp(log_alpha), spending)[-1] - target

    low, high = math.log(1e-299), math.log1p(-1e-9)
    if surplus(high) >= 0:
        return 1.0
    if surplus(low) <= 0:
        return math.exp(low)
    return math.exp(float(optimize.brentq(surplus, low, high, xtol=1e-12, rtol=1e-12)))


def spent_p(p: float, information: Sequence[float], spending: Spending) -> float:
    """The smallest error over all looks whose share for the last of ``information`` reaches ``p``, any test's p-value.

    What looks may spend adds up to the whole (Lan and DeMets 1983), so by Bonferroni it holds for tests of which nothing else
    is known, such as chi-squares; of one normal effect `repeated_p` is smaller. 1 where no error below one would do.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"a p-value lies between 0 and 1, not at {p}")
    times = _looks(information)
    before = max((t for t in times[:-1] if times[-1] > t * (1 + _SAME)), default=None)
    if before is not None and before >= 1.0:
        raise ValueError("an earlier look with all the planned units has spent the whole error rate")

    def surplus(log_alpha: float) -> float:
        alpha = math.exp(log_alpha)
        earlier = 0.0 if before is None else _spent(before, alpha, spending)
        return _spent(min(times[-1], 1.0), alpha, spending) - earlier - p

    low, high = math.log(1e-299), math.log1p(-1e-9)
    if surplus(high) <= 0:
        return 1.0
    if surplus(low) >= 0:
        return math.exp(low)
    return math.exp(float(optimize.brentq(surplus, low, high, xtol=1e-12, rtol=1e-12)))


def _spent(t: float, alpha: float, spending: Spending) -> float:
    """The error of both sides together that may be spent up to information ``t``."""
    if t >= 1.0:
        return alpha
    if spending == "obrien_fleming":
        return 4.0 * float(special.ndtr(special.ndtri(alpha / 4) / math.sqrt(t)))
    if spending == "pocock":
        return alpha * math.log1p((math.e - 1.0) * t)
    raise ValueError(f"error is spent as obrien_fleming or pocock, not as '{spending}'")


# ---------------------------------------------------------------- at looks nobody planned


def crossing(information: Sequence[float], critical: Sequence[float]) -> tuple[float, ...]:
    """Under the null, the chance that |z| first exceeds ``critical`` at each look; their sum is the error of all."""
    times = _looks(information)
    if len(times) != len(critical):
        raise ValueError(f"{len(times)} looks need as many critical values, not {len(critical)}")
    walk = _Walk.start(times)
    out = []
    for k, c in enumerate(critical):
        if not c > 0:
            raise ValueError(f"a critical value must be above zero, not {c}")
        if k and walk.same(k):
            out.append(0.0)
            continue
        out.append(walk.tail(k, c))
        walk.advance(k, c)
    return tuple(out)


def error_of_peeking(information: Sequence[float], alpha: float) -> float:
    """The chance of a false finding at some look, when an interval made for one look at ``alpha`` is read at them all.

    ``information`` is what was in at each look, on any scale (Armitage, McPherson, Rowe 1969, "Repeated significance
    tests on accumulating data": 14% for five equal steps at 5%).
    """
    z = -float(special.ndtri(_open("an error rate", alpha) / 2))
    return min(1.0, max(alpha, sum(crossing(information, [z] * len(information)))))


@dataclass(slots=True)
class _Walk:
    """z over the looks under the null, as long as no boundary was crossed: its density over (0, boundary), by symmetry.

    z_k given z_j = x is normal with mean x sqrt(t_j / t_k) and variance 1 - t_j / t_k. ``mass`` is the density at
    ``nodes`` times the weights of Gauss-Legendre quadrature; ``at`` the look it is of.
    """

    times: tuple[float, ...]
    at: int
    nodes: FloatArray
    mass: FloatArray

    @classmethod
    def start(cls, times: tuple[float, ...]) -> _Walk:
        return cls(times, -1, np.empty(0), np.empty(0))

    def same(self, k: int) -> bool:
        return self.times[k] <= self.times[self.at] * (1 + _SAME)

    def _step(self, k: int) -> tuple[float, float]:
        """(correlation of z with that at the look before, standard deviation of what is new)."""
        before, now = self.times[self.at], self.times[k]
        return math.sqrt(before / now), math.sqrt((now - before) / now)

    def tail(self, k: int, c: float) -> float:
        """The chance that |z| exceeds ``c`` at look ``k`` and no boundary before."""
        if self.at < 0:
            return 2.0 * float(special.ndtr(-c))
        r, s = self._step(k)
        beyond = special.ndtr((r * self.nodes - c) / s) + special.ndtr((-r * self.nodes - c) / s)
        return 2.0 * float(self.mass @ beyond)

    def solve(self, k: int, error: float) -> float:
        """The critical value whose `tail` is ``error``."""
        if self.at < 0 or error < _LEAST:
            return min(_NEVER, -float(special.ndtri(error / 2))) if error > 0 else _NEVER
        if self.tail(k, 0.0) <= error:
            return float(np.finfo(np.float64).tiny)
        return float(optimize.brentq(lambda c: self.tail(k, c) - error, 0.0, _EDGE, xtol=1e-13))

    def advance(self, k: int, c: float) -> None:
        """Move to look ``k``, leaving out what crossed ``c``."""
        top = min(c, _EDGE)
        r, s = (0.0, 1.0) if self.at < 0 else self._step(k)
        ahead = next((t for t in self.times[k + 1 :] if t > self.times[k] * (1 + _SAME)), None)
        finest = s if ahead is None else min(s, math.sqrt(ahead / self.times[k] - 1.0))
        # Gauss-Legendre nodes lie at most pi/2 top/count apart: half the finest normal density's deviation
        x, w = _legendre(_round_up(16 + math.pi * top / finest))
        nodes, weights = top / 2 * (x + 1), top / 2 * w
        if self.at < 0:
            density = np.exp(-0.5 * nodes**2) / math.sqrt(2 * math.pi)
        else:
            gap, sum_ = np.subtract.outer(nodes, r * self.nodes) / s, np.add.outer(nodes, r * self.nodes) / s
            kernel = np.exp(-0.5 * gap**2) + np.exp(-0.5 * sum_**2)
            density = kernel @ self.mass / (s * math.sqrt(2 * math.pi))
        self.at, self.nodes, self.mass = k, nodes, weights * density


_rules: dict[int, tuple[FloatArray, FloatArray]] = {}


def _legendre(count: int) -> tuple[FloatArray, FloatArray]:
    if count not in _rules:
        _rules[count] = special.roots_legendre(count)
    return _rules[count]


def _round_up(count: float) -> int:
    """To the next of a few sizes, about 10% apart, so that rules are worked out once."""
    return math.ceil(1.1 ** math.ceil(math.log(count, 1.1)))


def _looks(information: Sequence[float]) -> tuple[float, ...]:
    times = tuple(float(t) for t in information)
    if not times:
        raise ValueError("there is no look to read")
    if not all(math.isfinite(t) and t > 0 for t in times):
        raise ValueError("the information at a look must be a finite number above zero")
    if any(b <= a for a, b in itertools.pairwise(times)):
        raise ValueError("information must rise from look to look")
    return times


def _estimate(value: float, se: float) -> None:
    if not (math.isfinite(value) and math.isfinite(se) and se > 0):
        raise ValueError(f"an interval needs a finite value and a standard error above zero, not {value} and {se}")


def _open(what: str, share: float) -> float:
    if not 0 < share < 1:
        raise ValueError(f"{what} lies between 0 and 1, not {share}")
    return share

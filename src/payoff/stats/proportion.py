"""Counts and shares that are described, not compared: their exact or score intervals, and the ranks that hold a quantile's."""

from __future__ import annotations

import math
from bisect import bisect_right

from scipy import special


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level}")


def wilson(k: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the share k / n (1927, JASA 22:209, eq. for P; Brown, Cai, DasGupta 2001, eq. 4).

    Inside [0, 1], and closed at its ends: exactly 0 where k = 0, exactly 1 where k = n. Raises ValueError unless 0 <= k <= n, n > 0.
    """
    _check_level(level)
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"a share is of at least one unit and of no more than there are, not {k} of {n}")
    z2 = float(special.ndtri(0.5 + level / 2)) ** 2
    share = k / n
    centre = share + z2 / (2 * n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    # rounding must not put the share outside: at its ends the formula is exact
    return (0.0 if k == 0 else min(low, share)), (1.0 if k == n else max(high, share))


def poisson_count(k: float, level: float = 0.95) -> tuple[float, float]:
    """Garwood's exact interval for the mean of a Poisson count (1936, Biometrika 28:437): quantiles of gammas k and k + 1.

    Its coverage is at least ``level``. Raises ValueError where ``k`` is below zero.
    """
    _check_level(level)
    if k < 0:
        raise ValueError(f"a count is not below zero, as {k} is")
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(special.gammaincinv(k, tail))
    return low, float(special.gammainccinv(k + 1, tail))


def clustered_share(
    k: float, n: float, squares: float, cross: float, all_squares: float, level: float = 0.95
) -> tuple[float, float]:
    """The interval of a share k / n of rows that gather in units: Wilson's at n over the design effect.

    Over units with x rows that count of y rows in all: ``squares`` is the sum of x^2, ``cross`` of x y, ``all_squares`` of y^2. The
    share's variance is that of a ratio, sum (x - p y)^2 / n^2, and the design effect is it over p (1 - p) / n, at least 1 (Korn,
    Graubard 1998, Survey Methodology 24:193, on the effective sample size). A share of 0 or 1 shows no effect: there it is taken as if
    a unit's rows were all alike, all_squares / n. Raises ValueError as ``wilson`` does.
    """
    low, high = wilson(k, n, level)
    share = k / n
    if 0 < k < n:
        effect = (squares - 2 * share * cross + share * share * all_squares) / (n * share * (1 - share))
    else:
        effect = all_squares / n
    if effect <= 1:
        return low, high
    return wilson(k / effect, n / effect, level)


def clustered_count(k: float, squares: float, level: float = 0.95) -> tuple[float, float]:
    """The interval of a count of rows that gather in units, ``squares`` being the sum of squared rows a unit: Garwood's of k over the
    effect squares / k, times it (Fay, Feuer 1997, Statistics in Medicine 16:791, of equal weights). One row a unit: Garwood's."""
    effect = squares / k if k > 0 else 1.0
    if effect < 1 - 1e-9:
        raise ValueError(f"{k:g} rows have squares that add up to no less, not to {squares:g}")
    low, high = poisson_count(k / effect, level)
    return low * effect, high * effect


def order_statistic_ranks(n: int, q: float, level: float = 0.95) -> tuple[int, int] | None:
    """(lower, upper), 1-based: of ``n`` independent units sorted, those between which their ``q`` quantile lies.

    The binomial bounds (David and Nagaraja 2003, "Order Statistics", section 7.1): the closest ranks outside which the quantile
    lies with at most (1 - level) / 2 on either side, whatever the distribution, ties included. None where ``n`` is too small
    for both ends to be among the units (for a median at 95%: under 6). Rows that cluster in units: ``quantile.outer_ranks``.
    """
    _check_level(level)
    if not 0 < q < 1:
        raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
    if n < 1:
        return None
    tail = (1 - level) / 2

    def below(at_most: int) -> float:
        return float(special.bdtr(float(at_most), n, q))

    # x(l) lies above the quantile where fewer than l units are at or below it; x(u) below it where u or more are
    lower = bisect_right(range(n), tail, key=below)
    upper = n + 1 - bisect_right(range(n), tail, key=lambda above: float(special.bdtr(float(above), n, 1 - q)))
    return None if lower < 1 or upper > n else (lower, upper)

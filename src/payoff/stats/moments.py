"""Means and covariances that merge exactly: all that an experiment's arms need to carry from the warehouse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from payoff.estimate import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """``n`` units' ``mean`` (k,) and sample covariance ``cov`` (k, k; divided by n - 1), in the units of the measures.

    Deviations from the mean are what is kept, never sums of squares: on 1e8 + N(0, 1) a sum of squares has lost the
    variance to rounding before it is used. With ``n < 2`` the covariance is zeros, with ``n == 0`` the mean too; both
    say "nothing known", and the functions that turn moments into figures refuse them.

    Raises ValueError when shapes disagree, ``n`` is negative, or a number is not finite.
    """

    n: int
    mean: FloatArray
    cov: FloatArray

    def __post_init__(self) -> None:
        mean = np.atleast_1d(np.asarray(self.mean, dtype=np.float64))
        cov = np.atleast_2d(np.asarray(self.cov, dtype=np.float64))
        if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
            raise ValueError(f"a covariance of shape {cov.shape} does not fit a mean of shape {mean.shape}")
        if self.n < 0:
            raise ValueError(f"the number of units cannot be negative ({self.n})")
        if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise ValueError(
                "a mean or covariance is not a finite number: look for NULL, NaN, infinite or enormous values"
            )
        object.__setattr__(self, "n", int(self.n))
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "cov", cov)

    @property
    def k(self) -> int:
        """How many measures each unit has."""
        return len(self.mean)

    @property
    def var(self) -> FloatArray:
        """The sample variances, shape (k,)."""
        return np.diagonal(self.cov)

    @classmethod
    def of(cls, values: FloatArray | Sequence[float] | Sequence[Sequence[float]]) -> Moments:
        """The moments of ``values``: (n, k), one row a unit, or (n,) for one measure.

        The corrected two-pass algorithm (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance",
        eq. 1.7). Raises ValueError on a value that is not finite: a missing value is left out or counted as zero by
        whoever knows which is meant.
        """
        table = np.asarray(values, dtype=np.float64)
        if table.ndim == 1:
            table = table[:, np.newaxis]
        if table.ndim != 2:
            raise ValueError(f"values must have shape (n,) or (n, k), not {table.shape}")
        n, k = table.shape
        if not np.isfinite(table).all():
            raise ValueError(f"{int((~np.isfinite(table)).sum())} of {table.size} values are not finite numbers")
        if n == 0:
            return cls(0, np.zeros(k), np.zeros((k, k)))
        if n == 1:
            return cls(1, table[0], np.zeros((k, k)))
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below, in words
            mean = table.mean(axis=0)
            mean = mean + (table - mean).mean(axis=0)  # what rounding took from the first mean
            deviations = table - mean
            return cls(n, mean, deviations.T @ deviations / (n - 1))

    def merge(self, other: Moments) -> Moments:
        """The moments of both groups of units together (Chan, Golub, LeVeque 1979, eq. 2.1, in k dimensions).

        Exact up to rounding, in any order and any grouping. The groups must not share units.
        """
        if self.k != other.k:
            raise ValueError(f"moments of {self.k} and of {other.k} measures cannot be merged")
        if self.n == 0:
            return other
        if other.n == 0:
            return self
        n = self.n + other.n
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.n / n)
        scatter = (self.n - 1) * self.cov + (other.n - 1) * other.cov
        scatter = scatter + np.outer(gap, gap) * (self.n * (other.n / n))
        return Moments(n, mean, scatter / (n - 1))

    def take(self, measures: Sequence[int]) -> Moments:
        """The moments of some measures, in the order given; a measure may be named twice."""
        index = np.asarray(measures, dtype=np.intp)
        return Moments(self.n, self.mean[index], self.cov[np.ix_(index, index)])

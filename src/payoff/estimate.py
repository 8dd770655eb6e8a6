"""One number, what it is a number of, and how sure we are. Inert: nothing here reads data or knows a method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

IntervalKind = Literal["confidence", "credible", "always-valid", "repeated", "bootstrap", "bounds"]
CorrectedBy = Literal["holm", "benjamini-hochberg"]
FloatArray = NDArray[np.float64]


def t_quantile(probability: float, df: float) -> float:
    if math.isinf(df):
        return float(special.ndtri(probability))
    return float(special.stdtrit(df, probability))


def t_cdf(x: float, df: float) -> float:
    if math.isinf(df):
        return float(special.ndtr(x))
    return float(special.stdtr(df, x))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a level of confidence lies between 0 and 1, not {level}")


@dataclass(frozen=True, slots=True)
class Normal:
    """A normal (or, with finite ``df``, Student t) sampling distribution.

    With ``scale="log1p"`` it is log(1 + value) that is normal with standard error ``se``: the natural scale of a
    relative lift, whose interval must not fall below -100%.
    """

    se: float
    df: float = math.inf
    scale: Literal["identity", "log1p"] = "identity"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.se) and self.se > 0):
            raise ValueError(f"a standard error must be a finite number above zero, not {self.se}")
        if not self.df > 0:
            raise ValueError(f"degrees of freedom must be above zero, not {self.df}")

    def interval(self, value: float, level: float) -> tuple[float, float]:
        half = t_quantile(0.5 + level / 2, self.df) * self.se
        if self.scale == "log1p":
            centre = math.log1p(value)
            return math.expm1(centre - half), math.expm1(centre + half)
        return value - half, value + half

    def p_value(self, value: float, null: float = 0.0) -> float:
        """Two-sided, from the same distribution as the interval, so that the two can never disagree."""
        gap = math.log1p(value) - math.log1p(null) if self.scale == "log1p" else value - null
        return 2.0 * t_cdf(-abs(gap) / self.se, self.df)

    def draw(self, value: float, rng: np.random.Generator, size: int) -> FloatArray:
        noise = rng.standard_normal(size) if math.isinf(self.df) else rng.standard_t(self.df, size)
        if self.scale == "log1p":
            return np.expm1(math.log1p(value) + self.se * noise)
        return value + self.se * noise

    def to_dict(self) -> dict[str, Any]:
        df = None if math.isinf(self.df) else self.df
        return {"kind": "normal", "se": self.se, "df": df, "scale": self.scale}


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Joint or posterior draws; ``values`` has shape (draws,)."""

    values: FloatArray = field(repr=False)

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        if values.ndim != 1 or len(values) == 0:
            raise ValueError(f"draws must have shape (draws,), at least one of them, not {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{int((~np.isfinite(values)).sum())} of {len(values)} draws are not finite numbers")
        object.__setattr__(self, "values", values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Draws) and bool(np.array_equal(self.values, other.values))

    def __hash__(self) -> int:
        return hash(self.values.tobytes())

    def interval(self, value: float, level: float) -> tuple[float, float]:
        low, high = np.quantile(self.values, [0.5 - level / 2, 0.5 + level / 2])
        return float(low), float(high)

    def p_value(self, value: float, null: float = 0.0) -> None:
        return None

    def probability_above(self, threshold: float = 0.0) -> float:
        return float(np.mean(self.values > threshold))

    def draw(self, value: float, rng: np.random.Generator, size: int) -> FloatArray:
        return rng.choice(self.values, size)

    def to_dict(self) -> dict[str, Any]:
        grid = [0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.995]
        quantiles = {f"{q:g}": float(x) for q, x in zip(grid, np.quantile(self.values, grid), strict=True)}
        return {"kind": "draws", "n": len(self.values), "quantiles": quantiles}


@dataclass(frozen=True, slots=True)
class Bounds:
    """An interval known only by its ends, at one level (Fieller, Anderson-Rubin, an exact inversion)."""

    low: float
    high: float
    level: float
    p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"bounds must be finite and in order, not {self.low} to {self.high}")
        _check_level(self.level)

    def interval(self, value: float, level: float) -> tuple[float, float]:
        if not math.isclose(level, self.level):
            raise ValueError(f"this interval is known at level {self.level:g} only, not at {level:g}")
        return self.low, self.high

    def p_value(self, value: float, null: float = 0.0) -> float | None:
        return self.p if null == 0.0 else None

    def draw(self, value: float, rng: np.random.Generator, size: int) -> FloatArray:
        """Two half-normals whose ``level`` interval is the bounds: an approximation, used only to carry into money."""
        z = t_quantile(0.5 + self.level / 2, math.inf)
        noise = rng.standard_normal(size)
        return value + np.where(noise < 0, (value - self.low) / z, (self.high - value) / z) * noise

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "bounds", "low": self.low, "high": self.high, "level": self.level}


Uncertainty = Normal | Draws | Bounds


@dataclass(frozen=True, slots=True)
class Correction:
    """An estimate as one of ``of`` answers in a family: its p-value and interval corrected for that many questions."""

    method: CorrectedBy
    of: int
    p_value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.method, "of": self.of, "p_value": self.p_value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Estimate:
    """``value`` of ``estimand`` for ``metric`` in ``contrast``, in ``unit``; intervals derive from ``uncertainty``.

    ``n`` counts analysed units by arm; ``level`` is the level the project reports at (1 - alpha). ``labels`` say which cell of
    a description it is (its model and touchpoint, its step, its cohort and period), and are keys of their own in JSON.
    """

    estimand: str
    metric: str
    contrast: str
    value: float
    unit: str
    uncertainty: Uncertainty
    interval_kind: IntervalKind
    n: Mapping[str, int]
    level: float = 0.95
    segment: str | None = None
    correction: Correction | None = None
    labels: Mapping[str, str | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"{self.metric} ({self.contrast}): an estimate must be a finite number, not {self.value}")
        _check_level(self.level)
        spread = self.uncertainty
        if isinstance(spread, Normal) and spread.scale == "log1p" and self.value <= -1:
            raise ValueError(f"{self.metric} ({self.contrast}): a relative lift of {self.value:.0%} has no logarithm")
        if isinstance(spread, Bounds) and not spread.low <= self.value <= spread.high:
            raise ValueError(f"{self.metric} ({self.contrast}): {self.value} lies outside its own bounds")

    def interval(self, level: float | None = None) -> tuple[float, float]:
        if level is None:
            level = self.level
        _check_level(level)
        return self.uncertainty.interval(self.value, level)

    @property
    def low(self) -> float:
        return self.interval()[0]

    @property
    def high(self) -> float:
        return self.interval()[1]

    @property
    def p_value(self) -> float | None:
        """None where there is none to give: a credible interval has none, whatever its shape, and neither has a cell of a
        description, which nobody holds against zero."""
        described = bool(self.labels) and not self.estimand.startswith("difference")
        return None if described or self.interval_kind == "credible" else self.uncertainty.p_value(self.value)

    def draw(self, rng: np.random.Generator, size: int) -> FloatArray:
        return self.uncertainty.draw(self.value, rng, size)

    def scale(self, factor: float, unit: str | None = None) -> Estimate:
        """The same estimate in another unit: value and interval both times ``factor``, which is not zero."""
        if not (math.isfinite(factor) and factor != 0):
            raise ValueError(f"an estimate is scaled by a finite number other than zero, not by {factor}")
        if isinstance(self.uncertainty, Normal):
            if self.uncertainty.scale != "identity":
                raise ValueError("a relative lift is not scaled; scale the difference in means")
            spread: Uncertainty = replace(self.uncertainty, se=abs(factor) * self.uncertainty.se)
        elif isinstance(self.uncertainty, Draws):
            spread = Draws(self.uncertainty.values * factor)
        else:
            low, high = sorted((self.uncertainty.low * factor, self.uncertainty.high * factor))
            spread = replace(self.uncertainty, low=low, high=high)
        return replace(self, value=self.value * factor, uncertainty=spread, unit=unit or self.unit)

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval()
        return {
            **self.labels,
            "metric": self.metric,
            "contrast": self.contrast,
            "segment": self.segment,
            "estimand": self.estimand,
            "value": self.value,
            "low": low,
            "high": high,
            "level": self.level,
            "interval_kind": self.interval_kind,
            "unit": self.unit,
            "p_value": self.p_value,
            "n": {arm: int(count) for arm, count in self.n.items()},  # a numpy integer is not JSON
            "correction": None if self.correction is None else self.correction.to_dict(),
            "uncertainty": self.uncertainty.to_dict(),
        }


def draw_jointly(
    estimates: Sequence[Estimate], correlation: FloatArray, rng: np.random.Generator, size: int
) -> FloatArray:
    """Joint draws, shape (size, len(estimates)), of estimates that share their data.

    ``correlation`` (k, k) is the correlation of the estimates' sampling errors; each margin keeps its own distribution
    (a Gaussian copula), so a single estimate draws exactly as it does alone.
    """
    k = len(estimates)
    if correlation.shape != (k, k):
        raise ValueError(f"correlation has shape {correlation.shape}, not ({k}, {k})")
    if not (np.allclose(correlation, correlation.T) and np.allclose(np.diag(correlation), 1.0)):
        raise ValueError("a correlation matrix is symmetric with ones on its diagonal")
    if not (np.abs(correlation) <= 1 + 1e-9).all():
        raise ValueError("correlations lie between -1 and 1")
    values, vectors = np.linalg.eigh((correlation + correlation.T) / 2)
    root = vectors * np.sqrt(np.clip(values, 0.0, None))
    # Correlations estimated pair by pair need not fit together. What clipping adds to a variance is taken back, so
    # that each margin keeps its own spread whatever the matrix.
    root /= np.linalg.norm(root, axis=1, keepdims=True)
    normal = rng.standard_normal((size, k)) @ root.T
    out = np.empty((size, k))
    for j, estimate in enumerate(estimates):
        spread = estimate.uncertainty
        if isinstance(spread, Normal):
            noise = normal[:, j]
            if not math.isinf(spread.df):
                noise = special.stdtrit(spread.df, special.ndtr(noise))
            if spread.scale == "log1p":
                out[:, j] = np.expm1(math.log1p(estimate.value) + spread.se * noise)
            else:
                out[:, j] = estimate.value + spread.se * noise
        else:
            own = np.sort(estimate.draw(rng, size))
            out[:, j] = own[np.argsort(np.argsort(normal[:, j]))]
    return out


def combine(
    function: Callable[[FloatArray], FloatArray],
    estimates: Sequence[Estimate],
    correlation: FloatArray,
    rng: np.random.Generator,
    size: int,
    like: Estimate,
) -> Estimate:
    """``function`` of several estimates with their joint uncertainty; ``like`` lends its labels to the answer.

    ``function`` maps (draws, k) to (draws,). Its value at the point estimates is the answer's value.
    """
    point = np.array([[estimate.value for estimate in estimates]])
    value = float(function(point)[0])
    values = function(draw_jointly(estimates, correlation, rng, size))
    return replace(like, value=value, uncertainty=Draws(values))

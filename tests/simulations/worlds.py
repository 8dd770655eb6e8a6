"""Worlds whose truth is known: units' values drawn one by one, many worlds at a time, and their moments."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy import special

from payoff.estimate import FloatArray
from payoff.stats.moments import Moments

KINDS = {
    "normal": "mean 10, standard deviation 5",
    "skewed": "lognormal, sigma 1: skewness 6.2",
    "zero-inflated": "5% of units have a lognormal value (sigma 1), the rest 0: skewness about 20",
    "conversion": "5% of units have 1, the rest 0",
    "shifted": "normal, but what the treatment does is added and not multiplied, so that values fall below zero",
}
MEANS = {
    "normal": 10.0,
    "skewed": math.exp(2.5),
    "zero-inflated": 0.05 * math.exp(3.5),
    "conversion": 0.05,
    "shifted": 10.0,
}
BUYERS = 0.05
STRATA = 4
AT_ONCE = 1_000_000  # units drawn together


def batches(worlds: int, units: int) -> Iterator[int]:
    """How many worlds to draw at a time."""
    size = max(1, AT_ONCE // units)
    for start in range(0, worlds, size):
        yield min(size, worlds - start)


def values(kind: str, lift: float, latent: FloatArray, amount: FloatArray) -> FloatArray:
    """Units' values, ``lift`` times larger (a conversion: more frequent), from standard normal draws.

    ``latent`` decides the value, or who buys at all; ``amount`` how much those who buy spend.
    """
    if kind == "normal":
        return (1 + lift) * (10.0 + 5.0 * latent)
    if kind == "shifted":
        return 10.0 * (1 + lift) + 5.0 * latent
    if kind == "skewed":
        return (1 + lift) * np.exp(2.0 + latent)
    if kind == "conversion":
        return (latent > -special.ndtri(BUYERS * (1 + lift))).astype(np.float64)
    out = np.zeros(latent.shape)
    buys = latent > -special.ndtri(BUYERS)
    out[buys] = (1 + lift) * np.exp(3.0 + amount[buys])
    return out


def draw(kind: str, lift: float, shape: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    """Values of ``shape``, their mean MEANS[kind] (1 + lift)."""
    latent = rng.standard_normal(shape)
    return values(kind, lift, latent, rng.standard_normal(shape) if kind == "zero-inflated" else latent)


def with_history(
    kind: str, lift: float, shape: tuple[int, int], rho: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Units of ``shape`` (worlds, units): (worlds, units, 6) and the stratum of each, from 0.

    Columns: the value; the value times visits, visits (1 + Poisson(2)); and the same three before exposure, untreated. What
    is drawn before and after correlates by ``rho``, visits by 0.6. Strata are quarters of the draw before.
    """
    before = rng.standard_normal(shape)
    latent = rho * before + math.sqrt(1 - rho * rho) * rng.standard_normal(shape)
    spent, spends = before, latent
    if kind == "zero-inflated":
        spent = rng.standard_normal(shape)
        spends = rho * spent + math.sqrt(1 - rho * rho) * rng.standard_normal(shape)
    regular = rng.poisson(1.2, shape)
    out = np.empty((*shape, 6))
    out[..., 0] = values(kind, lift, latent, spends)
    out[..., 3] = values(kind, 0.0, before, spent)
    for of, visits in ((0, 2), (3, 5)):
        out[..., visits] = 1.0 + regular + rng.poisson(0.8, shape)
        out[..., visits - 1] = out[..., of] * out[..., visits]
    stratum = (before > special.ndtri(0.25)).astype(np.int8) + (before > 0) + (before > special.ndtri(0.75))
    return out, stratum


def moments(table: FloatArray) -> list[Moments]:
    """One Moments a world of ``table`` (worlds, units, k): `Moments.of`, for all at once."""
    n = table.shape[1]
    mean = table.mean(axis=1)
    deviations = table - mean[:, np.newaxis]
    cov = np.matmul(deviations.transpose(0, 2, 1), deviations) / (n - 1)
    return [Moments(n, m, c) for m, c in zip(mean, cov, strict=True)]


def moments_by_class(table: FloatArray, of: FloatArray, classes: int) -> list[list[Moments]]:
    """For each world its Moments by class, ``of`` (worlds, units) being the units' classes."""
    worlds, _, k = table.shape
    centre = table.mean(axis=1)
    apart = table - centre[:, np.newaxis]
    first, second = np.triu_indices(k)
    # One product for all classes: their sums of deviations from the arm's mean, and of the deviations' products
    products = np.concatenate([apart, apart[..., first] * apart[..., second]], axis=2)
    inside = (of[..., np.newaxis] == np.arange(classes)).astype(np.float64)
    sums = np.matmul(inside.transpose(0, 2, 1), products)
    counts = inside.sum(axis=1)
    out: list[list[Moments]] = []
    for w in range(worlds):
        out.append([])
        for c in range(classes):
            n, mean, cov = int(counts[w, c]), np.zeros(k), np.zeros((k, k))
            if n > 0:
                mean = sums[w, c, :k] / n
            if n > 1:
                cov[first, second] = sums[w, c, k:]
                cov[second, first] = sums[w, c, k:]
                cov = (cov - n * np.outer(mean, mean)) / (n - 1)
            out[w].append(Moments(n, centre[w] + mean if n else mean, cov))
    return out

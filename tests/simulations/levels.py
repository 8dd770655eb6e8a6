"""Differences and relative lifts of means and ratios: plain, adjusted by regression, post-stratified."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from payoff.stats import adjust
from payoff.stats.compare import (
    Fieller,
    Level,
    NoRelativeLift,
    difference,
    mean_level,
    normal_approximation_doubtful,
    ratio_level,
    relative_lift,
)
from payoff.stats.moments import Moments
from tests.simulations.rows import LEVEL, Row, Tally
from tests.simulations.worlds import MEANS, STRATA, batches, moments, moments_by_class, with_history

RHO = 0.7


def doubts(plain: Mapping[str, Level]) -> tuple[bool, bool]:
    """Does the check few_units warn: of the difference, of the relative lift? As in the method, by the plain levels."""
    gap = normal_approximation_doubtful(plain["t"], plain["c"]) is not None
    return gap, gap or normal_approximation_doubtful(plain["t"], plain["c"], relative=True) is not None


def tally(
    levels: Mapping[str, Level],
    covariance: float,
    truths: tuple[float, float],
    warned: tuple[bool, bool],
    tallies: Mapping[str, Tally],
    of: str,
) -> None:
    true_t, true_c = truths
    t, c = levels["t"], levels["c"]
    gap = difference(t, c, covariance)
    tallies[f"difference, {of}"].add(*gap.interval(LEVEL), true_t - true_c, warned[0], gap.p_value())
    lift = relative_lift(t, c, LEVEL, covariance)
    if isinstance(lift, NoRelativeLift):
        return
    to = tallies[f"relative lift, {of}"]
    if isinstance(lift, Fieller):
        to.add(lift.low, lift.high, true_t / true_c - 1, warned[1], lift.p_value)
    else:
        to.add(*lift.interval(LEVEL), true_t / true_c - 1, warned[1], lift.p_value())


def adjusted_or_plain(
    make: adjust.Adjusted | ValueError, plain: Mapping[str, Level]
) -> tuple[Mapping[str, Level], float]:
    """The method reports plain levels, and says so, where adjustment is refused."""
    return (plain, 0.0) if isinstance(make, ValueError) else (make.levels, make.covariance["t", "c"])


def regressed(
    by_arm: Mapping[str, Moments], kind: adjust.Kind, size: int | None = None
) -> adjust.Adjusted | ValueError:
    try:
        return adjust.adjusted_levels(by_arm, kind=kind, size=size)
    except ValueError as error:
        return error


def stratified(strata: Mapping[str, Mapping[str, Moments]], kind: adjust.Kind) -> adjust.Adjusted | ValueError:
    try:
        return adjust.post_stratified(strata, kind=kind)
    except ValueError as error:
        return error


def units_of(n_t: int, n_c: int) -> str:
    return f"{n_t:,} / {n_c:,}"


# ---------------------------------------------------------------- means and ratios

_MEAN, _RATIO = [0], [1, 2]


def levels(seed: int, worlds: int, kind: str, n_t: int, n_c: int, lift: float, rho: float) -> list[Row]:
    rng = np.random.default_rng(seed)
    names = [f"{of}{by}" for of in ("mean", "ratio") for by in ("", ", CUPED", ", post-stratified")]
    tallies = {f"{what}, {of}": Tally() for of in names for what in ("difference", "relative lift")}
    truths = MEANS[kind] * (1 + lift), MEANS[kind]
    for size in batches(worlds, n_t + n_c):
        (t, in_t), (c, in_c) = (with_history(kind, x, (size, n), rho, rng) for x, n in ((lift, n_t), (0.0, n_c)))
        whole = {"c": moments(c), "t": moments(t)}
        classes = {"c": moments_by_class(c[..., :3], in_c, STRATA), "t": moments_by_class(t[..., :3], in_t, STRATA)}
        for w in range(size):
            one_world({a: m[w] for a, m in whole.items()}, {a: m[w] for a, m in classes.items()}, truths, tallies)
    values = kind if rho == RHO else f"{kind}, R2 {rho * rho:.2g}"
    return [
        x.row(name, values, units_of(n_t, n_c), f"{lift:+.0%}", worlds, null=lift == 0) for name, x in tallies.items()
    ]


def one_world(
    whole: Mapping[str, Moments],
    classes: Mapping[str, list[Moments]],
    truths: tuple[float, float],
    tallies: Mapping[str, Tally],
) -> None:
    kinds: tuple[tuple[adjust.Kind, list[int], list[int]], ...] = (("mean", _MEAN, [3]), ("ratio", _RATIO, [4, 5]))
    for kind, columns, before in kinds:
        make = mean_level if kind == "mean" else ratio_level
        try:
            plain = {arm: make(m.take(columns)) for arm, m in whole.items()}
        except ValueError:
            continue  # no unit of an arm has a value: refused
        warned = doubts(plain)
        tally(plain, 0.0, truths, warned, tallies, kind)
        by_arm = {arm: m.take([*columns, *before]) for arm, m in whole.items()}
        tally(*adjusted_or_plain(regressed(by_arm, kind), plain), truths, warned, tallies, f"{kind}, CUPED")
        strata = {str(s): {arm: classes[arm][s].take(columns) for arm in whole} for s in range(STRATA)}
        found = adjusted_or_plain(stratified(strata, kind), plain)
        tally(*found, truths, warned, tallies, f"{kind}, post-stratified")

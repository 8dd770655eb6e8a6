"""Quantiles, classes of units, other experiments, totals over time and displacement."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from payoff.estimate import FloatArray
from payoff.stats import heterogeneity, quantile
from payoff.stats.compare import Difference, Level, difference, mean_level
from payoff.stats.displacement import displacement
from payoff.stats.moments import Moments
from tests.simulations.levels import doubts, tally, units_of
from tests.simulations.rows import LEVEL, Row, Tally
from tests.simulations.worlds import BUYERS, MEANS, batches, draw, moments

# ---------------------------------------------------------------- quantiles


def true_quantile(kind: str, q: float) -> float:
    if kind == "normal":
        return 10.0 + 5.0 * float(special.ndtri(q))
    if kind == "skewed":
        return math.exp(2.0 + float(special.ndtri(q)))
    return math.exp(3.0 + float(special.ndtri(1 - (1 - q) / BUYERS)))


def arm_quantile(rows: FloatArray, of: FloatArray | None, units: int, q: float) -> Level:
    """As the engine reads it: the quantile, then at or below it by unit, then the order statistics at the outer ranks."""
    value = float(np.quantile(rows, q))
    below = (rows <= value).astype(np.float64)
    if of is None:
        by_unit = np.stack([below, np.ones(units)], axis=1)
    else:
        by_unit = np.stack([np.bincount(of, weights=below), np.bincount(of).astype(np.float64)], axis=1)
    low, high = np.quantile(rows, quantile.outer_ranks(Moments.of(by_unit), len(rows), q, LEVEL))
    return quantile.level(value, float(low), float(high), units, LEVEL)


def quantiles(seed: int, worlds: int, kind: str, q: float, n: int, lift: float, clustered: bool) -> list[Row]:
    """``clustered``: 1 + Poisson(2) rows a unit, correlated by a half."""
    rng = np.random.default_rng(seed)
    name = f"quantile {q:g}{' of rows' if clustered else ''}"
    tallies = {f"{what}, {name}": Tally() for what in ("difference", "relative lift")}
    truths = (1 + lift) * true_quantile(kind, q), true_quantile(kind, q)
    for _ in range(worlds):
        levels = {}
        try:
            for arm, x in (("t", lift), ("c", 0.0)):
                of = np.repeat(np.arange(n), 1 + rng.poisson(2.0, n)) if clustered else None
                levels[arm] = arm_quantile(rows_of(kind, x, n, of, rng), of, n, q)
        except ValueError:
            continue
        tally(levels, 0.0, truths, (False, False), tallies, name)  # few_units is silent on quantiles
    return [x.row(k, kind, units_of(n, n), f"{lift:+.0%}", worlds, null=lift == 0) for k, x in tallies.items()]


def rows_of(kind: str, lift: float, n: int, of: FloatArray | None, rng: np.random.Generator) -> FloatArray:
    if of is None:
        return draw(kind, lift, (n,), rng)
    latent = math.sqrt(0.5) * (rng.standard_normal(n)[of] + rng.standard_normal(len(of)))
    return (1 + lift) * (10.0 + 5.0 * latent if kind == "normal" else np.exp(2.0 + latent))


# ---------------------------------------------------------------- classes of units


def classes(seed: int, worlds: int, kind: str, k: int, n: int, spread: float, pooled_in: int) -> list[Row]:
    """``k`` classes of ``n`` units an arm; true effects lie ``spread`` standard errors apart (their standard deviation).

    Three rows: the pooled intervals, averaged over classes, in the first ``pooled_in`` worlds (they take long); the test that
    classes are alike; the test for opposite signs.
    """
    rng = np.random.default_rng(seed)
    # What one class's difference errs by: at spread 0 all classes have the same effect, 5%
    sd = {"normal": 5.0, "skewed": MEANS["skewed"] * math.sqrt(math.e - 1)}.get(
        kind, math.sqrt(BUYERS * math.exp(8.0) - MEANS["zero-inflated"] ** 2)
    )
    unit = sd * math.sqrt(2 / n) / MEANS[kind]
    shares, rejected, crossed, answered, warnings, many = [], 0, 0, 0, 0, 0
    below = above = excludes = 0.0
    for size in batches(worlds, 2 * n * k):
        effects = 0.05 + spread * unit * rng.standard_normal((size, k))
        control = moments(draw(kind, 0.0, (size * k, n), rng)[..., np.newaxis])
        base = draw(kind, 0.0, (size * k, n), rng) * (1 + effects.reshape(-1, 1))
        treated = moments(base[..., np.newaxis])
        for w in range(size):
            at = range(w * k, (w + 1) * k)
            try:
                plain = [{"t": mean_level(treated[i]), "c": mean_level(control[i])} for i in at]
            except ValueError:
                continue  # the class is left out, which is another table
            gaps = [difference(x["t"], x["c"]) for x in plain]
            figures = [g.value for g in gaps], [g.se for g in gaps], [g.df for g in gaps]
            if answered < pooled_in:
                pooled = heterogeneity.partial_pooling(*figures[:2], level=LEVEL)
                truth = effects[w] * MEANS[kind]
                low, high = np.array(pooled.intervals).T
                shares.append(float(((low <= truth) & (truth <= high)).mean()))
                below += float((high < truth).mean())
                above += float((low > truth).mean())
                excludes += float(((low > 0) | (high < 0)).mean())
            rejected += heterogeneity.interaction(*figures).p_value < 1 - LEVEL
            crossed += heterogeneity.gail_simon(*figures).p_value < 1 - LEVEL
            few = any(doubts(x)[0] for x in plain)  # few_units looks at every class
            warnings += few
            many += few or k >= heterogeneity.MANY_CLASSES  # and at how many are pooled
            answered += 1
    place = kind, f"{k} classes of {n:,} / {n:,}", f"spread {spread:g} se"
    m = max(answered, 1)

    def test(name: str, count: int, null: bool) -> Row:
        share = round(count / m, 6)
        return Row(name, *place, "test", worlds, answered, 1 - share, 0.0, 0.0, share, warnings / m, null)

    return [
        Row(
            "partial pooling, averaged over classes",
            *place,
            "safe",
            pooled_in,
            len(shares),
            round(float(np.mean(shares)), 6),
            round(below / len(shares), 6),
            round(above / len(shares), 6),
            round(excludes / len(shares), 6),
            many / m,
            False,
            spread=round(max(float(np.std(shares)), 1e-3), 6),
        ),
        test("interaction test", rejected, spread == 0),
        test("opposite signs (Gail and Simon)", crossed, spread == 0),
    ]


# ---------------------------------------------------------------- two experiments


def crossed(seed: int, worlds: int, kind: str, n: int, lift: float) -> list[Row]:
    """``n`` units an arm, half of each in the other experiment's treatment, where this one's effect is ``lift`` larger."""
    rng = np.random.default_rng(seed)
    out, half = Tally(), n // 2
    for size in batches(worlds, 2 * n):
        cells = [moments(draw(kind, x, (size, half), rng)[..., np.newaxis]) for x in (0.05 + lift, 0.0, 0.05, 0.0)]
        for w in range(size):
            try:
                levels = [mean_level(cell[w]) for cell in cells]
                whole = {arm: mean_level(cells[i][w].merge(cells[i + 2][w])) for i, arm in ((0, "t"), (1, "c"))}
            except ValueError:
                continue
            found = heterogeneity.effect_interaction(*levels)
            out.add(*found.interval(LEVEL), MEANS[kind] * lift, doubts(whole)[0], found.p_value())
    return [out.row("interaction of two experiments", kind, units_of(n, n), f"{lift:+.0%}", worlds, null=lift == 0)]


# ---------------------------------------------------------------- over time

STEPS = 10


def over_time(seed: int, worlds: int, kind: str, n: int, lift: float) -> list[Row]:
    """Ten steps of a tenth of the value each, a unit's steps correlated: the band of totals, and the test for a trend."""
    rng = np.random.default_rng(seed)
    band, trend = Tally(), Tally()
    truth = np.cumsum(np.full(STEPS, MEANS[kind] * lift)) * n
    for size in batches(worlds, 2 * n * STEPS):
        t, c = (moments(stepped(kind, x, (size, n), rng)) for x in (lift, 0.0))
        for w in range(size):
            values, covariance = t[w].mean - c[w].mean, t[w].cov / n + c[w].cov / n
            total = heterogeneity.cumulative(values * n, covariance * n**2)
            if not (total.ses > 0).all():
                continue
            spread = total.covariance / np.outer(total.ses, total.ses)
            half = heterogeneity.simultaneous_band(spread, LEVEL, rng, draws=20_000) * total.ses
            low, high = total.values - half, total.values + half
            one = np.ones(STEPS)
            try:
                whole = {
                    arm: mean_level(Moments(n, [one @ m.mean], [[one @ m.cov @ one]]))
                    for arm, m in (("t", t[w]), ("c", c[w]))
                }
                slope = heterogeneity.trend(values, covariance, np.arange(STEPS) + 0.5, n - 1.0)
            except ValueError:
                continue
            doubt = doubts(whole)[0]
            band.answered += 1
            band.above += bool((low > truth).any())
            band.below += bool((high < truth).any())
            band.covered += bool(((low <= truth) & (truth <= high)).all())
            band.rejected += bool(((low > 0) | (high < 0)).any())
            band.warned += doubt
            gap = Difference(slope.slope, slope.se, slope.df)
            trend.add(*gap.interval(LEVEL), 0.0, doubt, slope.p_value)
    place = kind, units_of(n, n), f"{lift:+.0%}", worlds
    return [
        band.row("cumulative total, the band over ten dates", *place, null=lift == 0),
        trend.row("trend over ten steps", *place, null=True),
    ]


def stepped(kind: str, lift: float, shape: tuple[int, int], rng: np.random.Generator) -> FloatArray:
    """(worlds, units, STEPS): each step has the mean of ``kind``; a unit's steps correlate by a half before they are values."""
    shared = math.sqrt(0.5) * rng.standard_normal(shape)
    latent = shared[..., np.newaxis] + math.sqrt(0.5) * rng.standard_normal((*shape, STEPS))
    if kind == "normal":
        return (1 + lift) * (10.0 + 5.0 * latent)
    if kind == "skewed":
        return (1 + lift) * np.exp(2.0 + latent)
    out = np.zeros(latent.shape)
    buys = latent > -special.ndtri(BUYERS)
    out[buys] = (1 + lift) * np.exp(3.0 + rng.standard_normal(int(buys.sum())))
    return out


# ---------------------------------------------------------------- displacement


def paths(seed: int, worlds: int, kind: str, n: int, lift: float, anyway: float) -> list[Row]:
    """Three paths of the same mean; the treated one gains ``lift``, and ``anyway`` of that is lost on the other two."""
    rng = np.random.default_rng(seed)
    names = ("share that would have come anyway", "net over all paths")
    tallies = {name: Tally() for name in names}
    mean = MEANS[kind]
    net = mean * lift * (1 - anyway)
    for size in batches(worlds, 6 * n):
        loss = lift * anyway / 2
        t = moments(np.stack([draw(kind, x, (size, n), rng) for x in (lift, -loss, -loss)], axis=2))
        c = moments(np.stack([draw(kind, 0.0, (size, n), rng) for _ in range(3)], axis=2))
        for w in range(size):
            try:
                found = displacement(t[w], c[w], 0, level=LEVEL)
                own = {"t": mean_level(t[w].take([0])), "c": mean_level(c[w].take([0]))}
            except ValueError:
                continue
            doubt = doubts(own)
            tallies[names[1]].add(*found.net.interval(LEVEL), net, doubt[0], found.net.p_value())
            if found.anyway is not None:
                tallies[names[0]].add(found.anyway.low, found.anyway.high, 1 - net / (mean * (1 + lift)), doubt[1])
    effect = f"{lift:+.0%}, {anyway:.0%} of it taken from others"
    return [x.row(name, kind, units_of(n, n), effect, worlds, null=False) for name, x in tallies.items()]

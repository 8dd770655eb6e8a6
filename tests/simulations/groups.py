"""Means where units come in clusters, and where only some of them trigger."""

from __future__ import annotations

import numpy as np

from payoff.estimate import FloatArray
from payoff.methods.experiment.checks import FEW_CLUSTERS, even_clusters
from payoff.stats import adjust
from payoff.stats.compare import difference, mean_level, ratio_level
from payoff.stats.moments import Moments
from tests.simulations.levels import RHO, adjusted_or_plain, doubts, regressed, tally, units_of
from tests.simulations.rows import LEVEL, Row, Tally
from tests.simulations.worlds import MEANS, batches, draw, moments

# ---------------------------------------------------------------- clusters


def clusters(seed: int, worlds: int, sizes: str, kind: str, n: int, lift: float) -> list[Row]:
    """``n`` clusters an arm, of 10 units on average, or of very different sizes; intraclass correlation 0.2."""
    rng = np.random.default_rng(seed)
    tallies = {
        f"{what}, mean of clusters{by}": Tally() for by in ("", ", CUPED") for what in ("difference", "relative lift")
    }
    truths = MEANS[kind] * (1 + lift), MEANS[kind]
    for batch in batches(worlds, 2 * n * 25):
        drawn = {arm: cluster_totals(sizes, kind, x, (batch, n), rng) for arm, x in (("c", 0.0), ("t", lift))}
        whole = {arm: moments(table) for arm, table in drawn.items()}
        largest = {arm: table[..., 1].max(axis=1) / table[..., 1].sum(axis=1) for arm, table in drawn.items()}
        for w in range(batch):
            by_arm = {arm: m[w] for arm, m in whole.items()}
            plain = {arm: ratio_level(m.take([0, 1])) for arm, m in by_arm.items()}
            few = (
                min(even_clusters(m.take([1])) for m in by_arm.values()) < FEW_CLUSTERS
                or max(float(x[w]) for x in largest.values()) > 0.2
            )
            gap, of_lift = doubts(plain)
            warned = few or gap, few or of_lift
            tally(plain, 0.0, truths, warned, tallies, "mean of clusters")
            found = adjusted_or_plain(regressed(by_arm, "mean", size=1), plain)
            tally(*found, truths, warned, tallies, "mean of clusters, CUPED")
    return [
        x.row(name, f"{kind}, {sizes} sizes", f"{n:,} / {n:,} clusters", f"{lift:+.0%}", worlds, null=lift == 0)
        for name, x in tallies.items()
    ]


def cluster_totals(sizes: str, kind: str, lift: float, shape: tuple[int, int], rng: np.random.Generator) -> FloatArray:
    """(worlds, clusters, 3): total, units, total before."""
    if sizes == "similar":
        size = 1 + rng.poisson(9.0, shape)
    else:
        size = np.ceil(np.exp(rng.normal(1.5, 1.0, shape))).clip(max=200).astype(np.int64)
    of = np.repeat(np.arange(size.size), size.ravel())
    shared, icc = rng.standard_normal((2, size.size)), 0.2
    before = shared[0]
    after = RHO * before + np.sqrt(1 - RHO**2) * shared[1]

    def total(cluster: FloatArray, x: float) -> FloatArray:
        latent = np.sqrt(icc) * cluster[of] + np.sqrt(1 - icc) * rng.standard_normal(len(of))
        y = (1 + x) * (10.0 + 5.0 * latent if kind == "normal" else np.exp(2.0 + latent))
        return np.add.reduceat(y, np.concatenate([[0], np.cumsum(size.ravel())[:-1]])).reshape(shape)

    return np.stack([total(after, lift), size.astype(np.float64), total(before, 0.0)], axis=2)


# ---------------------------------------------------------------- diluted


def diluted(seed: int, worlds: int, kind: str, n: int, lift: float) -> list[Row]:
    """``n`` units an arm are assigned, a fifth of them triggers."""
    rng = np.random.default_rng(seed)
    out, share = Tally(), 0.2
    truth = share * MEANS[kind] * lift
    for size in batches(worlds, 2 * n):
        counts = rng.binomial(n, share, (2, size))
        for w in range(size):
            some = {"t": int(counts[0, w]), "c": int(counts[1, w])}
            try:
                plain = {
                    arm: mean_level(Moments.of(draw(kind, x, (some[arm],), rng)))
                    for arm, x in (("t", lift), ("c", 0.0))
                }
            except ValueError:
                continue
            found = adjust.diluted(difference(plain["t"], plain["c"]), some, {"t": n, "c": n}).difference
            out.add(*found.interval(LEVEL), truth, doubts(plain)[0], found.p_value())
    return [
        out.row(
            "difference, everyone assigned (a fifth triggered)",
            kind,
            units_of(n, n),
            f"{lift:+.0%}",
            worlds,
            null=lift == 0,
        )
    ]

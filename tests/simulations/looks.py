"""Intervals read again and again while units come in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from payoff.estimate import FloatArray
from payoff.methods.experiment.rule import BOUNDLESS, Rule
from payoff.stats.compare import Level, LogDelta, difference, mean_level, relative_lift
from payoff.stats.moments import Moments
from payoff.stats.sequential import Spending
from tests.simulations.levels import RHO, adjusted_or_plain, doubts, regressed, units_of
from tests.simulations.rows import LEVEL, Row, Tally
from tests.simulations.worlds import MEANS, batches, draw, with_history

LOOKS = 100
ALPHA = 1 - LEVEL


def so_far(table: FloatArray) -> list[list[Moments]]:
    """By world the Moments of the units in at each of LOOKS looks, evenly spaced; ``table`` is (worlds, units, k)."""
    worlds, n, k = table.shape
    centre = table.mean(axis=1)
    blocks = (table - centre[:, np.newaxis]).reshape(worlds * LOOKS, n // LOOKS, k)
    first = blocks.sum(axis=1).reshape(worlds, LOOKS, k).cumsum(axis=1)
    second = np.matmul(blocks.transpose(0, 2, 1), blocks).reshape(worlds, LOOKS, k, k).cumsum(axis=1)
    counts = n // LOOKS * np.arange(1, LOOKS + 1)
    mean = first / counts[:, np.newaxis]
    scatter = second - counts[:, np.newaxis, np.newaxis] * mean[..., np.newaxis] * mean[..., np.newaxis, :]
    cov = scatter / np.maximum(counts - 1, 1)[:, np.newaxis, np.newaxis]
    # What has had one value so far has no variance at all, not what rounding leaves of one
    cut = table.reshape(worlds, LOOKS, n // LOOKS, k)
    lowest = np.minimum.accumulate(cut.min(axis=2), axis=1)
    same = lowest == np.maximum.accumulate(cut.max(axis=2), axis=1)
    mean = np.where(same, lowest, centre[:, np.newaxis] + mean)
    cov[same[..., np.newaxis] | same[..., np.newaxis, :]] = 0.0
    return [[Moments(int(counts[i]), mean[w, i], cov[w, i]) for i in range(LOOKS)] for w in range(worlds)]


@dataclass
class Watched:
    """One interval over the looks of one world: does any leave out the truth, any zero, and which is farthest off?"""

    truth: float
    seen: int = 0
    above: bool = False
    below: bool = False
    rejected: bool = False
    worst: tuple[float, int] = field(default=(-1.0, 0))

    def see(self, low: float, high: float, look: int) -> None:
        self.seen += 1
        self.above |= low > self.truth
        self.below |= high < self.truth
        self.rejected |= low > 0 or high < 0
        middle, half = (low + high) / 2, (high - low) / 2
        self.worst = max(self.worst, (abs(middle - self.truth) / half, look))

    def into(self, tally: Tally, warned: bool) -> None:
        tally.answered += 1
        tally.above += self.above
        tally.below += self.below and not self.above
        tally.covered += not (self.above or self.below)
        tally.rejected += self.rejected
        tally.warned += warned


def rules(n: int, peeked: bool) -> dict[str, dict[int, Rule]]:
    """By rule, the Rule in force at each of its looks (from 1 to LOOKS). ``n`` units of both arms are planned."""
    shares = [k / LOOKS for k in range(1, LOOKS + 1)]

    def spending(every: int, how: Spending) -> dict[int, Rule]:
        at = range(every, LOOKS + 1, every)
        seen = {k: tuple(shares[every - 1 : k : every]) for k in at}
        return {k: Rule("group_sequential", ALPHA, information=seen[k], spending=how) for k in at}

    always = Rule("always_valid", ALPHA, tightest_at=n)
    out = {
        "always-valid, the last look": {LOOKS: always},
        "always-valid, any of 100 looks": dict.fromkeys(range(1, LOOKS + 1), always),
        "O'Brien-Fleming, any of 5 looks": spending(20, "obrien_fleming"),
        "Pocock, any of 5 looks": spending(20, "pocock"),
        "O'Brien-Fleming, any of 100 looks": spending(1, "obrien_fleming"),
    }
    if peeked:
        out["for one look, read at 100"] = dict.fromkeys(range(1, LOOKS + 1), Rule("fixed", ALPHA))
    return out


def looks(seed: int, worlds: int, kind: str, n: int, lift: float, cuped: bool) -> list[Row]:
    rng = np.random.default_rng(seed)
    every = rules(2 * n, lift == 0)
    by = ", CUPED" if cuped else ""
    tallies = {f"{what}, mean{by}; {rule}": Tally() for what in ("difference", "relative lift") for rule in every}
    for size in batches(worlds, 2 * n):
        t, c = (units(kind, x, (size, n), rng, cuped) for x in (lift, 0.0))
        for in_t, in_c in zip(so_far(t), so_far(c), strict=True):
            one_world(in_t, in_c, (MEANS[kind] * lift, lift), every, tallies, by)
    return [
        x.row(name, kind, units_of(n, n), f"{lift:+.0%}", worlds, null=lift == 0, what=what_of(name))
        for name, x in tallies.items()
    ]


def units(kind: str, lift: float, shape: tuple[int, int], rng: np.random.Generator, cuped: bool) -> FloatArray:
    if cuped:
        return with_history(kind, lift, shape, RHO, rng)[0][..., [0, 3]]
    return draw(kind, lift, shape, rng)[..., np.newaxis]


def what_of(name: str) -> str:
    return "contrast" if "for one look" in name else "safe" if "always-valid" in name else "interval"


def one_world(
    in_t: list[Moments],
    in_c: list[Moments],
    truths: tuple[float, float],
    every: Mapping[str, Mapping[int, Rule]],
    tallies: Mapping[str, Tally],
    by: str,
) -> None:
    watched = {name: Watched(truths[name.startswith("relative")]) for name in tallies}
    plain: dict[int, Mapping[str, Level]] = {}
    for look, (t, c) in enumerate(zip(in_t, in_c, strict=True), 1):
        try:
            plain[look] = {arm: mean_level(m.take([0])) for arm, m in (("t", t), ("c", c))}
        except ValueError:
            continue  # nothing varies yet: refused
        levels, covariance = (
            adjusted_or_plain(regressed({"c": c, "t": t}, "mean"), plain[look]) if by else (plain[look], 0.0)
        )
        gap = difference(levels["t"], levels["c"], covariance)
        of_lift = relative_lift(levels["t"], levels["c"], LEVEL, covariance)
        n = t.n + c.n
        for name, at in every.items():
            if look not in at:
                continue
            watched[f"difference, mean{by}; {name}"].see(*at[look].interval(gap.value, gap.se, gap.df, n, LEVEL), look)
            lift_name = f"relative lift, mean{by}; {name}"
            if isinstance(of_lift, LogDelta) and lift_name in watched:
                ends = at[look].interval(math.log1p(of_lift.value), of_lift.se_log, of_lift.df, n, LEVEL)
                if ends[1] <= BOUNDLESS:  # else no relative lift is given
                    watched[lift_name].see(math.expm1(ends[0]), math.expm1(ends[1]), look)
    for name, seen in watched.items():
        if seen.seen:
            seen.into(tallies[name], doubts(plain[seen.worst[1]])[name.startswith("relative")])

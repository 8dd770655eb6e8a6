"""The relative lift with CUPED of another open tool, tea-tasting, on the very worlds that ours is measured on.

It is no dependency of this project. In an environment of its own that has both, from the repository's root:

    python -m tests.simulations.beside_tea_tasting
"""

from __future__ import annotations

import importlib.metadata

import numpy as np

from payoff.stats import adjust
from payoff.stats.compare import LogDelta, relative_lift
from payoff.stats.moments import Moments
from tests.simulations.rows import LEVEL
from tests.simulations.worlds import with_history

LIFT, R2, WORLDS = 0.5, 0.98, 1_000


def covered(kind: str, n: int, seed: int) -> tuple[float, float]:
    """Coverage of the nominal 95% interval of the relative lift: (tea-tasting's, ours)."""
    import pyarrow as pa
    import tea_tasting as tt

    experiment = tt.Experiment(y=tt.Mean("y", "x", use_t=True, confidence_level=LEVEL))
    variant = np.repeat([0, 1], n)
    rng = np.random.default_rng(seed)
    theirs = ours = 0
    for _ in range(WORLDS):
        c, t = (with_history(kind, lift, (1, n), R2**0.5, rng)[0][0][:, [0, 3]] for lift in (0.0, LIFT))
        y, x = np.concatenate([c, t]).T
        found = experiment.analyze(pa.table({"variant": variant, "y": y, "x": x}))["y"]
        theirs += found.rel_effect_size_ci_lower <= LIFT <= found.rel_effect_size_ci_upper
        made = adjust.adjusted_levels({"c": Moments.of(c), "t": Moments.of(t)})
        lift = relative_lift(made.levels["t"], made.levels["c"], LEVEL, covariance=made.covariance["t", "c"])
        assert isinstance(lift, LogDelta)
        low, high = lift.interval(LEVEL)
        ours += low <= LIFT <= high
    return theirs / WORLDS, ours / WORLDS


if __name__ == "__main__":
    print(f"tea-tasting {importlib.metadata.version('tea-tasting')}, lift {LIFT:+.0%}, R2 {R2}, {WORLDS:,} worlds")
    for kind in ("shifted", "normal"):
        for size in (200, 2_000):
            theirs, ours = covered(kind, size, seed=size)
            print(f"{kind}, {size:,} / {size:,}: tea-tasting {theirs:.3f}, payoff {ours:.3f}", flush=True)

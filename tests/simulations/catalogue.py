"""Every regime that is simulated."""

from __future__ import annotations

from tests.simulations.groups import clusters, diluted
from tests.simulations.levels import RHO, levels
from tests.simulations.looks import looks
from tests.simulations.parts import classes, crossed, over_time, paths, quantiles
from tests.simulations.rows import Case

KINDS = ("normal", "skewed", "zero-inflated", "conversion")
LIFTS = (0.0, 0.05, 0.5)
SIZES = ((200, 200, 4_000), (2_000, 2_000, 3_000), (20_000, 20_000, 1_000))
# A holdout of 10%: as much is known of the treated as is wanted, and little of the control.
HOLDOUTS = ((1_800, 200, 4_000), (18_000, 2_000, 1_000))

CASES = (
    *(
        Case("levels", levels, (kind, n_t, n_c, lift, RHO), worlds, n_t + n_c)
        for kind in KINDS
        for n_t, n_c, worlds in SIZES
        for lift in LIFTS
    ),
    *(
        Case("levels", levels, (kind, n_t, n_c, lift, RHO), worlds, n_t + n_c)
        for kind in KINDS
        for n_t, n_c, worlds in HOLDOUTS
        for lift in LIFTS[:2]
    ),
    # What came before says nearly everything, and the treatment changes much.
    *(
        Case("levels", levels, (kind, n, n, 0.5, 0.98**0.5), 4_000, 2 * n)
        for kind in ("normal", "shifted")
        for n in (200, 2_000)
    ),
    # Values that can be negative and a treatment whose mean is near zero: the log scale's worst.
    Case("levels", levels, ("shifted", 200, 200, -0.95, RHO), 4_000, 400),
    *(
        Case("clusters", clusters, (sizes, kind, n, lift), 4_000 if n < 1_000 else 1_000, 50 * n)
        for sizes in ("similar", "uneven")
        for kind in ("normal", "skewed")
        for n in (10, 20, 50, 200, 2_000)
        for lift in (0.0, 0.5)
    ),
    *(
        Case("diluted", diluted, (kind, n, lift), worlds, n // 2)
        for kind in KINDS
        for n, _, worlds in SIZES
        for lift in LIFTS
    ),
    *(
        Case("looks", looks, (kind, n, lift, False), 1_000, 2 * n)
        for kind in KINDS
        for n, *_ in SIZES
        for lift in (0.0, 0.5)
    ),
    *(Case("looks", looks, ("normal", 2_000, lift, True), 300, 40_000) for lift in (0.0, 0.5)),
    *(
        Case("quantiles", quantiles, (kind, q, n, lift, False), 1_000 if n > 2_000 else 2_000, 2 * n)
        for kind, q in (("normal", 0.5), ("normal", 0.9), ("skewed", 0.5), ("skewed", 0.9), ("zero-inflated", 0.99))
        for n, *_ in SIZES
        for lift in LIFTS
    ),
    *(
        Case("quantiles", quantiles, (kind, q, n, lift, True), 1_000 if n > 2_000 else 2_000, 6 * n)
        for kind, q in (("normal", 0.5), ("skewed", 0.9))
        for n, *_ in SIZES
        for lift in LIFTS
    ),
    *(
        Case("classes", classes, (kind, k, n, spread, 300), 1_000, 2 * n * k)
        for kind in KINDS[:3]
        for k, n in ((2, 200), (5, 200), (20, 200), (5, 2_000))
        for spread in (
            (0.0, 1.0) if kind == "zero-inflated" else (0.0, 1.0, 5.0)
        )  # five would be losses of all, and more
    ),
    *(
        Case("crossed", crossed, (kind, n, lift), worlds, 2 * n)
        for kind in KINDS
        for n, _, worlds in SIZES
        for lift in LIFTS
    ),
    *(
        Case("over_time", over_time, (kind, n, lift), 500 if n > 2_000 else 1_000, 20 * n)
        for kind in KINDS[:3]
        for n, *_ in SIZES
        for lift in (0.0, 0.5)
    ),
    *(
        Case("paths", paths, (kind, n, lift, anyway), worlds, 6 * n)
        for kind in KINDS[:3]
        for n, _, worlds in SIZES
        for lift, anyway in ((0.0, 0.0), (0.05, 0.5), (0.5, 0.5))
    ),
)

"""Regimes in which some intervals are known to cover less than they say, and why. The page lists them.

The program must warn in each. A regime that mends must leave the list, and none enters it without a reason.
"""

from __future__ import annotations

from tests.simulations.page import Regime

_LIFT = "relative lifts: the log of a skewed mean is not yet normal where its units count as fewer than 150 even ones"
_FEW = "a handful of buyers is the whole mean"
_HOLDOUT = "the holdout's skewness is not cancelled by the other arm's: misses are on the side that claims too much"
_HOLDOUT_LARGE = "as against a holdout of 200: 5% of 2,000 are 100 buyers of very different values"
_CLUSTERS = "too few clusters for their scatter to be known"
_UNEVEN = "the few large clusters are most of the variance: they count as fewer than 20 of one size"
_LOOKS = "as at one look: the first looks have fewer units still"
_CLASSES = "each class has a handful of buyers, or the effect's error hangs on the effect"

KNOWN: dict[Regime, str] = {
    Regime("levels", "skewed", "200 / 200"): _LIFT,
    Regime("levels", "zero-inflated", "200 / 200"): _FEW,
    Regime("levels", "zero-inflated", "2,000 / 2,000"): _LIFT,
    Regime("levels", "conversion", "200 / 200"): "10 conversions an arm, and a ratio over visits on top",
    Regime("levels", "skewed", "1,800 / 200"): _HOLDOUT,
    Regime("levels", "zero-inflated", "1,800 / 200"): _HOLDOUT,
    Regime("levels", "zero-inflated", "18,000 / 2,000"): _HOLDOUT_LARGE,
    Regime("levels", "conversion", "1,800 / 200"): _HOLDOUT,
    Regime("levels", "shifted", "200 / 200"): "relative lifts of a treatment near zero, where the log scale ends",
    Regime("clusters", "skewed, similar sizes", "10 / 10 clusters"): _CLUSTERS,
    Regime("clusters", "skewed, similar sizes", "20 / 20 clusters"): _CLUSTERS,
    Regime("clusters", "normal, uneven sizes", "10 / 10 clusters"): _CLUSTERS,
    Regime("clusters", "normal, uneven sizes", "20 / 20 clusters"): _UNEVEN,
    Regime("clusters", "normal, uneven sizes", "50 / 50 clusters"): _UNEVEN,
    Regime("clusters", "skewed, uneven sizes", "10 / 10 clusters"): _CLUSTERS,
    Regime("clusters", "skewed, uneven sizes", "20 / 20 clusters"): _UNEVEN,
    Regime("clusters", "skewed, uneven sizes", "50 / 50 clusters"): _UNEVEN,
    Regime("looks", "skewed", "200 / 200"): _LOOKS,
    Regime("looks", "zero-inflated", "200 / 200"): _LOOKS,
    Regime("looks", "zero-inflated", "2,000 / 2,000"): _LOOKS,
    Regime("classes", "normal", "20 classes of 200 / 200"): (
        "pooled intervals are credible ones: they cover 95% on average over the spreads that their prior allows, and two"
        " points less where many classes differ by as much as one of them errs"
    ),
    Regime("classes", "skewed", "20 classes of 200 / 200"): _CLASSES,
    Regime("classes", "zero-inflated", "5 classes of 200 / 200"): _CLASSES,
    Regime("classes", "zero-inflated", "20 classes of 200 / 200"): _CLASSES,
}

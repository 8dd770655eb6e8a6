"""What was known before exposure, put to use: regression adjustment, post-stratification, balance, dilution, heavy tails.

Everything is computed from `Moments` by arm. Adjustment removes noise, never bias: the arms were drawn at random, and an
adjusted difference is an estimate of the same quantity as the plain one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import combinations
from typing import Literal

import numpy as np
from scipy import special

from payoff.estimate import FloatArray, t_quantile
from payoff.stats.compare import Difference, Level, mean_level, ratio_level
from payoff.stats.moments import Moments

Kind = Literal["mean", "ratio"]

_ROUNDING = 64 * float(np.finfo(np.float64).eps)

# A covariate is left out when the ones before it explain all but this share of its variance. Covariances read far from
# zero (1e8 and noise of 1) and merged are right to about 1e-7 of the variances; what is below that is not information.
_COLLINEAR = 1e-6

# Residuals smaller than this share of the variance are rounding or an outcome among its own covariates, not luck.
_EXPLAINED = 1e-10

_LEAST_DF = 10


@dataclass(frozen=True, slots=True)
class Adjusted:
    """Adjusted ``levels`` by arm, the ``covariance`` of each ordered pair of them, and the ``plain`` levels.

    ``r2`` is the share of each arm's variance that adjustment explains. ``used`` and ``dropped`` are positions among the
    covariates, from 0 (empty for strata). ``merged`` are the classes that were taken together. The rest serves `parts`: each
    arm's covariates as weights over all columns (``pull``), its ``share`` of all units, its columns' ``means``.
    """

    levels: Mapping[str, Level]
    covariance: Mapping[tuple[str, str], float]
    plain: Mapping[str, Level]
    r2: Mapping[str, float]
    used: tuple[int, ...]
    dropped: tuple[int, ...]
    merged: tuple[tuple[str, ...], ...] = ()
    pull: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False, compare=False)
    share: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)
    means: Mapping[str, FloatArray] = field(default_factory=dict, repr=False, compare=False)

    def parts(self, treatment: str, control: str) -> Mapping[str, Level]:
        """Every arm's part in the difference of two, as Levels whose weights `compare.difference_covariance` can use.

        Where covariates pull harder in one arm than in the other, the difference depends on the pooled covariate means,
        and through them on the units of ALL arms: (beta_t - beta_c)' xbar. With R2 = .98 and a lift of 50% that is most of
        the difference's variance. The covariance of two such differences is the sum over all arms of `level_covariance` of
        their parts. Values, variances and n are those of the arms' levels. Raises ValueError after post-stratification,
        which is not linear in the columns.
        """
        if not self.pull:
            raise ValueError("a post-stratified level is not linear in its measures")
        gap = np.array(self.pull[treatment]) - np.array(self.pull[control])
        out: dict[str, Level] = {}
        for arm, level in self.levels.items():
            own = np.array(level.weights) if arm in (treatment, control) else np.zeros(len(gap))
            # control's part is subtracted as a whole, so what it adds to the difference turns its sign
            weights = own + (-1.0 if arm == control else 1.0) * self.share[arm] * gap
            out[arm] = replace(level, weights=tuple(weights.tolist()), centre=float(weights @ self.means[arm]))
        return out


def adjusted_levels(
    moments: Mapping[str, Moments], *, kind: Kind = "mean", scale: float = 1.0, size: int | None = None
) -> Adjusted:
    """Levels adjusted by a regression on covariates in each arm (Lin 2013, "Agnostic notes on regression adjustments to
    experimental data: reexamining Freedman's critique": OLS with treatment-covariate interactions).

    ``moments`` of ALL arms by name; columns are the measures (one for a mean; numerator and denominator for a ratio), then
    the covariates. ``size`` is the column, if any, that counts a cluster's units: rows are then clusters and columns their
    totals, a mean is total over units, and each covariate x enters as x's total - (pooled x a unit) * units.

    With u the unit's value (for ratios linearised, (y - r d) / dbar; Deng, Knoblich, Lu 2018), adj_a = value_a - beta_a'
    (xbar_a - xbar), xbar the mean over all arms. To first order adj_a - theta_a = ebar_a + beta_a' (xbar - mu), e the
    residual, so with SS_a the covariates' scatter, d_a = xbar - xbar_a and s2_a = SSE_a / (n_a - 1 - p):

        Var(adj_a)        = s2_a (1 / n_a + d_a' SS_a^-1 d_a) + beta_a' Var(xbar) beta_a
        Cov(adj_a, adj_b) = beta_a' Var(xbar) beta_b,    Var(xbar) = sum_b (n_b / N)^2 Sigma_b / n_b

    There is no cross term of ebar_a and xbar, because the residual of a projection does not covary with what it was
    projected on, nor of two arms' residuals. d' SS^-1 d, the uncertainty of beta itself, is of second order, but at n = 200
    with ten covariates it is a twentieth of the variance. Var(xbar) is what Lin's robust variance leaves out: it is there
    because the units are a sample of those to come, and in a difference only (beta_t - beta_c) meets it.

    A covariate without variation in some arm, or all but explained there by those before it, is dropped for all arms.
    Raises ValueError when none is left, when an arm has fewer than p + 11 units, when the covariates explain every unit
    of an arm, or where a plain level cannot be had.
    """
    arms, k, m = _arms(moments), _width(kind), next(iter(moments.values())).k
    if len(arms) < 2:
        raise ValueError("adjustment compares at least two arms")
    if size is not None and not k <= size < m:
        raise ValueError(f"column {size} cannot be the clusters' size: there are {k} measures and {m} columns")
    columns = [j for j in range(k, m) if j != size]
    plain = {arm: _plain(x, kind, scale, size) for arm, x in moments.items()}
    forms = _covariate_forms(moments, columns, size)
    kept = _independent(moments, forms)
    if not kept:
        raise ValueError("no covariate varies between the units of every arm, so there is nothing to adjust by")
    p, forms = len(kept), forms[kept]
    for arm in arms:
        if moments[arm].n - 1 - p < _LEAST_DF:
            raise ValueError(
                f"arm '{arm}' has {moments[arm].n:,} {'units' if size is None else 'clusters'} for {p} covariates: more"
                f" covariates than units can bear; {p + 1 + _LEAST_DF} would do"
            )
    total = sum(x.n for x in moments.values())
    share = {arm: moments[arm].n / total for arm in arms}
    # Var(xbar) times N: sums of arms' covariances in proportion to their units
    pooled = sum((share[arm] * (forms @ moments[arm].cov @ forms.T) for arm in arms), np.zeros((p, p)))
    means = {arm: forms @ moments[arm].mean for arm in arms}
    beta: dict[str, FloatArray] = {}
    own: dict[str, float] = {}
    gaps: dict[str, FloatArray] = {}
    r2: dict[str, float] = {}
    values: dict[str, FloatArray] = {}
    for arm in arms:
        x = moments[arm]
        u = _value_form(x, kind, scale, size)
        spread = forms @ x.cov @ forms.T
        sd = np.sqrt(np.diagonal(spread))
        inverse = np.linalg.inv(spread / np.outer(sd, sd))
        with_u = (forms @ x.cov @ u) / sd
        variance = float(u @ x.cov @ u)
        rest = variance - float(with_u @ inverse @ with_u)
        if rest <= _EXPLAINED * variance:
            raise ValueError(
                f"the covariates explain the value of every unit in arm '{arm}', so there is no variation to judge by;"
                " is the outcome itself among them?"
            )
        # Differences of means, not of large means and a large pooled mean: 1e8 and noise must leave the noise.
        gap = sum((share[b] * (means[b] - means[arm]) for b in arms), np.zeros(p))
        z = gap / sd
        s2 = (x.n - 1) / (x.n - 1 - p) * rest
        own[arm] = s2 * (1 / x.n + float(z @ inverse @ z) / (x.n - 1))
        beta[arm], gaps[arm], r2[arm], values[arm] = (inverse @ with_u) / sd, gap, 1 - rest / variance, u
    covariance: dict[tuple[str, str], float] = {}
    levels: dict[str, Level] = {}
    pull: dict[str, tuple[float, ...]] = {}
    for arm in arms:
        for other in arms:
            covariance[arm, other] = float(beta[arm] @ pooled @ beta[other]) / total
        towards = beta[arm] @ forms
        weights = values[arm] - towards
        levels[arm] = Level(
            plain[arm].value + float(beta[arm] @ gaps[arm]),
            own[arm] + covariance.pop((arm, arm)),
            moments[arm].n,
            tuple(weights.tolist()),
            float(weights @ moments[arm].mean),
            lost=p,
        )
        pull[arm] = tuple(towards.tolist())
    return Adjusted(
        levels,
        covariance,
        plain,
        r2,
        used=tuple(kept),
        dropped=tuple(j for j in range(len(columns)) if j not in kept),
        pull=pull,
        share=share,
        means={arm: moments[arm].mean for arm in arms},
    )


@dataclass(frozen=True, slots=True)
class Balance:
    """Did the arms differ before exposure? ``statistic`` is chi-square with ``df`` when they were drawn at random.

    ``worst`` is the position of the covariate that differs most, in standard errors, between the arms ``between``;
    ``standardised`` is the second's mean less the first's, in standard deviations. ``used`` are the covariates tested.
    """

    statistic: float
    df: int
    p_value: float
    worst: int
    standardised: float
    between: tuple[str, str]
    used: tuple[int, ...]


def balance(moments: Mapping[str, Moments], covariates: int) -> Balance | None:
    """Do the means of the last ``covariates`` columns differ between arms? One joint test of all of them and all arms.

    d2 = sum_a n_a (xbar_a - xbar)' T^-1 (xbar_a - xbar), T the covariance over all units together: what random assignment
    of the very units that came would give (Hansen and Bowers 2008, "Covariate balance in simple, stratified and clustered
    comparative studies", for two arms; N - 1 times Pillai's trace for more). Wald's form, with the covariance
    within arms, rejects too often when covariates are many, and has no value where a covariate tells the arms apart
    perfectly. Columns that say nothing of their own are dropped. None when no covariate varies at all.
    """
    arms = [arm for arm in _arms(moments) if moments[arm].n > 0]
    if len(arms) < 2:
        raise ValueError("balance is a comparison of at least two arms that have units")
    k = moments[arms[0]].k
    if not 0 < covariates <= k:
        raise ValueError(f"{covariates} covariates cannot be the last of {k} columns")
    by_arm = {arm: moments[arm].take(range(k - covariates, k)) for arm in arms}
    whole = reduce(Moments.merge, by_arm.values())
    every = np.eye(covariates)
    varying = [j for j in range(covariates) if not _constant(whole, every[j])]
    if not varying or whole.n < 3:
        return None
    used = _independent({"all": whole}, every)
    sd = np.sqrt(whole.var)
    inverse = np.linalg.inv(whole.take(used).cov / np.outer(sd[used], sd[used]))
    statistic = 0.0
    for x in by_arm.values():
        z = (x.mean - whole.mean)[used] / sd[used]
        statistic += x.n * float(z @ inverse @ z)
    widest = (-1.0, varying[0], 0.0, (arms[0], arms[1]))
    for a, b in combinations(arms, 2):
        apart = (by_arm[b].mean - by_arm[a].mean)[varying] / sd[varying]
        j = int(np.abs(apart).argmax())
        errors = abs(float(apart[j])) / math.sqrt(1 / by_arm[a].n + 1 / by_arm[b].n)
        if errors > widest[0]:
            widest = (errors, varying[j], float(apart[j]), (a, b))
    df = len(used) * (len(arms) - 1)
    return Balance(statistic, df, float(special.chdtrc(df, statistic)), *widest[1:], tuple(used))


def post_stratified(
    strata: Mapping[str, Mapping[str, Moments]], *, kind: Kind = "mean", scale: float = 1.0, size: int | None = None
) -> Adjusted:
    """Each arm's level as it would be with all arms' mix of strata: sum_s W_s mean_sa, W_s = n_s / N pooled over arms.

    ``strata``: stratum -> arm -> Moments whose first columns are the measures (others are ignored); an arm may lack a
    stratum. Variance and covariance are those of units sampled from a population (Miratrix, Sekhon, Yu 2013, "Adjusting
    treatment effect estimates by post-stratification in randomized experiments"):

        Var(a)    = sum_s W_s^2 Sigma_sa / n_sa + B_aa,    Cov(a, b) = B_ab
        B_ab      = sum_s W_s (mean_sa - mean_a)(mean_sb - mean_b)' / N

    B is the shares' own uncertainty, and only the part in which the arms' strata differ differently stays in a
    difference. For a ratio, numerator and denominator are stratified jointly and the delta method takes the ratio of
    them. Degrees of freedom are Satterthwaite's over the strata, rounded down.

    With ``size``, the column that counts a cluster's units, rows are clusters and a mean is total over units, a ratio of
    two totals. Each cluster must then lie in one stratum: in several it would be counted as several independent ones.

    A stratum with fewer than 2 units in some arm is merged with the smallest other one until none is left (``merged``
    says which); raises ValueError when that leaves fewer than two strata.
    """
    names = list(dict.fromkeys(arm for by_arm in strata.values() for arm in by_arm))
    if len(names) < 2:
        raise ValueError("post-stratification compares at least two arms")
    columns = [0, 1] if kind == "ratio" else [0] if size is None else [0, size]
    k, below = len(columns), None if len(columns) == 1 else 1
    nothing = Moments(0, np.zeros(k), np.zeros((k, k)))
    cells: dict[tuple[str, ...], dict[str, Moments]] = {
        (name,): {arm: by_arm[arm].take(columns) if arm in by_arm else nothing for arm in names}
        for name, by_arm in strata.items()
    }
    cells = {name: by_arm for name, by_arm in cells.items() if _units(by_arm) > 0}
    while len(cells) > 1:
        by_size = sorted(cells, key=lambda name: (_units(cells[name]), name))
        few = [name for name in by_size if min(x.n for x in cells[name].values()) < 2]
        if not few:
            break
        other = next(name for name in by_size if name != few[0])
        one, two = cells.pop(few[0]), cells.pop(other)
        cells[few[0] + other] = {arm: one[arm].merge(two[arm]) for arm in names}
    if len(cells) < 2:
        raise ValueError(
            "fewer than two strata have two units or more in every arm, so there is nothing to stratify by"
        )
    total = sum(_units(by_arm) for by_arm in cells.values())
    weight = {name: _units(by_arm) / total for name, by_arm in cells.items()}
    whole = {arm: reduce(Moments.merge, (by_arm[arm] for by_arm in cells.values())) for arm in names}
    plain = {arm: _plain(x, kind, scale, below) for arm, x in whole.items()}
    means: dict[str, FloatArray] = {}
    forms: dict[str, FloatArray] = {}
    for arm in names:
        means[arm] = sum((weight[s] * cells[s][arm].mean for s in cells), np.zeros(k))
        forms[arm] = _value_form(replace(whole[arm], mean=means[arm]), kind, scale, below)
    # one row an arm, one column a stratum: how far each stratum lies from its arm's mean
    apart = np.array([[forms[arm] @ (cells[s][arm].mean - means[arm]) for s in cells] for arm in names])
    between = (apart * np.array(list(weight.values()))) @ apart.T / total
    levels: dict[str, Level] = {}
    r2: dict[str, float] = {}
    for i, arm in enumerate(names):
        w = forms[arm]
        within = np.array(
            [weight[s] ** 2 * float(w @ by_arm[arm].cov @ w) / by_arm[arm].n for s, by_arm in cells.items()]
        )
        spread = sum((x.n - 1) * float(w @ x.cov @ w) for x in (by_arm[arm] for by_arm in cells.values()))
        n = whole[arm].n
        df = float(n - len(cells))
        if within.sum() > 0:
            parts = within / within.sum()
            df = 1 / float((parts**2 / np.array([by_arm[arm].n - 1 for by_arm in cells.values()])).sum())
        value = scale * float(means[arm][0]) / (1.0 if below is None else float(means[arm][1]))
        lost = n - 1 - max(1, math.floor(df * (1 + 1e-9)))
        levels[arm] = Level(value, float(within.sum()) + float(between[i, i]), n, lost=lost)
        r2[arm] = max(0.0, 1 - spread / ((n - 1) * float(w @ whole[arm].cov @ w)))
    covariance = {(a, b): float(between[i, j]) for i, a in enumerate(names) for j, b in enumerate(names) if a != b}
    merged = tuple(tuple(sorted(name)) for name in cells if len(name) > 1)
    return Adjusted(levels, covariance, plain, r2, (), (), merged)


@dataclass(frozen=True, slots=True)
class Share:
    """``value`` of ``n`` units."""

    value: float
    n: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's score interval (1927): finite and inside [0, 1] at shares of 0 and 1 too."""
        z2 = t_quantile(0.5 + level / 2, math.inf) ** 2 / self.n
        middle = (self.value + z2 / 2) / (1 + z2)
        half = math.sqrt(z2 * (self.value * (1 - self.value) + z2 / 4)) / (1 + z2)
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class Dilution:
    """The ``difference`` over everyone assigned, and the ``share`` of them that triggered."""

    difference: Difference
    share: Share


def diluted(difference: Difference, triggered: Mapping[str, int], everyone: Mapping[str, int]) -> Dilution:
    """The difference among triggered units carried to everyone assigned: times the share that triggered.

    Right for means of what can only change after the trigger (Deng and Hu 2015, "Diluted treatment effect estimation for
    trigger analysis in online controlled experiments"): units that never triggered have a difference of zero.
    ``triggered`` and ``everyone`` count units by arm. The share is pooled over arms, whose triggering cannot differ if it
    happens before treatment shows. Given who triggered, the difference does not depend on the share, so by the delta
    method se^2 = share^2 se_d^2 + d^2 share (1 - share) / N; degrees of freedom by Satterthwaite, the share's being N's.
    """
    if set(triggered) != set(everyone):
        raise ValueError("triggered units and everyone must name the same arms")
    for arm, count in triggered.items():
        if not 0 <= count <= everyone[arm]:
            raise ValueError(f"arm '{arm}' has {count:,} triggered units of {everyone[arm]:,}")
    some, total = sum(triggered.values()), sum(everyone.values())
    if some == 0:
        raise ValueError("no unit triggered, so there is no effect to carry to everyone")
    p = some / total
    own = (p * difference.se) ** 2
    variance = own + difference.value**2 * p * (1 - p) / total
    df = difference.df * (variance / own) ** 2
    return Dilution(Difference(difference.value * p, math.sqrt(variance), df), Share(p, total))


def tail_share(highest: float, mean: float, var: float, n: int) -> float:
    """The share of a sample's variance that its largest value alone makes: (max - mean)^2 / ((n - 1) var).

    At most (n - 1) / n where ``highest`` is one of the n values; above 1 only if it is another sample's.
    """
    if n < 2 or not var > 0:
        raise ValueError(f"{n} units without variation have no share of it to give")
    if highest < mean - _ROUNDING * abs(mean):
        raise ValueError(f"the largest value ({highest:g}) cannot be below the mean ({mean:g})")
    return (highest - mean) ** 2 / ((n - 1) * var)


def _arms(moments: Mapping[str, Moments]) -> list[str]:
    if len({x.k for x in moments.values()}) > 1:
        raise ValueError("all arms must have the same columns")
    return list(moments)


def _units(by_arm: Mapping[str, Moments]) -> int:
    return sum(x.n for x in by_arm.values())


def _width(kind: Kind) -> int:
    return 1 if kind == "mean" else 2


def _plain(m: Moments, kind: Kind, scale: float, size: int | None) -> Level:
    if kind == "ratio":
        return ratio_level(m.take([0, 1]), scale)
    return mean_level(m.take([0]), scale) if size is None else ratio_level(m.take([0, size]), scale)


def _value_form(m: Moments, kind: Kind, scale: float, size: int | None) -> FloatArray:
    """The unit's value, linearised for ratios, as weights over all columns."""
    weights = np.zeros(m.k)
    below = 1 if kind == "ratio" else size
    if below is None:
        weights[0] = scale
    else:
        d = float(m.mean[below])
        if d == 0.0:
            raise ValueError(f"the denominator adds up to zero over {m.n} units, so there is no ratio")
        weights[0], weights[below] = scale / d, -scale * float(m.mean[0]) / d / d
    return weights


def _covariate_forms(moments: Mapping[str, Moments], columns: Sequence[int], size: int | None) -> FloatArray:
    """One row a covariate: weights over all columns that make it. Shape (covariates, columns)."""
    m = next(iter(moments.values())).k
    forms = np.zeros((len(columns), m))
    total = sum(x.n for x in moments.values())
    for i, j in enumerate(columns):
        forms[i, j] = 1.0
        if size is not None:
            units = sum(x.n / total * float(x.mean[size]) for x in moments.values())
            if units <= 0:
                raise ValueError("the clusters have no units")
            a_unit = sum(x.n / total * float(x.mean[j]) for x in moments.values()) / units
            forms[i] /= units
            forms[i, size] = -a_unit / units
    return forms


def _constant(m: Moments, form: FloatArray) -> bool:
    """Is this linear form of the columns the same for all units but for rounding?"""
    parts = np.abs(np.outer(form, form) * m.cov).sum()
    largest = float(np.abs(form * m.mean).max())
    variance = float(form @ m.cov @ form)
    return variance <= _ROUNDING * float(parts) or variance <= (_ROUNDING * largest) ** 2


def _independent(moments: Mapping[str, Moments], forms: FloatArray) -> list[int]:
    """Which forms vary in every group, and are not all but a linear function, in some group, of those kept before.

    By Cholesky's algorithm on each group's correlations: what is left of a form's unit variance after those before it.
    """
    candidates = [j for j in range(len(forms)) if not any(_constant(x, forms[j]) for x in moments.values())]
    correlations = []
    for x in moments.values():
        spread = forms[candidates] @ x.cov @ forms[candidates].T
        sd = np.sqrt(np.diagonal(spread))
        correlations.append(spread / np.outer(sd, sd))
    kept: list[int] = []
    for i in range(len(candidates)):
        for r in correlations:
            before = r[kept, i]
            if 1.0 - float(before @ np.linalg.solve(r[np.ix_(kept, kept)], before)) <= _COLLINEAR:
                break
        else:
            kept.append(i)
    return [candidates[i] for i in kept]

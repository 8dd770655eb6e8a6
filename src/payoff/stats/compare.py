"""Two arms compared at a fixed horizon: levels, differences, relative lifts, balance checks and sizes.

Everything starts from `Moments`, so an answer costs the same for a thousand users and for a billion. Every function
gives a finite answer or raises ValueError with a sentence that can be shown; none returns NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, special

from payoff.estimate import t_cdf, t_quantile
from payoff.stats.moments import Moments

# A spread below this many units in the last place of the mean is rounding, not variation.
_ROUNDING = 64 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class Level:
    """One arm's estimate of a metric: ``value``, the sampling ``variance`` of that value, ``n`` units.

    ``weights`` (k,) write the estimate as linear in its unit-level measures near their means, and ``centre`` is what
    the weights make of the arm's means: `level_covariance` needs them, nothing else does. ``lost`` counts the degrees
    of freedom spent on parameters besides the mean.

    Raises ValueError when n < 2, no degree of freedom is left, the units do not vary, or a number is not finite.
    """

    value: float
    variance: float
    n: int
    weights: tuple[float, ...] = ()
    centre: float = 0.0
    lost: int = 0

    def __post_init__(self) -> None:
        _at_least_two(self.n)
        if not 0 <= self.lost < self.n - 1:
            raise ValueError(f"{self.n} units leave nothing to judge by after {self.lost} other parameters")
        if not (math.isfinite(self.value) and math.isfinite(self.variance)):
            raise ValueError("the values are too large or not finite: their mean or variance is not a number")
        if self.variance * self.n <= (_ROUNDING * self.value) ** 2:
            raise ValueError(f"all {self.n} units have the same value, so there is no variation to judge it by")

    @property
    def se(self) -> float:
        return math.sqrt(self.variance)

    @property
    def df(self) -> float:
        return self.n - 1.0 - self.lost

    @property
    def unit_variance(self) -> float:
        """The variance of one unit's contribution: what planning a size needs."""
        return self.variance * self.n

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student t with n - 1 - lost degrees of freedom."""
        half = t_quantile(0.5 + _level(level) / 2, self.df) * self.se
        return self.value - half, self.value + half


@dataclass(frozen=True, slots=True)
class Difference:
    """Treatment minus control, in the metric's unit, with its standard error and degrees of freedom."""

    value: float
    se: float
    df: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        half = t_quantile(0.5 + _level(level) / 2, self.df) * self.se
        return self.value - half, self.value + half

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided."""
        return 2.0 * t_cdf(-abs(self.value - null) / self.se, self.df)


@dataclass(frozen=True, slots=True)
class LogDelta:
    """A relative lift (0.05 is +5%) whose log ratio has standard error ``se_log`` and ``df`` degrees of freedom."""

    value: float
    se_log: float
    df: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        half = t_quantile(0.5 + _level(level) / 2, self.df) * self.se_log
        centre = math.log1p(self.value)
        return math.expm1(centre - half), math.expm1(centre + half)

    def p_value(self) -> float:
        """Two-sided, of a lift of zero, on the log scale."""
        return 2.0 * t_cdf(-abs(math.log1p(self.value)) / self.se_log, self.df)


@dataclass(frozen=True, slots=True)
class Fieller:
    """A relative lift with the interval of Fieller's theorem, known at one ``level``; ``p_value`` is the difference's."""

    value: float
    low: float
    high: float
    level: float
    p_value: float


@dataclass(frozen=True, slots=True)
class NoRelativeLift:
    """There is no relative lift to give: ``reason`` is one sentence for the reader."""

    reason: str


@dataclass(frozen=True, slots=True)
class ChiSquare:
    """A Pearson chi-square test. The approximation is doubtful where ``smallest_expected`` count is below 5."""

    statistic: float
    df: int
    p_value: float
    smallest_expected: float


@dataclass(frozen=True, slots=True)
class ArmSizes:
    """How many units each arm needs."""

    treatment: int
    control: int

    @property
    def total(self) -> int:
        return self.treatment + self.control


def mean_level(m: Moments, scale: float = 1.0) -> Level:
    """The mean of one measure (k = 1), times ``scale``."""
    _measures(m, 1)
    _at_least_two(m.n)
    _nonzero("scale", scale)
    value = scale * float(m.mean[0])
    return Level(value, scale * scale * float(m.cov[0, 0]) / m.n, m.n, (scale,), value)


def ratio_level(m: Moments, scale: float = 1.0) -> Level:
    """Sum of the numerator over sum of the denominator (k = 2, in that order), times ``scale``, by the delta method.

    Var(r) = (var y - 2 r cov(y, d) + r^2 var d) / (n dbar^2), with r = ybar / dbar: the units drawn at random are the
    ones that were randomised, not the rows of the denominator (Deng, Knoblich, Lu 2018, "Applying the delta method in
    metric analytics", eq. 4). Raises ValueError when the denominator sums to zero.
    """
    _measures(m, 2)
    _at_least_two(m.n)
    _nonzero("scale", scale)
    y, d = float(m.mean[0]), float(m.mean[1])
    if d == 0.0:
        raise ValueError(f"the denominator adds up to zero over {m.n} units, so there is no ratio")
    r = y / d
    parts = float(m.cov[0, 0]), -2 * r * float(m.cov[0, 1]), r * r * float(m.cov[1, 1])
    variance = sum(parts)
    if variance <= _ROUNDING * (parts[0] + parts[2]):
        raise ValueError(f"all {m.n} units have the same ratio, so there is no variation to judge it by")
    return Level(scale * r, scale * scale * variance / (m.n * d * d), m.n, (scale / d, -scale * r / d))


def difference(treatment: Level, control: Level, covariance: float = 0.0) -> Difference:
    """Treatment minus control: Welch's unequal-variances t (Welch 1947; degrees of freedom by Satterthwaite 1946).

    ``covariance`` is that of the two values, for arms that are not independent. Raises ValueError where it leaves no
    variance, or exceeds what two values of these variances can have.
    """
    _covariance(treatment.variance, control.variance, covariance)
    se, df = _welch(treatment.variance, treatment.df, control.variance, control.df, covariance)
    return Difference(treatment.value - control.value, se, df)


def relative_lift(
    treatment: Level, control: Level, level: float = 0.95, covariance: float = 0.0
) -> LogDelta | Fieller | NoRelativeLift:
    """Treatment over control, minus one, with the control's own uncertainty always counted.

    Where the treatment's value is at least its standard error, as any mean of values that are never negative is: the
    delta method on the log ratio, se_log^2 = v_t / m_t^2 + v_c / m_c^2, with Welch-Satterthwaite degrees of freedom on
    that scale, so that the interval cannot fall below -100%. Where it is less, a logarithm would be meaningless:
    Fieller's theorem (Fieller 1954), with the difference's degrees of freedom, so that it excludes zero exactly when
    the difference does. Where the control's interval at ``level`` is not above zero, a percentage of it could be
    anything, and `NoRelativeLift` says so.

    Fieller everywhere would cover 95% for normal values and in arms of one size, but 4 points less than the log scale
    does for skewed values against a small holdout, which is where a relative lift is asked for most.

    ``covariance`` is that of the two values, as in `difference`: se_log^2 falls by 2 covariance / (m_t m_c).
    """
    _level(level)
    low, high = control.interval(level)
    gap = difference(treatment, control, covariance)
    t = t_quantile(0.5 + level / 2, gap.df)
    if control.value <= 0:
        return NoRelativeLift(
            f"the control's value ({control.value:.4g}) is not above zero, so a percentage of it has no meaning"
        )
    if low <= 0 or t * t * control.variance >= control.value**2:
        return NoRelativeLift(
            f"the control's value ({control.value:.4g}, {level:.0%} interval {low:.4g} to {high:.4g}) cannot be told "
            "from zero, so a percentage of it could be anything; read the difference instead"
        )
    lift = treatment.value / control.value - 1.0
    if treatment.value >= treatment.se * (1 - 1e-9):  # one unit above zero and the rest at zero: equal but for rounding
        v_t, v_c = treatment.variance / treatment.value**2, control.variance / control.value**2
        shared = covariance / (treatment.value * control.value)
        try:
            _covariance(v_t, v_c, shared)
        except ValueError as error:
            return NoRelativeLift(str(error))
        se_log, df = _welch(v_t, treatment.df, v_c, control.df, shared)
        return LogDelta(lift, se_log, df)
    v_t, v_c, m_t, m_c = treatment.variance, control.variance, treatment.value, control.value
    low_lift, high_lift = ratio_interval(m_t, v_t, m_c, v_c, covariance, t)
    return Fieller(lift, low_lift - 1.0, high_lift - 1.0, level, gap.p_value())


def ratio_interval(m_t: float, v_t: float, m_c: float, v_c: float, covariance: float, t: float) -> tuple[float, float]:
    """The interval of m_t / m_c by Fieller's theorem (Fieller 1954): all theta with (m_t - theta m_c)^2 <= t^2 Var(m_t -
    theta m_c). Raises ValueError when the divisor cannot be told from zero at this ``t``: the interval is then unbounded.
    """
    divisor = m_c * m_c - t * t * v_c
    if divisor <= 0:
        raise ValueError("the divisor cannot be told from zero, so the ratio could be anything")
    # Positive while the divisor is: at theta = m_t / m_c the inequality is strict.
    half = t * math.sqrt(
        max(v_t * divisor + m_t * m_t * v_c - 2 * m_t * m_c * covariance + t * t * covariance * covariance, 0.0)
    )
    middle = m_t * m_c - t * t * covariance
    return (middle - half) / divisor, (middle + half) / divisor


# Measured in docs/simulations.md: below these, nominal 95% intervals were seen to cover 94% or less, or to be far too wide.
_FEWEST = 10.0
_FEWEST_FOR_A_LIFT = (
    150.0  # 100, and half as many again: a sample of heavy tails mostly shows less spread than there is
)
_LOPSIDED = 0.15
_USUAL_SKEW = 3.0


def normal_approximation_doubtful(
    treatment: Level, control: Level, *, relative: bool = False, names: tuple[str, str] = ("treatment", "control")
) -> str | None:
    """Why the intervals may not cover as often as they say, in a sentence, or None. For metrics never below zero.

    ``names`` are what the sentence calls the two arms.

    From the levels alone. An arm's units count as value^2 / variance even ones (n over the squared coefficient of
    variation): for a rate about the number of conversions, for revenue the buyers, less the larger their spread. With
    fewer than 10 (of the rarer outcome, for 0/1 measures), or 150 for a ``relative`` lift, the mean hangs on a handful.
    Arms of unequal size, a 10% holdout above all, need many more: their skewness does not cancel, and the interval
    misses on one side. By the Edgeworth expansion of t the misses there grow by about 0.085 of the difference's
    skewness (Hall 1992, "The Bootstrap and Edgeworth Expansion", eq. 2.12 at z = 1.96), so 0.15 of it, which makes
    2.5% of misses on a side into 3.75%, is the most let pass without a word. A unit's skewness is known for 0/1
    measures and is otherwise taken as three times the coefficient of variation, as among lognormal buyers.

    Says nothing (None) where a level is zero or below: then values can be negative and this rule does not apply. Of a
    ``relative`` lift it says so where the treatment is so near to zero that the log scale would be left.
    """
    if relative and control.value > 0 >= treatment.value and treatment.value**2 < _FEWEST * treatment.variance:
        return (
            f"the value of {names[0]} cannot be told from zero, where a relative lift has no fair scale: its interval may not "
            "cover as often as it says"
        )
    if treatment.value <= 0 or control.value <= 0:
        return None
    skewness = 0.0
    total = treatment.variance + control.variance
    for name, arm, sign in ((names[0], treatment, 1.0), (names[1], control, -1.0)):
        even = arm.value**2 / arm.variance
        binary = _share_of_ones(arm)
        if binary is not None:
            rarer = arm.n * min(binary, 1 - binary)
            if rarer < _FEWEST:
                return (
                    f"only {rarer:.0f} of the {arm.n:,} units in {name} have the rarer outcome; with fewer than "
                    f"{_FEWEST:.0f} the interval may not cover as often as it says"
                )
            per_root_n = (1 - 2 * binary) / math.sqrt(binary * (1 - binary) * arm.n)
        else:
            fewest = _FEWEST_FOR_A_LIFT if relative else _FEWEST
            if even < fewest:
                return (
                    f"a few units decide the mean of {name}: its {arm.n:,} units say as much as {even:.0f} with even "
                    f"values would, and with fewer than {fewest:.0f} the interval may not cover as often as it says"
                )
            per_root_n = _USUAL_SKEW / math.sqrt(even)
        skewness += sign * per_root_n * (arm.variance / total) ** 1.5
    if abs(skewness) > _LOPSIDED:
        side = names[0] if skewness > 0 else names[1]
        return (
            f"the values are skewed and {side} carries most of the uncertainty, so the skewness of the two arms does not cancel: "
            "the interval misses more often on one side than it says; more units there would mend it"
        )
    return None


def _share_of_ones(level: Level) -> float | None:
    """The mean of a 0/1 measure, or None for any other: only 0/1 values have a variance of p (1 - p)."""
    if len(level.weights) != 1:
        return None
    weight = level.weights[0]
    p = level.value / weight
    if not 0 < p < 1:
        return None
    variance = level.unit_variance / weight**2 * (level.n - 1) / level.n
    return p if math.isclose(variance, p * (1 - p), rel_tol=1e-9) else None


def level_covariance(a: Level, b: Level, both: Moments) -> float:
    """The sampling covariance of two levels of ONE arm, measured on units of which some, or all, are the same.

    ``both`` are the moments over the units that are in both levels: first a's measures, then b's. With u and v the
    units' linearised contributions to a and b, cov(a, b) is the sum of (u - u0)(v - v0) over the shared units over
    n_a n_b, u0 and v0 being their means over a's and over b's own units: n_ab (cov_ab(u, v) + (ubar_ab - u0)(vbar_ab -
    v0)) / (n_a n_b). The second term is zero when either set of units contains the other. With none shared it is 0.
    """
    split = len(a.weights)
    if not a.weights or not b.weights:
        raise ValueError("a covariance needs levels made by mean_level or ratio_level")
    _measures(both, split + len(b.weights))
    if both.n > min(a.n, b.n):
        raise ValueError(f"{both.n} shared units cannot be more than the {min(a.n, b.n)} of the smaller level")
    if both.n == 0:
        return 0.0
    u, v = np.array(a.weights), np.array(b.weights)
    within = float(u @ both.cov[:split, split:] @ v)
    between = (float(u @ both.mean[:split]) - a.centre) * (float(v @ both.mean[split:]) - b.centre)
    return both.n * (within + between) / (a.n * b.n)


def difference_covariance(shared: Sequence[tuple[Level, Level, Moments]]) -> float:
    """The sampling covariance of two differences, each treatment minus control.

    ``shared`` has one (level in the first difference, level in the second, moments over the units of both) for each
    arm that plays the SAME part in both: treatment and control for two metrics of one contrast, the control alone for
    contrasts of different treatments with one control. Arms are independent, so their covariances add.
    """
    return sum((level_covariance(a, b, both) for a, b, both in shared), 0.0)


def difference_correlation(a: Difference, b: Difference, shared: Sequence[tuple[Level, Level, Moments]]) -> float:
    """`difference_covariance` as a correlation, in [-1, 1]."""
    return min(1.0, max(-1.0, difference_covariance(shared) / (a.se * b.se)))


def srm(counts: Mapping[str, int], shares: Mapping[str, float]) -> ChiSquare:
    """Sample ratio mismatch: are all arms' ``counts`` what the planned ``shares`` would give? One joint chi-square.

    Shares need not add up to one. Raises ValueError when the arms differ, are fewer than two, or nothing was counted.
    """
    if set(counts) != set(shares):
        odd = ", ".join(sorted(set(counts) ^ set(shares)))
        raise ValueError(f"counts and shares must name the same arms; not in both: {odd}")
    if len(counts) < 2:
        raise ValueError("a sample ratio needs at least two arms")
    arms = sorted(counts)
    observed = np.array([_count(counts[arm], arm) for arm in arms], dtype=np.float64)
    planned = np.array([shares[arm] for arm in arms], dtype=np.float64)
    if not (np.isfinite(planned).all() and (planned > 0).all()):
        raise ValueError("every arm's planned share must be above zero")
    total = float(observed.sum())
    if total == 0:
        raise ValueError("no units were counted in any arm")
    expected = total * planned / planned.sum()
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return _chi_square(statistic, len(arms) - 1, float(expected.min()))


def missingness(n_with: Mapping[str, int], n_all: Mapping[str, int], design_effect: float = 1.0) -> ChiSquare:
    """Does the share of units that have a value differ between arms? Pearson's chi-square of arm by has-a-value.

    ``design_effect`` is for units that were not drawn one by one: the statistic is divided by it (Rao and Scott 1981, "The
    analysis of categorical data from complex sample surveys", the first-order correction). Raises ValueError
    when every unit, or no unit, has a value: there is then nothing to compare. Look at that first.
    """
    if set(n_with) != set(n_all):
        raise ValueError("both counts must name the same arms")
    if len(n_all) < 2:
        raise ValueError("missing values are compared between at least two arms")
    arms = sorted(n_all)
    having = np.array([_count(n_with[arm], arm) for arm in arms], dtype=np.float64)
    size = np.array([_count(n_all[arm], arm) for arm in arms], dtype=np.float64)
    for arm, some, every in zip(arms, having, size, strict=True):
        if every == 0:
            raise ValueError(f"arm '{arm}' has no units")
        if some > every:
            raise ValueError(f"arm '{arm}' has {some:.0f} units with a value but only {every:.0f} units")
    share = having.sum() / size.sum()
    if share in (0.0, 1.0):
        raise ValueError(f"{'every' if share else 'no'} unit has a value, so there is nothing to compare")
    with_value, without = size * share, size * (1 - share)
    statistic = float(((having - with_value) ** 2 * (1 / with_value + 1 / without)).sum())
    return _chi_square(statistic / design_effect, len(arms) - 1, float(min(with_value.min(), without.min())))


Sides = Literal[1, 2]


def power(
    effect: float,
    variance_treatment: float,
    n_treatment: float,
    variance_control: float,
    n_control: float,
    *,
    level: float = 0.95,
    sides: Sides = 2,
) -> float:
    """The chance that a true ``effect`` is found, by Welch's t: a noncentral t with nc = effect / se.

    Variances are of one unit's value (`Level.unit_variance`). ``sides=1`` counts findings above zero only and spends
    all of 1 - level there.
    """
    for name, variance in (("treatment", variance_treatment), ("control", variance_control)):
        if not (math.isfinite(variance) and variance > 0):
            raise ValueError(f"the variance of a unit in {name} must be above zero, not {variance}")
    if not math.isfinite(effect):
        raise ValueError("the effect must be a finite number")
    if n_treatment < 2 or n_control < 2:
        raise ValueError("each arm needs at least two units")
    se, df = _welch(variance_treatment / n_treatment, n_treatment - 1, variance_control / n_control, n_control - 1)
    critical = t_quantile(1 - (1 - _level(level)) / sides, df)
    above = 1.0 - _noncentral_t_cdf(df, effect / se, critical)
    return above + (_noncentral_t_cdf(df, effect / se, -critical) if sides == 2 else 0.0)


def minimum_detectable_effect(
    variance_treatment: float,
    n_treatment: int,
    variance_control: float,
    n_control: int,
    *,
    level: float = 0.95,
    power_wanted: float = 0.8,
    sides: Sides = 2,
) -> float:
    """The smallest true difference found with probability ``power_wanted``; in the metric's unit, above zero."""
    _power_wanted(power_wanted, level)

    def surplus(effect: float) -> float:
        found = power(effect, variance_treatment, n_treatment, variance_control, n_control, level=level, sides=sides)
        return found - power_wanted

    surplus(0.0)  # refuses variances and sizes that cannot be
    high = math.sqrt(variance_treatment / n_treatment + variance_control / n_control)
    while surplus(high) < 0:
        high *= 2
    return float(optimize.brentq(surplus, 0.0, high, xtol=1e-13 * high))


def required_n(
    effect: float,
    variance_treatment: float,
    variance_control: float,
    *,
    treatment_share: float = 0.5,
    level: float = 0.95,
    power_wanted: float = 0.8,
    sides: Sides = 2,
) -> ArmSizes:
    """The units needed to find a true difference of ``effect`` (of either sign) with probability ``power_wanted``.

    ``treatment_share`` of the units of the two arms go to treatment. Each arm has at least two.
    """
    _power_wanted(power_wanted, level)
    if not (math.isfinite(effect) and effect != 0):
        raise ValueError("the effect to find must be a finite number other than zero")
    if not 0 < treatment_share < 1:
        raise ValueError(f"the share of units in treatment must lie between 0 and 1, not {treatment_share}")

    def surplus(log_total: float) -> float:
        treated, rest = math.exp(log_total) * treatment_share, math.exp(log_total) * (1 - treatment_share)
        found = power(abs(effect), variance_treatment, treated, variance_control, rest, level=level, sides=sides)
        return found - power_wanted

    low = math.log(2.000001 / min(treatment_share, 1 - treatment_share))
    high = low
    while surplus(high) < 0:
        high += 1.0
        if high > math.log(1e15):
            raise ValueError("no number of units below 10^15 would find an effect this small")
    if high > low:
        high = float(optimize.brentq(surplus, max(low, high - 1.0), high, xtol=1e-13))
    total = math.exp(high) * (1 - 1e-12)  # the root's own error must not round a whole number up
    return ArmSizes(math.ceil(total * treatment_share), math.ceil(total * (1 - treatment_share)))


def noninferiority_power(
    margin: float,
    true_effect: float,
    variance_treatment: float,
    n_treatment: float,
    variance_control: float,
    n_control: float,
    *,
    level: float = 0.95,
) -> float:
    """The chance that harm beyond ``margin`` is excluded: that the lower end of the ``level`` interval lies above -margin.

    ``true_effect`` is positive where the treatment is better, in the metric's unit as the margin is; one-sided, at (1 -
    level) / 2, because only the harmful end is read (CONSORT extension, Piaggio et al. 2012). A test of superiority shifted
    by the margin (Julious 2004, "Sample sizes for clinical trials with normal data").
    """
    room = _room(margin, true_effect)
    return power(room, variance_treatment, n_treatment, variance_control, n_control, level=_one_end(level), sides=1)


def noninferiority_n(
    margin: float,
    true_effect: float,
    variance_treatment: float,
    variance_control: float,
    *,
    treatment_share: float = 0.5,
    level: float = 0.95,
    power_wanted: float = 0.8,
) -> ArmSizes:
    """The units needed to exclude harm beyond ``margin`` with probability ``power_wanted``; see `noninferiority_power`.

    Raises ValueError when the true effect is itself a harm of the margin or more: no number of units excludes the truth.
    """
    room = _room(margin, true_effect)
    if room <= 0:
        raise ValueError(
            f"a true effect of {true_effect:g} is no better than the margin of -{margin:g}, so no number of units would"
            " show that it is"
        )
    return required_n(
        room,
        variance_treatment,
        variance_control,
        treatment_share=treatment_share,
        level=_one_end(level),
        power_wanted=power_wanted,
        sides=1,
    )


def conversion_variance(share: float) -> float:
    """The variance of one unit's 0/1 value, share (1 - share): what the sizes above need for a conversion."""
    if not 0 < share < 1:
        raise ValueError(f"a share of units to plan with must lie between 0 and 1, not {share}")
    return share * (1 - share)


def design_effect(mean_size: float, cv: float, icc: float) -> float:
    """How many times as many units a clustered assignment needs: 1 + ((cv^2 + 1) m - 1) icc.

    ``mean_size`` units a cluster, ``cv`` the coefficient of variation of sizes, ``icc`` the intraclass correlation (Donner
    and Klar 2000 for equal sizes; Eldridge, Ashby, Kerry 2006, "Sample size for cluster randomized trials: effect of
    coefficient of variation of cluster size and analysis method"). Multiply units, or one unit's variance, by it.
    """
    if not (math.isfinite(mean_size) and mean_size >= 1):
        raise ValueError(f"the mean size of clusters must be at least one unit, not {mean_size}")
    if not (math.isfinite(cv) and cv >= 0):
        raise ValueError(f"the coefficient of variation of cluster sizes cannot be {cv}")
    if not -1 <= icc <= 1:
        raise ValueError(f"an intraclass correlation lies between -1 and 1, not {icc}")
    effect = 1 + ((cv * cv + 1) * mean_size - 1) * icc
    if effect <= 0:
        raise ValueError(f"an intraclass correlation of {icc:g} cannot be that of clusters of {mean_size:g} units")
    return effect


def icc(clusters: Moments, unit_variance: float | None = None) -> float:
    """The intraclass correlation from clusters' totals: ``clusters`` are Moments of (total, units), one row a cluster.

    With sizes m and residual totals T - ybar m, E[(T - ybar m)^2] = s^2 (E m + icc (E m^2 - E m)), s^2 being one unit's
    variance: solved for icc, so that `design_effect` of the answer is the ratio of the clustered variance to that of
    independent units. Totals do not tell s^2: give ``unit_variance``, or leave it out for 0/1 values, where it is p (1 - p).
    It is an estimate and can fall slightly below zero where clusters do not matter.
    """
    _measures(clusters, 2)
    _at_least_two(clusters.n)
    total, size = float(clusters.mean[0]), float(clusters.mean[1])
    if size <= 0:
        raise ValueError("the clusters have no units")
    mean = total / size
    s2 = conversion_variance(mean) if unit_variance is None else unit_variance
    if not (math.isfinite(s2) and s2 > 0):
        raise ValueError(f"the variance of a unit must be above zero, not {s2}")
    cov = clusters.cov
    residual = float(cov[0, 0]) - 2 * mean * float(cov[0, 1]) + mean * mean * float(cov[1, 1])
    pairs = float(cov[1, 1]) * (clusters.n - 1) / clusters.n + size * size - size
    if pairs <= _ROUNDING * size:
        raise ValueError("every cluster has one unit, so units of one cluster cannot be compared")
    return (residual / s2 - size) / pairs


def _room(margin: float, true_effect: float) -> float:
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"the margin must be a finite number above zero, not {margin}")
    if not math.isfinite(true_effect):
        raise ValueError("the true effect must be a finite number")
    return margin + true_effect


def _one_end(level: float) -> float:
    """The level of a one-sided test that errs as often as one end of the interval at ``level``."""
    return 1 - (1 - _level(level)) / 2


def _noncentral_t_cdf(df: float, nc: float, x: float) -> float:
    found = float(special.nctdtr(df, nc, x))
    if math.isnan(found):  # scipy's answer where the nearer tail is below 1e-80
        return 0.0 if nc > x else 1.0
    return found


def _covariance(v_t: float, v_c: float, covariance: float) -> None:
    if covariance == 0.0:
        return
    if not math.isfinite(covariance):
        raise ValueError("the covariance of two arms must be a finite number")
    if abs(covariance) > math.sqrt(v_t) * math.sqrt(v_c) * (1 + 1e-9):
        raise ValueError("two arms cannot covary more than each varies")
    if v_t + v_c - 2 * covariance <= _ROUNDING * (v_t + v_c):
        raise ValueError("the two arms move as one, so there is no variation to judge their difference by")


def _welch(v_t: float, df_t: float, v_c: float, df_c: float, covariance: float = 0.0) -> tuple[float, float]:
    """(se, Welch-Satterthwaite df) of the difference of two estimates with variances ``v_t`` and ``v_c``.

    What the two share cancels and needs no degrees of freedom: each arm's part is its variance less the covariance, and
    the parts add up to the difference's variance. Where one is negative (its arm follows the other's error by less) the
    other carries it all.
    """
    v = v_t + v_c - 2 * covariance
    share_t, share_c = (min(1.0, max(0.0, (part - covariance) / v)) for part in (v_t, v_c))
    # Shares of the variance, not its squares: those underflow for values of 1e-90.
    return math.sqrt(v), 1.0 / (share_t**2 / df_t + share_c**2 / df_c)


def _chi_square(statistic: float, df: int, smallest_expected: float) -> ChiSquare:
    return ChiSquare(statistic, df, float(special.chdtrc(df, statistic)), smallest_expected)


def _measures(m: Moments, k: int) -> None:
    if m.k != k:
        raise ValueError(f"expected moments of {k} measures a unit, not of {m.k}")


def _at_least_two(n: int) -> None:
    if n < 2:
        raise ValueError(f"an arm of {n} {'unit' if n == 1 else 'units'} has no variation to judge it by; it needs two")


def _nonzero(name: str, value: float) -> None:
    if not (math.isfinite(value) and value != 0):
        raise ValueError(f"the {name} must be a finite number other than zero, not {value}")


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level}")
    return level


def _power_wanted(wanted: float, level: float) -> None:
    floor = 1 - _level(level)
    if not floor < wanted < 1:
        raise ValueError(f"the power wanted must lie between {floor:.3g} (chance alone) and 1, not {wanted}")


def _count(count: int, arm: str) -> int:
    if count < 0 or count != int(count):
        raise ValueError(f"arm '{arm}' has a count of {count}; counts are whole numbers from zero up")
    return int(count)

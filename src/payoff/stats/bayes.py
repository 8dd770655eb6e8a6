"""A Bayesian reading of a relative lift: a normal prior, stated before, and a normal likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special

from payoff.estimate import t_quantile


@dataclass(frozen=True, slots=True)
class NormalPosterior:
    """The lift given the data: normal with ``mean`` and ``sd`` (0.05 is +5%). ``sign`` is 1 where up is better, -1
    where down is."""

    mean: float
    sd: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The central credible interval."""
        if not 0 < level < 1:
            raise ValueError(f"a level lies between 0 and 1, not {level}")
        half = t_quantile(0.5 + level / 2, math.inf) * self.sd
        return self.mean - half, self.mean + half

    def chance_to_beat(self, sign: float = 1) -> float:
        """The probability that the arm is better than control: Phi(mean / sd) in the direction of improvement."""
        return float(special.ndtr(_sign(sign) * self.mean / self.sd))

    def expected_loss(self, sign: float = 1) -> float:
        """What choosing the arm loses on average, counting nothing where it is better: E max(0, -lift) = sd (phi(z) - z
        Phi(-z)), z = mean / sd in the direction of improvement. The other arm's loss is that of the opposite sign.

        (Raiffa and Schlaifer 1961, "Applied statistical decision theory": the unit normal linear loss.)
        """
        z = _sign(sign) * self.mean / self.sd
        density = math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        if z <= 0:
            return self.sd * (density - z * float(special.ndtr(-z)))
        # Far above zero the two terms cancel: the scaled tail keeps the digits
        mills = math.sqrt(math.pi / 2) * float(special.erfcx(z / math.sqrt(2)))
        return max(0.0, self.sd * density * (1.0 - z * mills))


def normal_posterior(value: float, se: float, prior_mean: float, prior_sd: float) -> NormalPosterior:
    """The posterior of a lift seen as ``value`` with standard error ``se``, under a normal prior on the lift.

    Precisions add, and the mean is weighted by them (Gelman et al. 2013, "Bayesian data analysis", eq. 2.10). Raises
    ValueError when a number is not finite, or a spread not above zero.
    """
    if not (math.isfinite(value) and math.isfinite(prior_mean)):
        raise ValueError(f"a lift and its prior mean must be finite numbers, not {value} and {prior_mean}")
    for what, spread in (("standard error of the lift", se), ("standard deviation of the prior", prior_sd)):
        if not (math.isfinite(spread) and spread > 0):
            raise ValueError(f"the {what} must be above zero, not {spread}")
    total = math.hypot(se, prior_sd)
    weight = (prior_sd / total) ** 2
    return NormalPosterior(prior_mean + weight * (value - prior_mean), se * (prior_sd / total))


def _sign(sign: float) -> float:
    if sign not in (1, -1):
        raise ValueError(f"the direction of improvement is 1 or -1, not {sign}")
    return float(sign)

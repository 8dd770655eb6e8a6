"""How an experiment's stopping rule turns an estimate and its standard error into an interval and a p-value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from scipy import special

from payoff.estimate import Bounds, IntervalKind, Normal, Uncertainty, t_cdf, t_quantile
from payoff.spec import nouns
from payoff.stats import sequential

_SMALLEST = 1e-300
"""A tail below this has no normal quantile in double precision."""

BOUNDLESS = math.log(1e6)
"""On the log scale: a million times the control says nothing, and not far above lies what no number can hold."""


@dataclass(frozen=True, slots=True)
class Rule:
    """``fixed``: one planned look. ``always_valid``: every look. ``group_sequential``: the looks made so far, at
    ``information`` (shares of the planned units, this look's last)."""

    kind: str
    alpha: float
    tightest_at: int = sequential.TIGHTEST_AT
    information: tuple[float, ...] = ()
    spending: sequential.Spending = "obrien_fleming"

    @classmethod
    def of(cls, stop: nouns.Stop | None, alpha: float, looks: Sequence[int] = (), units: int = 0) -> Rule:
        """``looks`` are the units at earlier looks, ``units`` those of this one."""
        if stop is None or stop.rule == "fixed":
            return cls("fixed", alpha)
        if stop.rule == "always_valid":
            return cls("always_valid", alpha, stop.tightest_at or stop.n or sequential.TIGHTEST_AT)
        assert stop.n is not None
        seen = sorted({n for n in looks if 0 < n < units} | {max(units, 1)})
        return cls("group_sequential", alpha, information=tuple(n / stop.n for n in seen), spending=stop.spending)

    @property
    def interval_kind(self) -> IntervalKind:
        kinds: dict[str, IntervalKind] = {"fixed": "confidence", "always_valid": "always-valid"}
        return kinds.get(self.kind, "repeated")

    def interval(self, value: float, se: float, df: float, n: int, level: float) -> tuple[float, float]:
        if self.kind == "always_valid":
            return sequential.always_valid(value, se, n, self.tightest_at, level, design_alpha=self.alpha)
        if self.kind == "group_sequential":
            # the boundary is a normal one; the sample's own distribution is Student's, at the same probability
            critical = _critical(self.information, 1 - level, self.spending)
            half = se * -t_quantile(t_cdf(-critical, math.inf), df)
            return value - half, value + half
        return Normal(se, df).interval(value, level)

    def spent(self) -> str | None:
        """Why this look can show nothing, or None: an earlier one had all the planned units, and the whole error rate."""
        if self.kind != "group_sequential":
            return None
        try:
            _critical(self.information, self.alpha, self.spending)
        except ValueError as error:
            return str(error)
        return None

    def p_value(self, value: float, se: float, df: float, n: int) -> float:
        if self.kind == "always_valid":
            return sequential.always_valid_p(value, se, n, self.tightest_at, self.alpha)
        if self.kind == "group_sequential":
            z = -t_quantile(max(t_cdf(-abs(value / se), df), _SMALLEST), math.inf)
            return sequential.repeated_p(z, self.information, self.spending)
        return Normal(se, df).p_value(value)

    def p_joint(self, statistic: float, df: int, p: float, n: int) -> float:
        """The p-value over all looks of a test of several effects together, ``p`` being its value for one look.

        ``statistic`` is chi-square on ``df`` but for what small samples change in ``p``.
        """
        if self.kind == "fixed":
            return p
        if self.kind == "group_sequential":
            return sequential.spent_p(p, self.information, self.spending)
        alike = float(special.chdtri(df, p)) if _SMALLEST < p <= 1 else statistic
        return sequential.always_valid_joint_p(alike, df, n, self.tightest_at, self.alpha)

    def one_look(self, n: int, level: float) -> float | None:
        """The level at which an interval for one look is as wide as this rule's; None where no number tells it from 1."""
        if self.kind == "fixed":
            return level
        beyond = 2 * t_cdf(-self.interval(0.0, 1.0, math.inf, n, level)[1], math.inf)
        return 1 - beyond if beyond > 1e-12 else None

    def uncertainty(
        self, value: float, se: float, df: float, n: int, level: float, *, log: bool = False
    ) -> Uncertainty:
        """For an Estimate. ``log``: ``se`` is of log(1 + value), as of a relative lift. Raises ValueError where no percentage
        could be as large as that interval's end."""
        if self.kind == "fixed":
            return Normal(se, df, "log1p" if log else "identity")
        centre = math.log1p(value) if log else value
        low, high = self.interval(centre, se, df, n, level)
        if log and high > BOUNDLESS:
            raise ValueError("so early a look leaves its interval without an end")
        p = self.p_value(centre, se, df, n)
        return Bounds(math.expm1(low), math.expm1(high), level, p) if log else Bounds(low, high, level, p)


@lru_cache(maxsize=512)
def _critical(information: tuple[float, ...], alpha: float, spending: sequential.Spending) -> float:
    return sequential.boundaries(information, alpha, spending)[-1]

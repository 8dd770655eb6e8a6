"""An experiment as the method sees it: every default resolved, and one metric's figures while they are put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from payoff.estimate import Correction
from payoff.methods.experiment.rule import Rule
from payoff.result import Look
from payoff.spec import nouns
from payoff.stats import compare
from payoff.stats.adjust import Adjusted
from payoff.stats.compare import Level


@dataclass(frozen=True, slots=True)
class MetricUse:
    """A metric as this experiment reads it: its part here, its own role, its window, its direction and unit.

    ``before`` is the period before exposure that adjusts it, None where nothing does.
    """

    name: str
    metric: nouns.Metric
    part: str
    window: timedelta | None
    before: timedelta | None = None

    @property
    def role(self) -> str:
        """The label shown: vanity and north star keep theirs wherever they are read."""
        return self.metric.role if self.metric.role in ("vanity", "north_star") else self.part

    @property
    def sign(self) -> int:
        return 1 if self.metric.direction == "up" else -1


@dataclass(frozen=True, slots=True)
class AttributeUse:
    """A declared attribute, or a column of the assignment's own source, with the source that it is read from.

    A metric before exposure has ``metric`` and no source.
    """

    name: str
    attribute: nouns.Attribute
    source: str
    metric: nouns.Metric | None = None


@dataclass(frozen=True, slots=True)
class Beside:
    """Another experiment on the same units, as far as an interaction with it is asked for."""

    name: str
    control: str


@dataclass(frozen=True, slots=True)
class ExperimentDesign:
    """An experiment with every default resolved. ``crosses`` are pairs of metrics that some claim prices together.

    ``looks`` are earlier readings of it, oldest first. ``only_beside``: it is read for the sake of another experiment
    that crosses its arms, and is not answered itself.
    """

    name: str
    experiment: nouns.Experiment
    source: str
    entity: str
    metrics: tuple[MetricUse, ...]
    zone: str = "UTC"
    currency: str = "USD"
    alpha: float = 0.05
    min_cell: int = 0
    timed: bool = True
    crosses: tuple[tuple[str, str], ...] = ()
    default_window: timedelta | None = None
    now_us: int | None = None
    attributes: Mapping[str, AttributeUse] = field(default_factory=dict)
    beside: tuple[Beside, ...] = ()
    looks: tuple[Look, ...] = ()
    only_beside: bool = False

    @property
    def level(self) -> float:
        return 1.0 - self.alpha

    @property
    def primaries(self) -> tuple[MetricUse, ...]:
        """What the experiment is decided on: its primaries, else the first metric."""
        named = tuple(u for u in self.metrics if u.part == "primary")
        return named or self.metrics[:1]


@dataclass(slots=True)
class Reading:
    """One metric's figures while the answer is put together.

    ``levels`` and ``differences`` are what is reported, adjusted where the design asks for it; ``plain`` are the arms'
    levels without adjustment. ``units`` counts units by arm, where a level's own n counts clusters. ``corrections`` are
    by arm, for metrics of a family of several.
    """

    use: MetricUse
    unit: str
    rule: Rule
    levels: dict[str, Level] = field(default_factory=dict)
    plain: dict[str, Level] = field(default_factory=dict)
    differences: dict[str, compare.Difference] = field(default_factory=dict)
    covariance: Mapping[tuple[str, str], float] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    adjusted: Adjusted | None = None
    covariates: tuple[str, ...] = ()
    unadjusted_because: str = ""
    corrections: dict[str, Correction] = field(default_factory=dict)

    def between(self, arm: str, other: str) -> float:
        """The sampling covariance of two arms' levels: zero unless adjustment made them share a mean."""
        return self.covariance.get((arm, other), 0.0)

    def n(self, arm: str, control: str) -> int:
        return self.units[arm] + self.units[control]

    @property
    def quantile(self) -> bool:
        return self.use.metric.kind == "quantile"

    def linear(self, arm: str, control: str) -> compare.Difference:
        """The difference whose linear form is known: the reported one, or the plain one after post-stratification."""
        if self.adjusted is not None and not self.adjusted.pull:
            return compare.difference(self.plain[arm], self.plain[control])
        return self.differences[arm]

    def interval(self, arm: str, level: float) -> tuple[float, float]:
        """The interval of a difference under the experiment's stopping rule."""
        gap = self.differences[arm]
        return self.rule.interval(gap.value, gap.se, gap.df, self.count(arm), level)

    def p_value(self, arm: str) -> float:
        gap = self.differences[arm]
        return self.rule.p_value(gap.value, gap.se, gap.df, self.count(arm))

    def count(self, arm: str) -> int:
        """The observations behind a difference: units, or clusters where those were assigned."""
        control = next(iter(self.levels))
        return self.levels[arm].n + self.levels[control].n

    def deciding(self, arm: str, level: float) -> tuple[float, float]:
        """The interval that decides: corrected for the family's other questions where there are any."""
        correction = self.corrections.get(arm)
        return self.interval(arm, level) if correction is None else (correction.low, correction.high)


def improvement(r: Reading, arm: str, level: float) -> tuple[float, float]:
    """The deciding interval of the difference, turned so that up is better."""
    low, high = r.deciding(arm, level)
    return (low, high) if r.use.sign > 0 else (-high, -low)


def span(use: MetricUse) -> str:
    return nouns.format_duration(use.window) if use.window is not None else "unlimited length"

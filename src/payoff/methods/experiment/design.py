"""An experiment as the method sees it: every default resolved, and one metric's figures while they are put together."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from payoff.spec import nouns
from payoff.stats import compare
from payoff.stats.compare import Level


@dataclass(frozen=True, slots=True)
class MetricUse:
    """A metric as this experiment reads it: its part here, its own role, its window, its direction and unit."""

    name: str
    metric: nouns.Metric
    part: str
    window: timedelta | None

    @property
    def role(self) -> str:
        """The label shown: vanity and north star keep theirs wherever they are read."""
        return self.metric.role if self.metric.role in ("vanity", "north_star") else self.part

    @property
    def sign(self) -> int:
        return 1 if self.metric.direction == "up" else -1


@dataclass(frozen=True, slots=True)
class ExperimentDesign:
    """An experiment with every default resolved. ``crosses`` are pairs of metrics that some claim prices together."""

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

    @property
    def level(self) -> float:
        return 1.0 - self.alpha


@dataclass(slots=True)
class Reading:
    """One metric's figures while the answer is put together."""

    use: MetricUse
    unit: str
    levels: dict[str, Level] = field(default_factory=dict)
    differences: dict[str, compare.Difference] = field(default_factory=dict)


def improvement(r: Reading, arm: str, level: float) -> tuple[float, float]:
    """The interval of the difference, turned so that up is better."""
    low, high = r.differences[arm].interval(level)
    return (low, high) if r.use.sign > 0 else (-high, -low)


def span(use: MetricUse) -> str:
    return nouns.format_duration(use.window) if use.window is not None else "unlimited length"

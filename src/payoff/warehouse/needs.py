"""What a method asks of the data, as plain data. The planner unites the needs of a whole run into few scans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from payoff.stats.moments import Moments

ROWS = "(row)"
"""What identifies a unit where a table has no id: the row itself."""

Fold = Literal["count", "sum", "mean", "any", "first"]


@dataclass(frozen=True, slots=True)
class Cap:
    """Winsorise unit values from above, at ``value`` or at a percentile of the values pooled over arms."""

    value: float | None = None
    percentile: float | None = None
    nonzero: bool = False


@dataclass(frozen=True, slots=True)
class Anchor:
    """The unit's first row of ``source`` (where ``where``) within ``within_us`` of exposure; opens a window of its own."""

    source: str
    where: str | None
    within_us: int | None


@dataclass(frozen=True, slots=True)
class Measure:
    """One number a unit: rows of ``source`` folded inside its window.

    ``count``/``sum``/``any`` give 0 to a unit without rows; ``mean`` leaves such a unit out. ``column`` and ``where`` are
    users' SQL. The window is [opening, opening + window_us), opening at exposure or at the anchor's row.
    """

    source: str
    fold: Fold
    column: str | None = None
    where: str | None = None
    window_us: int | None = None
    after: Anchor | None = None
    cap: Cap | None = None

    @property
    def horizon_us(self) -> int | None:
        """From exposure to when the value can no longer change; None when it always can."""
        if self.window_us is None:
            return None
        if self.after is None:
            return self.window_us
        return None if self.after.within_us is None else self.after.within_us + self.window_us


@dataclass(frozen=True, slots=True)
class MetricNeed:
    """One measure (a mean of unit values) or two (a ratio: numerator, denominator).

    ``invalid`` counts rows that the measures leave out because their value cannot be one (an answer of 12 out of 10).
    """

    name: str
    measures: tuple[Measure, ...]
    invalid: Measure | None = None

    @property
    def folds(self) -> tuple[Measure, ...]:
        """Everything that a scan has to fold for this metric."""
        return self.measures if self.invalid is None else (*self.measures, self.invalid)

    @property
    def horizon_us(self) -> int | None:
        spans = [m.horizon_us for m in self.measures if m.horizon_us is not None]
        return max(spans) if spans else None


@dataclass(frozen=True, slots=True)
class ArmsNeed:
    """Sufficient statistics of unit values by arm, for one randomised comparison.

    ``source`` names the assignment's source; ``starts_us``/``ends_us`` bound exposures (microseconds since the epoch);
    ``arms`` are the declared arms, empty when undeclared; ``crosses`` are pairs of metrics whose covariance is wanted too.
    """

    experiment: str
    source: str
    entity: str
    variant: str
    where: str | None
    starts_us: int | None
    ends_us: int | None
    arms: tuple[str, ...]
    metrics: tuple[MetricNeed, ...]
    crosses: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class MetricMoments:
    """By arm: Moments of the metric's measures over units whose window has closed and who have a value.

    ``ineligible``: units whose window is still open. ``without``: eligible units with no value (or an empty ratio).
    ``eligible``: eligible units. ``caps``: the caps applied.
    ``invalid``: rows left out because their value cannot be one.
    """

    moments: Mapping[str, Moments]
    ineligible: Mapping[str, int]
    eligible: Mapping[str, int]
    without: Mapping[str, int]
    caps: tuple[float | None, ...]
    invalid: int = 0


@dataclass(frozen=True, slots=True)
class ArmsData:
    """The answer to an ArmsNeed. Counts are of units unless they say rows.

    ``exposed`` counts units by arm, those of several arms excluded. ``crosses[(a, b)][arm]`` are the joint Moments of the
    measures of a and b over units in both. ``as_of_us`` is the time up to which the data is taken to be complete.
    """

    exposed: Mapping[str, int]
    several_arms: int
    unknown_arms: Mapping[str, int]
    rows: int
    rows_without_id: int
    rows_without_time: int
    rows_without_arm: int
    unit_column: str
    first_us: int | None
    last_us: int | None
    as_of_us: int | None
    metrics: Mapping[str, MetricMoments]
    crosses: Mapping[tuple[str, str], Mapping[str, Moments]]
    sources: Mapping[str, SourceProfile]
    sql: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SourceProfile:
    """What a first look at a source told: rows, NULL ids and times by column, the span of its clock, repeated ids.

    ``clock`` is the type of the time column; ``declared_through``: the span's end is the source's own ``through``.
    """

    name: str
    rows: int
    null_ids: Mapping[str, int]
    null_times: int
    first_us: int | None
    last_us: int | None
    repeated_ids: int | None
    id_column: str | None
    fingerprint: str
    clock: str | None = None
    declared_through: bool = False

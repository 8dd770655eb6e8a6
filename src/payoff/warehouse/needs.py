"""What a method asks of the data, as plain data. The planner unites the needs of a whole run into few scans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from payoff.stats.moments import Moments

ROWS = "(row)"
"""What identifies a unit where a table has no id: the row itself."""

Fold = Literal["count", "sum", "mean", "any", "first"]
"""``first`` is the time of the first row, for anchors and triggers."""


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
    users' SQL. The window is [opening + from_us, opening + window_us), opening at exposure or at the anchor's row; what was
    before exposure has ``from_us`` below zero and ``window_us`` 0. ``since_us`` and ``before_us`` bound it by the calendar too.
    """

    source: str
    fold: Fold
    column: str | None = None
    where: str | None = None
    window_us: int | None = None
    after: Anchor | None = None
    cap: Cap | None = None
    from_us: int = 0
    since_us: int | None = None
    before_us: int | None = None

    @property
    def horizon_us(self) -> int | None:
        """From exposure to when the value can no longer change; None when it always can."""
        if self.window_us is None:
            return None
        if self.after is None:
            return self.window_us
        return None if self.after.within_us is None else self.after.within_us + self.window_us


@dataclass(frozen=True, slots=True)
class Quantile:
    """The ``q`` quantile with its outer interval at ``level``, of ``rows`` in the window or of ``units``' totals."""

    q: float
    of: Literal["rows", "units"]
    level: float


@dataclass(frozen=True, slots=True)
class MetricNeed:
    """What is wanted of one metric: its measures, one number a unit each.

    One measure is a mean of unit values, two with ``ratio`` are numerator and denominator (units with neither are left
    out), several without are parts to be compared side by side (steps of time, paths). ``before`` are the same measures
    over a period before exposure, for adjustment; ``invalid`` counts rows that the measures leave out because their value
    cannot be one (an answer of 12 out of 10). With ``quantile`` the one measure's values themselves are wanted.
    ``covariates``: whether the experiment's covariates are wanted jointly with it; ``segments``: whether by segment too.
    """

    name: str
    measures: tuple[Measure, ...]
    invalid: Measure | None = None
    ratio: bool = False
    before: tuple[Measure, ...] = ()
    quantile: Quantile | None = None
    covariates: bool = True
    segments: bool = True

    @property
    def folds(self) -> tuple[Measure, ...]:
        """Everything that a scan has to fold for this metric."""
        return (*self.measures, *self.before) if self.invalid is None else (*self.measures, *self.before, self.invalid)

    @property
    def horizon_us(self) -> int | None:
        spans = [m.horizon_us for m in self.measures if m.horizon_us is not None]
        return max(spans) if spans else None


@dataclass(frozen=True, slots=True)
class AttributeNeed:
    """A value a unit had at exposure.

    Exactly one of: ``column`` of ``source`` (its latest row at or before exposure; its only value where the source has no
    time), ``since`` of ``source`` (a time; the value is its age at exposure in days), or ``measure`` (before exposure).
    ``cuts``/``quantiles`` turn a number into classes, named by ``labels`` where there are any.
    """

    name: str
    source: str
    column: str | None = None
    since: str | None = None
    measure: Measure | None = None
    cuts: tuple[float, ...] = ()
    quantiles: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ArmsNeed:
    """Sufficient statistics of unit values by arm, for one randomised comparison.

    ``source`` names the assignment's source; ``starts_us``/``ends_us`` bound exposures (microseconds since the epoch);
    ``arms`` are the declared arms, empty when undeclared; ``crosses`` are pairs of metrics whose covariance is wanted too.
    ``attributes`` are what ``covariates`` (a number as it is, text as 0/1 columns) and ``segments`` (names of attributes)
    refer to. ``cluster`` is the entity that was assigned. ``trigger`` moves exposure to the first such row and leaves out
    units without one. ``period_us`` makes each period of a unit (counted from the
    epoch, in UTC) a unit of its own (a switchback): a period has a row of its own or more, no arm is carried over. ``beside`` names
    experiments of the same read whose arms are to be crossed with these (for the metrics in ``beside_metrics``).
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
    attributes: tuple[AttributeNeed, ...] = ()
    covariates: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()
    cluster: str | None = None
    trigger: Anchor | None = None
    period_us: int | None = None
    beside: tuple[str, ...] = ()
    beside_metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IfCapped:
    """What capping a heavy-tailed measure at ``cap`` would do: the moments by arm with it, and the units ``above`` it.

    ``share`` is the largest that one unit makes of its own arm's variance.
    """

    cap: float
    above: int
    moments: Mapping[str, Moments]
    share: float


@dataclass(frozen=True, slots=True)
class ArmQuantile:
    """One arm's quantile: ``low`` and ``high`` are the outer interval, ``se`` its standard error, ``rows`` what it is taken of.

    ``n`` counts what was drawn: units with rows, or clusters of them where the read is clustered.
    """

    value: float
    low: float
    high: float
    se: float
    n: int
    rows: int


@dataclass(frozen=True, slots=True)
class MetricMoments:
    """By arm: Moments over units whose window has closed and who have a value.

    The columns of a Moments are the metric's measures (k), then, where the read is clustered, the cluster's number of
    units, then ``covariates`` (their names: the metric's own ``before`` measures first). Clustered, a column is the
    cluster's total and n counts clusters; ``units`` then counts units.
    ``ineligible``: units whose window is still open. ``without``: eligible units with no value (or an empty ratio).
    ``eligible``: eligible units. ``caps``: the caps applied. ``invalid``: rows left out because their value cannot be one.
    ``lowest``/``highest``: the extremes of each measure over all arms' units; ``negative``: units with a measure below zero.
    ``segments``: attribute -> class -> arm -> Moments (the same columns). ``beside``: experiment -> (arm, its arm) -> Moments.
    ``quantiles``: by arm, for a quantile metric, whose ``moments`` then are empty; ``no_quantile``: why an arm has none.
    """

    moments: Mapping[str, Moments]
    ineligible: Mapping[str, int]
    eligible: Mapping[str, int]
    without: Mapping[str, int]
    caps: tuple[float | None, ...]
    invalid: int = 0
    covariates: tuple[str, ...] = ()
    units: Mapping[str, int] = field(default_factory=dict)
    lowest: tuple[float, ...] = ()
    highest: tuple[float, ...] = ()
    negative: int = 0
    segments: Mapping[str, Mapping[str, Mapping[str, Moments]]] = field(default_factory=dict)
    beside: Mapping[str, Mapping[tuple[str, str], Moments]] = field(default_factory=dict)
    quantiles: Mapping[str, ArmQuantile] = field(default_factory=dict)
    no_quantile: Mapping[str, str] = field(default_factory=dict)
    if_capped: IfCapped | None = None


@dataclass(frozen=True, slots=True)
class AttributeProfile:
    """How an attribute was filled: ``missing`` exposed units have no value at all, ``future`` ones only later than exposure,
    ``ambiguous`` ones several and no time to choose by (a unit is counted once).

    ``classes``: how many different values (before any
    are taken together). ``refused``: why it cannot serve, or None.
    """

    name: str
    missing: int
    future: int
    ambiguous: int
    classes: int
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class ClusterProfile:
    """``clusters`` by arm; ``single``: clusters with one unit; ``several_arms``: clusters seen in several arms, left out;
    ``without``: units without a cluster, left out; ``largest``: the largest cluster's share of the units of its arm."""

    clusters: Mapping[str, int]
    single: int
    several_arms: int
    without: int
    largest: float


@dataclass(frozen=True, slots=True)
class ArmsData:
    """The answer to an ArmsNeed. Counts are of units unless they say rows.

    ``exposed`` counts units by arm, those of several arms excluded. ``crosses[(a, b)][arm]`` are the joint Moments of the
    columns of a and b over units in both. ``as_of_us`` is the time up to which the data is taken to be complete.
    ``untriggered``: exposed units by arm that never triggered (they are not in ``exposed`` then). ``beside``: experiment ->
    (arm, its arm) -> units exposed in both.
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
    attributes: Mapping[str, AttributeProfile] = field(default_factory=dict)
    cluster: ClusterProfile | None = None
    untriggered: Mapping[str, int] = field(default_factory=dict)
    beside: Mapping[str, Mapping[tuple[str, str], int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceProfile:
    """What a first look at a source told: rows, NULL ids and times by column, the span of its clock, repeated ids.

    ``clock`` is the type of the time column; ``declared_through``: the span's end is the source's own ``through``;
    ``declared_zone``: the source says itself in which zone its times are.
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
    declared_zone: bool = False

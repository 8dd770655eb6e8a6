"""What a method gives back: a Result, or a Refusal with its reason and its remedy. Inert data, no behaviour but to_dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from payoff.estimate import Estimate

CheckStatus = Literal["pass", "warn", "fail", "not-run"]
Verdict = Literal[
    "above target", "positive", "negative", "not conclusive", "guardrail at risk", "withheld", "descriptive"
]
"""``descriptive``: nothing was compared, so nothing is concluded."""


@dataclass(frozen=True, slots=True)
class Assumption:
    """Something that must hold for the figure to mean what it says, in plain English; ``tested_by`` names a check or is None."""

    text: str
    tested_by: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    status: CheckStatus
    statistic: float | None
    detail: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "status": self.status, "statistic": self.statistic, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class Arm:
    """The level of ``metric`` in one arm, over ``n`` analysed units, with its own interval."""

    arm: str
    metric: str
    n: int
    value: float
    low: float
    high: float
    unit: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "arm": self.arm,
            "metric": self.metric,
            "n": self.n,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
        }


@dataclass(frozen=True, slots=True)
class Refusal:
    """No number, on purpose. ``remedy`` says what would make the question answerable."""

    name: str
    reason: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "reason": self.reason, "remedy": self.remedy}


@dataclass(frozen=True, slots=True)
class Provenance:
    """Enough to run it again: the SQL as executed, what was declared, what was read, the seed, the versions."""

    sql: tuple[tuple[str, str], ...] = ()
    definition_hash: str = ""
    data_fingerprint: str = ""
    seed: int = 0
    as_of: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "sql": [{"step": step, "text": text} for step, text in self.sql],
            "definition_hash": self.definition_hash,
            "data_fingerprint": self.data_fingerprint,
            "seed": self.seed,
            "as_of": self.as_of,
            "versions": dict(self.versions),
        }


@dataclass(frozen=True, slots=True)
class MetricReading:
    """How one metric was used here: its role, direction and margin, and the reading its interval supports.

    ``state`` is decided by the interval against zero, target or margin, never by the point: "improved", "harmed",
    "not conclusive" for what is to be moved; "safe" (harm beyond the margin excluded), "at risk", "breached" for guardrails;
    "refused" where there is no number.
    """

    metric: str
    contrast: str
    role: str
    direction: str
    state: str
    sentence: str
    margin: float | None = None
    target: float | None = None
    caveat: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "contrast": self.contrast,
            "role": self.role,
            "direction": self.direction,
            "state": self.state,
            "sentence": self.sentence,
            "margin": self.margin,
            "target": self.target,
            "caveat": self.caveat,
        }


# ---------------------------------------------------------------- closer looks
# Each is a part of a Result beside its estimates: plain figures, each point with its interval, and one sentence.
# ``value``, ``low`` and ``high`` are in ``unit`` unless they say otherwise; intervals are at the Result's level.


@dataclass(frozen=True, slots=True)
class Span:
    """A figure with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Precision:
    """What adjustment did for one difference: both standard errors, and how many times as many units it was worth.

    ``variance_reduction`` is 1 - (adjusted se / plain se)^2: below zero where it cost precision. ``plain`` is the
    difference without it. ``by``: "regression" or "post-stratification".
    """

    metric: str
    contrast: str
    unit: str
    by: str
    covariates: tuple[str, ...]
    plain: Span
    se: float
    plain_se: float
    variance_reduction: float
    units_factor: float
    sentence: str


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """The difference among the units of one class. ``pooled`` is the partially pooled difference; ``p_value`` is
    corrected over all segments read (``raw_p_value`` is not), and so are ``low`` and ``high``. ``state`` is read from that
    interval: improved, harmed, not conclusive, or refused (``reason``), with no figures."""

    segment: str
    n: Mapping[str, int]
    state: str
    difference: Span | None = None
    pooled: Span | None = None
    p_value: float | None = None
    raw_p_value: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Segments:
    """One metric's difference by the classes of one attribute.

    ``interaction``: do the differences differ (chi-square, its p corrected over attributes)? ``flip``: "shown" (Gail and
    Simon's test of a qualitative interaction: some are helped and some harmed), "possible" (one class's corrected interval
    contradicts another's sign, or the point estimates' signs differ where the differences are shown to differ) or "none".
    ``tau`` is the spread of the true differences, in the metric's unit.
    """

    attribute: str
    metric: str
    contrast: str
    unit: str
    direction: str
    rows: tuple[SegmentRow, ...]
    interaction_statistic: float
    interaction_df: int
    interaction_p: float
    flip: str
    flip_p: float | None
    tau: float
    sentence: str


@dataclass(frozen=True, slots=True)
class TimePoint:
    """``start`` and ``end`` are days since exposure, or dates (ISO) on a calendar. ``n``: units by arm."""

    start: str
    end: str
    difference: Span
    n: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class OverTime:
    """An effect by time. ``axis``: "days since exposure" (each point is that step's own effect) or "calendar" (each point is
    the total gained up to then, over all treated units). ``band``: the intervals are "pointwise" or "simultaneous".

    ``trend_p``: is the effect the same at all times (None on a calendar)? ``pattern``: "wears off", "grows", "steady" (no sign
    of either) or "" on a calendar. ``left_out``: steps in no figure: of a calendar not yet over, else without variation.
    """

    metric: str
    contrast: str
    unit: str
    direction: str
    axis: str
    band: str
    points: tuple[TimePoint, ...]
    left_out: int
    trend_p: float | None
    pattern: str
    sentence: str


@dataclass(frozen=True, slots=True)
class PathGain:
    path: str
    treated: bool
    difference: Span
    control_level: float
    treatment_level: float


@dataclass(frozen=True, slots=True)
class Displacement:
    """Cannibalisation: what the treated surface gained a unit, what all other paths lost, the net.

    ``anyway``: the share (0 to 1) of what is attributed to the treated surface that would have happened anyway: 1 - net /
    the treated arm's level on that surface. None where the data cannot tell (``reason``).
    """

    contrast: str
    unit: str
    paths: tuple[PathGain, ...]
    gained: Span
    others: Span
    net: Span
    anyway: Span | None
    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Interaction:
    """Two experiments on the same units: do the assignments depend on each other, and does one's effect depend on the other's arm?

    ``difference`` is the effect in the other's treatment less the effect in its control. None where too few are in both (``reason``).
    """

    other: str
    metric: str
    contrast: str
    other_contrast: str
    unit: str
    both: int
    assignment_statistic: float | None
    assignment_p: float | None
    difference: Span | None
    p_value: float | None
    adjusted_p: float | None
    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Posterior:
    """A Bayesian reading of a relative lift under a stated normal prior: never in one sentence with the frequentist one.

    ``lift`` is the posterior's central interval. ``chance_to_beat``: probability that the arm is better than control.
    ``expected_loss``: what choosing the arm loses on average, 0 where it is better, relative to control (0.01 is 1%).
    """

    metric: str
    contrast: str
    prior_mean: float
    prior_sd: float
    lift: Span
    level: float
    chance_to_beat: float
    expected_loss: float
    sentence: str


@dataclass(frozen=True, slots=True)
class Diluted:
    """A triggered effect carried back to everyone assigned: ``share`` of them triggered."""

    metric: str
    contrast: str
    unit: str
    share: Span
    difference: Span
    sentence: str


@dataclass(frozen=True, slots=True)
class Look:
    """One reading of this experiment in the ledger: when, by whom, over data up to when, with how many units."""

    at: str
    by: str
    as_of: str | None
    units: int


@dataclass(frozen=True, slots=True)
class Peeking:
    """The registered stop against what happened. ``error``: the chance of a false finding at this many looks, were the
    interval a fixed one (its nominal error is ``alpha``). ``information``: the share of the planned units that is in, or None."""

    rule: str
    looks: tuple[Look, ...]
    error: float
    alpha: float
    information: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Capping:
    """A heavy tail: what a cap would do to one metric's difference. ``share`` of its variance comes from the largest unit."""

    metric: str
    contrast: str
    unit: str
    share: float
    cap: float
    above: int
    plain: Span
    capped: Span
    sentence: str


@dataclass(frozen=True, slots=True)
class Stitching:
    """What identity did to the rows that a result reads: ids of several kinds taken together as one unit.

    ``ids`` joined into ``units``; ``largest`` are the largest (unit, its ids); ``shared`` aliases are claimed by several people
    (alias, how many); ``blocked`` values and ``too_large`` components join nothing (value or unit, pairs or ids). ``before`` and
    ``after`` count what the result reads, without and with stitching: units, and paths over several devices.
    """

    entity: str
    source: str
    pairs: int
    ids: int
    units: int
    largest: tuple[tuple[str, int], ...]
    shared: tuple[tuple[str, int], ...]
    shared_count: int
    blocked: tuple[tuple[str, int], ...]
    too_large: tuple[tuple[str, int], ...]
    before: Mapping[str, int]
    after: Mapping[str, int]
    sentence: str


@dataclass(frozen=True, slots=True)
class FlowEdge:
    """``n`` journeys went from ``source`` (their ``step``-th stop) to ``target``."""

    step: int
    source: str
    target: str
    n: int


@dataclass(frozen=True, slots=True)
class Flow:
    """Where journeys went, stop by stop. ``hidden``: journeys in edges of fewer units than may be shown."""

    edges: tuple[FlowEdge, ...]
    journeys: int
    hidden: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Reconciled:
    """One touchpoint's credit held against what was shown to be incremental, in ``Reconciliation.unit``.

    ``by``: "holdout" (its share of what the holdout shows), "own experiment" (its own test), "remainder" (its share of what is left
    when the tested ones are taken out), or "not personalised" (both arms met it alike: nothing of it is tested). ``ratio`` is
    incremental over attributed, None where the attributed is not clear of zero. ``conflict`` names a test that its credit contradicts.
    """

    touchpoint: str
    by: str
    attributed: Span
    incremental: Span | None
    ratio: Span | None
    conflict: str


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What a model credits to the treated in the experiment's scope, and what the experiment shows they brought more.

    ``units`` are the treated; ``attributed`` is credit of personalised touches for their conversions after exposure;
    ``incremental`` is the experiment's difference times the treated. ``anyway`` is 1 - ratio: the share of the credit that
    is more than the experiment shows; not what would have come without treatment, unless all it brought more lies in credited
    conversions. ``rule`` says how the total was spread.
    """

    experiment: str
    contrast: str
    model: str
    metric: str
    unit: str
    units: int
    attributed: Span
    incremental: Span
    ratio: Span | None
    anyway: Span | None
    rows: tuple[Reconciled, ...]
    rule: str
    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Closer:
    """All the closer looks of a Result; each is empty where it was not asked for or could not be had."""

    precision: tuple[Precision, ...] = ()
    segments: tuple[Segments, ...] = ()
    over_time: tuple[OverTime, ...] = ()
    cannibalisation: tuple[Displacement, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    bayes: tuple[Posterior, ...] = ()
    diluted: tuple[Diluted, ...] = ()
    capping: tuple[Capping, ...] = ()
    peeking: Peeking | None = None
    stitching: tuple[Stitching, ...] = ()
    flow: Flow | None = None
    reconciliation: tuple[Reconciliation, ...] = ()
    overturn: tuple[str, ...] = ()
    """Sentences: what would overturn the finding."""

    def to_dict(self) -> dict[str, Any]:
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def _plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, all the way down."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return value


@dataclass(frozen=True, slots=True)
class Result:
    """``finding`` is the sentence to lead with; ``verdict`` is what the primary metric's interval shows.

    ``design`` is how causality is claimed ("randomised", or "descriptive" where it is not); ``grade`` how the effect is known (A to
    E; D for credit that was attributed, "" for a description that credits nothing); ``left_out`` counts
    rows and units that did not enter, by reason; ``refusals`` are the metrics without a number.
    ``correlations`` holds, for pairs of (metric, contrast) differences estimated on the same units, the correlation of
    their sampling errors, so that money can be drawn jointly.
    """

    name: str
    question: str
    method: str
    design: str
    verdict: Verdict
    grade: str
    finding: str
    estimates: tuple[Estimate, ...]
    arms: tuple[Arm, ...]
    readings: tuple[MetricReading, ...]
    checks: tuple[Check, ...]
    assumptions: tuple[Assumption, ...]
    provenance: Provenance = field(default_factory=Provenance)
    left_out: Mapping[str, int] = field(default_factory=dict)
    owner: str | None = None
    refusals: tuple[Refusal, ...] = ()
    correlations: Mapping[tuple[tuple[str, str], tuple[str, str]], float] = field(default_factory=dict)
    closer: Closer = field(default_factory=Closer)

    def estimate(self, metric: str, contrast: str | None = None, estimand: str = "difference in means") -> Estimate:
        """The one estimate asked for. Raises KeyError when none or several match."""
        found = [
            e
            for e in self.estimates
            if e.metric == metric and e.estimand == estimand and contrast in (None, e.contrast) and e.segment is None
        ]
        if len(found) != 1:
            raise KeyError(f"{len(found)} estimates of '{metric}' ({estimand}) in {self.name}")
        return found[0]

    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "fail")

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "method": self.method,
            "question": self.question,
            "owner": self.owner,
            "design": self.design,
            "verdict": self.verdict,
            "grade": self.grade,
            "finding": self.finding,
            "estimates": [e.to_dict() for e in self.estimates],
            "arms": [a.to_dict() for a in self.arms],
            "readings": [r.to_dict() for r in self.readings],
            "checks": [c.to_dict() for c in self.checks],
            "assumptions": [a.text for a in self.assumptions],
            "assumption_tests": {a.text: a.tested_by for a in self.assumptions if a.tested_by},
            "left_out": dict(self.left_out),
            "refusals": [r.to_dict() for r in self.refusals],
            "closer": self.closer.to_dict(),
            "provenance": self.provenance.to_dict(),
        }

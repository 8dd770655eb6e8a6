"""Before an experiment: how many units, how many weeks, and which smallest effect, from what was recorded before it.

History is read as an experiment with one arm: units are pretended to be exposed at their first row. The figures come from
its Moments and from how many new units came a day; the tests planned for are those that `ExperimentMethod` will do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np

from payoff import formats
from payoff.errors import DataError, UsageError
from payoff.methods.experiment import ExperimentMethod
from payoff.methods.experiment.design import ExperimentDesign, MetricUse
from payoff.methods.experiment.reading import adjusted_levels, plain_level, scale_of, stratified_levels
from payoff.methods.experiment.words import remedy
from payoff.result import Refusal
from payoff.spec import nouns
from payoff.stats import compare, quantile
from payoff.stats.moments import Moments
from payoff.stats.planning import (
    Baseline,
    Question,
    arrived,
    days_until,
    even_boundaries,
    observations,
    power_at,
    rate,
    sequential_power,
    smallest,
)
from payoff.stats.sequential import TIGHTEST_AT
from payoff.warehouse.history import Arrivals, Candidate, Pretended
from payoff.warehouse.measures import is_ratio, measures_of, unit_of
from payoff.warehouse.needs import ArmsData, ArmsNeed, MetricMoments
from payoff.warehouse.sources import from_us

HISTORY = "28d"
ARM = "history"
WEEKS = 12
_MOST_WEEKS = 520
_DAY = timedelta(days=1)
_DAY_US = 86_400_000_000
_FEW = 100


# ---------------------------------------------------------------- what is asked


@dataclass(frozen=True, slots=True)
class Ask:
    """What to plan for. Of ``mde`` (in the primary's unit) and ``lift`` (0.05 is 5%) at most one; sizes, without a sign."""

    mde: float | None
    lift: float | None
    weeks: int | None
    power: float
    history: timedelta
    source: str | None = None

    @classmethod
    def of(
        cls,
        design: ExperimentDesign,
        *,
        mde: float | None = None,
        lift: float | str | None = None,
        weeks: int | None = None,
        power: float | None = None,
        history: timedelta | str | None = None,
        source: str | None = None,
    ) -> Ask:
        """What was given, else the experiment's ``stop``, else the defaults. Raises UsageError for what cannot be."""
        stop = design.experiment.stop
        if mde is not None and lift is not None:
            raise UsageError("mde and lift are two ways to say the smallest effect; give one of them")
        if mde is not None and not (math.isfinite(mde) and mde > 0):
            raise UsageError(
                f"the smallest effect to find (mde) must be above zero, not {mde:g}; give its size, without a sign"
            )
        relative = None if lift is None else _lift(lift)
        if weeks is not None and not (weeks == int(weeks) and 1 <= weeks <= _MOST_WEEKS):
            raise UsageError(f"weeks is a whole number from 1 to {_MOST_WEEKS}, not {weeks}")
        wanted = power if power is not None else stop.power if stop is not None else 0.8
        if not design.alpha < wanted < 1:
            raise UsageError(
                f"power lies between {design.alpha:g} (chance alone) and 1, such as 0.8; it cannot be {wanted:g}"
            )
        if mde is None and relative is None and stop is not None:
            mde = stop.mde
        return cls(mde, relative, weeks, wanted, _span(HISTORY if history is None else history), source)


def _lift(raw: float | str) -> float:
    text = str(raw).strip()
    match = re.fullmatch(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e-?[0-9]+)?)\s*(%?)", text)
    if match is None:
        raise UsageError(f"a lift is a percentage or a share, such as 5% or 0.05, which {nouns.shown(text)} is not")
    value = float(match[1]) / (100 if match[2] else 1)
    if value <= 0:
        raise UsageError(f"the lift to find must be above zero, not {text}; give its size, without a sign")
    if value >= 1 and not match[2]:
        raise UsageError(
            f"a lift of {text} would be +{value:.0%}; write {text}% or {value / 100:g}, or {value:.0%} if you mean it"
        )
    return value


def _span(raw: timedelta | str) -> timedelta:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([hdw])", raw.strip()) if isinstance(raw, str) else None
    if isinstance(raw, timedelta):
        span = raw
    elif match is not None and len(match[1]) < 10:
        span = float(match[1]) * {"h": _DAY / 24, "d": _DAY, "w": 7 * _DAY}[match[2]]
    else:
        raise UsageError(f"history is a duration such as 28d or 8w, which {nouns.shown(raw)} is not")
    if not _DAY <= span <= 3653 * _DAY:
        raise UsageError(
            f"history is from one day to ten years long, not {nouns.format_duration(span) if span else raw}"
        )
    return span


# ---------------------------------------------------------------- what is read


def candidates(design: ExperimentDesign, measured: Sequence[str], ask: Ask) -> list[Candidate]:
    """Where units may have been seen before, best first. ``measured`` are other sources in which the units are known.

    The assignment's own source comes first: its population is the one that will be exposed. Then the primary metric's; but a
    source of which it counts every row comes last, behind those of other metrics: whoever is seen there has counted already.
    """
    assignment = design.experiment.assignment
    where = assignment.where if assignment.source is not None else None
    if ask.source is not None:
        return [Candidate(ask.source, where if ask.source == design.source else None)]
    found = [Candidate(design.source, where)]
    if where is not None:
        found.append(Candidate(design.source, rank=1))
    read = {m.source for u in design.primaries for m in measures_of(u.metric, None, None)}
    counting = {s for s in measured if any(_counts_itself(u, s) for u in design.primaries)}
    others = (s for s in measured if s != design.source)
    return [*found, *(Candidate(s, rank=4 if s in counting else 2 if s in read else 3) for s in others)]


def _counts_itself(use: MetricUse, source: str) -> bool:
    """Whether being seen in ``source`` is already an event of the metric, so that nobody seen there has none."""
    metric = use.metric
    if isinstance(metric, nouns.ConversionMetric):
        return metric.to.source == source and metric.to.where is None and metric.after is None
    if isinstance(metric, nouns.CountMetric | nouns.SumMetric):
        return metric.from_ == source and metric.where is None
    return False


def needs_of(design: ExperimentDesign) -> ArmsNeed:
    """What the experiment would read of its metrics, before it is said of whom."""
    kept = {"over_time": None, "cumulative": None, "cannibalisation": None, "segments": (), "interactions": ()}
    plain = replace(design, experiment=design.experiment.model_copy(update=kept), crosses=(), beside=())
    adjust_by = design.experiment.adjust
    stratum = None if adjust_by is None else adjust_by.post_stratify
    wanted = {*(() if adjust_by is None else adjust_by.attributes), *(() if stratum is None else (stratum,))}
    named = {n: a for n, a in plain.attributes.items() if n in wanted or (a.metric is not None and a.source == "")}
    need = ExperimentMethod().needs(replace(plain, attributes=named))
    return replace(need, variant=f"'{ARM}'", where=None, starts_us=None, ends_us=None, arms=())


def history_needs(design: ExperimentDesign, found: Pretended) -> tuple[list[ArmsNeed], tuple[str, ...]]:
    """The reads of the pretended experiment: one, and with clusters another of the same units as if there were none.

    Attributes that only the assignment's own source records are left out where history is another one; the notes say so.
    """
    need = replace(
        needs_of(design), source=found.source, where=found.where, starts_us=found.starts_us, ends_us=found.ends_us
    )
    notes: tuple[str, ...] = ()
    if found.source != design.source:
        gone = {a.name for a in need.attributes if a.measure is None and a.source == design.source}
        if gone:
            notes = (
                f"Not adjusted for {', '.join(sorted(gone))}: only the assignment records it, and history is '{found.source}'.",
            )
            need = replace(
                need,
                attributes=tuple(a for a in need.attributes if a.name not in gone),
                covariates=tuple(c for c in need.covariates if c not in gone),
                segments=tuple(s for s in need.segments if s not in gone),
            )
    if need.cluster is None:
        return [need], notes
    unclustered = tuple(replace(m, before=(), covariates=False, segments=False) for m in need.metrics)
    by_unit = replace(
        need,
        experiment=unit_read(need.experiment),
        cluster=None,
        metrics=unclustered,
        attributes=(),
        covariates=(),
        segments=(),
    )
    return [need, by_unit], notes


def unit_read(experiment: str) -> str:
    return f"{experiment} by unit"


def question(stop: nouns.Stop | None, alpha: float, questions: int = 1, sides: compare.Sides = 2) -> Question:
    """How one of several questions will be decided under the stop that is registered."""
    plain = Question(alpha / questions, sides, design_alpha=alpha)
    if stop is None or stop.rule == "fixed":
        return plain
    if stop.rule == "always_valid":
        return replace(plain, rule=stop.rule, tightest_at=stop.tightest_at or stop.n or TIGHTEST_AT)
    return replace(plain, rule=stop.rule, looks=stop.looks or 2, spending=stop.spending)


# ---------------------------------------------------------------- the answer


@dataclass(frozen=True, slots=True)
class Step:
    """What can be found with ``units`` units, those of ``week`` weeks of exposure (None where weeks are not known).

    ``mde`` is the size of the smallest effect found (of a guardrail: the smallest margin beyond which harm is excluded),
    ``relative`` the same over the baseline; None where there is none.
    """

    week: int | None
    units: int
    mde: float | None
    relative: float | None
    extrapolated: bool = False


@dataclass(frozen=True, slots=True)
class Size:
    """What one effect takes: ``units`` over all arms, by ``arms``; the ``days`` of exposure and the weeks to an answer.

    ``weeks`` counts exposure and then the metric's window, and is None where ``no_weeks`` says why. ``plain_units`` is
    without adjustment, ``fixed_units`` with one planned look in place of the stopping rule.
    """

    effect: float
    relative: float | None
    units: int
    arms: Mapping[str, int]
    clusters: int | None
    days: float | None
    weeks: float | None
    extrapolated: bool
    no_weeks: str
    plain_units: int
    fixed_units: int


@dataclass(frozen=True, slots=True)
class Clusters:
    """``design_effect`` is how many times as many units it takes because whole clusters are assigned."""

    clusters: int
    mean_size: float
    icc: float | None
    design_effect: float


@dataclass(frozen=True, slots=True)
class MetricPlan:
    """One metric before the experiment. ``question`` is "difference" or "non-inferiority" (harm beyond ``margin`` excluded).

    ``value`` with ``low`` and ``high`` is the baseline, an estimate from ``n`` units; ``variance`` that of a unit (of a
    cluster, where those are assigned). ``r2`` is the share of it that ``covariates`` explain. ``asked`` is what the effect
    asked for takes; ``planned`` what the declared number of units finds, with the chance ``planned_power`` of the effect.
    """

    metric: str
    role: str
    direction: str
    unit: str
    question: str
    margin: float | None
    alpha: float
    questions: int
    window_days: float | None
    value: float
    low: float
    high: float
    n: int
    variance: float
    r2: float
    covariates: tuple[str, ...]
    clusters: Clusters | None
    asked: Size | None
    planned: Step | None
    planned_power: float | None
    steps: tuple[Step, ...]
    sentence: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What `payoff power` says; the first metric is the one it is sized for. ``days`` are the whole days in which arrivals were recorded, ``per_week`` the last week's."""

    name: str
    entity: str
    sentence: str
    arms: Mapping[str, float]
    rule: str
    alpha: float
    power: float
    source: str
    starts: str | None
    ends: str | None
    units: int
    days: int
    per_week: float | None
    primaries: tuple[str, ...]
    metrics: tuple[MetricPlan, ...]
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]
    sql: tuple[tuple[str, str], ...] = ()

    @property
    def exit_code(self) -> int:
        """1 where a metric that decides cannot be planned for."""
        return 1 if any(name in self.primaries for name in (r.name.rpartition(".")[2] for r in self.refusals)) else 0

    def to_dict(self) -> dict[str, Any]:
        out = asdict(self)
        out["sql"] = [{"step": step, "text": text} for step, text in self.sql]
        return out

    def __str__(self) -> str:
        said = [self.sentence, *(m.sentence for m in self.metrics if m.sentence != self.sentence)]
        said += [f"{r.name}: {r.reason}; {r.remedy}." for r in self.refusals]
        return "\n".join([*said, *self.notes])


def plan(
    design: ExperimentDesign,
    ask: Ask,
    found: Pretended,
    data: ArmsData,
    by_unit: ArmsData | None = None,
    arrivals: Arrivals | None = None,
    notes: Sequence[str] = (),
    sql: Sequence[tuple[str, str]] = (),
) -> Plan:
    """From history's Moments and arrivals to sizes. ``by_unit`` is the read without clusters, where there are clusters.

    Raises DataError where no metric can be planned for, and UsageError where the effect asked for cannot be.
    """
    return _Planner(design, ask, found, data, by_unit, arrivals).plan(tuple(notes), tuple(sql))


class _Planner:
    def __init__(
        self,
        design: ExperimentDesign,
        ask: Ask,
        found: Pretended,
        data: ArmsData,
        by_unit: ArmsData | None,
        arrivals: Arrivals | None,
    ) -> None:
        self.design, self.ask, self.found, self.data, self.by_unit = design, ask, found, data, by_unit
        self.arrivals = arrivals
        experiment = design.experiment
        self.stop = experiment.stop
        control = experiment.assignment.control_arm
        split = experiment.assignment.split or {control: 1.0, "treatment": 1.0}
        whole = sum(split.values())
        self.arms = {control: split.get(control, 0.0) / whole} | {
            arm: share / whole for arm, share in split.items() if arm != control
        }
        if not self.arms[control] > 0 or len(self.arms) < 2:
            raise UsageError(f"experiments.{design.name}: the split has no control '{control}' beside a treatment")
        treated = min(share for arm, share in self.arms.items() if arm != control)
        self.shares = (treated, self.arms[control])  # the smallest treatment arm is the one that lasts longest
        self.clustered = experiment.cluster is not None
        self.exposed = data.exposed.get(ARM, 0)
        self.clusters = data.cluster.clusters.get(ARM, 0) if data.cluster is not None else 0
        seen = self.exposed + data.untriggered.get(ARM, 0)
        self.triggered = self.exposed / seen if seen else 1.0
        self.noun = f"{formats.human(design.entity)}{'-period' if experiment.period is not None else ''}s"
        deciding = [u for u in design.metrics if u.part == "primary" and u.metric.role != "vanity"]
        self.questions = len(deciding) * (len(self.arms) - 1) if deciding else 1
        others = [u for u in design.metrics if u.part != "guardrail"]
        self.first = (*deciding, *others, *design.metrics)[0]  # an effect is asked of what is to move
        self.deciding = {u.name for u in deciding} or {self.first.name}

    def plan(self, notes: tuple[str, ...], sql: tuple[tuple[str, str], ...]) -> Plan:
        design = self.design
        if self.exposed < max(2, design.min_cell):
            few = "no unit" if self.exposed == 0 else f"only {self.exposed:,} units"
            raise DataError(
                f"there is no history to plan from: {few} with a closed window; go back further (--history 12w) or name"
                " another source (--source)",
                source=self.found.source,
            )
        first = self.first
        metrics: list[MetricPlan] = []
        refusals: list[Refusal] = []
        for use in [first, *(u for u in design.metrics if u.name != first.name)]:
            try:
                metrics.append(self._metric(use, use.name == first.name))
            except ValueError as error:
                refusals.append(Refusal(f"experiments.{design.name}.{use.name}", str(error), self._remedy(use)))
        if not metrics:
            raise DataError(
                "; ".join(f"{r.name.rpartition('.')[2]}: {r.reason} ({r.remedy})" for r in refusals),
                source=self.found.source,
            )
        headline = (
            metrics[0].sentence
            if metrics[0].metric == first.name
            else (
                f"{formats.capital(formats.human(first.name))} cannot be planned for: {refusals[0].reason}; {refusals[0].remedy}."
            )
        )
        units = self.arrivals.units if self.arrivals is not None else ()
        return Plan(
            name=design.name,
            entity=design.entity,
            sentence=headline,
            arms=self.arms,
            rule=self.stop.rule if self.stop is not None else "fixed",
            alpha=design.alpha,
            power=self.ask.power,
            source=self.found.source,
            starts=None if self.found.starts_us is None else from_us(self.found.starts_us),
            ends=None if self.found.ends_us is None else from_us(self.found.ends_us),
            units=self.exposed,
            days=len(units),
            per_week=7 * rate(units) if units else None,
            primaries=tuple(sorted(self.deciding)),
            metrics=tuple(metrics),
            refusals=tuple(refusals),
            notes=(*self._notes(), *self.found.notes, *notes),
            sql=sql,
        )

    # ---------------------------------------------------------------- one metric

    def _metric(self, use: MetricUse, first: bool) -> MetricPlan:
        """Raises ValueError where the metric's history has nothing to plan with."""
        design = self.design
        level, numbers = self._level(use)
        r2, covariates, notes = self._adjustment(use, numbers)
        binary = use.metric.kind in ("conversion", "retention") and 0 < level.value < 1
        plain = Baseline(level.value, level.unit_variance, use.sign, binary)
        baseline = replace(plain, variance=level.unit_variance * (1 - r2))
        guardrail = use.part == "guardrail" and use.metric.margin is not None
        questions = self.questions if use.name in self.deciding else 1
        q = question(self.stop, design.alpha, questions, 1 if guardrail else 2)
        assigned = self._assigned_per_observation(use, level, numbers)
        margin = use.metric.margin if guardrail else None
        effect = margin if margin is not None else self._effect(use, level, baseline, first)
        asked = None
        if effect is not None:
            asked = self._size(use, effect, baseline, plain, q, assigned)
        steps = self._steps(use, baseline, q, assigned)
        planned, chance = None, None
        if self.stop is not None and self.stop.n is not None:
            planned = self._step(None, self.stop.n, baseline, q, assigned)
            if effect is not None:
                chance = self._chance(effect, self.stop.n / assigned, baseline, q)
        n = numbers.quantiles[ARM].n if ARM in numbers.quantiles else numbers.units.get(ARM, level.n)
        low, high = level.interval(design.level)
        if use.part == "guardrail" and use.metric.margin is None:
            notes.append("no margin is declared, so it is planned as a difference to be found and cannot be shown safe")
        if _counts_itself(use, self.found.source):
            notes.append(
                f"every row of '{self.found.source}' counts for it, and units are seen by such a row, so its level is that of"
                " units that have one already; name a source in which units are seen whatever they do (--source)"
            )
        shape = self._clusters(use, level)
        if shape is not None and shape.design_effect < 1:
            notes.append(
                f"its design effect of {shape.design_effect:.3g} is below 1, as by chance where clusters matter little; do not"
                " count on it"
            )
        if n < _FEW:
            notes.append(f"its baseline and variance are estimates from {n} units, too few to plan well")
        drafted = MetricPlan(
            metric=use.name,
            role=use.role,
            direction=use.metric.direction,
            unit=unit_of(use.metric, design.currency, design.entity),
            question="non-inferiority" if guardrail else "difference",
            margin=margin,
            alpha=q.alpha,
            questions=questions,
            window_days=None if use.window is None else use.window / _DAY,
            value=level.value,
            low=low,
            high=high,
            n=n,
            variance=level.unit_variance,
            r2=r2,
            covariates=covariates,
            clusters=shape,
            asked=asked,
            planned=planned,
            planned_power=chance,
            steps=steps,
            sentence="",
            notes=tuple(notes),
        )
        return replace(drafted, sentence=self._sentence(drafted, use))

    def _level(self, use: MetricUse) -> tuple[compare.Level, MetricMoments]:
        numbers = self.data.metrics[use.name]
        if use.metric.kind == "quantile":
            if ARM not in numbers.quantiles:
                raise ValueError("no row has a value")
            q = numbers.quantiles[ARM]
            n = q.n if not self.clustered else self.clusters
            return quantile.level(q.value, q.low, q.high, n, self.design.level), numbers
        if ARM not in numbers.moments or numbers.moments[ARM].n == 0:
            raise ValueError("no unit has a value")
        return plain_level(self.design, use, numbers.moments[ARM]), numbers

    def _adjustment(self, use: MetricUse, numbers: MetricMoments) -> tuple[float, tuple[str, ...], list[str]]:
        """(the share of variance explained, by what, notes): history taken twice, as two arms that do not differ."""
        wanted = self.design.experiment.adjust
        if wanted is None or use.metric.kind == "quantile":
            return 0.0, (), []
        try:
            if wanted.post_stratify is not None:
                classes = numbers.segments.get(wanted.post_stratify, {})
                if not classes:
                    return 0.0, (), []
                strata = {c: {"a": arms[ARM], "b": arms[ARM]} for c, arms in classes.items() if ARM in arms}
                whole = {"a": numbers.moments[ARM], "b": numbers.moments[ARM]}
                r2 = stratified_levels(self.design, use, whole, strata).r2["a"]
                return max(0.0, r2), (wanted.post_stratify,), []
            if not numbers.covariates:
                return 0.0, (), []
            m = numbers.moments[ARM]
            found = adjusted_levels(self.design, use, {"a": m, "b": m})
        except ValueError as error:
            return 0.0, (), [f"it is planned without adjustment: {error}"]
        p = len(found.used)
        r2 = 1 - (1 - found.r2["a"]) * (m.n - 1) / (m.n - 1 - p)  # chance explains p / (n - 1) of any variance
        return max(0.0, r2), tuple(numbers.covariates[j] for j in found.used), []

    def _assigned_per_observation(self, use: MetricUse, level: compare.Level, numbers: MetricMoments) -> float:
        """Units (clusters) assigned for each one with a value: some never trigger, some have no value."""
        if self.clustered:
            return self._each / (level.n / self.clusters)
        valued = numbers.quantiles[ARM].n if ARM in numbers.quantiles else level.n
        return 1.0 / (valued / numbers.eligible[ARM] * self.triggered)

    @property
    def _each(self) -> float:
        """Units assigned with each of the things that arrivals count: units, or clusters."""
        return self.exposed / self.clusters / self.triggered if self.clustered else 1.0

    def _clusters(self, use: MetricUse, level: compare.Level) -> Clusters | None:
        if not self.clustered or self.by_unit is None:
            return None
        alone = self.by_unit.metrics[use.name]
        if use.metric.kind == "quantile":
            q = alone.quantiles[ARM]
            unit = quantile.level(q.value, q.low, q.high, q.n, self.design.level)
            return Clusters(self.clusters, self.exposed / self.clusters, None, level.variance / unit.variance)
        m = alone.moments[ARM].take([0, 1] if is_ratio(use.metric) else [0])
        unit = compare.ratio_level(m, scale_of(use)) if is_ratio(use.metric) else compare.mean_level(m, scale_of(use))
        return Clusters(
            self.clusters, self.exposed / self.clusters, self._icc(use, unit), level.variance / unit.variance
        )

    def _icc(self, use: MetricUse, unit: compare.Level) -> float | None:
        """Of the unit's value (of a ratio: linearised); None where clusters are of one unit each."""
        m = self.data.metrics[use.name].moments[ARM]
        w = np.zeros((2, m.k))
        size = 2 if is_ratio(use.metric) else 1
        w[0, : len(unit.weights)], w[1, size] = unit.weights, 1.0
        mean = w @ m.mean
        totals = Moments(m.n, mean, w @ m.cov @ w.T)
        try:
            return compare.icc(totals, unit.unit_variance)
        except ValueError:
            return None

    # ---------------------------------------------------------------- effects, sizes, weeks

    def _effect(self, use: MetricUse, level: compare.Level, baseline: Baseline, first: bool) -> float | None:
        if first and self.ask.mde is not None:
            self._possible(use, self.ask.mde, baseline)
            return self.ask.mde
        if self.ask.lift is None or use.part == "guardrail":
            return None
        if level.interval(self.design.level)[0] <= 0:
            if first:
                raise UsageError(
                    f"{formats.human(use.name)} was {level.value:.4g} before, which is not clearly above zero, so {self.ask.lift:.3g}"
                    " of it says nothing; give the smallest effect in the metric's own unit (--mde)"
                )
            return None
        effect = self.ask.lift * level.value
        if first:
            self._possible(use, effect, baseline)
        return effect if effect < baseline.room else None

    def _possible(self, use: MetricUse, effect: float, baseline: Baseline) -> None:
        try:
            baseline.moved(effect)
            observations(
                effect, replace(baseline, binary=False), self.shares, Question(self.design.alpha), self.ask.power
            )
        except ValueError as error:
            raise UsageError(f"{formats.human(use.name)}: {error}; ask for another effect") from None

    def _size(
        self, use: MetricUse, effect: float, baseline: Baseline, plain: Baseline, q: Question, assigned: float
    ) -> Size:
        def by_arm(b: Baseline, t: Question) -> dict[str, int]:
            total = observations(effect, b, self.shares, t, self.ask.power) * assigned
            # the root's own error must not round a whole number up
            return {arm: math.ceil(total * share * (1 - 1e-12)) for arm, share in self.arms.items()}

        arms = by_arm(baseline, q)
        units = sum(arms.values())
        clusters = math.ceil(units / self._each) if self.clustered else None
        days, extrapolated = self._days(units)
        window = use.window or timedelta(0)
        return Size(
            effect=effect,
            relative=effect / baseline.value if baseline.value > 0 else None,
            units=units,
            arms=arms,
            clusters=clusters,
            days=days,
            weeks=None if days is None else (days + window / _DAY) / 7,
            extrapolated=extrapolated,
            no_weeks=self._no_weeks(days),
            plain_units=sum(by_arm(plain, q).values()),
            fixed_units=sum(by_arm(baseline, replace(q, rule="fixed")).values()),
        )

    def _counts(self) -> tuple[int, ...]:
        """What is assigned, by the end of each recorded day."""
        if self.arrivals is None:
            return ()
        return self.arrivals.clusters if self.clustered else self.arrivals.units

    def _days(self, units: int) -> tuple[float | None, bool]:
        """The days of exposure until ``units`` have come, and whether that is beyond what was recorded."""
        return days_until(self._counts(), units / self._each)

    def _no_weeks(self, days: float | None) -> str:
        if days is not None:
            return ""
        if self.arrivals is None:
            return f"'{self.found.source}' has no time, so it does not tell how many units a week brings"
        return "no new unit came in the last week recorded, so that many would never come"

    def _steps(self, use: MetricUse, baseline: Baseline, q: Question, assigned: float) -> tuple[Step, ...]:
        counts = self._counts()
        if not counts:
            return (self._step(None, self.exposed, baseline, q, assigned),)
        out = []
        for week in range(1, max(WEEKS, self.ask.weeks or 0) + 1):
            came, extrapolated = arrived(counts, 7 * week)
            step = self._step(week, math.floor(came * self._each), baseline, q, assigned)
            out.append(replace(step, extrapolated=extrapolated))
        return tuple(out)

    def _step(self, week: int | None, units: int, baseline: Baseline, q: Question, assigned: float) -> Step:
        mde = smallest(units / assigned, baseline, self.shares, q, self.ask.power)
        relative = None if mde is None or baseline.value <= 0 else mde / baseline.value
        return Step(week, units, mde, relative)

    def _chance(self, effect: float, total: float, baseline: Baseline, q: Question) -> float | None:
        """The chance that the declared number of units finds ``effect``; None where it is too few for two an arm."""
        if total * min(self.shares) < 2:
            return None
        if q.rule != "group_sequential" or q.sides == 1:
            return power_at(effect, total, baseline, self.shares, q, self.ask.power)
        se = math.sqrt(baseline.moved(effect) / (total * self.shares[0]) + baseline.variance / (total * self.shares[1]))
        return sequential_power(effect / se, even_boundaries(q.looks, q.alpha, q.spending))

    # ---------------------------------------------------------------- words

    def _remedy(self, use: MetricUse) -> str:
        if _counts_itself(use, self.found.source):
            return "name a source in which units are seen whatever they do (--source)"
        return remedy(self.exposed)

    def _sentence(self, m: MetricPlan, use: MetricUse) -> str:
        name, power = formats.human(m.metric), formats.level(self.ask.power)
        unit = formats.unit(m.unit)
        moves = "rise" if m.direction == "up" else "fall"
        if m.asked is None:
            return self._reachable(m, unit, name, moves, power)
        size = formats.size(formats.rounded(m.asked.effect, unit, change=True))
        if m.question == "non-inferiority":
            what = f"To exclude harm beyond {size} in {name}, where there is none, with {power} power"
        else:
            relative = "" if m.asked.relative is None else f" ({formats.rounded(m.asked.relative, formats.RELATIVE)})"
            what = f"To find a {moves} of {size}{relative} in {name} with {power} power"
        said = f"{what} takes {_about(m.asked.units)} {self.noun}"
        if m.asked.clusters is not None:
            said += f" in {_about(m.asked.clusters)} {formats.human(self.design.experiment.cluster or '')}s"
        said += f", {_long(m.asked.weeks)}" if m.asked.weeks is not None else ""
        said += " at the rate of the last week recorded" if m.asked.extrapolated and m.asked.weeks is not None else ""
        costs = m.asked.units / m.asked.fixed_units - 1
        if m.r2 >= 0.005:
            said += f"; adjusting {self._adjusting(m, use)} saves {_share(1 - m.asked.units / m.asked.plain_units)}"
        if self.stop is not None and self.stop.rule != "fixed" and costs >= 0.005:
            said += f"; being free to look {'at any time' if self.stop.rule == 'always_valid' else 'earlier'} costs {costs:.0%} more"
        if m.asked.weeks is None:
            said += f"; in how many weeks is not known, because {m.asked.no_weeks}"
        within = f" {self._reachable(m, unit, name, moves, power)}" if self.ask.weeks is not None else ""
        return f"{said}.{within}"

    def _reachable(self, m: MetricPlan, unit: formats.Unit, name: str, moves: str, power: str) -> str:
        """Where no effect was asked for: what a number of weeks, or of units, finds."""
        step = m.planned
        if self.ask.weeks is not None or step is None:
            wanted = self.ask.weeks or 4
            step = next((s for s in m.steps if s.week == wanted), m.steps[-1])
        weeks = f", those of {step.week} {'week' if step.week == 1 else 'weeks'}," if step.week is not None else ""
        who = f"{_about(step.units)} {self.noun}{weeks}"
        if step.mde is None:
            return f"{who} are too few to find any {moves} in {name} with {power} power."
        size = formats.size(formats.rounded(step.mde, unit, change=True))
        relative = "" if step.relative is None else f" ({formats.rounded(step.relative, formats.RELATIVE)})"
        what = (
            f"exclude harm beyond {size}" if m.question == "non-inferiority" else f"find a {moves} of {size}{relative}"
        )
        return f"{who} are enough to {what} in {name} with {power} power, and nothing smaller."

    def _adjusting(self, m: MetricPlan, use: MetricUse) -> str:
        wanted = self.design.experiment.adjust
        if use.before is not None and wanted is not None and not (wanted.attributes or wanted.metrics):
            return f"for the {use.before / _DAY:.4g} days before"
        return f"for {', '.join(m.covariates[:3])}" + (
            f" and {len(m.covariates) - 3} more" if len(m.covariates) > 3 else ""
        )

    def _notes(self) -> list[str]:
        design, experiment, stop = self.design, self.design.experiment, self.stop
        notes = [
            f"Baselines and variances are estimates from {self.exposed:,} {self.noun} of '{self.found.source}'"
            + (
                ""
                if self.found.starts_us is None or self.found.ends_us is None
                else f", first seen from {from_us(self.found.starts_us)[:10]} to {from_us(self.found.ends_us)[:10]}"
            )
            + "; what is needed is as uncertain as they are, and as far as the weeks to come are like those."
        ]
        if self.arrivals is None:
            notes.append(f"There are no weeks: {self._no_weeks(None)}.")
        elif experiment.cluster is not None:
            notes.append(
                f"{formats.capital(formats.human(experiment.cluster))}s are taken to have as many"
                f" {formats.human(design.entity)}s each as in history."
            )
        if self.arrivals is not None and len(self.arrivals.units) < 7:
            notes.append(f"Weeks rest on the rate of {len(self.arrivals.units)} days: less than one week was recorded.")
        notes += [
            f"Not adjusted for {p.name}: {p.refused}." for p in self.data.attributes.values() if p.refused is not None
        ]
        if experiment.assignment.split is None:
            notes.append("No split is declared: two arms of equal size are assumed.")
        elif len(self.arms) > 2:
            notes.append("Sizes are those at which the smallest arm against control has the power asked for.")
        if self.questions > 1:
            metrics = f"{len(self.deciding)} primary metric{'s' if len(self.deciding) > 1 else ''}"
            notes.append(
                f"There are {self.questions} primary questions ({metrics}, {len(self.arms) - 1} against control): each is planned at"
                f" {design.alpha / self.questions:.3g}, the first step of Holm's correction."
            )
        others = [u for u in design.metrics if u.part == "secondary" and u.name not in self.deciding]
        if self.first.part == "guardrail" and (self.ask.mde is not None or self.ask.lift is not None):
            notes.append(
                "The effect asked for is that of a primary metric, and there is none: guardrails have their margins."
            )
        if len(others) * (len(self.arms) - 1) > 1:
            notes.append(
                "Secondary metrics are planned one by one; Benjamini and Hochberg's correction over them asks for somewhat more."
            )
        if stop is not None and stop.rule == "always_valid":
            notes.append(
                f"Always valid: sizes are for a look at that size (tightest at {stop.tightest_at or stop.n or TIGHTEST_AT:,});"
                " an earlier look may find it sooner."
            )
        if stop is not None and stop.rule == "group_sequential":
            notes.append(
                f"Group-sequential: sizes are those at the last of {stop.looks} equally spaced looks; set n to the size chosen."
            )
        endless = [u.name for u in design.metrics if u.window is None and u.metric.kind != "retention"]
        if endless and design.timed and experiment.period is None and self.arrivals is not None:
            notes.append(
                f"{', '.join(endless)}: no window is declared, so what counts, and its variance, grows with the time that history"
                " had."
            )
        if experiment.trigger is not None:
            notes.append(
                f"{self.triggered:.1%} of units trigger in the time history had; sizes count all that are assigned."
            )
        named = experiment.assignment.source is not None and design.source == self.found.source
        if named and experiment.assignment.where is not None and self.found.where is None:
            notes.append(
                f"No row before has the assignment's where, so units of all of '{design.source}' were taken without it."
            )
        if design.source == self.found.source and experiment.starts is None and self.arrivals is not None:
            notes.append(
                "The experiment has no starts, so exposures of its own in this source are taken for history, with its effect in"
                " them."
            )
        short = [
            name
            for u in design.metrics
            if u.before is not None and self.found.starts_us is not None
            for name in {m.source for m in measures_of(u.metric, None, None)}
            if (first := self.data.sources[name].first_us) is not None
            and first > self.found.starts_us - round(u.before / _DAY * _DAY_US) + _DAY_US
        ]
        if short:
            notes.append(
                f"What adjusts the metrics was recorded only later in {', '.join(sorted(set(short)))}: adjustment may save more than"
                " this."
            )
        return notes


# ---------------------------------------------------------------- words


def _about(n: int) -> str:
    """Three significant digits, rounded up: a size is an estimate, and too few units are the worse mistake."""
    digits = 10 ** max(0, len(str(n)) - 3)
    return f"{-(-n // digits) * digits:,}"


def _long(weeks: float) -> str:
    if weeks > 520:
        return "more than ten years"
    if weeks < 1:
        days = math.ceil(7 * weeks - 0.05)
        return f"about {days} day{'s' if days > 1 else ''}"
    whole = math.ceil(weeks - 0.1)
    return f"about {whole} week{'s' if whole > 1 else ''}"


def _share(share: float) -> str:
    for value, word in (
        (1 / 4, "a quarter"),
        (1 / 3, "a third"),
        (1 / 2, "half"),
        (2 / 3, "two thirds"),
        (3 / 4, "three quarters"),
    ):
        if abs(share - value) < 0.02:
            return f"{word} of the units"
    return f"{share:.0%} of the units"

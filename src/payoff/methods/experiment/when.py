"""When: the effect by time since exposure, the total gained so far on a calendar, and who looked how often."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np

from payoff import formats
from payoff.estimate import FloatArray, t_cdf
from payoff.methods.experiment.design import ExperimentDesign, MetricUse, Reading, span
from payoff.methods.experiment.reading import Reader, decided_units, scale_of, units_of
from payoff.result import Look, OverTime, Peeking, Refusal, Span, TimePoint
from payoff.spec import nouns
from payoff.stats import heterogeneity, sequential
from payoff.stats.moments import Moments
from payoff.warehouse.measures import is_ratio, step_need
from payoff.warehouse.needs import MetricNeed
from payoff.warehouse.sources import from_us, to_us

MOST_STEPS = 60
HOUR_US = 3_600_000_000
_DAY_US = 86_400_000_000


def microseconds(span: timedelta | None) -> int | None:
    return None if span is None else round(span.total_seconds() * 1_000_000)


def in_period(need: MetricNeed, period: timedelta, washout: timedelta | None) -> MetricNeed:
    """A switchback's metric: what happened in the period, its washout left out."""
    opens, closes = microseconds(washout) or 0, microseconds(period)
    inside = tuple(replace(m, from_us=opens, window_us=closes) for m in need.measures)
    invalid = None if need.invalid is None else replace(need.invalid, from_us=opens, window_us=closes)
    return replace(need, measures=inside, invalid=invalid)


def before_names(adjust: nouns.Adjust) -> set[str]:
    """What the metrics named in ``adjust.metrics`` are called as attributes."""
    return {before_name(metric) for metric in adjust.metrics}


def before_name(metric: str) -> str:
    return f"{metric} before exposure"


def steps_of(use: MetricUse) -> str:
    return f"{use.name} by step"


def around_of(use: MetricUse) -> str:
    return f"{use.name} around exposure"


def around_need(use: MetricUse) -> MetricNeed:
    """What happened in the hour before exposure and in the hour after it: two measures, of a ratio its numerator's."""
    need = step_need(around_of(use), use.metric, (-HOUR_US, 0, HOUR_US))
    parts = need.measures[::2] if is_ratio(use.metric) else need.measures
    return replace(need, measures=parts)


def calendar_of(use: MetricUse) -> str:
    return f"{use.name} by date"


def step_edges(design: ExperimentDesign) -> Iterator[tuple[MetricUse, tuple[int, ...]]]:
    """Each primary metric with the edges of its steps since exposure, whole ones only."""
    wanted = design.experiment.over_time
    if wanted is None:
        return
    every = microseconds(wanted.every) or 1
    for use in design.primaries:
        window = microseconds(use.window)
        if window is not None and 2 <= window // every <= MOST_STEPS and _adds_up(use):
            yield use, tuple(every * k for k in range(window // every + 1))


def calendar_edges(design: ExperimentDesign) -> Iterator[tuple[MetricUse, tuple[int, ...]]]:
    """Each primary metric with the dates of its steps, from the start to today; longer steps where there would be too many."""
    wanted, starts = design.experiment.cumulative, design.experiment.starts
    if wanted is None or starts is None or design.now_us is None:
        return
    first, every = to_us(starts, design.zone), microseconds(wanted.every) or 1
    last = design.now_us
    if last - first < every:
        return
    steps = (last - first) // every
    every *= -(-steps // MOST_STEPS)
    for use in design.primaries:
        if use.metric.kind in ("count", "sum"):
            yield use, tuple(first + every * k for k in range((last - first) // every + 1))


COUNTED = ("count", "sum", "conversion", "rate", "ratio", "csat", "nps")
"""Kinds whose rows can be counted step by step."""


def _adds_up(use: MetricUse) -> bool:
    return use.metric.kind in COUNTED


# ---------------------------------------------------------------- steps and totals


@dataclass(frozen=True, slots=True)
class _Steps:
    """Differences by step, (K,), with their sampling covariance, (K, K), over ``n`` units by arm. ``drawn`` counts by arm what
    was assigned: units, or clusters of them."""

    values: FloatArray
    covariance: FloatArray
    n: dict[str, int]
    drawn: dict[str, int]

    @property
    def df(self) -> float:
        return min(self.drawn.values()) - 1.0

    @property
    def count(self) -> int:
        return sum(self.drawn.values())


def _step_levels(reader: Reader, use: MetricUse, m: Moments) -> tuple[FloatArray, FloatArray]:
    """One arm's level at every step, (K,), and their covariance. Raises ValueError where a step has no level.

    Columns are the K steps' measures; of a ratio, numerator and denominator in turn; clustered, the size is the next one.
    """
    ratio, clustered = is_ratio(use.metric), reader.design.experiment.cluster is not None
    k = (m.k - (1 if clustered else 0)) // (2 if ratio else 1)
    weights, values = np.zeros((k, m.k)), np.zeros(k)
    for step in range(k):
        y = 2 * step if ratio else step
        d = y + 1 if ratio else (m.k - 1 if clustered else None)
        if d is None:
            values[step], weights[step, y] = m.mean[y], 1.0
        else:
            if m.mean[d] == 0:
                raise ValueError("the denominator of a step adds up to zero")
            values[step] = m.mean[y] / m.mean[d]
            weights[step, y], weights[step, d] = 1 / m.mean[d], -values[step] / m.mean[d]
    scale = scale_of(use)
    return scale * values, scale * scale * weights @ m.cov @ weights.T / m.n


def _differences(reader: Reader, use: MetricUse, name: str, arm: str) -> _Steps:
    """Raises ValueError where the steps have no figures."""
    numbers, control = reader.data.metrics[name], reader.control
    for x in (arm, control):
        if x not in numbers.moments or numbers.moments[x].n < 2:
            raise ValueError(f"arm '{x}' has fewer than two units whose steps are all over")
        if units_of(numbers, x) < reader.design.min_cell:
            raise ValueError(f"arm '{x}' has fewer than {reader.design.min_cell} units")
    (t, v_t), (c, v_c) = (_step_levels(reader, use, numbers.moments[x]) for x in (arm, control))
    pair = (arm, control)
    return _Steps(t - c, v_t + v_c, {x: units_of(numbers, x) for x in pair}, {x: numbers.moments[x].n for x in pair})


def over_time(
    reader: Reader, readings: list[Reading], rng: np.random.Generator
) -> tuple[tuple[OverTime, ...], list[Refusal]]:
    design = reader.design
    out: list[OverTime] = []
    refusals: list[Refusal] = []
    by_name = {r.use.name: r for r in readings}
    stepped = {use.name for use, _ in step_edges(design)}
    if design.experiment.over_time is not None:
        refusals += [
            Refusal(
                f"experiments.{design.name}.{use.name}",
                f"the effect by days since exposure cannot be shown of a {use.metric.kind} over {span(use)}",
                "it takes a count, a sum, a conversion or a ratio with a window of several steps",
            )
            for use in design.primaries
            if use.name not in stepped
        ]
    for use, edges in step_edges(design):
        if use.name not in by_name:
            continue
        r = by_name[use.name]
        for arm in r.differences:
            try:
                out.append(_by_step(reader, r, arm, edges))
            except ValueError as error:
                refusals.append(_no_time(design, use, "effect by days since exposure", str(error)))
    on_dates = {use.name: edges for use, edges in calendar_edges(design)}
    for use in design.primaries if design.experiment.cumulative is not None else ():
        if use.name not in by_name:
            continue
        if use.name not in on_dates:
            why = (
                "no step is over yet"
                if use.metric.kind in ("count", "sum")
                else f"a {use.metric.kind} does not add up over units; a count or a sum does"
            )
            refusals.append(_no_time(design, use, "total so far", why, "wait, or take shorter steps or earlier starts"))
            continue
        r, edges = by_name[use.name], on_dates[use.name]
        for arm in r.differences:
            try:
                out.append(_by_date(reader, r, arm, edges, rng))
            except ValueError as error:
                refusals.append(_no_time(design, use, "total so far", str(error)))
    return tuple(out), refusals


def _no_time(
    design: ExperimentDesign,
    use: MetricUse,
    what: str,
    reason: str,
    remedy: str = "wait for more units, or take longer steps",
) -> Refusal:
    return Refusal(f"experiments.{design.name}.{use.name}", f"the {what} cannot be shown: {reason}", remedy)


def _by_step(reader: Reader, r: Reading, arm: str, edges: tuple[int, ...]) -> OverTime:
    design, use = reader.design, r.use
    steps = _differences(reader, use, steps_of(use), arm)
    ses = np.sqrt(np.diagonal(steps.covariance))
    alive = [k for k in range(len(ses)) if ses[k] > 0]
    if len(alive) < 2:
        raise ValueError("nothing varies in all but one step")
    df, n = steps.df, steps.count
    points = []
    for k in alive:
        low, high = reader.rule.interval(float(steps.values[k]), float(ses[k]), df, n, design.level)
        points.append(TimePoint(_days(edges[k]), _days(edges[k + 1]), Span(float(steps.values[k]), low, high), steps.n))
    index = np.array(alive)
    values, covariance = steps.values[index], steps.covariance[np.ix_(index, index)]
    times = np.array([(edges[k] + edges[k + 1]) / 2 / _DAY_US for k in alive])
    trend = heterogeneity.trend(values, covariance, times, df)
    trend_p = reader.rule.p_value(trend.slope, trend.se, trend.df, n)
    gap = r.differences[arm].value
    changes = trend_p <= design.alpha
    first, last = points[0].difference, points[-1].difference
    low, high = r.interval(arm, design.level)
    told = low > 0 or high < 0
    # a total that is not told from zero has no sign for the trend to be with or against
    fades = trend.slope * gap < 0 if told else abs(last.value) < abs(first.value)
    pattern = ("wears off" if fades else "grows") if changes else "steady"
    unit, metric = formats.unit(r.unit), formats.human(use.name)
    ends = (
        f"{formats.written(first.value, first.low, first.high, unit, change=True).value} in days {points[0].start} to {points[0].end},"
        f" {formats.written(last.value, last.low, last.high, unit, change=True).value} in days {points[-1].start} to {points[-1].end}"
    )
    p = formats.p_value(trend_p, design.alpha)
    still = [k for k in range(len(ses)) if k not in alive]
    said = {
        "steady": f"No sign that the effect of {arm} on {metric} changes with time since exposure ({p}; {ends})",
        "wears off": f"The effect of {arm} on {metric} wears off ({p}; {ends}): what a longer run would keep is less than the average",
        "grows": f"The effect of {arm} on {metric} grows with time ({p}; {ends}): the average understates where it is going",
    }[pattern]
    if changes and not told:
        moves = "rises" if trend.slope > 0 else "falls"
        said = f"The effect of {arm} on {metric} {moves} with time since exposure ({p}; {ends}), and over all of it is not told from zero"
    if still:
        days = ", ".join(f"{_days(edges[k])} to {_days(edges[k + 1])}" for k in still)
        said += f". Nothing varies in days {days}, so no figure is shown there"
    return OverTime(
        metric=use.name,
        contrast=f"{arm} vs {reader.control}",
        unit=r.unit,
        direction=use.metric.direction,
        axis="days since exposure",
        band="pointwise",
        points=tuple(points),
        left_out=len(still),
        trend_p=trend_p,
        pattern=pattern,
        sentence=said,
    )


def _days(us: int) -> str:
    return f"{us / _DAY_US:g}"


def _by_date(reader: Reader, r: Reading, arm: str, edges: tuple[int, ...], rng: np.random.Generator) -> OverTime:
    """The total over all treated units, up to each date. Steps that the data do not cover whole are in no figure."""
    design, use = reader.design, r.use
    as_of = reader.data.as_of_us
    over = sum(1 for edge in edges[1:] if as_of is not None and edge <= as_of)
    if over == 0:
        raise ValueError("no step is over yet")
    steps = _differences(reader, use, calendar_of(use), arm)
    treated = reader.data.exposed[arm]
    total = heterogeneity.cumulative(steps.values[:over] * treated, steps.covariance[:over, :over] * treated**2)
    began = [k for k in range(over) if total.ses[k] > 0]
    if not began:
        raise ValueError("nothing has happened yet")
    index = np.array(began)
    spread = total.covariance[np.ix_(index, index)] / np.outer(total.ses[index], total.ses[index])
    # one interval's level at which all dates hold together; at that level the stopping rule's own interval, so that looks do too
    each = 2 * t_cdf(heterogeneity.simultaneous_band(spread, design.level, rng), math.inf) - 1
    points = []
    for k in began:
        value = float(total.values[k])
        low, high = reader.rule.interval(value, float(total.ses[k]), steps.df, steps.count, each)
        points.append(TimePoint(_date(edges[0]), _date(edges[k + 1]), Span(value, low, high), steps.n))
    last = points[-1].difference
    text = formats.written(last.value, last.low, last.high, formats.unit(r.unit.partition("/")[0]), change=True)
    metric = formats.human(use.name)
    band = f"({formats.level(design.level)} band over all dates {text.range})"
    who = f"the {treated:,} units of {arm}"
    if last.low > 0:
        said = f"{who} had brought {text.value} of {metric}, counted without its window, that they would not have brought in {reader.control} {band}"
    elif last.high < 0:
        said = f"{who} had brought {formats.size(text.value)} less of {metric}, counted without its window, than they would have in {reader.control} {band}"
    else:
        said = (
            f"the difference between {who} and {reader.control} adds up to {text.value} of {metric}, counted without its window {band};"
            " the band holds zero"
        )
    return OverTime(
        metric=use.name,
        contrast=f"{arm} vs {reader.control}",
        unit=r.unit.partition("/")[0],
        direction=use.metric.direction,
        axis="calendar",
        band="simultaneous",
        points=tuple(points),
        left_out=len(edges) - 1 - over,
        trend_p=None,
        pattern="",
        sentence=f"By {points[-1].end} {said}",
    )


def _date(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%d")


# ---------------------------------------------------------------- looks


def peeking(reader: Reader) -> Peeking:
    """The looks made so far, this one last, against the registered stop."""
    design, data = reader.design, reader.data
    stop = design.experiment.stop
    units = decided_units(design, data)
    now = Look(
        at="this run",
        by="",
        as_of=None if data.as_of_us is None else from_us(data.as_of_us),
        units=units,
    )
    looks: list[Look] = []
    for look in (*design.looks, now):
        if looks and (looks[-1].as_of, looks[-1].units) == (look.as_of, look.units):
            looks[-1] = look if look is now else looks[-1]  # the same data again tells nothing new
        else:
            looks.append(look)
    sizes = sorted({look.units for look in looks if look.units > 0})
    error = sequential.error_of_peeking([n / sizes[-1] for n in sizes], design.alpha) if sizes else design.alpha
    rule = reader.rule.kind
    information = None if stop is None or stop.n is None else units / stop.n
    many = len(sizes)
    if rule == "always_valid":
        said = f"Looked at {_times(many)}; the intervals hold at every look, so that costs nothing"
    elif rule == "group_sequential":
        assert stop is not None
        share = "" if information is None else f" with {information:.0%} of the {stop.n:,} planned units"
        said = f"Look {many} of at most {stop.looks} planned{share}; the intervals hold at all of them together"
    elif many <= 1:
        said = "Looked at once: the interval is what it says"
    else:
        said = (
            f"Looked at {_times(many)} with intervals that are made for one look: where nothing happened, a false finding at some"
            f" look has a chance of {formats.probability(error)}, not {design.alpha:.0%}"
        )
    return Peeking(rule, tuple(looks), error, design.alpha, information, said)


def _times(n: int) -> str:
    return "once" if n == 1 else "twice" if n == 2 else f"{n} times"

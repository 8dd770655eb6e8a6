"""Declared metrics as measures: what each kind of metric needs of the data, one number a unit or two."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

from payoff.spec import nouns
from payoff.warehouse.needs import Anchor, Cap, Fold, Measure, MetricNeed, Quantile


def _us(span: timedelta | None) -> int | None:
    return None if span is None else round(span.total_seconds() * 1_000_000)


def _cap(cap: float | nouns.Percentile | None) -> Cap | None:
    if cap is None:
        return None
    if isinstance(cap, nouns.Percentile):
        return Cap(percentile=cap.percentile, nonzero=cap.of == "nonzero")
    return Cap(value=cap)


def _both(a: str | None, b: str) -> str:
    return b if a is None else f"({a}) AND ({b})"


def metric_need(
    name: str,
    metric: nouns.Metric,
    window: timedelta | None,
    default_window: timedelta | None,
    before: timedelta | None = None,
    level: float = 0.95,
) -> MetricNeed:
    """What to read for ``metric`` over ``window`` after exposure; ``default_window`` bounds an anchor that names none.

    ``before`` asks for the same measures over that period before exposure, for adjustment; a quantile, which is not
    adjusted, has none. ``level`` is that of a quantile's interval.
    """
    measures = tuple(measures_of(metric, window, default_window))
    if isinstance(metric, nouns.QuantileMetric):
        return MetricNeed(
            name, measures, quantile=Quantile(metric.q, metric.of, level), covariates=False, segments=False
        )
    invalid = None
    if isinstance(metric, nouns.NpsMetric):
        impossible = _both(metric.where, f"NOT (({metric.column}) BETWEEN 0 AND 10)")
        invalid = Measure(metric.from_, "count", None, impossible, _us(window))
    period = _us(before)
    earlier = () if period is None else tuple(replace(m, after=None, from_us=-period, window_us=0) for m in measures)
    return MetricNeed(name, measures, invalid, ratio=is_ratio(metric), before=earlier)


def step_need(name: str, metric: nouns.Metric, edges_us: Sequence[int]) -> MetricNeed:
    """The metric in each step since exposure, [edge, next edge): one measure a step, or two in turn for a ratio.

    A step counts what happened in it: without caps (parts of a capped total do not add up to it), and for a conversion
    any row in the step, whatever opened it.
    """
    parts = tuple(measures_of(metric, None, None))
    steps = tuple(
        replace(m, after=None, cap=None, from_us=opens, window_us=closes)
        for opens, closes in pairwise(edges_us)
        for m in parts
    )
    return MetricNeed(name, steps, covariates=False, segments=False)


def calendar_need(name: str, metric: nouns.Metric, edges_us: Sequence[int]) -> MetricNeed:
    """The metric in each step of the calendar, [edge, next edge) in microseconds since the epoch, from exposure on."""
    parts = tuple(measures_of(metric, None, None))
    steps = tuple(
        replace(m, after=None, cap=None, from_us=0, window_us=None, since_us=opens, before_us=closes)
        for opens, closes in pairwise(edges_us)
        for m in parts
    )
    return MetricNeed(name, steps, covariates=False, segments=False)


def cannibalisation_need(name: str, wanted: nouns.Cannibalisation, window: timedelta | None) -> MetricNeed:
    """Rows (or their ``value`` added up) by path, in the order of ``paths``; last, those of any other path or of none."""
    by = f"CAST(({wanted.by}) AS VARCHAR)"
    listed = ["'" + path.replace("'", "''") + "'" for path in wanted.paths]
    conditions = [f"{by} = {path}" for path in listed]
    conditions.append(f"({wanted.by}) IS NULL OR {by} NOT IN ({', '.join(listed)})")
    fold: Fold = "count" if wanted.value is None else "sum"
    parts = tuple(
        Measure(wanted.within, fold, wanted.value, _both(wanted.where, f"({condition})"), _us(window))
        for condition in conditions
    )
    return MetricNeed(name, parts, covariates=False, segments=False)


def measures_of(metric: nouns.Metric, window: timedelta | None, default_window: timedelta | None) -> Iterator[Measure]:
    """One measure a unit, or numerator and denominator."""
    span = _us(window)
    if isinstance(metric, nouns.CountMetric):
        yield Measure(metric.from_, "count", None, metric.where, span, cap=_cap(metric.cap))
    elif isinstance(metric, nouns.SumMetric):
        yield Measure(metric.from_, "sum", metric.column, metric.where, span, cap=_cap(metric.cap))
    elif isinstance(metric, nouns.MeanMetric):
        yield Measure(metric.from_, "mean", metric.column, metric.where, span, cap=_cap(metric.cap))
    elif isinstance(metric, nouns.RateMetric):
        yield Measure(metric.from_, "count", None, metric.where, span)
        yield Measure(metric.from_, "count", None, f"({metric.where}) IS NOT NULL", span)
    elif isinstance(metric, nouns.RetentionMetric):
        opens = _us(metric.at) or 0
        closes = opens + (_us(metric.within) or 0)
        yield Measure(metric.to.source, "any", None, metric.to.where, closes, from_us=opens)
    elif isinstance(metric, nouns.QuantileMetric):
        over: Fold = "mean" if metric.of == "rows" else "sum"
        yield Measure(metric.from_, over, metric.column, metric.where, span)
    elif isinstance(metric, nouns.NpsMetric):
        answered = _both(metric.where, f"({metric.column}) BETWEEN 0 AND 10")
        score = f"CASE WHEN ({metric.column}) >= 9 THEN 1 WHEN ({metric.column}) <= 6 THEN -1 ELSE 0 END"
        yield Measure(metric.from_, "sum", score, answered, span)
        yield Measure(metric.from_, "count", None, answered, span)
    elif isinstance(metric, nouns.CsatMetric):
        yield Measure(metric.from_, "count", None, _both(metric.where, f"({metric.column}) >= {metric.top:g}"), span)
        yield Measure(metric.from_, "count", None, _both(metric.where, f"({metric.column}) IS NOT NULL"), span)
    elif isinstance(metric, nouns.ConversionMetric):
        after = None
        if metric.after is not None:
            within = metric.after.within or default_window
            after = Anchor(metric.after.source, metric.after.where, _us(within))
        yield Measure(metric.to.source, "any", None, metric.to.where, span, after)
    else:
        for part in (metric.numerator, metric.denominator):
            fold: Fold = "count" if part.column is None else "sum"
            yield Measure(part.source, fold, part.column, part.where, span, cap=_cap(part.cap))


def is_ratio(metric: nouns.Metric) -> bool:
    return metric.kind in ("rate", "nps", "csat", "ratio")


def origin(metric: nouns.Metric) -> str:
    if isinstance(metric, nouns.ConversionMetric | nouns.RetentionMetric):
        return f"source '{metric.to.source}'"
    if isinstance(metric, nouns.RatioMetric):
        return f"sources '{metric.numerator.source}' and '{metric.denominator.source}'"
    return f"source '{metric.from_}'"


def unit_of(metric: nouns.Metric, currency: str, entity: str) -> str:
    """The declared unit, else what the kind implies: shares, points, the project's currency for sums, a column's name."""
    if metric.unit is not None:
        return metric.unit
    if isinstance(metric, nouns.NpsMetric):
        return "points"
    if isinstance(metric, nouns.ConversionMetric | nouns.RetentionMetric | nouns.RateMetric | nouns.CsatMetric):
        return "share"
    if isinstance(metric, nouns.SumMetric) or (isinstance(metric, nouns.QuantileMetric) and metric.of == "units"):
        return currency
    if isinstance(metric, nouns.CountMetric):
        return f"{metric.from_}/{entity}"
    if isinstance(metric, nouns.MeanMetric | nouns.QuantileMetric):
        return metric.column if re.fullmatch(r"\w+", metric.column) else ""
    counted = metric.numerator.column is None, metric.denominator.column is None
    return currency if counted == (False, True) else "share" if counted == (True, True) else ""


def count_or_sum_unit(wanted: nouns.Cannibalisation, currency: str, entity: str) -> str:
    """The unit of what is added up over paths: rows a unit, or the project's currency as for any sum."""
    return f"{wanted.within}/{entity}" if wanted.value is None else currency

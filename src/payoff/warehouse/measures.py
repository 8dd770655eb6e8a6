"""Declared metrics as measures: what each kind of metric needs of the data, one number a unit or two."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

from payoff.spec import nouns
from payoff.warehouse.needs import Anchor, Cap, Fold, Measure, MetricNeed


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
    name: str, metric: nouns.Metric, window: timedelta | None, default_window: timedelta | None
) -> MetricNeed:
    """What to read for ``metric`` over ``window`` after exposure; ``default_window`` bounds an anchor that names none."""
    invalid = None
    if isinstance(metric, nouns.NpsMetric):
        impossible = _both(metric.where, f"NOT (({metric.column}) BETWEEN 0 AND 10)")
        invalid = Measure(metric.from_, "count", None, impossible, _us(window))
    return MetricNeed(name, tuple(measures_of(metric, window, default_window)), invalid, ratio=is_ratio(metric))


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
    if isinstance(metric, nouns.ConversionMetric):
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
    if isinstance(metric, nouns.ConversionMetric | nouns.RateMetric | nouns.CsatMetric):
        return "share"
    if isinstance(metric, nouns.SumMetric):
        return currency
    if isinstance(metric, nouns.CountMetric):
        return f"{metric.from_}/{entity}"
    if isinstance(metric, nouns.MeanMetric):
        return metric.column if re.fullmatch(r"\w+", metric.column) else ""
    counted = metric.numerator.column is None, metric.denominator.column is None
    return currency if counted == (False, True) else "share" if counted == (True, True) else ""

"""How many rows or units there are in a period: what a claim multiplies an effect by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from payoff.errors import DataError
from payoff.warehouse.query import Query, fragment, literal, sql
from payoff.warehouse.sources import Catalog

_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Counted:
    """``value`` over the whole period; ``se`` from day-to-day variation (0 for a plain count); ``days`` observed."""

    value: float
    se: float
    days: float
    notes: tuple[str, ...]


def rows_in(catalog: Catalog, source: str, period: timedelta) -> Counted:
    """Rows of a source in its last ``period``. Where less was observed, the daily rate is carried to the whole period.

    The standard error is that of a sum of days whose counts vary as those observed did (days taken as independent).
    Raises DataError where the source has no time or no rows.
    """
    view = catalog.view(source)
    if view.clock is None:
        raise DataError("has no time, so its volume per period cannot be counted", source=source)
    span_us = int(period.total_seconds() * 1_000_000)
    query = sql(
        """
        SELECT count(*) AS days, sum(n) AS n, avg(n) AS per_day, var_samp(n) AS var, max(span_us) AS span_us
        FROM (
          SELECT (t - edge) // 86400000000 AS day, count(*) AS n, any_value(edge - began) AS span_us
          FROM (SELECT t, edge, began FROM clocked, newest) AS timed
          WHERE t > edge - $span
          GROUP BY day
        ) AS days
        """,
        span=span_us,
        clocked=sql("SELECT $t AS t FROM base", t=view.clock.us, base=Query(view.rows())),
        newest=sql("SELECT max(t) AS edge, min(t) AS began FROM clocked"),
    )
    found = catalog.engine.row(query, f"count {source}", source)
    n, with_rows = found["n"], int(found["days"])
    if not n:
        raise DataError("has no rows to count", source=source)
    wanted = span_us / _DAY_US
    whole_day = 1.0 if view.clock.kind == "DATE" else 0.0  # the last date is a day observed, not a moment
    # what began before the period was observed for all of it, however long ago its last rows are
    observed = min(max(int(found["span_us"]) / _DAY_US + whole_day, 1.0), wanted)
    scale = wanted / observed
    days = max(math.ceil(observed), with_rows)
    se, variance = 0.0, None
    if days > 1:
        # days without a row count too: the scatter of those with rows, merged with that of the zeros
        scatter = float(found["var"] or 0.0) * (with_rows - 1)
        variance = (scatter + float(found["per_day"]) ** 2 * with_rows * (days - with_rows) / days) / (days - 1)
        se = scale * math.sqrt(variance * days)
    notes = []
    if variance is None:
        notes.append("one day was observed, so its variation from day to day is not known")
    return Counted(float(n) * scale, se, observed, tuple(notes))


def units_in(catalog: Catalog, source: str, entity: str, where: str | None, period: timedelta | None) -> Counted:
    """Distinct units of an assignment's source, in its last ``period`` or at all. Never scaled up: people return."""
    view = catalog.view(source)
    notes: list[str] = []
    base = view.rows() if where is None else view.rows().where(view.condition(where))
    days = 0.0
    if period is not None:
        if view.clock is None:
            raise DataError("has no time, so its units cannot be counted per period", source=source)
        edge = catalog.engine.row(
            sql("SELECT min($t) AS first_us, max($t) AS last_us FROM base", t=view.clock.us, base=Query(base)),
            f"span of {source}",
            source,
        )
        first, last = edge["first_us"], edge["last_us"]
        if first is None or last is None:
            raise DataError("has no rows to count", source=source)
        span_us = int(period.total_seconds() * 1_000_000)
        days = (int(last) - int(first)) / _DAY_US
        base = base.where(fragment("$t > $from_us", t=view.clock.us, from_us=literal(int(last) - span_us)))
        if days < span_us / _DAY_US - 1:
            notes.append(
                f"{days:,.0f} of {span_us / _DAY_US:,.0f} days were observed; units are counted, not scaled up, because the same"
                " ones return"
            )
    if view.unit_text(entity) is None:
        query = sql("SELECT count(*) AS n FROM base", base=Query(base))
        notes.append("every row is a unit")
    else:
        query = sql("SELECT count(DISTINCT $unit) AS n FROM base", unit=view.unit(entity), base=Query(base))
    found = catalog.engine.row(query, f"count {entity}s", source)
    return Counted(float(found["n"]), 0.0, days, tuple(notes))

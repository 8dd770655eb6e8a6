"""What a source recorded before an experiment: its span, and how many new units came day by day."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlglot import exp

from payoff.errors import DataError
from payoff.warehouse.query import Query, fragment, sql
from payoff.warehouse.sources import Catalog, View, from_us, to_us

DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Recorded:
    """Rows of a source that have a time (all rows, where it has no clock), and the first and last of those times."""

    rows: int
    first_us: int | None
    last_us: int | None


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Distinct units first seen by the end of each whole day since the start, from day 1; ``clusters`` likewise.

    A unit counts once, on its first day: people who return are not new. With periods, each period of a unit is one.
    """

    units: tuple[int, ...]
    clusters: tuple[int, ...] = ()


def recorded(
    catalog: Catalog, source: str, entity: str, where: str | None = None, before_us: int | None = None
) -> Recorded:
    """What ``source`` holds of units of ``entity``, where ``where`` and before ``before_us``. A declared ``through`` is its end."""
    view = catalog.view(source)
    base = _rows(view, where)
    if view.unit_text(entity) is not None:
        base = base.where(fragment("$unit IS NOT NULL", unit=view.unit(entity)))
    if view.clock is None:
        found = catalog.engine.row(sql("SELECT count(*) AS n FROM base", base=Query(base)), f"count {source}", source)
        return Recorded(int(found["n"]), None, None)
    timed = sql("SELECT $t AS t FROM base", t=view.clock.us, base=Query(base))
    query = sql(
        "SELECT count(t) AS n, min(t) AS first_us, max(t) AS last_us FROM timed WHERE $bound",
        timed=timed,
        bound=exp.true() if before_us is None else fragment("t < $us", us=before_us),
    )
    found = catalog.engine.row(query, f"span of {source}", source)
    return Recorded(int(found["n"]), found["first_us"], found["last_us"])


def arrivals(
    catalog: Catalog,
    source: str,
    entity: str,
    starts_us: int,
    days: int,
    *,
    where: str | None = None,
    cluster: str | None = None,
    period_us: int | None = None,
) -> tuple[Arrivals, tuple[tuple[str, str], ...]]:
    """New units (and clusters) of ``source`` in each of ``days`` days from ``starts_us``, added up; and the SQL of it.

    Raises DataError where the source has no time.
    """
    view = catalog.view(source)
    if view.clock is None:
        raise DataError("has no time, so it does not tell when units come", source=source)
    if days < 1:
        raise DataError(
            "less than one whole day was recorded, so it does not tell how many units a day brings", source=source
        )
    base = _rows(view, where).where(*view.clock.between(starts_us, starts_us + days * DAY_US))
    seen: list[tuple[int, ...]] = []
    texts: list[tuple[str, str]] = []
    for kind in (entity, *([cluster] if cluster is not None else [])):
        unnamed = kind == entity and view.unit_text(kind) is None  # one row a unit: its number will do
        unit: exp.Expr = fragment("row_number() OVER ()") if unnamed else view.unit(kind)
        ids: list[exp.Expr] = [exp.alias_(unit, "unit")]
        if period_us is not None and kind == entity:
            ids.append(exp.alias_(fragment("$t // $p", t=exp.paren(view.clock.us.copy()), p=period_us), "period"))
        query = sql(
            """
            SELECT (first_us - $starts) // 86400000000 AS day, count(*) AS n
            FROM (SELECT min(t) AS first_us FROM seen WHERE unit IS NOT NULL AND t >= $starts AND t < $ends GROUP BY $keys)
              AS firsts
            GROUP BY day ORDER BY day
            """,
            starts=starts_us,
            ends=starts_us + days * DAY_US,
            keys=[exp.column(e.alias) for e in ids],
            seen=sql("SELECT $ids, $t AS t FROM base", ids=ids, t=view.clock.us, base=Query(base)),
        )
        name = f"new {kind}s by day"
        new = [0] * days
        for row in catalog.engine.fetch(query, name, source).to_pylist():
            new[int(row["day"])] = int(row["n"])
        total, added = 0, []
        for n in new:
            total += n
            added.append(total)
        seen.append(tuple(added))
        texts.append((name, query.render()))
    return Arrivals(seen[0], seen[1] if len(seen) > 1 else ()), tuple(texts)


def _rows(view: View, where: str | None) -> exp.Select:
    return view.rows() if where is None else view.rows().where(view.condition(where))


# ---------------------------------------------------------------- an experiment that never was


@dataclass(frozen=True, slots=True)
class Candidate:
    """A source in which units might have been seen before the experiment; ``where`` as for the assignment.

    The lowest ``rank`` that has rows is taken, and of several the one with most rows.
    """

    source: str
    where: str | None = None
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Pretended:
    """Where and when units are pretended to have been exposed: [starts_us, ends_us), both None where there is no clock.

    ``days`` are the whole days from ``starts_us`` on in which arrivals were recorded; ``notes`` say what was not to be had.
    """

    source: str
    where: str | None
    starts_us: int | None
    ends_us: int | None
    days: int
    notes: tuple[str, ...] = ()


def pretend(
    catalog: Catalog,
    candidates: Sequence[Candidate],
    entity: str,
    involved: Iterable[str],
    *,
    span_us: int,
    horizon_us: int,
    until_us: int | None = None,
) -> Pretended:
    """The best candidate that has rows (before ``until_us``), and the latest ``span_us`` in it after which the longest
    window, ``horizon_us``, has closed in every one of the ``involved`` sources together.

    Raises DataError where no candidate has a row, or where the recorded time is shorter than the window and one day.
    """
    chosen, found = candidates[0], Recorded(0, None, None)
    for candidate in sorted(candidates, key=lambda c: c.rank):
        if found.rows and candidate.rank > chosen.rank:
            break
        here = recorded(catalog, candidate.source, entity, candidate.where, until_us)
        if here.rows > found.rows:
            chosen, found = candidate, here
    before = "" if until_us is None else f" before the experiment starts ({from_us(until_us)[:10]})"
    if not found.rows:
        looked = " or ".join(f"'{name}'" for name in dict.fromkeys(c.source for c in candidates))
        raise DataError(
            f"there is no history to plan from: {looked} has no row of a {entity}{before}; name a source in which units were"
            " seen earlier (--source), or plan once there is one"
        )
    if found.first_us is None or found.last_us is None:
        return Pretended(chosen.source, chosen.where, None, None, 0)
    ends: list[int] = []
    declared: list[int] = []
    for name in dict.fromkeys((chosen.source, *involved)):
        view = catalog.view(name)
        if view.clock is None:
            continue
        last = recorded(catalog, name, entity, None, until_us).last_us
        ends += [] if last is None else [last]
        if view.source.through is not None:
            declared.append(to_us(view.source.through, view.source.timezone or catalog.zone))
    as_of = min([max(ends), *declared, *([until_us] if until_us is not None else [])])
    closed, recorded_to = as_of - horizon_us, min(as_of, found.last_us + 1)
    ends_us = min(closed, recorded_to)
    starts_us = max(ends_us - span_us, found.first_us)
    had, wanted = (ends_us - found.first_us) / DAY_US, span_us / DAY_US
    days = (recorded_to - starts_us) // DAY_US
    if had < 1 or days < 1:
        raise DataError(
            f"the history is too short: {entity}s were seen from {from_us(found.first_us)[:10]} and data ends on"
            f" {from_us(as_of)[:10]}, and the longest window is {horizon_us / DAY_US:.4g} days, so less than one day of units"
            " has a closed window; shorten the window, name a source that goes back further (--source), or wait",
            source=chosen.source,
        )
    notes = []
    if had < wanted - 1:
        notes.append(
            f"Only {had:.3g} of the {wanted:.3g} days of history asked for were recorded in '{chosen.source}'."
        )
    return Pretended(chosen.source, chosen.where, starts_us, ends_us, int(days), tuple(notes))

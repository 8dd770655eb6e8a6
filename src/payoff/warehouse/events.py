"""Events of a journey: rows of a source as (unit, time), with what is wrong with them counted. What every kernel of journeys reads.

A row enters with a unit and a time between 1970 and a day after now. Times are microseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlglot import exp

from payoff.errors import DataError
from payoff.spec.nouns import Event, Outcome
from payoff.warehouse.query import Query, fragment, sql
from payoff.warehouse.sources import Catalog, View, to_us
from payoff.warehouse.statements import Step

AHEAD_US = 86_400_000_000
"""A clock a day fast is a time zone; one faster than that is wrong."""


@dataclass(frozen=True, slots=True)
class EventProfile:
    """The rows of one event: those that enter (``rows``), and those that do not, by reason. ``last_us`` is the latest that enters.

    ``through_us`` is up to when the source is complete: what it declares, else its latest row.
    ``repeated``: rows whose declared id was seen before (None: it was not looked for); they enter once.
    """

    source: str
    rows: int
    without_unit: int
    without_time: int
    before_1970: int
    ahead: int
    first_us: int | None
    last_us: int | None
    through_us: int | None
    fingerprint: str
    repeated: int | None = None

    def left_out(self) -> Mapping[str, int]:
        """Why rows did not enter, in words that name the source, with counts above zero."""
        said = {
            f"rows of {self.source} without a unit": self.without_unit,
            f"rows of {self.source} without a time": self.without_time,
            f"rows of {self.source} dated before 1970": self.before_1970,
            f"rows of {self.source} dated in the future": self.ahead,
            f"rows of {self.source} that repeat an id": self.repeated or 0,
        }
        return {reason: n for reason, n in said.items() if n}


def clock_us(view: View) -> exp.Expr:
    """The time of a row in microseconds. Raises DataError where the source has none."""
    if view.clock is None:
        raise DataError("has no time (time: COLUMN), and a journey is an order in time", source=view.name)
    return view.clock.us


def _window_of_time(view: View, now_us: int) -> exp.Expr:
    return fragment("$t >= 0 AND $t <= $most", t=clock_us(view), most=now_us + AHEAD_US)


def rows_of(
    catalog: Catalog,
    event: Event,
    entity: str,
    now_us: int,
    columns: Mapping[str, exp.Expr] | None = None,
    *,
    distinct: bool = False,
    low_us: int | None = None,
    high_us: int | None = None,
) -> Query:
    """SELECT unit, us and ``columns`` (resolved by the source's view) of the rows that enter.

    ``distinct`` keeps the first row of each declared id. ``low_us``/``high_us`` bound the time (both included) so that files and
    row groups are skipped by their statistics. No order.
    """
    view = catalog.view(event.source)
    select = exp.select(
        exp.alias_(view.unit(entity), "unit", quoted=False),
        exp.alias_(clock_us(view), "us", quoted=False),
        *(exp.alias_(e.copy(), name, quoted=True) for name, e in (columns or {}).items()),
    ).from_(view.rows().subquery("base"))
    select = select.where(fragment("$u IS NOT NULL", u=view.unit(entity))).where(_window_of_time(view, now_us))
    if event.where is not None:
        select = select.where(view.condition(event.where))
    assert view.clock is not None
    for bound in view.clock.between(low_us, high_us):
        select = select.where(bound)
    if low_us is not None:
        select = select.where(fragment("$t >= $low", t=clock_us(view), low=low_us))
    if high_us is not None:
        select = select.where(fragment("$t <= $high", t=clock_us(view), high=high_us))
    if distinct and view.source.id is not None:
        first = fragment(
            "$id IS NULL OR row_number() OVER (PARTITION BY $id ORDER BY $t) = 1",  # without an id no row repeats another
            id=view.scalar(view.source.id),
            t=clock_us(view),
        )
        select = select.qualify(first)
    return Query(select)


def profile_step(catalog: Catalog, event: Event, entity: str, now_us: int, *, ids: bool = False) -> Step:
    """The statement that counts what enters and what does not, in one pass over the unit and the time."""
    view = catalog.view(event.source)
    t, unit = clock_us(view), view.unit(entity)
    base = view.rows()
    if event.where is not None:
        base = base.where(view.condition(event.where))
    repeated = (
        fragment("count($id) - count(DISTINCT $id)", id=view.scalar(view.source.id))
        if ids and view.source.id is not None
        else exp.null()
    )
    query = sql(
        """
        SELECT count(*) AS n, count(*) FILTER (WHERE $u IS NULL) AS without_unit,
               count(*) FILTER (WHERE $t IS NULL) AS without_time,
               count(*) FILTER (WHERE $t < 0) AS before_1970, count(*) FILTER (WHERE $t > $most) AS ahead,
               min($t) FILTER (WHERE $inside) AS first_us, max($t) FILTER (WHERE $inside) AS last_us,
               $repeated AS repeated
        FROM base
        """,
        u=unit,
        t=t,
        most=now_us + AHEAD_US,
        inside=_window_of_time(view, now_us),
        repeated=repeated,
        base=Query(base),
    )
    texts = [event.where] if event.where is not None else []
    own = view.unit_text(entity)
    columns = tuple(sorted(view.referenced([*texts, *([own] if own is not None else [])])))
    return Step(
        f"profile {event.source}", "Count rows that enter and rows that do not", event.source, columns, (), query
    )


def profile(
    catalog: Catalog, event: Event, entity: str, now_us: int, *, ids: bool = False
) -> tuple[EventProfile, Step]:
    """Run ``profile_step``. ``ids`` looks for repeated ids too, which costs a pass of its own over them."""
    view, step = catalog.view(event.source), profile_step(catalog, event, entity, now_us, ids=ids)
    found = catalog.engine.row(step.query, step.name, view.name)
    lost = {k: int(found[k]) for k in ("without_unit", "without_time", "before_1970", "ahead")}
    first, last = (None if found[k] is None else int(found[k]) for k in ("first_us", "last_us"))
    through = last
    if view.clock is not None and view.source.through is not None:
        through = to_us(view.source.through, view.clock.zone)
    return (
        EventProfile(
            source=view.name,
            rows=max(int(found["n"]) - sum(lost.values()), 0),
            first_us=first,
            last_us=last,
            through_us=through,
            fingerprint=catalog.fingerprint(view.relation),
            repeated=None if found["repeated"] is None else int(found["repeated"]),
            **lost,
        ),
        step,
    )


def outcome_columns(catalog: Catalog, outcome: Outcome) -> dict[str, exp.Expr]:
    """``value`` of a conversion as DOUBLE (1 where it is only counted). Raises DataError where it is not a number."""
    view = catalog.view(outcome.event.source)
    return {"value": exp.cast(exp.convert(1), "DOUBLE") if outcome.value is None else view.number(outcome.value)}


def before_and_after(
    catalog: Catalog, entity: str, met: Sequence[Event], led_to: Sequence[Event], now_us: int
) -> tuple[dict[str, int], dict[str, int], Step]:
    """What joining ids did to journeys: counts by the ids as recorded, and by the units that they were joined into.

    ``met`` are events on the way and ``led_to`` those at the end of it. Both maps count units, those that come to the end, and those of
    them that were met on the way; the second also counts units met under several ids.
    """
    rows = [
        _marked(catalog, event, entity, now_us, ends) for ends, of in ((False, met), (True, led_to)) for event in of
    ]
    union: exp.Query = rows[0].tree
    for other in rows[1:]:
        union = exp.union(union, other.tree, distinct=False)
    query = sql(
        """
        SELECT (SELECT count(*) FROM by_id) AS ids, (SELECT count(*) FROM by_id WHERE ends) AS ids_end,
               (SELECT count(*) FROM by_id WHERE ends AND met) AS ids_met,
               count(*) AS units, count(*) FILTER (WHERE ends) AS units_end,
               count(*) FILTER (WHERE ends AND met) AS units_met, count(*) FILTER (WHERE ids > 1) AS several
        FROM by_unit
        """,
        by_id=sql("SELECT own, bool_or(ends) AS ends, bool_or(NOT ends) AS met FROM marked GROUP BY own"),
        by_unit=sql(
            """
            SELECT unit, bool_or(ends) AS ends, bool_or(met) AS met, count(*) AS ids
            FROM (SELECT unit, own, bool_or(ends) AS ends, bool_or(NOT ends) AS met FROM marked GROUP BY unit, own) AS pairs
            GROUP BY unit
            """
        ),
        marked=Query(union),
    )
    reads = ", ".join(dict.fromkeys(event.source for event in (*met, *led_to)))
    step = Step(f"{entity}s before and after joining", reads, "What joining ids did to journeys", (), (), query)
    found = catalog.engine.row(query, step.name)
    words = (f"{entity}s", f"{entity}s at the end of a journey", "of these, met on the way")
    before = {word: int(found[key]) for word, key in zip(words, ("ids", "ids_end", "ids_met"), strict=True)}
    after = {word: int(found[key]) for word, key in zip(words, ("units", "units_end", "units_met"), strict=True)}
    return before, {**after, f"{entity}s met under several ids": int(found["several"])}, step


def _marked(catalog: Catalog, event: Event, entity: str, now_us: int, ends: bool) -> Query:
    """The units and ids of an event, each pair once.."""
    own = {"own": catalog.view(event.source).own_unit(entity)}
    rows = rows_of(catalog, event, entity, now_us, own).tree.subquery("entering")
    unit = exp.alias_(exp.cast(exp.column("unit"), "VARCHAR"), "unit", quoted=False)
    return Query(exp.select(unit, "own", exp.alias_(exp.convert(ends), "ends", quoted=False)).distinct().from_(rows))

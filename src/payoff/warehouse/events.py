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
from payoff.warehouse.sources import Catalog, View, as_id, to_us
from payoff.warehouse.statements import Step
from payoff.warehouse.walks import any_of

AHEAD_US = 86_400_000_000
"""A clock a day fast is a time zone; one faster than that is wrong."""
MOST_VALUE = 1e100
"""A value beyond this is no amount of anything, and the squares of its sums are no numbers."""


@dataclass(frozen=True, slots=True)
class EventProfile:
    """The rows of one event: those that enter (``rows``), and those that do not, by reason. ``last_us`` is the latest that enters.

    ``through_us`` is up to when the source is complete: what it declares, else its latest row.
    ``repeated``: rows whose declared id was seen before (None: it was not looked for); they enter once. ``beneath``: of a source of
    sessions, why rows that these are made of are in none. ``dates``: its times are dates, which count as midnight.
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
    beneath: tuple[tuple[str, int], ...] = ()
    dates: bool = False

    def left_out(self) -> Mapping[str, int]:
        """Why rows did not enter, in words that name the source, with counts above zero."""
        said = {
            f"rows of {self.source} without a unit": self.without_unit,
            f"rows of {self.source} without a time": self.without_time,
            f"rows of {self.source} dated before 1970": self.before_1970,
            f"rows of {self.source} dated in the future": self.ahead,
            f"rows of {self.source} that repeat an id": self.repeated or 0,
        }
        return {reason: n for reason, n in (*said.items(), *self.beneath) if n}


def dated(profiles: Mapping[str, EventProfile]) -> str:
    """What dates for times do to an order in time, in words; "" where there are none."""
    dates = [name for name, p in profiles.items() if p.dates]
    if not dates:
        return ""
    named = f"{', '.join(dates)} tell{'s' if len(dates) == 1 else ''} days and no times"
    if len(dates) == len(profiles):
        return f"{named}: what happened on one day is not told apart, and counts as at once"
    return f"{named}, and a day counts as its midnight: what others time on that day comes after it; give it a time with hours"


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


def profile_step(catalog: Catalog, event: Event, entity: str, *, ids: bool = False) -> Step:
    """The statement that counts rows, those with a unit and a time, and their span: columns as stored, in one pass."""
    view = catalog.view(event.source)
    clock_us(view)
    assert view.clock is not None
    # a naive time in a zone that turns its clock back is not in the order of its instants
    t = view.clock.raw if view.clock.zone == "UTC" or view.clock.kind == "TIMESTAMP WITH TIME ZONE" else view.clock.us
    low, high = fragment("min($t)", t=t), fragment("max($t)", t=t)
    if t is view.clock.raw:
        low, high = view.clock.us_of(low), view.clock.us_of(high)
    query = sql(
        """
        SELECT count(*) AS n, count($u) AS units, count($t) AS times, $low AS first_us, $high AS last_us, $repeated AS repeated
        FROM base
        """,
        u=view.own_id(entity),
        t=t,
        low=low,
        high=high,
        repeated=_repeated(view, ids),
        base=_base(view, event, catalog),
    )
    return Step(f"look at {event.source}", event.source, "rows, units, times", _columns(view, event, entity), (), query)


def _faults_step(catalog: Catalog, event: Event, entity: str, now_us: int, *, ids: bool = False) -> Step:
    """The statement that counts what does not enter, by reason; run where the first look saw that something does not."""
    view = catalog.view(event.source)
    query = sql(
        """
        SELECT count(*) AS n, count(*) FILTER (WHERE $u IS NULL) AS without_unit,
               count(*) FILTER (WHERE $u IS NOT NULL AND $t IS NULL) AS without_time,
               count(*) FILTER (WHERE $u IS NOT NULL AND $t < 0) AS before_1970,
               count(*) FILTER (WHERE $u IS NOT NULL AND $t > $most) AS ahead,
               min($t) FILTER (WHERE $inside) AS first_us, max($t) FILTER (WHERE $inside) AS last_us, $repeated AS repeated
        FROM base
        """,
        u=view.own_id(entity),
        t=clock_us(view),
        most=now_us + AHEAD_US,
        inside=_window_of_time(view, now_us),
        repeated=_repeated(view, ids),
        base=_base(view, event, catalog),
    )
    columns = _columns(view, event, entity)
    return Step(f"faults of {event.source}", event.source, "rows that do not enter, by reason", columns, (), query)


def _base(view: View, event: Event, catalog: Catalog) -> Query:
    rows = view.own_rows()  # what ids were joined into changes no count of rows
    if event.where is None:
        return Query(rows)
    condition = view.condition(event.where)
    if view.own.key in catalog.prepared:  # sorted by unit: no statistics of another column skip anything
        condition = any_of(condition, view.own.columns)
    return Query(rows.where(condition))


def _repeated(view: View, ids: bool) -> exp.Expr:
    if not ids or view.source.id is None:
        return exp.null()
    return fragment("count($id) - count(DISTINCT $id)", id=view.scalar(view.source.id))


def _columns(view: View, event: Event, entity: str) -> tuple[str, ...]:
    own = view.unit_text(entity)
    texts = [text for text in (event.where, own) if text is not None]
    return tuple(sorted(view.referenced(texts)))


def profile(
    catalog: Catalog, event: Event, entity: str, now_us: int, *, ids: bool = False
) -> tuple[EventProfile, list[Step]]:
    """What enters of an event and what does not, and the statements that it took. ``ids`` looks for repeated ids too."""
    view, steps = catalog.view(event.source), [profile_step(catalog, event, entity, ids=ids)]
    found = catalog.engine.row(steps[0].query, steps[0].name, view.name)
    lost = dict.fromkeys(("without_unit", "without_time", "before_1970", "ahead"), 0)
    n, first, last = int(found["n"]), found["first_us"], found["last_us"]
    catalog.engine.rows[view.name] = n
    whole = n == int(found["units"]) == int(found["times"])
    known = first is not None and last is not None  # an infinite time has no microseconds
    if n and not (whole and known and first >= 0 and last <= now_us + AHEAD_US):
        steps.append(_faults_step(catalog, event, entity, now_us, ids=ids))
        found = catalog.engine.row(steps[-1].query, steps[-1].name, view.name)
        lost = {k: int(found[k]) for k in lost}
    first, last = (None if found[k] is None else int(found[k]) for k in ("first_us", "last_us"))
    through = last
    if view.clock is not None and view.source.through is not None:
        through = to_us(view.source.through, view.clock.zone)
    below, more = beneath(catalog, view, now_us)
    return (
        EventProfile(
            source=view.name,
            rows=n - sum(lost.values()),
            first_us=first,
            last_us=last,
            through_us=through,
            fingerprint=catalog.fingerprint(view.relation),
            repeated=None if found["repeated"] is None else int(found["repeated"]),
            beneath=below,
            dates=view.clock is not None and view.clock.kind == "DATE",
            **lost,
        ),
        [*steps, *more],
    )


def beneath(catalog: Catalog, view: View, now_us: int) -> tuple[tuple[tuple[str, int], ...], list[Step]]:
    """Of a source of sessions: the rows without a unit or a time that are in none, by reason, and the statements that counted them."""
    made = view.source.sessions
    if made is None:
        return (), []
    found, steps = profile(catalog, Event(source=made.of), next(iter(view.source.entity)), now_us)
    lost = {"unit": found.without_unit, "time": found.without_time}
    return tuple((f"rows of {made.of} without a {what}, in no session", n) for what, n in lost.items() if n), steps


def outcome_columns(catalog: Catalog, outcome: Outcome) -> dict[str, exp.Expr]:
    """``value`` of a conversion as DOUBLE (1 where it is only counted). Raises DataError where it is not a number."""
    view = catalog.view(outcome.event.source)
    return {"value": exp.cast(exp.convert(1), "DOUBLE") if outcome.value is None else view.number(outcome.value)}


def no_figure(value: exp.Expr) -> exp.Expr:
    """Is a value that is there (not NULL) not a number, infinite, or of no use as an amount?"""
    return fragment(f"NOT (isfinite($v) AND abs($v) <= {MOST_VALUE:g})", v=value)


def before_and_after(
    catalog: Catalog, entity: str, met: Sequence[Event], led_to: Sequence[Event], now_us: int
) -> tuple[dict[str, int], dict[str, int], Step]:
    """What joining ids did to journeys: counts by the ids as recorded, and by the units that they were joined into.

    ``met`` are events on the way and ``led_to`` those at the end of it. Both maps count units, those that come to the end, and those of
    them that were met on the way; the second also counts units met under several ids.
    """
    marks = [(ends, event) for ends, of in ((False, met), (True, led_to)) for event in _by_source(of)]
    rows = [_marked(catalog, event, entity, now_us, ends) for ends, event in marks]
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


def _by_source(events: Sequence[Event]) -> list[Event]:
    """Events of one source as one: rows where any of their conditions holds."""
    conditions: dict[str, list[str | None]] = {}
    for event in events:
        conditions.setdefault(event.source, []).append(event.where)
    return [
        Event(source=source, where=None if None in texts else " OR ".join(f"({t})" for t in dict.fromkeys(texts)))
        for source, texts in conditions.items()
    ]


def _marked(catalog: Catalog, event: Event, entity: str, now_us: int, ends: bool) -> Query:
    """The units and ids of an event, each pair once."""
    view = catalog.view(event.source)
    own = {"own": view.own_unit(entity)}
    rows = rows_of(catalog, event, entity, now_us, own).tree.subquery("entering")
    unit = exp.alias_(as_id(exp.column("unit"), view.type_of(view.unit(entity))), "unit", quoted=False)
    return Query(exp.select(unit, "own", exp.alias_(exp.convert(ends), "ends", quoted=False)).distinct().from_(rows))

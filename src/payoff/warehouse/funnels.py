"""The funnel kernel: how many units go from step to step, by which way and in what time, without a row leaving the engine.

What counts. A *way* is one row of each step, each after the one before it:

- ordered: a row at or after (>=) that of the step before; strictly after (>) where an earlier step reads the same source, so
  that no row serves two steps. Rows of two sources are two rows.
- ``within`` ends with its last instant: a step counts at ``t <= entry + within``, and at ``t <= step before + its own within``.
- an excluded row ends the attempt when it lies strictly between two steps' rows; one at the very time of either does not.
  strict: so does a row of any other step of the funnel (repeats of the two steps themselves do not).
- entry: ``starts <= t < ends``, and only where its whole time has passed by ``as_of``; later steps are not bound by ``ends``.
  ``first`` knows the unit's first row in that span alone, ``any`` every one.
- a step without something (kept): a row of the step before, at t, has no such row in (t, t + within]: of that very row where the
  source of those links to it, else of the unit. ``within`` of the funnel bounds t, not t + the step's own within.
- unordered: k distinct steps in [entry, entry + within], counted from the earliest of them.

Why one pass forward is exact. For each row of a step take the latest row of the step before that was reached and lies at or before
it (ASOF). The later that row, the later the entry it carries (by induction: what is latest for an earlier row lies not after what is
latest for a later one), the shorter the time since it, and the fewer rows lie between. Every rule only gets easier, so where
the latest fails all fail: nothing else need be tried. A unit's way is that of its deepest step, of those the one that entered
latest, of those the one that was there first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from sqlglot import exp

from payoff.errors import DataError
from payoff.spec.journeys import JourneyDesign
from payoff.stats.proportion import order_statistic_ranks
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.events import EventProfile, profile
from payoff.warehouse.funnel_statements import MOST_CLASSES, NONE, OTHER, Bounds, FunnelStatements, select_from
from payoff.warehouse.fused_journeys import FunnelWalk
from payoff.warehouse.query import Query, fragment, sql
from payoff.warehouse.sources import Catalog, View, to_us
from payoff.warehouse.statements import Step
from payoff.warehouse.units import placeholder
from payoff.warehouse.walks import Walks

_QUANTILES = (0.25, 0.5, 0.75)
_SAMPLE = 200_000
"""Rows that tell whether steps are in order; of more, so many units' are taken."""


@dataclass(frozen=True, slots=True)
class TimeQuantile:
    """The ``q`` quantile of the seconds from the step before, with the order statistics that hold it at the design's level."""

    q: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Reached:
    """``units`` that came to a step (of ``segment``; None: all). ``times`` lack those quantiles that too few units tell."""

    position: int
    segment: str | None
    units: int
    times: tuple[TimeQuantile, ...] = ()


@dataclass(frozen=True, slots=True)
class Precedence:
    """Of units that have rows of both steps (``units``, of a sample where there are many), those whose first row of the later step is
    before that of the earlier. ``rows`` are the later step's."""

    position: int
    units: int
    earlier: int
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class FunnelData:
    """``labels`` by position; ``reached`` has every step of the whole, then of each class. ``inside``: units whose only entries are
    after ``cut_us``, so that their time has not passed. ``kept``: the last step is the absence of something. ``classes`` were
    found, of which ``folded`` are taken together. ``days``: sources with dates for times that several steps read."""

    sources: Mapping[str, EventProfile]
    sql: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    as_of_us: int | None
    left_out: Mapping[str, int]
    labels: tuple[str, ...]
    reached: tuple[Reached, ...]
    inside: int
    cut_us: int | None
    window_us: int | None
    kept: bool
    classes: int = 0
    folded: int = 0
    precedence: tuple[Precedence, ...] = ()
    dates: tuple[str, ...] = ()
    days: tuple[str, ...] = ()
    repeated: Mapping[str, int] = field(default_factory=dict)


def plan(catalog: Catalog, design: JourneyDesign, walks: Walks | None = None) -> list[Step]:
    """The statements in order, what only the data can tell left as $parameters. Reads no rows."""
    return _Reader(catalog, design).plan(walks or Walks(catalog.engine))


def begin(catalog: Catalog, design: JourneyDesign, walks: Walks) -> _Reader:
    """Look at what there is, and plan the walk that it takes, if it takes one; ``read`` of what comes back runs the rest. Both raise
    DataError where a source or a column is not what the definition says."""
    return _Reader(catalog, design).begin(walks)


def read(catalog: Catalog, design: JourneyDesign) -> FunnelData:
    """Run them. Raises DataError."""
    return begin(catalog, design, Walks(catalog.engine)).read()


class _Reader:
    """Runs the statements of one funnel. ``_steps`` lists what was run."""

    def __init__(self, catalog: Catalog, design: JourneyDesign) -> None:
        self._funnel = FunnelStatements(catalog, design)
        self._steps: list[Step] = []
        self._tables: list[str] = []

    def plan(self, walks: Walks) -> list[Step]:
        self._walks = walks
        steps = self._funnel.profiles() + ([self._funnel.profile_linked()] if self._funnel.link is not None else [])
        cut = placeholder("latest_entry_whose_time_has_passed")
        self._funnel.bounds.cut = cut
        self._funnel.bounds.steps = self._funnel.bounds.absent = placeholder("latest_time_of_a_step")
        self._plan_walk()
        walked = isinstance(self._walk, FunnelWalk)
        steps += [self._walker.step] if walked else self._gathering()
        if self._funnel.declared.by is not None:
            steps += [self._funnel.classes().keeping(self._funnel.table("classes")), self._funnel.largest()]
        largest = None if self._funnel.declared.by is None else [placeholder("largest_classes")]
        steps.append(self._funnel.walked(largest).keeping(self._funnel.table("walked")))
        steps += [self._funnel.counts(), self._funnel.times({(2, None): [1]}, split=False)]
        if self._funnel.declared.by is not None:
            steps.append(self._funnel.times({(2, "$class"): [1]}, split=True))
        ordered = self._funnel.m > 1 and self._funnel.declared.order != "unordered"
        return steps + ([self._funnel.rows_by_step(), self._funnel.precedence()] if ordered and not walked else [])

    def _gathering(self) -> list[Step]:
        """From rows to one way a unit, in SQL."""
        steps = [
            self._funnel.keep_later(source).keeping(self._funnel.later_table(source))
            for source in self._funnel.sources.values()
            if source.later
        ]
        unordered = self._funnel.declared.order == "unordered"
        steps += [
            step for s in self._funnel.sources.values() if unordered and (step := self._funnel.doubles(s)) is not None
        ]
        steps.append(self._funnel.entered().keeping(self._funnel.table("entered")))
        return steps + ([self._funnel.gathered().keeping(self._funnel.table("ways"))] if unordered else self._passes())

    def _passes(self) -> list[Step]:
        return [
            *(self._funnel.reach(k).keeping(self._funnel.table(f"step_{k}")) for k in range(2, self._funnel.m + 1)),
            *(
                [self._funnel.keeps().keeping(self._funnel.table(f"step_{self._funnel.m + 1}"))]
                if self._funnel.kept is not None
                else []
            ),
            self._funnel.ways().keeping(self._funnel.table("ways")),
        ]

    def _keep(self, name: str, step: Step) -> None:
        table = self._funnel.table(name)
        self._funnel.catalog.engine.keep(table, step.query, step.name, step.reads or None)
        self._tables.append(table)
        self._steps.append(step.keeping(table))

    def _fetch(self, step: Step) -> list[dict[str, Any]]:
        self._steps.append(step)
        rows: list[dict[str, Any]] = self._funnel.catalog.engine.fetch(step.query, step.name).to_pylist()
        return rows

    def begin(self, walks: Walks) -> Self:
        self._walks = walks
        self._profiles, self._left_out = self._look()
        self._walk: FunnelWalk | str = "nothing is there"
        as_of = self._as_of(self._profiles)
        if as_of is not None:
            self._bound(as_of, as_of - (self._funnel.window or 0) - self._funnel.wait)
            self._plan_walk()
        return self

    def _plan_walk(self) -> None:
        self._walk = FunnelWalk.of(self._funnel)
        if isinstance(self._walk, FunnelWalk):
            self._walker = self._walk.walker(self._funnel, self._walking(self._walk))
            self._walks.plan(self._walker)

    def read(self) -> FunnelData:
        try:
            return self._read()
        finally:
            for table in self._tables:
                self._funnel.catalog.engine.drop(table)

    def _read(self) -> FunnelData:
        profiles, left_out, walk = self._profiles, self._left_out, self._walk
        as_of = self._as_of(profiles)
        cut = None if as_of is None else as_of - (self._funnel.window or 0) - self._funnel.wait
        labels = tuple(step.label for step in self._funnel.declared.steps)
        if self._funnel.declared.order == "unordered":
            labels = (
                *(f"any {k} of {self._funnel.m} steps" for k in range(1, self._funnel.m)),
                f"all {self._funnel.m} steps",
            )
        entered = inside = 0
        reached: list[Reached] = []
        found = folded = 0
        precedence: tuple[Precedence, ...] = ()
        if as_of is not None and cut is not None:
            if isinstance(walk, FunnelWalk):
                self._follow(walk)
            else:
                self._gather()
            counted = sql(f"SELECT count(t1) AS n, count(*) - count(t1) AS inside FROM {self._funnel.table('entered')}")
            row = self._fetch(
                self._funnel.step("units that entered", "", "units that entered, their time passed or not", counted)
            )[0]
            entered, inside = int(row["n"]), int(row["inside"])
            if entered:
                if isinstance(walk, str):
                    self._go()
                reached, found, folded = self._reached(entered)
                if self._funnel.m > 1 and self._funnel.declared.order != "unordered":
                    precedence = self._preceding() if isinstance(walk, str) else self._walked_first(walk)
        if not reached:
            reached = [Reached(1, None, entered)] + [Reached(k, None, 0) for k in range(2, len(labels) + 1)]
        return FunnelData(
            sources=profiles,
            sql=tuple((step.name, step.sql) for step in self._steps),
            steps=tuple(self._steps),
            as_of_us=as_of,
            left_out=left_out,
            labels=labels,
            reached=tuple(reached),
            inside=inside,
            cut_us=cut,
            window_us=self._funnel.window,
            kept=self._funnel.kept is not None,
            classes=found,
            folded=folded,
            precedence=precedence,
            dates=tuple(
                s.view.name for s in self._funnel.sources.values() if s.view.clock and s.view.clock.kind == "DATE"
            ),
            days=tuple(
                s.view.name
                for s in self._funnel.sources.values()
                if s.view.clock and s.view.clock.kind == "DATE" and len(s.happening) > 1
            ),
            repeated={p.source: p.repeated for p in profiles.values() if p.repeated is not None},
        )

    def _look(self) -> tuple[dict[str, EventProfile], dict[str, int]]:
        """What enters of each source, and what does not, by reason."""
        profiles: dict[str, EventProfile] = {}
        left_out: dict[str, int] = {}
        for source in self._funnel.sources.values():
            found, steps = profile(
                self._funnel.catalog,
                source.event(source.events),
                self._funnel.design.entity,
                self._funnel.design.now_us,
                ids=source.view.source.id is not None,
            )
            self._steps += steps
            profiles[found.source] = found
            left_out |= found.left_out()
            source.repeated = found.repeated or 0
            source.clean = not (found.without_unit or found.without_time or found.before_1970 or found.ahead)
        if self._funnel.link is not None:
            view, before = self._funnel.link[0], self._funnel.of(f"s{self._funnel.m}").view
            row = self._fetch(self._funnel.profile_linked())[0]
            lost = {k: int(row[k]) for k in ("without_time", "before_1970", "ahead")}
            first, last = (None if row[k] is None else int(row[k]) for k in ("first_us", "last_us"))
            unlinked = int(row["without_link"])
            linked = EventProfile(
                source=view.name,
                rows=max(int(row["n"]) - unlinked - sum(lost.values()), 0),
                without_unit=0,
                through_us=self._through(view) if view.source.through is not None else last,
                first_us=first,
                last_us=last,
                fingerprint=self._funnel.catalog.fingerprint(view.relation),
                beneath=(),
                dates=view.clock is not None and view.clock.kind == "DATE",
                **lost,
            )
            left_out |= linked.left_out()
            if unlinked:
                left_out[f"rows of {view.name} without the id of {before.name}"] = unlinked
            profiles.setdefault(view.name, linked)
            event = self._funnel.of(f"s{self._funnel.m}").events[f"s{self._funnel.m}"]
            base = before.rows() if event.where is None else before.rows().where(before.condition(event.where))
            query = select_from(
                Query(base), [exp.alias_(fragment("count(*)"), "n")], fragment("$id IS NULL", id=self._funnel.link[3])
            )
            nameless = int(
                self._fetch(self._funnel.step("rows without an id", before.name, "what nothing can link to", query))[0][
                    "n"
                ]
            )
            if nameless:
                left_out[f"rows of {before.name} without an id, to which no {view.name} can belong"] = nameless
        return profiles, left_out

    @staticmethod
    def _through(view: View) -> int:
        assert view.clock is not None and view.source.through is not None
        return to_us(view.source.through, view.clock.zone)

    def _as_of(self, profiles: Mapping[str, EventProfile]) -> int | None:
        """Up to when all of the sources are complete: the earliest that one declares, else the latest row over all of them."""
        declared = [
            self._through(v) for n in profiles if (v := self._funnel.catalog.view(n)).source.through is not None
        ]
        seen = [p.last_us for p in profiles.values() if p.last_us is not None]
        return None if not seen else min(declared, default=max(seen))

    def _bound(self, as_of: int, cut: int) -> None:
        last = cut if self._funnel.last_entry() is None else min(cut, self._funnel.last_entry() or 0)
        steps = as_of - self._funnel.wait if self._funnel.window is None else last + self._funnel.window
        self._funnel.bounds = Bounds(self._funnel.design.starts_us, cut, steps, steps + self._funnel.wait)

    def _refuse_doubles(self) -> None:
        for source in self._funnel.sources.values():
            step = self._funnel.doubles(source)
            if step is None:
                continue
            n = int(self._fetch(step)[0]["n"])
            if n:
                raise DataError(
                    f"{n:,} rows meet the conditions of more than one step, and in a funnel whose steps come in any order a row"
                    " serves one; write conditions that exclude each other",
                    source=source.view.name,
                    count=n,
                )

    def _gather(self) -> None:
        """The rows of later steps, and every unit's entries."""
        for source in self._funnel.sources.values():
            if source.later:
                name = f"rows_of_{source.view.name}"
                self._keep(name, self._funnel.keep_later(source))
        if self._funnel.declared.order == "unordered":
            self._refuse_doubles()
        self._keep("entered", self._funnel.entered())

    def _walking(self, walk: FunnelWalk) -> Step:
        """Entries and ways, from one walk over the prepared rows."""
        source = next(iter(self._funnel.sources.values())).view
        texts = [e.where for s in self._funnel.sources.values() for e in s.events.values() if e.where is not None]
        return self._funnel.step(
            "entries and ways",
            source.name,
            "every unit's entries and deepest way: rows of the prepared copy, followed outside SQL in one walk",
            walk.rows.query(walk.reads),
            tuple(sorted(source.referenced(texts))),
        )

    def _follow(self, walk: FunnelWalk) -> None:
        self._walks.make(self._walker)
        self._steps.append(self._walker.step)
        engine = self._funnel.catalog.engine
        assert isinstance(engine, DuckDBEngine)
        for name, rows in (("entered", walk.entered), ("ways", walk.ways)):
            assert rows is not None
            engine.show(self._funnel.table(name), rows)
            self._tables.append(self._funnel.table(name))

    def _walked_first(self, walk: FunnelWalk) -> tuple[Precedence, ...]:
        sampled = self._funnel.sampled(max(1, sum(walk.later[1:]) // _SAMPLE))
        seen = walk.precedence(self._funnel.catalog, sampled)
        return tuple(
            Precedence(k, seen[f"both_{k}"], seen[f"earlier_{k}"], walk.later[k - 1])
            for k in range(2, self._funnel.m + 1)
        )

    def _go(self) -> None:
        """From entries to one way a unit."""
        if self._funnel.declared.order == "unordered":
            self._keep("ways", self._funnel.gathered())
            return
        for k in range(2, self._funnel.m + 1):
            self._keep(f"step_{k}", self._funnel.reach(k))
        if self._funnel.kept is not None:
            self._keep(f"step_{self._funnel.m + 1}", self._funnel.keeps())
        self._keep("ways", self._funnel.ways())

    def _reached(self, entered: int) -> tuple[list[Reached], int, int]:
        """Units and times at each step, of all and by class; how many classes there are, and how many were taken together."""
        told: list[str] | None = None
        found = 0
        if self._funnel.declared.by is not None:
            self._keep("classes", self._funnel.classes())
            sizes = self._fetch(self._funnel.largest())
            found = int(sizes[0]["classes"]) if sizes else 0
            told = [
                r["class"]
                for r in sizes[:MOST_CLASSES]
                if int(r["n"]) >= self._funnel.design.min_cell and r["class"] != OTHER
            ]
        self._keep("walked", self._funnel.walked(None if told is None else [exp.convert(c) for c in told]))
        units = {(int(r["position"]), r["class"]): int(r["n"]) for r in self._fetch(self._funnel.counts())}
        positions = range(1, len(self._funnel.declared.steps) + 1)
        classes = sorted({c for _, c in units if c is not None}, key=lambda c: (c == OTHER, c == NONE, c))
        total: dict[tuple[int, str | None], int] = {(1, None): entered}
        for p in positions[1:]:
            total[p, None] = sum(n for (at, _), n in units.items() if at == p)
        split: dict[tuple[int, str | None], int] = {(p, c): units.get((p, c), 0) for c in classes for p in positions}
        times = self._quantiles(total, False) | (self._quantiles(split, True) if classes else {})
        return (
            [Reached(p, c, n, times.get((p, c), ())) for (p, c), n in (total | split).items()],
            found,
            found - len(told) if told is not None else 0,
        )

    def _quantiles(
        self, units: Mapping[tuple[int, str | None], int], split: bool
    ) -> dict[tuple[int, str | None], tuple[TimeQuantile, ...]]:
        places: dict[tuple[int, str | None], dict[float, tuple[int, int, int, int]]] = {}
        for (position, c), n in units.items():
            for q in _QUANTILES if 1 < position <= self._funnel.m else ():
                ends = order_statistic_ranks(n, q, self._funnel.design.level)
                if ends is not None:
                    # as quantile_cont: between the two rows on either side of (n - 1) q
                    lower = int((n - 1) * q)
                    around = (lower + 1, min(lower + 2, n))
                    places.setdefault((position, c), {})[q] = (ends[0], *around, ends[1])
        if not places:
            return {}
        wanted = {key: [rank for ranks in qs.values() for rank in ranks] for key, qs in places.items()}
        at = {
            (int(r["position"]), r["class"], int(r["place"])): float(r["passed"]) / 1e6
            for r in self._fetch(self._funnel.times(wanted, split))
        }
        out = {}
        for (position, c), qs in places.items():
            n, said = units[position, c], []
            for q, ranks in qs.items():
                low, below, above, high = (at[position, c, rank] for rank in ranks)
                value = below + ((n - 1) * q - int((n - 1) * q)) * (above - below)
                said.append(TimeQuantile(q, min(max(value, low), high), low, high))
            out[position, c] = tuple(said)
        return out

    def _preceding(self) -> tuple[Precedence, ...]:
        rows = {int(r["position"]): int(r["n"]) for r in self._fetch(self._funnel.rows_by_step())}
        row = self._fetch(self._funnel.precedence(max(1, sum(rows.values()) // _SAMPLE)))[0]
        return tuple(
            Precedence(k, int(row[f"both_{k}"]), int(row[f"earlier_{k}"]), rows[k])
            for k in range(2, self._funnel.m + 1)
        )

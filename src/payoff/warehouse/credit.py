"""The attribution kernel: credit of touches for conversions, summed by hash group of the unit in a few passes.

A touch counts for a conversion of its unit where ``conversion - window < touch <= conversion``: one at the very time of the conversion
counts. Touches go by (time, order of the touchpoints); a conversion may repeat, and each looks back by itself. Pairs of touch and
conversion are made once, at the largest window, for units that convert alone; every rule is then a weight per pair. What
returns grows with groups x touchpoints x models, never with units.

A Markov path is a unit's touches since its previous conversion. Those within the window before the next conversion lead to it;
the others lead nowhere, and are cut where two are further apart than the window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlglot import exp

from payoff.errors import DataError, PayoffError
from payoff.estimate import FloatArray
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Attribution, Model, Spend, format_duration, model_names
from payoff.stats.moments import Moments
from payoff.warehouse.events import AHEAD_US, EventProfile, clock_us
from payoff.warehouse.moves import moves_query
from payoff.warehouse.query import ExpressionError, Query, conjunction, fragment, sql
from payoff.warehouse.rules import ORDER, RULES, Rules
from payoff.warehouse.sources import Catalog
from payoff.warehouse.statements import Step
from payoff.warehouse.touches import Stop, Touches, outcome_readings
from payoff.warehouse.units import placeholder

GROUPS = 512
"""Hash groups of units: what a bootstrap draws."""
POSITIONS = 10
"""Positions in a path that ordered credit tells apart; later ones are taken together with the last."""
_MOVES = 2_000_000
"""Rows of moves that may return: where there are more states, fewer groups tell units apart."""
_EXACT = 1e-9
_TABLES = ("raw", "exposed", "units", "conversions", "touches", "heavy", "ranks", "reach", "pairs")

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """Moves of Markov paths, a row each, as ``stats.markov.Transitions.of`` takes them.

    ``open``: paths that lead nowhere so far, whose last touch is less than the window old.
    """

    order: int
    groups: int
    group: IntArray
    state: IntArray
    follows: IntArray
    count: IntArray
    converting: int
    nowhere: int
    open: int


@dataclass(frozen=True, slots=True, eq=False)
class ArmCredit:
    """Credit for conversions of one arm's units at or after their exposure, (groups, touchpoints) by model.

    ``chosen`` is that of personalised touches, ``other`` of the rest, each with its worth. ``per_unit``: worth attributed per
    exposed unit (k = 1, zeros in): "(total)", and that of personalised touches by rule. ``n`` exposed units.
    """

    arm: str
    n: int
    conversions: FloatArray
    worth: FloatArray
    chosen: Mapping[str, FloatArray]
    chosen_worth: Mapping[str, FloatArray]
    other: Mapping[str, FloatArray]
    other_worth: Mapping[str, FloatArray]
    per_unit: Mapping[str, Moments]


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """What conversions of one ``outcome`` credit over one ``window``. Arrays by hash group, then by touchpoint.

    ``counts`` and ``worth``: by model. ``unattributed``: conversions without a touch, (groups,). ``units``: converting units behind
    each touchpoint, ``converters`` behind any. ``touched``: conversions with a touch; of these ``late``: the oldest lies in the
    last tenth of the window. ``positions``: (groups, touchpoints, POSITIONS), ordered credit and its worth. ``moves``: by Markov model.
    """

    outcome: str
    window: str
    window_us: int
    counts: Mapping[str, FloatArray]
    worth: Mapping[str, FloatArray]
    unattributed: FloatArray
    unattributed_worth: FloatArray
    units: IntArray
    converters: int
    touched: int
    late: int
    positions: tuple[FloatArray, FloatArray] | None
    moves: Mapping[str, Moves]
    arms: tuple[ArmCredit, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Total:
    """All conversions of an outcome: how many and their worth, (groups,). ``unvalued``: their value is NULL, which counts as none."""

    outcome: str
    source: str
    valued: bool
    conversions: FloatArray
    worth: FloatArray
    units: int
    unvalued: int


@dataclass(frozen=True, slots=True)
class Capped:
    """``units`` had more pairs of touch and conversion than may be. What keeping each conversion's newest touches dropped."""

    units: int = 0
    touches: int = 0
    conversions: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class CreditData:
    """``models``: the kind of each, in order. ``refused``: models without credit, and why. ``costs``: by touchpoint's label, or by the name of one whose spending covers all
    its values; in time with the conversions. ``without_unit``: conversions by source. ``arms``: exposed units."""

    models: Mapping[str, str]
    stops: tuple[Stop, ...]
    totals: Mapping[str, Total]
    credits: tuple[Credit, ...]
    arms: Mapping[str, int]
    costs: Mapping[str, float]
    capped: Capped
    refused: Mapping[str, str]
    left_out: Mapping[str, int]
    without_unit: Mapping[str, int]
    touch_sources: Mapping[str, EventProfile]
    outcome_sources: Mapping[str, EventProfile]
    as_of_us: int
    steps: tuple[Step, ...]

    @property
    def sources(self) -> Mapping[str, EventProfile]:
        return {**self.touch_sources, **self.outcome_sources}

    @property
    def sql(self) -> tuple[tuple[str, str], ...]:
        return tuple((step.name, step.sql) for step in self.steps)


def plan(catalog: Catalog, design: JourneyDesign) -> list[Step]:
    """The statements in order, with what only the data can tell left as $parameters. Reads no rows."""
    return list(_Kernel(catalog, design).planned())


def read(catalog: Catalog, design: JourneyDesign) -> CreditData:
    """Run them. Raises DataError (a source or a value is not what its definition says), and PayoffError where credit does not add up
    to the conversions, which is a fault of ours."""
    kernel = _Kernel(catalog, design)
    try:
        return kernel.read()
    finally:
        for name in _TABLES:
            catalog.engine.drop(f"credit_{name}")


class _Kernel:
    def __init__(self, catalog: Catalog, design: JourneyDesign) -> None:
        assert isinstance(design.declared, Attribution)
        self.catalog, self.design, self.declared = catalog, design, design.declared
        self.models = dict(zip(model_names(self.declared.models), self.declared.models, strict=True))
        self.outcomes = self.declared.outcomes
        self.windows = {format_duration(w): round(w.total_seconds() * 1e6) for w in self.declared.window}
        self.longest = max(self.windows.values())
        self.touches = Touches(catalog, design)
        self.readings = outcome_readings(catalog, design, self.outcomes)
        self.arms: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        self.steps: list[Step] = []
        self._sizes = np.zeros(
            (3, len(self.outcomes), 1, GROUPS)
        )  # conversions, their worth, and its size without signs
        kinds = self.touches.unit_types | {r.unit_type for r in self.readings}
        if design.arms is not None:
            view = catalog.view(design.arms.source)
            kinds.add(view.type_of(view.unit(design.entity)))
        self.text = len(kinds) > 1

    # ---------------------------------------------------------------- in order

    def planned(self) -> Iterator[Step]:
        for reading in self.readings:
            yield from reading.plan()
        yield from self.touches.plan()
        yield self._raw()
        if self.design.arms is not None:
            yield self._exposed()
            self.arms = {"$arm": 0}
        yield self._units()
        yield self._conversions()
        yield from self._totals()
        yield self._touches(placeholder("first_conversion_less_window"), placeholder("last_conversion"))
        yield self._heavy()
        yield self._pairs(heavy=False)
        yield self._untouched()
        yield self._behind()
        for label in self.windows:
            for model in self._of("custom"):
                yield self._faults(label, model)
        for label in self.windows:
            if self._of(*RULES):
                yield self._rules(label)
            if self._of(*RULES) and self.arms:
                yield self._per_unit(label)
            if self._of("participation", "shapley"):
                yield self._sets(label)
            if self._of("ordered_shapley"):
                yield self._ordered(label)
            for outcome in self.outcomes:
                for chain in self._of("markov").values():
                    yield self._moves(outcome, label, chain.order or 1, GROUPS)
        yield from (step for _, step in self._costs())

    def read(self) -> CreditData:
        for reading in self.readings:
            self.steps += reading.look(self.catalog)
        self.touches.look()
        self.steps += self.touches.steps
        self._keep("raw", self._raw())
        unvalued = self._sound()
        if self.design.arms is not None:
            self._keep("exposed", self._exposed())
            counted = sql("SELECT arm, count(*) AS n FROM credit_exposed GROUP BY arm ORDER BY arm")
            rows = self.catalog.engine.fetch(counted, "count exposed units", self.design.arms.source).to_pylist()
            self.arms = {r["arm"]: int(r["n"]) for r in rows}
        self._keep("units", self._units())
        self._keep("conversions", self._conversions())
        totals, span = self._read_totals(unvalued)
        credits: tuple[Credit, ...] = ()
        capped = Capped()
        if span is not None:
            self._keep("touches", self._touches(span[0] - self.longest + 1, span[1]))
            self._keep("heavy", self._heavy())
            heavy, capped = self._cap()
            self._keep("pairs", self._pairs(heavy))
            for name in ("units", "touches", "ranks", "reach"):
                self.catalog.engine.drop(f"credit_{name}")
            credits = tuple(self._credits(totals))
        return CreditData(
            models={name: m.kind for name, m in self.models.items()},
            stops=self.touches.stops,
            totals=totals,
            credits=credits,
            arms=self.arms,
            costs=self._read_costs(),
            capped=capped,
            refused=self.refused,
            left_out=self._left_out(capped),
            without_unit={r.source: r.profile.without_unit for r in self.readings if r.profile is not None},
            touch_sources=self.touches.profiles,
            outcome_sources={r.source: r.profile for r in self.readings if r.profile is not None},
            as_of_us=self._as_of(),
            steps=tuple(self.steps),
        )

    def _of(self, *kinds: str) -> dict[str, Model]:
        return {name: m for name, m in self.models.items() if m.kind in kinds and name not in self.refused}

    @property
    def _slots(self) -> int:
        """Arms, and none: what a cell is made of beside the outcome and the group."""
        return len(self.arms) + 1

    def _step(self, name: str, purpose: str, query: Query, source: str = "") -> Step:
        columns: tuple[str, ...] = ()
        if source:
            known = set(self.catalog.view(source).relation.columns)
            columns = tuple(sorted({c.name for c in query.tree.find_all(exp.Column) if c.name in known}))
        return Step(name, source, purpose, columns, (self.design.name,), query)

    def _keep(self, table: str, step: Step) -> None:
        self.steps.append(step)
        self.catalog.engine.keep(f"credit_{table}", step.query, step.name, step.reads or None)

    def _fetch(self, step: Step) -> pa.Table:
        self.steps.append(step)
        return self.catalog.engine.fetch(step.query, step.name, step.reads or None)

    def _as_of(self) -> int:
        """Up to when all that is read is complete."""
        profiles = [*self.touches.profiles.values(), *(r.profile for r in self.readings if r.profile is not None)]
        ends = [p.through_us for p in profiles if p.through_us is not None]
        return min([*ends, self.design.now_us])

    def _left_out(self, capped: Capped) -> dict[str, int]:
        out: dict[str, int] = {}
        for profile in (*self.touches.profiles.values(), *(r.profile for r in self.readings if r.profile is not None)):
            for reason, n in profile.left_out().items():
                out[reason] = max(n, out.get(reason, 0))  # a source read for both says the same of both
        if capped.touches:
            reason = f"touches beyond the newest of each conversion, of units with more than {self.declared.max_pairs:,} pairs"
            out[reason] = capped.touches
        return out

    # ---------------------------------------------------------------- conversions

    def _raw(self) -> Step:
        """Conversions; with a Markov model those before the start too, which end paths that are not ours."""
        starts, ends = self.design.starts_us, self.design.ends_us
        low = starts if starts is None or not self._of("markov") else starts - self.longest
        high = None if ends is None else ends - 1
        union: exp.Query | None = None
        for reading in self.readings:
            rows = exp.select("unit", "us", "mark", "worth").from_(
                reading.query(low, high, self.text).tree.subquery("rows_of")
            )
            union = rows if union is None else exp.union(union, rows, distinct=False)
        assert union is not None
        inside = exp.true() if starts is None else fragment("us >= $starts", starts=starts)
        query = sql(
            "SELECT unit, us, mark AS outcome, worth, $inside AS inside FROM converted",
            inside=inside,
            converted=Query(union),
        )
        source = self.readings[0].source
        return self._step(
            f"conversions in {', '.join(r.source for r in self.readings)}", "every conversion", query, source
        )

    def _sound(self) -> dict[int, int]:
        """Conversions without a value by outcome. Raises DataError on a value that is not a finite number."""
        query = sql(
            """
            SELECT outcome, count(*) FILTER (WHERE NOT isfinite(worth)) AS endless,
                   count(*) FILTER (WHERE worth IS NULL AND inside) AS unvalued
            FROM credit_raw GROUP BY outcome
            """
        )
        out = {}
        for row in self.catalog.engine.fetch(query, "look at values of conversions").to_pylist():
            outcome = list(self.outcomes.values())[int(row["outcome"])]
            if row["endless"]:
                raise DataError(
                    f"{int(row['endless']):,} values of conversions are infinite or not a number",
                    source=outcome.event.source,
                    column=outcome.value,
                    count=int(row["endless"]),
                )
            out[int(row["outcome"])] = int(row["unvalued"])
        return out

    def _exposed(self) -> Step:
        """First exposure and arm of each unit that was seen in one arm alone."""
        arms = self.design.arms
        assert arms is not None
        view = self.catalog.view(arms.source)
        where = arms.assignment.where
        t = exp.cast(exp.convert(0), "BIGINT") if view.clock is None else clock_us(view)
        timed = view.clock is not None
        rows = view.rows().where(
            conjunction(
                fragment("$u IS NOT NULL", u=view.unit(self.design.entity)),
                None if where is None else view.condition(where),
                fragment("$t >= $us", t=t, us=arms.starts_us) if timed and arms.starts_us is not None else None,
                fragment("$t < $us", t=t, us=arms.ends_us) if timed and arms.ends_us is not None else None,
            )
        )
        unit = view.unit(self.design.entity)
        query = sql(
            """
            SELECT unit, lo AS arm, t0
            FROM (
              SELECT $unit AS unit, min($arm) AS lo, max($arm) AS hi, min($t) FILTER (WHERE $arm IS NOT NULL) AS t0
              FROM base GROUP BY ALL
            )
            WHERE lo = hi AND t0 IS NOT NULL
            """,
            unit=exp.cast(unit, "VARCHAR") if self.text else unit,
            arm=exp.cast(view.scalar(arms.assignment.variant), "VARCHAR"),
            t=t,
            base=Query(rows),
        )
        return self._step(f"arms of {arms.experiment}", "first exposure and arm of every unit", query, arms.source)

    def _units(self) -> Step:
        query = sql(
            """
            SELECT unit, CAST(row_number() OVER () AS INTEGER) AS uid, CAST(hash(unit) % $groups AS INTEGER) AS g
            FROM (SELECT DISTINCT unit FROM credit_raw WHERE inside)
            """,
            groups=GROUPS,
        )
        return self._step("number the converting units", "units by number, and their hash groups", query)

    def _conversions(self) -> Step:
        """``cell`` is the outcome, the arm (0: none) and the hash group in one number."""
        arm: exp.Expr = exp.convert(0)
        joined = ""
        if self.arms:
            choice = exp.Case()
            for at, name in enumerate(self.arms, start=1):
                choice = choice.when(fragment("x.arm = $a", a=name), exp.convert(at))
            arm = choice.else_(exp.convert(0))
            joined = "LEFT JOIN credit_exposed AS x ON x.unit = r.unit AND x.t0 <= r.us"
        query = sql(
            f"""
            SELECT CAST(row_number() OVER () AS INTEGER) AS cid, u.uid, r.us,
                   CAST((r.outcome * $slots + $arm) * $groups + u.g AS INTEGER) AS cell,
                   coalesce(r.worth, 0.0::DOUBLE) AS worth
            FROM credit_raw AS r JOIN credit_units AS u ON u.unit = r.unit {joined}
            WHERE r.inside
            """,
            slots=self._slots,
            arm=arm,
            groups=GROUPS,
        )
        return self._step("number the conversions", "conversions by outcome, arm and hash group", query)

    def _totals(self) -> tuple[Step, Step]:
        by_cell = sql(
            """
            SELECT cell, count(*) AS n, sum(worth) AS worth, sum(abs(worth)) AS size
            FROM credit_conversions GROUP BY cell
            """
        )
        by_outcome = sql(
            """
            SELECT cell // $of AS outcome, count(DISTINCT uid) AS units, min(us) AS first_us, max(us) AS last_us
            FROM credit_conversions GROUP BY ALL
            """,
            of=GROUPS * self._slots,
        )
        return (
            self._step("total of conversions", "what all credit must add up to", by_cell),
            self._step("units that convert", "and the span of time of their conversions", by_outcome),
        )

    def _read_totals(self, unvalued: Mapping[int, int]) -> tuple[dict[str, Total], tuple[int, int] | None]:
        by_cell, by_outcome = (self._fetch(step) for step in self._totals())
        self._sizes = np.zeros((3, len(self.outcomes), self._slots, GROUPS))
        for way, name in enumerate(("n", "worth", "size")):
            self._sizes[(way, *self._at(by_cell))] = _floats(by_cell, name)
        spans = {int(r["outcome"]): r for r in by_outcome.to_pylist()}
        totals = {}
        for o, (name, outcome) in enumerate(self.outcomes.items()):
            totals[name] = Total(
                name,
                outcome.event.source,
                outcome.value is not None,
                self._sizes[0, o].sum(axis=0),
                self._sizes[1, o].sum(axis=0),
                int(spans[o]["units"]) if o in spans else 0,
                unvalued.get(o, 0),
            )
        if not spans:
            return totals, None
        return totals, (min(int(r["first_us"]) for r in spans.values()), max(int(r["last_us"]) for r in spans.values()))

    # ---------------------------------------------------------------- pairs

    def _touches(self, low: exp.Expr | int, high: exp.Expr | int) -> Step:
        query = sql(
            """
            SELECT u.uid, t.us, t.code, t.personalised
            FROM touched AS t JOIN credit_units AS u ON u.unit = t.unit
            """,
            touched=self.touches.query(low, high, self.text),
        )
        sources = ", ".join(r.source for r in self.touches.readings)
        return self._step(
            f"touches in {sources}", "of units that convert alone", query, self.touches.readings[0].source
        )

    def _heavy(self) -> Step:
        query = sql(
            """
            SELECT t.uid, t.n AS touches, c.n AS conversions, greatest($most // c.n, 1) AS keep
            FROM (SELECT uid, count(*) AS n FROM credit_touches GROUP BY uid) AS t
            JOIN (SELECT uid, count(*) AS n FROM credit_conversions GROUP BY uid) AS c ON c.uid = t.uid
            WHERE t.n * c.n > $most
            """,
            most=self.declared.max_pairs,
        )
        return self._step(
            "units with too many pairs",
            "each of their conversions keeps its newest touches, so that none weighs on the rest",
            query,
        )

    def _cap(self) -> tuple[bool, Capped]:
        """Are there heavy units? Their touches are ranked, and what each conversion loses is counted."""
        count = self.catalog.engine.row(
            sql("SELECT count(*) AS n FROM credit_heavy"), "count units with too many pairs"
        )
        if not count["n"]:
            return False, Capped()
        ranked = sql(
            """
            SELECT t.*, h.keep, row_number() OVER (PARTITION BY t.uid ORDER BY t.us, t.code, t.personalised) AS r
            FROM credit_touches AS t JOIN credit_heavy AS h ON h.uid = t.uid
            """
        )
        self._keep("ranks", self._step("rank the touches of units with too many pairs", "by time", ranked))
        self._keep("reach", self._step("what their conversions reach", "touches by rank", self._reach()))
        lost = sql(
            """
            SELECT count(DISTINCT uid) FILTER (WHERE lost > 0) AS units, coalesce(sum(lost), 0) AS touches,
                   count(*) FILTER (WHERE lost > 0) AS conversions
            FROM (SELECT uid, greatest(latest - before - keep, 0) AS lost FROM credit_reach)
            """
        )
        step = self._step("what the cap drops", "touches within the window that are not kept", lost)
        self.steps.append(step)
        found = self.catalog.engine.row(step.query, step.name)
        return True, Capped(int(found["units"]), int(found["touches"]), int(found["conversions"]))

    def _reach(self) -> Query:
        """Heavy units' conversions with the ranks of their latest touch and of the latest one before the window: running counts over
        touches, conversions and the times at which windows open, in one sort."""
        return sql(
            """
            SELECT c.*, h.keep, m.latest, m.before
            FROM credit_conversions AS c
            JOIN credit_heavy AS h ON h.uid = c.uid
            JOIN (
              SELECT cid, max(r) FILTER (WHERE kind = 1) AS latest, max(r) FILTER (WHERE kind = 2) AS before
              FROM (
                SELECT cid, kind, count(*) FILTER (WHERE kind = 0) OVER (
                  PARTITION BY uid ORDER BY us, kind ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
                ) AS r
                FROM marks
              )
              WHERE kind > 0 GROUP BY cid
            ) AS m ON m.cid = c.cid
            """,
            marks=sql(
                """
                SELECT uid, us, 0 AS cid, 0 AS kind FROM credit_ranks
                UNION ALL
                SELECT c.uid, c.us, c.cid, 1 AS kind FROM credit_conversions AS c JOIN credit_heavy AS h ON h.uid = c.uid
                UNION ALL
                SELECT c.uid, c.us - $window AS us, c.cid, 2 AS kind
                FROM credit_conversions AS c JOIN credit_heavy AS h ON h.uid = c.uid
                """,
                window=self.longest,
            ),
        )

    def _pairs(self, heavy: bool) -> Step:
        light = sql(
            f"""
            SELECT c.cid, c.uid, c.cell, c.worth, c.us - t.us AS age, t.code, t.personalised
            FROM credit_conversions AS c
            JOIN credit_touches AS t ON t.uid = c.uid AND t.us <= c.us AND t.us > c.us - $window
            {"ANTI JOIN credit_heavy AS h ON h.uid = c.uid" if heavy else ""}
            """,
            window=self.longest,
        )
        query = light
        if heavy:
            # buckets of as many touches as are kept: two of them hold all that a conversion may reach, and nothing else is met
            newest = sql(
                """
                SELECT c.cid, c.uid, c.cell, c.worth, c.us - t.us AS age, t.code, t.personalised
                FROM (
                  SELECT *, greatest(before, latest - keep) AS beyond, latest // keep - unnest([0, 1]) AS bucket FROM credit_reach
                ) AS c
                JOIN credit_ranks AS t ON t.uid = c.uid AND t.r // t.keep = c.bucket
                WHERE t.r <= c.latest AND t.r > c.beyond
                """
            )
            query = sql("SELECT * FROM light UNION ALL SELECT * FROM newest", light=light, newest=newest)
        return self._step("pairs of touch and conversion", "every touch in the window of a conversion", query)

    def _untouched(self) -> Step:
        """By cell: conversions without a touch, and those whose oldest touch is nearly too old, by window."""
        per: list[exp.Expr] = []
        out: list[exp.Expr] = []
        for i, window in enumerate(self.windows.values()):
            per.append(exp.alias_(fragment("max(age) FILTER (WHERE age < $w)", w=window), f"oldest_{i}"))
            bare = fragment(f"p.oldest_{i} IS NULL")
            late = fragment(f"p.oldest_{i} >= $w", w=window - window // 10)
            out.append(exp.alias_(fragment("count(*) FILTER (WHERE $bare)", bare=bare), f"bare_{i}"))
            out.append(
                exp.alias_(fragment("coalesce(sum(c.worth) FILTER (WHERE $bare), 0)", bare=bare), f"bare_worth_{i}")
            )
            out.append(exp.alias_(fragment("count(*) FILTER (WHERE $late)", late=late), f"late_{i}"))
        query = sql(
            """
            SELECT c.cell, $out FROM credit_conversions AS c LEFT JOIN reached AS p ON p.cid = c.cid GROUP BY c.cell
            """,
            out=out,
            reached=sql("SELECT cid, $per FROM credit_pairs GROUP BY cid", per=per),
        )
        return self._step("conversions without a touch", "the unattributed", query)

    def _behind(self) -> Step:
        """Converting units behind each touchpoint, and (code -1) behind any."""
        within = [
            exp.alias_(fragment("count(*) FILTER (WHERE newest < $w)", w=w), f"units_{i}")
            for i, w in enumerate(self.windows.values())
        ]
        query = sql(
            """
            SELECT outcome, CAST(code AS INTEGER) AS code, $within FROM met GROUP BY outcome, code
            UNION ALL
            SELECT outcome, -1 AS code, $within
            FROM (SELECT outcome, uid, min(newest) AS newest FROM met GROUP BY outcome, uid) GROUP BY outcome
            """,
            within=within,
            met=sql(
                """
                SELECT cell // $of AS outcome, uid, code, min(age) AS newest FROM credit_pairs
                GROUP BY ALL
                """,
                of=GROUPS * self._slots,
            ),
        )
        return self._step("units behind each touchpoint", "so that no figure speaks of a few", query)

    def _within(self, label: str) -> Query:
        window = self.windows[label]
        rows = exp.select("cid", "uid", "cell", "code", "personalised", "worth", "age").from_("credit_pairs")
        return Query(rows if window == self.longest else rows.where(fragment("age < $w", w=window)))

    # ---------------------------------------------------------------- models

    def _weights(self, label: str) -> Rules:
        return Rules(self._of(*RULES), self.touches.stops, self.windows[label])

    def _faults(self, label: str, model: str) -> Step:
        rules = Rules({model: self.models[model]}, self.touches.stops, self.windows[label])
        return self._step(
            f"weights of {model}, {label}", "that each is a number", rules.faults(self._within(label), model)
        )

    def _check_custom(self) -> None:
        """Refuses custom weights that are no weights."""
        for label in self.windows:
            for model in self._of("custom"):
                try:
                    step = self._faults(label, model)
                    found = self.catalog.engine.row(step.query, step.name)
                except (DataError, ExpressionError) as error:
                    self.refused[model] = f"its weight cannot be worked out: {error}"
                    continue
                self.steps.append(step)
                said = {
                    "missing": "touches have no weight (it is NULL)",
                    "endless": "touches have a weight that is infinite or not a number",
                    "negative": "touches have a weight below zero",
                    "zeros": "conversions have touches that all weigh 0, so that nobody could be credited",
                }
                bad = [f"{int(found[k]):,} {text}" for k, text in said.items() if found[k]]
                if bad:
                    self.refused[model] = f"within {label}, {'; '.join(bad)}"

    def _rules(self, label: str) -> Step:
        sums: list[exp.Expr] = []
        for i, _ in enumerate(self._of(*RULES)):
            sums.append(exp.alias_(fragment(f"sum(w_{i})"), f"n_{i}"))
            sums.append(exp.alias_(fragment(f"sum(w_{i} * worth)"), f"v_{i}"))
        query = sql(
            "SELECT cell, code, personalised, $sums FROM weighed GROUP BY cell, code, personalised",
            sums=sums,
            weighed=self._weights(label).weigh(self._within(label)),
        )
        return self._step(f"credit by rules, {label}", f"{', '.join(self._of(*RULES))}: all in one pass", query)

    def _per_unit(self, label: str) -> Step:
        """Moments of what is attributed per unit that has any, by outcome and arm."""
        inner = [exp.alias_(fragment("coalesce(sum(worth) FILTER (WHERE pos = 1), 0)"), "total")]
        outer = [exp.alias_(fragment(f"{f}(total)"), f"{f}_total") for f in ("avg", "var_samp")]
        for i, _ in enumerate(self._of(*RULES)):
            own = fragment(f"coalesce(sum(w_{i} * worth) FILTER (WHERE personalised), 0)")
            inner.append(exp.alias_(own, f"p_{i}"))
            outer += [exp.alias_(fragment(f"{f}(p_{i})"), f"{f}_{i}") for f in ("avg", "var_samp")]
        query = sql(
            "SELECT slot, count(*) AS units, $outer FROM each GROUP BY slot",
            outer=outer,
            each=sql(
                "SELECT cell // $groups AS slot, uid, $inner FROM weighed GROUP BY slot, uid",
                groups=GROUPS,
                inner=inner,
                weighed=self._weights(label).weigh(self._within(label)),
            ),
        )
        return self._step(f"attributed per unit by arm, {label}", "means and variances", query)

    def _sets(self, label: str) -> Step:
        """Each touchpoint once a conversion: all of it (participation), or its part of the set's (shapley)."""
        query = sql(
            """
            SELECT cell, code, count(*) AS n, sum(worth) AS v, sum(chosen) AS chosen_n, sum(chosen * worth) AS chosen_v,
                   sum(1.0::DOUBLE / size) AS part_n, sum(worth / size) AS part_v,
                   sum(chosen / size) AS chosen_part_n, sum(chosen * worth / size) AS chosen_part_v
            FROM (SELECT *, count(*) OVER (PARTITION BY cid) AS size FROM met)
            GROUP BY cell, code
            """,
            met=sql(
                """
                SELECT cid, code, any_value(cell) AS cell, any_value(worth) AS worth,
                       avg(CASE WHEN personalised THEN 1.0::DOUBLE ELSE 0.0::DOUBLE END) AS chosen
                FROM within GROUP BY cid, code
                """,
                within=self._within(label),
            ),
        )
        return self._step(f"credit by sets, {label}", "the touchpoints that a conversion met, each once", query)

    def _ordered(self, label: str) -> Step:
        query = sql(
            f"""
            SELECT cell, code, personalised, position, sum(part) AS n, sum(part * worth) AS v
            FROM (
              SELECT cell, code, personalised, worth, least(pos, $last) AS position,
                     1.0::DOUBLE / (times * sum(1.0::DOUBLE / times) OVER (PARTITION BY cid)) AS part
              FROM (
                SELECT *, row_number() OVER (PARTITION BY cid ORDER BY {ORDER}) AS pos,
                       count(*) OVER (PARTITION BY cid, code) AS times
                FROM within
              )
            )
            GROUP BY cell, code, personalised, position
            """,
            last=POSITIONS,
            within=self._within(label),
        )
        return self._step(f"credit by position, {label}", "ordered Shapley values", query)

    def _moves(self, outcome: str, label: str, order: int, groups: int) -> Step:
        window, starts, ends = self.windows[label], self.design.starts_us, self.design.ends_us
        known = any(r.profile is not None for r in self.readings)
        query = moves_query(
            self.touches.query(
                None if starts is None else starts - window + 1, None if ends is None else ends - 1, self.text
            ),
            outcome=list(self.outcomes).index(outcome),
            window_us=window,
            order=order,
            groups=groups,
            codes=len(self.touches.stops),
            starts_us=starts,
            open_us=self._as_of() - window if known else placeholder("complete_less_window"),
        )
        name = f"moves of order {order} to {outcome}, {label}"
        return self._step(name, "all paths, those that lead nowhere too", query, self.touches.readings[0].source)

    def _read_moves(self, outcome: str, label: str, order: int) -> Moves | None:
        k = len(self.touches.stops)
        groups = GROUPS
        while groups > 64 and groups * k * (k + 1) ** order > _MOVES:
            groups //= 2
        table = self._fetch(self._moves(outcome, label, order, groups))
        states = np.column_stack([_ints(table, f"s_{j}") for j in range(order, -1, -1)])
        g = _ints(table, "g")
        parts = [(states[:, :-1], states[:, -1], _ints(table, "moves"))]
        parts += [(states[:, 1:], np.full(len(g), end), _ints(table, n)) for end, n in ((-1, "won"), (-2, "lost"))]
        state, follows, count = (np.concatenate([p[i] for p in parts]) for i in range(3))
        some = count > 0
        return Moves(
            order,
            groups,
            np.concatenate([g, g, g])[some],
            state[some],
            follows[some],
            count[some],
            int(parts[1][2].sum()),
            int(parts[2][2].sum()),
            int(_ints(table, "open").sum()),
        )

    # ---------------------------------------------------------------- arrays

    def _empty(self, k: int) -> FloatArray:
        """(counts and worth, outcomes, arms and none, groups, personalised, touchpoints)"""
        return np.zeros((2, len(self.outcomes), self._slots, GROUPS, 2, k))

    def _at(self, table: pa.Table) -> tuple[IntArray, IntArray, IntArray]:
        cell = _ints(table, "cell")
        return cell // (GROUPS * self._slots), cell // GROUPS % self._slots, cell % GROUPS

    def _credits(self, totals: Mapping[str, Total]) -> Iterator[Credit]:
        stops = self.touches.stops
        k = len(stops)
        bare = self._fetch(self._untouched())
        behind = self._fetch(self._behind())
        self._check_custom()
        for i, label in enumerate(self.windows):
            found: dict[str, FloatArray] = {}
            rules = list(self._of(*RULES))
            if rules:
                table = self._fetch(self._rules(label))
                where = (*self._at(table), _ints(table, "personalised"), _ints(table, "code"))
                for r, name in enumerate(rules):
                    out = found[name] = self._empty(k)
                    out[(0, *where)], out[(1, *where)] = _floats(table, f"n_{r}"), _floats(table, f"v_{r}")
            if self._of("participation", "shapley"):
                table = self._fetch(self._sets(label))
                cells, code = self._at(table), _ints(table, "code")
                for name, model in self._of("participation", "shapley").items():
                    part = "part_" if model.kind == "shapley" else ""
                    out = self._empty(k)
                    for way, column_ in enumerate(("n", "v")):
                        chosen = _floats(table, f"chosen_{part}{column_}")
                        out[(way, *cells, 1, code)] = chosen
                        out[(way, *cells, 0, code)] = _floats(table, part + column_) - chosen
                    found[name] = out
            positions = None
            if self._of("ordered_shapley"):
                table = self._fetch(self._ordered(label))
                where = (*self._at(table), _ints(table, "personalised"), _ints(table, "code"))
                positions = np.zeros((2, len(self.outcomes), GROUPS, k, POSITIONS))
                out = self._empty(k)
                for way, column_ in enumerate(("n", "v")):
                    np.add.at(out[way], where, _floats(table, column_))
                    place = (where[0], where[2], where[4], _ints(table, "position") - 1)
                    np.add.at(positions[way], place, _floats(table, column_))
                for name in self._of("ordered_shapley"):
                    found[name] = out
            per_unit = self._fetch(self._per_unit(label)) if rules and self.arms else None
            left = np.zeros((3, *self._sizes.shape[1:]))
            for way, name in enumerate(("bare", "bare_worth", "late")):
                left[(way, *self._at(bare))] = _floats(bare, f"{name}_{i}")
            self._whole(found, left, label)
            for o, outcome in enumerate(self.outcomes):
                units = np.zeros(k, dtype=np.int64)
                mine = _ints(behind, "outcome") == o
                codes, counted = _ints(behind, "code")[mine], _ints(behind, f"units_{i}")[mine]
                units[codes[codes >= 0]] = counted[codes >= 0]
                touched = round(float(self._sizes[0, o].sum() - left[0, o].sum()))
                moves = {name: self._read_moves(outcome, label, m.order or 1) for name, m in self._of("markov").items()}
                yield Credit(
                    outcome=outcome,
                    window=label,
                    window_us=self.windows[label],
                    counts={name: a[0, o].sum(axis=(0, 2)) for name, a in found.items()},
                    worth={name: a[1, o].sum(axis=(0, 2)) for name, a in found.items()},
                    unattributed=left[0, o].sum(axis=0),
                    unattributed_worth=left[1, o].sum(axis=0),
                    units=units,
                    converters=int(counted[codes < 0].sum()),
                    touched=touched,
                    late=int(left[2, o].sum()),
                    positions=None if positions is None else (positions[0, o], positions[1, o]),
                    moves={name: m for name, m in moves.items() if m is not None},
                    arms=tuple(
                        self._arm(o, at, arm, found, rules, per_unit) for at, arm in enumerate(self.arms, start=1)
                    ),
                )

    def _arm(
        self,
        o: int,
        at: int,
        arm: str,
        found: Mapping[str, FloatArray],
        rules: Sequence[str],
        per_unit: pa.Table | None,
    ) -> ArmCredit:
        n = self.arms[arm]
        moments: dict[str, Moments] = {}
        if per_unit is not None:
            here = {int(r["slot"]): r for r in per_unit.to_pylist()}.get(o * self._slots + at)
            for name, key in (("(total)", "total"), *((name, i) for i, name in enumerate(rules))):
                some = Moments(0, np.zeros(1), np.zeros((1, 1)))
                if here is not None:
                    units = int(here["units"])
                    mean, var = float(here[f"avg_{key}"]), float(here[f"var_samp_{key}"] or 0.0)
                    some = Moments(units, np.array([mean]), np.array([[var]]))
                rest = Moments(n - some.n, np.zeros(1), np.zeros((1, 1)))
                moments[name] = some.merge(rest)

        def of(way: int, chosen: int) -> dict[str, FloatArray]:
            return {name: a[way, o, at, :, chosen] for name, a in found.items()}

        return ArmCredit(
            arm, n, self._sizes[0, o, at], self._sizes[1, o, at], of(0, 1), of(1, 1), of(0, 0), of(1, 0), moments
        )

    def _whole(self, found: Mapping[str, FloatArray], left: FloatArray, label: str) -> None:
        """Credit and the unattributed add up to the total, in every group and arm. Participation gives each touchpoint all of a
        conversion, so it does not and is not asked to."""
        for name, credit in found.items():
            if self.models[name].kind == "participation":
                continue
            for way, what in enumerate(("conversions", "value")):
                gap = np.abs(credit[way].sum(axis=(-1, -2)) + left[way] - self._sizes[way])
                size = np.maximum(self._sizes[2 if way else 0], 1e-300)
                if (gap > _EXACT * size).any():
                    at = np.unravel_index(int(np.argmax(gap / size)), gap.shape)
                    raise PayoffError(
                        f"{self.design.name}: {name} within {label} credits {what} that do not add up to the total: off by"
                        f" {gap[at]:g} of {self._sizes[way][at]:g} in one group of units. This is a fault of payoff's own"
                    )

    # ---------------------------------------------------------------- costs

    def _costs(self) -> Iterator[tuple[str, Step]]:
        """Spending of each touchpoint that has a table of it, then (name "") what rows cost."""
        low, high = self.design.starts_us, self.design.ends_us
        for name, touchpoint in self.design.touchpoints.items():
            if isinstance(touchpoint.cost, Spend):
                view = self.catalog.view(touchpoint.cost.source)
                rows = view.rows()
                if touchpoint.cost.where is not None:
                    rows = rows.where(view.condition(touchpoint.cost.where))
                if view.clock is not None:
                    t = view.clock.us
                    rows = rows.where(fragment("$t <= $most", t=t, most=self.design.now_us + AHEAD_US))
                    rows = rows if low is None else rows.where(fragment("$t >= $us", t=t, us=low))
                    rows = rows if high is None else rows.where(fragment("$t < $us", t=t, us=high))
                query = sql(
                    "SELECT sum($c) AS cost FROM spent", c=view.number(touchpoint.cost.column), spent=Query(rows)
                )
                yield name, self._step(f"spending on {name}", "in time with the conversions", query, view.name)
        if any(isinstance(t.cost, str) for t in self.design.touchpoints.values()):
            query = sql(
                "SELECT code, sum(cost) AS cost FROM touched WHERE cost IS NOT NULL GROUP BY code",
                touched=self.touches.query(low, None if high is None else high - 1, self.text),
            )
            yield (
                "",
                self._step("what touches cost", "in time with the conversions", query, self.touches.readings[0].source),
            )

    def _read_costs(self) -> dict[str, float]:
        out: dict[str, float] = {}
        for name, step in self._costs():
            for row in self._fetch(step).to_pylist():
                if row["cost"] is not None:
                    out[name or self.touches.stops[int(row["code"])].label] = float(row["cost"])
        bad = [name for name, cost in out.items() if not np.isfinite(cost)]
        if bad:
            raise DataError(f"the cost of the touchpoint {bad[0]} is infinite or not a number")
        return out


def _ints(table: pa.Table, name: str) -> IntArray:
    return np.asarray(cast(Any, table.column(name)).to_numpy(), dtype=np.int64)


def _floats(table: pa.Table, name: str) -> FloatArray:
    return np.asarray(cast(Any, table.column(name)).to_numpy(), dtype=np.float64)

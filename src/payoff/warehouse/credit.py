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
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pyarrow as pa

from payoff.errors import DataError, PayoffError
from payoff.estimate import FloatArray
from payoff.spec.journeys import JourneyDesign
from payoff.stats.moments import Moments
from payoff.warehouse.credited import GROUPS, POSITIONS, ArmCredit, Capped, Credit, CreditData, IntArray, Moves, Total
from payoff.warehouse.crediting import ONE, CreditStatements
from payoff.warehouse.events import MOST_VALUE, no_figure
from payoff.warehouse.query import ExpressionError, column, sql
from payoff.warehouse.rules import RULES, SETS
from payoff.warehouse.sources import Catalog
from payoff.warehouse.statements import Step
from payoff.warehouse.touch_state import Daily, begin

_MOVES = 2_000_000
"""Rows of moves that may return: where there are more states, fewer groups tell units apart."""
_EXACT = 1e-9
_TABLES = ("raw", "exposed", "units", "conversions", "touches", "heavy", "ranks", "reach", "pairs")


def plan(catalog: Catalog, design: JourneyDesign) -> list[Step]:
    """The statements in order, with what only the data can tell left as $parameters. Reads no rows."""
    ways = CreditStatements(catalog, design)
    daily = begin(ways)
    steps = list(ways.planned())
    return _said(steps, daily.foreseen() if isinstance(daily, Daily) else f"full: {daily}")


def read(catalog: Catalog, design: JourneyDesign, *, full: bool = False) -> CreditData:
    """Run them; over prepared copies only what is new since the last run, to the same figures, unless all is asked for (``full``). Raises DataError (a source or a value is not what its definition says), and PayoffError where credit does not add up
    to the conversions, which is a fault of ours."""
    kernel = _Kernel(catalog, design, full)
    try:
        return kernel.read()
    finally:
        for name in _TABLES:
            catalog.engine.drop(f"credit_{name}")


class _Kernel(CreditStatements):
    def __init__(self, catalog: Catalog, design: JourneyDesign, full: bool = False) -> None:
        super().__init__(catalog, design)
        self.steps: list[Step] = []
        self._full = full
        self._counted: dict[str, pa.Table] = {}
        # conversions, their worth, and its size without signs
        self._sizes = np.zeros((3, len(self.outcomes), 1, GROUPS))

    def read(self) -> CreditData:
        daily = begin(self, full=self._full)
        if isinstance(daily, Daily) and daily.count():
            return self._by_day(daily)
        return self._anew(daily if isinstance(daily, str) else daily.cannot)

    def _by_day(self, daily: Daily) -> CreditData:
        """Where days were counted by themselves: what their sums are, and what is not a sum over days read anew."""
        self._counted, self.exact = daily.tables, True
        totals, span = self._read_totals(daily.unvalued)
        if span is not None and self._of("markov"):
            self._keep("raw", self._raw())
        credits = () if span is None else tuple(self._credits())
        data = self._data(totals, credits, Capped())
        daily.keep()
        return replace(data, steps=tuple(_said([*daily.steps, *self.steps], daily.told)))

    def _anew(self, why: str) -> CreditData:
        """Everything, as it is."""
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
            credits = tuple(self._credits())
        data = self._data(totals, credits, capped)
        return replace(data, steps=tuple(_said(self.steps, f"full: {why}")))

    def _data(self, totals: Mapping[str, Total], credits: tuple[Credit, ...], capped: Capped) -> CreditData:
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

    def _keep(self, table: str, step: Step) -> None:
        self.steps.append(step.keeping(f"credit_{table}"))
        self.catalog.engine.keep(f"credit_{table}", step.query, step.name, step.reads or None)

    def _fetch(self, step: Step) -> pa.Table:
        if step.name in self._counted:
            return self._counted[step.name]
        self.steps.append(step)
        return self.catalog.engine.fetch(step.query, step.name, step.reads or None)

    def _left_out(self, capped: Capped) -> dict[str, int]:
        out: dict[str, int] = {}
        for profile in (*self.touches.profiles.values(), *(r.profile for r in self.readings if r.profile is not None)):
            for reason, n in profile.left_out().items():
                out[reason] = max(n, out.get(reason, 0))  # a source read for both says the same of both
        if capped.touches:
            reason = f"touches beyond the newest of each conversion, of units with more than {self.declared.max_pairs:,} pairs"
            out[reason] = capped.touches
        return out

    def _sound(self) -> dict[int, int]:
        """Conversions without a value by outcome. Raises DataError on a value that is not a finite number."""
        query = sql(
            """
            SELECT outcome, count(*) FILTER (WHERE $odd) AS endless,
                   count(*) FILTER (WHERE worth IS NULL AND inside) AS unvalued
            FROM credit_raw GROUP BY outcome
            """,
            odd=no_figure(column("worth")),
        )
        out = {}
        for row in self.catalog.engine.fetch(query, "look at values of conversions").to_pylist():
            outcome = list(self.outcomes.values())[int(row["outcome"])]
            if row["endless"]:
                raise DataError(
                    f"{int(row['endless']):,} values of conversions are infinite or not a number, or beyond {MOST_VALUE:g}; leave them out"
                    f' with where: "abs({outcome.value}) <= {MOST_VALUE:g}" or mend them at the source',
                    source=outcome.event.source,
                    column=outcome.value,
                    count=int(row["endless"]),
                )
            out[int(row["outcome"])] = int(row["unvalued"])
        return out

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

    def _empty(self, k: int) -> FloatArray:
        """(counts and worth, outcomes, arms and none, groups, personalised, touchpoints)"""
        return np.zeros((2, len(self.outcomes), self._slots, GROUPS, 2, k))

    def _at(self, table: pa.Table) -> tuple[IntArray, IntArray, IntArray]:
        cell = _ints(table, "cell")
        return cell // (GROUPS * self._slots), cell // GROUPS % self._slots, cell % GROUPS

    def _credits(self) -> Iterator[Credit]:
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
            per_unit = self._read_per_unit(label)
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
                    arms=tuple(self._arm(o, at, arm, found, per_unit) for at, arm in enumerate(self.arms, start=1)),
                )

    def _read_per_unit(self, label: str) -> dict[tuple[str, int, int], tuple[int, float, float]]:
        """Units credited, with the mean and variance of what they are, by model ("" is all), slot and touchpoint."""
        out: dict[tuple[str, int, int], tuple[int, float, float]] = {}
        if not self.arms:
            return out
        for r in self._fetch(self._total_per_unit(label)).to_pylist():
            out["", int(r["slot"]), 0] = (int(r["units"]), float(r["mean"]), float(r["variance"] or 0.0))
        rules, sets = list(self._of(*RULES)), self._of(*SETS)
        read: list[tuple[Step, list[tuple[str, int]]]] = []
        if rules:
            read.append((self._per_unit(label), [(name, i) for i, name in enumerate(rules)]))
        if sets:
            of = [(name, 1 if m.kind == "participation" else 0) for name, m in sets.items()]
            read.append((self._sets_per_unit(label), of))
        for step, columns in read:
            for r in self._fetch(step).to_pylist():
                for name, i in columns:
                    mean, variance = float(r[f"avg_p_{i}"]), float(r[f"var_samp_p_{i}"] or 0.0)
                    out[name, int(r["slot"]), int(r["code"])] = (int(r["units"]), mean, variance)
        return out

    def _arm(
        self,
        o: int,
        at: int,
        arm: str,
        found: Mapping[str, FloatArray],
        per_unit: Mapping[tuple[str, int, int], tuple[int, float, float]],
    ) -> ArmCredit:
        n, slot, k = self.arms[arm], o * self._slots + at, len(self.touches.stops)

        def moments(name: str, code: int) -> Moments:
            units, mean, variance = per_unit.get((name, slot, code), (0, 0.0, 0.0))
            some = Moments(units, np.array([mean]), np.array([[variance]]))
            return some.merge(Moments(n - units, np.zeros(1), np.zeros((1, 1))))

        told = [name for name in found if self.models[name].kind in (*RULES, *SETS)]
        behind = np.zeros(k, dtype=np.int64)
        for code in range(k):
            behind[code] = max((per_unit.get((name, slot, code), (0,))[0] for name in told), default=0)

        def of(way: int, chosen: int) -> dict[str, FloatArray]:
            return {name: a[way, o, at, :, chosen] for name, a in found.items()}

        return ArmCredit(
            arm=arm,
            n=n,
            conversions=self._sizes[0, o, at],
            worth=self._sizes[1, o, at],
            chosen=of(0, 1),
            chosen_worth=of(1, 1),
            other=of(0, 0),
            other_worth=of(1, 0),
            total=moments("", 0),
            per_unit={name: {code: moments(name, code) for code in range(k)} for name in told},
            behind=behind,
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

    def _read_costs(self) -> dict[str, float]:
        out: dict[str, float] = {}
        for name, step in self._costs():
            for row in self._fetch(step).to_pylist():
                parts = [row["cost"], row.get("large")]
                if parts == [None, None]:
                    continue
                label = name or self.touches.stops[int(row["code"])].label
                out[label] = float(parts[0] or 0) / (ONE if self.exact else 1) + (parts[1] or 0.0)
                if not abs(out[label]) <= MOST_VALUE:
                    raise DataError(
                        f"the cost of the touchpoint {label} is infinite or not a number, or beyond {MOST_VALUE:g}",
                        source=step.reads or None,
                    )
        return out


def _said(steps: Sequence[Step], how: str) -> list[Step]:
    """The steps, of which the first that reads conversions says how far they were counted before."""
    at = next((i for i, step in enumerate(steps) if step.keeps == "credit_raw"), 0)
    return [replace(s, purpose=f"{s.purpose} ({how})") if i == at else s for i, s in enumerate(steps)]


def _ints(table: pa.Table, name: str) -> IntArray:
    return np.asarray(cast(Any, table.column(name)).to_numpy(), dtype=np.int64)


def _floats(table: pa.Table, name: str) -> FloatArray:
    return np.asarray(cast(Any, table.column(name)).to_numpy(), dtype=np.float64)

"""The statements of the attribution kernel. Nothing here runs one; what only data tells (arms, refused models) is set by who does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlglot import exp

from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Attribution, Model, Spend, format_duration, model_names
from payoff.warehouse.credited import GROUPS, POSITIONS
from payoff.warehouse.events import AHEAD_US, clock_us
from payoff.warehouse.moves import moves_query
from payoff.warehouse.query import Query, bucket, conjunction, fragment, sql
from payoff.warehouse.rules import ORDER, RULES, SETS, Rules
from payoff.warehouse.sources import Catalog, as_id
from payoff.warehouse.statements import Step
from payoff.warehouse.touches import Touches, outcome_readings
from payoff.warehouse.units import placeholder

ONE = 2**64
"""What 1 is in an exact sum."""


class CreditStatements:
    """``planned`` gives all of them in order; the tables between them are credit_raw, credit_units, credit_conversions, credit_touches,
    credit_heavy and credit_pairs.

    ``exact``: sums come as whole numbers of 2^-64 (HUGEINT), which are the same in whatever order they are added.
    """

    exact = False

    def __init__(self, catalog: Catalog, design: JourneyDesign) -> None:
        assert isinstance(design.declared, Attribution)
        self.catalog, self.design, self.declared = catalog, design, design.declared
        self.models = dict(zip(model_names(self.declared.models), self.declared.models, strict=True))
        self.outcomes = self.declared.outcomes
        self.windows = {format_duration(w): round(w.total_seconds() * 1e6) for w in self.declared.window}
        self.longest = max(self.windows.values())
        self.touches = Touches(catalog, design)
        self.readings = outcome_readings(catalog, design, self.outcomes)
        self._some: exp.Expr | None = None
        self.arms: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        kinds = self.touches.unit_types | {r.unit_type for r in self.readings}
        if design.arms is not None:
            view = catalog.view(design.arms.source)
            kinds.add(view.type_of(view.unit(design.entity)))
        self.text = len(kinds) > 1
        self.kind = "VARCHAR" if self.text else kinds.pop()

    def planned(self) -> Iterator[Step]:
        for reading in self.readings:
            yield from reading.plan()
        yield from self.touches.plan()
        yield self._raw().keeping("credit_raw")
        if self.design.arms is not None:
            yield self._exposed().keeping("credit_exposed")
            self.arms = {"$arm": 0}
        yield self._units().keeping("credit_units")
        yield self._conversions().keeping("credit_conversions")
        yield from self._totals()
        touches = self._touches(placeholder("first_conversion_less_window"), placeholder("last_conversion"))
        yield touches.keeping("credit_touches")
        yield self._heavy().keeping("credit_heavy")
        yield self._pairs(heavy=False).keeping("credit_pairs")
        yield self._untouched()
        yield self._behind()
        for label in self.windows:
            for model in self._of("custom"):
                yield self._faults(label, model)
        for label in self.windows:
            if self._of(*RULES):
                yield self._rules(label)
            if self.arms:
                yield self._total_per_unit(label)
            if self._of(*RULES) and self.arms:
                yield self._per_unit(label)
            if self._of(*SETS) and self.arms:
                yield self._sets_per_unit(label)
            if self._of("participation", "shapley"):
                yield self._sets(label)
            if self._of("ordered_shapley"):
                yield self._ordered(label)
            for outcome in self.outcomes:
                for chain in self._of("markov").values():
                    yield self._moves(outcome, label, chain.order or 1, GROUPS)
        yield from (step for _, step in self._costs())

    def summed(self) -> Iterator[tuple[bool, Step]]:
        """The statements whose rows are sums by cell; whether they are of pairs, and so of the days of ``_some``."""
        yield False, self._totals()[0]
        yield False, self._untouched()
        for label in self.windows:
            if self._of(*RULES):
                yield True, self._rules(label)
            if self._of("participation", "shapley"):
                yield True, self._sets(label)
            if self._of("ordered_shapley"):
                yield True, self._ordered(label)

    def _bucket(self, groups: int) -> exp.Expr:
        """The hash group of the column ``unit``."""
        return bucket(as_id(exp.column("unit"), self.kind), groups)

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

    def _as_of(self) -> int:
        """Up to when all that is read is complete."""
        profiles = [*self.touches.profiles.values(), *(r.profile for r in self.readings if r.profile is not None)]
        ends = [p.through_us for p in profiles if p.through_us is not None]
        return min([*ends, self.design.now_us])

    def _raw(self) -> Step:
        """Conversions; with a Markov model those before the start too, which end paths that are not ours."""
        starts, ends = self.design.starts_us, self.design.ends_us
        low = starts if starts is None or not self._of("markov") else starts - self.longest
        return self._converted(low, None if ends is None else ends - 1)

    def _converted(self, low: int | None, high: int | None) -> Step:
        starts = self.design.starts_us
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
                # as an experiment is read: a row without a time tells no exposure, but it does tell an arm
                fragment("$t >= $us OR $t IS NULL", t=t, us=arms.starts_us)
                if timed and arms.starts_us is not None
                else None,
                fragment("$t < $us OR $t IS NULL", t=t, us=arms.ends_us)
                if timed and arms.ends_us is not None
                else None,
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
            unit=as_id(unit, view.type_of(unit)) if self.text else unit,
            arm=exp.cast(view.scalar(arms.assignment.variant), "VARCHAR"),
            t=t,
            base=Query(rows),
        )
        return self._step(f"arms of {arms.experiment}", "first exposure and arm of every unit", query, arms.source)

    def _units(self) -> Step:
        query = sql(
            """
            SELECT unit, CAST(row_number() OVER () AS INTEGER) AS uid, CAST($bucket AS INTEGER) AS g
            FROM (SELECT DISTINCT unit FROM credit_raw WHERE inside)
            """,
            bucket=self._bucket(GROUPS),
        )
        return self._step("number the converting units", "units by number, and their hash groups", query)

    def _outcome(self) -> exp.Expr:
        """What cells are first of all told apart by."""
        return fragment("r.outcome")

    def _sum(self, of: str) -> str:
        """A sum of finite numbers, as exact as is asked for."""
        return f"sum(CAST(({of}) * {ONE}::DOUBLE AS HUGEINT))" if self.exact else f"sum({of})"

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
                   CAST(($outcome * $slots + $arm) * $groups + u.g AS INTEGER) AS cell,
                   coalesce(r.worth, 0.0::DOUBLE) AS worth
            FROM credit_raw AS r JOIN credit_units AS u ON u.unit = r.unit {joined}
            WHERE r.inside
            """,
            outcome=self._outcome(),
            slots=self._slots,
            arm=arm,
            groups=GROUPS,
        )
        return self._step("number the conversions", "conversions by outcome, arm and hash group", query)

    def _totals(self) -> tuple[Step, Step]:
        by_cell = sql(
            f"""
            SELECT cell, count(*) AS n, {self._sum("worth")} AS worth, {self._sum("abs(worth)")} AS size
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
                exp.alias_(
                    fragment(f"coalesce({self._sum('c.worth')} FILTER (WHERE $bare), 0)", bare=bare), f"bare_worth_{i}"
                )
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
        rows = rows if window == self.longest else rows.where(fragment("age < $w", w=window))
        return Query(rows if self._some is None else rows.where(self._some.copy()))

    def _weights(self, label: str) -> Rules:
        return Rules(self._of(*RULES), self.touches.stops, self.windows[label], self.exact)

    def _faults(self, label: str, model: str) -> Step:
        rules = Rules({model: self.models[model]}, self.touches.stops, self.windows[label])
        return self._step(
            f"weights of {model}, {label}", "that each is a number", rules.faults(self._within(label), model)
        )

    def _rules(self, label: str) -> Step:
        sums: list[exp.Expr] = []
        for i, _ in enumerate(self._of(*RULES)):
            sums.append(exp.alias_(fragment(self._sum(f"w_{i}")), f"n_{i}"))
            sums.append(exp.alias_(fragment(self._sum(f"w_{i} * worth")), f"v_{i}"))
        query = sql(
            "SELECT cell, code, personalised, $sums FROM weighed GROUP BY cell, code, personalised",
            sums=sums,
            weighed=self._weights(label).weigh(self._within(label)),
        )
        return self._step(f"credit by rules, {label}", f"{', '.join(self._of(*RULES))}: all in one pass", query)

    def _in_arms(self, label: str) -> Query:
        """Pairs of conversions that belong to an arm."""
        return sql(
            "SELECT * FROM every_pair WHERE cell // $groups % $slots > 0",
            groups=GROUPS,
            slots=self._slots,
            every_pair=self._within(label),
        )

    def _total_per_unit(self, label: str) -> Step:
        """Moments of what is attributed at all, per unit that has any, by outcome and arm."""
        query = sql(
            """
            SELECT slot, count(*) AS units, avg(total) AS mean, var_samp(total) AS variance
            FROM (SELECT cell // $groups AS slot, uid, sum(worth) AS total FROM touched GROUP BY slot, uid)
            GROUP BY slot
            """,
            groups=GROUPS,
            touched=sql("SELECT DISTINCT cid, uid, cell, worth FROM of_arms", of_arms=self._in_arms(label)),
        )
        return self._step(f"attributed per unit by arm, {label}", "means and variances", query)

    def _per_unit(self, label: str) -> Step:
        """The same by rule and touchpoint, of all its touches, personalised or not."""
        sums = [exp.alias_(fragment(f"sum(w_{i} * worth)"), f"p_{i}") for i, _ in enumerate(self._of(*RULES))]
        return self._moments_per_unit(
            f"attributed by rules per unit by arm, {label}", sums, self._weights(label).weigh(self._in_arms(label))
        )

    def _sets_per_unit(self, label: str) -> Step:
        """The same of credit by sets: p_0 is a touchpoint's part of the set's, p_1 all of it."""
        sums = [exp.alias_(fragment("sum(worth / size)"), "p_0"), exp.alias_(fragment("sum(worth)"), "p_1")]
        met = sql("SELECT DISTINCT cid, uid, cell, code, worth FROM of_arms", of_arms=self._in_arms(label))
        sized = sql("SELECT *, count(*) OVER (PARTITION BY cid) AS size FROM met", met=met)
        return self._moments_per_unit(f"attributed by sets per unit by arm, {label}", sums, sized)

    def _moments_per_unit(self, name: str, sums: Sequence[exp.Expr], pairs: Query) -> Step:
        outer = [exp.alias_(fragment(f"{f}({s.alias})"), f"{f}_{s.alias}") for s in sums for f in ("avg", "var_samp")]
        query = sql(
            "SELECT slot, code, count(*) AS units, $outer FROM each GROUP BY slot, code",
            outer=outer,
            each=sql(
                "SELECT cell // $groups AS slot, uid, code, $sums FROM pairs GROUP BY slot, uid, code",
                groups=GROUPS,
                sums=sums,
                pairs=pairs,
            ),
        )
        return self._step(name, "means and variances by touchpoint", query)

    def _sets(self, label: str) -> Step:
        """Each touchpoint once a conversion: all of it (participation), or its part of the set's (shapley)."""
        sums = {
            "v": "worth",
            "chosen_n": "chosen",
            "chosen_v": "chosen * worth",
            "part_n": "1.0::DOUBLE / size",
            "part_v": "worth / size",
            "chosen_part_n": "chosen / size",
            "chosen_part_v": "chosen * worth / size",
        }
        query = sql(
            f"""
            SELECT cell, code, count(*) AS n, {", ".join(f"{self._sum(of)} AS {name}" for name, of in sums.items())}
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
            SELECT cell, code, personalised, position, {self._sum("part")} AS n, {self._sum("part * worth")} AS v
            FROM (
              SELECT cell, code, personalised, worth, least(pos, $last) AS position,
                     1.0::DOUBLE / (times * round(sum(1.0::DOUBLE / times) OVER (PARTITION BY cid))) AS part
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
        # the sum is that of the touchpoints, each once: a whole number
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
            group=self._bucket(groups),
            codes=len(self.touches.stops),
            starts_us=starts,
            # conversions from ends on are not read: there too a path may lead to one that is not seen
            open_us=(self._as_of() if ends is None else min(self._as_of(), ends)) - window
            if known
            else placeholder("complete_less_window"),
        )
        name = f"moves of order {order} to {outcome}, {label}"
        return self._step(name, "all paths, those that lead nowhere too", query, self.touches.readings[0].source)

    def _cost(self) -> str:
        """The sum of costs; exactly as far as they are below 2^40, if that is asked for."""
        if not self.exact:
            return "sum(cost) AS cost"
        small = f"abs(cost) < {2**40}"
        return (
            f"{self._sum(f'CASE WHEN {small} THEN cost END')} AS cost,"
            f" sum(cost) FILTER (WHERE NOT coalesce({small}, FALSE)) AS large"
        )

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
                    f"SELECT {self._cost()} FROM (SELECT $c AS cost FROM spent)",
                    c=view.number(touchpoint.cost.column),
                    spent=Query(rows),
                )
                yield name, self._step(f"spending on {name}", "in time with the conversions", query, view.name)
        if any(isinstance(t.cost, str) for t in self.design.touchpoints.values()):
            query = sql(
                f"SELECT code, {self._cost()} FROM touched WHERE cost IS NOT NULL GROUP BY code",
                touched=self.touches.query(low, None if high is None else high - 1, self.text),
            )
            yield (
                "",
                self._step("what touches cost", "in time with the conversions", query, self.touches.readings[0].source),
            )

"""From unit values to moments: the statements over temporary tables alone, one experiment at a time. Nothing here runs one.

A metric's columns are its measures, then (clustered) the cluster's number of units, then what is known from before exposure.
Every column is NULL where the unit does not enter the metric, so that aggregates need no FILTER, and metrics over the same
units share the aggregates of their covariates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from sqlglot import exp

from payoff.errors import DataError
from payoff.stats.exact import ExactMoments
from payoff.stats.moments import Moments
from payoff.warehouse.layout import Layout
from payoff.warehouse.needs import ArmsNeed, AttributeNeed, Measure, MetricNeed
from payoff.warehouse.query import Query, column, conjunction, fragment, sql
from payoff.warehouse.sources import is_number
from payoff.warehouse.statements import Step

UNKNOWN, OTHER = "(unknown)", "(other)"
IN, NOT_IN = "in ", "out"
"""An arm beside is told as ``in ARM``, a unit that is in none as ``out``."""
MOST_CLASSES = 50
"""Segments of one attribute at most: more would be as many groups to return, and no reader."""
MOST_COLUMNS = 20
"""Classes of a covariate that are told apart; the rest are taken together."""
_ROWS = 16_384
"""Rows that are summed at a time: few enough to stay in a processor's cache."""
_DAY_US = 86_400_000_000.0
_FIRST_US = -62_135_596_800_000_000
"""The year 1."""


@dataclass(frozen=True, slots=True)
class Covariate:
    """A column known before exposure: its name for people, and its value (never NULL) over a row of attributes."""

    name: str
    value: exp.Expr


@dataclass(slots=True)
class Facts:
    """What only the data can tell; in a plan, placeholders.

    ``cutoffs``: metric -> the last exposure whose window is over, None where every window is. ``centres``: (metric, before
    measure) -> what stands for a unit without a value, and whether there are such units. ``segments``: attribute -> class.
    """

    cutoffs: dict[str, exp.Expr | None]
    caps: dict[tuple[str, int], exp.Expr] = field(default_factory=dict)
    centres: dict[tuple[str, int], tuple[exp.Expr, bool]] = field(default_factory=dict)
    covariates: list[Covariate] = field(default_factory=list)
    segments: dict[str, exp.Expr] = field(default_factory=dict)


def double(value: float) -> exp.Expr:
    """The very number: a literal with a point would be a decimal, whose last digit may turn out another."""
    return exp.cast(exp.Literal.string(repr(float(value))), "DOUBLE")


def placeholder(name: str) -> exp.Expr:
    return exp.Placeholder(this=re.sub(r"\W", "_", name))


@dataclass(frozen=True)
class Summed(Step):
    """A statement whose moments are not aggregated in SQL: ``rows`` gives the values, which are summed exactly outside it.

    ``families`` are the columns of which Moments are wanted jointly, ``groupings`` the keys by which; a key that a grouping
    leaves out is NULL in the row of the statement that the moments belong to.
    """

    rows: Step | None = None
    families: tuple[tuple[str, ...], ...] = ()
    groupings: tuple[tuple[str, ...], ...] = ()

    @property
    def summed(self) -> tuple[list[str], list[tuple[int, ...]]]:
        """The columns of ``rows`` whose moments are wanted, and the families by their places among them."""
        names = list(dict.fromkeys(name for family in self.families for name in family))
        at = {name: i for i, name in enumerate(names)}
        return names, [tuple(at[name] for name in family) for family in self.families]

    def complete(self, found: list[dict[str, Any]], values: pa.Table, threads: int) -> list[dict[str, Any]]:
        """The rows of the statement with the moments that it leaves out, under the names that they have in SQL.

        Raises ValueError where a value is not finite or a variance too large.
        """
        _, families = self.summed
        keys = list(dict.fromkeys(key for grouping in self.groupings for key in grouping))
        by_key = {tuple(row[key] for key in keys): row for row in found}
        for grouping in self.groupings:
            told, codes = _groups([values[key] for key in grouping])
            sums = self.sum_up(values, codes, threads)
            for group in sums.groups:
                row = by_key[tuple(dict(zip(grouping, told[group], strict=True)).get(key) for key in keys)]
                row |= self.told(sums, group, families)
        return found

    def sum_up(self, values: pa.Table, codes: np.ndarray, threads: int) -> ExactMoments:
        """The sums over ``values``, by the code of each row's group. They are exact, so that threads may share the rows.

        Raises ValueError where a value is not finite.
        """
        names, families = self.summed

        def part(places: Sequence[int]) -> ExactMoments:
            sums = ExactMoments(len(names), families)
            for low in places:
                rows = values.slice(low, _ROWS)
                columns = np.empty((len(names), rows.num_rows))
                for i, name in enumerate(names):
                    columns[i] = rows[name].to_numpy()
                    if np.isnan(columns[i]).sum() != rows[name].null_count:
                        raise ValueError(f"{name} holds values that are not numbers")
                sums.add(columns.T, codes[low : low + _ROWS])
            return sums

        places = range(0, values.num_rows, _ROWS)
        with ThreadPoolExecutor(threads) as pool:
            first, *others = pool.map(part, [places[n::threads] for n in range(threads)])
        for other in others:
            first.merge(other)
        return first

    def told(self, sums: ExactMoments, group: int, families: Sequence[tuple[int, ...]]) -> dict[str, Any]:
        """The moments of a group under the names that they have in SQL. Raises ValueError where a variance is too large."""
        row: dict[str, Any] = {}
        for family, numbers in zip(self.families, families, strict=True):
            moments = sums.moments(group, numbers)
            row[f"n_{family[0]}"] = moments.n
            for i, name in enumerate(family):
                row[f"mean_{name}"], row[f"var_{name}"] = float(moments.mean[i]), float(moments.cov[i, i])
                for j in range(i + 1, len(family)):
                    row[f"cov_{name}_{family[j]}"] = float(moments.cov[i, j])
        return row


def _groups(keys: Sequence[pa.ChunkedArray]) -> tuple[list[tuple[Any, ...]], np.ndarray]:
    """The combinations of keys that there are, and which one each row has."""
    codes = np.zeros(len(keys[0]), np.int64)
    told: list[tuple[Any, ...]] = [()]
    for key in keys:
        coded = key.combine_chunks().dictionary_encode("encode")
        classes = coded.dictionary.to_pylist()
        codes = codes * len(classes) + coded.indices.to_numpy()
        told = [(*before, value) for before in told for value in classes]
        met = np.bincount(codes, minlength=len(told)) > 0
        codes = (np.cumsum(met) - 1)[codes]
        told = [group for group, here in zip(told, met, strict=True) if here]
    return told, codes


class _Parts:
    """The aggregates of a statement, each once, under a name that says what it is."""

    def __init__(self, exact: bool = False) -> None:
        self._named: dict[str, exp.Expr] = {}
        self._exact = exact
        self.families: list[tuple[str, ...]] = []

    def add(self, name: str, expression: exp.Expr) -> None:
        self._named.setdefault(name, expression)

    def moments(self, names: Sequence[str]) -> None:
        """Count, averages, variances and covariances, by Welford in the engine: never raw sums of squares."""
        self.families.append(tuple(names))
        if self._exact:
            return
        self.add(f"n_{names[0]}", _call("COUNT", names[0]))
        for a, name in enumerate(names):
            self.add(f"mean_{name}", _call("AVG", name))
            self.add(f"var_{name}", _call("VAR_SAMP", name))
            for other in names[a + 1 :]:
                self.add(f"cov_{name}_{other}", _call("COVAR_SAMP", name, other))

    def listed(self) -> list[exp.Expr]:
        return [exp.alias_(expression, name) for name, expression in self._named.items()]


def _in_order(function: str, value: exp.Expr) -> exp.Expr:
    """A sum or an average of the values from the smallest to the largest: whatever order the rows are met in, the same."""
    return fragment(f"{function}($v ORDER BY $v)", v=value)


def _call(function: str, *names: str) -> exp.Expr:
    return exp.func(function, *(column(n) for n in names), dialect="duckdb")


def read_moments(row: Mapping[str, Any], names: Sequence[str]) -> Moments:
    k, n = len(names), int(row[f"n_{names[0]}"])
    mean, cov = np.zeros(k), np.zeros((k, k))
    if n:
        mean[:] = [row[f"mean_{name}"] for name in names]
    if n > 1:
        for a, name in enumerate(names):
            cov[a, a] = row[f"var_{name}"]
            for b in range(a + 1, k):
                cov[a, b] = cov[b, a] = row[f"cov_{name}_{names[b]}"]
    return Moments(n, mean, cov)


class Units:
    """The statements of one experiment over its exposed units.

    ``exact``: no figure may depend on the order in which rows are met, so moments are summed exactly, outside SQL.
    """

    def __init__(self, layout: Layout, x: int, exact: bool = False) -> None:
        self.layout, self.x, self.need, self.exact = layout, x, layout.needs[x], exact
        self.exposed = f"exposed_{self.need.entity}"
        self.index = {metric.name: i for i, metric in enumerate(self.need.metrics)}
        self.clustered = self.need.cluster is not None
        self.others = [self._other(name) for name in self.need.beside]

    def _other(self, name: str) -> int:
        """The number of an experiment read beside this one. Raises DataError where their units cannot be matched."""
        for y, need in enumerate(self.layout.needs):
            if need.experiment == name:
                for source in (need.source, self.need.source):
                    if self.layout.views[source].unit_text(need.entity) is None:
                        raise DataError("has no id by which units could be found in another experiment", source=source)
                if need.entity != self.need.entity or need.period_us is not None or self.need.period_us is not None:
                    raise DataError(
                        f"experiment '{name}' has other units than '{self.need.experiment}'", source=need.source
                    )
                return y
        raise DataError(
            f"experiment '{name}' is not read together with '{self.need.experiment}'", source=self.need.source
        )

    def _step(self, name: str, purpose: str, query: Query) -> Step:
        return Step(f"{name} of {self.need.experiment}", "", purpose, (), (self.need.experiment,), query)

    def _aggregate(
        self, step: Step, source: Query, parts: _Parts, keys: Sequence[str], groupings: Sequence[Sequence[str]]
    ) -> Step:
        """``step``, where moments are not left to SQL with the values that they are of."""
        if not self.exact:
            return step
        names = list(dict.fromkeys(name for family in parts.families for name in family))
        rows = sql(
            "SELECT $named FROM one_by_one_rows",
            named=[*(column(key) for key in keys), *(exp.cast(column(n), "DOUBLE").as_(n, quoted=True) for n in names)],
            one_by_one_rows=source,
        )
        purpose = "their moments are summed exactly outside SQL: no order of rows changes a digit"
        return Summed(
            step.name, step.reads, step.purpose, step.columns, step.serves, step.query,
            rows=Step(f"values for {step.name}", "", purpose, (), step.serves, rows),
            families=tuple(parts.families),
            groupings=tuple(tuple(g) for g in groupings),
        )  # fmt: skip

    def _average(self, value: exp.Expr) -> exp.Expr:
        return _in_order("avg", value) if self.exact else fragment("avg($v)", v=value)

    # ---------------------------------------------------------------- attributes

    def is_number(self, attribute: AttributeNeed) -> bool:
        """Is the attribute a number (or made one by cuts or quantiles), or a name of a class?"""
        if attribute.measure is not None or attribute.since is not None or attribute.cuts or attribute.quantiles:
            return True
        assert attribute.column is not None
        view = self.layout.views[attribute.source]
        kind = view.type_of(view.scalar(attribute.column))
        return is_number(kind) and kind != "BOOLEAN"

    def attributes(self) -> Step:
        """One row a unit: each attribute's value at exposure; whether it has only later ones, or several."""
        tables: dict[str, str] = {}
        out: list[exp.Expr] = [column("uid", "x"), column("arm", "x")]
        for k, attribute in enumerate(self.need.attributes):
            value, later, many = self._attribute(attribute, tables)
            out += [exp.alias_(value, f"a{k}"), exp.alias_(later, f"a{k}_later"), exp.alias_(many, f"a{k}_many")]
        return self._step(
            "attributes", "each attribute of each exposed unit, as it was at exposure", Query(self._joined(out, tables))
        )

    def _attribute(self, attribute: AttributeNeed, tables: dict[str, str]) -> tuple[exp.Expr, exp.Expr, exp.Expr]:
        no = exp.false()
        if attribute.measure is not None:
            return self._value(attribute.measure, tables), no, no
        table, name, timed = self.layout.known_at(self.x, attribute)
        alias = "x" if table is None else tables.setdefault(table, f"o{len(tables)}")
        value: exp.Expr = column(name, alias)
        own = table is None
        unit_level = self.layout.views[attribute.source].source.one_row_per is not None
        later = column(f"{name}_later", alias) if timed and not own else no
        many = column(f"{name}_many", alias) if not timed and not (own and unit_level) else no
        if attribute.since is not None:
            days = fragment("($t0 - $v) / $day", t0=column("t0", "x"), v=value, day=double(_DAY_US))
            ahead = fragment("$v > $t0", v=value, t0=column("t0", "x"))
            real = fragment("$v >= $first", v=value, first=_FIRST_US)  # and not -infinity, which is no time
            return (
                fragment("CASE WHEN NOT $ahead AND $real THEN $d END", ahead=exp.paren(ahead), real=real, d=days),
                exp.or_(later, ahead),
                many,
            )
        if not self.is_number(attribute):
            return fragment("CAST($v AS VARCHAR)", v=value), later, many
        view = self.layout.views[attribute.source]
        kind = view.type_of(view.scalar(attribute.column or ""))
        if not is_number(kind):
            view.number(attribute.column or "")  # raises DataError, saying what is wrong with it
        if kind.startswith(("FLOAT", "DOUBLE")):
            # what is not a number is not known
            value = fragment("CASE WHEN isfinite($v) THEN CAST($v AS DOUBLE) END", v=value)
        return value, later, many

    def profile(self) -> Step:
        parts: list[exp.Expr] = [exp.alias_(fragment("count(*)"), "n")]
        for k, attribute in enumerate(self.need.attributes):
            a = f"a{k}"
            parts += [
                exp.alias_(fragment(f"count({a})"), f"known{k}"),
                exp.alias_(fragment(f"count_if({a} IS NULL AND coalesce({a}_later, false))"), f"later{k}"),
                exp.alias_(fragment(f"count_if({a} IS NULL AND coalesce({a}_many, false))"), f"many{k}"),
                exp.alias_(fragment(f"count(DISTINCT {a})"), f"classes{k}"),
            ]
            if self.is_number(attribute):
                parts.append(exp.alias_(self._average(column(a)), f"mean{k}"))
            for j, q in enumerate(attribute.quantiles):
                parts.append(exp.alias_(fragment(f"quantile_cont({a}, $q)", q=double(q)), f"cut{k}_{j}"))
        query = sql(f"SELECT $parts FROM {self.table('attributes')}", parts=parts)
        return self._step("look at attributes", "how each is filled, over all arms", query)

    def classes(self, k: int) -> Step:
        """The most frequent classes of a covariate, one more than are told apart."""
        query = sql(
            f"""
            SELECT coalesce(a{k}, $unknown) AS class, count(*) AS n FROM {self.table("attributes")}
            GROUP BY class ORDER BY n DESC, class LIMIT $most
            """,
            unknown=UNKNOWN,
            most=MOST_COLUMNS + 1,
        )
        return self._step(
            f"classes of {self.need.attributes[k].name}", "the most frequent classes of a covariate", query
        )

    def table(self, what: str) -> str:
        return f"{what}_{self.x}"

    # ---------------------------------------------------------------- unit values

    def _joined(self, out: Sequence[exp.Expr], tables: Mapping[str, str]) -> exp.Select:
        query = exp.select(*out).from_(exp.table_(self.exposed, alias="x"))
        for table, alias in tables.items():
            query = query.join(exp.table_(table, alias=alias), on=fragment(f"{alias}.uid = x.uid"), join_type="left")
        return query.where(fragment("x.x = $x", x=self.x))

    def _value(self, measure: Measure, tables: dict[str, str]) -> exp.Expr:
        """A unit's value, as it is before any cap: 0 where it has no rows, NULL for a mean of none."""
        table, name = self.layout.table_of(self.x, measure)
        value = column(name, "x" if table == self.exposed else tables.setdefault(table, f"o{len(tables)}"))
        if measure.fold == "any":
            return fragment("CASE WHEN $c > 0 THEN 1.0::DOUBLE ELSE 0.0::DOUBLE END", c=value)
        return value if measure.fold == "mean" else fragment("coalesce(CAST($c AS DOUBLE), 0.0::DOUBLE)", c=value)

    def folded(self, metric: MetricNeed) -> bool:
        """Has each unit one number (or several) of it? A quantile over rows has not."""
        return metric.quantile is None or all(self.layout.rows_of(self.x, m) is None for m in metric.measures)

    def values(self, facts: Facts) -> Query:
        """One row a unit: arm, time, raw values ``r``, before exposure ``b``, covariates ``c``, classes ``s``, others' arms ``o``."""
        tables: dict[str, str] = {}
        out: list[exp.Expr] = [column("uid", "x"), column("arm", "x"), column("t0", "x")]
        if self.clustered:
            out.append(column("cluster", "x"))
        for i, metric in enumerate(self.need.metrics):
            if self.folded(metric):
                out += [exp.alias_(self._value(m, tables), f"r{i}_{j}") for j, m in enumerate(metric.measures)]
            out += [exp.alias_(self._value(m, tables), f"b{i}_{j}") for j, m in enumerate(metric.before)]
            if metric.invalid is not None:
                out.append(exp.alias_(self._value(metric.invalid, tables), f"bad{i}"))
        if facts.covariates or facts.segments:
            tables[self.table("attributes")] = "known"
        out += [exp.alias_(c.value.copy(), f"c{k}") for k, c in enumerate(facts.covariates)]
        out += [exp.alias_(e.copy(), f"s{k}") for k, e in enumerate(facts.segments.values())]
        for n in range(len(self.others)):  # never NULL, which is how a grouping set says that it leaves a key out
            arm = column("arm", f"beside_{n}")
            out.append(
                exp.alias_(
                    fragment("CASE WHEN $a IS NULL THEN $out ELSE $in || $a END", a=arm, out=NOT_IN, **{"in": IN}),
                    f"o{n}",
                )
            )
        query = self._joined(out, tables)
        for n, y in enumerate(self.others):
            theirs = (
                exp.select("unit", "arm").from_(self.exposed).where(fragment("x = $y", y=y)).subquery(f"beside_{n}")
            )
            query = query.join(theirs, on=fragment(f"beside_{n}.unit = x.unit"), join_type="left")
        return Query(query)

    def _read(self, facts: Facts, kept: bool) -> dict[str, Query]:
        """The unit values as a part of a statement: none where they are kept in a table."""
        return {} if kept else {self.table("units"): self.values(facts)}

    def keep(self, facts: Facts) -> Step:
        return self._step("unit values", "kept, because several statements read them", self.values(facts))

    def _closed(self, metric: MetricNeed, facts: Facts) -> exp.Expr | None:
        cutoff = facts.cutoffs[metric.name]
        return None if cutoff is None else fragment("t0 <= $cutoff", cutoff=cutoff)

    def _enters(self, metric: MetricNeed, facts: Facts) -> exp.Expr | None:
        """The condition on a unit's raw values to enter a metric, None where all do."""
        i, parts = self.index[metric.name], []
        closed = self._closed(metric, facts)
        parts += [closed] if closed is not None else []
        if metric.ratio:
            parts.append(fragment(f"NOT (r{i}_0 = 0 AND r{i}_1 = 0)"))
        parts += [fragment(f"r{i}_{j} IS NOT NULL") for j, m in enumerate(metric.measures) if m.fold == "mean"]
        return exp.and_(*(exp.paren(p) for p in parts)) if parts else None

    # ---------------------------------------------------------------- facts

    def facts(self, facts: Facts, kept: bool) -> Step | None:
        """Percentiles for caps, and means of what some units have not: over all arms' units that enter. None if not needed."""
        parts = _Parts()
        for i, metric in enumerate(self.need.metrics):
            enters = self._enters(metric, facts)
            for j, measure in enumerate(metric.measures):
                if measure.cap is not None and measure.cap.percentile is not None:
                    only = conjunction(enters, fragment(f"r{i}_{j} <> 0") if measure.cap.nonzero else None)
                    share = double(measure.cap.percentile / 100)
                    parts.add(
                        f"cap{i}_{j}",
                        fragment(f"quantile_cont(CASE WHEN $only THEN r{i}_{j} END, $p)", only=only, p=share),
                    )
            for j, measure in enumerate(metric.before):
                if measure.fold == "mean":
                    only = conjunction(enters)
                    value = fragment(f"CASE WHEN $only THEN b{i}_{j} END", only=only)
                    parts.add(f"centre{i}_{j}", self._average(value))
                    parts.add(f"gaps{i}_{j}", fragment(f"count_if($only AND b{i}_{j} IS NULL)", only=exp.paren(only)))
        if not parts.listed():
            return None
        query = sql(f"SELECT $parts FROM {self.table('units')}", parts=parts.listed(), **self._read(facts, kept))
        return self._step("caps", "percentiles of the unit values pooled over arms", query)

    # ---------------------------------------------------------------- columns

    def _set(self, metric: MetricNeed, facts: Facts) -> str:
        """A name for the units that enter a metric: metrics with the same name have the same units."""
        i = self.index[metric.name]
        if metric.ratio or any(m.fold == "mean" for m in metric.measures):
            return f"m{i}"
        cutoff = facts.cutoffs[metric.name]
        same = [n for n, m in enumerate(self.need.metrics) if facts.cutoffs[m.name] == cutoff]
        return "" if cutoff is None else f"u{same[0]}"

    def columns(self, metric: MetricNeed, facts: Facts) -> list[str]:
        """The columns of a metric's Moments, in order."""
        i, of = self.index[metric.name], self._set(metric, facts)
        names = [f"v{i}_{j}" for j in range(len(metric.measures))]
        names += [f"size{i}"] if self.clustered else []
        return names + [f"{name}{of}" for name in self._earlier(metric, facts)]

    def _earlier(self, metric: MetricNeed, facts: Facts) -> list[str]:
        i, names = self.index[metric.name], []
        for j in range(len(metric.before)):
            names.append(f"x{i}_{j}")
            names += [f"g{i}_{j}"] if facts.centres.get((metric.name, j), (None, False))[1] else []
        return names + ([f"c{k}" for k in range(len(facts.covariates))] if metric.covariates else [])

    def covariates(self, metric: MetricNeed, facts: Facts) -> tuple[str, ...]:
        """What those columns are called."""
        names = []
        for j in range(len(metric.before)):
            part = (
                f" {('numerator', 'denominator')[j]}"
                if metric.ratio
                else ""
                if len(metric.before) == 1
                else f" {j + 1}"
            )
            names.append(f"{metric.name}{part} before exposure")
            if facts.centres.get((metric.name, j), (None, False))[1]:
                names.append(f"{metric.name}{part} before exposure missing")
        return (*names, *(c.name for c in facts.covariates if metric.covariates))

    def _entering(self, metrics: Sequence[MetricNeed], facts: Facts, keys: Sequence[str], kept: bool) -> Query:
        """One row a unit: the columns of ``metrics``, NULL where it does not enter; ``keys`` are passed on."""
        out: dict[str, exp.Expr] = {"arm": column("arm"), **{k: column(k) for k in keys}}
        if self.clustered:
            out["cluster"] = column("cluster")
        for metric in metrics:
            i, enters, of = self.index[metric.name], self._enters(metric, facts), self._set(metric, facts)
            closed = self._closed(metric, facts)
            out[f"e{i}"] = exp.true() if closed is None else closed
            if metric.invalid is not None:
                out[f"bad{i}"] = column(f"bad{i}")
            if metric.quantile is not None:
                continue
            for j in range(len(metric.measures)):
                out[f"v{i}_{j}"] = _where(enters, self._capped(metric, j, f"r{i}_{j}", facts))
            for name in self._earlier(metric, facts):
                if f"{name}{of}" not in out:
                    out[f"{name}{of}"] = _where(enters, self._before(metric, name, facts))
        listed = [exp.alias_(e, name) if e.name != name else e for name, e in out.items()]
        return sql(f"SELECT $out FROM {self.table('units')}", out=listed, **self._read(facts, kept))

    def _capped(self, metric: MetricNeed, j: int, name: str, facts: Facts) -> exp.Expr:
        if (metric.name, j) not in facts.caps:
            return column(name)
        # NaN sorts above every number: it stays what it is, and is told of, like infinity
        cap = facts.caps[metric.name, j]
        return fragment("CASE WHEN $v > $cap AND isfinite($v) THEN $cap ELSE $v END", v=column(name), cap=cap)

    def _before(self, metric: MetricNeed, name: str, facts: Facts) -> exp.Expr:
        if name.startswith("c"):
            return column(name)
        j = int(name.rpartition("_")[2])
        raw = f"b{name[1:]}"
        if name.startswith("g"):
            return fragment(f"CASE WHEN {raw} IS NULL THEN 1.0::DOUBLE ELSE 0.0::DOUBLE END")
        value = self._capped(metric, j, raw, facts)
        if (metric.name, j) in facts.centres:
            return fragment("coalesce($v, $centre)", v=value, centre=facts.centres[metric.name, j][0])
        return value

    def _totals(self, metrics: Sequence[MetricNeed], facts: Facts, keys: Sequence[str], entering: Query) -> Query:
        """One row a cluster (of each class): totals of the columns, and counts of units."""
        parts = _Parts()
        for metric in metrics:
            i = self.index[metric.name]
            parts.add(f"e{i}", fragment(f"count_if(e{i})"))
            if metric.invalid is not None:
                parts.add(f"bad{i}", fragment(f"sum(bad{i})"))
            if metric.quantile is not None:
                continue
            for name in self.columns(metric, facts):
                sized = name.startswith("size")
                total = _in_order("sum", column(name)) if self.exact else _call("SUM", name)
                parts.add(name, fragment(f"CAST(nullif(count(v{i}_0), 0) AS DOUBLE)") if sized else total)
            for j in range(len(metric.measures)):
                parts.add(f"low{i}_{j}", _call("MIN", f"v{i}_{j}"))
                parts.add(f"high{i}_{j}", _call("MAX", f"v{i}_{j}"))
            parts.add(f"negative{i}", _negative(i, len(metric.measures)))
        groups = _grouping(["arm", "cluster"], keys)
        named = [column(k) for k in ("arm", "cluster", *keys)]
        return sql(
            f"SELECT $named, $parts FROM members GROUP BY {groups}",
            named=named,
            parts=parts.listed(),
            members=entering,
        )

    # ---------------------------------------------------------------- moments

    def moments(
        self,
        metrics: Sequence[MetricNeed],
        facts: Facts,
        kept: bool,
        keys: Sequence[str] = (),
        crosses: Sequence[tuple[str, str]] = (),
    ) -> Step:
        """Moments of ``metrics`` by arm, and by arm and each of ``keys``; the joint ones of ``crosses``."""
        source = self._entering(metrics, facts, keys, kept)
        if self.clustered:
            source = self._totals(metrics, facts, keys, source)
        joint = self._jointly(crosses, facts)
        if joint:
            both = [exp.alias_(e, name) for name, e in joint.items()]
            source = sql("SELECT *, $both FROM one_by_one", both=both, one_by_one=source)
        parts = _Parts(self.exact)
        for metric in metrics:
            i = self.index[metric.name]
            parts.add(f"eligible{i}", fragment(f"sum(e{i})" if self.clustered else f"count_if(e{i})"))
            if metric.invalid is not None:
                parts.add(f"bad{i}", fragment(f"sum(bad{i})"))
            if metric.quantile is not None:
                continue
            parts.moments(self.columns(metric, facts))
            for j in range(len(metric.measures)):
                low, high = (f"low{i}_{j}", f"high{i}_{j}") if self.clustered else (f"v{i}_{j}", f"v{i}_{j}")
                parts.add(f"low{i}_{j}", _call("MIN", low))
                parts.add(f"high{i}_{j}", _call("MAX", high))
            parts.add(
                f"negative{i}", _call("SUM", f"negative{i}") if self.clustered else _negative(i, len(metric.measures))
            )
            if self.clustered:
                parts.add(f"units{i}", _call("SUM", f"size{i}"))
        for a, b in crosses:
            parts.moments(self.crossed(a, b, facts))
        groups = ", ".join(["arm", *keys]) if self.clustered else _grouping(["arm"], keys)
        query = sql(
            f"SELECT $named, $parts FROM entering GROUP BY {groups} ORDER BY arm",
            named=[column(k) for k in ("arm", *keys)],
            parts=parts.listed(),
            entering=source,
        )
        purpose = "n, mean, variance and covariance by arm"
        what = "moments" if not keys else "moments by segment" if keys[0].startswith("s") else "moments beside others"
        step = Step(
            f"{what} of {self.need.experiment}",
            "",
            purpose + (f" of {self.need.cluster} totals" if self.clustered else ""),
            (),
            tuple(f"{self.need.experiment}.{m.name}" for m in metrics),
            query,
        )
        every = ("arm", *keys)
        groupings = [every] if self.clustered else [("arm",), *(("arm", key) for key in keys)]
        return self._aggregate(step, source, parts, every, groupings)

    def _same_units(self, a: str, b: str, facts: Facts) -> bool:
        one, other = (self.need.metrics[self.index[name]] for name in (a, b))
        return a == b or self._set(one, facts) == self._set(other, facts)

    @property
    def crosses(self) -> list[tuple[str, str]]:
        """The pairs that have joint moments: a quantile has none."""
        plain = {m.name for m in self.need.metrics if m.quantile is None}
        return [(a, b) for a, b in self.need.crosses if a in plain and b in plain]

    def crossed(self, a: str, b: str, facts: Facts) -> list[str]:
        """The columns of two metrics over the units in both."""
        names = [n for m in (a, b) for n in self.columns(self.need.metrics[self.index[m]], facts)]
        if self._same_units(a, b, facts):
            return names
        return [f"{name}_in_{self.index[a]}_{self.index[b]}" for name in names]

    def _jointly(self, crosses: Sequence[tuple[str, str]], facts: Facts) -> dict[str, exp.Expr]:
        out: dict[str, exp.Expr] = {}
        for a, b in crosses:
            if self._same_units(a, b, facts):
                continue
            i, j = self.index[a], self.index[b]
            both = fragment(f"v{i}_0 IS NOT NULL AND v{j}_0 IS NOT NULL")
            names = [n for m in (a, b) for n in self.columns(self.need.metrics[self.index[m]], facts)]
            for name, masked in zip(names, self.crossed(a, b, facts), strict=True):
                out[masked] = _where(both, column(name))
        return out

    # ---------------------------------------------------------------- tails, quantiles, others

    def if_capped(self, names: Sequence[str], facts: Facts, kept: bool) -> Step:
        """The moments of single measures if they were capped at the 99th percentile of their values other than zero."""
        metrics = [self.need.metrics[self.index[name]] for name in names]
        limits, parts, limited = _Parts(), _Parts(self.exact), []
        for metric in metrics:
            i = self.index[metric.name]
            v, cap, above = f"v{i}_0", f"cap{i}", f"above{i}"
            limits.add(cap, fragment(f"quantile_cont(nullif({v}, 0), 0.99)"))
            capped = fragment(f"CASE WHEN {v} IS NOT NULL THEN least({v}, {cap}) END")
            limited += [column(cap), exp.alias_(fragment(f"{v} > {cap}"), above), exp.alias_(capped, v)]
            parts.add(cap, fragment(f"any_value({cap})"))
            parts.add(above, fragment(f"count_if({above})"))
            parts.moments([v])
        entering = self._entering([_without_covariates(m) for m in metrics], facts, (), kept)
        source = sql(
            "SELECT arm, $limited FROM entering, (SELECT $limits FROM entering) AS limits",
            limited=limited,
            limits=limits.listed(),
            entering=entering,
        )
        query = sql("SELECT arm, $parts FROM limited GROUP BY arm ORDER BY arm", parts=parts.listed(), limited=source)
        step = self._step("capped moments", "what a cap would do to a heavy tail", query)
        return self._aggregate(step, source, parts, ("arm",), [("arm",)])

    def spread(self, metric: MetricNeed, facts: Facts) -> Step:
        """The rows (or units) that a quantile is taken of: arm, unit, what was drawn together, value."""
        measure = metric.measures[0]
        rows = self.layout.rows_of(self.x, measure)
        closed = self._closed(metric, facts)
        if rows is None:
            tables: dict[str, str] = {}
            value = self._value(measure, tables)
        else:
            tables = {rows.table: "r"}
            value = column("value", "r")
        drawn = fragment("x.cluster" if self.clustered else "x.uid")
        out = [
            column("arm", "x"),
            column("uid", "x"),
            exp.alias_(drawn, "drawn"),
            exp.alias_(value, "value"),
        ]
        query = self._joined(out, tables).where(conjunction(fragment("$v IS NOT NULL", v=value), closed))
        return self._step(f"values of {metric.name}", "what a quantile is taken of", Query(query))

    def quantiles(self, metric: MetricNeed) -> Step:
        assert metric.quantile is not None
        query = sql(
            f"""
            SELECT arm, quantile_cont(value, $q) AS value, count(*) AS rows, count(DISTINCT uid) AS units,
                   count_if(NOT isfinite(value)) AS bad, min(value) AS low, max(value) AS high
            FROM {self.table("spread")} GROUP BY arm ORDER BY arm
            """,
            q=double(metric.quantile.q),
        )
        return self._step(f"quantiles of {metric.name}", "the quantile by arm", query)

    def below(self, metric: MetricNeed, found: Mapping[str, exp.Expr]) -> Step:
        """By what was drawn together: how many rows it has, and how many at or below its arm's quantile."""
        at = exp.Case()
        for arm, value in found.items():
            at = at.when(fragment("arm = $arm", arm=arm), value)
        parts = _Parts(self.exact)
        parts.moments(["below", "rows"])
        drawn = sql(
            f"""
            SELECT arm, drawn, CAST(count_if(value <= $at) AS DOUBLE) AS below, CAST(count(*) AS DOUBLE) AS rows
            FROM {self.table("spread")} GROUP BY arm, drawn
            """,
            at=at,
        )
        query = sql("SELECT arm, $parts FROM drawn GROUP BY arm ORDER BY arm", parts=parts.listed(), drawn=drawn)
        step = self._step(f"ranks of {metric.name}", "how the rows at or below the quantile vary between units", query)
        return self._aggregate(step, drawn, parts, ("arm",), [("arm",)])

    def outer(self, metric: MetricNeed, ranks: Mapping[str, tuple[exp.Expr, exp.Expr]]) -> Step:
        """The interval of each arm's quantile, read at the probabilities that its variation gives."""
        parts = _Parts()
        for n, (arm, (low, high)) in enumerate(ranks.items()):
            for end, p in (("low", low), ("high", high)):
                parts.add(f"{end}{n}", fragment("quantile_cont(value, $p) FILTER (WHERE arm = $arm)", p=p, arm=arm))
        query = sql(f"SELECT $parts FROM {self.table('spread')}", parts=parts.listed())
        return self._step(f"interval of {metric.name}", "the outer interval of each arm's quantile", query)

    def crossed_arms(self, n: int) -> Step:
        query = sql(
            f"""
            SELECT x.arm AS arm, y.arm AS other, count(*) AS n FROM {self.exposed} AS x JOIN {self.exposed} AS y ON y.unit = x.unit
            WHERE x.x = $x AND y.x = $y GROUP BY x.arm, y.arm ORDER BY x.arm, y.arm
            """,
            x=self.x,
            y=self.others[n],
        )
        return self._step(f"arms of {self.need.beside[n]} beside those", "units exposed in both, by their arms", query)

    def clusters(self) -> Step:
        query = sql(
            """
            SELECT arm, count(*) AS clusters, count_if(n = 1) AS single, max(n) / sum(n) AS largest
            FROM sizes GROUP BY arm ORDER BY arm
            """,
            sizes=sql(
                f"SELECT arm, cluster, count(*) AS n FROM {self.exposed} WHERE x = $x GROUP BY arm, cluster", x=self.x
            ),
        )
        return self._step("clusters", "how many and how large, by arm", query)


def _where(condition: exp.Expr | None, value: exp.Expr) -> exp.Expr:
    return value if condition is None else fragment("CASE WHEN $c THEN $v END", c=condition, v=value)


def _negative(i: int, k: int) -> exp.Expr:
    return fragment("count_if($any)", any=exp.or_(*(fragment(f"v{i}_{j} < 0") for j in range(k))))


def _grouping(always: Sequence[str], keys: Sequence[str]) -> str:
    """Totals, and each key by itself."""
    if not keys:
        return ", ".join(always)
    sets = [f"({', '.join(always)})", *(f"({', '.join([*always, key])})" for key in keys)]
    return f"GROUPING SETS ({', '.join(sets)})"


def _without_covariates(metric: MetricNeed) -> MetricNeed:
    return MetricNeed(metric.name, metric.measures, None, metric.ratio, covariates=False, segments=False)


def class_of(attribute: AttributeNeed, k: int, cuts: Sequence[float]) -> tuple[exp.Expr, list[str]]:
    """An attribute's class as text, never NULL, and the classes in their order where that is known."""
    value = column(f"a{k}", "known")
    if not cuts:
        return fragment("coalesce(CAST($v AS VARCHAR), $unknown)", v=value, unknown=UNKNOWN), []
    names = list(attribute.labels) or _ranges(cuts)
    out = exp.Case(default=exp.convert(names[-1])).when(fragment("$v IS NULL", v=value), exp.convert(UNKNOWN))
    for cut, name in zip(cuts, names, strict=False):
        out = out.when(fragment("$v < $cut", v=value.copy(), cut=double(cut)), exp.convert(name))
    return out, names


def _ranges(cuts: Sequence[float]) -> list[str]:
    shown = [f"{cut:.6g}" for cut in cuts]
    if len(set(shown)) < len(cuts):  # classes of one name would be one class
        shown = [repr(float(cut)) for cut in cuts]
    between = [f"{a} to {b}" for a, b in pairwise(shown)]
    return [f"under {shown[0]}", *between, f"{shown[-1]} and over"]


def of_number(attribute: AttributeNeed, k: int, mean: exp.Expr, gaps: bool) -> list[Covariate]:
    """A number as it is. Where it is not known the mean stands for it, and a column of its own says so: with that column
    any other filling gives the same adjustment, but one far from the values would cost them their last digits."""
    value = fragment("CAST($v AS DOUBLE)", v=column(f"a{k}", "known"))
    if not gaps:
        return [Covariate(attribute.name, value)]
    missing = fragment("CASE WHEN $v IS NULL THEN 1.0::DOUBLE ELSE 0.0::DOUBLE END", v=column(f"a{k}", "known"))
    return [
        Covariate(attribute.name, fragment("coalesce($v, $mean)", v=value, mean=mean)),
        Covariate(f"{attribute.name} missing", missing),
    ]


def of_classes(attribute: AttributeNeed, k: int, classes: Sequence[str]) -> list[Covariate]:
    """Text as 0/1 columns of its classes, the most frequent first: that one has none, those beyond the limit share one."""
    value = fragment("coalesce($v, $unknown)", v=column(f"a{k}", "known"), unknown=UNKNOWN)
    told = list(classes[:MOST_COLUMNS])
    out = [
        Covariate(
            f"{attribute.name} = {name}",
            fragment("CASE WHEN $v = $c THEN 1.0::DOUBLE ELSE 0.0::DOUBLE END", v=value, c=name),
        )
        for name in told[1:]
    ]
    if len(classes) > MOST_COLUMNS:
        listed = exp.Tuple(expressions=[exp.convert(name) for name in told])
        rest = fragment("CASE WHEN $v IN $told THEN 0.0::DOUBLE ELSE 1.0::DOUBLE END", v=value, told=listed)
        out.append(Covariate(f"{attribute.name} = {OTHER}", rest))
    return out


def needs_units_kept(need: ArmsNeed) -> bool:
    """Will several statements read the unit values?"""
    percentiles = any(m.cap is not None and m.cap.percentile is not None for x in need.metrics for m in x.measures)
    means = any(m.fold == "mean" for x in need.metrics for m in x.before)
    return percentiles or means or bool(need.segments) or bool(need.beside and need.beside_metrics)

"""Spark, by Spark Connect or as a classic session. Written for Spark 4; executed on Spark and on Sail.

Tables that a run keeps are cached in the cluster, not written: nothing of the user's is. A worker that dies takes its part of
them along, and Spark computes that part again from what it was made of. So each statement gives the same rows every time: numbers
are given by the order of keys and not by the order of arrival, and where any one of several values would do the smallest is taken.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from sqlglot import exp
from sqlglot.dialects.spark import Spark as SparkWriter
from sqlglot.generators.spark import SparkGenerator

from payoff.errors import ConnectionFailed, DataError, MissingExtra
from payoff.warehouse.dialect import (
    Dialect,
    Macro,
    NoForm,
    column_names,
    groups_by_place,
    stars_written_out,
    step_columns,
)
from payoff.warehouse.engine import Engine, Progress
from payoff.warehouse.query import Query

if TYPE_CHECKING:
    from payoff.spec.nouns import SparkConnection

T = TypeVar("T")
Kind = exp.DType

BUCKETS = 256
"""Into so many parts rows are dealt to be numbered, each part by one task."""


def _call(name: str, *arguments: exp.Expr) -> exp.Expr:
    """A function of Spark's by its own name, which is written as it stands."""
    return exp.Anonymous(this=name, expressions=[a.copy() for a in arguments])


def _number(value: int | str) -> exp.Expr:
    return exp.Literal.number(value)


def _of_kind(node: exp.Expr, kind: str) -> exp.Expr:
    """A cast to one of Spark's own types."""
    return exp.Cast(this=node.copy(), to=exp.DataType.build(kind, dialect="spark"))


# ---------------------------------------------------------------- types

_TYPES: Mapping[Kind, str] = {
    Kind.UTINYINT: "SMALLINT",
    Kind.USMALLINT: "INT",
    Kind.UINT: "BIGINT",
    Kind.UBIGINT: "DECIMAL(20, 0)",
    Kind.INT128: "DECIMAL(38, 0)",
    Kind.TIMESTAMP: "TIMESTAMP_NTZ",
    Kind.TIMESTAMPNTZ: "TIMESTAMP_NTZ",
    Kind.TIMESTAMPTZ: "TIMESTAMP",
}
_SAME = {
    *(Kind.BOOLEAN, Kind.TINYINT, Kind.SMALLINT, Kind.INT, Kind.BIGINT, Kind.FLOAT, Kind.DOUBLE, Kind.DECIMAL),
    *(Kind.TEXT, Kind.VARCHAR, Kind.DATE, Kind.ARRAY, Kind.LIST, Kind.STRUCT, Kind.MAP, Kind.NULL, Kind.INTERVAL),
    *(Kind.BINARY, Kind.VARBINARY),
}
_WHOLE = {Kind.TINYINT, Kind.SMALLINT, Kind.INT, Kind.BIGINT}
_FLOATING = {Kind.FLOAT, Kind.DOUBLE}


def _type(node: exp.Expr) -> exp.Expr:
    kind = node.this
    if kind in _TYPES:
        return exp.DataType.build(_TYPES[kind], dialect="spark")
    if kind not in _SAME or (kind == Kind.INTERVAL and node.parent is not None and not node.args.get("nested")):
        raise NoForm(f"the type {node.sql('duckdb')}")
    if kind == Kind.TEXT and node.expressions:
        return exp.DataType.build("STRING", dialect="spark")
    return node


def _kind_of(node: exp.Expr) -> Kind | None:
    """The type of an expression, where the statement says it: by a cast, or by the relation that a column is of."""
    node = node.unnest()
    if isinstance(node, exp.Cast | exp.TryCast):
        return Kind.TIMESTAMPNTZ if node.to.this == Kind.TIMESTAMP else node.to.this
    if isinstance(node, exp.Column):
        told = {
            alias.this.to.this
            for alias in node.root().find_all(exp.Alias)
            if isinstance(alias.this, exp.Cast)
            and alias.alias.lower() == node.name.lower()
            and (isinstance(alias.this.this, exp.Null) or alias.this.this.name.lower() == alias.alias.lower())
        }
        return told.pop() if len(told) == 1 else None
    return None


# ---------------------------------------------------------------- passes


def _named_columns(tree: exp.Query) -> exp.Query:
    """UNION BY NAME by place, and SELECT * EXCLUDE written out, of steps that name their columns."""
    for union in list(tree.find_all(exp.Union)):
        if union.args.get("by_name"):
            names, right = column_names(union.left), union.right.unnest()
            if not isinstance(right, exp.Select) or "*" in names or sorted(column_names(right)) != sorted(names):
                raise NoForm("UNION BY NAME of different columns")
            by_name = {e.alias_or_name: e for e in right.expressions}
            right.set("expressions", [by_name[name] for name in names])
            union.set("by_name", False)
    return stars_written_out(tree, step_columns(tree))  # those of tables: as Spark's own EXCEPT, or by ``resolved``


def _numbered(tree: exp.Query) -> exp.Query:
    """Rows numbered in no order, each with a number of its own that depends on its values alone.

    Rows are dealt to parts by a hash of their values, and numbered in each part in the order of them; equal rows may change places.
    Numbers are unique and not dense: the part is their rest.
    """
    steps = {cte.alias: cte.this for cte in tree.find_all(exp.CTE)}
    for window in list(tree.find_all(exp.Window)):
        if not isinstance(window.this, exp.RowNumber) or window.args.get("order") or window.args.get("partition_by"):
            continue
        select = window.find_ancestor(exp.Select)
        assert select is not None
        keys: list[exp.Expr] = []
        for e in select.expressions:
            if e.find(exp.Window) is not None:
                continue
            if not e.is_star:
                keys.append(e.unalias().copy())
                continue
            read = select.args["from_"].this
            names = column_names(steps[read.name]) if isinstance(read, exp.Table) and read.name in steps else ["*"]
            if "*" in names:
                if not isinstance(inner := select.args["from_"].this, exp.Table) or inner.name not in steps:
                    raise NoForm("row_number() of rows whose columns are not named")
                names = column_names(steps[inner.name].find(exp.Subquery).this)
            own = [n for n in ("x", "unit", "t0") if n in names]
            keys += [exp.column(exp.to_identifier(n, quoted=True)) for n in (own if "unit" in own else names)]
        part = _call("PMOD", _call("XXHASH64", *keys), _number(BUCKETS))
        place = exp.Window(
            this=exp.RowNumber(),
            partition_by=[part.copy()],
            order=exp.Order(expressions=[exp.Ordered(this=k.copy(), nulls_first=False) for k in keys]),
            over="OVER",
        )
        before = exp.paren(exp.Sub(this=place, expression=_number(1)))
        window.replace(
            exp.paren(
                exp.Add(
                    this=exp.Add(this=exp.Mul(this=before, expression=_number(BUCKETS)), expression=part),
                    expression=_number(1),
                )
            )
        )
    return tree


def _least_structs(tree: exp.Query) -> exp.Query:
    """The smallest or largest struct, in whose fields NULL is the largest: a flag before each field says so."""
    for struct in list(tree.find_all(exp.Struct)):
        if isinstance(struct.parent, exp.Min | exp.Max):
            parts: list[exp.Expr] = []
            for field in struct.expressions:
                name, value = field.this.name, field.expression
                parts += [
                    exp.Literal.string(f"{name} is none"),
                    exp.Is(this=exp.paren(value.copy()), expression=exp.null()),
                ]
                parts += [exp.Literal.string(name), value.copy()]
            struct.replace(_call("NAMED_STRUCT", *parts))
    return tree


def _listed(tree: exp.Query) -> exp.Query:
    """Lists of constants unnested side by side, as rows of VALUES; one unnested within an expression, before it."""
    for select in list(tree.find_all(exp.Select)):
        explodes = [e.unalias() for e in select.expressions]
        if select.args.get("from_") is None and explodes and all(isinstance(e, exp.Explode) for e in explodes):
            columns: list[list[exp.Expr]] = []
            for explode in explodes:
                listed, kind = explode.this, None
                if isinstance(listed, exp.Cast):
                    kind, listed = listed.to.expressions[0], listed.this
                if not isinstance(listed, exp.Array):
                    raise NoForm("unnest() of lists that are not written out")
                columns.append([v if kind is None else exp.Cast(this=v, to=kind.copy()) for v in listed.expressions])
            rows = [exp.Tuple(expressions=[v.copy() for v in row]) for row in zip(*columns, strict=True)]
            names = [exp.to_identifier(e.alias, quoted=True) for e in select.expressions]
            values = exp.Values(expressions=rows, alias=exp.TableAlias(this=exp.to_identifier("listed"), columns=names))
            new = exp.select(*(exp.column(n.copy()) for n in names)).from_(values)
            select.set("expressions", new.expressions)
            select.set("from_", new.args["from_"])
            continue
        for e in list(select.expressions):
            nested = e.unalias()
            found = e.find(exp.Explode)
            if found is None or nested is found or found.find_ancestor(exp.Select) is not select:
                continue
            read = select.args["from_"].this
            found.replace(exp.column("unnested"))
            inner = exp.select("*", exp.alias_(found, "unnested")).from_(read.copy())
            select.set("from_", exp.From(this=inner.subquery(read.alias_or_name)))
    return tree


def _latest_before(tree: exp.Query) -> exp.Query:
    """ASOF joins: a row of the right side holds from its time to that of the next one, which is seen beside it."""
    for select in list(tree.find_all(exp.Select)):
        for join in select.args.get("joins") or []:
            if join.args.get("method") == "ASOF":
                _until_next(join)
    return tree


def _until_next(join: exp.Join) -> None:
    name = join.this.alias_or_name
    on = join.args["on"]
    equal: list[exp.Expr] = []
    order: exp.Expr | None = None
    for condition in [c.unnest() for c in (on.flatten() if isinstance(on, exp.And) else [on])]:
        if isinstance(condition, exp.EQ):
            equal.append(condition)
        else:
            order = condition
    turned: dict[type[exp.Expr], type[exp.GT | exp.GTE | exp.LT | exp.LTE]] = {
        exp.GT: exp.LT,
        exp.GTE: exp.LTE,
        exp.LT: exp.GT,
        exp.LTE: exp.GTE,
    }
    if not isinstance(order, exp.GT | exp.GTE | exp.LT | exp.LTE):
        raise NoForm("an ASOF JOIN of this kind")
    mine, theirs, kind = order.this, order.expression, type(order)
    if isinstance(mine, exp.Column) and mine.table == name:
        mine, theirs, kind = theirs, mine, turned[kind]
    keys = [c for e in equal for c in (e.this, e.expression) if isinstance(c, exp.Column) and c.table == name]
    if not isinstance(theirs, exp.Column) or theirs.table != name or len(keys) != len(equal):
        raise NoForm("an ASOF JOIN of this kind")
    later = kind in (exp.GT, exp.GTE)
    beside = exp.Window(
        this=(exp.Lead if later else exp.Lag)(this=exp.column(theirs.this.copy())),
        partition_by=[exp.column(k.this.copy()) for k in keys],
        order=exp.Order(expressions=[exp.Ordered(this=exp.column(theirs.this.copy()), nulls_first=False)]),
        over="OVER",
    )
    right = exp.select("*", exp.alias_(beside, "asof_other")).from_(_plain_table(join.this))
    other = exp.column("asof_other", table=name)
    beyond = {exp.GT: exp.LTE, exp.GTE: exp.LT, exp.LT: exp.GTE, exp.LTE: exp.GT}[kind]
    held = exp.or_(exp.Is(this=other.copy(), expression=exp.null()), beyond(this=mine.copy(), expression=other))
    join.set("this", right.subquery(name))
    join.set("method", None)
    join.set(
        "on", exp.and_(*(e.copy() for e in equal), kind(this=mine.copy(), expression=theirs.copy()), exp.paren(held))
    )


def _plain_table(table: exp.Expr) -> exp.Expr:
    out = table.copy()
    out.set("alias", None)
    return out


def _masks(tree: exp.Query) -> exp.Query:
    """Sets of numbers that DuckDB keeps in the bits of 128 are lists here, in order."""
    for union in list(tree.find_all(exp.BitwiseOrAgg)):
        shifts = [shift for shift in union.find_all(exp.BitwiseLeftShift) if _wide(shift.this)]
        for shift in shifts:
            shift.replace(_of_kind(_inner(shift.expression), "INT"))
        if shifts:
            union.replace(_call("SORT_ARRAY", _call("COLLECT_SET", union.this)))
    for test in list(tree.find_all(exp.EQ)):
        both = test.this.unnest()
        if isinstance(both, exp.BitwiseAnd) and both.expression.name == test.expression.name == "1":
            shift = both.this.unnest()
            if isinstance(shift, exp.BitwiseRightShift) and _wide(shift.expression):
                test.replace(_call("ARRAY_CONTAINS", shift.this, _of_kind(_inner(shift.expression), "INT")))
    return tree


def _wide(node: exp.Expr) -> bool:
    return isinstance(node, exp.Cast) and node.to.this == Kind.UINT128


def _inner(node: exp.Expr) -> exp.Expr:
    inner = node.this if isinstance(node, exp.Cast) else node
    assert isinstance(inner, exp.Expr)
    return inner


def _known_best(tree: exp.Query) -> exp.Query:
    """Of arg_max and arg_min: neither the value nor what it is ordered by may be NULL."""
    for best in list(tree.find_all(exp.ArgMax, exp.ArgMin)):
        value, by = best.this, best.expression
        both = exp.and_(*(exp.Not(this=exp.Is(this=exp.paren(v.copy()), expression=exp.null())) for v in (value, by)))
        if isinstance(best.parent, exp.Filter):
            where = best.parent.expression
            where.set("this", exp.and_(exp.paren(where.this.copy()), both))
        else:
            best.replace(exp.Filter(this=best.copy(), expression=exp.Where(this=both)))
    return tree


def _unfiltered_windows(tree: exp.Query) -> exp.Query:
    """An aggregate over a window of some rows: Spark has no FILTER there. The others' values are NULL."""
    for window in tree.find_all(exp.Window):
        if isinstance(window.this, exp.Filter):
            aggregate, kept = window.this.this, window.this.expression.this
            of = _number(1) if isinstance(aggregate.this, exp.Star) else aggregate.this
            if not isinstance(aggregate, exp.Count | exp.Min | exp.Max | exp.Sum | exp.Avg) or isinstance(
                of, exp.Distinct
            ):
                raise NoForm("FILTER over a window")
            aggregate.set("this", exp.Case().when(kept.copy(), of.copy()))
            window.set("this", aggregate)
    return tree


def _told_apart(tree: exp.Query) -> exp.Query:
    """Aggregates of one SELECT that differ by casts alone, which Sail calls by one name and then refuses: another form of the second.

    ``count(CAST(x AS STRING))`` beside ``count(x)`` is ``count(CASE WHEN CAST(x AS STRING) IS NOT NULL THEN CAST(x AS STRING) END)``.
    """
    for select in tree.find_all(exp.Select):
        alike: dict[str, list[str]] = {}
        alone = not select.args.get("joins")

        def bare(node: exp.Expr, alone: bool = alone) -> exp.Expr:
            """Without casts; a column of the only table without the table's name."""
            while isinstance(node, exp.Cast | exp.Paren):
                node = node.this
            return exp.column(node.name) if isinstance(node, exp.Column) and alone else node

        for aggregate in list(select.find_all(exp.AggFunc)):
            of = aggregate.this.expressions[0] if isinstance(aggregate.this, exp.Distinct) else aggregate.this
            if (
                isinstance(of, exp.Star)
                or not isinstance(of, exp.Expr)
                or aggregate.find_ancestor(exp.Select) is not select
            ):
                continue
            whole = aggregate.parent if isinstance(aggregate.parent, exp.Filter) else aggregate
            forms = alike.setdefault(whole.copy().transform(bare, copy=False).sql().lower(), [])
            if (form := whole.sql()) not in forms:
                forms.append(form)
            for _ in range(forms.index(form)):
                known = exp.Not(this=exp.Is(this=exp.paren(of.copy()), expression=exp.null()))
                told = exp.Case().when(known, of.copy())
                of.replace(told)
                of = told
    return tree


# ---------------------------------------------------------------- macros


def _renamed(name: str, *parts: str) -> Macro:
    """The same function by another name, with those of its arguments."""

    def macro(node: exp.Expr) -> exp.Expr:
        given = [node.args[p] for p in parts] if parts else node.expressions
        return _call(name, *(g for g in given if g is not None))

    return macro


def _micros(of: exp.Expr) -> exp.Expr:
    return _call("UNIX_MICROS", _of_kind(of, "TIMESTAMP"))


def _epoch_us(node: exp.Expr) -> exp.Expr:
    """Microseconds; of a naive time in a zone, the later of the two instants that a clock turned back shows it at."""
    of = node.expressions[0].unnest()
    if not isinstance(of, exp.AtTimeZone):
        return _micros(of)
    if _kind_of(of.this) == Kind.TIMESTAMPTZ:
        return _micros(_call("FROM_UTC_TIMESTAMP", of.this, of.args["zone"]))
    zone, local, day = of.args["zone"], _of_kind(of.this, "TIMESTAMP"), _number(86_400_000_000)
    shown, first = _call("UNIX_MICROS", local), _call("UNIX_MICROS", _call("TO_UTC_TIMESTAMP", local, zone))
    tomorrow = exp.Add(this=first.copy(), expression=day)

    def seen(us: exp.Expr) -> exp.Expr:
        """What a clock there shows at an instant."""
        return _call("UNIX_MICROS", _call("FROM_UTC_TIMESTAMP", _call("TIMESTAMP_MICROS", us), zone))

    ahead = exp.paren(exp.Sub(this=seen(tomorrow), expression=exp.paren(tomorrow.copy())))
    second = exp.Sub(this=shown.copy(), expression=ahead)
    return exp.Case(default=first.copy()).when(exp.EQ(this=seen(second), expression=shown), second.copy())


def _at_zone(node: exp.Expr) -> exp.Expr:
    if isinstance(node.parent, exp.Anonymous) and node.parent.name.lower() == "epoch_us":
        return node
    if isinstance(node.parent, exp.Paren) and isinstance(node.parent.parent, exp.Anonymous):
        return node
    kind, zone = _kind_of(node.this), node.args["zone"]
    if kind == Kind.TIMESTAMPTZ:
        return _of_kind(_call("FROM_UTC_TIMESTAMP", node.this, zone), "TIMESTAMP_NTZ")
    if kind in (Kind.TIMESTAMPNTZ, Kind.DATE):
        given = exp.Anonymous(this="epoch_us", expressions=[node.copy()])
        return _call("TIMESTAMP_MICROS", _epoch_us(given))
    raise NoForm("AT TIME ZONE of a time whose type is not known here")


def _from_epoch(node: exp.Expr) -> exp.Expr:
    """make_timestamp (microseconds) and epoch_ms give times without a zone, to_timestamp (seconds) with one."""
    scale = node.args.get("scale")
    if scale is None or scale.name == "0":
        us = _call("ROUND", exp.Mul(this=exp.paren(_of_kind(node.this, "DOUBLE")), expression=_number(1_000_000)))
        return _call("TIMESTAMP_MICROS", _of_kind(us, "BIGINT"))
    made = {"6": "TIMESTAMP_MICROS", "3": "TIMESTAMP_MILLIS"}.get(scale.name)
    if made is None:
        raise NoForm("a time from such a count")
    return _of_kind(_call(made, node.this), "TIMESTAMP_NTZ")


def _cast(node: exp.Expr) -> exp.Expr:
    """A cast, of a column known to hold floating numbers as DuckDB does it: rounded half to even; written in its way."""
    to, kind = node.args["to"].this, _kind_of(node.this)
    if kind in _FLOATING and to in _WHOLE:
        return exp.Cast(this=_call("BROUND", _of_kind(node.this, "DOUBLE")), to=node.args["to"].copy())
    if kind == Kind.DECIMAL and to in _WHOLE:
        return exp.Cast(this=_call("ROUND", node.this), to=node.args["to"].copy())
    if kind in _FLOATING and to in (Kind.TEXT, Kind.VARCHAR):
        return _text_of(node.this)
    if kind == Kind.TIMESTAMPTZ and to in (Kind.TEXT, Kind.VARCHAR):
        return exp.DPipe(this=_of_kind(node.this, "STRING"), expression=exp.Literal.string("+00"), safe=True)
    return node


def _text_of(number: exp.Expr) -> exp.Expr:
    """A floating number as DuckDB writes it: without an exponent from 0.0001 to below 10^16."""
    text = _of_kind(number, "STRING")
    low = _call("LOWER", text)
    digits = _call("REGEXP_REPLACE", low, exp.Literal.string(r"(\.0)?e"), exp.Literal.string("e"))
    digits = _call("REGEXP_REPLACE", digits, exp.Literal.string(r"e(\d)"), exp.Literal.string("e+$1"))
    digits = _call("REGEXP_REPLACE", digits, exp.Literal.string(r"e([-+])(\d)$"), exp.Literal.string("e$10$2"))
    size = _call("ABS", number)
    plain = _of_kind(_of_kind(number, "DECIMAL(38, 20)"), "STRING")
    plain = _call("REGEXP_REPLACE", plain, exp.Literal.string(r"(\.\d+?)0+$"), exp.Literal.string("$1"))
    whole_size = exp.and_(
        exp.GTE(this=size, expression=_of_kind(_number("0.0001"), "DOUBLE")),
        exp.LT(this=size.copy(), expression=_of_kind(_number("1e16"), "DOUBLE")),
    )
    unlike = exp.or_(
        exp.EQ(this=number.copy(), expression=_number(0)),
        _call("REGEXP_LIKE", low, exp.Literal.string("^[^e]*$")),
    )
    case = exp.Case(default=digits)
    case = case.when(
        _call("REGEXP_LIKE", low, exp.Literal.string("inf")),
        _call("REPLACE", low, exp.Literal.string("infinity"), exp.Literal.string("inf")),
    )
    return case.when(unlike, low.copy()).when(whole_size, plain)


def _try_cast(node: exp.Expr) -> exp.Expr:
    """``TRY_CAST``; a letter behind a number (1d, 1f) makes no number of it."""
    if node.args["to"].this not in _FLOATING:
        return node
    text = _of_kind(node.this, "STRING")
    suffixed = _call("REGEXP_LIKE", text, exp.Literal.string("^[^a-zA-Z]+[dDfF] *$"))
    return exp.Case(default=node.copy()).when(suffixed, exp.null())


def _floor(name: str) -> Macro:
    """As a floating number: Spark's is a BIGINT, which ends where numbers without a fraction go on."""

    def macro(node: exp.Expr) -> exp.Expr:
        if _kind_of(node.this) == Kind.DECIMAL:
            return _call(name, node.this)
        small = exp.LT(this=_call("ABS", node.this), expression=_of_kind(_number("9e15"), "DOUBLE"))
        whole = _of_kind(_call(name, node.this), "DOUBLE")
        return exp.Case(default=_of_kind(node.this, "DOUBLE")).when(small, whole)

    return macro


def _positive(name: str) -> Macro:
    """A function that DuckDB refuses outside its range, and to which Spark answers NULL or NaN."""
    bound: type[exp.Binary] = exp.LT if name == "SQRT" else exp.LTE

    def macro(node: exp.Expr) -> exp.Expr:
        if isinstance(node, exp.Log) and node.expression is not None:
            raise NoForm("log() to a base")
        of = node.this if isinstance(node.this, exp.Expr) else node.expressions[0]
        refused = _of_kind(
            _call("RAISE_ERROR", exp.Literal.string(f"{name.lower()}() of a number that has none")), "DOUBLE"
        )
        return exp.Case(default=_call(name, of)).when(bound(this=of.copy(), expression=_number(0)), refused)

    return macro


def _shifted(name: str) -> Macro:
    def macro(node: exp.Expr) -> exp.Expr:
        by = node.expression
        return _call(name, node.this.unnest(), by if isinstance(by, exp.Literal) else _of_kind(by, "INT"))

    return macro


def _series(node: exp.Expr) -> exp.Expr:
    """range(): as a relation Spark's own; as a list a sequence, which counts down where its end is before its start."""
    start, end = node.args["start"], node.args["end"]
    if node.args.get("step") is not None or not node.args.get("is_end_exclusive"):
        raise NoForm("generate_series()")
    if isinstance(node.parent, exp.Table):
        return _call("RANGE", start, end)
    last = exp.Sub(this=exp.paren(end.copy()), expression=_number(1))
    upward = _call("SEQUENCE", start, exp.Greatest(this=start.copy(), expressions=[last]))
    inside = exp.Lambda(
        this=exp.LT(this=exp.column("it"), expression=exp.paren(end.copy())), expressions=[exp.to_identifier("it")]
    )
    return exp.ArrayFilter(this=upward, expression=inside)


def _distinct_list(node: exp.Expr) -> exp.Expr:
    if not isinstance(node.this, exp.Distinct) or len(node.this.expressions) != 1:
        raise NoForm("array_agg() in the order of arrival")
    return _call("SORT_ARRAY", _call("COLLECT_SET", node.this.expressions[0]))


def _element(node: exp.Expr) -> exp.Expr:
    return _call("GET", node.expressions[0], exp.Sub(this=exp.paren(node.expressions[1].copy()), expression=_number(1)))


def _field(node: exp.Expr) -> exp.Expr:
    return exp.Dot(this=node.this.copy(), expression=exp.to_identifier(node.expression.name, quoted=True))


def _struct(node: exp.Expr) -> exp.Expr:
    parts = [p for f in node.expressions for p in (exp.Literal.string(f.this.name), f.expression)]
    return _call("NAMED_STRUCT", *parts)


def _finite(node: exp.Expr) -> exp.Expr:
    of, ends = node.expressions[0], [_of_kind(exp.Literal.string(e), "DOUBLE") for e in ("-Infinity", "Infinity")]
    return exp.paren(
        exp.and_(
            exp.GT(this=exp.paren(of.copy()), expression=ends[0]), exp.LT(this=exp.paren(of.copy()), expression=ends[1])
        )
    )


def _any_value(node: exp.Expr) -> exp.Expr:
    return exp.Min(this=node.this.copy())


def _ignore_nulls(node: exp.Expr) -> exp.Expr:
    if isinstance(node.this, exp.Min):
        return node.this.copy()
    if isinstance(node.this, exp.Lead | exp.Lag | exp.FirstValue | exp.LastValue):
        return node
    raise NoForm("IGNORE NULLS there")


def _hex_number(node: exp.Expr) -> exp.Expr:
    """'0x' || digits, cast to a number (a bucket); else as it stands."""
    joined = node.this.unnest()
    if isinstance(joined, exp.DPipe) and isinstance(joined.this, exp.Literal) and joined.this.name.lower() == "0x":
        return _of_kind(_call("CONV", joined.expression, _number(16), _number(10)), "BIGINT")
    return _cast(node)


def _char(node: exp.Expr) -> exp.Expr:
    """Of a code point; Spark's own chr() is of its last eight bits."""
    padded = _call("LPAD", _call("HEX", node.expressions[0]), _number(4), exp.Literal.string("0"))
    return _call("DECODE", _call("UNHEX", padded), exp.Literal.string("UTF-16BE"))


def _contained(node: exp.Expr) -> exp.Expr:
    return exp.Coalesce(this=_call("ARRAY_CONTAINS", node.this, node.expression), expressions=[exp.false()])


def _trunc(node: exp.Expr) -> exp.Expr:
    """date_trunc(): what comes out is of the type that goes in, which must be known."""
    kind, unit = _kind_of(node.this), exp.Literal.string(node.args["unit"].name)
    if kind == Kind.DATE:
        return _of_kind(_call("DATE_TRUNC", unit, _of_kind(node.this, "TIMESTAMP")), "DATE")
    if kind not in (Kind.TIMESTAMPNTZ, Kind.TIMESTAMPTZ):
        raise NoForm("date_trunc() of a time whose type is not known here")
    cut = _call("DATE_TRUNC", unit, node.this)
    return _of_kind(cut, "TIMESTAMP_NTZ") if kind == Kind.TIMESTAMPNTZ else cut


def _first_sized(node: exp.Expr) -> exp.Expr:
    """substring(), left() and right() from a place and of a length that are written out and not below 1 (0)."""
    numbers = [
        n for n in (node.args.get("start"), node.args.get("length"), node.args.get("expression")) if n is not None
    ]
    if not all(isinstance(n, exp.Literal) and not n.is_string for n in numbers):
        raise NoForm(f"{type(node).__name__.lower()}() by a place that is not written out")
    return node


def _extract(node: exp.Expr) -> exp.Expr:
    part, of = node.name.lower(), node.expression
    if part in ("year", "month", "day", "hour", "minute", "quarter", "week", "doy"):
        return exp.Extract(this=exp.Var(this=part.upper()), expression=of.copy())
    if part in ("dow", "dayofweek"):
        return exp.paren(exp.Sub(this=_call("DAYOFWEEK", of), expression=_number(1)))
    if part == "second":
        return _call("SECOND", of)
    if part == "epoch":
        return exp.Div(this=_micros(of), expression=_of_kind(_number(1_000_000), "DOUBLE"), typed=False, safe=False)
    raise NoForm(f"extract({part})")


def _divided(node: exp.Expr) -> exp.Expr:
    """Always of doubles: a decimal's quotient would be cut after a few digits. By zero it is infinite (0 / 0 no number)."""
    above, below = _of_kind(node.this, "DOUBLE"), _of_kind(node.expression, "DOUBLE")
    zero = exp.EQ(this=below, expression=_of_kind(_number(0), "DOUBLE"))
    infinite = exp.Mul(this=above.copy(), expression=_of_kind(exp.Literal.string("Infinity"), "DOUBLE"))
    quotient = exp.Div(
        this=above, expression=exp.Nullif(this=below.copy(), expression=_number(0)), typed=False, safe=False
    )
    return exp.paren(exp.Case(ifs=[exp.If(this=zero, true=infinite)], default=quotient))


def _date_diff(node: exp.Expr) -> exp.Expr:
    """Borders of days, months or years between two times."""
    later, earlier = _of_kind(node.this, "DATE"), _of_kind(node.expression, "DATE")
    unit = node.args["unit"].name.lower() if node.args.get("unit") is not None else "day"

    def months(of: exp.Expr) -> exp.Expr:
        return exp.Add(this=exp.Mul(this=_call("YEAR", of), expression=_number(12)), expression=_call("MONTH", of))

    if unit == "day":
        return _call("DATEDIFF", later, earlier)
    if unit == "month":
        return exp.paren(exp.Sub(this=months(later), expression=exp.paren(months(earlier))))
    if unit == "year":
        return exp.paren(exp.Sub(this=_call("YEAR", later), expression=_call("YEAR", earlier)))
    raise NoForm(f"date_diff() in {unit}s")


def _day_of_week(node: exp.Expr) -> exp.Expr:
    """Sunday is 0 in DuckDB, and 1 in Spark."""
    of = node.this if isinstance(node.this, exp.Expr) else node.expressions[0]
    return exp.paren(exp.Sub(this=_call("DAYOFWEEK", of), expression=_number(1)))


def _among(node: exp.Expr) -> exp.Expr:
    """Pairs IN a list of pairs, one by one: Sail has no tuples there."""
    if not isinstance(node.this.unnest(), exp.Tuple) or not node.expressions:
        return node
    parts = node.this.unnest().expressions
    one_by_one = [
        exp.and_(
            *(
                exp.EQ(this=part.copy(), expression=value.copy())
                for part, value in zip(parts, row.expressions, strict=True)
            )
        )
        for row in node.expressions
    ]
    return exp.paren(exp.or_(*one_by_one))


def _length(node: exp.Expr) -> exp.Expr:
    """Of text, or of a list: one that is written here, or of a step's column that is."""
    of = node.this.unnest()
    made = [a.this for a in of.root().find_all(exp.Alias) if isinstance(of, exp.Column) and a.alias == of.name]
    lists = (exp.Array, exp.ArrayFilter, exp.ArraySort)
    return _call("SIZE" if any(isinstance(n, lists) for n in (of, *made)) else "LENGTH", node.this)


def _trimmed(node: exp.Expr) -> exp.Expr:
    of = node.args.get("expression")
    return _call("TRIM", node.this) if of is None else _call("BTRIM", node.this, of)


def _days_after(node: exp.Expr) -> exp.Expr:
    """A date and a number of days."""
    if (
        isinstance(node.this, exp.Cast)
        and node.this.to.this == Kind.DATE
        and not isinstance(node.expression, exp.Interval)
    ):
        return _call("DATE_ADD", node.this, node.expression)
    return node


_MACROS: Mapping[type[exp.Expr] | str, Macro] = {
    # what passes write
    **dict.fromkeys(
        ("xxhash64", "pmod", "named_struct", "sort_array", "collect_set", "array_contains"), lambda node: node
    ),
    exp.DataType: _type,
    exp.Cast: _hex_number,
    exp.TryCast: _try_cast,
    "epoch_us": _epoch_us,
    exp.AtTimeZone: _at_zone,
    exp.UnixToTime: _from_epoch,
    "make_timestamptz": _renamed("TIMESTAMP_MICROS"),
    # a number for an id and no figure: 63 bits, as no number here is without a sign
    "hash": lambda node: exp.paren(
        exp.BitwiseAnd(this=_call("XXHASH64", *node.expressions), expression=_number(2**63 - 1))
    ),
    "isfinite": _finite,
    "list_extract": _element,
    "fsum": _renamed("SUM"),
    "bit_count": _renamed("BIT_COUNT"),
    exp.StructExtract: _field,
    exp.Struct: _struct,
    exp.AnyValue: _any_value,
    exp.IgnoreNulls: _ignore_nulls,
    exp.PercentileCont: _renamed("PERCENTILE", "this", "expression"),
    exp.Variance: _renamed("VAR_SAMP", "this"),
    exp.ArgMax: _renamed("MAX_BY", "this", "expression"),
    exp.ArgMin: _renamed("MIN_BY", "this", "expression"),
    exp.BitwiseLeftShift: _shifted("SHIFTLEFT"),
    exp.BitwiseRightShift: _shifted("SHIFTRIGHT"),
    exp.BitwiseAnd: lambda node: exp.paren(node.copy()),
    exp.BitwiseOr: lambda node: exp.paren(node.copy()),
    exp.GenerateSeries: _series,
    exp.ArrayAgg: _distinct_list,
    exp.ArrayContains: _contained,
    exp.Chr: _char,
    exp.Floor: _floor("FLOOR"),
    exp.Ceil: _floor("CEIL"),
    exp.Ln: _positive("LN"),
    exp.Sqrt: _positive("SQRT"),
    "log10": _positive("LOG10"),
    "log2": _positive("LOG2"),
    exp.TimestampTrunc: _trunc,
    exp.DateTrunc: _trunc,
    exp.Substring: _first_sized,
    exp.Left: _first_sized,
    exp.Right: _first_sized,
    exp.Trim: _trimmed,
    exp.In: _among,
    exp.Length: _length,
    exp.Extract: _extract,
    exp.DateDiff: _date_diff,
    exp.DayOfWeek: _day_of_week,
    "dayofweek": _day_of_week,
    "day": _renamed("DAY"),
    "hour": _renamed("HOUR"),
    "minute": _renamed("MINUTE"),
    "second": _renamed("SECOND"),
    "instr": _renamed("INSTR"),
    "epoch": lambda node: exp.Div(
        this=_micros(node.expressions[0]), expression=_of_kind(_number(1_000_000), "DOUBLE"), typed=False, safe=False
    ),
    exp.TimeToUnix: lambda node: exp.Div(
        this=_micros(node.this), expression=_of_kind(_number(1_000_000), "DOUBLE"), typed=False, safe=False
    ),
    exp.Add: _days_after,
    exp.Div: _divided,
}
_PLAIN: frozenset[type[exp.Expr]] = frozenset(
    {
        *(exp.IntDiv, exp.Mod, exp.DPipe, exp.Concat, exp.Least, exp.Greatest, exp.Pow, exp.Sign, exp.Exp),
        *(exp.Array, exp.ArrayFilter, exp.ArraySort, exp.Lambda, exp.Explode, exp.PropertyEQ, exp.NullSafeEQ),
        *(
            exp.NullSafeNEQ,
            exp.CountIf,
            exp.CovarSamp,
            exp.LogicalOr,
            exp.LogicalAnd,
            exp.BitwiseOrAgg,
            exp.GroupConcat,
        ),
        *(
            exp.LastValue,
            exp.FirstValue,
            exp.Qualify,
            exp.Year,
            exp.Month,
            exp.DayOfMonth,
            exp.Day,
            exp.MD5,
        ),
        *(exp.Like, exp.ILike, exp.Escape, exp.RegexpLike, exp.Contains, exp.StartsWith, exp.EndsWith, exp.Replace),
        *(exp.Hour, exp.Minute, exp.Second, exp.Week, exp.Interval, exp.Dot, exp.Values, exp.Round, exp.IsNan),
    }
)


class SparkNested(SparkWriter):
    """sqlglot's Spark, which leaves a nested WITH where it is: moved to the top, two of one name would be one."""

    class Generator(SparkGenerator):
        EXPRESSIONS_WITHOUT_NESTED_CTES: ClassVar[set[type[exp.Expr]]] = set()


DIALECT = Dialect(
    "spark",
    "sparknested",
    macros=_MACROS,
    passes=(
        groups_by_place,
        _named_columns,
        _numbered,
        _least_structs,
        _listed,
        _latest_before,
        _masks,
        _known_best,
        _unfiltered_windows,
        _told_apart,
    ),
    plain=_PLAIN,
)


# ---------------------------------------------------------------- the driver

_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",  # what overflows or cannot be cast is an error, and no NULL
    "spark.sql.caseSensitive": "false",
    "spark.sql.adaptive.enabled": "true",
    "spark.sql.timestampType": "TIMESTAMP_LTZ",
    "spark.sql.parquet.inferTimestampNTZ.enabled": "true",
    "spark.sql.groupByOrdinal": "true",
    "spark.sql.orderByOrdinal": "true",
}
CONNECT_PORT = 15002
SECONDS_TO_CONNECT = 10
SECONDS_TO_STOP = 20
"""So long a cluster is asked to stop a statement; then it is left to itself."""


class SparkEngine(Engine):
    """A session on a cluster that exists.

    ``sc://host:port`` is a Spark Connect server: the session is our own, unless the URL names one (``;session_id=``), which is then
    left open. Anything else is the master of a classic session, started here with the connection's ``options``, or that of a
    SparkContext which this process has already. Raises ConnectionFailed, and MissingExtra where the driver is not installed.
    """

    dialect = DIALECT

    def __init__(self, name: str, connection: SparkConnection, root: Path, progress: Progress | None = None) -> None:
        self._progress, self._name, self._url = progress, name, connection.url
        self._kept: dict[str, list[Any]] = {}
        self._cached: dict[str, list[Any]] = {}
        self._columns: dict[str, tuple[str, ...]] = {}
        self._files = 0
        self._share: float | None = None
        self._ours = True
        try:
            with _quiet():
                self._spark = self._connected() if self._remote else self._classic(connection.options)
                self._set_up(connection.database)
        except (ConnectionFailed, MissingExtra):
            raise
        except ImportError as error:
            raise MissingExtra("spark" if self._remote else "spark-classic", "reading from Spark") from error
        except Exception as error:  # Spark's are of many classes, of Java's and of gRPC's
            raise ConnectionFailed(f"connection '{name}': Spark cannot be used: {self._plain(error)}") from error

    # ---------------------------------------------------------------- the session

    @property
    def _remote(self) -> bool:
        return self._url.startswith("sc://")

    def _connected(self) -> Any:
        from pyspark.sql.connect.session import SparkSession

        address = urlsplit(self._url)
        place = (address.hostname or "", address.port or CONNECT_PORT)
        try:
            socket.create_connection(place, timeout=SECONDS_TO_CONNECT).close()
        except OSError as error:
            raise ConnectionFailed(
                f"connection '{self._name}': no Spark Connect server answers at {place[0]}:{place[1]}"
                f" ({error.strerror or error})"
            ) from error
        from pyspark.sql.connect.client.retries import DefaultPolicy

        self._ours = "session_id=" not in self._url
        spark = SparkSession.builder.remote(self._url).create()
        spark.client.set_retry_policies([DefaultPolicy(max_retries=5, max_backoff=4_000)])
        told: Any = self._told
        spark.registerProgressHandler(told)
        return spark

    def _told(self, stages: Any, *_: Any, done: bool = False, **__: Any) -> None:
        tasks = sum(stage.num_tasks for stage in stages or ())
        finished = sum(stage.num_completed_tasks for stage in stages or ())
        self._share = finished / tasks if tasks and not done else None

    def _classic(self, options: Mapping[str, str]) -> Any:
        import_module("py4j")  # a client of Spark Connect has none
        from pyspark import SparkContext
        from pyspark.sql import SparkSession

        if SparkContext._active_spark_context is not None:
            self._ours = False
            return SparkSession.builder.getOrCreate().newSession()
        builder = (
            SparkSession.builder.master(self._url).appName("payoff").config("spark.ui.showConsoleProgress", "false")
        )
        for key, value in options.items():
            builder = builder.config(key, value)
        return builder.getOrCreate()

    def _set_up(self, database: str | None) -> None:
        for key, value in _SETTINGS.items():
            self._spark.conf.set(key, value)
        self.version = str(self._spark.version)
        if database is not None:
            self._spark.sql(f"USE {'.'.join(_quoted(part) for part in database.split('.'))}").collect()
        told = self._spark.sql("SELECT current_catalog() AS c, current_database() AS d").collect()[0]
        self._home = (str(told["c"]), str(told["d"]))
        self._sail = self._home[0] == "sail"

    def close(self) -> None:
        with _quiet(), suppress(Exception):
            for table in list(self._kept):
                self.drop(table)
            for n in range(self._files):
                self._spark.catalog.dropTempView(f"files_{n}")
            if self._ours:
                self._spark.stop()
            elif self._remote:
                self._spark.client.close()

    # ---------------------------------------------------------------- statements

    def resolved(self, query: Query) -> Query:
        """``a.* EXCLUDE (t0)`` of a table that was kept, by its columns: Sail has no EXCLUDE."""
        if not self._columns or not any(star.args.get("except_") for star in query.tree.find_all(exp.Star)):
            return query
        return Query(stars_written_out(query.tree.copy(), self._columns.get))

    def _select(self, text: str, what: str, source: str | None) -> pa.Table:
        return _plain_types(self._watched(lambda: self._spark.sql(text).toArrow(), what, source))

    def _create(self, table: str, query: Query, what: str, source: str | None) -> None:
        self.drop(table)
        self._add(table, self.text(query, what), what, source)

    def _insert(self, table: str, query: Query, what: str, source: str | None) -> None:
        self._add(table, self.text(query, what), what, source)

    def _add(self, table: str, text: str, what: str, source: str | None) -> None:
        """Rows into a view over parts that are computed now.

        A part is known to later plans as rows that are there, not by its statement: with the statements of all tables before it a
        plan doubles from round to round. A classic session caches them and computes again what a lost worker takes along; a server
        of Spark Connect does so where its cluster has a ``spark.checkpoint.dir``.
        """

        def run() -> Any:
            rows = self._spark.sql(text)
            if self._sail:  # it caches nothing, but writes what is to be kept to its own folder
                active = type(self._spark)._active_session  # of this thread: what is kept is looked for in that one
                active.session = self._spark
                from pyspark.sql.connect.functions import col

                told = [col(_quoted(f.name)).cast(f.dataType).alias(f.name) for f in rows.schema.fields]
                return rows.select(*told).localCheckpoint()
            if self._remote:
                durable = self._spark.conf.get("spark.checkpoint.dir", None)
                return rows.checkpoint() if durable else rows.localCheckpoint()
            from pyspark import StorageLevel
            from pyspark.sql.classic.dataframe import DataFrame

            rows = rows.persist(StorageLevel.MEMORY_AND_DISK)
            self._cached.setdefault(table, []).append(rows)
            rows.count()
            read = rows.select("*")._jdf
            internal, inside = read.queryExecution().toRdd(), self._spark._jsparkSession
            return DataFrame(inside.internalCreateDataFrame(internal, read.schema(), False), self._spark)

        parts = self._kept.setdefault(table, [])
        parts.append(self._watched(run, what, source))
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.unionAll(part)
        whole.createOrReplaceTempView(table if self._sail else _quoted(table))
        self._columns[table] = tuple(parts[0].columns)

    def drop(self, table: str) -> None:
        parts = self._kept.pop(table, [])
        self._columns.pop(table, None)
        cached = self._cached.pop(table, [])  # of one that was stopped half-way too
        if parts or cached:
            with _quiet(), suppress(Exception):
                self._spark.catalog.dropTempView(table)
                for part in cached:
                    part.unpersist()

    def types(self, query: Query, source: str | None = None) -> dict[str, str]:
        text = self.text(query, "look at columns")
        schema = self._watched(lambda: self._spark.sql(text).schema, "look at columns", source)
        return {field.name: _duckdb_type(field.dataType) for field in schema.fields}

    def place(self, connection: str, parts: Sequence[str]) -> exp.Table:
        catalog, database = self._home
        return exp.Table(
            this=exp.to_identifier(parts[-1], quoted=True),
            db=exp.to_identifier(parts[0] if len(parts) == 2 else database, quoted=True),
            catalog=exp.to_identifier(catalog, quoted=True),
        )

    def settled(self, select: exp.Query, columns: Mapping[str, str]) -> exp.Query:
        """With the types said that decide how an expression over a column is written: floating numbers and times."""
        telling = ("FLOAT", "DOUBLE", "DECIMAL", "DATE", "TIMESTAMP")
        if not any(kind.startswith(telling) and not kind.endswith("]") for kind in columns.values()):
            return select
        out: list[exp.Expr] = []
        for name, kind in columns.items():
            own: exp.Expr = exp.column(exp.to_identifier(name, quoted=True))
            if kind.startswith(telling) and not kind.endswith("]"):
                own = exp.alias_(exp.cast(own, exp.DataType.build(kind, dialect="duckdb")), name, quoted=True)
            out.append(own)
        return exp.select(*out).from_(select.copy().subquery("stored"))

    def files(self, paths: Sequence[str], kind: str, source: str) -> exp.Query:
        """Parquet where the cluster can see it: at the same path on every worker."""
        if kind != "parquet":
            return super().files(paths, kind, source)
        view = f"files_{self._files}"
        self._files += 1

        def run() -> None:
            read = self._spark.read.option("mergeSchema", "true").parquet(*(Path(p).as_uri() for p in paths))
            read.createOrReplaceTempView(view)

        self._watched(run, "look at files", source)
        return exp.select("*").from_(view)

    # ---------------------------------------------------------------- watching

    def _watched(self, run: Callable[[], T], what: str, source: str | None) -> T:
        """Run in a thread of its own, so that this one hears Ctrl-C and stops the statement, by its tag, on the cluster."""
        tag, running = f"payoff-{uuid.uuid4()}", Future[T]()

        def work() -> None:
            try:
                self._spark.addTag(tag)  # of this thread alone: nothing else of a session that is the user's is stopped
                running.set_result(run())
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is waited for
                running.set_exception(error)

        self._share = None
        with _quiet():
            Thread(target=work, name=f"payoff: {what}", daemon=True).start()
            try:
                self.tell(what, source, None)
                while wait([running], timeout=0.2).not_done:
                    self.tell(what, source, self._share if self._remote else self._share_of_tasks())
                return running.result()
            except (TypeError, AttributeError, NameError, AssertionError):  # a fault of ours is not one of the data
                raise
            except Exception as error:  # of many classes
                raise self._translated(error, what, source) from error
            except BaseException:
                told_until = time.monotonic() + SECONDS_TO_STOP
                while wait([running], timeout=0.3).not_done and time.monotonic() < told_until:
                    with suppress(Exception):  # again and again, as it may not have begun there
                        self._spark.interruptTag(tag)
                raise

    def _share_of_tasks(self) -> float | None:
        with suppress(Exception):
            tracker = self._spark.sparkContext.statusTracker()
            stages = [s for n in tracker.getActiveStageIds() if (s := tracker.getStageInfo(n)) is not None]
            tasks = sum(s.numTasks for s in stages)
            return sum(s.numCompletedTasks for s in stages) / tasks if tasks else None
        return None

    def _plain(self, error: BaseException) -> str:
        """What Spark says, without its class, its position in the statement, its stack and what the URL holds."""
        text = str(error).split("JVM stacktrace")[0].split("\n== SQL")[0].split("; line ")[0]
        text = re.sub(r"SQLSTATE: \w+", "", text)
        for secret in re.findall(r"(?:token|password|user_id)=([^;&\s]+)", self._url):
            text = text.replace(secret, "***")
        told = " ".join(text.split())
        return told if len(told) <= 400 else told[:397] + "..."

    def _translated(self, error: BaseException, what: str, source: str | None) -> DataError | ConnectionFailed:
        reason, kind = self._plain(error), type(error).__name__
        gone = ("UNAVAILABLE", "Connection refused", "failed to connect", "SparkContext was shut down", "Socket closed")
        lost = kind in ("Py4JNetworkError", "ConnectionRefusedError", "RetriesExceeded", "SessionNotSameException")
        if lost or any(sign in reason for sign in gone):
            return ConnectionFailed(f"{what}: the connection to Spark was lost ({reason}); see that the cluster is up")
        if "No space left" in reason or "OutOfMemory" in reason or "ExecutorLost" in reason:
            return ConnectionFailed(
                f"{what}: Spark ran out of memory or disk, or lost its executors ({reason}); give them more"
            )
        if "PERMISSION" in reason.upper() and "DENIED" in reason.upper():
            return ConnectionFailed(f"{what}: Spark does not permit it: {reason}")
        return DataError(f"{what}: {reason}", source=source)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Spark's client writes to the log and warns of: errors are raised, and told in our words.

    A process whose main module has no file (``python -c``, a worker of a pool) is taken for one of its own tests there, and ended;
    one that is called interactive is not.
    """
    alone = not hasattr(sys, "ps1") and not hasattr(sys.modules["__main__"], "__file__")
    if alone:
        sys.ps1 = ""
    loggers = [logging.getLogger(name) for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger", "pyspark")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if alone and hasattr(sys, "ps1"):
                del sys.ps1


def _quoted(name: str) -> str:
    return exp.to_identifier(name, quoted=True).sql("spark")


def _duckdb_type(kind: Any) -> str:
    """A type of Spark's in DuckDB's name."""
    simple = {
        **{"ByteType": "TINYINT", "ShortType": "SMALLINT", "IntegerType": "INTEGER", "LongType": "BIGINT"},
        **{"FloatType": "FLOAT", "DoubleType": "DOUBLE", "BooleanType": "BOOLEAN", "DateType": "DATE"},
        **{"TimestampType": "TIMESTAMP WITH TIME ZONE", "TimestampNTZType": "TIMESTAMP", "BinaryType": "BLOB"},
        **{"StringType": "VARCHAR", "CharType": "VARCHAR", "VarcharType": "VARCHAR", "NullType": "INTEGER"},
    }
    name = type(kind).__name__
    if name in simple:
        return simple[name]
    if name == "DecimalType":
        return f"DECIMAL({kind.precision},{kind.scale})"
    if name == "ArrayType":
        return f"{_duckdb_type(kind.elementType)}[]"
    if name == "StructType":
        fields = ", ".join(
            f"{exp.to_identifier(f.name, quoted=True).sql('duckdb')} {_duckdb_type(f.dataType)}" for f in kind.fields
        )
        return f"STRUCT({fields})"
    if name == "MapType":
        return f"MAP({_duckdb_type(kind.keyType)}, {_duckdb_type(kind.valueType)})"
    return str(kind.simpleString()).upper()


def _plain_types(table: pa.Table) -> pa.Table:
    """Whole numbers as int64 (a decimal without a fraction too), other decimals as double, times in microseconds."""
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        kind = field.type
        if pa.types.is_integer(kind):
            kind = pa.int64()
        elif pa.types.is_decimal(kind):
            kind = pa.int64() if kind.scale == 0 else pa.float64()
        elif pa.types.is_large_string(kind):
            kind = pa.string()
        columns.append(column if kind == field.type else column.cast(kind))
    return pa.Table.from_arrays(columns, names=table.column_names)

"""Dialects that statements are written in and that nothing here executes: BigQuery, Snowflake, Databricks, Trino and Redshift.

What each function means there is taken from the vendor's public reference. As with engines, what has no equal form is refused by
its name; times are told in UTC, so the session's zone has to be UTC.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath

from sqlglot import exp
from sqlglot.errors import ErrorLevel, SqlglotError

from payoff.errors import UsageError, did_you_mean
from payoff.warehouse.dialect import CannotRun, Dialect, Macro, NoForm, Pass
from payoff.warehouse.query import parsed_query

Many = Callable[..., exp.Expr]


def _call(name: str, *arguments: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this=name, expressions=list(arguments))


def _named(name: str) -> Many:
    return partial(_call, name)


def _number(value: int | str) -> exp.Expr:
    return exp.Literal.number(value)


def _text(value: str) -> exp.Expr:
    return exp.Literal.string(value)


def _null(of: exp.Expr) -> exp.Expr:
    return exp.Is(this=of.copy(), expression=exp.null())


def _known(of: exp.Expr) -> exp.Expr:
    return exp.Not(this=_null(of))


def _no(what: str) -> Many:
    def refuse(*_: exp.Expr) -> exp.Expr:
        raise NoForm(what)

    return refuse


def _double(of: exp.Expr) -> exp.Expr:
    return of if isinstance(of, exp.Cast) and of.to.this == exp.DType.DOUBLE else exp.cast(of, "DOUBLE")


@dataclass(frozen=True)
class _Words:
    """What dialects say differently; the arguments are translated."""

    epoch_us: Many
    from_us: Many
    """Microseconds since 1970 to a time without a zone."""
    instant: Many
    """The same to an instant."""
    in_zone: Many
    hex15: Many
    """The first 15 hexadecimal digits of the MD5 of a text, as a whole number."""
    finite: Many
    int_div: Many
    mod: Many
    matches: Many
    contains: Many
    ends_with: Many
    joined: Many
    """Texts of rows as one, in order: (text, separator, order)."""
    array: Many
    item: Many
    """An item of a list by its place from 1, NULL where there is none."""
    length: Many
    holds: Many
    pair: Callable[[exp.Expr, list[exp.Expr], exp.Expr | None], exp.Expr] | None
    """A value of the row whose ``keys`` come first, among rows that meet a condition."""
    quantile: Many
    covariance: Many = field(default=_named("COVAR_SAMP"))
    max_by: Many = field(default=_named("MAX_BY"))
    min_by: Many = field(default=_named("MIN_BY"))
    bit_or: Many = field(default=_named("BIT_OR"))
    bit_count: Many = field(default=_named("BIT_COUNT"))
    any_true: Many = field(default=_named("BOOL_OR"))
    shift_left: Many | None = None
    shift_right: Many | None = None
    bit_and: Many | None = None
    trim: Many | None = None
    try_text_first: bool = False
    """TRY_CAST takes texts alone."""
    whole: str = "DECIMAL(38, 0)"
    skips_null: bool = True
    """Does the least or greatest of several skip NULL?"""
    filters: bool = False
    """Is there FILTER (WHERE ...)?"""
    add_days: Many | None = None
    null_safe: bool = True
    star_except: bool = True
    ranges: bool = True
    """May a frame be a span of values?"""
    tuples: bool = True
    lead_skips: bool = True
    nulls_first: bool = False
    """Does NULL come first in a window, whatever is said?"""
    parameter: Callable[[str], exp.Expr] | None = None


# ---------------------------------------------------------------- whole statements


def _selects(tree: exp.Query) -> list[exp.Select]:
    return list(tree.find_all(exp.Select))


def _plain_tables(tree: exp.Query) -> exp.Query:
    """Tables by their names: the catalogue of a DuckDB session is nowhere else."""
    for table in list(tree.find_all(exp.Table)):
        if isinstance(table.this, exp.GenerateSeries):
            table.replace(_numbers(table))
            continue
        if not isinstance(table.this, exp.Identifier):
            raise NoForm(
                f"{table.this.sql_name().lower() if isinstance(table.this, exp.Func) else table.this.name.lower()}()"
            )
        if table.catalog:
            table.set("catalog", None)
            if table.db == "main":
                table.set("db", None)
    return tree


def _numbers(table: exp.Table) -> exp.Expr:
    """Whole numbers between two that are written out, as rows."""
    start, end = table.this.args["start"], table.this.args["end"]
    names = table.args["alias"].columns if table.args.get("alias") else []
    if not (
        isinstance(start, exp.Literal)
        and isinstance(end, exp.Literal)
        and len(names) == 1
        and not table.this.args.get("step")
    ):
        raise NoForm("range() of what is not written out")
    last = int(end.name) - (1 if table.this.args.get("is_end_exclusive") else 0)
    if last < int(start.name):
        raise NoForm("range() of nothing")
    rows: exp.Query = exp.select(exp.alias_(exp.Literal.number(start.name), names[0].copy()))
    for i in range(int(start.name) + 1, last + 1):
        rows = exp.union(rows, exp.select(exp.alias_(exp.Literal.number(i), names[0].copy())), distinct=False)
    return rows.subquery(table.alias)


def _no_named_windows(tree: exp.Query) -> exp.Query:
    for select in _selects(tree):
        named = {w.name: w for w in select.args.get("windows") or []}
        for window in select.find_all(exp.Window):
            over = named.get(window.alias)
            if over is None or window is over or window.find_ancestor(exp.Select) is not select:
                continue
            window.set("alias", None)
            for part in ("partition_by", "order", "spec"):
                given = over.args.get(part)
                if given:
                    window.set(part, [g.copy() for g in given] if isinstance(given, list) else given.copy())
        select.set("windows", None)
    return tree


def _aggregates(of: exp.Expr) -> bool:
    """Does an expression aggregate, but for a window?"""
    for node in of.walk(prune=lambda n: isinstance(n, exp.Window | exp.Query)):
        if isinstance(node, exp.AggFunc) or (isinstance(node, exp.Anonymous) and node.name.lower() == "fsum"):
            return True
    return False


def _groups_written_out(tree: exp.Query) -> exp.Query:
    """GROUP BY ALL, and groups by the name of what is selected, by places."""
    for select in _selects(tree):
        group = select.args.get("group")
        if group is None:
            continue
        if group.args.get("all"):
            at = [i for i, e in enumerate(select.expressions, 1) if not _aggregates(e)]
            group.set("all", None)
            group.set("expressions", [_number(i) for i in at])
            if not at:
                select.set("group", None)
            continue
        places = {e.alias: i for i, e in enumerate(select.expressions, 1) if isinstance(e, exp.Alias)}
        for key in list(group.expressions):
            if isinstance(key, exp.Column) and not key.table and key.name in places:
                its = select.expressions[places[key.name] - 1].this
                if not (isinstance(its, exp.Column) and its.name == key.name):
                    key.replace(_number(places[key.name]))
    return tree


def _nearest_as_spans(tree: exp.Query) -> exp.Query:
    """ASOF joins. Each row on the right holds until the next one of its keys, and is joined where the left one's time is in that span."""
    for select in _selects(tree):
        for join in select.args.get("joins") or []:
            if str(join.args.get("method") or "").upper() != "ASOF":
                continue
            right = join.this
            alias = right.alias_or_name
            keys: list[exp.Expr] = []
            times: list[exp.Expr] = []
            for part in join.args["on"].flatten() if isinstance(join.args["on"], exp.And) else [join.args["on"]]:
                bare = part.unnest()
                (keys if isinstance(bare, exp.EQ | exp.NullSafeEQ) else times).append(bare)
            if len(times) != 1 or not isinstance(times[0], exp.GT | exp.GTE | exp.LT | exp.LTE):
                raise NoForm("an ASOF join by anything but one order")
            order = times[0]
            theirs, ours = order.expression, order.this
            kind: type[exp.Binary] = type(order)
            if _of_table(ours, alias):
                theirs, ours = ours, theirs
                kind = _TURNED[kind]
            if not _of_table(theirs, alias):
                raise NoForm("an ASOF join whose sides are not told by their tables")
            by = [k.this if _of_table(k.this, alias) else k.expression for k in keys]
            back = kind in (exp.GT, exp.GTE)
            end: type[exp.Binary] = {exp.GT: exp.LTE, exp.GTE: exp.LT, exp.LT: exp.GTE, exp.LTE: exp.GT}[kind]
            own = [exp.column(c.name, quoted=True) for c in (*by, theirs)]
            window = exp.Window(
                this=(exp.Lead if back else exp.Lag)(this=own[-1].copy()),
                partition_by=[c.copy() for c in own[:-1]],
                order=exp.Order(expressions=[exp.Ordered(this=own[-1].copy(), desc=False, nulls_first=False)]),
            )
            inner = right.copy()
            inner.set("alias", exp.TableAlias(this=exp.to_identifier("rows_of")))
            spans = exp.select("*", exp.alias_(window, "until", quoted=True)).from_(inner).where(_known(own[-1]))
            until = exp.column("until", table=alias, quoted=True)
            holds = exp.paren(exp.or_(_null(until), end(this=ours.copy(), expression=until.copy())))
            join.set("this", spans.subquery(alias))
            join.set("method", None)
            join.set("on", exp.and_(*(k.copy() for k in keys), kind(this=ours.copy(), expression=theirs.copy()), holds))
            if any(isinstance(e, exp.Star) and not isinstance(e.parent, exp.Count) for e in select.expressions):
                raise NoForm("an ASOF join all of whose columns are read")
    return tree


_TURNED: Mapping[type[exp.Binary], type[exp.Binary]] = {
    exp.GT: exp.LT,
    exp.GTE: exp.LTE,
    exp.LT: exp.GT,
    exp.LTE: exp.GTE,
}


def _of_table(of: exp.Expr, alias: str) -> bool:
    return isinstance(of, exp.Column) and of.table == alias


def _anti_as_not_exists(tree: exp.Query) -> exp.Query:
    for select in _selects(tree):
        for join in list(select.args.get("joins") or []):
            kind = str(join.args.get("kind") or "").upper()
            if kind not in ("ANTI", "SEMI"):
                continue
            found = exp.Exists(this=exp.select(_number(1)).from_(join.this.copy()).where(join.args["on"].copy()))
            join.pop()
            select.where(exp.Not(this=found) if kind == "ANTI" else found, copy=False)
    return tree


def _lists_as_rows(tree: exp.Query) -> exp.Query:
    """``unnest`` of lists that are written out, beside each other: a row for each place. Items of named parts become columns."""
    for select in reversed(_selects(tree)):  # those within first: what is around them is copied
        unnested = [
            (e, e.this if isinstance(e, exp.Alias) else e)
            for e in select.expressions
            if isinstance(e.this if isinstance(e, exp.Alias) else e, exp.Explode)
        ]
        if not unnested:
            continue
        columns: list[tuple[str, list[exp.Expr], bool]] = []
        for whole, node in unnested:
            of, known = node.this, False
            if isinstance(of, exp.ArrayFilter):
                of, known = of.this, _keeps_known(of)
            kind = None
            if isinstance(of, exp.Cast):
                of, kind = of.this, of.to.expressions[0]
            if not isinstance(of, exp.Array) or not isinstance(whole, exp.Alias) or not of.expressions:
                raise NoForm("unnest() of a list that is not written out")
            items = [exp.cast(i.copy(), kind) if kind is not None else i.copy() for i in of.expressions]
            columns.append((whole.alias, items, known))
        most = max(len(items) for _, items, _ in columns)
        numbers: exp.Query = exp.select(exp.alias_(_number(1), "place"))
        for i in range(2, most + 1):
            numbers = exp.union(numbers, exp.select(exp.alias_(_number(i), "place")), distinct=False)
        given: list[exp.Expr] = []
        wanted: list[exp.Expr] = []
        for e in select.expressions:
            told = next((c for (whole, _), c in zip(unnested, columns, strict=True) if whole is e), None)
            if told is None:
                given.append(e.copy())
                continue
            name, items, known = told
            given.extend(_placed(tree, name, items, most))
            wanted += [_known(exp.column(name, quoted=True))] if known else []
        select.set("expressions", given)
        rows = numbers.subquery("places")
        if select.args.get("from_") is None:
            select.from_(rows, copy=False)
        else:
            select.join(rows, join_type="CROSS", copy=False)
        if wanted:
            inner = select.copy()
            with_ = inner.args.get("with_")
            inner.set("with_", None)
            outer = exp.select("*").from_(inner.subquery("placed")).where(*wanted)
            if with_ is not None:
                outer.set("with_", with_)
            if select is tree:
                tree = outer
            else:
                select.replace(outer)
    return tree


def _keeps_known(of: exp.ArrayFilter) -> bool:
    body = of.expression.this if isinstance(of.expression, exp.Lambda) else None
    if isinstance(body, exp.Not) and isinstance(body.this, exp.Is) and isinstance(body.this.expression, exp.Null):
        return True
    raise NoForm("list_filter() but for what is not NULL")


def _struct_in(item: exp.Expr) -> exp.Struct | None:
    if isinstance(item, exp.Struct):
        return item
    if isinstance(item, exp.Case) and item.args.get("default") is None and len(item.args["ifs"]) == 1:
        found = item.args["ifs"][0].args["true"]
        return found if isinstance(found, exp.Struct) else None
    return None


def _placed(tree: exp.Query, name: str, items: list[exp.Expr], most: int) -> list[exp.Expr]:
    place = exp.column("place", table="places")

    def choice(of: list[exp.Expr]) -> exp.Expr:
        if most == 1:
            return of[0]
        case = exp.Case()
        for i, item in enumerate(of, 1):
            case = case.when(exp.EQ(this=place.copy(), expression=_number(i)), item)
        return case

    structs = [_struct_in(i) for i in items]
    if not any(s is not None for s in structs):
        return [exp.alias_(choice(items), name, quoted=True)]

    def part(item: exp.Expr, field: str | None) -> exp.Expr:
        struct = _struct_in(item)
        if struct is None:
            raise NoForm("a list of unlike structs")
        value = _number(1) if field is None else next(p.expression for p in struct.expressions if p.this.name == field)
        if item is struct:
            return value.copy()
        return exp.Case().when(item.args["ifs"][0].this.copy(), value.copy())

    first = next(s for s in structs if s is not None)
    fields = [p.this.name for p in first.expressions]
    for node in list(tree.find_all(exp.StructExtract)):
        if isinstance(node.this, exp.Column) and node.this.name == name:
            node.replace(exp.column(f"{name} {node.expression.name}", table=node.this.table or None, quoted=True))
    out = [exp.alias_(choice([part(i, f) for i in items]), f"{name} {f}", quoted=True) for f in fields]
    return [exp.alias_(choice([part(i, None) for i in items]), name, quoted=True), *out]


# ---------------------------------------------------------------- nodes


def _when(condition: exp.Expr, value: exp.Expr) -> exp.Expr:
    return exp.Case().when(condition.copy(), value)


def _macros(w: _Words) -> dict[type[exp.Expr] | str, Macro]:
    """By node: ``w`` in the places where dialects differ."""

    def cast(node: exp.Expr) -> exp.Expr:
        assert isinstance(node, exp.Cast)
        of, kind = node.this, node.to.this
        inner = of.unnest()
        if kind == exp.DType.BIGINT and isinstance(inner, exp.DPipe) and inner.this.name == "0x":
            digits: exp.Expr = inner.expression
            return digits  # of a bucket, told by ``hex15``
        if kind == exp.DType.NULL:
            return exp.null()
        if kind in (exp.DType.UINT, exp.DType.USMALLINT, exp.DType.UTINYINT):
            return exp.cast(of, "BIGINT")
        if kind in (exp.DType.UBIGINT, exp.DType.UINT128):
            raise NoForm("whole numbers of more than 63 bits")
        if kind == exp.DType.INT128:
            return exp.cast(of, w.whole)
        return node

    def try_cast(node: exp.Expr) -> exp.Expr:
        assert isinstance(node, exp.TryCast)
        of = exp.cast(node.this, "VARCHAR") if w.try_text_first else node.this
        to = exp.DataType.build(w.whole) if node.to.this == exp.DType.INT128 else node.to
        return exp.TryCast(this=of, to=to)

    def filtered(node: exp.Expr) -> exp.Expr:
        of, condition = node.this, node.expression.this
        if w.filters:
            return node
        if isinstance(of, exp.Count) and isinstance(of.this, exp.Star):
            return exp.Count(this=_when(condition, _number(1)))
        if isinstance(of, exp.Count) and isinstance(of.this, exp.Distinct) and len(of.this.expressions) == 1:
            return exp.Count(this=exp.Distinct(expressions=[_when(condition, of.this.expressions[0])]))
        if isinstance(of, exp.Sum | exp.Avg | exp.Min | exp.Max | exp.Count | exp.Variance):
            out = of.copy()
            out.set("this", _when(condition, of.this))
            return out
        if isinstance(of, exp.Anonymous) and len(of.expressions) == 1:
            return _call(of.name, _when(condition, of.expressions[0]))
        raise NoForm(f"{of.sql_name().lower() if isinstance(of, exp.Func) else 'an aggregate'}() FILTER")

    def count_if(node: exp.Expr) -> exp.Expr:
        return exp.Count(this=_when(node.this, _number(1)))

    def part_of(node: exp.Expr) -> exp.Expr:
        of, where = node.this, None
        if isinstance(of, exp.Filter):
            of, where = of.this, of.expression.this
        if not (isinstance(of, exp.Min | exp.Max) and isinstance(of.this, exp.Struct)) or w.pair is None:
            raise NoForm("a part of a struct")
        if isinstance(of, exp.Max):
            raise NoForm("the greatest of structs")
        parts = {p.this.name: p.expression for p in of.this.expressions}
        return w.pair(parts[node.expression.name], list(parts.values()), where)

    def best(by: Many) -> Macro:
        # rows whose value is NULL are passed over
        return lambda node: by(node.this, _when(_known(node.this), node.expression))

    def extreme(node: exp.Expr) -> exp.Expr:
        if w.skips_null:
            return node
        parts: list[exp.Expr] = [node.this, *node.expressions]
        out = parts[0]
        for part in parts[1:]:
            a, b = out, part
            if not isinstance(part, exp.Literal):
                a = exp.Coalesce(this=out.copy(), expressions=[part.copy()])
            if not isinstance(out, exp.Literal):
                b = exp.Coalesce(this=part.copy(), expressions=[out.copy()])
            out = type(node)(this=a, expressions=[b])
        return out

    def ignoring(node: exp.Expr) -> exp.Expr:
        if isinstance(node.this, exp.Min):  # what any_value became: it skips NULL itself
            return node.this
        if isinstance(node.this, exp.Lead | exp.LastValue | exp.FirstValue):
            return node
        raise NoForm("IGNORE NULLS")

    def window(node: exp.Expr) -> exp.Expr:
        of = node.this
        skipping = isinstance(of, exp.IgnoreNulls)
        if skipping and isinstance(of.this, exp.Lead) and not w.lead_skips:
            node.set("this", exp.IgnoreNulls(this=exp.FirstValue(this=of.this.this)))
            spec = {
                "kind": "ROWS",
                "start": _number(1),
                "start_side": "FOLLOWING",
                "end": "UNBOUNDED",
                "end_side": "FOLLOWING",
            }
            node.set("spec", exp.WindowSpec(**spec))
        order, frame = node.args.get("order"), node.args.get("spec")
        if w.nulls_first and order is not None and (frame is None or frame.args.get("kind") != "RANGE"):
            for key in list(order.expressions):
                if key.args.get("nulls_first") is False and not key.args.get("desc"):
                    last = exp.Ordered(this=exp.paren(_null(key.this)), desc=False, nulls_first=True)
                    key.set("nulls_first", True)
                    order.set("expressions", [e for k in order.expressions for e in ((last, k) if k is key else (k,))])
        return node

    def frame(node: exp.Expr) -> exp.Expr:
        spans = any(isinstance(node.args.get(k), exp.Expr) for k in ("start", "end"))
        if node.args.get("kind") == "RANGE" and spans and not w.ranges:
            raise NoForm("a window over a span of values")
        return node

    def nullif_zero(of: exp.Expr) -> exp.Expr:
        return of if isinstance(of.unnest(), exp.Literal) else exp.Nullif(this=of, expression=_number(0))

    def safe_equal(node: exp.Expr) -> exp.Expr:
        if w.null_safe:
            return node
        both = exp.and_(_null(node.this), _null(node.expression))
        return exp.paren(exp.or_(exp.EQ(this=node.this, expression=node.expression), both))

    def trim(node: exp.Expr) -> exp.Expr:
        signs = node.expression or _text(" ")
        if w.trim is not None:
            return w.trim(node.this, signs)
        return exp.Trim(this=node.this, expression=signs, position="BOTH")

    def star(node: exp.Expr) -> exp.Expr:
        if (node.args.get("except_") or node.args.get("except")) and not w.star_except:
            raise NoForm("* EXCLUDE")
        return node

    def among(node: exp.Expr) -> exp.Expr:
        if not isinstance(node.this, exp.Tuple) or w.tuples:
            return node
        if not all(isinstance(e, exp.Tuple) for e in node.expressions) or node.args.get("query"):
            raise NoForm("several values IN a query")
        alike = (
            exp.and_(
                *(
                    exp.EQ(this=a.copy(), expression=b)
                    for a, b in zip(node.this.expressions, e.expressions, strict=True)
                )
            )
            for e in node.expressions
        )
        return exp.paren(exp.or_(*(exp.paren(a) for a in alike)))

    def bits(own: Many | None) -> Macro:
        return lambda node: node if own is None else own(node.this, node.expression)

    def doubled(name: str) -> Macro:
        return lambda node: _call(name, _double(node.this))

    def quantile(node: exp.Expr) -> exp.Expr:
        return w.quantile(node.this, node.expression)

    def joined(node: exp.Expr) -> exp.Expr:
        of = node.this
        order = of.expressions if isinstance(of, exp.Order) else []
        return w.joined(of.this if isinstance(of, exp.Order) else of, node.args.get("separator") or _text(","), *order)

    def days_on(node: exp.Expr) -> exp.Expr:
        day = node.this
        if w.add_days is not None and isinstance(day, exp.Cast) and day.to.this == exp.DType.DATE:
            return w.add_days(day, node.expression)
        return node

    def union(node: exp.Expr) -> exp.Expr:
        if node.args.get("by_name"):
            raise NoForm("UNION BY NAME")
        return node

    def parameter(node: exp.Expr) -> exp.Expr:
        return node if w.parameter is None else w.parameter(node.name)

    def hashed(node: exp.Expr) -> exp.Expr:  # any number of an id's own will do
        return w.hex15(node.expressions[0])

    def substring(node: exp.Expr) -> exp.Expr:
        of, start, length = node.this, node.args.get("start"), node.args.get("length")
        if isinstance(of, exp.Anonymous) and of.name == "hex15":
            return w.hex15(*of.expressions)
        return _call("SUBSTR", *(p for p in (of, start, length) if p is not None))

    def from_epoch(node: exp.Expr) -> exp.Expr:
        scale = node.args.get("scale")
        if scale is None or int(scale.name) != 6:
            raise NoForm("a time from whole seconds")
        return w.from_us(node.this)

    def part(unit: str) -> Macro:
        return lambda node: exp.Extract(this=exp.var(unit), expression=node.this)

    return {
        exp.Cast: cast,
        exp.TryCast: try_cast,
        exp.Filter: filtered,
        exp.CountIf: count_if,
        exp.Struct: lambda node: node,
        exp.PropertyEQ: lambda node: node,
        exp.StructExtract: part_of,
        exp.ArgMax: best(w.max_by),
        exp.ArgMin: best(w.min_by),
        exp.Least: extreme,
        exp.Greatest: extreme,
        exp.AnyValue: lambda node: exp.Min(this=node.this),
        exp.IgnoreNulls: ignoring,
        exp.Window: window,
        exp.WindowSpec: frame,
        exp.IntDiv: lambda node: w.int_div(node.this, nullif_zero(node.expression)),
        exp.Mod: lambda node: w.mod(node.this, nullif_zero(node.expression)),
        exp.Div: lambda node: exp.Div(this=_double(node.this), expression=node.expression, typed=True, safe=False),
        exp.NullSafeEQ: safe_equal,
        exp.Avg: doubled("AVG"),
        exp.Variance: doubled("VAR_SAMP"),
        exp.CovarSamp: lambda node: w.covariance(_double(node.this), _double(node.expression)),
        exp.PercentileCont: quantile,
        exp.LogicalOr: lambda node: w.any_true(node.this),
        exp.BitwiseOrAgg: lambda node: w.bit_or(node.this),
        exp.BitwiseAnd: bits(w.bit_and),
        exp.BitwiseLeftShift: bits(w.shift_left),
        exp.BitwiseRightShift: bits(w.shift_right),
        exp.Trim: trim,
        exp.Star: star,
        exp.In: among,
        exp.Union: union,
        exp.Placeholder: parameter,
        exp.MD5: lambda node: _call("hex15", node.this),
        exp.Substring: substring,
        exp.UnixToTime: from_epoch,
        exp.AtTimeZone: lambda node: w.in_zone(node.this, node.args["zone"]),
        exp.RegexpLike: lambda node: w.matches(node.this, node.expression),
        exp.Contains: lambda node: w.contains(node.this, node.expression),
        exp.EndsWith: lambda node: w.ends_with(node.this, node.expression),
        exp.GroupConcat: joined,
        exp.Array: lambda node: w.array(*node.expressions),
        exp.Length: lambda node: w.length(node.this),
        exp.ArrayContains: lambda node: w.holds(node.this, node.expression),
        exp.Add: days_on,
        exp.Lambda: _no("list_filter() but in unnest()"),
        exp.Explode: _no("unnest() of a list that is not written out"),
        exp.Year: part("YEAR"),
        exp.Month: part("MONTH"),
        exp.DayOfMonth: part("DAY"),
        exp.Pow: lambda node: _call("POWER", node.this, node.expression),
        "epoch_us": lambda node: w.epoch_us(*node.expressions),
        "make_timestamptz": lambda node: w.instant(*node.expressions),
        "isfinite": lambda node: w.finite(*node.expressions),
        "hash": hashed,
        "hex15": lambda node: node,
        "bit_count": lambda node: w.bit_count(*node.expressions),
        "list_extract": lambda node: w.item(*node.expressions),
        "fsum": lambda node: exp.Sum(this=_double(node.expressions[0])),
    }


_PASSES: tuple[Pass, ...] = (
    _plain_tables,
    _lists_as_rows,
    _no_named_windows,
    _nearest_as_spans,
    _anti_as_not_exists,
    _groups_written_out,
)
_PLAIN: frozenset[type[exp.Expr]] = frozenset(
    {
        exp.Qualify,
        exp.DPipe,
        exp.LastValue,
        exp.FirstValue,
        exp.Floor,
        exp.Ceil,
        exp.Chr,
        exp.Like,
        exp.Extract,
        exp.Var,
    }
)


def _utc(kind: str) -> Many:
    return lambda of: exp.cast(of, kind)


def _or_zero(name: str) -> Many:
    """Is a text in another, by the place where it begins?"""
    return lambda of, it: exp.paren(exp.GT(this=_call(name, of, it), expression=_number(0)))


def _within(of: exp.Expr, q: exp.Expr) -> exp.Expr:
    order = exp.Order(expressions=[exp.Ordered(this=of, desc=False, nulls_first=False)])
    return exp.WithinGroup(this=exp.PercentileCont(this=_fraction(q)), expression=order)


def _fraction(of: exp.Expr) -> exp.Expr:
    return _number(of.this.name) if isinstance(of, exp.Cast) and isinstance(of.this, exp.Literal) else of


def _plain_mod(of: exp.Expr, by: exp.Expr) -> exp.Expr:
    return exp.Mod(this=of, expression=by)


def _truncating(of: exp.Expr, by: exp.Expr) -> exp.Expr:
    """Of whole numbers, where ``/`` leaves the fraction out."""
    return exp.paren(exp.Div(this=of, expression=by, typed=True, safe=False))


def _below_infinity(of: exp.Expr) -> exp.Expr:
    """Where NaN is above all numbers."""
    return exp.paren(exp.LT(this=exp.Abs(this=of), expression=exp.cast(_text("Infinity"), "DOUBLE")))


def _ordered(keys: list[exp.Expr]) -> list[exp.Expr]:
    return [exp.Ordered(this=k.copy(), desc=False, nulls_first=False) for k in keys]


# ---------------------------------------------------------------- BigQuery


def _bigquery_pair(value: exp.Expr, keys: list[exp.Expr], where: exp.Expr | None) -> exp.Expr:
    one = exp.Struct(expressions=[exp.PropertyEQ(this=exp.to_identifier("it"), expression=value.copy())])
    of: exp.Expr = one if where is None else _when(where, one)
    if where is not None:
        keys = [_when(where, k.copy()) for k in keys]
    # the struct that a NULL value is wrapped in keeps its row, IGNORE NULLS drops those that the condition does not meet
    listed = exp.Limit(this=exp.Order(this=exp.IgnoreNulls(this=of), expressions=_ordered(keys)), expression=_number(1))
    first = exp.Bracket(this=exp.ArrayAgg(this=listed), expressions=[_number(0)], offset=0, safe=True)
    return exp.Dot(this=first, expression=exp.to_identifier("it"))


_BIGQUERY = _Words(
    epoch_us=lambda of: _call("UNIX_MICROS", exp.cast(of, "TIMESTAMPTZ")),
    from_us=lambda us: _call("DATETIME", _call("TIMESTAMP_MICROS", us)),
    instant=_named("TIMESTAMP_MICROS"),
    in_zone=lambda of, zone: _call("TIMESTAMP", exp.cast(of, "TIMESTAMP"), zone),
    hex15=lambda of: exp.cast(
        _call("CONCAT", _text("0x"), _call("SUBSTR", _call("TO_HEX", _call("MD5", of)), _number(1), _number(15))),
        "BIGINT",
    ),
    finite=lambda of: exp.Not(this=exp.paren(exp.or_(_call("IS_INF", of), _call("IS_NAN", of.copy())))),
    int_div=_named("DIV"),
    mod=_named("MOD"),
    matches=_named("REGEXP_CONTAINS"),
    contains=_or_zero("STRPOS"),
    ends_with=_named("ENDS_WITH"),
    joined=lambda of, by, *order: exp.GroupConcat(
        this=exp.Order(this=of, expressions=list(order)) if order else of, separator=by
    ),
    array=lambda *items: exp.Array(expressions=list(items)),
    item=lambda of, at: exp.Bracket(this=of, expressions=[_call("SAFE_ORDINAL", at)]),
    length=_no("length() of what may be a list"),
    holds=lambda of, it: exp.In(this=it, unnest=exp.Unnest(expressions=[of])),
    pair=_bigquery_pair,
    quantile=_no("quantile_cont() as an aggregate"),
    any_true=_named("LOGICAL_OR"),
    trim=_named("TRIM"),
    whole="BIGDECIMAL",
    skips_null=False,
    lead_skips=False,
    nulls_first=True,
    parameter=lambda name: exp.Parameter(this=exp.var(name)),
)

# ---------------------------------------------------------------- Snowflake


def _snowflake_div(of: exp.Expr, by: exp.Expr) -> exp.Expr:
    """``/`` rounds at six digits: what is divided is a multiple."""
    whole = exp.paren(exp.Sub(this=exp.paren(of), expression=_call("MOD", of.copy(), by)))
    return exp.cast(exp.paren(exp.Div(this=whole, expression=by.copy(), typed=True, safe=False)), "BIGINT")


_SNOWFLAKE = _Words(
    epoch_us=lambda of: _call("DATE_PART", exp.var("EPOCH_MICROSECOND"), of),
    from_us=lambda us: _call("TO_TIMESTAMP_NTZ", us, _number(6)),
    instant=lambda us: _call("TO_TIMESTAMP_TZ", us, _number(6)),
    in_zone=lambda of, zone: _call("CONVERT_TIMEZONE", zone, _text("UTC"), exp.cast(of, "TIMESTAMP")),
    hex15=lambda of: exp.cast(
        _call("TO_NUMBER", _call("SUBSTR", _call("MD5", of), _number(1), _number(15)), _text("X" * 15)), "BIGINT"
    ),
    finite=lambda of: exp.paren(exp.LT(this=exp.Abs(this=of), expression=exp.cast(_text("inf"), "DOUBLE"))),
    int_div=_snowflake_div,
    mod=_named("MOD"),
    matches=_or_zero("REGEXP_INSTR"),
    contains=_named("CONTAINS"),
    ends_with=_named("ENDSWITH"),
    joined=lambda of, by, *order: exp.WithinGroup(
        this=_call("LISTAGG", of, by), expression=exp.Order(expressions=list(order))
    ),
    array=_no("a list (its items lose their type)"),
    item=_no("a list (its items lose their type)"),
    length=_no("length() of what may be a list"),
    holds=_no("list_contains() (a list's items lose their type)"),
    pair=None,
    quantile=_within,
    bit_or=_named("BITOR_AGG"),
    bit_count=_no("bit_count()"),
    any_true=_named("BOOLOR_AGG"),
    shift_left=_named("BITSHIFTLEFT"),
    shift_right=_named("BITSHIFTRIGHT"),
    bit_and=_named("BITAND"),
    trim=_named("TRIM"),
    try_text_first=True,
    skips_null=False,
)

# ---------------------------------------------------------------- Databricks


def _databricks_pair(value: exp.Expr, keys: list[exp.Expr], where: exp.Expr | None) -> exp.Expr:
    parts: list[exp.Expr] = []
    for i, key in enumerate(keys):  # NULL would come first
        parts += [_text(f"n{i}"), exp.paren(_null(key)), _text(f"k{i}"), key.copy()]
    at = next(i for i, k in enumerate(keys) if k == value)
    least: exp.Expr = exp.Min(this=_call("NAMED_STRUCT", *parts))
    if where is not None:
        least = exp.Filter(this=least, expression=exp.Where(this=where.copy()))
    return exp.Dot(this=exp.paren(least), expression=exp.to_identifier(f"k{at}"))


_DATABRICKS = _Words(
    epoch_us=lambda of: _call("UNIX_MICROS", exp.cast(of, "TIMESTAMPTZ")),
    from_us=lambda us: exp.cast(_call("TIMESTAMP_MICROS", us), "TIMESTAMPNTZ"),
    instant=_named("TIMESTAMP_MICROS"),
    in_zone=lambda of, zone: _call("TO_UTC_TIMESTAMP", of, zone),
    hex15=lambda of: exp.cast(
        _call("CONV", _call("SUBSTR", _call("MD5", of), _number(1), _number(15)), _number(16), _number(10)), "BIGINT"
    ),
    finite=_below_infinity,
    int_div=lambda of, by: exp.cast(_call("DIV", of, by), "BIGINT"),
    mod=_plain_mod,
    matches=lambda of, it: exp.RegexpLike(this=of, expression=it),
    contains=_named("CONTAINS"),
    ends_with=_named("ENDSWITH"),
    joined=lambda of, by, *order: exp.WithinGroup(
        this=_call("LISTAGG", of, by), expression=exp.Order(expressions=list(order))
    ),
    array=_named("ARRAY"),
    item=lambda of, at: _call("TRY_ELEMENT_AT", of, at),
    length=_no("length() of what may be a list"),
    holds=_named("ARRAY_CONTAINS"),
    pair=_databricks_pair,
    quantile=_within,
    shift_left=_named("SHIFTLEFT"),
    shift_right=_named("SHIFTRIGHT"),
    filters=True,
    add_days=_named("DATE_ADD"),
)

# ---------------------------------------------------------------- Trino


def _trino_pair(value: exp.Expr, keys: list[exp.Expr], where: exp.Expr | None) -> exp.Expr:
    listed: exp.Expr = exp.ArrayAgg(this=exp.Order(this=value.copy(), expressions=_ordered(keys)))
    if where is not None:
        listed = exp.Filter(this=listed, expression=exp.Where(this=where.copy()))
    return _call("ELEMENT_AT", listed, _number(1))


_TRINO_INSTANT = "TIMESTAMPTZ(6)"
_TRINO = _Words(
    epoch_us=lambda of: exp.cast(
        _call("ROUND", exp.Mul(this=_call("TO_UNIXTIME", exp.cast(of, _TRINO_INSTANT)), expression=_number("1e6"))),
        "BIGINT",
    ),
    from_us=lambda us: exp.cast(
        _call("FROM_UNIXTIME_NANOS", exp.Mul(this=exp.paren(us), expression=_number(1000))), "TIMESTAMP(6)"
    ),
    instant=lambda us: exp.cast(
        _call("FROM_UNIXTIME_NANOS", exp.Mul(this=exp.paren(us), expression=_number(1000))), _TRINO_INSTANT
    ),
    in_zone=lambda of, zone: _call("WITH_TIMEZONE", exp.cast(of, "TIMESTAMP(6)"), zone),
    hex15=lambda of: _call(
        "FROM_BASE",
        _call("SUBSTR", _call("TO_HEX", _call("MD5", _call("TO_UTF8", of))), _number(1), _number(15)),
        _number(16),
    ),
    finite=_named("IS_FINITE"),
    int_div=_truncating,
    mod=_plain_mod,
    matches=_named("REGEXP_LIKE"),
    contains=_or_zero("STRPOS"),
    ends_with=lambda of, it: exp.paren(
        exp.EQ(this=_call("SUBSTR", of, exp.Neg(this=_call("LENGTH", it.copy()))), expression=it)
    ),
    joined=lambda of, by, *order: exp.WithinGroup(
        this=_call("LISTAGG", of, by), expression=exp.Order(expressions=list(order))
    ),
    array=lambda *items: exp.Array(expressions=list(items)),
    item=_named("ELEMENT_AT"),
    length=_no("length() of what may be a list"),
    holds=_named("CONTAINS"),
    pair=_trino_pair,
    quantile=_no("quantile_cont()"),
    bit_or=_named("BITWISE_OR_AGG"),
    bit_count=lambda of: _call("BIT_COUNT", of, _number(64)),
    shift_left=_named("BITWISE_LEFT_SHIFT"),
    shift_right=_named("BITWISE_RIGHT_SHIFT"),
    bit_and=_named("BITWISE_AND"),
    filters=True,
    skips_null=False,
    add_days=lambda day, n: _call("DATE_ADD", _text("day"), n, day),
    star_except=False,
)

# ---------------------------------------------------------------- Redshift


def _polarised(x: exp.Expr, y: exp.Expr) -> exp.Expr:
    """cov(x, y) = (var(x + y) - var(x - y)) / 4: no difference of large sums, as by products."""

    def spread(kind: type[exp.Binary]) -> exp.Expr:
        return _call("VAR_SAMP", kind(this=x.copy(), expression=y.copy()))

    half = exp.paren(exp.Sub(this=spread(exp.Add), expression=spread(exp.Sub)))
    return exp.Div(this=half, expression=_number("4.0"), typed=True, safe=False)


def _redshift_us(us: exp.Expr) -> exp.Expr:
    step = exp.Mul(this=exp.paren(us), expression=exp.Interval(this=_text("1 microsecond")))
    return exp.paren(exp.Add(this=exp.cast(_text("1970-01-01"), "TIMESTAMP"), expression=step))


_REDSHIFT = _Words(
    epoch_us=lambda of: _call(
        "DATEDIFF", exp.var("MICROSECOND"), exp.cast(_text("1970-01-01"), "TIMESTAMP"), exp.cast(of, "TIMESTAMP")
    ),
    from_us=_redshift_us,
    instant=lambda us: exp.AtTimeZone(this=_redshift_us(us), zone=_text("UTC")),
    in_zone=lambda of, zone: exp.AtTimeZone(this=exp.paren(exp.cast(of, "TIMESTAMP")), zone=zone),
    hex15=lambda of: _call("STRTOL", _call("SUBSTRING", _call("MD5", of), _number(1), _number(15)), _number(16)),
    finite=_below_infinity,
    int_div=_truncating,
    mod=_plain_mod,
    matches=_or_zero("REGEXP_INSTR"),
    contains=_or_zero("STRPOS"),
    ends_with=lambda of, it: exp.paren(exp.EQ(this=_call("RIGHT", of, _call("LEN", it.copy())), expression=it)),
    joined=lambda of, by, *order: exp.WithinGroup(
        this=_call("LISTAGG", of, by), expression=exp.Order(expressions=list(order))
    ),
    array=_no("a list"),
    item=_no("a list"),
    length=_no("length() of what may be a list"),
    holds=_no("list_contains()"),
    pair=None,
    quantile=_within,
    covariance=_polarised,
    max_by=_no("arg_max()"),
    min_by=_no("arg_min()"),
    bit_count=_no("bit_count()"),
    trim=_named("BTRIM"),
    null_safe=False,
    ranges=False,
    tuples=False,
)


_SIMPLE = re.compile(r"[a-z_][a-z0-9_]*\Z")
# of Snowflake's reserved words those that are names of ours or may be columns' names
_RESERVED = frozenset(
    [
        "account",
        "all",
        "alter",
        "and",
        "any",
        "as",
        "between",
        "by",
        "case",
        "cast",
        "check",
        "column",
        "connect",
        "connection",
        "constraint",
        "create",
        "cross",
        "current",
        "current_date",
        "current_time",
        "current_timestamp",
        "current_user",
        "database",
        "delete",
        "distinct",
        "drop",
        "else",
        "exists",
        "false",
        "following",
        "for",
        "from",
        "full",
        "grant",
        "group",
        "gscluster",
        "having",
        "ilike",
        "in",
        "increment",
        "inner",
        "insert",
        "intersect",
        "into",
        "is",
        "issue",
        "join",
        "lateral",
        "left",
        "like",
        "localtime",
        "localtimestamp",
        "minus",
        "natural",
        "not",
        "null",
        "of",
        "on",
        "or",
        "order",
        "organization",
        "qualify",
        "regexp",
        "revoke",
        "right",
        "rlike",
        "row",
        "rows",
        "sample",
        "schema",
        "select",
        "set",
        "some",
        "start",
        "table",
        "tablesample",
        "then",
        "to",
        "trigger",
        "true",
        "try_cast",
        "union",
        "unique",
        "update",
        "using",
        "values",
        "view",
        "when",
        "whenever",
        "where",
        "with",
    ]
)


def _names_as_stored(tree: exp.Query) -> exp.Query:
    """Snowflake stores plain names in capitals: a name is quoted nowhere, or everywhere."""
    for name in tree.find_all(exp.Identifier):
        name.set("quoted", not (_SIMPLE.match(name.name) and name.name not in _RESERVED))
    return tree


def _dialect(name: str, words: _Words) -> Dialect:
    finish = (_names_as_stored,) if name == "snowflake" else ()
    return Dialect(name, name, macros=_macros(words), passes=_PASSES, plain=_PLAIN, finish=finish)


RENDERED: Mapping[str, Dialect] = {
    name: _dialect(name, words)
    for name, words in (
        ("bigquery", _BIGQUERY),
        ("snowflake", _SNOWFLAKE),
        ("databricks", _DATABRICKS),
        ("trino", _TRINO),
        ("redshift", _REDSHIFT),
    )
}
"""Written and parsed back, never executed."""
EXECUTED = ("duckdb", "postgres", "clickhouse", "spark")
"""The dialects of engines, each in its file."""


# ---------------------------------------------------------------- what is shown


@dataclass(frozen=True, slots=True)
class Written:
    """A statement as it would be written elsewhere; ``refused`` is why it cannot be."""

    step: str
    text: str | None
    refused: str | None = None


def dialect_of(name: str) -> Dialect:
    """Of an engine, or one that is only written. Raises UsageError, which lists those known."""
    if name in RENDERED:
        return RENDERED[name]
    if name not in EXECUTED:
        known = ", ".join((*EXECUTED, *RENDERED))
        raise UsageError(
            f"'{name}' is no dialect that statements are written in{did_you_mean(name, (*EXECUTED, *RENDERED))}; known: {known}"
        )
    if name == "duckdb":
        return Dialect("duckdb", "duckdb", native=True)
    found: Dialect = importlib.import_module(f"payoff.warehouse.engines.{name}").DIALECT
    return found


def written(name: str, statements: Iterable[tuple[str, str]]) -> list[Written]:
    """Statements (step, text) of ours in the dialect ``name``, those with a table that they keep as its making.

    A table that is made again is dropped before. Raises UsageError for a dialect that is not known.
    """
    dialect, made, out = dialect_of(name), set[str](), list[Written]()
    for step, text in statements:
        query, table = parsed_query(text)
        if not dialect.native:
            _files_as_tables(query.tree)
        try:
            tree = dialect.translate(query.tree, step)
            if table is None:
                it = tree.sql(dialect=dialect.writer, pretty=True, unsupported_level=_level(dialect))
            else:
                create = exp.Create(this=exp.to_table(table), kind="TABLE", expression=tree)
                if name != "trino":  # which has no temporary tables
                    create.set("properties", exp.Properties(expressions=[exp.TemporaryProperty()]))
                it = create.sql(dialect=dialect.writer, pretty=True, unsupported_level=_level(dialect))
                if table in made:
                    kind = "VIEW" if "TEMPORARY VIEW" in it[:40] else "TABLE"
                    it = f"DROP {kind} IF EXISTS {exp.to_table(table).sql(dialect=dialect.writer)};\n{it}"
                made.add(table)
            out.append(Written(step, it))
        except CannotRun as error:
            out.append(Written(step, None, f"{name} has no equal form of {error.construct}"))
        except SqlglotError as error:
            out.append(Written(step, None, f"{name} has no equal form of it: {str(error).splitlines()[0]}"))
    return out


def _files_as_tables(tree: exp.Query) -> None:
    """A file is a table of the file's name there: it is loaded before."""
    for table in tree.find_all(exp.Table):
        call = table.this
        name = call.name if isinstance(call, exp.Anonymous) else type(call).__name__
        if name.lower().replace("_", "") in ("readparquet", "readcsv", "readjson"):
            path = next((p.name for p in call.find_all(exp.Literal) if p.is_string), "")
            table.set("this", exp.to_identifier(PurePath(path).name.split(".")[0], quoted=True))


def _level(dialect: Dialect) -> ErrorLevel:
    return ErrorLevel.IGNORE if dialect.native else ErrorLevel.RAISE

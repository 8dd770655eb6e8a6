"""Dialects that statements are written in and that nothing here executes: BigQuery, Snowflake, Databricks, Trino and Redshift.

Databricks has Spark's table, which is executed on Spark. The forms of the others were compared with the public references of the
vendors, and no server has seen them; a comment says what the reference has where it is surprising. What has no equal form is refused
by its name, as with engines. Types are not asked for: what means another thing by the type of its argument is written where the
statement shows the type, and refused else (``docs/engines.md`` says what is left). Times are told in UTC, so the session's zone has
to be UTC.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePath

from sqlglot import exp
from sqlglot.errors import ErrorLevel, SqlglotError

from payoff.errors import UsageError, did_you_mean
from payoff.warehouse.dialect import CannotRun, Dialect, Macro, NoForm, Pass
from payoff.warehouse.engines import spark
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
    any_value: Many = field(default=lambda of: exp.Min(this=of))
    """Some value that is not NULL."""
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
    try_cast: Many = field(default=lambda of, to: exp.TryCast(this=of, to=to))
    whole: str = "DECIMAL(38, 0)"
    times: Mapping[exp.DType, str] = field(default_factory=dict)
    """Types of times that have to be told by more than their name."""
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
    """Does NULL come first in windows and aggregates, where nothing can be said of it?"""
    numbered_in_order: bool = False
    """Has row_number() to be in some order?"""
    parameter: Callable[[str], exp.Expr] | None = None


# ---------------------------------------------------------------- what depends on types

_TRUTHS = (exp.Predicate, exp.Connector, exp.Not, exp.Boolean, exp.RegexpLike, exp.Contains, exp.LogicalOr)
_WHOLES = (exp.Count, exp.CountIf, exp.RowNumber, exp.IntDiv, exp.BitwiseAnd, exp.BitwiseOrAgg, exp.Length, exp.Extract)
_FRACTIONS = (
    exp.Div,
    exp.Avg,
    exp.Variance,
    exp.CovarSamp,
    exp.PercentileCont,
    exp.Pow,
    exp.Floor,
    exp.Ceil,
    exp.Round,
)
_TEXTS = (exp.DPipe, exp.Lower, exp.Upper, exp.Substring, exp.Trim, exp.GroupConcat, exp.Chr, exp.MD5)
_AS_ARGUMENT = (exp.Neg, exp.Abs, exp.Sum, exp.Min, exp.Max, exp.AnyValue, exp.Nullif, exp.Lag, exp.Lead, exp.Filter)
_WHOLE_TYPES = frozenset({*exp.DataType.INTEGER_TYPES, exp.DType.INT128, exp.DType.UINT128})
_FRACTION_TYPES = frozenset({exp.DType.FLOAT, exp.DType.DOUBLE, exp.DType.DECIMAL})


def _kind(of: exp.Expr) -> str | None:
    """What an expression is by what the statement shows: a whole number, fraction, truth, text, null or other; None: it does not show."""
    of = of.unnest()
    if isinstance(of, exp.Literal):
        return "text" if of.is_string else "whole" if of.is_int else "fraction"
    if isinstance(of, exp.Null):
        return "null"
    if isinstance(of, exp.Cast):
        to = of.to.this
        if to in _WHOLE_TYPES:
            return "whole"
        if to in _FRACTION_TYPES:
            return "fraction"
        return "truth" if to == exp.DType.BOOLEAN else "text" if to in exp.DataType.TEXT_TYPES else "other"
    if isinstance(of, exp.Anonymous):
        return {"epoch_us": "whole", "hash": "whole", "bit_count": "whole", "fsum": "fraction"}.get(of.name.lower())
    for name, classes in (("truth", _TRUTHS), ("whole", _WHOLES), ("fraction", _FRACTIONS), ("text", _TEXTS)):
        if isinstance(of, classes):
            return name
    if isinstance(of, exp.Window | exp.IgnoreNulls | exp.Distinct | exp.Order):
        return None if of.this is None else _kind(of.this)
    if isinstance(of, _AS_ARGUMENT):
        return _kind(of.this)
    if isinstance(of, exp.Case):
        parts = [i.args["true"] for i in of.args["ifs"]] + [p for p in (of.args.get("default"),) if p is not None]
    elif isinstance(of, exp.Add | exp.Sub | exp.Mul | exp.Mod):
        parts = [of.this, of.expression]
    elif isinstance(of, exp.Coalesce | exp.Greatest | exp.Least):
        parts = [of.this, *of.expressions]
    else:
        return None
    kinds = {_kind(p) for p in parts} - {"null"}
    return "fraction" if "fraction" in kinds else kinds.pop() if len(kinds) == 1 else None


def _cut(of: exp.Expr) -> exp.Expr | None:
    """``u`` of ``CASE WHEN u = floor(u) THEN u END``: a number without a fraction, of whichever type."""
    of = of.unnest()
    if isinstance(of, exp.Case) and len(of.args["ifs"]) == 1 and of.args.get("default") is None:
        test, value = of.args["ifs"][0].this, of.args["ifs"][0].args["true"]
        if isinstance(test, exp.EQ) and isinstance(test.expression, exp.Floor) and test.this == value:
            found: exp.Expr = value
            return found
    return None


def _whole(of: exp.Expr) -> bool:
    bare = of.unnest()
    if isinstance(bare, exp.Floor | exp.Ceil):
        return True
    return _cut(bare) is not None or _kind(bare) not in (None, "fraction")


def _over_stored(node: exp.Expr) -> bool:
    """Does an expression read stored columns, whose types are not known here?"""
    select = node.find_ancestor(exp.Select)
    return select is not None and any(_stored(s) for s in _sources(select))


def _sources(select: exp.Select) -> list[exp.Expr]:
    first = select.args.get("from_")
    return [*([first.this] if first is not None else []), *(j.this for j in select.args.get("joins") or [])]


def _stored(source: exp.Expr) -> bool:
    if isinstance(source, exp.Table):  # of tables that a run makes these hold a source's own columns
        own = not source.db and isinstance(source.this, exp.Identifier | exp.GenerateSeries)
        return not own or source.name.startswith(("loaded_", "sessions_"))
    inner = source.this if isinstance(source, exp.Subquery) else None
    if not isinstance(inner, exp.Select) or not any(e.is_star for e in inner.expressions):
        return False
    return any(_stored(s) for s in _sources(inner))


def _shown_types(tree: exp.Query) -> exp.Query:
    """Refuses what means another thing by a type that is not shown; makes numbers of truths that are reckoned with."""
    for node in list(tree.find_all(exp.Cast, exp.IntDiv, exp.AtTimeZone, exp.Sum, exp.Avg, exp.Like)):
        if isinstance(node, exp.Cast):
            to, kind = node.to.this, _kind(node.this)
            if to in _WHOLE_TYPES and not _whole(node.this) and (kind is not None or _over_stored(node)):
                raise NoForm("a cast of what may be a fraction to a whole number (they round it differently)")
            if to in exp.DataType.TEXT_TYPES and kind in ("fraction", "truth", "other"):
                raise NoForm(
                    f"a cast of a {'number with a fraction' if kind == 'fraction' else 'truth or time'} to text"
                )
            if to in _FRACTION_TYPES and kind == "truth":  # BigQuery and Redshift cast truths to whole numbers alone
                node.set("this", exp.cast(node.this.copy(), "INT"))
        elif isinstance(node, exp.IntDiv):
            for part in (node.this, node.expression):
                kind = _kind(part)  # of fractions it is a plain division, of floor() too
                if kind not in ("whole", "null") and (kind is not None or _over_stored(node)):
                    raise NoForm("// of what may be a fraction")
        elif isinstance(node, exp.AtTimeZone):
            of = node.this.unnest()
            if not isinstance(of, exp.Cast) or of.to.this not in _ZONED:
                raise NoForm("AT TIME ZONE of a time whose type no cast shows")
        elif isinstance(node, exp.Like):
            pattern = node.expression
            if not (isinstance(pattern, exp.Literal) and "\\" not in pattern.name):
                raise NoForm("LIKE by a pattern with a backslash, or that is not written out")  # some escape by it
        elif _kind(node.this) == "truth":
            node.set("this", exp.cast(node.this.copy(), "INT"))
    return tree


_ZONED = frozenset({exp.DType.TIMESTAMP, exp.DType.TIMESTAMPNTZ, exp.DType.TIMESTAMPTZ})
_PATTERN = re.compile(r"[\w ^$|()\[\]{}.*+?/:@,=&%!'\"<>#~-]*\Z")


def _like_patterns(tree: exp.Query) -> exp.Query:
    """Regular expressions in what RE2, Java's and POSIX's have in common."""
    for node in tree.find_all(exp.RegexpLike):
        pattern = node.expression
        if not (isinstance(pattern, exp.Literal) and _PATTERN.match(pattern.name) and "(?" not in pattern.name):
            raise NoForm("a regular expression beyond letters, digits and ^ $ | ( ) [ ] { } . * + ?")
    return tree


# ---------------------------------------------------------------- whole statements


def _selects(tree: exp.Query) -> list[exp.Select]:
    return list(tree.find_all(exp.Select))


def _numbers_as_rows(tree: exp.Query) -> exp.Query:
    for table in list(tree.find_all(exp.Table)):
        if isinstance(table.this, exp.GenerateSeries):
            table.replace(_numbers(table))
        elif not isinstance(table.this, exp.Identifier):
            raise NoForm(
                f"{table.this.sql_name().lower() if isinstance(table.this, exp.Func) else table.this.name.lower()}()"
            )
    return tree


def _plain_tables(tree: exp.Query) -> exp.Query:
    """Tables by their names: the catalogue of a DuckDB session is nowhere else."""
    for table in list(tree.find_all(exp.Table)):
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
        return exp.cast(of, w.times[kind]) if kind in w.times else node

    def try_cast(node: exp.Expr) -> exp.Expr:
        assert isinstance(node, exp.TryCast)
        return w.try_cast(node.this, exp.DataType.build(w.whole) if node.to.this == exp.DType.INT128 else node.to)

    def filtered(node: exp.Expr) -> exp.Expr:
        of, condition = node.this, node.expression.this
        if w.filters or (isinstance(of, exp.Min | exp.Max) and isinstance(of.this, exp.Struct)):
            return node  # of a struct: a part of it is asked for
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
        if isinstance(node.this, exp.Min) or (isinstance(node.this, exp.Anonymous) and node.this.name == "ANY_VALUE"):
            return node.this  # what any_value became: it skips NULL itself
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
            order.set("expressions", _flagged(order.expressions))
        if w.numbered_in_order and order is None and isinstance(of, exp.RowNumber):
            node.set("order", exp.Order(expressions=[exp.Ordered(this=_number(1), desc=False, nulls_first=False)]))
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
        return exp.Coalesce(this=exp.EQ(this=node.this, expression=node.expression), expressions=[both])

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
        order = _flagged(order) if w.nulls_first else order
        return w.joined(of.this if isinstance(of, exp.Order) else of, node.args.get("separator") or _text(","), *order)

    def holds(node: exp.Expr) -> exp.Expr:  # NULL in a list is not looked at
        both = exp.and_(_known(node.this), _known(node.expression))
        found = exp.Coalesce(this=w.holds(node.this, node.expression), expressions=[exp.false()])
        return exp.paren(exp.Case().when(both, found))

    def in_zone(node: exp.Expr) -> exp.Expr:
        if node.this.unnest().to.this == exp.DType.TIMESTAMPTZ:
            raise NoForm("AT TIME ZONE of an instant")
        return w.in_zone(node.this, node.args["zone"])

    def extract(node: exp.Expr) -> exp.Expr:
        if node.name.upper() not in ("YEAR", "QUARTER", "MONTH", "DAY", "HOUR", "MINUTE"):
            raise NoForm(f"extract({node.name.lower()})")  # weeks, weekdays and seconds are counted differently
        return node

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
        if len(node.expressions) != 1:
            raise NoForm("hash() of several values")
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
        exp.AnyValue: lambda node: w.any_value(node.this),
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
        exp.AtTimeZone: in_zone,
        exp.RegexpLike: lambda node: w.matches(node.this, node.expression),
        exp.Contains: lambda node: w.contains(node.this, node.expression),
        exp.EndsWith: lambda node: w.ends_with(node.this, node.expression),
        exp.GroupConcat: joined,
        exp.Array: lambda node: w.array(*node.expressions),
        exp.Length: lambda node: w.length(node.this),
        exp.ArrayContains: holds,
        exp.Extract: extract,
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
    _shown_types,
    _numbers_as_rows,
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
        exp.Var,
    }
)


def _or_zero(name: str) -> Many:
    """Is a text in another, by the place where it begins?"""
    return lambda of, it: exp.paren(exp.GT(this=_call(name, of, it), expression=_number(0)))


def _within(of: exp.Expr, q: exp.Expr) -> exp.Expr:
    """Of whole numbers too it has to be a fraction: there it would be of their own type."""
    order = exp.Order(expressions=[exp.Ordered(this=_double(of), desc=False, nulls_first=False)])
    return exp.WithinGroup(this=exp.PercentileCont(this=_fraction(q)), expression=order)


def _fraction(of: exp.Expr) -> exp.Expr:
    return _number(of.this.name) if isinstance(of, exp.Cast) and isinstance(of.this, exp.Literal) else of


def _plain_mod(of: exp.Expr, by: exp.Expr) -> exp.Expr:
    return exp.Mod(this=of, expression=by)


def _multiple(of: exp.Expr, by: exp.Expr) -> exp.Expr:
    """Whole numbers divided where ``/`` keeps a fraction (Snowflake), or keeps one of sums, which are DECIMAL (Redshift)."""
    whole = exp.paren(exp.Sub(this=exp.paren(of), expression=_call("MOD", of.copy(), by)))
    return exp.cast(exp.paren(exp.Div(this=whole, expression=by.copy(), typed=True, safe=False)), "BIGINT")


def _below_infinity(of: exp.Expr) -> exp.Expr:
    """Where NaN is above all numbers."""
    return exp.paren(exp.LT(this=exp.Abs(this=of), expression=exp.cast(_text("Infinity"), "DOUBLE")))


def _ordered(keys: list[exp.Expr]) -> list[exp.Expr]:
    return [exp.Ordered(this=k.copy(), desc=False, nulls_first=False) for k in keys]


def _flagged(keys: list[exp.Expr]) -> list[exp.Expr]:
    """The same order where NULL is the least of values and NULLS LAST cannot be said: that a key is NULL is a key before it."""
    out: list[exp.Expr] = []
    for key in keys:
        if isinstance(key, exp.Ordered) and key.args.get("nulls_first") is False and not key.args.get("desc"):
            out.append(exp.Ordered(this=exp.paren(_null(key.this)), desc=False, nulls_first=True))
            out.append(exp.Ordered(this=key.this, desc=False, nulls_first=True))
        else:
            out.append(key)
    return out


def _in_zone(of: exp.Expr, zone: exp.Expr) -> exp.Expr:
    """A naive time in a zone as the same instant's in UTC, without a zone."""
    return _call("CONVERT_TIMEZONE", zone, _text("UTC"), of)


def _try_whole(otherwise: Many) -> Many:
    """A number without a fraction to a whole one: there TRY_CAST takes no numbers, or not all of them."""

    def tried(of: exp.Expr, to: exp.Expr) -> exp.Expr:
        number = _cut(of)
        if number is None or to.this != exp.DType.DECIMAL:
            return otherwise(of, to)
        small = exp.LT(this=exp.Abs(this=number.copy()), expression=exp.cast(_text("1e38"), "DOUBLE"))
        of.unnest().args["ifs"][0].set("this", exp.and_(of.unnest().args["ifs"][0].this.copy(), small))
        return exp.Cast(this=of, to=to)

    return tried


# ---------------------------------------------------------------- BigQuery


def _bigquery_pair(value: exp.Expr, keys: list[exp.Expr], where: exp.Expr | None) -> exp.Expr:
    one = exp.Struct(expressions=[exp.PropertyEQ(this=exp.to_identifier("it"), expression=value.copy())])
    of: exp.Expr = one if where is None else _when(where, one)
    if where is not None:
        keys = [_when(where, k.copy()) for k in keys]
    # the struct that a NULL value is wrapped in keeps its row, IGNORE NULLS drops those that the condition does not meet
    listed = exp.Limit(
        this=exp.Order(this=exp.IgnoreNulls(this=of), expressions=_flagged(_ordered(keys))), expression=_number(1)
    )
    first = exp.Bracket(this=exp.ArrayAgg(this=listed), expressions=[_number(0)], offset=0, safe=True)
    return exp.Dot(this=first, expression=exp.to_identifier("it"))


def _bigquery_array(*items: exp.Expr) -> exp.Expr:
    """An array that is written out or kept may hold no NULL. One of a single item is empty instead, in which nothing is found either."""
    listed = exp.Array(expressions=list(items))
    if len(items) != 1 or isinstance(items[0], exp.Literal):
        return listed
    return exp.paren(exp.Case(default=listed).when(_null(items[0]), exp.Array(expressions=[])))


_BIGQUERY = _Words(
    epoch_us=lambda of: _call("UNIX_MICROS", exp.cast(of, "TIMESTAMPTZ")),
    from_us=lambda us: _call("DATETIME", _call("TIMESTAMP_MICROS", us)),
    instant=_named("TIMESTAMP_MICROS"),
    in_zone=_named("TIMESTAMP"),
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
    array=_bigquery_array,
    item=lambda of, at: exp.Bracket(this=of, expressions=[_call("SAFE_ORDINAL", at)]),
    length=_no("length() of what may be a list"),
    holds=lambda of, it: exp.In(this=it, unnest=exp.Unnest(expressions=[of])),
    pair=_bigquery_pair,
    quantile=_no("quantile_cont() as an aggregate"),  # PERCENTILE_CONT is for windows alone
    any_value=_named("ANY_VALUE"),
    any_true=_named("LOGICAL_OR"),
    trim=_named("TRIM"),
    whole="BIGDECIMAL",
    skips_null=False,
    lead_skips=False,
    nulls_first=True,
    parameter=lambda name: exp.Parameter(this=exp.var(name)),
)

# ---------------------------------------------------------------- Snowflake


_SNOWFLAKE = _Words(
    epoch_us=lambda of: _call("DATE_PART", exp.var("EPOCH_MICROSECOND"), of),
    from_us=lambda us: _call("TO_TIMESTAMP_NTZ", us, _number(6)),
    instant=lambda us: _call("TO_TIMESTAMP_TZ", us, _number(6)),
    in_zone=_in_zone,
    hex15=lambda of: exp.cast(
        _call("TO_NUMBER", _call("SUBSTR", _call("MD5", of), _number(1), _number(15)), _text("X" * 15)), "BIGINT"
    ),
    finite=lambda of: exp.paren(exp.LT(this=exp.Abs(this=of), expression=exp.cast(_text("inf"), "DOUBLE"))),
    int_div=_multiple,
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
    try_cast=_try_whole(lambda of, to: exp.TryCast(this=exp.cast(of, "VARCHAR"), to=to)),  # it takes texts alone
    skips_null=False,
    numbered_in_order=True,
)

# ---------------------------------------------------------------- Trino


def _trino_pair(value: exp.Expr, keys: list[exp.Expr], where: exp.Expr | None) -> exp.Expr:
    listed: exp.Expr = exp.ArrayAgg(this=exp.Order(this=value.copy(), expressions=_ordered(keys)))
    if where is not None:
        listed = exp.Filter(this=listed, expression=exp.Where(this=where.copy()))
    return _call("ELEMENT_AT", listed, _number(1))


_TRINO_INSTANT = "TIMESTAMPTZ(6)"  # TIMESTAMP alone is of milliseconds
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
    in_zone=_named("WITH_TIMEZONE"),
    hex15=lambda of: _call(
        "FROM_BASE",
        _call("SUBSTR", _call("TO_HEX", _call("MD5", _call("TO_UTF8", of))), _number(1), _number(15)),
        _number(16),
    ),
    finite=_named("IS_FINITE"),
    int_div=lambda of, by: exp.paren(
        exp.Div(this=of, expression=by, typed=True, safe=False)
    ),  # of whole numbers it is whole
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
    quantile=_no("quantile_cont()"),  # it has approximate ones alone
    any_value=_named("ANY_VALUE"),
    times={
        exp.DType.TIMESTAMP: "TIMESTAMP(6)",
        exp.DType.TIMESTAMPNTZ: "TIMESTAMP(6)",
        exp.DType.TIMESTAMPTZ: _TRINO_INSTANT,
    },
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
    """DATEADD takes an INTEGER: days, seconds and microseconds are added one after another."""
    out: exp.Expr = exp.cast(_text("1970-01-01"), "TIMESTAMP")
    us = exp.cast(us, "BIGINT")
    for unit, size, within in (
        ("DAY", 86_400_000_000, 0),
        ("SECOND", 1_000_000, 86_400_000_000),
        ("MICROSECOND", 1, 1_000_000),
    ):
        rest = exp.Mod(this=us.copy(), expression=_number(within)) if within else us.copy()
        many = exp.cast(exp.Div(this=exp.paren(rest), expression=_number(size), typed=True, safe=False), "INT")
        out = _call("DATEADD", exp.var(unit), many, out)
    return out


def _one_order(tree: exp.Query) -> exp.Query:
    """In one SELECT all of PERCENTILE_CONT and LISTAGG have to be in the same order, by its reference."""
    for select in _selects(tree):
        orders = set[exp.Expr]()
        for node in select.find_all(exp.PercentileCont, exp.GroupConcat):
            if node.find_ancestor(exp.Select) is select:
                ordered = isinstance(node, exp.PercentileCont) or isinstance(node.this, exp.Order)
                orders |= {node.this} if ordered else set()
        if len(orders) > 1:
            raise NoForm("several quantile_cont() or string_agg() of different orders in one SELECT")
    return tree


def _redshift_try(of: exp.Expr, to: exp.Expr) -> exp.Expr:
    raise NoForm("TRY_CAST of what may be an empty text or a truth")  # its reference takes neither


_REDSHIFT = _Words(
    # DATEDIFF takes no TIMESTAMPTZ; cast, it is a time of the session's zone, which is UTC
    epoch_us=lambda of: _call(
        "DATEDIFF", exp.var("MICROSECOND"), exp.cast(_text("1970-01-01"), "TIMESTAMP"), exp.cast(of, "TIMESTAMP")
    ),
    from_us=_redshift_us,
    instant=lambda us: exp.AtTimeZone(this=_redshift_us(us), zone=_text("UTC")),
    in_zone=_in_zone,
    hex15=lambda of: _call("STRTOL", _call("SUBSTRING", _call("MD5", of), _number(1), _number(15)), _number(16)),
    finite=_below_infinity,
    int_div=_multiple,
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
    try_cast=_try_whole(_redshift_try),
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
    own: Mapping[str, tuple[Pass, ...]] = {"bigquery": (), "redshift": (_like_patterns, _one_order)}
    passes = (*_PASSES, *own.get(name, (_like_patterns,)))  # BigQuery's patterns are RE2's, as ours
    return Dialect(name, name, macros=_macros(words), passes=passes, plain=_PLAIN, finish=finish)


def _quoted_tables(tree: exp.Query) -> exp.Query:
    """A table called ``stream`` would be read as the keyword."""
    for table in tree.find_all(exp.Table):
        if isinstance(table.this, exp.Identifier):
            table.this.set("quoted", True)
    return tree


_DATABRICKS = replace(
    spark.DIALECT,
    name="databricks",
    writer="databricks",
    passes=(_shown_types, _like_patterns, _numbers_as_rows, _plain_tables, _no_named_windows, *spark.DIALECT.passes),
    finish=(*spark.DIALECT.finish, _quoted_tables),
)
RENDERED: Mapping[str, Dialect] = {
    "bigquery": _dialect("bigquery", _BIGQUERY),
    "snowflake": _dialect("snowflake", _SNOWFLAKE),
    "databricks": _DATABRICKS,
    "trino": _dialect("trino", _TRINO),
    "redshift": _dialect("redshift", _REDSHIFT),
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

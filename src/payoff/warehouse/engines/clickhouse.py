"""ClickHouse: a server by its HTTP interface (clickhouse-connect), or in this process over a folder (chdb). Both speak one dialect.

Sessions are read-only (``readonly = 2``): temporary tables of the session are all that is written, and they go with it. Settings
pin what ClickHouse does otherwise than SQL: a left join's missing side is NULL, so is an aggregate of nothing, and a column's name
goes before an alias.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from sqlglot import exp

from payoff.errors import ConnectionFailed, DataError, MissingExtra
from payoff.spec.nouns import ClickHouseConnection
from payoff.warehouse.dialect import Dialect, Macro, NoForm, Pass
from payoff.warehouse.engine import Engine, Progress
from payoff.warehouse.query import Query

T = TypeVar("T")

# ---------------------------------------------------------------- dialect: small tools


def _call(name: str, *arguments: exp.Expr | str | int) -> exp.Expr:
    return exp.Anonymous(this=name, expressions=[a if isinstance(a, exp.Expr) else exp.convert(a) for a in arguments])


def _renamed(name: str) -> Macro:
    """The same arguments in the same order under another name."""

    def macro(node: exp.Expr) -> exp.Expr:
        given = [node.args.get(key) for key in node.arg_types]
        flat = [a for one in given for a in (one if isinstance(one, list) else [one]) if isinstance(a, exp.Expr)]
        return _call(name, *flat)

    return macro


def _bare(node: exp.Expr) -> exp.Expr:
    while isinstance(node, exp.Paren):
        node = node.this
    return node


def _raw(text: str) -> exp.Expr:
    """ClickHouse's own words, of constants alone."""
    return exp.Var(this=text)


def _copy(node: exp.Expr) -> exp.Expr:
    return node.copy()


# ---------------------------------------------------------------- types

_T = exp.DataType.Type
_TYPES: Mapping[Any, str] = {
    _T.BOOLEAN: "Bool",
    _T.TINYINT: "Int8",
    _T.SMALLINT: "Int16",
    _T.INT: "Int32",
    _T.BIGINT: "Int64",
    _T.INT128: "Int128",
    _T.UTINYINT: "UInt8",
    _T.USMALLINT: "UInt16",
    _T.UINT: "UInt32",
    _T.UBIGINT: "UInt64",
    _T.UINT128: "UInt128",
    _T.FLOAT: "Float32",
    _T.DOUBLE: "Float64",
    _T.DATE: "Date32",
    **dict.fromkeys((_T.TIMESTAMP, _T.TIMESTAMPNTZ, _T.DATETIME), "DateTime64(6)"),
    _T.TIMESTAMPTZ: "DateTime64(6, 'UTC')",
    _T.UUID: "UUID",
    **dict.fromkeys((_T.TEXT, _T.VARCHAR, _T.CHAR, _T.JSON), "String"),
}
_NAMES = {
    "Bool": "BOOLEAN",
    "Int8": "TINYINT",
    "Int16": "SMALLINT",
    "Int32": "INTEGER",
    "Int64": "BIGINT",
    "Int128": "HUGEINT",
    "Int256": "HUGEINT",
    "UInt8": "UTINYINT",
    "UInt16": "USMALLINT",
    "UInt32": "UINTEGER",
    "UInt64": "UBIGINT",
    "UInt128": "UHUGEINT",
    "UInt256": "UHUGEINT",
    "BFloat16": "FLOAT",
    "Float32": "FLOAT",
    "Float64": "DOUBLE",
    "String": "VARCHAR",
    "FixedString": "VARCHAR",
    "Enum8": "VARCHAR",
    "Enum16": "VARCHAR",
    "IPv4": "VARCHAR",
    "IPv6": "VARCHAR",
    "Date": "DATE",
    "Date32": "DATE",
    "UUID": "UUID",
    "Nothing": "INTEGER",  # what a bare NULL is
}
_TO_TEXT = ("FixedString", "Enum8", "Enum16", "IPv4", "IPv6")
"""Types that are told as text, and made text before anything compares them."""


def _written(kind: exp.DataType) -> str:
    """A type of ours in ClickHouse's words, without NULL. Raises NoForm."""
    if kind.this in (_T.ARRAY, _T.LIST):
        return f"Array(Nullable({_written(kind.expressions[0])}))"
    if kind.this == _T.DECIMAL:
        p, s = ([int(e.name) for e in kind.expressions] + [18, 3])[:2] if kind.expressions else (18, 3)
        return f"Decimal({p}, {s})"
    if kind.this in (_T.NULL, _T.UNKNOWN):
        return "Nothing"
    name = _TYPES.get(kind.this)
    if name is None:
        raise NoForm(f"the type {kind.sql('duckdb')}")
    return name


def told_type(kind: str) -> str:
    """A type of ClickHouse's by DuckDB's name; a time without a zone is one, and an instant has one."""
    while found := re.fullmatch(r"(?:Nullable|LowCardinality)\((.*)\)", kind):
        kind = found[1]
    name, _, inside = kind.partition("(")
    if name == "Decimal":
        return f"DECIMAL({inside[:-1].replace(' ', '')})"
    if name == "DateTime":
        return "TIMESTAMP WITH TIME ZONE" if inside else "TIMESTAMP"
    if name == "DateTime64":
        return "TIMESTAMP WITH TIME ZONE" if "'" in inside else "TIMESTAMP"
    if name == "Array":
        return f"{told_type(inside[:-1])}[]"
    return _NAMES.get(name, "JSON")


_WHOLE = (*("TINYINT", "SMALLINT", "INT", "BIGINT", "INT128", "UTINYINT", "USMALLINT", "UINT", "UBIGINT", "UINT128"),)
_IS_WHOLE = frozenset(_T[name] for name in _WHOLE)
_TEXTS = (exp.Trim, exp.Lower, exp.Upper, exp.DPipe, exp.Concat, exp.Substring, exp.Replace, exp.SplitPart)
_COUNTS = {"bitCount", "intDiv", "toInt64", "toUnixTimestamp64Micro", "bitAnd", "bitOr", "reinterpretAsUInt64"}


def _is_text(node: exp.Expr) -> bool:
    node = _bare(node)
    if isinstance(node, exp.Literal):
        return bool(node.is_string)
    if isinstance(node, exp.Anonymous):
        return node.name in ("trimBoth", "lowerUTF8", "upperUTF8", "concat", "char", "substringUTF8", "replaceAll")
    return isinstance(node, _TEXTS) or (isinstance(node, exp.Cast) and "String" in node.to.sql("clickhouse"))


def _is_whole(node: exp.Expr) -> bool:
    """Is the (translated) value a whole number by its form?"""
    node = _bare(node)
    if isinstance(node, exp.Literal):
        return not node.is_string and node.name.isdigit()
    if isinstance(node, exp.Window | exp.Filter | exp.Neg):
        return _is_whole(node.this)
    if isinstance(node, exp.Add | exp.Sub | exp.Mul | exp.Mod):
        return _is_whole(node.left) and _is_whole(node.right)
    if isinstance(node, exp.RowNumber | exp.Count | exp.CountIf):
        return True
    return isinstance(node, exp.Anonymous) and node.name in _COUNTS


def _as(node: exp.Expr, kind: str, null: bool = True) -> exp.Expr:
    return exp.Cast(this=node, to=_built(f"Nullable({kind})" if null and not kind.startswith("Array") else kind).copy())


@lru_cache(maxsize=256)
def _built(kind: str) -> exp.DataType:
    return exp.DataType.build(kind, dialect="clickhouse")


def _as_text(node: exp.Expr) -> exp.Expr:
    """As DuckDB writes it: a double has its point, a time no trailing zeros, an instant its offset."""
    plain = _as(node, "String")
    if _is_text(node) or _is_whole(node) or isinstance(_bare(node), exp.Null):
        return plain
    if isinstance(_bare(node), exp.Anonymous) and _bare(node).name in ("accurateCast", "accurateCastOrNull"):
        return plain
    kind = _call("toTypeName", _copy(node))
    short = _call("replaceRegexpOne", _copy(plain), r"([.]\d*?)0+$", r"\1")
    short = _call("replaceRegexpOne", short, "[.]$", "")
    offset = exp.Case(
        ifs=[exp.If(this=_call("match", _copy(kind), "'"), true=exp.convert("+00"))], default=exp.convert("")
    )
    return exp.Case(
        ifs=[
            exp.If(
                this=_call("match", kind, "^(Nullable[(])?B?Float"),
                true=_call("replaceRegexpOne", _copy(plain), r"^(-?\d+)$", r"\1.0"),
            ),
            exp.If(this=_call("match", _copy(kind), "^(Nullable[(])?DateTime"), true=_call("concat", short, offset)),
        ],
        default=plain,
    )


def _rounded(value: exp.Expr) -> exp.Expr:
    """A fraction is rounded to the nearest, where ClickHouse would cut it off: halves to even, those of decimals away from 0."""
    if _is_whole(value):
        return value
    decimal = _call("match", _call("toTypeName", _copy(value)), "Decimal")
    return exp.Case(ifs=[exp.If(this=decimal, true=_call("round", _copy(value)))], default=_call("roundBankers", value))


def _may_be_text(node: exp.Expr) -> bool:
    node = _bare(node)
    if isinstance(node, exp.Literal):
        return node.is_string and not re.fullmatch(r"[-+]?\d[\d.]*(e[-+]?\d+)?|\d{4}-\d\d-\d\d([ T].*)?", node.name)
    if isinstance(node, exp.Case):
        told = [branch.args["true"] for branch in node.args["ifs"]]
        return any(_may_be_text(e) for e in (*told, node.args.get("default") or exp.null()))
    if isinstance(node, exp.Coalesce | exp.Nullif):
        return any(_may_be_text(e) for e in (node.this, *node.expressions))
    if isinstance(node, exp.Filter | exp.Window | exp.Min | exp.Max):
        return _may_be_text(node.this)
    return isinstance(node, exp.Column | exp.Subquery) or _is_text(node)


def _checked(value: exp.Expr, cast: exp.Expr, kind: str, always: bool = False) -> exp.Expr:
    """Text that is no such value (and ``always`` a number that it cannot hold) is an error: ClickHouse makes it NULL."""
    if not (always or _may_be_text(value)):
        return cast
    lost = exp.And(this=_call("isNull", cast), expression=_call("isNotNull", _copy(value)))
    says = f"a value cannot be read as {kind}"
    return exp.Case(ifs=[exp.If(this=_call("throwIf", lost, says), true=exp.null())], default=_copy(cast))


def _cast(node: exp.Expr) -> exp.Expr:
    assert isinstance(node, exp.Cast)
    value, kind = node.this, node.to
    attempt = isinstance(node, exp.TryCast)
    name = _written(kind)
    if name == "String":
        return _as_text(value)
    if isinstance(_bare(value), exp.Null):
        return _as(value, name)
    if kind.this in _IS_WHOLE:
        hexadecimal = _bare(value)
        if isinstance(hexadecimal, exp.Anonymous) and hexadecimal.name == "concat":
            head = hexadecimal.expressions[0]
            if isinstance(head, exp.Literal) and head.name == "0x":  # fewer than 16 digits, as a whole number
                digits = _call("concat", _call("leftPad", hexadecimal.expressions[1], 16, "0"))
                return _call("toInt64", _call("reinterpretAsUInt64", _call("reverse", _call("unhex", digits))))
        if isinstance(_bare(value), exp.Literal) and value.is_string:
            return _as(value, name)
        if _is_whole(value) and not attempt:
            return _as(value, name)
        found = _call("accurateCastOrNull", _rounded(value), name)
        return found if attempt else _checked(value, found, kind.sql("duckdb"), always=True)
    if attempt:
        return _call("accurateCastOrNull", value, name)
    if kind.this == _T.DECIMAL:
        scale = name.split(",")[1].strip(" )")
        return _as(_call("round", value, int(scale)), name)
    if name == "Bool" or name.startswith("Array"):
        return _as(value, name)
    return _checked(value, _as(value, name), kind.sql("duckdb"))


# ---------------------------------------------------------------- values


def _literal(node: exp.Expr) -> exp.Expr:
    assert isinstance(node, exp.Literal)
    if node.is_string or not node.name.isdigit() or int(node.name) < 1 << 31:
        return node
    if isinstance(node.parent, exp.DataTypeParam):
        return node
    return _call("toInt64", node)  # which ClickHouse would take for an unsigned number, and those do not mix


def _signed(node: exp.Expr) -> exp.Expr:
    return _call("toInt64", node) if isinstance(_bare(node), exp.Literal) else node


def _int_div(node: exp.Expr) -> exp.Expr:
    return _call("intDiv", _signed(node.this), _signed(node.args["expression"]))


def _mod(node: exp.Expr) -> exp.Expr:
    return exp.Mod(this=_signed(node.this), expression=_signed(node.expression))


def _div(node: exp.Expr) -> exp.Expr:
    # of doubles always: a quotient of decimals is cut at their digits here
    return exp.Div(this=exp.paren(_call("toFloat64", node.this)), expression=_call("toFloat64", node.expression))


def _operator(name: str) -> Macro:
    return lambda node: _call(name, node.this, node.expression)


def _is_in(node: exp.Expr) -> exp.Expr:
    """A list with NULL makes what is not found unknown, as in SQL: ClickHouse would leave the NULL out."""
    listed = node.expressions
    if not listed:
        return node
    known = [e for e in listed if not isinstance(_bare(e), exp.Null)]
    if all(isinstance(_bare(e), exp.Literal | exp.Boolean | exp.Neg | exp.Cast) for e in known) and len(known) == len(
        listed
    ):
        return node
    equal = [exp.EQ(this=_copy(node.this), expression=e) for e in known]
    return exp.paren(exp.or_(*equal, *([exp.null()] if len(known) < len(listed) else [])))


def _like(node: exp.Expr) -> exp.Expr:
    pattern = _bare(node.expression)
    if not isinstance(pattern, exp.Literal):
        raise NoForm("LIKE with a pattern that is not written out")
    return type(node)(this=node.this, expression=exp.Literal.string(pattern.name.replace("\\", "\\\\")))


def _struct(node: exp.Expr) -> exp.Expr:
    return _call("tuple", *(e.expression for e in node.expressions))


def _fields(query: exp.Query) -> exp.Query:
    """A field of a struct by its place: names are lost where a tuple is built."""
    places: dict[str, set[int]] = {}
    for struct in query.find_all(exp.Struct):
        for at, field in enumerate(struct.expressions, 1):
            places.setdefault(field.name, set()).add(at)
    for node in list(query.find_all(exp.StructExtract)):
        name = node.expression.name
        inner = next((s for s in [node.this.find(exp.Struct)] if s is not None), None)
        if inner is not None:
            at = [f.name for f in inner.expressions].index(name) + 1
        elif len(places.get(name, ())) == 1:
            (at,) = places[name]
        else:
            continue  # a named tuple, by its name
        node.set("expression", exp.Literal.number(at))
    return query


def _nullable_fields(node: exp.Expr) -> exp.Expr:
    return _call("tupleElement", node.this, node.expression)


# ---------------------------------------------------------------- text


def _trim(node: exp.Expr) -> exp.Expr:
    if node.args.get("position") or node.args.get("collation"):
        raise NoForm("trim() of one side")
    characters = node.args.get("expression")
    if characters is not None and not (isinstance(characters, exp.Literal) and characters.name.isascii()):
        raise NoForm("trim() of characters that are not written out in ASCII")
    return _call("trimBoth", node.this, *([] if characters is None else [characters]))


def _pattern(pattern: exp.Expr, flags: exp.Expr | None = None) -> exp.Expr:
    """A point meets no line's end, as elsewhere."""
    said = "" if flags is None else flags.name.replace("g", "")
    if said not in ("", "i", "c", "s"):
        raise NoForm(f"the options '{said}' of a regular expression")
    head = {"": "(?-s)", "c": "(?-s)", "i": "(?i-s)", "s": "(?s)"}[said]
    if isinstance(pattern, exp.Literal):
        return exp.Literal.string(head + pattern.name)
    return _call("concat", head, pattern)


def _regexp_like(node: exp.Expr) -> exp.Expr:
    return _call("match", node.this, _pattern(node.expression, node.args.get("flag")))


def _regexp_extract(node: exp.Expr) -> exp.Expr:
    group = node.args.get("group") or exp.Literal.number(0)
    return _call("regexpExtract", node.this, _pattern(node.expression, node.args.get("parameters")), group)


def _regexp_replace(node: exp.Expr) -> exp.Expr:
    flags = node.args.get("modifiers")
    every = flags is not None and "g" in flags.name
    name = "replaceRegexpAll" if every else "replaceRegexpOne"
    return _call(name, node.this, _pattern(node.expression, flags), node.args.get("replacement") or exp.convert(""))


def _contains(node: exp.Expr) -> exp.Expr:
    return exp.paren(exp.GT(this=_call("position", node.this, node.expression), expression=exp.Literal.number(0)))


def _substring(node: exp.Expr) -> exp.Expr:
    start, length = node.args.get("start"), node.args.get("length")
    for bound in (start, length):
        if bound is not None and not (isinstance(bound, exp.Literal) and bound.name.isdigit() and int(bound.name) > 0):
            raise NoForm("substring() from a place that is not written out as a positive number")
    return _call("substringUTF8", node.this, *(b for b in (start, length) if b is not None))


def _side(name: str) -> Macro:
    def macro(node: exp.Expr) -> exp.Expr:
        if not (isinstance(node.expression, exp.Literal) and node.expression.name.isdigit()):
            raise NoForm(f"{name}() of a length that is not written out as a positive number")
        return _call(f"{name}UTF8", node.this, node.expression)

    return macro


def _concat(node: exp.Expr) -> exp.Expr:
    return _call("concat", *(_call("ifNull", _as_text(e), "") for e in node.expressions), "")


def _dpipe(node: exp.Expr) -> exp.Expr:
    return _call("concat", *(e if _is_text(e) else _as_text(e) for e in (node.this, node.expression)))


def _split_part(node: exp.Expr) -> exp.Expr:
    separator, at = node.args.get("delimiter"), node.args.get("part_index")
    if not (isinstance(at, exp.Literal) and at.name.isdigit() and int(at.name) > 0 and separator is not None):
        raise NoForm("split_part() at a place that is not written out as a positive number")
    part = _call("arrayElement", _call("splitByString", separator, _call("assumeNotNull", node.this)), at)
    return exp.Case(ifs=[exp.If(this=_call("isNotNull", _copy(node.this)), true=part)])


def _json_text(node: exp.Expr) -> exp.Expr:
    path = node.expression
    return _call("JSON_VALUE", node.this, path.sql("duckdb").strip("'") if isinstance(path, exp.JSONPath) else path)


# ---------------------------------------------------------------- times


def _instant(value: exp.Expr) -> exp.Expr:
    """Shown in UTC, whatever zone its column is shown in."""
    return _call("toDateTime64", value, 6, "UTC")


def _micros(value: exp.Expr) -> exp.Expr:
    return _call("toUnixTimestamp64Micro", _call("toDateTime64", value, 6))


def _epoch(divisor: int) -> Macro:
    def macro(node: exp.Expr) -> exp.Expr:
        (value,) = node.expressions
        us = _micros(value)
        return us if divisor == 1 else _call("intDiv", us, _call("toInt64", divisor))

    return macro


def _epoch_seconds(node: exp.Expr) -> exp.Expr:
    value = node.this if not isinstance(node, exp.Anonymous) else node.expressions[0]
    return exp.Div(this=_micros(value), expression=_call("toFloat64", 1_000_000))


def _from_micros(value: exp.Expr, zoned: bool) -> exp.Expr:
    return _call("fromUnixTimestamp64Micro", _call("toInt64", value), *(["UTC"] if zoned else []))


def _unix_to_time(node: exp.Expr) -> exp.Expr:
    scale = node.args.get("scale")
    if scale is not None and scale.name == "6":
        return _from_micros(node.this, zoned=False)
    if scale is not None and scale.name == "3":
        return _from_micros(exp.Mul(this=exp.paren(node.this), expression=_call("toInt64", 1000)), zoned=False)
    if scale is not None and scale.name != "0":
        raise NoForm("a time from a count of nanoseconds")
    us = exp.Mul(this=_call("toFloat64", node.this), expression=_call("toFloat64", 1_000_000))
    return _from_micros(_call("roundBankers", us), zoned=True)


def _to_timestamp(node: exp.Expr) -> exp.Expr:
    us = exp.Mul(this=_call("toFloat64", node.expressions[0]), expression=_call("toFloat64", 1_000_000))
    return _from_micros(_call("roundBankers", us), zoned=True)


def _at_time_zone(node: exp.Expr) -> exp.Expr:
    """A wall clock to its instant, an instant to the wall clock there: which one it is, the value's own type tells.

    Of a time that a zone had twice the second is meant, and one that it skipped is read with the offset from before.
    """
    value, zone = node.this, node.args["zone"]
    if not isinstance(zone, exp.Literal):
        raise NoForm("a time zone that is not written out")
    naive, known = _zoned(value)
    if known:
        return _to_instant(value, zone) if naive else _to_wall_clock(value, zone)
    us = exp.Case(
        ifs=[
            exp.If(
                this=_call("endsWith", _call("toTypeName", _copy(value)), "')"),
                true=_micros(_to_wall_clock(_copy(value), zone.copy())),
            ),
            exp.If(
                this=_call("endsWith", _call("toTypeName", _copy(value)), "'))"),
                true=_micros(_to_wall_clock(_copy(value), zone.copy())),
            ),
        ],
        default=_micros(_to_instant(_copy(value), zone.copy())),
    )
    return _from_micros(us, zoned=True)


def _zoned(value: exp.Expr) -> tuple[bool, bool]:
    """(is it a wall clock, is that known by its form)"""
    value = _bare(value)
    if isinstance(value, exp.Column):
        value = _typed(value) or value
    if isinstance(value, exp.Cast):
        return "'UTC'" not in value.to.sql("clickhouse"), True
    if isinstance(value, exp.Anonymous) and value.name == "fromUnixTimestamp64Micro":
        return len(value.expressions) == 1, True
    if isinstance(value, exp.Anonymous) and value.name in ("min", "max"):
        return _zoned(value.expressions[0])
    return False, False


def _typed(column: exp.Column) -> exp.Expr | None:
    """What a column is where it is a typed NULL, as in a question about types."""
    select = column.find_ancestor(exp.Select)
    source = select.args.get("from_") if select is not None else None
    if source is None or not isinstance(source.this, exp.Subquery):
        return None
    for told in source.this.this.expressions if isinstance(source.this.this, exp.Select) else ():
        if isinstance(told, exp.Alias) and told.alias == column.name and isinstance(told.this, exp.Cast):
            return told.this
    return None


def _offset(us: exp.Expr, zone: exp.Expr) -> exp.Expr:
    """What a zone's clock is ahead by at an instant, in microseconds."""
    seconds = _call("timezoneOffset", _call("toTimeZone", _from_micros(us, zoned=True), zone.copy()))
    return exp.Mul(this=_call("toInt64", seconds), expression=exp.Literal.number(1_000_000))


def _to_wall_clock(value: exp.Expr, zone: exp.Expr) -> exp.Expr:
    us = _micros(value)
    return _from_micros(exp.Add(this=us, expression=_offset(us.copy(), zone)), zoned=False)


def _to_instant(value: exp.Expr, zone: exp.Expr) -> exp.Expr:
    """By the offset of a day later where that is the offset then, else by that of a day before."""
    us, day = _micros(value), _call("toInt64", 86_400_000_000)
    later = _offset(exp.Add(this=us.copy(), expression=day.copy()), zone)
    before = _offset(exp.Sub(this=us.copy(), expression=day.copy()), zone)
    late, early = (exp.Sub(this=us.copy(), expression=exp.paren(offset)) for offset in (later.copy(), before))
    found = exp.Case(
        ifs=[exp.If(this=exp.EQ(this=_offset(late.copy(), zone), expression=later), true=late)], default=early
    )
    return _from_micros(found, zoned=True)


_UNITS = ("second", "minute", "hour", "day", "week", "month", "quarter", "year")


def _trunc(node: exp.Expr) -> exp.Expr:
    unit = node.args["unit"].name.lower()
    if unit not in _UNITS:
        raise NoForm(f"date_trunc() to a {unit}")
    us = _micros(_copy(node.this))  # to the second first: before 1970 ClickHouse rounds a fraction up
    second = exp.Sub(this=us, expression=_call("positiveModulo", us.copy(), _call("toInt64", 1_000_000)))
    start = _call("dateTrunc", unit, _from_micros(second, zoned=True))
    # less what is over, so that a wall clock stays one and an instant stays one
    return exp.paren(
        exp.Sub(
            this=node.this,
            expression=_call(
                "toIntervalMicrosecond", exp.Sub(this=_micros(_copy(node.this)), expression=_micros(start))
            ),
        )
    )


def _part(name: str, *more: int) -> Macro:
    def macro(node: exp.Expr) -> exp.Expr:
        value = node.expressions[0] if isinstance(node, exp.Anonymous) else node.this
        return _call("toInt64", _call(name, _instant(value), *more))

    return macro


_PARTS: Mapping[str, Macro] = {
    "year": _part("toYear"),
    "quarter": _part("toQuarter"),
    "month": _part("toMonth"),
    "day": _part("toDayOfMonth"),
    "dayofweek": _part("toDayOfWeek", 2),
    "dow": _part("toDayOfWeek", 2),
    "isodow": _part("toDayOfWeek", 0),
    "week": _part("toISOWeek"),
    "doy": _part("toDayOfYear"),
    "hour": _part("toHour"),
    "minute": _part("toMinute"),
}


def _extract(node: exp.Expr) -> exp.Expr:
    unit = node.name.lower()
    if unit == "epoch":
        return _epoch_seconds(exp.Anonymous(this="epoch", expressions=[node.expression]))
    if unit not in _PARTS:
        raise NoForm(f"extract() of a {unit}")
    return _PARTS[unit](exp.Anonymous(this=unit, expressions=[node.expression]))


def _date_diff(node: exp.Expr) -> exp.Expr:
    unit = (node.args.get("unit") or exp.Var(this="day")).name.lower()
    if unit not in _UNITS:
        raise NoForm(f"date_diff() in units of a {unit}")
    return _call("dateDiff", unit, _instant(node.expression), _instant(node.this), "UTC")


def _interval(node: exp.Expr) -> exp.Expr:
    unit = node.args["unit"].name.lower().rstrip("s") if node.args.get("unit") else ""
    amount = node.this
    if unit not in _UNITS or amount is None:
        raise NoForm(
            "an interval that is not a number of seconds, minutes, hours, days, weeks, months, quarters or years"
        )
    if isinstance(amount, exp.Literal) and amount.is_string:
        if not re.fullmatch(r"-?\d+", amount.name):
            raise NoForm(f"an interval of {amount.name}")
        amount = exp.convert(int(amount.name))
    return _call(f"toInterval{unit.capitalize()}", amount)


# ---------------------------------------------------------------- numbers


def _round(node: exp.Expr) -> exp.Expr:
    """Halves away from zero: ClickHouse rounds those of doubles to even."""
    digits = node.args.get("decimals")
    if digits is not None and not (isinstance(digits, exp.Literal) and digits.name.isdigit()):
        raise NoForm("round() to a number of digits that is not written out")
    scale = 10 ** int(digits.name) if digits is not None else 1
    size = _call(
        "floor",
        exp.Add(
            this=exp.Mul(this=_call("abs", node.this), expression=exp.Literal.number(scale)),
            expression=exp.Literal.number("0.5"),
        ),
    )
    return exp.paren(
        exp.Div(
            this=exp.Mul(this=_call("sign", _copy(node.this)), expression=size), expression=exp.Literal.number(scale)
        )
    )


def _log(node: exp.Expr) -> exp.Expr:
    if node.args.get("expression") is not None:
        raise NoForm("log() to a base of its own")
    return _call("log10", node.this)


# ---------------------------------------------------------------- aggregates and windows


def _number_of(node: exp.Expr) -> float | None:
    """A number that is written out, as a literal or as text that is cast."""
    node = _bare(node)
    if isinstance(node, exp.Cast):
        node = _bare(node.this)
    if isinstance(node, exp.Placeholder):
        return None  # in a plan
    if not isinstance(node, exp.Literal):
        raise NoForm("a quantile at a probability that is not written out")
    return float(node.name)


def _quantile(node: exp.Expr) -> exp.Expr:
    q = _number_of(node.expression)
    at = node.expression if q is None else exp.Literal.number(repr(q))
    return exp.ParameterizedAgg(this="quantileExactInclusive", expressions=[at], params=[node.this])


def _distinct(node: exp.Expr) -> exp.Expr | None:
    return node.this.expressions[0] if isinstance(node.this, exp.Distinct) else None


def _array_agg(node: exp.Expr) -> exp.Expr:
    value = _distinct(node)
    if value is not None:
        return _call("groupUniqArray", value)
    raise NoForm("array_agg() with repeats, whose NULLs would be lost")


def _group_concat(node: exp.Expr) -> exp.Expr:
    value, separator = node.this, node.args.get("separator") or exp.convert(",")
    if not isinstance(value, exp.Order):
        raise NoForm("text put together in no order")
    if len(value.expressions) != 1 or value.expressions[0].args.get("desc"):
        raise NoForm("text put together in an order of several columns")
    if isinstance(node.parent, exp.Filter | exp.Window):
        raise NoForm("text put together of some rows")
    pairs = _call("groupArray", _call("tuple", value.expressions[0].this, value.this))
    x = exp.to_identifier("it")
    second = exp.Lambda(this=_call("tupleElement", exp.column("it"), 2), expressions=[x])
    text = _call("arrayStringConcat", _call("arrayMap", second, _call("arraySort", pairs)), separator)
    return exp.Case(ifs=[exp.If(this=_call("notEmpty", pairs.copy()), true=text)])


def _neighbour(name: str) -> Macro:
    """NULL beyond the edge: ClickHouse gives 0 where a column has no NULLs."""

    def macro(node: exp.Expr) -> exp.Expr:
        if node.args.get("default") is not None:
            raise NoForm(f"{name}() with a value beyond the edge")
        offset = node.args.get("offset")
        return _call(name, _call("toNullable", node.this), *([] if offset is None else [offset]))

    return macro


def _next_known(query: exp.Query) -> exp.Query:
    """The next value that is not NULL as the last one of the rows in reverse: lead() pays no heed to IGNORE NULLS."""
    for node in list(query.find_all(exp.IgnoreNulls)):
        neighbour, window = node.this, node.parent
        if not isinstance(neighbour, exp.Lead | exp.Lag):
            continue
        if neighbour.args.get("offset") is not None or neighbour.args.get("default") is not None:
            raise NoForm(f"{neighbour.sql_name().lower()}() of several rows that leaves out NULLs")
        assert isinstance(window, exp.Window)
        select, over = window.find_ancestor(exp.Select), window
        if window.args.get("alias") is not None and select is not None:
            (over,) = (w for w in select.args["windows"] or () if w.name == window.alias)
        order = over.args["order"]
        assert isinstance(order, exp.Order)
        order = order.copy()
        if isinstance(neighbour, exp.Lead):
            for ordered in order.expressions:
                ordered.set("desc", not ordered.args.get("desc"))
                ordered.set("nulls_first", not ordered.args.get("nulls_first"))
        window.replace(
            exp.Window(
                this=exp.IgnoreNulls(this=exp.LastValue(this=neighbour.this)),
                partition_by=[e.copy() for e in over.args.get("partition_by") or []],
                order=order,
                spec=exp.WindowSpec(
                    kind="ROWS",
                    start="UNBOUNDED",
                    start_side="PRECEDING",
                    end=exp.Literal.number(1),
                    end_side="PRECEDING",
                ),
            )
        )
    return query


def _first_ahead(query: exp.Query) -> exp.Query:
    """The first of the rows from here to so far ahead, as the first from here on if it is not too far: ClickHouse's
    distances have 32 bits, and microseconds need more."""
    for window in list(query.find_all(exp.Window)):
        spec, order = window.args.get("spec"), window.args.get("order")
        ends = () if spec is None else (spec.args.get("start"), spec.args.get("end"))
        if (
            spec is None
            or str(spec.args.get("kind")).upper() != "RANGE"
            or not any(isinstance(end, exp.Expr) for end in ends)
        ):
            continue
        inner = window.this.this if isinstance(window.this, exp.Filter) else window.this
        if order is None:
            raise NoForm("a window over a distance in no order")
        at = order.expressions[0].this if len(order.expressions) == 1 else None
        ahead = [str(spec.args.get(key)).upper() for key in ("start", "end_side")] == ["CURRENT ROW", "FOLLOWING"]
        if not (
            ahead and isinstance(inner, exp.Min) and inner.this == at and not order.expressions[0].args.get("desc")
        ):
            raise NoForm("a window over a distance, of anything but the first row ahead")
        far = exp.Add(this=at.copy(), expression=spec.args["end"].copy())
        first = window.copy()
        first.set("order", exp.Order(expressions=[exp.Ordered(this=at.copy(), desc=True, nulls_first=False)]))
        first.set(
            "spec",
            exp.WindowSpec(kind="RANGE", start="UNBOUNDED", start_side="PRECEDING", end="CURRENT ROW"),
        )
        near = exp.LTE(this=first, expression=far)
        window.replace(exp.Case(ifs=[exp.If(this=near, true=first.copy())]))
    return query


def _ignore_nulls(node: exp.Expr) -> exp.Expr:
    inner = node.this
    if not (isinstance(inner, exp.Anonymous) and inner.name in ("any", "last_value")):
        raise NoForm(
            f"{inner.name if isinstance(inner, exp.Anonymous) else type(inner).__name__.lower()}() that leaves out NULLs"
        )
    return inner if inner.name == "any" else node  # any() leaves them out by itself


def _last_value(node: exp.Expr) -> exp.Expr:
    called = _call("last_value", node.this)
    return called if isinstance(node.parent, exp.IgnoreNulls) else exp.RespectNulls(this=called)


def _avg(node: exp.Expr) -> exp.Expr:
    """Over doubles: of 64-bit numbers ClickHouse's sum may run over."""
    value = _bare(node.this)
    if isinstance(value, exp.Cast) and "Float64" in value.to.sql("clickhouse"):
        return node
    if isinstance(node.this, exp.Distinct):
        raise NoForm("avg(DISTINCT)")
    return exp.Avg(this=_call("toFloat64", node.this))


def _some(name: str) -> Macro:
    return lambda node: _call(name, _as(node.this, "Bool"))


def _window_spec(node: exp.Expr) -> exp.Expr:
    if node.args.get("exclude"):
        raise NoForm("a window that leaves rows out")
    return node


# ---------------------------------------------------------------- arrays


def _lambda(node: exp.Expr) -> exp.Expr:
    return node


def _element(node: exp.Expr) -> exp.Expr:
    return _call("arrayElementOrNull", *node.expressions)


def _bracket(node: exp.Expr) -> exp.Expr:
    (at,) = node.expressions if len(node.expressions) == 1 else (None,)
    if not (isinstance(at, exp.Literal) and at.name.isdigit()):
        raise NoForm("an element at a place that is not written out")
    place = int(at.name) + (1 - (node.args.get("offset") or 0) if node.args.get("offset") is not None else 1)
    return _call("arrayElementOrNull", node.this, place)


def _has(listed: exp.Expr, value: exp.Expr) -> exp.Expr:
    return exp.Case(ifs=[exp.If(this=_call("isNotNull", _copy(value)), true=_call("has", listed, value))])


def _filtered(node: exp.Expr) -> exp.Expr:
    return _call("arrayFilter", node.expression, node.this)


def _sorted(node: exp.Expr) -> exp.Expr:
    if node.args.get("expression") is not None:
        raise NoForm("a list sorted in an order of its own")
    return _call("arraySort", node.this)


def _series(node: exp.Expr) -> exp.Expr:
    start, end, step = (node.args.get(k) for k in ("start", "end", "step"))
    if not node.args.get("is_end_exclusive"):
        raise NoForm("generate_series()")
    return _call("range", *(_call("toInt64", a) for a in (start, end, step) if a is not None))


# ---------------------------------------------------------------- whole statements


def _unions_by_name(query: exp.Query) -> exp.Query:
    """Columns in one order, NULL where a side has none."""
    for union in [u for u in query.find_all(exp.Union) if u.args.get("by_name")]:
        sides: list[exp.Select] = []

        def collect(node: exp.Expr, sides: list[exp.Select] = sides) -> None:
            if isinstance(node, exp.Union):
                collect(node.left)
                collect(node.right)
            else:
                inner = node.this if isinstance(node, exp.Subquery) else node
                if not isinstance(inner, exp.Select) or any(e.is_star for e in inner.expressions):
                    raise NoForm("UNION BY NAME of a star")
                sides.append(inner)

        collect(union)
        names = list(dict.fromkeys(name for side in sides for name in side.named_selects))
        for side in sides:
            own = dict(zip(side.named_selects, side.expressions, strict=True))
            side.set(
                "expressions",
                [own.get(name) or exp.alias_(exp.null(), name, quoted=True) for name in names],
            )
        for part in [union, *union.find_all(exp.Union)]:
            part.set("by_name", None)
    return query


def _orders(query: exp.Query) -> exp.Query:
    """ORDER BY means the column that comes out, which ClickHouse is told not to prefer: it is given by its place."""
    for select in query.find_all(exp.Select):
        order = select.args.get("order")
        if order is None or any(e.is_star for e in select.expressions):
            continue
        places = {name: at for at, name in enumerate(select.named_selects, 1)}
        for ordered in order.expressions:
            column = ordered.this
            if isinstance(column, exp.Column) and not column.table and column.name in places:
                told = select.expressions[places[column.name] - 1]
                if isinstance(told, exp.Alias) and told.this != column:
                    ordered.set("this", exp.Literal.number(places[column.name]))
    return query


def _named(query: exp.Query) -> exp.Query:
    """A column of a joined table keeps its own name."""
    for select in query.find_all(exp.Select):
        if select.args.get("joins"):
            for at, told in enumerate(select.expressions):
                if isinstance(told, exp.Column) and told.table and not told.is_star:
                    select.expressions[at].replace(exp.alias_(told.copy(), told.name, quoted=True))
    return query


def _unnested(query: exp.Query) -> exp.Query:
    """Several lists unnested beside each other are unnested together."""
    for select in query.find_all(exp.Select):
        found = [
            e
            for told in select.expressions
            for e in told.find_all(exp.Explode)
            if e.find_ancestor(exp.Select) is select
        ]
        if len(found) < 2:
            continue
        together = exp.Anonymous(this="arrayZipUnaligned", expressions=[e.this.copy() for e in found])
        for at, node in enumerate(found, 1):
            node.replace(exp.StructExtract(this=exp.Explode(this=together.copy()), expression=exp.Literal.number(at)))
    return query


_LISTS = (exp.ArraySort, exp.ArrayFilter, exp.ArrayAgg, exp.Array, exp.ArrayConcat, exp.Split)


def _lengths(query: exp.Query) -> exp.Query:
    """The length of a list, where a step of the statement makes it one: of text and of lists it has two names."""
    asked = list(query.find_all(exp.Length))
    if asked:
        lists = {told.alias for told in query.find_all(exp.Alias) if isinstance(told.this, _LISTS)}
        for node in asked:
            if isinstance(node.this, _LISTS) or (isinstance(node.this, exp.Column) and node.this.name in lists):
                node.replace(exp.ArraySize(this=node.this.copy()))
    return query


def _ranges(query: exp.Query) -> exp.Query:
    """A range that is read like a table."""
    for table in list(query.find_all(exp.Table)):
        series = table.this
        if not isinstance(series, exp.GenerateSeries):
            continue
        alias = table.args.get("alias")
        columns = alias.columns if alias is not None else []
        name = columns[0].name if columns else "range"
        rows = exp.select(exp.alias_(exp.Explode(this=series.copy()), name, quoted=True)).subquery(
            alias.name if alias is not None and alias.name else "range"
        )
        table.replace(rows)
    return query


_PREDICATES = (
    *(
        exp.EQ,
        exp.NEQ,
        exp.GT,
        exp.GTE,
        exp.LT,
        exp.LTE,
        exp.And,
        exp.Or,
        exp.Not,
        exp.Is,
        exp.In,
        exp.Between,
        exp.Like,
    ),
    *(
        exp.ILike,
        exp.Exists,
        exp.NullSafeEQ,
        exp.NullSafeNEQ,
        exp.RegexpLike,
        exp.Contains,
        exp.StartsWith,
        exp.EndsWith,
    ),
    *(exp.ArrayContains, exp.IsNan, exp.IsInf),
)


def _booleans(query: exp.Query) -> exp.Query:
    """A condition that is a value is a Bool: ClickHouse's are 0 and 1."""
    for node in list(query.find_all(*_PREDICATES, exp.Anonymous)):
        if isinstance(node, exp.Anonymous) and node.name.lower() != "isfinite":
            continue
        inner: exp.Expr = node
        while isinstance(inner.parent, exp.Paren):
            inner = inner.parent
        above = inner.parent
        if above is None or isinstance(
            above,
            exp.Where | exp.Having | exp.Qualify | exp.And | exp.Or | exp.Not | exp.CountIf | exp.Join | exp.Lambda,
        ):
            continue
        if isinstance(above, exp.If) and inner.arg_key == "this":
            continue
        if isinstance(above, exp.Cast) and above.to.this == _T.BOOLEAN:
            continue
        if isinstance(above, exp.Filter | exp.LogicalOr | exp.LogicalAnd):
            continue
        told = exp.Cast(this=exp.Null(), to=exp.DataType(this=_T.BOOLEAN))
        inner.replace(told)
        told.set("this", inner)
    return query


def _steps_once(query: exp.Query) -> exp.Query:
    """A step that is read several times is worked out once: ClickHouse would run it at each place."""
    uses = Counter(table.name for table in query.find_all(exp.Table) if not table.db)
    for cte in query.find_all(exp.CTE):
        if uses[cte.alias] > 1:
            cte.set("materialized", True)
    return query


_REWRITES: tuple[tuple[tuple[type[exp.Expr], ...], Pass], ...] = (
    ((exp.Union,), _unions_by_name),
    ((exp.IgnoreNulls,), _next_known),
    ((exp.WindowSpec,), _first_ahead),
    ((exp.Order,), _orders),
    ((exp.Join,), _named),
    ((exp.Length,), _lengths),
    ((exp.GenerateSeries,), _ranges),
    ((exp.Explode,), _unnested),
    ((exp.StructExtract,), _fields),
    ((exp.Select,), _booleans),
    ((exp.CTE,), _steps_once),
)


def _rewritten(query: exp.Query) -> exp.Query:
    """Every rewriting that there is something for."""
    present = {type(node) for node in query.walk()}
    for wanted, rewrite in _REWRITES:
        if present.intersection(wanted):
            query = rewrite(query)
    return query


_UNSIGNED = ("bitCount", "lengthUTF8", "length", "bitXor")


def _finished(query: exp.Query) -> exp.Query:
    """What has to go around an aggregate with its FILTER or OVER: counts are signed; one row has no variance."""
    for node in list(query.find_all(exp.Count, exp.CountIf, exp.RowNumber, exp.Anonymous)):
        spread = isinstance(node, exp.Anonymous) and node.name in ("varSampStable", "covarSampStable")
        if isinstance(node, exp.Anonymous) and not spread and node.name not in _UNSIGNED:
            continue
        top: exp.Expr = node
        while (
            isinstance(top.parent, exp.Filter | exp.Window | exp.IgnoreNulls | exp.RespectNulls)
            and top.arg_key == "this"
        ):
            top = top.parent
        marker = exp.Null()
        top.replace(marker)
        if spread:
            infinite = _raw("inf")
            marker.replace(_call("nullIf", top, infinite))
        else:
            marker.replace(_call("toInt64", top))
    return query


_MACROS: dict[type[exp.Expr] | str, Macro] = {
    # values
    exp.Literal: _literal,
    exp.Cast: _cast,
    exp.TryCast: _cast,
    exp.In: _is_in,
    exp.IntDiv: _int_div,
    exp.Mod: _mod,
    exp.Div: _div,
    exp.Like: _like,
    exp.ILike: _like,
    exp.Struct: _struct,
    exp.StructExtract: _nullable_fields,
    exp.BitwiseAnd: _operator("bitAnd"),
    exp.BitwiseOr: _operator("bitOr"),
    exp.BitwiseXor: _operator("bitXor"),
    exp.BitwiseLeftShift: _operator("bitShiftLeft"),
    exp.BitwiseRightShift: _operator("bitShiftRight"),
    "bit_count": lambda n: _call("bitCount", *n.expressions),
    # numbers
    exp.Greatest: _renamed("greatest"),
    exp.Least: _renamed("least"),
    exp.Floor: lambda n: _call("floor", n.this),
    exp.Ceil: lambda n: _call("ceil", n.this),
    exp.Abs: lambda n: _call("abs", n.this),
    exp.Sign: lambda n: _call("sign", n.this),
    exp.Exp: lambda n: _call("exp", n.this),
    exp.Pow: _operator("pow"),
    exp.Round: _round,
    exp.Sqrt: lambda n: _call("sqrt", n.this),
    exp.Ln: lambda n: _call("log", n.this),
    exp.Log: _log,
    "log10": lambda n: _call("log10", *n.expressions),
    "log2": lambda n: _call("log2", *n.expressions),
    "isfinite": lambda n: _call("isFinite", *n.expressions),
    exp.IsNan: lambda n: _call("isNaN", n.this),
    exp.IsInf: lambda n: _call("isInfinite", n.this),
    # text
    exp.Lower: lambda n: _call("lowerUTF8", n.this),
    exp.Upper: lambda n: _call("upperUTF8", n.this),
    exp.Length: lambda n: _call("lengthUTF8", n.this),
    exp.Trim: _trim,
    exp.RegexpLike: _regexp_like,
    exp.RegexpExtract: _regexp_extract,
    exp.RegexpReplace: _regexp_replace,
    exp.Contains: _contains,
    exp.StartsWith: lambda n: _call("startsWith", n.this, n.expression),
    exp.EndsWith: lambda n: _call("endsWith", n.this, n.expression),
    exp.Substring: _substring,
    exp.Left: _side("left"),
    exp.Right: _side("right"),
    exp.Replace: lambda n: _call("replaceAll", n.this, n.expression, n.args.get("replacement") or exp.convert("")),
    exp.SplitPart: _split_part,
    exp.Concat: _concat,
    exp.DPipe: _dpipe,
    exp.Chr: lambda n: _call("char", *n.expressions),
    exp.MD5: lambda n: _call("lower", _call("hex", _call("MD5", n.this))),
    exp.JSONExtractScalar: _json_text,
    # numbers for ids within one session, of 63 bits
    "hash": lambda n: _call("toInt64", _call("bitShiftRight", _call("sipHash64", *n.expressions), 1)),
    # times
    "epoch_us": _epoch(1),
    "epoch_ms": _epoch(1000),
    "epoch": _epoch_seconds,
    exp.TimeToUnix: _epoch_seconds,
    exp.UnixToTime: _unix_to_time,
    "make_timestamp": lambda n: _from_micros(n.expressions[0], zoned=False),
    "make_timestamptz": lambda n: _from_micros(n.expressions[0], zoned=True),
    "to_timestamp": _to_timestamp,
    exp.AtTimeZone: _at_time_zone,
    exp.TimestampTrunc: _trunc,
    exp.DateTrunc: _trunc,
    exp.DateDiff: _date_diff,
    exp.Interval: _interval,
    exp.Extract: _extract,
    exp.Year: _PARTS["year"],
    exp.Month: _PARTS["month"],
    exp.Day: _PARTS["day"],
    exp.DayOfMonth: _PARTS["day"],
    exp.DayOfWeek: _PARTS["dayofweek"],
    exp.Week: _PARTS["week"],
    exp.Hour: _PARTS["hour"],
    exp.Minute: _PARTS["minute"],
    **{name: _PARTS[name] for name in ("day", "dayofweek", "hour", "minute")},
    # aggregates and windows
    exp.Avg: _avg,
    exp.AnyValue: lambda n: _call("any", n.this),
    exp.ArgMax: lambda n: _call("argMax", n.this, n.expression),
    exp.ArgMin: lambda n: _call("argMin", n.this, n.expression),
    exp.Variance: lambda n: _call("varSampStable", n.this),
    exp.CovarSamp: lambda n: _call("covarSampStable", n.this, n.expression),
    exp.PercentileCont: _quantile,
    exp.LogicalOr: _some("max"),
    exp.LogicalAnd: _some("min"),
    exp.BitwiseOrAgg: lambda n: _call("groupBitOr", n.this),
    exp.BitwiseXorAgg: lambda n: _call("groupBitXor", n.this),
    exp.ArrayAgg: _array_agg,
    exp.GroupConcat: _group_concat,
    "fsum": lambda n: _call("sumKahan", *n.expressions),
    exp.Lag: _neighbour("lag"),
    exp.Lead: _neighbour("lead"),
    exp.LastValue: _last_value,
    exp.IgnoreNulls: _ignore_nulls,
    exp.WindowSpec: _window_spec,
    # lists
    exp.Explode: lambda n: _call("arrayJoin", n.this),
    exp.ArrayFilter: _filtered,
    exp.ArraySort: _sorted,
    exp.ArrayContains: lambda n: _has(n.this, n.expression),
    exp.ArraySize: lambda n: _call("length", n.this),
    exp.Bracket: _bracket,
    exp.GenerateSeries: _series,
    "list_extract": _element,
    "list_contains": lambda n: _has(*n.expressions),
    "file": lambda n: n,  # which our own ``files`` alone writes: a table function passes no user's text
    "arrayzipunaligned": lambda n: _call("arrayZipUnaligned", *n.expressions),
}

DIALECT = Dialect(
    "clickhouse",
    "clickhouse",
    macros=_MACROS,
    passes=(_rewritten,),
    plain=frozenset(
        {
            *(exp.CountIf, exp.Qualify, exp.Array, exp.Lambda, exp.NullSafeEQ, exp.NullSafeNEQ, exp.PropertyEQ),
            *(exp.JSONPath, exp.JSONPathKey, exp.JSONPathRoot, exp.JSONPathSubscript),
        }
    ),
    finish=(_finished,),
)

# ---------------------------------------------------------------- sessions

_OLDEST = 26
"""The first version that has all of what statements are made of (tuples that may be NULL, steps worked out once)."""
_SETTINGS: Mapping[str, int | str] = {
    "session_timezone": "UTC",
    # NULL as everywhere else in SQL
    "join_use_nulls": 1,
    "aggregate_functions_null_for_empty": 1,
    "group_by_use_nulls": 1,
    "transform_null_in": 0,
    "cast_keep_nullable": 0,
    "least_greatest_legacy_null_behavior": 0,
    "enable_nullable_tuple_type": 1,
    # names
    "prefer_column_name_to_alias": 1,
    "union_default_mode": "DISTINCT",
    # an error in place of a guess
    "use_variant_as_common_type": 0,
    "date_time_overflow_behavior": "throw",
    "precise_float_parsing": 1,
    "cast_string_to_date_time_mode": "best_effort",
    "enable_extended_results_for_datetime_functions": 1,
    "count_distinct_implementation": "uniqExact",
    "insert_null_as_default": 0,
    "enable_materialized_cte": 1,
    # a table of this session is on the server that it speaks to, and not on each that holds a part
    "prefer_global_in_and_join": 1,
    "output_format_arrow_string_as_string": 1,
    "output_format_arrow_low_cardinality_as_dictionary": 0,
}


class _Failed(Exception):
    """What ClickHouse says of a statement. ``code`` is its own number, None where nobody answered."""

    def __init__(self, code: int | None, said: str) -> None:
        self.code, self.said = code, said
        super().__init__(said)


class _Session(Protocol):
    def send(self, text: str, mark: str, read: bool) -> bytes:
        """Run a statement; its rows as an Arrow file where it is read. Raises _Failed."""

    def aside(self, text: str) -> bytes:
        """The same beside the session, while it may be busy."""

    def close(self) -> None: ...


class _Embedded:
    """A session of chdb over a folder. One process has one folder, and may have several sessions over it."""

    def __init__(self, path: Path) -> None:
        try:
            chdb: Any = importlib.import_module("chdb")
        except ImportError:
            raise MissingExtra("chdb", "ClickHouse in this process") from None
        self._connect, self._error = chdb.connect, RuntimeError  # its own error is one
        self._path, self._beside = str(path), None
        try:
            self._connection: Any = self._connect(self._path)
        except self._error as error:
            raise _from_text(str(error)) from None

    def send(self, text: str, mark: str, read: bool) -> bytes:
        return self._on(self._connection, f"/* {mark} */ {text}", read)

    def aside(self, text: str) -> bytes:
        if self._beside is None:
            self._beside = self._connect(self._path)
        return self._on(self._beside, text, True)

    def _on(self, connection: Any, text: str, read: bool) -> bytes:
        try:
            answer = connection.query(text, "Arrow" if read else "Null")
        except self._error as error:
            with contextlib.suppress(self._error):  # what it had written already would come before the next answer
                connection.query("SELECT 1", "Arrow")
            raise _from_text(str(error)) from None
        return bytes(answer.bytes()) if read else b""

    def close(self) -> None:
        for connection in (self._beside, self._connection):
            if connection is not None:
                connection.close()


class _Server:
    """A session of a server, by HTTP."""

    def __init__(self, url: str) -> None:
        try:
            import clickhouse_connect
            from clickhouse_connect.driver import exceptions
        except ImportError:
            raise MissingExtra("clickhouse", "a ClickHouse server") from None
        self._errors: Any = exceptions
        parts = urlsplit(url)

        def client(session: str | None) -> Any:
            return clickhouse_connect.get_client(
                host=parts.hostname or "localhost",
                port=parts.port or (8443 if parts.scheme == "https" else 8123),
                interface="https" if parts.scheme == "https" else "http",
                username=unquote(parts.username or "default"),
                password=unquote(parts.password or ""),
                session_id=session,
                autogenerate_session_id=False,
                # its tables last as long as the session, which forgets itself when nothing is asked for a while
                settings={"session_timeout": "3600"} if session else None,
                query_retries=0,
                send_receive_timeout=86_400,
            )

        self._new = client
        self._id = str(uuid.uuid4())
        self._client = self._told(lambda: client(self._id))
        self._beside: Any = None

    def _told(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except self._errors.ClickHouseError as error:
            raise _from_text(str(error)) from None
        except (OSError, ValueError) as error:
            raise _Failed(None, type(error).__name__) from None

    def send(self, text: str, mark: str, read: bool) -> bytes:
        return self._told(
            lambda: bytes(
                self._client.raw_query(
                    text, settings={"query_id": mark}, fmt="Arrow" if read else None, use_database=False
                )
            )
        )

    def aside(self, text: str) -> bytes:
        if self._beside is None:
            self._beside = self._told(lambda: self._new(None))
        return self._told(lambda: bytes(self._beside.raw_query(text, fmt="Arrow", use_database=False)))

    def close(self) -> None:
        for client in (self._beside, self._client):
            if client is not None:
                client.close()


def _from_text(text: str) -> _Failed:
    found = re.search(r"Code:\s*(\d+)", text)
    said = re.sub(r"\s*\(version .*$", "", " ".join(text.split()))
    said = re.sub(r"^.*?DB::Exception:\s*", "", said) if found else said
    said = re.sub(r"[:.]? ?In scope (SELECT|WITH) .*$", "", said)
    said = re.sub(r"[:.]? ?While (executing|processing) .*$", "", said)
    return _Failed(int(found[1]) if found else None, said.strip())


# ---------------------------------------------------------------- the engine

_NO_MEMORY, _NO_ROOM, _STOPPED, _READ_ONLY, _DENIED = 241, 243, 394, 164, 497
_NO_LOGIN = (192, 193, 194, 516)


class ClickHouseEngine(Engine):
    """A session on a ClickHouse server (``url``), or over a folder in this process (``path``).

    Raises ConnectionFailed where it cannot be opened and MissingExtra where its driver is not installed.
    """

    dialect = DIALECT

    def __init__(
        self, name: str, connection: ClickHouseConnection, root: Path, progress: Progress | None = None
    ) -> None:
        self._name, self._progress = name, progress
        self._kept: list[str] = []
        self._database = connection.database or "default"
        self._embedded = connection.url is None
        if connection.url is not None:
            parts = urlsplit(connection.url)
            self._where = f"{parts.hostname or 'localhost'}:{parts.port or ''}".rstrip(":")
            self._database = connection.database or unquote(parts.path.strip("/")) or "default"
        else:
            self._where = str((root / (connection.path or "")).resolve())
            if not Path(self._where).is_dir():
                raise ConnectionFailed(f"connection '{name}': there is no folder {self._where}")
        try:
            self._session: _Session = (
                _Server(connection.url) if connection.url is not None else _Embedded(Path(self._where))
            )
        except _Failed as failed:
            raise self._unopened(failed) from None
        try:
            self._settle_session()
        except _Failed as failed:
            self._session.close()
            raise self._unopened(failed) from None
        except BaseException:
            self._session.close()
            raise

    def _settle_session(self) -> None:
        (found,) = self._rows("SELECT version() AS version, toInt64(getSetting('readonly')) AS locked")
        self.version = str(found["version"])
        if int(self.version.split(".")[0]) < _OLDEST:
            raise ConnectionFailed(
                f"connection '{self._name}': ClickHouse {self.version} is too old; payoff needs version {_OLDEST} or later"
            )
        if int(found["locked"]) == 1:
            raise ConnectionFailed(
                f"connection '{self._name}': its user may change no settings (readonly = 1), and NULLs would not be those of"
                " SQL; give the user a profile with readonly = 2, by which nothing can be written either"
            )
        settings = dict(_SETTINGS)
        if int(found["locked"]) == 0:
            settings["readonly"] = 2
        told = ", ".join(f"{key} = {exp.convert(value).sql('clickhouse')}" for key, value in settings.items())
        self._session.send(f"SET {told}", self._mark(), False)
        self._kind = "MergeTree ORDER BY tuple()"  # on disk, where the user may have that
        try:
            self._session.send(
                f"CREATE TEMPORARY TABLE payoff_probe (x Int8) ENGINE = {self._kind}", self._mark(), False
            )
            self._session.send("DROP TEMPORARY TABLE payoff_probe", self._mark(), False)
        except _Failed:
            self._kind = "Memory"

    def _unopened(self, failed: _Failed) -> ConnectionFailed:
        if failed.code in _NO_LOGIN:
            why = "the server refused the user or the password"
        elif failed.code is None:
            why = "nobody answers there: is it running, and is the port that of its HTTP interface (8123 or 8443)?"
        elif "already initialized with path" in failed.said:
            why = "this process reads another folder of ClickHouse's, and can read one at a time"
        else:
            why = failed.said
        return ConnectionFailed(f"connection '{self._name}': {self._where} cannot be opened: {why}")

    def close(self) -> None:
        with contextlib.suppress(_Failed):
            for table in list(self._kept):
                self.drop(table)
        self._session.close()

    # ---------------------------------------------------------------- running

    def _select(self, text: str, what: str, source: str | None) -> pa.Table:
        return _as_ours(_arrow(self._watched(text, True, what, source)))

    def _create(self, table: str, query: Query, what: str, source: str | None) -> None:
        self._kept.append(table)
        text = f"CREATE TEMPORARY TABLE {_quoted(table)} ENGINE = {self._kind} AS\n{self.text(query, what)}"
        self._watched(text, False, what, source)

    def _insert(self, table: str, query: Query, what: str, source: str | None) -> None:
        self._watched(f"INSERT INTO {_quoted(table)}\n{self.text(query, what)}", False, what, source)

    def drop(self, table: str) -> None:
        self._session.send(f"DROP TEMPORARY TABLE IF EXISTS {_quoted(table)}", self._mark(), False)
        if table in self._kept:
            self._kept.remove(table)

    def types(self, query: Query, source: str | None = None) -> dict[str, str]:
        return {name: told_type(kind) for name, kind in self._own_types(query, source).items()}

    def _own_types(self, query: Query, source: str | None) -> dict[str, str]:
        what = "look at columns"
        rows = _arrow(self._watched(f"DESCRIBE (\n{self.text(query, what)}\n)", True, what, source)).to_pylist()
        return {str(row["name"]): str(row["type"]) for row in rows}

    def settled(self, select: exp.Query, columns: Mapping[str, str]) -> exp.Query:
        """Enumerations, addresses and texts of fixed length as the text that they are told as."""
        kinds = self._own_types(Query(select), None)
        odd = [
            name
            for name, kind in kinds.items()
            if re.match(rf"(?:Nullable\(|LowCardinality\()*(?:{'|'.join(_TO_TEXT)})\b", kind)
        ]
        if not odd:
            return select
        text = [exp.alias_(exp.cast(exp.column(n, quoted=True), "VARCHAR"), n, quoted=True) for n in odd]
        kept = [exp.column(n, quoted=True) for n in kinds if n not in odd]
        return exp.select(*kept, *text).from_(select.copy().subquery("stored"))

    def place(self, connection: str, parts: Sequence[str]) -> exp.Table:
        return exp.Table(
            this=exp.to_identifier(parts[-1], quoted=True),
            db=exp.to_identifier(parts[0] if len(parts) == 2 else self._database, quoted=True),
        )

    def files(self, paths: Sequence[str], kind: str, source: str) -> exp.Query:
        """Parquet files, in this process: what text means is guessed differently here than elsewhere."""
        if not self._embedded or kind != "parquet":
            return super().files(paths, kind, source)
        if any(c in path for path in paths for c in "{}*?,\\"):
            raise DataError("has a name with a sign that ClickHouse reads as a pattern; rename the file", source=source)
        if len({Path(path).parent for path in paths}) > 1:
            raise DataError("has files in several folders; put them in one, or read them with duckdb", source=source)
        names = ",".join(Path(path).name for path in paths)
        listed = paths[0] if len(paths) == 1 else f"{Path(paths[0]).parent}/{{{names}}}"
        return exp.select("*").from_(exp.Table(this=_call("file", listed, "Parquet")))

    def size(self, place: exp.Table | Sequence[str], columns: Sequence[str]) -> int | None:
        """Of a table what its parts say, where the user may see that."""
        if not isinstance(place, exp.Table) or not columns:
            return None
        named = ", ".join(exp.convert(c).sql("clickhouse") for c in columns)
        at, table = (exp.convert(name).sql("clickhouse") for name in (place.db, place.name))
        try:
            (found,) = self._rows(
                "SELECT toInt64(ifNull(sum(column_data_compressed_bytes), 0)) AS size FROM system.parts_columns"
                f" WHERE active AND database = {at} AND table = {table} AND column IN ({named})"
            )
        except _Failed:
            return None
        return int(found["size"]) or None  # small parts do not tell columns apart

    def memory(self) -> int:
        (found,) = self._rows("SELECT toInt64(getSetting('max_memory_usage')) AS bytes")
        return int(found["bytes"]) or super().memory()

    def _mark(self) -> str:
        return f"payoff-{uuid.uuid4()}"

    def _rows(self, text: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = _arrow(self._session.send(text, self._mark(), True)).to_pylist()
        return rows

    def _watched(self, text: str, read: bool, what: str, source: str | None) -> bytes:
        """Run in a thread of its own, so that this one hears Ctrl-C and tells progress."""
        mark = self._mark()
        with ThreadPoolExecutor(max_workers=1) as worker:
            running = worker.submit(self._session.send, text, mark, read)
            try:
                self.tell(what, source, None)
                while wait([running], timeout=0.2).not_done:
                    if self._progress is not None:
                        self.tell(what, source, self._share(mark))
                return running.result()
            except _Failed as failed:
                raise self._translated(failed, what, source) from None
            except BaseException:
                while wait([running], timeout=0.1).not_done:  # it may not have begun when it is first told to stop
                    with contextlib.suppress(_Failed):
                        self._session.aside(f"KILL QUERY WHERE {self._is(mark)} ASYNC")
                raise

    def _is(self, mark: str) -> str:
        return f"startsWith(query, '/* {mark} */')" if self._embedded else f"query_id = '{mark}'"

    def _share(self, mark: str) -> float | None:
        with contextlib.suppress(_Failed):
            rows = _arrow(
                self._session.aside(
                    f"SELECT read_rows / total_rows_approx AS share FROM system.processes WHERE {self._is(mark)} AND total_rows_approx > 0"
                )
            ).to_pylist()
            if rows:
                return min(float(rows[0]["share"]), 1.0)
        return None

    def _translated(self, failed: _Failed, what: str, source: str | None) -> DataError | ConnectionFailed:
        if failed.code in (_NO_MEMORY, _NO_ROOM):
            return ConnectionFailed(
                f"{what}: out of memory or of room on disk ({failed.said}); raise the user's max_memory_usage, or set"
                " max_bytes_before_external_group_by"
            )
        if failed.code is None:
            return ConnectionFailed(f"{what}: {self._where} no longer answers ({failed.said})")
        if failed.code == _STOPPED:
            return ConnectionFailed(f"{what}: the statement was stopped on the server")
        if failed.code in (_DENIED, _READ_ONLY):
            return DataError(f"{what}: the user may not do that: {failed.said}", source=source)
        return DataError(f"{what}: {failed.said}", source=source)


def _quoted(name: str) -> str:
    return exp.to_identifier(name, quoted=True).sql("clickhouse")


def _arrow(answer: bytes) -> pa.Table:
    if not answer:
        return pa.table({})
    return pa.ipc.open_file(pa.py_buffer(answer)).read_all()


def _as_ours(table: pa.Table) -> pa.Table:
    """The types that statements are read in: whole numbers signed and of 64 bits where they fit, no decimals."""
    return pa.table([_column_as_ours(column) for column in table.columns], names=table.column_names)


def _column_as_ours(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column.cast(kind.value_type)
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width == 16:
        values = [None if v is None else int.from_bytes(v, "little", signed=True) for v in column.to_pylist()]
        fits = all(v is None or -(1 << 63) <= v < 1 << 63 for v in values)
        return pa.chunked_array([pa.array(values, pa.int64() if fits else pa.decimal128(38, 0))])
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    if pa.types.is_integer(kind):
        with contextlib.suppress(pa.ArrowInvalid):  # above what 63 bits hold
            return column.cast(pa.int64())
    return column

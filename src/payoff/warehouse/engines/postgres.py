"""PostgreSQL: one session of a server that holds the tables. It reads them; it writes only temporary tables of its own.

Two things are translated by the server itself: what a function means by the type of its argument (``epoch_us`` of a date or of an
instant) is a small SQL function in the session's own ``pg_temp``, which the planner puts in line; nothing else there is kept.
Text is compared by its bytes: it is read with the collation "C", whatever the database's own is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from sqlglot import exp

from payoff.errors import ConnectionFailed, DataError, MissingExtra
from payoff.spec.nouns import PostgresConnection
from payoff.warehouse.dialect import (
    Dialect,
    Macro,
    NoForm,
    Pass,
    column_names,
    groups_by_place,
    stars_written_out,
    step_columns,
)
from payoff.warehouse.engine import Engine, Progress
from payoff.warehouse.query import Query

if TYPE_CHECKING:
    import psycopg

# ---------------------------------------------------------------- functions of a session

_DIGITS = r"'^\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*$'"
_NAMED = r"'^\s*[+-]?(nan|inf|infinity)\s*$'"
_DAY = r"\s*\d{4,6}-\d{1,2}-\d{1,2}"
_TIME = r"([ T]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?)?"
_ZONE = r" ?([+-]\d{1,2}(:?\d{2})?|Z|UTC)"
# PostgreSQL reads more as a time than is one ('now', 'tomorrow', 01/02/2026); this text is one nowhere
_NO_TIME = "'not a time: ' || $1"


def _as_moment(kind: str) -> str:
    """Of text: a time as ISO 8601 writes it. What tells its offset is moved to UTC (PostgreSQL would leave the offset out)."""
    told = f"CASE WHEN $1 ~ '^{_DAY}{_TIME}({_ZONE})?\\s*$' THEN $1 ELSE {_NO_TIME} END"
    if kind == "timestamptz":
        return f"({told})::timestamptz"
    naive = (
        f"({told})::timestamptz AT TIME ZONE 'UTC'"  # the session's zone is UTC: without an offset it changes nothing
    )
    return naive if kind == "timestamp" else f"({naive})::date"


# seconds as a double tell microseconds apart until 2106, at a third of the cost of the exact numeric
_MICROSECONDS = """CASE WHEN $1 >= '1900-01-01' AND $1 < '2100-01-01' THEN round(date_part('epoch', $1) * 1000000)::bigint
                        WHEN isfinite($1) THEN (extract(epoch FROM $1) * 1000000)::bigint END"""
_FUNCTIONS: tuple[tuple[str, str, str], ...] = (
    # name and arguments, result, body
    ("epoch_us(timestamptz)", "bigint", _MICROSECONDS),
    ("epoch_us(timestamp)", "bigint", _MICROSECONDS),
    ("epoch_us(date)", "bigint", "CASE WHEN isfinite($1) THEN ($1 - '1970-01-01'::date) * 86400000000 END"),
    (
        "at_us(bigint)",
        "timestamp",
        "'1970-01-01'::timestamp + ($1 / 86400000000) * interval '1 day' + ($1 % 86400000000) * interval '1 microsecond'",
    ),
    ("to_double(double precision)", "double precision", "$1"),
    ("to_double(boolean)", "double precision", "$1::integer::double precision"),
    ("to_double(text)", "double precision", "$1::double precision"),
    ("to_boolean(boolean)", "boolean", "$1"),
    ("to_boolean(bigint)", "boolean", "$1 <> 0"),
    ("to_boolean(numeric)", "boolean", "$1 <> 0"),
    ("to_boolean(double precision)", "boolean", "$1 <> 0"),
    (
        "to_boolean(text)",
        "boolean",
        "CASE WHEN lower($1) IN ('true', 't', '1', 'false', 'f', '0') THEN $1 ELSE 'no truth: ' || $1 END::boolean",
    ),
    ("to_bigint(bigint)", "bigint", "$1"),
    ("to_bigint(numeric)", "bigint", "$1::bigint"),
    ("to_bigint(double precision)", "bigint", "$1::bigint"),
    ("to_bigint(boolean)", "bigint", "$1::integer::bigint"),
    ("to_bigint(text)", "bigint", "$1::numeric::bigint"),
    ("to_text(anyelement)", "text", "$1::text"),
    ("to_text(text)", "text", "$1"),
    ("to_text(smallint)", "text", "$1::text"),
    ("to_text(integer)", "text", "$1::text"),
    ("to_text(bigint)", "text", "$1::text"),
    ("to_text(numeric)", "text", "$1::text"),
    (
        "to_text(double precision)",
        "text",
        """CASE WHEN $1 IN ('NaN', 'Infinity', '-Infinity') THEN replace(lower($1::text), 'inity', '')
                WHEN abs($1) >= 1e15 AND abs($1) < 1e16 THEN trim_scale($1::text::numeric)::text
                     || CASE WHEN $1 = floor($1) THEN '.0' ELSE '' END
                WHEN $1 = floor($1) AND abs($1) < 1e15 THEN $1::text || '.0' ELSE $1::text END""",
    ),
    (
        "to_text(real)",
        "text",
        """CASE WHEN $1 IN ('NaN', 'Infinity', '-Infinity') THEN replace(lower($1::text), 'inity', '')
                WHEN $1 = floor($1) AND abs($1) < 1e16 THEN $1::text::numeric::text || '.0' ELSE $1::text END""",
    ),
    ("to_date(date)", "date", "$1"),
    ("to_date(timestamp)", "date", "$1::date"),
    ("to_date(timestamptz)", "date", "$1::date"),
    ("to_date(text)", "date", _as_moment("date")),
    ("to_timestamp(date)", "timestamp", "$1::timestamp"),
    ("to_timestamp(timestamp)", "timestamp", "$1"),
    ("to_timestamp(timestamptz)", "timestamp", "$1::timestamp"),
    ("to_timestamp(text)", "timestamp", _as_moment("timestamp")),
    ("to_timestamptz(date)", "timestamptz", "$1::timestamptz"),
    ("to_timestamptz(timestamp)", "timestamptz", "$1::timestamptz"),
    ("to_timestamptz(timestamptz)", "timestamptz", "$1"),
    ("to_timestamptz(text)", "timestamptz", _as_moment("timestamptz")),
    (
        "whole(double precision)",  # beyond a bigint by pieces of 2^62, as a cast to numeric keeps 15 digits
        "numeric",
        """CASE WHEN abs($1) < 9.2e18 THEN $1::bigint::numeric
                WHEN abs($1) < 1.7e38 THEN trunc($1 / 4611686018427387904.0)::text::numeric * 0 + (
                     trunc($1 / 21267647932558653966460912964485513216.0)::bigint::numeric * 21267647932558653966460912964485513216
                     + trunc(($1 - trunc($1 / 21267647932558653966460912964485513216.0) * 21267647932558653966460912964485513216.0)
                             / 4611686018427387904.0)::bigint::numeric * 4611686018427387904
                     + ($1 - trunc($1 / 4611686018427387904.0) * 4611686018427387904.0)::bigint::numeric) END""",
    ),
    ("whole(numeric)", "numeric", "CASE WHEN abs($1) < 1e38 THEN round($1) END"),
    (
        "whole(text)",
        "numeric",
        f"CASE WHEN $1 ~ {_DIGITS} THEN CASE WHEN abs($1::numeric) < 1e38 THEN round($1::numeric) END END",
    ),
    ("try_double(double precision)", "double precision", "$1"),
    (
        "try_double(text)",
        "double precision",
        f"""CASE WHEN $1 ~ {_DIGITS} THEN CASE WHEN abs($1::numeric) BETWEEN 1e-300 AND 1.79e308 OR $1::numeric = 0
                                               THEN $1::double precision END
                 WHEN $1 ~* {_NAMED} THEN $1::double precision END""",
    ),
    ("intdiv(integer, integer)", "integer", "$1 / $2"),
    ("intdiv(bigint, bigint)", "bigint", "$1 / $2"),
    (
        "intdiv(numeric, numeric)",
        "numeric",
        "CASE WHEN scale($1) = 0 AND scale($2) = 0 THEN div($1, $2) ELSE $1 / $2 END",
    ),
    ("intdiv(double precision, double precision)", "double precision", "$1 / $2"),
    ("modulo(integer, integer)", "integer", "$1 % $2"),
    ("modulo(bigint, bigint)", "bigint", "$1 % $2"),
    ("modulo(numeric, numeric)", "numeric", "$1 % $2"),
    ("modulo(double precision, double precision)", "double precision", "$1 - trunc($1 / $2) * $2"),
    (
        "divide(double precision, double precision)",
        "double precision",
        """CASE WHEN $2 <> 0 THEN $1 / $2 WHEN $2 IS NULL THEN NULL WHEN $1 > 0 AND $1 < 'NaN' THEN 'Infinity'::double precision
                WHEN $1 < 0 THEN '-Infinity'::double precision WHEN $1 IS NOT NULL THEN 'NaN'::double precision END""",
    ),
    (
        "round(double precision)",
        "double precision",
        """CASE WHEN abs($1) < 4503599627370496
                THEN sign($1) * (floor(abs($1)) + CASE WHEN abs($1) - floor(abs($1)) >= 0.5 THEN 1 ELSE 0 END) ELSE $1 END""",
    ),
    ("round(numeric)", "numeric", "pg_catalog.round($1)"),
    ("round(double precision, integer)", "double precision", "pg_temp.round($1 * 10.0 ^ $2) / 10.0 ^ $2"),
    ("round(numeric, integer)", "numeric", "pg_catalog.round($1, $2)"),
    (
        "ln(double precision)",
        "double precision",
        "CASE WHEN $1 > 0 THEN pg_catalog.ln($1) WHEN $1 = 0 THEN '-Infinity' WHEN $1 < 0 THEN 'NaN'::double precision END",
    ),
    (
        "exp(double precision)",
        "double precision",
        "CASE WHEN $1 = 'NaN' OR $1 BETWEEN -745 AND 709.78 THEN pg_catalog.exp($1) WHEN $1 < 0 THEN 0 WHEN $1 > 0 THEN 'Infinity' END",
    ),
    (
        "sqrt(double precision)",
        "double precision",
        "CASE WHEN $1 >= 0 THEN pg_catalog.sqrt($1) WHEN $1 < 0 THEN 'NaN'::double precision END",
    ),
    ("is_finite(double precision)", "boolean", "abs($1) < 'Infinity'::double precision"),
    ("is_finite(date)", "boolean", "isfinite($1)"),
    ("is_finite(timestamp)", "boolean", "isfinite($1)"),
    ("is_finite(timestamptz)", "boolean", "isfinite($1)"),
    ("as_number(boolean)", "integer", "$1::integer"),
    ("as_number(smallint)", "smallint", "$1"),
    ("as_number(integer)", "integer", "$1"),
    ("as_number(bigint)", "bigint", "$1"),
    ("as_number(numeric)", "numeric", "$1"),
    ("as_number(real)", "double precision", "$1::double precision"),
    ("as_number(double precision)", "double precision", "$1"),
    ("len(text)", "bigint", "length($1)::bigint"),
    ("len(anyarray)", "bigint", "coalesce(array_length($1, 1), CASE WHEN $1 IS NOT NULL THEN 0 END)::bigint"),
    ("list_extract(anyarray, integer)", "anyelement", "$1[$2]"),
    ("list_sort(anyarray)", "anyarray", "ARRAY(SELECT unnest($1) ORDER BY 1)"),
    ("date_trunc(text, date)", "timestamp", "pg_catalog.date_trunc($1, $2::timestamp)"),
    ("date_trunc(text, timestamp)", "timestamp", "pg_catalog.date_trunc($1, $2)"),
    ("date_trunc(text, timestamptz)", "timestamptz", "pg_catalog.date_trunc($1, $2)"),
    ("part(text, date)", "bigint", "date_part($1, $2)::bigint"),
    ("part(text, timestamp)", "bigint", "trunc(date_part($1, $2))::bigint"),
    ("part(text, timestamptz)", "bigint", "trunc(date_part($1, $2))::bigint"),
    ("at_zone(date, text)", "timestamptz", "$1::timestamp AT TIME ZONE $2"),
    ("at_zone(timestamp, text)", "timestamptz", "$1 AT TIME ZONE $2"),
    ("at_zone(timestamptz, text)", "timestamp", "$1 AT TIME ZONE $2"),
)
_LAST_KNOWN = (  # no function of PostgreSQL skips NULLs in a window; a strict one that keeps what it saw last does
    "CREATE FUNCTION pg_temp.later(anyelement, anyelement) RETURNS anyelement"
    " LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS 'SELECT $2';",
    "CREATE AGGREGATE pg_temp.last_known(anyelement) (SFUNC = pg_temp.later, STYPE = anyelement, PARALLEL = SAFE);",
)


@cache
def _made_at_start() -> str:
    functions = (
        f"CREATE FUNCTION pg_temp.{head} RETURNS {result} LANGUAGE sql STABLE PARALLEL SAFE AS $body$SELECT {body}$body$;"
        for head, result, body in _FUNCTIONS
    )
    return "\n".join([*functions, *_LAST_KNOWN])


def _own(name: str, *arguments: exp.Expr) -> exp.Expr:
    """A call of a function of the session."""
    return exp.Dot(
        this=exp.to_identifier("pg_temp", quoted=True), expression=exp.Anonymous(this=name, expressions=list(arguments))
    )


def _builtin(name: str, *arguments: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this=name, expressions=list(arguments))


def _renamed(name: str) -> Macro:
    return lambda node: _own(name, *(e for e in (node.this, node.args.get("expression")) if e is not None))


# ---------------------------------------------------------------- macros

_DOUBLE = "DOUBLE"


def _double(of: exp.Expr) -> exp.Expr:
    """A number (never text or a truth) as a double."""
    return of if _is_double(of) else exp.cast(of, _DOUBLE)


def _is_double(of: exp.Expr) -> bool:
    return isinstance(of, exp.Cast) and of.to.this == exp.DType.DOUBLE


def _bytewise(of: exp.Expr) -> exp.Expr:
    return exp.Collate(this=of, expression=exp.to_identifier("C", quoted=True))


def _spoken(of: exp.Expr) -> exp.Expr:
    """With the rules of Unicode, which the collation "C" leaves aside, for capitals."""
    return exp.Collate(this=exp.paren(of), expression=exp.to_identifier("und-x-icu", quoted=True))


_UNSIGNED = {
    exp.DType.UTINYINT: "SMALLINT",
    exp.DType.USMALLINT: "INT",
    exp.DType.UINT: "BIGINT",
    exp.DType.UBIGINT: "BIGINT",  # as 64 bits, and not as a number beyond 2^63
    exp.DType.UINT128: "DECIMAL",
    exp.DType.INT128: "DECIMAL",
    exp.DType.TINYINT: "SMALLINT",
}
_OF_TYPE: dict[exp.DType, str] = {
    exp.DType.BOOLEAN: "to_boolean",
    exp.DType.DOUBLE: "to_double",
    exp.DType.BIGINT: "to_bigint",
    exp.DType.DATE: "to_date",
    exp.DType.TIMESTAMP: "to_timestamp",
    exp.DType.TIMESTAMPTZ: "to_timestamptz",
}
_TRUTHS = (
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
    exp.Boolean,
)
_INTEGERS = (exp.DType.TINYINT, exp.DType.SMALLINT, exp.DType.INT, exp.DType.BIGINT, exp.DType.INT128)


def _is_constant(of: exp.Expr) -> bool:
    return isinstance(of, exp.Literal | exp.Null) or (isinstance(of, exp.Neg) and isinstance(of.this, exp.Literal))


def _cast(node: exp.Expr) -> exp.Expr:
    assert isinstance(node, exp.Cast)
    of, to = node.this, node.to.this
    inner = of.unnest()
    if to == exp.DType.NULL:
        return exp.cast(of, "INT")
    if to == exp.DType.ARRAY:
        return _bytewise(node.copy()) if _element(node.to) in (exp.DType.TEXT, exp.DType.VARCHAR) else node
    if to in (exp.DType.TEXT, exp.DType.VARCHAR):
        return _bytewise(exp.cast(of, "TEXT") if _is_constant(inner) else _own("to_text", of))
    if to == exp.DType.BIGINT and isinstance(inner, exp.DPipe) and inner.this.is_string and inner.this.name == "0x":
        bits = exp.DPipe(this=exp.Literal.string("x"), expression=inner.expression)  # hexadecimal digits, 15 of them
        return exp.cast(exp.cast(exp.paren(bits), exp.DataType.build("BIT(60)", dialect="postgres")), "BIGINT")
    if isinstance(inner, exp.Null):
        return exp.cast(of, _UNSIGNED[to]) if to in _UNSIGNED else node
    if to in _UNSIGNED:
        return exp.cast(of, _UNSIGNED[to])
    if to == exp.DType.BOOLEAN and isinstance(inner, _TRUTHS):
        return node
    if to == exp.DType.SMALLINT and isinstance(inner, (*_TRUTHS, exp.Column)):  # of a truth by way of an integer
        return exp.cast(exp.cast(of, "INT"), "SMALLINT")
    if to in _OF_TYPE and not _is_constant(inner) and not isinstance(inner, exp.RowNumber | exp.Count):
        return _own(_OF_TYPE[to], of)
    return node


def _element(kind: exp.DataType) -> exp.DType | None:
    inner = kind.expressions[0] if kind.expressions else None
    return inner.this if isinstance(inner, exp.DataType) else None


def _try_cast(node: exp.Expr) -> exp.Expr:
    assert isinstance(node, exp.TryCast)
    to, of = node.to.this, node.this
    if isinstance(of, exp.Literal):
        of = exp.cast(of, "TEXT")
    if to == exp.DType.DOUBLE:
        return _own("try_double", of)
    if to == exp.DType.INT128:
        return _own("whole", of)
    if to in (exp.DType.TEXT, exp.DType.VARCHAR):
        return _bytewise(_own("to_text", of))
    if to in (exp.DType.BIGINT, exp.DType.INT):
        edge = "9223372036854775807" if to == exp.DType.BIGINT else "2147483647"
        whole = _own("whole", of)
        inside = exp.Between(this=whole, low=exp.Neg(this=exp.Literal.number(edge)), high=exp.Literal.number(edge))
        return exp.Case().when(inside, exp.cast(whole.copy(), "BIGINT" if to == exp.DType.BIGINT else "INT"))
    raise NoForm(f"try_cast to {node.to.sql('duckdb').lower()}")


def _divide(node: exp.Expr) -> exp.Expr:
    below = node.expression.unnest()
    if isinstance(below, exp.Literal) and float(below.name) != 0:
        return exp.Div(this=_double(node.this), expression=node.expression, typed=True, safe=False)
    return _own("divide", node.this, node.expression)


def _collated(node: exp.Expr) -> exp.Expr:
    """Words that a CASE chooses among have the database's collation: give them ours."""
    results = [i.args["true"] for i in node.args.get("ifs") or []] + [node.args.get("default")]
    told = [r for r in results if r is not None and not isinstance(r, exp.Null)]
    if told and all(isinstance(r, exp.Literal) and r.is_string for r in told):
        return _bytewise(exp.paren(node.copy()))
    return node


def _unordered(node: exp.Expr) -> exp.Expr:
    """A sum in an order of its rows: here each would be a sort of its own, for the last bits alone."""
    if isinstance(node.this, exp.Order):
        node.set("this", node.this.this)
    return node


def _sum(node: exp.Expr) -> exp.Expr:
    node = _unordered(node)
    if isinstance(node.this, exp.Distinct):
        return node
    of = node.this.unnest()
    if isinstance(of, _TRUTHS):
        return exp.Sum(this=exp.cast(node.this, "INT"))
    return exp.Sum(this=_own("as_number", node.this)) if isinstance(of, exp.Column) else node


def _of_doubles(node: exp.Expr) -> exp.Expr:
    node = _unordered(node)
    node.set("this", _double(node.this))
    if node.args.get("expression") is not None:
        node.set("expression", _double(node.expression))
    return node


def _count_if(node: exp.Expr) -> exp.Expr:
    """Of no row that is true or false it is NULL, as a sum is."""
    return exp.Sum(this=exp.cast(exp.paren(node.this), "INT"))


def _quantile(node: exp.Expr) -> exp.Expr:
    return exp.WithinGroup(
        this=exp.PercentileCont(this=node.expression),
        expression=exp.Order(expressions=[exp.Ordered(this=_double(node.this), nulls_first=False)]),
    )


def _first_by(value: exp.Expr, keys: Sequence[exp.Expr], descending: bool) -> exp.Expr:
    """The value of the row that comes first by keys, as an aggregate."""
    order = [
        exp.Ordered(this=k, desc=descending, nulls_first=descending and k is keys[-1] and len(keys) > 1) for k in keys
    ]
    return exp.ArrayAgg(this=exp.Order(this=value, expressions=order))


def _arg_best(descending: bool) -> Macro:
    def macro(node: exp.Expr) -> exp.Expr:
        value, key = node.this, node.expression
        known = exp.and_(
            exp.Not(this=exp.Is(this=value.copy(), expression=exp.null())),
            exp.Not(this=exp.Is(this=key.copy(), expression=exp.null())),
        )
        listed = exp.Filter(this=_first_by(value, [key], descending), expression=exp.Where(this=known))
        return _own("list_extract", listed, exp.Literal.number(1))

    return macro


def _list_extract(node: exp.Expr) -> exp.Expr:
    listed, at = node.expressions[0], exp.cast(node.expressions[1], "INT")
    # of the list that arg_max found: lists within a list are no list of lists here, so their elements are gathered
    gathered = listed.find(exp.ArrayAgg) if isinstance(listed, exp.Dot) else None
    if gathered is None:
        return _own("list_extract", listed, at)
    gathered.this.set("this", _own("list_extract", gathered.this.this.copy(), at))
    found: exp.Expr = listed
    return found


def _extract_field(node: exp.Expr) -> exp.Expr:
    """A part of the least or greatest of pairs: the pairs are ordered by their parts, NULL behind all else."""
    of, where = node.this, None
    if isinstance(of, exp.Filter):
        of, where = of.this, of.expression
    if not (isinstance(of, exp.Min | exp.Max) and isinstance(of.this, exp.Struct)):
        raise NoForm("a part of a struct")
    parts = {p.this.name: p.expression for p in of.this.expressions}
    wanted = node.expression.name if node.expression is not None else ""
    descending = isinstance(of, exp.Max)
    order = [exp.Ordered(this=p.copy(), desc=descending, nulls_first=descending) for p in parts.values()]
    listed: exp.Expr = exp.ArrayAgg(this=exp.Order(this=parts[wanted].copy(), expressions=order))
    if where is not None:
        listed = exp.Filter(this=listed, expression=where)
    return _own("list_extract", listed, exp.Literal.number(1))


def _array_filter(node: exp.Expr) -> exp.Expr:
    body = node.expression.this if isinstance(node.expression, exp.Lambda) else None
    known = isinstance(body, exp.Not) and isinstance(body.this, exp.Is) and isinstance(body.this.expression, exp.Null)
    if not known:
        raise NoForm("list_filter() but for what is not NULL")
    return _builtin("array_remove", node.this, exp.null())


def _unnest(node: exp.Expr) -> exp.Expr:
    if isinstance(node.this, exp.GenerateSeries):
        return node.this
    return _builtin("unnest", node.this)


def _series(node: exp.Expr) -> exp.Expr:
    start, end = node.args["start"], node.args["end"]
    if node.args.get("step") is not None:
        raise NoForm("range() with a step")
    if node.args.get("is_end_exclusive"):
        end = exp.Sub(this=exp.paren(end), expression=exp.Literal.number(1))
    return exp.GenerateSeries(start=start, end=end)


def _bracket(node: exp.Expr) -> exp.Expr:
    if (
        len(node.expressions) == 1
        and isinstance(node.expressions[0], exp.Literal)
        and not node.expressions[0].is_string
    ):
        at = int(node.expressions[0].name)
        if at >= 0:
            return _own("list_extract", node.this, exp.Literal.number(at + 1))  # sqlglot counts from 0
    raise NoForm("a slice or a computed place of a list")


def _like(node: exp.Expr) -> exp.Expr:
    if isinstance(node.parent, exp.Escape):
        return node
    return exp.Escape(this=node.copy(), expression=exp.Literal.string(""))  # DuckDB's LIKE has no escape of itself


def _ilike(node: exp.Expr) -> exp.Expr:
    node.set("this", _spoken(node.this))
    return _like(node)


# What means the same to RE2 and to PostgreSQL: letters, classes, groups, alternatives, repeats, anchors, \d \w \s and escaped signs.
_PLAIN_PATTERN = re.compile(
    r"(?:[^\\(\[{?]|\\[dDwWsS.\\\-+*?(){}\[\]|^$/]|\((?:\?:)?|\[\^?\]?(?:[^\]\\\[]|\\[dws.\\\-+*?(){}\[\]|^$/])*\]|\{\d+(?:,\d*)?\}|(?<![*+?}(])\?)*\Z"
)


def _matches(node: exp.Expr) -> exp.Expr:
    pattern, flag = node.expression, node.args.get("flag")
    if not (isinstance(pattern, exp.Literal) and pattern.is_string and _PLAIN_PATTERN.match(pattern.name)):
        raise NoForm("a regular expression of more than classes, groups, repeats and anchors")
    if flag is not None and flag.name not in ("", "i", "c"):
        raise NoForm(f"the option '{flag.name}' of a regular expression")
    of = node.this
    told = pattern.name if not pattern.name.startswith("***") else f"(?:){pattern.name}"
    # a dot is anything but the end of a line, as RE2 has it
    told = _dots(told)
    return (exp.RegexpILike if flag is not None and flag.name == "i" else exp.RegexpLike)(
        this=of, expression=exp.Literal.string(told)
    )


def _dots(pattern: str) -> str:
    out, i, inside = [], 0, False
    while i < len(pattern):
        c = pattern[i]
        if c == "\\":
            out.append(pattern[i : i + 2])
            i += 2
            continue
        if c == "[" and not inside:
            inside = True
        elif c == "]" and inside and pattern[i - 1] not in "[" and pattern[i - 2 : i] != "[^":
            inside = False
        out.append("[^\n]" if c == "." and not inside else c)
        i += 1
    return "".join(out)


def _part(unit: str) -> Macro:
    return lambda node: _own("part", exp.Literal.string(unit), node.this)


_PARTS = {
    **{
        p: p
        for p in (
            "year",
            "month",
            "day",
            "hour",
            "minute",
            "second",
            "quarter",
            "week",
            "isodow",
            "doy",
            "decade",
            "century",
        )
    },
    **{
        "dayofweek": "dow",
        "weekday": "dow",
        "dow": "dow",
        "dayofmonth": "day",
        "dayofyear": "doy",
        "isoyear": "isoyear",
    },
}


def _extract(node: exp.Expr) -> exp.Expr:
    if isinstance(node, exp.Anonymous):
        unit, of = node.expressions[0], node.expressions[1]
    else:
        unit, of = node.this, node.expression
    if unit.name.lower() not in _PARTS:
        raise NoForm(f"the part '{unit.name.lower()}' of a time")
    return _own("part", exp.Literal.string(_PARTS[unit.name.lower()]), of)


def _trunc(node: exp.Expr) -> exp.Expr:
    unit = node.args["unit"].name.lower()
    if unit not in ("second", "minute", "hour", "day", "week", "month", "quarter", "year"):
        raise NoForm(f"date_trunc() to a {unit}")
    return _own("date_trunc", exp.Literal.string(unit), node.this)


def _from_epoch(node: exp.Expr) -> exp.Expr:
    scale = node.args.get("scale")
    power = 0 if scale is None else int(scale.name)
    if power == 0:
        return _builtin("to_timestamp", _double(node.this))
    us = (
        node.this
        if power == 6
        else exp.Mul(this=exp.paren(node.this), expression=exp.Literal.number(10 ** (6 - power)))
    )
    return _own("at_us", exp.cast(us, "BIGINT"))


def _from_epoch_tz(node: exp.Expr) -> exp.Expr:
    if len(node.expressions) != 1:
        raise NoForm("make_timestamptz() of parts")
    return exp.cast(_own("at_us", exp.cast(node.expressions[0], "BIGINT")), "TIMESTAMPTZ")


def _date_diff(node: exp.Expr) -> exp.Expr:
    unit = node.args["unit"].name.lower() if node.args.get("unit") is not None else "day"
    sizes = {
        "microsecond": 1,
        "millisecond": 10**3,
        "second": 10**6,
        "minute": 60 * 10**6,
        "hour": 3600 * 10**6,
        "day": 86400 * 10**6,
    }
    if unit not in sizes:
        raise NoForm(f"date_diff() in {unit}s")

    def place(of: exp.Expr) -> exp.Expr:
        us = exp.cast(_own("epoch_us", of), "DECIMAL")
        return _builtin("floor", exp.Div(this=us, expression=exp.Literal.number(sizes[unit]), typed=True, safe=False))

    return exp.cast(exp.paren(exp.Sub(this=place(node.this), expression=place(node.expression))), "BIGINT")


def _rounded(node: exp.Expr) -> exp.Expr:
    """Halves away from 0, which of a double PostgreSQL itself takes to the even number."""
    places = node.args.get("decimals")
    if places is None:
        return _own("round", node.this)
    if not (isinstance(places, exp.Literal) and not places.is_string):
        raise NoForm("round() to a computed or negative number of places")
    return _own("round", node.this, places)


def _contains(node: exp.Expr) -> exp.Expr:
    found = _builtin("strpos", node.this, node.expression)
    return exp.paren(exp.GT(this=found, expression=exp.Literal.number(0)))


def _ends_with(node: exp.Expr) -> exp.Expr:
    tail = _builtin("right", node.this, _builtin("length", node.expression.copy()))
    return exp.paren(exp.EQ(this=tail, expression=node.expression))


def _list_contains(node: exp.Expr) -> exp.Expr:
    listed, it = node.this, node.expression
    if isinstance(node, exp.Anonymous):
        listed, it = node.expressions
    among = exp.Coalesce(this=exp.EQ(this=it, expression=_builtin("any", listed)), expressions=[exp.false()])
    known = exp.and_(
        exp.Not(this=exp.Is(this=exp.paren(listed.copy()), expression=exp.null())),
        exp.Not(this=exp.Is(this=exp.paren(it.copy()), expression=exp.null())),
    )
    return exp.Case().when(known, among)


def _any_value(node: exp.Expr) -> exp.Expr:
    return _own("last_known", node.this)


def _ignore_nulls(node: exp.Expr) -> exp.Expr:
    if isinstance(node.this, exp.Dot):  # any_value, which has none
        return node.this
    raise NoForm("IGNORE NULLS")


def _concat(node: exp.Expr) -> exp.Expr:
    return exp.Concat(
        expressions=[_own("to_text", e) if not _is_constant(e) else e for e in node.expressions],
        safe=True,
        coalesce=True,
    )


def _trim(node: exp.Expr) -> exp.Expr:
    name = {"LEADING": "ltrim", "TRAILING": "rtrim"}.get(str(node.args.get("position") or "").upper(), "btrim")
    return _builtin(name, *(e for e in (node.this, node.expression) if e is not None))


def _group_concat(node: exp.Expr) -> exp.Expr:
    of = node.this
    ordered = of if isinstance(of, exp.Order) else None
    value = ordered.this if ordered is not None else of
    node.set(
        "this",
        exp.Order(this=_bytewise(exp.paren(value)), expressions=ordered.expressions) if ordered else _bytewise(value),
    )
    return node


def _shifted(node: exp.Expr) -> exp.Expr:
    node.set("expression", exp.cast(node.expression, "INT"))
    return node


def _json_text(node: exp.Expr) -> exp.Expr:
    keys: list[exp.Expr] = []
    for part in node.expression.expressions if isinstance(node.expression, exp.JSONPath) else []:
        if isinstance(part, exp.JSONPathRoot):
            continue
        if isinstance(part, exp.JSONPathKey) and isinstance(part.this, str) and part.this != "*":
            keys.append(exp.Literal.string(part.this))
        elif isinstance(part, exp.JSONPathSubscript) and str(part.this).isdigit():
            keys.append(exp.Literal.string(str(part.this)))
        else:
            raise NoForm("a path into JSON with a wildcard")
    if not keys:
        raise NoForm("a path into JSON that is not written out")
    text = isinstance(node, exp.JSONExtractScalar)
    found = _builtin("json_extract_path_text" if text else "json_extract_path", exp.cast(node.this, "JSON"), *keys)
    return _bytewise(found if text else exp.cast(found, "TEXT"))


def _positive(name: str) -> Macro:
    """A function of text and places, where both count from 1 and none is negative."""

    def macro(node: exp.Expr) -> exp.Expr:
        parts = [node.args.get(k) for k in ("this", "start", "length", "expression", "delimiter", "part_index")]
        given = [p for p in parts if p is not None]
        for p in given[1:]:
            if isinstance(p, exp.Neg):
                raise NoForm(f"{name}() with a negative place")
        return _builtin(name, *given)

    return macro


def _log(node: exp.Expr) -> exp.Expr:
    base, of = (node.this, node.expression) if node.expression is not None else (exp.Literal.number(10), node.this)
    if not isinstance(base, exp.Literal):
        raise NoForm("log() to a computed base")
    below = _own("ln", exp.Literal.number(base.name))
    return exp.paren(exp.Div(this=_own("ln", of), expression=below, typed=True, safe=False))


def _date(node: exp.Expr) -> exp.Expr:
    if node.this is None or node.expressions or node.args.get("zone") is not None:
        raise NoForm("date() of parts")
    return _own("to_date", node.this)


def _hash(node: exp.Expr) -> exp.Expr:
    """A number of 63 bits of an id as text: the server's own, for what is only grouped by it."""
    number = _builtin("hashtextextended", _bytewise(exp.paren(node.expressions[0])), exp.Literal.number(0))
    return exp.paren(exp.BitwiseAnd(this=number, expression=exp.Literal.number(2**63 - 1)))


def _fsum(node: exp.Expr) -> exp.Expr:
    return exp.Sum(this=_double(node.expressions[0]))


def _days(node: exp.Expr) -> exp.Expr:
    return _builtin(
        "bit_count",
        exp.cast(exp.cast(node.expressions[0], "BIGINT"), exp.DataType.build("BIT(64)", dialect="postgres")),
    )


_MACROS: Mapping[type[exp.Expr] | str, Macro] = {
    exp.Cast: _cast,
    exp.TryCast: _try_cast,
    exp.Case: _collated,
    exp.Div: _divide,
    exp.IntDiv: _renamed("intdiv"),
    exp.Mod: _renamed("modulo"),
    exp.Sum: _sum,
    exp.Avg: _of_doubles,
    exp.Variance: _of_doubles,
    exp.CovarSamp: _of_doubles,
    exp.CountIf: _count_if,
    exp.PercentileCont: _quantile,
    exp.ArgMax: _arg_best(True),
    exp.ArgMin: _arg_best(False),
    exp.Struct: lambda node: node,
    exp.StructExtract: _extract_field,
    exp.AnyValue: _any_value,
    exp.IgnoreNulls: _ignore_nulls,
    exp.ArrayFilter: _array_filter,
    exp.ArraySort: lambda node: _own("list_sort", node.this),
    exp.ArrayContains: _list_contains,
    exp.Explode: _unnest,
    exp.GenerateSeries: _series,
    exp.Bracket: _bracket,
    exp.Length: lambda node: _own("len", node.this),
    exp.Lower: lambda node: _bytewise(_builtin("lower", _spoken(node.this))),
    exp.Upper: lambda node: _bytewise(_builtin("upper", _spoken(node.this))),
    exp.Like: _like,
    exp.ILike: _ilike,
    exp.RegexpLike: _matches,
    exp.Contains: _contains,
    exp.StartsWith: lambda node: _builtin("starts_with", node.this, node.expression),
    exp.EndsWith: _ends_with,
    exp.Concat: _concat,
    exp.Round: _rounded,
    exp.Trim: _trim,
    exp.GroupConcat: _group_concat,
    exp.Substring: _positive("substr"),
    exp.Left: _positive("left"),
    exp.Right: _positive("right"),
    exp.SplitPart: _positive("split_part"),
    exp.BitwiseLeftShift: _shifted,
    exp.BitwiseRightShift: _shifted,
    exp.AtTimeZone: lambda node: _own("at_zone", node.this, node.args["zone"]),
    exp.UnixToTime: _from_epoch,
    exp.TimestampTrunc: _trunc,
    exp.DateTrunc: _trunc,
    exp.Extract: _extract,
    exp.Year: _part("year"),
    exp.Month: _part("month"),
    exp.Day: _part("day"),
    exp.DayOfMonth: _part("day"),
    exp.DayOfWeek: _part("dow"),
    exp.Week: _part("week"),
    exp.Hour: _part("hour"),
    exp.Minute: _part("minute"),
    exp.Second: _part("second"),
    exp.DateDiff: _date_diff,
    exp.TimeToUnix: lambda node: exp.Div(
        this=_double(_own("epoch_us", node.this)), expression=exp.Literal.number("1000000.0"), typed=True, safe=False
    ),
    exp.Exp: _renamed("exp"),
    exp.Sqrt: _renamed("sqrt"),
    exp.Ln: _renamed("ln"),
    exp.Log: _log,
    exp.Pow: lambda node: _builtin("power", _double(node.this), _double(node.expression)),
    exp.DateFromParts: lambda node: _builtin("make_date", *(node.args[k] for k in ("year", "month", "day"))),
    exp.Date: _date,
    exp.TsOrDsToDate: lambda node: _own("to_date", node.this),
    exp.IsInf: lambda node: exp.paren(
        exp.EQ(this=exp.Abs(this=_double(node.this)), expression=exp.cast(exp.Literal.string("Infinity"), _DOUBLE))
    ),
    exp.StrPosition: lambda node: _builtin("strpos", node.this, node.args["substr"]),
    "instr": lambda node: _builtin("strpos", *node.expressions),
    exp.JSONExtract: _json_text,
    exp.JSONExtractScalar: _json_text,
    exp.IsNan: lambda node: exp.paren(
        exp.EQ(this=_double(node.this), expression=exp.cast(exp.Literal.string("NaN"), _DOUBLE))
    ),
    "epoch_us": lambda node: _own("epoch_us", *node.expressions),
    "isfinite": lambda node: _own("is_finite", *node.expressions),
    "list_extract": _list_extract,
    "list_contains": _list_contains,
    "make_timestamptz": _from_epoch_tz,
    "date_part": _extract,
    "fsum": _fsum,
    "hash": _hash,
    "bit_count": _days,
    # made by passes and by the engine
    "as_text": lambda node: _bytewise(exp.cast(node.expressions[0], "TEXT")),
    "width_bucket": lambda node: node,
    "last_known": lambda node: _own("last_known", *node.expressions),
    "get_bit": lambda node: node,
}
_PLAIN: frozenset[type[exp.Expr]] = frozenset(
    {
        *(exp.Array, exp.ArrayAgg, exp.NullSafeEQ, exp.NullSafeNEQ, exp.DPipe, exp.Greatest, exp.Least, exp.LogicalOr),
        *(exp.LogicalAnd, exp.BitwiseAnd, exp.BitwiseOr, exp.BitwiseOrAgg, exp.LastValue, exp.FirstValue, exp.Qualify),
        *(exp.Floor, exp.Ceil, exp.Replace, exp.Chr, exp.MD5, exp.Interval, exp.Escape, exp.Collate, exp.Lambda),
        *(exp.PropertyEQ, exp.Lateral, exp.Values, exp.Sign, exp.DateAdd),
        *(exp.JSONPath, exp.JSONPathKey, exp.JSONPathRoot, exp.JSONPathSubscript),
    }
)


# ---------------------------------------------------------------- passes


def _by_place(tree: exp.Query) -> exp.Query:
    """UNION BY NAME, by place. What a branch has not is NULL there, of the type that another gives it."""
    for union in list(tree.find_all(exp.Union)):
        if not union.args.get("by_name") or isinstance(union.parent, exp.Union):
            continue
        branches: list[exp.Select] = []
        todo: list[exp.Expr] = [union]
        while todo:
            one = todo.pop().unnest()
            if isinstance(one, exp.Union) and one.args.get("by_name"):
                todo += [one.right, one.left]
                one.set("by_name", False)
            elif isinstance(one, exp.Select):
                branches.append(one)
            else:
                raise NoForm("UNION BY NAME of more than SELECTs")
        held = [{e.alias_or_name: e for e in b.expressions} for b in branches]
        names = list(dict.fromkeys(n for own in held for n in own))
        if "*" in names or "" in names:
            raise NoForm("UNION BY NAME of all columns")
        typed: dict[str, exp.Expr] = {}
        for b, own in zip(branches, held, strict=True):
            for n, e in own.items():
                empty = exp.select(e.unalias().copy()).from_(b.args["from_"].this.copy()).limit(0)
                typed.setdefault(n, exp.alias_(exp.Subquery(this=empty), n, quoted=True))
        for b, own in zip(branches, held, strict=True):
            b.set("expressions", [own[n] if n in own else typed[n].copy() for n in names])
    return tree


def _no_exclude(tree: exp.Query) -> exp.Query:
    """SELECT * EXCLUDE, written out: what is left of a step that names its columns."""
    tree = stars_written_out(tree, step_columns(tree), qualified=False)
    if any(star.args.get("except_") for star in tree.find_all(exp.Star)):
        raise NoForm("EXCLUDE of a table's columns")
    return tree


def _called(tree: exp.Query) -> exp.Query:
    """Every sub-query in FROM has a name, which PostgreSQL asks for before version 16."""
    for i, inner in enumerate(tree.find_all(exp.Subquery)):
        if isinstance(inner.parent, exp.From | exp.Join) and not inner.alias:
            inner.set("alias", exp.TableAlias(this=exp.to_identifier(f"these_{i}")))
    return tree


def _latest_before(tree: exp.Query) -> exp.Query:
    """ASOF joins: each key's times in one sorted array, in which a row finds its place by bisection (``width_bucket``).

    A nested loop would read all of a key's rows for each row; this stays n log n where one user has a million rows.
    """
    for select in tree.find_all(exp.Select):
        for join in list(select.args.get("joins") or []):
            if join.args.get("method") == "ASOF":
                _bisected(select, join)
    return tree


def _bisected(select: exp.Select, join: exp.Join) -> None:
    table = join.this
    name = table.alias_or_name
    order: exp.Expr | None = None
    equal: list[exp.EQ] = []
    for part in join.args["on"].flatten() if isinstance(join.args["on"], exp.And) else [join.args["on"]]:
        condition = part.unnest()
        if isinstance(condition, exp.EQ):
            equal.append(condition)
        else:
            order = condition
    if not isinstance(order, exp.GT | exp.GTE | exp.LT | exp.LTE) or not isinstance(table, exp.Table):
        raise NoForm("an ASOF JOIN of this kind")
    mine, theirs = order.this, order.expression
    kind: type[exp.Expr] = type(order)
    if isinstance(mine, exp.Column) and mine.table == name:
        swapped: dict[type[exp.Expr], type[exp.Expr]] = {
            exp.GT: exp.LT,
            exp.GTE: exp.LTE,
            exp.LT: exp.GT,
            exp.LTE: exp.GTE,
        }
        mine, theirs, kind = theirs, mine, swapped[kind]
    if not (isinstance(theirs, exp.Column) and theirs.table == name):
        raise NoForm("an ASOF JOIN of this kind")
    keys = [next(c for c in (e.this, e.expression) if isinstance(c, exp.Column) and c.table == name) for e in equal]
    places = [join.args["on"], *equal]
    used = {
        c.name
        for c in select.find_all(exp.Column)
        if c.table == name
        and not any(c.find_ancestor(type(p)) is p for p in places)
        and c.find_ancestor(exp.Select) is select
    } | {theirs.name}
    used -= {k.name for k in keys}

    # whole microseconds: of times before m there are as many as up to m - 1
    strict = kind in (exp.GT, exp.LTE)
    bound = exp.Sub(this=exp.paren(mine.copy()), expression=exp.Literal.number(1)) if strict else mine.copy()
    place: exp.Expr = _builtin("width_bucket", bound, theirs.copy())
    if kind in (exp.LT, exp.LTE):  # the first behind it
        place = exp.Add(this=place, expression=exp.Literal.number(1))

    def listed(column: str) -> exp.Expr:
        return exp.alias_(
            exp.ArrayAgg(
                this=exp.Order(this=exp.column(column), expressions=[exp.Ordered(this=exp.column(theirs.name))])
            ),
            column,
        )

    arrays = (
        exp.select(*(exp.column(k.name) for k in keys), *(listed(c) for c in sorted(used)))
        .from_(exp.table_(table.name))
        .where(exp.Not(this=exp.Is(this=exp.column(theirs.name), expression=exp.null())))
        .group_by(*(exp.column(k.name) for k in keys))
    )
    on: list[exp.Expr] = [e.copy() for e in equal]
    for c in list(select.find_all(exp.Column)):
        if (
            c.table == name
            and c.name in used
            and c.find_ancestor(exp.Join) is not join
            and c.find_ancestor(exp.Select) is select
        ):
            found = _builtin("list_extract", c.copy(), place.copy())
            c.replace(
                exp.alias_(found, c.name, quoted=True) if c.parent is select and c.arg_key == "expressions" else found
            )
    left = join.side == "LEFT"
    if not left:
        on.append(
            exp.Not(this=exp.Is(this=_builtin("list_extract", theirs.copy(), place.copy()), expression=exp.null()))
        )
    join.set("method", None)
    join.set("this", arrays.subquery(name))
    join.set("on", exp.and_(*on))


def _ahead(tree: exp.Query) -> exp.Query:
    """The next known value (LEAD ... IGNORE NULLS): seen from the other end it is the last one known."""
    for window in list(tree.find_all(exp.Window)):
        lead = window.this
        if not (isinstance(lead, exp.IgnoreNulls) and isinstance(lead.this, exp.Lead | exp.Lag)):
            if isinstance(lead, exp.Lead | exp.Lag) and isinstance(lead.this, exp.IgnoreNulls):
                value = lead.this.this
            else:
                continue
        else:
            lead = lead.this
            value = lead.this
        if lead.args.get("offset") is not None and lead.args["offset"].name != "1":
            raise NoForm("IGNORE NULLS at more than one row's distance")
        select = window.find_ancestor(exp.Select)
        assert select is not None
        spec: exp.Expr = window
        if window.alias or window.args.get("alias"):
            named = {w.name: w for w in select.args.get("windows") or []}
            spec = named[window.alias]
        ordered = [o.copy() for o in spec.args["order"].expressions]
        if isinstance(lead, exp.Lead):
            for o in ordered:
                o.set("nulls_first", not o.args.get("nulls_first"))
                o.set("desc", not o.args.get("desc"))
        window.replace(
            exp.Window(
                this=_builtin("last_known", value.copy()),
                partition_by=[p.copy() for p in spec.args.get("partition_by") or []],
                order=exp.Order(expressions=ordered),
                over="OVER",
                spec=exp.WindowSpec(
                    kind="ROWS",
                    start="UNBOUNDED",
                    start_side="PRECEDING",
                    end=exp.Literal.number(1),
                    end_side="PRECEDING",
                ),
            )
        )
    return tree


def _rows_of_structs(tree: exp.Query) -> exp.Query:
    """A list of structs unnested, one of which a row is: rows of VALUES beside each row; their parts are columns."""
    for explode in list(tree.find_all(exp.Explode)):
        listed, alias = explode.this, explode.parent
        if not isinstance(listed, exp.Array) or not listed.find(exp.Struct):
            continue
        select = explode.find_ancestor(exp.Select)
        outer = select.find_ancestor(exp.Select) if select is not None else None
        if not isinstance(alias, exp.Alias) or select is None or outer is None:
            raise NoForm("a list of structs")
        it, rows, names = alias.alias, [], []
        for case in listed.expressions:
            struct = case.find(exp.Struct)
            names = [p.this.name for p in struct.expressions]
            condition = case.args["ifs"][0].this
            rows.append(exp.Tuple(expressions=[condition.copy(), *(p.expression.copy() for p in struct.expressions)]))
        columns = [f"{it}_is", *(f"{it}_{n}" for n in names)]
        values = exp.Values(
            expressions=rows,
            alias=exp.TableAlias(this=exp.to_identifier(it), columns=[exp.to_identifier(c) for c in columns]),
        )
        select.append("joins", exp.Join(this=exp.Lateral(this=values), kind="CROSS"))
        select.set("expressions", [e for e in select.expressions if e is not alias] + [exp.column(c) for c in columns])
        for part in list(outer.find_all(exp.StructExtract)):
            if isinstance(part.this, exp.Column) and part.this.name == it:
                part.replace(exp.column(f"{it}_{part.expression.name}"))
        for test in list(outer.find_all(exp.Is)):
            if isinstance(test.this, exp.Column) and test.this.name == it and isinstance(test.parent, exp.Not):
                test.parent.replace(exp.column(f"{it}_is"))
    return tree


def _bits(tree: exp.Query) -> exp.Query:
    """Numbers of 128 bits are strings of bits here, and a shift is by an integer."""
    wide = exp.DType.UINT128
    for both in list(tree.find_all(exp.BitwiseAnd)):  # bit k of a mask
        shift = both.this.unnest()
        if isinstance(shift, exp.BitwiseRightShift) and _to(shift.expression) == wide and both.expression.name == "1":
            at = exp.Sub(this=exp.Literal.number(127), expression=exp.cast(shift.expression.this, "INT"))
            both.replace(_builtin("get_bit", shift.this, at))
    for shift in list(tree.find_all(exp.BitwiseLeftShift, exp.BitwiseRightShift)):
        by = shift.expression
        if _to(by) in _UNSIGNED:
            shift.set("expression", by.this)
        if _to(shift.this) == wide:
            one = exp.cast(shift.this.this, exp.DataType.build("BIT(128)", dialect="postgres"))
            shift.set("this", one)
    return tree


def _to(node: exp.Expr) -> exp.DType | None:
    return node.to.this if isinstance(node, exp.Cast) else None


def _word_columns(tree: exp.Query) -> exp.Query:
    """A column that is one word everywhere has the database's collation: give it ours."""
    for select in tree.find_all(exp.Select):
        for e in select.expressions:
            if isinstance(e, exp.Alias) and isinstance(e.this, exp.Literal) and e.this.is_string:
                e.set("this", exp.cast(e.this, "TEXT"))
    return tree


LONGEST = 63
"""Bytes of a name: PostgreSQL cuts longer ones off, and two could become one."""


def _name(name: str) -> str:
    if len(name.encode()) <= LONGEST:
        return name
    head = name.encode()[: LONGEST - 17].decode(errors="ignore")
    return f"{head}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _named(tree: exp.Query) -> exp.Query:
    """Every name quoted. One without quotes is in small letters, as PostgreSQL itself has it; none is too long."""
    for identifier in tree.find_all(exp.Identifier):
        name = identifier.name if identifier.args.get("quoted") else identifier.name.lower()
        identifier.set("this", _name(name))
        identifier.set("quoted", True)
    return tree


_PASSES: tuple[tuple[tuple[type[exp.Expr], ...], Pass], ...] = (
    ((exp.Group,), groups_by_place),
    ((exp.Union,), _by_place),
    ((exp.Star,), _no_exclude),
    ((exp.Subquery,), _called),
    ((exp.Join,), _latest_before),
    ((exp.IgnoreNulls,), _ahead),
    ((exp.Explode,), _rows_of_structs),
    ((exp.BitwiseLeftShift, exp.BitwiseRightShift), _bits),
    ((exp.Literal,), _word_columns),
)
"""What each rewrites: a statement without it is not searched through."""


def _rewritten(tree: exp.Query) -> exp.Query:
    present = {type(node) for node in tree.walk()}
    for kinds, whole in _PASSES:
        if not present.isdisjoint(kinds):
            tree = whole(tree)
    return tree


DIALECT = Dialect("postgres", "postgres", macros=_MACROS, passes=(_rewritten,), plain=_PLAIN, finish=(_named,))


# ---------------------------------------------------------------- the session

_TYPES = {
    "bool": "BOOLEAN",
    "int2": "SMALLINT",
    "int4": "INTEGER",
    "int8": "BIGINT",
    "float4": "FLOAT",
    "float8": "DOUBLE",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMP WITH TIME ZONE",
    "time": "TIME",
    "interval": "INTERVAL",
    "bytea": "BLOB",
}
_PINNED = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "client_min_messages": "warning",
    "search_path": "pg_catalog, pg_temp",  # only what is written out in full is the user's
    "jit": "off",  # it compiles for seconds what runs for less
    "default_transaction_read_only": "on",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "client_connection_check_interval": "5s",  # a statement ends when who asked is gone
}
_TUNED = {"work_mem": "128MB", "hash_mem_multiplier": "2", "temp_buffers": "64MB"}
"""Set where the URL does not (``?options=-c work_mem=1GB``)."""


class PostgresEngine(Engine):
    """A session of a PostgreSQL server (13 or later), which reads the tables of one database.

    Statements run in read-only transactions, but for those that make a temporary table. The role needs SELECT on what is read
    and TEMPORARY on the database. Raises ConnectionFailed where it cannot connect or may not make temporary tables, and
    MissingExtra without psycopg. Everything made goes with the session.
    """

    dialect = DIALECT

    def __init__(self, name: str, connection: PostgresConnection, root: Path, progress: Progress | None = None) -> None:
        self._label, self._progress = name, progress
        self._types: dict[int, str] = {}
        self._places: dict[tuple[str, ...], exp.Table] = {}
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtra("postgres", f"connection '{name}' (PostgreSQL)") from error
        self._psycopg = psycopg
        url = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", connection.url)
        try:
            given = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error:  # what it says repeats what may be a password
            raise ConnectionFailed(
                f"connection '{name}': its url is not of the form postgresql://user:password@host:5432/database"
            ) from None
        self._secret = str(given.get("password") or "")
        defaults: dict[str, Any] = {"connect_timeout": 10, "application_name": "payoff"}
        settings: dict[str, Any] = {**defaults, **given, "client_encoding": "UTF8"}
        try:
            self._session = psycopg.connect(**settings, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            raise ConnectionFailed(f"connection '{name}': {self._plain(error)}") from None
        try:
            self._open(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            self.close()
            raise self._not_allowed(error) from None
        except psycopg.errors.ReadOnlySqlTransaction as error:
            self.close()
            raise ConnectionFailed(
                f"connection '{name}': no temporary table can be made there, as the server is a read-only replica or the"
                f" database read-only ({self._plain(error)}); connect to one that allows temporary tables"
            ) from None
        except psycopg.Error as error:
            self.close()
            raise ConnectionFailed(f"connection '{name}': {self._plain(error)}") from None
        except BaseException:
            self.close()
            raise

    def _open(self, connection: PostgresConnection) -> None:
        session = self._session
        encoding = session.execute("SHOW server_encoding").fetchone()
        number = session.info.server_version
        self.version = ".".join(str(part) for part in (number // 10_000, number % 10_000))
        if number < 130_000:
            raise ConnectionFailed(
                f"connection '{self._label}': PostgreSQL {self.version} is too old; 13 is the oldest read"
            )
        if encoding is None or encoding[0] != "UTF8":
            raise ConnectionFailed(
                f"connection '{self._label}': the database's encoding is {encoding and encoding[0]}, and only UTF8 is read"
            )
        row = session.execute("SELECT current_schemas(false)").fetchone()
        assert row is not None
        self._schemas = [connection.db_schema] if connection.db_schema else list(row[0]) or ["public"]
        known = dict(session.execute("SELECT name, source FROM pg_settings").fetchall())
        options = {k: v for k, v in _PINNED.items() if k in known}
        options |= {k: v for k, v in _TUNED.items() if k in known and known[k] != "client"}
        for option, value in options.items():
            session.execute("SELECT set_config(%s, %s, false)", (option, value))
        with self._writing():
            session.execute(_made_at_start().encode())
        self._session.adapters.register_loader("numeric", _number_loader())

    def close(self) -> None:
        self._session.close()  # temporary tables and functions go with it

    # ---------------------------------------------------------------- running

    def _select(self, text: str, what: str, source: str | None) -> pa.Table:
        cursor = self._run(text, what, source)
        try:
            rows = cursor.fetchall()
        except self._psycopg.Error as error:
            raise self._translated(error, what, source) from None
        described = cursor.description or []
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(described)
        arrays = [self._array(c.type_code, values, what) for c, values in zip(described, columns, strict=True)]
        return pa.Table.from_arrays(arrays, names=[c.name for c in described])

    def fetch(self, query: Query, what: str, source: str | None = None) -> pa.Table:
        """Run a SELECT. Columns have the names that it gives them, however they had to be written."""
        found = super().fetch(query, what, source)
        told = column_names(query.tree)
        if "*" in told or len(told) != found.num_columns:
            return found
        return found.rename_columns([t or c for t, c in zip(told, found.column_names, strict=True)])

    def _create(self, table: str, query: Query, what: str, source: str | None) -> None:
        name = _quoted(table)
        text = self.text(query, what)
        with self._writing():  # not INSERT ... SELECT, which reads without parallel workers
            self._run(f"CREATE TEMPORARY TABLE {name} AS {text}", what, source)
            self._run(f"ANALYZE pg_temp.{name}", what, source)

    def _insert(self, table: str, query: Query, what: str, source: str | None) -> None:
        self._run(f"INSERT INTO pg_temp.{_quoted(table)} {self.text(query, what)}", what, source)

    def drop(self, table: str) -> None:
        with self._writing():
            self._run(f"DROP TABLE IF EXISTS pg_temp.{_quoted(table)}", f"drop {table}", None)

    def types(self, query: Query, source: str | None = None) -> dict[str, str]:
        text, what = self.text(query, "look at columns"), "look at columns"
        raw = self._session.pgconn
        for result in (raw.prepare(b"", text.encode()), raw.describe_prepared(b"")):
            if result.status != self._psycopg.pq.ExecStatus.COMMAND_OK:
                raise self._translated(self._psycopg.errors.error_from_result(result), what, source)
        told = [t if t != "*" else "" for t in column_names(query.tree)]
        out: dict[str, str] = {}
        for i in range(result.nfields):
            own = (result.fname(i) or b"").decode()
            name = told[i] if len(told) == result.nfields and told[i] else own
            out[name] = self._type(result.ftype(i), result.fmod(i))
        return out

    def _type(self, oid: int, modifier: int) -> str:
        """A type's name in DuckDB's words. What DuckDB has no like of is told, and read, as text."""
        if oid == 1700:
            if modifier < 4:  # any number of digits: read as it is, so that none is lost
                return "DECIMAL(38,10)"
            precision, scale = (modifier - 4) >> 16, (modifier - 4) & 0x7FF
            return f"DECIMAL({precision},{scale if scale < 1024 else 0})"
        if oid not in self._types:
            found = self._run(
                "SELECT t.typname, e.oid FROM pg_type AS t LEFT JOIN pg_type AS e ON t.typelem = e.oid AND t.typlen = -1"
                f" AND t.typcategory = 'A' WHERE t.oid = {int(oid)}",
                "look at types",
                None,
            ).fetchone()
            assert found is not None
            self._types[oid] = f"{self._type(found[1], -1)}[]" if found[1] else _TYPES.get(found[0], "VARCHAR")
        return self._types[oid]

    def place(self, connection: str, parts: Sequence[str]) -> exp.Table:
        """The table as it is spelt there; where none is, one that differs by capitals alone."""
        key = tuple(parts)
        if key not in self._places:
            schemas = [parts[0]] if len(parts) == 2 else self._schemas
            rows = self._session.execute(
                "SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
                " WHERE c.relkind IN ('r', 'v', 'm', 'f', 'p') AND lower(c.relname::text) = lower(%s::text)"
                " AND lower(n.nspname::text) = ANY(SELECT lower(s) FROM unnest(%s::text[]) AS s)",
                (parts[-1], schemas),
            ).fetchall()
            order = [s.lower() for s in schemas]
            rows.sort(key=lambda r: (order.index(r[0].lower()), r[1] != parts[-1], r[1]))
            schema, table = rows[0] if rows else (schemas[0], parts[-1])
            self._places[key] = exp.Table(
                this=exp.to_identifier(table, quoted=True), db=exp.to_identifier(schema, quoted=True)
            )
        return self._places[key].copy()

    def settled(self, select: exp.Query, columns: Mapping[str, str]) -> exp.Query:
        """Text by its bytes, and what is told as text (an enum, a uuid, JSON) as text."""
        names = [exp.column(exp.to_identifier(name, quoted=True)) for name in columns]
        read = [
            exp.alias_(_builtin("as_text", c), name, quoted=True) if kind == "VARCHAR" else c
            for c, (name, kind) in zip(names, columns.items(), strict=True)
        ]
        return exp.select(*read).from_(select.copy().subquery("settled"))

    # ---------------------------------------------------------------- what can go wrong

    def _run(self, text: str, what: str, source: str | None) -> psycopg.Cursor[Any]:
        """Run it; Ctrl-C ends the statement on the server and is raised."""
        self.tell(what, source, None)
        try:
            return self._session.execute(text.encode())
        except self._psycopg.Error as error:
            raise self._translated(error, what, source) from None
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        """End what runs, so that the session can be used: psycopg does not where Ctrl-C came outside of its wait."""
        raw, active = self._session.pgconn, self._psycopg.pq.TransactionStatus.ACTIVE
        try:
            if raw.transaction_status == active:
                self._session.cancel_safe(timeout=5)
                while raw.get_result() is not None:
                    pass
        except self._psycopg.Error:
            self._session.close()

    def _writing(self) -> _Writing:
        return _Writing(self._session)

    def _array(self, oid: int, values: Sequence[Any], what: str) -> pa.Array:
        kind = self._type(oid, -1)
        try:
            return pa.array(values, _arrow(kind, values))
        except (pa.ArrowInvalid, OverflowError) as error:
            raise DataError(f"{what}: a value that came back is no {kind} ({error})") from error

    def _plain(self, error: BaseException) -> str:
        """What the server said, without a password."""
        found = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
        hint = getattr(getattr(error, "diag", None), "message_hint", None)
        text = " ".join(f"{found}. {hint}".split() if hint and "explicit type casts" not in hint else found.split())
        return text.replace(self._secret, "***") if len(self._secret) > 2 else text

    def _not_allowed(self, error: BaseException) -> ConnectionFailed:
        return ConnectionFailed(
            f"connection '{self._label}': {self._plain(error)}; intermediate results are temporary tables of the session:"
            " GRANT TEMPORARY ON DATABASE its_name TO the role"
        )

    def _translated(self, error: psycopg.Error, what: str, source: str | None) -> DataError | ConnectionFailed:
        reason, code = self._plain(error), getattr(error, "sqlstate", None) or ""
        if self._session.closed or code.startswith(("08", "57P")):
            return ConnectionFailed(
                f"{what}: the server of connection '{self._label}' ended the session ({reason}); run it again"
            )
        if code in ("53100", "53400"):
            return ConnectionFailed(
                f"{what}: the server has no room for temporary tables or sorting ({reason}); make room there, raise"
                " temp_file_limit, or read a shorter window"
            )
        if code in ("53200", "53300"):
            return ConnectionFailed(
                f"{what}: the server is out of memory or of connections ({reason}); try again later"
            )
        if code == "42501":
            if "temporary" in reason:
                return self._not_allowed(error)
            return DataError(
                f"{what}: {reason}; GRANT SELECT on it (and USAGE on its schema) to the role", source=source
            )
        if code in ("57014", "55P03", "40P01", "40001"):
            return ConnectionFailed(f"{what}: the server stopped the statement ({reason}); run it again")
        return DataError(f"{what}: {reason}", source=source)


class _Writing:
    """A transaction that may write, which here means: make and drop what is temporary. Ended by Ctrl-C it leaves nothing."""

    def __init__(self, session: psycopg.Connection[Any]) -> None:
        self._session = session

    def __enter__(self) -> None:
        self._session.execute("BEGIN READ WRITE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._session.closed:
            self._session.execute("COMMIT" if kind is None else "ROLLBACK")


def _quoted(table: str) -> str:
    text: str = exp.to_identifier(_name(table.lower()), quoted=True).sql("postgres")
    return text


def _number_loader() -> Any:
    """numeric as an int where it has no fraction (a sum of integers), else as a float."""
    from psycopg.adapt import Loader

    class Number(Loader):
        def load(self, data: Any) -> int | float:
            text = bytes(data)
            return int(text) if text.lstrip(b"-").isdigit() else float(text)

    return Number


_ARROW: dict[str, Callable[[], pa.DataType]] = {
    "BOOLEAN": pa.bool_,
    "SMALLINT": pa.int64,
    "INTEGER": pa.int64,
    "BIGINT": pa.int64,
    "FLOAT": pa.float64,
    "DOUBLE": pa.float64,
    "VARCHAR": pa.string,
    "DATE": pa.date32,
    "TIMESTAMP": lambda: pa.timestamp("us"),
    "TIMESTAMP WITH TIME ZONE": lambda: pa.timestamp("us", tz="UTC"),
}


def _arrow(kind: str, values: Sequence[Any]) -> pa.DataType:
    if kind.endswith("[]"):
        inner = [v for row in values if row is not None for v in row]
        return pa.list_(_arrow(kind[:-2], inner))
    if kind.startswith("DECIMAL"):
        if any(isinstance(v, float) for v in values):
            return pa.float64()
        small = all(v is None or -(2**63) <= v < 2**63 for v in values)
        return pa.int64() if small else pa.decimal128(38, 0)
    if kind not in _ARROW:
        raise DataError(f"a column of type {kind} cannot be fetched")
    return _ARROW[kind]()

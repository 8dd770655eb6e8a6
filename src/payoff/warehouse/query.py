"""SQL written as SQL (DuckDB dialect), parsed once, bound as syntax trees. User expressions pass an allow-list here.

Nothing in Payoff joins SQL as text: a placeholder ``$name`` in a template becomes a literal, an expression or a list of
expressions, and a table named like a part becomes a common table expression that an analyst can read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property, lru_cache
from typing import cast

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from payoff.errors import did_you_mean

Bound = exp.Expr | str | int | float | bool | datetime | date | None


class ExpressionError(ValueError):
    """A user's SQL expression is not one: bad syntax, not on the allow-list, or an unknown column. ``code`` names which."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True)
class Query:
    """A bound SELECT, in DuckDB's dialect until an engine has translated it. Its tree is not changed any more."""

    tree: exp.Query
    dialect: str = "duckdb"

    def render(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        return self.tree.sql(dialect=self.dialect, pretty=True)


@lru_cache(maxsize=4096)
def _parse(template: str) -> exp.Query:
    tree = sqlglot.parse_one(template, read="duckdb")
    assert isinstance(tree, exp.Query), template
    for node in tree.walk():
        if node.meta.keys() <= {"line", "col", "start", "end"}:
            node._meta = None  # places in a template tell nothing, and are most of what a copy of it would cost
    return tree


def sql(template: str, **parts: Bound | Query | Sequence[exp.Expr]) -> Query:
    """Bind ``parts`` into ``template``: Query -> CTE of the same name (for the other parts too), list -> several expressions, else
    one node.

    Raises KeyError for a placeholder without a part, and for a part that the template does not use.
    """
    tree = _parse(template).copy()
    used: set[str] = set()
    for node in list(tree.find_all(exp.Placeholder)):
        part = parts[node.name]
        used.add(node.name)
        if isinstance(part, Query):
            raise TypeError(f"${node.name} is a query; name it as a table")
        if isinstance(part, list | tuple):
            holder, key = node.parent, node.arg_key
            siblings = holder.args[key] if holder is not None and key is not None else None
            if not isinstance(siblings, list) or holder is None or key is None:
                raise TypeError(f"${node.name} is a list where one expression is expected")
            at = next(i for i, sibling in enumerate(siblings) if sibling is node)
            holder.set(key, [*siblings[:at], *(p.copy() for p in part), *siblings[at + 1 :]])
        else:
            node.replace(literal(cast(Bound, part)))
    steps: dict[str, exp.Query] = {}

    def place(query: exp.Query) -> None:
        """The parts that a query names, those that they name first."""
        for name in dict.fromkeys(table.name for table in query.find_all(exp.Table) if not table.db):
            part = parts.get(name)
            if isinstance(part, Query) and name not in used:
                used.add(name)
                body = part.tree.copy()
                place(body)
                for inner in body.ctes:  # one flat list of steps reads better than nested WITHs
                    steps.setdefault(inner.alias, inner.this)
                body.set("with_", None)
                steps[name] = body

    place(tree)
    for name, body in steps.items():
        tree = tree.with_(name, as_=body, copy=False)
    if unused := set(parts) - used:
        raise KeyError(f"parts not used by the template: {', '.join(sorted(unused))}")
    return Query(tree)


def keeping(table: str, query: Query) -> str:
    """The text of a statement whose rows stay in a temporary table."""
    return exp.Create(
        this=exp.to_table(table),
        kind="TABLE",
        expression=query.tree.copy(),
        properties=exp.Properties(expressions=[exp.TemporaryProperty()]),
    ).sql(dialect=query.dialect, pretty=True)


def parsed_query(text: str) -> tuple[Query, str | None]:
    """A statement of ours from its rendered text, and the table that it keeps its rows in."""
    tree = sqlglot.parse_one(text, read="duckdb")
    if isinstance(tree, exp.Create):
        return Query(cast(exp.Query, tree.expression)), tree.this.name
    assert isinstance(tree, exp.Query), text
    return Query(tree), None


def literal(value: Bound) -> exp.Expr:
    if isinstance(value, exp.Expr):
        return value.copy()
    if isinstance(value, datetime):
        kind = "TIMESTAMPTZ" if value.tzinfo else "TIMESTAMP"
        return exp.cast(exp.Literal.string(value.isoformat(sep=" ")), kind)
    return exp.convert(value)


def column(name: str, table: str | None = None) -> exp.Column:
    return exp.column(exp.to_identifier(name, quoted=True), table=table)


def fragment(text: str, **parts: Bound) -> exp.Expr:
    """A piece of our own SQL, bound like ``sql``. Never for a user's text: that is ``scalar``."""
    select = sql(f"SELECT {text} AS it", **parts).tree
    return cast(exp.Expr, select.expressions[0].this)


def bucket(text: exp.Expr, count: int) -> exp.Expr:
    """The bucket, 0 to ``count`` - 1, of an id as text: the same on every engine, whatever hash is its own.

    The first 15 hexadecimal digits of its MD5, as a whole number, modulo ``count``.
    """
    return fragment("CAST('0x' || substring(md5($id), 1, 15) AS BIGINT) % $count", id=text, count=count)


def conjunction(*conditions: exp.Expr | None) -> exp.Expr:
    present = [exp.paren(c.copy()) for c in conditions if c is not None]
    return exp.and_(*present) if present else exp.true()


# ---------------------------------------------------------------- users' expressions

# Row-wise and deterministic only: no sub-query, aggregate, window, table function, file, setting, clock or dice.
_STRUCTURE = (
    exp.Column,
    exp.Identifier,
    exp.Literal,
    exp.Boolean,
    exp.Null,
    exp.Paren,
    exp.Case,
    exp.If,
    exp.In,
    exp.Between,
    exp.Cast,
    exp.TryCast,
    exp.DataType,
    exp.DataTypeParam,
    exp.Interval,
    exp.Var,
    exp.Tuple,
    exp.Array,
    exp.Bracket,
    exp.Slice,
    exp.Dot,
    exp.Not,
    exp.Neg,
    exp.And,
    exp.Or,
    exp.EQ,
    exp.NEQ,
    exp.GT,
    exp.GTE,
    exp.LT,
    exp.LTE,
    exp.Is,
    exp.NullSafeEQ,
    exp.NullSafeNEQ,
    exp.Add,
    exp.Sub,
    exp.Mul,
    exp.Div,
    exp.IntDiv,
    exp.BitwiseAnd,
    exp.BitwiseOr,
    exp.Mod,
    exp.Like,
    exp.ILike,
    exp.Escape,
    exp.DPipe,
    exp.Concat,
    exp.JSONExtract,
    exp.JSONExtractScalar,
    exp.JSONPath,
    exp.JSONPathKey,
    exp.JSONPathRoot,
    exp.JSONPathSubscript,
)
_FUNCTIONS = (
    exp.Abs,
    exp.Ceil,
    exp.Floor,
    exp.Round,
    exp.Greatest,
    exp.Least,
    exp.Coalesce,
    exp.Nullif,
    exp.Lower,
    exp.Upper,
    exp.Trim,
    exp.Length,
    exp.Substring,
    exp.Left,
    exp.Right,
    exp.Replace,
    exp.StartsWith,
    exp.EndsWith,
    exp.Contains,
    exp.SplitPart,
    exp.RegexpLike,
    exp.RegexpExtract,
    exp.RegexpReplace,
    exp.TimestampTrunc,
    exp.DateTrunc,
    exp.Extract,
    exp.Year,
    exp.Month,
    exp.Day,
    exp.DayOfWeek,
    exp.Week,
    exp.Hour,
    exp.Minute,
    exp.Second,
    exp.TsOrDsToDate,
    exp.Date,
    exp.DateAdd,
    exp.DateDiff,
    exp.StrToTime,
    exp.TimeToStr,
    exp.TimeToUnix,
    exp.UnixToTime,
    exp.Exp,
    exp.Ln,
    exp.Log,
    exp.Pow,
    exp.Sqrt,
    exp.Sign,
    exp.IsNan,
    exp.IsInf,
    exp.ArrayContains,
    exp.AtTimeZone,
)
_BY_NAME = {
    "to_timestamp",
    "epoch",
    "epoch_ms",
    "epoch_us",
    "make_timestamp",
    "make_date",
    "try_strptime",
    "date_part",
    "isfinite",
    "list_contains",
    "array_length",
    "len",
    "instr",
    "strip_accents",
    "log10",
    "log2",
    "day",
    "dayofweek",
    "hour",
    "minute",
    "second",
}


def _statements(text: str, wanted: str) -> list[exp.Expr]:
    """A user's text, parsed. Raises ExpressionError (bad-sql) saying that it is not ``wanted``."""
    try:
        return [s for s in sqlglot.parse(text, read="duckdb") if s is not None]
    except SqlglotError as error:
        raise ExpressionError("bad-sql", f"'{_short(text)}' is not {wanted}: {_reason(error)}") from None
    except RecursionError:
        raise ExpressionError("bad-sql", f"'{_short(text)}' is nested too deeply") from None


@lru_cache(maxsize=4096)
def _checked(text: str) -> exp.Expr:
    statements = _statements(text, "a SQL expression")
    if len(statements) != 1 or not isinstance(statements[0], exp.Expr):
        raise ExpressionError("bad-sql", f"'{_short(text)}' is not one SQL expression")
    tree = statements[0]
    for node in tree.walk():
        if isinstance(node, _STRUCTURE + _FUNCTIONS):
            continue
        if isinstance(node, exp.Anonymous) and node.name.lower() in _BY_NAME:
            continue
        if isinstance(node, exp.Func):
            what = f"{node.name if isinstance(node, exp.Anonymous) else node.sql_name()}()".lower()
        else:
            what = type(node).__name__.lower()
        if isinstance(node, exp.AggFunc):
            what += " (an aggregate: the metric's kind aggregates)"
        raise ExpressionError(
            "sql-not-allowed", f"'{_short(text)}' uses {what}, which an expression in a definition may not use"
        )
    for node in tree.walk():
        node.comments = None
    return tree


def parsed(text: str) -> exp.Expr:
    """A user's expression by its form alone, its columns not resolved. Raises ExpressionError (bad-sql, sql-not-allowed)."""
    tree = _checked(text)
    while isinstance(tree, exp.Paren):
        tree = tree.this
    return tree.copy()


def _reason(error: SqlglotError) -> str:
    found: list[dict[str, str]] = getattr(error, "errors", [])
    said = found[0]["description"] if found else str(error).split("\n")[0]
    return "it cannot be parsed" if "sqlglot" in said else said  # its own class names help nobody


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 80 else flat[:77] + "..."


def scalar(text: str, columns: Mapping[str, str], source: str) -> exp.Expr:
    """A user's expression over the columns of one source, checked and with its columns resolved.

    ``columns`` maps each column to its type. Raises ExpressionError (bad-sql, sql-not-allowed, unknown-column).
    """
    tree = _checked(text).copy()
    known = {name.lower(): name for name in columns}

    def resolve(node: exp.Expr) -> exp.Expr:
        if not isinstance(node, exp.Column):
            return node
        path = [part.name for part in node.parts]
        if path[0].lower() not in known:
            raise ExpressionError(
                "unknown-column", f"source '{source}' has no column '{path[0]}'{did_you_mean(path[0], columns)}"
            )
        out: exp.Expr = column(known[path[0].lower()])
        for part in path[1:]:  # a field of a struct column
            out = exp.Dot(this=out, expression=exp.to_identifier(part, quoted=True))
        return out

    return tree.transform(resolve)


def select_only(text: str) -> exp.Query:
    """The read-only SELECT of a ``sql:`` source. Raises ExpressionError for anything else."""
    statements = _statements(text, "a SELECT")
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        raise ExpressionError("sql-not-allowed", "a sql: source is exactly one SELECT")
    tree = statements[0]
    ctes = {cte.alias_or_name for cte in tree.find_all(exp.CTE)}
    for node in tree.walk():
        if isinstance(node, exp.DML | exp.DDL | exp.Command | exp.Placeholder | exp.Into) and not isinstance(
            node, exp.Query
        ):
            raise ExpressionError("sql-not-allowed", f"a sql: source may not use {type(node).__name__.upper()}")
        if isinstance(node, exp.Table) and not isinstance(node.this, exp.Identifier):
            raise ExpressionError(
                "sql-not-allowed", f"a sql: source reads tables, not the function {_short(node.this.sql('duckdb'))}"
            )
        if isinstance(node, exp.Table) and node.name not in ctes and any(c in node.name for c in "./\\*"):
            raise ExpressionError("sql-not-allowed", f"a sql: source reads tables, not the file '{_short(node.name)}'")
        if isinstance(node, exp.Rand | exp.CurrentDate | exp.CurrentTimestamp) or (
            isinstance(node, exp.Anonymous) and node.name.lower() in _FORBIDDEN
        ):
            raise ExpressionError("sql-not-allowed", f"a sql: source may not use {_short(node.sql('duckdb'))}")
    return tree


_FORBIDDEN = {
    "now",
    "random",
    "uuid",
    "gen_random_uuid",
    "getenv",
    "current_setting",
    "setseed",
    "today",
    "getvariable",
}

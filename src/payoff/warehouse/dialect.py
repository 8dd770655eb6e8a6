"""From our SQL (DuckDB's dialect) to another engine's: tree to tree, by a table of what may be in it.

Writing one dialect's tree in another's words leaves a function that is not known there as it stands, and changes meanings
without a word. So nothing passes here that the target's table does not name: a node is either ``COMMON`` (it means the same
everywhere, or sqlglot is known to write it right), or has a macro, or is refused by name before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlglot import exp
from sqlglot.errors import ErrorLevel, SqlglotError

from payoff.errors import DataError

Macro = Callable[[exp.Expr], exp.Expr]
"""A node whose arguments are translated already, to the node that stands for it. It may raise ``NoForm`` with the reason."""
Pass = Callable[[exp.Query], exp.Query]
"""A whole statement rewritten, before macros see it; may change its argument."""


class NoForm(Exception):
    """A construct has no equal form in the target; the argument says which or why."""


class CannotRun(DataError):
    """An engine has no equal form of something in a statement. Nothing of the statement was sent."""

    def __init__(self, engine: str, step: str, construct: str) -> None:
        self.engine, self.step, self.construct = engine, step, construct
        super().__init__(
            f"{engine} cannot run '{step}': it has no equal form of {construct}; read this from a duckdb connection"
        )


COMMON: frozenset[type[exp.Expr]] = frozenset(
    {
        # structure
        *(exp.Select, exp.From, exp.Join, exp.Where, exp.Group, exp.GroupingSets, exp.Having, exp.Order, exp.Ordered),
        *(exp.With, exp.CTE, exp.Union, exp.Except, exp.Intersect, exp.Subquery, exp.Table, exp.TableAlias, exp.Limit),
        *(exp.Alias, exp.Column, exp.Identifier, exp.Star, exp.Distinct, exp.Tuple, exp.Paren, exp.Var),
        *(exp.Window, exp.WindowSpec, exp.Filter, exp.Placeholder),
        # values
        *(exp.Literal, exp.Boolean, exp.Null, exp.DataType, exp.DataTypeParam, exp.Cast),
        # logic, comparison, arithmetic
        *(exp.And, exp.Or, exp.Not, exp.Is, exp.In, exp.Between, exp.Case, exp.If, exp.Exists),
        *(exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Add, exp.Sub, exp.Mul, exp.Neg),
        # functions
        *(exp.Coalesce, exp.Nullif, exp.Abs, exp.Lower, exp.Upper),
        *(exp.Count, exp.Sum, exp.Min, exp.Max, exp.Avg, exp.RowNumber, exp.Lag, exp.Lead),
    }
)
"""What means the same on every engine. To add to it is to claim so: the conformance suite must show it."""


def _nothing() -> Mapping[type[exp.Expr] | str, Macro]:
    return {}


@dataclass(frozen=True)
class Dialect:
    """How statements are written for one engine. ``name`` is what users call it, ``writer`` what sqlglot does.

    ``macros`` are by class of node, or (a function that sqlglot has no class for) by its name in lower case. ``passes`` go
    over a whole statement first. ``plain`` are the nodes beside COMMON that sqlglot writes right for this engine.
    ``finish`` goes over what macros made. A native dialect is written as it stands.
    """

    name: str
    writer: str
    macros: Mapping[type[exp.Expr] | str, Macro] = field(default_factory=_nothing)
    passes: tuple[Pass, ...] = ()
    plain: frozenset[type[exp.Expr]] = frozenset()
    finish: tuple[Pass, ...] = ()
    native: bool = False

    def translate(self, tree: exp.Query, step: str = "a statement") -> exp.Query:
        """The same statement for this engine. Raises CannotRun, naming the step and what has no form."""
        if self.native:
            return tree
        try:
            out = tree.copy()
            for whole in self.passes:
                out = whole(out)
            for node in reversed(list(out.bfs())):  # arguments before what they are arguments of
                new = self._node(node)
                if new is not node:
                    if node is out:
                        assert isinstance(new, exp.Query)
                        out = new
                    else:
                        node.replace(new)
            for whole in self.finish:
                out = whole(out)
        except NoForm as error:
            raise CannotRun(self.name, step, str(error)) from None
        return out

    def _node(self, node: exp.Expr) -> exp.Expr:
        macro = self.macros.get(node.name.lower() if isinstance(node, exp.Anonymous) else type(node))
        if macro is not None:
            return macro(node)
        if type(node) in COMMON or type(node) in self.plain:
            return node
        raise NoForm(_called(node))

    def text(self, tree: exp.Query, step: str = "a statement") -> str:
        """The statement's text. Raises CannotRun."""
        return self.write(self.translate(tree, step), step)

    def write(self, tree: exp.Query, step: str = "a statement") -> str:
        """The text of a statement that is translated already. Raises CannotRun."""
        level = ErrorLevel.IGNORE if self.native else ErrorLevel.RAISE
        try:
            return tree.sql(dialect=self.writer, pretty=True, unsupported_level=level)
        except SqlglotError as error:
            raise CannotRun(self.name, step, str(error).split("\n")[0]) from None


# ---------------------------------------------------------------- passes that several engines need


def groups_by_place(tree: exp.Query) -> exp.Query:
    """GROUP BY ALL, by the places of what is no aggregate."""
    for select in tree.find_all(exp.Select):
        group = select.args.get("group")
        if group is not None and group.args.get("all"):
            places = [
                exp.Literal.number(place)
                for place, e in enumerate(select.expressions, 1)
                if not any(isinstance(n, exp.AggFunc) and not isinstance(n.parent, exp.Window) for n in e.walk())
            ]
            select.set("group", exp.Group(expressions=places) if places else None)
    return tree


def column_names(query: exp.Expr) -> list[str]:
    """The names of a query's columns; "*" and "" where it does not say them."""
    while isinstance(query, exp.SetOperation | exp.Subquery):
        query = query.this
    return [e.alias_or_name if not e.is_star else "*" for e in query.expressions]


def step_columns(tree: exp.Query) -> Callable[[str], list[str] | None]:
    """Name of a step (a CTE) of a statement -> its columns, None where it does not name them all."""
    steps = {cte.alias: cte.this for cte in tree.find_all(exp.CTE)}

    def of(name: str) -> list[str] | None:
        names = column_names(steps[name]) if name in steps else ["*"]
        return None if "*" in names or "" in names else names

    return of


def stars_written_out(
    tree: exp.Query, columns: Callable[[str], Sequence[str] | None], qualified: bool = True
) -> exp.Query:
    """``* EXCLUDE`` of a table whose ``columns`` are known, by those that are left; others stay as they are."""
    for select in tree.find_all(exp.Select):
        out: list[exp.Expr] = []
        for e in select.expressions:
            star = e.this if isinstance(e, exp.Column) else e
            read = select.args["from_"].this if isinstance(star, exp.Star) and star.args.get("except_") else None
            names = columns(read.name) if isinstance(read, exp.Table) else None
            if read is None or names is None:
                out.append(e)
                continue
            gone = {c.name.lower() for c in star.args["except_"]}
            table = read.alias_or_name if qualified else None
            out += [exp.column(exp.to_identifier(n, quoted=True), table=table) for n in names if n.lower() not in gone]
        select.set("expressions", out)
    return tree


def _called(node: exp.Expr) -> str:
    if isinstance(node, exp.Anonymous):
        return f"{node.name.lower()}()"
    if isinstance(node, exp.Func):
        return f"{node.sql_name().lower()}()"
    return type(node).__name__.lower()

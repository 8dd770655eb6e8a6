"""The amount of a claim: a small arithmetic over measured effects, attributed credit, money values, volumes and populations.

    effect(aht) * value(agent_second) * volume(conversations, 365d)

``parse`` turns the text into a frozen tree; ``Amount.evaluate`` computes it for numbers or for arrays of draws. The five
functions, numbers, ``+ - * /``, parentheses and a leading minus are the whole language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from payoff.errors import UsageError, did_you_mean

FloatArray = NDArray[np.float64]
Operator = Literal["+", "-", "*", "/"]

_MAX_PARTS = 200  # names, numbers and operators; bounds the depth of the tree, and so every recursion over it
_MAX_DEPTH = 40  # parentheses and minus signs inside one another

_USAGE = {
    "effect": "effect(METRIC) or effect(METRIC, ARM)",
    "attributed": "attributed(NAME, MODEL) or attributed(NAME, MODEL, TOUCHPOINT)",
    "value": "value(NAME)",
    "volume": "volume(SOURCE, PERIOD), such as volume(orders, 365d)",
    "population": "population(ENTITY) or population(ENTITY, PERIOD), such as population(user, 365d)",
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class AmountError(UsageError):
    """What is wrong with an amount, in plain words; ``offset`` is the position in its text, counted from 0."""

    def __init__(self, message: str, offset: int) -> None:
        self.message = message
        self.offset = offset
        super().__init__(message)


# ---------------------------------------------------------------- the tree


@dataclass(frozen=True, slots=True)
class Number:
    """A number typed into the amount, never negative: a minus sign is a ``Negative``."""

    value: float
    offset: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        return repr(self.value).removesuffix(".0")


@dataclass(frozen=True, slots=True)
class Effect:
    """The improvement of ``metric`` that evidence shows for ``arm`` (None: the only arm there is) against control."""

    metric: str
    arm: str | None = None
    offset: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        return f"effect({self.metric})" if self.arm is None else f"effect({self.metric}, {_quoted(self.arm)})"


@dataclass(frozen=True, slots=True)
class Attributed:
    """What the attribution ``name`` credits by ``model`` to ``touchpoint`` (None: to all of them). No effect: nothing was compared."""

    name: str
    model: str
    touchpoint: str | None = None
    offset: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        parts = [self.name, _quoted(self.model), *([] if self.touchpoint is None else [_quoted(self.touchpoint)])]
        return f"attributed({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class ValueOf:
    """A money value declared under ``values``."""

    name: str
    offset: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        return f"value({self.name})"


@dataclass(frozen=True, slots=True)
class VolumeOf:
    """Rows of ``source`` over ``period``."""

    source: str
    period: timedelta
    offset: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        return f"volume({self.source}, {period_text(self.period)})"


@dataclass(frozen=True, slots=True)
class PopulationOf:
    """Units of ``entity``: those seen over ``period``, or all there are when it is None."""

    entity: str
    period: timedelta | None = None
    offset: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        return (
            f"population({self.entity})"
            if self.period is None
            else f"population({self.entity}, {period_text(self.period)})"
        )


@dataclass(frozen=True, slots=True)
class Negative:
    operand: Node
    offset: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        inner = f"({self.operand})" if isinstance(self.operand, Binary) else str(self.operand)
        return f"-{inner}"


@dataclass(frozen=True, slots=True)
class Binary:
    operator: Operator
    left: Node
    right: Node
    offset: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        left, right = str(self.left), str(self.right)
        if isinstance(self.left, Binary) and _tightness(self.left) < _tightness(self):
            left = f"({left})"
        # The right side keeps its parentheses at equal tightness too: a - (b - c) is not a - b - c, and a + (b + c) is
        # another tree (and, in floating point, another number) than a + b + c.
        if isinstance(self.right, Binary) and _tightness(self.right) <= _tightness(self):
            right = f"({right})"
        return f"{left} {self.operator} {right}"


Reference = Effect | Attributed | ValueOf | VolumeOf | PopulationOf
Node = Number | Reference | Negative | Binary


def _tightness(node: Binary) -> int:
    return 1 if node.operator in "+-" else 2


def _quoted(arm: str) -> str:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", arm):
        return arm
    return f'"{arm}"' if '"' not in arm else f"'{arm}'"


def period_text(period: timedelta) -> str:
    """``365d``, ``48h``: the largest unit that divides the period exactly; reads back as the same period."""
    for unit in "dhm":
        if period % timedelta(seconds=_SECONDS[unit]) == timedelta(0):
            return f"{period // timedelta(seconds=_SECONDS[unit])}{unit}"
    return f"{period / timedelta(seconds=1):.6f}".rstrip("0").rstrip(".") + "s"


@dataclass(frozen=True, slots=True)
class Amount:
    """A parsed amount. ``str()`` gives its text back, spaced as we write it."""

    root: Node

    def __str__(self) -> str:
        return str(self.root)

    def references(self) -> tuple[Reference, ...]:
        """What the amount refers to, each once, in the order it is written."""
        return tuple(dict.fromkeys(node for node in _walk(self.root) if isinstance(node, Reference)))

    @property
    def effects(self) -> tuple[tuple[str, str | None], ...]:
        return tuple((r.metric, r.arm) for r in self.references() if isinstance(r, Effect))

    @property
    def attributed(self) -> tuple[Attributed, ...]:
        return tuple(r for r in self.references() if isinstance(r, Attributed))

    @property
    def values(self) -> tuple[str, ...]:
        return tuple(r.name for r in self.references() if isinstance(r, ValueOf))

    @property
    def volumes(self) -> tuple[tuple[str, timedelta], ...]:
        return tuple((r.source, r.period) for r in self.references() if isinstance(r, VolumeOf))

    @property
    def populations(self) -> tuple[tuple[str, timedelta | None], ...]:
        return tuple((r.entity, r.period) for r in self.references() if isinstance(r, PopulationOf))

    @property
    def period(self) -> timedelta | None:
        """The one period of the volumes and populations, or None when none of them has a period."""
        periods = (r.period for r in self.references() if isinstance(r, VolumeOf | PopulationOf))
        return next((period for period in periods if period is not None), None)

    def evaluate(self, bindings: Mapping[Reference, float | FloatArray]) -> FloatArray:
        """The amount for the bound numbers, or for arrays of draws of one shape; the answer has that shape ((): a number).

        Raises AmountError where it divides by something that is zero, or whose draws lie on both sides of zero (the
        quotient then has no interval), or where the answer is too large to be a number.
        """
        with np.errstate(all="ignore"):
            answer = _evaluate(self.root, bindings)
        if not np.all(np.isfinite(answer)):
            raise AmountError("the amount is too large to be a number", 0)
        return answer


def _walk(node: Node) -> Iterator[Node]:
    yield node
    if isinstance(node, Negative):
        yield from _walk(node.operand)
    elif isinstance(node, Binary):
        yield from _walk(node.left)
        yield from _walk(node.right)


def _evaluate(node: Node, bindings: Mapping[Reference, float | FloatArray]) -> FloatArray:
    if isinstance(node, Number):
        return np.asarray(node.value, dtype=float)
    if isinstance(node, Negative):
        return np.asarray(-_evaluate(node.operand, bindings))
    if isinstance(node, Binary):
        left, right = _evaluate(node.left, bindings), _evaluate(node.right, bindings)
        if node.operator == "+":
            return np.asarray(left + right)
        if node.operator == "-":
            return np.asarray(left - right)
        if node.operator == "*":
            return np.asarray(left * right)
        if np.min(right) <= 0 <= np.max(right):
            can = "is" if right.ndim == 0 else "can be"
            raise AmountError(f"the amount divides by {node.right}, which {can} zero", node.offset)
        return np.asarray(left / right)
    return np.asarray(bindings[node], dtype=float)


# ---------------------------------------------------------------- reading the text


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # number, period, name, text, sign or end
    text: str
    offset: int


_TOKEN = re.compile(
    r"""\s*(?:
        (?P<period>[0-9]+(?:\.[0-9]+)?[smhdw])(?![A-Za-z0-9_])
      | (?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?![A-Za-z0-9_.])
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<text>"[^"\n]*"|'[^'\n]*')
      | (?P<sign>[-+*/(),])
    )""",
    re.VERBOSE,
)


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            offset = position + len(text[position:]) - len(text[position:].lstrip())
            raise AmountError(_unreadable(text[offset:]), offset)
        kind = str(match.lastgroup)
        found.append(_Token(kind, match[kind], match.start(kind)))
        position = match.end()
        if len(found) > 4 * _MAX_PARTS:
            raise _too_long(match.start(kind))
    found.append(_Token("end", "", end))
    return found


def _unreadable(rest: str) -> str:
    word = re.match(r"[0-9A-Za-z_.]+", rest)
    if word is not None:
        return f"'{word[0]}' is neither a number (such as 0.25) nor a period (a number and one of s, m, h, d, w, such as 365d)"
    if rest[0] in "\"'":
        return f"a quotation that starts with {rest[0]} does not end"
    if rest.startswith("^"):
        return "'^' is not known; an amount has + - * / and parentheses"
    return f"'{rest[0]}' has no meaning in an amount, which has names, numbers, + - * / and parentheses"


def _too_long(offset: int) -> AmountError:
    return AmountError(f"an amount has at most {_MAX_PARTS} names, numbers and operators", offset)


class _Parser:
    """expression = term (+- term)*; term = factor (*/ factor)*; factor = -factor | (expression) | number | call."""

    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.position = 0
        self.parts = 0
        self.period: timedelta | None = None

    @property
    def next(self) -> _Token:
        return self.tokens[self.position]

    def take(self) -> _Token:
        token = self.next
        if token.kind != "end":
            self.position += 1
        return token

    def takes(self, sign: str) -> bool:
        if self.next.kind == "sign" and self.next.text == sign:
            self.position += 1
            return True
        return False

    def part(self, offset: int) -> None:
        self.parts += 1
        if self.parts > _MAX_PARTS:
            raise _too_long(offset)

    def parse(self) -> Node:
        if self.next.kind == "end":
            raise AmountError("the amount is empty; write such as effect(METRIC) * population(ENTITY, 365d)", 0)
        node = self.expression(0)
        if self.next.kind != "end":
            if self.next.text == ")":
                raise AmountError("this ')' closes nothing", self.next.offset)
            if self.next.text == ",":
                raise AmountError("a comma only separates what stands in a function's parentheses", self.next.offset)
            raise AmountError(f"an operator (+ - * /) is missing before {_shown(self.next)}", self.next.offset)
        return node

    def expression(self, depth: int) -> Node:
        node = self.term(depth)
        while self.next.kind == "sign" and self.next.text in "+-":
            token = self.take()
            self.part(token.offset)
            node = Binary("+" if token.text == "+" else "-", node, self.term(depth), token.offset)
        return node

    def term(self, depth: int) -> Node:
        node = self.factor(depth)
        while self.next.kind == "sign" and self.next.text in "*/":
            token = self.take()
            self.part(token.offset)
            node = Binary("*" if token.text == "*" else "/", node, self.factor(depth), token.offset)
        return node

    def factor(self, depth: int) -> Node:
        token = self.take()
        self.part(token.offset)
        if depth > _MAX_DEPTH:
            raise AmountError(
                f"parentheses and minus signs are more than {_MAX_DEPTH} deep; simplify the amount", token.offset
            )
        if token.kind == "number":
            value = float(token.text)
            if value == float("inf"):
                raise AmountError(f"{token.text} is too large", token.offset)
            return Number(value, token.offset)
        if token.kind == "name":
            return self.call(token)
        if token.kind == "sign" and token.text == "-":
            return Negative(self.factor(depth + 1), token.offset)
        if token.kind == "sign" and token.text == "(":
            node = self.expression(depth + 1)
            if not self.takes(")"):
                raise AmountError("this '(' is never closed", token.offset)
            return node
        if token.kind == "end":
            raise AmountError("the amount ends too early: a number or a function is missing", token.offset)
        if token.kind == "period":
            raise AmountError(
                f"a period such as {token.text} only stands inside volume() or population()", token.offset
            )
        if token.kind == "text":
            message = f"the quoted {token.text} only stands inside effect(), as an arm, or attributed(), as a model or touchpoint"
            raise AmountError(message, token.offset)
        raise AmountError(f"a number or a function is missing before {_shown(token)}", token.offset)

    def call(self, name: _Token) -> Reference:
        function = name.text
        if function not in _USAGE:
            hint = did_you_mean(function, _USAGE)
            if not (self.next.kind == "sign" and self.next.text == "("):
                raise AmountError(
                    f"'{function}' stands alone; wrap it as one of effect({function}), value({function}), "
                    f"volume({function}, 365d) or population({function}, 365d)",
                    name.offset,
                )
            raise AmountError(
                f"the function '{function}' is not known in this version{hint or ';'} "
                "an amount is built from effect, attributed, value, volume and population",
                name.offset,
            )
        wrong = f"write {_USAGE[function]}"
        if not self.takes("("):
            raise AmountError(f"'{function}' needs its parentheses: {wrong}", name.offset)
        first = self.take()
        if first.kind != "name":
            raise AmountError(f"{function}() needs a name first: {wrong}", first.offset)
        if function == "attributed":
            return self.attributed(name, first.text, wrong)
        second = self.take() if self.takes(",") else None
        if not self.takes(")"):
            self.refuse_end_of_call(function, wrong)
        if function == "effect":
            if second is not None and (second.kind not in ("name", "text") or second.text in ('""', "''")):
                raise AmountError(
                    f'the second part of effect() is an arm, such as treatment or "Mens E-Mail": {wrong}', second.offset
                )
            arm = None if second is None else second.text
            if second is not None and second.kind == "text":
                arm = second.text[1:-1]
            return Effect(first.text, arm, name.offset)
        if function == "value":
            if second is not None:
                raise AmountError(f"value() takes one name: {wrong}", second.offset)
            return ValueOf(first.text, name.offset)
        period = None if second is None else self.read_period(second, function, wrong)
        if function == "population":
            return PopulationOf(first.text, period, name.offset)
        if period is None:
            raise AmountError(f"volume() needs a period: {wrong}", name.offset)
        return VolumeOf(first.text, period, name.offset)

    def attributed(self, name: _Token, of: str, wrong: str) -> Attributed:
        words: list[str] = []
        while len(words) < 2 and self.takes(","):
            words.append(self.read_word(self.take(), name.text, wrong))
        if not self.takes(")"):
            self.refuse_end_of_call(name.text, wrong)
        if not words:
            raise AmountError(f"attributed() needs a model: {wrong}", name.offset)
        return Attributed(of, words[0], words[1] if len(words) > 1 else None, name.offset)

    def read_word(self, token: _Token, function: str, wrong: str) -> str:
        """A name, or a quoted text that is not empty."""
        if token.kind == "name":
            return token.text
        if token.kind != "text" or token.text in ('""', "''"):
            message = f"{_shown(token)} is not a name or a quoted text, which {function}() needs there: {wrong}"
            raise AmountError(message, token.offset)
        return token.text[1:-1]

    def refuse_end_of_call(self, function: str, wrong: str) -> NoReturn:
        token = self.next
        if token.kind == "end":
            raise AmountError(f"{function}( is never closed: {wrong}", token.offset)
        raise AmountError(f"{_shown(token)} does not belong inside {function}(): {wrong}", token.offset)

    def read_period(self, token: _Token, function: str, wrong: str) -> timedelta:
        if token.kind != "period":
            raise AmountError(
                f"the second part of {function}() is a period (a number and one of s, m, h, d, w): {wrong}",
                token.offset,
            )
        try:
            period = timedelta(seconds=float(token.text[:-1]) * _SECONDS[token.text[-1]])
        except OverflowError:
            raise AmountError(f"the period {token.text} is too long", token.offset) from None
        if period <= timedelta(0):
            raise AmountError(f"the period {token.text} must be longer than zero", token.offset)
        if self.period is not None and period != self.period:
            raise AmountError(
                f"the amount mixes the periods {period_text(self.period)} and {period_text(period)}; "
                "it is money over one period, so give all of them the same",
                token.offset,
            )
        self.period = period
        return period


def _shown(token: _Token) -> str:
    return "the end" if token.kind == "end" else token.text if token.kind == "text" else f"'{token.text}'"


def parse(text: str) -> Amount:
    """The tree of an amount. Raises AmountError, and nothing else, with the offset of the first problem in ``text``."""
    return Amount(_Parser(text).parse())

"""Reading the JSON of a run: nodes that know their path, quantities with their intervals, and the words every part shares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from payoff import formats
from payoff.errors import PayoffError
from payoff.estimate import Normal
from payoff.formats import Unit, clean, isolate

UNDATED = "not dated"


CAUSAL_GRADES = ("A", "B", "C")


GRADES = {
    "A": "randomised, and no check failed",
    "B": "a quasi-experiment that passed its refutations",
    "C": "observational data, adjusted",
    "D": "attributed only, not causal",
    "E": "typed in, not measured",
}


INTERVALS = {
    "confidence": "confidence interval",
    "credible": "credible interval",
    "always-valid": "always-valid interval",
    "repeated": "repeated confidence interval",
    "bootstrap": "bootstrap interval",
    "bounds": "bounds",
    "simulation": "simulation interval",
}


class MissingFigure(PayoffError):
    """A figure the report must show is missing, or two figures of the run contradict each other."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class State:
    """What an interval shows, told by shape, text and colour at once; ``tone`` picks the colour."""

    key: str
    label: str
    shape: str
    tone: str
    meaning: str


STATES = {
    state.key: state
    for state in (
        State("above target", "above target", "\u25b2", "strong", "the whole interval is better than the target"),
        State("positive", "positive", "\u25cf", "good", "the whole interval is better than zero"),
        State("exploratory", "exploratory", "\u25cb", "quiet", "no primary metric was declared, so nothing is decided"),
        State("not conclusive", "not conclusive", "\u25cb", "quiet", "the interval contains zero"),
        State("negative", "negative", "\u25bc", "bad", "the whole interval is worse than zero"),
        State("safe", "within margin", "\u25cf", "good", "a guardrail: harm beyond its margin is excluded"),
        State("at risk", "guardrail at risk", "\u25ca", "warn", "a guardrail: harm beyond its margin is not excluded"),
        State(
            "breached", "guardrail breached", "\u25a0", "bad", "a guardrail: the whole interval is beyond its margin"
        ),
        State(
            "descriptive",
            "descriptive",
            "=",
            "quiet",
            "counted and shared out, not an effect, so nothing is concluded",
        ),
        State("withheld", "withheld", "\u25a1", "off", "a check failed, so the figure must not be used"),
        State("refused", "no figure", "\u25a1", "off", "the question could not be answered; the reason is given"),
    )
}


CHECK_STATES = {
    "pass": State("pass", "passed", "\u25cf", "good", "the check ran and found nothing"),
    "warn": State("warn", "warning", "\u25ca", "warn", "read the figure with care"),
    "fail": State("fail", "failed", "\u25a0", "bad", "the figures that depend on it are withheld"),
    "not-run": State("not-run", "not run", "\u25a1", "off", "the check could not run"),
}
READING_STATES = {
    "improved": "positive",
    "harmed": "negative",
    "not conclusive": "not conclusive",
    "safe": "safe",
    "at risk": "at risk",
    "breached": "breached",
    "refused": "refused",
    "withheld": "withheld",
}
VERDICTS = {"guardrail at risk": "at risk", "guardrail breached": "breached"}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that cannot be shown without its interval. ``inner`` is the 50% interval where it is known."""

    value: float
    low: float
    high: float
    level: float
    kind: str
    inner: tuple[float, float] | None
    text: str
    range: str
    note: str = ""
    """What else the interval is: ``corrected for 3 questions``."""

    @property
    def interval_name(self) -> str:
        name = f"{formats.level(self.level)} {INTERVALS[self.kind]}"
        return f"{name} {self.note}" if self.note else name

    @property
    def interval(self) -> str:
        """The interval with its name, inside a sentence."""
        return f"{self.interval_name}{',' if self.note else ''} {self.range}"

    @property
    def full(self) -> str:
        return f"{self.text} ({self.interval})"


@dataclass(frozen=True, slots=True)
class RefusalLine:
    name: str
    reason: str
    remedy: str


class Node:
    """A mapping of the run that knows its own path, so that what is missing can be named."""

    def __init__(self, data: object, path: str) -> None:
        if not isinstance(data, Mapping):
            raise MissingFigure(f"{path} is not a mapping; the report needs one there")
        self.data: Mapping[str, Any] = data
        self.path = path

    def has(self, key: str) -> bool:
        return self.data.get(key) is not None

    def raw(self, key: str) -> Any:
        if not self.has(key):
            raise MissingFigure(f"{self.path}.{key} is missing; the report is not written without it")
        return self.data[key]

    def text(self, key: str, default: str | None = None) -> str:
        if default is not None and not self.has(key):
            return default
        value = clean(str(self.raw(key)))
        if not value and default is None:
            raise MissingFigure(f"{self.path}.{key} is empty; the report is not written without it")
        return value or str(default)

    def name(self, key: str) -> str:
        """What the data call something, which may be blank."""
        return clean(str(self.raw(key))) or "(empty)"

    def prose(self, key: str) -> str:
        """A sentence somebody else's names may stand in."""
        return formats.fenced(self.text(key))

    def number(self, key: str) -> float:
        return finite(self.raw(key), f"{self.path}.{key}")

    def maybe(self, key: str) -> float | None:
        return self.number(key) if self.has(key) else None

    def flag(self, key: str) -> bool:
        value = self.raw(key)
        if not isinstance(value, bool):
            raise MissingFigure(f"{self.path}.{key} is {value!r}, not true or false")
        return value

    def node(self, key: str) -> Node:
        return Node(self.raw(key), f"{self.path}.{key}")

    def items(self, key: str, *, optional: bool = False) -> Sequence[Any]:
        if optional and not self.has(key):
            return ()
        value = self.raw(key)
        if not isinstance(value, list | tuple):
            raise MissingFigure(f"{self.path}.{key} is not a list")
        return value

    def nodes(self, key: str, *, optional: bool = False) -> tuple[Node, ...]:
        return tuple(Node(v, f"{self.path}.{key}[{i}]") for i, v in enumerate(self.items(key, optional=optional)))

    def texts(self, key: str, *, optional: bool = True) -> tuple[str, ...]:
        return tuple(clean(str(item)) for item in self.items(key, optional=optional))


def finite(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MissingFigure(f"{path} is {value!r}, not a finite number")
    return float(value)


def _inner(node: Node, value: float) -> tuple[float, float] | None:
    """The 50% interval, from the estimate's own distribution; None where only the ends of one interval are known."""
    if node.has("low_50"):
        return node.number("low_50"), node.number("high_50")
    if not node.has("uncertainty"):
        return None
    spread = node.node("uncertainty")
    kind = spread.text("kind")
    if kind == "normal":
        df = spread.maybe("df")
        scale = spread.text("scale", "identity")
        normal = Normal(
            spread.number("se"), math.inf if df is None else df, "log1p" if scale == "log1p" else "identity"
        )
        return normal.interval(value, 0.5)
    if kind == "draws":
        quantiles = spread.node("quantiles")
        return quantiles.number("0.25"), quantiles.number("0.75")
    return None


def read_unit(node: Node) -> Unit:
    """The unit must be said, even where it is the empty text of a plain number."""
    if "unit" not in node.data:
        raise MissingFigure(f"{node.path}.unit is missing; the report is not written without it")
    return formats.unit(str(node.data["unit"] or ""))


def read_quantity(
    node: Node,
    what: Unit,
    *,
    change: bool = False,
    kind: str | None = None,
    level: float | None = None,
    against: Iterable[float] = (),
    ends: Node | None = None,
    note: str = "",
) -> Quantity:
    """``ends``: where the interval's ends stand, if not beside the value."""
    at = ends or node
    value, low, high = node.number("value"), at.number("low"), at.number("high")
    if not low <= high:
        raise MissingFigure(f"{at.path}: the interval's ends are the wrong way round, {low} and {high}")
    name = kind or node.text("interval_kind", "simulation")
    if name not in INTERVALS:
        raise MissingFigure(f"{node.path}.interval_kind is {name!r}, which has no name in reports")
    text = formats.written(value, low, high, what, change=change, against=against)
    confidence = node.number("level") if level is None else level
    inner = _inner(node, value) if ends is None else None
    return Quantity(value, low, high, confidence, name, inner, text.value, text.range, note)


def read_refusals(nodes: Iterable[Node]) -> tuple[RefusalLine, ...]:
    return tuple(RefusalLine(r.text("name"), r.prose("reason"), r.prose("remedy")) for r in nodes)


def state_from_zero(low: float, high: float) -> State:
    return STATES["positive" if low > 0 else "negative" if high < 0 else "not conclusive"]


def anchor_of(kind: str, index: int) -> str:
    return f"{kind}-{index + 1}"


def short_name(name: str) -> str:
    """``experiments.first_name_subject`` as ``first_name_subject``."""
    head, _, tail = name.partition(".")
    return tail if tail and head in ("experiments", "claims", "studies", "holdouts", "programmes") else name


_KINDS = ("experiments", "programmes", "funnels", "cohorts", "paths", "attribution", "studies", "holdouts", "claims")


def full_name(name: str) -> str:
    """A result's name with its kind, which tells two of one name apart; a bare name is an experiment's."""
    return name if name.partition(".")[0] in _KINDS and "." in name else f"experiments.{name}"


_CALLED = {"funnels": "funnel", "cohorts": "cohorts", "paths": "paths", "attribution": "attribution"}


def title_of(name: str) -> str:
    """What a result is called; a journey with its kind, since an experiment may have its name."""
    kind, _, bare = name.partition(".")
    if bare and kind in _CALLED:
        return f"{isolate(formats.capital(formats.human(bare)))} ({_CALLED[kind]})"
    return isolate(formats.capital(formats.human(short_name(name))))


def contrast_words(contrast: str) -> str:
    parts = contrast.split(" vs ")
    if len(parts) == 2:
        return f"with {isolate(formats.shorten(parts[0], 60))} against {isolate(formats.shorten(parts[1], 60))}"
    return f"in {isolate(formats.shorten(contrast, 120))}"


def sentence(text: str) -> str:
    """``text`` with a full stop, unless it ends in one already (the end of an isolate may follow it)."""
    return text if text.rstrip("\u2069")[-1:] in ("", ".", "!", "?") else f"{text}."


def grade_text(grade: str) -> str:
    return f"{grade}: {GRADES[grade]}" if grade else "no grade: a description"


def data_through(node: Node) -> str:
    """Up to when the data is complete; a table of units without times has no such date."""
    return formats.moment(node.text("as_of")) if node.has("as_of") else UNDATED


def level_of(run: Node) -> float:
    return round(1.0 - run.number("alpha"), 12)


def uncapital(label: str) -> str:
    """The first letter small, inside a sentence; an acronym stays as it is."""
    return label if label[:2].isupper() and label[:2].isalpha() else label[:1].lower() + label[1:]


def state_of(reading: Node) -> State:
    state = reading.text("state")
    key = READING_STATES.get(state, state)
    if key not in STATES:
        raise MissingFigure(f"{reading.path}.state is {state!r}, which the report does not know")
    return STATES[key]

"""Everything a report says, computed once from the JSON of a run. Renderers only place it.

A figure that should be there and is not, or that contradicts another, raises ``MissingFigure``: no report is better than
a report with an empty cell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from payoff import formats
from payoff.errors import PayoffError, UsageError, did_you_mean
from payoff.estimate import Normal
from payoff.formats import Unit, clean, human, isolate

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
    "bootstrap": "bootstrap interval",
    "bounds": "bounds",
    "simulation": "simulation interval",
}
ROLES = {
    "north_star": "north star",
    "primary": "primary",
    "secondary": "secondary",
    "guardrail": "guardrail",
    "vanity": "vanity",
}


class MissingFigure(PayoffError):
    """A figure the report must show is missing, or two figures of the run contradict each other."""

    exit_code = 4


# ---------------------------------------------------------------- the objects


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
_READING_STATES = {
    "improved": "positive",
    "harmed": "negative",
    "not conclusive": "not conclusive",
    "safe": "safe",
    "at risk": "at risk",
    "breached": "breached",
    "refused": "refused",
    "withheld": "withheld",
}
_HARM = {"breached": 0, "at risk": 1, "safe": 2}
_CHECK_NAMES = {"srm": "sample ratio"}
_VERDICTS = {"guardrail at risk": "at risk", "guardrail breached": "breached"}


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

    @property
    def interval_name(self) -> str:
        return f"{formats.level(self.level)} {INTERVALS[self.kind]}"

    @property
    def full(self) -> str:
        return f"{self.text} ({self.interval_name} {self.range})"


@dataclass(frozen=True, slots=True)
class Card:
    kind: str
    subject: str
    quantity: Quantity | None
    state: State
    reason: str
    facts: tuple[tuple[str, str], ...]
    anchor: str
    extrapolated: bool = False


@dataclass(frozen=True, slots=True)
class Effect:
    """One metric in one contrast: the difference, the relative lift, and how it is read."""

    metric: str
    contrast: str
    role: str
    label: str
    direction: str
    quantity: Quantity
    estimand: str
    relative: Quantity | None
    relative_note: str
    p_value: str
    n: int
    state: State
    reading: str
    caveat: str
    margin: float | None
    margin_text: str
    target: float | None
    target_text: str
    level: float

    @property
    def role_text(self) -> str:
        return ROLES[self.role] + ("" if self.direction == "up" else ", lower is better")

    @property
    def n_text(self) -> str:
        return formats.count(self.n)

    @property
    def guards(self) -> bool:
        """Read against a margin of harm, whatever role it shows."""
        return self.role == "guardrail" or self.state.key in _HARM

    @property
    def tone(self) -> str:
        """A vanity metric is never green."""
        return "off" if self.role == "vanity" else self.state.tone


@dataclass(frozen=True, slots=True)
class ArmLevel:
    metric: str
    arm: str
    n: str
    quantity: Quantity


@dataclass(frozen=True, slots=True)
class CheckLine:
    name: str
    state: State
    statistic: str
    detail: str


@dataclass(frozen=True, slots=True)
class AssumptionLine:
    text: str
    tested_by: str


@dataclass(frozen=True, slots=True)
class RefusalLine:
    name: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class SqlText:
    number: int
    step: str
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """One result: an experiment, with everything that is needed to believe or to doubt it."""

    name: str
    title: str
    anchor: str
    question: str
    method: str
    design: str
    grade: str
    grade_text: str
    state: State
    finding: str
    standing: str
    effects: tuple[Effect, ...]
    arms: tuple[ArmLevel, ...]
    checks: tuple[CheckLine, ...]
    assumptions: tuple[AssumptionLine, ...]
    left_out: tuple[tuple[str, str], ...]
    refusals: tuple[RefusalLine, ...]
    sql: tuple[int, ...]
    owner: str
    through: str
    level: str

    @property
    def guardrails(self) -> tuple[Effect, ...]:
        return tuple(effect for effect in self.effects if effect.guards)

    @property
    def vanity(self) -> tuple[Effect, ...]:
        return tuple(effect for effect in self.effects if effect.role == "vanity")

    @property
    def withheld(self) -> bool:
        return self.state.key == "withheld"


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    kind: str
    text: str
    range: str
    source: str
    owner: str
    expires: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BridgeStep:
    """One bar of amount -> costs -> net. ``start`` and ``end`` are its ends in money."""

    name: str
    text: str
    range: str
    start: float
    end: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Swing:
    """The net result when one input alone goes to the ends of its range."""

    name: str
    inputs: str
    nets: str
    net_at_low: float
    net_at_high: float
    flips: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class ClaimFigures:
    name: str
    title: str
    anchor: str
    statement: str
    state: State
    finding: str
    reason: str
    grade: str
    grade_text: str
    grade_reasons: tuple[str, ...]
    evidence: tuple[str, ...]
    amount: Quantity
    expression: str
    extrapolated: bool
    has_costs: bool
    cost: str
    noun: str
    net: Quantity
    roi: Quantity | None
    payback: str
    probability: str
    decision: str
    decision_met: bool | None
    bridge: tuple[BridgeStep, ...]
    inputs: tuple[Input, ...]
    swings: tuple[Swing, ...]
    overturns: tuple[str, ...]
    dots: tuple[float, ...]
    dots_text: str
    money: Unit
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]
    n: str
    through: str
    owner: str


@dataclass(frozen=True, slots=True)
class Figures:
    project: str
    kicker: str
    title: str
    standfirst: str
    state: State
    decision: str
    cards: tuple[Card, ...]
    risks: tuple[str, ...]
    claims: tuple[ClaimFigures, ...]
    sections: tuple[Section, ...]
    refusals: tuple[RefusalLine, ...]
    sql: tuple[SqlText, ...]
    plan: tuple[tuple[str, str, str, str], ...]
    provenance: tuple[tuple[str, str], ...]
    through: str
    level: str

    @property
    def dated(self) -> str:
        return "data without dates" if self.through == UNDATED else f"data through {self.through}"

    def quantities(self) -> Iterator[Quantity]:
        """Every number that has an interval, in reading order."""
        for claim in self.claims:
            yield claim.net
            yield claim.amount
            if claim.roi is not None:
                yield claim.roi
        for section in self.sections:
            for effect in section.effects:
                yield effect.quantity
                if effect.relative is not None:
                    yield effect.relative
            for arm in section.arms:
                yield arm.quantity


# ---------------------------------------------------------------- reading the run


class _Node:
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

    def number(self, key: str) -> float:
        return _finite(self.raw(key), f"{self.path}.{key}")

    def maybe(self, key: str) -> float | None:
        return self.number(key) if self.has(key) else None

    def flag(self, key: str) -> bool:
        value = self.raw(key)
        if not isinstance(value, bool):
            raise MissingFigure(f"{self.path}.{key} is {value!r}, not true or false")
        return value

    def node(self, key: str) -> _Node:
        return _Node(self.raw(key), f"{self.path}.{key}")

    def items(self, key: str, *, optional: bool = False) -> Sequence[Any]:
        if optional and not self.has(key):
            return ()
        value = self.raw(key)
        if not isinstance(value, list | tuple):
            raise MissingFigure(f"{self.path}.{key} is not a list")
        return value

    def nodes(self, key: str, *, optional: bool = False) -> tuple[_Node, ...]:
        return tuple(_Node(v, f"{self.path}.{key}[{i}]") for i, v in enumerate(self.items(key, optional=optional)))

    def texts(self, key: str, *, optional: bool = True) -> tuple[str, ...]:
        return tuple(clean(str(item)) for item in self.items(key, optional=optional))


def _anchor(kind: str, index: int) -> str:
    return f"{kind}-{index + 1}"


def _short_name(name: str) -> str:
    """``experiments.first_name_subject`` as ``first_name_subject``."""
    head, _, tail = name.partition(".")
    return tail if tail and head in ("experiments", "claims", "studies", "holdouts") else name


def _inner(node: _Node, value: float) -> tuple[float, float] | None:
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


def _unit(node: _Node) -> Unit:
    """The unit must be said, even where it is the empty text of a plain number."""
    if "unit" not in node.data:
        raise MissingFigure(f"{node.path}.unit is missing; the report is not written without it")
    return formats.unit(str(node.data["unit"] or ""))


def _quantity(
    node: _Node,
    what: Unit,
    *,
    change: bool = False,
    kind: str | None = None,
    level: float | None = None,
    against: Iterable[float] = (),
) -> Quantity:
    value, low, high = node.number("value"), node.number("low"), node.number("high")
    if not low <= high:
        raise MissingFigure(f"{node.path}: the interval's ends are the wrong way round, {low} and {high}")
    name = kind or node.text("interval_kind", "simulation")
    if name not in INTERVALS:
        raise MissingFigure(f"{node.path}.interval_kind is {name!r}, which has no name in reports")
    text = formats.written(value, low, high, what, change=change, against=against)
    confidence = node.number("level") if level is None else level
    return Quantity(value, low, high, confidence, name, _inner(node, value), text.value, text.range)


# ---------------------------------------------------------------- results


def _contrast_words(contrast: str) -> str:
    parts = contrast.split(" vs ")
    if len(parts) == 2:
        return f"with {isolate(formats.shorten(parts[0], 60))} against {isolate(formats.shorten(parts[1], 60))}"
    return f"in {isolate(formats.shorten(contrast, 120))}"


def _state_of(reading: _Node) -> State:
    state = reading.text("state")
    key = _READING_STATES.get(state, state)
    if key not in STATES:
        raise MissingFigure(f"{reading.path}.state is {state!r}, which the report does not know")
    return STATES[key]


def _check_reading(effect: Effect, path: str) -> None:
    """The sentence and the table must agree: a state that the interval does not bear stops the report."""
    good = 1.0 if effect.direction == "up" else -1.0
    ends = sorted((good * effect.quantity.low, good * effect.quantity.high))
    key = effect.state.key
    margin = effect.margin
    wrong = (
        (key in ("positive", "above target") and not ends[0] > 0)
        or (key == "negative" and not ends[1] < 0)
        or (key == "above target" and effect.target is not None and not ends[0] > good * effect.target)
        or (key == "safe" and margin is not None and not ends[0] > -margin)
        or (key == "breached" and margin is not None and not ends[1] < -margin)
    )
    if wrong:
        raise MissingFigure(f"{path} says '{effect.state.label}' but its interval is {effect.quantity.range}")


_READINGS = {
    "above target": "The whole interval is better than the target.",
    "positive": "The whole interval is better than zero.",
    "negative": "The whole interval is worse than zero.",
    "not conclusive": "The interval contains zero: an effect in either direction fits the data.",
    "withheld": "A check failed; do not use this figure.",
}


def _reading_text(state: State, margin_text: str, given: str) -> str:
    if state.key == "safe":
        return f"Harm of {margin_text} or more is excluded." if margin_text else given
    if state.key == "at risk":
        return f"Harm of {margin_text} is not excluded." if margin_text else given
    if state.key == "breached":
        return f"The whole interval is worse than the margin of {margin_text}." if margin_text else given
    return _READINGS.get(state.key, given)


def _effects(result: _Node, withheld: bool) -> tuple[Effect, ...]:
    readings = {(r.text("metric"), r.text("contrast")): r for r in result.nodes("readings")}
    estimates = result.nodes("estimates")
    relative = {}
    for e in estimates:
        if e.text("estimand") == "relative lift":
            relative[e.text("metric"), e.text("contrast"), e.text("segment", "")] = e
    effects = []
    for e in estimates:
        estimand = e.text("estimand")
        if estimand == "relative lift":
            continue
        metric, contrast, segment = e.text("metric"), e.text("contrast"), e.text("segment", "")
        what = _unit(e)
        reading = readings.get((metric, contrast)) if not segment else None
        direction = reading.text("direction") if reading else "up"
        margin = reading.maybe("margin") if reading else None
        target = reading.maybe("target") if reading else None
        good = 1.0 if direction == "up" else -1.0
        margin_text = formats.size(formats.exact(margin, what, change=True)) if margin is not None else ""
        lines = [] if margin is None else [-margin, margin]
        lines += [] if target is None else [good * target]
        lift = relative.get((metric, contrast, segment))
        n = _n(e)
        state = STATES["withheld"] if withheld else _state_of(reading) if reading else STATES["not conclusive"]
        if reading is None and not withheld:
            state = _state_from_zero(e.number("low"), e.number("high"))
        role = reading.text("role") if reading else "secondary"
        if role not in ROLES:
            raise MissingFigure(f"{result.path}: '{role}' is not a role of a metric")
        given = reading.text("sentence", "") if reading else ""
        caveat = reading.text("caveat", "") if reading else ""
        if role == "vanity" and not caveat:
            caveat = given
        effect = Effect(
            metric=metric,
            contrast=contrast + (f", {segment}" if segment else ""),
            role=role,
            label=isolate(formats.capital(human(metric))),
            direction=direction,
            quantity=_quantity(e, what, change=True, against=lines),
            estimand=estimand,
            relative=_quantity(lift, formats.RELATIVE, change=True) if lift is not None else None,
            relative_note="" if lift is not None else "not stated",
            p_value=formats.p_value(e.number("p_value"), 1 - e.number("level")) if e.has("p_value") else "not defined",
            n=n,
            state=state,
            reading=_reading_text(state, margin_text, given),
            caveat=caveat,
            margin=margin,
            margin_text=margin_text,
            target=good * target if target is not None else None,
            target_text=formats.exact(good * target, what, change=True) if target is not None else "",
            level=e.number("level"),
        )
        if not withheld:
            _check_reading(effect, f"{result.path} ({metric}, {contrast})")
        effects.append(effect)
    shown = {(e.text("metric"), e.text("contrast")) for e in estimates}
    for pair, reading in readings.items():
        if pair not in shown and reading.text("state") != "refused" and not withheld:
            raise MissingFigure(
                f"{reading.path}: '{pair[0]}' in '{pair[1]}' is read as '{reading.text('state')}', but has no estimate"
            )
    order = list(ROLES)
    return tuple(sorted(effects, key=lambda x: order.index(x.role) if x.role != "north_star" else 1))


def _state_from_zero(low: float, high: float) -> State:
    return STATES["positive" if low > 0 else "negative" if high < 0 else "not conclusive"]


def _n(estimate: _Node) -> int:
    counts = estimate.node("n").data
    if not counts:
        raise MissingFigure(f"{estimate.path}.n is empty; an estimate says how many units it is from")
    return int(sum(counts.values()))


def _finding(effect: Effect, grade: str) -> str:
    """The sentence of one effect. A causal verb only where the design bears one."""
    words, size = _contrast_words(effect.contrast), formats.size(effect.quantity.text)
    interval = f"({effect.quantity.interval_name} {effect.quantity.range})"
    up = effect.quantity.value > 0
    name = formats.shorten(effect.label, 80)
    if effect.state.key in ("positive", "negative", "above target"):
        if grade == "A":
            verb = "rises by" if up else "falls by"
        elif grade in CAUSAL_GRADES:
            verb = "is estimated to rise by" if up else "is estimated to fall by"
        else:
            verb = "is higher by" if up else "is lower by"
        end = "" if grade in CAUSAL_GRADES else "; a description, not an effect"
        target = (
            f", above the target of {effect.target_text}"
            if effect.state.key == "above target" and effect.target_text
            else ""
        )
        return f"{name} {verb} {size} {words} {interval}{target}{end}"
    if effect.guards:
        return f"{name}: {effect.state.label}, {effect.quantity.text} {words} {interval}"
    return f"No conclusive change in {_lower(name)}: {effect.quantity.text} {words} {interval}"


def _leading(effects: Sequence[Effect]) -> tuple[Effect, ...]:
    """The effects a result is judged by: its first primary's, one per contrast; else its north star's; else its only metric's."""
    for role in ("primary", "north_star"):
        named = [e.metric for e in effects if e.role == role]
        if named:
            return tuple(e for e in effects if e.metric == named[0])
    return tuple(effects) if len({e.metric for e in effects}) == 1 else ()


def _checks(result: _Node) -> tuple[CheckLine, ...]:
    lines = []
    for check in result.nodes("checks"):
        status = check.text("status")
        if status not in CHECK_STATES:
            raise MissingFigure(f"{check.path}.status is {status!r}, which the report does not know")
        statistic = check.maybe("statistic")
        lines.append(
            CheckLine(
                name=_check_name(check.text("name")),
                state=CHECK_STATES[status],
                statistic="none" if statistic is None else formats.statistic(statistic),
                detail=formats.capital(check.text("detail")),
            )
        )
    return tuple(lines)


def _check_name(name: str) -> str:
    return _CHECK_NAMES.get(name, human(name))


def _refusals(nodes: Iterable[_Node]) -> tuple[RefusalLine, ...]:
    return tuple(RefusalLine(r.text("name"), r.text("reason"), r.text("remedy")) for r in nodes)


def sentence(text: str) -> str:
    """``text`` with a full stop, unless it ends in one already (the end of an isolate may follow it)."""
    return text if text.rstrip("\u2069")[-1:] in ("", ".", "!", "?") else f"{text}."


def _grade_text(grade: str) -> str:
    return f"{grade}: {GRADES[grade]}"


def _section(result: _Node, index: int, run: _Node, library: list[SqlText]) -> Section:
    name = result.text("name")
    verdict = result.text("verdict")
    state_key = _VERDICTS.get(verdict, verdict)
    if state_key not in STATES:
        raise MissingFigure(f"{result.path}.verdict is {verdict!r}, which the report does not know")
    withheld = state_key == "withheld"
    grade = result.text("grade")
    if grade not in GRADES:
        raise MissingFigure(f"{result.path}.grade is {grade!r}; grades are A to E")
    effects = _effects(result, withheld)
    checks = _checks(result)
    failed = [check for check in checks if check.state.key == "fail"]
    leading = _leading(effects)
    if any(e.state.key == "breached" for e in effects) and state_key in ("positive", "above target", "at risk"):
        state_key = "breached"
    if withheld:
        why = failed[0].name + " check failed" if failed else "a check failed"
        finding = f"Withheld: the {why}, so no effect may be read from {isolate(formats.shorten(human(_short_name(name)), 80))}"
        reason = " ".join(sentence(check.detail) for check in failed)
        standing = reason or "A check failed."
    elif not effects:
        finding = f"No figure could be given for {isolate(formats.shorten(human(_short_name(name)), 80))}"
        standing = "The reasons and what would change them are below."
    elif not leading:
        metrics = len({e.metric for e in effects})
        finding = (
            f"{isolate(formats.capital(formats.shorten(human(_short_name(name)), 80)))}: {metrics} metrics are read and none was "
            "declared primary, so every figure is exploratory"
        )
        standing = f"Evidence grade {grade}: {GRADES[grade]}. With no primary metric there is no headline figure."
        state_key = "exploratory" if state_key == "not conclusive" else state_key
    else:
        conclusive = [e for e in leading if e.state.key in ("positive", "above target", "negative")]
        finding = _finding((conclusive or list(leading))[0], grade)
        if len(leading) > 1:
            finding += f", one of {len(leading)} comparisons"
        standing = f"Evidence grade {grade}: {GRADES[grade]}."
    if state_key in ("breached", "at risk") and effects and not withheld:
        worst = _worst_guardrail(effects)
        if worst is not None and worst.state.key in ("breached", "at risk") and worst not in leading:
            finding += f"; but {_harm(worst)}"
    _agree(state_key, leading, effects, result.path)
    gravity = list(CHECK_STATES)
    named = {
        check.name: check
        for check in sorted(checks, key=lambda c: gravity.index("warn" if c.state.key == "not-run" else c.state.key))
    }
    tests = result.data.get("assumption_tests") or {}
    assumptions = []
    for text in result.items("assumptions"):
        test = tests.get(text)
        check = named.get(_check_name(str(test))) if test else None
        if test is None:
            by = "No check can show it; it is judged by people"
        elif check is None:
            by = f"{formats.capital(_check_name(clean(str(test))))} check: not run"
        else:
            by = f"{formats.capital(check.name)} check: {check.state.label}"
        assumptions.append(AssumptionLine(clean(str(text)), by))
    provenance = result.node("provenance")
    numbers = []
    for step in provenance.nodes("sql", optional=True):
        text = formats.lines(str(step.raw("text")))
        known = next((s for s in library if s.text == text), None)
        if known is None:
            known = SqlText(len(library) + 1, step.text("step"), text)
            library.append(known)
        numbers.append(known.number)
    level = effects[0].level if effects else _level(run)
    arms = tuple(
        ArmLevel(
            metric=isolate(formats.capital(human(a.text("metric")))),
            arm=isolate(a.text("arm")),
            n=formats.count(int(a.number("n"))),
            quantity=_quantity(a, _unit(a), kind="confidence", level=level),
        )
        for a in result.nodes("arms")
    )
    left_out = result.data.get("left_out") or {}
    return Section(
        name=name,
        title=isolate(formats.capital(human(_short_name(name)))),
        anchor=_anchor("result", index),
        question=result.text("question"),
        method=human(result.text("method")),
        design=human(result.text("design")),
        grade=grade,
        grade_text=f"{grade}: lowered, because a check failed" if withheld else _grade_text(grade),
        state=STATES[state_key],
        finding=finding,
        standing=standing,
        effects=effects,
        arms=arms,
        checks=checks,
        assumptions=tuple(assumptions),
        left_out=tuple((clean(str(why)), formats.count(int(n))) for why, n in left_out.items()),
        refusals=_refusals(result.nodes("refusals", optional=True)),
        sql=tuple(numbers),
        owner=result.text("owner", "none named"),
        through=_through(provenance if provenance.has("as_of") else run),
        level=formats.level(level),
    )


def _agree(state_key: str, leading: Sequence[Effect], effects: Sequence[Effect], path: str) -> None:
    """A headline state that no effect bears stops the report."""
    keys = {effect.state.key for effect in leading}
    wrong = (
        (state_key == "positive" and not keys & {"positive", "above target"})
        or (state_key == "above target" and not keys & {"positive", "above target"})
        or (state_key == "negative" and "negative" not in keys)
        or (state_key in ("at risk", "breached") and not {e.state.key for e in effects} & {"at risk", "breached"})
    )
    if wrong:
        raise MissingFigure(
            f"{path}: the verdict '{state_key}' is borne by none of its readings ({', '.join(sorted(keys))})"
        )


def _through(node: _Node) -> str:
    """Up to when the data is complete; a table of units without times has no such date."""
    return formats.moment(node.text("as_of")) if node.has("as_of") else UNDATED


def _level(run: _Node) -> float:
    return round(1.0 - run.number("alpha"), 12)


def _lower(label: str) -> str:
    """The first letter small, inside a sentence; an acronym stays as it is."""
    return label if label[:2].isupper() and label[:2].isalpha() else label[:1].lower() + label[1:]


def _harm(effect: Effect) -> str:
    """What a guardrail in trouble does, in words."""
    verb = "is worse than" if effect.state.key == "breached" else "may be worse than"
    return f"{_lower(formats.shorten(effect.label, 80))} {verb} its margin{f' of {effect.margin_text}' if effect.margin_text else ''}"


def _worst_guardrail(effects: Iterable[Effect]) -> Effect | None:
    """The guardrail nearest to harm: by state, then by how much of its margin the bad end of the interval uses up."""

    def rank(effect: Effect) -> tuple[int, float]:
        bad = -effect.quantity.low if effect.direction == "up" else effect.quantity.high
        return _HARM.get(effect.state.key, len(_HARM)), -(bad / effect.margin) if effect.margin else 0.0

    guardrails = [effect for effect in effects if effect.guards]
    return min(guardrails, key=rank) if guardrails else None


# ---------------------------------------------------------------- claims

_CALL = re.compile(r"(effect|value|volume|population|cost)\((.*)\)")


def _input_name(name: str) -> str:
    """``effect(margin_90d)`` as ``effect on margin 90d``."""
    match = _CALL.fullmatch(name)
    if match is None:
        return isolate(human(name))
    lead = {"effect": "effect on ", "value": "", "volume": "rows of ", "population": "count of ", "cost": "cost of "}[
        match[1]
    ]
    what, _, more = match[2].partition(",")
    how = f" {'over' if match[1] in ('volume', 'population') else 'with'} {more.strip()}" if more else ""
    return isolate(f"{lead}{human(what.strip())}{how}")


def _input_unit(node: _Node) -> tuple[Unit, bool]:
    """The unit of an input, and whether it is written as a change."""
    return _unit(node), node.text("kind") == "effect"


def _input(node: _Node) -> Input:
    kind = node.text("kind")
    what, change = _input_unit(node)
    value = node.number("value")
    low, high = node.maybe("low"), node.maybe("high")
    if low is None or high is None or low == high:
        text, interval = formats.exact(value, what, change=change), "taken as exact"
    elif kind in ("value", "cost"):
        text = formats.exact(value, what)
        interval = formats.between(low, high, what)
    else:
        shown = formats.written(value, low, high, what, change=change)
        text, interval = shown.value, shown.range
    measured = kind in ("effect", "population", "volume")
    nobody = "not needed" if measured else "not given"
    return Input(
        name=_input_name(node.text("name")),
        kind=kind,
        text=text,
        range=interval,
        source=isolate(node.text("source", "measured" if measured else nobody)),
        owner=isolate(node.text("owner", nobody)),
        expires=formats.moment(node.text("expires")) if node.has("expires") else nobody,
        notes=node.texts("notes"),
    )


def _bridge(claim: _Node, amount: Quantity, net: Quantity, money: Unit) -> tuple[BridgeStep, ...]:
    steps = [BridgeStep("Amount", amount.text, amount.range, 0.0, amount.value, (amount.low, amount.high))]
    at = amount.value
    plain = Unit(money.kind, money.label)
    for cost in claim.nodes("costs", optional=True):
        value = cost.number("value")
        low, high = cost.maybe("low"), cost.maybe("high")
        text, spread = formats.exact(-value, plain), "taken as exact"
        if low is not None and high is not None and low < high:
            spread = formats.between(-high, -low, plain)
        name = isolate(formats.capital(human(cost.text("name"))))
        steps.append(BridgeStep(name, text, spread, at, at - value, None))
        at -= value
    if not math.isclose(at, net.value, rel_tol=1e-6, abs_tol=1e-6 * max(abs(amount.value), 1.0)):
        raise MissingFigure(f"{claim.path}: amount less costs is {at:g}, but net is {net.value:g}")
    steps.append(BridgeStep("Net", net.text, net.range, 0.0, net.value, (net.low, net.high)))
    return tuple(steps)


def _swings(
    claim: _Node, units: Mapping[str, tuple[Unit, bool]], net: Quantity, money: Unit, outcome: str
) -> tuple[Swing, ...]:
    """The inputs that can move, widest first; those taken as exact move nothing and are left out."""
    swings = []
    plain = Unit(money.kind, money.label)
    for node in claim.nodes("sensitivity", optional=True):
        raw = node.text("input")
        low_in, high_in = node.number("low_input"), node.number("high_input")
        if low_in == high_in:
            continue
        what, change = units.get(raw, (Unit("share"), False))
        at_low, at_high = node.number("net_at_low"), node.number("net_at_high")
        nets = [formats.alike(x, net.low, net.high, plain) for x in (at_low, at_high)]
        name = _input_name(raw)
        span = formats.between(low_in, high_in, what, change=change, whole=False)
        flips = node.flag("flips")
        turning = node.maybe("flips_at") if flips else node.maybe("break_even")
        at = formats.rounded(turning, what, change=change) if turning is not None else ""
        if flips and turning is not None:
            way = "falls" if turning < node.number("value") else "rises"
            said = f"{outcome} if {name} {way} to {at}; its range is {span}"
        elif flips:
            said = f"{outcome} somewhere inside the range of {name}, {span}"
        else:
            said = f"{formats.capital(name)} alone, anywhere from {span}, does not"
            said += f"; it would take {at}" if at else ""
        swings.append(
            Swing(
                name=name,
                inputs=span,
                nets=" to ".join(nets),
                net_at_low=at_low,
                net_at_high=at_high,
                flips=flips,
                sentence=sentence(said),
            )
        )
    return tuple(sorted(swings, key=lambda s: -abs(s.net_at_high - s.net_at_low)))


def _overturns(
    swings: Sequence[Swing], state: State, net: Quantity, noun: str, line: str, found: Sequence[Section]
) -> tuple[str, ...]:
    """What would overturn the claim: inputs that flip it, chance, and the doubts its evidence was left with."""
    lines = [swing.sentence for swing in swings if swing.flips]
    if swings and not lines:
        lines = [f"No single input, moved within its range, takes {line}. {swings[0].sentence}"]
    if not swings:
        lines = ["No input has a range, so nothing could be varied."]
    if state.key == "not conclusive":
        lines.append(f"Chance alone: the {net.interval_name} of the {noun} contains zero.")
    for section in found:
        lines += [
            f"{section.title}: {_lower(sentence(check.detail))}"
            for check in section.checks
            if check.state.key in ("fail", "warn")
        ]
    return tuple(dict.fromkeys(lines))


def _payback(claim: _Node) -> str:
    if not claim.has("payback"):
        return "not stated: it needs a cost, a positive amount and a period"
    node = claim.node("payback")
    what = _unit(node)
    if node.has("low") and node.has("high"):
        return _quantity(node, what).full
    value = formats.rounded(node.number("value"), what)
    never = f"because in {formats.probability(node.number('never'))} of the draws the cost is never covered"
    if not node.has("low"):
        return f"{value}; it has no interval, {never}"
    name = f"{formats.level(node.number('level'))} {INTERVALS['simulation']}"
    return f"{value} ({name} from {formats.rounded(node.number('low'), what)}, with no upper end, {never})"


def _decision(claim: _Node, withheld: bool) -> tuple[str, bool | None]:
    if not claim.has("decision"):
        return "No decision rule was declared.", None
    decision = claim.node("decision")
    target, observed, met = (
        decision.number("probability"),
        decision.number("observed_probability"),
        decision.flag("met"),
    )
    if met != (observed >= target):
        raise MissingFigure(f"{decision.path}.met contradicts {observed:g} against {target:g}")
    rule = f"The rule is to act when P({decision.text('threshold')}) is at least {formats.probability(target)}"
    if withheld:
        return f"{rule}. Do not act on it: a check on the evidence failed.", False
    return f"{rule}. It is {formats.probability(observed, [target])}: the rule is {'met' if met else 'not met'}.", met


def _claim_state(claim: _Node, net: Quantity, found: Sequence[Section]) -> State:
    verdict = claim.text("verdict")
    given = _VERDICTS.get(verdict, verdict)
    shown = _state_from_zero(net.low, net.high).key
    if given not in STATES:
        raise MissingFigure(f"{claim.path}.verdict is {verdict!r}, which the report does not know")
    if given == "withheld" or any(section.withheld for section in found):
        return STATES["withheld"]
    if given in ("at risk", "breached"):
        return STATES["breached" if any(section.state.key == "breached" for section in found) else given]
    if given == "above target" and shown == "positive":
        return STATES[given]
    if given != shown:
        raise MissingFigure(f"{claim.path} says '{verdict}' but its interval is {net.range}")
    return STATES[given]


def _claim(claim: _Node, index: int, run: _Node, sections: Mapping[str, Section]) -> ClaimFigures:
    currency = run.text("currency")
    amount_node = claim.node("amount")
    net_node = claim.node("net") if claim.has("net") else amount_node
    noun = "net" if claim.has("net") else "amount"
    money = _unit(net_node)
    # What is not money is the metric itself, moved: it is written as a change.
    moved = money.kind != "money"
    amount = _quantity(amount_node, _unit(amount_node), change=moved)
    net = _quantity(net_node, money, change=moved)
    costs = claim.nodes("costs", optional=True)
    evidence = claim.texts("evidence", optional=False)
    found = [sections[_short_name(name)] for name in evidence if _short_name(name) in sections]
    state = _claim_state(claim, net, found)
    grade = claim.text("grade")
    if grade not in GRADES:
        raise MissingFigure(f"{claim.path}.grade is {grade!r}; grades are A to E")
    p = claim.number("probability_positive")
    word = formats.likelihood(p)
    statement = claim.text("statement").rstrip(" .:")
    short = isolate(formats.shorten(statement, 140))
    reason = ""
    if state.key == "withheld":
        finding = f"{short}: withheld, because a check on its evidence failed"
        reason = " ".join(dict.fromkeys(s.standing for s in found if s.withheld)) or "A check on its evidence failed."
    else:
        # a statement that the interval does not bear out is quoted, so that nobody reads it as the finding
        doubt = {"not conclusive": "Not conclusive: ", "negative": "Contradicted: "}.get(state.key, "")
        lead = short if grade in CAUSAL_GRADES else f"Stated as \u201c{short}\u201d"
        lead = f"{doubt}\u201c{short}\u201d" if doubt else lead
        sure = f"({net.interval_name} {net.range}), {word} to be above zero"
        if net.low == net.high:
            sure = "(exact: no input has a range, so this is no measure of certainty)"
        finding = f"{lead}: {net.text}{' net of its cost' if costs else ''} {sure}"
        if grade not in CAUSAL_GRADES:
            finding += f"; evidence grade {grade}, {GRADES[grade]}"
        if state.key in ("breached", "at risk"):
            harms = [
                w
                for s in found
                if (w := _worst_guardrail(s.effects)) is not None and w.state.key in ("breached", "at risk")
            ]
            against = _harm(min(harms, key=lambda w: _HARM[w.state.key])) if harms else f"a {state.label}"
            finding += f"; but {against}"
            reason = f"{formats.capital(against)}."
    decision, met = _decision(claim, state.key == "withheld")
    # Not "the decision": that asks for a probability, and what is moved here is the central figure.
    line = f"the central {noun} across zero"
    if met is not None:
        threshold = claim.node("decision").text("threshold")
        figure = re.split(r"\W", threshold, maxsplit=1)[0]
        line = f"the central {'return on cost' if figure == 'roi' else figure} across its threshold ({threshold})"
    outcome = formats.capital(line.replace(" across ", " crosses ", 1))
    inputs = claim.nodes("inputs")
    units = {node.text("name"): _input_unit(node) for node in inputs}
    swings = _swings(claim, units, net, money, outcome)
    quantiles = tuple(
        sorted(_finite(x, f"{claim.path}.net_quantiles") for x in claim.items("net_quantiles", optional=True))
    )
    below = sum(x <= 0 for x in quantiles)
    read = tuple(_input(node) for node in inputs)
    n = _claim_n(claim, found)
    return ClaimFigures(
        name=claim.text("name"),
        title=isolate(formats.shorten(formats.capital(human(_short_name(claim.text("name")))), 80)),
        anchor=_anchor("claim", index),
        statement=statement,
        state=state,
        finding=finding,
        reason=reason,
        grade=grade,
        grade_text=_claim_grade(grade, found),
        grade_reasons=claim.texts("grade_reasons"),
        evidence=evidence,
        amount=amount,
        expression=claim.text("amount_expression"),
        extrapolated=any(i.kind in ("population", "volume") for i in read),
        has_costs=bool(costs),
        cost=formats.exact(claim.number("cost"), Unit("money", currency)) if costs else "none declared",
        noun=noun,
        net=net,
        roi=_quantity(claim.node("roi"), formats.RELATIVE, change=True) if claim.has("roi") else None,
        payback=_payback(claim),
        probability=f"{formats.probability(p)} ({word})",
        decision=decision,
        decision_met=met,
        bridge=_bridge(claim, amount, net, money) if costs else (),
        inputs=read,
        swings=swings,
        overturns=_overturns(swings, state, net, noun, line, found),
        dots=quantiles if len(quantiles) == 20 else (),
        dots_text=f"The {noun} is zero or less in {below or 'none'} of 20 equally likely outcomes."
        if len(quantiles) == 20
        else "",
        money=money,
        assumptions=claim.texts("assumptions"),
        notes=claim.texts("notes"),
        n=formats.count(n) if n else "not counted",
        through=_through(run),
        owner=isolate(claim.text("owner", "none named")),
    )


def _claim_n(claim: _Node, found: Sequence[Section]) -> int:
    """The units behind the effects that the amount is computed from; of several, the fewest. 0: not known here."""
    sizes = []
    for node in claim.nodes("inputs"):
        match = _CALL.fullmatch(node.text("name"))
        if match is not None and match[1] == "effect":
            metric, _, arm = match[2].partition(",")
            arm = arm.strip().strip("\"'")
            effects = [e for s in found for e in s.effects if e.metric == metric.strip()]
            sizes += [e.n for e in effects if not arm or e.contrast.startswith(f"{arm} vs ")]
    return min(sizes, default=0)


def _claim_grade(grade: str, found: Sequence[Section]) -> str:
    """What the letter means; a letter below that of its weakest evidence was lowered for reasons that the claim lists."""
    weakest = max(found, key=lambda section: section.grade, default=None)
    if weakest is not None and grade > weakest.grade:
        return f"{grade}: lowered from {weakest.grade}, for the reasons given with the claim"
    # Evidence that a failed check lowered to C is no "observational data, adjusted".
    return weakest.grade_text if weakest is not None and grade == weakest.grade else _grade_text(grade)


def _finite(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MissingFigure(f"{path} is {value!r}, not a finite number")
    return float(value)


# ---------------------------------------------------------------- the whole


def _claim_card(claim: ClaimFigures) -> Card:
    facts = [
        ("Chance that it is above zero", claim.probability),
        ("Evidence", claim.grade_text),
        ("Units", claim.n),
        ("Data through", claim.through),
        ("Owner", claim.owner),
    ]
    if claim.state.key == "withheld":
        facts = facts[1:]
    return Card(
        kind="Net of cost" if claim.has_costs else "Amount",
        subject=claim.title,
        quantity=claim.net,
        state=claim.state,
        reason=claim.reason,
        facts=tuple(facts),
        anchor=claim.anchor,
        extrapolated=claim.extrapolated,
    )


def _roi_card(claim: ClaimFigures, roi: Quantity) -> Card:
    state = (
        claim.state if claim.state.key in ("withheld", "breached", "at risk") else _state_from_zero(roi.low, roi.high)
    )
    return Card(
        kind="Return on cost",
        subject=claim.title,
        quantity=roi,
        state=state,
        reason="",
        facts=(
            ("Payback", claim.payback),
            ("Cost", claim.cost),
            ("Evidence", claim.grade_text),
            ("Data through", claim.through),
            ("Owner", claim.owner),
        ),
        anchor=claim.anchor,
        extrapolated=claim.extrapolated,
    )


def _effect_card(section: Section, effect: Effect, kind: str) -> Card:
    facts = [
        ("Contrast", effect.contrast),
        ("Test", effect.p_value if effect.p_value != "not defined" else "no p-value is defined"),
        ("Evidence", section.grade_text),
        ("Units", formats.count(effect.n)),
        ("Data through", section.through),
        ("Owner", section.owner),
    ]
    if effect.target_text:
        facts.insert(1, ("Target", effect.target_text))
    if effect.margin_text:
        facts.insert(1, ("Margin of harm", effect.margin_text))
    if section.withheld or effect.guards:  # a test against zero says nothing about a margin
        facts = [fact for fact in facts if fact[0] != "Test"]
    return Card(
        kind,
        effect.label,
        effect.quantity,
        effect.state,
        section.standing if section.withheld else "",
        tuple(facts),
        section.anchor,
    )


def _cards(claims: Sequence[ClaimFigures], sections: Sequence[Section]) -> tuple[Card, ...]:
    cards = [_claim_card(claim) for claim in claims[:2]]
    if claims and claims[0].roi is not None:
        cards.append(_roi_card(claims[0], claims[0].roi))
    guardrails = [(s, w) for s in sections if (w := _worst_guardrail(s.effects)) is not None]
    room = 6 - len(cards) - bool(guardrails)
    primaries = [(s, e) for s in sections for e in (_leading(s.effects) or s.effects) if not e.guards]
    kinds = {
        "primary": "Primary metric",
        "north_star": "North star",
        "secondary": "Exploratory metric",
        "vanity": "Vanity metric",
    }
    cards += [_effect_card(s, e, kinds[e.role]) for s, e in primaries[:room]]
    if guardrails:
        section, worst = min(guardrails, key=lambda pair: _HARM.get(pair[1].state.key, len(_HARM)))
        cards.append(
            _effect_card(
                section, worst, "Worst guardrail" if len(section.guardrails) > 1 or len(guardrails) > 1 else "Guardrail"
            )
        )
    return tuple(cards)


def _risks(
    claims: Sequence[ClaimFigures], sections: Sequence[Section], refusals: Sequence[RefusalLine]
) -> tuple[str, ...]:
    """The three largest, in a fixed order of gravity."""
    found: list[tuple[int, str]] = []
    for s in sections:
        where = f"{s.title}: "
        found += [(0, f"{where}{_lower(sentence(c.detail))}") for c in s.checks if c.state.key == "fail"]
        for e in s.guardrails:
            text = f"{where}{_harm(e)}: {e.quantity.full} {_contrast_words(e.contrast)}."
            found += [(1 if e.state.key == "breached" else 3, text)] if e.state.key in ("breached", "at risk") else []
        found += [(5, f"{where}{_lower(sentence(c.detail))}") for c in s.checks if c.state.key == "warn"]
    for c in claims:
        found += [(2, f"{c.title}: {_lower(w.sentence)}") for w in c.swings if w.flips]
        if c.grade != "A":
            why = " ".join(c.grade_reasons)
            found.append(
                (
                    2 if c.grade in ("D", "E") else 4,
                    f"{c.title}: evidence is graded {c.grade}, not A. {sentence(why)}".rstrip(" .") + ".",
                )
            )
    if claims or sections:
        found += [(6, f"Not answered, {isolate(human(_short_name(r.name)))}: {sentence(r.reason)}") for r in refusals]
    ordered = [text for _, text in sorted(found, key=lambda pair: pair[0])]
    return tuple(dict.fromkeys(ordered))[:3]


def _wanted(run: _Node, report: str | None) -> tuple[tuple[str, ...] | None, _Node | None]:
    if report is None:
        return None, None
    reports = run.data.get("reports") or {}
    if report not in reports:
        raise UsageError(f"'{report}' is not a report of this project{did_you_mean(report, reports)}")
    node = _Node(reports[report], f"run.reports.{report}")
    return tuple(node.texts("show", optional=False)), node


def _select(run: _Node, show: Sequence[str]) -> tuple[list[_Node], list[_Node], list[_Node]]:
    """What a report shows. A claim brings its evidence with it: money without its evidence is not shown."""
    claims, results, refusals = run.nodes("claims"), run.nodes("results"), run.nodes("refusals")
    refused = {_short_name(r.text("name")): r for r in refusals}
    keep_claims: list[_Node] = []
    keep_names: list[str] = []
    keep_refusals: list[_Node] = []
    for item in show:
        kind, _, name = item.partition(".")
        hits = 0
        if kind == "claims":
            for claim in claims:
                if _short_name(claim.text("name")) == name:
                    keep_claims.append(claim)
                    keep_names += [_short_name(e) for e in claim.texts("evidence", optional=False)]
                    hits += 1
        elif kind == "metrics":
            names = [
                _short_name(r.text("name"))
                for r in results
                if any(e.text("metric") == name for e in r.nodes("estimates"))
            ]
            keep_names += names
            hits += len(names)
        else:
            names = [_short_name(r.text("name")) for r in results if _short_name(r.text("name")) == name]
            keep_names += names
            hits += len(names)
        if name in refused:
            keep_refusals.append(refused[name])
            hits += 1
        if not hits:
            raise MissingFigure(f"the report shows '{item}', but the run has neither a figure nor a refusal for it")
    keep_refusals += [refused[n] for n in keep_names if n in refused and refused[n] not in keep_refusals]
    return keep_claims, [r for r in results if _short_name(r.text("name")) in keep_names], keep_refusals


def build(run: Mapping[str, Any], report: str | None = None) -> Figures:
    """The figures of a run (its JSON), or of the one ``report`` of it that is named. Raises MissingFigure, UsageError."""
    node = _Node(run, "run")
    show, shown = _wanted(node, report)
    if show is None:
        claim_nodes, result_nodes, refusal_nodes = (
            list(node.nodes("claims")),
            list(node.nodes("results")),
            list(node.nodes("refusals")),
        )
    else:
        claim_nodes, result_nodes, refusal_nodes = _select(node, show)
    library: list[SqlText] = []
    sections = tuple(_section(r, i, node, library) for i, r in enumerate(result_nodes))
    by_name = {_short_name(s.name): s for s in sections}
    claims = tuple(_claim(c, i, node, by_name) for i, c in enumerate(claim_nodes))
    within = {(line.name, line.reason) for section in sections for line in section.refusals}
    refusals = tuple(line for line in _refusals(refusal_nodes) if (line.name, line.reason) not in within)
    through = _through(node)
    if claims:
        title, state, decision = claims[0].finding, claims[0].state, claims[0].decision
        standfirst = f"Evidence grade {claims[0].grade_text}. {claims[0].reason}".strip()
    elif sections:
        title, state, decision = sections[0].finding, sections[0].state, ""
        standfirst = f"{sentence(isolate(sections[0].question))} {sections[0].standing}"
    elif refusals:
        several = f"None of the {len(refusals)} questions"
        title = f"{several if len(refusals) > 1 else 'The one question asked'} could {'' if len(refusals) > 1 else 'not '}be answered from the data"
        state, decision = STATES["refused"], ""
        standfirst = "Each reason is below, with what would change it."
    else:
        raise MissingFigure("the run has no result, no claim and no refusal; there is nothing to report")
    project = node.text("project")
    parts = [project]
    if shown is not None:
        parts.append(shown.text("title", formats.capital(human(str(report)))))
        if shown.has("audience"):
            parts.append(f"for {human(shown.text('audience'))}")
    versions = node.data.get("versions") or {}
    provenance = [
        ("Run", node.text("run_id")),
        ("Started", formats.moment(node.text("started"))),
        ("Data through", through),
        ("Definitions", node.text("definition_hash")),
        ("Data fingerprint", node.text("data_fingerprint")),
        ("Random seed", str(int(node.number("seed")))),
        ("Currency", node.text("currency")),
        ("Level of intervals", formats.level(_level(node))),
        ("Versions", ", ".join(f"{clean(str(k))} {clean(str(v))}" for k, v in versions.items()) or "not recorded"),
    ]
    plan = tuple(
        (
            clean(str(p.raw("step"))),
            p.text("source", "earlier steps"),
            p.text("purpose"),
            ", ".join(p.texts("columns")) or "none",
        )
        for p in node.nodes("plan", optional=True)
    )
    return Figures(
        project=isolate(project),
        kicker=" \u00b7 ".join(isolate(part) for part in parts),
        title=title,
        standfirst=standfirst,
        state=state,
        decision=decision,
        cards=_cards(claims, sections),
        risks=_risks(claims, sections, refusals),
        claims=claims,
        sections=sections,
        refusals=refusals,
        sql=tuple(library),
        plan=plan,
        provenance=tuple(provenance),
        through=through,
        level=formats.level(_level(node)),
    )


def of_result(result: Mapping[str, Any]) -> Section:
    """The section of one result alone, as ``Result.to_dict`` gives it."""
    return _section(_Node(result, "result"), 0, _Node({"alpha": 0.05}, "run"), [])

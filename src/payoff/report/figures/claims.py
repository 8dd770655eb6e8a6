"""A claim as money: from its amount to its net, what it is computed from, and what would overturn it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from payoff import formats
from payoff.formats import Unit, human, isolate
from payoff.report.figures.experiment import HARM, Section, harm_in_words, worst_guardrail
from payoff.report.figures.reading import (
    CAUSAL_GRADES,
    GRADES,
    INTERVALS,
    STATES,
    VERDICTS,
    MissingFigure,
    Node,
    Quantity,
    State,
    anchor_of,
    data_through,
    finite,
    full_name,
    grade_text,
    level_of,
    read_quantity,
    read_unit,
    sentence,
    short_name,
    state_from_zero,
    uncapital,
)


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
class CompareLine:
    """What an attribution credits, beside a claim that was measured. Without a figure its sentence says why."""

    name: str
    model: str
    quantity: Quantity | None
    sentence: str


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
    compare: tuple[CompareLine, ...] = ()


_CALL = re.compile(r"(effect|value|volume|population|cost|attributed)\((.*)\)")


def _input_name(name: str) -> str:
    """``effect(margin_90d)`` as ``effect on margin 90d``."""
    match = _CALL.fullmatch(name)
    if match is None:
        return isolate(human(name))
    lead = {"effect": "effect on ", "value": "", "volume": "rows of ", "population": "count of ", "cost": "cost of "}[
        match[1]
    ]
    what, _, more = match[2].partition(",")
    if match[1] == "attributed":
        model, _, point = more.partition(",")
        to = f" to {isolate(human(point.strip()))}" if point.strip() else ""
        return isolate(f"attributed{to} by {human(model.strip())} ({human(short_name(what.strip()))})")
    how = f" {'over' if match[1] in ('volume', 'population') else 'with'} {more.strip()}" if more else ""
    return isolate(f"{lead}{human(what.strip())}{how}")


def _input_unit(node: Node) -> tuple[Unit, bool]:
    """The unit of an input, and whether it is written as a change."""
    return read_unit(node), node.text("kind") == "effect"


def _input(node: Node) -> Input:
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
    measured = kind in ("effect", "population", "volume", "attributed")
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


def _bridge(claim: Node, amount: Quantity, net: Quantity, money: Unit) -> tuple[BridgeStep, ...]:
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
    claim: Node, units: Mapping[str, tuple[Unit, bool]], net: Quantity, money: Unit, outcome: str
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
            f"{section.title}: {uncapital(sentence(check.detail))}"
            for check in section.checks
            if check.state.key in ("fail", "warn")
        ]
    return tuple(dict.fromkeys(lines))


def _payback(claim: Node) -> str:
    if not claim.has("payback"):
        return "not stated: it needs a cost, a positive amount and a period"
    node = claim.node("payback")
    what = read_unit(node)
    if node.has("low") and node.has("high"):
        return read_quantity(node, what).full
    value = formats.rounded(node.number("value"), what)
    never = f"because in {formats.probability(node.number('never'))} of the draws the cost is never covered"
    if not node.has("low"):
        return f"{value}; it has no interval, {never}"
    name = f"{formats.level(node.number('level'))} {INTERVALS['simulation']}"
    return f"{value} ({name} from {formats.rounded(node.number('low'), what)}, with no upper end, {never})"


def _decision(claim: Node, withheld: bool) -> tuple[str, bool | None]:
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


def _claim_state(claim: Node, net: Quantity, found: Sequence[Section]) -> State:
    verdict = claim.text("verdict")
    given = VERDICTS.get(verdict, verdict)
    shown = state_from_zero(net.low, net.high).key
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


def read_claim(claim: Node, index: int, run: Node, sections: Mapping[str, Section]) -> ClaimFigures:
    currency = run.text("currency")
    amount_node = claim.node("amount")
    net_node = claim.node("net") if claim.has("net") else amount_node
    noun = "net" if claim.has("net") else "amount"
    money = read_unit(net_node)
    # What is not money is the metric itself, moved: it is written as a change.
    moved = money.kind != "money"
    amount = read_quantity(amount_node, read_unit(amount_node), change=moved)
    net = read_quantity(net_node, money, change=moved)
    costs = claim.nodes("costs", optional=True)
    evidence = claim.texts("evidence", optional=False)
    found = [sections[full_name(name)] for name in evidence if full_name(name) in sections]
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
                if (w := worst_guardrail(s.effects)) is not None and w.state.key in ("breached", "at risk")
            ]
            against = harm_in_words(min(harms, key=lambda w: HARM[w.state.key])) if harms else f"a {state.label}"
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
        sorted(finite(x, f"{claim.path}.net_quantiles") for x in claim.items("net_quantiles", optional=True))
    )
    below = sum(x <= 0 for x in quantiles)
    read = tuple(_input(node) for node in inputs)
    n = _claim_n(claim, found)
    return ClaimFigures(
        name=claim.text("name"),
        title=isolate(formats.shorten(formats.capital(human(short_name(claim.text("name")))), 80)),
        anchor=anchor_of("claim", index),
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
        roi=read_quantity(claim.node("roi"), formats.RELATIVE, change=True) if claim.has("roi") else None,
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
        through=data_through(run),
        owner=isolate(claim.text("owner", "none named")),
        compare=tuple(_compare(c, level_of(run)) for c in claim.nodes("compare", optional=True)),
    )


def _compare(node: Node, level: float) -> CompareLine:
    given = node.has("value")
    kind = node.text("interval_kind", "bootstrap")
    at = node.maybe("level") or level
    return CompareLine(
        name=isolate(formats.capital(human(node.text("name").partition(".")[2] or node.text("name")))),
        model=isolate(formats.capital(human(node.name("model")))) if node.text("model", "") else "no model",
        quantity=read_quantity(node, read_unit(node), kind=kind, level=at) if given else None,
        sentence=sentence(formats.capital(node.prose("sentence"))),
    )


def _claim_n(claim: Node, found: Sequence[Section]) -> int:
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
    return weakest.grade_text if weakest is not None and grade == weakest.grade else grade_text(grade)

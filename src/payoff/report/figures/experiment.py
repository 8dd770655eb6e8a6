"""One result as a section of the report: its effects, arms, checks and assumptions, and the sentence that leads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from payoff import formats
from payoff.formats import Unit, clean, human, isolate
from payoff.report.figures.attribution import AttributionFigures, read_attribution, stitching_parts
from payoff.report.figures.cohorts import CohortFigures, read_cohort
from payoff.report.figures.grids import Part
from payoff.report.figures.journeys import (
    FunnelFigures,
    PathFigures,
    read_funnel,
    read_paths,
)
from payoff.report.figures.looks import Looks, flips_in_words, read_looks
from payoff.report.figures.programme import Programme, is_programme, read_programme
from payoff.report.figures.reading import (
    CAUSAL_GRADES,
    CHECK_STATES,
    GRADES,
    STATES,
    VERDICTS,
    MissingFigure,
    Node,
    Quantity,
    RefusalLine,
    State,
    anchor_of,
    contrast_words,
    data_through,
    grade_text,
    level_of,
    read_quantity,
    read_refusals,
    read_unit,
    sentence,
    short_name,
    state_from_zero,
    state_of,
    title_of,
    uncapital,
)

ROLES = {
    "north_star": "north star",
    "primary": "primary",
    "secondary": "secondary",
    "guardrail": "guardrail",
    "vanity": "vanity",
}


HARM = {"breached": 0, "at risk": 1, "safe": 2}


_CHECK_NAMES = {"srm": "sample ratio"}


JourneyFigures = FunnelFigures | CohortFigures | PathFigures | AttributionFigures
_JOURNEYS: Mapping[str, Callable[[Node], JourneyFigures]] = {
    "funnel": read_funnel,
    "cohort": read_cohort,
    "path": read_paths,
    "attribution": read_attribution,
}


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
    adjusted: Quantity | None = None
    adjusted_p: str = ""
    family: str = ""

    @property
    def deciding(self) -> Quantity:
        """The interval that decides the state: corrected, where the metric is one of several questions."""
        return self.adjusted or self.quantity

    @property
    def test(self) -> str:
        """The p-value that goes with the deciding interval."""
        return self.adjusted_p or self.p_value

    @property
    def role_text(self) -> str:
        return ROLES[self.role] + ("" if self.direction == "up" else ", lower is better")

    @property
    def part(self) -> str:
        """Its role, or the family of questions that it is one of."""
        if not self.family:
            return self.role_text
        lead = "" if f" {ROLES[self.role]} " in self.family else f"{ROLES[self.role]}; "
        return lead + self.family + ("" if self.direction == "up" else "; lower is better")

    @property
    def n_text(self) -> str:
        return formats.count(self.n)

    @property
    def guards(self) -> bool:
        """Read against a margin of harm, whatever role it shows."""
        return self.role == "guardrail" or self.state.key in HARM

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
    looks: Looks = field(default_factory=Looks)
    programme: Programme | None = None
    journey: JourneyFigures | None = None
    parts: tuple[Part, ...] = ()
    """What is placed as it is: the tables and pictures of a journey, and what identity did to the rows."""

    def quantities(self) -> Iterator[Quantity]:
        """Every number that has an interval, in reading order."""
        for effect in self.effects:
            yield effect.deciding
            if effect.adjusted is not None:
                yield effect.quantity
            if effect.relative is not None:
                yield effect.relative
        for arm in self.arms:
            yield arm.quantity
        yield from self.looks.quantities()
        if self.programme is not None:
            yield from self.programme.quantities()
        for part in self.parts:
            yield from part.quantities()

    @property
    def contrast(self) -> str:
        """The one contrast of all effects, or nothing where there are several."""
        contrasts = {effect.contrast for effect in self.effects}
        return contrasts.pop() if len(contrasts) == 1 else ""

    @property
    def guardrails(self) -> tuple[Effect, ...]:
        return tuple(effect for effect in self.effects if effect.guards)

    @property
    def vanity(self) -> tuple[Effect, ...]:
        return tuple(effect for effect in self.effects if effect.role == "vanity")

    @property
    def withheld(self) -> bool:
        return self.state.key == "withheld"


def _check_reading(effect: Effect, path: str) -> None:
    """The sentence and the table must agree: a state that the interval does not bear stops the report."""
    good = 1.0 if effect.direction == "up" else -1.0
    ends = sorted((good * effect.deciding.low, good * effect.deciding.high))
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
        raise MissingFigure(f"{path} says '{effect.state.label}' but its interval is {effect.deciding.range}")


_READINGS = {
    "above target": "The whole interval is better than the target.",
    "positive": "The whole interval is better than zero.",
    "negative": "The whole interval is worse than zero.",
    "not conclusive": "The interval contains zero: an effect in either direction fits the data.",
    "withheld": "A check failed; do not use this figure.",
}


def _reading_text(state: State, margin_text: str, given: str, alone: bool) -> str:
    """``alone``: read by itself the interval would exclude zero; corrected for its family it does not."""
    if state.key == "not conclusive" and alone:
        return "Read alone the interval excludes zero; corrected for its family it contains it."
    if state.key == "safe":
        return f"Harm of {margin_text} or more is excluded." if margin_text else given
    if state.key == "at risk":
        return f"Harm of {margin_text} is not excluded." if margin_text else given
    if state.key == "breached":
        return f"The whole interval is worse than the margin of {margin_text}." if margin_text else given
    return _READINGS.get(state.key, given)


def _effects(result: Node, withheld: bool) -> tuple[Effect, ...]:
    readings = {(r.text("metric"), r.text("contrast")): r for r in result.nodes("readings")}
    estimates = result.nodes("estimates")
    relative = {}
    for e in estimates:
        if e.text("estimand") == "relative lift":
            relative[e.text("metric"), e.text("contrast"), e.text("segment", "")] = e
    elsewhere = _shown_elsewhere(result)
    effects = []
    for e in estimates:
        estimand = e.text("estimand")
        metric, contrast, segment = e.text("metric"), e.text("contrast"), e.text("segment", "")
        if (
            estimand in _NOT_EFFECTS
            or estimand.startswith("difference in means, ")
            or (metric, contrast, segment) in elsewhere
        ):
            continue
        what = read_unit(e)
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
        state = STATES["withheld"] if withheld else state_of(reading) if reading else STATES["not conclusive"]
        if reading is None and not withheld:
            state = state_from_zero(e.number("low"), e.number("high"))
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
            quantity=read_quantity(e, what, change=True, against=lines),
            estimand=estimand,
            relative=read_quantity(lift, formats.RELATIVE, change=True) if lift is not None else None,
            relative_note="" if lift is not None else "not stated",
            p_value=formats.p_value(e.number("p_value"), 1 - e.number("level")) if e.has("p_value") else "not defined",
            n=n,
            state=state,
            reading=_reading_text(state, margin_text, given, e.number("low") * e.number("high") > 0),
            caveat=caveat,
            margin=margin,
            margin_text=margin_text,
            target=good * target if target is not None else None,
            target_text=formats.exact(good * target, what, change=True) if target is not None else "",
            level=e.number("level"),
            **_correction(e, what, lines),
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


_NOT_EFFECTS = ("relative lift", "relative lift, posterior")
_FAMILIES = {"holm": ("primary", "Holm"), "benjamini-hochberg": ("secondary", "Benjamini-Hochberg")}


def _shown_elsewhere(result: Node) -> set[tuple[str, str, str]]:
    """The estimates of single classes that stand in a table of segments: never in a row beside the overall effects."""
    if not result.has("closer"):
        return set()
    return {
        (table.text("metric"), table.text("contrast"), clean(f"{table.text('attribute')}={row.raw('segment')}"))
        for table in result.node("closer").nodes("segments", optional=True)
        for row in table.nodes("rows")
    }


class _Corrected(TypedDict, total=False):
    adjusted: Quantity
    adjusted_p: str
    family: str


def _correction(estimate: Node, what: Unit, lines: Sequence[float]) -> _Corrected:
    """The same estimate as one of several answers: what decides, where there is a family."""
    if not estimate.has("correction"):
        return {}
    node = estimate.node("correction")
    method, of = node.text("method"), int(node.number("of"))
    if method not in _FAMILIES:
        raise MissingFigure(f"{node.path}.method is {method!r}, which the report does not know")
    if estimate.has("p_value") and node.number("p_value") < estimate.number("p_value") * (1 - 1e-9):
        raise MissingFigure(f"{node.path}.p_value is smaller than the one before the correction")
    part, name = _FAMILIES[method]
    return {
        "adjusted": read_quantity(
            estimate, what, change=True, against=lines, ends=node, note=f"corrected for {of} questions"
        ),
        "adjusted_p": formats.p_value(node.number("p_value"), 1 - estimate.number("level")),
        "family": f"one of {of} {part} questions, {name}",
    }


def _n(estimate: Node) -> int:
    counts = estimate.node("n").data
    if not counts:
        raise MissingFigure(f"{estimate.path}.n is empty; an estimate says how many units it is from")
    return int(sum(counts.values()))


def _finding(effect: Effect, grade: str) -> str:
    """The sentence of one effect. A causal verb only where the design bears one."""
    words, size = contrast_words(effect.contrast), formats.size(effect.deciding.text)
    interval = f"({effect.deciding.interval})"
    up = effect.deciding.value > 0
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
        return f"{name}: {effect.state.label}, {effect.deciding.text} {words} {interval}"
    return f"No conclusive change in {uncapital(name)}: {effect.deciding.text} {words} {interval}"


def leading_effects(effects: Sequence[Effect]) -> tuple[Effect, ...]:
    """The effects a result is judged by: its first primary's, one per contrast; else its north star's; else its only metric's."""
    for role in ("primary", "north_star"):
        named = [e.metric for e in effects if e.role == role]
        if named:
            return tuple(e for e in effects if e.metric == named[0])
    return tuple(effects) if len({e.metric for e in effects}) == 1 else ()


def _checks(result: Node) -> tuple[CheckLine, ...]:
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
                detail=formats.capital(check.prose("detail")),
            )
        )
    return tuple(lines)


def _check_name(name: str) -> str:
    return _CHECK_NAMES.get(name, human(name))


def read_section(result: Node, index: int, run: Node, library: list[SqlText]) -> Section:
    name = result.text("name")
    verdict = result.text("verdict")
    state_key = VERDICTS.get(verdict, verdict)
    if state_key not in STATES:
        raise MissingFigure(f"{result.path}.verdict is {verdict!r}, which the report does not know")
    withheld = state_key == "withheld"
    grade, method = result.text("grade", ""), result.text("method")
    journey = _JOURNEYS[method](result) if method in _JOURNEYS else None
    if grade not in (*GRADES, *([""] if journey is not None else [])):
        raise MissingFigure(f"{result.path}.grade is {grade!r}; grades are A to E")
    if (journey is not None) != (state_key == "descriptive") and not withheld:
        raise MissingFigure(f"{result.path}: the verdict of a '{method}' is not '{verdict}'")
    programme = read_programme(result) if is_programme(result) else None
    effects = () if programme is not None or journey is not None else _effects(result, withheld)
    checks = _checks(result)
    failed = [check for check in checks if check.state.key == "fail"]
    leading = leading_effects(effects)
    if any(e.state.key == "breached" for e in effects) and state_key in ("positive", "above target", "at risk"):
        state_key = "breached"
    if withheld:
        why = failed[0].name + " check failed" if failed else "a check failed"
        finding = f"Withheld: the {why}, so no {'figure' if journey is not None else 'effect'} may be read from {isolate(formats.shorten(human(short_name(name)), 80))}"
        reason = " ".join(sentence(check.detail) for check in failed)
        standing = reason or "A check failed."
    elif journey is not None:
        finding = result.prose("finding").rstrip(" .")
        standing = "Descriptive: nothing was compared, so it has no grade."
        if grade:
            standing = (
                f"Descriptive: credit is shared out by rules, not an effect. Evidence grade {grade}: {GRADES[grade]}. Credit does not"
                " say what would not have come."
            )
    elif programme is not None:
        finding = _programme_finding(programme, VERDICTS.get(verdict, verdict), result.path)
        standing = f"Evidence grade {grade}: {GRADES[grade]}."
    elif not effects:
        finding = f"No figure could be given for {isolate(formats.shorten(human(short_name(name)), 80))}"
        standing = "The reasons and what would change them are below."
    elif not leading:
        metrics = len({e.metric for e in effects})
        finding = (
            f"{isolate(formats.capital(formats.shorten(human(short_name(name)), 80)))}: {metrics} metrics are read and none was "
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
        worst = worst_guardrail(effects)
        if worst is not None and worst.state.key in ("breached", "at risk") and worst not in leading:
            finding += f"; but {harm_in_words(worst)}"
    level = programme.level if programme is not None else effects[0].level if effects else level_of(run)
    if journey is not None:
        level = next((e.number("level") for e in result.nodes("estimates")), level)
    kind = effects[0].quantity.kind if effects else "confidence"
    looks = read_looks(result, level, kind, {(e.metric, e.contrast): e.quantity for e in effects}, withheld)
    flips = flips_in_words(looks)
    if flips and leading:
        finding += f"; {'and' if '; but ' in finding else 'but'} {flips}"
    if programme is None and journey is None:
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
    arms = tuple(
        ArmLevel(
            metric=isolate(formats.capital(human(a.text("metric")))),
            arm=isolate(a.name("arm")),
            n=formats.count(int(a.number("n"))),
            quantity=read_quantity(a, read_unit(a), kind="confidence", level=level),
        )
        for a in result.nodes("arms")
    )
    left_out = result.data.get("left_out") or {}
    return Section(
        name=name,
        title=title_of(name),
        anchor=anchor_of("result", index),
        question=result.text("question"),
        method=human(method),
        design=human(result.text("design")),
        grade=grade,
        grade_text=f"{grade}: lowered, because a check failed" if withheld else grade_text(grade),
        state=STATES[state_key],
        finding=finding,
        standing=standing,
        effects=effects,
        arms=arms,
        checks=checks,
        assumptions=tuple(assumptions),
        left_out=tuple((clean(str(why)), formats.count(int(n))) for why, n in left_out.items()),
        refusals=read_refusals(result.nodes("refusals", optional=True)),
        sql=tuple(numbers),
        owner=result.text("owner", "none named"),
        through=data_through(provenance if provenance.has("as_of") else run),
        level=formats.level(level),
        looks=looks,
        programme=programme,
        journey=journey,
        parts=(
            *(journey.parts if journey is not None else ()),
            *(stitching_parts(result.node("closer")) if result.has("closer") else ()),
        ),
    )


def _programme_finding(programme: Programme, verdict: str, path: str) -> str:
    """Leads with the total that may be believed, in no causal verb of its own: the experiments have theirs."""
    total = programme.leading
    if total is None:
        return f"{programme.metric} over {len(programme.members)} experiments: no total could be given"
    quantity = total.quantity
    if verdict in ("positive", "negative", "not conclusive") and (verdict == "not conclusive") != (
        quantity.low <= 0 <= quantity.high
    ):
        raise MissingFigure(f"{path} says '{verdict}' but the total's interval is {quantity.range}")
    luck = ", the luck of the winners taken out" if total.estimand.endswith("shrunk") else ", as measured"
    return f"{programme.metric} over the programme of {len(programme.members)} experiments{luck}: {quantity.full}"


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


def harm_in_words(effect: Effect) -> str:
    """What a guardrail in trouble does, in words."""
    verb = "is worse than" if effect.state.key == "breached" else "may be worse than"
    return f"{uncapital(formats.shorten(effect.label, 80))} {verb} its margin{f' of {effect.margin_text}' if effect.margin_text else ''}"


def worst_guardrail(effects: Iterable[Effect]) -> Effect | None:
    """The guardrail nearest to harm: by state, then by how much of its margin the bad end of the interval uses up."""

    def rank(effect: Effect) -> tuple[int, float]:
        bad = -effect.deciding.low if effect.direction == "up" else effect.deciding.high
        return HARM.get(effect.state.key, len(HARM)), -(bad / effect.margin) if effect.margin else 0.0

    guardrails = [effect for effect in effects if effect.guards]
    return min(guardrails, key=rank) if guardrails else None

"""The closer looks at a result: what adjustment did, for whom, when, where, how often it was looked at. Each number with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from payoff import formats
from payoff.formats import Unit, human, isolate
from payoff.report.figures.reading import (
    CHECK_STATES,
    MissingFigure,
    Node,
    Quantity,
    State,
    finite,
    read_quantity,
    read_unit,
    sentence,
    state_from_zero,
    state_of,
)

Look = TypeVar("Look")
_SHARE = Unit("share")
_RULES = {
    "fixed": "one planned read-out",
    "always_valid": "always-valid: any number of looks",
    "group_sequential": "group-sequential: a planned number of looks",
}
_PATTERNS = {"wears off": "warn", "grows": "strong", "steady": "quiet", "": "quiet"}


@dataclass(frozen=True, slots=True)
class PrecisionLook:
    """One difference with and without adjustment. ``worth``: how many times as many units the adjustment was worth."""

    label: str
    contrast: str
    by: str
    plain: Quantity
    adjusted: Quantity
    variance: str
    worth: str
    sentence: str


@dataclass(frozen=True, slots=True)
class SegmentLine:
    name: str
    n: str
    state: State
    quantity: Quantity | None
    pooled: Quantity | None
    p_value: str
    raw_p_value: str
    reason: str


@dataclass(frozen=True, slots=True)
class SegmentsLook:
    """One metric's difference by the classes of one attribute. ``flip``: "shown", "possible" or "none"."""

    attribute: str
    label: str
    contrast: str
    direction: str
    rows: tuple[SegmentLine, ...]
    interaction: str
    spread: str
    flip: str
    flip_test: str
    sentence: str

    @property
    def harmed(self) -> tuple[str, ...]:
        return tuple(row.name for row in self.rows if row.state.key == "negative")

    @property
    def read(self) -> tuple[SegmentLine, ...]:
        return tuple(row for row in self.rows if row.quantity is not None)


@dataclass(frozen=True, slots=True)
class TimeLine:
    label: str
    short: str
    n: str
    quantity: Quantity


@dataclass(frozen=True, slots=True)
class TimeLook:
    """An effect by days since exposure (each step's own), or the total gained up to each date."""

    label: str
    contrast: str
    direction: str
    calendar: bool
    band: str
    points: tuple[TimeLine, ...]
    left_out: int
    trend: str
    tone: str
    sentence: str
    unit: Unit

    @property
    def left_out_text(self) -> str:
        if not self.left_out or not self.calendar:  # of other steps the sentence says which, and why
            return ""
        steps = "step is" if self.left_out == 1 else "steps are"
        return f"{formats.count(self.left_out)} {steps} not yet over, and in no figure."


@dataclass(frozen=True, slots=True)
class PathLine:
    name: str
    treated: bool
    quantity: Quantity


@dataclass(frozen=True, slots=True)
class DisplacementLook:
    """``anyway`` is None where the data cannot tell; ``reason`` says why."""

    contrast: str
    gained: Quantity
    others: Quantity
    net: Quantity
    anyway: Quantity | None
    reason: str
    paths: tuple[PathLine, ...]
    sentence: str
    unit: Unit


@dataclass(frozen=True, slots=True)
class InteractionLook:
    other: str
    other_contrast: str
    label: str
    contrast: str
    both: str
    assignment: str
    quantity: Quantity | None
    test: str
    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class BayesLook:
    label: str
    contrast: str
    prior: str
    lift: Quantity
    chance: str
    loss: str
    sentence: str


@dataclass(frozen=True, slots=True)
class DilutedLook:
    label: str
    contrast: str
    share: Quantity
    quantity: Quantity
    sentence: str


@dataclass(frozen=True, slots=True)
class CappingLook:
    label: str
    contrast: str
    share: str
    cap: str
    above: str
    plain: Quantity
    capped: Quantity
    sentence: str


@dataclass(frozen=True, slots=True)
class LookLine:
    at: str
    by: str
    as_of: str
    units: int

    @property
    def units_text(self) -> str:
        return formats.count(self.units)


@dataclass(frozen=True, slots=True)
class PeekingLook:
    rule: str
    looks: tuple[LookLine, ...]
    state: State
    error: float
    alpha: float
    error_text: str
    alpha_text: str
    information: str
    sentence: str

    @property
    def times(self) -> int:
        """Looks that saw new units: the same data again tells nothing new."""
        return len({look.units for look in self.looks if look.units > 0})


@dataclass(frozen=True, slots=True)
class Looks:
    """All the closer looks of a result; each is empty where there is none. ``kept_back``: a check failed, so those that
    would conclude something are not shown."""

    precision: tuple[PrecisionLook, ...] = ()
    segments: tuple[SegmentsLook, ...] = ()
    over_time: tuple[TimeLook, ...] = ()
    cannibalisation: tuple[DisplacementLook, ...] = ()
    interactions: tuple[InteractionLook, ...] = ()
    bayes: tuple[BayesLook, ...] = ()
    diluted: tuple[DilutedLook, ...] = ()
    capping: tuple[CappingLook, ...] = ()
    peeking: PeekingLook | None = None
    overturn: tuple[str, ...] = ()
    kept_back: bool = False

    @property
    def alarms(self) -> tuple[SegmentsLook, ...]:
        """Sign flips: what the overall figure hides comes before it is read."""
        return tuple(sorted((s for s in self.segments if s.flip != "none"), key=lambda s: s.flip != "shown"))

    @property
    def by_days(self) -> tuple[TimeLook, ...]:
        return tuple(look for look in self.over_time if not look.calendar)

    @property
    def by_date(self) -> tuple[TimeLook, ...]:
        return tuple(look for look in self.over_time if look.calendar)

    @property
    def frequentist(self) -> tuple[str, ...]:
        """One sentence each, the Bayesian reading left apart."""
        parts = (self.precision, self.over_time, self.cannibalisation, self.interactions, self.diluted, self.capping)
        said = [look.sentence for part in parts for look in part]
        said += [look.sentence for look in self.segments if look.flip == "none"]
        if self.peeking is not None and (self.peeking.state.key == "warn" or self.peeking.times > 1):
            said.append(self.peeking.sentence)
        return tuple(said)

    def quantities(self) -> Iterator[Quantity]:
        for p in self.precision:
            yield from (p.adjusted, p.plain)
        for s in self.segments:
            for row in s.rows:
                yield from (q for q in (row.quantity, row.pooled) if q is not None)
        for t in self.over_time:
            yield from (point.quantity for point in t.points)
        for d in self.cannibalisation:
            yield from (d.gained, d.others, d.net)
            yield from (path.quantity for path in d.paths)
            if d.anyway is not None:
                yield d.anyway
        yield from (i.quantity for i in self.interactions if i.quantity is not None)
        yield from (b.lift for b in self.bayes)
        for e in self.diluted:
            yield from (e.share, e.quantity)
        for c in self.capping:
            yield from (c.plain, c.capped)


# ---------------------------------------------------------------- reading them


def _label(name: str) -> str:
    return isolate(formats.capital(human(name)))


def _said(node: Node) -> str:
    return formats.capital(node.prose("sentence"))


def _units(node: Node) -> str:
    counts = node.node("n").data
    return formats.count(sum(int(n) for n in counts.values())) if counts else "not shown"


def _variance(reduction: float) -> str:
    if abs(reduction) < 0.01:
        return "the variance changed by less than 1%"
    share = formats.probability(min(abs(reduction), 1.0))
    return f"{share} of the variance taken out" if reduction > 0 else f"the variance grew by {share}"


def _spread(tau: float, what: Unit) -> str:
    if tau == 0:
        return "no spread of the true differences is seen beyond chance"
    return f"the true differences are spread by about {formats.size(formats.rounded(tau, what, change=True))} (standard deviation)"


@dataclass(frozen=True, slots=True)
class _Reader:
    """What the intervals of one result are: their level and kind, and its alpha."""

    level: float
    kind: str
    estimates: Mapping[tuple[str, str], Quantity]

    @property
    def alpha(self) -> float:
        return 1 - self.level

    def span(self, node: Node, key: str, what: Unit, *, change: bool = True, note: str = "") -> Quantity:
        return read_quantity(node.node(key), what, change=change, kind=self.kind, level=self.level, note=note)

    def fixed(self, node: Node, key: str, what: Unit, *, change: bool = False, note: str = "") -> Quantity:
        """An interval that is made for one look, whatever the stopping rule of the differences."""
        return read_quantity(node.node(key), what, change=change, kind="confidence", level=self.level, note=note)

    def p(self, node: Node, key: str) -> str:
        return formats.p_value(node.number(key), self.alpha) if node.has(key) else "not defined"

    def precision(self, node: Node) -> PrecisionLook:
        metric, contrast, what = node.text("metric"), node.text("contrast"), read_unit(node)
        if (metric, contrast) not in self.estimates:
            raise MissingFigure(f"{node.path}: '{metric}' in '{contrast}' was adjusted, but has no estimate")
        covariates = ", ".join(isolate(human(c)) for c in node.texts("covariates", optional=False))
        return PrecisionLook(
            label=_label(metric),
            contrast=contrast,
            by=node.text("by") + (f" on {covariates}" if covariates else ""),
            plain=self.span(node, "plain", what),
            adjusted=self.estimates[metric, contrast],
            variance=_variance(node.number("variance_reduction")),
            worth=formats.times(node.number("units_factor")),
            sentence=_said(node),
        )

    def segments(self, node: Node) -> SegmentsLook:
        what, direction = read_unit(node), node.text("direction")
        rows = tuple(self._row(row, what, direction) for row in node.nodes("rows"))
        values = [row.quantity.value for row in rows if row.quantity is not None]
        flip = node.text("flip")
        if flip not in ("shown", "possible", "none"):
            raise MissingFigure(f"{node.path}.flip is {flip!r}, which the report does not know")
        if flip != "none" and not (values and min(values) < 0 < max(values)):
            raise MissingFigure(f"{node.path} says that the sign flips, but all its differences have one sign")
        statistic = formats.statistic(node.number("interaction_statistic"))
        df = int(node.number("interaction_df"))
        return SegmentsLook(
            attribute=isolate(human(node.text("attribute"))),
            label=_label(node.text("metric")),
            contrast=node.text("contrast"),
            direction=direction,
            rows=rows,
            interaction=f"chi-square {statistic} on {df} degree{'' if df == 1 else 's'} of freedom, {self.p(node, 'interaction_p')}",
            spread=_spread(node.number("tau"), what),
            flip=flip,
            flip_test=self.p(node, "flip_p"),
            sentence=_said(node),
        )

    def _row(self, row: Node, what: Unit, direction: str) -> SegmentLine:
        state = state_of(row)
        name = isolate(row.name("segment"))
        if state.key == "refused":
            return SegmentLine(name, _units(row), state, None, None, "", "", row.prose("reason"))
        quantity = self.span(row, "difference", what, note="corrected over all segments")
        good = 1.0 if direction == "up" else -1.0
        if state.key != state_from_zero(*sorted((good * quantity.low, good * quantity.high))).key:
            raise MissingFigure(f"{row.path} says '{state.label}' but its interval is {quantity.range}")
        return SegmentLine(
            name=name,
            n=_units(row),
            state=state,
            quantity=quantity,
            pooled=read_quantity(
                row.node("pooled"), what, change=True, kind="credible", level=self.level, note="partially pooled"
            )
            if row.has("pooled")
            else None,
            p_value=self.p(row, "p_value"),
            raw_p_value=self.p(row, "raw_p_value"),
            reason="",
        )

    def over_time(self, node: Node) -> TimeLook:
        what, axis, band, pattern = read_unit(node), node.text("axis"), node.text("band"), node.text("pattern", "")
        if axis not in ("days since exposure", "calendar"):
            raise MissingFigure(f"{node.path}.axis is {axis!r}, which the report does not know")
        if pattern not in _PATTERNS:
            raise MissingFigure(f"{node.path}.pattern is {pattern!r}, which the report does not know")
        calendar = axis == "calendar"
        points = []
        for point in node.nodes("points"):
            start, end = point.text("start"), point.text("end")
            label = f"up to {formats.moment(end)}" if calendar else f"days {start} to {end}"
            quantity = self.span(point, "difference", what, note="over all dates" if band == "simultaneous" else "")
            points.append(TimeLine(label, formats.moment(end) if calendar else end, _units(point), quantity))
        if not points:
            raise MissingFigure(f"{node.path}.points is empty")
        trend = ""
        if node.has("trend_p"):
            trend = f"{pattern or 'no verdict'}, {self.p(node, 'trend_p')}"
        return TimeLook(
            label=_label(node.text("metric")),
            contrast=node.text("contrast"),
            direction=node.text("direction"),
            calendar=calendar,
            band=band,
            points=tuple(points),
            left_out=int(node.number("left_out")),
            trend=trend,
            tone=_PATTERNS[pattern],
            sentence=_said(node),
            unit=what,
        )

    def displacement(self, node: Node) -> DisplacementLook:
        what = read_unit(node)
        gained, others, net = (self.span(node, key, what) for key in ("gained", "others", "net"))
        size = max(abs(q.value) for q in (gained, others, net))
        if not math.isclose(gained.value + others.value, net.value, rel_tol=1e-6, abs_tol=1e-6 * size):
            raise MissingFigure(
                f"{node.path}: gained {gained.value:g} and others {others.value:g}, but the net is {net.value:g}"
            )
        known = node.has("anyway")
        return DisplacementLook(
            contrast=node.text("contrast"),
            gained=gained,
            others=others,
            net=net,
            anyway=self.fixed(node, "anyway", _SHARE) if known else None,
            reason="" if known else node.prose("reason"),
            paths=tuple(
                PathLine(isolate(human(p.text("path"))), p.flag("treated"), self.span(p, "difference", what))
                for p in node.nodes("paths")
            ),
            sentence=_said(node),
            unit=what,
        )

    def interaction(self, node: Node) -> InteractionLook:
        known = node.has("difference")
        test = "not tested"
        if known:
            test = self.p(node, "p_value")
            if node.has("adjusted_p"):
                test = f"{self.p(node, 'adjusted_p')} corrected, {test} alone"
        return InteractionLook(
            other=isolate(human(node.text("other"))),
            other_contrast=node.text("other_contrast"),
            label=_label(node.text("metric")),
            contrast=node.text("contrast"),
            both=formats.count(int(node.number("both"))),
            assignment=self.p(node, "assignment_p") if node.has("assignment_p") else "not tested",
            quantity=self.span(node, "difference", read_unit(node)) if known else None,
            test=test,
            reason="" if known else node.prose("reason"),
            sentence=_said(node),
        )

    def posterior(self, node: Node) -> BayesLook:
        chance = node.number("chance_to_beat")
        mean = formats.rounded(node.number("prior_mean"), formats.RELATIVE, change=True)
        spread = formats.rounded(node.number("prior_sd"), formats.RELATIVE)
        lift = read_quantity(
            node.node("lift"), formats.RELATIVE, change=True, kind="credible", level=node.number("level")
        )
        return BayesLook(
            label=_label(node.text("metric")),
            contrast=node.text("contrast"),
            prior=f"normal on the relative lift, mean {mean}, standard deviation {spread}",
            lift=lift,
            chance=f"{formats.probability(chance)} ({formats.likelihood(chance)})",
            loss=formats.loss(node.number("expected_loss")),
            sentence=_said(node),
        )

    def diluted(self, node: Node) -> DilutedLook:
        return DilutedLook(
            label=_label(node.text("metric")),
            contrast=node.text("contrast"),
            share=self.fixed(node, "share", _SHARE),
            quantity=self.span(node, "difference", read_unit(node)),
            sentence=_said(node),
        )

    def capping(self, node: Node) -> CappingLook:
        what = read_unit(node)
        return CappingLook(
            label=_label(node.text("metric")),
            contrast=node.text("contrast"),
            share=formats.probability(node.number("share")),
            cap=formats.rounded(node.number("cap"), what),
            above=formats.count(int(node.number("above"))),
            plain=self.span(node, "plain", what),
            capped=self.span(node, "capped", what),
            sentence=_said(node),
        )

    def peeking(self, node: Node) -> PeekingLook:
        rule = node.text("rule")
        if rule not in _RULES:
            raise MissingFigure(f"{node.path}.rule is {rule!r}, which the report does not know")
        error, alpha = node.number("error"), node.number("alpha")
        looks = tuple(
            LookLine(
                at=formats.moment(look.text("at")),
                by=isolate(look.text("by", "not recorded")),
                as_of=formats.moment(look.text("as_of")) if look.has("as_of") else "not dated",
                units=int(look.number("units")),
            )
            for look in node.nodes("looks")
        )
        many = len({look.units for look in looks if look.units > 0}) > 1
        return PeekingLook(
            rule=_RULES[rule],
            looks=looks,
            state=CHECK_STATES["warn" if rule == "fixed" and many else "pass"],
            error=finite(error, node.path),
            alpha=alpha,
            error_text=formats.probability(error, [alpha]),
            alpha_text=formats.level(alpha),
            information=formats.rounded(node.number("information"), _SHARE) if node.has("information") else "",
            sentence=_said(node),
        )


def _all(closer: Node, key: str, read: Callable[[Node], Look]) -> tuple[Look, ...]:
    return tuple(read(node) for node in closer.nodes(key, optional=True))


def read_looks(
    result: Node, level: float, kind: str, estimates: Mapping[tuple[str, str], Quantity], withheld: bool
) -> Looks:
    """``estimates``: the reported difference of each (metric, contrast), against which others are shown."""
    if not result.has("closer"):
        return Looks()
    closer, reader = result.node("closer"), _Reader(level, kind, estimates)

    about = ("segments", "over_time", "cannibalisation", "interactions", "bayes", "diluted", "capping")
    peeking = reader.peeking(closer.node("peeking")) if closer.has("peeking") else None
    overturn = tuple(formats.capital(sentence(formats.fenced(line))) for line in closer.texts("overturn"))
    if withheld:
        return Looks(
            peeking=peeking,
            overturn=overturn,
            kept_back=any(closer.items(key, optional=True) for key in about),
        )
    return Looks(
        precision=_all(closer, "precision", reader.precision),
        segments=_all(closer, "segments", reader.segments),
        over_time=_all(closer, "over_time", reader.over_time),
        cannibalisation=_all(closer, "cannibalisation", reader.displacement),
        interactions=_all(closer, "interactions", reader.interaction),
        bayes=_all(closer, "bayes", reader.posterior),
        diluted=_all(closer, "diluted", reader.diluted),
        capping=_all(closer, "capping", reader.capping),
        peeking=peeking,
        overturn=overturn,
    )


def flips_in_words(looks: Looks) -> str:
    """What a shown sign flip adds to the finding."""
    found = [s for s in looks.alarms if s.flip == "shown"]
    if not found:
        return ""
    harmed = f" ({formats.shorten(', '.join(found[0].harmed), 80)}: harmed)" if found[0].harmed else ""
    return f"the sign flips by {formats.shorten(found[0].attribute, 80)}{harmed}"

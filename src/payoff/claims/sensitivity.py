"""What would change the answer: each input moved through its range, and the nearest value that turns the decision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from payoff import formats
from payoff.claims.calculation import Model, Threshold, finite
from payoff.claims.inputs import Bound
from payoff.claims.model import Quantity, Swing
from payoff.claims.words import percentage, rounded
from payoff.result import Result, Verdict
from payoff.spec.amount import AmountError
from payoff.spec.nouns import Claim

_SCAN = 100


def _crossing(state: Callable[[float], bool], start: float, stop: float) -> float | None:
    """The value nearest to ``start``, on the way to ``stop``, at which ``state`` changes; None when it does not.

    Scans first, for functions that turn, then bisects. A value that cannot be evaluated ends the search.
    """
    here = state(start)
    before = start
    for step in range(1, _SCAN + 1):
        x = start + (stop - start) * step / _SCAN
        try:
            if state(x) != here:
                break
        except AmountError:
            return None
        before = x
    else:
        return None
    inside, outside = before, x
    exact = max(1e-12 * abs(stop - start), 4 * math.ulp(max(abs(start), abs(stop))))  # no finer than floats are
    while abs(outside - inside) > exact:
        middle = (inside + outside) / 2
        if state(middle) == here:
            inside = middle
        else:
            outside = middle
    at = (inside + outside) / 2
    return 0.0 if abs(at) <= exact else at


def _nearest(state: Callable[[float], bool], centre: float, low: float, high: float) -> float | None:
    found = [x for x in (_crossing(state, centre, low), _crossing(state, centre, high)) if x is not None]
    return min(found, key=lambda x: abs(x - centre)) if found else None


@dataclass(frozen=True, slots=True)
class Words:
    """How a change of mind is written: "the net would be zero", "the sign of the net"."""

    outcome: str
    subject: str


def words_of(threshold: Threshold | None, subject: str, unit: str) -> Words:
    if threshold is None:
        return Words(f"{subject} would be zero", f"the sign of {subject}")
    figure = "the ROI" if threshold.figure == "roi" else f"the {threshold.figure}"
    if threshold.number == 0:
        return Words(
            f"{'the net' if threshold.figure == 'roi' else figure} would be zero",
            "whether the central net passes its threshold",
        )
    bar = rounded(threshold.number, formats.NUMBER if threshold.figure == "roi" else formats.unit(unit))
    return Words(f"{figure} would be {bar}, the decision's threshold", "whether the central net passes its threshold")


def _swing(
    label: str,
    phrase: str,
    centre: float,
    low: float,
    high: float,
    search: tuple[float, float],
    at: Callable[[float], tuple[float, float]],
    rule: Callable[[float, float], bool],
    show: Callable[[float], str],
    words: Words,
) -> Swing:
    def net(x: float) -> float:
        amount, cost = at(x)
        return amount - cost

    def state(x: float) -> bool:
        return rule(*at(x))

    path = [net(low + (high - low) * step / _SCAN) for step in range(_SCAN + 1)] if low < high else [net(centre)]
    finite(*path, max(path) - min(path))
    flips_at = _nearest(state, centre, low, high) if low < high else None
    break_even = flips_at if flips_at is not None else _nearest(state, centre, *search)
    if break_even is None:
        way = ""
    else:
        verb = "fell below" if break_even < centre else "rose above"
        way = f"if {phrase} {verb} {show(break_even)}, {words.outcome}"
    if flips_at is not None:
        sentence = f"{way[0].upper()}{way[1:]}; that lies within its range, {show(low)} to {show(high)}."
    elif low < high:
        sentence = f"Moving {phrase} anywhere from {show(low)} to {show(high)} does not change {words.subject}"
        sentence += f"; {way}, which lies outside that range." if way else "."
    else:
        sentence = f"{phrase[0].upper()}{phrase[1:]} is taken as exact, at {show(centre)}" + (
            f"; {way}." if way else "."
        )
    return Swing(
        input=label,
        value=centre,
        low_input=low,
        high_input=high,
        net_at_low=path[0],
        net_at_high=path[-1],
        swing=max(path) - min(path),
        flips=flips_at is not None,
        flips_at=flips_at,
        break_even=break_even,
        sentence=sentence,
    )


def swings_of(
    model: Model, claim: Claim, period: timedelta | None, words: Words, descriptive: bool
) -> tuple[tuple[Swing, ...], tuple[str, ...]]:
    swings: list[Swing] = []
    notes: list[str] = []
    for one in model.terms + model.costs:
        shown = one.show
        phrase = f"the figure for {shown.name}" if descriptive and shown.kind == "effect" else one.phrase

        def moved(x: float, one: Bound = one) -> tuple[float, float]:
            return model.at(one, x)

        def text(x: float, unit: str = shown.unit, kind: str = shown.kind) -> str:
            return rounded(x, formats.unit(unit), change=kind == "effect")

        swings.append(
            _swing(shown.name, phrase, shown.value, shown.low, shown.high, one.search, moved, model.rule, text, words)
        )

    def named(name: str, phrase: str, high: float, at: Callable[[float], tuple[float, float]]) -> None:
        swings.append(_swing(name, phrase, 0.0, 0.0, high, (0.0, high), at, model.rule, percentage, words))

    has_effect = any(one.show.kind == "effect" for one in model.terms)
    for asked in dict.fromkeys(claim.sensitivity):
        if asked != "discount_rate" and not has_effect:
            notes.append(f"The sensitivity to {asked} was asked for, but no measured effect enters the amount.")
        elif asked == "holdout_contamination":
            # A share c of the control group had the treatment after all, so the measured effect is (1 - c) of the true one.
            named(
                asked,
                "the share of the control group that was treated after all",
                0.10,
                lambda c: model.at(effects=1 / (1 - c)),
            )
        elif asked == "novelty_decay":
            # Linear from 1 to 1 - d over the period, whose mean is 1 - d / 2.
            named(
                asked,
                f"the part of the {'figure' if descriptive else 'effect'} lost by the end of the period",
                0.50,
                lambda d: model.at(effects=1 - d / 2),
            )
        elif period is None:
            notes.append(
                "The sensitivity to discount_rate was asked for, but the amount has no period to discount over."
            )
        else:
            years = period / timedelta(days=365)

            def discounted(rate: float, years: float = years) -> tuple[float, float]:
                # Money that comes in evenly over T years, discounted continuously; the cost is taken as paid at the start.
                x = rate * years
                return model.at(factor=-math.expm1(-x) / x if x > 0 else 1.0)

            named(asked, "the discount rate", 0.20, discounted)
    return tuple(sorted(swings, key=lambda swing: -swing.swing)), tuple(notes)


def overturn(
    swings: Sequence[Swing], headline: Quantity, verdict: Verdict, used: Mapping[str, Result], subject: str
) -> tuple[str, ...]:
    found: list[str] = []
    for name, result in used.items():
        for check in result.checks:
            if check.status in ("fail", "warn"):
                word = "failed" if check.status == "fail" else "gave a warning"
                found.append(f"The check {check.name} of {name} {word}: {check.detail}")
    if verdict == "not conclusive":
        found.append(
            f"Chance alone: the {formats.level(headline.level)} interval of {subject} includes zero, "
            "so its sign is not settled."
        )
    flips = [swing.sentence for swing in swings if swing.flips]
    if not flips:
        nearest = min(
            ((abs(s.break_even - s.value) / abs(s.value), s) for s in swings if s.break_even is not None and s.value),
            key=lambda pair: pair[0],
            default=None,
        )
        if nearest is not None:
            flips = [f"No single input, moved within its range, does it. {nearest[1].sentence}"]
    return tuple(found + flips)

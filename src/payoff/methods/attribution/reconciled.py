"""Credit held against an experiment: what the treated's personalised touches are credited with, and what treatment brought more.

In scope are conversions of the treated at or after their exposure, within the longest window declared, and credit of touches whose
``personalised`` holds: what both arms met alike was not tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from payoff import formats
from payoff.estimate import Estimate, FloatArray, Normal
from payoff.methods.attribution.cells import FEW
from payoff.methods.attribution.words import model_words
from payoff.result import Check, Reconciled, Reconciliation, Refusal, Result, Span
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Attribution
from payoff.stats import reconcile as stats
from payoff.stats.credit import Bootstrap
from payoff.warehouse.credited import ArmCredit, Credit, CreditData

_MEANS = "difference in means"
_WITHOUT = {
    "participation": "gives every touchpoint the whole conversion, so its credit has no total to hold against an experiment",
    "markov": "credits all paths together and no conversion by itself, so its credit cannot be told apart by arm",
}
_OFF = 0.001
"""Share of units or of rows by which credit and experiment may differ in what they are of."""
_LIKE = 0.9
_DOUBTS = ("dates", "contamination")
"""Checks of an experiment whose warning says that its total is not what the credit is held against."""
_RULE = (
    "{what} for conversions of the treated at or after exposure, by touches that were personalised in the {window} before;"
    " the experiment's difference per unit times the treated units is spread over them in proportion to their credit"
)
_OWN = (
    "; a touchpoint with a test of its own takes that test's difference per unit times the same units, as if its effect were alike"
    " in all of them and whether or not the rest is personalised, and what is left is spread over the others in proportion to their credit"
)


@dataclass(frozen=True, slots=True)
class _Side:
    """Touchpoints as they are reconciled: their labels and their codes."""

    labels: tuple[str, ...]
    sums: FloatArray


def reconcile(
    design: JourneyDesign,
    data: CreditData,
    bootstrap: Bootstrap,
    rng: np.random.Generator,
    incremental: Result | Refusal | None,
    own: Mapping[str, Result | Refusal],
) -> tuple[list[Reconciliation], Check]:
    """One Reconciliation per outcome, contrast and model that can be had, and the check that says what could not."""
    declared = design.declared
    assert isinstance(declared, Attribution)
    name = declared.reconcile_with
    if name is None:
        return [], Check("reconciled", "not-run", None, "no experiment is named to hold the credit against")
    why = _unreadable(design, name, incremental)
    if why is not None or not isinstance(incremental, Result):
        return [], Check("reconciled", "warn", None, f"the credit is not held against {name}: {why}")
    longest = max(credit.window_us for credit in data.credits)
    out: list[Reconciliation] = []
    doubted = [c for c in incremental.checks if c.status == "fail" or (c.status == "warn" and c.name in _DOUBTS)]
    notes = [f"{name} itself does not pass its check {c.name} ({c.detail})" for c in doubted]
    notes += [f"{model} {_WITHOUT[kind]}" for model, kind in data.models.items() if kind in _WITHOUT]
    for credit in (c for c in data.credits if c.window_us == longest):
        metric = declared.outcomes[credit.outcome].measured_as(credit.outcome)
        found = _differences(incremental, metric)
        twice = _counted_twice(data, credit)
        if twice is not None:
            notes.append(f"{twice}, which credit counts once and {name} every time; remove the duplicates")
            continue
        if not found:
            reasons = [r.reason for r in incremental.refusals if metric in r.name]
            notes.append(f"{name} has no difference in {metric}" + (f" ({reasons[0]})" if reasons else ""))
        for difference in found:
            arm = next((a for a in credit.arms if difference.contrast.startswith(f"{a.arm} vs ")), None)
            if arm is None:
                notes.append(
                    f"no unit of the arm in {difference.contrast} was found in {design.arms and design.arms.source}"
                )
                continue
            more, said = _of_arm(design, data, credit, arm, difference, metric, bootstrap, rng, own)
            out += more
            notes += said
    return out, _check(name, out, notes, {model: model_words(model, kind) for model, kind in data.models.items()})


def _counted_twice(data: CreditData, credit: Credit) -> str | None:
    """Conversions that are there twice, where they are too many for credit and experiment to be of the same rows."""
    source = data.totals[credit.outcome].source
    profile = data.outcome_sources[source]
    repeated = profile.repeated or 0
    return f"{repeated:,} rows of {source} repeat an id" if repeated > _OFF * profile.rows else None


def _unreadable(design: JourneyDesign, name: str, incremental: Result | Refusal | None) -> str | None:
    if incremental is None:
        return "it was not read"
    if isinstance(incremental, Refusal):
        return incremental.reason
    if design.arms is None or design.arms.experiment != name:
        return "conversions are split by the arms of another experiment (between_arms_of); leave that out to reconcile"
    return None


def _differences(result: Result, metric: str) -> list[Estimate]:
    return [e for e in result.estimates if e.estimand == _MEANS and e.segment is None and e.metric == metric]


def _shown(difference: Estimate, units: int) -> stats.Shown:
    """A difference per unit, as a total over ``units``."""
    spread = difference.uncertainty
    z = Normal(1.0).interval(0.0, difference.level)[1]
    se = (difference.high - difference.low) / 2 / z if not isinstance(spread, Normal) or spread.df < 30 else spread.se
    return stats.Shown(difference.value * units, se * units)


def _of_arm(
    design: JourneyDesign,
    data: CreditData,
    credit: Credit,
    arm: ArmCredit,
    difference: Estimate,
    metric: str,
    bootstrap: Bootstrap,
    rng: np.random.Generator,
    own: Mapping[str, Result | Refusal],
) -> tuple[list[Reconciliation], list[str]]:
    notes: list[str] = []
    units, read = arm.n, int(difference.n.get(arm.arm, arm.n))
    if abs(units - read) > _OFF * units:
        notes.append(
            f"{difference.contrast} is of {read:,} treated units, and credit of {units:,}: the experiment leaves some out, who are"
            " taken to be like the others"
        )
    tests: dict[str, stats.Shown] = {}
    for touchpoint, result in own.items():
        test = _own_test(touchpoint, result, metric, units)
        if isinstance(test, str):
            notes.append(test)
        else:
            tests[touchpoint] = test
            notes += _others(touchpoint, result, metric, units)
    valued = data.totals[credit.outcome].valued
    chosen_of, other_of = (arm.chosen_worth, arm.other_worth) if valued else (arm.chosen, arm.other)
    unit = design.currency if valued else "conversions"
    out = []
    for model in chosen_of:
        if data.models[model] in _WITHOUT or model in data.refused:
            continue
        chosen = _side(design, data, chosen_of[model], tests)
        other = _side(design, data, other_of[model], {})
        places = {chosen.labels.index(t): test for t, test in tests.items() if t in chosen.labels}
        notes += [
            f"{t} has a test of its own, and none of its touches that {model} credits is personalised"
            for t in tests
            if t not in chosen.labels
        ]
        try:
            found = stats.reconcile(
                bootstrap.totals(chosen.sums),
                _shown(difference, units),
                places,
                rng,
                other=bootstrap.totals(other.sums) if other.labels else None,
                level=design.level,
            )
        except ValueError as error:
            notes.append(f"{model}: {error}")
            continue
        out.append(
            _told(
                design,
                credit,
                difference,
                model,
                model_words(model, data.models[model]),
                metric,
                unit,
                units,
                found,
                (*chosen.labels, *other.labels),
                bool(places),
            )
        )
    return out, notes


def _side(design: JourneyDesign, data: CreditData, sums: FloatArray, tests: Mapping[str, object]) -> _Side:
    """Touchpoints that are credited with something; one with a test is taken whole, those of too few units together."""
    codes: dict[str, list[int]] = {}
    few: list[int] = []

    def held(of: Sequence[int]) -> int:
        """Hash groups that hold any of their credit: no more than the units behind it."""
        return int((sums[:, list(of)] != 0).any(axis=1).sum())

    least = min(design.min_cell, 256)
    for stop in data.stops:
        if not sums[:, stop.code].any():
            continue
        if stop.touchpoint in tests:
            codes.setdefault(stop.touchpoint, []).append(stop.code)
        elif held([stop.code]) < least:
            few.append(stop.code)
        else:
            codes.setdefault(stop.label, []).append(stop.code)
    rest = sorted((label for label in codes if label not in tests), key=lambda label: held(codes[label]))
    while few and rest and held(few) < least:  # with the next smallest, as else they would be shown after all
        few += codes.pop(rest.pop(0))
    if few:
        codes[FEW] = few
    return _Side(
        tuple(codes), np.column_stack([np.zeros((len(sums), 0)), *(sums[:, c].sum(axis=1) for c in codes.values())])
    )


def _own_test(touchpoint: str, result: Result | Refusal, metric: str, units: int) -> stats.Shown | str:
    if isinstance(result, Refusal):
        return f"the test of {touchpoint} says nothing: {result.reason}"
    found = _differences(result, metric)
    if len(found) != 1:
        return f"the test of {touchpoint} has {len(found)} differences in {metric}, and its credit is held against one"
    return _shown(found[0], units)


def _others(touchpoint: str, result: Result | Refusal, metric: str, units: int) -> list[str]:
    """A test of far fewer units than the treated may be of those that come to the touchpoint at all, whom it does more to."""
    n = sum(e.n[arm] for e in _differences(result, metric) for arm in e.n) if isinstance(result, Result) else 0
    if n >= _LIKE * units:
        return []
    return [
        f"the test of {touchpoint} is of {n:,} units, and its difference per unit is taken for all {units:,} treated: too much, if"
        " only those were tested whom it reaches"
    ]


def _span(interval: stats.Interval | None) -> Span | None:
    return None if interval is None else Span(interval.value, interval.low, interval.high)


def _told(
    design: JourneyDesign,
    credit: Credit,
    difference: Estimate,
    model: str,
    words: str,
    metric: str,
    unit: str,
    units: int,
    found: stats.Reconciled,
    labels: Sequence[str],
    tested: bool,
) -> Reconciliation:
    assert design.arms is not None
    what = formats.unit(unit)
    verb = "is" if unit == design.currency else "are"
    credited = formats.written(found.attributed.value, found.attributed.low, found.attributed.high, what)
    more = formats.written(found.incremental.value, found.incremental.low, found.incremental.high, what, change=True)
    said = (
        f"by {words}, {credited.value} ({credited.range}) {verb} attributed to what {design.arms.experiment} personalised for"
        f" {formats.count(units)} treated units, and the experiment shows {more.value} ({more.range})"
    )
    if found.ratio is not None:
        ratio = formats.written(found.ratio.value, found.ratio.low, found.ratio.high, formats.NUMBER)
        said += f": {ratio.value} ({ratio.range}) for each {formats.exact(1, what)} attributed"
    rows = []
    for row in found.rows:
        conflict = ""
        if row.conflict is not None and row.incremental is not None:
            test = formats.written(row.incremental.value, row.incremental.low, row.incremental.high, what, change=True)
            theirs = formats.written(row.attributed.value, row.attributed.low, row.attributed.high, what)
            conflict = (
                f"its own test shows {test.value} ({test.range}), and by {words} {theirs.value} ({theirs.range}) {verb} attributed;"
                f" they disagree ({formats.p_value(row.conflict, design.alpha)})"
            )
        attributed = Span(row.attributed.value, row.attributed.low, row.attributed.high)
        rows.append(
            Reconciled(labels[row.touchpoint], row.by, attributed, _span(row.incremental), _span(row.ratio), conflict)
        )
    rule = _RULE.format(what="Value" if unit == design.currency else "Conversions", window=credit.window)
    reasons = [found.reason]
    if found.left is not None and found.left_reason:
        left = formats.written(found.left.value, found.left.low, found.left.high, what, change=True)
        reasons.append(
            f"{left.value} ({left.range}) of what the experiment shows goes to no touchpoint: {found.left_reason}"
        )
    return Reconciliation(
        experiment=f"experiments.{design.arms.experiment}",
        contrast=difference.contrast,
        model=model,
        metric=metric,
        unit=unit,
        units=units,
        attributed=Span(found.attributed.value, found.attributed.low, found.attributed.high),
        incremental=Span(found.incremental.value, found.incremental.low, found.incremental.high),
        ratio=_span(found.ratio),
        anyway=_span(found.anyway),
        rows=tuple(rows),
        rule=rule + (_OWN if tested else ""),
        reason="; ".join(r for r in reasons if r),
        sentence=f"{said}.",
    )


def _check(name: str, found: Sequence[Reconciliation], notes: Sequence[str], words: Mapping[str, str]) -> Check:
    said = list(dict.fromkeys(notes))
    if not found:
        return Check(
            "reconciled",
            "warn",
            None,
            f"the credit is not held against {name}: {'; '.join(said) or 'nothing of it is personalised'}",
        )
    apart = [r for r in found if r.ratio is not None and not r.ratio.low <= 1 <= r.ratio.high]
    conflicts = [f"{row.touchpoint} by {words[r.model]}" for r in found for row in r.rows if row.conflict]
    parts = []
    if apart:
        r = apart[0]
        assert r.ratio is not None
        shown = formats.written(r.ratio.value, r.ratio.low, r.ratio.high, formats.NUMBER)
        parts.append(
            f"{len(apart)} of {len(found)} credits are not what {name} shows; by {words[r.model]}, {shown.value} ({shown.range}) is shown"
            " for each 1 attributed"
        )
    if conflicts:
        parts.append(f"tests contradict the credit of {', '.join(conflicts)}")
    statistic = next((r.ratio.value for r in found if r.ratio is not None), None)
    if not parts:
        parts.append(f"{len(found)} credits are within what {name} shows")
    return Check("reconciled", "warn" if apart or conflicts else "pass", statistic, "; ".join([*parts, *said]))

"""Credit in a claim: attributed totals as inputs of an amount, and beside the amount of a claim that was measured.

Credit says which touches came before conversions. Nothing was compared, so nothing here is an effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from payoff import formats
from payoff.claims.inputs import Bound, reach, stream
from payoff.claims.model import Compared, Input, Quantity, Refused
from payoff.claims.words import listed
from payoff.errors import did_you_mean
from payoff.estimate import Draws, Estimate, FloatArray, draw_jointly
from payoff.result import Reconciliation, Refusal, Result
from payoff.spec.amount import Attributed
from payoff.spec.nouns import Claim

PREFIX = "attribution."
VALUE, COUNT = "attributed value", "attributed conversions"
REST, TOTAL = "(unattributed)", "(total)"
_NO_TOTAL = "participation"


def _credit(result: Result) -> list[Estimate]:
    """What goes to touchpoints: their value where the attribution has one, else their conversions."""
    for estimand in (VALUE, COUNT):
        found = [
            e
            for e in result.estimates
            if e.estimand == estimand and e.segment is None and e.labels.get("touchpoint") not in (REST, TOTAL, None)
        ]
        if found:
            return found
    return []


def _cells(estimates: Sequence[Estimate]) -> list[tuple[str, str]]:
    """Pairs of (conversion, window), in order."""
    return list(
        dict.fromkeys((str(e.labels.get("conversion", "")), str(e.labels.get("window", ""))) for e in estimates)
    )


def _of(estimates: Sequence[Estimate], cell: tuple[str, str]) -> list[Estimate]:
    return [e for e in estimates if _cells([e]) == [cell]]


def _joint(estimates: Sequence[Estimate]) -> FloatArray | None:
    """Draws of the sum by one resampling of the same units, in its order; None where the estimates have none in common."""
    spreads = [e.uncertainty for e in estimates]
    values = [s.values for s in spreads if isinstance(s, Draws)]
    if len(values) < len(spreads) or len({len(v) for v in values}) != 1:
        return None
    total = np.asarray(np.sum(values, axis=0))
    # What is certain (all conversions have touches) is left with the noise of adding up, which is no spread.
    still = float(np.ptp(total)) <= 1e-9 * float(np.max(np.abs(total), initial=0.0))
    return np.full(total.shape, float(sum(e.value for e in estimates))) if still else total


def _draws(estimates: Sequence[Estimate], rng: np.random.Generator, size: int) -> FloatArray:
    """Draws of the sum. Without draws in common they are taken to err together, which makes the sum no surer than it is."""
    joint = _joint(estimates)
    if joint is not None:
        return joint[rng.integers(0, len(joint), size)]
    k = len(estimates)
    return np.asarray(draw_jointly(estimates, np.ones((k, k)), rng, size).sum(axis=1))


def _interval(estimates: Sequence[Estimate], level: float, rng: np.random.Generator, size: int) -> tuple[float, float]:
    joint = _joint(estimates)
    values = joint if joint is not None else _draws(estimates, rng, size)
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    centre = sum(e.value for e in estimates)
    return min(float(low), centre), max(float(high), centre)


# ---------------------------------------------------------------- as an input


def bind_attributed(
    references: Sequence[Attributed],
    claim: Claim,
    results: Mapping[str, Result | Refusal],
    level: float,
    seed: int,
    draws: int,
) -> tuple[list[Bound], dict[str, Result], list[str]]:
    """Credit with its draws, the attributions it comes from, and what must be assumed. Raises Refused."""
    bound: list[Bound] = []
    used: dict[str, Result] = {}
    for reference in references:
        full = f"{PREFIX}{reference.name}"
        result = _result(reference, full, claim, results)
        found = _found(reference, full, result)
        used[full] = result
        # One stream an attribution: its touchpoints and models are credited on the same units, resampled alike.
        low, high = _interval(found, level, stream(seed, f"evidence({full})"), draws)
        value = float(sum(e.value for e in found))
        to = "all touchpoints" if reference.touchpoint is None else reference.touchpoint
        notes = [f"attributed by {reference.model}, not caused: nothing was compared"]
        window = str(found[0].labels.get("window", ""))
        if window:
            notes.append(f"touches up to {window} before a conversion")
        bound.append(
            Bound(
                Input(str(reference), "attributed", value, low, high, found[0].unit, full, None, None, tuple(notes)),
                f"what {reference.model} attributes to {to}",
                _draws(found, stream(seed, f"evidence({full})"), draws),
                reach(value, low, high),
                (reference,),
            )
        )
    assumptions = [
        f"{name} is credit for the conversions that it reads, shared out by a rule; it does not say what would be lacking "
        "without the touchpoints."
        for name in used
    ]
    return bound, used, assumptions


def _result(reference: Attributed, full: str, claim: Claim, results: Mapping[str, Result | Refusal]) -> Result:
    result = results.get(full)
    if full not in claim.evidence:
        raise Refused(f"{reference} is not among the claim's evidence", f"Add {full} to evidence.")
    if isinstance(result, Refusal):
        raise Refused(f"{reference} has no number, because {full} was refused: {result.reason}", result.remedy)
    if result is None:
        raise Refused(f"{reference} has no number: there is no result of {full}", f"Run {full} with the claim.")
    return result


def _found(reference: Attributed, full: str, result: Result) -> list[Estimate]:
    """The estimates whose sum is meant: one touchpoint's (of a touchpoint by values, all of its values'), or all."""
    credit = _credit(result)
    models = list(dict.fromkeys(str(e.labels.get("model", "")) for e in credit))
    if reference.model not in models:
        for refusal in result.refusals:
            if reference.model in refusal.name:
                raise Refused(f"{reference} has no number in {full}: {refusal.reason}", refusal.remedy)
        known = did_you_mean(reference.model, models) or (f"; it has {listed(models)}" if models else "")
        raise Refused(f"{full} credits nothing by '{reference.model}'{known}", "Name a model of that attribution.")
    mine = [e for e in credit if e.labels.get("model") == reference.model]
    cells = _cells(mine)
    if len(cells) > 1:
        told = listed([" over ".join(filter(None, cell)) for cell in cells])
        raise Refused(
            f"{reference} could be any of {told} in {full}", "Declare an attribution with one of them for this claim."
        )
    if reference.touchpoint is None:
        if reference.model == _NO_TOTAL:
            raise Refused(
                f"{full} credits a conversion to every touchpoint on its path by {_NO_TOTAL}, so its credit has no total",
                "Name a touchpoint, or another model.",
            )
        return mine
    wanted = reference.touchpoint
    own = [e for e in mine if e.labels["touchpoint"] == wanted]
    own = own or [e for e in mine if str(e.labels["touchpoint"]).startswith(f"{wanted}: ")]
    if not own:
        stops = [str(e.labels["touchpoint"]) for e in mine]
        known = did_you_mean(wanted, stops) or f"; it has {listed(stops)}"
        raise Refused(f"{full} credits nothing to '{wanted}'{known}", "Name a touchpoint of that attribution.")
    if len(own) > 1 and reference.model == _NO_TOTAL:
        raise Refused(
            f"{full} credits a conversion to every value of {wanted} on its path by {_NO_TOTAL}, so they have no total",
            f'Name one of them, such as "{own[0].labels["touchpoint"]}".',
        )
    return own


# ---------------------------------------------------------------- beside the amount


def compare(
    claim: Claim,
    results: Mapping[str, Result | Refusal],
    amount: Quantity,
    level: float,
    seed: int,
    draws: int,
    *,
    causal: bool,
) -> tuple[Compared, ...]:
    """What each attribution under ``compare`` credits, model by model. ``causal``: the amount was measured by comparing."""
    found: list[Compared] = []
    for name in claim.compare:
        result = results.get(name)
        if isinstance(result, Result):
            lines = []
            for model in dict.fromkeys(str(e.labels.get("model", "")) for e in _credit(result)):
                lines += _reconciled(name, model, result) or _totals(
                    name, model, result, amount, level, seed, draws, causal=causal
                )
            found += lines or [_nothing(name, f"{name} credits nothing that has a total")]
        elif result is not None:
            found.append(_nothing(name, f"{name} was refused: {result.reason}"))
        else:
            found.append(_nothing(name, f"there is no result of {name}; run it with the claim"))
    return tuple(found)


def _nothing(name: str, reason: str) -> Compared:
    return Compared(name, "", None, None, None, "", f"Nothing attributed can be shown beside the amount: {reason}")


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _reconciled(name: str, model: str, result: Result) -> list[Compared]:
    """In the experiment's own scope, where the credit of what it changed is known: like is compared with like there."""
    lines = []
    mine = [held for held in result.closer.reconciliation if held.model == model]
    for held in mine:
        credit, truth, unit = held.attributed, held.incremental, formats.unit(held.unit)
        given = formats.written(credit.value, credit.low, credit.high, unit)
        shown = formats.written(truth.value, truth.low, truth.high, unit)
        of = [
            t
            for t, several in ((held.metric, _many(mine, "metric")), (held.contrast, _many(mine, "contrast")))
            if several
        ]
        told = f" ({', '.join(of)})" if of else ""
        sentence = (
            f"{model} attributes {given.value} ({given.range}) to what {held.experiment} changed, for its treated units{told} "
            f"(attributed, not caused); {held.experiment} shows {shown.value} ({shown.range}) as incremental there."
        )
        anyway, ratio = held.anyway, held.ratio
        if anyway is not None and 0 <= anyway.value <= 1:
            share = formats.written(anyway.value, anyway.low, anyway.high, formats.unit("share"))
            sentence += f" Of what is attributed, {share.value} ({share.range}) is more than the experiment shows."
        elif ratio is not None:
            share = formats.written(ratio.value, ratio.low, ratio.high, formats.unit("share"))
            sentence += f" Incremental over attributed is {share.value} ({share.range})."
        elif held.reason:
            sentence += f" {formats.capital(_ended(held.reason))}"
        lines.append(Compared(name, model, credit.value, credit.low, credit.high, held.unit, sentence))
    return lines


def _many(rows: Sequence[Reconciliation], key: str) -> bool:
    return len({getattr(row, key) for row in rows}) > 1


def _totals(
    name: str, model: str, result: Result, amount: Quantity, level: float, seed: int, draws: int, *, causal: bool
) -> list[Compared]:
    if model == _NO_TOTAL:
        return []
    credit, lines = _credit(result), []
    cells = _cells(credit)
    told = formats.written(amount.value, amount.low, amount.high, formats.unit(amount.unit))
    beside = (
        f"the claim's own amount, which was measured by comparing, is {told.value} ({told.range})"
        if causal
        else f"the claim's own amount is {told.value} ({told.range}), and that was not measured by comparing either"
    )
    for cell in cells:
        mine = [e for e in _of(credit, cell) if e.labels.get("model") == model]
        if not mine:
            continue
        value = float(sum(e.value for e in mine))
        low, high = _interval(mine, level, stream(seed, f"evidence({name})"), draws)
        unit = mine[0].unit
        shown = formats.written(value, low, high, formats.unit(unit))
        sure = f" ({shown.range})" if low < high else ""
        several = "" if len(cells) == 1 else f" for {' over '.join(filter(None, cell))}"
        sentence = (
            f"{model} attributes {shown.value}{sure} to all touchpoints together{several} "
            f"(attributed, not caused), over the conversions that {name} reads; {beside}."
        )
        lines.append(Compared(name, model, value, low, high, unit, sentence))
    return lines

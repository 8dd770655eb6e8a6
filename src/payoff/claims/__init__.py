"""Price a claim: measured effects, money values, volumes and costs in; money with its interval, grade and verdict out.

Pure: nothing here reads a file, a table or a clock. ``price`` computes the central figure at the central inputs, so that a
pocket calculator reproduces it, and the interval from joint draws of every uncertain input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta

import numpy as np

from payoff import formats
from payoff.claims.attributed import bind_attributed, compare
from payoff.claims.calculation import DOTS, Model, Threshold, is_money, payback_of, quantity, unit_of
from payoff.claims.grading import CAUSAL_GRADES, grade, lacks
from payoff.claims.inputs import Bound, bind_count, bind_effects, bind_money, stream
from payoff.claims.model import ClaimResult, DecisionReading, Payback, Population, Quantity, Refused, Swing, Volume
from payoff.claims.sensitivity import overturn, swings_of, words_of
from payoff.claims.words import listed
from payoff.errors import did_you_mean
from payoff.result import Refusal, Result, Verdict
from payoff.spec.amount import AmountError, Attributed, Effect, PopulationOf, ValueOf, parse, period_text
from payoff.spec.nouns import Claim, Decision, Value

__all__ = ["ClaimResult", "Population", "Swing", "Volume", "grade", "lacks", "price"]


def price(
    name: str,
    claim: Claim,
    results: Mapping[str, Result | Refusal],
    values: Mapping[str, Value],
    volumes: Mapping[tuple[str, timedelta], Volume],
    populations: Mapping[tuple[str, timedelta | None], Population],
    currency: str,
    today: date,
    seed: int,
    draws: int = 20_000,
    alpha: float = 0.05,
) -> ClaimResult | Refusal:
    """Price ``claim``: figures in ``currency`` over the amount's period, intervals at level 1 - ``alpha``.

    ``results`` is keyed by the names under the claim's ``evidence`` and ``compare``; ``volumes`` and ``populations`` by what the amount
    refers to. The central figures are the amount at the central inputs. The intervals are quantiles of ``draws`` joint
    draws: effects of one result by their own distributions and correlations (Gaussian copula), results independently;
    values and costs from triangular distributions; volumes from normal ones. The same seed gives the same answer.
    """
    try:
        # What overflows is found by finite() and refused.
        with np.errstate(over="ignore", invalid="ignore"):
            return _price(name, claim, results, values, volumes, populations, currency, today, seed, draws, 1 - alpha)
    except Refused as refused:
        return Refusal(name, refused.reason, refused.remedy)
    except AmountError as error:
        return Refusal(name, f"the amount '{claim.amount}' has no number: {error}", "Change the claim's amount.")


def _price(
    name: str,
    claim: Claim,
    results: Mapping[str, Result | Refusal],
    values: Mapping[str, Value],
    volumes: Mapping[tuple[str, timedelta], Volume],
    populations: Mapping[tuple[str, timedelta | None], Population],
    currency: str,
    today: date,
    seed: int,
    draws: int,
    level: float,
) -> ClaimResult:
    amount = parse(claim.amount)
    references = amount.references()
    level = round(level, 12)  # 1 - 0.05 is 0.95, not 0.95 and a bit
    notes: list[str] = []

    effects, used, disagreements, assumptions = bind_effects(
        [r for r in references if isinstance(r, Effect)],
        claim,
        results,
        level,
        seed,
        draws,
        everyone=any(isinstance(r, PopulationOf) for r in references),
    )
    credit, credited, more = bind_attributed(
        [r for r in references if isinstance(r, Attributed)], claim, results, level, seed, draws
    )
    used |= credited
    assumptions += more
    terms = [*effects, *credit]
    for reference in references:
        if isinstance(reference, ValueOf):
            value = values.get(reference.name)
            if value is None:
                hint = did_you_mean(reference.name, values)
                raise Refused(f"'{reference.name}' is not a declared value{hint}", "Declare it under values.")
            rng = stream(seed, str(reference))
            bound = bind_money(
                str(reference), "value", value, f"the value {reference.name}", currency, today, rng, draws
            )
            terms.append(replace(bound, references=(reference,)))
        elif not isinstance(reference, Effect | Attributed):
            terms.append(bind_count(reference, volumes, populations, level, seed, draws))
    costs: list[Bound] = []
    for label, cost in claim.less.items():
        rng = stream(seed, f"cost({name}.{label})")
        costs.append(bind_money(f"cost({label})", "cost", cost, f"the cost {label}", currency, today, rng, draws))
        short = lacks(cost, today, needs_range=False)
        if short:
            notes.append(f"The cost {label} {listed(short)}; it is taken as given.")

    unit, unit_assumptions = unit_of(claim, amount, terms, currency)
    money = is_money(unit, currency)
    if costs and not money:
        raise Refused(
            f"the claim's unit is '{unit}', and costs in {currency} cannot be taken from it",
            f"Give the claim a unit in {currency}, or leave out the costs under less.",
        )
    period = amount.period

    threshold = Threshold.of(claim.decision) if claim.decision is not None else None

    def rule(amount: float, cost: float) -> bool:
        return bool(threshold.holds(amount, cost)) if threshold is not None else amount - cost > 0

    model = Model(amount, tuple(terms), tuple(costs), rule)
    central_amount, central_cost = model.at()
    amounts, cost_draws = model.draws(draws)
    nets = amounts - cost_draws
    gross = quantity(central_amount, amounts, level, unit)
    headline = quantity(central_amount - central_cost, nets, level, unit)
    net = headline if money else None
    subject = "the net" if money else "the amount"

    # ROI and payback
    costly = central_cost > 0 and bool(np.all(cost_draws > 0))
    roi: Quantity | None = None
    payback: Payback | None = None
    if costly:
        roi = quantity(headline.value / central_cost, nets / cost_draws, level, "ratio")
        if period is None:
            notes.append("There is no payback time: the amount has no period over which it comes in.")
        elif central_amount <= 0:
            notes.append("There is no payback time: the amount is not positive, so it never covers the cost.")
        else:
            payback = payback_of(central_amount, central_cost, amounts, cost_draws, period, level)
    elif money and not costs:
        notes.append(
            "No cost is declared under less, so the net equals the amount and there is no ROI or payback time."
        )
    elif money:
        notes.append("There is no ROI or payback time: the total cost is not, or not certainly, above zero.")
    if threshold is not None and threshold.figure == "roi" and roi is None:
        raise Refused(
            "the decision asks for the ROI, which needs a cost above zero",
            "Declare what it costs under less, or decide on net or amount.",
        )

    # What the interval shows, what the checks allow, how it is graded
    positive = float(np.mean(nets > 0))
    withheld = [n for n, result in used.items() if result.verdict == "withheld" or result.failed()]
    at_risk = [n for n, result in used.items() if result.verdict == "guardrail at risk"]
    verdict: Verdict = "positive" if headline.low > 0 else "negative" if headline.high < 0 else "not conclusive"
    if withheld:
        verdict = "withheld"
    elif at_risk and verdict == "positive":
        verdict = "guardrail at risk"
    letter, reasons = grade(
        {n: result.grade for n, result in used.items()}, {n: values[n] for n in amount.values}, disagreements, today
    )
    descriptive = letter not in CAUSAL_GRADES
    compared = bool(effects) and all(result.grade in CAUSAL_GRADES for result in used.values())
    if credit and period is not None:
        notes.append(
            f"What is attributed is counted over the conversions that {listed(list(credited))} reads, and not scaled to "
            f"{period_text(period)}."
        )

    # What must hold
    for evidence in used:
        assumptions.append(f"What {evidence} assumes, listed with that result, holds.")
    if used and not descriptive:
        assumptions.append(
            "The effect is as large over the whole period, and for everyone the amount counts, as it was where it was measured."
        )
    if len(terms) + len(costs) > 1:
        assumptions.append("Measured figures, values, volumes and costs err independently of one another.")
    if any(one.show.low < one.show.high for one in terms + costs if one.show.kind in ("value", "cost")):
        assumptions.append(
            "A value or cost with a range lies in it for certain, is likeliest at its central figure, and ever less likely "
            "towards the ends (a triangular distribution)."
        )
    assumptions.append(
        f"The probability that {subject} is positive reads the data alone, with no opinion held beforehand (a flat prior)."
    )
    assumptions.extend(unit_assumptions)
    for evidence in claim.evidence:
        if evidence not in used and isinstance(results.get(evidence), Refusal):
            notes.append(f"{evidence} was refused; the amount does not need it.")
    notes += [f"{d[0].upper()}{d[1:]}." for d in disagreements]
    for figure, what in ((gross, "amount"), (headline, "net")):
        if not figure.low <= figure.value <= figure.high:
            notes.append(
                f"The {what} at the central inputs lies outside its own interval, because a range is lopsided: its central "
                "figure is at or near one end. Check the ranges of the values and costs."
            )
            break

    decision = None
    if claim.decision is not None and threshold is not None:
        decision = _decide(claim.decision, float(np.mean(threshold.holds(amounts, cost_draws))), withheld)
        if credit:
            told = f"{decision.sentence} It rests on what was attributed, not on what was shown to be incremental."
            decision = replace(decision, sentence=told)
    swings, skipped = swings_of(model, claim, period, words_of(threshold, subject, unit), descriptive)
    notes.extend(skipped)
    risky = [
        f"{n} ({', '.join(sorted({r.metric for r in used[n].readings if r.state in ('at risk', 'breached')}))})"
        for n in at_risk
    ]
    if risky:
        notes.append(f"A guardrail is at risk in {listed(risky)}.")
    tail = "" if not money else " net" if costs else " before any cost"
    return ClaimResult(
        name=name,
        statement=claim.statement,
        grade=letter,
        grade_reasons=reasons,
        verdict=verdict,
        finding=_finding(
            claim, headline, tail, positive, verdict, letter, withheld, risky, bool(effects), bool(credit)
        ),
        evidence=claim.evidence,
        amount_expression=str(amount),
        amount=gross,
        cost=central_cost,
        # Under the name it is declared by: run_cost, not cost(run_cost).
        costs=tuple(replace(one.show, name=label) for label, one in zip(claim.less, costs, strict=True)),
        net=net,
        roi=roi,
        payback=payback,
        probability_positive=positive,
        decision=decision,
        inputs=tuple(one.show for one in terms + costs),
        sensitivity=swings,
        overturn=overturn(swings, headline, verdict, used, subject),
        assumptions=tuple(dict.fromkeys(assumptions)),
        notes=tuple(dict.fromkeys(notes)),
        net_quantiles=tuple(headline.quantiles[q] for q in DOTS),
        currency=currency,
        period=None if period is None else period_text(period),
        owner=claim.owner,
        compare=compare(claim, results, gross, level, seed, draws, causal=compared),
    )


def _decide(decision: Decision, observed: float, withheld: Sequence[str]) -> DecisionReading:
    text = " ".join(decision.threshold.split())
    met = observed >= decision.probability
    seen = formats.probability(observed, [decision.probability])
    sentence = (
        f"The decision rule is {'met' if met else 'not met'}: {text} has a probability of {seen}, and "
        f"{formats.probability(decision.probability)} is asked for."
    )
    if withheld:
        sentence = (
            f"Do not act on the decision rule: {listed(withheld)} is withheld, because a check failed. {sentence}"
        )
    return DecisionReading(text, decision.probability, observed, met, sentence)


def _finding(
    claim: Claim,
    headline: Quantity,
    tail: str,
    positive: float,
    verdict: Verdict,
    letter: str,
    withheld: Sequence[str],
    risky: Sequence[str],
    moved: bool,
    credited: bool,
) -> str:
    # What is not money is the metric itself, moved: it is written with its sign, and a share in points.
    unit, change = formats.unit(headline.unit), not tail and (moved or not credited)
    shown = formats.written(headline.value, headline.low, headline.high, unit, change=change)
    if headline.low < headline.high:
        sure = (
            f"({formats.level(headline.level)} interval {shown.range}), {formats.likelihood(positive)} to be above zero "
            f"(probability {formats.probability(positive)})"
        )
    else:
        sure = "(exact: no input has a range, so this is no measure of certainty)"
    statement = formats.clean(claim.statement).rstrip(" .:")
    if letter not in CAUSAL_GRADES:
        statement = f'Stated as "{statement}"'
    sentence = f"{statement}: {shown.value}{tail} {sure}. Evidence grade {letter}"
    sentence += "." if letter in CAUSAL_GRADES else ": attributed only." if credited else ": descriptive only."
    if withheld:
        return f"Withheld, because a check failed in {listed(withheld)}; do not rely on this figure. {sentence}"
    if verdict == "not conclusive":
        return f"Not conclusive. {sentence}"
    if verdict == "guardrail at risk":
        return f"{sentence} A guardrail is at risk in {listed(risky)}."
    return sentence

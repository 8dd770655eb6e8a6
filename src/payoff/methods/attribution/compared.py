"""Arm against arm: what was attributed per unit, compared as an experiment compares. A difference in attributed value, not in value."""

from __future__ import annotations

from payoff.estimate import Estimate, Normal
from payoff.methods.attribution.cells import TOTAL
from payoff.result import Refusal
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Attribution
from payoff.stats.compare import difference, mean_level
from payoff.warehouse.credited import ArmCredit, Credit, CreditData

ESTIMAND = "difference in attributed value per unit"
PERSONALISED = "(personalised)"


def between_arms(design: JourneyDesign, data: CreditData) -> tuple[list[Estimate], list[Refusal]]:
    """Differences of every arm from the control, of all that is attributed and, by rule, of what personalised touches are credited with."""
    estimates: list[Estimate] = []
    refusals: list[Refusal] = []
    if design.arms is None:
        return estimates, refusals
    control = design.arms.assignment.control_arm
    for credit in data.credits:
        arms = {a.arm: a for a in credit.arms}
        scope = f"{design.name}.{credit.outcome} ({credit.window})"
        if control not in arms or len(arms) < 2:
            seen = ", ".join(arms) or "none"
            refusals.append(
                Refusal(
                    f"{scope} by arm",
                    f"{design.arms.experiment} has no units in {control} and another arm to compare (arms seen: {seen})",
                    "look at the experiment's variant and starts",
                )
            )
            continue
        for arm in (a for name, a in arms.items() if name != control):
            for model in arm.per_unit:
                found = _difference(design, credit, arm, arms[control], model)
                if isinstance(found, Estimate):
                    estimates.append(found)
                elif found:
                    refusals.append(
                        Refusal(
                            f"{scope} {arm.arm} vs {control}, {model}", found, "wait for more units or more conversions"
                        )
                    )
    return estimates, refusals


def _difference(
    design: JourneyDesign, credit: Credit, arm: ArmCredit, control: ArmCredit, model: str
) -> Estimate | str:
    if min(arm.n, control.n) < design.min_cell:
        return f"an arm has fewer than {design.min_cell:,} units"
    try:
        # where one arm met nothing personalised, its mean is nothing for certain, and the other's is the difference
        found = [
            (mean_level(m), sign)
            for m, sign in ((arm.per_unit[model], 1), (control.per_unit[model], -1))
            if m.mean[0] != 0 or m.var[0] > 0
        ]
        if len(found) == 2:
            gap = difference(found[0][0], found[1][0])
            value, spread = gap.value, Normal(gap.se, gap.df)
        elif found:
            level, sign = found[0]
            value, spread = sign * level.value, Normal(level.se, level.df)
        else:
            return "nothing is attributed in either arm"
    except ValueError as error:
        return str(error)
    labels: dict[str, str | int] = {"conversion": credit.outcome, "window": credit.window, "touchpoint": TOTAL}
    if model != TOTAL:
        labels |= {"model": model, "touchpoint": PERSONALISED}
    return Estimate(
        estimand=ESTIMAND,
        metric=credit.outcome,
        contrast=f"{arm.arm} vs {control.arm}",
        value=value,
        unit=f"{design.currency}/{design.entity}" if _valued(design, credit) else f"conversions/{design.entity}",
        uncertainty=spread,
        interval_kind="confidence",
        n={control.arm: control.n, arm.arm: arm.n},
        level=design.level,
        labels=labels,
    )


def _valued(design: JourneyDesign, credit: Credit) -> bool:
    assert isinstance(design.declared, Attribution)
    return design.declared.outcomes[credit.outcome].value is not None

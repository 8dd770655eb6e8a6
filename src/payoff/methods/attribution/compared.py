"""Arm against arm: what was attributed per unit, compared as an experiment compares. A difference in attributed value, not in value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from payoff.estimate import Estimate, Normal
from payoff.methods.attribution.cells import TOTAL, Shown
from payoff.result import Refusal
from payoff.spec.journeys import JourneyDesign
from payoff.stats.compare import difference, mean_level
from payoff.stats.moments import Moments
from payoff.warehouse.credited import ArmCredit

ESTIMAND = "difference in attributed value per unit"
_WAIT = "wait for more units or more conversions"


def between_arms(design: JourneyDesign, shown: Sequence[Shown]) -> tuple[list[Estimate], list[Refusal]]:
    """Differences of every arm from the control: of all that is attributed, and by model of what each touchpoint is credited with.

    Of all touches, personalised or not. What treatment personalises, a control that is kept from it never meets, so that credit of
    personalised touches alone differs by as much as there is of it: it says that arms were kept apart, and no more. Over all
    touches a difference says where the arms' attributed value differs: what one surface is credited with more, another may be with less.
    """
    estimates: list[Estimate] = []
    refusals: list[Refusal] = []
    if design.arms is None:
        return estimates, refusals
    control = design.arms.assignment.control_arm
    for part in shown:
        credit = part.credit
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
            found, why = _differences(design, part, arm, arms[control])
            estimates += found
            refusals += [
                Refusal(f"{scope} {arm.arm} vs {control}, {what}", reason, _WAIT) for what, reason in why.items()
            ]
    return estimates, refusals


def _differences(
    design: JourneyDesign, part: Shown, arm: ArmCredit, control: ArmCredit
) -> tuple[list[Estimate], Mapping[str, str]]:
    """The differences that there are, and why there is none of the others, by what they are of."""
    least = design.min_cell
    if min(arm.n, control.n) < least:
        return [], {"all": f"an arm has fewer than {least:,} units"}

    def few(codes: Sequence[int]) -> bool:
        """Are so few units of an arm behind these that no figure is shown of them?"""
        return any(0 < max(int(of.behind[c]) for c in codes) < least for of in (arm, control))

    met = [c for group in part.groups for c in group if arm.behind[c] or control.behind[c]]
    if met and few(met):
        return [], {"all": f"fewer than {least:,} units of an arm are credited"}
    estimates: list[Estimate] = []
    why: dict[str, str] = {}
    try:
        estimates.append(_difference(design, part, arm, control, arm.total, control.total, {"touchpoint": TOTAL}))
    except ValueError as error:
        why["all that is attributed"] = str(error)
    # touchpoints of too few units that are taken together have no difference of their own, nor one together
    alone = {g[0]: label for label, g in zip(part.labels, part.groups, strict=True) if len(g) == 1 and g[0] in met}
    hidden = [c for c in met if c not in alone or few([c])]
    rest = sorted((c for c in alone if c not in hidden), key=lambda c: int(min(arm.behind[c], control.behind[c])))
    while hidden and rest and few(hidden):  # else what is hidden is all less what is shown
        hidden.append(rest.pop(0))
    for code, label in alone.items():
        if code in hidden:
            why[label] = (
                f"fewer than {least:,} units of an arm are behind it, or behind what would be told by difference"
            )
            continue
        flat = []
        for model, theirs in arm.per_unit.items():
            labels = {"model": model, "touchpoint": label}
            try:
                pair = theirs[code], control.per_unit[model][code]
                estimates.append(_difference(design, part, arm, control, *pair, labels))
            except ValueError as error:
                flat.append((model, str(error)))
        if flat:
            why[f"{label} by {', '.join(model for model, _ in flat)}"] = flat[0][1]
    return estimates, why


def _difference(
    design: JourneyDesign,
    part: Shown,
    arm: ArmCredit,
    control: ArmCredit,
    treated: Moments,
    untreated: Moments,
    labels: Mapping[str, str],
) -> Estimate:
    """Raises ValueError where neither arm's units differ among themselves."""
    found = difference(mean_level(treated), mean_level(untreated))
    return Estimate(
        estimand=ESTIMAND,
        metric=part.credit.outcome,
        contrast=f"{arm.arm} vs {control.arm}",
        value=found.value,
        unit=f"{design.currency}/{design.entity}" if part.total.valued else f"conversions/{design.entity}",
        uncertainty=Normal(found.se, found.df),
        interval_kind="confidence",
        n={control.arm: control.n, arm.arm: arm.n},
        level=design.level,
        labels={"conversion": part.credit.outcome, "window": part.credit.window, **labels},
    )

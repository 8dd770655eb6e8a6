"""Attribution: what each touchpoint is credited with, model by model. Descriptive: nothing was compared, so nothing is an effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from payoff.methods.attribution import words
from payoff.methods.attribution.cells import B, Shown, credit_estimates, shown_of
from payoff.methods.attribution.compared import between_arms
from payoff.methods.attribution.reconciled import reconcile
from payoff.result import Assumption, Closer, Refusal, Result
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Attribution
from payoff.stats.credit import Bootstrap
from payoff.warehouse.credited import GROUPS, CreditData


class AttributionMethod:
    assumptions: ClassVar[tuple[Assumption, ...]] = (
        Assumption(
            "Credit is shared out by rules among touches that came before a conversion; it does not say what would be lacking"
            " without them.",
            "reconciled",
        ),
        Assumption("All touches that matter were recorded, with the unit and the time.", "clock"),
        Assumption("A touch matters within the window before a conversion, and not before it.", "window"),
        Assumption("Units are independent of each other: intervals come from drawing units anew.", "few_converters"),
        Assumption("What a touch or a table of spending says it cost is all it cost.", "costs"),
    )
    checks: ClassVar[tuple[str, ...]] = words.CHECKS

    def answer(
        self,
        design: JourneyDesign,
        data: CreditData,
        rng: np.random.Generator,
        incremental: Result | Refusal | None = None,
        own: Mapping[str, Result | Refusal] | None = None,
    ) -> Result | Refusal:
        """``incremental`` is the experiment to reconcile with, read for the attribution's own outcomes; ``own`` the tests of single
        touchpoints, read alike."""
        declared = design.declared
        assert isinstance(declared, Attribution)
        refused = _nothing_to_credit(design, data)
        if refused is not None:
            return refused
        bootstrap = Bootstrap.drawn(rng, GROUPS, B)
        shown: list[Shown] = []
        refusals: list[Refusal] = []
        for credit in data.credits:
            found = shown_of(design, data, credit, bootstrap, rng)
            if isinstance(found, Refusal):
                refusals.append(found)
            else:
                shown.append(found)
                refusals += found.refusals
        refusals += [
            Refusal(f"{design.name}.{model}", why, "mend the weight, so that it is above zero wherever it is to count")
            for model, why in data.refused.items()
        ]
        if not any(s.models for s in shown):
            first = refusals[0]
            return Refusal(design.name, first.reason, first.remedy)
        estimates = [e for s in shown for e in credit_estimates(design, data, s)]
        differences, without = between_arms(design, shown)
        reconciliations, said = reconcile(design, data, bootstrap, rng, incremental, own or {})
        return Result(
            name=design.name,
            question=f"Which touchpoints are credited with {words.outcomes(data)}?",
            method="attribution",
            design="descriptive",
            verdict="descriptive",
            grade="D",
            finding=words.finding(design, data, shown[0], reconciliations),
            estimates=(*estimates, *differences),
            arms=(),
            readings=(),
            checks=words.checks(design, data, shown, said),
            assumptions=self.assumptions,
            left_out=data.left_out,
            owner=declared.owner,
            refusals=(*refusals, *without),
            closer=Closer(reconciliation=tuple(reconciliations)),
        )


def _nothing_to_credit(design: JourneyDesign, data: CreditData) -> Refusal | None:
    declared = design.declared
    assert isinstance(declared, Attribution)
    if not data.credits:
        lost = sum(data.without_unit.values())
        why = f" ({lost:,} have no unit, and so no path)" if lost else ""
        return Refusal(
            design.name,
            f"there are no conversions to credit in {', '.join(data.outcome_sources)}{why}",
            "look at the conversion's where, and at starts and ends",
        )
    if not sum(stop.rows for stop in data.stops):
        out = "; ".join(f"{n:,} {reason}" for reason, n in data.left_out.items())
        return Refusal(
            design.name,
            f"there is not one touch of {', '.join(design.touchpoints)}, so no conversion has anything before it{out and f' ({out})'}",
            "look at the touchpoints' where, and at the entity's column in their sources",
        )
    if not any(credit.touched for credit in data.credits):
        n = int(sum(total.conversions.sum() for total in data.totals.values()))
        longest = max(data.credits, key=lambda c: c.window_us).window
        return Refusal(
            design.name,
            f"none of {n:,} conversions has a touch in the {longest} before it",
            "look at whether touches and conversions name units alike, and at the window",
        )
    return None

"""A programme: several experiments on one metric, read together. What are the winners worth once their luck is taken out?

It reads no data of its own: it answers from the Results of its experiments, and holds its total against a holdout's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from payoff import formats
from payoff.estimate import Estimate, Normal
from payoff.result import Assumption, Check, Refusal, Result, Verdict
from payoff.spec.nouns import Programme
from payoff.stats import programme
from payoff.stats.compare import Difference

_MEANS = "difference in means"


@dataclass(frozen=True, slots=True)
class _Piece:
    """One experiment's difference, and whether it was shipped."""

    name: str
    estimate: Estimate
    se: float
    improved: bool


class ProgrammeMethod:
    assumptions: ClassVar[tuple[Assumption, ...]] = (
        Assumption(
            "Every experiment of the programme is here, losers too: leaving them out would bring the luck back.",
            "whole",
        ),
        Assumption("True effects scatter normally around a common mean; how far is estimated from the experiments."),
        Assumption(
            "The effects of what was shipped add up, and the experiments are independent of each other.", "agreement"
        ),
        Assumption("The metric was measured over the same time after exposure in every experiment.", "same_window"),
    )
    checks: ClassVar[tuple[str, ...]] = ("whole", "evidence", "agreement", "same_window")

    def answer(
        self,
        name: str,
        declared: Programme,
        results: Mapping[str, Result | Refusal],
        windows: Mapping[str, str],
        direction: str,
        level: float,
    ) -> Result | Refusal:
        """``results`` by experiment; ``windows`` says over how long each measured the metric; ``direction`` is the metric's."""
        full, sign = f"programmes.{name}", 1 if direction == "up" else -1
        pieces: list[_Piece] = []
        missing: list[str] = []
        lost: list[str] = []
        for experiment in declared.experiments:
            found = _piece(experiment, declared.metric, results.get(experiment), sign)
            if isinstance(found, str):
                missing.append(found)
                lost += [found] if experiment in (declared.shipped or ()) else []
            else:
                pieces.append(found)
        if len(pieces) < 3:
            return Refusal(
                full,
                f"{len(pieces)} of {len(declared.experiments)} experiments have a difference in {declared.metric}, and luck is"
                f" told from effect by at least three: {'; '.join(missing)}",
                "mend or wait for the experiments named, or add others",
            )
        shipped = (
            [i for i, p in enumerate(pieces) if p.improved]
            if declared.shipped is None
            else [i for i, p in enumerate(pieces) if p.name in declared.shipped]
        )
        if lost:
            return Refusal(
                full,
                f"what was shipped cannot be added up without a part of it: {'; '.join(lost)}",
                "mend or wait for the experiments named, or name under shipped only those whose total is wanted",
            )
        if not shipped:
            return Refusal(full, "none of its experiments shows an improvement", "name what was kept: shipped: [...]")
        values, ses = [p.estimate.value for p in pieces], [p.se for p in pieces]
        pooled = programme.shrink(values, ses, level)
        total = programme.programme_total(values, ses, shipped, pooled)
        unit = pieces[0].estimate.unit
        n = {p.name: sum(p.estimate.n.values()) for p in pieces}

        def estimate(
            estimand: str, contrast: str, value: float, spread: Normal, of: Mapping[str, int], credible: bool
        ) -> Estimate:
            return Estimate(
                estimand=estimand,
                metric=declared.metric,
                contrast=contrast,
                value=value,
                unit=unit,
                uncertainty=spread,
                interval_kind="credible" if credible else "confidence",
                n=of,
                level=level,
            )

        estimates: list[Estimate] = []
        for i, p in enumerate(pieces):
            contrast = f"{p.name}: {p.estimate.contrast}"
            of = {p.name: n[p.name]}
            estimates.append(estimate(_MEANS, contrast, p.estimate.value, Normal(p.se), of, False))
            estimates.append(estimate(f"{_MEANS}, shrunk", contrast, pooled.values[i], Normal(pooled.ses[i]), of, True))
        kept = {pieces[i].name: n[pieces[i].name] for i in shipped}
        listed = ", ".join(kept)
        estimates.append(
            estimate("programme total", f"shipped: {listed}", total.raw.value, Normal(total.raw.se), kept, False)
        )
        estimates.append(
            estimate(
                "programme total, shrunk", f"shipped: {listed}", total.shrunk.value, Normal(total.shrunk.se), kept, True
            )
        )
        if (
            declared.shipped is None
        ):  # the winners' own rule of selection is known, which this needs and the shrunk total does not
            z = Normal(1.0).interval(0.0, level)[1]
            won = [i for i, (v, s) in enumerate(zip(values, ses, strict=True)) if sign * v > z * s]
            if won == shipped:  # corrected or widened intervals are another rule, whose bias this is not
                second = programme.lee_shen_total(values, ses, critical=z, sign=sign)
                estimates.append(
                    estimate(
                        "programme total, less its bias",
                        f"shipped: {listed}",
                        second.value,
                        Normal(second.se),
                        kept,
                        False,
                    )
                )
        held, agreement = self._holdout(declared, results, total.shrunk, unit, level)
        estimates += held
        low, high = total.shrunk.interval(level)
        better, best = (low, high) if sign > 0 else (-high, -low)
        verdict: Verdict = "positive" if better > 0 else "negative" if best < 0 else "not conclusive"
        grades = [r.grade for p in pieces if isinstance(r := results.get(p.name), Result)]
        spans = {windows.get(p.name, "") for p in pieces}
        checks = (
            Check(
                "whole",
                "warn" if missing else "pass",
                float(len(missing)),
                f"left out: {'; '.join(missing)}" if missing else f"all {len(pieces)} experiments declared are in",
            ),
            Check(
                "evidence",
                "pass" if set(grades) == {"A"} else "warn",
                None,
                "every experiment is randomised, and none of their checks failed"
                if set(grades) == {"A"}
                else "a check failed in at least one experiment: "
                + ", ".join(p.name for p, g in zip(pieces, grades, strict=True) if g != "A"),
            ),
            Check(
                "same_window",
                "pass" if len(spans) == 1 else "warn",
                None,
                f"measured over {next(iter(spans))} in every experiment"
                if len(spans) == 1
                else "measured over different times: "
                + ", ".join(f"{p.name} {windows.get(p.name, '')}" for p in pieces),
            ),
            agreement,
        )
        return Result(
            name=full,
            question=f"What are the {len(shipped)} changes that were shipped worth in {formats.human(declared.metric)}, their luck taken out?",
            method="programme",
            design="programme",
            verdict=verdict,
            grade=max(grades),
            finding=_finding(declared, total, unit, len(shipped), len(pieces), level, agreement),
            estimates=tuple(estimates),
            arms=(),
            readings=(),
            checks=checks,
            assumptions=self.assumptions,
        )

    def _holdout(
        self, declared: Programme, results: Mapping[str, Result | Refusal], total: Difference, unit: str, level: float
    ) -> tuple[list[Estimate], Check]:
        name = declared.holdout
        if name is None:
            return [], Check("agreement", "not-run", None, "no holdout is named to hold the total against")
        found = _piece(name, declared.metric, results.get(name), 1)
        if isinstance(found, str):
            return [], Check("agreement", "warn", None, f"the holdout says nothing: {found}")
        theirs = Difference(found.estimate.value, found.se, np.inf)
        gap = programme.against_holdout(total, theirs)
        n = {name: sum(found.estimate.n.values())}
        out = [
            Estimate(
                estimand=estimand,
                metric=declared.metric,
                contrast=contrast,
                value=value,
                unit=unit,
                uncertainty=Normal(se),
                interval_kind="confidence",
                n=n,
                level=level,
            )
            for estimand, contrast, value, se in (
                ("holdout total", f"{name}: {found.estimate.contrast}", theirs.value, theirs.se),
                ("holdout less programme", name, -gap.value, gap.se),
            )
        ]
        p = gap.p_value()
        a, b = (
            formats.written(x.value, *x.interval(level), formats.unit(unit), change=True).value for x in (total, theirs)
        )
        agree = p > 1 - level
        return out, Check(
            "agreement",
            "pass" if agree else "warn",
            p,
            f"the changes add up to {a} and the holdout shows {b}: "
            + (
                f"no sign that they disagree ({formats.p_value(p)})"
                if agree
                else f"they disagree ({formats.p_value(p)}), so effects do not just add up, or something else was shipped"
            ),
        )


def _piece(name: str, metric: str, result: Result | Refusal | None, sign: int) -> _Piece | str:
    """An experiment's one difference in the metric, or why there is none."""
    if result is None:
        return f"{name} was not run"
    if isinstance(result, Refusal):
        return f"{name} was refused ({result.reason})"
    found = [e for e in result.estimates if e.metric == metric and e.estimand == _MEANS and e.segment is None]
    if not found:
        reasons = [r.reason for r in result.refusals if r.name.endswith(f".{metric}")]
        return f"{name} has no difference in {metric}" + (f" ({reasons[0]})" if reasons else "")
    if len(found) > 1:
        return f"{name} compares several arms ({', '.join(e.contrast for e in found)}), and a change is one of them"
    e = found[0]
    spread = e.uncertainty
    # a widened interval's own standard error: half of it over the normal quantile, so that it weighs as it was reported
    se = spread.se if isinstance(spread, Normal) else (e.high - e.low) / 2 / Normal(1.0).interval(0.0, e.level)[1]
    low, high = (e.low, e.high) if e.correction is None else (e.correction.low, e.correction.high)
    return _Piece(name, e, se, (low if sign > 0 else -high) > 0)


def _finding(
    declared: Programme,
    total: programme.ProgrammeTotal,
    unit: str,
    shipped: int,
    of: int,
    level: float,
    agreement: Check,
) -> str:
    what, metric = formats.unit(unit), formats.human(declared.metric)
    raw, shrunk = (formats.written(x.value, *x.interval(level), what, change=True) for x in (total.raw, total.shrunk))
    said = (
        f"The {shipped} of {of} changes that were shipped add up to {shrunk.value} in {metric}"
        f" ({formats.level(level)} interval {shrunk.range}) once the luck that made them win is taken out; as measured, {raw.value}"
    )
    return f"{said}; {agreement.detail}." if agreement.status in ("pass", "warn") else f"{said}."

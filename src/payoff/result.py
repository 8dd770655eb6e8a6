"""What a method gives back: a Result, or a Refusal with its reason and its remedy. Inert data, no behaviour but to_dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from payoff.estimate import Estimate

CheckStatus = Literal["pass", "warn", "fail", "not-run"]
Verdict = Literal["above target", "positive", "negative", "not conclusive", "guardrail at risk", "withheld"]


@dataclass(frozen=True, slots=True)
class Assumption:
    """Something that must hold for the figure to mean what it says, in plain English; ``tested_by`` names a check or is None."""

    text: str
    tested_by: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    status: CheckStatus
    statistic: float | None
    detail: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "status": self.status, "statistic": self.statistic, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class Arm:
    """The level of ``metric`` in one arm, over ``n`` analysed units, with its own interval."""

    arm: str
    metric: str
    n: int
    value: float
    low: float
    high: float
    unit: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "arm": self.arm,
            "metric": self.metric,
            "n": self.n,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
        }


@dataclass(frozen=True, slots=True)
class Refusal:
    """No number, on purpose. ``remedy`` says what would make the question answerable."""

    name: str
    reason: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "reason": self.reason, "remedy": self.remedy}


@dataclass(frozen=True, slots=True)
class Provenance:
    """Enough to run it again: the SQL as executed, what was declared, what was read, the seed, the versions."""

    sql: tuple[tuple[str, str], ...] = ()
    definition_hash: str = ""
    data_fingerprint: str = ""
    seed: int = 0
    as_of: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "sql": [{"step": step, "text": text} for step, text in self.sql],
            "definition_hash": self.definition_hash,
            "data_fingerprint": self.data_fingerprint,
            "seed": self.seed,
            "as_of": self.as_of,
            "versions": dict(self.versions),
        }


@dataclass(frozen=True, slots=True)
class MetricReading:
    """How one metric was used here: its role, direction and margin, and the reading its interval supports.

    ``state`` is decided by the interval against zero, target or margin, never by the point: "improved", "harmed",
    "not conclusive" for what is to be moved; "safe" (harm beyond the margin excluded), "at risk", "breached" for guardrails;
    "refused" where there is no number.
    """

    metric: str
    contrast: str
    role: str
    direction: str
    state: str
    sentence: str
    margin: float | None = None
    target: float | None = None
    caveat: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "contrast": self.contrast,
            "role": self.role,
            "direction": self.direction,
            "state": self.state,
            "sentence": self.sentence,
            "margin": self.margin,
            "target": self.target,
            "caveat": self.caveat,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """``finding`` is the sentence to lead with; ``verdict`` is what the primary metric's interval shows.

    ``design`` is how causality is claimed ("randomised"); ``grade`` how the effect is known (A to E); ``left_out`` counts
    rows and units that did not enter, by reason; ``refusals`` are the metrics without a number.
    ``correlations`` holds, for pairs of (metric, contrast) differences estimated on the same units, the correlation of
    their sampling errors, so that money can be drawn jointly.
    """

    name: str
    question: str
    method: str
    design: str
    verdict: Verdict
    grade: str
    finding: str
    estimates: tuple[Estimate, ...]
    arms: tuple[Arm, ...]
    readings: tuple[MetricReading, ...]
    checks: tuple[Check, ...]
    assumptions: tuple[Assumption, ...]
    provenance: Provenance = field(default_factory=Provenance)
    left_out: Mapping[str, int] = field(default_factory=dict)
    owner: str | None = None
    refusals: tuple[Refusal, ...] = ()
    correlations: Mapping[tuple[tuple[str, str], tuple[str, str]], float] = field(default_factory=dict)

    def estimate(self, metric: str, contrast: str | None = None, estimand: str = "difference in means") -> Estimate:
        """The one estimate asked for. Raises KeyError when none or several match."""
        found = [
            e
            for e in self.estimates
            if e.metric == metric and e.estimand == estimand and contrast in (None, e.contrast) and e.segment is None
        ]
        if len(found) != 1:
            raise KeyError(f"{len(found)} estimates of '{metric}' ({estimand}) in {self.name}")
        return found[0]

    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "fail")

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "method": self.method,
            "question": self.question,
            "owner": self.owner,
            "design": self.design,
            "verdict": self.verdict,
            "grade": self.grade,
            "finding": self.finding,
            "estimates": [e.to_dict() for e in self.estimates],
            "arms": [a.to_dict() for a in self.arms],
            "readings": [r.to_dict() for r in self.readings],
            "checks": [c.to_dict() for c in self.checks],
            "assumptions": [a.text for a in self.assumptions],
            "assumption_tests": {a.text: a.tested_by for a in self.assumptions if a.tested_by},
            "left_out": dict(self.left_out),
            "refusals": [r.to_dict() for r in self.refusals],
            "provenance": self.provenance.to_dict(),
        }

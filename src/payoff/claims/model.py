"""What goes into the price of a claim and what comes out of it; a figure is kept with its interval, never alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from payoff.result import Verdict

# ---------------------------------------------------------------- what comes in


@dataclass(frozen=True, slots=True)
class Volume:
    """Rows of a source over a claim's whole period: ``value``, its standard error, and the days it was observed on."""

    value: float
    se: float
    days_observed: float
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and math.isfinite(self.se) and self.value >= 0 and self.se >= 0):
            raise ValueError(f"a volume and its standard error are finite and not negative: {self.value}, {self.se}")


@dataclass(frozen=True, slots=True)
class Population:
    """Units of an entity over a claim's whole period (or all of them, where it has none): a count, taken as exact."""

    value: float
    days_observed: float
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value >= 0):
            raise ValueError(f"a population is finite and not negative: {self.value}")


# ---------------------------------------------------------------- what comes out


@dataclass(frozen=True, slots=True)
class Quantity:
    """A figure with its interval at ``level``, and the quantiles of its draws by probability."""

    value: float
    low: float
    high: float
    level: float
    unit: str
    quantiles: Mapping[float, float]

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "unit": self.unit,
            "low_50": self.quantiles[0.25],
            "high_50": self.quantiles[0.75],
            "quantiles": {f"{q:g}": x for q, x in self.quantiles.items()},
        }


@dataclass(frozen=True, slots=True)
class Payback:
    """Days until the amount, coming in evenly, has covered the cost. An end is None where too many draws never get there."""

    value: float
    low: float | None
    high: float | None
    level: float
    never: float
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "unit": "days",
            "never": self.never,
            "sentence": self.sentence,
        }


@dataclass(frozen=True, slots=True)
class DecisionReading:
    """The decision rule, and what the draws say of it; ``sentence`` also says when the evidence is withheld."""

    threshold: str
    probability: float
    observed_probability: float
    met: bool
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Input:
    """One number that the claim is computed from, with its range and who stands behind it."""

    name: str
    kind: str  # effect, attributed, value, volume, population or cost
    value: float
    low: float
    high: float
    unit: str
    source: str | None
    owner: str | None
    expires: date | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        expires = None if self.expires is None else self.expires.isoformat()
        return asdict(self) | {"expires": expires, "notes": list(self.notes)}


@dataclass(frozen=True, slots=True)
class Swing:
    """What moving one input through its range, all others at their central values, does to the net (or the amount).

    ``flips_at`` is the nearest value inside the range at which the decision (or the sign of the net) changes;
    ``break_even`` is that value wherever it lies, and None where no plausible value does it.
    """

    input: str
    value: float
    low_input: float
    high_input: float
    net_at_low: float
    net_at_high: float
    swing: float
    flips: bool
    flips_at: float | None
    break_even: float | None
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Compared:
    """What one model of an attribution credits, to be read beside the claim's amount; None where nothing can be shown."""

    name: str
    model: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """A priced claim. ``finding`` is the sentence to lead with; ``verdict`` is what the interval of the net shows.

    ``net`` is None for an amount that is not money; ``roi`` and ``payback`` are None where they have no meaning, and
    ``notes`` then says why. ``net_quantiles`` are 20 equally likely values of the net (or amount), lowest first.
    """

    name: str
    statement: str
    grade: str
    grade_reasons: tuple[str, ...]
    verdict: Verdict
    finding: str
    evidence: tuple[str, ...]
    amount_expression: str
    amount: Quantity
    cost: float
    costs: tuple[Input, ...]
    net: Quantity | None
    roi: Quantity | None
    payback: Payback | None
    probability_positive: float
    decision: DecisionReading | None
    inputs: tuple[Input, ...]
    sensitivity: tuple[Swing, ...]
    overturn: tuple[str, ...]
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]
    net_quantiles: tuple[float, ...]
    currency: str
    period: str | None
    owner: str | None
    compare: tuple[Compared, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "statement": self.statement,
            "owner": self.owner,
            "grade": self.grade,
            "grade_reasons": list(self.grade_reasons),
            "verdict": self.verdict,
            "finding": self.finding,
            "evidence": list(self.evidence),
            "amount_expression": self.amount_expression,
            "currency": self.currency,
            "period": self.period,
            "amount": self.amount.to_dict(),
            "cost": self.cost,
            "costs": [cost.to_dict() for cost in self.costs],
            "net": None if self.net is None else self.net.to_dict(),
            "roi": None if self.roi is None else self.roi.to_dict(),
            "payback": None if self.payback is None else self.payback.to_dict(),
            "probability_positive": self.probability_positive,
            "decision": None if self.decision is None else self.decision.to_dict(),
            "inputs": [one.to_dict() for one in self.inputs],
            "sensitivity": [one.to_dict() for one in self.sensitivity],
            "overturn": list(self.overturn),
            "assumptions": list(self.assumptions),
            "notes": list(self.notes),
            "net_quantiles": list(self.net_quantiles),
            "compare": [one.to_dict() for one in self.compare],
        }


# ---------------------------------------------------------------- or the lack of it


class Refused(Exception):
    """Why a claim has no price, and the remedy; ``price`` answers it as a Refusal."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(reason)

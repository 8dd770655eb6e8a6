"""A journey as its kernel and its method see it: the noun as declared, with every default resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from payoff.spec.nouns import Assignment, Attribution, Cohort, Funnel, Journey, Touchpoint


@dataclass(frozen=True, slots=True)
class ArmsOf:
    """An experiment whose arms split an attribution: its units are read from ``source`` as ``assignment`` says.

    ``starts_us`` and ``ends_us`` bound exposures (microseconds since the epoch). Units seen in several arms are in none.
    """

    experiment: str
    source: str
    assignment: Assignment
    starts_us: int | None
    ends_us: int | None


@dataclass(frozen=True, slots=True)
class JourneyDesign:
    """``name`` is in full (``funnels.checkout``); ``touchpoints`` are the declarations it names, in its order.

    ``starts_us`` and ``ends_us`` bound what the noun says they bound (entry, conversions); ``now_us`` is when it is read.
    ``arms`` is the experiment an attribution is split by.
    """

    name: str
    declared: Funnel | Cohort | Journey | Attribution
    entity: str
    zone: str = "UTC"
    currency: str = "USD"
    alpha: float = 0.05
    min_cell: int = 0
    now_us: int = 0
    starts_us: int | None = None
    ends_us: int | None = None
    touchpoints: Mapping[str, Touchpoint] = field(default_factory=dict)
    arms: ArmsOf | None = None

    @property
    def level(self) -> float:
        return 1.0 - self.alpha

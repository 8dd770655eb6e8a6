"""What is counted over the worlds of one regime."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

LEVEL = 0.95


@dataclass(frozen=True)
class Row:
    """Counts of ``answered`` worlds: intervals that hold the truth, or lie wholly below or above it; those that leave out
    zero; those in which the program warns.

    ``what``: "interval" should cover 95%; "safe" at least 95% (it is made for more than is asked of it here); "test" has no
    interval, and rejects a true null in at most 5%; "contrast" is what the program does not do, shown beside what it does.
    ``null``: nothing happens in these worlds. ``spread`` is the standard deviation of one world's coverage, where a world has
    several intervals.
    """

    estimate: str
    values: str
    units: str
    effect: str
    what: str
    worlds: int
    answered: int
    covered: float
    below: float
    above: float
    rejected: float
    warned: float
    null: bool
    spread: float | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.estimate, self.values, self.units, self.effect

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Tally:
    answered: int = 0
    covered: int = 0
    below: int = 0
    above: int = 0
    rejected: int = 0
    warned: int = 0

    def add(self, low: float, high: float, truth: float, warned: bool, p: float | None = None) -> None:
        assert math.isfinite(low)
        assert math.isfinite(high)
        excludes = low > 0 or high < 0
        # The interval and the p value come from one distribution, so they can never disagree.
        assert p is None or (p < 1 - LEVEL) == excludes
        self.answered += 1
        self.below += high < truth
        self.above += low > truth
        self.covered += low <= truth <= high
        self.rejected += excludes
        self.warned += warned

    def row(
        self,
        estimate: str,
        values: str,
        units: str,
        effect: str,
        worlds: int,
        *,
        null: bool = False,
        what: str = "interval",
    ) -> Row:
        n = max(self.answered, 1)
        counts = self.covered, self.below, self.above, self.rejected, self.warned
        return Row(
            estimate, values, units, effect, what, worlds, self.answered, *(round(c / n, 6) for c in counts), null
        )


@dataclass(frozen=True)
class Case:
    """Rows that come from the same worlds. ``run`` is called with a seed and the number of worlds, and ``arguments``."""

    family: str
    run: Callable[..., list[Row]]
    arguments: tuple[Any, ...]
    worlds: int
    units: int  # drawn in a world: what decides how long it takes

    @property
    def name(self) -> str:
        return f"{self.family}{self.arguments}"

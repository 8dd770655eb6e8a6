"""The few words and rounded numbers that more than one sentence about a claim needs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from payoff import formats
from payoff.spec.amount import period_text


def listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def rounded(x: float, unit: formats.Unit = formats.NUMBER, *, change: bool = False) -> str:
    """Three significant digits, for an end of a range or a turning point; a change of a share is in points."""
    return formats.rounded(x, unit, change=change and unit.kind == "share").removeprefix("+")


def percentage(share: float) -> str:
    return rounded(share, formats.unit("share"))


def per_period(period: timedelta | None) -> str:
    return "" if period is None else "/year" if period == timedelta(days=365) else f"/{period_text(period)}"

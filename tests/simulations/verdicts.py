"""What a row's counts say."""

from __future__ import annotations

import math

from tests.simulations.rows import LEVEL, Row

BAND = 3.5  # Monte-Carlo standard errors: 1 figure in 2,000 falls outside by chance
SERIOUS = 0.93  # below this coverage nearly every result must warn; above it a sample may itself look good or bad
FEWEST = 100  # worlds with an answer, below which a row says nothing


def error(row: Row) -> float:
    """The Monte-Carlo standard error of coverage, were it 95%; of several intervals a world, as it is."""
    one = math.sqrt(LEVEL * (1 - LEVEL)) if row.spread is None else row.spread
    return one / math.sqrt(row.answered) if row.answered else math.inf


def warned_enough(row: Row) -> bool:
    return row.warned >= (0.9 if row.covered < SERIOUS else 0.5)


def verdict(row: Row) -> str:
    room = BAND * error(row)
    if row.what == "contrast":
        return "not what the program does"
    if row.answered < FEWEST:
        return "refused"
    if row.what == "test":
        too_often = row.null and row.rejected > 1 - LEVEL + room
        return ("rejects too often, warned" if warned_enough(row) else "rejects too often") if too_often else "holds"
    if row.covered < LEVEL - room:
        return "covers less, warned" if warned_enough(row) else "covers less"
    if row.covered > LEVEL + room and row.what == "interval":
        return "covers more"
    return "holds"


def fails(row: Row) -> bool:
    return verdict(row).startswith(("covers less", "rejects too often"))

"""Everything a report says, computed once from the JSON of a run. Renderers only place it.

A figure that should be there and is not, or that contradicts another, raises ``MissingFigure``: no report is better than
a report with an empty cell.
"""

from __future__ import annotations

from payoff.report.figures.claims import BridgeStep, ClaimFigures, Input, Swing
from payoff.report.figures.experiment import (
    CHECK_STATES,
    ROLES,
    ArmLevel,
    AssumptionLine,
    CheckLine,
    Effect,
    Section,
    SqlText,
)
from payoff.report.figures.page import Card, Figures, build, of_result
from payoff.report.figures.reading import (
    CAUSAL_GRADES,
    GRADES,
    INTERVALS,
    STATES,
    UNDATED,
    MissingFigure,
    Quantity,
    RefusalLine,
    State,
    sentence,
)

__all__ = [
    "CAUSAL_GRADES",
    "CHECK_STATES",
    "GRADES",
    "INTERVALS",
    "ROLES",
    "STATES",
    "UNDATED",
    "ArmLevel",
    "AssumptionLine",
    "BridgeStep",
    "Card",
    "CheckLine",
    "ClaimFigures",
    "Effect",
    "Figures",
    "Input",
    "MissingFigure",
    "Quantity",
    "RefusalLine",
    "Section",
    "SqlText",
    "State",
    "Swing",
    "build",
    "of_result",
    "sentence",
]

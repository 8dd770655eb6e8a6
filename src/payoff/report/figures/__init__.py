"""Everything a report says, computed once from the JSON of a run. Renderers only place it.

A figure that should be there and is not, or that contradicts another, raises ``MissingFigure``: no report is better than
a report with an empty cell.
"""

from __future__ import annotations

from payoff.report.figures.claims import BridgeStep, ClaimFigures, Input, Swing
from payoff.report.figures.experiment import (
    ROLES,
    ArmLevel,
    AssumptionLine,
    CheckLine,
    Effect,
    Section,
    SqlText,
)
from payoff.report.figures.looks import (
    BayesLook,
    CappingLook,
    DilutedLook,
    DisplacementLook,
    InteractionLook,
    LookLine,
    Looks,
    PathLine,
    PeekingLook,
    PrecisionLook,
    SegmentLine,
    SegmentsLook,
    TimeLine,
    TimeLook,
)
from payoff.report.figures.page import Card, Figures, build, of_result
from payoff.report.figures.programme import Member, Programme, Total
from payoff.report.figures.reading import (
    CAUSAL_GRADES,
    CHECK_STATES,
    GRADES,
    INTERVALS,
    STATES,
    UNDATED,
    MissingFigure,
    Quantity,
    RefusalLine,
    State,
    sentence,
    uncapital,
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
    "BayesLook",
    "BridgeStep",
    "CappingLook",
    "Card",
    "CheckLine",
    "ClaimFigures",
    "DilutedLook",
    "DisplacementLook",
    "Effect",
    "Figures",
    "Input",
    "InteractionLook",
    "LookLine",
    "Looks",
    "Member",
    "MissingFigure",
    "PathLine",
    "PeekingLook",
    "PrecisionLook",
    "Programme",
    "Quantity",
    "RefusalLine",
    "Section",
    "SegmentLine",
    "SegmentsLook",
    "SqlText",
    "State",
    "Swing",
    "TimeLine",
    "TimeLook",
    "Total",
    "build",
    "of_result",
    "sentence",
    "uncapital",
]

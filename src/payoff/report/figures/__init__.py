"""Everything a report says, computed once from the JSON of a run. Renderers only place it.

A figure that should be there and is not, or that contradicts another, raises ``MissingFigure``: no report is better than
a report with an empty cell.
"""

from __future__ import annotations

from payoff.report.figures.attribution import (
    AttributionFigures,
    CreditRow,
    ReconciledLine,
    ReconciliationFigures,
)
from payoff.report.figures.claims import BridgeStep, ClaimFigures, CompareLine, Input, Swing
from payoff.report.figures.cohorts import TOGETHER, CohortCell, CohortFigures, CohortLine, StateBar
from payoff.report.figures.experiment import (
    ROLES,
    ArmLevel,
    AssumptionLine,
    CheckLine,
    Effect,
    Section,
    SqlText,
)
from payoff.report.figures.grids import Cell, Grid, Part
from payoff.report.figures.journeys import (
    Edge,
    FunnelFigures,
    PathFigures,
    PathRow,
    StepLine,
    stop_name,
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
    "TOGETHER",
    "UNDATED",
    "ArmLevel",
    "AssumptionLine",
    "AttributionFigures",
    "BayesLook",
    "BridgeStep",
    "CappingLook",
    "Card",
    "Cell",
    "CheckLine",
    "ClaimFigures",
    "CohortCell",
    "CohortFigures",
    "CohortLine",
    "CompareLine",
    "CreditRow",
    "DilutedLook",
    "DisplacementLook",
    "Edge",
    "Effect",
    "Figures",
    "FunnelFigures",
    "Grid",
    "Input",
    "InteractionLook",
    "LookLine",
    "Looks",
    "Member",
    "MissingFigure",
    "Part",
    "PathFigures",
    "PathLine",
    "PathRow",
    "PeekingLook",
    "PrecisionLook",
    "Programme",
    "Quantity",
    "ReconciledLine",
    "ReconciliationFigures",
    "RefusalLine",
    "Section",
    "SegmentLine",
    "SegmentsLook",
    "SqlText",
    "State",
    "StateBar",
    "StepLine",
    "Swing",
    "TimeLine",
    "TimeLook",
    "Total",
    "build",
    "of_result",
    "sentence",
    "stop_name",
    "uncapital",
]

"""Charts as SVG text, drawn by Altair and vl-convert: no browser, no network, and fonts that every system has.

Every chart is laid out here in pixels and drawn with plain marks, so that nothing depends on a guess of the layout
engine; each exists in two widths, for a desk and for a telephone. Colours are those of ``PALETTE``, which the page maps
to its light and dark themes. Each SVG carries its numbers in words (<title>, <desc>).
"""

from __future__ import annotations

from payoff.report.charts.claims import bridge, dots, tornado
from payoff.report.charts.cohorts import lifecycle, retention, revenue
from payoff.report.charts.effects import effects
from payoff.report.charts.journeys import credit, flow, funnel, funnel_classes, paths, reconciliation
from payoff.report.charts.looks import cannibalisation, over_time, peeking, precision, programme, segments
from payoff.report.charts.sheet import PALETTE, SVG, Chart, fit, stacked, text_width

__all__ = [
    "PALETTE",
    "SVG",
    "Chart",
    "bridge",
    "cannibalisation",
    "credit",
    "dots",
    "effects",
    "fit",
    "flow",
    "funnel",
    "funnel_classes",
    "lifecycle",
    "over_time",
    "paths",
    "peeking",
    "precision",
    "programme",
    "reconciliation",
    "retention",
    "revenue",
    "segments",
    "stacked",
    "text_width",
    "tornado",
]

"""Charts as SVG text, drawn by Altair and vl-convert: no browser, no network, and fonts that every system has.

Every chart is laid out here in pixels and drawn with plain marks, so that nothing depends on a guess of the layout
engine; each exists in two widths, for a desk and for a telephone. Colours are those of ``PALETTE``, which the page maps
to its light and dark themes. Each SVG carries its numbers in words (<title>, <desc>).
"""

from __future__ import annotations

from payoff.report.charts.claims import bridge, dots, tornado
from payoff.report.charts.effects import effects
from payoff.report.charts.looks import cannibalisation, over_time, peeking, precision, programme, segments
from payoff.report.charts.sheet import PALETTE, SVG, Chart, fit, stacked, text_width

__all__ = [
    "PALETTE",
    "SVG",
    "Chart",
    "bridge",
    "cannibalisation",
    "dots",
    "effects",
    "fit",
    "over_time",
    "peeking",
    "precision",
    "programme",
    "segments",
    "stacked",
    "text_width",
    "tornado",
]

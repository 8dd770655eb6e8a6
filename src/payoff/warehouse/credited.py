"""What the attribution kernel brings back: credit by outcome, window, model and hash group. Inert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from payoff.estimate import FloatArray
from payoff.stats.moments import Moments
from payoff.warehouse.events import EventProfile
from payoff.warehouse.statements import Step
from payoff.warehouse.touches import Stop

GROUPS = 512
"""Hash groups of units: what a bootstrap draws."""
POSITIONS = 10
"""Positions in a path that ordered credit tells apart; later ones are taken together with the last."""

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """Moves of Markov paths, a row each, as ``stats.markov.Transitions.of`` takes them.

    ``open``: paths that lead nowhere so far, whose last touch is less than the window old.
    """

    order: int
    groups: int
    group: IntArray
    state: IntArray
    follows: IntArray
    count: IntArray
    converting: int
    nowhere: int
    open: int


@dataclass(frozen=True, slots=True, eq=False)
class ArmCredit:
    """Credit for conversions of one arm's units at or after their exposure, (groups, touchpoints) by model.

    ``chosen`` is that of personalised touches, ``other`` of the rest, each with its worth. Over the ``n`` exposed units, zeros in
    (k = 1): ``total`` is the worth attributed per unit, ``per_unit`` the same by model and touchpoint, of all touches. ``behind``:
    units credited by touchpoint.
    """

    arm: str
    n: int
    conversions: FloatArray
    worth: FloatArray
    chosen: Mapping[str, FloatArray]
    chosen_worth: Mapping[str, FloatArray]
    other: Mapping[str, FloatArray]
    other_worth: Mapping[str, FloatArray]
    total: Moments
    per_unit: Mapping[str, Mapping[int, Moments]]
    behind: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """What conversions of one ``outcome`` credit over one ``window``. Arrays by hash group, then by touchpoint.

    ``counts`` and ``worth``: by model. ``unattributed``: conversions without a touch, (groups,). ``units``: converting units behind
    each touchpoint, ``converters`` behind any. ``touched``: conversions with a touch; of these ``late``: the oldest lies in the
    last tenth of the window. ``positions``: (groups, touchpoints, POSITIONS), ordered credit and its worth. ``moves``: by Markov model.
    """

    outcome: str
    window: str
    window_us: int
    counts: Mapping[str, FloatArray]
    worth: Mapping[str, FloatArray]
    unattributed: FloatArray
    unattributed_worth: FloatArray
    units: IntArray
    converters: int
    touched: int
    late: int
    positions: tuple[FloatArray, FloatArray] | None
    moves: Mapping[str, Moves]
    arms: tuple[ArmCredit, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Total:
    """All conversions of an outcome: how many and their worth, (groups,). ``unvalued``: their value is NULL, which counts as none."""

    outcome: str
    source: str
    valued: bool
    conversions: FloatArray
    worth: FloatArray
    units: int
    unvalued: int


@dataclass(frozen=True, slots=True)
class Capped:
    """``units`` had more pairs of touch and conversion than may be. What keeping each conversion's newest touches dropped."""

    units: int = 0
    touches: int = 0
    conversions: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class CreditData:
    """``models``: the kind of each, in order. ``refused``: models without credit, and why. ``costs``: by touchpoint's label, or by the name of one whose spending covers all
    its values; in time with the conversions. ``without_unit``: conversions by source. ``arms``: exposed units."""

    models: Mapping[str, str]
    stops: tuple[Stop, ...]
    totals: Mapping[str, Total]
    credits: tuple[Credit, ...]
    arms: Mapping[str, int]
    costs: Mapping[str, float]
    capped: Capped
    refused: Mapping[str, str]
    left_out: Mapping[str, int]
    without_unit: Mapping[str, int]
    touch_sources: Mapping[str, EventProfile]
    outcome_sources: Mapping[str, EventProfile]
    as_of_us: int
    steps: tuple[Step, ...]

    @property
    def sources(self) -> Mapping[str, EventProfile]:
        return {**self.touch_sources, **self.outcome_sources}

    @property
    def sql(self) -> tuple[tuple[str, str], ...]:
        return tuple((step.name, step.sql) for step in self.steps)

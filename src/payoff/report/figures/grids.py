"""Parts of a page as words, tables and the name of a picture: what both renderers place without knowing what it is about."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from payoff.report.figures.reading import Quantity

ACROSS = 4
"""Columns of figures that stand side by side on a page; more go to a further table."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Words, or a number with its interval; ``second`` is another number of the same cell, ``note`` small words below."""

    text: str = ""
    quantity: Quantity | None = None
    second: Quantity | None = None
    note: str = ""

    @property
    def lines(self) -> tuple[str, ...]:
        """The cell with its interval below the number."""
        numbers = (self.quantity.text, self.quantity.range) if self.quantity is not None else ()
        second = f"{self.second.text} ({self.second.range})" if self.second is not None else ""
        return tuple(part for part in (self.text, *numbers, second, self.note) if part)

    @property
    def short(self) -> str:
        """The whole cell on one line."""
        numbers = [f"{q.text} ({q.range})" for q in (self.quantity, self.second) if q is not None]
        return "; ".join([part for part in (self.text, *numbers, self.note) if part])


@dataclass(frozen=True, slots=True)
class Grid:
    """A table. ``folded``: what the closed table is called, or nothing where it is open."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: str = ""

    def quantities(self) -> Iterator[Quantity]:
        for row in self.rows:
            for cell in row:
                yield from (q for q in (cell.quantity, cell.second) if q is not None)


@dataclass(frozen=True, slots=True)
class Part:
    """``picture`` names a kind of chart, ``at`` which of them; ``under`` stands beneath it."""

    title: str
    said: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    picture: str = ""
    at: int = 0
    under: str = ""

    @property
    def blocks(self) -> tuple[tuple[str, tuple[Grid, ...]], ...]:
        """Neighbouring tables that fold away under one name, together."""
        return tuple((folded, tuple(grids)) for folded, grids in groupby(self.grids, lambda grid: grid.folded))

    def quantities(self, *, folded: bool = True) -> Iterator[Quantity]:
        for grid in self.grids:
            if folded or not grid.folded:
                yield from grid.quantities()


def figure(
    quantity: Quantity | None, second: Quantity | None = None, note: str = "", without: str = "no figure"
) -> Cell:
    return Cell(without if quantity is None else "", quantity, second if quantity is not None else None, note)


def across(
    caption: str,
    first: str,
    columns: Sequence[str],
    rows: Sequence[tuple[Cell, Sequence[Cell]]],
    folded: str = "",
    most: int = ACROSS,
) -> tuple[Grid, ...]:
    """Rows of as many cells as there are ``columns``, in tables of at most ``most`` columns each beside the first."""
    grids = []
    tables = math.ceil(len(columns) / most)
    each = math.ceil(len(columns) / tables) if tables else most
    for start in range(0, len(columns), each):
        part = slice(start, start + each)
        several = f", {start + 1} to {min(start + each, len(columns))} of {len(columns)}" if tables > 1 else ""
        grids.append(
            Grid(
                caption + several,
                (first, *columns[part]),
                tuple((lead, *cells[part]) for lead, cells in rows),
                folded,
            )
        )
    return tuple(grids)

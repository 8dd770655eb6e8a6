"""Means and covariances that do not depend on the order of the rows: sums without any rounding, rounded once at the end.

Sums of floating-point numbers depend on their order in the last digits. Exact ones do not: they can be made in any order, merged, and
taken back, and what comes out is always the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from payoff.estimate import FloatArray
from payoff.stats.moments import Moments

_BITS = 21
"""Bits of a limb."""
_ROWS = 2048
"""Rows of a block: a product of two limbs is below 2**42, and 2048 of them add up to 2**53 at most, which a double holds exactly."""
_LOWEST = -52
"""The limb that holds the last bit of the smallest double, 2**-1074."""
_FLUSH = 1000
"""Blocks after which the integers that hold sums of blocks (64 bits) are emptied into unbounded ones."""
_TOGETHER = 32
"""Columns whose products are worked out together, though only those of one family are asked for."""


class ExactMoments:
    """Counts, sums and sums of products of ``k`` columns by group, exact, from which Moments are rounded once.

    Every value is cut into limbs of 21 bits on one grid of powers of two; the products of blocks of limbs are matrix products of
    whole numbers too small to be rounded (the error-free transformation of Ozaki, Ogita, Oishi, Rump 2012, "Error-free
    transformations of matrix multiplication by using fast routines of matrix multiplication", section 3, on a fixed grid), and
    their totals are unbounded integers. Whole numbers below two million are one limb, and cost one product.

    Exact sums form a group: ``merge`` adds another's rows and ``retract`` takes them back, leaving what was there before.
    ``families`` are the tuples of columns whose Moments will be asked for (default: all together).
    """

    def __init__(self, k: int, families: Sequence[Sequence[int]] | None = None) -> None:
        self.k = k
        self.families = tuple(tuple(f) for f in (families if families is not None else [range(k)]))
        self._bins = _packed(self.families)
        self._pairs = sorted({(min(a, b), max(a, b)) for f in self.families for a in f for b in f})
        self._count: dict[int, list[int]] = {}
        self._sum: dict[int, list[int]] = {}
        self._product: dict[int, dict[tuple[int, int], int]] = {}
        self._range: list[tuple[int, int] | None] = [None] * k
        self._limbs: list[tuple[int, int]] = []
        self._pending: dict[int, tuple[np.ndarray, list[np.ndarray]]] = {}
        self._blocks = 0

    # ---------------------------------------------------------------- adding

    def add(self, columns: FloatArray, group: np.ndarray | Sequence[int] | int = 0) -> Self:
        """Add rows: ``columns`` (n, k), NaN where a row has no part in a column; ``group`` the group of each row, or of all.

        Raises ValueError for an infinite value.
        """
        table = np.asarray(columns, dtype=np.float64)
        if table.ndim != 2 or table.shape[1] != self.k:
            raise ValueError(f"rows of {self.k} columns are expected, not an array of shape {table.shape}")
        if not len(table):
            return self
        if isinstance(group, int | np.integer):
            self._add_group(int(group), np.array(table.T, order="C"))
            return self
        codes = np.asarray(group)
        if codes.min() >= 0 and codes.max() < 2**15:
            codes = codes.astype(np.int16)  # which numpy sorts by their digits
        order = np.argsort(codes, kind="stable")
        ends = np.flatnonzero(np.diff(codes[order])) + 1
        for rows in np.split(order, ends):
            self._add_group(int(codes[rows[0]]), np.stack([table[:, c][rows] for c in range(self.k)]))
        return self

    def _add_group(self, group: int, table: FloatArray) -> None:
        """Add rows of one group: ``table`` (k, n), a column contiguous, to be written into."""
        highest = np.maximum(table.max(axis=1), -table.min(axis=1))
        counts = self._count.setdefault(group, [0] * self.k)
        for c in range(self.k):
            here = len(table[c])
            if np.isnan(highest[c]):
                missing = np.isnan(table[c])
                here -= int(missing.sum())
                table[c, missing] = 0.0
                highest[c] = max(float(table[c].max()), -float(table[c].min()))
            counts[c] += here
        if not np.isfinite(highest).all():
            raise ValueError("a value is infinite, so there is no sum")
        tops = (np.frexp(highest)[1] - 1) // _BITS
        for c in np.flatnonzero(highest):
            self._reach(int(c), int(tops[c]), int(tops[c]))
        for low in range(0, table.shape[1], _ROWS):
            self._add_block(group, table[:, low : low + _ROWS])

    def _reach(self, column: int, low: int, high: int) -> None:
        """See to it that a column's limbs go from ``low`` to ``high`` at least."""
        now = self._range[column]
        wanted = (low, high) if now is None else (min(low, now[0]), max(high, now[1]))
        if wanted != now:
            self._flush()
            self._range[column] = wanted
            self._limbs = [(c, j) for c, r in enumerate(self._range) if r is not None for j in range(r[1], r[0] - 1, -1)]

    def _add_block(self, group: int, block: FloatArray) -> None:
        while (cut := self._cut(block)) is None:
            pass
        if group not in self._pending:
            self._pending[group] = (
                np.zeros(len(self._limbs), np.int64),
                [np.zeros((n := len(self._slots(b)), n), np.int64) for b in self._bins],
            )
        sums, products = self._pending[group]
        sums += cut.sum(axis=1).astype(np.int64)
        for b, total in zip(self._bins, products, strict=True):
            mine = cut if len(self._bins) == 1 else cut[self._slots(b)]
            total += (mine @ mine.T).astype(np.int64)
        self._blocks += 1
        if self._blocks >= _FLUSH:
            self._flush()

    def _slots(self, columns: Sequence[int]) -> list[int]:
        return [i for i, (c, _) in enumerate(self._limbs) if c in columns]

    def _cut(self, block: FloatArray) -> FloatArray | None:
        """The limbs of a block, shape (limbs, rows); None where they did not reach far enough down, and now do."""
        out = np.empty((len(self._limbs), block.shape[1]))
        slot, short = 0, []
        for c, reach in enumerate(self._range):
            if reach is None:
                continue
            left = block[c]
            for j in range(reach[1], reach[0] - 1, -1):
                part = np.trunc(_scaled(left, -j), out=out[slot])
                left = left - _scaled(part, j)
                slot += 1
            if left.any():
                short.append(c)
        for c in short:
            low, high = self._range[c] or (0, 0)
            self._reach(c, low - 1, high)
        return None if short else out

    def _flush(self) -> None:
        """Empty the sums of blocks into the unbounded integers, in units of the lowest limb (squared, for products)."""
        own: list[list[tuple[int, int]]] = [[] for _ in range(self.k)]
        for group, (sums, products) in self._pending.items():
            total = self._sum.setdefault(group, [0] * self.k)
            for i, (c, j) in enumerate(self._limbs):
                total[c] += int(sums[i]) << (_BITS * (j - _LOWEST))
            found = self._product.setdefault(group, {})
            for b, matrix in zip(self._bins, products, strict=True):
                cells = matrix.tolist()
                for c in b:
                    own[c] = []
                for at, slot in enumerate(self._slots(b)):
                    own[self._limbs[slot][0]].append((at, self._limbs[slot][1]))
                for a, c in self._pairs:
                    if a in b and c in b:
                        found[a, c] = found.get((a, c), 0) + sum(
                            cells[s][t] << (_BITS * (i + j - 2 * _LOWEST)) for s, i in own[a] for t, j in own[c]
                        )
        self._pending, self._blocks = {}, 0

    # ---------------------------------------------------------------- the group

    def merge(self, other: ExactMoments) -> Self:
        """Add another's rows."""
        return self._with(other, 1)

    def retract(self, other: ExactMoments) -> Self:
        """Take another's rows back, that were added before."""
        return self._with(other, -1)

    def _with(self, other: ExactMoments, sign: int) -> Self:
        if (self.k, self.families) != (other.k, other.families):
            raise ValueError("exact moments of different columns cannot be merged")
        self._flush()
        other._flush()
        for group, counts in other._count.items():
            mine = self._count.get(group, [0] * self.k)
            self._count[group] = [a + sign * b for a, b in zip(mine, counts, strict=True)]
            if min(self._count[group], default=0) < 0:
                raise ValueError("more rows are taken back than were added")
        for group, sums in other._sum.items():
            held = self._sum.get(group, [0] * self.k)
            self._sum[group] = [a + sign * b for a, b in zip(held, sums, strict=True)]
            products = self._product.setdefault(group, {})
            for pair, value in other._product[group].items():
                products[pair] = products.get(pair, 0) + sign * value
        return self

    @property
    def groups(self) -> list[int]:
        """The groups that have had a row."""
        return sorted(self._count)

    def count(self, column: int, group: int = 0) -> int:
        """The rows of a group that have part in a column."""
        return self._count[group][column] if group in self._count else 0

    def moments(self, group: int = 0, columns: Sequence[int] | None = None) -> Moments:
        """The Moments of a family of columns: mean and covariance of the exact sums, each rounded once.

        Raises ValueError where a variance is too large for a double, and where the columns are not of the same rows.
        """
        self._flush()
        wanted = tuple(columns) if columns is not None else self.families[0]
        k, n = len(wanted), self.count(wanted[0], group) if wanted else 0
        if any(self.count(c, group) != n for c in wanted):
            raise ValueError("the columns of one Moments are not of the same rows")
        mean, cov = np.zeros(k), np.zeros((k, k))
        if not n:
            return Moments(0, mean, cov)
        sums, products = self._sum.get(group, [0] * self.k), self._product.get(group, {})
        unit = _BITS * -_LOWEST
        try:
            mean[:] = [sums[c] / (n << unit) for c in wanted]
            if n > 1:
                for i, a in enumerate(wanted):
                    for j, b in enumerate(wanted[: i + 1]):
                        scatter = n * products.get((min(a, b), max(a, b)), 0) - sums[a] * sums[b]
                        # Python divides integers of any length with one rounding
                        cov[i, j] = cov[j, i] = scatter / ((n * (n - 1)) << (2 * unit))
        except OverflowError as error:
            raise ValueError("values are too large for a variance") from error
        return Moments(n, mean, cov)


def _scaled(values: FloatArray, limbs: int) -> FloatArray:
    """``values`` times 2**(21 x limbs), without rounding."""
    if abs(limbs) < 48:
        return values * 2.0 ** (_BITS * limbs) if limbs else values
    return np.ldexp(values, _BITS * limbs)  # the factor itself is no double


def _packed(families: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Families put together into sets of columns of a size at which one matrix product is quickest."""
    bins: list[set[int]] = []
    for family in families:
        for held in bins:
            if len(held | set(family)) <= _TOGETHER or set(family) <= held:
                held.update(family)
                break
        else:
            bins.append(set(family))
    return [tuple(sorted(b)) for b in bins]

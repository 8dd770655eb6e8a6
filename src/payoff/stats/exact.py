"""Means and covariances that do not depend on the order of the rows: sums without any rounding, rounded once at the end.

Sums of floating-point numbers depend on their order in the last digits. Exact ones do not: they can be made in any order, merged, and
taken back, and what comes out is always the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from payoff.estimate import FloatArray
from payoff.stats.moments import Moments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Longs = NDArray[np.int64]

_BITS = 21
"""Bits of a limb."""
_ROWS = 2048
"""Rows of a block: a product of two limbs is below 2**42, and 2048 of them add up to 2**53 at most, which a double holds exactly."""
_LOWEST = -52
"""The limb that holds the last bit of the smallest double, 2**-1074."""
_FACTORS = 48
"""Limbs up to whose power of two, and down to its inverse, the factor is itself a double."""
_FLUSH = 1000
"""Blocks after which the integers that hold sums of blocks (64 bits) are emptied into unbounded ones."""


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
        self._pairs = sorted({(min(a, b), max(a, b)) for f in self.families for a in f for b in f})
        self._count: dict[int, list[int]] = {}
        self._sum: dict[int, list[int]] = {}
        self._product: dict[int, dict[tuple[int, int], int]] = {}
        self._range: list[tuple[int, int] | None] = [None] * k
        self._cuts = _Cuts.of(self._range, self._pairs)
        self._pending: dict[int, tuple[Longs, Longs]] = {}
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
        for top in np.flatnonzero(highest).tolist():
            self._reach(top, int(tops[top]), int(tops[top]))
        done, rows = 0, table.shape[1]
        while done < rows:
            if self._blocks >= _FLUSH:
                self._flush()
            if group not in self._pending:
                self._pending[group] = self._cuts.zeros()
            upto = min(rows, done + (_FLUSH - self._blocks) * _ROWS)
            read, short = self._cuts.add(table[:, done:upto], *self._pending[group])
            self._blocks += -(-read // _ROWS)
            done += read
            if short >= 0:
                self._reach(short, _lowest_limb(table[short, done:]), int(tops[short]))

    def _reach(self, column: int, low: int, high: int) -> None:
        """See to it that a column's limbs go from ``low`` to ``high`` at least."""
        now = self._range[column]
        wanted = (low, high) if now is None else (min(low, now[0]), max(high, now[1]))
        if wanted != now:
            self._flush()
            self._range[column] = wanted
            self._cuts = _Cuts.of(self._range, self._pairs)

    def _flush(self) -> None:
        """Empty the sums of blocks into the unbounded integers, in units of the lowest limb (squared, for products)."""
        cuts = self._cuts
        for group, (sums, products) in self._pending.items():
            total, found = self._sum.setdefault(group, [0] * self.k), self._product.setdefault(group, {})
            for c, j, value in zip(cuts.column.tolist(), cuts.limb.tolist(), sums.tolist(), strict=True):
                total[c] += value << (_BITS * (j - _LOWEST))
            for (pair, scale), value in zip(cuts.meaning, products.tolist(), strict=True):
                if value:
                    found[pair] = found.get(pair, 0) + (value << (_BITS * (scale - 2 * _LOWEST)))
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

    def to_dict(self) -> dict[str, Any]:
        """The exact sums as what JSON can hold: whole numbers of any length as hexadecimal text."""
        self._flush()
        return {
            str(group): {
                "count": counts,
                "sum": [hex(v) for v in self._sum.get(group, [0] * self.k)],
                "product": [hex(self._product.get(group, {}).get(pair, 0)) for pair in self._pairs],
            }
            for group, counts in self._count.items()
        }

    @classmethod
    def from_dict(cls, k: int, families: Sequence[Sequence[int]], told: Mapping[str, Any]) -> Self:
        """The sums that ``to_dict`` told of, of the same columns and families."""
        out = cls(k, families)
        for name, held in told.items():
            group = int(name)
            out._count[group] = [int(n) for n in held["count"]]
            out._sum[group] = [int(v, 16) for v in held["sum"]]
            out._product[group] = {p: int(v, 16) for p, v in zip(out._pairs, held["product"], strict=True)}
        return out

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


@dataclass(frozen=True)
class _Cuts:
    """Which limbs columns are cut into: limb i is number ``limb[i]`` of ``column[i]``, the highest of a column first.

    ``left`` and ``right`` are the pairs of limbs that are multiplied, ``meaning`` for each the pair of columns and the power that
    it counts for.
    """

    column: Longs
    limb: Longs
    left: Longs
    right: Longs
    meaning: tuple[tuple[tuple[int, int], int], ...]

    @classmethod
    def of(cls, ranges: Sequence[tuple[int, int] | None], pairs: Sequence[tuple[int, int]]) -> _Cuts:
        limbs = [(c, j) for c, r in enumerate(ranges) if r is not None for j in range(r[1], r[0] - 1, -1)]
        own: list[list[int]] = [[] for _ in ranges]
        for i, (c, _) in enumerate(limbs):
            own[c].append(i)
        crossed = [(i, j, (a, b)) for a, b in pairs for i in own[a] for j in own[b]]
        column, limb = (np.array([x[k] for x in limbs], np.int64) for k in (0, 1))
        left, right = (np.array([x[k] for x in crossed], np.int64) for k in (0, 1))
        return cls(column, limb, left, right, tuple((pair, limbs[i][1] + limbs[j][1]) for i, j, pair in crossed))

    def zeros(self) -> tuple[Longs, Longs]:
        return np.zeros(len(self.column), np.int64), np.zeros(len(self.left), np.int64)

    def add(self, table: FloatArray, sums: Longs, products: Longs) -> tuple[int, int]:
        """Add rows (columns of ``table``), a block at a time. Returns how many, and the column whose limbs did not reach, or -1."""
        fast = compiled()
        if fast is not None and max(map(abs, self.limb.tolist()), default=0) < _FACTORS:
            read, short = fast(table, self.column, self.limb, self.left, self.right, sums, products)
            return int(read), int(short)
        for low in range(0, table.shape[1], _ROWS):
            block = table[:, low : low + _ROWS]
            cut = np.empty((len(self.column), block.shape[1]))
            for i, (c, j) in enumerate(zip(self.column.tolist(), self.limb.tolist(), strict=True)):
                if i == 0 or self.column[i - 1] != c:
                    rest = block[c]
                part = np.trunc(_scaled(rest, -j), out=cut[i])
                rest = rest - _scaled(part, j)
                if (i + 1 == len(cut) or self.column[i + 1] != c) and rest.any():
                    return low, c
            sums += cut.sum(axis=1).astype(np.int64)
            products += (cut @ cut.T)[self.left, self.right].astype(np.int64)
        return table.shape[1], -1


def _lowest_limb(values: FloatArray) -> int:
    """The limb that holds the last bit of any of the values."""
    parts, powers = np.frexp(values[values != 0.0])
    digits = np.ldexp(parts, 53).astype(np.int64)
    last = powers - 53 + np.log2((digits & -digits).astype(np.float64)).astype(np.int64)
    return int(last.min() // _BITS)


def _scaled(values: FloatArray, limbs: int) -> FloatArray:
    """``values`` times 2**(21 x limbs), without rounding."""
    if abs(limbs) < _FACTORS:
        return values * 2.0 ** (_BITS * limbs) if limbs else values
    return np.ldexp(values, _BITS * limbs)  # the factor itself is no double


@cache
def compiled() -> Callable[..., tuple[int, int]] | None:
    """The same loop as machine code, where numba is installed; what is exact is the same by whatever means."""
    try:
        import numba
    except ImportError:
        return None
    # whole numbers that are not rounded may be added in any order
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract"}}
    try:
        return cast(Callable[..., tuple[int, int]], numba.njit(cache=True, **options)(_add_blocks))
    except RuntimeError:  # there is no folder to keep it in
        return cast(Callable[..., tuple[int, int]], numba.njit(**options)(_add_blocks))


def _add_blocks(
    table: FloatArray, column: Longs, limb: Longs, left: Longs, right: Longs, sums: Longs, products: Longs
) -> tuple[int, int]:
    """``_Cuts.add`` as plain Python that numba compiles."""
    rows, limbs = table.shape[1], len(column)
    cut = np.empty((limbs, _ROWS))
    rest = np.empty(_ROWS)
    for low in range(0, rows, _ROWS):
        n = min(_ROWS, rows - low)
        for i in range(limbs):
            c = column[i]
            down, up = 2.0 ** (-_BITS * limb[i]), 2.0 ** (_BITS * limb[i])
            mine = cut[i]
            if i == 0 or column[i - 1] != c:
                rest[:n] = table[c, low : low + n]
            left_over = 0.0
            for r in range(n):
                part = np.trunc(rest[r] * down)
                mine[r] = part
                rest[r] -= part * up
                left_over += abs(rest[r])
            if left_over != 0.0 and (i + 1 == limbs or column[i + 1] != c):
                return low, c
        for i in range(limbs):
            total = 0.0
            mine = cut[i]
            for r in range(n):
                total += mine[r]
            sums[i] += np.int64(total)
        for p in range(len(left)):
            one, other = cut[left[p]], cut[right[p]]
            total = 0.0
            for r in range(n):
                total += one[r] * other[r]
            products[p] += np.int64(total)
    return rows, -1

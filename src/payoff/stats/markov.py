"""Markov attribution: how much less often a walk over touchpoints converts when one of them leads nowhere. Closed form.

A path of touches is a walk from START over states to CONV or NULL. A state of order k is the last k touches (fewer at the
beginning); a touch that leaves the state as it was is no move, so that repeats collapse at order 1 and repeated pairs at order 2.
Paths that do not convert are in. Removing a touchpoint sends every walk that would enter it to NULL (Anderl, Becker, von
Wangenheim, Schumann 2016, "Mapping the customer journey", International Journal of Research in Marketing 33, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from payoff.estimate import FloatArray

IntArray = NDArray[np.int64]

CONV, NULL = -1, -2
"""Where a walk may end, as codes beside those of touchpoints (0, 1, ...). In a state, -1 says that there was no touch yet."""

_DENSE = 300
"""States up to which matrices are inverted whole, each replicate by itself: some 30 ms at this many."""
_CHUNK = 4_000_000
"""Cells of replicates' matrices held at once."""
_LEFT = 1e-12
"""Walks still under way, as a share, at which iteration ends: no probability is further off than that; and its most steps."""
_STEPS = 2_000


@dataclass(frozen=True, slots=True, eq=False)
class Transitions:
    """Counts of moves. ``last`` (states,) is the touchpoint that each state ends with; START is no state.

    Move j goes from state ``source[j]`` (-1: START) to state ``target[j]`` (or CONV, NULL); ``counts`` (groups, moves) is
    sparse: how often by units of each hash group. ``labels`` are the states' touches.
    """

    touchpoints: int
    last: IntArray
    source: IntArray
    target: IntArray
    counts: sparse.csr_matrix = field(repr=False)
    labels: tuple[tuple[int, ...], ...] = field(repr=False)

    @classmethod
    def of(
        cls, group: ArrayLike, state: ArrayLike, follows: ArrayLike, count: ArrayLike, touchpoints: int, groups: int = 1
    ) -> Transitions:
        """From rows: ``count`` moves by units of hash ``group`` from ``state`` (rows, k), the last k touches with the newest last
        and -1 in front where there were fewer (all -1: START), to ``follows``: a touchpoint, CONV or NULL. Rows may repeat.

        Raises ValueError when a code is out of range, a walk ends before it touches anything, or as many walks do not leave
        a state as enter it (a path that was cut), or states are a loop that nothing leaves.
        """
        g, follow, n = (np.asarray(a) for a in (group, follows, count))
        states = np.atleast_2d(np.asarray(state, dtype=np.int64))
        if states.shape[0] != len(g) and states.size == len(g):
            states = states.T
        if not len(g) == len(states) == len(follow) == len(n) or states.ndim != 2:
            raise ValueError("group, state, follows and count have a row each for the same moves")
        g, follow, n = g.astype(np.int64), follow.astype(np.int64), n.astype(np.float64)
        if len(g) == 0:
            raise ValueError("no moves: there are no paths")
        _codes(g, states, follow, n, touchpoints, groups)
        begins = (states == -1).all(axis=1)
        if (begins & (follow < 0)).any():
            raise ValueError("a path without a touch is not a walk: leave conversions without touches out")
        moved = np.where((follow >= 0)[:, None], np.column_stack([states[:, 1:], follow]), -1)
        number = (touchpoints + 1) ** np.arange(states.shape[1])[
            ::-1
        ]  # a state as one number sorts faster than as a row
        coded = (np.concatenate([states[~begins], moved[follow >= 0]]) + 1) @ number
        kinds, at = np.unique(coded, return_inverse=True)
        known = kinds[:, None] // number % (touchpoints + 1) - 1
        source = np.full(len(g), -1)
        source[~begins] = at[: int((~begins).sum())]
        target = follow.copy()
        target[follow >= 0] = at[int((~begins).sum()) :]
        stays = (source == target) & (follow >= 0)
        if stays.any():
            raise ValueError("a touch that leaves the state as it was is no move; collapse repeats first")
        wide = len(kinds) - NULL
        pairs, move = np.unique((source + 1) * wide + target - NULL, return_inverse=True)
        counts = sparse.csr_matrix((n, (g, move)), shape=(groups, len(pairs)))
        labels = tuple(tuple(int(c) for c in row if c >= 0) for row in known)
        out = cls(touchpoints, known[:, -1], pairs // wide - 1, pairs % wide + NULL, counts, labels)
        out._whole()
        return out

    def _whole(self) -> None:
        n, moves = len(self.last), len(self.source)
        begun, led = self.source >= 0, self.target >= 0
        leave = sparse.csr_matrix((np.ones(begun.sum()), (np.flatnonzero(begun), self.source[begun])), (moves, n))
        enter = sparse.csr_matrix((np.ones(led.sum()), (np.flatnonzero(led), self.target[led])), (moves, n))
        total = self.counts.sum()
        gap = abs(self.counts @ (enter - leave))
        if gap.nnz and gap.max() > 1e-9 * total:
            state = self.labels[int(np.argmax(np.asarray(gap.max(axis=0).todense())))]
            raise ValueError(f"as many walks must leave a state as enter it, and for the state {state} they do not")
        out = {int(s) for s, t in zip(self.source, self.target, strict=True) if t < 0}
        into: dict[int, list[int]] = {}
        for s, t in zip(self.source.tolist(), self.target.tolist(), strict=True):
            if t >= 0 and s >= 0:
                into.setdefault(t, []).append(s)
        todo = list(out)
        while todo:
            for s in into.get(todo.pop(), ()):
                if s not in out:
                    out.add(s)
                    todo.append(s)
        stuck = [label for i, label in enumerate(self.labels) if i not in out]
        if stuck:
            raise ValueError(f"walks that reach the state {stuck[0]} never end: a loop without a way out")

    @property
    def groups(self) -> int:
        return int(self.counts.shape[0])

    def weighted(self, weights: FloatArray | None = None) -> FloatArray:
        """How often each move was made, (replicates, moves), under ``weights`` (replicates, groups) of the groups; all 1 by default."""
        if weights is None:
            return np.asarray(self.counts.sum(axis=0), dtype=np.float64).reshape(1, -1)
        return np.asarray((self.counts.T @ weights.T).T, dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Removal:
    """What removing each touchpoint takes away. Shapes: a leading axis of replicates, then (touchpoints,).

    ``probability``: a walk converts. ``effect``: the share of conversions lost with the touchpoint. ``share``: the effects, made
    to add up to 1 (0 in a replicate without a conversion). ``conversions``: walks that did convert; times ``share`` is credit.
    """

    probability: FloatArray
    effect: FloatArray
    share: FloatArray
    conversions: FloatArray

    @property
    def credit(self) -> FloatArray:
        return self.share * self.conversions[:, None]


def removal(moves: Transitions) -> Removal:
    """The removal effects themselves (one replicate). Raises ValueError when no walk converts."""
    if moves.weighted()[0, moves.target == CONV].sum() <= 0:
        raise ValueError("no path converts, so there is nothing to credit")
    return _removals(moves, moves.weighted())


def replicates(moves: Transitions, weights: FloatArray) -> Removal:
    """The same under each of ``weights`` (replicates, groups), for a bootstrap over units.

    Exact up to 300 states. Beyond, each replicate is the first-order expansion in the counts around the effects
    themselves (the infinitesimal jackknife's; Efron 1982, "The jackknife, the bootstrap and other resampling plans", ch. 6).
    Raises ValueError when no walk converts at all.
    """
    if weights.ndim != 2 or weights.shape[1] != moves.groups:
        raise ValueError(f"weights of shape {weights.shape} do not fit {moves.groups} groups")
    point = moves.weighted()
    if point[0, moves.target == CONV].sum() <= 0:
        raise ValueError("no path converts, so there is nothing to credit")
    if len(moves.last) > _DENSE:
        return _expanded(moves, point[0], weights)
    return _removals(moves, moves.weighted(weights))


def _removals(moves: Transitions, counts: FloatArray) -> Removal:
    n = len(moves.last)
    converted = counts[:, moves.target == CONV].sum(axis=1)
    if n > _DENSE:
        probability, lost, _ = _iterated(moves, counts[0])
        return _normalised(np.array([probability]), lost[None], converted)
    size = max(_CHUNK // (n * n), 1)
    parts = [_dense(moves, counts[at : at + size]) for at in range(0, len(counts), size)]
    return _normalised(np.concatenate([p for p, _ in parts]), np.concatenate([x for _, x in parts]), converted)


def _normalised(probability: FloatArray, lost: FloatArray, converted: FloatArray) -> Removal:
    """``lost`` (replicates, touchpoints): the probability of converting that goes with each."""
    some = (probability > 0) & (converted > 0)
    effect = np.clip(lost / np.where(some, probability, 1.0)[:, None], 0.0, 1.0) * some[:, None]
    total = effect.sum(axis=1)
    share = effect / np.where(total > 0, total, 1.0)[:, None]
    return Removal(np.where(some, probability, 0.0), effect, share, converted)


def _chances(moves: Transitions, counts: FloatArray) -> FloatArray:
    """The probability of each move, given where it starts; 0 from where no walk was. (replicates, moves)"""
    n = len(moves.last)
    at = np.where(moves.source >= 0, moves.source, n)
    leave = sparse.csr_matrix((np.ones(len(at)), (np.arange(len(at)), at)), (len(at), n + 1))
    total = np.asarray((leave.T @ counts.T).T)
    return counts / np.where(total > 0, total, 1.0)[:, at]


def _dense(moves: Transitions, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """P(convert) and what each touchpoint's removal takes of it, from the fundamental matrix N = (I - Q)^-1 (Kemeny, Snell
    1960, "Finite Markov chains", theorem 3.2.4).

    A walk is lost where it first enters one of the touchpoint's states S. With x = expected visits from START and v = P(convert)
    from each state, the states of first entry have probabilities h = x_S N_SS^-1, and h v_S is lost. At order 1 that is P(visit) v.
    """
    n, chance = len(moves.last), _chances(moves, counts)
    inner, first = (moves.source >= 0) & (moves.target >= 0), (moves.source < 0) & (moves.target >= 0)
    wins = moves.target == CONV
    system = np.zeros((len(counts), n, n))
    system[:, moves.source[inner], moves.target[inner]] = -chance[:, inner]
    system[:, np.arange(n), np.arange(n)] += 1.0
    begin, end = np.zeros((len(counts), n)), np.zeros((len(counts), n))
    begin[:, moves.target[first]] = chance[:, first]
    end[:, moves.source[wins]] = chance[:, wins]
    fundamental = np.linalg.inv(system)
    visits = np.einsum("bi,bij->bj", begin, fundamental)
    value = np.einsum("bij,bj->bi", fundamental, end)
    lost = np.zeros((len(counts), moves.touchpoints))
    for c in range(moves.touchpoints):
        of = np.flatnonzero(moves.last == c)
        if len(of) == 0:
            continue
        block = fundamental[:, of[:, None], of]
        entry = np.linalg.solve(block.transpose(0, 2, 1), visits[:, of, None])[..., 0]
        lost[:, c] = np.einsum("bs,bs->b", entry, value[:, of])
    return np.einsum("bi,bi->b", begin, value), lost


def _iterated(moves: Transitions, counts: FloatArray) -> tuple[float, FloatArray, tuple[FloatArray, FloatArray]]:
    """P(convert), what each removal takes of it, and (visits, value) of shape (states, touchpoints + 1): column c of the chain
    without touchpoint c, the last of the whole one. Walks are followed until hardly any is under way, which bounds the error.
    """
    n, k, chance = len(moves.last), moves.touchpoints, _chances(moves, counts[None])[0]
    inner, first = (moves.source >= 0) & (moves.target >= 0), (moves.source < 0) & (moves.target >= 0)
    wins = moves.target == CONV
    q = sparse.csr_matrix((chance[inner], (moves.source[inner], moves.target[inner])), (n, n))
    begin = np.bincount(moves.target[first], chance[first], n)
    end = np.bincount(moves.source[wins], chance[wins], n)
    open_ = np.ones((n, k + 1))
    open_[np.arange(n), moves.last] = 0.0
    visits = _followed(q.T.tocsr(), begin[:, None] * open_, open_)
    value = _followed(q, np.repeat(end[:, None], k + 1, axis=1) * open_, open_)
    chances = begin @ value
    return float(chances[-1]), np.asarray(chances[-1] - chances[:-1]), (visits, value)


def _followed(step: sparse.csr_matrix, flow: FloatArray, open_: FloatArray) -> FloatArray:
    """The sum of all powers of ``step`` times ``flow``, each column where its states are ``open_``."""
    begun, total = flow, flow.copy()
    for _ in range(_STEPS):
        flow = (step @ flow) * open_
        total += flow
        if flow.sum() < _LEFT:
            return total
    columns = []  # walks that hardly end (a machine's): solved, each column by itself
    for c in range(begun.shape[1]):
        system = sparse.identity(len(begun)) - sparse.diags(open_[:, c]) @ step
        columns.append(splu(sparse.csc_matrix(system)).solve(begun[:, c]))
    return np.column_stack(columns)


def _expanded(moves: Transitions, point: FloatArray, weights: FloatArray) -> Removal:
    """dP/dC_ij = x_i (v_j - v_i) / C_i, for the whole chain and for each without a touchpoint (whose v_j is 0 in it)."""
    n = len(moves.last)
    probability, lost, (visits, value) = _iterated(moves, point)
    at = np.where(moves.source >= 0, moves.source, n)
    leave = np.bincount(at, point, n + 1)
    begin = np.where(moves.source < 0, _chances(moves, point[None])[0], 0.0)
    ends = np.vstack([value, np.zeros((1, value.shape[1]))])  # from NULL nothing is gained, from CONV all
    ahead = ends[np.where(moves.target >= 0, moves.target, n)] + (moves.target == CONV)[:, None]
    led = moves.target >= 0
    from_start = begin[led] @ value[moves.target[led]]
    here = np.vstack([value, from_start[None]])[at]
    times = np.vstack([visits, np.ones((1, value.shape[1]))])[at]
    slope = times * (ahead - here) / leave[at][:, None]
    size = weights @ np.asarray(moves.counts.sum(axis=1)).ravel() / point.sum()
    won = np.asarray(moves.counts[:, moves.target == CONV].sum(axis=1)).ravel()
    # the counts brought to one size: along it nothing changes
    moved = (weights @ (moves.counts @ slope)) / np.where(size > 0, size, 1.0)[:, None] - point @ slope
    chance = np.clip(probability + moved[:, -1], 0.0, 1.0)
    gone = np.clip(lost + moved[:, -1:] - moved[:, :-1], 0.0, None)
    return _normalised(chance, gone, weights @ won)


def walk(path: Sequence[int], converts: bool, order: int = 1) -> list[tuple[tuple[int, ...], int]]:
    """The moves of one path of touchpoints, as rows (state, follows) of ``Transitions.of``: the definition, slow and plain."""
    if not path:
        raise ValueError("a path without a touch is not a walk")
    state = (-1,) * order
    out = []
    for touch in path:
        moved = (*state[1:], touch)
        if moved != state:
            out.append((state, int(touch)))
            state = moved
    return [*out, (state, CONV if converts else NULL)]


def _codes(g: IntArray, states: IntArray, follow: IntArray, n: FloatArray, touchpoints: int, groups: int) -> None:
    if not 1 <= states.shape[1] <= 4:
        raise ValueError(f"the order of a chain is 1 to 4, not {states.shape[1]}")
    if g.min() < 0 or g.max() >= groups:
        raise ValueError(f"groups are 0 to {groups - 1}, not {g.min()} to {g.max()}")
    if states.min() < -1 or max(states.max(), follow.max()) >= touchpoints or follow.min() < NULL:
        raise ValueError(
            f"touchpoints are 0 to {touchpoints - 1}; other codes than CONV, NULL and no touch yet are not known"
        )
    if ((states[:, :-1] >= 0) & (states[:, 1:] < 0)).any():
        raise ValueError("in a state, no touch yet comes before touches")
    if not np.isfinite(n).all() or n.min() < 0:
        raise ValueError("counts of moves are not negative")

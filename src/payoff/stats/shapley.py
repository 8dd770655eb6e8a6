"""Shapley values of touchpoints, exact at any number of them.

The game: a coalition of touchpoints is worth the conversions of all paths whose touchpoints are all in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from payoff.estimate import FloatArray


def shapley(sets: ArrayLike, values: ArrayLike) -> FloatArray:
    """Each touchpoint's Shapley value, (touchpoints,), of ``sets`` (paths, touchpoints; true where the path met it) worth ``values``.

    The game is a sum of unanimity games, one a path, whose value is shared evenly among the players it needs (Shapley 1953,
    "A value for n-person games", section 3); so each path's value is split over its distinct touchpoints (Zhao, Mahboobi,
    Bagheri 2018, arXiv:1804.05327, the simplified formula). Adds up to the sum of values. Raises ValueError on a path
    without a touchpoint, whose value nobody can be given.
    """
    met, worth = np.atleast_2d(np.asarray(sets, dtype=np.bool_)), np.asarray(values, dtype=np.float64)
    if worth.shape != met.shape[:1]:
        raise ValueError(f"{len(met)} paths have a value each, not values of shape {worth.shape}")
    size = met.sum(axis=1)
    if (size == 0).any():
        raise ValueError("a path without a touchpoint has no one to credit: leave it to the unattributed")
    return np.asarray((worth / size) @ met, dtype=np.float64)


def ordered_shapley(paths: Sequence[Sequence[int]], values: ArrayLike, touchpoints: int) -> FloatArray:
    """Credit by touchpoint and by position in the path (0 first), of shape (touchpoints, longest path).

    A path's value over the number of its distinct touchpoints goes to each of them (as ``shapley``), and of that an even part
    to each position it holds, repeats counted: phi(j, i) = sum of value / (|set| times j is there) over paths whose i-th touch is j
    (Zhao, Mahboobi, Bagheri 2018, the ordered Shapley value, with a repeated touchpoint's share spread rather than given
    out more than once, so that credit still adds up). Raises ValueError as ``shapley`` does.
    """
    worth = np.asarray(values, dtype=np.float64)
    if worth.shape != (len(paths),):
        raise ValueError(f"{len(paths)} paths have a value each, not values of shape {worth.shape}")
    if not paths or min(len(path) for path in paths) == 0:
        raise ValueError("a path without a touchpoint has no one to credit: leave it to the unattributed")
    lengths: NDArray[np.int64] = np.array([len(path) for path in paths])
    row = np.repeat(np.arange(len(paths)), lengths)
    code = np.concatenate([np.asarray(path, dtype=np.int64) for path in paths])
    if code.min() < 0 or code.max() >= touchpoints:
        raise ValueError(f"touchpoints are 0 to {touchpoints - 1}, not {code.min()} to {code.max()}")
    position = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    pairs, of, times = np.unique(row * touchpoints + code, return_inverse=True, return_counts=True)
    distinct = np.bincount(pairs // touchpoints, minlength=len(paths))
    part = worth[row] / (distinct[row] * times[of.reshape(-1)])
    out = np.zeros((touchpoints, int(lengths.max())))
    np.add.at(out, (code, position), part)
    return out

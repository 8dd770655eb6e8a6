"""Shapley values against the definition over all subsets of players, and laws."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payoff.stats.shapley import ordered_shapley, shapley

PATHS = st.lists(
    st.tuples(st.lists(st.integers(0, 7), min_size=1, max_size=9), st.floats(-100, 100)), min_size=1, max_size=25
)


def by_definition(paths: list[tuple[list[int], float]], k: int) -> list[float]:
    """Each player's marginal contribution over all coalitions without it, weighted by how many orders begin with them."""

    def worth(coalition: frozenset[int]) -> float:
        return sum(value for path, value in paths if set(path) <= coalition)

    worths = {frozenset(s): worth(frozenset(s)) for r in range(k + 1) for s in combinations(range(k), r)}
    return [
        sum(
            math.factorial(len(s)) * math.factorial(k - len(s) - 1) / math.factorial(k) * (worths[s | {j}] - v)
            for s, v in worths.items()
            if j not in s
        )
        for j in range(k)
    ]


def of(paths: list[tuple[list[int], float]], k: int) -> np.ndarray:
    return shapley([[j in path for j in range(k)] for path, _ in paths], [value for _, value in paths])


@given(PATHS, st.integers(2, 8))
def test_all_subsets_of_up_to_eight_players_say_the_same(paths: list[tuple[list[int], float]], k: int) -> None:
    paths = [([c % k for c in path], value) for path, value in paths]
    assert of(paths, k) == pytest.approx(by_definition(paths, k), abs=1e-9)


@given(PATHS)
def test_values_add_up_and_a_null_player_gets_nothing(paths: list[tuple[list[int], float]]) -> None:
    found = of(paths, 9)
    assert found.sum() == pytest.approx(sum(value for _, value in paths), abs=1e-9)
    assert found[8] == 0


@given(PATHS, PATHS)
def test_two_games_together_are_worth_their_sum(
    a: list[tuple[list[int], float]], b: list[tuple[list[int], float]]
) -> None:
    assert of(a + b, 8) == pytest.approx(of(a, 8) + of(b, 8), abs=1e-9)


@given(PATHS)
def test_positions_of_a_touchpoint_share_its_value(paths: list[tuple[list[int], float]]) -> None:
    """Over coalitions as the paper sums them: the paths of exactly that set, by who stands at the i-th touch."""
    found = ordered_shapley([path for path, _ in paths], [value for _, value in paths], 8)
    assert found.sum(axis=1) == pytest.approx(of(paths, 8), abs=1e-9)
    longest = max(len(path) for path, _ in paths)
    coalitions = {frozenset(path) for path, _ in paths}
    for j in range(8):
        for i in range(longest):
            slow = sum(
                value / path.count(j) / len(s)
                for s in coalitions
                for path, value in paths
                if set(path) == s and i < len(path) and path[i] == j
            )
            assert found[j, i] == pytest.approx(slow, abs=1e-9)


def test_a_repeat_is_counted_where_it_stands() -> None:
    found = ordered_shapley([[0, 1, 0]], [12.0], 2)
    assert found == pytest.approx(np.array([[3.0, 0, 3.0], [0, 6.0, 0]]))


def test_what_cannot_be_credited_is_refused() -> None:
    with pytest.raises(ValueError, match="no one to credit"):
        shapley([[False, False]], [1.0])
    with pytest.raises(ValueError, match="no one to credit"):
        ordered_shapley([[]], [1.0], 1)
    with pytest.raises(ValueError, match="a value each"):
        shapley([[True]], [1.0, 2.0])
    with pytest.raises(ValueError, match="a value each"):
        ordered_shapley([[0]], [], 1)
    with pytest.raises(ValueError, match="touchpoints are 0 to 0"):
        ordered_shapley([[1]], [1.0], 1)

"""Removal effects: worked cases, walks that are simulated, paths that are deleted by hand, and laws."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payoff.estimate import FloatArray
from payoff.stats import markov
from payoff.stats.markov import CONV, NULL, Transitions, removal, replicates, walk

Paths = list[tuple[list[int], bool]]
PATHS = st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans()), min_size=1, max_size=30)


def chain(paths: Paths, touchpoints: int, order: int = 1, groups: int = 1) -> Transitions:
    rows = [(i % groups, s, f) for i, (path, won) in enumerate(paths) for s, f in walk(path, won, order)]
    g, s, f = zip(*rows, strict=True)
    return Transitions.of(g, s, f, np.ones(len(g)), touchpoints, groups)


def some(paths: Paths) -> Paths:
    return [*paths, ([0, 1], True)]


def random_paths(seed: int, n: int, touchpoints: int) -> Paths:
    rng = np.random.default_rng(seed)
    return [
        ([int(c) for c in rng.integers(0, touchpoints, 1 + rng.geometric(0.4))], bool(rng.random() < 0.3))
        for _ in range(n)
    ]


def converts(rows: Sequence[tuple[tuple[int, ...], int]], without: int | None = None) -> float:
    """P(convert) by another way: one linear system over the states of a plain dictionary."""
    out: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for s, f in rows:
        out[s][f] += 1
    states = sorted(out)
    a, b = np.eye(len(states)), np.zeros(len(states))
    for i, s in enumerate(states):
        for f, n in out[s].items():
            p = n / out[s].total()
            if f == CONV:
                b[i] += p
            elif f not in (NULL, without):
                a[i, states.index((*s[1:], f))] -= p
    start = (-1,) * len(states[0])
    return float(np.linalg.solve(a, b)[states.index(start)])


def test_three_channels_of_which_two_are_in_every_conversion() -> None:
    found = removal(chain([([0, 1, 2], True), ([0], False), ([1, 2], False)], 3))
    assert found.probability[0] == pytest.approx(1 / 3, abs=1e-12)
    assert found.effect[0] == pytest.approx([0.5, 1, 1], abs=1e-12)
    assert found.credit[0] == pytest.approx([0.2, 0.4, 0.4], abs=1e-12)


def test_two_channels_with_paths_that_do_not_convert() -> None:
    found = removal(chain([([0], True), ([0], True), ([0], False), ([1], True), ([0, 1], True)], 2))
    assert found.probability[0] == pytest.approx(0.8, abs=1e-12)
    assert found.effect[0] == pytest.approx([0.75, 0.5], abs=1e-12)
    assert found.credit[0] == pytest.approx([2.4, 1.6], abs=1e-12)


@given(PATHS, st.integers(1, 4))
def test_each_effect_is_that_of_the_chain_solved_again_without_the_touchpoint(paths: Paths, order: int) -> None:
    paths = some(paths)
    rows = [row for path, won in paths for row in walk(path, won, order)]
    found = removal(chain(paths, 4, order))
    whole = converts(rows)
    assert found.probability[0] == pytest.approx(whole, rel=1e-9)
    for c in range(4):
        assert found.effect[0, c] == pytest.approx(1 - converts(rows, c) / whole, abs=1e-9)
    assert found.credit.sum() == pytest.approx(sum(won for _, won in paths), rel=1e-9)


@given(PATHS)
def test_without_repeats_and_with_a_long_memory_paths_are_deleted_one_by_one(paths: Paths) -> None:
    """Where a state is the whole path so far, removing a touchpoint loses just the converting paths that hold it."""
    paths = [(list(dict.fromkeys(path)), won) for path, won in some(paths)]
    found = removal(chain(paths, 4, 4))
    won = [path for path, converted in paths if converted]
    assert found.effect[0] == pytest.approx([sum(c in path for path in won) / len(won) for c in range(4)], abs=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_simulated_walks_convert_as_often(order: int) -> None:
    paths = random_paths(5, 40, 3)
    out: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for path, won in paths:
        for s, f in walk(path, won, order):
            out[s][f] += 1
    rng, n, lost, wins = np.random.default_rng(6), 20_000, np.zeros(3), 0
    draws = {s: rng.choice(list(c), n, p=np.array(list(c.values())) / c.total()).tolist() for s, c in out.items()}
    at: Counter[tuple[int, ...]] = Counter()
    for _ in range(n):
        state, met = (-1,) * order, set()
        while True:
            follow = draws[state][at[state] % n]
            at[state] += 1
            if follow < 0:
                break
            met.add(follow)
            state = (*state[1:], follow)
        if follow == CONV:
            wins += 1
            lost[list(met)] += 1
    found = removal(chain(paths, 3, order))
    assert found.probability[0] == pytest.approx(wins / n, abs=4 * (0.25 / n) ** 0.5)
    assert found.effect[0] == pytest.approx(lost / wins, abs=4 * (0.25 / wins) ** 0.5)


@given(PATHS, st.permutations(range(4)), st.integers(1, 3))
def test_names_do_not_matter(paths: Paths, names: list[int], order: int) -> None:
    paths = some(paths)
    one = removal(chain(paths, 4, order))
    other = removal(chain([([names[c] for c in path], won) for path, won in paths], 4, order))
    assert other.share[0, names] == pytest.approx(one.share[0], abs=1e-9)


@given(PATHS, st.integers(1, 3))
def test_a_touchpoint_that_is_met_only_where_nothing_converts_gets_nothing_and_groups_merge(
    paths: Paths, order: int
) -> None:
    paths = some(paths)
    apart, whole = chain(paths, 5, order, groups=7), chain(paths, 5, order)
    assert removal(apart).effect == pytest.approx(removal(whole).effect, abs=1e-12)
    assert removal(whole).effect[0, 4] == 0
    lost = chain([*paths, ([4], False)], 5, order)
    assert removal(lost).effect[0] == pytest.approx(removal(whole).effect[0], abs=1e-9)


@given(PATHS, st.integers(1, 3), st.integers(0, 10**6))
def test_a_replicate_is_the_chain_of_the_paths_drawn(paths: Paths, order: int, seed: int) -> None:
    paths = some(paths)
    weights = np.random.default_rng(seed).poisson(1.0, (3, len(paths)))
    found = replicates(chain(paths, 4, order, groups=len(paths)), weights.astype(np.float64))
    for b in range(3):
        drawn = [pair for pair, n in zip(paths, weights[b], strict=True) for _ in range(n)]
        if any(won for _, won in drawn):
            assert found.share[b] == pytest.approx(removal(chain(drawn, 4, order)).share[0], abs=1e-9)
        else:
            assert found.share[b].sum() == 0
    assert found.credit.sum(axis=1) == pytest.approx(found.conversions, rel=1e-9)


def test_many_states_are_followed_instead_of_inverted(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = chain(random_paths(7, 20_000, 8), 8, 2, groups=512)
    weights: FloatArray = np.random.default_rng(8).poisson(1.0, (100, 512)).astype(np.float64)
    one, draws = removal(moves), replicates(moves, weights)
    monkeypatch.setattr(markov, "_DENSE", 10)
    assert removal(moves).effect == pytest.approx(one.effect, abs=1e-10)
    near = replicates(moves, weights)
    assert np.abs(near.share - draws.share).max() < 0.1 * draws.share.std(axis=0).min()
    assert near.share.std(axis=0) == pytest.approx(draws.share.std(axis=0), rel=0.02)


def test_a_machine_that_hardly_ends_is_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = chain([*random_paths(9, 3000, 6), ([0, 1] * 20_000, False)], 6, 2)
    exact = removal(moves)
    monkeypatch.setattr(markov, "_DENSE", 10)
    assert removal(moves).effect == pytest.approx(exact.effect, abs=1e-9)
    assert removal(moves).probability == pytest.approx(exact.probability, abs=1e-9)


def test_repeats_collapse_at_order_one_and_repeated_pairs_at_order_two() -> None:
    assert walk([0, 0, 0, 1], True) == walk([0, 1], True)
    assert walk([0, 0, 0, 1], True, 2) == [((-1, -1), 0), ((-1, 0), 0), ((0, 0), 1), ((0, 1), CONV)]


def test_what_cannot_be_answered_is_refused() -> None:
    with pytest.raises(ValueError, match="no path converts"):
        removal(chain([([0, 1], False)], 2))
    with pytest.raises(ValueError, match="no path converts"):
        replicates(chain([([0, 1], False)], 2), np.ones((2, 1)))
    with pytest.raises(ValueError, match="never end: a loop without a way out"):
        Transitions.of([0] * 4, [[-1], [0], [1], [2]], [0, CONV, 2, 1], [1, 1, 1, 1], 3)
    with pytest.raises(ValueError, match=r"as many walks must leave a state as enter it.*\(0,\)"):
        Transitions.of([0], [[-1]], [0], [1], 1)
    with pytest.raises(ValueError, match="leave conversions without touches out"):
        Transitions.of([0], [[-1]], [CONV], [1], 1)
    with pytest.raises(ValueError, match="is no move"):
        Transitions.of([0] * 3, [[-1], [0], [0]], [0, 0, CONV], [1, 1, 1], 1)
    with pytest.raises(ValueError, match="touchpoints are 0 to 0"):
        Transitions.of([0], [[-1]], [1], [1], 1)
    with pytest.raises(ValueError, match="no touch yet comes before"):
        Transitions.of([0], [[0, -1]], [0], [1], 1)
    with pytest.raises(ValueError, match="groups are 0 to 0"):
        Transitions.of([1], [[-1]], [0], [1], 1)
    with pytest.raises(ValueError, match="not negative"):
        Transitions.of([0], [[-1]], [0], [-1], 1)
    with pytest.raises(ValueError, match="no moves"):
        Transitions.of([], np.empty((0, 1)), [], [], 1)
    with pytest.raises(ValueError, match="do not fit 1 groups"):
        replicates(chain([([0], True)], 1), np.ones((2, 3)))

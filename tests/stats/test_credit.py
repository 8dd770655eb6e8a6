"""Credit by rules against worked cases, and intervals by groups against known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payoff.estimate import FloatArray
from payoff.stats.credit import FEW, Bootstrap, by_group, rule_weights, widened
from payoff.stats.markov import Transitions, removal, replicates, walk

GROUPS = 512
CODES = st.lists(st.integers(0, 3), min_size=1, max_size=7)


# ---------------------------------------------------------------- rules


def test_a_published_case_of_time_decay() -> None:
    """50 dollars, a half-life of 7 days, touches 9, 6, 0 and 0 days before."""
    found = 50 * rule_weights("time_decay", [0, 1, 2, 3], [9, 6, 0, 0], half_life=7)
    assert found[::-1].round(2).tolist() == [16.88, 16.88, 9.32, 6.92]


def test_a_long_window_does_not_starve_old_touches() -> None:
    assert rule_weights("time_decay", [0, 1], [400, 399], half_life=0.1).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("n", "weights", "expected"),
    [
        (1, (0.4, 0.2, 0.4), [1]),
        (2, (0.4, 0.2, 0.4), [0.5, 0.5]),
        (2, (0.6, 0.2, 0.2), [0.75, 0.25]),
        (2, (0.0, 1.0, 0.0), [0.5, 0.5]),
        (1, (0.0, 1.0, 0.0), [1]),
        (4, (0.4, 0.2, 0.4), [0.4, 0.1, 0.1, 0.4]),
        (3, (0.3, 0.1, 0.3, 0.3), [1 / 3, 1 / 3, 1 / 3]),
        (4, (0.3, 0.1, 0.3, 0.3), [0.3, 0.3, 0.1, 0.3]),
        (5, (0.3, 0.1, 0.3, 0.3), [0.3, 0.05, 0.3, 0.05, 0.3]),
    ],
)
def test_positions(n: int, weights: tuple[float, ...], expected: list[float]) -> None:
    assert rule_weights("position", range(n), weights=weights) == pytest.approx(expected)


def test_ends_and_even_shares() -> None:
    path, direct = [3, 1, 2, 1, 0], [False, False, False, False, True]
    assert rule_weights("first", path).tolist() == [1, 0, 0, 0, 0]
    assert rule_weights("last", path).tolist() == [0, 0, 0, 0, 1]
    assert rule_weights("last_non_direct", path, direct=direct).tolist() == [0, 0, 0, 1, 0]
    assert rule_weights("last_non_direct", [0, 0], direct=[True, True]).tolist() == [0, 1]
    assert rule_weights("linear", path).tolist() == [0.2] * 5
    assert rule_weights("participation", path).tolist() == [1, 0.5, 1, 0.5, 1]
    assert rule_weights("custom", [0, 1], weights=[1, 3]).tolist() == [0.25, 0.75]


@given(CODES, st.integers(0, 10**6))
def test_each_rule_gives_out_one_conversion_and_participation_one_a_touchpoint(path: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    days = np.sort(rng.integers(0, 5, len(path)))[::-1].tolist()
    three, four = rng.dirichlet([1, 1, 1]), rng.dirichlet([1, 1, 1, 1])
    for found in (
        rule_weights("first", path),
        rule_weights("last_non_direct", path, direct=[c == 0 for c in path]),
        rule_weights("time_decay", path, days, half_life=2.0),
        rule_weights("position", path, weights=three),
        rule_weights("position", path, weights=four),
        rule_weights("custom", path, weights=rng.random(len(path)) + 0.01),
    ):
        assert found.sum() == pytest.approx(1, abs=1e-12)
        assert found.min() >= 0
    for code in set(path):
        mine = np.array(path) == code
        assert rule_weights("participation", path)[mine].sum() == pytest.approx(1)


def test_what_is_no_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="it is unattributed"):
        rule_weights("linear", [])
    with pytest.raises(ValueError, match="longer than zero, not 0"):
        rule_weights("time_decay", [0], [1], half_life=0)
    for weights in ([0.0, 0.0], [-1.0, 2.0], [1.0], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="a number of zero or more for each touch"):
            rule_weights("custom", [0, 1], weights=weights)
    with pytest.raises(ValueError, match="position takes three weights"):
        rule_weights("position", [0, 1], weights=[0.5, 0.5])


# ---------------------------------------------------------------- groups


def sample(rng: np.random.Generator, converters: float, spread: float, shares: FloatArray) -> FloatArray:
    """Sums by group of a random number of converters, each with one touchpoint and a value whose logarithm has ``spread``."""
    n = rng.poisson(converters)
    return by_group(
        rng.integers(0, GROUPS, n),
        rng.choice(len(shares), n, p=shares),
        np.exp(spread * rng.standard_normal(n)),
        GROUPS,
        len(shares),
    )


def test_groups_vary_as_the_units_in_them() -> None:
    """200,000 users, most with nothing: the spread of the total is that of n independent users."""
    rng = np.random.default_rng(1)
    values = rng.binomial(1, 0.05, 200_000) * rng.gamma(2.0, 10.0, 200_000)
    sums = by_group(rng.integers(0, GROUPS, len(values)), np.zeros(len(values), int), values, GROUPS, 1)
    found = Bootstrap.drawn(rng, GROUPS, 2000).totals(sums)
    assert found.value[0] == pytest.approx(values.sum())
    assert found.draws.std() == pytest.approx(np.sqrt((values**2).sum()), rel=0.08)
    assert found.draws.mean() == pytest.approx(values.sum(), rel=0.002)


def coverage(converters: float, spread: float, runs: int, seed: int) -> tuple[float, float, float]:
    """How often 95% intervals of a total, of a touchpoint's total and of its share hold the truth (where they rest on FEW or more)."""
    rng, shares = np.random.default_rng(seed), np.array([0.7, 0.3])
    mean = np.exp(spread**2 / 2)
    held: list[list[bool]] = [[], [], []]
    for _ in range(runs):
        sums = sample(rng, converters, spread, shares)
        draws = Bootstrap.drawn(rng, GROUPS, 400)
        whole, cells = draws.totals(sums.sum(axis=1, keepdims=True)), draws.totals(sums)
        share = draws.ratios(sums, sums.sum(axis=1))
        for kept, found, cell, truth in (
            (held[0], whole, 0, converters * mean),
            (held[1], cells, 0, converters * mean * shares[0]),
            (held[2], share, 0, shares[0]),
        ):
            low, high = found.uncertainty(cell).interval(float(found.value[cell]), 0.95)
            assert low <= found.value[cell] <= high
            kept.append(bool(low <= truth <= high))
    a, b, c = (float(np.mean(kept)) for kept in held)
    return a, b, c


def test_intervals_hold_the_truth_with_few_converters() -> None:
    found = coverage(30, 0.5, 300, 2)
    assert min(found) > 0.91


@pytest.mark.slow
@pytest.mark.parametrize(
    ("converters", "spread", "least"),
    [(20, 0.1, 0.94), (60, 0.8, 0.92), (200, 1.0, 0.92), (1000, 1.5, 0.9), (2000, 1.0, 0.93)],
)
def test_intervals_hold_the_truth(converters: float, spread: float, least: float) -> None:
    assert min(coverage(converters, spread, 1000, int(converters))) > least


@pytest.mark.slow
def test_intervals_of_removal_effects_hold_the_truth() -> None:
    """Walks of a known chain: shares of removal effects in 250 samples of 2,000 users."""
    rng = np.random.default_rng(11)
    begin, follow = np.array([0.5, 0.3, 0.2]), np.array([[0, 0.2, 0.1], [0.15, 0, 0.15], [0.1, 0.3, 0]])
    wins = np.array([0.1, 0.15, 0.2])
    n = np.linalg.inv(np.eye(3) - follow)
    x, v = begin @ n, n @ wins
    lost = x / np.diag(n) * v
    truth = lost / lost.sum()
    held = []
    for _ in range(250):
        rows: dict[tuple[int, tuple[int, ...], int], int] = {}
        for _ in range(2000):
            at, path, group = int(rng.choice(3, p=begin)), [], int(rng.integers(GROUPS))
            while True:
                path.append(at)
                step = int(np.searchsorted(np.cumsum([*follow[at], wins[at]]), rng.random(), side="right"))
                if step >= 3:
                    break
                at = step
            for s, f in walk(path, step == 3):
                rows[group, s, f] = rows.get((group, s, f), 0) + 1
        g, s, f = zip(*rows, strict=True)
        moves = Transitions.of(g, s, f, list(rows.values()), 3, GROUPS)
        draws = replicates(moves, Bootstrap.drawn(rng, GROUPS, 300).weights).share
        low, high = np.quantile(draws, [0.025, 0.975], axis=0)
        assert ((low <= removal(moves).share[0]) & (removal(moves).share[0] <= high)).all()
        held.append((low <= truth) & (truth <= high))
    assert np.mean(held, axis=0).min() > 0.91
    assert np.mean(held, axis=0).max() < 0.99


def test_few_units_are_counted_as_if_all_weighed_alike() -> None:
    draws = Bootstrap.drawn(np.random.default_rng(3), GROUPS, 50)
    alike, one_large = np.zeros((GROUPS, 1)), np.zeros((GROUPS, 1))
    alike[:30], one_large[:30], one_large[0] = 1.0, 1.0, 1000.0
    assert draws.totals(alike).units[0] == 30 > FEW
    assert draws.totals(one_large).units[0] < 1.1


def test_draws_are_stretched_for_few_units_and_stay_above_zero() -> None:
    draws = np.random.default_rng(4).poisson(8, 500).astype(np.float64)
    few, many = widened(8.0, draws, 8), widened(8.0, draws, 1e9)
    assert many == pytest.approx(draws, abs=1e-6)
    assert few.min() >= 0
    assert np.quantile(few, 0.9) > np.quantile(draws, 0.9)
    assert widened(0.0, np.zeros(5), 0).tolist() == [0] * 5
    below = widened(-2.0, np.array([-3.0, 1.0]), 5)
    assert below[0] < -3 < 1 < below[1]


def test_sums_that_do_not_fit_are_refused() -> None:
    rng = np.random.default_rng(5)
    draws = Bootstrap.drawn(rng, GROUPS, 200)
    with pytest.raises(ValueError, match="too few to draw from"):
        Bootstrap.drawn(rng, 10)
    with pytest.raises(ValueError, match="do not fit 512 groups"):
        draws.totals(np.ones((3, 1)))
    with pytest.raises(ValueError, match="outside 512 groups and 1 cells"):
        by_group([512], [0], [1.0], GROUPS, 1)
    with pytest.raises(ValueError, match="1 of 1 amounts are not finite"):
        by_group([0], [0], [np.nan], GROUPS, 1)
    base = np.zeros(GROUPS)
    with pytest.raises(ValueError, match="cannot be told from zero"):
        draws.ratios(np.ones((GROUPS, 1)), base)
    base[0] = 1.0
    with pytest.raises(ValueError, match="cannot be told from zero"):
        draws.ratios(np.ones((GROUPS, 1)), base)

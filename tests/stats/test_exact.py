"""Exact moments: against fractions, in any order, merged and taken back, by either implementation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payoff.stats import exact
from payoff.stats.exact import ExactMoments
from payoff.stats.moments import Moments

LIMITS = {"min_value": -1e150, "max_value": 1e150, "allow_nan": False}
VALUES = st.one_of(
    st.floats(**LIMITS),
    st.integers(-3, 3).map(float),
    st.sampled_from([0.1, -0.0, 5e-324, 2.0**21, 2.0**21 - 1, 1e-310]),
)


@pytest.fixture(params=["numpy", "compiled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations, one after the other."""
    if request.param == "numpy":
        monkeypatch.setattr(exact, "compiled", lambda: None)
    else:
        pytest.importorskip("numba")
        assert exact.compiled() is not None
    return str(request.param)


def by_fractions(table: np.ndarray) -> tuple[list[float], list[list[float]]]:
    """The slow and obvious twin: each sum a fraction, rounded once."""
    columns = [[Fraction(float(v)) for v in column] for column in table.T]
    n, sums = len(table), [sum(column) for column in columns]
    cov = [
        [
            float((n * sum(x * y for x, y in zip(a, b, strict=True)) - sums[i] * sums[j]) / (n * (n - 1)))
            for j, b in enumerate(columns)
        ]
        for i, a in enumerate(columns)
    ]
    return [float(s / n) for s in sums], cov


def same(a: Moments, b: Moments) -> bool:
    return a.n == b.n and a.mean.tobytes() == b.mean.tobytes() and a.cov.tobytes() == b.cov.tobytes()


@settings(max_examples=40)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=12))
def test_means_and_covariances_are_those_of_fractions_rounded_once(rows: list[tuple[float, float]]) -> None:
    table = np.array(rows)
    mean, cov = by_fractions(table)
    for fast in (exact.compiled, lambda: None):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(exact, "compiled", fast)
            found = ExactMoments(2).add(table).moments()
        assert (found.n, found.mean.tolist(), found.cov.tolist()) == (len(rows), mean, cov)


@pytest.mark.parametrize(
    "make",
    [
        lambda rng, n: rng.poisson(3, n).astype(float),
        lambda rng, n: np.round(rng.exponential(40, n), 2),
        lambda rng, n: rng.normal(size=n) * 10.0 ** rng.integers(-300, 150, n),
        lambda rng, n: 1e8 + rng.normal(size=n),
        lambda rng, n: rng.choice([2.0**20, -(2.0**20), 2.0**-1074], n),
        lambda rng, n: np.full(n, 2.0**21 - 1),
    ],
    ids=["counts", "money", "any size", "far from zero", "tiny beside large", "full limbs"],
)
def test_many_blocks(make, rng: np.random.Generator, way: str) -> None:
    table = np.column_stack([make(rng, 5000), rng.poisson(2, 5000).astype(float)])
    found = ExactMoments(2).add(table).moments()
    mean, cov = by_fractions(table)
    assert (found.mean.tolist(), found.cov.tolist()) == (mean, cov)


def test_the_order_and_the_grouping_of_rows_change_no_bit(rng: np.random.Generator, way: str) -> None:
    table = rng.normal(size=(9000, 3)) * 10.0 ** rng.integers(-20, 20, (9000, 3))
    once = ExactMoments(3).add(table).moments()
    plain = Moments.of(table)
    assert not np.array_equal(plain.cov, Moments.of(table[::-1]).cov), "sums of doubles do depend on order here"
    for seed in range(5):
        shuffled = table[np.random.default_rng(seed).permutation(len(table))]
        parts = np.split(shuffled, np.sort(np.random.default_rng(seed).integers(0, len(table), 4)))
        merged = ExactMoments(3)
        for part in reversed(parts):
            merged.merge(ExactMoments(3).add(part))
        assert same(merged.moments(), once)
        assert same(ExactMoments(3).add(shuffled).moments(), once)


def test_what_is_taken_back_was_never_there(rng: np.random.Generator, way: str) -> None:
    kept, gone = rng.normal(size=(3000, 2)), rng.normal(size=(2500, 2)) * 1e200
    sums = ExactMoments(2).add(kept)
    before = sums.moments()
    held = ExactMoments(2).add(gone[:, ::-1] * 1e-200)
    assert same(sums.merge(held).retract(held).moments(), before)
    assert not same(sums.merge(held).moments(), before)
    with pytest.raises(ValueError, match="more rows are taken back"):
        ExactMoments(2).add(kept[:3]).retract(ExactMoments(2).add(kept[:4]))


def test_both_ways_are_one(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    table = np.column_stack(
        [rng.poisson(3, 7000), np.round(rng.exponential(40, 7000), 2), rng.normal(size=7000) * 1e-250]
    )
    table[rng.random(7000) < 0.3] = np.nan
    group = rng.integers(0, 3, 7000)
    fast = ExactMoments(3).add(table, group)
    monkeypatch.setattr(exact, "compiled", lambda: None)
    slow = ExactMoments(3).add(table, group)
    for g in range(3):
        assert same(fast.moments(g), slow.moments(g))


def test_groups_and_families(rng: np.random.Generator, way: str) -> None:
    table, group = rng.normal(size=(4000, 5)), rng.integers(-2, 3, 4000)
    sums = ExactMoments(5, [(0, 1), (1, 4, 2), (3,)])
    for rows in np.split(np.arange(4000), [7, 1000, 2500]):
        sums.add(table[rows], group[rows])
    assert sums.groups == [-2, -1, 0, 1, 2]
    for g in sums.groups:
        whole = ExactMoments(5).add(table[group == g]).moments()
        for family in ((0, 1), (1, 4, 2), (3,)):
            assert same(sums.moments(g, family), whole.take(family))


def test_rows_without_part_in_a_metric_are_not_counted_there(rng: np.random.Generator, way: str) -> None:
    table = rng.normal(size=(3000, 3))
    table[::3, :2] = np.nan
    sums = ExactMoments(3, [(0, 1), (2,)]).add(table)
    assert same(sums.moments(columns=(0, 1)), ExactMoments(2).add(table[~np.isnan(table[:, 0]), :2]).moments())
    assert sums.moments(columns=(2,)).n == 3000
    with pytest.raises(ValueError, match="not of the same rows"):
        sums.moments(columns=(0, 2))
    nothing = ExactMoments(2).add(np.full((5, 2), np.nan)).moments()
    assert (nothing.n, nothing.mean.tolist(), nothing.cov.tolist()) == (0, [0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]])


def test_nothing_one_row_and_what_is_no_number(way: str) -> None:
    assert ExactMoments(2).moments().n == 0
    assert ExactMoments(2).add(np.empty((0, 2))).moments().n == 0
    one = ExactMoments(1).add(np.array([[0.1]])).moments()
    assert (one.n, one.mean.tolist(), one.cov.tolist()) == (1, [0.1], [[0.0]])
    with pytest.raises(ValueError, match="infinite"):
        ExactMoments(1).add(np.array([[1.0], [-np.inf]]))
    with pytest.raises(ValueError, match="too large for a variance"):
        ExactMoments(1).add(np.array([[1e300], [-1e300]])).moments()
    with pytest.raises(ValueError, match="rows of 2 columns"):
        ExactMoments(2).add(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="different columns"):
        ExactMoments(2).merge(ExactMoments(3))


def test_sums_of_many_blocks_are_emptied_before_they_are_full(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_FLUSH", 2)
    table = np.full((13_000, 1), 2.0**21 - 1)
    found = ExactMoments(1).add(table).add(table).moments()
    assert (found.n, found.mean[0], found.cov[0, 0]) == (26_000, 2.0**21 - 1, 0.0)

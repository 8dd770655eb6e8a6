"""Moments: exact against numpy, exact under merging, exact far from zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from payoff.estimate import FloatArray
from payoff.stats.moments import Moments

VALUES = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def tables(min_rows: int = 0, max_rows: int = 40, k: int = 3) -> st.SearchStrategy[FloatArray]:
    return st.integers(min_rows, max_rows).flatmap(lambda n: arrays(np.float64, (n, k), elements=VALUES))


def assert_same(a: Moments, b: Moments) -> None:
    assert a.n == b.n
    size = 1.0 + max(np.abs(a.mean).max(), np.abs(b.mean).max())
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=1e-12 * size)
    # Relative to the variances: a covariance near zero is a difference of numbers of their size.
    spread = np.sqrt(np.outer(a.var, a.var)).max() + 1e-12 * size**2
    np.testing.assert_allclose(a.cov, b.cov, rtol=0, atol=1e-9 * spread)


@given(tables(min_rows=2))
def test_of_equals_numpy(values: FloatArray) -> None:
    m = Moments.of(values)
    size = 1.0 + np.abs(values).max()
    np.testing.assert_allclose(m.mean, values.mean(axis=0), rtol=0, atol=1e-12 * size)
    np.testing.assert_allclose(m.cov, np.cov(values, rowvar=False), rtol=0, atol=1e-11 * size**2)


@given(tables(), st.lists(st.integers(0, 40), max_size=4))
def test_merging_any_split_equals_the_whole(values: FloatArray, cuts: list[int]) -> None:
    parts = [Moments.of(part) for part in np.split(values, sorted(min(cut, len(values)) for cut in cuts))]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert_same(merged, Moments.of(values))


@given(tables(), tables(), tables())
def test_merging_is_commutative_and_associative(x: FloatArray, y: FloatArray, z: FloatArray) -> None:
    a, b, c = Moments.of(x), Moments.of(y), Moments.of(z)
    assert_same(a.merge(b), b.merge(a))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))


def test_a_large_offset_leaves_the_variance_exact() -> None:
    """On 1e8 + N(0, 1) a sum of squares gives a variance that may be negative; deviations keep it."""
    noise = np.random.default_rng(8).standard_normal((100_000, 2))
    shifted = 1e8 + noise
    # The offset rounds the values themselves, so the truth is that of the rounded values, read without the offset.
    exact = np.cov(shifted - 1e8, rowvar=False)
    np.testing.assert_allclose(Moments.of(shifted).cov, exact, rtol=1e-11, atol=1e-13)
    merged = Moments.of(shifted[:10])
    for start in range(10, 100_000, 9_999):
        merged = merged.merge(Moments.of(shifted[start : start + 9_999]))
    np.testing.assert_allclose(merged.cov, exact, rtol=1e-7, atol=1e-8)
    assert merged.n == 100_000
    np.testing.assert_allclose(merged.mean - 1e8, (shifted - 1e8).mean(axis=0), atol=2e-8)
    raw = shifted[:, 0]
    naive = (np.sum(raw**2) - len(raw) * raw.mean() ** 2) / (len(raw) - 1)
    assert abs(naive - exact[0, 0]) > 0.1, "the premise: sums of squares lose it"


def test_one_column_may_be_flat() -> None:
    m = Moments.of([1.0, 2.0, 4.0])
    assert (m.n, m.k, m.mean[0]) == (3, 1, pytest.approx(7 / 3))
    assert m.var[0] == pytest.approx(7 / 3)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_units_have_no_covariance(n: int) -> None:
    m = Moments.of(np.full((n, 2), 5.0))
    assert m.n == n
    assert (m.cov == 0).all()
    assert (m.mean == (5.0 if n else 0.0)).all()


def test_merging_with_nothing_changes_nothing() -> None:
    m, nothing = Moments.of([[1.0, 2.0], [3.0, 5.0]]), Moments.of(np.empty((0, 2)))
    assert m.merge(nothing) is m
    assert nothing.merge(m) is m
    assert nothing.merge(nothing).n == 0


def test_take_picks_orders_and_repeats_measures() -> None:
    values = np.random.default_rng(1).normal(size=(20, 3))
    assert_same(Moments.of(values).take([2, 0, 0]), Moments.of(values[:, [2, 0, 0]]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Moments.of([1.0, float("nan")]), "1 of 2 values are not finite"),
        (lambda: Moments.of([[1.0, float("inf")]]), "1 of 2 values are not finite"),
        (lambda: Moments.of(np.zeros((2, 2, 2))), "shape"),
        (lambda: Moments(2, np.zeros(2), np.zeros((1, 1))), "does not fit"),
        (lambda: Moments(-1, np.zeros(1), np.zeros((1, 1))), "negative"),
        (lambda: Moments(3, np.array([np.nan]), np.zeros((1, 1))), "not a finite number"),
        (lambda: Moments(3, np.zeros(1), np.array([[np.inf]])), "not a finite number"),
        (lambda: Moments.of([1.0]).merge(Moments.of([[1.0, 2.0]])), "cannot be merged"),
    ],
)
def test_what_cannot_be_moments_is_refused(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=words):
        make()

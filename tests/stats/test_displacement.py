"""What one path gained and others lost: against hand-made totals, its laws, and simulation with known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from payoff.estimate import FloatArray
from payoff.stats.displacement import displacement
from payoff.stats.moments import Moments

SEEDS = st.integers(0, 10**6)


def purchases(rng: np.random.Generator, n: int, share: float, extra: float) -> FloatArray:
    """Three a unit on average, ``share`` of them on path 0 and the rest on 1 and 2; ``extra`` more on path 0."""
    total = rng.poisson(3, n)
    on = rng.binomial(total, share)
    rest = rng.binomial(total - on, 0.5)
    return np.column_stack([on + rng.poisson(extra, n), rest, total - on - rest]).astype(np.float64)


def two_arms(seed: int, n: int = 200) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    return purchases(rng, n, 0.4, 0.3), purchases(rng, n + 50, 0.2, 0.0)


@given(SEEDS, st.integers(0, 2))
def test_each_figure_is_welch_on_the_units_own_sums(seed: int, treated: int) -> None:
    t, c = two_arms(seed)
    found = displacement(Moments.of(t), Moments.of(c), treated)
    rest = [j for j in range(3) if j != treated]
    for gap, columns in (
        *((found.paths[j], [j]) for j in range(3)),
        (found.gained, [treated]),
        (found.others, rest),
        (found.net, [0, 1, 2]),
    ):
        oracle = stats.ttest_ind(t[:, columns].sum(axis=1), c[:, columns].sum(axis=1), equal_var=False)
        assert gap.p_value() == pytest.approx(oracle.pvalue, rel=1e-8)
        assert gap.interval() == pytest.approx(tuple(oracle.confidence_interval()), rel=1e-8, abs=1e-12)
    assert found.net.value == pytest.approx(found.gained.value + found.others.value, abs=1e-12)


@given(SEEDS, st.sampled_from([100.0, 1e-6]))
def test_units_scale_amounts_and_leave_the_share(seed: int, factor: float) -> None:
    t, c = two_arms(seed)
    one = displacement(Moments.of(t), Moments.of(c), 0)
    other = displacement(Moments.of(t * factor), Moments.of(c * factor), 0)
    assert (other.net.value, other.net.se) == pytest.approx((one.net.value * factor, one.net.se * factor), rel=1e-9)
    assert one.anyway is not None
    assert other.anyway is not None
    assert (other.anyway.value, other.anyway.low, other.anyway.high) == pytest.approx(
        (one.anyway.value, one.anyway.low, one.anyway.high), rel=1e-9, abs=1e-9
    )


@given(SEEDS)
def test_swapped_arms_flip_signs_and_the_order_of_paths_says_nothing(seed: int) -> None:
    t, c = two_arms(seed)
    one = displacement(Moments.of(t), Moments.of(c), 0)
    turned = displacement(Moments.of(c), Moments.of(t), 0)
    moved = displacement(Moments.of(t[:, ::-1]), Moments.of(c[:, ::-1]), 2)
    for a, b, same in ((one.gained, turned.gained, moved.gained), (one.net, turned.net, moved.net)):
        assert (b.value, b.se) == pytest.approx((-a.value, a.se), rel=1e-12)
        assert (same.value, same.se) == pytest.approx((a.value, a.se), rel=1e-12)
    assert moved.anyway == pytest.approx(one.anyway) if one.anyway is None else moved.anyway is not None


def test_the_interval_of_the_share_solves_fiellers_equation() -> None:
    t, c = two_arms(1)
    m, k = Moments.of(t), Moments.of(c)
    found = displacement(m, k, 0, level=0.9)
    assert found.anyway is not None
    level = t[:, 0].mean()
    assert found.anyway.value == pytest.approx(1 - found.net.value / level, rel=1e-12)
    share = 1 - found.anyway.value
    parts = t.sum(axis=1) - share * t[:, 0], c.sum(axis=1)
    v = [x.var(ddof=1) / len(x) for x in parts]
    df = sum(v) ** 2 / sum(x**2 / (len(p) - 1) for x, p in zip(v, parts, strict=True))
    for end in (found.anyway.low, found.anyway.high):
        theta = 1 - end
        own = (t.sum(axis=1) - theta * t[:, 0]).var(ddof=1) / len(t) + v[1]
        gap = found.net.value - theta * level
        assert gap**2 == pytest.approx(stats.t.ppf(0.95, df) ** 2 * own, rel=1e-8)


@pytest.mark.parametrize("n", [100, 1_000])
def test_net_and_share_cover(n: int) -> None:
    """True net 0.3 a unit, level 3 * 0.4 + 0.3 = 1.5 on the path: 80% would have happened anyway. 1,500 worlds."""
    rng = np.random.default_rng(n)
    hits = np.zeros(2)
    for _ in range(1_500):
        t, c = (Moments.of(purchases(rng, n, *by)) for by in ((0.4, 0.3), (0.2, 0.0)))
        found = displacement(t, c, 0)
        assert found.anyway is not None
        low, high = found.net.interval()
        hits += [low <= 0.3 <= high, found.anyway.low <= 0.8 <= found.anyway.high]
    assert hits / 1_500 == pytest.approx(np.full(2, 0.95), abs=3.5 * math.sqrt(0.05 * 0.95 / 1_500))


def test_what_only_moved_would_all_have_happened_anyway() -> None:
    """All of the treated path is taken from another: the net is zero whatever chance does, the same units in both arms."""
    total = np.random.default_rng(3).poisson(3, 300).astype(float)
    nothing = np.zeros(300)
    found = displacement(
        Moments.of(np.column_stack([total, nothing])), Moments.of(np.column_stack([nothing, total])), 0
    )
    assert found.net.value == pytest.approx(0.0, abs=1e-12)
    assert found.anyway is not None
    assert found.anyway.value == pytest.approx(1.0)
    assert found.anyway.low < 1.0 < found.anyway.high


def test_an_unused_path_has_a_difference_of_zero_and_no_error() -> None:
    t, c = two_arms(4)
    found = displacement(*(Moments.of(np.column_stack([x, np.zeros(len(x))])) for x in (t, c)), 0)
    assert (found.paths[3].value, found.paths[3].se) == (0.0, 0.0)
    assert found.net == displacement(Moments.of(t), Moments.of(c), 0).net


def test_no_share_of_a_level_that_may_be_zero() -> None:
    t, c = two_arms(5)
    rare = t.copy()
    rare[:, 0] = 0.0
    rare[0, 0] = 1.0
    found = displacement(Moments.of(rare), Moments.of(c), 0)
    assert found.anyway is None
    assert "cannot be told from zero" in found.reason
    refunds = displacement(Moments.of(t * [-1, 1, 1]), Moments.of(c), 0)
    assert refunds.anyway is None
    assert "is not above zero" in refunds.reason


@pytest.mark.parametrize(
    ("t", "c", "treated", "words"),
    [
        (np.ones((5, 2)), np.ones((5, 3)), 0, "same paths"),
        (np.arange(5.0), np.arange(5.0), 0, "at least one other"),
        (np.eye(5), np.eye(5), 5, "not one of 5"),
        (np.eye(1, 2), np.eye(5, 2), 0, "at least two units"),
        (np.eye(5, 2) * [0, 1], np.eye(5, 2) * [0, 1], 0, "the same on the treated path"),
        (np.eye(5, 2) * [1, 0], np.eye(5, 2) * [1, 0], 0, "the same on the other paths"),
        (np.eye(2), np.eye(2), 0, "the same over all paths"),
    ],
)
def test_refuses_in_plain_words(t: FloatArray, c: FloatArray, treated: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        displacement(Moments.of(t), Moments.of(c), treated)

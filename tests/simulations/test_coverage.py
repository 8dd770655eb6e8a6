"""The proof table, docs/simulations.md: what it says of itself, and that other worlds say the same. `make simulations` makes it."""

from __future__ import annotations

import numpy as np
import pytest

from payoff.stats.moments import Moments
from tests.simulations.catalogue import CASES
from tests.simulations.known import KNOWN
from tests.simulations.looks import LOOKS, so_far
from tests.simulations.page import SECTIONS, Regime, recorded
from tests.simulations.rows import Case
from tests.simulations.run import differences
from tests.simulations.worlds import KINDS, MEANS, moments, moments_by_class, with_history

EVERY = 5  # regimes: a number that shares no factor with how the catalogue repeats its kinds, sizes and lifts


def test_regimes_known_to_fail_are_those_on_the_page_and_the_program_warns_of_each() -> None:
    rows = recorded()
    short = [row for row in rows.values() if row["verdict"].startswith(("covers less", "rejects too often"))]
    assert {Regime(row["family"], row["values"], row[UNITS]) for row in short} == set(KNOWN)
    silent = [row for row in short if not row["verdict"].endswith(", warned")]
    assert not silent


UNITS = "units, treatment / control"


def test_the_page_has_every_regime() -> None:
    families = [row["family"] for row in recorded().values()]
    assert set(families) == set(SECTIONS) == {case.family for case in CASES}
    assert all(families.count(family) >= sum(case.family == family for case in CASES) for family in SECTIONS)


def test_always_valid_intervals_err_at_any_of_100_looks_in_fewer_than_5_in_100_worlds() -> None:
    rows = [row for (estimate, *_), row in recorded().items() if "always-valid, any of 100 looks" in estimate]
    assert len(rows) >= 48
    assert [row for row in rows if not row["verdict"].startswith("holds")] == []


def test_worlds_are_what_they_say() -> None:
    """Means, and the same moments as one world's at a time."""
    for kind in KINDS:
        table, stratum = with_history(kind, 0.05, (4, 50_000), 0.7, np.random.default_rng(3))
        se = table[..., 0].std() / np.sqrt(table[..., 0].size)
        assert table[..., 0].mean() == pytest.approx(MEANS[kind] * 1.05, abs=4 * se)
        ratio = table[..., 1].sum() / table[..., 2].sum()
        assert ratio == pytest.approx(MEANS[kind] * 1.05, abs=5 * se)
        few, classes = table[:, :400], stratum[:, :400]
        for found, values in (
            (moments(few)[1], few[1]),
            (moments_by_class(few, classes, 4)[2][3], few[2][classes[2] == 3]),
            (so_far(few)[3][LOOKS // 2 - 1], few[3][:200]),
        ):
            one = Moments.of(values)
            assert found.n == one.n
            np.testing.assert_allclose(found.mean, one.mean, rtol=1e-10)
            np.testing.assert_allclose(found.cov, one.cov, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[::EVERY], ids=lambda case: case.name)
def test_other_worlds_say_what_the_page_says(case: Case) -> None:
    assert differences(case) == []

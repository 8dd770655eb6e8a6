"""A whole with units enough can have classes without, and clusters enough can be few: the checks say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from payoff.methods.experiment.checks import even_clusters
from payoff.stats.moments import Moments
from tests.methods.shop import make_shop
from tests.methods.test_closer import experiment
from tests.methods.test_experiment import check, only_result


def test_classes_that_a_few_units_decide_are_named_without_their_counts(tmp_path: Path) -> None:
    rare = "UPDATE exposures SET device = 'rare' WHERE hash(user_id) % 100 = 0"
    project, _ = make_shop(tmp_path, experiment("        segments: [device]"), extra=rare)
    result = only_result(project)
    by_class = [c for c in result.checks if c.name == "few_units" and "device" in c.detail]
    assert [c.status for c in by_class] == ["warn"]
    assert "rare" in by_class[0].detail
    assert not any(x.isdigit() for x in by_class[0].detail)


def test_classes_with_units_enough_are_not(tmp_path: Path) -> None:
    project, _ = make_shop(tmp_path, experiment("        segments: [loyalty]"))
    assert not [c for c in only_result(project).checks if c.name == "few_units" and "loyalty" in c.detail]


def test_clusters_of_one_size_count_as_they_are_and_a_giant_makes_the_rest_count_little() -> None:
    assert even_clusters(Moments.of(np.full(30, 7.0))) == pytest.approx(30)
    sizes = np.full(50, 10.0)
    sizes[0] = 500.0
    c = sizes.var(ddof=1) / sizes.mean() ** 2
    assert even_clusters(Moments.of(3 * sizes)) == pytest.approx(50 / (1 + c) ** 2)
    assert even_clusters(Moments.of(sizes)) < 2


def test_many_clusters_of_very_different_sizes_warn(tmp_path: Path) -> None:
    body = experiment("        cluster: account")
    arms = "UPDATE exposures SET arm = CASE WHEN hash(account_id) % 2 = 0 THEN 'new' ELSE 'old' END"
    whole = check(only_result(make_shop(tmp_path / "a", body, extra=arms)[0]), "clusters")
    assert whole.status == "pass"
    giant = f"UPDATE exposures SET account_id = 1 WHERE hash(account_id) % 7 = 0; {arms}"
    found = check(only_result(make_shop(tmp_path / "b", body, extra=giant)[0]), "clusters")
    assert found.status == "warn"
    assert "their sizes differ so that an arm's count as" in found.detail

"""A whole with units enough can have classes without: the check says which."""

from __future__ import annotations

from pathlib import Path

from tests.methods.shop import make_shop
from tests.methods.test_closer import experiment
from tests.methods.test_experiment import only_result


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

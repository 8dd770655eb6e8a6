"""A look so early that its boundary lets nothing through has an interval, but no percentage."""

from __future__ import annotations

from pathlib import Path

import pytest

from payoff.methods.experiment.rule import Rule
from tests.methods.shop import make_shop
from tests.methods.test_closer import experiment
from tests.methods.test_experiment import only_result


@pytest.mark.parametrize(
    "rule",
    [Rule("group_sequential", 0.05, information=(0.01,)), Rule("always_valid", 0.05, tightest_at=10**9)],
)
def test_no_percentage_holds_an_interval_without_an_end(rule: Rule) -> None:
    low, high = rule.interval(0.05, 0.1, 20.0, 22, 0.95)
    assert low < -100
    assert high > 100
    with pytest.raises(ValueError, match="so early a look"):
        rule.uncertainty(0.05, 0.1, 20.0, 22, 0.95, log=True)


def test_a_first_look_at_a_large_plan_gives_the_difference_alone(tmp_path: Path) -> None:
    stop = "        stop: {rule: group_sequential, n: 10000000, looks: 50}"
    project, _ = make_shop(tmp_path, experiment(stop), extra="DELETE FROM exposures WHERE hash(user_id) % 20 <> 0")
    result = only_result(project)
    assert result.readings[0].state == "not conclusive"
    assert not [e for e in result.estimates if e.estimand == "relative lift"]
    assert [a for a in result.assumptions if a.text.startswith("No relative lift of revenue")]

"""A look after the one that had all the planned units has no error rate left to spend: it is refused, not answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from payoff.methods.experiment import reading
from payoff.methods.experiment.rule import Rule
from tests.methods.shop import make_shop
from tests.methods.test_closer import experiment
from tests.methods.test_experiment import only_refusal


@pytest.mark.parametrize(
    ("information", "answered"),
    [((0.5, 1.05, 1.2), False), ((0.5, 1.05), True), ((0.5, 0.9), True), ((1.05, 1.05001), True)],
)
def test_only_a_look_after_the_last_is_spent(information: tuple[float, ...], answered: bool) -> None:
    said = Rule("group_sequential", 0.05, information=information).spent()
    assert (said is None) == answered
    assert Rule("fixed", 0.05).spent() is None


def test_an_experiment_read_again_after_its_last_look_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = make_shop(tmp_path, experiment("        stop: {rule: group_sequential, n: 100, looks: 5}"))

    def rule(self: reading.Reader) -> Rule:
        return Rule.of(self.design.experiment.stop, 0.05, [60, 110], reading.decided_units(self.design, self.data))

    monkeypatch.setattr(reading.Reader, "_rule", rule)
    outcome = only_refusal(project)
    assert "110% of the planned units has spent the whole error rate" in outcome.reason
    assert "payoff show" in outcome.remedy

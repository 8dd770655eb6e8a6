"""What the SQL counts is what plain numpy counts: every figure of a run on the simulated company, against ``unit_level``."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from payoff.run import Project
from payoff.world import World, unit_level, write_demo_project
from payoff.world.company import TREATMENT, WINDOWS


def level(values: Any) -> float:
    return float(values[:, 0].sum() / values[:, 1].sum() if values.ndim == 2 else values.mean())


@pytest.mark.parametrize("null", [False, True], ids=["effects", "null"])
def test_a_run_gives_the_reference_figures(tmp_path: Path, null: bool) -> None:
    world = World(customers=2_000, days=130, seed=8, null=null, holdout=0.3)
    company = write_demo_project(tmp_path, world, today=date(2026, 11, 22), capped=False)
    run = Project.load(tmp_path).run(seed=1).to_dict()
    results = [result for result in run["results"] if result["method"] == "experiment"]
    assert {result["name"] for result in results} == {f"experiments.{name}" for name in WINDOWS}
    for result in results:
        experiment = result["name"].removeprefix("experiments.")
        units = unit_level(company, experiment)
        plain = {e["metric"]: e for e in result["estimates"] if e["estimand"] == "difference in means, unadjusted"}
        assert bool(plain) == (experiment == "global_holdout")  # what is not adjusted has one difference
        whole = [e for e in result["estimates"] if e["segment"] is None and e["estimand"] == "difference in means"]
        differences = {e["metric"]: e for e in whole} | plain
        assert set(differences) == set(WINDOWS[experiment])
        for metric, told in differences.items():
            values = units[metric]
            closed = ~np.isnan(values.reshape(len(values), -1)[:, 0])
            arms = {arm: values[closed & (units["arm"] == arm)] for arm in ("generic", TREATMENT[experiment])}
            one, zero = arms[TREATMENT[experiment]], arms["generic"]
            assert told["value"] == pytest.approx(level(one) - level(zero), abs=1e-10), metric
            means = {arm["arm"]: arm["value"] for arm in result["arms"] if arm["metric"] == metric}
            assert means == pytest.approx({arm: level(own) for arm, own in arms.items()}, abs=1e-10), metric
            if values.ndim == 1:
                assert told["n"] == {arm: len(own) for arm, own in arms.items()}, metric
                welch = stats.ttest_ind(one, zero, equal_var=False).confidence_interval(0.95)
                assert (told["low"], told["high"]) == pytest.approx((welch.low, welch.high), abs=1e-9), metric
            else:
                errors = []
                for part in (one, zero):
                    took_part = part[(part != 0).any(axis=1)]
                    r = took_part[:, 0].sum() / took_part[:, 1].sum()
                    spread = np.var(took_part[:, 0] - r * took_part[:, 1], ddof=1)
                    errors.append(spread / len(took_part) / took_part[:, 1].mean() ** 2)
                half = (told["high"] - told["low"]) / 2
                assert half == pytest.approx(1.96 * np.sqrt(sum(errors)), rel=1e-2), (
                    metric
                )  # Welch's t is a little wider

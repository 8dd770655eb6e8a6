"""A published e-mail experiment with three arms (Hillstrom 2008, MineThatData), against scipy and statsmodels.

The file is not ours to ship: put hillstrom.csv in the folder that PAYOFF_TEST_DATA names, or in ../shared/data.
"""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from payoff.run import Run
from tests.builders import make_project

FOLDER = Path(os.environ.get("PAYOFF_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
FILE = FOLDER / "hillstrom.csv"

pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"hillstrom.csv is not in {FOLDER}")

DEFINITIONS = f"""
    sources:
      customers: {{file: "{FILE}", one_row_per: customer}}
    metrics:
      visit:      {{kind: mean, from: customers, column: visit, role: primary}}
      visit_rate: {{kind: rate, from: customers, where: "visit = 1"}}
      conversion: {{kind: conversion, to: {{source: customers, where: "conversion = 1"}}}}
      spend:      {{kind: sum, from: customers, column: spend}}
    experiments:
      email: {{assignment: {{source: customers, variant: segment, control: "No E-Mail"}}}}
"""
ARMS = ("Mens E-Mail", "Womens E-Mail")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_project(tmp_path_factory.mktemp("hillstrom"), DEFINITIONS).run(record=False)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return pd.read_csv(FILE)


def test_each_arm_has_its_n_and_mean(run: Run, frame: pd.DataFrame) -> None:
    seen = {(a.arm, a.metric): (a.n, a.value) for a in run.results[0].arms}
    for arm, group in frame.groupby("segment"):
        for metric in ("visit", "visit_rate", "conversion", "spend"):
            values = group[metric.removesuffix("_rate")]
            assert seen[arm, metric] == (len(values), pytest.approx(values.mean(), abs=1e-12))
    assert sum(n for (_, metric), (n, _) in seen.items() if metric == "visit") == 64_000


@pytest.mark.parametrize(("arm", "metric"), list(product(ARMS, ("visit", "visit_rate", "conversion", "spend"))))
def test_differences_equal_scipy_and_statsmodels(run: Run, frame: pd.DataFrame, arm: str, metric: str) -> None:
    column = metric.removesuffix("_rate")
    treated = frame.loc[frame["segment"] == arm, column].to_numpy(float)
    control = frame.loc[frame["segment"] == "No E-Mail", column].to_numpy(float)
    estimate = run.results[0].estimate(metric, f"{arm} vs No E-Mail")
    welch = stats.ttest_ind(treated, control, equal_var=False)
    low, high = CompareMeans(DescrStatsW(treated), DescrStatsW(control)).tconfint_diff(usevar="unequal")
    tolerance = 1e-6 if metric == "visit_rate" else 1e-9  # a rate is a ratio of sums; n against n - 1 is the difference
    assert estimate.value == pytest.approx(treated.mean() - control.mean(), abs=1e-12)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=tolerance)
    assert estimate.low == pytest.approx(welch.confidence_interval(0.95).low, abs=tolerance)
    assert estimate.p_value == pytest.approx(welch.pvalue, rel=1e-3 if metric == "visit_rate" else 1e-9)


@pytest.mark.parametrize(("arm", "metric"), list(product(ARMS, ("visit", "conversion", "spend"))))
def test_relative_lifts_equal_the_delta_method_written_out(
    run: Run, frame: pd.DataFrame, arm: str, metric: str
) -> None:
    treated = frame.loc[frame["segment"] == arm, metric].to_numpy(float)
    control = frame.loc[frame["segment"] == "No E-Mail", metric].to_numpy(float)
    lift = run.results[0].estimate(metric, f"{arm} vs No E-Mail", "relative lift")
    parts = [y.var(ddof=1) / len(y) / y.mean() ** 2 for y in (treated, control)]
    df = sum(parts) ** 2 / sum(p**2 / (len(y) - 1) for p, y in zip(parts, (treated, control), strict=True))
    half = stats.t.ppf(0.975, df) * np.sqrt(sum(parts))
    ratio = treated.mean() / control.mean()
    assert lift.value == pytest.approx(ratio - 1, abs=1e-12)
    assert (lift.low, lift.high) == pytest.approx((ratio * np.exp(-half) - 1, ratio * np.exp(half) - 1), abs=1e-9)


def test_the_contract_is_json(run: Run) -> None:
    read = json.loads(json.dumps(run.to_dict(), allow_nan=False))
    (result,) = read["results"]
    assert (result["name"], result["method"]) == ("experiments.email", "experiment")
    keys = {"metric", "contrast", "segment", "estimand", "value", "low", "high", "level", "interval_kind", "unit", "p_value", "n"}  # fmt: skip
    assert all(keys <= set(e) for e in result["estimates"])
    assert all({"arm", "metric", "n", "value"} <= set(a) for a in result["arms"])
    assert {c["name"]: c["status"] for c in result["checks"]}["srm"] == "pass"

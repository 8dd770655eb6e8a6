"""From event tables to figures through SQL, held against the same figures in plain numpy."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
from scipy import stats

from payoff.run import Project, Run
from payoff.world.company import Company, World, unit_level
from payoff.world.project import write_demo_project

TODAY = date(2026, 11, 22)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Company, Run]:
    folder = tmp_path_factory.mktemp("demo")
    company = write_demo_project(folder, World(customers=6_000, seed=3), today=TODAY, capped=False)
    return company, Project.load(folder).run(today=TODAY)


@pytest.mark.parametrize(
    ("experiment", "metric", "ratio"),
    [
        ("first_name_subject", "open_rate", False),
        ("first_name_subject", "click_rate", False),
        ("first_name_subject", "order_rate", False),
        ("first_name_subject", "revenue_per_email", False),
        ("first_name_subject", "unsubscribe_rate", False),
        ("global_holdout", "margin_90d", False),
        ("global_holdout", "conversion", False),
        ("global_holdout", "rec_clicks", False),
        ("global_holdout", "aov", True),
        ("global_holdout", "return_rate", True),
    ],
)
def test_the_sql_pipeline_equals_plain_numpy(
    demo: tuple[Company, Run], experiment: str, metric: str, ratio: bool
) -> None:
    company, run = demo
    result = next(r for r in run.results if r.name == f"experiments.{experiment}")
    control = "generic"
    treatment = "first_name" if experiment == "first_name_subject" else "personalised"
    values = unit_level(company, experiment)
    arm, y = values["arm"], values[metric]
    entered = ~np.isnan(y[:, 0] if ratio else y)
    if ratio:
        entered &= ~((y[:, 0] == 0) & (y[:, 1] == 0))
    treated, rest = y[(arm == treatment) & entered], y[(arm == control) & entered]
    estimate = result.estimate(metric)
    assert estimate.n == {treatment: len(treated), control: len(rest)}
    if not ratio:
        reference = stats.ttest_ind(treated, rest, equal_var=False)
        interval = reference.confidence_interval(0.95)
        assert estimate.value == pytest.approx(treated.mean() - rest.mean(), abs=1e-9)
        assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
        assert estimate.p_value == pytest.approx(reference.pvalue, rel=1e-6)
    else:
        levels, errors = [], []
        for part in (treated, rest):
            r = part[:, 0].sum() / part[:, 1].sum()
            errors.append(np.var(part[:, 0] - r * part[:, 1], ddof=1) / len(part) / part[:, 1].mean() ** 2)
            levels.append(r)
        assert estimate.value == pytest.approx(levels[0] - levels[1], abs=1e-9)
        assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * np.sqrt(sum(errors)), rel=5e-3)

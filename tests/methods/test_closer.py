"""The experiment method over event tables: each figure held against the same one computed in numpy or statsmodels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.multitest import multipletests

from payoff.result import Result
from tests.methods.shop import PATHS, make_shop
from tests.methods.test_experiment import check, only_refusal, only_result


def the(result: Result, metric: str = "revenue", estimand: str = "difference in means") -> Any:
    return result.estimate(metric, estimand=estimand)


def experiment(body: str) -> str:
    return f"""
    attributes:
      tenure:  {{from: customers, column: tenure_days}}
      loyalty: {{from: customers, since: signed_up_at, cuts: [90d], labels: [new customers, returning customers]}}
      spent:   {{metric: revenue, period: 14d, quantiles: [0.5], labels: [low spenders, high spenders]}}
    experiments:
      x:
        entity: user
        assignment: {{source: exposures, variant: arm, control: old}}
        primary: revenue
{body}
"""


def regressed(y: Any, covariates: Any, arm: Any) -> tuple[float, float]:
    """The difference of per-arm OLS predictions at the pooled covariate means (Lin 2013), and the conditional standard
    error of that difference: what two separate fits of statsmodels give."""
    at = np.concatenate([[1.0], covariates.mean(axis=0)])
    out = {}
    for name in ("new", "old"):
        fit = sm.OLS(y[arm == name], sm.add_constant(covariates[arm == name])).fit()
        out[name] = (float(at @ fit.params), float(at @ fit.cov_params() @ at))
    return out["new"][0] - out["old"][0], float(np.sqrt(out["new"][1] + out["old"][1]))


# ---------------------------------------------------------------- precision


def test_cuped_is_each_arms_regression_on_the_period_before(tmp_path: Path) -> None:
    project, shop = make_shop(tmp_path, experiment("        secondary: [ordered, visits]\n        adjust: cuped"))
    result = only_result(project)
    value, se = regressed(shop.after, shop.before[:, None], shop.arm)
    found = the(result)
    assert found.value == pytest.approx(value, rel=1e-9)
    # ours also counts what the pooled mean of the covariate does not know: a little more than the conditional error
    assert se <= found.uncertainty.se <= se * 1.05
    raw = the(result, estimand="difference in means, unadjusted")
    new, old = shop.after[shop.arm == "new"], shop.after[shop.arm == "old"]
    assert raw.value == pytest.approx(new.mean() - old.mean(), rel=1e-9)
    assert raw.uncertainty.se == pytest.approx(
        np.sqrt(new.var(ddof=1) / len(new) + old.var(ddof=1) / len(old)), rel=1e-9
    )
    (precision,) = [p for p in result.closer.precision if p.metric == "revenue"]
    assert precision.variance_reduction == pytest.approx(1 - (found.uncertainty.se / raw.uncertainty.se) ** 2)
    assert precision.variance_reduction > 0.2
    assert check(result, "balance").status == "pass"


def test_several_covariates_of_every_kind(tmp_path: Path) -> None:
    body = "        adjust: {cuped: true, attributes: [tenure, device], metrics: [visits]}"
    project, shop = make_shop(tmp_path, experiment(body))
    with duckdb.connect(str(tmp_path / "data.duckdb"), read_only=True) as connection:
        rows = connection.execute(
            "SELECT e.user_id, count(s.t) FROM exposures e LEFT JOIN sessions s ON s.user_id = e.user_id"
            " AND s.t < e.t AND s.t >= e.t - INTERVAL 14 DAY GROUP BY 1"
        ).fetchall()
    visits = dict(rows)
    before = np.array([visits[f"u{i}"] for i in range(len(shop.arm))], dtype=float)
    design = np.column_stack(
        [shop.before, shop.tenure, shop.device == "desktop", shop.device == "tablet", before]
    ).astype(float)
    value, se = regressed(shop.after, design, shop.arm)
    found = the(only_result(project))
    assert found.value == pytest.approx(value, rel=1e-8)
    assert se <= found.uncertainty.se <= se * 1.05


def test_a_ratio_is_adjusted_by_both_of_its_sides(tmp_path: Path) -> None:
    project, shop = make_shop(tmp_path, experiment("        secondary: [per_visit]\n        adjust: cuped"))
    result = only_result(project)
    raw = the(result, "per_visit", "difference in means, unadjusted")
    adjusted = the(result, "per_visit")
    ratio = {a: shop.after[shop.arm == a].sum() / shop.visits[shop.arm == a].sum() for a in ("new", "old")}
    assert raw.value == pytest.approx(ratio["new"] - ratio["old"], rel=1e-9)
    assert adjusted.uncertainty.se < raw.uncertainty.se


def test_post_stratification_weighs_the_classes_differences(tmp_path: Path) -> None:
    project, shop = make_shop(tmp_path, experiment("        adjust: {post_stratify: device}"))
    found = the(only_result(project))
    expected = 0.0
    for device in ("mobile", "desktop", "tablet"):
        inside = shop.device == device
        gap = shop.after[inside & (shop.arm == "new")].mean() - shop.after[inside & (shop.arm == "old")].mean()
        expected += inside.mean() * gap
    assert found.value == pytest.approx(expected, rel=1e-9)


def test_arms_that_differed_before_exposure_fail(tmp_path: Path) -> None:
    extra = "UPDATE orders SET amount = amount * 1.6 FROM exposures e WHERE orders.user_id = e.user_id AND e.arm = 'new' AND orders.t < e.t"
    project, _ = make_shop(tmp_path, experiment("        adjust: cuped"), extra=extra)
    result = only_result(project)
    assert check(result, "balance").status == "fail"
    assert result.verdict == "withheld"


# ---------------------------------------------------------------- many questions


def test_families_are_corrected_by_their_role(tmp_path: Path) -> None:
    extra = "UPDATE exposures SET arm = 'third' WHERE hash(user_id) % 3 = 0"
    body = "        secondary: [ordered, visits, aov]\n        guardrails: [back]"
    project, _ = make_shop(tmp_path, experiment(body), extra=extra)
    result = only_result(project)
    gaps = [e for e in result.estimates if e.estimand == "difference in means"]
    for metrics, method in ((["revenue"], "holm"), (["ordered", "visits", "aov"], "fdr_bh")):
        family = [e for e in gaps if e.metric in metrics]
        assert len(family) == 2 * len(metrics)
        expected = multipletests([e.p_value for e in family], method=method)[1]
        for e, p in zip(family, expected, strict=True):
            assert e.correction.of == len(family)
            assert e.correction.p_value == pytest.approx(p, abs=1e-12)
            assert (e.correction.low > 0 or e.correction.high < 0) == (p <= 0.05)
            assert e.correction.low <= e.low
            assert e.correction.high >= e.high
    assert all(e.correction is None for e in gaps if e.metric == "back")


# ---------------------------------------------------------------- peeking


def test_looks_are_kept_and_a_fixed_design_says_what_they_cost(tmp_path: Path) -> None:
    project, _ = make_shop(tmp_path, experiment("        stop: {rule: fixed, n: 3000}"))
    first = project.run(actor="ada").results[0]
    assert check(first, "peeking").status == "pass"
    again = project.run(actor="bob").results[0]
    assert check(again, "peeking").status == "pass"  # the same data once more is not another look
    with duckdb.connect(str(tmp_path / "data.duckdb")) as connection:
        connection.execute(
            "DELETE FROM exposures WHERE user_id IN (SELECT user_id FROM exposures ORDER BY user_id LIMIT 1500)"
        )
    third = project.run(actor="eve").results[0]
    seen = third.closer.peeking
    assert seen is not None
    assert [look.units for look in seen.looks] == [3000, 1500]
    assert seen.error == pytest.approx(0.083, abs=0.001)  # two looks: Armitage, McPherson, Rowe 1969, table 2
    assert check(third, "peeking").status == "warn"
    assert "ada" in check(third, "peeking").detail
    assert check(third, "planned_stop").status == "warn"
    assert project.verify("x").equal


@pytest.mark.parametrize(
    ("stop", "kind"),
    [
        ("{rule: always_valid, tightest_at: 2000}", "always-valid"),
        ("{rule: group_sequential, n: 6000, looks: 4}", "repeated"),
    ],
)
def test_intervals_for_many_looks_are_wider_and_say_so(tmp_path: Path, stop: str, kind: str) -> None:
    once = the(only_result(make_shop(tmp_path / "a", experiment(""))[0]))
    found = the(only_result(make_shop(tmp_path / "b", experiment(f"        stop: {stop}"))[0]))
    assert found.interval_kind == kind
    assert found.value == pytest.approx(once.value, rel=1e-12)
    assert found.high - found.low > once.high - once.low
    assert (found.p_value <= 0.05) == (found.low > 0 or found.high < 0)


# ---------------------------------------------------------------- for whom


def test_a_flip_of_sign_is_found_and_leads(tmp_path: Path) -> None:
    project, shop = make_shop(tmp_path, experiment("        adjust: cuped\n        segments: [loyalty, device]"))
    result = only_result(project)
    by = {s.attribute: s for s in result.closer.segments}
    assert by["loyalty"].flip == "shown"
    assert "Sign flip" in result.finding
    assert check(result, "sign_flip").status == "warn"
    returning = shop.tenure >= 90
    for row in by["loyalty"].rows:
        inside = returning if row.segment == "returning customers" else ~returning
        assert row.n == {
            "new": int((inside & (shop.arm == "new")).sum()),
            "old": int((inside & (shop.arm == "old")).sum()),
        }
        assert row.difference is not None
        value, _ = regressed(shop.after[inside], shop.before[inside][:, None], shop.arm[inside])
        assert row.difference.value == pytest.approx(value, rel=1e-8)
        assert row.pooled is not None
    raw = [row.raw_p_value for s in result.closer.segments for row in s.rows]
    corrected = [row.p_value for s in result.closer.segments for row in s.rows]
    assert corrected == pytest.approx(multipletests(raw, method="holm")[1])
    assert by["device"].flip == "none"
    estimates = [e for e in result.estimates if e.segment == "loyalty=new customers"]
    assert len(estimates) == 1


def test_classes_by_what_was_spent_before(tmp_path: Path) -> None:
    project, shop = make_shop(tmp_path, experiment("        segments: [spent]"))
    (table,) = only_result(project).closer.segments
    high = shop.before >= np.quantile(shop.before, 0.5)
    rows = {row.segment: row for row in table.rows}
    assert sum(rows["high spenders"].n.values()) == pytest.approx(high.sum(), abs=2)


def test_ten_thousand_classes_are_refused_by_name(tmp_path: Path) -> None:
    project, _ = make_shop(tmp_path, experiment("        segments: [user_id]"))
    result = only_result(project)
    assert not result.closer.segments
    (refusal,) = [r for r in result.refusals if "segments" in r.name]
    assert "3,000" in refusal.reason


def test_small_classes_are_hidden_two_at_a_time(tmp_path: Path) -> None:
    extra = "UPDATE exposures SET device = 'watch' WHERE user_id IN ('u1','u2','u3','u4')"
    project, _ = make_shop(
        tmp_path, experiment("        segments: [device]"), extra=extra, root="defaults: {min_cell: 20}\n"
    )
    (table,) = only_result(project).closer.segments
    hidden = {row.segment for row in table.rows if row.difference is None}
    assert hidden == {"watch", "tablet"}
    assert all(not row.n for row in table.rows if row.segment == "watch")


# ---------------------------------------------------------------- units


def test_clusters_are_the_units_of_the_assignment(tmp_path: Path) -> None:
    extra = "UPDATE exposures SET arm = CASE WHEN hash(account_id) % 2 = 0 THEN 'new' ELSE 'old' END"
    project, shop = make_shop(tmp_path, experiment("        cluster: account"), extra=extra)
    result = only_result(project)
    with duckdb.connect(str(tmp_path / "data.duckdb"), read_only=True) as connection:
        arms = dict(connection.execute("SELECT user_id, arm FROM exposures").fetchall())
    treated = np.array([arms[f"u{i}"] == "new" for i in range(len(shop.arm))], dtype=float)
    fit = sm.OLS(shop.after, sm.add_constant(treated)).fit(cov_type="cluster", cov_kwds={"groups": shop.account})
    found = the(result)
    assert found.value == pytest.approx(fit.params[1], rel=1e-9)
    assert found.uncertainty.se == pytest.approx(fit.bse[1], rel=0.01)  # n/(n-1) over arms against G/(G-1) over all
    assert found.n == {"new": int(treated.sum()), "old": int((1 - treated).sum())}
    assert check(result, "clusters").status == "pass"


def test_a_trigger_narrows_to_those_it_could_touch_and_widens_again(tmp_path: Path) -> None:
    project, shop = make_shop(tmp_path, experiment("        trigger: seen"))
    result = only_result(project)
    assert sum(the(result).n.values()) == int(shop.triggered.sum())
    assert result.left_out["exposed units that never triggered"] == int((~shop.triggered).sum())
    (diluted,) = result.closer.diluted
    assert diluted.share.value == pytest.approx(shop.triggered.mean())
    assert diluted.difference.value == pytest.approx(the(result).value * shop.triggered.mean())


def test_a_switchback_compares_periods(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    definitions = """
    sources:
      slots:  {table: slots, time: t, entity: {region: region}}
      orders: {table: orders, time: t, entity: {region: region}}
    metrics:
      revenue: {kind: sum, from: orders, column: amount}
    experiments:
      x:
        type: switchback
        assignment: {source: slots, variant: arm, control: old}
        period: 1h
        washout: 10m
        primary: revenue
    """
    from tests.builders import make_project

    slots, orders, total = [], [], {"new": [], "old": []}
    for region in ("north", "south"):
        for hour in range(200):
            t = f"epoch_us(TIMESTAMP '2026-05-01') + {hour}::BIGINT * 3600000000"
            arm = "new" if rng.random() < 0.5 else "old"
            slots.append(f"('{region}', make_timestamp({t} + 5000000), '{arm}')")
            inside = 0.0
            for minute in rng.integers(0, 60, 12):
                amount = round(float(rng.exponential(10) + (2 if arm == "new" else 0)), 2)
                orders.append(f"('{region}', make_timestamp({t} + {minute}::BIGINT * 60000000), {amount})")
                inside += amount if minute >= 10 else 0.0
            total[arm].append(inside)
    tables = f"""
        CREATE TABLE slots (region VARCHAR, t TIMESTAMP, arm VARCHAR);
        CREATE TABLE orders (region VARCHAR, t TIMESTAMP, amount DOUBLE);
        INSERT INTO slots VALUES {", ".join(slots)}, ('north', '2026-05-20', 'old');
        INSERT INTO orders VALUES {", ".join(orders)}, ('nowhere', '2026-06-01', 1);
    """
    result = only_result(make_project(tmp_path, definitions, tables))
    total["old"].append(0.0)
    found = the(result)
    assert found.n == {arm: len(values) for arm, values in total.items()}
    expected = stats.ttest_ind(total["new"], total["old"], equal_var=False)
    assert found.value == pytest.approx(np.mean(total["new"]) - np.mean(total["old"]), rel=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)


# ---------------------------------------------------------------- time and place


def test_an_effect_that_wears_off_is_called_that(tmp_path: Path) -> None:
    project, shop = make_shop(tmp_path, experiment("        over_time: {every: 2d}"))
    (series,) = only_result(project).closer.over_time
    assert series.axis == "days since exposure"
    assert len(series.points) == 7
    for k, point in enumerate(series.points):
        gap = shop.by_step[shop.arm == "new", k].mean() - shop.by_step[shop.arm == "old", k].mean()
        assert point.difference.value == pytest.approx(gap, rel=1e-8, abs=1e-9)
    assert series.trend_p is not None
    total = sum(p.difference.value for p in series.points)
    assert total == pytest.approx(the(only_result(project)).value, rel=1e-8)


def test_a_holdouts_total_grows_and_holds_no_open_week(tmp_path: Path) -> None:
    body = "        type: holdout\n        starts: 2026-03-01\n        cumulative: {every: 7d}"
    project, shop = make_shop(tmp_path, experiment(body).replace("window: 14d", ""))
    (series,) = [s for s in only_result(project).closer.over_time if s.axis == "calendar"]
    assert series.band == "simultaneous"
    assert series.points[-1].end <= "2026-04-30"
    assert series.left_out > 0
    gap = shop.after[shop.arm == "new"].mean() - shop.after[shop.arm == "old"].mean()
    last = series.points[-1].difference
    assert last.value == pytest.approx(gap * (shop.arm == "new").sum(), rel=1e-6)
    assert last.low < last.value < last.high


def test_what_recommendations_took_from_search(tmp_path: Path) -> None:
    paths = ", ".join(PATHS)
    body = f"        cannibalisation: {{within: orders, by: path, value: amount, paths: [{paths}]}}"
    project, shop = make_shop(tmp_path, experiment(body))
    result = only_result(project)
    (found,) = result.closer.cannibalisation
    gaps = shop.by_path[shop.arm == "new"].mean(axis=0) - shop.by_path[shop.arm == "old"].mean(axis=0)
    assert found.gained.value == pytest.approx(gaps[0], rel=1e-9)
    assert found.others.value == pytest.approx(gaps[1:].sum(), rel=1e-9)
    assert found.net.value == pytest.approx(the(result).value, rel=1e-9)
    level = shop.by_path[shop.arm == "new", 0].mean()
    assert found.anyway is not None
    assert found.anyway.value == pytest.approx(1 - gaps.sum() / level, rel=1e-9)
    assert found.anyway.low < found.anyway.value < found.anyway.high


def test_retention_and_quantiles(tmp_path: Path) -> None:
    project, _ = make_shop(tmp_path, experiment("        secondary: [back, p90]"))
    result = only_result(project)
    with duckdb.connect(str(tmp_path / "data.duckdb"), read_only=True) as connection:
        rows = connection.execute(
            "SELECT e.arm, avg(CASE WHEN EXISTS (SELECT 1 FROM sessions s WHERE s.user_id = e.user_id AND s.t >= e.t + INTERVAL 7 DAY"
            " AND s.t < e.t + INTERVAL 14 DAY) THEN 1.0 ELSE 0 END) FROM exposures e GROUP BY 1"
        ).fetchall()
        quantiles = connection.execute(
            "SELECT e.arm, quantile_cont(o.amount, 0.9) FROM orders o JOIN exposures e USING (user_id)"
            " WHERE o.t >= e.t AND o.t < e.t + INTERVAL 14 DAY GROUP BY 1"
        ).fetchall()
    share, q = dict(rows), dict(quantiles)
    assert the(result, "back").value == pytest.approx(share["new"] - share["old"], rel=1e-9)
    found = the(result, "p90", "difference in quantiles")
    assert found.value == pytest.approx(q["new"] - q["old"], rel=1e-9)
    assert found.low < found.value < found.high


# ---------------------------------------------------------------- other experiments, other readings


def test_two_experiments_on_the_same_users(tmp_path: Path) -> None:
    extra = "CREATE TABLE other AS SELECT user_id, t, CASE WHEN hash(user_id, 1) % 2 = 0 THEN 'b' ELSE 'a' END AS arm FROM exposures"
    body = """        interactions: [y]
      y:
        assignment: {table: other, time: t, entity: {user: user_id}, variant: arm, control: a}
        primary: revenue
"""
    project, shop = make_shop(tmp_path, experiment(body), extra=extra)
    run = project.run(["x"], record=False)
    assert [r.name for r in run.results] == ["experiments.x"]
    (found,) = run.results[0].closer.interactions
    assert found.both == len(shop.arm)
    with duckdb.connect(str(tmp_path / "data.duckdb"), read_only=True) as connection:
        other = dict(connection.execute("SELECT user_id, arm FROM other").fetchall())
    b = np.array([other[f"u{i}"] == "b" for i in range(len(shop.arm))])
    new = shop.arm == "new"
    expected = (shop.after[new & b].mean() - shop.after[~new & b].mean()) - (
        shop.after[new & ~b].mean() - shop.after[~new & ~b].mean()
    )
    assert found.difference is not None
    assert found.difference.value == pytest.approx(expected, rel=1e-8)
    table = [[(new & b).sum(), (new & ~b).sum()], [(~new & b).sum(), (~new & ~b).sum()]]
    assert found.assignment_p == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue, rel=1e-9)


def test_a_handful_in_both_experiments_is_not_counted_out_loud(tmp_path: Path) -> None:
    extra = "CREATE TABLE other AS SELECT user_id, t, CASE WHEN hash(user_id, 1) % 2 = 0 THEN 'b' ELSE 'a' END AS arm FROM exposures LIMIT 7"
    body = """        interactions: [y]
      y:
        assignment: {table: other, time: t, entity: {user: user_id}, variant: arm, control: a}
        primary: revenue
"""
    root = "defaults: {min_cell: 20}\n"
    project, _ = make_shop(tmp_path, experiment(body), extra=extra, root=root)
    (found,) = project.run(["x"], record=False).results[0].closer.interactions
    assert found.both == 0
    assert found.difference is None
    assert found.assignment_p is None
    assert "7" not in found.sentence


def test_a_bayesian_reading_stands_apart(tmp_path: Path) -> None:
    project, _ = make_shop(tmp_path, experiment("        adjust: cuped\n        bayes: {mean: 0, sd: 0.05}"))
    result = only_result(project)
    (posterior,) = result.closer.bayes
    lift = the(result, estimand="relative lift")
    assert 0 < abs(posterior.lift.value) < abs(lift.value)  # drawn towards the prior
    assert 0 < posterior.chance_to_beat < 1
    assert posterior.expected_loss > 0
    credible = the(result, estimand="relative lift, posterior")
    assert credible.interval_kind == "credible"
    assert credible.p_value is None
    assert "credible" not in result.finding
    assert all("credible" not in r.sentence and "chance" not in r.sentence for r in result.readings)


def test_negative_revenue_and_heavy_tails_are_named(tmp_path: Path) -> None:
    extra = """
        UPDATE orders SET amount = -amount * 40 WHERE user_id = 'u7' AND t > (SELECT t FROM exposures WHERE user_id = 'u7');
        INSERT INTO orders SELECT user_id, t + INTERVAL 1 HOUR, 250000, 'search' FROM exposures WHERE user_id = 'u8'
    """
    project, _ = make_shop(tmp_path, experiment(""), extra=extra)
    result = only_result(project)
    assert check(result, "negative_values").status == "warn"
    assert check(result, "heavy_tail").status == "warn"
    (capped,) = result.closer.capping
    assert capped.share > 0.5
    assert capped.capped.high - capped.capped.low < capped.plain.high - capped.plain.low


def test_a_covariate_from_the_future_is_refused(tmp_path: Path) -> None:
    extra = "CREATE TABLE later AS SELECT user_id, t + INTERVAL 3 DAY AS t, 1.0 AS score FROM exposures"
    definitions = experiment("        adjust: {attributes: [score]}").replace(
        "    attributes:\n", "    attributes:\n      score: {from: later, column: score}\n"
    )
    sources = "      later:     {table: later, time: t, entity: {user: user_id}}\n"
    project, _ = make_shop(tmp_path, definitions, extra=extra, sources=sources)
    refusal = only_refusal(project)
    assert "score" in refusal.reason
    assert "after exposure" in refusal.reason


def test_results_with_everything_are_plain_json(tmp_path: Path) -> None:
    import json

    body = """        secondary: [ordered, visits, aov, back]
        adjust: cuped
        segments: [loyalty, device]
        over_time: {every: 7d}
        cannibalisation: {within: orders, by: path, value: amount, paths: [recommendations, search]}
        bayes: {sd: 0.1}
"""
    project, _ = make_shop(tmp_path, experiment(body))
    result = only_result(project)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert '"segments"' in text
    assert result.closer.overturn


# ---------------------------------------------------------------- bad input


def test_exposure_logged_after_the_outcome_is_named(tmp_path: Path) -> None:
    extra = "UPDATE exposures SET t = (SELECT min(o.t) + INTERVAL 5 MINUTE FROM orders o WHERE o.user_id = exposures.user_id AND o.t > exposures.t) WHERE arm = 'new'"
    project, _ = make_shop(tmp_path / "late", experiment(""), extra=extra)
    found = check(only_result(project), "exposure_order")
    assert found.status == "warn"
    assert "hour before exposure" in found.detail
    project, _ = make_shop(tmp_path / "fine", experiment(""))
    assert check(only_result(project), "exposure_order").status == "pass"


def test_clocks_with_and_without_a_zone_are_named(tmp_path: Path) -> None:
    extra = "ALTER TABLE exposures ALTER t TYPE TIMESTAMPTZ USING t AT TIME ZONE 'UTC'"
    project, _ = make_shop(tmp_path, experiment(""), extra=extra)
    found = check(only_result(project), "clock")
    assert found.status == "warn"
    assert "orders" in found.detail
    assert "timezone" in found.detail


def test_clusters_of_one_and_units_without_one_are_counted(tmp_path: Path) -> None:
    extra = """
        UPDATE exposures SET arm = CASE WHEN hash(account_id) % 2 = 0 THEN 'new' ELSE 'old' END;
        UPDATE exposures SET account_id = NULL WHERE user_id IN ('u1', 'u2');
        UPDATE exposures SET account_id = 100000 WHERE user_id = 'u3';
        UPDATE exposures SET account_id = 100001 WHERE user_id IN ('u4', 'u5');
        UPDATE exposures SET arm = 'new' WHERE user_id = 'u4'; UPDATE exposures SET arm = 'old' WHERE user_id = 'u5';
    """
    project, _ = make_shop(tmp_path, experiment("        cluster: account"), extra=extra)
    result = only_result(project)
    found = check(result, "clusters")
    assert found.status == "warn"
    assert "1 of them with one unit" in found.detail
    assert result.left_out["units without a cluster"] == 2
    assert result.left_out["clusters seen in several arms"] == 1


def test_more_metrics_than_units(tmp_path: Path) -> None:
    metrics = "".join(
        f'      m{i}: {{kind: count, from: orders, where: "amount > {i}", window: 14d}}\n' for i in range(30)
    )
    body = f"        secondary: [{', '.join(f'm{i}' for i in range(30))}]\n        adjust: {{cuped: true, attributes: [device, tenure]}}"
    definitions = experiment(body).replace("    attributes:\n", metrics + "    attributes:\n", 1)
    project, _ = make_shop(tmp_path, definitions, extra="DELETE FROM exposures WHERE hash(user_id) % 200 <> 0")
    result = only_result(project)
    assert sum(the(result).n.values()) < 31
    unadjusted = [c for c in result.checks if c.name == "covariates" and "not adjusted" in c.detail]
    assert unadjusted
    assert check(result, "few_units").status == "warn"


def test_an_arm_nobody_declared_is_counted(tmp_path: Path) -> None:
    extra = "UPDATE exposures SET arm = 'ghost' WHERE user_id IN ('u1', 'u2')"
    definitions = experiment("        segments: [device]\n        adjust: cuped").replace(
        "control: old}", "control: old, split: {new: 0.5, old: 0.5}}"
    )
    result = only_result(make_shop(tmp_path, definitions, extra=extra)[0])
    assert "'ghost' (2)" in check(result, "unknown_arms").detail

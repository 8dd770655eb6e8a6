"""What was drawn at random is what is counted: clusters where whole clusters are assigned, everyone assigned under a trigger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from payoff.stats import compare
from tests.methods.shop import PATHS, make_shop
from tests.methods.test_closer import experiment, the
from tests.methods.test_experiment import check, only_result

BY_ACCOUNT = "UPDATE exposures SET arm = CASE WHEN hash(account_id) % 2 = 0 THEN 'new' ELSE 'old' END"


def test_clusters_of_uneven_size_are_no_sample_ratio_mismatch(tmp_path: Path) -> None:
    # one account of 600 users: by users p is far below 0.001, by accounts nothing is amiss
    giant = f"UPDATE exposures SET account_id = 1 WHERE hash(user_id) % 5 = 0; {BY_ACCOUNT}"
    result = only_result(make_shop(tmp_path, experiment("        cluster: account"), extra=giant)[0])
    counts = the(result).n
    assert compare.srm(counts, dict.fromkeys(counts, 1.0)).p_value < 1e-6
    found = check(result, "srm")
    assert found.status == "pass"
    assert "accounts" in found.detail
    assert result.verdict != "withheld"


def test_clusters_of_uneven_number_are(tmp_path: Path) -> None:
    lost = f"{BY_ACCOUNT}; DELETE FROM exposures WHERE arm = 'new' AND hash(account_id) % 3 <> 0"
    result = only_result(make_shop(tmp_path, experiment("        cluster: account"), extra=lost)[0])
    assert check(result, "srm").status == "fail"


def test_a_design_effect_takes_the_false_alarms_out_of_counts_of_clustered_units() -> None:
    rng = np.random.default_rng(11)
    sizes = 1 + rng.poisson(9, (1_000, 400))
    arm, has = (
        rng.random(sizes.shape) < 0.5,
        rng.random(sizes.shape) < 0.5,
    )  # a cluster's units all have a value, or none
    plain = corrected = 0
    for m, a, h in zip(sizes, arm, has, strict=True):
        having, every = (
            {"a": int(m[x & y].sum()), "b": int(m[~x & y].sum())} for x, y in ((a, h), (a, np.ones(400, bool)))
        )
        effect = float((m**2).sum() / m.sum())
        plain += compare.missingness(having, every).p_value < 0.05
        corrected += compare.missingness(having, every, effect).p_value < 0.05
    assert plain > 400
    assert 25 <= corrected <= 75  # 50 expected, standard deviation 7


def test_an_arm_that_changes_who_triggers_fails(tmp_path: Path) -> None:
    body = experiment("        trigger: seen")
    result = only_result(make_shop(tmp_path / "fair", body)[0])
    assert check(result, "srm").status == "pass"
    assert "as many trigger in each arm" in check(result, "srm").detail
    # too many assigned to one arm, fewer of whom trigger: those who triggered are as many in both
    hidden = """
        DELETE FROM seen WHERE user_id IN (SELECT user_id FROM exposures WHERE arm = 'new' AND hash(user_id) % 3 = 0);
        DELETE FROM exposures WHERE arm = 'old' AND hash(user_id || 'x') % 3 = 0
    """
    result = only_result(make_shop(tmp_path / "hidden", body, extra=hidden)[0])
    counts = the(result).n
    assert compare.srm(counts, dict.fromkeys(counts, 1.0)).p_value > 0.001
    assert check(result, "srm").status == "fail"
    assert result.verdict == "withheld"


def test_post_stratified_clusters_are_of_their_units(tmp_path: Path) -> None:
    whole = f"{BY_ACCOUNT}; UPDATE exposures SET device = CASE WHEN account_id % 3 = 0 THEN 'desktop' ELSE 'mobile' END"
    body = experiment("        cluster: account\n        adjust: {post_stratify: device}")
    result = only_result(make_shop(tmp_path / "whole", body, extra=whole)[0])
    raw = the(result, estimand="difference in means, unadjusted")
    assert the(result).value == pytest.approx(raw.value, abs=raw.uncertainty.se)
    assert the(result).uncertainty.se == pytest.approx(raw.uncertainty.se, rel=0.1)
    across = only_result(make_shop(tmp_path / "across", body, extra=BY_ACCOUNT)[0])
    assert not [e for e in across.estimates if e.estimand == "difference in means, unadjusted"]
    assert any("lies whole in one class" in c.detail for c in across.checks)


def test_displacement_between_clusters_is_of_a_unit(tmp_path: Path) -> None:
    body = f"        cluster: account\n        cannibalisation: {{within: orders, by: path, value: amount, paths: [{', '.join(PATHS)}]}}"
    result = only_result(make_shop(tmp_path, experiment(body), extra=BY_ACCOUNT)[0])
    net = next(e for e in result.estimates if e.estimand == "difference in means, net")
    assert net.value == pytest.approx(the(result).value, rel=1e-9)  # revenue over the same window
    assert net.uncertainty.se == pytest.approx(the(result).uncertainty.se, rel=1e-6)
    assert net.n == the(result).n


def test_steps_of_clusters_have_the_clusters_degrees_of_freedom(tmp_path: Path) -> None:
    from scipy import stats

    few = "UPDATE exposures SET account_id = account_id % 24; UPDATE exposures SET arm = CASE WHEN account_id % 2 = 0 THEN 'new' ELSE 'old' END"
    body = experiment("        cluster: account\n        over_time: {every: 7d}")
    (series,) = only_result(make_shop(tmp_path, body, extra=few)[0]).closer.over_time
    whole = only_result(make_shop(tmp_path / "b", experiment("        cluster: account"), extra=few)[0])
    assert check(whole, "clusters").statistic == 12
    point = series.points[0].difference
    wide, narrow = stats.t.ppf(0.975, 11), stats.t.ppf(0.975, 2_000)
    assert point.high - point.low == pytest.approx(2 * wide * _step_se(tmp_path), rel=1e-3)
    assert wide > 1.1 * narrow


def _step_se(folder: Path) -> float:
    """Of the first step's difference, by hand: the delta method over 12 accounts an arm."""
    import duckdb

    with duckdb.connect(str(folder / "data.duckdb"), read_only=True) as connection:
        rows = connection.execute(
            "SELECT e.account_id, sum(x.s), count(*) FROM exposures e, LATERAL (SELECT coalesce(sum(o.amount), 0) AS s FROM"
            " orders o WHERE o.user_id = e.user_id AND o.t >= e.t AND o.t < e.t + INTERVAL 7 DAY) x GROUP BY 1"
        ).fetchall()
    v = 0.0
    for odd in (0, 1):
        total, size = np.array([(s, n) for a, s, n in rows if a % 2 == odd], dtype=float).T
        v += np.var(total - total.sum() / size.sum() * size, ddof=1) / len(size) / size.mean() ** 2
    return float(np.sqrt(v))

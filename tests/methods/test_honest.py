"""Each figure means what its sentence says: verdicts over several primaries, alarms at many looks, checks on clean data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from payoff.methods.experiment.rule import Rule
from payoff.methods.experiment.words import finding, verdict_of
from payoff.result import Closer, MetricReading
from payoff.stats import sequential
from tests.methods.shop import PATHS, make_shop
from tests.methods.test_closer import experiment, the
from tests.methods.test_experiment import DECISIONS, check, decisions_project, only_result

ALWAYS = "        stop: {rule: always_valid}\n"


def read(metric: str, state: str, role: Any = "primary", contrast: str = "new vs old") -> MetricReading:
    return MetricReading(metric, contrast, role, "up", state, f"{metric} {state}", None, None, None)  # type: ignore[arg-type]


# ---------------------------------------------------------------- verdicts


def test_a_gain_in_one_primary_does_not_hide_a_harm_in_another() -> None:
    both = (read("orders", "improved"), read("margin", "harmed"))
    assert verdict_of(both, []) == "not conclusive"
    assert "Against it: margin harmed" in finding(both, [], Closer())
    assert verdict_of((read("orders", "improved"), read("margin", "not conclusive")), []) == "positive"
    assert verdict_of((read("orders", "improved"), read("margin", "harmed", "secondary")), []) == "positive"
    assert verdict_of((*both, read("orders", "improved", contrast="third vs old")), []) == "positive"


def test_the_expected_loss_is_over_all_cases(tmp_path: Path) -> None:
    project, _ = make_shop(tmp_path, experiment("        bayes: {sd: 0.05}"))
    (posterior,) = only_result(project).closer.bayes
    sd = (posterior.lift.high - posterior.lift.low) / 2 / stats.norm.ppf(0.975)
    # the integral of the loss over all lifts, not over those "where it is worse": that is larger by one over their chance
    loss = integrate.quad(lambda x: -x * stats.norm.pdf(x, posterior.lift.value, sd), -1.0, 0.0, points=[-sd])[0]
    assert posterior.expected_loss == pytest.approx(loss, rel=1e-4)
    assert "on average, where it is better counted as no loss" in posterior.sentence


# ---------------------------------------------------------------- many looks


def looks(rng: np.random.Generator, classes: int, times: np.ndarray[Any, Any], runs: int) -> np.ndarray[Any, Any]:
    """Z of each class at each look, (runs, looks, classes), with no effect anywhere."""
    steps = np.sqrt(np.diff(times, prepend=0.0))[None, :, None] * rng.standard_normal((runs, len(times), classes))
    return np.asarray(np.cumsum(steps, axis=1) / np.sqrt(times)[None, :, None])


def test_tests_of_several_effects_hold_at_every_look() -> None:
    n = np.geomspace(500, 100_000, 60)
    z = looks(np.random.default_rng(2), 5, n, 1_500)
    q = ((z - z.mean(axis=2, keepdims=True)) ** 2).sum(axis=2)
    fixed = stats.chi2.sf(q, 4)
    assert (fixed.min(axis=1) <= 0.05).mean() > 0.15  # what one-look tests do when read at every look
    rule = Rule("always_valid", 0.05)
    valid = np.array(
        [
            [rule.p_joint(x, 4, p, round(m)) for x, p, m in zip(*row, n, strict=True)]
            for row in zip(q, fixed, strict=True)
        ]
    )
    assert (valid.min(axis=1) <= 0.05).mean() < 0.05
    rule = Rule("group_sequential", 0.05)
    times = np.array([0.25, 0.5, 0.75, 1.0])
    z = looks(np.random.default_rng(3), 5, times, 1_500)
    q = ((z - z.mean(axis=2, keepdims=True)) ** 2).sum(axis=2)
    found = np.zeros(len(q), dtype=bool)
    for k in range(4):
        rule = replace(rule, information=tuple(times[: k + 1]))
        found |= np.array([rule.p_joint(x, 4, stats.chi2.sf(x, 4), 1) for x in q[:, k]]) <= 0.05
    assert 0.02 < found.mean() < 0.065  # 0.05 by Bonferroni at most; standard error 0.006


def test_one_degree_of_freedom_is_the_difference_itself() -> None:
    for z in (0.5, 2.0, 4.5):
        assert sequential.always_valid_joint_p(z * z, 1, 3_000, 10_000, 0.05) == pytest.approx(
            sequential.always_valid_p(z, 1.0, 3_000, 10_000, 0.05)
        )
    assert sequential.spent_p(0.013, (1.0,), "obrien_fleming") == pytest.approx(0.013)
    assert sequential.spent_p(0.013, (0.5, 1.0), "pocock") > 0.013
    assert sequential.spent_p(0.013, (0.5, 1.0), "pocock") >= sequential.repeated_p(
        float(-stats.norm.ppf(0.0065)), (0.5, 1.0), "pocock"
    )


def test_closer_looks_are_as_wide_as_the_stopping_rule(tmp_path: Path) -> None:
    paths = ", ".join(PATHS)
    body = (
        f"        type: holdout\n        starts: 2026-03-01\n        cumulative: {{every: 7d}}\n        over_time: {{every: 2d}}\n"
        f"        segments: [loyalty]\n        cannibalisation: {{within: orders, by: path, value: amount, paths: [{paths}]}}\n"
    )
    fixed = only_result(make_shop(tmp_path / "fixed", experiment(body))[0])
    always = only_result(make_shop(tmp_path / "always", experiment(body + ALWAYS))[0])
    ratio = (the(always).high - the(always).low) / (the(fixed).high - the(fixed).low)
    assert ratio > 1.3
    for a, f in zip(always.closer.over_time, fixed.closer.over_time, strict=True):
        assert a.trend_p is None or (f.trend_p is not None and a.trend_p > f.trend_p)
        for p, q in zip(a.points, f.points, strict=True):
            assert p.difference.high - p.difference.low > 1.15 * (q.difference.high - q.difference.low)
    assert always.closer.segments[0].interaction_p > fixed.closer.segments[0].interaction_p
    assert always.closer.segments[0].flip_p > fixed.closer.segments[0].flip_p  # type: ignore[operator]
    one, other = always.closer.cannibalisation[0].anyway, fixed.closer.cannibalisation[0].anyway
    assert one is not None
    assert other is not None
    assert one.high - one.low > 1.3 * (other.high - other.low)


# ---------------------------------------------------------------- checks


def test_open_windows_have_not_come_yet(tmp_path: Path) -> None:
    stop = "        primary: bought\n        stop: {rule: fixed, n: 390}\n"
    definitions = DECISIONS.replace("        primary: bought\n", stop)
    assert (
        check(only_result(decisions_project(tmp_path / "a", definitions=definitions)), "planned_stop").status == "pass"
    )
    late = "UPDATE decisions SET decided_at = (SELECT max(t) FROM events) WHERE hash(visitor_id) % 3 = 0"
    result = only_result(decisions_project(tmp_path / "b", late, definitions=definitions))
    found = check(result, "planned_stop")
    assert found.status == "warn"
    assert "others is still open" in found.detail


def test_the_size_in_is_judged_as_it_is_planned(tmp_path: Path) -> None:
    stop = "        stop: {rule: fixed, mde: 1.0}"
    one = check(only_result(make_shop(tmp_path / "one", experiment(stop))[0]), "planned_size")
    both = experiment(stop).replace("primary: revenue", "primary: [revenue, visits]")
    two = check(only_result(make_shop(tmp_path / "two", both)[0]), "planned_size")
    z = stats.norm.ppf
    assert two.statistic / one.statistic == pytest.approx((z(0.9875) + z(0.8)) / (z(0.975) + z(0.8)), rel=1e-3)


def test_few_events_before_exposure_are_no_alarm_and_their_absence_is(tmp_path: Path) -> None:
    from payoff.stats import adjust, compare
    from payoff.stats.moments import Moments

    def ones(k: int, n: int) -> Moments:
        return Moments(n, np.array([k / n]), np.array([[k * (n - k) / n / (n - 1)]]))

    # 1 where 5 were to be expected: each arm's own variance calls that p < 0.0001
    rare = {"treated": ones(500, 100_000), "held": ones(1, 1_000)}
    welch = compare.difference(compare.mean_level(rare["treated"]), compare.mean_level(rare["held"]))
    assert welch.p_value() < 0.001 < adjust.balance(rare, 1).p_value  # type: ignore[union-attr]
    # everything before exposure in one arm, nothing in the other
    before = "INSERT INTO orders SELECT user_id, t - INTERVAL 5 MINUTE, 20.0, 'search' FROM exposures WHERE arm = 'new' AND hash(user_id) % 5 = 0"
    nothing = "DELETE FROM orders USING exposures e WHERE orders.user_id = e.user_id AND e.arm = 'old' AND orders.t < e.t AND orders.t > e.t - INTERVAL 1 HOUR"
    found = check(only_result(make_shop(tmp_path, experiment(""), extra=f"{before}; {nothing}")[0]), "exposure_order")
    assert found.status == "warn"
    assert "differ there" in found.detail


def test_those_the_treatment_chose_do_not_condemn_the_assignment(tmp_path: Path) -> None:
    # the treatment makes those buy who spent a lot before: buyers differ before exposure, everyone does not
    chosen = """
        DELETE FROM orders USING exposures e WHERE orders.user_id = e.user_id AND orders.t >= e.t AND e.arm = 'new' AND e.user_id IN
            (SELECT o.user_id FROM orders o JOIN exposures x ON x.user_id = o.user_id WHERE o.t < x.t GROUP BY 1 HAVING sum(o.amount) < 60)
    """
    body = experiment("        adjust: cuped").replace("primary: revenue", "primary: aov")
    result = only_result(make_shop(tmp_path, body, extra=chosen)[0])
    found = check(result, "balance")
    assert found.statistic < 0.001
    assert found.status == "warn"
    assert "the treatment may have changed who has one" in found.detail


def test_one_units_share_is_of_its_own_arm(tmp_path: Path) -> None:
    one = "INSERT INTO orders SELECT user_id, t + INTERVAL 1 HOUR, 400, 'search' FROM exposures WHERE user_id = 'u8'"
    project, shop = make_shop(tmp_path, experiment(""), extra=one)
    (capped,) = only_result(project).closer.capping
    after = shop.after.copy()
    after[8] += 400
    share = {}
    for arm in ("new", "old"):
        y = after[shop.arm == arm]
        share[arm] = (y.max() - y.mean()) ** 2 / (len(y) - 1) / y.var(ddof=1)
    assert capped.share == pytest.approx(max(share.values()), rel=1e-6)


def test_a_few_units_without_a_tail_have_none(tmp_path: Path) -> None:
    body = experiment("").replace("primary: revenue", "primary: visits")
    few = "DELETE FROM exposures WHERE hash(user_id) % 30 <> 0"
    result = only_result(make_shop(tmp_path, body, extra=few)[0])
    assert sum(the(result, "visits").n.values()) < 150
    assert check(result, "heavy_tail").status == "pass"


def test_what_information_is_counted_in_is_said(tmp_path: Path) -> None:
    project, _ = make_shop(
        tmp_path, experiment("        stop: {rule: group_sequential, n: 6000, looks: 5}\n        segments: [loyalty]")
    )
    result = only_result(project)
    assert any("counted as those of revenue" in a.text for a in result.assumptions)


# ---------------------------------------------------------------- words over time, programmes, money


def test_a_trend_through_zero_neither_grows_nor_wears_off_in_words(tmp_path: Path) -> None:
    # as much more in the first week as less in the second
    turned = """
        UPDATE orders SET amount = amount * CASE WHEN orders.t < e.t + INTERVAL 7 DAY THEN 1.25 ELSE 0.4 END
        FROM exposures e WHERE orders.user_id = e.user_id AND e.arm = 'new' AND orders.t >= e.t
    """
    result = only_result(make_shop(tmp_path, experiment("        over_time: {every: 2d}"), extra=turned)[0])
    assert the(result).low < 0 < the(result).high
    (series,) = result.closer.over_time
    assert series.trend_p is not None
    assert series.trend_p < 0.001
    assert "falls with time since exposure" in series.sentence
    assert "wears off" not in series.sentence


def test_a_total_that_may_be_nothing_is_not_said_to_have_been_brought(tmp_path: Path) -> None:
    body = experiment("        type: holdout\n        starts: 2026-03-01\n        cumulative: {every: 7d}")
    half = "UPDATE orders SET amount = amount * {} FROM exposures e WHERE orders.user_id = e.user_id AND e.arm = 'new' AND orders.t >= e.t"
    sentences = {}
    for factor in ("1.0", "1.5", "0.4"):
        result = only_result(make_shop(tmp_path / factor, body, extra=half.format(factor))[0])
        (series,) = result.closer.over_time
        last = series.points[-1].difference
        sentences[factor] = (last.low > 0, last.high < 0, series.sentence)
    up, down = "that they would not have brought", "than they would have in"
    for above, below, said in sentences.values():
        assert (up in said) == above
        assert (down in said) == below
        assert ("the band holds zero" in said) == (not above and not below)
    assert sentences["1.5"][0]
    assert sentences["0.4"][1]


def test_winners_by_another_rule_are_not_corrected_for_this_one(tmp_path: Path) -> None:
    from payoff.estimate import Correction
    from payoff.methods.programme import ProgrammeMethod
    from payoff.result import Result
    from tests.methods.test_programme import programme_project

    project = programme_project(tmp_path, effects=(0.0, 3.0, 4.0, 0.0))
    results: dict[str, Any] = {
        r.name.split(".")[1]: r for r in project.run(["programmes.p"], record=False).results if r.name.startswith("exp")
    }
    declared = project.spec.programmes["p"]

    def total() -> list[str]:
        found = ProgrammeMethod().answer("p", declared, results, dict.fromkeys(results, "7d"), "up", 0.95)
        assert isinstance(found, Result)
        return [e.contrast for e in found.estimates if e.estimand == "programme total, less its bias"]

    assert total() == ["shipped: e1, e2"]
    won = results["e1"]
    kept = tuple(
        replace(e, correction=Correction("holm", 9, 0.2, -1.0, e.high)) if e.estimand == "difference in means" else e
        for e in won.estimates
    )
    results["e1"] = replace(won, estimates=kept)
    assert total() == []  # z above 1.96 is no longer how winners were chosen: its sum would be of e1 too


def test_money_says_where_its_evidence_was_one_of_several_questions() -> None:
    from payoff.estimate import Correction
    from tests.test_claims import USERS, claim, estimate, priced, result

    one = replace(estimate("spend", 2.5, 1.0), correction=Correction("holm", 3, 0.04, 0.1, 4.9))
    several = replace(one, correction=Correction("holm", 3, 0.06, -0.1, 5.1))
    amount = claim("effect(spend) * population(user, 365d)")
    found = {open_: priced(amount, result(e), populations=USERS) for open_, e in ((False, one), (True, several))}
    for open_, said in found.items():
        assert any("as one of 3 it is not conclusive there" in a for a in said.assumptions) == open_
        assert any("as one of 3" in note for i in said.inputs for note in i.notes) == open_


def test_classes_are_said_to_differ_only_where_that_is_shown() -> None:
    from payoff.methods.experiment.who import _flip, _sentence
    from payoff.result import SegmentRow, Segments, Span

    rows = (
        SegmentRow("new", {}, "harmed", Span(-2.0, -3.9, -0.1), Span(-1.0, -2.0, 0.1), 0.04, 0.01),
        SegmentRow("old", {}, "not conclusive", Span(0.3, -3.0, 3.6), Span(0.0, -2.0, 2.0), 1.0, 0.8),
    )
    assert _flip(list(rows), 0.4, 0.3, 0.05) == "possible"
    table = Segments("tenure", "revenue", "b vs a", "USD", "up", rows, 1.1, 1, 0.3, "possible", 0.4, 1.0, "")
    assert "harm is shown in new alone" in _sentence(table, "b", "a", 0.05)
    assert "do differ" not in _sentence(table, "b", "a", 0.05)
    assert "do differ (p = 0.020)" in _sentence(replace(table, interaction_p=0.02), "b", "a", 0.05)

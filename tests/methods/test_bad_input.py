"""Data that no figure can be made of, or not the one asked for: the right number, or a reason that is true, and a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from payoff.ledger import compare
from payoff.methods.experiment import who
from payoff.methods.experiment.who import _Class
from payoff.report.figures import build
from payoff.report.html import page
from payoff.result import Refusal, Result
from payoff.run import Run
from payoff.stats.compare import Difference
from tests.methods.shop import make_shop
from tests.methods.test_closer import experiment, the
from tests.methods.test_experiment import check

BY_ACCOUNT = "UPDATE exposures SET arm = CASE WHEN hash(account_id) % 2 = 0 THEN 'new' ELSE 'old' END"


def answer(folder: Path, body: str = "", extra: str = "", *, users: int = 400, root: str = "", **more: Any) -> Run:
    """The run of the shop's experiment ``x``; whatever came out is valid JSON and can be shown as a page."""
    project, _ = make_shop(folder, experiment(body), users=users, extra=extra, root=root, **more)
    run = project.run(record=False)
    json.dumps(run.to_dict(), allow_nan=False)
    page(build(run.to_dict()))
    return run


def result_of(run: Run, name: str = "experiments.x") -> Result:
    return next(r for r in run.results if r.name == name)


def refused(run: Run, part: str) -> Refusal:
    return next(r for r in (*run.refusals, *(r for x in run.results for r in x.refusals)) if part in r.reason)


# ---------------------------------------------------------------- reasons that are true


def test_a_quantile_of_nothing_does_not_blame_the_window(tmp_path: Path) -> None:
    run = answer(tmp_path, "        secondary: [visits, p90]", "UPDATE orders SET amount = NULL")
    reasons = [r.reason for r in result_of(run).refusals if r.name.endswith("p90")]
    assert reasons == ["no unit of arm 'old' has a value"]


def test_a_quantile_of_too_few_rows_says_what_would_help(tmp_path: Path) -> None:
    found = refused(answer(tmp_path, "        secondary: [p90]", users=30), "rows of")
    assert "too few" in found.reason
    assert "nearer the middle" in found.remedy


def test_no_cluster_and_mixed_clusters_are_what_is_named(tmp_path: Path) -> None:
    run = answer(tmp_path / "none", "        cluster: account", "UPDATE exposures SET account_id = NULL")
    assert "400 have no account" in run.refusals[0].reason
    run = answer(tmp_path / "mixed", "        cluster: account", "UPDATE exposures SET account_id = 1")
    assert "1 accounts were seen in several arms" in run.refusals[0].reason


def test_an_arm_whose_trigger_is_not_recorded(tmp_path: Path) -> None:
    extra = "DELETE FROM seen USING exposures e WHERE e.user_id = seen.user_id AND e.arm = 'old'"
    found = answer(tmp_path, "        trigger: seen", extra).refusals[0]
    assert "exposed units of arm 'old' has a row of the trigger 'seen'" in found.reason
    assert "every arm" in found.remedy


def test_units_that_all_saw_several_arms(tmp_path: Path) -> None:
    extra = "INSERT INTO exposures SELECT user_id, t, CASE arm WHEN 'new' THEN 'old' ELSE 'new' END, account_id, device FROM exposures"
    found = answer(tmp_path, "", extra).refusals[0]
    assert "400 were seen in several" in found.reason
    assert "one arm" in found.remedy


def test_segments_that_cannot_be_say_what_would_help(tmp_path: Path) -> None:
    extra = "ALTER TABLE exposures ADD COLUMN plan VARCHAR; ALTER TABLE exposures ADD COLUMN many VARCHAR; UPDATE exposures SET many = user_id"
    run = answer(tmp_path, "        segments: [plan, many]", extra)
    assert "known of units before exposure" in refused(run, "plan cannot make segments").remedy
    assert "fewer classes" in refused(run, "many cannot make segments").remedy


def test_tiers_of_which_one_holds_everybody(tmp_path: Path) -> None:
    extra = "UPDATE orders SET amount = 0 FROM exposures e WHERE orders.user_id = e.user_id AND orders.t < e.t"
    found = refused(answer(tmp_path, "        segments: [spent]", extra), "spent has 1 class")
    assert found.reason.endswith("all units are in 'high spenders'")


def test_unknown_values_of_a_covariate_are_counted(tmp_path: Path) -> None:
    extra = "UPDATE customers SET tenure_days = 'NaN' WHERE user_id IN ('u1', 'u2'); UPDATE customers SET tenure_days = 'inf' WHERE user_id = 'u3'"
    result = result_of(answer(tmp_path, "        adjust: {attributes: [tenure]}", extra))
    assert "tenure: 3 units have no value" in check(result, "covariates").detail


def test_a_date_before_all_calendars_is_no_age(tmp_path: Path) -> None:
    extra = "UPDATE customers SET signed_up_at = '-infinity' WHERE user_id IN ('u1', 'u2', 'u3', 'u4', 'u5')"
    result = result_of(answer(tmp_path, "        segments: [loyalty]", extra))
    (table,) = result.closer.segments
    assert sum(table.rows[-1].n.values()) == 5
    assert table.rows[-1].segment == "(unknown)"


def test_a_list_is_a_class_and_not_a_number(tmp_path: Path) -> None:
    extra = "ALTER TABLE exposures ADD COLUMN tags INT[]; UPDATE exposures SET tags = [hash(user_id) % 2]"
    (table,) = result_of(answer(tmp_path, "        segments: [tags]", extra)).closer.segments
    assert [row.segment for row in table.rows] == ["[0]", "[1]"]


def test_classes_taken_together_are_named(tmp_path: Path) -> None:
    extra = "UPDATE exposures SET device = 'only new' WHERE arm = 'new' AND hash(user_id) % 5 = 0"
    result = result_of(answer(tmp_path, "        adjust: {post_stratify: device}", extra))
    assert "only new and tablet are taken together" in check(result, "covariates").detail


# ---------------------------------------------------------------- time and place


@pytest.mark.parametrize("starts", ["2026-03-01", "2090-01-01"])
def test_a_total_before_its_first_step_is_over(tmp_path: Path, starts: str) -> None:
    body = f"        type: holdout\n        starts: {starts}\n        cumulative: {{every: 900d}}"
    run = answer(tmp_path, body)
    if starts == "2026-03-01":
        assert "no step is over yet" in refused(run, "total so far").reason
        assert the(result_of(run)).value
    else:
        assert "has no row for this experiment" in run.refusals[0].reason


def test_steps_without_anything_are_named(tmp_path: Path) -> None:
    extra = (
        "DELETE FROM orders USING exposures e WHERE orders.user_id = e.user_id"
        " AND orders.t >= e.t + INTERVAL 4 DAY AND orders.t < e.t + INTERVAL 6 DAY"
    )
    (series,) = result_of(answer(tmp_path, "        over_time: {every: 2d}", extra)).closer.over_time
    assert [p.start for p in series.points] == ["0", "2", "6", "8", "10", "12"]
    assert series.left_out == 1
    assert "Nothing varies in days 4 to 6" in series.sentence


def test_paths_without_anything_are_named(tmp_path: Path) -> None:
    body = (
        "        cannibalisation: {within: orders, by: path, value: amount, paths: [recommendations, search, nowhere]}"
    )
    (found,) = result_of(answer(tmp_path, body)).closer.cannibalisation
    assert "nothing varies on nowhere" in found.sentence
    assert "nowhere" not in [p.path for p in found.paths]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("WHERE false", "no unit is in both experiments"),
        ("WHERE arm = 'new'", "the units that are in both experiments are in one arm only of one of them"),
    ],
)
def test_experiments_that_do_not_meet(tmp_path: Path, rows: str, reason: str) -> None:
    body = """        interactions: [y]
      y:
        assignment: {table: other, time: t, entity: {user: user_id}, variant: arm, control: a}
        primary: revenue
"""
    extra = f"CREATE TABLE other AS SELECT user_id, t, CASE WHEN hash(user_id, 1) % 2 = 0 THEN 'b' ELSE 'a' END AS arm FROM exposures {rows}"
    (found,) = result_of(answer(tmp_path, body, extra)).closer.interactions
    assert found.difference is None
    assert found.reason == reason


# ---------------------------------------------------------------- names


def test_names_that_are_blank_or_hostile_can_be_shown(tmp_path: Path) -> None:
    names = ["''", "' '", "'a vs b'", "'it''s \"q\"'", "'line' || chr(10) || 'break'", "'<b>x</b>'", "'[red]x[/]'"]
    listed = " ".join(f"WHEN {i} THEN {name}" for i, name in enumerate(names))
    extra = (
        f"UPDATE exposures SET device = CASE hash(user_id) % {len(names)} {listed} END;"
        f"UPDATE exposures SET arm = CASE hash(user_id, 1) % {len(names)} {listed} END WHERE arm = 'new'"
    )
    run = answer(tmp_path, "        segments: [device]\n        adjust: {attributes: [device]}", extra, users=800)
    result = result_of(run)
    assert {a.arm for a in result.arms} >= {"", " ", "a vs b", "old"}
    text = page(build(run.to_dict()))
    assert "(empty)" in text
    assert "<b>x</b>" not in text


# ---------------------------------------------------------------- small groups


def classes(sizes: dict[str, tuple[int, int]], min_cell: int) -> list[_Class]:
    out = []
    for name, (new, old) in sizes.items():
        few = min(new, old) < min_cell
        out.append(
            _Class(name, {"new": new, "old": old}, None if few else Difference(1.0, 0.5, 50.0), new + old, "fewer")
        )
    return out


@pytest.mark.parametrize(
    ("sizes", "hidden"),
    [
        ({"a": (90, 90), "b": (50, 60), "c": (70, 70)}, set()),
        ({"a": (90, 90), "b": (50, 60), "rare": (3, 2)}, {"rare", "b"}),
        # two together are still five people, which the total less the others would tell
        ({"a": (90, 90), "b": (50, 60), "c": (70, 70), "rare": (3, 2), "rarer": (2, 1)}, {"rare", "rarer", "b"}),
        # one small in one arm only
        ({"a": (90, 90), "b": (50, 60), "rare": (3, 80)}, {"rare", "b"}),
        # together enough, and neither can be told from the other
        ({"a": (90, 90), "b": (50, 60), "one": (15, 15), "two": (12, 12)}, {"one", "two"}),
        # nobody in one arm: there is no figure to hide
        ({"a": (90, 90), "b": (50, 60), "new only": (40, 0)}, {"new only"}),
    ],
)
def test_a_hidden_class_cannot_be_worked_out(sizes: dict[str, tuple[int, int]], hidden: set[str]) -> None:
    listed = classes(sizes, 20)
    who._hide_what_gives_away(listed, 20)
    assert {c.name for c in listed if c.gap is None} == hidden


def test_small_classes_are_in_no_figure_and_no_count(tmp_path: Path) -> None:
    extra = "UPDATE exposures SET device = 'rare' WHERE user_id IN ('u1', 'u2', 'u3'); UPDATE exposures SET device = 'rarer' WHERE user_id IN ('u4', 'u5')"
    run = answer(tmp_path, "        segments: [device]", extra, users=800, root="defaults: {min_cell: 20}")
    (table,) = result_of(run).closer.segments
    rows = {row.segment: row for row in table.rows}
    assert {name for name, row in rows.items() if row.difference is None} == {"rare", "rarer", "tablet"}
    assert not any(rows[name].n for name in ("rare", "rarer", "tablet"))


def test_one_persons_value_is_not_told_where_small_groups_are_hidden(tmp_path: Path) -> None:
    extra = "UPDATE orders SET amount = -777 WHERE user_id = 'u7'"
    told = check(result_of(answer(tmp_path / "all", "", extra)), "negative_values").detail
    hidden = check(
        result_of(answer(tmp_path / "hidden", "", extra, root="defaults: {min_cell: 20}")), "negative_values"
    )
    assert "the lowest is" in told
    assert hidden.status == "warn"
    assert "lowest" not in hidden.detail


def test_a_quantile_over_clusters_counts_its_people(tmp_path: Path) -> None:
    extra = "UPDATE exposures SET account_id = account_id % 12; UPDATE exposures SET arm = CASE WHEN account_id % 2 = 0 THEN 'new' ELSE 'old' END"
    body = "        cluster: account\n        secondary: [p90]"
    result = result_of(answer(tmp_path, body, extra, users=800, root="defaults: {min_cell: 20}"))
    assert min(the(result, "p90", "difference in quantiles").n.values()) > 300


# ---------------------------------------------------------------- kept, and priced


def test_refusals_of_one_name_are_each_held_against_themselves(tmp_path: Path) -> None:
    body = "        over_time: {every: 2d}\n        bayes: {sd: 0.1}"
    few = (
        "DELETE FROM exposures WHERE user_id NOT IN (SELECT user_id FROM"
        " (SELECT user_id, row_number() OVER (PARTITION BY arm ORDER BY user_id) AS k FROM exposures) WHERE k <= 2)"
    )
    project, _ = make_shop(tmp_path, experiment(body), users=400, extra=few)
    run = project.run()
    names = [r.name for r in run.results[0].refusals]
    assert len(names) > len(set(names))
    assert project.verify().equal


CLAIM = """
    values:
      margin: {value: 0.5, low: 0.4, high: 0.6, per: USD, source: plan, owner: a@b.example, expires: 2090-01-01}
    claims:
      c:
        statement: It pays
        evidence: [x]
        amount: "effect(%s) * value(margin) * population(user, 365d)"
"""


def test_a_triggered_effect_is_priced_over_everyone_the_population_counts(tmp_path: Path) -> None:
    body = "        trigger: seen\n        secondary: [aov]\n"
    run = answer(tmp_path, body + CLAIM % "revenue", root="defaults: {entity: user}")
    result = result_of(run)
    (claim,) = run.claims
    everyone = the(result, estimand="difference in means, everyone assigned")
    assert claim.amount.value == pytest.approx(everyone.value * 0.5 * 400)
    # the same money from the other side: those who triggered, by how many they are of all
    share = sum(the(result).n.values()) / 400
    assert claim.amount.value == pytest.approx(the(result).value * share * 0.5 * 400)
    assert any("everyone assigned" in note for one in claim.inputs for note in one.notes)


def test_a_triggered_ratio_has_no_price_over_everyone(tmp_path: Path) -> None:
    body = "        trigger: seen\n        secondary: [aov]\n"
    run = answer(tmp_path, body + CLAIM % "aov", root="defaults: {entity: user}")
    assert "on those who triggered" in run.refusals[0].reason


def test_the_price_of_a_cluster_is_its_peoples(tmp_path: Path) -> None:
    run = answer(
        tmp_path, "        cluster: account\n" + CLAIM % "revenue", BY_ACCOUNT, root="defaults: {entity: user}"
    )
    assert run.claims[0].amount.value == pytest.approx(the(result_of(run)).value * 0.5 * 400)


def test_arms_whose_names_hold_versus_are_told_apart(tmp_path: Path) -> None:
    extra = "UPDATE exposures SET arm = 'a vs b' WHERE arm = 'new' AND hash(user_id) % 2 = 0; UPDATE exposures SET arm = 'a' WHERE arm = 'new'"
    priced = CLAIM.replace("effect(%s)", "effect(revenue, a)")
    run = answer(tmp_path / "named", priced, extra, root="defaults: {entity: user}")
    by_contrast = {e.contrast: e.value for e in result_of(run).estimates if e.estimand == "difference in means"}
    assert run.claims[0].amount.value == pytest.approx(by_contrast["a vs old"] * 0.5 * 400)
    run = answer(tmp_path / "unnamed", CLAIM % "revenue", extra, root="defaults: {entity: user}")
    assert "any of 2 comparisons" in run.refusals[0].reason


def test_a_switchback_is_not_multiplied_by_regions(tmp_path: Path) -> None:
    body = """        type: switchback
        period: 1h
"""
    # every user keeps one arm in the hour of exposure: a switchback in form
    run = answer(tmp_path, body + CLAIM % "revenue", root="defaults: {entity: user}")
    assert "one period of a user" in refused(run, "population(user)").reason


def test_what_is_asked_twice_is_answered_alike(tmp_path: Path) -> None:
    body = "        adjust: cuped\n        segments: [device]\n        over_time: {every: 2d}\n        bayes: {sd: 0.1}"
    project, _ = make_shop(tmp_path, experiment(body), users=400)
    one, two = (project.run(record=False).results[0].to_dict() for _ in range(2))
    assert compare(one, two) == []

"""What an experiment asks for besides its effects: each key means what it says, and what cannot be read is named."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payoff.errors import DefinitionError, Problem
from payoff.spec import nouns, yamlfile
from payoff.spec.loader import LoadedProject, MetricUse, json_schema, load
from tests.spec.test_loader import HOSTILE, paths_of, replaced

SHOP = """\
version: 1
project: shop
defaults: {entity: user, window: 14d}
connections: {main: {engine: duckdb, path: shop.duckdb}}
sources:
  exposures: {table: exposures, time: t, entity: {user: user_id, home: home_id}}
  users: {table: users, one_row_per: user, id: user_id}
  surveys: {table: surveys, entity: {user: user_id}}
  visits: {table: visits, time: t, entity: {user: user_id}}
  orders: {table: orders, time: t, entity: {user: user_id}}
  parcels: {table: parcels, time: t, entity: {region: region_id}}
metrics:
  revenue: {kind: sum, from: orders, column: amount}
  bought: {kind: conversion, to: orders, window: 7d}
  basket: {kind: ratio, numerator: {sum: orders.amount}, denominator: {count: orders}}
  week_2: {kind: retention, to: visits, at: 7d, within: 7d}
  slow: {kind: quantile, from: visits, column: ms, q: 0.95}
  happy: {kind: mean, from: surveys, column: score}
  stay: {kind: mean, from: visits, column: minutes}
  delay: {kind: mean, from: parcels, column: minutes}
  after: {kind: conversion, to: orders, after: visits}
attributes:
  tenure: {from: users, since: signed_up_at, cuts: [30d, 180d], labels: [new, settling, old]}
  age: {from: users, since: signed_up_at}
  score: {from: surveys, column: score}
  last_page: {from: visits, column: page}
  browser: {column: browser}
  tier: {metric: revenue, period: 90d, quantiles: [0.5]}
  place: {from: parcels, column: place}
experiments:
  recs:
    assignment: {source: exposures, where: test = 1, variant: arm, control: off}
    primary: [revenue]
    secondary: [slow]
    adjust: {cuped: true, metrics: [bought], attributes: [age, device]}
    segments: [tenure, tier, score, last_page, browser, country]
    cluster: home
    trigger: {source: visits, where: page = 1}
    over_time: {every: 1d}
    starts: 2026-07-01
    cumulative: {every: 7d}
    cannibalisation: {within: orders, by: path, paths: [recs, search]}
    interactions: [ranking]
    bayes: {sd: 0.1}
  ranking:
    assignment: {table: ranking, time: t, entity: {user: u}, variant: arm, control: off}
    primary: [revenue]
    adjust: {post_stratify: tenure}
  third:
    assignment: {source: exposures, where: test = 3, variant: arm, control: off}
    primary: [revenue, week_2]
    stop: {rule: always_valid}
  holdout:
    type: holdout
    assignment: {source: exposures, variant: arm, control: off}
    primary: [revenue]
  regions:
    type: switchback
    entity: region
    assignment: {source: parcels, variant: arm, control: off}
    primary: [delay]
    period: 4h
    washout: 30m
programmes:
  autumn: {experiments: [recs, ranking, third], metric: revenue, shipped: [recs], holdout: holdout}
claims:
  worth: {statement: It pays, evidence: [recs], amount: effect(revenue)}
reports:
  board: {show: [programmes.autumn]}
"""


def loaded(folder: Path, text: str = SHOP) -> LoadedProject:
    (folder / "payoff.yml").write_text(text)
    return load(folder)


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        loaded(folder, text)
    return [str(problem) for problem in caught.value.problems]


def changed(old: str, new: str) -> str:
    assert SHOP.count(old) == 1, "the case must change one place"
    return SHOP.replace(old, new)


# ---------------------------------------------------------------- what the keys mean


def test_every_key_is_read(tmp_path: Path) -> None:
    project = loaded(tmp_path)
    assert project.warnings == ()
    recs = project.spec.experiments["recs"]
    assert recs.primary == ("revenue",)
    assert recs.adjust == nouns.Adjust(cuped=True, metrics=("bought",), attributes=("age", "device"))
    assert recs.trigger == nouns.Event(source="visits", where="page = 1")
    assert recs.over_time == nouns.OverTime(every=timedelta(days=1))
    assert recs.cannibalisation is not None
    assert recs.cannibalisation.treated_path == "recs"
    assert recs.bayes == nouns.Prior(mean=0, sd=0.1)
    regions = project.spec.experiments["regions"]
    assert (regions.period, regions.washout) == (timedelta(hours=4), timedelta(minutes=30))
    autumn = project.spec.programmes["autumn"]
    assert (autumn.shipped, autumn.holdout) == (("recs",), "holdout")
    tenure, tier = project.spec.attributes["tenure"], project.spec.attributes["tier"]
    assert (tenure.cuts, tenure.labels) == ((30.0, 180.0), ("new", "settling", "old"))
    assert (tier.quantiles, tier.period) == ((0.5,), timedelta(days=90))


def test_one_primary_may_be_written_without_a_list(tmp_path: Path) -> None:
    bare = loaded(tmp_path, changed("primary: [delay]", "primary: delay"))
    listed = loaded(tmp_path)
    assert bare.spec == listed.spec
    assert bare.definition_hash == listed.definition_hash
    assert bare.metrics_of("regions") == [MetricUse("delay", "primary", "primary")]
    assert [use.role for use in bare.metrics_of("third")] == ["primary", "primary"]


@pytest.mark.parametrize(
    ("old", "new", "means"),
    [
        ("adjust: {cuped: true, metrics: [bought], attributes: [age, device]}", "adjust: cuped", "adjust: {cuped: true}"),
        ("trigger: {source: visits, where: page = 1}", "trigger: visits", "trigger: {source: visits}"),
        ("cuts: [30d, 180d]", "cuts: [30, 180]", "cuts: [720h, 4320h]"),
        ("bayes: {sd: 0.1}", "bayes: {sd: 0.1, mean: 0}", "bayes: {sd: 0.1}"),
        ("at: 7d, within: 7d", "at: 7d", "at: 7d, within: 1d"),
        ("paths: [recs, search]}", "paths: [recs, search], value: amount, where: paid, treated: search}", "paths: [recs, search], value: amount, where: paid, treated: search}"),
        ("stop: {rule: always_valid}", "stop: {rule: group_sequential, n: 100, looks: 5}", "stop: {rule: group_sequential, n: 100, looks: 5, spending: obrien_fleming}"),
        ("stop: {rule: always_valid}", "stop: {rule: group_sequential, n: 100, looks: 5, spending: pocock}", "stop: {rule: group_sequential, n: 100, looks: 5, power: 0.8, spending: pocock}"),
        ("stop: {rule: always_valid}", "stop: {rule: always_valid, tightest_at: 5000}", "stop: {rule: always_valid, tightest_at: 5000, power: 0.8}"),
    ],
)  # fmt: skip
def test_two_spellings_of_the_same_thing(tmp_path: Path, old: str, new: str, means: str) -> None:
    assert loaded(tmp_path, changed(old, new)).spec.model_dump(exclude={"programmes"}) == loaded(
        tmp_path, changed(old, means)
    ).spec.model_dump(exclude={"programmes"})


def test_an_attribute_is_a_declared_one_or_a_column_of_the_assignment(tmp_path: Path) -> None:
    project = loaded(tmp_path)
    assert project.attribute("tenure", "recs") == (project.spec.attributes["tenure"], "users")
    assert project.attribute("browser", "recs") == (project.spec.attributes["browser"], "exposures")
    assert project.attribute("browser", "ranking") == (
        project.spec.attributes["browser"],
        "experiments.ranking.assignment",
    )
    assert project.attribute("tier", "recs") == (project.spec.attributes["tier"], "orders")
    # a column may be called what SQL has a meaning for
    assert project.attribute("user", "recs") == (nouns.Attribute(column='"user"'), "exposures")
    assert [(f.path, f.source) for f in project.sql_fragments() if f.attribute is not None] == [
        (("experiments", "recs", "adjust", "attributes", 1), "exposures"),
        (("experiments", "recs", "segments", 5), "exposures"),
    ]


def test_the_period_that_adjusts_a_metric(tmp_path: Path) -> None:
    project = loaded(tmp_path)
    days = {m: project.adjust_period(m, "recs") for m in ("revenue", "bought", "slow", "week_2")}
    assert days == {
        "revenue": timedelta(days=14),
        "bought": timedelta(days=7),
        "slow": None,
        "week_2": timedelta(days=14),
    }
    assert project.adjust_period("revenue", "ranking") is None  # post-stratified
    assert project.adjust_period("revenue", "third") is None
    given = loaded(tmp_path, changed("adjust: {cuped: true, m", "adjust: {cuped: true, period: 28d, m"))
    assert given.adjust_period("revenue", "recs") == given.adjust_period("bought", "recs") == timedelta(days=28)
    others = loaded(tmp_path, changed("adjust: {cuped: true, m", "adjust: {m"))
    assert others.adjust_period("revenue", "recs") is None
    assert others.adjust_period("bought", "recs") == timedelta(days=7)


def test_the_window_of_a_bracket_and_of_a_switchback(tmp_path: Path) -> None:
    project = loaded(tmp_path)
    assert project.window_of("week_2", "third") == timedelta(days=14)
    assert project.window_of("delay", "regions") == timedelta(hours=4)


def test_the_examples_of_the_design_load_as_they_are_written(tmp_path: Path) -> None:
    text = """
version: 1
project: acme
defaults: {entity: user, window: 14d, holdout_unit: user}
connections: {main: {engine: duckdb, path: data/acme.duckdb}}
sources:
  rec_impressions: {table: rec_impressions, time: shown_at, entity: {user: user_id}, id: rec_id}
  orders: {table: orders, time: t, entity: {user: user_id}}
  returns: {table: returns, time: t, entity: {user: user_id}}
  nps: {table: nps_survey, time: t, entity: {user: user_id}}
  complaints: {table: tickets, time: t, entity: {user: user_id}, where: "topic = 'irrelevant_recs'"}
  exposures: {table: exposures, time: t, entity: {user: any_id}}
metrics:
  conversion:     {kind: conversion, to: orders, direction: up, role: primary}
  aov:            {kind: ratio, numerator: {sum: orders.amount}, denominator: {count: orders}, direction: up, role: secondary}
  return_rate:    {kind: ratio, numerator: {count: returns}, denominator: {count: orders}, direction: down, role: guardrail, margin: 0.005, window: 30d}
  complaint_rate: {kind: conversion, to: complaints, direction: down, role: guardrail, margin: 0.001}
  nps_score:      {kind: nps, from: nps, column: score, direction: up, role: secondary}
  margin_90d:     {kind: sum, from: orders, column: "amount * margin_rate", window: 90d, direction: up, role: north_star, owner: cfo@acme.example}
experiments:
  recs_reward_test:
    assignment: {source: rec_impressions, variant: arm, control: engagement_reward}
    primary: conversion
    secondary: [aov, nps_score, margin_90d]
    guardrails: [return_rate, complaint_rate]
    adjust: cuped
  global_holdout:
    type: holdout
    assignment: {source: exposures, variant: global_arm, control: generic, split: {generic: 0.10, personalised: 0.90}}
    starts: 2026-07-01
    primary: margin_90d
    guardrails: [return_rate]
    segments: [tenure_cohort, device]     # seed interview: lift only for returning users, negative for new
    cannibalisation: {within: orders, by: discovery_path, paths: [recommendations, search, browse]}
"""
    project = loaded(tmp_path, text)
    assert project.warnings == ()
    assert project.adjust_period("margin_90d", "recs_reward_test") == timedelta(days=90)
    assert project.adjust_period("nps_score", "recs_reward_test") == timedelta(days=14)
    assert project.attribute("device", "global_holdout")[1] == "exposures"
    holdout = project.spec.experiments["global_holdout"]
    assert holdout.cannibalisation is not None
    assert holdout.cannibalisation.treated_path == "recommendations"


# ---------------------------------------------------------------- mistakes, one at a time

CASES: list[tuple[str, str, str, str]] = [
    # what is replaced, with what, the text that the problem points at (in the line that now holds it), and the problem
    # attributes
    ("tenure: {from: users,", "tenure: {from: user,", "user, since: signed_up_at, cuts", "[unknown-source]: 'user' is not a source; did you mean 'users'?"),
    ("tier: {metric: revenue,", "tier: {metric: revenu,", "revenu,", "[unknown-metric]: 'revenu' is not a metric; did you mean 'revenue'?"),
    ("tier: {metric: revenue,", "tier: {metric: basket,", "basket,", "[wrong-metric]: 'basket' is a ratio metric; only a count, sum, mean or conversion is one number a unit over a period before exposure"),
    ("tier: {metric: revenue,", "tier: {metric: week_2,", "week_2,", "[wrong-metric]: 'week_2' is a retention metric; only a count,"),
    ("tier: {metric: revenue,", "tier: {metric: happy,", "happy,", "[no-time]: 'happy' reads 'surveys', which has no time, so its rows before exposure are not known; add time: COLUMN to it"),
    ("tier: {metric: revenue, period: 90d,", "tier: {metric: revenue,", "tier:", "[bad-value]: metric and period go together: the metric over that period before exposure"),
    ("tier: {metric: revenue, period: 90d,", "tier: {metric: revenue, period: 90d, from: orders,", "tier:", "[bad-value]: a metric has its own source; leave out from"),
    ("browser: {column: browser}", "browser: {}", "browser:", "[bad-value]: an attribute has exactly one of column, since or metric"),
    ("browser: {column: browser}", "browser: {column: browser, labels: [a, b]}", "browser:", "[bad-value]: labels name the classes that cuts or quantiles make; there are neither"),
    ("browser: {column: browser}", "browser: {column: browser, cuts: [1], quantiles: [0.5]}", "browser:", "[bad-value]: classes are made by cuts or by quantiles, not by both"),
    ("browser: {column: browser}", "browser: {column: browser, colum: x}", "colum:", "[unknown-key]: 'colum' is not a key of an attribute in this version; did you mean 'column'?"),
    ("browser: {column: browser}", "browser: column", "column", "[wrong-type]: an attribute is a map, such as browser: {from: users, since: signed_up_at, cuts: [30d, 180d]}"),
    ("quantiles: [0.5]", "quantiles: [50]", "50]", "[bad-value]: 'quantiles' must be less than 1"),
    ("labels: [new, settling, old]", "labels: [new, new, old]", "tenure:", "[bad-value]: each label names one class"),
    ("labels: [new, settling, old]", "labels: [new, old]", "tenure:", "[bad-value]: 2 bounds make 3 classes, not 2 labels"),
    ("cuts: [30d, 180d]", "cuts: [30d, half a year]", "half a year", "[wrong-type]: 'cuts' must be a number, not the text 'half a year'"),
    # adjustment
    ("adjust: {cuped: true, metrics: [bought], attributes: [age, device]}", "adjust: cupd", "cupd", "[bad-value]: 'adjust': adjust is cuped, or a map of cuped, period, metrics, attributes and post_stratify"),
    ("adjust: {cuped: true, metrics: [bought], attributes: [age, device]}", "adjust: {period: 7d}", "{period: 7d}", "[bad-value]: 'adjust': adjust names cuped, metrics, attributes or post_stratify"),
    ("adjust: {cuped: true,", "adjust: {cuped: on,", "on, metrics", "[wrong-type]: 'cuped' must be true or false, not the text 'on'"),
    ("adjust: {post_stratify: tenure}", "adjust: {post_stratify: tenure, cuped: true}", "{post_stratify: tenure, cuped: true}", "[bad-value]: 'adjust': post_stratify stands alone; put the attribute among attributes to use it with others"),
    ("adjust: {post_stratify: tenure}", "adjust: {post_stratify: tenure, period: 7d}", "{post_stratify: tenure, period: 7d}", "[bad-value]: 'adjust': period is how far back cuped and metrics look; there is neither"),
    ("adjust: {post_stratify: tenure}", "adjust: {post_stratify: age}", "age}", "[no-classes]: 'age' is a number; add cuts or quantiles to it, to make classes of it"),
    ("metrics: [bought]", "metrics: [bougt]", "bougt", "[unknown-metric]: 'bougt' is not a metric; did you mean 'bought'?"),
    ("metrics: [bought]", "metrics: [bought, bought]", "bought], attributes", "[named-twice]: 'bought' stands twice in metrics; name it once"),
    ("metrics: [bought]", "metrics: [bought, basket]", "basket]", "[wrong-metric]: 'basket' is a ratio metric; only a count,"),
    ("metrics: [bought]", "metrics: [slow]", "slow]", "[wrong-metric]: 'slow' is a quantile metric; only a count,"),
    ("metrics: [bought]", "metrics: [happy]", "happy]", "[no-time]: 'happy' reads 'surveys', which has no time, so its rows before exposure are not known"),
    ("metrics: [bought]", "metrics: [delay]", "delay]", "[unmapped-entity]: 'delay' cannot be read here: source 'parcels' does not say which column holds 'user'; add entity: {user: COLUMN} to it"),
    ("attributes: [age, device]", "attributes: [age, device, age]", "age]}", "[named-twice]: 'age' stands twice in attributes; name it once"),
    ("secondary: [slow]", "secondary: [slow, happy]", "{cuped: true", "[no-time]: 'happy' reads 'surveys', which has no time, so its rows before exposure are not known; add time: COLUMN to it"),
    ("defaults: {entity: user, window: 14d}", "defaults: {entity: user}", "{cuped: true", "[no-period]: how long before exposure to look is not clear, as 'revenue' has no window; add period: to adjust, such as {cuped: true, period: 28d}"),
    # segments
    ("segments: [tenure, tier,", "segments: [tenure, tier, tenure,", "tenure, score", "[named-twice]: 'tenure' stands twice in segments; name it once"),
    ("segments: [tenure, tier,", "segments: [age, tier,", "age, tier", "[no-classes]: 'age' is a number; add cuts or quantiles to it, to make classes of it"),
    ("segments: [tenure, tier,", "segments: [place, tier,", "place, tier", "[unmapped-entity]: source 'parcels' does not say which column holds 'user'; add entity: {user: COLUMN} to it"),
    ("segments: [tenure, tier,", "segments: [tenure-2, tier,", "tenure-2", "[bad-name]: 'tenure-2' is not a name"),
    ("users: {table: users, one_row_per: user, id: user_id}", "users: {table: users, one_row_per: user}", "tenure, tier, score", "[cannot-join]: rows of 'users' and 'exposures' cannot be joined: 'users' has one row per user but no id; add id: COLUMN to it"),
    # units
    ("cluster: home", "cluster: hom", "hom", "[unknown-entity]: 'hom' is not an entity; did you mean 'home'?"),
    ("cluster: home", "cluster: user", "user", "[bad-value]: units are clustered by themselves; cluster is the entity that was assigned, within which user is read"),
    ("cluster: home", "cluster: region", "region", "[unmapped-entity]: source 'exposures' does not say which column holds 'region'; add entity: {region: COLUMN} to it"),
    ("trigger: {source: visits,", "trigger: {source: visit,", "visit,", "[unknown-source]: 'visit' is not a source; did you mean 'visits'?"),
    ("trigger: {source: visits,", "trigger: {source: surveys,", "surveys, where: page", "[no-time]: source 'surveys' has no time, so which rows came after assignment is not known; add time: COLUMN to it"),
    ("trigger: {source: visits,", "trigger: {source: parcels,", "parcels, where: page", "[unmapped-entity]: source 'parcels' does not say which column holds 'user'"),
    ("period: 4h\n    washout: 30m", "washout: 30m", "regions:", "[bad-value]: a switchback, and only a switchback, has a period: how long a unit keeps an arm"),
    ("    type: holdout\n", "    type: holdout\n    period: 4h\n", "holdout:", "[bad-value]: a switchback, and only a switchback, has a period"),
    ("washout: 30m", "washout: 4h", "regions:", "[bad-value]: washout belongs to a switchback, and is shorter than its period"),
    ("washout: 30m", "trigger: parcels", "regions:", "[bad-value]: a switchback has no trigger: a unit keeps no arm for longer than a period"),
    ("washout: 30m", "over_time: {every: 1h}", "regions:", "[bad-value]: a switchback has no over_time"),
    ("washout: 30m", "cumulative: {every: 1h}", "regions:", "[bad-value]: a switchback has no cumulative"),
    ("washout: 30m", "interactions: [recs]", "regions:", "[bad-value]: a switchback has no interactions"),
    ("parcels: {table: parcels, time: t, entity: {region: region_id}}", "parcels: {table: parcels, one_row_per: region, id: r}", "parcels, variant", "[no-time]: rows of the assignment have no time, so which period of a switchback they belong to is not known; add time: COLUMN"),
    # time
    ("over_time: {every: 1d}", "over_time: {every: 8d}", "8d}", "[bad-value]: the window of 'revenue' is 14d, which does not hold two steps of 8d; take shorter steps or a longer window"),
    ("over_time: {every: 1d}", "over_time: {every: 1h}", "1h}", "[bad-value]: 1h makes 336 steps of the 14d of 'revenue', and at most 60 are read; take longer steps"),
    ("primary: [revenue]\n    secondary: [slow]", "primary: [stay]", "{every: 1d}", "[wrong-metric]: the primary metric 'stay' is a mean metric, which is not read step by step; name a count, sum, conversion, rate, ratio, nps or csat metric as primary"),
    ("primary: [revenue]\n    secondary: [slow]", "primary: [bought]", "{every: 7d}", "[wrong-metric]: only a count or a sum adds up over time, and the primary metric 'bought' is a conversion metric"),
    ("    starts: 2026-07-01\n", "", "{every: 7d}", "[missing-key]: the total is counted from the experiment's start; add starts: DATE to it"),
    ("cumulative: {every: 7d}", "cumulative: {}", "cumulative:", "[missing-key]: 'every' is missing: 'cumulative' of an experiment needs it"),
    # paths and other experiments
    ("cannibalisation: {within: orders,", "cannibalisation: {within: order,", "order,", "[unknown-source]: 'order' is not a source; did you mean 'orders'?"),
    ("cannibalisation: {within: orders,", "cannibalisation: {within: surveys,", "surveys, by", "[no-time]: source 'surveys' has no time, so its rows before exposure would count too; add time: COLUMN to it"),
    ("cannibalisation: {within: orders,", "cannibalisation: {within: parcels,", "parcels, by", "[unmapped-entity]: source 'parcels' does not say which column holds 'user'"),
    ("paths: [recs, search]", "paths: [recs]", "[recs]}", "[bad-value]: 'paths' must name at least two"),
    ("paths: [recs, search]", f"paths: [{', '.join(f'p{i}' for i in range(21))}]", "[p0,", "[bad-value]: 'paths' must name at most 20"),
    ("paths: [recs, search]", "paths: [recs, recs]", "{within", "[bad-value]: 'cannibalisation': a path is named twice"),
    ("paths: [recs, search]", "paths: [recs, search], treated: rec", "{within", "[bad-value]: 'cannibalisation': treated 'rec' is not one of paths"),
    ("interactions: [ranking]", "interactions: [rankin]", "rankin]", "[unknown-experiment]: 'rankin' is not an experiment; did you mean 'ranking'?"),
    ("interactions: [ranking]", "interactions: [recs]", "recs]", "[bad-value]: an experiment has no interaction with itself; name others on the same units"),
    ("interactions: [ranking]", "interactions: [ranking, ranking]", "ranking]", "[named-twice]: 'ranking' stands twice in interactions; name it once"),
    ("interactions: [ranking]", "interactions: [regions]", "regions]", "[bad-value]: 'regions' is a switchback, whose units keep no arm to be crossed with"),
    ("third:\n", "third:\n    interactions: [ranking, holdout]\n    entity: home\n", "ranking, holdout", "[wrong-entity]: 'ranking' compares units of user, and this experiment units of home"),
    ("bayes: {sd: 0.1}", "bayes: {sd: 0}", "0}", "[bad-value]: 'sd' must be more than 0"),
    # stop
    ("stop: {rule: always_valid}", "stop: {rule: group_sequential, looks: 5}", "{rule", "[bad-value]: 'stop': a group-sequential stop names n, the units at its last look: information is counted against it"),
    ("stop: {rule: always_valid}", "stop: {rule: group_sequential, n: 100}", "{rule", "[bad-value]: 'stop': a group-sequential stop names looks, how many there are at most"),
    ("stop: {rule: always_valid}", "stop: {rule: group_sequential, n: 100, looks: 1}", "1}", "[bad-value]: 'looks' must be at least 2"),
    ("stop: {rule: always_valid}", "stop: {rule: always_valid, looks: 5}", "{rule", "[bad-value]: 'stop': looks and spending belong to rule: group_sequential"),
    ("stop: {rule: always_valid}", "stop: {rule: fixed, n: 100, tightest_at: 100}", "{rule", "[bad-value]: 'stop': tightest_at belongs to rule: always_valid"),
    ("stop: {rule: always_valid}", "stop: {rule: sequential}", "sequential", "[bad-value]: 'rule' must be fixed, always_valid or group_sequential, not the text 'sequential'; did you mean 'group_sequential'?"),
    # metrics
    ("week_2: {kind: retention, to: visits, at: 7d, within: 7d}", "week_2: {kind: retention, to: visits}", "week_2:", "[missing-key]: 'at' is missing: a retention metric needs it"),
    ("at: 7d, within: 7d", "at: 7d, window: 7d", "week_2:", "[bad-value]: a retention metric has no window: at and within say when it is measured"),
    ("week_2: {kind: retention, to: visits,", "week_2: {kind: retention, to: surveys,", "to: surveys", "[no-time]: source 'surveys' has no time, so what came after what is not known; add time: COLUMN to it"),
    ("week_2: {kind: retention, to: visits,", "week_2: {kind: retention, to: visit,", "to: visit,", "[unknown-source]: 'visit' is not a source; did you mean 'visits'?"),
    ("q: 0.95", "q: 95", "95}", "[bad-value]: 'q' must be less than 1"),
    # programmes
    ("[recs, ranking, third], metric", "[recs, ranking], metric", "[recs, ranking]", "[bad-value]: 'experiments' must name at least three"),
    ("[recs, ranking, third], metric", "[recs, ranking, thrid], metric", "thrid", "[unknown-experiment]: 'thrid' is not an experiment; did you mean 'third'?"),
    ("[recs, ranking, third], metric", "[recs, ranking, recs], metric", "recs], metric", "[named-twice]: 'recs' stands twice in experiments; name it once"),
    ("[recs, ranking, third], metric", "[recs, ranking, regions], metric", "regions], metric", "[unmeasured-metric]: 'regions' does not read 'revenue'; add it to the metrics of experiments.regions"),
    ("[recs, ranking, third], metric", "[recs, ranking, regions], metric", "regions], metric", "[wrong-entity]: 'regions' compares units of region and 'recs' units of user: their effects do not add up"),
    ("metric: revenue, shipped", "metric: revenu, shipped", "revenu,", "[unknown-metric]: 'revenu' is not a metric; did you mean 'revenue'?"),
    ("metric: revenue, shipped", "metric: slow, shipped", "slow, shipped", "[wrong-metric]: 'slow' is a quantile metric, and effects on a quantile do not add up"),
    ("shipped: [recs]", "shipped: [rec]", "rec]", "[unknown-experiment]: 'rec' is not among the experiments of this programme; did you mean 'recs'?"),
    ("shipped: [recs]", "shipped: [recs, recs]", "recs], hold", "[named-twice]: 'recs' stands twice in shipped; name it once"),
    ("holdout: holdout}", "holdout: holdot}", "holdot}", "[unknown-experiment]: 'holdot' is not an experiment; did you mean 'holdout'?"),
    ("holdout: holdout}", "holdout: third}", "third}", "[bad-value]: 'third' is what the programme is held against; leave it out of experiments"),
    ("[programmes.autumn]", "[programmes.autum]", "autum]", "[unknown-programme]: 'autum' is not a programme; did you mean 'autumn'?"),
    ("amount: effect(revenue)", "amount: effect(slow)", "effect(slow)", "[wrong-metric]: 'slow' is a quantile metric, and effects on a quantile do not add up to an amount"),
    ("holdout: holdout}", "holdout: regions}", "regions}", "[unmeasured-metric]: 'regions' does not read 'revenue'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "at", "expected"), CASES, ids=lambda text: repr(text[:40]))
def test_each_mistake_is_named_at_its_place(tmp_path: Path, old: str, new: str, at: str, expected: str) -> None:
    text = changed(old, new)
    found = problems(tmp_path, text)
    where = [p for p in found if expected in p]
    assert where, "\n".join(found)
    lines = text.splitlines()
    places = [re.match(r"payoff\.yml:(\d+):(\d+) ", p) for p in where]
    assert any(m is not None and lines[int(m[1]) - 1][int(m[2]) - 1 :].startswith(at) for m in places), where


UNTIMED = changed("exposures: {table: exposures, time: t, entity: {user: user_id,", "exposures: {table: exposures, one_row_per: user, id: user_id, entity: {user: user_id,")  # fmt: skip


def test_what_needs_the_time_of_exposure_says_so(tmp_path: Path) -> None:
    found = [p for p in problems(tmp_path, UNTIMED) if ":34:" not in p]
    says = "rows of the assignment have no time, so"
    assert [p.split(says)[1].split(";")[0].strip() for p in found if says in p] == [
        "what came before exposure is not known",
        "what 'age' was at exposure is not known",
        "what 'tenure' was at exposure is not known",
        "what 'tier' was before exposure is not known",
        "what 'last_page' was at exposure is not known",
        "what came after assignment is not known",
        "the time since exposure is not known",
        "when units were exposed is not known",
    ]
    assert all("error[no-time]" in p and p.endswith("add time: COLUMN to source 'exposures'") for p in found)


def test_a_switchback_reads_no_metric_with_a_window_of_its_own(tmp_path: Path) -> None:
    mapped = SHOP.replace("visits: {table: visits, time: t, entity: {user: user_id}}", "visits: {table: visits, time: t, entity: {user: user_id, region: r}}")  # fmt: skip
    mapped = mapped.replace("orders: {table: orders, time: t, entity: {user: user_id}}", "orders: {table: orders, time: t, entity: {user: user_id, region: r}}")  # fmt: skip
    mapped = mapped.replace("surveys: {table: surveys, entity: {user: user_id}}", "surveys: {table: surveys, entity: {region: r, user: u}}")  # fmt: skip
    text = mapped.replace("primary: [delay]", "primary: [delay, week_2]\n    secondary: [after, happy]")
    found = problems(tmp_path, text)
    says = "has a window of its own, and a switchback reads what happened in each period; name other metrics"
    assert [p.split("]: ")[1] for p in found if "wrong-metric" in p] == [f"'after' {says}", f"'week_2' {says}"]
    assert any("[no-time]: 'happy' reads 'surveys', which has no time, so the period of its rows" in p for p in found)


def test_names_that_are_wrong_hide_nothing_that_follows(tmp_path: Path) -> None:
    """What depends on a name that is not declared, or on an entry that is broken, is not held against anything else."""
    text = changed("revenue: {kind: sum, from: orders, column: amount}", "revenue: {kind: sum, from: orders, colum: amount}")  # fmt: skip
    assert [p.split(" ")[1] for p in problems(tmp_path, text)] == ["error[unknown-key]:"]
    text = changed("orders: {table: orders, time: t,", "orders: {table: orders, tiem: t,")
    assert [p.split(" ")[1] for p in problems(tmp_path, text)] == ["error[unknown-key]:"]
    text = changed("exposures: {table: exposures, time: t,", "exposures: {table: exposures, tiem: t,")
    assert [p.split(" ")[1] for p in problems(tmp_path, text)] == ["error[unknown-key]:"]
    text = changed("tenure: {from: users, since: signed_up_at, cuts", "tenure: {from: users, sinc: signed_up_at, cuts")
    assert {p.split(" ")[1] for p in problems(tmp_path, text)} == {"error[unknown-key]:"}


def test_a_name_that_is_neither_an_attribute_nor_a_column_is_found_at_its_place(tmp_path: Path) -> None:
    from tests.builders import make_project

    project = make_project(
        tmp_path,
        """
        sources:
          exposures: {table: exposures, time: t, entity: {user: user_id}}
        metrics:
          seen: {kind: count, from: exposures}
        attributes:
          tenure: {since: signed_up_at, cuts: [30d]}
        experiments:
          recs:
            assignment: {source: exposures, variant: arm, control: off}
            primary: seen
            segments: [tenure, device, tenur, "user", devise]
        """,
        'CREATE TABLE exposures (user_id INT, t TIMESTAMP, arm TEXT, signed_up_at TIMESTAMP, device TEXT, "user" TEXT)',
    )
    with project.catalog() as catalog, pytest.raises(DefinitionError) as caught:
        project.check_sql(catalog, ["exposures"])
    assert [str(problem) for problem in caught.value.problems] == [
        "definitions/all.yml:12:32 error[unknown-column]: 'tenur' is neither an attribute nor a column of source"
        " 'exposures'; did you mean 'tenure'?",
        "definitions/all.yml:12:47 error[unknown-column]: 'devise' is neither an attribute nor a column of source"
        " 'exposures'; did you mean 'device'?",
    ]


# ---------------------------------------------------------------- the published schema and hostile input


def tree_of(text: str) -> Any:
    """What an editor checks against the schema."""
    builder = yamlfile._Builder("x")
    builder.build(yamlfile.YAML(typ="safe", pure=True).parse(text))
    return json.loads(json.dumps(builder.root))


def test_the_schema_accepts_what_the_loader_accepts(tmp_path: Path) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    for text in (
        SHOP,
        changed("primary: [delay]", "primary: delay"),
        changed("adjust: {post_stratify: tenure}", "adjust: cuped"),
        changed("cuts: [30d, 180d]", "cuts: [30, 180.5]"),
        changed("{source: visits, where: page = 1}", "visits"),
    ):
        loaded(tmp_path, text)
        validator.validate(tree_of(text))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("primary: [delay]", "primary: []"),
        ("adjust: {post_stratify: tenure}", "adjust: cupd"),
        ("adjust: {post_stratify: tenure}", "adjust: {stratify: tenure}"),
        ("cuts: [30d, 180d]", "cuts: [soon]"),
        ("quantiles: [0.5]", "quantiles: [1]"),
        ("segments: [tenure, ", "segments: [tenure-2, "),
        ("paths: [recs, search]", "paths: [recs]"),
        ("bayes: {sd: 0.1}", "bayes: {sd: 0}"),
        ("bayes: {sd: 0.1}", "bayes: {mean: 0}"),
        ("stop: {rule: always_valid}", "stop: {rule: sometimes}"),
        ("type: switchback", "type: switchbak"),
        ("q: 0.95", "q: 1"),
        ("[recs, ranking, third], metric", "[recs, ranking], metric"),
        ("over_time: {every: 1d}", "over_time: {}"),
    ],
)
def test_the_schema_rejects_what_the_loader_rejects(tmp_path: Path, old: str, new: str) -> None:
    text = changed(old, new)
    assert problems(tmp_path, text)
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(tree_of(text))


@cache
def whole() -> Any:
    return tree_of(SHOP)


@settings(max_examples=200)
@given(data=st.data())
def test_hostile_names_and_values_raise_nothing_but_a_definition_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    tree = whole()
    inside = [p for p in paths_of(tree) if p[:1] in (("attributes",), ("experiments",), ("programmes",), ("metrics",))]
    for _ in range(data.draw(st.integers(1, 3))):
        steps = data.draw(st.sampled_from([p for p in inside if p in paths_of(tree)]))
        tree = replaced(tree, steps, data.draw(HOSTILE), key=data.draw(st.booleans()))
    root = tmp_path_factory.getbasetemp() / "hostile_experiments"
    root.mkdir(exist_ok=True)
    found: tuple[Problem, ...] = ()
    try:
        project = loaded(root, json.dumps(tree))
    except DefinitionError as error:
        found = error.problems
    for problem in found:
        assert "\n" not in problem.message
        assert len(problem.message) < 1000
        assert (problem.line, problem.column) >= (1, 1)
    if found:
        return
    for name, experiment in project.spec.experiments.items():
        for use in project.metrics_of(name):
            project.adjust_period(use.metric, name)
        for _, attribute in nouns.attributes_of(experiment):
            assert project.attribute(attribute, name)[1] in project.sources()
    assert all(fragment.text for fragment in project.sql_fragments())

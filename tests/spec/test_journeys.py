"""Journeys as they are declared: identity, sessions, touchpoints, attribution, funnels, cohorts, paths, and claims over them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from payoff.errors import DefinitionError, UsageError
from payoff.spec import yamlfile
from payoff.spec.loader import LoadedProject, json_schema, load
from payoff.spec.nouns import Model, Spend, model_names

EXAMPLE = """\
version: 1
project: acme
defaults: {entity: user, window: 14d, alpha: 0.05, min_cell: 20, holdout_unit: user}
connections:
  main: {engine: duckdb, path: data/acme.duckdb, read_only: true}
entities:
  user: {id: user_id, aliases: [anonymous_id, device_id], identity: {source: identifies, rule: deterministic, lookback: 90d}}
sources:
  identifies: {table: identifies, time: t, columns: [user_id, anonymous_id, device_id]}
  exposures:  {table: exposures, time: t, entity: {user: any_id}}
  orders:     {table: orders, time: ordered_at, entity: {user: user_id}}
  users:      {table: users, one_row_per: user, id: user_id}
metrics:
  margin_90d: {kind: sum, from: orders, column: margin, window: 90d}
  return_rate: {kind: conversion, to: {source: orders, where: returned}, direction: down}
attributes:
  tenure_cohort: {from: users, since: signed_up_at, cuts: [30d]}
touchpoints:
  homepage:        {source: exposures, where: "surface = 'home'",   personalised: "variant <> 'generic'"}
  search:          {source: exposures, where: "surface = 'search'", personalised: "variant <> 'generic'"}
  recommendations: {source: exposures, where: "surface = 'recs'",   personalised: "variant <> 'generic'"}
  paid_social:     {source: exposures, where: "surface = 'paid_social'", cost: spend}
attribution:
  personalisation:
    conversion: {event: orders, value: amount}
    touchpoints: [homepage, search, recommendations, paid_social]
    window: 30d
    models: [first, last, linear, {time_decay: {half_life: 7d}}, {position: [0.4, 0.2, 0.4]}, markov, shapley]
    reconcile_with: global_holdout
experiments:
  global_holdout:
    type: holdout
    assignment: {source: exposures, variant: global_arm, control: generic, split: {generic: 0.10, personalised: 0.90}}
    starts: 2026-07-01
    primary: margin_90d
    guardrails: [return_rate]
    segments: [tenure_cohort, device]
    cannibalisation: {within: orders, by: discovery_path, paths: [recommendations, search, browse]}
claims:
  personalisation_total:
    statement: "Total revenue impact of personalization as a holistic function"
    evidence: [global_holdout]
    compare: [attribution.personalisation]
    amount: "effect(margin_90d) * population(user, 365d)"
    less: {licence: 400000, team: 900000}
    sensitivity: [holdout_contamination, novelty_decay, discount_rate]
reports:
  personalisation_quarterly: {audience: cfo, show: [claims.personalisation_total, attribution.personalisation]}
"""
"""The fifth scenario, with what the other definition files would bring."""

SOURCES = """\
version: 1
project: shop
connections: {main: {engine: duckdb, path: shop.duckdb}}
entities:
  user: {id: user_id}
sources:
  exposures: {table: exposures, time: t, entity: {user: any_id}}
  visits: {table: visits, time: t, entity: {user: any_id, household: house}}
  orders: {table: orders, time: t, entity: {user: user_id, household: house}}
  calls: {table: calls, time: t, entity: {household: house}}
  spend: {table: spend, time: day}
  prices: {table: prices}
"""

Load = Callable[..., LoadedProject]


@pytest.fixture
def declare(tmp_path: Path) -> Load:
    def write(text: str, base: str = SOURCES) -> LoadedProject:
        (tmp_path / "payoff.yml").write_text(base + text)
        return load(tmp_path)

    return write


def problems(declare: Load, text: str, base: str = SOURCES) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        declare(text, base)
    return [f"{p.line}:{p.column} [{p.code}]: {p.message}" for p in caught.value.problems]


# ---------------------------------------------------------------- what is loaded


def test_the_fifth_scenario_loads_whole(declare: Load) -> None:
    project = declare(EXAMPLE, "")
    assert project.warnings == ()
    assert list(project.journeys()) == ["attribution.personalisation"]
    assert project.journey_entity("attribution", "personalisation") == "user"
    assert project.journey_sources("attribution.personalisation") == ["exposures", "orders"]
    assert project.needed_sources(["orders"]) == ["orders", "identifies"]
    declared = project.spec.attribution["personalisation"]
    assert declared.window == (timedelta(days=30),)
    assert model_names(declared.models) == ("first", "last", "linear", "time_decay", "position", "markov", "shapley")
    assert declared.models[4].weights == (0.4, 0.2, 0.4)
    columns = {f.text: f.source for f in project.sql_fragments() if {"aliases", "columns"} & set(f.path)}
    assert columns == {'"user_id"': "identifies", '"anonymous_id"': "identifies", '"device_id"': "identifies"}


def test_the_hash_is_of_what_is_declared(declare: Load) -> None:
    one = declare(EXAMPLE, "").definition_hash
    assert declare(EXAMPLE.replace("window: 30d", "window: [30d]"), "").definition_hash == one
    assert declare(EXAMPLE.replace("window: 30d", "window: 31d"), "").definition_hash != one
    named = EXAMPLE.replace("models: [first,", "models: [{kind: first},")
    assert declare(named, "").definition_hash == one


ALL = """\
touchpoints:
  home: {source: exposures, where: "1", by: "2", personalised: "3", cost: "4"}
  paid: {source: visits, cost: {source: spend, column: "5", where: "6"}}
attribution:
  a:
    conversions: {o: {event: {source: orders, where: "7"}, value: "8"}, c: visits}
    touchpoints: [home, paid]
    models: [{custom: "position"}]
    entity: user
  b: {conversion: {event: {source: orders, where: "9"}, value: "10"}, touchpoints: [home], models: [last], entity: user}
funnels:
  f:
    steps: [{source: visits, where: "11"}, orders, {name: kept, without: {source: calls, where: "12"}, within: 1d}]
    exclude: [{source: calls, where: "13"}]
    by: "14"
    entity: household
  g: {steps: [visits, orders, {name: again, source: visits, where: "15"}], by: {column: "16", step: each}, entity: user}
cohorts:
  c:
    start: {source: visits, where: "17"}
    activity: {source: visits, where: "18"}
    revenue: {event: {source: orders, where: "19"}, value: "20"}
    cost: {source: spend, column: "21", where: "22"}
    by: "23"
    entity: user
paths:
  p: {touchpoints: [home], to: {event: {source: orders, where: "24"}, value: "25"}, entity: user}
  q: {touchpoints: [paid], from: {source: orders, where: "26"}, entity: user}
"""


def test_every_sql_expression_of_journeys_is_handed_out_with_its_place_and_source(declare: Load) -> None:
    project = declare(ALL)
    found = [f for f in project.sql_fragments() if f.path[0] not in ("sources", "entities")]
    assert sorted(int(f.text) for f in found if f.path[1] != "g") == [n for n in range(1, 27) if n not in (15, 16)]
    sources = {int(f.text): f.source for f in found if f.path[1] != "g"}
    assert [n for n, s in sources.items() if s == "exposures"] == [1, 2, 3, 4]
    assert [n for n, s in sources.items() if s == "spend"] == [5, 6, 21, 22]
    assert [n for n, s in sources.items() if s == "calls"] == [12, 13]
    assert [n for n, s in sources.items() if s == "visits"] == [11, 14, 17, 23, 18]
    each = [f.source for f in found if f.text == "16"]
    assert each == ["visits", "orders"], "a breakdown of each step is a column of every step's source"
    lines = (SOURCES + ALL).splitlines()
    for fragment in found:
        _, line, column = project.positions.of(*fragment.path)
        assert lines[line - 1][column - 1 :].startswith(f'"{fragment.text}"'), fragment


def test_the_expressions_of_sessions_read_the_rows_they_are_made_of(declare: Load) -> None:
    text = """\
  s: {where: "1", sessions: {of: visits, entity: user, channels: [{name: a, when: "2"}, {name: b}]}}
  t: {sessions: {of: orders, entity: household, channels: {preset: ga4, source: "3", campaign: "4"}}}
  u: {sessions: {of: calls}}
"""
    project = declare(text)
    found = [(f.text, f.source) for f in project.sql_fragments() if f.path[1] in "stu"]
    assert found == [("1", "s"), ("2", "visits"), ("3", "orders"), ("utm_medium", "orders"), ("4", "orders")]
    assert project.spec.sources["s"].timed
    assert project.connection_of(project.spec.sources["s"]) is None
    assert project.unit_column("s", "user") == "session_unit"
    assert project.unit_column("s", "household") is None
    units = {name: made.entity for name in "stu" if (made := project.sources()[name].sessions) is not None}
    assert units == {"s": "user", "t": "household", "u": "household"}
    assert project.needed_sources(["s", "orders"]) == ["s", "orders", "visits"]


def test_sessions_are_a_source_like_others(declare: Load) -> None:
    text = """\
  sessions: {sessions: {of: visits, entity: user}}
metrics:
  sessions_made: {kind: count, from: sessions, window: 7d}
  came_back: {kind: retention, to: sessions, at: 7d}
experiments:
  e: {assignment: {source: sessions, variant: arm, control: off}, primary: sessions_made, secondary: [came_back], over_time: {every: 1d}}
  f: {assignment: {source: exposures, variant: arm, control: off}, primary: sessions_made}
touchpoints:
  channel: {source: sessions, by: channel}
paths:
  p: {touchpoints: [channel], to: orders}
"""
    project = declare(text)
    assert project.warnings == ()
    assert (project.entity_of("e"), project.entity_of("f")) == ("user", "user")
    assert project.window_of("sessions_made", "f") == timedelta(days=7)
    assert project.journey_sources("paths.p") == ["sessions", "orders"]


def test_a_journey_reads_its_costs_and_the_arms_that_split_it(declare: Load) -> None:
    text = """\
experiments:
  e: {assignment: {table: arms, time: t, entity: {user: u}, variant: arm, control: off}, primary: n}
  f: {assignment: {source: visits, variant: arm, control: off}, entity: user, primary: n}
metrics: {n: {kind: count, from: orders}}
touchpoints:
  home: {source: exposures, personalised: seen}
  paid: {source: exposures, cost: {source: spend, column: euros}}
attribution:
  a: {conversion: orders, touchpoints: [home, paid], models: [last], reconcile_with: e}
  b: {conversion: orders, touchpoints: [home], models: [last], reconcile_with: e, between_arms_of: f}
cohorts:
  c: {start: visits, revenue: {event: orders, value: amount}, cost: {source: spend, column: euros}, entity: user}
"""
    project = declare(text)
    assert project.journey_sources("attribution.a") == ["exposures", "orders", "spend", "experiments.e.assignment"]
    assert project.journey_sources("attribution.b") == ["exposures", "orders", "visits"]
    assert project.journey_sources("cohorts.c") == ["visits", "orders", "spend"]
    assert isinstance(project.spec.touchpoints["paid"].cost, Spend)
    with pytest.raises(UsageError, match=r"'cohorts.d' is not .*did you mean 'cohorts.c'"):
        project.journey_sources("cohorts.d")


def test_the_unit_of_a_journey_is_its_own_else_the_default_else_the_only_one(declare: Load) -> None:
    project = declare("funnels: {a: {steps: [visits, calls]}, b: {steps: [visits, orders], entity: household}}\n")
    assert (project.journey_entity("funnels", "a"), project.journey_entity("funnels", "b")) == (
        "household",
        "household",
    )
    (found,) = problems(declare, "funnels:\n  a: {steps: [visits, orders]}\n")
    assert found == "14:3 [no-entity]: what the unit of this is, is not clear; add entity: NAME"
    project = declare("funnels: {a: {steps: [visits, orders]}}\ndefaults: {entity: household}\n")
    assert project.journey_entity("funnels", "a") == "household"
    with pytest.raises(UsageError, match=r"'funnels\.b' is not"):
        project.journey_entity("funnels", "b")


def test_entities_of_a_journey_that_are_joined_bring_the_source_that_joins_them(declare: Load) -> None:
    base = SOURCES.replace(
        "user: {id: user_id}", "user: {id: user_id, aliases: [cookie], identity: {source: logins}}\n  household: {}"
    )
    text = "  logins: {table: logins, columns: [user_id, cookie]}\n  s: {sessions: {of: visits, entity: user}}\n"
    project = declare(text, base)
    assert project.needed_sources(["s"]) == ["s", "visits", "logins"]
    assert project.needed_sources([]) == []


# ---------------------------------------------------------------- forms


@pytest.mark.parametrize(
    ("written", "kind", "name"),
    [
        ("first", "first", "first"),
        ("time_decay", "time_decay", "time_decay"),
        ("{time_decay: {half_life: 3d, name: short}}", "time_decay", "short"),
        ("{kind: time_decay, half_life: 3d}", "time_decay", "time_decay"),
        ("u_shaped", "position", "u_shaped"),
        ("w_shaped", "position", "w_shaped"),
        ("{position: [0.1, 0.2, 0.3, 0.4]}", "position", "position"),
        ("{position: {weights: [0.5, 0, 0.5]}}", "position", "position"),
        ("{custom: 1 / position}", "custom", "custom"),
        ("{custom: {weight: 1 / position, name: mine}}", "custom", "mine"),
        ("{markov: {order: 2}}", "markov", "markov"),
        ("{linear: {name: even}}", "linear", "even"),
    ],
)
def test_a_model_is_a_name_or_a_map_of_it(declare: Load, tmp_path: Path, written: str, kind: str, name: str) -> None:
    text = f"touchpoints: {{home: {{source: exposures}}}}\nattribution:\n  a: {{conversion: orders, touchpoints: [home], models: [{written}], entity: user}}\n"
    (model,) = declare(text).spec.attribution["a"].models
    assert (model.kind, model_names([model])) == (kind, (name,))
    tree = {"attribution": {"a": {"conversion": "orders", "touchpoints": ["home"], "models": [_tree(written)]}}}
    jsonschema.Draft202012Validator(json_schema("definitions")).validate(tree)


def _tree(written: str) -> Any:
    builder = yamlfile._Builder("x")
    builder.build(yamlfile.YAML(typ="safe", pure=True).parse(f"it: {written}\n"))
    return json.loads(json.dumps(builder.root))["it"]


def test_models_of_one_kind_are_told_apart_by_their_parameter() -> None:
    models = [
        Model(kind="time_decay", half_life=timedelta(days=1)),
        Model(kind="time_decay", half_life=timedelta(days=7)),
        Model(kind="markov"),
        Model(kind="markov", order=2),
        Model(kind="last"),
    ]
    assert model_names(models) == ("time_decay 1d", "time_decay 7d", "markov 1", "markov 2", "last")


@pytest.mark.parametrize(
    ("models", "at", "words"),
    [
        ("[lats]", "lats", "'lats' is not a model of attribution; did you mean 'last'?"),
        ("[last, {time_decay: {half_life: soon}}]", "soon", "'half_life': a duration is a number"),
        ("[{time_decay: {}}]", "{time_decay", "time_decay names its half_life"),
        (
            "[{time_decay: {halflife: 1d}}]",
            "halflife",
            "'halflife' is not a key of 'models.time_decay' of an attribution",
        ),
        ("[{position: [0.5, a, 0.5]}]", "a, 0.5", "must be a number, not the text 'a'"),
        ("[{position: [0.5, 0.6, 0.5]}]", "{position", "the weights of position add up to 1, not 1.6"),
        ("[{position: [0.5, 0.5]}]", "{position", "position has three weights"),
        ("[{custom: ''}]", "''", "must not be empty"),
        ("[{custom: {weight: 3}}]", "3}", "'weight' must be text, not 3"),
        ("[{markov: {order: 0}}]", "0}", "'order' must be at least 1"),
        ("[{last: {order: 1}}]", "{last", "order belongs to markov"),
        ("[{last: {}, first: {}}]", "{last", "a model is a name, or a map of its name alone"),
        ("[{kind: lats}]", "lats", "'kind' must be first, last,"),
        ("[7]", "7]", "must be a map of keys and values, not 7"),
        ("last", "last", "'models' must be a list, such as [a, b], not the text 'last'"),
    ],
)
def test_a_mistake_in_a_model_is_named_at_its_place(declare: Load, models: str, at: str, words: str) -> None:
    text = "touchpoints:\n  home: {source: exposures}\nattribution:\n"
    text += f"  a: {{entity: user, conversion: orders, touchpoints: [home], models: {models}}}\n"
    (found,) = problems(declare, text)
    assert words in found
    assert _at(SOURCES + text, found).startswith(at), found


def _at(text: str, problem: str) -> str:
    """What stands where a problem points."""
    line, column = problem.split(" ", maxsplit=1)[0].split(":")
    return text.splitlines()[int(line) - 1][int(column) - 1 :]


# ---------------------------------------------------------------- what refers to what

HELD = """\
metrics: {n: {kind: count, from: orders}}
touchpoints:
  home: {source: exposures, personalised: seen, experiment: TEST}
attribution:
  a: {conversion: orders, touchpoints: [home], models: [last], reconcile_with: WITH, between_arms_of: ARMS, entity: user}
experiments:
  plain: {assignment: {source: exposures, variant: arm, control: off}, primary: n}
  other: {assignment: {source: exposures, variant: arm, control: off}, primary: n}
  clustered: {assignment: {source: visits, variant: arm, control: off}, entity: user, cluster: household, primary: n}
  triggered: {assignment: {source: exposures, variant: arm, control: off}, primary: n, trigger: visits}
  households: {assignment: {source: calls, variant: arm, control: off}, entity: household, primary: n}
  untimed: {assignment: {table: arms, one_row_per: user, id: user_id, variant: arm, control: off}, primary: n}
  switching: {type: switchback, entity: user, assignment: {source: exposures, variant: arm, control: off}, primary: n, period: 4h}
"""


@pytest.mark.parametrize("key", ["WITH", "ARMS", "TEST"])
@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        ("clustered", "[wrong-experiment]: 'clustered' assigned whole units of household"),
        ("triggered", "[wrong-experiment]: 'triggered' reads only those who triggered"),
        (
            "households",
            "[wrong-entity]: 'households' compares units of household, and attribution.a reads units of user",
        ),
        ("untimed", "[no-time]: rows of the assignment of 'untimed' have no time"),
        ("switching", "[wrong-experiment]: 'switching' is a switchback"),
        ("plian", "[unknown-experiment]: 'plian' is not an experiment; did you mean 'plain'?"),
    ],
)
def test_credit_is_held_against_an_experiment_that_fits(declare: Load, key: str, experiment: str, words: str) -> None:
    text = HELD
    for other, fits in (("WITH", "plain"), ("ARMS", "plain"), ("TEST", "other")):
        text = text.replace(other, experiment if other == key else fits)
    (found,) = problems(declare, text)
    assert words in found
    line = {"WITH": 17, "ARMS": 17, "TEST": 15}[key]
    assert found.startswith(f"{line}:")


def test_experiments_that_fit_are_taken(declare: Load) -> None:
    project = declare(HELD.replace("WITH", "plain").replace("ARMS", "other").replace("TEST", "other"))
    assert project.warnings == ()


def test_mixed_sources_exclusions_and_repeated_rows_are_fine(declare: Load) -> None:
    text = """\
funnels:
  f:
    steps: [visits, {name: second, source: visits}, calls, {name: no_order, without: {source: orders, where: paid}, within: 7d}]
    exclude: [{source: orders, where: refunded}]
    by: {column: device, step: each}
    entity: household
cohorts:
  c: {start: visits, activity: visits, stickiness: month, lifecycle: week, retention: {kind: unbounded, period: 1d, periods: 30}, entity: user}
paths:
  p: {touchpoints: [home], from: visits, entity: user, top: 5}
touchpoints:
  home: {source: exposures}
"""
    assert declare(text).warnings == ()


def test_a_list_is_not_called_too_short_because_of_a_wrong_item(declare: Load) -> None:
    (found,) = problems(declare, "funnels:\n  f: {steps: [visits, {without: orders}], entity: user}\n")
    assert "a step without something has a name and says for how long (within)" in found


CLAIMED = """\
metrics: {n: {kind: count, from: orders}}
experiments:
  e: {assignment: {source: exposures, variant: arm, control: off}, primary: n}
touchpoints:
  home: {source: exposures}
  channel: {source: visits, by: channel}
attribution:
  a: {conversion: orders, touchpoints: [home, channel], models: [last, participation, {time_decay: {half_life: 1d}}, {time_decay: {half_life: 7d}}], entity: user}
claims:
  c: {statement: s, evidence: [e, attribution.a], compare: [attribution.a], amount: AMOUNT}
"""


@pytest.mark.parametrize(
    "amount",
    [
        "attributed(a, last)",
        "attributed(a, last, home)",
        "attributed(a, last, channel)",
        "\"attributed(a, 'time_decay 7d', 'channel: Paid search')\"",
        "attributed(a, participation, home)",
        "effect(n) * 2 + attributed(a, last)",
    ],
)
def test_an_amount_takes_credit(declare: Load, amount: str) -> None:
    assert declare(CLAIMED.replace("AMOUNT", amount if amount[0] == '"' else f'"{amount}"')).warnings == ()


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        ("attributed(b, last)", "[unknown-attribution]: 'b' is not an attribution"),
        ("attributed(a, time_decay)", "[unknown-model]: 'time_decay' is not a model of attribution 'a'; did you mean 'time_decay"),
        ("attributed(a, last, hom)", "[unknown-touchpoint]: 'hom' is not a touchpoint of attribution 'a'; did you mean 'home'?"),
        ("attributed(a, last, 'home: x')", "[unknown-touchpoint]: 'home: x' is not a touchpoint of attribution 'a'"),
        ("attributed(a, participation)", "[wrong-model]: participation credits a conversion to every touchpoint"),
    ],
)  # fmt: skip
def test_credit_that_is_not_there_is_named_in_its_place(declare: Load, amount: str, words: str) -> None:
    text = CLAIMED.replace("AMOUNT", f'"2 * {amount}"')
    (found,) = problems(declare, text)
    assert words in found
    assert _at(SOURCES + text, found).startswith(amount)


def test_an_effect_needs_an_experiment_among_the_evidence(declare: Load) -> None:
    text = CLAIMED.replace("[e, attribution.a]", "[attribution.a]").replace("AMOUNT", '"effect(n)"')
    (found,) = problems(declare, text)
    assert (
        "[unmeasured-metric]: an effect comes from an experiment, and this claim's evidence is attributed only" in found
    )


def test_a_population_is_counted_in_an_experiment(declare: Load) -> None:
    text = CLAIMED.replace("[e, attribution.a]", "[attribution.a]")
    (found,) = problems(declare, text.replace("AMOUNT", '"attributed(a, last) / population(user)"'))
    assert "[amount]: a population is counted among the units of an experiment" in found
    assert declare(text.replace("AMOUNT", '"attributed(a, last) / volume(visits, 7d)"')).warnings == ()


def test_what_is_shown_beside_an_amount_need_not_be_evidence(declare: Load) -> None:
    text = CLAIMED.replace("[e, attribution.a]", "[e]").replace("AMOUNT", '"effect(n)"')
    assert declare(text).spec.claims["c"].compare == ("attribution.a",)


def test_the_funnels_of_the_first_two_scenarios_load(declare: Load) -> None:
    text = """\
  impressions: {table: ad_impressions, time: shown_at, entity: {user: user_id}, id: impression_id}
  ad_clicks:   {table: ad_clicks, time: clicked_at, entity: {user: user_id}, links: {impressions: impression_id}}
  signups:     {table: signups, time: signed_up_at, entity: {user: user_id}}
  rec_clicks:  {table: rec_clicks, time: t, entity: {user: user_id}}
  carts:       {table: carts, time: t, entity: {user: user_id}}
  returns:     {table: returns, time: t, entity: {user: user_id}, links: {orders: order_id}}
defaults: {entity: user, window: 14d}
funnels:
  ad_to_value: {steps: [impressions, ad_clicks, signups, orders], within: 90d}
  engagement_to_kept:
    steps: [rec_clicks, carts, {source: orders, within: 7d}, {name: kept, without: returns, within: 30d}]
    by: {column: user_id}
"""
    project = declare(text)
    assert project.journey_sources("funnels.ad_to_value") == ["impressions", "ad_clicks", "signups", "orders"]
    assert project.journey_sources("funnels.engagement_to_kept") == ["rec_clicks", "carts", "orders", "returns"]
    assert [s.label for s in project.spec.funnels["engagement_to_kept"].steps] == [
        "rec_clicks",
        "carts",
        "orders",
        "kept",
    ]

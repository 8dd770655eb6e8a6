"""Projects that together use every kernel: each is the text of its definitions, over the tables of ``data``."""

from __future__ import annotations

import re
from typing import Any

HEAD = "version: 1\nproject: conformance\ncurrency: EUR\n"

SOURCES = """
sources:
  exposures: {table: exposures, time: t, id: exposure_id, entity: {user: user_id, household: household}}
  orders:    {table: orders, time: t, id: order_id, entity: {user: user_id}}
  visits:    {table: visits, time: t, entity: {user: user_id}}
  answers:   {table: answers, time: t, entity: {user: user_id}}
  users:     {table: users, one_row_per: user, id: user_id}
  plans:     {table: plan_changes, time: changed_at, entity: {user: user_id}}
"""
RECS = "assignment: {source: exposures, where: \"test = 'recs'\", variant: '\"group\"', control: off}"

PROJECTS: dict[str, str] = {
    # every kind of metric, in three experiments over one source, one of them of three arms
    "metrics": f"""
defaults: {{entity: user, window: 14d}}
{SOURCES}
metrics:
  orders_made: {{kind: count, from: orders}}
  paid_orders: {{kind: count, from: orders, where: "paid AND NOT (path = 'browse')"}}
  revenue:     {{kind: sum, from: orders, column: amount, unit: EUR}}
  price:       {{kind: sum, from: orders, column: price * "select", window: 7d}}
  order_value: {{kind: mean, from: orders, column: amount}}
  load:        {{kind: mean, from: visits, column: load_ms, direction: down, role: guardrail, margin: 20}}
  home_share:  {{kind: rate, from: visits, where: "page = 'home'"}}
  odd_rows:    {{kind: rate, from: orders, where: "order_id % 2 = 1 AND \\"select\\" / 2 > 1"}}
  bought:      {{kind: conversion, to: orders}}
  bought_soon: {{kind: conversion, to: {{source: orders, where: paid}}, after: {{source: visits, where: "page = 'cart'", within: 5d}}, window: 3d}}
  came_back:   {{kind: retention, to: visits, at: 3d, within: 4d}}
  median_load: {{kind: quantile, from: visits, column: load_ms, direction: down, unit: ms}}
  p90_spend:   {{kind: quantile, from: orders, column: amount, q: 0.9, of: units}}
  basket:      {{kind: ratio, numerator: {{sum: orders.amount}}, denominator: {{count: orders}}}}
  per_visit:   {{kind: ratio, numerator: {{sum: orders.price, where: "price > 10"}}, denominator: {{count: visits}}}}
  score:       {{kind: nps, from: answers, column: nps}}
  happy:       {{kind: csat, from: answers, column: csat}}
experiments:
  recs:
    {RECS}
    primary: [revenue, bought]
    secondary: [orders_made, paid_orders, price, order_value, home_share, odd_rows, bought_soon, came_back, median_load, p90_spend,
                basket, per_visit, score, happy]
    guardrails: [load]
    target: 1
  ranking:
    assignment: {{source: exposures, where: "test = 'ranking'", variant: '"group"', control: old, split: {{old: 0.4, new A: 0.3, "new 'B'": 0.3}}}}
    starts: 2026-09-20
    ends: 2026-10-20T12:00
    alpha: 0.1
    stop: {{rule: always_valid}}
  layout:
    assignment: {{source: exposures, where: "test = 'layout'", variant: is_new, control: false}}
    primary: [home_share, revenue]
    secondary: [basket, came_back]
    stop: {{rule: group_sequential, n: 2000, looks: 4}}
    bayes: {{sd: 0.1}}
  lonely:
    assignment: {{source: exposures, where: "test = 'lonely'", variant: '"group"', control: control}}
    primary: [revenue, order_value]
""",
    # what cannot be answered is refused in the same words
    "nothing_to_say": f"""
defaults: {{entity: user, window: 14d, min_cell: 10}}
{SOURCES}
  nobody: {{table: nobody, one_row_per: user, id: user_id}}
  never:  {{table: orders, where: "amount > 1000000000", time: t, entity: {{user: user_id}}}}
metrics:
  revenue: {{kind: sum, from: orders, column: amount}}
  nothing: {{kind: sum, from: never, column: amount}}
  no_mean: {{kind: mean, from: never, column: amount}}
  always:  {{kind: conversion, to: exposures, window: 60d}}
experiments:
  lonely:
    assignment: {{source: exposures, where: "test = 'lonely'", variant: '"group"', control: control}}
    primary: [revenue, no_mean]
  empty_arm:
    assignment: {{source: exposures, where: "test = 'recs'", variant: '"group"', control: off, split: {{off: 0.4, on: 0.4, beyond: 0.2}}}}
    primary: [revenue, nothing]
  no_control:
    assignment: {{source: exposures, where: "test = 'recs'", variant: '"group"', control: nowhere}}
    primary: revenue
  no_rows:
    assignment: {{source: exposures, where: "test = 'no such test'", variant: '"group"', control: off}}
    primary: revenue
  constant:
    {RECS}
    primary: always
""",
    "adjusted": f"""
defaults: {{entity: user, window: 14d}}
{SOURCES}
metrics:
  revenue: {{kind: sum, from: orders, column: amount, cap: p95}}
  capped:  {{kind: sum, from: orders, column: amount, cap: 100}}
  top:     {{kind: sum, from: orders, column: amount, cap: {{percentile: 90, of: nonzero}}}}
  often:   {{kind: count, from: orders, cap: 3}}
  value:   {{kind: mean, from: orders, column: price, cap: p90}}
  bought:  {{kind: conversion, to: orders}}
  basket:  {{kind: ratio, numerator: {{sum: orders.amount, cap: p99}}, denominator: {{count: orders}}}}
  visits_made: {{kind: count, from: visits, window: 7d}}
  home:    {{kind: rate, from: visits, where: "page = 'home'"}}
attributes:
  plan:   {{from: users, column: plan}}
  age:    {{from: users, column: age}}
  limit:  {{from: users, column: '"credit limit"'}}
  vip:    {{from: users, column: vip}}
  latest: {{from: plans, column: plan}}
  tenure: {{from: users, since: signed_up_at}}
experiments:
  cuped:
    {RECS}
    primary: [revenue, bought, basket]
    secondary: [capped, top, often, value, home]
    adjust: {{cuped: true, period: 21d}}
  covariates:
    {RECS}
    primary: [revenue]
    secondary: [basket, bought]
    adjust: {{cuped: true, metrics: [visits_made, bought], attributes: [plan, age, limit, vip, tenure, device, before_score]}}
  stratified:
    assignment: {{source: exposures, where: "test = 'ranking'", variant: '"group"', control: old}}
    primary: [revenue, bought]
    adjust: {{post_stratify: latest}}
""",
    "segments": f"""
defaults: {{entity: user, window: 14d, min_cell: 5}}
{SOURCES}
metrics:
  revenue: {{kind: sum, from: orders, column: amount}}
  bought:  {{kind: conversion, to: orders}}
  basket:  {{kind: ratio, numerator: {{sum: orders.amount}}, denominator: {{count: orders}}}}
attributes:
  tenure: {{from: users, since: signed_up_at, cuts: [30d, 180d], labels: [new, settling, returning]}}
  age:    {{from: users, column: age, cuts: [25, 40, 64.5]}}
  score:  {{from: users, column: score, quantiles: [0.25, 0.5, 0.9]}}
  plan:   {{from: plans, column: plan}}
  tier:   {{metric: revenue, period: 20d, quantiles: [0.5, 0.9], labels: [low, mid, high]}}
  vip:    {{from: users, column: vip}}
experiments:
  recs:
    {RECS}
    primary: [revenue, bought, basket]
    segments: [tenure, age, score, plan, tier, device]
    adjust: cuped
  ranking:
    assignment: {{source: exposures, where: "test = 'ranking'", variant: '"group"', control: old}}
    primary: revenue
    segments: [device, vip]
""",
    "closer": f"""
defaults: {{entity: user, window: 12d}}
{SOURCES}
metrics:
  revenue: {{kind: sum, from: orders, column: amount, unit: EUR}}
  bought:  {{kind: conversion, to: orders}}
experiments:
  recs:
    {RECS}
    primary: [revenue, bought]
    starts: 2026-09-15
    over_time: {{every: 3d}}
    cumulative: {{every: 7d}}
    cannibalisation: {{within: orders, by: path, paths: [recommendations, search, browse], value: amount, where: paid}}
    interactions: [ranking, layout]
    bayes: {{mean: 0.02, sd: 0.05}}
  ranking:
    assignment: {{source: exposures, where: "test = 'ranking'", variant: '"group"', control: old}}
    primary: revenue
    cannibalisation: {{within: orders, by: path, paths: [search, recommendations], treated: search}}
  layout:
    assignment: {{source: exposures, where: "test = 'layout'", variant: is_new, control: false}}
    primary: revenue
""",
    # units within what was assigned, units counted from an event on, rows that point at the exposure itself
    "clusters": f"""
defaults: {{entity: user, window: 14d}}
{SOURCES}
  linked: {{sql: "SELECT o.*, e.exposure_id FROM orders AS o JOIN exposures AS e ON e.exposure_id = o.order_id", time: t, entity: {{user: user_id}}, links: {{exposures: exposure_id}}}}
metrics:
  revenue: {{kind: sum, from: orders, column: amount, cap: p99}}
  bought:  {{kind: conversion, to: orders}}
  basket:  {{kind: ratio, numerator: {{sum: orders.amount}}, denominator: {{count: orders}}}}
  spend_90: {{kind: quantile, from: orders, column: amount, q: 0.75}}
  caused:  {{kind: count, from: linked}}
experiments:
  family:
    assignment: {{source: exposures, where: "test = 'family'", variant: '"group"', control: off}}
    entity: user
    cluster: household
    primary: [revenue, bought, basket]
    secondary: [spend_90]
    adjust: cuped
  in_cart:
    {RECS}
    entity: user
    trigger: {{source: visits, where: "page = 'cart'"}}
    primary: revenue
    secondary: [bought, basket]
  of_this_very_one:
    {RECS}
    entity: user
    primary: caused
""",
    "switchback": """
defaults: {entity: region}
sources:
  deliveries: {table: deliveries, time: t, entity: {region: region}}
  busy:       {table: deliveries, where: "minutes > 30", time: t, entity: {region: region}}
metrics:
  minutes: {kind: mean, from: deliveries, column: minutes, direction: down}
  made:    {kind: count, from: deliveries}
  total:   {kind: sum, from: deliveries, column: minutes, cap: p99}
  slow:    {kind: ratio, numerator: {count: busy}, denominator: {count: deliveries}}
experiments:
  courier_pay:
    type: switchback
    assignment: {table: pay_periods, time: t, entity: {region: region}, variant: arm, control: flat}
    primary: [minutes, made]
    secondary: [total, slow]
    period: 4h
    washout: 30m
""",
    # one shop's ids stored as numbers of five types, and as text of the same digits
    "ids": """
defaults: {entity: user, window: 14d}
sources:
  exposures: {table: exposures, time: t_zoned, entity: {user: user_no}}
  by_int:     {table: orders, time: t_zoned, entity: {user: user_int}}
  by_double:  {table: orders, time: t, entity: {user: user_double}}
  by_decimal: {table: orders, time: day, entity: {user: user_decimal}}
  by_text:    {table: orders, time: t, entity: {user: "CAST(user_no AS VARCHAR)"}}
  users:      {table: users, one_row_per: user, id: user_no}
metrics:
  as_int:     {kind: count, from: by_int}
  as_double:  {kind: sum, from: by_double, column: amount}
  as_decimal: {kind: mean, from: by_decimal, column: price}
  as_text:    {kind: conversion, to: by_text}
attributes:
  plan: {from: users, column: plan}
experiments:
  recs:
    assignment: {source: exposures, where: "test = 'recs'", variant: '"group"', control: off}
    primary: [as_int, as_double, as_decimal, as_text]
    segments: [plan]
  by_day:
    assignment: {table: exposures, where: "test = 'layout'", time: day, entity: {user: user_no}, variant: is_new, control: "false"}
    primary: [as_int, as_decimal]
""",
    # naive times in a zone, over the nights in which its clocks change; dates there
    "zones": """
timezone: Europe/Berlin
defaults: {entity: person, window: 2h}
sources:
  clocks:   {table: clocks, time: local, entity: {person: who}}
  ticks:    {table: ticks, time: local, entity: {person: who}}
  overseas: {table: ticks, time: local, timezone: America/New_York, entity: {person: who}}
metrics:
  worth:  {kind: sum, from: ticks, column: worth}
  count:  {kind: count, from: ticks, window: 45m}
  abroad: {kind: count, from: overseas, window: 30h}
experiments:
  night:
    assignment: {source: clocks, variant: kind, control: a}
    primary: [worth, count, abroad]
  october:
    assignment: {source: clocks, variant: kind, control: a}
    starts: 2026-10-25
    primary: [worth, count]
  by_day:
    assignment: {table: clocks, time: day, entity: {person: who}, variant: kind, control: a}
    starts: 2026-10-25
    window: 1d
    primary: worth
cohorts:
  nights: {start: clocks, activity: ticks, every: day, retention: {period: 1d, periods: 2}}
""",
    "programme": f"""
defaults: {{entity: user, window: 14d}}
{SOURCES}
metrics:
  revenue: {{kind: sum, from: orders, column: amount, unit: EUR}}
  ordered: {{kind: count, from: orders, unit: orders}}
experiments:
  recs:    {{{RECS}, primary: [revenue, ordered]}}
  ranking: {{assignment: {{source: exposures, where: "test = 'ranking' AND \\"group\\" <> 'new A'", variant: '"group"', control: old}}, primary: [revenue]}}
  layout:  {{assignment: {{source: exposures, where: "test = 'layout'", variant: is_new, control: "false"}}, primary: [revenue]}}
  global:
    type: holdout
    assignment: {{source: exposures, where: "test = 'global'", variant: '"group"', control: held_out, split: {{held_out: 0.3, everyone: 0.7}}}}
    primary: [revenue]
    window: 28d
programmes:
  autumn: {{experiments: [recs, ranking, layout], metric: revenue, shipped: [recs, layout], holdout: global}}
values:
  margin: {{value: 0.3, low: 0.25, high: 0.35, per: euro of revenue, source: accounts, owner: cfo@shop.example, expires: 2027-03-31}}
claims:
  total:
    statement: Personalisation pays
    evidence: [global]
    amount: effect(revenue) * value(margin) * population(user, 28d)
    less: {{licence: 100}}
    decision: {{threshold: "roi > 0", probability: 0.8}}
    sensitivity: [holdout_contamination, novelty_decay, discount_rate]
  by_volume:
    statement: So do recommendations
    evidence: [recs]
    amount: (effect(revenue) + effect(ordered) * 2) * value(margin) * volume(visits, 90d) / 10
  everyone:
    statement: For all there are
    evidence: [recs]
    amount: effect(ordered) * population(user)
""",
    "funnels": """
defaults: {entity: user}
sources:
  visits:    {table: visits, time: t, entity: {user: user_id}}
  exposures: {table: exposures, time: t, entity: {user: user_id}}
  carts:     {table: carts, time: t, entity: {user: user_id}}
  orders:    {table: orders, time: t, id: order_id, entity: {user: user_id}}
  returns:   {table: returns, time: t, entity: {user: user_id}, links: {orders: order_id}}
  days:      {table: signups, time: day, entity: {user: user_id}}
funnels:
  checkout: {steps: [visits, carts, orders], within: 7d, by: page}
  strict:   {steps: [visits, carts, orders], within: 10d, order: strict}
  any_way:  {steps: [visits, carts, orders], within: 5d, order: unordered}
  first:    {steps: [{source: visits, where: "page = 'home'"}, {source: carts, within: 3d}, {source: orders, within: 4d}], entry: first}
  kept:     {steps: [carts, orders, {name: kept, without: returns, within: 5d}], within: 9d}
  clean:
    steps: [visits, carts, orders]
    within: 14d
    exclude: [{source: visits, where: bot}, returns]
    by: {column: "extract(hour FROM t)", step: each}
    starts: 2026-09-20
    ends: 2026-10-20
  by_day:   {steps: [days, visits, orders]}
""",
    "cohorts": """
defaults: {entity: user, min_cell: 3}
sources:
  signups:  {table: signups, time: t, entity: {user: user_id}}
  days:     {table: signups, time: day, entity: {user: user_id}}
  visits:   {table: visits, time: t, entity: {user: user_id}}
  orders:   {table: orders, time: t, entity: {user: user_id}}
  ad_spend: {table: ad_spend, time: day}
cohorts:
  weekly:
    start: signups
    activity: visits
    revenue: {event: orders, value: amount}
    cost: {source: ad_spend, column: euros, where: "channel = 'social'"}
    retention: {period: 7d, periods: 6}
    lifecycle: week
    stickiness: week
  daily:     {start: days, activity: {source: visits, where: "NOT bot"}, every: day, retention: {kind: unbounded, period: 3d, periods: 4}, ends: 2026-09-20}
  monthly:   {start: signups, activity: visits, every: month, retention: {kind: bracket, brackets: [1d, 7d, 20d]}, lifecycle: month, stickiness: month}
  by_plan:   {start: signups, activity: orders, by: plan, revenue: {event: {source: orders, where: paid}, value: price}, retention: {period: 5d, periods: 3}}
  worth:     {start: visits, revenue: {event: orders, value: amount}, every: week}
""",
    "paths": """
defaults: {entity: user, min_cell: 2}
sources:
  visits: {table: visits, time: t, entity: {user: user_id}}
  orders: {table: orders, time: t, entity: {user: user_id}}
  signups: {table: signups, time: t, entity: {user: user_id}}
touchpoints:
  home:   {source: visits, where: "page = 'home'"}
  search: {source: visits, where: "page = 'search'"}
  page:   {source: visits, by: page}
  medium: {source: visits, by: "coalesce(utm_medium, 'none')"}
paths:
  to_order:    {touchpoints: [home, search, medium], to: {event: orders, value: amount}, window: 10d, top: 12}
  all_steps:   {touchpoints: [page], to: {event: {source: orders, where: paid}}, collapse: false, longest: 3, window: 20d}
  from_signup: {touchpoints: [page], from: signups, window: 7d, starts: 2026-09-10, ends: 2026-10-10}
""",
    "attribution": """
defaults: {entity: user, window: 14d}
sources:
  exposures: {table: exposures, time: t, entity: {user: user_id}}
  visits:    {table: visits, time: t, entity: {user: user_id}}
  orders:    {table: orders, time: t, entity: {user: user_id}}
  signups:   {table: signups, time: t, entity: {user: user_id}}
  ad_spend:  {table: ad_spend, time: day}
metrics:
  revenue: {kind: sum, from: orders, column: amount, unit: EUR}
touchpoints:
  home:    {source: visits, where: "page = 'home'", personalised: "utm_medium = 'email'", cost: "load_ms / 1000.0"}
  search:  {source: visits, where: "page = 'search'", personalised: "bot"}
  channel: {source: visits, where: "page = 'product'", by: utm_source, cost: {source: ad_spend, column: euros}}
  typed:   {source: visits, where: "page = 'cart'", direct: true}
attribution:
  all_models:
    conversion: {event: orders, value: amount}
    touchpoints: [home, search, channel, typed]
    window: [3d, 10d]
    models: [first, last, last_non_direct, linear, participation, {time_decay: {half_life: 2d}}, {position: [0.4, 0.2, 0.4]}, w_shaped,
             {custom: "1 / position + days_before / touches"}, markov, {kind: markov, order: 2, name: markov_2}, shapley, ordered_shapley]
    starts: 2026-09-20
    ends: 2026-11-20
  held_out:
    conversion: {event: orders, value: amount}
    touchpoints: [home, search]
    window: 14d
    models: [first, last, linear, markov, shapley]
    reconcile_with: global
    between_arms_of: recs
    max_pairs: 100
  two_ends:
    conversions: {orders: {event: {source: orders, where: paid}}, signups: signups}
    touchpoints: [home, channel]
    models: [last, linear, markov]
experiments:
  recs: {assignment: {source: exposures, where: "test = 'recs'", variant: '"group"', control: off}, primary: revenue}
  global:
    type: holdout
    assignment: {source: exposures, where: "test = 'global'", variant: '"group"', control: held_out, split: {held_out: 0.3, everyone: 0.7}}
    primary: revenue
claims:
  credited: {statement: What last touch says, evidence: [attribution.held_out], amount: "attributed(held_out, last, home) - attributed(held_out, markov)"}
""",
    "sessions": """
defaults: {entity: user, window: 14d}
sources:
  exposures: {table: exposures, time: t, entity: {user: user_id}}
  pages:     {table: visits, time: t, entity: {user: user_id}}
  orders:    {table: orders, time: t, entity: {user: user_id}}
  visits:    {sessions: {of: pages, gap: 12h, channels: {preset: ga4, campaign: utm_campaign}}}
  long:
    sessions:
      of: pages
      gap: 2d
      channels:
        - {name: Email, when: "utm_medium = 'email'"}
        - {name: "Bots, perhaps", when: bot}
        - {name: "Other's"}
metrics:
  sessions: {kind: count, from: visits}
  pages:    {kind: sum, from: visits, column: session_rows}
  by_email: {kind: rate, from: long, where: "channel = 'Email'"}
experiments:
  recs:
    assignment: {source: exposures, where: "test = 'recs'", variant: '"group"', control: off}
    primary: [sessions, pages, by_email]
touchpoints:
  channel: {source: visits, by: channel}
  long:    {source: long, by: channel}
attribution:
  by_session: {conversion: {event: orders, value: amount}, touchpoints: [channel], models: [last, linear, {markov: {order: 1}}], window: 10d}
paths:
  by_session: {touchpoints: [long], to: orders, window: 20d}
funnels:
  by_session: {steps: [{source: long, where: "session_rows > 1"}, orders], within: 10d, by: channel}
""",
    "identity": """
defaults: {entity: user, window: 14d}
entities:
  user: {id: user_id, aliases: [anonymous_id, device_id], identity: {source: identifies, lookback: 20d, blocked: [house-phone], max_size: 12}}
sources:
  identifies: {table: identifies, time: t, columns: [user_id, anonymous_id, device_id]}
  exposures:  {table: exposures, time: t, entity: {user: user_id}}
  visits:     {table: visits, time: t, entity: {user: any_id}}
  orders:     {table: orders, time: t, entity: {user: user_id}}
  sittings:   {sessions: {of: visits, gap: 1d}}
metrics:
  revenue: {kind: sum, from: orders, column: amount}
  seen:    {kind: count, from: visits}
experiments:
  recs:
    assignment: {source: exposures, where: "test = 'recs'", variant: '"group"', control: off}
    primary: [revenue, seen]
    adjust: cuped
touchpoints:
  page: {source: visits, by: page}
funnels:
  to_order: {steps: [visits, orders], within: 10d}
cohorts:
  buyers: {start: orders, activity: visits, every: month, retention: {period: 7d, periods: 3}}
paths:
  to_order: {touchpoints: [page], to: orders, window: 10d}
attribution:
  pages: {conversion: {event: orders, value: amount}, touchpoints: [page], models: [last, linear], window: 10d}
""",
    "identity_apart": """
defaults: {entity: user, window: 14d}
entities:
  user: {id: user_id, aliases: [anonymous_id, device_id], identity: {source: identifies, shared: apart}}
sources:
  identifies: {table: identifies}
  exposures:  {table: exposures, time: t, entity: {user: user_id}}
  visits:     {table: visits, time: t, entity: {user: any_id}}
  sittings:   {sessions: {of: visits, gap: 1d}}
metrics:
  seen:     {kind: count, from: visits}
  sittings: {kind: count, from: sittings}
experiments:
  recs:
    assignment: {source: exposures, where: "test = 'recs'", variant: '"group"', control: off}
    primary: [seen, sittings]
""",
    # a table of one row a unit, with everything in columns, and no time
    "one_row": """
sources:
  people: {table: users, one_row_per: person}
  known:  {table: users, one_row_per: customer, id: user_id, where: "age IS NULL OR age >= 18"}
metrics:
  limit: {kind: mean, from: people, column: '"credit limit"', entity: person}
  old:   {kind: rate, from: people, where: "age > 60", entity: person}
  score: {kind: sum, from: known, column: score * 2, entity: customer}
experiments:
  plan: {assignment: {source: people, variant: plan, control: free}, entity: person, primary: [limit, old]}
  vip:  {assignment: {source: known, variant: vip, control: "false"}, entity: customer, primary: score, segments: [plan]}
""",
    # expressions that a definition may use
    "expressions": f"""
defaults: {{entity: user, window: 14d}}
{SOURCES}
metrics:
  a: {{kind: sum, from: orders, column: "CASE WHEN amount > 50 THEN 50 WHEN amount IS NULL THEN 0 ELSE amount END"}}
  b: {{kind: sum, from: orders, column: 'abs(amount) + coalesce(price, 0) - nullif("select", 3)'}}
  c: {{kind: sum, from: orders, column: "round(amount, 1) + floor(amount) + ceil(amount)"}}
  d: {{kind: sum, from: orders, column: "greatest(amount, 10) + least(amount, 20)"}}
  e: {{kind: sum, from: orders, column: '"select" // 2 + "select" % 2'}}
  f: {{kind: sum, from: orders, column: "ln(abs(amount) + 1) + sqrt(abs(amount)) + exp(-abs(amount) / 100) + power(2, 3)"}}
  g: {{kind: count, from: orders, where: "lower(path) IN ('search', 'browse') OR path LIKE 'rec%'"}}
  h: {{kind: count, from: orders, where: "path NOT IN ('search')"}}
  i: {{kind: count, from: orders, where: "t >= TIMESTAMP '2026-10-01 00:00:00' AND extract(hour FROM t) BETWEEN 8 AND 20"}}
  j: {{kind: count, from: orders, where: "amount BETWEEN 1 AND 100 AND paid IS NOT FALSE"}}
  k: {{kind: count, from: visits, where: "length(page) > 4 AND upper(page) <> 'SEARCH' AND substr(page, 1, 1) = 'p'"}}
  l: {{kind: count, from: visits, where: "coalesce(utm_source, '') || '/' || coalesce(utm_medium, '') = 'google/cpc'"}}
  m: {{kind: sum, from: orders, column: "amount / \\"select\\" + 7 / 2 + \\"select\\" / 2"}}
  n: {{kind: sum, from: orders, column: "CAST(amount AS INTEGER)", where: "amount < 1000"}}
  o: {{kind: sum, from: orders, column: paid}}
  p: {{kind: sum, from: orders, column: "date_diff('day', day, DATE '2026-12-01')"}}
  q: {{kind: sum, from: orders, column: "price / 7 + price / 3.0 + price * 0.1"}}
  r: {{kind: mean, from: visits, column: "load_ms / 7.0"}}
  s: {{kind: sum, from: orders, column: 'amount / nullif("select" - 1, 0)'}}
experiments:
  recs: {{{RECS}, entity: user, secondary: [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s]}}
""",
}

BROKEN: dict[str, str] = {
    # data that is not what its definition says: one clear sentence, the same everywhere
    "text_for_numbers": """
defaults: {entity: user, window: 14d}
sources:
  exposures: {table: exposures, time: t, entity: {user: user_id}}
  orders:    {table: orders, time: t, entity: {user: user_id}}
metrics:
  worth: {kind: sum, from: orders, column: path}
experiments:
  recs: {assignment: {source: exposures, variant: '"group"', control: off}, primary: worth}
""",
    "text_for_times": """
defaults: {entity: user, window: 14d}
sources:
  exposures: {table: exposures, time: device, entity: {user: user_id}}
  orders:    {table: orders, time: t, entity: {user: user_id}}
metrics:
  worth: {kind: sum, from: orders, column: amount}
experiments:
  recs: {assignment: {source: exposures, variant: '"group"', control: off}, primary: worth}
""",
    "unknown_column": """
defaults: {entity: user, window: 14d}
sources:
  exposures: {table: exposures, time: t, entity: {user: user_id}}
  orders:    {table: orders, time: t, entity: {user: user_id}}
metrics:
  worth: {kind: sum, from: orders, column: amont}
experiments:
  recs: {assignment: {source: exposures, variant: '"group"', control: off}, primary: worth}
""",
    "not_finite": """
defaults: {entity: user, window: 14d}
sources:
  exposures: {table: exposures, time: t, entity: {user: user_id}}
  orders:    {table: orders, time: t, entity: {user: user_id}}
metrics:
  worth: {kind: sum, from: orders, column: "CASE WHEN order_id % 50 = 7 THEN CAST('nan' AS DOUBLE) ELSE amount END"}
experiments:
  recs: {assignment: {source: exposures, where: "test = 'recs'", variant: '"group"', control: off}, primary: worth}
""",
    "divided_by_zero": """
defaults: {entity: user, window: 14d}
sources:
  exposures: {table: exposures, time: t, entity: {user: user_id}}
  orders:    {table: orders, time: t, entity: {user: user_id}}
metrics:
  worth: {kind: sum, from: orders, column: 'amount / ("select" - 1)'}
experiments:
  recs: {assignment: {source: exposures, where: "test = 'recs'", variant: '"group"', control: off}, primary: worth}
""",
    "repeated_units": """
sources:
  seen: {table: exposures, one_row_per: user, id: user_id}
metrics:
  score: {kind: mean, from: seen, column: before_score}
experiments:
  recs: {assignment: {source: seen, where: "test = 'recs'", variant: '"group"', control: off}, primary: score}
""",
    "condition_of_text": """
defaults: {entity: user, window: 14d}
sources:
  exposures: {table: exposures, where: device, time: t, entity: {user: user_id}}
  orders:    {table: orders, time: t, entity: {user: user_id}}
metrics:
  worth: {kind: sum, from: orders, column: amount}
experiments:
  recs: {assignment: {source: exposures, variant: '"group"', control: off}, primary: worth}
""",
}


def text_of(name: str, connection: dict[str, Any] | None, files: bool = False) -> str:
    """A whole payoff.yml; with ``files`` its tables are Parquet files beside it."""
    body = (PROJECTS | BROKEN)[name]
    if files:
        body = re.sub(r"\btable: (\w+)", r"file: \1.parquet", body)
    where = "" if connection is None else f"connections: {{main: {_flow(connection)}}}\n"
    return HEAD + where + body.lstrip("\n")


def _flow(value: Any) -> str:
    """A map as YAML in one line, its texts quoted."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)

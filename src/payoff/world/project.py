"""The simulated company on disk: its tables as Parquet, a project that measures them, and, apart from both, the truth."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from payoff.errors import ConnectionFailed, UsageError
from payoff.world.company import MAIL_DAYS, Company, World, make_company

_PAYOFF: Final = """\
# The root of the project. Everything else is in definitions/, the data in data/.
version: 1
project: acme_demo
currency: USD
timezone: UTC
defaults:
  entity: user
  window: 14d             # a metric's window after exposure, unless it says otherwise
  alpha: 0.05
  min_cell: 20            # no figure is shown for fewer people than this
connections:
  main: {engine: duckdb}  # no database: the sources below are files
include: [definitions/*.yml]
"""

_SOURCES: Final = """\
# What the company records. `through` says up to when the data are complete: windows that end later are still open.
entities:
  # Customers browse without logging in, on several devices: `identifies` says which names were one customer's. A device that
  # several of them use says nothing, so it is kept apart, and nobody is merged with the people they live with.
  user: {id: user_id, aliases: [anonymous_id, device_id], identity: {source: identifies, lookback: 90d, blocked: [guest], shared: apart}}
sources:
  identifies:  {file: data/identifies.parquet,   time: t,            id: identify_id, columns: [user_id, anonymous_id, device_id], through: %(through)s}
  customers:   {file: data/customers.parquet,    time: signed_up_at, id: customer_id, entity: {user: customer_id}, through: %(through)s}
  sessions:    {file: data/sessions.parquet,     time: started_at,   id: session_id,  entity: {user: user_id}, through: %(through)s}
  exposures:   {file: data/exposures.parquet,    time: exposed_at,   id: exposure_id, entity: {user: user_id}, through: %(through)s}
  site_clicks: {file: data/site_clicks.parquet,  time: clicked_at,   id: click_id,    entity: {user: user_id}, through: %(through)s}
  orders:      {file: data/orders.parquet,       time: ordered_at,   id: order_id,    entity: {user: user_id}, through: %(through)s}
  returns:     {file: data/returns.parquet,      time: returned_at,  id: return_id,   entity: {user: user_id}, links: {orders: order_id}, through: %(through)s}
  sends:       {file: data/email_sends.parquet,  time: sent_at,      id: send_id,     entity: {user: user_id}, through: %(through)s}
  opens:       {file: data/email_opens.parquet,  time: opened_at,    id: open_id,     entity: {user: user_id}, links: {sends: send_id}, through: %(through)s}
  clicks:      {file: data/email_clicks.parquet, time: clicked_at,   id: click_id,    entity: {user: user_id}, links: {sends: send_id}, through: %(through)s}
  touches:     {file: data/touches.parquet,      time: touched_at,   id: touch_id,    entity: {user: any_id}, through: %(through)s}
  ad_spend:    {file: data/ad_spend.parquet,     time: billed_at,    id: bill_id, through: %(through)s}
  page_views:  {file: data/page_views.parquet,   time: viewed_at,    id: view_id,     entity: {user: any_id}, through: %(through)s}
  carts:       {file: data/carts.parquet,        time: added_at,     id: cart_id,     entity: {user: any_id}, through: %(through)s}
  checkouts:   {file: data/checkouts.parquet,    time: started_at,   id: checkout_id, entity: {user: user_id}, links: {carts: cart_id}, through: %(through)s}
  visits:      {sessions: {of: page_views, gap: 30m, channels: {preset: ga4}}, through: %(through)s}
"""

_JOURNEYS: Final = """\
# How customers come to buy. This describes: credit is shared out by rules, and only an experiment says what it changed.
touchpoints:
  home:            {source: touches, where: "surface = 'home'",        personalised: "variant = 'personalised'"}
  search:          {source: touches, where: "surface = 'search'",      personalised: "variant = 'personalised'"}
  recommendations: {source: touches, where: "surface = 'recs'",        personalised: "variant = 'personalised'"}
  paid_social:     {source: touches, where: "surface = 'paid_social'", cost: spend}
  email:           {source: touches, where: "surface = 'email'"}
  direct:          {source: touches, where: "surface = 'direct'",      direct: true}
  channel:         {source: visits,  by: channel}
attribution:
  personalisation:
    conversion: {event: orders, value: "amount * margin_rate"}
    touchpoints: [home, search, recommendations, paid_social, email, direct]
    window: 30d
    models: [last, first, linear, {time_decay: {half_life: 7d}}, {position: [0.4, 0.2, 0.4]}, markov, shapley]
    starts: %(start)s
    reconcile_with: global_holdout   # what the holdout proves rescales the credit, and shows how much of it is more than that
    owner: growth@acme.example
funnels:
  engagement_to_kept:
    steps:
      - {name: engaged, source: touches, where: "surface IN ('home', 'search', 'recs')"}
      - {name: cart, source: carts}
      - {name: checkout, source: checkouts}
      - {name: order, source: orders}
      - {name: kept, without: returns, within: 30d}
    within: 7d
    starts: %(recently)s
    owner: growth@acme.example
cohorts:
  signups:
    start: customers
    activity: sessions
    revenue: {event: orders, value: "amount * margin_rate"}
    cost: {source: ad_spend, column: spend}   # shown to all who might sign up, most of whom never do
    every: month
    retention: {period: 30d, periods: 9}
    lifecycle: month
    stickiness: month
    starts: %(first_month)s
    ends: %(last_month)s
    owner: growth@acme.example
paths:
  to_purchase: {touchpoints: [home, search, recommendations, paid_social, email, direct], to: orders, window: 7d, top: 12, starts: %(recently)s, owner: growth@acme.example}
  by_channel:  {touchpoints: [channel], to: orders, window: 30d, top: 8, starts: %(lately)s, owner: growth@acme.example}
"""

_ATTRIBUTES: Final = """\
# What customers were before anything was done to them: for segments, and to make intervals shorter.
attributes:
  value_tier: {from: customers, column: value_tier}
  tenure:     {from: customers, since: signed_up_at, cuts: [90d, 365d], labels: [under 90 days, 90 days to a year, over a year]}
"""

_EMAIL: Final = """\
# Does a first name in the subject line earn anything, or does it only get opened?
metrics:
  open_rate:         {kind: conversion, to: opens, direction: up, role: secondary,
                      caveat: "Apple Mail Privacy Protection fetches mail unread, which inflates opens; decide on clicks or revenue"}
  click_rate:        {kind: conversion, to: clicks, direction: up, role: primary}
  order_rate:        {kind: conversion, to: orders, after: clicks, window: 24h, direction: up, role: secondary}
  revenue_per_email: {kind: sum, from: orders, column: amount, window: 24h, direction: up, role: secondary, unit: USD%(cap)s}
  unsubscribe_rate:  {kind: conversion, to: {source: sends, where: "unsubscribed"}, direction: down, role: guardrail, margin: 0.002}
experiments:
  first_name_subject:
    assignment: {source: sends, variant: subject_variant, control: generic, split: {generic: 0.5, first_name: 0.5}}
    hypothesis: "The first name in the subject line raises clicks, not just opens"
    owner: crm@acme.example
    primary: click_rate
    secondary: [open_rate, order_rate, revenue_per_email]
    guardrails: [unsubscribe_rate]
    stop: {rule: fixed, at: %(campaign_stop)s, mde: 0.01}
    segments: [tenure]
values:
  gross_margin: {value: 0.35, low: 0.31, high: 0.39, per: USD of revenue, source: "Finance plan, contribution margin", owner: cfo@acme.example, expires: %(expires)s}
claims:
  first_name_revenue:
    statement: "First names in subject lines earn more margin than they cost, over a year of e-mails"
    evidence: [first_name_subject]
    amount: "effect(revenue_per_email) * value(gross_margin) * volume(sends, 365d)"
    less:
      copywriting: {value: %(copywriting)d, low: %(copywriting_low)d, high: %(copywriting_high)d, per: year, source: "CRM budget", owner: crm@acme.example, expires: %(expires)s}
    decision: {threshold: "net > 0", probability: 0.9}
    owner: crm@acme.example
"""

_PERSONALISATION: Final = """\
# What does personalisation earn as a whole? One customer in ten never sees any.
metrics:
  margin_90d:  {kind: sum, from: orders, column: "amount * margin_rate", window: 90d, direction: up, role: north_star, unit: USD, owner: cfo@acme.example}
  conversion:  {kind: conversion, to: orders, window: 30d, direction: up, role: secondary}
  aov:         {kind: ratio, numerator: {sum: orders.amount}, denominator: {count: orders}, window: 90d, direction: up, role: secondary, unit: USD}
  return_rate: {kind: ratio, numerator: {count: returns}, denominator: {count: orders}, window: 90d, direction: down, role: guardrail, margin: 0.015}
  rec_clicks:  {kind: count, from: site_clicks, where: "surface = 'recs'", window: 30d, direction: up, role: vanity,
                reason: "personalised recommendations are clicked far more and bought from hardly more"}
experiments:
  global_holdout:
    type: holdout
    assignment: {source: exposures, variant: global_arm, control: generic, split: {generic: %(generic)s, personalised: %(personalised)s}}
    hypothesis: "Personalised home, search and recommendations raise margin per customer"
    owner: growth@acme.example
    starts: %(start)s
    primary: margin_90d
    secondary: [conversion, aov, rec_clicks]
    guardrails: [return_rate]
    stop: {rule: fixed, at: %(through)s}
    adjust: {cuped: true, period: 90d, attributes: [value_tier]}   # what was known before: shorter intervals
    segments: [tenure, value_tier]
    over_time: {every: 15d}
    cumulative: {every: 28d}
    cannibalisation: {within: orders, by: discovery_path, value: "amount * margin_rate", paths: [recommendations, search, browse], treated: recommendations}
claims:
  personalisation_total:
    statement: "Personalisation earns more margin than it costs, over a year"
    evidence: [global_holdout]
    compare: [attribution.personalisation]
    amount: "effect(margin_90d) * population(user, 365d)"
    less:
      licence: {value: %(licence)d, low: %(licence)d, high: %(licence_high)d, per: year, source: "Licence contract", owner: procurement@acme.example, expires: %(expires)s}
      team:    {value: %(team)d, low: %(team_low)d, high: %(team_high)d, per: year, source: "Finance plan, growth team", owner: cfo@acme.example, expires: %(expires)s}
    decision: {threshold: "net > 0", probability: 0.9}
    sensitivity: [holdout_contamination, novelty_decay, discount_rate]
    owner: growth@acme.example
reports:
  personalisation_quarterly:
    audience: cfo
    title: "What personalisation earned"
    schedule: quarterly
    show: [claims.personalisation_total, claims.first_name_revenue, experiments.global_holdout, experiments.first_name_subject,
           attribution.personalisation, funnels.engagement_to_kept, cohorts.signups, paths.to_purchase, paths.by_channel]
"""


def demo_definitions(world: World, *, today: date, capped: bool = True) -> dict[str, str]:
    """The demo project's files, relative path -> YAML text, for a company made from ``world``.

    Money values and costs expire a year after ``today``; costs grow with the number of customers. ``capped=False`` leaves the
    cap off revenue per e-mail, so that every estimate is of exactly the effect in the truth, which knows no caps.
    """

    def money(per_customer: float) -> int:
        return round(per_customer * world.customers)

    months = _whole_months(world)
    fields: dict[str, object] = {
        "start": world.start,
        "through": world.start + timedelta(days=world.days),
        "first_month": months[0],
        "last_month": months[1],
        "recently": world.start + timedelta(days=world.days - 90),
        "lately": world.start + timedelta(days=world.days - 60),
        "campaign_stop": world.start + timedelta(days=MAIL_DAYS + 15),
        "expires": today + timedelta(days=365),
        "cap": ", cap: {percentile: 99, of: nonzero}" if capped else "",
        "generic": round(world.holdout, 9),
        "personalised": round(1 - world.holdout, 9),
        "licence": money(0.3),
        "licence_high": money(0.33),
        "team": money(0.2),
        "team_low": money(0.15),
        "team_high": money(0.27),
        "copywriting": money(0.05),
        "copywriting_low": money(0.04),
        "copywriting_high": money(0.07),
    }
    return {
        "payoff.yml": _PAYOFF,
        "definitions/sources.yml": _SOURCES % fields,
        "definitions/attributes.yml": _ATTRIBUTES,
        "definitions/journeys.yml": _JOURNEYS % fields,
        "definitions/email_subject.yml": _EMAIL % fields,
        "definitions/personalisation.yml": _PERSONALISATION % fields,
    }


def _whole_months(world: World) -> tuple[date, date]:
    """The whole months in which customers sign up after the start: from one first of the month to another."""
    last = world.start + timedelta(days=round(0.4 * world.days))
    first = (world.start.replace(day=1) + timedelta(days=31)).replace(day=1) if world.start.day > 1 else world.start
    return (first, last.replace(day=1)) if first < last.replace(day=1) else (world.start, last)


def _apart(truth: Path, other: Path) -> None:
    if truth.resolve().is_relative_to(other.resolve()):
        raise UsageError(
            f"the truth would be written inside {other}, where a project can read it; name a folder outside"
        )


def write(company: Company, data_dir: Path, truth_dir: Path) -> None:
    """``data_dir/TABLE.parquet`` for every table, and ``truth_dir/truth.json`` where no project looks.

    Raises UsageError when the one lies inside the other, ConnectionFailed when something cannot be written.
    """
    _apart(truth_dir, data_dir)
    _write_tables(company, data_dir)
    _write_text(truth_dir / "truth.json", json.dumps(company.truth, indent=2, allow_nan=False) + "\n")


def _write_tables(company: Company, data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        for name, table in company.tables.items():
            # a table's own id is different in every row, which a dictionary would only repeat
            shared = [field.name for field in table.schema if field.name != table.schema.names[0]]
            pq.write_table(table, data_dir / f"{name}.parquet", compression="zstd", use_dictionary=shared)
    except OSError as error:
        raise ConnectionFailed(f"cannot write the tables to {data_dir}: {error}") from error


def _write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConnectionFailed(f"cannot write {path}: {error}") from error


def write_demo_project(
    folder: Path,
    world: World | None = None,
    *,
    today: date,
    truth_dir: Path | None = None,
    overwrite: bool = False,
    capped: bool = True,
) -> Company:
    """A project in ``folder`` that runs as it is: payoff.yml, definitions/ and data/. Returns the company, with its truth.

    Without ``world`` it is the shipped one, its data ending at the start of ``today``. The truth is written only when
    ``truth_dir`` is given, and never inside ``folder``. Raises UsageError when the folder holds a project already and
    ``overwrite`` is false; overwriting replaces these files and leaves every other one, such as the ledger, alone.
    """
    if world is None:
        world = World()
        world = replace(world, start=today - timedelta(days=world.days))
    if truth_dir is not None:
        _apart(truth_dir, folder)
    if not overwrite and (folder / "payoff.yml").exists():
        raise UsageError(f"{folder} already holds a project (payoff.yml); choose another folder, or overwrite it")
    company = make_company(world)
    if truth_dir is None:
        _write_tables(company, folder / "data")
    else:
        write(company, folder / "data", truth_dir)
    for path, text in demo_definitions(world, today=today, capped=capped).items():
        _write_text(folder / path, text)
    return company

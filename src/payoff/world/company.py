"""A simulated shop whose every causal effect is known, because both potential worlds of each customer are computed.

Randomness is drawn once, from generators that depend on the seed alone, and shared by all potential worlds (common random
numbers): an outcome happens when a latent score, plus whatever the treatment adds, beats a logistic noise that the worlds have
in common. The observed company is one potential world per customer, picked by two independent coin tosses: the global holdout
(``global_arm``) and the subject line of an e-mail campaign (``subject_variant``). The truth is the finite-population average
treatment effect: the mean over the very units of the experiment of outcome-if-treated minus outcome-if-not, with the other
treatment as it was assigned (Neyman 1923; Imbens and Rubin 2015, chapter 6).

What makes it a hard world for naive figures: every customer has a demand that exists anyway, which drives visits, clicks and
purchases alike. Personalisation multiplies clicks on recommendations and moves few purchases, so most of the revenue that
last-touch attribution books to it would have come without it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any, Final, Literal, TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from payoff.errors import UsageError, did_you_mean

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]
"""One table as columns: customers and sessions by position, times in microseconds since the epoch."""

SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
NEVER: Final = np.iinfo(np.int64).max // 4

HISTORY_DAYS: Final = 30
"""Days of sessions and orders before the holdout starts, when everybody sees the generic site."""
MAIL_DAYS: Final = 28
"""The first e-mail of the subject-line experiment goes out on this day after the start, and another every so many days."""

ANCHOR_WITHIN: Final = 14 * DAY
"""The click that opens the window of the order rate is the first within this span of the first e-mail."""
WINDOWS: Final[dict[str, dict[str, int]]] = {
    "first_name_subject": {
        "click_rate": 14 * DAY,
        "open_rate": 14 * DAY,
        "order_rate": 24 * HOUR,
        "revenue_per_email": 24 * HOUR,
        "unsubscribe_rate": 14 * DAY,
    },
    "global_holdout": {
        "margin_90d": 90 * DAY,
        "conversion": 30 * DAY,
        "aov": 90 * DAY,
        "return_rate": 90 * DAY,
        "rec_clicks": 30 * DAY,
    },
}
"""Metric windows in microseconds, by experiment: events in [first exposure, first exposure + window)."""

TREATMENT: Final = {"first_name_subject": "first_name", "global_holdout": "personalised"}
CONTROL: Final = "generic"

SURFACES: Final = ("home", "search", "recs")
TOUCHES: Final = (*SURFACES, "direct", "email")
DISCOVERY: Final = ("browse", "search", "recommendations", "browse", "email")

# What the treatments add, on the logit scale, at effect = 1. Clicks move a lot, purchases little.
CLICK_LIFT: Final = {"home": 0.35, "search": 0.25, "recs": 0.95}
BUY_LIFT: Final = 0.13
RETURN_LIFT: Final = 0.06
OPEN_LIFT: Final = 0.25
MAIL_CLICK_LIFT: Final = -0.05
UNSUBSCRIBE_LIFT: Final = 0.10


@dataclass(frozen=True, slots=True)
class World:
    """The knobs. The same knobs give the same company, to the last byte.

    ``customers``; ``days`` of data after ``start``; ``seed``; ``effect`` multiplies every true effect (1 is the shipped world,
    negative turns harm and benefit around); ``skew`` is the standard deviation of the log of customer value; ``null`` switches
    every effect off, exactly (an A/A world whose arms differ in name only). Two knobs set the power: ``holdout``, the share of
    customers kept generic, and ``audience``, the share of customers who take e-mail.
    """

    customers: int = 60_000
    days: int = 365
    seed: int = 7
    effect: float = 1.0
    skew: float = 0.6
    null: bool = False
    holdout: float = 0.10
    audience: float = 0.70
    start: date = date(2025, 9, 1)

    def __post_init__(self) -> None:
        if not 100 <= self.customers < 1_000_000:
            raise UsageError(f"a world has from 100 to 999,999 customers, not {self.customers}")
        if not 120 <= self.days <= 730:
            raise UsageError(
                f"a world lasts from 120 days (a 90-day margin needs time to come in) to 730, not {self.days}"
            )
        if not -10 <= self.effect <= 10:
            raise UsageError(f"effect is a multiple between -10 and 10, not {self.effect}")
        if not 0 <= self.skew <= 3:
            raise UsageError(f"skew is a standard deviation between 0 and 3, not {self.skew}")
        for name, share in (("holdout", self.holdout), ("audience", self.audience)):
            if not 0 < share < 1:
                raise UsageError(f"{name} is a share between 0 and 1 (both excluded), not {share}")
        if self.seed < 0:
            raise UsageError(f"a seed is a whole number from 0, not {self.seed}")


class MetricTruth(TypedDict):
    """``effect`` = ``treated`` - ``control``, the two potential-world levels over the same ``units``; all in the metric's unit."""

    effect: float
    treated: float
    control: float
    units: int


@dataclass(frozen=True, slots=True)
class Company:
    """What the company's warehouse holds (``tables``) and what only the simulation knows (``truth``).

    ``truth["experiments"][experiment]["metrics"][metric]`` is a MetricTruth over the units whose window has closed by
    ``truth["through"]``. Money totals, in currency, over the whole period after the start and the customers who were
    personalised: ``last_touch_attributed_revenue``, ``true_incremental_revenue`` and ``attributed_over_true`` (None when the
    true figure is zero).
    """

    world: World
    tables: dict[str, pa.Table]
    truth: dict[str, Any]

    def effect(self, experiment: str, metric: str) -> float:
        """The true average treatment effect on ``metric`` over the units of ``experiment``."""
        return float(self.truth["experiments"][experiment]["metrics"][metric]["effect"])


def _micros(day: date) -> int:
    return int(np.datetime64(day, "us").astype(np.int64))


# ---------------------------------------------------------------- what exists before any treatment


@dataclass(frozen=True, slots=True)
class _Latent:
    """Everything drawn, none of it touched by a treatment. n customers, s sessions (in order of time), m mailed customers.

    Scores are latent utilities less their noise: the event happens where score + lift > 0.
    """

    world: World
    lift: float
    start: int
    end: int
    # (n,)
    signed_up: IntArray
    country: IntArray
    tier: IntArray
    opted_in: BoolArray
    global_arm: BoolArray
    subject: BoolArray
    # (s,)
    user: IntArray
    started: IntArray
    device: IntArray
    served: BoolArray
    shown_at: dict[str, IntArray]
    shown: dict[str, BoolArray]
    click_score: dict[str, FloatArray]
    buy_score: FloatArray
    return_score: FloatArray
    ordered: IntArray
    returned: IntArray
    amount: FloatArray
    margin: FloatArray
    # (m,) and (m, e-mails in the period)
    mailed: IntArray
    sent: IntArray
    apple: BoolArray
    open_score: FloatArray
    prefetched: BoolArray
    prefetched_at: IntArray
    opened_at: IntArray
    mail_click_score: FloatArray
    mail_clicked_at: IntArray
    mail_buy_score: FloatArray
    mail_ordered: IntArray
    mail_amount: FloatArray
    mail_margin: FloatArray
    unsubscribe_score: FloatArray

    @property
    def n(self) -> int:
        return len(self.signed_up)


def _span(rng: np.random.Generator, low: float, high: float, shape: int | tuple[int, int]) -> IntArray:
    """Whole microseconds, uniform in [low, high)."""
    return rng.integers(int(low), int(high), shape)


def _wait(rng: np.random.Generator, least: int, mean: float, shape: int | tuple[int, int]) -> IntArray:
    """Whole microseconds: ``least`` and then an exponential wait."""
    return least + (rng.standard_exponential(shape) * mean).astype(np.int64)


def _draw(world: World) -> _Latent:
    people, visits, mail = (np.random.default_rng(s) for s in np.random.SeedSequence(world.seed).spawn(3))
    n, start = world.customers, _micros(world.start)
    origin, end = start - HISTORY_DAYS * DAY, start + world.days * DAY

    z = people.standard_normal(n)
    value = 45.0 * np.exp(world.skew * z - world.skew**2 / 2)  # the mean order does not move with the skew
    demand = 0.3 * z + math.sqrt(1 - 0.3**2) * people.standard_normal(n)
    joins = people.random(n) < 0.2
    signed_up = np.where(
        joins,
        _span(people, origin, start + 0.4 * world.days * DAY, n),
        _span(people, origin - 3 * 365 * DAY, origin, n),
    )
    seen_value = value * np.exp(0.3 * people.standard_normal(n))  # a tier knows the value only roughly
    tier = np.searchsorted(np.quantile(seen_value, [0.5, 0.9]), seen_value)
    country = np.searchsorted([0.45, 0.65, 0.82, 0.92], people.random(n))
    opted_in = people.random(n) < world.audience
    global_arm = people.random(n) >= world.holdout
    subject = people.random(n) < 0.5

    alive_from = np.maximum(signed_up, origin)
    rate = 0.06 * np.exp(0.45 * demand - 0.45**2 / 2)  # visits a day
    user = np.repeat(np.arange(n), visits.poisson(rate * (end - alive_from) / DAY))
    s = len(user)
    started = alive_from[user] + (visits.random(s) * (end - alive_from[user])).astype(np.int64)
    by_time = np.argsort(started, kind="stable")
    user, started = user[by_time], started[by_time]
    intent = 0.7 * demand[user] + 0.9 * visits.standard_normal(s)
    shown_at = {"home": started + _span(visits, SECOND, 3 * SECOND, s)}
    shown_at["search"] = shown_at["home"] + _span(visits, 10 * SECOND, 60 * SECOND, s)
    shown_at["recs"] = shown_at["search"] + _span(visits, 10 * SECOND, 120 * SECOND, s)
    ordered = shown_at["recs"] + _span(visits, 2 * MINUTE, 30 * MINUTE, s)
    base = {"home": -1.3 + 0.6 * intent, "search": -0.4 + 0.7 * intent, "recs": -1.3 + 0.9 * intent}

    mailed = np.flatnonzero(opted_in & (signed_up < start + MAIL_DAYS * DAY))
    mailings = start + 9 * HOUR + np.arange(MAIL_DAYS, world.days, MAIL_DAYS) * DAY
    shape = (len(mailed), len(mailings))
    warmth = demand[mailed, None]
    sent = mailings + _span(mail, 0, 2 * HOUR, shape)
    opened_at = sent + _wait(mail, MINUTE, 3 * HOUR, shape)
    mail_clicked_at = opened_at + _span(mail, 5 * SECOND, 3 * MINUTE, shape)

    return _Latent(
        world=world,
        lift=0.0 if world.null else world.effect,
        start=start,
        end=end,
        signed_up=signed_up,
        country=country,
        tier=tier,
        opted_in=opted_in,
        global_arm=global_arm,
        subject=subject,
        user=user,
        started=started,
        device=np.searchsorted([0.55, 0.92], visits.random(s)),
        # the personalisation service knows nobody in their first three days, and now and then fails to answer
        served=(visits.random(s) < 0.96) & (started - signed_up[user] > 3 * DAY) & (started >= start),
        shown_at=shown_at,
        shown={"home": np.ones(s, bool), "search": visits.random(s) < 0.45, "recs": visits.random(s) < 0.75},
        click_score={surface: base[surface] - visits.logistic(size=s) for surface in SURFACES},
        buy_score=-2.2 + 1.0 * intent - visits.logistic(size=s),
        return_score=-2.4 - visits.logistic(size=s),
        ordered=ordered,
        returned=ordered + _wait(visits, 2 * DAY, 8 * DAY, s),
        amount=np.round(value[user] * np.exp(0.35 * visits.standard_normal(s) - 0.35**2 / 2), 2) + 1.0,
        margin=np.round(0.20 + 0.30 * visits.random(s), 3),
        mailed=mailed,
        sent=sent,
        apple=mail.random(len(mailed)) < 0.45,
        open_score=-1.25 + 0.35 * warmth - mail.logistic(size=shape),
        prefetched=mail.random(shape) < 0.95,
        prefetched_at=sent + _span(mail, 20 * SECOND, 15 * MINUTE, shape),
        opened_at=opened_at,
        mail_click_score=-1.6 + 0.5 * warmth - mail.logistic(size=shape),
        mail_clicked_at=mail_clicked_at,
        mail_buy_score=-2.2 + 0.5 * warmth - mail.logistic(size=shape),
        mail_ordered=mail_clicked_at + _wait(mail, 3 * MINUTE, 1.5 * HOUR, shape),
        mail_amount=np.round(value[mailed, None] * np.exp(0.35 * mail.standard_normal(shape) - 0.35**2 / 2), 2) + 1.0,
        mail_margin=np.round(0.20 + 0.30 * mail.random(shape), 3),
        unsubscribe_score=-5.3 - mail.logistic(size=shape),
    )


# ---------------------------------------------------------------- one potential world


def _events(latent: _Latent, personalised: BoolArray, first_name: BoolArray) -> dict[str, Rows]:
    """What happens when ``personalised`` (n,) and ``first_name`` (n,) say who is treated. Events after the end are unseen."""
    on = latent.lift * (personalised[latent.user] & latent.served)
    clicked = {
        surface: latent.shown[surface] & (latent.click_score[surface] + CLICK_LIFT[surface] * on > 0)
        for surface in SURFACES
    }
    bought = np.flatnonzero((latent.buy_score + BUY_LIFT * on > 0) & (latent.ordered < latent.end))
    touch = np.full(len(bought), TOUCHES.index("direct"))
    for code, surface in enumerate(SURFACES):  # surfaces are shown in this order, so the last one clicked stays
        touch[clicked[surface][bought]] = code

    treated = first_name[latent.mailed, None] * latent.lift
    leaves = latent.unsubscribe_score + UNSUBSCRIBE_LIFT * treated > 0
    gets: BoolArray = np.cumsum(leaves, axis=1) - leaves == 0  # nobody is written to after unsubscribing
    interested = gets & (latent.open_score + OPEN_LIFT * treated > 0)
    prefetched = gets & latent.prefetched & latent.apple[:, None]
    # the proxy of a private mail client fetches once, at delivery; a person's own opening is then not seen
    opened_at = np.where(prefetched, latent.prefetched_at, latent.opened_at)
    opens = (interested | prefetched) & (opened_at < latent.end)
    clicks = (
        interested & (latent.mail_click_score + MAIL_CLICK_LIFT * treated > 0) & (latent.mail_clicked_at < latent.end)
    )
    buys = clicks & (latent.mail_buy_score > 0) & (latent.mail_ordered < latent.end)

    row, _ = np.nonzero(buys)
    orders = {
        "user": np.concatenate([latent.user[bought], latent.mailed[row]]),
        "session": np.concatenate([bought, np.full(len(row), -1)]),
        "time": np.concatenate([latent.ordered[bought], latent.mail_ordered[buys]]),
        "amount": np.concatenate([latent.amount[bought], latent.mail_amount[buys]]),
        "margin_rate": np.concatenate([latent.margin[bought], latent.mail_margin[buys]]),
        "touch": np.concatenate([touch, np.full(len(row), TOUCHES.index("email"))]),
    }
    back = np.flatnonzero(
        (latent.return_score[bought] + RETURN_LIFT * on[bought] > 0) & (latent.returned[bought] < latent.end)
    )
    returns = {
        "order": back,
        "user": latent.user[bought[back]],
        "time": latent.returned[bought[back]],
        "amount": latent.amount[bought[back]],
    }

    logged = latent.started >= latent.start  # before the start nothing was personalised and exposures were not logged
    each = [np.flatnonzero(logged & clicked[surface]) for surface in SURFACES]
    at = np.concatenate([latent.shown_at[f][i] + 3 * SECOND for f, i in zip(SURFACES, each, strict=True)])
    session = np.concatenate(each)
    surface_code = np.repeat(np.arange(len(SURFACES)), [len(i) for i in each])
    seen = at < latent.end
    site_clicks = {
        "session": session[seen],
        "user": latent.user[session[seen]],
        "time": at[seen],
        "surface": surface_code[seen],
    }

    send_row, _ = np.nonzero(gets)
    send_number: IntArray = np.cumsum(gets.ravel()).reshape(gets.shape) - 1
    sends = {
        "user": latent.mailed[send_row],
        "time": latent.sent[gets],
        "unsubscribed": leaves[gets],
    }
    open_row, _ = np.nonzero(opens)
    click_row, _ = np.nonzero(clicks)
    return {
        "orders": orders,
        "returns": returns,
        "site_clicks": site_clicks,
        "email_sends": sends,
        "email_opens": {
            "send": send_number[opens],
            "user": latent.mailed[open_row],
            "time": opened_at[opens],
            "client": np.broadcast_to(latent.apple[:, None], opens.shape)[opens],
        },
        "email_clicks": {
            "send": send_number[clicks],
            "user": latent.mailed[click_row],
            "time": latent.mail_clicked_at[clicks],
        },
    }


# ---------------------------------------------------------------- metrics, unit by unit


def _first(user: IntArray, time: IntArray, n: int) -> IntArray:
    """The earliest time of each of n customers, NEVER where there is none."""
    latest_first = np.argsort(time, kind="stable")[::-1]
    out = np.full(n, NEVER)
    out[user[latest_first]] = time[latest_first]  # repeated positions: the last assignment stays, here the earliest
    return out


def _measure(experiment: str, events: dict[str, Rows], exposed: IntArray) -> dict[str, FloatArray]:
    """Every metric of ``experiment`` for each of n customers, from events and first exposures (n,), uncapped.

    Shape (n,), or (n, 2) numerator and denominator for ratios. Customers never exposed are meaningless rows.
    """
    n = len(exposed)
    windows = WINDOWS[experiment]

    def inside(rows: Rows, window: int, opening: IntArray = exposed) -> BoolArray:
        age = rows["time"] - opening[rows["user"]]
        return (age >= 0) & (age < window)

    def total(rows: Rows, window: int, weight: NDArray[Any] | None = None) -> FloatArray:
        mask = inside(rows, window)
        weights = None if weight is None else weight[mask]
        return np.bincount(rows["user"][mask], weights, minlength=n).astype(np.float64)

    def any_of(rows: Rows, window: int, opening: IntArray = exposed) -> FloatArray:
        out = np.zeros(n)
        out[rows["user"][inside(rows, window, opening)]] = 1.0
        return out

    orders = events["orders"]
    if experiment == "first_name_subject":
        clicks, sends = events["email_clicks"], events["email_sends"]
        near = inside(clicks, ANCHOR_WITHIN)
        clicked = _first(clicks["user"][near], clicks["time"][near], n)
        left = {"user": sends["user"][sends["unsubscribed"]], "time": sends["time"][sends["unsubscribed"]]}
        return {
            "click_rate": any_of(clicks, windows["click_rate"]),
            "open_rate": any_of(events["email_opens"], windows["open_rate"]),
            "order_rate": any_of(orders, windows["order_rate"], clicked),
            "revenue_per_email": total(orders, windows["revenue_per_email"], orders["amount"]),
            "unsubscribe_rate": any_of(left, windows["unsubscribe_rate"]),
        }
    ninety = total(orders, windows["aov"])
    on_recs = events["site_clicks"]["surface"] == SURFACES.index("recs")
    rec_clicks = {"user": events["site_clicks"]["user"][on_recs], "time": events["site_clicks"]["time"][on_recs]}
    return {
        "margin_90d": total(orders, windows["margin_90d"], orders["amount"] * orders["margin_rate"]),
        "conversion": any_of(orders, windows["conversion"]),
        "aov": np.column_stack([total(orders, windows["aov"], orders["amount"]), ninety]),
        "return_rate": np.column_stack([total(events["returns"], windows["return_rate"]), ninety]),
        "rec_clicks": total(rec_clicks, windows["rec_clicks"]),
    }


def _closed(experiment: str, metric: str, exposed: IntArray, end: int) -> BoolArray:
    """(n,) who was exposed and whose window for ``metric`` closed by ``end``."""
    span = WINDOWS[experiment][metric] + (ANCHOR_WITHIN if metric == "order_rate" else 0)
    return exposed + span <= end


def _level(values: FloatArray) -> float:
    """A mean over units, or for (n, 2) a ratio of sums."""
    if values.ndim == 2:
        return float(values[:, 0].sum() / values[:, 1].sum())
    return float(values.mean())


def _truth(latent: _Latent, observed: dict[str, Rows], exposed: dict[str, IntArray]) -> dict[str, Any]:
    everyone, nobody = np.ones(latent.n, bool), np.zeros(latent.n, bool)
    worlds = {
        "global_holdout": (
            _events(latent, everyone, latent.subject),
            _events(latent, nobody, latent.subject),
        ),
        "first_name_subject": (
            _events(latent, latent.global_arm, everyone),
            _events(latent, latent.global_arm, nobody),
        ),
    }
    experiments: dict[str, Any] = {}
    for experiment, (with_it, without) in worlds.items():
        first = exposed[experiment]
        treated, control = _measure(experiment, with_it, first), _measure(experiment, without, first)
        metrics: dict[str, MetricTruth] = {}
        for metric in treated:
            units = _closed(experiment, metric, first, latent.end)
            one, zero = _level(treated[metric][units]), _level(control[metric][units])
            metrics[metric] = {"effect": one - zero, "treated": one, "control": zero, "units": int(units.sum())}
        experiments[experiment] = {
            "contrast": f"{TREATMENT[experiment]} vs {CONTROL}",
            "units": int((first < NEVER).sum()),
            "metrics": metrics,
        }

    orders = observed["orders"]
    credited = _last_touch_personalised(latent, orders, latent.global_arm)
    attributed = float(orders["amount"][credited].sum())

    def revenue(events: dict[str, Rows]) -> float:
        rows = events["orders"]
        counted = latent.global_arm[rows["user"]] & (rows["time"] >= latent.start)
        return float(rows["amount"][counted].sum())

    with_it, without = worlds["global_holdout"]
    incremental = revenue(with_it) - revenue(without)
    return {
        "world": {**asdict(latent.world), "start": latent.world.start.isoformat()},
        "through": str(np.datetime64(latent.end, "us")),
        "experiments": experiments,
        "last_touch_attributed_revenue": attributed,
        "true_incremental_revenue": incremental,
        "attributed_over_true": attributed / incremental if incremental != 0 else None,
    }


def _last_touch_personalised(latent: _Latent, orders: Rows, personalised: BoolArray) -> BoolArray:
    """(orders,) whether the last thing clicked before the order was a personalised surface."""
    on_site = orders["touch"] < len(SURFACES)
    return on_site & personalised[orders["user"]] & latent.served[orders["session"]]


# ---------------------------------------------------------------- tables


def _ids(prefix: str, count: int, width: int = 8) -> pa.Array:
    """``prefix`` and a number from 1, padded to ``width`` digits: built as one buffer, since millions are needed."""
    number = np.arange(1, count + 1)
    text = np.empty((count, len(prefix) + width), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix.encode("ascii"), np.uint8)
    for place in range(width):
        text[:, -1 - place] = 48 + number % 10
        number //= 10
    offsets = np.arange(count + 1, dtype=np.int32) * (len(prefix) + width)
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(text)])


def _labels(names: tuple[str, ...], codes: NDArray[Any]) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(codes))


def _times(micros: IntArray) -> pa.Array:
    return pa.array(micros, pa.timestamp("us"))


def _customer_ids(n: int) -> pa.Array:
    return _ids("c", n, 6)


def _tables(
    latent: _Latent, events: dict[str, Rows], personalised: BoolArray, first_name: BoolArray
) -> dict[str, pa.Table]:
    """The company's tables, each in order of its own time, so that ids and row order say nothing but when."""
    customer = _customer_ids(latent.n)
    session = _ids("s", len(latent.user))

    def users(positions: IntArray) -> pa.Array:
        return customer.take(pa.array(positions))

    tables = {
        "customers": pa.table(
            {
                "customer_id": customer,
                "signed_up_at": _times(latent.signed_up),
                "country": _labels(("US", "GB", "DE", "FR", "CA"), latent.country),
                "value_tier": _labels(("low", "mid", "high"), latent.tier),
                "email_opt_in": pa.array(latent.opted_in),
            }
        ),
        "sessions": pa.table(
            {
                "session_id": session,
                "user_id": users(latent.user),
                "started_at": _times(latent.started),
                "device": _labels(("mobile", "desktop", "tablet"), latent.device),
            }
        ),
    }

    logged = latent.started >= latent.start
    each = [
        np.flatnonzero(logged & latent.shown[surface] & (latent.shown_at[surface] < latent.end)) for surface in SURFACES
    ]
    at = np.concatenate([latent.shown_at[surface][i] for surface, i in zip(SURFACES, each, strict=True)])
    by_time = np.argsort(at, kind="stable")
    where = np.concatenate(each)[by_time]
    code = np.repeat(np.arange(len(SURFACES)), [len(i) for i in each])[by_time]
    in_arm = personalised[latent.user[where]]
    exposure = _ids("x", len(where))
    tables["exposures"] = pa.table(
        {
            "exposure_id": exposure,
            "session_id": session.take(pa.array(where)),
            "user_id": users(latent.user[where]),
            "exposed_at": _times(at[by_time]),
            "surface": _labels(SURFACES, code),
            "variant": _labels((CONTROL, TREATMENT["global_holdout"]), (in_arm & latent.served[where]).astype(np.int8)),
            "global_arm": _labels((CONTROL, TREATMENT["global_holdout"]), in_arm.astype(np.int8)),
        }
    )

    clicks = events["site_clicks"]
    row_of = np.full((len(SURFACES), len(latent.user)), -1)
    row_of[code, where] = np.arange(len(where))
    by_time = np.argsort(clicks["time"], kind="stable")
    sessions, surfaces = clicks["session"][by_time], clicks["surface"][by_time]
    tables["site_clicks"] = pa.table(
        {
            "click_id": _ids("k", len(by_time)),
            "exposure_id": exposure.take(pa.array(row_of[surfaces, sessions])),
            "session_id": session.take(pa.array(sessions)),
            "user_id": users(clicks["user"][by_time]),
            "clicked_at": _times(clicks["time"][by_time]),
            "surface": _labels(SURFACES, surfaces),
        }
    )

    orders = events["orders"]
    by_time = np.argsort(orders["time"], kind="stable")
    order_id = _ids("o", len(by_time))
    number = np.empty(len(by_time), np.int64)
    number[by_time] = np.arange(len(by_time))
    touch, in_session = orders["touch"][by_time], orders["session"][by_time]
    credited = _last_touch_personalised(latent, orders, personalised)[by_time]
    tables["orders"] = pa.table(
        {
            "order_id": order_id,
            "user_id": users(orders["user"][by_time]),
            "session_id": session.take(pa.array(in_session, mask=in_session < 0)),
            "ordered_at": _times(orders["time"][by_time]),
            "amount": pa.array(orders["amount"][by_time]),
            "margin_rate": pa.array(orders["margin_rate"][by_time]),
            "discovery_path": _labels(DISCOVERY, touch),
            "last_touch": _labels(TOUCHES, touch),
            "last_touch_variant": pa.array((CONTROL, TREATMENT["global_holdout"]), pa.string()).take(
                pa.array(credited.astype(np.int8), mask=touch >= len(SURFACES))
            ),
        }
    )

    returns = events["returns"]
    by_time = np.argsort(returns["time"], kind="stable")
    tables["returns"] = pa.table(
        {
            "return_id": _ids("r", len(by_time)),
            "order_id": order_id.take(pa.array(number[returns["order"][by_time]])),
            "user_id": users(returns["user"][by_time]),
            "returned_at": _times(returns["time"][by_time]),
            "amount": pa.array(returns["amount"][by_time]),
        }
    )

    sends = events["email_sends"]
    by_time = np.argsort(sends["time"], kind="stable")
    send_id = _ids("m", len(by_time))
    number = np.empty(len(by_time), np.int64)
    number[by_time] = np.arange(len(by_time))
    tables["email_sends"] = pa.table(
        {
            "send_id": send_id,
            "user_id": users(sends["user"][by_time]),
            "sent_at": _times(sends["time"][by_time]),
            "subject_variant": _labels(
                (CONTROL, TREATMENT["first_name_subject"]), first_name[sends["user"][by_time]].astype(np.int8)
            ),
            "unsubscribed": pa.array(sends["unsubscribed"][by_time]),
        }
    )
    for name, prefix, id_name, time_name in (
        ("email_opens", "p", "open_id", "opened_at"),
        ("email_clicks", "l", "click_id", "clicked_at"),
    ):
        rows = events[name]
        by_time = np.argsort(rows["time"], kind="stable")
        columns = {
            id_name: _ids(prefix, len(by_time)),
            "send_id": send_id.take(pa.array(number[rows["send"][by_time]])),
            "user_id": users(rows["user"][by_time]),
            time_name: _times(rows["time"][by_time]),
        }
        if "client" in rows:
            columns["mail_client"] = _labels(("other", "apple_mail_privacy"), rows["client"][by_time].astype(np.int8))
        tables[name] = pa.table(columns)
    return tables


# ---------------------------------------------------------------- the front door


def make_company(world: World = World()) -> Company:
    """The company as its warehouse would hold it, and the truth. Deterministic: the same knobs give equal tables."""
    latent = _draw(world)
    observed = _events(latent, latent.global_arm, latent.subject)
    in_period = latent.started >= latent.start
    home = latent.shown_at["home"]
    seen = in_period & (home < latent.end)
    exposed = {
        "global_holdout": _first(latent.user[seen], home[seen], latent.n),
        "first_name_subject": _first(latent.mailed, latent.sent[:, 0], latent.n),
    }
    tables = _tables(latent, observed, latent.global_arm, latent.subject)
    return Company(world, tables, _truth(latent, observed, exposed))


def potential_world(
    world: World,
    *,
    global_arm: Literal["generic", "personalised"] | None = None,
    subject_variant: Literal["generic", "first_name"] | None = None,
) -> dict[str, pa.Table]:
    """The tables as they would be had every customer been in ``global_arm`` or ``subject_variant`` (None: as assigned).

    What no company can see. The truth of an experiment is the difference between two such worlds; tests count it from here.
    """
    latent = _draw(world)
    personalised = latent.global_arm if global_arm is None else np.full(latent.n, global_arm == "personalised")
    first_name = latent.subject if subject_variant is None else np.full(latent.n, subject_variant == "first_name")
    return _tables(latent, _events(latent, personalised, first_name), personalised, first_name)


_READ: Final = {
    "orders": ("ordered_at", ("amount", "margin_rate")),
    "returns": ("returned_at", ()),
    "site_clicks": ("clicked_at", ("surface",)),
    "email_sends": ("sent_at", ("unsubscribed",)),
    "email_opens": ("opened_at", ()),
    "email_clicks": ("clicked_at", ()),
}


def unit_level(company: Company, experiment: str) -> dict[str, NDArray[Any]]:
    """Every metric of ``experiment`` per unit, in plain numpy from the observed tables alone: a reference for the SQL.

    ``unit`` (ids), ``arm``, ``exposed_at`` (datetime64[us], the first exposure), and each metric of WINDOWS uncapped: shape
    (n,), or (n, 2) numerator and denominator for a ratio. NaN where the unit's window had not closed when the data end.
    """
    if experiment not in WINDOWS:
        raise UsageError(
            f"'{experiment}' is not an experiment of the simulated company{did_you_mean(experiment, WINDOWS)}"
        )
    tables = company.tables
    ids = tables["customers"]["customer_id"].combine_chunks()
    n = len(ids)

    def position(table: pa.Table) -> IntArray:
        return cast(IntArray, pc.index_in(table["user_id"], value_set=ids).to_numpy().astype(np.int64))

    def micros(table: pa.Table, column: str) -> IntArray:
        return cast(IntArray, table[column].to_numpy().astype("datetime64[us]").astype(np.int64))

    name, time, arm = (
        ("email_sends", "sent_at", "subject_variant")
        if experiment == "first_name_subject"
        else ("exposures", "exposed_at", "global_arm")
    )
    log = tables[name]
    user = position(log)
    exposed = _first(user, micros(log, time), n)
    arms = np.empty(n, object)
    arms[user] = log[arm].to_numpy(zero_copy_only=False)  # a customer's arm never changes in this world

    events: dict[str, Rows] = {}
    for name, (time, columns) in _READ.items():
        table = tables[name]
        events[name] = {"user": position(table), "time": micros(table, time)}
        for column in columns:
            events[name][column] = table[column].to_numpy(zero_copy_only=False)
    surface = events["site_clicks"]["surface"]
    events["site_clicks"]["surface"] = np.where(surface == "recs", SURFACES.index("recs"), 0)

    end = int(np.datetime64(company.truth["through"], "us").astype(np.int64))
    units = np.flatnonzero(exposed < NEVER)
    out: dict[str, NDArray[Any]] = {
        "unit": ids.to_numpy(zero_copy_only=False)[units],
        "arm": arms[units].astype(str),
        "exposed_at": exposed[units].astype("datetime64[us]"),
    }
    for metric, values in _measure(experiment, events, exposed).items():
        shown = values[units]
        shown[~_closed(experiment, metric, exposed, end)[units]] = np.nan
        out[metric] = shown
    return out

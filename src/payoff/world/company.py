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
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any, Final, Literal, TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from payoff.errors import UsageError, did_you_mean
from payoff.world import journeys
from payoff.world.columns import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    BoolArray,
    FloatArray,
    IntArray,
    Rows,
    ids,
    labels,
    span,
    times,
    wait,
)
from payoff.world.journeys import PAID, SURFACES, TOUCHES, Seen, Visits, Ways, draw

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

DISCOVERY: Final = ("browse", "search", "recommendations", "browse", "email")

# What the treatments add, on the logit scale, at effect = 1. Clicks move a lot, purchases little.
CLICK_LIFT: Final = {"home": 0.35, "search": 0.25, "recs": 0.95}
BUY_LIFT: Final = 0.13
RETURN_LIFT: Final = 0.06
OPEN_LIFT: Final = 0.25
MAIL_CLICK_LIFT: Final = -0.05
UNSUBSCRIBE_LIFT: Final = 0.10

TOUCHPOINTS: Final = {
    "home": "home",
    "search": "search",
    "recommendations": "recs",
    "paid_social": "paid_social",
    "email": "email",
    "direct": "direct",
}
"""Touchpoints by the names of the definitions, and what the log calls them."""
WORTHY: Final = (*SURFACES, "paid_social")
SHIPPED: Final = (0.06, 0.55, 0.12, 0.10)
"""What using these adds to the wish to buy, in the shipped world: it is gone when the touchpoint is."""
EMAIL_NEEDED: Final = 0.4
"""The share of e-mail orders that would not have been placed without the e-mail."""
PERSONAL_SHARE: Final = {"home": 0.2, "search": 0.3, "recs": 0.5}
"""How what personalisation adds to a visit is made up, among the surfaces that the visit was shown."""
CART_EASE: Final = 1.3
CHECKOUT_EASE: Final = 0.55
"""How much less it takes to fill a cart, and to begin a checkout, than to order."""


@dataclass(frozen=True, slots=True)
class World:
    """The knobs. The same knobs give the same company, to the last byte.

    ``customers``; ``days`` of data after ``start``; ``seed``; ``effect`` multiplies every true effect (1 is the shipped world,
    negative turns harm and benefit around); ``skew`` is the standard deviation of the log of customer value; ``null`` switches
    every effect off, exactly (an A/A world whose arms differ in name only). Two knobs set the power: ``holdout``, the share of
    customers kept generic, and ``audience``, the share of customers who take e-mail. ``worth`` is what using home, search or
    recommendations, or a click on an advertisement in the last week, adds to the wish to buy, on the logit scale.
    """

    customers: int = 60_000
    days: int = 365
    seed: int = 7
    effect: float = 1.0
    skew: float = 0.6
    null: bool = False
    holdout: float = 0.10
    audience: float = 0.70
    worth: tuple[float, ...] = SHIPPED
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
        if len(self.worth) != len(WORTHY) or not all(-2 <= worth <= 2 for worth in self.worth):
            raise UsageError(
                f"worth is four numbers between -2 and 2, for home, search, recs and paid_social, not {self.worth}"
            )
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
    visits: Visits
    ways: Ways
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


def _draw(world: World) -> _Latent:
    people, visits, mail, doors = (np.random.default_rng(s) for s in np.random.SeedSequence(world.seed).spawn(4))
    n, start = world.customers, _micros(world.start)
    origin, end = start - HISTORY_DAYS * DAY, start + world.days * DAY

    z = people.standard_normal(n)
    value = 45.0 * np.exp(world.skew * z - world.skew**2 / 2)  # the mean order does not move with the skew
    demand = 0.3 * z + math.sqrt(1 - 0.3**2) * people.standard_normal(n)
    joins = people.random(n) < 0.2
    signed_up = np.where(
        joins,
        span(people, origin, start + 0.4 * world.days * DAY, n),
        span(people, origin - 3 * 365 * DAY, origin, n),
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
    shown_at = {"home": started + span(visits, SECOND, 3 * SECOND, s)}
    shown_at["search"] = shown_at["home"] + span(visits, 10 * SECOND, 60 * SECOND, s)
    shown_at["recs"] = shown_at["search"] + span(visits, 10 * SECOND, 120 * SECOND, s)
    ordered = shown_at["recs"] + span(visits, 2 * MINUTE, 30 * MINUTE, s)
    base = {"home": -1.3 + 0.6 * intent, "search": -0.4 + 0.7 * intent, "recs": -1.3 + 0.9 * intent}

    mailed = np.flatnonzero(opted_in & (signed_up < start + MAIL_DAYS * DAY))
    mailings = start + 9 * HOUR + np.arange(MAIL_DAYS, world.days, MAIL_DAYS) * DAY
    shape = (len(mailed), len(mailings))
    warmth = demand[mailed, None]
    sent = mailings + span(mail, 0, 2 * HOUR, shape)
    opened_at = sent + wait(mail, MINUTE, 3 * HOUR, shape)
    mail_clicked_at = opened_at + span(mail, 5 * SECOND, 3 * MINUTE, shape)

    device = np.searchsorted([0.55, 0.92], visits.random(s))
    travelled = Visits(
        signed_up, user, started, device, intent, shown_at["recs"], ordered, origin, start, end, mailings=shape
    )
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
        device=device,
        # the personalisation service knows nobody in their first three days, and now and then fails to answer
        served=(visits.random(s) < 0.96) & (started - signed_up[user] > 3 * DAY) & (started >= start),
        shown_at=shown_at,
        visits=travelled,
        ways=draw(doors, travelled),
        shown={"home": np.ones(s, bool), "search": visits.random(s) < 0.45, "recs": visits.random(s) < 0.75},
        click_score={surface: base[surface] - visits.logistic(size=s) for surface in SURFACES},
        buy_score=-2.2 + 1.0 * intent - visits.logistic(size=s),
        return_score=-2.4 - visits.logistic(size=s),
        ordered=ordered,
        returned=ordered + wait(visits, 2 * DAY, 8 * DAY, s),
        amount=np.round(value[user] * np.exp(0.35 * visits.standard_normal(s) - 0.35**2 / 2), 2) + 1.0,
        margin=np.round(0.20 + 0.30 * visits.random(s), 3),
        mailed=mailed,
        sent=sent,
        apple=mail.random(len(mailed)) < 0.45,
        open_score=-1.25 + 0.35 * warmth - mail.logistic(size=shape),
        prefetched=mail.random(shape) < 0.95,
        prefetched_at=sent + span(mail, 20 * SECOND, 15 * MINUTE, shape),
        opened_at=opened_at,
        mail_click_score=-1.6 + 0.5 * warmth - mail.logistic(size=shape),
        mail_clicked_at=mail_clicked_at,
        mail_buy_score=-2.2 + 0.5 * warmth - mail.logistic(size=shape),
        mail_ordered=mail_clicked_at + wait(mail, 3 * MINUTE, 1.5 * HOUR, shape),
        mail_amount=np.round(value[mailed, None] * np.exp(0.35 * mail.standard_normal(shape) - 0.35**2 / 2), 2) + 1.0,
        mail_margin=np.round(0.20 + 0.30 * mail.random(shape), 3),
        unsubscribe_score=-5.3 - mail.logistic(size=shape),
    )


# ---------------------------------------------------------------- one potential world


@dataclass(frozen=True, slots=True)
class _Setting:
    """A potential world: who is treated (n,), which touchpoints do not happen, and which surfaces show everybody generic pages.

    ``off`` and ``plain`` hold names as in the log of touches.
    """

    personalised: BoolArray
    first_name: BoolArray
    off: frozenset[str] = frozenset()
    plain: frozenset[str] = frozenset()


def _personal(latent: _Latent, setting: _Setting, surface: str) -> BoolArray:
    """(s,) visits to which ``surface`` shows something personal."""
    if surface in setting.plain:
        return np.zeros(len(latent.user), bool)
    return setting.personalised[latent.user] & latent.served


def _wish(latent: _Latent, setting: _Setting) -> tuple[FloatArray, FloatArray]:
    """The (s,) score that buys, and the (s,) strength of what personalisation is left.

    The score drawn is that of the shipped company with all its touchpoints, so what is off takes its worth away: that of a surface
    from the visits that would have used its generic form. (Whoever clicks only because the page is personal does not need it.)
    """
    on: FloatArray = np.where(setting.personalised[latent.user] & latent.served, latent.lift, 0.0)
    gone = (setting.off | setting.plain) & set(SURFACES)
    if gone:
        nothing: FloatArray = np.zeros(len(on))
        whole = sum((PERSONAL_SHARE[f] * latent.shown[f] for f in SURFACES), nothing)
        left = sum((PERSONAL_SHARE[f] * latent.shown[f] for f in SURFACES if f not in gone), nothing)
        on = on * left / whole
    score: FloatArray = latent.buy_score + BUY_LIFT * on
    for name, worth, shipped in zip(WORTHY, latent.world.worth, SHIPPED, strict=True):
        more = (0.0 if name in setting.off else worth) - shipped
        if more != 0:
            met = latent.ways.primed if name not in SURFACES else latent.shown[name] & (latent.click_score[name] > 0)
            score = score + latent.lift * more * met
    return score, on


def _mail(latent: _Latent, setting: _Setting) -> dict[str, BoolArray]:
    """What becomes of every e-mail, (m, e-mails) each: who leaves, is written to, reads with interest, clicks, buys."""
    treated = setting.first_name[latent.mailed, None] * latent.lift
    leaves = latent.unsubscribe_score + UNSUBSCRIBE_LIFT * treated > 0
    gets: BoolArray = np.cumsum(leaves, axis=1) - leaves == 0  # nobody is written to after unsubscribing
    interested = gets & (latent.open_score + OPEN_LIFT * treated > 0)
    clicks = (
        interested & (latent.mail_click_score + MAIL_CLICK_LIFT * treated > 0) & (latent.mail_clicked_at < latent.end)
    )
    buys = clicks & (latent.mail_buy_score > 0) & (latent.mail_ordered < latent.end)
    if "email" in setting.off:  # orders that did not need the e-mail are placed all the same
        buys &= latent.ways.needless >= EMAIL_NEEDED * latent.lift
        leaves, gets, interested, clicks = (np.zeros_like(gets) for _ in range(4))
    return {"leaves": leaves, "gets": gets, "interested": interested, "clicks": clicks, "buys": buys}


def _clicked(latent: _Latent, setting: _Setting) -> dict[str, BoolArray]:
    """(s,) which visits click on each surface."""
    out = {}
    for surface in SURFACES:
        lift = CLICK_LIFT[surface] * latent.lift * _personal(latent, setting, surface)
        shown = latent.shown[surface] & (surface not in setting.off)
        out[surface] = shown & (latent.click_score[surface] + lift > 0)
    return out


def _orders(latent: _Latent, score: FloatArray, mailed: BoolArray, clicked: dict[str, BoolArray], by_mail: str) -> Rows:
    """Orders of visits (in order of session) and then of e-mails, with the last of ``clicked`` before each."""
    bought = np.flatnonzero((score > 0) & (latent.ordered < latent.end))
    touch = np.full(len(bought), TOUCHES.index("direct"))
    for surface, visits in clicked.items():  # surfaces are shown in this order, so the last one clicked stays
        touch[visits[bought]] = SURFACES.index(surface)
    row, _ = np.nonzero(mailed)
    return {
        "user": np.concatenate([latent.user[bought], latent.mailed[row]]),
        "session": np.concatenate([bought, np.full(len(row), -1)]),
        "time": np.concatenate([latent.ordered[bought], latent.mail_ordered[mailed]]),
        "amount": np.concatenate([latent.amount[bought], latent.mail_amount[mailed]]),
        "margin_rate": np.concatenate([latent.margin[bought], latent.mail_margin[mailed]]),
        "touch": np.concatenate([touch, np.full(len(row), TOUCHES.index(by_mail))]),
    }


def _events(latent: _Latent, setting: _Setting) -> dict[str, Rows]:
    """What happens in one potential world. Events after the end are unseen."""
    score, on = _wish(latent, setting)
    clicked, mail = _clicked(latent, setting), _mail(latent, setting)
    orders = _orders(latent, score, mail["buys"], clicked, "direct" if "email" in setting.off else "email")
    bought = orders["session"][orders["session"] >= 0]
    gets, clicks = mail["gets"], mail["clicks"]
    prefetched = gets & latent.prefetched & latent.apple[:, None]
    # the proxy of a private mail client fetches once, at delivery; a person's own opening is then not seen
    opened_at = np.where(prefetched, latent.prefetched_at, latent.opened_at)
    opens = (mail["interested"] | prefetched) & (opened_at < latent.end)
    back = np.flatnonzero(
        (latent.return_score[bought] + RETURN_LIFT * on[bought] > 0) & (latent.returned[bought] < latent.end)
    )
    returns = {
        "order": back,
        "user": latent.user[bought[back]],
        "time": latent.returned[bought[back]],
        "amount": latent.amount[bought[back]],
    }

    each = [np.flatnonzero(clicked[surface]) for surface in SURFACES]
    at = np.concatenate([latent.shown_at[f][i] + 3 * SECOND for f, i in zip(SURFACES, each, strict=True)])
    session = np.concatenate(each)
    surface_code = np.repeat(np.arange(len(SURFACES)), [len(i) for i in each])
    personal = np.concatenate([_personal(latent, setting, f)[i] for f, i in zip(SURFACES, each, strict=True)])
    seen = at < latent.end
    used = {"session": session, "surface": surface_code, "time": at, "personal": personal}
    # before the start nothing was personalised, and exposures and the clicks on them were not logged
    logged = seen & (latent.started[session] >= latent.start)
    site_clicks = {
        "session": session[logged],
        "user": latent.user[session[logged]],
        "time": at[logged],
        "surface": surface_code[logged],
    }
    filled = np.flatnonzero((score + CART_EASE > 0) & (latent.ways.cart_at < latent.end))
    begun = np.flatnonzero((score + CHECKOUT_EASE > 0) & (latent.ways.checkout_at < latent.end))

    send_row, _ = np.nonzero(gets)
    send_number: IntArray = np.cumsum(gets.ravel()).reshape(gets.shape) - 1
    sends = {
        "user": latent.mailed[send_row],
        "time": latent.sent[gets],
        "unsubscribed": mail["leaves"][gets],
    }
    open_row, _ = np.nonzero(opens)
    click_row, _ = np.nonzero(clicks)
    return {
        "orders": orders,
        "returns": returns,
        "site_clicks": site_clicks,
        "used": {name: column[seen] for name, column in used.items()},
        "carts": {"session": filled, "time": latent.ways.cart_at[filled], "amount": latent.amount[filled]},
        "checkouts": {"session": begun, "time": latent.ways.checkout_at[begun]},
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
    settings = {
        "global_holdout": (_Setting(everyone, latent.subject), _Setting(nobody, latent.subject)),
        "first_name_subject": (_Setting(latent.global_arm, everyone), _Setting(latent.global_arm, nobody)),
    }

    def revenue(events: dict[str, Rows]) -> float:
        rows = events["orders"]
        counted = latent.global_arm[rows["user"]] & (rows["time"] >= latent.start)
        return float(rows["amount"][counted].sum())

    incremental = 0.0
    experiments: dict[str, Any] = {}
    for experiment, (one_setting, zero_setting) in settings.items():
        with_it, without = _events(latent, one_setting), _events(latent, zero_setting)
        if experiment == "global_holdout":
            incremental = revenue(with_it) - revenue(without)
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
    credited = _last_touch_personalised(latent, orders, _Setting(latent.global_arm, latent.subject))
    attributed = float(orders["amount"][credited].sum())
    return {
        "world": {**asdict(latent.world), "worth": list(latent.world.worth), "start": latent.world.start.isoformat()},
        "through": str(np.datetime64(latent.end, "us")),
        "experiments": experiments,
        "last_touch_attributed_revenue": attributed,
        "true_incremental_revenue": incremental,
        "attributed_over_true": attributed / incremental if incremental != 0 else None,
        **_worth_of_touchpoints(latent),
    }


def _worth_of_touchpoints(latent: _Latent) -> dict[str, Any]:
    """What each touchpoint, and its personalisation, really brought after the start: what happened less what happens without.

    ``touchpoints`` by name, and ``together``: what several bring at once, beside the sum of what each brings alone. The two
    differ, because whoever would have bought for either of two reasons is lost only when both are gone.
    """
    observed = _Setting(latent.global_arm, latent.subject)

    def total(setting: _Setting) -> dict[str, float]:
        rows = _orders(latent, _wish(latent, setting)[0], _mail(latent, setting)["buys"], {}, "email")
        counted = rows["time"] >= latent.start
        amount = rows["amount"][counted]
        margin = float((amount * rows["margin_rate"][counted]).sum())
        return {"conversions": float(counted.sum()), "revenue": float(amount.sum()), "margin": margin}

    def less(setting: _Setting) -> dict[str, float]:
        without = total(setting)
        return {key: whole[key] - without[key] for key in whole}

    def summed(parts: list[dict[str, float]]) -> dict[str, float]:
        return {key: sum(part[key] for part in parts) for key in whole}

    whole = total(observed)
    each: dict[str, Any] = {name: less(replace(observed, off=frozenset({f}))) for name, f in TOUCHPOINTS.items()}
    personal = {name: less(replace(observed, plain=frozenset({f}))) for name, f in TOUCHPOINTS.items() if f in SURFACES}
    clicked = (latent.ways.arrival == PAID) & (latent.started >= latent.start)
    together = {
        "observed": whole,
        "touchpoints": less(replace(observed, off=frozenset(TOUCHPOINTS.values()))),
        "touchpoints_one_by_one": summed(list(each.values())),
        "personalised": less(replace(observed, plain=frozenset(SURFACES))),
        "personalised_one_by_one": summed(list(personal.values())),
    }
    touchpoints = {name: dict(told) for name, told in each.items()}
    for name, told in personal.items():
        touchpoints[name]["personalised"] = told
    touchpoints["paid_social"]["spend"] = float(latent.ways.spend[clicked].sum())
    return {"touchpoints": touchpoints, "together": together}


def _last_touch_personalised(latent: _Latent, orders: Rows, setting: _Setting) -> BoolArray:
    """(orders,) whether the last thing clicked before the order was a personalised surface."""
    out = np.zeros(len(orders["touch"]), bool)
    for code, surface in enumerate(SURFACES):
        here = orders["touch"] == code
        out[here] = _personal(latent, setting, surface)[orders["session"][here]]
    return out


# ---------------------------------------------------------------- tables


def _customer_ids(n: int) -> pa.Array:
    return ids("c", n, 6)


def _tables(latent: _Latent, events: dict[str, Rows], setting: _Setting) -> dict[str, pa.Table]:
    """The company's tables, each in order of its own time, so that ids and row order say nothing but when."""
    customer = _customer_ids(latent.n)
    session = ids("s", len(latent.user))

    def users(positions: IntArray) -> pa.Array:
        return customer.take(pa.array(positions))

    tables = {
        "customers": pa.table(
            {
                "customer_id": customer,
                "signed_up_at": times(latent.signed_up),
                "country": labels(("US", "GB", "DE", "FR", "CA"), latent.country),
                "value_tier": labels(("low", "mid", "high"), latent.tier),
                "email_opt_in": pa.array(latent.opted_in),
            }
        ),
        "sessions": pa.table(
            {
                "session_id": session,
                "user_id": users(latent.user),
                "started_at": times(latent.started),
                "device": labels(("mobile", "desktop", "tablet"), latent.device),
            }
        ),
    }

    logged = latent.started >= latent.start
    each = [
        np.flatnonzero(
            logged & latent.shown[surface] & (latent.shown_at[surface] < latent.end) & (surface not in setting.off)
        )
        for surface in SURFACES
    ]
    at = np.concatenate([latent.shown_at[surface][i] for surface, i in zip(SURFACES, each, strict=True)])
    by_time = np.argsort(at, kind="stable")
    where = np.concatenate(each)[by_time]
    code = np.repeat(np.arange(len(SURFACES)), [len(i) for i in each])[by_time]
    personal = np.concatenate([_personal(latent, setting, f)[i] for f, i in zip(SURFACES, each, strict=True)])[by_time]
    in_arm = setting.personalised[latent.user[where]]
    exposure = ids("x", len(where))
    tables["exposures"] = pa.table(
        {
            "exposure_id": exposure,
            "session_id": session.take(pa.array(where)),
            "user_id": users(latent.user[where]),
            "exposed_at": times(at[by_time]),
            "surface": labels(SURFACES, code),
            "variant": labels((CONTROL, TREATMENT["global_holdout"]), personal.astype(np.int8)),
            "global_arm": labels((CONTROL, TREATMENT["global_holdout"]), in_arm.astype(np.int8)),
        }
    )

    clicks = events["site_clicks"]
    row_of = np.full((len(SURFACES), len(latent.user)), -1)
    row_of[code, where] = np.arange(len(where))
    by_time = np.argsort(clicks["time"], kind="stable")
    sessions, surfaces = clicks["session"][by_time], clicks["surface"][by_time]
    tables["site_clicks"] = pa.table(
        {
            "click_id": ids("k", len(by_time)),
            "exposure_id": exposure.take(pa.array(row_of[surfaces, sessions])),
            "session_id": session.take(pa.array(sessions)),
            "user_id": users(clicks["user"][by_time]),
            "clicked_at": times(clicks["time"][by_time]),
            "surface": labels(SURFACES, surfaces),
        }
    )

    orders = events["orders"]
    by_time = np.argsort(orders["time"], kind="stable")
    order_id = ids("o", len(by_time))
    number = np.empty(len(by_time), np.int64)
    number[by_time] = np.arange(len(by_time))
    touch, in_session = orders["touch"][by_time], orders["session"][by_time]
    credited = _last_touch_personalised(latent, orders, setting)[by_time]
    tables["orders"] = pa.table(
        {
            "order_id": order_id,
            "user_id": users(orders["user"][by_time]),
            "session_id": session.take(pa.array(in_session, mask=in_session < 0)),
            "ordered_at": times(orders["time"][by_time]),
            "amount": pa.array(orders["amount"][by_time]),
            "margin_rate": pa.array(orders["margin_rate"][by_time]),
            "discovery_path": labels(DISCOVERY, touch),
            "last_touch": labels(TOUCHES, touch),
            "last_touch_variant": pa.array((CONTROL, TREATMENT["global_holdout"]), pa.string()).take(
                pa.array(credited.astype(np.int8), mask=touch >= len(SURFACES))
            ),
        }
    )

    returns = events["returns"]
    by_time = np.argsort(returns["time"], kind="stable")
    tables["returns"] = pa.table(
        {
            "return_id": ids("r", len(by_time)),
            "order_id": order_id.take(pa.array(number[returns["order"][by_time]])),
            "user_id": users(returns["user"][by_time]),
            "returned_at": times(returns["time"][by_time]),
            "amount": pa.array(returns["amount"][by_time]),
        }
    )

    sends = events["email_sends"]
    by_time = np.argsort(sends["time"], kind="stable")
    send_id = ids("m", len(by_time))
    number = np.empty(len(by_time), np.int64)
    number[by_time] = np.arange(len(by_time))
    tables["email_sends"] = pa.table(
        {
            "send_id": send_id,
            "user_id": users(sends["user"][by_time]),
            "sent_at": times(sends["time"][by_time]),
            "subject_variant": labels(
                (CONTROL, TREATMENT["first_name_subject"]), setting.first_name[sends["user"][by_time]].astype(np.int8)
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
            id_name: ids(prefix, len(by_time)),
            "send_id": send_id.take(pa.array(number[rows["send"][by_time]])),
            "user_id": users(rows["user"][by_time]),
            time_name: times(rows["time"][by_time]),
        }
        if "client" in rows:
            columns["mail_client"] = labels(("other", "apple_mail_privacy"), rows["client"][by_time].astype(np.int8))
        tables[name] = pa.table(columns)

    bot = latent.ways.bot
    arm = setting.personalised[np.maximum(bot, 0)] & (bot >= 0)
    generic = np.array([surface in setting.plain for surface in SURFACES])[latent.ways.bot_surface]
    seen = Seen(
        events["used"], events["carts"], events["checkouts"], events["email_clicks"], arm & ~generic, setting.off
    )
    variants = (CONTROL, TREATMENT["global_holdout"])
    return tables | journeys.tables(latent.ways, latent.visits, seen, customer, variants)


# ---------------------------------------------------------------- the front door


def make_company(world: World = World()) -> Company:
    """The company as its warehouse would hold it, and the truth. Deterministic: the same knobs give equal tables."""
    latent = _draw(world)
    setting = _Setting(latent.global_arm, latent.subject)
    observed = _events(latent, setting)
    in_period = latent.started >= latent.start
    home = latent.shown_at["home"]
    seen = in_period & (home < latent.end)
    exposed = {
        "global_holdout": _first(latent.user[seen], home[seen], latent.n),
        "first_name_subject": _first(latent.mailed, latent.sent[:, 0], latent.n),
    }
    truth = _truth(latent, observed, exposed)  # first: the worlds it is made of are large, and so are the tables
    return Company(world, _tables(latent, observed, setting), truth)


def potential_world(
    world: World,
    *,
    global_arm: Literal["generic", "personalised"] | None = None,
    subject_variant: Literal["generic", "first_name"] | None = None,
    without: Collection[str] = (),
    generic: Collection[str] = (),
) -> dict[str, pa.Table]:
    """The tables as they would be had every customer been in ``global_arm`` or ``subject_variant`` (None: as assigned).

    ``without`` touchpoints that do not happen; ``generic`` are those (home, search, recommendations) that show nobody anything
    personal. What no company can see. The truth is the difference between two such worlds; tests count it from here.
    """
    for name in (*without, *generic):
        if name not in TOUCHPOINTS:
            raise UsageError(f"'{name}' is not a touchpoint of the simulated company{did_you_mean(name, TOUCHPOINTS)}")
    latent = _draw(world)
    setting = _Setting(
        latent.global_arm if global_arm is None else np.full(latent.n, global_arm == "personalised"),
        latent.subject if subject_variant is None else np.full(latent.n, subject_variant == "first_name"),
        frozenset(TOUCHPOINTS[name] for name in without),
        frozenset(TOUCHPOINTS[name] for name in generic),
    )
    return _tables(latent, _events(latent, setting), setting)


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
    people = tables["customers"]["customer_id"].combine_chunks()
    n = len(people)

    def position(table: pa.Table) -> IntArray:
        return cast(IntArray, pc.index_in(table["user_id"], value_set=people).to_numpy().astype(np.int64))

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
        "unit": people.to_numpy(zero_copy_only=False)[units],
        "arm": arms[units].astype(str),
        "exposed_at": exposed[units].astype("datetime64[us]"),
    }
    for metric, values in _measure(experiment, events, exposed).items():
        shown = values[units]
        shown[~_closed(experiment, metric, exposed, end)[units]] = np.nan
        out[metric] = shown
    return out

"""How customers of the simulated company come and go: by which door, on which device, under which name, seen by which machine.

All of it is drawn from a generator of its own, so the company's visits, purchases and experiments do not know it is there.
What makes it hard for whoever puts journeys together: people browse without logging in, on several devices, on a tablet that
two of them share, after their cookie was deleted; some continue as "guest", some hide their device; advertising is shown to
those who are about to buy; and a few visitors are machines, which nothing says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from payoff.world.columns import (
    DAY,
    SECOND,
    BoolArray,
    FloatArray,
    IntArray,
    Rows,
    ids,
    labels,
    numbered,
    span,
    times,
)

SURFACES: Final = ("home", "search", "recs")
TOUCHES: Final = (*SURFACES, "direct", "email", "paid_social")
"""What the log of touches calls them; the definitions call ``recs`` recommendations."""

ARRIVALS: Final = ("direct", "organic_search", "paid_social", "organic_social", "referral")
UTM_SOURCE: Final = ("google", "facebook", "instagram", "pricewatch.example", "newsletter")
UTM_MEDIUM: Final = ("organic", "paid_social", "social", "referral", "email")
PAID: Final = ARRIVALS.index("paid_social")

AD_LASTS: Final = 7 * DAY
"""For how long after a click on an advertisement its buyer is a little keener."""
PROSPECTING: Final = 14 * DAY
"""Advertising is booked as prospecting within this time of a sign-up, and as retargeting later."""
REACH: Final = 2_500
"""Impressions of advertising for each customer who signs up: nearly all of them are of people who never do."""
VIEWS_KEPT: Final = 90 * DAY
"""The web log is kept for this long."""
SLOTS: Final = 12
NO_DEVICE: Final = "00000000-0000-0000-0000-000000000000"
GUEST: Final = "guest"


@dataclass(frozen=True, slots=True)
class Visits:
    """What the doors need to know of the visits. n customers, s visits in order of time."""

    signed_up: IntArray  # (n,)
    user: IntArray  # (s,)
    started: IntArray
    kind: IntArray  # mobile, desktop, tablet
    intent: FloatArray
    browsed: IntArray  # when the last surface was shown
    ordered: IntArray  # when an order would come in
    origin: int
    start: int
    end: int
    mailings: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Ways:
    """How each of s visits came about and was recorded. ``device`` and ``cookie`` are positions; two cookies to a device."""

    arrival: IntArray
    spend: FloatArray
    prospecting: BoolArray
    primed: BoolArray  # an advertisement was clicked at most AD_LASTS ago, by this very customer
    logged_in: BoolArray
    guest: BoolArray
    device: IntArray
    cookie: IntArray
    position: dict[str, IntArray]
    cart_at: IntArray
    checkout_at: IntArray
    needless: FloatArray  # (mailed, mailings): how far the order of an e-mail is from needing the e-mail, uniform
    # (3 n,) by device, and the numbers that ids are made of
    app: BoolArray
    hidden: BoolArray
    device_number: IntArray
    cookie_number: IntArray
    # (b,) touches of machines: as a customer, or (-1 - k) as the k-th of the cookies that nobody has
    bot: IntArray
    bot_at: IntArray
    bot_surface: IntArray
    bot_position: IntArray
    # (d,) days on which customers join
    impressions: IntArray
    advertised: FloatArray  # what they cost


def draw(rng: np.random.Generator, visits: Visits) -> Ways:
    """Everything drawn here, none of it touched by a treatment."""
    n, s = len(visits.signed_up), len(visits.user)
    signed_up, user, started = visits.signed_up, visits.user, visits.started

    # advertising goes to those who are likely to buy anyway
    paid = rng.random(s) < 1 / (1 + np.exp(3.1 - 0.9 * visits.intent))
    others = np.array([0, 1, 3, 4])[np.searchsorted([0.62, 0.88, 0.96], rng.random(s))]
    arrival = np.where(paid, PAID, others)
    spend = np.round(0.10 + 0.50 * rng.standard_exponential(s), 2)

    # one device of each kind; some tablets are another customer's, for one in twelve
    owner = np.arange(n)
    in_household = rng.random(n) < 1 / 12
    owner[in_household] = rng.integers(0, n, int(in_household.sum()))
    device = 3 * np.where(visits.kind == 2, owner[user], user) + visits.kind
    app = (rng.random(3 * n) < 0.15) & (np.arange(3 * n) % 3 == 0)
    deleted = np.where(rng.random(3 * n) < 0.25, span(rng, visits.origin, visits.end, 3 * n), visits.end)
    deleted[app] = visits.end
    at_ease = 0.3 + 0.4 * rng.random(n)
    logged_in = rng.random(s) < at_ease[user]

    whole = visits.ordered - visits.browsed  # two minutes at least
    cart_at = visits.browsed + 10 * SECOND + (0.5 * rng.random(s) * (whole - 30 * SECOND)).astype(np.int64)
    rest = visits.ordered - cart_at - 10 * SECOND
    checkout_at = cart_at + 5 * SECOND + (0.9 * rng.random(s) * rest).astype(np.int64)

    bots = 2 + n // 10_000
    rows = rng.integers(2_000, 4_000, bots)
    nobody = bots // 2
    who = np.concatenate([-1 - np.arange(nobody), rng.choice(n, bots - nobody, replace=False)])
    b = int(rows.sum())
    joined = signed_up[signed_up >= visits.origin]
    days = int(np.max(joined - visits.origin, initial=-1) // DAY) + 1
    return Ways(
        arrival=arrival,
        spend=spend,
        prospecting=started - visits.signed_up[user] < PROSPECTING,
        primed=_since_last(user, started, paid) <= AD_LASTS,
        logged_in=logged_in,
        guest=~logged_in & (rng.random(s) < 0.004),
        device=device,
        cookie=2 * device + (started >= deleted[device]),
        position={surface: np.minimum(rng.geometric(0.3, s), SLOTS) for surface in SURFACES},
        cart_at=cart_at,
        checkout_at=checkout_at,
        needless=rng.random(visits.mailings),
        app=app,
        hidden=rng.random(3 * n) < 0.03,
        device_number=rng.permutation(3 * n) + 1,
        cookie_number=rng.permutation(6 * n + nobody) + 1,
        bot=np.repeat(who, rows),
        bot_at=span(rng, visits.start, visits.end, b),
        bot_surface=rng.integers(0, len(SURFACES), b),
        bot_position=rng.integers(1, SLOTS + 1, b),
        impressions=(shown := rng.poisson(REACH * len(joined) / max(days, 1), days)),
        advertised=np.round(shown / 1000 * (6.0 + 6.0 * rng.random(days)), 2),
    )


def _since_last(user: IntArray, started: IntArray, marked: BoolArray) -> IntArray:
    """(s,) microseconds since the customer's latest marked visit, this one included; very long where there is none."""
    order = np.lexsort((started, user))
    place = np.arange(len(order))
    theirs = user[order]
    first: IntArray = np.maximum.accumulate(np.where(np.r_[True, theirs[1:] != theirs[:-1]][: len(order)], place, 0))
    last: IntArray = np.maximum.accumulate(np.where(marked[order], place, -1))
    at = started[order]
    since = np.where(last >= first, at - at[last], np.iinfo(np.int64).max)
    out = np.empty_like(since)
    out[order] = since
    return out


@dataclass(frozen=True, slots=True)
class Seen:
    """What happened in one potential world, as far as journeys record it.

    ``used`` (session, surface, time, personal) are clicks on surfaces, before the holdout too; ``carts`` and ``checkouts`` (session,
    time, amount); ``mail`` (user, time) clicks in e-mails; ``bot_personal`` (b,); ``off`` are touchpoints that do not happen.
    """

    used: Rows
    carts: Rows
    checkouts: Rows
    mail: Rows
    bot_personal: BoolArray
    off: frozenset[str]


def tables(
    ways: Ways, visits: Visits, seen: Seen, customer: pa.Array, variants: tuple[str, str]
) -> dict[str, pa.Table]:
    """``touches``, ``page_views``, ``carts``, ``checkouts``, ``identifies`` and ``ad_spend``, each in order of its own time.

    ``customer`` (n,) ids; ``variants`` are the names of generic and personal.
    """
    n = len(customer)
    device_id, cookie_id = numbered("d", ways.device_number), numbered("a", ways.cookie_number)
    pool = pa.concat_arrays([customer, cookie_id, device_id])
    nameless = np.where(ways.app[ways.device], n + len(cookie_id) + ways.device, n + ways.cookie)
    known_as = np.where(ways.logged_in, visits.user, nameless)  # in ``pool``, by visit
    out = {
        "touches": _touches(ways, visits, seen, pool, known_as, n + 6 * n, variants),
        "page_views": _page_views(ways, visits, seen, pool, known_as),
    }

    by_time = np.argsort(seen.carts["time"], kind="stable")
    session = seen.carts["session"][by_time]
    cart_id = ids("b", len(by_time))
    out["carts"] = pa.table(
        {
            "cart_id": cart_id,
            "any_id": pool.take(pa.array(known_as[session])),
            "added_at": times(seen.carts["time"][by_time]),
            "value": pa.array(seen.carts["amount"][by_time]),
        }
    )
    cart_of = np.full(len(visits.user), -1)
    cart_of[session] = np.arange(len(session))
    by_time = np.argsort(seen.checkouts["time"], kind="stable")
    session = seen.checkouts["session"][by_time]
    out["checkouts"] = pa.table(
        {
            "checkout_id": ids("h", len(by_time)),
            "cart_id": cart_id.take(pa.array(cart_of[session])),
            "user_id": customer.take(pa.array(visits.user[session])),
            "started_at": times(seen.checkouts["time"][by_time]),
        }
    )
    out["identifies"] = _identifies(ways, visits, seen, customer, cookie_id, device_id)
    days = len(ways.impressions)
    out["ad_spend"] = pa.table(
        {
            "bill_id": ids("g", days),
            "billed_at": times(visits.origin + (np.arange(days) + 1) * DAY - SECOND),
            "impressions": pa.array(ways.impressions),
            "spend": pa.array(ways.advertised),
        }
    )
    return out


def _touches(
    ways: Ways,
    visits: Visits,
    seen: Seen,
    pool: pa.Array,
    known_as: IntArray,
    nobody: int,
    variants: tuple[str, str],
) -> pa.Table:
    direct, paid = (
        np.flatnonzero((ways.arrival == code) & (name not in seen.off))
        for name, code in (("direct", 0), ("paid_social", PAID))
    )
    machine = np.flatnonzero(np.array([name not in seen.off for name in SURFACES])[ways.bot_surface])
    bot, used, mail = ways.bot[machine], seen.used, seen.mail
    sizes = [len(direct), len(paid), len(used["session"]), len(mail["user"]), len(bot)]
    nothing = [np.full(size, -1) for size in sizes]

    who = [
        known_as[direct],
        known_as[paid],
        known_as[used["session"]],
        mail["user"],
        np.where(bot < 0, nobody - 1 - bot, bot),
    ]
    at = [visits.started[direct], visits.started[paid], used["time"], mail["time"], ways.bot_at[machine]]
    codes = {
        name: np.full(size, TOUCHES.index(name))
        for name, size in zip(("direct", "paid_social", "", "email"), sizes, strict=False)
        if name
    }
    surface = [codes["direct"], codes["paid_social"], used["surface"], codes["email"], ways.bot_surface[machine]]
    slot = np.choose(used["surface"], [ways.position[name][used["session"]] for name in SURFACES])
    position = [*nothing[:2], slot, nothing[3], ways.bot_position[machine]]
    variant = [*nothing[:2], used["personal"].astype(np.int64), nothing[3], seen.bot_personal[machine].astype(np.int64)]
    campaign = [nothing[0], ways.prospecting[paid].astype(np.int64), *nothing[2:]]
    spend = [nothing[0], ways.spend[paid], *nothing[2:]]

    by_time = np.argsort(np.concatenate(at), kind="stable")
    where, cost = np.concatenate(position)[by_time], np.concatenate(spend)[by_time]
    return pa.table(
        {
            "touch_id": ids("t", len(by_time)),
            "any_id": pool.take(pa.array(np.concatenate(who)[by_time])),
            "touched_at": times(np.concatenate(at)[by_time]),
            "surface": labels(TOUCHES, np.concatenate(surface)[by_time]),
            "position": pa.array(where, pa.int8(), mask=where < 0),
            "variant": labels(variants, np.concatenate(variant)[by_time]),
            "campaign": labels(("retargeting", "prospecting"), np.concatenate(campaign)[by_time]),
            "spend": pa.array(cost, pa.float64(), mask=cost < 0),
        }
    )


def _page_views(ways: Ways, visits: Visits, seen: Seen, pool: pa.Array, known_as: IntArray) -> pa.Table:
    """The first page of a visit says where it came from; a click on a surface opens a product's page."""
    kept_from = visits.end - VIEWS_KEPT
    entry = np.flatnonzero(visits.started >= kept_from)
    used = np.flatnonzero(seen.used["time"] >= kept_from)
    mail = np.flatnonzero(seen.mail["time"] >= kept_from)
    # positions in UTM_SOURCE and UTM_MEDIUM; who comes directly has neither, nor has whoever comes by an advertisement that is off
    tags = np.array([-1, 0, 1, 2, 3])
    if "paid_social" in seen.off:
        tags[PAID] = -1
    blank = np.full(len(used), -1)
    utm = np.concatenate([tags[ways.arrival[entry]], blank, np.full(len(mail), UTM_SOURCE.index("newsletter"))])
    at = np.concatenate([visits.started[entry], seen.used["time"][used] + SECOND, seen.mail["time"][mail]])
    who = np.concatenate([known_as[entry], known_as[seen.used["session"][used]], seen.mail["user"][mail]])
    page = np.repeat([0, 1], [len(entry), len(used) + len(mail)])
    inside = np.flatnonzero(at < visits.end)
    by_time = inside[np.argsort(at[inside], kind="stable")]
    return pa.table(
        {
            "view_id": ids("v", len(by_time)),
            "any_id": pool.take(pa.array(who[by_time])),
            "viewed_at": times(at[by_time]),
            "page": labels(("home", "product"), page[by_time]),
            "utm_source": labels(UTM_SOURCE, utm[by_time]),
            "utm_medium": labels(UTM_MEDIUM, utm[by_time]),
        }
    )


def _identifies(
    ways: Ways, visits: Visits, seen: Seen, customer: pa.Array, cookie_id: pa.Array, device_id: pa.Array
) -> pa.Table:
    """The first time a customer is recognised on each cookie or app: at a log-in, or at a checkout. Guests are recognised as "guest"."""
    login = np.flatnonzero(ways.logged_in)
    session = np.concatenate([login, seen.checkouts["session"]])
    at = np.concatenate([visits.started[login] + 2 * SECOND, seen.checkouts["time"]])
    order = np.lexsort((at, ways.cookie[session], visits.user[session]))
    user, cookie = visits.user[session[order]], ways.cookie[session[order]]
    fresh = np.r_[True, (user[1:] != user[:-1]) | (cookie[1:] != cookie[:-1])][: len(order)]
    first = order[fresh]
    guest = np.flatnonzero(ways.guest)
    session = np.concatenate([session[first], guest])
    at = np.concatenate([at[first], visits.started[guest] + 2 * SECOND])
    name = np.concatenate([visits.user[session[: len(first)]], np.full(len(guest), len(customer))])
    inside = np.flatnonzero(at < visits.end)
    by_time = inside[np.argsort(at[inside], kind="stable")]
    session = session[by_time]
    device = ways.device[session]
    hidden = ways.hidden[device]
    return pa.table(
        {
            "identify_id": ids("i", len(by_time)),
            "t": times(at[by_time]),
            "user_id": pa.concat_arrays([customer, pa.array([GUEST])]).take(pa.array(name[by_time])),
            "anonymous_id": cookie_id.take(pa.array(ways.cookie[session], mask=ways.app[device])),
            "device_id": pa.concat_arrays([device_id, pa.array([NO_DEVICE])]).take(
                pa.array(np.where(hidden, len(device_id), device))
            ),
        }
    )

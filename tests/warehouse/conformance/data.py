"""The data of the conformance suite: a small shop whose rows are what breaks engines apart.

Ties in time, rows twice, repeated and missing ids, times, arms and values, hostile text, ids of every type, columns called
like keywords, times without a zone on the days that clocks change, dates, decimals, and moments before 1970 and after today.
Everything is drawn from one seed; values are such that figures are well conditioned (no sum cancels to its last digits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

USERS = 420
START = datetime(2026, 9, 14)
"""Exposures are in the six weeks from here; clocks in Europe go back in the night of 25 October."""
NOW = datetime(2026, 12, 1, tzinfo=UTC)
"""When every project is read."""

_HOSTILE: tuple[Callable[[int], str], ...] = (
    lambda i: f"O'Brien-{i}",
    lambda i: f'say "{i}"',
    lambda i: f"Ünïcödé-{i}",
    lambda i: f"日本-{i}",
    lambda i: f"back\\slash\\n{i}",
    lambda i: f"100%_{i}; -- {{x}} $1 ?",
    lambda i: f" padded {i} ",
    lambda i: f"line\nbreak\t{i}",
    lambda i: f"😀{i}",
    str,
    lambda i: f"Case{i}",
    lambda i: f"case{i - 1}",  # of the user before, but for its capital
)


def text_id(number: int) -> str:
    """The id of a user as text: two thirds are plain, the rest hostile."""
    if number == 0:
        return ""
    return _HOSTILE[number // 3 % len(_HOSTILE)](number) if number % 3 == 0 else f"u{number}"


def _some_missing(rng: np.random.Generator, values: Sequence[Any], share: float) -> list[Any]:
    gone = rng.random(len(values)) < share
    return [None if miss else value for value, miss in zip(values, gone, strict=True)]


def _moments(rng: np.random.Generator, n: int, days: int, first: datetime = START) -> list[datetime]:
    """Times of which every fifth is on the whole hour, so that many tie; the rest have microseconds."""
    seconds = rng.integers(0, days * 86_400, n)
    micro = rng.integers(0, 1_000_000, n)
    whole = rng.random(n) < 0.2
    return [
        first
        + (timedelta(hours=int(s) // 3600) if w else timedelta(seconds=int(s), microseconds=int(u) if s % 2 else 0))
        for s, u, w in zip(seconds, micro, whole, strict=True)
    ]


def _aware(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)


def _twice(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """With some of its rows a second time, at the end."""
    return pa.concat_tables([table, table.take(list(rows))])


@cache
def tables() -> dict[str, pa.Table]:
    """Every table by name. Microseconds, int32 and int64, doubles, decimals, text, booleans; no column is all NULL."""
    rng = np.random.default_rng(20_261_201)
    us, tz = pa.timestamp("us"), pa.timestamp("us", tz="UTC")
    out: dict[str, pa.Table] = {}

    # ---- users: one row each
    numbers = list(range(USERS))
    signed = [START - timedelta(days=float(d)) for d in rng.exponential(150, USERS)]
    signed[5], signed[6] = datetime(1969, 7, 20, 20, 17, 40, 123_456), datetime(1958, 1, 1)
    tenure_plan = rng.choice(["free", "plus", "pro"], USERS, p=[0.6, 0.3, 0.1])
    out["users"] = pa.table(
        {
            "user_id": pa.array([text_id(i) for i in numbers]),
            "user_no": pa.array(numbers, pa.int64()),
            "signed_up_at": pa.array(_some_missing(rng, signed, 0.04), us),
            "plan": pa.array(_some_missing(rng, list(tenure_plan), 0.05), pa.string()),
            "age": pa.array(_some_missing(rng, [int(a) for a in rng.integers(16, 80, USERS)], 0.1), pa.int32()),
            "score": pa.array(_some_missing(rng, [float(s) for s in rng.normal(0, 3, USERS)], 0.1), pa.float64()),
            "credit limit": pa.array([Decimal(int(c)) / 4 for c in rng.integers(0, 4000, USERS)], pa.decimal128(9, 2)),
            "vip": pa.array(_some_missing(rng, [bool(v) for v in rng.random(USERS) < 0.2], 0.1), pa.bool_()),
        }
    )

    # ---- exposures: several tests over one source
    rows: list[tuple[int, str, str | None]] = []
    for test, arms, shares, share in (
        ("recs", ("off", "on"), (0.5, 0.5), 0.95),
        ("ranking", ("old", "new A", "new 'B'"), (0.4, 0.3, 0.3), 0.9),
        ("layout", ("false", "true"), (0.5, 0.5), 0.8),
        ("global", ("held_out", "everyone"), (0.3, 0.7), 0.97),
        ("lonely", ("control", "one"), (1.0, 0.0), 0.3),
        ("family", ("off", "on"), (0.5, 0.5), 0.9),
    ):
        seen = np.flatnonzero(rng.random(USERS) < share)
        drawn = rng.choice(arms, USERS, p=shares)
        if test == "family":  # whole households are assigned
            drawn = drawn[np.arange(USERS) // 5 * 5]
        rows += [(int(i), test, str(drawn[i])) for i in seen for _ in range(1 + int(rng.random() < 0.3))]
        if test == "lonely":
            rows.append((7, test, "one"))
        if test == "recs":  # a few who saw both arms, and a few whose arm was not written down
            rows += [(int(i), test, "on" if drawn[i] == "off" else "off") for i in seen[:6]]
            rows += [(int(i), test, None) for i in seen[6:14]]
    order = rng.permutation(len(rows))
    rows = [rows[k] for k in order]
    times: list[datetime | None] = list(_moments(rng, len(rows), 42))
    for k, (user, test, _) in enumerate(rows):  # seen at the same moment by everybody: every tie that there can be
        if test == "layout" and user % 4 == 0:
            times[k] = START + timedelta(days=10)
    times = _some_missing(rng, times, 0.01)
    times[3] = datetime(2100, 1, 1)
    device = [["mobile", "desktop", "Tablet", "テレビ"][int(d)] for d in rng.integers(0, 4, USERS)]
    ids = _some_missing(rng, [text_id(user) for user, _, _ in rows], 0.01)
    no_id = [i is None for i in ids]
    out["exposures"] = _twice(
        pa.table(
            {
                "exposure_id": pa.array(range(len(rows)), pa.int64()),
                "user_id": pa.array(ids, pa.string()),
                "user_no": pa.array([None if n else u for (u, _, _), n in zip(rows, no_id, strict=True)], pa.int64()),
                "household": pa.array([u // 5 for u, _, _ in rows], pa.int32()),
                "test": pa.array([test for _, test, _ in rows], pa.string()),
                "group": pa.array([arm for _, _, arm in rows], pa.string()),
                "is_new": pa.array([None if a is None else a == "true" for _, _, a in rows], pa.bool_()),
                "t": pa.array(times, us),
                "t_zoned": pa.array([_aware(t) for t in times], tz),
                "day": pa.array([None if t is None else t.date() for t in times], pa.date32()),
                "device": pa.array([None if u % 23 == 0 else device[u] for u, _, _ in rows], pa.string()),
                "before_score": pa.array([float(np.round(np.sin(u) * 10, 3)) for u, _, _ in rows], pa.float64()),
            }
        ),
        range(0, len(rows), 40),
    )

    # ---- visits: pages seen, by whoever they are known as
    n = 3_600
    users = rng.integers(0, USERS, n)
    known_as = [
        text_id(int(u)) if kind == 0 else f"anon-{u}" if kind == 1 else f"device-{u // 2}"
        for u, kind in zip(users, rng.choice(3, n, p=[0.6, 0.3, 0.1]), strict=True)
    ]
    times = list(_moments(rng, n, 56, START - timedelta(days=7)))
    medium = rng.choice(["cpc", "email", "organic", "referral", "", "CPM", "social"], n)
    source = rng.choice(["google", "facebook.com", "newsletter", "(direct)", "bing", "Example"], n)
    pages = rng.choice(["home", "search", "product", "cart", "fiche-produit é"], n)
    out["visits"] = _twice(
        pa.table(
            {
                "user_id": pa.array(_some_missing(rng, [text_id(int(u)) for u in users], 0.02), pa.string()),
                "any_id": pa.array(_some_missing(rng, known_as, 0.02), pa.string()),
                "t": pa.array(_some_missing(rng, times, 0.01), us),
                "page": pa.array(_some_missing(rng, list(pages), 0.03), pa.string()),
                "load_ms": pa.array(_some_missing(rng, [int(x) for x in rng.gamma(4, 60, n)], 0.05), pa.int32()),
                "utm_source": pa.array(_some_missing(rng, list(source), 0.2), pa.string()),
                "utm_medium": pa.array(_some_missing(rng, list(medium), 0.2), pa.string()),
                "utm_campaign": pa.array(
                    _some_missing(rng, list(rng.choice(["autumn", "shop 'x'"], n)), 0.5), pa.string()
                ),
                "bot": pa.array(_some_missing(rng, [bool(b) for b in rng.random(n) < 0.05], 0.02), pa.bool_()),
            }
        ),
        range(0, n, 90),
    )

    # ---- carts and orders
    n = 900
    users = rng.integers(0, USERS, n)
    out["carts"] = pa.table(
        {
            "user_id": pa.array(_some_missing(rng, [text_id(int(u)) for u in users], 0.02), pa.string()),
            "t": pa.array(_moments(rng, n, 50, START - timedelta(days=3)), us),
            "cart": pa.array([int(x) for x in rng.integers(0, 10_000, n)], pa.int64()),
        }
    )
    n = 2_200
    users = rng.integers(0, USERS + 30, n)  # some buy who are in no table of users
    times = list(_moments(rng, n, 70, START - timedelta(days=21)))
    amounts = [float(np.round(a, 2)) for a in rng.lognormal(3, 1, n)]
    amounts[:8] = [0.0, -0.0, 1e-7, 98_765.4321, -250.5, 1 / 3, 2.0**-40, 12_345.0]
    number_of = [int(u) for u in users]
    missing = rng.random(n) < 0.02
    exact = [None if m else u for u, m in zip(number_of, missing, strict=True)]
    paths = rng.choice(["recommendations", "search", "browse", "other"], n)
    order_ids = [int(i) for i in rng.integers(0, 2_100, n)]
    out["orders"] = _twice(
        pa.table(
            {
                "order_id": pa.array(_some_missing(rng, order_ids, 0.01), pa.int64()),
                "user_id": pa.array([None if u is None else text_id(u) for u in exact], pa.string()),
                "user_no": pa.array(exact, pa.int64()),
                "user_int": pa.array(exact, pa.int32()),
                "user_double": pa.array([None if u is None else float(u) for u in exact], pa.float64()),
                "user_decimal": pa.array([None if u is None else Decimal(u) for u in exact], pa.decimal128(12, 2)),
                "t": pa.array(_some_missing(rng, times, 0.01), us),
                "t_zoned": pa.array([_aware(t) for t in times], tz),
                "day": pa.array([t.date() for t in times], pa.date32()),
                "amount": pa.array(_some_missing(rng, amounts, 0.03), pa.float64()),
                "price": pa.array([Decimal(int(a * 100)) / 100 for a in amounts], pa.decimal128(12, 2)),
                "select": pa.array([int(q) for q in rng.integers(1, 6, n)], pa.int32()),
                "path": pa.array(_some_missing(rng, list(paths), 0.1), pa.string()),
                "paid": pa.array(_some_missing(rng, [bool(p) for p in rng.random(n) < 0.9], 0.03), pa.bool_()),
            }
        ),
        range(5, n, 60),
    )
    back = np.flatnonzero(rng.random(n) < 0.2)
    out["returns"] = pa.table(
        {
            "order_id": pa.array([order_ids[k] for k in back], pa.int64()),
            "user_id": pa.array([None if exact[k] is None else text_id(exact[k]) for k in back], pa.string()),
            "t": pa.array(
                [times[k] + timedelta(days=float(d)) for k, d in zip(back, rng.exponential(6, len(back)), strict=True)],
                us,
            ),
        }
    )

    # ---- answers to questions, plans over time, signups, spending
    n = 700
    users = rng.integers(0, USERS, n)
    out["answers"] = pa.table(
        {
            "user_id": pa.array([text_id(int(u)) for u in users], pa.string()),
            "t": pa.array(_moments(rng, n, 55), us),
            "nps": pa.array(_some_missing(rng, [int(x) for x in rng.integers(0, 11, n)], 0.1), pa.int32()),
            "csat": pa.array(_some_missing(rng, [int(x) for x in rng.integers(1, 6, n)], 0.1), pa.int32()),
        }
    )
    n = 500
    users = rng.integers(0, USERS, n)
    changed = _moments(rng, n, 80, START - timedelta(days=60))
    out["plan_changes"] = pa.table(
        {
            "user_id": pa.array([text_id(int(u)) for u in users], pa.string()),
            "changed_at": pa.array([_aware(t) for t in changed], tz),
            "plan": pa.array(_some_missing(rng, list(rng.choice(["free", "plus", "Pro"], n)), 0.05), pa.string()),
        }
    )
    began = [START - timedelta(days=14) + timedelta(days=int(d)) for d in rng.integers(0, 50, USERS)]
    out["signups"] = _twice(
        pa.table(
            {
                "user_id": pa.array([text_id(i) for i in numbers], pa.string()),
                "day": pa.array([b.date() for b in began], pa.date32()),
                "t": pa.array(
                    [b + timedelta(hours=int(h)) for b, h in zip(began, rng.integers(0, 24, USERS), strict=True)], us
                ),
                "plan": pa.array(_some_missing(rng, list(tenure_plan), 0.05), pa.string()),
            }
        ),
        range(0, USERS, 30),
    )
    days = [date(2026, 8, 31) + timedelta(days=k) for k in range(63) for _ in range(2)]
    out["ad_spend"] = pa.table(
        {
            "day": pa.array(days, pa.date32()),
            "channel": pa.array(["social", "search"] * 63, pa.string()),
            "euros": pa.array([Decimal(int(c)) / 100 for c in rng.integers(500, 9_000, 126)], pa.decimal128(10, 2)),
        }
    )

    # ---- who is who: an anonymous id, a device that several share, an id that nobody should join
    rows3: list[tuple[str | None, str | None, str | None, datetime]] = []
    for i in range(0, USERS, 2):
        when = START + timedelta(days=float(rng.uniform(-5, 40)))
        rows3.append((text_id(i), f"anon-{i}", f"device-{i // 2}" if i % 6 == 0 else None, when))
        if i % 14 == 0:
            rows3.append((text_id(i + 1), f"anon-{i}", None, when + timedelta(days=1)))
        if i % 18 == 0:
            rows3.append((text_id(i), None, "shared-kiosk", when))
        if i % 20 == 0:
            rows3.append((None, f"anon-{i + 1}", f"device-{i // 2}", when))
        if i % 60 == 0:
            rows3.append((text_id(i), "00000000", "N/A", when))
            rows3.append((text_id(i), "house-phone", None, when))
    rows3 += rows3[:10]
    out["identifies"] = pa.table(
        {
            "user_id": pa.array([r[0] for r in rows3], pa.string()),
            "anonymous_id": pa.array([r[1] for r in rows3], pa.string()),
            "device_id": pa.array([r[2] for r in rows3], pa.string()),
            "t": pa.array([r[3] for r in rows3], us),
        }
    )

    # ---- regions: prices switched every four hours
    periods, minutes = [], []
    for region in range(14):
        for k in range(60):
            opened = datetime(2026, 10, 20) + timedelta(hours=4 * k)
            arm = str(rng.choice(["flat", "surge"]))
            periods.append((region, opened, arm))
            for _ in range(int(rng.integers(1, 5))):
                took = float(np.round(rng.gamma(9, 4) - 2.0 * (arm == "surge"), 2))
                minutes.append((region, opened + timedelta(seconds=int(rng.integers(0, 4 * 3600))), took))
    out["pay_periods"] = pa.table(
        {
            "region": pa.array([p[0] for p in periods], pa.int32()),
            "t": pa.array([p[1] for p in periods], us),
            "arm": pa.array([p[2] for p in periods], pa.string()),
        }
    )
    out["deliveries"] = pa.table(
        {
            "region": pa.array([m[0] for m in minutes], pa.int32()),
            "t": pa.array([m[1] for m in minutes], us),
            "minutes": pa.array(_some_missing(rng, [m[2] for m in minutes], 0.02), pa.float64()),
        }
    )

    # ---- clocks: local times around the hours that do not exist and those that come twice
    hours = [
        base + timedelta(minutes=int(m))
        for base in (datetime(2026, 3, 29), datetime(2026, 10, 25))
        for m in range(0, 6 * 60, 10)
    ]
    out["clocks"] = pa.table(
        {
            "who": pa.array([k % 36 for k in range(len(hours))], pa.int64()),
            "kind": pa.array(["a" if k % 2 else "b" for k in range(len(hours))], pa.string()),
            "local": pa.array(hours, us),
            "day": pa.array([h.date() for h in hours], pa.date32()),
        }
    )
    local = [h + timedelta(minutes=30) for h in hours for _ in range(3)]
    out["ticks"] = pa.table(
        {
            "who": pa.array([k % 36 for k in range(len(hours)) for _ in range(3)], pa.int64()),
            "local": pa.array(local, us),
            "worth": pa.array([float(k % 7) for k in range(len(local))], pa.float64()),
        }
    )
    out["nobody"] = out["users"].slice(0, 0)
    return out

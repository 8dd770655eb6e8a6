"""The attribution kernel against published cases and against a slow, obvious implementation in Python."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from payoff.errors import DataError
from payoff.spec.journeys import ArmsOf, JourneyDesign
from payoff.spec.nouns import Assignment, Attribution, DuckDBConnection, Entity, Model, Source, Touchpoint, model_names
from payoff.stats import markov
from payoff.stats.credit import rule_weights
from payoff.stats.shapley import ordered_shapley
from payoff.warehouse import credit
from payoff.warehouse.credited import POSITIONS, Capped, CreditData
from payoff.warehouse.sources import Catalog

HOUR, DAY = 3_600_000_000, 86_400_000_000
NOW = 40 * 365 * DAY
ALL_MODELS: list[Any] = [
    "first",
    "last",
    "last_non_direct",
    "linear",
    "participation",
    {"time_decay": {"half_life": "2d"}},
    "u_shaped",
    "w_shaped",
    {"position": [0.0, 1.0, 0.0]},
    {
        "custom": "position + touches * 0.5 + days_before + CASE WHEN touchpoint = 'search' THEN value * 0 + 1 ELSE 0 END"
    },
    "shapley",
    "ordered_shapley",
    {"markov": {"order": 1}},
    {"markov": {"order": 2}},
]


@dataclass
class Shop:
    """Touches (id, unit, us, surface, personalised, cost) and orders (id, unit, us, kind, amount), and what is made of them."""

    touches: list[tuple[Any, ...]]
    orders: list[tuple[Any, ...]]
    exposures: list[tuple[Any, ...]] = field(default_factory=list)
    surfaces: Sequence[str] = ("home", "search", "direct")

    def read(self, folder: Path, declared: Mapping[str, Any], **more: Any) -> CreditData:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "shop.duckdb"
        path.unlink(missing_ok=True)
        with duckdb.connect(str(path)) as c:
            c.execute("CREATE TABLE seen (id INT, u VARCHAR, us BIGINT, surface VARCHAR, chosen BOOLEAN, cost DOUBLE)")
            c.execute("CREATE TABLE orders (id INT, u VARCHAR, us BIGINT, kind VARCHAR, amount DOUBLE)")
            c.execute("CREATE TABLE shown (u VARCHAR, us BIGINT, arm VARCHAR)")
            for table, rows in (("seen", self.touches), ("orders", self.orders), ("shown", self.exposures)):
                if rows:
                    row = f"({', '.join('?' * len(rows[0]))})"
                    c.execute(
                        f"INSERT INTO {table} VALUES {', '.join([row] * len(rows))}", [x for r in rows for x in r]
                    )
        time = "make_timestamp(us)"
        sources = {
            "seen": Source(table="seen", time=time, id="id"),
            "orders": Source(table="orders", time=time, id="id"),
            "shown": Source(table="shown", time=time),
        }
        with Catalog(
            sources,
            {"user": Entity(id="u")},
            {"main": DuckDBConnection(engine="duckdb", path=str(path))},
            folder,
            "UTC",
        ) as catalog:
            catalog.prepare(run=True)
            return credit.read(catalog, self.design(declared, **more))

    def design(self, declared: Mapping[str, Any], **more: Any) -> JourneyDesign:
        touchpoints = more.pop("touchpoints", None) or {
            s: Touchpoint(source="seen", where=f"surface = '{s}'", personalised="chosen", direct=s == "direct")
            for s in self.surfaces
        }
        given = {
            "conversion": {"event": "orders", "value": "amount"},
            "touchpoints": list(touchpoints),
            "window": "7d",
            "models": ["linear"],
            **declared,
        }
        if "conversions" in declared:
            del given["conversion"]
        attribution = Attribution.model_validate(given)
        return JourneyDesign(
            "attribution.a", attribution, "user", touchpoints=touchpoints, now_us=more.pop("now_us", NOW), **more
        )


def paths(*journeys: tuple[str, int]) -> Shop:
    """One unit a journey: its surfaces a day apart, then (where it is 1) an order."""
    shop = Shop([], [], surfaces=sorted({s for path, _ in journeys for s in path.split(">")}))
    for unit, (path, converts) in enumerate(journeys):
        stops = path.split(">")
        for at, surface in enumerate(stops):
            shop.touches.append((len(shop.touches), f"u{unit}", at * DAY + DAY, surface, False, 1.0))
        if converts:
            shop.orders.append((len(shop.orders), f"u{unit}", len(stops) * DAY + HOUR, "a", 10.0))
    return shop


def removal(data: CreditData, model: str = "markov") -> markov.Removal:
    moves = data.credits[0].moves[model]
    return markov.removal(
        markov.Transitions.of(moves.group, moves.state, moves.follows, moves.count, len(data.stops), moves.groups)
    )


# ---------------------------------------------------------------- published cases


def test_three_paths_of_three_channels(tmp_path: Path) -> None:
    data = paths(("C1>C2>C3", 1), ("C1", 0), ("C2>C3", 0)).read(tmp_path, {"models": ["markov"]})
    found = removal(data)
    assert found.probability == pytest.approx(1 / 3)
    assert found.effect[0] == pytest.approx([0.5, 1, 1])
    assert found.credit[0] == pytest.approx([0.2, 0.4, 0.4])


def test_two_channels_with_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    shop = paths(("google", 1), ("google", 1), ("google", 0), ("mailing", 1), ("google>mailing", 1))
    found = removal(shop.read(tmp_path, {"models": ["markov"]}))
    assert found.probability == pytest.approx(0.8)
    assert found.effect[0] == pytest.approx([0.75, 0.5])
    assert found.credit[0] == pytest.approx([2.4, 1.6])


def test_fifty_dollars_with_a_half_life_of_a_week(tmp_path: Path) -> None:
    day = 20 * DAY
    gaps = [(0, "a"), (0, "b"), (6, "c"), (9, "d")]
    touches = [(i, "u", day - gap * DAY, surface, False, None) for i, (gap, surface) in enumerate(gaps)]
    shop = Shop(touches, [(1, "u", day, "x", 50.0)], surfaces="abcd")
    data = shop.read(tmp_path, {"models": ["time_decay"], "window": "30d"})
    assert data.credits[0].worth["time_decay"].sum(axis=0) == pytest.approx([16.88, 16.88, 9.32, 6.92], abs=0.005)


# ---------------------------------------------------------------- against the slow implementation


@dataclass
class Slow:
    """What the kernel should say, worked out unit by unit and touch by touch."""

    shop: Shop
    design: JourneyDesign

    def streams(self) -> tuple[dict[str, list[tuple[int, int, bool]]], dict[str, list[tuple[int, str, float]]]]:
        touches: dict[str, list[tuple[int, int, bool]]] = defaultdict(list)
        seen: set[int] = set()
        for key, unit, us, surface, chosen, _ in sorted(
            self.shop.touches, key=lambda r: (r[2] is None, r[2] or 0, str(r[1]))
        ):
            if unit is None or us is None or not 0 <= us <= NOW + DAY or surface not in self.shop.surfaces:
                continue
            if key is not None and key in seen:
                continue
            seen |= {key} - {None}
            touches[unit].append((us, list(self.shop.surfaces).index(surface), bool(chosen)))
        orders: dict[str, list[tuple[int, str, float]]] = defaultdict(list)
        seen = set()
        for key, unit, us, kind, amount in sorted(self.shop.orders, key=lambda r: (r[2] is None, r[2] or 0, str(r[1]))):
            if unit is None or us is None or not 0 <= us <= NOW + DAY or (key is not None and key in seen):
                continue
            seen |= {key} - {None}
            orders[unit].append((us, kind, amount or 0.0))
        return {u: sorted(t) for u, t in touches.items()}, orders

    def conversions(self, kind: str | None) -> list[tuple[str, int, float]]:
        _, orders = self.streams()
        low = self.design.starts_us if self.design.starts_us is not None else 0
        high = self.design.ends_us if self.design.ends_us is not None else 2**62
        return [
            (unit, us, amount)
            for unit, of in orders.items()
            for us, k, amount in of
            if (kind is None or k == kind) and low <= us < high
        ]

    def credit(self, model: Model, kind: str | None, window: int) -> tuple[np.ndarray, np.ndarray]:
        touches, _ = self.streams()
        counts, worth = np.zeros(len(self.shop.surfaces)), np.zeros(len(self.shop.surfaces))
        for unit, us, amount in self.conversions(kind):
            path = [t for t in touches.get(unit, []) if us - window < t[0] <= us]
            if not path:
                continue
            for (_, code, _), w in zip(path, self.weights(model, path, us, amount), strict=True):
                counts[code] += w
                worth[code] += w * amount
        return counts, worth

    def weights(self, model: Model, path: list[tuple[int, int, bool]], us: int, amount: float) -> Sequence[float]:
        codes, days = [c for _, c, _ in path], [(us - t) / DAY for t, _, _ in path]
        if model.kind in ("shapley", "ordered_shapley"):
            return [1 / (len(set(codes)) * codes.count(c)) for c in codes]
        weights = list(model.weights or ())
        if model.kind == "custom":
            search = list(self.shop.surfaces).index("search")
            weights = [
                i + 1 + len(path) * 0.5 + d + (1 if c == search else 0)
                for i, (c, d) in enumerate(zip(codes, days, strict=True))
            ]
        half = None if model.half_life is None else model.half_life.total_seconds() / 86_400
        direct = [self.shop.surfaces[c] == "direct" for c in codes]
        return list(
            rule_weights(model.kind, codes, days, direct=direct, half_life=half, weights=weights)  # type: ignore[arg-type]
        )

    def moves(self, order: int, kind: str | None, window: int) -> dict[tuple[tuple[int, ...], int], int]:
        touches, orders = self.streams()
        low = self.design.starts_us if self.design.starts_us is not None else 0
        high = self.design.ends_us if self.design.ends_us is not None else 2**62
        out: dict[tuple[tuple[int, ...], int], int] = defaultdict(int)
        for unit, stops in touches.items():
            ends = sorted(us for us, k, _ in orders.get(unit, []) if (kind is None or k == kind) and us < high)
            leading: dict[int, list[tuple[int, int]]] = defaultdict(list)
            nowhere: dict[int, list[tuple[int, int]]] = defaultdict(list)
            for us, code, _ in stops:
                following = next((i for i, e in enumerate(ends) if e >= us), len(ends))
                leads = following < len(ends) and ends[following] - us < window
                (leading if leads else nowhere)[following].append((us, code))
            for following, path in leading.items():
                if ends[following] >= low:
                    for move in markov.walk([c for _, c in path], True, order):
                        out[move] += 1
            for path in nowhere.values():
                part: list[tuple[int, int]] = []
                for us, code in [*((u, c) for u, c in path if low <= u < high), (2**62, -1)]:
                    if part and us - part[-1][0] > window:
                        for move in markov.walk([c for _, c in part], False, order):
                            out[move] += 1
                        part = []
                    part.append((us, code))
        return dict(out)


def random_shop(seed: int, mess: bool) -> Shop:
    rng = np.random.default_rng(seed)
    units = [f"u{i}" for i in range(int(rng.integers(2, 8)))]
    span = int(rng.integers(5, 30))

    def when() -> int:
        # whole half-days: ties of touches with each other and with conversions are common
        return int(rng.integers(2, 2 * span)) * DAY // 2

    surfaces = ["home", "search", "direct"]
    shop = Shop([], [], surfaces=surfaces)
    for i in range(int(rng.integers(5, 60))):
        unit: Any = str(rng.choice(units))
        us: Any = when()
        key: Any = i
        surface: Any = str(rng.choice([*surfaces, "elsewhere"]))
        if mess and rng.random() < 0.2:
            fault = rng.integers(0, 6)
            unit = None if fault == 0 else unit
            us = None if fault == 1 else -DAY if fault == 2 else NOW + 3 * DAY if fault == 3 else us
            surface = None if fault == 4 else surface
            key = None if fault == 5 else key
        shop.touches.append((key, unit, us, surface, bool(rng.random() < 0.5), 1.5))
        if mess and rng.random() < 0.1:
            shop.touches.append(shop.touches[-1])
    for i in range(int(rng.integers(1, 12))):
        unit, us, key = str(rng.choice(units)), when(), i
        amount: Any = float(np.round(rng.normal(20, 30), 2))
        if mess and rng.random() < 0.2:
            fault = rng.integers(0, 4)
            unit = None if fault == 0 else unit
            us = None if fault == 1 else NOW + 3 * DAY if fault == 2 else us
            amount = None if fault == 3 else amount
        shop.orders.append((key, unit, us, str(rng.choice(["a", "b"])), amount))
        if mess and rng.random() < 0.1:
            shop.orders.append(shop.orders[-1])
    return shop


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(s, marks=pytest.mark.slow) for s in range(8, 60))])
def test_the_kernel_is_the_slow_implementation(tmp_path: Path, seed: int) -> None:
    shop = random_shop(seed, mess=seed % 2 == 1)
    declared: dict[str, Any] = {
        "conversions": {
            "all": {"event": "orders", "value": "amount"},
            "b": {"event": {"source": "orders", "where": "kind = 'b'"}},
        },
        "models": ALL_MODELS,
        "window": ["5d", "36h"],
    }
    more: dict[str, Any] = {}
    if seed % 3 == 0:
        more = {"starts_us": 4 * DAY, "ends_us": 11 * DAY}
    data = shop.read(tmp_path, declared, **more)
    slow = Slow(shop, shop.design(declared, **more))
    attribution = slow.design.declared
    assert isinstance(attribution, Attribution)
    models = dict(zip(model_names(attribution.models), attribution.models, strict=True))
    of_all = slow.conversions(None)
    assert data.totals["all"].conversions.sum() == len(of_all)
    assert data.totals["all"].worth.sum() == pytest.approx(sum(a for _, _, a in of_all))
    if not of_all:
        assert data.credits == ()
        return
    assert len(data.credits) == 4
    for found in data.credits:
        kind, valued = ("b", False) if found.outcome == "b" else (None, True)
        assert data.refused == {}
        for name, model in models.items():
            if model.kind == "markov":
                moves = found.moves[name]
                rows: dict[tuple[tuple[int, ...], int], int] = defaultdict(int)
                for state, follows, n in zip(moves.state, moves.follows, moves.count, strict=True):
                    rows[tuple(int(s) for s in state), int(follows)] += int(n)
                assert rows == slow.moves(model.order or 1, kind, found.window_us), name
                continue
            counts, worth = slow.credit(model, kind, found.window_us)
            assert found.counts[name].sum(axis=0) == pytest.approx(counts, abs=1e-9), name
            if valued:
                assert found.worth[name].sum(axis=0) == pytest.approx(worth, abs=1e-7), name
        touches, _ = slow.streams()
        bare = [
            1
            for unit, us, _ in slow.conversions(kind)
            if not any(us - found.window_us < t[0] <= us for t in touches.get(unit, []))
        ]
        assert found.unattributed.sum() == len(bare)
        assert found.touched == len(slow.conversions(kind)) - len(bare)
        units = [
            len({u for u, us, _ in slow.conversions(kind) if any(us - found.window_us < t <= us and c == code for t, c, _ in touches.get(u, []))})
            for code in range(3)
        ]  # fmt: skip
        assert found.units.tolist() == units


@pytest.mark.parametrize("seed", [1, 3, 6])
def test_positions_are_the_ordered_shapley_values(tmp_path: Path, seed: int) -> None:
    shop = random_shop(seed, mess=False)
    data = shop.read(tmp_path, {"models": ["ordered_shapley"], "window": "5d"})
    slow = Slow(shop, shop.design({}))
    touches, _ = slow.streams()
    found = [
        ([c for t, c, _ in touches.get(u, []) if us - 5 * DAY < t <= us], a) for u, us, a in slow.conversions(None)
    ]
    walked = [(p, a) for p, a in found if p]
    assert walked
    expected = ordered_shapley([p for p, _ in walked], [a for _, a in walked], 3)
    expected = np.column_stack([expected, np.zeros((3, max(POSITIONS - expected.shape[1], 0)))])
    tail = expected[:, POSITIONS - 1 :].sum(axis=1)
    positions = data.credits[0].positions
    assert positions is not None
    assert positions[1].sum(axis=0)[:, :-1] == pytest.approx(expected[:, : POSITIONS - 1], abs=1e-9)
    assert positions[1].sum(axis=0)[:, -1] == pytest.approx(tail, abs=1e-9)


# ---------------------------------------------------------------- laws


def totals(data: CreditData) -> dict[tuple[str, str], float]:
    found = data.credits[0]
    return {
        (model, stop.label): float(table.sum(axis=0)[stop.code])
        for model, table in found.worth.items()
        for stop in data.stops
    }


def crowd(seed: int, units: int = 40) -> Shop:
    """Enough units that groups differ, all times different."""
    rng = np.random.default_rng(seed)
    shop = Shop([], [])
    for i in range(units * 6):
        us = int(rng.integers(DAY, 20 * DAY))
        surface = str(rng.choice(["home", "search", "direct"]))
        shop.touches.append((i, f"u{rng.integers(units)}", us, surface, bool(rng.random() < 0.5), 1.0))
    for i in range(units):
        shop.orders.append(
            (i, f"u{rng.integers(units)}", int(rng.integers(DAY, 20 * DAY)), "a", float(rng.exponential(9)))
        )
    return shop


RULES = [m for m in ALL_MODELS if m != "ordered_shapley" and not (isinstance(m, dict) and "markov" in m)]


def test_the_order_in_which_touchpoints_are_declared_changes_nothing(tmp_path: Path) -> None:
    shop = crowd(1)
    plain = totals(shop.read(tmp_path / "a", {"models": RULES}))
    shop.surfaces = ["direct", "search", "home"]
    assert totals(shop.read(tmp_path / "b", {"models": RULES})) == pytest.approx(plain)


def test_a_touchpoint_that_nobody_meets_gets_nothing_and_takes_nothing(tmp_path: Path) -> None:
    shop = crowd(2)
    plain = totals(shop.read(tmp_path / "a", {"models": RULES}))
    shop.surfaces = ["home", "nobody", "search", "direct"]
    more = shop.read(tmp_path / "b", {"models": [*RULES, "markov"]})
    assert {k: v for k, v in totals(more).items() if k[1] != "nobody"} == pytest.approx(plain)
    assert all(v == 0 for k, v in totals(more).items() if k[1] == "nobody")
    assert removal(more).share[0][1] == 0


def test_units_read_apart_add_up_to_units_read_together(tmp_path: Path) -> None:
    shop = crowd(3)
    models = [*RULES, "markov"]
    whole = shop.read(tmp_path / "a", {"models": models})
    parts = []
    for half in (0, 1):
        mine = {f"u{i}" for i in range(40) if i % 2 == half}
        part = Shop([t for t in shop.touches if t[1] in mine], [o for o in shop.orders if o[1] in mine])
        parts.append(part.read(tmp_path / f"{half}", {"models": models}))
    for model, table in whole.credits[0].worth.items():
        # in every hash group, since a unit's group is its own
        assert table == pytest.approx(parts[0].credits[0].worth[model] + parts[1].credits[0].worth[model])
    assert whole.credits[0].unattributed == pytest.approx(sum(p.credits[0].unattributed for p in parts))
    counted = [sorted(zip(p.credits[0].moves["markov"].group, map(tuple, p.credits[0].moves["markov"].state),
                          p.credits[0].moves["markov"].follows, p.credits[0].moves["markov"].count, strict=True))
               for p in (whole, *parts)]  # fmt: skip
    assert counted[0] == sorted(counted[1] + counted[2])


# ---------------------------------------------------------------- units with too much


def test_a_unit_with_too_many_pairs_keeps_the_newest_of_each_conversion(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    shop = crowd(4, units=10)
    for i in range(120):
        surface = str(rng.choice(["home", "search"]))
        shop.touches.append((10_000 + i, "bot", int(rng.integers(2, 40)) * DAY // 2, surface, True, 1.0))
    for i in range(9):
        shop.orders.append((10_000 + i, "bot", int(rng.integers(2, 40)) * DAY // 2, "a", 7.0))
    declared = {"models": ["linear", "last"], "max_pairs": 300}
    data = shop.read(tmp_path, declared)
    slow = Slow(shop, shop.design(declared))
    touches, _ = slow.streams()
    keep, dropped, hit = 300 // 9, 0, 0
    worth = np.zeros(3)
    for unit, us, amount in slow.conversions(None):
        path = [t for t in touches.get(unit, []) if us - 7 * DAY < t[0] <= us]
        if unit == "bot":
            dropped += max(len(path) - keep, 0)
            hit += len(path) > keep
            path = path[-keep:]
        for _, code, _ in path:
            worth[code] += amount / len(path)
    assert hit > 0
    assert data.capped == Capped(1, dropped, hit)
    assert data.left_out == {"touches beyond the newest of each conversion, of units with more than 300 pairs": dropped}
    assert data.credits[0].worth["linear"].sum(axis=0) == pytest.approx(worth)
    free = shop.read(tmp_path / "free", {"models": ["last"]})
    assert free.capped == Capped()
    assert data.credits[0].worth["last"] == pytest.approx(free.credits[0].worth["last"])


def test_twenty_bots_do_not_multiply_the_pairs(tmp_path: Path) -> None:
    """2,000 touches and 2,000 conversions each, all within the window: 80 million pairs, were they made."""
    shop = Shop([(1, "u", DAY, "home", False, 1.0)], [(1, "u", 2 * DAY, "a", 1.0)])
    shop.read(tmp_path, {})
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as c:
        bots = "SELECT 10 + i, 'bot' || (i % 20), (i + 1) * 1000000"
        c.execute(f"INSERT INTO seen {bots}, 'home', false, 1.0 FROM range(40000) r(i)")
        c.execute(f"INSERT INTO orders {bots} + 1, 'a', 1.0 FROM range(40000) r(i)")
    sources = {name: Source(table=name, time="make_timestamp(us)", id="id") for name in ("seen", "orders")}
    connection = {"main": DuckDBConnection(engine="duckdb", path=str(tmp_path / "shop.duckdb"))}
    with Catalog(sources, {"user": Entity(id="u")}, connection, tmp_path, "UTC") as catalog:
        data = credit.read(catalog, shop.design({"models": ["linear", "first"], "max_pairs": 1000}))
    # 1000 // 2000 is none, and each conversion keeps one: all but the first of each bot lose some
    assert data.capped == Capped(20, 20 * sum(range(2000)), 20 * 1999)
    assert data.credits[0].counts["linear"].sum() == pytest.approx(40_001)


# ---------------------------------------------------------------- touchpoints


def test_names_are_data_and_nothing_else(tmp_path: Path) -> None:
    hostile = ["'; DROP TABLE orders; --", 'a"b', "(none)", "(other)", "line\nbreak", "ünï©ode", "$model", ""]
    touches = [(i, f"u{i}", DAY, s, False, 1.0) for i, s in enumerate(hostile)]
    touches.append((99, "u99", DAY, None, False, 1.0))
    orders = [(i, u, 2 * DAY, "a", 1.0) for i, (_, u, *_) in enumerate(touches)]
    data = Shop(touches, orders).read(
        tmp_path,
        {"touchpoints": ["channel"], "models": ["linear", "markov", {"custom": "CASE WHEN touchpoint LIKE 'channel%' THEN 1 ELSE 0 END"}]},
        touchpoints={"channel": Touchpoint(source="seen", by="surface")},
    )  # fmt: skip
    found = data.credits[0]
    labels = [s.label for s in data.stops]
    assert len(set(labels)) == 9
    assert "channel: '; DROP TABLE orders; --" in labels
    assert {"channel: '(none)'", "channel: (none)", "channel: ''"} <= set(labels)
    assert found.counts["linear"].sum(axis=0).tolist() == [1.0] * 9
    assert found.counts["custom"].sum(axis=0).tolist() == [1.0] * 9
    assert [s.label for s in data.stops if s.unnamed] == ["channel: (none)"]


def test_the_commonest_hundred_values_are_touchpoints_and_the_rest_one(tmp_path: Path) -> None:
    channel = {"channel": Touchpoint(source="seen", by="surface")}
    orders = [(i, f"u{i}", 2 * DAY, "a", 1.0) for i in range(200)]
    many = [(i, f"u{i}", DAY, f"v{i % 130:03d}", False, 1.0) for i in range(200)]
    data = Shop(many, orders).read(tmp_path, {"touchpoints": ["channel"]}, touchpoints=channel)
    assert len(data.stops) == 101
    assert data.stops[-1].label == "channel: (other)"
    assert data.credits[0].counts["linear"].sum(axis=0)[-1] == 30.0
    assert sum(s.rows for s in data.stops) == 200


def test_a_row_may_serve_several_touchpoints_and_a_conversion_credits_a_touch_at_its_very_time(tmp_path: Path) -> None:
    touchpoints = {
        "any": Touchpoint(source="seen"),
        "home": Touchpoint(source="seen", where="surface = 'home'"),
        "kind": Touchpoint(source="seen", by="surface"),
    }
    shop = Shop(
        [(1, "u", 7 * DAY, "home", False, 1.0), (2, "u", 0, "search", False, 1.0)], [(1, "u", 7 * DAY, "a", 6.0)]
    )
    data = shop.read(
        tmp_path, {"touchpoints": list(touchpoints), "models": ["linear", "first", "last"]}, touchpoints=touchpoints
    )
    assert [s.label for s in data.stops] == ["any", "home", "kind: home", "kind: search"]
    # the window is open at its beginning: the search exactly 7 days before is not in it
    assert data.credits[0].worth["linear"].sum(axis=0) == pytest.approx([2, 2, 2, 0])
    assert data.credits[0].worth["first"].sum(axis=0) == pytest.approx([6, 0, 0, 0])
    assert data.credits[0].worth["last"].sum(axis=0) == pytest.approx([0, 0, 6, 0])


def test_costs_of_rows_and_of_tables_are_in_time_with_the_conversions(tmp_path: Path) -> None:
    touchpoints = {
        "home": Touchpoint(source="seen", where="surface = 'home'", cost="cost"),
        "ads": Touchpoint.model_validate({"source": "seen", "by": "surface", "cost": {"source": "orders", "column": "amount", "where": "kind = 'ad'"}}),
    }  # fmt: skip
    shop = Shop(
        [
            (1, "u", 1 * DAY, "home", False, 3.0),
            (2, "u", 5 * DAY, "home", False, 4.0),
            (3, "u", 9 * DAY, "home", False, 8.0),
        ],
        [(1, "u", 6 * DAY, "a", 6.0), (2, "u", 5 * DAY, "ad", 100.0), (3, "u", 9 * DAY, "ad", 11.0)],
    )
    declared = {
        "touchpoints": ["home", "ads"],
        "conversion": {"event": {"source": "orders", "where": "kind = 'a'"}, "value": "amount"},
    }
    data = shop.read(tmp_path, declared, touchpoints=touchpoints, starts_us=4 * DAY, ends_us=8 * DAY)
    assert data.costs == {"home": 4.0, "ads": 100.0}
    assert shop.read(tmp_path, declared, touchpoints=touchpoints).costs == {"home": 15.0, "ads": 111.0}


# ---------------------------------------------------------------- arms


def test_arms_take_conversions_at_or_after_exposure(tmp_path: Path) -> None:
    shop = Shop(
        [(i, u, 5 * DAY, "home", u != "c", 1.0) for i, u in enumerate(["a", "b", "c", "both", "nobody"])],
        [
            (1, "a", 6 * DAY, "x", 10.0),
            (2, "a", 9 * DAY, "x", 5.0),
            (3, "b", 5 * DAY, "x", 20.0),
            (4, "c", 6 * DAY, "x", 40.0),
            (5, "both", 6 * DAY, "x", 80.0),
            (6, "nobody", 6 * DAY, "x", 160.0),
        ],
        [("a", 7 * DAY, "new"), ("a", 8 * DAY, "new"), ("b", 5 * DAY, "new"), ("c", 5 * DAY, "old"), ("both", DAY, "old"),
         ("both", DAY, "new"), ("d", DAY, "new"), ("e", DAY, None)],
    )  # fmt: skip
    arms = ArmsOf("holdout", "shown", Assignment(source="shown", variant="arm", control="old"), None, None)
    data = shop.read(tmp_path, {"models": ["linear", "shapley"]}, arms=arms)
    assert data.arms == {"new": 3, "old": 1}
    new, old = data.credits[0].arms
    for model in ("linear", "shapley"):
        assert new.chosen_worth[model].sum(axis=0).tolist() == [25.0, 0, 0]
        assert new.other_worth[model].sum() == 0
        assert old.other_worth[model].sum(axis=0).tolist() == [40.0, 0, 0]
    assert (new.arm, new.n, new.conversions.sum(), new.worth.sum()) == ("new", 3, 2, 25.0)
    # units a, b and d: 5, 20 and nothing
    for per_unit in (new.total, new.per_unit["linear"][0], new.per_unit["shapley"][0]):
        assert per_unit.n == 3
        assert per_unit.mean[0] == pytest.approx(25 / 3)
        assert per_unit.cov[0, 0] == pytest.approx(np.var([5, 20, 0], ddof=1))
    assert old.total.mean[0] == old.per_unit["linear"][0].mean[0] == 40.0
    assert (new.behind.tolist(), old.behind.tolist()) == ([2, 0, 0], [1, 0, 0])
    later = ArmsOf("holdout", "shown", arms.assignment, 6 * DAY, None)
    assert shop.read(tmp_path, {}, arms=later).arms == {"new": 1}


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        ("position - 2", "touches have a weight below zero"),
        ("CASE WHEN touchpoint = 'home' THEN 0 ELSE 1 END", "conversions have touches that all weigh 0"),
        ("CASE WHEN position > 1 THEN 1 END", "touches have no weight"),
        ("CAST('inf' AS DOUBLE)", "infinite or not a number"),
        ("CAST(touchpoint AS DOUBLE)", "cannot be worked out"),
        ("sum(position)", "cannot be worked out"),
        ("amount", "no column 'amount'"),
    ],
)
def test_a_weight_that_is_none_is_refused_by_name(tmp_path: Path, weight: str, said: str) -> None:
    shop = Shop(
        [(1, "u", DAY, "home", False, 1.0), (2, "u", 2 * DAY, "home", False, 1.0)], [(1, "u", 3 * DAY, "a", 6.0)]
    )
    data = shop.read(tmp_path, {"models": ["linear", {"custom": weight}]})
    assert said in data.refused["custom"]
    assert set(data.credits[0].counts) == {"linear"}


def test_values_that_are_not_numbers_and_units_of_other_types(tmp_path: Path) -> None:
    shop = Shop([(1, "7", DAY, "home", False, 1.0)], [(1, "7", 2 * DAY, "a", math.inf)])
    with pytest.raises(DataError, match="1 values of conversions are infinite"):
        shop.read(tmp_path, {})
    shop.orders = [(1, "7", 2 * DAY, "a", None), (2, None, 2 * DAY, "a", 5.0), (3, "8", 2 * DAY, "a", -5.0)]
    data = shop.read(tmp_path, {})
    assert data.totals["orders"].unvalued == 1
    assert data.totals["orders"].worth.sum() == -5.0
    assert data.without_unit == {"orders": 1}
    assert data.left_out == {"rows of orders without a unit": 1}
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as c:
        c.execute("CREATE TABLE numbered AS SELECT id, CAST(u AS INT) AS u, us, surface, chosen, cost FROM seen")
    sources = {
        "seen": Source(table="numbered", time="make_timestamp(us)"),
        "orders": Source(table="orders", time="make_timestamp(us)"),
    }
    connection = {"main": DuckDBConnection(engine="duckdb", path=str(tmp_path / "shop.duckdb"))}
    with Catalog(sources, {"user": Entity(id="u")}, connection, tmp_path, "UTC") as catalog:
        again = credit.read(catalog, shop.design({"models": ["linear", "markov"]}))
        assert again.credits[0].counts["linear"].sum() == 1.0
        assert again.credits[0].moves["markov"].converting == 1


def test_a_plan_names_every_statement_and_reads_nothing(tmp_path: Path) -> None:
    shop = crowd(7, units=4)
    declared = {"models": ALL_MODELS, "window": ["7d", "1d"]}
    data = shop.read(tmp_path, declared)
    sources = {name: Source(table=name, time="make_timestamp(us)", id="id") for name in ("seen", "orders")}
    connection = {"main": DuckDBConnection(engine="duckdb", path=str(tmp_path / "shop.duckdb"))}
    with Catalog(sources, {"user": Entity(id="u")}, connection, tmp_path, "UTC") as catalog:
        planned = credit.plan(catalog, shop.design(declared))
    assert [s.name for s in planned] == [s.name for s in data.steps]
    assert all(step.sql for step in planned)


def test_a_source_of_touches_that_holds_no_conversion(tmp_path: Path) -> None:
    data = Shop([(1, "u", DAY, "home", False, 1.0)], []).read(tmp_path, {"models": ALL_MODELS})
    assert data.credits == ()
    assert data.totals["orders"].conversions.sum() == 0
    bare = Shop([], [(1, "u", DAY, "a", 3.0)]).read(tmp_path, {"models": ALL_MODELS})
    assert bare.credits[0].touched == 0
    assert bare.credits[0].unattributed_worth.sum() == 3.0

"""Rules of attribution as SQL: the weight of each touch of a conversion, over the touches in its window.

The input is pairs (cid, code, personalised, worth, age, ...): a conversion and a touch that lies ``age`` microseconds before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlglot import exp

from payoff.spec.nouns import Model
from payoff.warehouse.query import Query, fragment, scalar, sql
from payoff.warehouse.touches import Stop
from payoff.warehouse.units import double

RULES = ("first", "last", "last_non_direct", "linear", "time_decay", "position", "custom")
SETS = ("participation", "shapley", "ordered_shapley")
"""Credit by the touchpoints that a conversion met, each once; a conversion at a time, as by rules."""
CUSTOM = {
    "position": "BIGINT",
    "touches": "BIGINT",
    "days_before": "DOUBLE",
    "touchpoint": "VARCHAR",
    "value": "DOUBLE",
}
"""What a custom weight may speak of, and the type of each."""
ORDER = "age DESC, code, personalised"
"""The order of a conversion's touches: by time, at one time by the order of the touchpoints."""

_OVER = f"PARTITION BY cid ORDER BY {ORDER}"
_ALL = f"{_OVER} ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING"  # in the same order: one sort serves all
_FAR = 1000.0
"""Half-lives in a window beyond which weights are taken relative to the newest touch: 2^-1000 is still a number."""
_NEAR = 8.0
"""The same where they are added as whole numbers of 2^-62: 2^-8 still has all its digits then."""
_DAY_US = 86_400_000_000.0


@dataclass(slots=True)
class Rules:
    """The rules among the models, over one window. ``weigh`` gives pairs with ``w_0``, ``w_1``, ... in their order. ``exact``: weights
    are the same to the last bit in whatever order touches are met (but for those of ``custom``)."""

    models: Mapping[str, Model]
    stops: Sequence[Stop]
    window_us: int
    exact: bool = False

    def weigh(self, pairs: Query) -> Query:
        """SELECT *, pos, n and a weight for each rule: weights of one conversion add up to 1."""
        ranked = self._ranked(pairs)
        weights = [exp.alias_(self._weight(i, m), f"w_{i}") for i, m in enumerate(self.models.values())]
        if not weights:
            return ranked
        return sql("SELECT *, $weights FROM ranked", weights=weights, ranked=ranked)

    def faults(self, pairs: Query, name: str) -> Query:
        """How many touches a custom weight gives no number or one below zero, and how many conversions only zeros."""
        index = list(self.models).index(name)
        return sql(
            f"""
            SELECT count(*) FILTER (WHERE raw_{index} IS NULL) AS missing,
                   count(*) FILTER (WHERE NOT isfinite(raw_{index})) AS endless,
                   count(*) FILTER (WHERE raw_{index} < 0) AS negative,
                   count(DISTINCT cid) FILTER (WHERE s_{index} = 0) AS zeros, count(*) AS touches,
                   count(DISTINCT cid) AS conversions
            FROM ranked
            """,
            ranked=self._ranked(pairs),
        )

    # ---------------------------------------------------------------- what weights are made of

    def _ranked(self, pairs: Query) -> Query:
        stage = pairs
        if any(self._far(m) for m in self.models.values()):
            stage = sql("SELECT *, min(age) OVER (PARTITION BY cid) AS newest FROM aged", aged=stage)
        windows: list[exp.Expr] = [
            exp.alias_(fragment(f"row_number() OVER ({_OVER})"), "pos"),
            exp.alias_(fragment(f"count(*) OVER ({_ALL})"), "n"),
        ]
        if any(m.kind == "last_non_direct" for m in self.models.values()):
            codes = [exp.convert(s.code) for s in self.stops if s.direct]
            direct = fragment("code IN $codes", codes=exp.Tuple(expressions=codes)) if codes else exp.false()
            stage = sql("SELECT *, $direct AS direct FROM told", direct=direct, told=stage)
            so_far = f"{_OVER} ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW"
            windows.append(exp.alias_(fragment(f"count(*) FILTER (WHERE NOT direct) OVER ({so_far})"), "others_so_far"))
            windows.append(exp.alias_(fragment(f"count(*) FILTER (WHERE NOT direct) OVER ({_ALL})"), "others"))
        for i, model in enumerate(self.models.values()):
            if model.kind == "time_decay":
                added = f"sum(CAST($raw * {2**62}::DOUBLE AS BIGINT))" if self.exact else "sum($raw)"
                windows.append(exp.alias_(fragment(f"{added} OVER ({_ALL})", raw=self._decayed(model)), f"s_{i}"))
        stage = sql("SELECT *, $windows FROM looked_back", windows=windows, looked_back=stage)
        custom = {i: m for i, m in enumerate(self.models.values()) if m.kind == "custom"}
        if custom:
            raw = [exp.alias_(self._custom(m), f"raw_{i}") for i, m in custom.items()]
            sums = [exp.alias_(fragment(f"sum(raw_{i}) OVER (PARTITION BY cid)"), f"s_{i}") for i in custom]
            stage = sql("SELECT *, $raw FROM counted", raw=raw, counted=stage)
            stage = sql("SELECT *, $sums FROM raw_weights", sums=sums, raw_weights=stage)
        return stage

    def _weight(self, i: int, model: Model) -> exp.Expr:
        one_where = "CASE WHEN {} THEN 1.0::DOUBLE ELSE 0.0::DOUBLE END"
        if model.kind == "first":
            return fragment(one_where.format("pos = 1"))
        if model.kind == "last":
            return fragment(one_where.format("pos = n"))
        if model.kind == "last_non_direct":
            last = "CASE WHEN others = 0 THEN pos = n ELSE NOT direct AND others_so_far = others END"
            return fragment(one_where.format(last))
        if model.kind == "linear":
            return fragment("1.0::DOUBLE / n")
        if model.kind == "time_decay":
            whole = f"(s_{i} / {2**62}::DOUBLE)" if self.exact else f"s_{i}"
            return fragment(f"$raw / {whole}", raw=self._decayed(model))
        if model.kind == "custom":
            return fragment(f"raw_{i} / s_{i}")
        assert model.weights is not None
        return _by_position(model.weights)

    def _decayed(self, model: Model) -> exp.Expr:
        assert model.half_life is not None
        age = "age - newest" if self._far(model) else "age"
        return fragment(f"pow(2.0::DOUBLE, -({age}) / $half)", half=double(model.half_life.total_seconds() * 1e6))

    def _far(self, model: Model) -> bool:
        far = _NEAR if self.exact else _FAR
        return model.half_life is not None and self.window_us / (model.half_life.total_seconds() * 1e6) > far

    def _custom(self, model: Model) -> exp.Expr:
        assert model.weight is not None
        label = exp.Case()
        for stop in self.stops:
            label = label.when(fragment("code = $c", c=stop.code), exp.Literal.string(stop.label))
        means = {
            "position": fragment("pos"),
            "touches": fragment("n"),
            "days_before": fragment("age / $day", day=double(_DAY_US)),
            "touchpoint": exp.cast(label, "VARCHAR"),
            "value": fragment("worth"),
        }
        tree = exp.paren(scalar(model.weight, CUSTOM, f"custom weight {model.weight}"))
        for node in list(tree.find_all(exp.Column)):
            node.replace(exp.paren(means[node.name].copy()))
        return exp.cast(tree, "DOUBLE")


def _by_position(weights: Sequence[float]) -> exp.Expr:
    """First, between (together), last; with four, the third is for the middle touch (of two, the earlier).

    A path that has no touch for a weight scales the others up to 1; where those it has are all 0, its touches share alike.
    """
    first, between, middle, last = weights if len(weights) == 4 else (weights[0], weights[1], None, weights[2])
    by_length = {1: [1.0], 2: _scaled([first, last])}
    if middle is not None:
        by_length[3] = _scaled([first, middle, last])
    out = exp.Case()
    for n, scaled in by_length.items():
        small = exp.Case()
        for at, weight in enumerate(scaled[:-1], start=1):
            small = small.when(fragment("pos = $at", at=at), double(weight))
        out = out.when(fragment("n = $n", n=n), double(1.0) if n == 1 else small.else_(double(scaled[-1])))
    longer = exp.Case().when(fragment("pos = 1"), double(first)).when(fragment("pos = n"), double(last))
    if middle is not None:
        longer = longer.when(fragment("pos = (n + 1) // 2"), double(middle))
    return out.else_(longer.else_(fragment(f"$w / (n - {len(by_length)})", w=double(between))))


def _scaled(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [w / total for w in weights] if total > 0 else [1.0 / len(weights)] * len(weights)

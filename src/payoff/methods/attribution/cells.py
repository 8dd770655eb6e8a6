"""Credit as estimates: every touchpoint by every model, with an interval, or with those too few to be shown taken together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from payoff.estimate import Draws, Estimate, FloatArray
from payoff.result import Refusal
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Spend
from payoff.stats import markov
from payoff.stats.credit import Bootstrap, Cells, widened
from payoff.stats.proportion import poisson_count
from payoff.warehouse.credited import Credit, CreditData, Moves, Total

B = 1000
"""Replicates of the bootstrap."""
_SLOW, _FEWER = 60, 200
"""States of a Markov chain beyond which fewer replicates are drawn."""
REST, TOTAL, FEW = "(unattributed)", "(total)", "(too few units)"
CREDITED = ("attributed conversions", "attributed value", "share of conversions", "share of value")


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Figures of one model: of ``labels`` then the unattributed, in counts and in worth, and their shares of the total."""

    counts: Cells
    worth: Cells
    count_shares: Cells | None
    worth_shares: Cells | None


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What may be shown of one outcome and window. ``groups`` are touchpoints' codes, one or several (too few units) a label."""

    credit: Credit
    total: Total
    labels: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    units: tuple[int, ...]
    models: Mapping[str, Part]
    conversions: Cells
    worth: Cells
    bootstrap: Bootstrap
    refusals: tuple[Refusal, ...]
    hidden: int


def shown_of(
    design: JourneyDesign, data: CreditData, credit: Credit, bootstrap: Bootstrap, rng: np.random.Generator
) -> Shown | Refusal:
    total = data.totals[credit.outcome]
    scope = f"{design.name}.{credit.outcome} ({credit.window})"
    if credit.touched == 0:
        return Refusal(
            scope,
            f"none of {int(total.conversions.sum()):,} conversions of {credit.outcome} has a touch in the {credit.window} before it",
            "look at the window, and at whether touches and conversions name units alike",
        )
    if credit.converters < design.min_cell:
        return Refusal(
            scope,
            f"{credit.converters:,} units with a touch convert, and no figure is shown of fewer than {design.min_cell:,}",
            "wait for more conversions, or take windows and outcomes together",
        )
    chains = {
        name: removal_shares(credit.moves[name], len(data.stops), bootstrap, rng)
        for name in data.models
        if name in credit.moves and name not in data.refused
    }
    led = {int(code) for found in chains.values() if not isinstance(found, str) for code in np.flatnonzero(found[0])}
    labels, groups, units = _cells(data, credit, design.min_cell, led)
    conversions, worth = (bootstrap.totals(a[:, None]) for a in (total.conversions, total.worth))
    models: dict[str, Part] = {}
    refusals: list[Refusal] = []
    for name in [n for n in data.models if n not in data.refused]:
        if name in credit.counts:
            models[name] = _part(credit.counts[name], credit.worth[name], credit, total, groups, bootstrap)
        elif name in credit.moves:
            found = _chain(name, scope, credit, total, groups, bootstrap, chains[name])
            if isinstance(found, Refusal):
                refusals.append(found)
            else:
                models[name] = found
    if total.valued:
        refusals += _no_share(scope, "value", total.worth, bootstrap)
    refusals += _no_share(scope, "conversions", total.conversions, bootstrap)
    if not rest_is_shown(design, credit):
        reason = f"fewer than {design.min_cell:,} conversions have no touch, and a share would tell how many"
        refusals.append(
            Refusal(f"{scope} shares", reason, "look at the amounts, or take windows and outcomes together")
        )
    hidden = sum(len(g) for g, label in zip(groups, labels, strict=True) if label == FEW)
    return Shown(credit, total, labels, groups, units, models, conversions, worth, bootstrap, tuple(refusals), hidden)


def _no_share(scope: str, what: str, whole: FloatArray, bootstrap: Bootstrap) -> list[Refusal]:
    if _shares(bootstrap, whole[:, None], whole) is not None:
        return []
    reason = f"the total of {what} cannot be told from zero, so no credit is a share of it"
    return [Refusal(f"{scope} share of {what}", reason, "wait for more converting units, or look at values below zero")]


def _cells(
    data: CreditData, credit: Credit, least: int, led: Set[int]
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Touchpoints that any conversion met, and those of paths to nowhere that ``led`` to them: a chain credits these too.

    Those of fewer than ``least`` units are taken together, with the next smallest where even together they may be too few: else
    what they hide could be had by subtraction.
    """
    met = [stop for stop in data.stops if credit.units[stop.code] > 0 or stop.code in led]
    small = sorted((s for s in met if credit.units[s.code] < least), key=lambda s: int(credit.units[s.code]))
    rest = sorted((s for s in met if credit.units[s.code] >= least), key=lambda s: int(credit.units[s.code]))
    if small and rest and max(int(credit.units[s.code]) for s in small) < least:
        small.append(rest.pop(0))
    taken = {s.code for s in small}
    shown = [s for s in met if s.code not in taken]
    labels = [s.label for s in shown] + ([FEW] if small else [])
    groups = [(s.code,) for s in shown] + ([tuple(sorted(taken))] if small else [])
    units = [max(int(credit.units[c]) for c in group) for group in groups]
    return tuple(labels), tuple(groups), tuple(units)


def _summed(table: FloatArray, groups: Sequence[Sequence[int]], rest: FloatArray) -> FloatArray:
    """(hash groups, shown touchpoints and the unattributed)"""
    return np.column_stack([*(table[:, list(g)].sum(axis=1) for g in groups), rest])


def _part(
    counts: FloatArray,
    worth: FloatArray,
    credit: Credit,
    total: Total,
    groups: Sequence[Sequence[int]],
    bootstrap: Bootstrap,
) -> Part:
    n = _summed(counts, groups, credit.unattributed)
    v = _summed(worth, groups, credit.unattributed_worth)
    return Part(
        bootstrap.totals(n),
        bootstrap.totals(v),
        _shares(bootstrap, n, total.conversions),
        _shares(bootstrap, v, total.worth),
    )


def _shares(bootstrap: Bootstrap, sums: FloatArray, whole: FloatArray) -> Cells | None:
    """Shares of a total, None where that cannot be told from zero."""
    try:
        return bootstrap.ratios(sums, whole)
    except ValueError:
        return None


def _chain(
    name: str,
    scope: str,
    credit: Credit,
    total: Total,
    groups: Sequence[Sequence[int]],
    bootstrap: Bootstrap,
    found: tuple[FloatArray, FloatArray] | str,
) -> Part | Refusal:
    """Removal effects' shares of the conversions that have a touch, and the same shares of their worth."""
    if isinstance(found, str):
        return Refusal(f"{scope}.{name}", found, "wait for conversions with touches before them, or use another model")
    share, drawn = found
    shares = np.array([share[list(g)].sum() for g in groups])
    draws = np.column_stack([drawn[:, list(g)].sum(axis=1) for g in groups])
    weights = bootstrap.weights[: len(draws)]
    units = np.array([float(credit.units[list(g)].max()) for g in groups])
    cells: list[Cells | None] = []
    for every, rest in ((total.conversions, credit.unattributed), (total.worth, credit.unattributed_worth)):
        left = bootstrap.totals(rest[:, None])
        inside, inside_draws = float((every - rest).sum()), weights @ (every - rest)
        value = np.append(shares * inside, left.value)
        joint = np.column_stack([draws * inside_draws[:, None], left.draws[: len(draws)]])
        behind = np.append(units, left.units)
        whole, whole_draws = float(every.sum()), weights @ every
        cells.append(Cells(value, joint, behind))
        told = whole != 0 and not np.any(np.sign(whole_draws) != np.sign(whole))
        cells.append(Cells(value / whole, joint / whole_draws[:, None], behind) if told else None)
    counts, count_shares, worth, worth_shares = cells
    assert counts is not None and worth is not None
    return Part(counts, worth, count_shares, worth_shares)


def removal_shares(
    moves: Moves, touchpoints: int, bootstrap: Bootstrap, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray] | str:
    """Shares (touchpoints,) and their draws (replicates, touchpoints), or why there are none.

    Drawn by the weights of everything else where the groups are the same, so that draws are joint.
    """
    if moves.converting == 0:
        return "no path leads to a conversion: no touch lies between one conversion and the next"
    try:
        transitions = markov.Transitions.of(
            moves.group, moves.state, moves.follows, moves.count, touchpoints, moves.groups
        )
        share = markov.removal(transitions).share[0]
        few = len(transitions.last) > _SLOW
        weights = bootstrap.weights
        if moves.groups != weights.shape[1]:
            weights = Bootstrap.drawn(rng, moves.groups, B).weights
        return share, markov.replicates(transitions, weights[:_FEWER] if few else weights).share
    except ValueError as error:
        return str(error)


# ---------------------------------------------------------------- estimates


def credit_estimates(design: JourneyDesign, data: CreditData, shown: Shown) -> Iterator[Estimate]:
    credit, total = shown.credit, shown.total
    for model, part in shown.models.items():
        kinds = [(part.counts, "attributed conversions", "conversions")]
        if total.valued:
            kinds.append((part.worth, "attributed value", design.currency))
        # a share beside what it is a share of tells the total, and so how much has no touch
        shares = rest_is_shown(design, credit)
        if shares and part.count_shares is not None:
            kinds.append((part.count_shares, "share of conversions", "share"))
        if shares and total.valued and part.worth_shares is not None:
            kinds.append((part.worth_shares, "share of value", "share"))
        per_conversion = abs(float(total.worth.sum())) / max(float(total.conversions.sum()), 1.0)
        scales = {
            "attributed conversions": 1.0,
            "attributed value": per_conversion,
            "share of conversions": 1.0 / float(total.conversions.sum()),
            "share of value": 1.0 / float(total.conversions.sum()),
        }
        labels = [*shown.labels, *([REST] if rest_is_shown(design, credit) else [])]
        for cells, estimand, unit in kinds:
            for at, label in enumerate(labels):
                n = {"conversions without a touch": int(credit.unattributed.sum())}
                if label != REST:
                    n = {"converting units": shown.units[at]}
                spread = spread_of(cells, at, scales[estimand], design.level, share=unit == "share")
                yield _estimate(design, shown, model, label, estimand, unit, float(cells.value[at]), spread, n)
        if len(labels) > len(shown.labels):
            whole = [(shown.conversions, "attributed conversions", "conversions")]
            whole += [(shown.worth, "attributed value", design.currency)] if total.valued else []
            for cells, estimand, unit in whole:
                spread = spread_of(cells, 0, scales[estimand], design.level)
                n = {"converting units": total.units}
                yield _estimate(design, shown, model, TOTAL, estimand, unit, float(cells.value[0]), spread, n)
        yield from _costs(design, data, shown, model, part)
    yield from _positions(design, data, shown)


def rest_is_shown(design: JourneyDesign, credit: Credit) -> bool:
    return not 0 < credit.unattributed.sum() < design.min_cell


def spread_of(cells: Cells, at: int, one: float, level: float, *, share: bool = False) -> Draws:
    """How far a figure may be off, where what was seen tells nothing of it too.

    A figure of exactly nothing is not surely nothing: its upper end is that of no conversion seen (Garwood 1936), ``one`` being the
    worth of one. A ``share`` that is the same in every draw is not surely that: none of n units was unlike the others, and as
    many as are not seen among n may be (Clopper and Pearson 1934), with all of their credit or none. A part of a whole is within it.
    """
    draws, value = cells.draws[:, at], float(cells.value[at])
    tail = int(np.ceil(len(draws) * (1.0 - level) / 2)) + 1
    if value == 0 and not draws.any():
        out = np.zeros(len(draws))
        out[:tail] = poisson_count(0, level)[1] * one
        return Draws(out)
    within = share and draws.min() >= 0 and draws.max() <= 1 + 1e-9
    if within and np.ptp(draws) <= 1e-9:
        unlike = 1.0 - ((1.0 - level) / 2) ** (1.0 / max(float(cells.units[at]), 1.0))
        out = np.full(len(draws), value)
        out[:tail] = value * (1.0 - unlike)
        out[-tail:] = value + max(1.0 - value, 0.0) * unlike
        return Draws(out)
    spread = cells.uncertainty(at)
    return Draws(np.clip(spread.values, 0.0, 1.0)) if within else spread


def _estimate(
    design: JourneyDesign,
    shown: Shown,
    model: str,
    label: str,
    estimand: str,
    unit: str,
    value: float,
    spread: Draws,
    n: Mapping[str, int],
    extra: Mapping[str, str | float] | None = None,
) -> Estimate:
    outcome, window = shown.credit.outcome, shown.credit.window
    return Estimate(
        estimand=estimand,
        metric=outcome,
        contrast=f"{label} by {model}, {window} before {outcome}",
        value=value,
        unit=unit,
        uncertainty=spread,
        interval_kind="bootstrap",
        n=n,
        level=design.level,
        labels={"model": model, "touchpoint": label, "conversion": outcome, "window": window, **(extra or {})},
    )


def costs_of(design: JourneyDesign, data: CreditData, shown: Shown) -> Iterator[tuple[str, float, tuple[int, ...]]]:
    """(label, cost, places among the shown) of what has a cost: a touchpoint, or all values of one whose spending is one table."""
    by_code = {stop.code: stop for stop in data.stops}
    for name, declared in design.touchpoints.items():
        mine = [at for at, group in enumerate(shown.groups) if len(group) == 1 and by_code[group[0]].touchpoint == name]
        whole = {code for group in shown.groups for code in group if by_code[code].touchpoint == name}
        if isinstance(declared.cost, Spend):
            # what was taken together with others has no cost of its own
            if name in data.costs and mine and whole == {shown.groups[at][0] for at in mine}:
                yield name, data.costs[name], tuple(mine)
        elif declared.cost is not None:
            for at in mine:
                label = shown.labels[at]
                if label in data.costs:
                    yield label, data.costs[label], (at,)


def _costs(design: JourneyDesign, data: CreditData, shown: Shown, model: str, part: Part) -> Iterator[Estimate]:
    for label, cost, places in costs_of(design, data, shown):
        if not cost > 0:
            continue
        at = list(places)
        units = sum(shown.units[i] for i in at) if len(at) == 1 else max(shown.units[i] for i in at)
        n = {"converting units": units}
        if shown.total.valued:
            value = float(part.worth.value[at].sum())
            if value != 0:
                draws = widened(value, part.worth.draws[:, at].sum(axis=1), float(part.worth.units[at].max()))
                yield _estimate(
                    design, shown, model, label, "attributed value per cost", f"{design.currency}/{design.currency}",
                    value / cost, Draws(draws / cost), n, {"cost": cost},
                )  # fmt: skip
        count = float(part.counts.value[at].sum())
        draws = widened(count, part.counts.draws[:, at].sum(axis=1), float(part.counts.units[at].max()))
        if count > 0 and (draws > 0).all():
            yield _estimate(
                design, shown, model, label, "cost per attributed conversion", f"{design.currency}/conversion",
                cost / count, Draws(cost / draws), n, {"cost": cost},
            )  # fmt: skip


def _positions(design: JourneyDesign, data: CreditData, shown: Shown) -> Iterator[Estimate]:
    """Ordered credit by place in the path: by touchpoint and position."""
    ordered = [name for name in shown.models if data.models[name] == "ordered_shapley"]
    if shown.credit.positions is None or not ordered:
        return
    counts, _ = shown.credit.positions
    for at, (label, group) in enumerate(zip(shown.labels, shown.groups, strict=True)):
        for place in range(counts.shape[2]):
            sums = counts[:, list(group), place].sum(axis=1)
            held = int((sums > 0).sum())
            if held == 0 or held < min(design.min_cell, 256):
                continue
            cells = shown.bootstrap.totals(sums[:, None])
            where = f"{place + 1}" if place + 1 < counts.shape[2] else f"{place + 1} or later"
            yield _estimate(
                design, shown, ordered[0], f"{label}, touch {where}", "attributed conversions by position", "conversions",
                float(sums.sum()), cells.uncertainty(0), {"converting units": shown.units[at]}, {"position": place + 1},
            )  # fmt: skip

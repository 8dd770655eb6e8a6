"""An attribution in words: its finding, and what was checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from payoff import formats
from payoff.estimate import Draws
from payoff.methods.attribution.cells import FEW, Part, Shown, rest_is_shown, spread_of
from payoff.result import Check, CheckStatus, Reconciliation
from payoff.spec.journeys import JourneyDesign
from payoff.spec.nouns import Attribution
from payoff.stats import credit as stats
from payoff.stats.credit import Cells, widened
from payoff.warehouse.credited import CreditData
from payoff.warehouse.events import EventProfile, dated

CHECKS = (
    "conserved",
    "cap",
    "clock",
    "channels",
    "identity",
    "repeats",
    "values",
    "few_converters",
    "window",
    "open_paths",
    "costs",
    "reconciled",
)
_WORDS = {
    "first": "first touch",
    "last": "last touch",
    "last_non_direct": "last non-direct touch",
    "u_shaped": "U-shape",
    "j_shaped": "J-shape",
    "inverse_j": "inverse J-shape",
    "w_shaped": "W-shape",
    "markov": "Markov",
    "shapley": "Shapley",
    "ordered_shapley": "ordered Shapley",
}
_EARLY, _OPEN = 0.1, 0.1
"""Shares of conversions at the edge of their window, and of paths still open, from which a check warns."""


def outcomes(data: CreditData) -> str:
    return " and ".join(formats.human(name) for name in data.totals)


# ---------------------------------------------------------------- the finding


def model_words(name: str, kind: str) -> str:
    """A model inside a sentence: ``time decay``. A name that was declared for it stays as it is."""
    if name == kind or name.startswith(f"{kind} ") or (kind == "position" and name in _WORDS):
        head, *parameter = name.split(" ", 1)
        return " ".join([_WORDS.get(head, formats.human(head)), *parameter])
    return name


@dataclass(frozen=True, slots=True)
class _Told:
    """What a finding tells: ``what`` is credited, as shares of it or as amounts; ``one`` is the worth of one conversion."""

    what: str
    unit: formats.Unit
    one: float
    of: Callable[[Part], Cells | None]


def _told(design: JourneyDesign, shown: Shown) -> Iterator[_Told]:
    """Value before conversions. Of a total that is not shown no shares either."""
    total = shown.total
    n = float(total.conversions.sum())
    if not rest_is_shown(design, shown.credit):
        if total.valued:
            yield _Told("value", formats.unit(design.currency), abs(float(total.worth.sum())) / n, lambda p: p.worth)
        yield _Told("conversions", formats.NUMBER, 1.0, lambda p: p.counts)
        return
    share = formats.unit("share")
    if total.valued:
        yield _Told("value", share, 1.0 / n, lambda p: p.worth_shares)
    yield _Told("conversions", share, 1.0 / n, lambda p: p.count_shares)


def finding(design: JourneyDesign, data: CreditData, shown: Shown, reconciliations: Sequence[Reconciliation]) -> str:
    """The largest credit of the first model, what the others say of it, and how far they differ at most."""
    named = [(name, part) for name, part in shown.models.items() if data.models[name] != "participation"]
    models = named or list(shown.models.items())
    words = {name: model_words(name, kind) for name, kind in data.models.items()}
    told, cells = next(
        (
            (told, found)
            for told in _told(design, shown)
            if (found := {name: c for name, part in models if (c := told.of(part)) is not None})
        ),
        (None, {}),
    )
    if told is None:
        return _counted(shown)
    first = next(iter(cells))
    at = max(range(len(shown.labels)), key=lambda i: float(cells[first].value[i]))
    verb = "is" if told.what == "value" else "are"
    said = [
        f"By {words[first]}, {_figure(design, cells[first], at, told, named=True)} of the {told.what} of"
        f" {formats.human(shown.credit.outcome)} {verb} credited to {shown.labels[at]}"
    ]
    said += [f"by {words[name]}, {_figure(design, cells[name], at, told)}" for name in list(cells)[1:4]]
    sentence = f"{'; '.join(said)}."
    if rest_is_shown(design, shown.credit):
        rest = _figure(design, cells[first], len(shown.labels), told)
        sentence += f" {rest} of it is attributed to nothing, having no touch in the {shown.credit.window} before."
    sentence += _apart(design, shown, cells, told, words)
    held = [r for r in reconciliations if r.model == first and r.ratio is not None]
    if held:
        sentence += f" {formats.capital(held[0].sentence)}"
    return sentence + " This is attributed credit: it does not say what would be lacking without a touchpoint."


def _apart(
    design: JourneyDesign, shown: Shown, cells: Mapping[str, Cells], told: _Told, words: Mapping[str, str]
) -> str:
    """Where two models are furthest apart, with the interval of their difference over the same draws; nothing where it holds zero."""
    value = np.array([c.value[: len(shown.labels)] for c in cells.values()])
    at = int(np.argmax(np.ptp(value, axis=0)))
    (high, one), (low, other) = (list(cells.items())[int(pick(value[:, at]))] for pick in (np.argmax, np.argmin))
    gap = float(one.value[at] - other.value[at])
    said = f" The models disagree most over {shown.labels[at]}"
    between = f"between {words[low]} and {words[high]}"
    alike = min(len(one.draws), len(other.draws))  # a long chain is drawn fewer times, by the first of the same weights
    drawn = one.draws[:alike, at] - other.draws[:alike, at]
    if gap > 0 and np.ptp(drawn) <= 1e-9 * gap:  # the same in every draw, which does not make it sure
        return f"{said}, {between}."
    draws = Draws(widened(gap, drawn, float(min(one.units[at], other.units[at]))))
    most = 1.0 if told.unit == formats.unit("share") else np.inf
    ends = np.clip(draws.interval(gap, design.level), -most, most)
    if gap <= 0 or ends[0] <= 0:
        return ""
    text = formats.written(gap, min(float(ends[0]), gap), max(float(ends[1]), gap), told.unit, change=True)
    apart = f"{text.value} ({text.range})".replace("+", "")
    return f"{said}: {apart} {between}."


def _counted(shown: Shown) -> str:
    """Where the total cannot be told from zero there are no shares, and numbers alone."""
    n, outcome = int(shown.total.conversions.sum()), formats.human(shown.credit.outcome)
    return (
        f"{shown.credit.touched:,} of {n:,} conversions of {outcome} have a touch in the {shown.credit.window} before: too few to say"
        " what share is attributed to which."
    )


def _figure(design: JourneyDesign, cells: Cells, at: int, told: _Told, named: bool = False) -> str:
    value = float(cells.value[at])
    share = told.unit == formats.unit("share")
    low, high = spread_of(cells, at, told.one, design.level, share=share).interval(value, design.level)
    text = formats.written(value, min(low, value), max(high, value), told.unit)
    said = f"{formats.level(design.level)} interval " if named else ""
    return f"{text.value} ({said}{text.range})" if low < high else text.value


# ---------------------------------------------------------------- checks


def checks(design: JourneyDesign, data: CreditData, shown: Sequence[Shown], reconciled: Check) -> tuple[Check, ...]:
    return (
        _conserved(data),
        _cap(design, data),
        _clock(data),
        _channels(design, data, shown),
        _identity(data),
        _repeats(data),
        _values(data),
        _few(shown),
        _window(data),
        _open(data),
        _costs(design, data),
        reconciled,
    )


def _conserved(data: CreditData) -> Check:
    apart = [name for name, kind in data.models.items() if kind == "participation"]
    detail = "credit and the unattributed add up to the total, in every model, window, arm and group of units"
    if apart:
        detail += f"; not {', '.join(apart)}, which gives every touchpoint the whole conversion by design"
    return Check("conserved", "pass", 0.0, detail)


def _cap(design: JourneyDesign, data: CreditData) -> Check:
    declared, cap = design.declared, data.capped
    assert isinstance(declared, Attribution)
    most = f"{declared.max_pairs:,} pairs of touch and conversion"
    if not cap.touches:
        return Check("cap", "pass", 0.0, f"no unit lost a touch to the limit of {most}")
    return Check(
        "cap",
        "warn",
        float(cap.touches),
        f"{cap.units:,} units have more than {most}: {cap.conversions:,} of their conversions keep their newest touches alone, and"
        f" {cap.touches:,} older ones are not credited. Look whether they are bots, or raise max_pairs",
    )


def _profiles(data: CreditData) -> dict[str, EventProfile]:
    return dict(data.sources)


def _clock(data: CreditData) -> Check:
    parts = []
    for name, p in _profiles(data).items():
        for n, what in ((p.before_1970, "before 1970"), (p.ahead, "in the future"), (p.without_time, "without a time")):
            if n:
                parts.append(f"{n:,} rows of {name} are {what if what.startswith('without') else f'dated {what}'}")
    detail = "; ".join(parts) + ": they are left out" if parts else "every row has a time between 1970 and now"
    days = dated(_profiles(data))
    return Check("clock", "warn" if parts or days else "pass", None, f"{detail}; {days}" if days else detail)


def _channels(design: JourneyDesign, data: CreditData, shown: Sequence[Shown]) -> Check:
    parts = [
        f"{s.rows:,} touches of {s.touchpoint} have no value (NULL) and go by {s.label}"
        for s in data.stops
        if s.unnamed and s.rows
    ]
    silent = [name for name in design.touchpoints if not any(s.rows for s in data.stops if s.touchpoint == name)]
    if silent:
        parts.append(f"there is no touch of {', '.join(silent)}")
    unmet = [s.label for s in data.stops if s.rows and not any(c.units[s.code] for c in data.credits)]
    if unmet:
        parts.append(f"no conversion was preceded by {', '.join(unmet[:5])}{' and others' if len(unmet) > 5 else ''}")
    hidden = max((s.hidden for s in shown), default=0)
    if hidden:
        parts.append(f"{hidden} touchpoints of fewer than {design.min_cell:,} units are taken together as {FEW}")
    status: CheckStatus = "warn" if silent or any(s.unnamed and s.rows for s in data.stops) else "pass"
    return Check(
        "channels", status, None, "; ".join(parts) or "every touch has a touchpoint, and every touchpoint touches"
    )


def _identity(data: CreditData) -> Check:
    lost = {source: n for source, n in data.without_unit.items() if n}
    if not lost:
        return Check("identity", "pass", 0.0, "every conversion has a unit")
    told = "; ".join(f"{n:,} conversions of {source} have no unit" for source, n in lost.items())
    return Check("identity", "warn", float(sum(lost.values())), f"{told}: they are in no path and not in the total")


def _repeats(data: CreditData) -> Check:
    found = {name: p.repeated for name, p in _profiles(data).items()}
    again = {name: n for name, n in found.items() if n}
    if again:
        told = "; ".join(f"{n:,} rows of {name} repeat an id" for name, n in again.items())
        return Check("repeats", "warn", float(sum(again.values())), f"{told}: each id enters once")
    unknown = [name for name, n in found.items() if n is None]
    if unknown:
        return Check(
            "repeats", "not-run", None, f"{', '.join(unknown)} declare no id, so a row that is there twice counts twice"
        )
    return Check("repeats", "pass", 0.0, "no id repeats")


def _values(data: CreditData) -> Check:
    lost = {t.outcome: t.unvalued for t in data.totals.values() if t.unvalued}
    if not lost:
        return Check(
            "values",
            "pass",
            0.0,
            "every conversion has a value"
            if any(t.valued for t in data.totals.values())
            else "conversions are only counted",
        )
    told = "; ".join(f"{n:,} conversions of {name} have no value (NULL)" for name, n in lost.items())
    return Check("values", "warn", float(sum(lost.values())), f"{told}: they are counted, and add nothing to value")


def _few(shown: Sequence[Shown]) -> Check:
    least: tuple[float, str] | None = None
    count = 0
    for s in shown:
        for model, part in s.models.items():
            for at, label in enumerate(s.labels):
                units = float(part.counts.units[at])
                if 0 < units < stats.FEW:
                    count += 1
                    if least is None or units < least[0]:
                        least = (units, f"{label} by {model}")
    if least is None:
        return Check("few_converters", "pass", None, f"every credit rests on {stats.FEW:g} converting units or more")
    return Check(
        "few_converters",
        "warn",
        least[0],
        f"{count} credits rest on fewer than {stats.FEW:g} converting units (as if all weighed alike), {least[1]} on {least[0]:.0f}:"
        " their intervals are doubtful",
    )


def _window(data: CreditData) -> Check:
    told = [(c.late / c.touched, c) for c in data.credits if c.touched]
    share, worst = max(told, key=lambda pair: pair[0])
    text = formats.rounded(share, formats.unit("share"))
    detail = f"for {text} of conversions of {worst.outcome} the oldest touch lies in the last tenth of the {worst.window} looked back"
    if share > _EARLY:
        detail += ": what came before may matter too, and a longer window would show it"
    return Check("window", "warn" if share > _EARLY else "pass", share, detail)


def _open(data: CreditData) -> Check:
    paths = [(m.open / max(m.converting + m.nowhere, 1), m, c) for c in data.credits for m in c.moves.values()]
    if not paths:
        return Check("open_paths", "not-run", None, "no model reads paths that lead nowhere")
    share, moves, credit = max(paths, key=lambda p: p[0])
    text = formats.rounded(share, formats.unit("share"))
    detail = f"{moves.open:,} paths ({text}) end less than {credit.window} before what is read does, and count as leading nowhere, though they may yet convert"
    return Check("open_paths", "warn" if share > _OPEN else "pass", share, detail)


def _costs(design: JourneyDesign, data: CreditData) -> Check:
    priced = [name for name, t in design.touchpoints.items() if t.cost is not None]
    if not priced:
        return Check("costs", "not-run", None, "no touchpoint has a cost")
    known = {name: [v for k, v in data.costs.items() if k == name or k.startswith(f"{name}: ")] for name in priced}
    bad = [name for name, costs in known.items() if not costs or any(not c > 0 for c in costs)]
    if bad:
        return Check(
            "costs",
            "warn",
            None,
            f"{', '.join(bad)} cost nothing, or less, in this time, so nothing is held against it",
        )
    return Check("costs", "pass", None, f"costs of {', '.join(priced)} are in time with the conversions")

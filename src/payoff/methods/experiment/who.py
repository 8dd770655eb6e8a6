"""For whom: the primary metrics' differences by class of each attribute, corrected, pooled, and looked at for flipped signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from payoff import formats
from payoff.estimate import Correction, Estimate
from payoff.methods.experiment.design import Reading
from payoff.methods.experiment.reading import Reader, compared, plain_level
from payoff.result import Check, Refusal, SegmentRow, Segments, Span
from payoff.stats import compare, heterogeneity, multiplicity
from payoff.stats.compare import Difference
from payoff.stats.moments import Moments
from payoff.warehouse.measures import is_ratio


@dataclass(slots=True)
class _Class:
    """One class of one table: its difference, or why it has none."""

    name: str
    n: dict[str, int]
    gap: Difference | None
    count: int
    reason: str = ""
    covers: bool = False
    """It is hidden for the sake of another, which its own counts would give away too."""


@dataclass(slots=True)
class _Table:
    attribute: str
    reading: Reading
    arm: str
    classes: list[_Class]

    @property
    def read(self) -> list[_Class]:
        return [c for c in self.classes if c.gap is not None]


def segments(reader: Reader, readings: list[Reading]) -> tuple[tuple[Segments, ...], list[Estimate], list[Refusal]]:
    """Every table asked for, its rows also as estimates, and what could not be read.

    All rows of all tables are one family for Holm: the more cuts are looked at, the less each says.
    """
    design, refusals = reader.design, []
    tables: list[_Table] = []
    for attribute in design.experiment.segments:
        profile = reader.data.attributes.get(attribute)
        name = f"experiments.{design.name}.segments.{attribute}"
        if profile is not None and profile.refused is not None:
            many = profile.future == 0 and profile.classes > 1
            refusals.append(
                Refusal(
                    name,
                    f"{attribute} cannot make segments: {profile.refused}",
                    "make fewer classes of it, with cuts, quantiles or a coarser column"
                    if many
                    else "name an attribute that is known of units before exposure; look at its source with: payoff doctor",
                )
            )
            continue
        for r in _decided_on(reader, readings):
            classes = reader.data.metrics[r.use.name].segments.get(attribute, {})
            for arm in r.differences:
                table = _Table(attribute, r, arm, _rows(reader, r, arm, classes))
                if len(table.read) < 2:
                    refusals.append(
                        Refusal(
                            f"{name}.{r.use.name}",
                            f"{attribute} has {len(table.read)} class{'' if len(table.read) == 1 else 'es'} with enough units"
                            f" in {arm} and {reader.control}: "
                            + ("; ".join(c.reason for c in table.classes if c.reason) or _all_alike(table)),
                            "segments compare at least two classes; wait for more units or choose coarser classes",
                        )
                    )
                else:
                    tables.append(table)
    if not tables:
        return (), [], refusals
    found, estimates = _corrected(reader, tables)
    return tuple(found), estimates, refusals


def _all_alike(table: _Table) -> str:
    return f"all units are in '{table.classes[0].name}'" if table.classes else "no unit has a value"


def _decided_on(reader: Reader, readings: list[Reading]) -> list[Reading]:
    names = {u.name for u in reader.design.primaries}
    return [r for r in readings if r.use.name in names and not reader.data.metrics[r.use.name].quantiles]


def _rows(reader: Reader, r: Reading, arm: str, classes: Mapping[str, Mapping[str, Moments]]) -> list[_Class]:
    design, control = reader.design, reader.control
    least = max(design.min_cell, 2)
    covariates = (
        () if r.adjusted is None or r.covariates == _stratum(reader) else reader.data.metrics[r.use.name].covariates
    )
    out: list[_Class] = []
    for name, by_arm in classes.items():
        n = {x: _units(reader, r, by_arm[x]) if x in by_arm else 0 for x in (arm, control)}
        few = [x for x in (arm, control) if n[x] < least]
        if few:
            out.append(_Class(name, n, None, 0, f"'{name}' has fewer than {least} units in {few[0]}"))
            continue
        try:
            pair = compared(design, r.use, {x: by_arm[x] for x in (control, arm)}, covariates)
            count = by_arm[arm].n + by_arm[control].n
            out.append(_Class(name, n, pair.difference(arm, control), count))
        except ValueError as error:
            out.append(_Class(name, n, None, 0, f"'{name}': {error}"))
    if design.min_cell > 2:
        _hide_what_gives_away(out, design.min_cell)
    return out


def _hide_what_gives_away(classes: list[_Class], min_cell: int) -> None:
    """Those hidden could be had together by taking the others from the total: the next smallest go with them, until they are
    so many units (or none) in each arm."""
    small = [c for c in classes if c.gap is None and any(0 < n < min_cell for n in c.n.values())]
    told = ", ".join(f"'{c.name}'" for c in small)
    hidden = list(small)
    while small:
        together = [sum(c.n[arm] for c in hidden) for arm in small[0].n]
        shown = [c for c in classes if c.gap is not None]
        enough = all(n == 0 or n >= min_cell for n in together)
        if not shown or (enough and len(hidden) > 1):
            return
        least = min(shown, key=lambda c: min(c.n.values()))
        least.gap, least.covers = None, True
        least.reason = f"'{least.name}' is hidden so that {told} cannot be worked out"
        hidden.append(least)


def few_units_checks(reader: Reader, readings: list[Reading], tables: Sequence[Segments]) -> list[Check]:
    """The whole may have units enough where its classes have not: one warning a table. No counts, which may be hidden."""
    out = [
        Check(
            "few_units",
            "warn",
            float(len(read)),
            f"{t.metric} by {t.attribute}: {len(read)} classes are drawn together; where they differ by about as much as each is"
            " uncertain, pooled intervals were seen to hold the truth in 93% of cases where they say 95%",
        )
        for t in tables
        if len(read := [row for row in t.rows if row.difference is not None]) >= heterogeneity.MANY_CLASSES
    ]
    least = max(reader.design.min_cell, 2)
    for r in (r for r in _decided_on(reader, readings) if r.use.metric.kind != "nps"):  # it can be below zero
        for attribute in reader.design.experiment.segments:
            for arm in r.differences:
                doubtful = []
                for name, by_arm in reader.data.metrics[r.use.name].segments.get(attribute, {}).items():
                    pair = (arm, reader.control)
                    if any(x not in by_arm or _units(reader, r, by_arm[x]) < least for x in pair):
                        continue
                    try:
                        t, c = (plain_level(reader.design, r.use, by_arm[x]) for x in pair)
                    except ValueError:
                        continue  # the class is refused, and its row says why
                    if compare.normal_approximation_doubtful(t, c) is not None:
                        doubtful.append(name)
                if doubtful:
                    told = (
                        f"{r.use.name} by {attribute} ({arm}): a few units decide the mean in {', '.join(doubtful[:5])}"
                    )
                    more = f" and {len(doubtful) - 5} more" if len(doubtful) > 5 else ""
                    why = "; intervals there, and what is drawn together from them, may not cover as often as they say"
                    out.append(Check("few_units", "warn", float(len(doubtful)), f"{told}{more}{why}"))
    return out


def _stratum(reader: Reader) -> tuple[str, ...]:
    adjust = reader.design.experiment.adjust
    return () if adjust is None or adjust.post_stratify is None else (adjust.post_stratify,)


def _units(reader: Reader, r: Reading, m: Moments) -> int:
    """Units of a class in one arm; clustered, the Moments count clusters and carry their sizes."""
    if reader.design.experiment.cluster is None:
        return m.n
    return round(m.n * float(m.mean[size_column(r)]))


def size_column(r: Reading) -> int:
    return 2 if is_ratio(r.use.metric) else 1


def design_effect(reader: Reader, r: Reading) -> float:
    """By how much counts of units can vary more than if units were assigned one by one: 1 where they were.

    Whole clusters are assigned, and at worst all units of one are alike: the sum of squared sizes over the sum of sizes.
    """
    if reader.design.experiment.cluster is None or r.quantile:
        return 1.0
    sizes = [reader.data.metrics[r.use.name].moments[arm].take([size_column(r)]) for arm in r.levels]
    return max([1.0, *(float(m.mean[0] + m.var[0] / m.mean[0]) for m in sizes if m.mean[0] > 0)])


def _corrected(reader: Reader, tables: list[_Table]) -> tuple[list[Segments], list[Estimate]]:
    design, alpha = reader.design, reader.design.alpha
    rows = [(t, c) for t in tables for c in t.read]
    gaps = [c.gap for _, c in rows if c.gap is not None]

    def interval(i: int, level: float) -> tuple[float, float]:
        return reader.rule.interval(gaps[i].value, gaps[i].se, gaps[i].df, rows[i][1].count, level)

    raw = [reader.rule.p_value(g.value, g.se, g.df, c.count) for g, (_, c) in zip(gaps, rows, strict=True)]
    holm = multiplicity.holm_family(raw, interval, 1 - alpha, [g.value for g in gaps])
    place = {(id(t), c.name): i for i, (t, c) in enumerate(rows)}
    effects = [[c.gap for c in t.read if c.gap is not None] for t in tables]
    figures = [([g.value for g in gaps], [g.se for g in gaps], [g.df for g in gaps]) for gaps in effects]
    tests = [heterogeneity.interaction(*of) for of in figures]
    flips = [heterogeneity.gail_simon(*of) for of in figures]
    counts = [[c.count for c in t.read] for t in tables]
    interaction_p = multiplicity.holm(
        [reader.rule.p_joint(t.statistic, t.df, t.p_value, sum(n)) for t, n in zip(tests, counts, strict=True)]
    )
    flip_p = multiplicity.holm(
        [_flip_p(reader, f.p_value, of, n) for f, of, n in zip(flips, effects, counts, strict=True)]
    )
    out: list[Segments] = []
    estimates: list[Estimate] = []
    for k, table in enumerate(tables):
        r, gaps_here = table.reading, effects[k]
        pooled = heterogeneity.partial_pooling([g.value for g in gaps_here], [g.se for g in gaps_here], level=1 - alpha)
        contrast = f"{table.arm} vs {reader.control}"
        shown: list[SegmentRow] = []
        at = 0
        for c in table.classes:
            label = f"{table.attribute}={c.name}"
            if c.gap is None:
                shown.append(SegmentRow(c.name, _hidden(c, design.min_cell), "refused", reason=c.reason))
                continue
            i = place[id(table), c.name]
            low, high = holm.intervals[i]
            better, best = (low, high) if r.use.sign > 0 else (-high, -low)
            state = "improved" if better > 0 else "harmed" if best < 0 else "not conclusive"
            shown.append(
                SegmentRow(
                    c.name,
                    c.n,
                    state,
                    Span(c.gap.value, low, high),
                    Span(pooled.values[at], *pooled.intervals[at]),
                    holm.p_values[i],
                    raw[i],
                )
            )
            at += 1
            estimates.append(
                Estimate(
                    estimand="difference in means",
                    metric=r.use.name,
                    contrast=contrast,
                    value=c.gap.value,
                    unit=r.unit,
                    uncertainty=reader.rule.uncertainty(c.gap.value, c.gap.se, c.gap.df, c.count, design.level),
                    interval_kind=reader.rule.interval_kind,
                    n=c.n,
                    level=design.level,
                    segment=label,
                    correction=Correction("holm", len(rows), holm.p_values[i], low, high),
                )
            )
        flip = _flip(shown, flip_p[k], interaction_p[k], alpha)
        said = Segments(
            attribute=table.attribute,
            metric=r.use.name,
            contrast=contrast,
            unit=r.unit,
            direction=r.use.metric.direction,
            rows=tuple(shown),
            interaction_statistic=tests[k].statistic,
            interaction_df=tests[k].df,
            interaction_p=interaction_p[k],
            flip=flip,
            flip_p=flip_p[k],
            tau=pooled.tau,
            sentence="",
        )
        out.append(replace(said, sentence=_sentence(said, table.arm, reader.control, alpha)))
    return out, estimates


def _flip_p(reader: Reader, p: float, gaps: list[Difference], counts: list[int]) -> float:
    """Gail and Simon's p-value at all looks of the stopping rule. At any time it is Bonferroni's: that there is an effect above
    zero in some class and one below in another, each at its best p times the number of classes."""
    rule = reader.rule
    if rule.kind != "always_valid":
        return rule.p_joint(0.0, 1, p, sum(counts))
    best = {1: 1.0, -1: 1.0}
    for gap, n in zip(gaps, counts, strict=True):
        side = 1 if gap.value > 0 else -1
        best[side] = min(best[side], rule.p_value(gap.value, gap.se, gap.df, n))
    return min(1.0, len(gaps) * max(best.values()))


def _hidden(c: _Class, min_cell: int) -> dict[str, int]:
    """The counts of a class that is not shown: none below the smallest group that may be."""
    if c.covers:
        return {}
    return {arm: n for arm, n in c.n.items() if n >= min_cell} if min_cell else c.n


def _flip(rows: list[SegmentRow], flip_p: float, interaction_p: float, alpha: float) -> str:
    values = [row.difference.value for row in rows if row.difference is not None]
    if not (min(values) < 0 < max(values)):
        return "none"
    states = {row.state for row in rows}
    if flip_p <= alpha or {"improved", "harmed"} <= states:
        return "shown"
    differ = interaction_p <= alpha
    return "possible" if differ or "harmed" in states else "none"


def _sentence(table: Segments, arm: str, control: str, alpha: float) -> str:
    unit = formats.unit(table.unit)
    read = [row for row in table.rows if row.difference is not None]
    ordered = sorted(read, key=lambda row: row.difference.value if row.difference else 0.0)
    metric, attribute = formats.human(table.metric), formats.human(table.attribute)

    def said(row: SegmentRow) -> str:
        assert row.difference is not None
        d = row.difference
        return f"{row.segment} {formats.written(d.value, d.low, d.high, unit, change=True).value}"

    p = formats.p_value(table.interaction_p, alpha)
    low, high = ordered[0], ordered[-1]
    if table.flip == "shown":
        up, down = ("helps", "harms") if table.direction == "up" else ("harms", "helps")
        return (
            f"Sign flip by {attribute}: {arm} {up} {metric} among {high.segment} and {down} it among {low.segment}"
            f" ({said(high)}, {said(low)}, against {control}); the overall figure hides both"
        )
    if table.flip == "possible":
        harm = ", ".join(row.segment for row in read if row.state == "harmed")
        why = f"the classes do differ ({p})" if table.interaction_p <= alpha else f"harm is shown in {harm} alone"
        return (
            f"Possible sign flip by {attribute}: the difference in {metric} is {said(high)} but {said(low)}, and {why};"
            " look before this goes to everyone"
        )
    if table.interaction_p <= alpha:
        return f"The effect on {metric} differs by {attribute} ({p}): from {said(low)} to {said(high)}"
    return f"No sign that the effect on {metric} differs by {attribute} ({p}); what the classes' figures differ by is within chance"

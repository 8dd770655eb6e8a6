"""docs/simulations.md: written from the rows, and read back by the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.simulations.rows import LEVEL, Case, Row
from tests.simulations.verdicts import BAND, FEWEST, error, fails, verdict
from tests.simulations.worlds import KINDS

DOCS = Path(__file__).parents[2] / "docs" / "simulations.md"

SECTIONS = {
    "levels": (
        "Means and ratios",
        "A ratio is of values summed over visits to visits (1 + Poisson(2) a unit), the units being what is randomised. CUPED is"
        " the regression in each arm on the same measures before exposure, whose draws correlate by 0.7 with those after (R2 0.49"
        " of a normal value); post-stratified is by quarters of the draw before.",
    ),
    "clusters": (
        "Clusters",
        "Whole clusters are assigned; a mean is of their units. Sizes are similar (1 + Poisson(9)) or uneven (lognormal, sigma 1:"
        " the largest of 50 has about a sixth of all units); the intraclass correlation is 0.2.",
    ),
    "diluted": ("Triggered units, carried to everyone assigned", "A fifth of the units triggers."),
    "looks": (
        "Looked at again and again",
        "An interval covers when it holds the truth at every look that is made; excluding zero at any look is a finding. Always-valid"
        " intervals are made for looks without end, so they cover more at a finite number of them, and far more at one.",
    ),
    "quantiles": (
        "Quantiles",
        "Of units' values, or of rows (1 + Poisson(2) a unit, correlated by a half within it), read as the engine reads them: at two"
        " order statistics.",
    ),
    "classes": (
        "Classes of units",
        "Classes' true effects are drawn with a standard deviation of 0, 1 or 5 standard errors of one class's difference. Partial"
        " pooling is averaged over classes; its Monte-Carlo error is of one world's share of covered classes. Zero-inflated values have no"
        " row at 5: many a class would lose more than it has.",
    ),
    "crossed": (
        "Two experiments on the same units",
        "How much larger the effect is in the other experiment's treatment.",
    ),
    "over_time": (
        "Over time",
        "Ten steps; the band covers when it holds all ten totals. The trend's truth is none, with or without an effect.",
    ),
    "paths": (
        "Cannibalisation",
        "Three paths of the same mean, and the share of the treated one's gain that others lose.",
    ),
}

HEAD = (
    "estimate",
    "values",
    "units, treatment / control",
    "effect",
    "covers",
    "below",
    "above",
    "MC error",
    "excludes 0",
    "answered",
    "warned",
    "verdict",
)


def line(row: Row) -> tuple[str, ...]:
    if row.answered < FEWEST:
        shares = [""] * 4
    elif row.what == "test":
        shares = ["", "", "", f"{error(row):.3f}"]
    else:
        shares = [f"{row.covered:.3f}", f"{row.below:.3f}", f"{row.above:.3f}", f"{error(row):.3f}"]
    return (
        *row.key,
        *shares,
        "" if row.answered < FEWEST else f"{row.rejected:.3f}",
        f"{row.answered:,} of {row.worlds:,}",
        f"{row.warned:.0%}" if row.answered else "",
        verdict(row),
    )


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines))


@dataclass(frozen=True)
class Regime:
    """What kind of estimates, of which values, over how many units."""

    family: str
    values: str
    units: str


def failing(found: Sequence[tuple[Case, list[Row]]]) -> dict[Regime, list[Row]]:
    out: dict[Regime, list[Row]] = {}
    for case, rows in found:
        for row in rows:
            if fails(row):
                out.setdefault(Regime(case.family, row.values, row.units), []).append(row)
    return out


def page(found: Sequence[tuple[Case, list[Row]]], known: Mapping[Regime, str]) -> str:
    bad = failing(found)
    rows = [row for _, of in found for row in of]
    sections = []
    for family, (title, told) in SECTIONS.items():
        lines = [line(row) for case, of in found if case.family == family for row in of]
        sections.append(f"## {title}\n\n{told}\n\n{table(HEAD, lines)}\n")
    regimes = [
        (
            SECTIONS[regime.family][0],
            regime.values,
            regime.units,
            f"{len(of)} of {sum(1 for c, every in found if c.family == regime.family for r in every if (r.values, r.units) == (regime.values, regime.units))}",
            f"{min(row.covered for row in of):.3f}",
            f"{min(row.warned for row in of):.0%}",
            known.get(regime, "not explained"),
        )
        for regime, of in bad.items()
    ]
    head = ("what", "values", "units", "rows that fail", "worst", "least warned", "why")
    return "\n".join(
        [
            "# Simulations: do the intervals cover?\n",
            summary(rows),
            "## Where it fails, and warns\n",
            table(head, regimes) + "\n",
            reading(rows),
            *sections,
        ]
    )


def summary(rows: Sequence[Row]) -> str:
    verdicts = [verdict(row) for row in rows]
    judged = [row for row, v in zip(rows, verdicts, strict=True) if v not in ("refused", NOT_OURS)]
    holds, more, refused = (verdicts.count(v) for v in ("holds", "covers more", "refused"))
    warned = sum(v.endswith(", warned") for v in verdicts)
    silent = sum(fails(r) for r in rows) - warned
    always = [r for r in judged if "always-valid, any of 100 looks" in r.estimate]
    planned = [r for r in judged if r.what == "interval" and "any of" in r.estimate]
    naive = [r for r in rows if r.what == "contrast"]
    short = [r for r in planned if fails(r)]
    a_a = ", ".join(
        f"{share(of)} at {n}"
        for n in NS
        if (of := [r for r in judged if r.null and r.units == f"{n} / {n}" and _plainly(r)])
    )
    count = sum(r.null and _plainly(r) and r.units in {f"{n} / {n}" for n in NS} for r in judged)
    return f"""A nominal 95% interval should hold the truth in 95% of worlds. Each of the {len(judged):,} rows below measures one kind of interval, or
test, in hundreds or thousands of worlds whose truth is known, drawn unit by unit; every figure comes through the functions that a
result comes from.

- **{holds + more:,} of {len(judged):,} rows hold**: {holds:,} within Monte-Carlo error; {more:,} cover more than they say (nothing false is claimed, some power
  is lost). **{warned:,} cover less, and there the program warns. {silent or "None"} cover{"s" if silent < 2 else ""} less without a warning{" (see the list)" if silent else ""}.** In {refused:,} more the program
  gives no interval.
- **A/A tests reject** {a_a} units an arm: the mean, and the lowest and highest, of {count} rows (differences and lifts of means and
  ratios, all kinds of values, with CUPED and without; nominal 5%).
- **Looked at 100 times, an always-valid interval is wrong at any look in {percent(always)} of worlds** ({len(always)} rows; under 5% is
  promised). Intervals for planned looks are wrong at any of them in {share(planned, missed=True)} ({len(planned)} rows; the {len(short)} that miss too often are in the
  list below, and warned of). An interval made for one look, read 100 times, would be wrong in {percent(naive)}: there the check `peeking` warns.
- **The relative lift with CUPED holds where another open tool's does not.** With a lift of 50% and a covariate that explains 98%,
  coverage of both over the same 1,000 worlds (tea-tasting 1.14.0; `python -m tests.simulations.beside_tea_tasting` in an environment that
  has both):

{table(("treatment", "units", "tea-tasting", "payoff"), TEA_TASTING)}
"""


NOT_OURS = "not what the program does"
TEA_TASTING = (
    ("adds 5 to a mean of 10", "200 / 200", "0.745", "0.956"),
    ("adds 5 to a mean of 10", "2,000 / 2,000", "0.746", "0.945"),
    ("multiplies by 1.5", "200 / 200", "0.995", "0.943"),
    ("multiplies by 1.5", "2,000 / 2,000", "1.000", "0.954"),
)


NS = ("200", "2,000", "20,000")


def _plainly(row: Row) -> bool:
    of = row.estimate.split(", ", 1)[1] if ", " in row.estimate else ""
    return ";" not in of and of.split(",")[0] in ("mean", "ratio")


def share(of: Sequence[Row], missed: bool = False) -> str:
    """The mean over worlds of what is rejected, or missed, and its range over rows."""
    shares = [(1 - r.covered if missed else r.rejected, r.answered) for r in of]
    mean = sum(x * n for x, n in shares) / sum(n for _, n in shares)
    return f"{mean:.1%} ({min(x for x, _ in shares):.1%} to {max(x for x, _ in shares):.1%})"


def percent(of: Sequence[Row]) -> str:
    missed = [1 - r.covered for r in of]
    return f"{min(missed):.1%} to {max(missed):.1%}"


def reading(rows: Sequence[Row]) -> str:
    kinds = "\n".join(f"| {kind} | {text} |" for kind, text in KINDS.items())
    return f"""## How to read the tables

"Covers" is the share of intervals that hold the truth; "below" and "above" are those wholly below, or above, it: 2.5% each, if an
interval is fair to both sides. "Excludes 0" is the false alarms where nothing happens (+0%), elsewhere the power. "MC error" is
the Monte-Carlo standard error of the coverage; a row "holds" within {BAND:g} of it (1 row in 2,000 falls outside by chance). "Answered"
counts the worlds that gave an interval: without a buyer in an arm there is none, and no relative lift is given against a control
that cannot be told from zero. With fewer than {FEWEST} answers the verdict is "refused". "Warned" is the share of worlds whose
result warns (checks `few_units`, `clusters`, `peeking`); of repeated looks, at the look that is farthest off. A row that covers
less counts as warned where 9 in 10 worlds warn, or half of them if it covers 93% or more: there the sample itself may look good.

| values | |
| --- | --- |
{kinds}

`make simulations` computes what is missing, on all cores, and writes this page; interrupted, it goes on where it was. Every world is
seeded. `make test-slow` draws other worlds for a sample of the rows and compares. Nominal level: {LEVEL:.0%}.
"""


def recorded() -> dict[tuple[str, str, str, str], dict[str, str]]:
    """The tables in the docs: a row's cells by its first four."""
    rows: dict[tuple[str, str, str, str], dict[str, str]] = {}
    families = {f"## {title}": family for family, (title, _) in SECTIONS.items()}
    family = ""
    for text in DOCS.read_text(encoding="utf-8").splitlines():
        family = families.get(text, family)
        found = [cell.strip() for cell in text.strip("|").split("|")]
        if len(found) == len(HEAD) and found[0] not in (HEAD[0], "---"):
            cells = {"family": family, **dict(zip(HEAD, found, strict=True))}
            assert rows.setdefault((found[0], found[1], found[2], found[3]), cells) is cells, f"twice: {text}"
    return rows

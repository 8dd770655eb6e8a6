"""`python -m tests.simulations.attribution`: which model of attribution misranks, by how much; writes docs/attribution_models.md.

In each world the worth of home, search, recommendations and advertising is drawn anew, so the order of touchpoints differs from world to world. A whole
project is written and run; what its models credit is held against what each touchpoint truly brought, which is known because the
company can be run without it (`payoff.world`).
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from payoff.run import Project
from payoff.world import World, write_demo_project
from payoff.world.company import TOUCHPOINTS

DOCS = Path(__file__).parents[2] / "docs" / "attribution_models.md"
NAME = "attribution.personalisation"
WORLDS = 40
FIRST = 5_000
KNOBS: dict[str, Any] = {"customers": 6_000, "days": 180, "holdout": 0.3, "effect": 1.5}
MORE = "models: [last_non_direct, {markov: {order: 2}}, "
PERSONAL = ("home", "search", "recommendations")
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scope:
    """Credit of what is personalised, held against the holdout, in margin.

    ``rescaled`` and ``personal`` (3,) are what is left to each surface, and what its personalisation truly brought; ``total`` and
    ``ratio`` are (value, low, high, truth).
    """

    rescaled: Matrix
    personal: Matrix
    attributed: float
    total: tuple[float, float, float, float]
    ratio: tuple[float, float, float, float] | None


@dataclass(frozen=True, slots=True)
class Held:
    """One model's credit in one world beside the truth (touchpoints,), in margin; ``together`` is what all of them bring at once.

    ``scope`` is None where the credit cannot be told apart by arm, and so cannot be held against the holdout.
    """

    model: str
    credit: Matrix
    truth: Matrix
    together: float
    scope: Scope | None


def world(seed: int) -> World:
    """Worths on the logit scale whose ranges make any of them the largest: few visits come by advertising, many see the home page."""
    worth = np.random.default_rng([seed, 1]).uniform(0.0, (0.6, 1.0, 0.5, 1.3)).round(3)
    return World(seed=seed, worth=tuple(worth.tolist()), **KNOBS)


def held(seed: int) -> list[Held]:
    """Every model of one world."""
    with tempfile.TemporaryDirectory() as folder:
        company = write_demo_project(Path(folder), world(seed), today=date(2026, 11, 25), capped=False)
        definitions = Path(folder) / "definitions" / "journeys.yml"
        text = definitions.read_text(encoding="utf-8")
        assert "models: [" in text
        definitions.write_text(text.replace("models: [", MORE), encoding="utf-8")
        run = Project.load(folder).run([NAME], seed=1, record=False).to_dict()
    (result,) = (told for told in run["results"] if told["name"] == NAME)
    truth = company.truth["touchpoints"]
    true = np.array([truth[name]["margin"] for name in TOUCHPOINTS])
    personal = np.array([truth[name]["personalised"]["margin"] for name in PERSONAL])
    incremental = company.truth["together"]["personalised"]["margin"]
    credit: dict[str, dict[str, float]] = {}
    for one in result["estimates"]:  # of one window and one conversion
        if one["estimand"] == "attributed value":
            credit.setdefault(one["model"], {})[one["touchpoint"]] = one["value"]
    reconciled = {told["model"]: told for told in result["closer"]["reconciliation"]}
    out = []
    for model, own in credit.items():
        scope = None
        if model in reconciled:
            told = reconciled[model]
            left = {
                row["touchpoint"]: row["incremental"]["value"] for row in told["rows"] if row["incremental"] is not None
            }
            attributed = told["attributed"]["value"]
            scope = Scope(
                np.array([left[name] for name in PERSONAL]),
                personal,
                attributed,
                (*_span(told["incremental"]), incremental),
                None if told["ratio"] is None else (*_span(told["ratio"]), incremental / attributed),
            )
        every = company.truth["together"]["touchpoints"]["margin"]
        out.append(Held(model, np.array([own[name] for name in TOUCHPOINTS]), true, every, scope))
    return out


def _span(told: dict[str, float]) -> tuple[float, float, float]:
    return told["value"], told["low"], told["high"]


def run(seeds: Sequence[int], workers: int) -> dict[str, list[Held]]:
    """Every model of every world, by model."""
    out: dict[str, list[Held]] = {}
    if workers == 1:
        every = [held(seed) for seed in seeds]
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            every = pool.map(held, seeds, chunksize=1)
    for world_ in every:
        for told in world_:
            out.setdefault(told.model, []).append(told)
    return out


# ---------------------------------------------------------------- scores


def share(values: Matrix) -> Matrix:
    return values / values.sum()


def error(found: list[Held]) -> Matrix:
    """(worlds,) mean absolute error of the shares, in points of the total."""
    return np.array([np.abs(share(h.credit) - share(h.truth)).mean() for h in found])


def rank(found: list[Held]) -> Matrix:
    """(worlds,) Kendall's tau-b of credit and truth."""
    return np.array([stats.kendalltau(h.credit, h.truth).statistic for h in found])


def top(found: list[Held]) -> Matrix:
    return np.array([float(h.credit.argmax() == h.truth.argmax()) for h in found])


def follows(found: list[Held]) -> tuple[float, float]:
    """How many points a touchpoint's share of credit rises when its true share rises by one, from world to world, and its error.

    The slope through the deviations from each touchpoint's own means; its standard error by the delta method over worlds.
    """
    credit, truth = (np.array([share(getattr(h, what)) for h in found]) for what in ("credit", "truth"))
    dc, dt = credit - credit.mean(axis=0), truth - truth.mean(axis=0)
    top_, bottom = (dc * dt).sum(axis=1), (dt * dt).sum(axis=1)
    slope = float(top_.sum() / bottom.sum())
    spread = (top_ - slope * bottom) / bottom.mean()
    return slope, float(spread.std(ddof=1)) / math.sqrt(len(found))


def over(found: list[Held]) -> Matrix:
    """(worlds,) credit of all touchpoints over what they truly bring together."""
    return np.array([h.credit.sum() / h.together for h in found])


def scopes(found: list[Held]) -> list[Scope]:
    return [h.scope for h in found if h.scope is not None]


def over_personal(found: list[Held]) -> Matrix:
    """(worlds,) credit of personalised touches over what personalisation truly brought."""
    return np.array([scope.attributed / scope.total[3] for scope in scopes(found)])


def left_error(found: list[Held]) -> Matrix:
    """(worlds,) mean absolute error of a surface's rescaled credit, as a share of what all personalisation truly brought."""
    return np.array([np.abs(scope.rescaled - scope.personal).mean() / scope.total[3] for scope in scopes(found)])


def raw_error(found: list[Held]) -> Matrix:
    """(worlds,) the same before reconciliation, of the surface's credit over all its touches."""
    at = [list(TOUCHPOINTS).index(name) for name in PERSONAL]
    told = [(h.credit[at], h.scope) for h in found if h.scope is not None]
    return np.array([np.abs(credit - scope.personal).mean() / scope.total[3] for credit, scope in told])


def covered(found: list[Held], what: str) -> Matrix:
    """(worlds,) whether the interval of ``total`` or ``ratio`` holds the truth, where there is one."""
    spans = [scope.total if what == "total" else scope.ratio for scope in scopes(found)]
    return np.array([float(s[1] <= s[3] <= s[2]) for s in spans if s is not None])


def shown(values: Matrix, digits: int = 2, percent: bool = False) -> str:
    """The mean and its Monte-Carlo standard error."""
    return figure(*_mean(values), digits, percent)


def counted(values: Matrix) -> str:
    """How often, of how many: a share of a few companies has no standard error where it is 0 or 1."""
    return f"{values.sum():g} of {len(values)}"


def _mean(values: Matrix) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))


def figure(mean: float, se: float, digits: int = 2, percent: bool = False) -> str:
    scale, unit = (100, "%") if percent else (1, "")
    return f"{scale * mean:.{digits}f}{unit} ± {scale * se:.{digits}f}"


# ---------------------------------------------------------------- the page


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(found: dict[str, list[Held]]) -> str:
    models = sorted(found, key=lambda model: float(error(found[model]).mean()))
    worlds = len(found[models[0]])
    first = found[models[0]]
    true = np.array([share(h.truth) for h in first])
    best, worst = models[0], models[-1]
    scores = _table(
        ["model", "error of a share (points)", "rank correlation", "top one right", "follows the truth"],
        [
            [
                model,
                shown(100 * error(found[model]), 1),
                shown(rank(found[model])),
                counted(top(found[model])),
                figure(*follows(found[model])),
            ]
            for model in models
        ],
    )
    credited = {model: np.array([share(h.credit) for h in found[model]]) for model in models}
    names = list(TOUCHPOINTS)
    shares = _table(
        ["touchpoint", "truly", *models],
        [
            [name, shown(true[:, j], 1, percent=True), *(shown(credited[m][:, j], 1, percent=True) for m in models)]
            for j, name in enumerate(names)
        ],
    )
    slopes = [follows(found[model])[0] for model in models]
    lowest, highest = min(slopes), max(slopes)
    gap = {(m, n): float((credited[m][:, j] - true[:, j]).mean()) for m in models for j, n in enumerate(names)}
    (over_model, over_name), most = max(gap.items(), key=lambda item: item[1])
    (under_model, under_name), least = min(gap.items(), key=lambda item: item[1])
    reconciled = _table(
        [
            "model",
            "credit / truly brought, before",
            "error of a surface before",
            "after",
            "total covered",
            "ratio covered",
        ],
        [
            [
                model,
                shown(over_personal(found[model]), 1),
                shown(raw_error(found[model]), 1, percent=True),
                shown(left_error(found[model]), 1, percent=True),
                counted(covered(found[model], "total")),
                counted(covered(found[model], "ratio")),
            ]
            for model in models
            if scopes(found[model])
        ],
    )
    apart = [model for model in models if not scopes(found[model])]
    total = np.array([s.total[0] / s.total[3] for s in scopes(found[next(m for m in models if m not in apart)])])
    return f"""# Which model of attribution misranks, and by how much

Written by `make attribution` (`python -m tests.simulations.attribution`), from {worlds} simulated companies of {KNOBS["customers"]:,} customers
and {KNOBS["days"]} days. What each touchpoint truly brought is known: the same company is run once more without it
([world.md](world.md)). The worth of home, search, recommendations and advertising is drawn anew for each company, so each of them is
the best of some. An e-mail brings what it brings in every company; direct brings nothing, it is how customers come who were coming
anyway. Every figure is a mean over companies and its Monte-Carlo standard error, or how many of the companies.

## Credit beside the truth

The error is the mean over touchpoints of the distance between the share of credit and the true share of what touchpoints bring.
Rank correlation is Kendall's tau-b (1: the right order; 0: none). "Follows the truth" is by how many points a touchpoint's share of credit
is higher in a company where its true share is one point higher (1: credit is information about what works; 0: it is none).

{scores}

- **{best} is the least wrong, {worst} the most**, by the error of a share.
- **Credit hardly knows what works.** Whether a touchpoint brings much or little moves its share of credit by {lowest:.2f} to {highest:.2f} points
  for each point of truth: credit mostly tells who was there, as often in a company where the touchpoint is worth nothing.
- **No model sees what would have come anyway**: credit is {figure(*_mean(over(first)), 1)} times what all touchpoints together truly bring, whatever the
  model, since all of them share out the same conversions.
- **The largest overstatement is {over_name} by {over_model}**: {100 * most:.0f} points too many. The largest understatement is {under_name} by
  {under_model}: {-100 * least:.0f} points too few.

## Shares, touchpoint by touchpoint

{shares}

## After reconciliation with the holdout

Only what is personalised is held out, so this is of home, search and recommendations shown personally, to the treated, after exposure.
"Before" is credit over what personalisation truly brought. The error of a surface is the mean distance between the margin given to a
surface and what its personalisation truly brought, as a share of what all personalisation brought: before reconciliation, and after.
The total that the holdout gives is on average {shown(total)} of the truth. "Covered" is how often the 95% interval holds the truth.

{reconciled}

Not here: {", ".join(apart)}. A Markov chain credits all paths together and no conversion by itself, so its credit is not told
apart by arm.

**What reconciliation repairs is the total, not the order**: the rule spreads what the holdout proves in proportion to credit, and credit has
the order of clicks. A test of its own for a touchpoint (`experiment:`) is what puts its share right.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--worlds", type=int, default=WORLDS)
    arguments = parser.parse_args()
    began = time.perf_counter()
    DOCS.write_text(page(run(range(FIRST, FIRST + arguments.worlds), arguments.workers)), encoding="utf-8")
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)

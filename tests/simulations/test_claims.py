"""Whole runs over simulated companies in which nothing works: how often is money claimed all the same?"""

from __future__ import annotations

from collections import Counter
from datetime import date
from pathlib import Path

import pytest

from payoff.run import Project
from payoff.world import World, write_demo_project

TODAY = date(2026, 11, 22)
WORLDS = 1_000


CLOSER = ("segments:", "over_time:", "cumulative:", "cannibalisation:", "compare:")


def without_closer_looks(project: Path) -> None:
    """No claim is priced on them, and over a thousand worlds they take longer than all the rest."""
    for path in (project / "definitions").glob("*.yml"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(x for x in lines if not x.strip().startswith(CLOSER)), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["first_name_revenue", "personalisation_total"])
def test_a_company_without_effects_claims_nothing(tmp_path: Path, claim: str) -> None:
    """From event tables through SQL to the verdict: "positive" in at most 2.5% of 1,000 null worlds, within Monte-Carlo error.

    An interval of 95% leaves 2.5% above zero; costs can only lower that. 3 binomial standard errors are 1.5 points.
    """
    verdicts: Counter[str] = Counter()
    for seed in range(50_000, 50_000 + WORLDS):
        world = World(customers=2_000, days=130, seed=seed, null=True, holdout=0.3)
        write_demo_project(tmp_path, world, today=TODAY, overwrite=True)
        without_closer_looks(tmp_path)
        (priced,) = Project.load(tmp_path).run([claim], record=False, today=TODAY).claims
        verdicts[priced.verdict] += 1
    print(dict(verdicts))
    assert sum(verdicts.values()) == WORLDS
    assert verdicts["positive"] + verdicts["above target"] <= 0.04 * WORLDS
    assert (
        verdicts["not conclusive"] + verdicts["negative"] + verdicts["withheld"] + verdicts["guardrail at risk"]
        >= 0.95 * WORLDS
    )

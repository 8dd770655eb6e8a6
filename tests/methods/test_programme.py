"""A programme over real event tables: its figures from its experiments' own, its total against a holdout's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from payoff.result import Refusal, Result
from payoff.run import Project
from tests.builders import make_project

SOURCES = """
    sources:
      exposures: {table: exposures, time: t, entity: {user: user_id}}
      orders:    {table: orders, time: t, entity: {user: user_id}}
    metrics:
      revenue: {kind: sum, from: orders, column: amount, window: 7d}
    experiments:
"""


def programme_project(
    folder: Path,
    extra: str = "",
    *,
    effects: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 1.5),
    shipped: str = "",
    users: int = 400,
) -> Project:
    """One experiment an effect, each on users of its own; the last is the holdout ``held``, with the effects of all before it."""
    rng = np.random.default_rng(3)
    exposures, orders, blocks = [], [], []
    names = [*(f"e{i}" for i in range(len(effects))), "held"]
    for name, effect in zip(names, (*effects, sum(effects)), strict=True):
        for u in range(users):
            arm = "b" if rng.random() < 0.5 else "a"
            unit = f"{name}-{u}"
            exposures.append(f"('{unit}', TIMESTAMP '2026-04-01' + INTERVAL {u} MINUTE, '{arm}', '{name}')")
            amount = rng.normal(20, 6) + (effect if arm == "b" else 0.0)
            orders.append(f"('{unit}', TIMESTAMP '2026-04-02' + INTERVAL {u} MINUTE, {amount:.4f})")
        blocks.append(
            f"      {name}: {{assignment: {{source: exposures, variant: arm, control: a, where: \"test = '{name}'\"}}, primary: revenue}}\n"
        )
    listed = ", ".join(names[:-1])
    definitions = (
        SOURCES
        + "".join(blocks)
        + f"    programmes:\n      p: {{experiments: [{listed}], metric: revenue, holdout: held{shipped}}}\n"
    )
    tables = f"""
        CREATE TABLE exposures (user_id VARCHAR, t TIMESTAMP, arm VARCHAR, test VARCHAR);
        CREATE TABLE orders (user_id VARCHAR, t TIMESTAMP, amount DOUBLE);
        INSERT INTO exposures VALUES {", ".join(exposures)};
        INSERT INTO orders VALUES {", ".join(orders)}, ('nobody', '2026-06-01', 1);
        {extra}
    """
    return make_project(folder, definitions, tables)


def programme_of(project: Project) -> Result | Refusal:
    run = project.run(["programmes.p"], record=False)
    return next(o for o in (*run.results, *run.refusals) if o.name == "programmes.p")


def test_the_shipped_changes_add_up_and_their_luck_is_taken_out(tmp_path: Path) -> None:
    project = programme_project(tmp_path, shipped=", shipped: [e2, e4]")
    run = project.run(["programmes.p"], record=False)
    by_name = {r.name: r for r in run.results}
    result = by_name["programmes.p"]
    raw = {f"e{i}": by_name[f"experiments.e{i}"].estimate("revenue") for i in range(5)}
    total = result.estimate("revenue", estimand="programme total")
    assert total.value == pytest.approx(raw["e2"].value + raw["e4"].value)
    half = 1.959964 * np.hypot(raw["e2"].uncertainty.se, raw["e4"].uncertainty.se)  # type: ignore[union-attr]
    assert total.high - total.value == pytest.approx(half, rel=1e-6)
    shrunk = {
        e.contrast.split(":")[0]: e.value for e in result.estimates if e.estimand == "difference in means, shrunk"
    }
    mean = np.mean([e.value for e in raw.values()])
    for name, e in raw.items():  # towards the middle, and not beyond it
        assert abs(shrunk[name] - mean) < abs(e.value - mean) + 0.05
    held = result.estimate("revenue", estimand="holdout total")
    assert held.value == pytest.approx(by_name["experiments.held"].estimate("revenue").value)
    gap = result.estimate("revenue", estimand="holdout less programme")
    assert gap.value == pytest.approx(held.value - result.estimate("revenue", estimand="programme total, shrunk").value)
    assert result.grade == "A"
    assert {c.name for c in result.checks} == {"whole", "evidence", "same_window", "agreement"}


def test_what_was_shipped_is_what_won_unless_named(tmp_path: Path) -> None:
    result = programme_of(programme_project(tmp_path, effects=(0.0, 3.0, 4.0, 0.0)))
    assert isinstance(result, Result)
    assert result.estimate("revenue", estimand="programme total").contrast == "shipped: e1, e2"
    assert result.verdict == "positive"
    raw, less = (result.estimate("revenue", estimand=f"programme total{x}").value for x in ("", ", less its bias"))
    assert less < raw


def test_two_experiments_cannot_tell_luck_from_effect(tmp_path: Path) -> None:
    extra = "DELETE FROM exposures WHERE test IN ('e0', 'e1', 'e3')"
    refusal = programme_of(programme_project(tmp_path, extra))
    assert isinstance(refusal, Refusal)
    assert "at least three" in refusal.reason
    assert "e0 was refused" in refusal.reason


def test_nothing_shipped_is_said(tmp_path: Path) -> None:
    refusal = programme_of(programme_project(tmp_path, effects=(0.0, 0.0, 0.0)))
    assert isinstance(refusal, Refusal)
    assert "shows an improvement" in refusal.reason


def test_what_was_shipped_is_not_added_up_without_a_part_of_it(tmp_path: Path) -> None:
    extra = "DELETE FROM exposures WHERE test = 'e1' AND arm = 'a'"
    project = programme_project(tmp_path, extra, shipped=", shipped: [e1, e4]")
    (refusal,) = [r for r in project.run(["p"], record=False).refusals if r.name == "programmes.p"]
    assert "without a part of it: e1 was refused" in refusal.reason


def test_a_holdout_without_a_figure_is_said(tmp_path: Path) -> None:
    project = programme_project(tmp_path, "DELETE FROM exposures WHERE test = 'held' AND arm = 'a'")
    (result,) = [r for r in project.run(["p"], record=False).results if r.name == "programmes.p"]
    (found,) = [c for c in result.checks if c.name == "agreement"]
    assert found.status == "warn"
    assert "the holdout says nothing: held was refused" in found.detail

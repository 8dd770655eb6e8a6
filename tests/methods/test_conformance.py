"""What every registered method owes: assumptions, checks, determinism, refusals, a page in docs/."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from payoff import registry
from payoff.result import Result
from payoff.run import Project, Run
from tests.builders import make_project
from tests.methods.test_experiment import DECISIONS, decisions_project
from tests.methods.test_programme import programme_project

DOCS = Path(__file__).parents[2] / "docs"


def _experiment(folder: Path, extra: str = "") -> Project:
    return decisions_project(folder, extra, DECISIONS)


JOURNEYS = """
    CREATE TABLE visits AS
    SELECT i % 400 AS user_id, TIMESTAMP '2026-06-01' + to_hours(i::INT) AS ts,
           ['home', 'search', 'ad'][1 + (hash(i) % 3)::INT] AS surface FROM range(1600) AS t(i);
    CREATE TABLE orders AS
    SELECT i % 397 AS user_id, TIMESTAMP '2026-06-02' + to_hours((3 * i)::INT) AS ts, (10 + hash(i) % 90)::DOUBLE AS amount
    FROM range(500) AS t(i);
"""
SECTION = {
    "attribution": "attribution: {it: {conversion: {event: orders, value: amount}, touchpoints: [surface], models: [last, markov, shapley]}}",
    "funnel": "funnels: {it: {steps: [visits, orders], within: 7d}}",
    "cohort": "cohorts: {it: {start: visits, activity: visits, revenue: {event: orders, value: amount}}}",
    "path": "paths: {it: {touchpoints: [surface], to: orders}}",
}


def _journey(name: str) -> Callable[[Path, str], Project]:
    def make(folder: Path, extra: str = "") -> Project:
        definitions = f"""\
        defaults: {{entity: user}}
        entities: {{user: {{id: user_id}}}}
        sources: {{visits: {{table: visits, time: ts}}, orders: {{table: orders, time: ts}}}}
        touchpoints: {{surface: {{source: visits, by: surface}}}}
        {SECTION[name]}
        """
        head, _, rest = textwrap.dedent(definitions).partition("\n")
        return make_project(folder, rest, JOURNEYS + extra, head)

    return make


MAKE = {
    "experiment": _experiment,
    "programme": programme_project,
    **{name: _journey(name) for name in SECTION},
}
EMPTY_ARM = {
    "experiment": "DELETE FROM decisions WHERE arm = 'new'",
    "programme": "DELETE FROM exposures WHERE arm = 'b'",
    "attribution": "DELETE FROM orders",
    "funnel": "DELETE FROM visits",
    "cohort": "DELETE FROM visits",
    "path": "DELETE FROM orders",
}
"""What leaves nothing to answer from: an arm, or the rows that a journey starts from or leads to."""
NO_VARIANCE = {
    "experiment": "DELETE FROM events WHERE visitor_id <> 'nobody'",
    "programme": "UPDATE orders SET amount = 1",
}
"""Of methods that compare. A description of equal values is one: its counts are what they are."""


@pytest.fixture(params=sorted(registry.METHODS))
def name(request: pytest.FixtureRequest) -> str:
    """A registered method's name."""
    return str(request.param)


def run_of(name: str, folder: Path, extra: str = "", seed: int = 1) -> Run:
    return MAKE[name](folder, extra).run(record=False, seed=seed)


def the(run: Run, name: str) -> Result:
    (result,) = [r for r in run.results if r.method == name]
    return result


def test_every_registered_method_is_looked_at() -> None:
    assert set(MAKE) == set(registry.METHODS)


def test_it_states_assumptions_and_names_checks(name: str) -> None:
    method = registry.method(name)
    assert method.assumptions
    assert method.checks
    assert all(a.tested_by is None or a.tested_by in method.checks for a in method.assumptions)


def test_its_results_carry_only_the_checks_it_names(name: str, tmp_path: Path) -> None:
    result = the(run_of(name, tmp_path), name)
    assert {c.name for c in result.checks} <= set(registry.method(name).checks)
    assert all(c.detail for c in result.checks)
    assert all(a.tested_by is None or a.tested_by in registry.method(name).checks for a in result.assumptions)


def test_it_is_deterministic_under_a_seed(name: str, tmp_path: Path) -> None:
    project = MAKE[name](tmp_path, "")
    first, second = (the(project.run(record=False, seed=7), name).to_dict() for _ in range(2))

    def head(result: dict[str, object]) -> str:
        return json.dumps({k: v for k, v in result.items() if k != "provenance"}, sort_keys=True)

    # parallel sums may differ in their last bits, so eleven digits are compared
    assert json.loads(head(first), parse_float=lambda x: f"{float(x):.11g}") == json.loads(
        head(second), parse_float=lambda x: f"{float(x):.11g}"
    )


def test_a_description_claims_nothing(name: str, tmp_path: Path) -> None:
    result = the(run_of(name, tmp_path), name)
    assert (result.design == "descriptive") == (name in SECTION)
    if name in SECTION:
        assert result.verdict == "descriptive"
        assert result.grade in ("D", "")
        assert not any(e.estimand == "difference in means" for e in result.estimates)
        said = " ".join((result.finding, *(c.detail for c in result.checks))).lower()
        assert not [w for w in ("caused", "because of", "effect of", "uplift") if w in said]
        assert all(e.low <= e.value <= e.high for e in result.estimates)


def test_it_refuses_an_empty_arm(name: str, tmp_path: Path) -> None:
    run = run_of(name, tmp_path, EMPTY_ARM[name])
    assert not run.results
    assert all(r.remedy for r in run.refusals)


@pytest.mark.parametrize("name", sorted(NO_VARIANCE), indirect=True)
def test_it_refuses_values_that_do_not_vary(name: str, tmp_path: Path) -> None:
    run = run_of(name, tmp_path, NO_VARIANCE[name])
    assert not run.results
    assert "same value" in run.refusals[-1].reason


def test_it_has_a_page_that_names_every_check(name: str) -> None:
    text = (DOCS / "methods" / f"{name}.md").read_text()
    missing = [check for check in registry.method(name).checks if f"`{check}`" not in text]
    assert not missing

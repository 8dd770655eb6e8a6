"""What an engine has no form of is refused by name, before any statement of it is sent; what stands beside it is answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlglot import exp

from payoff.run import Project
from payoff.warehouse.dialect import COMMON, Dialect, Macro, NoForm
from payoff.warehouse.engines import duckdb as engine
from payoff.warehouse.query import Query
from tests.warehouse.conformance.answers import answered, assert_equal, project_on
from tests.warehouse.conformance.data import NOW
from tests.warehouse.conformance.engines import Place

ONE_OF_EACH_KERNEL = {
    "experiments.recs": "segments",
    "experiments.family": "clusters",
    "experiments.courier_pay": "switchback",
    "funnels.strict": "funnels",
    "cohorts.weekly": "cohorts",
    "paths.to_order": "paths",
    "attribution.held_out": "attribution",
    "funnels.by_session": "sessions",
    "funnels.to_order": "identity",
}
Construct = type[exp.Expr] | str


class _All(frozenset[type[exp.Expr]]):
    def __contains__(self, _: object) -> bool:
        return True


def _none(_: exp.Expr) -> exp.Expr:
    raise NoForm("what it lacks")


class Lacking(engine.DuckDBEngine):
    """DuckDB without one construct. ``told`` are the steps of which a statement was sent."""

    told: list[str]

    def _select(self, text: str, what: str, source: str | None) -> pa.Table:
        if what != "look at sizes":  # of files and tables, which reads none of their rows
            self.told.append(what)
        return super()._select(text, what, source)

    def _create(self, table: str, query: Query, what: str, source: str | None) -> None:
        self.told.append(what)
        super()._create(table, query, what, source)

    def _insert(self, table: str, query: Query, what: str, source: str | None) -> None:
        self.told.append(what)
        super()._insert(table, query, what, source)


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Callable[[Construct | None], list[str]]:
    """Makes runs use an engine without a construct; gives the list of steps that are sent from then on."""

    def make(construct: Construct | None) -> list[str]:
        macros: dict[Construct, Macro] = {} if construct is None else {construct: _none}
        told: list[str] = []
        dialect = Dialect("lacking", "duckdb", macros, plain=_All())
        made = type("Made", (Lacking,), {"dialect": dialect, "told": told, "version": "1"})
        monkeypatch.setattr(engine, "DuckDBEngine", made)
        return told

    return make


def constructs(project: Project, item: str) -> list[Construct]:
    """What the statements of something are made of, beside what every engine has."""
    found: dict[str, Construct] = {}
    for step in project.plan([item]):
        for node in step.query.tree.walk():
            if isinstance(node, exp.Anonymous):
                found[node.name.lower()] = node.name.lower()
            elif type(node) not in COMMON:
                found[type(node).__name__] = type(node)
    return [found[name] for name in sorted(found)]


def run(project: Project, item: str) -> dict[str, Any]:
    return project.run([item], record=False, now=NOW, today=NOW.date()).to_dict()


@pytest.mark.parametrize("item", ONE_OF_EACH_KERNEL)
def test_what_an_engine_lacks_is_refused_before_anything_is_sent(
    item: str, lacking: Callable[[Construct | None], list[str]], place_of: Callable[[str], Place], tmp_path: Path
) -> None:
    project = project_on(place_of("duckdb"), ONE_OF_EACH_KERNEL[item], tmp_path)
    of = constructs(project, item)
    assert len(of) >= 4
    for construct in of[:: (len(of) + 1) // 2]:
        told = lacking(construct)
        found = run(project, item)
        assert not found["results"], construct
        (refusal,) = found["refusals"]
        assert refusal["name"] == item
        assert refusal["reason"].startswith("lacking cannot run '"), refusal
        assert "what it lacks" in refusal["reason"]
        assert told == [], construct
        assert found["failures"] == [f"{item}: refused"]


def test_an_engine_that_lacks_nothing_gives_the_same(
    lacking: Callable[[Construct | None], list[str]], place_of: Callable[[str], Place], expected: Any, tmp_path: Path
) -> None:
    """The statements go through translation, and are told as they were sent."""
    for name in ("switchback", "identity_apart"):
        told = lacking(None)
        assert_equal(expected(name), answered(project_on(place_of("duckdb"), name, tmp_path / name)))
        assert told


def test_what_stands_beside_it_is_answered(
    lacking: Callable[[Construct | None], list[str]], place_of: Callable[[str], Place], expected: Any, tmp_path: Path
) -> None:
    lacking(exp.BitwiseOrAgg)  # in which whoever came back in several periods is kept
    found = answered(project_on(place_of("duckdb"), "cohorts", tmp_path))
    refused = [r["name"] for r in found["refusals"] if r["reason"].startswith("lacking cannot run")]
    assert refused == ["cohorts.weekly", "cohorts.monthly", "cohorts.by_plan"]
    left = [r for r in expected("cohorts")["results"] if r["name"] not in refused]
    assert [r["name"] for r in left] == ["cohorts.daily", "cohorts.worth"]
    assert_equal(left, found["results"])

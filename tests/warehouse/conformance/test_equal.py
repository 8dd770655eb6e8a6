"""One project file, one set of rows, equal figures on every engine.

Text, whole numbers, the order of rows and what is refused are the same to the letter. Floating figures are equal within 1e-9
of their size (1e-12 where they are near zero): engines add floating numbers up in different orders.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from payoff.cli import app
from payoff.errors import PayoffError
from payoff.run import Project
from payoff.warehouse.engine import Engine, open_engine
from payoff.warehouse.query import Query
from tests.warehouse.conformance.answers import answered, assert_equal, differences, project_on, project_text
from tests.warehouse.conformance.data import NOW, tables
from tests.warehouse.conformance.engines import ENGINES, NotHere, Place, Tables, on_duckdb
from tests.warehouse.conformance.projects import BROKEN, PROJECTS

Start = Callable[[str], Place]


UNEQUAL: dict[tuple[str, str], str] = {}
"""(project, engine) -> why its figures are known not to be equal yet: a defect, whose test fails as soon as it is mended."""


def _pairs() -> list[Any]:
    return [
        pytest.param(
            name,
            engine,
            id=f"{name}-{engine}",
            marks=[pytest.mark.xfail(strict=True, reason=UNEQUAL[name, engine])] if (name, engine) in UNEQUAL else [],
        )
        for engine in ENGINES
        for name in [*PROJECTS, *BROKEN]
    ]


@pytest.mark.parametrize(("name", "engine"), _pairs())
def test_figures_are_equal(name: str, engine: str, place_of: Start, expected: Any, tmp_path: Path) -> None:
    found = answered(project_on(place_of(engine), name, tmp_path))
    assert_equal(expected(name), found)


# ---------------------------------------------------------------- the other verbs

POWER = {
    "metrics": "layout",
    "adjusted": "cuped",
    "clusters": "family",
    "switchback": "courier_pay",
    "programme": "global",
}


def planned(project: Project, name: str) -> dict[str, Any]:
    try:
        plan = project.power(name, lift="10%", history="28d", weeks=3).to_dict()
    except PayoffError as error:
        return {"error": type(error).__name__, "says": str(error)}
    found: dict[str, Any] = json.loads(json.dumps({**plan, "sql": [step["step"] for step in plan["sql"]]}, default=str))
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", POWER)
def test_plans_before_it_runs_are_equal(name: str, engine: str, place_of: Start, tmp_path: Path) -> None:
    here, there = (planned(project_on(place_of(e), name, tmp_path / e), POWER[name]) for e in ("duckdb", engine))
    assert here.get("metrics") or name == "adjusted"  # whose history is refused
    assert_equal(here, there)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["programme", "ids", "one_row", "sessions"])
def test_what_the_doctor_finds_is_equal(name: str, engine: str, place_of: Start, tmp_path: Path) -> None:
    here, there = (
        [f.to_dict() for f in project_on(place_of(e), name, tmp_path / e).doctor()] for e in ("duckdb", engine)
    )
    assert {f["check"] for f in here} > {"rows"}
    assert_equal(here, there)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_verb_works(engine: str, place_of: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checked, explained, run, kept, shown, reported and verified, as on a command line."""
    place, name = place_of(engine), "programme"

    def call(*words: str) -> Any:
        (tmp_path / "payoff.yml").write_text(project_text(place, name))
        code = app([*words, "-p", str(tmp_path), "--json"], standalone_mode=False)
        out = json.loads(capsys.readouterr().out)
        assert code in (0, 1, None), (words, out)
        return out

    call("check")
    assert call("explain")
    run = call("run")
    assert len(run["results"]) == 5
    assert call("show", "claims.total")
    assert call("show", "experiments.recs", "--sql")
    assert call("verify")["equal"]
    call("report")
    assert list((tmp_path / "reports").glob("*.html"))


def _in_order(rows: pa.Table) -> list[dict[str, Any]]:
    def brief(row: dict[str, Any]) -> str:
        return repr([f"{value:.6g}" if isinstance(value, float) else value for value in row.values()])

    return sorted(rows.to_pylist(), key=brief)


def _as_it_stands(engine: Any, text: str) -> pa.Table | None:
    """A statement given to an engine's own client, and to nothing of ours; the rows of a SELECT."""
    if text.startswith("CREATE"):
        if engine.dialect.name == "spark":  # rows of a view would be found again for each that reads them
            name, _, body = text.removeprefix("CREATE TEMPORARY VIEW ").partition(" AS\n")
            engine._add(name, body, "told", None)
        elif engine.dialect.name == "clickhouse":
            engine._session.send(text, "told", False)
        elif engine.dialect.name == "postgres":
            with engine._writing():
                engine._session.execute(text.encode())
        else:
            engine._connection.sql(text)
        return None
    found: pa.Table = engine._select(text, "told", None)
    return found


@pytest.mark.parametrize("engine", [e for e in ENGINES if e != "duckdb-copies"])  # where some of it is no statement
@pytest.mark.parametrize("name", ["adjusted", "cohorts"])
def test_what_is_told_can_be_run_as_it_stands(
    name: str, engine: str, place_of: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statements of a result, one after the other in another session, give the rows that the run had of them."""
    given: dict[str, pa.Table] = {}
    fetch = Engine.fetch

    def fetched(self: Engine, query: Query, what: str, source: str | None = None) -> pa.Table:
        rows = fetch(self, query, what, source)
        given.setdefault(self._sent_as(query, what).render(), rows)
        return rows

    monkeypatch.setattr(Engine, "fetch", fetched)
    place = place_of(engine)
    project = project_on(place, name, tmp_path)
    run = project.run(record=False, now=NOW, today=NOW.date())
    assert len(run.results) > 1
    connections, files = project.loaded.spec.connections, [str(f) for f in place.folder.glob("*.parquet")]
    compared = 0
    with open_engine(connections, tmp_path, files) as again:
        for step, text in run.results[0].provenance.sql:
            found = _as_it_stands(again, text)
            if found is not None:
                assert text in given, (step, text)
                assert not list(differences(_in_order(given[text]), _in_order(found))), step
                compared += 1
    assert compared > 3


# ---------------------------------------------------------------- the harness itself


@pytest.mark.parametrize("name", PROJECTS)
def test_every_project_says_something(name: str, expected: Any) -> None:
    """Projects that fail alike everywhere would be equal."""
    found = expected(name)
    assert "error" not in found, found
    refused = len(found["refusals"])
    if name == "nothing_to_say":
        assert refused
        assert not found["results"]
    else:
        assert sum(len(r["estimates"]) for r in found["results"]) > 2 * refused


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_project_is_told_as_data_or_definition(name: str, expected: Any) -> None:
    assert expected(name)["error"] in ("DataError", "DefinitionError", "MissingColumns")


def test_a_wrong_figure_is_seen_by_its_path(expected: Any) -> None:
    right = expected("switchback")
    wrong = copy.deepcopy(right)
    estimate = wrong["results"][0]["estimates"][1]
    estimate["value"] *= 1 + 1e-8
    (told,) = differences(right, wrong)
    assert told.startswith(f"results[0 experiments.courier_pay].estimates[1 {estimate['metric']}].value: ")
    for change in ("+", "integer", "order", "missing", "word"):
        wrong = copy.deepcopy(right)
        result = wrong["results"][0]
        if change == "+":
            result["estimates"][0]["low"] += abs(result["estimates"][0]["low"]) * 2e-9
        elif change == "integer":
            result["arms"][0]["n"] = float(result["arms"][0]["n"])
        elif change == "order":
            result["arms"].reverse()
        elif change == "missing":
            del result["checks"][0]
        else:
            result["readings"][0]["sentence"] += " "
        assert list(differences(right, wrong)), change
        with pytest.raises(AssertionError, match="on the reference"):
            assert_equal(right, wrong)


def test_every_engine_that_is_said_to_be_executed_is() -> None:
    """The table of docs/engines.md, and the files that engines are, against what is held here."""
    page = (Path(__file__).parents[3] / "docs" / "engines.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in page.splitlines() if line.startswith("| [")
    ]
    said = {" ".join(re.findall(r"\[(.+?)\]", row[0])): row[-1] for row in rows}
    executed = {"PostgreSQL": "postgres"}.get
    names = {executed(name, name.lower()) for name, what in said.items() if what == "executed"}
    assert set(said.values()) == {"executed", "written, not executed"}
    assert names == {name.partition("-")[0] for name in ENGINES}
    for name in names:
        assert issubclass(_engine_of(name), Engine)


def _engine_of(name: str) -> type[Engine]:
    module = import_module(f"payoff.warehouse.engines.{name}")
    (found,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Engine) and value.__module__ == module.__name__
    ]
    return found


def test_an_engine_that_is_missing_is_told_and_fails_in_ci(place_of: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def nowhere(folder: Path, tables: Tables) -> Iterator[Place]:
        raise NotHere("it is not installed")
        yield

    monkeypatch.setitem(ENGINES, "nowhere", nowhere)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="nowhere was not executed: it is not installed"):
        place_of("nowhere")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="nowhere was not executed: it is not installed"):
        place_of("nowhere")


def test_a_row_more_is_seen(place_of: Start, expected: Any, tmp_path: Path) -> None:

    given = dict(tables())
    given["orders"] = given["orders"].slice(0, given["orders"].num_rows - 1)
    (tmp_path / "data").mkdir()
    with on_duckdb(tmp_path / "data", given) as place, pytest.raises(AssertionError, match="differences, first"):
        assert_equal(expected("programme"), answered(project_on(place, "programme", tmp_path / "project")))

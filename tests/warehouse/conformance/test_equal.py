"""One project file, one set of rows, equal figures on every engine.

Text, whole numbers, the order of rows and what is refused are the same to the letter. Floating figures are equal within 1e-9
of their size (1e-12 where they are near zero): engines add floating numbers up in different orders.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from payoff.cli import app
from payoff.errors import PayoffError
from payoff.run import Project
from tests.warehouse.conformance.data import NOW
from tests.warehouse.conformance.engines import ENGINES, Place
from tests.warehouse.conformance.projects import BROKEN, PROJECTS, text_of

Start = Callable[[str], Place]
NOT_COMPARED = {
    "provenance",
    "data_fingerprint",
    "definition_hash",
    "run_id",
    "started",
    "finished",
    "versions",
    "plan",
}
"""How and when it was done, and nothing that was found."""


def project_text(place: Place, name: str) -> str:
    text = text_of(name, place.connect(), place.files)
    return re.sub(r"(\w+\.parquet)", lambda found: str(place.folder / found[1]), text) if place.files else text


def project_on(place: Place, name: str, folder: Path) -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "payoff.yml").write_text(project_text(place, name))
    project = Project.load(folder)
    if place.prepared:
        prepare(project)
    return project


def prepare(project: Project) -> None:
    raise NotImplementedError


def answered(project: Project) -> dict[str, Any]:
    """All that a run found: figures, words, refusals; or the error that ended it."""
    try:
        run = project.run(record=False, now=NOW, today=NOW.date()).to_dict()
    except PayoffError as error:
        return {"error": type(error).__name__, "says": str(error)}
    found: dict[str, Any] = json.loads(json.dumps(run, allow_nan=False))
    return found


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Where two answers differ, each by its path: a whole number is none that only equals it, and order counts."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in [k for k in dict.fromkeys([*ours, *theirs]) if k not in NOT_COMPARED]:
            if key in ours and key in theirs:
                yield from differences(ours[key], theirs[key], f"{path}.{key}" if path else key)
            else:
                yield f"{path}.{key}: only {'here' if key in theirs else 'on the reference'}"
    elif isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            yield f"{path}: {len(ours)} of them on the reference, {len(theirs)} here"
        for k, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            named = next(
                (one[key] for key in ("name", "metric", "estimand") if isinstance(one, dict) and key in one), ""
            )
            yield from differences(one, other, f"{path}[{k}{f' {named}' if named else ''}]")
    elif isinstance(ours, float) and isinstance(theirs, float):
        if not math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-12):
            yield f"{path}: {ours!r} on the reference, {theirs!r} here"
    elif type(ours) is not type(theirs) or ours != theirs:
        yield f"{path}: {ours!r} on the reference, {theirs!r} here"


def assert_equal(ours: Any, theirs: Any) -> None:
    found = list(differences(ours, theirs))
    shown = "\n  ".join(found[:12])
    assert not found, f"{len(found)} differences, first:\n  {shown}"


@pytest.fixture(scope="session")
def expected(place_of: Start, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What a project gives on the reference, computed once."""
    root = tmp_path_factory.mktemp("reference")
    found: dict[str, dict[str, Any]] = {}

    def of(name: str) -> dict[str, Any]:
        if name not in found:
            found[name] = answered(project_on(place_of("duckdb"), name, root / name))
        return found[name]

    return of


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [*PROJECTS, *BROKEN])
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


def test_a_row_more_is_seen(place_of: Start, expected: Any, tmp_path: Path) -> None:
    from tests.warehouse.conformance.data import tables
    from tests.warehouse.conformance.engines import on_duckdb

    given = dict(tables())
    given["orders"] = given["orders"].slice(0, given["orders"].num_rows - 1)
    (tmp_path / "data").mkdir()
    with on_duckdb(tmp_path / "data", given) as place, pytest.raises(AssertionError, match="differences, first"):
        assert_equal(expected("programme"), answered(project_on(place, "programme", tmp_path / "project")))

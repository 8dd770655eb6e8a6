"""What a project says on an engine, and where two answers differ."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from payoff.errors import PayoffError
from payoff.run import Project
from tests.warehouse.conformance.data import NOW
from tests.warehouse.conformance.engines import Place
from tests.warehouse.conformance.projects import text_of

NOT_COMPARED = {
    "provenance",
    "data_fingerprint",
    "definition_hash",
    "run_id",
    "started",
    "finished",
    "versions",
    "plan",
    "sql",
}
"""How and when it was done, and nothing that was found."""


def project_text(place: Place, name: str) -> str:
    text = text_of(name, place.connect(), place.files)
    return re.sub(r"(\w+\.parquet)", lambda found: str(place.folder / found[1]), text) if place.files else text


def project_on(place: Place, name: str, folder: Path) -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "payoff.yml").write_text(project_text(place, name))
    if place.prepared:
        Project.load(folder).prepare()
    return Project.load(folder)


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
    if isinstance(theirs, dict) and "error" in theirs and "error" not in ours:
        raise AssertionError(f"it ends on the reference, and here with {theirs['error']}: {theirs['says']}")
    found = list(differences(ours, theirs))
    shown = "\n  ".join(found[:12])
    assert not found, f"{len(found)} differences, first:\n  {shown}"

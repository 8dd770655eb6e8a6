"""Each engine is started once a worker, and each project is answered once on the reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.warehouse.conformance.answers import answered, project_on
from tests.warehouse.conformance.data import tables
from tests.warehouse.conformance.engines import ENGINES, REFERENCE, NotHere, Place


@pytest.fixture(scope="session")
def place_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Place]]:
    """Name of an engine -> where the tables are on it. Skips, or fails in CI, where it cannot be started."""
    started: dict[str, Place | NotHere] = {}
    with ExitStack() as stack:

        def start(name: str) -> Place:
            if name not in started:
                folder = tmp_path_factory.mktemp(name)
                try:
                    started[name] = stack.enter_context(ENGINES.get(name, REFERENCE)(folder, tables()))
                except NotHere as error:
                    started[name] = error
            place = started[name]
            if isinstance(place, NotHere):
                why = f"{name} was not executed: {place}"
                pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
            return place

        yield start


@pytest.fixture(scope="session")
def expected(
    place_of: Callable[[str], Place], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """What a project gives on the reference, computed once."""
    root = tmp_path_factory.mktemp("reference")
    found: dict[str, dict[str, Any]] = {}

    def of(name: str) -> dict[str, Any]:
        if name not in found:
            found[name] = answered(project_on(place_of("duckdb"), name, root / name))
        return found[name]

    return of

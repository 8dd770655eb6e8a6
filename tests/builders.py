"""Small projects for tests: definitions as text, tables as SQL over a DuckDB file."""

from __future__ import annotations

import textwrap
from pathlib import Path

import duckdb

from payoff.run import Project


def make_project(folder: Path, definitions: str, tables: str = "", root: str = "") -> Project:
    """A project whose tables are made by ``tables`` (SQL) in data.duckdb."""
    write_project(folder, definitions, tables, root)
    return Project.load(folder)


def write_project(folder: Path, definitions: str, tables: str = "", root: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    base = "version: 1\nproject: small\ninclude: [definitions/*.yml]\n"
    if tables:
        with duckdb.connect(str(folder / "data.duckdb")) as connection:
            connection.execute(tables)
        base += "connections: {main: {engine: duckdb, path: data.duckdb}}\n"
    (folder / "payoff.yml").write_text(base + textwrap.dedent(root))
    (folder / "definitions").mkdir(exist_ok=True)
    (folder / "definitions" / "all.yml").write_text(textwrap.dedent(definitions))
    return folder

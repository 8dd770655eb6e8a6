"""What the code may import, and what starting it may load. The contracts are in pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = {
    "altair", "duckdb", "jinja2", "numpy", "pandas", "pyarrow", "pydantic", "ruamel", "scipy", "sqlalchemy", "sqlglot",
    "vl_convert",
}  # fmt: skip


def test_every_layer_imports_only_what_is_below_it() -> None:
    lint = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    run = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    # A contract that reads no module keeps itself: these are the ones that must be seen to be kept.
    for contract in PYPROJECT["tool"]["importlinter"]["contracts"]:
        assert f"{contract['name']} KEPT" in " ".join(run.stdout.split()), run.stdout


# Typer reads the types of a verb's arguments with pydantic, whatever we do; nothing of ours may be loaded by it.
@pytest.mark.parametrize(
    ("arguments", "allowed"), [(["--help"], set()), (["run", "--help"], {"pydantic"})], ids=["payoff", "verb"]
)
def test_help_loads_nothing_heavy(arguments: list[str], allowed: set[str]) -> None:
    """A user who asks how to use Payoff waits for the command line alone. The imports are asserted, not the time."""
    code = (
        "import sys\n"
        "from payoff.cli import main\n"
        f"sys.argv = ['payoff', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print('\\nLOADED', *{name.partition('.')[0] for name in sys.modules})\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    shown, _, loaded = run.stdout.rpartition("\nLOADED ")
    assert shown.strip(), "it printed nothing"
    assert HEAVY & set(loaded.split()) <= allowed


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, payoff; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY & set(run.stdout.split()) == set()


def _normal(name: str) -> str:
    """PEP 503: the one spelling of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _names(requirements: list[str]) -> set[str]:
    """``psycopg[binary]>=3.2`` -> ``psycopg``."""
    return {_normal(re.split(r"[^A-Za-z0-9._-]", requirement.strip())[0]) for requirement in requirements}


def test_dependencies_are_those_that_are_imported() -> None:
    """A dependency that nothing imports is weight; an import that no dependency brings is a crash on someone's machine."""
    graph = grimp.build_graph("payoff", include_external_packages=True, cache_dir=None)
    outside = {name for name in graph.modules if graph.is_module_squashed(name)} - sys.stdlib_module_names
    owners = packages_distributions()
    imported = {_normal(owner) for name in outside for owner in owners.get(name, [name])}

    project = PYPROJECT["project"]
    required = _names(project["dependencies"])
    optional = _names([r for name, extra in project["optional-dependencies"].items() if name != "dev" for r in extra])
    by_name = {"tzdata"}  # zoneinfo loads it
    by_name |= {"chdb"}  # imported by its name, where a connection asks for it
    by_name |= {"pyspark"}  # the extra spark-classic: the same module as that of pyspark-client, with Spark itself
    of_another = {"pydantic-core"}  # pydantic pins it exactly, and its documentation imports from it
    assert required | optional == (imported - of_another) | by_name


def test_no_registry_is_named_in_the_pins() -> None:
    pins = sorted((ROOT / "requirements").glob("*.txt"))
    assert pins, "there are no pins"
    for path in pins:
        text = path.read_text()
        assert "://" not in text, path.name
        assert text.count("--hash=sha256:") >= text.count("=="), path.name


@pytest.mark.parametrize("other", ["dev.txt", "bench.txt"])
def test_all_sets_of_pins_agree_with_the_core(other: str) -> None:
    """`make demo` and `make test` share one environment, so neither may move what the other installed."""

    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / "requirements" / name).read_text().splitlines()
        split = [line.split(";")[0].rstrip(" \\").partition("==") for line in lines if "==" in line.split(";")[0]]
        return {package: version for package, _, version in split}

    core = pins("core.txt")
    assert core
    assert core.items() <= pins(other).items()

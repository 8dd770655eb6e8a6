"""The generated pages in docs/ say what the code says (`make docs` writes them), and what the README declares can be declared."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from payoff.spec import loader

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_published_schema_is_the_one_in_force() -> None:
    code = "import sys; sys.argv = ['payoff', 'schema']; from payoff.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (DOCS / "payoff.schema.json").read_text() == run.stdout, "run: make docs"


def test_the_command_line_reference_is_the_one_in_force(tmp_path: Path) -> None:
    page = tmp_path / "cli.md"
    command = ["payoff.cli", "utils", "docs", "--name", "payoff", "--title", "Command line", "--output", str(page)]
    subprocess.run([sys.executable, "-m", "typer", *command], capture_output=True, check=True)
    assert (DOCS / "cli.md").read_text() == page.read_text(), "run: make docs"


def test_the_projects_of_the_readme_are_definitions(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    first, second = re.findall(r"```yaml\n(.*?)```", text, re.S)
    (tmp_path / "payoff.yml").write_text(f"{first}\ninclude: [more.yml]\n")
    (tmp_path / "more.yml").write_text(second)
    loaded = loader.load(tmp_path)
    assert not loaded.warnings
    assert set(loaded.journeys()) == {"attribution.site", "funnels.checkout", "cohorts.signups", "paths.to_order"}

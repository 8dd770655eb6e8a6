"""What `payoff init` writes: loads cleanly, runs once its tables exist, overwrites nothing, and says what it lacks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from payoff.cli import Template, app
from payoff.spec import loader

TABLES = {
    "email": """
        CREATE TABLE people AS SELECT i AS user_id, hash(i) % 2 = 0 AS named, hash(i + 1000000) % 100 AS luck,
                                      TIMESTAMP '2026-01-05 09:00:00' + to_seconds(i) AS sent_at FROM range(6000) AS t(i);
        CREATE TABLE email_sends AS SELECT user_id AS send_id, user_id, sent_at, luck = 99 AS unsubscribed,
                                           CASE WHEN named THEN 'first_name' ELSE 'generic' END AS subject_variant FROM people;
        CREATE TABLE email_opens AS SELECT user_id, sent_at + INTERVAL 1 HOUR AS opened_at FROM people WHERE luck < 50;
        CREATE TABLE email_clicks AS SELECT user_id, sent_at + INTERVAL 2 HOUR AS clicked_at FROM people
                                     WHERE luck < 10 OR named AND luck < 25;
        CREATE TABLE orders AS SELECT user_id AS order_id, user_id, sent_at + INTERVAL 3 HOUR AS ordered_at, 20 + luck * 2.0 AS amount
                               FROM people WHERE luck < 5 OR named AND luck < 15
                               UNION ALL SELECT 999999, 999999, TIMESTAMP '2026-03-01', 10.0;
    """,
    "holdout": """
        CREATE TABLE people AS SELECT i AS user_id, hash(i) % 10 > 0 AS personal, hash(i + 1000000) % 100 AS luck,
                                      TIMESTAMP '2026-01-05 09:00:00' + to_seconds(i) AS seen_at FROM range(9000) AS t(i);
        CREATE TABLE exposures AS SELECT user_id, seen_at AS exposed_at,
                                         CASE WHEN personal THEN 'personalised' ELSE 'generic' END AS global_arm FROM people;
        CREATE TABLE orders AS SELECT user_id AS order_id, user_id, seen_at + INTERVAL 3 DAY AS ordered_at, 30 + luck * 1.0 AS amount
                               FROM people WHERE luck < 30 OR personal AND luck < 45
                               UNION ALL SELECT 999999, 999999, TIMESTAMP '2026-04-01', 10.0;
        CREATE TABLE returns AS SELECT user_id AS return_id, user_id, seen_at + INTERVAL 9 DAY AS returned_at
                                FROM people WHERE luck % 20 = 0 AND luck < 30;
    """,
    "table": """
        CREATE TABLE customers AS
        SELECT i AS customer_id, CASE WHEN treated THEN 'treatment' ELSE 'control' END AS arm,
               luck < 10 OR treated AND luck < 20 AS converted, luck = 99 AS complained,
               CASE WHEN luck < 10 OR treated AND luck < 20 THEN 20.0 + luck ELSE 0 END AS spend
        FROM (SELECT i, hash(i) % 2 = 0 AS treated, hash(i + 1000000) % 100 AS luck FROM range(8000) AS t(i)) AS people;
    """,
}
CLAIMS = {"email": "first_name_revenue", "holdout": "personalisation_total", "table": "offer_pays"}
runner = CliRunner()


def _made(folder: Path, template: str) -> Path:
    made = runner.invoke(app, ["init", str(folder), "--template", template])
    assert made.exit_code == 0, made.output
    return folder


def _filled(folder: Path, template: str) -> Path:
    (folder / "data").mkdir()
    with duckdb.connect(str(folder / "data" / "warehouse.duckdb")) as connection:
        connection.execute(TABLES[template])
    return folder


def test_every_template_is_tested() -> None:
    assert {t.value for t in Template} == set(TABLES)


@pytest.mark.parametrize("template", TABLES)
def test_a_new_project_loads_without_a_word(tmp_path: Path, template: str) -> None:
    folder = _made(tmp_path / "a new shop", template)
    loaded = loader.load(folder)
    assert loaded.warnings == ()
    assert loaded.spec.project == "a new shop"
    assert [f"claims.{c}" for c in loaded.spec.claims] == [f"claims.{CLAIMS[template]}"]
    checked = runner.invoke(app, ["check", "--definitions-only", "-p", str(folder)])
    assert checked.exit_code == 0, checked.output
    assert "no problem" in checked.stdout


@pytest.mark.parametrize("template", TABLES)
def test_it_runs_as_soon_as_its_tables_exist(tmp_path: Path, template: str) -> None:
    folder = _made(tmp_path / "shop", template)
    before = runner.invoke(app, ["run", "-p", str(folder)])
    assert before.exit_code == 3
    assert "there is no database at" in before.stderr
    _filled(folder, template)
    for verb in ("check", "doctor", "run", "report", "verify"):
        ran = runner.invoke(app, [verb, "-p", str(folder)])
        assert ran.exit_code == 0, (verb, ran.output)
    run = json.loads(runner.invoke(app, ["show", "--json", "-p", str(folder)]).stdout)
    assert run["refusals"] == []
    assert run["claims"][0]["decision"]["met"] is True


@pytest.mark.parametrize("template", TABLES)
def test_money_without_a_source_lowers_the_grade_until_it_has_one(tmp_path: Path, template: str) -> None:
    folder = _filled(_made(tmp_path / "shop", template), template)

    def claim() -> dict[str, object]:
        ran = runner.invoke(app, ["run", "--json", "--no-record", "-p", str(folder)])
        return dict(json.loads(ran.stdout)["claims"][0])

    bare = claim()
    assert bare["grade"] != "A"
    assert "gross_margin" in str(bare["grade_reasons"])
    money = folder / "definitions" / "money.yml"
    text = re.sub(r"# (source|owner|expires):", r"\1:", money.read_text())
    text = re.sub(r"(low: \d+, high: \d+)", r"\1, source: Budget, owner: cfo@example.com, expires: 2030-12-31", text)
    money.write_text(text)
    full = claim()
    assert full["grade"] == "A", full["grade_reasons"]
    for end in ("value", "low", "high"):  # who vouches for a value changes its grade, not its amount
        assert full["net"][end] == pytest.approx(bare["net"][end], rel=1e-9)


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    (folder / "definitions").mkdir(parents=True)
    mine = folder / "definitions" / "money.yml"
    mine.write_text("# mine\n")
    made = runner.invoke(app, ["init", str(folder)])
    assert made.exit_code == 2
    assert "already holds definitions/money.yml; nothing was written" in made.stderr
    assert mine.read_text() == "# mine\n"
    assert not (folder / "payoff.yml").exists()


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    _made(tmp_path, "table")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["größe & co: #1", "null", "日本", 'a "quoted" name', "1e6"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    assert loader.load(_made(tmp_path / name, "table")).spec.project == name


def test_it_says_what_to_put_in_and_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = runner.invoke(app, ["init", "my shop"]).stdout
    assert "definitions/sources.yml: your tables, times and ids" in said
    assert "payoff check -p 'my shop'" in said
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) <= 80
    here = runner.invoke(app, ["init", "--template", "table", "--json", str(tmp_path / "b")])
    assert json.loads(here.stdout)["files"] == ["definitions/money.yml", "definitions/test.yml", "payoff.yml"]

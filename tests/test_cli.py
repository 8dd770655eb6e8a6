"""The command line as a user and a script meet it: every verb, every exit code, `--json`, and never a traceback."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import CliRunner, Result

from payoff import __version__
from payoff.cli import _emit, app
from payoff.run import Project
from tests.builders import write_project

VERBS = ("demo", "init", "check", "doctor", "run", "show", "explain", "report", "verify")
runner = CliRunner()

# Arms alternate and an outcome repeats every ten units, so that every figure is known: 2,000 units an arm.
TABLES = """
    CREATE TABLE people AS SELECT i AS user_id, CASE WHEN i % 2 = 0 THEN 'old' ELSE 'new' END AS arm,
                                  TIMESTAMP '2026-01-01' + to_seconds(i) AS seen_at FROM range(4000) AS t(i);
    CREATE TABLE orders AS SELECT user_id, seen_at + INTERVAL 1 DAY AS ordered_at, 10.0 + user_id % 7 AS amount FROM people
                           WHERE user_id % 10 IN (0, 1, 3, 5)
                           UNION ALL SELECT -1, TIMESTAMP '2026-03-01', 1.0;
"""
DEFINITIONS = """
    sources:
      people: {table: people, time: seen_at, entity: {user: user_id}}
      orders: {table: orders, time: ordered_at, entity: {user: user_id}}
    metrics:
      buyers: {kind: conversion, to: orders}
      revenue: {kind: sum, from: orders, column: amount, unit: USD}
    experiments:
      pricing:
        assignment: {source: people, variant: arm, control: old, split: {old: 0.5, new: 0.5}}
        primary: buyers
        secondary: [revenue]
    values:
      margin: {value: 0.5, low: 0.4, high: 0.6, per: USD of revenue, source: Plan, owner: cfo@example.com, expires: 2030-01-01}
    claims:
      gain:
        statement: "New prices earn more than they cost"
        evidence: [pricing]
        amount: "effect(revenue) * value(margin) * population(user)"
        less: {work: {value: 100, low: 90, high: 110, source: Plan, owner: cfo@example.com, expires: 2030-01-01}}
        decision: {threshold: "net > 0", probability: 0.9}
    reports:
      board: {audience: cfo, title: "What new prices earned", show: [claims.gain]}
"""
TODAY = ["--today", "2026-04-01"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("cli") / "shop", DEFINITIONS, TABLES)


@pytest.fixture
def shop(original: Path, tmp_path: Path) -> Path:
    """A project that has not run yet."""
    return Path(shutil.copytree(original, tmp_path / "shop"))


@pytest.fixture(scope="module")
def ran_once(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(original, tmp_path_factory.mktemp("ran") / "shop"))
    assert runner.invoke(app, ["run", "-p", str(folder), *TODAY]).exit_code == 0
    return folder


@pytest.fixture
def ran(ran_once: Path, tmp_path: Path) -> Path:
    """A project with one run in its ledger."""
    return Path(shutil.copytree(ran_once, tmp_path / "shop"))


def call(*arguments: object, code: int = 0) -> Result:
    """One verb in this process. Whatever happens, no traceback, and nothing else than JSON on stdout with --json."""
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    if "--json" in arguments:
        json.loads(result.stdout)
    if code in (2, 3, 4, 130):
        assert result.stderr.strip(), "what went wrong is said on stderr"
    return result


def said(*arguments: object, code: int = 0) -> Any:
    """What a verb prints with --json."""
    return json.loads(call(*arguments, "--json", code=code).stdout)


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "definitions" / "all.yml"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
    path.write_text(text.replace(old, new), encoding="utf-8")


def data(folder: Path, sql: str) -> None:
    with duckdb.connect(str(folder / "data.duckdb")) as connection:
        connection.execute(sql)


def subprocess_payoff(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "payoff", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


# ---------------------------------------------------------------- help


def test_help_names_every_verb_within_80_columns() -> None:
    for arguments in ([], ["--help"], ["-h"]):
        text = call(*arguments).stdout
        for verb in VERBS:
            assert re.search(rf"^  {verb} ", text, re.MULTILINE)
        assert "Exit codes: 0 fine; 1 it ran" in text
        assert "schema" not in text
        assert "..." not in text.replace("[ARGS]...", ""), "a verb's first line is cut off"
        assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_takes_the_shared_options(verb: str) -> None:
    text = call(verb, "--help").stdout
    assert "--json" in text
    assert "--quiet" in text
    assert ("--project" in text) is (verb not in ("demo", "init"))
    assert max(map(len, text.splitlines())) <= 80


def test_version() -> None:
    assert call("--version").stdout == f"payoff {__version__}\n"
    assert subprocess_payoff("--version").stdout == f"payoff {__version__}\n"


# ---------------------------------------------------------------- exit code 0 and 1


def test_run_prints_the_findings(shop: Path) -> None:
    result = call("run", "-p", shop, *TODAY)
    assert "New prices earn more than they cost" in result.stdout
    assert "95% simulation interval" in result.stdout
    assert "Evidence grade" in result.stdout
    assert result.stderr == "", "stderr is not a terminal: no progress and no notes"
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert not any(line != line.rstrip() for line in result.stdout.splitlines())


def test_run_json_is_the_contract_and_nothing_else(shop: Path) -> None:
    out = shop / "run.json"
    result = call("run", "-p", shop, "--json", "--out", out, *TODAY)
    run = json.loads(result.stdout)
    assert result.stderr == ""
    assert {"project", "results", "claims", "refusals"} <= set(run)
    buyers = run["results"][0]["estimates"][0]
    assert (buyers["metric"], buyers["contrast"], buyers["estimand"]) == ("buyers", "new vs old", "difference in means")
    assert buyers["value"] == pytest.approx(0.6 - 0.2, abs=1e-12)
    assert buyers["n"] == {"new": 2000, "old": 2000}
    assert run["today"] == "2026-04-01"
    assert json.loads(out.read_text(encoding="utf-8")) == run


def test_brief_leaves_out_what_backs_the_findings(ran: Path) -> None:
    full, brief = (call("show", "-p", ran, *option).stdout for option in ([], ["--brief"]))
    assert "What must hold" in full
    assert "What must hold" not in brief
    assert full.splitlines()[2] == brief.splitlines()[2]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('threshold: "net > 0"', 'threshold: "net > 1000000"', "claims.gain: the decision rule is not met"),
        ("split: {old: 0.5, new: 0.5}", "split: {old: 0.6, new: 0.4}", "experiments.pricing: check srm failed"),
        (
            "buyers: {kind: conversion, to: orders}",
            "buyers: {kind: conversion, to: orders, direction: down, role: guardrail, margin: 0.01}",
            "experiments.pricing: guardrail buyers breached (new vs old)",
        ),
    ],
    ids=["claim", "check", "guardrail"],
)
def test_exit_1_says_what_failed(shop: Path, old: str, new: str, why: str) -> None:
    edit(shop, old, new)
    if "guardrail" in new:
        edit(shop, "primary: buyers\n    secondary: [revenue]", "primary: revenue\n    guardrails: [buyers]")
    result = call("run", "-p", shop, *TODAY, code=1)
    assert "Failed:" in result.stdout
    assert why in result.stdout.replace("\n    ", " ")
    assert why in said("run", "-p", shop, *TODAY, code=1)["failures"]


def test_only_what_is_named_is_run(shop: Path) -> None:
    run = said("run", "pricing", "-p", shop, *TODAY)
    assert ([r["name"] for r in run["results"]], run["claims"]) == (["experiments.pricing"], [])
    run = said("run", "claims.gain", "-p", shop, *TODAY)
    assert [c["name"] for c in run["claims"]] == ["claims.gain"], "a claim brings its evidence"
    assert len(run["results"]) == 1


def test_no_record_leaves_no_trace(shop: Path) -> None:
    call("run", "--no-record", "-p", shop, *TODAY)
    assert not (shop / ".payoff").exists()


def test_the_project_is_found_upwards(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shop / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(shop / "deep" / "er")
    assert said("check")["root"] == str(shop)


# ---------------------------------------------------------------- exit code 2: the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek"], "No such command 'chek'. Did you mean 'check'"),
        (["run", "--sed", "3"], "No such option: --sed"),
        (["run", "--seed", "x"], "--seed"),
        (["run", "--seed", "-1"], "--seed"),
        (["run", "--today", "tomorrow"], "--today is a day such as 2026-11-22, which 'tomorrow' is not"),
        (["run", "--out", "no/such/place.json"], "there is no folder"),
        (
            ["run", "pricin"],
            "'pricin' is not an experiment, a claim, a programme or a journey of this project; did you mean 'pricing'?",
        ),
        (
            ["explain", "metrics.buyers"],
            "'metrics.buyers' is not an experiment, a claim, a programme or a journey of this project",
        ),
        (["show"], "no ledger"),
        (["report", "bord"], "'bord' is not a report of this project; did you mean 'board'?"),
        (["show", "--sql", "--runs"], "ask for one of them"),
        (["show", "--history"], "--history needs the NAME"),
        (["show", "pricing", "--runs"], "takes no NAME"),
        (["init", "--template", "emial"], "emial"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_exit_2_for_a_mistake_in_the_command(
    shop: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop)
    code = 3 if arguments == ["show"] else 2
    result = call(*arguments, code=code)
    assert message in result.stderr
    assert result.stdout == ""
    spoken = call(*arguments, "--json", code=code)
    assert message in json.loads(spoken.stdout)["message"]
    assert message in spoken.stderr


@pytest.mark.parametrize("verb", [v for v in VERBS if v not in ("demo", "init")])
def test_without_a_project_every_verb_says_how_to_make_one(verb: str, tmp_path: Path) -> None:
    result = call(verb, "-p", tmp_path, code=2)
    assert "no payoff.yml in" in result.stderr
    assert "'payoff init' makes a project" in result.stderr


def test_a_project_with_nothing_to_run_says_so(tmp_path: Path) -> None:
    write_project(tmp_path, "metrics: {}\n")
    for verb in ("run", "explain", "report"):
        assert "declares no experiment, no claim and no journey yet" in call(verb, "-p", tmp_path, code=2).stderr
    assert "nothing declared yet" in call("check", "-p", tmp_path).stdout


# ---------------------------------------------------------------- exit code 2: definitions

BAD: dict[str, tuple[str, str]] = {
    "yaml": ("sources:", "sources: ]"),
    "duplicate-key": ("orders: {table: orders,", "orders: {table: orders, table: orders,"),
    "unknown-section": ("reports:", "reprots:"),
    "root-only": ("reports:", "currency: EUR\nreports:"),
    "wrong-type": ("evidence: [pricing]", "evidence: pricing"),
    "no-value": ('statement: "New prices earn more than they cost"', "statement:"),
    "environment": ("kind: conversion", 'kind: "${KIND}"'),
    "unknown-key": ("primary: buyers", "primray: buyers"),
    "missing-key": ("amount: ", "unit: "),
    "unknown-kind": ("kind: sum", "kind: summ"),
    "bad-value": ("expires: 2030-01-01}\nclaims", "expires: someday}\nclaims"),
    "bad-name": ("pricing:", "pric ing:"),
    "unknown-source": ("to: orders", "to: order"),
    "unknown-metric": ("primary: buyers", "primary: buyer"),
    "unknown-entity": ("population(user)", "population(usr)"),
    "unknown-experiment": ("evidence: [pricing]", "evidence: [prices]"),
    "unknown-value": ("value(margin)", "value(margins)"),
    "unknown-arm": ("control: old", "control: older"),
    "metric-twice": ("secondary: [revenue]", "secondary: [revenue, buyers]"),
    "unmapped-entity": (
        "orders: {table: orders, time: ordered_at, entity: {user: user_id}}",
        "orders: {table: orders, time: ordered_at, entity: {basket: user_id}}",
    ),
    "unknown-claim": ("show: [claims.gain]", "show: [claims.gian]"),
    "unknown-entry": ("show: [claims.gain]", "show: [claim.gain]"),
    "bad-sql": ("column: amount", 'column: "amount +"'),
    "sql-not-allowed": ("column: amount", 'column: "(SELECT 1)"'),
}
PLACE = r"^(payoff|definitions/all)\.yml:\d+:\d+ error\[{code}\]: .+$"


@pytest.mark.parametrize("code", BAD)
def test_a_bad_definition_is_told_at_its_place(shop: Path, code: str) -> None:
    old, new = BAD[code]
    edit(shop, old, new)
    for verb in ("check", "run"):
        result = call(verb, "-p", shop, code=2)
        assert re.search(PLACE.format(code=code), result.stderr, re.MULTILINE), result.stderr
        assert re.fullmatch(r"\d+ problems? in \d files?", result.stderr.splitlines()[-1])
        assert result.stdout == ""
    problems = said("check", "-p", shop, code=2)["problems"]
    assert code in [p["code"] for p in problems]
    assert all(p["line"] > 0 and p["column"] > 0 for p in problems)


def test_all_problems_are_told_at_once_and_counted_last(shop: Path) -> None:
    edit(shop, "primary: buyers", "primary: buyer")
    edit(shop, "kind: sum", "kind: summ")
    (shop / "payoff.yml").write_text((shop / "payoff.yml").read_text() + "currency: dollars\n")
    lines = call("check", "-p", shop, code=2).stderr.splitlines()
    assert len([line for line in lines if " error[" in line]) >= 3
    assert lines[-1] == f"{len(lines) - 1} problems in 2 files"


def test_broken_files(shop: Path) -> None:
    path = shop / "definitions" / "all.yml"
    good = path.read_text()
    path.write_bytes(b"sources: \xff\n")
    assert "definitions/all.yml:1:10 error[not-utf8]" in call("check", "-p", shop, code=2).stderr
    path.write_text("- a list\n")
    assert "error[not-a-map]" in call("check", "-p", shop, code=2).stderr
    path.unlink()
    assert "error[include-missing]" in call("check", "-p", shop, code=2).stderr
    path.write_text(good)
    (shop / "payoff.yml").write_text("version: 1\nproject: small\ninclude: ['../*.yml']\n")
    assert "payoff.yml:3:" in call("check", "-p", shop, code=2).stderr


def test_warnings_are_shown_and_stop_nothing(shop: Path) -> None:
    edit(shop, "old: 0.5, new: 0.5", "old: 0.6, new: 0.6")
    warned = said("check", "-p", shop)["warnings"]
    assert [w["code"] for w in warned] == ["split-total"]
    shown = call("check", "-p", shop).stdout
    assert re.search(r"^definitions/all\.yml:\d+:\d+ warning\[[a-z-]+\]: ", shown, re.MULTILINE)
    assert "1 warning" in shown


# ---------------------------------------------------------------- exit code 3: data and connections


def test_a_missing_database(shop: Path) -> None:
    (shop / "data.duckdb").unlink()
    for verb in ("run", "check", "explain"):
        assert "connection 'main': there is no database at" in call(verb, "-p", shop, code=3).stderr
    call("check", "--definitions-only", "-p", shop)
    assert said("run", "-p", shop, code=3)["error"] == "ConnectionFailed"


def test_a_file_that_is_not_what_it_says(shop: Path) -> None:
    (shop / "data.duckdb").write_bytes(b"not a database" * 100)
    assert "cannot be opened" in call("run", "-p", shop, code=3).stderr
    (shop / "orders.parquet").write_bytes(b"PAR1 nonsense")
    edit(shop, "orders: {table: orders,", "orders: {file: orders.parquet,")
    edit(shop, "people: {table: people,", "people: {file: people.csv,")
    (shop / "people.csv").write_text("user_id,arm,seen_at\n1,old,2026-01-01\n2,new,2026-01-02\n")
    assert "orders" in call("run", "-p", shop, code=3).stderr


def test_a_missing_column_has_a_place_and_exit_3(shop: Path) -> None:
    edit(shop, "column: amount", "column: amout")
    for verb in ("check", "run", "explain"):
        told = call(verb, "-p", shop, code=3).stderr
        assert re.search(PLACE.format(code="unknown-column"), told, re.MULTILINE)
        assert "amout" in told
        assert "'amount'" in told


def test_text_in_a_number_names_source_column_and_count(shop: Path) -> None:
    data(shop, "ALTER TABLE orders ALTER amount TYPE VARCHAR; UPDATE orders SET amount = 'n/a' WHERE user_id % 100 = 0")
    told = said("run", "-p", shop, code=3)
    assert (told["error"], told["source"], told["column"], told["count"]) == ("DataError", "orders", "amount", 40)


def test_null_ids_are_left_out_and_counted(shop: Path) -> None:
    data(shop, "UPDATE people SET user_id = NULL WHERE user_id % 400 = 0")
    result = said("run", "-p", shop, *TODAY)["results"][0]
    assert 10 in result["left_out"].values()
    found = said("doctor", "-p", shop)["findings"]
    assert [(f["status"], f["count"]) for f in found if f["source"] == "people" and f["column"] == "user_id"] == [
        ("warn", 10)
    ]


# ---------------------------------------------------------------- exit code 4, interruptions, pipes


def _broken(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(self: Project, *_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Project, "run", run)


def test_exit_4_is_one_sentence_and_the_way_to_the_traceback(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _broken(monkeypatch, ZeroDivisionError("division by zero"))
    told = call("run", "-p", shop, code=4).stderr
    assert "internal error: ZeroDivisionError: division by zero" in told
    assert "PAYOFF_DEBUG=1" in told
    assert said("run", "-p", shop, code=4) == {
        "error": "InternalError",
        "message": "ZeroDivisionError: division by zero",
    }
    monkeypatch.setenv("PAYOFF_DEBUG", "1")
    result = runner.invoke(app, ["run", "-p", str(shop)])
    assert result.exit_code == 4
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError" in result.stderr


def test_ctrl_c_is_one_line_and_130(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _broken(monkeypatch, KeyboardInterrupt())
    result = call("run", "-p", shop, code=130)
    assert result.stderr == "interrupted; what was kept before is untouched\n"
    assert result.stdout == ""


def test_a_reader_that_has_seen_enough_is_no_error(ran: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "payoff", "explain", "--sql", "-p", str(ran)]
        run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert (run.returncode, run.stderr) == (141, "")


@pytest.mark.parametrize("verb", [["run", *TODAY], ["run", "--json", *TODAY], ["verify"], ["check"]])
def test_a_reader_that_leaves_at_once(verb: list[str], ran: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "payoff", *verb, "-p", str(ran)]
        run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert (run.returncode, run.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("verb", [["--help"], ["run", *TODAY], ["run", "--json", *TODAY], ["check"], ["schema"]])
def test_a_full_disk_behind_stdout_is_told(verb: list[str], ran: Path) -> None:
    place = [] if verb in (["--help"], ["schema"]) else ["-p", str(ran)]
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "payoff", *verb, *place]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (run.returncode, run.stderr) == (3, "error: the output could not be written: No space left on device\n")


def test_a_closed_stdout_is_nobody_listening(ran: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
    ]
    run = subprocess.run([*command, "-m", "payoff", "check", "-p", str(ran)], stderr=subprocess.PIPE, check=False)
    assert (run.returncode, run.stderr) == (0, b"")


def test_a_run_is_not_made_for_an_out_that_is_a_folder(shop: Path, tmp_path: Path) -> None:
    assert "is a folder; name a file in it" in call("run", "-p", shop, "--out", tmp_path, code=2).stderr
    assert not (shop / ".payoff").exists()


def test_json_on_a_terminal_drives_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"arm": "a\x9b2J\u202eb\u2028c\u2066", "name": "caf\u00e9"}
    _emit(names)
    text = capsys.readouterr().out
    assert not set(text) & set("\x9b\u202e\u2028\u2066")
    assert "caf\u00e9" in text
    assert json.loads(text) == names


# ---------------------------------------------------------------- terminals


def _stderr_of(arguments: list[str]) -> str:
    """What a verb writes to stderr when that is a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "payoff", *arguments]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        heard = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            heard += piece
        assert process.stdout is not None
        process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    return heard.decode()


def test_progress_and_notes_go_to_a_terminal_alone(shop: Path) -> None:
    heard = _stderr_of(["run", "-p", str(shop), *TODAY])
    assert "kept as run" in heard
    assert "look at columns" in heard
    assert "kept as run" not in _stderr_of(["run", "--quiet", "-p", str(shop), *TODAY])


def test_a_terminal_that_knows_ascii_alone(shop: Path) -> None:
    edit(shop, "New prices earn more than they cost", "Größere Preise: 値上げ")
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess_payoff("run", "-p", shop, *TODAY, env=plain)
    assert run.returncode == 0, run.stderr
    assert run.stdout.isascii()
    assert "Gr\\xf6\\xdfere Preise: " in run.stdout
    spoken = subprocess_payoff("run", "--json", "-p", shop, *TODAY, env=plain)
    assert json.loads(spoken.stdout)["claims"][0]["statement"] == "Größere Preise: 値上げ"


def test_names_cannot_drive_the_terminal(shop: Path) -> None:
    escape = "\x1b]0;owned\x07"
    result = call("run", f"pricing{escape}", "-p", shop, code=2)
    assert "\x1b" not in result.stderr


def test_unicode_paths_and_spaces(shop: Path, tmp_path: Path) -> None:
    folder = shop.rename(tmp_path / "Größe 値 'n'")
    assert subprocess_payoff("run", "-p", folder).returncode == 0
    for verb in ("check", "show", "report", "verify", "explain", "doctor"):
        call(verb, "-p", folder)
    assert (folder / "reports" / "latest.html").stat().st_size > 1000


# ---------------------------------------------------------------- check, doctor, explain


def test_check_counts_what_it_looked_at(shop: Path) -> None:
    found = said("check", "-p", shop)
    counted = {"sources": 2, "metrics": 2, "experiments": 1, "values": 1, "claims": 1, "reports": 1}
    assert {section: n for section, n in found["counts"].items() if n} == counted
    assert found["files"] == ["payoff.yml", "definitions/all.yml"]
    assert found["columns_checked"] is True
    assert "Checked definitions and columns: no problem." in call("check", "-p", shop).stdout.replace("\n", " ")


def test_check_finds_a_time_that_is_none(shop: Path) -> None:
    edit(shop, "time: ordered_at", "time: amount")
    assert "not a time" in call("check", "-p", shop, code=3).stderr


def test_doctor(shop: Path) -> None:
    assert said("doctor", "-p", shop)["counts"]["fail"] == 0
    data(shop, "DELETE FROM orders")
    found = said("doctor", "-p", shop, code=1)
    assert [(f["source"], f["detail"]) for f in found["findings"] if f["status"] == "fail"] == [("orders", "no rows")]
    shown = call("doctor", "-p", shop, code=1).stdout
    assert re.search(r"^orders\n  fail  rows +no rows$", shown, re.MULTILINE)
    assert shown.splitlines()[-1].endswith("1 fail.")
    (shop / "data.duckdb").unlink()
    assert said("doctor", "-p", shop, code=1)["counts"] == {"ok": 0, "warn": 0, "fail": 2}


def test_explain_shows_one_pass_over_a_source_for_all_that_reads_it(shop: Path) -> None:
    edit(
        shop,
        "values:",
        "  again:\n    assignment: {source: people, variant: arm, control: old}\n    primary: revenue\nvalues:",
    )
    plan = said("explain", "-p", shop)
    assert plan["passes"] == {"table main.people": 1, "table main.orders": 1}
    served = next(step["serves"] for step in plan["plan"] if step["step"].startswith("values of orders"))
    assert set(served) == {"pricing.buyers", "pricing.revenue", "again.revenue"}
    shown = call("explain", "-p", shop).stdout
    assert re.search(r"^table main\.orders +1 +[\d.,]+ (bytes|kB|MB)$", shown, re.MULTILINE)
    together = "Together 2 passes, [\\d.,]+ (bytes|kB|MB); asked one by one 4 passes, [\\d.,]+ (bytes|kB|MB)\\."
    assert re.search(together, shown)
    assert "SELECT" not in shown
    with_sql = call("explain", "--sql", "-p", shop).stdout
    assert "SELECT" in with_sql
    assert "\x1b" not in with_sql, "no colours into a pipe"
    assert len(said("explain", "pricing", "-p", shop)["plan"]) < len(plan["plan"])


def test_explain_counts_a_text_file_once(shop: Path) -> None:
    with duckdb.connect(str(shop / "data.duckdb")) as connection:
        connection.execute(f"COPY orders TO '{shop / 'orders.csv'}' (HEADER)")
    edit(shop, "orders: {table: orders,", "orders: {file: orders.csv,")
    assert said("explain", "-p", shop)["passes"] == {"file orders.csv": 1, "table main.people": 1}


# ---------------------------------------------------------------- show


def test_show_is_what_run_said(ran: Path) -> None:
    run = said("run", "-p", ran, *TODAY)
    assert said("show", "-p", ran) == {
        **run,
        "actor": said("show", "-p", ran)["actor"],
        "command": said("show", "-p", ran)["command"],
    }
    assert said("show", run["run_id"][:6], "-p", ran)["run_id"] == run["run_id"]


def test_show_reads_no_data(ran: Path) -> None:
    (ran / "data.duckdb").unlink()
    assert "New prices earn more than they cost" in call("show", "-p", ran).stdout


def test_show_one_figure(ran: Path) -> None:
    only = said("show", "pricing", "-p", ran)
    assert ([r["name"] for r in only["results"]], only["claims"]) == (["experiments.pricing"], [])
    claim = said("show", "claims.gain", "-p", ran)
    assert [c["name"] for c in claim["claims"]] == ["claims.gain"]
    assert [r["name"] for r in claim["results"]] == ["experiments.pricing"], "money is not shown without its evidence"
    assert "New prices earn more" in call("show", "gain", "-p", ran).stdout


def test_show_of_what_is_not_there(ran: Path) -> None:
    assert "did you mean 'pricing'?" in call("show", "pricings", "-p", ran, code=2).stderr
    assert "the ledger has no run whose id begins with 'abcdef'" in call("show", "abcdef", "-p", ran, code=2).stderr
    edit(
        ran,
        "values:",
        "  later:\n    assignment: {source: people, variant: arm, control: old}\n    primary: revenue\nvalues:",
    )
    assert (
        "no run of it is stored yet; make one with: payoff run later" in call("show", "later", "-p", ran, code=2).stderr
    )


def test_show_runs_and_history(ran: Path) -> None:
    data(ran, "UPDATE orders SET amount = amount * 2 WHERE user_id % 2 = 1")
    second = said("run", "gain", "-p", ran, *TODAY)
    runs = said("show", "--runs", "-p", ran)["runs"]
    assert (len(runs), runs[0]["run_id"]) == (2, second["run_id"])
    assert runs[0]["counts"] == {"results": 1, "claims": 1, "refusals": 0}
    assert runs[0]["command"] == f"payoff run gain -p {ran} --today 2026-04-01 --json"
    assert second["run_id"][:8] in call("show", "--runs", "-p", ran).stdout
    versions = said("show", "gain", "--history", "-p", ran)["versions"]
    nets = [v["figures"]["net.value"] for v in versions]
    assert len(nets) == 2
    assert nets[0] < nets[1] == second["claims"][0]["net"]["value"]
    shown = call("show", "gain", "--history", "-p", ran).stdout
    assert "positive, A" in shown
    assert len(re.findall(r"^20\d\d-", shown, re.MULTILINE)) == 2
    assert "--history needs the NAME" in call("show", second["run_id"], "--history", "-p", ran, code=2).stderr


def test_show_sql_is_what_was_executed(ran: Path) -> None:
    stored = said("show", "-p", ran)["results"][0]["provenance"]["sql"]
    assert said("show", "--sql", "-p", ran)["sql"] == stored
    shown = call("show", "pricing", "--sql", "-p", ran).stdout
    assert all(step["text"] in shown for step in stored)


def test_who_looked_is_noted(ran: Path) -> None:
    def looks() -> list[str]:
        with sqlite3.connect(ran / ".payoff" / "ledger.db") as connection:
            rows = connection.execute("SELECT name FROM payoff_ledger_entries WHERE kind = 'view'").fetchall()
        connection.close()
        return [row[0] for row in rows]

    assert looks() == []
    call("show", "gain", "-p", ran)
    assert looks() == ["claims.gain"]
    call("show", "-p", ran)
    assert sorted(looks()) == ["claims.gain", "claims.gain", "experiments.pricing"]
    call("show", "--runs", "-p", ran)
    assert len(looks()) == 3, "a list of runs shows no figure"


@pytest.fixture
def may_not_write(ran_once: Path) -> Iterator[Path]:
    """A project that this process may read and not write; as root, by becoming nobody for the test's time."""
    folder = Path(tempfile.mkdtemp(prefix="payoff-cli-"))
    shutil.copytree(ran_once, folder / "shop")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    call("report", "-p", ran_once, "--out", folder.with_suffix(".html"))  # nobody may not read what is imported late
    folder.with_suffix(".html").unlink()
    try:
        if root:
            os.seteuid(65534)
        yield folder / "shop"
    finally:
        if root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode | stat.S_IWUSR)
        shutil.rmtree(folder)


def test_a_folder_that_may_only_be_read(may_not_write: Path) -> None:
    assert "New prices earn more" in call("show", "-p", may_not_write).stdout
    assert said("show", "gain", "--history", "-p", may_not_write)["versions"]
    call("verify", "-p", may_not_write)
    call("run", "--no-record", "-p", may_not_write, *TODAY)
    assert "ledger" in call("run", "-p", may_not_write, *TODAY, code=3).stderr
    assert "could not be written" in call("report", "-p", may_not_write, code=3).stderr
    assert "could not be" in call("init", may_not_write / "new", code=3).stderr
    assert "could not be" in call("demo", "--out", may_not_write / "demo", code=3).stderr


# ---------------------------------------------------------------- report


def test_report_shows_the_newest_stored_run(ran: Path) -> None:
    wrote = said("report", "-p", ran)
    page = (ran / "reports" / "latest.html").read_text(encoding="utf-8")
    assert wrote["report"] == str(ran / "reports" / "latest.html")
    assert (wrote["ran"], wrote["definitions_changed"]) == (False, False)
    assert wrote["run_id"] in page
    assert "New prices earn more than they cost" in page
    assert f"It shows run {wrote['run_id'][:8]} of " in call("report", "-p", ran).stdout


def test_a_declared_report_shows_its_figures_under_its_title(ran: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "board.html"
    assert said("report", "board", "--out", out, "-p", ran)["name"] == "board"
    assert "What new prices earned" in out.read_text(encoding="utf-8")


def test_report_runs_what_no_stored_run_holds(shop: Path) -> None:
    call("run", "pricing", "-p", shop, *TODAY)
    said_so = call("report", "board", "-p", shop).stdout
    assert "No stored run holds these figures, so they were computed now." in said_so
    assert said("report", "board", "-p", shop)["ran"] is False, "that run was kept"
    assert len(said("show", "--runs", "-p", shop)["runs"]) == 2


def test_report_says_that_the_definitions_have_changed(ran: Path) -> None:
    edit(ran, "value: 0.5, low: 0.4", "value: 0.5, low: 0.3")
    assert "The definitions have changed since" in call("report", "-p", ran).stdout
    assert said("report", "-p", ran)["definitions_changed"] is True


def test_report_where_nothing_can_be_written(ran: Path) -> None:
    (ran / "reports").write_text("a file in the way")
    assert "could not be written" in call("report", "-p", ran, code=3).stderr


# ---------------------------------------------------------------- verify


def test_verify_finds_the_same_figures(ran: Path) -> None:
    found = said("verify", "-p", ran)
    assert found["equal"] is True
    assert found["chain"]["ok"] is True
    assert found["context"] == []
    assert [(f["name"], f["equal"]) for f in found["figures"]] == [("experiments.pricing", True), ("claims.gain", True)]
    assert [f["name"] for f in said("verify", "gain", "-p", ran)["figures"]] == ["claims.gain"]
    assert said("verify", found["run_id"][:7], "-p", ran)["equal"] is True
    assert "What changed around them: nothing." in call("verify", "-p", ran).stdout
    assert len(said("show", "--runs", "-p", ran)["runs"]) == 1, "verifying records nothing"


def test_verify_repeats_the_day_and_the_seed(shop: Path) -> None:
    call("run", "--seed", 5, "--today", "2031-01-01", "-p", shop)
    assert said("show", "-p", shop)["claims"][0]["grade"] != "A", "its values have expired by then"
    assert said("verify", "-p", shop)["equal"] is True


def test_verify_finds_changed_data(ran: Path) -> None:
    data(
        ran, "UPDATE orders SET amount = amount + 1 WHERE user_id = 11; INSERT INTO orders VALUES (2, '2026-01-02', 5)"
    )
    found = said("verify", "-p", ran, code=1)
    assert found["equal"] is False
    assert any(sentence.startswith("the data changed") for sentence in found["context"])
    shown = call("verify", "-p", ran, code=1).stdout
    assert re.search(r"^  different +experiments\.pricing$", shown, re.MULTILINE)
    assert "estimates[0].value: 0.39" in shown


def test_verify_finds_changed_definitions(ran: Path) -> None:
    edit(ran, "value: 0.5, low: 0.4", "value: 0.55, low: 0.4")
    found = said("verify", "-p", ran, code=1)
    assert [f["equal"] for f in found["figures"]] == [True, False]
    assert any(sentence.startswith("the definition changed") for sentence in found["context"])
    edit(ran, "pricing:", "prices:")
    edit(ran, "evidence: [pricing]", "evidence: [prices]")
    gone = said("verify", "pricing", "-p", ran, code=1)["figures"][0]["differences"]
    assert (gone[0]["old"], gone[0]["new"]) == ("a result", "(absent)")


def test_verify_finds_a_rewritten_ledger(ran: Path) -> None:
    connection = sqlite3.connect(ran / ".payoff" / "ledger.db")
    connection.execute("DROP TRIGGER payoff_ledger_no_update")
    connection.execute(
        "UPDATE payoff_ledger_entries SET payload = replace(payload, '0.4', '0.9') WHERE kind = 'result'"
    )
    connection.commit()
    connection.close()
    found = said("verify", "-p", ran, code=1)
    assert found["chain"]["ok"] is False
    assert found["figures"] == []
    assert "is BROKEN" in call("verify", "-p", ran, code=1).stdout
    assert "was changed by something other than Payoff" in call("show", "-p", ran, code=3).stderr


def test_a_refusal_is_shown_and_verified(shop: Path) -> None:
    edit(shop, "control: old, split: {old: 0.5, new: 0.5}", "control: oldest")
    run = said("run", "-p", shop, *TODAY, code=1)
    assert {r["name"] for r in run["refusals"]} == {"experiments.pricing", "claims.gain"}
    assert "'oldest' has no units" in call("show", "pricing", "-p", shop).stdout.replace("\n", " ")
    assert said("verify", "-p", shop)["equal"] is True
    call("report", "board", "-p", shop)


# ---------------------------------------------------------------- the demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo") / "demo"
    return out, call("demo", "--customers", 3000, "--out", out).stdout


def test_the_demo_prints_findings_report_and_truth_apart(demo: tuple[Path, str]) -> None:
    out, text = demo
    assert "CLAIMS" in text
    assert str(out / "reports" / "personalisation_quarterly.html") in text
    before, _, after = text.partition("What only a simulation knows")
    assert "truth" not in before.lower().replace(str(out).lower(), "")
    assert re.search(r"The simulated truth lies inside \d of 9 intervals of 95%", after)
    assert "Last-touch attribution would have booked" in after
    assert max(len(line) for line in text.splitlines() if str(out) not in line) <= 80
    assert (out / "reports" / "personalisation_quarterly.html").stat().st_size > 10_000


def test_the_truth_is_no_part_of_the_project(demo: tuple[Path, str], tmp_path: Path) -> None:
    out = demo[0]
    assert (out.with_name("demo-truth") / "truth.json").is_file()
    assert not list(out.rglob("*truth*"))
    alone = Path(shutil.copytree(out, tmp_path / "alone"))
    assert said("verify", "-p", alone)["equal"] is True, "the project needs nothing that lies outside"


def test_the_demo_twice(demo: tuple[Path, str]) -> None:
    out = demo[0]
    before = len(said("show", "--runs", "-p", out)["runs"])
    found = said("demo", "--customers", 3000, "--seed", 8, "--out", out)
    assert len(said("show", "--runs", "-p", out)["runs"]) == before + 1, "the ledger of earlier demos is kept"
    compared = found["against_truth"]
    assert compared["of"] == len(compared["intervals"]) == 9
    assert compared["inside"] == sum(row["low"] <= row["truth"] <= row["high"] for row in compared["intervals"])
    assert compared["left_out"] == ["revenue_per_email"]
    assert found["run"]["results"]
    kept = said("demo", "--keep", "--out", out)
    assert kept["run"]["data_fingerprint"] == found["run"]["data_fingerprint"]


def test_the_demo_overwrites_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "payoff.yml").write_text("mine")
    assert "is not a demo, so it is left alone" in call("demo", "--out", tmp_path / "mine", code=2).stderr
    assert (tmp_path / "mine" / "payoff.yml").read_text() == "mine"
    assert "there is no demo in" in call("demo", "--keep", "--out", tmp_path / "none", code=2).stderr
    (tmp_path / "d-truth").mkdir()
    (tmp_path / "d-truth" / "letters").write_text("mine")
    assert "holds other things" in call("demo", "--out", tmp_path / "d", code=2).stderr
    assert "from 100 to 999,999 customers" in call("demo", "--customers", 5, "--out", tmp_path / "e", code=2).stderr


# ---------------------------------------------------------------- completion


def complete(folder: Path, *words: str) -> list[str]:
    asked = {
        "_PAYOFF_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("payoff", *words)),
        "COMP_CWORD": str(len(words)),
    }
    run = subprocess_payoff(cwd=folder, env={**os.environ, **asked})
    assert run.stderr == ""
    return run.stdout.split()


def test_completion_knows_verbs_and_names(shop: Path) -> None:
    assert complete(shop, "ver") == ["verify"]
    assert complete(shop, "run", "") == ["pricing", "gain"]
    assert complete(shop, "show", "ga") == ["gain"]
    assert complete(shop, "run", "claims.") == ["claims.gain"]
    assert complete(shop, "report", "") == ["board"]
    assert complete(shop.parent, "run", "-p", "shop", "pri") == ["pricing"]
    assert complete(shop.parent, "run", "") == []
    (shop / "definitions" / "broken.yml").write_text("a: [")
    assert complete(shop, "run", "pri") == ["pricing"], "a broken file hides its own names only"


def test_completion_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = subprocess_payoff("--show-completion", "bash")
    assert shown.returncode == 0
    assert "_PAYOFF_COMPLETE" in shown.stdout

"""The loader: every mistake is reported, at its place, in plain words; what is valid means what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payoff.errors import DefinitionError, Problem, UsageError
from payoff.spec import nouns, yamlfile
from payoff.spec.loader import MetricUse, find_project, json_schema, load
from tests.spec import test_journeys

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "project.md"

ROOT = """\
version: 1
project: shop
defaults: {entity: user, window: 14d}
connections:
  main: {engine: duckdb, path: shop.duckdb}
include: [defs/*.yml]
"""

EMAIL = """\
sources:
  sends:  {table: sends, time: sent_at, entity: {user: user_id}}
  opens:  {table: opens, time: opened_at, entity: {user: user_id}, links: {sends: send_id}}
  clicks: {table: clicks, time: clicked_at, entity: {user: user_id}, links: {sends: send_id}}
  orders: {table: orders, time: ordered_at, entity: {user: user_id}}
metrics:
  open_rate: {kind: conversion, to: opens, role: vanity, reason: mail clients open by themselves}
  click_rate: {kind: conversion, to: clicks}
  order_rate: {kind: conversion, to: orders, after: clicks, window: 24h}
  revenue: {kind: sum, from: orders, column: amount, window: 24h, cap: p99}
  unsubscribed: {kind: conversion, to: {source: sends, where: unsubscribed}, direction: down, role: guardrail, margin: 0.001}
experiments:
  subject:
    assignment: {source: sends, variant: arm, control: generic, split: {generic: 0.5, first_name: 0.5}}
    primary: click_rate
    secondary: [open_rate, order_rate, revenue]
    guardrails: [unsubscribed]
    stop: {rule: fixed, at: 2026-12-15, mde: 0.01}
"""

HOLDOUT = """\
sources:
  exposures: {table: exposures, time: t, entity: {user: any_id}}
metrics:
  margin: {kind: sum, from: orders, column: amount * margin_rate, window: 90d, role: north_star, owner: cfo@shop.example}
experiments:
  global_holdout:
    type: holdout
    assignment: {source: exposures, variant: arm, control: off, split: {off: 0.1, on: 0.9}}
    starts: 2026-07-01
    primary: margin
    guardrails: [unsubscribed]
values:
  euro: {value: 1, low: 0.9, high: 1.1, per: euro, source: accounts, owner: cfo@shop.example, expires: 2027-03-31}
claims:
  personalisation:
    statement: What personalisation earns as a whole
    evidence: [global_holdout]
    amount: effect(margin) * value(euro) * population(user, 365d)
    less: {licence: 400000, team: {value: 900000, low: 800000, high: 1000000}}
    decision: {threshold: roi > 0, probability: 0.8}
    sensitivity: [holdout_contamination]
reports:
  board: {audience: cfo, show: [claims.personalisation, experiments.global_holdout, metrics.margin]}
"""

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a project: keyword ``a=text`` is defs/a.yml."""

    def write(root: str = ROOT, **files: str) -> Path:
        (tmp_path / "payoff.yml").write_text(root, encoding="utf-8")
        (tmp_path / "defs").mkdir(exist_ok=True)
        for name, text in files.items():
            (tmp_path / "defs" / f"{name}.yml").write_text(text, encoding="utf-8")
        return tmp_path

    return write


def problems(path: Path) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        load(path)
    return [str(problem) for problem in caught.value.problems]


# ---------------------------------------------------------------- whole projects


def test_a_project_in_several_files_is_one_spec(make: Make) -> None:
    root = make(email=EMAIL, holdout=HOLDOUT)
    project = load(root)
    assert project.files == ("payoff.yml", "defs/email.yml", "defs/holdout.yml")
    assert project.warnings == ()
    spec = project.spec
    assert set(spec.sources) == {"sends", "opens", "clicks", "orders", "exposures"}
    assert spec.experiments["subject"].assignment.split == {"generic": 0.5, "first_name": 0.5}
    assert spec.experiments["global_holdout"].assignment.control_arm == "off"
    assert spec.claims["personalisation"].less["licence"].value == 400_000
    assert str(spec.values["euro"].expires) == "2027-03-31"
    revenue, order_rate = spec.metrics["revenue"], spec.metrics["order_rate"]
    assert isinstance(revenue, nouns.SumMetric)
    assert revenue.cap == nouns.Percentile(percentile=99)
    assert isinstance(order_rate, nouns.ConversionMetric)
    assert order_rate.after == nouns.Anchor(source="clicks")
    assert project.positions.of("metrics", "click_rate", "to") == ("defs/email.yml", 8, 38)


def test_a_project_is_found_from_below_and_from_its_files(make: Make) -> None:
    root = make(email=EMAIL)
    deep = root / "notebooks" / "2026"
    deep.mkdir(parents=True)
    assert find_project(deep) == find_project(root / "defs" / "email.yml") == find_project(root) == root
    assert load(deep).spec == load(root / "payoff.yml").spec == load(str(root)).spec


def test_without_a_project_the_message_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="payoff init"):
        load(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        load(tmp_path / "nowhere")
    (tmp_path / "payoff.yaml").write_text("version: 1")
    with pytest.raises(UsageError, match=r"must be called payoff\.yml"):
        load(tmp_path)


def test_a_table_of_units_needs_neither_time_nor_id(make: Make) -> None:
    project = load(
        make(
            """
version: 1
project: mail
sources: {customers: {file: hillstrom.csv, one_row_per: customer}}
metrics:
  visit: {kind: mean, from: customers, column: visit}
  spend: {kind: mean, from: customers, column: spend, role: north_star}
experiments:
  email: {assignment: {source: customers, variant: segment, control: "No E-Mail"}}
"""
        )
    )
    assert project.entity_of("email") == "customer"
    assert project.unit_column("customers", "customer") is None
    assert project.metrics_of("email") == [
        MetricUse("visit", "secondary", "secondary"),
        MetricUse("spend", "secondary", "north_star"),
    ]
    assert project.window_of("spend", "email") is None
    assert project.warnings == ()


# ---------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("written", "arm"),
    [
        ("off", "off"),
        ("NO", "NO"),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("2026-12-15", "2026-12-15"),
        ("007", "007"),
        ("1_000", "1_000"),
        ("0", "0"),
        ("12", "12"),
        ("true", "true"),
        ("True", "true"),
        ('"true"', "true"),
        ('"1e6"', "1e6"),
        ("'a: b'", "a: b"),
        ('"\\ud83d\\ude00"', "😀"),
    ],
)
def test_what_looks_like_text_stays_text(make: Make, written: str, arm: str) -> None:
    project = load(make(a=EMAIL.replace("generic", written)))
    assignment = project.spec.experiments["subject"].assignment
    assert assignment.control == arm
    assert assignment.split == {arm: 0.5, "first_name": 0.5}


def test_numbers_are_those_of_yaml_1_2(make: Make) -> None:
    project = load(
        make(a="values: {a: {value: 1e6}, b: {value: -2.5E-1}, c: {value: 0x10}, d: {value: +3}, e: {value: .5}}")
    )
    assert [v.value for v in project.spec.values.values()] == [1e6, -0.25, 16, 3, 0.5]


@pytest.mark.parametrize("written", ["'1'", "1_000", "1:30", "010", "true", "[1]", "{a: 1}", ".inf", ".nan", "1e999"])
def test_what_is_not_a_number_is_refused_as_one(make: Make, written: str) -> None:
    found = problems(make(a=f"values:\n  a: {{value: {written}}}\n"))
    assert len(found) == 1
    assert re.match(r"defs/a\.yml:2:14 error\[(wrong-type|bad-value)\]: 'value' must be a number", found[0])


SYNTAX = {
    "metrics:\n\ta: 1": "2:1 error[yaml]: a tab stands here; YAML is indented with spaces",
    "a: b: c": "1:5 error[yaml]: a second ': ' on one line",
    "a: `x`": "1:4 error[yaml]: text cannot start with ` here; put it in quotes",
    "a: @x": "1:4 error[yaml]: text cannot start with @ here",
    'a: "x': "1:4 error[yaml]: a quotation starts here and never ends",
    "a: [1": "1:6 error[yaml]: a comma or a closing bracket is missing before this",
    "a: {p: ${X}}": '1:9 error[yaml]: ${NAME} needs quotes here: "${NAME}"',
    "a:\n  b: 1\n c: 2": "3:2 error[yaml]: this does not fit the lines above",
    "a: *b": "1:4 error[yaml]: *b stands for nothing written before it",
    "a: &x [*x]": "1:8 error[yaml]: *x stands for nothing written before it (or holds itself)",
    "a: !!python/object/apply:os.system [ls]": "1:4 error[yaml]: the tag 'python/object/apply:os.system' is not read",
    "a: !mine x": "1:4 error[yaml]: the tag '!mine' is not read",
    "a: !!str 5": "1:4 error[yaml]: the tag 'str' is not read",
    "x: &x {a: 1}\ny:\n  <<: *x": "3:3 error[yaml]: merge keys (<<) are not part of YAML 1.2",
    "a: 1\n---\nb: 2": "2:1 error[yaml]: a file holds one document",
    "%YAML 1.1\n---\na: 1": "2:1 error[yaml]: files are read as YAML 1.2",
    "[a]: 1": "1:1 error[yaml]: a key is plain text",
    "a: {{ x }}": "1:5 error[yaml]: a key is plain text",
    ": 1": "1:1 error[yaml]: a key is missing",
    'a: "\\U00110000"': "error[yaml]: not valid YAML after this: a backslash escape names no character",
    'a: "\\ud800"': "1:4 error[yaml]: a backslash escape names half a character",
    'a: "\\0"': "1:4 error[yaml]: a backslash escape names a control character",
    "a: \x07": "1:4 error[yaml]: a control character stands here",
    "": "1:1 error[empty]: the file is empty",
    "# nothing\n": "error[empty]: the file is empty",
    "---\n": "error[empty]: the file is empty",
    "- a": "1:1 error[not-a-map]: a definition file is a map of sections",
    "just text": "1:1 error[not-a-map]: a definition file is a map of sections",
    "a: 1\nb: 2\na: 3": "3:1 error[duplicate-key]: 'a' is already a key here, in line 1",
    '1: x\n"1": y': "2:1 error[duplicate-key]: '1' is already a key here",
    "a: " + "[" * 30 + "]" * 30: "1:23 error[too-deep]: maps and lists are more than 20 deep here",
    "a: " + "x" * 1_000_001: "1:1 error[too-large]: the file is larger than 1 MB",
    "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + "\n".join(
        f"{y}: &{y} [{','.join([f'*{x}'] * 10)}]" for x, y in ["ab", "bc", "cd", "de", "ef"]
    ): "error[too-large]: the file holds more than 50,000 values",
}


@pytest.mark.parametrize("text", SYNTAX, ids=lambda text: repr(text[:24]))
def test_what_is_not_yaml_is_a_problem_at_its_place(make: Make, text: str) -> None:
    found = [p for p in problems(make(a=text)) if "unknown-section" not in p]
    assert len(found) == 1
    assert SYNTAX[text] in found[0]
    assert found[0].startswith("defs/a.yml:")


def test_a_file_that_is_not_utf8_or_cannot_be_read(make: Make) -> None:
    root = make(a="values: {}")
    (root / "defs" / "a.yml").write_bytes("values:\n  # caf\u00e9".encode("latin-1"))
    assert problems(root) == [
        "defs/a.yml:2:8 error[not-utf8]: the file is not UTF-8 text from here on; save it as UTF-8"
    ]
    missing = yamlfile.read(root / "gone.yml", "gone.yml")
    assert [str(p) for p in missing.problems] == [
        "gone.yml:1:1 error[unreadable]: the file cannot be read: No such file or directory"
    ]


def test_a_byte_order_mark_and_windows_lines_are_no_mistake(make: Make) -> None:
    root = make(email=EMAIL)
    plain = load(root).spec
    (root / "defs" / "email.yml").write_bytes(b"\xef\xbb\xbf" + EMAIL.replace("\n", "\r\n").encode())
    assert load(root).spec == plain


def test_aliases_stand_for_what_they_name(make: Make) -> None:
    text = "values:\n  a: &a {value: 2, owner: me}\n  b: *a\n"
    assert load(make(a=text)).spec.values["b"].value == 2
    assert problems(make(a=text.replace("value: 2", "value: two"))) == [
        "defs/a.yml:2:17 error[wrong-type]: 'value' must be a number, not the text 'two'",
        "defs/a.yml:3:3 error[wrong-type]: 'value' must be a number, not the text 'two'",
    ]


def test_a_file_that_cannot_be_read_hides_no_problem_of_the_others_and_makes_none(make: Make) -> None:
    found = problems(make(email=EMAIL.replace("kind: sum", "kind: summ"), other="metrics: ["))
    assert [p.split(" ")[0] for p in found] == ["defs/email.yml:10:19", "defs/other.yml:1:11"]
    # 'nowhere' might be declared in the file that cannot be read
    assert len(problems(make(email=EMAIL.replace("to: clicks", "to: nowhere"), other="metrics: ["))) == 1


# ---------------------------------------------------------------- files


def test_include_finds_files_and_says_which_pattern_finds_none(make: Make) -> None:
    root = make(ROOT.replace("defs/*.yml", "defs/*.yml, more/**/*.yml, payoff.yml"), email=EMAIL)
    (root / "more" / "deep").mkdir(parents=True)
    (root / "more" / ".hidden").mkdir()
    (root / "more" / ".hidden" / "x.yml").write_text("nonsense")
    assert problems(root) == ["payoff.yml:6:23 error[include-missing]: no file matches 'more/**/*.yml'"]
    (root / "more" / "deep" / "values.yml").write_text("values: {v: {value: 1}}")
    assert load(root).files == ("payoff.yml", "defs/email.yml", "more/deep/values.yml")


@pytest.mark.parametrize("pattern", ["../*.yml", "/etc/*.yml", "defs/../../x.yml", "link/*.yml"])
def test_include_never_leaves_the_project(make: Make, tmp_path: Path, pattern: str) -> None:
    inside = tmp_path / "project"
    inside.mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "x.yml").write_text("values: {}")
    (tmp_path / "x.yml").write_text("values: {}")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "payoff.yml").write_text(f"version: 1\nproject: p\ninclude: [{pattern}]\n")
    (found,) = problems(inside)
    assert "payoff.yml:3:11 error[include-outside]" in found


@pytest.mark.parametrize("pattern", ['""', "a**b/*.yml", '"."', "x" * 5000, '"[z-a].yml"'])
def test_a_senseless_pattern_is_a_problem(make: Make, pattern: str) -> None:
    (found,) = problems(make(ROOT.replace("defs/*.yml", pattern)))
    assert re.match(r"payoff\.yml:6:11 error\[(bad-value|include-missing)\]", found)


def test_a_name_declared_in_two_files_names_both(make: Make) -> None:
    found = problems(make(a="values:\n  v: {value: 1}\n", b="values:\n  v: {value: 2}\n  w: {value: x}\n"))
    assert found == [
        "defs/b.yml:2:3 error[duplicate-name]: 'v' is already declared under 'values', in defs/a.yml:2",
        "defs/b.yml:3:14 error[wrong-type]: 'value' must be a number, not the text 'x'",
    ]


def test_what_belongs_in_the_root_file_is_refused_elsewhere(make: Make) -> None:
    found = problems(make(a="currency: EUR\nledger: x\nconnections: {}\n"))
    assert found == [
        f"defs/a.yml:{line}:1 error[root-only]: '{key}' belongs in payoff.yml only"
        for line, key in enumerate(["currency", "ledger", "connections"], 1)
    ]


@pytest.mark.parametrize(
    "section",
    ["studies", "rewards", "policies", "models", "tree", "trees"],
)
def test_sections_of_later_work_are_refused_as_not_known(make: Make, section: str) -> None:
    (found,) = problems(make(email=EMAIL, a=f"{section}: {{x: {{}}}}"))
    assert found.startswith(
        f"defs/a.yml:1:1 error[unknown-section]: '{section}' is not a section known in this version"
    )


def test_a_misspelt_section_is_recognised(make: Make) -> None:
    (found,) = problems(make(a="valeus: {}"))
    assert found.endswith("'valeus' is not a section known in this version; did you mean 'values'?")


# ---------------------------------------------------------------- environment and secrets


def test_the_environment_is_read_in_connections_only(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ROOT.replace("shop.duckdb", '"${SHOP_DIR}/${SHOP_DB}"').replace(
        "engine: duckdb", "threads: ${N}, engine: duckdb"
    )
    monkeypatch.delenv("SHOP_DIR", raising=False)
    monkeypatch.delenv("SHOP_DB", raising=False)
    root = root.replace("${N}", '"${N}"')
    monkeypatch.setenv("N", "4")
    assert problems(make(root, email=EMAIL)) == [
        "payoff.yml:5:49 error[environment]: the environment variable SHOP_DB is not set",
        "payoff.yml:5:49 error[environment]: the environment variable SHOP_DIR is not set",
    ]
    monkeypatch.setenv("SHOP_DIR", "/data")
    monkeypatch.setenv("SHOP_DB", "${SHOP_DIR}.duckdb")
    connection = load(make(root, email=EMAIL)).spec.connections["main"]
    assert isinstance(connection, nouns.DuckDBConnection)
    assert (connection.path, connection.threads) == ("/data/${SHOP_DIR}.duckdb", 4)
    found = problems(make(root, email=EMAIL.replace("table: orders", 'table: "${SHOP_DB}"')))
    assert found == [
        "defs/email.yml:5:19 error[environment]: ${...} is expanded under connections only; elsewhere write the value itself"
    ]
    (found_name,) = problems(make(root.replace("{SHOP_DB}", "{1}"), email=EMAIL))
    assert found_name == "payoff.yml:5:49 error[environment]: an environment variable is written ${NAME}"


def test_secrets_are_never_repeated(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_SECRET", "hunter2")
    for wrong in (
        'engine: "${SHOP_SECRET}"',
        'engine: duckdb, memory_limit: "${SHOP_SECRET}"',
        'engine: duckdb, threads: "${SHOP_SECRET}"',
        'engine: duckdb, read_only: "${SHOP_SECRET}"',
        'engine: sqlite, url: {a: "${SHOP_SECRET}"}',
        'engine: postgres, url: "${SHOP_SECRET}", path: "${SHOP_SECRET}"',
        "engine: duckdb, memory_limit: hunter2",
        "engine: duckdb, threads: hunter2",
    ):
        found = problems(make(ROOT.replace("engine: duckdb, path: shop.duckdb", wrong), email=EMAIL))
        assert "hunter2" not in "\n".join(found)
        assert all(problem.startswith("payoff.yml:5:") for problem in found)
    root = ROOT.replace("defs/*.yml]", "defs/*.yml]\nledger: results").replace(
        "include:", '  results: {engine: postgres, url: "postgresql://u:${SHOP_SECRET}@host/db"}\ninclude:'
    )
    project = load(make(root, email=EMAIL))
    kept = project.spec.connections["results"]
    assert isinstance(kept, nouns.PostgresConnection | nouns.SQLiteConnection)
    assert kept.url == "postgresql://u:hunter2@host/db"
    assert "hunter2" not in repr(project)
    monkeypatch.setenv("SHOP_SECRET", "swordfish")
    assert load(make(root, email=EMAIL)).definition_hash == project.definition_hash


# ---------------------------------------------------------------- the definition hash


def test_the_hash_is_of_what_is_declared_not_of_how_it_is_written(make: Make) -> None:
    first = load(make(email=EMAIL, holdout=HOLDOUT)).definition_hash
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    lines = EMAIL.splitlines()
    again = "# a comment\n" + "\n".join(reversed(lines[1:5])).join(["sources:\n", "\n"]) + "\n".join(lines[5:])
    assert again != EMAIL
    assert load(make(email=again, holdout=HOLDOUT)).definition_hash == first
    spelt = EMAIL.replace("window: 24h", "window: 1d").replace("to: clicks", "to: {source: clicks}")
    assert load(make(email=spelt, holdout=HOLDOUT)).definition_hash == first
    moved = ROOT.replace("defs/*.yml", "defs/email.yml, defs/holdout.yml") + EMAIL
    assert load(make(moved, email=HOLDOUT, holdout="values: {}")).definition_hash == first


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("window: 24h", "window: 25h"),
        ("cap: p99", "cap: p98"),
        ("control: generic", "control: first_name"),
        ("secondary: [open_rate, order_rate", "secondary: [order_rate, open_rate"),
        ("where: unsubscribed", "where: not unsubscribed"),
        ("generic: 0.5, first_name: 0.5", "generic: 0.4, first_name: 0.6"),
    ],
)
def test_the_hash_changes_with_any_declaration(make: Make, old: str, new: str) -> None:
    first = load(make(email=EMAIL)).definition_hash
    assert EMAIL.replace(old, new) != EMAIL
    assert load(make(email=EMAIL.replace(old, new))).definition_hash != first


# ---------------------------------------------------------------- mistakes, one at a time

CASES: list[tuple[str, str, str]] = [
    # what of the two files is replaced, with what, and the problems
    ("column: amount, window", "window", "email.yml:10:3 error[missing-key]: 'column' is missing: a sum metric needs it"),
    ("column: amount, window", "colum: amount, window", "email.yml:10:38 error[unknown-key]: 'colum' is not a key of a sum metric in this version; did you mean 'column'?"),
    ("column: amount, window", "column: , window", "email.yml:10:38 error[no-value]: 'column' has no value; write one or delete it"),
    ("revenue: {kind: sum", "revenue: {kind: clv", "email.yml:10:19 error[unknown-kind]: 'clv' is not a kind of metric known in this version; it is count, sum, mean, rate, conversion, retention, quantile, nps, csat or ratio"),
    ("revenue: {kind: sum", "revenue: {kind: 3", "error[unknown-kind]: '3' is not a kind of metric"),
    ("kind: sum, from: orders, column: amount, w", "from: orders, column: amount, w", "email.yml:10:3 error[missing-key]: 'kind' is missing: a metric names one of count, sum,"),
    ("window: 24h, cap: p99", "window: 24", "error[bad-value]: 'window': a duration is a number and one of s, m, h, d, w, such as 48h or 14d"),
    ("window: 24h, cap: p99", "window: 0d", "error[bad-value]: 'window': a duration is longer than zero"),
    ("window: 24h, cap: p99", "window: 99999999999999d", "error[bad-value]: 'window': a duration is longer than zero and at most 100 years"),
    ("cap: p99", "cap: high", "error[bad-value]: 'cap': a cap is a number, a percentile such as p99, or {percentile: 99, of: nonzero}"),
    ("cap: p99", "cap: p10", "error[bad-value]: 'cap' must be more than 50"),
    ("cap: p99", "cap: {percentile: 99, over: all}", "error[unknown-key]: 'over' is not a key of 'cap' of a sum metric in this version; its keys are percentile and of"),
    ("cap: p99", "cap: -1", "error[bad-value]: 'cap' must be more than 0"),
    ("margin: 0.001", "margin: '0.001'", "error[wrong-type]: 'margin' must be a number, not the text '0.001'"),
    ("direction: down", "direction: dwn", "error[bad-value]: 'direction' must be up or down, not the text 'dwn'; did you mean 'down'?"),
    ("role: vanity", "role: secondary", "email.yml:7:3 error[bad-value]: reason says why a metric is vanity; this one has another role"),
    ("to: clicks", "to: click", "email.yml:8:34 error[unknown-source]: 'click' is not a source; did you mean 'clicks'?"),
    ("source: sends, where", "source: sent, where", "error[unknown-source]: 'sent' is not a source"),
    ("after: clicks", "after: {source: klicks, within: 2d}", "error[unknown-source]: 'klicks' is not a source; did you mean 'clicks'?"),
    ("from: orders, column: amount,", "from: ordrs, column: amount,", "error[unknown-source]: 'ordrs' is not a source; did you mean 'orders'?"),
    ("links: {sends: send_id}}\n  clicks", "links: {send: send_id}}\n  clicks", "email.yml:3:76 error[unknown-source]: 'send' is not a source; did you mean 'sends'?"),
    ("{table: sends,", "{table: sends, sql: SELECT 1,", "email.yml:2:3 error[bad-value]: a source has exactly one of table, file, sql or sessions"),
    ("{table: orders,", "{file: orders.csv, connection: main,", "error[wrong-connection]: 'main' is a duckdb connection, and files are read without one"),
    ("table: orders,", "table: [orders],", "error[wrong-type]: 'table' must be text, not a list"),
    ("{table: orders, time: ordered_at, entity: {user: user_id}}", "orders", "email.yml:5:11 error[wrong-type]: a source is a map, such as orders: {table: orders,"),
    ("table: orders,", "table: orders, connection: mian,", "error[unknown-connection]: 'mian' is not a connection; did you mean 'main'?"),
    ("table: orders,", "table: orders, timezone: Berlin,", "error[bad-value]: 'Berlin' is not a time zone name such as UTC or Europe/Berlin"),
    ("time: ordered_at, ", "", "email.yml:10:62 error[no-time]: source 'orders' has no time, so a window cannot be applied to its rows; add time: COLUMN to it"),
    ("time: clicked_at, ", "", "email.yml:9:46 error[no-time]: source 'clicks' has no time, so what came after what is not known"),
    ("time: sent_at, ", "", "email.yml:14:26 error[no-time]: rows of the assignment have no time, so a unit's first exposure is not known"),
    ("ordered_at, entity: {user: user_id}", "ordered_at, entity: {shop: shop_id}", "error[unmapped-entity]: 'order_rate' cannot be read here: source 'orders' does not say which column holds 'user'; add entity: {user: COLUMN} to it"),
    ("sent_at, entity: {user: user_id}", "sent_at", "email.yml:14:26 error[no-entity]: the assignment's source does not say which column holds the unit; add entity: {NAME: COLUMN} to it"),
    ("sent_at, entity: {user: user_id}", "sent_at, entity: {a: x, b: y}", "error[no-entity]: the assignment's rows have several entities (a, b); add entity: to the experiment"),
    ("{table: orders, time: ordered_at, entity: {user: user_id}}", "{table: orders, time: ordered_at, one_row_per: user}", "error[cannot-join]: 'revenue' cannot be read here: rows of 'orders' and 'sends' cannot be joined: 'orders' has one row per user but no id; add id: COLUMN to it"),
    ("primary: click_rate", "primary: click_rte", "email.yml:15:14 error[unknown-metric]: 'click_rte' is not a metric; did you mean 'click_rate'?"),
    ("[open_rate, order_rate", "[open_rate, ordr_rate", "email.yml:16:28 error[unknown-metric]: 'ordr_rate' is not a metric; did you mean 'order_rate'?"),
    ("guardrails: [unsubscribed]\n    stop", "guardrails: [unsubscribed, click_rate]\n    stop", "error[metric-twice]: 'click_rate' is listed twice (primary and guardrails); name it once"),
    ("[open_rate, order_rate", "[open_rate, open_rate", "error[metric-twice]: 'open_rate' is listed twice (secondary); name it once"),
    ("control: generic", "control: genric", "email.yml:14:56 error[unknown-arm]: the control arm 'genric' is not in split (generic, first_name); did you mean 'generic'?"),
    ("control: generic", "control: 1.5", "error[wrong-type]: 'control' must be text, not 1.5 (put it in quotes)"),
    ("control: generic, ", "", "email.yml:14:5 error[missing-key]: 'control' is missing: 'assignment' of an experiment needs it"),
    (", first_name: 0.5", "", "error[bad-value]: 'split' must name at least two"),
    ("generic: 0.5", "generic: 0", "error[bad-value]: 'generic' must be more than 0"),
    ("{source: sends, variant", "{source: send, variant", "email.yml:14:26 error[unknown-source]: 'send' is not a source; did you mean 'sends'?"),
    ("{source: sends, variant", "{source: sends, time: t, variant", "email.yml:14:17 error[bad-value]: 'assignment': time belongs to the source 'sends', not to the assignment that names it"),
    ("{source: sends, variant", "{source: sends, table: sends, variant", "error[bad-value]: 'assignment': an assignment has exactly one of source, table, file or sql"),
    ("primary: click_rate", "primary: click_rate\n    entity: usr", "email.yml:16:13 error[unknown-entity]: 'usr' is not an entity; did you mean 'user'?"),
    ("primary: click_rate", "primary: click_rate\n    uplift: {cost: 12}", "email.yml:16:5 error[unknown-key]: 'uplift' is not a key of an experiment in this version; its keys are type, assignment,"),
    ("primary: click_rate", "primary: []", "email.yml:15:14 error[bad-value]: 'primary' must name at least one"),
    ("primary: click_rate", "primary: [click_rate, click_rte]", "email.yml:15:27 error[unknown-metric]: 'click_rte' is not a metric; did you mean 'click_rate'?"),
    ("primary: click_rate", "primary: [click_rate, open_rate]", "email.yml:16:17 error[metric-twice]: 'open_rate' is listed twice (primary and secondary); name it once"),
    ("primary: click_rate", "primary: {metric: click_rate}", "email.yml:15:14 error[wrong-type]: 'primary' must be a list, such as [a, b], not a map"),
    ("primary: click_rate", "primary: click_rate\n    starts: 20261201", "email.yml:16:13 error[bad-value]: 'starts': a date is written 2026-12-15, and a date with a time"),
    ("primary: click_rate", "primary: click_rate\n    starts: 2026-02-30", "error[bad-value]: '2026-02-30' is not in the calendar"),
    ("primary: click_rate", "primary: click_rate\n    starts: 2026-02-03\n    ends: 2026-02-02T23:30Z", "email.yml:17:11 error[bad-value]: 'ends' comes before 'starts'"),
    ("primary: click_rate", "primary: click_rate\n    alpha: 0.5", "error[bad-value]: 'alpha' must be less than 0.5"),
    ("{rule: fixed, at: 2026-12-15, mde: 0.01}", "{rule: fixed}", "email.yml:18:11 error[bad-value]: 'stop': a fixed stop names at, n or mde"),
    ("{rule: fixed, at: 2026-12-15, mde: 0.01}", "{rule: fixed, n: 10.5}", "error[wrong-type]: 'n' must be a whole number, not 10.5"),
    ("guardrails: [unsubscribed]\n    stop", "guardrails: unsubscribed\n    stop", "email.yml:17:17 error[wrong-type]: 'guardrails' must be a list, such as [a, b], not the text 'unsubscribed'"),
    ("guardrails: [unsubscribed]\n    stop", "guardrails: [unsubscribed, null]\n    stop", "email.yml:17:32 error[no-value]: 'guardrails[1]' has no value; write one or delete it"),
    ("evidence: [global_holdout]", "evidence: [holdout]", "holdout.yml:17:16 error[unknown-experiment]: 'holdout' is not an experiment"),
    ("evidence: [global_holdout]", "evidence: [global_holdout, global_holdout]", "error[evidence-twice]: 'global_holdout' stands twice in evidence; name it once"),
    ("evidence: [global_holdout]", "evidence: []", "error[bad-value]: 'evidence' must name at least one"),
    ("effect(margin)", "effect(margn)", "holdout.yml:18:13 error[unknown-metric]: 'margn' is not a metric; did you mean 'margin'?"),
    ("value(euro)", "value(eur)", "holdout.yml:18:30 error[unknown-value]: 'eur' is not a value; did you mean 'euro'?"),
    ("population(user, 365d)", "population(usr, 365d)", "holdout.yml:18:44 error[unknown-entity]: 'usr' is not an entity; did you mean 'user'?"),
    ("population(user, 365d)", "volume(order, 365d)", "error[unknown-source]: 'order' is not a source; did you mean 'orders'?"),
    ("effect(margin)", "effect(click_rate)", "holdout.yml:18:13 error[unmeasured-metric]: no evidence of this claim measures 'click_rate'; add it to the metrics of global_holdout"),
    ("effect(margin)", "effect(margin, onn)", "error[unknown-arm]: 'onn' is not an arm of global_holdout; did you mean 'on'?"),
    ("effect(margin)", "effect(margin, off)", "error[unknown-arm]: 'off' is the control arm; an effect is that of another arm against it"),
    ("split: {off: 0.1, on: 0.9}", "split: {off: 0.1, a: 0.4, b: 0.5}", "error[unknown-arm]: several arms are compared; write effect(margin, a) or effect(margin, b)"),
    ("effect(margin) *", "effect(margin) **", "error[amount]: "),
    ("threshold: roi > 0", "threshold: profit > 0", "error[bad-value]: 'profit > 0' does not compare roi, net or amount with a number, such as roi > 0 or net >= 250000"),
    ("licence: 400000", "licence: a lot", "error[wrong-type]: 'licence' must be a map of keys and values"),
    ("low: 0.9", "low: 2", "holdout.yml:13:3 error[bad-value]: low <= value <= high does not hold: 2, 1, 1.1"),
    ("euro: {value", "2euro: {value", "holdout.yml:13:3 error[bad-name]: '2euro' is not a name: letters, digits and underscores, not starting with a digit"),
    ("claims.personalisation,", "claims.personalization,", "holdout.yml:23:40 error[unknown-claim]: 'personalization' is not a claim; did you mean 'personalisation'?"),
    ("metrics.margin]", "models.intent]", "error[unknown-entry]: 'models.intent' cannot be shown in this version; name claims.X, experiments.X, programmes.X, metrics.X, attribution.X, funnels.X, cohorts.X or paths.X"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), CASES, ids=lambda text: repr(text[:30]))
def test_each_mistake_is_named_at_its_place(make: Make, old: str, new: str, expected: str) -> None:
    assert (EMAIL + HOLDOUT).count(old) == 1, "the case must change one place"
    found = problems(make(email=EMAIL.replace(old, new), holdout=HOLDOUT.replace(old, new)))
    assert any(expected in p for p in found), "\n".join(found)


@pytest.mark.parametrize("name", ["mistakes", "journeys"])
def test_all_the_mistakes_of_a_file_are_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("SHOP_UNSET", raising=False)
    (tmp_path / "payoff.yml").write_bytes((GOLDEN / f"{name}.yml").read_bytes())
    assert problems(tmp_path) == (GOLDEN / f"{name}.txt").read_text().splitlines()


def test_problems_are_sorted_by_file_and_line_and_have_a_machine_form(make: Make) -> None:
    root = make(ROOT + "rewards: {}\nmetrics: {m: {}}\n", a="x: 1\nvalues: {v: {}}\n", b="values: []\n")
    with pytest.raises(DefinitionError) as caught:
        load(root)
    places = [(p.file, p.line) for p in caught.value.problems]
    assert places == sorted(places)
    assert {file for file, _ in places} == {"defs/a.yml", "defs/b.yml", "payoff.yml"}
    assert caught.value.exit_code == 2
    assert [p["code"] for p in caught.value.to_dict()["problems"]] == [  # type: ignore[attr-defined]
        "unknown-section",
        "missing-key",
        "wrong-type",
        "unknown-section",
        "missing-key",
    ]


def test_what_an_entry_lacks_is_not_held_against_others_while_it_has_problems(make: Make) -> None:
    # 'tiem' hides the time and 'entiy' the entity: only the slips are reported, and nothing that follows from them
    found = problems(make(email=EMAIL.replace("time: ordered_at", "tiem: ordered_at")))
    assert [p.split(": ")[0] for p in found] == ["defs/email.yml:5:27 error[unknown-key]"]
    slips = EMAIL.replace("entity: {user: user_id}", "entiy: {user: user_id}")
    assert all("did you mean 'entity'?" in p for p in problems(make(email=slips)))
    assert len(problems(make(email=slips))) == 4


def test_a_wrong_key_hides_no_broken_reference_of_the_same_entry(make: Make) -> None:
    text = EMAIL.replace("primary: click_rate", "primary: clik_rate\n    uplift: {cost: 12}").replace(
        "to: opens", "to: open, wind: 1d"
    )
    codes = [re.search(r"\[(.*?)\]", p)[1] for p in problems(make(email=text))]  # type: ignore[index]
    assert codes == ["unknown-source", "unknown-key", "unknown-metric", "unknown-key"]


def test_a_root_file_without_its_required_keys(make: Make) -> None:
    assert problems(make("currency: EUR\nvalues: {v: {value: x}}")) == [
        "payoff.yml:1:1 error[missing-key]: 'project' is missing: a project needs it",
        "payoff.yml:1:1 error[missing-key]: 'version' is missing: a project needs it",
        "payoff.yml:2:21 error[wrong-type]: 'value' must be a number, not the text 'x'",
    ]
    assert problems(make("version: 2\nproject: x")) == ["payoff.yml:1:10 error[bad-value]: 'version' must be 1, not 2"]


@pytest.mark.parametrize("blank", ["metrics:\n", "metrics: {}\n", "metrics: ~\n"])
def test_a_section_may_be_blank(make: Make, blank: str) -> None:
    assert load(make(a=blank)).spec.metrics == {}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("ledger: x", "ledger: y", "error[unknown-connection]: 'y' is not a connection"),
        ("ledger: x", "ledger: main", "error[wrong-connection]: 'main' is a duckdb connection, which is only read; the ledger needs engine sqlite or postgres"),
        ("{table: orders,", "{table: orders, connection: x,", "error[wrong-connection]: 'x' is a sqlite connection, which only keeps the ledger"),
        ("{table: orders,", "{table: orders, connection: bare,", "error[wrong-connection]: 'bare' has no path to a database"),
        ("bare: {engine: duckdb}", "bare: {engine: duckdb, path: b.duckdb}", "defs/email.yml:2:19 error[no-connection]: several connections could be meant; add connection: main or bare"),
        ("main: {engine: duckdb, path: shop.duckdb}", "main: {engine: duckdb}", "error[no-connection]: no connection that holds tables is declared"),
        ("entity: user, window", "entity: usr, window", "payoff.yml:3:20 error[unknown-entity]: 'usr' is not an entity; did you mean 'user'?"),
        ("entity: user, window", "holdout_unit: home, window", "payoff.yml:3:26 error[unknown-entity]: 'home' is not an entity; declare it under 'entities', or map it in a source's entity"),
    ],
)  # fmt: skip
def test_connections_and_defaults_refer_to_what_is_there(make: Make, old: str, new: str, expected: str) -> None:
    root = ROOT.replace(
        "include", "  bare: {engine: duckdb}\n  x: {engine: sqlite, url: 'sqlite:///r.db'}\nledger: x\ninclude"
    )
    load(make(root, email=EMAIL))
    assert (root + EMAIL).count(old) == 1
    assert any(expected in p for p in problems(make(root.replace(old, new), email=EMAIL.replace(old, new))))


def test_a_metric_for_another_entity_is_refused(make: Make) -> None:
    text = EMAIL.replace("from: orders, column", "entity: shop, from: orders, column").replace(
        "ordered_at, entity: {user: user_id}", "ordered_at, entity: {user: user_id, shop: shop_id}"
    )
    assert problems(make(email=text)) == [
        "defs/email.yml:16:40 error[wrong-entity]: 'revenue' cannot be read here: it is measured per shop, "
        "and experiments.subject compares units of user"
    ]


def test_an_experiment_with_no_metric_to_read_is_refused(make: Make) -> None:
    sources = "sources: {a: {table: a, time: t, entity: {user: u}}, b: {table: b, time: t, entity: {shop: s}}}\n"
    experiment = "experiments:\n  e: {assignment: {source: a, variant: v, control: c}}\n"
    assert problems(make(a=sources + experiment + "metrics: {n: {kind: count, from: b}}")) == [
        "defs/a.yml:3:3 error[no-metrics]: no metric can be read for the units of this experiment (user); declare one under "
        "'metrics' ('n' cannot: source 'b' does not say which column holds 'user'; add entity: {user: COLUMN} to it)"
    ]


def test_warnings_are_places_worth_a_look(make: Make) -> None:
    text = EMAIL.replace("generic: 0.5, first_name: 0.5", "generic: 50, first_name: 25")
    text += "  again: {assignment: {source: sends, variant: v, control: c}, primary: stay}\n"
    text = text.replace("experiments:", "  stay: {kind: mean, from: stays, column: d}\nexperiments:")
    text = text.replace("metrics:", "  stays: {table: stays, entity: {user: user_id}}\nmetrics:")
    project = load(make(email=text))
    assert [(p.line, p.column, p.code) for p in project.warnings] == [(16, 72, "split-total"), (21, 73, "no-time")]
    assert project.warnings[0].message == (
        "the shares of split add up to 75, not 1; they are read as generic 66.7%, first_name 33.3%"
    )
    assert "those from before exposure count too" in project.warnings[1].message


# ---------------------------------------------------------------- what a loaded project answers


def test_the_unit_of_an_experiment(make: Make) -> None:
    text = """
entities: {user: {id: user_id}, home: {id: home_id}}
sources:
  both: {table: a, time: t, entity: {user: u, home: h}}
  home: {table: b, time: t, entity: {home: h}}
  none: {table: c, time: t}
  one: {table: d, one_row_per: shop, id: shop_id}
metrics: {n: {kind: count, from: both}, m: {kind: count, from: none}}
experiments:
  named: {entity: home, primary: n, assignment: {source: both, variant: v, control: c}}
  default: {primary: n, assignment: {source: both, variant: v, control: c}}
  holdout: {type: holdout, primary: n, assignment: {source: both, variant: v, control: c}}
  only: {primary: n, assignment: {source: home, variant: v, control: c}}
  by_id: {primary: m, assignment: {source: none, variant: v, control: c}}
  in_place: {primary: n, assignment: {table: e, time: t, entity: {user: x}, variant: v, control: c}}
"""
    project = load(make(ROOT.replace("entity: user", "entity: user, holdout_unit: home"), a=text))
    units = {name: project.entity_of(name) for name in project.spec.experiments}
    assert units == {
        "named": "home",
        "default": "user",
        "holdout": "home",
        "only": "home",
        "by_id": "user",
        "in_place": "user",
    }
    assert project.unit_column("both", "home") == "h"
    assert project.unit_column("home", "user") == "user_id"
    assert project.unit_column("one", "shop") == "shop_id"
    assert project.unit_column("both", "shop") is None
    name, source = project.source_of("in_place")
    assert name == "experiments.in_place.assignment"
    assert project.unit_column(name, "user") == project.unit_column(source, "user") == "x"
    assert project.connection_of(source) == "main"
    assert project.positions.of(*project.steps_of(name), "table") == ("defs/a.yml", 15, 46)
    assert project.steps_of("both") == ("sources", "both")
    with pytest.raises(UsageError, match="'defualt' is not an experiment; did you mean 'default'"):
        project.entity_of("defualt")


def test_the_metrics_of_an_experiment_and_their_roles(make: Make) -> None:
    listed = load(
        make(
            email=EMAIL.replace("primary: click_rate", "primary: unsubscribed").replace(
                "    guardrails: [unsubscribed]\n", ""
            )
        )
    )
    assert listed.metrics_of("subject") == [
        MetricUse("unsubscribed", "primary", "primary"),
        MetricUse("open_rate", "secondary", "vanity"),
        MetricUse("order_rate", "secondary", "secondary"),
        MetricUse("revenue", "secondary", "secondary"),
    ]
    lines = [line for line in EMAIL.splitlines() if not re.match(r"    (primary|secondary|guardrails)", line)]
    lines[1:1] = ["  shops: {table: shops, time: t, entity: {shop: shop_id}}"]
    lines[7:7] = ["  openings: {kind: count, from: shops}", "  visits: {kind: count, entity: shop, from: shops}"]
    everything = load(make(email="\n".join(lines)))
    assert everything.metrics_of("subject") == [
        MetricUse("open_rate", "secondary", "vanity"),
        MetricUse("click_rate", "secondary", "secondary"),
        MetricUse("order_rate", "secondary", "secondary"),
        MetricUse("revenue", "secondary", "secondary"),
        MetricUse("unsubscribed", "guardrail", "guardrail"),
    ]


def test_the_window_of_a_metric(make: Make) -> None:
    text = (
        EMAIL + "    window: 3d\n  other: {primary: click_rate, assignment: {source: sends, variant: v, control: c}}\n"
    )
    project = load(make(email=text))
    assert project.window_of("revenue", "subject") == timedelta(hours=24)
    assert project.window_of("click_rate", "subject") == timedelta(days=3)
    assert project.window_of("click_rate", "other") == timedelta(days=14)
    without = load(make(ROOT.replace(", window: 14d", ""), email=text))
    assert without.window_of("click_rate", "other") is None


def test_every_sql_expression_is_handed_over_with_its_place(make: Make) -> None:
    text = """
entities: {user: {id: "1"}}
sources:
  a: {sql: select 1, where: "2", time: "3", id: "4", entity: {user: "5"}}
  b: {table: b, time: t, entity: {user: u}, links: {a: "6"}}
metrics:
  m0: {kind: count, from: b}
  m1: {kind: sum, from: a, column: "7", where: "8"}
  m2: {kind: conversion, to: {source: a, where: "9"}, after: {source: b, where: "10"}}
  m3: {kind: ratio, numerator: {sum: "a.11", where: "12"}, denominator: {count: b, where: "13"}}
  m4: {kind: rate, from: b, where: "14"}
  m5: {kind: csat, from: b, column: "15", where: "16"}
  m6: {kind: retention, to: {source: b, where: "25"}, at: 1d}
  m7: {kind: quantile, from: b, column: "26", where: "27"}
attributes:
  x1: {from: b, column: "28"}
  x2: {since: "29", cuts: [1d]}
  x3: {metric: m0, period: 1d}
  unused: {column: "no source"}
experiments:
  e1:
    assignment: {source: a, variant: "17", control: c, where: "18"}
    primary: m1
    trigger: {source: b, where: "30"}
    cannibalisation: {within: b, by: "31", paths: [p, q], value: "32", where: "33"}
    segments: [x2, device]
    adjust: {attributes: [x1, x2, x3, order]}
  e3: {assignment: {source: a, variant: v, control: c}, primary: m1, adjust: {post_stratify: user}, segments: [x2]}
  e2: {assignment: {table: x, variant: "19", control: c, where: "20", time: "21", id: "22", entity: {user: "23"}, links: {a: "24"}}}
"""
    project = load(make(a=text))
    fragments = list(project.sql_fragments())
    texts = [f.text for f in fragments]
    assert sorted(int(t) for t in texts if t.isdigit()) == list(range(1, 34))
    assert "no source" not in texts, "an attribute that nothing reads has no source to be checked against"
    sources = {f.text: f.source for f in fragments}
    assert (sources["1"], sources["6"], sources["10"], sources["11"], sources["18"]) == (None, "b", "b", "a", "a")
    assert sources["19"] == sources["24"] == "experiments.e2.assignment"
    assert (sources["25"], sources["28"], sources["29"], sources["31"]) == ("b", "b", "a", "b")
    columns = [(f.attribute, f.text, f.source) for f in fragments if f.attribute is not None]
    assert columns == [("order", '"order"', "a"), ("device", '"device"', "a"), ("user", '"user"', "a")]
    lines = text.splitlines()
    for path, fragment, _, attribute in fragments:
        _, line, column = project.positions.of(*path)
        assert (attribute or fragment) in lines[line - 1][column - 1 : column + 6], path


def test_a_problem_inside_a_text_points_into_it(make: Make) -> None:
    text = EMAIL + 'claims:\n  a: {statement: s, evidence: [subject], amount: "effect(revenu)"}\n'
    text += "  b:\n    statement: s\n    evidence: [subject]\n    amount: effect(revenu)\n"
    text += "  c:\n    statement: s\n    evidence: [subject]\n    amount: >-\n      1 * effect(revenu)\n"
    assert [p.split(" ")[0] for p in problems(make(email=text))] == [
        "defs/email.yml:20:51",
        "defs/email.yml:24:13",
        "defs/email.yml:28:13",
    ]


# ---------------------------------------------------------------- the published schema


def tree_of(path: Path) -> Any:
    """A file as JSON has it: what an editor checks against the schema."""
    tree = yamlfile.read(path, path.name).tree
    assert tree is not None
    return json.loads(json.dumps(tree))


def validator(part: Any = "project") -> jsonschema.Draft202012Validator:
    schema = json_schema(part)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_accepts_every_form_a_project_may_be_written_in(make: Make) -> None:
    root = make(ROOT, email=EMAIL, holdout=HOLDOUT, blank="metrics:\n")
    load(root)
    validator().validate(tree_of(root / "payoff.yml"))
    for name in ("email", "holdout", "blank"):
        validator("definitions").validate(tree_of(root / "defs" / f"{name}.yml"))
    project = make(ROOT.replace("include: [defs/*.yml]\n", "") + EMAIL)
    validator().validate(tree_of(project / "payoff.yml"))


def test_the_schema_accepts_the_example_in_the_documentation(make: Make) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    whole_ones = [example for example in examples if example.startswith("version:")]
    assert len(examples) >= 6
    assert len(whole_ones) == 2
    for example in whole_ones:
        root = make(example)
        assert load(root).warnings == ()
        validator().validate(tree_of(root / "payoff.yml"))
    for example in examples:
        schema = json_schema()
        del schema["required"]
        jsonschema.Draft202012Validator(schema).validate(tree_of(make(example) / "payoff.yml"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cap: p99", "cap: 250"),
        ("cap: p99", "cap: {percentile: 99.9, of: nonzero}"),
        ("after: clicks", "after: {source: clicks, within: 2d}"),
        ("control: generic", "control: true"),
        ("control: generic", "control: 0"),
        ("at: 2026-12-15", "at: 2026-12-15T08:30Z"),
        (
            "kind: conversion, to: clicks",
            "kind: ratio, numerator: {sum: orders.amount, cap: 3}, denominator: {count: sends}",
        ),
        ("kind: conversion, to: clicks", "kind: csat, from: orders, column: score, top: 9"),
    ],
)
def test_the_schema_accepts_what_the_loader_accepts(make: Make, old: str, new: str) -> None:
    text = EMAIL.replace(old, new).replace(
        "generic: 0.5", new.removeprefix("control: ") + ": 0.5" if "control" in new else "generic: 0.5"
    )
    root = make(email=text)
    load(root)
    validator("definitions").validate(tree_of(root / "defs" / "email.yml"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("metrics:", "rewards: {}\nmetrics:"),
        ("kind: sum", "kind: clv"),
        ("column: amount", "colum: amount"),
        ("cap: p99", "cap: high"),
        ("cap: p99", "cap: {percentile: 40}"),
        ("cap: p99", "cap: -1"),
        ("window: 24h", "window: 24"),
        ("margin: 0.001", "margin: '0.001'"),
        ("at: 2026-12-15", "at: 20261215"),
        ("at: 2026-12-15", "at: tomorrow"),
        ("click_rate:", "2click_rate:"),
        ("generic: 0.5, first_name: 0.5", "generic: 0.5"),
        ("secondary: [open_rate, order_rate, revenue]", "secondary: open_rate"),
        ("where: unsubscribed", "when: unsubscribed"),
        ("control: generic, ", ""),
    ],
)
def test_the_schema_rejects_what_the_loader_rejects(make: Make, old: str, new: str) -> None:
    assert old in EMAIL
    root = make(email=EMAIL.replace(old, new, 1))
    assert problems(root)
    with pytest.raises(jsonschema.ValidationError):
        validator("definitions").validate(tree_of(root / "defs" / "email.yml"))


def test_the_schema_of_a_definition_file_has_no_key_of_the_root_file() -> None:
    assert not validator("definitions").is_valid({"currency": "EUR"})
    assert validator("definitions").is_valid({})
    assert not validator().is_valid({})
    assert validator().is_valid({"version": 1, "project": "x"})


# ---------------------------------------------------------------- the documentation


def sections_of_the_documentation() -> dict[str, str]:
    parts = re.split(r"^##+ (.+)$", DOCS.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("The root file", nouns.ProjectSpec),
        ("defaults", nouns.Defaults),
        ("connections", nouns.DuckDBConnection),
        ("connections", nouns.SQLiteConnection),
        ("connections", nouns.PostgresConnection),
        ("connections", nouns.ClickHouseConnection),
        ("connections", nouns.SparkConnection),
        ("entities", nouns.Entity),
        ("identity", nouns.Identity),
        ("sources", nouns.Source),
        ("sessions", nouns.SessionsOf),
        ("channels", nouns.ChannelRule),
        ("channels", nouns.ChannelPreset),
        ("metrics", nouns.CountMetric),
        ("metrics", nouns.SumMetric),
        ("metrics", nouns.MeanMetric),
        ("metrics", nouns.RateMetric),
        ("metrics", nouns.ConversionMetric),
        ("metrics", nouns.RetentionMetric),
        ("metrics", nouns.QuantileMetric),
        ("metrics", nouns.NpsMetric),
        ("metrics", nouns.CsatMetric),
        ("metrics", nouns.RatioMetric),
        ("metrics", nouns.Percentile),
        ("events", nouns.Event),
        ("events", nouns.Anchor),
        ("parts of a ratio", nouns.RatioPart),
        ("attributes", nouns.Attribute),
        ("experiments", nouns.Experiment),
        ("assignment", nouns.Assignment),
        ("stop", nouns.Stop),
        ("adjust", nouns.Adjust),
        ("over time", nouns.OverTime),
        ("over time", nouns.Cumulative),
        ("cannibalisation", nouns.Cannibalisation),
        ("bayes", nouns.Prior),
        ("programmes", nouns.Programme),
        ("touchpoints", nouns.Touchpoint),
        ("spending", nouns.Spend),
        ("conversions", nouns.Outcome),
        ("attribution", nouns.Attribution),
        ("models", nouns.Model),
        ("funnels", nouns.Funnel),
        ("steps of a funnel", nouns.FunnelStep),
        ("breakdown", nouns.Breakdown),
        ("cohorts", nouns.Cohort),
        ("retention", nouns.Retention),
        ("paths", nouns.Journey),
        ("values", nouns.Value),
        ("values", nouns.Cost),
        ("claims", nouns.Claim),
        ("decision", nouns.Decision),
        ("reports", nouns.Report),
    ],
)
def test_every_key_is_documented(heading: str, model: type[nouns.Noun]) -> None:
    text = sections_of_the_documentation()[heading]
    keys = {field.alias or name for name, field in model.model_fields.items()}
    if model is nouns.Assignment:
        keys -= set(nouns.Source.model_fields)
    assert {key for key in keys if f"`{key}`" not in text} == set()


def test_every_model_is_among_those_checked() -> None:
    models = {m for m in vars(nouns).values() if isinstance(m, type) and issubclass(m, nouns.Noun)}
    marks = test_every_key_is_documented.pytestmark[0].args[1]
    assert models - {nouns.Noun, nouns.MetricBase} == {model for _, model in marks}


def test_every_kind_of_metric_and_every_code_is_documented() -> None:
    sections = sections_of_the_documentation()
    from payoff.spec.loader import METRIC_KINDS

    assert {kind for kind in METRIC_KINDS if f"| `{kind}` |" not in sections["metrics"]} == set()
    rows = re.findall(r"^\| (`.*?) \|", sections["Error codes"], re.MULTILINE)
    documented = {code for row in rows for code in re.findall(r"`([a-z0-9-]+)`", row)}
    texts = [*GOLDEN.glob("*.txt"), *Path(__file__).parent.glob("test_*.py")]
    found = "".join(path.read_text() for path in texts)
    tested = set(re.findall(r"error\[([a-z0-9-]+)\]|\[([a-z]+-[a-z-]+)\]: |\"([a-z]+-[a-z-]+)\"", found))
    assert documented <= {code for pair in tested for code in pair}
    here = Path(yamlfile.__file__).parent
    source = "".join(
        (here / f"{name}.py").read_text() for name in ("yamlfile", "loader", "references", "journey_references")
    )
    used = set(
        re.findall(
            r"(?:[Pp]roblem|_stop|_nothing|Problem|Obstacle|return)\(?\s*\(?(?:name, [^\"]*|steps, |\(\), )?\"([a-z0-9]+(?:-[a-z0-9]+)*)\",",
            source,
        )
    )
    assert {code for code in used if code not in documented} == set()
    assert len(used) > 30


# ---------------------------------------------------------------- hostile input


@cache
def whole() -> Any:
    """A valid project in one map, from the examples above."""
    texts = [ROOT.replace("include: [defs/*.yml]\n", ""), EMAIL, HOLDOUT, test_journeys.SOURCES, test_journeys.ALL]
    merged: dict[str, Any] = {}
    for text in texts:
        builder = yamlfile._Builder("x")
        builder.build(yamlfile.YAML(typ="safe", pure=True).parse(text))
        for key, value in json.loads(json.dumps(builder.root)).items():
            merged[key] = {**merged[key], **value} if isinstance(merged.get(key), dict) else value
    return merged


def paths_of(tree: Any, steps: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(tree, dict):
        return [steps, *(p for key, value in tree.items() for p in paths_of(value, (*steps, key)))]
    if isinstance(tree, list):
        return [steps, *(p for index, value in enumerate(tree) for p in paths_of(value, (*steps, index)))]
    return [steps]


def replaced(tree: Any, steps: tuple[Any, ...], value: Any, *, key: bool = False) -> Any:
    """``tree`` with ``value`` at ``steps``; with ``key``, what stands there moves to the key ``value``."""
    if not steps:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if len(steps) == 1 and key and isinstance(copy, dict):
        copy[str(value)] = copy.pop(steps[0])
    else:
        copy[steps[0]] = replaced(tree[steps[0]], steps[1:], value, key=key)
    return copy


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [
            "x" * 10_000,
            "'; DROP TABLE orders; --",
            'a"b\nc',
            "\u202eevil\u200b",
            "${HOME}",
            "{{ x }}",
            "../../etc/passwd",
            "effect(" * 100,
            "1 " + "+ 1 " * 5000,
            "9" * 400 + "d",
            "0.0000000001s",
            "p99.99999",
            "0000-00-00",
            "9999-12-31T23:59:59+23:59",
            "claims.",
            "metrics.\n",
            "roi > 1e999",
            "<percentile>",
            "<<",
            "True",
            "on",
            [],
            {},
            [None],
            [[["x"]]],
            {"a": None},
            {"source": {"source": "x"}},
            10**400,
            -0.0,
        ]
    ),
)


@settings(max_examples=200)
@given(data=st.data())
def test_hostile_names_and_values_raise_nothing_but_a_definition_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    tree = whole()
    for _ in range(data.draw(st.integers(1, 3))):
        steps = data.draw(st.sampled_from(paths_of(tree)))
        tree = replaced(tree, steps, data.draw(HOSTILE), key=data.draw(st.booleans()))
    root = tmp_path_factory.getbasetemp() / "hostile"
    root.mkdir(exist_ok=True)
    text = json.dumps(tree, ensure_ascii=data.draw(st.booleans()))
    (root / "payoff.yml").write_text(text, encoding="utf-8", errors="replace")
    found: tuple[Problem, ...] = ()
    try:
        project = load(root)
    except DefinitionError as error:
        found = error.problems
    else:
        for name in project.spec.experiments:
            project.entity_of(name)
            for use in project.metrics_of(name):
                project.window_of(use.metric, name)
        assert all(fragment.text for fragment in project.sql_fragments())
        for full in project.journeys():
            project.journey_entity(*full.split("."))
            assert set(project.needed_sources(project.journey_sources(full))) <= project.sources().keys()
        return
    assert found
    for problem in found:
        assert "\n" not in problem.message
        assert len(problem.message) < 1000
        assert (problem.line, problem.column) >= (1, 1)
        assert str(problem).encode()


@settings(max_examples=150)
@given(text=st.text(alphabet="ab:-[]{}#&*!|>'\"%@`,?\\ \n\t~0<=.\u2028\u0085é😀\x00", max_size=50))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    root = tmp_path_factory.getbasetemp() / "any"
    root.mkdir(exist_ok=True)
    (root / "payoff.yml").write_text(text, encoding="utf-8")
    with pytest.raises(DefinitionError) as caught:
        load(root)
    assert caught.value.problems


@settings(max_examples=100)
@given(data=st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "bytes"
    root.mkdir(exist_ok=True)
    (root / "payoff.yml").write_bytes(data)
    with pytest.raises(DefinitionError):
        load(root)

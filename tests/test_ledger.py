"""The ledger: kept whole, in order, by several writers, through kills, full disks and meddling, on both databases."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

import payoff
from payoff.errors import ConnectionFailed, MissingExtra, UsageError
from payoff.ledger import ABSENT, GENESIS, Difference, Ledger, canonical_json, compare, context_changes

PASSWORD = "s3cr:et/w@rd%"
QUOTED = "s3cr%3Aet%2Fw%40rd%25"
SOURCE = str(Path(next(iter(payoff.__path__))).parent)


# ---------------------------------------------------------------- two engines


def _postgres_bin() -> Path | None:
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in found if (folder / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[tuple[str, int]]:
    """A private server on a loopback port with a password, thrown away afterwards."""
    pytest.importorskip("psycopg", reason="THE LEDGER IS NOT TESTED ON POSTGRESQL: pip install 'payoff[postgres]'")
    programs = _postgres_bin()
    if programs is None:
        pytest.skip(
            "THE LEDGER IS NOT TESTED ON POSTGRESQL: no server on this machine (install the package postgresql)"
        )
    prefix: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="payoff-postgres-"))
    if os.geteuid() == 0:  # the server refuses to run as root
        prefix = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    data = folder / "data"
    control = [*prefix, str(programs / "pg_ctl"), "-D", str(data), "-w"]
    # The watchman stops the server and removes its folder when this process ends, however it ends: his input closes then.
    stop = shlex.join([*control, "-m", "immediate", "stop"])
    watch = f"cat; {stop}; rm -r {shlex.quote(str(folder))}"
    quiet = subprocess.DEVNULL
    watchman = subprocess.Popen(
        ["sh", "-c", watch], stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, cwd="/", start_new_session=True
    )
    try:
        secret = folder / "password"
        secret.write_text(PASSWORD + "\n")
        create = [*prefix, str(programs / "initdb"), "-D", str(data), "-U", "owner", "-A", "scram-sha-256"]
        create += ["--pwfile", str(secret), "-E", "UTF8", "--no-locale", "--no-sync"]
        subprocess.run(create, check=True, capture_output=True, cwd=folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = f"-h 127.0.0.1 -p {port} -c unix_socket_directories='' -c fsync=off -c max_connections=60"
        start = [*control, "-l", str(data / "log"), "-o", options, "start"]
        subprocess.run(start, check=True, cwd=folder, stdout=quiet)
        yield "127.0.0.1", port
    finally:
        watchman.communicate()


def _postgres(server: tuple[str, int], database: str = "postgres", password: str = QUOTED) -> str:
    return f"postgresql://owner:{password}@{server[0]}:{server[1]}/{database}"


def _new_database(server: tuple[str, int]) -> str:
    import psycopg

    name = f"ledger_{time.time_ns()}"
    with psycopg.connect(_postgres(server), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return _postgres(server, name)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    server = request.getfixturevalue("postgres_server")
    schema = f"ledger_{time.time_ns()}"  # a schema of its own: far quicker to make and to remove than a database
    _execute(_postgres(server), f"CREATE SCHEMA {schema}")
    return f"{_postgres(server)}?options=-csearch_path%3D{schema}"


def _meddle(address: str, *statements: str) -> None:
    """What someone with the database's own tools can do: switch the triggers off, then change what they like."""
    if address.startswith("sqlite"):
        connection = sqlite3.connect(address.removeprefix("sqlite:///"))
        triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()
        return
    import psycopg

    with psycopg.connect(address) as server:
        for table in ("payoff_ledger_entries", "payoff_ledger_head"):
            server.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
        for statement in statements:
            server.execute(statement)


def _execute(address: str, statement: str) -> None:
    """One statement with the triggers on."""
    engine = sa.create_engine(address.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


def _claim(value: float = 120_000.5, grade: str = "A") -> dict[str, object]:
    return {
        "name": "recommendations_pay",
        "grade": grade,
        "verdict": "positive",
        "net": {"value": value, "low": value - 1e4, "high": value + 1e4, "level": 0.95, "unit": "USD/year"},
        "probability_positive": 0.99,
        "decision": {"threshold": 0, "probability": 0.9, "observed_probability": 0.99, "met": True},
    }


def _run(value: float = 120_000.5, **extra: object) -> dict[str, object]:
    result = {
        "name": "experiments.subject_line",
        "verdict": "positive",
        "grade": "A",
        "estimates": [{"metric": "click_rate", "value": 0.1 + 0.2, "low": 1e-300, "high": 5e-324 + 1, "n": {"a": 3}}],
        "provenance": {"definition_hash": "d1", "sql": [{"step": "moments", "text": "SELECT 'Zoë € 🙂\x00'"}]},
    }
    refusal = {"name": "experiments.empty", "reason": "no one is in arm 'b'", "remedy": "wait"}
    run: dict[str, object] = {"project": "acme", "started": "2026-01-01T00:00:00+00:00", "seed": 7}
    run |= {"definition_hash": "d1", "data_fingerprint": {"orders": "f1"}, "versions": {"payoff": "0.1"}}
    return run | {"results": [result], "claims": [_claim(value)], "refusals": [refusal]} | extra


def _shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + str(error) + repr(error)


# ---------------------------------------------------------------- kept and found again


def test_a_run_comes_back_equal(address: str) -> None:
    run = _run()
    with Ledger.open(address) as ledger:
        run_id = ledger.append(run, actor="ada")
        stored = ledger.latest_run()
        assert stored is not None
        assert stored.to_dict() == run | {"run_id": run_id, "actor": "ada"}
        assert ledger.run(run_id[:6]).to_dict() == stored.to_dict()
        assert [(e.kind, e.name) for e in stored.entries] == [
            ("result", "experiments.subject_line"),
            ("claim", "recommendations_pay"),
            ("refusal", "experiments.empty"),
        ]
        assert stored.header.payload["counts"] == {"results": 1, "claims": 1, "refusals": 1}
    with Ledger.open(address, read_only=True) as again:
        assert again.run(run_id).to_dict() == stored.to_dict()


def test_an_empty_ledger_has_nothing_and_holds(address: str) -> None:
    with Ledger.open(address) as ledger:
        assert ledger.latest_run() is None
        assert ledger.latest("claim", "x") is None
        assert ledger.runs() == []
        assert ledger.history("claim", "x") == []
        report = ledger.verify_chain()
        assert (report.entries, report.ok, report.head) == (0, True, GENESIS)
        with pytest.raises(UsageError, match="no run whose id begins with 'abc'"):
            ledger.run("abc")


def test_a_run_without_results_is_a_run(address: str) -> None:
    with Ledger.open(address) as ledger:
        run_id = ledger.append({"project": "acme"})
        assert ledger.run(run_id).to_dict() == {
            "project": "acme", "run_id": run_id, "results": [], "claims": [], "refusals": [],
        }  # fmt: skip


def test_the_newest_is_found_by_kind_name_and_project(address: str) -> None:
    with Ledger.open(address) as ledger:
        ledger.append(_run(1.0, run_id="one"))
        ledger.append(_run(2.0, run_id="two"))
        ledger.append(_run(3.0, run_id="three", project="other"))
        newest = ledger.latest("claim", "recommendations_pay")
        own = ledger.latest("claim", "recommendations_pay", project="acme")
        assert newest is not None
        assert own is not None
        assert (newest.run_id, newest.payload["net"]["value"]) == ("three", 3.0)
        assert (own.run_id, own.payload["net"]["value"]) == ("two", 2.0)
        assert ledger.latest("result", "recommendations_pay") is None
        assert [e.run_id for e in ledger.runs()] == ["three", "two", "one"]
        assert [e.run_id for e in ledger.runs(limit=1, project="acme")] == ["two"]
        assert ledger.latest_run(project="acme") == ledger.run("two")


def test_history_has_every_version_with_its_figures(address: str) -> None:
    with Ledger.open(address) as ledger:
        for value, run_id in ((1.0, "one"), (2.0, "two")):
            ledger.append(_run(value, run_id=run_id))
        versions = ledger.history("claim", "recommendations_pay")
        assert [(v.run_id, v.figures["net.value"]) for v in versions] == [("one", 1.0), ("two", 2.0)]
        assert versions[0].at < versions[1].at
        assert versions[0].figures == {
            "grade": "A", "verdict": "positive", "probability_positive": 0.99, "net.value": 1.0, "net.low": -9999.0,
            "net.high": 10001.0, "net.level": 0.95, "net.unit": "USD/year", "decision.met": True,
        }  # fmt: skip
        (result, _) = ledger.history("result", "experiments.subject_line")
        assert result.figures["estimate.metric"] == "click_rate"
        assert result.figures["estimate.value"] == 0.1 + 0.2
        (refusal, _) = ledger.history("refusal", "experiments.empty")
        assert refusal.figures == {"reason": "no one is in arm 'b'"}


def test_a_prefix_must_name_one_run(address: str) -> None:
    with Ledger.open(address) as ledger:
        for run_id in ("abc", "abcd", "abd"):
            ledger.append(_run(run_id=run_id))
        assert ledger.run("abc").run_id == "abc"  # the whole id wins over being a prefix
        assert ledger.run("abd").run_id == "abd"
        with pytest.raises(UsageError, match="several runs begin with 'ab': abd, abcd, abc; give more"):
            ledger.run("ab")
        with pytest.raises(UsageError, match="is not a run id"):
            ledger.run("a%")


def test_a_run_id_is_taken_once(address: str) -> None:
    with Ledger.open(address) as ledger:
        ledger.append(_run(run_id="one"))
        with pytest.raises(UsageError, match="'one' is in the ledger already"):
            ledger.append(_run(run_id="one"))
        assert ledger.verify_chain().entries == 4


def test_looking_is_recorded(address: str) -> None:
    with Ledger.open(address) as ledger:
        ledger.append(_run(run_id="one"))
        seq = ledger.record_view("recommendations_pay", "grace")
        view = ledger.latest("view", "recommendations_pay")
        claim = ledger.latest("claim", "recommendations_pay")
        assert view is not None
        assert claim is not None
        assert (view.seq, view.run_id, view.project) == (seq, "one", "acme")
        assert view.payload["actor"] == "grace"
        assert (view.payload["seen"], view.payload["seen_hash"]) == (claim.seq, claim.hash)
        assert [v.figures["actor"] for v in ledger.history("view", "recommendations_pay")] == ["grace"]
        assert len(ledger.run("one").entries) == 3  # a view is no part of the run it looked at
        assert ledger.verify_chain().ok
        with pytest.raises(UsageError, match="did you mean 'recommendations_pay'"):
            ledger.record_view("recommendation_pays", "grace")
        assert ledger.verify_chain().entries == 5


def test_reading_only_writes_nothing(address: str) -> None:
    with Ledger.open(address) as ledger:
        ledger.append(_run())
    with Ledger.open(address, read_only=True) as ledger:
        assert ledger.verify_chain().ok
        with pytest.raises(UsageError, match="opened for reading only"):
            ledger.append(_run())
        with pytest.raises(UsageError, match="opened for reading only"):
            ledger.record_view("recommendations_pay", "grace")


def test_reading_only_makes_no_ledger(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match=r"there is no ledger at .* yet"):
        Ledger.open(address, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_made_and_kept_out_of_version_control(tmp_path: Path) -> None:
    Ledger.open(tmp_path / ".payoff" / "ledger.db").close()
    assert (tmp_path / ".payoff" / ".gitignore").read_text() == "*\n"
    (tmp_path / ".payoff" / ".gitignore").write_text("mine\n")
    Ledger.open(tmp_path / ".payoff" / "ledger.db").close()
    assert (tmp_path / ".payoff" / ".gitignore").read_text() == "mine\n"


def test_a_path_may_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "100% of #1? é" / "led ger.db"
    path.parent.mkdir()
    with Ledger.open(path) as ledger:
        ledger.append(_run())
    assert path.is_file()
    with Ledger.open(str(path), read_only=True) as ledger:
        assert ledger.verify_chain().entries == 4


def test_sqlite_is_set_to_survive_a_power_cut(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger, ledger._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_a_read_sees_one_state_while_another_appends(address: str) -> None:
    with Ledger.open(address) as ledger, Ledger.open(address) as other:
        ledger.append(_run())
        with ledger._reading() as connection:
            count = sa.text("SELECT count(*) FROM payoff_ledger_entries")
            assert connection.scalar(count) == 4
            other.append(_run())
            assert connection.scalar(count) == 4
        assert ledger.verify_chain().entries == 8


# ---------------------------------------------------------------- what may be kept


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_no_number_that_is_not_finite(bad: float, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        claim = _claim() | {"net": {"value": 1.0, "low": [0.0, bad]}}
        with pytest.raises(ValueError, match=r"claims\[0\]\.net\.low\[1\] is -?(nan|inf): the ledger keeps finite"):
            ledger.append(_run(claims=[claim]))
        assert ledger.verify_chain().entries == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"project": ""}, "needs the name of its project"),
        ({"project": None}, "needs the name of its project"),
        ({"run_id": "../x"}, "a run id has 1 to 64 letters"),
        ({"claims": [{"grade": "A"}]}, r"claims\[0\] has no 'name'"),
        ({"claims": ["text"]}, r"claims\[0\] has no 'name'"),
        ({"seed": np.int64(7)}, "seed is a int64, which JSON cannot hold"),
        ({"versions": {3: "x"}}, "versions has the key 3, which is not text"),
        ({"command": "\ud800"}, "command is text that is not valid Unicode"),
        ({"counts": {}}, "'counts' is the ledger's own"),
    ],
)
def test_what_cannot_be_kept_as_it_is_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        with pytest.raises(ValueError, match=message):
            ledger.append(_run(**change))
        assert ledger.verify_chain().entries == 0


def test_canonical_json_is_one_text_for_one_value() -> None:
    assert canonical_json({"b": [1, 2.0, -0.0, 1e22, 0.1], "a": "é\n"}) == '{"a":"é\\n","b":[1,2.0,-0.0,1e+22,0.1]}'
    assert canonical_json({"a": 1, "b": (True, None)}) == canonical_json({"b": [True, None], "a": 1})
    assert canonical_json(np.float64(0.1)) == "0.1"


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="=:"))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=8,
)


@given(_JSON)
def test_canonical_json_reads_back_equal(value: object) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text
    assert text.encode().decode() == text


def test_passwords_are_masked_in_what_is_kept(address: str) -> None:
    run = _run(command=f"payoff run --ledger postgresql://ada:{QUOTED}@db.example:5432/x")
    run["results"] = [
        {"name": "r", "sql": "ATTACH 'host=db password=hunter2 user=ada'"},
        {"name": "s", "sql": "ATTACH 'postgres://ada:hun/t@er2@db/x' AS y; SELECT 'a:b@c'"},
        {"name": "t", "sql": "SELECT 'https://example.com/a?b=c@d'"},
    ]
    with Ledger.open(address) as ledger:
        stored = ledger.run(ledger.append(run)).to_dict()
    text = json.dumps(stored)
    for secret in (QUOTED, PASSWORD, "hunter2", "hun/t", "er2"):
        assert secret not in text
    assert stored["command"] == "payoff run --ledger postgresql://ada:***@db.example:5432/x"
    assert [r["sql"] for r in stored["results"]] == [
        "ATTACH 'host=db password=*** user=ada'",
        "ATTACH 'postgres://ada:***@db/x' AS y; SELECT 'a:b@c'",
        "SELECT 'https://example.com/a?b=c@d'",
    ]
    assert compare(stored, run) == []  # a mask is not a difference


# ---------------------------------------------------------------- the chain


def test_the_hash_can_be_computed_by_anyone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        ledger.append({"project": "acme", "run_id": "one", "claims": [{"name": "é", "x": 0.5}]})
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT at, hash FROM payoff_ledger_entries ORDER BY seq").fetchall()
    connection.close()
    at = rows[0][0]
    first = (
        "0" * 64 + '{"at":"' + at + '","kind":"run","name":"one","payload":"{\\"counts\\":{\\"claims\\":1,'
        '\\"refusals\\":0,\\"results\\":0},\\"project\\":\\"acme\\",\\"run_id\\":\\"one\\"}",'
        '"project":"acme","run_id":"one","seq":1}'
    )
    assert rows[0][1] == hashlib.sha256(first.encode()).hexdigest()
    second = (
        rows[0][1] + '{"at":"' + at + '","kind":"claim","name":"é","payload":"{\\"name\\":\\"é\\",\\"x\\":0.5}",'
        '"project":"acme","run_id":"one","seq":2}'
    )
    assert rows[1][1] == hashlib.sha256(second.encode()).hexdigest()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE payoff_ledger_entries SET payload = '{}' WHERE seq = 2",
        "UPDATE payoff_ledger_entries SET seq = seq + 10",
        "DELETE FROM payoff_ledger_entries WHERE seq = 4",
        "DELETE FROM payoff_ledger_entries",
        "UPDATE payoff_ledger_head SET entries = 2",
        "DELETE FROM payoff_ledger_head",
        "INSERT INTO payoff_ledger_head VALUES (2, 1, 0, '')",
    ],
)
def test_the_database_refuses_to_change_or_remove(address: str, statement: str) -> None:
    with Ledger.open(address) as ledger:
        ledger.append(_run())
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            _execute(address, statement)
        assert ledger.verify_chain().ok


@pytest.mark.parametrize("table", ["payoff_ledger_entries", "payoff_ledger_head"])
def test_sqlite_refuses_to_replace(tmp_path: Path, table: str) -> None:
    address = f"sqlite:///{tmp_path}/ledger.db"
    with Ledger.open(address) as ledger:
        ledger.append(_run())
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            _execute(address, f"INSERT OR REPLACE INTO {table} SELECT * FROM {table} LIMIT 1")
        assert ledger.verify_chain().ok


@pytest.mark.parametrize("table", ["payoff_ledger_entries", "payoff_ledger_head"])
def test_postgresql_refuses_to_truncate(postgres_server: tuple[str, int], table: str) -> None:
    address = _new_database(postgres_server)
    with Ledger.open(address) as ledger:
        ledger.append(_run())
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            _execute(address, f"TRUNCATE {table}")
        assert ledger.verify_chain().ok


_MOVE = (
    "UPDATE payoff_ledger_entries SET seq = 100 WHERE seq = 3",
    "UPDATE payoff_ledger_entries SET seq = 3 WHERE seq = 4",
    "UPDATE payoff_ledger_entries SET seq = 4 WHERE seq = 100",
)


@pytest.mark.parametrize(
    ("statements", "first_bad", "detail"),
    [
        (("UPDATE payoff_ledger_entries SET payload = replace(payload, '0.99', '0.98') WHERE seq = 3",), 3, "content"),
        (("UPDATE payoff_ledger_entries SET payload = payload || ' ' WHERE seq = 3",), 3, "content"),
        (("UPDATE payoff_ledger_entries SET at = '2020' WHERE seq = 2",), 2, "content"),
        (("UPDATE payoff_ledger_entries SET name = 'x' WHERE seq = 2",), 2, "content"),
        (("UPDATE payoff_ledger_entries SET kind = 'claim' WHERE seq = 2",), 2, "content"),
        (("UPDATE payoff_ledger_entries SET project = 'x' WHERE seq = 1",), 1, "content"),
        (("UPDATE payoff_ledger_entries SET run_id = 'x' WHERE seq = 8",), 8, "content"),
        (("UPDATE payoff_ledger_entries SET previous = hash WHERE seq = 5",), 5, "content"),
        (("UPDATE payoff_ledger_entries SET hash = previous WHERE seq = 8",), 8, "content"),
        (("DELETE FROM payoff_ledger_entries WHERE seq = 1",), 1, "entry 1 is gone: entry 2 stands"),
        (("DELETE FROM payoff_ledger_entries WHERE seq = 4",), 4, "entry 4 is gone: entry 5 stands"),
        (("DELETE FROM payoff_ledger_entries WHERE seq >= 6",), 6, "names 8 entries, and the last 3 are gone"),
        (("DELETE FROM payoff_ledger_entries",), 1, "names 8 entries, and the last 8 are gone"),
        (_MOVE, 3, "content"),
        (("UPDATE payoff_ledger_head SET entries = 7",), 8, "the head names 7 entries and there are 8"),
        (("UPDATE payoff_ledger_head SET hash = 'x'",), 8, "head or entry was rewritten"),
        (("DELETE FROM payoff_ledger_head",), 9, "the head row is gone"),
    ],
)
def test_meddling_shows(address: str, statements: tuple[str, ...], first_bad: int, detail: str) -> None:
    with Ledger.open(address) as ledger:
        ledger.append(_run())
        ledger.append(_run())
        assert ledger.verify_chain().ok
    _meddle(address, *statements)
    with Ledger.open(address, read_only=True) as ledger:
        report = ledger.verify_chain()
    assert not report.ok
    assert report.first_bad == first_bad
    assert detail in report.detail
    assert report.to_dict()["ok"] is False


def _rehash(address: str) -> str:
    """Statements cannot forge a chain, a program can: every hash from the first entry on, and the head's, made anew."""
    connection = sqlite3.connect(address.removeprefix("sqlite:///"))
    connection.row_factory = sqlite3.Row
    previous = GENESIS
    for i, row in enumerate(connection.execute("SELECT * FROM payoff_ledger_entries ORDER BY seq").fetchall(), 1):
        body = {key: row[key] for key in ("at", "kind", "name", "payload", "project", "run_id")} | {"seq": i}
        text = previous + json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        new = hashlib.sha256(text.encode()).hexdigest()
        update = "UPDATE payoff_ledger_entries SET seq = ?, previous = ?, hash = ? WHERE seq = ?"
        connection.execute(update, (i, previous, new, row["seq"]))
        previous = new
    connection.execute("UPDATE payoff_ledger_head SET entries = ?, hash = ?", (i, previous))
    connection.commit()
    connection.close()
    return previous


def test_an_entry_put_into_the_middle_shows(tmp_path: Path) -> None:
    """An entry whose own hash is right and that does not follow the one before it."""
    address = f"sqlite:///{tmp_path}/ledger.db"
    with Ledger.open(address) as ledger:
        ledger.append(_run(run_id="one"))
    copy = f"sqlite:///{tmp_path}/copy.db"
    with Ledger.open(copy) as ledger:
        ledger.append(_run(999.0, run_id="one"))
    connection = sqlite3.connect(tmp_path / "copy.db")
    row = connection.execute("SELECT payload, at, previous, hash FROM payoff_ledger_entries WHERE seq = 3").fetchone()
    connection.close()
    columns = ("payload", "at", "previous", "hash")
    changes = ", ".join(f"{column} = '{value}'" for column, value in zip(columns, row, strict=True))
    _meddle(address, f"UPDATE payoff_ledger_entries SET {changes} WHERE seq = 3")
    with Ledger.open(address) as ledger:
        report = ledger.verify_chain()
    assert (report.ok, report.first_bad) == (False, 3)
    assert "does not follow the one before it" in report.detail


def test_a_witness_shows_what_a_whole_rewriting_hides(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/ledger.db"
    with Ledger.open(address) as ledger:
        ledger.append(_run())
        witness = ledger.verify_chain().head
        ledger.append(_run())
        assert ledger.verify_chain(witness).ok  # older than the head, and in the chain
    _meddle(address, "UPDATE payoff_ledger_entries SET payload = replace(payload, '0.99', '0.98') WHERE seq = 3")
    head = _rehash(address)
    with Ledger.open(address) as ledger:
        report = ledger.verify_chain()
        assert (report.ok, report.head) == (True, head)
        caught = ledger.verify_chain(witness)
        assert not caught.ok
        assert "written down earlier is not in this chain" in caught.detail


def test_a_changed_figure_is_never_shown(address: str) -> None:
    with Ledger.open(address) as ledger:
        ledger.append(_run(run_id="one"))
        _meddle(address, "UPDATE payoff_ledger_entries SET payload = replace(payload, '0.99', '0.98') WHERE seq = 3")
        reads = (
            lambda: ledger.latest("claim", "recommendations_pay"),
            lambda: ledger.history("claim", "recommendations_pay"),
            lambda: ledger.run("one"),
            ledger.latest_run,
        )
        for read in reads:
            with pytest.raises(ConnectionFailed, match=r"entry 3 of the ledger .* is not what was written"):
                read()
        assert ledger.latest("refusal", "experiments.empty") is not None  # the rest still reads


def test_half_a_run_is_never_shown(address: str) -> None:
    with Ledger.open(address) as ledger:
        ledger.append(_run(run_id="one"))
        _meddle(address, "DELETE FROM payoff_ledger_entries WHERE seq = 4")
        with pytest.raises(ConnectionFailed, match=r"the run one .* is not whole"):
            ledger.run("one")


def test_nothing_is_added_behind_a_broken_end(address: str) -> None:
    with Ledger.open(address) as ledger:
        ledger.append(_run(run_id="one"))
        _meddle(address, "DELETE FROM payoff_ledger_entries WHERE seq = 4")
        with pytest.raises(ConnectionFailed, match=r"its last entry is not the one its head names\. Nothing was added"):
            ledger.append(_run(run_id="two"))
        assert ledger.verify_chain().entries == 3


def test_a_newer_format_is_refused(address: str) -> None:
    Ledger.open(address).close()
    _execute(address, "UPDATE payoff_ledger_head SET schema_version = 2")
    for read_only in (False, True):
        with pytest.raises(ConnectionFailed, match=r"newer Payoff \(its format is 2, this one knows 1\): pip install"):
            Ledger.open(address, read_only=read_only)


def test_a_lost_table_is_not_made_anew(address: str) -> None:
    with Ledger.open(address) as ledger:
        ledger.append(_run())
    _meddle(address, "DROP TABLE payoff_ledger_head")
    with pytest.raises(ConnectionFailed, match="has lost its table payoff_ledger_head"):
        Ledger.open(address)


def test_a_ledger_may_share_its_database(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "shared.db")
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()
    with Ledger.open(tmp_path / "shared.db") as ledger:
        ledger.append(_run())
        assert ledger.verify_chain().ok


# ---------------------------------------------------------------- several processes, and kills

# Reads one job a line, forks a child for it and prints the child's id: a child then costs milliseconds, and several of
# them really begin at once. ["wait", id] prints how that child ended.
_NURSERY = """
import json, os, signal, sys, traceback
import sqlalchemy as sa
from payoff.ledger import Ledger

def write(address, name, count, log):
    with Ledger.open(address) as ledger, open(log, "a") as done:
        for i in range(count):
            results = [{"name": f"r{j}", "x": i + j / 7, "text": "y" * 600} for j in range(5)]
            run = {"project": "acme", "writer": name, "results": results, "claims": [{"name": "c"}]}
            print(ledger.append(run), file=done, flush=True)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def listen(target, statement):
    left = statement
    def after(*_):
        nonlocal left
        left -= 1
        if left == 0:
            die()
    sa.event.listen(target, "after_cursor_execute", after)
    if statement == 0:
        sa.event.listen(target, "commit", die)

def create(address, statement):
    listen(sa.Engine, statement)
    Ledger.open(address)

def append(address, statement):
    ledger = Ledger.open(address)
    listen(ledger._engine, statement)
    big = [{"name": f"r{i}", "text": "x" * 600000} for i in range(5)]  # more than SQLite keeps in memory
    ledger.append({"project": "acme", "run_id": "killed", "results": big})

for line in sys.stdin:
    job, *arguments = json.loads(line)
    if job == "wait":
        print(os.waitstatus_to_exitcode(os.waitpid(arguments[0], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        try:
            {"write": write, "create": create, "append": append}[job](*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
"""


def _python(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": SOURCE}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


class _Nursery:
    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": SOURCE}
        pipe, command = subprocess.PIPE, [sys.executable, "-c", _NURSERY]
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def _ask(self, *job: object) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def write(self, address: str, name: str, count: int, log: Path) -> int:
        return self._ask("write", address, name, count, str(log))

    def killed(self, job: str, address: str, statement: int) -> int:
        """How a child ended that was to be killed after this statement of its job (0: just before the commit)."""
        return self.wait(self._ask(job, address, statement))

    def wait(self, child: int) -> int:
        return self._ask("wait", child)


@pytest.fixture(scope="module")
def nursery() -> Iterator[_Nursery]:
    nursery = _Nursery()
    yield nursery
    nursery.process.communicate()


def _whole(address: str) -> set[str]:
    """The ids of all runs, after the chain was found to hold and every run to have all its entries."""
    count = sa.text(
        "SELECT run_id, count(*) FROM payoff_ledger_entries WHERE kind NOT IN ('run', 'view') GROUP BY run_id"
    )
    with Ledger.open(address) as ledger:
        report = ledger.verify_chain()
        assert report.ok, report.detail
        headers = ledger.runs(limit=1_000_000)
        expected = {header.run_id: sum(header.payload["counts"].values()) for header in headers}
        with ledger._reading() as connection:
            assert dict(tuple(row) for row in connection.execute(count)) == expected
        assert report.entries == sum(1 + n for n in expected.values())
        return set(expected)


def test_several_processes_append_at_once_from_the_first_use_on(
    address: str, tmp_path: Path, nursery: _Nursery
) -> None:
    logs = [tmp_path / f"log{i}" for i in range(6)]
    writers = [nursery.write(address, f"w{i}", 15, log) for i, log in enumerate(logs)]
    assert [nursery.wait(writer) for writer in writers] == [0] * 6
    acknowledged = [run_id for log in logs for run_id in log.read_text().split()]
    assert len(acknowledged) == 90
    assert _whole(address) == set(acknowledged)


def test_a_kill_while_the_ledger_is_made_leaves_none_or_a_whole_one(address: str, nursery: _Nursery) -> None:
    statement, none, whole = 1, 0, 0
    while (ended := nursery.killed("create", address, statement)) != 0:
        assert ended == -signal.SIGKILL
        try:
            with Ledger.open(address, read_only=True) as ledger:
                whole += ledger.verify_chain().ok
        except ConnectionFailed as error:
            none += "there is no ledger at" in str(error)
        statement += 1
    assert none + whole == statement - 1
    assert none > 10  # two tables, two indexes, the head and every trigger were each cut off
    with Ledger.open(address) as ledger:
        ledger.append(_run(run_id="one"))
    _refuses_changes(address)
    assert _whole(address) == {"one"}


def _refuses_changes(address: str) -> None:
    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
        _execute(address, "DELETE FROM payoff_ledger_entries")


def test_threads_share_one_ledger(address: str) -> None:
    with Ledger.open(address) as ledger, ThreadPoolExecutor(8) as pool:
        run_ids = list(pool.map(lambda i: ledger.append(_run(float(i))), range(24)))
        assert len(list(pool.map(ledger.run, run_ids))) == 24
    assert _whole(address) == set(run_ids)


def test_a_kill_between_any_two_statements_leaves_no_half_run(address: str, nursery: _Nursery) -> None:
    with Ledger.open(address) as ledger:
        ledger.append(_run(run_id="before"))
    statement = 1
    while (ended := nursery.killed("append", address, statement)) != 0:
        assert ended == -signal.SIGKILL
        assert _whole(address) == {"before"}
        statement += 1
    assert statement > 6  # begin, the id, the head, the last entry, the insert and the head's update were each cut off
    assert _whole(address) == {"before", "killed"}


def test_a_kill_just_before_the_commit_leaves_no_half_run(address: str, nursery: _Nursery) -> None:
    with Ledger.open(address) as ledger:
        ledger.append(_run(run_id="before"))
    assert nursery.killed("append", address, 0) == -signal.SIGKILL
    with Ledger.open(address, read_only=True) as ledger:  # a reader copes with what a killed writer left
        assert [header.run_id for header in ledger.runs()] == ["before"]
    assert _whole(address) == {"before"}
    with Ledger.open(address) as ledger:
        ledger.append(_run(run_id="killed"))
    assert _whole(address) == {"before", "killed"}


def test_a_storm_of_kills_loses_nothing_that_was_acknowledged(address: str, tmp_path: Path, nursery: _Nursery) -> None:
    dice = random.Random(20_260_101)
    logs: list[Path] = []
    writers: dict[int, Path] = {}
    for i in range(12):
        logs.append(tmp_path / f"log{i}")
        writers[nursery.write(address, f"w{i}", 1_000_000, logs[-1])] = logs[-1]
        if len(writers) == 4:
            victim = dice.choice(list(writers))
            log = writers.pop(victim)
            while not (log.exists() and log.read_text()):  # it has begun to write
                time.sleep(0.005)
            time.sleep(dice.uniform(0, 0.05))
            os.kill(victim, signal.SIGKILL)
            assert nursery.wait(victim) == -signal.SIGKILL
    for writer in writers:
        os.kill(writer, signal.SIGKILL)
        assert nursery.wait(writer) == -signal.SIGKILL
    acknowledged = {
        run_id for log in logs if log.exists() for run_id in log.read_text().splitlines() if len(run_id) == 32
    }
    kept = _whole(address)
    assert acknowledged <= kept
    assert len(kept - acknowledged) <= len(logs)  # at most one each: committed, and killed before it could say so


# ---------------------------------------------------------------- what goes wrong around it


def _failure(action: object, match: str) -> str:
    assert callable(action)
    with pytest.raises(ConnectionFailed, match=match) as caught:
        action()
    assert caught.value.exit_code == 3
    assert "Traceback" not in str(caught.value)
    assert "sqlite3." not in str(caught.value)
    assert "psycopg." not in str(caught.value)
    return str(caught.value)


def test_locked_for_too_long(address: str) -> None:
    with Ledger.open(address) as holder, Ledger.open(address, timeout=0.2) as ledger:
        holder.append(_run(run_id="one"))
        with holder._writing():
            _failure(
                lambda: ledger.append(_run()), "could not be written: another process has held it for more than 0.2"
            )
            assert ledger.run("one").run_id == "one"  # reading goes on
        ledger.append(_run(run_id="two"))
    assert _whole(address) == {"one", "two"}


def test_the_first_use_waits_for_whoever_is_writing(tmp_path: Path) -> None:
    """SQLite itself does not wait here: changing to write-ahead logging beside a writer fails at once."""
    path = tmp_path / "ledger.db"
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("CREATE TABLE theirs (x)")
    holder.execute("BEGIN IMMEDIATE")
    _failure(lambda: Ledger.open(path, timeout=0.1), "another process has held it for more than 0.1 seconds")
    release = threading.Timer(0.5, holder.rollback)
    release.start()
    with Ledger.open(path) as ledger:
        ledger.append(_run(run_id="one"))
    release.join()
    holder.close()
    assert _whole(f"sqlite:///{path}") == {"one"}


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        ledger.append(_run(run_id="one"))
        with ledger._engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
        text = _failure(lambda: ledger.append(_run(run_id="two", note="x" * 100_000)), "the disk is full")
        assert "Nothing was added, and what it held before is untouched" in text
        assert str(path) in text
        with ledger._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        ledger.append(_run(run_id="two", note="x" * 100_000))
    assert _whole(f"sqlite:///{path}") == {"one", "two"}


_LIMITED = """
import resource, sys
from payoff.errors import ConnectionFailed
from payoff.ledger import Ledger
with Ledger.open(sys.argv[1]) as ledger:
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
    try:
        for i in range(1000):
            ledger.append({"project": "acme", "run_id": f"run{i}", "results": [{"name": "r", "text": "x" * 50_000}]})
    except ConnectionFailed as error:
        print(i, error)
"""


def test_a_file_size_limit_loses_nothing(tmp_path: Path) -> None:
    """The real thing as the operating system does it: write() fails in the middle of the write-ahead log."""
    process = _python(_LIMITED, tmp_path / "ledger.db")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    stopped, _, message = output.partition(" ")
    assert int(stopped) > 1
    assert "could not be written: the disk refused" in message or "the disk is full" in message
    assert _whole(f"sqlite:///{tmp_path}/ledger.db") == {f"run{i}" for i in range(int(stopped))}


@pytest.fixture
def other_user() -> Iterator[Path]:
    """A folder that this process may not write to; as root, by becoming nobody for the test's time."""
    folder = Path(tempfile.mkdtemp(prefix="payoff-ledger-"))
    folder.chmod(0o755)
    with Ledger.open(folder / "ledger.db") as ledger:
        ledger.append(_run(run_id="one"))
    (folder / "ledger.db").chmod(0o444)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_folder_that_may_not_be_written_to(other_user: Path) -> None:
    def append() -> None:
        with Ledger.open(other_user / "ledger.db") as ledger:
            ledger.append(_run())

    _failure(append, "may not be written to|cannot be opened")
    _failure(lambda: Ledger.open(other_user / "new.db"), "cannot be opened; look whether")
    _failure(lambda: Ledger.open(other_user / ".payoff" / "ledger.db"), "could not be made: Permission denied")
    with Ledger.open(other_user / "ledger.db", read_only=True) as ledger:  # an archive can be read and checked
        assert ledger.verify_chain().ok
        assert ledger.run("one").run_id == "one"


def test_an_archive_with_an_unfinished_log_is_not_read(other_user: Path) -> None:
    """What is only in the write-ahead log must not be left out without a word because the folder cannot be written."""
    with Ledger.open(other_user / "ledger.db", read_only=True) as ledger:
        assert ledger.verify_chain().entries == 4
    own = Path(tempfile.mkdtemp())
    try:
        with Ledger.open(own / "ledger.db") as ledger:
            ledger.append(_run(run_id="one"))
            (own / "archive").mkdir()
            for name in ("ledger.db", "ledger.db-wal"):
                shutil.copy(own / name, own / "archive" / name)
        assert (own / "archive" / "ledger.db-wal").stat().st_size > 0
        (own / "archive").chmod(0o555)
        _failure(lambda: Ledger.open(own / "archive" / "ledger.db", read_only=True), "cannot be opened; look whether")
    finally:
        (own / "archive").chmod(0o755)
        shutil.rmtree(own)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_text("name,value\n" * 500)
    for read_only in (False, True):
        _failure(lambda ro=read_only: Ledger.open(path, read_only=ro), "this file is not a ledger")
    assert path.read_text() == "name,value\n" * 500


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        for _ in range(20):
            ledger.append(_run(note="x" * 5000))
    content = bytearray(path.read_bytes())
    content[8192:-4096] = random.Random(1).randbytes(len(content) - 8192 - 4096)
    path.write_bytes(content)

    def use() -> None:
        with Ledger.open(path) as ledger:
            ledger.verify_chain()

    _failure(use, "the file is damaged; keep it, restore it from a copy")
    path.write_bytes(content[:5000])
    _failure(use, "the file is damaged; keep it, restore it from a copy")


def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    _failure(lambda: Ledger.open(tmp_path / "ledger.db", read_only=True), "there is no ledger at")
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.append(_run())


def test_places_that_are_not_there(tmp_path: Path) -> None:
    _failure(lambda: Ledger.open(tmp_path / "no" / "ledger.db"), "there is no folder .*no; make it first")
    _failure(lambda: Ledger.open(tmp_path), "is a folder; give the path of a file")
    _failure(lambda: Ledger.open(tmp_path, read_only=True), "is a folder; give the path of a file")
    _failure(lambda: Ledger.open("/dev/null", read_only=True), "is not a file")
    _failure(lambda: Ledger.open(tmp_path / "no" / ".payoff" / "ledger.db"), "No such file or directory")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("mysql://ada:hunter2@db/x", "kept in SQLite or PostgreSQL, not in 'mysql'"),
        ("sqlite://", "is a file: give its path"),
        ("sqlite:///:memory:", "is a file: give its path"),
        ("postgresql://ada:hunter2@db", "names no database"),
        ("postgresql://ada:hun@ter2@db/x", "cannot be understood"),
        ("postgresql://ada:5432:hunter2", "cannot be understood"),
        ("postgresql://ada:hunter2@db:hunter2/x", "cannot be understood"),
        ("://hunter2", "cannot be understood"),
    ],
)
def test_addresses_that_make_no_sense(address: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Ledger.open(address)
    for part in ("hunter2", "hun", "ter2"):
        assert part not in str(caught.value) + repr(caught.value)


def test_the_postgresql_driver_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"pip install 'payoff\[postgres\]'"):
        Ledger.open(f"postgresql://ada:{QUOTED}@127.0.0.1/x")


def test_sqlite_does_not_load_the_postgresql_driver(tmp_path: Path) -> None:
    script = "import sys; from payoff.ledger import Ledger; Ledger.open(sys.argv[1]).close(); print('psycopg' in sys.modules)"
    process = _python(script, tmp_path / "ledger.db")
    output, errors = process.communicate()
    assert output == "False\n", errors


def test_no_password_in_what_postgresql_says(postgres_server: tuple[str, int]) -> None:
    host, port = postgres_server
    with socket.socket() as probe:
        probe.bind((host, 0))
        closed = probe.getsockname()[1]
        cases = [
            (_postgres(postgres_server, password="wr0ng%40pass"), "password authentication failed"),
            (_postgres(postgres_server, "nowhere"), "does not exist"),
            (f"postgresql://owner:{QUOTED}@{host}:{closed}/postgres", "refused"),
            (f"postgresql://owner@{host}:{port}/postgres?password=wr0ng%40pass", "password authentication failed"),
            # the driver repeats what it was given: it is masked, wherever it stands
            (f"postgresql://owner:wr0ng%40pass@{host}/postgres?sslmode=wr0ng%40pass", r"sslmode.*\*\*\*"),
        ]
        for address, message in cases:
            with pytest.raises(ConnectionFailed, match=message) as caught:
                Ledger.open(address)
            for secret in (PASSWORD, QUOTED, "wr0ng"):
                assert secret not in _shown(caught.value)
    with Ledger.open(_new_database(postgres_server)) as ledger:
        assert repr(ledger).startswith(f"Ledger('postgresql://owner@{host}:{port}/ledger_")


def test_a_user_without_rights(postgres_server: tuple[str, int]) -> None:
    address = _new_database(postgres_server)
    user = f"guest_{time.time_ns()}"
    _execute(address, f"CREATE ROLE {user} LOGIN PASSWORD 'guest-word'")
    as_guest = address.replace(f"owner:{QUOTED}", f"{user}:guest-word")
    _failure(lambda: Ledger.open(as_guest), "this user may not; it needs the right to create tables")
    with Ledger.open(address) as ledger:
        ledger.append(_run(run_id="one"))
    _failure(lambda: Ledger.open(as_guest), "this user may not; it needs the right")
    _execute(address, f"GRANT SELECT ON payoff_ledger_head, payoff_ledger_entries TO {user}")
    with Ledger.open(as_guest) as ledger:
        assert ledger.run("one").run_id == "one"
        _failure(lambda: ledger.append(_run()), "Nothing was added, and what it held before is untouched")


def test_a_connection_that_breaks(postgres_server: tuple[str, int]) -> None:
    address = _new_database(postgres_server)
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with Ledger.open(address) as ledger:
        ledger.append(_run(run_id="one"))

        def broken() -> None:
            with ledger._writing() as connection:
                _execute(address, cut)
                connection.execute(sa.text("SELECT 1"))

        text = _failure(broken, "could not be written")
        assert "Whether the last entries were kept is not known" in text
        ledger.append(_run(run_id="two"))  # and the next call connects again
    assert _whole(address) == {"one", "two"}


# ---------------------------------------------------------------- comparing


def test_last_bits_are_no_difference() -> None:
    old = {"estimates": [{"value": 0.3, "n": {"a": 10}}], "zero": 0.0}
    assert compare(old, {"estimates": [{"value": 0.1 + 0.2, "n": {"a": 10}}], "zero": 1e-13}) == []
    assert compare(old, {"estimates": [{"value": 0.3 * (1 + 1e-10), "n": {"a": 10}}], "zero": 0}) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"x": 1.0}, {"x": 1.0 + 1e-8}, [Difference("x", 1.0, 1.0 + 1e-8)]),
        ({"x": 0.0}, {"x": 1e-11}, [Difference("x", 0.0, 1e-11)]),
        ({"x": 10**18}, {"x": 10**18 + 1}, [Difference("x", 10**18, 10**18 + 1)]),
        ({"x": True}, {"x": 1}, [Difference("x", True, 1)]),
        ({"x": 1.0}, {"x": True}, [Difference("x", 1.0, True)]),
        ({"x": None}, {"x": 0.0}, [Difference("x", None, 0.0)]),
        ({"x": None}, {}, [Difference("x", None, ABSENT)]),
        ({}, {"x": 1}, [Difference("x", ABSENT, 1)]),
        ({"x": "a"}, {"x": "b"}, [Difference("x", "a", "b")]),
        ({"x": {"y": 1}}, {"x": [1]}, [Difference("x", {"y": 1}, [1])]),
        ({"x": [1, 2]}, {"x": [1]}, [Difference("x[1]", 2, ABSENT)]),
        ({"a": {"b": [{"c": 1.0}]}}, {"a": {"b": [{"c": 2.0}]}}, [Difference("a.b[0].c", 1.0, 2.0)]),
        ({"b": 1, "a": 1}, {"a": 2, "b": 2}, [Difference("a", 1, 2), Difference("b", 1, 2)]),
    ],
)
def test_differences_have_their_place(
    old: dict[str, object], new: dict[str, object], expected: list[Difference]
) -> None:
    found = compare(old, new)
    assert found == expected
    assert [type(d.new) for d in found] == [type(d.new) for d in expected]


def test_times_and_versions_are_no_difference_but_context() -> None:
    old, new = _run(run_id="one"), _run(run_id="two", started="later", seed=8, definition_hash="d2")
    new["versions"] = {"payoff": "0.2", "numpy": "2"}
    new["data_fingerprint"] = {"orders": "f2"}
    assert compare(old, new) == []
    assert context_changes(old, new) == [
        "the definition changed from d1 to d2",
        'the data changed from {"orders":"f1"} to {"orders":"f2"}',
        "the version of numpy changed from (absent) to 2",
        "the version of payoff changed from 0.1 to 0.2",
        "the seed changed from 7 to 8",
    ]
    assert compare(old, new, ignore=()) != []
    assert context_changes(old, old) == []


def test_context_is_read_under_provenance_too() -> None:
    old = {"name": "r", "provenance": {"definition_hash": "a" * 64, "sql": [{"step": "s", "text": "SELECT 1"}]}}
    new = {"name": "r", "provenance": {"definition_hash": "b" * 64, "sql": [{"step": "s", "text": "SELECT 2"}]}}
    assert compare(old, new) == []
    assert context_changes(old, new) == [
        "the definition changed from aaaaaaaaaaaa... to bbbbbbbbbbbb...",
        "the SQL that was executed changed",
    ]
    assert context_changes(old, {"name": "r"}) == []


def test_comparing_refuses_what_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="x is nan"):
        compare({"x": 1.0}, {"x": math.nan})


@given(st.dictionaries(_TEXT, _JSON, max_size=4))
def test_nothing_differs_from_itself(value: dict[str, object]) -> None:
    assert compare(value, value) == []
    assert compare(value, json.loads(canonical_json(value))) == []


@given(st.dictionaries(_TEXT, _JSON, max_size=4), st.dictionaries(_TEXT, _JSON, max_size=4))
def test_differences_turn_around(old: dict[str, object], new: dict[str, object]) -> None:
    forth, back = compare(old, new), compare(new, old)
    assert [(d.path, d.old, d.new) for d in forth] == [(d.path, d.new, d.old) for d in back]

"""The ledger: every run, result, claim, refusal and view, kept in order and never rewritten.

One table of entries, each holding the hash of the one before it, and one head row that says how many there are and what
the last hash is. An entry that is edited, removed, moved or cut from the end therefore shows. SQLite by default,
PostgreSQL by URL. This layer knows JSON and no noun of Payoff: what it is given comes back equal.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from payoff.errors import ConnectionFailed, MissingExtra, UsageError, did_you_mean

SCHEMA_VERSION: Final = 1
GENESIS: Final = "0" * 64
"""The "previous hash" of the first entry."""
DEFAULT_PATH: Final = Path(".payoff") / "ledger.db"
SECTIONS: Final[Mapping[str, str]] = {"results": "result", "claims": "claim", "refusals": "refusal"}
"""The lists of a run, in the order they are stored, and the kind each of their items is stored as."""
ABSENT: Final = "(absent)"
"""Stands in a Difference for a key or an item that one side does not have."""
CONTEXT: Final = ("definition_hash", "data_fingerprint", "versions", "seed", "as_of", "sql")
"""Keys that say under which conditions figures came about: a change there explains a difference, it is not one."""
VOLATILE: Final = frozenset({*CONTEXT, "run_id", "started", "finished", "command", "actor", "host"})
"""What ``compare`` leaves out unless told otherwise: the context, and what differs between any two runs."""

_Row = Mapping[str, Any] | sa.RowMapping

_METADATA = sa.MetaData()
_HEAD = sa.Table(
    "payoff_ledger_head",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("entries", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)
_ENTRIES = sa.Table(
    "payoff_ledger_entries",
    _METADATA,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)
sa.Index("payoff_ledger_entries_name", _ENTRIES.c.kind, _ENTRIES.c.name, _ENTRIES.c.seq)
sa.Index("payoff_ledger_entries_run", _ENTRIES.c.run_id)

_APPEND_ONLY = "the ledger is append-only: entries are never changed or removed"
# On SQLite "INSERT OR REPLACE" removes a row without firing its delete trigger, so an insert must be the next in line.
_TRIGGERS: Final[Mapping[str, tuple[str, ...]]] = {
    "sqlite": (
        f"""CREATE TRIGGER payoff_ledger_no_update BEFORE UPDATE ON payoff_ledger_entries
            BEGIN SELECT RAISE(ABORT, '{_APPEND_ONLY}'); END""",
        f"""CREATE TRIGGER payoff_ledger_no_delete BEFORE DELETE ON payoff_ledger_entries
            BEGIN SELECT RAISE(ABORT, '{_APPEND_ONLY}'); END""",
        f"""CREATE TRIGGER payoff_ledger_next_only BEFORE INSERT ON payoff_ledger_entries
            WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM payoff_ledger_entries)
            BEGIN SELECT RAISE(ABORT, '{_APPEND_ONLY}'); END""",
        f"""CREATE TRIGGER payoff_ledger_head_forward BEFORE UPDATE ON payoff_ledger_head
            WHEN NEW.id IS NOT OLD.id OR NEW.entries < OLD.entries OR NEW.schema_version < OLD.schema_version
            BEGIN SELECT RAISE(ABORT, '{_APPEND_ONLY}'); END""",
        f"""CREATE TRIGGER payoff_ledger_head_stays BEFORE DELETE ON payoff_ledger_head
            BEGIN SELECT RAISE(ABORT, '{_APPEND_ONLY}'); END""",
        f"""CREATE TRIGGER payoff_ledger_head_single BEFORE INSERT ON payoff_ledger_head
            BEGIN SELECT RAISE(ABORT, '{_APPEND_ONLY}'); END""",
    ),
    "postgresql": (
        f"""CREATE FUNCTION payoff_ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION '{_APPEND_ONLY}'; END $$""",
        """CREATE TRIGGER payoff_ledger_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON payoff_ledger_entries
            FOR EACH STATEMENT EXECUTE FUNCTION payoff_ledger_refuse()""",
        """CREATE TRIGGER payoff_ledger_head_stays BEFORE INSERT OR DELETE OR TRUNCATE ON payoff_ledger_head
            FOR EACH STATEMENT EXECUTE FUNCTION payoff_ledger_refuse()""",
        """CREATE TRIGGER payoff_ledger_head_forward BEFORE UPDATE ON payoff_ledger_head FOR EACH ROW
            WHEN (NEW.id <> OLD.id OR NEW.entries < OLD.entries OR NEW.schema_version < OLD.schema_version)
            EXECUTE FUNCTION payoff_ledger_refuse()""",
    ),
}
_POSTGRESQL_CREATION_LOCK: Final = 0x7061796F6666  # "payoff": two first runs at once must not both create the tables
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_URL_CREDENTIALS = re.compile(r"""([A-Za-z][A-Za-z0-9+.-]*://[^\s:/@'"]*:)[^\s'"]*@""")
_PASSWORD_SETTING = re.compile(
    r"""(\b(?:ssl)?(?:password|passwd|pwd)\s*=\s*)('[^']*'|"[^"]*"|[^\s;&,'")]+)""", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger. ``at`` is when it was written (UTC, ISO 8601); ``payload`` is the JSON it holds."""

    seq: int
    at: str
    project: str
    run_id: str
    kind: str
    name: str
    payload: Mapping[str, Any]
    hash: str


@dataclass(frozen=True, slots=True)
class Seen:
    """One stored result: when it was made, by whom (empty where that was not kept), and what it said."""

    at: str
    actor: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One run: ``header`` is its first entry, ``entries`` its results, claims and refusals as they were given."""

    header: Entry
    entries: tuple[Entry, ...]

    @property
    def run_id(self) -> str:
        return self.header.run_id

    def to_dict(self) -> dict[str, Any]:
        """The run as it was appended: its header's keys, and the lists ``results``, ``claims`` and ``refusals``."""
        run = {key: value for key, value in self.header.payload.items() if key != "counts"}
        for section, kind in SECTIONS.items():
            run[section] = [dict(entry.payload) for entry in self.entries if entry.kind == kind]
        return run


@dataclass(frozen=True, slots=True)
class Version:
    """One stored version of a claim, result or refusal: when, in which run, and its head figures (flat, JSON)."""

    seq: int
    at: str
    run_id: str
    figures: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What ``verify_chain`` found. ``first_bad`` is the number of the first entry that does not hold, or None.

    ``head`` is the last hash: written down outside the ledger, it is a witness that no later rewriting can agree with.
    """

    entries: int
    ok: bool
    first_bad: int | None
    detail: str
    head: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "entries": self.entries,
            "ok": self.ok,
            "first_bad": self.first_bad,
            "detail": self.detail,
            "head": self.head,
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """``path`` reads like ``estimates[0].value``; ``old`` or ``new`` is ABSENT where only the other side has it."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {self.old} -> {self.new}"

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "old": self.old, "new": self.new}


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces, shortest floats that read back equal, characters as they are.

    Raises ValueError naming the place of what JSON cannot hold: NaN, infinity, a key that is not text, any other type.
    """
    return _dump(_storable(value, ""))


def _dump(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _storable(value: object, path: str) -> Any:
    """``value`` as plain JSON values, passwords masked. Raises ValueError naming the place of what JSON cannot hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{path or 'the value'} is text that is not valid Unicode, which the ledger cannot keep")
        return mask_passwords(str(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path or 'the value'} is {float(value)}: the ledger keeps finite numbers only")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{path or 'the value'} has the key {key!r}, which is not text")
        return {_storable(key, path): _storable(item, f"{path}.{key}" if path else key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item, f"{path}[{i}]") for i, item in enumerate(value)]
    raise ValueError(f"{path or 'the value'} is a {type(value).__name__}, which JSON cannot hold")


def mask_passwords(text: str) -> str:
    """``text`` with the passwords of URLs and of ``password=...`` settings replaced by ``***``."""
    if "://" in text:
        text = _URL_CREDENTIALS.sub(r"\1***@", text)
    return _PASSWORD_SETTING.sub(r"\1***", text)


def compare(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    rel_tol: float = 1e-9,
    abs_tol: float = 1e-12,
    ignore: Collection[str] = VOLATILE,
) -> list[Difference]:
    """Where two payloads differ, in the order of their keys; empty when they say the same.

    Numbers are equal within ``rel_tol`` or ``abs_tol``, because sums made in parallel differ in their last bits; whole
    numbers, texts and booleans only when identical. Keys in ``ignore`` are left out wherever they stand.
    """
    return list(_differences(_storable(old, ""), _storable(new, ""), "", rel_tol, abs_tol, frozenset(ignore)))


def context_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One sentence for each condition under which two runs or payloads came about that is not the same any more.

    Reads the keys of CONTEXT at the top level or under ``provenance``; a key that one side lacks is not compared.
    """
    before, after = (_storable({**side, **side.get("provenance", {})}, "") for side in (old, new))
    sentences = []
    for key in CONTEXT:
        if key not in before or key not in after or before[key] == after[key]:
            continue
        if key == "versions":
            changed = _differences(before[key], after[key], "", 0.0, 0.0, frozenset())
            sentences += [f"the version of {d.path} changed from {d.old} to {d.new}" for d in changed]
        elif key == "sql":
            sentences.append("the SQL that was executed changed")
        else:
            label = {"definition_hash": "definition", "data_fingerprint": "data", "as_of": "date it is asked for"}
            shown = [_short(side[key]) for side in (before, after)]
            sentences.append(f"the {label.get(key, key)} changed from {shown[0]} to {shown[1]}")
    return sentences


def _short(value: object) -> str:
    text = value if isinstance(value, str) else _dump(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def _differences(
    old: Any, new: Any, path: str, rel_tol: float, abs_tol: float, ignore: frozenset[str]
) -> Iterator[Difference]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new} - ignore):
            inner = f"{path}.{key}" if path else key
            yield from _differences(old.get(key, ABSENT), new.get(key, ABSENT), inner, rel_tol, abs_tol, ignore)
    elif isinstance(old, list) and isinstance(new, list):
        for i in range(max(len(old), len(new))):
            left, right = (side[i] if i < len(side) else ABSENT for side in (old, new))
            yield from _differences(left, right, f"{path}[{i}]", rel_tol, abs_tol, ignore)
    elif not _same(old, new, rel_tol, abs_tol):
        yield Difference(path, old, new)


def _same(old: Any, new: Any, rel_tol: float, abs_tol: float) -> bool:
    numbers = all(isinstance(side, int | float) and not isinstance(side, bool) for side in (old, new))
    if numbers and (isinstance(old, float) or isinstance(new, float)):
        return math.isclose(old, new, rel_tol=rel_tol, abs_tol=abs_tol)
    return bool(old == new) and isinstance(old, bool) == isinstance(new, bool)


def _digest(row: _Row) -> str:
    """SHA-256 of the previous hash followed by the canonical JSON of the entry, with its payload as the stored text."""
    body = {key: row[key] for key in ("seq", "at", "project", "run_id", "kind", "name", "payload")}
    return hashlib.sha256((row["previous"] + _dump(body)).encode()).hexdigest()


def _intact(row: _Row) -> bool:
    texts = (row[key] for key in ("at", "project", "run_id", "kind", "name", "payload", "previous", "hash"))
    return all(isinstance(text, str) for text in texts) and _digest(row) == row["hash"]


def _figures(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The few figures by which two versions of a payload are told apart, flat: ``net.value``, ``net.low``, ..."""
    figures = {
        key: payload[key]
        for key in ("grade", "verdict", "finding", "probability_positive", "reason", "actor")
        if payload.get(key) is not None
    }
    estimates = payload.get("estimates")
    groups: dict[str, Any] = {"amount": payload.get("amount"), "net": payload.get("net")}
    if isinstance(estimates, Sequence) and estimates:
        groups["estimate"] = estimates[0]
    for group, figure in groups.items():
        if isinstance(figure, Mapping):
            keys = ("metric", "contrast", "estimand", "value", "low", "high", "level", "unit")
            figures |= {f"{group}.{key}": figure[key] for key in keys if key in figure}
    decision = payload.get("decision")
    if isinstance(decision, Mapping) and "met" in decision:
        figures["decision.met"] = decision["met"]
    return figures


class Ledger:
    """An open ledger. Made by ``Ledger.open``; a context manager. Its methods may be called from several threads."""

    def __init__(self, engine: sa.Engine, label: str, *, read_only: bool, timeout: float) -> None:
        self._engine, self.label, self.read_only, self._timeout = engine, label, read_only, timeout

    @classmethod
    def open(cls, url_or_path: str | Path = DEFAULT_PATH, *, read_only: bool = False, timeout: float = 30.0) -> Ledger:
        """The ledger at a path, a ``sqlite:///`` URL or a ``postgresql://`` URL, made on first use.

        ``timeout`` is how many seconds to wait for another writer. With ``read_only`` nothing is created or written.
        Raises UsageError for an address that makes no sense, MissingExtra without the PostgreSQL driver and
        ConnectionFailed for everything that keeps it from being opened.
        """
        if isinstance(url_or_path, str) and "://" in url_or_path:
            url = _parse(url_or_path)
        else:
            url = sa.URL.create("sqlite", database=str(url_or_path))
        if url.get_backend_name() == "sqlite":
            path = Path(url.database or "").absolute()
            _look_for(path, read_only)
            engine, label = _sqlite_engine(path, read_only, timeout), str(path)
        else:
            engine, label = _postgresql_engine(url), _label(url)
        ledger = cls(engine, label, read_only=read_only, timeout=timeout)
        try:
            ledger._prepare()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({self.label!r})"

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(self, run: Mapping[str, Any], *, actor: str | None = None) -> str:
        """Keeps a whole run, or nothing of it, and returns its id (``run["run_id"]``, or a new one).

        ``run`` is the dict of ``payoff run --json``: ``project``, the lists ``results``, ``claims`` and ``refusals``
        (each item a mapping with a ``name``), and whatever else belongs to the run (started, finished,
        definition_hash, data_fingerprint, seed, versions, command, ...), which becomes its header. ``actor`` is who
        ran it, if that is to be kept. Raises ValueError for what cannot be kept as it is (NaN, an item without a
        name), UsageError for an id that is taken, ConnectionFailed when it could not be written.
        """
        if "counts" in run:
            raise ValueError("a run's key 'counts' is the ledger's own")
        project = run.get("project")
        if not isinstance(project, str) or not project:
            raise ValueError("a run needs the name of its project under 'project'")
        run_id = run.get("run_id") or uuid.uuid4().hex
        if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
            raise ValueError(f"a run id has 1 to 64 letters, digits, '-' and '_', which {run_id!r} does not")
        items: list[tuple[str, str, str]] = []
        for section, kind in SECTIONS.items():
            for i, item in enumerate(run.get(section) or ()):
                name = item.get("name") if isinstance(item, Mapping) else None
                if not isinstance(name, str) or not name:
                    raise ValueError(f"{section}[{i}] has no 'name'")
                items.append((kind, name, _dump(_storable(item, f"{section}[{i}]"))))
        header = {key: value for key, value in run.items() if key not in SECTIONS} | {"run_id": run_id}
        header["counts"] = {section: sum(kind == k for k, _, _ in items) for section, kind in SECTIONS.items()}
        if actor is not None:
            header["actor"] = actor
        items.insert(0, ("run", run_id, canonical_json(header)))
        with self._writing() as connection:
            taken = sa.select(_ENTRIES.c.seq).where(_ENTRIES.c.kind == "run", _ENTRIES.c.run_id == run_id)
            if connection.execute(taken).first():
                raise UsageError(f"the run '{run_id}' is in the ledger already; a run is kept once")
            self._extend(connection, project, run_id, items)
        return run_id

    def record_view(self, name: str, actor: str, *, project: str | None = None) -> int:
        """Notes that ``actor`` looked at the newest figure or refusal called ``name``; returns the note's number.

        Who saw interim figures, and when, is part of how far a final figure can be trusted. Raises UsageError when
        nothing of that name is kept.
        """
        if not actor:
            raise ValueError("a view needs the name of who looked")
        query = self._newest(None, name, project).where(_ENTRIES.c.kind.in_(tuple(SECTIONS.values())))
        with self._writing() as connection:
            row = connection.execute(query).mappings().first()
            if row is None:
                raise UsageError(f"the ledger has nothing called '{name}'{self._suggestion(connection, name)}")
            seen = self._entry(row)
            payload = {"name": name, "actor": actor, "seen": seen.seq, "seen_kind": seen.kind, "seen_hash": seen.hash}
            return self._extend(connection, seen.project, seen.run_id, [("view", name, canonical_json(payload))])

    def _extend(
        self, connection: sa.Connection, project: str, run_id: str, items: Sequence[tuple[str, str, str]]
    ) -> int:
        """Adds entries (kind, name, payload text) behind the head, in the transaction that holds its lock."""
        head = connection.execute(sa.select(_HEAD)).mappings().one_or_none()
        last = connection.execute(
            sa.select(_ENTRIES.c.seq, _ENTRIES.c.hash).order_by(_ENTRIES.c.seq.desc()).limit(1)
        ).one_or_none()
        if head is None or (head["entries"], head["hash"]) != (tuple(last) if last else (0, GENESIS)):
            raise ConnectionFailed(
                f"the ledger {self.label} was changed by something other than Payoff: its last entry is not the one "
                "its head names. Nothing was added; restore it from a copy, or start a new one at another address"
            )
        seq, previous = head["entries"], head["hash"]
        at = datetime.now(UTC).isoformat(timespec="microseconds")
        rows = []
        for kind, name, payload in items:
            seq += 1
            row = {"seq": seq, "at": at, "project": project, "run_id": run_id, "kind": kind, "name": name}
            row |= {"payload": payload, "previous": previous}
            previous = row["hash"] = _digest(row)
            rows.append(row)
        connection.execute(sa.insert(_ENTRIES), rows)
        connection.execute(sa.update(_HEAD).where(_HEAD.c.id == 1).values(entries=seq, hash=previous))
        return int(seq)

    # -- reading ------------------------------------------------------------------------------------------------------

    def latest(self, kind: str, name: str, *, project: str | None = None) -> Entry | None:
        """The newest entry of ``kind`` ("result", "claim", "refusal", "view") called ``name``, or None."""
        with self._reading() as connection:
            row = connection.execute(self._newest(kind, name, project)).mappings().first()
            return self._entry(row) if row else None

    def latest_run(self, *, project: str | None = None) -> StoredRun | None:
        """The newest run, whole, or None."""
        with self._reading() as connection:
            row = connection.execute(self._newest("run", None, project)).mappings().first()
            return self._stored_run(connection, self._entry(row)) if row else None

    def runs(self, limit: int = 20, *, project: str | None = None) -> list[Entry]:
        """The headers of the newest runs, newest first; ``payload["counts"]`` says how much each holds."""
        with self._reading() as connection:
            rows = connection.execute(self._newest("run", None, project).limit(limit)).mappings()
            return [self._entry(row) for row in rows]

    def history(self, kind: str, name: str, *, project: str | None = None) -> list[Version]:
        """Every stored version of ``name``, oldest first, with its time and head figures. Empty when there is none."""
        with self._reading() as connection:
            rows = connection.execute(self._newest(kind, name, project).limit(None)).mappings()
            entries = [self._entry(row) for row in rows]
        return [Version(e.seq, e.at, e.run_id, _figures(e.payload)) for e in reversed(entries)]

    def looks(self, name: str, *, project: str | None = None, before: int | None = None) -> list[Seen]:
        """Every stored result called ``name``, oldest first, with who made it; only those before entry ``before``."""
        found = self._newest("result", name, project).limit(None)
        headers = sa.select(_ENTRIES).where(_ENTRIES.c.kind == "run")
        if before is not None:
            found = found.where(_ENTRIES.c.seq < before)
        with self._reading() as connection:
            entries = [self._entry(row) for row in connection.execute(found).mappings()]
            runs = {entry.run_id for entry in entries}
            rows = connection.execute(headers.where(_ENTRIES.c.run_id.in_(runs))).mappings() if runs else ()
            actors = {row["run_id"]: self._entry(row).payload.get("actor") for row in rows}
        return [Seen(e.at, str(actors.get(e.run_id) or ""), e.payload) for e in reversed(entries)]

    def run(self, run_id: str) -> StoredRun:
        """The run with this id, or whose id is the only one to begin so. Raises UsageError when none or several do."""
        if not _RUN_ID.fullmatch(run_id):
            raise UsageError(f"{run_id!r} is not a run id: those have 1 to 64 letters, digits, '-' and '_'")
        begins = sa.func.substr(_ENTRIES.c.run_id, 1, len(run_id)) == run_id
        query = sa.select(_ENTRIES).where(_ENTRIES.c.kind == "run", begins).order_by(_ENTRIES.c.seq.desc()).limit(6)
        exact = sa.select(_ENTRIES).where(_ENTRIES.c.kind == "run", _ENTRIES.c.run_id == run_id)
        with self._reading() as connection:
            rows = connection.execute(exact).mappings().all() or connection.execute(query).mappings().all()
            if not rows:
                raise UsageError(f"the ledger has no run whose id begins with '{run_id}'")
            if len(rows) > 1:
                ids = ", ".join(row["run_id"] for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
                raise UsageError(f"several runs begin with '{run_id}': {ids}; give more of the id")
            return self._stored_run(connection, self._entry(rows[0]))

    def verify_chain(self, witness: str | None = None) -> ChainReport:
        """Recomputes every hash from the first entry to the head.

        ``witness`` is a head hash written down earlier: it must still be in the chain. Without one, whoever can rewrite
        the whole database, head included, can make a chain that holds; with one, not what came before it.
        """
        expected, previous, found = 1, GENESIS, witness is None or witness == GENESIS
        bad: tuple[int, str] | None = None
        count = 0
        with self._reading() as connection:
            head = connection.execute(sa.select(_HEAD)).mappings().one_or_none()
            rows = connection.execution_options(yield_per=1000).execute(sa.select(_ENTRIES).order_by(_ENTRIES.c.seq))
            for row in rows.mappings():
                count += 1
                if bad is None:
                    bad = _fault(row, expected, previous)
                    expected, previous = expected + 1, row["hash"]
                    found = found or row["hash"] == witness
        if bad is None and head is None:
            bad = (expected, "the head row is gone, so what came last cannot be told")
        elif bad is None and head is not None and (head["entries"], head["hash"]) != (count, previous):
            if head["entries"] > count:
                gone = head["entries"] - count
                detail = f"cut short: the head names {head['entries']} entries, and the last {gone} are gone"
            elif head["entries"] < count:
                detail = (
                    f"the head names {head['entries']} entries and there are {count}: some were added around Payoff"
                )
            else:
                detail = f"the head does not name entry {count}: head or entry was rewritten"
            bad = (min(head["entries"], count) + (head["entries"] != count), detail)
        if bad is None and not found:
            bad = (
                count,
                "the hash written down earlier is not in this chain: it is not the same ledger, or was rewritten",
            )
        detail = bad[1] if bad else f"{count} entries, each holds the hash of the one before it, up to the head"
        return ChainReport(count, bad is None, bad[0] if bad else None, detail, previous if bad is None else "")

    @staticmethod
    def _newest(kind: str | None, name: str | None, project: str | None) -> sa.Select[Any]:
        query = sa.select(_ENTRIES).order_by(_ENTRIES.c.seq.desc()).limit(1)
        for column, wanted in ((_ENTRIES.c.kind, kind), (_ENTRIES.c.name, name), (_ENTRIES.c.project, project)):
            if wanted is not None:
                query = query.where(column == wanted)
        return query

    def _suggestion(self, connection: sa.Connection, name: str) -> str:
        names = sa.select(_ENTRIES.c.name).where(_ENTRIES.c.kind.in_(tuple(SECTIONS.values()))).distinct()
        return did_you_mean(name, connection.scalars(names))

    def _entry(self, row: _Row) -> Entry:
        """A row as an Entry. A figure that is not the one that was written is never shown."""
        if not _intact(row):
            raise ConnectionFailed(
                f"entry {row['seq']} of the ledger {self.label} is not what was written: it was changed by something "
                "other than Payoff. It is not shown; restore the ledger from a copy"
            )
        labels = {key: row[key] for key in ("seq", "at", "project", "run_id", "kind", "name", "hash")}
        return Entry(payload=json.loads(row["payload"]), **labels)

    def _stored_run(self, connection: sa.Connection, header: Entry) -> StoredRun:
        kinds = tuple(SECTIONS.values())
        query = sa.select(_ENTRIES).where(_ENTRIES.c.run_id == header.run_id, _ENTRIES.c.kind.in_(kinds))
        rows = connection.execute(query.order_by(_ENTRIES.c.seq)).mappings()
        entries = tuple(self._entry(row) for row in rows)
        if len(entries) != sum(header.payload["counts"].values()):
            raise ConnectionFailed(
                f"the run {header.run_id} in the ledger {self.label} is not whole: entries were removed by something "
                "other than Payoff. It is not shown; restore the ledger from a copy"
            )
        return StoredRun(header, entries)

    # -- connections --------------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """One transaction that sees one state of the ledger, whatever others append meanwhile."""
        with self._plain_words("read"), self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """One transaction that holds the ledger's write lock from its beginning, so that the chain cannot fork."""
        with self._transaction() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(_HEAD.c.id).with_for_update())
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        if self.read_only:
            raise UsageError(f"the ledger {self.label} was opened for reading only")
        with self._plain_words("written"), self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                # READ COMMITTED: whoever waited for the head's lock must see the head as the one before left it.
                connection.execution_options(isolation_level="READ COMMITTED")
            else:
                connection.execution_options(payoff_begin="BEGIN IMMEDIATE")
            with connection.begin():
                if connection.dialect.name == "postgresql":
                    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {max(1, round(self._timeout * 1000))}")
                    connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
                yield connection

    def _prepare(self) -> None:
        """Creates the tables on first use and refuses a schema this version does not know."""
        with self._reading() as connection:
            tables = self._tables(connection)
        if not tables and not self.read_only:
            with self._transaction() as connection:
                if connection.dialect.name == "postgresql":
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_POSTGRESQL_CREATION_LOCK)))
                tables = self._tables(connection)
                if not tables:
                    _METADATA.create_all(connection)
                    first = {"id": 1, "schema_version": SCHEMA_VERSION, "entries": 0, "hash": GENESIS}
                    connection.execute(sa.insert(_HEAD).values(first))
                    for statement in _TRIGGERS[connection.dialect.name]:
                        connection.exec_driver_sql(statement)
                    tables = set(_METADATA.tables)
        if not tables:
            raise ConnectionFailed(f"there is no ledger at {self.label} yet; the first `payoff run` makes it")
        if tables != set(_METADATA.tables):
            gone = ", ".join(sorted(set(_METADATA.tables) - tables))
            raise ConnectionFailed(f"the ledger {self.label} has lost its table {gone}; restore it from a copy")
        with self._reading() as connection:
            version = connection.scalar(sa.select(sa.func.max(_HEAD.c.schema_version)))
        if version is not None and version > SCHEMA_VERSION:
            raise ConnectionFailed(
                f"the ledger {self.label} was written by a newer Payoff (its format is {version}, this one knows "
                f"{SCHEMA_VERSION}): pip install --upgrade payoff"
            )

    @staticmethod
    def _tables(connection: sa.Connection) -> set[str]:
        return set(_METADATA.tables) & set(sa.inspect(connection).get_table_names())

    @contextmanager
    def _plain_words(self, doing: str) -> Iterator[None]:
        """Turns what the database says into one sentence with its remedy, and without a password.

        The original is not chained: a driver may repeat the address it was given.
        """
        failure: SQLAlchemyError
        try:
            yield
            return
        except SQLAlchemyError as error:
            failure = error
        reason = _reason(failure, self._timeout)
        for secret in _secrets(self._engine.url):
            reason = reason.replace(secret, "***")
        lost = isinstance(failure, DBAPIError) and failure.connection_invalidated
        after = ""
        if doing == "written":
            after = ". Nothing was added, and what it held before is untouched"
            if lost:
                after = ". Whether the last entries were kept is not known: look at the newest run before trying again"
        raise ConnectionFailed(
            f"the ledger {self.label} could not be {doing}: {mask_passwords(reason)}{after}"
        ) from None


def _fault(row: _Row, expected: int, previous: str) -> tuple[int, str] | None:
    """What is wrong with the entry that should be number ``expected`` and follow the hash ``previous``, or None."""
    seq = row["seq"]
    if seq != expected:
        return expected, f"entry {expected} is gone: entry {seq} stands in its place"
    if not _intact(row):
        return (
            seq,
            f"entry {seq} ({row['kind']} {row['name']}) is not what was written: its hash does not match its content",
        )
    if row["previous"] != previous:
        return seq, f"entry {seq} ({row['kind']} {row['name']}) does not follow the one before it: moved, or put in"
    return None


def _look_for(path: Path, read_only: bool) -> None:
    """Makes the default ``.payoff`` folder, kept out of version control; any other folder must exist already."""
    if path.is_dir():
        raise ConnectionFailed(f"the ledger {path} is a folder; give the path of a file, such as {path / 'ledger.db'}")
    if path.exists() and not path.is_file():  # to open a pipe would wait for its other end
        raise ConnectionFailed(f"the ledger {path} is not a file; give the path of one")
    if read_only:
        if not path.exists():
            raise ConnectionFailed(f"there is no ledger at {path} yet; the first `payoff run` makes it")
        return
    try:
        if path.parent.name == DEFAULT_PATH.parent.name:
            path.parent.mkdir(exist_ok=True)
            ignore = path.parent / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise ConnectionFailed(f"the folder {path.parent} for the ledger could not be made: {error.strerror}") from None
    if not path.parent.is_dir():
        raise ConnectionFailed(f"the ledger {path} cannot be made: there is no folder {path.parent}; make it first")


def _parse(text: str) -> sa.URL:
    """The URL in ``text``. Its errors never repeat it, because what cannot be parsed cannot be masked either."""
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        url = None
    if url is None or re.search(r"[\s@?#]", url.host or ""):
        raise UsageError(
            "the ledger's address cannot be understood; it reads postgresql://user:password@host:5432/database, with "
            "special characters in user and password written as %XX (an @ is %40)"
        )
    backend = url.get_backend_name()
    if backend == "sqlite":
        if not url.database or url.database == ":memory:" or url.query or url.host:
            raise UsageError("a ledger in SQLite is a file: give its path, or sqlite:///path/ledger.db")
        return url
    if backend not in ("postgresql", "postgres"):
        raise UsageError(f"a ledger is kept in SQLite or PostgreSQL, not in '{backend}'")
    if not url.database:
        raise UsageError("the ledger's address names no database: postgresql://user@host:5432/database")
    return url.set(drivername="postgresql+psycopg")


def _label(url: sa.URL) -> str:
    """Where a ledger is, as it may be shown: without password and options."""
    return sa.URL.create("postgresql", url.username, None, url.host, url.port, url.database).render_as_string()


def _secrets(url: sa.URL) -> list[str]:
    """Every spelling of the passwords in a URL, longest first."""
    named = [value for key, value in url.query.items() if "password" in key.lower()]
    values = [str(url.password)] if url.password else []
    for value in named:
        values += [value] if isinstance(value, str) else list(value)
    spellings = {
        spelling for value in values for spelling in (value, sa.URL.create("x", password=value).password or "")
    }
    return sorted(filter(None, spellings), key=len, reverse=True)


def _postgresql_engine(url: sa.URL) -> sa.Engine:
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise MissingExtra("postgres", "a ledger in PostgreSQL") from None
    options = {} if "connect_timeout" in url.query else {"connect_timeout": 10}
    return sa.create_engine(url, connect_args=options, hide_parameters=True, pool_pre_ping=True)


def _sqlite_engine(path: Path, read_only: bool, timeout: float) -> sa.Engine:
    engine = sa.create_engine(
        "sqlite://", creator=lambda: _sqlite(path, read_only, timeout), poolclass=sa.QueuePool, hide_parameters=True
    )

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # The driver's own BEGIN comes only before the first write: too late to read one state, or to keep writers out.
        connection.exec_driver_sql(connection.get_execution_options().get("payoff_begin", "BEGIN"))

    return engine


_EFFECTIVE: Final = os.access in os.supports_effective_ids


def _sqlite(path: Path, read_only: bool, timeout: float) -> sqlite3.Connection:
    mode = "ro" if read_only else "rwc"
    try:
        return _sqlite_connect(f"{path.as_uri()}?mode={mode}", read_only, timeout)
    except sqlite3.OperationalError as error:
        # A WAL file cannot be read in a folder that cannot be written (an archive, a mounted artefact) unless SQLite is
        # told that nothing will change. That is so only when no writer left anything behind in the write-ahead log.
        log = path.with_name(path.name + "-wal")
        if not read_only or not path.is_file() or os.access(path.parent, os.W_OK, effective_ids=_EFFECTIVE):
            raise
        if log.exists() and log.stat().st_size:
            raise
        if not error.sqlite_errorname.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
            raise
    return _sqlite_connect(f"{path.as_uri()}?mode=ro&immutable=1", read_only, timeout)


def _sqlite_connect(uri: str, read_only: bool, timeout: float) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not read_only:
            _use_wal(connection, timeout)
            connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection, timeout: float) -> None:
    """Write-ahead logging, so that readers and the writer do not wait for each other.

    SQLite does not always wait for its busy timeout when two processes change the mode of a new file at once, so this
    does. Where the file system cannot do it, SQLite keeps its older journal, which is as safe.
    """
    deadline = time.monotonic() + timeout
    while True:
        if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            return
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


_SQLITE_REASONS: Final = (
    ("SQLITE_BUSY", "another process has held it for more than {timeout:g} seconds; try again when that one is done"),
    ("SQLITE_LOCKED", "another process has held it for more than {timeout:g} seconds; try again when that one is done"),
    ("SQLITE_FULL", "the disk is full, or the file has reached its limit; free some space and run it again"),
    (
        "SQLITE_IOERR",
        "the disk refused (full, over a quota or a size limit, or failing); free some space, run it again",
    ),
    ("SQLITE_READONLY", "it may not be written to; give yourself the right to write to the file and its folder"),
    ("SQLITE_PERM", "it may not be opened; give yourself the right to read and write the file and its folder"),
    ("SQLITE_CANTOPEN", "it cannot be opened; look whether its folder exists and whether you may read and write there"),
    (
        "SQLITE_NOTADB",
        "this file is not a ledger (not even a SQLite database); it was left as it is, give another path",
    ),
    ("SQLITE_CORRUPT", "the file is damaged; keep it, restore it from a copy, or start a new ledger at another path"),
)
_POSTGRESQL_REASONS: Final = (
    ("28", "the server does not let this user in; look at user and password"),
    ("3D000", "the server has no such database; create it first"),
    ("42501", "this user may not; it needs the right to create tables in the schema and to read and write them"),
    ("53100", "the server's disk is full; free some space and run it again"),
    ("53300", "the server has no connection free; try again later"),
    ("55P03", "another process has held it for more than {timeout:g} seconds; try again when that one is done"),
    ("25006", "the server takes no writes (a replica, perhaps); give the address of its primary"),
)


def _reason(error: SQLAlchemyError, timeout: float) -> str:
    original = error.orig if isinstance(error, DBAPIError) else error
    reasons: Iterable[tuple[str, str]]
    if isinstance(original, sqlite3.Error):
        code, reasons = getattr(original, "sqlite_errorname", ""), _SQLITE_REASONS
    else:
        code, reasons = getattr(original, "sqlstate", None) or "", _POSTGRESQL_REASONS
    for prefix, reason in reasons:
        if code.startswith(prefix):
            return reason.format(timeout=timeout)
    return next(iter(str(original).splitlines()), type(original).__name__)

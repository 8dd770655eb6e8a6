"""Incremental refresh: what earlier runs counted is kept, and a run counts only what is new.

Of each unit of each experiment two things are kept: its exposure (first time, lowest and highest arm, counts of rows), and the
folded values of its window. Both are of whole parts of the prepared layout (files, or months of a table), named with their
fingerprints; in which segments the parts lie together is of no matter. A part that is new and sorts last is folded on top; the units
that have rows in a part that changed, vanished or came late are counted anew over all segments, they alone; any other change makes
the state anew. A unit's rows are added one after another in the canonical order of parts, whichever way the state came about, so that
its values are the same to the last bit.

The store is a folder for each definition. Files are written under new names, and a manifest that names them is renamed into place
last: whoever reads finds the old state or the new one. What is torn by a machine that goes down is found by its checksum, and is
counted anew: so nothing waits for the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp

from payoff.stats.exact import ExactMoments
from payoff.warehouse import fused, prepared, walks
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.fused import Accumulators
from payoff.warehouse.layout import Exposure, Layout, Scan
from payoff.warehouse.locks import locked
from payoff.warehouse.prepared import UNIT, together, unpack
from payoff.warehouse.query import Query, column, fragment, sql
from payoff.warehouse.sources import View
from payoff.warehouse.statements import Statements, Step
from payoff.warehouse.units import Facts, Summed

if TYPE_CHECKING:
    from payoff.warehouse.prepared import Prepared, Segment

_PLACE = "file_row_number"
VERSION = 2
"""Of what the state holds and how it is folded: another number makes every state anew."""
UNUSED_DAYS = 30
"""A state that no run has used for so long is swept."""
_SPARE = 1.2
"""Rows that a column's file has room for, of those that it holds: what is added later is written beside it."""
_DELTA = 0.5
"""A share of the rows: when the changes kept beside the columns are more, the columns are written anew."""
_DELTAS = 50
"""Files of such changes: when there are as many, too."""
_BLOCK = 8192


# ---------------------------------------------------------------- the store


class Damaged(Exception):
    """A stored state cannot be used; the message says why."""


@dataclass(slots=True)
class Held:
    """A state in memory. ``columns`` have one value a row, the first ``rows`` of them used; they are private copies, and may be
    written. ``parts`` are arrays of any length, ``facts`` is what JSON can hold."""

    rows: int = 0
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    parts: dict[str, Array] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> np.ndarray:
        return self.columns[name][: self.rows]

    def grow(self, rows: int) -> None:
        """Room for more rows; what is in them is not set."""
        total = self.rows + rows
        for name, values in self.columns.items():
            if len(values) < total:
                larger = np.empty((int(total * _SPARE) + 64, *values.shape[1:]), values.dtype)
                larger[: self.rows] = values[: self.rows]
                self.columns[name] = larger
        self.rows = total


class Array:
    """An array of the store, read and checked when it is first asked for; or a new one, still to be written."""

    def __init__(self, data: np.ndarray | None = None, path: Path | None = None, told: Mapping[str, Any] | None = None):
        self._data, self.path, self.told = data, path, told

    def read(self) -> np.ndarray:
        """Raises Damaged."""
        if self._data is None:
            assert self.path is not None and self.told is not None
            raw = _read(self.path, self.told)
            self._data = np.frombuffer(raw, np.dtype(self.told["type"]))
        return self._data


def checksum(data: np.ndarray) -> str:
    """Of a contiguous array's bytes: the wrapping sums of blocks of 64 KiB, hashed. As fast as memory, and it tells every
    change of one word, every missing block and every block out of place."""
    raw = data.reshape(-1).view(np.uint8)
    words = raw[: len(raw) // 8 * 8].view(np.uint64)
    whole = len(words) // _BLOCK * _BLOCK
    digest = hashlib.blake2b(str(len(raw)).encode(), digest_size=16)
    digest.update(np.add.reduce(words[:whole].reshape(-1, _BLOCK), axis=1).tobytes())
    digest.update(words[whole:].tobytes())
    digest.update(raw[len(words) * 8 :].tobytes())
    return digest.hexdigest()


def _read(path: Path, told: Mapping[str, Any]) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read ({error.strerror})") from error
    if checksum(np.frombuffer(raw, np.uint8)) != told["sum"]:
        raise Damaged(f"{path.name} is not what was written")
    return raw


def _write(path: Path, pieces: Iterable[np.ndarray], length: int | None = None) -> None:
    """A new file. ``length``: of its bytes, where there is room to be left."""
    with open(path, "xb") as handle:
        for piece in pieces:
            handle.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
        if length is not None:
            handle.truncate(length)


class Store:
    """The state of one definition, in a folder of its own. One process writes at a time (``lock``); any may read."""

    def __init__(self, root: Path, definition: str) -> None:
        self.folder, self.definition = root / definition[:32], definition
        self._manifest: dict[str, Any] | None = None

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Whether this process may write, until it leaves. Raises OSError where no folder can be made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock") as alone:
            yield alone

    def _read_manifest(self) -> dict[str, Any] | None:
        try:
            told: Any = json.loads((self.folder / "manifest.json").read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Damaged("its manifest cannot be read") from error
        body = {key: value for key, value in told.items() if key != "sum"} if isinstance(told, dict) else {}
        if not body or told.get("sum") != _digest(body) or told["definition"] != self.definition:
            raise Damaged("its manifest is not what was written")
        return dict(told)

    def parts(self) -> dict[str, dict[str, str]] | None:
        """The parts that the state is of: relation -> ``of`` -> fingerprint; None where there is no state. Raises Damaged."""
        told = self._read_manifest()
        return None if told is None else told["facts"]["parts"]

    def load(self) -> Held | None:
        """The last state written whole, None where there is none. Raises Damaged where it cannot be used."""
        while True:
            told = self._read_manifest()
            try:
                return None if told is None else self._load(told)
            except Damaged:
                if self._read_manifest() == told:  # else another process has stored its own meanwhile
                    raise

    def _load(self, told: dict[str, Any]) -> Held:
        held = Held(told["first_rows"], facts=told["facts"])
        for name, of in told["columns"].items():
            held.columns[name] = self._column(of, told["first_rows"], told["room"])
        for delta in told["deltas"]:
            self._apply(held, delta)
        held.parts = {name: Array(None, self.folder / part["file"], part) for name, part in told["parts"].items()}
        self._manifest = told
        with suppress(OSError):
            os.utime(self.folder / "manifest.json")
        return held

    def _column(self, told: Mapping[str, Any], rows: int, room: int) -> np.ndarray:
        path, kind = self.folder / told["file"], np.dtype(told["type"])
        try:
            found = np.memmap(path, kind, "c", shape=(room, *told["wide"]))
        except (OSError, ValueError) as error:
            raise Damaged(f"{told['file']} cannot be read ({error})") from error
        if checksum(found[:rows]) != told["sum"]:
            raise Damaged(f"{told['file']} is not what was written")
        return found

    def _apply(self, held: Held, told: Mapping[str, Any]) -> None:
        raw = _read(self.folder / told["file"], told)
        changed, added = told["changed"], told["added"]
        at = np.frombuffer(raw, np.int64, changed)
        place, first = at.nbytes, held.rows
        held.grow(added)
        for name in sorted(held.columns):
            column = held.columns[name]
            wide = int(np.prod(column.shape[1:], dtype=int))
            values = np.frombuffer(raw, column.dtype, (changed + added) * wide, place)
            place += values.nbytes
            values = values.reshape(-1, *column.shape[1:])
            column[at] = values[:changed]
            column[first : first + added] = values[changed:]

    def save(self, held: Held, changed: np.ndarray | None) -> None:
        """Write a state; ``changed`` are the rows, of those that ``load`` gave, that are not as they were (None: any).

        Raises OSError where it cannot be written; the last state then stays. Call it under the ``lock``.
        """
        last, made = self._manifest, []
        mark = secrets.token_hex(6)
        try:
            told: dict[str, Any] = {"version": VERSION, "definition": self.definition, "mark": mark}
            told |= {"facts": held.facts, "parts": {}}
            for k, (name, part) in enumerate(held.parts.items()):
                if part.told is None or part.path is None:
                    data = part.read()
                    path = self.folder / f"{mark}-part{k}"
                    made.append(path)
                    _write(path, [data])
                    part.path, part.told = path, {"file": path.name, "type": data.dtype.str, "sum": checksum(data)}
                told["parts"][name] = part.told
            if last is None or changed is None or not self._beside(held, changed, last):
                room = int(held.rows * _SPARE) + 64
                told |= {"first_rows": held.rows, "room": room, "deltas": [], "columns": {}}

                def stored(k: int, name: str) -> tuple[str, dict[str, Any]]:
                    data = np.ascontiguousarray(held.column(name))
                    path = self.folder / f"{mark}-column{k}"
                    made.append(path)
                    _write(path, [data], room * int(np.prod(data.shape[1:], dtype=int)) * data.itemsize)
                    entry = {"file": path.name, "type": data.dtype.str, "sum": checksum(data), "wide": data.shape[1:]}
                    return name, entry

                with ThreadPoolExecutor() as several:
                    told["columns"] = dict(several.map(stored, range(len(held.columns)), sorted(held.columns)))
            else:
                first = last["first_rows"] + sum(delta["added"] for delta in last["deltas"])
                pieces = [np.ascontiguousarray(changed, np.int64)]
                for name in sorted(held.columns):
                    pieces += [held.columns[name][changed], held.columns[name][first : held.rows]]
                data = np.concatenate([piece.reshape(-1).view(np.uint8) for piece in pieces])
                path = self.folder / f"{mark}-delta"
                made.append(path)
                _write(path, [data])
                delta = {"file": path.name, "changed": len(changed), "added": held.rows - first, "sum": checksum(data)}
                told |= {key: last[key] for key in ("first_rows", "room", "columns")}
                told["deltas"] = [*last["deltas"], delta]
            told["sum"] = _digest(told)
            path = self.folder / f"{mark}-manifest"
            made.append(path)
            _write(path, [np.frombuffer(json.dumps(told).encode(), np.uint8)])
            os.replace(path, self.folder / "manifest.json")
        except OSError:
            for path in made:
                path.unlink(missing_ok=True)
            raise
        self._manifest = told
        self._sweep(told)

    def moved(self) -> bool:
        """Has another process stored a state since ``load``?"""
        try:
            now = self._read_manifest()
        except Damaged:
            return False
        return self._manifest is not None and (now is None or now["mark"] != self._manifest["mark"])

    def _beside(self, held: Held, changed: np.ndarray, last: Mapping[str, Any]) -> bool:
        """Are the changes few enough to be written beside the columns?"""
        kept = sum(delta["changed"] + delta["added"] for delta in last["deltas"])
        same = {name: (column["type"], tuple(column["wide"])) for name, column in last["columns"].items()}
        wanted = len(changed) + held.rows - last["first_rows"] - sum(delta["added"] for delta in last["deltas"])
        return (
            same == {name: (column.dtype.str, column.shape[1:]) for name, column in held.columns.items()}
            and held.rows <= last["room"]
            and len(last["deltas"]) < _DELTAS
            and kept + wanted <= _DELTA * last["first_rows"]
        )

    def _sweep(self, told: Mapping[str, Any]) -> None:
        named = {entry["file"] for entry in (*told["columns"].values(), *told["parts"].values(), *told["deltas"])}
        for path in self.folder.iterdir():
            if path.name not in named and path.name not in ("manifest.json", "lock"):
                path.unlink(missing_ok=True)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sweep(root: Path, now: float | None = None) -> int:
    """Remove the states that no run has used for UNUSED_DAYS; those that another process writes are left. How many."""
    gone, oldest = 0, (time.time() if now is None else now) - UNUSED_DAYS * 86_400
    for folder in root.iterdir() if root.is_dir() else ():
        manifest = folder / "manifest.json"
        used = manifest if manifest.exists() else folder
        if folder.is_dir() and used.stat().st_mtime < oldest:
            gone += drop(folder)
    return gone


def drop(folder: Path) -> int:
    """Remove one state, or (the folder of all) every state. How many."""
    if not folder.is_dir():
        return 0
    states = [folder] if (folder / "lock").exists() else [f for f in folder.iterdir() if f.is_dir()]
    for state in states:
        shutil.rmtree(state, ignore_errors=True)
    return len(states)


# ---------------------------------------------------------------- parts


@dataclass(frozen=True, slots=True)
class Change:
    """How the parts of segments differ from those that a state holds, by their ``of``. ``added`` may be folded on top; ``late`` are new but
    sort before one that was folded; of ``changed`` and ``gone`` the rows folded are no longer there."""

    added: tuple[str, ...]
    late: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]

    @property
    def rewritten(self) -> int:
        return len(self.late) + len(self.changed) + len(self.gone)


def compare(held: Mapping[str, str], now: Mapping[str, str]) -> Change:
    """Both: ``of`` -> fingerprint."""
    last = max(held, default="")
    new = sorted(now.keys() - held.keys())
    return Change(
        added=tuple(of for of in new if not held or of > last),
        late=tuple(of for of in new if held and of < last),
        changed=tuple(sorted(of for of in now.keys() & held.keys() if now[of] != held[of])),
        gone=tuple(sorted(held.keys() - now.keys())),
    )


# ---------------------------------------------------------------- what is kept of a unit

_NEVER = np.iinfo(np.int64).max
"""A time that no row has."""
_MOST_ARMS, _MOST_ROWS = 10_000, 2**31 - 1
"""Of arms that are told apart, and of a unit's rows in one experiment."""
_FEW = 0.05
"""A share of the exposures: the rows of fewer are looked for, those of more are met by reading all."""


class _Over(View):
    """A view over some segments of its prepared relation."""

    @classmethod
    def over(cls, view: View, segments: Sequence[Segment], only: str | None = None) -> View:
        out = object.__new__(cls)
        out.__dict__.update({k: v for k, v in view.__dict__.items() if k != "relation"})
        out.own = replace(view.own, select=walks.rows_of(segments, only))
        return out


class _Numbered(_Over):
    """The same, its unit being the number that it has there (-1 without an id)."""

    def unit(self, entity: str) -> exp.Expr:
        return fragment(f"coalesce({UNIT}, -1)")


def _only(segments: Iterable[Segment], ofs: Container[str]) -> list[Segment]:
    """The segments with the parts that are named, and no other rows."""
    return [found for segment in segments if (found := segment.only(ofs)) is not None]


class _TooMany(Exception):
    """There are more arms than a state counts, or more exposures than memory holds."""


class Refresh:
    """The exposures and folded values of one kind of unit, from the state as far as it holds them, else from the segments.

    After ``count`` the tables that a run reads (``exposed_ENTITY``, and ``values_K`` of each scan) are there, and ``told`` says
    how it went; ``keep`` stores the state. Nothing that it gives depends on how far there was a state.
    """

    def __init__(
        self,
        layout: Layout,
        entity: str,
        prepared: Mapping[str, Prepared],
        folds: Mapping[str, tuple[tuple[fused.Fold, ...], Query]],
        root: Path,
        *,
        full: bool,
    ) -> None:
        self.layout, self.entity = layout, entity
        self._statements = Statements(layout)
        assert isinstance(layout.catalog.engine, DuckDBEngine)
        self._engine = layout.catalog.engine
        self._exposures = [e for e in layout.exposures if e.entity == entity]
        self._scans = [s for s in layout.scans if s.entity == entity]
        views = [*(e.view for e in self._exposures), *(s.view for s in self._scans)]
        self._prepared = {view.relation.key: prepared[view.relation.key] for view in views}
        self._folds = {scan.table: folds[scan.table] for scan in self._scans}
        self._store = Store(root, self._definition())
        self._full = full
        self._changed = np.zeros(0, bool)
        self._were: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        self._whole = False
        self._fresh = False
        self._why = self._unkept = ""
        self.recounted = self.rows_read = 0
        self._held = Held()

    # ---------------------------------------------------------------- what it is of

    def _definition(self) -> str:
        parts: list[object] = [VERSION, self.entity]
        for exposure in self._exposures:
            parts.append(self._exposure(exposure, (), None).query.render())
            parts.append([self.layout.needs[x].experiment for x in exposure.experiments])
        for scan in self._scans:
            folds, query = self._folds[scan.table]
            parts.append([repr(folds), query.render(), sorted(scan.users)])
        for key, of in sorted(self._prepared.items()):
            parts.append([key, of.entity, dict(of.columns), of.numbering])
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()

    def _key(self, view: View) -> str:
        return view.relation.key

    def _segments(self, view: View) -> tuple[Segment, ...]:
        return self._prepared[view.relation.key].segments

    # ---------------------------------------------------------------- the run

    def open(self) -> Self:
        """Load the state there is."""
        self._count_of = {p.key: self._units_of(p) for p in self._prepared.values()}
        self._held = self._load()
        return self

    def foreseen(self) -> str:
        """How a run would go, in a clause; no row is read for it."""
        parts = sum(len(p.parts) for p in self._prepared.values())
        try:
            held = self._store.parts()
        except Damaged as error:
            return f"full: the state is damaged ({error}); {parts:,} parts"
        if held is None:
            return f"full: the first of its kind; {parts:,} parts"
        changes = {k: compare(held[k], p.parts) for k, p in self._prepared.items()}
        if any(c.rewritten > len(self._prepared[k].parts) / 2 for k, c in changes.items()):
            return f"full: more than half of the parts changed; {parts:,} parts"
        new = sum(len(c.added) + len(c.late) + len(c.changed) for c in changes.values())
        return f"refresh: {new:,} new parts of {parts:,}"

    def count(self) -> bool:
        """Bring exposures and values up to the segments that there are. False where that cannot be: there are too many arms, or
        more exposures than half of the engine's memory holds."""
        try:
            self._bring_up()
        except _TooMany:
            return False
        return True

    def _bring_up(self) -> None:
        try:
            self._count()
        except Damaged as error:
            looks = self._held.facts["looks"]
            self._held = self._none(f"the state was damaged ({error})")
            self._held.facts["looks"] = looks
            self._were, self.recounted, self.rows_read = [], 0, 0
            self._count()

    def _count(self) -> None:
        held, facts = self._held, self._held.facts
        self._before = held.rows
        self._changed = np.zeros(held.rows, bool)
        self._changes = {key: compare(facts["parts"][key], prepared.parts) for key, prepared in self._prepared.items()}
        for exposure in self._exposures:
            self._expose(exposure)
        if self._fresh and sum(c.nbytes for c in held.columns.values()) > self._engine.memory() / 2:
            raise _TooMany
        self._number()
        if self._fresh:
            self._arrange()
        for scan in self._scans:
            self._fold(scan)
        for key, of in self._prepared.items():
            self._note_units(key, of)
            facts["parts"][key] = of.parts
        if len(self._changed) < held.rows:
            self._changed = np.concatenate([self._changed, np.ones(held.rows - len(self._changed), bool)])
        self._tally()

    def _load(self) -> Held:
        if self._full:
            return self._none("asked for")
        try:
            held = self._store.load()
        except Damaged as error:
            return self._none(f"the state was damaged ({error})")
        if held is None:
            return self._none("the first of its kind")
        for key, of in self._prepared.items():
            if compare(held.facts["parts"][key], of.parts).rewritten > len(of.parts) / 2:
                return self._none("more than half of the parts changed")
        return held

    def _none(self, why: str) -> Held:
        """A state of no segment."""
        self._fresh, self._why = True, why
        columns: dict[str, Any] = {"x": np.int16, "unit": np.int32, "t0": np.int64, "lo": np.int32, "hi": np.int32}
        columns |= dict.fromkeys(("n", "no_time", "no_arm"), np.int32)
        for scan in self._scans:
            columns |= {f"{scan.table}_unit": np.int32, f"{scan.table}_t0": np.int64}
        made = Held(0, {name: np.empty(0, kind) for name, kind in columns.items()})
        made.facts = {"parts": {key: {} for key in self._prepared}}
        made.facts |= {"arms": [], "units": {}, "looks": {}, "moments": {}, "counts": []}
        return made

    # ---------------------------------------------------------------- exposures

    def _exposure(self, exposure: Exposure, segments: Sequence[Segment], only: str | None) -> Step:
        view = _Numbered.over(exposure.view, segments, only)
        return self._statements.exposure(replace(exposure, view=view))

    def _expose(self, exposure: Exposure) -> None:
        """Exposures of the parts that are new, merged; those of units in rewritten ones, counted anew."""
        key = self._key(exposure.view)
        change, segments = self._changes[key], self._segments(exposure.view)
        new = {*change.added, *change.late}
        read = _only(segments, new)
        if read:
            self._merge(exposure, self._counted(exposure, read, None))
        dirty = self._units_in(key, [*change.changed, *change.gone], change.changed)
        if len(dirty):
            places = _Places(self._held, exposure.experiments, dirty)
            for x in exposure.experiments:
                rows = places.of(x, dirty)
                rows = rows[rows >= 0]
                self._touch(rows)
                for name, empty in (("t0", _NEVER), ("lo", -1), ("hi", -1), ("n", 0), ("no_time", 0), ("no_arm", 0)):
                    self._held.columns[name][rows] = empty
            table = self._show(f"dirty_{exposure.table}", {"unit": dirty})
            self._merge(exposure, self._counted(exposure, segments, table))

    def _counted(self, exposure: Exposure, segments: Sequence[Segment], only: str | None) -> pa.Table:
        if not segments:
            return pa.table({})
        step = self._exposure(exposure, segments, only)
        return self._engine.fetch(step.query, step.name, exposure.view.name)

    def _merge(self, exposure: Exposure, found: pa.Table) -> None:
        if not found.num_rows:
            return
        held = self._held
        x, unit = found["x"].to_numpy().astype(np.int16), found["unit"].to_numpy()
        rows = np.full(len(x), -1, np.int64)
        if np.isin(held.column("x"), exposure.experiments).any():
            places = _Places(held, exposure.experiments, unit)
            for one in exposure.experiments:
                mine = np.flatnonzero(x == one)
                rows[mine] = places.of(one, unit[mine])
        t0 = pc.fill_null(found["t0"], _NEVER).to_numpy()
        counted = {n: np.array(found[n].cast(pa.int64()).to_numpy()) for n in ("n", "no_time", "no_arm")}
        lo, hi = self._codes(found["lo"]), self._codes(found["hi"])
        known, new = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
        rows = rows[known]
        self._touch(rows)
        for name, n in counted.items():
            n[known] += held.columns[name][rows]
            if len(n) and n.max() > _MOST_ROWS:
                raise _TooMany
        c, rank = held.columns, self._ranks()
        c["t0"][rows] = np.minimum(c["t0"][rows], t0[known])
        for name, n in counted.items():
            c[name][rows] = n[known]
        for name, codes, lower in (("lo", lo, True), ("hi", hi, False)):
            code, mine = codes[known], c[name][rows]
            better = rank[code] < rank[mine] if lower else rank[code] > rank[mine]
            c[name][rows] = np.where((code >= 0) & ((mine < 0) | better), code, mine)
        first = held.rows
        held.grow(len(new))
        added = {"x": x, "unit": unit, "t0": t0, "lo": lo, "hi": hi, **counted}
        for name, empty in self._blank().items():
            held.columns[name][first : held.rows] = added[name][new] if name in added else empty

    def _blank(self) -> dict[str, Any]:
        """What is in a row of which nothing is known yet."""
        out: dict[str, Any] = dict.fromkeys(self._held.columns, 0)
        for scan in self._scans:
            out |= {f"{scan.table}_unit": -1, f"{scan.table}_t0": _NEVER}
        return out

    def _codes(self, arms: pa.ChunkedArray) -> np.ndarray:
        """The number of each arm among ``facts['arms']``, -1 for NULL."""
        known: list[str] = self._held.facts["arms"]
        coded = arms.combine_chunks().dictionary_encode()
        number = {arm: i for i, arm in enumerate(known)}
        for arm in coded.dictionary.to_pylist():
            if arm not in number:
                number[arm] = len(known)
                known.append(arm)
        if len(known) > _MOST_ARMS:
            raise _TooMany
        table = np.array([*(number[arm] for arm in coded.dictionary.to_pylist()), -1], np.int32)
        codes: np.ndarray = table[pc.fill_null(coded.indices, len(table) - 1).to_numpy()]
        return codes

    def _ranks(self) -> np.ndarray:
        """The place of each arm in the engine's order, which is that of their bytes; one more for the code -1."""
        known: list[str] = self._held.facts["arms"]
        out = np.zeros(len(known) + 1, np.int64)
        out[sorted(range(len(known)), key=lambda i: known[i].encode())] = np.arange(len(known))
        return out

    def _touch(self, rows: np.ndarray) -> None:
        """Before rows are written: how they were."""
        if len(self._changed) < self._held.rows:
            self._changed = np.concatenate([self._changed, np.ones(self._held.rows - len(self._changed), bool)])
        first = np.unique(rows[~self._changed[rows]])
        if len(first):
            self._were.append((first, {name: self._held.columns[name][first] for name in self._kept()}))
            self._changed[first] = True

    # ---------------------------------------------------------------- numbers

    def _number(self) -> None:
        """The number that each exposed unit has among those of the events: one join of the ids, of what is new in either."""
        held = self._held
        for scan in self._scans:
            theirs = self._prepared[self._key(scan.view)]
            for exposure in self._exposures:
                ours = self._prepared[self._key(exposure.view)]
                mine = np.flatnonzero(np.isin(held.column("x"), exposure.experiments) & (held.column("unit") >= 0))
                name = f"{scan.table}_unit"
                if ours.units == theirs.units:
                    missing = mine[held.columns[name][mine] < 0]
                    self._touch(missing)
                    held.columns[name][missing] = held.columns["unit"][missing]
                    continue
                link = self._link(exposure, scan, ours, theirs)
                missing = mine[held.columns[name][mine] < 0]
                found = link[held.columns["unit"][missing]]
                missing, found = missing[found >= 0], found[found >= 0]
                self._touch(missing)
                held.columns[name][missing] = found

    def _arrange(self) -> None:
        """Rows by experiment, and in each in the order in which a walk meets their units: what lies together is read together.

        Only then is there room for their values, which are most of a row: it is not copied about.
        """
        held = self._held
        unit = held.column(f"{self._scans[0].table}_unit" if self._scans else "unit")
        x, none = held.column("x"), np.zeros(held.rows, np.int64)
        parts = [np.flatnonzero(x == one) for one in np.unique(x)]
        if parts:
            order = np.concatenate([part[fused.order(unit[part], none[part])] for part in parts])
            for values in held.columns.values():
                values[: held.rows] = values[order]
        for scan in self._scans:
            empty = Accumulators.empty(self._folds[scan.table][0], 1).cells
            assert not empty.any()  # no count and no sum begins elsewhere
            held.columns[f"{scan.table}_cells"] = np.zeros((held.rows, empty.shape[1]), np.int64)

    def _link(self, exposure: Exposure, scan: Scan, ours: Prepared, theirs: Prepared) -> np.ndarray:
        """Our unit's number -> theirs, -1 where they have it not."""
        held, name = self._held, f"link {exposure.table} {scan.table}"
        counts = [self._count_of[p.key] for p in (ours, theirs)]
        same = all(held.facts["units"].get(p.key) == n for p, n in zip((ours, theirs), counts, strict=True))
        if same and name in held.parts:
            return held.parts[name].read()
        link = np.full(counts[0], -1, np.int32)
        known = [held.facts["units"].get(p.key, 0) if name in held.parts else 0 for p in (ours, theirs)]
        if name in held.parts:
            old = held.parts[name].read()
            link[: len(old)] = old
        wanted = [fragment(f"a.{UNIT} >= $n", n=known[0])]
        if known[0]:
            wanted.append(fragment(f"a.{UNIT} < $a AND b.{UNIT} >= $b", a=known[0], b=known[1]))
        for condition in wanted:
            found = self._engine.fetch(
                sql(
                    f"SELECT a.{UNIT} AS ours, b.{UNIT} AS theirs FROM read_parquet($a) AS a JOIN read_parquet($b) AS b"
                    f" ON {self._cast('a')} = {self._cast('b')} WHERE $wanted",
                    a=ours.units,
                    b=theirs.units,
                    wanted=condition,
                ),
                "number the units",
            )
            link[found["ours"].to_numpy()] = found["theirs"].to_numpy()
        held.parts[name] = Array(link)
        return link

    def _cast(self, alias: str) -> str:
        return f"CAST({alias}.unit AS BIGINT)" if self.layout.key_type(self.entity) == "BIGINT" else f"{alias}.unit"

    def _units_of(self, prepared: Prepared) -> int:
        found = self._engine.row(
            sql(f"SELECT coalesce(max({UNIT}) + 1, 0) AS n FROM read_parquet($units)", units=prepared.units),
            "count the units",
        )
        return int(found["n"])

    def _note_units(self, key: str, prepared: Prepared) -> None:
        """Which units each new part has rows of: what is to be counted anew should it change."""
        held = self._held
        held.facts["units"][key] = self._count_of[key]
        change = self._changes[key]
        for of in (*change.changed, *change.gone):
            held.parts.pop(f"units {key} {of}", None)
        new = {*change.added, *change.late, *change.changed}
        for segment in prepared.segments:
            for part in segment.parts:
                if part.of in new:
                    held.parts[f"units {key} {part.of}"] = Array(segment.units(part))

    def _units_in(self, key: str, old: Iterable[str], now: Iterable[str]) -> np.ndarray:
        """The units with rows in parts as they were when they were folded, or (``now``) as they are."""
        wanted = set(now)
        found = [unpack(self._held.parts[f"units {key} {of}"].read()) for of in old]
        found += [unpack(s.units(p)) for s in self._prepared[key].segments for p in s.parts if p.of in wanted]
        units = np.concatenate([np.empty(0, np.int64), *found])
        marked = np.zeros(units.max(initial=-1) + 2, bool)  # -1, of rows without a unit, included
        marked[units + 1] = True
        return np.flatnonzero(marked) - 1

    # ---------------------------------------------------------------- values

    def _fold(self, scan: Scan) -> None:
        """Values on top of those held where a unit's rows are only more; of all segments for the others."""
        held, key, table = self._held, self._key(scan.view), scan.table
        change, segments = self._changes[key], self._segments(scan.view)
        c = {name: held.column(name) for name in held.columns}
        number, at, cells = c[f"{table}_unit"], c[f"{table}_t0"], c[f"{table}_cells"]
        enters = self._enters(c) & np.isin(c["x"], sorted(scan.users))
        anew = enters & (at != c["t0"])
        dirty = self._units_in(key, [*change.changed, *change.gone], [*change.changed, *change.late])
        if len(dirty):
            found = np.zeros(self._count_of[key] + 1, bool)
            found[dirty[dirty >= 0]] = True  # one more, for the units that no segment has
            anew |= enters & found[number]
        dropped = (at != _NEVER) & ~enters
        folds, projection = self._folds[table]
        rows = np.flatnonzero(anew | dropped)
        self._touch(rows)
        at[rows] = np.where(anew[rows], c["t0"][rows], _NEVER)
        if not self._fresh:  # they are empty still
            cells[rows] = Accumulators.empty(folds, 1).cells
        self.recounted += int(anew.sum())
        added = set(change.added)
        back = min(f.low or 0 for f in folds)
        reach = None if any(f.high is None for f in folds) else max(f.high or 0 for f in folds)
        rows = np.flatnonzero(anew & (number >= 0))
        if len(rows):
            first, last = int(c["t0"][rows].min()) + back, None if reach is None else int(c["t0"][rows].max()) + reach
            kept = self._prepared[key].parts.keys() - added
            earlier = [s for s in _only(segments, kept) if fused.reaches(s, first, last)]
            many = len(rows) > _FEW * len(anew)
            only = None if many else self._show(f"anew_{table}", {"unit": np.unique(number[rows])})
            self._walk(scan, projection, earlier, rows, only)
        new = _only(segments, added)
        if self._fresh:
            self._walk(scan, projection, new, np.flatnonzero(enters & (number >= 0)), None)
            return
        for segment in new:
            # only the units that it has rows of, where their windows reach it
            units = self._units_in(key, (), [part.of for part in segment.parts])
            places = _Places(held, sorted(scan.users), units, f"{table}_unit", enters)
            rows = np.concatenate([places.of(x, units) for x in places.experiments])
            rows = rows[rows >= 0]
            t0 = c["t0"][rows]
            if segment.first_us is not None and segment.last_us is not None:
                near = segment.last_us >= t0 + back
                rows = rows[near if reach is None else near & (segment.first_us < t0 + reach)]
                self._touch(rows)
                self._walk(scan, projection, [segment], rows, None)

    def _walk(
        self, scan: Scan, projection: Query, segments: Sequence[Segment], rows: np.ndarray, only: str | None
    ) -> None:
        """Add the rows of segments to the values of some exposures, one after another. ``only``: a table of their units."""
        if not segments or not len(rows):
            return
        c = self._held.columns
        table, what = scan.table, f"values of {scan.view.name}"
        number, t0 = c[f"{table}_unit"][rows], c["t0"][rows]
        x = c["x"][rows].astype(np.int64)
        exposures = fused.Exposures(rows, number.astype(np.int64), x, t0, {}).sorted()
        walk = fused.Walk(exposures, self._folds[table][0], c[f"{table}_cells"], exposures.uid)
        if only is None:
            self.rows_read += walks.through(
                self._engine, segments, projection, lambda: [walk.loop()], what, scan.view.name
            )
            return
        feed = walks.Feed([walk.loop()], len(segments), scan.view.name)
        for batch in self._few(projection, segments, only, what, scan.view.name):
            self.rows_read += batch.num_rows
            feed.add(batch)

    def _few(
        self, projection: Query, segments: Sequence[Segment], only: str, what: str, source: str
    ) -> Iterator[pa.RecordBatch]:
        """The rows of few units, in the order of the segments and of their files."""
        tree = projection.tree.copy().with_("prepared_rows", as_=walks.rows_of(segments, only))
        assert isinstance(tree, exp.Select)
        tree = tree.select(column("file_index"), column(_PLACE))
        found = self._engine.fetch(Query(tree), what, source)
        order = np.lexsort((found[_PLACE].to_numpy(), found["file_index"].to_numpy()))
        yield from found.drop_columns(["file_index", _PLACE]).take(order).combine_chunks().to_batches()

    @staticmethod
    def _enters(c: Mapping[str, np.ndarray]) -> np.ndarray:
        """Is it a unit with a time and one arm?"""
        one: np.ndarray = (c["n"] > 0) & (c["unit"] >= 0) & (c["lo"] == c["hi"]) & (c["lo"] >= 0) & (c["t0"] != _NEVER)
        return one

    # ---------------------------------------------------------------- what comes out

    def summed(self, view: View, query: Callable[[View], Query], what: str) -> dict[str, Any] | None:
        """The row of a statement of counts, and of earliest and latest times, over a whole source: what was asked of parts together
        is kept as long as they are all there.

        None where the source is not among those that are refreshed.
        """
        prepared = self._prepared.get(self._key(view))
        if prepared is None:
            return None
        mark = hashlib.sha256(f"{view.name} {query(_Over.over(view, ())).render()}".encode()).hexdigest()[:16]
        parts = prepared.parts
        looks: list[Any] = [
            look for look in self._held.facts["looks"].get(mark, ()) if look[0].items() <= parts.items()
        ]
        known = {of for ofs, _ in looks for of in ofs}
        unknown = _only(prepared.segments, parts.keys() - known)
        asked = [
            exp.select(exp.alias_(exp.convert(number), "number"), "*").from_(
                query(_Over.over(view, [segment])).tree.subquery("looked")
            )
            for number, segment in enumerate(unknown)
        ]
        if asked:
            every = Query(together(asked))
            for row in self._engine.fetch(every, what, view.name).to_pylist():
                ofs = {part.of: part.fingerprint for part in unknown[row.pop("number")].parts}
                looks.append([ofs, row])
        self._held.facts["looks"][mark] = looks
        rows = [row for _, row in looks]
        out: dict[str, Any] = {}
        for name in rows[0]:
            values = [row[name] for row in rows if row[name] is not None]
            total = min if name == "first_us" else max if name == "last_us" else sum
            out[name] = total(values) if values else None
        return out

    def steps(self) -> list[Step]:
        """What the figures are counted of, over all segments, whenever that was done."""
        out = []
        for exposure in self._exposures:
            out.append(self._exposure(exposure, self._segments(exposure.view), None))
        for scan in self._scans:
            tree = self._folds[scan.table][1].tree.copy()
            base = walks.rows_of(self._segments(scan.view))
            step = self._statements.scan(scan, None, None)
            purpose = "rows to be folded into one row a unit, outside SQL, one after another in this order"
            out.append(replace(step, purpose=purpose, query=Query(tree.with_("prepared_rows", as_=base))))
        return out

    @property
    def experiments(self) -> list[int]:
        return [x for exposure in self._exposures for x in exposure.experiments]

    def counts(self, x: int) -> tuple[dict[str, Any], dict[str, int]]:
        """Of an experiment: rows and units that have to be told of, and units by arm."""
        row: dict[str, Any] = next((r for r in self._held.facts["counts"] if r["arm"] == str(x)), {"arm": str(x)})
        counted: dict[str, Any] = {name: row.get(name, 0) for name in ("n", "no_id", "no_time", "no_arm", "several")}
        counted |= {"first_us": row.get("low_us"), "last_us": row.get("high_us")}
        of = {name.removeprefix("of "): n for name, n in row.items() if name.startswith("of ") and n}
        return counted, {arm: of[arm] for arm in sorted(of, key=str.encode)}

    def _tally(self) -> None:
        """The counts of experiments, moved by the units that are not as they were."""
        held = self._held
        if self._fresh:
            held.facts["counts"] = self._tallied({name: held.column(name) for name in self._kept()})
            return
        rows = np.flatnonzero(self._changed)
        were = {n: held.columns[n][rows[rows < self._before]] for n in self._kept()}
        self._as_they_were(rows[rows < self._before], were)
        whole, gone, came = (
            {row["arm"]: row for row in of}
            for of in (
                held.facts["counts"],
                self._tallied(were),
                self._tallied({n: held.columns[n][rows] for n in self._kept()}),
            )
        )
        moved = _moved(whole, gone, came)
        if moved is None:
            moved = self._tallied({name: held.column(name) for name in self._kept()})
        held.facts["counts"] = moved

    def _tallied(self, c: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        arms: list[str] = self._held.facts["arms"]
        out = []
        for x in self.experiments:
            mine = np.flatnonzero((c["x"] == x) & (c["n"] > 0))
            of = {name: c[name][mine] for name in ("unit", "t0", "lo", "hi", "n", "no_time", "no_arm")}
            known = of["unit"] >= 0
            times = of["t0"][known & (of["t0"] != _NEVER)]
            row: dict[str, Any] = {"arm": str(x), "n": int(of["n"].sum()), "no_id": int(of["n"][~known].sum())}
            row |= {name: int(of[name].sum()) for name in ("no_time", "no_arm")}
            row["several"] = int((known & (of["lo"] != of["hi"])).sum())
            row["low_us"], row["high_us"] = (int(times.min()), int(times.max())) if len(times) else (None, None)
            found = np.bincount(of["lo"][self._enters(of)], minlength=len(arms))
            out.append(row | {f"of {arm}": int(n) for arm, n in zip(arms, found, strict=True)})
        return out

    def show(self) -> None:
        """The tables that statements read: ``exposed_ENTITY`` and the values of each scan."""
        if not self._whole:
            self._tables({name: self._held.column(name) for name in self._held.columns}, ids=self._ids_are_read())
            self._whole = True

    def _tables(self, c: Mapping[str, np.ndarray], *, ids: bool = False) -> None:
        """The same tables of some rows alone, with the ``ids`` of units or, in one order, without."""
        self._whole = False
        arms: list[str] = self._held.facts["arms"]
        enters = self._enters(c)
        for exposure in self._exposures:
            for x in exposure.experiments:
                declared = self.layout.needs[x].arms
                if declared:
                    known = np.array([arm in declared for arm in arms] or [False])
                    enters &= (c["x"] != x) | known[c["lo"]]
        rows = np.flatnonzero(enters)
        named = pa.array(np.array(arms, object), pa.string())
        coded = pa.DictionaryArray.from_arrays(pa.array(c["lo"][rows]), named)
        exposed = {"uid": rows, "x": c["x"][rows], "arm": coded, "t0": c["t0"][rows]}
        name = f"exposed_{self.entity}"
        if ids:
            parts = {**exposed, "number": c["unit"][rows]}
            shown = self._show(f"numbered_{self.entity}", parts)
            branches = [
                sql(
                    f"SELECT r.uid, r.x, r.arm, r.t0, $unit AS unit FROM {shown} AS r JOIN read_parquet($units) AS u"
                    f" ON u.{UNIT} = r.number WHERE r.x IN $xs",
                    unit=fragment(self._cast("u")),
                    units=self._prepared[self._key(e.view)].units,
                    xs=exp.Tuple(expressions=[exp.convert(x) for x in e.experiments]),
                ).tree
                for e in self._exposures
            ]
            union = branches[0]
            for branch in branches[1:]:
                union = exp.union(union, branch, distinct=False)
            self._engine.show(name, self._engine.fetch(Query(union), f"number the {self.entity}s"))
        else:
            self._show(name, exposed)
        for scan in self._scans:
            folds, cells = self._folds[scan.table][0], c[f"{scan.table}_cells"]
            values = Accumulators(folds, cells if len(rows) == len(cells) else cells[rows])
            self._show(scan.table, {"uid": rows, **{fold.name: values.column(fold) for fold in folds}})

    # ---------------------------------------------------------------- moments

    def sums(self, x: int) -> bool:
        """Are the moments of an experiment sums over its units, each by itself? Percentiles and classes are of all together."""
        need = self.layout.needs[x]
        measures = [measure for metric in need.metrics for measure in metric.measures]
        return (
            need.entity == self.entity
            and not need.attributes
            and not need.beside
            and all(metric.quantile is None for metric in need.metrics)
            and all(measure.cap is None or measure.cap.percentile is None for measure in measures)
            and all(before.fold != "mean" for metric in need.metrics for before in metric.before)
        )

    def moments(self, x: int, step: Summed, make: Callable[[Facts], Summed], facts: Facts) -> list[dict[str, Any]]:
        """The rows of ``step``, the statement of moments of an experiment whose moments are ``sums``; ``make`` gives it of other facts.

        Those of units that are not as they were are taken back, as they were, and added as they are. Raises ValueError where a
        value is not finite or a variance too large.
        """
        held, c = self._held, self._held.columns
        cutoffs = {name: None if at is None else int(at.sql()) for name, at in facts.cutoffs.items()}
        assert step.rows is not None
        mark = f"{list(_numbered(cutoffs).items())} {step.query.render()} {step.rows.query.render()}"
        for place, at in enumerate(cutoffs.values()):
            mark = mark if at is None else mark.replace(str(at), f"$cutoff_{place}")
        mark = hashlib.sha256(mark.encode()).hexdigest()
        known = held.facts["moments"].get(str(x))
        if known is not None and known["mark"] != mark:
            known = None
        names, families = step.summed
        mine = _together(np.flatnonzero(held.column("x") == x))
        if known is None:
            sums, found = self._sum_up(step, {n: held.column(n)[mine] for n in self._kept()})
        else:
            changed = self._changed.copy()
            moved = [sorted((a, b)) for n, b in cutoffs.items() if b is not None and (a := known["cutoffs"][n]) != b]
            for low, high in moved:  # the windows of these are over now, or were
                changed |= (held.column("t0") > low) & (held.column("t0") <= high)
            rows = np.flatnonzero((held.column("x") == x) & changed)
            old = Facts({n: None if at is None else exp.convert(at) for n, at in known["cutoffs"].items()}, facts.caps)
            were = {n: held.columns[n][rows[rows < self._before]] for n in self._kept()}
            self._as_they_were(rows[rows < self._before], were)
            before, gone = self._sum_up(make(old) if moved else step, were)
            after, came = self._sum_up(step, {n: c[n][rows] for n in self._kept()})
            sums = ExactMoments.from_dict(len(names), families, known["sums"]).retract(before).merge(after)
            whole = {row["arm"]: row for row in known["rows"]}
            moved_rows = _moved(whole, {r["arm"]: r for r in gone}, {r["arm"]: r for r in came})
            if moved_rows is None:  # an extreme is gone, and which is the next one only all units tell
                self._tables({n: held.column(n)[mine] for n in self._kept()})
                moved_rows = self._counted_by_arm(step)
            found = moved_rows
        exposed = self.counts(x)[1]
        found = [row for row in found if row["arm"] in exposed]
        held.facts["moments"][str(x)] = {"mark": mark, "cutoffs": cutoffs, "sums": sums.to_dict(), "rows": found}
        arms: list[str] = held.facts["arms"]
        return [{**row, **step.told(sums, arms.index(row["arm"]), families)} for row in found]

    def _kept(self) -> list[str]:
        own = ["x", "unit", "t0", "lo", "hi", "n", "no_time", "no_arm"]
        return own + [f"{scan.table}_cells" for scan in self._scans]

    def _as_they_were(self, rows: np.ndarray, c: dict[str, np.ndarray]) -> None:
        """Put back into copies of ``rows`` (sorted) what they were when the run began."""
        for first, values in self._were:
            at = np.searchsorted(rows, first)
            there = (
                (at < len(rows)) & (rows[np.minimum(at, len(rows) - 1)] == first)
                if len(rows)
                else np.zeros(len(first), bool)
            )
            for name, old in values.items():
                c[name][at[there]] = old[there]

    def _sum_up(self, step: Summed, c: Mapping[str, np.ndarray]) -> tuple[ExactMoments, list[dict[str, Any]]]:
        """The sums over some rows, by the number of their arm, and the row of each arm."""
        self._tables(c)
        assert step.rows is not None
        found = self._counted_by_arm(step)
        values = self._engine.fetch(self._side_by_side(step.rows.query), step.rows.name)
        return step.sum_up(values, self._codes(values["arm"]), self._engine.threads()), found

    def _counted_by_arm(self, step: Step) -> list[dict[str, Any]]:
        rows = self._engine.fetch(self._side_by_side(step.query), step.name).to_pylist()
        return [{name: int(v) if isinstance(v, Decimal) else v for name, v in row.items()} for row in rows]

    def _side_by_side(self, query: Query) -> Query:
        """A statement over ``_tables``, whose rows are in one order: joined by their places, at half the cost."""
        tree = query.tree.copy()
        scanned = {scan.table for scan in self._scans}
        for join in tree.find_all(exp.Join):
            if isinstance(join.this, exp.Table) and join.this.name in scanned:
                join.args.update({"method": "POSITIONAL", "side": None, "kind": None, "on": None})
        return Query(tree)

    def _ids_are_read(self) -> bool:
        layout = self.layout
        beside = any(need.beside for need in layout.needs if need.entity == self.entity)
        entities = [read.entity for read in layout.lookups] + [read.entity for read in layout.rows]
        return beside or self.entity in entities

    def _show(self, name: str, columns: Mapping[str, Any]) -> str:
        self._engine.show(name, pa.table(dict(columns)))
        return name

    def keep(self) -> None:
        """Store the state, unless another run of the same is at it. Where it cannot be written, ``told`` says so and the last stays."""
        try:
            with self._store.lock() as alone:
                if not alone or (not self._fresh and self._store.moved()):
                    self._unkept = "another run stored its state"
                    return
                self._store.save(self._held, None if self._fresh else np.flatnonzero(self._changed[: self._before]))
            sweep(self._store.folder.parent)
        except OSError as error:
            self._unkept = f"the state could not be stored: {error.strerror or error}"

    @property
    def told(self) -> str:
        """How it went, in a sentence."""
        parts = sum(len(p.parts) for p in self._prepared.values())
        unkept = f"; {self._unkept}" if self._unkept else ""
        if self._fresh:
            return f"full: {self._why}; {parts:,} parts read{unkept}"
        new = sum(len(c.added) + len(c.late) + len(c.changed) for c in self._changes.values())
        return f"refresh: {new:,} new parts of {parts:,}; {self.recounted:,} units recomputed{unkept}"


def _together(rows: np.ndarray) -> np.ndarray | slice:
    """Sorted rows as a slice, which is read where it lies, where they are all that is between the first and the last."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _numbered(cutoffs: Mapping[str, int | None]) -> dict[str, int | None]:
    """Cutoffs by the place of the first that is the same: what statements look like does not depend on more."""
    values = list(cutoffs.values())
    return {name: None if at is None else values.index(at) for name, at in cutoffs.items()}


def _moved(
    whole: Mapping[str, dict[str, Any]], gone: Mapping[str, dict[str, Any]], came: Mapping[str, dict[str, Any]]
) -> list[dict[str, Any]] | None:
    """The counts and extremes by arm without what is ``gone`` and with what ``came``; None where an extreme may be gone."""
    out = []
    for arm in sorted({*whole, *came}, key=str.encode):
        had, less, more = whole.get(arm, {}), gone.get(arm, {}), came.get(arm, {})
        row: dict[str, Any] = {"arm": arm}
        for name in sorted({*had, *less, *more} - {"arm"}):
            a, b, c = had.get(name), less.get(name), more.get(name)
            if not name.startswith(("low", "high")):
                row[name] = (a or 0) - (b or 0) + (c or 0)
                continue
            ahead = max if name.startswith("high") else min
            if b is not None and a == b and (c is None or ahead(b, c) != c):
                return None
            row[name] = ahead([v for v in (a, c) if v is not None], default=None)
        out.append(row)
    return out


class _Places:
    """Where in the columns the row of an experiment's unit is."""

    def __init__(
        self,
        held: Held,
        experiments: Sequence[int],
        units: np.ndarray,
        number: str = "unit",
        among: np.ndarray | None = None,
    ) -> None:
        """``units`` are those that will be asked for; ``among`` are the rows that count, where not all do."""
        self.experiments = list(experiments)
        self._at: dict[int, np.ndarray] = {}
        x, unit = held.column("x"), held.column(number)
        wanted = np.zeros(max(int(unit.max(initial=-1)), int(units.max(initial=-1))) + 2, bool)
        wanted[units + 1] = True
        wanted[0] &= number == "unit"
        near = wanted[unit + 1]
        every = np.flatnonzero(near if among is None else near & among)
        for one in experiments:
            rows = every[x[every] == one]
            self._at[one] = np.full(int(unit[rows].max()) + 2 if len(rows) else 1, -1, np.int32)
            self._at[one][unit[rows] + 1] = rows  # one more: those without an id are number -1

    def of(self, x: int, unit: np.ndarray) -> np.ndarray:
        """Rows, -1 where there is none."""
        at = self._at[x]
        inside = unit + 1 < len(at)
        out = np.full(len(unit), -1, at.dtype)
        out[inside] = at[unit[inside] + 1]
        return out


# ---------------------------------------------------------------- what can be refreshed


def home(root: Path) -> Path:
    """Where a project's states are."""
    return root / ".payoff" / "state"


def begin(layout: Layout, entity: str, *, full: bool) -> Refresh | str:
    """The refresh of an arranged layout's units of one kind, or why all of it is read instead."""
    if not layout.catalog.prepared:
        return "nothing is prepared"
    if not walks.available():
        return "numba is not installed"
    reason = _unfit(layout, entity)
    if reason is not None:
        return reason
    found: dict[str, Prepared] = {}
    for view in _views(layout, entity):
        of = prepared.of(layout.catalog, view, entity)
        if of is None:
            return f"of '{view.name}' {prepared.why_not(layout.catalog, view, entity)}"
        found[view.relation.key] = of
    folds = {scan.table: fused.folds_of(layout, scan) for scan in layout.scans if scan.entity == entity}
    known = {table: made for table, made in folds.items() if made is not None}
    if len(known) < len(folds):
        return "there are too many conditions"
    return Refresh(layout, entity, found, known, home(layout.catalog.root), full=full)


def _unfit(layout: Layout, entity: str) -> str | None:
    """What has no incremental form, in a clause."""
    for need in layout.needs:
        if need.entity != entity:
            continue
        has = {"a trigger": need.trigger, "a cluster": need.cluster, "a period": need.period_us}
        for what, value in has.items():
            if value is not None:
                return f"{need.experiment} has {what}"
    for exposure in layout.exposures:
        if exposure.entity != entity:
            continue
        name = exposure.view.name
        if exposure.view.clock is None or exposure.view.source.one_row_per is not None:
            return f"'{name}' has one row a unit, or no time"
        if exposure.known:
            return f"an attribute is recorded in '{name}', with the exposures"
        if exposure.with_ids:
            return f"rows are linked to those of '{name}'"
    for scan in layout.scans:
        if scan.entity != entity:
            continue
        if scan.view.clock is None:
            return f"'{scan.view.name}' has no time"
        if scan.stage != 0 or any(f.measure.after is not None or f.measure.fold == "first" for f in scan.columns):
            return f"a window over '{scan.view.name}' opens at an event"
        if any(f.only is not None for f in scan.columns):
            return f"rows of '{scan.view.name}' are linked to exposures"
    for view in _views(layout, entity):
        if view.source.sessions is not None:
            return f"'{view.name}' is made of sessions"
        if entity in view.joined:
            return f"the ids of '{entity}' are joined by an identity"
        if {"file_index", _PLACE} & view.own.columns.keys():
            return f"'{view.name}' has a column file_index or {_PLACE}"
    if layout.key_type(entity) == "VARCHAR":
        return f"'{entity}' has ids of several types"
    return None


def _views(layout: Layout, entity: str) -> list[View]:
    """What is refreshed: where exposures are, and what is folded."""
    exposures = [e.view for e in layout.exposures if e.entity == entity]
    return exposures + [scan.view for scan in layout.scans if scan.entity == entity]

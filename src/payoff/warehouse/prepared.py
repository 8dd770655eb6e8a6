"""Prepared layouts: copies of event sources, clustered by unit and time, that later runs read in place of the stored rows.

A layout is a folder of sorted Parquet files (segments), a map of unit numbers, and a manifest that is replaced last, in one
step: what a killed process leaves behind is named by no manifest, and is removed by the next one. A copy is read only while
it is fresh, that is while what it was made of has not changed. The stored rows themselves are never touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import duckdb
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlglot import exp

from payoff.errors import ConnectionFailed, DataError, PayoffError
from payoff.warehouse.engines.duckdb import DuckDBEngine
from payoff.warehouse.locks import flush, locked
from payoff.warehouse.query import ExpressionError, Query, column, conjunction, fragment, sql
from payoff.warehouse.sources import typed_row

if TYPE_CHECKING:
    from payoff.warehouse.engine import Progress
    from payoff.warehouse.sources import Catalog, Stored, View

UNIT: Final = "payoff_unit"
"""The column of a segment that numbers its units: BIGINT from 0, NULL where a row has no id. No figure may depend on a number."""
US: Final = "payoff_us"
"""The column of a segment with the time in microseconds since the epoch: BIGINT, NULL where a row has none."""

_FILE, _ID = "payoff_file", "payoff_id"
_LAYOUT: Final = 2
"""Of what a manifest says and how segments are sorted: a layout of another version is made anew."""
_WHOLE: Final = 4_000_000
"""Rows of a file that stay one segment. A larger file is a segment a month, so that a short window does not read years."""
_MOST: Final = 32_000_000
"""Rows of files that are put into one segment. A file that comes late to a month has all of its segment sorted again, and what a sort
does not find room for in memory it spills: beyond this a month is several segments, of which one is made anew."""
_LAST_MONTH: Final = (2100 - 1970) * 12
_DAY: Final = 86_400_000_000
# lz4 is read a third faster than zstd here, and with the encodings of version 2 its files are as small (20M events: 260 MB against
# 240). Larger row groups were read no faster, and smaller ones are the unit of work of a thread.
_FORMAT: Final = "FORMAT parquet, COMPRESSION lz4_raw, PARQUET_VERSION v2, ROW_GROUP_SIZE 122880"
# Parquet holds these under their own name, but not every value of them.
_INEXACT: Final = re.compile(r"\bINTERVAL\b|\bTIME WITH TIME ZONE\b|\bVARIANT\b")


@dataclass(frozen=True, slots=True)
class Part:
    """What a segment holds of one thing: ``of`` is a file's path relative to the project, a month of a table, or a month of a large
    file, and ``fingerprint`` is of that. Of its ``rows`` as many as ``timed`` have a time, from ``first_us`` to ``last_us`` (None where
    none has). ``file`` and ``span`` are where they are stored: rows of a file, with times from and to; ``units`` is where, in the
    segment's file of units, its own are noted: from which byte, and how many."""

    of: str
    fingerprint: str
    rows: int
    first_us: int | None
    last_us: int | None
    timed: int
    file: str | None = None
    span: tuple[int | None, int | None] | None = None
    units: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Segment:
    """One sorted Parquet file at ``path``, by (unit, time, every other column); or its rows within ``bounds``, where there are some: those
    of its ``parts`` alone.

    ``parts`` are in the order of ``of``. Where there are several, every row has a time and each part ends before the next one begins, so
    that the rows of a unit lie part after part.
    """

    path: str
    parts: tuple[Part, ...]
    bounds: tuple[tuple[int, int], ...] | None = None

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def first_us(self) -> int | None:
        return self.parts[0].first_us

    @property
    def last_us(self) -> int | None:
        return self.parts[-1].last_us

    def only(self, ofs: Container[str]) -> Segment | None:
        """The rows of those parts alone; None where it has none of them."""
        assert self.bounds is None
        runs = [list(run) for kept, run in groupby(self.parts, lambda p: p.of in ofs) if kept]
        parts = tuple(part for run in runs for part in run)
        if len(parts) in (0, len(self.parts)):
            return self if parts else None
        return Segment(self.path, parts, tuple((run[0].first_us or 0, run[-1].last_us or 0) for run in runs))

    def condition(self) -> exp.Expr | None:
        """Which rows of the file are meant; None: all."""
        if self.bounds is None:
            return None
        return exp.paren(exp.or_(*(fragment(f"{US} BETWEEN $a AND $b", a=a, b=b) for a, b in self.bounds)))

    def units(self, part: Part) -> np.ndarray:
        """The units that a part has rows of, packed (``unpack``); -1 is rows without an id. Raises OSError."""
        with open(_units_beside(self.path), "rb") as handle:
            handle.seek(part.units[0])
            return np.frombuffer(handle.read(part.units[1]), np.uint8)


@dataclass(frozen=True, slots=True)
class Prepared:
    """One relation clustered for one entity.

    ``columns`` are the relation's own, name to type; a segment has ``UNIT`` and ``US`` beside them. Segments are in the canonical order,
    that of the ``of`` of their parts; parts without rows aside, no segment has a part that sorts between those of another. ``units`` is the path of the Parquet file (payoff_unit, unit) that tells the id of a number, as the relation stores it.
    ``version`` changes with whatever the copy holds; units keep their numbers, and new ones are added, as long as ``numbering`` is the
    same. ``unit`` and ``time`` are the SQL of id and microseconds over ``columns``.
    """

    key: str
    entity: str
    folder: Path
    columns: Mapping[str, str]
    segments: tuple[Segment, ...]
    units: str
    version: str
    numbering: str
    unit: str
    time: str

    @property
    def parts(self) -> dict[str, str]:
        """What it was made of: ``of`` -> fingerprint."""
        return {part.of: part.fingerprint for segment in self.segments for part in segment.parts}

    def rows(self) -> exp.Select:
        """Every row, with the relation's own columns: what it gives itself, in another order."""
        return exp.select(*(column(name) for name in self.columns)).from_(_parquet(s.path for s in self.segments))


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one relation. ``built`` and ``removed`` count segments; ``bytes`` are those of the whole layout."""

    relation: str
    sources: tuple[str, ...]
    entity: str | None
    status: Literal["prepared", "fresh", "refused", "dropped"]
    detail: str
    segments: int = 0
    built: int = 0
    removed: int = 0
    rows: int = 0
    units: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sources": list(self.sources)}


# ---------------------------------------------------------------- for readers


def of(catalog: Catalog, view: View, entity: str) -> Prepared | None:
    """The fresh layout of a source, clustered for ``entity`` by the id and the time that the source itself declares.

    None where there is none: ``why_not`` says why.
    """
    return None if why_not(catalog, view, entity) else catalog.prepared[view.own.key]


def why_not(catalog: Catalog, view: View, entity: str) -> str:
    """Why ``of`` gives no layout, in a clause; "" where it gives one."""
    found = catalog.prepared.get(view.own.key)
    if found is None:
        return catalog.stale.get(view.own.key, "it has not been prepared")
    if found.entity != entity:
        return f"its copy is clustered by {found.entity}"
    if found.unit != view.own_id(entity).sql("duckdb"):
        return f"its copy is clustered by another id of a {entity}, {found.unit}"
    if view.clock is None or found.time != view.clock.us.sql("duckdb"):
        return "its copy is clustered by another time"
    return ""


class Layouts:
    """The layouts of a project as one run finds them. Until it is closed no file of theirs is removed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._held = ExitStack()
        self._found: dict[str, tuple[Path, _Manifest]] = {}
        for folder in _folders(root):
            if _hold(folder, self._held, shared=True) and (manifest := _read(folder)) is not None:
                self._found[manifest.key] = folder, manifest

    def close(self) -> None:
        self._held.close()

    @property
    def paths(self) -> list[str]:
        """Every file that a fresh layout may be read from."""
        return [str(folder / name) for folder, manifest in self._found.values() for name in manifest.names()]

    def look(self, stored: Stored) -> Prepared | str | None:
        """The layout of a relation, or why it is not fresh, in a clause; None where the relation was never prepared.

        Files whose size or time of change differs are read, to see whether their content does. A database is not: whether
        another change left a table alone is for ``prepare`` to find out.
        """
        if stored.key not in self._found:
            return None
        folder, manifest = self._found[stored.key]
        if manifest.layout != _LAYOUT:
            return "its copy was made by another version of Payoff"
        if manifest.reads != _reads(stored.select) or (manifest.sniffed and manifest.maker != duckdb.__version__):
            return "the way it is read has changed"
        if not manifest.whole(folder):
            return "files of its copy are missing or cut short"
        if stored.database is not None:
            if manifest.store != _store(self._root, stored.database):
                return "its database has changed since"
            return manifest.prepared(folder)
        own = _relative(self._root, stored.files)
        new, gone = own.keys() - manifest.files.keys(), manifest.files.keys() - own.keys()
        seen = {name: _look(own[name], manifest.files.get(name)) for name in own if name not in new}
        changed = {name for name, mark in seen.items() if mark.sha256 != manifest.files[name].sha256}
        if new or gone or changed:
            counts = {"new": len(new), "changed": len(changed), "gone": len(gone)}
            said = " and ".join(f"{n:,} {what}" for what, n in counts.items() if n)
            return f"of its {max(len(own), len(manifest.files)):,} files {said}"
        if seen != manifest.files and _due(stored.files) < time.time_ns():
            _remember(self._root, folder, manifest, replace(manifest, files=seen))
        return manifest.prepared(folder)


# ---------------------------------------------------------------- making


def prepare(catalog: Catalog, sources: Sequence[str], progress: Progress | None = None) -> list[Report]:
    """Make or refresh the layouts of ``sources``, each relation once. ``catalog`` reads the rows as they are stored, and has every
    source over them: by the unit and the time of the first that has both they are clustered, whichever was named.

    A source that cannot be prepared is reported as refused, with the reason, and stops no other. Raises ConnectionFailed where
    another process prepares the same project, or where the copy cannot be written.
    """
    reports: list[Report] = []
    with _alone(catalog.root):
        of_relation: dict[str, list[str]] = {}
        for name in catalog.names:
            try:
                of_relation.setdefault(catalog.stored(name).key, []).append(name)
            except (PayoffError, ExpressionError) as error:
                if name in sources:
                    reports.append(Report(name, (name,), None, "refused", str(error)))
        for key, names in of_relation.items():
            if not set(names) & set(sources):
                continue
            entity = None
            try:
                view = _first_timed(catalog, names)
                entity = view.entities[0]
                reports.append(_Making(catalog, key, tuple(names), view, entity, progress).report())
            except (DataError, ExpressionError) as error:
                reports.append(Report(key, tuple(names), entity, "refused", str(error)))
            except OSError as error:
                raise ConnectionFailed(
                    f"the copy of {key} could not be written below {_home(catalog.root)}: {error.strerror or error}"
                ) from error
    return reports


def drop(root: Path, keys: Collection[str] | None = None) -> list[Report]:
    """Remove the layouts of the relations named by ``keys`` (default: all, and whatever else was left behind).

    Raises ConnectionFailed while a run reads one of them.
    """
    out: list[Report] = []
    if not _home(root).is_dir():
        return out
    with _alone(root):
        for folder in _folders(root):
            manifest = _read(folder)
            if keys is not None and (manifest is None or manifest.key not in keys):
                continue
            with ExitStack() as held:
                if not _hold(folder, held):
                    raise ConnectionFailed(f"a run is reading the copy in {folder}; drop it when the run is done")
                (folder / _MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(folder)
            if manifest is not None:
                out.append(
                    Report(
                        manifest.key,
                        (),
                        manifest.entity,
                        "dropped",
                        "its copy is removed",
                        removed=len(manifest.segments),
                    )
                )
    return out


def _first_timed(catalog: Catalog, names: Sequence[str]) -> View:
    """The source whose time and unit a relation is clustered by. Raises DataError where none has both."""
    for name in names:
        view = catalog.view(name)
        if view.source.sessions is None and view.clock is not None and view.entities:
            return view
    raise DataError("has no time and unit to be clustered by (time: COLUMN, entity: {NAME: COLUMN})", source=names[0])


class _Writer(DuckDBEngine):
    """A session that also writes Parquet files, to paths that it was opened with: it is locked down like any other."""

    def write(self, query: Query, path: Path, what: str, source: str) -> None:
        """The rows of a SELECT, in its order, as a Parquet file. Raises ConnectionFailed where there is no room for it."""
        to = exp.Literal.string(str(path)).sql("duckdb")
        try:
            self._run(f"COPY ({query.render()}) TO {to} ({_FORMAT})", what, source)
        except ConnectionFailed as error:
            raise ConnectionFailed(
                f"{what}: the copy could not be written to {path.parent} ({error}); what was there before is untouched"
            ) from error


class _Making:
    """The making of one relation's layout: what is still good of the one there is, and what has to be built."""

    def __init__(
        self,
        catalog: Catalog,
        key: str,
        names: tuple[str, ...],
        view: View,
        entity: str,
        progress: Progress | None,
    ) -> None:
        self.catalog, self.key, self.names, self.view, self.entity = catalog, key, names, view, entity
        self.progress = progress
        self.root = catalog.root
        self.stored = catalog.stored(view.name)
        self.columns = dict(view.own.columns)
        self.unit = view.own_id(entity)
        assert view.clock is not None
        self.clock = view.clock
        self.folder = _home(self.root) / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.started = time.monotonic()

    # ------------------------------------------------------------ deciding

    def report(self) -> Report:
        self._possible()
        self.folder.mkdir(exist_ok=True)
        _sweep(self.folder)
        old = _read(self.folder)
        blank = _Manifest(
            layout=_LAYOUT,
            key=self.key,
            entity=self.entity,
            unit=self.unit.sql("duckdb"),
            time=self.clock.us.sql("duckdb"),
            reads=_reads(self.stored.select),
            sniffed=self.stored.text,
            maker=duckdb.__version__,
            columns=tuple(self.columns.items()),
            numbering=secrets.token_hex(8),
            units="",
            count=0,
            segments=(),
            sizes={},
            files={},
            store=None,
        )
        usable = old is not None and old.same_kind(blank) and old.whole(self.folder)
        base = old if old is not None and usable else blank
        paths = self.stored.files or [str(p) for p in _database_files(self.stored.database)]
        _settle(paths)
        new, stay, read = self._of_files(base) if self.stored.files else self._of_table(base)
        built = 0
        if read or not base.units or len(stay) < len(base.parts):
            new, built = self._build(new, stay, read)
            status: Literal["prepared", "fresh"] = "prepared"
        else:
            status = "fresh"
        self._unchanged(new)
        if new != old:
            _commit(self.folder, new)
            _sweep(self.folder)
        there = {part.of for part in new.parts}
        removed = sum(there.isdisjoint(part.of for part in s.parts) for s in (old.segments if old is not None else ()))
        said = "nothing had changed" if status == "fresh" else self._said(old, bool(usable), built, removed)
        return Report(
            relation=self.key,
            sources=self.names,
            entity=self.entity,
            status=status,
            detail=said,
            segments=len(new.segments),
            built=built,
            removed=removed,
            rows=sum(s.rows for s in new.segments),
            units=new.count,
            bytes=sum(new.sizes.values()),
            seconds=time.monotonic() - self.started,
        )

    def _said(self, old: _Manifest | None, usable: bool, built: int, removed: int) -> str:
        if old is None:
            return "prepared for the first time"
        if not usable:
            return "made anew: its columns, its id or time, or how it is read had changed, or files of it were missing"
        return f"segments built: {built:,}; removed: {removed:,}; the others were fresh"

    def _possible(self) -> None:
        """Raises DataError where the relation cannot be held by a copy, or where a copy could go stale unseen."""
        name = self.view.name
        taken = [c for c in self.columns if c.lower() in (UNIT, US, _FILE, _ID)]
        if taken:
            raise DataError(
                "has the name of a column that a prepared copy adds; rename it", source=name, column=taken[0]
            )
        for found, kind in {**self.columns, "": self.view.type_of_own(self.unit)}.items():
            if _INEXACT.search(kind):
                raise self._cannot_hold(found, kind)
        if len(set(self.stored.files)) < len(self.stored.files):
            raise DataError("matches one file twice, under two names", source=name)
        if self.stored.files:
            return
        if self.stored.database is None or self.stored.table is None:
            raise DataError(
                "is a SELECT (sql:), whose rows can change while its tables do not; make a table of it", source=name
            )
        table = self.stored.table
        tables = sql(
            """
            SELECT count(*) AS n FROM duckdb_tables()
            WHERE lower(database_name) = lower($database) AND lower(schema_name) = lower($schema) AND lower(table_name) = lower($name)
            """,
            database=table.catalog,
            schema=table.db,
            name=table.name,
        )
        if not self.catalog.engine.row(tables, "look at columns", name)["n"]:
            raise DataError(
                "is a view, whose rows can change while its database does not; make a table of it", source=name
            )

    def _cannot_hold(self, name: str, kind: str) -> DataError:
        return DataError(
            f"is {kind}, which a Parquet file cannot hold exactly; it is read as stored",
            source=self.view.name,
            column=name or self.unit.sql("duckdb"),
        )

    def _of_files(self, base: _Manifest) -> tuple[_Manifest, list[Part], list[Part]]:
        """What the copy has of files, and what has to be read: a file whose content is another is read again. Text would have to be
        parsed to be looked at, and waits for that until it is read."""
        own = _relative(self.root, self.stored.files)
        marks = {name: _look(path, base.files.get(name)) for name, path in own.items()}
        same = {n for n, mark in marks.items() if n in base.files and base.files[n].sha256 == mark.sha256}
        stay = [p for p in base.parts if p.file in same]
        read = [Part(name, mark.sha256, 0, None, None, 0, name) for name, mark in marks.items() if name not in same]
        if not self.stored.text:
            assert isinstance(self.catalog.engine, DuckDBEngine)
            read = self._looked_at(self.catalog.engine, read)
        return replace(base, files=marks), stay, read

    def _looked_at(self, engine: DuckDBEngine, files: Sequence[Part]) -> list[Part]:
        """Files with their rows and times; a large one by its months."""
        if not files:
            return []
        query = sql(
            """
            SELECT $file AS file, $month AS month, count(*) AS n, count($us) AS timed, min($us) AS first_us, max($us) AS last_us
            FROM rows GROUP BY ALL
            """,
            file=column(_FILE),
            month=_month(),
            us=column(US),
            rows=Query(self._rows([self._path(p.of) for p in files], loaded=self.stored.text)),
        )
        found: dict[str, list[dict[str, Any]]] = {}
        for row in engine.fetch(query, f"prepare {self.view.name}: months", self.view.name).to_pylist():
            found.setdefault(_named(self.root, row["file"]), []).append(row)
        out: list[Part] = []
        for part in files:
            months = found.get(part.of, [])
            rows, timed = (sum(row[name] for row in months) for name in ("n", "timed"))
            if rows > _WHOLE and len(months) > 1 and not self.stored.text:
                out += [
                    Part(
                        f"{part.of} {_label(row['month'])}",
                        part.fingerprint,
                        row["n"],
                        row["first_us"],
                        row["last_us"],
                        row["timed"],
                        part.of,
                        _span(row["month"]),
                    )
                    for row in months
                ]
                continue
            first = min((row["first_us"] for row in months if row["timed"]), default=None)
            last = max((row["last_us"] for row in months if row["timed"]), default=None)
            out.append(replace(part, rows=rows, first_us=first, last_us=last, timed=timed))
        return out

    def _of_table(self, base: _Manifest) -> tuple[_Manifest, list[Part], list[Part]]:
        """The same of a table, by months: one whose rows are others is read again."""
        assert self.stored.database is not None
        store = _store(self.root, self.stored.database)
        if base.units and base.store == store:
            return base, base.parts, []
        values = [column(name) for name in self.columns]
        query = sql(
            """
            SELECT $month AS month, count(*) AS n, count($us) AS timed, min($us) AS first_us, max($us) AS last_us,
                CAST(sum(hash($values)) AS VARCHAR) AS added, CAST(bit_xor(hash($values)) AS VARCHAR) AS mixed
            FROM rows GROUP BY ALL
            """,
            month=_month(),
            us=column(US),
            values=values,
            rows=Query(self._rows([])),
        )
        months = self.catalog.engine.fetch(query, f"prepare {self.view.name}: months", self.view.name).to_pylist()
        wanted = [
            Part(
                of=_label(row["month"]),
                fingerprint=f"{row['n']} {row['added']} {row['mixed']}",
                rows=row["n"],
                first_us=row["first_us"],
                last_us=row["last_us"],
                timed=row["timed"],
                span=_span(row["month"]),
            )
            for row in months
        ] or [Part("no rows", "0", 0, None, None, 0)]
        known = {p.of: p for p in base.parts}
        same = {p.of for p in wanted if p.of in known and known[p.of].fingerprint == p.fingerprint}
        return replace(base, store=store), [known[of] for of in same], [p for p in wanted if p.of not in same]

    # ------------------------------------------------------------ building

    def _build(self, base: _Manifest, stay: Sequence[Part], read: Sequence[Part]) -> tuple[_Manifest, int]:
        """Write the segments that are not there, of what ``base`` has and of what is stored, and the units that they add. Nothing that
        is there is touched. How many were written is told beside."""
        token, name = secrets.token_hex(4), self.view.name
        units, probe = self.folder / f"units-{token}.parquet", self.folder / f"types-{token}.parquet"
        paths = [self.folder / f"{i:05}-{token}.parquet" for i in range(len(stay) + len(read))]
        written = [probe, units, *(file for path in paths for file in (path, _units_beside(path)))]
        there = {s.parts: s for s in base.segments}
        try:
            with self._writer(written, [self.folder / n for n in base.names()]) as engine:
                if read or not base.units:
                    self._hold_exactly(engine, probe)
                    files = [self._path(p.of) for p in read] if self.stored.text else []
                    if files:  # parsed once, and not for its units and again for each segment
                        engine.keep("stored", Query(self._stored(files)), f"prepare {name}: read", name)
                        read = self._looked_at(engine, read)
                    self._number(engine, base, read)
                    every = Query(exp.select(column(UNIT), "unit").from_("units").order_by(column(UNIT)))
                    engine.write(every, units, f"prepare {name}: units", name)
                    count = int(engine.row(sql("SELECT count(*) AS n FROM units"), "count units", name)["n"])
                    base = replace(base, units=units.name, count=count)
                groups = grouped([*stay, *read])
                missing = [group for group in groups if group not in there]
                for i, (group, path) in enumerate(zip(missing, paths, strict=False), 1):
                    what = f"prepare {name}: segment {i:,} of {len(missing):,}"
                    there[group] = self._segment(engine, base, group, set(read), path, what)
                segments = tuple(there[group] for group in groups)
                beside = (n for s in segments for n in (s.path, _units_beside(s.path).name))
                sizes = {n: (self.folder / n).stat().st_size for n in (base.units, *beside)}
                new = replace(base, segments=segments, sizes=sizes)
                types = engine.types(Query(new.prepared(self.folder).rows()), name)
                assert types == self.columns, (types, self.columns)
            flush([p for p in written if p.exists()])
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise
        return new, len(missing)

    def _hold_exactly(self, engine: _Writer, probe: Path) -> None:
        """Raises DataError for a column whose type comes back as another, before anything is sorted."""
        nothing = exp.select(*(column(c) for c in self.columns), exp.alias_(self.unit.copy(), _ID, quoted=True))
        engine.write(Query(nothing.from_(typed_row(self.columns))), probe, "look at columns", self.view.name)
        back = engine.types(Query(exp.select("*").from_(_parquet([str(probe)]))), self.view.name)
        for column_, kind in {**self.columns, _ID: self.view.type_of_own(self.unit)}.items():
            if back[column_] != kind:
                raise self._cannot_hold("" if column_ == _ID else column_, kind)
        probe.unlink()

    def _number(self, engine: _Writer, base: _Manifest, read: Sequence[Part]) -> None:
        """The table ``units``: the numbers given so far, and after them those of new units by their first time, then by id."""
        name = self.view.name
        new = sql(
            """
            SELECT $before + row_number() OVER (ORDER BY first_us NULLS LAST, unit) - 1 AS payoff_unit, unit
            FROM (SELECT $id AS unit, min($us) AS first_us FROM rows WHERE $id IS NOT NULL GROUP BY ALL) AS seen
            """,
            before=base.count,
            id=column(_ID),
            us=column(US),
            rows=Query(self._of_parts(read)),
        )
        what = f"prepare {name}: units"
        if not base.units:
            engine.keep("units", new, what, name)
            return
        there = exp.select(column(UNIT), "unit").from_(_parquet([str(self.folder / base.units)]))
        engine.keep("units", Query(there), what, name)
        tree = new.tree.copy()
        assert isinstance(tree, exp.Select)
        unseen = "NOT EXISTS (SELECT 1 FROM units AS given WHERE given.unit = seen.unit)"
        engine.append("units", Query(tree.where(unseen, dialect="duckdb")), what, name)

    def _segment(
        self, engine: _Writer, base: _Manifest, group: tuple[Part, ...], read: Collection[Part], path: Path, what: str
    ) -> Segment:
        """One segment, written and looked at: the parts that are ``read`` from where they are stored, and the others from the copy.
        Raises ConnectionFailed where its rows are not those that were counted."""
        values = [column(name) for name in self.columns]
        found: list[exp.Query] = []
        stored = [part for part in group if part in read]
        if stored:
            own = [column(name, "own") for name in (*self.columns, US)]
            joined = exp.select(*own, column(UNIT, "units")).from_("own")
            found.append(joined.join("units", on="units.unit = own.payoff_id", join_type="left"))
        copied = {part.of for part in group if part not in read}
        for segment in filter(None, (s.only(copied) for s in base.segments)):
            there = _parquet([str(self.folder / segment.path)])
            found.append(exp.select(*values, column(US), column(UNIT)).from_(there).where(segment.condition()))
        # Rows of one unit at one time are in one order too, whatever order they were met in. By a hash of them: to sort by every
        # column takes a third longer and a key as wide as the row.
        query = sql(
            "SELECT $values, payoff_unit, payoff_us FROM found ORDER BY payoff_unit, payoff_us, hash($values)",
            values=values,
            found=Query(together(found)),
            **({"own": Query(self._of_parts(stored))} if stored else {}),
        )
        engine.write(query, path, what, self.view.name)
        rows, noted = _noted(path, group)
        if rows != [part.rows for part in group]:
            raise self._changed()
        ends = np.cumsum([0, *map(len, noted)]).tolist()
        parts = tuple(replace(part, units=(ends[i], len(noted[i]))) for i, part in enumerate(group))
        _units_beside(path).write_bytes(b"".join(noted))
        return Segment(path.name, parts)

    def _between(self, low_us: int | None, high_us: int | None) -> list[exp.Expr]:
        """Rows from ``low_us`` to before ``high_us``; both None: those without a time."""
        if low_us is None and high_us is None:
            return [fragment("$us IS NULL", us=column(US))]
        bounds = self.clock.between(low_us, high_us)  # by the column as stored, so that most of the others are not read
        bounds += [] if low_us is None else [fragment("$us >= $low", us=column(US), low=low_us)]
        return bounds + ([] if high_us is None else [fragment("$us < $high", us=column(US), high=high_us)])

    def _of_parts(self, parts: Sequence[Part]) -> exp.Select:
        """The rows of parts from where they are stored."""
        by_span: dict[tuple[int | None, int | None] | None, list[str]] = {}
        for part in parts:
            by_span.setdefault(part.span, []).append(part.file or "")
        files = sorted({self._path(part.file) for part in parts if part.file is not None})
        rows = exp.select("*").from_(self._rows(files, loaded=self.stored.text).subquery("every"))
        wanted = []
        for span, named in by_span.items():
            bounds = [] if span is None else self._between(*span)
            if self.stored.text or (self.stored.files and len(by_span) > 1):
                bounds.append(column(_FILE).isin(*(exp.Literal.string(self._path(name)) for name in named)))
            wanted.append(conjunction(*bounds))
        return rows.where(exp.or_(*map(exp.paren, wanted)))

    def _rows(self, files: Sequence[str], loaded: bool = False) -> exp.Select:
        """The rows with their id and their microseconds, and those of files with their file."""
        own = [column(name) for name in self.columns] + ([column(_FILE)] if self.stored.files else [])
        source = exp.to_table("stored") if loaded else self._stored(files).subquery("stored")
        return exp.select(
            *own,
            exp.alias_(self.unit.copy(), _ID, quoted=True),
            exp.alias_(self.clock.us, US, quoted=True),
        ).from_(source)

    def _stored(self, files: Sequence[str]) -> exp.Select:
        """The relation as it is stored, of files those named. All are named to the reader even so: what one column of a file is
        read as depends on what the others hold in it."""
        select = self.stored.select.copy()
        if not self.stored.files:
            return exp.select("*").from_(select.subquery("relation"))
        listed = select.find(exp.Array)
        assert listed is not None and listed.parent is not None
        told = exp.EQ(this=exp.column("filename"), expression=exp.Literal.string(_FILE))
        listed.parent.append("expressions", told)
        wanted = column(_FILE).isin(*(exp.Literal.string(path) for path in files))
        return exp.select("*").from_(select.subquery("relation")).where(wanted)

    def _writer(self, written: Sequence[Path] = (), read: Sequence[Path] = ()) -> _Writer:
        """A session over the stored rows that may write ``written``."""
        paths = [*self.stored.files, *map(str, read), *map(str, written)]
        return _Writer(self.catalog.databases, self.root, paths, self.progress)

    def _path(self, file: str) -> str:
        return next(path for path in self.stored.files if _named(self.root, path) == file)

    def _unchanged(self, new: _Manifest) -> None:
        """Raises ConnectionFailed where what was copied has changed meanwhile."""
        if self.stored.database is not None:
            same = new.store == _store(self.root, self.stored.database)
        else:
            own = _relative(self.root, self.stored.files)
            same = all(_stat(own[name]) == (mark.size, mark.mtime_ns) for name, mark in new.files.items())
        if not same:
            raise self._changed()

    def _changed(self) -> ConnectionFailed:
        return ConnectionFailed(
            f"source '{self.view.name}' was written to while it was being prepared; run payoff prepare again"
        )


# ---------------------------------------------------------------- parts into segments


def grouped(parts: Iterable[Part]) -> list[tuple[Part, ...]]:
    """Which parts are one segment: those of a month that is over and, in the last month, those of a day that is over.

    Only parts that stay part after part when all of their rows are sorted by time: every row has a time, each ends before the next
    begins, and they follow each other in the order of ``of``, in which the values of a unit are added up. It depends on nothing but the
    parts that there are, and so not on how they came. A month or a day is over when a part begins in a later one; both are UTC's.
    """
    ordered = sorted(parts, key=lambda p: p.of)
    latest = max((p.first_us for p in ordered if p.first_us is not None), default=0)
    times = sorted((p.first_us, p.last_us or 0) for p in ordered if p.first_us is not None)
    out: list[list[Part]] = []
    run: list[Part]
    run, rows = [], 0
    for part in ordered:
        if part.rows and run and rows + part.rows <= _MOST and _follows(run[-1], part, latest, times):
            run.append(part)
            rows += part.rows
            continue
        out.append([part])
        if part.rows:  # one without rows keeps nothing apart
            run, rows = out[-1], part.rows
    return [tuple(run) for run in out]


def _follows(before: Part, after: Part, latest: int, times: Sequence[tuple[int, int]]) -> bool:
    """May two parts, the one next to the other in their order, be of one segment?"""
    if before.last_us is None or after.first_us is None or before.last_us >= after.first_us:
        return False
    if before.timed < before.rows or after.timed < after.rows:
        return False
    period = _over(before, latest)
    if period is None or period != _over(after, latest):
        return False
    # a part between them, named otherwise, would lie within a segment that it is not of: walks go by segments that do not overlap
    between = times[bisect_right(times, (before.last_us, 1 << 63)) : bisect_left(times, (after.first_us, 0))]
    return all(last >= after.first_us for _, last in between)


def _over(part: Part, latest: int) -> tuple[str, int] | None:
    """The month or day that all rows of a part are in, and that is over."""
    assert part.first_us is not None and part.last_us is not None
    months = [_month_of(us) for us in (part.first_us, part.last_us, latest)]
    if months[0] != months[1]:
        return None
    if months[1] < months[2]:
        return "month", months[0]
    first, last, now = (us // _DAY for us in (part.first_us, part.last_us, latest))
    return ("day", first) if first == last < now else None


def _units_beside(path: str | Path) -> Path:
    """Where the units of a segment's parts are noted."""
    return Path(path).with_suffix(".units")


def _noted(path: Path, parts: Sequence[Part]) -> tuple[list[int], list[bytes]]:
    """Of the parts of a segment that was written: how many rows each has, and its units, packed."""
    starts = np.array([part.first_us for part in parts[1:]], np.int64)
    rows = np.zeros(len(parts), np.int64)
    small = np.min_scalar_type(len(parts))
    units, of = [np.empty(0, np.int32)], [np.empty(0, small)]
    last_unit, last_of = -2, -1
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=[UNIT, US]):
            if not batch.num_rows:
                continue
            unit = pc.fill_null(batch[UNIT], -1).to_numpy()
            part = np.searchsorted(starts, pc.fill_null(batch[US], 0).to_numpy(), "right") if len(starts) else unit * 0
            rows += np.bincount(part, minlength=len(parts))
            # a unit's rows lie together, and in them those of a part
            first = (np.diff(unit, prepend=last_unit) != 0) | (np.diff(part, prepend=last_of) != 0)
            units.append(unit[first].astype(np.int32))
            of.append(part[first].astype(small))
            last_unit, last_of = unit[-1], part[-1]
    unit, part = np.concatenate(units), np.concatenate(of)
    by_part = np.split(unit[np.argsort(part, kind="stable")], np.cumsum(np.bincount(part, minlength=len(parts)))[:-1])
    # those without an id come last there
    return rows.tolist(), [pack(np.roll(own, 1) if len(own) and own[-1] < 0 else own).tobytes() for own in by_part]


def pack(units: np.ndarray) -> np.ndarray:
    """Sorted unit numbers, each once, as bytes: their distances, those of 255 and more apart."""
    steps = np.diff(units, prepend=-2)
    large = steps >= 255
    small = np.where(large, 255, steps).astype(np.uint8)
    head = np.array([len(units), int(large.sum())], np.int64)
    return np.concatenate([head.view(np.uint8), steps[large].astype(np.int64).view(np.uint8), small])


def unpack(data: np.ndarray) -> np.ndarray:
    """What ``pack`` was given, as int64."""
    raw = np.ascontiguousarray(data).tobytes()
    rows, large = np.frombuffer(raw, np.int64, 2)
    steps = np.frombuffer(raw, np.uint8, rows, 16 + 8 * large).astype(np.int64)
    steps[steps == 255] = np.frombuffer(raw, np.int64, large, 16)
    return np.cumsum(steps) - 2


# ---------------------------------------------------------------- months


def _month() -> exp.Expr:
    """The month of a row: months since January 1970, NULL without a time, -1 for any before, the last for any after 2099."""
    return fragment(
        """CASE WHEN $us < 0 THEN -1 WHEN $us >= $end THEN $last
           ELSE (year(make_timestamp($us)) - 1970) * 12 + month(make_timestamp($us)) - 1 END""",
        us=column(US),
        end=_month_us(_LAST_MONTH),
        last=_LAST_MONTH,
    )


def _month_of(us: int) -> int:
    """The same of a time."""
    if us < 0:
        return -1
    if us >= _month_us(_LAST_MONTH):
        return _LAST_MONTH
    moment = datetime.fromtimestamp(us // 1_000_000, UTC)
    return (moment.year - 1970) * 12 + moment.month - 1


def _month_us(month: int) -> int:
    return int(datetime(1970 + month // 12, month % 12 + 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


def _span(month: int | None) -> tuple[int | None, int | None]:
    """From and to, in microseconds; both None for rows without a time."""
    if month is None:
        return None, None
    return (
        None if month < 0 else _month_us(month),
        0 if month < 0 else None if month >= _LAST_MONTH else _month_us(month + 1),
    )


def _label(month: int | None) -> str:
    if month is None:
        return "without a time"
    if month < 0:
        return "before 1970"
    return "after 2099" if month >= _LAST_MONTH else f"{1970 + month // 12}-{month % 12 + 1:02}"


# ---------------------------------------------------------------- the folder and its manifest

_MANIFEST: Final = "manifest.json"


@dataclass(frozen=True, slots=True)
class _Mark:
    """What a file was when it was looked at."""

    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class _Manifest:
    """``reads`` is the hash of the SQL of the relation but for its list of files; ``sniffed``: its types are those that ``maker``, the
    version of DuckDB, found in text. ``sizes`` are the bytes of each file of the folder; segments are at their names in it. ``store`` is what
    a database file and its log were."""

    layout: int
    key: str
    entity: str
    unit: str
    time: str
    reads: str
    sniffed: bool
    maker: str
    columns: tuple[tuple[str, str], ...]
    numbering: str
    units: str
    count: int
    segments: tuple[Segment, ...]
    sizes: Mapping[str, int]
    files: Mapping[str, _Mark]
    store: tuple[Any, ...] | None

    def names(self) -> list[str]:
        return list(self.sizes)

    @property
    def parts(self) -> list[Part]:
        return [part for segment in self.segments for part in segment.parts]

    def same_kind(self, other: _Manifest) -> bool:
        """Could segments of the one stand beside those of the other?"""
        return self._kind() == other._kind()

    def _kind(self) -> _Manifest:
        return replace(self, numbering="", units="", count=0, segments=(), sizes={}, files={}, store=None)

    def whole(self, folder: Path) -> bool:
        """Is every file there, with the size that it was written with?"""
        try:
            return all((folder / name).stat().st_size == size for name, size in self.sizes.items())
        except OSError:
            return False

    def prepared(self, folder: Path) -> Prepared:
        held = [self.layout, self.entity, self.unit, self.time, self.columns, self.units]
        held.append([[s.path, [(p.of, p.fingerprint) for p in s.parts]] for s in self.segments])
        return Prepared(
            key=self.key,
            entity=self.entity,
            folder=folder,
            columns=dict(self.columns),
            segments=tuple(replace(s, path=str(folder / s.path)) for s in self.segments),
            units=str(folder / self.units),
            version=hashlib.sha256(json.dumps(held).encode()).hexdigest()[:16],
            numbering=self.numbering,
            unit=self.unit,
            time=self.time,
        )


def _home(root: Path) -> Path:
    return root.resolve() / ".payoff" / "prepared"


def _folders(root: Path) -> list[Path]:
    home = _home(root)
    return sorted(p for p in home.iterdir() if p.is_dir() and not p.is_symlink()) if home.is_dir() else []


def _read(folder: Path) -> _Manifest | None:
    """The manifest of a folder; None where there is none that can be read, so that the layout is made anew."""
    try:
        raw = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        raw["columns"] = tuple((str(name), str(kind)) for name, kind in raw["columns"])
        raw["segments"] = tuple(
            Segment(s["path"], tuple(Part(**{k: _tuples(v) for k, v in p.items()}) for p in s["parts"]))
            for s in raw["segments"]
        )
        raw["files"] = {name: _Mark(**mark) for name, mark in raw["files"].items()}
        raw["store"] = None if raw["store"] is None else _tuples(raw["store"])
        manifest = _Manifest(**raw)
        plain = all(re.fullmatch(r"[a-z0-9-]+\.(parquet|units)", name) for name in manifest.names())
        plain = plain and {manifest.units, *(s.path for s in manifest.segments)} <= set(manifest.names())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return manifest if plain else None  # it names files of its own folder, and of no other


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _commit(folder: Path, manifest: _Manifest) -> None:
    """Replace the manifest in one step, after all that it names is on the disk. Raises ConnectionFailed."""
    temporary = folder / f"{_MANIFEST}.{secrets.token_hex(4)}"
    try:
        temporary.write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
        flush([temporary])
        os.replace(temporary, folder / _MANIFEST)
        flush([folder])
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ConnectionFailed(f"{folder / _MANIFEST} could not be written: {error.strerror or error}") from error


def _remember(root: Path, folder: Path, old: _Manifest, new: _Manifest) -> None:
    """Keep what a run found out, so that the next need not; of no matter where it cannot be kept."""
    with suppress(ConnectionFailed, OSError), _alone(root):
        if _read(folder) == old:
            _commit(folder, new)


def _sweep(folder: Path) -> None:
    """Remove what the manifest does not name, unless a run may still be reading it: then the next sweep does."""
    with ExitStack() as held:
        if not _hold(folder, held):
            return
        manifest = _read(folder)
        named = {_MANIFEST, *(manifest.names() if manifest is not None else ())}
        for path in folder.iterdir():
            if path.name not in named:
                path.unlink()


def _hold(folder: Path, held: ExitStack, *, shared: bool = False) -> bool:
    """Lock a folder until ``held`` is closed: shared by those that read it, alone to remove from it. False where it cannot be had."""
    if not folder.is_dir():
        return False
    try:
        return held.enter_context(locked(folder, shared=shared))
    except OSError:
        return False


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """The only one that prepares this project. Raises ConnectionFailed where another does, or where there is no place to write."""
    home, lock = _home(root), ExitStack()
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / ".gitignore").write_text("*\n", encoding="utf-8")  # copies of rows are nobody's commit
        alone = lock.enter_context(locked(home / "lock"))
    except OSError as error:
        raise ConnectionFailed(f"{home} cannot be written to: {error.strerror or error}") from error
    with lock:
        if not alone:
            raise ConnectionFailed("another payoff prepare is at work on this project; try again when it is done")
        yield


# ---------------------------------------------------------------- what a layout was made of


def _named(root: Path, path: str) -> str:
    return os.path.relpath(path, root.resolve())


def _relative(root: Path, files: Sequence[str]) -> dict[str, str]:
    """Files by their path relative to the project."""
    return {_named(root, path): path for path in files}


def _stat(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def _look(path: str, known: _Mark | None) -> _Mark:
    """What a file is: its content is trusted to be what it was while its size and its time of change are. Raises ConnectionFailed."""
    try:
        size, mtime_ns = _stat(path)
        if known is not None and (known.size, known.mtime_ns) == (size, mtime_ns):
            return known
        with open(path, "rb") as handle:
            return _Mark(hashlib.file_digest(handle, "sha256").hexdigest(), size, mtime_ns)
    except OSError as error:
        raise ConnectionFailed(f"{path} cannot be read: {error.strerror or error}") from error


def _database_files(database: Path | None) -> list[Path]:
    """A database, and the log that holds what was committed and is not in it yet."""
    return [] if database is None else [database, database.with_name(f"{database.name}.wal")]


def _store(root: Path, database: Path) -> tuple[Any, ...]:
    """What a database's files are: names, sizes, times of change."""
    return tuple((_named(root, str(p)), *_stat(p)) for p in _database_files(database) if p.exists())


def _settle(paths: Sequence[str]) -> None:
    """Wait until a file that is written to from now on shows it in its time of change: clocks of file systems tick, most of them every
    few milliseconds, some every two seconds."""
    wait = (_due(paths) - time.time_ns()) / 1e9
    if 0 < wait <= 2:
        time.sleep(wait)


def _due(paths: Sequence[str]) -> int:
    """The moment, in nanoseconds, from which on a change of these files shows."""
    times = [_stat(path)[1] for path in paths if os.path.exists(path)]
    return max((t + (2_000_000_000 if t % 1_000_000_000 == 0 else 50_000_000) for t in times), default=0)


def _reads(select: exp.Query) -> str:
    """A mark of how a relation is read, whatever files it is read from."""
    tree = select.copy()
    for listed in tree.find_all(exp.Array):
        listed.set("expressions", [])
    return hashlib.sha256(tree.sql("duckdb").encode()).hexdigest()[:16]


def together(queries: Sequence[exp.Query]) -> exp.Query:
    """The rows of all of them."""
    out = queries[0].copy()
    for query in queries[1:]:
        out = exp.union(out, query, distinct=False, copy=False)
    return out


def _parquet(paths: Iterable[str]) -> exp.Expr:
    """Parquet files as a table to select from."""
    listed = exp.Array(expressions=[exp.Literal.string(path) for path in paths])
    return exp.Table(this=exp.Anonymous(this="read_parquet", expressions=[listed]))

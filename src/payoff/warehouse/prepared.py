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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import duckdb
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
_LAYOUT: Final = 1
"""Of what a manifest says and how segments are sorted: a layout of another version is made anew."""
_WHOLE: Final = 4_000_000
"""Rows of a file that stay one segment. A larger file is a segment a month, so that a short window does not read years."""
_LAST_MONTH: Final = (2100 - 1970) * 12
# lz4 is read a third faster than zstd here, and with the encodings of version 2 its files are as small (20M events: 260 MB against
# 240). Larger row groups were read no faster, and smaller ones are the unit of work of a thread.
_FORMAT: Final = "FORMAT parquet, COMPRESSION lz4_raw, PARQUET_VERSION v2, ROW_GROUP_SIZE 122880"
# Parquet holds these under their own name, but not every value of them.
_INEXACT: Final = re.compile(r"\bINTERVAL\b|\bTIME WITH TIME ZONE\b|\bVARIANT\b")


@dataclass(frozen=True, slots=True)
class Segment:
    """One sorted Parquet file at ``path``, by (unit, time, every other column). ``first_us`` and ``last_us`` are its earliest and
    latest time, None where no row has one. ``of`` is what it was made of: a file's path relative to the project, a month of
    a table, or a month of a large file; ``fingerprint`` is of that."""

    path: str
    rows: int
    first_us: int | None
    last_us: int | None
    of: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """One relation clustered for one entity.

    ``columns`` are the relation's own, name to type; a segment has ``UNIT`` and ``US`` beside them. Segments are in the order of
    ``of``. ``units`` is the path of the Parquet file (payoff_unit, unit) that tells the id of a number, as the relation stores it.
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
                        manifest.key, (), manifest.entity, "dropped", "its copy is removed", removed=len(manifest.parts)
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
            parts=(),
            files={},
            store=None,
        )
        usable = old is not None and old.same_kind(blank) and old.whole(self.folder)
        base = old if old is not None and usable else blank
        paths = self.stored.files or [str(p) for p in _database_files(self.stored.database)]
        _settle(paths)
        if self.stored.files:
            new, build = self._of_files(base)
        else:
            new, build = self._of_table(base)
        removed = len({p.of for p in (old.parts if old else ())} - {p.of for p in new.parts} - {p.of for p in build})
        if build or not base.units:
            new = self._build(new, build)
            status: Literal["prepared", "fresh"] = "prepared"
        else:
            status = "prepared" if removed else "fresh"
        self._unchanged(new)
        if new != old:
            _commit(self.folder, new)
            _sweep(self.folder)
        said = "nothing had changed" if status == "fresh" else self._said(old, bool(usable), len(build), removed)
        return Report(
            relation=self.key,
            sources=self.names,
            entity=self.entity,
            status=status,
            detail=said,
            segments=len(new.parts),
            built=len(build),
            removed=removed,
            rows=sum(p.rows for p in new.parts),
            units=new.count,
            bytes=sum((self.folder / name).stat().st_size for name in new.names()),
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

    def _of_files(self, base: _Manifest) -> tuple[_Manifest, list[_Part]]:
        """What stays, and the segments to build, of files: a file whose content is another is built again."""
        own = _relative(self.root, self.stored.files)
        marks = {name: _look(path, base.files.get(name)) for name, path in own.items()}
        same = {n for n, mark in marks.items() if n in base.files and base.files[n].sha256 == mark.sha256}
        stay = tuple(p for p in base.parts if p.file in same)
        changed = {own[name]: name for name in own if name not in same}
        months = self._months(changed)
        build: list[_Part] = []
        for name in changed.values():
            found = months.get(name, {None: 0})
            rows = sum(found.values())
            whole = rows <= _WHOLE or len(found) == 1
            for month, n in {None: rows}.items() if whole else found.items():
                label, span = (name, None) if whole else (f"{name} {_label(month)}", _span(month))
                build.append(_Part("", 0, n, None, None, label, marks[name].sha256, name, span))
        return replace(base, parts=stay, files=marks), build

    def _months(self, changed: Mapping[str, str]) -> dict[str, dict[int | None, int]]:
        """The rows of files by month. Nothing of text files, which would have to be parsed for it, and are read whole in any case."""
        out: dict[str, dict[int | None, int]] = {}
        if not changed or self.stored.text:
            return out
        query = sql(
            "SELECT $file AS file, $month AS month, count(*) AS n FROM rows GROUP BY ALL",
            file=column(_FILE),
            month=_month(),
            rows=Query(self._rows(list(changed))),
        )
        for row in self.catalog.engine.fetch(query, f"prepare {self.view.name}: months", self.view.name).to_pylist():
            out.setdefault(changed[row["file"]], {})[row["month"]] = row["n"]
        return out

    def _of_table(self, base: _Manifest) -> tuple[_Manifest, list[_Part]]:
        """The same of a table, by months: one whose rows are others is built again."""
        assert self.stored.database is not None
        store = _store(self.root, self.stored.database)
        if base.units and base.store == store:
            return base, []
        values = [column(name) for name in self.columns]
        query = sql(
            """
            SELECT $month AS month, count(*) AS n, CAST(sum(hash($values)) AS VARCHAR) AS added, CAST(bit_xor(hash($values)) AS VARCHAR) AS mixed
            FROM rows GROUP BY ALL
            """,
            month=_month(),
            values=values,
            rows=Query(self._rows([])),
        )
        months = self.catalog.engine.fetch(query, f"prepare {self.view.name}: months", self.view.name).to_pylist()
        wanted = {
            _label(row["month"]): _Part(
                name="",
                bytes=0,
                rows=row["n"],
                first_us=None,
                last_us=None,
                of=_label(row["month"]),
                fingerprint=f"{row['n']} {row['added']} {row['mixed']}",
                file=None,
                span=_span(row["month"]),
            )
            for row in months
        } or {"no rows": _Part("", 0, 0, None, None, "no rows", "0", None, None)}
        stay = tuple(p for p in base.parts if p.of in wanted and wanted[p.of].fingerprint == p.fingerprint)
        build = [part for of, part in wanted.items() if of not in {p.of for p in stay}]
        return replace(base, parts=stay, store=store), build

    # ------------------------------------------------------------ building

    def _build(self, kept: _Manifest, build: Sequence[_Part]) -> _Manifest:
        """Write the segments to build, and the units that they add. Nothing that is there is touched."""
        token, name = secrets.token_hex(4), self.view.name
        units = self.folder / f"units-{token}.parquet"
        ordered = sorted(build, key=lambda p: p.of)
        named = [replace(p, name=f"{i:05}-{token}.parquet") for i, p in enumerate(ordered)]
        probe = self.folder / f"types-{token}.parquet"
        written = [probe, units, *(self.folder / p.name for p in named)]
        files = sorted({self._path(p.file) for p in build if p.file is not None})
        try:
            with self._writer(written, [self.folder / n for n in kept.names() if n]) as engine:
                self._hold_exactly(engine, probe)
                if self.stored.text:  # parsed once, and not for its units and again for each segment
                    what = f"prepare {name}: read"
                    engine.keep("stored", Query(self._stored(files)), what, name)
                before = kept.count if kept.units else 0
                self._number(engine, kept, before, files)
                every = Query(exp.select(column(UNIT), "unit").from_("units").order_by(column(UNIT)))
                engine.write(every, units, f"prepare {name}: units", name)
                done = []
                for i, part in enumerate(named, 1):
                    done.append(self._segment(engine, part, files, f"prepare {name}: segment {i:,} of {len(named):,}"))
                parts = tuple(sorted((*kept.parts, *done), key=lambda p: p.of))
                count = int(engine.row(sql("SELECT count(*) AS n FROM units"), "count units", name)["n"])
                new = replace(kept, units=units.name, count=count, parts=parts)
                read = engine.types(Query(new.prepared(self.folder).rows()), name)
                assert read == self.columns, (read, self.columns)
            flush([p for p in written if p.exists()])
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise
        return new

    def _hold_exactly(self, engine: _Writer, probe: Path) -> None:
        """Raises DataError for a column whose type comes back as another, before anything is sorted."""
        nothing = exp.select(*(column(c) for c in self.columns), exp.alias_(self.unit.copy(), _ID, quoted=True))
        engine.write(Query(nothing.from_(typed_row(self.columns))), probe, "look at columns", self.view.name)
        back = engine.types(Query(exp.select("*").from_(_parquet([str(probe)]))), self.view.name)
        for column_, kind in {**self.columns, _ID: self.view.type_of_own(self.unit)}.items():
            if back[column_] != kind:
                raise self._cannot_hold("" if column_ == _ID else column_, kind)
        probe.unlink()

    def _number(self, engine: _Writer, kept: _Manifest, before: int, files: Sequence[str]) -> None:
        """The table ``units``: the numbers given so far, and after them those of new units by their first time, then by id."""
        name = self.view.name
        rows = Query(self._rows(files, loaded=self.stored.text))
        new = sql(
            """
            SELECT $before + row_number() OVER (ORDER BY first_us NULLS LAST, unit) - 1 AS payoff_unit, unit
            FROM (SELECT $id AS unit, min($us) AS first_us FROM rows WHERE $id IS NOT NULL GROUP BY ALL) AS seen
            """,
            before=before,
            id=column(_ID),
            us=column(US),
            rows=rows,
        )
        what = f"prepare {name}: units"
        if not kept.units:
            engine.keep("units", new, what, name)
            return
        there = exp.select(column(UNIT), "unit").from_(_parquet([str(self.folder / kept.units)]))
        engine.keep("units", Query(there), what, name)
        tree = new.tree.copy()
        assert isinstance(tree, exp.Select)
        unseen = "NOT EXISTS (SELECT 1 FROM units AS given WHERE given.unit = seen.unit)"
        engine.append("units", Query(tree.where(unseen, dialect="duckdb")), what, name)

    def _segment(self, engine: _Writer, part: _Part, files: Sequence[str], what: str) -> _Part:
        """One segment, written and looked at. Raises ConnectionFailed where its rows are not those that were counted."""
        where = [] if part.span is None else self._between(*part.span)
        if part.file is not None:
            where.append(exp.EQ(this=column(_FILE), expression=exp.Literal.string(self._path(part.file))))
        rows = exp.select("*").from_(self._rows(files, loaded=self.stored.text).subquery("every"))
        own = [column(name, "own") for name in self.columns]
        # Rows of one unit at one time are in one order too, whatever order they were met in. By a hash of them: to sort by every
        # column takes a third longer and a key as wide as the row.
        query = sql(
            """
            SELECT $values, units.payoff_unit AS payoff_unit, own.payoff_us AS payoff_us
            FROM own LEFT JOIN units ON units.unit = own.payoff_id
            ORDER BY payoff_unit, payoff_us, hash($values)
            """,
            values=own,
            own=Query(rows.where(conjunction(*where)) if where else rows),
        )
        path = self.folder / part.name
        engine.write(query, path, what, self.view.name)
        look = sql(
            "SELECT count(*) AS n, min($us) AS first_us, max($us) AS last_us FROM segment",
            us=column(US),
            segment=Query(exp.select(column(US)).from_(_parquet([str(path)]))),
        )
        found = engine.row(look, what, self.view.name)
        if not self.stored.text and found["n"] != part.rows:
            raise self._changed()
        return replace(
            part, bytes=path.stat().st_size, rows=found["n"], first_us=found["first_us"], last_us=found["last_us"]
        )

    def _between(self, low_us: int | None, high_us: int | None) -> list[exp.Expr]:
        """Rows from ``low_us`` to before ``high_us``; both None: those without a time."""
        if low_us is None and high_us is None:
            return [fragment("$us IS NULL", us=column(US))]
        bounds = self.clock.between(low_us, high_us)  # by the column as stored, so that most of the others are not read
        bounds += [] if low_us is None else [fragment("$us >= $low", us=column(US), low=low_us)]
        return bounds + ([] if high_us is None else [fragment("$us < $high", us=column(US), high=high_us)])

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
class _Part:
    """A segment as the manifest names it; ``span`` is that of its rows' times where they are not all rows of a file or table."""

    name: str
    bytes: int
    rows: int
    first_us: int | None
    last_us: int | None
    of: str
    fingerprint: str
    file: str | None
    span: tuple[int | None, int | None] | None


@dataclass(frozen=True, slots=True)
class _Manifest:
    """``reads`` is the hash of the SQL of the relation but for its list of files; ``sniffed``: its types are those that ``maker``, the
    version of DuckDB, found in text. ``store`` is what a database file and its log were."""

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
    parts: tuple[_Part, ...]
    files: Mapping[str, _Mark]
    store: tuple[Any, ...] | None

    def names(self) -> list[str]:
        return [self.units, *(p.name for p in self.parts)]

    def same_kind(self, other: _Manifest) -> bool:
        """Could segments of the one stand beside those of the other?"""
        return self._kind() == other._kind()

    def _kind(self) -> _Manifest:
        return replace(self, numbering="", units="", count=0, parts=(), files={}, store=None)

    def whole(self, folder: Path) -> bool:
        """Is every file there, with the size that it was written with?"""
        try:
            return (folder / self.units).is_file() and all(
                (folder / p.name).stat().st_size == p.bytes for p in self.parts
            )
        except OSError:
            return False

    def prepared(self, folder: Path) -> Prepared:
        held = [
            self.layout,
            self.entity,
            self.unit,
            self.time,
            self.columns,
            self.units,
            [asdict(p) for p in self.parts],
        ]
        return Prepared(
            key=self.key,
            entity=self.entity,
            folder=folder,
            columns=dict(self.columns),
            segments=tuple(
                Segment(str(folder / p.name), p.rows, p.first_us, p.last_us, p.of, p.fingerprint) for p in self.parts
            ),
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
        raw["parts"] = tuple(
            _Part(**{**p, "span": None if p["span"] is None else tuple(p["span"])}) for p in raw["parts"]
        )
        raw["files"] = {name: _Mark(**mark) for name, mark in raw["files"].items()}
        raw["store"] = None if raw["store"] is None else _tuples(raw["store"])
        manifest = _Manifest(**raw)
        plain = all(re.fullmatch(r"[a-z0-9-]+\.parquet", name) for name in manifest.names())
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


def _parquet(paths: Iterable[str]) -> exp.Expr:
    """Parquet files as a table to select from."""
    listed = exp.Array(expressions=[exp.Literal.string(path) for path in paths])
    return exp.Table(this=exp.Anonymous(this="read_parquet", expressions=[listed]))

"""One YAML 1.2 file as plain maps, lists and scalars, with the place of every key and value. It knows no nouns.

ruamel scans and parses; values are built here, from its events, because that leaves nothing to a constructor: no tags, no
dates, no merge keys, and bounds on size, depth and what aliases may unfold to. Text stays text: ``off``, ``NO``, ``1:30``,
``2026-12-15`` and ``007`` are what they look like; ``1e6`` is a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from payoff.errors import Problem
from payoff.spec.nouns import shown

Tree = dict[str, "Tree"] | tuple["Tree", ...] | str | int | float | bool | None
Step = str | int
Steps = tuple[Step, ...]

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_VALUES = 50_000

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BOOLEANS = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_NULLS = ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True, slots=True)
class Place:
    """Line and column count from 1. ``text`` is the column of a value's first character when its text stands as it is."""

    file: str
    line: int
    column: int
    text: int | None = None


class Positions:
    """Where each key and value of a project stands. What has no place of its own has that of what holds it."""

    def __init__(self, root: str) -> None:
        self._root = Place(root, 1, 1)
        self._keys: dict[Steps, Place] = {}
        self._values: dict[Steps, Place] = {}

    def add(self, steps: Steps, place: Place, *, key: bool = False) -> None:
        """The first place given to ``steps`` stays."""
        (self._keys if key else self._values).setdefault(steps, place)

    def update(self, other: Positions, leave_out: Iterable[Steps] = ()) -> None:
        """Add the places of another file, except those under ``leave_out``."""
        heads = set(leave_out)
        for mine, theirs in ((self._keys, other._keys), (self._values, other._values)):
            for steps, place in theirs.items():
                if heads.isdisjoint((steps[:1], steps[:2])):
                    mine.setdefault(steps, place)

    def has(self, *steps: Step) -> bool:
        return steps in self._values

    def place(self, *steps: Step, key: bool = False) -> Place:
        """The place of the value at ``steps``; of its key with ``key``; else of the nearest thing around it."""
        for length in range(len(steps), 0, -1):
            first, second = (self._keys, self._values) if key else (self._values, self._keys)
            found = first.get(steps[:length]) or second.get(steps[:length])
            if found is not None:
                return found
            key = True
        return self._values.get((), self._root)

    def of(self, *steps: Step) -> tuple[str, int, int]:
        """``(file, line, column)`` of the value at ``steps``, counted from 1."""
        place = self.place(*steps)
        return place.file, place.line, place.column

    def problem(self, code: str, message: str, *steps: Step, key: bool = False, offset: int | None = None) -> Problem:
        """A problem at the value (or the key) at ``steps``; ``offset`` counts characters into its text."""
        place = self.place(*steps, key=key)
        column = place.column
        if offset is not None and place.text is not None and steps in self._values:
            column = place.text + offset
        return Problem(place.file, place.line, column, code, message)


@dataclass(frozen=True, slots=True)
class Document:
    """``tree`` is None where the file could not be read; ``problems`` then says why."""

    tree: dict[str, Tree] | None
    positions: Positions
    problems: tuple[Problem, ...]


def read(path: Path, name: str) -> Document:
    """Read one file; ``name`` is how messages call it. Raises nothing: what is wrong is in ``problems``."""
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        return _nothing(name, 1, 1, "unreadable", f"the file cannot be read: {error.strerror}")
    if len(data) > MAX_BYTES:
        return _nothing(name, 1, 1, "too-large", f"the file is larger than {MAX_BYTES // 1_000_000} MB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", errors="replace").split("\n")
        message = "the file is not UTF-8 text from here on; save it as UTF-8"
        return _nothing(name, len(before), len(before[-1]) + 1, "not-utf8", message)
    builder = _Builder(name)
    try:
        builder.build(YAML(typ="safe", pure=True).parse(text))
    except _Stop as stop:
        return Document(None, builder.positions, (*builder.problems, stop.problem))
    except YAMLError as error:
        return Document(None, builder.positions, (*builder.problems, _syntax(name, text, error)))
    except (ValueError, OverflowError):
        # ruamel passes escapes such as "\U00110000" to chr() unchecked
        line, column = builder.line, builder.column
        message = "not valid YAML after this: a backslash escape names no character"
        return Document(None, builder.positions, (*builder.problems, Problem(name, line, column, "yaml", message)))
    return Document(builder.root, builder.positions, tuple(builder.problems))


def _nothing(name: str, line: int, column: int, code: str, message: str) -> Document:
    return Document(None, Positions(name), (Problem(name, line, column, code, message),))


def _syntax(name: str, text: str, error: YAMLError) -> Problem:
    """ruamel's complaint in plain words, at its place."""
    if isinstance(error, ReaderError):
        before = text[: error.position].split("\n")
        message = "a control character stands here; delete it"
        return Problem(name, len(before), len(before[-1]) + 1, "yaml", message)
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return Problem(name, 1, 1, "yaml", "not valid YAML")
    problem, context, mark = str(error.problem), str(error.context), error.problem_mark
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "'\\t'" in problem:
        message = "a tab stands here; YAML is indented with spaces"
    elif "cannot start any token" in problem:
        message = f"text cannot start with {line[mark.column : mark.column + 1]} here; put it in quotes"
    elif problem == "mapping values are not allowed here":
        message = "a second ': ' on one line; put text that holds a colon in quotes, or start a new line"
    elif "quoted scalar" in context and "end of stream" in problem and error.context_mark is not None:
        mark, message = error.context_mark, "a quotation starts here and never ends"
    elif "${" in line:
        message = '${NAME} needs quotes here: "${NAME}"'
    elif context.startswith("while parsing a flow"):
        message = "a comma or a closing bracket is missing before this"
    elif "<block end>" in problem or "block mapping" in context or "simple key" in context:
        message = "this does not fit the lines above: look at the indentation, and for a ':' or '-' too many or too few"
    else:
        message = f"not valid YAML: {problem}"
    return Problem(name, mark.line + 1, mark.column + 1, "yaml", message)


class _Stop(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


@dataclass(slots=True)
class _Frame:
    """A map or list being read. ``key`` is the map's key whose value comes next; ``known`` says that it is a repetition."""

    steps: Steps
    anchor: str | None
    first_value: int
    map: dict[str, Tree] | None
    items: list[Tree] = field(default_factory=list)
    key: str | None = None
    repeated: bool = False


class _Builder:
    """Events to a tree, without recursion. ``problems`` are those after which reading goes on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.positions = Positions(name)
        self.problems: list[Problem] = []
        self.root: dict[str, Tree] = {}
        self.line = self.column = 1
        self._frames: list[_Frame] = []
        self._anchors: dict[str, tuple[Tree, int]] = {}
        self._values = 0
        self._documents = 0

    def build(self, events: Iterator[Event]) -> None:
        for event in events:
            self.line, self.column = event.start_mark.line + 1, event.start_mark.column + 1
            if isinstance(event, DocumentStartEvent):
                self._document(event)
            elif isinstance(event, ScalarEvent):
                self._scalar(event)
            elif isinstance(event, AliasEvent):
                self._alias(event)
            elif isinstance(event, MappingStartEvent | SequenceStartEvent):
                self._open(event)
            elif isinstance(event, MappingEndEvent | SequenceEndEvent):
                self._close()
        if self._documents == 0:
            raise self._stop("empty", "the file is empty; a definition file holds sections such as metrics:")

    def _problem(self, code: str, message: str) -> Problem:
        return Problem(self.name, self.line, self.column, code, message)

    def _stop(self, code: str, message: str) -> _Stop:
        return _Stop(self._problem(code, message))

    def _document(self, event: DocumentStartEvent) -> None:
        self._documents += 1
        if self._documents > 1:
            raise self._stop("yaml", "a file holds one document; delete this '---' and merge what follows")
        if event.version is not None and tuple(event.version) != (1, 2):
            raise self._stop("yaml", "files are read as YAML 1.2; delete the %YAML line")

    def _place(self, text: int | None = None) -> Place:
        return Place(self.name, self.line, self.column, text)

    def _steps(self) -> Steps:
        """Where the next value belongs."""
        if not self._frames:
            return ()
        frame = self._frames[-1]
        if frame.map is None:
            return (*frame.steps, len(frame.items))
        return (*frame.steps, frame.key or "")

    def _awaits_key(self) -> bool:
        return bool(self._frames) and self._frames[-1].map is not None and self._frames[-1].key is None

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise self._stop("too-large", f"the file holds more than {MAX_VALUES:,} values (aliases written out)")

    def _untagged(self, tag: object) -> None:
        if tag is not None:
            word = shown(str(tag).removeprefix("tag:yaml.org,2002:"))
            self.problems.append(
                self._problem("yaml", f"the tag {word} is not read; delete it, and quote what is text")
            )

    def _put(self, value: Tree, steps: Steps) -> None:
        if not self._frames:
            if isinstance(value, dict):
                self.root = value
                return
            place = self.positions.place()
            self.line, self.column = place.line, place.column
            if value is None:
                raise self._stop("empty", "the file is empty; a definition file holds sections such as metrics:")
            raise self._stop("not-a-map", "a definition file is a map of sections such as metrics: and claims:")
        frame = self._frames[-1]
        if frame.map is None:
            frame.items.append(value)
            return
        assert frame.key is not None
        if not frame.repeated:
            frame.map[frame.key] = value
        frame.key = None

    def _open(self, event: MappingStartEvent | SequenceStartEvent) -> None:
        if self._awaits_key():
            raise self._stop("yaml", "a key is plain text; put text that starts with { or [ in quotes")
        self._untagged(event.tag)
        if len(self._frames) >= MAX_DEPTH:
            raise self._stop("too-deep", f"maps and lists are more than {MAX_DEPTH} deep here")
        steps = self._steps()
        self.positions.add(steps, self._place())
        is_map = isinstance(event, MappingStartEvent)
        self._frames.append(_Frame(steps, event.anchor, self._values, {} if is_map else None))
        self._count(1)

    def _close(self) -> None:
        frame = self._frames.pop()
        value: Tree = tuple(frame.items) if frame.map is None else frame.map
        if frame.anchor is not None:
            self._anchors[frame.anchor] = (value, self._values - frame.first_value)
        self._put(value, frame.steps)

    def _alias(self, event: AliasEvent) -> None:
        if event.anchor not in self._anchors:
            raise self._stop(
                "yaml", f"*{shown(event.anchor)[1:-1]} stands for nothing written before it (or holds itself)"
            )
        value, size = self._anchors[event.anchor]
        if self._awaits_key():
            raise self._stop("yaml", "a key is plain text, not an alias")
        self._count(size)
        steps = self._steps()
        self.positions.add(steps, self._place())
        self._put(value, steps)

    def _scalar(self, event: ScalarEvent) -> None:
        self._untagged(event.tag)
        self._count(1)
        plain = event.style is None and event.tag is None
        text = self._text(event.value)
        if self._awaits_key():
            self._key(text, plain)
            return
        value = self._resolve(text) if plain else text
        steps = self._steps()
        quotes = 0 if event.style is None else 1
        start, end = event.start_mark, event.end_mark
        as_it_is = start.line == end.line and end.column - start.column == len(text) + 2 * quotes
        self.positions.add(steps, self._place(self.column + quotes if as_it_is else None))
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, 1)
        self._put(value, steps)

    def _text(self, text: str) -> str:
        try:  # "\ud83d\ude00", as JSON escapes it, is one character
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise self._stop("yaml", "a backslash escape names half a character") from None
        if _CONTROL.search(text):
            raise self._stop("yaml", "a backslash escape names a control character; delete it")
        return text

    def _resolve(self, text: str) -> Tree:
        """A plain scalar by the YAML 1.2 core schema, except that a number never starts with idle zeros: 007 is text."""
        if text in _NULLS:
            return None
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        if len(text) > 300:
            return text
        if _INTEGER.fullmatch(text):
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _SPECIAL.fullmatch(text):
            return float(text.replace(".", "").lower())
        return text

    def _key(self, text: str, plain: bool) -> None:
        """Keys are text; one that is a boolean or a whole number is spelt as the value would be (an arm called true)."""
        frame = self._frames[-1]
        assert frame.map is not None
        value = self._resolve(text) if plain else text
        if value is None:
            raise self._stop("yaml", "a key is missing before the ':'")
        if plain and text == "<<":
            raise self._stop("yaml", "merge keys (<<) are not part of YAML 1.2; write the keys out")
        word = str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int) else text
        frame.key, frame.repeated = word, word in frame.map
        steps = (*frame.steps, word)
        if frame.repeated:
            line = self.positions.place(*steps, key=True).line
            message = f"{shown(word)} is already a key here, in line {line}; delete or rename one of the two"
            self.problems.append(self._problem("duplicate-key", message))
        self.positions.add(steps, self._place(), key=True)

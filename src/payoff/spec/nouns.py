"""The nouns of a project, as frozen pydantic models. Nothing here reads a file or a table.

Names are spelt alike in YAML, Python, the command line and the web. A key that is not here is an error in the user's file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from difflib import get_close_matches
from itertools import pairwise
from typing import Annotated, Any, Literal, cast, get_args
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from payoff.errors import did_you_mean

_DURATION = re.compile(r"^([0-9]+(?:\.[0-9]+)?)\s*(s|m|h|d|w)$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LONGEST = timedelta(days=36525)


def shown(raw: object) -> str:
    """A user's text inside a message: quoted, on one line, unprintable characters escaped, cut at 60 characters."""
    text = str(raw)
    text = text if len(text) <= 60 else text[:59] + "…"
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + "'"


def hint(word: str, known: Iterable[str]) -> str:
    """``did_you_mean``, but only for a near slip and never for long texts, over which it would take long."""
    close = get_close_matches(word, [k for k in known if len(k) <= 100], n=1, cutoff=0.7) if len(word) <= 100 else []
    return did_you_mean(word, close)


def _parse_duration(raw: object) -> object:
    if isinstance(raw, timedelta):
        span = raw
    else:
        match = _DURATION.fullmatch(raw.strip()) if isinstance(raw, str) and len(raw) < 100 else None
        if match is None:
            raise ValueError("a duration is a number and one of s, m, h, d, w, such as 48h or 14d")
        seconds = float(match[1]) * _SECONDS[match[2]]
        span = timedelta(seconds=min(seconds, 2 * _LONGEST.total_seconds()))
    if not timedelta(0) < span <= _LONGEST:
        raise ValueError("a duration is longer than zero and at most 100 years")
    return span


def format_duration(span: timedelta) -> str:
    """``14d``, ``48h``: the largest unit that divides the span exactly (days before weeks, as people write them)."""
    for unit in "dhm":
        if span % timedelta(seconds=_SECONDS[unit]) == timedelta(0):
            return f"{span // timedelta(seconds=_SECONDS[unit])}{unit}"
    return f"{span.total_seconds():.6f}".rstrip("0").rstrip(".") + "s"


Duration = Annotated[
    timedelta,
    BeforeValidator(_parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _DURATION.pattern, "examples": ["14d", "48h"]}),
]

_DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_MOMENT = _DAY + r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?"


def _parse_moment(raw: object) -> object:
    # Left to pydantic, 20261215 would be seconds since 1970.
    if isinstance(raw, str) and re.fullmatch(_MOMENT, raw.strip()):
        try:
            return datetime.fromisoformat(raw.strip())
        except ValueError as error:
            raise ValueError(f"{shown(raw)} is not in the calendar") from error
    if isinstance(raw, date):
        return raw if isinstance(raw, datetime) else datetime(raw.year, raw.month, raw.day)
    raise ValueError(
        "a date is written 2026-12-15, and a date with a time 2026-12-15T08:30 (add Z or +02:00 for a zone)"
    )


def _parse_day(raw: object) -> object:
    if isinstance(raw, str) and re.fullmatch(_DAY, raw.strip()):
        try:
            return date.fromisoformat(raw.strip())
        except ValueError as error:
            raise ValueError(f"{shown(raw)} is not in the calendar") from error
    if isinstance(raw, date) and not isinstance(raw, datetime):
        return raw
    raise ValueError("a date is written 2026-12-15")


Moment = Annotated[
    datetime,
    BeforeValidator(_parse_moment),
    WithJsonSchema({"type": "string", "pattern": f"^{_MOMENT}$", "examples": ["2026-12-15", "2026-12-15T08:30Z"]}),
]
"""A date or a date and time; without an offset it is in the project's time zone."""

Day = Annotated[
    date,
    BeforeValidator(_parse_day),
    WithJsonSchema({"type": "string", "pattern": f"^{_DAY}$", "examples": ["2027-03-31"]}),
]

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"


def check_name(raw: str) -> str:
    """``raw`` where it is a name. Raises ValueError."""
    if not re.fullmatch(_NAME, raw):
        raise ValueError(f"{shown(raw)} is not a name: letters, digits and underscores, not starting with a digit")
    if len(raw) > 100:
        raise ValueError(f"{shown(raw)} is too long: a name has at most 100 characters")
    return raw


Name = Annotated[
    str, AfterValidator(check_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME}$", "maxLength": 100})
]


def _zone(raw: str) -> str:
    try:
        ZoneInfo(raw)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{shown(raw)} is not a time zone name such as UTC or Europe/Berlin") from error
    return raw


TimeZone = Annotated[str, AfterValidator(_zone)]


@dataclass(frozen=True, slots=True)
class _Like:
    """Text of a given form: a message in words where it does not match, a pattern in the JSON Schema."""

    pattern: str
    message: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], CoreSchema]) -> CoreSchema:
        return handler(Annotated[source, AfterValidator(self._check), WithJsonSchema(self._schema())])

    def _schema(self) -> JsonSchemaValue:
        return {"type": "string", "pattern": f"^{self.pattern}$"}

    def _check(self, raw: str) -> str:
        if not re.fullmatch(self.pattern, raw):
            raise ValueError(f"{shown(raw)} {self.message}")
        return raw


@dataclass(frozen=True, slots=True)
class _Or:
    """In the JSON Schema, what a BeforeValidator accepts besides the model's own map."""

    shorthand: tuple[tuple[str, Any], ...]

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [dict(self.shorthand), handler(core)]}


Sql = Annotated[str, Field(min_length=1, description="a SQL expression (DuckDB dialect); no statements, no templating")]


class Noun(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True)


# ---------------------------------------------------------------- where data lives


class DuckDBConnection(Noun):
    """A DuckDB database file (or, without ``path``, only the files that sources name). Always opened read-only."""

    engine: Literal["duckdb"]
    path: str | None = None
    read_only: Literal[True] = True
    memory_limit: (
        Annotated[str, _Like(r"[0-9]+(\.[0-9]+)?\s*(MB|GB|MiB|GiB)", "is not an amount of memory such as 4GB")] | None
    ) = Field(None, description="default: a quarter of memory")
    temp_directory: str | None = Field(
        None, description="where to spill; default: a private folder among the system's temporary files"
    )
    threads: int | None = Field(None, ge=1)

    @property
    def holds_tables(self) -> bool:
        """Can a ``table:`` or ``sql:`` source be read from it?"""
        return self.path is not None


class SQLiteConnection(Noun):
    """A SQLAlchemy URL for the ledger of results; never a place metrics are read from."""

    engine: Literal["sqlite"]
    url: str = Field(repr=False)  # it may hold a password

    @property
    def holds_tables(self) -> bool:
        return False


class PostgresConnection(Noun):
    """A PostgreSQL database: sources are read from it (in read-only transactions), or the ledger is kept in it."""

    engine: Literal["postgres"]
    url: str = Field(repr=False, description="postgresql://user:password@host:5432/database")
    db_schema: str | None = Field(
        None, alias="schema", description="where tables without a schema are; default: the user's"
    )

    @property
    def holds_tables(self) -> bool:
        return True


class ClickHouseConnection(Noun):
    """ClickHouse: a server by its URL, or in this process (chdb) over the folder at ``path``."""

    engine: Literal["clickhouse"]
    url: str | None = Field(None, repr=False, description="http://user:password@host:8123/database, or https://")
    path: str | None = Field(None, description="a folder of chdb's, relative to the project")
    database: str | None = Field(None, description="where tables without a database are; default: `default`")

    @model_validator(mode="after")
    def _one_place(self) -> ClickHouseConnection:
        if (self.url is None) == (self.path is None):
            raise ValueError("a clickhouse connection has one of url (a server) and path (a folder, read in process)")
        return self

    @property
    def holds_tables(self) -> bool:
        return True


class SparkConnection(Noun):
    """A Spark cluster that exists: by Spark Connect (``sc://host:15002``) or as a classic session's master (``spark://host:7077``, ``local[4]``, ``yarn``)."""

    engine: Literal["spark"]
    url: str = Field(repr=False)
    database: str | None = Field(None, description="where tables without a database are (a catalog may go before it)")
    options: dict[str, str] = Field(
        default_factory=dict, description="settings of a classic session, such as spark.executor.memory"
    )

    @property
    def holds_tables(self) -> bool:
        return True


Connection = Annotated[
    DuckDBConnection | SQLiteConnection | PostgresConnection | ClickHouseConnection | SparkConnection,
    Field(discriminator="engine"),
]
KEEPS_LEDGERS = ("sqlite", "postgres")
READ_FILES = ("clickhouse", "spark")
"""Engines that a ``file:`` source may name; without one DuckDB reads it."""


class Defaults(Noun):
    entity: Name | None = None
    window: Duration | None = None
    alpha: float = Field(0.05, gt=0, lt=0.5)
    min_cell: int = Field(0, ge=0, description="suppress every displayed cell with fewer entities than this")
    holdout_unit: Name | None = None


class Identity(Noun):
    """How the ids of one unit are found: rows of ``source`` that hold two of the entity's ids or aliases say they are the same.

    Units are the connected components of those pairs. A row of ``lookback`` or more before an id was first joined to
    another stays with its own id. ``blocked`` values (beside empty ones and runs of zeros) join nothing; a component of more than
    ``max_size`` ids joins nothing; ``shared: apart`` lets an alias that several units claim join nothing.
    """

    source: Name
    rule: Literal["deterministic"] = "deterministic"
    lookback: Duration | None = None
    blocked: tuple[str, ...] = ()
    max_size: int = Field(50, ge=2)
    shared: Literal["merge", "apart"] = "merge"


class Entity(Noun):
    """A kind of unit; ``id`` is its column in every source that does not map it.

    ``aliases`` are columns of the identity's source that hold other ids of it (of a browser, a device).
    """

    id: str | None = None
    aliases: tuple[str, ...] = ()
    identity: Identity | None = None

    @model_validator(mode="after")
    def _joined(self) -> Entity:
        if (self.identity is None) != (not self.aliases):
            raise ValueError("aliases and identity go together: what may be joined, and the source that joins it")
        if self.identity is not None and self.id is None:
            raise ValueError("an entity with an identity has an id, which its aliases are joined to")
        if len({self.id, *self.aliases}) != len(self.aliases) + 1 and self.aliases:
            raise ValueError("id and aliases are different columns")
        return self


class ChannelRule(Noun):
    """One line of a list of channels: the first whose ``when`` holds names the session. Without ``when`` it takes what is left."""

    name: str = Field(min_length=1)
    when: Sql | None = None


class ChannelPreset(Noun):
    """``ga4``: the published default channel grouping, over the columns that hold source, medium and campaign."""

    preset: Literal["ga4"]
    source: Sql = "utm_source"
    medium: Sql = "utm_medium"
    campaign: Sql | None = None


def _channels_form(raw: object) -> str:
    return "<preset>" if isinstance(raw, dict | ChannelPreset) else "<rules>"


Channels = Annotated[
    Annotated[tuple[ChannelRule, ...], Field(min_length=1), Tag("<rules>")] | Annotated[ChannelPreset, Tag("<preset>")],
    Discriminator(_channels_form),
]


class SessionsOf(Noun):
    """Rows of a source taken together while a unit pauses for less than ``gap``; one row a session, named by its ``channels``.

    The columns are those of a session's first row, and ``session_unit``, ``session_start``, ``session_end``, ``session_rows``,
    ``channel``.
    """

    of: Name
    gap: Duration = timedelta(minutes=30)
    entity: Name | None = None
    channels: Channels | None = None


class Source(Noun):
    """Rows to read: exactly one of ``table``, ``file``, ``sql`` or ``sessions`` (made of another source's rows).

    ``time`` is the row's timestamp (a naive one is in ``timezone``, else the project's). ``entity`` maps an entity to its
    column. ``one_row_per`` declares a unit-level table: one row a unit, no timestamp needed, no id needed.
    ``links`` maps another source to the column here that holds its id. ``through`` says up to when the data is complete.
    ``columns`` are columns that it must have.
    """

    table: str | None = None
    file: str | None = None
    sql: str | None = None
    sessions: SessionsOf | None = None
    columns: tuple[str, ...] = ()
    connection: Name | None = None
    where: Sql | None = None
    time: Sql | None = None
    timezone: TimeZone | None = None
    through: Moment | None = None
    id: Sql | None = None
    entity: dict[Name, Sql] = Field(default_factory=dict)
    links: dict[Name, Sql] = Field(default_factory=dict)
    one_row_per: Name | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        if sum(origin is not None for origin in (self.table, self.file, self.sql, self.sessions)) != 1:
            raise ValueError("a source has exactly one of table, file, sql or sessions")
        if self.sessions is not None:
            given = [k for k in ("time", "id", "entity", "one_row_per", "timezone", "connection") if getattr(self, k)]
            if given:
                raise ValueError(f"sessions know their unit and their time; leave out {given[0]}")
        return self

    @property
    def timed(self) -> bool:
        """Whether its rows have a time; a session's is its start."""
        return self.time is not None or self.sessions is not None


# ---------------------------------------------------------------- metrics


def _event(raw: object) -> object:
    return {"source": raw} if isinstance(raw, str) else raw


class Event(Noun):
    """Rows of a source, optionally only those where a condition holds. A bare name is the whole source."""

    source: Name
    where: Sql | None = None


class Anchor(Event):
    """Rows that open a window of their own: the unit's first one within ``within`` of exposure (default: the project's window)."""

    within: Duration | None = None


_A_SOURCE = _Or((("type", "string"), ("pattern", f"^{_NAME}$")))
EventRef = Annotated[Event, BeforeValidator(_event), _A_SOURCE]
AnchorRef = Annotated[Anchor, BeforeValidator(_event), _A_SOURCE]


class Percentile(Noun):
    """Cap at a percentile of the unit values pooled over all arms; ``of: nonzero`` pools only values other than zero."""

    percentile: float = Field(gt=50, lt=100)
    of: Literal["all", "nonzero"] = "all"


def _cap(raw: object) -> object:
    if isinstance(raw, str):
        match = re.fullmatch(r"p([0-9]+(?:\.[0-9]+)?)", raw.strip())
        if match is None:
            raise ValueError("a cap is a number, a percentile such as p99, or {percentile: 99, of: nonzero}")
        return {"percentile": float(match[1])}
    return raw


def _cap_form(raw: object) -> str:
    return "<percentile>" if isinstance(raw, dict | Percentile) else "<number>"


# Discriminated, so that a mistake is reported for the form that was written and not for both.
Cap = Annotated[
    Annotated[float, Field(gt=0), Tag("<number>")] | Annotated[Percentile, Tag("<percentile>")],
    Discriminator(_cap_form),
    BeforeValidator(_cap),
    _Or((("type", "string"), ("pattern", r"^p[0-9]+(\.[0-9]+)?$"))),
]

Direction = Literal["up", "down"]
Role = Literal["north_star", "primary", "secondary", "guardrail", "vanity"]


class MetricBase(Noun):
    """What every metric has. ``margin`` (in the metric's unit) is the harm a guardrail tolerates; ``reason`` says why a vanity metric is one."""

    entity: Name | None = None
    direction: Direction = "up"
    role: Role = "secondary"
    margin: float | None = Field(None, gt=0)
    owner: str | None = None
    caveat: str | None = None
    reason: str | None = None
    unit: str | None = None
    window: Duration | None = None

    @model_validator(mode="after")
    def _vanity_has_reason(self) -> MetricBase:
        if self.reason is not None and self.role != "vanity":
            raise ValueError("reason says why a metric is vanity; this one has another role")
        return self


class CountMetric(MetricBase):
    """Rows per unit. A unit with none counts as 0."""

    kind: Literal["count"]
    from_: Name = Field(alias="from")
    where: Sql | None = None
    cap: Cap | None = None


class SumMetric(MetricBase):
    """Total of ``column`` per unit. A unit with no row counts as 0."""

    kind: Literal["sum"]
    from_: Name = Field(alias="from")
    column: Sql
    where: Sql | None = None
    cap: Cap | None = None


class MeanMetric(MetricBase):
    """Average of ``column`` over the unit's own rows, then over units. A unit with no value is left out, and counted."""

    kind: Literal["mean"]
    from_: Name = Field(alias="from")
    column: Sql
    where: Sql | None = None
    cap: Cap | None = None


class RateMetric(MetricBase):
    """Share of rows where ``where`` holds: a ratio of sums over units (delta method). Rows where it is NULL are in neither."""

    kind: Literal["rate"]
    from_: Name = Field(alias="from")
    where: Sql


class ConversionMetric(MetricBase):
    """Share of units with at least one row of ``to`` inside the window; with ``after``, inside the window that such a row opens."""

    kind: Literal["conversion"]
    to: EventRef
    after: AnchorRef | None = None


class NpsMetric(MetricBase):
    """Net promoter score, -100 to 100: share of answers 9 or 10 minus share 0 to 6, over answers."""

    kind: Literal["nps"]
    from_: Name = Field(alias="from")
    column: Sql
    where: Sql | None = None


class CsatMetric(MetricBase):
    """Top-box share: answers of at least ``top`` (default 4, on a scale of 1 to 5), over answers."""

    kind: Literal["csat"]
    from_: Name = Field(alias="from")
    column: Sql
    top: float = 4
    where: Sql | None = None


class RatioPart(Noun):
    """``{count: orders}`` or ``{sum: orders.amount}``; capped on its own."""

    count: Name | None = None
    sum: str | None = None
    where: Sql | None = None
    cap: Cap | None = None

    @model_validator(mode="after")
    def _one(self) -> RatioPart:
        if (self.count is None) == (self.sum is None):
            raise ValueError("a numerator or denominator is exactly one of count: SOURCE or sum: SOURCE.EXPRESSION")
        if self.sum is not None and not re.match(r"^[A-Za-z_][A-Za-z0-9_]*\..+", self.sum):
            raise ValueError("sum names a source and a column or expression, such as orders.amount")
        return self

    @property
    def source(self) -> str:
        return self.count if self.count is not None else str(self.sum).split(".", 1)[0]

    @property
    def column(self) -> str | None:
        return None if self.sum is None else self.sum.split(".", 1)[1]


class RatioMetric(MetricBase):
    """Sum of numerators over sum of denominators, over units (delta method)."""

    kind: Literal["ratio"]
    numerator: RatioPart
    denominator: RatioPart


class RetentionMetric(MetricBase):
    """Share of units with a row of ``to`` in ``[exposure + at, exposure + at + within)``: N-day (the default, one day) or a bracket."""

    kind: Literal["retention"]
    to: EventRef
    at: Duration
    within: Duration = timedelta(days=1)

    @model_validator(mode="after")
    def _no_window(self) -> RetentionMetric:
        if self.window is not None:
            raise ValueError("a retention metric has no window: at and within say when it is measured")
        return self


class QuantileMetric(MetricBase):
    """The ``q`` quantile of ``column``: over ``rows`` (units, and so their rows, were randomised: clustered), or over each unit's total."""

    kind: Literal["quantile"]
    from_: Name = Field(alias="from")
    column: Sql
    q: float = Field(0.5, gt=0, lt=1)
    of: Literal["rows", "units"] = "rows"
    where: Sql | None = None


Metric = Annotated[
    CountMetric
    | SumMetric
    | MeanMetric
    | RateMetric
    | ConversionMetric
    | RetentionMetric
    | QuantileMetric
    | NpsMetric
    | CsatMetric
    | RatioMetric,
    Field(discriminator="kind"),
]


def sources_of(metric: Metric) -> tuple[tuple[tuple[str, ...], str], ...]:
    """The sources a metric reads, each with the keys that lead from the metric to where it is named."""
    if isinstance(metric, ConversionMetric):
        events = (("to", metric.to), ("after", metric.after))
        return tuple(((key, "source"), event.source) for key, event in events if event is not None)
    if isinstance(metric, RetentionMetric):
        return ((("to", "source"), metric.to.source),)
    if isinstance(metric, RatioMetric):
        parts = (("numerator", metric.numerator), ("denominator", metric.denominator))
        return tuple(((key, "sum" if part.count is None else "count"), part.source) for key, part in parts)
    return ((("from",), metric.from_),)


# ---------------------------------------------------------------- attributes


def _cut(raw: object) -> object:
    """A bound of a class: a number, or a duration as days."""
    if isinstance(raw, str) and _DURATION.fullmatch(raw.strip()):
        return cast(timedelta, _parse_duration(raw)).total_seconds() / 86_400
    return raw


Cut = Annotated[float, BeforeValidator(_cut), _Or((("type", "string"), ("pattern", _DURATION.pattern)))]


class Attribute(Noun):
    """What a unit was before exposure: for segments and for adjustment. Exactly one of ``column``, ``since`` and ``metric``.

    ``column`` is a value, ``since`` a time whose age at exposure (in days) is the value, both of ``from`` (a source;
    default: the experiment's own assignment). Where the source has a time, the latest row at or before exposure counts.
    ``metric`` is that metric over the ``period`` before exposure. ``cuts`` (values, or durations for ages) or
    ``quantiles`` (shares of the units, pooled over arms) make classes of a number, named by ``labels``.
    """

    from_: Name | None = Field(None, alias="from")
    column: Sql | None = None
    since: Sql | None = None
    metric: Name | None = None
    period: Duration | None = None
    cuts: tuple[Cut, ...] = ()
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    labels: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _one_form(self) -> Attribute:
        if sum(form is not None for form in (self.column, self.since, self.metric)) != 1:
            raise ValueError("an attribute has exactly one of column, since or metric")
        if (self.metric is None) != (self.period is None):
            raise ValueError("metric and period go together: the metric over that period before exposure")
        if self.metric is not None and self.from_ is not None:
            raise ValueError("a metric has its own source; leave out from")
        if self.cuts and self.quantiles:
            raise ValueError("classes are made by cuts or by quantiles, not by both")
        bounds = self.cuts or self.quantiles
        if any(a >= b for a, b in pairwise(bounds)):
            raise ValueError("cuts and quantiles rise from the first to the last")
        if self.labels and not bounds:
            raise ValueError("labels name the classes that cuts or quantiles make; there are neither")
        if self.labels and len(self.labels) != len(bounds) + 1:
            raise ValueError(f"{len(bounds)} bounds make {len(bounds) + 1} classes, not {len(self.labels)} labels")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("each label names one class")
        return self


# ---------------------------------------------------------------- experiments


def _arm(raw: object) -> object:
    return str(raw).lower() if isinstance(raw, bool) else str(raw) if isinstance(raw, int) else raw


ArmName = Annotated[
    str,
    Field(min_length=1),
    BeforeValidator(_arm),
    WithJsonSchema({"type": ["string", "boolean", "integer"], "minLength": 1}),
]
"""Arms are text. A YAML boolean is spelt as SQL spells it."""


class Assignment(Source):
    """Who saw what: a named ``source``, or a source written in place.

    ``variant`` is the arm of each row; a unit's exposure is its first row. ``split`` is the planned share of each arm
    (default: equal shares), tested by the sample-ratio check.
    """

    source: Name | None = None
    variant: Sql
    control: ArmName
    split: dict[ArmName, Annotated[float, Field(gt=0)]] | None = Field(None, min_length=2)

    @model_validator(mode="after")
    def _one_origin(self) -> Assignment:
        if self.sessions is not None:
            raise ValueError("sessions are declared under sources, and named here as source")
        if sum(origin is not None for origin in (self.source, self.table, self.file, self.sql)) != 1:
            raise ValueError("an assignment has exactly one of source, table, file or sql")
        if self.source is not None:
            extra = [k for k in ("connection", "time", "timezone", "through", "id", "one_row_per") if getattr(self, k)]
            extra += [k for k in ("entity", "links") if getattr(self, k)]
            if extra:
                raise ValueError(
                    f"{extra[0]} belongs to the source '{self.source}', not to the assignment that names it"
                )
        return self

    @property
    def control_arm(self) -> str:
        return self.control


class Stop(Noun):
    """When it may be read. ``mde`` is the smallest difference (in the primary metric's unit) it was sized for.

    ``fixed``: once, at a date or a size. ``always_valid``: whenever; intervals hold at every look and are tightest at
    ``tightest_at`` units. ``group_sequential``: at ``looks`` times up to ``n`` units, with ``spending`` of the error rate.
    """

    rule: Literal["fixed", "always_valid", "group_sequential"]
    at: Moment | None = None
    n: int | None = Field(None, gt=0, description="planned units, over all arms")
    mde: float | None = Field(None, gt=0)
    power: float = Field(0.8, gt=0, lt=1)
    looks: int | None = Field(None, ge=2, le=50)
    spending: Literal["obrien_fleming", "pocock"] = "obrien_fleming"
    tightest_at: int | None = Field(None, gt=1, description="units, over all arms; default: n, else 10,000")

    @model_validator(mode="after")
    def _something(self) -> Stop:
        if self.rule == "fixed" and self.at is None and self.n is None and self.mde is None:
            raise ValueError("a fixed stop names at, n or mde")
        if self.rule == "group_sequential" and self.n is None:
            raise ValueError(
                "a group-sequential stop names n, the units at its last look: information is counted against it"
            )
        if self.rule == "group_sequential" and self.looks is None:
            raise ValueError("a group-sequential stop names looks, how many there are at most")
        if self.rule != "group_sequential" and (self.looks is not None or "spending" in self.model_fields_set):
            raise ValueError("looks and spending belong to rule: group_sequential")
        if self.rule != "always_valid" and self.tightest_at is not None:
            raise ValueError("tightest_at belongs to rule: always_valid")
        return self


def _cuped(raw: object) -> object:
    if isinstance(raw, str):
        if raw.strip() != "cuped":
            raise ValueError("adjust is cuped, or a map of cuped, period, metrics, attributes and post_stratify")
        return {"cuped": True}
    return raw


class Adjust(Noun):
    """What was known before exposure and explains outcomes: it makes intervals shorter and moves no expected value.

    ``cuped``: each metric by itself over the ``period`` before exposure (default: as long as its window; a quantile is not
    adjusted). ``metrics``: other metrics over that period, each one number a unit.
    ``attributes``: numbers, or classes (one 0/1 column each). ``post_stratify``: one attribute, arms compared class by class
    and weighed by the classes' shares.
    """

    cuped: bool = False
    period: Duration | None = None
    metrics: tuple[Name, ...] = ()
    attributes: tuple[Name, ...] = ()
    post_stratify: Name | None = None

    @model_validator(mode="after")
    def _something(self) -> Adjust:
        regression = self.cuped or self.metrics or self.attributes
        if not regression and self.post_stratify is None:
            raise ValueError("adjust names cuped, metrics, attributes or post_stratify")
        if regression and self.post_stratify is not None:
            raise ValueError("post_stratify stands alone; put the attribute among attributes to use it with others")
        if self.period is not None and not (self.cuped or self.metrics):
            raise ValueError("period is how far back cuped and metrics look; there is neither")
        return self


AdjustRef = Annotated[Adjust, BeforeValidator(_cuped), _Or((("const", "cuped"),))]


class OverTime(Noun):
    """The effect on the primary metric by time since exposure, in steps of ``every``: does it wear off or grow?"""

    every: Duration


class Cumulative(Noun):
    """The total gained since ``starts``, in whole steps of ``every``: what a holdout is kept for."""

    every: Duration


class Cannibalisation(Noun):
    """Who gained what the treated surface gained: rows ``within`` a source, by ``by`` (a path or category), for each of ``paths``.

    ``value`` is what is added up over the rows (default: rows are counted); ``treated`` is the surface under test
    (default: the first of ``paths``). Rows of any other path are taken together.
    """

    within: Name
    by: Sql
    paths: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=2, max_length=20)
    value: Sql | None = None
    where: Sql | None = None
    treated: str | None = None

    @model_validator(mode="after")
    def _known(self) -> Cannibalisation:
        if len(set(self.paths)) != len(self.paths):
            raise ValueError("a path is named twice")
        if self.treated is not None and self.treated not in self.paths:
            raise ValueError(f"treated {shown(self.treated)} is not one of paths")
        return self

    @property
    def treated_path(self) -> str:
        return self.paths[0] if self.treated is None else self.treated


class Prior(Noun):
    """A normal prior on the relative lift (0.05 is +5%), stated before the data are seen."""

    mean: float = 0.0
    sd: float = Field(gt=0)


def _one_or_more(raw: object) -> object:
    return (raw,) if isinstance(raw, str) else raw


class Experiment(Noun):
    """A randomised comparison of arms. ``primary``, ``secondary`` and ``guardrails`` override the metrics' own roles here.

    With none of the three, every metric of the entity is read in its own role. ``starts`` and ``ends`` bound exposures.
    ``cluster`` is the entity that was assigned where units are read within it. A ``switchback`` gives a whole unit (a
    region) one arm after another: each ``period`` of a unit is one observation, without its first ``washout``.
    ``trigger``: only units with such a row after assignment are read, from that row on.
    """

    type: Literal["experiment", "holdout", "switchback"] = "experiment"
    assignment: Assignment
    entity: Name | None = None
    hypothesis: str | None = None
    owner: str | None = None
    primary: (
        Annotated[
            tuple[Name, ...],
            Field(min_length=1),
            BeforeValidator(_one_or_more),
            _Or((("type", "string"), ("pattern", f"^{_NAME}$"))),
        ]
        | None
    ) = None
    secondary: tuple[Name, ...] | None = None
    guardrails: tuple[Name, ...] | None = None
    window: Duration | None = None
    alpha: float | None = Field(None, gt=0, lt=0.5)
    target: float | None = Field(None, description="the smallest worthwhile improvement of the primary, in its unit")
    starts: Moment | None = None
    ends: Moment | None = None
    stop: Stop | None = None
    adjust: AdjustRef | None = None
    segments: tuple[Name, ...] = ()
    cluster: Name | None = None
    trigger: EventRef | None = None
    period: Duration | None = None
    washout: Duration | None = None
    over_time: OverTime | None = None
    cumulative: Cumulative | None = None
    cannibalisation: Cannibalisation | None = None
    interactions: tuple[Name, ...] = ()
    bayes: Prior | None = None

    @model_validator(mode="after")
    def _switchback(self) -> Experiment:
        if (self.type == "switchback") != (self.period is not None):
            raise ValueError("a switchback, and only a switchback, has a period: how long a unit keeps an arm")
        if self.washout is not None and (self.period is None or self.washout >= self.period):
            raise ValueError("washout belongs to a switchback, and is shorter than its period")
        if self.period is not None:
            given = [key for key in ("trigger", "over_time", "cumulative", "interactions") if getattr(self, key)]
            if given:
                raise ValueError(f"a switchback has no {given[0]}: a unit keeps no arm for longer than a period")
        return self


def attributes_of(experiment: Experiment) -> tuple[tuple[tuple[str | int, ...], str], ...]:
    """The attributes an experiment names, each with the keys that lead from the experiment to where it is named."""
    adjust = experiment.adjust
    found: list[tuple[tuple[str | int, ...], str]] = []
    if adjust is not None:
        found += [(("adjust", "attributes", index), name) for index, name in enumerate(adjust.attributes)]
        found += [] if adjust.post_stratify is None else [(("adjust", "post_stratify"), adjust.post_stratify)]
    return (*found, *((("segments", index), name) for index, name in enumerate(experiment.segments)))


class Programme(Noun):
    """Several experiments on one metric, read together: what the winners are worth once their luck is taken out.

    ``shipped`` are the changes that were kept (default: those whose interval is an improvement); ``holdout`` is the
    experiment against which their total is held. All of them are of the same entity: their effects are added up.
    """

    experiments: tuple[Name, ...] = Field(min_length=3)
    metric: Name
    shipped: tuple[Name, ...] | None = None
    holdout: Name | None = None


# ---------------------------------------------------------------- journeys


class Outcome(Noun):
    """What a journey leads to: rows of ``event``, each worth ``value`` (default: counted only)."""

    event: EventRef
    value: Sql | None = None

    def measured_as(self, name: str) -> str:
        """What the outcome called ``name`` is called as a metric of an experiment that its credit is held against."""
        return f"{'conversions' if self.value is None else 'value'} of {name}"


OutcomeRef = Annotated[
    Outcome,
    BeforeValidator(lambda raw: {"event": raw} if isinstance(raw, str) else raw),
    _A_SOURCE,
]


class Spend(Noun):
    """Money spent: the total of ``column`` over rows of ``source``, in time with what it is held against."""

    source: Name
    column: Sql
    where: Sql | None = None


def _cost_form(raw: object) -> str:
    return "<spend>" if isinstance(raw, dict | Spend) else "<sql>"


class Touchpoint(Noun):
    """Something a unit met on its way: rows of ``source``. With ``by`` each of its values is a touchpoint of its own.

    ``personalised`` says of a row whether a model chose what was shown. ``cost`` is what a row cost, or a table of spending
    (``{source:, column:}``). ``direct`` marks the one that ``last_non_direct`` passes over. ``experiment`` is a test of this
    touchpoint alone, which calibrates its credit.
    """

    source: Name
    where: Sql | None = None
    by: Sql | None = None
    personalised: Sql | None = None
    cost: (
        Annotated[Annotated[Sql, Tag("<sql>")] | Annotated[Spend, Tag("<spend>")], Discriminator(_cost_form)] | None
    ) = None
    direct: bool = False
    experiment: Name | None = None


_PLAIN_MODELS = (
    "first",
    "last",
    "last_non_direct",
    "linear",
    "participation",
    "u_shaped",
    "j_shaped",
    "inverse_j",
    "w_shaped",
    "markov",
    "shapley",
    "ordered_shapley",
)
_POSITIONS = {
    "u_shaped": (0.4, 0.2, 0.4),
    "j_shaped": (0.2, 0.2, 0.6),
    "inverse_j": (0.6, 0.2, 0.2),
    "w_shaped": (0.3, 0.1, 0.3, 0.3),
}
ModelKind = Literal[
    "first",
    "last",
    "last_non_direct",
    "linear",
    "participation",
    "time_decay",
    "position",
    "custom",
    "markov",
    "shapley",
    "ordered_shapley",
]


def _model(raw: object) -> object:
    if isinstance(raw, str):
        if raw in _POSITIONS:
            return {"kind": "position", "weights": _POSITIONS[raw], "name": raw}
        if raw == "time_decay":
            return {"kind": raw, "half_life": timedelta(days=7)}
        if raw not in _PLAIN_MODELS:
            known = (*_PLAIN_MODELS, "time_decay", "position", "custom")
            near = hint(raw, known) or f"; models are {', '.join(known)}"
            raise ValueError(f"{shown(raw)} is not a model of attribution{near}")
        return {"kind": raw}
    if isinstance(raw, dict) and "kind" not in raw:
        if len(raw) != 1:
            raise ValueError("a model is a name, or a map of its name alone, such as {time_decay: {half_life: 7d}}")
        ((kind, given),) = raw.items()
        if kind == "position" and isinstance(given, list | tuple):
            given = {"weights": given}
        if kind == "custom" and isinstance(given, str | int | float):  # YAML reads 1 as a number
            given = {"weight": str(given)}
        if not isinstance(given, dict):
            raise ValueError(f"{shown(kind)} takes a map, such as {{time_decay: {{half_life: 7d}}}}")
        return {**given, "kind": kind}
    return raw


class Model(Noun):
    """A rule that shares a conversion among its touches, or a model of all paths together.

    ``time_decay``: a touch's weight halves with every ``half_life`` before the conversion. ``position``: ``weights`` for the first
    touch, those between (together) and the last; with four, the second is for those between, the third for the middle touch.
    ``custom``: ``weight`` is SQL over position, touches, days_before, touchpoint and value. ``markov``: of ``order`` k.
    """

    kind: ModelKind
    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    half_life: Duration | None = None
    weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    weight: Sql | None = None
    order: int | None = Field(None, ge=1, le=4)

    @model_validator(mode="after")
    def _whole(self) -> Model:
        needs = {"time_decay": "half_life", "position": "weights", "custom": "weight"}
        own = needs.get(self.kind)
        if own is not None and getattr(self, own) is None:
            raise ValueError(f"{self.kind} names its {own}")
        for key in ("half_life", "weights", "weight"):
            if key != own and getattr(self, key) is not None:
                raise ValueError(f"{self.kind} has no {key}")
        if self.order is not None and self.kind != "markov":
            raise ValueError("order belongs to markov")
        if self.weights is not None:
            if len(self.weights) not in (3, 4):
                raise ValueError(
                    "position has three weights (first, between, last), or four (first, between, middle, last)"
                )
            if abs(sum(self.weights) - 1) > 1e-9:
                raise ValueError(f"the weights of position add up to 1, not {sum(self.weights):g}")
        return self


def _model_schema() -> tuple[tuple[str, Any], ...]:
    """A name, or a map of the name alone."""
    half_life = {"type": "string", "pattern": _DURATION.pattern}
    weights = {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 3, "maxItems": 4}
    order = {"type": "integer", "minimum": 1, "maximum": 4}
    keys: dict[str, dict[str, Any]] = {kind: {} for kind in get_args(ModelKind)}
    keys |= {"time_decay": {"half_life": half_life}, "position": {"weights": weights}, "markov": {"order": order}}
    keys["custom"] = {"weight": {"type": "string", "minLength": 1}}
    own = {"position": [weights], "custom": [keys["custom"]["weight"]]}
    alone = {
        kind: {
            "anyOf": [
                *own.get(kind, ()),
                {"type": "object", "properties": inner | {"name": {"type": "string"}}, "additionalProperties": False},
            ]
        }
        for kind, inner in keys.items()
    }
    of_one = {
        "type": "object",
        "properties": alone,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return (("anyOf", [{"type": "string", "enum": [*_PLAIN_MODELS, "time_decay"]}, of_one]),)


ModelRef = Annotated[Model, BeforeValidator(_model), _Or(_model_schema())]


def model_names(models: Iterable[Model]) -> tuple[str, ...]:
    """What each model goes by: its own name, else its kind, with its parameter where its kind is there twice."""
    kinds = [m.kind for m in models if m.name is None]

    def told(m: Model) -> str:
        if m.name is not None:
            return m.name
        if kinds.count(m.kind) == 1:
            return m.kind
        if m.half_life is not None:
            return f"{m.kind} {format_duration(m.half_life)}"
        if m.weights is not None:
            return f"{m.kind} {'/'.join(f'{100 * w:g}' for w in m.weights)}"
        if m.weight is not None:
            return f"{m.kind} {m.weight}"
        return m.kind if m.kind != "markov" else f"{m.kind} {m.order or 1}"

    return tuple(told(m) for m in models)


def _durations(raw: object) -> object:
    return (raw,) if isinstance(raw, str | timedelta) else raw


class Attribution(Noun):
    """Credit for conversions, shared among the touches before them, by several models side by side. Descriptive: nothing is compared.

    Exactly one of ``conversion`` and ``conversions`` (by name). ``window`` is how far before a conversion touches count, or a list of
    such spans. ``starts`` and ``ends`` bound conversions. ``reconcile_with`` is an experiment (a holdout) whose incremental
    total rescales the credit; ``between_arms_of`` one whose arms' attributed value per unit is compared (default: the same).
    A unit with more than ``max_pairs`` pairs of touch and conversion keeps the newest touches of each, and is counted.
    """

    conversion: OutcomeRef | None = None
    conversions: dict[Name, OutcomeRef] = Field(default_factory=dict)
    touchpoints: tuple[Name, ...] = Field(min_length=1)
    entity: Name | None = None
    window: Annotated[
        tuple[Duration, ...],
        Field(min_length=1, max_length=10),
        BeforeValidator(_durations),
        _Or((("type", "string"), ("pattern", _DURATION.pattern))),
    ] = (timedelta(days=30),)
    models: tuple[ModelRef, ...] = Field(min_length=1, max_length=30)
    starts: Moment | None = None
    ends: Moment | None = None
    reconcile_with: Name | None = None
    between_arms_of: Name | None = None
    max_pairs: int = Field(100_000, ge=100)
    owner: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Attribution:
        if (self.conversion is None) == (not self.conversions):
            raise ValueError("an attribution has exactly one of conversion and conversions")
        names = model_names(self.models)
        if len(set(names)) != len(names):
            raise ValueError(f"two models go by one name; give one a name of its own ({', '.join(names)})")
        if len(set(self.window)) != len(self.window):
            raise ValueError("a window is there twice")
        return self

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """Conversions by name; a single one goes by its source's."""
        return self.conversions if self.conversion is None else {self.conversion.event.source: self.conversion}


def _step(raw: object) -> object:
    return {"source": raw} if isinstance(raw, str) else raw


class FunnelStep(Noun):
    """Rows of ``source``, or (``without``) the absence of such rows for ``within`` after the step before: an order that was kept.

    ``within`` bounds the time since the step before. Where ``without``'s source links to that of the step before, only rows of
    that very one count.
    """

    name: str | None = Field(None, min_length=1)
    source: Name | None = None
    where: Sql | None = None
    without: EventRef | None = None
    within: Duration | None = None

    @model_validator(mode="after")
    def _one(self) -> FunnelStep:
        if (self.source is None) == (self.without is None):
            raise ValueError("a step is exactly one of source and without")
        if self.without is not None and (self.within is None or self.name is None):
            raise ValueError("a step without something has a name and says for how long (within)")
        if self.without is not None and self.where is not None:
            raise ValueError("where belongs to a source; write without: {source:, where:}")
        return self

    @property
    def label(self) -> str:
        return self.name or str(self.source)


class Breakdown(Noun):
    """By the value of ``column`` in the row of the first step, or (``step: each``) of each step's own row."""

    column: Sql
    step: Literal["first", "each"] = "first"


class Funnel(Noun):
    """How many units go from step to step. ``within`` is the time from entry to the last step, ``starts`` and ``ends`` bound entry.

    ``order``: ``ordered`` (others may lie between), ``strict`` (no row of another step between), ``unordered``. ``entry``: ``any`` row
    of the first step may begin it, or only the unit's ``first``. A row of ``exclude`` between two steps ends the attempt.
    """

    steps: tuple[Annotated[FunnelStep, BeforeValidator(_step), _A_SOURCE], ...] = Field(min_length=2, max_length=20)
    entity: Name | None = None
    within: Duration | None = None
    order: Literal["ordered", "strict", "unordered"] = "ordered"
    entry: Literal["any", "first"] = "any"
    exclude: tuple[EventRef, ...] = ()
    by: (
        Annotated[
            Breakdown,
            BeforeValidator(lambda raw: {"column": raw} if isinstance(raw, str) else raw),
            _Or((("type", "string"),)),
        ]
        | None
    ) = None
    starts: Moment | None = None
    ends: Moment | None = None
    owner: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Funnel:
        labels = [step.label for step in self.steps]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"the step {shown(twice)} is there twice; give each a name of its own")
        if self.steps[0].without is not None:
            raise ValueError("the first step is something that happens")
        if self.steps[0].within is not None:
            raise ValueError("the first step has no within: nothing is before it")
        if any(step.without is not None for step in self.steps[:-1]):
            raise ValueError("only the last step can be without something")
        if self.order == "unordered":
            if any(step.within is not None or step.without is not None for step in self.steps):
                raise ValueError("steps in any order have no within and no without of their own")
            if self.exclude or self.by is not None:
                raise ValueError("an unordered funnel has neither exclude nor by")
            if self.within is None:
                raise ValueError("an unordered funnel names within: the time in which its steps come together")
        return self


class Retention(Noun):
    """``n_day``: active in the k-th ``period`` after the start (the start's own is 0). ``unbounded``: in it or any later one.
    ``bracket``: between two of ``brackets`` (times since the start)."""

    kind: Literal["n_day", "unbounded", "bracket"] = "n_day"
    period: Duration = timedelta(days=7)
    periods: int = Field(12, ge=1, le=120)
    brackets: tuple[Duration, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Retention:
        if (self.kind == "bracket") != bool(self.brackets):
            raise ValueError("bracket, and only bracket, has brackets: rising times since the start")
        if any(a >= b for a, b in pairwise(self.brackets)):
            raise ValueError("brackets rise from the first to the last")
        if self.kind == "bracket" and {"period", "periods"} & self.model_fields_set:
            raise ValueError("brackets take the place of period and periods")
        return self


class Cohort(Noun):
    """Units by when they began (their first row of ``start``), and what became of them: who came back, what they were worth.

    ``activity`` are the rows of coming back (``retention``, ``lifecycle``, ``stickiness``). ``revenue`` adds up over time since the start;
    ``cost`` (money spent to win them) gives CAC and payback. ``every`` is the step of the cohorts. ``by`` makes cohorts of a column of
    ``start`` instead of the calendar.
    """

    start: EventRef
    activity: EventRef | None = None
    revenue: OutcomeRef | None = None
    cost: Spend | None = None
    entity: Name | None = None
    every: Literal["day", "week", "month"] = "week"
    by: Sql | None = None
    retention: Retention = Retention()
    lifecycle: Literal["day", "week", "month"] | None = None
    stickiness: Literal["week", "month"] | None = None
    starts: Moment | None = None
    ends: Moment | None = None
    owner: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Cohort:
        if self.activity is None and self.revenue is None:
            raise ValueError("a cohort has activity, revenue or both")
        if self.activity is None and (self.lifecycle or self.stickiness):
            raise ValueError("lifecycle and stickiness are of activity; there is none")
        if self.cost is not None and self.revenue is not None and self.revenue.value is None:
            raise ValueError("payback holds revenue against cost: give revenue its value")
        return self


class Journey(Noun):
    """The most common paths over ``touchpoints``: ``to`` an event (within ``window`` before it) or ``from`` one (within ``window`` after it).

    ``collapse`` takes a touchpoint met several times in a row as one.
    """

    touchpoints: tuple[Name, ...] = Field(min_length=1)
    to: OutcomeRef | None = None
    from_: EventRef | None = Field(None, alias="from")
    window: Duration = timedelta(days=30)
    entity: Name | None = None
    top: int = Field(20, ge=1, le=200)
    longest: int = Field(20, ge=1, le=100, description="touches of a path that are shown; the rest are taken together")
    collapse: bool = True
    starts: Moment | None = None
    ends: Moment | None = None
    owner: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Journey:
        if (self.to is None) == (self.from_ is None):
            raise ValueError("paths lead to an event or from one: exactly one of to and from")
        return self


def _outcome_source(outcome: Outcome, *keys: str) -> tuple[tuple[str | int, ...], str]:
    return (*keys, "event", "source"), outcome.event.source


def unit_sources(
    journey: Attribution | Funnel | Cohort | Journey, spec: ProjectSpec
) -> list[tuple[tuple[str | int, ...], str]]:
    """The sources whose rows a journey reads unit by unit, each with the keys that lead from it to where the source is named.

    A touchpoint's source is named in the touchpoint: the keys lead to the touchpoint's name.
    """
    found: list[tuple[tuple[str | int, ...], str]] = []
    if isinstance(journey, Funnel):
        for index, step in enumerate(journey.steps):
            found += [] if step.source is None else [(("steps", index, "source"), step.source)]
            found += [] if step.without is None else [(("steps", index, "without", "source"), step.without.source)]
        found += [(("exclude", index, "source"), event.source) for index, event in enumerate(journey.exclude)]
    elif isinstance(journey, Cohort):
        found.append((("start", "source"), journey.start.source))
        found += [] if journey.activity is None else [(("activity", "source"), journey.activity.source)]
        found += [] if journey.revenue is None else [_outcome_source(journey.revenue, "revenue")]
    else:
        for index, name in enumerate(journey.touchpoints):
            if name in spec.touchpoints:
                found.append((("touchpoints", index), spec.touchpoints[name].source))
        if isinstance(journey, Attribution):
            found += [] if journey.conversion is None else [_outcome_source(journey.conversion, "conversion")]
            found += [_outcome_source(outcome, "conversions", name) for name, outcome in journey.conversions.items()]
        else:
            found += [] if journey.to is None else [_outcome_source(journey.to, "to")]
            found += [] if journey.from_ is None else [(("from", "source"), journey.from_.source)]
    return found


def spends_of(journey: Attribution | Funnel | Cohort | Journey, spec: ProjectSpec) -> list[Spend]:
    """The tables of spending a journey reads."""
    if isinstance(journey, Cohort):
        return [] if journey.cost is None else [journey.cost]
    if isinstance(journey, Attribution):
        costs = [spec.touchpoints[name].cost for name in journey.touchpoints if name in spec.touchpoints]
        return [cost for cost in costs if isinstance(cost, Spend)]
    return []


# ---------------------------------------------------------------- money


class Value(Noun):
    """Money per something. It lacks nothing when it has a range, a source, an owner and an expiry still to come."""

    value: float
    low: float | None = None
    high: float | None = None
    per: str | None = None
    source: str | None = None
    owner: str | None = None
    expires: Day | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Value:
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        if not low <= self.value <= high:
            raise ValueError(f"low <= value <= high does not hold: {low:g}, {self.value:g}, {high:g}")
        return self


class Cost(Value):
    """What the thing costs over the claim's period. A bare number is an exact cost."""


def _cost(raw: object) -> object:
    return {"value": raw} if isinstance(raw, int | float) and not isinstance(raw, bool) else raw


CostRef = Annotated[Cost, BeforeValidator(_cost), _Or((("type", "number"),))]


class Decision(Noun):
    """Do it when P(threshold holds) is at least ``probability``. ``threshold`` compares roi, net or amount with a number."""

    threshold: Annotated[
        str,
        _Like(
            r"(roi|net|amount)\s*(>=|<=|>|<)\s*-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?",
            "does not compare roi, net or amount with a number, such as roi > 0 or net >= 250000",
        ),
    ]
    probability: float = Field(gt=0, lt=1)


Sensitivity = Literal["holdout_contamination", "novelty_decay", "discount_rate"]


class Claim(Noun):
    """A statement with its price: ``amount`` (an expression over effects, values and volumes) less costs.

    ``evidence`` names experiments, or attributions as ``attribution.NAME``, whose credit is attributed and never caused.
    ``compare`` names attributions whose total is shown beside the amount.
    """

    statement: str
    evidence: tuple[Annotated[str, _Like(rf"(attribution\.)?{_NAME}", "is not NAME or attribution.NAME")], ...] = Field(
        min_length=1
    )
    compare: tuple[Annotated[str, _Like(rf"attribution\.{_NAME}", "is not attribution.NAME")], ...] = ()
    amount: str
    less: dict[Name, CostRef] = Field(default_factory=dict)
    decision: Decision | None = None
    sensitivity: tuple[Sensitivity, ...] = ()
    unit: str | None = None
    owner: str | None = None


class Report(Noun):
    """Which figures go to whom. ``show`` names claims.X, experiments.X, programmes.X, metrics.X, attribution.X, funnels.X, cohorts.X or paths.X."""

    audience: str | None = None
    title: str | None = None
    schedule: Literal["daily", "weekly", "monthly", "quarterly"] | None = None
    show: tuple[str, ...] = Field(min_length=1)
    export: tuple[Literal["html"], ...] = ("html",)


# ---------------------------------------------------------------- the project


class ProjectSpec(Noun):
    """The whole of a project's declarations, merged from payoff.yml and the files it includes."""

    version: Literal[1]
    project: str = Field(min_length=1)
    currency: Annotated[str, _Like(r"[A-Z]{3}", "is not a currency code of three capitals such as USD or EUR")] = "USD"
    timezone: TimeZone = "UTC"
    defaults: Defaults = Field(default_factory=Defaults)
    connections: dict[Name, Connection] = Field(default_factory=dict)
    ledger: Name | None = Field(None, description="the connection that keeps results; default: .payoff/ledger.db")
    include: tuple[str, ...] = ()
    entities: dict[Name, Entity] = Field(default_factory=dict)
    sources: dict[Name, Source] = Field(default_factory=dict)
    metrics: dict[Name, Metric] = Field(default_factory=dict)
    attributes: dict[Name, Attribute] = Field(default_factory=dict)
    experiments: dict[Name, Experiment] = Field(default_factory=dict)
    programmes: dict[Name, Programme] = Field(default_factory=dict)
    touchpoints: dict[Name, Touchpoint] = Field(default_factory=dict)
    attribution: dict[Name, Attribution] = Field(default_factory=dict)
    funnels: dict[Name, Funnel] = Field(default_factory=dict)
    cohorts: dict[Name, Cohort] = Field(default_factory=dict)
    paths: dict[Name, Journey] = Field(default_factory=dict)
    values: dict[Name, Value] = Field(default_factory=dict)
    claims: dict[Name, Claim] = Field(default_factory=dict)
    reports: dict[Name, Report] = Field(default_factory=dict)

"""A project's files become one validated ProjectSpec, or one DefinitionError that lists everything wrong in all of them.

    read every file -> merge the sections -> expand ${ENV} in connections -> validate each entry -> check what refers to what

An entry that does not validate is still looked at without the keys that are wrong, so that what refers to it, and what it
refers to, is reported in the same go.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from payoff.errors import DefinitionError, Problem, UsageError
from payoff.spec import nouns, references, yamlfile
from payoff.spec.nouns import (
    Attribute,
    Attribution,
    ChannelPreset,
    Cohort,
    ConversionMetric,
    Event,
    Experiment,
    Funnel,
    Journey,
    Metric,
    Noun,
    Outcome,
    ProjectSpec,
    RatioMetric,
    RetentionMetric,
    Source,
    Spend,
    attributes_of,
    hint,
    shown,
    sources_of,
    spends_of,
    unit_sources,
)
from payoff.spec.yamlfile import Positions, Step, Steps, Tree

MARKER = "payoff.yml"
MAX_FILES = 1_000

ROOT_ONLY = ("version", "project", "currency", "timezone", "defaults", "connections", "include", "ledger")
SECTIONS = (
    "connections",
    "entities",
    "sources",
    "metrics",
    "attributes",
    "experiments",
    "programmes",
    "touchpoints",
    "attribution",
    "funnels",
    "cohorts",
    "paths",
    "values",
    "claims",
    "reports",
)

N = TypeVar("N", bound=BaseModel)


def _kinds(union: Any, tag: str) -> dict[str, type[Noun]]:
    """The members of a discriminated union by each value of their tag."""
    members = get_args(get_args(union)[0])
    return {kind: member for member in members for kind in get_args(member.model_fields[tag].annotation)}


METRIC_KINDS = _kinds(nouns.Metric, "kind")
ENGINES = _kinds(nouns.Connection, "engine")
_MODELS: dict[str, type[Noun]] = {
    "entities": nouns.Entity,
    "sources": nouns.Source,
    "attributes": nouns.Attribute,
    "experiments": nouns.Experiment,
    "programmes": nouns.Programme,
    "touchpoints": nouns.Touchpoint,
    "attribution": nouns.Attribution,
    "funnels": nouns.Funnel,
    "cohorts": nouns.Cohort,
    "paths": nouns.Journey,
    "values": nouns.Value,
    "claims": nouns.Claim,
    "reports": nouns.Report,
}
_CALLED = {
    "connections": "a connection",
    "entities": "an entity",
    "sources": "a source",
    "metrics": "a metric",
    "attributes": "an attribute",
    "experiments": "an experiment",
    "programmes": "a programme",
    "touchpoints": "a touchpoint",
    "attribution": "an attribution",
    "funnels": "a funnel",
    "cohorts": "a cohort",
    "paths": "a declaration of paths",
    "values": "a value",
    "claims": "a claim",
    "reports": "a report",
}
_EXAMPLES = {
    "connections": "{engine: duckdb, path: data/acme.duckdb}",
    "entities": "{id: user_id}",
    "sources": "{table: orders, time: ordered_at, entity: {user: user_id}}",
    "metrics": "{kind: count, from: orders}",
    "attributes": "{from: users, since: signed_up_at, cuts: [30d, 180d]}",
    "experiments": "{assignment: {source: sends, variant: arm, control: generic}}",
    "programmes": "{experiments: [...], metric: revenue}",
    "touchpoints": "{source: exposures, where: surface = 'home'}",
    "attribution": "{conversion: orders, touchpoints: [...], models: [last, linear]}",
    "funnels": "{steps: [visits, carts, orders], within: 7d}",
    "cohorts": "{start: signups, activity: visits}",
    "paths": "{touchpoints: [...], to: orders}",
    "values": "{value: 6.40, low: 5.10, high: 8.00}",
    "claims": "{statement: ..., evidence: [...], amount: ...}",
    "reports": "{show: [claims.savings]}",
}


# ---------------------------------------------------------------- what a loaded project can be asked


class SqlFragment(NamedTuple):
    """A SQL expression of a user: where it stands, its text, and the source whose rows it reads (None: an entity's id).

    ``attribute`` is the name as written where an experiment names an attribute that is not declared: then it is a column.
    """

    path: Steps
    text: str
    source: str | None
    attribute: str | None = None


AnyJourney = Attribution | Funnel | Cohort | Journey
JOURNEYS = ("attribution", "funnels", "cohorts", "paths")
"""Sections whose entries are read unit by unit over time."""


class MetricUse(NamedTuple):
    """How an experiment reads a metric. ``role`` is primary, secondary or guardrail; ``label`` is the role to show."""

    metric: str
    role: str
    label: str


@dataclass(frozen=True)
class LoadedProject:
    """``spec`` as validated; ``warnings`` are places worth a look that stop nothing; ``files`` are what was read, in order."""

    spec: ProjectSpec
    root: Path
    positions: Positions = field(repr=False)
    definition_hash: str
    warnings: tuple[Problem, ...] = ()
    files: tuple[str, ...] = ()

    def experiment(self, name: str) -> Experiment:
        """Raises UsageError for a name that is not an experiment."""
        if name not in self.spec.experiments:
            raise UsageError(f"{shown(name)} is not an experiment{hint(name, self.spec.experiments)}")
        return self.spec.experiments[name]

    def source_of(self, experiment: str) -> tuple[str, Source]:
        """The source of an experiment's assignment; one written in place is called ``experiments.NAME.assignment``."""
        assignment = self.experiment(experiment).assignment
        if assignment.source is None:
            return f"experiments.{experiment}.assignment", assignment
        return assignment.source, self.spec.sources[assignment.source]

    def sources(self) -> dict[str, Source]:
        """Every source by name, those written in place in an assignment included. Sessions name their entity."""
        in_place = (n for n, e in self.spec.experiments.items() if e.assignment.source is None)
        named = {name: self._with_unit(source) for name, source in self.spec.sources.items()}
        return {**named, **dict(self.source_of(name) for name in in_place)}

    def _with_unit(self, source: Source) -> Source:
        unit = None if source.sessions is None or source.sessions.entity is not None else self.session_entity(source)
        if unit is None or source.sessions is None:
            return source
        return source.model_copy(update={"sessions": source.sessions.model_copy(update={"entity": unit})})

    def session_entity(self, source: Source) -> str | None:
        """Whose sessions a source holds: its own entity, else the default that the rows know, else their only one."""
        made = source.sessions
        if made is None or made.entity is not None:
            return None if made is None else made.entity
        rows = self.spec.sources.get(made.of)
        return None if rows is None or rows.sessions is not None else self._only_entity(rows, self.spec.defaults.entity)

    def _only_entity(self, source: Source, *wanted: str | None) -> str | None:
        """The first of ``wanted`` that a source declares, else the only entity there can be in it."""
        for entity in wanted:
            if entity is not None and self.declares(source, entity):
                return entity
        own = list(dict.fromkeys((*source.entity, *((source.one_row_per,) if source.one_row_per else ()))))
        if source.sessions is not None:
            unit = self.session_entity(source)
            own = [] if unit is None else [unit]
        elif not own:
            own = [name for name, entity in self.spec.entities.items() if entity.id is not None]
        return own[0] if len(own) == 1 else None

    def steps_of(self, source: str) -> Steps:
        """Where a source of ``sources()`` is written, for ``positions``."""
        return tuple(source.split(".")) if source.startswith("experiments.") else ("sources", source)

    def declares(self, source: Source, entity: str) -> bool:
        """Whether the source says itself what ``entity`` is in it, or says of no entity at all and the entity has an id."""
        if source.sessions is not None:
            return self.session_entity(source) == entity
        if entity in source.entity or source.one_row_per == entity:
            return True
        return not source.entity and source.one_row_per is None and self._id(entity) is not None

    def unit_column(self, source: str | Source, entity: str) -> str | None:
        """The SQL expression that identifies ``entity`` in a source: its own, else the entity's id; None where there is none.

        None with ``one_row_per: entity`` means that each row is a unit, without a name.
        """
        found = self.sources()[source] if isinstance(source, str) else source
        if found.sessions is not None:
            return "session_unit" if self.declares(found, entity) else None
        own = found.id if found.one_row_per == entity else None
        return found.entity.get(entity) or self._id(entity) or own

    def _id(self, entity: str) -> str | None:
        return self.spec.entities[entity].id if entity in self.spec.entities else None

    def find_entity(self, experiment: str) -> str | None:
        """``entity_of``, or None where the project does not tell."""
        declared = self.experiment(experiment)
        if declared.entity is not None:
            return declared.entity
        source, defaults = self.source_of(experiment)[1], self.spec.defaults
        wanted = (defaults.holdout_unit if declared.type == "holdout" else None, defaults.entity)
        return self._only_entity(source, *wanted)

    def entity_of(self, experiment: str) -> str:
        """The unit of analysis: the experiment's own, else the default that its assignment's source knows, else its only one.

        The defaults are ``holdout_unit`` (for a holdout) and ``entity``. Raises UsageError where the project does not tell.
        """
        entity = self.find_entity(experiment)
        if entity is None:
            raise UsageError(f"experiments.{experiment} does not say what its unit is; add entity: NAME")
        return entity

    def unreadable(self, metric: Metric, experiment: str, entity: str) -> references.Obstacle | None:
        """What keeps a metric from being read for the units of an experiment, or None."""
        own = self.source_of(experiment)[0]
        if metric.entity is not None and metric.entity != entity:
            message = f"it is measured per {metric.entity}, and experiments.{experiment} compares units of {entity}"
            return references.Obstacle((), "wrong-entity", message)
        for steps, name in sources_of(metric):
            if name == own or name not in self.spec.sources:
                continue
            apart = self.apart(name, experiment, entity)
            if apart is not None:
                return references.Obstacle(steps, *apart)
        return None

    def apart(self, name: str, experiment: str, entity: str) -> tuple[str, str] | None:
        """Why rows of a source cannot be brought together with the units of an experiment, as (code, message); or None."""
        own, assignment = self.source_of(experiment)
        source = self.sources()[name]
        if name == own:
            return None
        if self.unit_column(source, entity) is None and source.one_row_per != entity:
            remedy = f"add entity: {{{entity}: COLUMN}} to it"
            return "unmapped-entity", f"source '{name}' does not say which column holds '{entity}'; {remedy}"
        for side, called in ((source, name), (assignment, own)):
            if self.unit_column(side, entity) is None:
                message = (
                    f"rows of '{name}' and '{own}' cannot be joined: '{called}' has one row per {entity} but no id"
                )
                return "cannot-join", f"{message}; add id: COLUMN to it"
        return None

    def metrics_of(self, experiment: str) -> list[MetricUse]:
        """The metrics an experiment reads: those it lists, else every metric that can be read for its unit, in its own role.

        A metric listed as secondary whose own role is north_star or vanity keeps that as its label, and so do all of those
        roles when none is listed: they are treated as secondary. Order: as listed; else as declared.
        """
        declared = self.experiment(experiment)
        listed = [(name, "primary") for name in declared.primary or ()]
        listed += [(name, "secondary") for name in declared.secondary or ()]
        listed += [(name, "guardrail") for name in declared.guardrails or ()]
        if (declared.primary, declared.secondary, declared.guardrails) != (None, None, None):
            return [MetricUse(name, role, self._label(name, role)) for name, role in listed]
        entity = self.find_entity(experiment)
        if entity is None:
            return []
        own = self.source_of(experiment)[0]
        found = []
        for name, metric in self.spec.metrics.items():
            others = [self.spec.sources.get(s) for _, s in sources_of(metric) if s != own]
            known = all(source is not None and self.declares(source, entity) for source in others)
            if known and self.unreadable(metric, experiment, entity) is None:
                role = metric.role if metric.role in ("primary", "guardrail") else "secondary"
                found.append(MetricUse(name, role, metric.role))
        return found

    def _label(self, name: str, role: str) -> str:
        metric = self.spec.metrics.get(name)
        keeps = role == "secondary" and metric is not None and metric.role in ("north_star", "vanity")
        return metric.role if metric is not None and keeps else role

    def window_of(self, metric: str, experiment: str) -> timedelta | None:
        """How long after exposure (or after the anchor) rows count: the metric's window, else the experiment's, else the default.

        A switchback's is its period, a retention metric's ends with its bracket. None: without end; always so where none of
        the metric's sources has a time.
        """
        declared, known, of = self.spec.metrics[metric], self.sources(), self.experiment(experiment)
        if not any(known[name].timed for _, name in sources_of(declared)):
            return None
        if of.period is not None:
            return of.period
        if isinstance(declared, RetentionMetric):
            return declared.at + declared.within
        return declared.window or of.window or self.spec.defaults.window

    def adjust_period(self, metric: str, experiment: str) -> timedelta | None:
        """How long before exposure a metric is read to adjust an experiment: the period it names, else as long as after it.

        None where the experiment is not adjusted by this metric, and for a quantile, which never is.
        """
        adjust = self.experiment(experiment).adjust
        if adjust is None or self.spec.metrics[metric].kind == "quantile":
            return None
        if not adjust.cuped and metric not in adjust.metrics:
            return None
        return adjust.period or self.window_of(metric, experiment)

    def attribute(self, name: str, experiment: str) -> tuple[Attribute, str]:
        """An attribute as an experiment reads it, and the source it is read from (of a metric: the metric's first).

        A name that is not declared is a column of the experiment's own assignment.
        """
        own = self.source_of(experiment)[0]
        declared = self.spec.attributes.get(name)
        if declared is None:
            return Attribute(column=f'"{name}"'), own  # quoted: it may be a word of SQL, such as user
        if declared.metric is not None:
            return declared, sources_of(self.spec.metrics[declared.metric])[0][1]
        return declared, declared.from_ or own

    def connection_of(self, source: Source) -> str | None:
        """The connection a table or sql source reads: the one it names, else the only one that holds tables.

        None for files: they are read by the engine of what is read with them, else by DuckDB; or by the one they name.
        """
        if source.connection is not None:
            return source.connection
        if source.file is not None or source.sessions is not None:
            return None
        usable = self.readable()
        return usable[0] if len(usable) == 1 else None

    def readable(self) -> list[str]:
        """The connections that a source may be meant to read without naming one: the ledger's own is not."""
        return [n for n, c in self.spec.connections.items() if c.holds_tables and n != self.spec.ledger]

    # ------------------------------------------------------------ journeys

    def journeys(self) -> dict[str, AnyJourney]:
        """Attributions, funnels, cohorts and paths by full name, such as ``funnels.checkout``."""
        return {f"{section}.{n}": j for section in JOURNEYS for n, j in getattr(self.spec, section).items()}

    def _journey(self, full: str) -> AnyJourney:
        known = self.journeys()
        if full not in known:
            raise UsageError(f"{shown(full)} is not an attribution, funnel, cohort or paths{hint(full, known)}")
        return known[full]

    def find_journey_entity(self, full: str) -> str | None:
        """``journey_entity``, or None where the project does not tell."""
        own = self._journey(full).entity or self.spec.defaults.entity
        if own is not None:
            return own
        read = [self.spec.sources[s] for _, s in unit_sources(self._journey(full), self.spec) if s in self.spec.sources]
        mapped = {entity for source in read for entity in source.entity}
        found = [e for e in sorted({*self.spec.entities, *mapped}) if all(self.declares(s, e) for s in read)]
        return found[0] if len(found) == 1 else None

    def journey_entity(self, section: str, name: str) -> str:
        """The unit of a journey: its own, else the default, else the only one that all its sources declare. Raises UsageError."""
        entity = self.find_journey_entity(f"{section}.{name}")
        if entity is None:
            raise UsageError(f"{section}.{name} does not say what its unit is; add entity: NAME")
        return entity

    def journey_sources(self, full: str) -> list[str]:
        """Every source a journey reads: of its events, its touchpoints, their costs, and the arms that split it."""
        journey = self._journey(full)
        found = [source for _, source in unit_sources(journey, self.spec)]
        found += [spend.source for spend in spends_of(journey, self.spec)]
        if isinstance(journey, Attribution):
            arms = journey.between_arms_of or journey.reconcile_with
            found += [] if arms is None else [self.source_of(arms)[0]]
        return list(dict.fromkeys(found))

    def needed_sources(self, names: Iterable[str]) -> list[str]:
        """``names`` and what they are made of: the rows of sessions, and the sources that say which ids are one unit."""
        known, found = self.sources(), list(dict.fromkeys(names))
        for name in found:  # it grows while it is gone through
            source = known[name]
            wanted = [source.sessions.of] if source.sessions is not None else []
            for entity, declared in self.spec.entities.items():
                if declared.identity is not None and self.unit_column(source, entity) is not None:
                    wanted.append(declared.identity.source)
            found += [other for other in dict.fromkeys(wanted) if other not in found]
        return found

    def sql_fragments(self) -> Iterator[SqlFragment]:
        """Every SQL expression of the project. Nothing here has parsed one; the SELECTs of ``sql:`` sources are not among them."""
        for name, entity in self.spec.entities.items():
            if entity.id is not None:
                yield SqlFragment(("entities", name, "id"), entity.id, None)
            if entity.identity is not None:
                for index, alias in enumerate(entity.aliases):
                    yield SqlFragment(("entities", name, "aliases", index), _column(alias), entity.identity.source)
        for name, source in self.spec.sources.items():
            yield from _source_fragments(("sources", name), name, source)
        for name, metric in self.spec.metrics.items():
            yield from _metric_fragments(("metrics", name), metric)
        for name, attribute in self.spec.attributes.items():
            for read in self._attribute_sources(name):
                yield from _fragments(("attributes", name), attribute, ("column", "since"), read)
        for name, experiment in self.spec.experiments.items():
            at, own = ("experiments", name), self.source_of(name)[0]
            yield SqlFragment((*at, "assignment", "variant"), experiment.assignment.variant, own)
            yield from _source_fragments((*at, "assignment"), own, experiment.assignment)
            if experiment.trigger is not None:
                yield from _fragments((*at, "trigger"), experiment.trigger, ("where",), experiment.trigger.source)
            paths = experiment.cannibalisation
            if paths is not None:
                yield from _fragments((*at, "cannibalisation"), paths, ("by", "value", "where"), paths.within)
            for inside, named in attributes_of(experiment):
                if named not in self.spec.attributes:
                    text = str(self.attribute(named, name)[0].column)
                    yield SqlFragment((*at, *inside), text, own, named)
        for name, touchpoint in self.spec.touchpoints.items():
            at = ("touchpoints", name)
            yield from _fragments(at, touchpoint, ("where", "by", "personalised"), touchpoint.source)
            if isinstance(touchpoint.cost, Spend):
                yield from _spend_fragments((*at, "cost"), touchpoint.cost)
            elif touchpoint.cost is not None:
                yield SqlFragment((*at, "cost"), touchpoint.cost, touchpoint.source)
        for full, journey in self.journeys().items():
            for piece in _journey_fragments(tuple(full.split(".", 1)), journey):
                # by: device is short for by: {column: device}
                yield piece if self.positions.has(*piece.path) else piece._replace(path=piece.path[:-1])

    def _attribute_sources(self, name: str) -> list[str]:
        """The sources an attribute is read from: its own, else the assignment of every experiment that names it."""
        declared = self.spec.attributes[name]
        if declared.from_ is not None or declared.metric is not None:
            return [] if declared.from_ is None else [declared.from_]
        users = (e for e, x in self.spec.experiments.items() if name in {named for _, named in attributes_of(x)})
        return list(dict.fromkeys(self.source_of(user)[0] for user in users))


def _fragments(steps: Steps, holder: Noun, keys: Iterable[str], source: str) -> Iterator[SqlFragment]:
    for key in keys:
        text = getattr(holder, key)
        if text is not None:
            yield SqlFragment((*steps, key), text, source)


def _column(name: str) -> str:
    """A column's name as SQL: quoted, for it may be a word of SQL."""
    return '"' + name.replace('"', '""') + '"'


def _event_fragments(steps: Steps, event: Event) -> Iterator[SqlFragment]:
    yield from _fragments(steps, event, ("where",), event.source)


def _outcome_fragments(steps: Steps, outcome: Outcome) -> Iterator[SqlFragment]:
    yield from _event_fragments((*steps, "event"), outcome.event)
    yield from _fragments(steps, outcome, ("value",), outcome.event.source)


def _spend_fragments(steps: Steps, spend: Spend) -> Iterator[SqlFragment]:
    yield from _fragments(steps, spend, ("column", "where"), spend.source)


def _journey_fragments(steps: Steps, journey: AnyJourney) -> Iterator[SqlFragment]:
    if isinstance(journey, Funnel):
        for index, step in enumerate(journey.steps):
            if step.source is not None:
                yield from _fragments((*steps, "steps", index), step, ("where",), step.source)
            if step.without is not None:
                yield from _event_fragments((*steps, "steps", index, "without"), step.without)
        for index, event in enumerate(journey.exclude):
            yield from _event_fragments((*steps, "exclude", index), event)
        if journey.by is not None:
            read = [step.source for step in journey.steps if step.source is not None]
            for source in dict.fromkeys(read if journey.by.step == "each" else read[:1]):
                yield SqlFragment((*steps, "by", "column"), journey.by.column, source)
    elif isinstance(journey, Cohort):
        yield from _event_fragments((*steps, "start"), journey.start)
        yield from _fragments(steps, journey, ("by",), journey.start.source)
        if journey.activity is not None:
            yield from _event_fragments((*steps, "activity"), journey.activity)
        if journey.revenue is not None:
            yield from _outcome_fragments((*steps, "revenue"), journey.revenue)
        if journey.cost is not None:
            yield from _spend_fragments((*steps, "cost"), journey.cost)
    elif isinstance(journey, Attribution):
        if journey.conversion is not None:
            yield from _outcome_fragments((*steps, "conversion"), journey.conversion)
        for name, outcome in journey.conversions.items():
            yield from _outcome_fragments((*steps, "conversions", name), outcome)
    else:
        if journey.to is not None:
            yield from _outcome_fragments((*steps, "to"), journey.to)
        if journey.from_ is not None:
            yield from _event_fragments((*steps, "from"), journey.from_)


def _source_fragments(steps: Steps, name: str, source: Source) -> Iterator[SqlFragment]:
    yield from _fragments(steps, source, ("where", "time", "id"), name)
    for index, column in enumerate(source.columns):
        yield SqlFragment((*steps, "columns", index), _column(column), name)
    made = source.sessions
    channels = None if made is None else made.channels
    if made is not None and isinstance(channels, ChannelPreset):
        yield from _fragments((*steps, "sessions", "channels"), channels, ("source", "medium", "campaign"), made.of)
    elif made is not None and isinstance(channels, tuple):
        for index, rule in enumerate(channels):
            yield from _fragments((*steps, "sessions", "channels", index), rule, ("when",), made.of)
    for key, texts in (("entity", source.entity), ("links", source.links)):
        for item, text in texts.items():
            yield SqlFragment((*steps, key, item), text, name)


def _metric_fragments(steps: Steps, metric: Metric) -> Iterator[SqlFragment]:
    if isinstance(metric, ConversionMetric | RetentionMetric):
        after = metric.after if isinstance(metric, ConversionMetric) else None
        for key, event in (("to", metric.to), ("after", after)):
            if event is not None:
                yield from _fragments((*steps, key), event, ("where",), event.source)
    elif isinstance(metric, RatioMetric):
        for key, part in (("numerator", metric.numerator), ("denominator", metric.denominator)):
            if part.column is not None:
                yield SqlFragment((*steps, key, "sum"), part.column, part.source)
            if part.where is not None:
                yield SqlFragment((*steps, key, "where"), part.where, part.source)
    else:
        yield from _fragments(
            steps, metric, [k for k in ("column", "where") if k in type(metric).model_fields], metric.from_
        )


# ---------------------------------------------------------------- loading


def find_project(start: Path) -> Path:
    """The folder that holds payoff.yml: ``start`` or the nearest above it, as git does. Raises UsageError."""
    try:
        here = start.resolve()
        if not here.exists():
            raise UsageError(f"{start} does not exist")
        if here.is_file():
            here = here.parent
        for folder in (here, *here.parents):
            if (folder / MARKER).is_file():
                return folder
            if (folder / "payoff.yaml").is_file():
                raise UsageError(f"{folder / 'payoff.yaml'} must be called {MARKER}")
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"{shown(start)} cannot be looked at: {error}") from error
    raise UsageError(f"no {MARKER} in {here} or in a folder above it; 'payoff init' makes a project")


def load(path: Path | str = ".") -> LoadedProject:
    """Load the project at ``path`` or above it. Raises DefinitionError with every problem of all its files."""
    root = find_project(Path(path))
    loading = _Loading(root)
    loading.read()
    loading.merge()
    spec = loading.validate()
    project = LoadedProject(spec, root, loading.positions, "", files=tuple(loading.files))
    warnings: tuple[Problem, ...] = ()
    if not loading.unread:
        found = references.check(project, loading.declared, loading.doubtful)
        loading.problems += found.problems
        warnings = found.warnings
    if loading.problems:
        order = sorted(loading.problems, key=lambda p: (p.file, p.line, p.column, p.code, p.message))
        raise DefinitionError(dict.fromkeys(order))
    return replace(project, definition_hash=_hash(spec), warnings=warnings)


def _hash(spec: ProjectSpec) -> str:
    """sha256 of what is declared: not of comments, order of keys, spread over files, or how stores are reached."""
    content = spec.model_dump(mode="json", by_alias=True, exclude={"connections", "include", "ledger"}, warnings=False)
    content["connections"] = {name: connection.engine for name, connection in spec.connections.items()}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class _Loading:
    """The state of one load: what was read, merged and found wrong."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[Problem] = []
        self.positions = Positions(MARKER)
        self.documents: dict[str, yamlfile.Document] = {}
        self.tree: dict[str, Tree] = {}
        self.blank: set[Steps] = set()
        self.unset: set[str] = set()
        self.expanded: set[Steps] = set()
        self.doubtful: set[tuple[str, str]] = set()

    @property
    def files(self) -> list[str]:
        return list(self.documents)

    @property
    def unread(self) -> bool:
        """Some file could not be read: what it declares is unknown, and nothing can be said about references."""
        return any(document.tree is None for document in self.documents.values())

    @property
    def declared(self) -> dict[str, set[str]]:
        """Names by section, valid or not."""
        sections = {name: self.tree.get(name) for name in SECTIONS}
        names = {name: set(entries) if isinstance(entries, dict) else set() for name, entries in sections.items()}
        return {**names, "entities": names["entities"] | self._mapped()}

    def _mapped(self) -> set[str]:
        """The entities that sources and assignments map, taken from the tree: those of invalid ones count too."""
        sources = [(name, entry) for name, entry in _map(self.tree.get("sources")).items()]
        sources += [("", _map(entry).get("assignment")) for entry in _map(self.tree.get("experiments")).values()]
        found: set[str] = set()
        for name, entry in sources:
            mapped = [*_map(_map(entry).get("entity")), _map(entry).get("one_row_per")]
            found |= {entity for entity in mapped if isinstance(entity, str)}
            if ("sources", name) in self.doubtful and mapped == [None] and "sessions" not in _map(entry):
                self.doubtful.add(("entities", ""))  # it may have meant to map one
        return found

    # ------------------------------------------------------------ files

    def read(self) -> None:
        self._read(self.root / MARKER, MARKER)
        document = self.documents[MARKER]
        patterns = (document.tree or {}).get("include")
        if isinstance(patterns, str):
            patterns = (patterns,)
        if not isinstance(patterns, tuple):
            return
        for index, pattern in enumerate(patterns):
            if not isinstance(pattern, str) or "${" in pattern:
                continue
            found, problem = self._matching(pattern)
            for path in found:
                name = os.fsencode(path.relative_to(self.root).as_posix()).decode("utf-8", "replace")
                if name not in self.documents:
                    self._read(path, name)
            if problem:
                code, message = problem
                self.problems.append(document.positions.problem(code, message, "include", index))

    def _read(self, path: Path, name: str) -> None:
        self.documents[name] = yamlfile.read(path, name)
        self.problems += self.documents[name].problems

    def _matching(self, pattern: str) -> tuple[list[Path], tuple[str, str] | None]:
        """The files of an include pattern, sorted; hidden ones and payoff.yml itself left out; and what is wrong with it."""
        outside = (
            "include-outside",
            f"{shown(pattern)} leads out of the project; an included file lies below payoff.yml",
        )
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            return [], outside
        try:
            paths = sorted(path for path in self.root.glob(pattern) if path.is_file())
        except (ValueError, IndexError, NotImplementedError, OSError, RuntimeError):
            return [], ("bad-value", f"{shown(pattern)} is not a file name or pattern such as definitions/**/*.yml")
        names = [path.relative_to(self.root) for path in paths]
        paths = [
            path for path, name in zip(paths, names, strict=True) if not any(p.startswith(".") for p in name.parts)
        ]
        if any(not path.resolve().is_relative_to(self.root) for path in paths):
            return [], outside
        if not paths:
            return [], ("include-missing", f"no file matches {shown(pattern)}")
        if len(paths) > MAX_FILES:
            return [], ("too-large", f"{shown(pattern)} matches more than {MAX_FILES:,} files")
        return [path for path in paths if path != self.root / MARKER], None

    # ------------------------------------------------------------ merging

    def merge(self) -> None:
        known = (*ROOT_ONLY, *(s for s in SECTIONS if s not in ROOT_ONLY))
        for name, document in self.documents.items():
            tree, positions = document.tree or {}, document.positions
            dropped: set[Steps] = set()
            for section, content in tree.items():
                problem = None
                if section not in known:
                    problem = f"{shown(section)} is not a section known in this version{hint(section, known)}"
                    here = known if name == MARKER else [s for s in known if s not in ROOT_ONLY]
                    problem += "" if problem.endswith("?") else f"; sections here are {_series(here)}"
                    self.problems.append(positions.problem("unknown-section", problem, section, key=True))
                elif section in ROOT_ONLY and name != MARKER:
                    problem = f"'{section}' belongs in {MARKER} only"
                    self.problems.append(positions.problem("root-only", problem, section, key=True))
                elif section in SECTIONS and content is not None and not isinstance(content, dict):
                    problem = f"'{section}' is a map of names, such as {section}: {{NAME: {_EXAMPLES[section]}}}"
                    self.problems.append(positions.problem("wrong-type", problem, section))
                if problem:
                    dropped.add((section,))
                elif section in SECTIONS:
                    self._entries(section, content or {}, positions, dropped)
                else:
                    self.tree[section] = content
            self.positions.update(positions, dropped)
        if self.documents[MARKER].tree is None:
            return
        cleaned = self._clean(self.tree, ())
        assert isinstance(cleaned, dict)
        self.tree = cleaned

    def _entries(self, section: str, content: Tree, positions: Positions, dropped: set[Steps]) -> None:
        assert isinstance(content, dict)
        merged = self.tree.setdefault(section, {})
        assert isinstance(merged, dict)
        for name, entry in content.items():
            if name not in merged:
                merged[name] = entry
                continue
            first = self.positions.place(section, name, key=True)
            message = f"{shown(name)} is already declared under '{section}', in {first.file}:{first.line}"
            self.problems.append(positions.problem("duplicate-name", message, section, name, key=True))
            dropped.add((section, name))

    def _clean(self, tree: Tree, steps: Steps) -> Tree:
        """The tree without empty values (each a problem), with ${ENV} expanded where it may stand."""
        if isinstance(tree, dict):
            kept: dict[str, Tree] = {}
            for key, value in tree.items():
                if "${" in key:
                    self._problem("environment", "${...} cannot stand in a key", *steps, key, at_key=True)
                if value is None:
                    self._empty((*steps, key), key)
                else:
                    kept[key] = self._clean(value, (*steps, key))
            return kept
        if isinstance(tree, tuple):
            for index, value in enumerate(tree):
                if value is None:
                    self._empty((*steps, index), f"{steps[-1]}[{index}]")
            items = [(*steps, index) for index in range(len(tree))]
            return tuple(self._clean(v, s) for v, s in zip(tree, items, strict=True) if v is not None)
        if isinstance(tree, str) and "${" in tree:
            return self._expanded(tree, steps)
        return tree

    def _empty(self, steps: Steps, called: str) -> None:
        self.blank.add(steps)
        self._doubt(steps)
        self._problem(
            "no-value",
            f"{shown(called)} has no value; write one or delete it",
            *steps,
            at_key=isinstance(steps[-1], str),
        )

    def _expanded(self, text: str, steps: Steps) -> str:
        if steps[0] != "connections":
            message = "${...} is expanded under connections only; elsewhere write the value itself"
            self._problem("environment", message, *steps)
            return text
        names = re.findall(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", text)
        if len(names) != text.count("${"):
            self._problem("environment", "an environment variable is written ${NAME}", *steps)
        for name in dict.fromkeys(names):
            if name not in os.environ:
                self._problem("environment", f"the environment variable {shown(name)[1:-1]} is not set", *steps)
        if len(names) != text.count("${") or any(name not in os.environ for name in names):
            self.unset.add(str(steps[1]) if len(steps) > 1 else "")
            return text
        self.expanded.add(steps)
        return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", lambda match: os.environ[match[1]], text)

    # ------------------------------------------------------------ validating

    def validate(self) -> ProjectSpec:
        """The spec of what is valid; of the rest what can be made of it. Complete exactly when there are no problems."""
        if self.documents[MARKER].tree is None:
            return _blank_spec()
        sections: dict[str, dict[str, Any]] = {}
        for section in SECTIONS:
            entries = self.tree.get(section, {})
            assert isinstance(entries, dict)
            sections[section] = {}
            for name, entry in entries.items():
                valid = self._entry(section, name, entry)
                if valid is not None:
                    sections[section][name] = valid
        scalars: dict[str, Tree] = {k: v for k, v in self.tree.items() if k not in SECTIONS}
        spec = self._model(ProjectSpec, scalars, (), "a project") or _blank_spec()
        return spec.model_copy(update=sections)

    def _entry(self, section: str, name: str, entry: Tree) -> BaseModel | None:
        steps = (section, name)
        self._name(name, steps)
        if section == "connections" and name in self.unset:
            return None
        if not isinstance(entry, dict):
            if steps not in self.blank:
                message = f"{_CALLED[section]} is a map, such as {shown(name)[1:-1]}: {_EXAMPLES[section]}"
                self._problem("wrong-type", message, *steps)
            return None
        if section == "metrics":
            return self._tagged(METRIC_KINDS, "kind", "a kind of metric", entry, steps)
        if section == "connections":
            return self._tagged(ENGINES, "engine", "an engine", entry, steps)
        return self._model(_MODELS[section], entry, steps, _CALLED[section])

    def _name(self, name: str, steps: Steps) -> None:
        try:
            nouns.check_name(name)
        except ValueError as error:
            self._problem("bad-name", str(error), *steps, at_key=True)

    def _tagged(
        self, kinds: Mapping[str, type[Noun]], tag: str, called: str, entry: dict[str, Tree], steps: Steps
    ) -> BaseModel | None:
        kind = entry.get(tag)
        if isinstance(kind, str) and kind in kinds:
            noun = f"a {kind} metric" if tag == "kind" else f"a {kind} connection"
            return self._model(kinds[kind], entry, steps, noun)
        if kind is None:
            if (*steps, tag) not in self.blank:
                message = f"'{tag}' is missing: {_CALLED[str(steps[0])]} names one of {_series(kinds)}"
                self._problem("missing-key", message, *steps, tag)
        else:
            secret = (*steps, tag) in self.expanded
            near = hint(kind, kinds) if isinstance(kind, str) and not secret else ""
            message = f"{'this' if secret else shown(kind)} is not {called} known in this version"
            self._problem("unknown-kind", message + (near or f"; it is {_series(kinds, 'or')}"), *steps, tag)
        return None

    def _model(self, model: type[N], entry: dict[str, Tree], steps: Steps, noun: str) -> N | None:
        """Validate. Errors are reported, all of them; then what is wrong is cut away, to see what is left."""
        # Strict: text is not a number and true is not 1. What an environment variable brings is always text.
        strict = steps[:1] != ("connections",)
        left, filled = entry, set[Steps]()
        slips: set[Steps] = set()
        for attempt in range(4):
            try:
                return model.model_validate(left, strict=strict)
            except ValidationError as error:
                details = [d for d in error.errors(include_url=False) if not _short_by_fault(left, d)]
            cut: list[Steps] = []
            # Unknown keys first: one that is a slip explains the key that is missing.
            for detail in sorted(details, key=lambda d: d["type"] != "extra_forbidden"):
                local = _located(left, detail["loc"])
                if attempt == 0:
                    self._report(model, detail, local, entry, steps, noun, slips)
                    self._doubt((*steps, *local))
                if detail["type"] == "missing" and local not in filled:
                    filled.add(local)
                else:
                    cut.append(local[:-1] if local in filled else local)
            if () in cut:
                return None
            left = _changed(left, cut, filled)
        return None

    def _report(
        self,
        model: type[BaseModel],
        detail: ErrorDetails,
        local: Steps,
        entry: Tree,
        steps: Steps,
        noun: str,
        slips: set[Steps],
    ) -> None:
        """One of pydantic's errors in plain words, at its place."""
        full, kind = (*steps, *local), detail["type"]
        if kind == "missing":
            if local not in slips and not any(full[: len(blank)] == blank for blank in self.blank):
                self._problem("missing-key", f"{shown(local[-1])} is missing: {_holder(noun, local)} needs it", *full)
            return
        if kind == "extra_forbidden":
            holder = _model_at(model, local[:-1])
            keys = [f.alias or name for name, f in holder.model_fields.items()] if holder else []
            if model is ProjectSpec and holder is ProjectSpec:
                keys = list(ROOT_ONLY)
            near = hint(str(local[-1]), keys)
            slips |= {(*local[:-1], key) for key in keys if f"'{key}'" in near}
            message = f"{shown(local[-1])} is not a key of {_holder(noun, local)} in this version"
            near = near or f"; its {'keys are' if len(keys) > 1 else 'only key is'} {_series(keys)}"
            self._problem("unknown-key", message + near, *full, at_key=True)
            return
        code, message = _sentence(detail, _at(entry, local), echo=steps[:1] != ("connections",))
        of_key = code == "bad-name" and _at(entry, local) != detail["input"]
        if local and not message.startswith("'"):
            message = f"{_subject(local)}{':' if kind == 'value_error' else ''} {message}"
        self._problem(code, message, *full, at_key=of_key or not local)

    def _doubt(self, steps: Steps) -> None:
        """Remember that something is wrong in an entry (or a root key): what it lacks may only be misspelt."""
        self.doubtful.add(
            (str(steps[0]), str(steps[1])) if steps[0] in SECTIONS and len(steps) > 1 else (str(steps[0]), "")
        )

    def _problem(self, code: str, message: str, *steps: Step, at_key: bool = False) -> None:
        self.problems.append(self.positions.problem(code, message, *steps, key=at_key))


def _map(tree: Tree) -> dict[str, Tree]:
    return tree if isinstance(tree, dict) else {}


def _blank_spec() -> ProjectSpec:
    return ProjectSpec(version=1, project="unnamed")


def _series(words: Iterable[str], last: str = "and") -> str:
    listed = list(words)
    return f" {last} ".join(filter(None, (", ".join(listed[:-1]), listed[-1]))) if listed else "none"


def _located(entry: Tree, loc: Iterable[Step]) -> Steps:
    """pydantic's location without the steps that are not in the data (the branch of a union, ``[key]``)."""
    parts = list(loc)
    found: list[Step] = []
    node = entry
    for index, step in enumerate(parts):
        child = _child(node, step)
        if not child and isinstance(node, dict) and len(node) == 1 and found[-2:-1] == ["models"]:
            # {time_decay: {half_life: 7d}} is validated as {kind: time_decay, half_life: 7d}
            ((kind, inner),) = node.items()
            if (isinstance(inner, dict) and step in inner) or (step in ("weights", "weight") and step != kind):
                found.append(kind)
                node = inner
                child = _child(node, step)
                if not isinstance(inner, dict):
                    continue
        if child:
            node = child[0]
        elif not (index == len(parts) - 1 and isinstance(node, dict) and step != "[key]"):
            continue
        found.append(step)  # the last may be a key that is missing
    return tuple(found)


def _short_by_fault(entry: Tree, detail: ErrorDetails) -> bool:
    """Whether a list is only called too short because items of it are wrong, which is said of each."""
    written = _at(entry, _located(entry, detail["loc"])) if detail["type"] == "too_short" else None
    return isinstance(written, tuple) and len(written) >= detail["ctx"]["min_length"]


def _child(node: Tree, step: Step) -> tuple[Tree] | None:
    """What stands under ``step``, in a tuple of one; None where nothing does."""
    if isinstance(node, dict):
        return (node[step],) if isinstance(step, str) and step in node else None
    return (node[step],) if isinstance(node, tuple) and isinstance(step, int) and step < len(node) else None


def _at(entry: Tree, local: Steps) -> Tree:
    node = entry
    for step in local:
        child = _child(node, step)
        node = child[0] if child else None
    return node


def _changed(entry: dict[str, Tree], cut: Iterable[Steps], filled: Iterable[Steps]) -> dict[str, Tree]:
    """A copy without what stands at ``cut``, and with a stand-in (good as text, as SQL and as an amount) at ``filled``."""
    heads: dict[Step, list[Steps]] = {}
    for steps in cut:
        heads.setdefault(steps[0], []).append(steps[1:])
    inner: dict[Step, list[Steps]] = {}
    for steps in filled:
        inner.setdefault(steps[0], []).append(steps[1:])
    kept: dict[str, Tree] = {}
    for key, value in entry.items():
        deeper, within = heads.get(key, []), [steps for steps in inner.get(key, []) if steps]
        if not all(deeper):
            continue
        if isinstance(value, dict):
            kept[key] = _changed(value, deeper, within)
        elif isinstance(value, tuple):
            gone = {steps[0] for steps in deeper}
            kept[key] = tuple(item for index, item in enumerate(value) if index not in gone)
        else:
            kept[key] = value
    missing = {str(key): "0" for key, deeper in inner.items() if () in deeper and key not in heads}
    return {**missing, **kept}


def _model_at(model: type[BaseModel], local: Steps) -> type[BaseModel] | None:
    """The model of the map at ``local``, found through the annotations."""
    for step in local:
        fields = {f.alias or name: f for name, f in model.model_fields.items()}
        if step in fields:
            inner = _model_in(fields[str(step)].annotation)
            if inner is None:
                return None
            model = inner
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)


def _holder(noun: str, local: Steps) -> str:
    """What holds the key at ``local``: the entry itself, or the map under one of its keys."""
    keys = [str(step) for step in local[:-1] if isinstance(step, str)]
    return f"{shown('.'.join(keys))} of {noun}" if keys else noun


def _subject(local: Steps) -> str:
    keys = [str(step) for step in local if isinstance(step, str)]
    return shown(keys[-1]) if keys else ""


_LIMITS = {
    "greater_than": ("gt", "must be more than {:g}"),
    "greater_than_equal": ("ge", "must be at least {:g}"),
    "less_than": ("lt", "must be less than {:g}"),
    "less_than_equal": ("le", "must be at most {:g}"),
}
_TYPES = {
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "tuple_type": "a list, such as [a, b]",
    "dict_type": "a map of keys and values",
    "model_type": "a map of keys and values",
    "model_attributes_type": "a map of keys and values",
}


def _sentence(detail: ErrorDetails, value: Tree, *, echo: bool) -> tuple[str, str]:
    """``(code, what is wrong)``, to follow the name of the key. ``echo`` False: the value may be a secret."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        message = str(context["error"])
        if not echo:
            message = message.removeprefix(shown(detail["input"]) + " ")
        return ("bad-name" if " is not a name" in message else "bad-value"), message
    if kind in _TYPES:
        written = f", not {_described(value)}" if echo else ""
        quotes = " (put it in quotes)" if kind == "string_type" and isinstance(value, bool | int | float) else ""
        return "wrong-type", f"must be {_TYPES[kind]}{written}{quotes}"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(context["expected"]))
        near = hint(value, allowed) if isinstance(value, str) and echo else ""
        expected = _series(allowed, "or") if allowed else str(context["expected"]).lower()
        written = f", not {_described(value)}" if echo else ""
        return "bad-value", f"must be {expected}{written}{near}"
    if kind in _LIMITS:
        key, sentence = _LIMITS[kind]
        return "bad-value", sentence.format(context[key])
    if kind == "finite_number":
        return "bad-value", "must be a number that is not infinite"
    if kind == "string_too_short":
        return "bad-value", "must not be empty"
    if kind == "too_short":
        return "bad-value", f"must name at least {_COUNTS.get(context['min_length'], context['min_length'])}"
    if kind == "too_long":
        return "bad-value", f"must name at most {context['max_length']}"
    return "bad-value", f"is not valid: {detail['msg'][:1].lower()}{detail['msg'][1:]}" if echo else "is not valid"


_COUNTS = {1: "one", 2: "two", 3: "three"}


def _described(value: Tree) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, tuple):
        return "a list"
    return f"the text {shown(value)}" if isinstance(value, str) else shown(value)[1:-1]


# ---------------------------------------------------------------- the published schema


def json_schema(part: Literal["project", "definitions"] = "project") -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of payoff.yml, or of the definition files it includes."""
    schema = cast(dict[str, Any], _published(ProjectSpec.model_json_schema(by_alias=True, mode="validation")))
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = f"Payoff {'project (payoff.yml)' if part == 'project' else 'definitions'}"
    properties = schema["properties"]
    for section in SECTIONS:
        properties[section] = {"anyOf": [properties[section], {"type": "null"}]}  # a section may be left blank
    if part == "definitions":
        schema["properties"] = {key: value for key, value in properties.items() if key not in ROOT_ONLY}
        del schema["required"]
    return schema


def _published(node: Any) -> Any:
    """pydantic's schema without the nulls and defaults that stand for a missing key, and closed where keys are names."""
    if isinstance(node, list):
        return [_published(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: _published(value) for key, value in node.items() if key != "default" or value not in (None, [], {})}
    options = [option for option in found.get("anyOf", []) if option != {"type": "null"}]
    if "anyOf" in found and len(options) < len(found["anyOf"]):
        del found["anyOf"]
        found = {**found, **options[0]} if len(options) == 1 else {**found, "anyOf": options}
    if "patternProperties" in found:
        found["additionalProperties"] = False
    return found


__all__ = [
    "LoadedProject",
    "MetricUse",
    "Positions",
    "SqlFragment",
    "Step",
    "Steps",
    "find_project",
    "json_schema",
    "load",
]

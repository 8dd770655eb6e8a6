"""What one declaration says of another: every name is declared, and what is to be read together can be.

An entry that has problems of its own is ``doubtful``: what it lacks may only be misspelt, so nothing is concluded from that.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

from payoff.errors import Problem
from payoff.spec.journey_references import JourneyChecker
from payoff.spec.nouns import (
    KEEPS_LEDGERS,
    READ_FILES,
    Attribute,
    Claim,
    ConversionMetric,
    Entity,
    Experiment,
    Metric,
    Programme,
    RetentionMetric,
    SessionsOf,
    Source,
    attributes_of,
    format_duration,
    hint,
    model_names,
    shown,
    sources_of,
)

if TYPE_CHECKING:
    from payoff.spec.amount import Attributed, Effect
    from payoff.spec.loader import LoadedProject
    from payoff.spec.yamlfile import Step, Steps

Declared = Mapping[str, set[str]]

MOST_STEPS = 60
"""How many steps of ``over_time`` are read at most."""

ONE_NUMBER = ("count", "sum", "mean", "conversion")
"""Kinds of metric that are one number a unit over any period, so that what was before exposure can be read."""

STEPPED = ("count", "sum", "conversion", "rate", "ratio", "nps", "csat")
"""Kinds of metric that can be read step by step."""


SHOWN = {
    "claims": "a claim",
    "experiments": "an experiment",
    "programmes": "a programme",
    "metrics": "a metric",
    "attribution": "an attribution",
    "funnels": "a funnel",
    "cohorts": "a cohort",
    "paths": "a declaration of paths",
}
"""What a report shows."""


class Obstacle(NamedTuple):
    """Why a metric cannot be read for an experiment; ``steps`` lead from the metric to the source at fault."""

    steps: tuple[str, ...]
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Found:
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def check(project: LoadedProject, declared: Declared, doubtful: Collection[tuple[str, str]]) -> Found:
    """Every broken reference. ``project.spec`` holds what is valid or nearly so, ``declared`` the names of all there is."""
    checker = Checker(project, declared, doubtful)
    checker.project_keys()
    for name, entity in project.spec.entities.items():
        checker.entity(name, entity)
    for name, source in project.spec.sources.items():
        checker.source(("sources", name), source)
    for name, metric in project.spec.metrics.items():
        checker.metric(name, metric)
    for name, attribute in project.spec.attributes.items():
        checker.attribute(name, attribute)
    for name, experiment in project.spec.experiments.items():
        checker.experiment(name, experiment)
    for name, programme in project.spec.programmes.items():
        checker.programme(name, programme)
    JourneyChecker(checker).check()
    for name, claim in project.spec.claims.items():
        checker.claim(name, claim)
    for name, report in project.spec.reports.items():
        for index, entry in enumerate(report.show):
            checker.shown_entry(name, index, entry)
    return Found(tuple(checker.problems), tuple(replace(w, severity="warning") for w in checker.warnings))


class Checker:
    def __init__(self, project: LoadedProject, declared: Declared, doubtful: Collection[tuple[str, str]]) -> None:
        self.project, self.spec, self.declared = project, project.spec, declared
        self.doubtful = doubtful
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.entities = set(declared["entities"])

    def problem(self, code: str, message: str, *steps: Step, key: bool = False, offset: int | None = None) -> None:
        self.problems.append(self.project.positions.problem(code, message, *steps, key=key, offset=offset))

    def sure(self, section: str, *names: str) -> bool:
        """Whether each of ``names`` is declared and has no problem of its own."""
        known = getattr(self.spec, section)
        return all(name in known and (section, name) not in self.doubtful for name in names)

    def known(
        self, section: str, name: str, called: str, *steps: Step, offset: int | None = None, key: bool = False
    ) -> bool:
        """Whether ``name`` is declared; a problem where it is not."""
        if name in self.declared[section]:
            return True
        code = f"unknown-{called.rsplit(maxsplit=1)[-1]}"
        message = f"{shown(name)} is not {called}{hint(name, self.declared[section])}"
        if not message.endswith("?") and not self.declared[section]:
            message += f"; nothing is declared under '{section}'"
        self.problem(code, message, *steps, offset=offset, key=key)
        return False

    def sound(self, *sections: str) -> bool:
        """Whether no entry of these sections has a problem of its own."""
        return not any(section in sections for section, _ in self.doubtful)

    def known_entity(self, name: str, *steps: Step, offset: int | None = None) -> None:
        if name not in self.entities and ("entities", "") not in self.doubtful:
            remedy = hint(name, self.entities) or "; declare it under 'entities', or map it in a source's entity"
            self.problem("unknown-entity", f"{shown(name)} is not an entity{remedy}", *steps, offset=offset)

    # ------------------------------------------------------------ the project's own keys and sources

    def project_keys(self) -> None:
        defaults, ledger = self.spec.defaults, self.spec.ledger
        # A default entity that no source knows is a slip, unless there is no source yet.
        for key in ("entity", "holdout_unit"):
            entity = getattr(defaults, key)
            if entity is not None and self.declared["sources"]:
                self.known_entity(entity, "defaults", key)
        self.entities |= {entity for entity in (defaults.entity, defaults.holdout_unit) if entity is not None}
        if ledger is not None and self.known("connections", ledger, "a connection", "ledger"):
            connection = self.spec.connections.get(ledger)
            if connection is not None and connection.engine not in KEEPS_LEDGERS:
                message = f"'{ledger}' is a {connection.engine} connection, which is only read; the ledger needs engine sqlite or postgres"
                self.problem("wrong-connection", message, "ledger")

    def entity(self, name: str, entity: Entity) -> None:
        if entity.identity is None:
            return
        at, source = ("entities", name, "identity", "source"), entity.identity.source
        if not self.known("sources", source, "a source", *at) or not self.sure("sources", source):
            return
        if self.spec.sources[source].sessions is not None:
            message = (
                f"'{source}' holds sessions, whose units are found with the identity; name the source of pairs of ids"
            )
            self.problem("wrong-source", message, *at)
        elif entity.identity.lookback is not None and not self.spec.sources[source].timed:
            message = f"source '{source}' has no time, so lookback cannot be applied; add time: COLUMN to it"
            self.problem("no-time", message, *at)

    def sessions(self, name: str, made: SessionsOf) -> None:
        """Sessions are made of rows of another source, which have a time and a unit."""
        at = ("sources", name, "sessions")
        if made.entity is not None:
            self.known_entity(made.entity, *at, "entity")
        if not self.known("sources", made.of, "a source", *at, "of") or not self.sure("sources", made.of):
            return
        rows = self.spec.sources[made.of]
        if rows.sessions is not None:
            what = "this very source" if made.of == name else f"'{made.of}', which holds sessions itself"
            self.problem("wrong-source", f"sessions are made of {what}; name a source of rows", *at, "of")
            return
        if not rows.timed:
            message = (
                f"source '{made.of}' has no time, so pauses between its rows are not known; add time: COLUMN to it"
            )
            self.problem("no-time", message, *at, "of")
        entity = self.project.session_entity(self.spec.sources[name])
        if entity is None:
            if self.sound("defaults", "entities"):
                message = f"whose sessions these are is not clear; add entity: NAME, which '{made.of}' maps"
                self.problem("no-entity", message, *at, "of")
        elif self.project.unit_column(rows, entity) is None and (made.entity is None or entity in self.entities):
            message = (
                f"source '{made.of}' does not say which column holds '{entity}'; add entity: {{{entity}: COLUMN}} to it"
            )
            self.problem("unmapped-entity", message, *at, "of")

    def source(self, steps: Steps, source: Source) -> None:
        """A source, or an assignment written in place."""
        if source.sessions is not None:
            self.sessions(str(steps[1]), source.sessions)
        for other in source.links:
            self.known("sources", other, "a source", *steps, "links", other, key=True)
        if source.connection is not None:
            if self.known("connections", source.connection, "a connection", *steps, "connection"):
                connection = self.spec.connections.get(source.connection)
                if connection is not None and connection.engine == "sqlite":
                    message = f"'{source.connection}' is a sqlite connection, which only keeps the ledger; sources are read from duckdb, postgres, clickhouse or spark connections"
                    self.problem("wrong-connection", message, *steps, "connection")
                elif connection is not None and source.file is not None and connection.engine not in READ_FILES:
                    message = f"'{source.connection}' is a {connection.engine} connection, and files are read without one, or by spark or clickhouse"
                    self.problem("wrong-connection", message, *steps, "connection")
                elif connection is not None and not connection.holds_tables:
                    self.problem(
                        "wrong-connection", f"'{source.connection}' has no path to a database", *steps, "connection"
                    )
        elif (source.table is not None or source.sql is not None) and self.project.connection_of(source) is None:
            usable = self.project.readable()
            if usable:
                message = f"several connections could be meant; add connection: {' or '.join(usable)}"
                self.problem("no-connection", message, *steps, "table" if source.table is not None else "sql")
            elif len(self.declared["connections"]) == len(self.spec.connections) and self.sound("connections"):
                message = "no connection that holds tables is declared to read this from, such as connections: {main: {engine: duckdb, path: data/acme.duckdb}}"
                self.problem("no-connection", message, *steps, "table" if source.table is not None else "sql")

    # ------------------------------------------------------------ metrics

    def metric(self, name: str, metric: Metric) -> None:
        steps = ("metrics", name)
        if metric.entity is not None:
            self.known_entity(metric.entity, *steps, "entity")
        reads = sources_of(metric)
        for path, source in reads:
            self.known("sources", source, "a source", *steps, *path)
        timeless = [
            source for _, source in reads if self.sure("sources", source) and not self.spec.sources[source].timed
        ]
        if metric.window is not None and timeless:
            message = (
                f"source '{timeless[0]}' has no time, so a window cannot be applied to its rows; add time: COLUMN to it"
            )
            self.problem("no-time", message, *steps, "window")
        if isinstance(metric, RetentionMetric) or (isinstance(metric, ConversionMetric) and metric.after is not None):
            for path, source in reads:
                if source in timeless:
                    message = (
                        f"source '{source}' has no time, so what came after what is not known; add time: COLUMN to it"
                    )
                    self.problem("no-time", message, *steps, *path)

    def readable(self, metric: str) -> bool:
        """Whether neither the metric nor any source that it reads has a problem of its own."""
        return self.sure("metrics", metric) and all(
            self.sure("sources", source) for _, source in sources_of(self.spec.metrics[metric])
        )

    def timeless(self, metric: str) -> str | None:
        """A source of the metric that is known to have no time, or None."""
        for _, source in sources_of(self.spec.metrics[metric]):
            if self.sure("sources", source) and not self.spec.sources[source].timed:
                return source
        return None

    # ------------------------------------------------------------ attributes

    def attribute(self, name: str, attribute: Attribute) -> None:
        steps = ("attributes", name)
        if attribute.from_ is not None:
            self.known("sources", attribute.from_, "a source", *steps, "from")
        if (
            attribute.metric is not None
            and self.known("metrics", attribute.metric, "a metric", *steps, "metric")
            and self.sure("metrics", attribute.metric)
        ):
            self.read_before(attribute.metric, *steps, "metric")

    def read_before(self, metric: str, *steps: Step) -> None:
        """A metric is one number a unit over a period before exposure."""
        kind, timeless = self.spec.metrics[metric].kind, self.timeless(metric)
        if kind not in ONE_NUMBER:
            message = f"'{metric}' is a {kind} metric; only a count, sum, mean or conversion is one number a unit over a period before exposure"
            self.problem("wrong-metric", message, *steps)
        elif timeless is not None:
            message = f"'{metric}' reads '{timeless}', which has no time, so its rows before exposure are not known; add time: COLUMN to it"
            self.problem("no-time", message, *steps)

    # ------------------------------------------------------------ experiments

    def experiment(self, name: str, experiment: Experiment) -> None:
        steps = ("experiments", name)
        assignment = experiment.assignment
        if experiment.entity is not None:
            self.known_entity(experiment.entity, *steps, "entity")
        self._listed(steps, experiment)
        self._named(name, experiment)
        self._arms(steps, experiment)
        self.in_order(experiment.starts, experiment.ends, *steps, "ends")
        if assignment.source is None:
            self.source((*steps, "assignment"), assignment)
        elif not self.known("sources", assignment.source, "a source", *steps, "assignment", "source"):
            return
        if ("experiments", name) in self.doubtful or not self.source_sure(assignment.source):
            return
        source = self.project.source_of(name)[1]
        at = (
            "source"
            if assignment.source is not None
            else "table"
            if assignment.table
            else "file"
            if assignment.file
            else "sql"
        )
        if not source.timed and (source.one_row_per is None or experiment.period is not None):
            message = (
                "rows of the assignment have no time, so which period of a switchback they belong to is not known;"
                " add time: COLUMN"
                if experiment.period is not None
                else "rows of the assignment have no time, so a unit's first exposure is not known; add time: COLUMN"
                " (or one_row_per: ENTITY, where each unit has one row)"
            )
            self.problem("no-time", message, *steps, "assignment", at)
        entity = self.project.find_entity(name)
        if entity is None:
            if not self.sound("defaults", "entities"):
                return
            own = sorted({*source.entity, *((source.one_row_per,) if source.one_row_per else ())})
            message = (
                f"the assignment's rows have several entities ({', '.join(own)}); add entity: to the experiment"
                if len(own) > 1
                else "the assignment's source does not say which column holds the unit; add entity: {NAME: COLUMN} to it"
            )
            self.problem("no-entity", message, *steps, "assignment", at)
        elif self.project.unit_column(source, entity) is None and source.one_row_per != entity:
            message = f"the assignment's source does not say which column holds '{entity}'; add entity: {{{entity}: COLUMN}} to it"
            self.problem("unmapped-entity", message, *steps, "assignment", at)
        else:
            self._readable(name, experiment, entity)
            _CloserLook(self, name, experiment, entity).check()

    def in_order(self, starts: datetime | None, ends: datetime | None, *at: Step) -> None:
        if _before(ends, starts, self.spec.timezone):
            self.problem("bad-value", "'ends' comes before 'starts'", *at)

    def source_sure(self, source: str | None) -> bool:
        return source is None or self.sure("sources", source)

    def _metrics(self, experiment: Experiment) -> Iterator[tuple[str, tuple[Step, ...], str]]:
        """(role, steps from the experiment, metric) of every metric listed."""
        for role in ("primary", "secondary", "guardrails"):
            for index, metric in enumerate(getattr(experiment, role) or ()):
                yield role, (role, index), metric

    def place(self, section: str, name: str, inside: Steps) -> Steps:
        """Where something named inside an entry stands; it may be written without the list, or the map, around it.

        Where an item of a list was left out as wrong, the places of those after it have moved: the list's own is given.
        """
        exact = (section, name) not in self.doubtful
        while len(inside) > 1 and not (
            self.project.positions.has(section, name, *inside) and (exact or isinstance(inside[-1], str))
        ):
            inside = inside[:-1]
        return (section, name, *inside)

    def once(self, section: str, name: str, key: Steps, names: Iterable[str]) -> None:
        seen: set[str] = set()
        for index, item in enumerate(names):
            if item in seen:
                at = self.place(section, name, (*key, index))
                self.problem("named-twice", f"{shown(item)} stands twice in {key[-1]}; name it once", *at)
            seen.add(item)

    def _named(self, name: str, experiment: Experiment) -> None:
        """Every name an experiment's closer looks refer to is declared, and stands there once."""

        def at(*inside: Step) -> Steps:
            return self.place("experiments", name, inside)

        adjust = experiment.adjust
        if adjust is not None:
            for index, metric in enumerate(adjust.metrics):
                self.known("metrics", metric, "a metric", *at("adjust", "metrics", index))
            self.once("experiments", name, ("adjust", "metrics"), adjust.metrics)
            self.once("experiments", name, ("adjust", "attributes"), adjust.attributes)
        self.once("experiments", name, ("segments",), experiment.segments)
        if experiment.cluster is not None:
            self.known_entity(experiment.cluster, *at("cluster"))
        if experiment.trigger is not None:
            self.known("sources", experiment.trigger.source, "a source", *at("trigger", "source"))
        if experiment.cannibalisation is not None:
            self.known("sources", experiment.cannibalisation.within, "a source", *at("cannibalisation", "within"))
        for index, other in enumerate(experiment.interactions):
            if other == name:
                message = "an experiment has no interaction with itself; name others on the same units"
                self.problem("bad-value", message, *at("interactions", index))
            else:
                self.known("experiments", other, "an experiment", *at("interactions", index))
        self.once("experiments", name, ("interactions",), experiment.interactions)

    def _listed(self, steps: Steps, experiment: Experiment) -> None:
        seen: dict[str, str] = {}
        for role, inside, metric in self._metrics(experiment):
            at = self.place("experiments", str(steps[1]), inside)
            self.known("metrics", metric, "a metric", *at)
            if metric in seen:
                where = role if seen[metric] == role else f"{seen[metric]} and {role}"
                self.problem("metric-twice", f"'{metric}' is listed twice ({where}); name it once", *at)
            seen.setdefault(metric, role)

    def _arms(self, steps: Steps, experiment: Experiment) -> None:
        assignment = experiment.assignment
        if assignment.split is None:
            return
        control = (*steps, "assignment", "control")
        if assignment.control not in assignment.split and self.project.positions.has(*control):
            message = f"the control arm {shown(assignment.control)} is not in split ({', '.join(map(_arm, assignment.split))})"
            near = hint(assignment.control, assignment.split)
            self.problem("unknown-arm", message + near, *control)
        total = sum(assignment.split.values())
        if abs(total - 1) > 1e-6:
            self.warnings.append(
                self.project.positions.problem(
                    "split-total",
                    f"the shares of split add up to {total:g}, not 1; they are read as {_proportions(assignment.split)}",
                    *steps,
                    "assignment",
                    "split",
                )
            )

    def _readable(self, name: str, experiment: Experiment, entity: str) -> None:
        """Each metric can be read for the experiment's units; there is at least one."""
        uses = self.project.metrics_of(name)
        listed = {metric: inside for _, inside, metric in self._metrics(experiment)}
        for metric, inside in listed.items():
            if self.readable(metric):
                obstacle = self.project.unreadable(self.spec.metrics[metric], name, entity)
                if obstacle is not None:
                    message = f"'{metric}' cannot be read here: {obstacle.message}"
                    self.problem(obstacle.code, message, *self.place("experiments", name, inside))
        if not uses and self.sound("sources", "metrics", "entities"):
            message = f"no metric can be read for the units of this experiment ({entity}); declare one under 'metrics'"
            if self.spec.metrics:
                first = next(iter(self.spec.metrics))
                obstacle = self.project.unreadable(self.spec.metrics[first], name, entity)
                message += f" ('{first}' cannot: {obstacle.message})" if obstacle is not None else ""
            self.problem("no-metrics", message, "experiments", name, key=True)
        for use in uses:
            self._clocked(name, use.metric, listed)

    def _clocked(self, name: str, metric: str, listed: Mapping[str, tuple[Step, ...]]) -> None:
        """Warn of rows that cannot be told to come after exposure."""
        if not self.sure("metrics", metric):
            return
        own = self.project.source_of(name)[0]
        for _, source in sources_of(self.spec.metrics[metric]):
            if source == own or not self.sure("sources", source):
                continue
            read = self.spec.sources[source]
            if not read.timed and read.one_row_per is None:
                message = (
                    f"rows of '{source}', which '{metric}' reads, have no time: those from before exposure count too;"
                    " add time: COLUMN to it (or one_row_per: ENTITY, where each unit has one row)"
                )
                at = listed.get(metric, ())
                place = self.place("experiments", name, at)
                self.warnings.append(self.project.positions.problem("no-time", message, *place, key=not at))

    # ------------------------------------------------------------ programmes

    def programme(self, name: str, programme: Programme) -> None:
        def at(*inside: Step) -> Steps:
            return self.place("programmes", name, inside)

        metric = programme.metric
        known = self.known("metrics", metric, "a metric", *at("metric")) and self.sure("metrics", metric)
        if known and self.spec.metrics[metric].kind == "quantile":
            message = f"'{metric}' is a quantile metric, and effects on a quantile do not add up"
            self.problem("wrong-metric", message, *at("metric"))
        read: dict[str, Steps] = {}
        for index, experiment in enumerate(programme.experiments):
            if self.known("experiments", experiment, "an experiment", *at("experiments", index)):
                read.setdefault(experiment, at("experiments", index))
        self.once("programmes", name, ("experiments",), programme.experiments)
        for index, experiment in enumerate(programme.shipped or ()):
            if experiment not in programme.experiments:
                near = hint(experiment, programme.experiments) or "; name it there too"
                message = f"{shown(experiment)} is not among the experiments of this programme{near}"
                self.problem("unknown-experiment", message, *at("shipped", index))
        self.once("programmes", name, ("shipped",), programme.shipped or ())
        holdout = programme.holdout
        if holdout is not None and self.known("experiments", holdout, "an experiment", *at("holdout")):
            if holdout in programme.experiments:
                message = f"'{holdout}' is what the programme is held against; leave it out of experiments"
                self.problem("bad-value", message, *at("holdout"))
            else:
                read[holdout] = at("holdout")
        self._alike(metric, read)

    def _alike(self, metric: str, read: Mapping[str, Steps]) -> None:
        """All of the experiments read the metric, for the same entity."""
        first: tuple[str, str] | None = None
        for name, at in read.items():
            if not self.sure("experiments", name) or not self.source_sure(
                self.spec.experiments[name].assignment.source
            ):
                continue
            if self.sure("metrics", metric) and metric not in {use.metric for use in self.project.metrics_of(name)}:
                message = f"'{name}' does not read '{metric}'; add it to the metrics of experiments.{name}"
                self.problem("unmeasured-metric", message, *at)
            entity = self.project.find_entity(name)
            if entity is None:
                continue
            first = first or (name, entity)
            if entity != first[1]:
                message = f"'{name}' compares units of {entity} and '{first[0]}' units of {first[1]}: their effects do not add up"
                self.problem("wrong-entity", message, *at)

    # ------------------------------------------------------------ claims and reports

    def claim(self, name: str, claim: Claim) -> None:
        from payoff.spec.amount import AmountError, Attributed, PopulationOf, ValueOf, VolumeOf, parse

        steps = ("claims", name)
        for key in ("evidence", "compare"):
            self._evidence(name, key, getattr(claim, key))
        at = (*steps, "amount")
        try:
            amount = parse(claim.amount)
        except AmountError as error:
            self.problem("amount", error.message, *at, offset=error.offset)
            return
        for part in amount.references():
            if isinstance(part, ValueOf):
                self.known("values", part.name, "a value", *at, offset=part.offset)
            elif isinstance(part, PopulationOf):
                self.known_entity(part.entity, *at, offset=part.offset)
                if all("." in name for name in claim.evidence):
                    message = "a population is counted among the units of an experiment, and there is none among the evidence; write volume(SOURCE, PERIOD), or add one"
                    self.problem("amount", message, *at, offset=part.offset)
            elif isinstance(part, VolumeOf):
                if self.known("sources", part.source, "a source", *at, offset=part.offset):
                    source = self.spec.sources.get(part.source)
                    if source is not None and not source.timed and self.sure("sources", part.source):
                        message = f"source '{part.source}' has no time, so its rows over a period cannot be counted; add time: COLUMN to it"
                        self.problem("no-time", message, *at, offset=part.offset)
            elif isinstance(part, Attributed):
                if self.known("attribution", part.name, "an attribution", *at, offset=part.offset):
                    self._attributed(claim, part, at)
            elif self.known("metrics", part.metric, "a metric", *at, offset=part.offset):
                self._effect(claim, part, at)

    def _evidence(self, name: str, key: str, listed: Iterable[str]) -> None:
        """Experiments by their name, attributions as ``attribution.NAME``, each once."""
        exact = ("claims", name) not in self.doubtful
        seen: set[str] = set()
        for index, evidence in enumerate(listed):
            at = ("claims", name, key, *((index,) if exact else ()))
            section, dot, inner = evidence.partition(".")
            if dot:
                self.known("attribution", inner, "an attribution", *at, offset=len(section) + 1)
            elif evidence in self.declared["attribution"] and evidence not in self.declared["experiments"]:
                message = f"'{evidence}' is an attribution, and evidence of one is written attribution.{evidence}"
                self.problem("unknown-experiment", message, *at)
            else:
                self.known("experiments", evidence, "an experiment", *at)
            if evidence in seen:
                self.problem("evidence-twice", f"'{evidence}' stands twice in {key}; name it once", *at)
            seen.add(evidence)

    def _attributed(self, claim: Claim, part: Attributed, at: Steps) -> None:
        """Credit that an attribution among the evidence gives, by one of its models, over one window and conversion."""

        def problem(code: str, message: str) -> None:
            self.problem(code, message, *at, offset=part.offset)

        if f"attribution.{part.name}" not in claim.evidence:
            problem(
                "unmeasured-metric",
                f"attribution '{part.name}' is no evidence of this claim; add attribution.{part.name} to it",
            )
        if not self.sure("attribution", part.name):
            return
        declared = self.spec.attribution[part.name]
        models = dict(zip(model_names(declared.models), declared.models, strict=True))
        if part.model not in models:
            known = hint(part.model, models) or f"; its models are {', '.join(map(_arm, models))}"
            problem("unknown-model", f"{shown(part.model)} is not a model of attribution '{part.name}'{known}")
        elif models[part.model].kind == "participation" and part.touchpoint is None:
            problem(
                "wrong-model",
                "participation credits a conversion to every touchpoint on its path, so its credit has no total; name a touchpoint",
            )
        stop, split, _ = (part.touchpoint or "").partition(
            ": "
        )  # "channel: Email" is one value of a touchpoint by values
        if part.touchpoint is not None and self.sure("touchpoints", *declared.touchpoints):
            by = stop in declared.touchpoints and self.spec.touchpoints[stop].by is not None
            if stop not in declared.touchpoints or (split and not by):
                known = hint(part.touchpoint, declared.touchpoints) or f"; they are {', '.join(declared.touchpoints)}"
                problem(
                    "unknown-touchpoint",
                    f"{shown(part.touchpoint)} is not a touchpoint of attribution '{part.name}'{known}",
                )
        several = "windows" if len(declared.window) > 1 else "conversions" if len(declared.outcomes) > 1 else None
        if several is not None:
            problem(
                "amount",
                f"attribution '{part.name}' has several {several}, and an amount reads one; declare an attribution with one of them for this claim",
            )

    def _effect(self, claim: Claim, effect: Effect, at: Steps) -> None:
        """Some evidence measures the effect, and the arm it names is one there is."""
        evidence = [name for name in claim.evidence if "." not in name]
        if self.sure("metrics", effect.metric) and self.spec.metrics[effect.metric].kind == "quantile":
            message = f"'{effect.metric}' is a quantile metric, and effects on a quantile do not add up to an amount"
            self.problem("wrong-metric", message, *at, offset=effect.offset)
            return
        if not self.sure("experiments", *evidence) or not self.sure("metrics", effect.metric):
            return
        assigned = [self.spec.experiments[name].assignment for name in evidence]
        if not all(self.source_sure(assignment.source) for assignment in assigned):
            return
        measured = [name for name in evidence if effect.metric in {use.metric for use in self.project.metrics_of(name)}]
        if not evidence:
            message = f"an effect comes from an experiment, and this claim's evidence is attributed only; write attributed({claim.evidence[0].partition('.')[2]}, MODEL), or add an experiment"
            self.problem("unmeasured-metric", message, *at, offset=effect.offset)
            return
        if not measured:
            message = f"no evidence of this claim measures '{effect.metric}'; add it to the metrics of {' or '.join(evidence)}"
            self.problem("unmeasured-metric", message, *at, offset=effect.offset)
            return
        for name in measured:
            assignment = self.spec.experiments[name].assignment
            if assignment.split is None and effect.arm != assignment.control:
                return  # its arms are known only once its rows are read
        arms = [
            arm
            for name in measured
            for arm in self.spec.experiments[name].assignment.split or ()
            if arm != self.spec.experiments[name].assignment.control
        ]
        controls = {self.spec.experiments[name].assignment.control for name in measured}
        if effect.arm is None:
            if len(set(arms)) > 1:
                choices = " or ".join(f"effect({effect.metric}, {_arm(arm)})" for arm in dict.fromkeys(arms))
                self.problem("unknown-arm", f"several arms are compared; write {choices}", *at, offset=effect.offset)
        elif effect.arm in controls and effect.arm not in arms:
            message = f"{shown(effect.arm)} is the control arm; an effect is that of another arm against it"
            self.problem("unknown-arm", message, *at, offset=effect.offset)
        elif effect.arm not in arms:
            message = f"{shown(effect.arm)} is not an arm of {' or '.join(measured)}"
            near = hint(effect.arm, arms) or f"; arms are {', '.join(map(_arm, arms))}"
            self.problem("unknown-arm", message + near, *at, offset=effect.offset)

    def shown_entry(self, report: str, index: int, entry: str) -> None:
        exact = ("reports", report) not in self.doubtful
        at = ("reports", report, "show", *((index,) if exact else ()))
        section, dot, name = entry.partition(".")
        if section not in SHOWN or not name:
            near = hint(section, SHOWN) if dot else ""
            rest = "" if near else f"; name {_series(f'{s}.X' for s in SHOWN)}"
            self.problem("unknown-entry", f"{shown(entry)} cannot be shown in this version{near}{rest}", *at)
            return
        self.known(section, name, SHOWN[section], *at, offset=len(section) + 1)


class _CloserLook:
    """What an experiment asks for besides its effects can be read: its assignment and its metrics are sound by themselves."""

    def __init__(self, checker: Checker, name: str, experiment: Experiment, entity: str) -> None:
        self.checker, self.name, self.experiment, self.entity = checker, name, experiment, entity
        self.project, self.spec = checker.project, checker.spec
        self.own, self.source = self.project.source_of(name)

    def problem(self, code: str, message: str, *inside: Step) -> None:
        self.checker.problem(code, message, *self.checker.place("experiments", self.name, inside))

    def check(self) -> None:
        if self.experiment.period is not None:
            self.switchback()
        self.adjustment()
        self.attributes()
        self.units()
        self.time()
        self.cannibalisation()
        self.interactions()

    def _uses(self) -> list[str]:
        """The metrics read that are sound by themselves."""
        return [u.metric for u in self.project.metrics_of(self.name) if self.checker.readable(u.metric)]

    def _timed(self, why: str, *inside: Step) -> bool:
        """Whether exposures have a time; a problem where they have none."""
        if not self.source.timed:
            message = f"rows of the assignment have no time, so {why}; add time: COLUMN to {self._called()}"
            self.problem("no-time", message, *inside)
        return self.source.timed

    def _called(self) -> str:
        return f"source '{self.own}'" if self.experiment.assignment.source is not None else "the assignment"

    def _joined(self, source: str, *inside: Step) -> bool:
        apart = self.project.apart(source, self.name, self.entity)
        if apart is not None:
            self.problem(apart[0], apart[1], *inside)
        return apart is None

    # ------------------------------------------------------------ units

    def switchback(self) -> None:
        for metric in self._uses():
            declared = self.spec.metrics[metric]
            timeless = self.checker.timeless(metric)
            if timeless is not None:
                message = f"'{metric}' reads '{timeless}', which has no time, so the period of its rows is not known; add time: COLUMN to it"
                self.problem("no-time", message, "period")
            elif isinstance(declared, RetentionMetric) or (
                isinstance(declared, ConversionMetric) and declared.after is not None
            ):
                message = f"'{metric}' has a window of its own, and a switchback reads what happened in each period; name other metrics"
                self.problem("wrong-metric", message, "period")

    def units(self) -> None:
        cluster, trigger = self.experiment.cluster, self.experiment.trigger
        if cluster == self.entity:
            message = f"units are clustered by themselves; cluster is the entity that was assigned, within which {cluster} is read"
            self.problem("bad-value", message, "cluster")
        elif cluster is not None and not self.project.declares(self.source, cluster):
            message = (
                f"{self._called()} does not say which column holds '{cluster}'; add entity: {{{cluster}: COLUMN}} to it"
            )
            self.problem("unmapped-entity", message, "cluster")
        if trigger is not None and self.checker.sure("sources", trigger.source):
            if not self.spec.sources[trigger.source].timed:
                message = f"source '{trigger.source}' has no time, so which rows came after assignment is not known; add time: COLUMN to it"
                self.problem("no-time", message, "trigger", "source")
            if self._timed("what came after assignment is not known", "trigger"):
                self._joined(trigger.source, "trigger", "source")

    # ------------------------------------------------------------ adjustment and segments

    def adjustment(self) -> None:
        adjust = self.experiment.adjust
        if adjust is None or not (adjust.cuped or adjust.metrics):
            return
        if not self._timed("what came before exposure is not known", "adjust"):
            return
        endless: list[str] = []
        said: set[str] = set()
        for metric in self._uses() if adjust.cuped else ():
            timeless = self.checker.timeless(metric)
            if self.spec.metrics[metric].kind == "quantile" or timeless in said:
                continue
            if timeless is not None:
                said.add(timeless)
                message = f"'{metric}' reads '{timeless}', which has no time, so its rows before exposure are not known; add time: COLUMN to it"
                self.problem("no-time", message, "adjust")
            elif self.project.adjust_period(metric, self.name) is None:
                endless.append(metric)
        for index, metric in enumerate(adjust.metrics):
            if not self.checker.readable(metric):
                continue
            at = ("adjust", "metrics", index)
            before = len(self.checker.problems)
            self.checker.read_before(metric, *self.checker.place("experiments", self.name, at))
            self._obstacle(metric, *at)
            if len(self.checker.problems) == before and self.project.adjust_period(metric, self.name) is None:
                endless += [] if metric in endless else [metric]
        if endless:
            message = f"how long before exposure to look is not clear, as {_quoted(endless)} {'has' if len(endless) == 1 else 'have'} no window; add period: to adjust, such as {{cuped: true, period: 28d}}"
            self.problem("no-period", message, "adjust")

    def _obstacle(self, metric: str, *inside: Step) -> None:
        obstacle = self.project.unreadable(self.spec.metrics[metric], self.name, self.entity)
        if obstacle is not None:
            self.problem(obstacle.code, f"'{metric}' cannot be read here: {obstacle.message}", *inside)

    def attributes(self) -> None:
        for inside, name in attributes_of(self.experiment):
            if not self.checker.sure("attributes", name):
                continue
            attribute = self.spec.attributes[name]
            if attribute.metric is not None:
                if self.checker.readable(attribute.metric):
                    self._obstacle(attribute.metric, *inside)
                self._timed(f"what '{name}' was before exposure is not known", *inside)
            else:
                origin = attribute.from_
                if origin is not None and not self.checker.sure("sources", origin):
                    continue
                if origin is None or self._joined(origin, *inside):
                    dated = origin is not None and self.spec.sources[origin].timed
                    if attribute.since is not None or dated:
                        self._timed(f"what '{name}' was at exposure is not known", *inside)
            classes = attribute.column is not None or attribute.cuts or attribute.quantiles
            if inside[:2] != ("adjust", "attributes") and not classes:
                message = f"'{name}' is a number; add cuts or quantiles to it, to make classes of it"
                self.problem("no-classes", message, *inside)

    # ------------------------------------------------------------ time

    def _primaries(self) -> list[str]:
        """What the experiment is decided on: its primaries, else its first metric."""
        uses = self.project.metrics_of(self.name)
        return [u.metric for u in uses if u.role == "primary"] or [u.metric for u in uses[:1]]

    def time(self) -> None:
        primaries = self._primaries()
        if not primaries or not all(self.checker.readable(metric) for metric in primaries):
            return
        if self.experiment.over_time is not None and self._timed("the time since exposure is not known", "over_time"):
            self._over_time(primaries, self.experiment.over_time.every)
        if self.experiment.cumulative is not None:
            if self.experiment.starts is None:
                message = "the total is counted from the experiment's start; add starts: DATE to it"
                self.problem("missing-key", message, "cumulative")
            if self._timed("when units were exposed is not known", "cumulative"):
                adding = [m for m in primaries if self.spec.metrics[m].kind in ("count", "sum")]
                if not adding:
                    kind = self.spec.metrics[primaries[0]].kind
                    message = f"only a count or a sum adds up over time, and the primary metric '{primaries[0]}' is a {kind} metric"
                    self.problem("wrong-metric", message, "cumulative")
                self._dated(adding, "cumulative")

    def _dated(self, metrics: Iterable[str], key: str) -> bool:
        """Whether the rows of each metric have a time; a problem where they have none."""
        dated = True
        for metric in metrics:
            timeless = self.checker.timeless(metric)
            if timeless is not None:
                dated = False
                message = f"'{metric}' reads '{timeless}', which has no time, so the step of its rows is not known; add time: COLUMN to it"
                self.problem("no-time", message, key)
        return dated

    def _over_time(self, primaries: list[str], every: timedelta) -> None:
        stepped = [m for m in primaries if self.spec.metrics[m].kind in STEPPED]
        if not stepped:
            message = f"the primary metric '{primaries[0]}' is a {self.spec.metrics[primaries[0]].kind} metric, which is not read step by step; name a {_series(STEPPED)} metric as primary"
            self.problem("wrong-metric", message, "over_time")
            return
        if not self._dated(stepped, "over_time"):
            return
        windows = {metric: self.project.window_of(metric, self.name) for metric in stepped}
        several = [m for m, window in windows.items() if window is not None and window >= 2 * every]
        for metric in several:
            window = windows[metric]
            assert window is not None
            if window // every > MOST_STEPS:
                message = f"{format_duration(every)} makes {window // every:,} steps of the {format_duration(window)} of '{metric}', and at most {MOST_STEPS} are read; take longer steps"
                self.problem("bad-value", message, "over_time", "every")
        if not several:
            first = windows[stepped[0]]
            if first is None:
                message = f"'{stepped[0]}' has no window to divide into steps; add window: to it or to the experiment"
            else:
                message = f"the window of '{stepped[0]}' is {format_duration(first)}, which does not hold two steps of {format_duration(every)}; take shorter steps or a longer window"
            self.problem("bad-value", message, "over_time", "every")

    # ------------------------------------------------------------ paths and other experiments

    def cannibalisation(self) -> None:
        paths = self.experiment.cannibalisation
        if paths is None or not self.checker.sure("sources", paths.within):
            return
        self._joined(paths.within, "cannibalisation", "within")
        if self.source.timed and not self.spec.sources[paths.within].timed:
            message = f"source '{paths.within}' has no time, so its rows before exposure would count too; add time: COLUMN to it"
            self.problem("no-time", message, "cannibalisation", "within")

    def interactions(self) -> None:
        for index, other in enumerate(self.experiment.interactions):
            if other == self.name or not self.checker.sure("experiments", other):
                continue
            declared = self.spec.experiments[other]
            entity = self.project.find_entity(other)
            if not self.checker.source_sure(declared.assignment.source) or entity is None:
                continue
            at = ("interactions", index)
            if declared.period is not None:
                self.problem("bad-value", f"'{other}' is a switchback, whose units keep no arm to be crossed with", *at)
            elif entity != self.entity:
                message = f"'{other}' compares units of {entity}, and this experiment units of {self.entity}"
                self.problem("wrong-entity", message, *at)
            else:
                self._joined(self.project.source_of(other)[0], *at)


def _series(words: Iterable[str]) -> str:
    listed = list(words)
    return " or ".join(filter(None, (", ".join(listed[:-1]), listed[-1])))


def _quoted(names: Iterable[str]) -> str:
    listed = [f"'{name}'" for name in names]
    return " and ".join(filter(None, (", ".join(listed[:-1]), listed[-1])))


def _arm(arm: str) -> str:
    """An arm as it is written in an amount or in split."""
    return arm if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", arm) and len(arm) <= 60 else shown(arm)


def _proportions(split: Mapping[str, float]) -> str:
    total = sum(split.values())
    return ", ".join(f"{_arm(arm)} {share / total:.1%}" for arm, share in split.items())


def _before(end: datetime | None, start: datetime | None, zone: str) -> bool:
    if end is None or start is None:
        return False
    first, last = (m if m.tzinfo else m.replace(tzinfo=ZoneInfo(zone)) for m in (start, end))
    return last < first

"""What one declaration says of another: every name is declared, and what is to be read together can be.

An entry that has problems of its own is ``doubtful``: what it lacks may only be misspelt, so nothing is concluded from that.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

from payoff.errors import Problem
from payoff.spec.nouns import Claim, ConversionMetric, Experiment, Metric, Source, hint, shown, sources_of

if TYPE_CHECKING:
    from payoff.spec.amount import Effect
    from payoff.spec.loader import LoadedProject
    from payoff.spec.yamlfile import Step, Steps

Declared = Mapping[str, set[str]]


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
    checker = _Checker(project, declared, doubtful)
    checker.project_keys()
    for name, source in project.spec.sources.items():
        checker.source(("sources", name), source)
    for name, metric in project.spec.metrics.items():
        checker.metric(name, metric)
    for name, experiment in project.spec.experiments.items():
        checker.experiment(name, experiment)
    for name, claim in project.spec.claims.items():
        checker.claim(name, claim)
    for name, report in project.spec.reports.items():
        for index, entry in enumerate(report.show):
            checker.shown_entry(name, index, entry)
    return Found(tuple(checker.problems), tuple(replace(w, severity="warning") for w in checker.warnings))


class _Checker:
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

    def _sound(self, *sections: str) -> bool:
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
            if connection is not None and connection.engine == "duckdb":
                message = (
                    f"'{ledger}' is a duckdb connection, which is only read; the ledger needs engine sqlite or postgres"
                )
                self.problem("wrong-connection", message, "ledger")

    def source(self, steps: Steps, source: Source) -> None:
        """A source, or an assignment written in place."""
        for other in source.links:
            self.known("sources", other, "a source", *steps, "links", other, key=True)
        if source.connection is not None:
            if self.known("connections", source.connection, "a connection", *steps, "connection"):
                connection = self.spec.connections.get(source.connection)
                if connection is not None and connection.engine != "duckdb":
                    message = f"'{source.connection}' is a {connection.engine} connection, which only keeps the ledger; sources are read from duckdb connections"
                    self.problem("wrong-connection", message, *steps, "connection")
                elif connection is not None and connection.path is None:
                    self.problem(
                        "wrong-connection", f"'{source.connection}' has no path to a database", *steps, "connection"
                    )
        elif (source.table is not None or source.sql is not None) and self.project.connection_of(source) is None:
            usable = [n for n, c in self.spec.connections.items() if c.engine == "duckdb" and c.path is not None]
            if usable:
                message = f"several connections could be meant; add connection: {' or '.join(usable)}"
                self.problem("no-connection", message, *steps, "table" if source.table is not None else "sql")
            elif len(self.declared["connections"]) == len(self.spec.connections) and self._sound("connections"):
                message = "no duckdb connection with a path is declared to read this from, such as connections: {main: {engine: duckdb, path: data/acme.duckdb}}"
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
            source for _, source in reads if self.sure("sources", source) and self.spec.sources[source].time is None
        ]
        if metric.window is not None and timeless:
            message = (
                f"source '{timeless[0]}' has no time, so a window cannot be applied to its rows; add time: COLUMN to it"
            )
            self.problem("no-time", message, *steps, "window")
        if isinstance(metric, ConversionMetric) and metric.after is not None:
            for path, source in reads:
                if source in timeless:
                    message = (
                        f"source '{source}' has no time, so what came after what is not known; add time: COLUMN to it"
                    )
                    self.problem("no-time", message, *steps, *path)

    # ------------------------------------------------------------ experiments

    def experiment(self, name: str, experiment: Experiment) -> None:
        steps = ("experiments", name)
        assignment = experiment.assignment
        if experiment.entity is not None:
            self.known_entity(experiment.entity, *steps, "entity")
        self._listed(steps, experiment)
        self._arms(steps, experiment)
        if _before(experiment.ends, experiment.starts, self.spec.timezone):
            self.problem("bad-value", "'ends' comes before 'starts'", *steps, "ends")
        if assignment.source is None:
            self.source((*steps, "assignment"), assignment)
        elif not self.known("sources", assignment.source, "a source", *steps, "assignment", "source"):
            return
        if ("experiments", name) in self.doubtful or not self._source_sure(assignment.source):
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
        if source.time is None and source.one_row_per is None:
            message = (
                "rows of the assignment have no time, so a unit's first exposure is not known; add time: COLUMN"
                " (or one_row_per: ENTITY, where each unit has one row)"
            )
            self.problem("no-time", message, *steps, "assignment", at)
        entity = self.project.find_entity(name)
        if entity is None:
            if not self._sound("defaults", "entities"):
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

    def _source_sure(self, source: str | None) -> bool:
        return source is None or self.sure("sources", source)

    def _metrics(self, experiment: Experiment) -> Iterator[tuple[str, tuple[Step, ...], str]]:
        """(role, steps from the experiment, metric) of every metric listed."""
        if experiment.primary is not None:
            yield "primary", ("primary",), experiment.primary
        for role, names in (("secondary", experiment.secondary), ("guardrails", experiment.guardrails)):
            for index, metric in enumerate(names or ()):
                yield role, (role, index), metric

    def _listed(self, steps: Steps, experiment: Experiment) -> None:
        # Where an item of a list was left out as wrong, the places of those after it have moved: the list's own is given.
        exact = (steps[0], steps[1]) not in self.doubtful
        seen: dict[str, str] = {}
        for role, inside, metric in self._metrics(experiment):
            at = (*steps, *(inside if exact else inside[:1]))
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
            if self.sure("metrics", metric) and all(
                self.sure("sources", s) for _, s in sources_of(self.spec.metrics[metric])
            ):
                obstacle = self.project.unreadable(self.spec.metrics[metric], name, entity)
                if obstacle is not None:
                    message = f"'{metric}' cannot be read here: {obstacle.message}"
                    self.problem(obstacle.code, message, "experiments", name, *inside)
        if not uses and self._sound("sources", "metrics", "entities"):
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
            if read.time is None and read.one_row_per is None:
                message = (
                    f"rows of '{source}', which '{metric}' reads, have no time: those from before exposure count too;"
                    " add time: COLUMN to it (or one_row_per: ENTITY, where each unit has one row)"
                )
                at = listed.get(metric, ())
                self.warnings.append(
                    self.project.positions.problem("no-time", message, "experiments", name, *at, key=not at)
                )

    # ------------------------------------------------------------ claims and reports

    def claim(self, name: str, claim: Claim) -> None:
        from payoff.spec.amount import AmountError, PopulationOf, ValueOf, VolumeOf, parse

        steps = ("claims", name)
        exact = steps not in self.doubtful
        seen: set[str] = set()
        for index, evidence in enumerate(claim.evidence):
            at = (*steps, "evidence", *((index,) if exact else ()))
            self.known("experiments", evidence, "an experiment", *at)
            if evidence in seen:
                self.problem("evidence-twice", f"'{evidence}' stands twice in evidence; name it once", *at)
            seen.add(evidence)
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
            elif isinstance(part, VolumeOf):
                if self.known("sources", part.source, "a source", *at, offset=part.offset):
                    source = self.spec.sources.get(part.source)
                    if source is not None and source.time is None and self.sure("sources", part.source):
                        message = f"source '{part.source}' has no time, so its rows over a period cannot be counted; add time: COLUMN to it"
                        self.problem("no-time", message, *at, offset=part.offset)
            elif self.known("metrics", part.metric, "a metric", *at, offset=part.offset):
                self._effect(claim, part, at)

    def _effect(self, claim: Claim, effect: Effect, at: Steps) -> None:
        """Some evidence measures the effect, and the arm it names is one there is."""
        evidence = claim.evidence
        if not self.sure("experiments", *evidence) or not self.sure("metrics", effect.metric):
            return
        assigned = [self.spec.experiments[name].assignment for name in evidence]
        if not all(self._source_sure(assignment.source) for assignment in assigned):
            return
        measured = [name for name in evidence if effect.metric in {use.metric for use in self.project.metrics_of(name)}]
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
        match = re.fullmatch(r"(claims|experiments|metrics)\.(.+)", entry)
        if match is None:
            section = entry.split(".", maxsplit=1)[0]
            near = hint(section, ("claims", "experiments", "metrics")) if "." in entry else ""
            message = f"{shown(entry)} cannot be shown in this version{near}"
            self.problem(
                "unknown-entry", message + ("" if near else "; name claims.X, experiments.X or metrics.X"), *at
            )
            return
        called = {"claims": "a claim", "experiments": "an experiment", "metrics": "a metric"}[match[1]]
        self.known(match[1], match[2], called, *at, offset=len(match[1]) + 1)


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

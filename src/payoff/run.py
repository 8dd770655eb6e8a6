"""One run, end to end: validate everything, plan the reads, fetch, answer, price, store.

`Project` is what `payoff.load` returns and what every verb of the command line calls; `Run` is what came out.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, partial
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from payoff import __version__, registry
from payoff import claims as pricing
from payoff.errors import DataError, DefinitionError, Problem, UsageError, did_you_mean
from payoff.ledger import ABSENT, SECTIONS, ChainReport, Difference, Ledger, StoredRun, compare, context_changes
from payoff.methods.experiment import AttributeUse, Beside, ExperimentDesign, MetricUse, before_name
from payoff.result import Look, Provenance, Refusal, Result
from payoff.spec import amount as amounts
from payoff.spec import loader
from payoff.spec.journeys import ArmsOf, JourneyDesign
from payoff.spec.loader import LoadedProject
from payoff.spec.nouns import (
    Attribute,
    Attribution,
    Connection,
    CountMetric,
    DuckDBConnection,
    Event,
    Experiment,
    Funnel,
    Journey,
    Outcome,
    PostgresConnection,
    Source,
    Spend,
    SQLiteConnection,
    SumMetric,
    format_duration,
)
from payoff.warehouse import cohorts, credit, funnels, fused, fused_journeys, paths, prepared, state
from payoff.warehouse.arms import ArmsReader
from payoff.warehouse.dialect import CannotRun
from payoff.warehouse.doctor import Finding, examine
from payoff.warehouse.engine import Engine, Progress
from payoff.warehouse.events import AHEAD_US, EventProfile, before_and_after
from payoff.warehouse.identity import report as stitching
from payoff.warehouse.layout import sources_of
from payoff.warehouse.needs import ArmsData, ArmsNeed, SourceProfile
from payoff.warehouse.query import ExpressionError, select_only
from payoff.warehouse.sources import Catalog, from_us, to_us
from payoff.warehouse.statements import Step
from payoff.warehouse.volumes import rows_in, units_in
from payoff.warehouse.walks import Walks, warm

if TYPE_CHECKING:
    import pyarrow as pa

    from payoff.methods.experiment.power import Plan

DEFAULT_SEED = 1

KINDS = {
    "experiments": "an experiment",
    "claims": "a claim",
    "programmes": "a programme",
    "attribution": "an attribution",
    "funnels": "a funnel",
    "cohorts": "a cohort",
    "paths": "paths",
}
"""What can be asked for: the section it is declared in, and what one of it is called."""
_JOURNEYS: dict[str, tuple[str, Any]] = {
    "attribution": ("attribution", credit),
    "funnels": ("funnel", funnels),
    "cohorts": ("cohort", cohorts),
    "paths": ("path", paths),
}
"""Section -> the method that answers it, and the kernel (``plan``, ``read``) that counts for it."""
_WALKED = (funnels, cohorts)
"""The kernels that take one walk over prepared rows, which ``begin`` plans, so that it is made for several at once."""
_ELSEWHERE = "Read its sources from a duckdb connection, or from another engine."
_A_THING = "an experiment, a claim, a programme or a journey of this project"

_Counts = tuple[
    Mapping[tuple[str, timedelta], pricing.Volume], Mapping[tuple[str, timedelta | None], pricing.Population]
]


class MissingColumns(DefinitionError):
    """Definitions that name columns the data does not have: the place is in a file, the fault may be in the data."""

    exit_code = 3


@dataclass(frozen=True)
class Run:
    """What a run found. ``to_dict`` is the machine-readable contract; ``exit_code`` is 0, or 1 where something failed."""

    run_id: str
    project: str
    currency: str
    alpha: float
    started: str
    finished: str
    as_of: str | None
    seed: int
    definition_hash: str
    data_fingerprint: str
    versions: Mapping[str, str]
    results: tuple[Result, ...]
    claims: tuple[pricing.ClaimResult, ...]
    refusals: tuple[Refusal, ...]
    reports: Mapping[str, Mapping[str, Any]]
    plan: tuple[Step, ...]
    warnings: tuple[Problem, ...] = ()
    today: str = ""

    def failures(self) -> list[str]:
        """What makes the exit code 1: failed checks, breached guardrails, unmet decision rules, and what was refused whole."""
        out = [f"{r.name}: check {c.name} failed" for r in self.results for c in r.failed()]
        out += [
            f"{r.name}: guardrail {m.metric} breached ({m.contrast})"
            for r in self.results
            for m in r.readings
            if m.state == "breached"
        ]
        out += [f"{c.name}: the decision rule is not met" for c in self.claims if c.decision and not c.decision.met]
        out += [f"{r.name}: refused" for r in self.refusals]
        return out

    @property
    def exit_code(self) -> int:
        return 1 if self.failures() else 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "project": self.project,
            "run_id": self.run_id,
            "currency": self.currency,
            "alpha": self.alpha,
            "started": self.started,
            "finished": self.finished,
            "as_of": self.as_of,
            "today": self.today,
            "seed": self.seed,
            "definition_hash": self.definition_hash,
            "data_fingerprint": self.data_fingerprint,
            "versions": dict(self.versions),
            "results": [r.to_dict() for r in self.results],
            "claims": [c.to_dict() for c in self.claims],
            "refusals": [r.to_dict() for r in self.refusals] + [r.to_dict() for x in self.results for r in x.refusals],
            "failures": self.failures(),
            "reports": {name: dict(report) for name, report in self.reports.items()},
            "plan": [step.to_dict() for step in self.plan],
            "warnings": [str(w) for w in self.warnings],
        }

    def _repr_html_(self) -> str:
        from payoff.report.html import snippet

        return snippet(self.to_dict())

    def __str__(self) -> str:
        from payoff.report.terminal import text

        return text(self.to_dict())


@dataclass(frozen=True)
class Answer:
    """One experiment's or claim's outcome with ways to look at it. ``outcome`` is the Result, ClaimResult or Refusal itself."""

    outcome: Result | pricing.ClaimResult | Refusal
    run: Run

    def to_dict(self) -> dict[str, Any]:
        return self.outcome.to_dict()

    def to_arrow(self) -> pa.Table:
        """Estimates (of a claim: its inputs) as a table, one row each."""
        import pyarrow as pa

        if isinstance(self.outcome, Refusal):
            return pa.Table.from_pylist([self.outcome.to_dict()])
        rows = self.to_dict()["estimates" if isinstance(self.outcome, Result) else "inputs"]
        # labels differ by estimand (a period, a position), and a period may be a number or a day
        keys = dict.fromkeys(k for row in rows for k in row if not isinstance(row[k], dict | list))
        columns = {k: [row.get(k) for row in rows] for k in keys}
        mixed = {k for k, of in columns.items() if len({isinstance(v, str) for v in of if v is not None}) > 1}
        return pa.table({k: [str(v) if k in mixed and v is not None else v for v in of] for k, of in columns.items()})

    def to_frame(self) -> Any:
        """The same as a pandas DataFrame. Raises MissingExtra where pandas is not installed."""
        try:
            import pandas  # noqa: F401
        except ImportError:
            from payoff.errors import MissingExtra

            raise MissingExtra("frames", "to_frame()") from None
        return self.to_arrow().to_pandas()

    def sql(self) -> str:
        """The statements that were executed, in order."""
        provenance = self.outcome.provenance if isinstance(self.outcome, Result) else None
        steps = provenance.sql if provenance else tuple((s.name, s.sql) for s in self.run.plan)
        return "\n\n".join(f"-- {name}\n{text};" for name, text in steps)

    def explain(self) -> str:
        """The plan in words: what was read, for what."""
        return "\n".join(describe(step) for step in self.run.plan)

    def plot(self, what: str | None = None) -> str:
        """The effects against zero (of a claim: its bridge from amount to net; of a journey: its leading picture) as SVG text.

        ``what`` asks for another: of an experiment "segments", "over_time", "cumulative", "cannibalisation", "precision" or
        "peeking"; of a journey "funnel", "retention", "revenue", "lifecycle", "paths", "flow", "credit" or "reconciliation".
        Raises UsageError where the outcome has none.
        """
        from payoff.report.html import chart

        return chart(self._only(), what)

    def _only(self) -> dict[str, Any]:
        """The run's dict with nothing but this outcome in it."""
        whole = self.run.to_dict()
        mine = self.to_dict()
        keep = {"results": Result, "claims": pricing.ClaimResult, "refusals": Refusal}
        return {
            **whole,
            **{key: [mine] if isinstance(self.outcome, kind) else [] for key, kind in keep.items()},
            "reports": {},
        }

    def _repr_html_(self) -> str:
        from payoff.report.html import snippet

        return snippet(self._only())

    def __str__(self) -> str:
        from payoff.report.terminal import text

        return text(self._only())


@dataclass(frozen=True, slots=True)
class Verified:
    """One stored figure held against the same one computed again; no ``differences``: they are equal."""

    name: str
    kind: str
    differences: tuple[Difference, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "equal": not self.differences,
            "differences": [d.to_dict() for d in self.differences],
        }


@dataclass(frozen=True, slots=True)
class Verification:
    """What ``Project.verify`` found. ``context`` says what changed around the figures: definitions, data, versions.

    Where the chain is broken nothing was computed again, and ``run_id`` and ``at`` are None.
    """

    chain: ChainReport
    run_id: str | None = None
    at: str | None = None
    context: tuple[str, ...] = ()
    figures: tuple[Verified, ...] = ()

    @property
    def equal(self) -> bool:
        return self.chain.ok and not any(figure.differences for figure in self.figures)

    def to_dict(self) -> dict[str, Any]:
        return {
            "equal": self.equal,
            "run_id": self.run_id,
            "at": self.at,
            "chain": self.chain.to_dict(),
            "context": list(self.context),
            "figures": [figure.to_dict() for figure in self.figures],
        }


class Asked:
    """An experiment or a claim of a project: ``run()`` answers it, ``explain()`` shows the plan without running it."""

    def __init__(self, project: Project, kind: str, name: str) -> None:
        self._project, self.kind, self.name = project, kind, name

    def run(self, seed: int = DEFAULT_SEED, record: bool = True) -> Answer:
        full = f"{self.kind}.{self.name}"
        run = self._project.run([full], seed=seed, record=record)
        outcomes: Iterator[Result | pricing.ClaimResult | Refusal] = iter((*run.results, *run.claims, *run.refusals))
        return Answer(next(o for o in outcomes if o.name == full), run)

    def explain(self) -> str:
        return "\n".join(describe(step) for step in self._project.plan([f"{self.kind}.{self.name}"]))

    def power(self, **options: Any) -> Plan:
        """How many units and weeks it takes, before it runs: `Project.power` of this experiment, with its options."""
        return self._project.power(f"{self.kind}.{self.name}", **options)

    def __repr__(self) -> str:
        return f"<{self.kind}.{self.name} of {self._project.spec.project}: call run()>"


def describe(step: Step) -> str:
    """One plan step in a line or two."""
    reads = f" <- {step.reads} ({', '.join(step.columns)})" if step.reads else ""
    serves = f"\n    serves {', '.join(step.serves)}" if step.serves else ""
    return f"{step.name}{reads}\n    {step.purpose}{serves}"


class Project:
    """A project with its definitions loaded and every reference checked. Data is read only when something is asked."""

    def __init__(self, loaded: LoadedProject) -> None:
        self.loaded = loaded
        self.stale: dict[str, str] = {}
        """Relations whose prepared copy was not read by what was asked so far: why, in a clause."""

    @classmethod
    def load(cls, path: str | Path = ".") -> Project:
        return cls(loader.load(Path(path)))

    @property
    def spec(self) -> Any:
        return self.loaded.spec

    @property
    def root(self) -> Path:
        return self.loaded.root

    @cached_property
    def experiments(self) -> dict[str, Asked]:
        return {name: Asked(self, "experiments", name) for name in self.loaded.spec.experiments}

    @cached_property
    def programmes(self) -> dict[str, Asked]:
        return {name: Asked(self, "programmes", name) for name in self.loaded.spec.programmes}

    @cached_property
    def claims(self) -> dict[str, Asked]:
        return {name: Asked(self, "claims", name) for name in self.loaded.spec.claims}

    @cached_property
    def attribution(self) -> dict[str, Asked]:
        return {name: Asked(self, "attribution", name) for name in self.loaded.spec.attribution}

    @cached_property
    def funnels(self) -> dict[str, Asked]:
        return {name: Asked(self, "funnels", name) for name in self.loaded.spec.funnels}

    @cached_property
    def cohorts(self) -> dict[str, Asked]:
        return {name: Asked(self, "cohorts", name) for name in self.loaded.spec.cohorts}

    @cached_property
    def paths(self) -> dict[str, Asked]:
        return {name: Asked(self, "paths", name) for name in self.loaded.spec.paths}

    def __repr__(self) -> str:
        spec = self.loaded.spec
        return f"<Payoff project {spec.project}: {len(spec.experiments)} experiments, {len(spec.claims)} claims>"

    # ---------------------------------------------------------------- what was asked

    def _asked(self, names: Sequence[str] | None) -> dict[str, list[str]]:
        """Names by kind (the keys of ``KINDS``) for names such as ``x``, ``experiments.x`` or ``claims.y``; everything for None.

        A claim brings its evidence and what it is compared with, a programme its experiments.
        """
        spec = self.loaded.spec
        kinds: dict[str, Mapping[str, Any]] = {kind: getattr(spec, kind) for kind in KINDS}
        asked: dict[str, list[str]] = {kind: [] if names else list(known) for kind, known in kinds.items()}
        for name in names or ():
            kind, _, bare = name.rpartition(".")
            if kind not in ("", *kinds):
                raise UsageError(f"'{name}' is not {_A_THING}")
            found = [k for k in ([kind] if kind else kinds) if bare in kinds[k]]
            if len(found) > 1:
                raise UsageError(
                    f"'{bare}' is {' and '.join(KINDS[k] for k in found)}; say {' or '.join(f'{k}.{bare}' for k in found)}"
                )
            if not found:
                known = [n for entries in kinds.values() for n in entries]
                raise UsageError(f"'{name}' is not {_A_THING}{did_you_mean(bare, known)}")
            asked[found[0]].append(bare)
        for claim in asked["claims"]:
            for evidence in (*spec.claims[claim].evidence, *spec.claims[claim].compare):
                kind, _, bare = evidence.rpartition(".")
                asked[kind or "experiments"].append(bare)
        for programme in asked["programmes"]:
            declared = spec.programmes[programme]
            asked["experiments"] += [*declared.experiments, *([declared.holdout] if declared.holdout else [])]
        return {kind: list(dict.fromkeys(chosen)) for kind, chosen in asked.items()}

    def _designs(
        self, experiments: Iterable[str], looks: Mapping[str, tuple[Look, ...]] | None = None
    ) -> list[ExperimentDesign]:
        """Those asked for, then those that are only read because one of them is to be crossed with these."""
        asked = list(experiments)
        beside = [o for name in asked for o in self.loaded.spec.experiments[name].interactions if o not in asked]
        designs = [self._design(name, (looks or {}).get(name, ())) for name in asked]
        return [*designs, *(replace(self._design(o, ()), only_beside=True) for o in dict.fromkeys(beside))]

    def _design(self, name: str, looks: tuple[Look, ...]) -> ExperimentDesign:
        spec, loaded = self.loaded.spec, self.loaded
        experiment = spec.experiments[name]
        source_name, source = loaded.source_of(name)
        cuped = experiment.adjust is not None and experiment.adjust.cuped
        uses = tuple(
            MetricUse(
                use.metric,
                spec.metrics[use.metric],
                use.role,
                loaded.window_of(use.metric, name),
                loaded.adjust_period(use.metric, name) if cuped else None,
            )
            for use in loaded.metrics_of(name)
        )
        if not uses:
            raise UsageError(f"experiments.{name} reads no metric; name a primary, or define metrics over its units")
        measured = {use.name for use in uses}
        crosses: set[tuple[str, str]] = set()
        for claim in spec.claims.values():
            if name in claim.evidence:
                priced = [m for m, _ in amounts.parse(claim.amount).effects if m in measured]
                crosses |= set(combinations(sorted(set(priced)), 2))
        return ExperimentDesign(
            name=name,
            experiment=experiment,
            source=source_name,
            entity=loaded.entity_of(name),
            metrics=uses,
            zone=spec.timezone,
            currency=spec.currency,
            alpha=experiment.alpha or spec.defaults.alpha,
            min_cell=spec.defaults.min_cell,
            timed=source.timed,
            crosses=tuple(sorted(crosses)),
            default_window=experiment.window or spec.defaults.window,
            now_us=int(datetime.now(UTC).timestamp() * 1_000_000),
            attributes=self._attributes_of(experiment, name),
            beside=tuple(
                Beside(other, spec.experiments[other].assignment.control_arm) for other in experiment.interactions
            ),
            looks=looks,
        )

    def _attributes_of(self, experiment: Experiment, name: str) -> dict[str, AttributeUse]:
        """Every attribute that the adjustment and segments of the experiment called ``name`` refer to."""
        spec, loaded = self.loaded.spec, self.loaded
        adjust = experiment.adjust
        wanted = [*experiment.segments]
        out: dict[str, AttributeUse] = {}
        if adjust is not None:
            wanted += [*adjust.attributes, *([adjust.post_stratify] if adjust.post_stratify else [])]
            for metric in adjust.metrics:
                period = loaded.adjust_period(metric, name)
                known = Attribute(metric=metric, period=period)
                out[before_name(metric)] = AttributeUse(before_name(metric), known, "", spec.metrics[metric])
        for attribute in dict.fromkeys(wanted):
            known, source = loaded.attribute(attribute, name)
            out[attribute] = AttributeUse(
                attribute, known, source, spec.metrics[known.metric] if known.metric is not None else None
            )
        return out

    def _journey(self, kind: str, name: str) -> JourneyDesign:
        """A journey with every default resolved."""
        spec, loaded = self.loaded.spec, self.loaded
        declared = getattr(spec, kind)[name]
        arms = None
        if isinstance(declared, Attribution):
            experiment = declared.between_arms_of or declared.reconcile_with
            if experiment is not None:
                of = spec.experiments[experiment]
                arms = ArmsOf(
                    experiment,
                    loaded.source_of(experiment)[0],
                    of.assignment,
                    None if of.starts is None else to_us(of.starts, spec.timezone),
                    None if of.ends is None else to_us(of.ends, spec.timezone),
                )
        return JourneyDesign(
            name=f"{kind}.{name}",
            declared=declared,
            entity=loaded.journey_entity(kind, name),
            zone=spec.timezone,
            currency=spec.currency,
            alpha=spec.defaults.alpha,
            min_cell=spec.defaults.min_cell,
            now_us=int(datetime.now(UTC).timestamp() * 1_000_000),
            starts_us=None if declared.starts is None else to_us(declared.starts, spec.timezone),
            ends_us=None if declared.ends is None else to_us(declared.ends, spec.timezone),
            touchpoints={t: spec.touchpoints[t] for t in getattr(declared, "touchpoints", ())},
            arms=arms,
        )

    def _rereads(self, design: JourneyDesign, catalog: Catalog) -> list[ExperimentDesign]:
        """The experiments that an attribution is held against, each measuring what is attributed: its outcomes since exposure.

        They are read without end, so that a total of the treated is that of their whole time in the experiment.
        """
        declared = design.declared
        if not isinstance(declared, Attribution):
            return []
        tested = [t.experiment for t in design.touchpoints.values() if t.experiment is not None]
        wanted = ([declared.reconcile_with] if declared.reconcile_with is not None else []) + tested
        out = []
        for experiment in dict.fromkeys(wanted):
            of = self.loaded.spec.experiments[experiment]
            metrics = tuple(
                MetricUse(
                    outcome.measured_as(name),
                    self._measured(outcome, design, catalog),
                    "primary",
                    None,
                    of.adjust.period if of.adjust is not None and of.adjust.cuped else None,
                )
                for name, outcome in declared.outcomes.items()
            )
            plain = of.model_copy(
                update={
                    "primary": tuple(m.name for m in metrics),
                    "secondary": None,
                    "guardrails": None,
                    "window": None,
                    "target": None,
                    "stop": None,
                    "segments": (),
                    "over_time": None,
                    "cumulative": None,
                    "cannibalisation": None,
                    "interactions": (),
                    "bayes": None,
                }
            )
            base = self._design(experiment, ())
            wanted_attributes = self._attributes_of(plain, experiment)
            out.append(
                replace(
                    base,
                    name=reread_name(design.name, experiment),
                    experiment=plain,
                    metrics=metrics,
                    crosses=(),
                    attributes=wanted_attributes,
                    beside=(),
                    now_us=design.now_us,
                )
            )
        return out

    def _measured(self, outcome: Outcome, design: JourneyDesign, catalog: Catalog) -> CountMetric | SumMetric:
        """What is attributed as a metric: rows of the event, or their value, in the attribution's own span of time."""
        view = catalog.view(outcome.event.source)
        parts = [f"({outcome.event.where})"] if outcome.event.where is not None else []
        assert view.clock is not None
        time = view.clock.us.sql("duckdb")
        parts += [f"{time} >= {design.starts_us}"] if design.starts_us is not None else []
        parts += [f"{time} < {design.ends_us}"] if design.ends_us is not None else []
        parts.append(
            f"{time} <= {design.now_us + AHEAD_US}"
        )  # later rows are not credited, so they are not measured either
        where = " AND ".join(parts)
        if outcome.value is None:
            return CountMetric(kind="count", **{"from": outcome.event.source}, where=where)
        return SumMetric(
            kind="sum", **{"from": outcome.event.source}, column=outcome.value, where=where, unit=design.currency
        )

    def _looks(self, experiments: Iterable[str], before: int | None = None) -> dict[str, tuple[Look, ...]]:
        """Who read each experiment when, as the ledger tells it: runs before entry ``before`` (default: all), oldest first."""
        spec = self.loaded.spec
        if spec.ledger is None and not self._ledger_path.exists():
            return {}
        with self.ledger(read_only=True) as ledger:
            return {
                name: tuple(
                    Look(seen.at, seen.actor, seen.payload["provenance"]["as_of"], _units_seen(seen.payload))
                    for seen in ledger.looks(f"experiments.{name}", project=spec.project, before=before)
                )
                for name in experiments
            }

    # ---------------------------------------------------------------- reading

    def prepare(self, sources: Sequence[str] | None = None, progress: Progress | None = None) -> list[prepared.Report]:
        """Copies of the rows of ``sources``, clustered by unit and time, that later runs read while they are fresh. Default: of every
        source with a time and a unit that something declared here reads.

        Copies that are fresh stay as they are. Raises UsageError for an unknown source.
        """
        wanted = self._event_sources() if sources is None else self._known_sources(sources)
        known = self.loaded.sources()

        def origin(source: Source) -> tuple[object, ...]:
            return source.file, source.table, source.sql, self.loaded.connection_of(source)

        origins = {origin(known[name]) for name in wanted}
        over = [n for n, s in known.items() if n in wanted or (s.sessions is None and origin(s) in origins)]
        with self.catalog(over, progress, as_stored=True) as catalog:
            if not catalog.engine.dialect.native:
                raise UsageError(
                    "only sources on DuckDB and in files are prepared: other engines read where the rows are"
                )
            return prepared.prepare(catalog, wanted, progress)

    def drop_prepared(self, sources: Sequence[str] | None = None) -> list[prepared.Report]:
        """Remove the prepared copies of ``sources`` (default: all), and what runs kept of having counted them."""
        state.drop(state.home(self.root))
        if sources is None:
            return prepared.drop(self.root)
        with self.catalog(self._known_sources(sources), as_stored=True) as catalog:
            keys = {catalog.stored(name).key for name in catalog.names}
        return prepared.drop(self.root, keys)

    def _known_sources(self, names: Iterable[str]) -> list[str]:
        known = self.loaded.sources()
        for name in names:
            if name not in known:
                raise UsageError(f"there is no source '{name}'{did_you_mean(name, known)}")
        return list(dict.fromkeys(names))

    def _event_sources(self) -> list[str]:
        """The sources with a time and a unit that experiments and journeys read; all such where nothing is declared that reads."""
        asked, known = self._asked(None), self.loaded.sources()
        found = self._sources_of([self._design(name, ()) for name in asked["experiments"]])
        for kind in _JOURNEYS:
            for name in asked[kind]:
                found += self.loaded.journey_sources(f"{kind}.{name}")
        read = set(self.loaded.needed_sources(dict.fromkeys(found or known)))
        entities = list(self.loaded.spec.entities)
        return [
            name
            for name, source in known.items()
            if name in read
            and source.sessions is None
            and source.time is not None
            and (source.entity or any(self.loaded.unit_column(source, entity) for entity in entities))
        ]

    def catalog(
        self, sources: Iterable[str] | None = None, progress: Progress | None = None, *, as_stored: bool = False
    ) -> Catalog:
        """The sources named (default: all), opened read-only; with ``as_stored`` no prepared copy is read. Use as a context manager."""
        spec = self.loaded.spec
        known = self.loaded.sources()
        wanted = known if sources is None else {name: known[name] for name in sources}
        used = {n for s in wanted.values() if (n := self.loaded.connection_of(s)) is not None}
        connections: dict[str, Connection] = {}
        alone = all(spec.connections[n].engine == "duckdb" for n in used)
        for n, c in spec.connections.items():
            if n in used:
                connections[n] = c
            elif alone and isinstance(c, DuckDBConnection) and (not used or c.path is None):
                connections[n] = replace_path(c)  # its settings hold for files too
        return Catalog(wanted, spec.entities, connections, self.root, spec.timezone, progress, as_stored)

    def check_sql(self, catalog: Catalog, sources: Iterable[str]) -> None:
        """Every SQL expression over ``sources`` against their columns. Raises with the place of each that fails."""
        problems: list[Problem] = []
        codes: set[str] = set()
        wanted = set(sources)
        for name in sorted(wanted):
            text = self.loaded.sources()[name].sql
            if text is not None:
                try:
                    select_only(text)
                except ExpressionError as error:
                    codes.add(error.code)
                    problems.append(self._problem((*self.loaded.steps_of(name), "sql"), error))
        if problems:
            raise DefinitionError(problems)
        for piece in self.loaded.sql_fragments():
            readers = [piece.source] if piece.source is not None else self._readers_of_id(piece.path, wanted)
            for source in readers:
                if source not in wanted:
                    continue
                try:
                    catalog.view(source).scalar(piece.text)
                except ExpressionError as error:
                    codes.add(error.code)
                    problem = self._problem(piece.path, error)
                    if piece.attribute is not None and error.code == "unknown-column":
                        known = [*self.loaded.spec.attributes, *catalog.view(source).relation.columns]
                        message = f"'{piece.attribute}' is neither an attribute nor a column of source '{source}'"
                        problem = replace(problem, message=message + did_you_mean(piece.attribute, known))
                    problems.append(problem)
        if problems:
            raise (MissingColumns if codes == {"unknown-column"} else DefinitionError)(problems)

    def _readers_of_id(self, path: loader.Steps, sources: Iterable[str]) -> list[str]:
        """The sources that use the id of the entity at ``path``, because they do not map that entity themselves."""
        entity = str(path[1])
        known = self.loaded.sources()
        spec = self.loaded.spec
        costs = [*(c.cost for c in spec.cohorts.values()), *(t.cost for t in spec.touchpoints.values())]
        spending = {cost.source for cost in costs if isinstance(cost, Spend)}  # money spent is nobody's
        own = [s for s in sources if known[s].sessions is None and s not in spending]  # sessions know their unit
        return [s for s in own if entity not in known[s].entity and self.loaded.declares(known[s], entity)]

    def _problem(self, steps: loader.Steps, error: ExpressionError) -> Problem:
        file, line, column = self.loaded.positions.of(*steps)
        return Problem(file, line, column, error.code, str(error))

    def _sources_of(self, designs: Sequence[ExperimentDesign]) -> list[str]:
        method = registry.method("experiment")
        needs = [method.needs(design) for design in designs]
        return list(dict.fromkeys(s for need in needs for s in (need.source, *sorted(sources_of(need)))))

    def named(self, names: Sequence[str] | None = None) -> list[str]:
        """What a run of these would read data for, each by its full name."""
        asked = self._asked(names)
        return [f"{kind}.{name}" for kind in ("experiments", *_JOURNEYS) for name in asked[kind]]

    def plan(self, names: Sequence[str] | None = None) -> list[Step]:
        """The reads that a run would do, in order, with their SQL. Looks at columns, reads no rows."""
        asked = self._asked(names)
        designs = self._designs(asked["experiments"])
        journeys = [self._journey(kind, name) for kind in _JOURNEYS for name in asked[kind]]
        if not designs and not journeys:
            return []
        method = registry.method("experiment")
        with self._reading(designs, journeys, ()) as catalog:
            steps = catalog.prepare(run=False)
            designs = [*designs, *(d for j in journeys for d in self._rereads(j, catalog))]
            if designs:
                steps += ArmsReader(catalog, [method.needs(d) for d in designs]).plan()
            walks = Walks(catalog.engine)
            for journey in journeys:
                steps += _planned(catalog, journey, walks)
            return [catalog.told(step) for step in walks.shared(steps)]

    @contextmanager
    def _reading(
        self,
        designs: Sequence[ExperimentDesign],
        journeys: Sequence[JourneyDesign],
        extra: Iterable[str],
        progress: Progress | None = None,
    ) -> Iterator[Catalog]:
        """A catalog of all that these read, every SQL expression over it checked."""
        sources = self._sources_of(designs)
        for journey in journeys:
            sources += self.loaded.journey_sources(journey.name)
            for experiment in _held_against(journey):
                sources += self._sources_of([self._design(experiment, ())])
        sources = self.loaded.needed_sources(dict.fromkeys([*sources, *extra]))
        with self.catalog(sources, progress) as catalog:
            self.check_sql(catalog, sources)
            self.stale.update(catalog.stale)
            yield catalog

    def run(
        self,
        names: Sequence[str] | None = None,
        *,
        seed: int = DEFAULT_SEED,
        record: bool = True,
        today: date | None = None,
        progress: Progress | None = None,
        actor: str | None = None,
        command: str | None = None,
        looks_before: int | None = None,
        now: datetime | None = None,
        full: bool = False,
    ) -> Run:
        """Answer the experiments and claims named (default: all), and append the run to the ledger unless ``record`` is off.

        Earlier looks at an experiment are read from the ledger; ``looks_before`` takes those before that entry only.
        Rows dated after ``now`` (default: the clock) are in the future, and enter nothing. Of prepared sources a run counts what is
        new since the last one, to the same figures; ``full`` counts all again.
        """
        spec = self.loaded.spec
        started = datetime.now(UTC)
        today = today or started.date()
        if record:
            self.ledger().close()  # one that cannot be opened is told before the work, not after it
        asked = self._asked(names)
        claim_names, programmes = asked["claims"], asked["programmes"]
        designs = self._designs(asked["experiments"], self._looks(asked["experiments"], looks_before))
        journeys = [self._journey(kind, name) for kind in _JOURNEYS for name in asked[kind]]
        # to the second, as a run is kept, so that it can be verified at the same moment
        at = round((now or started.replace(microsecond=0)).timestamp() * 1_000_000)
        designs = [replace(design, now_us=at) for design in designs]
        journeys = [replace(journey, now_us=at) for journey in journeys]
        outcomes: dict[str, Result | Refusal] = {}
        plan: tuple[Step, ...] = ()
        fingerprints: dict[str, str] = {}
        as_of: list[int] = []
        counts: dict[str, _Counts | Refusal] = {}
        versions = _versions()
        read = _Kept(fingerprints, as_of, self.loaded.definition_hash, seed, versions)
        if designs or journeys:
            method = registry.method("experiment")
            extra = [v for c in claim_names for v, _ in amounts.parse(spec.claims[c].amount).volumes]
            with self._reading(designs, journeys, extra, progress) as catalog:
                engine = catalog.engine
                read.engine = engine
                if catalog.prepared:
                    warm(lambda: [*(fused.loops() if designs else []), *(fused_journeys.loops() if journeys else [])])
                needed: set[str] | None = None
                if not engine.dialect.native:
                    versions[engine.dialect.name] = engine.version
                    cannot, needed = self._cannot(catalog, designs, journeys)
                    outcomes |= cannot
                    designs = [d for d in designs if d.name not in cannot]
                    journeys = [j for j in journeys if j.name not in cannot]
                steps = catalog.prepare(run=True, only=needed)
                walks = Walks(engine)
                begun = {j.name: _begun(catalog, j, walks, full) for j in journeys}
                rereads = {j.name: self._rereads(j, catalog) for j in journeys}
                wanted = [*designs, *(d for held in rereads.values() for d in held)]
                fetched: Mapping[str, ArmsData] = {}
                if wanted:
                    reader = ArmsReader(catalog, [method.needs(d) for d in wanted], full=full)
                    fetched = reader.fetch()
                    steps += reader.steps
                for design in designs:
                    if design.only_beside:
                        continue
                    data = fetched[design.name]
                    outcome = method.answer(design, data, np.random.default_rng([seed, len(outcomes)]))
                    joined = _joined(catalog, design.entity)
                    outcomes[design.name] = read.provenance(outcome, data.sql, data.sources, data.as_of_us, joined)
                for journey in journeys:
                    held = {
                        d.name.rpartition("/")[2]: method.answer(d, fetched[d.name], np.random.default_rng([seed, 0]))
                        for d in rereads[journey.name]
                    }
                    outcome, more = self._answer_journey(catalog, journey, begun[journey.name], held, read, seed)
                    outcomes[journey.name] = outcome
                    steps += more
                plan = tuple(engine.as_sent(catalog.told(step)) for step in walks.shared(steps))
                counts = {claim: self._count(catalog, claim, designs) for claim in claim_names}
        for name in programmes:
            outcome = self._programme(name, outcomes)
            if isinstance(outcome, Result):
                of = [o for e in (*spec.programmes[name].experiments,) if isinstance(o := outcomes.get(e), Result)]
                provenance = Provenance(
                    sql=tuple(dict.fromkeys(step for o in of for step in o.provenance.sql)),
                    definition_hash=self.loaded.definition_hash,
                    data_fingerprint=_digest(*(o.provenance.data_fingerprint for o in of)),
                    seed=seed,
                    as_of=max((o.provenance.as_of for o in of if o.provenance.as_of), default=None),
                    versions=versions,
                )
                outcome = replace(outcome, provenance=provenance)
            outcomes[f"programmes.{name}"] = outcome
        priced: list[pricing.ClaimResult] = []
        refusals = [o for o in outcomes.values() if isinstance(o, Refusal)]
        for claim in claim_names:
            counted = counts.get(claim, ({}, {}))
            answer: pricing.ClaimResult | Refusal
            if isinstance(counted, Refusal):
                answer = counted
            else:
                answer = pricing.price(
                    f"claims.{claim}",
                    spec.claims[claim],
                    outcomes,
                    spec.values,
                    *counted,
                    spec.currency,
                    today,
                    seed,
                    alpha=spec.defaults.alpha,
                )
            if isinstance(answer, Refusal):
                refusals.append(answer)
            else:
                priced.append(answer)
        run = Run(
            run_id=uuid.uuid4().hex,
            project=spec.project,
            currency=spec.currency,
            alpha=spec.defaults.alpha,
            started=started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            as_of=from_us(max(as_of)) if as_of else None,
            seed=seed,
            definition_hash=self.loaded.definition_hash,
            data_fingerprint=_digest(*(fingerprints[s] for s in sorted(fingerprints))),
            versions=versions,
            results=tuple(o for o in outcomes.values() if isinstance(o, Result)),
            claims=tuple(priced),
            refusals=tuple(refusals),
            reports={name: report.model_dump(mode="json") for name, report in spec.reports.items()},
            plan=plan,
            warnings=self.loaded.warnings,
            today=today.isoformat(),
        )
        if record:
            with self.ledger() as ledger:
                ledger.append({**run.to_dict(), **({"command": command} if command else {})}, actor=actor)
        return run

    def _cannot(
        self, catalog: Catalog, designs: Sequence[ExperimentDesign], journeys: Sequence[JourneyDesign]
    ) -> tuple[dict[str, Refusal], set[str]]:
        """What this engine has no form of, by name, found out before any of it is sent; and the temporary tables of the rest."""
        method = registry.method("experiment")
        needs = {design.name: method.needs(design) for design in designs}
        plans: dict[str, Callable[[], list[Step]]] = {
            d.name: partial(_plan_of, catalog, [needs[n] for n in (d.name, *d.experiment.interactions) if n in needs])
            for d in designs
        }

        def plan_of(journey: JourneyDesign) -> list[Step]:
            held = [method.needs(design) for design in self._rereads(journey, catalog)]
            own: list[Step] = _JOURNEYS[journey.name.split(".")[0]][1].plan(catalog, journey)
            return [*_plan_of(catalog, held), *own]

        plans |= {journey.name: partial(plan_of, journey) for journey in journeys}
        out: dict[str, Refusal] = {}
        needed: set[str] = set()
        for name, plan in plans.items():
            try:
                steps = plan()
                made = catalog.making(steps)
                catalog.engine.check([step for how in made.values() for step in how])
                catalog.engine.check(steps)
            except CannotRun as error:
                full = name if "." in name else f"experiments.{name}"
                out[name] = Refusal(full, str(error), _ELSEWHERE)
            else:
                needed |= made.keys()
        return out, needed

    def _answer_journey(
        self,
        catalog: Catalog,
        design: JourneyDesign,
        reading: Callable[[], Any],
        held: Mapping[str, Result | Refusal],
        read: _Kept,
        seed: int,
    ) -> tuple[Result | Refusal, tuple[Step, ...]]:
        """One journey read and answered. ``held`` are the experiments that an attribution is held against."""
        name, _ = _JOURNEYS[design.name.split(".")[0]]
        rng = np.random.default_rng([seed, zlib.crc32(design.name.encode())])
        try:
            data = reading()
        except CannotRun as error:
            return Refusal(design.name, str(error), _ELSEWHERE), ()
        except DataError as error:
            return Refusal(design.name, str(error), "Mend the source, or the definition that names it."), ()
        if isinstance(design.declared, Attribution):
            incremental = None if design.declared.reconcile_with is None else held[design.declared.reconcile_with]
            own = {t: held[d.experiment] for t, d in design.touchpoints.items() if d.experiment is not None}
            outcome = registry.method(name).answer(design, data, rng, incremental, own)
        else:
            outcome = registry.method(name).answer(design, data, rng)
        joined = _joined(catalog, design.entity)
        outcome = read.provenance(outcome, data.sql, data.sources, data.as_of_us, joined)
        steps = tuple(data.steps)
        identified = catalog.identified(design.entity)
        if identified is not None and isinstance(outcome, Result):
            before, after, step = before_and_after(catalog, design.entity, *_ways(design), design.now_us)
            closer = replace(outcome.closer, stitching=(stitching(identified, before, after),))
            outcome = replace(outcome, closer=closer)
            steps = (*steps, step)
        return outcome, steps

    def power(
        self,
        name: str,
        *,
        mde: float | None = None,
        lift: float | str | None = None,
        weeks: int | None = None,
        power: float | None = None,
        history: timedelta | str | None = None,
        source: str | None = None,
        progress: Progress | None = None,
    ) -> Plan:
        """Units, weeks and the smallest effect of an experiment before it runs, from history in the project's own sources.

        ``mde`` is the smallest effect in the primary's unit, ``lift`` the same as a share (0.05 or "5%"); default: the
        experiment's ``stop``, as for ``power``. ``history`` is how far back units are taken (28d), in ``source`` (default:
        where the assignment was recorded, else where the metrics are). Reads data, and keeps nothing in the ledger.
        """
        from payoff.methods.experiment import power as planning
        from payoff.warehouse import history as recorded

        asked = self._asked([name])
        if any(chosen for kind, chosen in asked.items() if kind != "experiments"):
            raise UsageError(f"'{name}' is not an experiment; power is that of one experiment")
        design = self._design(asked["experiments"][0], ())
        ask = planning.Ask.of(design, mde=mde, lift=lift, weeks=weeks, power=power, history=history, source=source)
        if source is not None:
            if source not in self.loaded.sources():
                raise UsageError(f"there is no source '{source}'{did_you_mean(source, self.loaded.sources())}")
            apart = self.loaded.apart(source, design.name, design.entity)
            if apart is not None:
                raise UsageError(f"history cannot be read from '{source}': {apart[1]}")
        wanted = planning.needs_of(design)
        involved = sorted(sources_of(wanted))
        places = planning.candidates(design, [s for s in involved if self._knows(s, design)], ask)
        sources = self.loaded.needed_sources((*(p.source for p in places), *involved))
        with self.catalog(sources, progress) as catalog:
            self.check_sql(catalog, sources)
            found = recorded.pretend(
                catalog,
                places,
                design.entity,
                involved,
                span_us=round(ask.history / timedelta(microseconds=1)),
                horizon_us=max((m.horizon_us or 0 for m in wanted.metrics), default=0),
                until_us=None if design.experiment.starts is None else to_us(design.experiment.starts, design.zone),
            )
            needs, notes = planning.history_needs(design, found)
            reader = ArmsReader(catalog, needs)
            fetched = reader.fetch()
            came, sql = None, tuple((step.name, step.sql) for step in reader.steps)
            if found.starts_us is not None:
                came, more = recorded.arrivals(
                    catalog,
                    found.source,
                    design.entity,
                    found.starts_us,
                    found.days,
                    where=found.where,
                    cluster=design.experiment.cluster,
                    period_us=wanted.period_us,
                )
                sql = (*sql, *more)
        data, by_unit = fetched[design.name], fetched.get(planning.unit_read(design.name))
        return planning.plan(design, ask, found, data, by_unit, came, notes, sql)

    def _knows(self, source: str, design: ExperimentDesign) -> bool:
        """Whether units of the experiment can be pretended to have been seen in this source."""
        known = self.loaded.sources()[source]
        cluster = design.experiment.cluster
        return (
            known.timed
            and self.loaded.declares(known, design.entity)
            and (cluster is None or self.loaded.declares(known, cluster))
        )

    def _programme(self, name: str, outcomes: Mapping[str, Result | Refusal]) -> Result | Refusal:
        spec, declared = self.loaded.spec, self.loaded.spec.programmes[name]
        spans = {
            e: "no end" if (window := self.loaded.window_of(declared.metric, e)) is None else format_duration(window)
            for e in declared.experiments
        }
        outcome: Result | Refusal = registry.method("programme").answer(
            name, declared, outcomes, spans, spec.metrics[declared.metric].direction, 1 - spec.defaults.alpha
        )
        return outcome

    def doctor(self, progress: Progress | None = None) -> list[Finding]:
        """A look at every source: reachable, populated, keyed, timed, unrepeated."""
        known = self.loaded.sources()

        def opened(name: str) -> Catalog:
            # sessions are made of other sources; any other is looked at by itself
            return self.catalog(
                [name] if known[name].sessions is None else self.loaded.needed_sources([name]), progress, as_stored=True
            )

        return examine(opened, known)

    def _count(self, catalog: Catalog, claim: str, designs: Sequence[ExperimentDesign]) -> _Counts | Refusal:
        """The volumes and populations of a claim's amount; a refusal where the data cannot tell one."""
        declared = self.loaded.spec.claims[claim]
        wanted = amounts.parse(declared.amount)
        volumes: dict[tuple[str, timedelta], pricing.Volume] = {}
        populations: dict[tuple[str, timedelta | None], pricing.Population] = {}
        try:
            for source, period in wanted.volumes:
                rows = rows_in(catalog, source, period)
                volumes[source, period] = pricing.Volume(rows.value, rows.se, rows.days, rows.notes)
            for entity, span in wanted.populations:
                found = [d for d in designs if d.name in declared.evidence and d.entity == entity]
                if found and found[0].experiment.period is not None:
                    return Refusal(
                        f"claims.{claim}",
                        f"population({entity}) counts {entity}s, and an effect of the switchback {found[0].name} is that on one"
                        f" period of a {entity}",
                        "Multiply by the number of periods instead, such as a plain number or the volume of a source with a row in each.",
                    )
                if found:
                    assignment = found[0].experiment.assignment
                    where = assignment.where if assignment.source is not None else None
                    units = units_in(catalog, found[0].source, entity, where, span)
                    populations[entity, span] = pricing.Population(units.value, units.days, units.notes)
        except DataError as error:
            return Refusal(f"claims.{claim}", str(error), "Mend the source, or write the amount without this count.")
        return volumes, populations

    # ---------------------------------------------------------------- what is kept

    @property
    def _ledger_path(self) -> Path:
        return self.root / ".payoff" / "ledger.db"

    def ledger(self, *, read_only: bool = False) -> Ledger:
        """The ledger of results: the project's own, or the connection that ``ledger:`` names."""
        spec = self.loaded.spec
        if spec.ledger is None:
            return Ledger.open(self._ledger_path, read_only=read_only)
        connection = spec.connections[spec.ledger]
        assert isinstance(connection, SQLiteConnection | PostgresConnection)
        url, local = connection.url, "sqlite:///"
        if url.startswith(local):  # relative to the project, as every path of a definition is
            url = f"{local}{self.root / url.removeprefix(local)}"
        return Ledger.open(url, read_only=read_only)

    def recall(self, ledger: Ledger, name: str | None = None) -> tuple[StoredRun, tuple[str, ...]]:
        """The stored run that holds the newest figure called ``name`` (or has this id), and the full names meant.

        None is the newest run. A name may be bare or full (``x``, ``claims.x``); the beginning of a run's id will do.
        Raises UsageError where nothing of the kind is stored.
        """
        spec = self.loaded.spec
        if name is None:
            stored = ledger.latest_run(project=spec.project)
            if stored is None:
                raise UsageError("no run of this project is stored yet; make one with: payoff run")
            return stored, tuple(entry.name for entry in stored.entries)
        full = [name] if "." in name else [f"{kind}.{name}" for kind in KINDS]
        found = [e for n in full for kind in SECTIONS.values() if (e := ledger.latest(kind, n, project=spec.project))]
        if len({entry.name for entry in found}) > 1:
            several = [n for n in full if n in {entry.name for entry in found}]
            raise UsageError(f"'{name}' is {len(several)} things; say {' or '.join(several)}")
        if found:
            newest = max(found, key=lambda entry: entry.seq)
            return ledger.run(newest.run_id), (newest.name,)
        bare = name.rpartition(".")[2]
        known = [declared for kind in KINDS for declared in getattr(spec, kind)]
        if bare in known:
            raise UsageError(f"'{name}' is declared, but no run of it is stored yet; make one with: payoff run {name}")
        close = did_you_mean(bare, known)
        if close or not re.fullmatch("[0-9a-f]{4,32}", name):
            raise UsageError(f"'{name}' is not {_A_THING}, nor a run in the ledger{close}")
        stored = ledger.run(name)
        if stored.header.project != spec.project:
            raise UsageError(f"the run {stored.run_id} is of another project, '{stored.header.project}'")
        return stored, tuple(entry.name for entry in stored.entries)

    def verify(self, name: str | None = None, *, progress: Progress | None = None) -> Verification:
        """Run a stored run again, with its seed and its day, and hold its figures (or the one named) against the new ones.

        The whole run is repeated even for one name, so that all that is compared was computed alike. Nothing is recorded.
        Figures are equal within 1e-9, because sums made in parallel differ in their last bits.
        """
        with self.ledger(read_only=True) as ledger:
            chain = ledger.verify_chain()
            if not chain.ok:
                return Verification(chain)
            stored, names = self.recall(ledger, name)
        spec, old = self.loaded.spec, stored.to_dict()
        declared = {f"{kind}.{known}" for kind in KINDS for known in getattr(spec, kind)}
        again = list(dict.fromkeys(entry.name for entry in stored.entries if entry.name in declared))
        new: dict[str, Any] = {}
        if again:
            day = date.fromisoformat(old.get("today") or old["started"][:10])
            earlier = min(entry.seq for entry in (stored.header, *stored.entries))
            new = self.run(
                again,
                seed=old["seed"],
                record=False,
                today=day,
                progress=progress,
                looks_before=earlier,
                now=datetime.fromisoformat(old["started"]),
            ).to_dict()
        fresh: dict[tuple[str, str], list[Any]] = {}
        for section, kind in SECTIONS.items():
            for item in new.get(section, ()):
                fresh.setdefault((kind, item["name"]), []).append(item)
        figures = []
        for entry in stored.entries:
            if entry.name in names:
                same = fresh.get((entry.kind, entry.name), [])
                now = same[0] if same else None
                if len(same) > 1:  # several refusals of one name, in the order that they were kept in
                    del same[0]
                if now is not None:
                    found = tuple(compare(entry.payload, now))
                else:
                    kinds = [k for k, n in fresh if n == entry.name]
                    found = (Difference("what it is", f"a {entry.kind}", f"a {kinds[0]}" if kinds else ABSENT),)
                figures.append(Verified(entry.name, entry.kind, found))
        context = tuple(context_changes(old, new)) if new else ("none of what it holds is declared any more",)
        return Verification(chain, stored.run_id, stored.header.at, context, tuple(figures))


def _planned(catalog: Catalog, design: JourneyDesign, walks: Walks) -> list[Step]:
    kernel = _JOURNEYS[design.name.split(".")[0]][1]
    steps: list[Step] = kernel.plan(catalog, design, walks) if kernel in _WALKED else kernel.plan(catalog, design)
    return steps


def _begun(catalog: Catalog, design: JourneyDesign, walks: Walks, full: bool) -> Callable[[], Any]:
    """What reads a journey. The walk that it takes is planned, so that one is made for all; what fails is raised by who reads."""
    kernel = _JOURNEYS[design.name.split(".")[0]][1]
    if kernel is credit:
        return partial(kernel.read, catalog, design, full=full)
    if kernel not in _WALKED:
        return partial(kernel.read, catalog, design)
    try:
        reading: Callable[[], Any] = kernel.begin(catalog, design, walks).read
    except (CannotRun, DataError) as error:
        return partial(_raise, error)
    return reading


def _raise(error: Exception) -> None:
    raise error


def reread_name(attribution: str, experiment: str) -> str:
    return f"{attribution}/{experiment}"


def _held_against(design: JourneyDesign) -> tuple[str, ...]:
    """The experiments whose arms or effects a journey reads."""
    declared = design.declared
    if not isinstance(declared, Attribution):
        return ()
    named = [declared.reconcile_with, *(t.experiment for t in design.touchpoints.values())]
    return tuple(dict.fromkeys(n for n in named if n is not None))


def _ways(design: JourneyDesign) -> tuple[list[Event], list[Event]]:
    """The events on the way of a journey, and those at its end."""
    declared = design.declared
    touches = [Event(source=t.source, where=t.where) for t in design.touchpoints.values()]
    if isinstance(declared, Attribution):
        return touches, [outcome.event for outcome in declared.outcomes.values()]
    if isinstance(declared, Journey):
        end = declared.to.event if declared.to is not None else declared.from_
        assert end is not None
        return touches, [end]
    if isinstance(declared, Funnel):
        steps = [Event(source=s.source, where=s.where) for s in declared.steps if s.source is not None]
        return steps[:-1], steps[-1:]
    came = [declared.activity, None if declared.revenue is None else declared.revenue.event]
    return [declared.start], [event for event in came if event is not None]


def _joined(catalog: Catalog, entity: str) -> tuple[str, str, tuple[tuple[str, str], ...]] | None:
    """The source of an entity's identity, a mark of what it joined, and how; None where each id is a unit of its own."""
    found = catalog.identified(entity)
    if found is None:
        return None
    mark = _digest(
        catalog.fingerprint(catalog.view(found.source).own), found.pairs, found.ids, found.units, found.largest
    )
    return found.source, mark, tuple((step.name, step.sql) for step in found.steps)


@dataclass(slots=True)
class _Kept:
    """What a run keeps of its reads: fingerprints by source and how far the data go; and a result's provenance from them."""

    fingerprints: dict[str, str]
    as_of: list[int]
    definition_hash: str
    seed: int
    versions: Mapping[str, str]
    engine: Engine | None = None

    def provenance(
        self,
        outcome: Result | Refusal,
        sql: tuple[tuple[str, str], ...],
        sources: Mapping[str, SourceProfile] | Mapping[str, EventProfile],
        as_of_us: int | None,
        joined: tuple[str, str, tuple[tuple[str, str], ...]] | None,
    ) -> Result | Refusal:
        marks = {
            name: _digest(profile.fingerprint, profile.rows, profile.first_us, profile.last_us)
            for name, profile in sources.items()
        }
        if joined is not None:
            source, mark, how = joined
            marks, sql = {**marks, f"pairs of ids in {source}": mark}, (*how, *sql)
        self.fingerprints.update(marks)
        if as_of_us is not None:
            self.as_of.append(as_of_us)
        if isinstance(outcome, Refusal):
            return outcome
        if self.engine is not None:
            sql = tuple((step, self.engine.sent(text, step)) for step, text in sql)
        provenance = Provenance(
            sql=sql,
            definition_hash=self.definition_hash,
            data_fingerprint=_digest(*(marks[name] for name in sorted(marks))),
            seed=self.seed,
            as_of=None if as_of_us is None else from_us(as_of_us),
            versions=self.versions,
        )
        return replace(outcome, provenance=provenance)


def _plan_of(catalog: Catalog, needs: Sequence[ArmsNeed]) -> list[Step]:
    return ArmsReader(catalog, needs).plan() if needs else []


def replace_path(connection: DuckDBConnection) -> DuckDBConnection:
    """The same settings without the database, for a run that reads only files."""
    return connection.model_copy(update={"path": None})


def _units_seen(payload: Mapping[str, Any]) -> int:
    """The units that a stored result was decided on."""
    peeking = (payload.get("closer") or {}).get("peeking")
    if peeking:
        return int(peeking["looks"][-1]["units"])
    first = payload["arms"][0]["metric"]  # kept before looks were
    return sum(int(arm["n"]) for arm in payload["arms"] if arm["metric"] == first)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).hexdigest()


def _versions() -> dict[str, str]:
    """What computed: packages by version, and this package by its own text too, since a version may be edited in place."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    names = ("duckdb", "sqlglot", "numpy", "scipy")
    own = {"python": platform.python_version(), "payoff": __version__, "payoff code": digest.hexdigest()[:12]}
    return {**own, **{name: version(name) for name in names}}

"""What journeys say of other declarations: their sources, touchpoints, units, and the experiments that credit is held against.

A part of ``references``: the same rules, and the same list of problems.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from payoff.spec.nouns import (
    Attribution,
    Cohort,
    Event,
    Funnel,
    Journey,
    Spend,
    Touchpoint,
    unit_sources,
)

if TYPE_CHECKING:
    from payoff.spec.references import Checker
    from payoff.spec.yamlfile import Step, Steps


TESTS = ("reconcile_with", "between_arms_of")
"""Keys of an attribution that name an experiment."""


class JourneyChecker:
    def __init__(self, checker: Checker) -> None:
        self.checker, self.project, self.spec = checker, checker.project, checker.spec

    def check(self) -> None:
        for name, touchpoint in self.spec.touchpoints.items():
            self.touchpoint(name, touchpoint)
        for full, journey in self.project.journeys().items():
            section, _, name = full.partition(".")  # a name with a dot is told elsewhere
            self.journey(section, name, journey)

    # ------------------------------------------------------------ sources

    def _timed(self, source: str, why: str, *at: Step) -> None:
        """The source is declared and has a time; ``why`` says what is not known without one."""
        if not self.checker.known("sources", source, "a source", *at) or not self.checker.sure("sources", source):
            return
        if not self.spec.sources[source].timed:
            message = f"source '{source}' has no time, so {why}; add time: COLUMN to it"
            self.checker.problem("no-time", message, *at)

    def _spend(self, spend: Spend, *at: Step) -> None:
        self._timed(spend.source, "when its money was spent is not known", *at, "source")

    def touchpoint(self, name: str, touchpoint: Touchpoint) -> None:
        at = ("touchpoints", name)
        self._timed(touchpoint.source, "which touches came before a conversion is not known", *at, "source")
        if isinstance(touchpoint.cost, Spend):
            self._spend(touchpoint.cost, *at, "cost")
        if touchpoint.experiment is not None:
            self.checker.known("experiments", touchpoint.experiment, "an experiment", *at, "experiment")

    # ------------------------------------------------------------ every journey

    def journey(self, section: str, name: str, journey: Attribution | Funnel | Cohort | Journey) -> None:
        def at(*inside: Step) -> Steps:
            return self.checker.place(section, name, inside)

        if journey.entity is not None:
            self.checker.known_entity(journey.entity, *at("entity"))
        self.checker.in_order(journey.starts, journey.ends, *at("ends"))
        if isinstance(journey, Attribution | Journey):
            for index, touchpoint in enumerate(journey.touchpoints):
                self.checker.known("touchpoints", touchpoint, "a touchpoint", *at("touchpoints", index))
            self.checker.once(section, name, ("touchpoints",), journey.touchpoints)
        read = unit_sources(journey, self.spec)
        for inside, source in read:
            if inside[0] != "touchpoints":
                self._timed(source, "what came after what is not known", *at(*inside))
        if isinstance(journey, Cohort) and journey.cost is not None:
            self._spend(journey.cost, *at("cost"))
        if isinstance(journey, Funnel):
            self._funnel(name, journey)
        if isinstance(journey, Attribution):
            for key in TESTS:
                experiment = getattr(journey, key)
                if experiment is not None:
                    self.checker.known("experiments", experiment, "an experiment", *at(key))
        if (section, name) in self.checker.doubtful or not self._sound(journey):
            return
        entity = self.project.find_journey_entity(f"{section}.{name}")
        if entity is None:
            if self.checker.sound("defaults", "entities"):
                message = "what the unit of this is, is not clear; add entity: NAME"
                self.checker.problem("no-entity", message, section, name, key=True)
            return
        if entity not in self.checker.entities:
            return  # said where it is named
        for inside, source in read:
            declared = self.spec.sources[source]
            if self.project.unit_column(declared, entity) is None:
                if declared.sessions is not None:
                    remedy = f"it holds sessions of {self.project.session_entity(declared)}"
                else:
                    remedy = f"add entity: {{{entity}: COLUMN}} to it"
                message = f"source '{source}' does not say which column holds '{entity}'; {remedy}"
                self.checker.problem("unmapped-entity", message, *at(*inside))
        if isinstance(journey, Attribution):
            self._attribution(name, journey, entity)

    def _sound(self, journey: Attribution | Funnel | Cohort | Journey) -> bool:
        """Whether neither a source nor a touchpoint of it has a problem of its own."""
        touchpoints = getattr(journey, "touchpoints", ())
        return self.checker.sure("touchpoints", *touchpoints) and all(
            self.checker.sure("sources", source) for _, source in unit_sources(journey, self.spec)
        )

    # ------------------------------------------------------------ funnels

    def _funnel(self, name: str, funnel: Funnel) -> None:
        steps = {Event(source=s.source, where=s.where): s.label for s in funnel.steps if s.source is not None}
        for index, event in enumerate(funnel.exclude):
            plain = Event(source=event.source, where=event.where)
            if plain in steps:
                message = (
                    f"these are the rows of the step '{steps[plain]}', which would end every attempt that reaches it"
                )
                at = self.checker.place("funnels", name, ("exclude", index))
                self.checker.problem("bad-value", message, *at)

    # ------------------------------------------------------------ attribution

    def _attribution(self, name: str, attribution: Attribution, entity: str) -> None:
        def at(*inside: Step) -> Steps:
            return self.checker.place("attribution", name, inside)

        touchpoints = {t: self.spec.touchpoints[t] for t in attribution.touchpoints}
        direct = [t for t, declared in touchpoints.items() if declared.direct]
        if len(direct) > 1:
            message = f"two touchpoints of attribution.{name} are direct, '{direct[0]}' and '{direct[1]}'; take them together as one"
            self.checker.problem("bad-value", message, "touchpoints", direct[1], "direct")
        for index, model in enumerate(attribution.models):
            if model.kind == "last_non_direct" and not direct:
                message = "no touchpoint here is marked direct: true, so last_non_direct passes over nothing"
                self.checker.problem("missing-key", message, *at("models", index))
        for key in TESTS:
            experiment = getattr(attribution, key)
            if experiment is not None:
                self._tested(f"attribution.{name}", experiment, entity, *at(key))
        for touchpoint, declared in touchpoints.items():
            place = ("touchpoints", touchpoint, "experiment")
            if declared.experiment is None:
                continue
            self._tested(f"attribution.{name}", declared.experiment, entity, *place)
            if declared.experiment == attribution.reconcile_with:
                message = f"attribution.{name} is reconciled with this very experiment, which is of more than one touchpoint; name a test of '{touchpoint}' alone"
                self.checker.problem("bad-value", message, *place)
        said = any(t.personalised is not None or t.experiment is not None for t in touchpoints.values())
        if attribution.reconcile_with is not None and not said:
            message = f"no touchpoint here says which of its rows the experiment changed; add personalised: to {' or '.join(touchpoints)}"
            self.checker.problem("missing-key", message, *at("reconcile_with"))

    def _tested(self, full: str, experiment: str, entity: str, *at: Step) -> None:
        """An experiment that credit is held against: its units, each in one arm for good, are those of the journey."""
        if not self.checker.sure("experiments", experiment):
            return
        declared = self.spec.experiments[experiment]
        if not self.checker.source_sure(declared.assignment.source):
            return
        unit = self.project.find_entity(experiment)
        if unit is None:
            return
        if unit != entity:
            message = f"'{experiment}' compares units of {unit}, and {full} reads units of {entity}"
            self.checker.problem("wrong-entity", message, *at)
        if declared.period is not None:
            message = f"'{experiment}' is a switchback: its units change arms, so no conversion belongs to one"
            self.checker.problem("wrong-experiment", message, *at)
        elif declared.cluster is not None:
            message = f"'{experiment}' assigned whole units of {declared.cluster}, and credit is read unit by unit of {entity}; name an experiment without cluster"
            self.checker.problem("wrong-experiment", message, *at)
        elif declared.trigger is not None:
            message = f"'{experiment}' reads only those who triggered, and credit is that of everyone; name an experiment without trigger"
            self.checker.problem("wrong-experiment", message, *at)
        elif not self.project.source_of(experiment)[1].timed:
            message = f"rows of the assignment of '{experiment}' have no time, so which conversions came after exposure is not known; add time: COLUMN"
            self.checker.problem("no-time", message, *at)

"""The whole report: its title, its cards, its risks, and what of a run it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from payoff import formats
from payoff.errors import UsageError, did_you_mean
from payoff.formats import clean, human, isolate
from payoff.report.figures.attribution import AttributionFigures
from payoff.report.figures.claims import ClaimFigures, read_claim
from payoff.report.figures.experiment import (
    HARM,
    Effect,
    Section,
    SqlText,
    harm_in_words,
    leading_effects,
    read_section,
    worst_guardrail,
)
from payoff.report.figures.grids import Grid
from payoff.report.figures.programme import Total
from payoff.report.figures.reading import (
    STATES,
    UNDATED,
    MissingFigure,
    Node,
    Quantity,
    RefusalLine,
    State,
    contrast_words,
    data_through,
    full_name,
    level_of,
    read_refusals,
    sentence,
    short_name,
    state_from_zero,
    uncapital,
)


@dataclass(frozen=True, slots=True)
class Card:
    kind: str
    subject: str
    quantity: Quantity | None
    state: State
    reason: str
    facts: tuple[tuple[str, str], ...]
    anchor: str
    extrapolated: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    project: str
    kicker: str
    title: str
    standfirst: str
    state: State
    decision: str
    cards: tuple[Card, ...]
    risks: tuple[str, ...]
    claims: tuple[ClaimFigures, ...]
    sections: tuple[Section, ...]
    refusals: tuple[RefusalLine, ...]
    sql: tuple[SqlText, ...]
    plan: tuple[tuple[str, str, str, str], ...]
    provenance: tuple[tuple[str, str], ...]
    through: str
    level: str

    @property
    def dated(self) -> str:
        return "data without dates" if self.through == UNDATED else f"data through {self.through}"

    def quantities(self) -> Iterator[Quantity]:
        """Every number that has an interval, in reading order."""
        for claim in self.claims:
            yield claim.net
            yield claim.amount
            if claim.roi is not None:
                yield claim.roi
            yield from (line.quantity for line in claim.compare if line.quantity is not None)
        for section in self.sections:
            yield from section.quantities()


def _claim_card(claim: ClaimFigures) -> Card:
    facts = [
        ("Chance that it is above zero", claim.probability),
        ("Evidence", claim.grade_text),
        ("Units", claim.n),
        ("Data through", claim.through),
        ("Owner", claim.owner),
    ]
    if claim.state.key == "withheld":
        facts = facts[1:]
    return Card(
        kind="Net of cost" if claim.has_costs else "Amount",
        subject=claim.title,
        quantity=claim.net,
        state=claim.state,
        reason=claim.reason,
        facts=tuple(facts),
        anchor=claim.anchor,
        extrapolated=claim.extrapolated,
    )


def _roi_card(claim: ClaimFigures, roi: Quantity) -> Card:
    state = (
        claim.state if claim.state.key in ("withheld", "breached", "at risk") else state_from_zero(roi.low, roi.high)
    )
    return Card(
        kind="Return on cost",
        subject=claim.title,
        quantity=roi,
        state=state,
        reason="",
        facts=(
            ("Payback", claim.payback),
            ("Cost", claim.cost),
            ("Evidence", claim.grade_text),
            ("Data through", claim.through),
            ("Owner", claim.owner),
        ),
        anchor=claim.anchor,
        extrapolated=claim.extrapolated,
    )


def _effect_card(section: Section, effect: Effect, kind: str) -> Card:
    facts = [
        ("Contrast", effect.contrast),
        ("Test", effect.test if effect.test != "not defined" else "no p-value is defined"),
        ("Evidence", section.grade_text),
        ("Units", formats.count(effect.n)),
        ("Data through", section.through),
        ("Owner", section.owner),
    ]
    if effect.family:
        facts.insert(2, ("Family", effect.family))
    if effect.target_text:
        facts.insert(1, ("Target", effect.target_text))
    if effect.margin_text:
        facts.insert(1, ("Margin of harm", effect.margin_text))
    if section.withheld or effect.guards:  # a test against zero says nothing about a margin
        facts = [fact for fact in facts if fact[0] != "Test"]
    return Card(
        kind,
        effect.label,
        effect.deciding,
        effect.state,
        section.standing if section.withheld else "",
        tuple(facts),
        section.anchor,
    )


def _programme_card(section: Section, total: Total) -> Card:
    return Card(
        "Programme total",
        section.title,
        total.quantity,
        section.state,
        section.standing if section.withheld else "",
        (
            ("What", total.label),
            ("Evidence", section.grade_text),
            ("Data through", section.through),
            ("Owner", section.owner),
        ),
        section.anchor,
    )


def _journey_cards(section: Section) -> Iterator[Card]:
    """Of an attribution: what one touchpoint is credited with, and what the holdout shows of it. Descriptions have none."""
    if not isinstance(section.journey, AttributionFigures):
        return
    facts = (("Evidence", section.grade_text), ("Data through", section.through), ("Owner", section.owner))
    for r in section.journey.reconciliations[:1]:
        if r.ratio is not None:
            told = [("Model", r.model), ("Held against", r.experiment)]
            told += (
                [
                    (
                        "Beyond what is shown",
                        f"{r.anyway.text} ({r.anyway.range}) of the credit is more than the experiment shows",
                    )
                ]
                if r.anyway is not None
                else []
            )
            yield Card("Incremental over attributed", section.title, r.ratio, section.state,
                       section.standing if section.withheld else "", (*told, *facts), section.anchor)  # fmt: skip
    if section.journey.leading is not None:
        what, quantity = section.journey.leading
        told = [("Credit", what), ("Of", f"{section.journey.what}, {section.journey.scope}")]
        yield Card("Attributed", section.title, quantity, section.state, section.standing if section.withheld else "",
                   (*told, *facts), section.anchor)  # fmt: skip


def _cards(claims: Sequence[ClaimFigures], sections: Sequence[Section]) -> tuple[Card, ...]:
    cards = [_claim_card(claim) for claim in claims[:2]]
    if claims and claims[0].roi is not None:
        cards.append(_roi_card(claims[0], claims[0].roi))
    totals = [(s, s.programme.leading) for s in sections if s.programme is not None]
    cards += [_programme_card(s, total) for s, total in totals[: 6 - len(cards)] if total is not None]
    journeys = [card for s in sections for card in _journey_cards(s)]
    guardrails = [(s, w) for s in sections if (w := worst_guardrail(s.effects)) is not None]
    room = 6 - len(cards) - bool(guardrails) - min(len(journeys), 2)
    primaries = [(s, e) for s in sections for e in (leading_effects(s.effects) or s.effects) if not e.guards]
    kinds = {
        "primary": "Primary metric",
        "north_star": "North star",
        "secondary": "Exploratory metric",
        "vanity": "Vanity metric",
    }
    cards += [_effect_card(s, e, kinds[e.role]) for s, e in primaries[: max(room, 0)]]
    cards += journeys[: max(6 - len(cards) - bool(guardrails), 0)]
    if guardrails:
        section, worst = min(guardrails, key=lambda pair: HARM.get(pair[1].state.key, len(HARM)))
        cards.append(
            _effect_card(
                section, worst, "Worst guardrail" if len(section.guardrails) > 1 or len(guardrails) > 1 else "Guardrail"
            )
        )
    return tuple(cards)


def _risks(
    claims: Sequence[ClaimFigures], sections: Sequence[Section], refusals: Sequence[RefusalLine]
) -> tuple[str, ...]:
    """The three largest, in a fixed order of gravity."""
    found: list[tuple[int, str]] = []
    for s in sections:
        where = f"{s.title}: "
        found += [(0, f"{where}{uncapital(sentence(c.detail))}") for c in s.checks if c.state.key == "fail"]
        flips = [(1 if a.flip == "shown" else 3, f"{where}{sentence(uncapital(a.sentence))}") for a in s.looks.alarms]
        found += flips
        if isinstance(s.journey, AttributionFigures):
            for r in s.journey.reconciliations[:1]:
                found += [(3, f"{where}{text}") for text in r.conflicts]
        for e in s.guardrails:
            text = f"{where}{harm_in_words(e)}: {e.deciding.full} {contrast_words(e.contrast)}."
            found += [(1 if e.state.key == "breached" else 3, text)] if e.state.key in ("breached", "at risk") else []
        found += [(5, f"{where}{uncapital(sentence(c.detail))}") for c in s.checks if c.state.key == "warn"]
    for c in claims:
        found += [(2, f"{c.title}: {uncapital(w.sentence)}") for w in c.swings if w.flips]
        if c.grade != "A":
            why = " ".join(c.grade_reasons)
            found.append(
                (
                    2 if c.grade in ("D", "E") else 4,
                    f"{c.title}: evidence is graded {c.grade}, not A. {sentence(why)}".rstrip(" .") + ".",
                )
            )
    if claims or sections:
        found += [(6, f"Not answered, {isolate(human(short_name(r.name)))}: {sentence(r.reason)}") for r in refusals]
    ordered = [text for _, text in sorted(found, key=lambda pair: pair[0])]
    return tuple(dict.fromkeys(ordered))[:3]


def _wanted(run: Node, report: str | None) -> tuple[tuple[str, ...] | None, Node | None]:
    if report is None:
        return None, None
    reports = run.data.get("reports") or {}
    if report not in reports:
        raise UsageError(f"'{report}' is not a report of this project{did_you_mean(report, reports)}")
    node = Node(reports[report], f"run.reports.{report}")
    return tuple(node.texts("show", optional=False)), node


def _select(run: Node, show: Sequence[str]) -> tuple[list[Node], list[Node], list[Node]]:
    """What a report shows. A claim brings its evidence with it: money without its evidence is not shown."""
    claims, results, refusals = run.nodes("claims"), run.nodes("results"), run.nodes("refusals")
    refused = {full_name(r.text("name")): r for r in refusals}
    there = [full_name(r.text("name")) for r in results]
    keep_claims: list[Node] = []
    keep_names: list[str] = []
    keep_refusals: list[Node] = []
    for item in show:
        kind, _, name = item.partition(".")
        hits = 0
        if kind == "claims":
            for claim in claims:
                if short_name(claim.text("name")) == name:
                    keep_claims.append(claim)
                    keep_names += [full_name(e) for e in claim.texts("evidence", optional=False)]
                    hits += 1
        elif kind == "metrics":
            names = [
                full_name(r.text("name"))
                for r in results
                if r.text("verdict") != "descriptive" and any(e.text("metric") == name for e in r.nodes("estimates"))
            ]
            keep_names += names
            hits += len(names)
        else:
            hits += full_name(item) in there
            keep_names.append(full_name(item))
        if full_name(item) in refused:
            keep_refusals.append(refused[full_name(item)])
            hits += 1
        if not hits:
            raise MissingFigure(f"the report shows '{item}', but the run has neither a figure nor a refusal for it")
    keep_refusals += [refused[n] for n in keep_names if n in refused and refused[n] not in keep_refusals]
    return keep_claims, [r for r in results if full_name(r.text("name")) in keep_names], keep_refusals


def _once(sections: Sequence[Section]) -> tuple[Section, ...]:
    """A table that an earlier section shows already (what identity did to the same ids) is folded away in later ones."""
    seen: set[Grid] = set()
    out = []
    for section in sections:
        parts = []
        for part in section.parts:
            grids = tuple(
                replace(g, folded=f"As above: {uncapital(g.caption)}") if g in seen else g for g in part.grids
            )
            seen.update(g for g in part.grids if not g.folded)
            parts.append(replace(part, grids=grids))
        out.append(replace(section, parts=tuple(parts)))
    return tuple(out)


def _headed(section: Section) -> str:
    """The finding; of a journey that says much, its first sentence."""
    if section.journey is None or len(section.finding) <= 240:
        return section.finding
    return re.split(r"(?<=[^.\s])\. (?=[A-Z0-9])", section.finding, maxsplit=1)[0]


def build(run: Mapping[str, Any], report: str | None = None) -> Figures:
    """The figures of a run (its JSON), or of the one ``report`` of it that is named. Raises MissingFigure, UsageError."""
    node = Node(run, "run")
    show, shown = _wanted(node, report)
    if show is None:
        claim_nodes, result_nodes, refusal_nodes = (
            list(node.nodes("claims")),
            list(node.nodes("results")),
            list(node.nodes("refusals")),
        )
    else:
        claim_nodes, result_nodes, refusal_nodes = _select(node, show)
    library: list[SqlText] = []
    sections = _once([read_section(r, i, node, library) for i, r in enumerate(result_nodes)])
    by_name = {full_name(s.name): s for s in sections}
    claims = tuple(read_claim(c, i, node, by_name) for i, c in enumerate(claim_nodes))
    within = {(line.name, line.reason) for section in sections for line in section.refusals}
    refusals = tuple(line for line in read_refusals(refusal_nodes) if (line.name, line.reason) not in within)
    through = data_through(node)
    if claims:
        title, state, decision = claims[0].finding, claims[0].state, claims[0].decision
        standfirst = f"Evidence grade {claims[0].grade_text}. {claims[0].reason}".strip()
    elif sections:
        title, state, decision = _headed(sections[0]), sections[0].state, ""
        standfirst = f"{sentence(isolate(sections[0].question))} {sections[0].standing}"
    elif refusals:
        several = f"None of the {len(refusals)} questions"
        title = f"{several if len(refusals) > 1 else 'The one question asked'} could {'' if len(refusals) > 1 else 'not '}be answered from the data"
        state, decision = STATES["refused"], ""
        standfirst = "Each reason is below, with what would change it."
    else:
        raise MissingFigure("the run has no result, no claim and no refusal; there is nothing to report")
    project = node.text("project")
    parts = [project]
    if shown is not None:
        parts.append(shown.text("title", formats.capital(human(str(report)))))
        if shown.has("audience"):
            parts.append(f"for {human(shown.text('audience'))}")
    versions = node.data.get("versions") or {}
    provenance = [
        ("Run", node.text("run_id")),
        ("Started", formats.moment(node.text("started"))),
        ("Data through", through),
        ("Definitions", node.text("definition_hash")),
        ("Data fingerprint", node.text("data_fingerprint")),
        ("Random seed", str(int(node.number("seed")))),
        ("Currency", node.text("currency")),
        ("Level of intervals", formats.level(level_of(node))),
        ("Versions", ", ".join(f"{clean(str(k))} {clean(str(v))}" for k, v in versions.items()) or "not recorded"),
    ]
    plan = tuple(
        (
            clean(str(p.raw("step"))),
            p.text("source", "earlier steps"),
            p.text("purpose"),
            ", ".join(p.texts("columns")) or "none",
        )
        for p in node.nodes("plan", optional=True)
    )
    return Figures(
        project=isolate(project),
        kicker=" \u00b7 ".join(isolate(part) for part in parts),
        title=title,
        standfirst=standfirst,
        state=state,
        decision=decision,
        cards=_cards(claims, sections),
        risks=_risks(claims, sections, refusals),
        claims=claims,
        sections=sections,
        refusals=refusals,
        sql=tuple(library),
        plan=plan,
        provenance=tuple(provenance),
        through=through,
        level=formats.level(level_of(node)),
    )


def of_result(result: Mapping[str, Any]) -> Section:
    """The section of one result alone, as ``Result.to_dict`` gives it."""
    return read_section(Node(result, "result"), 0, Node({"alpha": 0.05}, "run"), [])

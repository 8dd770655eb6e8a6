"""Attributed credit by model, what a holdout shows of it, and ids taken together. Credit is shared out, never shown to be caused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from payoff import formats
from payoff.formats import Unit, human, isolate
from payoff.report.figures.grids import Cell, Grid, Part, across, figure
from payoff.report.figures.journeys import label, others_of, quantity_of
from payoff.report.figures.reading import MissingFigure, Node, Quantity, read_quantity, sentence

_PEOPLE = {"markov": "Markov", "shapley": "Shapley", "ordered_shapley": "ordered Shapley"}
REST, TOTAL = "(unattributed)", "(total)"
_NAMES_OF_DATA = ("(none)", "(other)")
MOST_MODELS = 12
"""Models in one picture; all of them are in the tables."""
MOST_CELLS = 1600
"""Cells of windows and conversions side by side; more would make a page that nobody reads."""

_CREDIT = {
    "attributed value": "value",
    "attributed conversions": "conversions",
    "share of value": "value share",
    "share of conversions": "conversion share",
    "attributed value per cost": "return",
    "cost per attributed conversion": "cost",
}
_ARMS = "difference in attributed value per unit"
_PLACES = "attributed conversions by position"
_BY = {
    "holdout": "its share of what the holdout shows",
    "own experiment": "its own experiment",
    "remainder": "its share of what the tested ones leave",
    "not personalised": "met by both arms alike: not tested",
}
Scope = tuple[str, str]
"""A conversion and a window."""


@dataclass(frozen=True, slots=True)
class ReconciledLine:
    name: str
    by: str
    attributed: Quantity
    incremental: Quantity | None
    ratio: Quantity | None
    conflict: str


@dataclass(frozen=True, slots=True)
class ReconciliationFigures:
    """Attributed and incremental side by side, in one unit. ``anyway``: what share of the credit is more than the experiment shows."""

    experiment: str
    contrast: str
    model: str
    unit: Unit
    units: str
    attributed: Quantity
    incremental: Quantity
    ratio: Quantity | None
    anyway: Quantity | None
    lines: tuple[ReconciledLine, ...]
    rule: str
    reason: str
    sentence: str

    @property
    def anyway_text(self) -> str:
        if self.anyway is None:
            return f"What share of the credit is more than the experiment shows is not told: {sentence(self.reason or 'no ratio was given')}"
        if self.anyway.value < 0:
            return f"More was shown than was attributed: the ratio is {self.ratio.full if self.ratio else 'above 1'}."
        said = f"{self.anyway.text} of what was attributed is more than the experiment shows ({self.anyway.interval})."
        if self.incremental.low <= 0 <= self.incremental.high:
            said += " What was shown is not clear of zero, so all of it may be."
        return said

    @property
    def conflicts(self) -> tuple[str, ...]:
        return tuple(f"{line.name}: {sentence(line.conflict)}" for line in self.lines if line.conflict)


@dataclass(frozen=True, slots=True)
class CreditRow:
    """One touchpoint in the leading conversion and window: its credit by each model, in the models' order."""

    name: str
    credit: tuple[Quantity | None, ...]


@dataclass(frozen=True, slots=True)
class AttributionFigures:
    """``rows`` are what the picture shows: touchpoints by the first model's credit, the unattributed last."""

    models: tuple[str, ...]
    what: str
    unit: Unit
    rows: tuple[CreditRow, ...]
    scope: str
    leading: tuple[str, Quantity] | None
    reconciliations: tuple[ReconciliationFigures, ...]
    parts: tuple[Part, ...]

    pictures = ("credit", "reconciliation")

    @property
    def drawn_models(self) -> tuple[str, ...]:
        return self.models[:MOST_MODELS]


Credit = Mapping[tuple[str, str, Scope], Mapping[str, Quantity]]
"""By model, touchpoint and scope; each figure by its kind."""


def model_label(name: str) -> str:
    """A model inside a sentence."""
    return _PEOPLE.get(name) or isolate(human(name))


def read_attribution(result: Node) -> AttributionFigures:
    credit: dict[tuple[str, str, Scope], dict[str, Quantity]] = {}
    models: dict[str, None] = {}
    points: dict[str, None] = {}
    conversions: dict[str, None] = {}
    windows: dict[str, None] = {}
    arms: list[Node] = []
    places: list[Node] = []
    rest: list[Node] = []
    for e in result.nodes("estimates"):
        estimand = e.text("estimand")
        if estimand == _ARMS:
            arms.append(e)
        elif estimand == _PLACES:
            places.append(e)
        elif estimand not in _CREDIT:
            rest.append(e)
        else:
            model, point = e.name("model"), e.name("touchpoint")
            scope = (e.name("conversion"), e.name("window"))
            models[model], points[point], conversions[scope[0]], windows[scope[1]] = None, None, None, None
            credit.setdefault((model, point, scope), {})[_CREDIT[estimand]] = quantity_of(e)
    if not credit:
        raise MissingFigure(f"{result.path}.estimates hold no credit; an attribution without a figure is a refusal")
    scopes = [(c, w) for c in conversions for w in windows if any(key[2] == (c, w) for key in credit)]
    names, first, here = list(models), next(iter(models)), scopes[0]
    kinds = {kind for of in credit.values() for kind in of}
    main = "value" if "value" in kinds else "conversions"
    share = "value share" if main == "value" else "conversion share"

    def of(model: str, point: str, scope: Scope, kind: str) -> Quantity | None:
        return credit.get((model, point, scope), {}).get(kind)

    def rank(point: str) -> float:
        found = of(first, point, here, main) or of(first, point, here, share)
        return -found.value if found is not None else 0.0

    few = [p for p in points if p.startswith("(") and p not in (REST, TOTAL, *_NAMES_OF_DATA)]
    touched = sorted((p for p in points if p not in (REST, TOTAL, *few)), key=rank)
    ordered = [*touched, *few, *(p for p in (REST, TOTAL) if p in points)]
    drawn = share if any(of(m, p, here, share) for m in names for p in points) else main
    picture = tuple(CreditRow(label(p), tuple(of(m, p, here, drawn) for m in names)) for p in ordered if p != TOTAL)
    named = [(m, model_label(m)) for m in names]
    table = _Table(credit, ordered, named, conversions, windows)
    top = of(first, touched[0], here, share) or of(first, touched[0], here, main) if touched else None
    found = _reconciliations(result)
    parts = [
        *table.credit(here, main, share, len(scopes) > 1),
        *table.costs(scopes, here),
        *table.side_by_side(scopes, main, share),
        *_place_parts(places),
        *_arm_parts(arms),
        *_reconciliation_parts(found),
        *others_of(rest),
    ]
    return AttributionFigures(
        models=tuple(said for _, said in named),
        what="value" if drawn.startswith("value") else "conversions",
        unit=formats.unit("share") if drawn == share else _unit(result, main),
        rows=picture,
        scope=table.said(here),
        leading=(f"{label(touched[0])}, by {model_label(first)}", top) if touched and top is not None else None,
        reconciliations=found,
        parts=tuple(parts),
    )


def _unit(result: Node, kind: str) -> Unit:
    return next(
        formats.unit(e.text("unit", "")) for e in result.nodes("estimates") if _CREDIT.get(e.text("estimand")) == kind
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """Tables of credit. ``ordered`` are the touchpoints as they are shown; ``models`` by name and as they are called."""

    found: Credit
    ordered: Sequence[str]
    models: Sequence[tuple[str, str]]
    conversions: Mapping[str, None]
    windows: Mapping[str, None]

    def cell(self, model: str, point: str, scope: Scope, kind: str, second: str = "") -> Cell:
        of = self.found.get((model, point, scope), {})
        whole = point == TOTAL  # its share of itself says nothing
        return figure(of.get(kind), None if whole else of.get(second), without="not shown")

    def named(self, kind: str) -> str:
        names = dict.fromkeys(of[kind].interval_name for of in self.found.values() if kind in of)
        return ", ".join(names)

    def said(self, scope: Scope) -> str:
        parts = [label(scope[0])] if len(self.conversions) > 1 else []
        return ", ".join([*parts, f"{isolate(scope[1])} window"])

    def credit(self, scope: Scope, main: str, share: str, several: bool) -> Iterator[Part]:
        grids: list[Grid] = []
        other = "conversions" if main == "value" else ""
        for kind, beside in ((main, share), (other, "conversion share")):
            if not any(kind in of for of in self.found.values()):
                continue
            rows = [
                (Cell(label(p)), [self.cell(m, p, scope, kind, beside) for m, _ in self.models]) for p in self.ordered
            ]
            caption = (
                f"Attributed {kind}, and its share of all, by model ({self.said(scope)}), with the {self.named(kind)}"
            )
            folded = "" if kind == main else "Attributed conversions in a table"
            grids += across(caption, "Touchpoint", [formats.capital(said) for _, said in self.models], rows, folded)
        left = (
            f" {len(self.models) - MOST_MODELS} more models are in the table." if len(self.models) > MOST_MODELS else ""
        )
        first = f" Shown: {self.said(scope)}; the others follow." if several else ""
        yield Part(
            "Attributed credit by model",
            (),
            tuple(grids),
            "credit",
            under=f"Mark: the share of {'value' if main == 'value' else 'conversions'} attributed by one model; line: its interval."
            f"{left}{first}",
        )

    def costs(self, scopes: Sequence[Scope], here: Scope) -> Iterator[Part]:
        """Both figures in one cell, where there are both."""
        kinds = [kind for kind in ("return", "cost") if any(kind in of for of in self.found.values())]
        if not kinds:
            return
        called = {"return": "attributed value per cost", "cost": "cost per attributed conversion"}
        title = formats.capital(", and below it ".join(called[kind] for kind in kinds))
        grids: list[Grid] = []
        for scope in scopes:
            points = [
                p for p in self.ordered if any(kinds[0] in self.found.get((m, p, scope), {}) for m, _ in self.models)
            ]
            rows = [(Cell(label(p)), [self.cell(m, p, scope, *kinds) for m, _ in self.models]) for p in points]
            caption = f"{title}, by model ({self.said(scope)}), with the {self.named(kinds[0])}"
            folded = "" if scope == here else "The other windows and conversions"
            grids += (
                across(caption, "Touchpoint", [formats.capital(said) for _, said in self.models], rows, folded)
                if rows
                else ()
            )
        yield Part(
            "Cost",
            (
                "Of touchpoints whose cost is known. The value is attributed: it does not say what would be lacking without the touchpoint.",
            ),
            tuple(grids),
        )

    def side_by_side(self, scopes: Sequence[Scope], main: str, share: str) -> Iterator[Part]:
        if len(scopes) < 2:
            return
        kinds = [(main, share)]
        if main == "value" and any("conversions" in of for of in self.found.values()):
            kinds.append(("conversions", "conversion share"))
        fit = max(MOST_CELLS // (len(kinds) * len(scopes) * len(self.ordered)), 1)
        grids: list[Grid] = []
        for k, (model, said) in enumerate(self.models[:fit]):
            for kind, beside in kinds:
                rows = [(Cell(label(p)), [self.cell(model, p, s, kind, beside) for s in scopes]) for p in self.ordered]
                caption = f"Attributed {kind} by {said}, and its share of all, with the {self.named(kind)}"
                folded = "" if not k and kind == main else f"By {said}" if k else f"Attributed conversions by {said}"
                grids += across(caption, "Touchpoint", [self.said(s) for s in scopes], rows, folded)
        more = len(self.models) - fit
        left = (f"{more} more models are in the JSON of the run.",) if more > 0 else ()
        several = len(self.conversions) > 1
        title = (
            "Conversions and windows" if several and len(self.windows) > 1 else "Conversions" if several else "Windows"
        )
        yield Part(f"{title} side by side", left, tuple(grids))


def _place_parts(places: Sequence[Node]) -> Iterator[Part]:
    """Ordered credit by place in the path: one table for each conversion and window."""
    scopes: dict[tuple[str, str, str], dict[str, dict[int, Quantity]]] = {}
    heads: dict[int, str] = {}
    for e in places:
        scope = (e.name("model"), e.name("conversion"), e.name("window"))
        at = int(e.number("position"))
        name, _, touch = e.name("touchpoint").rpartition(", touch ")
        heads[at] = f"Touch {touch or at}"
        scopes.setdefault(scope, {}).setdefault(label(name or touch), {})[at] = quantity_of(e)
    grids: list[Grid] = []
    columns = sorted(heads)
    for (model, conversion, window), of in scopes.items():
        rows = [
            (Cell(name), [figure(x.get(at), without="none or too few") for at in columns]) for name, x in of.items()
        ]
        about = f"{label(conversion)}, {isolate(window)} window"
        caption = f"Attributed conversions by {model_label(model)}, by place in the path ({about})"
        grids += across(caption, "Touchpoint", [heads[at] for at in columns], rows, "By place in the path")
    if grids:
        yield Part("Credit by place in the path", (), tuple(grids))


def _arm_parts(arms: Sequence[Node]) -> Iterator[Part]:
    """One table for each contrast, conversion and window: touchpoints down, models across; first all that is attributed."""
    tables: dict[tuple[str, ...], dict[str, dict[str, Quantity]]] = {}
    units: dict[tuple[str, ...], str] = {}
    models: dict[str, None] = {}
    for e in arms:
        scope = tuple(isolate(e.name(key)) for key in ("conversion", "window") if e.has(key))
        about = (isolate(e.text("contrast")), *scope)
        point = e.name("touchpoint") if e.has("touchpoint") else TOTAL
        model = e.name("model") if e.has("model") else ""
        models |= {model: None} if model else {}
        quantity = read_quantity(e, formats.unit(e.text("unit", "")), change=True)
        tables.setdefault(about, {}).setdefault(point, {})[model] = quantity
        units[about] = ", ".join(
            f"{isolate(formats.clean(str(a)))} {formats.count(int(c))}" for a, c in e.node("n").data.items()
        )
    columns = list(models) or [""]
    heads = [formats.capital(model_label(m)) if m else "Difference" for m in columns]
    grids: list[Grid] = []
    for about, points in tables.items():
        named = ", ".join(dict.fromkeys(q.interval_name for of in points.values() for q in of.values()))
        rows = [
            (
                Cell("All that is attributed" if point == TOTAL else label(point)),
                [figure(of.get(m) or of.get(""), without="no difference") for m in columns],
            )
            for point, of in sorted(points.items(), key=lambda kv: kv[0] != TOTAL)
        ]
        caption = (
            f"Difference in attributed value per unit, {', '.join(about)}, with its {named}, each read by itself: nothing is corrected for how"
            f" many cells there are (units: {units[about]})"
        )
        grids += across(caption, "Touchpoint", heads, rows, "" if not grids else "The other contrasts and windows")
    if grids:
        yield Part(
            "Attributed value, arm against arm",
            (
                "What was attributed per unit in each arm, of all touches, personalised or not, compared. It is a difference in"
                " attributed value, not in value.",
            ),
            tuple(grids),
        )


# ---------------------------------------------------------------- attributed and incremental


def _reconciliations(result: Node) -> tuple[ReconciliationFigures, ...]:
    if not result.has("closer"):
        return ()
    level = next((e.number("level") for e in result.nodes("estimates")), 0.95)
    return tuple(_reconciliation(r, level) for r in result.node("closer").nodes("reconciliation", optional=True))


def _reconciliation(node: Node, level: float) -> ReconciliationFigures:
    unit = formats.unit(node.text("unit", ""))

    def span(at: Node, key: str, kind: str, what: Unit = unit, change: bool = False) -> Quantity | None:
        return read_quantity(at.node(key), what, kind=kind, level=level, change=change) if at.has(key) else None

    def needed(at: Node, key: str, kind: str, change: bool = False) -> Quantity:
        return read_quantity(at.node(key), unit, kind=kind, level=level, change=change)

    share = Unit("share")
    lines = []
    for row in node.nodes("rows"):
        by = row.text("by")
        if by not in _BY:
            raise MissingFigure(f"{row.path}.by is {by!r}, which the report does not know")
        kind = "confidence" if by == "own experiment" else "simulation"
        lines.append(
            ReconciledLine(
                name=label(row.name("touchpoint")) + (", not personalised" if by == "not personalised" else ""),
                by=_BY[by],
                attributed=needed(row, "attributed", "bootstrap"),
                incremental=span(row, "incremental", kind, change=True),
                ratio=span(row, "ratio", "simulation", share),
                conflict=row.text("conflict", ""),
            )
        )
    return ReconciliationFigures(
        experiment=label(node.text("experiment").partition(".")[2] or node.text("experiment")),
        contrast=isolate(node.text("contrast")),
        model=model_label(node.name("model")),
        unit=unit,
        units=formats.count(int(node.number("units"))),
        attributed=needed(node, "attributed", "bootstrap"),
        incremental=needed(node, "incremental", "confidence", change=True),
        ratio=span(node, "ratio", "simulation", share),
        anyway=span(node, "anyway", "simulation", share),
        lines=tuple(lines),
        rule=formats.fenced(node.text("rule", "")),
        reason=formats.fenced(node.text("reason", "")),
        sentence=node.prose("sentence"),
    )


def _reconciliation_parts(found: Sequence[ReconciliationFigures]) -> Iterator[Part]:
    """The first in full, with its picture; all of them side by side, each other one's touchpoints folded away."""
    if not found:
        return
    r, several = found[0], len({x.contrast for x in found}) > 1
    said = [sentence(r.sentence), r.anyway_text, f"Rule: {sentence(r.rule)}" if r.rule else ""]
    said += [f"Conflict. {text}" for text in r.conflicts]
    yield Part(
        f"Attributed and incremental, by {r.model}" + (f", {r.contrast}" if several else ""),
        tuple(formats.capital(text) for text in said if text),
        (_by_touchpoint(r, ""),),
        "reconciliation",
        under="Hollow mark: attributed; full mark: incremental; line: interval.",
    )
    if len(found) < 2:
        return
    rows = [
        (
            Cell(formats.capital(x.model), note=x.contrast if several else ""),
            [
                Cell("", x.attributed),
                Cell("", x.incremental),
                figure(x.ratio, without="not told"),
                figure(x.anyway, without="not told", note=sentence(x.reason) if x.anyway is None and x.reason else ""),
            ],
        )
        for x in found
    ]
    heads = ["Attributed", "Incremental", "Ratio", "Beyond what is shown"]
    caption = f"What each model attributes against what {r.experiment} shows, with intervals as above; the share of the credit beyond what is shown"
    conflicts = [f"Conflict, by {x.model}. {text}" for x in found[1:] for text in x.conflicts]
    rules = [f"Rule for {x.model}: {sentence(x.rule)}" for x in found[1:] if x.rule not in ("", r.rule)]
    yield Part(
        "Attributed and incremental, model by model",
        (*conflicts, *rules),
        (*across(caption, "Model", heads, rows), *(_by_touchpoint(x, "Touchpoint by touchpoint") for x in found[1:])),
    )


def _by_touchpoint(r: ReconciliationFigures, folded: str) -> Grid:
    total = (
        Cell("All together", note=f"{r.units} units of {r.contrast}"),
        Cell("", r.attributed),
        Cell("", r.incremental),
        figure(r.ratio, without="not told"),
        Cell(
            "the holdout",
            note=f"of the credit, beyond what is shown: {r.anyway.text} ({r.anyway.range})" if r.anyway else "",
        ),
    )
    rows = [
        (
            Cell(line.name),
            Cell("", line.attributed),
            figure(line.incremental, without="not tested"),
            figure(line.ratio, without="not told"),
            Cell(line.by, note="in conflict with its credit" if line.conflict else ""),
        )
        for line in r.lines
    ]
    names = dict.fromkeys(
        f"{what} with its {q.interval_name}"
        for what, q in (("attributed", r.attributed), ("incremental", r.incremental), ("the rest", r.ratio))
        if q is not None
    )
    return Grid(
        f"Attributed by {r.model} against what {r.experiment} shows: {'; '.join(names)}",
        ("Touchpoint", "Attributed", "Incremental", "Ratio", "How it is known"),
        (total, *rows),
        folded,
    )


# ---------------------------------------------------------------- ids taken together


def stitching_parts(closer: Node) -> Iterator[Part]:
    """What identity did to the rows of a result, an experiment's too."""
    for s in closer.nodes("stitching", optional=True):
        entity = label(s.text("entity"))
        before, after = s.node("before").data, s.node("after").data
        kinds = list(dict.fromkeys([*before, *after]))
        counted = tuple(
            (Cell(formats.capital(formats.clean(str(k)))), _count(before.get(k)), _count(after.get(k))) for k in kinds
        )
        rows = [
            (Cell("Pairs of ids that were read"), _count(s.number("pairs")), Cell(f"from {isolate(s.text('source'))}")),
            (Cell("Ids taken together"), _count(s.number("ids")), Cell(f"into {formats.count(int(s.number('units')))} units")),
            (Cell("Shared by several people"), _count(s.number("shared_count")), _most(s, "shared", "people")),
            (Cell("Blocked values"), _count(len(s.items("blocked"))), _most(s, "blocked", "pairs")),
            (Cell("Too large to be one unit"), _count(len(s.items("too_large"))), _most(s, "too_large", "ids")),
            (Cell("Largest"), Cell("none" if not s.items("largest") else formats.count(int(s.items("largest")[0][1])),
                                   note="ids of one unit" if s.items("largest") else ""), _most(s, "largest", "ids")),
        ]  # fmt: skip
        grids = [Grid("What joined what", ("What", "How many", "Which"), tuple(rows))]
        if counted:
            heads = ("What", "Before", "After")
            grids.insert(0, Grid("What this result reads, before ids were taken together and after", heads, counted))
        yield Part(f"{entity}: ids taken together", (sentence(s.prose("sentence")),), tuple(grids))


def _count(n: object) -> Cell:
    return Cell(formats.count(int(n)) if isinstance(n, int | float) else "not counted")


def _most(node: Node, key: str, unit: str) -> Cell:
    """The first few of a list of (value, count), in words."""
    found = node.items(key)
    said = [
        f"{isolate(formats.shorten(formats.clean(str(v)) or '(empty)', 40))}: {formats.count(int(n))} {unit}"
        for v, n in found
    ]
    more = f"; and {len(said) - 5} more" if len(said) > 5 else ""
    return Cell("; ".join(said[:5]) + more if said else "none")

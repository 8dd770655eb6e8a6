"""The figures on a terminal: readable at 80 columns, without colour and with ASCII alone."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from payoff import formats
from payoff.report.figures import (
    ClaimFigures,
    Effect,
    Figures,
    Grid,
    Looks,
    PeekingLook,
    Programme,
    Quantity,
    RefusalLine,
    Section,
    SegmentsLook,
    State,
    build,
    sentence,
)
from payoff.report.figures import Part as GridPart

_STYLES = {"strong": "bold blue", "good": "green", "quiet": "", "warn": "yellow", "bad": "bold red", "off": "dim"}
_WIDEST = 100


def text(run: Mapping[str, Any]) -> str:
    """The report of a run (its JSON) as plain text, 80 columns wide."""
    out = io.StringIO()
    render(build(run), Console(file=out, width=80, no_color=True, highlight=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def render(figures: Figures, console: Console, *, brief: bool = False) -> None:
    """Print ``figures``. ``brief`` leaves out what backs them: arms, checks that passed, assumptions, inputs."""
    _Printer(console, brief).print(figures)


_BRIEF_CELLS = 30


class _Printer:
    def __init__(self, console: Console, brief: bool) -> None:
        self.console = console
        self.brief = brief
        self.ascii = console.options.ascii_only or console.is_dumb_terminal
        self.width = min(console.width, _WIDEST)

    # ---------------------------------------------------------------- pieces

    def _text(self, words: str, style: str = "") -> Text:
        # Names come from other people's data: never parsed as markup, never highlighted.
        return Text(formats.ascii_only(words) if self.ascii else words, style=style)

    def _cut(self, words: str, room: int) -> Text:
        """A name in a column of ``room`` cells; the whole of it stands above."""
        if self.ascii:
            words = formats.ascii_only(words)
            return Text(words if len(words) <= room else f"{words[: room - 3]}...")
        return Text(formats.shorten(words, room))

    def _put(self, what: RenderableType, indent: int = 0) -> None:
        self.console.print(Padding(what, (0, 0, 0, indent), expand=False), width=self.width, highlight=False)

    def _line(self, words: str, indent: int = 0, style: str = "") -> None:
        self._put(self._text(words, style), indent)

    def _space(self) -> None:
        self.console.print()

    def _heading(self, words: str) -> None:
        self._space()
        self._line(words.upper(), style="bold")
        self._line("\u2500" * self.width)

    def _state(self, state: State) -> Text:
        return self._text(f"{state.shape} {state.label}", _STYLES[state.tone])

    def _hanging(self, lead: str, words: str, indent: int, style: str = "") -> None:
        """``words`` wrapped beside ``lead``, never under it."""
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(self._text(lead, style), self._text(words))
        self._put(grid, indent)

    def _pairs(self, rows: Iterable[tuple[str, str]], indent: int) -> None:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for name, words in rows:
            grid.add_row(self._text(name), self._text(words))
        self._put(grid, indent)

    def _list(self, title: str, lines: Iterable[str], indent: int) -> None:
        lines = list(lines)
        if not lines:
            return
        self._space()
        self._line(title, indent, "bold")
        for line in lines:
            self._hanging("\u00b7", line, indent)

    def _refusals(self, lines: Iterable[RefusalLine], indent: int) -> None:
        for line in lines:
            self._line(line.name, indent, "bold")
            self._hanging("why:", line.reason, indent + 2)
            self._hanging("what would change it:", line.remedy, indent + 2)

    # ---------------------------------------------------------------- the report

    def print(self, f: Figures) -> None:
        self._line(f"{f.kicker} \u00b7 {f.dated}")
        self._space()
        self._line(f"{f.title}.", style="bold")
        self._space()
        self._put(Text.assemble(self._state(f.state), self._text(f"  {f.standfirst}")))
        if f.decision:
            self._line(f"Decision asked for: {f.decision}")
        if f.risks:
            self._heading("Largest risks")
            for number, risk in enumerate(f.risks, 1):
                self._hanging(f"{number}.", risk, 0)
        if f.claims:
            self._heading("Claims")
            for index, claim in enumerate(f.claims):
                self._space() if index else None
                self._claim(claim)
        if f.sections:
            self._heading("Evidence")
            for index, section in enumerate(f.sections):
                self._space() if index else None
                self._section(section)
        if f.refusals:
            self._heading("Not answered")
            self._refusals(f.refusals, 0)
        self._heading("Provenance")
        self._pairs(f.provenance, 0)

    def _claim(self, c: ClaimFigures) -> None:
        self._put(Text.assemble(self._text(c.title, "bold"), "  ", self._state(c.state)))
        self._line(f"{c.finding}.", 2)
        if c.reason:
            self._line(c.reason, 2)
        rows = [("Net of cost" if c.has_costs else "Amount", c.net.full)]
        if c.has_costs:
            rows += [("Amount", c.amount.full), ("Cost", c.cost)]
            rows += [(f"  {step.name}", f"{step.text} ({step.range})") for step in c.bridge[1:-1]]
        if c.roi is not None:
            rows.append(("Return on cost", c.roi.full))
        if c.has_costs:
            rows.append(("Payback", c.payback))
        if c.state.key != "withheld":
            rows.append(("Above zero", c.probability))
        rows += [("Evidence grade", c.grade_text), ("Decision", c.decision)]
        if c.dots_text:
            rows.append(("Outcomes", c.dots_text))
        if c.extrapolated:
            rows.append(("Assumes", "the measured effect holds over the whole period and for everyone counted"))
        self._space()
        self._pairs([(formats.shorten(name, 24), words) for name, words in rows], 2)
        self._list("What would overturn this", c.overturns, 2)
        if c.compare and not self.brief:
            lines = [
                f"{x.name}, {x.model}: {f'{x.quantity.full}; ' if x.quantity is not None else ''}{x.sentence}"
                for x in c.compare
            ]
            self._list("Beside it: what is attributed", lines, 2)
        if self.brief:
            return
        self._list(
            "Inputs",
            (
                f"{i.name}: {i.text} ({i.range}); source {i.source}; owner {i.owner}; expires {i.expires}"
                for i in c.inputs
            ),
            2,
        )
        self._list(f"Why grade {c.grade}", c.grade_reasons, 2)
        self._list("What must hold", c.assumptions, 2)
        self._list("Notes", c.notes, 2)

    def _section(self, s: Section) -> None:
        self._put(Text.assemble(self._text(s.title, "bold"), "  ", self._state(s.state)))
        self._line(s.question, 2)
        self._line(f"{s.finding}.", 2)
        self._line(s.standing, 2)
        if s.withheld:
            self._line("Do not use the figures below.", 2, "bold red")
        for alarm in s.looks.alarms:
            self._line(f"Before the overall figure is read: {sentence(alarm.sentence)}", 2, "bold red")
        for effect in s.effects:
            self._effect(effect, s.withheld)
        if s.programme is not None:
            self._programme(s.programme)
        for part in self._short(s) if self.brief else s.parts:
            self._whole_part(part)
        if not self.brief:
            self._arms(s)
            self._looks(s.looks)
        elif s.looks.peeking is not None and s.looks.peeking.state.key == "warn":
            self._peeking(s.looks.peeking)
        self._list("What would overturn this", s.looks.overturn, 2)
        checks = [c for c in s.checks if not self.brief or c.state.key in ("fail", "warn")]
        if checks:
            self._space()
            self._line("Checks", 2, "bold")
        for check in checks:
            statistic = f" (statistic {check.statistic})" if check.statistic != "none" else ""
            self._hanging(
                f"{check.state.shape} {check.state.label:<8}",
                f"{check.name}{statistic}: {check.detail}",
                2,
                _STYLES[check.state.tone],
            )
        if not self.brief:
            self._list("What must hold", (f"{a.text} [{a.tested_by}]" for a in s.assumptions), 2)
            self._list("Left out", (f"{why}: {n}" for why, n in s.left_out), 2)
        if s.refusals:
            self._space()
            self._line("Not answered here", 2, "bold")
            self._refusals(s.refusals, 2)

    def _short(self, s: Section) -> list[GridPart]:
        """A journey's leading table, where it is short enough to be a finding."""
        shown = [p for p in s.parts if any(not g.folded for g in p.grids)][: 0 if s.journey is None else 1]
        return [p for p in shown if sum(len(g.rows) * len(g.heads) for g in p.grids if not g.folded) <= _BRIEF_CELLS]

    def _effect(self, e: Effect, withheld: bool) -> None:
        self._space()
        style = _STYLES[e.tone]
        self._put(
            Text.assemble(
                self._text(f"{e.state.shape} ", style), self._text(e.label, "bold"), self._text(f" ({e.role_text})")
            ),
            2,
        )
        self._line(e.contrast, 4)
        self._put(self._interval(e.deciding, style), 4)
        if e.adjusted is not None:
            self._line(f"{e.family}; read alone {e.quantity.text} ({e.quantity.range})", 4)
        if e.relative is not None:
            self._line(f"relative {e.relative.text} ({e.relative.range})", 4)
        facts = [] if withheld else [e.test if e.test != "not defined" else "no p-value is defined"]
        if e.adjusted is not None and not withheld:
            facts[0] += f" corrected, {e.p_value} alone"
        facts.append(f"{e.n_text} units")
        if e.margin_text:
            facts.append(f"margin of harm {e.margin_text}")
        if e.target_text:
            facts.append(f"target {e.target_text}")
        self._line("; ".join(facts), 4)
        self._put(Text.assemble(self._text(formats.capital(e.state.label), style), self._text(f": {e.reading}")), 4)
        if e.caveat:
            self._line(f"Caveat: {e.caveat}", 4)

    def _interval(self, q: Quantity, style: str) -> Text:
        return Text.assemble(self._text(q.text, f"bold {style}".strip()), self._text(f"  {q.interval_name} {q.range}"))

    # ---------------------------------------------------------------- the closer looks

    def _part(self, title: str, said: Iterable[str], lines: Iterable[str]) -> None:
        self._space()
        self._line(title, 2, "bold")
        for words in said:
            self._line(sentence(words), 2)
        for line in lines:
            self._hanging("\u00b7", line, 4)

    def _whole_part(self, part: GridPart) -> None:
        open_grids = [grid for grid in part.grids if not grid.folded]
        folded = len(part.grids) - len(open_grids)
        self._part(part.title, part.said, ())
        for grid in open_grids:
            self._grid(grid)
        if folded and not self.brief:
            tables = "A table" if folded == 1 else f"{folded} tables"
            self._line(f"{tables} more of this: in the HTML report, and in --json.", 4)

    def _grid(self, grid: Grid) -> None:
        """Side by side where all of it fits, with intervals beside the numbers or below them; else each row written out. Nothing
        is ever cut."""
        self._hanging("", grid.caption, 3)
        words = [[c.short for c in row] for row in grid.rows]
        below = [["\n".join(c.lines) for c in row] for row in grid.rows]
        for cells in (words, below):
            needed = [
                max(cell_len(line) for text in column for line in text.split("\n"))
                for column in zip(grid.heads, *cells, strict=True)
            ]
            if sum(needed) + 2 * (len(needed) - 1) <= self.width - 4:
                table = Table.grid(padding=(0, 2))
                for k in range(len(needed)):
                    table.add_column(no_wrap=True, justify="right" if k else "left")
                table.add_row(*(self._text(head, "bold") for head in grid.heads))
                for row in cells:
                    table.add_row(*(self._text(text) for text in row))
                self._put(table, 4)
                return
        for row in words:
            said = "; ".join(f"{head}: {text}" for head, text in zip(grid.heads[1:], row[1:], strict=True))
            self._hanging("\u00b7", f"{row[0]}. {said}", 4)

    def _looks(self, k: Looks) -> None:
        if k.precision:
            lines = [
                f"{p.label}, {p.contrast}: {p.adjusted.full} adjusted ({p.by}), {p.plain.text} ({p.plain.range}) not adjusted"
                for p in k.precision
            ]
            self._part("Precision", (p.sentence for p in k.precision), lines)
        for s in k.segments:
            self._segments(s)
        for t in k.over_time:
            what = "so far" if t.calendar else "by days since exposure"
            points = [f"{p.label}: {p.quantity.text} ({p.quantity.range})" for p in t.points]
            name = f"Intervals: {t.points[0].quantity.interval_name}"
            notes = [note for note in (f"Trend: {t.trend}" if t.trend else "", name, t.left_out_text) if note]
            self._part(f"{t.label} {what}, {t.contrast}", (t.sentence, *notes), points)
        for d in k.cannibalisation:
            named = [("Gained on the treated path", d.gained), ("All other paths", d.others), ("Net", d.net)]
            named += [("Would have happened anyway", d.anyway)] if d.anyway is not None else []
            named += [(path.name, path.quantity) for path in d.paths]
            said = [d.sentence] if d.anyway is not None else [d.sentence, f"Not told: {d.reason}"]
            self._part(
                f"What was gained, and what others lost, {d.contrast}",
                said,
                (f"{name}: {q.text} ({q.range})" for name, q in named),
            )
        if k.interactions:
            lines = [
                f"{i.other} ({i.other_contrast}), {i.label}: "
                + (f"{i.quantity.full}; {i.test}" if i.quantity is not None else "no figure")
                + f"; assignments: {i.assignment}; {i.both} units are in both"
                for i in k.interactions
            ]
            self._part("Other experiments on the same units", (i.sentence for i in k.interactions), lines)
        if k.bayes:
            lines = [
                f"{b.label}, {b.contrast}: {b.lift.full}; chance to beat control {b.chance}; expected loss {b.loss}; prior {b.prior}"
                for b in k.bayes
            ]
            self._part("Bayesian reading, apart from the rest", (b.sentence for b in k.bayes), lines)
        if k.diluted:
            lines = [
                f"{x.label}, {x.contrast}: {x.quantity.full}; {x.share.text} ({x.share.range}) triggered"
                for x in k.diluted
            ]
            self._part("The effect on everyone assigned", (x.sentence for x in k.diluted), lines)
        if k.capping:
            lines = [
                f"{c.label}, {c.contrast}: {c.plain.full} as it is, {c.capped.text} ({c.capped.range}) with a cap at {c.cap}"
                for c in k.capping
            ]
            self._part("Heavy tails", (c.sentence for c in k.capping), lines)
        if k.kept_back:
            self._space()
            self._line("Closer looks that would conclude something are not shown while a check fails.", 2)
        if k.peeking is not None:
            self._peeking(k.peeking)

    def _segments(self, s: SegmentsLook) -> None:
        lines = []
        for row in s.rows:
            if row.quantity is None:
                lines.append(f"{row.name}: no figure; {row.reason}")
                continue
            pooled = f"; pooled {row.pooled.text} ({row.pooled.range})" if row.pooled is not None else ""
            lines.append(
                f"{row.state.shape} {row.name} ({row.n} units): {row.quantity.text} ({row.quantity.range}), {row.state.label};"
                f" {row.p_value} corrected, {row.raw_p_value} alone{pooled}"
            )
        notes = [f"Do the classes differ? {formats.capital(s.interaction)}, corrected over attributes; {s.spread}"]
        if s.flip != "none":
            notes.append(f"Are some helped and some harmed? Gail and Simon's test: {s.flip_test}")
        if s.read and s.read[0].quantity is not None:
            notes.append(f"Intervals: {s.read[0].quantity.interval_name}")
        self._part(f"{s.label} by {s.attribute}, {s.contrast}", (s.sentence, *notes), lines)

    def _peeking(self, p: PeekingLook) -> None:
        notes = [f"{p.state.shape} {p.sentence}", f"Stopping rule: {p.rule}"]
        if p.information:
            notes.append(f"{p.information} of the planned units are in")
        if p.state.key == "warn":
            notes.append(f"Chance of a false finding at {p.times} looks: {p.error_text}; at one: {p.alpha_text}")
        looks = [f"{x.at}, by {x.by}: {x.units_text} units, data to {x.as_of}" for x in p.looks]
        self._part("Who looked when", notes, () if self.brief or len(looks) < 2 else looks)

    def _programme(self, p: Programme) -> None:
        lines = [
            f"{m.label}, {m.contrast}: {m.raw.full}" + (f"; shrunk {m.shrunk.full}" if m.shrunk else "")
            for m in p.members
        ]
        if lines:
            self._part(f"{p.metric}, experiment by experiment", (), lines)
        totals = [f"{t.label}: {t.quantity.full}" for t in (*p.totals, *p.others)]
        if totals:
            self._part("Together", (), totals)

    def _arms(self, s: Section) -> None:
        if not s.arms:
            return
        self._space()
        self._line(f"Arms (level and {s.arms[0].quantity.interval_name})", 2, "bold")
        figures = [(a.n, a.quantity.text, formats.without_unit(a.quantity.text, a.quantity.range)) for a in s.arms]
        needed = sum(max(cell_len(row[k]) for row in figures) for k in range(3)) + 8 + 2
        room = (self.width - needed) // 2
        if room < 8:  # a number is never cut: what does not fit side by side is written out
            for arm, (n, text, span) in zip(s.arms, figures, strict=True):
                self._hanging("\u00b7", f"{arm.metric}, {arm.arm}: {text} ({span}); {n} units", 4)
            return
        grid = Table.grid(padding=(0, 2))
        grid.add_column(overflow="crop", no_wrap=True)
        grid.add_column(overflow="crop", no_wrap=True)
        for _ in range(3):
            grid.add_column(no_wrap=True, justify="right")
        for arm, row in zip(s.arms, figures, strict=True):
            grid.add_row(self._cut(arm.metric, room), self._cut(arm.arm, room), *(self._text(words) for words in row))
        self._put(grid, 2)

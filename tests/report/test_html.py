"""The HTML report: one file that asks for nothing, reads in order, and shows what the terminal shows."""

from __future__ import annotations

import errno
import os
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from payoff.errors import ConnectionFailed, UsageError
from payoff.report import html
from payoff.report.figures import build
from tests.report import runs

VOID = {"meta", "link", "br", "wbr", "img", "input", "hr"}


class Page(HTMLParser):
    """What the tests look at: elements with their attributes, the text of each, and the whole text as read."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append((tag, []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        name, text = self.open.pop()
        assert name == tag
        self.texts.append((tag, "".join(text).strip()))

    def handle_data(self, data: str) -> None:
        for _, text in self.open:
            text.append(data)
        if not self.open or self.open[-1][0] not in ("style", "title", "desc"):
            self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words)).replace("\u2060", "")  # the word joiner is not read


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: html.page(build(make())) for name, make in runs.ALL.items()}


@pytest.mark.parametrize("name", runs.ALL)
def test_every_figure_is_on_the_page(name: str, pages: dict[str, str]) -> None:
    figures = build(runs.ALL[name]())
    page = Page(pages[name])
    for quantity in figures.quantities():
        assert quantity.text in page.text
        assert quantity.range in page.text
    headings = [text.replace("\u2060", "") for tag, text in page.texts if tag == "h1"]
    assert headings == [f"{figures.title}."]
    for section in figures.sections:
        for line in section.checks:
            assert line.detail in page.text
        for assumption in section.assumptions:
            assert assumption.text in page.text
            assert assumption.tested_by in page.text
    for claim in figures.claims:
        for said in (*claim.overturns, *claim.grade_reasons, *claim.assumptions, claim.decision):
            assert said in page.text
        assert not claim.has_costs or claim.payback in page.text
    for refusal in figures.refusals:
        assert refusal.name in page.text
    for sql in figures.sql:
        assert re.sub(r"\s+", " ", sql.text) in page.text


@pytest.mark.parametrize("name", runs.ALL)
def test_a_minus_never_ends_a_line(name: str, pages: dict[str, str]) -> None:
    assert "\u2212$" not in pages[name]
    assert name != "holdout" or "\u2212\u2060$" in pages[name]


@pytest.mark.parametrize("name", runs.ALL)
def test_the_page_asks_for_nothing(name: str, pages: dict[str, str]) -> None:
    page = Page(pages[name])
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "foreignobject", "use"}
    for _, attrs in page.elements:
        assert not any(key.startswith("on") for key in attrs)
        for key in ("src", "href", "xlink:href", "action", "srcset", "poster"):
            assert attrs.get(key, "#").startswith("#")
    style = next(text for tag, text in page.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")


@pytest.mark.parametrize("name", runs.ALL)
def test_the_page_reads_in_order(name: str, pages: dict[str, str]) -> None:
    page = Page(pages[name])
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert page.of("html")[0]["lang"] == "en"
    assert page.of("a")[0]["href"] == "#main"
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for attrs in page.of("a"):
        assert attrs["href"][1:] in ids
    for _, attrs in page.elements:
        if "aria-labelledby" in attrs:
            assert attrs["aria-labelledby"] in ids


@pytest.mark.parametrize("name", runs.ALL)
def test_pictures_and_tables_are_described(name: str, pages: dict[str, str]) -> None:
    page = Page(pages[name])
    tables, captions = page.of("table"), [t for tag, t in page.texts if tag == "caption"]
    assert len(captions) == len(tables)
    assert all(captions)
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.of("th"))
    for svg in re.findall(r"<svg.*?</svg>", pages[name], re.DOTALL):
        assert 'role="img"' in svg
        assert re.search(r"<title>[^<]+</title><desc>[^<]*\d[^<]*</desc>", svg)


@pytest.mark.parametrize("name", runs.ALL)
def test_no_cell_is_empty(name: str, pages: dict[str, str]) -> None:
    page = Page(pages[name])
    for tag, text in page.texts:
        if tag in ("td", "th", "dd", "dt", "li", "caption", "figcaption", "h1", "h2", "h3", "h4"):
            assert text, tag
    assert "None" not in re.findall(r">\s*(\w+)\s*<", pages[name])
    assert "nan" not in page.text.lower().split()


def test_names_cannot_break_out(pages: dict[str, str]) -> None:
    source = pages["hostile"]
    assert "<script" not in source.lower()
    assert "&lt;script&gt;alert(" in source
    assert "</pre></details><script>" not in source
    assert "\x1b" not in source
    assert "\u202e" not in source
    assert "{{ 7 * 7 }}" in source
    assert "49" not in re.findall(r"Does .*? work", Page(source).text)[0]


def test_sizes_are_small(pages: dict[str, str]) -> None:
    large = ("journeys", "many_models", "compared", "hostile_journeys")
    assert max(len(source.encode()) for name, source in pages.items() if name not in large) < 300_000
    assert all(len(pages[name].encode()) < 600_000 for name in large)


def test_withheld_figures_are_greyed_and_named(pages: dict[str, str]) -> None:
    page = Page(pages["withheld"])
    assert "Do not use the figures below." in page.text
    assert all("greyed" in attrs["class"] for attrs in page.of("li") if "card" in attrs.get("class", "").split())


def test_an_extrapolated_card_is_hatched_with_its_assumption(pages: dict[str, str]) -> None:
    assert 'class="card good hatched"' in pages["holdout"]
    assert "Assumes that the measured effect holds over the whole period" in pages["holdout"]


def test_two_pages_of_one_run_are_the_same(pages: dict[str, str]) -> None:
    assert html.page(build(runs.email())) == pages["email"]


# ---------------------------------------------------------------- contrast


def _luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_contrast_formula() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the well-known grey just below AA


def _themes(source: str) -> list[dict[str, str]]:
    style = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)[0]
    blocks = re.findall(r":root\{(.*?)\}", style)
    return [dict(re.findall(r"--([\w-]+):(#[0-9a-f]{6});", block)) for block in blocks]


def test_text_has_contrast_in_both_themes(pages: dict[str, str]) -> None:
    light, dark = _themes(pages["email"])
    assert set(light) == set(dark) == set(html.LIGHT)
    for theme in (light, dark):
        for ground in ("paper", "card"):
            for ink in ("ink", "muted", "strong", "good", "quiet", "warn", "bad", "off"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
        for tone in (
            "strong",
            "good",
            "quiet",
            "warn",
            "bad",
            "off",
        ):  # the dark band inside the light one: WCAG 1.4.11
            assert contrast(theme[tone], theme[f"{tone}-band"]) >= 3.0, tone


def test_charts_take_their_colours_from_the_theme(pages: dict[str, str]) -> None:
    for svg in re.findall(r"<svg.*?</svg>", pages["holdout"], re.DOTALL):
        assert re.findall(r'(?:fill|stroke)="#', svg) == []
    assert set(re.findall(r"var\(--([\w-]+)\)", pages["holdout"])) <= set(html.LIGHT)


# ---------------------------------------------------------------- the file


def test_writing_replaces_whole(tmp_path: Path) -> None:
    figures = build(runs.refused())
    target = tmp_path / "new" / "report.html"
    assert html.write(figures, target) == target
    assert target.read_text(encoding="utf-8") == html.page(figures)
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]


def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    target.write_text("the old report", encoding="utf-8")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConnectionFailed, match=r"could not be written to .*report\.html: No space left on device"):
        html.write(build(runs.refused()), target)
    assert target.read_text(encoding="utf-8") == "the old report"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConnectionFailed, match="could not be written"):
        html.write(build(runs.refused()), tmp_path / "file" / "report.html")


# ---------------------------------------------------------------- notebooks


@pytest.mark.parametrize("name", runs.ALL)
def test_a_snippet_leads_with_the_sentence(name: str) -> None:
    run = runs.ALL[name]()
    figures = build(run)
    snippet = html.snippet(run)
    page = Page(snippet)
    for section in figures.sections:
        assert section.finding in page.text
        assert section.grade_text in page.text
        assert section.state.label in page.text.lower()
        for effect in section.effects:
            assert effect.quantity.range in page.text
        for check in section.checks:
            assert (check.detail in page.text) == (check.state.key in ("fail", "warn"))
    for claim in figures.claims:
        assert claim.finding in page.text
    assert "<script" not in snippet
    assert "<style" not in snippet
    assert "\x1b" not in snippet
    first = next(text for tag, text in page.texts if tag == "p")
    assert first.rstrip(".") in {*(c.finding for c in figures.claims), *(s.finding for s in figures.sections)} or (
        first.startswith("Not answered")
    )


def test_a_snippet_of_one_result() -> None:
    assert "Click rate rises by 1.03 pp" in html.snippet(runs.email_result())


def test_a_plot_is_the_first_chart() -> None:
    assert html.chart(runs.email()).startswith("<svg")
    assert "From amount to net" in html.chart(runs.holdout())
    with pytest.raises(UsageError, match="nothing to plot"):
        html.chart(runs.refused())

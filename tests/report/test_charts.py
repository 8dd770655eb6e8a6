"""Charts: well-formed, described in words, in the palette, and silent about the network."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from payoff.report import charts
from payoff.report.figures import build
from tests.report import runs

NS = {"s": charts.SVG}


def drawn(name: str) -> list[charts.Chart]:
    figures = build(runs.ALL[name]())
    found = [charts.effects(section) for section in figures.sections]
    for section in figures.sections:
        looks = section.looks
        found += [charts.segments(look) for look in looks.segments]
        found += [charts.over_time(look) for look in looks.over_time]
        found += [charts.cannibalisation(look) for look in looks.cannibalisation]
        found += [charts.precision(looks.precision)]
        found += [charts.peeking(looks.peeking)] if looks.peeking else []
        found += [charts.programme(section.programme)] if section.programme else []
    for claim in figures.claims:
        found += [charts.bridge(claim), charts.tornado(claim), charts.dots(claim)]
    return [chart for chart in found if chart is not None]


@pytest.mark.parametrize(
    "name", ["email", "holdout", "hostile", "withheld", "rich", "peeked", "programme", "hostile_rich"]
)
def test_each_is_one_image_with_its_numbers_in_words(name: str) -> None:
    allowed = {*charts.PALETTE.values(), "none", "transparent"}
    for chart in drawn(name):
        for svg in (chart.wide, chart.narrow):
            root = ElementTree.fromstring(svg)
            assert root.get("role") == "img"
            title, desc = root.find("s:title", NS), root.find("s:desc", NS)
            assert title is not None
            assert desc is not None
            assert title.text
            assert desc.text
            assert any(char.isdigit() for char in desc.text)
            assert re.findall(r"url\((?!#hatch)|<script|<image|<foreignObject", svg) == []
            for node in root.iter():
                assert not any(re.search(r"href$|src$|^on", key) for key in node.attrib)
                for key in ("fill", "stroke"):
                    colour = node.get(key)
                    assert colour is None or colour in allowed or colour.startswith("url(#hatch-"), colour
                assert node.tag.rpartition("}")[2] not in ("path", "text") or node.get("fill")
                assert not any(key.startswith("aria-") for key in node.attrib)
            for text in root.iter(f"{{{charts.SVG}}}text"):
                assert float((text.get("font-size") or "0").removesuffix("px")) >= 12


def test_the_effects_chart_shows_every_effect_as_the_table_does() -> None:
    section = build(runs.email()).sections[0]
    chart = charts.effects(section)
    assert chart is not None
    for svg in (chart.wide, chart.narrow):
        said = [node.text for node in ElementTree.fromstring(svg).iter(f"{{{charts.SVG}}}text")]
        for effect in section.effects:
            assert effect.quantity.text in said
            assert effect.quantity.range in said
            assert effect.quantity.full in chart.description
        assert "margin 0.1 pp" in said
        assert "no effect" in said


def test_two_runs_draw_the_same() -> None:
    assert drawn("email") == drawn("email")


def test_twenty_dots_stand_on_their_side_of_zero() -> None:
    weak = build(runs.holdout()).claims[1]
    chart = charts.dots(weak)
    assert chart is not None
    root = ElementTree.fromstring(chart.wide)
    zero = next(t for t in root.iter(f"{{{charts.SVG}}}text") if t.text == "zero")
    at = float(re.findall(r"[-\d.]+", zero.get("transform") or "")[0])
    places = [
        (float(re.findall(r"[-\d.]+", p.get("transform") or "")[0]), p.get("fill"))
        for p in root.iter(f"{{{charts.SVG}}}path")
    ]
    assert len(places) == 20
    assert [fill for _, fill in places].count("none") == 2  # hollow
    below = sum(x <= 0 for x in weak.dots)
    assert below == 2
    assert sum(x < at for x, _ in places) == below
    assert weak.dots_text == "The net is zero or less in 2 of 20 equally likely outcomes."


def test_an_extrapolated_amount_is_hatched() -> None:
    strong, _, plain = build(runs.holdout()).claims
    chart = charts.bridge(strong)
    assert chart is not None
    ids = re.findall(r'<pattern id="(hatch-[0-9a-f]+)"', chart.wide + chart.narrow)
    assert len(ids) == len(set(ids)) == 2
    assert charts.bridge(plain) is None


def test_many_costs_are_drawn_together() -> None:
    run = runs.holdout()
    claim = run["claims"][0]
    claim["costs"] = [
        {**claim["costs"][0], "name": f"cost_{i}", "value": 130_000.0, "low": 130_000.0, "high": 130_000.0}
        for i in range(10)
    ]
    chart = charts.bridge(build(run).claims[0])
    assert chart is not None
    assert "5 other costs" in chart.wide
    assert "\u2212$650,000" in chart.wide


def test_labels_are_cut_to_their_room() -> None:
    assert charts.fit("abc", 100, 12) == "abc"
    cut = charts.fit("a very long label indeed", 60, 12)
    assert cut.endswith("\u2026")
    assert charts.text_width(cut, 12) <= 60


def test_drawing_is_not_imported_until_it_is_needed() -> None:
    code = (
        "import sys; import payoff.report.html, payoff.report.terminal; "
        "sys.exit(bool({'altair', 'vl_convert', 'duckdb', 'sqlglot', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The report in a real browser: it fits a telephone, asks for nothing, and no two labels stand on one another."""

from __future__ import annotations

import html as escaping
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from payoff.report import html
from payoff.report.figures import build
from tests.report import runs

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
)

# A telephone narrower than a browser window may be is an iframe. The script is the test's, not the report's.
MEASURE = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe src="report.html" style="width:%dpx;height:2000px;border:0"></iframe><pre id="out"></pre>
<script>
document.querySelector("iframe").addEventListener("load", event => {
  const page = event.target.contentDocument, view = event.target.contentWindow, wide = page.documentElement.clientWidth;
  const seen = node => { const r = node.getBoundingClientRect(); return r.width > 0 && r.height > 0; };
  const out = {width: wide, scroll: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight,
    resources: view.performance.getEntriesByType("resource").map(r => r.name),
    outside: [], small: [], overlapping: [], clipped: [], svgs: 0, texts: 0};
  for (const node of page.body.querySelectorAll("*")) {
    const box = node.getBoundingClientRect();
    if (seen(node) && !node.classList.contains("skip") && !node.closest("thead") && (box.right > wide + 1 || box.left < -1))
      out.outside.push(node.tagName + " " + node.textContent.slice(0, 60));
    const own = [...node.childNodes].some(c => c.nodeType === 3 && c.textContent.trim());
    if (own && seen(node) && !node.closest("svg")) {
      const size = parseFloat(view.getComputedStyle(node).fontSize);
      if (size < 12) out.small.push(size + " " + node.textContent.slice(0, 60));
    }
  }
  for (const svg of page.querySelectorAll("svg")) {
    if (!seen(svg)) continue;
    out.svgs += 1;
    const frame = svg.getBoundingClientRect(), scale = frame.width / svg.viewBox.baseVal.width;
    const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect(),
      parseFloat(view.getComputedStyle(t).fontSize) * scale]);
    const marks = [...svg.querySelectorAll("path:not(.under)")].map(p => ["a mark", p.getBoundingClientRect()]);
    out.texts += boxes.length;
    boxes.forEach(([text, a, size], i) => {
      if (size < 10.5) out.small.push(size + " " + text);
      if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1 || a.bottom > frame.bottom + 1)
        out.clipped.push(text);
      for (const [other, b] of [...boxes.slice(i + 1), ...marks]) {
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (across > 1 && down > 3) out.overlapping.push(text + " | " + other);
      }
    });
  }
  document.getElementById("out").textContent = JSON.stringify(out);
});
</script>"""


def browse(tmp_path: Path, *arguments: str) -> str:
    if BROWSER is None:
        pytest.skip("NOT TESTED IN A BROWSER: none of chromium, chromium-browser, google-chrome is installed")
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def measure(tmp_path: Path, name: str, width: int) -> dict[str, Any]:
    html.write(build(runs.ALL[name]()), tmp_path / "report.html")
    (tmp_path / "measure.html").write_text(MEASURE % width, encoding="utf-8")
    address = (tmp_path / "measure.html").as_uri()
    dom = browse(
        tmp_path, f"--window-size={max(width, 600)},2000", "--virtual-time-budget=10000", "--dump-dom", address
    )
    found = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    assert found[1], "the page did not load"
    measured: dict[str, Any] = json.loads(escaping.unescape(found[1]))
    return measured


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize(
    "name",
    [
        "holdout",
        "three_arms",
        "hostile",
        "rich",
        "peeked",
        "programme",
        "hostile_rich",
        "journeys",
        "many_models",
        "compared",
        "hostile_journeys",
    ],
)
def test_the_page_fits_and_its_labels_are_apart(tmp_path: Path, name: str, width: int) -> None:
    seen = measure(tmp_path, name, width)
    assert seen["width"] == width
    assert seen["scroll"] <= width
    assert seen["outside"] == []
    assert seen["resources"] == []
    assert seen["small"] == []
    assert seen["clipped"] == []
    assert seen["overlapping"] == []
    assert seen["svgs"] >= 1
    assert seen["texts"] >= 10
    assert 1000 < seen["height"] < (60_000 if name == "journeys" else 40_000)


def test_the_page_paints(tmp_path: Path) -> None:
    html.write(build(runs.email()), tmp_path / "report.html")
    shot = tmp_path / "shot.png"
    browse(tmp_path, "--window-size=1100,1400", f"--screenshot={shot}", (tmp_path / "report.html").as_uri())
    # A blank page of this size compresses to under 10 kB.
    assert shot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert shot.stat().st_size > 40_000

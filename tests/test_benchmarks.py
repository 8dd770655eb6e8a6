"""The benchmark of scale: contestants of a task give the same figures, and the program writes them down. A few rows; no time is asserted."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
OF = {
    "a": ("payoff", "payoff-prepared", "tea-tasting"),
    "c": ("payoff", "payoff-prepared", "windowFunnel"),
    "d": ("payoff", "payoff-prepared", "count distinct"),
    "e": ("payoff", "payoff-prepared", "SQL by hand"),
    "f": ("payoff", "DuckDB and scipy"),
}


@pytest.fixture(scope="module")
def scale() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("scale")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def data(scale: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data: Path = scale.made(tmp_path_factory.mktemp("scale"), **scale.REHEARSED, strings=False)
    if importlib.util.find_spec("numba"):
        scale.copies(data, list(OF))
    return data


@pytest.mark.parametrize("task", OF)
def test_contestants_give_the_same_figures(scale: Any, data: Path, task: str) -> None:
    found = {}
    for who in OF[task]:
        of = scale.EVERYBODY[who]
        for module in of.needs:
            pytest.importorskip(module)
        watch = scale.Watch()
        found[who] = of.work(data, task, watch)
        assert watch.seconds > 0
    ours, *others = found.items()
    assert len(ours[1]) > 1
    for who, figures in others:
        assert scale.compared(who, scale.REHEARSED["users"], ours[1], figures) is None
        name = next(iter(figures))
        value, error = figures[name]
        other = figures | {name: (value + 0.2 * error + 1.0, error)}
        assert scale.compared(who, scale.REHEARSED["users"], ours[1], other) is not None
        del other[name]
        assert scale.compared(who, scale.REHEARSED["users"], ours[1], other) is not None


def test_the_program_writes_what_it_saw_and_who_could_not_be_run(scale: Any, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "seen.md"
    command = [sys.executable, str(BENCHMARKS / "scale.py"), "--data", str(data.parent), "--out", str(out), "--repeats", "1"]  # fmt: skip
    sizes = [f"--{k}={v}" for k, v in scale.REHEARSED.items()]
    for task, names in (("d", "payoff,polars"), ("e", "ChannelAttribution")):
        subprocess.run([*command, *sizes, task, "--contestants", names], check=True, capture_output=True)
    seen = json.loads(out.with_suffix(".json").read_text())["seen"]
    assert len(seen["d"]["payoff"]["runs"]) == 1
    assert set(seen["d"]["payoff"]["runs"][0]["figures"]) == {f"week {k}" for k in range(12)}
    text = out.read_text()
    assert "| d: retention, 12 weeks | payoff |" in text  # the record of one task is kept beside the next one's
    assert "| ChannelAttribution | not run: no --channel-attribution was named |" in text
    if importlib.util.find_spec("polars") is None:
        assert "| polars | not run: not installed: polars |" in text
    assert "All contestants of a task gave the same figures" in text


def test_a_watch_tells_what_was_imported_inside(scale: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "comes_late.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with (watch := scale.Watch()):
        pass
    assert not watch.late
    with watch.part("import"):
        importlib.import_module("comes_late")
    assert watch.late == {"comes_late"}
    assert 0 < watch.parts["import"] <= watch.seconds


def test_an_aim_is_met_or_missed(scale: Any) -> None:
    medians = {"payoff": {"seconds": 6.0, "cpu": 8.0}, "scan": {"seconds": 2.0, "cpu": 2.0}}
    aim = scale.Aim("a", "at most", "payoff", "scan", at_most=3)
    assert aim.row(medians) == "| a: at most | 3.00 | 4.00 | met |"
    assert "**missed**" in scale.Aim("a", "at least", "payoff", "scan", at_least=3.1).row(medians)
    assert scale.Aim("f", "s", "payoff", None, at_most=2, per=3).row(medians) == "| f: s | 2.00 s | 2.67 s | met |"
    assert "not measured" in scale.Aim("a", "x", "payoff", "polars", at_most=3).row(medians)

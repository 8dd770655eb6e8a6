"""A race: contestants in processes of their own, what each took, and the tables of it.

A contestant is timed by the ``Watch`` that it is given, around its work alone. Whatever it imports is imported before: a rehearsal
over a few rows, in another process, tells which modules those are. What is imported inside the clock all the same is told.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

Figures = dict[str, tuple[float, float]]
"""A figure and its standard error (0 where it is a count), by name."""
LARGE_MIB = 4096
"""Peak memory that is marked in the table."""
TOLD = (
    "payoff",
    "duckdb",
    "numba",
    "numpy",
    "pyarrow",
    "scipy",
    "polars",
    "pandas",
    "tea-tasting",
    "chdb",
    "pyspark",
    "ChannelAttribution",
)
"""Packages whose versions are told where a contestant imported them."""


# ---------------------------------------------------------------- in the contestant's process


class Watch:
    """Wall and processor seconds between its ``with``, added up; ``part`` names a share of them. ``times`` scales what only a
    part of the work was done for."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0
        self.times = 1
        self.parts: dict[str, float] = {}
        self.late: set[str] = set()

    def __enter__(self) -> Self:
        self._modules, self._others = set(sys.modules), _cpu_of_others()
        self._own, self._start = _cpu(), time.perf_counter()
        return self

    def __exit__(self, *of: object) -> None:
        self.seconds += time.perf_counter() - self._start
        self.cpu += _cpu() - self._own
        self.cpu += _cpu_of_others() - self._others
        self.late |= {name.partition(".")[0] for name in set(sys.modules) - self._modules} - sys.stdlib_module_names

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        before = self.seconds
        with self:
            yield
        self.parts[name] = self.parts.get(name, 0.0) + self.seconds - before


def _family() -> list[str]:
    """Processes that this one started, and theirs; empty where there is no /proc."""
    parents: dict[str, str] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[stat.parent.name] = stat.read_text().rpartition(")")[2].split()[1]
    found, new = [], [str(os.getpid())]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new]
        found += new
    return found


def _cpu() -> float:
    """Processor seconds of this process, and of those that it started and that ended."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(of.ru_utime + of.ru_stime for of in own)


def _cpu_of_others() -> float:
    """Processor seconds of processes that this one started and that still run."""
    total = 0.0
    for pid in _family():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def peak_mib() -> float:
    """The most memory held, by this process and by those that it started and that still run. Not of getrusage where there is /proc:
    a process begins there with what its parent held."""
    total = 0
    for pid in ("self", *_family()):
        with contextlib.suppress(OSError):
            of = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
            total += sum(int(line.split()[1]) for line in of)
    return (total or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024


def perform(work: Callable[[Watch], Figures], modules: Path | None) -> None:
    """A contestant's work, in this process: the last line printed is what it took, as JSON."""
    if modules is not None:
        for name in json.loads(modules.read_text()):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    before, watch, load = set(sys.modules), Watch(), os.getloadavg()[0]
    figures = work(watch)
    told = {name: importlib.metadata.version(name) for name in TOLD if name.replace("-", "_") in sys.modules}
    print()
    print(
        json.dumps({
            "seconds": watch.seconds * watch.times,
            "cpu": watch.cpu * watch.times,
            "parts": watch.parts,
            "peak_mib": peak_mib(),
            "late": sorted(watch.late),
            "load": load,
            "versions": told,
            "modules": [name for name in sys.modules if name not in before] if modules is None else [],
            "figures": figures,
        })
    )  # fmt: skip


# ---------------------------------------------------------------- in the program's


def contest(command: Sequence[str | Path]) -> dict[str, Any]:
    """What a contestant's process says it took; ``failed`` is why it did not."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"ended with {done.returncode}"]
        killed = f"killed by signal {-done.returncode}: " if done.returncode < 0 else ""
        return {"failed": killed + lines[-1].strip()[:300], "told": done.stderr[-5000:]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def has(python: str, modules: Iterable[str]) -> str | None:
    """Which of these modules an interpreter lacks; None where it has all."""
    if python == sys.executable:
        return " ".join(name for name in modules if importlib.util.find_spec(name) is None) or None
    text = "import importlib.util, sys; print(*[m for m in sys.argv[1:] if importlib.util.find_spec(m) is None])"
    done = subprocess.run([python, "-c", text, *modules], capture_output=True, text=True, check=False)
    return done.stdout.strip() or (None if done.returncode == 0 else f"{python} does not start")


def machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Aim:
    """A ratio of medians, ``over`` to ``under``, or where there is no ``under`` seconds, a ``per``."""

    task: str
    says: str
    over: str
    under: str | None
    at_most: float | None = None
    at_least: float | None = None
    per: float = 1.0

    def row(self, medians: Mapping[str, Mapping[str, float]]) -> str:
        if self.over not in medians or (self.under is not None and self.under not in medians):
            return f"| {self.task}: {self.says} | not measured | | |"
        seen = []
        for what in ("seconds", "cpu"):
            below = self.per if self.under is None else medians[self.under][what]
            seen.append(medians[self.over][what] / below if below else math.nan)
        bound = self.at_most if self.at_most is not None else self.at_least
        assert bound is not None
        met = seen[0] <= bound if self.at_most is not None else seen[0] >= bound
        unit = " s" if self.under is None else ""
        return f"| {self.task}: {self.says} | {seen[0]:.2f}{unit} | {seen[1]:.2f}{unit} | {'met' if met else '**missed**'} |"


@dataclass
class Record:
    """What was seen so far. Written as tables to ``path`` and, raw, beside it as JSON after every change; an earlier record of the
    same data is taken up, so that tasks can be run one after another."""

    path: Path | None
    of: dict[str, Any]
    """The data's description: what must be equal for an earlier record to be taken up."""
    titles: Mapping[str, str]
    aims: Sequence[Aim]
    notes: Sequence[str]
    seen: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Task -> contestant -> ``runs``, or why it has none: ``failed`` or ``skipped``; and ``wrong``, where its figures are others'."""
    versions: dict[str, str] = field(default_factory=dict)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    """Other tables by title, the first row being the head."""

    def __post_init__(self) -> None:
        if self.path is not None and self._raw.exists():
            kept = json.loads(self._raw.read_text())
            if kept["of"] == self.of:
                self.seen, self.versions, self.tables = kept["seen"], kept["versions"], kept["tables"]

    @property
    def _raw(self) -> Path:
        assert self.path is not None
        return self.path.with_suffix(".json")

    def add(self, task: str, who: str, run: dict[str, Any]) -> None:
        mine = self.seen.setdefault(task, {}).setdefault(who, {"runs": []})
        if "failed" in run or "skipped" in run:
            mine |= run
        else:
            self.versions |= run.pop("versions")
            run.pop("modules")
            mine["runs"].append(run)
        self.write()

    def wrong(self, task: str, who: str, text: str) -> None:
        self.seen[task][who]["wrong"] = text
        self.write()

    def write(self) -> None:
        if self.path is None:
            return
        raw = {"of": self.of, "versions": self.versions, "seen": self.seen, "tables": self.tables}
        for path, text in ((self._raw, json.dumps(raw, indent=1)), (self.path, self.text())):
            new = path.with_name(path.name + ".new")
            new.write_text(text)
            new.replace(path)

    def medians(self, task: str) -> dict[str, dict[str, float]]:
        return {
            who: {k: statistics.median(r[k] for r in of["runs"]) for k in ("seconds", "cpu", "peak_mib")}
            for who, of in self.seen.get(task, {}).items()
            if of["runs"] and "failed" not in of
        }

    # ---------------------------------------------------------------- tables

    def _rows(self, task: str) -> Iterator[str]:
        medians, title = self.medians(task), f"{task}: {self.titles[task]}"
        scan = medians.get("scan")
        for who, of in self.seen[task].items():
            if who in medians:
                m = medians[who]
                parts = {
                    name: statistics.median(r["parts"][name] for r in of["runs"]) for name in of["runs"][0]["parts"]
                }
                name = f"{who} ({', '.join(f'{part} {took:.2f} s' for part, took in parts.items())})" if parts else who
                times = f"{m['seconds'] / scan['seconds']:.1f}" if scan else ""
                peak = f"{m['peak_mib']:,.0f} MiB"
                peak = f"**{peak}**" if m["peak_mib"] > LARGE_MIB else peak
                yield f"| {title} | {name} | {m['seconds']:.2f} | {times} | {m['cpu']:.2f} | {peak} |"
            elif "failed" in of or "skipped" in of:
                why = f"failed: {of['failed']}" if "failed" in of else f"not run: {of['skipped']}"
                yield f"| {title} | {who} | {why.replace('|', '/')} | | | |"
            title = ""

    def text(self) -> str:
        of = {k: f"{v:,}" if isinstance(v, int) else v for k, v in self.of.items()}
        runs = [run for whos in self.seen.values() for mine in whos.values() for run in mine["runs"]]
        count = sorted({len(mine["runs"]) for whos in self.seen.values() for mine in whos.values() if mine["runs"]})
        late = sorted({f"{who} ({', '.join(run['late'])})" for whos in self.seen.values() for who, mine in whos.items() for run in mine["runs"] if run["late"]})  # fmt: skip
        wrong = [f"{t}: {m['wrong']}" for t, whos in self.seen.items() for m in whos.values() if "wrong" in m]
        out = [
            f"{of['events']} events of {of['users']} users, {of['touches']} touches, {of['edges']} pairs of ids; {of['ids']} ids.",
            f"{of['system']}, {of['cores']} cores, {of['memory_gib']} GiB, Python {of['python']}"
            + "".join(f", {name} {version}" for name, version in sorted(self.versions.items()))
            + f". Medians of {' or '.join(map(str, count)) or 'no'} runs"
            + (f"; the machine's load before one was {max(run['load'] for run in runs):.1f} at most." if runs else "."),
            "**Contestants disagree:** " + "; ".join(wrong) + "." if wrong else "All contestants of a task gave the same figures.",
        ]  # fmt: skip
        if late:
            out.append(f"Imported inside the clock all the same: {'; '.join(late)}.")
        out += ["", "| task | contestant | seconds | x scan | cpu s | peak memory |", "| --- | --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
        for task in self.titles:
            if task in self.seen:
                out += self._rows(task)
        out += ["", "| aim | seen | by processor time | |", "| --- | ---: | ---: | --- |"]
        out += [aim.row(self.medians(aim.task)) for aim in self.aims if aim.task in self.seen]
        for title, rows in self.tables.items():
            out += ["", f"{title}:", ""]
            head, *body = rows
            out += [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]
        return "\n".join([*out, "", *self.notes, ""])

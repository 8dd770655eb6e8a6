"""Run what is not in the cache yet, on all cores. Interrupted, it goes on where it was."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import math
import multiprocessing
import os
import sys
import time
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tests.simulations.catalogue import CASES
from tests.simulations.known import KNOWN
from tests.simulations.page import Regime, recorded
from tests.simulations.rows import Case, Row
from tests.simulations.verdicts import BAND, error, fails, verdict

CACHE = Path(__file__).parents[2] / ".simulations.jsonl"
Definitions = dict[str, ast.stmt]
Imports = dict[str, tuple[str, str]]  # what a name stands for: a name in a module, or ("", a module)


@lru_cache
def definitions(module: str) -> tuple[Definitions, Imports]:
    """What a module defines and imports at its top, without docstrings."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    own: Definitions = {}
    imports: Imports = {}
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = ""
    for statement in tree.body:
        match statement:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                own[name] = statement
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                own[name] = statement
            case ast.ImportFrom(module=str(source)) if source.startswith(OURS):
                for alias in statement.names:
                    whole = _is_module(f"{source}.{alias.name}")
                    imports[alias.asname or alias.name] = (
                        ("", f"{source}.{alias.name}") if whole else (source, alias.name)
                    )
    return own, imports


OURS = ("payoff", "tests.simulations")


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a name in a module
        return False


def source(module: str, name: str) -> str:
    """A hash of one definition and of every definition of ours that it can reach: what its figures depend on."""
    seen: dict[str, str] = {}
    waiting = [(module, name)]
    while waiting:
        where, what = waiting.pop()
        own, imports = definitions(where)
        if what in own and f"{where}.{what}" not in seen:
            seen[f"{where}.{what}"] = ast.dump(own[what])
            for node in ast.walk(own[what]):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    of = imports.get(node.value.id, ("?", ""))
                    waiting += [(of[1], node.attr)] if of[0] == "" else []
                elif isinstance(node, ast.Name):
                    waiting.append((where, node.id))
        elif what in imports and imports[what][0]:
            waiting.append(imports[what])
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()


def key(case: Case) -> str:
    return hashlib.sha256(
        f"{case.name} {case.worlds} {source(case.run.__module__, case.run.__name__)}".encode()
    ).hexdigest()[:20]


def seed(case: Case, fresh: int = 0) -> int:
    return zlib.crc32(f"{case.name}{fresh or ''}".encode())


def simulate(task: tuple[str, Case]) -> tuple[str, float, list[Row]]:
    k, case = task
    began = time.perf_counter()
    rows = case.run(seed(case), case.worlds, *case.arguments)
    return k, time.perf_counter() - began, rows


def cached() -> dict[str, list[Row]]:
    if not CACHE.exists():
        return {}
    found = {}
    for line in CACHE.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short by an interruption
        found[entry["key"]] = [Row(**row) for row in entry["rows"]]
    return found


def run(workers: int, cases: Sequence[Case] = CASES) -> list[tuple[Case, list[Row]]]:
    """Every case with its rows, in the catalogue's order."""
    done = cached()
    keys = [key(case) for case in cases]
    # The longest first, so that no core is idle at the end.
    missing = [(k, case) for k, case in zip(keys, cases, strict=True) if k not in done]
    missing.sort(key=lambda task: -task[1].worlds * (task[1].units + 3_000))
    names = {k: case.name for k, case in missing}
    # One thread a worker: the matrices are small. Read by numpy when a worker first imports it.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    with (
        CACHE.open("a", encoding="utf-8") as cache,
        multiprocessing.get_context("spawn").Pool(max(1, min(workers, len(missing)))) as pool,
    ):
        for number, (k, seconds, rows) in enumerate(pool.imap_unordered(simulate, missing), 1):
            entry = {"key": k, "case": names[k], "seconds": round(seconds, 1), "rows": [r.to_dict() for r in rows]}
            cache.write("\n" * (cache.tell() > 0 and number == 1) + json.dumps(entry) + "\n")
            cache.flush()
            done[k] = rows
            print(f"{number} of {len(missing)}: {names[k]}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return [(case, done[k]) for k, case in zip(keys, cases, strict=True)]


def differences(case: Case) -> list[str]:
    """Draw other worlds of the case, a quarter as many: the rows that say something else than the page, in words."""
    page = recorded()
    told = []
    for row in case.run(seed(case, fresh=1), max(200, case.worlds // 4), *case.arguments):
        there = page.get(row.key)
        if there is None:
            told.append(f"not on the page: {row.key}")
            continue
        if "refused" in (verdict(row), there["verdict"]):
            continue
        column, share = ("excludes 0", row.rejected) if row.what == "test" else ("covers", row.covered)
        before, answered = float(there[column]), int(there["answered"].split(" of ")[0].replace(",", ""))
        if row.spread is None:
            both = min(max((share * row.answered + before * answered) / (row.answered + answered), 0.005), 0.995)
            allowed = math.sqrt(both * (1 - both) * (1 / row.answered + 1 / answered))
        else:
            allowed = math.hypot(error(row), row.spread / math.sqrt(answered))
        if abs(share - before) > BAND * allowed + 0.0005:  # the page is rounded
            told.append(f"{row.key}: {column} {before:.3f} on the page, {share:.3f} in other worlds")
        if fails(row) and Regime(case.family, row.values, row.units) not in KNOWN:
            told.append(f"{row.key}: {verdict(row)} ({share:.3f}), in a regime that is not known to")
    return told


def cores() -> int:
    return os.cpu_count() or 1

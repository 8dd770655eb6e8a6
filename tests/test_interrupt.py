"""Ctrl-C in the middle of a long scan: one line, exit code 130, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.builders import write_project


def test_ctrl_c_stops_a_running_query(tmp_path: Path) -> None:
    spill = tmp_path / "spill"
    definitions = """
        sources:
          pairs:
            sql: "SELECT a.x * 1e6 + b.x * 1e3 + c.x AS id, CASE WHEN (a.x + b.x + c.x) % 2 = 0 THEN 'a' ELSE 'b' END AS arm, c.x AS y FROM t AS a, t AS b, t AS c"
            one_row_per: user
            id: id
        metrics: {y: {kind: mean, from: pairs, column: y}}
        experiments: {e: {assignment: {source: pairs, variant: arm, control: a}, primary: y}}
    """
    folder = write_project(
        tmp_path / "shop", definitions, "CREATE TABLE t AS SELECT i::DOUBLE AS x FROM range(5000) AS r(i)"
    )
    root = folder / "payoff.yml"
    root.write_text(root.read_text().replace("path: data.duckdb", f"path: data.duckdb, temp_directory: '{spill}'"))
    # A process that was started in the background by a shell would ignore the signal.
    start = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from payoff.cli import main; main()"
    )
    command = [sys.executable, "-c", start, "run", "-p", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (spill.exists() and os.listdir(spill)):
        time.sleep(0.05)  # the engine makes its folder before its first query
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, told = process.communicate(timeout=60)
    assert (process.returncode, out, told) == (130, "", "interrupted; what was kept before is untouched\n")
    assert os.listdir(spill) == [], "what was spilled is gone"

"""`python -m tests.simulations`: compute what is missing and write docs/simulations.md.

`--check` draws other worlds, a quarter as many, for every regime, and says which rows differ from the page by more than
chance; nothing is written. `--sample N` takes every Nth regime.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulations.catalogue import CASES
from tests.simulations.known import KNOWN
from tests.simulations.page import DOCS, failing, page
from tests.simulations.run import cores, differences, run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=cores(), help="processes at a time (all cores)")
    parser.add_argument("--check", action="store_true", help="compare the page with other worlds, write nothing")
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="with --check: every Nth regime")
    arguments = parser.parse_args()
    began = time.perf_counter()
    if arguments.check:
        told = [text for case in CASES[:: arguments.sample] for text in differences(case)]
    else:
        found = run(arguments.workers)
        DOCS.write_text(page(found, KNOWN), encoding="utf-8")
        bad = failing(found)
        told = [f"fails, and is not in tests/simulations/known.py: {regime}" for regime in bad if regime not in KNOWN]
        told += [f"does not fail any more: {regime}" for regime in KNOWN if regime not in bad]
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    sys.exit("\n".join(told) or 0)

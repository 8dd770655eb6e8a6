"""Shared by every test: one seeded generator, and laws that are tried on the same examples every time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# A test that fails must fail again: derandomised, no remembered examples, no deadline (timing is not a law).
settings.register_profile(
    "payoff",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("payoff")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20_260_401)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Engines that did not run, and why: what was skipped is said aloud. In CI they fail instead."""
    reasons = (str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", ()))
    told = Counter(reason.removeprefix("Skipped: ") for reason in reasons if " was not executed: " in reason)
    for reason, tests in sorted(told.items()):
        terminalreporter.write_line(f"ENGINE NOT RUN: {reason} ({tests} tests skipped)", yellow=True, bold=True)

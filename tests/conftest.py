"""Shared by every test: one seeded generator, and laws that are tried on the same examples every time."""

from __future__ import annotations

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

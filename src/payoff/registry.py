"""name -> "module:Class". Looking a name up imports its module, and nothing before that does."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from payoff.errors import UsageError, did_you_mean

METHODS: dict[str, str] = {
    "experiment": "payoff.methods.experiment:ExperimentMethod",
    "programme": "payoff.methods.programme:ProgrammeMethod",
    "attribution": "payoff.methods.attribution:AttributionMethod",
    "funnel": "payoff.methods.funnel:FunnelMethod",
    "cohort": "payoff.methods.cohort:CohortMethod",
    "path": "payoff.methods.path:PathMethod",
}


def method(name: str) -> Any:
    """The method object registered as ``name``. Raises UsageError for an unknown name."""
    if name not in METHODS:
        raise UsageError(f"'{name}' is not a method{did_you_mean(name, METHODS)}")
    module, _, cls = METHODS[name].partition(":")
    return getattr(import_module(module), cls)()

"""Payoff: what did this model, or this personalisation, really earn, and how sure are we?

``payoff.load(".")`` opens a project; everything else hangs on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from payoff.run import Project

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def load(path: str = ".") -> Project:
    """The project whose payoff.yml is at ``path`` or above it. Raises DefinitionError with every problem found."""
    from payoff.run import Project

    return Project.load(path)


def __getattr__(name: str) -> Any:
    if name == "Project":
        from payoff.run import Project

        return Project
    raise AttributeError(f"module 'payoff' has no attribute '{name}'")

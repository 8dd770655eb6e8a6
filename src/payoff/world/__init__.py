"""The simulated company with known truth: its tables, what really caused what, and a project that measures it."""

from payoff.world.company import Company, World, make_company, potential_world, unit_level
from payoff.world.project import demo_definitions, write, write_demo_project

__all__ = [
    "Company",
    "World",
    "demo_definitions",
    "make_company",
    "potential_world",
    "unit_level",
    "write",
    "write_demo_project",
]

"""Worlds whose truth is known, and how often the program's intervals hold it. `python -m tests.simulations` makes docs/simulations.md."""

"""``python -m payoff`` is ``payoff``."""

from __future__ import annotations

from payoff.cli import main

main()

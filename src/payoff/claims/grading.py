"""How far a claim can be trusted: the letter, and the reasons for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

from payoff.claims.words import listed
from payoff.spec.nouns import Value

GRADES = "ABCDE"
CAUSAL_GRADES = "ABC"


def lacks(value: Value, today: date, *, needs_range: bool = True) -> tuple[str, ...]:
    """What a money value is short of, in words: an owner, a source, an expiry still to come, a range. Empty: nothing."""
    short = [] if value.owner else ["has no owner"]
    if not value.source:
        short.append("has no source")
    if value.expires is None:
        short.append("has no expiry")
    elif value.expires <= today:
        short.append("expires today" if value.expires == today else f"expired on {value.expires.isoformat()}")
    if needs_range and (value.low is None or value.high is None):
        short.append("has no range (low and high)")
    return tuple(short)


def grade(
    evidence: Mapping[str, str], values: Mapping[str, Value], disagreements: Sequence[str], today: date
) -> tuple[str, tuple[str, ...]]:
    """The letter of a claim and the reasons for it.

    | step | rule                                                                                         |
    |------|----------------------------------------------------------------------------------------------|
    | 1    | start from the weakest grade among the evidence that the amount needs; with none, E          |
    | 2    | one letter down for each value that lacks an owner, a source, a range or an expiry to come   |
    | 3    | one letter down for each effect on which two pieces of evidence contradict each other        |
    | 4    | never below E                                                                                |

    ``evidence`` maps the evidence that the amount needs to its grade, ``values`` the money values it uses by name. An
    attribution is graded D at best: its credit was shared out by a rule, and nothing was compared.
    """
    if not evidence:
        return "E", ("No measured effect enters the amount: every figure in it is typed in or counted.",)
    shared = [name for name in evidence if name.startswith("attribution.")]
    evidence = {n: max(letter, "D") if n in shared else letter for n, letter in evidence.items()}
    weakest = max(evidence, key=lambda name: GRADES.index(evidence[name]))
    start = evidence[weakest]
    reasons = [f"The evidence {weakest} is graded {start}."]
    if len(evidence) > 1:
        others = ", ".join(f"{name} {letter}" for name, letter in evidence.items() if name != weakest)
        reasons = [f"The weakest evidence that the amount needs, {weakest}, is graded {start} (also used: {others})."]
    if shared:
        reasons.append(f"{listed(shared)}: attributed only; credit was shared out, and nothing was compared.")
    steps = 0
    for name, value in values.items():
        short = lacks(value, today)
        if short:
            steps += 1
            reasons.append(f"One letter down: the value {name} {listed(short)}.")
    for disagreement in disagreements:
        steps += 1
        reasons.append(f"One letter down: {disagreement}.")
    return GRADES[min(GRADES.index(start) + steps, len(GRADES) - 1)], tuple(reasons)

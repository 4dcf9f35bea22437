"""The executable specification of an OP-TEE mediator: what it has to do, one observed event at a time.

    state = State()
    for event in events:
        verdicts = step(state, event)

Uses nothing but the standard library, does no input or output, knows no clock and no randomness.
"""

from __future__ import annotations

from mediator_ref.deviations import DEVIATIONS, Deviation
from mediator_ref.limits import Limits
from mediator_ref.rules import RULES, Rule
from mediator_ref.state import State
from mediator_ref.step import step
from mediator_ref.verdict import Difference, Outcome, Tally, Verdict

__all__ = [
    "DEVIATIONS",
    "RULES",
    "Deviation",
    "Difference",
    "Limits",
    "Outcome",
    "Rule",
    "State",
    "Tally",
    "Verdict",
    "step",
]

# SPDX-License-Identifier: GPL-2.0-or-later
"""The executable specification of an OP-TEE mediator: what it has to do, one observed event at a time.

    state = State()
    for event in events:
        verdicts = step(state, event)

To be read beside Xen's ``arch/arm/tee/optee.c``: :mod:`mediator_ref.spec` says what is right, function by function;
:mod:`mediator_ref.compare` holds observed events against it; :mod:`mediator_ref.deviations` are the known differences
and :mod:`mediator_ref.defect_model` what a mediator with them holds. :mod:`mediator_ref.counterparts` lists the
functions of optee.c with their counterparts.

Uses nothing but the standard library, does no input or output, knows no clock and no randomness.
"""

from __future__ import annotations

from mediator_ref.deviations import DEVIATIONS, Deviation
from mediator_ref.limits import Limits
from mediator_ref.rules import RULES, DeviationId, Rule, RuleId
from mediator_ref.state import State
from mediator_ref.step import step
from mediator_ref.verdict import Difference, Outcome, Tally, Verdict

__all__ = [
    "DEVIATIONS",
    "RULES",
    "Deviation",
    "DeviationId",
    "Difference",
    "Limits",
    "Outcome",
    "Rule",
    "RuleId",
    "State",
    "Tally",
    "Verdict",
    "step",
]
